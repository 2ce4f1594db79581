"""What a push would do, said without doing it; and doing that and no more.

Expected values follow from docs/explanation/sync-semantics.md: what a pull and a push would come to.
"""

from __future__ import annotations

import asyncio
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.applying import Became
from engine.errors import RecordRejectedError, StoppedError, UnavailableError
from engine.planning import PlannedRecord
from engine.tally import Tally
from tests.unit.engine.test_gone import World as GoneWorld
from tests.unit.engine.test_sync import CALL, FIELDS, World

CHANGED = Became("changed", "changed since the plan")
DONE = Became("done")


async def planned(
    world: World | GoneWorld, *, pulls: bool = True, again: tuple[str, ...] = ()
) -> dict[str, PlannedRecord]:
    """Plan, proving that nothing was written anywhere; returns the records by local id."""
    before = deepcopy((world.state, world.provider.records, world.host))
    made: dict[str, PlannedRecord] = {}
    async for some in world.build().plan({}, pulls=pulls, again=again):
        made |= {each.local_id: each for each in some}
    assert (world.state, world.provider.records, world.host) == before
    return made


async def apply(world: World | GoneWorld, plan: dict[str, PlannedRecord]) -> tuple[Tally, dict[str, Became]]:
    return await world.build().apply(list(plan.values()))


def changes(record: PlannedRecord) -> dict[str | None, tuple[Any, Any]]:
    return {each.path: (each.before, each.after) for each in record.fields}


async def test_what_is_new_what_changed_and_what_did_not() -> None:
    world = World("ada", "bob", "cyd")
    await world.push()
    world.put("ada", phone="1")
    world.put("bob")
    world.put("dan")
    plan = await planned(world)
    assert {each: (plan[each].action, plan[each].writes) for each in plan} == {
        "ada": ("update", True),
        "bob": ("skip", False),
        "dan": ("create", True),
    }
    assert changes(plan["ada"]) == {"tel": (None, "1")}
    assert plan["ada"].fields[0].reason == plan["ada"].reason == "changed here since the last sync"
    assert (plan["bob"].reason, plan["bob"].remote_id) == ("unchanged since the last sync", "c2")
    assert changes(plan["dan"]) == {
        "full_name": (None, "Dan"),
        "mail": (None, "dan@example.com"),
        "ref": (None, "dan"),
    }
    tally, became = await apply(world, plan)
    assert became == {"ada": DONE, "dan": DONE}
    assert (tally.created, tally.updated, tally.skipped) == (1, 1, 0)
    assert world.provider.records["c1"]["tel"] == "1"
    assert world.held() == ["Ada", "Bob", "Cyd", "Dan"]


async def test_why_a_record_is_left_out() -> None:
    world = World("ada", "bob", only_when="phone != 'none'")
    await world.push()
    world.put("ada", phone="none")
    world.put("cyd", phone="none")
    world.put("dan", name=1.5)
    plan = await planned(world)
    assert plan["ada"].reason == (
        "not wanted there: `only_when` says no; the provider's record stays as it is"
    )
    assert plan["cyd"].reason == "not wanted there: `only_when` says no"
    assert {each.action for each in (plan["ada"], plan["cyd"])} == {"skip"}


async def test_what_cannot_be_sent_is_an_error_that_names_its_field() -> None:
    fields = {"email": {"path": "mail", "push": "{{ value }}", "required": True}, "name": "full_name"}
    world = World("ada", fields=fields, direction="push")
    world.put("ada", email=None)
    plan = await planned(world)
    assert (plan["ada"].action, plan["ada"].writes) == ("error", False)
    assert [(each.field, each.reason) for each in plan["ada"].fields] == [("email", plan["ada"].reason)]
    assert "`email` has no value" in plan["ada"].reason


