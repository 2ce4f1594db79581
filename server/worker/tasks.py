"""Work one operation: claim it, keep its lease while it runs, and write down how it ended.

Whatever happens, the operation survives: a worker that can't write the end lets its lease run out, and the
next one goes on from the last page that was saved.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError, LeaseLostError, RateLimitedError, StoppedError
from server import metering
from server.db.models import OperationStatus
from server.errors import ServerError, StoreUnavailableError
from server.services import breaker, operations, runs
from server.services.breaker import Heard
from server.services.operations import LANES, Hold
from server.services.runs import Run
from server.worker.context import WorkerContext

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 0.5  # between two writes of a run's progress
HEARTBEAT_SECONDS = 2.0  # at most, between two looks at whether somebody asked to stop
ENDING_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between tries to write down the end


class UnexpectedError(ServerError):
    """Something nobody foresaw; the log has it."""

    retryable = True


@dataclass(slots=True)
class Attempt:
    """A run in this process: its task, and why it should end before its own end, if it should."""

    run: Run
    task: asyncio.Task[None]
    asked_to_stop: bool = False
    lost: bool = False


@dataclass(slots=True)
class Worker:
    """One worker process. Set `stopping` and it takes nothing new; `attempts` is what it is doing."""

    context: WorkerContext
    owner: str
    lanes: Sequence[str] = LANES
    run: runs.Runner = runs.run_operation
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    attempts: dict[UUID, Attempt] = field(default_factory=dict)

    def stop(self) -> None:
        """Take nothing new, and end what is running at the next page."""
        self.stopping.set()
        for attempt in self.attempts.values():
            attempt.run.stopping = True

    def abandon(self) -> None:
        """Don't wait for the next page."""
        for attempt in self.attempts.values():
            attempt.task.cancel()


async def work(worker: Worker, operation_id: UUID) -> None:
    """Work an operation if it is to be had. Raises nothing but cancellation."""
    if worker.stopping.is_set():
        return
    context = worker.context
    try:
        async with context.sessions.begin() as session:
            claim = await operations.claim(
                session, operation_id, owner=worker.owner, lease=context.lease, lanes=worker.lanes
            )
    except Exception as error:  # a store is away; a sweep announces the operation again
        log.warning("operation.claim_failed", operation_id=str(operation_id), error=type(error).__name__)
        return
    if claim is None:
        return
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
            attempt = Attempt(run, asyncio.create_task(worker.run(context, run)))
        worker.attempts[operation_id] = attempt
        keeper = asyncio.create_task(_keep_lease(context, attempt))
        try:
            await asyncio.wait({attempt.task})
            await _end(context, attempt)
        finally:
            del worker.attempts[operation_id]
            for task in (attempt.task, keeper):
                task.cancel()
            await asyncio.gather(attempt.task, keeper, return_exceptions=True)
            # Of an attempt whose end it couldn't write, or that called on while it was written.
            await metering.write(context.sessions, claim.venue_id, claim.provider, run.usage)


async def _keep_lease(context: WorkerContext, attempt: Attempt) -> None:
    """Save progress and extend the lease for as long as the run goes on; cancel it when the lease is lost."""
    run, claim, clock = attempt.run, attempt.run.claim, context.clock
    lease = claim.lease.total_seconds()
    every = min(lease / 3, HEARTBEAT_SECONDS)
    extended = clock.monotonic()
    while True:
        await clock.sleep(min(PROGRESS_SECONDS, every))
        if not run.news and clock.monotonic() - extended < every:
            continue
        progress = run.progress() if run.news else None
        run.news = False
        asked_at = clock.monotonic()
        hold: Hold | None = None
        used = run.usage.take()
        try:
            async with asyncio.timeout(lease / 3), context.sessions.begin() as session:
                hold = await operations.heartbeat(session, claim, progress)
                await metering.add(session, claim.venue_id, claim.provider, used)
        except asyncio.CancelledError:
            run.usage.give_back(used)
            raise
        except Exception as error:
            run.usage.give_back(used)
            run.news = run.news or progress is not None
            log.warning("operation.heartbeat_failed", error=type(error).__name__)
            if clock.monotonic() - extended > lease:  # somebody else may hold it by now
                hold = Hold.LOST
        else:
            extended = asked_at
        if hold is Hold.STOP:
            attempt.asked_to_stop = run.stopping = True
        elif hold is Hold.LOST:
            attempt.lost = True
            attempt.task.cancel()
            return


