"""Write records, with an outcome for each: nothing is written twice, and one bad record harms no other.

Every call carries a key derived from its group's, so a group that is sent again after a crash is the same
calls word for word. What a provider refuses as a whole is halved until the bad record stands alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from engine.batching import (
    ItemResult,
    Kind,
    Sent,
    Write,
    WriteGroup,
    batch_spec,
    content_key,
    derived_key,
    fitting,
    halves,
    job_operation,
    job_spec,
    many_spec,
    name_in,
    pair_results,
    paired,
    sent_key,
)
from engine.bodies import (
    differs,
    final_body,
    holds,
    merge,
    new_body,
    not_in_updates,
    own_id,
    parts_of,
    path_of,
    renamed,
    version_of,
    without,
)
from engine.caller import Answer, Caller, RefusedError, whole
from engine.calls import Request
from engine.error_rules import is_failure, judge, judge_item
from engine.errors import (
    ExpressionError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.expressions import ABSENT, Path
from engine.filling import call_label, fill_call
from engine.jobs import JobLostError, Jobs
from engine.manifest import (
    Action,
    CallSpec,
    Connector,
    IdempotencyKey,
    Resource,
    WriteJob,
    WriteManySpec,
    WriteSpec,
)
from engine.ports import Clock
from engine.reading import Reader, write_rfc3339

Item = tuple[Write, Mapping[str, Any]]
Results = dict[str, "WriteResult"]

RELOADS = 3  # times a record is read again because somebody else changed it meanwhile
ITEM_TRIES = 3  # times a record that failed inside a batch is sent again


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of one write.

    Without `error` it is done, under `remote_id`. With one, `retryable` says whether trying again can help,
    and `answered` False that no answer came to its end: only the same group under the same key may be sent
    again. After a server error, which is an answer, the record may be there too, but its key can be spent:
    some providers replay their failure. An error together with a `remote_id` on a create means that the
    record is there, but a call that belongs to it failed. `changed_at` is RFC 3339 in UTC. `heal` says that
    the provider complains of a field, named by the error.
    """

    write: Write
    remote_id: str | None = None
    version: str | None = None
    changed_at: str | None = None
    record: Mapping[str, Any] | None = None
    error: ProviderError | None = None
    retryable: bool = False
    answered: bool = True
    heal: bool = False


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


