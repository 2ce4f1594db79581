"""Measure the lanes: how many operations a worker gets through, how soon urgent work starts, who waits.

Prints JSON lines. All of it runs on the same embedded stores, every commit on disk, one worker with its usual
slots. `throughput` compares a worker with empty runs (taken, claimed, ended, logged) with taskiq-redis' own
stream broker, which keeps no ledger at all, in turns; and with asyncpg alone claiming and completing the
same rows. `urgent` is the time from the commit of critical operations, several at once, to the start of their
runs, while low ones drain. `fair` is how many operations of a venue that queued thousands start before the
one of another. `hanging` is how long operations of one provider wait while those of another never end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import structlog
import uvloop
from sqlalchemy import func, make_url, select, text
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from server.db.migrate import upgrade
from server.db.models import Operation, OperationType, Priority
from server.embedded import embedded_stores
from server.services import operations
from server.services.operations import Due, Wanted
from server.services.runs import Run, Runner
from server.settings import Settings, read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.main import serve
from server.worker.relay import announce
from server.worker.tasks import Worker

OPERATIONS = 5_000
ROUNDS = 3
SLOTS = 10  # as a worker has by default
MANY_SLOTS = 50
PROVIDERS = 4
BACKLOG = 10_000
BURSTS, BURST = 60, 3  # of urgent operations
LOW_RUN_SECONDS = 2.0
BULK = 100_000

CLAIM = """
UPDATE sync_queue SET status = 'processing', attempts = attempts + 1, lease_owner = 'hand',
    lease_expires_at = now() + interval '15 seconds', fencing_token = fencing_token + 1
WHERE id = (SELECT id FROM sync_queue WHERE status = 'pending' ORDER BY priority, queued_at
            LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, fencing_token
"""
COMPLETE = """
UPDATE sync_queue SET status = 'completed', completed_at = now(), lease_owner = NULL, lease_expires_at = NULL
WHERE id = $1 AND fencing_token = $2
"""
COPIED = ("venue_id", "integration_type", "operation_type", "entity_type", "payload", "priority")


def _say(case: str, **figures: object) -> None:
    sys.stdout.write(json.dumps({"bench": "lanes", "case": case, **figures}) + "\n")
    sys.stdout.flush()


def _wanted(
    venue_id: UUID | None = None, *, priority: Priority = Priority.LOW, provider: str = "juniper"
) -> Wanted:
    return Wanted(venue_id or uuid4(), provider, OperationType.UPDATE, "customer", {}, priority=priority)


async def _empty(context: WorkerContext) -> None:
    async with context.sessions.begin() as session:
        await session.execute(text("TRUNCATE sync_queue, sync_logs, outbox CASCADE"))
    await context.redis.flushdb()


async def _enqueue(context: WorkerContext, wanted: Sequence[Wanted]) -> list[Due]:
    async with context.sessions.begin() as session:
        return await operations.enqueue_many(session, wanted)


async def _fill(context: WorkerContext, wanted: Sequence[Wanted]) -> None:
    await _empty(context)
    await announce(context.redis, await _enqueue(context, wanted))


async def _drained(context: WorkerContext) -> None:
    statement = select(func.count()).where(Operation.status.in_(("pending", "processing")))
    while True:
        async with context.sessions() as session:
            if not await session.scalar(statement):
                return
        await asyncio.sleep(0.05)


@asynccontextmanager
async def _serving(context: WorkerContext, run: Runner, slots: int = SLOTS) -> AsyncIterator[Worker]:
    worker = Worker(context, "bench", run=run)
    serving = asyncio.create_task(serve(worker, concurrency=slots, grace=0.2))
    try:
        yield worker
    finally:
        worker.stop()
        await serving


async def _nothing(context: object, run: Run) -> None:
    return


async def worker_rate(context: WorkerContext, slots: int) -> float:
    """Return how many operations a second one worker with empty runs gets through."""
    wanted = [_wanted(provider=f"p{n % PROVIDERS}", priority=Priority.HIGH) for n in range(OPERATIONS)]
    await _fill(context, wanted)
    started = time.perf_counter()
    async with _serving(context, _nothing, slots):
        await _drained(context)
        return OPERATIONS / (time.perf_counter() - started)


async def stock_rate(redis_url: str, slots: int) -> float:
    """Return how many empty tasks a second taskiq-redis' stream broker gets through, in as many slots."""
    broker = RedisStreamBroker(redis_url, queue_name=f"bench-{uuid4()}", xread_count=slots)
    broker.is_worker_process = True
    done, all_done = 0, asyncio.Event()

    async def work(operation_id: str) -> None:
        nonlocal done
        done += 1
        if done == OPERATIONS:
            all_done.set()

    task = broker.register_task(work, task_name="work")
    await broker.startup()
    for _ in range(OPERATIONS):
        await task.kiq(str(uuid4()))
    stopping = asyncio.Event()
    started = time.perf_counter()
    listening = asyncio.create_task(Receiver(broker, max_async_tasks=slots).listen(stopping))
    await all_done.wait()
    rate = OPERATIONS / (time.perf_counter() - started)
    stopping.set()
    await listening
    await broker.shutdown()
    return rate


async def hand_rate(context: WorkerContext, address: str) -> float:
    """Return how many rows a second asyncpg alone claims and completes, in as many tasks."""
    await _empty(context)
    await _enqueue(context, [_wanted() for _ in range(OPERATIONS)])
    async with asyncpg.create_pool(address, min_size=SLOTS, max_size=SLOTS) as pool:

        async def work() -> None:
            while (claimed := await pool.fetchrow(CLAIM)) is not None:
                await pool.execute(COMPLETE, claimed["id"], claimed["fencing_token"])

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(SLOTS)))
        return OPERATIONS / (time.perf_counter() - started)


