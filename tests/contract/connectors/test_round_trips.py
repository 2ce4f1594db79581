"""Push, then pull, then push: both sides agree, and the last step writes nothing."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, connect, load_platform
from engine.clock import SystemClock
from engine.memory import MemoryHost, MemorySyncState
from engine.sync import Sync, Tally
from engine.templates import load_template
from tests.contract.connectors.conftest import PROJECT, Standing
from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.running import Sandbox

VENUE = {"id": "0e9d7c1a-0000-4000-8000-000000000001", "name": "Café Zoë", "currency": "USD"}
EVENT = {"description": None, "status": "on_sale", "starts_at": None, "capacity": 100, "url": None}
EVENTS: list[dict[str, Any]] = [
    {**EVENT, "id": "ev-1", "name": "Noche: Jazz – O'Brien", "price": Decimal("45.10"), "currency": "USD"},
    {**EVENT, "id": "ev-2", "name": "東京の夜", "price": Decimal("12.00"), "currency": "USD"},
    {**EVENT, "id": "ev-3", "name": "Draft", "price": None, "currency": "USD", "status": "draft"},
]
CUSTOMER = {"phone": None, "city": None, "postal_code": None, "country": None, "accepts_marketing": True}
CUSTOMERS: list[dict[str, Any]] = [
    {**CUSTOMER, "id": "cu-1", "first_name": "Zoë", "last_name": "O'Brien", "email": "zoe@example.com"},
    {**CUSTOMER, "id": "cu-2", "first_name": "Ana María", "last_name": "Ruiz", "email": "Ana@example.com"},
]


class World:
    """One provider, one platform, and what is remembered between them."""

    def __init__(self, standing: Standing, credentials: Credentials) -> None:
        self.standing, self.credentials = standing, credentials
        self.platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        pack = PROJECT / "mapping-templates" / standing.name / "default.yaml"
        self.template = load_template(pack, standing.connector, self.platform)
        self.host, self.state = MemoryHost(dict(VENUE)), MemorySyncState()
        for entity, records in (("event", EVENTS), ("customer", CUSTOMERS)):
            for record in records:
                self.host.put(entity, dict(record))

    async def run(self, *directions: str) -> list[Tally]:
        tallies: list[Tally] = []
        overrides = self.standing.overrides
        async with connect(self.standing.connector, self.credentials, origin_overrides=overrides) as client:
            for direction in directions:
                for mapping in self.template.mappings:
                    if mapping.direction not in (direction, "bidirectional"):
                        continue
                    fields, venue = self.platform.entities[mapping.entity].fields, await self.host.venue()
                    run = Sync(
                        self.standing.connector,
                        mapping,
                        client,
                        self.host,
                        self.state,
                        venue=venue,
                        clock=SystemClock(),
                        fields=fields,
                    )
                    tallies.append(await (run.pull() if direction == "pull" else run.push()))
                    assert tallies[-1].failures == []
        return tallies

    def writes(self) -> int:
        return int(self.standing.calls["writes"])

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return list(self.standing.control(f"objects?type={kind}")["objects"])


@pytest.fixture(params=["mailchimp", "quickbooks"])
def world(request: pytest.FixtureRequest, sandbox: Sandbox, fresh: Callable[[Standing], Standing]) -> World:
    if request.param == "mailchimp":
        client = (mailchimp.DEFAULT_CLIENT, mailchimp.DEFAULT_SECRET)
        standing = Standing("mailchimp", sandbox.mailchimp_url, mailchimp.REPLACES, client)
        key = Credentials({"apiKey": Secret(mailchimp.DEFAULT_KEY)}, method="key")
        return World(fresh(standing), key)
    client = (quickbooks.DEFAULT_CLIENT, quickbooks.DEFAULT_SECRET)
    standing = Standing("quickbooks", sandbox.quickbooks_url, quickbooks.REPLACES, client)
    token = Credentials(
        {"access_token": Secret(quickbooks.LASTING_TOKEN)}, {"realm_id": quickbooks.DEFAULT_REALM}
    )
    return World(fresh(standing), token)


KINDS = {"mailchimp": "member", "quickbooks": "Customer"}


def addresses(world: World) -> list[str]:
    rows = world.objects(KINDS[world.standing.name])
    found = [row.get("email_address") or row["PrimaryEmailAddr"]["Address"] for row in rows]
    return sorted(each.lower() for each in found)


async def test_a_round_trip_writes_everything_once(world: World) -> None:
    await world.run("push")
    assert addresses(world) == ["ana@example.com", "zoe@example.com"]
    written, ours = world.writes(), {name: dict(rows) for name, rows in world.host.records.items()}
    await world.run("pull")
    assert world.host.records == ours
    await world.run("push")
    assert world.writes() == written


async def test_a_change_of_ours_is_one_write(world: World) -> None:
    await world.run("push", "pull")
    written = world.writes()
    world.host.put("customer", {**world.host.records["customer"]["cu-1"], "first_name": "Zoé"})
    await world.run("pull", "push", "pull", "push")
    assert world.writes() == written + 1
    assert "Zoé" in str(world.objects(KINDS[world.standing.name]))


def change_theirs(world: World) -> None:
    """Give Zoë another first name over there; where there is consent, take it away."""
    if world.standing.name == "mailchimp":
        change = {"email": "zoe@example.com", "merge_fields": {"FNAME": "Zazie"}, "status": "unsubscribed"}
        world.standing.control("members", change)
        return
    [row] = [each for each in world.objects("Customer") if each["GivenName"] == "Zoë"]
    body = {"Id": row["Id"], "SyncToken": row["SyncToken"], "sparse": True, "GivenName": "Zazie"}
    url = f"{world.standing.url}/v3/company/{quickbooks.DEFAULT_REALM}/customer"
    headers = {"Authorization": f"Bearer {quickbooks.LASTING_TOKEN}", "Accept": "application/json"}
    httpx.post(url, json=body, headers=headers).raise_for_status()


async def test_a_change_of_theirs_arrives(world: World) -> None:
    await world.run("push", "pull")
    change_theirs(world)
    await world.run("pull")
    zoe = world.host.records["customer"]["cu-1"]
    assert zoe["first_name"] == "Zazie"
    assert zoe["accepts_marketing"] is (world.standing.name != "mailchimp")
    written = world.writes()
    await world.run("push", "pull", "push")
    assert world.writes() - written <= 1  # a name made of the first name follows it


@pytest.mark.parametrize("world", ["mailchimp"], indirect=True)
async def test_a_sync_never_gives_consent_back(world: World) -> None:
    await world.run("push", "pull")
    change_theirs(world)
    world.host.put(
        "customer", {**world.host.records["customer"]["cu-1"], "phone": "+34600", "accepts_marketing": True}
    )
    await world.run("push", "pull", "push")
    [zoe] = [row for row in world.objects("member") if row["email_address"] == "zoe@example.com"]
    assert (zoe["status"], zoe["merge_fields"]["PHONE"]) == ("unsubscribed", "+34600")


@pytest.mark.parametrize("world", ["quickbooks"], indirect=True)
async def test_items_have_names_of_their_own_and_exact_prices(world: World) -> None:
    await world.run("push")
    items = {row["Sku"]: (row["Name"], row["UnitPrice"], row["Type"]) for row in world.objects("Item")}
    assert items == {
        "ev-1": ("Noche  Jazz – O'Brien #ev-1", 45.10, "Service"),
        "ev-2": ("東京の夜 #ev-2", 12, "Service"),
    }
