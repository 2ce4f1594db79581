"""Bring the platform in step with the provider: page by page, each saved whole before the next counts.

The way of a page: its links are looked up, its records are mapped, those that are as agreed are done, the
others are merged with ours, the platform is written, and links and position are saved together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from engine.client import ReadRecord
from engine.errors import HubError, MappingError, StaleCursorError
from engine.fields import FieldCatalog
from engine.gone import Gone, Seen, is_parted, to_leave, told_gone
from engine.linking import followed, match
from engine.mapping import MappingScope
from engine.ports import Commit, ConflictEnd, FieldConflict, HostChange, Link, Record, RecordFailure
from engine.reconcile import Resolution, local_id_for, moment, plain, plain_value, resolve, same
from engine.sides import ASKED_FOR, Period, Sides, batched
from engine.tally import Tally

_OF_WRITES = frozenset(("key", "retire", "due"))  # what the next write has to know of the last one
MOST_GONE = 10_000  # deleted records that a walk through a feed remembers


@dataclass(slots=True)
class _Page:
    """What a page of theirs changes in our books."""

    links: list[Link] = field(default_factory=list)
    unlinked: list[Link] = field(default_factory=list)
    failures: list[RecordFailure] = field(default_factory=list)
    conflicts: list[FieldConflict] = field(default_factory=list)
    conflicts_over: list[ConflictEnd] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Merged:
    """A record of theirs laid over ours: the link they have then, and what ours is then."""

    row: ReadRecord
    link: Link
    record: Record
    ours_win: bool = False
    our: Record | None = None  # as it was before
    before: Link | None = None
    change: HostChange | None = None  # what is to be written here
    conflicts: Sequence[FieldConflict] = ()  # what waits for a person
    conflicts_over: Sequence[ConflictEnd] = ()


class Pull:
    """One pull of one mapping, counted in `tally`."""

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
        self._gone = gone
        self._tally = tally
        self._fields = fields
        self._report = report
        self._complete = complete
        self._period = period

    async def changed(self) -> None:
        """Take over what changed since the last finished pull."""
        sides = self._sides
        if self._period is not None:
            try:
                await self._changed_within(self._period)
            except StaleCursorError:
                await self._changed_within(self._period)
            return
        await self._look_again()
        position = dict(await sides.state.position(*sides.here, "pull") or {})
        if self._complete and sides.mapping.pushes:  # else a lost link would change nothing on either side
            position = {}
        try:
            seen = await self._walk(position)
        except StaleCursorError:
            position.pop("walk", None)  # the cursor died; the watermark is still good
            seen = await self._walk(position)
        if seen is not None:
            await self._gone.compare_theirs(seen)
        await self._gone.settle(self._gone.settle_theirs, self._tally)

    async def _changed_within(self, period: Period) -> None:
        """Take over what changed within a period. What was read is no proof of what is gone."""
        sides, tally = self._sides, self._tally
        started, calls = sides.clock.monotonic(), sides.client.calls
        newest: dict[str, str | None] = {}
        gone: dict[str, str | None] = {}
        later: set[str] = set()  # of these an older state is no news
        feeds = sides.resource.changes is not None
        async with aclosing(sides.client.pages(sides.mapping.resource, since=period.since)) as pages:
            async for batch in pages:
                later.update(row.id for row in batch.records if period.is_over(row.changed_at))
                rows = _without_gone(batch.records, gone) if feeds else batch.records
                rows = [each for each in _first_of_each(rows, newest) if each.id not in later]
                await self._take([each for each in rows if period.holds(each.changed_at)], None)
                tally.seconds = sides.clock.monotonic() - started
                tally.api_calls = sides.client.calls - calls
                self._report(tally)
                if batch.resume is not None:
                    sides.check_stop()

    async def some(self, ids: Sequence[str], *, told: bool = False) -> None:
        """Take over these records, as far as the provider can be asked for them.

        When the provider has `told` of them, one that it doesn't have is gone, and not just unknown.
        """
        sides, tally = self._sides, self._tally
        if not sides.askable:
            return  # nobody to ask: they come with the next change, or with a complete read
        started, calls = sides.clock.monotonic(), sides.client.calls
        seconds, api_calls = tally.seconds, tally.api_calls
        for some in batched(ids, ASKED_FOR):  # merged and saved together
            sides.check_stop()
            found, refused = await sides.look_up(some)
            failures = [sides.failure("pull", *each) for each in refused.items()]
            gone = [each for each in some if told and each not in found and each not in refused]
            rows = [*found.values(), *(ReadRecord({}, each, None, True, None) for each in gone)]
            await self._take(rows, None, failures, settle=some)
            tally.seconds = seconds + sides.clock.monotonic() - started
            tally.api_calls = api_calls + sides.client.calls - calls
            self._report(tally)
        if told:
            await self._gone.settle(self._gone.settle_theirs, tally)

    async def _look_again(self) -> None:
        """Look at records that wait for a person, where one decided or ours isn't what it was: the provider
        wouldn't tell of them, for theirs didn't change.
        """
        sides, mapping, after = self._sides, self._sides.mapping, ""
        if mapping.direction != "bidirectional":
            return
        while found := await sides.state.open_conflicts(*sides.here, after=after):
            after = found[-1].local_id
            ours = await sides.host.fetch(mapping.entity, list({each.local_id for each in found}))
            over = [_over(each, applied=False) for each in found if each.local_id not in ours]
            if over:  # ours was deleted
                await sides.state.commit(Commit(conflicts_over=over))
            news = [each for each in found if each.local_id in ours and self._is_news(each, ours)]
            await self.some(list(dict.fromkeys(each.remote_id for each in news)))

    def _is_news(self, conflict: FieldConflict, ours: Mapping[str, Record]) -> bool:
        declared = self._fields.get(conflict.field)
        now = plain_value(ours[conflict.local_id].get(conflict.field))
        unlike = not same(now, conflict.ours, declared.type if declared else "any")
        return unlike or conflict.decision is not None or conflict.field not in self._sides.mapping.places

    # ---- pages ------------------------------------------------------------------------------------------

    async def _walk(self, position: dict[str, Any]) -> Seen | None:
        """Pull page by page; returns the ids that were read when those are all the provider has."""
        sides, tally = self._sides, self._tally
        walk: dict[str, Any] = {
            "started": sides.clock.now().isoformat(),
            "resume": None,
            "gone": {},
            **(position.get("walk") or {}),
        }
        feeds = sides.resource.changes is not None
        since = moment(position.get("since"))
        seen, complete = Seen(), False
        # What was seen at the edge of the last page: feeds repeat a record.
        newest: dict[str, str | None] = {}
        started, calls = sides.clock.monotonic(), sides.client.calls
        seconds, api_calls = tally.seconds, tally.api_calls
        reading = sides.client.pages(sides.mapping.resource, since=since, resume=walk["resume"])
        async with aclosing(reading) as pages:  # a page that is fetched ahead ends with it
            async for batch in pages:
                rows = _without_gone(batch.records, walk["gone"]) if feeds else batch.records
                complete = batch.complete
                if complete:
                    seen.add(row.id for row in batch.records)
                walked: Mapping[str, Any] = {"since": walk["started"]}
                if batch.resume is not None:
                    walked = {**position, "walk": {**walk, "resume": batch.resume}}
                await self._take(_first_of_each(rows, newest), walked)
                tally.seconds = seconds + sides.clock.monotonic() - started
                tally.api_calls = api_calls + sides.client.calls - calls
                self._report(tally)
                if batch.resume is not None:
                    sides.check_stop()
        tally.api_calls = api_calls + sides.client.calls - calls
        return seen if complete else None

    async def _take(
        self,
        rows: Sequence[ReadRecord],
        position: Mapping[str, Any] | None,
        failures: Iterable[RecordFailure] = (),
        *,
        settle: Iterable[str] = (),
    ) -> None:
        """Take over a page of records, and save how far that is. What failed of `settle` earlier is over,
        unless it is among the `failures`.
        """
        sides, tally, page = self._sides, self._tally, _Page(failures=list(failures))
        tally.read += len(rows)
        linked = await sides.state.links_by_remote(sides.mapping.resource, [row.id for row in rows])
        known, lasting = await followed(sides, rows, linked)
        rows = [row for row in rows if not _is_older(row, known.get(row.id), tally)]
        seen = {*settle, *(row.id for row in rows)}
        page.links, page.unlinked = told_gone(rows, known)
        kept = [row for row in rows if not (row.deleted or is_parted(known.get(row.id)))]
        tally.skipped += len(rows) - len(kept)

        scope = sides.scope(await sides.local_ids_of_links(kept))
        theirs = self._mapped(kept, scope, page)
        changed: list[ReadRecord] = []
        for row in (row for row in kept if row.id in theirs):
            link = linked.get(row.id)
            settled = link and link.state == "linked" and not link.agreed.get("open")
            if link and settled and link.agreed.get("theirs") == plain(theirs[row.id]):
                tally.unchanged += 1
                page.links.extend(lasting(row, link.local_id))
                latest = {**link.agreed, **sides.version_seen(row.record)}
                moved_at = row.changed_at or link.remote_version
                if moved_at != link.remote_version or latest != link.agreed:
                    page.links.append(replace(link, remote_version=moved_at, agreed=latest))
            else:
                changed.append(row)

        merged = await self._merge(changed, theirs, known, scope, page)
        await self._write(merged, lasting, page)
        for failure in page.failures:
            tally.add_failure(failure)
        failed = {failure.record_id for failure in page.failures}
        await sides.state.commit(
            Commit(
                links=page.links,
                unlinked=page.unlinked,
                failures=page.failures,
                settled=[sides.key("pull", record_id) for record_id in sorted(seen - failed)],
                conflicts=page.conflicts,
                conflicts_over=page.conflicts_over,
                position=(*sides.here, "pull", position) if position is not None else None,
            )
        )

    # ---- the steps of a page ----------------------------------------------------------------------------

    def _mapped(
        self, rows: Sequence[ReadRecord], scope: MappingScope, page: _Page
    ) -> dict[str, dict[str, Any]]:
        """Return the records that are wanted here as ours would be, by their ids."""
        mapping = self._sides.mapping
        theirs: dict[str, dict[str, Any]] = {}
        for row in rows:
            try:
                if mapping.wants_pull(row.record, scope):
                    theirs[row.id] = mapping.pull(row.record, scope)
                else:
                    self._tally.skipped += 1
            except HubError as error:
                page.failures.append(self._failure(row.id, error))
        return theirs

    async def _merge(
        self,
        rows: Sequence[ReadRecord],
        theirs: Mapping[str, dict[str, Any]],
        known: Mapping[str, Link],
        scope: MappingScope,
        page: _Page,
    ) -> list[_Merged]:
        """Lay records over ours, field by field; those without a link are paired, or are new."""
        sides, mapping = self._sides, self._sides.mapping
        matched = await match(sides, [row for row in rows if row.id not in known])
        local_ids = {
            row.id: known[row.id].local_id
            if row.id in known
            else matched.get(row.id)
            or local_id_for(str(sides.venue["id"]), sides.connector.name, mapping.resource, row.id)
            for row in rows
        }
        ours = await sides.host.fetch(mapping.entity, list(local_ids.values())) if rows else {}
        waiting = [local_ids[row.id] for row in rows if row.id in known and known[row.id].agreed.get("open")]
        conflicts = await self._conflicts_of(waiting)
        echoes = await self._echoes([ours[matched[row.id]] for row in rows if matched.get(row.id) in ours])
        returned = mapping.returned_fields
        merged: list[_Merged] = []
        for row in rows:
            local_id, their = local_ids[row.id], theirs[row.id]
            our, link = ours.get(local_id), known.get(row.id)
            leaves = link is not None and self._gone.leaves(link, our)
            if leaves or (our is not None and mapping.is_deleted(our, scope)):
                self._tally.skipped += 1  # what was deleted here doesn't come back with a change of theirs
                page.links += [to_leave(link)] if link is not None and leaves else []
                continue
            change: HostChange | None = HostChange(local_id, their, create=True)
            taken: Mapping[str, Any] = their
            ours_win = due = False
            open_: Sequence[str] = ()
            over: Sequence[ConflictEnd] = ()
            before = link.agreed if link else {}
            if our is not None:
                echo = echoes.get(local_id, {})
                resolution = resolve(
                    our,
                    {name: value for name, value in their.items() if name not in echo or value != echo[name]},
                    before,
                    rule=mapping.conflict_rule,
                    theirs_newer=_theirs_newer(row.changed_at, our.get("changed_at")),
                    fields=self._fields,
                    known=conflicts.get(local_id),
                    unsaid=[name for name in returned if name not in their],
                )
                self._count(resolution, before)
                open_ = [name for name in resolution.open if name in mapping.places]
                over = self._ended(local_id, before, resolution)
                taken, ours_win = resolution.take, resolution.ours_win
                # A push would pass over what was changed before the last one, and stayed open then.
                due = ours_win and bool(before.get("open") or resolution.applied)
                change = HostChange(local_id, taken) if taken else None
            # What an earlier pull found to be written, and no push has yet, is still to be written.
            ours_win = ours_win or (mapping.pushes and link is not None and link.fingerprint is None)
            record = {**(our or {"id": local_id}), **taken}
            written = {name: link.agreed[name] for name in _OF_WRITES & link.agreed.keys()} if link else {}
            new = Link(
                entity=mapping.entity,
                resource=mapping.resource,
                local_id=local_id,
                remote_id=row.id,
                agreed=sides.agreed(record, their, open_=open_, before=before)
                | written
                | ({"due": True} if due else {})
                | sides.version_seen(row.record),
                remote_version=row.changed_at or (link.remote_version if link else None),
                last_direction="pull",
            )
            told = [name for name in open_ if name in their]
            found = sides.conflicts(told, replace(new, agreed=before), our or {}, their, row.changed_at)
            merged.append(_Merged(row, new, record, ours_win, our, link, change, found, over))
        return merged

    async def _conflicts_of(self, local_ids: Sequence[str]) -> dict[str, dict[str, FieldConflict]]:
        """Return what is known of records that wait for a person, by local id and field."""
        made: dict[str, dict[str, FieldConflict]] = {}
        resource = self._sides.mapping.resource
        for each in await self._sides.state.conflicts_of(resource, local_ids) if local_ids else ():
            made.setdefault(each.local_id, {})[each.field] = each
        return made

    def _count(self, resolution: Resolution, before: Mapping[str, Any]) -> None:
        """Count what became of fields that both sides had changed; one that was open already isn't news."""
        known = before.get("open", ())
        self._tally.conflicts += sum(name not in known for name in resolution.conflicts)
        for name, outcome in resolution.outcomes.items():
            if outcome != "open" or name not in known:
                self._tally.add_contested(name, outcome)

    def _ended(self, local_id: str, before: Mapping[str, Any], resolution: Resolution) -> list[ConflictEnd]:
        """Return the conflicts of a record that are over."""
        mapping = self._sides.mapping
        gone = [name for name in before.get("open", ()) if name not in mapping.places]
        ended = {**dict.fromkeys((*resolution.over, *gone), False), **dict.fromkeys(resolution.applied, True)}
        return [ConflictEnd(mapping.resource, local_id, name, done) for name, done in ended.items()]

    async def _write(
        self, merged: Sequence[_Merged], lasting: Callable[[ReadRecord, str], list[Link]], page: _Page
    ) -> None:
        """Write the platform's records, and note the links they have then."""
        sides, tally = self._sides, self._tally
        changes = [each.change for each in merged if each.change is not None]
        refused = (
            await sides.host.upsert(sides.mapping.entity, changes, sides.state.confirm) if changes else {}
        )
        written = {change.local_id: change for change in changes}
        pairs = {each.link.local_id: each for each in merged}
        if sides.mapping.pushes:  # what a new record looks like to a push, the platform's defaults included
            new_ids = [each.local_id for each in changes if each.create and each.local_id not in refused]
            made = await sides.host.fetch(sides.mapping.entity, new_ids) if new_ids else {}
            for local_id, record in made.items():
                pairs[local_id] = replace(pairs[local_id], record=record)
        scope = sides.scope(await sides.remote_ids_of_links([each.record for each in pairs.values()]))
        for local_id, each in pairs.items():
            if local_id in refused:
                page.failures.append(self._failure(each.row.id, MappingError(refused[local_id])))
                continue
            page.conflicts.extend(each.conflicts)
            page.conflicts_over.extend(each.conflicts_over)
            # Where ours won, or has what no pull compares, theirs has to be written.
            open_ = sides.open_fields(each.link)
            sends = each.ours_win or self._has_more(each, scope)
            print_ = None if sends else sides.push_fingerprint(each.record, scope, open_)
            page.links.append(replace(each.link, fingerprint=print_))
            page.links.extend(lasting(each.row, local_id))
            change = written.get(local_id)
            if change is None:
                tally.unchanged += 1
            elif change.create:
                tally.created += 1
            else:
                tally.updated += 1

    def _has_more(self, each: _Merged, scope: MappingScope) -> bool:
        """Say whether ours has something to send besides what was merged."""
        if each.our is None or not self._sides.mapping.pushes:
            return False
        if each.before is None:
            return self._sides.lacks(each.row.record, each.record, scope)
        return self._sides.changed_besides(each.our, each.before, scope)

    async def _echoes(self, records: Sequence[Record]) -> dict[str, Mapping[str, Any]]:
        """Return, by id, what would come back of records if they were pushed as they are.

        Of a pair just matched, a value that is the other's own echo is no difference: pulling what a mapping
        makes of `Cher` without a first name must not invent one.
        """
        sides = self._sides
        if not records or not sides.mapping.pushes:
            return {}
        scope = sides.scope(await sides.remote_ids_of_links(records))
        echoes: dict[str, Mapping[str, Any]] = {}
        for record in records:
            try:
                body, _ = sides.body(record, scope)
                echoes[str(record["id"])] = sides.mapping.pull(body, sides.scope({}))
            except HubError:
                continue  # it can't be pushed as it is, so nothing there is its echo
        return echoes

    def _failure(self, record_id: str, error: HubError) -> RecordFailure:
        """Return a failure to try again: what was missing on this side may be here by then, and as long as
        the record itself stays as it is no later pull brings it.
        """
        return self._sides.failure("pull", record_id, error, getattr(error, "field", None), retryable=True)


