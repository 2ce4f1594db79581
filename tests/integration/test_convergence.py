"""Whatever the platform holds: push, pull, push again, and the last push has nothing to write.

Each entity on each provider, over records made up by hypothesis, against the simulated provider. What it
holds in the end is worked out here from the records; nothing is read back through the engine.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.ports import Record
from engine.sync import Tally
from tests.integration.test_sync_against_sandbox import World
from tests.sandbox.running import Sandbox, running_sandbox

FEW = settings(
    max_examples=4,
    phases=[Phase.generate],  # a smaller example would take minutes to find
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DIGITS = {"EUR": 2, "JPY": 0, "KWD": 3}
PROVIDERS = pytest.mark.parametrize("name", ["stripe", "square"])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


def emptied(name: str, sandbox: Sandbox) -> World:
    for url in (sandbox.stripe_url, sandbox.square_url):
        httpx.post(f"{url}/_sandbox/reset").raise_for_status()
    world = World(name, sandbox)
    world.host.records.clear()
    return world


def fill(world: World, entity: str, records: Sequence[Record]) -> None:
    for record in records:
        world.host.put(entity, record)


async def assert_settled(world: World) -> None:
    """After a sync, another one, its pull included, writes nothing on either side."""
    before, changes = world.writes(), world.host.changes
    tallies: dict[str, Tally] = await world.sync()
    assert world.writes() == before
    assert world.host.changes == changes
    touched = {
        way: tally for way, tally in tallies.items() if tally.created or tally.updated or tally.conflicts
    }
    assert touched == {}


# ---- records made up ---------------------------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits + "äéñøßłşж東京 &<>'\"/.,;:!?()+-–_#%@*"
words = st.text(LETTERS, min_size=1, max_size=30).map(str.strip).filter(bool)
maybe_words = st.none() | words


def amounts(currency: str) -> st.SearchStrategy[Decimal]:
    return st.integers(1, 10**6).map(lambda minor: Decimal(minor).scaleb(-DIGITS[currency]))


@st.composite
def events(draw: Callable[..., Any]) -> list[Record]:
    """A few events, with no, one or several ticket types each."""
    made: list[Record] = []
    for number in range(draw(st.integers(1, 4))):
        currency = draw(st.sampled_from(sorted(DIGITS)))
        kinds = [
            {
                "id": f"ev-{number}-kind-{kind}",
                "name": draw(words),
                "price": draw(amounts(currency)),
                "available": draw(st.none() | st.integers(0, 500)),
            }
            for kind in draw(st.permutations(range(3)))[: draw(st.integers(0, 3))]
        ]
        made.append(
            {
                "id": f"ev-{number}",
                "name": draw(words),
                "description": draw(maybe_words),
                "status": draw(st.sampled_from(["on_sale", "sold_out"])),
                "price": draw(amounts(currency)),
                "currency": currency,
                "url": draw(st.none() | st.just(f"https://tickets.example/{number}")),
                "ticket_types": kinds or None,
            }
        )
    return made


def ticket_types(made: Sequence[Record]) -> list[Record]:
    """The same ticket types as records of their own."""
    return [
        {
            **kind,
            "event_id": event["id"],
            "currency": event["currency"],
            "capacity": 500,
            "status": event["status"],
        }
        for event in made
        for kind in event["ticket_types"] or []
    ]


@st.composite
def customers(draw: Callable[..., Any]) -> list[Record]:
    return [
        {
            "id": f"cu-{number}",
            "first_name": draw(maybe_words),
            "last_name": draw(maybe_words),
            "email": draw(st.sampled_from([f"guest{number}@example.com", f"Guest.{number}@Example.com"])),
            "phone": draw(st.none() | st.integers(10**8, 10**9 - 1).map(lambda digits: f"+33{digits}")),
            "city": draw(maybe_words),
            "postal_code": draw(st.none() | st.just("1000")),
            "country": draw(st.sampled_from([None, "BE", "FR"])),
            "accepts_marketing": draw(st.booleans()),
        }
        for number in range(draw(st.integers(1, 4)))
    ]


# ---- the properties ----------------------------------------------------------------------------------


def sold(made: Sequence[Record]) -> dict[str, tuple[int, str]]:
    """What is for sale: by ticket type, or by event when it has none, the price in smallest units."""
    rows = [
        (kind["id"], kind["price"], event["currency"])
        for event in made
        for kind in (event["ticket_types"] or [{"id": event["id"], "price": event["price"]}])
    ]
    return {key: (int(price.scaleb(DIGITS[currency])), currency) for key, price, currency in rows}


def sold_at(name: str, world: World) -> dict[str, tuple[int, str]]:
    if name == "stripe":
        active = [row for row in world.objects("price") if row["active"]]
        found = [(row["lookup_key"], row["unit_amount"], row["currency"].upper()) for row in active]
    else:
        datas = [
            variation["item_variation_data"]
            for item in world.objects("ITEM")
            for variation in item["item_data"]["variations"]
        ]
        found = [(each["user_data"], *each["price_money"].values()) for each in datas]
    assert len({key for key, _, _ in found}) == len(found)
    return {key: (amount, currency) for key, amount, currency in found}


@PROVIDERS
@FEW
@given(first=events(), second=events())
async def test_events_and_ticket_types_settle(
    name: str, first: list[Record], second: list[Record], sandbox: Sandbox
) -> None:
    world = emptied(name, sandbox)
    fill(world, "event", first)
    fill(world, "ticket_type", ticket_types(first))
    await world.sync()
    assert sold_at(name, world) == sold(first)
    await assert_settled(world)

    fill(world, "event", second)
    untouched = first[len(second) :]
    now = ticket_types([*second, *untouched])
    world.host.records.pop("ticket_type", None)
    fill(world, "ticket_type", now)
    await world.sync(complete=True, approved=True)  # a ticket type that is gone tells nobody
    assert sold_at(name, world) == sold([*second, *untouched])
    if name == "square":
        counts = {row["catalog_object_id"]: row["quantity"] for row in world.objects("count")}
        ids = {
            variation["item_variation_data"]["user_data"]: variation["id"]
            for item in world.objects("ITEM")
            for variation in item["item_data"]["variations"]
        }
        expected = {kind["id"]: str(kind["available"]) for kind in now if kind["available"] is not None}
        assert {key: counts[ids[key]] for key in expected} == expected
    await assert_settled(world)


@PROVIDERS
@FEW
@given(first=customers(), second=customers())
async def test_customers_settle(
    name: str, first: list[Record], second: list[Record], sandbox: Sandbox
) -> None:
    world = emptied(name, sandbox)
    fill(world, "customer", first)
    await world.sync()
    assert len(world.objects("customer")) == len(first)
    assert {key: world.host.records["customer"][key] for key in (row["id"] for row in first)} == {
        row["id"]: row for row in first
    }
    await assert_settled(world)

    fill(world, "customer", second)
    await world.sync()
    everyone = {row["id"]: row for row in (*first, *second)}
    assert len(world.objects("customer")) == len(everyone)
    assert world.host.records["customer"] == everyone
    await assert_settled(world)


@PROVIDERS
@FEW
@given(count=st.integers(1, 12))
async def test_orders_settle(name: str, count: int, sandbox: Sandbox) -> None:
    world = emptied(name, sandbox)
    control = "payments" if name == "stripe" else "orders"
    world.post(f"/_sandbox/{control}", {"count": count})
    await world.sync()
    assert 0 < len(world.host.records["order"]) <= count
    await assert_settled(world)
