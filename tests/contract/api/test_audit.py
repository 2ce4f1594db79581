"""Reading who did what: by administrators, and by a venue for its own."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, USER_ID, Hub, bearer

ALL, MINE = f"{API}/admin/audit", f"{API}/venue/{OURS}/audit"
STRANGER_ID = "66666666-6666-4666-8666-666666666666"


async def read(hub: Hub, path: str = ALL, role: str = "admin", **params: Any) -> httpx.Response:
    await hub.app.state.denials.write(hub.context.sessions)
    venue = None if role == "admin" else OURS
    return await hub.http.get(path, params=params, headers=bearer(role, venue))


async def rows(hub: Hub, path: str = ALL, role: str = "admin", **params: Any) -> list[dict[str, Any]]:
    answer = await read(hub, path, role, **params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def test_who_connected_and_disconnected_what_from_where(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.post(
        f"{API}/stripe/disconnect", {"venueId": str(OURS)}, headers={**bearer(), "X-Request-Id": "r-7"}
    )
    found = await rows(hub, action="integration.*", provider="stripe")
    gone, made = [
        row for row in found if row["action"] in ("integration.disconnected", "integration.connected")
    ]
    assert (made["action"], gone["action"]) == ("integration.connected", "integration.disconnected")
    assert (gone["actor"], gone["role"], gone["ip"]) == (USER_ID, "venue_admin", "127.0.0.1")
    assert (gone["venue_id"], gone["integration_type"], gone["request_id"]) == (str(OURS), "stripe", "r-7")
    assert gone["target"] == made["target"]
    assert (made["before"]["status"], made["after"]["status"]) == ("disconnected", "connected")
    assert made["after"]["config"] == {
        "syncEnabled": False,
        "syncInterval": 300,
        "syncDirection": "bidirectional",
    }
    assert (gone["before"], gone["after"]) == ({"status": "connected"}, {"status": "disconnected"})
    assert "sk_test_demo" not in str(found)
    assert await rows(hub, MINE, "venue_admin", action="integration.*", provider="stripe") == found


async def test_a_venue_sees_its_own_and_nobody_elses(hub: Hub) -> None:
    await hub.connect_by_key()
    for venue in (OTHERS, None):
        await hub.execute(
            "INSERT INTO audit_log (actor, action, venue_id) VALUES ('u', 'x.done', :venue)", venue=venue
        )
    assert {row["venue_id"] for row in await rows(hub, MINE, "venue_admin")} == {str(OURS)}
    assert {row["venue_id"] for row in await rows(hub)} == {str(OURS), str(OTHERS), None}
    assert await rows(hub, f"{API}/venue/{NOWHERE}/audit", "admin") == []


async def test_a_refused_attempt_at_a_venue_is_told_to_it_without_who(hub: Hub) -> None:
    headers = bearer("venue_admin", OTHERS, userId=STRANGER_ID)
    for _ in range(3):
        answer = await hub.http.get(f"{API}/stripe", params={"venueId": str(OURS)}, headers=headers)
        assert answer.status_code == 403
    [seen] = await rows(hub, action="access.denied")
    assert (seen["actor"], seen["role"], seen["ip"]) == (STRANGER_ID, "venue_admin", "127.0.0.1")
    assert (seen["venue_id"], seen["integration_type"], seen["count"]) == (str(OURS), "stripe", 3)
    assert seen["details"] == {
        "code": "FORBIDDEN",
        "route": f"GET {API}/{{provider}}",
        "foreign": True,
    }
    [told] = await rows(hub, MINE, "venue_admin")
    assert (told["actor"], told["ip"], told["count"]) == ("another venue", None, 3)
    assert STRANGER_ID not in str(told)
    assert await rows(hub, MINE, "venue_admin", actorId=STRANGER_ID) == []


async def test_a_sync_of_another_venue_is_a_refused_attempt_though_it_looks_not_there(hub: Hub) -> None:
    sync_id = "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1"
    await hub.execute(
        "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, run_id)"
        " VALUES (:venue, 'stripe', 'sync', 'full', CAST(:run AS uuid))",
        venue=OTHERS,
        run=sync_id,
    )
    assert (await hub.get(f"{API}/sync/stripe/sync/{sync_id}")).status_code == 404
    [seen] = await rows(hub, action="access.denied")
    assert (seen["venue_id"], seen["actor"], seen["details"]["code"]) == (str(OTHERS), USER_ID, "NOT_FOUND")


async def test_a_role_that_may_not_is_a_refused_attempt(hub: Hub) -> None:
    await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)}, headers=bearer("user"))
    [seen] = await rows(hub)
    assert (seen["actor"], seen["role"], seen["details"]["code"]) == (USER_ID, "user", "FORBIDDEN")


async def test_strangers_are_counted_by_address_and_put_to_no_venue(hub: Hub) -> None:
    for token in ("Bearer x.y.z", "Bearer forged"):
        params = {"venueId": str(OURS)}
        answer = await hub.http.get(API, params=params, headers={"Authorization": token})
        assert answer.status_code == 401
    [seen] = await rows(hub)
    assert (seen["actor"], seen["ip"], seen["venue_id"], seen["count"]) == ("anonymous", "127.0.0.1", None, 2)
    assert seen["details"]["code"] == "INVALID_TOKEN"
    assert await rows(hub, MINE, "venue_admin") == []


async def test_whoever_tries_every_venue_there_could_be_fills_a_few_entries(hub: Hub) -> None:
    for number in range(40):
        await hub.get(API, params={"venueId": str(UUID(int=number))})
    found = await rows(hub)
    assert len(found) <= 12  # 6 for each minute this took
    assert sum(row["count"] for row in found) == 40


async def test_pages(hub: Hub) -> None:
    for number in range(5):
        await hub.execute(
            "INSERT INTO audit_log (actor, action, venue_id) VALUES ('u', :action, :venue)",
            action=f"x.{number}",
            venue=OURS,
        )
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        answer = (await read(hub, MINE, "venue_admin", limit=2, **cursor)).json()
        seen += [row["action"] for row in answer["data"]]
        assert (answer["meta"]["total"], answer["meta"]["limit"]) == (5, 2)
        cursor = {"cursor": answer["meta"]["next_cursor"]}
    assert seen == ["x.4", "x.3", "x.2", "x.1", "x.0"]
    assert cursor == {"cursor": None}
    assert [row["action"] for row in await rows(hub, offset=3)] == ["x.1", "x.0"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 201}, "limit"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-01-15T12:00:00"}, "to"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "Wy01XQ"}, "cursor"),
        ({"venueId": "x"}, "venueId"),
    ],
)
async def test_what_is_wrong_with_a_question_is_named(hub: Hub, params: dict[str, Any], field: str) -> None:
    answer = await read(hub, **params)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert answer.json()["details"][0]["field"] == field


async def test_times_bound_what_is_read(hub: Hub) -> None:
    for hour in (10, 11, 12):
        await hub.execute(
            "INSERT INTO audit_log (actor, action, created_at) VALUES"
            " ('u', 'x.done', timestamptz '2026-01-15 00:00Z' + make_interval(hours => :hour))",
            hour=hour,
        )
    found = await rows(hub, **{"from": "2026-01-15T11:00:00Z", "to": "2026-01-15T13:00:00+01:00"})
    assert [row["created_at"] for row in found] == ["2026-01-15T11:00:00Z"]
