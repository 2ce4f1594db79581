"""Write records, with an outcome for each: nothing is written twice, and one bad record harms no other.

Every call carries a key derived from its group's, so a group that is sent again after a crash is the same
calls word for word. What a provider refuses as a whole is halved until the bad record stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from engine.batching import (
    ItemResult,
    Kind,
    Write,
    WriteGroup,
    batch_spec,
    content_key,
    derived_key,
    fitting,
    halves,
    many_spec,
    pair_results,
    sent_key,
)
from engine.caller import Answer, Caller, RefusedError, whole
from engine.calls import Request
from engine.error_rules import judge_item
from engine.errors import (
    ExpressionError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.expressions import ABSENT, Path, Steps, Template
from engine.filling import call_label, fill_call
from engine.manifest import CallSpec, Connector, IdempotencyKey, Resource, WriteManySpec, WriteSpec
from engine.ports import Clock
from engine.reading import Reader, write_rfc3339

Body = dict[str, Any]
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


class Writer:
    """Writes one account's records through its `Caller`."""

    def __init__(self, connector: Connector, caller: Caller, reader: Reader, clock: Clock) -> None:
        self._connector = connector
        self._caller = caller
        self._reader = reader
        self._clock = clock

    async def send(self, resource: Resource, group: WriteGroup) -> list[WriteResult]:
        """Write a group; returns a result for each of its writes, in their order."""
        if not resource.one_write_at_a_time:
            return await self._send(resource, group)
        async with await self._caller.turn("writes"):
            return await self._send(resource, group)

    async def _send(self, resource: Resource, group: WriteGroup) -> list[WriteResult]:
        spec = batch_spec(resource, group.kind, len(group.writes))
        if spec is not None:
            results = await self._many(resource, spec, group)
            return [results[write.local_id] for write in group.writes]
        alone = len(group.writes) == 1
        return [
            await self._one(resource, write, group.key if alone else derived_key(group.key, write.local_id))
            for write in group.writes
        ]

    # ------------------------------------------------------------------------------ one record a call

    async def _one(self, resource: Resource, write: Write, key: str) -> WriteResult:
        try:
            if write.remote_id is None:
                return await self._create(resource, write, key)
            done = await self._update(resource, write, write.remote_id, key)
            if write.adopted and done.error is None and resource.create is not None:
                scope = {**await self._scope(write), "result": done.record, "id": done.remote_id}
                return await self._follow_up(done, resource.create.then, scope)
            return done
        except (ProviderError, ExpressionError) as error:
            return _failed(write, error)

    async def _create(self, resource: Resource, write: Write, key: str) -> WriteResult:
        spec = resource.create
        if spec is None:
            return await self._create_in_batch(resource, write, key)
        scope = await self._scope(write)
        body = new_body(write.body, spec.new, scope)
        try:
            record = await self._write(resource, spec, body, scope, key, None)
        except RefusedError as refused:
            existing = resource.id.find(body)
            if refused.action != "adopt" or not existing or resource.update is None:
                raise
            found = replace(write, remote_id=str(existing))
            return await self._update(resource, found, str(existing), key, recreate=False)
        done = _done(resource, write, record, None)
        return await self._follow_up(done, spec.then, {**scope, "result": record, "id": done.remote_id})

    async def _create_in_batch(self, resource: Resource, write: Write, key: str) -> WriteResult:
        spec = many_spec(resource, "create")
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no call to create a record")
        new = replace(write, remote_id=None)
        return (await self._many(resource, spec, WriteGroup(resource.name, key, (new,))))[write.local_id]

    async def _update(
        self, resource: Resource, write: Write, remote_id: str, key: str, *, recreate: bool = True
    ) -> WriteResult:
        spec = resource.update
        body: Mapping[str, Any] = without(write.body, _only_on_create(resource))
        current: Mapping[str, Any] | None = None
        if resource.immutable or resource.updates == "whole":
            current = await self._reader.get(resource, remote_id)
            if current is None:
                return await self._recreate(resource, write, key, recreate)
        if resource.immutable and current is not None:
            fixed = [_path(text) for text in sorted(resource.immutable)]
            if any(_differs(path, body, current) for path in fixed):
                return await self._replace(resource, write, remote_id, key)
            body = without(body, {path.steps for path in fixed})
        if spec is None:
            if not body:
                return _done(resource, write, current, remote_id)
            raise ManifestError(f"`{resource.name}` has no call to update a record")
        scope = {**await self._scope(write), "id": remote_id}
        for left in reversed(range(RELOADS)):
            final = _final_body(resource, body, current)
            if current is not None and _holds(current, final):
                return _done(resource, write, current, remote_id)
            try:
                record = await self._write(resource, spec, final, scope, content_key(key, final), remote_id)
            except RefusedError as refused:
                if refused.action == "recreate":
                    return await self._recreate(resource, write, key, recreate, refused)
                if refused.action != "reload_and_retry" or not left:
                    raise
                current = await self._reader.get(resource, remote_id)
                if current is None:
                    return await self._recreate(resource, write, key, recreate, refused)
            else:
                done = _done(resource, write, record, remote_id)
                return await self._follow_up(done, spec.then, {**scope, "result": record})
        raise AssertionError("the last reload raises or returns")

    async def _recreate(
        self, resource: Resource, write: Write, key: str, allowed: bool, why: RefusedError | None = None
    ) -> WriteResult:
        """The linked record is gone: make it again, once."""
        if not allowed:
            raise why or RecordRejectedError("the record is gone at the provider", status=404)
        created = await self._create(
            resource, replace(write, remote_id=None), derived_key(key, f"instead of {write.remote_id}")
        )
        return replace(created, write=write)

    async def _replace(self, resource: Resource, write: Write, old_id: str, key: str) -> WriteResult:
        """Make a new record, since a field of the old one can't be changed, and put the old one out of
        use.
        """
        created = await self._create(
            resource, replace(write, remote_id=None), derived_key(key, f"instead of {old_id}")
        )
        if created.error is not None or resource.retire is None:
            return replace(created, write=write)
        scope = {**await self._scope(write), "id": old_id, "result": created.record}
        return await self._follow_up(replace(created, write=write), (resource.retire.call,), scope)

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

    async def _write(
        self,
        resource: Resource,
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
            if isinstance(record, Mapping) and (remote_id is not None or resource.id.find(record)):
                return record
            if remote_id is not None and not record:
                return None
            raise UnexpectedResponseError("the provider's answer to a write doesn't hold the record")

        keyed = remote_id is not None or spec.idempotency_key is not None
        return await self._caller.call(
            call_label(spec.call), request, read, writing=True, repeatable=keyed or request.method != "POST"
        )

    # -------------------------------------------------------------------------- many records a call

    async def _many(self, resource: Resource, spec: WriteManySpec, group: WriteGroup) -> Results:
        batch = _Batch(resource, spec, group.kind, group.key)
        results: Results = {}
        items: list[Item] = []
        try:
            if group.kind == "create":
                items = await self._new_items(batch, group.writes, results)
            else:
                only_new = _only_on_create(resource)
                items = [(write, without(write.body, only_new)) for write in group.writes]
                if resource.updates == "whole":
                    items = await self._reloaded(batch, items, results)
        except ProviderError as error:
            return {write.local_id: _failed(write, error) for write in group.writes}
        parts = list(fitting(spec, items))
        for number, part in enumerate(parts):
            key = group.key if len(parts) == 1 else derived_key(group.key, f"part {number}")
            results.update(await self._batch(batch, part, key))
        return results

    async def _new_items(self, batch: _Batch, writes: Sequence[Write], results: Results) -> list[Item]:
        items: list[Item] = []
        for write in writes:
            try:
                items.append((write, new_body(write.body, batch.spec.new, await self._scope(write))))
            except ExpressionError as error:
                results[write.local_id] = _failed(write, error)
        return items

    async def _reloaded(self, batch: _Batch, items: Sequence[Item], results: Results) -> list[Item]:
        """Return the items laid over what is there now; those gone are made again, those equal are done."""
        resource = batch.resource
        current = await self._reader.get_many(resource, [_id(write) for write, _ in items])
        kept: list[Item] = []
        gone: list[Write] = []
        for write, body in items:
            there = current.get(_id(write))
            if there is None:
                gone.append(write)
                continue
            final = _final_body(resource, body, there)
            if _holds(there, final):
                results[write.local_id] = _done(resource, write, there, write.remote_id)
            else:
                kept.append((write, final))
        results.update(await self._made_again(resource, gone, batch.key))
        return kept

    async def _made_again(self, resource: Resource, gone: Sequence[Write], key: str) -> Results:
        if not gone:
            return {}
        new = tuple(replace(write, remote_id=None) for write in gone)
        key = derived_key(key, "instead of " + " ".join(_id(write) for write in gone))
        made = await self._send(resource, WriteGroup(resource.name, key, new))
        return {old.local_id: replace(result, write=old) for old, result in zip(gone, made, strict=True)}

    async def _batch(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int = 0, tries: int = 1
    ) -> Results:
        """Send one batch; what fails in it is dealt with record by record."""
        if not items:
            return {}
        spec, resource = batch.spec, batch.resource
        names = [(batch.name(write, body), write.remote_id) for write, body in items]
        try:
            request = await self._batch_request(batch, items, [name for name, _ in names], key)
            paired = await self._caller.call(
                call_label(spec.call),
                request,
                lambda answer: pair_results(spec, resource, names, answer.body),
                writing=True,
                repeatable=batch.kind == "update" or spec.idempotency_key is not None,
            )
        except RefusedError as refused:
            return await self._refused(batch, items, key, reloads, refused)
        except (RateLimitedError, UnavailableError, UnexpectedResponseError, ExpressionError) as error:
            return {write.local_id: _failed(write, error) for write, _ in items}
        results: Results = {}
        again: list[Item] = []
        reload: list[Item] = []
        gone: list[Write] = []
        for item, found in zip(items, paired, strict=True):
            write = item[0]
            if found.failed is None:
                results[write.local_id] = _paired(resource, write, found)
                continue
            refusal = RefusedError(
                judge_item(
                    self._connector.errors,
                    found.failed,
                    code=spec.error_code,
                    message=spec.error_message,
                    hide=(await self._caller.account()).hide,
                )
            )
            if refusal.action in ("retry", "wait"):
                again.append(item)
            elif refusal.action == "reload_and_retry" and batch.kind == "update" and reloads < RELOADS:
                reload.append((write, without(write.body, _only_on_create(resource))))
            elif refusal.action == "recreate" and batch.kind == "update":
                gone.append(write)
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
        results.update(await self._made_again(resource, gone, key))
        return results

    async def _refused(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int, refused: RefusedError
    ) -> Results:
        """Deal with a batch that was refused as a whole: nothing of it has been done."""
        if refused.action == "reload_and_retry" and batch.kind == "update" and reloads < RELOADS:
            only_new = _only_on_create(batch.resource)
            fresh = [(write, without(write.body, only_new)) for write, _ in items]
            return await self._reload_and_retry(batch, fresh, key, reloads)
        if len(items) > 1:
            results: Results = {}
            for half, half_key in halves(items, key):
                results.update(await self._batch(batch, half, half_key, reloads))
            return results
        write = items[0][0]
        if refused.action == "recreate" and batch.kind == "update":
            return await self._made_again(batch.resource, [write], key)
        return {write.local_id: _failed(write, refused)}

    async def _reload_and_retry(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int
    ) -> Results:
        results: Results = {}
        try:
            fresh = await self._reloaded(batch, items, results)
        except ProviderError as error:
            return {write.local_id: _failed(write, error) for write, _ in items}
        results.update(await self._batch(batch, fresh, key, reloads + 1))
        return results

    async def _batch_request(
        self, batch: _Batch, items: Sequence[Item], names: Sequence[str], key: str
    ) -> Request:
        spec, bodies = batch.spec, [body for _, body in items]
        account = await self._caller.account()
        request = fill_call(spec.call, {**account.scope, "now": self._now()})
        request = spec.records.put(request, dict(zip(names, bodies, strict=True)) if spec.by_key else bodies)
        if spec.idempotency_key is None or spec.idempotency_key.send == spec.records:
            return request  # the keys are those of the map
        return _with_key(
            request, spec.idempotency_key, key if batch.kind == "create" else content_key(key, bodies)
        )

    # -------------------------------------------------------------------------------------- both

    async def _scope(self, write: Write) -> dict[str, Any]:
        account = await self._caller.account()
        return {**account.scope, "key": write.local_id, "record": write.body, "now": self._now()}

    def _now(self) -> str:
        return write_rfc3339(self._clock.now())


@dataclass(frozen=True, slots=True)
class _Batch:
    """What all calls for one group share. `key` is the group's, from which each record's own is derived."""

    resource: Resource
    spec: WriteManySpec
    kind: Kind
    key: str

    def name(self, write: Write, body: Mapping[str, Any]) -> str:
        """Return what the call and its answer know a record by."""
        if self.spec.by_key == "idempotency_key":
            key = derived_key(self.key, write.local_id)
            return sent_key(key, self.spec.idempotency_key) if self.spec.idempotency_key else key
        own = self.resource.id.find(body)
        return write.remote_id or (str(own) if own else write.local_id)


def _paired(resource: Resource, write: Write, found: ItemResult) -> WriteResult:
    if found.missing:
        return _failed(write, UnexpectedResponseError("the answer to a batch leaves this record out"))
    return _done(resource, write, found.record, found.remote_id)


def _done(
    resource: Resource, write: Write, record: Mapping[str, Any] | None, remote_id: str | None
) -> WriteResult:
    """Return the result of a write that succeeded; an answer without a readable time just has none."""
    found = resource.id.find(record) if record is not None else ABSENT
    version = resource.version.find(record) if resource.version and record is not None else None
    changed = resource.changed_at.find(record) if resource.changed_at and record is not None else None
    return WriteResult(
        write=write,
        remote_id=str(found) if found else remote_id,
        version=str(version) if version not in (None, ABSENT) else None,
        changed_at=str(changed) if changed else None,
        record=record,
    )


def _failed(write: Write, error: ProviderError | ExpressionError) -> WriteResult:
    """Return the result of a write that failed; what ends a whole run is raised on."""
    if isinstance(error, ExpressionError):
        return WriteResult(write, write.remote_id, error=RecordRejectedError(error.message))
    if isinstance(error, RefusedError):
        heal = error.action == "propose_heal"
        return WriteResult(write, write.remote_id, error=error, heal=heal)
    if isinstance(error, RecordRejectedError):
        return WriteResult(write, write.remote_id, error=error)
    if isinstance(error, RateLimitedError):
        return WriteResult(write, write.remote_id, error=error, retryable=True)
    if isinstance(error, UnavailableError | UnexpectedResponseError):
        # A server error is an answer, and some providers replay it for its key for ever.
        answered = isinstance(error, UnavailableError) and error.status is not None and error.status >= 500
        return WriteResult(write, write.remote_id, error=error, retryable=True, answered=answered)
    raise error


def _id(write: Write) -> str:
    if write.remote_id is None:
        raise ManifestError("a record without a remote id can't be updated")
    return write.remote_id


# ---------------------------------------------------------------------------------------------- bodies


def new_body(body: Mapping[str, Any], new: Mapping[str, Template], scope: Mapping[str, Any]) -> Body:
    """Return the body of a new record: nulls left out, and `new` values where the mapping gives none."""
    made: Body = without_nulls(body)
    for text, template in new.items():
        path = _path(text)
        if path.find(made) is ABSENT:
            path.put(made, template.render(scope))
    return made


def without_nulls(value: Any) -> Any:
    """Return a copy without keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def without(body: Mapping[str, Any], paths: Iterable[Steps]) -> Body:
    """Return a copy without these paths; objects that held nothing else go too."""
    unwanted = set(paths)
    return _without(body, (), unwanted) or {} if unwanted else dict(body)


def _without(value: Any, at: Steps, unwanted: set[Steps]) -> Any:
    if isinstance(value, Mapping):
        made = {
            name: kept
            for name, each in value.items()
            if (*at, name) not in unwanted and (kept := _without(each, (*at, name), unwanted)) is not ABSENT
        }
        return made if made or not value else ABSENT
    if isinstance(value, list):
        items = [_without(each, (*at, index), unwanted) for index, each in enumerate(value)]
        return [{} if each is ABSENT else each for each in items]
    return value


def merge(current: Any, change: Any) -> Any:
    """Lay a change over what is there: objects by name, lists of objects by position, the rest replaced."""
    if isinstance(current, Mapping) and isinstance(change, Mapping):
        return {**current, **{name: merge(current.get(name), each) for name, each in change.items()}}
    if (
        isinstance(current, list)
        and isinstance(change, list)
        and all(isinstance(each, Mapping) for each in change)
    ):
        laid = [merge(*pair) for pair in zip(current, change, strict=False)]
        return [*laid, *change[len(current) :], *current[len(change) :]]
    return change


def _final_body(
    resource: Resource, body: Mapping[str, Any], current: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Return what to send in an update, given what is there (None: not read)."""
    if current is None:
        return body
    final: Body
    if resource.updates == "whole":
        final = without_nulls(merge(current, body))
        return final
    version = resource.version.find(current) if resource.version else ABSENT
    if not resource.version or version in (None, ABSENT):
        return body
    final = merge({}, body)
    resource.version.put(final, version)
    return final


def _holds(current: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Say whether writing `body` over what is there would change nothing."""
    return bool(without_nulls(merge(current, body)) == without_nulls(current))


def _differs(path: Path, body: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    wanted, there = path.find(body), path.find(current)
    if wanted is ABSENT:
        return False
    return bool(wanted != (None if there is ABSENT else there))


@lru_cache(maxsize=4096)
def _path(text: str) -> Path:
    return Path.parse(text)


def _only_on_create(resource: Resource) -> frozenset[Steps]:
    return frozenset(_path(text).steps for text, each in resource.fields.items() if each.on_create_only)


def _with_key(request: Request, limit: IdempotencyKey | None, key: str) -> Request:
    return limit.send.put(request, sent_key(key, limit)) if limit else request