@pytest.mark.parametrize(
    ("rule", "writes", "reason"),
    [
        ("platform_wins", True, "both sides changed it since the last sync: the platform wins by the "
         "mapping's rule"),
        ("provider_wins", False, "both sides changed it since the last sync: the provider wins by the "
         "mapping's rule"),
        ("manual", False, "both sides changed it since the last sync: a person has to decide, and until "
         "then it stays as it is"),
    ],
)  # fmt: skip
async def test_a_conflict_is_decided_by_the_mappings_rule(rule: str, writes: bool, reason: str) -> None:
    world = World("ada", when_both_changed=rule)
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"]["tel"] = "2"
    plan = await planned(world)
    (field,) = plan["ada"].fields
    assert (plan["ada"].action, plan["ada"].writes, field.conflict) == ("conflict", writes, True)
    assert (field.field, field.path, field.ours, field.before) == ("phone", "tel", "1", "2")
    assert (field.after, field.reason) == ("1" if writes else "2", reason)
    await apply(world, plan)
    assert world.provider.records["c1"]["tel"] == field.after


async def test_what_changed_there_alone_is_taken_over_first() -> None:
    world = World("ada")
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"]["full_name"] = "Augusta"
    plan = await planned(world)
    assert changes(plan["ada"]) == {"full_name": ("Augusta", "Augusta"), "tel": (None, "1")}
    assert plan["ada"].reason == "what changed there is taken over first"
    _, became = await apply(world, plan)
    assert became == {"ada": DONE}
    theirs, ours = world.provider.records["c1"], world.host.records["customer"]["ada"]
    assert (theirs["full_name"], theirs["tel"], ours["name"]) == ("Augusta", "1", "Augusta")


async def test_where_nothing_is_pulled_the_platform_wins() -> None:
    world = World("ada", when_both_changed="provider_wins")
    await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"] |= {"tel": "2", "full_name": "Augusta"}
    plan = await planned(world, pulls=False)
    assert changes(plan["ada"]) == {"tel": ("2", "1"), "full_name": ("Augusta", "Ada")}
    assert {each.path: each.reason for each in plan["ada"].fields} == {
        "tel": "both sides changed it since the last sync: the platform wins, for this integration only "
        "pushes",
        "full_name": "changed there since the last sync, and this integration only pushes",
    }
    await apply(world, plan)
    assert world.provider.records["c1"]["full_name"] == "Ada"
    assert world.host.records["customer"]["ada"]["name"] == "Ada"


async def test_records_that_were_there_before_are_paired() -> None:
    world = World("ada", match_on="email")
    world.provider.records["c1"] = {"id": "c1", "mail": "ada@example.com", "full_name": None, "tel": "9"}
    plan = await planned(world)
    assert (plan["ada"].action, plan["ada"].remote_id) == ("update", "c1")
    assert changes(plan["ada"])["full_name"] == (None, "Ada")
    await apply(world, plan)
    (theirs,) = world.provider.records.values()
    assert (theirs["full_name"], theirs["tel"]) == ("Ada", "9")


@pytest.mark.parametrize(("rule", "action"), [("unlink", "create"), ("keep", "skip")])
async def test_what_is_gone_there(rule: str, action: str) -> None:
    world = World("ada", direction="push", fields={"name": "full_name"}, when_theirs_is_gone=rule)
    await world.push()
    world.provider.records.clear()
    world.put("ada", name="Augusta")
    plan = await planned(world)
    assert plan["ada"].action == action
    assert plan["ada"].reason.startswith("the provider's record is gone")


async def test_what_is_there_already_is_not_written() -> None:
    world = World("ada")
    await world.push()
    world.put("ada", phone="1")
    link = world.state.links["customer", "ada"]
    assert link.fingerprint is not None
    world.provider.records["c1"]["tel"] = "1"
    plan = await planned(world)
    assert (plan["ada"].action, plan["ada"].reason) == ("skip", "the provider has these values already")


