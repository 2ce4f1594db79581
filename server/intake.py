"""Take webhooks in: deliveries that come at the same time share one transaction.

A delivery is acknowledged only after that transaction is committed. While one is under way the next
deliveries gather, so the busier it is, the more share a commit; when enough have gathered, their transaction
begins beside the first. Workers are told afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import asyncpg
import structlog
from redis.asyncio import Redis

from engine.errors import MalformedDeliveryError
from server.db.engine import is_unstorable
from server.db.reads import Reads
from server.errors import QueueFullError, StoreUnavailableError
from server.services import webhooks
from server.services.operations import Due
from server.services.webhooks import Arrival
from server.worker.relay import announce

log = structlog.get_logger(__name__)

AT_ONCE = 200  # deliveries in one transaction
TRANSACTIONS = 2  # under way at the same time
ENOUGH = 8  # deliveries that are worth a transaction beside another
LOOK_SECONDS = 0.05  # between two looks at whose time is over
MOST_WAITING = 5000  # deliveries; more are refused, and their providers send them again
STATEMENT_SECONDS = 10.0
# Faults of one delivery, and whatever is known to keep some from being stored; TimeoutError is an OSError.
_OF_ONE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError)
_NOT_STORED = (asyncpg.PostgresError, asyncpg.InternalClientError, StoreUnavailableError, ValueError, OSError)


@dataclass(slots=True)
class _Waiting:
    arrival: Arrival
    stored: asyncio.Future[None]
    until: float  # on the loop's clock


class Intake:
    """One for each process. At the end of `async with`, what has come in is stored."""

    def __init__(self, reads: Reads, redis: Redis, *, depth: int = 0) -> None:
        self._reads = reads
        self._redis = redis
        self._depth = depth  # operations of one integration that may wait; 0 for any number
        self._waiting: list[_Waiting] = []
        self._storing: dict[asyncio.Task[None], Sequence[_Waiting]] = {}
        self._beginning = False
        self._clock: asyncio.TimerHandle | None = None
        self._stopping = False
        self._untold: list[Due] = []
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        while self._waiting or self._storing:
            self._begin()
            await asyncio.sleep(0)
            if self._storing:
                await asyncio.wait(self._storing)
        if self._clock is not None:
            self._clock.cancel()
        if self._telling is not None:
            await self._telling

    async def accept(self, arrival: Arrival, seconds: float) -> None:
        """Return once a delivery is stored for good.

        Raises StoreUnavailableError when that takes longer than `seconds`, or can't be done now. It may have
        been stored all the same: the provider's next try then is a duplicate. Raises QueueFullError when too
        much waits for its connection, and MalformedDeliveryError for a text no database takes.
        """
        if self._stopping or len(self._waiting) >= MOST_WAITING:
            raise StoreUnavailableError("too much comes in just now: send it again later")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(arrival, loop.create_future(), loop.time() + seconds)
        self._waiting.append(waiting)
        if not self._beginning and (not self._storing or len(self._waiting) == ENOUGH):
            self._beginning = True
            loop.call_soon(self._begin)  # with all that come in the same turn of the loop
        if self._clock is None:  # one for all: a timer for each costs more than all that is done here
            self._clock = loop.call_later(LOOK_SECONDS, self._give_up)
        await waiting.stored

    def _begin(self, ended: asyncio.Task[None] | None = None) -> None:
        """Begin a transaction if there is room for one and enough for it; one under way may have ended."""
        self._beginning = False
        if ended is not None:
            del self._storing[ended]
        while self._waiting and len(self._storing) < TRANSACTIONS:
            if self._storing and len(self._waiting) < ENOUGH and not self._stopping:
                return
            some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            # Nobody waits any more for one that took too long: its provider was told to send it again.
            some = [each for each in some if not each.stored.done()]
            if some:
                task = asyncio.create_task(self._store(some))
                self._storing[task] = some
                task.add_done_callback(self._begin)

    def _give_up(self) -> None:
        """Tell those whose time is over that they are to be sent again."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for each in chain(self._waiting, *self._storing.values()):
            if each.until <= now and not each.stored.done():
                each.stored.set_exception(
                    StoreUnavailableError("the delivery couldn't be stored in time: send it again")
                )
        open_ = self._waiting or self._storing
        self._clock = loop.call_later(LOOK_SECONDS, self._give_up) if open_ else None

    async def _store(self, some: Sequence[_Waiting]) -> None:
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                stored = await webhooks.store(self._reads, [each.arrival for each in some], self._depth)
        except Exception as error:  # whatever it is, the deliveries after these are stored
            known = isinstance(error, _NOT_STORED)
            log.log(
                logging.WARNING if known else logging.ERROR,
                "webhooks.not_stored",
                deliveries=len(some),
                error=type(error).__name__,
                exc_info=None if known else error,
            )
            unstorable = is_unstorable(error)
            if len(some) > 1 and (isinstance(error, _OF_ONE) or not known):
                for each in some:  # the fault is of one of them, or there is none but here
                    await self._store([each])
                return
            for each in some:
                if not each.stored.done():
                    each.stored.set_exception(
                        MalformedDeliveryError("the delivery has a character that can't be stored")
                        if unstorable
                        else StoreUnavailableError("the delivery can't be stored now: send it again later")
                    )
            return
        for number, each in enumerate(some):
            if each.stored.done():
                continue
            if number in stored.refused:
                each.stored.set_exception(
                    QueueFullError("too much waits for this connection already: send it again later")
                )
            else:
                each.stored.set_result(None)
        self._untold += stored.operations
        if self._telling is None and self._untold:
            self._telling = asyncio.create_task(self._tell())
        if stored.conflicts:
            log.warning("webhooks.conflict", events=stored.conflicts)

    async def _tell(self) -> None:
        """Tell workers, while the next deliveries are stored; what they aren't told of, a sweep finds."""
        try:
            while self._untold:
                some, self._untold = self._untold, []
                try:
                    await announce(self._redis, some)
                except Exception as error:
                    log.error("webhooks.not_told", operations=len(some), exc_info=error)
        finally:
            self._telling = None
