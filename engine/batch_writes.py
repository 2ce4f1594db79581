"""Write records by calls for several: what fails in one, or with it, is dealt with record by record.

What a provider refuses as a whole is halved until the bad record stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.batching import (
    ItemResult,
    Kind,
    Sent,
    Write,
    WriteGroup,
    content_key,
    derived_key,
    fitting,
    halves,
    name_in,
    pair_results,
    sent_key,
)
from engine.bodies import (
    at_version,
    final_body,
    holds,
    merge,
    new_body,
    not_in_updates,
    parts_of,
    renamed,
    version_of,
    without,
)
from engine.caller import RefusedError
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
from engine.expressions import Path
from engine.filling import call_label, fill_call
from engine.manifest import Resource, WriteManySpec
from engine.outcomes import Results, WriteResult, failed, succeeded
from engine.single_writes import RELOADS, Send, SingleWrites
from engine.target import Target, with_key

Item = tuple[Write, Mapping[str, Any]]

ITEM_TRIES = 3  # times a record that failed inside a batch is sent again


class BatchWrites:
    """Writes groups of records of one resource by calls for several."""

    def __init__(self, target: Target, single: SingleWrites, send: Send) -> None:
        self._target = target
        self._resource = target.resource
        self._reader = target.reader
        self._caller = target.caller
        self._single = single
        self._send = send

    async def write(self, spec: WriteManySpec, group: WriteGroup) -> Results:
        batch = _Batch(self._resource, spec, group.kind, group.key)
        results: Results = {}
        try:
            items = await self.items(batch.kind, spec.new, group, results)
        except ProviderError as error:
            return {write.local_id: failed(write, error) for write in group.writes}
        pieces = list(fitting(spec, items))
        for number, piece in enumerate(pieces):
            key = group.key if len(pieces) == 1 else derived_key(group.key, f"part {number}")
            results.update(await self._batch(batch, piece, key))
        return results

    async def items(
        self, kind: Kind, new: Mapping[str, Any], group: WriteGroup, results: Results
    ) -> list[Item]:
        """Return each write with its body; those that need no call any more, or can't be made, have a
        result.
        """
        if kind == "create":
            return await self.new_items(new, group.writes, results)
        left_out = not_in_updates(self._resource)
        items: list[Item] = [(write, without(write.body, left_out)) for write in group.writes]
        if self._target.reads_first:
            return await self._reloaded(items, group.key, results)
        return [(write, at_version(self._resource, body, write.version)) for write, body in items]

    async def new_items(
        self, new: Mapping[str, Any], writes: Sequence[Write], results: Results
    ) -> list[Item]:
        items: list[Item] = []
        left_out = parts_of(self._resource)
        for write in writes:
            try:
                scope = await self._target.scope(write)
                items.append((write, new_body(self._resource, without(write.body, left_out), new, scope)))
            except ExpressionError as error:
                results[write.local_id] = failed(write, error)
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
            scope = {**await self._target.scope(write), "id": _id(write)}
            final = final_body(resource, body, there, scope)
            if holds(resource, there, final):
                results[write.local_id] = await self._single.parts(
                    succeeded(resource, write, there, write.remote_id)
                )
            else:
                kept.append((replace(write, version=version_of(resource, there)), final))
        results.update(await self._made_again(gone, key))
        return kept

    async def _made_again(self, gone: Sequence[Write], key: str) -> Results:
        results = {
            write.local_id: failed(
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
        made = await self._send(WriteGroup(self._resource.name, key, new))
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
        items, sent, twins = batch.sent(items, {**account.scope, "now": self._target.now()}, results)
        if twins:  # the answer couldn't tell them apart
            results.update(await self._batch(batch, twins, derived_key(key, "twins"), reloads, tries))
        if not items:
            return results
        try:
            request = await self._batch_request(batch, sent, key)
            async with self._target.claims.making():
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
                        self._target.made(each)
        except RefusedError as refused:
            return {**results, **await self._refused(batch, items, key, reloads, refused)}
        except (RateLimitedError, UnavailableError, UnexpectedResponseError, ExpressionError) as error:
            return {**results, **{write.local_id: failed(write, error) for write, _ in items}}
        again: list[Item] = []
        reload: list[Item] = []
        gone: list[Write] = []
        adopt: list[tuple[Write, Mapping[str, Any], RefusedError]] = []
        for item, found, result in zip(items, answers, done, strict=True):
            write = item[0]
            if result is not None:
                results[write.local_id] = await self._single.parts(result, new=batch.kind == "create")
                continue
            refusal = self._refusal(spec, found, account.hide)
            if refusal.action in ("retry", "wait"):
                again.append(item)
            elif refusal.action == "reload_and_retry" and batch.kind == "update" and reloads < RELOADS:
                reload.append((write, without(write.body, not_in_updates(resource))))
            elif refusal.action == "recreate" and batch.kind == "update":
                gone.append(write)
                results[write.local_id] = failed(write, refusal)
            elif refusal.action == "adopt" and batch.kind == "create":
                adopt.append((write, item[1], refusal))
            else:
                results[write.local_id] = failed(write, refusal)
        if tries == ITEM_TRIES:
            late = UnavailableError("the provider kept failing at this record, for reasons that may pass")
            results.update(
                (write.local_id, WriteResult(write, write.remote_id, error=late, retryable=True))
                for write, _ in again
            )
        elif again:
            await self._target.clock.sleep(
                self._target.connector.retries.first_wait * 2 ** (tries - 1) * self._target.clock.random()
            )
            results.update(
                await self._batch(batch, again, derived_key(key, f"try {tries + 1}"), reloads, tries + 1)
            )
        if reload:
            results.update(await self._reload_and_retry(batch, reload, key, reloads))
        try:
            gone = await self._really_gone(gone)
        except ProviderError as error:
            results.update((write.local_id, failed(write, error)) for write in gone)
            gone = []
        results.update(await self._made_again(gone, key))
        results.update(await self._adopt_each(adopt, key))
        return results

    async def _really_gone(self, writes: Sequence[Write]) -> list[Write]:
        """Return those of some refused writes whose records aren't there; others are only out of use, and
        would get a twin.
        """
        if not writes or not self._target.can_be_asked:
            return list(writes)
        there = await self._reader.get_many(self._resource, [_id(write) for write in writes])
        return [write for write in writes if _id(write) not in there]

    def _refusal(self, spec: WriteManySpec, found: ItemResult, hide: Sequence[str]) -> RefusedError:
        code, message = spec.error_code, spec.error_message
        if found.listed and spec.failures is not None:
            code, message = spec.failures.code, spec.failures.message
        return RefusedError(
            judge_item(self._target.connector.errors, found.failed, code=code, message=message, hide=hide)
        )

    async def _adopt_each(
        self, refused: Sequence[tuple[Write, Mapping[str, Any], RefusedError]], key: str
    ) -> Results:
        async def adopted(write: Write, body: Mapping[str, Any], why: RefusedError) -> WriteResult:
            try:
                return await self._single.adopt(write, body, derived_key(key, f"adopt {write.local_id}"), why)
            except (ProviderError, ExpressionError) as error:
                return failed(write, error)

        done = await self._target.each(adopted(*each) for each in refused)
        return {each.write.local_id: each for each in done}

    async def _refused(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int, refused: RefusedError
    ) -> Results:
        """Deal with a batch that was refused as a whole: nothing of it has been done."""
        if refused.action == "new_key":  # something was, of another content: halves might do it again
            return {write.local_id: failed(write, refused) for write, _ in items}
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
        return {write.local_id: failed(write, refused)}

    async def _reload_and_retry(
        self, batch: _Batch, items: Sequence[Item], key: str, reloads: int
    ) -> Results:
        results: Results = {}
        try:
            fresh = await self._reloaded(items, batch.key, results)
        except ProviderError as error:
            return {write.local_id: failed(write, error) for write, _ in items}
        results.update(await self._batch(batch, fresh, key, reloads + 1))
        return results

    async def _batch_request(self, batch: _Batch, sent: Sequence[Sent], key: str) -> Request:
        spec, bodies = batch.spec, [each.item for each in sent]
        account = await self._caller.account()
        request = fill_call(spec.call, {**account.scope, "now": self._target.now()})
        records = {each.name: each.item for each in sent} if spec.by_key else bodies
        request = spec.records.put(request, records)
        if spec.idempotency_key is None or spec.idempotency_key.send == spec.records:
            return request  # the keys are those of the map
        # What a template makes may hold the time, and a key stands for one content only.
        by_content = batch.kind == "update" or spec.item is not None
        return with_key(request, spec.idempotency_key, content_key(key, bodies) if by_content else key)


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
                results[write.local_id] = failed(write, error)
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
        names = item_scope(scope, write, renamed(body, spec.renames) if spec.renames else body, number)
        if spec.body_of_each is not None:
            names["record"] = merge(spec.body_of_each.render(names), names["record"])
        item = spec.item.render(names) if spec.item else names["record"]
        name = named(spec.pair_by, item) if spec.pair_by else self.name(write, body)
        told_by = named(spec.failures.pair_by, item) if spec.failures else name
        apart = told_by if spec.failures or spec.pair_by else str(number)
        return Sent(name, write.remote_id, item), apart.casefold()

    def name(self, write: Write, body: Mapping[str, Any]) -> str:
        """Return what the call and its answer know a record by."""
        if self.spec.by_key == "idempotency_key":
            key = derived_key(self.key, write.local_id)
            return sent_key(key, self.spec.idempotency_key) if self.spec.idempotency_key else key
        own = self.resource.id.find(body)
        return write.remote_id or (str(own) if own else write.local_id)


def item_scope(
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


def named(path: Path, item: Any) -> str:
    name = name_in(path, item)
    if name is None:
        raise ExpressionError(f"what is sent has nothing at `{path.text}` that its result could be known by")
    return name


def _paired(resource: Resource, write: Write, found: ItemResult) -> WriteResult | None:
    """Return what became of a record in a batch; None when it failed."""
    if found.failed is not None:
        return None
    if found.missing:
        return failed(write, UnexpectedResponseError("the answer to a batch leaves this record out"))
    return succeeded(resource, write, found.record, found.remote_id)


def _id(write: Write) -> str:
    if write.remote_id is None:
        raise ManifestError("a record without a remote id can't be updated")
    return write.remote_id
