"""Plans of pushes: asked for, looked at, and applied while what they rest on is as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from engine.planning import print_of
from server.db.models import (
    IntegrationConfig,
    Operation,
    OperationStatus,
    OperationType,
    PendingWrite,
    Priority,
    PushPlan,
    PushPlanRecord,
)
from server.errors import (
    ConflictError,
    Detail,
    IntegrationNotFoundError,
    NotConnectedError,
    NotFoundError,
    NotReadyError,
    StaleError,
    SyncInProgressError,
)
from server.host import SqlHost
from server.services import audit, operations, planned, venues
from server.services.audit import Actor
from server.services.integrations import get_integration, syncing, tell_workers
from server.services.paging import Page
from server.services.runs import DIRECTIONS, RUNNABLE

if TYPE_CHECKING:
    from server.context import Context

MOST_ATTEMPTS = 3  # somebody waits for a plan
MOST_NAMED = 20  # records that a refusal names
COMPARED = 500  # records at once
CHANGED: Mapping[str, str] = {
    "mapping": "the mapping was changed",
    "syncDirection": "which ways records go was changed",
    "connection": "another account, or place of it, is connected",
    "venue": "the venue's own record changed on the platform",
}
_FAILED = (OperationStatus.FAILED, OperationStatus.DEAD_LETTER, OperationStatus.PAUSED)


@dataclass(frozen=True, slots=True)
class Known:
    """A plan as it is now. `status` is `making`, `ready`, `failed`, `applied` or `expired`."""

    plan: PushPlan
    status: str
    writes: int
    error: str | None = None


async def request_plan(
    context: Context, actor: Actor, *, venue_id: UUID, provider: str, sync_type: str
) -> PushPlan:
    """Queue the making of a plan, and return it.

    Raises NotConnectedError, and ConflictError where an integration doesn't push.
    """
    context.catalog.connector(provider)
    async with context.sessions.begin() as session:
        await venues.check_open(session, venue_id)
        await _pushing(session, venue_id, provider)
        await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
        plan_id = uuid4()
        operation = await operations.enqueue(
            session,
            venue_id=venue_id,
            provider=provider,
            operation_type=OperationType.PLAN,
            entity_type=sync_type,
            payload={"syncType": sync_type, "trigger": "plan", "planId": str(plan_id)},
            priority=Priority.HIGH,
            run_id=plan_id,
            max_attempts=MOST_ATTEMPTS,
            correlation_id=actor.request_id,
        )
        plan = PushPlan(
            id=plan_id,
            venue_id=venue_id,
            integration_type=provider,
            sync_type=sync_type,
            operation_id=operation.id,
            requested_by=actor.id,
        )
        session.add(plan)
        await session.flush()
        await session.refresh(plan)
        audit.record(
            session,
            actor,
            "plan.requested",
            venue_id=venue_id,
            provider=provider,
            target=str(plan_id),
            details={"syncType": sync_type},
        )
    await tell_workers(context, operation)
    return plan


async def look(session: AsyncSession, venue_id: UUID, provider: str, plan_id: UUID) -> Known:
    """Return a plan as it is now; raises NotFoundError."""
    plan = await session.get(PushPlan, plan_id)
    if plan is None or (plan.venue_id, plan.integration_type) != (venue_id, provider):
        raise NotFoundError("there is no such plan: it may have been too old")
    return await _known(session, plan)


async def _known(session: AsyncSession, plan: PushPlan) -> Known:
    status, error = plan.status, None
    if status == "making":
        operation = await session.get(Operation, plan.operation_id)
        if operation is None or operation.status in _FAILED:
            status = "failed"
            error = (operation.last_error if operation else None) or "it was stopped"
    elif status == "ready":
        old = select(PushPlan.id).where(PushPlan.id == plan.id, PushPlan.expires_at <= func.now())
        status = "expired" if await session.scalar(old) is not None else status
    writes = await session.scalar(
        select(func.count()).select_from(PushPlanRecord).filter_by(plan_id=plan.id, writes=True)
    )
    return Known(plan, status, writes or 0, error)


async def records(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    plan_id: UUID,
    *,
    action: str | None,
    entity: str | None,
    resource: str | None,
    outcome: str | None,
    limit: int,
    offset: int,
    after: tuple[int] | None,
) -> Page:
    """Return a plan's records in the order in which they were planned; `rows` are `PushPlanRecord`."""
    await look(session, venue_id, provider, plan_id)
    row = PushPlanRecord
    wanted = select(row).where(row.plan_id == plan_id)
    for column, value in (
        (row.action, action),
        (row.entity, entity),
        (row.resource, resource),
        (row.outcome, outcome),
    ):
        if value is not None:
            wanted = wanted.where(column == value)
    total = await session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    statement = wanted.order_by(row.number).limit(limit + 1)
    statement = statement.where(row.number > after[0]) if after is not None else statement.offset(offset)
    found = list(await session.scalars(statement))
    last = found[limit - 1] if len(found) > limit else None
    return Page(found[:limit], total, (str(last.number),) if last else None)


