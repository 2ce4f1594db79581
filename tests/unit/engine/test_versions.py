"""Updates that name the version they change: the one last seen, without a read before each."""

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from engine.errors import UnavailableError
from engine.fields import Field, FieldCatalog
from engine.manifest import Entity
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState
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
  rules: [{code: CONFLICT, then: reload_and_retry}]
resources:
  guest:
    id: id
    version: meta.version
    changed_at: at
    fields: {name: text, note: text}
    list: {call: GET /guests, records: rows}
    get: GET /guests/{id}
    create: POST /guests
    update: PATCH /guests/{id}
    update_many:
      call: POST /many
      records: body guests
      by_key: id
      results: answers
      result: guest
      error: code
      error_code: code
"""
FIELDS = FieldCatalog({name: Field(name) for name in ("name", "note")})
ENTITY = Entity(
    name="person",
    table="t.people",
    query=None,
    key="id",
    venue="venue_id",
    changed_at="updated_at",
    fields=FIELDS,
)


class World:
    """A provider that refuses an update of another version than its own."""

    def __init__(self) -> None:
        self.guests: dict[str, dict[str, Any]] = {}
        self.lose_answers = False
        self.host = MemoryHost({"id": "v1", "name": "Venue", "currency": "EUR"})
        self.state = MemorySyncState()
        self.connector = connector_of(MANIFEST)
        self.provider = FakeProvider(self.answer)
        self.sent: list[Any] = []  # the versions of updates, as sent

    def answer(self, request: httpx.Request) -> Reply:
        path, name = request.url.path, request.url.path.rpartition("/")[2]
        if path == "/me":
            return reply({})
        if request.method == "GET":
            return reply({"rows": list(self.guests.values())} if name == "guests" else self.guests[name])
        body = json.loads(request.content)
        if path == "/guests":
            return reply(self.make(body))
        if path == "/many":
            answers = {each: self.change(each, given) for each, given in body["guests"].items()}
            answer = reply({"answers": {each: guest for each, (guest, _) in answers.items()}})
        else:
            (changed, status) = self.change(name, body)
            answer = reply(changed.get("guest", changed), status)
        return httpx.ReadTimeout("no answer") if self.lose_answers else answer

    def make(self, body: dict[str, Any]) -> dict[str, Any]:
        made = {"id": f"g{len(self.guests) + 1}", "meta": {"version": 0}, "at": self.at(0), **body}
        self.guests[made["id"]] = made
        return made

    @staticmethod
    def at(version: int) -> str:
        return f"2026-03-01T12:00:{version:02}Z"

    def change(self, name: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        there, version = self.guests[name], body.pop("meta", {}).get("version")
        self.sent.append(version)
        if version is not None and version != there["meta"]["version"]:
            return {"code": "CONFLICT"}, 409
        return {"guest": self.touch(name, **body)}, 200

    def touch(self, guest: str, /, **values: Any) -> dict[str, Any]:
        there = self.guests[guest]
        version = there["meta"]["version"] + 1
        self.guests[guest] = {**there, **values, "meta": {"version": version}, "at": self.at(version)}
        return self.guests[guest]

    def put(self, **names: str) -> None:
        for record_id, name in names.items():
            self.host.put("person", {"id": record_id, "name": name, "note": None})

    def sync(self) -> Sync:
        mapping, faults = compile_mapping(
            {
                "entity": "person",
                "resource": "guest",
                "direction": "bidirectional",
                "fields": {"name": "name"},
            },
            self.connector.resources["guest"],
            ENTITY,
        )
        assert mapping is not None, faults
        clock = FakeClock()
        return Sync(
            self.connector,
            mapping,
            client_of(self.connector, self.provider, clock=clock),
            self.host,
            self.state,
            venue=self.host.venue_record,
            clock=clock,
            fields=FIELDS,
        )

    async def push(self) -> Tally:
        self.provider.requests.clear()
        self.sent.clear()
        return await self.sync().push()

    @property
    def reads(self) -> list[str]:
        return [call for call in self.provider.calls if call.startswith("GET ")]


async def test_an_update_names_the_version_the_last_one_answered() -> None:
    world = World()
    world.put(a="Ada")
    await world.push()
    for number in range(3):
        world.put(a=f"Ada {number}")
        await world.push()
        assert (world.sent, world.reads) == ([number], [])
    assert world.guests["g1"]["name"] == "Ada 2"


async def test_an_update_names_the_version_the_last_pull_saw() -> None:
    world = World()
    world.put(a="Ada")
    await world.push()
    world.touch("g1", note="theirs")  # of which nothing is mapped
    world.touch("g1", name="Eve")
    await world.sync().pull()
    world.put(a="Ada")
    await world.push()
    assert (world.sent, world.reads) == ([2], [])


async def test_a_change_of_theirs_that_is_not_mapped_is_seen_too() -> None:
    world = World()
    world.put(a="Ada")
    await world.push()
    world.touch("g1", note="theirs")
    assert (await world.sync().pull()).unchanged == 1
    world.put(a="Eve")
    await world.push()
    assert (world.sent, world.reads) == ([1], [])
    assert world.guests["g1"] | {"at": ""} == {
        "id": "g1",
        "name": "Eve",
        "note": "theirs",
        "meta": {"version": 2},
        "at": "",
    }


async def test_of_a_conflict_the_record_is_read_and_ours_laid_over_it() -> None:
    world = World()
    world.put(a="Ada")
    await world.push()
    world.touch("g1", note="theirs")
    world.put(a="Eve")
    tally = await world.push()
    assert (tally.updated, tally.failed, world.sent, world.reads) == (1, 0, [0, 1], ["GET /guests/g1"])
    assert (world.guests["g1"]["name"], world.guests["g1"]["note"]) == ("Eve", "theirs")
    world.put(a="Eva")
    await world.push()
    assert (world.sent, world.reads) == ([2], [])


async def test_in_a_call_for_several_only_the_one_in_conflict_is_read() -> None:
    world = World()
    world.put(a="Ada", b="Bo", c="Cy")
    await world.push()
    world.touch("g2", note="theirs")
    world.put(a="Ada 2", b="Bo 2", c="Cy 2")
    tally = await world.push()
    assert (tally.updated, tally.failed) == (3, 0)
    assert (world.sent, world.reads) == ([0, 0, 0, 1], ["GET /guests/g2"])
    assert [each["name"] for each in world.guests.values()] == ["Ada 2", "Bo 2", "Cy 2"]
    assert world.guests["g2"]["note"] == "theirs"


@pytest.mark.parametrize("names", [{"a": "Ada 2"}, {"a": "Ada 2", "b": "Bo 2"}])
async def test_an_update_that_was_done_without_an_answer_is_not_done_again(names: dict[str, str]) -> None:
    world = World()
    world.put(a="Ada", b="Bo")
    await world.push()
    world.put(**names)
    world.lose_answers = True
    with suppress(UnavailableError):  # when several got no answer it is the provider that is away
        await world.sync().push()
    world.lose_answers = False
    tally = await world.push()
    assert (tally.updated, tally.failed, world.state.pending) == (len(names), 0, {})
    assert [each["meta"]["version"] for each in world.guests.values()] == [1, len(names) - 1]


async def test_a_link_without_a_version_sends_none() -> None:
    world = World()
    world.put(a="Ada")
    await world.push()
    link = world.state.links["guest", "a"]
    assert link.agreed["version"] == 0
    del link.agreed["version"]  # type: ignore[attr-defined]  # as an earlier release left it
    world.put(a="Eve")
    await world.push()
    assert (world.sent, world.guests["g1"]["name"]) == ([None], "Eve")
