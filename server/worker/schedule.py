"""What happens by the clock.

Every job is safe to run twice and at the same time, so two schedulers do no harm and none has to be elected:
a sweep announces an id once, a due integration is locked while its sync is written, and a token is refreshed
under its row's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog
from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError
from server.db.models import (
    IdempotencyKey,
    IntegrationConfig,
    IntegrationStatus,
    OAuthState,
    Operation,
    OperationStatus,
    OperationType,
    Priority,
)
from server.services import (
    checks,
    conditions,
    costs,
    drift,
    endpoints,
    export,
    health,
    maintenance,
    mappings,
    oauth,
    operations,
    planned,
    recovery,
    retention,
    rollups,
    subscribers,
    tokens,
    upkeep,
)
from server.services.audit import Actor
from server.services.operations import WAITING
from server.services.runs import schedule_next, sync_interval
from server.telemetry.metrics import JOB_SECONDS
from server.worker import relay
from server.worker.context import WorkerContext

log = structlog.get_logger(__name__)

AT_ONCE = 100  # integrations in one go; the rest follow with the next
TURN_SECONDS = 10.0  # for tokens that are being renewed
_STATES_KEPT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every so many seconds; an error is logged and the next turn tries again.

    One that works a backlog is run again at once for as long as it returns that there was something.
    """

    name: str
    every: float
    run: Callable[[WorkerContext], Awaitable[object]]
    backlog: bool = False


async def run_jobs(
    context: WorkerContext, stopping: asyncio.Event, jobs: tuple[Job, ...] | None = None
) -> None:
    """Run all jobs until `stopping` is set, each in its own time: a slow one delays no other."""
    async with asyncio.TaskGroup() as group:
        for job in jobs or JOBS:
            group.create_task(_repeat(context, stopping, job))


async def _repeat(context: WorkerContext, stopping: asyncio.Event, job: Job) -> None:
    structlog.contextvars.bind_contextvars(job=job.name)  # this task's own
    while not stopping.is_set():
        began, outcome = context.clock.monotonic(), "done"
        try:
            while await job.run(context) and job.backlog and not stopping.is_set():
                pass
        except Exception as error:  # most often a store that is away
            outcome = "failed"
            log.warning("job.failed", error=type(error).__name__)
        JOB_SECONDS.observe(context.clock.monotonic() - began, job.name, outcome)
        try:
            async with asyncio.timeout(job.every):
                await stopping.wait()
        except TimeoutError:
            continue


async def announce_due(context: WorkerContext) -> int:
    """End what nobody may claim any more, and announce what is due and in no lane."""
    async with context.sessions.begin() as session:
        await operations.settle(session)
    return await relay.sweep(context.sessions, context.redis)


