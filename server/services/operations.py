"""The operations ledger: what is to be done, who is doing it, and how it went.

Plain functions over a session; the caller's transaction decides when it counts. A worker holds an operation
by a lease and writes under the fencing token its claim was given: once another worker has taken the operation
over, every change of the first one is refused with LeaseLostError. All times are the database's.

Statuses: `pending` and `recovering` wait (`next_retry_at` says until when), `processing` is held, and
`completed`, `failed` (trying again can't help), `dead_letter` (out of attempts) and `paused` (somebody
stopped it) are final until a person or a recovery revives them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import and_, case, extract, func, literal_column, not_, or_, select, true, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import ColumnElement

from engine.errors import HubError, LeaseLostError
from server.db.models import Operation, OperationStatus, OperationType, Priority

LANES: tuple[str, ...] = tuple(priority.value.lower() for priority in Priority)  # most urgent first

# These run the engine over an integration's records, so an integration has one of them at a time.
EXCLUSIVE = (OperationType.SYNC, OperationType.CREATE, OperationType.UPDATE, OperationType.DELETE)

FIRST_WAIT = timedelta(seconds=2)  # doubles with each attempt, with full jitter
LONGEST_WAIT = timedelta(hours=1)
# A lost worker seldom is the operation's fault, so it costs no attempt. An operation that loses this many
# workers for each attempt it has is taken for the cause.
LOST_WORKERS_PER_ATTEMPT = 3


class Hold(StrEnum):
    """What a worker learns from a heartbeat."""

    HELD = "held"
    STOP = "stop"  # held, and somebody asked the run to stop
    LOST = "lost"


class Due(NamedTuple):
    """An operation that could be claimed now; `queued_at` in Unix seconds orders a lane."""

    id: UUID
    lane: str
    queued_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """An operation held by a worker, as it was when it was claimed."""

    operation_id: UUID
    venue_id: UUID
    provider: str
    operation_type: OperationType
    entity_type: str
    entity_id: str | None
    payload: Mapping[str, Any]
    priority: Priority
    attempts: int  # this one included
    max_attempts: int
    run_id: UUID | None
    correlation_id: str | None
    progress: Mapping[str, Any] | None  # what earlier attempts left
    owner: str
    fencing_token: int
    lease: timedelta


def lane_of(priority: Priority) -> str:
    """Return the lane of a priority."""
    return priority.value.lower()


async def enqueue(
    session: AsyncSession,
    *,
    venue_id: UUID,
    provider: str,
    operation_type: OperationType,
    entity_type: str,
    entity_id: str | None = None,
    payload: Mapping[str, Any],
    priority: Priority = Priority.NORMAL,
    idempotency_key: str | None = None,
    run_id: UUID | None = None,
    max_attempts: int = 10,
    correlation_id: str | None = None,
) -> Operation:
    """Write an operation, or return the one that already has this idempotency key.

    After the commit, call `server.worker.relay.announce`; without it a sweep finds the operation in a second.
    """
    statement = (
        insert(Operation)
        .values(
            venue_id=venue_id,
            integration_type=provider,
            operation_type=operation_type,
            entity_type=entity_type,
            entity_id=entity_id,
            payload=dict(payload),
            priority=priority,
            idempotency_key=idempotency_key,
            run_id=run_id,
            max_attempts=max_attempts,
            correlation_id=correlation_id,
        )
        .on_conflict_do_nothing(index_elements=[Operation.idempotency_key])
        .returning(Operation)
    )
    written = (await session.scalars(statement)).one_or_none()
    if written is not None:
        return written
    return (
        await session.scalars(select(Operation).where(Operation.idempotency_key == idempotency_key))
    ).one()


async def due(session: AsyncSession, limit: int = 1000, *, lanes: Collection[str] = LANES) -> list[Due]:
    """Return operations that could be claimed now, the most urgent and oldest first.

    They are those that wait and are due, and those whose worker let its lease run out.
    """
    # Each half by itself can follow an index; an OR of both could not.
    halves = [
        select(Operation.id, Operation.priority, Operation.queued_at)
        .where(half, _free(), _in_lanes(lanes))
        .order_by(Operation.priority, Operation.queued_at)
        .limit(limit)
        .subquery()
        for half in (_waiting(), _orphaned())
    ]
    both = union_all(*(select(half) for half in halves)).subquery()
    statement = (
        select(both.c.id, both.c.priority, extract("epoch", both.c.queued_at))
        .order_by(both.c.priority, both.c.queued_at)
        .limit(limit)
    )
    rows = (await session.execute(statement)).all()
    return [Due(identifier, lane_of(priority), float(queued_at)) for identifier, priority, queued_at in rows]


async def claim(
    session: AsyncSession,
    operation_id: UUID | None = None,
    *,
    owner: str,
    lease: timedelta,
    lanes: Collection[str] = LANES,
) -> Claim | None:
    """Take one operation, or the most urgent one there is; None when it isn't to be had.

    Commit right after it: until then nobody else can claim for the same integration.
    """
    wanted = [operation_id] if operation_id else [row.id for row in await due(session, 20, lanes=lanes)]
    for candidate in wanted:
        taken = await _claim(session, candidate, owner, lease, lanes)
        if taken is not None:
            return taken
    return None


async def _claim(
    session: AsyncSession, operation_id: UUID, owner: str, lease: timedelta, lanes: Collection[str]
) -> Claim | None:
    # Two operations of one integration claimed in the same moment wouldn't see each other. The lock is a
    # statement of its own because a statement sees what was committed before it began, not before its lock.
    integration = func.concat(Operation.venue_id, ":", Operation.integration_type)
    await session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(integration, 0))).where(
            Operation.id == operation_id, Operation.operation_type.in_(EXCLUSIVE)
        )
    )
    candidate = (
        select(Operation.id)
        .where(Operation.id == operation_id, or_(_waiting(), _orphaned()), _free(), _in_lanes(lanes))
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(Operation)
        .where(Operation.id == candidate)
        .values(
            status=OperationStatus.PROCESSING,
            # One taken over from a lost worker goes on with the attempt that was begun.
            attempts=Operation.attempts + case((_is(OperationStatus.PROCESSING), 0), else_=1),
            error_count=Operation.error_count + case((_is(OperationStatus.PROCESSING), 1), else_=0),
            fencing_token=Operation.fencing_token + 1,
            lease_owner=owner,
            lease_expires_at=func.now() + lease,
            started_at=func.coalesce(Operation.started_at, func.now()),
            next_retry_at=None,
            updated_at=func.now(),
        )
        .returning(Operation)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    row = (await session.scalars(statement)).one_or_none()
    if row is None:
        return None
    return Claim(
        operation_id=row.id,
        venue_id=row.venue_id,
        provider=row.integration_type,
        operation_type=row.operation_type,
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        payload=row.payload,
        priority=row.priority,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        run_id=row.run_id,
        correlation_id=row.correlation_id,
        progress=row.progress,
        owner=owner,
        fencing_token=row.fencing_token,
        lease=lease,
    )


async def heartbeat(session: AsyncSession, claim: Claim, progress: Mapping[str, Any] | None = None) -> Hold:
    """Extend the lease, and save the run's progress on the way when there is news."""
    news = {"progress": dict(progress)} if progress is not None else {}
    statement = (
        update(Operation)
        .where(_held_by(claim))
        .values(lease_expires_at=func.now() + claim.lease, updated_at=func.now(), **news)
        .returning(Operation.stop_requested)
    )
    stop = (await session.scalars(statement)).one_or_none()
    return Hold.LOST if stop is None else Hold.STOP if stop else Hold.HELD


