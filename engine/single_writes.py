"""Write records by a call each: create, update, adopt what is there, replace what can't be changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.batching import Write, WriteGroup, content_key, derived_key, many_spec
from engine.bodies import (
    at_version,
    differs,
    final_body,
    holds,
    merge,
    new_body,
    not_in_updates,
    own_id,
    parts_of,
    path_of,
    version_of,
    without,
)
from engine.caller import Answer, RefusedError, whole
from engine.errors import (
    ExpressionError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.expressions import ABSENT
from engine.filling import call_label, fill_call
from engine.manifest import CallSpec, WriteSpec
from engine.outcomes import WriteResult, failed, is_gone, succeeded
from engine.target import Target, with_key

Send = Callable[[WriteGroup], Awaitable[list[WriteResult]]]

RELOADS = 3  # times a record is read again because somebody else changed it meanwhile


class SingleWrites:
    """Writes records of one resource one by one; `send` writes a group in the ordinary way."""

    def __init__(self, target: Target, send: Send) -> None:
        self._target = target
        self._resource = target.resource
        self._reader = target.reader
        self._caller = target.caller
        self._claims = target.claims
        self._send = send

    async def write(self, write: Write, key: str) -> WriteResult:
        try:
            if write.remote_id is None:
                return await self._create(write, key)
            done = await self._update(write, write.remote_id, key)
            if write.adopted and done.error is None and self._resource.create is not None:
                scope = {**await self._target.scope(write), "result": done.record, "id": done.remote_id}
                done = await self._follow_up(done, self._resource.create.then, scope)
            return await self._retire(done)
        except (ProviderError, ExpressionError) as error:
            return failed(write, error)

    async def _create(self, write: Write, key: str) -> WriteResult:
        spec = self._resource.create
        if spec is None:
            return await self._create_in_batch(write, key)
        scope = await self._target.scope(write)
        body = new_body(self._resource, without(write.body, parts_of(self._resource)), spec.new, scope)
        try:
            async with self._claims.making():
                record = await self._write(spec, body, scope, key, None)
                done = self._target.made(succeeded(self._resource, write, record, None))
        except RefusedError as refused:
            if refused.action != "adopt":
                raise
            return await self.adopt(write, body, key, refused)
        done = await self._follow_up(done, spec.then, {**scope, "result": record, "id": done.remote_id})
        return await self.parts(done, new=True)

    async def _create_in_batch(self, write: Write, key: str) -> WriteResult:
        if many_spec(self._resource, "create") is None:
            raise ManifestError(f"`{self._resource.name}` has no call to create a record")
        new = replace(write, remote_id=None)
        (result,) = await self._send(WriteGroup(self._resource.name, key, (new,)))
        return result

    async def adopt(
        self, write: Write, body: Mapping[str, Any], key: str, refused: RefusedError
    ) -> WriteResult:
        """Update the record that is there already instead of making it, if it is beyond doubt which it is."""
        own = own_id(self._resource, body)
        if self._resource.update is None or (not own and self._resource.find is None):
            raise refused
        remote_id = own or await self._found(write, refused)
        try:
            return await self._update(replace(write, remote_id=remote_id), remote_id, key, recreate=False)
        except RecordRejectedError as error:
            if is_gone(error):  # it isn't there after all, so that was not what was wrong
                raise refused from error
            raise

    async def _found(self, write: Write, refused: RefusedError) -> str:
        """Return the id of the one record with this content that belongs to no other of the platform's."""
        await self._claims.none_being_made()
        rows = await self._reader.find(self._resource, await self._target.scope(write))
        found = list(dict.fromkeys(row.id for row in rows if not row.deleted))
        owners = {**await self._target.books.linked(self._resource.name, found), **self._claims.owners}
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
        if resource.immutable or self._target.reads_first:
            current = await self._reader.get(resource, remote_id)
            if current is None:
                return await self._recreate(write, key, recreate)
        if resource.immutable and current is not None:
            fixed = [path_of(text) for text in sorted(resource.immutable)]
            if any(differs(path, body, current) for path in fixed):
                return await self._replace(write, remote_id, key)
            body = without(body, {path.steps for path in fixed})
        if not body and (spec is None or resource.parts):
            return await self.parts(succeeded(resource, write, current, remote_id))
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no call to update a record")
        scope = {**await self._target.scope(write), "id": remote_id}
        for left in reversed(range(RELOADS)):
            final = final_body(resource, body, current, scope)
            if current is None:
                final = at_version(resource, final, write.version)
            content: Any = final
            if current is not None:
                if holds(resource, current, final):
                    return await self.parts(succeeded(resource, write, current, remote_id))
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
                done = succeeded(resource, write, record, remote_id)
                done = await self._follow_up(done, spec.then, {**scope, "result": record})
                return await self.parts(done)
        raise AssertionError("the last reload raises or returns")

    async def _is_there(self, remote_id: str) -> bool:
        return self._target.can_be_asked and await self._reader.get(self._resource, remote_id) is not None

    async def _recreate(
        self, write: Write, key: str, allowed: bool, why: RefusedError | None = None
    ) -> WriteResult:
        """The linked record is gone: make it again, once."""
        if allowed and write.only_existing:
            # It may be there under the id that its new content gives it: a repeated call changed it already.
            moved = own_id(self._resource, write.body)
            if moved not in (None, write.remote_id) and await self._is_there(moved):
                done = await self._update(replace(write, remote_id=moved), moved, key, recreate=False)
                return replace(done, write=write)
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
        return await self._retire(replace(created, write=replace(write, retire=(*write.retire, old_id))))

    async def _retire(self, done: WriteResult) -> WriteResult:
        """Put those out of use whose place a record took; `write.retire` of the result is what is left."""
        retire = self._resource.retire
        while done.write.retire and done.error is None:
            old_id, *left = done.write.retire
            if retire is not None:
                scope = {**await self._target.scope(done.write), "id": old_id, "result": done.record}
                tried = await self._follow_up(done, (retire.call,), scope)
                if tried.error is not None and not is_gone(tried.error):
                    return tried
            done = replace(done, write=replace(done.write, retire=tuple(left)))
        return done

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
            why = failed(done.write, error)
            return replace(done, error=why.error, retryable=why.retryable, answered=why.answered)
        return done

    async def parts(self, done: WriteResult, *, new: bool = False) -> WriteResult:
        """Write the fields that have a call of their own, where there is a value; a new record has nothing
        yet that an empty one could clear.
        """
        for text, call in self._resource.parts.items():
            value = path_of(text).find(done.write.body)
            if done.error is not None or value in (ABSENT, None) or (new and value in ("", [], {})):
                continue
            scope = {**await self._target.scope(done.write), "id": done.remote_id, "result": done.record}
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
        request = with_key(request, spec.idempotency_key, key)

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
