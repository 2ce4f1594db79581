"""Ask for a sync, follow it, stop it, and look at what earlier ones did."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, null, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from engine.tally import KEPT_FAILURES
from server.context import Context
from server.db.models import (
    IntegrationConfig,
    Operation,
    OperationStatus,
    OperationType,
    Priority,
    SyncLog,
)
from server.errors import (
    Detail,
    IntegrationNotFoundError,
    InvalidRequestError,
    NotConnectedError,
    NotFoundError,
    ServerError,
    SyncInProgressError,
)
from server.services import audit, breaker, operations
from server.services.audit import Actor
from server.services.integrations import Page, get_integration, syncing, tell_workers
from server.services.runs import RUNNABLE, SYNC_TYPES

# What callers call the platform's entities.
ENTITY_NAMES: Mapping[str, str] = {
    entity: name for name, entities in SYNC_TYPES.items() for entity in entities or ()
}
POLL_SECONDS = 0.25
EARLIEST, LATEST = date(1970, 1, 1), date(2999, 12, 31)  # days that every provider can be asked about
FAILED = (OperationStatus.FAILED, OperationStatus.DEAD_LETTER)


class SyncFailedError(ServerError):
    """The sync ended with an error; `details` name the sync."""

    code = "SYNC_FAILED"


@dataclass(frozen=True, slots=True)
class Counts:
    """Records that are in step now, and records that failed."""

    synced: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a sync did, in all and by what callers call entities. `duration_ms` is None before it started."""

    success: bool
    overall: Counts
    duration_ms: int | None
    by_name: Mapping[str, Counts]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One finished sync; counts are of all its mappings together, and so are `failures`, if asked for."""

    id: UUID
    operation: str
    status: str
    success_count: int
    error_count: int
    skip_count: int
    api_calls_made: int
    duration_ms: int | None
    started_at: datetime
    completed_at: datetime | None
    failures: Sequence[Mapping[str, Any]] = ()


async def request_sync(
    context: Context,
    actor: Actor,
    *,
    venue_id: UUID,
    provider: str,
    sync_type: str,
    complete: bool = False,
    approve_deletes: bool = False,
    start_date: date | None = None,
    end_date: date | None = None,
) -> Operation:
    """Queue a sync; its `run_id` is what callers know as `syncId`.

    A `complete` one also looks for what was deleted without a word. With `approve_deletes` all that is gone
    goes on the other side, too, however much it is. With a date, only what changed from one to the other is
    looked at, both days included; not together with `complete`.

    Raises NotConnectedError, SyncInProgressError (which names the other) when one waits or runs already, and
    InvalidRequestError for dates that make no sense.
    """
    context.catalog.connector(provider)
    options = {
        "complete": complete,
        "approveDeletes": approve_deletes,
        **_dates(start_date, end_date, complete),
    }
    async with context.sessions.begin() as session:
        # Locked, so that of two requests in the same moment one sees the other's operation.
        integration = await session.scalar(
            select(IntegrationConfig)
            .filter_by(venue_id=venue_id, integration_type=provider)
            .with_for_update()
        )
        if integration is None:
            raise IntegrationNotFoundError(f"`{provider}` isn't connected at this venue")
        if integration.status not in RUNNABLE:
            raise NotConnectedError(f"`{provider}` is {integration.status.value}: connect it first")
        other = await syncing(session, venue_id, provider)
        if other is not None:
            raise SyncInProgressError(
                "a sync of this integration is under way", [Detail("syncId", str(other.run_id))]
            )
        await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
        operation = await operations.enqueue(
            session,
            venue_id=venue_id,
            provider=provider,
            operation_type=OperationType.SYNC,
            entity_type=sync_type,
            payload={"syncType": sync_type, "operation": "manual_sync", "options": options},
            priority=Priority.HIGH,
            run_id=uuid4(),
            correlation_id=actor.request_id,
        )
        await breaker.let_one_through(session, venue_id, provider)  # somebody wants to know
        audit.record(
            session,
            actor,
            "sync.requested",
            venue_id=venue_id,
            provider=provider,
            target=str(operation.run_id),
            details={"syncType": sync_type, **options},
        )
    await tell_workers(context, operation)
    return operation


def _dates(start: date | None, end: date | None, complete: bool) -> dict[str, str]:
    """Return dates as an operation's options have them."""
    if complete and (start or end):
        raise InvalidRequestError(
            "a complete sync looks at all there is", [Detail("options.complete", "not together with dates")]
        )
    named = {"startDate": start, "endDate": end}
    problems = [
        Detail(f"options.{name}", f"it must be from {EARLIEST} to {LATEST}")
        for name, day in named.items()
        if day is not None and not EARLIEST <= day <= LATEST
    ]
    if problems:
        raise InvalidRequestError("nothing changed on such a day", problems)
    if start and end and end < start:
        raise InvalidRequestError(
            "the dates are in the wrong order", [Detail("options.endDate", "comes before `startDate`")]
        )
    return {name: day.isoformat() for name, day in named.items() if day is not None}


