"""Syncs added up by hour and by day, so that numbers of many integrations over weeks are read in no time.

`sync_logs` is the truth: an hour that a log was written for is added up anew from all its logs, and a day
from its hours. So nothing is counted twice, however often or at the same time it is done. A sync belongs to
the hour (UTC) it began in. Durations are kept as counts by class, which can be added up, and percentiles are
read from these: exact to a class, in proportion within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

# Upper ends of the classes of durations, in milliseconds; the last one has none.
CLASSES: tuple[int, ...] = (
    *(250, 500, 1_000, 2_000, 5_000, 10_000, 30_000),
    *(60_000, 120_000, 300_000, 900_000, 3_600_000),
)
# A period in buckets: their width, and how many up to the one that has begun.
PERIODS: Mapping[str, tuple[str, int]] = {"24h": ("hour", 24), "7d": ("day", 7), "30d": ("day", 30)}
HOURS_KEPT = "3 days"  # and days so many:
DAYS_KEPT = 32
SLICE = "6 hours"  # of ends of syncs, in one transaction
_LATE = "2 minutes"  # a transaction that ends a sync is committed no later than that
_MARK = "syncs"
_LONGEST = "120s"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What syncs in a period came to. Durations are in milliseconds, None when none is known."""

    syncs: int = 0
    failed: int = 0
    success_rate: float | None = None  # in percent
    mean_ms: int | None = None
    median_ms: int | None = None
    p95_ms: int | None = None
    success_count: int = 0
    error_count: int = 0
    api_calls: int = 0


@dataclass(frozen=True, slots=True)
class IntegrationNumbers:
    """One integration's."""

    venue_id: UUID
    provider: str
    numbers: Numbers


def _durations() -> str:
    """Return SQL that counts rows by class of `took`, as an array."""
    ends = (0, *CLASSES)
    bounds = [f"took >= {low} AND took < {high}" for low, high in zip(ends, CLASSES, strict=False)]
    counts = [f"count(*) FILTER (WHERE {bound})::int" for bound in (*bounds, f"took >= {CLASSES[-1]}")]
    return f"ARRAY[{', '.join(counts)}]"


def _sums(column: str) -> str:
    """Return SQL that adds up arrays class by class."""
    return ", ".join(f"sum({column}[{n}])" for n in range(1, len(CLASSES) + 2))


# Rows of one run are its mappings; a run failed when one of them did.
_OF_LOGS = f"""
    SELECT venue_id, integration_type, bucket, count(*)::int AS syncs,
           (count(*) FILTER (WHERE failed))::int AS failed,
           count(took)::int AS timed, coalesce(sum(took), 0)::bigint AS duration_ms,
           {_durations()} AS durations,
           sum(successes)::bigint AS success_count, sum(errors)::bigint AS error_count,
           sum(calls)::bigint AS api_calls
    FROM (
        SELECT dirty.venue_id, dirty.integration_type, dirty.bucket,
               bool_or(log.status IN ('failed', 'dead_letter')) AS failed,
               greatest(extract(epoch FROM max(log.completed_at) - min(log.started_at)) * 1000, 0)::bigint
                   AS took,
               sum(log.success_count) AS successes, sum(log.error_count) AS errors,
               sum(coalesce(log.api_calls_made, 0)) AS calls
        FROM dirty JOIN sync_logs AS log ON log.venue_id = dirty.venue_id
            AND log.integration_type = dirty.integration_type
            AND log.started_at >= dirty.bucket AND log.started_at < dirty.bucket + interval '1 {{width}}'
        GROUP BY dirty.venue_id, dirty.integration_type, dirty.bucket, coalesce(log.sync_id, log.id)
    ) AS runs
    GROUP BY venue_id, integration_type, bucket
"""  # noqa: S608 - made of the numbers above
_COLUMNS = (
    *("syncs", "failed", "timed", "duration_ms", "durations"),
    *("success_count", "error_count", "api_calls"),
)
_SAVE = f"INSERT INTO sync_rollups (width, venue_id, integration_type, bucket, {', '.join(_COLUMNS)})"
_REPLACE = f"""
    ON CONFLICT (width, bucket, venue_id, integration_type)
    DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
"""
_NEWS = """
    SELECT DISTINCT venue_id, integration_type,
        date_trunc('{width}', started_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS bucket
    FROM sync_logs WHERE completed_at >= :since AND completed_at <= :until
"""
# Hours are kept for a few days only, so a day is added up from its hours while all of them are there.
_FIRST_HOUR = (
    f"date_trunc('day', (now() - interval '{HOURS_KEPT}') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    " + interval '1 day'"
)


