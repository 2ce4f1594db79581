"""Plans over the API: asked for, looked at, listed and applied; the worker's part is played by the tests."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx

from server.host import SqlHost
from server.services import planned
from server.services.integrations import get_integration
from tests.contract.api.conftest import API, OTHERS, OURS, Hub, bearer
from tests.contract.api.test_syncs import claim, finish

PLAN = f"{API}/sync/stripe/sync/plan"
BODY = {"venueId": str(OURS)}
FIELD = {"field": "email", "path": "email", "ours": "a", "before": "b", "after": "a", "conflict": False}


async def connected(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")


async def ask(hub: Hub, **options: Any) -> httpx.Response:
    return await hub.post(PLAN, {**BODY, "syncType": "customers"}, **options)


async def ready(hub: Hub, *records: dict[str, Any]) -> str:
    """Return the id of a plan that a worker has made, of these records."""
    plan_id = (await ask(hub)).json()["data"]["planId"]
    async with hub.context.sessions() as session:
        integration = await get_integration(session, OURS, "stripe")
    venue = await SqlHost(hub.context.platform, hub.context.catalog.platform, OURS).venue()
    for number, given in enumerate(records):
        row = {"entity": "customer", "local_id": f"c-{number}", "action": "skip", "writes": False, **given}
        await hub.execute(
            "INSERT INTO push_plan_records (plan_id, venue_id, entity, resource, local_id, action, reason,"
            " fields, writes, pulls_first, ours, merged, outcome, why) VALUES (:plan, :venue, :entity,"
            " 'customer', :local_id, :action, 'why not', CAST(:fields AS jsonb), :writes, false, '', '',"
            " :outcome, :why)",
            plan=UUID(plan_id),
            venue=OURS,
            fields=json.dumps([{**FIELD, "reason": "changed here since the last sync"}]),
            **{"outcome": None, "why": None, **row},
        )
    await hub.execute(
        "UPDATE push_plans SET status = 'ready', made_at = now(), basis = CAST(:basis AS jsonb)",
        basis=json.dumps(planned.basis(hub.context.catalog, integration, venue)),
    )
    await finish(hub, await claim(hub))
    return str(plan_id)


async def look(hub: Hub, plan_id: str) -> Any:
    answer = await hub.get(f"{PLAN}/{plan_id}", params=BODY)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def rows(hub: Hub, plan_id: str, **params: Any) -> Any:
    answer = await hub.get(f"{PLAN}/{plan_id}/rows", params={**BODY, **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def apply(hub: Hub, plan_id: str, **options: Any) -> httpx.Response:
    return await hub.post(f"{PLAN}/{plan_id}/apply", {**BODY, "wait": 0}, **options)


async def test_a_plan_is_asked_for_and_made_by_an_operation_of_its_own(hub: Hub) -> None:
    await connected(hub)
    answer = await ask(hub, headers={**bearer(), "Idempotency-Key": "plan-1"})
    assert answer.status_code == 202
    data = answer.json()["data"]
    assert data["status"] == "making"
    assert answer.headers["location"] == f"{PLAN}/{data['planId']}?venueId={OURS}"
    again = await ask(hub, headers={**bearer(), "Idempotency-Key": "plan-1"})
    assert (again.json(), again.headers["idempotent-replayed"]) == (answer.json(), "true")
    [operation] = await hub.rows("SELECT * FROM sync_queue")
    assert (operation["operation_type"], operation["priority"]) == ("plan", "HIGH")
    assert operation["payload"] == {"syncType": "customers", "trigger": "plan", "planId": data["planId"]}
    [entry] = await hub.rows("SELECT * FROM audit_log WHERE action = 'plan.requested'")
    assert (entry["target"], entry["details"]) == (data["planId"], {"syncType": "customers"})
    assert (await hub.get(answer.headers["location"])).json()["data"] == await look(hub, data["planId"])
    refused = await apply(hub, data["planId"])
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
    assert refused.json()["error"] == "the plan is still being made"


async def test_a_plan_that_cannot_be_made_says_why(hub: Hub) -> None:
    await connected(hub)
    plan_id = (await ask(hub)).json()["data"]["planId"]
    await hub.execute("UPDATE sync_queue SET status = 'failed', last_error = 'the provider refuses'")
    state = await look(hub, plan_id)
    assert (state["status"], state["error"], state["made_at"]) == ("failed", "the provider refuses", None)
    refused = await apply(hub, plan_id)
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        "the plan couldn't be made: the provider refuses",
    )


async def test_who_only_pulls_or_is_not_connected_plans_nothing(hub: Hub) -> None:
    assert (await ask(hub)).status_code == 404
    await connected(hub)
    await hub.execute('UPDATE integration_configs SET config = \'{"syncDirection": "pull"}\'')
    answer = await ask(hub)
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    await hub.execute("UPDATE integration_configs SET status = 'disconnected'")
    assert (await ask(hub)).json()["code"] == "INTEGRATION_NOT_CONNECTED"
    assert await hub.rows("SELECT 1 FROM push_plans") == []


async def test_records_are_filtered_and_paged(hub: Hub) -> None:
    await connected(hub)
    plan_id = await ready(
        hub,
        {"action": "update", "writes": True, "outcome": "done"},
        {"action": "create", "writes": True, "outcome": "changed", "why": "changed since the plan"},
        {"action": "skip"},
        {"action": "skip", "entity": "event"},
    )
    first, *_ = (await rows(hub, plan_id))["data"]
    assert first == {
        "entity": "customer",
        "resource": "customer",
        "local_id": "c-0",
        "remote_id": None,
        "action": "update",
        "writes": True,
        "reason": "why not",
        "fields": [{**FIELD, "reason": "changed here since the last sync"}],
        "outcome": "done",
        "outcome_reason": None,
    }
    assert (await look(hub, plan_id))["writes"] == 2
    for params, found in (
        ({"action": "skip"}, ["c-2", "c-3"]),
        ({"action": "skip", "entity": "event"}, ["c-3"]),
        ({"outcome": "changed"}, ["c-1"]),
        ({"resource": "product"}, []),
    ):
        page = await rows(hub, plan_id, **params)
        assert ([row["local_id"] for row in page["data"]], page["meta"]["total"]) == (found, len(found))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await rows(hub, plan_id, limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [row["local_id"] for row in page["data"]]
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            break
    assert seen == ["c-0", "c-1", "c-2", "c-3"]
    assert (await rows(hub, plan_id, limit=1, offset=2))["data"][0]["local_id"] == "c-2"
    unknown = await hub.get(f"{PLAN}/{plan_id}/rows", params={**BODY, "action": "explode"})
    assert (unknown.status_code, unknown.json()["code"]) == (400, "VALIDATION_ERROR")


async def test_a_plan_is_applied_once(hub: Hub) -> None:
    await connected(hub)
    plan_id = await ready(hub, {"action": "skip"})
    headers = {**bearer(), "Idempotency-Key": "apply-1"}
    answer = await apply(hub, plan_id, headers=headers)
    assert answer.status_code == 202, answer.text
    sync_id = answer.json()["data"]["syncId"]
    [operation] = await hub.rows("SELECT * FROM sync_queue WHERE operation_type = 'sync'")
    assert (str(operation["run_id"]), operation["payload"]["planId"]) == (sync_id, plan_id)
    assert operation["payload"]["trigger"] == "planned_push"
    [entry] = await hub.rows("SELECT * FROM audit_log WHERE action = 'plan.applied'")
    assert (entry["target"], entry["details"]) == (plan_id, {"syncId": sync_id})
    replayed = await apply(hub, plan_id, headers=headers)
    assert (replayed.status_code, replayed.json()) == (202, answer.json())
    state = await look(hub, plan_id)
    assert (state["status"], state["sync_id"]) == ("applied", sync_id)
    second = await apply(hub, plan_id)
    assert (second.status_code, second.json()["code"]) == (409, "CONFLICT")
    assert second.json()["details"] == [{"field": "syncId", "message": sync_id}]
    followed = await hub.get(answer.headers["location"])
    assert followed.json()["data"]["sync_type"] == "customers"


async def test_a_plan_waits_for_no_sync_and_outlives_none(hub: Hub) -> None:
    await connected(hub)
    plan_id = await ready(hub, {"action": "skip"})
    started = await hub.post(f"{API}/sync/stripe/sync", {**BODY, "wait": 0})
    busy = await apply(hub, plan_id)
    assert (busy.status_code, busy.json()["code"]) == (409, "SYNC_IN_PROGRESS")
    await finish(hub, await claim(hub))
    stale = await apply(hub, plan_id)
    assert (stale.status_code, stale.json()["code"]) == (409, "CONFLICT")
    assert stale.json()["details"] == [
        {"field": "sync", "message": f"sync {started.json()['data']['syncId']} has run since"}
    ]
    assert (await look(hub, plan_id))["status"] == "ready"


async def test_another_venues_plan_is_none(hub: Hub) -> None:
    await connected(hub)
    plan_id = await ready(hub, {"action": "skip"})
    theirs = {"headers": bearer(venue=OTHERS), "params": {"venueId": str(OTHERS)}}
    there = await hub.get(f"{PLAN}/{plan_id}", **theirs)
    not_there = await hub.get(f"{PLAN}/{uuid4()}", **theirs)
    assert there.status_code == not_there.status_code == 404
    assert there.json()["error"] == not_there.json()["error"]
