"""Members of an audience against the simulated provider: their ids follow from their addresses.

What the audience holds in the end is worked out by hand; nothing is read back through the engine.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable, Iterator, Mapping
from hashlib import md5
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Credentials, Secret, load_connector, load_platform
from engine.client import ProviderClient
from engine.clock import SystemClock
from engine.errors import ProviderError
from engine.memory import MemoryHost, MemorySyncState, StaticCredentials
from engine.ports import Record
from engine.sync import Sync, Tally
from engine.templates import load_template
from engine.transport import open_client
from tests.sandbox.mailchimp import DEFAULT_KEY, REPLACES
from tests.sandbox.running import Sandbox, running_sandbox

PROJECT = Path(__file__).resolve().parents[2]
BLANK: Record = {"first_name": None, "last_name": None, "phone": None, "city": None, "postal_code": None}
BLANK |= {"country": None, "accepts_marketing": False}
FAULTS = ("status:500", "after:500", "after:disconnect", "disconnect", "html", "truncated")


class QuickClock(SystemClock):
    """A clock that doesn't wait."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class World:
    """One account, one platform, and what is remembered between them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.post("reset", {})
        self.connector = load_connector(PROJECT / "connectors" / "mailchimp.yaml")
        self.platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        pack = PROJECT / "mapping-templates" / "mailchimp" / "default.yaml"
        (self.mapping,) = load_template(pack, self.connector, self.platform).mappings
        self.host = MemoryHost({"id": "v1", "name": "Café Zoë", "currency": "EUR"})
        self.state = MemorySyncState()

    def post(self, path: str, body: Any) -> None:
        httpx.post(f"{self.url}/_sandbox/{path}", json=body).raise_for_status()

    def put(self, local_id: str, **values: Any) -> None:
        old = self.host.records.get("customer", {}).get(local_id, {**BLANK, "id": local_id})
        self.host.put("customer", {**old, **values})

    @property
    def customers(self) -> Mapping[str, Record]:
        return self.host.records["customer"]

    async def run(self, *directions: str, complete: bool = False) -> list[Tally]:
        credentials = Credentials({"apiKey": Secret(DEFAULT_KEY)}, {"dc": "us6"}, method="key")
        tallies: list[Tally] = []
        async with open_client(origin_overrides=dict.fromkeys(REPLACES, self.url)) as http:
            client = ProviderClient(
                self.connector, StaticCredentials(credentials), http=http, clock=QuickClock()
            )
            await client.learn()
            for direction in directions:
                run = Sync(
                    self.connector,
                    self.mapping,
                    client,
                    self.host,
                    self.state,
                    venue=self.host.venue_record,
                    clock=QuickClock(),
                    fields=self.platform.entities["customer"].fields,
                    complete=complete,
                )
                tallies.append(await (run.pull() if direction == "pull" else run.push()))
        return tallies

    def members(self) -> list[dict[str, Any]]:
        found = httpx.get(f"{self.url}/_sandbox/objects", params={"type": "member"}).json()["objects"]
        return sorted(found, key=lambda row: str(row["email_address"]).lower())

    def addresses(self) -> list[str]:
        return [row["email_address"] for row in self.members()]

    def calls(self) -> Mapping[str, Any]:
        return dict(httpx.get(f"{self.url}/_sandbox/calls").json())

    def linked(self) -> dict[str, str]:
        rows = self.state.links.items()
        return {local_id: link.remote_id for (resource, local_id), link in rows if resource == "member"}

    def change_theirs(self, email: str, **values: Any) -> None:
        """Change a member in the provider's own pages."""
        httpx.patch(self._theirs(email), auth=("", DEFAULT_KEY), json=values).raise_for_status()

    def archive_theirs(self, email: str) -> None:
        httpx.delete(self._theirs(email), auth=("", DEFAULT_KEY)).raise_for_status()

    def erase_theirs(self, email: str) -> None:
        address = f"{self._theirs(email)}/actions/delete-permanent"
        httpx.post(address, auth=("", DEFAULT_KEY)).raise_for_status()

    def _theirs(self, email: str) -> str:
        (row,) = [row for row in self.members() if row["email_address"].lower() == email.lower()]
        return f"{self.url}/3.0/lists/{row['list_id']}/members/{row['id']}"


