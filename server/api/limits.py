"""How often one caller may ask: counted in Redis, over all processes together.

Deliveries of webhooks, what administrators do and everything else are counted apart, each in windows that
begin with a caller's first request. A caller is whom a valid token names; without one, an address. Nothing is
counted where browsers come back from providers, nor of probes, metrics and the API's description. While Redis
is away nobody is refused.
"""

import asyncio
import hashlib
import ipaddress
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import structlog
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.clock import SystemClock
from engine.ports import Clock
from server.api.guards import IDENTIFIED, identify_scope
from server.api.paths import PATH
from server.errors import TooManyRequestsError, UnauthorizedError
from server.settings import Settings
from server.telemetry.metrics import REFUSED, UNCOUNTED

log = structlog.get_logger(__name__)

GENERAL, WEBHOOKS, ADMIN = "general", "webhooks", "admin"
STANDING = "rate_limit"  # in a request's state
ANSWER_SECONDS = 0.5  # a Redis that takes longer counts as away
RETRY_SECONDS = 1.0  # between two tries to reach it
_PREFIXES = ((f"{PATH}/oauth/callback/", None), (f"{PATH}/admin/", ADMIN), (PATH, GENERAL))
_KEY = "hub:requests"
_COUNT = """
local counted = {}
for i, key in ipairs(KEYS) do
    local count = redis.call('INCRBY', key, ARGV[i + 1])
    local left = redis.call('PTTL', key)
    if left < 0 then
        left = tonumber(ARGV[1])
        redis.call('PEXPIRE', key, left)
    end
    counted[i] = {count, left}
end
return counted
"""
_MOST_AT_ONCE = 200  # requests in one question


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands after this request: `reset` is the seconds until its window ends."""

    limit: int
    count: int
    reset: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.count)


class RequestCounts:
    """The counts of all callers. `take` never fails: that Redis is away is no caller's concern.

    Requests that come while Redis is asked share the next question.
    """

    def __init__(self, redis: Redis, settings: Settings, *, clock: Clock | None = None) -> None:
        self.limits: Mapping[str, int] = {
            GENERAL: settings.rate_limit_general,
            WEBHOOKS: settings.rate_limit_webhooks,
            ADMIN: settings.rate_limit_admin,
        }
        self._window_ms = settings.rate_limit_window_ms
        self._count = redis.register_script(_COUNT)
        self._clock = clock or SystemClock()
        self._away = False
        self._try_again = 0.0
        self._waiting: list[tuple[str, asyncio.Future[tuple[int, int] | None]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def take(self, kind: str, caller: str) -> Standing | None:
        """Count one request; None when this kind has no limit or Redis doesn't answer."""
        limit = self.limits[kind]
        if not limit:
            return None
        if self._away:
            now = self._clock.monotonic()
            if now < self._try_again:
                UNCOUNTED.add(kind)
                return None
            self._try_again = now + RETRY_SECONDS  # one request finds out; the others don't wait for it
        counted: asyncio.Future[tuple[int, int] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_key(kind, caller), counted))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        found = await counted
        if found is None:
            UNCOUNTED.add(kind)
            return None
        return Standing(limit, found[0], max(1, ceil(found[1] / 1000)))

    async def _ask(self) -> None:
        some: list[tuple[str, asyncio.Future[tuple[int, int] | None]]] = []
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                counts = await self._counts([key for key, _ in some])
                if counts is None:
                    break
                for (_, counted), found in zip(some, counts, strict=True):
                    if not counted.done():  # whoever asked may have gone
                        counted.set_result(found)
        finally:  # whatever happened, nobody is kept
            for _, counted in (*some, *self._waiting):
                if not counted.done():
                    counted.set_result(None)
            self._waiting = []
            self._asking = None

    async def _counts(self, keys: Sequence[str]) -> Sequence[tuple[int, int]] | None:
        """Return, for each request, the count that it brought its key to and the window's milliseconds."""
        asked = Counter(keys)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._count(keys=list(asked), args=[self._window_ms, *asked.values()])
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            if not self._away:
                log.warning("requests.not_counted", error=type(error).__name__)
            self._away, self._try_again = True, self._clock.monotonic() + RETRY_SECONDS
            return None
        if self._away:
            log.info("requests.counted_again")
        self._away = False
        stand = {key: (int(count), int(left)) for key, (count, left) in zip(asked, found, strict=True)}
        counts = []
        for key in keys:
            asked[key] -= 1
            count, milliseconds = stand[key]
            counts.append((count - asked[key], milliseconds))
        return counts


class RateLimits(ASGIMiddleware):
    """Refuses what is over a caller's limit, before anything else is done about it."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        kind = kind_of(scope)
        counts: RequestCounts | None = scope["litestar_app"].state.get("request_counts")
        if kind is not None and counts is not None and counts.limits[kind]:
            standing = await counts.take(kind, self._caller(scope, kind))
            if standing is not None:
                scope["state"][STANDING] = standing
                if standing.count > standing.limit:
                    REFUSED.add(kind)
                    raise TooManyRequestsError(retry_after=standing.reset)
        await next_app(scope, receive, send)

    def _caller(self, scope: Scope, kind: str) -> str:
        host = network(scope["client"][0] if scope["client"] else None)
        if kind == WEBHOOKS:  # one provider's deliveries don't stand in another's way
            return f"{host} {scope['path_params'].get('provider')}"
        if not scope["route_handler"].opt.get("public"):
            try:
                caller = identify_scope(scope, self.settings)
            except UnauthorizedError:  # said later, to as many as the address may ask for
                return host
            scope["state"][IDENTIFIED] = caller
            return f"user {caller.id}"
        return host


def kind_of(scope: Scope) -> str | None:
    """Return what a request counts as; None for one that isn't counted."""
    if scope["route_handler"].opt.get("raw_body"):
        return WEBHOOKS
    return next((kind for prefix, kind in _PREFIXES if scope["path"].startswith(prefix)), None)


@lru_cache(maxsize=4096)
def _key(kind: str, caller: str) -> str:
    # A caller may be a person: Redis needn't know which.
    return f"{_KEY}:{kind}:{hashlib.sha256(caller.encode()).hexdigest()[:32]}"


@lru_cache(maxsize=4096)
def network(host: str | None) -> str:
    """Return whom an address belongs to: of IPv6, one subscriber has a whole network."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


async def send_standing(message: Message, scope: Scope) -> None:
    """Tell a caller on every answer that was counted where it stands."""
    standing: Standing | None = scope["state"].get(STANDING)
    if standing is not None and message["type"] == "http.response.start":
        message["headers"] = [
            *message["headers"],
            (b"ratelimit-limit", b"%d" % standing.limit),
            (b"ratelimit-remaining", b"%d" % standing.remaining),
            (b"ratelimit-reset", b"%d" % standing.reset),
        ]