class Writer:
    """Writes one account's records through its `Caller`."""

    def __init__(self, connector: Connector, caller: Caller, reader: Reader, clock: Clock) -> None:
        self.connector = connector
        self.caller = caller
        self.reader = reader
        self.clock = clock
        self.jobs = Jobs(caller, clock)
        self._claims: dict[str, _Claims] = {}

    async def send(self, resource: Resource, group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        """Write a group; returns a result for each of its writes, in their order."""
        claims = self._claims.setdefault(resource.name, _Claims())
        sender = _Sender(self, resource, books, claims)
        if not resource.one_write_at_a_time:
            return await sender.send(group)
        async with await self.caller.turn("writes"):
            return await sender.send(group)

    async def archive(self, resource: Resource, record_id: str, key: str) -> None:
        """Put a record out of use, as the manifest says; see `ProviderClient.archive`."""
        spec = resource.archive
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no `archive`")
        if spec.call is not None:
            await self._put_away(resource, spec.call, record_id)
            return
        body: dict[str, Any] = {}
        for text, value in spec.values.items():
            path_of(text).put(body, value)
        write = Write(record_id, record_id, body, key, only_existing=True)
        (result,) = await self.send(resource, WriteGroup(resource.name, key, (write,)))
        if result.error is not None and not _is_gone(result.error):
            raise result.error

    async def delete(self, resource: Resource, record_id: str) -> None:
        """Delete a record; see `ProviderClient.delete`."""
        if resource.delete is None:
            raise ManifestError(f"`{resource.name}` has no `delete`")
        await self._put_away(resource, resource.delete.call, record_id)

    async def _put_away(self, resource: Resource, call: CallSpec, record_id: str) -> None:
        one = resource.one_write_at_a_time
        async with await self.caller.turn("writes") if one else nullcontext():
            await self._put_away_now(resource, call, record_id)

    async def _put_away_now(self, resource: Resource, call: CallSpec, record_id: str) -> None:
        account = await self.caller.account()
        scope = {**account.scope, "id": record_id, "now": write_rfc3339(self.clock.now())}
        for left in reversed(range(RELOADS)):
            if resource.get is not None or resource.get_many is not None:
                current = await self.reader.get(resource, record_id)
                if current is None:
                    return
                scope |= {"record": current, "version": version_of(resource, current)}
            try:
                await self.caller.call(call_label(call), fill_call(call, scope), whole, writing=True)
            except RefusedError as refused:
                if _is_gone(refused):
                    return
                if refused.action != "reload_and_retry" or not left:
                    raise
            except ExpressionError as error:
                raise RecordRejectedError(error.message) from error
            else:
                return


@dataclass(slots=True)
class _Claims:
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


class _Sender:
    """Writes groups of one resource."""

    def __init__(self, writer: Writer, resource: Resource, books: Books, claims: _Claims) -> None:
        self._connector = writer.connector
        self._caller = writer.caller
        self._reader = writer.reader
        self._clock = writer.clock
        self._jobs = writer.jobs
        self._resource = resource
        self._books = books
        self._claims = claims
        self._reads_first = resource.updates != "sparse"

    async def send(self, group: WriteGroup) -> list[WriteResult]:
        job = job_spec(self._resource, group)
        if job is not None:
            results = await self._job(job, group)
            return [results[write.local_id] for write in group.writes]
        return await self._ordinary(group)

    async def _ordinary(self, group: WriteGroup) -> list[WriteResult]:
        spec = batch_spec(self._resource, group.kind, len(group.writes))
        if spec is not None:
            results = await self._many(spec, group)
            return [results[write.local_id] for write in group.writes]
        if len(group.writes) == 1:
            return [await self._one(group.writes[0], group.key)]
        return await self._each(
            self._one(write, derived_key(group.key, write.local_id)) for write in group.writes
        )

    async def _each(self, calls: Iterable[Coroutine[Any, Any, WriteResult]]) -> list[WriteResult]:
        """Make calls that have nothing to do with each other, together where the provider allows it."""
        if self._resource.one_write_at_a_time:
            return [await call for call in calls]
        done = await asyncio.gather(*calls, return_exceptions=True)
        results: list[WriteResult] = []
        for each in done:
            if isinstance(each, BaseException):
                raise each
            results.append(each)
        return results

    # ------------------------------------------------------------------------------ one record a call

    async def _one(self, write: Write, key: str) -> WriteResult:
        try:
            if write.remote_id is None:
                return await self._create(write, key)
            done = await self._update(write, write.remote_id, key)
            if write.adopted and done.error is None and self._resource.create is not None:
                scope = {**await self._scope(write), "result": done.record, "id": done.remote_id}
                return await self._follow_up(done, self._resource.create.then, scope)
            return done
        except (ProviderError, ExpressionError) as error:
            return _failed(write, error)

    async def _create(self, write: Write, key: str) -> WriteResult:
        spec = self._resource.create
        if spec is None:
            return await self._create_in_batch(write, key)
        scope = await self._scope(write)
        body = new_body(self._resource, without(write.body, parts_of(self._resource)), spec.new, scope)
        try:
            async with self._claims.making():
                record = await self._write(spec, body, scope, key, None)
                done = self._made(_done(self._resource, write, record, None))
        except RefusedError as refused:
            if refused.action != "adopt":
                raise
            return await self._adopt(write, body, key, refused)
        done = await self._follow_up(done, spec.then, {**scope, "result": record, "id": done.remote_id})
        return await self._parts(done, new=True)

    def _made(self, done: WriteResult) -> WriteResult:
        if self._resource.find is not None and done.error is None and done.remote_id is not None:
            self._claims.owners[done.remote_id] = done.write.local_id
        return done

    async def _create_in_batch(self, write: Write, key: str) -> WriteResult:
        spec = many_spec(self._resource, "create")
        if spec is None:
            raise ManifestError(f"`{self._resource.name}` has no call to create a record")
        new = replace(write, remote_id=None)
        return (await self._many(spec, WriteGroup(self._resource.name, key, (new,))))[write.local_id]

    async def _adopt(
        self, write: Write, body: Mapping[str, Any], key: str, refused: RefusedError
    ) -> WriteResult:
        """Update the record that is there already instead of making it, if it is beyond doubt which it is."""
        own = own_id(self._resource, body)
        if self._resource.update is None or (not own and self._resource.find is None):
            raise refused
        remote_id = own or await self._found(write, refused)
        return await self._update(replace(write, remote_id=remote_id), remote_id, key, recreate=False)

    async def _found(self, write: Write, refused: RefusedError) -> str:
        """Return the id of the one record with this content that belongs to no other of the platform's."""
        await self._claims.none_being_made()
        rows = await self._reader.find(self._resource, await self._scope(write))
        found = list(dict.fromkeys(row.id for row in rows if not row.deleted))
        owners = {**await self._books.linked(self._resource.name, found), **self._claims.owners}
        free = [each for each in found if owners.get(each, write.local_id) == write.local_id]
        if len(free) != 1:
            why = "more than one record could be it" if free else "it belongs to another record here already"
            raise RecordRejectedError(
                f"{refused.message}; {why if found else 'no such record can be found'}",
                status=refused.status,
                provider_code=refused.provider_code,
                request_id=refused.request_id,
                field=refused.field,
            )
        self._claims.owners[free[0]] = write.local_id
        return free[0]

    async def _update(self, write: Write, remote_id: str, key: str, *, recreate: bool = True) -> WriteResult:
        resource = self._resource
        spec = resource.update
        body: Mapping[str, Any] = without(write.body, not_in_updates(resource))
        current: Mapping[str, Any] | None = None
        if resource.immutable or self._reads_first:
            current = await self._reader.get(resource, remote_id)
            if current is None:
                return await self._recreate(write, key, recreate)
        if resource.immutable and current is not None:
            fixed = [path_of(text) for text in sorted(resource.immutable)]
            if any(differs(path, body, current) for path in fixed):
                return await self._replace(write, remote_id, key)
            body = without(body, {path.steps for path in fixed})
        if not body and (spec is None or resource.parts):
            return await self._parts(_done(resource, write, current, remote_id))
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no call to update a record")
        scope = {**await self._scope(write), "id": remote_id}
        for left in reversed(range(RELOADS)):
            final = final_body(resource, body, current, scope)
            content: Any = final
            if current is not None:
                if holds(resource, current, final):
                    return await self._parts(_done(resource, write, current, remote_id))
                version = version_of(resource, current)
                if version is not None:
                    scope["version"] = version
                if resource.updates == "versioned":
                    content = [final, version]
            try:
                record = await self._write(spec, final, scope, content_key(key, content), remote_id)
            except RefusedError as refused:
                if refused.action == "recreate":
                    if await self._is_there(remote_id):
                        raise  # it is there, though out of use: another one would be its twin
                    return await self._recreate(write, key, recreate, refused)
                if refused.action != "reload_and_retry" or not left:
                    raise
                current = await self._reader.get(resource, remote_id)
                if current is None:
                    return await self._recreate(write, key, recreate, refused)
            else:
                done = _done(resource, write, record, remote_id)
                done = await self._follow_up(done, spec.then, {**scope, "result": record})
                return await self._parts(done)
        raise AssertionError("the last reload raises or returns")

    async def _is_there(self, remote_id: str) -> bool:
        return _can_be_asked(self._resource) and await self._reader.get(self._resource, remote_id) is not None

    async def _recreate(
        self, write: Write, key: str, allowed: bool, why: RefusedError | None = None
    ) -> WriteResult:
        """The linked record is gone: make it again, once."""
        if not allowed or write.only_existing:
            raise why or RecordRejectedError("the record is gone at the provider", status=404)
        new = replace(write, remote_id=None)
        created = await self._create(new, derived_key(key, f"instead of {write.remote_id}"))
        return replace(created, write=write)

    async def _replace(self, write: Write, old_id: str, key: str) -> WriteResult:
        """Make a new record, since a field of the old one can't be changed, and put the old one out of
        use.
        """
        new = replace(write, remote_id=None)
        created = await self._create(new, derived_key(key, f"instead of {old_id}"))
        if created.error is not None or self._resource.retire is None:
            return replace(created, write=write)
        scope = {**await self._scope(write), "id": old_id, "result": created.record}
        return await self._follow_up(replace(created, write=write), (self._resource.retire.call,), scope)

    async def _follow_up(
        self, done: WriteResult, calls: Sequence[CallSpec], scope: Mapping[str, Any]
    ) -> WriteResult:
        """Make the calls that belong to a write that is done; a failure is reported with the record's id."""
        try:
            for call in calls:
                await self._caller.call(call_label(call), fill_call(call, scope), whole, writing=True)
        except (
            RefusedError,
            RateLimitedError,
            UnavailableError,
            UnexpectedResponseError,
            ExpressionError,
        ) as error:
            failed = _failed(done.write, error)
            return replace(done, error=failed.error, retryable=failed.retryable, answered=failed.answered)
        return done

    async def _parts(self, done: WriteResult, *, new: bool = False) -> WriteResult:
        """Write the fields that have a call of their own, where there is a value; a new record has nothing
        yet that an empty one could clear.
        """
        for text, call in self._resource.parts.items():
            value = path_of(text).find(done.write.body)
            if done.error is not None or value in (ABSENT, None) or (new and value in ("", [], {})):
                continue
            scope = {**await self._scope(done.write), "id": done.remote_id, "result": done.record}
            done = await self._follow_up(done, (call,), {**scope, "value": value})
        return done

    async def _write(
        self,
        spec: WriteSpec,
        body: Mapping[str, Any],
        scope: Mapping[str, Any],
        key: str,
        remote_id: str | None,
    ) -> Mapping[str, Any] | None:
        request = fill_call(spec.call, scope)
        constant = spec.record.get(request)
        request = spec.record.put(request, merge(constant, body) if isinstance(constant, Mapping) else body)
        request = _with_key(request, spec.idempotency_key, key)

        def read(answer: Answer) -> Mapping[str, Any] | None:
            record = spec.result.find(answer.body) if spec.result else answer.body
            if isinstance(record, Mapping) and (remote_id is not None or self._resource.id.find(record)):
                return record
            if remote_id is not None and not record:
                return None
            raise UnexpectedResponseError("the provider's answer to a write doesn't hold the record")

        keyed = remote_id is not None or spec.idempotency_key is not None
        return await self._caller.call(
            call_label(spec.call), request, read, writing=True, repeatable=keyed or request.method != "POST"
        )

    # -------------------------------------------------------------------------- many records a call

    async def _many(self, spec: WriteManySpec, group: WriteGroup) -> Results:
        batch = _Batch(self._resource, spec, group.kind, group.key)
        results: Results = {}
        try:
            items = await self._items(batch.kind, spec.new, group, results)
        except ProviderError as error:
            return {write.local_id: _failed(write, error) for write in group.writes}
        pieces = list(fitting(spec, items))
        for number, piece in enumerate(pieces):
            key = group.key if len(pieces) == 1 else derived_key(group.key, f"part {number}")
            results.update(await self._batch(batch, piece, key))
        return results

    async def _items(
        self, kind: Kind, new: Mapping[str, Any], group: WriteGroup, results: Results
    ) -> list[Item]:
        """Return each write with its body; those that need no call any more, or can't be made, have a
        result.
        """
        if kind == "create":
            return await self._new_items(new, group.writes, results)
        left_out = not_in_updates(self._resource)
        items: list[Item] = [(write, without(write.body, left_out)) for write in group.writes]
        return await self._reloaded(items, group.key, results) if self._reads_first else items

    async def _new_items(
        self, new: Mapping[str, Any], writes: Sequence[Write], results: Results
    ) -> list[Item]:
        items: list[Item] = []
        left_out = parts_of(self._resource)
        for write in writes:
            try:
                scope = await self._scope(write)
                items.append((write, new_body(self._resource, without(write.body, left_out), new, scope)))
            except ExpressionError as error:
                results[write.local_id] = _failed(write, error)
        return items

    async def _reloaded(self, items: Sequence[Item], key: str, results: Results) -> list[Item]:
        """Return the items laid over what is there now; those gone are made again, those equal are done."""
        resource = self._resource
        current = await self._reader.get_many(resource, [_id(write) for write, _ in items])
        kept: list[Item] = []
        gone: list[Write] = []
        for write, body in items:
            there = current.get(_id(write))
            if there is None:
                gone.append(write)
                continue
            scope = {**await self._scope(write), "id": _id(write)}
            final = final_body(resource, body, there, scope)
            if holds(resource, there, final):
                results[write.local_id] = await self._parts(_done(resource, write, there, write.remote_id))
            else:
                kept.append((replace(write, version=version_of(resource, there)), final))
        results.update(await self._made_again(gone, key))
        return kept

    async def _made_again(self, gone: Sequence[Write], key: str) -> Results:
        results = {
            write.local_id: _failed(
                write, RecordRejectedError("the record is gone at the provider", status=404)
            )
            for write in gone
            if write.only_existing
        }
        gone = [write for write in gone if not write.only_existing]
        if not gone:
            return results
        new = tuple(replace(write, remote_id=None) for write in gone)
        key = derived_key(key, "instead of " + " ".join(_id(write) for write in gone))
        made = await self._ordinary(WriteGroup(self._resource.name, key, new))
        results.update(
            (old.local_id, replace(result, write=old)) for old, result in zip(gone, made, strict=True)
        )
        return results

    async def _batch(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int = 0, tries: int = 1
    ) -> Results:
        """Send one batch; what fails in it is dealt with record by record."""
        if not items:
            return {}
        spec, resource = batch.spec, self._resource
        results: Results = {}
        account = await self._caller.account()
        items, sent, twins = batch.sent(items, {**account.scope, "now": self._now()}, results)
        if twins:  # the answer couldn't tell them apart
            results.update(await self._batch(batch, twins, derived_key(key, "twins"), reloads, tries))
        if not items:
            return results
        try:
            request = await self._batch_request(batch, sent, key)
            async with self._claims.making():
                answers = await self._caller.call(
                    call_label(spec.call),
                    request,
                    lambda answer: pair_results(spec, resource, sent, answer.body),
                    writing=True,
                    # What is there under its own id already is told, and found.
                    repeatable=batch.kind == "update"
                    or spec.idempotency_key is not None
                    or resource.own_id is not None,
                )
                done = [_paired(resource, item[0], each) for item, each in zip(items, answers, strict=True)]
                for each in done:
                    if batch.kind == "create" and each is not None:
                        self._made(each)
        except RefusedError as refused:
            return {**results, **await self._refused(batch, items, key, reloads, refused)}
        except (RateLimitedError, UnavailableError, UnexpectedResponseError, ExpressionError) as error:
            return {**results, **{write.local_id: _failed(write, error) for write, _ in items}}
        again: list[Item] = []
        reload: list[Item] = []
        gone: list[Write] = []
        adopt: list[tuple[Write, Mapping[str, Any], RefusedError]] = []
        for item, found, result in zip(items, answers, done, strict=True):
            write = item[0]
            if result is not None:
                results[write.local_id] = await self._parts(result, new=batch.kind == "create")
                continue
            refusal = self._refusal(spec, found, account.hide)
            if refusal.action in ("retry", "wait"):
                again.append(item)
            elif refusal.action == "reload_and_retry" and batch.kind == "update" and reloads < RELOADS:
                reload.append((write, without(write.body, not_in_updates(resource))))
            elif refusal.action == "recreate" and batch.kind == "update":
                gone.append(write)
                results[write.local_id] = _failed(write, refusal)
            elif refusal.action == "adopt" and batch.kind == "create":
                adopt.append((write, item[1], refusal))
            else:
                results[write.local_id] = _failed(write, refusal)
        if tries == ITEM_TRIES:
            late = UnavailableError("the provider kept failing at this record, for reasons that may pass")
            results.update(
                (write.local_id, WriteResult(write, write.remote_id, error=late, retryable=True))
                for write, _ in again
            )
        elif again:
            await self._clock.sleep(
                self._connector.retries.first_wait * 2 ** (tries - 1) * self._clock.random()
            )
            results.update(
                await self._batch(batch, again, derived_key(key, f"try {tries + 1}"), reloads, tries + 1)
            )
        if reload:
            results.update(await self._reload_and_retry(batch, reload, key, reloads))
        try:
            gone = await self._really_gone(gone)
        except ProviderError as error:
            results.update((write.local_id, _failed(write, error)) for write in gone)
            gone = []
        results.update(await self._made_again(gone, key))
        results.update(await self._adopt_each(adopt, key))
        return results

    async def _really_gone(self, writes: Sequence[Write]) -> list[Write]:
        """Return those of some refused writes whose records aren't there; others are only out of use, and
        would get a twin.
        """
        if not writes or not _can_be_asked(self._resource):
            return list(writes)
        there = await self._reader.get_many(self._resource, [_id(write) for write in writes])
        return [write for write in writes if _id(write) not in there]

    def _refusal(self, spec: WriteManySpec, found: ItemResult, hide: Sequence[str]) -> RefusedError:
        code, message = spec.error_code, spec.error_message
        if found.listed and spec.failures is not None:
            code, message = spec.failures.code, spec.failures.message
        return RefusedError(
            judge_item(self._connector.errors, found.failed, code=code, message=message, hide=hide)
        )

    async def _adopt_each(
        self, refused: Sequence[tuple[Write, Mapping[str, Any], RefusedError]], key: str
    ) -> Results:
        async def adopted(write: Write, body: Mapping[str, Any], why: RefusedError) -> WriteResult:
            try:
                return await self._adopt(write, body, derived_key(key, f"adopt {write.local_id}"), why)
            except (ProviderError, ExpressionError) as error:
                return _failed(write, error)

        done = await self._each(adopted(*each) for each in refused)
        return {each.write.local_id: each for each in done}

    async def _refused(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int, refused: RefusedError
    ) -> Results:
        """Deal with a batch that was refused as a whole: nothing of it has been done."""
        if refused.action == "new_key":  # something was, of another content: halves might do it again
            return {write.local_id: _failed(write, refused) for write, _ in items}
        if refused.action == "reload_and_retry" and batch.kind == "update" and reloads < RELOADS:
            left_out = not_in_updates(self._resource)
            fresh = [(write, without(write.body, left_out)) for write, _ in items]
            return await self._reload_and_retry(batch, fresh, key, reloads)
        if len(items) > 1:
            results: Results = {}
            for half, half_key in halves(items, key):
                results.update(await self._batch(batch, half, half_key, reloads))
            return results
        write, body = items[0]
        if refused.action == "recreate" and batch.kind == "update" and await self._really_gone([write]):
            return await self._made_again([write], key)
        if refused.action == "adopt" and batch.kind == "create":
            return await self._adopt_each([(write, body, refused)], key)
        return {write.local_id: _failed(write, refused)}

    async def _reload_and_retry(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int
    ) -> Results:
        results: Results = {}
        try:
            fresh = await self._reloaded(items, batch.key, results)
        except ProviderError as error:
            return {write.local_id: _failed(write, error) for write, _ in items}
        results.update(await self._batch(batch, fresh, key, reloads + 1))
        return results

    async def _batch_request(self, batch: _Batch, sent: Sequence[Sent], key: str) -> Request:
        spec, bodies = batch.spec, [each.item for each in sent]
        account = await self._caller.account()
        request = fill_call(spec.call, {**account.scope, "now": self._now()})
        records = {each.name: each.item for each in sent} if spec.by_key else bodies
        request = spec.records.put(request, records)
        if spec.idempotency_key is None or spec.idempotency_key.send == spec.records:
            return request  # the keys are those of the map
        # What a template makes may hold the time, and a key stands for one content only.
        by_content = batch.kind == "update" or spec.item is not None
        return _with_key(request, spec.idempotency_key, content_key(key, bodies) if by_content else key)

    # --------------------------------------------------------------------------------------- jobs

    async def _job(self, job: WriteJob, group: WriteGroup) -> Results:
        """Hand a group in, or wait for one that was handed in before, and read what became of each record."""
        results: Results = {}
        alone: list[Write] = []
        try:
            # Of updates, those that are gone are made again in here, which may look for what is there.
            async with self._claims.making() if group.kind == "create" else nullcontext():
                operations, rows = await self._handed_in(job, group, results)
                done = [
                    await self._operation_result(job, write, row)
                    for (write, _), row in zip(operations, rows, strict=True)
                ]
                if group.kind == "create":
                    for each in done:
                        self._made(each)
        except (
            RefusedError
        ):  # of the whole: what is wrong with it shows when it is written in the ordinary way
            left = tuple(write for write in group.writes if write.local_id not in results)
            key = derived_key(group.key, "instead of a job")
            written = await self._ordinary(replace(group, key=key, writes=left))
            return results | {each.write.local_id: each for each in written}
        except (RateLimitedError, UnavailableError, UnexpectedResponseError) as error:
            return results | {
                write.local_id: _failed(write, error)
                for write in group.writes
                if write.local_id not in results
            }
        for each in done:
            if isinstance(each.error, RefusedError) and each.error.action in _WRITTEN_ALONE:
                alone.append(each.write)
            else:
                results[each.write.local_id] = await self._parts(each, new=group.kind == "create")
        written = await self._each(
            self._one(write, derived_key(group.key, f"alone {write.local_id}")) for write in alone
        )
        return results | {each.write.local_id: each for each in written}

    async def _handed_in(
        self, job: WriteJob, group: WriteGroup, results: Results
    ) -> tuple[list[tuple[Write, str]], list[Any]]:
        """Return the writes of a job with the names of their operations, and the result of each."""
        account = await self._caller.account()
        scope = {**account.scope, "now": self._now()}
        new = self._resource.create.new if self._resource.create else {}
        name, stopped = group.job, self._books.stopped
        if name is None:
            items = await self._items(group.kind, new, group, results)
        elif group.kind == "create":
            items = await self._new_items(new, group.writes, results)
        else:  # an operation is only wanted for its name, which no version is part of
            items = [(replace(each, version=""), each.body) for each in group.writes]
        operations = self._operations(job, group, items, scope, results)
        named = [(write, operation_name) for write, operation_name, _ in operations]
        if not operations:
            return named, []
        if name is None:
            bodies = [operation for _, _, operation in operations]
            repeatable = group.kind == "update" or job.idempotency_key is not None
            name = await self._jobs.submit(job, bodies, scope, group.key, repeatable=repeatable)
            await self._books.submitted(group, name)
        rows = await self._jobs.results(job, name, scope, new=group.job is None, stopped=stopped)
        return named, paired([each for _, each in named], job.results.pair_by, rows)

    def _operations(
        self,
        job: WriteJob,
        group: WriteGroup,
        items: Sequence[Item],
        scope: Mapping[str, Any],
        results: Results,
    ) -> list[tuple[Write, str, Any]]:
        """Return each write with its operation and what that is known by; numbers are those in the group."""
        template = job_operation(self._resource, group.kind)
        numbers = {write.local_id: number for number, write in enumerate(group.writes, 1)}
        made: list[tuple[Write, str, Any]] = []
        for write, body in items:
            try:
                number = numbers[write.local_id]
                operation = template.render(_item_scope(scope, write, body, number)) if template else body
                made.append((write, _named(job.results.pair_by, operation), operation))
            except ExpressionError as error:
                results[write.local_id] = _failed(write, error)
        return made

    async def _operation_result(self, job: WriteJob, write: Write, row: Any) -> WriteResult:
        if row is None:
            return _left_out(write, "the results of a job leave this record out")
        spec, errors = job.results, self._connector.errors
        status = spec.status.find(row) if spec.status else 200
        status = int(status) if str(status).isdecimal() else 0
        body = spec.body.find(row) if spec.body else row
        if spec.body_is == "json_text" and isinstance(body, str):
            body = _decoded(body)
        if is_failure(errors, status, body):
            account, now = await self._caller.account(), self._clock.now()
            verdict = judge(errors, status, {}, body, writing=True, now=now, hide=account.hide)
            if verdict.action != "ignore":
                return _failed(write, RefusedError(verdict))
            body = None
        record = spec.result.find(body) if spec.result else body
        done = _done(self._resource, write, record if isinstance(record, Mapping) else None, write.remote_id)
        if done.remote_id is None:
            return _left_out(write, "the result of an operation doesn't hold the record")
        return done

    # -------------------------------------------------------------------------------------- both

    async def _scope(self, write: Write) -> dict[str, Any]:
        account = await self._caller.account()
        return {**account.scope, "key": write.local_id, "record": write.body, "now": self._now()}

    def _now(self) -> str:
        return write_rfc3339(self._clock.now())


# What an operation of a job may need that only a call of its own can give.
_WRITTEN_ALONE: frozenset[Action] = frozenset(
    ("retry", "wait", "refresh_credentials", "reload_and_retry", "recreate", "adopt")
)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What all calls for one group share. `key` is the group's, from which each record's own is derived."""

    resource: Resource
    spec: WriteManySpec
    kind: Kind
    key: str

    def sent(
        self, items: Sequence[Item], scope: Mapping[str, Any], results: Results
    ) -> tuple[list[Item], list[Sent], list[Item]]:
        """Return the records that go into one call with what is sent for each, and those that can't go with
        them because the answer would call them the same. Those that can't be written down have a result.
        """
        together: list[Item] = []
        sent: list[Sent] = []
        twins: list[Item] = []
        names: set[str] = set()
        for write, body in items:
            try:
                one, name = self._sent(write, body, scope, len(sent) + 1)
            except ExpressionError as error:
                results[write.local_id] = _failed(write, error)
                continue
            if name in names:
                twins.append((write, body))
                continue
            names.add(name)
            together.append((write, body))
            sent.append(one)
        return together, sent, twins

    def _sent(
        self, write: Write, body: Mapping[str, Any], scope: Mapping[str, Any], number: int
    ) -> tuple[Sent, str]:
        """Return what is sent for a record, and what no other record of the call may be called."""
        spec = self.spec
        names = _item_scope(scope, write, renamed(body, spec.renames) if spec.renames else body, number)
        if spec.body_of_each is not None:
            names["record"] = merge(spec.body_of_each.render(names), names["record"])
        item = spec.item.render(names) if spec.item else names["record"]
        name = _named(spec.pair_by, item) if spec.pair_by else self.name(write, body)
        told_by = _named(spec.failures.pair_by, item) if spec.failures else name
        apart = told_by if spec.failures or spec.pair_by else str(number)
        return Sent(name, write.remote_id, item), apart.casefold()

    def name(self, write: Write, body: Mapping[str, Any]) -> str:
        """Return what the call and its answer know a record by."""
        if self.spec.by_key == "idempotency_key":
            key = derived_key(self.key, write.local_id)
            return sent_key(key, self.spec.idempotency_key) if self.spec.idempotency_key else key
        own = self.resource.id.find(body)
        return write.remote_id or (str(own) if own else write.local_id)


def _item_scope(
    scope: Mapping[str, Any], write: Write, body: Mapping[str, Any], number: int
) -> dict[str, Any]:
    """Return what the template of one record among several sees. The number is text, as names are."""
    known = {"id": write.remote_id, "version": write.version}
    return {
        **scope,
        "key": write.local_id,
        "record": body,
        "number": str(number),
        **{name: value for name, value in known.items() if value is not None},
    }


def _named(path: Path, item: Any) -> str:
    name = name_in(path, item)
    if name is None:
        raise ExpressionError(f"what is sent has nothing at `{path.text}` that its result could be known by")
    return name


def _decoded(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _left_out(write: Write, message: str) -> WriteResult:
    """Return the result of a write whose answer came to its end without a word about it."""
    return WriteResult(write, write.remote_id, error=UnexpectedResponseError(message), retryable=True)


def _paired(resource: Resource, write: Write, found: ItemResult) -> WriteResult | None:
    """Return what became of a record in a batch; None when it failed."""
    if found.failed is not None:
        return None
    if found.missing:
        return _failed(write, UnexpectedResponseError("the answer to a batch leaves this record out"))
    return _done(resource, write, found.record, found.remote_id)


def _done(
    resource: Resource, write: Write, record: Mapping[str, Any] | None, remote_id: str | None
) -> WriteResult:
    """Return the result of a write that succeeded; an answer without a readable time just has none."""
    found = resource.id.find(record) if record is not None else ABSENT
    version = version_of(resource, record)
    changed = resource.changed_at.find(record) if resource.changed_at and record is not None else None
    return WriteResult(
        write=write,
        remote_id=str(found) if found else remote_id,
        version=str(version) if version is not None else None,
        changed_at=str(changed) if changed else None,
        record=record,
    )


def _failed(write: Write, error: ProviderError | ExpressionError) -> WriteResult:
    """Return the result of a write that failed; what ends a whole run is raised on."""
    if isinstance(error, ExpressionError):
        return WriteResult(write, write.remote_id, error=RecordRejectedError(error.message))
    if isinstance(error, RefusedError):
        heal = error.action == "propose_heal"
        return WriteResult(
            write, write.remote_id, error=error, retryable=error.action == "new_key", heal=heal
        )
    if isinstance(error, RecordRejectedError):
        return WriteResult(write, write.remote_id, error=error)
    if isinstance(error, RateLimitedError):
        return WriteResult(write, write.remote_id, error=error, retryable=True)
    if isinstance(error, UnavailableError | UnexpectedResponseError):
        # A server error is an answer, and some providers replay it for its key for ever. A job whose results
        # are lost came to its end: what it held is announced anew.
        answered = isinstance(error, JobLostError) or (
            isinstance(error, UnavailableError) and error.status is not None and error.status >= 500
        )
        return WriteResult(write, write.remote_id, error=error, retryable=True, answered=answered)
    raise error


def _is_gone(error: ProviderError) -> bool:
    """Say whether a write failed because the record isn't there any more."""
    recreate = isinstance(error, RefusedError) and error.action == "recreate"
    return isinstance(error, RecordRejectedError) and (recreate or error.status in (404, 410))


def _can_be_asked(resource: Resource) -> bool:
    return resource.get is not None or resource.get_many is not None


def _id(write: Write) -> str:
    if write.remote_id is None:
        raise ManifestError("a record without a remote id can't be updated")
    return write.remote_id


def _with_key(request: Request, limit: IdempotencyKey | None, key: str) -> Request:
    return limit.send.put(request, sent_key(key, limit)) if limit else request
