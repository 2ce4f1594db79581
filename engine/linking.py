"""Which records of the two sides are the same thing: those linked, those found to be, those just written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.client import ReadRecord, WriteResult
from engine.errors import HubError
from engine.ports import Link, PendingItem
from engine.reconcile import plain
from engine.sides import Sides, still_open

# ---- of what was read -----------------------------------------------------------------------------------


async def followed(
    sides: Sides, rows: Sequence[ReadRecord], known: Mapping[str, Link]
) -> tuple[dict[str, Link], Callable[[ReadRecord, str], list[Link]]]:
    """Return the links of rows, those included whose id has changed since, and what gives the link to
    save for an id that stays: it is one of its own, as if that id were another resource's.
    """
    links_of = dict(known)
    path = sides.resource.lasting_id
    if path is None or not rows:
        return links_of, lambda row, local_id: []
    ids = {row.id: str(found) for row in rows if (found := path.find(row.record))}
    saved = await sides.state.links_by_remote(sides.lasting, list(ids.values()))
    moved = {
        row.id: saved[ids[row.id]].local_id
        for row in rows
        if row.id not in known and not row.deleted and ids.get(row.id) in saved
    }
    resource = sides.mapping.resource
    links = await sides.state.links_by_local(resource, list(moved.values())) if moved else {}
    here = {row.id for row in rows}
    for row_id, local_id in moved.items():
        # An id that is still somebody's here is no old one.
        if local_id in links and links[local_id].remote_id not in here:
            links_of[row_id] = replace(links[local_id], remote_id=row_id)

    def lasting(row: ReadRecord, local_id: str) -> list[Link]:
        found = ids.get(row.id)
        if found is None or (found in saved and saved[found].local_id == local_id):
            return []
        return [Link(sides.mapping.entity, sides.lasting, local_id, found, last_direction="pull")]

    return links_of, lasting


async def match(sides: Sides, rows: Sequence[ReadRecord]) -> dict[str, str]:
    """Pair unlinked records with the platform's, only where it is beyond doubt: by our own id in theirs,
    or by `match_on` for those that existed on both sides before the first sync.
    """
    mapping = sides.mapping
    known = await _match_by_reference(sides, rows)
    rows = [row for row in rows if row.id not in known]
    if not rows or mapping.match_on is None or mapping.match_path is None:
        return known
    values: dict[str, str] = {}
    claims: dict[str, int] = {}
    for row in rows:
        value = mapping.match_path.find(row.record)
        if isinstance(value, str) and value.strip():
            values[row.id] = value.strip().lower()
            claims[values[row.id]] = claims.get(values[row.id], 0) + 1
    found = await sides.host.find(mapping.entity, mapping.match_on, list(claims))
    single = {value: ids[0] for value, ids in found.items() if len(ids) == 1 and claims.get(value) == 1}
    taken = await sides.state.links_by_local(mapping.resource, list(single.values()))
    return known | {
        remote_id: single[value]
        for remote_id, value in values.items()
        if value in single and single[value] not in taken and single[value] not in known.values()
    }


async def _match_by_reference(sides: Sides, rows: Sequence[ReadRecord]) -> dict[str, str]:
    path = sides.resource.reference
    if path is None or not rows:
        return {}
    found = ((row.id, path.find(row.record)) for row in rows)
    references = {row_id: value for row_id, value in found if isinstance(value, str) and value}
    mapping = sides.mapping
    ours = await sides.host.fetch(mapping.entity, list(references.values())) if references else {}
    taken = await sides.state.links_by_local(mapping.resource, list(ours)) if ours else {}
    matched: dict[str, str] = {}
    for row_id, local_id in references.items():
        if local_id in ours and local_id not in taken and local_id not in matched.values():
            matched[row_id] = local_id
    return matched


# ---- of what was written --------------------------------------------------------------------------------


def pushed_links(sides: Sides, item: PendingItem, result: WriteResult) -> list[Link]:
    """Return the link of a record, and of those items of its lists that are records of their own."""
    links, entity = [_pushed_link(sides, item, result)], sides.mapping.entity
    path = sides.resource.lasting_id
    if path is not None and (found := path.find(result.record)):
        links.append(Link(entity, sides.lasting, item.local_id, str(found), last_direction="push"))
    for rule in sides.mapping.list_rules:
        pair_by = sides.resource.lists[rule.path.text].pair_by
        ids = sides.connector.resources[rule.resource].id
        sent, there = rule.path.find(item.body), rule.path.find(result.record)
        ours = {pair_by.find(each) for each in sent} if isinstance(sent, list) else set()
        for each in there if isinstance(there, list) else ():
            local_id, remote_id = pair_by.find(each), ids.find(each)
            if local_id in ours and isinstance(remote_id, str):
                links.append(Link(entity, rule.resource, str(local_id), remote_id, last_direction="push"))
    return links


def _pushed_link(sides: Sides, item: PendingItem, result: WriteResult) -> Link:
    theirs: Mapping[str, Any] = {}
    try:
        theirs = sides.mapping.pull(result.record or dict(item.body), sides.scope({}))
    except HubError:
        theirs = {}  # only makes the next pull look closer
    agreed = {name: value for name, value in item.agreed.items() if name not in ("retire", "version")}
    agreed |= {"theirs": plain(theirs), **sides.version_seen(result.record)}
    agreed = still_open(agreed, item.agreed.get("open", ()), item.agreed)
    if result.write.retire:
        agreed["retire"] = list(result.write.retire)
    return Link(
        entity=sides.mapping.entity,
        resource=sides.mapping.resource,
        local_id=item.local_id,
        remote_id=result.remote_id or item.remote_id or "",
        fingerprint=item.fingerprint,
        agreed=agreed,
        remote_version=result.changed_at,
        last_direction="push",
    )
