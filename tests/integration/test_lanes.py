"""The four lanes on a real Redis: order, the floor, and what losing Redis costs."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.engine import create_engine, session_factory
from server.db.models import OperationType, Priority
from server.services import operations
from server.services.operations import LANES
from server.worker.broker import LaneBroker
from server.worker.context import open_redis
from server.worker.relay import announce, lane_key, sweep

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


async def _nothing() -> list[UUID]:
    return []


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_engine(fresh_database_url)
    yield session_factory(engine)
    await engine.dispose()


def _broker(redis: Redis, **given: Any) -> LaneBroker:
    return LaneBroker(redis, **{"sweep": _nothing, "due": _nothing, "wait": 0.05, **given})


async def _take(broker: LaneBroker, count: int) -> list[UUID]:
    """Return the operations of the next messages."""
    taken: list[UUID] = []
    async with asyncio.timeout(10), aclosing(broker.listen()) as messages:
        async for message in messages:
            taken.append(UUID(json.loads(message)["args"][0]))
            if len(taken) == count:
                break
    return taken


async def _fill(redis: Redis, lane: str, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    for queued_at, operation_id in enumerate(ids):
        assert await announce(redis, operation_id, lane, float(queued_at))
    return ids


async def _enqueue(sessions: async_sessionmaker[AsyncSession], *priorities: Priority) -> list[UUID]:
    async with sessions.begin() as session:
        return [
            (
                await operations.enqueue(
                    session,
                    venue_id=uuid4(),
                    provider="juniper",
                    operation_type=OperationType.SYNC,
                    entity_type="full",
                    payload={"password": "must not travel"},
                    priority=priority,
                )
            ).id
            for priority in priorities
        ]


async def test_the_more_urgent_lane_comes_first_and_in_a_lane_the_oldest(redis: Redis) -> None:
    filled = {lane: await _fill(redis, lane, 2) for lane in reversed(LANES)}
    expected = [*filled["critical"], *filled["high"], *filled["normal"], *filled["low"]]
    assert await _take(_broker(redis), 8) == expected


async def test_every_nth_pick_goes_to_the_least_urgent_lane(redis: Redis) -> None:
    critical, low = await _fill(redis, "critical", 5), await _fill(redis, "low", 2)
    taken = await _take(_broker(redis, floor=3), 7)
    c1, c2, c3, c4, c5 = critical
    assert taken == [c1, c2, low[0], c3, c4, low[1], c5]


async def test_a_worker_of_one_lane_leaves_the_others_alone(redis: Redis) -> None:
    (normal,), (critical,) = await _fill(redis, "normal", 1), await _fill(redis, "critical", 1)
    assert await _take(_broker(redis, lanes=("critical",), floor=1), 1) == [critical]
    assert await redis.zrange(lane_key("normal"), 0, -1) == [str(normal)]


async def test_an_operation_announced_again_and_again_is_one_message(redis: Redis) -> None:
    first = uuid4()
    for queued_at in (5.0, 1.0, 9.0):
        await announce(redis, first, "high", queued_at)
    (second,) = await _fill(redis, "low", 1)
    assert await _take(_broker(redis), 2) == [first, second]
    assert await redis.dbsize() == 0


async def test_redis_holds_the_id_and_nothing_else(
    redis: Redis, sessions: async_sessionmaker[AsyncSession]
) -> None:
    (operation_id,) = await _enqueue(sessions, Priority.HIGH)
    assert await sweep(sessions, redis) == 1
    assert await redis.keys("*") == [lane_key("high")]
    assert await redis.zrange(lane_key("high"), 0, -1) == [str(operation_id)]


async def test_what_is_no_id_is_dropped(redis: Redis) -> None:
    await redis.zadd(lane_key("critical"), {'{"task_name": "os.system"}': 0})
    (good,) = await _fill(redis, "low", 1)
    assert await _take(_broker(redis), 1) == [good]


async def test_a_sweep_announces_what_is_due_once(
    redis: Redis, sessions: async_sessionmaker[AsyncSession]
) -> None:
    low, critical = await _enqueue(sessions, Priority.LOW, Priority.CRITICAL)
    assert await sweep(sessions, redis) == 2
    assert await sweep(sessions, redis) == 0
    assert await _take(_broker(redis), 2) == [critical, low]


async def test_an_emptied_redis_loses_nothing(
    redis: Redis, sessions: async_sessionmaker[AsyncSession]
) -> None:
    ids = await _enqueue(sessions, *[Priority.NORMAL] * 5)
    await sweep(sessions, redis)
    await redis.flushall()
    broker = _broker(redis, sweep=lambda: sweep(sessions, redis))
    assert set(await _take(broker, 5)) == set(ids)


async def test_without_redis_the_database_is_asked(sessions: async_sessionmaker[AsyncSession]) -> None:
    (operation_id,) = await _enqueue(sessions, Priority.NORMAL)

    async def due() -> Sequence[UUID]:
        async with sessions() as session:
            return [found.id for found in await operations.due(session)]

    async with open_redis(NOBODY_LISTENS) as away:
        assert await _take(_broker(away, due=due), 1) == [operation_id]


async def test_announcing_without_redis_raises_nothing() -> None:
    async with open_redis(NOBODY_LISTENS) as away:
        assert await announce(away, uuid4(), "high") is False


async def test_listening_goes_on_when_redis_is_back(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    (operation_id,) = await _fill(redis, "high", 1)
    pop, refusals = redis.bzpopmin, iter(range(3))

    async def refused_at_first(*args: Any, **options: Any) -> Any:
        if next(refusals, None) is not None:
            raise RedisConnectionError("connection refused")
        return await pop(*args, **options)

    monkeypatch.setattr(redis, "bzpopmin", refused_at_first)
    assert await _take(_broker(redis, wait=0.01), 1) == [operation_id]


async def test_neither_store_being_away_ends_the_listening(redis: Redis) -> None:
    (operation_id,) = await _fill(redis, "high", 1)
    await redis.delete(lane_key("high"))
    calls = 0

    async def failing_sweep() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("connection refused")
        await announce(redis, operation_id, "high")

    assert await _take(_broker(redis, sweep=failing_sweep, wait=0.01), 1) == [operation_id]
    assert calls == 3


async def test_a_task_that_is_kicked_goes_into_its_lane(redis: Redis) -> None:
    broker, operation_id = _broker(redis), uuid4()

    async def work(operation_id: str) -> None: ...

    task = broker.register_task(work, task_name="work")
    await task.kicker().with_labels(lane="low").kiq(str(operation_id))
    assert await redis.zrange(lane_key("low"), 0, -1) == [str(operation_id)]