async def test_what_has_a_call_of_its_own_is_sent_where_there_is_something() -> None:
    world = World("ada", "bob")
    await world.push()
    resource = replace(world.connector.resources["customer"], parts={"tel": CALL})
    world.connector = replace(world.connector, resources={"customer": resource})
    world.provider.records["c1"]["tel"] = "9"
    world.put("ada", name="Augusta")  # whose phone is nothing: that clears none
    world.put("bob", phone="1")
    plan = await planned(world, pulls=False)
    assert set(changes(plan["ada"])) == {"full_name"}
    (field,) = plan["bob"].fields
    assert (field.path, field.reason) == (
        "tel",
        "changed here since the last sync; it is sent by a call of its own",
    )


async def test_a_write_without_an_answer_comes_first() -> None:
    world = World("ada")
    world.provider.script = ["down"]
    await world.push()
    plan = await planned(world, again=("ada",))
    assert (plan["ada"].action, plan["ada"].writes) == ("skip", False)
    assert plan["ada"].reason == "an earlier write of it has had no answer yet: a sync sees to that first"


async def test_a_record_that_failed_before_is_planned_again() -> None:
    world = World("ada", "bob")
    world.provider.script = ["reject second"]
    await world.push()
    assert await planned(world) == {}
    assert (await planned(world, again=("bob",)))["bob"].action == "create"


async def test_many_that_are_gone_are_held_and_few_are_put_away() -> None:
    world = GoneWorld(20, when_no_longer_wanted="archive")
    await world.push()
    for number in range(1, 7):
        world.put(f"e{number}", status="past")
    held = await planned(world)
    assert {each.action for each in held.values()} == {"skip"}
    assert {each.reason for each in held.values()} == {
        "6 of 20 linked records are gone, more than the 10% that may go unasked"
    }
    world.put("e6")
    plan = await planned(world)
    away = {f"e{number}" for number in range(1, 6)}
    assert {each for each in plan if plan[each].action == "archive"} == away
    assert {(plan[each].reason, plan[each].writes) for each in away} == {("not wanted there any more", True)}
    world.put("e1")
    tally, became = await apply(world, plan)
    assert became == {**dict.fromkeys(away, DONE), "e1": CHANGED}
    assert (tally.archived, world.provider.archived) == (4, {"r2", "r3", "r4", "r5"})
    again = dict(plan)
    assert (await apply(world, again))[1] == became
    assert len(world.provider.keys) == 4


async def test_what_may_not_be_put_away_has_failed() -> None:
    world = GoneWorld(2, when_no_longer_wanted="archive")
    await world.push()
    world.put("e1", status="past")
    world.put("e2", status="past")
    plan = await planned(world)
    world.provider.refuses["r2"] = RecordRejectedError("it is in use", status=400)
    tally, became = await apply(world, plan)
    assert became == {"e1": DONE, "e2": Became("failed", "it is in use")}
    assert (tally.archived, tally.failed) == (1, 1)


# ---- applying -------------------------------------------------------------------------------------------


async def test_only_what_is_as_it_was_is_written() -> None:
    world = World("ada", "bob", "cyd", "dan")
    await world.push()
    for name in ("ada", "bob", "cyd"):
        world.put(name, phone="1")
    world.put("eve")
    plan = await planned(world)
    world.put("ada", phone="2")  # ours changed
    world.provider.records["c2"]["tel"] = "3"  # theirs did
    world.put("dan", phone="4")  # isn't in the plan
    sent = len(world.provider.sent)
    tally, became = await apply(world, plan)
    assert became == {"ada": CHANGED, "bob": CHANGED, "cyd": DONE, "eve": DONE}
    assert (tally.created, tally.updated, tally.skipped) == (1, 1, 2)
    assert [world.provider.records[f"c{number}"]["tel"] for number in (1, 2, 3, 4)] == [None, "3", "1", None]
    assert len(world.provider.sent) == sent + 2
    assert tally.note == "records that changed since the plan were left alone"