async def measure_throughput(context: WorkerContext, redis_url: str, address: str) -> None:
    for slots in (SLOTS, MANY_SLOTS):
        pairs = [
            (await worker_rate(context, slots), await stock_rate(redis_url, slots)) for _ in range(ROUNDS)
        ]
        worker, stock = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        hand = await hand_rate(context, address)
        _say(
            "throughput",
            operations=OPERATIONS,
            slots=slots,
            worker=round(worker),
            stream_broker=round(stock),
            by_hand=round(hand),
            ratio_to_stream_broker=round(statistics.median(mine / theirs for mine, theirs in pairs), 2),
            ratio_to_hand=round(worker / hand, 2),
        )


async def urgent_waits(context: WorkerContext, low_seconds: float) -> list[float]:
    """Return the seconds from commit to start of critical operations beside a backlog of low ones."""
    await _fill(context, [_wanted() for _ in range(BACKLOG)])
    committed: dict[UUID, float] = {}
    waits: list[float] = []
    started = asyncio.Event()

    async def run(context: object, run: Run) -> None:
        if run.claim.priority is Priority.CRITICAL:
            waits.append(time.perf_counter() - committed[run.claim.operation_id])
        else:
            started.set()
            await asyncio.sleep(low_seconds)

    async with _serving(context, run):
        await started.wait()
        for burst in range(BURSTS):
            found = await _enqueue(context, [_wanted(priority=Priority.CRITICAL) for _ in range(BURST)])
            now = time.perf_counter()
            committed |= dict.fromkeys((due.id for due in found), now)
            await announce(context.redis, found)
            while len(waits) < (burst + 1) * BURST:  # noqa: ASYNC110 - a benchmark polls
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
    return waits


async def measure_urgent(context: WorkerContext) -> None:
    for low_seconds in (LOW_RUN_SECONDS, 0.0):
        waits = sorted(await urgent_waits(context, low_seconds))
        _say(
            "urgent beside a backlog",
            backlog=BACKLOG,
            low_seconds=low_seconds,
            at_once=BURST,
            p50_ms=round(statistics.median(waits) * 1000, 1),
            p99_ms=round(waits[int(len(waits) * 0.99)] * 1000, 1),
            max_ms=round(waits[-1] * 1000, 1),
        )


