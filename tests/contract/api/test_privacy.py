"""Exporting and erasing a venue over the API."""

import asyncio
import hashlib
import io
import json
import zipfile
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.services import upkeep
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, USER_ID, Hub, bearer

VENUE = f"{API}/venue/{OURS}"
CONFIRMED = {"confirm": str(OURS)}


async def begin(hub: Hub, what: str, body: dict[str, Any] | None = None) -> str:
    answer = await hub.http.post(f"{VENUE}/{what}", json=body, headers=bearer())
    assert answer.status_code == 202, answer.text
    data = answer.json()["data"]
    assert answer.headers["location"] == f"{VENUE}/{what}/{data['runId']}"
    return str(data["runId"])


async def ended(hub: Hub, what: str, run_id: str) -> dict[str, Any]:
    await upkeep.work_to_end(hub.context, UUID(run_id))
    answer = await hub.get(f"{VENUE}/{what}/{run_id}")
    assert answer.status_code == 200
    state: dict[str, Any] = answer.json()["data"]
    return state


async def test_a_venue_is_exported_and_fetched(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    run_id = await begin(hub, "export")
    early = await hub.get(f"{VENUE}/export/{run_id}/download")
    assert (early.status_code, early.json()["code"]) == (409, "CONFLICT")
    state = await ended(hub, "export", run_id)
    assert (state["status"], state["kind"], state["venue_id"]) == ("completed", "export", str(OURS))
    assert state["progress"]["done"] == state["progress"]["total"] > 3
    answer = await hub.get(f"{VENUE}/export/{run_id}/download")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="venue-{OURS}.zip"'
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.content) == int(answer.headers["content-length"]) == state["result"]["bytes"]
    assert hashlib.sha256(answer.content).hexdigest() == state["result"]["sha256"]
    assert answer.headers["etag"] == f'"{state["result"]["sha256"]}"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        [integration] = archive.read("integration_configs.jsonl").splitlines()
        [key] = archive.read("venue_api_keys.jsonl").splitlines()
    assert json.loads(integration)["status"] == "connected"
    assert json.loads(key)["api_key"] == "stored, and left out here"
    assert b"sk_test_demo" not in answer.content


async def test_an_export_under_way_is_joined(hub: Hub) -> None:
    assert await begin(hub, "export") == await begin(hub, "export")


async def test_a_venue_is_erased_and_then_looks_like_one_nobody_knows(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type, status) VALUES (:venue, 'stripe', "
        "'connected')",
        venue=OTHERS,
    )
    state = await ended(hub, "erase", await begin(hub, "erase", CONFIRMED))
    assert (state["status"], state["kind"]) == ("completed", "erasure")
    assert {entry["left"] for entry in state["result"]["tables"].values()} == {0}
    assert state["result"]["tables"]["integration_configs"]["erased"] == 1
    assert state["requested_by"] == USER_ID
    unknown = bearer("venue_admin", NOWHERE)
    for path in (
        API,
        f"{API}/stripe",
        f"{API}/sync/stripe/sync/history",
        f"{API}/sync/stripe/sync/status",
        f"{API}/health/stripe",
    ):
        erased = await hub.get(path, params={"venueId": str(OURS)})
        never = await hub.http.get(path, params={"venueId": str(NOWHERE)}, headers=unknown)
        assert erased.status_code == never.status_code
        for told in ("data", "meta", "code", "error"):
            assert erased.json().get(told) == never.json().get(told), path
    assert (await hub.get(f"{VENUE}/audit")).json()["data"] == []
    assert [row["venue_id"] for row in await hub.rows("SELECT venue_id FROM integration_configs")] == [OTHERS]
    log = (await hub.http.get(f"{API}/admin/audit", headers=bearer("admin", None))).json()["data"]
    assert [row["target"] for row in log if row["action"].startswith("erasure.")] == [str(OURS)] * 2


async def test_nothing_new_is_taken_while_a_venue_is_erased(hub: Hub) -> None:
    await begin(hub, "erase", CONFIRMED)
    answer = await hub.connect_by_key()
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    answer = await hub.post(f"{VENUE}/export", {})
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    for table in ("integration_configs", "venue_api_keys", "sync_queue"):
        assert await hub.rows(f"SELECT * FROM {table}") == []


async def test_connecting_again_afterwards_is_beginning_anew(hub: Hub) -> None:
    await hub.connect_by_key()
    await ended(hub, "erase", await begin(hub, "erase", CONFIRMED))
    assert (await hub.connect_by_key()).status_code == 200


async def test_a_venue_that_is_erased_while_it_connects_stays_erased(hub: Hub) -> None:
    """The provider takes its time to answer: meanwhile the venue is erased from beginning to end."""
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "timeout:2")
    connecting = asyncio.create_task(hub.connect_by_key())
    async with asyncio.timeout(10), httpx.AsyncClient() as control:
        calls = f"{hub.sandbox.stripe_url}/_sandbox/calls"
        while not (await control.get(calls)).json()["faults"]:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    await ended(hub, "erase", await begin(hub, "erase", CONFIRMED))
    answer = await connecting
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT"), answer.text
    assert await hub.rows("SELECT * FROM integration_configs") == []
    assert await hub.rows("SELECT * FROM venue_api_keys") == []


@pytest.mark.parametrize(
    ("role", "body", "status"),
    [
        ("venue_admin", None, 400),
        ("venue_admin", {}, 400),
        ("venue_admin", {"confirm": str(OTHERS)}, 400),
        ("venue_admin", {"confirm": "yes"}, 400),
        ("venue_admin", {"confirmed": str(OURS)}, 400),
        ("venue_admin", CONFIRMED, 202),
        ("admin", None, 202),
        ("admin", {"confirm": str(OTHERS)}, 400),
        ("user", CONFIRMED, 403),
        ("superuser", CONFIRMED, 403),
    ],
)
async def test_erasing_is_confirmed(hub: Hub, role: str, body: dict[str, Any] | None, status: int) -> None:
    options: dict[str, Any] = {} if body is None else {"json": body}
    answer = await hub.http.post(f"{VENUE}/erase", headers=bearer(role), **options)
    assert answer.status_code == status, answer.text
    started = await hub.rows("SELECT * FROM maintenance_runs")
    assert len(started) == (1 if status == 202 else 0)
    if status == 400 and body != {"confirmed": str(OURS)}:
        assert answer.json()["details"][0]["field"] == "confirm"


async def test_another_venue_is_not_ones_own(hub: Hub) -> None:
    answers = []
    for venue in (OTHERS, NOWHERE):
        for what, body in (("erase", {"confirm": str(venue)}), ("export", None)):
            answer = await hub.http.post(f"{API}/venue/{venue}/{what}", json=body, headers=bearer())
            answers.append((answer.status_code, answer.json()["code"], answer.json()["error"]))
    assert set(answers) == {(403, "FORBIDDEN", "you may not act for this venue")}
    assert await hub.rows("SELECT * FROM maintenance_runs") == []


async def test_a_run_is_found_at_its_venue_and_kind_alone(hub: Hub) -> None:
    run_id = await begin(hub, "export")
    admin = bearer("admin", None)
    paths = (
        f"{API}/venue/{OTHERS}/export/{run_id}",
        f"{VENUE}/erase/{run_id}",
        f"{VENUE}/export/{uuid4()}",
        f"{API}/venue/{OTHERS}/export/{run_id}/download",
    )
    for path in paths:
        answer = await hub.http.get(path, headers=admin)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND"), path
    assert (await hub.http.get(f"{VENUE}/export/{run_id}", headers=admin)).status_code == 200
