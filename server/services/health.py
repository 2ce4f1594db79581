"""How integrations are doing, measured from what their syncs did; and whether this service can work."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Protocol

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from server.context import Context
from server.db import migrate
from server.db.models import HealthStatus, IntegrationStatus
from server.services import conditions

# Rows of one run are its mappings. The last success may be older than a day; counts are of 24 hours.
_MEASURE = """
WITH runs AS (
    SELECT venue_id, integration_type,
           bool_or(status IN ('failed', 'dead_letter')) AS failed,
           extract(epoch FROM max(completed_at) - min(started_at)) * 1000 AS took,
           max(completed_at) AS completed_at,
           coalesce(sum(api_calls_made), 0) AS calls,
           min(started_at) > now() - interval '24 hours' AS recent
    FROM sync_logs
    WHERE {whose}
        AND started_at > now() - interval '30 days'
    GROUP BY venue_id, integration_type, coalesce(sync_id, id)
), waiting AS (
    SELECT venue_id, integration_type, count(*) AS depth FROM sync_queue
    WHERE {whose} AND status IN ('pending', 'recovering')
    GROUP BY venue_id, integration_type
), ending AS (
    SELECT venue_id, integration_type, refresh_expires_at AS ends_at FROM oauth_tokens
    WHERE {whose}
        AND refresh_expires_at <= now() + least(
            interval '14 days', refresh_expires_in * interval '500 milliseconds'
        )
)
SELECT venue_id, integration_type,
       count(*) FILTER (WHERE recent) AS syncs,
       count(*) FILTER (WHERE recent AND NOT failed) AS successes,
       avg(took) FILTER (WHERE recent) AS took,
       max(completed_at) FILTER (WHERE NOT failed) AS last_success_at,
       max(completed_at) FILTER (WHERE failed) AS last_failure_at,
       coalesce(sum(calls) FILTER (WHERE recent), 0) AS calls,
       coalesce(max(depth), 0) AS depth,
       max(ends_at) AS ends_at
FROM runs FULL JOIN waiting USING (venue_id, integration_type)
    FULL JOIN ending USING (venue_id, integration_type)
GROUP BY venue_id, integration_type
"""
MEASURE = _MEASURE.format(whose="venue_id = $1")  # for a statement around it, whose first value is the venue

# What syncs of 24 hours came to and what waits, written down for all integrations together.
_WRITE = text("""
WITH done AS (
    SELECT venue_id, integration_type, sum(syncs) AS syncs, sum(syncs - failed) AS successes,
        sum(api_calls) AS calls, sum(duration_ms) / nullif(sum(timed), 0) AS took
    FROM sync_rollups WHERE width = 'hour' AND bucket > now() - interval '24 hours'
    GROUP BY venue_id, integration_type
), waiting AS (
    SELECT venue_id, integration_type, count(*) AS depth, min(queued_at) AS oldest FROM sync_queue
    WHERE status IN ('pending', 'recovering')
    GROUP BY venue_id, integration_type
)
INSERT INTO integration_health AS known (
    venue_id, integration_type, success_rate, average_sync_time_ms, last_success_at, last_failure_at,
    sync_count_24h, success_count_24h, failure_count_24h, api_calls_24h, queue_depth, oldest_queue_item_at
)
SELECT venue_id, integration_type, 100.0 * successes / nullif(syncs, 0), took, config.last_sync_at,
    config.last_error_at, coalesce(syncs, 0), coalesce(successes, 0), coalesce(syncs - successes, 0),
    coalesce(calls, 0), coalesce(depth, 0), oldest
FROM integration_configs AS config
    LEFT JOIN done USING (venue_id, integration_type)
    LEFT JOIN waiting USING (venue_id, integration_type)