async def measure_fair(context: WorkerContext) -> None:
    """A venue has queued thousands for each of its providers; then another queues a single operation."""
    noisy, other = uuid4(), uuid4()
    await _fill(context, [_wanted(noisy, provider=f"provider-{number % 14}") for number in range(BACKLOG)])
    order: list[UUID] = []
    there = asyncio.Event()

    async def run(context: object, run: Run) -> None:
        order.append(run.claim.venue_id)
        if run.claim.venue_id == other:
            there.set()
        await asyncio.sleep(0.005)

    async with _serving(context, run):
        while len(order) < 100:  # noqa: ASYNC110 - a benchmark polls
            await asyncio.sleep(0.01)
        before, queued = len(order), time.perf_counter()
        await announce(context.redis, await _enqueue(context, [_wanted(other)]))
        await there.wait()
        waited = time.perf_counter() - queued
    _say("fair", backlog=BACKLOG, overtaken_by=order.index(other) - before, wait_ms=round(waited * 1000, 1))


async def measure_hanging(context: WorkerContext) -> None:
    await _fill(context, [_wanted(provider="hanging") for _ in range(BACKLOG)])
    queued: dict[UUID, float] = {}
    waits: list[float] = []
    hanging = 0

    async def run(context: object, run: Run) -> None:
        nonlocal hanging
        if run.claim.provider == "hanging":
            hanging += 1
            await asyncio.sleep(3600)
        waits.append(time.perf_counter() - queued[run.claim.operation_id])

    async with _serving(context, run):
        while not hanging:  # noqa: ASYNC110 - a benchmark polls
            await asyncio.sleep(0.01)
        for _ in range(100):
            found = await _enqueue(context, [_wanted()])
            queued[found[0].id] = time.perf_counter()
            await announce(context.redis, found)
            await asyncio.sleep(0.02)
        while len(waits) < 100:  # noqa: ASYNC110 - a benchmark polls
            await asyncio.sleep(0.01)
    _say(
        "another provider hangs",
        slots=SLOTS,
        slots_it_holds=hanging,
        p50_ms=round(statistics.median(waits) * 1000, 1),
        max_ms=round(max(waits) * 1000, 1),
    )


async def measure_bulk(context: WorkerContext, address: str) -> None:
    """Write a hundred thousand operations and announce them, beside a COPY of the same rows."""
    wanted = [_wanted() for _ in range(BULK)]
    seconds: dict[str, float] = {}

    await _empty(context)
    started = time.perf_counter()
    found = await _enqueue(context, wanted)
    seconds["enqueue"] = time.perf_counter() - started
    started = time.perf_counter()
    await announce(context.redis, found)
    seconds["announce"] = time.perf_counter() - started
    await _empty(context)
    rows = [(each.venue_id, each.provider, "update", each.entity_type, "{}", "LOW") for each in wanted]
    connection = await asyncpg.connect(address)
    try:
        started = time.perf_counter()
        await connection.copy_records_to_table("sync_queue", records=rows, columns=COPIED)
        seconds["copy"] = time.perf_counter() - started
    finally:
        await connection.close()
    await _empty(context)
    _say(
        "bulk enqueue",
        operations=BULK,
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
        ratio=round(seconds["copy"] / seconds["enqueue"], 2),
    )


async def measure(settings: Settings, redis_url: str, database_url: str, wanted: Sequence[str]) -> None:
    """Print every measurement, or those that are named."""
    address = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with open_worker_context(settings, application_name="bench", connections=2 * SLOTS + 5) as context:
        cases = {
            "throughput": lambda: measure_throughput(context, redis_url, address),
            "urgent": lambda: measure_urgent(context),
            "fair": lambda: measure_fair(context),
            "hanging": lambda: measure_hanging(context),
            "bulk": lambda: measure_bulk(context, address),
        }
        for name in wanted or cases:
            await cases[name]()


def main() -> None:
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        Path(folder).chmod(0o711)
        with embedded_stores(Path(folder), database_url=None, redis_url=None) as stores:
            upgrade(stores.database_url)
            settings = read_settings(
                {
                    "HUB_ENV": "test",
                    "DATABASE_URL": stores.database_url,
                    "REDIS_URL": stores.redis_url,
                    "JWT_SECRET": secrets.token_hex(32),
                    "ENCRYPTION_KEY": secrets.token_hex(32),
                }
            )
            # As `hub worker` runs.
            uvloop.run(measure(settings, stores.redis_url, stores.database_url, sys.argv[1:]))


if __name__ == "__main__":
    main()
