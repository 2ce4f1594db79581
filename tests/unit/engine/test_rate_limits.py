"""Spacing calls out, with time that passes only by sleeping."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rate_limits import MAX_BUCKETS, LocalRateLimiter, TokenBucket
from tests.fakes import FakeClock


async def test_a_burst_goes_at_once_and_the_rest_is_spaced() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    times = []
    for _ in range(5):
        await limiter.acquire("account", rate=10, burst=3)
        times.append(round(clock.seconds, 6))
    assert times == [0, 0, 0, 0.1, 0.2]


async def test_time_that_passed_unused_refills_no_more_than_the_burst() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    await limiter.acquire("account", rate=10, burst=2)
    clock.seconds = 100
    for _ in range(3):
        await limiter.acquire("account", rate=10, burst=2)
    assert round(clock.seconds - 100, 6) == 0.1


async def test_budgets_do_not_share() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    for key in ("one", "other"):
        await limiter.acquire(key, rate=1, burst=1)
    assert clock.seconds == 0


async def test_nobody_overtakes() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    order: list[int] = []

    async def call(number: int) -> None:
        await limiter.acquire("account", rate=1, burst=1)
        order.append(number)

    await asyncio.gather(*(call(number) for number in range(6)))
    assert order == [0, 1, 2, 3, 4, 5]
    assert clock.seconds == 5


async def test_a_hold_lets_nobody_call() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    await limiter.hold("account", 30)
    await limiter.acquire("account", rate=100, burst=10)
    assert clock.seconds == 30


async def test_a_hold_reaches_those_who_wait_already() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    await limiter.acquire("account", rate=1, burst=1)
    waiting = asyncio.create_task(limiter.acquire("account", rate=1, burst=1))
    await asyncio.sleep(0)  # it sleeps its second, then looks again
    await limiter.hold("account", 60)
    await waiting
    assert clock.seconds >= 60


async def test_after_a_hold_only_one_call_goes_at_once() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    await limiter.hold("account", 5)
    times = []
    for _ in range(3):
        await limiter.acquire("account", rate=2, burst=10)
        times.append(clock.seconds)
    assert times == [5, 5.5, 6]


async def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    await limiter.hold("account", 30)
    await limiter.hold("account", 1)
    await limiter.acquire("account", rate=1, burst=1)
    assert clock.seconds == 30


async def test_a_waiter_that_gives_up_takes_nothing() -> None:
    class StuckClock(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    clock = StuckClock()
    limiter = LocalRateLimiter(clock)
    await limiter.acquire("account", rate=1, burst=1)
    waiting = asyncio.create_task(limiter.acquire("account", rate=1, burst=1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    clock.seconds = 1
    await limiter.acquire("account", rate=1, burst=1)  # would hang if the token were gone


async def test_idle_budgets_are_forgotten() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    for number in range(MAX_BUCKETS):
        await limiter.acquire(f"account {number}", rate=1, burst=1)
    clock.seconds = 3600
    await limiter.acquire("one more", rate=1, burst=1)
    assert limiter.budgets == 1


@given(
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_no_stretch_of_time_sees_more_than_burst_and_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    bucket, now, granted = TokenBucket(tokens=burst, updated=0.0), 0.0, []
    for pause in pauses:
        now += pause
        while not bucket.wait(now, rate, burst):
            granted.append(now)
    for first, start in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= burst + rate * (granted[last] - start) + 1e-6
