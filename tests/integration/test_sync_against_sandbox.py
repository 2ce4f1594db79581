"""The engine against the simulated providers, with every other port in memory.

What the provider must hold in the end is worked out by hand here; nothing is read back through the engine.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, connect, load_connector, load_platform
from engine.client import ProviderClient, Write
from engine.clock import SystemClock
from engine.manifest import Connector, Platform
from engine.memory import MemoryHost, MemorySyncState
from engine.ports import Record
from engine.sync import Sync, Tally
from engine.templates import MappingTemplate, load_template
from tests.sandbox.running import Sandbox, running_sandbox

PROJECT = Path(__file__).resolve().parents[2]
VENUE = {"id": "0e9d7c1a-0000-4000-8000-000000000001", "name": "Café Zoë", "currency": "EUR"}
EVENTS: list[Record] = [
    {"id": "ev-1", "name": "Noche de Jazz – Señora Ñandú", "price": Decimal("45.00"), "currency": "EUR"},
    {"id": "ev-2", "name": "東京の夜", "price": Decimal("4500"), "currency": "JPY"},
    {"id": "ev-3", "name": "Kuwait Strings", "price": Decimal("12.340"), "currency": "KWD"},
    {
        "id": "ev-4",
        "name": "Draft, never sent",
        "price": Decimal("1.00"),
        "currency": "EUR",
        "status": "draft",
    },
]
PRICES = {"ev-1": (4500, "EUR"), "ev-2": (4500, "JPY"), "ev-3": (12340, "KWD")}
CUSTOMERS: list[Record] = [
    {
        "id": "cu-1",
        "first_name": "Zoë",
        "last_name": "Brontë",
        "email": "zoe@example.com",
        "phone": "+4915112345678",
    },
    {"id": "cu-2", "first_name": "Ana María", "last_name": "de la Cruz", "email": "ana@example.com"},
    {"id": "cu-3", "first_name": None, "last_name": "Cher", "email": None},
]


def platform_of(venue: Record = VENUE) -> MemoryHost:
    host = MemoryHost(dict(venue))
    blank = {"description": None, "status": "on_sale", "starts_at": None, "capacity": 100, "url": None}
    for event in EVENTS:
        host.put("event", {**blank, **event})
    blank = {"phone": None, "city": None, "postal_code": None, "country": None, "accepts_marketing": True}
    for customer in CUSTOMERS:
        host.put("customer", {**blank, **customer})
    return host


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture(autouse=True)
def empty_sandbox(sandbox: Sandbox) -> None:
    for url in (sandbox.stripe_url, sandbox.square_url):
        httpx.post(f"{url}/_sandbox/reset").raise_for_status()


class World:
    """One provider, one platform, and what is remembered between them."""

    def __init__(self, name: str, sandbox: Sandbox) -> None:
        self.url = sandbox.stripe_url if name == "stripe" else sandbox.square_url
        self.connector: Connector = load_connector(PROJECT / "connectors" / f"{name}.yaml")
        self.platform: Platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        self.template: MappingTemplate = load_template(
            PROJECT / "mapping-templates" / name / "default.yaml", self.connector, self.platform
        )
        self.host = platform_of()
        self.state = MemorySyncState()
        self.credentials = Credentials(
            {"apiKey": Secret("sk_test_demo")}
            if name == "stripe"
            else {"access_token": Secret(self._token())}
        )

    def _token(self) -> str:
        redirect = "http://127.0.0.1:9/callback"
        query = {"client_id": "sq0idp-demo", "redirect_uri": redirect, "state": "s", "auto_approve": "1"}
        query |= {"scope": " ".join(self._scopes()), "response_type": "code"}
        consent = httpx.get(f"{self.url}/oauth2/authorize", params=query)
        code = httpx.URL(consent.headers["location"]).params["code"]
        body = {"client_id": "sq0idp-demo", "client_secret": "sq0csp-demo", "code": code}
        body |= {"grant_type": "authorization_code", "redirect_uri": redirect}
        return str(httpx.post(f"{self.url}/oauth2/token", json=body).json()["access_token"])

    def _scopes(self) -> tuple[str, ...]:
        oauth = self.connector.auth[0].oauth
        assert oauth is not None
        return oauth.scopes

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ProviderClient]:
        overrides = dict.fromkeys(self.connector.servers.values(), self.url)
        async with connect(self.connector, self.credentials, origin_overrides=overrides) as client:
            yield client

    async def sync(self, **options: Any) -> dict[str, Tally]:
        """Run all pulls, then all pushes; returns tallies by `entity direction resource`."""
        tallies: dict[str, Tally] = {}
        async with self.client() as client:
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
                        venue=await self.host.venue(),
                        clock=SystemClock(),
                        fields=self.platform.entities[mapping.entity].fields,
                        **options,
                    )
                    tally = await (run.pull() if direction == "pull" else run.push())
                    assert tally.failures == []
                    tallies[f"{mapping.entity} {direction} {mapping.resource}"] = tally
        return tallies

    def post_form(self, path: str, form: dict[str, str]) -> None:
        token = next(iter(self.credentials.values.values())).reveal()
        headers = {"Authorization": f"Bearer {token}"}
        httpx.post(self.url + path, data=form, headers=headers).raise_for_status()

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return list(httpx.get(f"{self.url}/_sandbox/objects", params={"type": kind}).json()["objects"])

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Do something at the provider behind the hub's back."""
        token = next(iter(self.credentials.values.values())).reveal()
        headers = {"Authorization": f"Bearer {token}"}
        httpx.post(self.url + path, json=body, headers=headers).raise_for_status()

    def put(self, path: str, body: dict[str, Any]) -> Any:
        token = next(iter(self.credentials.values.values())).reveal()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.put(self.url + path, json=body, headers=headers).raise_for_status().json()

    def writes(self) -> int:
        return int(httpx.get(f"{self.url}/_sandbox/calls").json()["writes"])

    def change(self, entity: str, record_id: str, **values: Any) -> None:
        self.host.put(entity, {**self.host.records[entity][record_id], **values})


