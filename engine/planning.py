"""What a push would do, record by record and field by field, without doing it.

A plan goes the way of a push: the same changes are looked at, the same rules decide, theirs is read where it
counts. Nothing is written on either side, nor in our own books.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.bodies import Body, covers, final_body, not_in_updates, own_id, path_of
from engine.client import ReadRecord, Write
from engine.errors import ExpressionError, HubError
from engine.expressions import ABSENT
from engine.fields import FieldCatalog
from engine.gone import Gone, allowed
from engine.linking import followed, match
from engine.mapping import Mapping as FieldMapping
from engine.ports import Link, Record
from engine.pushing import Looked, Passed, Push
from engine.reconcile import ConflictRule, Resolution, fingerprint, moment, plain, resolve, same
from engine.sides import Sides, batched

Action = Literal["create", "update", "archive", "delete", "conflict", "skip", "error"]

LOOKED_AT = 500  # of ours

PASSED: Mapping[Passed, str] = {
    "unchanged": "unchanged since the last sync",
    "deleted": "deleted here",
    "unwanted": "not wanted there: `only_when` says no",
    "broken": "the provider's record was deleted, and a push doesn't make it again",
}
GONE = "the provider's record is gone"
PAIRED = "paired with a record that is there already: a sync links the two and writes nothing there"
HAS_IT = "the provider has these values already"
NEWS = "only the provider's record has news: a sync takes it over"
UNANSWERED = "an earlier write of it has had no answer yet: a sync sees to that first"
SINCE = "changed here since the last sync"
BOTH = "both sides changed it since the last sync"


@dataclass(frozen=True, slots=True)
class PlannedField:
    """What becomes of one field: `before` is what the provider has, `after` what it has then, and `ours` the
    platform's value now. `field` is ours and `path` theirs, None where a side has no name for it.
    """

    field: str | None
    path: str | None
    ours: Any
    before: Any
    after: Any
    reason: str
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRecord:
    """What becomes of one record, and why.

    `writes` says that applying the plan writes it at the provider, `pulls_first` that it takes over first
    what changed there. The rest are fingerprints of what the plan rests on: `ours` as it was, `merged` as it
    is then, `theirs` as far as the mapping sees it; empty for a record that wasn't there, `theirs` None for
    one that wasn't looked at.
    """

    local_id: str
    action: Action
    reason: str
    remote_id: str | None = None
    fields: tuple[PlannedField, ...] = ()
    writes: bool = False
    pulls_first: bool = False
    ours: str = ""
    merged: str = ""
    theirs: str | None = None


def print_of(record: Mapping[str, Any] | None) -> str:
    """Return what changes when one of our records does; when it changed doesn't count."""
    if record is None:
        return ""
    return fingerprint({name: value for name, value in record.items() if name != "changed_at"})


def print_of_theirs(mapping: FieldMapping, record: Mapping[str, Any] | None) -> str:
    """Return what changes when one of theirs does, in what the mapping reads or writes."""
    if record is None:
        return ""
    paths = {*mapping.sources, *(path.text for paths in mapping.places.values() for path in paths)}
    values = {text: _value(text, record) for text in sorted(paths)}
    try:
        return fingerprint(values)
    except TypeError:  # a number of theirs that is larger than JSON writers here take
        return fingerprint(repr(values))


def existing(row: ReadRecord | None, link: Link | None) -> Mapping[str, Any] | None:
    """Return a record of theirs; None for one that is gone. One that we put out of use isn't."""
    put_away = link is not None and link.state in ("leaving", "archived")
    return None if row is None or (row.deleted and not put_away) else row.record


@dataclass(slots=True)
class _Candidate:
    """A record that a push would write, and what is known of the provider's."""

    write: Write
    ours: Record
    link: Link | None
    remote_id: str | None
    paired: bool = False
    row: ReadRecord | None = None
    their: Mapping[str, Any] | None = None  # as ours would be; None: nothing of it is news
    resolution: Resolution | None = None
    merged: Record = field(default_factory=dict)
    sends: bool = True  # a pull that comes first leaves something to write


