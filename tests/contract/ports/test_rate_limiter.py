"""What every `RateLimiter` promises: the one of a process, and the one that processes share over Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine.errors import RateLimitedError
from engine.ports import RateLimiter
from engine.rate_limits import LocalRateLimiter
from server.limits import SharedLimits
from server.worker.context import open_redis


@pytest.fixture(params=["local", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncIterator[RateLimiter]:
    if request.param == "local":
        yield LocalRateLimiter()
        return
    async with open_redis(request.getfixturevalue("redis_url")) as redis:
        yield SharedLimits(redis).lane(critical=True)


@pytest.fixture
def key() -> str:
    """A budget of this test's own."""
    return f"juniper production {secrets.token_hex(4)}"


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._started


async def test_a_burst_goes_at_once_and_the_rest_is_spaced(limiter: RateLimiter, key: str) -> None:
    watch = Watch()
    for _ in range(3):
        await limiter.acquire(key, rate=2, burst=3)
    assert watch() < 0.4
    await limiter.acquire(key, rate=2, burst=3)
    assert watch() >= 0.49


async def test_budgets_do_not_share(limiter: RateLimiter, key: str) -> None:
    watch = Watch()
    for number in range(5):
        await limiter.acquire(f"{key} {number}", rate=0.1, burst=1)
    assert watch() < 5


async def test_calls_go_in_the_order_in_which_they_asked(limiter: RateLimiter, key: str) -> None:
    order: list[int] = []

    async def call(number: int) -> None:
        await limiter.acquire(key, rate=50, burst=1)
        order.append(number)

    await asyncio.gather(*(call(number) for number in range(10)))
    assert order == list(range(10))


async def test_a_hold_lets_nobody_call(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=100, burst=10)
    await limiter.hold(key, 0.5)
    await limiter.hold(key, 0.1)  # a shorter one ends no longer one
    watch = Watch()
    await limiter.acquire(key, rate=100, burst=10)
    assert watch() >= 0.45


async def test_a_hold_reaches_those_who_wait_already(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=5, burst=1)
    watch = Watch()
    waiting = asyncio.create_task(limiter.acquire(key, rate=5, burst=1))
    await until(lambda: any_waits(limiter, key))
    await limiter.hold(key, 0.6)
    await waiting
    assert watch() >= 0.55


async def test_nobody_waits_for_a_hold_of_hours(limiter: RateLimiter, key: str) -> None:
    await limiter.hold(key, 3600)
    with pytest.raises(RateLimitedError) as caught:
        await limiter.acquire(key, rate=100, burst=10)
    assert caught.value.retry_after == pytest.approx(3600, abs=30)


async def test_no_more_go_than_the_provider_says_are_left(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=100, burst=10)
    await limiter.lower(key, 2, 0.6)
    watch = Watch()
    for _ in range(2):
        await limiter.acquire(key, rate=100, burst=10)
    assert watch() < 0.5
    await limiter.acquire(key, rate=100, burst=10)
    assert watch() >= 0.55
    for _ in range(5):
        await limiter.acquire(key, rate=100, burst=10)  # the window is over: as many as ever
    assert watch() < 2


async def test_of_one_window_the_smallest_number_counts(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=100, burst=10)
    await limiter.lower(key, 1, 0.6)
    await limiter.lower(key, 5, 0.6)  # an answer that was on its way for longer
    watch = Watch()
    for _ in range(2):
        await limiter.acquire(key, rate=100, burst=10)
    assert watch() >= 0.5


async def test_a_new_window_has_a_count_of_its_own(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=100, burst=10)
    await limiter.lower(key, 0, 10)
    await limiter.lower(key, 50, 30)
    watch = Watch()
    await limiter.acquire(key, rate=100, burst=10)
    assert watch() < 5


async def test_without_a_window_the_number_is_what_may_go_at_once(limiter: RateLimiter, key: str) -> None:
    await limiter.acquire(key, rate=2, burst=10)
    await limiter.lower(key, 0, None)
    watch = Watch()
    await limiter.acquire(key, rate=2, burst=10)
    assert 0.4 <= watch() < 5


async def test_slots_are_never_more_than_said(limiter: RateLimiter, key: str) -> None:
    inside, seen = 0, []

    async def call() -> None:
        nonlocal inside
        async with limiter.slot(key, 3):
            inside += 1
            seen.append(inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(call() for _ in range(12)))
    assert max(seen) == 3
    assert len(seen) == 12


async def test_a_slot_is_free_again_after_an_error(limiter: RateLimiter, key: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with limiter.slot(key, 1):
            raise ZeroDivisionError
    async with asyncio.timeout(5), limiter.slot(key, 1):
        pass


async def test_whoever_gives_up_waiting_takes_nothing(limiter: RateLimiter, key: str) -> None:
    async def wait() -> None:
        async with limiter.slot(key, 1):
            raise AssertionError("there was no slot")

    async with limiter.slot(key, 1):
        waiting = asyncio.create_task(wait())
        await until(lambda: any_waits(limiter, key))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), limiter.slot(key, 1):
        pass


async def any_waits(limiter: Any, key: str) -> bool:
    """Say whether a call stands in the queue of a budget or of its slots."""
    if isinstance(limiter, LocalRateLimiter):
        await asyncio.sleep(0)
        return True  # it got as far as it could when it was given a turn
    redis = limiter.limits.redis
    return any([await redis.exists(f"hub:{kind}:{{{key}}}:turns") for kind in ("budget", "slots")])


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not await true():  # noqa: ASYNC110 - what is asked for is in Redis
            await asyncio.sleep(0.005)
