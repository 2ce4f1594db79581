"""Fields that both sides changed and a person has to decide about: listed, and decided.

A decision is written down and an operation queued for its record, which carries it out: what was decided is
written to whichever side differs, and is what both agree on from then on. It holds for the values it was
made about. If one of them has changed until then, the conflict is open again with the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

import structlog
from sqlalchemy import ColumnElement, and_, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError
from engine.fields import Field
from engine.mapping import MappingScope
from engine.ports import Decision, Record
from engine.reconcile import fingerprint, moment, plain_value, same
from server.db.models import (
    ConflictState,
    FieldConflict,
    IntegrationConfig,
    Operation,
    OperationType,
    Priority,
)
from server.errors import (
    ConflictError,
    Detail,
    InvalidRequestError,
    NotConnectedError,
    NotFoundError,
)
from server.host import SqlHost
from server.services import audit, mappings, operations
from server.services.audit import Actor
from server.services.integrations import get_integration
from server.services.operations import WAITING, Due, Wanted
from server.services.paging import Page
from server.services.runs import RUNNABLE
from server.worker import relay

if TYPE_CHECKING:
    from server.context import Context

Side = Literal["platform", "provider"]
MOST_RESOLVED = 500  # in one request
LARGEST = 10**15  # of a person's own number
MOST_DECIMALS = 12

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which conflicts of an integration are meant: those that fit all that is given; None takes all."""

    venue_id: UUID
    provider: str
    entity: str | None = None
    field: str | None = None
    record_id: str | None = None  # of the platform's
    state: ConflictState | None = None

    def conditions(self) -> ColumnElement[bool]:
        equal = {
            FieldConflict.entity: self.entity,
            FieldConflict.field: self.field,
            FieldConflict.local_id: self.record_id,
            FieldConflict.state: self.state,
        }
        return and_(
            FieldConflict.venue_id == self.venue_id,
            FieldConflict.integration_type == self.provider,
            *(column == value for column, value in equal.items() if value is not None),
        )


@dataclass(frozen=True, slots=True)
class Resolved:
    """What fitted a filter: conflicts that were open, those decided, and those left for another request."""

    matched: int
    resolved: int

    @property
    def left(self) -> int:
        return max(self.matched - self.resolved, 0)


# --- looking


async def listing(
    session: AsyncSession,
    wanted: Filter,
    *,
    limit: int,
    offset: int = 0,
    after: tuple[datetime, UUID] | None = None,
) -> Page:
    """Return conflicts, the newest first; `rows` are FieldConflicts."""
    await get_integration(session, wanted.venue_id, wanted.provider)
    fitting = wanted.conditions()
    total = await session.scalar(select(func.count()).select_from(FieldConflict).where(fitting)) or 0
    place = (FieldConflict.detected_at, FieldConflict.id)
    statement = select(FieldConflict).where(fitting).order_by(*(part.desc() for part in place))
    statement = (
        statement.offset(offset) if after is None else statement.where(tuple_(*place) < tuple_(*after))
    )
    rows = (await session.scalars(statement.limit(limit + 1))).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(rows[:limit], total, (last.detected_at.isoformat(), str(last.id)) if last else None)


async def read(session: AsyncSession, venue_id: UUID, provider: str, conflict_id: UUID) -> FieldConflict:
    """Return a conflict; raises NotFoundError and IntegrationNotFoundError."""
    await get_integration(session, venue_id, provider)
    return await _row(session, venue_id, provider, conflict_id)


async def _row(
    session: AsyncSession, venue_id: UUID, provider: str, conflict_id: UUID, *, lock: bool = False
) -> FieldConflict:
    statement = select(FieldConflict).filter_by(id=conflict_id, venue_id=venue_id, integration_type=provider)
    row = await session.scalar(
        (statement.with_for_update() if lock else statement).execution_options(populate_existing=lock)
    )
    if row is None:
        raise NotFoundError("there is no such conflict")
    return row