async def complete(session: AsyncSession, claim: Claim, result: Mapping[str, Any]) -> None:
    """End it well. Raises LeaseLostError, as all that follow do."""
    await _let_go(session, claim, OperationStatus.COMPLETED, result=dict(result), last_error=None)


async def pause(session: AsyncSession, claim: Claim, result: Mapping[str, Any]) -> None:
    """End it because somebody asked; what was done stays done."""
    await _let_go(session, claim, OperationStatus.PAUSED, result=dict(result), stop_requested=False)


async def release(session: AsyncSession, claim: Claim) -> None:
    """Give it back untouched, for another worker to take at once: no attempt is counted."""
    await _let_go(session, claim, OperationStatus.PENDING, attempts=func.greatest(Operation.attempts - 1, 0))


async def fail(
    session: AsyncSession,
    claim: Claim,
    error: HubError,
    *,
    result: Mapping[str, Any] | None = None,
    retry_after: float | None = None,
    chance: Callable[[], float] = random.random,
) -> OperationStatus:
    """End the attempt with an error; returns what becomes of the operation.

    It waits for another attempt when that can help: a random time up to a bound that doubles with each
    attempt, on top of `retry_after` seconds when the provider named them. Out of attempts it is a dead letter
    and when trying again can't help, it has failed.
    """
    again = error.retryable and claim.attempts < claim.max_attempts
    status = (
        OperationStatus.PENDING
        if again
        else OperationStatus.DEAD_LETTER
        if error.retryable
        else OperationStatus.FAILED
    )
    wait = retry_wait(claim.attempts, chance) + timedelta(seconds=retry_after or 0)
    await _let_go(
        session,
        claim,
        status,
        last_error=error.message,
        error_count=Operation.error_count + 1,
        next_retry_at=func.now() + wait if again else None,
        result={**(result or {}), "error": {"code": error.code, "message": error.message}},
    )
    return status


