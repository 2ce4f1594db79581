"""Writes that an earlier run announced and never finished: found at the provider, or repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from engine.announcing import REPEATED, Announcer, chunks
from engine.bodies import differs, path_of
from engine.client import Write, WriteGroup
from engine.errors import ExpressionError, RecordRejectedError
from engine.expressions import Path
from engine.manifest import Resource
from engine.ports import PendingItem, PendingWrite
from engine.reconcile import fingerprint
from engine.sides import Sides

KEYS_LAST = timedelta(hours=23)  # providers keep idempotency keys for a day at least
LOOK_BACK = timedelta(hours=25)  # before a write was announced, for what it made


async def repeat_unanswered(
    sides: Sides, announcer: Announcer, report: Callable[[], None], *, jobs: bool
) -> frozenset[str]:
    """Repeat the calls announced by earlier runs; returns the local ids of those still open.

    Without `jobs`, those that were handed in stay open: a few records don't wait for hours.
    """
    open_ = await sides.state.announced(*sides.here)
    announced = await _adopt_made(sides, [write for write in open_ if jobs or write.job is None])
    calls = [(write, _as_sent(sides, write)) for write in announced]
    for chunk in chunks(sides.resource, calls, REPEATED):
        sides.check_stop()
        await announcer.send(chunk, repeating=True)
        report()
    still = await sides.state.announced(*sides.here) if open_ else ()
    return frozenset(item.local_id for write in still for item in write.items)


def _as_sent(sides: Sides, write: PendingWrite) -> WriteGroup:
    writes = (
        Write(
            item.local_id,
            item.remote_id,
            dict(item.body),
            write.key,
            item.adopted,
            version=item.agreed.get("version"),
            only_existing=sides.keeps_to_existing and item.remote_id is not None and not item.adopted,
            retire=tuple(item.agreed.get("retire", ())),
        )
        for item in write.items
    )
    return WriteGroup(write.resource, write.key, tuple(writes), write.job)


async def _adopt_made(sides: Sides, announced: Sequence[PendingWrite]) -> Sequence[PendingWrite]:
    """Turn calls that made a record after all into updates of what they made.

    Where a call can't be repeated under its own key, because the provider keeps none, no longer knows it or
    replays a failure for it, the record may be there all the same: it carries our id.
    """
    doubtful = [write for write in announced if _makes(sides.resource, write) and _is_doubtful(sides, write)]
    made = await _made(sides, doubtful) if doubtful else {}
    adopted: list[PendingWrite] = []
    replaced: list[str] = []
    for write in doubtful:
        found = [item for item in write.items if item.local_id in made]
        rest = tuple(item for item in write.items if item.local_id not in made)
        if not found:
            continue
        replaced.append(write.key)
        adopted.extend(
            replace(
                write,
                key=fingerprint([write.key, item.local_id, "made"]),
                items=(_adopted(item, made[item.local_id]),),
            )
            for item in found
        )
        if rest:
            adopted.append(replace(write, key=fingerprint([write.key, "rest"]), items=rest))
    if adopted:
        await sides.state.announce(adopted, instead_of=replaced)
    return [write for write in announced if write.key not in replaced] + adopted


def _makes(resource: Resource, write: PendingWrite) -> bool:
    """Say whether a call may have made records: as new ones, or instead of one that can't be changed."""
    if write.job is not None:
        return False
    return all(item.remote_id is None or (resource.immutable and not item.adopted) for item in write.items)


def _is_doubtful(sides: Sides, write: PendingWrite) -> bool:
    resource = sides.resource
    creates = (resource.create, resource.create_many, resource.write_many)
    keyed = any(spec is not None and spec.idempotency_key is not None for spec in creates)
    now = sides.clock.now()
    forgotten = now - (write.announced_at or now) > KEYS_LAST
    return write.attempt > 1 or not keyed or forgotten


def _adopted(item: PendingItem, remote_id: str) -> PendingItem:
    if item.remote_id is None:
        return replace(item, remote_id=remote_id, adopted=True)
    retire = [*item.agreed.get("retire", ()), item.remote_id]
    return replace(item, remote_id=remote_id, adopted=True, agreed={**item.agreed, "retire": retire})


async def _made(sides: Sides, doubtful: Sequence[PendingWrite]) -> dict[str, str]:
    """Return the remote ids of what was made, by local id, where it is beyond doubt."""
    resource, items = sides.resource, [item for write in doubtful for item in write.items]
    if resource.find is not None:
        found = await _found_by_content(sides, items)
    elif resource.reference is not None and (resource.list or resource.changes):
        now = sides.clock.now()
        since = min(write.announced_at or now for write in doubtful) - LOOK_BACK
        found = await _found_by_reference(sides, resource.reference, items, since)
    else:
        return {}
    made: dict[str, str] = {}
    for item in items:
        ids = [each for each in found.get(item.local_id, ()) if each not in made.values()]
        if item.remote_id is not None:
            ids = [each for each in ids if await _took_its_place(sides, item, each)]
        if ids:
            made[item.local_id] = ids[0]
    return made


async def _took_its_place(sides: Sides, item: PendingItem, remote_id: str) -> bool:
    """Say whether a record is what an item's was to be replaced by. What a feed says of it may be old news:
    it is looked at as it is now.
    """
    resource = sides.resource
    if remote_id == item.remote_id:
        return False
    record = await sides.client.get(resource.name, remote_id)
    if record is None or any(differs(path_of(text), item.body, record) for text in resource.immutable):
        return False
    path = resource.reference
    return path is None or path.find(record) == path.find(item.body)


async def _found_by_reference(
    sides: Sides, reference: Path, items: Sequence[PendingItem], since: datetime
) -> dict[str, list[str]]:
    """Return the remote ids of records that were made since a moment and carry our ids, by local id, in the
    order in which they are read.
    """
    wanted = {str(reference.find(item.body)): item.local_id for item in items}
    made: dict[str, list[str]] = {}
    async for batch in sides.client.pages(sides.mapping.resource, since=since):
        for row in batch.records:
            value = reference.find(row.record)
            if isinstance(value, str) and value in wanted and not row.deleted:
                ids = made.setdefault(wanted[value], [])
                ids += [] if row.id in ids else [row.id]
    return made


async def _found_by_content(sides: Sides, items: Sequence[PendingItem]) -> dict[str, list[str]]:
    """Return the remote ids of items that are there, by local id, where it is beyond doubt."""
    resource, made = sides.resource, dict[str, list[str]]()
    taken: set[str] = set()
    for item in items:
        try:
            rows = await sides.client.find(resource.name, item.body)
        except (RecordRejectedError, ExpressionError):
            continue
        ids = [row.id for row in rows if not row.deleted and row.id not in taken | {item.remote_id}]
        if resource.reference is not None and (ours := resource.reference.find(item.body)):
            ids = [row.id for row in rows if row.id in ids and resource.reference.find(row.record) == ours]
        linked = await sides.linked(resource.name, ids)
        ids = [each for each in ids if linked.get(each, item.local_id) == item.local_id]
        if len(ids) == 1:
            made[item.local_id] = ids
            taken.update(ids)
    return made
