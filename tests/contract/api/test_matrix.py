"""The whole matrix: every route, every caller, every venue, and what each of them is answered.

The table is written by hand, in `ROUTES` of test_access and here. A cell follows from it by four rules, which
`cell` has; what doesn't follow is written out. The reference's table says the same thing, and is compared.
"""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
import pytest

from server.api.openapi import operations
from server.app import openapi_document
from server.errors import STATUSES
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, Hub, bearer
from tests.contract.api.test_access import ADMIN, ALL, MANAGE, READ, ROUTES, SUBSCRIBER, SUBSCRIBERS

CALLERS: Mapping[str, Mapping[str, str]] = {
    "anonymous": {},
    "user": bearer("user"),
    "venue_admin": bearer("venue_admin"),
    "admin": bearer("admin", None),
    "superuser": bearer("superuser"),
}
OUR_SYNC, THEIR_SYNC = UUID(int=0xA1), UUID(int=0xA2)
OUR_EVENT, THEIR_EVENT = UUID(int=0xB1), UUID(int=0xB2)
NO_RECORD = UUID(int=0xC1)
VENUES: Mapping[str, UUID | None] = {"own": OURS, "other": OTHERS, "none": None}
SYNCS = {"own": OUR_SYNC, "other": THEIR_SYNC, "none": NO_RECORD}
EVENTS = {"own": OUR_EVENT, "other": THEIR_EVENT, "none": NO_RECORD}
IDS = {"own": OURS, "other": OTHERS, "none": "no-id"}
_SYNC = f"{API}/sync/stripe/sync"
_MAPPINGS = f"{API}/mappings/stripe"

# Beside ROUTES: the place `record` is an id of the venue's own thing in the path, `inner` one in the body.
MORE: tuple[tuple[str, str, str, tuple[str, ...], int], ...] = (
    ("GET", "/metrics", "nowhere", ADMIN, 200),
    ("GET", f"{_MAPPINGS}/fields", "nowhere", READ, 200),
    ("PUT", f"{_MAPPINGS}/mappings", "body", MANAGE, 404),
    ("POST", f"{_MAPPINGS}/mappings/test", "body", MANAGE, 404),
    ("POST", f"{_MAPPINGS}/mappings/heal/try", "body", MANAGE, 404),
    ("POST", f"{_MAPPINGS}/mappings/heal/accept", "body", MANAGE, 404),
    ("PUT", f"{API}/stripe/webhook", "body", MANAGE, 404),
    ("POST", f"{API}/venue/{{venue_id:uuid}}/erase", "path", MANAGE, 400),  # confirmed with another's id
    ("GET", f"{_SYNC}/{{sync_id:uuid}}", "record", READ, 200),
    ("GET", f"{_SYNC}/{{sync_id:uuid}}/events", "record", READ, 200),
    ("POST", f"{API}/webhooks/retry", "inner", MANAGE, 200),
    ("GET", f"{API}/oauth/callback/stripe", "nowhere", ALL, 302),
    ("GET", f"{API}/health/stripe", "query", ALL, 200),
    ("POST", f"{API}/webhooks/stripe/a-token", "nowhere", ALL, 401),
    ("POST", f"{API}/webhooks/stripe", "nowhere", ALL, 401),
    ("GET", f"{API}/webhooks/stripe/a-token", "nowhere", ALL, 401),
    ("GET", f"{API}/webhooks/stripe", "nowhere", ALL, 401),
    ("GET", "/health", "nowhere", ALL, 200),
    ("GET", "/ready", "nowhere", ALL, 200),
)
_PAIRS = {"customer.email": "customer.email"}
_SUCCESSOR = {"source": "event.name", "target": "product.titel", "to": "product.name"}
BODIES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("POST", f"{_MAPPINGS}/mappings/heal/try"): _SUCCESSOR,
    ("POST", f"{_MAPPINGS}/mappings/heal/accept"): _SUCCESSOR,
    ("PUT", f"{_MAPPINGS}/mappings"): {"mappings": _PAIRS},
    ("POST", f"{_MAPPINGS}/mappings/test"): {"mappings": _PAIRS, "sampleData": {}},
    ("PUT", f"{API}/stripe/webhook"): {"secret": "12345678"},
    ("POST", f"{API}/venue/{{venue_id:uuid}}/erase"): {"confirm": str(NO_RECORD)},
    ("POST", f"{API}/admin/force-sync"): {"integrationType": "stripe"},
    ("POST", f"{_SYNC}/failures/retry"): {
        "entity": "event",
        "resource": "product",
        "direction": "push",
        "recordId": "1",
    },
    ("POST", f"{_SYNC}/conflicts/resolve"): {"take": "provider"},
    ("POST", f"{_SYNC}/conflicts/{{conflict_id:uuid}}/resolve"): {"take": "platform"},
    ("POST", SUBSCRIBERS): {"url": "ftp://example.org"},
    ("POST", f"{SUBSCRIBER}/redeliver"): {"since": "2026-01-15T11:00:00Z"},
}
# What is answered without a venue where it may be left out: to administrators, and to others. Elsewhere it is
# 400, and for no id at all 404.
WITHOUT: Mapping[tuple[str, str], tuple[int, int]] = {
    ("POST", f"{API}/stripe/api-key"): (400, 400),
    ("POST", f"{_MAPPINGS}/mappings/test"): (200, 200),
    ("GET", f"{API}/webhooks/stripe/events"): (200, 200),
    ("POST", f"{API}/admin/clear-queue"): (200, 403),
    ("POST", f"{API}/admin/dead-letters/retry"): (200, 403),
    ("GET", f"{API}/admin/audit"): (200, 403),
    ("GET", f"{API}/admin/integration-metrics"): (200, 403),
    ("GET", f"{API}/admin/dead-letters"): (200, 403),
    ("GET", f"{API}/admin/costs"): (200, 403),
    **{(method, path): (status, 400) for method, path, *_, status in ROUTES if path.startswith(SUBSCRIBERS)},
}
TABLE = (*ROUTES, *MORE)
every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} {row[1]}")


