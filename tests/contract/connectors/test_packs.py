"""The template packs for kinds of venues: pushed whole, they are taken, shown, and agreed on."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, load_platform
from engine.auth import Authenticator
from engine.client import ProviderClient
from engine.clock import SystemClock
from engine.filling import kept_of_credentials
from engine.memory import MemoryHost, MemorySyncState, StaticCredentials
from engine.ports import Record
from engine.sync import Sync, Tally
from engine.templates import load_template
from engine.transport import open_client
from tests.contract.connectors.conftest import PROJECT, Standing
from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.running import Sandbox

VENUE = {
    "id": "0e9d7c1a-0000-4000-8000-000000000001",
    "name": "Café Zoë",
    "currency": "USD",
    "country": "US",
    "timezone": "America/Chicago",
    "books_from": None,
}
EVENT = {"status": "on_sale", "capacity": 100, "url": None, "currency": "USD", "ticket_types": None}
KIND = {"id": "tt-1", "name": "Camping", "price": Decimal("20.00"), "available": 40}
RECORDS: dict[str, list[Record]] = {
    "venue": [VENUE],
    "event": [
        # In Chicago it is eight in the evening of the fourteenth, and three in the afternoon of the 16th.
        {**EVENT, "id": "ev-1", "name": "Night", "description": None, "price": Decimal("45.10"),
         "starts_at": "2026-08-15T01:00:00Z"},
        {**EVENT, "id": "ev-2", "name": "Day", "description": "Doors at two", "price": Decimal("12.00"),
         "starts_at": "2026-08-16T20:00:00Z"},
        {**EVENT, "id": "ev-3", "name": "Any day", "description": None, "price": Decimal("99.00"),
         "starts_at": None, "ticket_types": [KIND]},
    ],
    "ticket_type": [{**KIND, "event_id": "ev-3", "currency": "USD", "capacity": 50, "status": "on_sale"}],
    "customer": [
        {"id": "cu-1", "first_name": "Zoë", "last_name": "O'Brien", "email": "zoe@example.com", "phone": None,
         "city": None, "postal_code": None, "country": "MX", "accepts_marketing": True},
        {"id": "cu-2", "first_name": "Ana", "last_name": "Ruiz", "email": "ana@example.com",
         "phone": "+34600111222", "city": None, "postal_code": None, "country": "US",
         "accepts_marketing": False},
    ],
    "order": [
        {"id": "or-1", "number": "J1", "status": "paid", "total": Decimal("90.20"), "currency": "USD",
         "placed_at": "2026-10-05T20:30:00Z", "source": "platform", "email": None, "customer_id": "cu-1",
         "event_id": "ev-1", "quantity": 2, "sold_on": "2026-10-05"},
    ],
}  # fmt: skip

KINDS = {
    "stripe": ("product", "price", "customer"),
    "square": ("catalog", "customer"),
    "mailchimp": ("member",),
    "quickbooks": ("Item", "Customer", "SalesReceipt"),
}

# What the stand-in must hold afterwards, and what it must not.
HOLDS: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("stripe", "music-venue"): (("Live at Café Zoë", "Concert ticket"), ()),
    ("stripe", "comedy-club"): (("Early show", "Two-drink minimum"), ("Late show",)),
    ("stripe", "theater"): (("Matinee", "Evening performance", "Category Camping"), ()),
    ("stripe", "festival"): (("Day pass 14.08.2026", "Day pass 16.08.2026", "Add-on: Camping"), ()),
    ("square", "music-venue"): (("Live at Café Zoë", "Concert ticket"), ()),
    ("square", "comedy-club"): (("Early show", "Two-drink minimum"), ("Late show",)),
    ("square", "theater"): (("Matinee", "Evening performance", "Category Camping"), ()),
    ("square", "festival"): (("Day pass 14.08.2026", "Day pass 16.08.2026", "Add-on: Camping"), ()),
    ("mailchimp", "music-venue"): (("zoe@example.com", "ana@example.com", "From abroad"), ()),
    ("mailchimp", "comedy-club"): (("zoe@example.com",), ("ana@example.com",)),
    ("mailchimp", "theater"): (("zoe@example.com", "ana@example.com"), ("+34600111222",)),
    ("mailchimp", "festival"): (("pending", "Travels from MX"), ("Travels from US",)),
    ("quickbooks", "music-venue"): (("Concert at Café Zoë", "Concert ticket"), ()),
    ("quickbooks", "comedy-club"): (("Night 14.08. 20h00", "Any day #ev-3", "drinks are paid"), ()),
    ("quickbooks", "theater"): (("Season 2025 - Doors at two", "O'Brien, Zoë (zoe@example.com)"), ()),
    ("quickbooks", "festival"): (("Festival passes", "Wristbands"), ()),
}


class NoWaiting(SystemClock):
    """The time of day, as the stand-ins have it; but what is waited for is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.waited

    async def sleep(self, seconds: float) -> None:
        self.waited += seconds
        await asyncio.sleep(0)


