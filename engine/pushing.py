"""Bring the provider in step with the platform: page by page, each call announced before it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from engine.announcing import Announcer, Call, chunks
from engine.bodies import own_id
from engine.client import ReadRecord, Write
from engine.errors import HubError, RecordRejectedError
from engine.expressions import ABSENT, Path
from engine.fields import FieldCatalog
from engine.gone import Gone, to_leave, to_stay
from engine.mapping import MappingScope
from engine.ports import Commit, FieldConflict, Link, PendingItem, PendingWrite, Record, RecordFailure
from engine.reconcile import fingerprint, plain, resolve, same
from engine.recovery import repeat_unanswered
from engine.sides import ASKED_FOR, Period, Sides, batched
from engine.tally import Tally

# Why nothing is to be written for a record.
Passed = Literal["deleted", "unwanted", "broken", "unchanged"]


@dataclass(slots=True)
class Looked:
    """What a page of ours comes to before anything is sent."""

    links: Mapping[str, Link] = field(default_factory=dict)  # by local id, as they are saved
    passed: dict[str, Passed] = field(default_factory=dict)  # by local id
    writes: list[Write] = field(default_factory=list)
    items: dict[str, PendingItem] = field(default_factory=dict)  # by local id
    fine: list[str] = field(default_factory=list)  # nothing to write, so whatever failed earlier is over
    moved: list[Link] = field(default_factory=list)
    failures: list[RecordFailure] = field(default_factory=list)


class Push:
    """One push of one mapping, counted in `tally`."""

    def __init__(
        self,
        sides: Sides,
        gone: Gone,
        tally: Tally,
        *,
        fields: FieldCatalog,
        report: Callable[[Tally], None],
        complete: bool,
        period: Period | None,
    ) -> None:
        self._sides = sides
        self._fields = fields
        self._gone = gone
        self._tally = tally
        self._announcer = Announcer(sides, tally)
        self._told = report
        self._complete = complete
        self._period = period
        self._started = sides.clock.monotonic()
        self._calls = sides.client.calls

    async def changed(self) -> None:
        """Send what changed since the last push; then deal with what is gone here."""
        sides = self._sides
        waiting = await self.finish()
        if self._period is not None:
            await self._changed_within(self._period, waiting)
        else:
            since = await sides.state.position(*sides.here, "push")
            async for page in sides.host.changed(sides.mapping.entity, since):
                sides.check_stop()
                await self._send(page.records, page.position, waiting)
            await self._send_due(waiting)
        if self._complete:
            await self._gone.compare_ours()
        try:
            await self._gone.settle(self._gone.settle_ours, self._tally)
        finally:
            self._report()

    async def _send_due(self, waiting: frozenset[str]) -> None:
        """Send what has to be written though it didn't change: a person decided, or theirs went back."""
        sides, after = self._sides, ""
        if not sides.mapping.pulls:
            return
        while links := await sides.state.links_due(*sides.here, after=after):
            after = links[-1].local_id
            sides.check_stop()
            records = await sides.host.fetch(sides.mapping.entity, [link.local_id for link in links])
            await self._send(list(records.values()), None, waiting)

    async def _changed_within(self, period: Period, waiting: frozenset[str]) -> None:
        changes = self._sides.host.changed(self._sides.mapping.entity, None, earliest=period.since)
        async for page in changes:
            self._sides.check_stop()
            records = [record for record in page.records if period.holds(record.get("changed_at"))]
            await self._send(records, None, waiting)
            if period.is_over(page.records[-1].get("changed_at")):
                return  # so is all that follows

    async def some(self, ids: Sequence[str]) -> None:
        """Send these records, as far as they need it."""
        waiting = await repeat_unanswered(self._sides, self._announcer, self._report, jobs=False)
        records = await self._sides.host.fetch(self._sides.mapping.entity, ids)
        await self._send(list(records.values()), None, waiting)
        await self._settle_gone([each for each in ids if each not in records and each not in waiting])

    async def finish(self) -> frozenset[str]:
        """Repeat what earlier runs announced and never finished; returns the local ids of what stays open."""
        return await repeat_unanswered(self._sides, self._announcer, self._report, jobs=True)

    async def these(self, records: Sequence[Record]) -> None:
        """Send records as they are given, as far as they need it; no earlier write of theirs may be open."""
        await self._send(records, None, frozenset())

    async def _settle_gone(self, ids: Sequence[str]) -> None:
        """Forget what failed of records that are no longer here, but for putting theirs away."""
        sides = self._sides
        links = await sides.state.links_by_local(sides.mapping.resource, ids) if ids else {}
        leaving = {local_id for local_id, link in links.items() if link.state == "leaving"}
        over = [sides.key("push", local_id) for local_id in ids if local_id not in leaving]
        if over:
            await sides.state.commit(Commit(settled=over))

    def _report(self) -> None:
        self._tally.seconds = self._sides.clock.monotonic() - self._started
        self._tally.api_calls = self._sides.client.calls - self._calls
        self._told(self._tally)

    async def _send(
        self, records: Sequence[Record], position: Mapping[str, Any] | None, waiting: frozenset[str]
    ) -> None:
        """Send a page of records, and save how far that is."""
        sides, tally = self._sides, self._tally
        # An open call comes first: it may be carried out yet, and what is written besides would be made twice
        # or overwritten. Its failure is kept, so its record is pushed again by itself.
        records = [record for record in records if str(record["id"]) not in waiting]
        tally.read += len(records)
        await self._notice_conflicts(records)
        page = await self.look(records)
        for failure in page.failures:
            tally.add_failure(failure)
        calls: list[Call] = []
        for group in sides.client.plan(sides.mapping.resource, page.writes):
            items = tuple(page.items[write.local_id] for write in group.writes)
            now = sides.clock.now()
            calls.append((PendingWrite(group.key, *sides.here, items, announced_at=now), group))
        for chunk in chunks(sides.resource, calls):
            sides.check_stop()
            await sides.state.announce([write for write, _ in chunk])
            await self._announcer.send(chunk)
            self._report()
        await sides.state.commit(
            Commit(
                links=page.moved,
                failures=page.failures,
                settled=[sides.key("push", local_id) for local_id in page.fine],
                position=(*sides.here, "push", position) if position is not None else None,
            )
        )
        self._report()

    async def _notice_conflicts(self, records: Sequence[Record]) -> None:
        """Let fields that a person decides about wait where somebody changed them there since the last pull:
        a push would overwrite what nobody here has seen.
        """
        sides, mapping = self._sides, self._sides.mapping
        names = mapping.manual_fields
        if not names or not sides.askable:
            return
        ours = {str(record["id"]): record for record in records}
        links = await sides.state.links_by_local(mapping.resource, list(ours))
        changed = {
            link.remote_id: link
            for link in links.values()
            if link.state == "linked" and self._has_changed(ours[link.local_id], link, names)
        }
        for ids in batched(list(changed), ASKED_FOR):
            found, _ = await sides.look_up(ids)
            scope = sides.scope(await sides.local_ids_of_links(found.values()))
            opened: list[Link] = []
            conflicts: list[FieldConflict] = []
            for remote_id, row in found.items():
                link = changed[remote_id]
                fresh, their = self._contested(ours[link.local_id], link, row, scope)
                if fresh:
                    open_ = sorted((*link.agreed.get("open", ()), *fresh))
                    opened.append(replace(link, agreed={**link.agreed, "open": open_}))
                    conflicts += sides.conflicts(fresh, link, ours[link.local_id], their, row.changed_at)
            for each in conflicts:
                self._tally.conflicts += 1
                self._tally.add_contested(each.field, "open")
            if opened:
                await sides.state.commit(Commit(links=opened, conflicts=conflicts))

    def _has_changed(self, ours: Record, link: Link, names: Sequence[str]) -> bool:
        """Say whether one of these fields isn't what was agreed, and isn't open either."""
        agreed, open_ = link.agreed.get("ours") or {}, link.agreed.get("open", ())
        now = plain({name: ours.get(name) for name in names if name not in open_})
        return any(not same(agreed.get(name), value, self._kind(name)) for name, value in now.items())

    def _kind(self, name: str) -> str:
        declared = self._fields.get(name)
        return declared.type if declared else "any"

    def _contested(
        self, ours: Record, link: Link, row: ReadRecord, scope: MappingScope
    ) -> tuple[list[str], Mapping[str, Any]]:
        """Return the fields of a pair that both sides changed and a person decides about, with theirs."""
        mapping, open_ = self._sides.mapping, link.agreed.get("open", ())
        try:
            pulled = {} if row.deleted else mapping.pull(row.record, scope)
        except HubError:
            return [], {}
        theirs = {
            name: pulled[name] for name in mapping.manual_fields if name in pulled and name not in open_
        }
        made = resolve(
            ours, theirs, link.agreed, rule=mapping.conflict_rule, theirs_newer=False, fields=self._fields
        )
        return [name for name in made.open if name in theirs], theirs

    async def look(
        self, records: Sequence[Record], made: Mapping[tuple[str, str], str] = MappingProxyType({})
    ) -> Looked:
        """Say what has to be done for records, and do nothing of it. `made` are remote ids, by resource and
        local id, of records that are going to be there by then.
        """
        sides = self._sides
        ids = [str(record["id"]) for record in records]
        links = await sides.state.links_by_local(sides.mapping.resource, ids)
        scope = sides.scope({**made, **await sides.remote_ids_of_links(records)})
        page = Looked(links)
        for record in records:
            self._look_at(record, links.get(str(record["id"])), scope, page)
        await self._fill_open(page)
        taken = await self._taken(page.writes)
        page.writes = [write for write in page.writes if write.local_id not in taken]
        page.failures.extend(sides.failure("push", *each, retryable=True) for each in taken.items())
        return page

    def _look_at(self, record: Record, link: Link | None, scope: MappingScope, page: Looked) -> None:
        """Say what has to be done for a record: nothing, a write, or to note why not."""
        sides, mapping, tally = self._sides, self._sides.mapping, self._tally
        local_id = str(record["id"])
        try:
            deleted = mapping.is_deleted(record, scope)
            if deleted or not mapping.wants(record, scope):
                tally.skipped += 1
                page.passed[local_id] = "deleted" if deleted else "unwanted"
                if link and self._gone.leaves(link, record):
                    page.moved.append(to_leave(link))
                if link is None or link.state != "leaving":  # whose failures are those of putting theirs away
                    page.fine.append(local_id)
                return
            if link and link.state == "broken":
                tally.skipped += 1  # theirs was deleted; it isn't for a push to make it again
                page.passed[local_id] = "broken"
                return
            waiting = sides.open_fields(link)
            body, cut = sides.body(record, scope, waiting)
        except HubError as error:
            page.failures.append(sides.failure("push", local_id, error, getattr(error, "field", None)))
            return
        print_ = fingerprint(body)
        retire = link.agreed.get("retire", ()) if link else ()
        if link and link.fingerprint == print_ and not retire:
            tally.unchanged += 1
            page.passed[local_id] = "unchanged"
            page.fine.append(local_id)
            if link.state != "linked":
                page.moved.append(to_stay(link))
            return
        tally.add_cut(cut)
        remote_id, key = link.remote_id if link else None, sides.write_key(local_id, print_, link)
        agreed = {
            **sides.agreed(record, {}, open_=waiting, before=link.agreed if link else None),
            "key": key,
        }
        agreed |= {name: link.agreed[name] for name in ("retire", "version") if link and name in link.agreed}
        page.items[local_id] = PendingItem(local_id, remote_id, body, print_, agreed)
        version = agreed.get("version")
        only_existing = sides.keeps_to_existing and remote_id is not None
        page.writes.append(
            Write(
                local_id,
                remote_id,
                body,
                key,
                version=version,
                only_existing=only_existing,
                retire=tuple(retire),
            )
        )

    async def _fill_open(self, page: Looked) -> None:
        """Put what is there in the places of open fields that a write can't leave out: an update may replace
        the object around one, or make the record anew.
        """
        sides, resource = self._sides, self._sides.resource
        if resource.updates == "whole" or not sides.askable:
            return  # ours is laid over what is there anyway, or nobody can be asked
        renews = bool(resource.immutable) or resource.own_id is not None
        places = {write.remote_id: self._open_places(write, page, renews) for write in page.writes}
        found, _ = await sides.look_up([each for each in places if each and places[each]])
        for number, write in enumerate(page.writes):
            row = found.get(write.remote_id or "")
            if row is None:
                continue
            body = deepcopy(dict(write.body))
            for path in places[write.remote_id]:
                if (value := path.find(row.record)) is not ABSENT:
                    path.put(body, value)
            page.writes[number] = replace(write, body=body)
            page.items[write.local_id] = replace(page.items[write.local_id], body=body)

    def _open_places(self, write: Write, page: Looked, renews: bool) -> list[Path]:
        sides = self._sides
        return [
            path
            for name in sides.open_fields(page.links.get(write.local_id))
            for path in sides.mapping.places[name]
            if renews or (len(path.steps) > 1 and path.steps[0] in write.body)
        ]

    async def _taken(self, writes: Sequence[Write]) -> dict[str, HubError]:
        """Return what is wrong with writes, by local id, that would overwrite what another record of the
        platform is over there: where an id follows from the content, two can come to the same one.
        """
        sides, resource = self._sides, self._sides.resource
        if resource.own_id is None:
            return {}
        ids = {write.local_id: own for write in writes if (own := own_id(resource, write.body)) is not None}
        links = await sides.state.links_by_remote(resource.name, list(set(ids.values()))) if ids else {}
        others = {link.local_id for link in links.values()} - ids.keys()
        there = {*ids, *(await sides.host.fetch(sides.mapping.entity, list(others)) if others else {})}
        owners = {
            remote_id: link.local_id
            for remote_id, link in links.items()
            if link.state == "linked" and link.local_id in there
        }
        return {
            local_id: RecordRejectedError(
                f"{sides.mapping.entity} `{owner}` is this {resource.name} already, and would be overwritten"
            )
            for local_id, remote_id in ids.items()
            if (owner := owners.setdefault(remote_id, local_id)) != local_id
        }
