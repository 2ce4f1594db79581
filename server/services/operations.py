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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    FromClause,
    Interval,
    Select,
    String,
    Table,
    Text,
    Update,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    extract,
    func,
    literal_column,
    not_,
    or_,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects.postgresql import JSONPATH, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from engine.errors import HubError, LeaseLostError
from server.db import exact_json
from server.db.models import Operation, OperationStatus, OperationType, Priority
from server.db.reads import Plain, Reads
from server.errors import QueueFullError
from server.services import breaker, outbox
from server.telemetry import traces

LANES: tuple[str, ...] = tuple(priority.value.lower() for priority in Priority)  # most urgent first

FIRST_WAIT = timedelta(seconds=2)  # doubles with each attempt, with full jitter
LONGEST_WAIT = timedelta(hours=1)
# A lost worker seldom is the operation's fault, so it costs no attempt. An operation that loses so many in a
# row, and gets nothing done in between (`PostgresSyncState` notes that), is taken for the cause.
LOST_WORKERS = 3
ENQUEUED_AT_ONCE = 1000
ATTEMPTS_KEPT = 20  # of an operation's history
WORKER_LOST = "WORKER_LOST"
EXPIRED = "OPERATION_EXPIRED"


class Hold(StrEnum):
    """What a worker learns from a heartbeat."""

    HELD = "held"
    STOP = "stop"  # held, and somebody asked the run to stop
    MAKE_WAY = "make_way"  # held, and something more urgent of the integration waits for its end
    LOST = "lost"


class Due(NamedTuple):
    """An operation that could be claimed now; `queued_at` in Unix seconds orders what an integration has."""

    id: UUID
    venue_id: UUID
    provider: str
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
    started_at: datetime  # of the first attempt
    owner: str
    fencing_token: int
    lease: timedelta
    queued_at: datetime | None = field(default=None, compare=False)
    revivals: int = 0  # how often it ended badly and was queued again
    lost_workers: int = 0  # in a row, before this one


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ends, from `completed`, `paused`, `released` or `failed`; `write_ends` writes it."""

    claim: Claim
    status: OperationStatus
    values: Mapping[str, Any]  # by the names that `_end_statement` knows


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operation to be written, as `enqueue` takes it."""

    venue_id: UUID
    provider: str
    operation_type: OperationType
    entity_type: str
    payload: Mapping[str, Any]
    entity_id: str | None = None
    priority: Priority = Priority.NORMAL
    idempotency_key: str | None = None
    run_id: UUID | None = None
    max_attempts: int = 10
    correlation_id: str | None = None


def as_due(operation: Operation) -> Due:
    """Return an operation that has just been written, to be announced."""
    return Due(
        operation.id,
        operation.venue_id,
        operation.integration_type,
        lane_of(operation.priority),
        operation.queued_at.timestamp(),
    )


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
            payload=traces.carried(payload),
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


async def enqueue_many(session: AsyncSession, wanted: Sequence[Wanted]) -> list[Due]:
    """Write many operations, a thousand a statement; returns those that are new, to be announced.

    One whose idempotency key is known already is left out.
    """
    written: list[Due] = []
    for start in range(0, len(wanted), ENQUEUED_AT_ONCE):
        some = [
            {**{name: getattr(each, name) for name in _WANTED}, "payload": traces.carried(each.payload)}
            for each in wanted[start : start + ENQUEUED_AT_ONCE]
        ]
        rows = await session.execute(_ENQUEUE_MANY, {"wanted": exact_json.dumps(some)})
        written += [due_row(row) for row in rows]
    return written


async def is_full(session: AsyncSession, venue_id: UUID, provider: str, depth: int) -> bool:
    """Tell whether as many operations of an integration wait as may; 0 is any number."""
    found = await crowded(session, [(venue_id, provider)], depth)
    return bool(found)


async def require_room(session: AsyncSession, venue_id: UUID, provider: str, depth: int) -> None:
    """Raise QueueFullError when as many operations of an integration wait as may; 0 is any number."""
    if await is_full(session, venue_id, provider, depth):
        raise QueueFullError(
            f"{depth} operations of this integration wait already: try again when some of them are done"
        )


