"""The demo platform is always the same, and what the hub's manifest says of it is true."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from engine.manifest import load_platform
from engine.ports import HostChange
from server.db.engine import create_engine
from server.demo import change, generate
from server.demo.generate import COLUMNS, DEMO_VENUE_ID, TODAY, Tables, load_demo
from server.host import SqlHost

PLATFORM = Path(__file__).parents[2] / "connectors" / "platform.yaml"


def rows(tables: Tables, table: str) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS[table].split(), row, strict=True)) for row in getattr(tables, table)]


@pytest.fixture(scope="module")
def demo() -> Tables:
    return generate.generate()


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    async def run() -> list[tuple[Any, ...]]:
        engine = create_engine(url, pooled=False)
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(sql))]

    return asyncio.run(run())


def run(url: str, sql: str) -> None:
    async def work() -> None:
        engine = create_engine(url, pooled=False)
        async with engine.begin() as connection:
            await connection.execute(text(sql))

    asyncio.run(work())


def on_host(url: str, work: Callable[[SqlHost], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        return await work(SqlHost(create_engine(url, pooled=False), load_platform(PLATFORM), DEMO_VENUE_ID))

    return asyncio.run(run())


def test_it_is_as_large_as_promised(demo: Tables) -> None:
    assert (len(demo.venues), len(demo.events), len(demo.customers), len(demo.orders)) == (
        3,
        300,
        5000,
        20000,
    )
    venues = {row["id"]: row for row in rows(demo, "venues")}
    assert venues[DEMO_VENUE_ID]["name"] == "Le Caveau Bleu — Jazz Club"
    assert sorted(Counter(row["venue_id"] for row in rows(demo, "events")).values()) == [60, 110, 130]
    assert sorted(Counter(row["venue_id"] for row in rows(demo, "customers")).values()) == [600, 1700, 2700]
    assert sorted(Counter(row["venue_id"] for row in rows(demo, "orders")).values()) == [2400, 6800, 10800]


def test_it_is_the_same_every_time(demo: Tables) -> None:
    assert generate.generate() == demo
    assert str(DEMO_VENUE_ID) == "2cde518b-53c8-54ff-83b8-6a5073f9af6c"


def test_the_demo_venue_has_enough_on_sale(demo: Tables) -> None:
    events = [row for row in rows(demo, "events") if row["venue_id"] == DEMO_VENUE_ID]
    on_sale = [row for row in events if row["status"] == "on_sale"]
    assert len(on_sale) >= 50
    assert all(row["price"] is not None for row in on_sale)
    assert {"EUR", "JPY", "KWD", "USD"} <= {row["currency"] for row in on_sale}
    assert len({row["name"] for row in events}) == 60


def test_prices_have_the_decimals_of_their_currency(demo: Tables) -> None:
    for row in rows(demo, "events"):
        if row["price"] is not None:
            decimals = {"JPY": 0, "KWD": 3}.get(row["currency"], 2)
            assert -row["price"].as_tuple().exponent == decimals
            assert row["currency"] != "KWD" or row["price"] % Decimal("0.01") == 0


def test_values_are_missing_here_and_there(demo: Tables) -> None:
    customers = rows(demo, "customers")
    share = {
        name: sum(row[name] is None for row in customers) / len(customers)
        for name in ("email", "phone", "last_name", "city")
    }
    assert 0.04 < share["email"] < 0.08
    assert 0.2 < share["phone"] < 0.3
    assert 0 < share["last_name"] < 0.02
    assert 0.01 < share["city"] < 0.05
    assert any(row["description"] is None for row in rows(demo, "events"))
    assert any(row["url"] is None for row in rows(demo, "events"))


def test_customers_are_well_formed_by_what_providers_ask(demo: Tables) -> None:
    for row in rows(demo, "customers"):
        full_name = f"{row['first_name']} {row['last_name'] or ''}"
        assert row["first_name"]
        assert len(full_name) <= 150
        assert row["phone"] is None or (row["phone"][0] == "+" and 9 <= len(row["phone"][1:]) <= 16)
        assert row["email"] is None or (row["email"].isascii() and row["email"].count("@") == 1)
    assert max(len(row["last_name"] or "") for row in rows(demo, "customers")) > 40
    assert max(len(row["name"]) for row in rows(demo, "events")) > 200
    assert any(not row["last_name"].isascii() for row in rows(demo, "customers") if row["last_name"])


def test_an_address_belongs_to_one_customer_of_a_venue(demo: Tables) -> None:
    mails = [(row["venue_id"], row["email"].lower()) for row in rows(demo, "customers") if row["email"]]
    assert len(set(mails)) == len(mails)
    assert any(row["email"] != row["email"].lower() for row in rows(demo, "customers") if row["email"])


def test_orders_add_up(demo: Tables) -> None:
    totals: Counter[Any] = Counter()
    currencies: dict[Any, set[str]] = {}
    for ticket in rows(demo, "tickets"):
        totals[ticket["order_id"]] += ticket["price"]
        currencies.setdefault(ticket["order_id"], set()).add(ticket["currency"])
    for row in rows(demo, "orders"):
        assert row["total"] == totals[row["id"]]
        assert {row["currency"]} == currencies[row["id"]]


def test_nothing_changed_after_the_demos_today(demo: Tables) -> None:
    for table, columns in COLUMNS.items():
        assert "updated_at" in columns
        assert max(row["updated_at"] for row in rows(demo, table)) <= TODAY


def test_loading_twice_is_loading_once(empty_database_url: str) -> None:
    assert load_demo(empty_database_url) is True
    assert load_demo(empty_database_url) is False
    assert query(empty_database_url, "SELECT count(*) FROM platform.orders") == [(20000,)]


def test_another_platform_is_left_alone(empty_database_url: str) -> None:
    async def theirs() -> None:
        engine = create_engine(empty_database_url, pooled=False)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE SCHEMA platform"))

    asyncio.run(theirs())
    with pytest.raises(RuntimeError, match="isn't the demo's"):
        load_demo(empty_database_url)
    assert query(empty_database_url, "SELECT to_regclass('platform.venues')::text") == [(None,)]


def test_the_manifest_reads_it(database_url: str) -> None:
    load_demo(database_url)

    async def read(host: SqlHost) -> dict[str, list[dict[str, Any]]]:
        return {
            entity: [record async for page in host.changed(entity, None) for record in page.records]
            for entity in ("venue", "event", "customer", "order")
        }

    found = on_host(database_url, read)
    assert {entity: len(records) for entity, records in found.items()} == {
        "venue": 1,
        "event": 60,
        "customer": 600,
        "order": 2400,
    }
    yen = next(row for row in found["order"] if row["currency"] == "JPY")
    stored = query(database_url, f"SELECT total FROM platform.orders WHERE id = '{yen['id']}'")
    assert stored == [(yen["total"],)]  # one yen is one yen
    euro = next(row for row in found["order"] if row["currency"] == "EUR")
    stored = query(database_url, f"SELECT total FROM platform.orders WHERE id = '{euro['id']}'")
    assert stored == [(euro["total"] * 100,)]


def test_what_is_left_of_a_ticket_type_is_what_was_not_sold(demo: Tables) -> None:
    counting = {row["id"] for row in rows(demo, "orders") if row["status"] in ("paid", "pending")}
    tickets = rows(demo, "tickets")
    sold = Counter(row["ticket_type_id"] for row in tickets if row["order_id"] in counting)
    status = {row["id"]: row["status"] for row in rows(demo, "events")}
    for row in rows(demo, "ticket_types"):
        assert 0 <= row["available"] == row["quantity"] - sold[row["id"]]
        assert (row["available"] == 0) == (status[row["event_id"]] == "sold_out")


def test_events_come_with_their_ticket_types_and_change_with_them(database_url: str) -> None:
    load_demo(database_url)
    assert query(database_url, "SELECT max(updated_at) FROM platform.events")[0][0] <= TODAY

    async def read(host: SqlHost) -> dict[str, dict[str, Any]]:
        return {
            entity: {row["id"]: row async for page in host.changed(entity, None) for row in page.records}
            for entity in ("event", "ticket_type")
        }

    found = on_host(database_url, read)
    kinds = found["ticket_type"]
    assert len(kinds) == 2 * sum(row["price"] is not None for row in found["event"].values())
    for event in found["event"].values():
        for kind in event["ticket_types"] or []:
            own = kinds[kind["id"]]
            assert (own["event_id"], own["status"]) == (event["id"], event["status"])
            assert (own["name"], own["price"], own["available"]) == (
                kind["name"],
                kind["price"],
                kind["available"],
            )
    event = next(row for row in found["event"].values() if row["ticket_types"])
    assert [row["name"] for row in event["ticket_types"]] == ["Standard", "Front row"]
    standard = event["ticket_types"][0]["id"]

    def moved(statement: str) -> tuple[bool, bool]:
        """Whether the ticket type, and whether its event, count as changed after a statement."""
        run(database_url, f"{statement}, updated_at = now() WHERE id = '{standard}'")
        now = on_host(database_url, read)
        before = found["ticket_type"][standard], found["event"][event["id"]]
        after = now["ticket_type"][standard], now["event"][event["id"]]
        found.update(now)
        type_moved, event_moved = (
            new["changed_at"] != old["changed_at"] for new, old in zip(after, before, strict=True)
        )
        return type_moved, event_moved

    assert moved("UPDATE platform.ticket_types SET available = available - 1") == (True, False)
    assert moved("UPDATE platform.ticket_types SET price = price + 1") == (True, True)


def test_events_can_be_written_as_they_are_read(database_url: str) -> None:
    load_demo(database_url)
    new, known = "7d3c61a0-0000-4000-8000-000000000001", query(database_url, _SOME_EVENT)[0][0]
    made = HostChange(new, {"name": "New", "status": "draft", "currency": "EUR"}, create=True)

    async def write(host: SqlHost) -> dict[str, str]:
        return await host.upsert("event", [made, HostChange(known, {"name": "Renamed"})])

    assert on_host(database_url, write) == {}
    names = query(
        database_url, f"SELECT name FROM platform.events WHERE id IN ('{new}', '{known}') ORDER BY 1"
    )
    assert names == [("New",), ("Renamed",)]


_SOME_EVENT = f"SELECT id::text FROM platform.events WHERE venue_id = '{DEMO_VENUE_ID}' ORDER BY id LIMIT 1"


def test_changing_renames_events_on_sale(database_url: str) -> None:
    load_demo(database_url)
    before = query(database_url, "SELECT now()")[0][0]
    first = change.rename_events(database_url, 3)
    again = change.rename_events(database_url, 3)
    assert len({row["id"] for row in first}) == 3
    assert [row["name"] for row in first] == [row["before"] + " (edition 2)" for row in first]
    assert [row["before"] for row in again] == [row["name"] for row in first]
    assert [row["name"] for row in again] == [row["before"] + " (edition 3)" for row in first]
    changed = query(
        database_url, "SELECT id::text, name, status, updated_at FROM platform.events ORDER BY id"
    )
    now = {row[0]: row[1] for row in changed if row[3] >= before}
    assert now == {row["id"]: row["name"] for row in again}
    assert {row[2] for row in changed if row[3] >= before} == {"on_sale"}


def test_cancelling_takes_events_off_sale(database_url: str) -> None:
    load_demo(database_url)
    before = query(database_url, "SELECT now()")[0][0]
    on_sale = query(database_url, "SELECT count(*) FROM platform.events WHERE status = 'on_sale'")[0][0]
    cancelled = change.cancel_events(database_url, 3)
    changed = query(database_url, "SELECT id::text, status, updated_at FROM platform.events")
    now = {row[0]: row[1] for row in changed if row[2] >= before}
    assert now == {row["id"]: "cancelled" for row in cancelled}
    assert len(now) == 3
    left = query(database_url, "SELECT count(*) FROM platform.events WHERE status = 'on_sale'")[0][0]
    assert left == on_sale - 3


def test_the_command_says_what_it_changed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_demo(database_url)
    monkeypatch.setenv("PLATFORM_DATABASE_URL", database_url)
    done = CliRunner().invoke(change.main, ["--events", "1"])
    assert done.exit_code == 0
    assert done.output.startswith('{"events": [{"id": "')
    done = CliRunner().invoke(change.main, ["--cancel", "1"])
    assert done.output.startswith('{"events": [], "cancelled": [{"id": "')
    monkeypatch.setenv("PLATFORM_DATABASE_URL", "nowhere")
    done = CliRunner().invoke(change.main, [])
    assert (done.exit_code, "PLATFORM_DATABASE_URL" in done.output) == (1, True)


def test_orders_come_with_what_was_sold_and_are_writable(demo: Tables, database_url: str) -> None:
    load_demo(database_url)
    kinds = {row["id"]: row["event_id"] for row in rows(demo, "ticket_types")}
    sold: dict[str, list[dict[str, Any]]] = {}
    for ticket in rows(demo, "tickets"):
        sold.setdefault(str(ticket["order_id"]), []).append(ticket)
    new_id = str(generate.demo_id("order", "of a test"))
    values = {"number": "77", "status": "paid", "total": Decimal("12.50"), "currency": "EUR"}
    change = HostChange(new_id, {**values, "placed_at": "2026-10-31T23:30:00Z"}, create=True)

    async def work(host: SqlHost) -> dict[str, dict[str, Any]]:
        assert await host.upsert("order", [change]) == {}
        return {row["id"]: row async for page in host.changed("order", None) for row in page.records}

    try:
        found = on_host(database_url, work)
    finally:
        run(database_url, f"DELETE FROM platform.orders WHERE id = '{new_id}'")
    theirs = found.pop(new_id)
    assert (theirs["source"], theirs["event_id"], theirs["quantity"]) == ("provider", None, 1)
    assert theirs["sold_on"] == "2026-11-01"  # half past midnight in Brussels
    assert len(found) == 2400
    for key, row in found.items():
        tickets = sold[key]
        assert row["event_id"] == str(kinds[tickets[0]["ticket_type_id"]])
        assert row["quantity"] == len(tickets)
        assert row["source"] == "platform"


def test_orders_of_several_events_or_prices_are_one_thing(database_url: str) -> None:
    load_demo(database_url)
    mixed = (
        "SELECT event_id IS NULL, quantity FROM platform.orders_with_tickets "
        "WHERE id IN (SELECT order_id FROM platform.tickets GROUP BY order_id HAVING count(*) = 2) "
        "ORDER BY id LIMIT 1"
    )
    first = (
        "SELECT min(CAST(id AS text)) FROM platform.tickets WHERE order_id = ("
        "SELECT order_id FROM platform.tickets GROUP BY order_id HAVING count(*) = 2 "
        "ORDER BY order_id LIMIT 1)"
    )
    ((ticket,),) = query(database_url, first)
    before = query(database_url, f"SELECT ticket_type_id, price FROM platform.tickets WHERE id = '{ticket}'")
    assert query(database_url, mixed) == [(False, 2)]
    try:
        run(database_url, f"UPDATE platform.tickets SET price = price + 1 WHERE id = '{ticket}'")
        assert query(database_url, mixed) == [(False, 1)]
        other = (
            "SELECT kind.id FROM platform.ticket_types AS kind WHERE kind.event_id <> ("
            f"SELECT event_id FROM platform.ticket_types WHERE id = '{before[0][0]}') LIMIT 1"
        )
        run(database_url, f"UPDATE platform.tickets SET ticket_type_id = ({other}) WHERE id = '{ticket}'")
        assert query(database_url, mixed) == [(True, 1)]
    finally:
        ((kind, price),) = before
        run(
            database_url,
            f"UPDATE platform.tickets SET ticket_type_id = '{kind}', price = {price} WHERE id = '{ticket}'",
        )
