"""The same promises from the platform's store, in memory and over SQL."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from engine.errors import LeaseLostError
from engine.fields import Field, FieldCatalog
from engine.manifest import Entity, Platform
from engine.memory import MemoryHost
from engine.ports import HostChange, HostPage, HostStore, Record
from server.db.engine import create_engine
from server.host import SqlHost

VENUE = UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11")


def catalog(*fields: Field) -> FieldCatalog:
    return FieldCatalog({field.path: field for field in fields})


PLATFORM = Platform(
    name="test",
    title="Test",
    entities={
        "venue": Entity("venue", "shop.venues", None, "id", "id", "changed", catalog(Field("name"))),
        "customer": Entity(
            "customer",
            "shop.customers",
            None,
            "id",
            "venue",
            "changed",
            catalog(Field("name"), Field("email", "email"), Field("city")),
        ),
    },
)
SCHEMA = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.venues (id uuid PRIMARY KEY, name text, changed timestamptz NOT NULL DEFAULT now());
    CREATE TABLE shop.customers (
        id text PRIMARY KEY, venue uuid, name text, email text, city text,
        changed timestamptz NOT NULL DEFAULT now()
    );
    """


@pytest.fixture(params=["memory", "sql"])
async def host(request: pytest.FixtureRequest) -> HostStore:
    if request.param == "memory":
        return MemoryHost({"id": str(VENUE), "name": "Zaal Één"})
    return await sql_host(request.getfixturevalue("empty_database_url"))


async def sql_host(url: str) -> SqlHost:
    engine = create_engine(url, pooled=False)
    async with engine.begin() as connection:
        for statement in SCHEMA.split(";\n"):
            await connection.execute(text(statement))
        await connection.execute(
            text("INSERT INTO shop.venues (id, name) VALUES (:id, 'Zaal Één')"), {"id": VENUE}
        )
    return SqlHost(engine, PLATFORM, VENUE)


async def pages(
    host: HostStore, since: Any = None, page_size: int = 500, earliest: datetime | None = None
) -> list[HostPage]:
    changed = host.changed("customer", since, page_size=page_size, earliest=earliest)
    return [page async for page in changed]


def values(record: Record) -> Record:
    return {name: record.get(name) for name in ("id", "name", "email", "city")}


async def add(host: HostStore, *ids: str, **more: Any) -> None:
    for each in ids:  # one at a time: each changes after the one before
        await host.upsert("customer", [HostChange(each, {"name": each.upper(), **more}, create=True)])


async def test_the_venue_is_known(host: HostStore) -> None:
    venue = await host.venue()
    assert (venue["id"], venue["name"]) == (str(VENUE), "Zaal Één")


async def test_what_was_written_is_read(host: HostStore) -> None:
    change = HostChange("a", {"name": "Zoë", "email": "Zoe@Example.com", "city": None}, create=True)
    assert await host.upsert("customer", [change]) == {}
    expected = {"id": "a", "name": "Zoë", "email": "Zoe@Example.com", "city": None}
    assert {key: values(row) for key, row in (await host.fetch("customer", ["a", "b"])).items()} == {
        "a": expected
    }
    assert [values(row) for page in await pages(host) for row in page.records] == [expected]


async def test_only_named_fields_change(host: HostStore) -> None:
    await add(host, "a", city="Gent", email="a@example.com")
    assert await host.upsert("customer", [HostChange("a", {"city": None})]) == {}
    assert values((await host.fetch("customer", ["a"]))["a"]) == {
        "id": "a",
        "name": "A",
        "email": "a@example.com",
        "city": None,
    }


async def test_what_is_not_confirmed_is_not_written(host: HostStore) -> None:
    await add(host, "a", city="Gent")

    async def confirm() -> None:
        raise LeaseLostError("another worker has taken this operation over")

    changes = [HostChange("a", {"city": "Aalst"}), HostChange("b", {"name": "B"}, create=True)]
    with pytest.raises(LeaseLostError):
        await host.upsert("customer", changes, confirm)
    found = await host.fetch("customer", ["a", "b"])
    assert {key: row["city"] for key, row in found.items()} == {"a": "Gent"}


async def test_creating_what_exists_updates_it(host: HostStore) -> None:
    await add(host, "a", city="Gent")
    await host.upsert("customer", [HostChange("a", {"name": "B"}, create=True)])
    assert values((await host.fetch("customer", ["a"]))["a"]) == {
        "id": "a",
        "name": "B",
        "email": None,
        "city": "Gent",
    }


async def test_pages_come_in_order_of_change(host: HostStore) -> None:
    await add(host, "c", "a", "b", "e", "d")
    found = await pages(host, page_size=2)
    assert [[row["id"] for row in page.records] for page in found] == [["c", "a"], ["b", "e"], ["d"]]
    await host.upsert("customer", [HostChange("a", {"city": "Gent"})])
    assert [row["id"] for page in await pages(host) for row in page.records] == ["c", "b", "e", "d", "a"]


async def test_what_changed_since_a_moment_is_not_left_out(host: HostStore) -> None:
    await add(host, "a", "b")
    earliest = datetime(2020, 1, 1, tzinfo=UTC)
    assert [row["id"] for page in await pages(host, earliest=earliest) for row in page.records] == ["a", "b"]


async def test_there_is_nothing_where_nothing_is(host: HostStore) -> None:
    assert await pages(host) == []
    assert await host.fetch("customer", []) == {}
    assert await host.fetch("customer", ["a"]) == {}
    assert await host.find("customer", "email", []) == {}
    assert await host.upsert("customer", []) == {}


async def test_finding_ignores_case_and_tells_of_twins(host: HostStore) -> None:
    await add(host, "b", "a", email="Zoë@Example.com")
    await add(host, "c", email="c@example.com")
    await add(host, "d")
    found = await host.find("customer", "email", ["ZOË@example.COM", "C@example.com", "x@example.com"])
    assert {value: sorted(ids) for value, ids in found.items()} == {
        "zoë@example.com": ["a", "b"],
        "c@example.com": ["c"],
    }


async def test_a_record_may_change_twice_in_one_call(host: HostStore) -> None:
    changes = [HostChange("a", {"name": "A", "city": "Gent"}, create=True), HostChange("a", {"name": "B"})]
    assert await host.upsert("customer", changes) == {}
    assert values((await host.fetch("customer", ["a"]))["a"]) == {
        "id": "a",
        "name": "B",
        "email": None,
        "city": "Gent",
    }


async def test_another_venues_records_do_not_exist(empty_database_url: str) -> None:
    host = await sql_host(empty_database_url)
    await add(host, "a", email="a@example.com")
    neighbour = SqlHost(create_engine(empty_database_url, pooled=False), PLATFORM, uuid4())
    assert await pages(neighbour) == []
    assert await neighbour.fetch("customer", ["a"]) == {}
    assert await neighbour.find("customer", "email", ["a@example.com"]) == {}
    for create in (True, False):
        refused = await neighbour.upsert("customer", [HostChange("a", {"name": "stolen"}, create=create)])
        assert refused == {"a": "the platform has no such record in this venue"}
    assert (await host.fetch("customer", ["a"]))["a"]["name"] == "A"
