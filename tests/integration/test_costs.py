"""What integrations use of their providers is counted once, whoever makes the calls and however it ends."""

import asyncio
import gzip
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import delete, select, update

from engine.documents import read_document
from engine.errors import AuthenticationError, StoppedError, UnavailableError
from engine.manifest import Costs, PriceList, PriceStep, check_price_list
from server import metering
from server.catalog import Catalog
from server.db.models import IntegrationConfig, IntegrationCost, IntegrationStatus, OperationType
from server.metering import MeteredTransport, Usage, counting, metered
from server.services import costs, operations
from server.services.runs import Run
from server.settings import read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.schedule import JOBS
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
        tries += bool(args[3])  # a heartbeat in between has nothing to add
        await add(*args, **given)
        if args[3] and tries == 1:
            raise ConnectionError

    monkeypatch.setattr(metering, "add", fails_once)

    async def run(_: object, run: Run) -> None:
        await provider.get("/a")

    await work(Worker(context, "w", run=run), await enqueued(context, venue))
    assert tries == 2
    assert await used(context, venue) == [(1, 0, 1000)]


# --- what it costs

# Willow has its own prices, so has Juniper; everybody else has those for any.
PRICES, _ = check_price_list(
    read_document(
        """
prices: 1
default: {currency: USD, calls: "0.01"}
providers:
  willow:
    currency: USD
    monthly: "9.00"
    calls:
      - {above: 10000, price: "0.001"}
      - {above: 1000, price: "0.0025"}
    megabytes: "0.05"
  juniper: {currency: EUR, calls: "0.0025"}
"""
    )
)
JANUARY = datetime(2026, 1, 15, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Books:
    """One venue's costs, in an empty table, by the prices above."""

    context: WorkerContext
    catalog: Catalog
    venue: UUID

    async def used(self, provider: str, at: datetime, *numbers: int) -> None:
        """Let so many calls be made, so many bytes be sent and so many received."""
        async with self.context.sessions.begin() as session:
            await metering.add(session, self.venue, provider, Usage(*numbers), at=at)

    async def report(
        self,
        now: datetime,
        start: date | None = None,
        end: date | None = None,
        provider: str | None = None,
    ) -> costs.Report:
        async with self.context.sessions() as session:
            return await costs.report(
                session,
                self.catalog,
                start=start,
                end=end,
                venue_id=None,
                provider=provider,
                limit=50,
                offset=0,
                after=None,
                now=now,
            )

    async def close(self, now: datetime) -> int:
        async with self.context.sessions.begin() as session:
            return await costs.close_months(session, self.catalog, now=now)

    async def began(self, moment: str) -> None:
        """Let the first call have been made then."""
        async with self.context.sessions.begin() as session:
            await session.execute(update(IntegrationCost).values(created_at=datetime.fromisoformat(moment)))

    async def rows(self) -> list[IntegrationCost]:
        order = (IntegrationCost.integration_type, IntegrationCost.period_start)
        async with self.context.sessions() as session:
            return list(await session.scalars(select(IntegrationCost).order_by(*order)))


@pytest.fixture
async def books(context: WorkerContext) -> Books:
    venue = uuid4()
    async with context.sessions.begin() as session:
        await session.execute(delete(IntegrationCost))
        for provider in ("birch", "juniper", "willow"):
            session.add(IntegrationConfig(venue_id=venue, integration_type=provider, config={}))
    assert PRICES is not None
    return Books(context, replace(context.catalog, prices=PRICES), venue)


@pytest.mark.parametrize(
    ("provider", "numbers", "cost"),
    [
        ("juniper", (10_000, 0, 0), "25.00"),
        ("juniper", (1, 0, 0), "0.00"),  # 0.0025
        ("juniper", (2, 0, 0), "0.01"),  # 0.005 is rounded up, and not to the even 0.00
        ("birch", (7, 0, 0), "0.07"),  # by the price for any
        ("willow", (0, 1, 0), "9.00"),  # a month in which anything was used
        ("willow", (1000, 0, 0), "9.00"),  # all included
        ("willow", (1002, 0, 0), "9.01"),  # 2 × 0.0025
        ("willow", (10_000, 0, 0), "31.50"),  # 9,000 × 0.0025
        # 9 + 9,000 × 0.0025 + 2,345 × 0.001 + 50.5 × 0.05 = 9 + 22.5 + 2.345 + 2.525
        ("willow", (12_345, 500_000, 50_000_000), "36.37"),
        ("willow", (1, 0, 99_999), "9.00"),  # 0.099999 megabytes cost 0.00499995: they aren't rounded first
        ("willow", (1, 0, 100_000), "9.01"),  # 0.1 megabytes cost 0.005
    ],
)
async def test_what_a_month_costs(books: Books, provider: str, numbers: Sequence[int], cost: str) -> None:
    await books.used(provider, JANUARY, *numbers)
    for closed in (0, 1):
        found = await books.report(APRIL, start=JANUARY.date(), end=JANUARY.date())
        assert [row.total_cost for row in found.page.rows] == [Decimal(cost)], closed
        assert await books.close(APRIL) == 1 - closed


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (None, None, "2026-03-01", "2026-03-31"),
        ("2026-01-31", None, "2026-01-01", "2026-03-31"),
        (None, "2026-02-01", "2026-02-01", "2026-02-28"),
        ("2025-12-31", "2026-01-01", "2025-12-01", "2026-01-31"),
        ("2026-05-04", None, "2026-05-01", "2026-05-31"),  # still to come
        ("2028-02-02", "2028-02-02", "2028-02-01", "2028-02-29"),
        (None, "2999-12-31", "2999-12-01", "2999-12-31"),
    ],
)
async def test_which_months_are_looked_at(
    books: Books, start: str | None, end: str | None, first: str, last: str
) -> None:
    # It is still March in UTC, though April in Paris.
    found = await books.report(
        datetime.fromisoformat("2026-04-01T01:59:00+02:00"),
        start=date.fromisoformat(start) if start else None,
        end=date.fromisoformat(end) if end else None,
    )
    assert (str(found.period_start), str(found.period_end)) == (first, last)


