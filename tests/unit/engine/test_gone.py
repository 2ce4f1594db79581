"""Records gone on one side: when they are believed gone, what becomes of the other side's, and the brake.

The invented provider keeps an archived record, out of use; a deleted one is no more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching import split
from engine.client import Books, ProviderClient, ReadBatch, ReadRecord, Write, WriteGroup, WriteResult
from engine.clock import SystemClock
from engine.errors import HubError, RecordRejectedError, StaleCursorError, StoppedError, UnavailableError
from engine.expressions import Expression, Path
from engine.fields import Field, FieldCatalog
from engine.gone import Seen, allowed
from engine.manifest import ArchiveSpec, CallSpec, Connector, Entity, ReadSpec, Resource, WriteSpec
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState
from engine.ports import Record
from engine.sync import Sync, Tally

ENTITY = Entity(
    name="event",
    table="t.events",
    query=None,
    key="id",
    venue="venue_id",
    changed_at="updated_at",
    fields=FieldCatalog({name: Field(name) for name in ("name", "status", "erased")}),
    deleted=Expression.compile("erased", names=frozenset({"record"})),
)
CALL = CallSpec("POST", "/items")
RESOURCE = Resource(
    name="item",
    id=Path.parse("id"),
    reference=Path.parse("ref"),
    fields=FieldCatalog({name: Field(name) for name in ("title", "ref")}),
    list=ReadSpec(CALL),
    get=ReadSpec(CALL),
    create=WriteSpec(CALL, record=cast(Any, None)),
    update=WriteSpec(CALL, record=cast(Any, None)),
    archive=ArchiveSpec(CALL),
)


@dataclass
class Provider:
    """A provider in memory behind the client's interface."""

    connector: Connector
    records: dict[str, Record] = field(default_factory=dict)
    archived: set[str] = field(default_factory=set)
    feed: list[ReadRecord] = field(default_factory=list)  # what changed, when it is asked for that
    hidden: set[str] = field(default_factory=set)  # there, and in no list
    refuses: dict[str, HubError] = field(default_factory=dict)  # what archiving and deleting these raises
    keys: list[str] = field(default_factory=list)  # of archivings
    asked: list[str] = field(default_factory=list)  # by id
    page_size: int = 100
    stops_after: int | None = None  # pages until the read fails
    error: HubError = field(default_factory=lambda: UnavailableError("no answer"))
    calls: int = 0

    async def check(self) -> None:
        self.calls += 1

    def plan(self, resource: str, writes: Sequence[Write]) -> list[WriteGroup]:
        return split(RESOURCE, writes)

    async def pages(
        self, resource: str, *, since: datetime | None = None, resume: Any = None
    ) -> AsyncIterator[ReadBatch]:
        all_rows = [row(record) for record in self.records.values() if record["id"] not in self.hidden]
        rows = all_rows if since is None else self.feed
        starts = list(range(0, len(rows), self.page_size)) or [0]
        for number, start in enumerate(starts):
            if resume is not None and number < resume["page"]:
                continue
            if number == self.stops_after:
                self.stops_after = None
                raise self.error
            more = {"page": number + 1} if number + 1 < len(starts) else None
            yield ReadBatch(rows[start : start + self.page_size], more, since is None and resume is None)

    async def get(self, resource: str, record_id: str) -> Record | None:
        self.asked.append(record_id)
        return self.records.get(record_id)

    async def look_up(self, resource: str, ids: Sequence[str]) -> dict[str, ReadRecord]:
        return {each: row(self.records[each]) for each in ids if each in self.records}

    async def send(self, group: WriteGroup, books: Books) -> list[WriteResult]:
        self.calls += 1
        results = []
        for write in group.writes:
            if write.only_existing and write.remote_id not in self.records:
                gone = RecordRejectedError("there is no such item", status=404)
                results.append(WriteResult(write, write.remote_id, error=gone))
                continue
            remote_id = write.remote_id or f"r{len(self.records) + 1}"
            self.records[remote_id] = {"id": remote_id, **write.body}
            self.archived.discard(remote_id)
            results.append(WriteResult(write, remote_id, record=dict(self.records[remote_id])))
        return results

    async def archive(self, resource: str, record_id: str, key: str) -> None:
        self.calls += 1
        if record_id in self.refuses:
            raise self.refuses[record_id]
        self.keys.append(key)
        if record_id in self.records:
            self.archived.add(record_id)

    async def delete(self, resource: str, record_id: str) -> None:
        self.calls += 1
        if record_id in self.refuses:
            raise self.refuses[record_id]
        self.records.pop(record_id, None)


