"""All the hub has stored for a venue, as one archive: a file of JSON lines for each table, and a manifest.

It is written in batches as a maintenance run and kept in the database in parts, so any process may write the
next batch, and any may send the file. Memory is bounded whatever the venue has. Each table is as it was when
it was read. Credentials are named and never told.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import orjson
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from server import zipping
from server.context import Context
from server.db.models import (
    AuditEntry,
    ExportPart,
    FieldMappingTemplate,
    IntegrationConfig,
    MaintenanceRun,
    MaintenanceStatus,
)
from server.errors import NotFoundError, NotReadyError
from server.services import audit, maintenance, venues
from server.services.audit import Actor
from server.zipping import Member

KIND = "export"
KEPT = timedelta(days=7)  # so long an archive is there to be fetched
PART_BYTES = 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024  # of plain JSON compressed at once: what a batch holds in memory
MOST_ROWS = 5000  # in one go
AT_ONCE = 100  # rows fetched at once: one may be a megabyte
SEALED = "encrypted_"

# What isn't the venue's data or would help to pass for it: hashes, proofs of senders, the hub's own notes,
# what subscribers of the whole hub answer.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "audit_log": ("same",),
    "event_deliveries": ("answer_body",),
    "integration_webhooks": ("headers", "signature"),
    "maintenance_runs": ("position",),
    "oauth_states": ("state_hash",),
    "webhook_deliveries": ("headers",),
    "webhook_endpoints": ("token_hash",),
}
# Who tried from another venue isn't told, as it isn't when the log is read.
_ANOTHER_VENUE = {"actor": "another venue", "ip": None}


class FileEntry(msgspec.Struct, frozen=True):
    """A file in the archive, as the manifest tells of it; `bytes` is its plain length."""

    name: str
    table: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Place:
    """How far an archive is written: all a batch needs to go on."""

    table: int = 0
    after: tuple[str, ...] = ()  # the key of the last row written, as text
    rows: int = 0
    part: int = 0  # parts written; the first one of a file is kept free for its header
    first: int = 0
    member: Member | None = None
    members: tuple[Member, ...] = ()
    files: tuple[FileEntry, ...] = ()
    at: int = 0  # bytes before the file that is being written

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = msgspec.to_builtins(self)
        return written


async def start(context: Context, actor: Actor, venue_id: UUID) -> MaintenanceRun:
    """Begin an export, or join the one that is under way. Raises BeingErasedError."""
    async with context.sessions.begin() as session:
        await venues.check_open(session, venue_id)
        run, new = await maintenance.start(session, actor, KIND, venue_id=venue_id)
        if new:
            audit.record(session, actor, "export.requested", venue_id=venue_id, target=str(run.id))
    return run


async def step(context: Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    """Write the next piece of the archive: a batch of `server.services.maintenance`."""
    tables, venue_id = exported(), run.venue_id
    if venue_id is None:
        raise NotFoundError("an export is of a venue")
    progress = dict(run.progress)
    if not progress:
        progress = {"done": 0, "failed": 0, "total": await _count(session, tables, venue_id)}
    place = msgspec.convert(run.position, Place)
    budget = PIECE_BYTES
    while budget > 0 and place.table < len(tables):
        table = tables[place.table]
        name = str(table.name)  # SQLAlchemy has a kind of text of its own for it
        piece = await _read(session, table, venue_id, place.after, budget)
        budget -= max(len(piece.data), 1)
        place = await _append(session, run, _begun(place, f"{name}.jsonl"), piece)
        progress = {**progress, "step": name, "done": progress["done"] + piece.rows}
        if piece.last:
            place = await _finish_file(session, run, place, name)
    run.position, run.progress = place.to_json(), progress
    if place.table < len(tables):
        return False
    await _finish(session, run, place)
    return True


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows as JSON lines, and whether they are the last of their table."""

    data: bytes
    rows: int
    after: tuple[str, ...]
    last: bool


def exported() -> tuple[Table, ...]:
    """Return the tables an archive has a file of, by name; templates are those the venue uses."""
    templates = FieldMappingTemplate.__table__
    assert isinstance(templates, Table)
    return tuple(sorted((*venues.venue_tables(), templates), key=lambda table: table.name))


async def _count(session: AsyncSession, tables: Sequence[Table], venue_id: UUID) -> int:
    counts = [
        select(func.count()).select_from(table).where(_of_venue(table, venue_id)).scalar_subquery()
        for table in tables
    ]
    total: int = await session.scalar(select(sum(counts[1:], counts[0]))) or 0
    return total


