"""Limits over Redis, as several processes see them: each `SharedLimits` is one process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

import server.limits
from server.limits import SharedLimits
from server.worker.context import open_redis
from tests.fakes import FakeClock


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"juniper production {secrets.token_hex(4)}"


async def test_processes_share_a_budget(redis: Redis, key: str) -> None:
    limiters = [SharedLimits(redis).lane(critical=False) for _ in range(3)]
    counts = [0, 0, 0]
    started = time.monotonic()

    async def call(number: int) -> None:
        for _ in range(7):
            await limiters[number].acquire(key, rate=40, burst=1)
            counts[number] += 1
            if counts[number] == 7 and seconds[0] is None:
                seconds[0] = time.monotonic() - started

    seconds: list[float | None] = [None]
    await asyncio.gather(*(call(number) for number in range(3)))
    assert time.monotonic() - started >= 20 / 40
    # They took turns, so whoever was through first had to wait for nearly all the calls of the others.
    assert seconds[0] is not None
    assert seconds[0] >= 16 / 40


async def test_a_hold_is_everybodys(redis: Redis, key: str) -> None:
    one, other = (SharedLimits(redis).lane(critical=False) for _ in range(2))
    await one.hold(key, 0.4)
    started = time.monotonic()
    await other.acquire(key, rate=100, burst=10)
    assert time.monotonic() - started >= 0.35


async def test_part_of_what_may_go_at_once_is_for_the_critical_lane(redis: Redis, key: str) -> None:
    limits = SharedLimits(redis)
    ordinary, critical = limits.lane(critical=False), limits.lane(critical=True)
    for _ in range(9):  # of eleven at once, two are kept
        await at_once(ordinary.acquire(key, rate=0.01, burst=11))
    waiting = asyncio.create_task(ordinary.acquire(key, rate=0.01, burst=11))
    await until(lambda: stands(redis, "budget", key))
    for _ in range(2):
        await at_once(critical.acquire(key, rate=0.01, burst=11))
    assert not waiting.done()
    await cancelled(waiting)


async def test_the_critical_lane_goes_first(redis: Redis, key: str) -> None:
    limits = SharedLimits(redis)
    await limits.lane(critical=True).acquire(key, rate=4, burst=1)
    order: list[str] = []

    async def call(name: str, critical: bool) -> None:
        await limits.lane(critical=critical).acquire(key, rate=4, burst=1)
        order.append(name)

    ordinary = [asyncio.create_task(call("ordinary", False)) for _ in range(2)]
    await until(lambda: stands(redis, "budget", key))
    await asyncio.gather(call("critical", True), *ordinary)
    assert order == ["critical", "ordinary", "ordinary"]


async def test_slots_are_counted_over_processes(redis: Redis, key: str) -> None:
    inside, most = 0, 0

    async def work(limits: SharedLimits) -> None:
        nonlocal inside, most
        limiter = limits.lane(critical=False)
        for _ in range(5):
            async with limiter.slot(key, 2):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.002)
                inside -= 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(SharedLimits(redis)) for _ in range(4)))
    assert most == 2


async def test_the_critical_lane_has_a_slot_of_its_own(redis: Redis, key: str) -> None:
    limits = SharedLimits(redis)
    ordinary, critical = limits.lane(critical=False), limits.lane(critical=True)
    held = [ordinary.slot(key, 10) for _ in range(9)]
    for slot in held:
        await at_once(slot.__aenter__())
    tenth = ordinary.slot(key, 10)
    waiting = asyncio.create_task(tenth.__aenter__())
    await until(lambda: stands(redis, "slots", key))
    async with critical.slot(key, 10):
        assert not waiting.done()
    for slot in held:
        await slot.__aexit__(None, None, None)
    await asyncio.wait_for(waiting, 5)
    await tenth.__aexit__(None, None, None)


async def test_slots_of_a_killed_process_are_free_soon(
    redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.limits, "LEASE_SECONDS", 0.3)
    killed, other = SharedLimits(redis), SharedLimits(redis)
    monkeypatch.setattr(killed, "keep", lambda ticket, key: None)  # it extends no lease any more
    slot = killed.lane(critical=False).slot(key, 1)
    await slot.__aenter__()
    async with asyncio.timeout(5), other.lane(critical=False).slot(key, 1):
        pass
    await slot.__aexit__(None, None, None)  # while there is a connection to do it with


async def test_a_slot_lasts_as_long_as_its_call(
    redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.limits, "LEASE_SECONDS", 0.3)
    limits = SharedLimits(redis)
    async with limits.lane(critical=False).slot(key, 1):
        taken = f"hub:slots:{{{key}}}"
        first = await lease_end(redis, taken)
        await until(lambda: extended(redis, taken, first + 600_000))  # two leases later
    assert await redis.zcard(taken) == 0


async def test_whoever_gives_up_leaves_the_queue(redis: Redis, key: str) -> None:
    limiter = SharedLimits(redis).lane(critical=False)
    await limiter.acquire(key, rate=0.01, burst=1)
    waiting = asyncio.create_task(limiter.acquire(key, rate=0.01, burst=1))
    await until(lambda: stands(redis, "budget", key))
    await cancelled(waiting)
    assert not await stands(redis, "budget", key)


async def test_everything_is_forgotten_in_time(redis: Redis, key: str) -> None:
    limiter = SharedLimits(redis).lane(critical=False)
    await limiter.acquire(key, rate=10, burst=1)
    await limiter.hold(key, 0.05)
    await limiter.lower(key, 5, 30)
    await limiter.acquire(key, rate=10, burst=1)
    async with limiter.slot(key, 2):
        names = [name async for name in redis.scan_iter(f"*{key}*")]
        assert names
        assert all([0 < await redis.ttl(name) <= 100 for name in names])


async def test_without_redis_a_process_keeps_to_the_limits_by_itself() -> None:
    clock = FakeClock()
    limiter = SharedLimits(away(), clock=clock).lane(critical=False)
    for _ in range(4):
        await limiter.acquire("account", rate=10, burst=2)
    assert round(clock.seconds, 6) == 0.2
    await limiter.hold("account", 60)
    await limiter.acquire("account", rate=10, burst=2)
    assert clock.seconds >= 60
    inside, most = 0, 0

    async def call() -> None:
        nonlocal inside, most
        async with limiter.slot("account", 2):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(call() for _ in range(6)))
    assert most == 2


async def test_redis_is_used_again_once_it_is_back(
    redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    limits = SharedLimits(redis, clock=clock)
    limiter = limits.lane(critical=False)
    take = limits.take
    monkeypatch.setattr(limits, "take", SharedLimits(away()).take)
    await limiter.acquire(key, rate=10, burst=10)
    monkeypatch.setattr(limits, "take", take)
    await limiter.acquire(key, rate=10, burst=10)
    assert not await redis.exists(f"hub:budget:{{{key}}}")  # not asked at every call
    clock.seconds += server.limits.RETRY_SECONDS
    await limiter.acquire(key, rate=10, burst=10)
    assert await redis.exists(f"hub:budget:{{{key}}}")


def away() -> Redis:
    """Return a client of a Redis that isn't there."""
    return open_redis("redis://127.0.0.1:1")


async def at_once(call: Awaitable[object]) -> None:
    async with asyncio.timeout(5):
        await call


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stands(redis: Redis, kind: str, key: str) -> bool:
    """Say whether anybody stands in the queue of a budget, or of its slots."""
    return bool(await redis.zcard(f"hub:{kind}:{{{key}}}:turns"))


async def lease_end(redis: Redis, slots: str) -> float:
    """Return when the one lease there is ends, in microseconds."""
    [ticket] = await redis.zrange(slots, 0, -1)
    score = await redis.zscore(slots, str(ticket))
    assert score is not None
    return float(score)


async def extended(redis: Redis, slots: str, beyond: float) -> bool:
    return await lease_end(redis, slots) > beyond


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110 - what is asked for is in Redis
            await asyncio.sleep(0.005)
