"""Redis connections whose callers can be cancelled at any moment.

redis-py sends inside `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes just when
the sending is done (python/cpython#86296): whoever waits for the cancelled task then waits for ever.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection


def open_redis(url: str, **options: Any) -> Redis:
    """Open a pool of connections, lazily; `options` are those of `Redis.from_url`."""
    client: Redis = Redis.from_url(url, **options)  # noqa: TID251  # the one place
    pool: Any = client.connection_pool
    pool.connection_class = _cancellable(pool.connection_class)
    return client


@cache
def _cancellable(connection_class: type[AbstractConnection]) -> type:
    return type(connection_class.__name__, (_Cancellable, connection_class), {})


class _Cancellable:
    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0  # a task that was cancelled may still have to tidy up
        await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]  # of the class beside it
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # nobody reads the answer
            raise asyncio.CancelledError
