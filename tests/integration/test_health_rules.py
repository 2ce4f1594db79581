"""Health on real stores: numbers, judgement, what is told of it, and who asks providers."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, select, text, update

from engine.client import Quota
from engine.errors import AuthenticationError, RateLimitedError, UnavailableError
from server.context import Context
from server.credentials import StoredCredentials
from server.db.models import (
    Base,
    HealthChange,
    HealthStatus,
    IntegrationConfig,
    IntegrationHealth,
    IntegrationStatus,
    OutboxMessage,
    SyncLog,
    SyncRollup,
)
from server.errors import VaultError
from server.services import breaker, checks, conditions, quotas, rollups
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context

MINUTES = timedelta(minutes=1)


@pytest.fixture
async def context(database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        await _empty(context)
        yield context


async def _empty(context: WorkerContext) -> None:
    tables = ("integration_configs", "integration_health", "health_changes", "outbox", "sync_logs")
    async with context.sessions.begin() as session:
        for table in (*tables, "sync_rollups", "rollup_marks"):
            await session.execute(delete(Base.metadata.tables[table]))


async def _connected(context: WorkerContext, **values: Any) -> UUID:
    venue_id = uuid4()
    given: dict[str, Any] = {
        "venue_id": venue_id,
        "integration_type": "stripe",
        "status": IntegrationStatus.CONNECTED,
        **values,
    }
    async with context.sessions.begin() as session:
        session.add(IntegrationConfig(**given))
    return venue_id


async def _logged(
    context: WorkerContext,
    venue_id: UUID,
    started_at: datetime,
    *,
    status: str = "completed",
    took: float = 3.0,
    mappings: int = 1,
    ended_at: datetime | None = None,
    **counts: Any,
) -> UUID:
    """Write the logs of one sync; it ended now unless `ended_at` says otherwise."""
    sync_id = uuid4()
    async with context.sessions.begin() as session:
        for number in range(mappings):
            session.add(
                SyncLog(
                    venue_id=venue_id,
                    integration_type="stripe",
                    sync_id=sync_id,
                    operation="scheduled_sync",
                    status=status if number == 0 else "completed",
                    started_at=started_at,
                    completed_at=ended_at or started_at + timedelta(seconds=took),
                    **counts,
                )
            )
    return sync_id


async def _measured(context: WorkerContext) -> None:
    await schedule.measure_health(context)


async def _judge(context: WorkerContext) -> int:
    async with context.sessions.begin() as session:
        return await conditions.judge_some(session, every=0)


async def _config(context: WorkerContext, venue_id: UUID) -> IntegrationConfig:
    async with context.sessions() as session:
        return (await session.scalars(select(IntegrationConfig).filter_by(venue_id=venue_id))).one()


async def _known(context: WorkerContext, venue_id: UUID) -> IntegrationHealth:
    async with context.sessions() as session:
        return (await session.scalars(select(IntegrationHealth).filter_by(venue_id=venue_id))).one()


async def _changes(context: WorkerContext, venue_id: UUID) -> list[tuple[str, str, str]]:
    async with context.sessions() as session:
        rows = await session.scalars(
            select(HealthChange).filter_by(venue_id=venue_id).order_by(HealthChange.id)
        )
        return [(row.from_status.value, row.to_status.value, row.reason) for row in rows]


async def _set(context: WorkerContext, venue_id: UUID, **values: Any) -> None:
    async with context.sessions.begin() as session:
        await session.execute(update(IntegrationConfig).filter_by(venue_id=venue_id).values(**values))


# --- roll-ups


def _today(hour: int = 0) -> datetime:
    return datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0)


async def _rolled(context: WorkerContext, venue_id: UUID, width: str) -> Mapping[datetime, SyncRollup]:
    async with context.sessions() as session:
        rows = await session.scalars(select(SyncRollup).filter_by(venue_id=venue_id, width=width))
        return {row.bucket: row for row in rows}


async def test_syncs_are_added_up_by_hour_and_day(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    yesterday = _today() - timedelta(days=1)
    counts: dict[str, Any] = {"success_count": 5, "error_count": 1, "api_calls_made": 7}
    await _logged(context, venue_id, yesterday + 10 * MINUTES, took=3, mappings=2, **counts)
    await _logged(context, venue_id, yesterday + 50 * MINUTES, took=1, status="failed", mappings=2, **counts)
    await _logged(context, venue_id, yesterday + 61 * MINUTES, took=40, **counts)
    await _logged(context, venue_id, yesterday - timedelta(days=9), took=0.1, **counts)
    await _measured(context)

    hours = await _rolled(context, venue_id, "hour")
    assert sorted(hours) == [yesterday, yesterday + 60 * MINUTES]
    first = hours[yesterday]
    # Rows of a sync are its mappings: two syncs, four rows.
    assert (first.syncs, first.failed, first.timed, first.duration_ms) == (2, 1, 2, 4000)
    assert (first.success_count, first.error_count, first.api_calls) == (20, 4, 28)
    assert first.durations == [0, 0, 0, 1, 1, *[0] * 8]  # 1 s belongs to 1 to 2 s, 3 s to 2 to 5 s
    days = await _rolled(context, venue_id, "day")
    assert set(days) == {yesterday, yesterday - timedelta(days=9)}
    day = days[yesterday]
    assert (day.syncs, day.failed, day.duration_ms, day.api_calls) == (3, 1, 44_000, 35)
    assert day.durations == [0, 0, 0, 1, 1, 0, 0, 1, *[0] * 5]
    assert days[yesterday - timedelta(days=9)].durations == [1, *[0] * 12]


async def test_adding_up_again_or_twice_at_once_counts_nothing_twice(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    begun = _today() - timedelta(hours=5)
    sync_id = await _logged(context, venue_id, begun, status="failed", ended_at=datetime.now(UTC))
    await asyncio.gather(*(_measured(context) for _ in range(4)))
    # It is revived, and its log is the log of its last end.
    async with context.sessions.begin() as session:
        await session.execute(delete(SyncLog).filter_by(sync_id=sync_id))
    await _logged(context, venue_id, begun, ended_at=datetime.now(UTC))
    await _logged(context, venue_id, begun + MINUTES, ended_at=datetime.now(UTC))
    for _ in range(2):
        await _measured(context)
    for width in ("hour", "day"):
        (row,) = (await _rolled(context, venue_id, width)).values()
        assert (row.syncs, row.failed) == (2, 0)


async def test_numbers_of_a_period_are_read_for_all_integrations(context: WorkerContext) -> None:
    good, bad = await _connected(context), await _connected(context)
    now = datetime.now(UTC)
    for days in (0, 3, 20, 31):
        await _logged(context, good, now - timedelta(days=days, seconds=5), took=4, api_calls_made=2)
    await _logged(context, bad, now - timedelta(seconds=5), status="failed", took=1)
    await _logged(context, bad, now - timedelta(days=2), took=1)
    await _measured(context)
    async with context.sessions() as session:
        for period, syncs in (("24h", 1), ("7d", 2), ("30d", 3)):
            found, total = await rollups.by_integration(session, period)
            assert total == 2
            assert [each.venue_id for each in found] == [bad, good]  # the worst first
            assert found[1].numbers.syncs == syncs
            assert (found[1].numbers.success_rate, found[1].numbers.mean_ms) == (100.0, 4000)
            assert found[1].numbers.api_calls == 2 * syncs
        assert found[0].numbers.success_rate == 50.0
        one, total = await rollups.by_integration(session, "7d", limit=1, offset=1)
        assert ([each.venue_id for each in one], total) == ([good], 2)
        mine, _ = await rollups.by_integration(session, "7d", venue_id=bad, provider="stripe")
        assert [each.venue_id for each in mine] == [bad]
        everything = await rollups.total(session, "30d")
        assert (everything.syncs, everything.failed, everything.success_rate) == (5, 1, 80.0)
        assert await rollups.total(session, "24h") != everything


async def test_what_is_old_is_forgotten(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    now = datetime.now(UTC)
    counts = dict.fromkeys(("syncs", "failed", "timed", "duration_ms"), 1) | dict.fromkeys(
        ("success_count", "error_count", "api_calls"), 1
    )
    async with context.sessions.begin() as session:
        for width, age in (("hour", 2), ("hour", 4), ("day", 31), ("day", 33)):
            session.add(
                SyncRollup(
                    width=width,
                    bucket=now - timedelta(days=age),
                    venue_id=venue_id,
                    integration_type="stripe",
                    durations=[1],
                    **counts,
                )
            )
    await _measured(context)
    assert [len(await _rolled(context, venue_id, width)) for width in ("hour", "day")] == [1, 1]


async def test_measures_are_written_down(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    now = datetime.now(UTC)
    for minutes in (5, 10, 15):
        await _logged(context, venue_id, now - minutes * MINUTES, took=2, api_calls_made=3)
    await _logged(context, venue_id, now - 20 * MINUTES, status="failed", took=6)
    await _measured(context)
    known = await _known(context, venue_id)
    assert (known.sync_count_24h, known.success_count_24h, known.failure_count_24h) == (4, 3, 1)
    assert (float(known.success_rate or 0), known.average_sync_time_ms, known.api_calls_24h) == (
        75.0,
        3000,
        9,
    )


# --- judgement


async def test_a_change_is_kept_and_announced_with_its_reason(context: WorkerContext) -> None:
    venue_id = await _connected(context, answered_at=datetime.now(UTC))
    assert await _judge(context) == 1
    assert (await _config(context, venue_id)).health_status is HealthStatus.HEALTHY
    await _set(context, venue_id, circuit_opened_at=func.now(), circuit_failures=5)
    for _ in range(2):  # the second time there is nothing new
        await _judge(context)
    assert await _changes(context, venue_id) == [
        ("unknown", "healthy", "good"),
        ("healthy", "unhealthy", "circuit_open"),
    ]
    async with context.sessions() as session:
        events = (await session.scalars(select(OutboxMessage).order_by(OutboxMessage.id))).all()
    assert [event.topic for event in events] == ["health.changed"] * 2
    assert events[1].payload == {
        "venue_id": str(venue_id),
        "provider": "stripe",
        "from": "healthy",
        "to": "unhealthy",
        "reason": "circuit_open",
        "explanation": "the provider didn't answer 5 times in a row",
    }


async def test_better_is_told_after_three_measures_that_columns_remember(context: WorkerContext) -> None:
    venue_id = await _connected(context, answered_at=datetime.now(UTC), failure_count=1)
    await _judge(context)
    await _set(context, venue_id, failure_count=0)
    for count in (1, 2):
        await _judge(context)
        known = await _known(context, venue_id)
        assert (known.better_status, known.better_count) == (HealthStatus.HEALTHY, count)
        assert known.reason == "recent_failure"  # why it is told what is told
        assert (await _config(context, venue_id)).health_status is HealthStatus.DEGRADED
    await _judge(context)
    assert (await _config(context, venue_id)).health_status is HealthStatus.HEALTHY
    known = await _known(context, venue_id)
    assert (known.better_status, known.better_count, known.reason) == (None, 0, "good")


async def test_each_integration_is_judged_once_however_many_do_it(context: WorkerContext) -> None:
    venues = {await _connected(context, answered_at=datetime.now(UTC)) for _ in range(20)}
    counts = await asyncio.gather(*(schedule.judge_health(context) for _ in range(4)))
    assert sum(counts) == 20
    assert await schedule.judge_health(context) == 0  # it was a moment ago
    for venue_id in venues:
        assert await _changes(context, venue_id) == [("unknown", "healthy", "good")]


async def test_changes_are_listed_newest_first(context: WorkerContext) -> None:
    venue_id = await _connected(context, answered_at=datetime.now(UTC))
    await _judge(context)
    await _set(context, venue_id, failure_count=1)
    await _judge(context)
    await _set(context, venue_id, failure_count=5)
    await _judge(context)
    async with context.sessions() as session:
        page = await conditions.changes(session, venue_id, "stripe", limit=2)
        assert [row.reason for row in page.rows] == ["failing", "recent_failure"]
        assert (page.total, page.next_key) == (3, (str(page.rows[1].id),))
        rest = await conditions.changes(session, venue_id, "stripe", limit=2, after=page.rows[1].id)
        assert ([row.reason for row in rest.rows], rest.next_key) == (["good"], None)


# --- questions


@dataclass
class _Client:
    """Stands for a provider's client: it answers in turn what was put in."""

    answers: list[Exception | None]
    asked: list[UUID]
    venue_id: UUID
    answered_in: float | None = 0.25
    quota: Quota | None = None

    async def check(self) -> None:
        self.asked.append(self.venue_id)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """Return who was asked, as they are; `_ANSWERS` and `_QUOTA` say what comes of it."""
    seen: list[UUID] = []
    _ANSWERS.clear()
    _QUOTA.clear()

    def client(
        self: Context, connector: object, credentials: StoredCredentials, **options: object
    ) -> _Client:
        return _Client(_ANSWERS, seen, credentials._venue, quota=_QUOTA.get("quota"))

    monkeypatch.setattr(Context, "client", client)
    return seen


