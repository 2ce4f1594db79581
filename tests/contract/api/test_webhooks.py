"""What providers send: proved, stored before it is acknowledged, once for each connection it is about."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import httpx
import pytest

from engine.deliveries import Delivery
from engine.errors import ProviderError, UnavailableError
from engine.ports import Secret
from engine.webhooks import split_events
from server.services import endpoints, integrations, webhooks
from server.worker import relay
from tests.contract.api.conftest import API, OTHERS, OURS, Hub, bearer

HOOKS = f"{API}/webhooks"
OPERATOR = bearer("admin", None)
SQUARE_KEY, REALM_TOKEN = "sq-signature-key", "qb-verifier-token"
PUBLIC = "http://127.0.0.1:3007"  # API_URL of these tests


@pytest.fixture(autouse=True)
def _secrets(hub: Hub) -> None:
    """What an operator would set in the environment; the addresses a process knows are forgotten."""
    known = hub.context.settings._apps
    assert isinstance(known, dict)
    known["SQUARE_WEBHOOK_SIGNATURE_KEY"] = Secret(SQUARE_KEY)
    known["QUICKBOOKS_WEBHOOK_TOKEN"] = Secret(REALM_TOKEN)
    hub.app.state.addresses = endpoints.Addresses()


async def connected(hub: Hub, provider: str, account: str, venue: UUID = OURS) -> None:
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type, status, account) "
        "VALUES (:venue, :provider, 'connected', :account)",
        venue=venue,
        provider=provider,
        account=account,
    )


def square_event(**more: Any) -> dict[str, Any]:
    return {
        "merchant_id": "M1",
        "type": "customer.updated",
        "event_id": "e1",
        "created_at": "2026-03-01T11:59:00Z",
        "data": {"id": "C1"},
        **more,
    }


async def square(hub: Hub, event: Mapping[str, Any] | bytes, *, key: str = SQUARE_KEY) -> httpx.Response:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    headers = {**square_signature(body, key), "content-type": "application/json"}
    return await hub.http.post(f"{HOOKS}/square", content=body, headers=headers)


def square_signature(body: bytes, key: str = SQUARE_KEY) -> dict[str, str]:
    signed = f"{PUBLIC}{HOOKS}/square".encode() + body
    signature = base64.b64encode(hmac.digest(key.encode(), signed, "sha256")).decode()
    return {"x-square-hmacsha256-signature": signature}


async def events(hub: Hub) -> list[Mapping[str, Any]]:
    return await hub.rows("SELECT * FROM integration_webhooks ORDER BY received_at, external_id")


async def bodies(hub: Hub) -> dict[UUID, Any]:
    return {
        row["id"]: json.loads(row["body"])
        for row in await hub.rows("SELECT id, body FROM webhook_deliveries")
    }


async def operations(hub: Hub) -> list[Mapping[str, Any]]:
    return await hub.rows("SELECT * FROM sync_queue ORDER BY queued_at")


async def test_an_event_is_stored_and_queued_before_it_is_acknowledged(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    answer = await square(hub, square_event())
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    [event] = await events(hub)
    assert (event["venue_id"], event["event_type"], event["event_id"]) == (OURS, "customer.updated", "e1")
    assert (event["status"], event["record_id"], event["account"]) == ("pending", "C1", "M1")
    [operation] = await operations(hub)
    assert (operation["priority"], operation["operation_type"]) == ("CRITICAL", "reconcile")
    assert operation["payload"] == {"webhookId": str(event["id"])}
    [delivery] = await hub.rows("SELECT * FROM webhook_deliveries")
    assert json.loads(delivery["body"]) == square_event()
    assert event["delivery_id"] == delivery["id"]
    assert operation["id"] in await relay.listed(hub.context.redis, "critical")


async def test_the_same_event_again_changes_nothing(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    for _ in range(3):
        assert (await square(hub, square_event())).status_code == 200
    assert (len(await events(hub)), len(await operations(hub))) == (1, 1)
    assert len(await hub.rows("SELECT 1 FROM webhook_deliveries")) == 1


async def test_the_same_event_many_times_at_once(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    answers = await asyncio.gather(*(square(hub, square_event()) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert (len(await events(hub)), len(await operations(hub))) == (1, 1)


async def test_many_events_at_once(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    answers = await asyncio.gather(*(square(hub, square_event(event_id=f"e{n}")) for n in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert {event["event_id"] for event in await events(hub)} == {f"e{n}" for n in range(60)}
    assert len(await operations(hub)) == 60


async def test_the_same_id_with_other_content_is_a_conflict_for_a_person_to_see(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    for _ in range(2):
        assert (await square(hub, square_event(data={"id": "C2"}))).status_code == 200
    first, second = await events(hub)
    assert {first["status"], second["status"]} == {"pending", "ignored"}
    conflict = first if first["status"] == "ignored" else second
    assert "other content" in conflict["error"]
    assert len(await operations(hub)) == 1
    assert await bodies(hub) == {  # what it came with can be read again
        first["delivery_id"]: square_event(data={"id": "C2"} if first is conflict else {"id": "C1"}),
        second["delivery_id"]: square_event(data={"id": "C2"} if second is conflict else {"id": "C1"}),
    }


async def notified(hub: Hub, changes: Mapping[str, str]) -> None:
    """Deliver changes of a company's customers, as CloudEvents: the customer's id by the event's."""
    given = [
        {"id": name, "type": "qbo.customer.updated.v1", "intuitaccountid": "1", "intuitentityid": record}
        for name, record in changes.items()
    ]
    body = json.dumps(given).encode()
    signature = base64.b64encode(hmac.digest(REALM_TOKEN.encode(), body, "sha256")).decode()
    answer = await hub.http.post(f"{HOOKS}/quickbooks", content=body, headers={"intuit-signature": signature})
    assert answer.status_code == 200, answer.text


