"""Connecting with credentials, listing, looking, disconnecting."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from engine.errors import LeaseLostError
from engine.ports import Commit, Link
from server.db.models import VenueApiKey
from server.db.stores import Lease, PostgresSyncState
from server.vault import Context as Place
from server.worker import relay
from tests.canary import MARK
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, USER_ID, Hub, bearer

KEY = f"sk_test_demo_{MARK}"


async def test_a_key_that_works_connects(hub: Hub) -> None:
    answer = await hub.connect_by_key(config={"syncInterval": 600}, environment="production")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "success": True,
            "data": {"message": "Integration connected successfully", "integrationType": "stripe"},
        },
    )
    [row] = await hub.rows("SELECT * FROM integration_configs")
    assert (row["venue_id"], row["integration_type"], row["status"]) == (OURS, "stripe", "connected")
    assert row["config"] == {"syncEnabled": True, "syncInterval": 600, "syncDirection": "bidirectional"}
    assert row["connected_at"] is not None
    [template] = await hub.rows("SELECT * FROM field_mapping_templates WHERE id = :id", id=row["template_id"])
    assert (template["integration_type"], template["name"]) == ("stripe", "music-venue")
    assert template["usage_count"] >= 1
    [operation] = await hub.rows("SELECT * FROM sync_queue")
    assert (operation["operation_type"], operation["status"], operation["entity_type"]) == (
        "sync",
        "pending",
        "full",
    )
    assert operation["payload"] == {"syncType": "full", "operation": "initial_sync"}
    assert len(await relay.listed(hub.context.redis, "normal")) == 1
    [entry] = await hub.rows("SELECT * FROM audit_log")
    assert (entry["action"], entry["actor"], entry["venue_id"]) == ("integration.connected", USER_ID, OURS)


async def test_the_key_is_sealed_and_bound_to_its_place(hub: Hub) -> None:
    await hub.connect_by_key()
    [row] = await hub.rows("SELECT * FROM venue_api_keys")
    assert KEY not in str(row)
    place = Place(VenueApiKey.__tablename__, "encrypted_api_key", row["id"], OURS, "stripe", "sandbox")
    opened = await hub.context.vault.open(row["encrypted_api_key"], place)
    assert opened.reveal() == f'{{"apiKey":"{KEY}"}}'


async def test_no_first_sync_when_syncing_is_off(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": False})
    assert await hub.rows("SELECT * FROM sync_queue") == []
    [row] = await hub.rows("SELECT next_sync_at FROM integration_configs")
    assert row["next_sync_at"] is None


@pytest.mark.parametrize(
    ("body", "code", "field", "words"),
    [
        ({"credentials": {"apiKy": KEY}}, "VALIDATION_ERROR", "credentials.apiKy", "did you mean `apiKey`?"),
        ({"credentials": {"apiKey": "pk_test_1"}}, "VALIDATION_ERROR", "credentials.apiKey", "sk_…"),
        ({"credentials": {"apiKey": ""}}, "VALIDATION_ERROR", "credentials.apiKey", "missing"),
        ({"credentials": {}}, "VALIDATION_ERROR", "credentials.apiKey", "missing"),
        ({"config": {"syncInterval": 59}}, "VALIDATION_ERROR", "config.syncInterval", "60"),
        (
            {"config": {"syncIntervall": 60}},
            "VALIDATION_ERROR",
            "config.syncIntervall",
            "did you mean `syncInterval`?",
        ),
        ({"config": {"syncDirection": "up"}}, "VALIDATION_ERROR", "config.syncDirection", "up"),
        ({"environment": "staging"}, "VALIDATION_ERROR", "environment", "staging"),
        ({"venueID": "x"}, "VALIDATION_ERROR", "venueID", "did you mean `venueId`?"),
        ({"venueId": "x"}, "VALIDATION_ERROR", "venueId", "UUID"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(
    hub: Hub, body: dict[str, Any], code: str, field: str, words: str
) -> None:
    answer = await hub.connect_by_key(**body)
    assert answer.status_code == 400
    said = answer.json()
    assert (said["success"], said["code"]) == (False, code)
    assert said["details"][0]["field"] == field
    assert words in said["details"][0]["message"]
    assert await hub.rows("SELECT * FROM venue_api_keys") == []


async def test_a_body_without_a_venue(hub: Hub) -> None:
    answer = await hub.post(f"{API}/connect/stripe", {"credentials": {"apiKey": KEY}})
    assert (answer.status_code, answer.json()["code"]) == (400, "VENUE_ID_REQUIRED")


async def test_a_key_the_provider_refuses_stores_nothing(hub: Hub) -> None:
    answer = await hub.connect_by_key(credentials={"apiKey": "sk_test_bad"})
    assert (answer.status_code, answer.json()["code"]) == (401, "CONNECTION_TEST_FAILED")
    assert "sk_test_bad" not in answer.text
    assert await hub.rows("SELECT * FROM integration_configs") == []
    assert await hub.rows("SELECT * FROM venue_api_keys") == []


async def test_a_provider_that_is_down_is_502(hub: Hub) -> None:
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:400")
    answer = await hub.connect_by_key()
    assert (answer.status_code, answer.json()["code"]) == (502, "SYNC_FAILED")
    assert await hub.rows("SELECT * FROM integration_configs") == []


async def test_a_key_that_may_not_do_enough_is_told_from_a_wrong_one(hub: Hub) -> None:
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:403")
    answer = await hub.connect_by_key()
    assert (answer.status_code, answer.json()["code"]) == (401, "CONNECTION_TEST_FAILED")
    assert "GET /v1/products" in answer.json()["error"]


async def test_a_provider_nobody_knows(hub: Hub) -> None:
    answer = await hub.post(f"{API}/connect/strip", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (404, "INVALID_PROVIDER")
    assert "did you mean `stripe`?" in answer.json()["error"]


async def test_a_venue_the_platform_does_not_have(hub: Hub) -> None:
    answer = await hub.connect_by_key(venueId=str(NOWHERE))
    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
    answer = await hub.post(
        f"{API}/connect/stripe",
        {"venueId": str(NOWHERE), "credentials": {"apiKey": KEY}},
        headers=bearer("admin", None),
    )
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_another_account_does_not_inherit_links(hub: Hub) -> None:
    await hub.connect_by_key(environment="sandbox")
    await hub.execute(
        "INSERT INTO record_links (venue_id, integration_type, entity, resource, local_id, remote_id) "
        "VALUES (:venue, 'stripe', 'event', 'product', 'e1', 'p1')",
        venue=OURS,
    )
    await hub.connect_by_key(environment="sandbox")
    assert len(await hub.rows("SELECT * FROM record_links")) == 1
    await hub.connect_by_key(environment="production")
    assert await hub.rows("SELECT * FROM record_links") == []


async def test_a_run_of_another_account_saves_nothing_any_more(hub: Hub) -> None:
    await hub.connect_by_key(environment="sandbox")
    await hub.execute(
        "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, status,"
        " lease_owner, lease_expires_at, fencing_token)"
        " VALUES (:venue, 'stripe', 'sync', 'full', 'processing', 'w', now() + interval '1 hour', 7)",
        venue=OURS,
    )
    [running] = await hub.rows("SELECT id FROM sync_queue")
    answer = await hub.connect_by_key(environment="production", config={"syncEnabled": True})
    assert answer.status_code == 200
    state = PostgresSyncState(
        hub.context.engine, venue_id=OURS, provider="stripe", lease=Lease(running["id"], 7)
    )
    with pytest.raises(LeaseLostError):
        await state.commit(Commit(links=[Link("event", "product", "e1", "p1")]))
    assert await hub.rows("SELECT * FROM record_links") == []
    queue = await hub.rows("SELECT status::text, lease_owner FROM sync_queue ORDER BY queued_at")
    assert [row["status"] for row in queue] == ["paused", "pending"]  # the other account's first waits


async def test_connecting_several_times_at_once_makes_one_integration(hub: Hub) -> None:
    answers = await asyncio.gather(*(hub.connect_by_key(config={"syncEnabled": True}) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    for table in ("integration_configs", "venue_api_keys", "sync_queue"):
        assert len(await hub.rows(f"SELECT * FROM {table}")) == 1


async def test_the_same_key_and_body_are_worked_once(hub: Hub) -> None:
    headers = {**bearer(), "Idempotency-Key": "connect-1"}
    body = {"venueId": str(OURS), "credentials": {"apiKey": KEY}, "environment": "sandbox"}
    first = await hub.post(f"{API}/connect/stripe", body, headers=headers)
    again = await hub.post(f"{API}/connect/stripe", body, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(await hub.rows("SELECT * FROM audit_log")) == 1
    other = await hub.post(f"{API}/connect/stripe", {**body, "environment": "production"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    [row] = await hub.rows("SELECT * FROM idempotency_keys")
    assert KEY not in str(row)


async def test_a_key_in_flight_is_409_and_a_failure_frees_it(hub: Hub) -> None:
    headers = {**bearer(), "Idempotency-Key": "connect-2"}
    body = {"venueId": str(OURS), "credentials": {"apiKey": "sk_test_bad"}}
    refused = await hub.post(f"{API}/connect/stripe", body, headers=headers)
    assert refused.status_code == 401
    assert await hub.rows("SELECT * FROM idempotency_keys") == []
    await hub.post(f"{API}/connect/stripe", {**body, "credentials": {"apiKey": KEY}}, headers=headers)
    await hub.execute("UPDATE idempotency_keys SET status = NULL, response = NULL")
    busy = await hub.post(f"{API}/connect/stripe", {**body, "credentials": {"apiKey": KEY}}, headers=headers)
    assert (busy.status_code, busy.json()["code"]) == (409, "IDEMPOTENCY_KEY_IN_USE")


async def test_keys_of_different_callers_do_not_meet(hub: Hub) -> None:
    body = {"venueId": str(OURS), "credentials": {"apiKey": KEY}}
    for user in ("u1", "u2"):
        answer = await hub.post(
            f"{API}/connect/stripe", body, headers={**bearer(userId=user), "Idempotency-Key": "k"}
        )
        assert "Idempotent-Replayed" not in answer.headers


async def test_list_pages_by_cursor_and_by_offset(hub: Hub) -> None:
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type) SELECT :venue, 'p' || n FROM "
        "generate_series(1, 5) n",
        venue=OURS,
    )
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type) VALUES (:venue, 'p9')", venue=OTHERS
    )
    names: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        query = {"venueId": str(OURS), "limit": "2", **({"cursor": cursor} if cursor else {})}
        answer = (await hub.get(API, params=query)).json()
        names += [row["integration_type"] for row in answer["data"]]
        cursor = answer["meta"]["next_cursor"]
        assert answer["meta"]["total"] == 5
    assert (names, cursor) == (["p1", "p2", "p3", "p4", "p5"], None)
    offset = (await hub.get(API, params={"venueId": str(OURS), "limit": "2", "offset": "3"})).json()
    assert [row["integration_type"] for row in offset["data"]] == ["p4", "p5"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({}, "VENUE_ID_REQUIRED"),
        ({"venueId": "x"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "limit": "201"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "limit": "0"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "offset": "-1"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "offset": "9223372036854775808"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "cursor": "nonsense"}, "VALIDATION_ERROR"),
        ({"venueId": str(OURS), "cursor": "W10"}, "VALIDATION_ERROR"),
        # ["\u0000"], which PostgreSQL's text can't hold
        ({"venueId": str(OURS), "cursor": "WyJcdTAwMDAiXQ"}, "VALIDATION_ERROR"),
    ],
)
async def test_list_refuses_what_it_can_not_read(hub: Hub, query: dict[str, str], code: str) -> None:
    answer = await hub.get(API, params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_get_shows_an_integration_and_its_health(hub: Hub) -> None:
    await hub.connect_by_key()
    await _log(hub, "completed", 4)
    await _log(hub, "failed", 1)
    answer = await hub.get(f"{API}/stripe", params={"venueId": str(OURS)})
    data = answer.json()["data"]
    assert (data["integration_type"], data["status"], data["health_status"]) == (
        "stripe",
        "connected",
        "degraded",
    )
    assert data["health"] == {
        "success_rate": 80.0,
        "sync_count_24h": 5,
        "api_calls_24h": 15,
        "authorization_ends_at": None,
    }
    assert data["connected_at"].endswith("Z")
    assert UUID(data["template_id"]).version == 5


async def test_get_what_is_not_connected(hub: Hub) -> None:
    answer = await hub.get(f"{API}/stripe", params={"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (404, "INTEGRATION_NOT_FOUND")


async def test_disconnect_erases_credentials_and_what_waits(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    answer = await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()) == (
        200,
        {"success": True, "message": "stripe integration disconnected successfully"},
    )
    assert await hub.rows("SELECT * FROM venue_api_keys") == []
    assert await hub.rows("SELECT * FROM sync_queue") == []
    [row] = await hub.rows("SELECT * FROM integration_configs")
    assert (row["status"], row["next_sync_at"]) == ("disconnected", None)
    assert row["disconnected_at"] is not None
    assert [entry["action"] for entry in await hub.rows("SELECT action FROM audit_log ORDER BY id")] == [
        "integration.connected",
        "integration.disconnected",
    ]
    again = await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert again.status_code == 200


async def test_disconnect_asks_a_running_sync_to_stop(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    await hub.execute(
        "UPDATE sync_queue SET status = 'processing', lease_owner = 'w', lease_expires_at = now() + "
        "interval '1 hour'"
    )
    await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    [row] = await hub.rows("SELECT * FROM sync_queue")
    assert (row["status"], row["stop_requested"]) == ("processing", True)


async def test_disconnect_works_without_the_connector(hub: Hub) -> None:
    await hub.connect_by_key()
    for table in ("integration_configs", "venue_api_keys"):  # as if its manifest had been taken away
        await hub.execute(f"UPDATE {table} SET integration_type = 'juniper'")
    answer = await hub.post(f"{API}/juniper/disconnect", {"venueId": str(OURS)})
    assert answer.status_code == 200, answer.text
    assert await hub.rows("SELECT * FROM venue_api_keys") == []
    [row] = await hub.rows("SELECT status FROM integration_configs")
    assert row["status"] == "disconnected"
    nobody = await hub.post(f"{API}/cedar/disconnect", {"venueId": str(OURS)})
    assert (nobody.status_code, nobody.json()["code"]) == (404, "INVALID_PROVIDER")


async def test_disconnect_what_is_not_there(hub: Hub) -> None:
    answer = await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (404, "INTEGRATION_NOT_FOUND")


async def _log(hub: Hub, status: str, count: int) -> None:
    await hub.execute(
        "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, "
        "api_calls_made, completed_at) "
        "SELECT :venue, 'stripe', gen_random_uuid(), 'manual_sync', :status, 3, now() FROM "
        "generate_series(1, :count)",
        venue=OURS,
        status=status,
        count=count,
    )
