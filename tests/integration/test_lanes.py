"""The four lanes on a real Redis: order, the floor, turns, what is kept free, and what losing Redis costs."""

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
from server.db.models import Operation, OperationType, Priority
from server.services import operations
from server.services.operations import LANES, Due
from server.worker import relay
from server.worker.broker import LaneBroker
from server.worker.context import open_redis
from server.worker.relay import announce, listed, sweep
from server.worker.slots import Slots

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


async def _nothing() -> list[Due]:
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


def _broker(redis: Redis, slots: Slots | None = None, **given: Any) -> LaneBroker:
    return LaneBroker(
        redis, slots or Slots.of(1000), **{"sweep": _nothing, "due": _nothing, "wait": 0.05, **given}
    )


async def _take(broker: LaneBroker, count: int) -> list[UUID]:
    """Return the operations of the next messages."""
    taken: list[UUID] = []
    async with asyncio.timeout(10), aclosing(broker.listen()) as messages:
        async for message in messages:
            taken += map(UUID, json.loads(message)["args"][0])
            if len(taken) >= count:
                break
    return taken


async def _begun(redis: Redis, slots: Slots) -> list[UUID]:
    """Return what a worker with these slots begins now."""
    taken: list[UUID] = []
    while (ask := slots.ask()) is not None and (found := await relay.take(redis, ask)):
        for due in found:
            slots.take(due)
            taken.append(due.id)
    return taken


def _due(lane: str, queued_at: float = 0.0, *, venue: UUID | None = None, provider: str = "juniper") -> Due:
    return Due(uuid4(), venue or uuid4(), provider, lane, queued_at)


async def _fill(redis: Redis, lane: str, count: int, **given: Any) -> list[UUID]:
    # Each is of a venue of its own, and venues that come at once are served in the order of their ids.
    venues = sorted(str(uuid4()) for _ in range(count))
    found = [_due(lane, float(n), **{"venue": UUID(venue), **given}) for n, venue in enumerate(venues)]
    assert await announce(redis, found)
    return [due.id for due in found]


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


async def test_the_more_urgent_lane_comes_first(redis: Redis) -> None:
    filled = {lane: await _fill(redis, lane, 2) for lane in reversed(LANES)}
    expected = [*filled["critical"], *filled["high"], *filled["normal"], *filled["low"]]
    assert await _take(_broker(redis), 8) == expected


async def test_of_an_integration_the_oldest_comes_first_and_one_at_a_time(redis: Redis) -> None:
    venue, slots = uuid4(), Slots.of(10)
    late, early = _due("low", 9.0, venue=venue), _due("low", 1.0, venue=venue)
    await announce(redis, [late, early])
    assert await _begun(redis, slots) == [early.id]
    slots.finish(early.id)
    assert await _begun(redis, slots) == []  # its end isn't written yet
    slots.forget(early.id)
    assert await _begun(redis, slots) == [late.id]


async def test_every_nth_pick_goes_to_the_least_urgent_lane(redis: Redis) -> None:
    critical, low = await _fill(redis, "critical", 5), await _fill(redis, "low", 2)
    c1, c2, c3, c4, c5 = critical
    assert await _take(_broker(redis, Slots.of(1000, floor=3)), 7) == [c1, c2, low[0], c3, c4, low[1], c5]


async def test_the_floor_is_counted_from_one_look_to_the_next(redis: Redis) -> None:
    critical, low = await _fill(redis, "critical", 3), await _fill(redis, "low", 1)
    slots, taken = Slots.of(1, floor=3), list[UUID]()
    for _ in range(4):
        begun = await _begun(redis, slots)
        taken += begun
        for each in begun:
            slots.forget(each)
    assert taken == [*critical[:2], *low, critical[2]]


async def test_venues_take_turns(redis: Redis) -> None:
    """One that queued thousands across its providers has as many turns as one that queued a single one."""
    noisy, quiet, slots = uuid4(), uuid4(), Slots.of(1)
    await announce(redis, [_due("normal", float(n), venue=noisy, provider=f"p{n % 7}") for n in range(700)])
    for _ in range(20):
        (begun,) = await _begun(redis, slots)
        slots.forget(begun)
    single = _due("normal", 1000.0, venue=quiet, provider="p3")
    await announce(redis, [single])
    order = []
    while single.id not in order:
        (begun,) = await _begun(redis, slots)
        slots.forget(begun)
        order.append(begun)
    assert len(order) <= 8  # each of the others may have its turn once


