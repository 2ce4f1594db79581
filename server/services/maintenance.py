"""Work on what the hub itself has stored: rotating keys, exporting a venue, erasing one.

Each is a run, one row, worked in batches: a batch and the place where the next one goes on are one
transaction, so a process that dies repeats at most a batch, and any process may go on. These runs are not
operations of the ledger: those belong to a venue and a provider, wait in lanes and keep to limits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError
from server.context import Context
from server.db.models import MaintenanceRun, MaintenanceStatus
from server.errors import NotFoundError
from server.services import audit
from server.services.audit import Actor

log = structlog.get_logger(__name__)

MOST_ATTEMPTS = 10  # for one batch, over a quarter of an hour
LONGEST_DELAY = 300.0  # seconds

UNFINISHED = (MaintenanceStatus.PENDING, MaintenanceStatus.RUNNING)

# Does one batch in the session's transaction and returns whether it was the last. It assigns new objects to
# `run.position`, `run.progress` and in the end `run.result`; setting `run.error` ends the run as failed when
# it returns True, and `run.next_attempt_at` makes the next batch wait. What it raises undoes the batch, which
# is then tried again later.
Step = Callable[[Context, AsyncSession, MaintenanceRun], Awaitable[bool]]


async def start(
    session: AsyncSession,
    actor: Actor,
    kind: str,
    *,
    venue_id: UUID | None = None,
    position: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[MaintenanceRun, bool]:
    """Return a run of this kind and whether it is new: one that is unfinished is joined.

    `venue_id` None is for the whole hub. `position` is what the first batch finds there.
    """
    wanted = {"kind": kind, "venue_id": venue_id}
    unfinished = select(MaintenanceRun).filter_by(**wanted).where(MaintenanceRun.status.in_(UNFINISHED))
    while True:
        made = await session.scalar(
            insert(MaintenanceRun)
            .values(**wanted, position=dict(position), requested_by=actor.id, requested_ip=actor.ip)
            .on_conflict_do_nothing()
            .returning(MaintenanceRun)
        )
        if made is not None:
            return made, True
        joined = await session.scalar(unfinished)
        if joined is not None:  # else it has ended in this very moment
            return joined, False


async def read(session: AsyncSession, run_id: UUID) -> MaintenanceRun:
    """Return a run; raises NotFoundError."""
    run = await session.get(MaintenanceRun, run_id)
    if run is None:
        raise NotFoundError("there is no such run")
    return run


async def stop(session: AsyncSession, actor: Actor, run_id: UUID) -> MaintenanceRun:
    """Stop a run after the batch it is at, if it has not ended; what is done stays done.

    Raises NotFoundError.
    """
    run = await session.get(MaintenanceRun, run_id, with_for_update=True)
    if run is None:
        raise NotFoundError("there is no such run")
    if run.status in UNFINISHED:
        _end(run, MaintenanceStatus.STOPPED)
        await session.flush()
        await session.refresh(run)
        audit.record(
            session,
            actor,
            "maintenance.stopped",
            venue_id=run.venue_id,
            target=str(run_id),
            details={"kind": run.kind},
        )
    return run


async def work_one(context: Context, kinds: Mapping[str, Step], *, only: UUID | None = None) -> bool:
    """Do one batch of the run that has waited longest (or of `only` one); False when there was none.

    Whatever fails in a batch is counted and tried again after a growing delay, and at last fails the run;
    only what keeps that from being written down is raised.
    """
    due = (
        select(MaintenanceRun)
        .where(
            MaintenanceRun.status.in_(UNFINISHED),
            MaintenanceRun.next_attempt_at <= func.now(),
            MaintenanceRun.kind.in_(kinds),
            *([MaintenanceRun.id == only] if only else []),
        )
        .order_by(MaintenanceRun.updated_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    async with context.sessions.begin() as session:
        run = await session.scalar(due)
        if run is None:
            return False
        kind, run_id = run.kind, run.id
        try:
            async with session.begin_nested():
                _begin_batch(run, await session.scalar(select(func.now())))
                last = await kinds[kind](context, session, run)
                _end_batch(run, last)
        except Exception as error:
            await session.refresh(run)
            _fail_batch(run, error)
            await log.awarning(
                "maintenance.batch_failed",
                kind=kind,
                run_id=str(run_id),
                attempts=run.attempts,
                exc_info=not isinstance(error, HubError),
                error=type(error).__name__,
            )
    return True


def _begin_batch(run: MaintenanceRun, now: datetime | None) -> None:
    run.status, run.error, run.started_at = MaintenanceStatus.RUNNING, None, run.started_at or now


def _end_batch(run: MaintenanceRun, last: bool) -> None:
    run.attempts, run.updated_at = 0, func.clock_timestamp()
    if last:
        _end(run, MaintenanceStatus.FAILED if run.error else MaintenanceStatus.COMPLETED)


def _fail_batch(run: MaintenanceRun, error: Exception) -> None:
    run.attempts += 1
    run.error = error.message if isinstance(error, HubError) else f"unexpected {type(error).__name__}"
    run.updated_at = func.clock_timestamp()
    run.next_attempt_at = func.clock_timestamp() + timedelta(seconds=min(2.0**run.attempts, LONGEST_DELAY))
    if run.attempts >= MOST_ATTEMPTS:
        _end(run, MaintenanceStatus.FAILED)


def _end(run: MaintenanceRun, status: MaintenanceStatus) -> None:
    run.status = status
    run.updated_at = run.completed_at = func.clock_timestamp()
