"""What integrations use of their providers is counted once, whoever makes the calls and however it ends."""

import asyncio
import gzip
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select

from engine.errors import AuthenticationError, StoppedError, UnavailableError
from server import metering
from server.db.models import IntegrationConfig, IntegrationCost, IntegrationStatus, OperationType
from server.metering import MeteredTransport, Usage, counting, metered
from server.services import operations
from server.services.runs import Run
from server.settings import read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.tasks import Worker, work

PROVIDER = "juniper"


@pytest.fixture(scope="module")
async def context(database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LEASE_SECONDS": "1",
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    async with open_worker_context(settings, application_name="test", connections=10) as opened:
        yield opened


@pytest.fixture
def provider() -> httpx.AsyncClient:
    """A provider that answers 1,000 bytes to everything, except to `/broken`, which it doesn't."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/broken":
            raise httpx.ConnectError("gone")
        return httpx.Response(200, stream=httpx.ByteStream(b"x" * 1000))

    return httpx.AsyncClient(
        transport=MeteredTransport(httpx.MockTransport(answer)), base_url="https://juniper.test"
    )


async def connected(context: WorkerContext) -> UUID:
    venue = uuid4()
    async with context.sessions.begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=venue, integration_type=PROVIDER, status=IntegrationStatus.CONNECTED, config={}
            )
        )
    return venue


async def enqueued(context: WorkerContext, venue: UUID) -> UUID:
    async with context.sessions.begin() as session:
        operation = await operations.enqueue(
            session,
            venue_id=venue,
            provider=PROVIDER,
            operation_type=OperationType.SYNC,
            entity_type="full",
            payload={"syncType": "full"},
        )
        return operation.id


async def months(context: WorkerContext, venue: UUID) -> list[tuple[date, date, int, int, int]]:
    """Return period, calls, bytes sent and bytes received of each month, the oldest first."""
    cost = IntegrationCost
    async with context.sessions() as session:
        rows = await session.execute(
            select(cost.period_start, cost.period_end, cost.api_calls, cost.bytes_sent, cost.bytes_received)
            .filter_by(venue_id=venue)
            .order_by(cost.period_start)
        )
        return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


async def used(context: WorkerContext, venue: UUID) -> list[tuple[int, int, int]]:
    return [month[2:] for month in await months(context, venue)]


# --- what is counted


async def test_calls_and_bodies_are_counted_failures_included(provider: httpx.AsyncClient) -> None:
    with counting(Usage()) as usage:
        await provider.post("/a", content=b"y" * 250)
        await asyncio.create_task(provider.get("/a"))  # a task that is begun within
        with pytest.raises(httpx.ConnectError):
            await provider.get("/broken")
    await provider.get("/a")  # nobody's
    assert usage == Usage(calls=3, bytes_sent=250, bytes_received=2000)


async def test_bytes_count_as_they_travel() -> None:
    packed = gzip.compress(b"z" * 100_000)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(packed))

    async with httpx.AsyncClient(transport=MeteredTransport(httpx.MockTransport(answer))) as client:
        with counting(Usage()) as usage:
            answered = await client.get("https://juniper.test/")
    assert len(answered.content) == 100_000
    assert usage.bytes_received == len(packed)


# --- what is written


async def test_usage_outside_of_runs_is_written_even_when_the_work_fails(
    context: WorkerContext, provider: httpx.AsyncClient
) -> None:
    venue = await connected(context)

    async def fails() -> None:
        async with metered(context.sessions, venue, PROVIDER):
            await provider.post("/a", content=b"y" * 10)
            raise UnavailableError("down")

    with pytest.raises(UnavailableError):
        await fails()
    assert await used(context, venue) == [(1, 10, 1000)]


async def test_months_are_those_of_utc(context: WorkerContext) -> None:
    venue = await connected(context)
    moments = {
        datetime.fromisoformat("2026-02-28T23:59:59.999999+00:00"): 1,
        datetime.fromisoformat("2026-03-01T00:00:00+00:00"): 10,
        datetime.fromisoformat("2026-03-01T00:30:00+01:00"): 100,  # still February in UTC
        datetime.fromisoformat("2026-02-28T20:00:00-05:00"): 1000,  # March in UTC
        datetime(2028, 2, 29, 12, tzinfo=UTC): 10000,
        datetime(2028, 12, 31, 23, 59, tzinfo=UTC): 100000,
    }
    async with context.sessions.begin() as session:
        for at, calls in moments.items():
            await metering.add(session, venue, PROVIDER, Usage(calls), at=at)
    assert await months(context, venue) == [
        (date(2026, 2, 1), date(2026, 2, 28), 101, 0, 0),
        (date(2026, 3, 1), date(2026, 3, 31), 1010, 0, 0),
        (date(2028, 2, 1), date(2028, 2, 29), 10000, 0, 0),
        (date(2028, 12, 1), date(2028, 12, 31), 100000, 0, 0),
    ]


async def test_a_closed_month_and_an_integration_that_was_erased_stay_as_they_are(
    context: WorkerContext,
) -> None:
    venue, at = await connected(context), datetime(2026, 1, 15, tzinfo=UTC)
    async with context.sessions.begin() as session:
        await metering.add(session, venue, PROVIDER, Usage(5), at=at)
        row = (await session.scalars(select(IntegrationCost).filter_by(venue_id=venue))).one()
        row.closed_at = at
    erased = uuid4()
    async with context.sessions.begin() as session:
        await metering.add(session, venue, PROVIDER, Usage(7), at=at)
        await metering.add(session, erased, PROVIDER, Usage(7), at=at)
    assert await used(context, venue) == [(5, 0, 0)]
    assert await used(context, erased) == []


async def test_attempts_that_end_at_once_add_up(context: WorkerContext) -> None:
    venue = await connected(context)

    async def end(number: int) -> None:
        usage = Usage(number, 2 * number, 3 * number)
        await metering.write(context.sessions, venue, PROVIDER, usage)
        assert not usage

    await asyncio.gather(*(end(number) for number in range(1, 21)))
    assert await used(context, venue) == [(210, 420, 630)]  # 1 + 2 + … + 20 = 210


async def test_without_a_database_usage_is_told_and_nobody_is_kept(
    context: WorkerContext, provider: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = await connected(context)

    async def broken(*_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(metering, "add", broken)
    async with metered(context.sessions, venue, PROVIDER):
        answer = await provider.get("/a")
    assert answer.status_code == 200
    assert await used(context, venue) == []


# --- runs


@pytest.mark.parametrize(
    "error",
    [
        None,
        UnavailableError("down"),
        AuthenticationError("revoked"),
        StoppedError("the worker is shutting down"),
        ValueError("a bug"),
    ],
    ids=["completed", "retried", "failed", "released", "crashed"],
)
async def test_an_attempt_counts_what_it_called_however_it_ends(
    context: WorkerContext, provider: httpx.AsyncClient, error: Exception | None
) -> None:
    venue = await connected(context)

    async def run(_: object, run: Run) -> None:
        await asyncio.gather(*(provider.post("/a", content=b"y" * 100) for _ in range(3)))
        if error is not None:
            raise error

    await work(Worker(context, "w", run=run), await enqueued(context, venue))
    assert await used(context, venue) == [(3, 300, 3000)]


async def test_attempts_of_one_operation_add_up(context: WorkerContext, provider: httpx.AsyncClient) -> None:
    venue = await connected(context)
    operation = await enqueued(context, venue)

    async def run(_: object, run: Run) -> None:
        await provider.get("/a")
        if run.claim.attempts == 1:
            raise StoppedError("the worker is shutting down")  # no attempt is counted for that

    for _ in range(2):
        await work(Worker(context, "w", run=run), operation)
    assert await used(context, venue) == [(2, 0, 2000)]


async def test_what_a_lost_worker_called_is_there_with_its_last_heartbeat(
    context: WorkerContext, provider: httpx.AsyncClient
) -> None:
    """Here the worker lives on and learns that it lost its lease; a killed one leaves the same behind."""
    venue = await connected(context)
    operation = await enqueued(context, venue)
    seen: list[list[tuple[int, int, int]]] = []

    async def run(_: object, run: Run) -> None:
        await provider.get("/a")
        run.news = True
        async with asyncio.timeout(10):
            while not (before := await used(context, venue)):  # noqa: ASYNC110 - it looks at a store
                await asyncio.sleep(0.02)
        seen.append(before)
        async with context.sessions.begin() as session:
            await operations.end_running(session, venue, PROVIDER)  # takes the lease away
        await provider.get("/a")
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        await work(Worker(context, "w", run=run), operation)
    assert seen == [[(1, 0, 1000)]]  # while it ran
    assert await used(context, venue) == [(2, 0, 2000)]  # once each


async def test_an_end_that_had_to_be_written_twice_counts_once(
    context: WorkerContext, provider: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = await connected(context)
    add, tries = metering.add, 0

    async def fails_once(*args: Any, **given: Any) -> None:
        nonlocal tries
        tries += 1
        await add(*args, **given)
        if tries == 1:
            raise ConnectionError

    monkeypatch.setattr(metering, "add", fails_once)

    async def run(_: object, run: Run) -> None:
        await provider.get("/a")

    await work(Worker(context, "w", run=run), await enqueued(context, venue))
    assert tries == 2
    assert await used(context, venue) == [(1, 0, 1000)]
