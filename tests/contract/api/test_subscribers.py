"""Subscribers to events over the API: who may have which, what they are sent, and sending it again."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from server.api import events
from server.api.subscribers import EventName
from server.services import deliveries, outbox, subscribers
from server.services.deliveries import OpenedSecrets
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, Hub, bearer

SUBSCRIBERS = f"{API}/subscribers"
URL = "https://hooks.example.org/in/7f3a"
ADMIN = {"headers": bearer("admin")}
PROVIDER = "stripe"


async def create(hub: Hub, **body: Any) -> dict[str, Any]:
    """Create a subscriber of ours, and return what is answered: it and its secret."""
    answer = await hub.post(SUBSCRIBERS, {"venueId": str(OURS), "url": URL, **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["data"]
    return made


async def one(hub: Hub, identity: str, **query: Any) -> dict[str, Any]:
    answer = await hub.get(f"{SUBSCRIBERS}/{identity}", params={"venueId": str(OURS), **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


async def change(hub: Hub, identity: str, **body: Any) -> httpx.Response:
    return await hub.http.patch(
        f"{SUBSCRIBERS}/{identity}", json={"venueId": str(OURS), **body}, headers=bearer()
    )


async def ask(hub: Hub, identity: str, what: str, **body: Any) -> httpx.Response:
    return await hub.post(f"{SUBSCRIBERS}/{identity}/{what}", {"venueId": str(OURS), **body})


async def log_of(hub: Hub, identity: str, **query: Any) -> list[dict[str, Any]]:
    answer = await hub.get(f"{SUBSCRIBERS}/{identity}/deliveries", params={"venueId": str(OURS), **query})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


async def announce(hub: Hub, *kinds: str, venue: UUID = OURS) -> None:
    async with hub.context.sessions.begin() as session:
        for kind in kinds:
            outbox.announce(session, venue_id=venue, event=kind, data={"provider": PROVIDER})


async def distribute(hub: Hub) -> None:
    async with hub.context.sessions.begin() as session:
        await outbox.distribute(session, ())


async def deliver(hub: Hub, status: int = 204, body: str = "") -> list[httpx.Request]:
    """Do what the scheduler does, once, to subscribers that answer so; returns what they were sent."""
    await distribute(hub)
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(status, stream=httpx.ByteStream(body.encode()))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        for attempt in await deliveries.claim(hub.context, OpenedSecrets(), 100, {}, each=100):
            now = datetime.now(UTC)
            came = await deliveries.send(http, attempt, now=now.timestamp())
            async with hub.context.sessions.begin() as session:
                await deliveries.settle(session, attempt, came, now)
    return sent


def verified(request: httpx.Request, secret: str) -> Any:
    return Verifier(secret).verify(request.content, dict(request.headers))


# ---- subscribers ------------------------------------------------------------------------------------------


async def test_a_secret_is_shown_once_and_kept_sealed(hub: Hub) -> None:
    answer = await hub.post(
        SUBSCRIBERS,
        {"venueId": str(OURS), "url": URL, "events": ["sync.failed"], "description": "Box office"},
    )
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made, secret = answer.json()["data"]["subscriber"], answer.json()["data"]["secret"]
    assert answer.headers["location"] == f"{SUBSCRIBERS}/{made['id']}"
    assert secret.startswith("whsec_")
    shown = {name: made[name] for name in ("venue_id", "url", "events", "description", "active", "failures")}
    assert shown == {
        "venue_id": str(OURS),
        "url": URL,
        "events": ["sync.failed"],
        "description": "Box office",
        "active": True,
        "failures": 0,
    }
    listed = await hub.get(SUBSCRIBERS, params={"venueId": str(OURS)})
    assert listed.json()["data"] == [made]
    assert await one(hub, made["id"]) == made
    assert secret not in listed.text
    [row] = await hub.rows("SELECT encrypted_secret FROM event_subscribers")
    assert row["encrypted_secret"].startswith("hub1.")
    assert secret.removeprefix("whsec_") not in row["encrypted_secret"]


async def test_what_is_done_is_written_down_without_secrets(hub: Hub) -> None:
    made = await create(hub)
    identity = made["subscriber"]["id"]
    await change(hub, identity, active=False)
    await change(hub, identity, active=True, url=f"{URL}/2")
    await ask(hub, identity, "rotate-secret")
    await ask(hub, identity, "test")
    await ask(hub, identity, "redeliver", since="2026-01-01T00:00:00Z")
    await hub.http.delete(f"{SUBSCRIBERS}/{identity}", params={"venueId": str(OURS)}, headers=bearer())
    rows = await hub.rows(
        "SELECT action, target, venue_id, details, before, after FROM audit_log ORDER BY id"
    )
    assert [row["action"] for row in rows] == [
        "subscriber.created",
        "subscriber.changed",
        "subscriber.changed",
        "subscriber.secret_rotated",
        "subscriber.pinged",
        "subscriber.redelivered",
        "subscriber.deleted",
    ]
    assert {(row["target"], row["venue_id"]) for row in rows} == {(identity, OURS)}
    assert rows[0]["after"]["origin"] == "https://hooks.example.org"
    assert (rows[1]["before"], rows[1]["after"]) == ({"active": True}, {"active": False})
    assert rows[2]["details"] == {"url_changed": True}
    assert "/in/" not in json.dumps([dict(row) for row in rows], default=str)  # where a secret may be


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "https://localhost/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://10.0.0.1:8443/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://box/",
        "https://user:pw@hooks.example.org/",
        "https://hooks.example.org/#part",
        "https://hooks.example.org/a b",
        "https://hooks.example.org:port/",
        "https://höks.example.org/",
        "https://",
        "ftp://hooks.example.org/",
        "javascript:alert(1)",
        "hooks.example.org",
    ],
)
async def test_an_address_that_nothing_may_be_sent_to_is_refused(hub: Hub, url: str) -> None:
    answer = await hub.post(SUBSCRIBERS, {"venueId": str(OURS), "url": url})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == ["url"]
    made = await create(hub)
    changed = await change(hub, made["subscriber"]["id"], url=url)
    assert changed.status_code == 400
    assert (await one(hub, made["subscriber"]["id"]))["url"] == URL


async def test_a_public_address_by_number_is_taken(hub: Hub) -> None:
    await create(hub, url="https://93.184.216.34:8443/hub")


async def test_an_unknown_event_is_refused(hub: Hub) -> None:
    answer = await hub.post(
        SUBSCRIBERS, {"venueId": str(OURS), "url": URL, "events": ["sync.failed", "sync.compleet"]}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert answer.json()["details"][0]["field"] == "events[1]"


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01"])
async def test_what_is_no_time_is_refused(hub: Hub, since: str) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    answer = await ask(hub, identity, "redeliver", since=since)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "since")


async def test_text_that_no_database_keeps_is_refused(hub: Hub) -> None:
    for field, value in (("description", "a\0b"), ("url", f"{URL}\0")):
        answer = await hub.post(SUBSCRIBERS, {"venueId": str(OURS), "url": URL, field: value})
        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR"), answer.text


async def test_there_are_only_so_many(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MOST", 2)
    await create(hub)
    await create(hub)
    answer = await hub.post(SUBSCRIBERS, {"venueId": str(OURS), "url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    hubs = await hub.post(SUBSCRIBERS, {"url": URL}, **ADMIN)  # counted apart
    assert hubs.status_code == 201


async def test_the_hubs_own_subscribers_are_administrators(hub: Hub) -> None:
    refused = await hub.post(SUBSCRIBERS, {"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (400, "VENUE_ID_REQUIRED")
    made = await hub.post(SUBSCRIBERS, {"url": URL}, **ADMIN)
    assert made.json()["data"]["subscriber"]["venue_id"] is None
    identity = made.json()["data"]["subscriber"]["id"]
    path = f"{SUBSCRIBERS}/{identity}"
    assert (await hub.get(path)).json()["code"] == "VENUE_ID_REQUIRED"
    assert (await hub.get(path, params={"venueId": str(OURS)})).status_code == 404
    assert (await hub.get(path, **ADMIN)).json()["data"]["id"] == identity
    await create(hub)
    listed = await hub.get(SUBSCRIBERS, **ADMIN)
    assert [row["id"] for row in listed.json()["data"]] == [identity]


@pytest.mark.parametrize(
    ("method", "what", "body"),
    [
        ("GET", "", {}),
        ("PATCH", "", {"active": False}),
        ("DELETE", "", {}),
        ("POST", "/rotate-secret", {}),
        ("POST", "/test", {}),
        ("POST", "/redeliver", {"since": "2026-01-01T00:00:00Z"}),
        ("GET", "/deliveries", {}),
    ],
)
async def test_another_venues_subscriber_is_not_there(
    hub: Hub, method: str, what: str, body: Mapping[str, Any]
) -> None:
    theirs = await hub.post(SUBSCRIBERS, {"venueId": str(OTHERS), "url": URL}, **ADMIN)
    for identity in (theirs.json()["data"]["subscriber"]["id"], str(NOWHERE)):
        path = f"{SUBSCRIBERS}/{identity}{what}"
        given: dict[str, Any] = (
            {"params": {"venueId": str(OURS)}}
            if method in ("GET", "DELETE")
            else {"json": {"venueId": str(OURS), **body}}
        )
        answer = await hub.http.request(method, path, headers=bearer(), **given)
        assert (answer.status_code, answer.json()["error"]) == (404, "there is no such subscriber")
    [row] = await hub.rows("SELECT active FROM event_subscribers")
    assert row["active"]


async def test_a_change_leaves_what_it_does_not_name(hub: Hub) -> None:
    made = (await create(hub, events=["sync.failed"], description="Box office"))["subscriber"]
    changed = await change(hub, made["id"], events=[])
    assert changed.status_code == 200
    assert changed.json()["data"] == {
        **made,
        "events": [],
        "updated_at": changed.json()["data"]["updated_at"],
    }
    assert (await change(hub, made["id"], description="")).json()["data"]["description"] is None


async def test_a_list_in_pages(hub: Hub) -> None:
    made = [(await create(hub))["subscriber"]["id"] for _ in range(3)]
    first = (await hub.get(SUBSCRIBERS, params={"venueId": str(OURS), "limit": 2})).json()
    assert first["meta"]["total"] == 3
    cursor = first["meta"]["next_cursor"]
    second = (await hub.get(SUBSCRIBERS, params={"venueId": str(OURS), "limit": 2, "cursor": cursor})).json()
    assert [row["id"] for row in first["data"] + second["data"]] == made
    assert second["meta"]["next_cursor"] is None


async def test_what_is_deleted_is_sent_nothing_and_its_deliveries_are_gone(hub: Hub) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    await announce(hub, "sync.completed")
    await distribute(hub)
    answer = await hub.http.delete(
        f"{SUBSCRIBERS}/{identity}", params={"venueId": str(OURS)}, headers=bearer()
    )
    assert answer.json() == {"success": True, "message": "The subscriber is deleted"}
    assert await hub.rows("SELECT 1 FROM event_deliveries") == []
    assert await deliver(hub) == []


# ---- secrets ----------------------------------------------------------------------------------------------


async def test_for_a_while_after_a_rotation_both_secrets_sign(hub: Hub) -> None:
    made = await create(hub)
    identity, old = made["subscriber"]["id"], made["secret"]
    answer = await ask(hub, identity, "rotate-secret", overlapHours=2)
    assert answer.headers["cache-control"] == "no-store"
    new = answer.json()["data"]["secret"]
    assert new != old
    until = datetime.fromisoformat(answer.json()["data"]["subscriber"]["previous_secret_expires_at"])
    assert timedelta(hours=1, minutes=59) < until - datetime.now(UTC) <= timedelta(hours=2)
    await announce(hub, "sync.completed")
    [request] = await deliver(hub)
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    assert verified(request, new) == verified(request, old)
    # The time is over.
    await hub.execute("UPDATE event_subscribers SET previous_secret_expires_at = now()")
    await announce(hub, "sync.completed")
    [request] = await deliver(hub)
    assert verified(request, new)
    with pytest.raises(WebhookVerificationError):
        verified(request, old)
    async with hub.context.sessions.begin() as session:
        assert await subscribers.forget_previous_secrets(session) == 1
    [row] = await hub.rows("SELECT encrypted_previous_secret FROM event_subscribers")
    assert row["encrypted_previous_secret"] is None


async def test_a_rotation_at_once(hub: Hub) -> None:
    made = await create(hub)
    answer = await ask(hub, made["subscriber"]["id"], "rotate-secret", overlapHours=0)
    assert answer.json()["data"]["subscriber"]["previous_secret_expires_at"] is None
    await announce(hub, "sync.completed")
    [request] = await deliver(hub)
    assert verified(request, answer.json()["data"]["secret"])
    with pytest.raises(WebhookVerificationError):
        verified(request, made["secret"])


# ---- deliveries -------------------------------------------------------------------------------------------


async def test_a_ping_is_sent_whatever_is_wanted(hub: Hub) -> None:
    made = await create(hub, events=["sync.failed"])
    identity = made["subscriber"]["id"]
    answer = await ask(hub, identity, "test")
    assert answer.status_code == 202
    waiting = answer.json()["data"]
    assert (waiting["event"], waiting["status"], waiting["attempts"]) == ("ping", "pending", 0)
    [request] = await deliver(hub, 200, "thanks")
    assert request.headers["webhook-id"] == waiting["event_id"]
    said = verified(request, made["secret"])
    assert said["type"] == "ping"
    assert said["data"] == {"venue_id": str(OURS), "subscriber_id": identity}
    found = await hub.get(answer.headers["location"], params={"venueId": str(OURS)})
    done = found.json()["data"]
    assert (done["status"], done["attempts"], done["next_attempt_at"]) == ("delivered", 1, None)
    assert (done["answer_status"], done["answer_body"], done["error"]) == (200, "thanks", None)


async def test_an_inactive_subscriber_can_t_be_pinged(hub: Hub) -> None:
    identity = (await create(hub, active=False))["subscriber"]["id"]
    for what, body in (("test", {}), ("redeliver", {"since": "2026-01-01T00:00:00Z"})):
        answer = await ask(hub, identity, what, **body)
        assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")


async def test_the_log_tells_what_became_of_each(hub: Hub) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    await announce(hub, "sync.completed")
    await deliver(hub)
    await announce(hub, "sync.failed")
    await deliver(hub, 503, "x" * 2000)
    failing, taken = await log_of(hub, identity)
    assert (taken["event"], taken["status"], taken["answer_status"]) == ("sync.completed", "delivered", 204)
    assert (failing["event"], failing["status"], failing["attempts"]) == ("sync.failed", "pending", 1)
    assert failing["answer_body"] == "x" * 1024
    assert failing["error"] == "it was answered with 503"
    assert failing["next_attempt_at"] > failing["last_attempt_at"]
    assert failing["duration_ms"] >= 0
    assert [row["id"] for row in await log_of(hub, identity, status="delivered")] == [taken["id"]]
    assert [row["id"] for row in await log_of(hub, identity, event="sync.failed")] == [failing["id"]]
    first = await hub.get(f"{SUBSCRIBERS}/{identity}/deliveries", params={"venueId": str(OURS), "limit": 1})
    cursor = first.json()["meta"]["next_cursor"]
    assert [row["id"] for row in await log_of(hub, identity, cursor=cursor)] == [taken["id"]]
    state = await one(hub, identity)
    assert state["failures"] == 1
    assert state["failing_since"] is not None


async def test_one_is_sent_once_more_with_the_same_id(hub: Hub) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    await announce(hub, "sync.completed")
    [first] = await deliver(hub)
    [row] = await log_of(hub, identity)
    answer = await ask(hub, identity, f"deliveries/{row['id']}/redeliver")
    assert answer.status_code == 202
    assert answer.json()["data"]["status"] == "pending"
    [again] = await deliver(hub)
    assert again.headers["webhook-id"] == first.headers["webhook-id"]
    assert again.content == first.content
    [row] = await log_of(hub, identity)
    assert (row["status"], row["attempts"]) == ("delivered", 2)
    missing = await ask(hub, identity, f"deliveries/{uuid4()}/redeliver")
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")


async def test_what_was_missed_is_sent_and_nothing_that_was_taken(hub: Hub) -> None:
    identity = (await create(hub, events=["sync.completed", "sync.failed"]))["subscriber"]["id"]
    await announce(hub, "sync.completed")
    [taken] = await deliver(hub)
    await announce(hub, "sync.failed")
    [failed] = await deliver(hub, 500)
    await change(hub, identity, active=False)  # which ends what is on its way
    assert [row["status"] for row in await log_of(hub, identity)] == ["failed", "delivered"]
    await announce(hub, "sync.completed", "health.changed")
    await announce(hub, "sync.completed", venue=OTHERS)
    assert await deliver(hub) == []
    await change(hub, identity, active=True)
    answer = await ask(hub, identity, "redeliver", since="2026-01-01T00:00:00Z")
    assert answer.json()["data"] == {"events": 2, "more": False}
    sent = await deliver(hub)
    kinds = {request.headers["webhook-id"]: json.loads(request.content)["type"] for request in sent}
    assert sorted(kinds.values()) == ["sync.completed", "sync.failed"]
    assert failed.headers["webhook-id"] in kinds
    assert taken.headers["webhook-id"] not in kinds
    again = await ask(hub, identity, "redeliver", since="2026-01-01T00:00:00Z")
    assert again.json()["data"] == {"events": 0, "more": False}


async def test_only_what_happened_in_the_time_is_sent_again(hub: Hub) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    await change(hub, identity, active=False)
    await announce(hub, *["sync.completed"] * 3)
    await distribute(hub)
    for day, row in enumerate(await hub.rows("SELECT id FROM outbox ORDER BY id"), start=1):
        at = datetime(2026, 1, day, 12, tzinfo=UTC)
        await hub.execute("UPDATE outbox SET created_at = :at WHERE id = :id", at=at, id=row["id"])
    await change(hub, identity, active=True)
    times = {"since": "2026-01-02T13:00:00+01:00", "until": "2026-01-03T12:00:00Z"}
    answer = await ask(hub, identity, "redeliver", **times)
    assert answer.json()["data"]["events"] == 1
    [request] = await deliver(hub)
    assert json.loads(request.content)["timestamp"] == "2026-01-02T12:00:00Z"


async def test_many_are_sent_again_in_turns(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MOST_REDELIVERED", 2)
    identity = (await create(hub, active=False))["subscriber"]["id"]
    await announce(hub, *["sync.completed"] * 3)
    await distribute(hub)
    await change(hub, identity, active=True)
    turns = [
        (await ask(hub, identity, "redeliver", since="2026-01-01T00:00:00Z")).json()["data"] for _ in range(2)
    ]
    assert turns == [{"events": 2, "more": True}, {"events": 1, "more": False}]


async def test_one_that_was_disabled_begins_anew_when_it_is_made_active(hub: Hub) -> None:
    identity = (await create(hub))["subscriber"]["id"]
    await announce(hub, "sync.completed")
    await deliver(hub, 410)
    state = await one(hub, identity)
    assert not state["active"]
    assert state["disabled_reason"].startswith("it answered 410")
    state = (await change(hub, identity, active=True)).json()["data"]
    names = ("active", "disabled_at", "disabled_reason", "failures", "failing_since")
    assert [state[name] for name in names] == [True, None, None, 0, None]


# ---- what is told -----------------------------------------------------------------------------------------


def as_described(body: bytes) -> None:
    """Fail unless a payload has all that the API's description says of it, and no more."""
    payload = json.loads(body)
    assert msgspec.to_builtins(msgspec.json.decode(body, type=events.PAYLOADS[payload["type"]])) == payload


