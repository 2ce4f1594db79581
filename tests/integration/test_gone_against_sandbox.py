"""What becomes of records that are gone on one side, against the simulated Stripe and Square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.integration.test_sync_against_sandbox import World
from tests.sandbox.running import Sandbox, running_sandbox

RESOURCES = {"stripe": "product", "square": "item"}
both = pytest.mark.parametrize("name", ["stripe", "square"])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture(autouse=True)
def empty_sandbox(sandbox: Sandbox) -> None:
    for url in (sandbox.stripe_url, sandbox.square_url):
        httpx.post(f"{url}/_sandbox/reset").raise_for_status()


def shelf(world: World, name: str) -> dict[str, dict[str, Any]]:
    """What is held of events at the provider, by our id: its name, and whether it is out of use."""
    if name == "stripe":
        return {
            row["metadata"]["event_id"]: {"name": row["name"], "archived": not row["active"]}
            for row in world.objects("product")
        }
    items = [row["item_data"] for row in world.objects("ITEM")]
    return {
        item["variations"][0]["item_variation_data"]["user_data"]: {
            "name": item["name"],
            "archived": item["is_archived"],
        }
        for item in items
    }


def archived(world: World, name: str) -> list[str]:
    return sorted(event for event, held in shelf(world, name).items() if held["archived"])


def more_events(world: World, count: int) -> None:
    for number in range(count):
        world.host.put(
            "event", {**world.host.records["event"]["ev-1"], "id": f"x{number}", "name": f"X{number}"}
        )


@both
async def test_a_cancelled_event_is_archived_and_comes_back_with_it(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    push = f"event push {RESOURCES[name]}"
    await world.sync()
    for _ in range(2):  # also within the life of the idempotency keys
        world.change("event", "ev-1", status="cancelled")
        assert (await world.sync())[push].archived == 1
        assert archived(world, name) == ["ev-1"]
        before = world.writes()
        await world.sync()
        assert world.writes() == before
        world.change("event", "ev-1", status="on_sale")
        tally = (await world.sync())[push]
        assert (tally.updated, tally.created, archived(world, name)) == (1, 0, [])
    assert len(shelf(world, name)) == 3


@both
async def test_a_deleted_event_is_archived_by_a_complete_sync(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    await world.sync()
    before = shelf(world, name)
    del world.host.records["event"]["ev-2"]
    await world.sync()
    assert archived(world, name) == []
    tallies = await world.sync(complete=True)
    assert tallies[f"event push {RESOURCES[name]}"].archived == 1
    assert shelf(world, name) == {**before, "ev-2": {**before["ev-2"], "archived": True}}


@both
async def test_many_cancelled_events_wait_for_approval(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    push = f"event push {RESOURCES[name]}"
    more_events(world, 12)
    await world.sync()
    for number in range(6):
        world.change("event", f"x{number}", status="cancelled")
    tally = (await world.sync())[push]
    assert (tally.held, tally.archived, archived(world, name)) == (6, 0, [])
    assert tally.note.startswith("6 of 15 linked records are gone, more than the 10%")
    tally = (await world.sync(approved=True))[push]
    assert (tally.held, tally.archived) == (0, 6)
    assert archived(world, name) == [f"x{number}" for number in range(6)]


@both
async def test_what_is_gone_at_the_provider_already_needs_no_archiving(name: str, sandbox: Sandbox) -> None:
    world = World(name, sandbox)
    await world.sync()
    (link,) = [each for key, each in world.state.links.items() if key == (RESOURCES[name], "ev-3")]
    async with world.client() as client:
        if name == "square":
            await client.delete("item", link.remote_id)
        else:  # it has a price, so it can't be deleted: the link leads nowhere
            world.state.links["product", "ev-3"] = replace(link, remote_id="prod_nowhere")
    held = shelf(world, name)
    del world.host.records["event"]["ev-3"]
    tally = (await world.sync(complete=True))[f"event push {RESOURCES[name]}"]
    assert (tally.archived, tally.failed, shelf(world, name)) == (1, 0, held)


@both
async def test_a_customer_deleted_there_is_found_missing(name: str, sandbox: Sandbox) -> None:
    """Stripe tells in its feed; Square's customers just vanish from the list."""
    world = World(name, sandbox)
    await world.sync()
    (link,) = [each for key, each in world.state.links.items() if key == ("customer", "cu-2")]
    async with world.client() as client:
        await client.delete("customer", link.remote_id)
    if name == "square":
        assert (await world.sync())["customer pull customer"].deleted == 0
    tally = (await world.sync(complete=True))["customer pull customer"]
    assert (tally.deleted, tally.held) == (1, 0)
    assert ("customer", "cu-2") not in world.state.links
    assert "cu-2" in world.host.records["customer"]
    world.change("customer", "cu-2", city="Cádiz")
    assert (await world.sync())["customer push customer"].created == 1


