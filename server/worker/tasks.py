"""Work operations: claim them, keep their leases while they run, and write down how they ended.

Whatever happens, an operation survives: a worker that can't write the end lets its lease run out, and the
next one goes on from the last page that was saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import structlog

from engine.errors import LeaseLostError, StoppedError
from server import metering
from server.services import operations, runs
from server.services.operations import LANES, Claim
from server.services.runs import Run
from server.worker import relay
from server.worker.attempts import Attempt, Endings, error_of, keep_leases
from server.worker.context import WorkerContext
from server.worker.slots import Slots

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Worker:
    """One worker process. Set `stopping` and it takes nothing new; `attempts` is what it is doing."""

    context: WorkerContext
    owner: str
    lanes: Sequence[str] = LANES
    run: runs.Runner = runs.run_operation
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    attempts: dict[UUID, Attempt] = field(default_factory=dict)
    slots: Slots = field(default_factory=lambda: Slots.of(1))
    endings: Endings = field(init=False)
    keeper: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.endings = Endings(self.context)

    def stop(self) -> None:
        """Take nothing new, and end what is running at the next page."""
        self.stopping.set()
        for attempt in self.attempts.values():
            attempt.run.stopping = True

    def abandon(self) -> None:
        """Don't wait for the next page."""
        for attempt in self.attempts.values():
            attempt.task.cancel()


async def work(worker: Worker, *operation_ids: UUID) -> None:
    """Work those of some operations that are to be had. Raises nothing but cancellation."""
    claims: Sequence[Claim] = ()
    try:
        if not worker.stopping.is_set():
            claims = await _claim(worker, operation_ids)
    finally:
        claimed = {claim.operation_id for claim in claims}
        left = [worker.slots.forget(each) for each in operation_ids if each not in claimed]
    if worker.stopping.is_set():  # another worker needn't wait for a sweep to find what was taken in vain
        await relay.announce(worker.context.redis, [due for due in left if due is not None])
    if len(claims) == 1:
        await _attempt(worker, claims[0])
    elif claims:
        await asyncio.gather(*(_attempt(worker, claim) for claim in claims))
    await worker.endings.announced()


async def _claim(worker: Worker, operation_ids: Sequence[UUID]) -> Sequence[Claim]:
    context = worker.context
    try:
        return await operations.claim(
            context.ledger, operation_ids, owner=worker.owner, lease=context.lease, lanes=worker.lanes
        )
    except asyncpg.UniqueViolationError:
        # Another worker claims for one of these integrations in the same moment.
        if len(operation_ids) == 1:
            return ()
        return [claim for each in operation_ids for claim in await _claim(worker, [each])]
    except Exception as error:  # a store is away; a sweep announces the operations again
        log.warning("operation.claim_failed", operations=len(operation_ids), error=type(error).__name__)
        return ()


async def _attempt(worker: Worker, claim: Claim) -> None:
    context, operation_id = worker.context, claim.operation_id
    with structlog.contextvars.bound_contextvars(
        operation_id=str(operation_id),
        venue_id=str(claim.venue_id),
        provider=claim.provider,
        attempt=claim.attempts,
        correlation_id=claim.correlation_id,
        sync_id=None if claim.run_id is None else str(claim.run_id),
    ):
        log.info("operation.started", type=claim.operation_type.value)
        run = Run(claim, stopping=worker.stopping.is_set(), circuit=context.circuit)
        with metering.counting(run.usage):
            task = asyncio.create_task(worker.run(context, run))
        now = context.clock.monotonic()
        attempt = Attempt(run, task, extended=now, began=now)
        worker.attempts[operation_id] = attempt
        if worker.keeper is None or worker.keeper.done():
            worker.keeper = asyncio.create_task(keep_leases(context, worker.attempts))
        try:
            await asyncio.wait({task})
            worker.slots.finish(operation_id)
            await _end(worker, attempt)
        finally:
            del worker.attempts[operation_id]
            worker.slots.forget(operation_id)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Of an attempt whose end it couldn't write, or that called on while it was written.
            await metering.write(context.sessions, claim.venue_id, claim.provider, run.usage)


async def _end(worker: Worker, attempt: Attempt) -> None:
    error = error_of(attempt)
    status = None
    if not attempt.lost and not isinstance(error, LeaseLostError):
        try:
            status = await worker.endings.write(attempt, error)
        except Exception as failure:
            log.error("operation.end_not_written", error=type(failure).__name__)
            return
    if status is None:
        await _lost(worker.context, attempt.claim)
        return
    stopped = isinstance(error, StoppedError)  # as asked, which is no error
    log.info("operation.ended", status=status.value, error=None if error is None or stopped else error.code)


async def _lost(context: WorkerContext, claim: Claim) -> None:
    """Say that this worker is alive: the operation isn't what it came to grief by."""
    log.warning("operation.lost")
    try:
        async with context.sessions.begin() as session:
            await operations.outlived(session, claim)
    except Exception as error:  # a store is away, which is why the lease was lost most often
        log.warning("operation.loss_not_corrected", error=type(error).__name__)