async def test_a_conflict_beside_an_unseen_event_of_one_delivery(hub: Hub) -> None:
    await connected(hub, "quickbooks", "1")
    await notified(hub, {"a": "43"})
    await notified(hub, {"a": "44", "b": "45"})
    found = {(row["event_id"], row["record_id"]): row["delivery_id"] for row in await events(hub)}
    assert set(found) == {("a", "43"), ("a", "44"), ("b", "45")}
    assert found["a", "44"] == found["b", "45"] != found["a", "43"]
    assert set(await bodies(hub)) == set(found.values())


@pytest.mark.parametrize("change", ["wrong key", "altered", "unsigned"])
async def test_what_is_not_the_providers_is_refused_and_leaves_nothing(hub: Hub, change: str) -> None:
    await connected(hub, "square", "M1")
    if change == "wrong key":
        answer = await square(hub, square_event(), key="another")
    elif change == "altered":
        signed = (await square(hub, b"{}")).request
        answer = await hub.http.post(f"{HOOKS}/square", content=b"{ }", headers=dict(signed.headers))
    else:
        answer = await hub.http.post(f"{HOOKS}/square", json=square_event())
    assert (answer.status_code, answer.json()["code"]) == (401, "WEBHOOK_SIGNATURE_INVALID")
    assert await events(hub) == []


async def test_a_signed_body_that_is_not_json(hub: Hub) -> None:
    answer = await square(hub, b"not JSON")
    assert (answer.status_code, answer.json()["code"]) == (400, "WEBHOOK_PROCESSING_FAILED")


async def test_an_event_of_an_account_nobody_connected_is_kept_and_ignored(hub: Hub) -> None:
    assert (await square(hub, square_event())).status_code == 200
    [event] = await events(hub)
    assert (event["venue_id"], event["status"]) == (None, "ignored")
    assert (event["payload"], event["record_id"], event["account"]) == ({}, None, None)  # nobody's to keep
    assert await hub.rows("SELECT 1 FROM webhook_deliveries") == []
    assert await operations(hub) == []


