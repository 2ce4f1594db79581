"""A worker on real stores: how runs end, and what happens when workers don't."""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from sqlalchemy import func, select, text, update
from structlog.testing import capture_logs

from engine.errors import (
    AuthenticationError,
    LeaseLostError,
    RateLimitedError,
    StoppedError,
    UnavailableError,
)
from engine.sync import Tally
from server.db.models import IntegrationConfig, IntegrationStatus, Operation, OperationType, Priority, SyncLog
from server.services import operations
from server.services.runs import Run, Runner, StepReport
from server.services.steps import StepKey
from server.settings import read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.main import serve
from server.worker.relay import announce, listed
from server.worker.tasks import Worker, work
from tests.integration.paging_worker import PAGES, TABLE, paging_worker

PROJECT = Path(__file__).resolve().parents[2]
STEP: StepKey = ("event", "item", "push")


@pytest.fixture
def environment(fresh_database_url: str, redis_url: str) -> Mapping[str, str]:
    return {
        "HUB_ENV": "test",
        "DATABASE_URL": fresh_database_url,
        "REDIS_URL": redis_url,
        "LEASE_SECONDS": "1",
        "JWT_SECRET": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
    }


@pytest.fixture
async def context(environment: Mapping[str, str]) -> AsyncIterator[WorkerContext]:
    settings = read_settings(environment)
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        await context.redis.flushdb()
        yield context


async def _enqueue(context: WorkerContext, **given: Any) -> UUID:
    values: dict[str, Any] = {
        "venue_id": uuid4(),
        "provider": "juniper",
        "operation_type": OperationType.SYNC,
        "entity_type": "full",
        "payload": {"syncType": "full", "trigger": "manual_sync"},
        **given,
    }
    async with context.sessions.begin() as session:
        return (await operations.enqueue(session, **values)).id


async def _row(context: WorkerContext, operation_id: UUID) -> Operation:
    async with context.sessions() as session:
        return await session.get_one(Operation, operation_id)


async def _announce(context: WorkerContext, operation_id: UUID) -> None:
    assert await announce(context.redis, [operations.as_due(await _row(context, operation_id))])


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - it looks at a store
            await asyncio.sleep(0.02)


def _is(context: WorkerContext, operation_id: UUID, status: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return (await _row(context, operation_id)).status == status

    return condition


async def _work(context: WorkerContext, operation_id: UUID, run: Runner) -> Operation:
    await asyncio.wait_for(work(Worker(context, "w", run=run), operation_id), 20)
    return await _row(context, operation_id)


async def _connected(context: WorkerContext, venue_id: UUID, **values: Any) -> None:
    async with context.sessions.begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=venue_id,
                integration_type="juniper",
                status=IntegrationStatus.CONNECTED,
                config={"syncEnabled": True, "syncInterval": 600},
                **values,
            )
        )


async def _integration(context: WorkerContext, venue_id: UUID) -> IntegrationConfig:
    async with context.sessions() as session:
        return (await session.scalars(select(IntegrationConfig).filter_by(venue_id=venue_id))).one()


async def _logs(context: WorkerContext, sync_id: UUID) -> list[SyncLog]:
    async with context.sessions() as session:
        return list(await session.scalars(select(SyncLog).filter_by(sync_id=sync_id).order_by(SyncLog.id)))


def _one_step(run: Run, **counts: Any) -> StepReport:
    run.steps[STEP] = StepReport("event", "item", "push")
    run.counting(STEP)(Tally("event", "item", "push", **counts))
    return run.steps[STEP]


async def _forever(context: object, run: Run) -> None:
    await asyncio.Event().wait()


async def _until_stopped(context: object, run: Run) -> None:
    step = _one_step(run, read=3, created=2)
    while not run.stopping:  # noqa: ASYNC110 - runs are asked, as between pages
        await asyncio.sleep(0.01)
    step.error = StoppedError("stopped between pages")
    raise step.error


