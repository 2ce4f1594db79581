"""Writes that an earlier run announced and never finished: found at the provider, or repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from engine.announcing import Announcer, chunks
from engine.client import Write, WriteGroup
from engine.errors import ExpressionError, RecordRejectedError
from engine.expressions import Path
from engine.ports import PendingItem, PendingWrite
from engine.reconcile import fingerprint
from engine.sides import Sides

LOOK_BACK = timedelta(hours=25)  # for records made by calls whose answers were lost


async def repeat_unanswered(
    sides: Sides, announcer: Announcer, report: Callable[[], None], *, jobs: bool
) -> frozenset[str]:
    """Repeat the calls announced by earlier runs; returns the local ids of those still open.

    Without `jobs`, those that were handed in stay open: a few records don't wait for hours.
    """
    open_ = await sides.state.announced(*sides.here)
    announced = await _adopt_made(sides, [write for write in open_ if jobs or write.job is None])
    calls = [(write, _as_sent(write)) for write in announced]
    for chunk in chunks(sides.resource, calls):
        sides.check_stop()
        await announcer.send(chunk, repeating=True)
        report()
    still = await sides.state.announced(*sides.here) if open_ else ()
    return frozenset(item.local_id for write in still for item in write.items)


def _as_sent(write: PendingWrite) -> WriteGroup:
    writes = (
        Write(item.local_id, item.remote_id, dict(item.body), write.key, item.adopted) for item in write.items
    )
    return WriteGroup(write.resource, write.key, tuple(writes), write.job)


async def _adopt_made(sides: Sides, announced: Sequence[PendingWrite]) -> Sequence[PendingWrite]:
    """Turn creates that were done after all into updates of what they made.

    Where a call can't be repeated under its own key, because the provider keeps none or replays a failure
    for it, the record may be there all the same: it carries our id.
    """
    resource = sides.resource
    creates = (resource.create, resource.create_many, resource.write_many)
    keyed = any(spec is not None and spec.idempotency_key is not None for spec in creates)
    doubtful = [
        write
        for write in announced
        if write.items[0].remote_id is None and write.job is None and (write.attempt > 1 or not keyed)
    ]
    items = [item for write in doubtful for item in write.items]
    if items and resource.find is not None:
        made = await _found_by_content(sides, items)
    elif items and resource.reference is not None and (resource.list or resource.changes):
        made = await _found_by_reference(sides, resource.reference, items)
    else:
        return announced
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
                items=(replace(item, remote_id=made[item.local_id], adopted=True),),
            )
            for item in found
        )
        if rest:
            adopted.append(replace(write, key=fingerprint([write.key, "rest"]), items=rest))
    if adopted:
        await sides.state.announce(adopted, instead_of=replaced)
    return [write for write in announced if write.key not in replaced] + adopted


async def _found_by_reference(sides: Sides, reference: Path, items: Sequence[PendingItem]) -> dict[str, str]:
    """Return the remote ids of items that were made lately, by local id."""
    wanted = {str(reference.find(item.body)): item.local_id for item in items}
    made: dict[str, str] = {}
    since = sides.clock.now() - LOOK_BACK
    async for batch in sides.client.pages(sides.mapping.resource, since=since):
        for row in batch.records:
            value = reference.find(row.record)
            if isinstance(value, str) and value in wanted and not row.deleted:
                made.setdefault(wanted[value], row.id)
    return made


async def _found_by_content(sides: Sides, items: Sequence[PendingItem]) -> dict[str, str]:
    """Return the remote ids of items that are there, by local id, where it is beyond doubt."""
    resource, made = sides.resource, dict[str, str]()
    for item in items:
        try:
            rows = await sides.client.find(resource.name, item.body)
        except (RecordRejectedError, ExpressionError):
            continue
        ids = [row.id for row in rows if not row.deleted and row.id not in made.values()]
        if resource.reference is not None and (ours := resource.reference.find(item.body)):
            ids = [row.id for row in rows if row.id in ids and resource.reference.find(row.record) == ours]
        linked = await sides.linked(resource.name, ids)
        ids = [each for each in ids if linked.get(each, item.local_id) == item.local_id]
        if len(ids) == 1:
            made[item.local_id] = ids[0]
    return made
