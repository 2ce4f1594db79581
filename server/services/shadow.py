"""Try a healed pair on recent records before it counts: nothing is written, on neither side.

Records that are linked are read on both sides. What the pair would bring over is compared with what is there:
where the new field really took the old one's place, they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select

from engine.errors import HubError, ProviderError, UnexpectedResponseError
from engine.expressions import ABSENT, Path
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.pairs import GonePair, Written, compile_pairs, moved, rules_of, without_pairs
from engine.reconcile import plain
from server.context import Context
from server.db.models import LinkState, RecordLink
from server.host import SqlHost

RECORDS = 20  # the latest
ENOUGH = 3  # values that tell whether it is right
AGREE = 0.5  # of those at least


@dataclass(frozen=True, slots=True)
class Shadow:
    """What came of trying: of `records` read on both sides, `compared` have a value on both, `equal` of them
    the same, and `empty` have none in the new field though ours has one.
    """

    records: int = 0
    compared: int = 0
    equal: int = 0
    empty: int = 0

    @property
    def denies(self) -> bool:
        """Whether the values say that it isn't the same field."""
        return self.compared + self.empty >= ENOUGH and self.equal < AGREE * (self.compared + self.empty)

    def to_json(self) -> dict[str, int]:
        names = ("records", "compared", "equal", "empty")
        return {name: getattr(self, name) for name in names}


async def try_out(
    context: Context, venue_id: UUID, provider: str, mappings: Sequence[Written], gone: GonePair, to: str
) -> Shadow:
    """Try what a pair would bring over if it named `to` for its field that is gone.

    Raises ProviderError when the provider can't be asked.
    """
    catalog, connector = context.catalog, context.catalog.connector(provider)
    only = [each for each in moved(mappings, gone, to) if _has(each, gone, to)]
    pair = (to, gone.target) if gone.gone == gone.source else (gone.source, to)
    # By itself, for other pairs may be broken or need what isn't known here.
    others = {(rule.source, rule.target) for rule in rules_of(only)} - {pair}
    alone = [{k: v for k, v in each.items() if k != "match_on"} for each in without_pairs(only, others)]
    compiled, _ = compile_pairs(alone, connector, catalog.platform)
    total = Shadow()
    host = SqlHost(context.platform, catalog.platform, str(venue_id))
    for mapping in compiled:
        links, theirs = await _looked_up(context, venue_id, provider, mapping)
        if not theirs:
            continue
        ours = await host.fetch(mapping.entity, list(links.values()))
        scope = MappingScope(venue=await host.venue())
        for remote_id, record in theirs.items():
            if links[remote_id] in ours:
                total = _counted(total, mapping, ours[links[remote_id]], record, pair, scope)
    return total


async def still_there(
    context: Context, venue_id: UUID, provider: str, mappings: Sequence[Written], gone: GonePair
) -> bool | None:
    """Say whether recent records, each read by itself, have a field that was missed: lists may leave it out.

    None: there is no record to look at. Raises ProviderError when the provider can't be asked.
    """
    connector = context.catalog.connector(provider)
    path = Path.parse(gone.gone.partition(".")[2])
    compiled, _ = compile_pairs(mappings, connector, context.catalog.platform)
    found = None
    for mapping in compiled:
        if mapping.resource == gone.side:
            _, theirs = await _looked_up(context, venue_id, provider, mapping)
            if any(path.find(record) is not ABSENT for record in theirs.values()):
                return True
            found = False if theirs else found
    return found


async def _looked_up(
    context: Context, venue_id: UUID, provider: str, mapping: FieldMapping
) -> tuple[dict[str, str], dict[str, Mapping[str, Any]]]:
    """Return the latest links of a mapping, ours by theirs, and their records by id."""
    connector = context.catalog.connector(provider)
    async with context.sessions() as session:
        rows = await session.execute(
            select(RecordLink.local_id, RecordLink.remote_id)
            .filter_by(
                venue_id=venue_id,
                integration_type=provider,
                entity=mapping.entity,
                resource=mapping.resource,
                state=LinkState.LINKED,
            )
            .where(RecordLink.remote_id.is_not(None))
            .order_by(RecordLink.updated_at.desc())
            .limit(RECORDS)
        )
        links = {row.remote_id: row.local_id for row in rows}
    spec = connector.resources[mapping.resource]
    if not links or (spec.get is None and spec.get_many is None):
        return links, {}
    client = context.client(connector, context.credentials(venue_id, provider))
    try:
        theirs = await client.look_up(mapping.resource, list(links))
    except UnexpectedResponseError as error:
        raise ProviderError(error.message, status=error.status) from error  # as the API tells it
    return links, {each: row.record for each, row in theirs.items() if not row.deleted}


def _has(mapping: Written, gone: GonePair, to: str) -> bool:
    side = "entity" if gone.gone == gone.source else "resource"
    return bool(mapping[side] == to.partition(".")[0])


def _counted(
    total: Shadow,
    mapping: FieldMapping,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    pair: tuple[str, str],
    scope: MappingScope,
) -> Shadow:
    """Compare one record's values, in the way the mapping goes."""
    field, path = (each.partition(".")[2] for each in pair)
    try:
        if mapping.pulls and field in mapping.pulled_fields:
            here, there = plain(dict(ours)).get(field), plain(mapping.pull(theirs, scope)).get(field)
        else:
            where = Path.parse(path)
            here, there = where.find(mapping.push(ours, scope)), where.find(theirs)
    except HubError:
        return total
    here, there = (None if each is ABSENT or each == "" else each for each in (here, there))
    return Shadow(
        total.records + 1,
        total.compared + (here is not None and there is not None),
        total.equal + (here is not None and here == there),
        total.empty + (here is not None and there is None),
    )
