"""Space calls out: token buckets, one per budget, first come first served.

A budget is a key: an account, or one call of an account. Waiters of a key queue in a lock, which is fair, so
nobody overtakes; a hold reaches those already waiting, since each looks again when it wakes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engine.clock import SystemClock
from engine.ports import Clock

MAX_BUCKETS = 10_000  # budgets remembered; idle ones beyond this are forgotten


@dataclass(slots=True)
class TokenBucket:
    """`burst` calls at once, refilled at `rate` a second; every time is the clock's monotonic seconds."""

    tokens: float
    updated: float
    held_until: float = 0.0

    def wait(self, now: float, rate: float, burst: float) -> float:
        """Take a token and return 0, or return the seconds until there may be one."""
        if now < self.held_until:
            return self.held_until - now
        self.tokens = min(burst, self.tokens + (now - self.updated) * rate)
        self.updated = now
        if self.tokens >= 1 - 1e-9:
            self.tokens = max(0.0, self.tokens - 1)
            return 0.0
        return (1 - self.tokens) / rate

    def hold(self, until: float) -> None:
        """Let no token out before `until`, and start from an empty bucket then."""
        if until > self.held_until:
            self.held_until = self.updated = until
            self.tokens = 1.0  # the first call after a hold tells whether it was long enough


@dataclass(slots=True)
class _Budget:
    bucket: TokenBucket
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)


class LocalRateLimiter:
    """The `RateLimiter` port within one process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._budgets: dict[str, _Budget] = {}

    @property
    def budgets(self) -> int:
        """How many budgets are remembered."""
        return len(self._budgets)

    async def acquire(self, key: str, rate: float, burst: float) -> None:
        """Wait until one call may be made under a budget of `rate` calls per second."""
        budget = self._budget(key, burst)
        async with budget.queue:
            while seconds := budget.bucket.wait(self._clock.monotonic(), rate, max(burst, 1.0)):
                await self._clock.sleep(seconds)

    async def hold(self, key: str, seconds: float) -> None:
        """Let nobody call under this budget for a while."""
        self._budget(key, 1.0).bucket.hold(self._clock.monotonic() + seconds)

    def _budget(self, key: str, burst: float) -> _Budget:
        budget = self._budgets.get(key)
        if budget is None:
            if len(self._budgets) >= MAX_BUCKETS:
                self._forget_idle()
            bucket = TokenBucket(tokens=max(burst, 1.0), updated=self._clock.monotonic())
            budget = self._budgets[key] = _Budget(bucket)
        return budget

    def _forget_idle(self) -> None:
        now = self._clock.monotonic()
        for key, budget in list(self._budgets.items()):
            bucket = budget.bucket
            if not budget.queue.locked() and now > max(bucket.held_until, bucket.updated) + 60:
                del self._budgets[key]
