"""Split records into calls, and pair a call's answer back to its records.

Creates and updates never share a call: a create is repeated under its own key after a crash, an update is
safe to send again. Every key is derived, never random, so that the same work always carries the same key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from engine.errors import ExpressionError, ManifestError, UnexpectedResponseError
from engine.expressions import ABSENT, Expression, Path, Template
from engine.manifest import IdempotencyKey, Resource, WriteJob, WriteManySpec, WriteSpec
from engine.transport import to_json

Kind = Literal["create", "update"]


@dataclass(frozen=True, slots=True)
class Write:
    """One record to write. `key` is its idempotency key; with a `remote_id` it is an update.

    `body` holds the mapped fields only, as plain JSON; it is never changed.
    """

    local_id: str
    remote_id: str | None
    body: Mapping[str, Any]
    key: str
    adopted: bool = False  # made by a call of ours whose answer was lost: what goes with making it is due
    version: Any = None  # the provider's, of the state that was last seen or that it was compared with
    only_existing: bool = False  # where it is gone it isn't made again
    retire: tuple[str, ...] = ()  # remote ids whose place this record took, still to be put out of use


@dataclass(frozen=True, slots=True)
class WriteGroup:
    """Records that go out in one call, all created or all updated. Announced and repeated under `key`.

    With a `job` they have been handed in already, and are only waited for.
    """

    resource: str
    key: str
    writes: tuple[Write, ...]
    job: str | None = None

    @property
    def kind(self) -> Kind:
        return "update" if self.writes and self.writes[0].remote_id is not None else "create"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What a call's answer says of one record. `failed` holds the item when it is an error."""

    record: Mapping[str, Any] | None = None
    remote_id: str | None = None
    failed: Any = None
    missing: bool = False  # the answer doesn't mention this record
    listed: bool = False  # `failed` is from the list of failures, which has words of its own


def single_spec(resource: Resource, kind: Kind) -> WriteSpec | None:
    """Return the call that writes one record."""
    return resource.create if kind == "create" else resource.update


def many_spec(resource: Resource, kind: Kind) -> WriteManySpec | None:
    """Return the call that writes several records at once, if this resource may be written so."""
    if kind == "update" and resource.immutable:
        return None  # each has to be compared with what is there
    own = resource.create_many if kind == "create" else resource.update_many
    return own or resource.write_many


def batch_spec(resource: Resource, kind: Kind, records: int) -> WriteManySpec | None:
    """Return the batch call for this many records; None when each is better written by itself."""
    many = many_spec(resource, kind)
    return many if many and (records > 1 or single_spec(resource, kind) is None) else None


def job_operation(resource: Resource, kind: Kind) -> Template | None:
    """Return what one record is in a job, if this resource may be written so."""
    job = resource.write_job
    if job is None or (kind == "update" and resource.immutable):
        return None
    return job.create if kind == "create" else job.update


def job_spec(resource: Resource, group: WriteGroup) -> WriteJob | None:
    """Return the job a group goes as; None when it is written in the ordinary way."""
    job = resource.write_job
    if job is None or (group.job is None and len(group.writes) < job.at_least):
        return None
    return job if job_operation(resource, group.kind) is not None else None


def split(resource: Resource, writes: Sequence[Write]) -> list[WriteGroup]:
    """Split writes into calls, keeping their order within creates and within updates.

    The same writes always give the same groups under the same keys. Raises ManifestError when the resource
    has no call for what is asked.
    """
    groups: list[WriteGroup] = []
    for kind in ("create", "update"):
        mine = [write for write in writes if (write.remote_id is None) == (kind == "create")]
        if not mine:
            continue
        many, job = many_spec(resource, kind), resource.write_job
        while job and job_operation(resource, kind) is not None and len(mine) >= job.at_least:
            batch, mine = mine[: job.at_most], mine[job.at_most :]
            groups.append(WriteGroup(resource.name, group_key(batch), tuple(batch)))
        if not mine:
            continue
        if many is None and single_spec(resource, kind) is None:
            raise ManifestError(f"`{resource.name}` has no call to {kind} a record")
        batches = (
            [
                [write for write, _ in batch]
                for batch in fitting(many, [(write, write.body) for write in mine])
            ]
            if many
            else [[write] for write in mine]
        )
        groups.extend(WriteGroup(resource.name, group_key(batch), tuple(batch)) for batch in batches)
    return groups


def fitting(
    spec: WriteManySpec, items: Sequence[tuple[Write, Mapping[str, Any]]]
) -> Iterator[list[tuple[Write, Mapping[str, Any]]]]:
    """Cut records with their bodies into batches the call takes, by number or by weight."""
    batch: list[tuple[Write, Mapping[str, Any]]] = []
    total = 0.0
    for write, body in items:
        weight = _weight(spec.weight, body)
        if batch and total + weight > spec.at_most:
            yield batch
            batch, total = [], 0.0
        batch.append((write, body))
        total += weight
    if batch:
        yield batch


