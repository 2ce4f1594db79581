"""Starting, following and stopping syncs; the worker's part is played by the ledger's own functions."""

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from engine.errors import UnavailableError
from server.api import schemas
from server.api.syncs import watch_events
from server.db.models import Operation
from server.services import operations
from server.services.operations import Claim
from server.worker import relay
from tests import claims
from tests.contract.api.conftest import API, OTHERS, OURS, Hub, bearer

SYNC = f"{API}/sync/stripe/sync"
MAPPINGS = [
    {"entity": "event", "resource": "product", "direction": "push", "read": 6, "created": 3, "updated": 1,
     "unchanged": 1, "skipped": 0, "failed": 1, "api_calls": 5, "duration_ms": 40, "done": True},
    {"entity": "event", "resource": "price", "direction": "push", "read": 5, "created": 5, "failed": 0},
    {"entity": "ticket_type", "resource": "price", "direction": "push", "read": 9, "created": 9, "failed": 0},
    {"entity": "customer", "resource": "customer", "direction": "pull", "read": 4, "created": 2, "failed": 2},
]  # fmt: skip


async def queued(hub: Hub) -> None:
    """Return as soon as there is an operation; each look lets the request under way go on."""
    while not await hub.rows("SELECT 1 FROM sync_queue"):
        pass


async def claim(hub: Hub, progress: Mapping[str, Any] | None = None) -> Claim:
    """Take the operation that waits, as a worker would."""
    taken = await claims.claim(hub.context.engine, owner="test", lease=timedelta(minutes=5))
    assert taken is not None
    if progress is not None:
        async with hub.context.sessions.begin() as session:
            await operations.heartbeat(session, taken, progress)
    return taken


async def finish(hub: Hub, taken: Claim, **more: Any) -> None:
    async with hub.context.sessions.begin() as session:
        await operations.complete(session, taken, {"mappings": MAPPINGS, **more})


async def start(hub: Hub, **body: Any) -> Any:
    return await hub.post(SYNC, {"venueId": str(OURS), "wait": 0, **body})


async def test_a_sync_that_takes_longer_is_accepted(hub: Hub) -> None:
    await hub.connect_by_key()
    answer = await start(hub, syncType="customers")
    assert answer.status_code == 202
    data = answer.json()["data"]
    assert answer.headers["location"] == f"{SYNC}/{data['syncId']}"
    assert data["status"] == "pending"
    [operation] = await hub.rows("SELECT * FROM sync_queue")
    assert str(operation["run_id"]) == data["syncId"]
    assert (operation["entity_type"], operation["priority"]) == ("customers", "HIGH")
    assert operation["payload"] == {
        "syncType": "customers",
        "operation": "manual_sync",
        "options": {"complete": False, "approveDeletes": False},
    }
    assert operation["id"] in await relay.listed(hub.context.redis, "high")
    followed = await hub.get(answer.headers["location"])
    assert followed.status_code == 200
    assert (followed.json()["data"]["status"], followed.json()["data"]["ended"]) == ("pending", False)


async def test_approval_of_deletions_reaches_the_worker_and_the_audit_log(hub: Hub) -> None:
    await hub.connect_by_key()
    answer = await start(hub, options={"complete": True, "approveDeletes": True})
    assert answer.status_code == 202
    [operation] = await hub.rows("SELECT payload FROM sync_queue")
    assert operation["payload"]["options"] == {"complete": True, "approveDeletes": True}
    [entry] = await hub.rows("SELECT details FROM audit_log WHERE action = 'sync.requested'")
    assert entry["details"] == {"syncType": "full", "complete": True, "approveDeletes": True}


async def test_a_sync_that_ends_in_time_answers_with_its_result(hub: Hub) -> None:
    await hub.connect_by_key()
    request = asyncio.create_task(start(hub, wait=30))
    await queued(hub)
    taken = await claim(hub, {"mappings": MAPPINGS})
    await finish(hub, taken)
    answer = await request
    assert answer.status_code == 200
    data = answer.json()["data"]
    duration = data["overall"].pop("duration")
    assert duration >= 0
    assert data == {
        "overall": {"success": True, "syncedCount": 16, "failedCount": 3},
        "syncId": str(taken.run_id),
        "products": {"syncedCount": 14, "failedCount": 1},  # events once, and their ticket types
        "customers": {"syncedCount": 2, "failedCount": 2},
    }


