"""Fields that a person decides about: listed, read, and decided one by one and by filter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4, uuid5

import httpx
import pytest

from server.db.models import FieldConflict
from server.services import conflicts
from tests.contract.api.conftest import API, OTHERS, OURS, USER_ID, Hub, bearer

CONFLICTS = f"{API}/sync/stripe/sync/conflicts"


def person(name: str) -> UUID:
    return uuid5(OURS, name)


@pytest.fixture
async def connected(hub: Hub) -> AsyncIterator[Hub]:
    """Our venue with a customer here and there, whose phone differs."""
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")
    await hub.execute(
        "INSERT INTO platform.customers (id, venue_id, first_name, email, phone)"
        " VALUES (:id, :venue, 'Ana', 'ana@example.com', '+331')",
        id=person("ana"),
        venue=OURS,
    )
    yield hub
    await hub.execute("TRUNCATE platform.customers CASCADE")


async def there(hub: Hub, remote_id: str = "", **form: str) -> str:
    """Make or change a customer at the provider; returns its id."""
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{hub.sandbox.stripe_url}/v1/customers{remote_id and f'/{remote_id}'}",
            data=form,
            headers={"Authorization": "Bearer sk_test_demo"},
        )
    return str(answer.raise_for_status().json()["id"])


async def found(hub: Hub, remote_id: str = "cus_1", /, **values: Any) -> str:
    """Let a sync have found a conflict; returns its id."""
    row: dict[str, Any] = {
        "entity": "customer",
        "local_id": str(person("ana")),
        "field": "phone",
        "ours": "+331",
        "theirs": "+332",
        "agreed": {"ours": "+330", "theirs": "+330"},
        "state": "open",
        "venue_id": OURS,
        "ours_changed_at": "2026-01-15T10:00:00Z",
        "theirs_changed_at": "2026-01-15T10:20:00Z",
        **values,
    }
    async with hub.context.sessions.begin() as session:
        conflict = FieldConflict(integration_type="stripe", resource="customer", remote_id=remote_id, **row)
        session.add(conflict)
        await session.flush()
        return str(conflict.id)


async def resolve(hub: Hub, conflict_id: str, **body: Any) -> httpx.Response:
    return await hub.post(f"{CONFLICTS}/{conflict_id}/resolve", {"venueId": str(OURS), **body})


async def read(hub: Hub, conflict_id: str) -> dict[str, Any]:
    answer = await hub.get(f"{CONFLICTS}/{conflict_id}", params={"venueId": str(OURS)})
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_a_conflict_shows_both_values_and_what_was_agreed(connected: Hub) -> None:
    hub = connected
    shown = await read(hub, await found(hub))
    assert (shown["entity"], shown["resource"], shown["field"]) == ("customer", "customer", "phone")
    assert (shown["record_id"], shown["remote_id"]) == (str(person("ana")), "cus_1")
    assert (shown["ours"], shown["theirs"]) == ("+331", "+332")
    assert shown["agreed"] == {"ours": "+330", "theirs": "+330"}
    assert (shown["changed_last"], shown["state"], shown["resolution"]) == ("provider", "open", None)
    never = await read(hub, await found(hub, field="city", agreed={}, theirs_changed_at=None))
    assert (never["agreed"], never["changed_last"]) == (None, None)


async def test_conflicts_are_filtered_and_paged_the_newest_first(connected: Hub) -> None:
    hub = connected
    ids = [await found(hub, field=field) for field in ("phone", "city", "country")]
    order = await found(hub, entity="order", local_id="o-1", state="settled")
    await found(hub, venue_id=OTHERS)

    async def listed(**params: str) -> list[str]:
        answer = await hub.get(CONFLICTS, params={"venueId": str(OURS), **params})
        return [row["id"] for row in answer.json()["data"]]

    assert await listed() == [order, *reversed(ids)]
    assert await listed(entity="order") == await listed(state="settled") == [order]
    assert await listed(field="city") == [ids[1]]
    assert await listed(recordId=str(person("ana")), state="open") == list(reversed(ids))
    first = (await hub.get(CONFLICTS, params={"venueId": str(OURS), "limit": 3})).json()
    assert first["meta"]["total"] == 4
    assert await listed(limit="3", cursor=first["meta"]["next_cursor"]) == [ids[0]]


async def test_values_are_for_those_who_manage(connected: Hub) -> None:
    conflict_id = await found(connected)
    for path in (CONFLICTS, f"{CONFLICTS}/{conflict_id}"):
        answer = await connected.get(path, params={"venueId": str(OURS)}, headers=bearer("user"))
        assert answer.status_code == 403
    foreign = await connected.get(
        f"{CONFLICTS}/{conflict_id}", params={"venueId": str(OTHERS)}, headers=bearer("admin", None)
    )
    assert foreign.status_code == 404


async def test_a_decision_is_written_down_and_its_record_queued(connected: Hub) -> None:
    hub = connected
    remote_id = await there(hub, email="ana@example.com", phone="+332")
    conflict_id = await found(hub, remote_id)
    answer = await resolve(hub, conflict_id, take="platform")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert (data["state"], data["resolution"]) == ("resolved", {"take": "platform", "value": None})
    assert (data["resolved_by"], data["ended_at"]) == (USER_ID, None)
    (operation,) = await hub.rows("SELECT * FROM sync_queue")
    assert (operation["entity_id"], operation["priority"]) == (str(person("ana")), "HIGH")
    named = {name: operation["payload"][name] for name in ("direction", "resource", "remoteId")}
    assert named == {"direction": "bidirectional", "resource": "customer", "remoteId": remote_id}
    (entry,) = await hub.rows("SELECT * FROM audit_log WHERE action = 'conflict.resolved'")
    assert entry["target"] == conflict_id
    assert "+33" not in json.dumps(entry["details"])
    again = await resolve(hub, conflict_id, take="provider")
    assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
    assert "decided already" in again.json()["error"]
    city = await found(hub, remote_id, field="city", ours=None, theirs="Lyon")
    await there(hub, remote_id, **{"address[city]": "Lyon"})
    assert (await resolve(hub, city, take="provider")).status_code == 200
    assert len(await hub.rows("SELECT id FROM sync_queue")) == 1  # one visit does for both


async def test_what_changed_since_is_named_and_shown(connected: Hub) -> None:
    hub = connected
    remote_id = await there(hub, email="ana@example.com", phone="+333")
    conflict_id = await found(hub, remote_id)
    seen = (await read(hub, conflict_id))["version"]
    await hub.execute("UPDATE platform.customers SET phone = '+334'")
    answer = await resolve(hub, conflict_id, take="platform")
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    assert [each["field"] for each in answer.json()["details"]] == ["ours", "theirs"]
    now = await read(hub, conflict_id)
    assert (now["ours"], now["theirs"], now["state"]) == ("+334", "+333", "open")
    assert now["version"] != seen
    answer = await resolve(hub, conflict_id, take="platform", version=seen)  # of what was seen before
    assert [each["field"] for each in answer.json()["details"]] == ["ours", "theirs"]
    assert (await resolve(hub, conflict_id, take="platform", version=now["version"])).status_code == 200


async def test_a_provider_that_is_away_holds_up_no_decision(connected: Hub) -> None:
    """The sync that carries it out looks again."""
    hub = connected
    conflict_id = await found(hub, "cus_nobody")
    assert (await resolve(hub, conflict_id, take="value", value="+339")).status_code == 200


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"take": "value"}, "value"),
        ({"take": "platform", "value": "x"}, "value"),
        ({"take": "value", "value": 331}, "value"),
        ({"take": "value", "value": ["+331"]}, "value"),
        ({"take": "theirs"}, "take"),
        ({}, "take"),
    ],
)
async def test_a_decision_that_means_nothing_is_refused(
    connected: Hub, body: dict[str, Any], where: str
) -> None:
    conflict_id = await found(connected)
    answer = await resolve(connected, conflict_id, **body)
    assert answer.status_code == 400, answer.text
    assert [each["field"] for each in answer.json()["details"]] == [where]
    assert (await read(connected, conflict_id))["state"] == "open"


async def test_a_conflict_of_what_is_gone_isnt_decided(connected: Hub) -> None:
    hub = connected
    nobody = await found(hub, local_id=str(uuid4()))
    assert "is gone" in (await resolve(hub, nobody, take="provider")).json()["error"]
    unmapped = await found(hub, field="accepts_marketing")
    assert "isn't mapped" in (await resolve(hub, unmapped, take="provider")).json()["error"]
    unknown = await found(hub, field="fax")
    assert "no field `fax`" in (await resolve(hub, unknown, take="provider")).json()["error"]
    answer = await resolve(hub, str(uuid4()), take="provider")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_many_are_decided_by_a_filter_and_bounded(connected: Hub) -> None:
    hub = connected
    for number in range(3):
        await found(hub, local_id=f"l{number}")
    await found(hub, field="city")
    await found(hub, state="settled", local_id="l9")

    async def decide(**body: Any) -> dict[str, Any]:
        answer = await hub.post(
            f"{CONFLICTS}/resolve", {"venueId": str(OURS), "take": "provider", "field": "phone", **body}
        )
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    assert await decide(dryRun=True) == {"matched": 3, "resolved": 3, "left": 0, "dry_run": True}
    assert await hub.rows("SELECT id FROM sync_queue") == []
    assert await decide(limit=2) == {"matched": 3, "resolved": 2, "left": 1, "dry_run": False}
    assert await decide() == {"matched": 1, "resolved": 1, "left": 0, "dry_run": False}
    rows = await hub.rows("SELECT entity_id FROM sync_queue ORDER BY entity_id")
    assert [row["entity_id"] for row in rows] == ["l0", "l1", "l2"]
    entries = await hub.rows("SELECT details FROM audit_log WHERE action = 'conflicts.resolved' ORDER BY id")
    assert [entry["details"] for entry in entries] == [
        {"take": "provider", "conflicts": 2, "filter": {"field": "phone"}},
        {"take": "provider", "conflicts": 1, "filter": {"field": "phone"}},
    ]
    refused = await hub.post(f"{CONFLICTS}/resolve", {"venueId": str(OURS), "take": "value"})
    assert refused.status_code == 400


async def test_a_connection_that_ended_decides_nothing(connected: Hub) -> None:
    conflict_id = await found(connected)
    await connected.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    answer = await resolve(connected, conflict_id, take="platform")
    assert answer.json()["code"] == "INTEGRATION_NOT_CONNECTED"


def test_changed_last_needs_both_moments() -> None:
    def of(ours: str | None, theirs: str | None) -> str | None:
        return conflicts.changed_last(FieldConflict(ours_changed_at=ours, theirs_changed_at=theirs))

    early, late = "2026-01-15T10:00:00+02:00", "2026-01-15T08:30:00Z"
    assert (of(early, late), of(late, early)) == ("provider", "platform")
    assert (of(early, None), of(None, late), of(late, late), of("then", late)) == (None,) * 4