async def test_a_run_that_ends_well_is_written_down(context: WorkerContext) -> None:
    venue, sync_id = uuid4(), uuid4()
    await _connected(context, venue, failure_count=2, last_error="was down")

    async def run(context: object, run: Run) -> None:
        step = _one_step(run, read=10, created=4, updated=3, unchanged=2, failed=1, api_calls=5, seconds=2)
        step.done = True

    row = await _work(context, await _enqueue(context, venue_id=venue, run_id=sync_id), run)
    counts = {
        "read": 10,
        "created": 4,
        "updated": 3,
        "unchanged": 2,
        "skipped": 0,
        "failed": 1,
        "conflicts": 0,
        "archived": 0,
        "deleted": 0,
        "api_calls": 5,
    }
    mapping = {
        "entity": "event",
        "resource": "item",
        "direction": "push",
        **counts,
        "held": 0,
        "note": "",
        "conflict_fields": {},
        "duration_ms": 2000,
        "done": True,
    }
    assert (row.status, row.lease_owner, row.last_error) == ("completed", None, None)
    assert row.result == {"mappings": [mapping], "failures": []}
    assert row.progress == {"mappings": [mapping], "current": None}

    (log,) = await _logs(context, sync_id)
    assert (log.operation, log.status, log.entity_type, log.entity_count) == (
        "manual_sync",
        "completed",
        "event",
        10,
    )
    assert (log.success_count, log.error_count, log.skip_count, log.api_calls_made) == (9, 1, 0, 5)
    assert (log.duration_ms, log.started_at) == (2000, row.started_at)

    integration = await _integration(context, venue)
    assert (integration.failure_count, integration.last_error, integration.status) == (0, None, "connected")
    assert integration.last_sync_at is not None
    assert integration.next_sync_at == integration.last_sync_at + timedelta(seconds=600)


async def test_progress_can_be_read_while_a_run_goes_on(context: WorkerContext) -> None:
    seen = asyncio.Event()

    async def run(context: object, run: Run) -> None:
        _one_step(run, read=7)
        await seen.wait()

    operation_id = await _enqueue(context)
    working = asyncio.create_task(_work(context, operation_id, run))

    async def seven_were_read() -> bool:
        progress = (await _row(context, operation_id)).progress
        return progress is not None and progress["mappings"][0]["read"] == 7

    await _until(seven_were_read)
    assert (await _row(context, operation_id)).status == "processing"
    seen.set()
    await working


async def test_a_long_run_keeps_its_lease(context: WorkerContext) -> None:
    operation_id = await _enqueue(context)
    outlived = asyncio.Event()

    async def run(context: object, run: Run) -> None:
        await outlived.wait()

    working = asyncio.create_task(_work(context, operation_id, run))
    await _until(_is(context, operation_id, "processing"))
    first = (await _row(context, operation_id)).lease_expires_at
    assert first is not None

    async def lease_was_extended_past_its_first_end() -> bool:
        async with context.sessions() as session:
            assert await operations.due(session) == []
            return bool(
                await session.scalar(text("SELECT now() > CAST(:first AS timestamptz)"), {"first": first})
            )

    await _until(lease_was_extended_past_its_first_end)
    outlived.set()
    assert (await working).status == "completed"


async def test_a_run_somebody_stops_is_paused_with_what_it_did(context: WorkerContext) -> None:
    venue, sync_id = uuid4(), uuid4()
    await _connected(context, venue)
    operation_id = await _enqueue(context, venue_id=venue, run_id=sync_id)
    working = asyncio.create_task(_work(context, operation_id, _until_stopped))
    await _until(_is(context, operation_id, "processing"))
    async with context.sessions.begin() as session:
        await session.execute(update(Operation).values(stop_requested=True))
    row = await working
    assert (row.status, row.stop_requested) == ("paused", False)
    assert row.result is not None
    assert row.result["mappings"][0]["created"] == 2
    [stopped] = await _logs(context, sync_id)
    assert (stopped.status, stopped.errors) == ("stopped", None)
    assert (await _integration(context, venue)).failure_count == 0


async def test_a_run_whose_lease_was_lost_is_cut_off_and_writes_nothing(context: WorkerContext) -> None:
    operation_id = await _enqueue(context)
    working = asyncio.create_task(_work(context, operation_id, _forever))
    await _until(_is(context, operation_id, "processing"))
    async with context.sessions.begin() as session:  # as a takeover does
        await session.execute(update(Operation).values(fencing_token=2, lease_owner="other"))
    row = await working
    assert (row.status, row.lease_owner, row.result) == ("processing", "other", None)
    assert await _logs(context, operation_id) == []


