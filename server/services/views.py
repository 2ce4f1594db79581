"""Integrations as callers look at them most: what is known of one and how it does, in one statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from server.db.models import HealthStatus, IntegrationStatus
from server.db.reads import Reads
from server.services.health import MEASURE, Health, health_of
from server.services.paging import Page

_LOOK = f"""
WITH measured AS ({MEASURE})
SELECT id, integration_configs.integration_type, environment::text,
       integration_configs.status::text AS status, connected_at, disconnected_at, last_sync_at,
       next_sync_at, health_status::text, failure_count, last_error, last_error_at, config, template_id,
       syncs, successes, took, last_success_at, last_failure_at, calls, depth, ends_at,
       measured.venue_id IS NOT NULL AS measured
"""
_FROM = """
FROM integration_configs
LEFT JOIN measured ON measured.venue_id = integration_configs.venue_id
    AND measured.integration_type = integration_configs.integration_type
WHERE integration_configs.venue_id = $1
"""
LIST = f"""
{_LOOK}, (SELECT count(*) FROM integration_configs WHERE venue_id = $1) AS total
{_FROM} AND ($2::text IS NULL OR integration_configs.integration_type > $2)
ORDER BY integration_configs.integration_type LIMIT $3 OFFSET $4
"""  # noqa: S608 - made of the texts above
ONE = f"{_LOOK} {_FROM} AND integration_configs.integration_type = $2"
_COUNT = "SELECT count(*) AS total FROM integration_configs WHERE venue_id = $1"


@dataclass(frozen=True, slots=True)
class View:
    """An integration, and what its syncs came to; None where there is nothing to measure."""

    id: UUID
    integration_type: str
    environment: str
    status: IntegrationStatus
    connected_at: datetime | None
    disconnected_at: datetime | None
    last_sync_at: datetime | None
    next_sync_at: datetime | None
    health_status: HealthStatus  # as it was last judged
    failure_count: int
    last_error: str | None
    last_error_at: datetime | None
    config: dict[str, Any]
    template_id: UUID | None
    measured: Health | None


async def list_views(
    reads: Reads, venue_id: UUID, *, limit: int, offset: int, after: tuple[str, ...] | None
) -> Page:
    """Return a venue's integrations by provider name, as `View`s."""
    skipped = offset if after is None else 0
    rows = await reads.rows(LIST, venue_id, after[0] if after else None, limit + 1, skipped)
    # Without rows there may be some all the same, only none from there on.
    total = (rows or await reads.rows(_COUNT, venue_id))[0]["total"]
    last = rows[limit - 1]["integration_type"] if len(rows) > limit else None
    return Page([_view(row) for row in rows[:limit]], total, (last,) if last else None)


async def find_view(reads: Reads, venue_id: UUID, provider: str) -> View | None:
    """Return an integration, None where a venue hasn't connected it."""
    rows = await reads.rows(ONE, venue_id, provider)
    return _view(rows[0]) if rows else None


def _view(row: Mapping[str, Any]) -> View:
    return View(
        row["id"],
        row["integration_type"],
        row["environment"],
        IntegrationStatus(row["status"]),
        row["connected_at"],
        row["disconnected_at"],
        row["last_sync_at"],
        row["next_sync_at"],
        HealthStatus(row["health_status"]),
        row["failure_count"],
        row["last_error"],
        row["last_error_at"],
        row["config"],
        row["template_id"],
        health_of(row) if row["measured"] else None,
    )
