"""Put everything sealed under the vault's current key, a batch at a time, while all else goes on.

A batch reads values, has their data keys wrapped anew, and only then locks the rows, for as long as it takes
to write them: those that somebody else holds, or has changed meanwhile, are left for the next round. Rounds
go over all sealed columns until nothing is left under another key, or only what can't be opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Boolean, ColumnElement, func, inspect, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import flag_modified

from server import credentials, vault
from server.context import Context
from server.db.models import (
    Base,
    EventSubscriber,
    IdempotencyKey,
    MaintenanceRun,
    OAuthState,
    OAuthToken,
    VenueApiKey,
    WebhookEndpoint,
)
from server.errors import KeysUnavailableError, VaultError
from server.services import audit, endpoints, idempotency, maintenance, oauth, subscribers
from server.services.audit import Actor
from server.vault import KeyProvider

log = structlog.get_logger(__name__)

KIND = "rotation"
BATCH = 200  # values
AT_ONCE = 8  # calls to whoever keeps the keys
PAUSE = timedelta(seconds=1)  # before a round after one that moved nothing: rows are held by somebody
MOST_NAMED = 100  # values that can't be opened; all are counted


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of sealed values; `within` is the key of the value when the column holds a JSON object."""

    table: type[Base]
    column: str
    place: Callable[[Any], vault.Context]
    within: str | None = None

    @property
    def name(self) -> str:
        return f"{self.table.__tablename__}.{self.column}"

    @property
    def text(self) -> ColumnElement[str]:
        column = inspect(self.table).columns[self.column]
        return column if self.within is None else column[self.within].astext

    @property
    def key(self) -> Sequence[ColumnElement[Any]]:
        return list(inspect(self.table).primary_key)

    def read(self, row: Base) -> str | None:
        value: Any = getattr(row, self.column)
        text: str | None = value if self.within is None or value is None else value.get(self.within)
        return text

    def write(self, row: Base, sealed: str) -> None:
        if self.within is None:
            setattr(row, self.column, sealed)
        else:
            getattr(row, self.column)[self.within] = sealed
            flag_modified(row, self.column)
        if isinstance(row, OAuthToken):
            row.encryption_key_version += 1


def _credential(table: type[OAuthToken] | type[VenueApiKey], column: str) -> SealedColumn:
    return SealedColumn(table, column, lambda row: credentials.place(row, column))