def _of_venue(table: Table, venue_id: UUID) -> ColumnElement[bool]:
    if "venue_id" in table.c:
        return table.c.venue_id == venue_id
    used = select(IntegrationConfig.template_id).where(IntegrationConfig.venue_id == venue_id)
    return table.c.id.in_(used)


async def _read(
    session: AsyncSession, table: Table, venue_id: UUID, after: tuple[str, ...], most: int
) -> Piece:
    lines: list[bytes] = []
    size = 0
    rows = await session.stream(
        _rows(table, venue_id, after), execution_options={"yield_per": AT_ONCE, "stream_results": True}
    )
    try:
        async for line, *key in rows:
            lines.append(line.encode() + b"\n")
            after, size = tuple(key), size + len(lines[-1])
            if size >= most:
                break
    finally:
        await rows.close()
    return Piece(b"".join(lines), len(lines), after, last=size < most and len(lines) < MOST_ROWS)


def _rows(table: Table, venue_id: UUID, after: tuple[str, ...]) -> Select[*tuple[Any, ...]]:
    """Select the next rows behind a key: each as the text of a JSON object, and its own key."""
    keys = list(table.primary_key.columns)
    typed = [cast(literal(part, Text), key.type) for part, key in zip(after, keys, strict=bool(after))]
    behind = tuple_(*keys) > tuple_(*typed) if after else true()
    # Found by their keys first: else all of the venue's rows would be sorted, as long as they are, each time.
    found = and_(_of_venue(table, venue_id), behind)
    some = select(*keys).where(found).order_by(*keys).limit(MOST_ROWS).cte("some")
    return (
        select(cast(_as_json(table), Text), *(cast(key, Text) for key in keys))
        .where(*(key == some.c[key.name] for key in keys))
        .order_by(*keys)
    )


def _as_json(table: Table) -> ColumnElement[Any]:
    sealed = [column for column in table.c if column.name.startswith(SEALED)]
    hidden = [*LEFT_OUT.get(table.name, ()), *(column.name for column in sealed)]
    # As the database writes it: numbers of any length and times stay exact.
    row: ColumnElement[Any] = func.to_jsonb(table.table_valued()).op("-")(literal(hidden, ARRAY(Text)))
    if table.name == AuditEntry.__tablename__:
        row = case(
            (AuditEntry.details.has_key("foreign"), row.op("||")(literal(_ANOTHER_VENUE, JSONB))), else_=row
        )
    named: list[Any] = []
    for column in sealed:
        named += [column.name.removeprefix(SEALED), case((column.is_not(None), "stored, and left out here"))]
    return row.op("||")(func.jsonb_build_object(*named)) if named else row


# --- files and parts


def _begun(place: Place, name: str) -> Place:
    if place.member is not None:
        return place
    return replace(place, member=Member(name, place.at), first=place.part, part=place.part + 1, rows=0)


async def _append(session: AsyncSession, run: MaintenanceRun, place: Place, piece: Piece) -> Place:
    """Add rows to the file that is being written."""
    if place.member is None:
        raise ValueError("no file is being written")
    member, data = place.member, piece.data
    packed = await asyncio.to_thread(zipping.squeeze, data) if data else b""
    packed += zipping.END if piece.last else b""
    member = replace(
        member,
        crc=zlib.crc32(data, member.crc),
        size=member.size + len(data),
        compressed=member.compressed + len(packed),
    )
    part = await _keep(session, run, place.part, packed)
    return replace(place, member=member, part=part, after=piece.after, rows=place.rows + piece.rows)


async def _keep(session: AsyncSession, run: MaintenanceRun, part: int, data: bytes) -> int:
    """Keep bytes as the next parts; returns the number of the one to come."""
    for start in range(0, len(data), PART_BYTES):
        values = {"run_id": run.id, "number": part, "data": data[start : start + PART_BYTES]}
        await session.execute(insert(ExportPart).values(values))
        part += 1
    return part


async def _finish_file(session: AsyncSession, run: MaintenanceRun, place: Place, table: str) -> Place:
    """Put the header before the file that was written, and go on to the next."""
    if place.member is None:
        raise ValueError("no file is being written")
    member = place.member
    header = zipping.header(member, run.created_at)
    await _keep(session, run, place.first, header)
    content = range(place.first + 1, place.part)
    digest = await _digest(session, run.id, content, zlib.decompressobj(-zlib.MAX_WBITS))
    return replace(
        place,
        table=place.table + 1,
        after=(),
        member=None,
        members=(*place.members, member),
        files=(*place.files, FileEntry(member.name, table, place.rows, member.size, digest)),
        at=place.at + len(header) + member.compressed,
    )


