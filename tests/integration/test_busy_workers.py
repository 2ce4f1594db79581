"""Workers that sync several venues of one account: they use nearly all of its budget, and never more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import httpx
import jwt
import pytest

from tests.integration.hub import API, KEY, PROJECT, VENUE, Hub, running_hub
from tests.sandbox.core import Counts

VENUES = [uuid5(VENUE, f"venue {number}") for number in range(4)]
CUSTOMERS = 180  # of each venue: more than what is looked at takes
WINDOWS, CALLS = 4, 120  # the best of a few is what counts, for a busy machine
RATE = 40  # less than what a busy machine can do
LATENCY = 0.05
WANTED = 0.9
LIMITS = f"limits: {{requests: {RATE} per second, concurrent: 30}}\n"


@pytest.fixture
def hub(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Hub]:
    """Four workers, and a manifest with one limit: what is taken of a single call is no matter here."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    text = (PROJECT / "connectors" / "stripe.yaml").read_text(encoding="utf-8")
    before, limits, after = text.partition("limits:\n")
    assert limits
    rest = after[after.index("\n\n") :]
    (folder / "stripe.yaml").write_text(before + LIMITS + rest, encoding="utf-8")
    settings = {"HUB_CONNECTORS_DIR": str(folder), "LEASE_SECONDS": "30", "WORKER_CONCURRENCY": "1"}
    with running_hub(database_url, redis_url, tmp_path, quick=False, **settings) as hub:
        hub.start("worker-b", "worker-c", "worker-d")
        yield hub


def fill(hub: Hub) -> None:
    hub.database.insert(
        "INSERT INTO platform.venues (id, name, type, currency, country, timezone) "
        "VALUES ($1, $2, 'theatre', 'EUR', 'BE', 'Europe/Brussels')",
        [(venue, f"Salle {number}") for number, venue in enumerate(VENUES)],
    )
    hub.database.insert(
        "INSERT INTO platform.customers (id, venue_id, last_name, email) VALUES ($1, $2, $3, $4)",
        [
            (uuid5(venue, str(number)), venue, f"Guest {number}", f"guest{number}@venue{place}.example")
            for place, venue in enumerate(VENUES)
            for number in range(CUSTOMERS)
        ],
    )


def post(hub: Hub, venue: UUID, path: str, **body: Any) -> Mapping[str, Any]:
    claims = {"sub": "t", "role": "venue_admin", "venueId": str(venue), "exp": int(time.time()) + 600}
    token = jwt.encode(claims, hub.environment["JWT_SECRET"], algorithm="HS256")
    headers = {"Authorization": f"Bearer {token}"}
    sent = {"venueId": str(venue), **body}
    answer = httpx.post(hub.url + API + path, headers=headers, json=sent, timeout=60)
    assert answer.is_success, answer.text
    return dict(answer.json()["data"])


def share_used(hub: Hub, counts: Counts, calls: int) -> float:
    """Return what share of the budget the next calls use."""
    started, before = time.monotonic(), counts.total
    hub.until(lambda: counts.total >= before + calls, f"{calls} calls")
    return calls / (time.monotonic() - started) / RATE


def test_syncs_of_one_account_use_its_budget_and_keep_to_it(hub: Hub) -> None:
    fill(hub)
    stripe = hub.sandbox.stripe
    stripe.set_limits = {"requests_per_second": float(RATE), "per_endpoint": None}
    stripe.latency = LATENCY
    for venue in VENUES:
        how: Mapping[str, Any] = {"environment": "production", "config": {"syncEnabled": False}}
        post(hub, venue, "/connect/stripe", credentials={"apiKey": KEY}, **how)
    for venue in VENUES:
        post(hub, venue, "/sync/stripe/sync", syncType="full", wait=0)
    working = "SELECT count(DISTINCT lease_owner) FROM sync_queue WHERE status = 'processing'"
    hub.until(lambda: hub.database.one(working) == len(VENUES), "each worker to have a sync")
    hub.until(lambda: stripe.counts.by_call["POST /v1/customers"] >= RATE, "customers to be written")
    best = 0.0
    for _ in range(WINDOWS):
        best = max(best, share_used(hub, stripe.counts, CALLS))
        if best >= WANTED:
            break
    assert best >= WANTED
    assert stripe.counts.rate_limited == 0