def _from_logs(width: str, condition: str) -> TextClause:
    found = f"SELECT '{width}', venue_id, integration_type, bucket, {', '.join(_COLUMNS)} FROM ({_OF_LOGS})"  # noqa: S608
    return text(
        f"WITH dirty AS ({_NEWS} AND {condition}) {_SAVE} {found} AS found {_REPLACE}".format(width=width)
    )


_HOURS = _from_logs("hour", f"started_at >= {_FIRST_HOUR}")
_OLD_DAYS = _from_logs(
    "day", f"started_at < {_FIRST_HOUR} AND started_at > now() - interval '{DAYS_KEPT} days'"
)
_DAYS = text(
    f"""
        WITH dirty AS ({_NEWS.format(width="day")} AND started_at >= {_FIRST_HOUR})
        {_SAVE}
        SELECT 'day', dirty.venue_id, dirty.integration_type, dirty.bucket, sum(syncs), sum(failed),
            sum(timed), sum(duration_ms), ARRAY[{_sums("durations")}], sum(success_count), sum(error_count),
            sum(api_calls)
        FROM dirty JOIN sync_rollups AS hour ON hour.width = 'hour' AND hour.venue_id = dirty.venue_id
            AND hour.integration_type = dirty.integration_type
            AND hour.bucket >= dirty.bucket AND hour.bucket < dirty.bucket + interval '1 day'
        GROUP BY dirty.venue_id, dirty.integration_type, dirty.bucket
        {_REPLACE}
    """  # noqa: S608
)
_BEGIN = text(f"""
    INSERT INTO rollup_marks (name, up_to) VALUES ('{_MARK}', now() - CAST(:since AS interval))
    ON CONFLICT (name) DO NOTHING
""")  # noqa: S608
_TAKE = text(f"""
    SELECT up_to AS since, least(up_to + interval '{SLICE}', now()) AS until,
        least(up_to + interval '{SLICE}', now() - interval '{_LATE}') AS next,
        up_to + interval '{SLICE}' < now() AS more
    FROM rollup_marks WHERE name = '{_MARK}' FOR UPDATE SKIP LOCKED
""")  # noqa: S608
_ADVANCE = text(f"UPDATE rollup_marks SET up_to = greatest(up_to, :next) WHERE name = '{_MARK}'")  # noqa: S608
_FORGET = text(f"""
    DELETE FROM sync_rollups WHERE (width = 'hour' AND bucket < now() - interval '{HOURS_KEPT}')
        OR (width = 'day' AND bucket < now() - interval '{DAYS_KEPT} days')
""")  # noqa: S608


async def roll_up(session: AsyncSession, since: timedelta | None = None) -> bool:
    """Add up what was logged since the last time, or a part of it; returns whether there is more.

    The first time begins so long ago, which is as long as anything is kept unless `since` says otherwise.
    Nothing is done while another process is at it. What a running transaction logs is seen the next time.
    """
    await session.execute(text(f"SET LOCAL statement_timeout = '{_LONGEST}'"))
    await session.execute(_BEGIN, {"since": since or timedelta(days=DAYS_KEPT)})
    taken = (await session.execute(_TAKE)).one_or_none()
    if taken is None:
        return False
    between = {"since": taken.since, "until": taken.until}
    for statement in (_HOURS, _DAYS, _OLD_DAYS):
        await session.execute(statement, between)
    await session.execute(_ADVANCE, {"next": taken.next})
    await session.execute(_FORGET)
    return bool(taken.more)