async def test_what_changed_there_without_a_matter_for_the_mapping_is_no_change() -> None:
    world = World("ada")
    await world.push()
    world.put("ada", phone="1")
    plan = await planned(world)
    world.provider.records["c1"]["seen_at"] = "today"
    assert (await apply(world, plan))[1] == {"ada": DONE}


@pytest.mark.parametrize("lost", ["done, then lost", "down"])
async def test_an_application_that_was_cut_off_goes_on_and_makes_no_twin(lost: str) -> None:
    world = World("ada", "bob")
    await world.push()
    world.put("ada", phone="1")
    world.put("cyd")
    plan = await planned(world)
    world.provider.script = [lost, lost]
    with pytest.raises(UnavailableError):
        await apply(world, plan)
    _, became = await apply(world, plan)
    assert became == {"ada": DONE, "cyd": DONE}
    assert world.held() == ["Ada", "Bob", "Cyd"]
    assert world.provider.records["c1"]["tel"] == "1"


async def test_a_record_that_is_refused_has_failed_alone() -> None:
    world = World("ada", "bob")
    plan = await planned(world)
    world.provider.script = ["reject second"]
    tally, became = await apply(world, plan)
    assert became == {"ada": DONE, "bob": Became("failed", "mail: not an address")}
    assert tally.failed == 1


async def test_it_stops_when_it_is_told_to() -> None:
    world = World("ada")
    plan = await planned(world)
    world.stop = True
    with pytest.raises(StoppedError):
        await apply(world, plan)
    with pytest.raises(StoppedError):
        await planned(world)
    assert world.provider.sent == []


# ---- a plan against a sync ------------------------------------------------------------------------------

VALUES = st.sampled_from([None, "1", "2"])
SIDE = st.fixed_dictionaries({}, optional={"name": VALUES, "phone": VALUES})
RULES = st.sampled_from(["platform_wins", "provider_wins", "manual"])
PATHS = {"name": "full_name", "phone": "tel"}
ONE_WAY = {**FIELDS, "phone": {"path": "tel", "push": "{{ value }}"}}


@settings(max_examples=40, deadline=None)
@given(
    RULES,
    st.sampled_from([FIELDS, ONE_WAY]),
    st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4),
    st.lists(st.none() | SIDE, max_size=2),
    st.booleans(),
)
def test_applying_a_plan_leaves_the_provider_as_a_sync_does(
    rule: str,
    fields: dict[str, Any],
    edits: list[tuple[dict[str, Any], dict[str, Any]]],
    new: list[dict[str, Any] | None],
    pulls: bool,
) -> None:
    """Whatever was changed on both sides since the last sync, and what of ours is new: nowhere yet, or there
    already without a link.
    """

    async def scenario() -> None:
        names = [f"p{number}" for number in range(len(edits))]
        world = World(*names, when_both_changed=rule, fields=fields, match_on="email")
        await world.push()
        for number, (ours, theirs) in enumerate(edits, 1):
            world.provider.records[f"c{number}"] |= {PATHS[name]: value for name, value in theirs.items()}
            if ours:
                world.put(f"p{number - 1}", **ours)
        for number, known in enumerate(new):
            world.put(f"n{number}", phone="1")
            if known is not None:
                theirs = {PATHS[name]: value for name, value in known.items()}
                mail = f"n{number}@example.com"
                world.provider.records[f"x{number}"] = {"id": f"x{number}", "mail": mail, **theirs}
        other = deepcopy(world)
        plan = await planned(world, pulls=pulls)
        _, became = await apply(world, plan)
        if pulls:
            await other.pull()
        await other.push()
        assert set(became.values()) <= {DONE}
        assert world.provider.records == other.provider.records
        for local_id, record in plan.items():
            if ("customer", local_id) not in world.state.links:
                continue  # a pair that a sync makes, and has nothing to write for
            theirs = world.provider.records.get(world.state.links["customer", local_id].remote_id, {})
            for path, (_, after) in changes(record).items():
                assert path is None or theirs.get(path) == after

    asyncio.run(scenario())
