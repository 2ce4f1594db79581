"""The store of an audience: what the platform sells is there, with what is left of it and what was bought.

What the store holds in the end is worked out here from the platform's records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.client import ProviderClient
from engine.manifest import load_connector, load_platform
from engine.memory import MemoryHost, MemorySyncState, StaticCredentials
from engine.ports import Credentials, Record, Secret
from engine.sync import Sync, Tally
from engine.templates import load_template
from engine.transport import open_client
from tests.integration.test_members import QuickClock
from tests.sandbox.mailchimp import DEFAULT_KEY, REPLACES
from tests.sandbox.running import Sandbox, running_sandbox

PROJECT = Path(__file__).resolve().parents[2]
VENUE = {"id": "v1", "name": "Café Zoë", "currency": "EUR", "timezone": "Europe/Brussels"}


class World:
    """One account, one platform, and what is remembered between them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.control("reset", {})
        self.connector = load_connector(PROJECT / "connectors" / "mailchimp.yaml")
        self.platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        pack = PROJECT / "mapping-templates" / "mailchimp" / "shop.yaml"
        self.template = load_template(pack, self.connector, self.platform)
        self.host, self.state = MemoryHost(dict(VENUE)), MemorySyncState()
        self.host.put("venue", dict(VENUE))

    def control(self, path: str, body: Any) -> None:
        httpx.post(f"{self.url}/_sandbox/{path}", json=body).raise_for_status()

    def fill(self, entity: str, records: Sequence[Record]) -> None:
        for record in records:
            self.host.put(entity, dict(record))

    async def sync(self, *, complete: bool = False) -> dict[str, Tally]:
        credentials = Credentials({"apiKey": Secret(DEFAULT_KEY)}, {"dc": "us6"}, method="key")
        tallies: dict[str, Tally] = {}
        async with open_client(origin_overrides=dict.fromkeys(REPLACES, self.url)) as http:
            source, clock = StaticCredentials(credentials), QuickClock()
            client = ProviderClient(self.connector, source, http=http, clock=clock)
            await client.learn()
            for direction in ("pull", "push"):
                for mapping in self.template.mappings:
                    if mapping.direction not in (direction, "bidirectional"):
                        continue
                    run = Sync(
                        self.connector,
                        mapping,
                        client,
                        self.host,
                        self.state,
                        venue=VENUE,
                        clock=clock,
                        fields=self.platform.entities[mapping.entity].fields,
                        complete=complete,
                    )
                    here = (mapping.entity, mapping.resource, direction)
                    failed = [key[3] for key in self.state.failures if key[:3] == here]
                    if failed and direction == "push":  # as a run of the hub begins
                        await run.push(failed)
                    tally = await (run.pull() if direction == "pull" else run.push())
                    tallies[f"{mapping.entity} {direction} {mapping.resource}"] = tally
        return tallies

    async def settled(self) -> None:
        """One sync more writes nothing, and nothing failed in the one before."""
        assert [each.failures for each in (await self.sync()).values() if each.failures] == []
        before = self.calls()["writes"]
        assert [each.failures for each in (await self.sync()).values() if each.failures] == []
        assert self.calls()["writes"] == before

    def calls(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/_sandbox/calls").json())

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return list(httpx.get(f"{self.url}/_sandbox/objects", params={"type": kind}).json()["objects"])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def world(sandbox: Sandbox) -> World:
    return World(sandbox.mailchimp_url)


def event(number: int, **fields: Any) -> Record:
    blank = {
        "description": None,
        "status": "on_sale",
        "currency": "EUR",
        "price": Decimal("12.50"),
        "url": None,
    }
    named = {"id": f"ev-{number}", "name": f"Show {number}", "venue_id": "v1", "ticket_types": None}
    return {**blank, **named, **fields}


def kind(number: int, name: str, available: int | None, price: str = "20.00") -> Record:
    return {"id": f"{number}-{name}", "name": name, "price": Decimal(price), "available": available}


def kinds_of(made: Record) -> list[Record]:
    more = {"event_id": made["id"], "currency": "EUR", "capacity": 500, "status": made["status"]}
    return [{**each, **more} for each in made["ticket_types"] or []]


def order(number: int, **fields: Any) -> Record:
    blank = {"number": f"J{number}", "status": "paid", "total": Decimal("25.00"), "currency": "EUR"}
    blank |= {
        "placed_at": "2026-10-05T20:30:00Z",
        "source": "platform",
        "venue_id": "v1",
        "customer_id": None,
    }
    blank |= {
        "email": f"guest{number}@example.com",
        "event_id": "ev-1",
        "quantity": 2,
        "sold_on": "2026-10-05",
    }
    return {**blank, "id": f"or-{number}", **fields}


def stock(world: World) -> dict[str, dict[str, tuple[Decimal, int]]]:
    """Price and number left of each variant, by product."""
    return {
        row["id"]: {
            each["id"]: (Decimal(str(each["price"])), each["inventory_quantity"]) for each in row["variants"]
        }
        for row in world.objects("product")
    }


async def test_what_is_sold_is_in_the_store_of_the_audience(world: World) -> None:
    first = event(1, ticket_types=[kind(1, "balcony", 80), kind(1, "stalls", None, "31.25")])
    world.fill("event", [first, event(2, status="draft")])
    world.fill("ticket_type", kinds_of(first))
    world.fill("order", [order(1), order(2, customer_id="cu-7", quantity=3, total=Decimal("100.00"))])
    await world.settled()
    [store] = world.objects("store")
    [audience] = world.objects("list")
    assert (store["id"], store["list_id"], store["name"]) == (audience["id"], audience["id"], "Café Zoë")
    assert (store["currency_code"], store["is_syncing"]) == ("EUR", True)
    assert stock(world) == {
        "ev-1": {
            "ev-1": (Decimal("12.50"), 0),
            "1-balcony": (Decimal("20.00"), 80),
            "1-stalls": (Decimal("31.25"), 0),
        }
    }
    orders = {row["id"]: row for row in world.objects("order")}
    assert {key: (row["order_total"], row["currency_code"]) for key, row in orders.items()} == {
        "or-1": (25, "EUR"),
        "or-2": (100, "EUR"),
    }
    lines = {key: row["lines"] for key, row in orders.items()}
    assert [(line["product_id"], line["product_variant_id"]) for line in lines["or-1"]] == [("ev-1", "ev-1")]
    assert [(line["quantity"], line["price"]) for line in lines["or-1"]] == [(2, 12.5)]
    assert [(line["quantity"], line["price"]) for line in lines["or-2"]] == [(1, 100)]
    assert orders["or-2"]["customer"]["id"] == "cu-7"


async def test_what_is_left_is_told_without_its_event(world: World) -> None:
    first = event(1, ticket_types=[kind(1, "balcony", 80)])
    world.fill("event", [first])
    world.fill("ticket_type", kinds_of(first))
    await world.settled()
    world.fill("ticket_type", kinds_of({**first, "ticket_types": [kind(1, "balcony", 79)]}))
    tallies = await world.sync()
    assert tallies["event push product"].updated == 0
    assert stock(world)["ev-1"]["1-balcony"] == (Decimal("20.00"), 79)


async def test_nobody_is_signed_up_by_an_order_and_nobody_gets_mail(world: World) -> None:
    world.control("members", {"account": "mc-demo", "email": "guest1@example.com", "status": "unsubscribed"})
    world.fill("event", [event(1)])
    world.fill("order", [order(1), order(2)])
    await world.settled()
    status = {row["email_address"]: row["status"] for row in world.objects("member")}
    assert status == {"guest1@example.com": "unsubscribed", "guest2@example.com": "transactional"}
    assert "order.mail_sent" not in str(world.calls())


async def test_an_order_that_is_given_back_counts_no_more(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("order", [order(1), order(2)])
    await world.settled()
    world.fill("order", [order(1, status="refunded")])
    await world.settled()
    assert [row["id"] for row in world.objects("order")] == ["or-2"]


@pytest.mark.parametrize("fault", ["after:500", "after:disconnect"])
async def test_what_was_made_without_an_answer_is_found_by_its_id(world: World, fault: str) -> None:
    world.fill("event", [event(1)])
    world.fill("order", [order(1)])
    lost = [{"match": f"POST /3.0/ecommerce/stores{path}", "fault": fault, "times": 1}
            for path in ("", "/{store}/products", "/{store}/orders")]  # fmt: skip
    world.control("faults", {"rules": lost})
    for _ in range(5):
        await world.sync()
    await world.settled()
    assert [len(world.objects(each)) for each in ("store", "product", "order")] == [1, 1, 1]
    assert world.state.pending == {}


@st.composite
def events(draw: Callable[..., Any]) -> list[Record]:
    return [
        event(
            number,
            name=draw(st.sampled_from(["Gala", "Nuit d'été", "東京 & more"])),
            description=draw(st.none() | st.just("A night")),
            status=draw(st.sampled_from(["on_sale", "sold_out", "past"])),
            price=Decimal(draw(st.integers(0, 10**6))).scaleb(-2),
            ticket_types=[
                kind(number, name, draw(st.none() | st.integers(0, 500)), str(draw(st.integers(1, 99))))
                for name in draw(st.sampled_from([(), ("a",), ("a", "b"), ("b", "c")]))
            ]
            or None,
        )
        for number in range(draw(st.integers(1, 4)))
    ]


@settings(
    max_examples=4,
    phases=[Phase.generate],  # a smaller example would take minutes to find
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=events(), second=events())
async def test_push_pull_push_settles(first: list[Record], second: list[Record], sandbox: Sandbox) -> None:
    world = World(sandbox.mailchimp_url)
    shelf: dict[str, dict[str, Decimal]] = {}
    left: dict[str, int] = {}
    for made in (first, second):
        world.fill("event", made)
        world.host.records.pop("ticket_type", None)
        for row in made:
            world.fill("ticket_type", kinds_of(row))
            kinds = row["ticket_types"] or []
            shelf[row["id"]] = {row["id"]: row["price"], **{each["id"]: each["price"] for each in kinds}}
            left |= {each["id"]: each["available"] for each in kinds if each["available"] is not None}
        await world.settled()
        found = stock(world)
        assert {
            key: {name: price for name, (price, _) in each.items()} for key, each in found.items()
        } == shelf
        counts = {name: number for each in found.values() for name, (_, number) in each.items()}
        assert {name: counts[name] for name in left if name in counts} == {
            name: number for name, number in left.items() if name in counts
        }
