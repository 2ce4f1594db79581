"""Give operations that ended badly another chance, and take away what nobody wants worked.

A person may revive whatever has `failed` or is a `dead_letter`. The hub by itself revives dead letters only,
and only where the provider answers again: they go to the low lane as `recovering`, behind all that is fresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, Table, Update, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError, UnavailableError
from server.db.models import IntegrationConfig, Operation, OperationStatus, Priority
from server.errors import Detail, InvalidRequestError, NotFoundError
from server.metering import metered
from server.services import audit, operations, webhooks
from server.services.audit import Actor
from server.services.integrations import get_integration
from server.services.runs import RUNNABLE
from server.worker import relay

if TYPE_CHECKING:
    from server.context import Context

log = structlog.get_logger(__name__)

ENDED_BADLY = (OperationStatus.FAILED, OperationStatus.DEAD_LETTER)
CLEARED = (*operations.WAITING, *ENDED_BADLY, OperationStatus.PAUSED)
LONGEST_REST = 24  # hours between two revivals by the hub itself
AT_ONCE = 500  # operations revived in one go; the rest follow with the next
MOST_RETRIED = 10_000  # in one request
TESTED_AT_ONCE = 10  # integrations
TEST_SECONDS = 10.0

_TABLE = cast(Table, Operation.__table__)
# As if it had just been queued: what it did so far stays in `progress`, so that it goes on from there.
FRESH: Mapping[str, Any] = {
    "attempts": 0,
    "error_count": 0,
    "lost_workers": 0,
    "revivals": _TABLE.c.revivals + 1,
    "stop_requested": False,
    "next_retry_at": None,
    "completed_at": None,
    "expires_at": func.now() + func.make_interval(0, 0, 0, 7),
    "updated_at": func.now(),
}


@dataclass(frozen=True, slots=True)
class Revived:
    """What a look at the dead letters came to; integrations are counted once each."""

    requeued: int = 0
    answering: int = 0
    silent: int = 0


async def retry_failed(
    context: Context, actor: Actor, *, venue_id: UUID, provider: str, operation_id: UUID | None = None
) -> int:
    """Queue an integration's operations again that ended badly, or the one named; returns how many.

    Each keeps its lane. It is done in parts, those that ended first first, and at most MOST_RETRIED at once:
    call again for the rest. Raises NotFoundError when the one named isn't this integration's, and
    InvalidRequestError when it didn't end badly.
    """
    async with context.sessions() as session:
        await get_integration(session, venue_id, provider)
        if operation_id is not None:
            await _require_ended_badly(session, venue_id, provider, operation_id)
        asked_at = await session.scalar(select(func.now()))
    ended = func.coalesce(_TABLE.c.completed_at, _TABLE.c.queued_at)
    wanted = (
        select(_TABLE.c.id)
        .where(
            _TABLE.c.venue_id == venue_id,
            _TABLE.c.integration_type == provider,
            _TABLE.c.status.in_(ENDED_BADLY),
            ended <= asked_at,  # what was queued and failed again meanwhile isn't queued twice
        )
        .order_by(ended, _TABLE.c.id)
        .with_for_update(skip_locked=True)
    )
    if operation_id is not None:
        wanted = wanted.where(_TABLE.c.id == operation_id)
    queued = 0
    while queued < MOST_RETRIED:
        async with context.sessions.begin() as session:
            some = wanted.limit(min(AT_ONCE, MOST_RETRIED - queued))
            statement = update(_TABLE).where(_TABLE.c.id.in_(some))
            statement = statement.values(**FRESH, status=OperationStatus.PENDING)
            rows = await session.execute(statement.returning(*operations.DUE))
            found = [operations.due_row(row) for row in rows]
        await relay.announce(context.redis, found)
        queued += len(found)
        if len(found) < AT_ONCE:
            break
    async with context.sessions.begin() as session:
        audit.record(
            session,
            actor,
            "operations.retried",
            venue_id=venue_id,
            provider=provider,
            target=str(operation_id) if operation_id else None,
            details={"operations": queued},
        )
    return queued


async def _require_ended_badly(
    session: AsyncSession, venue_id: UUID, provider: str, operation_id: UUID
) -> None:
    status = await session.scalar(
        select(Operation.status).filter_by(id=operation_id, venue_id=venue_id, integration_type=provider)
    )
    if status is None:
        raise NotFoundError("this integration has no such operation")
    if status not in ENDED_BADLY:
        raise InvalidRequestError(
            "this operation didn't fail",
            [
                Detail(
                    "queueItemId", f"it is {status.value}; only failed ones and dead letters can be retried"
                )
            ],
        )


async def revive_dead_letters(context: Context, actor: Actor | None = None) -> Revived:
    """Queue dead letters again, in the low lane, of those integrations whose provider answers now.

    `actor` is who asked; None is the scheduler.
    """
    async with context.sessions() as session:
        rows = await session.execute(
            select(Operation.venue_id, Operation.integration_type)
            .where(
                *_revivable(by_itself=actor is None),
                exists().where(
                    IntegrationConfig.venue_id == Operation.venue_id,
                    IntegrationConfig.integration_type == Operation.integration_type,
                    IntegrationConfig.status.in_(RUNNABLE),
                ),
            )
            .group_by(Operation.venue_id, Operation.integration_type)
        )
        waiting = [(row.venue_id, row.integration_type) for row in rows]
    turns = asyncio.Semaphore(TESTED_AT_ONCE)

    async def answers(venue_id: UUID, provider: str) -> bool:
        async with turns:
            try:
                await try_connection(context, venue_id, provider)
            except Exception as error:  # whatever one integration's trouble is, the others' come back
                reason = error.code if isinstance(error, HubError) else type(error).__name__
                log.info("dead_letter.left", venue_id=str(venue_id), provider=provider, reason=reason)
                return False
            return True

    tested = await asyncio.gather(*(answers(*each) for each in waiting))
    requeued = 0
    for each, well in zip(waiting, tested, strict=True):
        if well:
            requeued += await _revive(context, *each, actor)
    return Revived(requeued, sum(tested), len(tested) - sum(tested))


def _revivable(*, by_itself: bool) -> tuple[ColumnElement[bool], ...]:
    """Return which dead letters are queued again: for a person all but what killed its workers once more.

    The hub by itself takes longer with each that came back, up to a day.
    """
    row = _TABLE.c
    harmless = or_(row.error_code.is_(None), row.error_code != operations.WORKER_LOST, row.revivals == 0)
    dead = row.status == OperationStatus.DEAD_LETTER
    if not by_itself:
        return (dead, harmless)
    hours = func.least(func.pow(2, func.least(row.revivals, 10)) - 1, LONGEST_REST)
    rested = func.coalesce(row.completed_at, row.queued_at) + hours * timedelta(hours=1) <= func.now()
    return (dead, harmless, rested)


async def _revive(context: Context, venue_id: UUID, provider: str, actor: Actor | None) -> int:
    async with context.sessions.begin() as session:
        wanted = (
            select(_TABLE.c.id)
            .where(
                _TABLE.c.venue_id == venue_id,
                _TABLE.c.integration_type == provider,
                *_revivable(by_itself=actor is None),
            )
            .order_by(_TABLE.c.queued_at)
            .limit(AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        statement: Update = (
            update(_TABLE)
            .where(_TABLE.c.id.in_(wanted))
            .values(**FRESH, status=OperationStatus.RECOVERING, priority=Priority.LOW)
        )
        rows = await session.execute(statement.returning(*operations.DUE))
        found = [operations.due_row(row) for row in rows]
        if actor is not None:
            audit.record(
                session,
                actor,
                "dead_letters.revived",
                venue_id=venue_id,
                provider=provider,
                details={"operations": len(found)},
            )
    await relay.announce(context.redis, found)
    log.info("dead_letter.revived", venue_id=str(venue_id), provider=provider, operations=len(found))
    return len(found)


async def try_connection(context: Context, venue_id: UUID, provider: str) -> None:
    """Make the manifest's check call with the stored credentials.

    Raises CredentialsNotFoundError without any, AuthenticationError when they are refused and other
    ProviderErrors when the provider can't answer.
    """
    connector = context.catalog.connector(provider)
    client = context.client(connector, context.credentials(venue_id, provider))
    try:
        async with metered(context.sessions, venue_id, provider), asyncio.timeout(TEST_SECONDS):
            await client.check()
    except TimeoutError as error:
        raise UnavailableError(f"{connector.title} doesn't answer") from error


async def recover_stale(context: Context, actor: Actor) -> int:
    """Announce operations whose worker let its lease run out, and all that is due; returns how many.

    The scheduler does the same each second, so this only matters when none runs.
    """
    async with context.sessions.begin() as session:
        await operations.settle(session)
        stale = await session.scalar(
            select(func.count())
            .select_from(Operation)
            .where(Operation.status == OperationStatus.PROCESSING, Operation.lease_expires_at <= func.now())
        )
        audit.record(session, actor, "operations.recovered", details={"operations": stale or 0})
    await relay.sweep(context.sessions, context.redis)
    return stale or 0


async def clear_queue(
    context: Context,
    actor: Actor,
    *,
    venue_id: UUID | None = None,
    provider: str | None = None,
    status: OperationStatus | None = None,
) -> int:
    """Delete operations that fit all that is given, but never one that is being worked; returns how many.

    Without a status the completed ones stay, for they are history. What webhooks told and was still to be
    worked is `ignored` from then on, until somebody replays it. Raises InvalidRequestError for `processing`:
    such an operation is stopped first.
    """
    if status == OperationStatus.PROCESSING:
        raise InvalidRequestError(
            "what is being worked can't be cleared",
            [Detail("status", "stop the sync first: `POST …/sync/{provider}/sync/stop`")],
        )
    statement = delete(Operation).where(Operation.status.in_(CLEARED if status is None else [status]))
    if venue_id is not None:
        statement = statement.where(Operation.venue_id == venue_id)
    if provider is not None:
        context.catalog.connector(provider)
        statement = statement.where(Operation.integration_type == provider)
    told = Operation.payload["webhookId"].astext
    async with context.sessions.begin() as session:
        events = (await session.scalars(statement.returning(told))).all()
        cleared = len(events)
        await webhooks.give_up(session, [UUID(each) for each in events if each is not None])
        audit.record(
            session,
            actor,
            "queue.cleared",
            venue_id=venue_id,
            provider=provider,
            details={"operations": cleared, "status": status.value if status else None},
        )
    return cleared
