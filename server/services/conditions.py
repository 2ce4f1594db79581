"""How integrations are doing: judged each minute by rules, and told of when it changes.

`diagnose` is the rules. Its verdict isn't told as it is, for then a provider that fails now and then would
have its integration flap: what is worse is told at once, and what is better only when GOOD_MEASURES in a row
were better (`Told.after`). A rate or a time that it got worse by has to become better by a margin as well.

A change is written to `health_changes` and announced as `health.changed` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import AuthenticationError
from server.db.models import (
    HealthChange,
    HealthStatus,
    IntegrationConfig,
    IntegrationHealth,
    IntegrationStatus,
)
from server.services import outbox
from server.services.paging import Page

GOOD_MEASURES = 3  # of a minute each
AT_ONCE = 1000  # integrations in one transaction: a worker that ends a sync waits for it
MEASURED_EVERY = 50.0  # seconds at least between two measures of an integration
CONSECUTIVE_FAILURES = 5  # attempts in a row are several by now
UNANSWERED_CHECKS = 2  # one may be lost
SLOW_MS, VERY_SLOW_MS = 5_000, 10_000
DEGRADED_RATE, UNHEALTHY_RATE = 90.0, 50.0  # percent of syncs; less is worse
RATE_MARGIN, TIME_MARGIN = 2.0, 0.9
REFUSED = AuthenticationError.code

_RANK: Mapping[HealthStatus, int] = {
    HealthStatus.HEALTHY: 0,
    HealthStatus.DEGRADED: 1,
    HealthStatus.UNHEALTHY: 2,
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of how an integration does. Counts of failures are of those in a row."""

    status: IntegrationStatus = IntegrationStatus.CONNECTED
    syncs: int = 0  # in 24 hours
    successes: int = 0
    failures: int = 0  # attempts
    circuit_failures: int = 0
    circuit_open: bool = False
    checked: bool = False
    check_failures: int = 0
    check_error: str | None = None
    response_ms: int | None = None
    authorization_ends: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A health, and why: in a word that programs know, and in a sentence."""

    status: HealthStatus
    reason: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Told:
    """The health that is told, and the measures since that were better, with the worst of them."""

    status: HealthStatus = HealthStatus.UNKNOWN
    better: HealthStatus | None = None
    count: int = 0

    def after(self, measured: HealthStatus) -> Told:
        """Return what is told after one more measure."""
        if HealthStatus.UNKNOWN in (self.status, measured) or _RANK[measured] >= _RANK[self.status]:
            return Told(measured)
        better = measured if self.better is None else worse(self.better, measured)
        return Told(better) if self.count + 1 >= GOOD_MEASURES else Told(self.status, better, self.count + 1)


def worse(one: HealthStatus, other: HealthStatus) -> HealthStatus:
    """Return the worse of two; one that is known counts as worse than an unknown one."""
    return max(one, other, key=lambda health: _RANK.get(health, -1))


def diagnose(evidence: Evidence, told: HealthStatus = HealthStatus.UNKNOWN) -> Verdict:
    """Return what the first rule says that fits. `told` is the health so far: better takes a margin."""
    return next(verdict for rule in _RULES if (verdict := rule(evidence, told)) is not None)


def _state(evidence: Evidence, told: HealthStatus) -> Verdict | None:
    found = _STATES.get(evidence.status)
    return Verdict(*found) if found else None


def _unhealthy(evidence: Evidence, told: HealthStatus) -> Verdict | None:
    lower = UNHEALTHY_RATE + (RATE_MARGIN if told is HealthStatus.UNHEALTHY else 0)
    most = VERY_SLOW_MS * (TIME_MARGIN if told is HealthStatus.UNHEALTHY else 1)
    found: Sequence[tuple[bool, str, str]] = (
        (
            evidence.circuit_open,
            "circuit_open",
            f"the provider didn't answer {evidence.circuit_failures} times in a row",
        ),
        (
            evidence.check_error == REFUSED and evidence.check_failures > 0,
            "refused",
            "the provider refuses the credentials",
        ),
        (
            evidence.check_failures >= UNANSWERED_CHECKS,
            "not_answering",
            f"{evidence.check_failures} checks of the provider in a row failed",
        ),
        (
            evidence.failures >= CONSECUTIVE_FAILURES,
            "failing",
            f"{evidence.failures} attempts in a row failed",
        ),
        (_rate(evidence) < lower, "success_rate", _rate_told(evidence)),
        (_too_slow(evidence, most), "slow", _time_told(evidence)),
    )
    return _first(HealthStatus.UNHEALTHY, found)


def _degraded(evidence: Evidence, told: HealthStatus) -> Verdict | None:
    bad = told in (HealthStatus.DEGRADED, HealthStatus.UNHEALTHY)
    lower, most = DEGRADED_RATE + (RATE_MARGIN if bad else 0), SLOW_MS * (TIME_MARGIN if bad else 1)
    recent = evidence.failures or evidence.circuit_failures or evidence.check_failures
    found: Sequence[tuple[bool, str, str]] = (
        (evidence.authorization_ends, "authorization_ends", "its authorization ends soon: connect it again"),
        (_rate(evidence) < lower, "success_rate", _rate_told(evidence)),
        (_too_slow(evidence, most), "slow", _time_told(evidence)),
        (bool(recent), "recent_failure", "the last attempt failed"),
    )
    return _first(HealthStatus.DEGRADED, found)


def _otherwise(evidence: Evidence, told: HealthStatus) -> Verdict:
    if evidence.syncs or evidence.checked:
        return Verdict(HealthStatus.HEALTHY, "good", "it works")
    return Verdict(HealthStatus.UNKNOWN, "nothing_known", "it hasn't done anything yet")


def _first(status: HealthStatus, found: Sequence[tuple[bool, str, str]]) -> Verdict | None:
    return next((Verdict(status, reason, why) for fits, reason, why in found if fits), None)


def _rate(evidence: Evidence) -> float:
    return 100 * evidence.successes / evidence.syncs if evidence.syncs else 100.0


def _rate_told(evidence: Evidence) -> str:
    return f"{evidence.successes} of {evidence.syncs} syncs in 24 hours went well"


def _too_slow(evidence: Evidence, most: float) -> bool:
    return evidence.response_ms is not None and evidence.response_ms > most


def _time_told(evidence: Evidence) -> str:
    return f"the provider took {evidence.response_ms} ms to answer"


_RULES: tuple[Callable[[Evidence, HealthStatus], Verdict | None], ...] = (
    _state,
    _unhealthy,
    _degraded,
    _otherwise,
)
_NOT_CONNECTED = (HealthStatus.UNKNOWN, "not_connected", "it isn't connected")
_STATES: Mapping[IntegrationStatus, tuple[HealthStatus, str, str]] = {
    IntegrationStatus.DISCONNECTED: _NOT_CONNECTED,
    IntegrationStatus.CONNECTING: _NOT_CONNECTED,
    IntegrationStatus.ERROR: (
        HealthStatus.UNHEALTHY,
        "refused",
        "the provider refuses the credentials: connect it again",
    ),
    IntegrationStatus.SUSPENDED: (HealthStatus.UNHEALTHY, "suspended", "it is suspended"),
}


_LOOK = text("""
    SELECT config.venue_id, config.integration_type, config.status, config.health_status,
        config.failure_count, config.circuit_failures, config.circuit_opened_at IS NOT NULL AS circuit_open,
        coalesce(known.sync_count_24h, 0) AS syncs, coalesce(known.success_count_24h, 0) AS successes,
        coalesce(config.answered_at IS NOT NULL OR known.response_ms IS NOT NULL
            OR known.check_failures > 0, false) AS checked,
        coalesce(known.check_failures, 0) AS check_failures, known.check_error, known.response_ms,
        known.better_status, coalesce(known.better_count, 0) AS better_count,
        known.reason, known.explanation,
        EXISTS (
            SELECT FROM oauth_tokens AS token
            WHERE token.venue_id = config.venue_id AND token.integration_type = config.integration_type
                AND token.refresh_expires_at <= now() + least(
                    interval '14 days', token.refresh_expires_in * interval '500 milliseconds'
                )
        ) AS authorization_ends
    FROM integration_configs AS config
    LEFT JOIN integration_health AS known USING (venue_id, integration_type)
    WHERE config.health_checked_at IS NULL
        OR config.health_checked_at <= now() - CAST(:every AS float) * interval '1 second'
    ORDER BY config.health_checked_at NULLS FIRST LIMIT :limit
    FOR NO KEY UPDATE OF config SKIP LOCKED