async def _finish(session: AsyncSession, run: MaintenanceRun, place: Place) -> None:
    """Write the manifest and the archive's directory, and tell what came of it."""
    rows = sum(file.rows for file in place.files)
    manifest = {
        "format": 1,
        "venue_id": str(run.venue_id),
        "run_id": str(run.id),
        "requested_at": run.created_at.isoformat(),
        "rows": rows,
        "files": [msgspec.to_builtins(file) for file in place.files],
        "left_out": {table: list(names) for table, names in LEFT_OUT.items()},
        "about": "A line is a row of a table. Credentials are stored encrypted and only named here. "
        "Records of the platform itself are the platform's to export.",
    }
    data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
    place = await _append(session, run, _begun(place, "manifest.json"), Piece(data, 1, (), last=True))
    place = await _finish_file(session, run, place, "")
    directory = zipping.directory(place.members, place.at, run.created_at)
    parts = await _keep(session, run, place.part, directory)
    run.result = {
        "bytes": place.at + len(directory),
        "parts": parts,
        "files": len(place.members),
        "rows": rows,
        "sha256": await _digest(session, run.id, range(parts)),
        "expires_at": (datetime.now(UTC) + KEPT).isoformat(),
    }
    run.position = {}


async def _digest(
    session: AsyncSession, run_id: UUID, parts: range, unpacker: zlib._Decompress | None = None
) -> str:
    """Return the SHA-256 of parts as they are, or of what they hold when there is an `unpacker`."""
    digest = hashlib.sha256()
    for number in parts:
        data = await session.scalar(select(ExportPart.data).filter_by(run_id=run_id, number=number))
        if data is None:
            raise NotFoundError("a part of the archive is gone")
        await asyncio.to_thread(_feed, digest, data, unpacker)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, data: bytes, unpacker: zlib._Decompress | None) -> None:
    if unpacker is None:
        digest.update(data)
        return
    while data:  # a megabyte may hold a thousand
        digest.update(unpacker.decompress(data, PIECE_BYTES))
        data = unpacker.unconsumed_tail


# --- fetch it, and forget it


@dataclass(frozen=True, slots=True)
class Archive:
    """A finished archive: its length in bytes, its parts, and the SHA-256 of the whole."""

    run_id: UUID
    bytes: int
    parts: int
    sha256: str


async def open_archive(context: Context, actor: Actor, venue_id: UUID, run_id: UUID) -> Archive:
    """Return a finished archive, and note who fetched it.

    Raises NotFoundError when there is none (any more), NotReadyError while it is being written.
    """
    async with context.sessions.begin() as session:
        run = await find(session, KIND, venue_id, run_id)
        if run.status in maintenance.UNFINISHED:
            raise NotReadyError("this export isn't finished yet")
        there = select(ExportPart.number).filter_by(run_id=run_id).limit(1)
        if run.status is not MaintenanceStatus.COMPLETED or await session.scalar(there) is None:
            raise NotFoundError("there is no archive of this export, or none any more: start another")
        audit.record(session, actor, "export.downloaded", venue_id=venue_id, target=str(run_id))
        result = run.result or {}
        return Archive(run_id, result["bytes"], result["parts"], result["sha256"])


async def read_parts(context: Context, archive: Archive) -> AsyncIterator[bytes]:
    """Yield the archive. No connection is held while whoever reads it is slow."""
    for number in range(archive.parts):
        async with context.sessions() as session:
            data = await session.scalar(
                select(ExportPart.data).filter_by(run_id=archive.run_id, number=number)
            )
        if data is None:
            raise NotFoundError("the archive was deleted while it was being read")
        yield data


async def find(session: AsyncSession, kind: str, venue_id: UUID, run_id: UUID) -> MaintenanceRun:
    """Return a venue's run of this kind; raises NotFoundError."""
    run = await session.scalar(select(MaintenanceRun).filter_by(id=run_id, kind=kind, venue_id=venue_id))
    if run is None:
        raise NotFoundError("there is no such run")
    return run


async def forget_archives(session: AsyncSession) -> int:
    """Delete the parts of archives whose time is over or that came to nothing; returns how many parts.

    Which exports there were is still known.
    """
    run = MaintenanceRun
    ended = select(run.id).where(
        run.kind == KIND,
        or_(
            run.status.in_((MaintenanceStatus.FAILED, MaintenanceStatus.STOPPED)),
            run.completed_at < func.now() - KEPT,
        ),
    )
    gone = await session.scalars(
        delete(ExportPart).where(ExportPart.run_id.in_(ended)).returning(ExportPart.number)
    )
    return len(gone.all())
