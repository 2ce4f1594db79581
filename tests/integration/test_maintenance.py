"""Maintenance runs: worked a batch at a time, by whoever is there, and never lost."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from server import context as shared
from server.db.models import AuditEntry, MaintenanceRun
from server.errors import NotFoundError, VaultError
from server.services import upkeep
from server.services.audit import Actor
from server.services.maintenance import MOST_ATTEMPTS, read, start, stop, work_one
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context
from server.worker.schedule import Job

ADMIN = Actor("u_1", "203.0.113.7", "r_1")


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
        yield context


async def count_to_three(context: shared.Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    """Write one row a batch, three in all."""
    at = run.position.get("at", 0) + 1
    session.add(AuditEntry(actor="step", action=f"{run.kind} {at}"))
    run.position, run.progress = {"at": at}, {"step": "counting", "done": at, "total": 3, "failed": 0}
    if at == 3:
        run.result = {"counted": 3}
    return bool(at == 3)


async def refuse(context: shared.Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    session.add(AuditEntry(actor="step", action="refused"))
    run.position = {"at": 99}
    await session.flush()
    raise VaultError("there is no vault key `k7`")


async def break_down(context: shared.Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    raise KeyError("sk_live_1")


async def end_badly(context: shared.Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    run.error = "2 values can't be opened"
    return True


async def begin(
    context: WorkerContext, kind: str = "count", venue_id: UUID | None = None
) -> tuple[MaintenanceRun, bool]:
    async with context.sessions.begin() as session:
        return await start(session, ADMIN, kind, venue_id=venue_id)


async def look(context: WorkerContext, run: MaintenanceRun) -> MaintenanceRun:
    async with context.sessions() as session:
        return await read(session, run.id)


async def actions(context: WorkerContext) -> list[str]:
    async with context.sessions() as session:
        return list(await session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))


async def at_once(context: WorkerContext) -> None:
    """Let no run wait for its next attempt."""
    async with context.sessions.begin() as session:
        await session.execute(update(MaintenanceRun).values(next_attempt_at=datetime(2026, 1, 1, tzinfo=UTC)))


async def test_a_run_is_worked_batch_by_batch_to_its_end(context: WorkerContext) -> None:
    run, new = await begin(context)
    assert new
    assert (run.status, run.requested_by, str(run.requested_ip)) == ("pending", "u_1", "203.0.113.7")
    kinds = {"count": count_to_three}
    assert await work_one(context, kinds)
    half = await look(context, run)
    assert (half.status, half.position, half.progress["done"]) == ("running", {"at": 1}, 1)
    assert half.started_at is not None
    assert half.completed_at is None
    assert await work_one(context, kinds)
    assert await work_one(context, kinds)
    assert not await work_one(context, kinds)
    ended = await look(context, run)
    assert (ended.status, ended.result, ended.error) == ("completed", {"counted": 3}, None)
    assert ended.completed_at is not None
    assert await actions(context) == ["count 1", "count 2", "count 3"]


async def test_one_that_is_unfinished_is_joined(context: WorkerContext) -> None:
    venue = uuid4()
    begun = [await begin(context, "count", venue) for _ in range(2)]
    assert [new for _, new in begun] == [True, False]
    assert len({run.id for run, _ in begun}) == 1
    # Another venue's, and the whole hub's, are others; the hub's is joined as well, though its venue is null.
    others = [await begin(context, "count", other) for other in (uuid4(), None, None)]
    assert [new for _, new in others] == [True, True, False]
    assert (await begin(context, "other", venue))[1]


async def test_many_who_start_one_in_the_same_moment_get_the_same(context: WorkerContext) -> None:
    begun = await asyncio.gather(*(begin(context) for _ in range(8)))
    assert len({run.id for run, _ in begun}) == 1
    assert sorted(new for _, new in begun) == [False] * 7 + [True]


async def test_what_has_ended_is_not_joined(context: WorkerContext) -> None:
    first, _ = await begin(context)
    async with context.sessions.begin() as session:
        assert (await stop(session, ADMIN, first.id)).status == "stopped"
    second, new = await begin(context)
    assert new
    assert second.id != first.id
    assert (await look(context, first)).completed_at is not None


async def test_workers_at_the_same_time_do_each_batch_once(context: WorkerContext) -> None:
    for kind in ("count", "recount"):
        await begin(context, kind)
    kinds = {"count": count_to_three, "recount": count_to_three}

    async def work() -> None:
        for _ in range(6):
            await work_one(context, kinds)

    await asyncio.gather(*(work() for _ in range(4)))
    assert sorted(await actions(context)) == [
        f"{kind} {at}" for kind in ("count", "recount") for at in (1, 2, 3)
    ]


async def test_runs_take_turns(context: WorkerContext) -> None:
    for kind in ("count", "recount"):
        await begin(context, kind)
    for _ in range(4):
        await work_one(context, {"count": count_to_three, "recount": count_to_three})
    assert await actions(context) == ["count 1", "recount 1", "count 2", "recount 2"]


async def test_only_one_run_can_be_worked(context: WorkerContext) -> None:
    await begin(context, "count")
    second, _ = await begin(context, "recount")
    kinds = {"count": count_to_three, "recount": count_to_three}
    for _ in range(3):
        assert await work_one(context, kinds, only=second.id)
    assert not await work_one(context, kinds, only=second.id)
    assert await actions(context) == ["recount 1", "recount 2", "recount 3"]


async def test_a_batch_that_fails_leaves_nothing_and_is_tried_again(context: WorkerContext) -> None:
    run, _ = await begin(context)
    assert await work_one(context, {"count": count_to_three})
    assert await work_one(context, {"count": refuse})
    waiting = await look(context, run)
    assert (waiting.status, waiting.attempts, waiting.position) == ("running", 1, {"at": 1})
    assert waiting.error == "there is no vault key `k7`"
    assert not await work_one(context, {"count": count_to_three}), "not before its time"
    await at_once(context)
    for _ in range(2):
        assert await work_one(context, {"count": count_to_three})
    ended = await look(context, run)
    assert (ended.status, ended.error, ended.attempts) == ("completed", None, 0)
    assert await actions(context) == ["count 1", "count 2", "count 3"]


async def test_attempts_are_ever_further_apart_and_then_the_run_has_failed(context: WorkerContext) -> None:
    run, _ = await begin(context)
    delays = []
    for _ in range(MOST_ATTEMPTS):
        await at_once(context)
        assert await work_one(context, {"count": break_down})
        found = await look(context, run)
        delays.append(round((found.next_attempt_at - found.updated_at).total_seconds()))
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert (found.status, found.attempts, found.error) == ("failed", MOST_ATTEMPTS, "unexpected KeyError")
    assert found.completed_at is not None
    await at_once(context)
    assert not await work_one(context, {"count": break_down})


async def test_a_run_may_end_as_failed_by_its_own_words(context: WorkerContext) -> None:
    run, _ = await begin(context)
    assert await work_one(context, {"count": end_badly})
    ended = await look(context, run)
    assert (ended.status, ended.error, ended.attempts) == ("failed", "2 values can't be opened", 0)


async def test_a_stopped_run_is_not_worked_on(context: WorkerContext) -> None:
    run, _ = await begin(context)
    assert await work_one(context, {"count": count_to_three})
    async with context.sessions.begin() as session:
        await stop(session, ADMIN, run.id)
    assert not await work_one(context, {"count": count_to_three})
    assert await actions(context) == ["count 1", "maintenance.stopped"]


async def test_a_kind_this_version_does_not_know_waits_for_one_that_does(context: WorkerContext) -> None:
    run, _ = await begin(context, "later")
    assert not await work_one(context, {"count": count_to_three})
    assert (await look(context, run)).status == "pending"


async def test_there_is_no_such_run(context: WorkerContext) -> None:
    async with context.sessions() as session:
        with pytest.raises(NotFoundError):
            await read(session, uuid4())
        with pytest.raises(NotFoundError):
            await stop(session, ADMIN, uuid4())


async def test_the_scheduler_goes_on_while_there_is_work(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(context)
    stopping, last = asyncio.Event(), asyncio.Event()

    async def count(context: shared.Context, session: AsyncSession, run: MaintenanceRun) -> bool:
        if await count_to_three(context, session, run):
            last.set()
        return last.is_set()

    monkeypatch.setattr(upkeep, "KINDS", {"count": count})
    (job,) = (job for job in schedule.JOBS if job.name == "work_maintenance")
    # By the clock alone the second batch would be an hour away.
    running = asyncio.create_task(
        schedule.run_jobs(context, stopping, (Job(job.name, 3600, job.run, backlog=job.backlog),))
    )
    async with asyncio.timeout(20):
        await last.wait()
        stopping.set()
        await running
    assert await actions(context) == ["count 1", "count 2", "count 3"]


async def test_the_scheduler_stops_between_batches(context: WorkerContext) -> None:
    stopping = asyncio.Event()
    turns = 0

    async def endless(context: WorkerContext) -> bool:
        nonlocal turns
        turns += 1
        if turns == 3:
            stopping.set()
        return True

    async with asyncio.timeout(20):
        await schedule.run_jobs(context, stopping, (Job("endless", 3600, endless, backlog=True),))
    assert turns == 3