async def test_a_sync_that_fails_is_502_with_its_reason(hub: Hub) -> None:
    await hub.connect_by_key()
    request = asyncio.create_task(start(hub, wait=30))
    await queued(hub)
    await hub.execute("UPDATE sync_queue SET max_attempts = 1")
    taken = await claim(hub)
    async with hub.context.sessions.begin() as session:
        await operations.fail(session, taken, UnavailableError("the provider is down"))
    answer = await request
    assert (answer.status_code, answer.json()["code"]) == (502, "SYNC_FAILED")
    assert answer.json()["error"] == "the provider is down"
    assert answer.json()["details"] == [{"field": "syncId", "message": str(taken.run_id)}]


async def test_one_sync_at_a_time(hub: Hub) -> None:
    await hub.connect_by_key()
    answers = await asyncio.gather(*(start(hub) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
    [first] = [answer.json()["data"]["syncId"] for answer in answers if answer.status_code == 202]
    refused = next(answer.json() for answer in answers if answer.status_code == 409)
    assert refused["code"] == "SYNC_IN_PROGRESS"
    assert refused["details"] == [{"field": "syncId", "message": first}]
    await finish(hub, await claim(hub))
    assert (await start(hub)).status_code == 202


@pytest.mark.parametrize("status", ["disconnected", "connecting", "suspended"])
async def test_only_what_is_connected_syncs(hub: Hub, status: str) -> None:
    await hub.connect_by_key()
    await hub.execute(
        "UPDATE integration_configs SET status = CAST(:status AS integration_status)", status=status
    )
    answer = await start(hub)
    assert (answer.status_code, answer.json()["code"]) == (409, "INTEGRATION_NOT_CONNECTED")


async def test_what_is_not_there_does_not_sync(hub: Hub) -> None:
    answer = await start(hub)
    assert (answer.status_code, answer.json()["code"]) == (404, "INTEGRATION_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"syncType": "product"}, "syncType"),
        ({"wait": 61}, "wait"),
        ({"wait": -1}, "wait"),
        ({"options": {"forse": True}}, "options.forse"),
        ({"options": {"startDate": "yesterday"}}, "options.startDate"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(hub: Hub, body: dict[str, Any], field: str) -> None:
    answer = await start(hub, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert answer.json()["details"][0]["field"] == field


async def test_older_callers_options_are_taken(hub: Hub) -> None:
    await hub.connect_by_key()
    options = {"force": True, "startDate": "2025-01-01", "endDate": "2025-01-15"}
    assert (await start(hub, syncType="products", options=options)).status_code == 202
    [operation] = await hub.rows("SELECT payload FROM sync_queue")
    dates = {"startDate": "2025-01-01", "endDate": "2025-01-15"}
    assert operation["payload"]["options"] == {"complete": False, "approveDeletes": False, **dates}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"startDate": "2025-01-02", "endDate": "2025-01-01"}, "options.endDate"),
        ({"startDate": "2025-01-02", "complete": True}, "options.complete"),
        ({"endDate": "2025-01-02", "complete": True}, "options.complete"),
        ({"endDate": "9999-12-31"}, "options.endDate"),
        ({"endDate": "3000-01-01"}, "options.endDate"),
        ({"startDate": "1969-12-31"}, "options.startDate"),
    ],
)
async def test_dates_that_make_no_sense_are_named(hub: Hub, options: dict[str, Any], field: str) -> None:
    await hub.connect_by_key()
    answer = await start(hub, options=options)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert await hub.rows("SELECT id FROM sync_queue") == []


async def test_a_sync_that_is_cleared_while_somebody_waits_for_it(hub: Hub) -> None:
    await hub.connect_by_key()
    waiting = asyncio.create_task(start(hub, wait=30))
    await queued(hub)
    cleared = await hub.post(f"{API}/admin/clear-queue", {}, headers=bearer("admin", None))
    assert cleared.json()["message"] == "1 queue item cleared"
    answer = await waiting
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_a_stream_of_a_sync_that_is_cleared_ends(hub: Hub) -> None:
    await hub.connect_by_key()
    await start(hub)
    async with hub.context.sessions() as session:
        operation = (await session.scalars(select(Operation))).one()
    told = watch_events(hub.context, operation, asyncio.Event())
    assert (await anext(told)).event == "progress"
    await hub.execute("DELETE FROM sync_queue")
    assert [each async for each in told] == []


async def test_the_same_key_starts_one_sync(hub: Hub) -> None:
    await hub.connect_by_key()
    headers = {**bearer(), "Idempotency-Key": "sync-1"}
    body = {"venueId": str(OURS), "wait": 0}
    first = await hub.post(SYNC, body, headers=headers)
    again = await hub.post(SYNC, body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    assert len(await hub.rows("SELECT * FROM sync_queue")) == 1


async def test_stop_ends_what_waits_and_asks_what_runs(hub: Hub) -> None:
    await hub.connect_by_key()
    waiting = (await start(hub)).json()["data"]["syncId"]
    answer = await hub.post(f"{SYNC}/stop", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()) == (
        200,
        {"success": True, "message": "Sync stopped successfully"},
    )
    state = (await hub.get(f"{SYNC}/{waiting}")).json()["data"]
    assert (state["status"], state["ended"]) == ("paused", True)

    running = (await start(hub)).json()["data"]["syncId"]
    taken = await claim(hub)
    await hub.post(f"{SYNC}/stop", {"venueId": str(OURS)})
    state = (await hub.get(f"{SYNC}/{running}")).json()["data"]
    assert (state["status"], state["ended"]) == ("processing", False)
    async with hub.context.sessions.begin() as session:
        assert await operations.heartbeat(session, taken) is operations.Hold.STOP

    await finish(hub, taken)
    nothing = await hub.post(f"{SYNC}/stop", {"venueId": str(OURS)})
    assert nothing.json()["message"] == "No sync was under way"


async def test_stop_what_nobody_knows(hub: Hub) -> None:
    answer = await hub.post(f"{API}/sync/strpe/sync/stop", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (404, "INVALID_PROVIDER")


async def test_history_refuses_a_moment_before_all_time(hub: Hub) -> None:
    await hub.connect_by_key()
    cursor = schemas.write_cursor(["0001-01-01T00:00:00+14:00", str(OURS)])
    answer = await hub.get(f"{SYNC}/history", params={"venueId": str(OURS), "cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")


async def test_status_counts_the_queue_and_shows_the_sync(hub: Hub) -> None:
    await hub.connect_by_key()
    await start(hub)
    await claim(hub, {"mappings": MAPPINGS, "current": ["event", "price", "push"]})
    for state, count in (("completed", 2), ("dead_letter", 1)):
        await hub.execute(
            "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, status) "
            "SELECT :venue, 'stripe', 'update', 'event', CAST(:state AS operation_status) FROM "
            "generate_series(1, :count)",
            venue=OURS,
            state=state,
            count=count,
        )
    await hub.execute(
        "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type) "
        "VALUES (:venue, 'stripe', 'update', 'event')",
        venue=OTHERS,
    )
    data = (await hub.get(f"{SYNC}/status", params={"venueId": str(OURS)})).json()["data"]
    assert data["integration"]["status"] == "connected"
    assert {row["status"]: row["count"] for row in data["queue"]} == {
        "processing": 1,
        "completed": 2,
        "dead_letter": 1,
    }
    current = data["current"]
    assert (current["status"], current["progress"]["current"]) == ("processing", ["event", "price", "push"])
    assert current["overall"]["syncedCount"] == 16


async def test_a_sync_names_the_records_that_failed_and_why(hub: Hub) -> None:
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    assert (await hub.get(f"{SYNC}/{sync_id}")).json()["data"]["failures"] == []
    failure = {
        "entity": "customer",
        "resource": "customer",
        "direction": "push",
        "record_id": "c-7",
        "code": "SYNC_FAILED",
        "message": "Invalid email address",
        "retryable": False,
        "field": "email",
    }
    await finish(hub, await claim(hub), failures=[failure])
    (shown,) = (await hub.get(f"{SYNC}/{sync_id}")).json()["data"]["failures"]
    assert shown.pop("retry") == {
        "method": "POST",
        "href": f"{SYNC}/failures/retry",
        "body": {
            "venueId": str(OURS),
            "entity": "customer",
            "resource": "customer",
            "direction": "push",
            "recordId": "c-7",
        },
    }
    assert shown == failure


async def test_history_adds_up_the_mappings_of_a_sync(hub: Hub) -> None:
    await hub.connect_by_key()
    good, bad = uuid4(), uuid4()
    for sync_id, status, minutes in (
        (good, "completed", 20),
        (good, "completed", 20),
        (bad, "completed", 10),
        (bad, "dead_letter", 10),
    ):
        await hub.execute(
            "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, "
            "success_count, error_count,"
            " skip_count, api_calls_made, started_at, completed_at) VALUES (:venue, 'stripe', :sync, "
            "'manual_sync',"
            " :status, 10, 1, 2, 3, now() - make_interval(mins => :minutes),"
            " now() - make_interval(mins => :minutes) + interval '1500 ms')",
            venue=OURS,
            sync=sync_id,
            status=status,
            minutes=minutes,
        )
    answer = (await hub.get(f"{SYNC}/history", params={"venueId": str(OURS)})).json()
    assert answer["meta"] == {"total": 2, "limit": 50, "offset": 0, "next_cursor": None}
    assert [(row["id"], row["status"]) for row in answer["data"]] == [
        (str(bad), "failed"),
        (str(good), "completed"),
    ]
    row = answer["data"][1]
    assert (row["success_count"], row["error_count"], row["skip_count"], row["api_calls_made"]) == (
        20,
        2,
        4,
        6,
    )
    assert row["operation"] == "manual_sync"


async def test_history_pages_by_cursor(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute(
        "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, started_at, "
        "completed_at) "
        "SELECT :venue, 'stripe', gen_random_uuid(), 'scheduled_sync', 'completed', "
        "now() - make_interval(mins => n / 2), now() FROM generate_series(1, 7) n",
        venue=OURS,
    )
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        query = {"venueId": str(OURS), "limit": "2", **({"cursor": cursor} if cursor else {})}
        answer = (await hub.get(f"{SYNC}/history", params=query)).json()
        seen += [row["id"] for row in answer["data"]]
        cursor = answer["meta"]["next_cursor"]
    assert (len(seen), len(set(seen)), cursor) == (7, 7, None)


async def test_events_tell_of_progress_and_the_end(hub: Hub) -> None:
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    taken = await claim(hub, {"mappings": MAPPINGS})
    await finish(hub, taken)
    answer = await hub.get(f"{SYNC}/{sync_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    [event] = [block for block in answer.text.split("\r\n\r\n") if block.strip()]
    name, data = event.split("\r\n")
    assert name == "event: ended"
    state = json.loads(data.removeprefix("data: "))
    assert (state["syncId"], state["status"], state["overall"]["syncedCount"]) == (sync_id, "completed", 16)


async def test_events_follow_a_running_sync(hub: Hub) -> None:
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    watching = asyncio.create_task(hub.get(f"{SYNC}/{sync_id}/events"))
    await asyncio.sleep(0)
    taken = await claim(hub, {"mappings": MAPPINGS[:1]})
    await finish(hub, taken)
    text = (await asyncio.wait_for(watching, 30)).text
    assert text.rstrip().rpartition("event: ")[2].startswith("ended")


async def test_a_watcher_shows_its_token_again_after_a_while(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.syncs.LONGEST_WATCH", 0.0)
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    text = (await hub.get(f"{SYNC}/{sync_id}/events")).text
    assert [line for line in text.splitlines() if line.startswith("event: ")] == [
        "event: progress",
        "event: stopping",
    ]


async def test_a_caller_watches_only_so_many(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.syncs.MOST_WATCHED", 1)
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    first = asyncio.create_task(hub.get(f"{SYNC}/{sync_id}/events"))
    async with asyncio.timeout(30):
        while not hub.app.state.get("watching"):  # noqa: ASYNC110 - it looks at the application
            await asyncio.sleep(0.01)
    answer = await hub.get(f"{SYNC}/{sync_id}/events")
    assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    await finish(hub, await claim(hub))
    assert (await first).status_code == 200
    assert (await hub.get(f"{SYNC}/{sync_id}/events")).status_code == 200


async def test_nobody_waits_for_a_sync_when_the_service_stops(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    stopping = asyncio.Event()
    monkeypatch.setattr(hub.app.state, "stopping", stopping)
    waiting = asyncio.create_task(start(hub, wait=60))
    await queued(hub)
    [row] = await hub.rows("SELECT run_id FROM sync_queue")
    watching = asyncio.create_task(hub.get(f"{SYNC}/{row['run_id']}/events"))
    stopping.set()
    answers = await asyncio.wait_for(asyncio.gather(waiting, watching), 20)
    assert [answer.status_code for answer in answers] == [202, 200]


async def test_syncs_of_others_look_like_none(hub: Hub) -> None:
    await hub.connect_by_key()
    sync_id = (await start(hub)).json()["data"]["syncId"]
    for path in (f"{SYNC}/{sync_id}", f"{SYNC}/{sync_id}/events"):
        theirs = await hub.get(path, headers=bearer("venue_admin", OTHERS))
        nobodys = await hub.get(
            path.replace(sync_id, str(UUID(int=1))), headers=bearer("venue_admin", OTHERS)
        )
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json()["error"] == nobodys.json()["error"]
    for path in (f"{API}/sync/square/sync/{sync_id}", f"{SYNC}/not-an-id"):
        assert (await hub.get(path)).status_code == 404
