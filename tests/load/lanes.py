"""Measure the lanes: how many operations a worker gets through, and how soon urgent work starts.

Prints JSON lines. `throughput` compares a worker with empty runs (claim, lease, end, logs) with asyncpg alone
claiming and completing the same rows, on the same embedded stores with every commit on disk. `urgent` is the
time from the commit of a critical operation to the start of its run while a backlog of low ones drains.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import structlog
import uvloop
from sqlalchemy import func, insert, make_url, select, text

from server.db.migrate import upgrade
from server.db.models import Operation, OperationType, Priority
from server.embedded import embedded_stores
from server.services import operations
from server.services.runs import Run
from server.settings import Settings, read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.main import serve
from server.worker.relay import announce, sweep
from server.worker.tasks import Worker

OPERATIONS = 2_000
SLOTS = 10
URGENT = 20
LOW_RUN_SECONDS = 0.005

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


async def _fill(context: WorkerContext, count: int, priority: Priority = Priority.LOW) -> None:
    row = {
        "integration_type": "juniper",
        "operation_type": OperationType.SYNC,
        "entity_type": "full",
        "priority": priority,
    }
    async with context.sessions.begin() as session:
        await session.execute(text("TRUNCATE sync_queue, sync_logs"))
        await session.execute(insert(Operation), [{**row, "venue_id": uuid4()} for _ in range(count)])


async def _drained(context: WorkerContext) -> None:
    statement = select(func.count()).where(Operation.status != "completed")
    while True:
        async with context.sessions() as session:
            if not await session.scalar(statement):
                return
        await asyncio.sleep(0.05)


@asynccontextmanager
async def _serving(worker: Worker) -> AsyncIterator[None]:
    serving = asyncio.create_task(serve(worker, concurrency=SLOTS, grace=5))
    yield
    worker.stop()
    await serving


async def _empty(context: object, run: Run) -> None:
    return


async def worker_rate(context: WorkerContext) -> float:
    """Return how many operations a second one worker with empty runs gets through."""
    await _fill(context, OPERATIONS)
    await sweep(context.sessions, context.redis, limit=OPERATIONS)
    started = time.perf_counter()
    async with _serving(Worker(context, "bench", run=_empty)):
        await _drained(context)
        return OPERATIONS / (time.perf_counter() - started)


async def hand_rate(context: WorkerContext, database_url: str) -> float:
    """Return how many rows a second asyncpg alone claims and completes, in as many tasks."""
    await _fill(context, OPERATIONS)
    address = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(address, min_size=SLOTS, max_size=SLOTS) as pool:

        async def work() -> None:
            while (claimed := await pool.fetchrow(CLAIM)) is not None:
                await pool.execute(COMPLETE, claimed["id"], claimed["fencing_token"])

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(SLOTS)))
        return OPERATIONS / (time.perf_counter() - started)


async def urgent_waits(context: WorkerContext) -> list[float]:
    """Return the seconds from commit to start of critical operations beside a backlog of low ones."""
    await _fill(context, OPERATIONS)
    await sweep(context.sessions, context.redis, limit=OPERATIONS)
    committed: dict[object, float] = {}
    waits: list[float] = []

    async def run(context: object, run: Run) -> None:
        if run.claim.priority is Priority.CRITICAL:
            waits.append(time.perf_counter() - committed[run.claim.operation_id])
        else:
            await asyncio.sleep(LOW_RUN_SECONDS)

    async with _serving(Worker(context, "bench", run=run)):
        for _ in range(URGENT):
            async with context.sessions.begin() as session:
                operation = await operations.enqueue(
                    session,
                    venue_id=uuid4(),
                    provider="juniper",
                    operation_type=OperationType.SYNC,
                    entity_type="full",
                    payload={},
                    priority=Priority.CRITICAL,
                )
            committed[operation.id] = time.perf_counter()
            await announce(context.redis, operation.id, "critical")
            await asyncio.sleep(0.05)
        await _drained(context)
    return waits


async def measure(settings: Settings, database_url: str) -> None:
    """Print every measurement."""
    async with open_worker_context(settings, application_name="bench", connections=2 * SLOTS + 5) as context:
        await context.redis.flushdb()
        rates = {"worker": await worker_rate(context), "by_hand": await hand_rate(context, database_url)}
        print(
            json.dumps(
                {
                    "case": "lanes: throughput",
                    "operations": OPERATIONS,
                    "slots": SLOTS,
                    **{name: round(rate) for name, rate in rates.items()},
                    "ratio": round(rates["worker"] / rates["by_hand"], 2),
                }
            )
        )
        waits = await urgent_waits(context)
        print(
            json.dumps(
                {
                    "case": "lanes: urgent beside a backlog",
                    "backlog": OPERATIONS,
                    "p50_ms": round(statistics.median(waits) * 1000, 1),
                    "max_ms": round(max(waits) * 1000, 1),
                }
            )
        )


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
            uvloop.run(measure(settings, stores.database_url))  # as `hub worker` runs


if __name__ == "__main__":
    main()
