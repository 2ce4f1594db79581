"""A push through a real client: texts that don't fit, records found by content, jobs over several runs."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from engine.fields import Field, FieldCatalog
from engine.manifest import Entity
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState
from engine.ports import Commit, PendingItem, PendingWrite
from engine.sync import Sync, Tally
from tests.fakes import FakeClock, FakeProvider, Reply, client_of, connector_of, reply

MANIFEST = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth:
  type: bearer
  credentials: {apiKey: {title: Key}}
  token: apiKey
check: GET /me
retries: {attempts: 1}
errors:
  code: code
  rules: [{status: 5xx, then: retry}]
resources:
  member:
    id: id
    fields:
      name: {type: text, at_most: 5}
      note: {type: text, at_most: 4, too_long: cut}
    list: {call: GET /members, records: rows}
    find: {call: "GET /find?name={record.name}", records: rows}
    create: POST /members
    update: PATCH /members/{id}
    write_job:
      submit: {call: POST /jobs, operations: body, job: id}
      create: {n: "{{ number }}", member: "{{ record }}"}
      poll: {call: "GET /jobs/{job}", done: done}
      results: {records: rows, pair_by: n, status: status, body: member}
      at_least: 3
"""
FIELDS = FieldCatalog({name: Field(name) for name in ("name", "note")})
ENTITY = Entity(
    name="guest",
    table="t.guests",
    query=None,
    key="id",
    venue="venue_id",
    changed_at="updated_at",
    fields=FIELDS,
)


class World:
    """A provider that keeps members, a platform, and what is remembered of both."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.lose_answers = False
        self.provider = FakeProvider(self.answer)
        self.host = MemoryHost({"id": "v1", "name": "Venue", "currency": "EUR"})
        self.state = MemorySyncState()
        self.connector = connector_of(MANIFEST)

    def make(self, body: dict[str, Any]) -> dict[str, Any]:
        made = {"id": f"m{len(self.members) + 1}", **body}
        self.members[made["id"]] = made
        return made

    def answer(self, request: httpx.Request) -> Reply:
        path = request.url.path
        if path == "/me":
            return reply({})
        if path == "/find":
            wanted = request.url.params["name"]
            return reply({"rows": [each for each in self.members.values() if each["name"] == wanted]})
        if path == "/jobs":
            name = f"job{len(self.jobs) + 1}"
            self.jobs[name] = json.loads(request.content)
            return reply({"id": name})
        if path.startswith("/jobs/"):
            operations = self.jobs.get(path.removeprefix("/jobs/"))
            if operations is None:
                return reply({}, 404)
            rows = [
                {"n": each["n"], "status": 200, "member": self.make(each["member"])} for each in operations
            ]
            return reply({"done": True, "rows": rows})
        if path == "/members":
            made = self.make(json.loads(request.content))
            return httpx.ReadTimeout("no answer") if self.lose_answers else reply(made)
        member = self.members[path.removeprefix("/members/")]
        member.update(json.loads(request.content))
        return reply(member)

    def put(self, *names: str, note: str | None = None) -> None:
        for name in names:
            self.host.put("guest", {"id": name, "name": name, "note": note})

    async def push(self, ids: Sequence[str] | None = None) -> Tally:
        written = {"entity": "guest", "resource": "member", "direction": "push"}
        mapping, faults = compile_mapping(
            {**written, "fields": {"name": "name", "note": "note"}},
            self.connector.resources["member"],
            ENTITY,
        )
        assert mapping is not None, faults
        clock = FakeClock()
        return await Sync(
            self.connector,
            mapping,
            client_of(self.connector, self.provider, clock=clock),
            self.host,
            self.state,
            venue=self.host.venue_record,
            clock=clock,
            fields=FIELDS,
        ).push(ids)

    def held(self) -> list[str]:
        return sorted(each["name"] for each in self.members.values())


async def test_a_text_too_long_is_its_records_failure_and_names_field_and_limit() -> None:
    world = World()
    world.put("Ada", "Alexandra")
    tally = await world.push()
    assert (tally.created, tally.failed, world.held()) == (1, 1, ["Ada"])
    (failure,) = tally.failures
    assert (failure.record_id, failure.field, failure.code) == ("Alexandra", "name", "VALIDATION_ERROR")
    assert failure.message == "`name` takes at most 5 characters, and has 9"
    assert not failure.retryable


async def test_a_text_that_may_be_cut_is_cut_counted_and_not_sent_again() -> None:
    world = World()
    world.put("Ada", note="a long note")
    tally = await world.push()
    assert (tally.created, tally.failed, tally.cut) == (1, 0, {"note": 1})
    assert tally.note == "`note` was cut to its length in 1 of the records sent"
    assert world.members["m1"]["note"] == "a lo"
    calls = len(world.provider.calls)
    world.put("Ada", note="a long and changed note")  # what is sent is the same
    again = await world.push()
    assert (again.unchanged, again.cut, len(world.provider.calls)) == (1, {}, calls)


async def test_a_member_made_by_a_call_without_an_answer_is_found_by_its_content() -> None:
    world = World()
    world.put("Ada")
    world.lose_answers = True
    assert (await world.push()).failed == 1
    assert world.held() == ["Ada"]
    world.lose_answers = False
    await world.push()
    assert world.held() == ["Ada"]
    assert world.state.links["member", "Ada"].remote_id == "m1"
    assert world.state.pending == {}


async def test_a_member_linked_to_another_guest_is_not_what_was_made() -> None:
    world = World()
    world.put("Ada")
    await world.push()
    world.host.put("guest", {"id": "other", "name": "Ada", "note": None})
    world.lose_answers = True
    await world.push()
    del world.members["m2"]  # it wasn't made after all
    world.lose_answers = False
    await world.push()
    assert {key[1]: link.remote_id for key, link in world.state.links.items()} == {"Ada": "m1", "other": "m2"}


async def test_calls_that_are_repeated_are_saved_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved shows that something gets done, should workers be lost meanwhile."""
    world, saved = World(), list[int]()
    names = [f"N{number}" for number in range(25)]
    world.put(*names)
    for name in names:
        items = (PendingItem(name, None, {"name": name}, f"print of {name}", {}),)
        await world.state.announce([PendingWrite(f"key of {name}", "guest", "member", items)])
    commit = MemorySyncState.commit

    async def counted(state: MemorySyncState, given: Commit) -> None:
        saved.append(len(given.finished_writes))
        await commit(state, given)

    monkeypatch.setattr(MemorySyncState, "commit", counted)
    await world.push()
    assert [each for each in saved if each][:3] == [10, 10, 5]
    assert len(world.held()) == 25


