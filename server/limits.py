"""One budget for each provider account, kept in Redis by all processes together.

Every decision is one script, so it is atomic, and the only clock is Redis's own. A call takes a token at once
or is told when to ask again; until then it stands in a queue, so that processes take turns. Calls of the
critical lane stand before all others, and part of what may go at once is theirs alone.

A slot is a lease, extended while its call lasts: those of a killed process are free again within seconds.
While Redis is away each process keeps to the limits by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.clock import SystemClock
from engine.errors import RateLimitedError
from engine.ports import Clock, RateLimiter
from engine.rate_limits import SAME_WINDOW, LocalRateLimiter, check_wait
from server.telemetry.metrics import BUDGET_SECONDS

T = TypeVar("T")
Arguments = list[str | int | float]  # of a script

log = structlog.get_logger(__name__)

RESERVED_BURST = 0.2  # of what may go at once beyond one call: for the critical lane
RESERVED_SLOTS = 10  # one slot in so many is for the critical lane; with fewer it only goes first
LEASE_SECONDS = 6.0  # a slot stays so long with a process that doesn't answer
TURN_SECONDS = 2.0  # so long a place in a queue is kept after it was due
RETRY_SECONDS = 1.0  # between two tries to reach Redis while it is away


class SharedLimits:
    """The limits of all accounts, for one process. That Redis is away is never the caller's concern."""

    def __init__(self, redis: Redis, *, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.local = LocalRateLimiter(self.clock)
        self.redis = redis
        self.take = redis.register_script(_TAKE)
        self.hold = redis.register_script(_HOLD)
        self.lower = redis.register_script(_LOWER)
        self.enter = redis.register_script(_ENTER)
        self.leave = redis.register_script(_LEAVE)
        self._renew = redis.register_script(_RENEW)
        self._away = False
        self._try_again = 0.0
        self._leases: dict[str, str] = {}  # ticket to the key of its slots
        self._renewing: asyncio.Task[None] | None = None

    def lane(self, *, critical: bool) -> RateLimiter:
        """Return the limiter for the calls of one run."""
        return _LaneLimiter(self, critical)

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """Return Redis's answer, or None while it is away."""
        now = self.clock.monotonic()
        if self._away and now < self._try_again:
            return None
        self._try_again = now + RETRY_SECONDS  # one call finds out; the others don't wait for it
        try:
            answer = await question()
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("limits.unreachable", error=type(error).__name__)
            self._away = True
            return None
        if self._away:
            log.info("limits.reachable")
        self._away = False
        return answer

    def keep(self, ticket: str, key: str) -> None:
        """Extend a slot's lease until it is given back."""
        self._leases[ticket] = key
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._keep_leases())

    def give_back(self, ticket: str) -> None:
        """Extend a slot's lease no longer."""
        self._leases.pop(ticket, None)

    async def _keep_leases(self) -> None:
        while self._leases:
            await asyncio.sleep(LEASE_SECONDS / 3)
            if self._leases:
                tickets, keys = list(self._leases), list(self._leases.values())
                await self.ask(partial(self._renew, keys=keys, args=[_micros(LEASE_SECONDS), *tickets]))


