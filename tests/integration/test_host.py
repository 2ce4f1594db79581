"""The platform's store over SQL, on a platform that is as awkward as real ones are."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from engine.fields import Field, FieldCatalog
from engine.manifest import Entity, Platform
from engine.ports import HostChange, HostPage, Record
from server.db.engine import create_engine
from server.errors import HostError, NotFoundError
from server.host import SqlHost

SCHEMA = """
    CREATE SCHEMA "Old shop";
    CREATE TYPE "Old shop"."Mood" AS ENUM ('good', 'bad');
    CREATE TABLE "Old shop"."People & co" (
        "Nr." bigint PRIMARY KEY,
        site integer NOT NULL,
        "full name" varchar(20) NOT NULL,
        "e""mail" text UNIQUE,
        mood "Old shop"."Mood",
        tags text[],
        extra jsonb,
        notes json,
        rate double precision,
        born date,
        seen timestamp,
        total integer,
        fee numeric(12, 3),
        coin text DEFAULT 'EUR',
        friend bigint REFERENCES "Old shop"."People & co",
        vip boolean,
        origin text DEFAULT 'shop',
        secret text DEFAULT 'untold',
        stamp timestamptz NOT NULL DEFAULT '2020-01-01'
    );
    CREATE TABLE "Old shop".sites (id integer PRIMARY KEY, title text, stamp timestamptz DEFAULT now());
    INSERT INTO "Old shop".sites VALUES (7, 'Zaal');
    CREATE TABLE "Old shop".versions (id text, site integer, name text, version bigint)
    """


def entity(name: str, table: str | None, *fields: Field, query: str | None = None, **more: Any) -> Entity:
    keys = {"key": "id", "venue": "site", "changed_at": "stamp", **more}
    return Entity(name, table, query, fields=FieldCatalog({each.path: each for each in fields}), **keys)


PERSON = entity(
    "person",
    "Old shop.People & co",
    Field("name", column="full name", required=True),
    Field("email", "email", column='e"mail'),
    Field("mood", one_of=("good", "bad")),
    Field("tags", "list"),
    Field("extra", "object"),
    Field("seat", column="extra.seat.row"),
    Field("notes", "any"),
    Field("rate", "decimal"),
    Field("born", "date"),
    Field("seen", "timestamp"),
    Field("total", "money", unit="minor", currency="coin"),
    Field("fee", "money", unit="major", currency="coin"),
    Field("coin", "currency"),
    Field("friend", "id"),
    Field("vip", "boolean"),
    Field("origin", read_only=False),
    Field("internal", column="secret", read_only=True),
    key="Nr.",
    defaults={"origin": "provider"},
)
PLATFORM = Platform(
    "old",
    "Old shop",
    {
        "venue": entity("venue", "Old shop.sites", Field("title"), venue="id"),
        "person": PERSON,
        "guest": entity(
            "guest",
            None,
            Field("label"),
            Field("at", "text"),
            query="""SELECT "Nr." AS id, site, stamp, "full name" || ': guest' AS label,
                     to_char(stamp, 'HH24:MI') AS at, extra::text FROM "Old shop"."People & co"
                     WHERE vip""",
        ),
        "versioned": entity("versioned", "Old shop.versions", Field("name"), changed_at="version"),
        "gone": entity("gone", "Old shop.nothing", Field("name")),
        "half": entity("half", "Old shop.sites", Field("colour"), venue="id"),
    },
)


@pytest.fixture
async def engine(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(empty_database_url, pool_size=2)
    async with engine.begin() as connection:
        for statement in SCHEMA.split(";\n"):
            await connection.execute(text(statement))
    yield engine
    await engine.dispose()


@pytest.fixture
def host(engine: AsyncEngine) -> SqlHost:
    return SqlHost(engine, PLATFORM, "7")


async def run(engine: AsyncEngine, sql: str) -> list[tuple[Any, ...]]:
    async with engine.begin() as connection:
        result = await connection.execute(text(sql))
        return [tuple(row) for row in result] if result.returns_rows else []


async def insert(engine: AsyncEngine, count: int, stamp: str = "'2026-01-01Z'") -> None:
    await run(
        engine,
        f"""INSERT INTO "Old shop"."People & co" ("Nr.", site, "full name", "e""mail", stamp)
            SELECT n, 7, 'Nr. ' || n, n || '@example.com', {stamp} FROM generate_series(1, {count}) AS n""",
    )


async def pages(host: SqlHost, name: str = "person", since: Any = None, size: int = 500) -> list[HostPage]:
    return [page async for page in host.changed(name, since, page_size=size)]


async def one(host: SqlHost, key: str = "1") -> Record:
    return (await host.fetch("person", [key]))[key]


async def test_every_type_there_and_back(host: SqlHost) -> None:
    values = {
        "name": "Zoë “Ω” O'Neill",
        "email": "Zoe@Example.com",
        "mood": "bad",
        "tags": ["a,b", '"', None, "ü"],
        "extra": {"seat": {"row": "B"}, "price": Decimal("0.10")},
        "notes": [1, {"b": None}],
        "rate": Decimal("0.1"),
        "born": "1999-12-31",
        "seen": "2026-11-24T02:43:48.123456Z",
        "total": Decimal("12.34"),
        "fee": Decimal("8.250"),
        "coin": "EUR",
        "friend": None,
        "vip": True,
    }
    assert await host.upsert("person", [HostChange("1", values, create=True)]) == {}
    record = await one(host)
    assert record["changed_at"].endswith("Z")
    assert record == {
        "id": "1",
        "changed_at": record["changed_at"],
        "seat": "B",
        "origin": "provider",
        "internal": "untold",
        **values,
    }


async def test_money_follows_its_currency(host: SqlHost, engine: AsyncEngine) -> None:
    changes = [
        HostChange(str(number), {"name": coin, "coin": coin, "total": Decimal(total)}, create=True)
        for number, (coin, total) in enumerate([("EUR", "12.34"), ("JPY", "1500"), ("KWD", "8.250")])
    ]
    assert await host.upsert("person", changes) == {}
    stored = await run(engine, 'SELECT total FROM "Old shop"."People & co" ORDER BY "Nr."')
    assert stored == [(1234,), (1500,), (8250,)]
    assert [(await one(host, key))["total"] for key in "012"] == [
        Decimal("12.34"),
        Decimal("1500"),
        Decimal("8.250"),
    ]
    # Without a currency in the change, the record's own counts.
    assert await host.upsert("person", [HostChange("2", {"total": Decimal("1.5")})]) == {}
    assert (await one(host, "2"))["total"] == Decimal("1.500")


async def test_an_amount_whose_currency_is_unknown_has_no_value(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 2)
    await run(engine, 'UPDATE "Old shop"."People & co" SET total = 5, coin = NULL WHERE "Nr." = 1')
    await run(engine, """UPDATE "Old shop"."People & co" SET total = 5, coin = '???' WHERE "Nr." = 2""")
    assert [(await one(host, key))["total"] for key in "12"] == [None, None]


async def test_a_refused_record_is_named_and_the_others_are_written(host: SqlHost) -> None:
    good = [HostChange(str(number), {"name": "ok"}, create=True) for number in range(100, 140)]
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "1": ({"name": None}, "`name`: a value that may not be missing is missing"),
        "2": ({"name": "x" * 21}, "a text is too long"),
        "3": ({"name": "ok", "mood": "sad"}, "a value doesn't fit its column"),
        "4": ({"name": "ok", "friend": "999"}, "it refers to a record the platform doesn't have"),
        "5": ({"name": "ok", "born": "31 June"}, "a value doesn't fit its column"),
        "6": ({"name": "ok", "total": Decimal("1.234"), "coin": "EUR"}, "`total` has more decimals"),
        "7": ({"name": "ok", "total": Decimal(1)}, "`total` is an amount without a currency"),
        "8": ({"name": "a\0b"}, "`name` holds a character the platform can't store"),
        "9": ({"name": "ok", "colour": "red"}, "`colour` isn't a field of `person`"),
        "10": ({"name": "ok", "internal": "told"}, "`internal` can't be written"),
        "11": ({"name": "ok", "seat": "C"}, "`seat` can't be written"),
        "12": ({"name": ["a", "b"]}, "`name` takes a single value"),
        "13": ({"name": "ok", "fee": "free"}, "`fee` isn't an amount"),
        "x14": ({"name": "ok"}, "the id isn't one of the platform's: it takes int8"),
    }
    changes = [HostChange(key, values, create=True) for key, (values, _) in bad.items()]
    refused = await host.upsert("person", changes[:7] + good + changes[7:])
    assert refused.keys() == bad.keys()
    for key, (_, says) in bad.items():
        assert refused[key].startswith(says), key
    written = await host.fetch("person", [change.local_id for change in good + changes])
    assert written.keys() == {change.local_id for change in good}


async def test_a_refusal_shows_no_value(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 2)
    refused = await host.upsert("person", [HostChange("1", {"email": "2@example.com"})])
    assert refused.keys() == {"1"}
    assert refused["1"].startswith("another record already has this value")
    assert "2@example.com" not in refused["1"]
    assert (await one(host))["email"] == "1@example.com"


async def test_updating_what_is_not_there_is_refused(host: SqlHost) -> None:
    refused = await host.upsert("person", [HostChange("404", {"name": "x"})])
    assert refused == {"404": "the platform has no such record in this venue"}


async def test_an_equal_value_is_no_change(host: SqlHost, engine: AsyncEngine) -> None:
    values = {"name": "A", "extra": {"a": 1}, "notes": {"a": 1}, "fee": Decimal(5), "tags": ["x"]}
    await host.upsert("person", [HostChange("1", values, create=True)])
    await run(engine, """UPDATE "Old shop"."People & co" SET stamp = '2020-01-01Z'""")
    for create in (True, False):
        assert await host.upsert("person", [HostChange("1", values, create=create)]) == {}
        assert (await one(host))["changed_at"] == "2020-01-01T00:00:00Z"
    await host.upsert("person", [HostChange("1", {"notes": {"a": 2}})])
    assert (await one(host))["changed_at"] > "2026"


async def test_defaults_are_for_new_records_only(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 1)
    changes = [HostChange("1", {"name": "A"}, create=True), HostChange("2", {"name": "B"}, create=True)]
    await host.upsert("person", [*changes, HostChange("3", {"name": "C", "origin": "till"}, create=True)])
    assert [(await one(host, key))["origin"] for key in "123"] == ["shop", "provider", "till"]


async def test_paging_misses_nothing_where_moments_are_equal(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 25)
    found = await pages(host, size=10)
    assert [len(page.records) for page in found] == [10, 10, 5]
    assert [int(row["id"]) for page in found for row in page.records] == list(range(1, 26))
    rest = await pages(host, since=found[0].position, size=10)
    assert [int(row["id"]) for page in rest for row in page.records] == list(range(11, 26))
    assert await pages(host, since=found[-1].position) == []


async def test_a_position_survives_json_and_microseconds(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 3, "timestamptz '2026-01-01T00:00:00.000001Z' + n * interval '1 microsecond'")
    found = await pages(host, size=1)
    assert found[0].position == {"changed_at": "2026-01-01T00:00:00.000002Z", "id": "1"}
    rest = await pages(host, since=found[0].position)
    assert [row["id"] for page in rest for row in page.records] == ["2", "3"]


async def test_what_a_slow_transaction_wrote_is_not_passed_over(engine: AsyncEngine) -> None:
    host = SqlHost(engine, PLATFORM, "7", settling=timedelta(seconds=60))
    await insert(engine, 2, "'2026-01-01Z'")
    async with engine.connect() as slow:
        # This transaction began earlier than the row below was written, and ends after it was read.
        await slow.execute(
            text("""INSERT INTO "Old shop"."People & co" ("Nr.", site, "full name", stamp)
                    VALUES (50, 7, 'slow', now() - interval '1 second')""")
        )
        await run(engine, 'UPDATE "Old shop"."People & co" SET stamp = now() WHERE "Nr." = 2')
        found = await pages(host)
        assert [row["id"] for page in found for row in page.records] == ["1", "2"]
        await slow.commit()
    rest = await pages(host, since=found[-1].position)
    assert [row["id"] for page in rest for row in page.records] == ["50", "2"]


async def test_records_that_were_read_are_settled_in_the_end(engine: AsyncEngine) -> None:
    host = SqlHost(engine, PLATFORM, "7", settling=timedelta(0))
    await insert(engine, 2, "now()")
    found = await pages(host)
    assert await pages(host, since=found[-1].position) == []


async def test_a_missing_moment_is_an_error_and_not_a_lost_record(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 1)
    await run(engine, 'ALTER TABLE "Old shop"."People & co" ALTER stamp DROP NOT NULL')
    await run(engine, 'UPDATE "Old shop"."People & co" SET stamp = NULL')
    with pytest.raises(HostError, match="without a value of `changed_at`"):
        await pages(host)


async def test_versions_may_stand_for_moments(host: SqlHost, engine: AsyncEngine) -> None:
    await run(
        engine,
        """INSERT INTO "Old shop".versions VALUES ('b', 7, 'B', 9), ('a', 7, 'A', 10), ('c', 8, 'C', 1)""",
    )
    found = await pages(host, "versioned", size=1)
    assert [row["id"] for page in found for row in page.records] == ["b", "a"]
    assert found[0].position == {"changed_at": "9", "id": "b"}
    rest = await pages(host, "versioned", since=found[0].position)
    assert [row["name"] for page in rest for row in page.records] == ["A"]


async def test_a_query_is_read_and_not_written(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 3, "'2026-01-01T10:30Z'")
    await run(engine, 'UPDATE "Old shop"."People & co" SET vip = true WHERE "Nr." <> 2')
    records = [row for page in await pages(host, "guest") for row in page.records]
    assert [(row["id"], row["label"], row["at"]) for row in records] == [
        ("1", "Nr. 1: guest", "10:30"),
        ("3", "Nr. 3: guest", "10:30"),
    ]
    assert await host.find("guest", "label", ["NR. 3: GUEST"]) == {"nr. 3: guest": ["3"]}
    with pytest.raises(HostError, match="can't be written"):
        await host.upsert("guest", [HostChange("1", {"label": "x"})])


async def test_ids_and_values_that_cannot_be_are_no_trouble(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 1)
    odd = ["1", "x", "", "1.5", str(2**70), "a\0", "'; DROP TABLE --"]
    assert (await host.fetch("person", odd)).keys() == {"1"}
    assert await host.find("person", "email", ["a\0", "%", "'"]) == {}


async def test_fields_inside_json_can_be_matched(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 2)
    await run(
        engine,
        """UPDATE "Old shop"."People & co" SET extra = CAST('{"seat": {"row": "B"}}' AS jsonb)
           WHERE "Nr." = 2""",
    )
    assert [(await one(host, key))["seat"] for key in "12"] == [None, "B"]


async def test_a_database_that_is_not_as_described_is_an_error(host: SqlHost) -> None:
    with pytest.raises(HostError, match=r"`gone` can't be read as its manifest says: .*does not exist"):
        await host.fetch("gone", ["1"])
    with pytest.raises(HostError, match=r"`half` can't be read as its manifest says: .*colour"):
        await host.fetch("half", ["1"])
    with pytest.raises(HostError, match="no entity `planet`"):
        await host.fetch("planet", ["1"])


async def test_the_venue_must_exist(host: SqlHost, engine: AsyncEngine) -> None:
    venue = await host.venue()
    assert (venue["id"], venue["title"]) == ("7", "Zaal")
    for unknown in ("8", str(uuid4())):
        with pytest.raises(NotFoundError):
            await SqlHost(engine, PLATFORM, unknown).venue()


async def test_writing_many_takes_few_statements(host: SqlHost, engine: AsyncEngine) -> None:
    changes = [HostChange(str(number), {"name": "x"}, create=True) for number in range(2000)]
    await host.fetch("person", ["1"])  # looks at the table once
    statements: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert await host.upsert("person", changes) == {}
    assert len(statements) == 3  # one, between a savepoint and its release


async def test_two_writers_of_the_same_records_both_get_through(host: SqlHost, engine: AsyncEngine) -> None:
    await insert(engine, 200)
    forwards = [HostChange(str(number), {"name": "f"}) for number in range(1, 201)]
    backwards = [HostChange(str(number), {"name": "b"}) for number in range(200, 0, -1)]
    results = await asyncio.gather(*(host.upsert("person", each) for each in (forwards, backwards) * 3))
    assert results == [{}] * 6