async def messages(hub: Hub) -> list[dict[str, Any]]:
    rows = await hub.rows("SELECT topic, venue_id, payload FROM outbox ORDER BY id")
    return [dict(row) for row in rows]


async def test_connecting_and_disconnecting_are_told(hub: Hub) -> None:
    await create(hub)
    await hub.connect_by_key()
    await hub.connect_by_key()
    for _ in range(2):
        await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    [integration] = await hub.rows("SELECT id FROM integration_configs")
    common = {
        "venue_id": str(OURS),
        "provider": "stripe",
        "integration_id": str(integration["id"]),
        "environment": "sandbox",
    }
    assert [(row["topic"], row["payload"]) for row in await messages(hub)] == [
        ("integration.connected", {**common, "reconnected": False}),
        ("integration.connected", {**common, "reconnected": True}),
        ("integration.disconnected", common),
    ]
    for request in await deliver(hub):
        as_described(request.content)


async def test_a_connection_that_is_refused_is_not_told(hub: Hub) -> None:
    await hub.connect_by_key(credentials={"apiKey": "sk_test_wrong"})
    assert await messages(hub) == []


async def test_a_heal_is_told_when_it_changed_something(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM outbox")
    heal = f"{API}/mappings/stripe/mappings/heal"
    assert (await hub.post(heal, {"venueId": str(OURS)})).status_code == 200
    assert await messages(hub) == []
    stored = (await hub.get(f"{API}/mappings/stripe/mappings", params={"venueId": str(OURS)})).json()["data"]
    pairs = stored["mappings"]
    await hub.http.put(
        f"{API}/mappings/stripe/mappings", json={"venueId": str(OURS), "mappings": pairs}, headers=bearer()
    )
    # A field of the provider's is gone.
    [row] = await hub.rows("SELECT field_mappings FROM integration_configs")
    written = row["field_mappings"]
    rules = written["mappings"][0]["fields"]
    name = next(name for name, rule in rules.items() if isinstance(rule, str))
    rules[name] = "no_such_field"
    await hub.execute(
        "UPDATE integration_configs SET field_mappings = CAST(:written AS jsonb)", written=json.dumps(written)
    )
    assert (await hub.post(heal, {"venueId": str(OURS)})).status_code == 200
    [told] = await messages(hub)
    assert told["topic"] == "mapping.healed"
    assert (told["payload"]["broken"], told["payload"]["mended"]) == (1, 0)
    assert told["payload"]["version"] >= 3
    await create(hub)
    [request] = await deliver(hub)
    as_described(request.content)


def test_every_event_is_described_and_nothing_else() -> None:
    assert get_args(EventName) == tuple(outbox.EVENTS)
    assert set(events.PAYLOADS) == {*outbox.EVENTS, outbox.PING}


@pytest.mark.parametrize("name", [*outbox.EVENTS, outbox.PING])
def test_the_example_of_an_event_is_as_described(name: str) -> None:
    assert events.EXAMPLES[name]["type"] == name
    as_described(msgspec.json.encode(events.EXAMPLES[name]))