def row(record: Record, changed_at: str | None = None, deleted: bool = False) -> ReadRecord:
    return ReadRecord(record, record["id"], changed_at, deleted, None)


class World:
    """A provider, a platform and the hub's memory of both, with `count` events on both sides.

    Event `e1` is item `r1`.
    """

    def __init__(self, count: int = 0, **options: Any) -> None:
        written = {
            "entity": "event",
            "resource": "item",
            "direction": "bidirectional",
            "only_when": "status == 'on sale'",
            "fields": {"name": "title", "id": {"path": "ref", "push": "{{ value }}"}},
            **options,
        }
        compiled, faults = compile_mapping(written, RESOURCE, ENTITY)
        assert compiled is not None, faults
        self.mapping = compiled
        self.connector = Connector("juniper", "Juniper", "", {}, (), CALL, {"item": RESOURCE})
        self.provider = Provider(self.connector)
        self.host = MemoryHost({"id": "v1", "name": "Venue", "currency": "EUR"})
        self.state = MemorySyncState()
        self.stop = False
        for number in range(1, count + 1):
            self.put(f"e{number}")

    def put(self, record_id: str, **values: Any) -> None:
        record = {"id": record_id, "name": record_id.upper(), "status": "on sale", "erased": None}
        self.host.put("event", {**record, **values})

    def remove(self, *record_ids: str) -> None:
        for record_id in record_ids:
            del self.host.records["event"][record_id]

    def build(self, **options: Any) -> Sync:
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
            **options,
        )

    async def push(self, **options: bool) -> Tally:
        return await self.build(**options).push()

    async def pull(self, **options: bool) -> Tally:
        return await self.build(**options).pull()

    def states(self) -> dict[str, str]:
        return {link.local_id: link.state for link in self.state.links.values()}


async def in_step(count: int, **options: Any) -> World:
    """A world whose two sides have been synced."""
    world = World(count, **options)
    await world.push()
    await world.pull()
    return world


# ---- ours is gone ------------------------------------------------------------------------------------


async def test_by_default_theirs_stays_whatever_happens_to_ours() -> None:
    world = await in_step(3)
    world.put("e1", erased="yes")
    world.put("e2", status="past")
    world.remove("e3")
    tally = await world.push(complete=True)
    assert (tally.archived, tally.deleted, tally.skipped) == (0, 0, 2)
    assert (set(world.provider.records), world.provider.archived) == ({"r1", "r2", "r3"}, set())


async def test_what_the_platform_marks_as_deleted_is_archived_once() -> None:
    world = await in_step(3, when_ours_is_gone="archive")
    world.put("e2", erased="yes")
    tally = await world.push()
    assert (tally.archived, tally.failed, world.provider.archived) == (1, 0, {"r2"})
    calls = world.provider.calls
    world.put("e2", erased="yes", name="touched")
    assert (await world.push()).archived == 0
    assert world.provider.calls == calls


async def test_what_is_marked_as_deleted_and_was_never_there_is_left_alone() -> None:
    world = World(when_ours_is_gone="archive")
    world.put("e1", erased="yes")
    tally = await world.push()
    assert (tally.skipped, world.provider.calls) == (1, 0)


async def test_what_vanished_is_found_by_a_complete_run_only() -> None:
    world = await in_step(3, when_ours_is_gone="archive")
    world.remove("e2")
    assert (await world.push()).archived == 0
    assert (await world.push(complete=True)).archived == 1
    assert world.provider.archived == {"r2"}


async def test_deleting_ends_the_link_too() -> None:
    world = await in_step(2, when_ours_is_gone="delete")
    world.remove("e1")
    tally = await world.push(complete=True)
    assert (tally.deleted, tally.archived) == (1, 0)
    assert (set(world.provider.records), world.states()) == ({"r2"}, {"e2": "linked"})


async def test_what_is_not_wanted_any_more_has_a_rule_of_its_own() -> None:
    world = await in_step(3, when_no_longer_wanted="archive")
    world.put("e1", status="past")
    world.put("e2", erased="yes")
    tally = await world.push()
    assert (tally.archived, world.provider.archived) == (1, {"r1"})


async def test_what_was_never_wanted_stays() -> None:
    """A record that came from the provider, and that a push would never have sent."""
    world = World(when_no_longer_wanted="archive")
    world.provider.records["r1"] = {"id": "r1", "title": "Theirs", "ref": None}
    await world.pull()
    (local_id,) = world.host.records["event"]
    world.put(local_id, status="draft")
    assert (await world.push(complete=True)).archived == 0
    assert world.states() == {local_id: "linked"}


