"""Tell workers that there is work. Redis holds ids in four lanes; what is to be done is in PostgreSQL.

A lane is a sorted set, oldest first, so an operation is in it once however often it is announced, and sweeps
don't flood. Losing all of Redis loses nothing: the next sweep announces again whatever is due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.services import operations
from server.services.operations import LANES

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0  # the longest an operation waits to be announced again when Redis has forgotten it
_ANNOUNCE_SECONDS = 2.0  # a caller with a request to answer doesn't wait longer for Redis


def lane_key(lane: str) -> str:
    """Return the Redis key of a lane."""
    return f"hub:lane:{lane}"


async def announce(redis: Redis, operation_id: UUID, lane: str, queued_at: float | None = None) -> bool:
    """Put an operation that has just been committed into its lane; never raises.

    `queued_at` is in Unix seconds, now by default. False: Redis can't be reached, and a sweep will do it.
    """
    score = time.time() if queued_at is None else queued_at
    try:
        async with asyncio.timeout(_ANNOUNCE_SECONDS):
            await redis.zadd(lane_key(lane), {str(operation_id): score}, nx=True)
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        log.warning("relay.announce_failed", operation_id=str(operation_id), error=type(error).__name__)
        return False
    return True


async def announce_all(redis: Redis, operation_ids: Sequence[UUID], lane: str) -> None:
    """Put operations that have just been committed into one lane; raises when Redis can't be reached."""
    async with asyncio.timeout(_ANNOUNCE_SECONDS):
        await redis.zadd(lane_key(lane), {str(each): time.time() for each in operation_ids}, nx=True)


async def sweep(
    sessions: async_sessionmaker[AsyncSession],
    redis: Redis,
    *,
    lanes: Collection[str] = LANES,
    limit: int = 1000,
) -> int:
    """Announce what is due and in no lane; returns how many there were. Raises when a store is away."""
    async with sessions() as session:
        found = await operations.due(session, limit, lanes=lanes)
    if not found:
        return 0
    async with redis.pipeline(transaction=False) as pipeline:
        for operation in found:
            pipeline.zadd(lane_key(operation.lane), {str(operation.id): operation.queued_at}, nx=True)
        return sum(await pipeline.execute())
