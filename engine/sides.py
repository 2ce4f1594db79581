"""The two sides of one mapping of one venue, and what pulls and pushes both ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from engine.bodies import covers, fitted, limited_fields, not_in_updates, path_of, version_of, without
from engine.client import ProviderClient, ReadRecord
from engine.errors import AuthenticationError, HubError, ProviderError, StoppedError
from engine.expressions import ABSENT, Path
from engine.fields import Field
from engine.manifest import Connector, Resource
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.ports import (
    Clock,
    Direction,
    FieldConflict,
    HostStore,
    Link,
    Record,
    RecordFailure,
    RecordKey,
    SyncState,
)
from engine.reconcile import fingerprint, moment, plain, same

T = TypeVar("T")

ASKED_FOR = 50  # records of theirs at once, by their ids


@dataclass(frozen=True, slots=True)
class Period:
    """The changes that are looked at: from `since` on, and before `until`."""

    since: datetime | None = None
    until: datetime | None = None

    def holds(self, changed_at: str | None) -> bool:
        """Say whether a change belongs to it; one at an unknown moment does."""
        at = moment(changed_at)
        if at is None:
            return True
        return (self.since is None or at >= self.since) and not self.is_over(changed_at)

    def is_over(self, changed_at: str | None) -> bool:
        """Say whether a change came after it."""
        at = moment(changed_at)
        return at is not None and self.until is not None and at >= self.until


@dataclass(slots=True)
class Sides:
    """The platform's records, the provider's, and what is remembered of both. `stop` says whether to stop."""

    connector: Connector
    mapping: FieldMapping
    client: ProviderClient
    host: HostStore
    state: SyncState
    venue: Record
    clock: Clock
    stop: Callable[[], bool] = lambda: False
    _limited: Sequence[tuple[Path, Field]] = field(init=False)

    def __post_init__(self) -> None:
        self._limited = limited_fields(self.resource.fields)

    @property
    def here(self) -> tuple[str, str]:
        """The entity and the resource, as positions and failures are kept under."""
        return self.mapping.entity, self.mapping.resource

    @property
    def resource(self) -> Resource:
        return self.connector.resources[self.mapping.resource]

    @property
    def askable(self) -> bool:
        """Say whether the provider can be asked for a record by its id."""
        return self.resource.get is not None or self.resource.get_many is not None

    @property
    def lasting(self) -> str:
        """The resource that links of lasting ids are kept under, as if they were of one of their own."""
        return f"{self.mapping.resource}.lasting_id"

    @property
    def keeps_to_existing(self) -> bool:
        """Say whether a record of theirs that turns out to be gone isn't made anew."""
        return self.mapping.when_theirs_is_gone == "keep"

    def check_stop(self) -> None:
        if self.stop():
            raise StoppedError("the sync was asked to stop; what was done so far is kept")

    def scope(self, links: Mapping[tuple[str, str], str]) -> MappingScope:
        return MappingScope(venue=self.venue, links=links, now=self.clock.now().isoformat())

    async def look_up(self, ids: Sequence[str]) -> tuple[dict[str, ReadRecord], dict[str, ProviderError]]:
        """Return what there is of records, and why the provider won't be asked for some of them.

        Raises ProviderError for what may pass, and for what concerns all of them.
        """
        found: dict[str, ReadRecord] = {}
        refused: dict[str, ProviderError] = {}
        for some in batched(ids, ASKED_FOR):
            try:
                found |= await self.client.look_up(self.mapping.resource, some)
            except ProviderError as error:
                if error.retryable or isinstance(error, AuthenticationError):
                    raise
                if len(some) == 1:
                    refused[some[0]] = error
                    continue
                for each in some:
                    one, why = await self.look_up([each])
                    found, refused = found | one, refused | why
        return found, refused

    # ---- what is sent and agreed ------------------------------------------------------------------------

    def body(
        self, record: Record, scope: MappingScope, open_: Iterable[str] = ()
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """Return what is sent for a record, without what fields that are `open` read from or write to, and
        the fields that were cut to their length for it.
        """
        body = self.mapping.push(record, scope)
        places = [path.steps for name in open_ for path in self.mapping.places[name]]
        return fitted(without(body, places) if places else body, self._limited)

    def push_fingerprint(self, record: Record, scope: MappingScope, open_: Iterable[str] = ()) -> str | None:
        """Return that of what would be sent for a record; None when nothing would be, or it can't be."""
        if self.mapping.direction == "pull":
            return None
        try:
            return fingerprint(self.body(record, scope, open_)[0])
        except HubError:
            return None

    def changed_besides(self, record: Record, link: Link, scope: MappingScope) -> bool:
        """Say whether ours has something to send besides what a pull compares: whether another body than the
        last one would be sent if the fields that are pulled still were as they were agreed on.
        """
        if link.fingerprint is None:
            return True
        agreed: Mapping[str, Any] = link.agreed.get("ours") or {}
        unlike = {name: value for name, value in agreed.items() if not same(value, record.get(name))}
        print_ = self.push_fingerprint({**record, **unlike}, scope, self.open_fields(link))
        return print_ not in (None, link.fingerprint)

    def lacks(self, theirs: Mapping[str, Any], record: Record, scope: MappingScope) -> bool:
        """Say whether theirs, just found to be ours, has nothing where ours has something to send, or what
        only a push brings is something else there.
        """
        try:
            body, _ = self.body(record, scope)
        except HubError:
            return False
        unsent = not_in_updates(self.resource)
        for text, name in self.mapping.sources.items():
            path = path_of(text)
            wanted, there = path.find(body), path.find(theirs)
            if wanted in (ABSENT, None, "", [], {}) or path.steps in unsent:
                continue
            if there in (ABSENT, None, "") or (
                name not in self.mapping.pulled_fields and not covers(there, wanted)
            ):
                return True
        return False

    def write_key(self, local_id: str, print_: str, link: Link | None) -> str:
        """Return a write's idempotency key, which follows from the key before it: a record that gets back a
        value it had has to be written again, and a provider would take the same key for a repetition.
        """
        before = [link.remote_id, link.agreed.get("key")] if link else None
        return fingerprint([str(self.venue["id"]), self.connector.name, *self.here, local_id, print_, before])

    def agreed(
        self,
        ours: Mapping[str, Any],
        theirs: Mapping[str, Any],
        *,
        open_: Iterable[str] = (),
        before: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return what a link says the two sides agree on; of fields that are open, what it said `before`."""
        pulled = self.mapping.pulled_fields
        made = {"ours": plain({name: ours.get(name) for name in pulled}), "theirs": plain(theirs)}
        return still_open(made, open_, before or {})

    def open_fields(self, link: Link | None) -> tuple[str, ...]:
        """Return the fields of a pair that wait for a person and stay as they are on both sides."""
        names = link.agreed.get("open", ()) if link else ()
        return tuple(name for name in names if name in self.mapping.places)

    def conflicts(
        self,
        names: Iterable[str],
        link: Link,
        ours: Record,
        theirs: Mapping[str, Any],
        theirs_changed_at: str | None,
    ) -> list[FieldConflict]:
        """Return the conflicts of a pair about fields that each side has a value of its own of."""
        here, there = plain(ours), plain(theirs)
        agreed = {side: link.agreed.get(side) or {} for side in ("ours", "theirs")}
        return [
            FieldConflict(
                *self.here,
                local_id=link.local_id,
                remote_id=link.remote_id,
                field=name,
                ours=here.get(name),
                theirs=there.get(name),
                agreed={side: values[name] for side, values in agreed.items() if name in values},
                ours_changed_at=ours.get("changed_at"),
                theirs_changed_at=theirs_changed_at,
            )
            for name in names
        ]

    def version_seen(self, record: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the provider's version of a record, as a link keeps it for the next update. Empty where it
        is read before each update, or isn't there.
        """
        version = version_of(self.resource, record)
        return {"version": version} if version is not None and self.resource.updates == "sparse" else {}

    # ---- failures ---------------------------------------------------------------------------------------

    def key(self, direction: Direction, record_id: str) -> RecordKey:
        return (*self.here, direction, record_id)

    def failure(
        self,
        direction: Direction,
        record_id: str,
        error: HubError,
        field_name: str | None = None,
        retryable: bool | None = None,
    ) -> RecordFailure:
        return RecordFailure(
            *self.here,
            direction=direction,
            record_id=record_id,
            code=error.code,
            message=error.message,
            retryable=error.retryable if retryable is None else retryable,
            field=field_name,
        )

    # ---- what `link` rules refer to ---------------------------------------------------------------------

    async def remote_ids_of_links(self, records: Sequence[Record]) -> dict[tuple[str, str], str]:
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

    async def local_ids_of_links(self, rows: Iterable[ReadRecord]) -> dict[tuple[str, str], str]:
        """Look up our ids of what these records of theirs refer to by `link` rules."""
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

    async def linked(self, resource: str, remote_ids: Sequence[str]) -> dict[str, str]:
        """Return our ids of those of the provider's that are linked."""
        links = await self.state.links_by_remote(resource, remote_ids) if remote_ids else {}
        return {remote_id: link.local_id for remote_id, link in links.items()}


def still_open(agreed: Mapping[str, Any], names: Iterable[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is agreed with fields that are open: of them it says what was agreed before."""
    names = sorted(names)
    if not names:
        return dict(agreed)
    made: dict[str, Any] = {**agreed, "open": names}
    for side in ("ours", "theirs"):
        known, now = before.get(side) or {}, agreed.get(side) or {}
        kept = {name: value for name, value in now.items() if name not in names}
        made[side] = kept | {name: known[name] for name in names if name in known}
    return made


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