def cell(row: tuple[str, str, str, tuple[str, ...], int], caller: str, venue: str) -> int:
    """Return the status a caller gets for a venue."""
    method, path, place, roles, status = row
    if place == "path" and venue == "none":
        return 404  # there is no such path, for whoever asks
    if roles == ALL:
        return 400 if place == "query" and venue == "none" else status
    if caller == "anonymous":
        return 401
    if caller not in roles:
        return 403
    if place == "nowhere":
        return status
    if venue == "none":
        if place in ("record", "inner"):
            return 404
        return WITHOUT.get((method, path), (400, 400))[caller != "admin"]
    if venue == "other" and caller != "admin":
        return 404 if place in ("record", "inner") else 403
    return status


@pytest.fixture(scope="module")
async def stage(running: Hub) -> Hub:
    """A sync and a webhook event of our venue and of another."""
    for venue, sync, event in ((OURS, OUR_SYNC, OUR_EVENT), (OTHERS, THEIR_SYNC, THEIR_EVENT)):
        await running.execute(
            "INSERT INTO sync_queue (id, venue_id, integration_type, operation_type, entity_type, status,"
            " run_id) VALUES (:id, :venue, 'stripe', 'sync', 'full', 'completed', :id)",
            id=sync,
            venue=venue,
        )
        await running.execute(
            "INSERT INTO integration_webhooks (id, venue_id, integration_type, event_type, event_id, payload)"
            " VALUES (:id, :venue, 'stripe', 'customer.updated', :event, '{}')",
            id=event,
            venue=venue,
            event=str(event),
        )
    return running


async def call(
    hub: Hub,
    row: tuple[str, str, str, tuple[str, ...], int],
    caller: str,
    venue: str,
    as_id: UUID | None = None,
) -> httpx.Response:
    method, path, place, _, _ = row
    named = as_id or VENUES[venue]
    path = path.replace("{venue_id:uuid}", str(as_id or IDS[venue]))
    path = path.replace("{sync_id:uuid}", str(SYNCS[venue]))
    path = re.sub(r"\{\w+:uuid\}", str(NO_RECORD), path)
    body: dict[str, Any] = dict(BODIES.get((row[0], row[1]), {}))
    options: dict[str, Any] = {}
    if place == "query" and named is not None:
        options["params"] = {"venueId": str(named)}
    if place == "body" and named is not None:
        body["venueId"] = str(named)
    if place == "inner":
        body["webhookId"] = str(EVENTS[venue])
    if place in ("body", "inner") or body:
        options["json"] = body
    return await hub.http.request(method, path, headers=dict(CALLERS[caller]), **options)


@every_row
async def test_every_caller_and_every_venue(
    stage: Hub, row: tuple[str, str, str, tuple[str, ...], int]
) -> None:
    found, expected = {}, {}
    for caller in CALLERS:
        for venue in VENUES:
            answer = await call(stage, row, caller, venue)
            found[caller, venue] = answer.status_code
            expected[caller, venue] = cell(row, caller, venue)
            if answer.status_code >= 400:
                assert STATUSES.get(answer.json()["code"]) == answer.status_code, answer.text
    assert found == expected


@every_row
async def test_another_venue_looks_the_same_whether_or_not_it_exists(
    stage: Hub, row: tuple[str, str, str, tuple[str, ...], int]
) -> None:
    if row[2] not in ("query", "body", "path") or row[3] == ALL:
        return
    caller = next((each for each in ("venue_admin", "user") if each in row[3]), "venue_admin")
    there = await call(stage, row, caller, "other")
    not_there = await call(stage, row, caller, "other", NOWHERE)
    assert there.status_code == not_there.status_code == 403
    same = [{key: each.json()[key] for key in ("error", "code", "details")} for each in (there, not_there)]
    assert same[0] == same[1]


def test_the_reference_says_the_same_of_every_route() -> None:
    """Which roles may, and where the venue goes: of every operation that is described, and of no other."""
    places = {"nowhere": None, "record": None, "inner": None, "none": None}
    by_hand = {
        (method.lower(), re.sub(r"\{(\w+):uuid\}", r"{\1}", path).replace("/stripe", "/{provider}")): (
            [] if roles == ALL else [role for role in ("admin", "venue_admin", "user") if role in roles],
            places.get(place, place),
        )
        for method, path, place, roles, _ in TABLE
    }
    by_hand = {
        (method, path.replace("/a-token", "/{token}")): said for (method, path), said in by_hand.items()
    }
    described = {
        (method, path): (operation["x-roles"], operation["x-venue"])
        for path, method, operation in operations(openapi_document())
    }
    assert described == by_hand