def _over(conflict: FieldConflict, *, applied: bool) -> ConflictEnd:
    return ConflictEnd(conflict.resource, conflict.local_id, conflict.field, applied)


def _first_of_each(rows: Sequence[ReadRecord], newest: dict[str, str | None]) -> list[ReadRecord]:
    """Keep the first row of each id, on a page and over its edge.

    A feed reports one record many times, newest first. Later, older rows are also caught by the link's
    version; only rows of the very same moment need to be remembered, so `newest` stays small.
    """
    kept = []
    for row in rows:
        if row.id in newest and not _theirs_newer(row.changed_at, newest[row.id]):
            continue
        newest[row.id] = row.changed_at
        kept.append(row)
    if rows:
        edge = rows[-1].changed_at
        for known_id in [known_id for known_id, at in newest.items() if at != edge or at is None]:
            del newest[known_id]
    return kept


def _without_gone(rows: Sequence[ReadRecord], gone: dict[str, str | None]) -> list[ReadRecord]:
    """Leave out what a feed, newest first, still tells of records it has told are deleted; add to `gone`.

    Nothing else would know them: their links are gone, so an older state would make them new records.
    """
    kept = [row for row in rows if row.id not in gone or _theirs_newer(row.changed_at, gone[row.id])]
    gone.update((row.id, row.changed_at) for row in kept if row.deleted)
    for record_id in list(gone)[: max(0, len(gone) - MOST_GONE)]:
        del gone[record_id]
    return kept


def _is_older(row: ReadRecord, link: Link | None, tally: Tally) -> bool:
    """Say whether the platform has already seen a newer state of this record."""
    if link is None or row.changed_at is None or link.remote_version is None:
        return False
    seen, now = moment(link.remote_version), moment(row.changed_at)
    older = bool(seen and now and now < seen)
    tally.unchanged += older
    return older


def _theirs_newer(theirs: str | None, ours: str | None) -> bool:
    their_moment, our_moment = moment(theirs), moment(ours)
    return bool(their_moment and our_moment and their_moment > our_moment)