# Everything the vault sealed that is stored. A test compares it with the tables.
SEALED: tuple[SealedColumn, ...] = (
    _credential(OAuthToken, "encrypted_access_token"),
    _credential(OAuthToken, "encrypted_refresh_token"),
    _credential(VenueApiKey, "encrypted_api_key"),
    _credential(VenueApiKey, "encrypted_api_secret"),
    SealedColumn(OAuthState, "encrypted_verifier", oauth.place),
    SealedColumn(WebhookEndpoint, "encrypted_token", lambda row: endpoints.place(row, "encrypted_token")),
    SealedColumn(WebhookEndpoint, "encrypted_secrets", lambda row: endpoints.place(row, "encrypted_secrets")),
    SealedColumn(EventSubscriber, "encrypted_secret", lambda row: subscribers.place(row, "encrypted_secret")),
    SealedColumn(
        EventSubscriber,
        "encrypted_previous_secret",
        lambda row: subscribers.place(row, "encrypted_previous_secret"),
    ),
    SealedColumn(
        IdempotencyKey, "response", lambda row: idempotency.place(row.caller, row.key), within="sealed"
    ),
)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How much is sealed under a key; `known` says that it could be opened here."""

    key_id: str | None  # None: what is there isn't a sealed value
    values: Mapping[str, int]  # by column
    known: bool
    current: bool

    @property
    def count(self) -> int:
        return sum(self.values.values())

    @property
    def removable(self) -> bool:
        """Whether this key is needed for nothing any more."""
        return self.key_id is not None and self.known and not self.current and self.count == 0

    @property
    def remark(self) -> str:
        """What an operator should know of it, in a few words."""
        if self.key_id is None:
            return "can't be opened: these aren't sealed values"
        if not self.known:
            return "can't be opened: this key isn't here"
        if self.current:
            return "seals what is new"
        return "needed for nothing: may be removed" if self.removable else "opens what is left: rotate"


async def usage(session: AsyncSession, keys: KeyProvider) -> list[KeyUse]:
    """Count what is sealed by key, the current one first; keys that seal nothing are there too.

    Raises KeysUnavailableError when the service that keeps the current key doesn't answer.
    """
    current = await keys.current()
    found: dict[str | None, dict[str, int]] = {key_id: {} for key_id in (current, *keys.ids)}
    for sealed in SEALED:
        text = sealed.text
        key_id = func.substring(text, rf"^{vault.FORMAT}\.([^.]+)\.")
        counted = await session.execute(
            select(key_id, func.count()).where(text.is_not(None)).group_by(literal_column("1"))
        )
        for name, count in counted:
            found.setdefault(name, {})[sealed.name] = count
    return [
        KeyUse(name, values, name is not None and keys.may_open(name), name == current)
        for name, values in found.items()
    ]


async def request(context: Context, actor: Actor) -> tuple[MaintenanceRun, bool]:
    """Start a rotation, or join the one that is under way; returns it, and whether it is new."""
    async with context.sessions.begin() as session:
        run, new = await maintenance.start(session, actor, KIND)
        audit.record(
            session, actor, "vault.rotation_requested", target=str(run.id), details={"joined": not new}
        )
    return run, new


async def last(session: AsyncSession) -> MaintenanceRun | None:
    """Return the rotation that was started last."""
    runs = select(MaintenanceRun).filter_by(kind=KIND).order_by(MaintenanceRun.created_at.desc()).limit(1)
    found: MaintenanceRun | None = await session.scalar(runs)
    return found


async def step(context: Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    """Do one batch of a rotation; see `server.services.maintenance`."""
    target = await context.vault.keys.current()
    if run.position.get("target") != target:  # the beginning, or the current key is another one since
        run.position = _first_round(target)
        total = await _left(session, target)
        run.progress = {"step": SEALED[0].name, "done": 0, "total": total, "failed": 0}
    position, progress = dict(run.position), dict(run.progress)
    sealed = SEALED[position["column"]]
    batch = await _batch(context, session, sealed, target, position["after"])
    position["moved"] += batch.moved
    position["skipped"] += batch.skipped
    position["failed"] += len(batch.failed)
    position["named"] = [*position["named"], *batch.failed][:MOST_NAMED]
    position["after"] = batch.after
    if batch.after is None:
        position["column"] += 1
    progress["done"] += batch.moved
    progress["total"] = max(progress["total"], progress["done"])
    progress["failed"] = position["failed"]
    over = False
    if position["column"] == len(SEALED):
        left = await _left(session, target)
        over = position["skipped"] == 0 and left <= position["failed"]
        if over:
            _conclude(session, run, position, progress["done"])
        else:
            if not position["moved"]:
                run.next_attempt_at = func.clock_timestamp() + PAUSE
            position = _first_round(target)
            progress["failed"] = 0
        progress["total"] = progress["done"] + left
    progress["step"] = SEALED[min(position["column"], len(SEALED) - 1)].name
    run.position, run.progress = position, progress
    return over


@dataclass(frozen=True, slots=True)
class _Batch:
    moved: int
    skipped: int  # held or changed by somebody else
    failed: Sequence[dict[str, str]]
    after: list[str] | None  # the key of the last row; None when there are no more


async def _batch(
    context: Context, session: AsyncSession, sealed: SealedColumn, target: str, after: list[str] | None
) -> _Batch:
    rows = await _read(session, sealed, target, after)
    if not rows:
        return _Batch(0, 0, (), None)
    turns = asyncio.Semaphore(AT_ONCE)

    async def rotated(row: Base) -> str | VaultError:
        async with turns:
            try:
                return await context.vault.rotate(sealed.read(row) or "", sealed.place(row))
            except VaultError as error:
                return error

    before = {_identity(row): sealed.read(row) for row in rows}
    answers = dict(zip(before, await asyncio.gather(*map(rotated, rows)), strict=True))
    failed = []
    for identity, answer in answers.items():
        if isinstance(answer, KeysUnavailableError):
            raise answer
        if isinstance(answer, VaultError):
            name = "/".join(identity)
            failed.append({"column": sealed.name, "row": name, "error": answer.message})
            await log.aerror("rotation.value_not_opened", column=sealed.name, row=name, error=answer.message)
    fresh = {identity: answer for identity, answer in answers.items() if isinstance(answer, str)}
    moved = 0
    for row in await _lock(session, sealed, [row for row in rows if _identity(row) in fresh]):
        identity = _identity(row)
        if sealed.read(row) == before[identity]:  # else it was sealed anew meanwhile
            sealed.write(row, fresh[identity])
            moved += 1
    await session.flush()
    return _Batch(moved, len(fresh) - moved, failed, list(_identity(rows[-1])))


async def _read(
    session: AsyncSession, sealed: SealedColumn, target: str, after: list[str] | None
) -> Sequence[Base]:
    """Read the next rows whose value is under another key; nothing is locked."""
    statement = select(sealed.table).where(_elsewhere(sealed, target)).order_by(*sealed.key).limit(BATCH)
    if after is not None:
        values = [column.type.python_type(value) for column, value in zip(sealed.key, after, strict=True)]
        statement = statement.where(tuple_(*sealed.key) > tuple_(*values))
    return (await session.scalars(statement.execution_options(populate_existing=True))).all()


async def _lock(session: AsyncSession, sealed: SealedColumn, rows: Sequence[Base]) -> Sequence[Base]:
    """Lock those of the rows that nobody else holds, and read them as they are now."""
    keys = [inspect(row).identity for row in rows]
    if not keys:
        return []
    statement = (
        select(sealed.table)
        .where(tuple_(*sealed.key).in_(keys))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return (await session.scalars(statement)).all()


def _identity(row: Base) -> tuple[str, ...]:
    return tuple(str(getattr(row, column.name)) for column in inspect(type(row)).primary_key)


def _elsewhere(sealed: SealedColumn, target: str) -> ColumnElement[bool]:
    current = func.starts_with(sealed.text, f"{vault.FORMAT}.{target}.", type_=Boolean())
    return sealed.text.is_not(None) & ~current


async def _left(session: AsyncSession, target: str) -> int:
    """Count the values under another key."""
    counts = [
        await session.scalar(select(func.count()).select_from(sealed.table).where(_elsewhere(sealed, target)))
        for sealed in SEALED
    ]
    return sum(count or 0 for count in counts)


def _first_round(target: str) -> dict[str, Any]:
    return {"target": target, "column": 0, "after": None, "moved": 0, "skipped": 0, "failed": 0, "named": []}


def _conclude(session: AsyncSession, run: MaintenanceRun, position: Mapping[str, Any], done: int) -> None:
    failed = position["failed"]
    run.result = {
        "key": position["target"],
        "moved": done,
        "failed": failed,
        "values": position["named"],
    }
    if failed:
        values = "a value" if failed == 1 else f"{failed} values"
        run.error = f"{values} can't be opened: connect those integrations again, or give their key back"
    audit.record(
        session,
        Actor(run.requested_by, str(run.requested_ip) if run.requested_ip else None),
        "vault.rotated",
        target=str(run.id),
        details={"key": position["target"], "moved": done, "failed": failed},
    )
