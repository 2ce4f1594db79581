"""Keep what a worker holds, and write down how it ended: for all of its operations together.

Ends that come at the same time share a transaction, and while one is under way the next gather: the busier a
worker is, the more share a commit. One statement extends the leases of everything that is being worked.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError, RateLimitedError, StoppedError
from server import metering
from server.db.models import OperationStatus
from server.errors import ServerError, StoreUnavailableError
from server.services import breaker, operations, runs
from server.services.breaker import Heard
from server.services.operations import Claim, End, Hold
from server.services.runs import Ended, Run
from server.worker import relay
from server.worker.context import WorkerContext

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 0.5  # between two writes of a run's progress
HEARTBEAT_SECONDS = 2.0  # at most, between two looks at whether somebody asked to stop
ENDING_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between tries to write down an end
MAKES_WAY_AFTER = 2.0  # seconds in which a run gets something done before it gives way
AT_ONCE = 100  # ends in one transaction


class UnexpectedError(ServerError):
    """Something nobody foresaw; the log has it."""

    retryable = True


@dataclass(slots=True)
class Attempt:
    """A run in this process: its task, and why it should end before its own end, if it should."""

    run: Run
    task: asyncio.Task[None]
    extended: float  # the monotonic time at which its lease was last extended
    began: float = 0.0  # likewise
    asked_to_stop: bool = False
    lost: bool = False

    @property
    def claim(self) -> Claim:
        return self.run.claim

    def lose(self) -> None:
        """Cut it off: another worker may hold its operation by now."""
        self.lost = True
        self.task.cancel()


def error_of(attempt: Attempt) -> HubError | None:
    """Return how an attempt's task ended as one of our errors; None when it came to its own end."""
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
    return UnexpectedError("an unexpected error stopped the run: the log of its worker says which")


# --- leases


async def keep_leases(context: WorkerContext, attempts: Mapping[UUID, Attempt]) -> None:
    """Save progress and extend leases while there are attempts; cut off those whose lease is lost."""
    clock, lease = context.clock, context.lease.total_seconds()
    every = min(lease / 3, HEARTBEAT_SECONDS)
    alone: set[asyncio.Task[None]] = set()
    try:
        while attempts:
            await clock.sleep(min(PROGRESS_SECONDS, every))
            now = clock.monotonic()
            due = [
                attempt
                for attempt in attempts.values()
                if not attempt.lost and (attempt.run.news or now - attempt.extended >= every)
            ]
            for attempt in await _beat(context, due) if due else ():
                # Its row is locked, most often by a page being saved: the others don't wait for that.
                alone.add(task := asyncio.create_task(_beat_alone(context, attempt)))
                task.add_done_callback(alone.discard)
    finally:
        for task in alone:
            task.cancel()


