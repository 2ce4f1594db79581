"""Keys that providers publish, fetched when a delivery needs them and kept for a while.

Strangers can send deliveries, so nobody makes the hub fetch at will: what an address holds is fetched once an
hour, once more a minute for a key that isn't there, and new addresses that deliveries name together a few
dozen times a minute. Those that manifests name neither count among these nor make room for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from engine.errors import ForbiddenAddressError, UnavailableError, UnexpectedResponseError
from engine.expressions import Expression
from engine.public_keys import keys_in

KEPT_SECONDS = 3600.0
AGAIN_SECONDS = 60.0  # between two looks for a key that isn't there, and after one that failed
FETCH_SECONDS = 2.0  # a provider waits for its answer meanwhile
MOST_BYTES = 256 * 1024
MOST_KEPT = 100  # addresses
MOST_FETCHES = 30  # of addresses named by deliveries at which no keys were found yet, in AGAIN_SECONDS


@dataclass(slots=True)
class _Kept:
    named: bool  # by a delivery
    keys: tuple[str, ...] = ()
    fetched: float | None = None  # when its keys came
    tried: float | None = None  # when they were last asked for
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class PublishedKeys:
    """What a process has fetched lately, by address. `http` is what guards where calls go."""

    http: httpx.AsyncClient
    monotonic: Callable[[], float] = time.monotonic
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _fetches: list[float] = field(default_factory=list)

    async def at(
        self, url: str, read: Expression | None = None, *, again: bool = False, named: bool = True
    ) -> tuple[str, ...]:
        """Return the keys at an address, as `public_keys.load_key` takes them.

        `again` is for a delivery that those known don't prove: they are looked up anew, but not often.
        `named` tells whether a delivery named the address, and so maybe a stranger. Raises UnavailableError
        when none are known and they can't be had now.
        """
        kept = self._kept.get(url)
        if kept is None:
            self._make_room()
            kept = self._kept[url] = _Kept(named)
        asked = self.monotonic()
        async with kept.fetching:
            if self._is_due(kept, asked, again):
                await self._fetch(url, read, kept)
        if not kept.keys:
            raise UnavailableError("the keys that webhooks are signed with can't be had now")
        return kept.keys

    def _make_room(self) -> None:
        """Forget what is of no use first, or what came longest ago."""
        if len(self._kept) >= MOST_KEPT:
            self._kept = {url: kept for url, kept in self._kept.items() if kept.keys or not kept.named}
        if len(self._kept) >= MOST_KEPT:
            named = [url for url, kept in self._kept.items() if kept.named]
            del self._kept[min(named or self._kept, key=lambda url: self._kept[url].fetched or 0.0)]

    def _is_due(self, kept: _Kept, asked: float, again: bool) -> bool:
        if kept.tried is None:
            return True
        old = kept.fetched is None or asked - kept.fetched >= KEPT_SECONDS
        return (old or again) and asked - kept.tried >= AGAIN_SECONDS

    async def _fetch(self, url: str, read: Expression | None, kept: _Kept) -> None:
        now = self.monotonic()
        # Where keys were found before, they may always be looked for again.
        if kept.named and kept.fetched is None:
            self._fetches = [each for each in self._fetches if now - each < AGAIN_SECONDS]
            if len(self._fetches) >= MOST_FETCHES:
                return
            self._fetches.append(now)
        kept.tried = now
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                kept.keys = keys_in(await self._load(url), read)
            kept.fetched = now
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ForbiddenAddressError, UnexpectedResponseError):
            return  # those known before count on; TimeoutError is an OSError

    async def _load(self, url: str) -> bytes:
        async with self.http.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise UnexpectedResponseError(f"the keys were answered with {response.status_code}")
            found = b""
            async for piece in response.aiter_bytes():
                found += piece
                if len(found) > MOST_BYTES:
                    raise UnexpectedResponseError("what should hold keys is too long")
        return found
