"""The engine's ports on PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Result, Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from engine.errors import LeaseLostError
from engine.ports import (
    Commit,
    ConflictEnd,
    Decision,
    Direction,
    FieldConflict,
    Link,
    LinkState,
    PendingItem,
    PendingWrite,
    RecordFailure,
    RecordKey,
)
from server.db import exact_json


@dataclass(frozen=True, slots=True)
class Lease:
    """An operation as its worker claimed it. The token grows with every claim; an older one is void."""

    operation_id: UUID
    fencing_token: int


class PostgresSyncState:
    """`engine.ports.SyncState` for one venue and provider, saving under one worker's lease.

    Each save is one transaction of a few statements, whatever the number of records, and holds the
    operation's row while it lasts: nobody can take the operation over in the middle of it.
    """

    def __init__(self, engine: AsyncEngine, *, venue_id: UUID, provider: str, lease: Lease) -> None:
        self._engine = engine
        # One statement is a transaction of its own there; no BEGIN and COMMIT around it.
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._scope = {"venue": venue_id, "provider": provider}
        self.lease = lease
        self._got_on = False  # something was saved that an earlier attempt hadn't
        self._lease = asdict(lease)

    async def links_by_local(self, resource: str, local_ids: Sequence[str]) -> dict[str, Link]:
        return {link.local_id: link for link in await self._links(_LINKS_BY_LOCAL, resource, local_ids)}

    async def links_by_remote(self, resource: str, remote_ids: Sequence[str]) -> dict[str, Link]:
        return {link.remote_id: link for link in await self._links(_LINKS_BY_REMOTE, resource, remote_ids)}

    async def links_in_state(
        self, entity: str, resource: str, state: LinkState, *, after: str = "", limit: int = 500
    ) -> list[Link]:
        place = {"entity": entity, "resource": resource, "state": state, "after": after, "limit": limit}
        async with self._single.connect() as connection:
            return [_link(row) for row in await connection.execute(_LINKS_IN_STATE, self._scope | place)]

    async def links_due(self, entity: str, resource: str, *, after: str = "", limit: int = 500) -> list[Link]:
        place = {"entity": entity, "resource": resource, "after": after, "limit": limit}
        async with self._single.connect() as connection:
            return [_link(row) for row in await connection.execute(_LINKS_DUE, self._scope | place)]

    async def count_links(self, entity: str, resource: str) -> Mapping[LinkState, int]:
        values = {**self._scope, "entity": entity, "resource": resource}
        async with self._single.connect() as connection:
            return {row.state: row.links for row in await connection.execute(_COUNT_LINKS, values)}

    async def conflicts_of(self, resource: str, local_ids: Sequence[str]) -> list[FieldConflict]:
        if not local_ids:
            return []
        return await self._conflicts(_CONFLICTS_OF, {"resource": resource, "ids": list(local_ids)})

    async def open_conflicts(
        self, entity: str, resource: str, *, after: str = "", limit: int = 500
    ) -> list[FieldConflict]:
        place = {"entity": entity, "resource": resource, "after": after, "limit": limit}
        return await self._conflicts(_OPEN_CONFLICTS, place)

    async def _conflicts(self, query: TextClause, values: dict[str, Any]) -> list[FieldConflict]:
        async with self._single.connect() as connection:
            return [_conflict(row) for row in await connection.execute(query, self._scope | values)]

    async def position(self, entity: str, resource: str, direction: Direction) -> Mapping[str, Any] | None:
        values = {**self._scope, "entity": entity, "resource": resource, "direction": direction}
        async with self._single.connect() as connection:
            value = await connection.scalar(_POSITION, values)
        return None if value is None else exact_json.loads(value)

    async def confirm(self) -> None:
        async with self._single.connect() as connection:
            if await connection.scalar(_STILL_HELD, self._lease) is None:
                raise LeaseLostError("another worker has taken this operation over")

    async def announce(self, writes: Sequence[PendingWrite], *, instead_of: Sequence[str] = ()) -> None:
        async with self._saving() as save:
            if instead_of:
                await save(_FINISH_WRITES, {"keys": list(instead_of)})
            if writes:
                await save(_ANNOUNCE, _write_columns(list({write.key: write for write in writes}.values())))
        if writes:
            await self._get_on()

    async def announced(self, entity: str, resource: str) -> list[PendingWrite]:
        values = {**self._scope, "entity": entity, "resource": resource}
        async with self._single.connect() as connection:
            rows = (await connection.execute(_ANNOUNCED, values)).all()
        return [
            PendingWrite(
                row.call_key,
                entity,
                resource,
                tuple(PendingItem(**item) for item in exact_json.loads(row.items)),
                row.attempt,
                row.job,
                row.created_at,
            )
            for row in rows
        ]

    async def commit(self, commit: Commit) -> None:
        # Of two links of one record the later counts, here as in the database.
        links = list({(link.entity, link.resource, link.local_id): link for link in commit.links}.values())
        links = list({(link.resource, link.remote_id): link for link in links}.values())
        failures = {_record_key(failure): failure for failure in commit.failures}
        settled = set(commit.settled) - failures.keys()
        first = False
        async with self._saving() as save:
            parted = [*commit.unlinked, *(link for link in links if link.state in _PARTED)]
            if parted:
                await save(_END_PARTED, _link_columns(parted))
            if commit.unlinked:
                await save(_UNLINK, _link_columns(commit.unlinked))
            if links:
                await save(_RELEASE_REMOTE, _link_columns(links))
                await save(_LINK, _link_columns(links) | _link_values(links))
            if commit.finished_writes:
                await save(_FINISH_WRITES, {"keys": list(commit.finished_writes)})
            if settled:
                await save(_SETTLE, _failure_columns(settled))
            if failures:
                columns = _failure_columns(failures) | _failure_values(failures.values())
                await save(_FAIL, columns | {"operation_id": self._lease["operation_id"]})
            if commit.conflicts_over:
                await save(_END_CONFLICTS, _end_columns(commit.conflicts_over))
            if commit.conflicts:
                found = {(each.resource, each.local_id, each.field): each for each in commit.conflicts}
                await save(_CONFLICT, _conflict_columns(list(found.values())))
            if commit.position is not None:
                entity, resource, direction, value = commit.position
                place = {"entity": entity, "resource": resource, "direction": direction}
                moved = await save(_MOVE, place | {"position": exact_json.dumps(value)})
                first = bool(moved.scalar_one())
        # That a position moves shows nothing: each attempt reads again what has no link.
        if links or commit.unlinked or first:
            await self._get_on()

    async def _get_on(self) -> None:
        """Note once that the operation got on in this attempt: workers it lost before weren't its fault.

        Not in the transaction that saves: two of those share a lock on the row, and none could change it.
        """
        if not self._got_on:
            self._got_on = True
            async with self._engine.begin() as connection:
                await connection.execute(_GET_ON, self._lease)

    @asynccontextmanager
    async def _saving(self) -> AsyncIterator[Callable[[TextClause, dict[str, Any]], Awaitable[Result[Any]]]]:
        async with self._engine.begin() as connection:
            if await connection.scalar(_HOLD_LEASE, self._lease) is None:
                raise LeaseLostError("another worker has taken this operation over")

            async def save(statement: TextClause, values: dict[str, Any]) -> Result[Any]:
                return await connection.execute(statement, self._scope | values)

            yield save

    async def _links(self, query: TextClause, resource: str, ids: Sequence[str]) -> list[Link]:
        if not ids:
            return []
        async with self._single.connect() as connection:
            rows = await connection.execute(query, {**self._scope, "resource": resource, "ids": list(ids)})
        return [_link(row) for row in rows]


def _link(row: Row[Any]) -> Link:
    return Link(
        row.entity,
        row.resource,
        row.local_id,
        row.remote_id,
        row.fingerprint,
        exact_json.loads(row.agreed),
        row.remote_version,
        row.last_direction,
        row.state,
    )


def _conflict(row: Row[Any]) -> FieldConflict:
    resolution = None if row.resolution is None else exact_json.loads(row.resolution)
    return FieldConflict(
        row.entity,
        row.resource,
        row.local_id,
        row.remote_id,
        row.field,
        exact_json.loads(row.ours),
        exact_json.loads(row.theirs),
        exact_json.loads(row.agreed),
        row.ours_changed_at,
        row.theirs_changed_at,
        None if resolution is None else Decision(resolution["take"], resolution.get("value")),
    )


def _end_columns(ends: Sequence[ConflictEnd]) -> dict[str, list[Any]]:
    return {
        "resources": [end.resource for end in ends],
        "local_ids": [end.local_id for end in ends],
        "fields": [end.field for end in ends],
        "applied": [end.applied for end in ends],
    }


def _conflict_columns(conflicts: Sequence[FieldConflict]) -> dict[str, list[Any]]:
    return {
        "entities": [each.entity for each in conflicts],
        "resources": [each.resource for each in conflicts],
        "local_ids": [each.local_id for each in conflicts],
        "remote_ids": [each.remote_id for each in conflicts],
        "fields": [each.field for each in conflicts],
        "ours": [exact_json.dumps(each.ours) for each in conflicts],
        "theirs": [exact_json.dumps(each.theirs) for each in conflicts],
        "agreed": [exact_json.dumps(each.agreed) for each in conflicts],
        "ours_changed": [each.ours_changed_at for each in conflicts],
        "theirs_changed": [each.theirs_changed_at for each in conflicts],
    }


def _item_to_json(item: PendingItem) -> dict[str, Any]:
    return {
        "local_id": item.local_id,
        "remote_id": item.remote_id,
        "body": item.body,
        "fingerprint": item.fingerprint,
        "agreed": item.agreed,
        "adopted": item.adopted,
    }


def _write_columns(writes: Sequence[PendingWrite]) -> dict[str, list[Any]]:
    return {
        "keys": [write.key for write in writes],
        "entities": [write.entity for write in writes],
        "resources": [write.resource for write in writes],
        "items": [exact_json.dumps([_item_to_json(item) for item in write.items]) for write in writes],
        "attempts": [write.attempt for write in writes],
        "jobs": [write.job for write in writes],
        "moments": [write.announced_at for write in writes],
    }


def _link_columns(links: Sequence[Link]) -> dict[str, list[str]]:
    return {
        "entities": [link.entity for link in links],
        "resources": [link.resource for link in links],
        "local_ids": [link.local_id for link in links],
        "remote_ids": [link.remote_id for link in links],
    }


def _link_values(links: Sequence[Link]) -> dict[str, list[str | None]]:
    return {
        "fingerprints": [link.fingerprint for link in links],
        "agreed": [exact_json.dumps(link.agreed) for link in links],
        "versions": [link.remote_version for link in links],
        "directions": [link.last_direction for link in links],
        "states": [link.state for link in links],
    }


def _record_key(failure: RecordFailure) -> RecordKey:
    return failure.entity, failure.resource, failure.direction, failure.record_id


def _failure_columns(keys: Iterable[RecordKey]) -> dict[str, list[str]]:
    names = ("entities", "resources", "directions", "record_ids")
    return {name: list(column) for name, column in zip(names, zip(*keys, strict=True), strict=True)}


def _failure_values(failures: Iterable[RecordFailure]) -> dict[str, list[Any]]:
    rows = [(failure.code, failure.message, failure.retryable, failure.field) for failure in failures]
    names = ("codes", "messages", "retryable", "fields")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


_HELD = """
    SELECT 1 FROM sync_queue
    WHERE id = :operation_id AND fencing_token = :fencing_token AND status = 'processing'