ON CONFLICT (venue_id, integration_type) DO UPDATE SET
    success_rate = excluded.success_rate,
    average_sync_time_ms = excluded.average_sync_time_ms,
    last_success_at = greatest(excluded.last_success_at, known.last_success_at),
    last_failure_at = greatest(excluded.last_failure_at, known.last_failure_at),
    sync_count_24h = excluded.sync_count_24h,
    success_count_24h = excluded.success_count_24h,
    failure_count_24h = excluded.failure_count_24h,
    api_calls_24h = excluded.api_calls_24h,
    queue_depth = excluded.queue_depth,
    oldest_queue_item_at = excluded.oldest_queue_item_at,
    calculated_at = now()
RETURNING id
""")
_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtextextended('health numbers', 0))")
_LONGEST = "60s"


@dataclass(frozen=True, slots=True)
class Health:
    """One integration's last 24 hours. `success_rate` is in percent of syncs, None when there were none.

    `authorization_ends_at` is told when it is near: the venue has to connect again, unless a renewal puts it
    off.
    """

    status: HealthStatus
    success_rate: float | None = None
    average_sync_time_ms: int | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    sync_count_24h: int = 0
    api_calls_24h: int = 0
    queue_depth: int = 0
    authorization_ends_at: datetime | None = None


async def write(session: AsyncSession) -> int:
    """Write down what all integrations did in 24 hours, as far as it is rolled up; returns how many.

    Nothing while another process does. The hour that began 24 hours ago is left out.
    """
    await session.execute(text(f"SET LOCAL statement_timeout = '{_LONGEST}'"))
    if not await session.scalar(_ALONE):
        return 0
    return len((await session.scalars(_WRITE)).all())


def health_of(row: Mapping[str, Any]) -> Health:
    """Return what a row of `MEASURE` says."""
    rate = 100 * row["successes"] / row["syncs"] if row["syncs"] else None
    took = row["took"]
    return Health(
        _by_rate(rate, ends_soon=row["ends_at"] is not None),
        None if rate is None else round(rate, 2),
        None if took is None else round(took),
        row["last_success_at"],
        row["last_failure_at"],
        row["syncs"],
        int(row["calls"]),
        row["depth"],
        row["ends_at"],
    )


class Judged(Protocol):
    """An integration, in whatever form it was read."""

    @property
    def status(self) -> IntegrationStatus: ...

    @property
    def health_status(self) -> HealthStatus: ...


def judge(integration: Judged, measured: Health | None) -> HealthStatus:
    """Return an integration's health: one that can't work is unhealthy whatever its past.

    Of what syncs show by now and what was judged last the worse is told: better is told slowly.
    """
    if integration.status in (IntegrationStatus.ERROR, IntegrationStatus.SUSPENDED):
        return HealthStatus.UNHEALTHY
    if integration.status != IntegrationStatus.CONNECTED:
        return HealthStatus.UNKNOWN
    if measured is None:
        return integration.health_status
    return conditions.worse(measured.status, integration.health_status)


def _by_rate(rate: float | None, *, ends_soon: bool) -> HealthStatus:
    if rate is not None and rate < 50:
        return HealthStatus.UNHEALTHY
    if ends_soon or (rate is not None and rate < 90):
        return HealthStatus.DEGRADED
    return HealthStatus.UNKNOWN if rate is None else HealthStatus.HEALTHY


@cache
def _outdated() -> frozenset[str | None]:
    return migrate.outdated()  # reads every migration, and they don't change while a process lives


async def readiness(context: Context) -> dict[str, str]:
    """Return what keeps this service from working, by part; empty when it can."""
    problems: dict[str, str] = {}
    try:
        async with context.engine.connect() as connection:
            revision = await migrate.current_revision(connection)
        if revision in _outdated():
            problems["migrations"] = "the database isn't at the newest revision: run `hub migrate`"
    except (SQLAlchemyError, OSError):
        problems["database"] = "PostgreSQL can't be reached"
    try:
        await context.redis.ping()
    except (RedisError, OSError):
        problems["redis"] = "Redis can't be reached"
    return problems