async def _end(context: WorkerContext, attempt: Attempt) -> None:
    """Write down the end in one transaction, trying again while a store is away."""
    error = _error(attempt)
    if attempt.lost or isinstance(error, LeaseLostError):
        await _lost(context, attempt)
        return
    run = attempt.run
    for wait in (*ENDING_WAITS, None):
        used = run.usage.take()
        try:
            async with context.sessions.begin() as session:
                status = await _write_end(session, attempt, error)
                await metering.add(session, run.claim.venue_id, run.claim.provider, used)
        except LeaseLostError:
            run.usage.give_back(used)  # made they were, whoever goes on
            await _lost(context, attempt)
            return
        except Exception as failure:
            run.usage.give_back(used)
            if wait is None:
                log.error("operation.end_not_written", error=type(failure).__name__)
                return
            await context.clock.sleep(wait)
        else:
            stopped = isinstance(error, StoppedError)  # as asked, which is no error
            code = None if error is None or stopped else error.code
            log.info("operation.ended", status=status.value, error=code)
            return


async def _lost(context: WorkerContext, attempt: Attempt) -> None:
    """Say that this worker is alive: the operation isn't what it came to grief by."""
    log.warning("operation.lost")
    try:
        async with context.sessions.begin() as session:
            await operations.outlived(session, attempt.run.claim)
    except Exception as error:  # a store is away, which is why the lease was lost most often
        log.warning("operation.loss_not_corrected", error=type(error).__name__)


async def _write_end(session: AsyncSession, attempt: Attempt, error: HubError | None) -> OperationStatus:
    run, claim = attempt.run, attempt.run.claim
    result, progress = run.result(), run.progress()
    if isinstance(error, StoppedError) and not attempt.asked_to_stop:
        await operations.release(session, claim, progress=progress)
        return OperationStatus.PENDING
    if isinstance(error, StoppedError):
        error, status = None, OperationStatus.PAUSED
        await operations.pause(session, claim, result, progress=progress)
    elif error is None:
        status = OperationStatus.COMPLETED
        await operations.complete(session, claim, result, progress=progress)
    else:
        retry_after = error.retry_after if isinstance(error, RateLimitedError) else None
        # One that went to see whether the provider is there again isn't to blame that it isn't.
        silent = runs.heard_of(run, error) is Heard.SILENCE
        free = silent and not await breaker.is_closed(session, claim.venue_id, claim.provider)
        status = await operations.fail(
            session, claim, error, result=result, progress=progress, retry_after=retry_after, free=free
        )
    await runs.record(session, run, status, error)
    return status


def _error(attempt: Attempt) -> HubError | None:
    """Return how the run's task ended as one of our errors; None when it came to its own end."""
    if attempt.task.cancelled():
        return StoppedError("the worker is shutting down")
    error = attempt.task.exception()
    while isinstance(error, BaseExceptionGroup):  # of calls that went at once; the first says what happened
        error = error.exceptions[0]
    if error is None or isinstance(error, HubError):
        return error
    # The text of a foreign exception may hold a record or a credential, so only its type and place are told.
    place = "".join(traceback.format_tb(error.__traceback__, limit=-3))
    log.error("operation.crashed", error=type(error).__name__, place=place)
    if isinstance(error, SQLAlchemyError | RedisError | OSError):
        return StoreUnavailableError("a store could not be reached")
    return UnexpectedError(f"an unexpected error stopped the run ({type(error).__name__})")
