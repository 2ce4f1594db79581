"""Health, readiness, error answers and the API's own description."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

import server.app
from server.app import create_app
from server.db import migrate
from server.db.reads import Reads
from server.services import conditions, rollups, views
from server.services.health import judge, write
from server.settings import Settings
from tests.contract.api.conftest import API, NOWHERE, OURS, Hub, bearer, living


async def log(
    hub: Hub,
    status: str,
    count: int = 1,
    *,
    age: timedelta = timedelta(hours=1),
    calls: int = 2,
    venue: UUID = OURS,
) -> None:
    """Write finished syncs of two seconds each."""
    await hub.execute(
        "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, "
        "api_calls_made, duration_ms,"
        " started_at, completed_at) SELECT :venue, 'stripe', gen_random_uuid(), 'manual_sync', "
        ":status, :calls, 2000,"
        " now() - CAST(:age AS interval), now() - CAST(:age AS interval) + interval '2 seconds'"
        " FROM generate_series(1, :count)",
        venue=venue,
        status=status,
        count=count,
        age=age,
        calls=calls,
    )


async def health(hub: Hub, venue: Any = OURS) -> Any:
    answer = await hub.http.get(f"{API}/health/stripe", params={"venueId": str(venue)})
    assert answer.status_code == 200
    return answer.json()["data"]


async def test_health_measures_a_day(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    await log(hub, "completed", 9)
    await log(hub, "failed", 1)
    await log(hub, "failed", 5, age=timedelta(days=2))
    measured = await health(hub)
    assert measured["status"] == "healthy"
    assert measured["success_rate"] == 90.0
    assert measured["sync_count_24h"] == 10
    assert measured["api_calls_24h"] == 20
    assert measured["average_sync_time_ms"] == 2000
    assert measured["queue_depth"] == 1
    assert measured["last_success_at"] > "2026"
    assert measured["last_failure_at"] > "2026"


@pytest.mark.parametrize(
    ("good", "bad", "status"),
    [(10, 0, "healthy"), (8, 2, "degraded"), (5, 5, "degraded"), (4, 6, "unhealthy")],
)
async def test_health_by_success_rate(hub: Hub, good: int, bad: int, status: str) -> None:
    await hub.connect_by_key()
    await log(hub, "completed", good)
    await log(hub, "dead_letter", bad)
    assert (await health(hub))["status"] == status


async def test_what_is_written_down_is_what_is_told(hub: Hub) -> None:
    """What a venue's integrations are told from their logs now, all of them are judged to be each minute."""
    cases = [
        (status, good, bad)
        for status in ("connected", "error", "suspended", "disconnected")
        for good, bad in ((0, 0), (10, 0), (9, 1), (8, 2), (5, 5), (4, 6))
    ]
    for number, (status, good, bad) in enumerate(cases):
        venue = UUID(int=number)
        await hub.execute(
            "INSERT INTO integration_configs (venue_id, integration_type, status)"
            " VALUES (:venue, 'stripe', CAST(:status AS integration_status))",
            venue=venue,
            status=status,
        )
        for outcome, count in (("completed", good), ("failed", bad)):
            await log(hub, outcome, count, venue=venue)
    told = {}
    async with Reads(str(hub.context.settings.database_url), application_name="test") as reads:
        for venue in (UUID(int=number) for number in range(len(cases))):
            view = await views.find_view(reads, venue, "stripe")
            assert view is not None
            told[venue] = judge(view, view.measured)
    await hub.execute("DELETE FROM rollup_marks")
    async with hub.context.sessions.begin() as session:
        assert not await rollups.roll_up(session, since=timedelta(hours=1))
        assert await write(session) == len(cases)
        assert await conditions.judge_some(session) == len(cases)
    rows = await hub.rows("SELECT venue_id, health_status::text, health_checked_at FROM integration_configs")
    assert {row["venue_id"]: row["health_status"] for row in rows} == told
    assert set(told.values()) == {"healthy", "degraded", "unhealthy", "unknown"}
    assert all(row["health_checked_at"] for row in rows)


async def test_numbers_are_written_down_and_kept_up_to_date(hub: Hub) -> None:
    await hub.connect_by_key(config={"syncEnabled": True})
    await log(hub, "completed", 9)
    await log(hub, "failed", 1)
    await log(hub, "failed", 5, age=timedelta(days=2))
    await hub.execute("DELETE FROM rollup_marks")
    for _ in range(2):
        async with hub.context.sessions.begin() as session:
            await rollups.roll_up(session, since=timedelta(hours=1))
            await write(session)
    [row] = await hub.rows("SELECT * FROM integration_health")
    assert (row["sync_count_24h"], row["success_count_24h"], row["failure_count_24h"]) == (10, 9, 1)
    assert (row["success_rate"], row["average_sync_time_ms"], row["api_calls_24h"]) == (90, 2000, 20)
    assert (row["queue_depth"], row["oldest_queue_item_at"] is not None) == (1, True)
    last = row["last_success_at"]

    await hub.execute("UPDATE sync_rollups SET bucket = bucket - interval '2 days'")
    await hub.execute("DELETE FROM sync_queue")
    async with hub.context.sessions.begin() as session:
        await write(session)
    [row] = await hub.rows("SELECT * FROM integration_health")
    assert (row["sync_count_24h"], row["success_rate"], row["queue_depth"]) == (0, None, 0)
    assert (row["last_success_at"], row["oldest_queue_item_at"]) == (last, None)


async def test_health_of_an_integration_that_can_not_work(hub: Hub) -> None:
    await hub.connect_by_key()
    await log(hub, "completed", 10)
    await hub.execute("UPDATE integration_configs SET status = 'error'")
    assert (await health(hub))["status"] == "unhealthy"


