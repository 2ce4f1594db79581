"""A push that has to make a record anew, because a field of the old one can't be changed."""

import json
from typing import Any

import httpx

from engine.fields import Field, FieldCatalog
from engine.manifest import Entity
from engine.mapping import compile_mapping
from engine.memory import MemoryHost, MemorySyncState
from engine.sync import Sync, Tally
from tests.fakes import START, FakeClock, FakeProvider, Reply, client_of, connector_of, reply

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
  price:
    id: id
    reference: lookup
    fields: {lookup: text, amount: integer, name: text}
    immutable: [amount]
    list: {call: GET /prices, records: rows, since: query made_since}
    get: GET /prices/{id}
    create:
      call: POST /prices
      idempotency_key: header Idempotency-Key
      then: [{call: POST /default, body: {price: "{{ result.id }}"}}]
    update: POST /prices/{id}
    retire: {call: "POST /retire/{id}"}
"""
FIELDS = FieldCatalog({name: Field(name) for name in ("id", "amount", "name")})
ENTITY = Entity(
    name="ticket",
    table="t.tickets",
    query=None,
    key="id",
    venue="venue_id",
    changed_at="updated_at",
    fields=FIELDS,
)
DAY = 24 * 60 * 60


class World:
    """A provider whose prices can't change their amount, and which forgets keys after a day."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.prices: dict[str, dict[str, Any]] = {}
        self.made_at: dict[str, float] = {}
        self.answered: dict[str, tuple[float, dict[str, Any]]] = {}
        self.default = ""
        self.lose_answers = False
        self.refuse_retiring = False
        self.provider = FakeProvider(self.answer)
        self.host = MemoryHost({"id": "v1", "name": "Venue", "currency": "EUR"})
        self.state = MemorySyncState()
        self.connector = connector_of(MANIFEST)

    def answer(self, request: httpx.Request) -> Reply:
        path, now = request.url.path, self.clock.seconds
        name = path.rpartition("/")[2]
        if request.method == "GET":
            if path == "/me":
                return reply({})
            if path != "/prices":
                return reply(self.prices[name]) if name in self.prices else reply({}, 404)
            since = request.url.params["made_since"]
            rows = [each for each in self.prices.values() if self.stamp(self.made_at[each["id"]]) >= since]
            return reply({"rows": rows[::-1]})
        if path.startswith("/retire/"):
            if self.refuse_retiring:
                return reply({"code": "IN_USE"}, 400)
            self.prices[name]["active"] = False
            return reply({})
        body = json.loads(request.content)
        if path == "/default":
            self.default = body["price"]
            return reply({})
        if name in self.prices:
            self.prices[name].update(body)
            return reply(self.prices[name])
        key = request.headers["Idempotency-Key"]
        answered_at, made = self.answered.get(key, (-DAY, {}))
        if now - answered_at >= DAY:
            made = {"id": f"p{len(self.prices) + 1}", "active": True, **body}
            for other in self.prices.values():  # the name goes over to the new one
                if other.get("lookup") == body["lookup"]:
                    other["lookup"] = None
            self.prices[made["id"]] = made
            self.made_at[made["id"]] = now
            self.answered[key] = (now, made)
        return httpx.ReadTimeout("no answer") if self.lose_answers else reply(made)

    @staticmethod
    def stamp(seconds: float) -> str:
        return FakeClock(seconds).now().isoformat().replace("+00:00", "Z")

    def put(self, amount: int, name: str = "Floor") -> None:
        self.host.put("ticket", {"id": "t1", "amount": amount, "name": name})

    def sync(self) -> Sync:
        mapping, faults = compile_mapping(
            {
                "entity": "ticket",
                "resource": "price",
                "direction": "push",
                "fields": {"id": "lookup", "amount": "amount", "name": "name"},
            },
            self.connector.resources["price"],
            ENTITY,
        )
        assert mapping is not None, faults
        return Sync(
            self.connector,
            mapping,
            client_of(self.connector, self.provider, clock=self.clock),
            self.host,
            self.state,
            venue=self.host.venue_record,
            clock=self.clock,
            fields=FIELDS,
        )

    async def push(self) -> Tally:
        return await self.sync().push()

    async def retry(self) -> Tally:
        """Push what failed and may go through by now, as a run does after its push."""
        again = [each.record_id for each in self.state.failures.values() if each.retryable]
        return await self.sync().push(again)

    def active(self) -> dict[str, int]:
        return {each["id"]: each["amount"] for each in self.prices.values() if each["active"]}

    @property
    def linked(self) -> str:
        return self.state.links["price", "t1"].remote_id