async def find_sync(session: AsyncSession, provider: str, sync_id: UUID) -> Operation:
    """Return a sync's operation; raises NotFoundError."""
    rows = await session.scalars(
        select(Operation)
        .filter_by(run_id=sync_id, integration_type=provider, operation_type=OperationType.SYNC)
        .order_by(Operation.queued_at)
        .limit(1)
    )
    operation = rows.one_or_none()
    if operation is None:
        raise no_such_sync()
    return operation


def no_such_sync(foreign_venue: UUID | None = None) -> NotFoundError:
    """Return the error for a sync that isn't there, and for one of a venue that isn't the caller's."""
    return NotFoundError("there is no such sync", foreign_venue=foreign_venue)


def ended(operation: Operation) -> bool:
    """Tell whether no worker will take an operation up again by itself."""
    return operation.status not in (*operations.WAITING, OperationStatus.PROCESSING)


async def look(context: Context, operation: Operation) -> Operation:
    """Return an operation as it is now; raises NotFoundError when it was cleared or erased meanwhile."""
    async with context.sessions() as session:
        found = await session.get(Operation, operation.id)
    if found is None:
        raise no_such_sync()
    return found


async def wait_for(
    context: Context, operation: Operation, seconds: float, stopping: asyncio.Event
) -> Operation:
    """Return the sync's operation when it has ended, or as it is when the time is up or `stopping` is set."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        operation = await look(context, operation)
        left = deadline - asyncio.get_running_loop().time()
        if ended(operation) or left <= 0 or await pause(min(POLL_SECONDS, left), stopping):
            return operation


async def pause(seconds: float, stopping: asyncio.Event) -> bool:
    """Wait between two looks at the database; True when the wait is over for good."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return False
    return True


def report(operation: Operation) -> Report:
    """Add up what a sync did, or did so far."""
    mappings: Sequence[Mapping[str, Any]] = (operation.progress or {}).get("mappings") or ()
    ways: dict[tuple[str, str], Counts] = {}
    for mapping in mappings:
        way = mapping["entity"], mapping["direction"]
        counts = ways.get(way, Counts())
        synced = sum(mapping.get(part, 0) for part in ("created", "updated", "unchanged"))
        # One record may become several at the provider, such as a product and its price: it is still one.
        ways[way] = Counts(max(counts.synced, synced), counts.failed + mapping.get("failed", 0))
    by_name: dict[str, Counts] = {}
    for (entity, _), counts in ways.items():
        name = ENTITY_NAMES.get(entity, entity)
        before = by_name.get(name, Counts())
        by_name[name] = Counts(before.synced + counts.synced, before.failed + counts.failed)
    overall = Counts(
        sum(counts.synced for counts in by_name.values()), sum(counts.failed for counts in by_name.values())
    )
    duration = None
    if operation.started_at is not None:
        end = operation.completed_at or operation.updated_at
        duration = max(0, round((end - operation.started_at).total_seconds() * 1000))
    return Report(operation.status == OperationStatus.COMPLETED, overall, duration, by_name)


def failure(operation: Operation) -> SyncFailedError:
    """Return the error a sync ended with."""
    return SyncFailedError(
        operation.last_error or "the sync failed", [Detail("syncId", str(operation.run_id))]
    )


