"""One run of one mapping: pull what changed at the provider, push what changed on the platform.

Both go page by page, and each page is saved whole before the next counts: a crash repeats at most a page, and
repeating it changes nothing. A push announces its calls before it makes them, so that after a crash they are
repeated word for word under the same idempotency keys. What happens to one record is that record's alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from engine.batching import job_spec
from engine.bodies import fitted, limited_fields, own_id
from engine.client import Books, ProviderClient, ReadRecord, Write, WriteGroup, WriteResult
from engine.errors import (
    AuthenticationError,
    ExpressionError,
    HubError,
    MappingError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    StaleCursorError,
    StoppedError,
)
from engine.expressions import Path
from engine.fields import FieldCatalog
from engine.gone import Gone, Parted, Seen, is_parted, told_gone
from engine.manifest import Connector, Resource
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.ports import (
    Clock,
    Commit,
    Direction,
    HostChange,
    HostStore,
    Link,
    PendingItem,
    PendingWrite,
    Record,
    RecordFailure,
    RecordKey,
    SyncState,
)
from engine.reconcile import fingerprint, local_id_for, moment, plain, resolve

T = TypeVar("T")
Call = tuple[PendingWrite, WriteGroup]  # as announced, and as sent

MAX_ATTEMPTS = 5  # of one announced write, over runs, before it is left to its failure
LOOK_BACK = timedelta(hours=25)  # for records made by calls whose answers were lost
CHUNK = 50  # calls announced, made and saved together
KEPT_FAILURES = 100  # in a tally; all of them are saved
MOST_GONE = 10_000  # deleted records that a walk through a feed remembers


@dataclass(slots=True)
class Tally:
    """What happened so far, in records; `seconds` and `api_calls` are this mapping's alone."""

    entity: str
    resource: str
    direction: Direction
    read: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    conflicts: int = 0
    archived: int = 0
    deleted: int = 0  # at the provider: by us on a push, by somebody else on a pull
    held: int = 0  # records that would have been archived, deleted or unlinked, had they not been too many
    note: str = ""  # what a person has to know, such as why records are held
    api_calls: int = 0
    seconds: float = 0.0
    failures: list[RecordFailure] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)  # how many values were cut to their field's length

    def add_cut(self, fields: Iterable[str]) -> None:
        """Count values that were cut to their field's length, and say so."""
        for name in fields:
            self.cut[name] = self.cut.get(name, 0) + 1
            told = (f"`{name}` was cut to its length in {number}" for name, number in self.cut.items())
            self.note = f"{', '.join(told)} of the records sent"

    def add_failure(self, failure: RecordFailure) -> None:
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(failure)


