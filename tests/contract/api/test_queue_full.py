"""Every door that queues refuses, and says when to come back, while too much of an integration waits."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.ports import Secret
from tests.contract.api.conftest import API, OTHERS, OURS, Hub
from tests.contract.api.test_failures import FAILURES, fail
from tests.contract.api.test_webhooks import (
    HOOKS,
    REALM_TOKEN,
    SQUARE_KEY,
    connected,
    events,
    quickbooks,
    square,
    square_event,
)

DEPTH = 2


@pytest.fixture(autouse=True)
def _shallow(hub: Hub) -> Iterator[None]:
    known, settings = hub.context.settings._apps, hub.context.settings
    assert isinstance(known, dict)
    known["SQUARE_WEBHOOK_SIGNATURE_KEY"] = Secret(SQUARE_KEY)
    known["QUICKBOOKS_WEBHOOK_TOKEN"] = Secret(REALM_TOKEN)
    before = settings.queue_depth
    for depth in (DEPTH, before):
        object.__setattr__(settings, "queue_depth", depth)
        hub.app.state.intake._depth = depth
        if depth == DEPTH:
            yield


async def fill(hub: Hub, count: int = DEPTH, provider: str = "stripe", **values: Any) -> None:
    await hub.execute(
        "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, payload, status)"
        " SELECT :venue, :provider, 'update', 'customer', '{}', CAST(:status AS operation_status)"
        " FROM generate_series(1, :count)",
        **{"venue": OURS, "provider": provider, "status": "pending", "count": count, **values},
    )


def refused(answer: httpx.Response) -> bool:
    code = (answer.status_code, answer.json()["code"])
    return code == (503, "QUEUE_FULL") and int(answer.headers["retry-after"]) >= 1


async def test_a_sync_and_a_record_wait_for_room(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")
    body = await fail(hub, "e-1")
    await fill(hub)
    assert refused(await hub.post(f"{API}/sync/stripe/sync", {"venueId": str(OURS), "wait": 0}))
    assert refused(await hub.post(f"{FAILURES}/retry", body))
    assert len(await hub.rows("SELECT 1 FROM sync_queue")) == DEPTH
    assert (
        await hub.rows("SELECT 1 FROM audit_log WHERE action IN ('sync.requested', 'record.retried')") == []
    )
    await hub.execute(
        "UPDATE sync_queue SET status = 'completed' WHERE ctid = (SELECT min(ctid) FROM sync_queue)"
    )
    assert (await hub.post(f"{FAILURES}/retry", body)).status_code == 200


async def test_what_is_over_or_of_others_takes_no_room(hub: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("DELETE FROM sync_queue")
    await fill(hub, status="dead_letter")
    await fill(hub, provider="square")
    await fill(hub, venue=OTHERS)
    answer = await hub.post(f"{API}/sync/stripe/sync", {"venueId": str(OURS), "wait": 0})
    assert answer.status_code == 202


async def test_a_delivery_is_to_be_sent_again_and_others_are_taken(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    await connected(hub, "square", "M2", OTHERS)
    await fill(hub, provider="square")
    assert refused(await square(hub, square_event()))
    assert await events(hub) == []
    assert (await square(hub, square_event(merchant_id="M2"))).status_code == 200
    await hub.execute("DELETE FROM sync_queue")
    assert (await square(hub, square_event())).status_code == 200
    assert {event["venue_id"] for event in await events(hub)} == {OURS, OTHERS}


async def test_a_full_company_keeps_no_other_of_its_delivery_out(hub: Hub) -> None:
    await connected(hub, "quickbooks", "1")
    await connected(hub, "quickbooks", "2", OTHERS)
    await fill(hub, provider="quickbooks")
    for _ in range(2):
        assert refused(await quickbooks(hub, "1", "2"))
        kept = await events(hub)
        assert [(event["venue_id"], event["status"]) for event in kept] == [(OTHERS, "pending")] * 2
        [delivery] = await hub.rows("SELECT venue_id, body FROM webhook_deliveries")
        assert (delivery["venue_id"], delivery["body"]) == (OTHERS, b"")  # it tells of the other, too
    # Room for both: of the other there waits as much by now.
    await hub.execute("DELETE FROM sync_queue")
    assert (await quickbooks(hub, "1", "2")).status_code == 200
    kept = await events(hub)
    assert sorted(event["venue_id"] for event in kept) == [OURS, OURS, OTHERS, OTHERS]
    assert {each["venue_id"] for each in await hub.rows("SELECT venue_id FROM sync_queue")} == {OURS}


async def test_events_are_not_worked_again_without_room(hub: Hub) -> None:
    await connected(hub, "square", "M1")
    assert (await square(hub, square_event())).status_code == 200
    [event] = await events(hub)
    await fill(hub, DEPTH - 1, provider="square")
    assert refused(await hub.post(f"{HOOKS}/retry", {"webhookId": str(event["id"])}))
    wanted = {"venueId": str(OURS), "status": "failed"}
    assert refused(await hub.post(f"{HOOKS}/square/replay", wanted))
    assert len(await hub.rows("SELECT 1 FROM sync_queue")) == DEPTH