def version_of(row: FieldConflict) -> str:
    """Return what stands for the values that a conflict is about; it changes with them."""
    return f"{fingerprint(row.ours)[:12]}-{fingerprint(row.theirs)[:12]}"


def changed_last(row: FieldConflict) -> Side | None:
    """Return which side's record changed last, `platform` or `provider`, as far as both say when."""
    ours, theirs = moment(row.ours_changed_at), moment(row.theirs_changed_at)
    if ours is None or theirs is None or ours == theirs:
        return None
    return "provider" if theirs > ours else "platform"


# --- deciding


@dataclass(frozen=True, slots=True)
class _Now:
    """What the two sides have, as far as they could be asked."""

    ours: Any
    theirs: Any


async def resolve(
    context: Context,
    actor: Actor,
    *,
    venue_id: UUID,
    provider: str,
    conflict_id: UUID,
    decision: Decision,
    version: str | None = None,
) -> FieldConflict:
    """Decide about one conflict, and queue its record; returns it as it is then.

    `version` is that of the values the caller saw; None takes whatever they are. Raises ConflictError when it
    was decided or settled before, or a side has changed since, naming which; NotFoundError,
    InvalidRequestError for a value that isn't of the field's type, NotConnectedError, QueueFullError.
    """
    async with context.sessions() as session:
        integration = await _connected(session, venue_id, provider)
        row = await _row(session, venue_id, provider, conflict_id)
    _require_open(row)
    field = _field_of(context, row)
    if decision.take == "value":
        decision = replace(decision, value=value_of(field, decision.value))
    now = await _look(context, integration, row)
    async with context.sessions.begin() as session:
        row = await _row(session, venue_id, provider, conflict_id, lock=True)
        _require_open(row)
        stale = [*_unseen(row, version), *_changes(row, now, field.type)]
        if stale:
            row.ours, row.theirs = now.ours, now.theirs  # so that who looks again sees them
        else:
            row.state, row.resolved_by, row.resolved_at = "resolved", actor.id, func.now()
            row.resolution = {"take": decision.take} | (
                {"value": decision.value} if decision.take == "value" else {}
            )
            due = await _queue(session, context, actor, integration, venue_id, [row])
            audit.record(
                session,
                actor,
                "conflict.resolved",
                venue_id=venue_id,
                provider=provider,
                target=str(row.id),
                details={**_named(row), "take": decision.take},
            )
        await session.flush()
        await session.refresh(row)
    if stale:
        sides = " and ".join(dict.fromkeys(each.field for each in stale))
        raise ConflictError(f"{sides} changed since: look at it again", stale)
    await relay.announce(context.redis, due)
    return row