_NUMBERS = f"""
    SELECT {{whose}} sum(syncs) AS syncs, sum(failed) AS failed, sum(timed) AS timed,
        sum(duration_ms) AS duration_ms, ARRAY[{_sums("durations")}] AS durations,
        sum(success_count) AS success_count, sum(error_count) AS error_count, sum(api_calls) AS api_calls
    FROM sync_rollups
    WHERE width = :width AND bucket >= :since
        AND (CAST(:venue_id AS uuid) IS NULL OR venue_id = :venue_id)
        AND (CAST(:provider AS text) IS NULL OR integration_type = :provider)
"""  # noqa: S608 - made of the numbers above
_BY_INTEGRATION = text(f"""
    WITH numbers AS (
        {_NUMBERS.format(whose="venue_id, integration_type,")} GROUP BY venue_id, integration_type
    )
    SELECT *, count(*) OVER () AS total FROM numbers
    ORDER BY failed::float / greatest(syncs, 1) DESC, failed DESC, venue_id, integration_type
    LIMIT :limit OFFSET :offset
""")  # noqa: S608
_TOTAL = text(_NUMBERS.format(whose=""))


async def by_integration(
    session: AsyncSession,
    period: str,
    *,
    venue_id: UUID | None = None,
    provider: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> tuple[Sequence[IntegrationNumbers], int]:
    """Return integrations that had syncs in one of PERIODS, the worst first, and how many there are.

    A period goes from the start of an hour or a day in UTC to now: what ended since the last roll-up is not
    in it yet.
    """
    given = {"venue_id": venue_id, "provider": provider, "limit": limit, "offset": offset}
    rows = (await session.execute(_BY_INTEGRATION, {**period_since(period), **given})).all()
    found = [IntegrationNumbers(row.venue_id, row.integration_type, _numbers(row)) for row in rows]
    return found, rows[0].total if rows else 0


async def total(session: AsyncSession, period: str) -> Numbers:
    """Return what all integrations together did in one of PERIODS."""
    given = {"venue_id": None, "provider": None}
    return _numbers((await session.execute(_TOTAL, {**period_since(period), **given})).one())


def period_since(period: str, now: datetime | None = None) -> dict[str, Any]:
    """Return which buckets one of PERIODS is: their width, and where the first of them begins."""
    now = now or datetime.now(UTC)
    width, buckets = PERIODS[period]
    begun = now.replace(minute=0, second=0, microsecond=0)
    if width == "day":
        begun = begun.replace(hour=0)
    return {"width": width, "since": begun - (buckets - 1) * timedelta(**{f"{width}s": 1})}


def _numbers(row: Any) -> Numbers:
    if not row.syncs:
        return Numbers()
    counts = [int(count) for count in row.durations]
    return Numbers(
        syncs=int(row.syncs),
        failed=int(row.failed),
        success_rate=round(100 * float(row.syncs - row.failed) / float(row.syncs), 2),
        mean_ms=round(row.duration_ms / row.timed) if row.timed else None,
        median_ms=percentile(counts, 0.5),
        p95_ms=percentile(counts, 0.95),
        success_count=int(row.success_count),
        error_count=int(row.error_count),
        api_calls=int(row.api_calls),
    )


def percentile(counts: Sequence[int], share: float) -> int | None:
    """Return the duration in milliseconds that this share of syncs didn't exceed, from counts by class.

    None without any. Beyond the last bound nothing is known, so it is told for all that is longer.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, low = share * total, 0
    for below, count, high in zip(accumulate(counts, initial=0), counts, CLASSES, strict=False):
        if count and below + count >= wanted:
            return round(low + (high - low) * (wanted - below) / count)
        low = high
    return CLASSES[-1]