def _weight(expression: Expression | None, body: Mapping[str, Any]) -> float:
    if expression is None:
        return 1
    try:
        value = expression.evaluate(body, {"record": body})
    except ExpressionError as error:
        raise ManifestError(f"`weight` can't be calculated: {error.message}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ManifestError("`weight` must give a number")
    return value


# ---------------------------------------------------------------------------------------------- keys


def group_key(writes: Sequence[Write]) -> str:
    """Return the key of a call: the record's own, or one made of all records' keys in order."""
    if len(writes) == 1:
        return writes[0].key
    return sha256("\n".join(write.key for write in writes).encode()).hexdigest()


def sent_key(key: str, limit: IdempotencyKey) -> str:
    """Return a key as the provider takes it: as it is, or hashed when it is too long for that."""
    if len(key) <= limit.at_most:
        return key
    return sha256(key.encode()).hexdigest()[: limit.at_most]


def derived_key(key: str, why: str) -> str:
    """Return the key of a call that follows from another: half of a batch, a retry with merged content."""
    return sha256(f"{key}\n{why}".encode()).hexdigest()


def content_key(key: str, content: Any) -> str:
    """Return a key for exactly this content: what is sent in an update depends on what was read before."""
    return derived_key(key, sha256(to_json(content)).hexdigest())


def halves(
    items: Sequence[tuple[Write, Mapping[str, Any]]], key: str
) -> list[tuple[Sequence[tuple[Write, Mapping[str, Any]]], str]]:
    """Split a batch that was rejected as a whole into two, each with a key of its own."""
    middle = len(items) // 2
    return [
        (half, derived_key(key, f"half {number}"))
        for number, half in enumerate((items[:middle], items[middle:]))
    ]


# ------------------------------------------------------------------------------------------- pairing


@dataclass(frozen=True, slots=True)
class Sent:
    """One record as a call for several sent it."""

    name: str  # what the call and its answer know it by: its key, the id in its body, or what `pair_by` says
    remote_id: str | None
    item: Any = None


def name_in(path: Path, value: Any) -> str | None:
    """Return the text or number at a path as what results are paired by; None when there is none."""
    found = path.find(value)
    if found is ABSENT or found is None or isinstance(found, bool) or not isinstance(found, str | int):
        return None
    return str(found)


def paired(names: Sequence[str | None], path: Path, rows: Sequence[Any]) -> list[Any]:
    """Return, for each name, the row that has it at the path; None without one.

    A provider may write a name in other letters, as with e-mail addresses: one that is found in no other way
    is looked for in any case.
    """
    exact: dict[str, Any] = {}
    folded: dict[str, list[Any]] = {}
    for row in rows:
        name = name_in(path, row)
        if name is not None:
            exact[name] = row
            folded.setdefault(name.casefold(), []).append(row)

    def row_of(name: str | None) -> Any:
        if name is None or name in exact:
            return exact.get(name or "")
        alike = folded.get(name.casefold(), [])
        return alike[0] if len(alike) == 1 else None

    return [row_of(name) for name in names]


def pair_results(
    spec: WriteManySpec, resource: Resource, sent: Sequence[Sent], body: Any
) -> list[ItemResult]:
    """Pair an answer with the records sent, in their order.

    Raises UnexpectedResponseError when the answer has another shape than the manifest says.
    """
    if spec.failures is None:
        return _results(spec, resource, sent, body)
    failures = spec.failures.records.evaluate(body) or []
    if not isinstance(failures, list):
        raise UnexpectedResponseError("the failures in the answer to a batch aren't a list")
    path = spec.failures.pair_by
    failed = paired([name_in(path, each.item) for each in sent], path, failures)
    rest = [each for each, failure in zip(sent, failed, strict=True) if failure is None]
    results = iter(_results(spec, resource, rest, body))
    return [
        next(results)
        if failure is None
        else ItemResult(remote_id=each.remote_id, failed=failure, listed=True)
        for each, failure in zip(sent, failed, strict=True)
    ]


def _results(spec: WriteManySpec, resource: Resource, sent: Sequence[Sent], body: Any) -> list[ItemResult]:
    if spec.results is None and spec.failures is not None:  # those that aren't named there are done
        return [ItemResult(None, each.remote_id, missing=each.remote_id is None) for each in sent]
    results = spec.results.evaluate(body) if spec.results else body
    if spec.by_key:
        if not isinstance(results, Mapping):
            raise UnexpectedResponseError("the answer to a batch isn't a map of results")
        rows = [results.get(each.name) for each in sent]
    elif spec.pair_by is not None:
        if not isinstance(results, list):
            raise UnexpectedResponseError("the answer to a batch isn't a list of results")
        rows = paired([each.name for each in sent], spec.pair_by, results)
    elif spec.pair_by_id:
        rows = _by_id(spec, resource, sent, results, body)
    else:
        if not isinstance(results, list) or len(results) != len(sent):
            raise UnexpectedResponseError("the answer to a batch doesn't hold one result for each record")
        rows = list(results)
    return [_item(spec, resource, row, each.remote_id) for row, each in zip(rows, sent, strict=True)]


def _by_id(
    spec: WriteManySpec,
    resource: Resource,
    sent: Sequence[Sent],
    results: Any,
    body: Any,
) -> list[Any]:
    if results is None:
        results = []
    if not isinstance(results, list):
        raise UnexpectedResponseError("the answer to a batch isn't a list of results")
    given: dict[str, str] = {}
    if spec.new_ids:
        for row in spec.new_ids.records.evaluate(body) or ():
            old, new = spec.new_ids.sent.find(row), spec.new_ids.given.find(row)
            if isinstance(old, str) and isinstance(new, str):
                given[old] = new
    path = spec.result
    by_id: dict[str, Any] = {}
    for row in results:
        found = resource.id.find(path.find(row) if path else row)
        if found:
            by_id[str(found)] = row
    return [by_id.get(given.get(each.name, each.name)) for each in sent]


def _item(spec: WriteManySpec, resource: Resource, row: Any, remote_id: str | None) -> ItemResult:
    if row is None:
        return ItemResult(remote_id=remote_id, missing=True)
    if spec.error is not None and spec.error.evaluate(row):
        return ItemResult(remote_id=remote_id, failed=row)
    record = spec.result.find(row) if spec.result else row
    if not isinstance(record, Mapping):
        return ItemResult(remote_id=remote_id, missing=True)
    found = resource.id.find(record)
    new_id = str(found) if found else remote_id
    return ItemResult(record, new_id, missing=new_id is None)
