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
    Direction,
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

    async def count_links(self, entity: str, resource: str) -> Mapping[LinkState, int]:
        values = {**self._scope, "entity": entity, "resource": resource}
        async with self._single.connect() as connection:
            return {row.state: row.links for row in await connection.execute(_COUNT_LINKS, values)}

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