async def test_a_run_that_finds_its_lease_lost_writes_nothing(context: WorkerContext) -> None:
    async def run(context: object, run: Run) -> None:
        raise LeaseLostError("another worker has taken this operation over")

    row = await _work(context, await _enqueue(context), run)
    assert (row.status, row.result, row.last_error) == ("processing", None, None)


@pytest.fixture
def every_event() -> Iterator[None]:
    """Let every event through, whatever level another test has configured in this process."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("every_event")
async def test_shutting_down_gives_an_operation_back_at_the_next_page(context: WorkerContext) -> None:
    worker = Worker(context, "w", run=_until_stopped)
    operation_id = await _enqueue(context)
    with capture_logs() as logs:
        working = asyncio.create_task(work(worker, operation_id))
        await _until(_is(context, operation_id, "processing"))
        worker.stop()
        await asyncio.wait_for(working, 20)
    assert [log["error"] for log in logs if log["event"] == "operation.ended"] == [None]
    row = await _row(context, operation_id)
    assert (row.status, row.attempts, row.error_count, row.lease_owner) == ("pending", 0, 0, None)
    assert row.progress is not None
    assert row.progress["mappings"][0]["created"] == 2  # the next attempt counts on


async def test_shutting_down_does_not_wait_for_ever(context: WorkerContext) -> None:
    worker = Worker(context, "w", run=_forever)
    operation_id = await _enqueue(context)
    await _announce(context, operation_id)
    serving = asyncio.create_task(serve(worker, concurrency=2, grace=0.05))
    await _until(_is(context, operation_id, "processing"))
    worker.stop()
    await asyncio.wait_for(serving, 20)
    row = await _row(context, operation_id)
    assert (row.status, row.attempts, row.lease_owner) == ("pending", 0, None)


async def test_a_worker_that_is_stopping_takes_nothing(context: WorkerContext) -> None:
    worker = Worker(context, "w", run=_forever)
    worker.stop()
    operation_id = await _enqueue(context)
    await work(worker, operation_id)
    assert (await _row(context, operation_id)).attempts == 0


async def test_what_the_provider_gets_wrong_is_tried_again(context: WorkerContext) -> None:
    venue, sync_id = uuid4(), uuid4()
    await _connected(context, venue)

    async def run(context: object, run: Run) -> None:
        raise UnavailableError("the provider is down")

    row = await _work(context, await _enqueue(context, venue_id=venue, run_id=sync_id), run)
    assert (row.status, row.attempts, row.last_error) == ("pending", 1, "the provider is down")
    assert row.next_retry_at is not None
    integration = await _integration(context, venue)
    assert (integration.status, integration.failure_count) == ("connected", 1)
    assert integration.last_error == "the provider is down"
    assert await _logs(context, sync_id) == []  # it isn't over


async def test_a_throttled_run_waits_as_long_as_the_provider_says(context: WorkerContext) -> None:
    async def run(context: object, run: Run) -> None:
        raise RateLimitedError("slow down", retry_after=120)

    operation_id = await _enqueue(context)
    await _work(context, operation_id, run)
    async with context.sessions() as session:
        wait = await session.scalar(select(Operation.next_retry_at - Operation.updated_at))
    assert wait is not None
    assert timedelta(seconds=120) <= wait <= timedelta(seconds=122)


async def test_refused_credentials_end_the_run_and_mark_the_integration(context: WorkerContext) -> None:
    venue, sync_id = uuid4(), uuid4()
    await _connected(context, venue)

    async def run(context: object, run: Run) -> None:
        _one_step(run, read=3, created=3)
        raise AuthenticationError("connect again")

    row = await _work(context, await _enqueue(context, venue_id=venue, run_id=sync_id), run)
    assert (row.status, row.last_error) == ("failed", "connect again")
    (log,) = await _logs(context, sync_id)
    assert (log.status, log.success_count) == ("failed", 3)
    assert log.errors == [{"code": "CONNECTION_TEST_FAILED", "message": "connect again"}]
    integration = await _integration(context, venue)
    assert (integration.status, integration.last_error) == ("error", "connect again")


async def test_an_unforeseen_error_is_tried_again_and_its_text_kept_out(context: WorkerContext) -> None:
    async def run(context: object, run: Run) -> None:
        raise KeyError("ada@example.com")

    row = await _work(context, await _enqueue(context), run)
    assert row.status == "pending"
    assert row.last_error == "an unexpected error stopped the run: the log of its worker says which"
    assert "ada" not in str(row.result)


async def test_of_calls_that_failed_together_the_first_says_why(context: WorkerContext) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def run(context: object, run: Run) -> None:
        async with asyncio.TaskGroup() as calls:
            calls.create_task(fail(AuthenticationError("connect again")))
            calls.create_task(fail(UnavailableError("down")))

    row = await _work(context, await _enqueue(context), run)
    assert (row.status, row.last_error) == ("failed", "connect again")


async def test_a_disconnected_integration_stays_disconnected(context: WorkerContext) -> None:
    venue = uuid4()
    await _connected(context, venue)

    async def run(context: WorkerContext, run: Run) -> None:
        async with context.sessions.begin() as session:
            await session.execute(update(IntegrationConfig).values(status=IntegrationStatus.DISCONNECTED))

    await _work(context, await _enqueue(context, venue_id=venue), run)
    integration = await _integration(context, venue)
    assert (integration.status, integration.last_sync_at, integration.next_sync_at) == (
        "disconnected",
        None,
        None,
    )


async def test_an_operation_nobody_knows_how_to_work_fails_at_once(context: WorkerContext) -> None:
    operation_id = await _enqueue(context, operation_type=OperationType.RECONCILE)
    await work(Worker(context, "w"), operation_id)
    row = await _row(context, operation_id)
    assert (row.status, row.attempts) == ("failed", 1)


async def test_the_end_is_written_when_the_database_dropped_every_connection(context: WorkerContext) -> None:
    async def run(context: WorkerContext, run: Run) -> None:
        async with context.sessions() as session:
            await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    row = await _work(context, await _enqueue(context), run)
    assert row.status == "completed"


@asynccontextmanager
async def _serving(worker: Worker, concurrency: int = 4) -> AsyncIterator[None]:
    serving = asyncio.create_task(serve(worker, concurrency=concurrency, grace=5))
    try:
        yield
    finally:
        worker.stop()
        await serving


async def _all_completed(context: WorkerContext) -> bool:
    async with context.sessions() as session:
        return not await session.scalar(select(func.count()).where(Operation.status != "completed"))


async def test_emptying_redis_while_work_goes_on_loses_nothing(context: WorkerContext) -> None:
    async with context.sessions.begin() as session:
        await session.execute(text(TABLE))
    ids = [await _enqueue(context) for _ in range(12)]
    for operation_id in ids:
        await _announce(context, operation_id)
    async with _serving(paging_worker(Worker(context, "w"))):

        async def half_are_done() -> bool:
            async with context.sessions() as session:
                done = await session.scalar(select(func.count()).where(Operation.status == "completed"))
                return done is not None and done >= 4

        await _until(half_are_done)
        await context.redis.flushall()
        await _until(lambda: _all_completed(context))
    async with context.sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM pages")) == 12 * PAGES


async def test_urgent_work_overtakes_a_backlog(context: WorkerContext) -> None:
    order: list[str] = []

    async def run(context: object, run: Run) -> None:
        order.append(run.claim.priority.value)

    for priority in (*[Priority.LOW] * 6, *[Priority.HIGH] * 2, Priority.CRITICAL):
        operation_id = await _enqueue(context, priority=priority)
        await _announce(context, operation_id)
    async with _serving(Worker(context, "w", run=run), concurrency=1):
        await _until(lambda: _all_completed(context))
    assert order == ["CRITICAL", "HIGH", "HIGH", *["LOW"] * 6]


async def test_a_long_run_makes_way_for_what_is_more_urgent_of_its_integration(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of its page; then it goes on, and no attempt was counted. For its like it doesn't."""
    monkeypatch.setattr("server.worker.attempts.MAKES_WAY_AFTER", 0.0)
    venue, order = uuid4(), list[str]()
    urgent_done = asyncio.Event()

    async def run(context: object, run: Run) -> None:
        name = str(run.claim.payload["name"])
        order.append(name)
        if name == "long":
            while not run.stopping and not urgent_done.is_set():  # noqa: ASYNC110 - asked as between pages
                await asyncio.sleep(0.01)
            if run.stopping:
                raise StoppedError("stopped")
        if name == "urgent":
            urgent_done.set()

    async def enqueue(name: str, priority: Priority) -> UUID:
        return await _enqueue(
            context,
            venue_id=venue,
            payload={"name": name},
            priority=priority,
            operation_type=OperationType.RECONCILE if name == "urgent" else OperationType.SYNC,
        )

    async with _serving(Worker(context, "w", run=run)):
        long = await enqueue("long", Priority.NORMAL)
        await _announce(context, long)
        await _until(_is(context, long, "processing"))
        await _announce(context, await enqueue("same", Priority.NORMAL))
        await _announce(context, await enqueue("urgent", Priority.CRITICAL))
        await _until(lambda: _all_completed(context))
    assert (order[:2], sorted(order[2:])) == (["long", "urgent"], ["long", "same"])
    assert (await _row(context, long)).attempts == 1