def retry_wait(attempts: int, chance: Callable[[], float] = random.random) -> timedelta:
    """Return how long to wait after this many attempts; `chance` returns a number in [0, 1)."""
    longest: timedelta = min(FIRST_WAIT * 2 ** min(attempts - 1, 32), LONGEST_WAIT)
    return longest * chance()


async def settle(session: AsyncSession) -> int:
    """End operations that nobody holds and nobody may claim any more; returns how many.

    Those asked to stop are paused. Those that lost too many workers, or waited past `expires_at`, become dead
    letters.
    """
    unheld = or_(_is(*WAITING), _orphaned_lease())
    endings: tuple[tuple[ColumnElement[bool], OperationStatus, str | None], ...] = (
        (and_(unheld, Operation.stop_requested), OperationStatus.PAUSED, None),
        (
            and_(_orphaned_lease(), not_(_may_lose_another_worker())),
            OperationStatus.DEAD_LETTER,
            "every worker that took this operation was lost while working on it",
        ),
        (
            and_(_is(*WAITING), Operation.expires_at <= func.now()),
            OperationStatus.DEAD_LETTER,
            "the operation expired before it could be worked",
        ),
    )
    ended = 0
    for condition, status, reason in endings:
        statement = (
            update(Operation)
            .where(condition)
            .values(
                **_ENDED,
                status=status,
                stop_requested=False,
                fencing_token=Operation.fencing_token + 1,
                last_error=func.coalesce(reason, Operation.last_error),
                completed_at=func.now(),
                updated_at=func.now(),
            )
            .returning(Operation.id)
            .execution_options(synchronize_session=False)
        )
        ended += len((await session.scalars(statement)).all())
    return ended


WAITING = (OperationStatus.PENDING, OperationStatus.RECOVERING)
_FINAL = (
    OperationStatus.COMPLETED,
    OperationStatus.FAILED,
    OperationStatus.DEAD_LETTER,
    OperationStatus.PAUSED,
)
_ENDED: Mapping[str, Any] = {"lease_owner": None, "lease_expires_at": None, "next_retry_at": None}


async def _let_go(session: AsyncSession, claim: Claim, status: OperationStatus, **values: Any) -> None:
    statement = (
        update(Operation)
        .where(_held_by(claim))
        .values(
            {
                **_ENDED,
                "status": status,
                "completed_at": func.now() if status in _FINAL else None,
                "updated_at": func.now(),
                **values,
            }
        )
        .returning(Operation.id)
        .execution_options(synchronize_session=False)
    )
    if (await session.scalars(statement)).one_or_none() is None:
        raise LeaseLostError("another worker has taken this operation over")


def _held_by(claim: Claim) -> ColumnElement[bool]:
    return and_(
        Operation.id == claim.operation_id,
        Operation.fencing_token == claim.fencing_token,
        Operation.status == OperationStatus.PROCESSING,
    )


def _is(*statuses: OperationStatus, of: type[Operation] = Operation) -> ColumnElement[bool]:
    # Written out and not bound: partial indexes are used only for conditions the planner can read.
    return of.status.in_([literal_column(f"'{status.value}'::operation_status") for status in statuses])


def _waiting() -> ColumnElement[bool]:
    return and_(
        _is(*WAITING),
        not_(Operation.stop_requested),
        or_(Operation.next_retry_at.is_(None), Operation.next_retry_at <= func.now()),
        Operation.expires_at > func.now(),
    )


def _orphaned_lease() -> ColumnElement[bool]:
    return and_(_is(OperationStatus.PROCESSING), Operation.lease_expires_at <= func.now())


def _may_lose_another_worker() -> ColumnElement[bool]:
    return Operation.error_count < LOST_WORKERS_PER_ATTEMPT * Operation.max_attempts


def _orphaned() -> ColumnElement[bool]:
    return and_(_orphaned_lease(), not_(Operation.stop_requested), _may_lose_another_worker())


def _free() -> ColumnElement[bool]:
    """No other operation is working on the same integration's records."""
    other = aliased(Operation)
    busy = (
        select(other.id)
        .where(
            other.venue_id == Operation.venue_id,
            other.integration_type == Operation.integration_type,
            other.id != Operation.id,
            other.operation_type.in_(EXCLUSIVE),
            _is(OperationStatus.PROCESSING, of=other),
        )
        .exists()
    )
    return or_(Operation.operation_type.not_in(EXCLUSIVE), not_(busy))


def _in_lanes(lanes: Collection[str]) -> ColumnElement[bool]:
    if set(lanes) == set(LANES):
        return true()
    return Operation.priority.in_([Priority(lane.upper()) for lane in lanes])