async def _beat(context: WorkerContext, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Extend the leases of some attempts in one transaction; returns those whose rows are locked."""
    progress = {each.claim.operation_id: each.run.progress() for each in attempts if each.run.news}
    for attempt in attempts:
        attempt.run.news = False
    asked_at = context.clock.monotonic()
    used = [(each.run.usage, each.run.usage.take(), each.claim) for each in _in_order(attempts)]
    holds: Mapping[UUID, Hold | None] = {}
    written = False
    try:
        async with asyncio.timeout(context.lease.total_seconds() / 3), context.sessions.begin() as session:
            holds = await operations.heartbeats(session, [each.claim for each in attempts], progress)
            for _, taken, claim in used:
                await metering.add(session, claim.venue_id, claim.provider, taken)
        written = True
    except Exception as error:
        holds = {}
        log.warning("operation.heartbeat_failed", operations=len(attempts), error=type(error).__name__)
    finally:
        if not written:
            for usage, taken, _ in used:
                usage.give_back(taken)
    locked = []
    for attempt in attempts:
        operation_id = attempt.claim.operation_id
        hold = holds.get(operation_id)
        if hold is None:
            attempt.run.news = attempt.run.news or operation_id in progress
            if written:
                locked.append(attempt)
        _learn(context, attempt, hold, asked_at)
    return locked


async def _beat_alone(context: WorkerContext, attempt: Attempt) -> None:
    """Extend one lease, waiting for whoever has locked its row."""
    asked_at = context.clock.monotonic()
    try:
        async with asyncio.timeout(context.lease.total_seconds() / 3), context.sessions.begin() as session:
            hold = await operations.heartbeat(session, attempt.claim)
    except Exception as error:
        log.warning("operation.heartbeat_failed", operations=1, error=type(error).__name__)
        return
    _learn(context, attempt, hold, asked_at)


def _learn(context: WorkerContext, attempt: Attempt, hold: Hold | None, asked_at: float) -> None:
    if hold is None and context.clock.monotonic() - attempt.extended > attempt.claim.lease.total_seconds():
        hold = Hold.LOST  # nothing is known, and somebody else may hold it by now
    if hold is Hold.LOST:
        attempt.lose()
    elif hold is not None:
        attempt.extended = asked_at
    if hold is Hold.STOP:
        attempt.asked_to_stop = attempt.run.stopping = True
    elif hold is Hold.MAKE_WAY and context.clock.monotonic() - attempt.began >= MAKES_WAY_AFTER:
        # At the end of its page it is given back, and goes on from there after what is more urgent.
        attempt.run.stopping = True


# --- ends


@dataclass(slots=True)
class _Waiting:
    attempt: Attempt
    error: HubError | None
    written: asyncio.Future[OperationStatus | None]


class Endings:
    """Writes the ends of one worker's attempts. It works only while there are some to write."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[object]] = set()
        self._announcing: set[asyncio.Task[None]] = set()
        self._writing = False

    async def write(self, attempt: Attempt, error: HubError | None) -> OperationStatus | None:
        """Return once an end is written: what became of the operation, None when its lease was lost.

        Tries again while a store is away; raises the last error when that doesn't help.
        """
        waiting = _Waiting(attempt, error, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._writing:
            self._writing = True
            self._begin(self._work())
        return await waiting.written

    async def announced(self) -> None:
        """Return when what waited for the ends that are written by now is announced."""
        await asyncio.gather(*self._announcing, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # for those that end in the same moment
                # Two of one integration would be two changes of the same row in one statement.
                whose: dict[tuple[UUID, str], _Waiting] = {}
                for each in self._waiting[:AT_ONCE]:
                    whose.setdefault((each.attempt.claim.venue_id, each.attempt.claim.provider), each)
                some = list(whose.values())
                taken = set(map(id, some))
                self._waiting = [each for each in self._waiting if id(each) not in taken]
                await self._store(some)
        finally:
            self._writing = False

    async def _store(self, some: Sequence[_Waiting]) -> None:
        for wait in (*ENDING_WAITS, None):
            try:
                statuses = await self._commit(some)
            except Exception as failure:
                if len(some) > 1 and not _store_is_away(failure):
                    for each in some:  # the fault is of one of them
                        self._begin(self._store([each]))
                    return
                if wait is None:
                    for each in some:
                        if not each.written.done():
                            each.written.set_exception(failure)
                    return
                await self._context.clock.sleep(wait)
            else:
                for each in some:
                    if not each.written.done():
                        each.written.set_result(statuses.get(each.attempt.claim.operation_id))
                self._announcing.add(task := asyncio.create_task(self._announce_next(some)))
                task.add_done_callback(self._announcing.discard)
                return

    async def _announce_next(self, some: Sequence[_Waiting]) -> None:
        """Announce what waited for these to end; a sweep would find it, later."""
        context = self._context
        whose = {(each.attempt.claim.venue_id, each.attempt.claim.provider) for each in some}
        try:
            following = await operations.next_of(context.ledger, whose)
        except Exception as error:
            log.warning("relay.announce_failed", operations=len(whose), error=type(error).__name__)
            return
        if following:
            await relay.announce(context.redis, following)

    async def _commit(self, some: Sequence[_Waiting]) -> dict[UUID, OperationStatus]:
        used = [
            (each.run.usage, each.run.usage.take(), each.claim)
            for each in _in_order([each.attempt for each in some])
        ]
        committed, held = False, set[UUID]()
        try:
            async with self._context.sessions.begin() as session:
                ends = [(each, await _end_of(session, each.attempt, each.error)) for each in some]
                held = await operations.write_ends(session, [end for _, end in ends])
                statuses = {
                    end.claim.operation_id: end.status for _, end in ends if end.claim.operation_id in held
                }
                await runs.record(
                    session,
                    [
                        Ended(each.attempt.run, end.status, None if _is_stop(each.error) else each.error)
                        for each, end in ends
                        if end.claim.operation_id in held and not _is_release(each)
                    ],
                )
                for _, taken, claim in used:
                    if claim.operation_id in held:
                        await metering.add(session, claim.venue_id, claim.provider, taken)
            committed = True
        finally:
            for usage, taken, claim in used:
                if not committed or claim.operation_id not in held:
                    usage.give_back(taken)
        return statuses


async def _end_of(session: AsyncSession, attempt: Attempt, error: HubError | None) -> End:
    run, claim = attempt.run, attempt.claim
    progress = run.progress()
    if isinstance(error, StoppedError):
        if attempt.asked_to_stop:
            return operations.paused(claim, run.result(), progress)
        return operations.released(claim, progress)
    if error is None:
        return operations.completed(claim, run.result(), progress)
    # One that went to see whether the provider is there again isn't to blame that it isn't.
    silent = runs.heard_of(run, error) is Heard.SILENCE
    return operations.failed(
        claim,
        error,
        result=run.result(),
        progress=progress,
        retry_after=error.retry_after if isinstance(error, RateLimitedError) else None,
        free=silent and not await breaker.is_closed(session, claim.venue_id, claim.provider),
    )


def _is_stop(error: HubError | None) -> bool:
    return isinstance(error, StoppedError)


def _is_release(ended: _Waiting) -> bool:
    return _is_stop(ended.error) and not ended.attempt.asked_to_stop


def _store_is_away(failure: Exception) -> bool:
    return isinstance(failure, OSError) or (
        isinstance(failure, DBAPIError) and failure.connection_invalidated
    )


def _in_order(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return attempts so that two who lock what is their integrations' never wait for each other."""
    return sorted(attempts, key=lambda each: (each.claim.venue_id, each.claim.provider))