async def test_a_provider_that_hangs_leaves_slots_to_others(redis: Redis) -> None:
    slots = Slots.of(10, provider_share=70)
    await _fill(redis, "high", 50, provider="hanging")
    assert len(await _begun(redis, slots)) == 7
    others = await _fill(redis, "high", 2, provider="juniper")
    assert await _begun(redis, slots) == others
    urgent = await _fill(redis, "critical", 20, provider="hanging")
    assert await _begun(redis, slots) == urgent[:4]  # 70 % of all fifteen, the seven among them
    assert len(await listed(redis, "high")) == 43


async def test_a_provider_that_hangs_leaves_slots_of_the_lowest_lane_too(redis: Redis) -> None:
    slots = Slots.of(10, provider_share=70)
    await _fill(redis, "low", 50, provider="hanging")
    assert len(await _begun(redis, slots)) == 6  # of the eight that the lane may use
    others = await _fill(redis, "low", 3, provider="juniper")
    assert await _begun(redis, slots) == others[:2]


async def test_a_venue_leaves_slots_to_others(redis: Redis) -> None:
    venue, slots = uuid4(), Slots.of(10, venue_share=30)
    await announce(redis, [_due("high", venue=venue, provider=f"p{n}") for n in range(9)])
    assert len(await _begun(redis, slots)) == 3
    assert await _begun(redis, slots) == []
    (other,) = await _fill(redis, "high", 1)
    assert await _begun(redis, slots) == [other]


async def test_slots_are_kept_for_what_is_more_urgent(redis: Redis) -> None:
    slots = Slots.of(10)
    begun = {}
    for lane in reversed(LANES):
        await _fill(redis, lane, 30)
        begun[lane] = len(await _begun(redis, slots))
    # Of ten, one is kept for each lane that is more urgent; the critical one has five on top.
    assert begun == {"low": 8, "normal": 1, "high": 1, "critical": 5}


async def test_a_worker_of_one_lane_keeps_nothing_for_the_others(redis: Redis) -> None:
    slots = Slots.of(10, lanes=("low",))
    await _fill(redis, "low", 30)
    (critical,) = await _fill(redis, "critical", 1)
    assert len(await _begun(redis, slots)) == 10
    assert await listed(redis, "critical") == [critical]


async def test_a_slot_that_becomes_free_is_used_at_once(redis: Redis) -> None:
    first, second = await _fill(redis, "low", 2)
    slots = Slots.of(1, lanes=("low",))
    async with asyncio.timeout(10), aclosing(_broker(redis, slots, wait=60.0).listen()) as messages:
        assert json.loads(await anext(messages))["args"] == [[str(first)]]
        following = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        slots.forget(first)
        assert json.loads(await following)["args"] == [[str(second)]]


async def test_work_rings_for_a_worker_that_waits(redis: Redis) -> None:
    async with asyncio.timeout(10), aclosing(_broker(redis, wait=60.0).listen()) as messages:
        waiting = asyncio.ensure_future(anext(messages))
        while not await redis.client_list(_type="normal") or not any(  # noqa: ASYNC110 - it looks at a store
            client["cmd"] == "blpop" for client in await redis.client_list()
        ):
            await asyncio.sleep(0.01)
        (operation_id,) = await _fill(redis, "normal", 1)
        assert json.loads(await waiting)["args"] == [[str(operation_id)]]


async def test_a_worker_that_is_full_leaves_the_bell_to_others(redis: Redis) -> None:
    full, idle = Slots.of(1, lanes=("low",)), Slots.of(1, lanes=("low",))
    full.take(_due("low"))
    full_listens, idle_listens = (
        _broker(redis, full, wait=60.0).listen(),
        _broker(redis, idle, wait=60.0).listen(),
    )
    async with asyncio.timeout(10), aclosing(full_listens), aclosing(idle_listens):
        waiting = asyncio.ensure_future(anext(full_listens))
        taking = asyncio.ensure_future(anext(idle_listens))
        (operation_id,) = await _fill(redis, "low", 1)
        assert json.loads(await taking)["args"] == [[str(operation_id)]]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_worker_of_one_lane_leaves_the_others_alone(redis: Redis) -> None:
    (normal,), (critical,) = await _fill(redis, "normal", 1), await _fill(redis, "critical", 1)
    assert await _take(_broker(redis, Slots.of(5, lanes=("critical",), floor=1)), 1) == [critical]
    assert await listed(redis, "normal") == [normal]


