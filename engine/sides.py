"""The two sides of one mapping of one venue, and what pulls and pushes both ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from engine.bodies import fitted, limited_fields, version_of
from engine.client import ProviderClient, ReadRecord
from engine.errors import HubError, StoppedError
from engine.expressions import Path
from engine.fields import Field
from engine.manifest import Connector, Resource
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.ports import Clock, Direction, HostStore, Link, Record, RecordFailure, RecordKey, SyncState
from engine.reconcile import fingerprint, moment, plain

T = TypeVar("T")


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

    # ---- what is sent and agreed ------------------------------------------------------------------------

    def body(self, record: Record, scope: MappingScope) -> tuple[dict[str, Any], Sequence[str]]:
        """Return what is sent for a record, and the fields that were cut to their length for it."""
        return fitted(self.mapping.push(record, scope), self._limited)

    def push_fingerprint(self, record: Record, scope: MappingScope) -> str | None:
        """Return that of what would be sent for a record; None when nothing would be, or it can't be."""
        if self.mapping.direction == "pull":
            return None
        try:
            return fingerprint(self.body(record, scope)[0])
        except HubError:
            return None

    def write_key(self, local_id: str, print_: str, link: Link | None) -> str:
        """Return a write's idempotency key, which follows from the key before it: a record that gets back a
        value it had has to be written again, and a provider would take the same key for a repetition.
        """
        before = [link.remote_id, link.agreed.get("key")] if link else None
        return fingerprint([str(self.venue["id"]), self.connector.name, *self.here, local_id, print_, before])

    def agreed(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        pulled = self.mapping.pulled_fields
        return {"ours": plain({name: ours.get(name) for name in pulled}), "theirs": plain(theirs)}

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


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