async def test_two_venues_with_one_account_each_have_the_event(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await connected(hub, "square", "M1", OTHERS)
    await square(hub, square_event())
    assert {(event["venue_id"], event["status"]) for event in await events(hub)} == {
        (OURS, "pending"),
        (OTHERS, "pending"),
    }
    assert {operation["venue_id"] for operation in await operations(hub)} == {OURS, OTHERS}


async def test_types_nobody_named_are_ignored_for_all_to_see(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event(type="team_member.created"))
    [event] = await events(hub)
    assert (event["status"], "doesn't name" in event["error"]) == ("ignored", True)


async def quickbooks(hub: Hub, *realms: str) -> httpx.Response:
    """Deliver changes of a customer and an item of each company."""
    body = json.dumps(
        {
            "eventNotifications": [
                {
                    "realmId": realm,
                    "dataChangeEvent": {
                        "entities": [
                            {
                                "name": name,
                                "id": number,
                                "operation": "Update",
                                "lastUpdated": "2026-03-01T11:59:00Z",
                            }
                            for name, number in (("Customer", "43"), ("Item", "7"))
                        ]
                    },
                }
                for realm in realms
            ]
        }
    ).encode()
    signature = base64.b64encode(hmac.digest(REALM_TOKEN.encode(), body, "sha256")).decode()
    return await hub.http.post(f"{HOOKS}/quickbooks", content=body, headers={"intuit-signature": signature})


async def test_one_delivery_of_several_companies_is_split(hub: Hub) -> None:
    await connected(hub, "quickbooks", "1")
    assert (await quickbooks(hub, "1", "2")).status_code == 200
    found = {
        (event["venue_id"], event["event_type"], event["record_id"], event["status"])
        for event in await events(hub)
    }
    assert found == {
        (OURS, "Customer.Update", "43", "pending"),
        (OURS, "Item.Update", "7", "pending"),
        (None, "Customer.Update", None, "ignored"),
        (None, "Item.Update", None, "ignored"),
    }
    # What another company's events hold isn't ours to keep.
    assert [row["body"] for row in await hub.rows("SELECT body FROM webhook_deliveries")] == [b""]


# --- an address of its own


async def address(hub: Hub) -> str:
    answer = await hub.get(f"{API}/stripe/webhook", params={"venueId": str(OURS)})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["url"].startswith(f"{PUBLIC}{HOOKS}/stripe/")
    return str(data["url"]).removeprefix(PUBLIC)


async def stripe(hub: Hub, path: str, secret: str, event: Mapping[str, Any]) -> httpx.Response:
    body, at = json.dumps(event), int(time.time())
    signature = hmac.digest(secret.encode(), f"{at}.{body}".encode(), "sha256").hex()
    return await hub.http.post(path, content=body, headers={"stripe-signature": f"t={at},v1={signature}"})


PAID = {"id": "evt_1", "type": "charge.succeeded", "created": 1772366340, "data": {"object": {"id": "ch_1"}}}


async def keep(hub: Hub, secret: str) -> httpx.Response:
    body = {"venueId": str(OURS), "secret": secret}
    answer = await hub.http.put(f"{API}/stripe/webhook", json=body, headers=bearer())
    hub.app.state.addresses = endpoints.Addresses()  # other processes learn of it within seconds
    return answer


async def test_a_connection_has_an_address_and_a_secret_of_its_own(hub: Hub) -> None:
    await hub.connect_by_key()
    path = await address(hub)
    unknown = await stripe(hub, path, "whsec_one", PAID)
    assert (unknown.status_code, await events(hub)) == (401, [])
    assert (await keep(hub, "whsec_one")).json()["data"]["secretKnown"] is True
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 200
    [event] = await events(hub)
    assert (event["venue_id"], event["record_id"], event["status"]) == (OURS, "ch_1", "pending")
    stored = await hub.rows("SELECT encrypted_secrets, encrypted_token FROM webhook_endpoints")
    assert "whsec" not in str(stored)
    assert path.rpartition("/")[2] not in str(stored)


async def test_a_secret_is_replaced_without_losing_a_delivery(hub: Hub) -> None:
    await hub.connect_by_key()
    path = await address(hub)
    for secret in ("whsec_one", "whsec_two"):
        assert (await keep(hub, secret)).status_code == 200
    for number, secret in enumerate(("whsec_one", "whsec_two")):
        assert (await stripe(hub, path, secret, {**PAID, "id": f"evt_{number}"})).status_code == 200
    assert (await keep(hub, "whsec_three")).status_code == 200
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 401


async def test_an_address_that_was_looked_at_before_its_secret_was_known(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider looks at a new address before it names the secret."""
    monkeypatch.setattr(endpoints, "KEPT_UNPROVED_SECONDS", 0.0)
    await hub.connect_by_key()
    path = await address(hub)
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 401
    addresses = hub.app.state.addresses
    await keep(hub, "whsec_one")
    hub.app.state.addresses = addresses
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 200


async def test_a_secret_that_another_process_was_told_counts_here_within_a_second(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What strangers send costs no more than one look at the address a second."""
    now, opened, opens = 100.0, 0, endpoints._open

    async def counted(*given: Any) -> endpoints.Address | None:
        nonlocal opened
        opened += 1
        return await opens(*given)

    monkeypatch.setattr(endpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(endpoints, "_open", counted)
    await hub.connect_by_key()
    path = await address(hub)
    await keep(hub, "whsec_one")
    ours = hub.app.state.addresses
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 200
    await keep(hub, "whsec_two")  # over another process: this one still has the address as it was
    hub.app.state.addresses = ours
    now = 100.9
    for _ in range(3):
        assert (await stripe(hub, path, "whsec_bad", PAID)).status_code == 401
    assert opened == 1
    now = 101.0
    secrets = ("whsec_bad", "whsec_two", "whsec_bad", "whsec_two")
    given = (stripe(hub, path, secret, {**PAID, "id": f"evt_{n}"}) for n, secret in enumerate(secrets))
    assert [each.status_code for each in await asyncio.gather(*given)] == [401, 200, 401, 200]
    assert opened == 2
    kept = await events(hub)
    assert {(event["venue_id"], event["event_id"]) for event in kept} == {
        (OURS, "evt_1"),
        (OURS, "evt_3"),
    }


async def test_an_address_that_is_gone_meanwhile_proves_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "AGAIN_SECONDS", 0.0)
    await hub.connect_by_key()
    path = await address(hub)
    await keep(hub, "whsec_one")
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 200
    await hub.execute("DELETE FROM webhook_endpoints")
    assert (await stripe(hub, path, "whsec_two", PAID)).status_code == 401
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 401


@pytest.mark.parametrize(("took", "left"), [(0.0, 9.5), (4.0, 5.5), (60.0, 0.5)])
async def test_a_providers_time_runs_while_it_sends(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, took: float, left: float
) -> None:
    """Square waits ten seconds, and half a second of it is for the answer to get there."""
    now, given = 100.0, []

    async def accept(_: Any, seconds: float) -> None:
        given.append(seconds)

    async def body() -> AsyncIterator[bytes]:
        nonlocal now
        yield written[:10]
        now += took
        yield written[10:]

    monkeypatch.setattr("server.api.webhooks.perf_counter", lambda: now)
    monkeypatch.setattr(hub.app.state, "intake", SimpleNamespace(accept=accept))
    written = json.dumps(square_event()).encode()
    signature = square_signature(written)
    answer = await hub.http.post(f"{HOOKS}/square", content=body(), headers=signature)
    assert (answer.status_code, given) == (200, [left])


async def test_while_an_address_can_not_be_looked_up_deliveries_are_sent_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    path = await address(hub)

    async def for_ever(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(endpoints, "_open", for_ever)
    monkeypatch.setattr(endpoints, "OPENED_WITHIN", 0.05)
    answer = await stripe(hub, path, "whsec_one", PAID)
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")


async def test_another_address_is_nobodys(hub: Hub) -> None:
    await hub.connect_by_key()
    path = await address(hub)
    await keep(hub, "whsec_one")
    for other in (
        f"{HOOKS}/stripe/{uuid4().hex}",
        path.replace("/stripe/", "/mailchimp/"),
        f"{HOOKS}/stripe",
    ):
        assert (await stripe(hub, other, "whsec_one", PAID)).status_code == 401, other
    assert await events(hub) == []


async def test_the_address_goes_with_the_connection(hub: Hub) -> None:
    await hub.connect_by_key()
    path = await address(hub)
    await keep(hub, "whsec_one")
    assert (await stripe(hub, path, "whsec_one", {**PAID, "id": "evt_0"})).status_code == 200
    await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    # A process that still knows the address keeps nothing of what comes there.
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 200
    left = {event["event_id"]: event for event in await events(hub)}
    assert (left["evt_1"]["venue_id"], left["evt_1"]["payload"]) == (None, {})
    hub.app.state.addresses = endpoints.Addresses()
    assert (await stripe(hub, path, "whsec_one", PAID)).status_code == 401


async def test_who_sees_an_address(hub: Hub) -> None:
    await hub.connect_by_key()
    where = {"params": {"venueId": str(OURS)}}
    assert (await hub.get(f"{API}/stripe/webhook", headers=bearer("user"), **where)).status_code == 403
    others = {"params": {"venueId": str(OTHERS)}}
    assert (await hub.get(f"{API}/stripe/webhook", **others)).status_code == 403
    for role, venue, status in (("user", OURS, 403), ("venue_admin", OTHERS, 403), ("admin", OURS, 200)):
        body = {"venueId": str(venue), "secret": "whsec_one"}
        answer = await hub.http.put(f"{API}/stripe/webhook", json=body, headers=bearer(role))
        assert answer.status_code == status


async def test_who_may_have_an_event_worked_again(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    [event] = await events(hub)
    body = {"webhookId": str(event["id"])}
    for headers, status in ((bearer("user"), 403), ({}, 401), (OPERATOR, 200), (bearer(), 200)):
        assert (await hub.post(f"{HOOKS}/retry", body, headers=headers)).status_code == status


async def test_a_form_and_a_probe(hub: Hub) -> None:
    """Mailchimp asks by GET whether the address is alive, and proves itself by knowing it."""
    await connected(hub, "mailchimp", "a")
    async with hub.context.sessions.begin() as session:
        from server.services.integrations import get_integration

        integration = await get_integration(session, OURS, "mailchimp")
        await endpoints.establish(session, hub.context, integration)
    answer = await hub.get(f"{API}/mailchimp/webhook", params={"venueId": str(OURS)})
    path = answer.json()["data"]["url"].removeprefix(PUBLIC)
    probe = await hub.http.get(path)
    assert (probe.status_code, probe.content) == (200, b"")
    body = urlencode(
        {
            "type": "profile",
            "fired_at": "2026-03-01 11:59:00",
            "data[email]": "Ana@Example.com",
            "data[id]": "8a",
            "data[list_id]": "l",
        }
    )
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert (await hub.http.post(path, content=body, headers=kind)).status_code == 200
    [event] = await events(hub)
    # MD5 of `ana@example.com`, as the filter's own documentation shows it
    assert (event["record_id"], event["venue_id"]) == ("cdb9d6a1dddc375a09cc83e3001598dc", OURS)
    assert (await hub.http.post(f"{path}0", content=body, headers=kind)).status_code == 401


async def test_a_secret_address_is_not_written_down(hub: Hub) -> None:
    await hub.connect_by_key()
    path = await address(hub)
    token = path.rpartition("/")[2]
    await keep(hub, "whsec_one")
    assert (await stripe(hub, f"{path}?from=a/b&t={token}", "whsec_one", PAID)).status_code == 200
    [delivery] = await hub.rows("SELECT * FROM webhook_deliveries")
    assert token not in delivery["url"]


async def test_a_secret_that_is_stored_at_the_same_moment_is_not_lost(hub: Hub) -> None:
    """A provider shows one once, to whoever makes the subscription."""
    await hub.connect_by_key()
    path = await address(hub)
    webhooks = hub.context.catalog.connector("stripe").webhooks
    assert webhooks is not None
    async with asyncio.timeout(30), hub.context.sessions.begin() as session:
        row = await endpoints.find(session, OURS, "stripe")
        assert row is not None
        await endpoints.set_secret(hub.context, session, row, webhooks, Secret("whsec_one"))
        await session.flush()
        keeping = asyncio.create_task(keep(hub, "whsec_two"))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not await hub.rows(f"{waiting} AND datname = current_database()"):
            assert not keeping.done()
    assert (await keeping).status_code == 200
    for number, secret in enumerate(("whsec_one", "whsec_two")):
        assert (await stripe(hub, path, secret, {**PAID, "id": f"evt_{number}"})).status_code == 200


# --- looking, and trying again


async def test_events_are_listed_for_those_who_may_see_them(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await connected(hub, "square", "M2", OTHERS)
    for merchant, name in (("M1", "a"), ("M2", "b"), ("M3", "c")):
        await square(hub, square_event(merchant_id=merchant, event_id=name))

    async def listed(headers: Mapping[str, str], **params: str) -> set[str]:
        answer = await hub.get(f"{HOOKS}/square/events", params=params, headers=headers)
        assert answer.status_code == 200, answer.text
        return {row["event_id"] for row in answer.json()["data"]}

    assert await listed(bearer()) == {"a"}
    assert await listed(bearer("user")) == {"a"}
    assert await listed(OPERATOR) == {"a", "b", "c"}
    assert await listed(OPERATOR, status="ignored") == {"c"}
    assert await listed(OPERATOR, venueId=str(OTHERS)) == {"b"}
    foreign = await hub.get(f"{HOOKS}/square/events", params={"venueId": str(OTHERS)})
    assert foreign.status_code == 403


async def test_an_event_is_worked_again(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    [event] = await events(hub)
    await hub.execute("UPDATE integration_webhooks SET status = 'failed', error = 'x'")
    await hub.execute("DELETE FROM sync_queue")
    answer = await hub.post(f"{HOOKS}/retry", {"webhookId": str(event["id"])})
    assert answer.json() == {"success": True, "message": "Webhook queued for retry"}
    [again] = await events(hub)
    assert (again["status"], again["retry_count"], again["error"]) == ("pending", 1, None)
    [operation] = await operations(hub)
    assert operation["payload"] == {"webhookId": str(event["id"])}


async def test_another_venues_event_looks_like_none(hub: Hub) -> None:
    await connected(hub, "square", "M2", OTHERS)
    await square(hub, square_event(merchant_id="M2"))
    [event] = await events(hub)
    answers = [await hub.post(f"{HOOKS}/retry", {"webhookId": str(each)}) for each in (event["id"], uuid4())]
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(404, "NOT_FOUND")] * 2
    assert answers[0].json()["error"] == answers[1].json()["error"]


async def test_many_events_are_worked_again(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    for number in range(3):
        await square(hub, square_event(event_id=f"e{number}"))
    await hub.execute("UPDATE integration_webhooks SET status = 'failed' WHERE event_id <> 'e2'")
    answer = await hub.post(f"{HOOKS}/square/replay", {"venueId": str(OURS)})
    assert answer.json()["message"] == "2 webhook events queued"
    assert {event["status"] for event in await events(hub)} == {"pending"}
    assert len(await operations(hub)) == 5


NONSENSE = (
    "UPDATE integration_webhooks SET status = 'failed', record_id = 'nonsense', event_type = 'odd', "
    "account = 'odd', occurred_at = NULL, payload = '{}', payload_hash = 'odd'"
)


async def test_an_event_is_read_afresh_from_its_delivery(hub: Hub) -> None:
    """A delivery's many events each become what they were; which events they are stays."""
    await connected(hub, "quickbooks", "1")
    await notified(hub, {"a": "43", "b": "44"})
    before = {row["event_id"]: row for row in await events(hub)}
    await hub.execute(NONSENSE)
    await hub.execute("DELETE FROM sync_queue")
    answer = await hub.post(f"{HOOKS}/quickbooks/replay", {"venueId": str(OURS)})
    assert answer.json()["message"] == "2 webhook events queued"
    after = {row["event_id"]: row for row in await events(hub)}
    assert {name: row["record_id"] for name, row in after.items()} == {"a": "43", "b": "44"}
    counted = {name: {**row, "retry_count": 1} for name, row in before.items()}
    assert after == counted
    assert {row["entity_id"] for row in await operations(hub)} == {"43", "44"}
    # Sent again, it is the same event and no conflict.
    await notified(hub, {"a": "43"})
    assert len(await events(hub)) == 2


async def test_an_event_without_an_id_of_the_providers_is_found_by_its_place(hub: Hub) -> None:
    """The manifest knew no id when it came, and knows one by now."""
    await connected(hub, "quickbooks", "1")
    spec = hub.context.catalog.connector("quickbooks").webhooks
    assert spec is not None
    before = replace(spec, shapes=tuple(replace(shape, id=None, record=None) for shape in spec.shapes))
    given = [
        {"id": name, "type": "qbo.customer.updated.v1", "intuitaccountid": "1", "intuitentityid": record}
        for name, record in (("a", "43"), ("b", "44"))
    ]
    came = Delivery("POST", f"{PUBLIC}{HOOKS}/quickbooks", {}, json.dumps(given).encode())
    arrival = webhooks.Arrival("quickbooks", None, "hmac_sha256", came, split_events(before, came), None)
    await webhooks.store(hub.context.reads, [arrival])
    first, second = sorted(await events(hub), key=lambda row: str(row["event_id"]))
    assert (first["record_id"], second["record_id"]) == (None, None)
    await hub.post(f"{HOOKS}/retry", {"webhookId": str(second["id"])})
    again = {row["id"]: row for row in await events(hub)}
    assert (again[first["id"]]["record_id"], again[second["id"]]["record_id"]) == (None, "44")
    assert again[second["id"]]["event_id"] == second["event_id"]


async def test_a_conflict_is_worked_again_as_itself(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    await square(hub, square_event(data={"id": "C2"}))
    await hub.execute("UPDATE integration_webhooks SET record_id = 'nonsense'")
    [conflict] = [row for row in await events(hub) if row["status"] == "ignored"]
    await hub.post(f"{HOOKS}/retry", {"webhookId": str(conflict["id"])})
    found = {row["id"]: row for row in await events(hub)}[conflict["id"]]
    assert (found["record_id"], found["status"]) == ("C2", "pending")
    assert found["external_id"] == conflict["external_id"]


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM webhook_deliveries",
        "UPDATE webhook_deliveries SET body = ''",
        "UPDATE webhook_deliveries SET body = '{'",
        'UPDATE webhook_deliveries SET body = \'{"event_id": "e2", "type": "customer.updated"}\'',
        f"UPDATE webhook_deliveries SET venue_id = '{OTHERS}'",
    ],
    ids=["pruned", "shared", "unreadable", "another event's", "another venue's"],
)
async def test_an_event_that_can_not_be_read_again_is_worked_as_it_was_read(hub: Hub, lost: str) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    await hub.execute("UPDATE integration_webhooks SET record_id = 'C7', status = 'failed'")
    await hub.execute("DELETE FROM sync_queue")
    await hub.execute(lost)
    [event] = await events(hub)
    answer = await hub.post(f"{HOOKS}/retry", {"webhookId": str(event["id"])})
    assert answer.status_code == 200
    [again] = await events(hub)
    assert again == {**event, "status": "pending", "retry_count": 1, "processed_at": None}
    assert [row["entity_id"] for row in await operations(hub)] == ["C7"]


async def test_many_events_are_worked_again_some_at_a_time(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, no more than may be at once, and each a single time."""
    monkeypatch.setattr(webhooks, "REPLAYED_AT_ONCE", 2)
    monkeypatch.setattr(webhooks, "MOST_REPLAYED", 5)
    await connected(hub, "quickbooks", "1")
    await notified(hub, {f"e{number}": str(number) for number in range(4)})
    await notified(hub, {f"e{number}": str(number) for number in range(4, 7)})
    await hub.execute(NONSENSE)
    counts = []
    for _ in range(3):
        answer = await hub.post(f"{HOOKS}/quickbooks/replay", {"venueId": str(OURS)})
        counts.append(answer.json()["message"].split()[0])
    assert counts == ["5", "2", "0"]
    found = {row["event_id"]: (row["record_id"], row["retry_count"]) for row in await events(hub)}
    assert found == {f"e{number}": (str(number), 1) for number in range(7)}
    assert len(await operations(hub)) == 14


async def test_what_was_cleared_from_the_queue_is_ignored_until_it_is_replayed(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    for name in ("a", "b", "c"):
        await square(hub, square_event(event_id=name))
    await hub.execute("UPDATE integration_webhooks SET status = 'processed' WHERE event_id = 'a'")
    # One that is being worked already, by an operation of its own.
    await hub.execute(
        "UPDATE sync_queue SET status = 'processing', lease_owner = 'w',"
        " lease_expires_at = now() + '1 minute' WHERE idempotency_key ="
        " (SELECT 'webhook:' || id FROM integration_webhooks WHERE event_id = 'b')"
    )
    cleared = await hub.post(f"{API}/admin/clear-queue", {}, headers=OPERATOR)
    assert cleared.json()["message"] == "2 queue items cleared"
    found = {row["event_id"]: (row["status"], row["error"]) for row in await events(hub)}
    assert found == {
        "a": ("processed", None),
        "b": ("pending", None),
        "c": ("ignored", "the queue was cleared before this was worked"),
    }
    body = {"venueId": str(OURS), "status": "ignored"}
    replayed = await hub.post(f"{HOOKS}/square/replay", body)
    assert replayed.json()["message"] == "1 webhook event queued"


async def test_an_event_that_another_operation_is_to_work_outlives_a_cleared_one(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await square(hub, square_event())
    await hub.execute("UPDATE sync_queue SET status = 'failed'")
    [event] = await events(hub)
    await hub.post(f"{HOOKS}/retry", {"webhookId": str(event["id"])})
    await hub.post(f"{API}/admin/clear-queue", {"status": "failed"}, headers=OPERATOR)
    assert [row["status"] for row in await events(hub)] == ["pending"]
    assert [row["status"] for row in await operations(hub)] == ["pending"]


# --- subscriptions


class Provider:
    """Answers the manifest's calls as Stripe does, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.living: set[str] = set()
        self.away = False

    async def make(self, call: Any, scope: Mapping[str, Any]) -> Any:
        self.calls.append((f"{call.method} {call.path}", scope))
        if self.away:
            raise UnavailableError("away")
        if call.method == "POST":
            name = f"we_{len(self.calls)}"
            self.living.add(name)
            return {"id": name, "secret": f"whsec_of_{name}", "status": "enabled"}
        if scope["subscription"] not in self.living:
            raise ProviderError("no such endpoint", status=404)
        if call.method == "DELETE":
            self.living.discard(scope["subscription"])
        return {"status": "enabled"}


@pytest.fixture
def provider(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Provider:
    found = Provider()
    monkeypatch.setattr(endpoints, "client_of", lambda *_, **__: found)
    return found


async def tend(hub: Hub, *, public: bool = True) -> Mapping[str, Any]:
    """Let the scheduler look at subscriptions now; return what is known of ours then."""
    await hub.execute("UPDATE webhook_endpoints SET next_check_at = now()")
    url = "https://hub.example.org" if public else "http://127.0.0.1:3007"
    context = replace(hub.context, settings=replace(hub.context.settings, api_url=url))
    await endpoints.tend(context)
    [row] = await hub.rows("SELECT * FROM webhook_endpoints")
    return row


async def test_a_subscription_is_made_looked_at_made_anew_and_ended(hub: Hub, provider: Provider) -> None:
    await hub.connect_by_key()
    assert (await tend(hub))["subscription_id"] == "we_1"
    [(call, scope)] = provider.calls
    assert call == "POST /v1/webhook_endpoints"
    assert str(scope["url"]).startswith(f"https://hub.example.org{HOOKS}/stripe/")
    assert "charge.succeeded" in scope["events"]
    hub.app.state.addresses = endpoints.Addresses()
    path = str(scope["url"]).removeprefix("https://hub.example.org")
    assert (await stripe(hub, path, "whsec_of_we_1", PAID)).status_code == 200
    assert (await tend(hub))["subscription_id"] == "we_1"
    provider.living.clear()  # somebody deleted it there
    assert (await tend(hub))["subscription_id"] == "we_4"
    assert [call for call, _ in provider.calls] == [
        "POST /v1/webhook_endpoints",
        "GET /v1/webhook_endpoints/{subscription}",
        "GET /v1/webhook_endpoints/{subscription}",
        "POST /v1/webhook_endpoints",
    ]
    await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert provider.living == set()
    assert await hub.rows("SELECT 1 FROM webhook_endpoints") == []


async def test_a_provider_that_never_answers_keeps_nobody_connected(
    hub: Hub, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    await tend(hub)
    monkeypatch.setattr(endpoints, "END_SECONDS", 0.05)

    async def for_ever(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(provider, "make", for_ever)
    async with asyncio.timeout(30):
        answer = await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert answer.status_code == 200
    assert await hub.rows("SELECT 1 FROM webhook_endpoints") == []
    assert await hub.rows("SELECT 1 FROM venue_api_keys") == []


async def test_an_address_that_can_not_be_looked_at_keeps_no_other_waiting(
    hub: Hub, provider: Provider
) -> None:
    await hub.connect_by_key()
    await hub.execute(
        "INSERT INTO integration_configs (venue_id, integration_type, status)"
        " VALUES (:venue, 'stripe', 'connected')",
        venue=OTHERS,
    )
    # What somebody moved here from another row, and which is due first.
    await hub.execute(
        "INSERT INTO webhook_endpoints"
        " (venue_id, integration_type, environment, token_hash, encrypted_token, next_check_at)"
        " SELECT :venue, integration_type, environment, 'x', encrypted_token, now() - interval '1 day'"
        " FROM webhook_endpoints",
        venue=OTHERS,
    )
    url = "https://hub.example.org"
    await endpoints.tend(replace(hub.context, settings=replace(hub.context.settings, api_url=url)))
    ours, theirs = await hub.rows("SELECT * FROM webhook_endpoints ORDER BY venue_id = :ours DESC", ours=OURS)
    assert ours["subscription_id"] is not None
    assert (theirs["subscription_id"], theirs["failures"]) == (None, 1)
    assert "altered" in theirs["last_error"]


async def test_a_provider_that_hangs_keeps_no_other_waiting(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    await connected(hub, "mailchimp", "us1")
    async with hub.context.sessions.begin() as session:
        integration = await integrations.get_integration(session, OURS, "mailchimp")
        await endpoints.establish(session, hub.context, integration)
    await hub.execute("UPDATE webhook_endpoints SET next_check_at = now() - interval '1 day'")
    await hub.execute("UPDATE webhook_endpoints SET next_check_at = now() WHERE integration_type <> 'stripe'")
    other_was_asked = asyncio.Event()

    class Asked:
        def __init__(self, name: str) -> None:
            self.name = name

        async def make(self, *_: Any) -> Any:
            if self.name == "stripe":  # hangs until the other was asked
                await asyncio.wait_for(other_was_asked.wait(), 20)
            other_was_asked.set()
            return {"id": f"{self.name}_1", "secret": "whsec_of_it"}

    monkeypatch.setattr(endpoints, "client_of", lambda _, connector, __: Asked(connector.name))
    settings = replace(hub.context.settings, api_url="https://hub.example.org")
    assert await endpoints.tend(replace(hub.context, settings=settings)) == 2
    rows = await hub.rows("SELECT subscription_id FROM webhook_endpoints ORDER BY 1")
    assert [row["subscription_id"] for row in rows] == ["mailchimp_1", "stripe_1"]


async def test_a_provider_that_is_away_is_asked_later(hub: Hub, provider: Provider) -> None:
    await hub.connect_by_key()
    provider.away = True
    row = await tend(hub)
    assert (row["subscription_id"], row["failures"], row["last_error"]) == (None, 1, "away")
    provider.away = False
    row = await tend(hub)
    assert (row["failures"], row["last_error"]) == (0, None)
    assert row["subscription_id"] is not None


async def test_a_provider_that_repeats_the_address_does_not_get_it_written_down(
    hub: Hub, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    token = (await address(hub)).rpartition("/")[2]

    async def refuse(_: Any, scope: Mapping[str, Any]) -> None:
        raise ProviderError(f"Invalid URL: {scope['url']}.", status=400)

    monkeypatch.setattr(provider, "make", refuse)
    row = await tend(hub)
    assert row["last_error"] == f"Invalid URL: https://hub.example.org{HOOKS}/stripe/***."
    assert token not in str(row)


async def test_a_subscription_without_an_id_is_none(
    hub: Hub, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()

    async def vague(*_: Any) -> Mapping[str, Any]:
        return {"status": "enabled"}

    monkeypatch.setattr(provider, "make", vague)
    row = await tend(hub)
    assert (row["subscription_id"], row["failures"]) == (None, 1)


async def test_nobody_is_asked_to_send_where_nobody_can_send(hub: Hub, provider: Provider) -> None:
    await hub.connect_by_key()
    row = await tend(hub, public=False)
    assert (provider.calls, row["subscription_id"]) == ([], None)
    assert "API_URL" in row["last_error"]
