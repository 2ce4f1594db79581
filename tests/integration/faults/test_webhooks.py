"""Webhooks while things break: what was accepted is worked, once in effect, and everything else comes again.

The stand-ins send as the providers do: signed, repeated until taken, some twice, out of order. What breaks
and when is drawn by a seed; FAULT_SEEDS (such as `1-30`) asks for others than the suite's.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import pytest
import redis

from server.embedded import StoreProcess, Stores
from tests.integration.faults.conftest import SQUARE_KEY
from tests.integration.hub import API, KEY, PROVIDERS, VENUE, Hub, Provider, check_events
from tests.sandbox import square, stripe
from tests.sandbox.stripe import Endpoint

STRIPE_SECRET = "whsec_of_the_test"
FIRST, LAST = map(int, os.environ.get("FAULT_SEEDS", "2-2").split("-"))
SEEDS = range(FIRST, LAST + 1)
ROUNDS = 6
CHANGES = 3  # at each provider, in a round
EVENTS = ("customer.created", "customer.updated", "customer.deleted")


@dataclass(slots=True)
class Bad:
    """A hub that is told by webhooks, what can be done to it, and what was changed at the providers."""

    hub: Hub
    postgres: StoreProcess
    redis: StoreProcess
    chance: random.Random
    changes: int = 0
    strikes_made: list[str] = field(default_factory=list)

    # -- what happens at the providers

    def change(self, provider: Provider) -> None:
        """Somebody changes a customer at a provider, or adds one."""
        self.changes += 1
        if self.chance.random() < 0.3:
            self._add(provider, f"walk-in-{self.changes}@example.com")
        else:
            found = sorted(
                (each for each in self.hub.objects(provider, "customer") if _changes_at(provider, each)),
                key=lambda each: str(each["id"]),
            )
            self._rename(provider, str(self.chance.choice(found)["id"]), f"Town {self.changes}")

    def _add(self, provider: Provider, email: str) -> None:
        if provider == "stripe":
            self._call(provider, "POST", "/v1/customers", data={"email": email, "name": "Walk In"})
        else:
            self._call(provider, "POST", "/v2/customers", json={"email_address": email, "given_name": "Walk"})

    def _rename(self, provider: Provider, customer: str, city: str) -> None:
        if provider == "stripe":
            self._call(provider, "POST", f"/v1/customers/{customer}", data={"address[city]": city})
        else:
            found = self._call(provider, "GET", f"/v2/customers/{customer}").json()["customer"]
            address = {**found.get("address", {}), "locality": city}
            self._call(provider, "PUT", f"/v2/customers/{customer}", json={"address": address})

    def _call(self, provider: Provider, method: str, path: str, **options: Any) -> httpx.Response:
        token = KEY if provider == "stripe" else square.PERSONAL_TOKEN
        url, headers = self.hub.provider_url(provider) + path, {"Authorization": f"Bearer {token}"}
        while True:
            with suppress(httpx.RemoteProtocolError):  # nobody reaches it just now, and nothing was done
                answer = httpx.request(method, url, headers=headers, timeout=30, **options)
                answer.raise_for_status()
                return answer

    # -- what breaks

    def kill(self, name: str) -> None:
        self.hub.kill(name)
        self.hub.start(name)

    def stop(self, name: str) -> None:
        """As an operator stops a process."""
        process = self.hub.processes.pop(name)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)  # the signal, if it was still starting
        self.hub.start(name)

    def pause(self, name: str) -> None:
        """A process that stands still for longer than its leases."""
        process = self.hub.processes[name]
        os.kill(process.pid, signal.SIGSTOP)
        expired = "SELECT clock_timestamp() > $1::timestamptz + interval '1.5 seconds'"
        stopped = self.hub.database.one("SELECT clock_timestamp()")
        self.hub.until(lambda: self.hub.database.one(expired, stopped), "the leases to run out")
        os.kill(process.pid, signal.SIGCONT)

    def empty_redis(self) -> None:
        with redis.Redis.from_url(self.hub.redis_url) as client:
            client.flushall()

    def part(self) -> None:
        """Nobody reaches a provider for a while, though it goes on telling of changes."""
        provider = self.chance.choice(PROVIDERS)
        self.hub.break_provider(provider, {"match": "*", "fault": "disconnect", "times": 6})

    def strikes(self) -> Mapping[str, Callable[[], None]]:
        return {
            **{f"kill {name}": partial(self.kill, name) for name in ("api", "worker", "scheduler")},
            **{f"stop {name}": partial(self.stop, name) for name in ("api", "worker", "scheduler")},
            **{f"pause {name}": partial(self.pause, name) for name in ("api", "worker")},
            "restart PostgreSQL": self.postgres.restart,
            "restart Redis": self.redis.restart,
            "empty Redis": self.empty_redis,
            "part": self.part,
        }


def _changes_at(provider: Provider, customer: Mapping[str, Any]) -> bool:
    """Say whether this provider changes a customer: only one does, so that it is known what wins."""
    ours = (customer.get("metadata") or {}).get("customer_id") or customer.get("reference_id")
    return ours is None or PROVIDERS[UUID(ours).int % 2] == provider


@pytest.fixture
def bad(connected: Hub, own_stores: Stores, request: pytest.FixtureRequest) -> Iterator[Bad]:
    """A hub in step with two providers that tell it of changes."""
    assert own_stores.postgres is not None
    assert own_stores.redis is not None
    connected.sync_all()
    connected.database.execute("TRUNCATE integration_webhooks, webhook_deliveries")
    seed: int = getattr(request, "param", 0)
    _subscribe(connected)
    for provider in PROVIDERS:
        connected.control(
            provider,
            "POST",
            "courier",
            # 5 minutes become a quarter of a second.
            {"speed": 1200, "doubled": 0.2, "shuffled": True, "seed": seed},
        )
    yield Bad(connected, own_stores.postgres, own_stores.redis, random.Random(seed))
    for provider in PROVIDERS:
        connected.mend_provider(provider)


def _subscribe(hub: Hub) -> None:
    """Set webhooks up as a person would at the providers' own pages."""
    address = hub.data("GET", f"{API}/stripe/webhook", params={"venueId": str(VENUE)})["url"]
    hub.sandbox.stripe.endpoints["we_test"] = Endpoint(
        stripe.DEFAULT_ACCOUNT,
        live=True,
        secret=STRIPE_SECRET,
        shown={"id": "we_test", "url": address, "enabled_events": list(EVENTS), "status": "enabled"},
    )
    body = {"venueId": str(VENUE), "secret": STRIPE_SECRET}
    assert hub.request("PUT", f"{API}/stripe/webhook", json=body).is_success
    shared = hub.data("GET", f"{API}/square/webhook", params={"venueId": str(VENUE)})["url"]
    hub.control("square", "POST", "subscriptions", {"url": shared, "key": SQUARE_KEY})