async def crowded(
    session: AsyncSession, integrations: Collection[tuple[UUID, str]], depth: int
) -> set[tuple[UUID, str]]:
    """Return those of some integrations, venue and provider, of which `depth` operations or more wait."""
    if not depth or not integrations:
        return set()
    rows = await session.execute(_CROWDED, {**_arrays(integrations), "depth": depth})
    return {(row.venue_id, row.provider) for row in rows}


async def due(session: AsyncSession, limit: int = 1000, *, lanes: Collection[str] = LANES) -> list[Due]:
    """Return operations that could be claimed now, the most urgent and oldest first.

    They are those that wait and are due, and those whose worker let its lease run out.
    """
    rows = await session.execute(_due_statement(frozenset(lanes)), {"limit": limit})
    return [due_row(row) for row in rows]


async def next_of(ledger: Reads, integrations: Collection[tuple[UUID, str]]) -> list[Due]:
    """Return the most urgent operation that is due of each of some integrations, venue and provider."""
    statement = _plain_next()
    rows = await ledger.rows(statement.text, *statement.values(**_arrays(integrations)))
    return [
        Due(
            row["id"],
            row["venue_id"],
            row["integration_type"],
            lane_of(Priority(row["priority"])),
            float(row["queued"]),
        )
        for row in rows
    ]


def due_row(row: Any) -> Due:
    """Return an operation to be announced from a row of DUE."""
    return Due(row.id, row.venue_id, row.integration_type, lane_of(row.priority), float(row.queued))


def _arrays(integrations: Collection[tuple[UUID, str]]) -> dict[str, Any]:
    return {"venues": [venue for venue, _ in integrations], "providers": [name for _, name in integrations]}


async def claim(
    ledger: Reads,
    operation_ids: Sequence[UUID],
    *,
    owner: str,
    lease: timedelta,
    lanes: Collection[str] = LANES,
) -> list[Claim]:
    """Take those of some operations that are to be had, in their order: one of each integration.

    It is one statement and one transaction: until its end nobody else can claim for the same integrations.
    Raises asyncpg.UniqueViolationError, and takes nothing, when somebody claims for one of them in the same
    moment: an index lets an integration have one that runs. Then they are to be claimed one by one.

    Claimed again after a connection broke, an operation may be held by a lease that nobody knows of: it runs
    out, as the lease of a worker that is lost.
    """
    statement = _plain_claim(frozenset(lanes))
    rows = await ledger.rows(
        statement.text, *statement.values(ids=list(operation_ids), owner=owner, lease=lease)
    )
    claims = {}
    for row in rows:
        values = dict(row)
        operation_id = values.pop("id")
        claims[operation_id] = Claim(
            operation_id=operation_id,
            provider=values.pop("integration_type"),
            operation_type=OperationType(values.pop("operation_type")),
            priority=Priority(values.pop("priority")),
            owner=owner,
            lease=lease,
            **values,
        )
    return [claims[each] for each in operation_ids if each in claims]


async def heartbeat(session: AsyncSession, claim: Claim, progress: Mapping[str, Any] | None = None) -> Hold:
    """Extend the lease, and save the run's progress on the way when there is news."""
    news = {} if progress is None else {"new_progress": dict(progress)}
    stop = (
        await session.scalars(_beat_statement(bool(news)), {**_held(claim), **news, "lease": claim.lease})
    ).one_or_none()
    return Hold.LOST if stop is None else Hold.STOP if stop else Hold.HELD


async def heartbeats(
    session: AsyncSession, claims: Collection[Claim], progress: Mapping[UUID, Mapping[str, Any]]
) -> dict[UUID, Hold | None]:
    """Extend the leases of one worker's operations, and save the progress of those that have news.

    None stands for one that is held and whose row is locked, by a page being saved: it isn't extended.
    """
    if not claims:
        return {}
    tokens = {claim.operation_id: claim.fencing_token for claim in claims}
    rows = await session.execute(_HELD_BY_ME.with_for_update(skip_locked=True), {"ids": list(tokens)})
    holds: dict[UUID, Hold | None] = {
        row.id: Hold.STOP if row.stop_requested else Hold.MAKE_WAY if row.makes_way else Hold.HELD
        for row in rows
        if tokens[row.id] == row.fencing_token
    }
    held = list(holds)
    if held:
        lease = next(iter(claims)).lease
        await session.execute(_EXTEND, {"ids": held, "lease": lease})
    news = [
        {"held_id": each, "new_progress": dict(progress[each])} for each in sorted(held) if each in progress
    ]
    if news:
        await session.execute(_SAVE_PROGRESS, news)
    missing = [each for each in tokens if each not in holds]
    if missing:
        rows = await session.execute(_HELD_BY_ME, {"ids": missing})
        locked = {row.id for row in rows if tokens[row.id] == row.fencing_token}
        holds |= {each: None if each in locked else Hold.LOST for each in missing}
    return holds