async def test_one_message_too_many_does_no_harm(context: WorkerContext) -> None:
    runs: list[int] = []

    async def run(context: object, run: Run) -> None:
        runs.append(run.claim.fencing_token)

    operation_id = await _enqueue(context)
    worker = Worker(context, "w", run=run)
    await asyncio.gather(*(work(worker, operation_id) for _ in range(5)))
    await work(worker, operation_id)
    assert runs == [1]


async def _paging_process(environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.paging_worker",
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _pages(context: WorkerContext) -> int:
    async with context.sessions() as session:
        return int(await session.scalar(text("SELECT count(*) FROM pages")) or 0)


async def _pages_are_done(context: WorkerContext, process: asyncio.subprocess.Process, count: int) -> bool:
    assert process.returncode is None
    return await _pages(context) >= count


async def test_workers_that_are_replaced_lose_and_repeat_nothing(
    context: WorkerContext, environment: Mapping[str, str]
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(text(TABLE))
    ids = [await _enqueue(context) for _ in range(12)]
    for operation_id in ids:
        await _announce(context, operation_id)
    old = await _paging_process(environment)
    await _until(lambda: _pages_are_done(context, old, 5))
    async with _serving(paging_worker(Worker(context, "new"))):
        old.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(old.wait(), 20) == 0
        await _until(lambda: _all_completed(context))
    assert await _pages(context) == 12 * PAGES  # a page that is worked twice is an error
    async with context.sessions() as session:
        rows = (await session.scalars(select(Operation))).all()
    assert {(row.attempts, row.error_count, row.lost_workers) for row in rows} == {(1, 0, 0)}
    assert max(row.fencing_token for row in rows) == 2  # some were handed over, between two pages


async def test_what_a_killed_worker_was_doing_another_finishes(
    context: WorkerContext, environment: Mapping[str, str]
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(text(TABLE))
    operation_id = await _enqueue(context)
    await _announce(context, operation_id)
    killed = await _paging_process(environment)
    await _until(lambda: _pages_are_done(context, killed, 3))
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    assert await _pages(context) < PAGES
    row = await _row(context, operation_id)
    assert (row.status, row.lease_owner) == ("processing", "killed")

    async with _serving(paging_worker(Worker(context, "w"))):
        await _until(_is(context, operation_id, "completed"))
    row = await _row(context, operation_id)
    assert await _pages(context) == PAGES
    assert (row.attempts, row.error_count, row.fencing_token) == (1, 1, 2)
    assert await listed(context.redis, "normal") == []


@pytest.mark.parametrize("process", ["worker", "scheduler"])
async def test_a_process_ends_well_when_it_is_told_to(environment: Mapping[str, str], process: str) -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from server.cli import main; main(['{process}'])",
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    assert running.stdout is not None
    async with asyncio.timeout(30):
        events = [json.loads(await running.stdout.readline())["message"]]
        running.send_signal(signal.SIGTERM)
        events += [json.loads(line)["message"] async for line in running.stdout]
        assert await running.wait() == 0
    assert events == [f"{process}.started", f"{process}.stopped"]
