"""What an operator sees of all venues at once: their integrations, the queue, and how they are doing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from uuid import UUID

import msgspec
import structlog
from redis.exceptions import RedisError
from sqlalchemy import func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from server.context import Context
from server.db.models import (
    HealthStatus,
    IntegrationConfig,
    IntegrationStatus,
    Operation,
    OperationStatus,
    Priority,
)
from server.services import rollups
from server.services.integrations import Page
from server.services.rollups import Numbers

log = structlog.get_logger(__name__)

SUMMARY_KEY = "hub:health-summary:2"  # the number grows when what is kept changes
SUMMARY_SECONDS = 300
PERIODS: Mapping[str, timedelta] = {
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class QueueCell:
    """How many operations of a priority have a status."""

    priority: Priority
    status: OperationStatus
    count: int


@dataclass(frozen=True, slots=True)
class IntegrationCounts:
    """Integrations of all venues. The health counted is that of connected ones."""

    total: int = 0
    connected: int = 0
    healthy: int = 0
    degraded: int = 0
    unhealthy: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class StatusCount:
    status: OperationStatus
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    integrations: IntegrationCounts
    queues: Sequence[StatusCount]
    calculated_at: str  # RFC 3339: a summary is up to five minutes old
    circuits_open: int  # integrations whose operations wait for their provider
    periods: Mapping[str, Numbers]  # of all integrations together


@dataclass(frozen=True, slots=True)
class Metrics:
    """An integration's syncs in a period; `avg_duration` is in milliseconds, None without any."""

    total_syncs: int
    successful: int
    failed: int
    avg_duration: int | None
    total_success_count: int
    total_error_count: int
    success_rate: float | None  # in percent of syncs
    api_calls: int
    median_duration: int | None
    p95_duration: int | None


async def list_integrations(
    session: AsyncSession,
    *,
    status: IntegrationStatus | None,
    health_status: HealthStatus | None,
    provider: str | None,
    limit: int,
    offset: int,
    after: tuple[UUID, str] | None,
) -> Page:
    """Return integrations of all venues, by venue and provider. Health is as it was last measured."""
    config = IntegrationConfig
    given = {"status": status, "health_status": health_status, "integration_type": provider}
    wanted = select(config).filter_by(**{name: value for name, value in given.items() if value is not None})
    total = await session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    place = tuple_(config.venue_id, config.integration_type)
    statement = wanted.order_by(config.venue_id, config.integration_type).limit(limit + 1)
    statement = statement.offset(offset) if after is None else statement.where(place > tuple_(*after))
    rows = (await session.scalars(statement)).all()
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return Page(rows[:limit], total, (str(last.venue_id), last.integration_type) if last else None)


async def health_summary(context: Context, *, fresh: bool = False) -> Summary:
    """Return how all integrations are doing, kept in Redis for five minutes.

    It is calculated anew without Redis, and when it is to be `fresh`.
    """
    try:
        kept = None if fresh else await context.redis.get(SUMMARY_KEY)
        if kept is not None:
            return msgspec.json.decode(kept, type=Summary)
    except (RedisError, OSError, msgspec.DecodeError) as error:  # what another version kept isn't ours
        await log.awarning("health_summary.not_kept", error=type(error).__name__)
    async with context.sessions() as session:
        summary = await _summarize(session)
    try:
        await context.redis.set(SUMMARY_KEY, msgspec.json.encode(asdict(summary)), ex=SUMMARY_SECONDS)
    except (RedisError, OSError) as error:
        await log.awarning("health_summary.not_kept", error=type(error).__name__)
    return summary


async def _summarize(session: AsyncSession) -> Summary:
    config = IntegrationConfig
    rows = await session.execute(
        select(config.status, config.health_status, func.count()).group_by(
            config.status, config.health_status
        )
    )
    counts = dict.fromkeys(("total", "connected", *HealthStatus), 0)
    for status, health, count in rows:
        counts["total"] += count
        if status == IntegrationStatus.CONNECTED:
            counts["connected"] += count
            counts[health] += count
    queues = await session.execute(
        select(Operation.status, func.count()).group_by(Operation.status).order_by(Operation.status)
    )
    now = await session.scalar(select(func.now()))
    circuits = await session.scalar(select(func.count()).where(config.circuit_opened_at.is_not(None)))
    return Summary(
        IntegrationCounts(**{str(name): count for name, count in counts.items()}),
        [StatusCount(status, count) for status, count in queues],
        "" if now is None else now.isoformat(),
        circuits or 0,
        {period: await rollups.total(session, period) for period in PERIODS},
    )


async def queue_metrics(session: AsyncSession) -> list[QueueCell]:
    """Return how many operations there are, the most urgent first."""
    rows = await session.execute(
        select(Operation.priority, Operation.status, func.count())
        .group_by(Operation.priority, Operation.status)
        .order_by(Operation.priority, Operation.status)
    )
    return [QueueCell(priority, status, count) for priority, status, count in rows]


# Rows of one run are its mappings: a run failed when one of them did.
_METRICS = text("""
WITH runs AS (
    SELECT bool_or(status IN ('failed', 'dead_letter')) AS failed,
           extract(epoch FROM max(completed_at) - min(started_at)) * 1000 AS took,
           sum(success_count) AS successes, sum(error_count) AS errors,
           sum(coalesce(api_calls_made, 0)) AS calls
    FROM sync_logs
    WHERE venue_id = :venue_id AND integration_type = :provider
        AND started_at > now() - CAST(:period AS interval)
    GROUP BY coalesce(sync_id, id)
)
SELECT count(*) AS total, count(*) FILTER (WHERE failed) AS failed, round(avg(took)) AS took,
       coalesce(sum(successes), 0) AS successes, coalesce(sum(errors), 0) AS errors,
       coalesce(sum(calls), 0) AS calls,
       round(CAST(percentile_cont(0.5) WITHIN GROUP (ORDER BY took) AS numeric)) AS median,
       round(CAST(percentile_cont(0.95) WITHIN GROUP (ORDER BY took) AS numeric)) AS p95
FROM runs
""")


async def metrics(session: AsyncSession, venue_id: UUID, provider: str, period: timedelta) -> Metrics:
    """Return what an integration's syncs came to in a period that ends now."""
    row = (
        await session.execute(_METRICS, {"venue_id": venue_id, "provider": provider, "period": period})
    ).one()
    return Metrics(
        row.total,
        row.total - row.failed,
        row.failed,
        None if row.took is None else int(row.took),
        int(row.successes),
        int(row.errors),
        round(100 * (row.total - row.failed) / row.total, 2) if row.total else None,
        int(row.calls),
        None if row.median is None else int(row.median),
        None if row.p95 is None else int(row.p95),
    )