""").columns(status=IntegrationConfig.status.type, health_status=IntegrationConfig.health_status.type)
_WRITE = text("""
    UPDATE integration_configs AS config
    SET health_checked_at = now(), health_status = CAST(found.status AS health_status)
    FROM unnest(CAST(:venues AS uuid[]), CAST(:providers AS text[]), CAST(:statuses AS text[]))
        AS found (venue_id, integration_type, status)
    WHERE config.venue_id = found.venue_id AND config.integration_type = found.integration_type
""")
_REMEMBER = text("""
    INSERT INTO integration_health AS known (
        venue_id, integration_type, reason, explanation, better_status, better_count
    )
    SELECT venue_id, integration_type, reason, explanation, CAST(better AS health_status), count
    FROM unnest(
        CAST(:venues AS uuid[]), CAST(:providers AS text[]), CAST(:reasons AS text[]),
        CAST(:explanations AS text[]), CAST(:betters AS text[]), CAST(:counts AS int[])
    ) AS found (venue_id, integration_type, reason, explanation, better, count)
    ON CONFLICT (venue_id, integration_type) DO UPDATE SET
        reason = excluded.reason, explanation = excluded.explanation,
        better_status = excluded.better_status, better_count = excluded.better_count
""")


async def judge_some(session: AsyncSession, *, every: float = MEASURED_EVERY) -> int:
    """Judge integrations whose turn it is, those judged longest ago first; returns how many.

    `every` is how many seconds ago the last time was at least. Those that another process judges, or whose
    state a worker just writes, are left to the next time.
    """
    rows = (await session.execute(_LOOK, {"every": every, "limit": AT_ONCE})).all()
    if not rows:
        return 0
    statuses: list[HealthStatus] = []
    news: list[tuple[UUID, str, str, str, HealthStatus | None, int]] = []
    for row in rows:
        verdict = diagnose(_evidence(row), row.health_status)
        better = HealthStatus(row.better_status) if row.better_status else None
        before = Told(row.health_status, better, row.better_count)
        told = before.after(verdict.status)
        shown = _shown(row, told, verdict)
        statuses.append(told.status)
        if told != before or (shown.reason, shown.explanation) != (row.reason, row.explanation):
            place = (row.venue_id, row.integration_type)
            news.append((*place, shown.reason, shown.explanation, told.better, told.count))
        if told.status is not row.health_status:
            _tell(session, row, shown)
    await session.execute(
        _WRITE,
        {
            "venues": [row.venue_id for row in rows],
            "providers": [row.integration_type for row in rows],
            "statuses": [status.value for status in statuses],
        },
    )
    if news:
        names = ("venues", "providers", "reasons", "explanations", "betters", "counts")
        await session.execute(_REMEMBER, dict(zip(names, map(list, zip(*news, strict=True)), strict=True)))
    return len(rows)


def _evidence(row: Any) -> Evidence:
    return Evidence(
        status=row.status,
        syncs=row.syncs,
        successes=row.successes,
        failures=row.failure_count,
        circuit_failures=row.circuit_failures,
        circuit_open=row.circuit_open,
        checked=row.checked,
        check_failures=row.check_failures,
        check_error=row.check_error,
        response_ms=row.response_ms,
        authorization_ends=row.authorization_ends,
    )


def _shown(row: Any, told: Told, verdict: Verdict) -> Verdict:
    """Return what is told and why: a health that better measures haven't changed yet keeps its reason."""
    if told.status is verdict.status:
        return verdict
    if told.status is row.health_status and row.reason is not None:
        return Verdict(told.status, row.reason, row.explanation)
    return Verdict(told.status, "recovering", "it does better, but not for long yet")