async def test_ours_that_comes_back_brings_theirs_back() -> None:
    world = await in_step(2, when_no_longer_wanted="archive")
    for _ in range(2):
        world.put("e1", status="past")
        await world.push()
        assert world.provider.archived == {"r1"}
        world.put("e1")
        tally = await world.push()
        assert (tally.updated, tally.created, world.provider.archived) == (1, 0, set())
        assert world.states()["e1"] == "linked"
    assert len(set(world.provider.keys)) == 2  # under one key the provider would take it for a repetition


async def test_what_was_archived_does_not_come_back_as_a_record_of_ours() -> None:
    world = await in_step(2, when_ours_is_gone="archive")
    world.remove("e1")
    await world.push(complete=True)
    world.provider.records["r1"]["title"] = "Renamed there"
    tally = await world.pull(complete=True)
    assert (tally.created, tally.updated) == (0, 0)
    assert set(world.host.records["event"]) == {"e2"}


async def test_a_change_of_theirs_does_not_bring_back_what_was_deleted_here() -> None:
    """The pull comes before the push, which is what finds ours gone."""
    world = await in_step(2, when_ours_is_gone="archive")
    world.remove("e1")
    world.put("e2", erased="yes")
    for remote_id in ("r1", "r2"):
        world.provider.records[remote_id]["title"] = "Renamed there"
    world.provider.feed = [row(record) for record in world.provider.records.values()]
    tally = await world.pull()
    assert (tally.created, tally.updated, tally.skipped) == (0, 0, 2)
    assert (await world.push()).archived == 2


async def test_a_refusal_is_that_records_failure_and_is_tried_again() -> None:
    world = await in_step(3, when_ours_is_gone="archive")
    world.provider.refuses["r1"] = RecordRejectedError("it is in use", status=400)
    world.remove("e1", "e2")
    tally = await world.push(complete=True)
    assert (tally.archived, tally.failed, world.provider.archived) == (1, 1, {"r2"})
    (failure,) = world.state.failures.values()
    assert (failure.record_id, failure.direction, failure.retryable) == ("e1", "push", False)
    del world.provider.refuses["r1"]
    assert (await world.push()).archived == 1
    assert (world.provider.archived, world.state.failures) == ({"r1", "r2"}, {})


async def test_a_refusal_that_never_ends_is_tried_ten_times_and_then_only_told() -> None:
    world = await in_step(3, when_ours_is_gone="archive")
    world.put("e1", erased="yes")
    world.provider.refuses["r1"] = RecordRejectedError("it has open orders", status=400)
    for _ in range(10):
        assert (await world.push()).failed == 1
    calls = world.provider.calls
    tally = await world.push(complete=True)
    assert (tally.failed, tally.archived, world.provider.calls) == (0, 0, calls)
    assert tally.note == (
        "1 gone record stays as it is, having been refused 10 times: a sync that approves it tries again"
    )
    assert [each.record_id for each in world.state.failures.values()] == ["e1"]  # and can still be seen
    world.put("e1", erased="yes", name="touched")
    await world.push()
    assert [each.record_id for each in world.state.failures.values()] == ["e1"]
    world.provider.refuses.clear()
    tally = await world.push(approved=True)
    assert (tally.archived, tally.note, world.state.failures) == (1, "", {})


async def test_a_record_that_was_wanted_again_may_be_refused_anew() -> None:
    world = await in_step(3, when_ours_is_gone="archive")
    world.provider.refuses["r1"] = RecordRejectedError("it has open orders", status=400)
    world.put("e1", erased="yes")
    for _ in range(11):
        await world.push()
    world.put("e1")
    await world.push()
    assert world.states()["e1"] == "linked"
    world.put("e1", erased="yes")
    world.provider.refuses.clear()
    assert (await world.push()).archived == 1


async def test_a_provider_that_is_away_ends_the_run_and_loses_nothing() -> None:
    world = await in_step(2, when_ours_is_gone="archive")
    for remote_id in ("r1", "r2"):
        world.provider.refuses[remote_id] = UnavailableError("no answer")
    world.put("e1", erased="yes")
    world.put("e2", erased="yes")
    with pytest.raises(UnavailableError):
        await world.push()
    world.provider.refuses = {}
    assert (await world.push()).archived == 2


