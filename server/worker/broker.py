"""Four lanes over Redis as a taskiq broker: the more urgent lane first, without starving the others.

A message is the ids of some operations and nothing else, so whoever can write to Redis can at most wake a
worker. Messages may be lost, late or repeated: the worker claims the operations in PostgreSQL before it
works, and sweeps announce again what was lost. So there is nothing to acknowledge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Literal, TypeVar
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from taskiq import AsyncBroker, BrokerMessage

from server.services.operations import Due
from server.worker import relay
from server.worker.relay import SWEEP_SECONDS, bell_key
from server.worker.slots import Slots

T = TypeVar("T")

log = structlog.get_logger(__name__)

WORK = "work"  # the one task there is
_PARTLY_FULL_SECONDS = 0.05  # for which some lanes aren't listened to: a slot may have become free


class LaneBroker(AsyncBroker):
    """Hands out as many ids at a time as the worker has free slots for, and none when it has none.

    `sweep` is called when all lanes are empty. While Redis is away, `due` is asked instead.
    """

    def __init__(
        self,
        redis: Redis,
        slots: Slots,
        *,
        sweep: Callable[[], Awaitable[object]],
        due: Callable[[], Awaitable[Sequence[Due]]],
        wait: float = SWEEP_SECONDS,
    ) -> None:
        super().__init__()
        self._redis = redis
        self._slots = slots
        self._sweep = sweep
        self._due = due
        self._wait = wait
        self._away = False
        self._bell: asyncio.Task[str | None] | None = None
        self._freed: asyncio.Task[Literal[True]] | None = None

    async def kick(self, message: BrokerMessage) -> None:
        """Put the message's operation into the lane that its labels name, with its provider and venue."""
        labels, operation_id = message.labels, UUID(orjson.loads(message.message)["args"][0])
        due = Due(operation_id, UUID(labels["venue"]), labels["provider"], labels["lane"], 0.0)
        await relay.announce(self._redis, [due])

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Yield messages for as long as somebody asks; neither store's absence ends it."""
        try:
            while True:
                self._slots.freed.clear()
                if found := await self._next():
                    for each in found:
                        self._slots.take(each)
                    yield _message([each.id for each in found])
                else:
                    await self._look_out()
        finally:
            waiting = [task for task in (self._bell, self._freed) if task is not None]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            self._bell = self._freed = None

    async def _next(self) -> Sequence[Due]:
        ask = self._slots.ask()
        if ask is None:
            return ()
        try:
            found = await relay.take(self._redis, ask)
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("lanes.unreachable", error=type(error).__name__)
            self._away = True
            await asyncio.sleep(self._wait)
            return self._slots.fitting(await _or_none(self._due()) or ())
        self._away = False
        return found

    async def _look_out(self) -> None:
        """Wait until there is something in a lane that has room, or a slot becomes free, or for a moment."""
        if self._bell is None and (lanes := self._slots.with_room()):
            self._bell = asyncio.create_task(self._hear(lanes))
        if self._freed is None:
            self._freed = asyncio.create_task(self._slots.freed.wait())
        both = {self._freed, self._bell} if self._bell else {self._freed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self._freed.done():
            self._freed = None
        if self._bell is None or not self._bell.done():
            return
        lane = await self._bell
        self._bell = None
        if lane is not None and lane not in self._slots.with_room():
            await _or_none(self._redis.lpush(bell_key(lane), 1))  # for somebody else

    async def _hear(self, lanes: Sequence[str]) -> str | None:
        """Return the lane whose bell rang; None when none did for a while, which is the time to sweep."""
        all_open = len(lanes) == len(self._slots.lanes)
        wait = self._wait if all_open else min(self._wait, _PARTLY_FULL_SECONDS)
        try:
            rung = await self._redis.blpop([bell_key(lane) for lane in lanes], timeout=wait)
        except (RedisError, OSError):
            return None  # the next look into the lanes says so
        if rung is None:
            if all_open:
                await _or_none(self._sweep())
            return None
        key = rung[0].decode() if isinstance(rung[0], bytes) else str(rung[0])
        return key.removeprefix(bell_key(""))


async def _or_none(call: Awaitable[T]) -> T | None:
    """Await it; when a store is away, which shows in exceptions of many kinds, the next turn tries again."""
    try:
        return await call
    except Exception as error:
        log.warning("lanes.sweep_failed", error=type(error).__name__)
        return None


def _message(operation_ids: Sequence[UUID]) -> bytes:
    ids = [str(each) for each in operation_ids]
    return orjson.dumps({"task_id": ids[0], "task_name": WORK, "labels": {}, "args": [ids], "kwargs": {}})
