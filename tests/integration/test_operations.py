"""The operations ledger on a real PostgreSQL: who may claim, who may write, and what becomes of failures."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from engine.errors import AuthenticationError, LeaseLostError, RateLimitedError, UnavailableError
from server.db.engine import create_engine, session_factory
from server.db.models import Operation, OperationStatus, OperationType, Priority
from server.db.reads import Reads
from server.errors import QueueFullError
from server.services import operations
from server.services.operations import Claim, Hold
from tests import claims

LEASE = timedelta(seconds=60)
OVER = timedelta(seconds=-1)  # a lease that ran out in the moment it was given

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[Sessions]:
    engine = create_engine(fresh_database_url)
    yield session_factory(engine)
    await engine.dispose()


@pytest.fixture
async def ledger(fresh_database_url: str) -> AsyncIterator[Reads]:
    async with Reads(fresh_database_url, application_name="ledger", by_index=True) as opened:
        yield opened


async def _locked_out(sessions: Sessions) -> None:
    """Return once somebody waits for a lock in this database."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(10), sessions() as session:
        while not await session.scalar(waiting):
            await session.rollback()  # or it would see the same again
            await asyncio.sleep(0.01)


async def _enqueue(sessions: Sessions, **given: Any) -> UUID:
    values: dict[str, Any] = {
        "venue_id": uuid4(),
        "provider": "juniper",
        "operation_type": OperationType.SYNC,
        "entity_type": "full",
        "payload": {"syncType": "full"},
        **given,
    }
    async with sessions.begin() as session:
        return (await operations.enqueue(session, **values)).id


async def _claim(
    sessions: Sessions,
    operation_id: UUID | None = None,
    owner: str = "a",
    lease: timedelta = LEASE,
    **given: Any,
) -> Claim | None:
    return await claims.claim(sessions.kw["bind"], operation_id, owner=owner, lease=lease, **given)


async def _held(sessions: Sessions, operation_id: UUID, owner: str = "a", lease: timedelta = LEASE) -> Claim:
    claim = await _claim(sessions, operation_id, owner, lease)
    assert claim is not None
    return claim


async def _row(sessions: Sessions, operation_id: UUID) -> Operation:
    async with sessions() as session:
        return (await session.scalars(select(Operation).where(Operation.id == operation_id))).one()


async def _set(sessions: Sessions, operation_id: UUID, **values: Any) -> None:
    async with sessions.begin() as session:
        await session.execute(update(Operation).where(Operation.id == operation_id).values(**values))


async def _due(sessions: Sessions, **given: Any) -> list[UUID]:
    async with sessions() as session:
        return [found.id for found in await operations.due(session, **given)]


async def _settle(sessions: Sessions) -> int:
    async with sessions.begin() as session:
        return await operations.settle(session)


async def test_the_same_idempotency_key_gives_the_same_operation(sessions: Sessions) -> None:
    first = await _enqueue(sessions, idempotency_key="k", payload={"syncType": "full"})
    again = await _enqueue(sessions, idempotency_key="k", payload={"syncType": "products"})
    assert again == first
    assert (await _row(sessions, first)).payload == {"syncType": "full"}


async def test_the_same_idempotency_key_in_the_same_moment_gives_the_same_operation(
    sessions: Sessions,
) -> None:
    ids = await asyncio.gather(*(_enqueue(sessions, idempotency_key="k") for _ in range(8)))
    assert len(set(ids)) == 1


async def test_operations_without_a_key_are_all_kept(sessions: Sessions) -> None:
    assert await _enqueue(sessions) != await _enqueue(sessions)