class Sync:
    """Runs one mapping of one venue. `stop` is asked between pages; `on_progress` is told after each.

    A `complete` run also looks for what is gone without a word: it compares every link with the platform, and
    reads all of the provider's records. `approved` says that a person wants all the gone to go, however many.
    """

    def __init__(
        self,
        connector: Connector,
        mapping: FieldMapping,
        client: ProviderClient,
        host: HostStore,
        state: SyncState,
        *,
        venue: Record,
        clock: Clock,
        fields: FieldCatalog,
        stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Tally], None] = lambda tally: None,
        complete: bool = False,
        approved: bool = False,
    ) -> None:
        self.connector = connector
        self.mapping = mapping
        self.client = client
        self.host = host
        self.state = state
        self.venue = venue
        self.clock = clock
        self.fields = fields
        self.stop = stop
        self.on_progress = on_progress
        self.complete = complete
        self.approved = approved
        self._limited = limited_fields(connector.resources[mapping.resource].fields)
        self._fruitless = 0  # chunks of calls in a row of which nothing got through

    # ---- pull -------------------------------------------------------------------------------------------

    async def pull(self, ids: Sequence[str] | None = None) -> Tally:
        """Bring the platform in step with what changed at the provider since the last finished pull; with
        `ids`, with these records only, as far as the provider can be asked for them.

        Raises ProviderError for what stops the run, StoppedError, LeaseLostError.
        """
        tally = self._tally("pull")
        if ids is not None:
            await self._pull_some(tally, ids)
            return tally
        position = dict(await self.state.position(*self._here, "pull") or {})
        if self.complete and self.mapping.pushes:  # else a lost link would change nothing on either side
            position = {}
        try:
            seen = await self._walk(tally, position)
        except StaleCursorError:
            position.pop("walk", None)  # the cursor died; the watermark is still good
            seen = await self._walk(tally, position)
        gone = self._gone()
        if seen is not None:
            await gone.compare_theirs(seen)
        await self._settle(gone.settle_theirs, tally)
        return tally

    async def _walk(self, tally: Tally, position: dict[str, Any]) -> Seen | None:
        """Pull page by page; returns the ids that were read when those are all the provider has."""
        walk: dict[str, Any] = {
            "started": self.clock.now().isoformat(),
            "resume": None,
            "gone": {},
            **(position.get("walk") or {}),
        }
        feeds = self.connector.resources[self.mapping.resource].changes is not None
        since = moment(position.get("since"))
        seen, complete = Seen(), False
        newest: dict[
            str, str | None
        ] = {}  # what was seen at the edge of the last page: feeds repeat a record
        started, calls = self.clock.monotonic(), self.client.calls
        seconds, api_calls = tally.seconds, tally.api_calls
        reading = self.client.pages(self.mapping.resource, since=since, resume=walk["resume"])
        async with aclosing(reading) as pages:  # a page that is fetched ahead ends with it
            async for batch in pages:
                rows = _without_gone(batch.records, walk["gone"]) if feeds else batch.records
                complete = batch.complete
                if complete:
                    seen.add(row.id for row in batch.records)
                walked: Mapping[str, Any] = {"since": walk["started"]}
                if batch.resume is not None:
                    walked = {**position, "walk": {**walk, "resume": batch.resume}}
                await self._pull_page(tally, _first_of_each(rows, newest), walked)
                tally.seconds = seconds + self.clock.monotonic() - started
                tally.api_calls = api_calls + self.client.calls - calls
                self.on_progress(tally)
                if batch.resume is not None:
                    self._check_stop()
        tally.api_calls = api_calls + self.client.calls - calls
        return seen if complete else None

    async def _pull_some(self, tally: Tally, ids: Sequence[str]) -> None:
        resource = self.connector.resources[self.mapping.resource]
        if resource.get is None and resource.get_many is None:
            return  # nobody to ask: they come with the next change, or with a complete read
        started, calls = self.clock.monotonic(), self.client.calls
        for some in batched(ids, CHUNK):
            self._check_stop()
            found, failures = await self._look_up(resource.name, some)
            await self._pull_page(tally, list(found.values()), None, failures, settle=some)
            tally.seconds = self.clock.monotonic() - started
            tally.api_calls = self.client.calls - calls
            self.on_progress(tally)

    async def _look_up(
        self, resource: str, ids: Sequence[str]
    ) -> tuple[dict[str, ReadRecord], list[RecordFailure]]:
        """Return what there is of these records; an id that the provider doesn't take fails alone."""
        try:
            return await self.client.look_up(resource, ids), []
        except ProviderError as error:
            if error.retryable or isinstance(error, AuthenticationError):
                raise
            if len(ids) == 1:
                return {}, [self._failure("pull", ids[0], error)]
        found: dict[str, ReadRecord] = {}
        failures: list[RecordFailure] = []
        for each in ids:
            one, failed = await self._look_up(resource, [each])
            found.update(one)
            failures.extend(failed)
        return found, failures

    async def _pull_page(
        self,
        tally: Tally,
        rows: Sequence[ReadRecord],
        position: Mapping[str, Any] | None,
        failures: Iterable[RecordFailure] = (),
        *,
        settle: Iterable[str] = (),
    ) -> None:
        """Take over a page of records, and save how far that is. What failed of `settle` earlier is over,
        unless it is among the `failures`.
        """
        mapping, resource = self.mapping, self.mapping.resource
        failures = list(failures)
        tally.read += len(rows)
        linked = await self.state.links_by_remote(resource, [row.id for row in rows])
        known, lasting = await self._followed(rows, linked)
        rows = [row for row in rows if not _is_older(row, known.get(row.id), tally)]
        seen = {*settle, *(row.id for row in rows)}
        links, unlinked = told_gone(rows, known)
        kept = [row for row in rows if not (row.deleted or is_parted(known.get(row.id)))]
        tally.skipped += len(rows) - len(kept)
        rows = kept

        scope = self._scope(await self._local_ids_of_links(rows))
        theirs: dict[str, dict[str, Any]] = {}
        for row in rows:
            try:
                if mapping.wants_pull(row.record, scope):
                    theirs[row.id] = mapping.pull(row.record, scope)
                else:
                    tally.skipped += 1
            except HubError as error:
                failures.append(self._pull_failure(row.id, error))
        rows = [row for row in rows if row.id in theirs]

        changed: list[ReadRecord] = []
        for row in rows:
            link = linked.get(row.id)
            if link and link.state == "linked" and link.agreed.get("theirs") == plain(theirs[row.id]):
                tally.unchanged += 1
                links.extend(lasting(row, link.local_id))
                if row.changed_at and row.changed_at != link.remote_version:
                    links.append(replace(link, remote_version=row.changed_at))
            else:
                changed.append(row)

        matched = await self._match([row for row in changed if row.id not in known])
        local_ids = {
            row.id: known[row.id].local_id
            if row.id in known
            else matched.get(row.id)
            or local_id_for(str(self.venue["id"]), self.connector.name, resource, row.id)
            for row in changed
        }
        ours = await self.host.fetch(mapping.entity, list(local_ids.values())) if changed else {}

        gone = self._gone()
        changes: list[HostChange] = []
        merged: dict[str, tuple[Link, Record, bool]] = {}
        echoes = await self._echoes([ours[matched[row.id]] for row in changed if matched.get(row.id) in ours])
        for row in changed:
            local_id, their = local_ids[row.id], theirs[row.id]
            our, link = ours.get(local_id), known.get(row.id)
            taken: Mapping[str, Any] = their
            ours_win = False
            leaves = link is not None and gone.leaves(link, our)
            if leaves or (our is not None and mapping.is_deleted(our, scope)):
                tally.skipped += 1  # what was deleted here doesn't come back with a change of theirs
                links += [replace(link, state="leaving")] if link is not None and leaves else []
                continue
            if our is None:
                changes.append(HostChange(local_id, their, create=True))
            else:
                echo = echoes.get(local_id, {})
                resolution = resolve(
                    our,
                    {name: value for name, value in their.items() if name not in echo or value != echo[name]},
                    link.agreed if link else {},
                    rule="provider_wins" if mapping.direction == "pull" else mapping.when_both_changed,
                    theirs_newer=_theirs_newer(row.changed_at, our.get("changed_at")),
                    fields=self.fields,
                )
                tally.conflicts += len(resolution.conflicts)
                taken, ours_win = resolution.take, resolution.ours_win
                if taken:
                    changes.append(HostChange(local_id, taken))
            agreed = {**(our or {"id": local_id}), **taken}
            new = Link(
                entity=mapping.entity,
                resource=resource,
                local_id=local_id,
                remote_id=row.id,
                agreed=self._agreed(agreed, their)
                | ({"key": link.agreed["key"]} if link and "key" in link.agreed else {}),
                remote_version=row.changed_at,
                last_direction="pull",
            )
            merged[local_id] = (new, agreed, ours_win)

        refused = await self.host.upsert(mapping.entity, changes) if changes else {}
        by_id = {row.id: row for row in changed}
        written = {change.local_id: change for change in changes}
        if mapping.pushes:  # what a new record looks like to a push, the platform's own defaults included
            new_ids = [
                change.local_id for change in changes if change.create and change.local_id not in refused
            ]
            made = await self.host.fetch(mapping.entity, new_ids) if new_ids else {}
            for local_id, record in made.items():
                merged[local_id] = (merged[local_id][0], record, merged[local_id][2])
        push_scope = self._scope(
            await self._remote_ids_of_links([record for _, record, _ in merged.values()])
        )
        for local_id, (link, record, ours_win) in merged.items():
            if local_id in refused:
                failures.append(self._pull_failure(link.remote_id, MappingError(refused[local_id])))
                continue
            links.append(
                replace(link, fingerprint=None if ours_win else self._push_fingerprint(record, push_scope))
            )
            links.extend(lasting(by_id[link.remote_id], local_id))
            change = written.get(local_id)
            if change is None:
                tally.unchanged += 1
            elif change.create:
                tally.created += 1
            else:
                tally.updated += 1
        for failure in failures:
            tally.add_failure(failure)
        failed = {failure.record_id for failure in failures}
        await self.state.commit(
            Commit(
                links=links,
                unlinked=unlinked,
                failures=failures,
                settled=[self._key("pull", record_id) for record_id in sorted(seen - failed)],
                position=(*self._here, "pull", position) if position is not None else None,
            )
        )

    async def _followed(
        self, rows: Sequence[ReadRecord], known: Mapping[str, Link]
    ) -> tuple[dict[str, Link], Callable[[ReadRecord, str], list[Link]]]:
        """Return the links of rows, those included whose id has changed since, and what gives the link to
        save for an id that stays: it is one of its own, as if that id were another resource's.
        """
        followed = dict(known)
        path = self.connector.resources[self.mapping.resource].lasting_id
        if path is None or not rows:
            return followed, lambda row, local_id: []
        name = self._lasting
        ids = {row.id: str(found) for row in rows if (found := path.find(row.record))}
        saved = await self.state.links_by_remote(name, list(ids.values()))
        moved = {
            row.id: saved[ids[row.id]].local_id
            for row in rows
            if row.id not in known and not row.deleted and ids.get(row.id) in saved
        }
        links = await self.state.links_by_local(self.mapping.resource, list(moved.values())) if moved else {}
        here = {row.id for row in rows}
        for row_id, local_id in moved.items():
            # An id that is still somebody's here is no old one.
            if local_id in links and links[local_id].remote_id not in here:
                followed[row_id] = replace(links[local_id], remote_id=row_id)

        def lasting(row: ReadRecord, local_id: str) -> list[Link]:
            found = ids.get(row.id)
            if found is None or (found in saved and saved[found].local_id == local_id):
                return []
            return [Link(self.mapping.entity, name, local_id, found, last_direction="pull")]

        return followed, lasting

    @property
    def _lasting(self) -> str:
        return f"{self.mapping.resource}.lasting_id"

    def _pull_failure(self, record_id: str, error: HubError) -> RecordFailure:
        """Return a failure to try again: what was missing on this side may be here by then, and as long as
        the record itself stays as it is no later pull brings it.
        """
        return self._failure("pull", record_id, error, getattr(error, "field", None), retryable=True)

    async def _echoes(self, records: Sequence[Record]) -> dict[str, Mapping[str, Any]]:
        """Return, by id, what would come back of records if they were pushed as they are.

        Of a pair just matched, a value that is the other's own echo is no difference: pulling what a mapping
        makes of `Cher` without a first name must not invent one.
        """
        if not records or not self.mapping.pushes:
            return {}
        scope = self._scope(await self._remote_ids_of_links(records))
        echoes: dict[str, Mapping[str, Any]] = {}
        for record in records:
            try:
                body, _ = self._body(record, scope)
                echoes[str(record["id"])] = self.mapping.pull(body, self._scope({}))
            except HubError:
                continue  # it can't be pushed as it is, so nothing there is its echo
        return echoes

    async def _match(self, rows: Sequence[ReadRecord]) -> dict[str, str]:
        """Pair unlinked records with the platform's, only where it is beyond doubt: by our own id in theirs,
        or by `match_on` for those that existed on both sides before the first sync.
        """
        mapping = self.mapping
        known = await self._match_by_reference(rows)
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
        found = await self.host.find(mapping.entity, mapping.match_on, list(claims))
        single = {value: ids[0] for value, ids in found.items() if len(ids) == 1 and claims.get(value) == 1}
        taken = await self.state.links_by_local(mapping.resource, list(single.values()))
        return known | {
            remote_id: single[value]
            for remote_id, value in values.items()
            if value in single and single[value] not in taken and single[value] not in known.values()
        }

    async def _match_by_reference(self, rows: Sequence[ReadRecord]) -> dict[str, str]:
        path = self.connector.resources[self.mapping.resource].reference
        if path is None or not rows:
            return {}
        found = ((row.id, path.find(row.record)) for row in rows)
        references = {row_id: value for row_id, value in found if isinstance(value, str) and value}
        ours = await self.host.fetch(self.mapping.entity, list(references.values())) if references else {}
        taken = await self.state.links_by_local(self.mapping.resource, list(ours)) if ours else {}
        matched: dict[str, str] = {}
        for row_id, local_id in references.items():
            if local_id in ours and local_id not in taken and local_id not in matched.values():
                matched[row_id] = local_id
        return matched

    # ---- push -------------------------------------------------------------------------------------------

    async def push(self, ids: Sequence[str] | None = None) -> Tally:
        """Bring the provider in step with what changed on the platform; with `ids`, these records only.

        An unchanged record costs no call. Raises ProviderError for what stops the run, StoppedError,
        LeaseLostError.
        """
        tally = self._tally("push")
        started, calls = self.clock.monotonic(), self.client.calls

        def report() -> None:
            tally.seconds = self.clock.monotonic() - started
            tally.api_calls = self.client.calls - calls
            self.on_progress(tally)

        waiting = await self._repeat_unanswered(tally, report, jobs=ids is None)
        if ids is not None:
            records = await self.host.fetch(self.mapping.entity, ids)
            await self._push_page(tally, list(records.values()), None, report, waiting)
            return tally
        since = await self.state.position(*self._here, "push")
        async for page in self.host.changed(self.mapping.entity, since):
            self._check_stop()
            await self._push_page(tally, page.records, page.position, report, waiting)
        gone = self._gone()
        if self.complete:
            await gone.compare_ours()
        try:
            await self._settle(gone.settle_ours, tally)
        finally:
            report()
        return tally

    async def _repeat_unanswered(
        self, tally: Tally, report: Callable[[], None], *, jobs: bool
    ) -> frozenset[str]:
        """Repeat the calls announced by earlier runs; returns the local ids of those still open.

        Without `jobs`, those that were handed in stay open: a few records don't wait for hours.
        """
        open_ = await self.state.announced(*self._here)
        announced = await self._adopt_made([write for write in open_ if jobs or write.job is None])
        calls = [
            (
                write,
                WriteGroup(
                    resource=self.mapping.resource,
                    key=write.key,
                    writes=tuple(
                        Write(item.local_id, item.remote_id, dict(item.body), write.key, item.adopted)
                        for item in write.items
                    ),
                    job=write.job,
                ),
            )
            for write in announced
        ]
        for chunk in self._chunks(calls):
            self._check_stop()
            await self._send(tally, chunk, repeating=True)
            report()
        still = await self.state.announced(*self._here) if open_ else ()
        return frozenset(item.local_id for write in still for item in write.items)

    async def _adopt_made(self, announced: Sequence[PendingWrite]) -> Sequence[PendingWrite]:
        """Turn creates that were done after all into updates of what they made.

        Where a call can't be repeated under its own key, because the provider keeps none or replays a failure
        for it, the record may be there all the same: it carries our id.
        """
        resource = self.connector.resources[self.mapping.resource]
        creates = (resource.create, resource.create_many, resource.write_many)
        keyed = any(spec is not None and spec.idempotency_key is not None for spec in creates)
        doubtful = [
            write
            for write in announced
            if write.items[0].remote_id is None and write.job is None and (write.attempt > 1 or not keyed)
        ]
        items = [item for write in doubtful for item in write.items]
        if items and resource.find is not None:
            made = await self._found_by_content(resource, items)
        elif items and resource.reference is not None and (resource.list or resource.changes):
            made = await self._found_by_reference(resource.name, resource.reference, items)
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
            await self.state.announce(adopted, instead_of=replaced)
        return [write for write in announced if write.key not in replaced] + adopted

    async def _found_by_reference(
        self, resource: str, reference: Path, items: Sequence[PendingItem]
    ) -> dict[str, str]:
        """Return the remote ids of items that were made lately, by local id."""
        wanted = {str(reference.find(item.body)): item.local_id for item in items}
        made: dict[str, str] = {}
        async for batch in self.client.pages(resource, since=self.clock.now() - LOOK_BACK):
            for row in batch.records:
                value = reference.find(row.record)
                if isinstance(value, str) and value in wanted and not row.deleted:
                    made.setdefault(wanted[value], row.id)
        return made

    async def _found_by_content(self, resource: Resource, items: Sequence[PendingItem]) -> dict[str, str]:
        """Return the remote ids of items that are there, by local id, where it is beyond doubt."""
        made: dict[str, str] = {}
        for item in items:
            try:
                rows = await self.client.find(resource.name, item.body)
            except (RecordRejectedError, ExpressionError):
                continue
            ids = [row.id for row in rows if not row.deleted and row.id not in made.values()]
            if resource.reference is not None and (ours := resource.reference.find(item.body)):
                ids = [
                    row.id for row in rows if row.id in ids and resource.reference.find(row.record) == ours
                ]
            linked = await self._linked(resource.name, ids)
            ids = [each for each in ids if linked.get(each, item.local_id) == item.local_id]
            if len(ids) == 1:
                made[item.local_id] = ids[0]
        return made

    async def _push_page(
        self,
        tally: Tally,
        records: Sequence[Record],
        position: Mapping[str, Any] | None,
        report: Callable[[], None],
        waiting: frozenset[str],
    ) -> None:
        mapping = self.mapping
        # An open call comes first: it may be carried out yet, and what is written besides would be made twice
        # or overwritten. Its failure is kept, so its record is pushed again by itself.
        records = [record for record in records if str(record["id"]) not in waiting]
        tally.read += len(records)
        links = await self.state.links_by_local(mapping.resource, [str(record["id"]) for record in records])
        scope = self._scope(await self._remote_ids_of_links(records))
        writes: list[Write] = []
        items: dict[str, PendingItem] = {}
        failures: list[RecordFailure] = []
        fine: list[str] = []  # there is nothing to write, so whatever failed earlier is over
        moved: list[Link] = []
        gone = self._gone()
        for record in records:
            local_id = str(record["id"])
            link = links.get(local_id)
            try:
                if mapping.is_deleted(record, scope) or not mapping.wants(record, scope):
                    tally.skipped += 1
                    fine.append(local_id)
                    if link and gone.leaves(link, record):
                        moved.append(replace(link, state="leaving"))
                    continue
                if link and link.state == "broken":
                    tally.skipped += 1  # theirs was deleted; it isn't for a push to make it again
                    continue
                body, cut = self._body(record, scope)
            except HubError as error:
                failures.append(self._failure("push", local_id, error, getattr(error, "field", None)))
                continue
            print_ = fingerprint(body)
            if link and link.fingerprint == print_:
                tally.unchanged += 1
                fine.append(local_id)
                if link.state != "linked":
                    moved.append(replace(link, state="linked"))
                continue
            tally.add_cut(cut)
            remote_id, key = link.remote_id if link else None, self._write_key(local_id, print_, link)
            agreed = {**self._agreed(record, {}), "key": key}
            items[local_id] = PendingItem(local_id, remote_id, body, print_, agreed)
            writes.append(Write(local_id, remote_id, body, key))
        taken = await self._taken(writes)
        writes = [write for write in writes if write.local_id not in taken]
        failures.extend(self._failure("push", *each, retryable=True) for each in taken.items())
        for failure in failures:
            tally.add_failure(failure)
        calls = [
            (
                PendingWrite(group.key, *self._here, tuple(items[write.local_id] for write in group.writes)),
                group,
            )
            for group in self.client.plan(mapping.resource, writes)
        ]
        for chunk in self._chunks(calls):
            self._check_stop()
            await self.state.announce([write for write, _ in chunk])
            await self._send(tally, chunk)
            report()
        await self.state.commit(
            Commit(
                links=moved,
                failures=failures,
                settled=[self._key("push", local_id) for local_id in fine],
                position=(*self._here, "push", position) if position is not None else None,
            )
        )
        report()

    async def _taken(self, writes: Sequence[Write]) -> dict[str, HubError]:
        """Return what is wrong with writes, by local id, that would overwrite what another record of the
        platform is over there: where an id follows from the content, two can come to the same one.
        """
        resource = self.connector.resources[self.mapping.resource]
        if resource.own_id is None:
            return {}
        ids = {write.local_id: own for write in writes if (own := own_id(resource, write.body)) is not None}
        links = await self.state.links_by_remote(resource.name, list(set(ids.values()))) if ids else {}
        others = {link.local_id for link in links.values()} - ids.keys()
        there = {*ids, *(await self.host.fetch(self.mapping.entity, list(others)) if others else {})}
        owners = {
            remote_id: link.local_id
            for remote_id, link in links.items()
            if link.state == "linked" and link.local_id in there
        }
        return {
            local_id: RecordRejectedError(
                f"{self.mapping.entity} `{owner}` is this {resource.name} already, and would be overwritten"
            )
            for local_id, remote_id in ids.items()
            if (owner := owners.setdefault(remote_id, local_id)) != local_id
        }

    def _chunks(self, calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
        """Cut calls into those made together. Jobs go by themselves and last: they may take hours, and what
        became of the others is saved before.
        """
        resource = self.connector.resources[self.mapping.resource]
        jobs = [call for call in calls if job_spec(resource, call[1]) is not None]
        others = [call for call in calls if job_spec(resource, call[1]) is None] if jobs else calls
        yield from batched(others, CHUNK)
        yield from batched(jobs, CHUNK)

    async def _send(self, tally: Tally, calls: Sequence[Call], *, repeating: bool = False) -> None:
        """Make the announced calls and save what became of each record."""
        pending = [write for write, _ in calls]
        books = self._books(pending)
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(self._attempt(group, books)) for _, group in calls]
        links: list[Link] = []
        done: list[str] = []
        failed: list[RecordFailure] = []
        finished: list[str] = []
        again: list[PendingWrite] = []
        replaced: list[str] = []
        stopped: HubError | None = None
        down: HubError | None = None
        through = False
        for write, task in zip(pending, sent, strict=True):
            outcome = task.result()
            if isinstance(outcome, HubError):  # the run can't go on; this call stays announced
                stopped = stopped or outcome
                continue
            items = {item.local_id: item for item in write.items}
            retry: list[PendingItem] = []
            unanswered = False
            for result in outcome:
                item = items[result.write.local_id]
                refused = isinstance(result.error, RecordRejectedError)
                through = through or result.error is None or refused or not result.retryable
                if result.error is None:
                    links.extend(self._pushed_links(item, result))
                    done.append(item.local_id)
                    new = item.remote_id is None or item.adopted
                    tally.created += new
                    tally.updated += not new
                    continue
                failure = self._failure(
                    "push", item.local_id, result.error, result.error.field, result.retryable
                )
                failed.append(failure)
                tally.add_failure(failure)
                if result.retryable:
                    down = result.error
                made = result.remote_id not in (None, item.remote_id)  # also instead of what can't be changed
                if (made or item.adopted) and not result.retryable:
                    # It is there; what goes with it failed, and is tried again with the next push of it.
                    links.extend(replace(link, fingerprint=None) for link in self._pushed_links(item, result))
                elif not result.answered or made:
                    unanswered = True  # it may be there: only the same call under the same key is safe
                elif result.retryable and write.attempt < MAX_ATTEMPTS:
                    retry.append(item)
            if unanswered:
                continue
            if retry:
                # A provider may replay a stored failure for its key, so the next try takes a new one.
                attempt = write.attempt + 1
                key = fingerprint([write.key, attempt])
                again.append(replace(write, key=key, items=tuple(retry), attempt=attempt, job=None))
                replaced.append(write.key)
            else:
                finished.append(write.key)
        await self.state.commit(
            Commit(
                links=links,
                failures=failed,
                settled=[self._key("push", local_id) for local_id in done],
                finished_writes=finished,
            )
        )
        if again:  # after the links: a crash in between repeats the old calls, which changes nothing
            await self.state.announce(again, instead_of=replaced)
        if stopped is not None:
            raise stopped
        self._fruitless = 0 if through else self._fruitless + 1
        if down is not None and not through:
            several = len(failed) > 1 and not repeating
            await self._check_reachable(down, several or self._fruitless > 1)

    async def _check_reachable(self, error: HubError, sure: bool) -> None:
        """Raise when it is the provider that is away: better to come back later than to try every record.

        A record that it never copes with is only that record's trouble, and holds up no other: what failed
        in earlier runs doesn't count as proof, nor does a single record.
        """
        if sure or isinstance(error, RateLimitedError):
            raise error
        await self.client.check()

    def _books(self, pending: Sequence[PendingWrite]) -> Books:
        announced = {write.key: write for write in pending}

        async def submitted(group: WriteGroup, job: str) -> None:
            await self.state.announce([replace(announced[group.key], job=job)])

        return Books(self._linked, submitted, self.stop)

    async def _linked(self, resource: str, remote_ids: Sequence[str]) -> dict[str, str]:
        links = await self.state.links_by_remote(resource, remote_ids) if remote_ids else {}
        return {remote_id: link.local_id for remote_id, link in links.items()}

    async def _attempt(self, group: WriteGroup, books: Books) -> list[WriteResult] | HubError:
        try:
            return await self.client.send(group, books)
        except HubError as error:
            return error

    def _pushed_links(self, item: PendingItem, result: WriteResult) -> list[Link]:
        """Return the link of a record, and of those items of its lists that are records of their own."""
        links = [self._pushed_link(item, result)]
        path = self.connector.resources[self.mapping.resource].lasting_id
        if path is not None and (found := path.find(result.record)):
            links.append(
                Link(
                    self.mapping.entity,
                    self._lasting,
                    item.local_id,
                    str(found),
                    last_direction="push",
                )
            )
        lists = self.connector.resources[self.mapping.resource].lists
        for rule in self.mapping.list_rules:
            pair_by, ids = lists[rule.path.text].pair_by, self.connector.resources[rule.resource].id
            sent, there = rule.path.find(item.body), rule.path.find(result.record)
            ours = {pair_by.find(each) for each in sent} if isinstance(sent, list) else set()
            for each in there if isinstance(there, list) else ():
                local_id, remote_id = pair_by.find(each), ids.find(each)
                if local_id in ours and isinstance(remote_id, str):
                    links.append(
                        Link(
                            self.mapping.entity,
                            rule.resource,
                            str(local_id),
                            remote_id,
                            last_direction="push",
                        )
                    )
        return links

    def _pushed_link(self, item: PendingItem, result: WriteResult) -> Link:
        theirs: Mapping[str, Any] = {}
        try:
            theirs = self.mapping.pull(result.record or dict(item.body), self._scope({}))
        except HubError:
            theirs = {}  # only makes the next pull look closer
        return Link(
            entity=self.mapping.entity,
            resource=self.mapping.resource,
            local_id=item.local_id,
            remote_id=result.remote_id or item.remote_id or "",
            fingerprint=item.fingerprint,
            agreed={**item.agreed, "theirs": plain(theirs)},
            remote_version=result.changed_at,
            last_direction="push",
        )

    # ---- both -------------------------------------------------------------------------------------------

    def _gone(self) -> Gone:
        return Gone(
            self.mapping,
            self.connector.resources[self.mapping.resource],
            self.client,
            self.host,
            self.state,
            self._scope({}),
            self.approved,
            self._check_stop,
        )

    async def _settle(self, settle: Callable[[Parted], Awaitable[None]], tally: Tally) -> None:
        """Deal with the gone, and count what became of them whether or not it comes to its end."""
        parted, calls = Parted(), self.client.calls
        try:
            await settle(parted)
        finally:
            tally.archived += parted.archived
            tally.deleted += parted.deleted
            tally.held += parted.held
            tally.note = parted.note(self.mapping.at_most_gone) or tally.note
            for failure in parted.failures:
                tally.add_failure(failure)
            tally.api_calls += self.client.calls - calls

    @property
    def _here(self) -> tuple[str, str]:
        return self.mapping.entity, self.mapping.resource

    def _tally(self, direction: Direction) -> Tally:
        return Tally(self.mapping.entity, self.mapping.resource, direction)

    def _scope(self, links: Mapping[tuple[str, str], str]) -> MappingScope:
        return MappingScope(venue=self.venue, links=links, now=self.clock.now().isoformat())

    def _check_stop(self) -> None:
        if self.stop():
            raise StoppedError("the sync was asked to stop; what was done so far is kept")

    def _body(self, record: Record, scope: MappingScope) -> tuple[dict[str, Any], Sequence[str]]:
        """Return what is sent for a record, and the fields that were cut to their length for it."""
        return fitted(self.mapping.push(record, scope), self._limited)

    def _key(self, direction: Direction, record_id: str) -> RecordKey:
        return (*self._here, direction, record_id)

    def _failure(
        self,
        direction: Direction,
        record_id: str,
        error: HubError,
        field_name: str | None = None,
        retryable: bool | None = None,
    ) -> RecordFailure:
        return RecordFailure(
            *self._here,
            direction=direction,
            record_id=record_id,
            code=error.code,
            message=error.message,
            retryable=error.retryable if retryable is None else retryable,
            field=field_name,
        )

    def _write_key(self, local_id: str, print_: str, link: Link | None) -> str:
        """Return a write's idempotency key, which follows from the key before it: a record that gets back a
        value it had has to be written again, and a provider would take the same key for a repetition.
        """
        before = [link.remote_id, link.agreed.get("key")] if link else None
        return fingerprint(
            [str(self.venue["id"]), self.connector.name, *self._here, local_id, print_, before]
        )

    def _agreed(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        pulled = self.mapping.pulled_fields
        return {"ours": plain({name: ours.get(name) for name in pulled}), "theirs": plain(theirs)}

    def _push_fingerprint(self, record: Record, scope: MappingScope) -> str | None:
        if self.mapping.direction == "pull":
            return None
        try:
            return fingerprint(self._body(record, scope)[0])
        except HubError:
            return None

    async def _remote_ids_of_links(self, records: Sequence[Record]) -> dict[tuple[str, str], str]:
        """Look up the remote ids of what these records refer to by `link` rules: a query per resource."""
        wanted: dict[str, set[str]] = {}
        for rule in self.mapping.link_rules:
            values = (record.get(rule.local_field) for record in records)
            wanted.setdefault(rule.resource, set()).update(
                str(value) for value in values if value is not None
            )
        found: dict[tuple[str, str], str] = {}
        for resource, ids in wanted.items():
            links = await self.state.links_by_local(resource, list(ids)) if ids else {}
            found.update(
                ((resource, local_id), link.remote_id)
                for local_id, link in links.items()
                if link.state != "broken"
            )
        return found

    async def _local_ids_of_links(self, rows: Iterable[ReadRecord]) -> dict[tuple[str, str], str]:
        wanted: dict[str, set[str]] = {}
        for row in rows:
            for rule in self.mapping.link_rules:
                value = rule.path.find(row.record)
                if isinstance(value, str):
                    wanted.setdefault(rule.resource, set()).add(value)
        found: dict[tuple[str, str], str] = {}
        for resource, ids in wanted.items():
            links = await self.state.links_by_remote(resource, list(ids))
            found.update(((resource, remote_id), link.local_id) for remote_id, link in links.items())
        return found


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


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