def completed(claim: Claim, result: Mapping[str, Any], progress: Mapping[str, Any] | None = None) -> End:
    """It ended well. `progress` None leaves it as last saved, here and in those that follow."""
    values = {"result": dict(result), "last_error": None, "error_code": None}
    return _end(claim, OperationStatus.COMPLETED, progress, **values)


def paused(claim: Claim, result: Mapping[str, Any], progress: Mapping[str, Any] | None = None) -> End:
    """It ends because somebody asked; what was done stays done."""
    return _end(claim, OperationStatus.PAUSED, progress, result=dict(result), stop_requested=False)


def released(claim: Claim, progress: Mapping[str, Any] | None = None) -> End:
    """It is given back untouched, for another worker to take at once: no attempt is counted."""
    return _end(claim, OperationStatus.PENDING, progress, attempts=max(claim.attempts - 1, 0))


def failed(
    claim: Claim,
    error: HubError,
    *,
    result: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
    retry_after: float | None = None,
    free: bool = False,
    chance: Callable[[], float] = random.random,
) -> End:
    """The attempt ends with an error; the status says what becomes of the operation.

    It waits for another attempt when that can help: a random time up to a bound that doubles with each
    attempt, on top of `retry_after` seconds when the provider named them. Out of attempts it is a dead letter
    and when trying again can't help, it has failed. A `free` attempt isn't counted.
    """
    again = error.retryable and (free or claim.attempts < claim.max_attempts)
    status = (
        OperationStatus.PENDING
        if again
        else OperationStatus.DEAD_LETTER
        if error.retryable
        else OperationStatus.FAILED
    )
    wait = retry_wait(claim.attempts, chance) + timedelta(seconds=retry_after or 0)
    return _end(
        claim,
        status,
        progress,
        result={**(result or {}), "error": {"code": error.code, "message": error.message}},
        last_error=error.message,
        error_code=error.code,
        more_errors=1,
        wait=wait if again else None,
        **({"attempts": max(claim.attempts - 1, 0)} if free and again else {}),
    )


def _end(claim: Claim, status: OperationStatus, progress: Mapping[str, Any] | None, **values: Any) -> End:
    return End(claim, status, values if progress is None else {**values, "progress": dict(progress)})


async def write_ends(session: AsyncSession, ends: Sequence[End]) -> set[UUID]:
    """Write down how some attempts end; returns whose leases still held. Nothing is written of the others."""
    rows = []
    for end in ends:
        wait = end.values.get("wait")
        rows.append(
            {
                **end.values,
                "id": str(end.claim.operation_id),
                "token": end.claim.fencing_token,
                "status": end.status,
                "final": end.status in _FINAL,
                "wait": None if wait is None else wait.total_seconds(),
                "keeps": [name for name in _KEPT if name not in end.values],
            }
        )
    return set((await session.scalars(_END, {"ends": exact_json.dumps(rows), "newest": _NEWEST})).all())