async def stop(context: Context, actor: Actor, *, venue_id: UUID, provider: str) -> int:
    """Stop an integration's syncs: one that waits at once, one that runs after its page; returns how many."""
    syncs = {"venue_id": venue_id, "integration_type": provider, "operation_type": OperationType.SYNC}
    async with context.sessions.begin() as session:
        await get_integration(session, venue_id, provider)
        waiting = await session.scalars(
            update(Operation)
            .filter_by(**syncs)
            .where(Operation.status.in_(operations.WAITING))
            .values(
                status=OperationStatus.PAUSED,
                next_retry_at=None,
                completed_at=func.now(),
                updated_at=func.now(),
            )
            .returning(Operation.id)
        )
        running = await session.scalars(
            update(Operation)
            .filter_by(**syncs, status=OperationStatus.PROCESSING)
            .values(stop_requested=True, updated_at=func.now())
            .returning(Operation.id)
        )
        stopped = len(waiting.all()) + len(running.all())
        audit.record(
            session,
            actor,
            "sync.stopped",
            venue_id=venue_id,
            provider=provider,
            details={"syncs": stopped},
        )
    return stopped


async def status(
    session: AsyncSession, venue_id: UUID, provider: str
) -> tuple[IntegrationConfig, dict[OperationStatus, int], Operation | None]:
    """Return the integration, its operations counted by status, and the sync that waits or runs."""
    integration = await get_integration(session, venue_id, provider)
    counts = await session.execute(
        select(Operation.status, func.count())
        .filter_by(venue_id=venue_id, integration_type=provider)
        .group_by(Operation.status)
        .order_by(Operation.status)
    )
    queue = dict(counts.tuples().all())
    return integration, queue, await syncing(session, venue_id, provider)


async def history(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    *,
    limit: int,
    offset: int,
    after: tuple[datetime, UUID] | None,
    failures: bool = False,
) -> Page:
    """Return finished syncs, newest first, each with its mappings added up, and with its `failures` if asked
    for: the first `KEPT_FAILURES`.
    """
    await get_integration(session, venue_id, provider)
    run = func.coalesce(SyncLog.sync_id, SyncLog.id)
    started = func.min(SyncLog.started_at)
    runs = (
        select(
            run.label("id"),
            func.min(SyncLog.operation).label("operation"),
            func.bool_or(SyncLog.status.in_(("failed", "dead_letter"))).label("failed"),
            func.bool_or(SyncLog.status == "paused").label("paused"),
            func.sum(SyncLog.success_count).label("success_count"),
            func.sum(SyncLog.error_count).label("error_count"),
            func.sum(SyncLog.skip_count).label("skip_count"),
            func.sum(func.coalesce(SyncLog.api_calls_made, 0)).label("api_calls_made"),
            started.label("started_at"),
            func.max(SyncLog.completed_at).label("completed_at"),
            (func.jsonb_agg(SyncLog.errors) if failures else null()).label("errors"),
        )
        .filter_by(venue_id=venue_id, integration_type=provider)
        .group_by(run)
    )
    total = await session.scalar(select(func.count()).select_from(runs.subquery())) or 0
    statement = runs.order_by(started.desc(), run.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.having(tuple_(started, run) < tuple_(*after))
    else:
        statement = statement.offset(offset)
    rows = [
        HistoryEntry(
            row.id,
            row.operation,
            "failed" if row.failed else "paused" if row.paused else "completed",
            int(row.success_count),
            int(row.error_count),
            int(row.skip_count),
            int(row.api_calls_made),
            None
            if row.completed_at is None
            else round((row.completed_at - row.started_at).total_seconds() * 1000),
            row.started_at,
            row.completed_at,
            _records(row.errors),
        )
        for row in await session.execute(statement)
    ]
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return Page(rows[:limit], total, (last.started_at.isoformat(), str(last.id)) if last else None)


def _records(errors: Sequence[Sequence[Mapping[str, Any]] | None] | None) -> Sequence[Mapping[str, Any]]:
    """Return the errors of a run's mappings that are of a record; others stopped a mapping."""
    found = (error for of_mapping in errors or () for error in of_mapping or () if "record_id" in error)
    return list(islice(found, KEPT_FAILURES))
