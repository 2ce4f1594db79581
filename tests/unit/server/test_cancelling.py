import asyncio
from typing import Any

import pytest
from redis.asyncio.connection import Connection

from server.cancelling import open_redis


async def test_a_cancellation_that_comes_just_when_a_command_is_sent_is_not_lost(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Connection._send_packed_command

    async def cancelled_meanwhile(self: Connection, command: Any) -> None:
        await send(self, command)
        asking.cancel()

    async with open_redis(redis_url, socket_timeout=5) as redis:
        await redis.ping()
        monkeypatch.setattr(Connection, "_send_packed_command", cancelled_meanwhile)
        asking = asyncio.ensure_future(redis.get("key"))
        with pytest.raises(asyncio.CancelledError):
            await asking
        monkeypatch.undo()
        assert await redis.ping(), "the connection still had the answer to another question"


async def test_a_cancelled_task_may_still_tidy_up(redis_url: str) -> None:
    async def leave() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await redis.incr("left")

    async with open_redis(redis_url, socket_timeout=5) as redis:
        leaving = asyncio.create_task(leave())
        await asyncio.sleep(0)
        leaving.cancel()
        assert await leaving == 1
