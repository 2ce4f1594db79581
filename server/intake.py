"""Take webhooks in: deliveries that come at the same time share one transaction.

A delivery is acknowledged only after that transaction is committed. While one is under way the next
deliveries gather, so the busier it is, the more share a commit. Workers are told afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import structlog
from redis.asyncio import Redis
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from engine.errors import MalformedDeliveryError
from server.db.engine import is_unstorable
from server.errors import QueueFullError, StoreUnavailableError
from server.services import webhooks
from server.services.webhooks import Arrival
from server.worker.relay import announce

log = structlog.get_logger(__name__)

AT_ONCE = 200  # deliveries in one transaction
MOST_WAITING = 5000  # deliveries; more are refused, and their providers send them again
STATEMENT_SECONDS = 10.0


@dataclass(slots=True)
class _Waiting:
    arrival: Arrival
    stored: asyncio.Future[None]


class Intake:
    """One for each process. `async with` starts it, and at the end stores what has come in."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], redis: Redis, *, depth: int = 0) -> None:
        self._sessions = sessions
        self._redis = redis
        self._depth = depth  # operations of one integration that may wait; 0 for any number
        self._waiting: list[_Waiting] = []
        self._there = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self._there.set()
        if self._task is not None:
            await self._task

    async def accept(self, arrival: Arrival, seconds: float) -> None:
        """Return once a delivery is stored for good.

        Raises StoreUnavailableError when that takes longer than `seconds`, or can't be done now. It may have
        been stored all the same: the provider's next try then is a duplicate. Raises QueueFullError when too
        much waits for its connection, and MalformedDeliveryError for a text no database takes.
        """
        if self._stopping or len(self._waiting) >= MOST_WAITING:
            raise StoreUnavailableError("too much comes in just now: send it again later")
        waiting = _Waiting(arrival, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._there.set()
        try:
            await asyncio.wait_for(waiting.stored, seconds)
        except TimeoutError as error:
            raise StoreUnavailableError("the delivery couldn't be stored in time: send it again") from error

    async def _work(self) -> None:
        while True:
            await self._there.wait()
            some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            if not self._waiting and not self._stopping:
                self._there.clear()
            # Nobody waits any more for one that took too long: its provider was told to send it again.
            some = [each for each in some if not each.stored.done()]
            if some:
                await self._store(some)
            elif self._stopping and not self._waiting:
                return

    async def _store(self, some: Sequence[_Waiting]) -> None:
        try:
            async with asyncio.timeout(STATEMENT_SECONDS), self._sessions.begin() as session:
                stored = await webhooks.store(session, [each.arrival for each in some], self._depth)
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            log.warning("webhooks.not_stored", deliveries=len(some), error=type(error).__name__)
            unstorable = is_unstorable(error)
            if len(some) > 1 and (unstorable or isinstance(error, DataError | IntegrityError)):
                for each in some:  # the fault is of one of them
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
        if stored.operations:
            await announce(self._redis, stored.operations)
        if stored.conflicts:
            log.warning("webhooks.conflict", events=stored.conflicts)
