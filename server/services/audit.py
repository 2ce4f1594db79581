"""Who did what: written in the transaction of what it tells of, and only ever added to.

The database itself refuses to change or delete an entry (migration 0006). Two things are let through: the
count of a refused attempt grows with the next one like it, and an erasure takes persons out of its entries.
Credentials never get in: a `Secret` is replaced, and so is a value whose name says that it is one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from server import telemetry
from server.db.models import AuditEntry, Base, FieldMappingTemplate, IntegrationConfig, MappingVersion
from server.services.paging import Page

# All that an entry shows of a row before and after. A column that isn't here never gets into the log.
PICTURED: Mapping[type[Base], tuple[str, ...]] = MappingProxyType(
    {
        IntegrationConfig: ("environment", "status", "account", "config", "template_id"),
        MappingVersion: ("version", "reason", "template_id", "mappings"),
        FieldMappingTemplate: ("name", "integration_type", "mappings"),
    }
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asked for something: a caller's id and role, where from, and in which request."""

    id: str
    ip: str | None = None
    request_id: str | None = None
    role: str | None = None


def address(host: str | None) -> str | None:
    """Return a client's address when it is one; proxies and tests may give a name."""
    try:
        return str(ipaddress.ip_address(host)) if host else None
    except ValueError:
        return None


def picture(row: Base) -> dict[str, Any]:
    """Return what an entry may show of a row, as it is now; for `before` and `after`."""
    return {name: plain(getattr(row, name)) for name in PICTURED[type(row)]}


def plain(value: Any) -> Any:
    """Return a value as JSON holds it, with secrets replaced; raises TypeError for what has no such form."""
    return msgspec.to_builtins(telemetry.redact(None, "", {"value": value})["value"])


def record(
    session: AsyncSession,
    actor: Actor,
    action: str,
    *,
    venue_id: UUID | None = None,
    provider: str | None = None,
    target: str | None = None,
    details: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry. `before` and `after` are pictures of what was changed; only what differs is kept.

    `details` are plain values: never credentials, never a record's content.
    """
    if before is not None and after is not None:
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        before, after = ({name: side.get(name) for name in names} for side in (before, after))
    pictures = {"before": before, "after": after}
    session.add(
        AuditEntry(
            venue_id=venue_id,
            integration_type=provider,
            actor=actor.id,
            role=actor.role,
            action=action,
            target=target,
            details=plain(dict(details or {})),
            ip=actor.ip,
            request_id=actor.request_id,
            **{name: plain(dict(shown)) for name, shown in pictures.items() if shown is not None},
        )
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries to read: None takes all. `action` may end in `.*`, for all of a group."""

    venue_id: UUID | None = None
    provider: str | None = None
    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    own_only: bool | None = None  # leaves out who tried from another venue

    def conditions(self) -> Sequence[ColumnElement[bool]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [_CONDITIONS[name](value) for name, value in values.items() if value is not None]


def _of_action(action: str) -> ColumnElement[bool]:
    if action.endswith(".*"):
        return AuditEntry.action.startswith(action[:-1], autoescape=True)
    return AuditEntry.action == action


_CONDITIONS: Mapping[str, Callable[[Any], ColumnElement[bool]]] = {
    "venue_id": lambda value: AuditEntry.venue_id == value,
    "provider": lambda value: AuditEntry.integration_type == value,
    "action": _of_action,
    "actor": lambda value: AuditEntry.actor == value,
    "since": lambda value: AuditEntry.created_at >= value,
    "own_only": lambda _: ~AuditEntry.details.has_key("foreign"),
    "until": lambda value: AuditEntry.created_at < value,
}


async def read(
    session: AsyncSession, wanted: Wanted, *, limit: int, offset: int = 0, after: int | None = None
) -> Page:
    """Return entries, newest first; `after` is the id of the last one of the page before."""
    matching = and_(True, *wanted.conditions())
    total = await session.scalar(select(func.count()).select_from(AuditEntry).where(matching)) or 0
    statement = select(AuditEntry).where(matching).order_by(AuditEntry.id.desc()).limit(limit + 1)
    statement = statement.offset(offset) if after is None else statement.where(AuditEntry.id < after)
    rows = (await session.scalars(statement)).all()
    more = len(rows) > limit
    return Page(rows[:limit], total, (str(rows[limit - 1].id),) if more else None)