async def priced() -> World:
    """Return a world in which the ticket has its first price."""
    world = World()
    world.put(100)
    await world.push()
    assert (world.active(), world.linked, START) == ({"p1": 100}, "p1", world.clock.now())
    return world


async def test_a_successor_made_days_ago_without_an_answer_is_found_and_the_old_one_retired() -> None:
    world = await priced()
    world.put(200)
    world.lose_answers = True
    assert (await world.push()).failed == 1
    world.lose_answers = False
    world.clock.seconds += 3 * DAY  # by now the provider has forgotten the key
    tally = await world.push()
    assert world.active() == {"p2": 200}
    assert (world.linked, world.default, world.state.pending) == ("p2", "p2", {})
    assert (tally.created, tally.failed, world.state.failures) == (1, 0, {})


async def test_within_the_day_the_same_call_is_repeated_without_a_search() -> None:
    world = await priced()
    world.put(200)
    world.lose_answers = True
    await world.push()
    world.lose_answers = False
    world.clock.seconds += DAY / 2
    await world.push()
    assert world.active() == {"p2": 200}
    assert not any(call.startswith("GET /prices?") for call in world.provider.calls)


async def test_a_successor_that_was_not_made_is_made_days_later() -> None:
    world = await priced()
    world.put(200)
    world.lose_answers = True
    await world.push()
    del world.prices["p2"]  # the call never arrived
    world.prices["p1"]["lookup"] = "t1"
    world.lose_answers = False
    world.clock.seconds += 3 * DAY
    await world.push()
    assert (world.active(), world.linked) == ({"p2": 200}, "p2")


async def test_a_record_of_another_amount_is_no_successor() -> None:
    world = await priced()
    world.put(200)
    world.lose_answers = True
    await world.push()
    world.prices["p2"] |= {"amount": 150}  # somebody's own, by our name
    world.lose_answers = False
    world.clock.seconds += 3 * DAY
    await world.push()
    assert (world.linked, world.prices["p3"]["amount"]) == ("p3", 200)


async def test_a_first_record_made_days_ago_without_an_answer_is_found() -> None:
    world = World()
    world.put(100)
    world.lose_answers = True
    await world.push()
    world.lose_answers = False
    world.clock.seconds += 3 * DAY
    tally = await world.push()
    assert (world.active(), world.linked, world.default) == ({"p1": 100}, "p1", "p1")
    assert (tally.created, world.state.pending) == (1, {})


async def test_an_old_one_that_can_not_be_retired_is_told_and_tried_again() -> None:
    world = await priced()
    world.put(200)
    world.refuse_retiring = True
    tally = await world.push()
    (failure,) = tally.failures
    assert (failure.record_id, failure.retryable, world.linked) == ("t1", True, "p2")
    tally = await world.retry()
    assert (tally.failed, world.active(), len(world.state.failures)) == (1, {"p1": 100, "p2": 200}, 1)
    world.refuse_retiring = False
    tally = await world.retry()
    assert (tally.failed, world.active(), world.state.failures) == (0, {"p2": 200}, {})
    calls = len(world.provider.calls)
    await world.retry()
    await world.push()
    world.put(200)
    assert (await world.push()).unchanged == 1
    assert len(world.provider.calls) == calls


async def test_several_that_could_not_be_retired_are_all_remembered() -> None:
    world = await priced()
    world.refuse_retiring = True
    for amount in (200, 300):
        world.put(amount)
        await world.push()
    assert world.active() == {"p1": 100, "p2": 200, "p3": 300}
    world.refuse_retiring = False
    await world.retry()
    assert (world.active(), world.state.failures) == ({"p3": 300}, {})


async def test_an_old_one_that_is_gone_needs_no_retiring() -> None:
    world = await priced()
    world.refuse_retiring = True
    world.put(200)
    await world.push()
    del world.prices["p1"]
    world.provider = FakeProvider(
        lambda request: reply({}, 404) if request.url.path == "/retire/p1" else world.answer(request)
    )
    tally = await world.retry()
    assert (tally.failed, world.state.failures) == (0, {})
