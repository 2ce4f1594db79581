"""Every port, in memory: for tests, previews and `hub pull`/`hub push` without a server.

They keep the same promises as the ones on PostgreSQL; the suite in `tests/contract/ports/` checks both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from engine.errors import AuthenticationError
from engine.ports import (
    Commit,
    Confirm,
    Credentials,
    Direction,
    FieldConflict,
    HostChange,
    HostPage,
    Link,
    LinkState,
    PendingWrite,
    Record,
    RecordFailure,
    RecordKey,
)


@dataclass(slots=True)
class StaticCredentials:
    """Credentials that never change: a refused one stays refused."""

    credentials: Credentials

    async def current(self) -> Credentials:
        return self.credentials

    async def refresh(self, refused: Credentials) -> Credentials:
        raise AuthenticationError("the provider refuses these credentials", status=401)


@dataclass(slots=True)
class MemorySyncState:
    """What a sync remembers, in dicts."""

    links: dict[tuple[str, str], Link] = field(default_factory=dict)  # (resource, local id)
    local_ids: dict[tuple[str, str], str] = field(default_factory=dict)  # (resource, remote id)
    positions: dict[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    pending: dict[str, PendingWrite] = field(default_factory=dict)
    failures: dict[RecordKey, RecordFailure] = field(default_factory=dict)
    conflicts: dict[tuple[str, str, str], FieldConflict] = field(
        default_factory=dict
    )  # (resource, local id, field)

    async def links_by_local(self, resource: str, local_ids: Sequence[str]) -> dict[str, Link]:
        found = ((local_id, self.links.get((resource, local_id))) for local_id in local_ids)
        return {local_id: link for local_id, link in found if link}

    async def links_by_remote(self, resource: str, remote_ids: Sequence[str]) -> dict[str, Link]:
        found = ((remote_id, self.local_ids.get((resource, remote_id))) for remote_id in remote_ids)
        return {remote_id: self.links[resource, local_id] for remote_id, local_id in found if local_id}

    async def links_in_state(
        self, entity: str, resource: str, state: LinkState, *, after: str = "", limit: int = 500
    ) -> list[Link]:
        links = self._links_of(entity, resource)
        found = (link for link in links if link.state == state and link.local_id > after)
        return sorted(found, key=lambda link: link.local_id)[:limit]

    async def links_due(self, entity: str, resource: str, *, after: str = "", limit: int = 500) -> list[Link]:
        links = self._links_of(entity, resource)
        found = (link for link in links if "due" in link.agreed and link.local_id > after)
        return sorted(found, key=lambda link: link.local_id)[:limit]

    async def count_links(self, entity: str, resource: str) -> Mapping[LinkState, int]:
        return Counter(link.state for link in self._links_of(entity, resource))

    async def conflicts_of(self, resource: str, local_ids: Sequence[str]) -> list[FieldConflict]:
        return [
            each
            for each in self.conflicts.values()
            if each.resource == resource and each.local_id in local_ids
        ]

    async def open_conflicts(
        self, entity: str, resource: str, *, after: str = "", limit: int = 500
    ) -> list[FieldConflict]:
        here = [
            each
            for each in self.conflicts.values()
            if (each.entity, each.resource) == (entity, resource) and each.local_id > after
        ]
        here.sort(key=lambda each: each.local_id)
        last = here[limit - 1].local_id if len(here) > limit else None
        return [each for each in here if last is None or each.local_id <= last]

    def _links_of(self, entity: str, resource: str) -> Iterator[Link]:
        here = (entity, resource)
        return (link for link in self.links.values() if (link.entity, link.resource) == here)

    async def position(self, entity: str, resource: str, direction: Direction) -> Mapping[str, Any] | None:
        return self.positions.get((entity, resource, direction))

    async def confirm(self) -> None:
        return

    async def announce(self, writes: Sequence[PendingWrite], *, instead_of: Sequence[str] = ()) -> None:
        for key in instead_of:
            self.pending.pop(key, None)
        self.pending.update((write.key, write) for write in writes)

    async def announced(self, entity: str, resource: str) -> list[PendingWrite]:
        return [
            write for write in self.pending.values() if (write.entity, write.resource) == (entity, resource)
        ]

    async def commit(self, commit: Commit) -> None:
        for link in commit.unlinked:
            self._forget(link.resource, link.local_id)
        parted = [link for link in commit.links if link.state in ("broken", "archived")]
        for link in (*commit.unlinked, *parted):  # there is nothing left to decide about
            for name in [key for key in self.conflicts if key[:2] == (link.resource, link.local_id)]:
                del self.conflicts[name]
        for link in commit.links:  # the newest link ends an older claim on either record
            self._forget(link.resource, link.local_id)
            self._forget(link.resource, self.local_ids.get((link.resource, link.remote_id)))
            self.links[link.resource, link.local_id] = link
            self.local_ids[link.resource, link.remote_id] = link.local_id
        for key in commit.settled:
            self.failures.pop(key, None)
        for failure in commit.failures:
            self.failures[(failure.entity, failure.resource, failure.direction, failure.record_id)] = failure
        for write_key in commit.finished_writes:
            self.pending.pop(write_key, None)
        for end in commit.conflicts_over:
            self.conflicts.pop((end.resource, end.local_id, end.field), None)
        for each in commit.conflicts:
            name = (each.resource, each.local_id, each.field)
            known = self.conflicts.get(name)
            if known is None or known.decision is None:  # what was decided was decided about what it says
                self.conflicts[name] = each
        if commit.position:
            entity, resource, direction, value = commit.position
            self.positions[(entity, resource, direction)] = value

    def _forget(self, resource: str, local_id: str | None) -> None:
        link = self.links.pop((resource, local_id), None) if local_id else None
        if link:
            self.local_ids.pop((resource, link.remote_id), None)


@dataclass(slots=True)
class MemoryHost:
    """A platform in dicts: entity to id to record. `order` has the number of each record's last change."""

    venue_record: Record
    records: dict[str, dict[str, Record]] = field(default_factory=dict)
    order: dict[tuple[str, str], int] = field(default_factory=dict)
    changes: int = 0

    def put(self, entity: str, record: Record) -> None:
        """Write a record as the platform itself would."""
        self.changes += 1
        self.order[(entity, record["id"])] = self.changes
        self.records.setdefault(entity, {})[record["id"]] = record

    async def venue(self) -> Record:
        return self.venue_record

    async def changed(
        self,
        entity: str,
        since: Mapping[str, Any] | None,
        *,
        page_size: int = 500,
        earliest: datetime | None = None,
    ) -> AsyncIterator[HostPage]:
        after = since["change"] if since else 0
        rows = sorted(
            ((self.order[(entity, key)], record) for key, record in self.records.get(entity, {}).items()),
            key=lambda row: row[0],
        )
        rows = [row for row in rows if row[0] > after]
        for start in range(0, len(rows), page_size):
            page = rows[start : start + page_size]
            yield HostPage([dict(record) for _, record in page], {"change": page[-1][0]})

    async def fetch(self, entity: str, ids: Sequence[str]) -> dict[str, Record]:
        records = self.records.get(entity, {})
        return {record_id: dict(records[record_id]) for record_id in ids if record_id in records}

    async def find(self, entity: str, field: str, values: Sequence[str]) -> dict[str, list[str]]:
        wanted, found = {value.lower() for value in values}, dict[str, list[str]]()
        for record_id, record in self.records.get(entity, {}).items():
            value = str(record.get(field) or "").lower()
            if value in wanted:
                found.setdefault(value, []).append(record_id)
        return found

    async def upsert(
        self, entity: str, changes: Sequence[HostChange], confirm: Confirm | None = None
    ) -> dict[str, str]:
        if confirm is not None:
            await confirm()
        for change in changes:
            old = self.records.get(entity, {}).get(change.local_id, {"id": change.local_id})
            self.put(entity, {**old, **change.values})
        return {}