class World:
    """One provider, one platform, and what is remembered between them."""

    def __init__(self, standing: Standing, credentials: Credentials, pack: str) -> None:
        self.standing, self.credentials = standing, credentials
        self.platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        file = PROJECT / "mapping-templates" / standing.name / f"{pack}.yaml"
        self.template = load_template(file, standing.connector, self.platform)
        self.host, self.state = MemoryHost(dict(VENUE)), MemorySyncState()
        for entity, records in RECORDS.items():
            for record in records:
                self.host.put(entity, dict(record))

    async def run(self, *directions: str) -> list[Tally]:
        tallies: list[Tally] = []
        method = Authenticator.choose(self.standing.connector, self.credentials).method
        kept = {**kept_of_credentials(method, self.credentials.values), **self.credentials.connection}
        clock, known = NoWaiting(), StaticCredentials(replace(self.credentials, connection=kept))
        async with open_client(origin_overrides=self.standing.overrides) as http:
            client = ProviderClient(self.standing.connector, known, http=http, clock=clock)
            await client.learn()
            for direction in directions:
                for mapping in self.template.mappings:
                    if mapping.direction not in (direction, "bidirectional"):
                        continue
                    run = Sync(
                        self.standing.connector,
                        mapping,
                        client,
                        self.host,
                        self.state,
                        venue=await self.host.venue(),
                        clock=clock,
                        fields=self.platform.entities[mapping.entity].fields,
                    )
                    tallies.append(await (run.pull() if direction == "pull" else run.push()))
                    assert tallies[-1].failures == []
        return tallies

    @property
    def writes(self) -> int:
        return int(self.standing.calls["writes"])

    def holds(self) -> str:
        kinds = [
            self.standing.control(f"objects?type={kind}")["objects"] for kind in KINDS[self.standing.name]
        ]
        return json.dumps(kinds, ensure_ascii=False)


async def square(sandbox: Sandbox) -> tuple[Standing, Credentials]:
    standing = Standing("square", sandbox.square_url, (), ("sq0idp-demo", "sq0csp-demo"))
    standing = Standing(
        "square", sandbox.square_url, tuple(standing.connector.servers.values()), standing.client
    )
    grant, _ = await standing.consent(standing.connector.auth[0])
    headers = {"Authorization": f"Bearer {grant.access_token.reveal()}"}
    async with httpx.AsyncClient(headers=headers) as http:
        found = (await http.get(f"{standing.url}/v2/locations")).json()["locations"]
    locations = {"location_ids": [each["id"] for each in found]}
    return standing, Credentials({"access_token": grant.access_token}, {**grant.connection, **locations})


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, sandbox: Sandbox, fresh: Callable[[Standing], Standing]
) -> World:
    name, pack = request.param
    key = Credentials({"apiKey": Secret("sk_test_demo")})
    match name:
        case "stripe":
            standing = fresh(Standing("stripe", sandbox.stripe_url, ("https://api.stripe.com",), ("", "")))
        case "square":
            fresh(Standing("square", sandbox.square_url, (), ("", "")))
            standing, key = await square(sandbox)
        case "mailchimp":
            standing = fresh(Standing("mailchimp", sandbox.mailchimp_url, mailchimp.REPLACES, ("", "")))
            key = Credentials({"apiKey": Secret(mailchimp.DEFAULT_KEY)}, method="key")
        case _:
            standing = fresh(Standing("quickbooks", sandbox.quickbooks_url, quickbooks.REPLACES, ("", "")))
            key = Credentials(
                {"access_token": Secret(quickbooks.LASTING_TOKEN)}, {"realm_id": quickbooks.DEFAULT_REALM}
            )
    return World(standing, key, pack)


PAIRS = [pytest.param(pair, pair, id="-".join(pair)) for pair in HOLDS]


@pytest.mark.parametrize(("world", "pair"), PAIRS, indirect=["world"])
async def test_a_pack_is_taken_shown_and_agreed_on(world: World, pair: tuple[str, str]) -> None:
    there, missing = HOLDS[pair]
    await world.run("push")
    held = world.holds()
    assert [text for text in there if text not in held] == []
    assert [text for text in missing if text in held] == []
    written, ours = world.writes, {name: dict(rows) for name, rows in world.host.records.items()}
    await world.run("pull", "push")
    assert world.writes == written
    assert world.host.records == ours


def test_every_pack_of_a_kind_of_venue_is_here() -> None:
    files: Any = (PROJECT / "mapping-templates").glob("*/*.yaml")
    packs = {(each.parent.name, each.stem) for each in files if each.stem not in ("default", "shop")}
    assert packs == HOLDS.keys()