async def test_what_is_wanted_again_before_it_went_just_stays() -> None:
    world = await in_step(10, when_no_longer_wanted="archive")
    for number in range(1, 9):
        world.put(f"e{number}", status="past")
    assert (await world.push()).held == 8
    for number in range(1, 9):
        world.put(f"e{number}")
    tally = await world.push()
    assert (tally.held, tally.archived, tally.unchanged) == (0, 0, 8)
    assert set(world.states().values()) == {"linked"}


# ---- theirs is gone ----------------------------------------------------------------------------------


async def test_a_reported_deletion_ends_the_link_and_ours_is_made_anew_when_it_changes() -> None:
    world = await in_step(2)
    world.provider.feed = [row(world.provider.records.pop("r1"), deleted=True)]
    tally = await world.pull()
    assert (tally.deleted, world.states()) == (1, {"e2": "linked"})
    world.put("e1", name="New name")
    assert (await world.push()).created == 1


async def test_kept_ours_is_never_made_anew_by_itself() -> None:
    world = await in_step(2, when_theirs_is_gone="keep")
    gone = world.provider.records.pop("r1")
    world.provider.feed = [row(gone, deleted=True)]
    tally = await world.pull()
    assert (tally.deleted, world.states()) == (0, {"e1": "broken", "e2": "linked"})
    world.put("e1", name="New name")
    tally = await world.push(complete=True)
    assert (tally.created, tally.skipped, len(world.provider.records)) == (0, 1, 1)

    world.provider.records["r1"] = gone  # theirs comes to life again
    world.provider.feed = [row(gone)]
    await world.pull()
    assert world.states() == {"e1": "linked", "e2": "linked"}
    assert (await world.push()).skipped == 0


async def test_kept_ours_is_not_made_anew_by_the_push_that_finds_theirs_gone() -> None:
    world = await in_step(2, when_theirs_is_gone="keep")
    gone = world.provider.records.pop("r1")  # and no feed tells of it
    world.put("e1", name="New name")
    tally = await world.push()
    assert (tally.created, tally.updated, tally.skipped, tally.failures) == (0, 0, 1, [])
    assert (world.states(), list(world.provider.records)) == ({"e1": "broken", "e2": "linked"}, ["r2"])
    assert await world.state.announced("event", "item") == []

    world.provider.records["r1"] = gone  # theirs comes to life again, and what changed here meanwhile stays
    world.provider.feed = [row(gone)]
    await world.pull()
    assert world.states() == {"e1": "linked", "e2": "linked"}
    assert world.host.records["event"]["e1"]["name"] == "New name"
    world.put("e1", name="Newer name")
    assert (await world.push()).updated == 1
    assert world.provider.records["r1"]["title"] == "Newer name"


async def test_a_complete_read_finds_what_vanished_by_asking_for_it() -> None:
    world = await in_step(4)
    del world.provider.records["r1"]
    world.provider.hidden = {"r2"}
    assert (await world.pull()).deleted == 0  # only what changed was read
    assert world.provider.asked == []
    tally = await world.pull(complete=True)
    assert (tally.deleted, sorted(world.provider.asked)) == (1, ["r1", "r2"])
    assert set(world.states()) == {"e2", "e3", "e4"}


async def test_a_read_that_goes_on_where_another_failed_proves_nothing() -> None:
    world = await in_step(4)
    world.provider.page_size = 2
    world.provider.stops_after = 1
    with pytest.raises(UnavailableError):
        await world.pull(complete=True)
    del world.provider.records["r1"]
    await world.pull()  # the second page only
    assert (world.provider.asked, set(world.states().values())) == ([], {"linked"})


async def test_a_read_begun_anew_counts_by_what_it_saw_itself() -> None:
    world = await in_step(4)
    world.provider.page_size = 2
    world.provider.stops_after = 1
    world.provider.error = StaleCursorError("too old")
    world.provider.hidden = {"r4"}
    await world.pull(complete=True)
    assert (world.provider.asked, set(world.states().values())) == (["r4"], {"linked"})


async def test_a_read_that_was_stopped_proves_nothing() -> None:
    world = await in_step(4)
    world.provider.page_size = 2
    del world.provider.records["r4"]
    world.stop = True
    with pytest.raises(StoppedError):
        await world.pull(complete=True)
    assert (world.provider.asked, set(world.states().values())) == ([], {"linked"})


# ---- the brake ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "share", "number"), [(0, 0.1, 5), (10, 0.1, 5), (59, 0.1, 5), (60, 0.1, 6), (40, 0.5, 20)]
)
def test_how_many_may_go(links: int, share: float, number: int) -> None:
    assert allowed(links, share, 5) == number