async def test_health_tells_an_outsider_nothing_of_who_is_connected(hub: Hub) -> None:
    await hub.connect_by_key()
    assert await health(hub) == await health(hub, NOWHERE)
    assert (await health(hub))["status"] == "unknown"


async def test_health_can_be_closed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = replace(hub.context.settings, public_health=False)
    monkeypatch.setattr(hub.app.state, "context", replace(hub.context, settings=closed))
    path, query = f"{API}/health/stripe", {"venueId": str(OURS)}
    assert (await hub.http.get(path, params=query)).status_code == 401
    assert (await hub.http.get(path, params=query, headers=bearer("user"))).status_code == 200
    assert (await hub.http.get(path, params=query, headers=bearer("user", NOWHERE))).status_code == 403


async def test_liveness_and_readiness(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await hub.http.get("/health")).json() == {"status": "healthy", "service": "integration-hub"}
    ready = await hub.http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "problems": {}})

    async def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("redis.internal:6379 refused")

    monkeypatch.setattr(Redis, "ping", refuse)
    away = await hub.http.get("/ready")
    assert (away.status_code, away.json()["problems"]) == (503, {"redis": "Redis can't be reached"})


@pytest.mark.parametrize(
    ("revision", "status"),
    [("0001", 503), ("that-of-a-newer-version", 200)],  # beside which this one goes on until it is replaced
)
async def test_readiness_wants_the_newest_revision(hub: Hub, revision: str, status: int) -> None:
    [row] = await hub.rows("SELECT version_num FROM hub_version")
    await hub.execute("UPDATE hub_version SET version_num = :it", it=revision)
    try:
        answer = await hub.http.get("/ready")
    finally:
        await hub.execute("UPDATE hub_version SET version_num = :it", it=row["version_num"])
    assert answer.status_code == status
    assert list(answer.json()["problems"]) == (["migrations"] if status == 503 else [])


async def test_it_starts_before_its_database_is_ready_and_says_so(
    settings: Settings, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app, "DATABASE_SECONDS", 0.2)
    monkeypatch.setattr(server.app, "RETRY_SECONDS", 0.05)
    app = create_app(replace(settings, database_url=empty_database_url))
    async with (
        living(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(cast(Any, app)), base_url="http://hub.test") as http,
    ):
        answer = await http.get("/ready")
        assert (answer.status_code, list(answer.json()["problems"])) == (503, ["migrations"])
        await asyncio.to_thread(migrate.upgrade, empty_database_url)
        assert (await http.get("/ready")).status_code == 200
        async with asyncio.timeout(20), app.state.context.sessions() as session:
            while not await session.scalar(text("SELECT count(*) FROM field_mapping_templates")):
                await session.rollback()


# --- errors


async def test_an_error_answer_says_when_and_in_which_request(hub: Hub) -> None:
    answer = await hub.get("/nowhere", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 404
    said = answer.json()
    assert set(said) == {"success", "error", "code", "details", "timestamp", "requestId"}
    assert (said["success"], said["code"], said["requestId"]) == (False, "NOT_FOUND", "mine-1")
    assert said["timestamp"].endswith("Z")
    assert answer.headers["x-request-id"] == "mine-1"


async def test_a_request_id_that_could_break_a_log_is_replaced(hub: Hub) -> None:
    answer = await hub.http.get("/health", headers={"X-Request-Id": "a b{}"})
    assert answer.headers["x-request-id"] != "a b{}"
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "VALIDATION_ERROR"),
        (b"", "application/json", 400, "VALIDATION_ERROR"),
        (b"[]", "application/json", 400, "VALIDATION_ERROR"),
        (b"[" * 100_000, "application/json", 400, "VALIDATION_ERROR"),
        (b'{"venueId": ' * 5_000, "application/json", 400, "VALIDATION_ERROR"),
        (b'{"more": ' + b"[" * 5_000, "application/json", 400, "VALIDATION_ERROR"),
        (b"venueId=1", "application/x-www-form-urlencoded", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b'{"venueId": "' + b"x" * 1_100_000 + b'"}', "application/json", 413, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_bodies_that_can_not_be_read(
    hub: Hub, content: bytes, kind: str, status: int, code: str
) -> None:
    answer = await hub.http.post(
        f"{API}/stripe/disconnect", content=content, headers={**bearer(), "Content-Type": kind}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_method_that_is_not_there(hub: Hub) -> None:
    answer = await hub.http.delete(f"{API}/stripe", headers=bearer())
    assert (answer.status_code, answer.json()["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_an_unforeseen_fault_says_nothing_of_the_inside(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("password=hunter2 at /srv/secret.py")

    monkeypatch.setattr("server.services.views.list_views", fail)
    answer = await hub.get(API, params={"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
    assert "hunter2" not in answer.text
    assert "secret.py" not in answer.text


async def test_a_broken_vault_is_a_500_without_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.errors import VaultError

    async def fail(*_: Any, **__: Any) -> None:
        raise VaultError("there is no vault key `k7`")

    monkeypatch.setattr("server.services.views.list_views", fail)
    answer = await hub.get(API, params={"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
    assert "k7" not in answer.text


async def test_a_conflicting_change_is_409(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        same = {"id": uuid4(), "venue": OURS}
        for name in ("p1", "p2"):
            await hub.execute(
                "INSERT INTO integration_configs (id, venue_id, integration_type) VALUES (:id, "
                ":venue, :name)",
                **same,
                name=name,
            )

    monkeypatch.setattr("server.services.views.list_views", fail)
    answer = await hub.get(API, params={"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    assert "integration_configs" not in answer.text


async def test_a_database_that_is_away_is_503(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("db.internal:5432")

    monkeypatch.setattr("server.services.views.list_views", fail)
    answer = await hub.get(API, params={"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert "db.internal" not in answer.text