def hash_of(address: str) -> str:
    return md5(address.lower().encode(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def world(sandbox: Sandbox) -> World:
    return World(sandbox.mailchimp_url)


# ---- many at once ------------------------------------------------------------------------------------


async def test_new_members_go_together_and_each_has_the_consent_it_was_given(world: World) -> None:
    for number in range(501):
        world.put(f"c{number:03}", email=f"Guest.{number:03}@venue-guests.org", accepts_marketing=number == 7)
    before = world.calls()["writes"]
    (tally,) = await world.run("push")
    assert (tally.created, tally.failed) == (501, 0)
    assert world.calls()["writes"] - before == 2  # 500 of a page together, and the one on the next page
    assert {row["email_address"] for row in world.members() if row["status"] == "subscribed"} == {
        "Guest.007@venue-guests.org"
    }
    assert world.linked() == {f"c{n:03}": hash_of(f"guest.{n:03}@venue-guests.org") for n in range(501)}


async def test_who_is_there_already_is_updated_and_keeps_their_word(world: World) -> None:
    left = {"account": "mc-demo", "email": "left@example.com", "status": "unsubscribed"}
    world.post("members", left)
    world.put("c1", email="LEFT@example.com", first_name="Lea", accepts_marketing=True)
    world.put("c2", email="new@example.com", first_name="Noé", accepts_marketing=True)
    (tally,) = await world.run("push")
    assert tally.failures == []
    found = [(row["id"], row["merge_fields"]["FNAME"], row["status"]) for row in world.members()]
    assert found == [
        (hash_of("left@example.com"), "Lea", "unsubscribed"),
        (hash_of("new@example.com"), "Noé", "subscribed"),
    ]
    assert world.linked() == {"c1": hash_of("left@example.com"), "c2": hash_of("new@example.com")}


async def test_one_bad_address_harms_nobody_else(world: World) -> None:
    world.put("c1", email="not an address")
    world.put("c2", email="good@example.com")
    (tally,) = await world.run("push")
    assert (tally.created, [each.record_id for each in tally.failures]) == (1, ["c1"])
    assert world.addresses() == ["good@example.com"]


async def test_who_was_put_out_of_the_audience_is_not_brought_back(world: World) -> None:
    """Not even by a change of ours: it would be a new consent, which nobody gave."""
    world.put("c1", email="left@example.com", first_name="Lea", accepts_marketing=True)
    await world.run("pull", "push")
    assert [row["status"] for row in world.members()] == ["subscribed"]
    world.archive_theirs("left@example.com")
    await world.run("pull", "push")
    world.put("c1", first_name="Léa")
    tallies = await world.run("pull", "push")
    assert [each.failures for each in tallies] == [[], []]
    assert [row["status"] for row in world.members()] == ["archived"]
    world.change_theirs("left@example.com", status="subscribed")
    await world.run("pull", "push")
    world.put("c1", first_name="Leah")
    await world.run("pull", "push")
    (row,) = world.members()
    assert (row["status"], row["merge_fields"]["FNAME"]) == ("subscribed", "Leah")
    assert list(world.customers) == ["c1"]


async def test_who_was_erased_there_is_not_signed_up_again(world: World) -> None:
    """No feed tells of it, so it is the next change of ours that finds out."""
    world.put("c1", email="erased@example.com", first_name="Lea", accepts_marketing=True)
    await world.run("pull", "push")
    world.erase_theirs("erased@example.com")
    world.put("c1", first_name="Léa")
    before = world.calls()["writes"]
    tallies = await world.run("pull", "push")
    assert [each.failures for each in tallies] == [[], []]
    assert world.calls()["writes"] - before == 1  # the update; nothing is made
    assert world.members() == []
    await assert_settled(world)


async def test_who_is_gone_here_leaves_the_audience(world: World) -> None:
    world.put("c1", email="left@example.com")
    world.put("c2", email="here@example.com")
    await world.run("push", "pull")
    del world.host.records["customer"]["c1"]
    await world.run("pull", "push", complete=True)
    assert {row["email_address"]: row["status"] == "archived" for row in world.members()} == {
        "left@example.com": True,
        "here@example.com": False,
    }
    assert list(world.customers) == ["c2"]
    await assert_settled(world)


async def test_many_that_are_gone_here_are_held(world: World) -> None:
    for number in range(20):
        world.put(f"c{number}", email=f"guest{number}@venue-guests.org")
    await world.run("push", "pull")
    for number in range(6):
        del world.host.records["customer"][f"c{number}"]
    _, tally = await world.run("pull", "push", complete=True)
    assert (tally.held, tally.archived) == (6, 0)
    assert all(row["status"] != "archived" for row in world.members())


async def test_why_an_address_is_refused_is_what_the_many_were_told(world: World) -> None:
    world.put("c1", email="not an address")
    world.put("c2", email="good@example.com")
    (tally,) = await world.run("push")
    [failure] = tally.failures
    assert "valid email" in failure.message


# ---- an address that changes -------------------------------------------------------------------------


async def assert_settled(world: World) -> None:
    """A sync writes nothing any more, on either side."""
    before, changes = world.calls()["writes"], world.host.changes
    tallies = await world.run("pull", "push")
    assert [each.failures for each in tallies] == [[], []]
    assert (world.calls()["writes"], world.host.changes) == (before, changes)


async def test_the_link_follows_an_address_changed_here(world: World) -> None:
    world.put("c1", email="old@example.com", first_name="Ana")
    await world.run("push", "pull")
    world.put("c1", email="new@example.com")
    await world.run("pull", "push")
    assert world.addresses() == ["new@example.com"]
    assert world.linked() == {"c1": hash_of("new@example.com")}
    assert list(world.customers) == ["c1"]
    await assert_settled(world)


async def test_the_link_follows_an_address_changed_there(world: World) -> None:
    world.put("c1", email="old@example.com", first_name="Ana")
    await world.run("push", "pull")
    world.change_theirs("old@example.com", email_address="new@example.com")
    await world.run("pull")
    assert {key: row["email"] for key, row in world.customers.items()} == {"c1": "new@example.com"}
    assert world.linked() == {"c1": hash_of("new@example.com")}
    await assert_settled(world)
    assert world.addresses() == ["new@example.com"]


async def test_a_link_of_before_learns_what_stays_with_the_next_pull(world: World) -> None:
    world.put("c1", email="old@example.com", first_name="Ana")
    await world.run("push")
    del world.state.links["member.lasting_id", "c1"]
    world.state.local_ids = {key: each for key, each in world.state.local_ids.items() if key[0] == "member"}
    await world.run("pull")
    world.change_theirs("old@example.com", email_address="new@example.com")
    await world.run("pull")
    assert {key: row["email"] for key, row in world.customers.items()} == {"c1": "new@example.com"}
    assert world.linked() == {"c1": hash_of("new@example.com")}


@pytest.mark.parametrize("fault", ["after:500", "after:disconnect"])
async def test_an_address_changed_here_whose_answer_is_lost_doubles_nothing(world: World, fault: str) -> None:
    world.put("c1", email="old@example.com", first_name="Ana")
    await world.run("push", "pull")
    world.put("c1", email="new@example.com")
    lost = {"match": "PATCH *", "fault": fault, "times": 1}  # done, and then there is nobody to ask
    world.post("faults", {"rules": [lost, {"match": "P*", "fault": "status:503"}]})
    (tally,) = await world.run("push")
    assert tally.failed == 1
    world.post("faults", {"rules": []})
    await world.run("pull", "push")
    assert world.addresses() == ["new@example.com"]
    assert world.linked() == {"c1": hash_of("new@example.com")}
    assert {key: row["email"] for key, row in world.customers.items()} == {"c1": "new@example.com"}
    await assert_settled(world)


async def test_an_address_that_moves_on_to_somebody_else_is_theirs(world: World) -> None:
    world.put("c1", email="desk@example.com", first_name="Ana")
    await world.run("push", "pull")
    world.put("c1", email="ana@example.com")
    await world.run("push")
    world.put("c2", email="desk@example.com", first_name="Bo")
    (tally,) = await world.run("push")
    assert (tally.created, tally.failed) == (1, 0)
    assert world.linked() == {"c1": hash_of("ana@example.com"), "c2": hash_of("desk@example.com")}
    await assert_settled(world)


# ---- two with one address ----------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_second_of_two_with_one_address_fails_and_is_told_of_the_first(
    world: World, at_once: bool
) -> None:
    world.put("c1", email="family@example.com", first_name="Ana")
    if not at_once:
        await world.run("push")
    world.put("c2", email="Family@Example.com", first_name="Bo")
    (tally,) = await world.run("push")
    assert [(each.record_id, each.retryable) for each in tally.failures] == [("c2", True)]
    assert "customer `c1`" in tally.failures[0].message
    assert [row["merge_fields"]["FNAME"] for row in world.members()] == ["Ana"]
    assert world.linked() == {"c1": hash_of("family@example.com")}

    world.put("c2", email="bo@example.com")
    (tally,) = await world.run("push")
    assert (tally.created, tally.failed) == (1, 0)
    assert world.state.failures == {}


async def test_an_address_changed_to_somebody_elses_fails(world: World) -> None:
    world.put("c1", email="ana@example.com", first_name="Ana")
    world.put("c2", email="bo@example.com", first_name="Bo")
    await world.run("push")
    world.put("c2", email="ana@example.com")
    (tally,) = await world.run("push")
    assert [each.record_id for each in tally.failures] == ["c2"]
    assert world.addresses() == ["ana@example.com", "bo@example.com"]


async def test_whose_first_owner_is_gone_from_the_platform_may_have_the_address(world: World) -> None:
    world.put("c1", email="desk@example.com", first_name="Ana")
    await world.run("push")
    del world.host.records["customer"]["c1"]
    world.put("c2", email="desk@example.com", first_name="Bo")
    (tally,) = await world.run("push")
    assert tally.failures == []
    assert [row["merge_fields"]["FNAME"] for row in world.members()] == ["Bo"]
    assert world.linked() == {"c2": hash_of("desk@example.com")}


# ---- whatever happens --------------------------------------------------------------------------------

words = (
    st.text(string.ascii_letters + "äéñøßłşж東京 &'\"-", min_size=1, max_size=30).map(str.strip).filter(bool)
)


@st.composite
def customers(draw: Callable[..., Any]) -> list[Record]:
    """A few customers; among two draws, some have changed their address."""
    return [
        {
            **BLANK,
            "id": f"cu-{number}",
            "first_name": draw(st.none() | words),
            "last_name": draw(st.none() | words),
            "email": draw(st.sampled_from([f"guest{number}@example.com", f"Guest.{number}@Example.com"])),
            "phone": draw(st.none() | st.integers(10**8, 10**9 - 1).map(lambda digits: f"+33{digits}")),
            "accepts_marketing": draw(st.booleans()),
        }
        for number in range(draw(st.integers(1, 5)))
    ]


def names_of(row: Record) -> tuple[str, str, str, str]:
    return (row["email"].lower(), row["first_name"] or "", row["last_name"] or "", row["phone"] or "")


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=customers(), second=customers())
async def test_push_pull_push_settles(first: list[Record], second: list[Record], sandbox: Sandbox) -> None:
    world = World(sandbox.mailchimp_url)
    consent: dict[str, bool] = {}
    everyone: dict[str, Record] = {}
    for draw in (first, second):
        for row in draw:
            world.host.put("customer", dict(row))
            everyone[row["id"]] = row
            consent.setdefault(row["id"], row["accepts_marketing"])
        tallies = await world.run("push", "pull")
        assert [each.failures for each in tallies] == [[], []]
        found = [
            (row["email_address"].lower(), *(row["merge_fields"][tag] for tag in ("FNAME", "LNAME", "PHONE")))
            for row in world.members()
        ]
        assert found == sorted(map(names_of, everyone.values()))
        await assert_settled(world)
    given_consent = {row["id"]: row["status"] == "subscribed" for row in world.members()}
    assert given_consent == {hash_of(row["email"]): consent[key] for key, row in everyone.items()}