@dataclass(slots=True)
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass(slots=True)
class _LaneLimiter:
    """The `RateLimiter` port for one run. Its calls queue here first, so that one of them asks Redis."""

    limits: SharedLimits
    critical: bool
    queues: dict[str, _Queue] = field(default_factory=dict)

    async def acquire(self, key: str, rate: float, burst: float) -> None:
        limits, names, ticket = self.limits, _names("budget", key), secrets.token_hex(8)
        burst, asked = max(burst, 1.0), limits.clock.monotonic()
        reserve = 0.0 if self.critical else (burst - 1) * RESERVED_BURST
        args: Arguments = [ticket, int(self.critical), rate, burst, reserve, _micros(TURN_SECONDS)]
        async with self._in_line(names[0]):
            try:
                while wait := await limits.ask(partial(limits.take, keys=names, args=args)):
                    check_wait(wait / 1e6)
                    await limits.clock.sleep(wait / 1e6)
            except (asyncio.CancelledError, RateLimitedError):
                for name in names[1:3]:
                    await limits.ask(partial(limits.redis.zrem, name, ticket))
                raise
            if wait is None:
                await limits.local.acquire(key, rate, burst)
        BUDGET_SECONDS.observe(limits.clock.monotonic() - asked, key.partition(" ")[0])

    async def hold(self, key: str, seconds: float) -> None:
        limits = self.limits
        await limits.local.hold(key, seconds)
        await limits.ask(partial(limits.hold, keys=_names("budget", key), args=[_micros(seconds)]))

    async def lower(self, key: str, left: int, seconds: float | None) -> None:
        limits = self.limits
        await limits.local.lower(key, left, seconds)
        args = [left, -1 if seconds is None else _micros(seconds), _micros(SAME_WINDOW)]
        await limits.ask(partial(limits.lower, keys=_names("budget", key), args=args))

    def slot(self, key: str, most: int) -> AbstractAsyncContextManager[None]:
        return self._slot(key, most)

    @asynccontextmanager
    async def _slot(self, key: str, most: int) -> AsyncIterator[None]:
        limits, names, ticket = self.limits, _names("slots", key), secrets.token_hex(8)
        async with self._in_line(names[0]):
            entered = await self._enter(names, ticket, most)
        if not entered:
            async with limits.local.slot(key, most):
                yield
            return
        limits.keep(ticket, names[0])
        try:
            yield
        finally:
            limits.give_back(ticket)
            await self._leave(names, ticket, most)

    async def _enter(self, names: list[str], ticket: str, most: int) -> bool:
        """Wait for a slot; False while Redis is away. Whoever leaves rings for the first in the queue."""
        limits, bell = self.limits, f"{names[3]}{ticket}"
        reserve = 0 if self.critical else most // RESERVED_SLOTS
        args: Arguments = [ticket, int(self.critical), most, reserve]
        args += [_micros(LEASE_SECONDS), _micros(2 * TURN_SECONDS)]
        try:
            while wait := await limits.ask(partial(limits.enter, keys=names, args=args)):
                # Nobody rings for a slot whose holder was killed: its lease runs out.
                patience = min(wait / 1e6, TURN_SECONDS)
                await limits.ask(partial(limits.redis.blpop, [bell], timeout=patience))
        except asyncio.CancelledError:
            await self._leave(names, ticket, most)
            raise
        return wait is not None

    async def _leave(self, names: list[str], ticket: str, most: int) -> None:
        limits = self.limits
        args: Arguments = [ticket, most, most // RESERVED_SLOTS, _micros(LEASE_SECONDS)]
        await limits.ask(partial(limits.leave, keys=names, args=args))

    @asynccontextmanager
    async def _in_line(self, name: str) -> AsyncIterator[None]:
        queue = self.queues.setdefault(name, _Queue())
        queue.users += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.users -= 1
            if not queue.users:
                self.queues.pop(name, None)


def _names(kind: str, key: str) -> list[str]:
    """Return the keys of a budget: its state, its queue, when places there end, and what bells begin with."""
    name = f"hub:{kind}:{{{key}}}"
    return [name, f"{name}:turns", f"{name}:ends", f"{name}:bell:"]


def _micros(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


# --- scripts. Times are microseconds, whole numbers that a double holds exactly.

_QUEUE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function whole(number) return string.format('%.0f', number) end

local function drop(ticket)
    redis.call('ZREM', KEYS[2], ticket)
    redis.call('ZREM', KEYS[3], ticket)
end

for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', whole(now))) do drop(gone) end

-- How many stand before a ticket; the critical ones, below zero, before all others.
local function place(ticket, critical)
    local rank = redis.call('ZRANK', KEYS[2], ticket)
    if rank then return rank end
    if critical then return redis.call('ZCOUNT', KEYS[2], '-inf', '(0') end
    return redis.call('ZCARD', KEYS[2])
end

local function stand(ticket, critical, ends)
    redis.call('ZADD', KEYS[2], 'NX', whole(critical and now - 1e16 or now), ticket)
    redis.call('ZADD', KEYS[3], whole(ends), ticket)
    for index = 2, 3 do redis.call('PEXPIRE', KEYS[index], whole((ends - now) / 1000 + 60000)) end
end
"""

_TAKE = (
    _QUEUE
    + """
local ticket, critical = ARGV[1], ARGV[2] == '1'
local rate, burst, reserve = tonumber(ARGV[3]) / 1e6, tonumber(ARGV[4]), tonumber(ARGV[5])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'held', 'left', 'window')
local tokens, at, held = tonumber(kept[1] or burst), tonumber(kept[2] or now), tonumber(kept[3] or 0)
local left, window = tonumber(kept[4] or -1), tonumber(kept[5] or 0)
local before = place(ticket, critical)
local need, wait = before + 1 + reserve, 0

if now < held then
    wait = held - now + before / rate
elseif now < window and left < before + 1 then
    wait = window - now + before / rate
else
    tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
    at = now
    if tokens < need - 1e-6 then wait = math.max(1000, (need - tokens) / rate) end
end

if wait == 0 then
    tokens = tokens - 1
    if now < window then redis.call('HSET', KEYS[1], 'left', left - 1) end
    drop(ticket)
else
    wait = math.ceil(wait)
    stand(ticket, critical, now + wait + ARGV[6])
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens), 'at', whole(at))
local idle = math.max(held - now, window - now, 0) + burst / rate
redis.call('PEXPIRE', KEYS[1], whole(idle / 1000 + 60000))
return wait
"""
)

_HOLD = """
local time = redis.call('TIME')
local held = time[1] * 1000000 + time[2] + ARGV[1]
if held > tonumber(redis.call('HGET', KEYS[1], 'held') or 0) then
    local text = string.format('%.0f', held)
    -- The first call after it tells whether it was long enough.
    redis.call('HSET', KEYS[1], 'held', text, 'at', text, 'tokens', 1)
    local expires = math.max(redis.call('PTTL', KEYS[1]), ARGV[1] / 1000 + 60000)
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', expires))
end
"""

_LOWER = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local said, seconds = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'left', 'window')
local function write(...) redis.call('HSET', KEYS[1], ...) end
if seconds < 0 then
    if not kept[1] or tonumber(kept[1]) > said then
        write('tokens', said, 'at', string.format('%.0f', now))
    end
else
    local window = now + seconds
    local known = tonumber(kept[3] or 0)
    if now < known and window < known + ARGV[3] then
        write('left', math.min(tonumber(kept[2] or said), said))
    else
        write('left', said, 'window', string.format('%.0f', window))
    end
end
local expires = math.max(redis.call('PTTL', KEYS[1]), seconds / 1000 + 60000)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', expires))
"""

