"""Many members written by one job at the simulated provider, and what a crash in the middle of it does.

Time passes at once for the engine; the stand-in brings a job one stage on with every look at it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, load_connector, load_platform
from engine.client import ProviderClient
from engine.clock import SystemClock
from engine.expressions import Template
from engine.manifest import Connector
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState, StaticCredentials
from engine.sync import Sync, Tally
from engine.transport import open_client
from tests.sandbox.mailchimp import DEFAULT_KEY, REPLACES
from tests.sandbox.running import Sandbox, running_sandbox

CONNECTORS = Path(__file__).resolve().parents[2] / "connectors"
MAPPING: dict[str, Any] = {
    "entity": "customer",
    "resource": "member",
    "direction": "push",
    "fields": {
        "email": "email_address",
        "first_name": "merge_fields.FNAME",
        "last_name": "merge_fields.LNAME",
        "accepts_marketing": [
            {"path": "status_if_new", "push": "{{ 'subscribed' if value else 'transactional' }}"},
            {"path": "tags", "push": "{{ [{'name': 'guest', 'status': 'active'}] if value else none }}"},
        ],
    },
}


NEW_MEMBER = {
    "method": "PUT",
    "path": "/lists/{{ connection.list_id }}/members/{{ record.email_address | lower | md5 }}",
    "operation_id": "{{ number }}",
    "body": "{{ record | json_text }}",
}


def with_jobs_of_new_members(connector: Connector) -> Connector:
    """The manifest makes new members 500 a call; here many of them are a job, as updates are."""
    member = connector.resources["member"]
    assert member.write_job is not None
    job = replace(member.write_job, create=Template.compile(NEW_MEMBER))
    return replace(connector, resources={**connector.resources, "member": replace(member, write_job=job)})


@dataclass
class QuickClock(SystemClock):
    """A clock that doesn't wait; with `dies_after`, the process is killed in so manieth wait."""

    dies_after: int | None = None
    waited: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        if self.dies_after is not None and len(self.waited) >= self.dies_after:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


class World:
    """One account, one platform, and what is remembered between them."""

    def __init__(self, url: str) -> None:
        self.url = url
        httpx.post(f"{url}/_sandbox/reset").raise_for_status()
        choices = {"batch_seconds": None, "results_per_file": 60}
        httpx.post(f"{url}/_sandbox/choices", json=choices).raise_for_status()
        self.connector = with_jobs_of_new_members(load_connector(CONNECTORS / "mailchimp.yaml"))
        self.customers = load_platform(CONNECTORS / "platform.yaml").entities["customer"]
        self.host = MemoryHost({"id": "v1", "name": "Café Zoë", "currency": "EUR"})
        self.state = MemorySyncState()

    def put(self, number: int, **values: Any) -> None:
        blank = dict.fromkeys(self.customers.fields)
        known = {"first_name": f"Ána {number}", "last_name": "Ruiz", "accepts_marketing": number % 2 == 0}
        email = f"Guest.{number}@venue-guests.org"
        self.host.put("customer", {**blank, "id": f"c{number}", **known, "email": email, **values})

    async def push(self, clock: QuickClock) -> Tally:
        mapping, faults = compile_mapping(MAPPING, self.connector.resources["member"], self.customers)
        assert mapping is not None, faults
        credentials = Credentials(
            {"apiKey": Secret(DEFAULT_KEY)}, {"dc": DEFAULT_KEY.partition("-")[2]}, method="key"
        )
        async with open_client(origin_overrides=dict.fromkeys(REPLACES, self.url)) as http:
            client = ProviderClient(self.connector, StaticCredentials(credentials), http=http, clock=clock)
            await client.learn()
            return await Sync(
                self.connector,
                mapping,
                client,
                self.host,
                self.state,
                venue=self.host.venue_record,
                clock=clock,
                fields=self.customers.fields,
            ).push()

    def leave(self, email: str) -> None:
        """Unsubscribe somebody, as the person would."""
        left = {"account": "mc-demo", "email": email, "status": "unsubscribed"}
        httpx.post(f"{self.url}/_sandbox/members", json=left).raise_for_status()

    def members(self) -> dict[str, dict[str, Any]]:
        rows = httpx.get(f"{self.url}/_sandbox/objects", params={"type": "member"}).json()["objects"]
        return {row["email_address"].lower(): row for row in rows}

    def jobs(self) -> int:
        calls = httpx.get(f"{self.url}/_sandbox/calls").json()
        return int(calls["effects"].get("batch.submitted", 0))


@pytest.fixture
def world(sandbox: Sandbox) -> World:
    return World(sandbox.mailchimp_url)


async def test_many_new_members_are_one_job_and_each_is_counted(world: World) -> None:
    for number in range(230):
        world.put(number)
    world.put(500, email="not an address")
    clock = QuickClock()
    tally = await world.push(clock)
    assert (tally.created, tally.failed, world.jobs()) == (230, 1, 1)
    (failure,) = tally.failures
    assert (failure.record_id, failure.retryable) == ("c500", False)
    members = world.members()
    assert len(members) == 230
    one = members["guest.8@venue-guests.org"]
    assert one["id"] == hashlib.md5(b"guest.8@venue-guests.org", usedforsecurity=False).hexdigest()
    assert (one["merge_fields"]["FNAME"], one["status"]) == ("Ána 8", "subscribed")
    assert members["guest.9@venue-guests.org"]["status"] == "transactional"
    assert [each["name"] for each in one["tags"]] == ["guest"]
    links = world.state.links
    assert {links["member", f"c{number}"].remote_id for number in range(230)} == {
        each["id"] for each in members.values()
    }
    assert world.state.pending == {}


async def test_nothing_new_is_nothing_sent_and_changes_of_a_few_take_no_job(world: World) -> None:
    for number in range(210):
        world.put(number)
    await world.push(QuickClock())
    again = await world.push(QuickClock())
    assert (again.created, again.updated, world.jobs()) == (0, 0, 1)
    world.put(3, last_name="Paz")
    few = await world.push(QuickClock())
    assert (few.updated, few.failed, world.jobs()) == (1, 0, 1)
    assert world.members()["guest.3@venue-guests.org"]["merge_fields"]["LNAME"] == "Paz"


async def test_many_changes_are_one_job_and_consent_stays_as_it_is(world: World) -> None:
    for number in range(205):
        world.put(number)
    await world.push(QuickClock())
    world.leave("guest.4@venue-guests.org")
    for number in range(205):
        world.put(number, last_name="Paz")
    tally = await world.push(QuickClock())
    assert (tally.updated, tally.failed, world.jobs()) == (205, 0, 2)
    member = world.members()["guest.4@venue-guests.org"]
    assert (member["merge_fields"]["LNAME"], member["status"]) == ("Paz", "unsubscribed")


async def test_a_process_killed_while_it_waits_finds_the_job_again(world: World) -> None:
    for number in range(220):
        world.put(number)
    with pytest.raises(asyncio.CancelledError):
        await world.push(QuickClock(dies_after=3))
    (pending,) = world.state.pending.values()
    assert pending.job is not None
    assert world.state.links == {}
    clock = QuickClock()
    tally = await world.push(clock)
    assert (tally.created, tally.failed, world.jobs()) == (220, 0, 1)
    assert len(world.members()) == 220
    linked = [local_id for resource, local_id in world.state.links if resource == "member"]
    assert (world.state.pending, len(linked)) == ({}, 220)
