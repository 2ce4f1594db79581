"""The worker and scheduler processes: `hub worker` and `hub scheduler`."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import structlog
from taskiq.receiver import Receiver

from server.services import operations
from server.services.operations import LANES, Due
from server.settings import Settings
from server.telemetry import configure_logging
from server.worker import relay
from server.worker.broker import WORK, LaneBroker
from server.worker.context import open_worker_context
from server.worker.schedule import run_jobs
from server.worker.slots import Slots
from server.worker.tasks import Worker, work
from server.worker.telling import keep_telling

log = structlog.get_logger(__name__)

SPARE_CONNECTIONS = 5  # besides two for each operation: one works, one keeps its lease
SCHEDULER_CONNECTIONS = 20  # half of them for tokens being renewed, each while its provider is asked
GRACE_SECONDS = 6.0  # for runs to reach the end of a page; then they are cut off and begun again elsewhere


async def run_worker(
    settings: Settings,
    *,
    lanes: Sequence[str] | None = None,
    concurrency: int | None = None,
    grace: float = GRACE_SECONDS,
) -> None:
    """Work operations of these lanes (None: all) until SIGTERM or SIGINT. Neither store's absence ends it."""
    configure_logging(settings.log_level)
    concurrency = concurrency or settings.worker_concurrency
    async with open_worker_context(
        settings,
        application_name="integration-hub worker",
        connections=2 * concurrency + SPARE_CONNECTIONS,
    ) as context:
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        worker = Worker(context, owner, tuple(lanes or LANES))
        with _stopping_on_signals(worker.stop):
            await serve(worker, concurrency=concurrency, grace=grace)


async def serve(worker: Worker, *, concurrency: int, grace: float) -> None:
    """Take operations until `worker.stop` is called, then end what is running within `grace` seconds."""
    settings = worker.context.settings
    worker.slots = Slots.of(
        concurrency,
        lanes=worker.lanes,
        provider_share=settings.worker_provider_share,
        venue_share=settings.worker_venue_share,
    )
    broker = lane_broker(worker)
    receiver = Receiver(broker, max_async_tasks=worker.slots.messages)
    listening = asyncio.create_task(receiver.listen(worker.stopping))
    stopping = asyncio.create_task(worker.stopping.wait())
    log.info("worker.started", owner=worker.owner, lanes=list(worker.lanes), concurrency=concurrency)
    try:
        await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            await asyncio.wait({listening}, timeout=grace)
        if not listening.done():
            worker.abandon()
        await listening
    finally:
        stopping.cancel()
        await broker.shutdown()
    log.info("worker.stopped", owner=worker.owner)


def lane_broker(worker: Worker) -> LaneBroker:
    """Return the broker of one worker, with its one task."""
    context = worker.context

    async def sweep() -> None:
        await relay.sweep(context.sessions, context.redis, lanes=worker.lanes)

    async def due() -> list[Due]:
        async with context.sessions() as session:
            return await operations.due(session, lanes=worker.lanes)

    async def task(operation_ids: list[UUID]) -> None:
        await work(worker, *operation_ids)

    broker = LaneBroker(context.redis, worker.slots, sweep=sweep, due=due)
    broker.is_worker_process = True
    broker.register_task(task, task_name=WORK)
    return broker


async def run_scheduler(settings: Settings) -> None:
    """Run the jobs of `server.worker.schedule`, and tell the outside of events, until SIGTERM or SIGINT.

    Two of them do no harm.
    """
    configure_logging(settings.log_level)
    stopping = asyncio.Event()
    async with open_worker_context(
        settings, application_name="integration-hub scheduler", connections=SCHEDULER_CONNECTIONS
    ) as context:
        with _stopping_on_signals(stopping.set):
            log.info("scheduler.started")
            async with asyncio.TaskGroup() as group:
                group.create_task(run_jobs(context, stopping))
                group.create_task(keep_telling(context, stopping))
    log.info("scheduler.stopped")


@contextmanager
def _stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