async def test_five_records_are_never_too_many() -> None:
    world = await in_step(5, when_ours_is_gone="archive")
    world.remove(*(f"e{number}" for number in range(1, 6)))
    tally = await world.push(complete=True)
    assert (tally.held, tally.archived) == (0, 5)


@pytest.mark.parametrize("way", ["erased", "vanished", "unwanted"])
async def test_with_too_many_none_goes_until_it_is_approved(way: str) -> None:
    world = await in_step(20, when_ours_is_gone="archive", when_no_longer_wanted="archive")
    for number in range(1, 9):
        if way == "vanished":
            world.remove(f"e{number}")
        else:
            world.put(f"e{number}", **({"erased": "yes"} if way == "erased" else {"status": "past"}))
    tally = await world.push(complete=True)
    assert (tally.held, tally.archived, world.provider.archived) == (8, 0, set())
    assert tally.note == (
        "8 of 20 linked records are gone, more than the 10% that one sync may put away unasked: "
        "none of them was, and a sync that approves it goes on"
    )
    assert (await world.push()).held == 8  # it is not forgotten
    tally = await world.push(approved=True)
    assert (tally.held, tally.archived, len(world.provider.archived)) == (0, 8, 8)
    assert tally.note == ""


async def test_a_mapping_may_allow_more() -> None:
    world = await in_step(20, when_ours_is_gone="delete", at_most_gone="40 percent")
    world.remove(*(f"e{number}" for number in range(1, 9)))
    assert (await world.push(complete=True)).deleted == 8


@pytest.mark.parametrize(("share", "held"), [({}, 0), ({"at_most_gone": "10 percent"}, 3)])
async def test_a_share_that_is_written_holds_however_few_there_are(share: dict[str, str], held: int) -> None:
    world = await in_step(20, when_ours_is_gone="archive", **share)
    world.remove("e1", "e2", "e3")
    tally = await world.push(complete=True)
    assert (tally.held, tally.archived) == (held, 3 - held)


async def test_links_are_held_like_records_when_much_of_theirs_is_gone() -> None:
    world = await in_step(20)
    for number in range(1, 9):
        del world.provider.records[f"r{number}"]
    tally = await world.pull(complete=True)
    assert (tally.held, tally.deleted) == (8, 0)
    for number in range(1, 9):
        world.put(f"e{number}", name="New name")
    assert (await world.push()).created == 0  # nothing is made anew while nobody has looked
    tally = await world.pull(approved=True)
    assert (tally.held, tally.deleted, len(world.states())) == (0, 8, 12)


Deed = tuple[str, int]
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["erase", "remove", "unwant", "restore", "delete theirs", "push", "pull", "complete"]
        ),
        st.integers(1, 40),
    ),
    max_size=40,
)


@given(DEEDS, st.sampled_from([0, 10, 50]), st.sampled_from(["archive", "delete"]))
@settings(max_examples=60, deadline=None)
async def test_whatever_vanishes_no_run_takes_more_than_its_share(
    deeds: list[Deed], percent: int, rule: str
) -> None:
    world = await in_step(
        40, when_ours_is_gone=rule, when_no_longer_wanted="archive", at_most_gone=f"{percent} percent"
    )

    def out_of_use() -> int:
        there = world.provider.records.keys() - world.provider.archived
        return len([remote_id for remote_id in ever if remote_id not in there])

    ever = set(world.provider.records)
    for deed, number in deeds:
        record_id = f"e{number}"
        if deed == "remove":
            world.host.records["event"].pop(record_id, None)
        elif deed in ("erase", "unwant", "restore"):
            more = {"erase": {"erased": "yes"}, "unwant": {"status": "past"}, "restore": {}}[deed]
            world.put(record_id, **more)
        elif deed == "delete theirs":
            world.provider.records.pop(f"r{number}", None)
        else:
            ever |= world.provider.records.keys()
            before, links = out_of_use(), len(world.state.links)
            tally = await (world.pull() if deed == "pull" else world.push(complete=deed == "complete"))
            assert out_of_use() - before <= links * percent // 100
            assert tally.archived + tally.deleted <= links * percent // 100
            assert not (tally.held and (tally.archived or tally.deleted))


# ---- what was seen -----------------------------------------------------------------------------------


@given(st.sets(st.text()), st.text())
def test_an_id_is_seen_when_it_was_told(ids: set[str], other: str) -> None:
    seen = Seen()
    seen.add(sorted(ids)[:1])
    seen.add(sorted(ids)[1:])
    assert all(record_id in seen for record_id in ids)
    assert (other in seen) == (other in ids)