_ANSWERS: list[Exception | None] = []
_QUOTA: dict[str, Quota] = {}


async def test_who_was_not_heard_from_is_asked(context: WorkerContext, asked: list[UUID]) -> None:
    now = datetime.now(UTC)
    silent = await _connected(context, answered_at=now - 11 * MINUTES)
    await _connected(context, answered_at=now - 9 * MINUTES)
    await _connected(context, connected_at=now)
    await _connected(context, status=IntegrationStatus.ERROR)
    await _connected(context, status=IntegrationStatus.DISCONNECTED)
    assert await checks.ask_due(context) == 1
    assert asked == [silent]
    known = await _known(context, silent)
    assert (known.check_failures, known.response_ms) == (0, 250)
    assert await checks.ask_due(context) == 0


async def test_one_that_could_not_be_asked_is_not_said_to_be_well(
    context: WorkerContext, asked: list[UUID]
) -> None:
    venue_id = await _connected(context)
    _ANSWERS.append(VaultError("its key is gone"))
    assert await checks.ask_due(context) == 1
    await _judge(context)
    assert (await _config(context, venue_id)).health_status is HealthStatus.UNKNOWN


async def test_two_schedulers_ask_each_once(context: WorkerContext, asked: list[UUID]) -> None:
    venues = [await _connected(context) for _ in range(10)]
    await asyncio.gather(*(checks.ask_due(context) for _ in range(4)))
    assert sorted(asked) == sorted(venues)


