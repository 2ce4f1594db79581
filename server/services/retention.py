"""Forget what ended long ago. What failed stays until somebody deals with it, and the audit log for good."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.models import (
    DeliveryStatus,
    DriftEvent,
    EventDelivery,
    FieldConflict,
    HealthChange,
    Operation,
    OperationStatus,
    OutboxMessage,
    SyncLog,
    Webhook,
    WebhookDelivery,
    WebhookStatus,
)

AT_ONCE = 1000  # rows in one transaction: whoever waits for them doesn't wait long
TURNS = 100  # transactions in one go; the rest follow with the next

_Forgotten = (
    Operation
    | SyncLog
    | Webhook
    | WebhookDelivery
    | EventDelivery
    | OutboxMessage
    | HealthChange
    | DriftEvent
    | FieldConflict
)


async def forget_old(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> int:
    """Delete what is older than `keep`: operations that were completed or stopped, logs of syncs, webhooks
    that were worked or ignored, deliveries, events that were told, changes of health, drift, and conflicts
    that are over. Returns how many rows went.
    """
    ended = or_(Operation.status == OperationStatus.COMPLETED, Operation.status == OperationStatus.PAUSED)
    old_operation = ended & (Operation.completed_at < func.now() - keep)
    old_log = func.coalesce(SyncLog.completed_at, SyncLog.started_at) < func.now() - keep
    worked = Webhook.status.in_((WebhookStatus.PROCESSED, WebhookStatus.IGNORED))
    old_event = worked & (Webhook.received_at < func.now() - keep)
    old_delivery = WebhookDelivery.received_at < func.now() - keep
    old_sending = (EventDelivery.status != DeliveryStatus.PENDING) & (
        EventDelivery.created_at < func.now() - keep
    )
    on_its_way = select(EventDelivery.id).where(EventDelivery.outbox_id == OutboxMessage.id).exists()
    old_message = (
        OutboxMessage.published_at.is_not(None) & (OutboxMessage.created_at < func.now() - keep) & ~on_its_way
    )
    return (
        await _forget(sessions, Operation, old_operation)
        + await _forget(sessions, SyncLog, old_log)
        + await _forget(sessions, Webhook, old_event)
        + await _forget(sessions, WebhookDelivery, old_delivery)
        + await _forget(sessions, EventDelivery, old_sending)
        + await _forget(sessions, OutboxMessage, old_message)
        + await _forget(sessions, HealthChange, HealthChange.created_at < func.now() - keep)
        + await _forget(sessions, DriftEvent, DriftEvent.created_at < func.now() - keep)
        + await _forget(sessions, FieldConflict, FieldConflict.ended_at < func.now() - keep)
    )


async def _forget(
    sessions: async_sessionmaker[AsyncSession],
    table: type[_Forgotten],
    old: ColumnElement[bool],
) -> int:
    some = select(table.id).where(old).limit(AT_ONCE).with_for_update(skip_locked=True)
    deleted = 0
    for _ in range(TURNS):
        async with sessions.begin() as session:
            gone = (await session.scalars(delete(table).where(table.id.in_(some)).returning(table.id))).all()
        deleted += len(gone)
        if len(gone) < AT_ONCE:
            break
    return deleted