def kinds_of(world: World, *names: str) -> None:
    """Sell the first event as these ticket types."""
    event = world.host.records["event"]["ev-1"]
    kinds = [{"id": f"kind-{each}", "name": each, "price": event["price"], "available": 5} for each in names]
    world.change("event", "ev-1", ticket_types=kinds or None)
    for key in list(world.host.records.get("ticket_type", {})):
        del world.host.records["ticket_type"][key]
    for kind in kinds:
        row = {"event_id": "ev-1", "currency": event["currency"], "capacity": 5, "status": event["status"]}
        world.host.put("ticket_type", {**kind, **row})


def for_sale(world: World) -> tuple[list[str], str | None]:
    """The keys of the first event's prices that can be bought at Stripe, and which of them is its default."""
    [product] = [row for row in world.objects("product") if row["metadata"]["event_id"] == "ev-1"]
    prices = {row["id"]: row for row in world.objects("price") if row["product"] == product["id"]}
    default = prices[product["default_price"]]["lookup_key"] if product["default_price"] else None
    return sorted(row["lookup_key"] for row in prices.values() if row["active"]), default


async def test_a_ticket_type_that_is_gone_is_not_for_sale_even_as_the_default(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    kinds_of(world, "balcony", "stalls")
    await world.sync()
    assert for_sale(world) == (["kind-balcony", "kind-stalls"], "kind-stalls")
    kinds_of(world, "balcony")
    tally = (await world.sync(complete=True))["ticket_type push price"]
    assert (tally.archived, tally.failed) == (1, 0)
    assert for_sale(world) == (["kind-balcony"], None)
    before = world.writes()
    await world.sync(complete=True)
    assert world.writes() == before
    kinds_of(world, "balcony", "stalls")
    await world.sync()
    assert for_sale(world)[0] == ["kind-balcony", "kind-stalls"]


async def test_an_event_that_gets_ticket_types_has_no_price_of_its_own(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    kinds_of(world)
    await world.sync()
    assert for_sale(world) == (["ev-1"], "ev-1")
    kinds_of(world, "balcony")
    await world.sync()
    assert for_sale(world) == (["kind-balcony"], "kind-balcony")
    kinds_of(world)
    await world.sync(complete=True)
    assert for_sale(world)[0] == ["ev-1"]


async def test_a_refund_reaches_the_order_it_is_of(sandbox: Sandbox) -> None:
    world = World("stripe", sandbox)
    world.post("/_sandbox/payments", {"count": 3})
    await world.sync()
    assert {row["status"] for row in world.host.records["order"].values()} == {"paid"}
    first, second = world.objects("charge")[:2]
    world.post_form("/v1/refunds", {"charge": first["id"]})
    world.post_form("/v1/refunds", {"charge": second["id"], "amount": "10"})
    await world.sync()
    status = {row["number"]: row["status"] for row in world.host.records["order"].values()}
    assert len(status) == 3
    assert status[first["payment_intent"]] == "refunded"
    assert status[second["payment_intent"]] == "partially_refunded"
    totals = sorted(row["total"] for row in world.host.records["order"].values())
    assert all(totals)