async def test_several_are_a_job_and_its_name_is_gone_with_its_links() -> None:
    world = World()
    world.put("Ada", "Bob", "Cyd")
    tally = await world.push()
    assert (tally.created, len(world.jobs), world.held()) == (3, 1, ["Ada", "Bob", "Cyd"])
    assert world.state.pending == {}
    assert {link.remote_id for link in world.state.links.values()} == {"m1", "m2", "m3"}


async def test_a_job_the_provider_forgot_is_announced_anew_without_its_name() -> None:
    world = World()
    items = tuple(
        PendingItem(name, None, {"name": name}, f"print of {name}", {}) for name in ("Ada", "Bob", "Cyd")
    )
    await world.state.announce([PendingWrite("key", "guest", "member", items, job="job9")])
    first = await world.push()
    assert (first.created, first.failed, world.jobs) == (0, 3, {})
    (again,) = world.state.pending.values()
    assert (again.job, again.attempt, again.key != "key") == (None, 2, True)
    assert (await world.push()).created == 3
    assert world.held() == ["Ada", "Bob", "Cyd"]
    assert world.state.pending == {}


async def test_a_push_of_single_records_does_not_wait_for_a_job() -> None:
    world = World()
    items = tuple(
        PendingItem(name, None, {"name": name}, f"print of {name}", {}) for name in ("Ada", "Bob", "Cyd")
    )
    await world.state.announce([PendingWrite("key", "guest", "member", items, job="job9")])
    world.put("Ada", "Dan")
    tally = await world.push(["Ada", "Dan"])
    assert (tally.created, tally.failed, world.held()) == (1, 0, ["Dan"])  # Ada may be made by the job yet
    assert [write.job for write in world.state.pending.values()] == ["job9"]
    assert not any("/jobs" in call for call in world.provider.calls)


async def test_a_failure_of_a_record_that_is_no_longer_here_is_over() -> None:
    world = World()
    world.put("Alexandra", "Bernadette")
    assert (await world.push()).failed == 2
    del world.host.records["guest"]["Alexandra"]
    tally = await world.push(["Alexandra", "Bernadette"])
    assert (tally.read, tally.failed) == (1, 1)
    assert [each.record_id for each in world.state.failures.values()] == ["Bernadette"]


# ---- ids that follow from the content ----------------------------------------------------------------