@pytest.mark.parametrize("seed", [1, 2])
async def test_three_hundred_come_through_five_calls_in_a_hundred_that_fail(world: World, seed: int) -> None:
    async def until_done() -> None:
        for _ in range(20):
            try:
                tallies = await world.run("push", "pull")
            except ProviderError as error:
                if not error.retryable:
                    raise
                continue
            if not any(each.failed for each in tallies) and not world.state.pending:
                return
        raise AssertionError("it never came to an end")

    # New ones go together, a hundred changes one by one, and changes of all are a job.
    rules = [{"match": "* /3.0/*", "fault": fault, "rate": 0.05 / len(FAULTS)} for fault in FAULTS]
    names = dict[str, str]()
    for last_name, count in (("Ruiz", 300), ("Paz", 100), ("Vega", 300)):
        for number in range(count):
            names[email := f"guest{number:03}@venue-guests.org"] = last_name
            world.put(f"c{number:03}", email=email, last_name=last_name, accepts_marketing=True)
        world.post("faults", {"rules": rules, "seed": seed})
        await until_done()
        found = [(row["email_address"], row["merge_fields"]["LNAME"]) for row in world.members()]
        assert found == sorted(names.items())
    assert world.calls()["faults"] > 0
    world.post("faults", {"rules": []})
    assert len(world.customers) == 300
    assert world.linked() == {f"c{number:03}": hash_of(email) for number, email in enumerate(sorted(names))}
    await assert_settled(world)
