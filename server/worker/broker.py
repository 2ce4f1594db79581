"""Four lanes over Redis as a taskiq broker: the more urgent lane first, without starving the others.

A message is an operation's id and nothing else, so whoever can write to Redis can at most wake a worker.
Messages may be lost, late or repeated: the worker claims the operation in PostgreSQL before it works, and
sweeps announce again what was lost. So there is nothing to acknowledge.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from taskiq import AsyncBroker, BrokerMessage

from server.services.operations import LANES
from server.worker.relay import SWEEP_SECONDS, announce, lane_key

T = TypeVar("T")

log = structlog.get_logger(__name__)

WORK = "work"  # the one task there is
FLOOR = 20


class LaneBroker(AsyncBroker):
    """Hands out one id at a time, and only when the worker has a free slot.

    Every `floor`th pick looks at the lanes in reverse, so the least urgent one always gets some of the slots.
    `sweep` is called when all lanes are empty. While Redis is away, `due` is asked for ids instead.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        sweep: Callable[[], Awaitable[object]],
        due: Callable[[], Awaitable[Sequence[UUID]]],
        lanes: Sequence[str] = LANES,
        floor: int = FLOOR,
        wait: float = SWEEP_SECONDS,
    ) -> None:
        super().__init__()
        self._redis = redis
        self._sweep = sweep
        self._due = due
        self._wait = wait
        self._floor = floor
        self._away = False
        keys = [lane_key(lane) for lane in LANES if lane in lanes]
        self._keys, self._reversed = keys, keys[::-1]

    async def kick(self, message: BrokerMessage) -> None:
        """Put the message's operation into the lane its `lane` label names."""
        operation_id = UUID(orjson.loads(message.message)["args"][0])
        await announce(self._redis, operation_id, message.labels["lane"])

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Yield messages for as long as somebody asks; neither store's absence ends it."""
        for pick in itertools.count(1):
            for operation_id in await self._next(self._reversed if pick % self._floor == 0 else self._keys):
                yield _message(operation_id)

    async def _next(self, keys: Sequence[str]) -> Sequence[UUID]:
        try:
            found = await self._redis.bzpopmin(keys, timeout=self._wait)
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("lanes.unreachable", error=type(error).__name__)
            self._away = True
            await asyncio.sleep(self._wait)
            return await _or_none(self._due()) or ()
        self._away = False
        if found is None:
            await _or_none(self._sweep())
            return ()
        member = found[1]
        try:
            return (UUID(member.decode() if isinstance(member, bytes) else str(member)),)
        except ValueError:
            log.warning("lanes.not_an_id", lane=str(found[0]))
            return ()


async def _or_none(call: Awaitable[T]) -> T | None:
    """Await it; when a store is away, which shows in exceptions of many kinds, the next turn tries again."""
    try:
        return await call
    except Exception as error:
        log.warning("lanes.sweep_failed", error=type(error).__name__)
        return None


def _message(operation_id: UUID) -> bytes:
    identifier = str(operation_id)
    return orjson.dumps(
        {"task_id": identifier, "task_name": WORK, "labels": {}, "args": [identifier], "kwargs": {}}
    )