async def test_a_claim_holds_what_was_enqueued(sessions: Sessions) -> None:
    venue, run = uuid4(), uuid4()
    operation_id = await _enqueue(
        sessions,
        venue_id=venue,
        entity_type="products",
        payload={"syncType": "products"},
        priority=Priority.HIGH,
        run_id=run,
        max_attempts=3,
        correlation_id="req-1",
    )
    claim = await _held(sessions, operation_id, owner="worker-1")
    assert claim == Claim(
        operation_id=operation_id,
        venue_id=venue,
        provider="juniper",
        operation_type=OperationType.SYNC,
        entity_type="products",
        entity_id=None,
        payload={"syncType": "products"},
        priority=Priority.HIGH,
        attempts=1,
        max_attempts=3,
        run_id=run,
        correlation_id="req-1",
        progress=None,
        started_at=claim.started_at,
        owner="worker-1",
        fencing_token=1,
        lease=LEASE,
    )


async def test_of_claimers_in_the_same_moment_one_wins(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claims = await asyncio.gather(*(_claim(sessions, operation_id, owner=str(n)) for n in range(8)))
    winners = [claim for claim in claims if claim]
    assert len(winners) == 1
    assert (await _row(sessions, operation_id)).lease_owner == winners[0].owner


async def test_an_integration_runs_one_of_its_operations_at_a_time(sessions: Sessions) -> None:
    venue = uuid4()
    ids = [
        await _enqueue(sessions, venue_id=venue, operation_type=kind, entity_id="e1")
        for kind in (OperationType.SYNC, OperationType.SYNC, OperationType.UPDATE, OperationType.UPDATE)
    ]
    other_provider = await _enqueue(sessions, venue_id=venue, provider="larch")
    claims = await asyncio.gather(*(_claim(sessions, i) for i in (*ids, other_provider)))
    assert sum(claim is not None for claim in claims[:4]) == 1
    assert claims[4] is not None
    assert await _due(sessions) == []  # those that must wait aren't announced


async def test_the_next_of_an_integration_can_run_when_the_first_has_ended(sessions: Sessions) -> None:
    venue = uuid4()
    first, second = [await _enqueue(sessions, venue_id=venue) for _ in range(2)]
    claim = await _held(sessions, first)
    assert await _claim(sessions, second) is None
    async with sessions.begin() as session:
        await operations.complete(session, claim, {})
    assert await _claim(sessions, second) is not None


async def test_what_a_webhook_told_waits_for_a_sync_of_the_same_integration(sessions: Sessions) -> None:
    """Both pull records, and two pulls at once might make one record twice."""
    venue = uuid4()
    await _held(sessions, await _enqueue(sessions, venue_id=venue))
    reconcile = await _enqueue(sessions, venue_id=venue, operation_type=OperationType.RECONCILE)
    assert await _claim(sessions, reconcile) is None
    others = await _enqueue(sessions, venue_id=uuid4(), operation_type=OperationType.RECONCILE)
    assert await _claim(sessions, others) is not None


async def test_without_an_id_the_most_urgent_and_then_the_oldest_is_claimed(sessions: Sessions) -> None:
    low, normal, late, high = [
        await _enqueue(sessions, priority=priority)
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.HIGH)
    ]
    await _set(sessions, late, queued_at=func.now() + timedelta(minutes=1))
    claims = [await _claim(sessions) for _ in range(5)]
    assert [claim and claim.operation_id for claim in claims] == [high, late, normal, low, None]


async def test_a_worker_of_some_lanes_takes_nothing_of_the_others(sessions: Sessions) -> None:
    normal = await _enqueue(sessions, priority=Priority.NORMAL)
    critical = await _enqueue(sessions, priority=Priority.CRITICAL)
    assert await _claim(sessions, normal, lanes=("critical",)) is None
    assert await _due(sessions, lanes=("critical",)) == [critical]


@pytest.mark.parametrize(
    "values",
    [
        {"status": OperationStatus.PAUSED},
        {"status": OperationStatus.COMPLETED},
        {"status": OperationStatus.FAILED},
        {"status": OperationStatus.DEAD_LETTER},
        {"stop_requested": True},
        {"next_retry_at": func.now() + timedelta(minutes=1)},
        {"expires_at": func.now() - timedelta(minutes=1)},
    ],
    ids=lambda values: ", ".join(f"{k} {getattr(v, 'value', '')}" for k, v in values.items()),
)
async def test_what_must_not_run_is_not_claimed(sessions: Sessions, values: dict[str, Any]) -> None:
    operation_id = await _enqueue(sessions)
    await _set(sessions, operation_id, **values)
    assert await _claim(sessions, operation_id) is None
    assert await _due(sessions) == []


