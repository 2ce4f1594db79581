"""What administrators see and do across venues, and how work that failed gets another chance."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from engine.errors import AuthenticationError, UnavailableError
from server.db.models import OperationType, Priority
from server.services import operations, overview, recovery
from server.services.operations import Claim
from tests import claims
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, Hub, bearer

ADMIN = f"{API}/admin"
RETRY = f"{API}/sync/stripe/sync/retry"
ROOT = bearer("admin", None)


async def queue(
    hub: Hub,
    *,
    venue: UUID = OURS,
    provider: str = "stripe",
    priority: Priority = Priority.NORMAL,
    kind: OperationType = OperationType.RECONCILE,
    **more: Any,
) -> UUID:
    async with hub.context.sessions.begin() as session:
        operation = await operations.enqueue(
            session,
            venue_id=venue,
            provider=provider,
            operation_type=kind,
            entity_type="full",
            payload={"syncType": "full"},
            priority=priority,
            **more,
        )
    return operation.id


async def claim(hub: Hub, operation_id: UUID) -> Claim:
    taken = await claims.claim(hub.context.engine, operation_id, owner="test", lease=timedelta(minutes=5))
    assert taken is not None
    return taken


async def fail(hub: Hub, operation_id: UUID, *, for_good: bool = False) -> None:
    error = AuthenticationError("no", status=401) if for_good else UnavailableError("away")
    taken = await claim(hub, operation_id)
    async with hub.context.sessions.begin() as session:
        await operations.fail(session, taken, error)


async def dead_letter(hub: Hub, **more: Any) -> UUID:
    operation_id = await queue(hub, max_attempts=1, **more)
    await fail(hub, operation_id)
    return operation_id


async def state(hub: Hub, operation_id: UUID) -> tuple[str, str, int]:
    [row] = await hub.rows(
        "SELECT status, priority, attempts FROM sync_queue WHERE id = :id", id=operation_id
    )
    return row["status"], row["priority"], row["attempts"]


# --- retry (endpoint 13)


async def test_what_failed_is_queued_again_in_its_lane(hub: Hub) -> None:
    await hub.connect_by_key()
    failed = await queue(hub, priority=Priority.HIGH)
    await fail(hub, failed, for_good=True)
    dead, waiting = await dead_letter(hub), await queue(hub)
    other = await dead_letter(hub, provider="square")
    answer = await hub.post(RETRY, {"venueId": str(OURS)})
    assert answer.json() == {"success": True, "message": "Failed items re-queued for retry: 2"}
    assert await state(hub, failed) == ("pending", "HIGH", 0)
    assert await state(hub, dead) == ("pending", "NORMAL", 0)
    assert await state(hub, waiting) == ("pending", "NORMAL", 0)
    assert (await state(hub, other))[0] == "dead_letter"
    assert await hub.context.redis.zscore(f"hub:work:high:stripe:{OURS}", str(failed)) is not None
    taken = await claim(hub, dead)
    assert (taken.attempts, taken.max_attempts) == (1, 1)
    again = await hub.post(RETRY, {"venueId": str(OURS)})
    assert again.json()["message"] == "Nothing had failed"


async def test_one_operation_is_retried(hub: Hub) -> None:
    await hub.connect_by_key()
    one, other = await dead_letter(hub), await dead_letter(hub)
    answer = await hub.post(RETRY, {"venueId": str(OURS), "queueItemId": str(one)})
    assert answer.status_code == 200
    assert ((await state(hub, one))[0], (await state(hub, other))[0]) == ("pending", "dead_letter")
    [entry] = await hub.rows(
        "SELECT actor, target, details FROM audit_log WHERE action = 'operations.retried'"
    )
    assert (entry["target"], entry["details"]) == (str(one), {"operations": 1})


async def test_only_what_failed_at_this_integration_is_retried(hub: Hub) -> None:
    await hub.connect_by_key()
    waiting, foreign = await queue(hub), await dead_letter(hub, venue=OTHERS)
    not_failed = await hub.post(RETRY, {"venueId": str(OURS), "queueItemId": str(waiting)})
    assert (not_failed.status_code, not_failed.json()["code"]) == (400, "VALIDATION_ERROR")
    assert not_failed.json()["details"] == [
        {"field": "queueItemId", "message": "it is pending; only failed ones and dead letters can be retried"}
    ]
    answers = [
        await hub.post(RETRY, {"venueId": str(OURS), "queueItemId": str(operation)})
        for operation in (foreign, uuid4())
    ]
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(404, "NOT_FOUND")] * 2
    assert answers[0].json()["error"] == answers[1].json()["error"]


async def test_a_retry_sent_twice_under_a_key_queues_once(hub: Hub) -> None:
    await hub.connect_by_key()
    dead = await dead_letter(hub)
    headers = {**bearer(), "Idempotency-Key": "again"}
    first = await hub.post(RETRY, {"venueId": str(OURS)}, headers=headers)
    await fail(hub, dead)
    second = await hub.post(RETRY, {"venueId": str(OURS)}, headers=headers)
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert (await state(hub, dead))[0] == "dead_letter"


# --- metrics and test (endpoints 28, 29)


async def log_run(hub: Hub, hours_ago: int, *rows: tuple[str, int, int]) -> None:
    """Write a run of so many mappings (status, good records, bad ones), two seconds long."""
    sync_id = uuid4()
    async with hub.context.sessions.begin() as session:  # one transaction: its now() is one moment
        for status, good, bad in rows:
            await session.execute(
                text(
                    "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, "
                    "success_count, error_count, started_at, completed_at) VALUES (:venue, 'stripe', :sync, "
                    ":operation, :status, :good, :bad, now() - CAST(:age AS interval), "
                    "now() - CAST(:age AS interval) + interval '2 seconds')"
                ),
                {
                    "venue": OURS,
                    "sync": sync_id,
                    "operation": "manual_sync",
                    "status": status,
                    "good": good,
                    "bad": bad,
                    "age": timedelta(hours=hours_ago),
                },
            )


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (
            None,
            {
                "total_syncs": 2,
                "successful": 1,
                "failed": 1,
                "total_success_count": 12,
                "total_error_count": 3,
            },
        ),
        (
            "7d",
            {
                "total_syncs": 3,
                "successful": 2,
                "failed": 1,
                "total_success_count": 22,
                "total_error_count": 3,
            },
        ),
        (
            "30d",
            {
                "total_syncs": 4,
                "successful": 3,
                "failed": 1,
                "total_success_count": 42,
                "total_error_count": 3,
            },
        ),
    ],
)
async def test_metrics_of_a_period(hub: Hub, period: str | None, expected: dict[str, int]) -> None:
    await hub.connect_by_key()
    await log_run(hub, 1, ("completed", 4, 0), ("failed", 1, 3))
    await log_run(hub, 23, ("completed", 7, 0))
    await log_run(hub, 72, ("completed", 10, 0))
    await log_run(hub, 480, ("completed", 20, 0))
    await log_run(hub, 960, ("completed", 40, 0))
    params = {"venueId": str(OURS), **({"period": period} if period else {})}
    answer = await hub.get(f"{API}/health/stripe/metrics", params=params)
    data = answer.json()["data"]
    assert data.pop("condition")["circuit"]["state"] == "closed"
    rate = round(100 * expected["successful"] / expected["total_syncs"], 2)
    durations = dict.fromkeys(("avg_duration", "median_duration", "p95_duration"), 2000)
    assert data == {**expected, **durations, "success_rate": rate, "api_calls": 0}


async def test_metrics_without_syncs_and_of_a_strange_period(hub: Hub) -> None:
    await hub.connect_by_key()
    answer = await hub.get(f"{API}/health/stripe/metrics", params={"venueId": str(OURS)})
    assert answer.json()["data"] == {
        "total_syncs": 0,
        "successful": 0,
        "failed": 0,
        "avg_duration": None,
        "total_success_count": 0,
        "total_error_count": 0,
        "success_rate": None,
        "api_calls": 0,
        "median_duration": None,
        "p95_duration": None,
        "condition": {
            "health_status": "unknown",
            "reason": None,
            "explanation": None,
            "circuit": {"state": "closed", "failures": 0, "opened_at": None, "until": None},
            "quota": None,
            "checked_at": None,
            "response_ms": None,
        },
    }
    strange = await hub.get(f"{API}/health/stripe/metrics", params={"venueId": str(OURS), "period": "1y"})
    assert (strange.status_code, strange.json()["details"][0]["field"]) == (400, "period")


async def test_stored_credentials_are_tried(hub: Hub) -> None:
    await hub.connect_by_key()
    answer = await hub.post(f"{API}/health/stripe/test", {"venueId": str(OURS)})
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert (data["connected"], data["error"]) == (True, None)
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:401")
    refused = await hub.post(f"{API}/health/stripe/test", {"venueId": str(OURS)})
    assert refused.status_code == 200
    assert refused.json()["data"]["connected"] is False
    assert refused.json()["data"]["error"]


async def test_credentials_that_are_not_there_cannot_be_tried(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM venue_api_keys")
    answer = await hub.post(f"{API}/health/stripe/test", {"venueId": str(OURS)})
    assert answer.json()["code"] == "CREDENTIALS_NOT_FOUND"


# --- all venues (endpoint 30)


async def integration(hub: Hub, venue: UUID, provider: str, status: str, health: str) -> None:
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type, status, health_status) VALUES "
        "(:venue, :provider, CAST(:status AS integration_status), CAST(:health AS health_status))",
        venue=venue,
        provider=provider,
        status=status,
        health=health,
    )


async def test_integrations_of_all_venues(hub: Hub) -> None:
    await integration(hub, OTHERS, "square", "error", "unhealthy")
    await integration(hub, OTHERS, "mailchimp", "connected", "degraded")
    await integration(hub, OURS, "stripe", "connected", "healthy")

    async def places(**params: str) -> list[tuple[str, str]]:
        answer = await hub.get(f"{ADMIN}/all-venues", params=params, headers=ROOT)
        assert answer.status_code == 200, answer.text
        return [(row["venue_id"], row["integration_type"]) for row in answer.json()["data"]]

    ours, mail, square = (str(OURS), "stripe"), (str(OTHERS), "mailchimp"), (str(OTHERS), "square")
    assert await places() == [ours, mail, square]
    assert await places(status="connected") == [ours, mail]
    assert await places(healthStatus="unhealthy") == [square]
    assert await places(status="connected", healthStatus="degraded", provider="mailchimp") == [mail]
    first = (await hub.get(f"{ADMIN}/all-venues", params={"limit": 2}, headers=ROOT)).json()["meta"]
    assert first["total"] == 3
    assert await places(limit="2", cursor=first["next_cursor"]) == [square]
    assert await places(limit="1", offset="1") == [mail]


# --- health summary (endpoint 31)


async def test_the_summary_is_kept_for_five_minutes(hub: Hub) -> None:
    await hub.context.redis.delete(overview.SUMMARY_KEY)
    await integration(hub, OURS, "stripe", "connected", "healthy")
    await integration(hub, OURS, "square", "connected", "degraded")
    await integration(hub, OTHERS, "square", "error", "unhealthy")
    await queue(hub)
    summary = (await hub.get(f"{ADMIN}/health-summary", headers=ROOT)).json()["data"]
    assert summary["integrations"] == {
        "total": 3,
        "connected": 2,
        "healthy": 1,
        "degraded": 1,
        "unhealthy": 0,
        "unknown": 0,
    }
    assert summary["queues"] == [{"status": "pending", "count": 1}]
    await hub.execute("DELETE FROM integration_configs")
    assert (await hub.get(f"{ADMIN}/health-summary", headers=ROOT)).json()["data"] == summary
    now = await hub.get(f"{ADMIN}/health-summary", params={"fresh": "true"}, headers=ROOT)
    assert now.json()["data"]["integrations"]["total"] == 0
    assert now.json()["data"]["calculated_at"] > summary["calculated_at"]
    assert 295 <= await hub.context.redis.ttl(overview.SUMMARY_KEY) <= 300
    await hub.context.redis.set(overview.SUMMARY_KEY, json.dumps({"of": "another version"}))
    fresh = (await hub.get(f"{ADMIN}/health-summary", headers=ROOT)).json()["data"]
    assert fresh["integrations"]["total"] == 0
    await hub.context.redis.delete(overview.SUMMARY_KEY)


async def test_the_summary_without_redis_is_calculated_each_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("redis.internal:6379 refused")

    monkeypatch.setattr(hub.context.redis, "get", refuse)
    monkeypatch.setattr(hub.context.redis, "set", refuse)
    for total, venue in enumerate((OURS, OTHERS)):
        answer = await hub.get(f"{ADMIN}/health-summary", headers=ROOT)
        assert (answer.status_code, answer.json()["data"]["integrations"]["total"]) == (200, total)
        await integration(hub, venue, "stripe", "connected", "healthy")


# --- force sync (endpoint 33)


async def test_a_forced_sync_is_complete_and_joins_one_under_way(hub: Hub) -> None:
    await hub.connect_by_key()
    body = {"venueId": str(OURS), "integrationType": "stripe", "wait": 0}
    first = await hub.post(f"{ADMIN}/force-sync", body, headers=ROOT)
    assert first.status_code == 202
    [row] = await hub.rows("SELECT id, payload, run_id FROM sync_queue")
    assert row["payload"]["options"]["complete"] is True
    second = await hub.post(f"{ADMIN}/force-sync", body, headers=ROOT)
    assert second.json()["data"]["syncId"] == first.json()["data"]["syncId"] == str(row["run_id"])
    assert second.headers["location"] == f"{API}/sync/stripe/sync/{row['run_id']}"
    taken = await claim(hub, row["id"])
    mapping = {"entity": "event", "resource": "product", "direction": "push", "created": 3, "failed": 1}
    async with hub.context.sessions.begin() as session:
        await operations.complete(session, taken, {}, progress={"mappings": [mapping]})
    # Ended by now: forcing again is another sync.
    third = await hub.post(f"{ADMIN}/force-sync", body, headers=ROOT)
    assert third.json()["data"]["syncId"] != first.json()["data"]["syncId"]


async def test_a_sync_cannot_be_forced_where_nothing_is_connected(hub: Hub) -> None:
    body = {"venueId": str(OURS), "integrationType": "stripe"}
    answer = await hub.post(f"{ADMIN}/force-sync", body, headers=ROOT)
    assert (answer.status_code, answer.json()["code"]) == (404, "INTEGRATION_NOT_FOUND")
    unheard = await hub.post(f"{ADMIN}/force-sync", {**body, "integrationType": "strip"}, headers=ROOT)
    assert (unheard.status_code, unheard.json()["code"]) == (404, "INVALID_PROVIDER")


# --- the queue (endpoints 34 to 37)


async def test_much_that_failed_is_queued_again_in_parts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")
    for number in range(7):
        await dead_letter(hub, idempotency_key=str(number))
    monkeypatch.setattr(recovery, "AT_ONCE", 2)
    monkeypatch.setattr(recovery, "MOST_RETRIED", 5)
    queued = "Failed items re-queued for retry:"
    for told in (f"{queued} 5", f"{queued} 2", "Nothing had failed"):
        answer = await hub.post(RETRY, {"venueId": str(OURS)})
        assert answer.json()["message"] == told
    rows = await hub.rows("SELECT status, revivals FROM sync_queue")
    assert {(row["status"], row["revivals"]) for row in rows} == {("pending", 1)}
    assert len(rows) == 7
    audited = await hub.rows("SELECT details FROM audit_log WHERE action = 'operations.retried' ORDER BY id")
    assert [row["details"]["operations"] for row in audited] == [5, 2, 0]


async def test_the_queue_is_cleared_of_what_fits(hub: Hub) -> None:
    mine, square, theirs = (
        await queue(hub),
        await queue(hub, provider="square"),
        await queue(hub, venue=OTHERS),
    )
    dead, running = await dead_letter(hub), await queue(hub)
    await claim(hub, running)

    async def clear(**body: str) -> str:
        answer = await hub.post(f"{ADMIN}/clear-queue", body, headers=ROOT)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["message"])

    async def left() -> set[UUID]:
        return {row["id"] for row in await hub.rows("SELECT id FROM sync_queue")}

    assert await clear(status="dead_letter") == "1 queue item cleared"
    assert await left() == {mine, square, theirs, running}
    assert await clear(venueId=str(OURS), integrationType="square") == "1 queue item cleared"
    assert await left() == {mine, theirs, running}
    assert await clear(venueId=str(NOWHERE)) == "0 queue items cleared"
    assert await clear() == "2 queue items cleared"
    assert await left() == {running}
    refused = await hub.post(f"{ADMIN}/clear-queue", {"status": "processing"}, headers=ROOT)
    assert (refused.status_code, refused.json()["details"][0]["field"]) == (400, "status")
    assert dead not in await left()


async def test_history_is_cleared_only_by_name(hub: Hub) -> None:
    done = await queue(hub)
    taken = await claim(hub, done)
    async with hub.context.sessions.begin() as session:
        await operations.complete(session, taken, {})
    assert (await hub.post(f"{ADMIN}/clear-queue", {}, headers=ROOT)).json()["message"].startswith("0 ")
    answer = await hub.post(f"{ADMIN}/clear-queue", {"status": "completed"}, headers=ROOT)
    assert answer.json()["message"] == "1 queue item cleared"


async def test_dead_letters_go_to_the_low_lane_where_the_provider_answers(hub: Hub) -> None:
    await hub.connect_by_key()
    dead = await dead_letter(hub, priority=Priority.HIGH)
    failed = await queue(hub)
    await fail(hub, failed, for_good=True)
    nobodys = await dead_letter(hub, venue=OTHERS)  # nothing is connected there
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:500")
    silent = await hub.post(f"{ADMIN}/process-dead-letter", {}, headers=ROOT)
    assert silent.json()["message"] == (
        "Dead letter queue processing initiated: 0 queue items queued again; 1 integration doesn't answer yet"
    )
    assert (await state(hub, dead))[0] == "dead_letter"
    await hub.break_provider(hub.sandbox.stripe_url, "nothing", "status:500")
    answer = await hub.post(f"{ADMIN}/process-dead-letter", {}, headers=ROOT)
    assert answer.json()["message"] == "Dead letter queue processing initiated: 1 queue item queued again"
    assert await state(hub, dead) == ("recovering", "LOW", 0)
    assert (await state(hub, failed))[0] == "failed"
    assert (await state(hub, nobodys))[0] == "dead_letter"
    assert await hub.context.redis.zscore(f"hub:work:low:stripe:{OURS}", str(dead)) is not None


async def test_stale_operations_are_announced(hub: Hub) -> None:
    stale = await queue(hub)
    await claim(hub, stale)
    await hub.context.redis.delete(f"hub:work:normal:stripe:{OURS}")
    fresh = await hub.post(f"{ADMIN}/recover-stale", {}, headers=ROOT)
    assert fresh.json()["message"].endswith(": 0 queue items to be taken over")
    await hub.execute("UPDATE sync_queue SET lease_expires_at = now() - interval '1 second'")
    answer = await hub.post(f"{ADMIN}/recover-stale", {}, headers=ROOT)
    assert answer.json()["message"] == "Stale operations recovery initiated: 1 queue item to be taken over"
    assert await hub.context.redis.zscore(f"hub:work:normal:stripe:{OURS}", str(stale)) is not None
    assert (await claim(hub, stale)).operation_id == stale


async def test_the_queue_by_priority_and_status(hub: Hub) -> None:
    await queue(hub, priority=Priority.LOW)
    await queue(hub, priority=Priority.CRITICAL)
    await queue(hub, priority=Priority.CRITICAL)
    await dead_letter(hub)
    answer = await hub.get(f"{ADMIN}/queue-metrics", headers=ROOT)
    assert answer.json()["data"] == [
        {"priority": "CRITICAL", "status": "pending", "count": 2},
        {"priority": "NORMAL", "status": "dead_letter", "count": 1},
        {"priority": "LOW", "status": "pending", "count": 1},
    ]
