"""Operations that ended badly: which there are and why, and many of them queued again at once.

Both go by the same filter. Queueing again is bounded, and repeating it does no harm: an operation that is
queued doesn't fit the filter any more. They go to the low lane as `recovering`, behind all that is fresh, and
each goes on from what it had saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from server.db.models import IntegrationConfig, Operation, OperationStatus, Priority
from server.services import audit, operations
from server.services.audit import Actor
from server.services.operations import WORKER_LOST
from server.services.paging import Page
from server.services.recovery import ENDED_BADLY, FRESH
from server.services.runs import RUNNABLE
from server.worker import relay

if TYPE_CHECKING:
    from server.context import Context

RETRIED_AT_ONCE = 500  # in one transaction
MOST_RETRIED = 10_000  # in one request


@dataclass(frozen=True, slots=True)
class Filter:
    """Which operations are meant: those that ended badly and fit all that is given; None takes all.

    `since` and `until` are of the moment an operation ended, `until` not included.
    """

    venue_id: UUID | None = None
    provider: str | None = None
    status: OperationStatus | None = None  # one of ENDED_BADLY
    code: str | None = None
    entity: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> ColumnElement[bool]:
        wanted: list[ColumnElement[bool]] = [Operation.status.in_(ENDED_BADLY)]
        equal = {
            Operation.venue_id: self.venue_id,
            Operation.integration_type: self.provider,
            Operation.status: self.status,
            Operation.error_code: self.code,
            Operation.entity_type: self.entity,
        }
        wanted += [column == value for column, value in equal.items() if value is not None]
        if self.since is not None:
            wanted.append(Operation.completed_at >= self.since)
        if self.until is not None:
            wanted.append(Operation.completed_at < self.until)
        return and_(*wanted)


@dataclass(frozen=True, slots=True)
class Retried:
    """What fitted a filter: queued again (or to be, of a dry run), left for another request, and held back.

    Held back is what is of no use to queue: of integrations that aren't connected, and what killed its
    workers unless the filter names that code.
    """

    matched: int
    queued: int
    left: int
    held_back: int


async def listing(
    session: AsyncSession,
    wanted: Filter,
    *,
    limit: int,
    offset: int = 0,
    after: tuple[datetime, UUID] | None = None,
) -> Page:
    """Return operations that ended badly, those that ended last first; `rows` are Operations."""
    fitting = wanted.conditions()
    total = await session.scalar(select(func.count()).select_from(Operation).where(fitting)) or 0
    place = (Operation.completed_at, Operation.id)
    statement = select(Operation).where(fitting).order_by(*(part.desc() for part in place)).limit(limit + 1)
    statement = (
        statement.offset(offset) if after is None else statement.where(tuple_(*place) < tuple_(*after))
    )
    rows = (await session.scalars(statement)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    ended = last.completed_at.isoformat() if last is not None and last.completed_at is not None else ""
    return Page(rows[:limit], total, (ended, str(last.id)) if last is not None else None)


async def retry(
    context: Context, actor: Actor, wanted: Filter, *, dry_run: bool = False, limit: int = MOST_RETRIED
) -> Retried:
    """Queue what fits again, those that ended first first and `limit` at most; a dry run only counts.

    It is done in parts: what is queued stays queued whatever becomes of the rest. The end is written to the
    audit log with its count.
    """
    async with context.sessions() as session:
        matched = await _count(session, wanted.conditions())
        fitting = await _count(session, and_(wanted.conditions(), _useful(wanted)))
        now = await session.scalar(select(func.now()))
    if dry_run:
        queued = min(fitting, limit)
        return Retried(matched, queued, fitting - queued, matched - fitting)
    queued = 0
    while queued < limit:
        found = await _queue(context, wanted, now, min(RETRIED_AT_ONCE, limit - queued))
        queued += len(found)
        await relay.announce(context.redis, found)
        if not found:
            break
    async with context.sessions.begin() as session:
        audit.record(
            session,
            actor,
            "dead_letters.retried",
            venue_id=wanted.venue_id,
            provider=wanted.provider,
            details={"operations": queued, "filter": _told(wanted)},
        )
    return Retried(matched, queued, max(fitting - queued, 0), matched - fitting)


async def _queue(
    context: Context, wanted: Filter, asked_at: datetime | None, limit: int
) -> Sequence[operations.Due]:
    async with context.sessions.begin() as session:
        some = (
            select(Operation.id)
            # What was queued and failed again meanwhile isn't queued twice.
            .where(wanted.conditions(), _useful(wanted), Operation.completed_at <= asked_at)
            .order_by(Operation.completed_at, Operation.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        statement = (
            update(Operation)
            .where(Operation.id.in_(some))
            .values(**FRESH, status=OperationStatus.RECOVERING, priority=Priority.LOW)
            .returning(*operations.DUE)
            .execution_options(synchronize_session=False)
        )
        return [operations.due_row(row) for row in await session.execute(statement)]


def _useful(wanted: Filter) -> ColumnElement[bool]:
    connected = exists().where(
        IntegrationConfig.venue_id == Operation.venue_id,
        IntegrationConfig.integration_type == Operation.integration_type,
        IntegrationConfig.status.in_(RUNNABLE),
    )
    if wanted.code == WORKER_LOST:
        return connected
    return and_(connected, or_(Operation.error_code.is_(None), Operation.error_code != WORKER_LOST))


async def _count(session: AsyncSession, condition: ColumnElement[bool]) -> int:
    return await session.scalar(select(func.count()).select_from(Operation).where(condition)) or 0


def _told(wanted: Filter) -> dict[str, Any]:
    return {name: str(value) for name, value in asdict(wanted).items() if value is not None}