# --- the forecast


def forecast(calls: int, data: str, cost: str) -> costs.Forecast:
    return costs.Forecast(calls, Decimal(data), Decimal(cost))


@pytest.mark.parametrize(
    ("now", "began", "expected"),
    [
        # 300 calls and 3 MB in 10 of 30 days: 30 a day, so 600 and 6 MB more
        ("2026-04-11T00:00:00Z", "2026-04-01T00:00:00Z", forecast(900, "9.00", "2.25")),
        # The first call came on the 6th, so it is 60 a day: 1,200 and 12 MB more
        ("2026-04-11T00:00:00Z", "2026-04-06T00:00:00Z", forecast(1500, "15.00", "3.75")),
        # Within a day it is as if a day had gone: 300 a day, and 29.75 days to come
        ("2026-04-01T06:00:00Z", "2026-04-01T05:00:00Z", forecast(9225, "92.25", "23.06")),
        ("2026-04-30T23:59:59.999999Z", "2026-04-01T00:00:00Z", forecast(300, "3.00", "0.75")),
    ],
)
async def test_a_forecast_goes_on_at_the_rate_so_far(
    books: Books, now: str, began: str, expected: costs.Forecast
) -> None:
    await books.used("juniper", APRIL, 300, 1_000_000, 2_000_000)
    await books.began(began)
    found = await books.report(datetime.fromisoformat(now))
    assert [(row.total_cost, row.forecast) for row in found.page.rows] == [(Decimal("0.75"), expected)]
    assert [total.forecast for total in found.totals] == [expected]


async def test_the_month_before_keeps_the_first_hours_from_being_taken_for_a_month(books: Books) -> None:
    await books.used("juniper", datetime(2026, 3, 9, tzinfo=UTC), 3100, 0, 31_000_000)
    await books.used("juniper", APRIL, 100)
    # 100 calls at six in the morning, after 100 a day: (100 + 100) / 1.25 = 160 a day for 29.75 days, 4,760;
    # no megabyte yet, after one a day: 1 / 1.25 = 0.8 a day, 23.8
    six = datetime(2026, 4, 1, 6, tzinfo=UTC)
    expected = forecast(4860, "23.80", "12.15")
    assert (await books.report(six)).page.rows[0].forecast == expected
    # Asked for with March: the sums are those of both months, the forecast is that of the one that runs.
    both = (await books.report(six, start=date(2026, 3, 1))).page.rows[0]
    assert (both.total_api_calls, both.total_cost, both.forecast) == (3200, Decimal("8.00"), expected)