async def resolve_many(
    context: Context, actor: Actor, wanted: Filter, take: Side, *, limit: int, dry_run: bool = False
) -> Resolved:
    """Decide about all open conflicts that fit, the oldest first and `limit` at most; a dry run only counts.

    Asking again goes on with what is left. Raises NotConnectedError and QueueFullError.
    """
    fitting = replace(wanted, state="open").conditions()
    async with context.sessions.begin() as session:
        integration = await _connected(session, wanted.venue_id, wanted.provider)
        matched = await session.scalar(select(func.count()).select_from(FieldConflict).where(fitting)) or 0
        if dry_run:
            return Resolved(matched, min(matched, limit))
        some = (
            select(FieldConflict.id)
            .where(fitting)
            .order_by(FieldConflict.detected_at, FieldConflict.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = (
            await session.scalars(
                update(FieldConflict)
                .where(FieldConflict.id.in_(some))
                .values(
                    state="resolved",
                    resolution={"take": take},
                    resolved_by=actor.id,
                    resolved_at=func.now(),
                )
                .returning(FieldConflict)
                .execution_options(synchronize_session=False)
            )
        ).all()
        due = await _queue(session, context, actor, integration, wanted.venue_id, rows) if rows else []
        narrowed = {"entity": wanted.entity, "field": wanted.field, "record_id": wanted.record_id}
        audit.record(
            session,
            actor,
            "conflicts.resolved",
            venue_id=wanted.venue_id,
            provider=wanted.provider,
            details={
                "take": take,
                "conflicts": len(rows),
                "filter": {name: value for name, value in narrowed.items() if value is not None},
            },
        )
    await relay.announce(context.redis, due)
    return Resolved(matched, len(rows))


async def _connected(session: AsyncSession, venue_id: UUID, provider: str) -> IntegrationConfig:
    integration = await get_integration(session, venue_id, provider)
    if integration.status not in RUNNABLE:
        raise NotConnectedError(f"`{provider}` is {integration.status.value}: connect it first")
    return integration


def _require_open(row: FieldConflict) -> None:
    if row.state != "open":
        ended = "was decided already" if row.state == "resolved" else "was settled: both sides went on"
        raise ConflictError(f"this conflict {ended}")


def _named(row: FieldConflict) -> dict[str, str]:
    return {"entity": row.entity, "resource": row.resource, "field": row.field, "record_id": row.local_id}


def _field_of(context: Context, row: FieldConflict) -> Field:
    entity = context.catalog.platform.entities.get(row.entity)
    field = entity.fields.get(row.field) if entity is not None else None
    if field is None:
        raise ConflictError(f"the platform's `{row.entity}` has no field `{row.field}` any more")
    return field


async def _look(context: Context, integration: IntegrationConfig, row: FieldConflict) -> _Now:
    """Return what the two sides have now; what can't be told is as it was: the sync looks again."""
    host = SqlHost(context.platform, context.catalog.platform, str(row.venue_id))
    ours = (await host.fetch(row.entity, [row.local_id])).get(row.local_id)
    if ours is None:
        raise ConflictError(f"the platform's `{row.entity}` is gone")
    theirs = await _theirs(context, integration, row, await host.venue())
    return _Now(plain_value(ours.get(row.field)), theirs)


async def _theirs(context: Context, integration: IntegrationConfig, row: FieldConflict, venue: Record) -> Any:
    compiled = mappings.compiled(context.catalog, integration)
    found = [
        each
        for each in compiled
        if (each.entity, each.resource) == (row.entity, row.resource) and row.field in each.places
    ]
    if not found:
        raise ConflictError(f"`{row.field}` isn't mapped to `{row.resource}` any more")
    connector = context.catalog.connector(row.integration_type)
    resource = connector.resources[row.resource]
    if resource.get is None and resource.get_many is None:
        return row.theirs
    client = context.client(connector, context.credentials(row.venue_id, row.integration_type))
    try:
        read = (await client.look_up(row.resource, [row.remote_id])).get(row.remote_id)
        if read is None or read.deleted:
            return row.theirs
        pulled = found[0].pull(read.record, MappingScope(venue=venue))
    except HubError as error:
        await log.awarning("conflict.not_looked_at", provider=row.integration_type, error=error.code)
        return row.theirs
    return plain_value(pulled.get(row.field, row.theirs))


def _unseen(row: FieldConflict, version: str | None) -> list[Detail]:
    """Return what is other than in the version that a caller saw."""
    if version is None:
        return []
    seen, now = version.partition("-"), version_of(row).partition("-")
    sides = [("ours", seen[0] != now[0]), ("theirs", seen[2] != now[2])]
    return [
        Detail(side, f"{_WHOSE[side]} value isn't the one you saw any more") for side, other in sides if other
    ]


def _changes(row: FieldConflict, now: _Now, kind: str) -> list[Detail]:
    pairs = (("ours", row.ours, now.ours), ("theirs", row.theirs, now.theirs))
    return [
        Detail(side, f"{_WHOSE[side]} value has changed since the last sync")
        for side, known, there in pairs
        if not same(known, there, kind)
    ]


_WHOSE: Mapping[str, str] = {"ours": "the platform's", "theirs": "the provider's"}


async def _queue(
    session: AsyncSession,
    context: Context,
    actor: Actor,
    integration: IntegrationConfig,
    venue_id: UUID,
    rows: Sequence[FieldConflict],
) -> list[Due]:
    """Queue the records of conflicts in the high lane, each once: one that waits already is enough."""
    provider = integration.integration_type
    await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
    resource_of = Operation.payload["resource"].as_string()
    waiting = await session.execute(
        select(Operation.entity_type, resource_of, Operation.entity_id).where(
            Operation.venue_id == venue_id,
            Operation.integration_type == provider,
            Operation.operation_type == OperationType.UPDATE,
            Operation.status.in_(WAITING),
            Operation.payload["trigger"].as_string() == TRIGGER,
        )
    )
    known = {tuple(row) for row in waiting}
    records = {(row.entity, row.resource, row.local_id): row for row in rows}
    wanted = [
        Wanted(
            venue_id=venue_id,
            provider=provider,
            operation_type=OperationType.UPDATE,
            entity_type=entity,
            entity_id=local_id,
            payload={
                "trigger": TRIGGER,
                "resource": resource,
                "direction": "bidirectional",  # also where syncs go one way: a person asked for it
                "remoteId": row.remote_id,
            },
            priority=Priority.HIGH,
            run_id=uuid4(),
            correlation_id=actor.request_id,
        )
        for (entity, resource, local_id), row in records.items()
        if (entity, resource, local_id) not in known
    ]
    return await operations.enqueue_many(session, wanted) if wanted else []


TRIGGER = "conflict_resolved"


# --- values


def value_of(field: Field, value: Any) -> Any:
    """Return a person's own value as a conflict keeps it: fractions as text.

    Raises InvalidRequestError for one that the field can't hold.
    """
    if value is None or value == "":
        if field.required:
            raise _unfit(field, "a record can't do without it")
        return value if field.type in _TEXTS else None
    if field.type in ("list", "object"):
        raise _unfit(field, f"it takes {_WORDS[field.type]}: take one of the sides'")
    if field.type in _TEXTS and not isinstance(value, str):
        raise _unfit(field, "it takes a text")
    if field.type in _KINDS and (
        not isinstance(value, _KINDS[field.type]) or isinstance(value, bool) != (field.type == "boolean")
    ):
        raise _unfit(field, f"it takes {_WORDS[field.type]}")
    if field.type in ("decimal", "money"):
        return _number(field, value)
    if field.type in ("timestamp", "date") and moment(value) is None:
        raise _unfit(field, "it takes a time such as `2026-01-15T11:00:00Z`")
    if field.one_of and value not in field.one_of:
        raise _unfit(field, f"it is one of {', '.join(f'`{each}`' for each in field.one_of)}")
    if field.at_most is not None and isinstance(value, str) and len(value) > field.at_most:
        raise _unfit(field, f"it takes at most {field.at_most} characters")
    return plain_value(value)


_TEXTS = frozenset(("text", "id", "email", "phone", "url", "currency", "timestamp", "date"))
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "boolean": bool,
    "decimal": (int, float, str),
    "money": (int, float, str),
}
_WORDS: Mapping[str, str] = {
    "integer": "a whole number",
    "boolean": "`true` or `false`",
    "list": "a list",
    "object": "an object",
    "decimal": "a number",
    "money": "an amount",
}


def _number(field: Field, value: Any) -> str:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise _unfit(field, f"it takes {_WORDS[field.type]}")
    # Written out, a short text such as `1e999999` would be a million digits.
    if not -LARGEST < number < LARGEST or number != round(number, MOST_DECIMALS):
        raise _unfit(field, f"its size is below {LARGEST}, and it has at most {MOST_DECIMALS} decimals")
    return str(plain_value(number))


def _unfit(field: Field, why: str) -> InvalidRequestError:
    message = f"`{field.path}` can't have this value: {why}"
    return InvalidRequestError(message, [Detail("value", why)])