async def apply(context: Context, actor: Actor, *, venue_id: UUID, provider: str, plan_id: UUID) -> Operation:
    """Queue a sync that does what a plan says; its `run_id` is the `syncId`.

    Raises NotFoundError, NotReadyError, StaleError, which names what changed since, ConflictError for a plan
    that was applied or failed, NotConnectedError, SyncInProgressError.
    """
    context.catalog.connector(provider)
    host = SqlHost(context.platform, context.catalog.platform, venue_id)
    async with context.sessions() as session:
        known = await look(session, venue_id, provider, plan_id)
        _check_status(known)
        changed = await _changed_here(session, host, plan_id)
    venue = await host.venue()
    async with context.sessions.begin() as session:
        await venues.check_open(session, venue_id)
        integration = await _pushing(session, venue_id, provider)
        plan = await session.get(PushPlan, plan_id, with_for_update=True, populate_existing=True)
        if plan is None:
            raise NotFoundError("there is no such plan: it may have been too old")
        _check_status(await _known(session, plan))
        other = await syncing(session, venue_id, provider)
        if other is not None:
            raise SyncInProgressError(
                "a sync of this integration is under way", [Detail("syncId", str(other.run_id))]
            )
        now = planned.basis(context.catalog, integration, venue)
        changed = [
            *(Detail(name, why) for name, why in CHANGED.items() if now[name] != plan.basis.get(name)),
            *await _since(session, plan),
            *changed,
        ]
        if changed:
            raise StaleError("what this plan rests on has changed since it was made: plan again", changed)
        await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
        operation = await operations.enqueue(
            session,
            venue_id=venue_id,
            provider=provider,
            operation_type=OperationType.SYNC,
            entity_type=plan.sync_type,
            payload={"syncType": plan.sync_type, "trigger": "planned_push", "planId": str(plan_id)},
            priority=Priority.HIGH,
            run_id=uuid4(),
            correlation_id=actor.request_id,
        )
        plan.status, plan.sync_id, plan.applied_at = "applied", operation.run_id, func.now()
        plan.expires_at = func.now() + func.make_interval(0, 0, 0, 1)
        audit.record(
            session,
            actor,
            "plan.applied",
            venue_id=venue_id,
            provider=provider,
            target=str(plan_id),
            details={"syncId": str(operation.run_id)},
        )
    await tell_workers(context, operation)
    return operation


async def _pushing(session: AsyncSession, venue_id: UUID, provider: str) -> IntegrationConfig:
    """Return an integration that is connected and pushes, locked until the end of the transaction."""
    await get_integration(session, venue_id, provider)
    integration = await session.scalar(
        select(IntegrationConfig)
        .filter_by(venue_id=venue_id, integration_type=provider)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if integration is None:
        raise IntegrationNotFoundError(f"`{provider}` isn't connected at this venue")
    if integration.status not in RUNNABLE:
        raise NotConnectedError(f"`{provider}` is {integration.status.value}: connect it first")
    if "push" not in DIRECTIONS.get(integration.config.get("syncDirection", "bidirectional"), ()):
        raise ConflictError(f"syncs of `{provider}` only pull at this venue: there is nothing to plan")
    return integration


def _check_status(known: Known) -> None:
    if known.status == "making":
        raise NotReadyError("the plan is still being made")
    if known.status == "failed":
        raise ConflictError(f"the plan couldn't be made: {known.error}")
    if known.status == "applied":
        raise ConflictError("this plan was applied already", [Detail("syncId", str(known.plan.sync_id))])
    if known.status == "expired":
        raise StaleError("this plan is too old: plan again", [Detail("expires_at", "it has passed")])


async def _since(session: AsyncSession, plan: PushPlan) -> list[Detail]:
    """Say which syncs ran since a plan was made, and what an earlier one left open."""
    mine = {"venue_id": plan.venue_id, "integration_type": plan.integration_type}
    made_at: datetime | None = plan.made_at
    ran = await session.scalars(
        select(Operation.run_id)
        .filter_by(**mine, operation_type=OperationType.SYNC)
        .where(Operation.started_at.is_not(None), Operation.completed_at > made_at)
        .order_by(Operation.completed_at)
        .limit(MOST_NAMED)
    )
    details = [Detail("sync", f"sync {sync_id} has run since") for sync_id in ran]
    if await session.scalar(select(PendingWrite.id).filter_by(**mine).limit(1)) is not None:
        details.append(
            Detail("writes", "writes of an earlier sync have had no answer yet: the next sync sees to them")
        )
    return details


async def _changed_here(session: AsyncSession, host: SqlHost, plan_id: UUID) -> list[Detail]:
    """Name records of the platform that a plan writes and that changed since, at most MOST_NAMED."""
    row, after, changed = PushPlanRecord, 0, list[Detail]()
    while len(changed) < MOST_NAMED:
        rows = (
            await session.execute(
                select(row.number, row.entity, row.local_id, row.ours)
                .where(row.plan_id == plan_id, row.writes, row.number > after)
                .order_by(row.number)
                .limit(COMPARED)
            )
        ).all()
        if not rows:
            break
        after = rows[-1].number
        for entity in dict.fromkeys(each.entity for each in rows):
            some = [each for each in rows if each.entity == entity]
            there = await host.fetch(entity, [each.local_id for each in some])
            changed += [
                Detail(f"{entity}.{each.local_id}", "this record changed on the platform")
                for each in some
                if print_of(there.get(each.local_id)) != each.ours
            ]
    unique = {detail.field: detail for detail in changed}
    return list(unique.values())[:MOST_NAMED]
