"""Records that can't be synced for now, each with what is wrong: listed, and tried again one by one.

Every sync tries those again that may go through by themselves; the others wait until somebody mended what is
wrong and asks for it here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from server.db.models import Direction, Operation, OperationType, Priority, RecordFailure
from server.errors import NotConnectedError, NotFoundError
from server.services import audit, operations
from server.services.audit import Actor
from server.services.integrations import get_integration, tell_workers
from server.services.operations import WAITING
from server.services.paging import Page
from server.services.runs import RUNNABLE

if TYPE_CHECKING:
    from server.context import Context


@dataclass(frozen=True, slots=True)
class RecordKey:
    """One record on one way of one mapping; `record_id` is ours on a push and theirs on a pull."""

    entity: str
    resource: str
    direction: Direction
    record_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A record that failed, and how often it did in a row."""

    key: RecordKey
    code: str
    message: str
    field: str | None
    retryable: bool  # whether syncs try it again by themselves
    attempts: int
    run_id: UUID | None
    first_failed_at: datetime
    last_failed_at: datetime


async def listing(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    *,
    entity: str | None = None,
    code: str | None = None,
    limit: int,
    offset: int,
    after: tuple[datetime, str, str, str, str] | None,
) -> Page:
    """Return failed records, those that failed last first; `rows` are `Failed`."""
    await get_integration(session, venue_id, provider)
    failed = RecordFailure
    key = (failed.entity, failed.resource, failed.direction, failed.record_id)
    wanted = select(failed).filter_by(venue_id=venue_id, integration_type=provider)
    if entity is not None:
        wanted = wanted.where(failed.entity == entity)
    if code is not None:
        wanted = wanted.where(failed.code == code)
    total = await session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    statement = wanted.order_by(failed.last_failed_at.desc(), *(part.desc() for part in key)).limit(limit + 1)
    if after is not None:
        moment, *rest = after
        rest[2] = Direction(rest[2])
        statement = statement.where(tuple_(failed.last_failed_at, *key) < tuple_(moment, *rest))
    else:
        statement = statement.offset(offset)
    found = [_told(row) for row in await session.scalars(statement)]
    last = found[limit - 1] if len(found) > limit else None
    return Page(found[:limit], total, _next_key(last) if last else None)


def _told(row: RecordFailure) -> Failed:
    return Failed(
        RecordKey(row.entity, row.resource, row.direction, row.record_id),
        row.code,
        row.message,
        row.field,
        row.retryable,
        row.attempts,
        row.run_id,
        row.first_failed_at,
        row.last_failed_at,
    )


def _next_key(last: Failed) -> tuple[str, ...]:
    key = last.key
    return (last.last_failed_at.isoformat(), key.entity, key.resource, key.direction.value, key.record_id)


async def retry(
    context: Context, actor: Actor, *, venue_id: UUID, provider: str, key: RecordKey
) -> Operation:
    """Queue one failed record, in the high lane; while it waits, asking again returns the same operation.

    Raises NotFoundError when the record isn't among those that failed, and NotConnectedError.
    """
    async with context.sessions.begin() as session:
        integration = await get_integration(session, venue_id, provider)
        if integration.status not in RUNNABLE:
            raise NotConnectedError(f"`{provider}` is {integration.status.value}: connect it first")
        # Locked, so that of two requests in the same moment one sees the other's operation.
        failed = await session.get(
            RecordFailure,
            (venue_id, provider, key.entity, key.resource, key.direction, key.record_id),
            with_for_update=True,
        )
        if failed is None:
            raise NotFoundError("this record isn't among those that failed: it may have gone through since")
        operation = await _waiting(session, venue_id, provider, key)
        if operation is None:
            await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
            operation = await operations.enqueue(
                session,
                venue_id=venue_id,
                provider=provider,
                operation_type=OperationType.UPDATE,
                entity_type=key.entity,
                entity_id=key.record_id,
                payload={
                    "trigger": "record_retry",
                    "resource": key.resource,
                    "direction": key.direction.value,
                },
                priority=Priority.HIGH,
                run_id=uuid4(),
                correlation_id=actor.request_id,
            )
        audit.record(
            session,
            actor,
            "record.retried",
            venue_id=venue_id,
            provider=provider,
            target=str(operation.id),
            details={**asdict(key), "direction": key.direction.value},
        )
    await tell_workers(context, operation)
    return operation


async def _waiting(session: AsyncSession, venue_id: UUID, provider: str, key: RecordKey) -> Operation | None:
    rows = await session.scalars(
        select(Operation)
        .filter_by(
            venue_id=venue_id,
            integration_type=provider,
            operation_type=OperationType.UPDATE,
            entity_type=key.entity,
            entity_id=key.record_id,
        )
        .where(
            Operation.status.in_(WAITING),
            Operation.payload["resource"].as_string() == key.resource,
            Operation.payload["direction"].as_string() == key.direction.value,
        )
        .limit(1)
    )
    return rows.one_or_none()