async def test_an_operation_announced_again_and_again_is_one_message(redis: Redis) -> None:
    first = _due("high")
    for queued_at in (5.0, 1.0, 9.0):
        await announce(redis, [first._replace(queued_at=queued_at)])
    (second,) = await _fill(redis, "low", 1)
    assert await _take(_broker(redis), 2) == [first.id, second]
    assert await redis.dbsize() == 0


async def test_redis_holds_ids_and_nothing_else(
    redis: Redis, sessions: async_sessionmaker[AsyncSession]
) -> None:
    (operation_id,) = await _enqueue(sessions, Priority.HIGH)
    assert await sweep(sessions, redis) == 1
    async with sessions() as session:
        venue = (await session.get_one(Operation, operation_id)).venue_id
    place = f"hub:work:high:juniper:{venue}"
    assert sorted(await redis.keys("*")) == [
        "hub:bell:high",
        "hub:work:high",
        "hub:work:high:juniper",
        place,
    ]
    assert await redis.zrange(place, 0, -1) == [str(operation_id)]


async def test_what_is_no_id_is_dropped(redis: Redis) -> None:
    bad = _due("critical")
    await announce(redis, [bad])
    place = f"hub:work:critical:juniper:{bad.venue_id}"
    await redis.delete(place)
    await redis.zadd(place, {'{"task_name": "os.system"}': 0})
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


async def test_one_sweep_brings_back_more_than_it_looks_at_first(
    redis: Redis, sessions: async_sessionmaker[AsyncSession]
) -> None:
    ids = await _enqueue(sessions, *[Priority.CRITICAL] * 4, Priority.LOW)
    assert await sweep(sessions, redis, limit=2) == 5
    assert await sweep(sessions, redis, limit=2) == 0
    await redis.flushall()
    assert await sweep(sessions, redis, limit=1) == 5
    assert await listed(redis, "low") == ids[4:]


async def test_without_redis_the_database_is_asked(sessions: async_sessionmaker[AsyncSession]) -> None:
    ids = await _enqueue(sessions, Priority.NORMAL, Priority.LOW)

    async def due() -> Sequence[Due]:
        async with sessions() as session:
            return await operations.due(session)

    async with open_redis(NOBODY_LISTENS) as away:
        assert await _take(_broker(away, due=due), 2) == ids


def test_without_redis_slots_are_kept_as_with_it() -> None:
    venue = uuid4()
    slots = Slots.of(10, provider_share=70)
    hanging = [_due("low", provider="hanging") for _ in range(50)]
    others = [_due("low") for _ in range(5)]
    mine = [_due("low", venue=venue), _due("low", venue=venue)]
    # Of the eight that the lane may use a provider has six, and an integration one at a time.
    begun = slots.fitting([*hanging, *mine, *others])
    assert begun == [*hanging[:6], mine[0], others[0]]
    for due in begun:
        slots.take(due)
    assert slots.fitting([*mine, *others]) == []
    urgent = [_due("critical") for _ in range(9)]
    assert slots.fitting(urgent) == urgent[:7]  # fifteen in all


async def test_announcing_without_redis_raises_nothing() -> None:
    async with open_redis(NOBODY_LISTENS) as away:
        assert await announce(away, [_due("high")]) is False


async def test_listening_goes_on_when_redis_is_back(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    (operation_id,) = await _fill(redis, "high", 1)
    take, refusals = relay.take, iter(range(3))

    async def refused_at_first(*args: Any) -> Any:
        if next(refusals, None) is not None:
            raise RedisConnectionError("connection refused")
        return await take(*args)

    monkeypatch.setattr(relay, "take", refused_at_first)
    assert await _take(_broker(redis, wait=0.01), 1) == [operation_id]


async def test_neither_store_being_away_ends_the_listening(redis: Redis) -> None:
    due = _due("high")
    calls = 0

    async def failing_sweep() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("connection refused")
        await announce(redis, [due])

    assert await _take(_broker(redis, sweep=failing_sweep, wait=0.01), 1) == [due.id]
    assert calls == 3


async def test_a_task_that_is_kicked_goes_into_its_lane(redis: Redis) -> None:
    broker, operation_id = _broker(redis), uuid4()

    async def work(operation_id: str) -> None: ...

    task = broker.register_task(work, task_name="work")
    await task.kicker().with_labels(lane="low", provider="juniper", venue=str(uuid4())).kiq(str(operation_id))
    assert await listed(redis, "low") == [operation_id]
