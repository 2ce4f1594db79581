"""The scheduler's jobs on real stores: each does its work once, however many schedulers there are."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from engine.errors import UnavailableError
from server.credentials import StoredCredentials
from server.db.models import (
    AuditEntry,
    HealthChange,
    HealthStatus,
    IntegrationConfig,
    IntegrationStatus,
    OAuthState,
    OAuthToken,
    Operation,
    OperationStatus,
    OperationType,
    SyncLog,
)
from server.services import operations
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context
from server.worker.relay import listed
from server.worker.schedule import Job, run_jobs

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
EVERY_TEN_MINUTES = {"syncEnabled": True, "syncInterval": 600}


@pytest.fixture
async def context(fresh_database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": fresh_database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        await context.redis.flushdb()
        yield context


async def _integrate(context: WorkerContext, **values: Any) -> UUID:
    given: dict[str, Any] = {
        "venue_id": uuid4(),
        "integration_type": "juniper",
        "status": IntegrationStatus.CONNECTED,
        "config": EVERY_TEN_MINUTES,
        **values,
    }
    async with context.sessions.begin() as session:
        session.add(IntegrationConfig(**given))
    venue_id: UUID = given["venue_id"]
    return venue_id


async def _operations(context: WorkerContext) -> list[Operation]:
    async with context.sessions() as session:
        return list(await session.scalars(select(Operation)))


async def _seconds_to_next(context: WorkerContext, venue_id: UUID) -> float | None:
    async with context.sessions() as session:
        left = await session.scalar(
            select(
                func.extract("epoch", IntegrationConfig.next_sync_at - IntegrationConfig.updated_at)
            ).where(IntegrationConfig.venue_id == venue_id)
        )
    return None if left is None else float(left)


async def test_a_due_integration_is_synced_and_told_when_next(context: WorkerContext) -> None:
    venue_id = await _integrate(context, next_sync_at=LONG_AGO)
    assert await schedule.start_scheduled_syncs(context) == 1
    (operation,) = await _operations(context)
    assert (operation.venue_id, operation.integration_type, operation.operation_type) == (
        venue_id,
        "juniper",
        "sync",
    )
    assert operation.payload == {
        "syncType": "full",
        "trigger": "scheduled_sync",
        "options": {"complete": True},
    }
    assert operation.run_id is not None
    assert await listed(context.redis, "normal") == [operation.id]
    left = await _seconds_to_next(context, venue_id)
    assert left is not None
    assert 600 <= left < 660


async def test_two_schedulers_in_the_same_moment_start_a_sync_once(context: WorkerContext) -> None:
    for _ in range(5):
        await _integrate(context, next_sync_at=LONG_AGO)
    started = await asyncio.gather(*(schedule.start_scheduled_syncs(context) for _ in range(4)))
    assert sum(started) == 5
    assert len(await _operations(context)) == 5


async def test_a_slot_is_used_once_even_when_the_clock_is_set_back(context: WorkerContext) -> None:
    await _integrate(context, next_sync_at=LONG_AGO)
    await schedule.start_scheduled_syncs(context)
    async with context.sessions.begin() as session:
        await session.execute(update(Operation).values(status=OperationStatus.COMPLETED))
        await session.execute(update(IntegrationConfig).values(next_sync_at=LONG_AGO))
    await schedule.start_scheduled_syncs(context)
    assert len(await _operations(context)) == 1


async def test_the_first_sync_of_a_day_is_complete(context: WorkerContext) -> None:
    await _integrate(context, next_sync_at=LONG_AGO)
    await _integrate(context, next_sync_at=LONG_AGO)
    days = (datetime(2026, 1, day, hour, tzinfo=UTC) for day, hour in ((1, 0), (1, 23), (2, 0), (2, 1)))
    for due_at in days:
        async with context.sessions.begin() as session:
            await session.execute(update(IntegrationConfig).values(next_sync_at=due_at))
            await session.execute(update(Operation).values(status=OperationStatus.COMPLETED))
        assert await schedule.start_scheduled_syncs(context) == 2
    asked = [operation.payload["options"]["complete"] for operation in await _operations(context)]
    assert sorted(asked) == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    "values",
    [
        {"next_sync_at": datetime(2999, 1, 1, tzinfo=UTC)},
        {"next_sync_at": LONG_AGO, "status": IntegrationStatus.DISCONNECTED},
        {"next_sync_at": LONG_AGO, "status": IntegrationStatus.ERROR},
        {"next_sync_at": LONG_AGO, "config": {"syncEnabled": False, "syncInterval": 600}},
        {"next_sync_at": None},
    ],
    ids=["not due yet", "disconnected", "in error", "switched off", "never timed"],
)
async def test_what_is_not_due_is_not_synced(context: WorkerContext, values: dict[str, Any]) -> None:
    await _integrate(context, **values)
    assert await schedule.start_scheduled_syncs(context) == 0
    assert await _operations(context) == []


async def test_an_integration_that_was_never_timed_gets_a_time(context: WorkerContext) -> None:
    enabled = await _integrate(context, next_sync_at=None)
    off = await _integrate(context, next_sync_at=None, config={"syncEnabled": False})
    await schedule.start_scheduled_syncs(context)
    left = await _seconds_to_next(context, enabled)
    assert left is not None
    assert 600 <= left < 660
    assert await _seconds_to_next(context, off) is None


@pytest.mark.parametrize("status", ["pending", "recovering", "processing"])
async def test_a_slot_is_left_out_while_a_sync_waits_or_runs(context: WorkerContext, status: str) -> None:
    venue_id = await _integrate(context, next_sync_at=LONG_AGO)
    async with context.sessions.begin() as session:
        await operations.enqueue(
            session,
            venue_id=venue_id,
            provider="juniper",
            operation_type=OperationType.SYNC,
            entity_type="full",
            payload={},
        )
        await session.execute(
            update(Operation).values(
                status=OperationStatus(status),
                lease_owner="w",
                lease_expires_at=func.now() + timedelta(minutes=1),
            )
        )
    assert await schedule.start_scheduled_syncs(context) == 0
    left = await _seconds_to_next(context, venue_id)
    assert left is not None
    assert left >= 600


async def test_what_is_due_is_announced_and_what_is_over_ended(context: WorkerContext) -> None:
    async with context.sessions.begin() as session:
        due, expired = [
            await operations.enqueue(
                session,
                venue_id=uuid4(),
                provider="juniper",
                operation_type=OperationType.SYNC,
                entity_type="full",
                payload={},
            )
            for _ in range(2)
        ]
        await session.execute(update(Operation).where(Operation.id == expired.id).values(expires_at=LONG_AGO))
    assert await schedule.announce_due(context) == 1
    assert await listed(context.redis, "normal") == [due.id]
    statuses = {operation.id: operation.status.value for operation in await _operations(context)}
    assert statuses == {due.id: "pending", expired.id: "dead_letter"}


async def _token(context: WorkerContext, connector: str, expires_in: timedelta, **values: Any) -> UUID:
    venue_id = await _integrate(context, integration_type=connector, **values)
    async with context.sessions.begin() as session:
        session.add(
            OAuthToken(
                venue_id=venue_id,
                integration_type=connector,
                encrypted_access_token="sealed",
                encrypted_refresh_token="sealed",
                expires_at=datetime.now(UTC) + expires_in,
            )
        )
    return venue_id


async def test_tokens_are_renewed_as_early_as_the_manifest_says(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, early = next(
        (connector.name, method.oauth.refresh_before_expiry)
        for connector in context.catalog.connectors.values()
        for method in connector.auth
        if method.oauth
    )
    soon = await _token(context, name, early - timedelta(minutes=1))
    failing = await _token(context, name, early - timedelta(minutes=2))
    await _token(context, name, early + timedelta(minutes=1))
    await _token(context, name, timedelta(0), status=IntegrationStatus.ERROR)
    renewed: list[UUID] = []

    async def current(self: StoredCredentials) -> None:
        renewed.append(self._venue)
        if self._venue == failing:
            raise UnavailableError("the token endpoint is down")

    monkeypatch.setattr(StoredCredentials, "current", current)
    assert await schedule.refresh_tokens(context) == 2
    assert renewed == [failing, soon]  # the first to expire comes first, and its trouble is its own


async def test_authorizations_nobody_came_back_from_are_forgotten(context: WorkerContext) -> None:
    async with context.sessions.begin() as session:
        for name, expires_at in (("old", LONG_AGO), ("new", datetime(2999, 1, 1, tzinfo=UTC))):
            session.add(
                OAuthState(
                    state_hash=name,
                    venue_id=uuid4(),
                    integration_type="juniper",
                    user_id="u",
                    redirect_uri="https://hub.example/callback",
                    expires_at=expires_at,
                )
            )
    assert await schedule.forget_expired(context) == 1
    async with context.sessions() as session:
        assert list(await session.scalars(select(OAuthState.state_hash))) == ["new"]


@pytest.mark.parametrize(
    ("connected_at", "disconnected_at", "left", "status"),
    [
        (None, None, LONG_AGO, "disconnected"),
        (LONG_AGO, LONG_AGO, LONG_AGO, "disconnected"),
        (LONG_AGO, None, LONG_AGO, "error"),  # it was connected and broken, and so it is again
        (None, None, datetime(2999, 1, 1, tzinfo=UTC), "connecting"),
    ],
)
async def test_an_integration_does_not_wait_for_ever(
    context: WorkerContext,
    connected_at: datetime | None,
    disconnected_at: datetime | None,
    left: datetime,
    status: str,
) -> None:
    venue_id = await _integrate(
        context,
        status=IntegrationStatus.CONNECTING,
        connected_at=connected_at,
        disconnected_at=disconnected_at,
    )
    async with context.sessions.begin() as session:
        session.add(
            OAuthState(
                state_hash="s",
                venue_id=venue_id,
                integration_type="juniper",
                user_id="u",
                redirect_uri="https://hub.example/callback",
                expires_at=left,
            )
        )
    await schedule.forget_expired(context)
    async with context.sessions() as session:
        assert await session.scalar(select(IntegrationConfig.status)) == status


async def test_what_ended_long_ago_is_forgotten_and_what_failed_is_not(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.services.retention.AT_ONCE", 2)
    assert context.settings.retention_days == 90
    now = datetime.now(UTC)
    old, recent = now - timedelta(days=91), now - timedelta(days=89)
    async with context.sessions.begin() as session:
        for at in (old, old, old, recent):
            for status in ("completed", "paused", "failed", "dead_letter"):
                session.add(
                    Operation(
                        venue_id=uuid4(),
                        integration_type="juniper",
                        operation_type=OperationType.SYNC,
                        entity_type="full",
                        status=OperationStatus(status),
                        completed_at=at,
                    )
                )
            session.add(
                SyncLog(
                    venue_id=uuid4(),
                    integration_type="juniper",
                    operation="manual_sync",
                    status="failed",
                    started_at=at,
                )
            )
        session.add(AuditEntry(actor="u", action="integration.connected", created_at=old))
        for at in (old, recent):
            session.add(
                HealthChange(
                    venue_id=uuid4(),
                    integration_type="juniper",
                    from_status=HealthStatus.UNKNOWN,
                    to_status=HealthStatus.HEALTHY,
                    reason="good",
                    explanation="it works",
                    created_at=at,
                )
            )
    assert await schedule.forget_old(context) == 3 * 2 + 3 + 1
    assert sorted(each.status for each in await _operations(context)) == [
        "completed",
        *["dead_letter"] * 4,
        *["failed"] * 4,
        "paused",
    ]
    async with context.sessions() as session:
        assert len((await session.scalars(select(SyncLog))).all()) == 1
        assert len((await session.scalars(select(AuditEntry))).all()) == 1


async def test_a_job_that_fails_is_run_again_and_delays_no_other(context: WorkerContext) -> None:
    stopping, ran = asyncio.Event(), {"failing": 0, "other": 0}

    async def failing(context: WorkerContext) -> None:
        ran["failing"] += 1
        raise OSError("connection refused")

    async def stuck(context: WorkerContext) -> None:
        await stopping.wait()

    async def other(context: WorkerContext) -> None:
        ran["other"] += 1
        if min(ran.values()) >= 2:
            stopping.set()

    jobs = (Job("failing", 0.01, failing), Job("stuck", 0.01, stuck), Job("other", 0.01, other))
    await asyncio.wait_for(run_jobs(context, stopping, jobs), 10)
    assert min(ran.values()) >= 2


async def test_more_than_one_go_takes_does_not_wait_for_the_next_turn(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "AT_ONCE", 1)
    monkeypatch.setattr("server.services.retention.AT_ONCE", 1)
    monkeypatch.setattr("server.services.retention.TURNS", 1)
    for _ in range(3):
        await _integrate(context, next_sync_at=LONG_AGO)
    async with context.sessions.begin() as session:
        for _ in range(3):
            session.add(
                SyncLog(
                    venue_id=uuid4(),
                    integration_type="juniper",
                    operation="manual_sync",
                    status="success",
                    started_at=LONG_AGO,
                )
            )
    stopping = asyncio.Event()
    wanted = {"start_scheduled_syncs", "forget_old"}
    jobs = tuple(replace(job, every=3600.0) for job in schedule.JOBS if job.name in wanted)
    running = asyncio.create_task(run_jobs(context, stopping, jobs))
    async with asyncio.timeout(60):
        while len(await _operations(context)) < 3 or await _logs(context):  # noqa: ASYNC110 - looks at a store
            await asyncio.sleep(0.02)
    stopping.set()
    await running


async def _logs(context: WorkerContext) -> int:
    async with context.sessions() as session:
        return await session.scalar(select(func.count()).select_from(SyncLog)) or 0


async def test_every_job_runs_where_there_is_nothing_to_do(context: WorkerContext) -> None:
    for job in schedule.JOBS:
        assert await job.run(context) == 0


def test_a_lost_message_delays_work_by_a_second_at_most() -> None:
    assert {job.name: job.every for job in schedule.JOBS}["announce_due"] <= 1.0
