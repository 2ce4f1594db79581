"""Operations of a provider that doesn't answer wait; one that kills its workers is set aside."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, select, update

from engine.errors import (
    AuthenticationError,
    HubError,
    LeaseLostError,
    ProviderError,
    RateLimitedError,
    SilentProviderError,
    StoppedError,
    UnavailableError,
)
from engine.jobs import JobPendingError
from engine.ports import Commit, Link, PendingItem, PendingWrite, RecordFailure
from engine.sync import Tally
from server.db.models import IntegrationConfig, IntegrationStatus, Operation, OperationType
from server.db.stores import Lease, PostgresSyncState
from server.errors import StoreUnavailableError
from server.services import breaker, operations
from server.services.breaker import CircuitState, Heard
from server.services.runs import NothingSyncedError, Run, Runner, StepReport
from server.settings import read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.tasks import Worker, work
from tests import claims

PROJECT = Path(__file__).resolve().parents[2]
DOWN = UnavailableError("the provider can't be reached")
WAIT = 40  # seconds, the first time


@pytest.fixture
def environment(database_url: str, redis_url: str) -> Mapping[str, str]:
    return {
        "HUB_ENV": "test",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "LEASE_SECONDS": "1",
        "HUB_CIRCUIT_FAILURES": "3",
        "HUB_CIRCUIT_SECONDS": str(WAIT),
        "JWT_SECRET": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
    }


@pytest.fixture
async def context(environment: Mapping[str, str]) -> AsyncIterator[WorkerContext]:
    settings = read_settings(environment)
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        yield context


async def _connected(context: WorkerContext, venue_id: UUID | None = None, provider: str = "juniper") -> UUID:
    venue_id = venue_id or uuid4()
    async with context.sessions.begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=venue_id, integration_type=provider, status=IntegrationStatus.CONNECTED
            )
        )
    return venue_id


async def _enqueue(context: WorkerContext, venue_id: UUID, **given: Any) -> UUID:
    values: dict[str, Any] = {
        "provider": "juniper",
        "operation_type": OperationType.SYNC,
        "entity_type": "full",
        "payload": {"syncType": "full"},
        **given,
    }
    async with context.sessions.begin() as session:
        return (await operations.enqueue(session, venue_id=venue_id, **values)).id


def _ending(error: HubError | None, *, calls: int = 1) -> Runner:
    async def run(context: object, run: Run) -> None:
        run.steps["event", "item", "push"] = StepReport("event", "item", "push")
        run.counting(("event", "item", "push"))(Tally("event", "item", "push", api_calls=calls))
        if error is not None:
            raise error

    return run


async def _work(
    context: WorkerContext, operation_id: UUID, error: HubError | None, **given: Any
) -> Operation:
    """Let an attempt end so, as soon as it may be made, and return the operation after it."""
    async with context.sessions.begin() as session:
        await session.execute(
            update(Operation).where(Operation.id == operation_id).values(next_retry_at=None)
        )
    await work(Worker(context, "w", run=_ending(error, **given)), operation_id)
    return await _row(context, operation_id)


async def _row(context: WorkerContext, operation_id: UUID) -> Operation:
    async with context.sessions() as session:
        return await session.get_one(Operation, operation_id)


async def _circuit(context: WorkerContext, venue_id: UUID) -> breaker.Circuit:
    async with context.sessions() as session:
        row = (
            await session.execute(
                select(IntegrationConfig, func.now()).filter_by(venue_id=venue_id, integration_type="juniper")
            )
        ).one()
    return breaker.circuit_of(row[0], row[1])


async def _due(context: WorkerContext, venue_id: UUID) -> Sequence[UUID]:
    async with context.sessions() as session:
        due = {found.id for found in await operations.due(session, 100_000)}
        mine = await session.scalars(select(Operation.id).filter_by(venue_id=venue_id))
        return [each for each in mine if each in due]


async def _half_open(context: WorkerContext, venue_id: UUID) -> None:
    async with context.sessions.begin() as session:
        await session.execute(
            update(IntegrationConfig)
            .filter_by(venue_id=venue_id)
            .values(circuit_until=func.now() - timedelta(seconds=1))
        )


async def _open(context: WorkerContext) -> tuple[UUID, UUID]:
    """Return a venue whose provider is down, and its operation that found out."""
    venue_id = await _connected(context)
    operation_id = await _enqueue(context, venue_id)
    for _ in range(3):
        await _work(context, operation_id, DOWN)
    return venue_id, operation_id


async def test_after_some_attempts_without_an_answer_operations_wait(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    other = await _connected(context, venue_id, "larch")
    first = await _enqueue(context, venue_id)
    for failures in (1, 2):
        await _work(context, first, DOWN)
        assert await _circuit(context, venue_id) == breaker.Circuit(failures=failures)
        assert await _enqueue(context, venue_id) in await _due(context, venue_id)
    row = await _work(context, first, DOWN)
    circuit = await _circuit(context, venue_id)
    assert (circuit.state, circuit.failures) == (CircuitState.OPEN, 3)
    assert circuit.until is not None
    assert circuit.opened_at is not None
    wait = (circuit.until - circuit.opened_at).total_seconds()
    assert 0.9 * WAIT <= wait <= 1.1 * WAIT
    assert (row.status, row.attempts) == ("pending", 3)

    assert await _due(context, venue_id) == []
    row = await _work(context, first, None)  # it can't be claimed
    assert (row.status, row.attempts) == ("pending", 3)
    larch = await _enqueue(context, other, provider="larch")
    assert await _due(context, venue_id) == [larch]  # another provider's operations go on


async def test_a_half_open_circuit_lets_one_through_at_a_time(context: WorkerContext) -> None:
    venue_id, first = await _open(context)
    second = await _enqueue(context, venue_id, operation_type=OperationType.RECONCILE)
    await _half_open(context, venue_id)
    assert (await _circuit(context, venue_id)).state is CircuitState.HALF_OPEN
    lease = timedelta(seconds=60)

    async def claim(operation_id: UUID) -> bool:
        async with context.sessions.begin() as session:
            await session.execute(update(Operation).values(next_retry_at=None))
        return await claims.claim(context.engine, operation_id, owner="w", lease=lease) is not None

    assert sorted(await asyncio.gather(claim(first), claim(second))) == [False, True]


async def test_a_try_that_fails_costs_no_attempt_and_waits_twice_as_long(context: WorkerContext) -> None:
    venue_id, first = await _open(context)
    for doubled in (2, 4, 8, 16, 22.5, 22.5):  # 22.5 times 40 seconds are 15 minutes
        await _half_open(context, venue_id)
        row = await _work(context, first, DOWN)
        assert (row.status, row.attempts) == ("pending", 3)
        circuit = await _circuit(context, venue_id)
        assert circuit.state is CircuitState.OPEN
        assert circuit.until is not None
        wait = (circuit.until - datetime.now(UTC)).total_seconds()
        assert 0.85 * doubled * WAIT <= wait <= 1.15 * doubled * WAIT
    assert len(row.attempts_log) == 9  # they are told all the same


@pytest.mark.parametrize(
    "answer",
    [
        None,
        AuthenticationError("refused"),
        ProviderError("the provider answered 400", status=400),
        NothingSyncedError("each of 2 records failed"),
    ],
    ids=["a sync that ends well", "credentials refused", "a call refused", "records refused"],
)
async def test_any_answer_closes_the_circuit(context: WorkerContext, answer: HubError | None) -> None:
    venue_id, first = await _open(context)
    await _half_open(context, venue_id)
    await _work(context, first, answer)
    if isinstance(answer, NothingSyncedError):  # it says nothing of why they failed
        assert (await _circuit(context, venue_id)).state is CircuitState.HALF_OPEN
        return
    assert await _circuit(context, venue_id) == breaker.Circuit()
    second = await _enqueue(context, venue_id)
    assert await _due(context, venue_id) == [second]


async def test_what_tells_nothing_of_the_provider_changes_nothing(context: WorkerContext) -> None:
    venue_id, first = await _open(context)
    for error in (RateLimitedError("slow down", retry_after=60), StoreUnavailableError("Redis is away")):
        await _half_open(context, venue_id)
        await _work(context, first, error)
        circuit = await _circuit(context, venue_id)
        assert (circuit.state, circuit.failures) == (CircuitState.HALF_OPEN, 3)
    await _work(context, first, None, calls=0)
    assert (await _circuit(context, venue_id)).state is CircuitState.HALF_OPEN


async def test_a_person_may_have_one_tried_at_once(context: WorkerContext) -> None:
    venue_id, _ = await _open(context)
    async with context.sessions.begin() as session:
        assert await breaker.let_one_through(session, venue_id, "juniper")
        assert not await breaker.let_one_through(session, uuid4(), "juniper")
    assert (await _circuit(context, venue_id)).state is CircuitState.HALF_OPEN


@pytest.mark.parametrize(
    ("error", "calls", "what"),
    [
        (None, 3, Heard.ANSWER),
        (None, 0, Heard.NOTHING),
        (DOWN, 1, Heard.SILENCE),
        (SilentProviderError("down, as before"), 9, Heard.SILENCE),
        (JobPendingError("it works on it"), 1, Heard.NOTHING),
        (RateLimitedError("slow down"), 1, Heard.NOTHING),
        (ProviderError("no"), 1, Heard.ANSWER),
        (AuthenticationError("no"), 1, Heard.ANSWER),
        (StoppedError("stop"), 5, Heard.NOTHING),
        (LeaseLostError("gone"), 5, Heard.NOTHING),
    ],
)
def test_what_an_end_shows_of_the_provider(error: HubError | None, calls: int, what: Heard) -> None:
    assert breaker.heard(error, calls=calls) is what


async def test_a_sync_whose_records_all_got_no_answer_counts_as_silence(context: WorkerContext) -> None:
    venue_id = await _connected(context)

    async def run(context: object, run: Run) -> None:
        failure = RecordFailure("event", "item", "push", "e1", DOWN.code, DOWN.message, True)
        step = run.steps["event", "item", "push"] = StepReport("event", "item", "push")
        step.failures = [failure]
        raise NothingSyncedError("the only record failed")

    for _ in range(3):
        await work(Worker(context, "w", run=run), await _enqueue(context, venue_id))
    assert (await _circuit(context, venue_id)).state is CircuitState.OPEN


async def test_a_rule_of_zero_never_opens(context: WorkerContext, environment: Mapping[str, str]) -> None:
    settings = read_settings({**environment, "HUB_CIRCUIT_FAILURES": "0"})
    async with open_worker_context(settings, application_name="test", connections=5) as without:
        venue_id = await _connected(without)
        operation_id = await _enqueue(without, venue_id)
        for _ in range(5):
            await _work(without, operation_id, DOWN)
    assert await _circuit(context, venue_id) == breaker.Circuit(failures=5)


async def test_attempts_keep_their_history_up_to_a_bound(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    operation_id = await _enqueue(context, venue_id, max_attempts=100)
    for number in range(operations.ATTEMPTS_KEPT + 3):
        row = await _work(context, operation_id, RateLimitedError(f"slow down {number}"))
    assert len(row.attempts_log) == operations.ATTEMPTS_KEPT
    newest = row.attempts_log[-1]
    assert {**newest, "at": None} == {
        "at": None,
        "attempt": operations.ATTEMPTS_KEPT + 3,
        "code": "RATE_LIMIT_EXCEEDED",
        "message": f"slow down {operations.ATTEMPTS_KEPT + 2}",
    }
    assert datetime.fromisoformat(newest["at"]) <= datetime.now(UTC) + timedelta(minutes=1)
    assert row.attempts_log[0]["attempt"] == 4
    assert row.error_code == "RATE_LIMIT_EXCEEDED"


# --- an operation that kills its workers


async def test_an_operation_that_kills_three_workers_is_set_aside(
    context: WorkerContext, environment: Mapping[str, str]
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(delete(Operation))  # those of other tests would kill workers as well
    venue_id = await _connected(context)
    operation_id = await _enqueue(context, venue_id)
    workers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.dying_worker", "3"),
        cwd=PROJECT,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(40):
        assert await workers.wait() == 0
    async with context.sessions.begin() as session:
        ends = func.extract("epoch", Operation.lease_expires_at - func.now())
        left = await session.scalar(select(ends).where(Operation.id == operation_id))
    assert await claims.claim(context.engine, operation_id, owner="w", lease=timedelta(1)) is None
    assert left is not None
    await asyncio.sleep(max(float(left), 0) + 0.05)  # the last one's lease, of a second
    assert await claims.claim(context.engine, operation_id, owner="w", lease=timedelta(1)) is None
    async with context.sessions.begin() as session:
        assert await operations.settle(session) == 1
    row = await _row(context, operation_id)
    assert (row.status, row.error_code, row.lost_workers) == ("dead_letter", "WORKER_LOST", 3)
    assert (row.attempts, row.payload) == (1, {"syncType": "full"})
    assert [(entry["attempt"], entry["code"]) for entry in row.attempts_log] == [(1, "WORKER_LOST")] * 3


async def _forever(context: object, run: Run) -> None:
    await asyncio.Event().wait()


async def test_rolling_restarts_do_not_count(context: WorkerContext) -> None:
    operation_id = await _enqueue(context, await _connected(context))
    for _ in range(operations.LOST_WORKERS + 1):
        worker = Worker(context, "w", run=_forever)
        working = asyncio.create_task(work(worker, operation_id))
        async with asyncio.timeout(20):
            while operation_id not in worker.attempts:  # noqa: ASYNC110 - it looks at another task's doing
                await asyncio.sleep(0.01)
        worker.stop()
        worker.abandon()
        await working
    row = await _row(context, operation_id)
    assert (row.status, row.lost_workers, row.attempts, row.error_code) == ("pending", 0, 0, None)


async def test_a_worker_that_only_lost_its_lease_was_not_killed(context: WorkerContext) -> None:
    operation_id = await _enqueue(context, await _connected(context))

    async def run(context_: object, run: Run) -> None:
        async with context.sessions.begin() as session:
            await session.execute(
                update(Operation)
                .where(Operation.id == operation_id)
                .values(lease_expires_at=func.now() - timedelta(seconds=1))
            )
        taken = await claims.claim(context.engine, operation_id, owner="other", lease=timedelta(minutes=1))
        assert taken is not None
        raise LeaseLostError("another worker has taken this operation over")

    await work(Worker(context, "w", run=run), operation_id)
    row = await _row(context, operation_id)
    assert (row.lease_owner, row.lost_workers) == ("other", 0)


async def test_only_workers_lost_in_a_row_without_anything_done_count(context: WorkerContext) -> None:
    venue_id = await _connected(context)
    operation_id = await _enqueue(context, venue_id)
    over = timedelta(seconds=-1)  # a lease that ran out in the moment it was given

    async def taken() -> PostgresSyncState:
        claim = await claims.claim(context.engine, operation_id, owner="w", lease=over)
        assert claim is not None
        lease = Lease(operation_id, claim.fencing_token)
        return PostgresSyncState(context.engine, venue_id=venue_id, provider="juniper", lease=lease)

    async def lost() -> int:
        return (await _row(context, operation_id)).lost_workers

    read = Commit(position=("event", "item", "pull", {"since": "x"}))
    await taken()
    state = await taken()
    await state.commit(read)
    assert await lost() == 0  # it was the first time
    state = await taken()
    await state.commit(read)  # and this is what each attempt does
    assert await lost() == 1
    await state.announce(
        [PendingWrite("k1", "event", "item", (PendingItem("e1", None, {"name": "x"}, "f", {}),))]
    )
    assert await lost() == 0
    state = await taken()
    assert await lost() == 1
    link = Link(entity="event", resource="item", local_id="e1", remote_id="r1")
    await state.commit(Commit(links=[link], finished_writes=["k1"]))
    assert await lost() == 0
    await taken()
    assert await lost() == 1
