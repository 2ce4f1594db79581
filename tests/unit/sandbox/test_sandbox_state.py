"""What a stand-in holds survives a stop and a start."""

from pathlib import Path

import httpx

from tests.sandbox.core import SandboxClock, StandIn
from tests.sandbox.square import PERSONAL_TOKEN, Square
from tests.sandbox.stripe import Stripe


def client(stand_in: StandIn, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(stand_in),
        base_url="http://provider",
        headers={"Authorization": f"Bearer {token}"},
    )


async def test_stripe_goes_on_where_it_stopped(clock: SandboxClock, tmp_path: Path) -> None:
    before, after = Stripe(clock), Stripe(clock)
    key = {"Idempotency-Key": "k"}
    async with client(before, "sk_test_demo") as calls:
        made = (await calls.post("/v1/customers", data={"email": "a@x.example"}, headers=key)).json()
        events = (await calls.get("/v1/events")).json()
    before.save(tmp_path / "stripe")
    after.load(tmp_path / "stripe")
    async with client(after, "sk_test_demo") as calls:
        assert (await calls.get("/v1/customers", params={"email": "a@x.example"})).json()["data"] == [made]
        assert (await calls.get("/v1/events")).json() == events
        again = await calls.post("/v1/customers", data={"email": "a@x.example"}, headers=key)
        assert (again.json(), again.headers["Idempotent-Replayed"]) == (made, "true")
        new = (await calls.post("/v1/customers", data={"email": "b@x.example"})).json()
        listed = (await calls.get("/v1/customers")).json()["data"]
        assert [value["id"] for value in listed] == [new["id"], made["id"]]


async def test_square_goes_on_where_it_stopped(clock: SandboxClock, tmp_path: Path) -> None:
    before, after = Square(clock), Square(clock)
    variation = {
        "type": "ITEM_VARIATION",
        "id": "#ga",
        "item_variation_data": {"name": "GA", "pricing_type": "VARIABLE_PRICING"},
    }
    item = {"type": "ITEM", "id": "#ev", "item_data": {"name": "Concert", "variations": [variation]}}
    async with client(before, PERSONAL_TOKEN) as calls:
        body = {"idempotency_key": "k", "object": item}
        made = (await calls.post("/v2/catalog/object", json=body)).json()["catalog_object"]
        count = {
            "catalog_object_id": made["item_data"]["variations"][0]["id"],
            "location_id": "LMDEMO1",
            "quantity": "5",
            "state": "IN_STOCK",
            "occurred_at": "2025-10-09T08:53:20Z",
        }
        change = {"idempotency_key": "c", "changes": [{"type": "PHYSICAL_COUNT", "physical_count": count}]}
        assert (await calls.post("/v2/inventory/changes/batch-create", json=change)).status_code == 200
        account = (await calls.post("/_sandbox/accounts", json={"account": "MTWO"})).json()
    before.save(tmp_path / "square")
    after.load(tmp_path / "square")
    async with client(after, PERSONAL_TOKEN) as calls:
        path = f"/v2/catalog/object/{made['id']}"
        assert (await calls.get(path)).json()["object"] == made
        alone = made["item_data"]["variations"][0]
        alone["item_variation_data"]["name"] = "Balcony"
        body = {"idempotency_key": "later", "object": alone}
        assert (await calls.post("/v2/catalog/object", json=body)).status_code == 200
        inside = (await calls.get(path)).json()["object"]["item_data"]["variations"][0]
        assert inside["item_variation_data"]["name"] == "Balcony"
        counts = (await calls.post("/v2/inventory/counts/batch-retrieve", json={})).json()["counts"]
        assert [entry["quantity"] for entry in counts] == ["5"]
    async with client(after, account["token"]) as calls:
        assert (await calls.get("/v2/merchants/me")).json()["merchant"]["id"] == "MTWO"