def _told(hub: Hub) -> dict[Provider, set[str]]:
    """Return the events each provider has told of, by their ids."""
    stand_ins = {"stripe": hub.sandbox.stripe, "square": hub.sandbox.square}
    return {
        provider: {sent.letter.name.split()[1] for sent in stand_ins[provider].courier.sent}
        for provider in PROVIDERS
    }


def _end_well(bad: Bad) -> None:
    """Everything told of has come, is stored once and was worked; what the providers have is what we have."""
    hub = bad.hub
    for provider, stand_in in (("stripe", hub.sandbox.stripe), ("square", hub.sandbox.square)):
        assert stand_in.courier.settled(60), f"{provider} still has letters to send"
        refused = [sent.tries for sent in stand_in.courier.sent if not sent.taken]
        assert refused == []
    open_events = "SELECT count(*) = 0 FROM integration_webhooks WHERE status IN ('pending', 'processing')"
    hub.until(lambda: hub.database.one(open_events), "all events to be worked", 60)
    open_work = "SELECT count(*) = 0 FROM sync_queue WHERE status <> 'completed'"
    hub.until(lambda: hub.database.one(open_work), "all operations to end", 60)
    told = _told(hub)
    stored = hub.database.rows("SELECT integration_type, event_id, status FROM integration_webhooks")
    for provider in PROVIDERS:
        events = [event for of, event, _ in stored if of == provider]
        assert sorted(events) == sorted(told[provider])
    assert {status for *_, status in stored} == {"processed"}
    assert hub.database.one("SELECT count(*) FROM record_failures") == 0
    _check_pulled(hub)


