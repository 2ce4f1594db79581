"""Call one provider account by its manifest: read records in pages, write records with an outcome for
each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import httpx

from engine.auth import check_kept
from engine.batching import Write, WriteGroup, split
from engine.caller import Answer, Caller, CallReport, Quota, whole
from engine.calls import Request
from engine.clock import SystemClock
from engine.errors import ManifestError, NothingFoundError, ProviderError
from engine.filling import call_label, fill_call
from engine.manifest import AfterConnecting, CallSpec, Connector, Resource
from engine.observing import leaves, path_meant
from engine.pagination import Ceilings
from engine.ports import Clock, CredentialSource, RateLimiter
from engine.rate_limits import LocalRateLimiter
from engine.reading import ReadBatch, Reader, ReadRecord, write_rfc3339
from engine.writing import NO_BOOKS, Books, Writer, WriteResult

__all__ = [
    "Answer",
    "Books",
    "CallReport",
    "Ceilings",
    "ProviderClient",
    "Quota",
    "ReadBatch",
    "ReadRecord",
    "Write",
    "WriteGroup",
    "WriteResult",
]

OnRecords = Callable[[str, Sequence[Mapping[str, Any]]], None]
FORBIDDEN = (403, 404)  # answers to what this account may not see, or doesn't have


class ProviderClient:
    """One provider account, called by its manifest.

    `on_call` is told of every HTTP exchange, `on_records` of records as the provider gave them, with their
    resource: those of a page, looked up by id, or answered to writes; `on_unknown` of a resource and the path
    of something sent that the provider answered it doesn't know. Clients of one account share a limiter
    to keep to its limits together; `budget` names the account there when its connection doesn't. Every method
    raises AuthenticationError, RateLimitedError, UnavailableError, UnexpectedResponseError or another
    ProviderError for what ends a run, and ForbiddenAddressError for an address that may not be called.
    """

    def __init__(
        self,
        connector: Connector,
        credentials: CredentialSource,
        *,
        http: httpx.AsyncClient,
        limiter: RateLimiter | None = None,
        clock: Clock | None = None,
        on_call: Callable[[CallReport], None] | None = None,
        on_records: OnRecords | None = None,
        on_unknown: Callable[[str, str], None] | None = None,
        ceilings: Ceilings | None = None,
        budget: str | None = None,
    ) -> None:
        clock, ceilings = clock or SystemClock(), ceilings or Ceilings()
        self.connector = connector
        self._clock = clock
        self._on_records = on_records
        self._on_unknown = on_unknown
        self._caller = Caller(
            connector,
            credentials,
            http=http,
            limiter=limiter or LocalRateLimiter(clock),
            clock=clock,
            on_call=on_call,
            ceilings=ceilings,
            budget=budget,
        )
        self._reader = Reader(connector, self._caller, clock, ceilings)
        self._writer = Writer(connector, self._caller, self._reader, clock)

    @property
    def calls(self) -> int:
        """How many HTTP exchanges were made, attempts that failed included."""
        return self._caller.calls

    @property
    def bytes_read(self) -> int:
        """How many bytes the answers had, as sent."""
        return self._caller.bytes_read

    @property
    def quota(self) -> Quota | None:
        """What the provider last said is left of the account's calls, where the manifest says how it does."""
        return self._caller.quota

    @property
    def answered_in(self) -> float | None:
        """How many seconds the provider took for its last answer; waits for a turn aren't counted."""
        return self._caller.answered_in

    async def check(self) -> None:
        """Make the manifest's cheap call, which proves that the credentials work."""
        await self._call(self.connector.check, {})

    async def learn(self, *, check: bool = False, again: bool = False) -> dict[str, Any]:
        """Make the manifest's lookups after connecting; returns the values to keep in `connection`.

        A lookup whose values are all known already is left out, and so is an optional one that the provider
        forbids, or has no value for. This client knows what it learned. With `check` the manifest's cheap
        call is made as well, as soon as it is known where the account is. Raises NothingFoundError for a
        value that isn't there, and UnexpectedResponseError for one that isn't as the manifest declares it.

        With `again`, only those are made that keep a list, or a value that wasn't there so far; what is
        returned are such values, and the lists that hold something else by now. A single value stays what it
        is: a venue may have chosen it.
        """
        learned: dict[str, Any] = {}
        for lookup in self.connector.after_connecting:
            account = await self._caller.account()
            known = account.scope["connection"]
            lists = {name for name in lookup.keep if again and isinstance(known.get(name), list)}
            other = bool(lookup.methods) and account.method not in lookup.methods
            if other or (lookup.keep.keys() <= known.keys() and not lists):
                continue
            elsewhere = lookup.call.path.startswith("https://")
            if check and not elsewhere:
                await self.check()
                check = False
            scope = {**account.scope, "now": write_rfc3339(self._clock.now())}
            if not lookup.signed:
                scope["access_token"] = account.credentials.values["access_token"].reveal()
            request = fill_call(lookup.call, scope)
            try:
                answer = await self._caller.call(
                    call_label(lookup.call), request, whole, elsewhere=elsewhere, signed=lookup.signed
                )
            except ProviderError as error:
                refused = error.status in FORBIDDEN or (error.status == 401 and not lookup.signed)
                if lookup.optional and refused:
                    continue
                raise
            found = self._kept(lookup, answer, scope)
            new = {
                name: value
                for name, value in found.items()
                if (_differ(value, known[name]) if name in lists else name not in known)
            }
            learned.update(new)
            self._caller.learn(new)
        if check:
            await self.check()
        return learned

    def _kept(self, lookup: AfterConnecting, answer: Answer, scope: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, expression in lookup.keep.items():
            value = expression.evaluate(answer.body, {"body": answer.body, "connection": scope["connection"]})
            declared = self.connector.connection.get(name)
            if value is not None:
                kept[name] = value
            elif not lookup.optional and (declared is None or not declared.optional):
                what = declared.title if declared is not None else name
                raise NothingFoundError(
                    f"this account at {self.connector.title} has none of these: {what} (`{name}`), which "
                    f"`{call_label(lookup.call)}` looks up",
                    field=f"connection.{name}",
                )
        check_kept(self.connector, kept)
        return kept

    async def call(self, request: Request) -> Answer:
        """Make any one call of this account, with all that goes for the others: signing, limits, retries."""
        return await self._caller.call(f"{request.method} {request.url.partition('?')[0]}", request, whole)

    def pages(
        self,
        resource: str,
        *,
        since: datetime | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[ReadBatch, None]:
        """Stream a resource's records page by page; the next page is fetched while this one is worked on.

        With `since`, only what changed after that moment, as far as the provider can tell: from its feed of
        changes where the manifest names one that reaches back so far. A feed may name a record more than
        once, usually newest first: compare `changed_at`. `resume` continues a read that stopped after a
        batch, with the same `since`. Raises StaleCursorError when the read has to start again. Close the
        iterator when leaving it early.
        """
        pages = self._reader.pages(self._resource(resource), since, resume)
        return pages if self._on_records is None else _told(pages, resource, self._on_records)

    async def get(self, resource: str, record_id: str) -> dict[str, Any] | None:
        """Return one record, or None when the provider has none under this id (any more)."""
        return await self._reader.get(self._resource(resource), record_id)

    async def get_many(self, resource: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return records by id; those the provider doesn't have (any more) are left out."""
        return await self._reader.get_many(self._resource(resource), ids)

    async def look_up(self, resource: str, ids: Sequence[str]) -> dict[str, ReadRecord]:
        """Return records by id as `pages` would, with the moment they changed; missing ones are left out."""
        found = await self._reader.look_up(self._resource(resource), ids)
        if self._on_records is not None and found:
            self._on_records(resource, [row.record for row in found.values() if not row.deleted])
        return found

    def plan(self, resource: str, writes: Sequence[Write]) -> list[WriteGroup]:
        """Split writes into calls. The same writes give the same groups under the same keys."""
        return split(self._resource(resource), writes)

    async def send(self, group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        """Write a group; returns a result for each of its writes, in their order.

        A group sent again under the same key makes the same calls with the same keys. One record's failure is
        its result, never an exception. A group with a `job` isn't sent again but waited for. `books` says
        which records are linked, and is told of jobs.
        """
        results = await self._writer.send(self._resource(group.resource), group, books)
        if self._on_records is not None:
            answered = [each.record for each in results if each.record is not None and each.error is None]
            if answered:
                self._on_records(group.resource, answered)
        if self._on_unknown is not None:
            for path in sorted({path for each in results if (path := _unknown(each)) is not None}):
                self._on_unknown(group.resource, path)
        return results

    async def archive(self, resource: str, record_id: str, key: str) -> None:
        """Put a record out of use as the manifest says. One that is gone already is done.

        `key` makes a repetition harmless; for the same record it changes when it came back in between. Raises
        RecordRejectedError when the provider refuses this record.
        """
        await self._writer.archive(self._resource(resource), record_id, key)

    async def delete(self, resource: str, record_id: str) -> None:
        """Delete a record. One that is gone already is done. Raises RecordRejectedError for a refusal."""
        await self._writer.delete(self._resource(resource), record_id)

    async def find(self, resource: str, record: Mapping[str, Any]) -> list[ReadRecord]:
        """Return what the manifest's search finds for a record's content; the resource has a `find`."""
        found = self._resource(resource)
        account = await self._caller.account()
        scope = {**account.scope, "record": record, "now": write_rfc3339(self._clock.now())}
        return await self._reader.find(found, scope)

    async def make(self, call: CallSpec, scope: Mapping[str, Any]) -> Any:
        """Make a call as a manifest writes it, filled from `scope`; returns the body of its answer."""
        return (await self._call(call, scope)).body

    async def _call(self, call: CallSpec, scope: Mapping[str, Any]) -> Answer:
        account = await self._caller.account()
        now = write_rfc3339(self._clock.now())
        request = fill_call(call, {**account.scope, "now": now, **scope})
        return await self._caller.call(call_label(call), request, whole)

    def _resource(self, name: str) -> Resource:
        resource = self.connector.resources.get(name)
        if resource is None:
            known = ", ".join(self.connector.resources)
            raise ManifestError(f"{self.connector.name} has no resource `{name}`; it has {known}")
        return resource


async def _told(
    pages: AsyncGenerator[ReadBatch, None], resource: str, on_records: OnRecords
) -> AsyncGenerator[ReadBatch, None]:
    async with aclosing(pages):
        async for batch in pages:
            if batch.records:
                on_records(resource, [row.record for row in batch.records if not row.deleted])
            yield batch


def _unknown(result: WriteResult) -> str | None:
    """Return the path of what was sent that the provider says it doesn't know; it may name it otherwise."""
    if not result.heal or result.error is None or not result.error.field:
        return None
    return path_meant(result.error.field, [path for path, _ in leaves(result.write.body)])


def _differ(found: Any, known: Sequence[Any]) -> bool:
    """Say whether a list holds something else than one already known; their order means nothing."""
    return isinstance(found, list) and sorted(map(str, found)) != sorted(map(str, known))