async def start_scheduled_syncs(context: WorkerContext) -> int:
    """Write a sync for each integration whose time has come; returns how many."""
    config = IntegrationConfig
    async with context.sessions.begin() as session:
        found = await session.scalars(
            select(config)
            .where(
                config.status == IntegrationStatus.CONNECTED,
                or_(
                    config.next_sync_at <= func.now(),
                    and_(config.next_sync_at.is_(None), config.config["syncEnabled"].as_boolean()),
                ),
            )
            .order_by(config.next_sync_at)
            .limit(AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        started = [
            operation
            for integration in found.all()
            if (operation := await _start_sync(session, integration)) is not None
        ]
    await relay.announce(context.redis, [operations.as_due(operation) for operation in started])
    return len(started)


async def _start_sync(session: AsyncSession, integration: IntegrationConfig) -> Operation | None:
    due_at: datetime | None = integration.next_sync_at
    await schedule_next(session, integration.id, integration.config)
    if due_at is None or sync_interval(integration.config) is None or await _is_syncing(session, integration):
        return None
    due_at, slots = due_at.astimezone(UTC), f"scheduled:{integration.id}:"
    earlier = select(Operation.id).where(
        Operation.idempotency_key >= f"{slots}{due_at.date()}",
        Operation.idempotency_key < f"{slots}{due_at.date() + timedelta(days=1)}",
    )
    first_today = await session.scalar(earlier.limit(1)) is None
    return await operations.enqueue(
        session,
        venue_id=integration.venue_id,
        provider=integration.integration_type,
        operation_type=OperationType.SYNC,
        entity_type="full",
        payload={
            "syncType": "full",
            "trigger": "scheduled_sync",
            "options": {"complete": first_today},
        },
        priority=Priority.NORMAL,
        idempotency_key=f"{slots}{due_at.isoformat()}",
        run_id=uuid4(),
    )


async def _is_syncing(session: AsyncSession, integration: IntegrationConfig) -> bool:
    statement = select(Operation.id).where(
        Operation.venue_id == integration.venue_id,
        Operation.integration_type == integration.integration_type,
        Operation.operation_type == OperationType.SYNC,
        Operation.status.in_((*WAITING, OperationStatus.PROCESSING)),
    )
    return await session.scalar(statement.limit(1)) is not None


async def refresh_tokens(context: WorkerContext) -> int:
    """Renew what is about to end, and what would end for want of use; returns how many were due.

    Several at once, and what takes longer than a turn goes on beside the next: no provider keeps others up.
    """
    async with context.sessions() as session:
        due = await tokens.due(session, context.catalog)
    renewing = [asyncio.create_task(_renew(context, each)) for each in due]
    if renewing:
        _, late = await asyncio.wait(renewing, timeout=TURN_SECONDS)
        for task in late:  # it only waits; the renewal itself isn't cut off
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return len(due)


async def _renew(context: WorkerContext, due: tokens.Due) -> None:
    try:
        await tokens.renew_due(context, due)
    except Exception as error:  # one integration's trouble: most often its provider's, and written down there
        log.warning(
            "token.refresh_failed",
            venue_id=str(due.venue_id),
            provider=due.provider,
            error=error.code if isinstance(error, HubError) else type(error).__name__,
        )


async def forget_expired(context: WorkerContext) -> int:
    """Delete authorizations nobody came back from, kept answers and plans that are old, and secrets of
    subscribers that were replaced; returns how many.

    An integration that waits for such an authorization is again what it was before.
    """
    deleted = 0
    async with context.sessions.begin() as session:
        # Who shows an old state again is told from somebody who makes one up for as long as it is kept.
        for table, kept in ((OAuthState, _STATES_KEPT), (IdempotencyKey, timedelta(0))):
            ended = delete(table).where(table.expires_at <= func.now() - kept).returning(table.expires_at)
            deleted += len((await session.scalars(ended)).all())
        await oauth.give_up_forgotten(session)
        deleted += await subscribers.forget_previous_secrets(session)
        deleted += await planned.forget_expired(session)
    return deleted


async def forget_old(context: WorkerContext) -> int:
    """Delete what ended longer ago than the settings keep it; returns how many rows."""
    async with context.sessions.begin() as session:
        parts = await export.forget_archives(session)
    kept = timedelta(days=context.settings.retention_days)
    return parts + await retention.forget_old(context.sessions, kept)


async def revive_dead_letters(context: WorkerContext) -> int:
    """Queue dead letters again where the provider answers; returns how many."""
    return (await recovery.revive_dead_letters(context)).requeued


async def tend_subscriptions(context: WorkerContext) -> int:
    """Create, look at and renew subscriptions to webhooks; returns how many were due."""
    return await endpoints.tend(context)


async def check_providers(context: WorkerContext) -> int:
    """Ask providers that weren't heard from for a while; returns how many."""
    return await checks.ask_due(context)


async def judge_health(context: WorkerContext) -> int:
    """Judge how all integrations are doing, a part of them at a time; returns how many."""
    judged = 0
    while True:
        async with context.sessions.begin() as session:
            some = await conditions.judge_some(session)
        judged += some
        if some < conditions.AT_ONCE:
            return judged


async def measure_health(context: WorkerContext) -> int:
    """Add up what syncs came to, and write down what each integration did; returns how many there are."""
    more = True
    while more:
        async with context.sessions.begin() as session:
            more = await rollups.roll_up(session)
    async with context.sessions.begin() as session:
        return await health.write(session)


async def close_months(context: WorkerContext) -> int:
    """Fix the costs of months that are over; returns how many there were."""
    async with context.sessions.begin() as session:
        return await costs.close_months(session, context.catalog)


async def check_drift(context: WorkerContext) -> bool:
    """Look at the mappings of integrations whose provider's records changed; returns whether there were any.

    One that can't be looked at now is looked at when something changes again, or somebody asks.
    """
    async with context.sessions.begin() as session:
        changed = await drift.take_waiting(session, AT_ONCE)
    for venue_id, provider in changed:
        try:
            await mappings.heal(context, Actor("hub"), mappings.Asked(venue_id, provider))
        except Exception as error:  # whatever it is, the others are looked at
            code = error.code if isinstance(error, HubError) else type(error).__name__
            log.warning("mapping.heal_failed", venue_id=str(venue_id), provider=provider, error=code)
    return bool(changed)


async def work_maintenance(context: WorkerContext) -> bool:
    """Do a batch of a rotation, export or erasure; returns whether there was one to do."""
    return await maintenance.work_one(context, upkeep.KINDS)


JOBS: tuple[Job, ...] = (
    Job("announce_due", relay.SWEEP_SECONDS, announce_due),
    Job("start_scheduled_syncs", 1.0, start_scheduled_syncs, backlog=True),
    Job("refresh_tokens", 30.0, refresh_tokens),
    Job("forget_expired", 60.0, forget_expired),
    Job("check_providers", 60.0, check_providers),
    Job("judge_health", 60.0, judge_health),
    Job("measure_health", 300.0, measure_health),
    Job("forget_old", 3600.0, forget_old, backlog=True),
    Job("tend_subscriptions", 5.0, tend_subscriptions),
    Job("revive_dead_letters", 3600.0, revive_dead_letters),
    Job("close_months", 900.0, close_months, backlog=True),
    Job("check_drift", 60.0, check_drift, backlog=True),
    Job("work_maintenance", 1.0, work_maintenance, backlog=True),
)
