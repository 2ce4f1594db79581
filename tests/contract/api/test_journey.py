"""What a venue does, start to end: the API, a worker and the providers' stand-ins together."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.settings import Settings
from server.worker.context import open_worker_context
from server.worker.main import serve
from server.worker.tasks import Worker
from tests.contract.api.conftest import API, OURS, Hub, bearer
from tests.contract.api.test_oauth import CALLBACK, JSON, approve, begin

WAIT = 60


@pytest.fixture
async def worker(hub: Hub, settings: Settings) -> AsyncIterator[None]:
    """A worker in this process, and three events and two customers to sync."""
    for name, status, price in (
        ("Été", "on_sale", 19.5),
        ("Minuit", "sold_out", 30),
        ("Brouillon", "draft", 5),
    ):
        await hub.execute(
            "INSERT INTO platform.events (id, venue_id, name, status, price, currency) "
            "VALUES (:id, :venue, :name, :status, :price, 'EUR')",
            id=uuid4(),
            venue=OURS,
            name=name,
            status=status,
            price=price,
        )
    for first, email in (("Ana", "ana@example.com"), ("Zoë", "zoe@example.com")):
        await hub.execute(
            "INSERT INTO platform.customers (id, venue_id, first_name, last_name, email) "
            "VALUES (:id, :venue, :first, 'Ruiz', :email)",
            id=uuid4(),
            venue=OURS,
            first=first,
            email=email,
        )
    async with open_worker_context(settings, application_name="test worker", connections=10) as context:
        made = Worker(context, "test")
        running = asyncio.create_task(serve(made, concurrency=2, grace=5))
        yield
        made.stop()
        await running
    await hub.execute("TRUNCATE platform.events, platform.customers, platform.orders CASCADE")


async def sync(hub: Hub, provider: str, **body: Any) -> httpx.Response:
    return await hub.post(f"{API}/sync/{provider}/sync", {"venueId": str(OURS), "wait": WAIT, **body})


async def writes(url: str) -> int:
    async with httpx.AsyncClient() as control:
        return int((await control.get(f"{url}/_sandbox/calls")).json()["writes"])


async def objects(url: str, kind: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as control:
        answer = await control.get(f"{url}/_sandbox/objects", params={"type": kind})
    return [dict(each) for each in answer.json()["objects"]]


async def test_a_key_connects_and_syncs_and_a_second_sync_writes_nothing(hub: Hub, worker: None) -> None:
    await hub.connect_by_key()
    answer = await sync(hub, "stripe")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["overall"]["success"] is True
    assert data["overall"]["failedCount"] == 0
    assert data["products"] == {"syncedCount": 2, "failedCount": 0}
    assert data["customers"]["syncedCount"] == 2
    stripe = hub.sandbox.stripe_url
    assert sorted(each["name"] for each in await objects(stripe, "product")) == ["Minuit", "Été"]
    assert sorted(each["unit_amount"] for each in await objects(stripe, "price")) == [1950, 3000]

    before = await writes(stripe)
    again = await sync(hub, "stripe")
    assert again.json()["data"]["products"] == {"syncedCount": 2, "failedCount": 0}
    assert await writes(stripe) == before

    history = (await hub.get(f"{API}/sync/stripe/sync/history", params={"venueId": str(OURS)})).json()
    assert [row["status"] for row in history["data"]] == ["completed", "completed"]
    assert history["data"][0]["id"] == again.json()["data"]["syncId"]
    shown = (await hub.get(f"{API}/stripe", params={"venueId": str(OURS)})).json()["data"]
    assert (shown["health_status"], shown["health"]["success_rate"]) == ("healthy", 100.0)
    assert shown["last_sync_at"] is not None


async def test_a_mapping_of_ones_own_reaches_every_record_with_the_next_sync(hub: Hub, worker: None) -> None:
    await hub.connect_by_key()
    await sync(hub, "stripe")
    path, stripe = f"{API}/mappings/stripe/mappings", hub.sandbox.stripe_url
    pairs = (await hub.get(path, params={"venueId": str(OURS)})).json()["data"]["mappings"]
    pairs["event.currency"] = [pairs["event.currency"], "product.statement_descriptor"]
    changed = await hub.http.put(path, json={"venueId": str(OURS), "mappings": pairs}, headers=bearer())
    assert changed.status_code == 200, changed.text
    before = await writes(stripe)
    data = (await sync(hub, "stripe")).json()["data"]
    assert data["overall"]["failedCount"] == 0
    products = await objects(stripe, "product")
    assert [each["statement_descriptor"] for each in products] == ["EUR", "EUR"]
    assert await writes(stripe) == before + 2  # the products: nothing else changed
    await sync(hub, "stripe")
    assert await writes(stripe) == before + 2


async def test_a_sync_of_products_leaves_customers_alone(hub: Hub, worker: None) -> None:
    await hub.connect_by_key()
    data = (await sync(hub, "stripe", syncType="products")).json()["data"]
    assert "customers" not in data
    assert await objects(hub.sandbox.stripe_url, "customer") == []


async def test_an_authorization_that_ends_is_told(hub: Hub, worker: None) -> None:
    back = await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    assert back.status_code == 200
    first = await sync(hub, "square")
    assert first.status_code == 200, first.text
    assert len(await objects(hub.sandbox.square_url, "ITEM")) == 2
    async with httpx.AsyncClient() as control:
        revoked = await control.post(
            f"{hub.sandbox.square_url}/_sandbox/tokens/revoke", json={"account": "MDEMO"}
        )
        revoked.raise_for_status()
    answer = await sync(hub, "square")
    assert (answer.status_code, answer.json()["code"]) == (502, "SYNC_FAILED")
    shown = (await hub.get(f"{API}/square", params={"venueId": str(OURS)})).json()["data"]
    assert (shown["status"], shown["health_status"]) == ("error", "unhealthy")
    assert "ACCESS_TOKEN_REVOKED" in shown["last_error"]
    reconnected = await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    assert reconnected.status_code == 200
    assert (await sync(hub, "square")).status_code == 200
    assert len(await objects(hub.sandbox.square_url, "ITEM")) == 2


async def test_the_first_sync_of_a_day_looks_for_new_locations_and_reads_all(hub: Hub, worker: None) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    assert (await sync(hub, "square")).status_code == 200
    [row] = await hub.rows("SELECT connection FROM integration_configs")
    assert row["connection"]["location_ids"] == ["LMDEMO1", "LMDEMO2"]

    # As if the second had been opened yesterday.
    await hub.execute(
        "UPDATE integration_configs SET connection = "
        "connection || jsonb_build_object('location_ids', jsonb_build_array('LMDEMO1'))"
    )
    later = (
        "UPDATE sync_watermarks SET position = jsonb_build_object('since', '2100-01-01T00:00:00+00:00') "
        "WHERE direction = 'pull'"
    )
    await hub.execute(later)
    await sync(hub, "square")  # today's second one
    [row] = await hub.rows("SELECT connection FROM integration_configs")
    assert row["connection"]["location_ids"] == ["LMDEMO1"]

    await hub.execute(later)
    await hub.execute(
        "UPDATE integration_configs SET connected_at = now() - interval '1 day', "
        "last_sync_at = now() - interval '1 day'"
    )
    assert (await sync(hub, "square")).status_code == 200
    [row] = await hub.rows("SELECT connection FROM integration_configs")
    assert row["connection"]["location_ids"] == ["LMDEMO1", "LMDEMO2"]
    [customers] = await hub.rows(
        "SELECT entity_count FROM sync_logs WHERE entity_type = 'customer' "
        "AND details ->> 'direction' = 'pull' ORDER BY started_at DESC LIMIT 1"
    )
    assert customers["entity_count"] == 2