@pytest.mark.parametrize(
    "values",
    [
        {"status": OperationStatus.RECOVERING},
        {"next_retry_at": func.now() - timedelta(seconds=1)},
    ],
    ids=["revived", "wait is over"],
)
async def test_what_may_run_again_is_claimed(sessions: Sessions, values: dict[str, Any]) -> None:
    operation_id = await _enqueue(sessions)
    await _set(sessions, operation_id, **values)
    assert await _due(sessions) == [operation_id]
    assert await _claim(sessions, operation_id) is not None


async def test_a_held_operation_is_taken_over_only_when_its_lease_is_over(sessions: Sessions) -> None:
    held, abandoned = await _enqueue(sessions), await _enqueue(sessions)
    await _held(sessions, held)
    await _held(sessions, abandoned, lease=OVER)
    assert await _due(sessions) == [abandoned]
    assert await _claim(sessions, held, owner="b") is None
    taken = await _held(sessions, abandoned, owner="b")
    assert (taken.owner, taken.fencing_token, taken.attempts) == ("b", 2, 1)


async def test_after_a_takeover_every_write_of_the_first_owner_is_refused(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    old = await _held(sessions, operation_id, lease=OVER)
    new = await _held(sessions, operation_id, owner="b")
    async with sessions.begin() as session:
        assert await operations.heartbeat(session, old, {"late": True}) is Hold.LOST
    for write in (
        lambda session: operations.complete(session, old, {"late": True}),
        lambda session: operations.pause(session, old, {"late": True}),
        lambda session: operations.fail(session, old, UnavailableError("late")),
        lambda session: operations.release(session, old),
    ):
        with pytest.raises(LeaseLostError):
            async with sessions.begin() as session:
                await write(session)
    row = await _row(sessions, operation_id)
    assert (row.status, row.lease_owner, row.result, row.progress) == ("processing", "b", None, None)
    async with sessions.begin() as session:
        await operations.complete(session, new, {"ok": True})


async def test_a_heartbeat_extends_the_lease_and_saves_progress(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claim = await _held(sessions, operation_id, lease=timedelta(seconds=60))
    await _set(sessions, operation_id, lease_expires_at=func.now() - timedelta(seconds=5))
    async with sessions.begin() as session:
        assert await operations.heartbeat(session, claim, {"read": 100}) is Hold.HELD
    assert await _due(sessions) == []
    async with sessions.begin() as session:
        assert await operations.heartbeat(session, claim) is Hold.HELD
    assert (await _row(sessions, operation_id)).progress == {"read": 100}


async def test_a_heartbeat_tells_that_somebody_asked_to_stop(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claim = await _held(sessions, operation_id)
    await _set(sessions, operation_id, stop_requested=True)
    async with sessions.begin() as session:
        assert await operations.heartbeat(session, claim) is Hold.STOP
        await operations.pause(session, claim, {"read": 3})
    row = await _row(sessions, operation_id)
    assert (row.status, row.stop_requested, row.result) == (OperationStatus.PAUSED, False, {"read": 3})
    assert row.completed_at is not None


async def test_a_completed_operation_is_free_of_its_worker(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claim = await _held(sessions, operation_id)
    async with sessions.begin() as session:
        await operations.complete(session, claim, {"synced": 5})
    row = await _row(sessions, operation_id)
    assert (row.status, row.result, row.lease_owner) == (OperationStatus.COMPLETED, {"synced": 5}, None)
    assert row.started_at is not None
    assert row.completed_at is not None


async def test_a_released_operation_counts_no_attempt(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claim = await _held(sessions, operation_id)
    async with sessions.begin() as session:
        await operations.release(session, claim)
    row = await _row(sessions, operation_id)
    assert (row.status, row.attempts, row.error_count) == (OperationStatus.PENDING, 0, 0)
    assert await _due(sessions) == [operation_id]


async def _wait_after_failure(sessions: Sessions, claim: Claim, **given: Any) -> float:
    async with sessions.begin() as session:
        assert await operations.fail(session, claim, UnavailableError("down"), **given) == "pending"
        seconds = await session.scalar(
            select(func.extract("epoch", Operation.next_retry_at - func.now())).where(
                Operation.id == claim.operation_id
            )
        )
    assert seconds is not None
    return float(seconds)


async def test_a_retry_waits_up_to_a_bound_that_doubles(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    waits = []
    for _ in range(3):
        claim = await _held(sessions, operation_id)
        waits.append(await _wait_after_failure(sessions, claim, chance=lambda: 0.5))
        await _set(sessions, operation_id, next_retry_at=None)
    assert waits == [1.0, 2.0, 4.0]  # half of 2, 4 and 8 seconds


async def test_a_retry_waits_at_least_as_long_as_the_provider_says(sessions: Sessions) -> None:
    claim = await _held(sessions, await _enqueue(sessions))
    assert await _wait_after_failure(sessions, claim, retry_after=90.0, chance=lambda: 0.0) == 90.0


async def test_a_failure_that_can_pass_becomes_a_dead_letter_after_the_last_attempt(
    sessions: Sessions,
) -> None:
    operation_id = await _enqueue(sessions, max_attempts=2)
    claim = await _held(sessions, operation_id)
    await _wait_after_failure(sessions, claim, chance=lambda: 0.0)
    claim = await _held(sessions, operation_id)
    async with sessions.begin() as session:
        assert (
            await operations.fail(session, claim, RateLimitedError("slow down"), result={"read": 7})
            == "dead_letter"
        )
    row = await _row(sessions, operation_id)
    assert (row.status, row.attempts, row.error_count) == (OperationStatus.DEAD_LETTER, 2, 2)
    assert row.last_error == "slow down"
    assert row.result == {"read": 7, "error": {"code": "RATE_LIMIT_EXCEEDED", "message": "slow down"}}
    assert row.next_retry_at is None


async def test_a_failure_that_cannot_pass_is_not_tried_again(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    claim = await _held(sessions, operation_id)
    async with sessions.begin() as session:
        assert await operations.fail(session, claim, AuthenticationError("reconnect")) == "failed"
    row = await _row(sessions, operation_id)
    assert (row.status, row.attempts, row.next_retry_at) == (OperationStatus.FAILED, 1, None)


async def test_lost_workers_cost_no_attempt_but_not_without_end(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    for owner in range(3):
        claim = await _held(sessions, operation_id, owner=str(owner), lease=OVER)
        assert claim.attempts == 1
        assert await _settle(sessions) == (owner == 2)
    row = await _row(sessions, operation_id)
    assert (row.status, row.lease_owner) == (OperationStatus.DEAD_LETTER, None)
    assert (row.error_code, row.lost_workers) == ("WORKER_LOST", 3)
    assert [entry["code"] for entry in row.attempts_log] == ["WORKER_LOST"] * 3
    assert await _claim(sessions, operation_id) is None


async def test_a_stop_is_honoured_when_the_worker_is_lost(sessions: Sessions) -> None:
    lost, waiting, held = [await _enqueue(sessions) for _ in range(3)]
    await _held(sessions, lost, lease=OVER)
    await _held(sessions, held)
    for operation_id in (lost, waiting, held):
        await _set(sessions, operation_id, stop_requested=True)
    assert await _settle(sessions) == 2
    assert [(await _row(sessions, i)).status.value for i in (lost, waiting, held)] == [
        "paused",
        "paused",
        "processing",
    ]


async def test_what_somebody_holds_keeps_no_other_from_its_end(sessions: Sessions) -> None:
    locked, over = [await _enqueue(sessions) for _ in range(2)]
    for operation_id in (locked, over):
        await _set(sessions, operation_id, expires_at=func.now() - timedelta(seconds=1))
    async with sessions.begin() as session:
        await session.execute(select(Operation.id).where(Operation.id == locked).with_for_update())
        assert await asyncio.wait_for(_settle(sessions), 10) == 1
    assert (await _row(sessions, over)).status is OperationStatus.DEAD_LETTER
    assert await _settle(sessions) == 1


async def test_an_operation_nobody_worked_in_time_becomes_a_dead_letter(sessions: Sessions) -> None:
    operation_id = await _enqueue(sessions)
    await _set(sessions, operation_id, expires_at=func.now() - timedelta(seconds=1))
    assert await _settle(sessions) == 1
    row = await _row(sessions, operation_id)
    assert (row.status, row.last_error) == ("dead_letter", "the operation expired before it could be worked")


async def test_of_many_one_of_each_integration_is_claimed_in_their_order(
    sessions: Sessions, ledger: Reads
) -> None:
    venue = uuid4()
    low, high = [await _enqueue(sessions, venue_id=venue, priority=p) for p in (Priority.LOW, Priority.HIGH)]
    others = [await _enqueue(sessions) for _ in range(3)]
    paused = await _enqueue(sessions)
    await _set(sessions, paused, status=OperationStatus.PAUSED)
    wanted = [others[2], low, others[0], paused, high, others[1]]
    taken = await operations.claim(ledger, wanted, owner="a", lease=LEASE)
    assert [claim.operation_id for claim in taken] == [others[2], others[0], high, others[1]]
    assert await operations.next_of(ledger, [(venue, "juniper")]) == []  # it is busy


async def test_what_is_claimed_is_what_the_ledger_has_of_a_worker_s_lanes(
    sessions: Sessions, ledger: Reads
) -> None:
    venue, other = uuid4(), uuid4()
    low, high = [await _enqueue(sessions, venue_id=venue, priority=p) for p in (Priority.LOW, Priority.HIGH)]
    third = await _enqueue(sessions, venue_id=other, payload={"price": 12.5})
    taken = await operations.claim(
        ledger, [third, low, high], owner="a", lease=LEASE, lanes=("critical", "high")
    )
    assert [claim.operation_id for claim in taken] == [high]  # what is left is in no lane of this worker's
    [claim] = await operations.claim(ledger, [third, low], owner="a", lease=LEASE)
    row = await _row(sessions, third)
    assert (claim.payload, claim.operation_type, claim.priority) == (
        {"price": 12.5},
        row.operation_type,
        row.priority,
    )
    assert (row.lease_owner, row.fencing_token, row.attempts) == ("a", claim.fencing_token, 1)
    assert (claim.venue_id, claim.lease, claim.started_at) == (other, LEASE, row.started_at)


async def test_of_two_that_claim_for_one_integration_one_is_told(sessions: Sessions, ledger: Reads) -> None:
    venue = uuid4()
    first, second = [await _enqueue(sessions, venue_id=venue) for _ in range(2)]
    async with sessions() as session:
        held = {
            "status": OperationStatus.PROCESSING,
            "lease_owner": "a",
            "lease_expires_at": func.now() + LEASE,
        }
        await session.execute(update(Operation).where(Operation.id == first).values(**held))
        later = asyncio.create_task(operations.claim(ledger, [second], owner="b", lease=LEASE))
        await _locked_out(sessions)
        await session.commit()
    with pytest.raises(asyncpg.UniqueViolationError):
        await later


async def test_ends_of_many_are_written_together_and_those_that_were_lost_are_told(
    sessions: Sessions,
) -> None:
    ids = [await _enqueue(sessions) for _ in range(5)]
    done, failed, given_back, stopped, lost = [await _held(sessions, each) for each in ids]
    await _set(sessions, lost.operation_id, fencing_token=7)
    ends = [
        operations.completed(done, {"synced": 5}, {"read": 5}),
        operations.failed(failed, UnavailableError("down"), chance=lambda: 0.5),
        operations.released(given_back, {"read": 2}),
        operations.paused(stopped, {"read": 3}),
        operations.completed(lost, {"late": True}),
    ]
    async with sessions.begin() as session:
        assert await operations.write_ends(session, ends) == set(ids[:4])
    rows = [await _row(sessions, each) for each in ids]
    assert [row.status.value for row in rows] == ["completed", "pending", "pending", "paused", "processing"]
    assert [row.attempts for row in rows] == [1, 1, 0, 1, 1]
    assert [row.progress for row in rows] == [{"read": 5}, None, {"read": 2}, None, None]
    assert [row.lease_owner for row in rows] == [None, None, None, None, "a"]
    assert rows[1].next_retry_at is not None
    assert [entry["message"] for entry in rows[1].attempts_log] == ["down"]
    assert rows[4].result is None


async def test_heartbeats_of_many_tell_of_each_how_it_stands(sessions: Sessions) -> None:
    ids = [await _enqueue(sessions) for _ in range(4)]
    held, stopped, lost, locked = claims = [await _held(sessions, each) for each in ids]
    await _set(sessions, stopped.operation_id, stop_requested=True)
    await _set(sessions, lost.operation_id, fencing_token=7)
    async with sessions.begin() as page, sessions.begin() as session:
        await operations.confirm(page, locked)  # a page is being saved
        news = {each: {"read": 1} for each in ids}
        assert await operations.heartbeats(session, claims, news) == {
            held.operation_id: Hold.HELD,
            stopped.operation_id: Hold.STOP,
            lost.operation_id: Hold.LOST,
            locked.operation_id: None,
        }
    assert [(await _row(sessions, each)).progress for each in ids] == [{"read": 1}, {"read": 1}, None, None]


async def test_many_are_written_at_once_and_none_twice(sessions: Sessions) -> None:
    venue = uuid4()

    def wanted(key: str) -> operations.Wanted:
        return operations.Wanted(
            venue, "juniper", OperationType.UPDATE, "customer", {"n": key}, entity_id=key, idempotency_key=key
        )

    async with sessions.begin() as session:
        first = await operations.enqueue_many(session, [wanted("a"), wanted("b")])
        again = await operations.enqueue_many(session, [wanted("b"), wanted("c")])
    assert [(due.venue_id, due.provider, due.lane) for due in first] == [(venue, "juniper", "normal")] * 2
    rows = [await _row(sessions, due.id) for due in (*first, *again)]
    assert [(row.entity_id, row.payload, row.max_attempts) for row in rows] == [
        ("a", {"n": "a"}, 10),
        ("b", {"n": "b"}, 10),
        ("c", {"n": "c"}, 10),
    ]


async def test_an_integration_is_crowded_by_what_waits(sessions: Sessions) -> None:
    venue, other = uuid4(), uuid4()
    for whose in (venue, venue, other):
        await _enqueue(sessions, venue_id=whose)
    await _held(sessions, await _enqueue(sessions, venue_id=other))
    both = [(venue, "juniper"), (other, "juniper"), (venue, "larch")]
    async with sessions() as session:
        assert await operations.crowded(session, both, 2) == {(venue, "juniper")}
        assert await operations.crowded(session, both, 3) == set()
        assert await operations.crowded(session, both, 0) == set()  # any number may wait
        with pytest.raises(QueueFullError):
            await operations.require_room(session, venue, "juniper", 2)


async def test_what_an_integration_does_next_is_the_most_urgent_and_oldest_that_is_due(
    sessions: Sessions, ledger: Reads
) -> None:
    venue = uuid4()
    later, _, high = [
        await _enqueue(sessions, venue_id=venue, priority=p)
        for p in (Priority.CRITICAL, Priority.LOW, Priority.HIGH)
    ]
    await _enqueue(sessions, venue_id=venue, priority=Priority.HIGH)
    await _set(sessions, later, next_retry_at=func.now() + timedelta(minutes=1))
    [following] = await operations.next_of(ledger, [(venue, "juniper"), (uuid4(), "juniper")])
    assert (following.id, following.lane) == (high, "high")