async def test_a_forecast_is_priced_by_the_steps_it_will_reach(books: Books) -> None:
    await books.used("willow", APRIL, 1000)
    await books.began("2026-04-01T00:00:00Z")
    row = (await books.report(datetime(2026, 4, 3, tzinfo=UTC))).page.rows[0]
    # 500 a day make 15,000: 9 + 9,000 × 0.0025 + 5,000 × 0.001
    assert (row.total_cost, row.forecast) == (Decimal("9.00"), forecast(15_000, "0.00", "36.50"))


# --- months that are over


async def test_a_month_is_closed_an_hour_after_its_end_and_keeps_its_costs(books: Books) -> None:
    await books.used("willow", datetime(2026, 3, 31, 23, tzinfo=UTC), 10_000)
    await books.used("birch", datetime(2026, 3, 1, tzinfo=UTC), 5)
    await books.used("willow", APRIL, 1)
    assert await books.close(datetime(2026, 4, 1, 0, 59, tzinfo=UTC)) == 0
    assert await books.close(datetime(2026, 4, 1, 1, 0, tzinfo=UTC)) == 2
    assert await books.close(datetime(2026, 4, 1, 1, 0, tzinfo=UTC)) == 0
    assert [
        (row.integration_type, row.base_cost, row.overage_cost, row.total_cost, row.currency)
        for row in await books.rows()
    ] == [
        ("birch", Decimal("0.00"), Decimal("0.05"), Decimal("0.05"), "USD"),
        ("willow", Decimal("9.00"), Decimal("22.50"), Decimal("31.50"), "USD"),
        ("willow", None, None, None, None),
    ]
    dearer = Costs("GBP", Decimal(100), (PriceStep(0, Decimal(1)),))
    later = replace(books, catalog=replace(books.catalog, prices=PriceList(dearer)))
    found = await later.report(datetime(2026, 5, 1, tzinfo=UTC), date(2026, 3, 1), None, "willow")
    # March as it was closed, April by the new prices: 100 + 1 × 1.
    assert [(row.currency, row.total_cost) for row in found.page.rows] == [
        ("GBP", Decimal("101.00")),
        ("USD", Decimal("31.50")),
    ]


async def test_what_was_included_is_told_from_what_wasnt(books: Books) -> None:
    await books.used("willow", JANUARY, 1000)
    await books.used("juniper", JANUARY, 400)
    await books.close(APRIL)
    included = [(row.integration_type, row.included_in_plan) for row in await books.rows()]
    assert included == [("juniper", False), ("willow", True)]


async def test_schedulers_that_close_at_once_share_the_work(books: Books) -> None:
    for provider in ("birch", "juniper", "willow"):
        await books.used(provider, JANUARY, 1)
    assert sum(await asyncio.gather(*(books.close(APRIL) for _ in range(4)))) == 3


async def test_the_scheduler_closes_months(books: Books) -> None:
    await books.used("juniper", datetime.now(UTC) - timedelta(days=70), 400)
    job = next(job for job in JOBS if job.name == "close_months")
    assert [await job.run(books.context) for _ in range(2)] == [1, 0]


async def test_without_prices_nothing_is_owed(books: Books) -> None:
    await books.used("juniper", JANUARY, 400, 0, 2_000_000)
    free = replace(books, catalog=replace(books.catalog, prices=PriceList()))
    await free.close(APRIL)
    row = (await books.rows())[0]
    assert (row.total_cost, row.currency, row.included_in_plan) == (Decimal("0.00"), None, True)
    found = await free.report(APRIL, JANUARY.date(), JANUARY.date())
    assert found.totals == [costs.CostTotal(400, Decimal("2.00"), Decimal("0.00"), None, None)]


async def test_a_price_list_goes_before_a_manifest_and_that_before_the_price_for_any(books: Books) -> None:
    known = next(iter(books.catalog.connectors.values()))
    manifests, anybodys, listed = (Costs("USD", Decimal(number)) for number in (1, 2, 3))
    connectors = {known.name: replace(known, costs=manifests)}
    catalog = replace(books.catalog, connectors=connectors, prices=PriceList(anybodys))
    assert (catalog.costs(known.name), catalog.costs("birch")) == (manifests, anybodys)
    catalog = replace(catalog, prices=PriceList(anybodys, {known.name: listed}))
    assert catalog.costs(known.name) == listed