_SLOTS = (
    _QUEUE
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now))

local function grant(ticket, lease)
    redis.call('ZADD', KEYS[1], whole(now + lease), ticket)
    redis.call('PEXPIRE', KEYS[1], whole(lease / 1000 + 60000))
    drop(ticket)
end
"""
)

_ENTER = (
    _SLOTS
    + """
local ticket, critical, lease = ARGV[1], ARGV[2] == '1', tonumber(ARGV[5])
local free = ARGV[3] - redis.call('ZCARD', KEYS[1])
if redis.call('ZSCORE', KEYS[1], ticket) or free >= place(ticket, critical) + 1 + ARGV[4] then
    grant(ticket, lease)
    return 0
end
stand(ticket, critical, now + ARGV[6])
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return math.ceil(math.max(10000, (tonumber(first[2]) or now + lease) - now))
"""
)

_LEAVE = (
    _SLOTS
    + """
redis.call('ZREM', KEYS[1], ARGV[1])
drop(ARGV[1])
redis.call('DEL', KEYS[4] .. ARGV[1])
local free = ARGV[2] - redis.call('ZCARD', KEYS[1])
while free > 0 do
    local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
    if not first[1] or (tonumber(first[2]) >= 0 and free <= tonumber(ARGV[3])) then break end
    grant(first[1], tonumber(ARGV[4]))
    redis.call('LPUSH', KEYS[4] .. first[1], 1)
    redis.call('PEXPIRE', KEYS[4] .. first[1], 60000)
    free = free - 1
end
"""
)

_RENEW = """
local time = redis.call('TIME')
local lease = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[1])
for index, key in ipairs(KEYS) do
    redis.call('ZADD', key, 'XX', lease, ARGV[index + 1])
    redis.call('PEXPIRE', key, string.format('%.0f', ARGV[1] / 1000 + 60000))
end
"""