async def test_stripe_holds_each_event_once_with_its_price(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    await world.sync()
    products = {row["metadata"]["event_id"]: row for row in world.objects("product")}
    assert {key: row["name"] for key, row in products.items()} == {
        event["id"]: event["name"] for event in EVENTS[:3]
    }
    assert len(world.objects("product")) == 3
    prices = {
        row["metadata"]["event_id"]: (row["unit_amount"], row["currency"].upper())
        for row in world.objects("price")
    }
    assert prices == PRICES
    assert len(world.objects("price")) == 3
    by_product = {row["product"]: row["id"] for row in world.objects("price")}
    assert {row["id"]: row["default_price"] for row in products.values()} == by_product
    assert sorted(row["name"] for row in world.objects("customer")) == [
        "Ana María de la Cruz",
        "Cher",
        "Zoë Brontë",
    ]


async def test_square_holds_each_event_once_with_its_price(sandbox: Sandbox) -> None:
    world = World("square", sandbox)
    await world.sync()
    items = [row["item_data"] for row in world.objects("ITEM")]
    assert sorted(item["name"] for item in items) == sorted(event["name"] for event in EVENTS[:3])
    prices = {}
    for item in items:
        (variation,) = item["variations"]
        data = variation["item_variation_data"]
        prices[data["user_data"]] = (data["price_money"]["amount"], data["price_money"]["currency"])
    assert prices == PRICES
    given = sorted((row.get("given_name", ""), row["family_name"]) for row in world.objects("customer"))
    assert given == [("", "Cher"), ("Ana María", "de la Cruz"), ("Zoë", "Brontë")]


@pytest.mark.parametrize("name", ["stripe", "square"])
async def test_a_second_sync_writes_nothing_and_ten_changes_write_ten(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    for number in range(10):
        world.host.put(
            "event", {**world.host.records["event"]["ev-1"], "id": f"x{number}", "name": f"Show {number}"}
        )
    await world.sync()
    before = world.writes()
    tallies = await world.sync()
    assert world.writes() == before
    assert all(tally.created == tally.updated == 0 for tally in tallies.values())

    for number in range(10):
        world.change("event", f"x{number}", name=f"Show {number}, sold out soon")
    tallies = await world.sync()
    resource = "product" if name == "stripe" else "item"
    assert tallies[f"event push {resource}"].updated == 10
    assert sum(tally.updated + tally.created for tally in tallies.values()) == 10
    kind = "product" if name == "stripe" else "ITEM"
    names = [row.get("name") or row["item_data"]["name"] for row in world.objects(kind)]
    assert sorted(found for found in names if found.startswith("Show")) == [
        f"Show {number}, sold out soon" for number in range(10)
    ]


async def test_a_new_amount_is_a_new_stripe_price_and_the_old_one_retires(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    await world.sync()
    (old,) = [row for row in world.objects("price") if row["metadata"]["event_id"] == "ev-1"]
    world.change("event", "ev-1", price=Decimal("50.00"))
    tallies = await world.sync()
    assert tallies["event push product"].updated == 0
    prices = {row["id"]: row for row in world.objects("price") if row["metadata"]["event_id"] == "ev-1"}
    assert len(prices) == 2
    assert prices.pop(old["id"])["active"] is False
    (new,) = prices.values()
    assert (new["unit_amount"], new["active"], new["lookup_key"]) == (5000, True, "ev-1")
    (product,) = [row for row in world.objects("product") if row["id"] == new["product"]]
    assert product["default_price"] == new["id"]


async def test_a_value_that_comes_back_within_the_life_of_a_key_arrives(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    await world.sync()
    for status in ("sold_out", "on_sale", "sold_out", "on_sale"):
        world.change("event", "ev-1", status=status)
        await world.sync()
        (product,) = [row for row in world.objects("product") if row["metadata"]["event_id"] == "ev-1"]
        assert product["active"] is (status == "on_sale")


async def test_a_square_update_keeps_what_the_hub_does_not_know(sandbox: Sandbox) -> None:
    """An upsert replaces the whole object, so what somebody added in the dashboard has to be sent along."""
    world = World("square", sandbox)
    await world.sync()
    async with world.client() as client:
        (item,) = [row for row in world.objects("ITEM") if row["item_data"]["name"].startswith("Noche")]
        current = await client.get("item", item["id"])
        assert current is not None
        current["item_data"]["abbreviation"] = "NJ"
        body = {"idempotency_key": "by-hand", "object": current}
        world.post("/v2/catalog/object", body)
    world.change("event", "ev-1", name="Noche de Jazz")
    await world.sync()
    (item,) = [row for row in world.objects("ITEM") if row["item_data"]["name"].startswith("Noche")]
    assert item["item_data"]["name"] == "Noche de Jazz"
    assert item["item_data"]["abbreviation"] == "NJ"


async def test_only_a_square_customer_somebody_else_changed_is_read_before_its_update(
    sandbox: Sandbox,
) -> None:
    world = World("square", sandbox)
    await world.sync()
    (zoe,) = [each for each in world.objects("customer") if each.get("reference_id") == "cu-1"]
    assert zoe["version"] == 0

    async def pushed(first_name: str) -> int:
        """Push new names of two customers; returns how many customers were read for it."""
        for record_id in ("cu-1", "cu-2"):
            record = world.host.records["customer"][record_id]
            world.host.put("customer", {**record, "first_name": first_name})
        before = sandbox.square.counts.by_call["GET /v2/customers/{id}"]
        async with world.client() as client:
            (mapping,) = [each for each in world.template.mappings if each.entity == "customer"]
            run = Sync(
                world.connector,
                mapping,
                client,
                world.host,
                world.state,
                venue=await world.host.venue(),
                clock=SystemClock(),
                fields=world.platform.entities["customer"].fields,
            )
            tally = await run.push()
        assert (tally.updated, tally.failed) == (2, 0)
        return sandbox.square.counts.by_call["GET /v2/customers/{id}"] - before

    assert await pushed("Zoé") == 0
    changed = world.put(f"/v2/customers/{zoe['id']}", {"note": "prefers the balcony"})
    assert changed["customer"]["version"] == 2
    assert await pushed("Zoe") == 1
    (zoe,) = [each for each in world.objects("customer") if each.get("reference_id") == "cu-1"]
    assert (zoe["given_name"], zoe["note"], zoe["version"]) == ("Zoe", "prefers the balcony", 3)


@pytest.mark.parametrize(
    ("name", "given", "email"), [("stripe", "name", "email"), ("square", "given_name", "email_address")]
)
async def test_customers_of_before_are_paired_not_doubled(
    name: str, given: str, email: str, sandbox: Sandbox
) -> None:
    world = World(name, sandbox)
    async with world.client() as client:
        body = {email: "ZOE@example.com", given: "Zoe"}
        for group in client.plan("customer", [Write("by-hand", None, body, "by-hand")]):
            (result,) = await client.send(group)
            assert result.error is None
    await world.sync()
    found = [row for row in world.objects("customer") if (row.get(email) or "").lower() == "zoe@example.com"]
    assert len(found) == 1
    assert len(world.objects("customer")) == 3
    assert len(world.host.records["customer"]) == 3


async def test_a_walk_whose_last_record_was_deleted_begins_again(sandbox: Sandbox) -> None:
    """The next page is asked for by that record's id, which names nothing any more."""
    world = World("stripe", sandbox)
    world.post("/_sandbox/payments", {"count": 3})
    request: dict[str, Any] = {"method": "GET", "url": "/v1/charges", "headers": {}, "body": None}
    request["query"] = {"limit": 100, "starting_after": "ch_gone"}
    walk = {
        "started": "2026-01-01T00:00:00+00:00",
        "resume": {"feed": "list", "batch": 0, "request": request},
    }
    world.state.positions["order", "charge", "pull"] = {"walk": walk}
    await world.sync()
    paid = [row for row in world.objects("charge") if row["status"] == "succeeded"]
    assert len(world.host.records.get("order", {})) == len(paid)


@pytest.mark.parametrize("name", ["stripe", "square"])
async def test_their_changes_and_sales_arrive_on_the_platform(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    control = "payments" if name == "stripe" else "orders"
    world.post(f"/_sandbox/{control}", {"count": 130})
    resource = "charge" if name == "stripe" else "order"
    sold = {row["id"]: row for row in world.objects(resource)}
    tallies = await world.sync()
    orders = world.host.records["order"]
    assert tallies[f"order pull {resource}"].created == len(orders)
    money = {
        row["id"]: (row["amount_captured"], row["currency"].upper())
        if name == "stripe"
        else (row["total_money"]["amount"], row["total_money"]["currency"])
        for row in sold.values()
        if row.get("status") == "succeeded" or row.get("state") in ("OPEN", "COMPLETED", "CANCELED")
    }
    digits = {"JPY": 0, "KWD": 3, "KRW": 0}
    expected = sorted((Decimal(amount).scaleb(-digits.get(code, 2)), code) for amount, code in money.values())
    assert sorted((row["total"], row["currency"]) for row in orders.values()) == expected

    # An own write coming back isn't a change; somebody's change at the provider is.
    async with world.client() as client:
        (link,) = [link for link in world.state.links.values() if link.local_id == "cu-1"]
        phone = "phone" if name == "stripe" else "phone_number"
        for group in client.plan(
            "customer", [Write("cu-1", link.remote_id, {phone: "+33123456789"}, "by-hand")]
        ):
            (result,) = await client.send(group)
            assert result.error is None
    before = json.loads(json.dumps(world.host.records["customer"]["cu-2"]))
    tallies = await world.sync()
    assert world.host.records["customer"]["cu-1"]["phone"] == "+33123456789"
    assert world.host.records["customer"]["cu-1"]["last_name"] == "Brontë"
    assert world.host.records["customer"]["cu-2"] == before
    assert tallies["customer pull customer"].updated == 1
    assert tallies["customer push customer"].updated == 0