class Plan:
    """The plan of one push. `pulls` says that a sync pulls this mapping first, `referred` names resources
    whose records others refer to, and `made` gets those of this plan, by resource and local id.
    """

    def __init__(
        self,
        sides: Sides,
        gone: Gone,
        push: Push,
        *,
        fields: FieldCatalog,
        pulls: bool,
        referred: Collection[str],
        made: dict[tuple[str, str], str],
    ) -> None:
        self._sides = sides
        self._gone = gone
        self._push = push
        self._fields = fields
        self._pulls = pulls and sides.mapping.pulls
        self._referred = referred
        self._made = made
        self._pairs: Mapping[str, str] = {}  # local ids to remote ids
        self._leaving: dict[str, Link] = {}

    async def records(self, again: Sequence[str] = ()) -> AsyncIterator[list[PlannedRecord]]:
        """Yield what becomes of all that changed since the last push, and of those that failed before, some
        at a time. A record that changes meanwhile may come twice: the later one counts.

        Raises ProviderError for what stops it, StoppedError.
        """
        sides = self._sides
        self._pairs = await self._paired() if self._pulls else {}
        open_ = await sides.state.announced(*sides.here)
        waiting = frozenset(item.local_id for write in open_ for item in write.items)
        left = dict.fromkeys(again)
        since = await sides.state.position(*sides.here, "push")
        async for page in sides.host.changed(sides.mapping.entity, since):
            sides.check_stop()
            for record in page.records:
                left.pop(str(record["id"]), None)
            yield await self._look_at(page.records, waiting)
        for some in batched(list(left), LOOKED_AT):
            sides.check_stop()
            records = await sides.host.fetch(sides.mapping.entity, some)
            yield await self._look_at(list(records.values()), waiting)
        leaving = [each async for each in self._to_put_away()]
        if leaving:
            yield leaving

    async def _paired(self) -> dict[str, str]:
        """Return which of theirs a pull would find to be ours, by our ids: those without a link."""
        sides = self._sides
        by_content = sides.mapping.match_on is not None and sides.mapping.match_path is not None
        if not sides.askable or not (by_content or sides.resource.reference):
            return {}
        since = moment((await sides.state.position(*sides.here, "pull") or {}).get("since"))
        found: dict[str, str] = {}
        async with aclosing(sides.client.pages(sides.mapping.resource, since=since)) as pages:
            async for batch in pages:
                sides.check_stop()
                rows = list({row.id: row for row in batch.records if not row.deleted}.values())
                ids = [row.id for row in rows]
                links = await sides.state.links_by_remote(sides.mapping.resource, ids)
                known, _ = await followed(sides, rows, links)
                new = await match(sides, [row for row in rows if row.id not in known])
                found |= {local_id: remote_id for remote_id, local_id in new.items()}
        return found

    async def _look_at(self, records: Sequence[Record], waiting: Collection[str]) -> list[PlannedRecord]:
        open_ = [record for record in records if str(record["id"]) in waiting]
        rest = {str(record["id"]): record for record in records if str(record["id"]) not in waiting}
        looked = await self._push.look(list(rest.values()), self._made)
        self._leaving |= {link.local_id: link for link in looked.moved if link.state == "leaving"}
        rows = [PlannedRecord(str(record["id"]), "skip", UNANSWERED) for record in open_]
        rows += self._passed(looked)
        rows += [
            PlannedRecord(each.record_id, "error", each.message, fields=_wrong(each.field, each.message))
            for each in looked.failures
        ]
        rows += await self._to_write(looked, rest)
        return rows

    def _passed(self, looked: Looked) -> Iterator[PlannedRecord]:
        for local_id, why in looked.passed.items():
            link = looked.links.get(local_id)
            if local_id in self._leaving or (link is not None and link.state == "leaving"):
                continue  # all of them are looked at in the end
            reason = PASSED[why]
            if link is not None and why in ("deleted", "unwanted"):
                reason += "; the provider's record stays as it is"
            yield PlannedRecord(local_id, "skip", reason, link.remote_id if link else None)

    # ---- what is written --------------------------------------------------------------------------------

    async def _to_write(self, looked: Looked, ours: Mapping[str, Record]) -> list[PlannedRecord]:
        sides = self._sides
        candidates = [self._candidate(write, ours[write.local_id], looked) for write in looked.writes]
        known = [each.remote_id for each in candidates if each.remote_id is not None]
        there, refused = await sides.look_up(known) if known and sides.askable else ({}, {})
        for each in candidates:
            each.row = there.get(each.remote_id or "")
        if self._sides.mapping.pulled_fields:
            await self._merge([each for each in candidates if each.row is not None])
        rows = []
        for each in candidates:
            error = refused.get(each.remote_id or "")
            row = (
                PlannedRecord(each.write.local_id, "error", error.message, each.remote_id)
                if error is not None
                else self._decide(each)
            )
            rows.append(row)
            self._note_made(each, row)
        return rows

    def _candidate(self, write: Write, ours: Record, looked: Looked) -> _Candidate:
        pair = self._pairs.get(write.local_id) if write.remote_id is None else None
        own = own_id(self._sides.resource, write.body) if write.remote_id is None else None
        remote_id = write.remote_id or pair or own
        return _Candidate(
            write, ours, looked.links.get(write.local_id), remote_id, pair is not None, merged=ours
        )

    async def _merge(self, candidates: Sequence[_Candidate]) -> None:
        """Lay theirs over ours where theirs is news, as a pull would before the push."""
        sides, mapping = self._sides, self._sides.mapping
        rows = {each.write.local_id: each.row for each in candidates if each.row is not None}
        scope = sides.scope(await sides.local_ids_of_links(rows.values()))
        conflicts = await sides.state.conflicts_of(mapping.resource, list(rows)) if rows else []
        returned = mapping.returned_fields
        for each in candidates:
            row, link = rows[each.write.local_id], each.link
            linked = each.paired or each.write.remote_id is not None
            if row.deleted or not linked or (link is not None and link.state != "linked"):
                continue
            try:
                if not mapping.wants_pull(row.record, scope):
                    continue
                their = mapping.pull(row.record, scope)
                echo = mapping.pull(each.write.body, sides.scope({})) if each.paired else {}
            except HubError:
                continue  # a pull couldn't take it over either, and a push goes on
            agreed = link.agreed if link is not None else {}
            if not agreed.get("open") and agreed.get("theirs") == plain(their):
                continue
            each.their = their
            each.resolution = resolve(
                each.ours,
                {name: value for name, value in their.items() if name not in echo or value != echo[name]},
                agreed,
                rule=mapping.conflict_rule if self._pulls else self._ours_wins,
                theirs_newer=_is_later(row.changed_at, each.ours.get("changed_at")),
                fields=self._fields,
                known={found.field: found for found in conflicts if found.local_id == each.write.local_id},
                unsaid=[name for name in returned if name not in their],
            )
            if self._pulls:
                each.merged = {**each.ours, **each.resolution.take}
        taken = [each for each in candidates if each.merged is not each.ours]
        looked = await self._push.look([each.merged for each in taken], self._made) if taken else Looked()
        bodies = {write.local_id: write for write in looked.writes}
        for each in taken:
            each.write = bodies.get(each.write.local_id, each.write)
        news = [each for each in candidates if each.resolution is not None and self._pulls]
        sent = sides.scope({**self._made, **await sides.remote_ids_of_links([each.merged for each in news])})
        for each in news:
            row, resolution = rows[each.write.local_id], each.resolution
            each.sends = (resolution is not None and resolution.ours_win) or (
                sides.lacks(row.record, each.merged, sent)
                if each.link is None
                else sides.changed_besides(each.ours, each.link, sent)
            )

    def _ours_wins(self, name: str) -> ConflictRule:
        """Return what decides without a pull: a push overwrites, but for what waits for a person."""
        return "manual" if self._sides.mapping.conflict_rule(name) == "manual" else "platform_wins"

    def _decide(self, each: _Candidate) -> PlannedRecord:
        sides, write = self._sides, each.write
        seen = sides.askable and each.remote_id is not None
        there = existing(each.row, each.link)
        made = PlannedRecord(
            write.local_id,
            "update",
            "",
            each.remote_id,
            writes=True,
            ours=print_of(each.ours),
            merged=print_of(each.merged),
            theirs=print_of_theirs(sides.mapping, there) if seen else None,
        )
        if seen and there is None and write.remote_id is not None and write.only_existing:
            reason = f"{GONE}, and this mapping doesn't make it again"
            return replace(made, action="skip", reason=reason, writes=False)
        if each.remote_id is None or (seen and there is None):
            reason = (
                f"{GONE}: it is made again" if write.remote_id is not None else "there is none of it there"
            )
            return replace(made, action="create", reason=reason, fields=tuple(self._of_new(each)))
        resolution = each.resolution
        news = resolution if self._pulls else None
        changes = [*self._changes(each, there)] if each.sends else []
        fields = (*self._taken(each), *changes)
        writes = bool(changes or (write.retire and news is None))
        made = replace(made, fields=fields, writes=writes, pulls_first=news is not None and writes)
        if resolution is not None and (resolution.conflicts or resolution.open):
            return replace(made, action="conflict", reason=_conflict_reason(fields, writes=writes))
        if writes:
            return replace(made, reason=self._why(each))
        why = PAIRED if each.paired else NEWS if news is not None and news.take else HAS_IT
        return replace(made, action="skip", reason=why)

    def _of_new(self, each: _Candidate) -> Iterator[PlannedField]:
        for text, name in self._sides.mapping.sources.items():
            value = _value(text, each.write.body)
            if value not in (None, "", [], {}):
                yield PlannedField(name, text, each.ours.get(name), None, value, "new there")

    def _taken(self, each: _Candidate) -> Iterator[PlannedField]:
        """Yield the fields of which the provider's value stays, because it changed there."""
        resolution, their = each.resolution, each.their
        if resolution is None or their is None or not self._pulls:
            return
        mapping = self._sides.mapping
        for name in dict.fromkeys((*resolution.take, *resolution.open)):
            paths = mapping.places.get(name, ())
            conflict = name in resolution.conflicts or name in resolution.open
            reason = (
                self._who_wins(name, each)
                if conflict
                else "changed there since the last sync: a sync takes it over"
            )
            value = their.get(name)
            path = paths[0].text if paths else None
            yield PlannedField(name, path, each.ours.get(name), value, value, reason, conflict)

    def _changes(self, each: _Candidate, there: Mapping[str, Any] | None) -> Iterator[PlannedField]:
        """Yield the fields of theirs that a write changes; where theirs can't be read, all it sends."""
        sides, resource, body = self._sides, self._sides.resource, each.write.body
        own_call = {path_of(text).steps for text in resource.parts}
        fixed = not_in_updates(resource) - own_call
        target = self._final(each, there)
        kept = set(each.resolution.open) if each.resolution is not None else set()
        for text, name in sides.mapping.sources.items():
            path = path_of(text)
            if path.steps in fixed or path.find(body) is ABSENT or name in kept:
                continue
            before = None if there is None else _value(text, there)
            after = _value(text, target)
            if path.steps in own_call and after is None:
                continue  # nothing is sent then
            if there is not None and covers(before, after):
                continue
            conflict = each.resolution is not None and name in each.resolution.conflicts
            reason = self._why_changed(name, each)
            if text in resource.immutable:
                reason += "; it can't be changed there, so a new record takes its place"
            if path.steps in own_call:
                reason += "; it is sent by a call of its own"
            yield PlannedField(name, text, each.ours.get(name), before, after, reason, conflict)

    def _final(self, each: _Candidate, there: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return what the provider is sent, as far as that can be said beforehand."""
        body: Body = dict(each.write.body)
        if there is None:
            return body
        scope = {"key": each.write.local_id, "record": body, "id": each.remote_id}
        try:
            return final_body(self._sides.resource, body, there, scope)
        except ExpressionError:  # it is made of what is only known while it is sent
            return body

    def _why_changed(self, name: str, each: _Candidate) -> str:
        resolution, link = each.resolution, each.link
        if resolution is not None and name in (*resolution.conflicts, *resolution.outcomes):
            return self._who_wins(name, each)
        if each.paired:
            return "the provider has none, or another value"
        agreed = link.agreed.get("ours") if link is not None else None
        if agreed and name in agreed:
            declared = self._fields.get(name)
            if not same(agreed[name], each.ours.get(name), declared.type if declared else "any"):
                return SINCE
            return "changed there since the last sync, and this integration only pushes"
        seen = each.row.changed_at if each.row is not None else None
        if link is not None and seen and link.remote_version and moment(seen) == moment(link.remote_version):
            return SINCE  # for there it didn't
        return "the provider has another value"

    def _who_wins(self, name: str, each: _Candidate) -> str:
        resolution, row = each.resolution, each.row
        at = f" (there {row.changed_at})" if row is not None and row.changed_at else ""
        outcome = resolution.outcomes.get(name) if resolution is not None else None
        if outcome == "person":
            return "as a person decided"
        if outcome == "open":
            return f"{BOTH}{at}: a person has to decide, and until then it stays as it is"
        if not self._pulls:
            return f"{BOTH}{at}: the platform wins, for this integration only pushes"
        side = "provider" if resolution is not None and name in resolution.take else "platform"
        if self._sides.mapping.conflict_rule(name) == "newest_wins":
            return f"{BOTH}{at}: the {side} wins, whose record changed last"
        return f"{BOTH}{at}: the {side} wins by the mapping's rule"

    def _why(self, each: _Candidate) -> str:
        parts = []
        if each.paired:
            parts.append("paired with a record that is there already")
        elif each.write.remote_id is None:
            parts.append("the provider has a record of this content already")
        elif self._changed_there(each):
            parts.append("the provider's record changed since the last sync")
        if self._pulls and each.resolution is not None and each.resolution.take:
            parts.append("what changed there is taken over first")
        if each.write.retire:
            parts.append("what it took the place of is put out of use")
        return "; ".join(parts) or SINCE

    def _changed_there(self, each: _Candidate) -> bool:
        version = each.link.remote_version if each.link is not None else None
        return each.row is not None and _is_later(each.row.changed_at, version)

    def _note_made(self, each: _Candidate, row: PlannedRecord) -> None:
        """Let records that refer to this one be planned as if it were there already."""
        sides = self._sides
        if row.action not in ("create", "update", "conflict") or each.link is not None:
            return
        resource = sides.mapping.resource
        if resource in self._referred:
            self._made[resource, row.local_id] = each.remote_id or f"(the new {resource})"
        for rule in sides.mapping.list_rules:
            items = rule.path.find(each.write.body)
            if rule.resource not in self._referred or not isinstance(items, list):
                continue
            pair_by = sides.resource.lists[rule.path.text].pair_by
            for item in items:
                local_id = pair_by.find(item)
                if isinstance(local_id, str):
                    self._made.setdefault((rule.resource, local_id), f"(the new {rule.resource})")

    # ---- what is put out of use -------------------------------------------------------------------------

    async def _to_put_away(self) -> AsyncIterator[PlannedRecord]:
        """Yield what becomes of theirs where ours is gone, or not wanted any more."""
        sides, links, after = self._sides, dict(self._leaving), ""
        while found := await sides.state.links_in_state(*sides.here, "leaving", after=after, limit=LOOKED_AT):
            links |= {link.local_id: link for link in found}
            after = found[-1].local_id
        counts = await sides.state.count_links(*sides.here) if links else {}
        among = counts.get("linked", 0) + counts.get("leaving", 0)
        limit = allowed(among, sides.mapping.at_most_gone, sides.mapping.few_gone)
        held = len(links) > limit
        for some in batched(list(links.values()), LOOKED_AT):
            sides.check_stop()
            ours = await sides.host.fetch(sides.mapping.entity, [link.local_id for link in some])
            ids = [link.remote_id for link in some]
            can_ask = sides.askable
            there, _ = await sides.look_up(ids) if can_ask else ({}, {})
            for link in some:
                theirs = existing(there.get(link.remote_id), link)
                planned = self._put_away(link, ours.get(link.local_id), held, len(links), among)
                yield replace(planned, theirs=print_of_theirs(sides.mapping, theirs) if can_ask else None)

    def _put_away(self, link: Link, ours: Record | None, held: bool, gone: int, among: int) -> PlannedRecord:
        made = PlannedRecord(link.local_id, "skip", "", link.remote_id, ours=print_of(ours))
        try:
            rule = self._gone.rule(link, ours)
        except HubError as error:
            return replace(made, action="error", reason=error.message)
        if rule == "keep":
            return replace(made, reason="wanted again, or left as it is")
        if held:
            share = f"{self._sides.mapping.at_most_gone:.0%}"
            reason = f"{gone} of {among} linked records are gone, more than the {share} that may go unasked"
            return replace(made, reason=reason)
        if self._gone.refused(link):
            return replace(made, reason="the provider refused too often: only a sync that approves it tries")
        why = "deleted here" if ours is None or not self._is_here(ours) else "not wanted there any more"
        return replace(made, action=rule, reason=why, writes=True)

    def _is_here(self, ours: Record) -> bool:
        return not self._sides.mapping.is_deleted(ours, self._sides.scope({}))


def _value(text: str, record: Mapping[str, Any]) -> Any:
    """Return a value at a path; None where there is none."""
    found = path_of(text).find(record)
    return None if found is ABSENT else found


def _is_later(one: str | None, other: str | None) -> bool:
    later, earlier = moment(one), moment(other)
    return bool(later and earlier and later > earlier)


def _wrong(name: str | None, message: str) -> tuple[PlannedField, ...]:
    return (PlannedField(name, None, None, None, None, message),) if name else ()


def _conflict_reason(fields: Iterable[PlannedField], *, writes: bool) -> str:
    names = ", ".join(f"`{each.field or each.path}`" for each in fields if each.conflict)
    return f"both sides changed {names}" + ("" if writes else ": nothing is written there")
