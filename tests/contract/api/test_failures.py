"""Records that failed: listed, filtered, and tried again one by one."""

import json
from typing import Any
from uuid import uuid4

import httpx

from tests.contract.api.conftest import API, OURS, Hub

SYNC = f"{API}/sync/stripe/sync"
FAILURES = f"{SYNC}/failures"


async def fail(hub: Hub, record_id: str, **values: str) -> dict[str, str]:
    """Let a push of an event have failed, and return the body that tries it again."""
    row = {"entity": "event", "resource": "product", "code": "SYNC_FAILED", "message": "no", **values}
    await hub.execute(
        "INSERT INTO record_failures (venue_id, integration_type, entity, resource, direction, record_id,"
        " code, message, retryable, attempts) VALUES (:venue, 'stripe', :entity, :resource, 'push', :record,"
        " :code, :message, false, 3)",
        venue=OURS,
        record=record_id,
        **row,
    )
    named = {"entity": row["entity"], "resource": row["resource"], "direction": "push"}
    return {"venueId": str(OURS), **named, "recordId": record_id}


async def listed(hub: Hub, **params: Any) -> httpx.Response:
    return await hub.get(FAILURES, params={"venueId": str(OURS), **params})


async def connected(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")
    await hub.execute("DELETE FROM record_failures")


async def test_a_failure_says_what_is_wrong_and_how_to_try_it_again(hub: Hub) -> None:
    await connected(hub)
    body = await fail(hub, "e-1", message="name is too long")
    (row,) = (await listed(hub)).json()["data"]
    assert (row["record_id"], row["message"], row["attempts"]) == ("e-1", "name is too long", 3)
    assert row["retry"] == {"method": "POST", "href": f"{FAILURES}/retry", "body": body}
    answer = await hub.post(row["retry"]["href"], row["retry"]["body"])
    assert answer.status_code == 200
    (operation,) = await hub.rows("SELECT * FROM sync_queue")
    assert (operation["entity_id"], operation["priority"], operation["status"]) == ("e-1", "HIGH", "pending")
    (entry,) = await hub.rows("SELECT * FROM audit_log WHERE action = 'record.retried'")
    assert (entry["target"], entry["details"]["record_id"]) == (str(operation["id"]), "e-1")


async def test_asking_twice_queues_a_record_once(hub: Hub) -> None:
    await connected(hub)
    first, second = await fail(hub, "e-1"), await fail(hub, "e-2")
    for body in (first, first, second):
        assert (await hub.post(f"{FAILURES}/retry", body)).status_code == 200
    rows = await hub.rows("SELECT entity_id FROM sync_queue ORDER BY entity_id")
    assert [row["entity_id"] for row in rows] == ["e-1", "e-2"]


async def test_a_record_that_did_not_fail_is_not_queued(hub: Hub) -> None:
    await connected(hub)
    body = await fail(hub, "e-1")
    answer = await hub.post(f"{FAILURES}/retry", {**body, "resource": "price"})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    assert await hub.rows("SELECT id FROM sync_queue") == []


async def test_a_disconnected_integration_tries_nothing(hub: Hub) -> None:
    await connected(hub)
    body = await fail(hub, "e-1")
    await hub.execute("UPDATE integration_configs SET status = 'disconnected'")
    answer = await hub.post(f"{FAILURES}/retry", body)
    assert (answer.status_code, answer.json()["code"]) == (409, "INTEGRATION_NOT_CONNECTED")


async def test_failures_are_filtered_and_paged(hub: Hub) -> None:
    await connected(hub)
    for number in range(5):
        await fail(hub, f"e-{number}")  # all in one moment or not: the record's id decides then
    await fail(hub, "c-1", entity="customer", resource="customer", code="MAPPING_INVALID")
    assert [row["record_id"] for row in (await listed(hub, entity="customer")).json()["data"]] == ["c-1"]
    assert (await listed(hub, code="SYNC_FAILED")).json()["meta"]["total"] == 5
    assert (await listed(hub, code="SYNC_FAILED", entity="customer")).json()["data"] == []
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await listed(hub, limit=2, **({"cursor": cursor} if cursor else {}))).json()
        seen.extend(row["record_id"] for row in page["data"])
        if (cursor := page["meta"]["next_cursor"]) is None:
            break
    assert sorted(seen) == ["c-1", "e-0", "e-1", "e-2", "e-3", "e-4"]
    assert seen[0] == "c-1"  # the last one that failed


async def test_history_has_the_failed_records_of_each_sync_when_asked(hub: Hub) -> None:
    await connected(hub)
    key = {"entity": "event", "resource": "product", "direction": "push", "record_id": "e-1"}
    stopped = {"code": "SYNC_FAILED", "message": "the provider went away"}
    failure = json.dumps([stopped, {**key, "code": "SYNC_FAILED", "message": "no", "retryable": False}])
    sync = uuid4()
    for errors in (failure, None):  # of two mappings
        await hub.execute(
            "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, errors,"
            " started_at, completed_at) VALUES (:venue, 'stripe', :sync, 'manual_sync', 'failed',"
            " CAST(:errors AS jsonb), now(), now())",
            venue=OURS,
            sync=sync,
            errors=errors,
        )
    params = {"venueId": str(OURS)}
    (row,) = (await hub.get(f"{SYNC}/history", params={**params, "failures": "true"})).json()["data"]
    (failed,) = row["failures"]
    assert (row["id"], failed["record_id"]) == (str(sync), "e-1")
    assert failed["retry"]["href"] == f"{FAILURES}/retry"
    (row,) = (await hub.get(f"{SYNC}/history", params=params)).json()["data"]
    assert row["failures"] == []