async def test_who_was_not_asked_before_a_turn_was_cut_off_has_it_again(
    context: WorkerContext, asked: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what takes longer than a turn, nor a scheduler that is lost, costs anybody a check."""
    first, hanging = [await _connected(context) for _ in range(2)]
    check, hangs = _Client.check, asyncio.Event()

    async def check_one(client: _Client) -> None:
        if client.venue_id == hanging:
            hangs.set()
            await asyncio.Event().wait()
        await check(client)

    monkeypatch.setattr(_Client, "check", check_one)
    monkeypatch.setattr(checks, "TURN_SECONDS", 1.0)
    assert await checks.ask_due(context) == 1
    assert (asked, hangs.is_set()) == ([first], True)
    monkeypatch.setattr(checks, "TURN_SECONDS", 50.0)
    hangs.clear()
    turn = asyncio.create_task(checks.ask_due(context))
    await asyncio.wait_for(hangs.wait(), 10)
    assert await checks.ask_due(context) == 0  # one turn at a time
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    monkeypatch.setattr(_Client, "check", check)
    assert await checks.ask_due(context) == 1
    assert asked == [first, hanging]


async def test_one_that_does_badly_is_asked_each_minute(context: WorkerContext, asked: list[UUID]) -> None:
    venue_id = await _connected(context)
    for failures, answer in enumerate((UnavailableError("down"), AuthenticationError("no")), 1):
        _ANSWERS.append(answer)
        assert await checks.ask_due(context) == 1
        known = await _known(context, venue_id)
        assert (known.check_failures, known.check_error) == (failures, answer.code)
        assert await checks.ask_due(context) == 0
        async with context.sessions.begin() as session:
            await session.execute(update(IntegrationHealth).values(checked_at=func.now() - MINUTES))
    _ANSWERS.append(RateLimitedError("slow down"))  # no answer to the question
    assert await checks.ask_due(context) == 1
    assert (await _known(context, venue_id)).check_failures == 2
    async with context.sessions.begin() as session:
        await session.execute(update(IntegrationHealth).values(checked_at=func.now() - MINUTES))
    assert await checks.ask_due(context) == 1
    known = await _known(context, venue_id)
    assert (known.check_failures, known.check_error) == (0, None)


async def test_an_answer_lets_an_operation_of_an_open_circuit_through(
    context: WorkerContext, asked: list[UUID]
) -> None:
    values = {"circuit_opened_at": func.now(), "circuit_until": func.now() + 10 * MINUTES}
    venue_id = await _connected(context, answered_at=datetime.now(UTC), circuit_failures=5, **values)
    assert await checks.ask_due(context) == 1
    async with context.sessions() as session:
        now = await session.scalar(select(func.now()))
    assert now is not None
    circuit = breaker.circuit_of(await _config(context, venue_id), now)
    assert circuit.state is breaker.CircuitState.HALF_OPEN


async def test_what_is_left_of_a_quota_is_kept(context: WorkerContext, asked: list[UUID]) -> None:
    now = datetime.now(UTC)
    _QUOTA["quota"] = Quota(7, now, now + MINUTES)
    venue_id = await _connected(context)
    await checks.ask_due(context)
    known = await _known(context, venue_id)
    assert (known.api_quota_remaining, known.api_quota_resets_at) == (7, now + MINUTES)
    async with context.sessions.begin() as session:
        await quotas.write(session, venue_id, "stripe", None)  # a run that heard nothing of it
    assert (await _known(context, venue_id)).api_quota_remaining == 7


async def test_asking_can_be_switched_off(context: WorkerContext, asked: list[UUID]) -> None:
    await _connected(context)
    never = replace(context, settings=replace(context.settings, health_check_seconds=0))
    assert await checks.ask_due(never) == 0
    assert asked == []


# --- the clock


def test_every_job_has_its_interval() -> None:
    every = {job.name: job.every for job in schedule.JOBS}
    assert every["start_scheduled_syncs"] <= 1
    assert every["announce_due"] <= 1  # stale operations, by their lease
    assert every["refresh_tokens"] <= 60
    assert every["check_providers"] == every["judge_health"] == 60
    assert every["measure_health"] == 300
    assert every["revive_dead_letters"] == 3600
    assert every["forget_expired"] == 60
    assert every["forget_old"] == 3600
    assert every["tend_subscriptions"] <= 60


async def test_two_schedulers_do_no_harm(context: WorkerContext, asked: list[UUID]) -> None:
    venues = [
        await _connected(
            context,
            next_sync_at=datetime.now(UTC) - MINUTES,
            config={"syncEnabled": True, "syncInterval": 600},
        )
        for _ in range(5)
    ]
    jobs = [job for job in schedule.JOBS if not job.backlog]
    await asyncio.gather(*(job.run(context) for job in (*jobs, *jobs)))
    # Whose row is locked by one job is left by another, to its next turn.
    await asyncio.gather(*(schedule.start_scheduled_syncs(context) for _ in range(2)))
    async with context.sessions() as session:
        count = await session.scalar(text("SELECT count(*) FROM sync_queue WHERE operation_type = 'sync'"))
    assert count == len(venues)
    assert sorted(asked) == sorted(venues)