async def complete(
    session: AsyncSession,
    claim: Claim,
    result: Mapping[str, Any],
    *,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write that it is `completed`. Raises LeaseLostError, as all that follow do."""
    await _write(session, completed(claim, result, progress))


async def pause(
    session: AsyncSession,
    claim: Claim,
    result: Mapping[str, Any],
    *,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write that it is `paused`."""
    await _write(session, paused(claim, result, progress))


async def release(session: AsyncSession, claim: Claim, *, progress: Mapping[str, Any] | None = None) -> None:
    """Write that it is `released`."""
    await _write(session, released(claim, progress))


async def fail(session: AsyncSession, claim: Claim, error: HubError, **given: Any) -> OperationStatus:
    """Write that it has `failed`, which takes the same; returns what becomes of the operation."""
    end = failed(claim, error, **given)
    await _write(session, end)
    return end.status


async def _write(session: AsyncSession, end: End) -> None:
    if not await write_ends(session, [end]):
        raise LeaseLostError("another worker has taken this operation over")


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
    endings: tuple[tuple[ColumnElement[bool], OperationStatus, Mapping[str, Any]], ...] = (
        (and_(unheld, _OP.stop_requested), OperationStatus.PAUSED, {}),
        (
            and_(_orphaned_lease(), not_(_may_lose_another_worker())),
            OperationStatus.DEAD_LETTER,
            {
                "lost_workers": _OP.lost_workers + 1,
                "error_code": WORKER_LOST,
                "last_error": _LOST,
                "attempts_log": _logged(WORKER_LOST, _LOST),
            },
        ),
        (
            and_(_is(*WAITING), _OP.expires_at <= func.now()),
            OperationStatus.DEAD_LETTER,
            {
                "error_code": EXPIRED,
                "last_error": "the operation expired before it could be worked",
                "attempts_log": _logged(EXPIRED, "the operation expired before it could be worked"),
            },
        ),
    )
    ended = 0
    for condition, status, reason in endings:
        # What another scheduler ends, or somebody holds, is passed over: it comes again in a second.
        loose = select(_OP.id).where(condition).with_for_update(skip_locked=True)
        statement = (
            update(_TABLE)
            .where(_OP.id.in_(loose))
            .values(
                **_ENDED,
                status=status,
                stop_requested=False,
                fencing_token=_OP.fencing_token + 1,
                **reason,
                completed_at=func.now(),
                updated_at=func.now(),
            )
            .returning(_TABLE)
        )
        rows = (await session.execute(statement)).all()
        for row in rows:
            if status is OperationStatus.DEAD_LETTER and row.operation_type is OperationType.SYNC:
                outbox.announce_sync(
                    session,
                    venue_id=row.venue_id,
                    provider=row.integration_type,
                    sync_id=row.run_id or row.id,
                    sync_type=row.payload.get("syncType", "full"),
                    attempts=row.attempts,
                    steps=(row.progress or {}).get("mappings", ()),
                    error_code=row.error_code,
                )
        ended += len(rows)
    return ended


async def outlived(session: AsyncSession, claim: Claim) -> None:
    """Take back that an operation lost this worker: it only lost the lease, and is well."""
    await session.execute(
        update(_TABLE)
        .where(
            _OP.id == claim.operation_id,
            _OP.fencing_token.between(claim.fencing_token, claim.fencing_token + 1),
            _is(OperationStatus.PROCESSING),
        )
        .values(lost_workers=_OP.lost_workers - 1)
    )


async def confirm(session: AsyncSession, claim: Claim) -> None:
    """Lock a claimed operation until the end of the transaction; raises LeaseLostError when it is lost."""
    if (await session.scalars(_held_statement().returning(_OP.id), _held(claim))).one_or_none() is None:
        raise LeaseLostError("another worker has taken this operation over")


async def hold_running(session: AsyncSession, venue_id: UUID, provider: str) -> None:
    """Lock what runs for an integration until the end of the transaction.

    A worker locks its operation before the integration; whoever needs both does it in the same order.
    """
    statement = select(_OP.id).where(_runs_for(venue_id, provider)).order_by(_OP.id).with_for_update()
    await session.execute(statement)


async def end_running(session: AsyncSession, venue_id: UUID, provider: str) -> None:
    """Take what runs for an integration away from its workers: none of them can save anything any more."""
    await session.execute(
        update(_TABLE)
        .where(_runs_for(venue_id, provider))
        .values(
            **_ENDED,
            status=OperationStatus.PAUSED,
            stop_requested=False,
            fencing_token=_OP.fencing_token + 1,
            completed_at=func.now(),
            updated_at=func.now(),
        )
    )


def _runs_for(venue_id: UUID, provider: str) -> ColumnElement[bool]:
    return and_(_OP.venue_id == venue_id, _OP.integration_type == provider, _is(OperationStatus.PROCESSING))


WAITING = (OperationStatus.PENDING, OperationStatus.RECOVERING)
_FINAL = (
    OperationStatus.COMPLETED,
    OperationStatus.FAILED,
    OperationStatus.DEAD_LETTER,
    OperationStatus.PAUSED,
)
_NEWEST = f"$[last-{ATTEMPTS_KEPT - 1} to last]"  # entries of `attempts_log`
_LOST = "the worker was lost while it worked on this operation"
_ENDED: Mapping[str, Any] = {"lease_owner": None, "lease_expires_at": None, "next_retry_at": None}


def _held(claim: Claim) -> dict[str, Any]:
    return {"held_id": claim.operation_id, "held_token": claim.fencing_token}


# --- statements. Workers run them all the time, so each is built once and not for every operation.

_TABLE = cast(Table, Operation.__table__)
_OP = _TABLE.c


def _is(*statuses: OperationStatus, of: FromClause = _TABLE) -> ColumnElement[bool]:
    # Written out and not bound: partial indexes are used only for conditions the planner can read.
    return of.c.status.in_([literal_column(f"'{status.value}'::operation_status") for status in statuses])


def _waiting() -> ColumnElement[bool]:
    return and_(
        _is(*WAITING),
        not_(_OP.stop_requested),
        or_(_OP.next_retry_at.is_(None), _OP.next_retry_at <= func.now()),
        _OP.expires_at > func.now(),
    )


def _orphaned_lease() -> ColumnElement[bool]:
    return and_(_is(OperationStatus.PROCESSING), _OP.lease_expires_at <= func.now())


def _may_lose_another_worker() -> ColumnElement[bool]:
    return _OP.lost_workers < LOST_WORKERS - 1  # the one that is gone isn't counted yet


def _orphaned() -> ColumnElement[bool]:
    return and_(_orphaned_lease(), not_(_OP.stop_requested), _may_lose_another_worker())


def _logged(code: Any, message: Any) -> ColumnElement[Any]:
    """Return an operation's history with one more entry, without its oldest beyond ATTEMPTS_KEPT."""
    entry = func.jsonb_build_object(
        *("at", func.now(), "attempt", _OP.attempts),
        *("code", cast_to(code, Text), "message", cast_to(message, Text)),
    )
    return func.jsonb_path_query_array(_OP.attempts_log.concat(entry), cast_to(_NEWEST, JSONPATH))


def _free() -> ColumnElement[bool]:
    """No other operation is working on the same integration's records, and its provider may be asked."""
    other = _TABLE.alias()
    busy = (
        select(other.c.id)
        .where(
            other.c.venue_id == _OP.venue_id,
            other.c.integration_type == _OP.integration_type,
            other.c.id != _OP.id,
            _is(OperationStatus.PROCESSING, of=other),
        )
        .exists()
    )
    return and_(not_(busy), not_(breaker.cut_off(_TABLE)))


def _in_lanes(lanes: frozenset[str]) -> ColumnElement[bool]:
    if lanes == frozenset(LANES):
        return true()
    served = [lane.upper() for lane in LANES if lane in lanes]
    return _OP.priority.in_([literal_column(f"'{each}'::operation_priority") for each in served])


def _queued() -> ColumnElement[Any]:
    return extract("epoch", _OP.queued_at).label("queued")


def _more_urgent_waits() -> ColumnElement[bool]:
    """Something of the same integration, due and in a more urgent lane, waits for this operation's end."""
    other = _TABLE.alias()
    return (
        select(other.c.id)
        .where(
            other.c.venue_id == _OP.venue_id,
            other.c.integration_type == _OP.integration_type,
            _is(*WAITING, of=other),
            other.c.priority < _OP.priority,  # CRITICAL is the first of the type
            not_(other.c.stop_requested),
            other.c.expires_at > func.now(),
            or_(other.c.next_retry_at.is_(None), other.c.next_retry_at <= func.now()),
        )
        .exists()
    )


# In order, so that two who lock several never wait for each other.
_HELD_BY_ME = (
    select(_OP.id, _OP.fencing_token, _OP.stop_requested, _more_urgent_waits().label("makes_way"))
    .where(_OP.id == any_(bindparam("ids", type_=ARRAY(Uuid))), _is(OperationStatus.PROCESSING))
    .order_by(_OP.id)
)
_EXTEND = (
    update(_TABLE)
    .where(_OP.id == any_(bindparam("ids", type_=ARRAY(Uuid))))
    .values(lease_expires_at=func.now() + bindparam("lease", type_=Interval()), updated_at=func.now())
)
_SAVE_PROGRESS = (
    update(_TABLE).where(_OP.id == bindparam("held_id")).values(progress=bindparam("new_progress"))
)
_WANTED = tuple(each.name for each in fields(Wanted))
_ENQUEUE_MANY = text("""
INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, entity_id, payload, priority,
    idempotency_key, run_id, max_attempts, correlation_id)
SELECT venue_id, provider, operation_type, entity_type, entity_id, payload, priority, idempotency_key, run_id,
    max_attempts, correlation_id
FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted (
    venue_id uuid, provider text, operation_type operation_type, entity_type text, entity_id text,
    payload jsonb, priority operation_priority, idempotency_key text, run_id uuid, max_attempts int,
    correlation_id text)
ON CONFLICT (idempotency_key) DO NOTHING
RETURNING id, venue_id, integration_type, priority, extract(epoch FROM queued_at) AS queued
""").columns(
    id=_OP.id.type,
    venue_id=_OP.venue_id.type,
    integration_type=_OP.integration_type.type,
    priority=_OP.priority.type,
)
# No more of an integration is looked at than it takes to know: `ix_sync_queue_waiting` has it.
_CROWDED = text("""
SELECT wanted.venue_id, wanted.provider
FROM (SELECT DISTINCT * FROM unnest(CAST(:venues AS uuid[]), CAST(:providers AS text[]))
    AS each (venue_id, provider)) AS wanted
WHERE EXISTS (
    SELECT FROM sync_queue AS waiting
    WHERE waiting.venue_id = wanted.venue_id AND waiting.integration_type = wanted.provider
        AND waiting.status IN ('pending', 'recovering')
    OFFSET CAST(:depth AS int) - 1)
""")


# What a statement that makes operations due returns, for `due_row`.
DUE = (_OP.id, _OP.venue_id, _OP.integration_type, _OP.priority, _queued())


@cache
def _next_statement() -> Select[Any]:
    wanted = (
        func.unnest(bindparam("venues", type_=ARRAY(Uuid)), bindparam("providers", type_=ARRAY(String)))
        .table_valued("venue_id", "provider")
        .render_derived()
    )
    first = (
        select(*DUE)
        .where(
            _OP.venue_id == wanted.c.venue_id, _OP.integration_type == wanted.c.provider, _waiting(), _free()
        )
        .order_by(_OP.priority, _OP.queued_at)
        .limit(1)
        .lateral()
    )
    return select(first).select_from(wanted.join(first, true()))


@cache
def _due_statement(lanes: frozenset[str]) -> Select[Any]:
    # Each half by itself can follow an index; an OR of both could not.
    halves = [
        select(_OP.id, _OP.venue_id, _OP.integration_type, _OP.priority, _OP.queued_at)
        .where(half, _free(), _in_lanes(lanes))
        .order_by(_OP.priority, _OP.queued_at)
        .limit(bindparam("limit"))
        .subquery()
        for half in (_waiting(), _orphaned())
    ]
    both = union_all(*(select(half) for half in halves)).subquery()
    return (
        select(
            *(both.c.id, both.c.venue_id, both.c.integration_type, both.c.priority),
            extract("epoch", both.c.queued_at).label("queued"),
        )
        .order_by(both.c.priority, both.c.queued_at)
        .limit(bindparam("limit"))
    )


@cache
def _claim_statement(lanes: frozenset[str]) -> Update:
    candidates = (
        select(_OP.id, _OP.venue_id, _OP.integration_type, _OP.priority, _OP.queued_at)
        .where(
            _OP.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
            or_(_waiting(), _orphaned()),
            _free(),
            _in_lanes(lanes),
        )
        .with_for_update(skip_locked=True)
        .cte("candidates")
    )
    # The unique index would refuse a second one of an integration.
    chosen = (
        select(candidates.c.id)
        .distinct(candidates.c.venue_id, candidates.c.integration_type)
        .order_by(
            *(candidates.c.venue_id, candidates.c.integration_type),
            *(candidates.c.priority, candidates.c.queued_at),
        )
    )
    taken_over = _is(OperationStatus.PROCESSING)
    return (
        update(_TABLE)
        .where(_OP.id.in_(chosen))
        .values(
            status=OperationStatus.PROCESSING,
            # One taken over from a lost worker goes on with the attempt that was begun.
            attempts=_OP.attempts + case((taken_over, 0), else_=1),
            error_count=_OP.error_count + case((taken_over, 1), else_=0),
            lost_workers=_OP.lost_workers + case((taken_over, 1), else_=0),
            attempts_log=case((taken_over, _logged(WORKER_LOST, _LOST)), else_=_OP.attempts_log),
            fencing_token=_OP.fencing_token + 1,
            lease_owner=bindparam("owner"),
            lease_expires_at=func.now() + bindparam("lease", type_=Interval()),
            started_at=func.coalesce(_OP.started_at, func.now()),
            next_retry_at=None,
            updated_at=func.now(),
        )
        .returning(
            _OP.id,
            _OP.venue_id,
            _OP.integration_type,
            _OP.operation_type,
            _OP.entity_type,
            _OP.entity_id,
            _OP.payload,
            _OP.priority,
            _OP.attempts,
            _OP.max_attempts,
            _OP.run_id,
            _OP.correlation_id,
            _OP.progress,
            _OP.queued_at,
            _OP.started_at,
            _OP.fencing_token,
            _OP.revivals,
            _OP.lost_workers,
        )
    )


@cache
def _plain_claim(lanes: frozenset[str]) -> Plain:
    return Plain.of(_claim_statement(lanes))


@cache
def _plain_next() -> Plain:
    return Plain.of(_next_statement())


@cache
def _held_statement() -> Update:
    return (
        update(_TABLE)
        .where(
            _OP.id == bindparam("held_id"),
            _OP.fencing_token == bindparam("held_token"),
            _is(OperationStatus.PROCESSING),
        )
        .values(updated_at=func.now())
    )


@cache
def _beat_statement(with_progress: bool) -> Update:
    statement = _held_statement().values(lease_expires_at=func.now() + bindparam("lease", type_=Interval()))
    if with_progress:
        statement = statement.values(progress=bindparam("new_progress"))
    return statement.returning(_OP.stop_requested)


# What an end leaves as it is unless it has a value for it.
_KEPT = ("result", "last_error", "error_code", "attempts", "progress", "stop_requested")

_END = text("""
UPDATE sync_queue AS operation SET
    status = ended.status,
    completed_at = CASE WHEN ended.final THEN now() END,
    lease_owner = NULL, lease_expires_at = NULL, lost_workers = 0, updated_at = now(),
    next_retry_at = now() + ended.wait * interval '1 second',
    result = CASE WHEN 'result' = ANY(keeps) THEN operation.result ELSE ended.result END,
    last_error = CASE WHEN 'last_error' = ANY(keeps) THEN operation.last_error ELSE ended.last_error END,
    error_code = CASE WHEN 'error_code' = ANY(keeps) THEN operation.error_code ELSE ended.error_code END,
    attempts = CASE WHEN 'attempts' = ANY(keeps) THEN operation.attempts ELSE ended.attempts END,
    progress = CASE WHEN 'progress' = ANY(keeps) THEN operation.progress ELSE ended.progress END,
    stop_requested = 'stop_requested' = ANY(keeps) AND operation.stop_requested,
    error_count = operation.error_count + coalesce(ended.more_errors, 0),
    attempts_log = CASE WHEN ended.more_errors IS NULL THEN operation.attempts_log
        ELSE jsonb_path_query_array(operation.attempts_log || jsonb_build_object(
            'at', now(), 'attempt', operation.attempts,
            'code', ended.error_code, 'message', ended.last_error), CAST(:newest AS jsonpath)) END
FROM jsonb_to_recordset(CAST(:ends AS jsonb)) AS ended (
    id uuid, token bigint, status operation_status, final boolean, wait double precision, keeps text[],
    result jsonb, last_error text, error_code text, attempts int, progress jsonb, more_errors int)
WHERE operation.id = ended.id AND operation.fencing_token = ended.token AND operation.status = 'processing'
RETURNING operation.id
""").columns(id=_OP.id.type)