def _check_pulled(hub: Hub) -> None:
    """Each customer of a provider is one of ours, once, with the last city the provider has."""
    links = hub.database.rows(
        "SELECT integration_type, remote_id, local_id FROM record_links WHERE entity = 'customer'"
    )
    ours = dict(hub.database.rows("SELECT id::text, city FROM platform.customers WHERE venue_id = $1", VENUE))
    for provider in PROVIDERS:
        linked = {remote: local for of, remote, local in links if of == provider}
        found = hub.objects(provider, "customer")
        assert sorted(linked) == sorted(str(each["id"]) for each in found)
        assert len(set(linked.values())) == len(linked)
        changed = {
            str(each["id"]): city
            for each in found
            if str(
                city := (each.get("address") or {}).get("city" if provider == "stripe" else "locality")
            ).startswith("Town")
        }
        assert {remote: ours[linked[remote]] for remote in changed} == changed


def _check_everywhere(hub: Hub) -> None:
    """Every customer is at both providers, once, as on the platform."""
    where = "SELECT email, phone, city FROM platform.customers WHERE venue_id = $1"
    ours = sorted(hub.database.rows(where, VENUE), key=str)
    stripe_has = [
        (each["email"], each["phone"], (each["address"] or {}).get("city"))
        for each in hub.objects("stripe", "customer")
    ]
    square_has = [
        (each.get("email_address"), each.get("phone_number"), each.get("address", {}).get("locality"))
        for each in hub.objects("square", "customer")
    ]
    assert sorted(stripe_has, key=str) == ours
    assert sorted(square_has, key=str) == ours


@pytest.mark.parametrize("bad", SEEDS, indirect=True, ids=lambda seed: f"seed {seed}")
def test_accepted_deliveries_are_worked_whatever_breaks(bad: Bad) -> None:
    strikes = bad.strikes()
    for _ in range(ROUNDS):
        for _ in range(CHANGES):
            for provider in PROVIDERS:
                bad.change(provider)
        name = bad.chance.choice(sorted(strikes))
        bad.strikes_made.append(name)
        strikes[name]()
    _end_well(bad)
    bad.hub.sync_all()  # what one provider told goes to the other
    _check_everywhere(bad.hub)
    check_events(bad.hub)


def test_while_postgresql_stands_still_nothing_is_called_accepted(bad: Bad) -> None:
    """A provider gets 503 within its deadline, and what it sends again later is stored."""
    pid = bad.postgres.pid
    hub = bad.hub
    stand_in = hub.sandbox.square
    backends = [
        row[0]
        for row in hub.database.rows(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'integration-hub api'"
        )
    ]
    for each in (pid, *backends):
        os.kill(each, signal.SIGSTOP)
    try:
        bad.change("square")
        hub.until(
            lambda: any(sent.tries for sent in stand_in.courier.sent), "the first answer to a delivery", 15
        )
        first = {sent.tries[0] for sent in stand_in.courier.sent if sent.tries}
    finally:
        for each in (pid, *backends):
            os.kill(each, signal.SIGCONT)
    assert first == {503}
    _end_well(bad)
