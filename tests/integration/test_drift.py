"""What runs see of a provider's records is written down once a run, and what changed is told."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from engine.manifest import Connector, load_connector
from server.db.models import DriftEvent, ObservedField
from server.services import drift


@pytest.fixture(scope="module")
def connector() -> Connector:
    return load_connector("connectors/stripe.yaml")


@pytest.fixture(scope="module")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with async_sessionmaker(engine)() as session:
        yield session


@pytest.fixture
def venue(monkeypatch: pytest.MonkeyPatch) -> UUID:
    monkeypatch.setattr(drift, "LOOKS_EVERY", 0.0)
    return uuid4()


async def run_saw(
    session: AsyncSession, connector: Connector, venue: UUID, *pages: list[dict[str, Any]]
) -> None:
    sightings: drift.Sightings = {}
    look = drift.watcher(sightings, connector, venue)
    for page in pages:
        look("customer", page)
    await drift.write(session, venue, "stripe", sightings)
    assert sightings == {}


async def events(session: AsyncSession, venue: UUID) -> list[tuple[str, str]]:
    rows = await session.scalars(select(DriftEvent).filter_by(venue_id=venue).order_by(DriftEvent.id))
    return [(row.kind, row.path) for row in rows]


async def test_what_records_carry_is_kept_without_their_values(
    session: AsyncSession, connector: Connector, venue: UUID
) -> None:
    await run_saw(session, connector, venue, [{"id": "cus_NffrFeUfNV2Hib", "email": "ann@example.com"}])
    await run_saw(session, connector, venue, [{"id": "cus_NffrFeUfNV2Hic", "email": None}])
    rows = (await session.scalars(select(ObservedField).filter_by(venue_id=venue))).all()
    email = next(row for row in rows if row.path == "email")
    assert (email.types, email.shapes, email.seen_count, email.null_count) == (["text"], ["email"], 2, 1)
    assert "ann" not in repr([vars(row) for row in rows])
    assert await events(session, venue) == []


async def test_a_rename_is_told_once(session: AsyncSession, connector: Connector, venue: UUID) -> None:
    pages = [[{"id": "x", "seat_map": "u"}] * 10] * 3
    await run_saw(session, connector, venue, *pages)
    for _ in range(3):
        await run_saw(session, connector, venue, *[[{"id": "x", "seatMapUrl": "u"}] * 10] * 3)
    assert await events(session, venue) == [("added", "seatMapUrl"), ("renamed", "seat_map")]
    row = (await session.scalars(select(ObservedField).filter_by(venue_id=venue, path="seat_map"))).one()
    assert (row.missed_count, row.seen_count) == (90, 30)
    assert row.removed_at is not None


async def test_a_few_of_a_page_and_of_a_run_are_looked_at(
    session: AsyncSession, connector: Connector, venue: UUID
) -> None:
    sightings: drift.Sightings = {}
    look = drift.watcher(sightings, connector, venue)
    look("customer", [{"a": 1}] * 1000)
    assert sightings["customer"][1].records == drift.A_PAGE
    for _ in range(100):
        look("customer", [{"a": 1}] * 1000)
    assert sightings["customer"][1].records == drift.A_RUN


async def test_a_resource_is_looked_at_once_a_while(
    connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "LOOKS_EVERY", 3600.0)
    venue, first, second = uuid4(), drift.Sightings(), drift.Sightings()
    drift.watcher(first, connector, venue)("customer", [{"a": 1}])
    drift.watcher(second, connector, venue)("customer", [{"a": 1}])
    assert (len(first), len(second)) == (1, 0)
    drift.watcher(second, connector, venue)("product", [{"a": 1}])
    assert list(second) == ["product"]


async def test_names_no_database_takes_are_left_out(
    session: AsyncSession, connector: Connector, venue: UUID
) -> None:
    await run_saw(session, connector, venue, [{"a\x00b": 1, "\ud800": 2, "x" * 501: 3, "fine": 4}])
    rows = await session.scalars(select(ObservedField.path).filter_by(venue_id=venue))
    assert list(rows) == ["fine"]


async def test_a_field_that_the_provider_does_not_know_is_told_once_and_returns_with_records(
    session: AsyncSession, connector: Connector, venue: UUID
) -> None:
    for _ in range(2):
        sightings: drift.Sightings = {}
        complain = drift.complaints(sightings, connector)
        for _ in range(3):
            complain("customer", "address.city")
        await drift.write(session, venue, "stripe", sightings)
    assert await events(session, venue) == [("refused", "address.city")]
    known = (await drift.observed(session, venue, "stripe", "customer"))["address.city"]
    assert (known.refused, known.gone, known.seen) == (True, True, 0)
    await run_saw(session, connector, venue, [{"address": {"city": "Brest"}}])
    assert (await events(session, venue))[-1] == ("returned", "address.city")
    assert not (await drift.observed(session, venue, "stripe", "customer"))["address.city"].gone


async def test_what_was_refused_is_forgiven(session: AsyncSession, connector: Connector, venue: UUID) -> None:
    sightings: drift.Sightings = {}
    drift.complaints(sightings, connector)("customer", "name")
    await drift.write(session, venue, "stripe", sightings)
    await drift.forgive(session, venue, "stripe")
    assert not (await drift.observed(session, venue, "stripe", "customer"))["name"].refused


async def test_events_wait_until_somebody_takes_them(
    session: AsyncSession, connector: Connector, venue: UUID
) -> None:
    await run_saw(session, connector, venue, *[[{"a": 1}] * 10] * 2)
    await run_saw(session, connector, venue, [{"a": 1, "b": 2, "c": 3}])
    assert (venue, "stripe") in await drift.take_waiting(session, 1000)
    assert await drift.take_waiting(session, 1000) == []


async def test_pages_of_both(session: AsyncSession, connector: Connector, venue: UUID) -> None:
    await run_saw(session, connector, venue, *[[{"a": 1, "b": 1}] * 10] * 2)
    await run_saw(session, connector, venue, [{"a": 1, "b": 2, "c": 3, "d": 4}])
    page = await drift.fields_page(session, venue, "stripe", limit=3, offset=0, after=None)
    assert ([row.path for row in page.rows], page.total) == (["a", "b", "c"], 4)
    assert page.next_key == ("customer", "c")
    page = await drift.fields_page(session, venue, "stripe", limit=3, offset=0, after=page.next_key)
    assert ([row.path for row in page.rows], page.next_key) == (["d"], None)
    first = await drift.events_page(session, venue, "stripe", limit=1, offset=0, before=None)
    assert [row.path for row in first.rows] == ["d"]
    assert first.next_key is not None
    rest = await drift.events_page(session, venue, "stripe", limit=1, offset=0, before=int(first.next_key[0]))
    assert ([row.path for row in rest.rows], rest.total, rest.next_key) == (["c"], 2, None)