NAMED = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth:
  type: bearer
  credentials: {apiKey: {title: Key}}
  token: apiKey
check: GET /me
retries: {attempts: 1}
errors:
  code: code
  rules: [{status: 5xx, then: retry}, {code: THERE, then: adopt}]
resources:
  member:
    id: id
    own_id: "{{ record.name | lower }}"
    lasting_id: number
    fields: {name: text, note: text}
    list: {call: GET /members, records: rows}
    create: PUT /members
    update: PATCH /members/{id}
    create_many:
      call: POST /members
      records: body rows
      renames: {note: remark}
      results: made
      pair_by: name
      failures: {records: errors, pair_by: name, code: code}
"""


class NamedWorld(World):
    """Members are known by their names in lower case, and have numbers that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.connector = connector_of(NAMED)
        self.sent: list[Any] = []

    def keep(self, old: str, body: dict[str, Any]) -> dict[str, Any]:
        kept = {"number": str(len(self.members) + 100), **self.members.pop(old, {}), **body}
        kept["id"] = kept["name"].lower()
        self.members[kept["id"]] = kept
        return kept

    def answer(self, request: httpx.Request) -> Reply:
        path = request.url.path
        if request.method == "GET":
            return reply({"rows": list(self.members.values())} if path == "/members" else {})
        body = json.loads(request.content)
        self.sent.append((request.method, path, body))
        if request.method == "PATCH":
            return reply(self.keep(path.removeprefix("/members/"), body))
        if request.method == "PUT":
            return reply(self.keep(body["name"].lower(), body))
        there = [each for each in body["rows"] if each["name"].lower() in self.members]
        made = [self.keep("", each) for each in body["rows"] if each not in there]
        errors = [{"name": each["name"], "code": "THERE"} for each in there]
        return reply({"made": made[::-1], "errors": errors})

    def links(self) -> dict[str, str]:
        rows = self.state.links.items()
        return {local_id: link.remote_id for (resource, local_id), link in rows if resource == "member"}


async def test_who_is_there_already_is_found_by_the_id_that_follows() -> None:
    world = NamedWorld()
    world.keep("", {"name": "ada", "note": "theirs"})
    world.put("Ada", "Bo", note="ours")
    tally = await world.push()
    assert (tally.created, tally.failed) == (2, 0)
    assert world.sent == [
        ("POST", "/members", {"rows": [{"name": "Ada", "remark": "ours"}, {"name": "Bo", "remark": "ours"}]}),
        ("PATCH", "/members/ada", {"name": "Ada", "note": "ours"}),
    ]
    assert world.links() == {"Ada": "ada", "Bo": "bo"}


async def test_a_batch_whose_answer_is_lost_is_sent_again_and_makes_nobody_twice() -> None:
    world = NamedWorld()
    world.connector = connector_of(NAMED.replace("attempts: 1", "attempts: 2"))
    answer, lost = world.answer, [httpx.ReadTimeout("no answer")]

    def once(request: httpx.Request) -> Reply:
        answered = answer(request)
        return lost.pop() if request.method == "POST" and lost else answered

    world.provider = FakeProvider(once)
    world.put("Ada", "Bo")
    tally = await world.push()
    assert (tally.created, tally.failed, world.held()) == (2, 0, ["Ada", "Bo"])
    assert [method for method, _, _ in world.sent] == ["POST", "POST", "PATCH", "PATCH"]


async def test_a_record_that_would_overwrite_anothers_fails_and_names_it() -> None:
    world = NamedWorld()
    world.put("Ada")
    await world.push()
    world.host.put("guest", {"id": "2", "name": "ADA", "note": None})
    world.host.put("guest", {"id": "3", "name": "Bo", "note": None})
    world.host.put("guest", {"id": "4", "name": "bo", "note": None})
    tally = await world.push()
    assert (tally.created, tally.failed) == (1, 2)
    assert {each.record_id: each.message for each in tally.failures} == {
        "2": "guest `Ada` is this member already, and would be overwritten",
        "4": "guest `3` is this member already, and would be overwritten",
    }
    assert all(each.retryable for each in tally.failures)
    assert world.links() == {"Ada": "ada", "3": "bo"}


async def test_what_stays_of_a_record_is_linked_besides() -> None:
    world = NamedWorld()
    world.put("Ada")
    await world.push()
    world.host.put("guest", {"id": "Ada", "name": "Eve", "note": None})
    await world.push()
    assert world.links() == {"Ada": "eve"}
    assert world.state.links["member.lasting_id", "Ada"].remote_id == "100"
