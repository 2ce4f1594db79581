"""Where records are written: one resource of one account, with what all ways of writing it share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.batching import Write, WriteGroup, sent_key
from engine.caller import Caller
from engine.calls import Request
from engine.manifest import Connector, IdempotencyKey, Resource
from engine.outcomes import WriteResult
from engine.ports import Clock
from engine.reading import Reader, write_rfc3339


async def _none_linked(resource: str, remote_ids: Sequence[str]) -> Mapping[str, str]:
    return {}


async def _not_kept(group: WriteGroup, job: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Books:
    """What is asked and told while a group is written.

    `linked` says which remote ids of a resource are linked, and to which local ids. `submitted` saves the
    name of a job before it is waited for. `stopped` says whether to stop waiting.
    """

    linked: Callable[[str, Sequence[str]], Awaitable[Mapping[str, str]]] = _none_linked
    submitted: Callable[[WriteGroup, str], Awaitable[None]] = _not_kept
    stopped: Callable[[], bool] = lambda: False


NO_BOOKS = Books()


@dataclass(slots=True)
class Claims:
    """Which records of a resource this client has made or adopted, and for whom: not every link is saved yet.

    Kept for resources that are searched, where a record found may be one that was made a moment ago.
    """

    owners: dict[str, str] = field(default_factory=dict)  # remote id to local id
    being_made: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        self.being_made += 1
        try:
            yield
        finally:
            self.being_made -= 1
            async with self.changed:
                self.changed.notify_all()

    async def none_being_made(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: not self.being_made)


@dataclass(frozen=True, slots=True)
class Target:
    """A resource of an account, to be written."""

    connector: Connector
    caller: Caller
    reader: Reader
    clock: Clock
    resource: Resource
    books: Books
    claims: Claims

    @property
    def reads_first(self) -> bool:
        """Say whether an update needs what is there now."""
        return self.resource.updates != "sparse"

    @property
    def can_be_asked(self) -> bool:
        """Say whether a record can be read by its id."""
        return self.resource.get is not None or self.resource.get_many is not None

    def now(self) -> str:
        return write_rfc3339(self.clock.now())

    async def scope(self, write: Write) -> dict[str, Any]:
        """Return what the templates of a call for this record see."""
        account = await self.caller.account()
        return {**account.scope, "key": write.local_id, "record": write.body, "now": self.now()}

    async def each(self, calls: Iterable[Coroutine[Any, Any, WriteResult]]) -> list[WriteResult]:
        """Make calls that have nothing to do with each other, together where the provider allows it."""
        if self.resource.one_write_at_a_time:
            return [await call for call in calls]
        done = await asyncio.gather(*calls, return_exceptions=True)
        results: list[WriteResult] = []
        for each in done:
            if isinstance(each, BaseException):
                raise each
            results.append(each)
        return results

    def made(self, result: WriteResult) -> WriteResult:
        """Claim a record that was just made for the one it was made of."""
        if self.resource.find is not None and result.error is None and result.remote_id is not None:
            self.claims.owners[result.remote_id] = result.write.local_id
        return result


def with_key(request: Request, limit: IdempotencyKey | None, key: str) -> Request:
    return limit.send.put(request, sent_key(key, limit)) if limit else request