def _tell(session: AsyncSession, row: Any, shown: Verdict) -> None:
    change = HealthChange(
        venue_id=row.venue_id,
        integration_type=row.integration_type,
        from_status=row.health_status,
        to_status=shown.status,
        reason=shown.reason,
        explanation=shown.explanation,
    )
    session.add(change)
    outbox.announce(
        session,
        venue_id=row.venue_id,
        event="health.changed",
        data={
            "provider": row.integration_type,
            "from": row.health_status.value,
            "to": shown.status.value,
            "reason": shown.reason,
            "explanation": shown.explanation,
        },
    )


async def changes(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    *,
    limit: int,
    offset: int = 0,
    after: int | None = None,
) -> Page:
    """Return how an integration's health changed, newest first; `after` is the last id of the page before."""
    mine = (HealthChange.venue_id == venue_id, HealthChange.integration_type == provider)
    total = await session.scalar(select(func.count()).select_from(HealthChange).where(*mine)) or 0
    statement = select(HealthChange).where(*mine).order_by(HealthChange.id.desc()).limit(limit + 1)
    statement = statement.offset(offset) if after is None else statement.where(HealthChange.id < after)
    rows = (await session.scalars(statement)).all()
    return Page(rows[:limit], total, (str(rows[limit - 1].id),) if len(rows) > limit else None)


async def known_of(session: AsyncSession, venue_id: UUID, provider: str) -> IntegrationHealth | None:
    """Return what the last measures wrote down of an integration."""
    return await session.scalar(
        select(IntegrationHealth).filter_by(venue_id=venue_id, integration_type=provider)
    )
