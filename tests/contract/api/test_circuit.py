"""What callers see of a provider that doesn't answer."""

import base64
from datetime import timedelta

from server.services import conditions, rollups
from tests.contract.api.conftest import API, OURS, Hub
from tests.contract.api.test_admin import ADMIN, ROOT, log_run

SYNC = f"{API}/sync/stripe/sync"
WHOSE = {"venueId": str(OURS)}
OPEN = (
    "UPDATE integration_configs SET circuit_failures = 5, circuit_opened_at = now(),"
    " circuit_until = now() + interval '10 minutes'"
)


async def circuit(hub: Hub) -> dict[str, object]:
    answer = await hub.get(f"{API}/health/stripe/metrics", params=WHOSE)
    told: dict[str, object] = answer.json()["data"]["condition"]["circuit"]
    return told


async def test_where_the_circuit_stands_is_told(hub: Hub) -> None:
    await hub.connect_by_key()
    assert await circuit(hub) == {"state": "closed", "failures": 0, "opened_at": None, "until": None}
    await hub.execute(OPEN)
    told = await circuit(hub)
    assert (told["state"], told["failures"]) == ("open", 5)
    assert told["until"] is not None
    await hub.context.redis.flushdb()
    summary = await hub.get(f"{ADMIN}/health-summary", headers=ROOT)
    assert summary.json()["data"]["circuits_open"] == 1


async def test_a_sync_that_a_person_asks_for_is_tried_at_once(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute(OPEN)
    answer = await hub.post(SYNC, {**WHOSE, "wait": 0})
    assert answer.status_code == 202, answer.text
    assert "waitingBecause" not in answer.json()["data"]
    assert (await circuit(hub))["state"] == "half_open"


async def test_why_a_sync_waits_is_told(hub: Hub) -> None:
    await hub.connect_by_key()
    first = await hub.post(SYNC, {**WHOSE, "wait": 0})
    sync_id = first.json()["data"]["syncId"]
    await hub.execute(
        "UPDATE sync_queue SET last_error = 'the provider can''t be reached' WHERE run_id = :id",
        id=sync_id,
    )
    forced = await hub.post(
        f"{ADMIN}/force-sync", {**WHOSE, "integrationType": "stripe", "wait": 0}, headers=ROOT
    )
    assert forced.status_code == 202, forced.text
    assert forced.json()["data"] == {
        "syncId": sync_id,
        "status": "pending",
        "waitingBecause": "the provider can't be reached",
    }


async def test_changes_of_health_are_listed(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute(OPEN)
    async with hub.context.sessions.begin() as session:
        assert await conditions.judge_some(session, every=0) == 1
    answer = await hub.get(f"{API}/health/stripe/changes", params=WHOSE)
    [row] = answer.json()["data"]
    assert (row["from_status"], row["to_status"], row["reason"]) == ("unknown", "unhealthy", "circuit_open")
    metrics = await hub.get(f"{API}/health/stripe/metrics", params=WHOSE)
    assert metrics.json()["data"]["condition"]["explanation"] == "the provider didn't answer 5 times in a row"
    shown = await hub.get(f"{API}/health/stripe", params=WHOSE)
    assert shown.json()["data"]["status"] == "unhealthy"


async def test_a_place_among_changes_that_no_number_can_be_is_refused(hub: Hub) -> None:
    await hub.connect_by_key()
    for number in (2**63, -(2**63) - 1, 2**64):
        cursor = base64.urlsafe_b64encode(f"[{number}]".encode()).decode()
        answer = await hub.get(f"{API}/health/stripe/changes", params={**WHOSE, "cursor": cursor})
        assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "cursor")


async def test_numbers_of_all_integrations_are_listed(hub: Hub) -> None:
    await hub.connect_by_key()
    await log_run(hub, 1, ("completed", 4, 0), ("failed", 1, 3))
    await hub.execute("DELETE FROM rollup_marks")
    async with hub.context.sessions.begin() as session:
        await rollups.roll_up(session, since=timedelta(hours=5))
    answer = await hub.get(f"{ADMIN}/integration-metrics", params={"period": "7d"}, headers=ROOT)
    assert answer.json()["meta"]["total"] == 1
    assert answer.json()["data"] == [
        {
            "venue_id": str(OURS),
            "integration_type": "stripe",
            "syncs": 1,
            "failed": 1,
            "success_rate": 0.0,
            "mean_ms": 2000,
            "median_ms": 3500,
            "p95_ms": 4850,
            "success_count": 5,
            "error_count": 3,
            "api_calls": 0,
        }
    ]
