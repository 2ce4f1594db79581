"""One run of one mapping, with a scripted provider: what is announced, repeated, kept and left alone.

The invented provider keeps idempotency keys as real ones do: the first outcome of a key is replayed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from engine.batching import split
from engine.calls import Place
from engine.client import Books, ProviderClient, ReadBatch, ReadRecord, Write, WriteGroup, WriteResult
from engine.clock import SystemClock
from engine.errors import (
    AuthenticationError,
    ProviderError,
    RecordRejectedError,
    StaleCursorError,
    StoppedError,
    UnavailableError,
)
from engine.expressions import Path
from engine.fields import Field, FieldCatalog
from engine.manifest import (
    CallSpec,
    Connector,
    Entity,
    IdempotencyKey,
    ReadSpec,
    Resource,
    WriteManySpec,
)
from engine.mapping import Mapping as FieldMapping
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState
from engine.ports import Commit, Confirm, HostChange, Record
from engine.sync import Sync, Tally
from engine.writing import NO_BOOKS

ENTITY = Entity(
    name="customer",
    table="t.customers",
    query=None,
    key="id",
    venue="venue_id",
    changed_at="updated_at",
    fields=FieldCatalog({name: Field(name) for name in ("name", "email", "phone")}),
)
CALL = CallSpec("POST", "/customers")
RESOURCE = Resource(
    name="customer",
    id=Path.parse("id"),
    reference=Path.parse("ref"),
    fields=FieldCatalog({name: Field(name) for name in ("full_name", "mail", "tel", "ref")}),
    list=ReadSpec(CALL),
    get=ReadSpec(CALL),
    write_many=WriteManySpec(
        CALL, Place.parse("body"), at_most=2, idempotency_key=IdempotencyKey(Place.parse("header Key"))
    ),
)
FIELDS: dict[str, Any] = {
    "name": "full_name",
    "email": "mail",
    "phone": "tel",
    "id": {"path": "ref", "push": "{{ value }}"},
}


def mapping(**more: Any) -> FieldMapping:
    written = {
        "entity": "customer",
        "resource": "customer",
        "direction": "bidirectional",
        "fields": FIELDS,
        **more,
    }
    compiled, faults = compile_mapping(written, RESOURCE, ENTITY)
    assert compiled is not None, faults
    return compiled


@dataclass
class Provider:
    """A provider in memory behind the client's interface. `script` says what goes wrong, call by call."""

    connector: Connector
    records: dict[str, Record] = field(default_factory=dict)
    outcomes: dict[str, list[str]] = field(default_factory=dict)  # key to the ids it made
    feed: list[list[ReadRecord]] = field(default_factory=list)
    script: list[str] = field(default_factory=list)
    sent: list[WriteGroup] = field(default_factory=list)
    reads: list[tuple[datetime | None, Any]] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)  # by id
    malformed: str | None = None  # an id that it takes for none
    poison: str | None = None  # the local id of a record that it never gives an answer to
    reading: int = 0  # reads that were begun and neither ended nor closed
    stale: bool = False
    away: bool = False
    calls: int = 0

    async def check(self) -> None:
        self.calls += 1
        if self.away:
            raise UnavailableError("no answer")

    async def look_up(self, resource: str, ids: Sequence[str]) -> dict[str, ReadRecord]:
        self.calls += 1
        self.asked.append(list(ids))
        if self.malformed in ids:
            raise ProviderError("no such kind of id", status=400)
        return {each: row(self.records[each]) for each in ids if each in self.records}

    def plan(self, resource: str, writes: Sequence[Write]) -> list[WriteGroup]:
        return split(RESOURCE, writes)

    async def pages(
        self, resource: str, *, since: datetime | None = None, resume: Any = None
    ) -> AsyncIterator[ReadBatch]:
        self.reads.append((since, resume))
        if resume is not None and self.stale:
            raise StaleCursorError("the cursor is too old")
        start = resume["page"] if resume else 0
        pages = self.feed or [[row(record) for record in self.records.values()]]
        self.reading += 1
        try:
            for number in range(start, len(pages)):
                self.calls += 1
                more = number + 1 < len(pages)
                yield ReadBatch(pages[number], {"page": number + 1} if more else None)
        finally:
            self.reading -= 1

    async def send(self, group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        self.calls += 1
        self.sent.append(group)
        step = self.script.pop(0) if self.script else "ok"
        if step == "down" or self.poison in {write.local_id for write in group.writes}:
            return self.failing(group, UnavailableError("no answer"), answered=False)
        if step == "refused credentials":
            raise AuthenticationError("reconnect", status=401)
        if step == "key used":
            return self.failing(group, RecordRejectedError("the key was used for something else", status=400))
        if step == "500":
            return self.failing(group, UnavailableError("500", status=500))
        results = []
        for number, write in enumerate(group.writes):
            if step == "reject second" and number == 1:
                error = RecordRejectedError("mail: not an address", status=400, field="mail")
                results.append(WriteResult(write, error=error))
                continue
            results.append(self.write(group, write, number))
        if step == "done, then lost":
            return self.failing(group, UnavailableError("no answer"), answered=False)
        if step == "done, then 500":
            return self.failing(group, UnavailableError("500", status=500))
        return results

    def write(self, group: WriteGroup, write: Write, number: int) -> WriteResult:
        if write.remote_id is None:
            made = self.outcomes.setdefault(group.key, [])
            if number >= len(made):
                made.append(f"c{len(self.records) + 1}")
                self.records[made[number]] = {"id": made[number], **write.body}
            remote_id = made[number]
        else:
            remote_id = write.remote_id
            self.records[remote_id] = {**self.records[remote_id], **write.body}
        return WriteResult(write, remote_id, record=dict(self.records[remote_id]))

    @staticmethod
    def failing(group: WriteGroup, error: ProviderError, *, answered: bool = True) -> list[WriteResult]:
        return [WriteResult(write, error=error, retryable=True, answered=answered) for write in group.writes]


def row(record: Record, changed_at: str | None = None, deleted: bool = False) -> ReadRecord:
    return ReadRecord(record, record["id"], changed_at, deleted, None)


class World:
    """A provider, a platform and the hub's memory of both."""

    def __init__(self, *names: str, feed: bool = False, **mapping_options: Any) -> None:
        self.connector = Connector(
            name="juniper",
            title="Juniper",
            docs="",
            servers={},
            auth=(),
            check=CALL,
            resources={"customer": replace(RESOURCE, changes=ReadSpec(CALL)) if feed else RESOURCE},
        )
        self.provider = Provider(self.connector)
        self.host = MemoryHost({"id": "v1", "name": "Venue", "currency": "EUR"})
        self.state = MemorySyncState()
        self.mapping = mapping(**mapping_options)
        self.stop = False
        for name in names:
            self.put(name)

    def put(self, record_id: str, **values: Any) -> None:
        name, email = record_id.title(), f"{record_id}@example.com"
        blank = {"id": record_id, "name": name, "email": email, "phone": None}
        self.host.put("customer", {**blank, **values})

    def build(self) -> Sync:
        return Sync(
            self.connector,
            self.mapping,
            cast(ProviderClient, self.provider),
            self.host,
            self.state,
            venue=self.host.venue_record,
            clock=SystemClock(),
            fields=ENTITY.fields,
            stop=lambda: self.stop,
        )

    async def push(self, ids: Sequence[str] | None = None) -> Tally:
        return await self.build().push(ids)

    async def pull(self, ids: Sequence[str] | None = None) -> Tally:
        return await self.build().pull(ids)

    def held(self) -> list[str]:
        return sorted(record["full_name"] for record in self.provider.records.values())


def counts(tally: Tally) -> tuple[int, int, int, int]:
    return tally.created, tally.updated, tally.unchanged, tally.failed


async def test_a_push_creates_then_leaves_alone_then_updates_what_changed() -> None:
    world = World("ada", "bob", "cyd")
    assert counts(await world.push()) == (3, 0, 0, 0)
    assert world.held() == ["Ada", "Bob", "Cyd"]
    sent = len(world.provider.sent)
    assert counts(await world.push()) == (0, 0, 0, 0)
    world.put("bob", phone="7")
    world.put("cyd")  # touched, not changed
    assert counts(await world.push()) == (0, 1, 1, 0)
    assert len(world.provider.sent) == sent + 1
    assert world.provider.records["c2"]["tel"] == "7"


async def test_only_mapped_fields_leave() -> None:
    world = World()
    world.put("ada", secret="x")
    await world.push()
    assert set(world.provider.records["c1"]) == {"id", "full_name", "mail", "tel", "ref"}


async def test_a_rejected_record_is_that_records_failure() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.script = ["reject second"]
    tally = await world.push()
    assert counts(tally) == (2, 0, 0, 1)
    (failure,) = world.state.failures.values()
    assert (failure.record_id, failure.field, failure.retryable) == ("bob", "mail", False)
    assert world.state.pending == {}
    world.put("bob", email="bob@example.org")
    assert counts(await world.push()) == (1, 0, 0, 0)
    assert world.state.failures == {}


@pytest.mark.parametrize(
    "now", [{"email": "bob@example.com"}, {"email": "bob@", "phone": "not to be sent"}], ids=str
)
async def test_a_failure_is_over_when_there_is_nothing_left_to_write(now: Mapping[str, Any]) -> None:
    world = World("ada", "bob", only_when="phone != 'not to be sent'")
    await world.push()
    world.put("ada", phone="1")
    world.put("bob", email="bob@")
    world.provider.script = ["reject second"]
    assert counts(await world.push()) == (0, 1, 0, 1)
    world.put("bob", **now)
    assert counts(await world.push())[3] == 0
    assert world.state.failures == {}


@pytest.mark.parametrize("lost", ["done, then lost", "down"])
async def test_an_unanswered_call_is_repeated_word_for_word(lost: str) -> None:
    """Even when the record has changed meanwhile: a new body under a new key would make a twin."""
    world = World("ada", "bob", "cyd")
    world.provider.script = ["ok", lost]
    await world.push()
    unanswered = world.provider.sent[1]
    world.put("cyd", name="Cydney")
    tally = await world.push()
    assert world.provider.sent[2].key == unanswered.key
    assert [write.body for write in world.provider.sent[2].writes] == [
        write.body for write in unanswered.writes
    ]
    assert world.held() == ["Ada", "Bob", "Cydney"]
    assert counts(tally) == (1, 1, 0, 0)
    assert world.state.pending == {}
    assert world.state.failures == {}


async def test_a_value_that_comes_back_is_written_under_a_new_key() -> None:
    """Under the key it was first written with, a provider would take it for a repetition and do nothing."""
    world = World("ada")
    for phone in (None, "1", "2", "1", "2"):
        world.put("ada", phone=phone)
        await world.push()
    assert world.provider.records["c1"]["tel"] == "2"
    assert len({group.key for group in world.provider.sent}) == 5


async def test_what_they_overwrote_is_put_back_under_a_new_key() -> None:
    world = World("ada", when_both_changed="platform_wins")
    world.put("ada", phone="1")
    await world.push()
    world.put("ada", phone="2")
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"]["tel"] = "3"
    await world.pull()
    world.put("ada", phone="2")
    await world.push()
    assert world.provider.records["c1"]["tel"] == "2"
    assert len({group.key for group in world.provider.sent}) == 3


ONE_WAY = {**FIELDS, "phone": {"path": "tel", "push": "{{ value }}"}}


async def test_a_value_that_only_goes_there_is_sent_though_theirs_changed_too() -> None:
    """A pull has nothing to compare it with: that all it compares is theirs doesn't mean that all is."""
    world = World("ada", fields=ONE_WAY)
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"]["full_name"] = "Augusta"
    await world.pull()
    assert counts(await world.push()) == (0, 1, 0, 0)
    theirs = world.provider.records["c1"]
    assert (theirs["full_name"], theirs["tel"]) == ("Augusta", "1")
    await world.pull()
    world.put("ada", name="Augusta", phone="1")
    assert counts(await world.push()) == (0, 0, 1, 0)


async def test_what_has_to_be_written_still_has_to_after_another_change_of_theirs() -> None:
    world = World("ada", when_both_changed="platform_wins")
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"]["tel"] = "2"
    await world.pull()  # ours wins, and no push follows: the run was cut off
    world.provider.records["c1"]["full_name"] = "Augusta"
    await world.pull()
    await world.push()
    theirs = world.provider.records["c1"]
    assert (theirs["full_name"], theirs["tel"]) == ("Augusta", "1")


async def test_a_pair_just_found_gets_what_theirs_has_nothing_of() -> None:
    world = World("ada", match_on="email", fields=ONE_WAY)
    world.put("ada", phone="1")
    world.provider.records["c1"] = {"id": "c1", "mail": "ada@example.com", "full_name": "Ada"}
    await world.pull()
    assert counts(await world.push()) == (0, 1, 0, 0)
    theirs = world.provider.records["c1"]
    assert (theirs["tel"], theirs["ref"]) == ("1", "ada")
    await world.pull()
    world.put("ada", phone="1")
    assert counts(await world.push()) == (0, 0, 1, 0)


async def test_a_failure_that_was_answered_is_tried_again_under_a_new_key() -> None:
    """A provider may replay a stored 500 for its key as long as the key lives."""
    world = World("ada", "bob", "cyd")
    world.provider.script = ["ok", "500"]
    await world.push()
    await world.push()
    assert world.provider.sent[2].key != world.provider.sent[1].key
    assert world.held() == ["Ada", "Bob", "Cyd"]


async def test_what_was_made_although_the_answer_was_500_is_found_not_made_again() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.script = ["ok", "done, then 500"]
    await world.push()
    assert world.held() == ["Ada", "Bob", "Cyd"]
    tally = await world.push()
    assert world.held() == ["Ada", "Bob", "Cyd"]
    assert tally.created == 1
    (write,) = world.provider.sent[-1].writes
    assert (write.remote_id, write.adopted) == ("c3", True)
    assert world.state.links[("customer", "cyd")].remote_id == "c3"
    assert world.state.pending == {}


async def test_a_key_that_is_used_up_costs_only_its_records_and_is_not_sent_again() -> None:
    world = World("ana", "bo", "cleo")
    world.provider.script = ["key used"]
    tally = await world.push()
    assert counts(tally) == (1, 0, 0, 2)  # two records a call
    assert {failure.retryable for failure in world.state.failures.values()} == {True}
    first = world.provider.sent[0]

    world.provider.records["c9"] = {"id": "c9", "full_name": "Ana", "ref": "ana"}  # made under that key
    assert counts(await world.push()) == (2, 0, 0, 0)
    assert first.key not in {group.key for group in world.provider.sent[1:]}
    assert world.held() == ["Ana", "Bo", "Cleo"]
    assert (world.state.failures, world.state.pending) == ({}, {})


async def test_a_run_whose_every_key_is_used_up_comes_to_its_end() -> None:
    world = World("ana", "bo", "cleo")
    world.provider.script = ["key used", "key used"]
    assert counts(await world.push()) == (0, 0, 0, 3)


async def test_a_failing_call_is_given_up_after_five_runs_and_stays_visible() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.script = ["ok"] + ["500"] * 5
    await world.push()
    for _ in range(4):
        await world.push()
    assert world.state.pending == {}
    assert [failure.record_id for failure in world.state.failures.values()] == ["cyd"]


async def test_nothing_getting_through_ends_the_run_and_keeps_the_position() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.script = ["down", "down"]
    world.provider.away = True
    with pytest.raises(UnavailableError):
        await world.push()
    assert world.state.positions == {}
    world.provider.away = False
    assert counts(await world.push()) == (3, 0, 3, 0)
    assert world.held() == ["Ada", "Bob", "Cyd"]


async def test_a_provider_that_answers_but_takes_no_writes_ends_the_run() -> None:
    world = World(*(f"n{number:03}" for number in range(300)))
    world.provider.script = ["down"] * 300
    with pytest.raises(UnavailableError):
        await world.push()
    assert len(world.provider.sent) == 50
    with pytest.raises(UnavailableError):
        await world.push()
    assert len(world.provider.sent) == 150  # those again, and as many new ones


async def test_a_record_the_provider_never_answers_to_holds_up_no_other() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.poison = "cyd"
    await world.push()
    world.put("dee")
    world.put("eve")
    await world.push()
    assert world.held() == ["Ada", "Bob", "Dee", "Eve"]
    assert [failure.record_id for failure in world.state.failures.values()] == ["cyd"]
    world.provider.poison = None
    await world.push()
    assert world.held() == ["Ada", "Bob", "Cyd", "Dee", "Eve"]


async def test_a_record_whose_call_is_open_is_not_written_by_another_call() -> None:
    """The open call may have made it: another key would make a twin, and the old body would come last."""
    world = World("ada", "bob", "cyd")
    world.provider.script = ["done, then lost", "ok"]
    await world.push()
    world.provider.script = ["down", "down"]
    world.put("bob", name="Bobby")  # now its page would group it otherwise than the open call
    await world.push(["bob"])
    await world.push(["bob"])
    assert world.held() == ["Ada", "Bob", "Cyd"]
    await world.push(["bob"])
    assert world.held() == ["Ada", "Bobby", "Cyd"]
    assert world.state.failures == {}


async def test_an_open_update_does_not_undo_a_later_one() -> None:
    world = World("ada", "bob", "cyd")
    await world.push()
    for name in ("ada", "bob", "cyd"):
        world.put(name, phone="1")
    world.provider.script = ["down", "ok"]
    await world.push()
    world.put("ada", phone="2")
    world.provider.script = ["down", "ok"]
    await world.push()
    await world.push(["ada"])  # a worker pushes what failed again by itself
    await world.push()
    assert world.provider.records["c1"]["tel"] == "2"


@pytest.mark.parametrize("adopted", [False, True])
async def test_what_was_made_is_linked_though_a_call_that_belongs_to_it_was_refused(adopted: bool) -> None:
    world = World("ada")
    if adopted:
        world.provider.script = ["done, then 500"]
    await world.push()

    async def send(group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        (write,) = group.writes
        refused = RecordRejectedError("the default can't be set", status=400)
        return [WriteResult(write, "c1" if adopted else "c9", error=refused)]

    world.provider.send = send  # type: ignore[method-assign]  # what a replaced record gives
    world.put("ada", phone="2")
    await world.push()
    link = world.state.links[("customer", "ada")]
    assert (link.remote_id, link.fingerprint) == ("c1" if adopted else "c9", None)  # so it is pushed again
    assert len(world.state.failures) == 1


async def test_a_replacement_whose_follow_up_failed_is_not_made_under_another_key() -> None:
    world = World("ada")
    await world.push()

    async def send(group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        (write,) = group.writes
        return [WriteResult(write, "c9", error=UnavailableError("500", status=500), retryable=True)]

    world.provider.send = send  # type: ignore[method-assign]  # what a replaced record gives
    world.put("ada", phone="2")
    await world.push()
    (announced,) = world.state.pending
    await world.push()
    assert list(world.state.pending) == [announced]


async def test_refused_credentials_end_the_run_and_lose_nothing() -> None:
    world = World("ada", "bob", "cyd")
    world.provider.script = ["ok", "refused credentials"]
    with pytest.raises(AuthenticationError):
        await world.push()
    assert set(world.state.links) == {("customer", "ada"), ("customer", "bob")}
    await world.push()
    assert world.held() == ["Ada", "Bob", "Cyd"]


async def test_a_crash_between_answer_and_commit_makes_no_twin() -> None:
    class Dying(MemorySyncState):
        async def commit(self, commit: Commit) -> None:
            raise KeyboardInterrupt

    world = World("ada", "bob", "cyd")
    remembered = world.state
    dying = Dying(pending=remembered.pending)
    world.state = dying
    with pytest.raises(KeyboardInterrupt):
        await world.push()
    assert len(world.provider.records) == 3
    world.state = MemorySyncState(pending=dict(dying.pending))
    await world.push()
    assert world.held() == ["Ada", "Bob", "Cyd"]
    assert len(world.state.links) == 3


async def test_only_some_records_can_be_pushed() -> None:
    world = World("ada", "bob", "cyd")
    assert counts(await world.push(["bob", "nobody"])) == (1, 0, 0, 0)
    assert world.held() == ["Bob"]
    assert world.state.positions == {}


async def test_a_pull_creates_updates_and_recognises_an_echo() -> None:
    world = World()
    world.provider.records = {"c1": {"id": "c1", "full_name": "Ada", "mail": "a@example.com", "tel": None}}
    assert counts(await world.pull()) == (1, 0, 0, 0)
    (local,) = world.host.records["customer"].values()
    assert (local["name"], local["email"]) == ("Ada", "a@example.com")
    assert counts(await world.pull()) == (0, 0, 1, 0)
    assert counts(await world.push()) == (0, 0, 1, 0)
    world.provider.records["c1"]["tel"] = "7"
    assert counts(await world.pull()) == (0, 1, 0, 0)
    assert next(iter(world.host.records["customer"].values()))["phone"] == "7"
    assert counts(await world.push()) == (0, 0, 1, 0)


async def test_the_same_page_twice_makes_one_record() -> None:
    world = World()
    world.provider.records = {"c1": {"id": "c1", "full_name": "Ada", "mail": None, "tel": None}}
    await world.pull()
    world.state = MemorySyncState()  # the page was written to the platform, the hub's own save was lost
    await world.pull()
    assert len(world.host.records["customer"]) == 1


async def test_a_match_pairs_and_each_side_fills_the_others_gaps() -> None:
    world = World(match_on="email")
    world.put("ada", phone=None)
    theirs = {"id": "c1", "full_name": None, "mail": "ADA@example.com", "tel": "7"}
    world.provider.records = {"c1": theirs}
    await world.pull()
    assert world.host.records["customer"]["ada"]["phone"] == "7"
    await world.push()
    assert len(world.provider.records) == 1
    assert world.provider.records["c1"]["full_name"] == "Ada"


async def test_no_match_where_two_could_be_meant() -> None:
    world = World(match_on="email")
    world.put("ada", email="same@example.com")
    world.put("bob", email="same@example.com")
    world.provider.records = {"c1": {"id": "c1", "full_name": "X", "mail": "same@example.com", "tel": None}}
    await world.pull()
    assert len(world.host.records["customer"]) == 3


async def test_their_record_that_carries_our_id_is_ours() -> None:
    world = World("ada")
    world.provider.records = {"c1": {"id": "c1", "full_name": "Ada", "mail": None, "tel": None, "ref": "ada"}}
    await world.pull()
    assert world.state.links[("customer", "ada")].remote_id == "c1"
    assert len(world.host.records["customer"]) == 1


async def test_a_feed_that_is_newest_first_leaves_the_newest_state() -> None:
    world = World()
    states = [("09:03", "third"), ("09:02", "second"), ("09:01", "first")]
    world.provider.feed = [
        [row({"id": "c1", "full_name": name, "mail": None, "tel": None}, f"2025-06-01T{at}:00Z")]
        for at, name in states
    ]
    await world.pull()
    (local,) = world.host.records["customer"].values()
    assert local["name"] == "third"


async def test_a_deleted_record_loses_its_link_and_ours_stays() -> None:
    world = World()
    world.provider.records = {"c1": {"id": "c1", "full_name": "Ada", "mail": None, "tel": None}}
    await world.pull()
    world.provider.feed = [[row({"id": "c1"}, deleted=True)]]
    await world.pull()
    assert world.state.links == {}
    assert len(world.host.records["customer"]) == 1


@pytest.mark.parametrize("stops", [False, True])
async def test_an_older_state_of_a_deleted_record_does_not_bring_it_back(stops: bool) -> None:
    """A feed tells the newest first, so what a record was before its deletion comes on a later page."""
    world = World(feed=True)
    was = {"id": "c1", "full_name": "Ada", "mail": None, "tel": None}
    world.provider.feed = [
        [row({"id": "c1"}, "2025-06-01T09:03:00Z", deleted=True)],
        [row(was, "2025-06-01T09:02:00Z")],
        [row(was, "2025-06-01T09:01:00Z")],
    ]
    sync = world.build()
    if stops:
        sync.on_progress = lambda tally: setattr(world, "stop", True)
        with pytest.raises(StoppedError):
            await sync.pull()
        world.stop = False
    await world.pull()
    assert world.host.records.get("customer", {}) == {}
    assert world.state.links == {}


async def test_a_deletion_older_than_what_is_known_of_a_record_is_nothing() -> None:
    world = World()
    now = {"id": "c1", "full_name": "Ada", "mail": None, "tel": None}
    world.provider.feed = [
        [row(now, "2025-06-01T09:03:00Z")],
        [row({"id": "c1"}, "2025-06-01T09:02:00Z", deleted=True)],
    ]
    await world.pull()
    assert [link.remote_id for link in world.state.links.values()] == ["c1"]


def three_pages() -> list[list[ReadRecord]]:
    return [
        [row({"id": f"c{number}", "full_name": f"n{number}", "mail": None, "tel": None})]
        for number in range(3)
    ]


async def test_a_pull_that_stopped_goes_on_after_its_last_saved_page() -> None:
    world = World()
    world.provider.feed = three_pages()
    sync = world.build()
    sync.on_progress = lambda tally: setattr(world, "stop", True)
    with pytest.raises(StoppedError):
        await sync.pull()
    assert len(world.host.records["customer"]) == 1
    world.stop = False
    tally = await world.pull()
    assert tally.read == 2
    assert world.provider.reads == [(None, None), (None, {"page": 1})]
    assert len(world.host.records["customer"]) == 3


async def test_a_pull_that_is_left_early_leaves_no_read_open() -> None:
    world = World()
    world.provider.feed = three_pages()
    world.stop = True
    with pytest.raises(StoppedError):
        await world.pull()
    assert world.provider.reading == 0


async def test_a_stale_cursor_begins_the_walk_again_from_the_watermark() -> None:
    world = World()
    since = "2025-06-01T00:00:00+00:00"
    walk = {"started": "2025-06-02T00:00:00+00:00", "resume": {"page": 2}}
    world.state.positions[("customer", "customer", "pull")] = {"since": since, "walk": walk}
    world.provider.feed = three_pages()
    world.provider.stale = True
    assert (await world.pull()).read == 3
    assert world.provider.reads[-1] == (datetime(2025, 6, 1, tzinfo=UTC), None)


async def test_the_watermark_moves_to_the_walks_start_and_only_at_its_end() -> None:
    world = World()
    world.provider.feed = three_pages()
    seen: list[Mapping[str, Any]] = []
    sync = world.build()
    sync.on_progress = lambda tally: seen.append(world.state.positions[("customer", "customer", "pull")])
    before = datetime.now(UTC)
    await sync.pull()
    assert ["since" in position for position in seen] == [False, False, True]
    moved = datetime.fromisoformat(seen[-1]["since"])
    assert before <= moved <= before + timedelta(seconds=10)
    assert seen[0]["walk"]["started"] == seen[-1]["since"]


class Picky(MemoryHost):
    """A platform that refuses some names, until it doesn't."""

    def __init__(self, world: World, *names: str) -> None:
        super().__init__(world.host.venue_record)
        self.names = names

    async def upsert(
        self, entity: str, changes: Sequence[HostChange], confirm: Confirm | None = None
    ) -> dict[str, str]:
        good = [change for change in changes if change.values["name"] not in self.names]
        await super().upsert(entity, good, confirm)
        return {change.local_id: "name: not that one" for change in changes if change not in good}


async def test_a_record_the_platform_refuses_is_kept_as_a_failure() -> None:
    world = World()
    world.host = Picky(world, "n1")
    world.provider.feed = [[page[0] for page in three_pages()]]
    tally = await world.pull()
    assert counts(tally) == (2, 0, 0, 1)
    (failure,) = world.state.failures.values()
    assert (failure.record_id, failure.direction, failure.message) == ("c1", "pull", "name: not that one")
    assert failure.retryable  # the watermark is past it, so nothing else would bring it
    assert ("customer", "c1") not in {(link.resource, link.remote_id) for link in world.state.links.values()}


async def test_what_could_not_be_pulled_is_asked_for_by_id_and_leaves_the_watermark() -> None:
    world = World()
    world.host = picky = Picky(world, "One", "Two")
    world.provider.records = {
        key: {"id": key, "full_name": name, "mail": f"{key}@x"}
        for key, name in (("c1", "One"), ("c2", "Two"))
    }
    await world.pull()
    watermark = dict(world.state.positions)
    assert len(world.state.failures) == 2

    picky.names = ("Two",)
    assert counts(await world.pull(["c1", "c2"])) == (1, 0, 0, 1)
    assert [key[-1] for key in world.state.failures] == ["c2"]
    assert [record["name"] for record in picky.records["customer"].values()] == ["One"]

    del world.provider.records["c2"]  # what isn't there any more is nobody's trouble
    assert counts(await world.pull(["c2"])) == (0, 0, 0, 0)
    assert world.state.failures == {}
    assert world.provider.asked == [["c1", "c2"], ["c2"]]
    assert world.state.positions == watermark


async def test_an_id_the_provider_does_not_take_is_only_its_own_trouble() -> None:
    world = World()
    world.provider.records = {"c1": {"id": "c1", "full_name": "One", "mail": "c1@x"}}
    world.provider.malformed = "?"
    assert counts(await world.pull(["c1", "?"])) == (1, 0, 0, 1)
    (failure,) = world.state.failures.values()
    assert (failure.record_id, failure.retryable) == ("?", False)


async def test_a_record_not_wanted_any_more_is_no_failure_any_more() -> None:
    world = World(only_pull_when="mail")
    world.host = Picky(world, "One")
    world.provider.records = {"c1": {"id": "c1", "full_name": "One", "mail": "c1@x"}}
    await world.pull()
    assert len(world.state.failures) == 1
    world.provider.records["c1"]["mail"] = ""
    tally = await world.pull(["c1"])
    assert (tally.skipped, tally.failed) == (1, 0)
    assert world.state.failures == {}
