"""Space calls out: token buckets and slots, one for each budget, first come first served.

A budget is a key: an account, or one call of an account. Waiters of a key queue in a lock, which is fair, so
nobody overtakes; a hold reaches those already waiting, since each looks again when it wakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from engine.clock import SystemClock
from engine.errors import RateLimitedError
from engine.ports import Clock

LONGEST_WAIT = 120.0  # seconds a run waits for a provider; told to wait longer, it ends and comes back later
MAX_BUCKETS = 10_000  # budgets remembered; idle ones beyond this are forgotten
SAME_WINDOW = 1.5  # seconds by which answers may differ about a window's end: they count in whole ones


def check_wait(seconds: float) -> None:
    """Raise RateLimitedError for a wait that is too long for a run."""
    if seconds > LONGEST_WAIT:
        raise RateLimitedError(f"the provider allows no call for {seconds:.0f} seconds", retry_after=seconds)


@dataclass(slots=True)
class TokenBucket:
    """`burst` calls at once, refilled at `rate` a second; every time is the clock's monotonic seconds."""

    tokens: float
    updated: float
    held_until: float = 0.0
    left: float | None = None  # calls the provider's own count leaves, until `left_until`
    left_until: float = 0.0

    def wait(self, now: float, rate: float, burst: float) -> float:
        """Take a token and return 0, or return the seconds until there may be one."""
        if now < self.held_until:
            return self.held_until - now
        self.tokens = min(burst, self.tokens + (now - self.updated) * rate)
        self.updated = now
        if self.left is not None and now >= self.left_until:
            self.left = None
        if self.left is not None and self.left < 1:
            return self.left_until - now
        if self.tokens < 1 - 1e-9:
            return (1 - self.tokens) / rate
        self.tokens = max(0.0, self.tokens - 1)
        if self.left is not None:
            self.left -= 1
        return 0.0

    def hold(self, until: float) -> None:
        """Let no token out before `until`, and start from an empty bucket then."""
        if until > self.held_until:
            self.held_until = self.updated = until
            self.tokens = 1.0  # the first call after a hold tells whether it was long enough

    def lower(self, now: float, left: int, seconds: float | None) -> None:
        """Let no more than `left` out within `seconds`; of one window the smallest number counts."""
        if seconds is None:
            self.tokens = min(self.tokens, left)
            return
        until = now + seconds
        known = self.left if now < self.left_until and until < self.left_until + SAME_WINDOW else None
        self.left = left if known is None else min(known, left)
        self.left_until = until if known is None else self.left_until


@dataclass(slots=True)
class _Budget:
    bucket: TokenBucket
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Slots:
    turns: asyncio.Semaphore
    users: int = 0


class LocalRateLimiter:
    """The `RateLimiter` port within one process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._budgets: dict[str, _Budget] = {}
        self._slots: dict[str, _Slots] = {}

    @property
    def budgets(self) -> int:
        """How many budgets are remembered."""
        return len(self._budgets)

    async def acquire(self, key: str, rate: float, burst: float) -> None:
        """Wait until one call may be made under a budget of `rate` calls per second, `burst` at once."""
        budget = self._budget(key, burst)
        async with budget.queue:
            while seconds := budget.bucket.wait(self._clock.monotonic(), rate, max(burst, 1.0)):
                check_wait(seconds)
                await self._clock.sleep(seconds)

    async def hold(self, key: str, seconds: float) -> None:
        """Let nobody call under this budget for a while."""
        self._budget(key, 1.0).bucket.hold(self._clock.monotonic() + seconds)

    async def lower(self, key: str, left: int, seconds: float | None) -> None:
        """Let at most `left` more calls go within `seconds` from now."""
        self._budget(key, max(left, 1.0)).bucket.lower(self._clock.monotonic(), left, seconds)

    @asynccontextmanager
    async def slot(self, key: str, most: int) -> AsyncIterator[None]:
        """Be one of at most `most` at the same time."""
        slots = self._slots.setdefault(key, _Slots(asyncio.Semaphore(most)))
        slots.users += 1
        try:
            async with slots.turns:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                self._slots.pop(key, None)

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
            settled = max(bucket.held_until, bucket.updated, bucket.left_until)
            if not budget.queue.locked() and now > settled + 60:
                del self._budgets[key]