"""
_STILL_HELD = text(_HELD)
_HOLD_LEASE = text(f"{_HELD} FOR SHARE")

_GET_ON = text(
    """
    UPDATE sync_queue SET lost_workers = 0
    WHERE id = :operation_id AND fencing_token = :fencing_token AND lost_workers <> 0
    """
)

_LINKS = """
    SELECT entity, resource, local_id, remote_id, fingerprint, agreed::text AS agreed, remote_version,
        last_direction, state::text AS state
    FROM record_links
    WHERE venue_id = :venue AND integration_type = :provider AND resource = :resource
        AND remote_id IS NOT NULL
    """
_LINKS_BY_LOCAL = text(_LINKS + "AND local_id = ANY(CAST(:ids AS text[]))")
_LINKS_BY_REMOTE = text(_LINKS + "AND remote_id = ANY(CAST(:ids AS text[]))")
_LINKS_IN_STATE = text(
    _LINKS
    + """
    AND entity = :entity AND state = CAST(CAST(:state AS text) AS link_state) AND local_id > :after
    ORDER BY local_id LIMIT :limit
    """
)
_LINKS_DUE = text(
    _LINKS
    + """
    AND entity = :entity AND agreed ? 'due' AND local_id > :after
    ORDER BY local_id LIMIT :limit
    """
)
_COUNT_LINKS = text(
    """
    SELECT state::text AS state, count(*) AS links
    FROM record_links
    WHERE venue_id = :venue AND integration_type = :provider
        AND entity = :entity AND resource = :resource AND remote_id IS NOT NULL
    GROUP BY record_links.state
    """
)

_UNLINK = text(
    """
    DELETE FROM record_links AS known
    USING unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:local_ids AS text[]), CAST(:remote_ids AS text[])
    ) AS gone (entity, resource, local_id, remote_id)
    WHERE known.venue_id = :venue AND known.integration_type = :provider
        AND known.entity = gone.entity AND known.resource = gone.resource
        AND known.local_id = gone.local_id AND known.remote_id = gone.remote_id
    """
)

# A remote record is linked once: the newest link ends an older claim on it.
_RELEASE_REMOTE = text(
    """
    DELETE FROM record_links AS known
    USING unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:local_ids AS text[]), CAST(:remote_ids AS text[])
    ) AS new (entity, resource, local_id, remote_id)
    WHERE known.venue_id = :venue AND known.integration_type = :provider
        AND known.resource = new.resource AND known.remote_id = new.remote_id
        AND (known.entity, known.local_id) <> (new.entity, new.local_id)
    """
)

_LINK = text(
    """
    INSERT INTO record_links (
        venue_id, integration_type, entity, resource, local_id, remote_id,
        fingerprint, agreed, remote_version, last_direction, state
    )
    SELECT CAST(:venue AS uuid), CAST(:provider AS text),
        new.entity, new.resource, new.local_id, new.remote_id,
        new.fingerprint, new.agreed::jsonb, new.remote_version, new.last_direction::direction,
        new.state::link_state
    FROM unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:local_ids AS text[]), CAST(:remote_ids AS text[]),
        CAST(:fingerprints AS text[]), CAST(:agreed AS text[]),
        CAST(:versions AS text[]), CAST(:directions AS text[]), CAST(:states AS text[])
    ) AS new (
        entity, resource, local_id, remote_id, fingerprint, agreed, remote_version, last_direction, state
    )
    ON CONFLICT ON CONSTRAINT uq_record_links_local DO UPDATE SET
        remote_id = excluded.remote_id,
        fingerprint = excluded.fingerprint,
        agreed = excluded.agreed,
        remote_version = excluded.remote_version,
        last_direction = excluded.last_direction,
        state = excluded.state,
        updated_at = now()
    """
)

_ANNOUNCE = text(
    """
    INSERT INTO pending_writes (
        venue_id, integration_type, entity, resource, call_key, items, attempt, job, created_at
    )
    SELECT CAST(:venue AS uuid), CAST(:provider AS text),
        new.entity, new.resource, new.key, new.items::json, new.attempt, new.job,
        coalesce(new.announced_at, now())
    FROM unnest(
        CAST(:keys AS text[]), CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:items AS text[]), CAST(:attempts AS integer[]), CAST(:jobs AS text[]),
        CAST(:moments AS timestamptz[])
    ) WITH ORDINALITY AS new (key, entity, resource, items, attempt, job, announced_at, number)
    ORDER BY new.number
    ON CONFLICT ON CONSTRAINT uq_pending_writes_call DO UPDATE SET
        items = excluded.items,
        attempt = excluded.attempt,
        job = excluded.job
    """
)

_ANNOUNCED = text(
    """
    SELECT call_key, items::text AS items, attempt, job, created_at
    FROM pending_writes
    WHERE venue_id = :venue AND integration_type = :provider AND entity = :entity AND resource = :resource
    ORDER BY id
    """
)

_FINISH_WRITES = text(
    """
    DELETE FROM pending_writes
    WHERE venue_id = :venue AND integration_type = :provider AND call_key = ANY(CAST(:keys AS text[]))
    """
)

_SETTLE = text(
    """
    DELETE FROM record_failures AS known
    USING unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:directions AS text[]), CAST(:record_ids AS text[])
    ) AS settled (entity, resource, direction, record_id)
    WHERE known.venue_id = :venue AND known.integration_type = :provider
        AND known.entity = settled.entity AND known.resource = settled.resource
        AND known.direction = settled.direction::direction AND known.record_id = settled.record_id
    """
)

_FAIL = text(
    """
    INSERT INTO record_failures AS known (
        venue_id, integration_type, entity, resource, direction, record_id,
        code, message, retryable, field, run_id
    )
    SELECT CAST(:venue AS uuid), CAST(:provider AS text),
        new.entity, new.resource, new.direction::direction, new.record_id,
        new.code, new.message, new.retryable, new.field,
        (SELECT run_id FROM sync_queue WHERE id = :operation_id)
    FROM unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:directions AS text[]), CAST(:record_ids AS text[]),
        CAST(:codes AS text[]), CAST(:messages AS text[]),
        CAST(:retryable AS boolean[]), CAST(:fields AS text[])
    ) AS new (entity, resource, direction, record_id, code, message, retryable, field)
    ON CONFLICT ON CONSTRAINT pk_record_failures DO UPDATE SET
        code = excluded.code,
        message = excluded.message,
        retryable = excluded.retryable,
        field = excluded.field,
        run_id = excluded.run_id,
        attempts = known.attempts + 1,
        last_failed_at = now()
    """
)

_PARTED = frozenset(("broken", "archived"))  # what there is to decide about is over then

_CONFLICTS = """
    SELECT entity, resource, local_id, remote_id, field, ours::text AS ours, theirs::text AS theirs,
        agreed::text AS agreed, ours_changed_at, theirs_changed_at, resolution::text AS resolution
    FROM field_conflicts AS known
    WHERE venue_id = :venue AND integration_type = :provider AND resource = :resource AND ended_at IS NULL
    """
_CONFLICTS_OF = text(_CONFLICTS + "AND local_id = ANY(CAST(:ids AS text[]))")
_OPEN_CONFLICTS = text(
    _CONFLICTS
    + """
    AND entity = :entity AND local_id > :after
    ORDER BY local_id FETCH FIRST (:limit) ROWS WITH TIES
    """
)

_END_PARTED = text(
    """
    UPDATE field_conflicts AS known SET state = 'settled', ended_at = now()
    FROM unnest(
        CAST(:entities AS text[]), CAST(:resources AS text[]),
        CAST(:local_ids AS text[]), CAST(:remote_ids AS text[])
    ) AS gone (entity, resource, local_id, remote_id)
    WHERE known.venue_id = :venue AND known.integration_type = :provider
        AND known.resource = gone.resource AND known.local_id = gone.local_id AND known.ended_at IS NULL
    """
)

_END_CONFLICTS = text(
    """
    UPDATE field_conflicts AS known
    SET state = CASE WHEN over.applied THEN known.state ELSE 'settled' END, ended_at = now()
    FROM unnest(
        CAST(:resources AS text[]), CAST(:local_ids AS text[]),
        CAST(:fields AS text[]), CAST(:applied AS boolean[])
    ) AS over (resource, local_id, field, applied)
    WHERE known.venue_id = :venue AND known.integration_type = :provider
        AND known.resource = over.resource AND known.local_id = over.local_id
        AND known.field = over.field AND known.ended_at IS NULL
    """
)

# What was decided was decided about the values it says. Of a new one everybody is told who wants to know.
_CONFLICT = text(
    """
    WITH found AS (
        INSERT INTO field_conflicts AS known (
            venue_id, integration_type, entity, resource, local_id, remote_id, field,
            ours, theirs, agreed, ours_changed_at, theirs_changed_at
        )
        SELECT CAST(:venue AS uuid), CAST(:provider AS text),
            new.entity, new.resource, new.local_id, new.remote_id, new.field,
            new.ours::json, new.theirs::json, new.agreed::json, new.ours_changed_at, new.theirs_changed_at
        FROM unnest(
            CAST(:entities AS text[]), CAST(:resources AS text[]), CAST(:local_ids AS text[]),
            CAST(:remote_ids AS text[]), CAST(:fields AS text[]), CAST(:ours AS text[]),
            CAST(:theirs AS text[]), CAST(:agreed AS text[]),
            CAST(:ours_changed AS text[]), CAST(:theirs_changed AS text[])
        ) AS new (
            entity, resource, local_id, remote_id, field, ours, theirs, agreed,
            ours_changed_at, theirs_changed_at
        )
        ON CONFLICT (venue_id, integration_type, resource, local_id, field) WHERE ended_at IS NULL
        DO UPDATE SET
            remote_id = excluded.remote_id,
            ours = CASE WHEN known.state = 'open' THEN excluded.ours ELSE known.ours END,
            theirs = CASE WHEN known.state = 'open' THEN excluded.theirs ELSE known.theirs END,
            agreed = CASE WHEN known.state = 'open' THEN excluded.agreed ELSE known.agreed END,
            ours_changed_at = excluded.ours_changed_at,
            theirs_changed_at = excluded.theirs_changed_at,
            seen_at = now()
        RETURNING id, venue_id, integration_type, entity, resource, field, local_id, xmax = 0 AS fresh
    )
    INSERT INTO outbox (venue_id, topic, payload)
    SELECT venue_id, 'conflict.detected', jsonb_build_object(
        'venue_id', venue_id, 'provider', integration_type, 'conflict_id', id,
        'entity', entity, 'resource', resource, 'field', field, 'record_id', local_id
    )
    FROM found WHERE fresh
    """
)

_POSITION = text(
    """
    SELECT position::text FROM sync_watermarks
    WHERE venue_id = :venue AND integration_type = :provider
        AND entity = :entity AND resource = :resource AND direction = :direction
    """
)

_MOVE = text(
    """
    INSERT INTO sync_watermarks (venue_id, integration_type, entity, resource, direction, position)
    VALUES (:venue, :provider, :entity, :resource, :direction, CAST(CAST(:position AS text) AS jsonb))
    ON CONFLICT ON CONSTRAINT pk_sync_watermarks DO UPDATE SET
        position = excluded.position,
        updated_at = now()
    RETURNING xmax = 0
    """
)
