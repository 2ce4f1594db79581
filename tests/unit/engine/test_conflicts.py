"""Fields that both sides changed and a person decides about: what a pull and a push do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.memory import MemoryHost
from engine.ports import Confirm, Decision, FieldConflict, HostChange
from tests.unit.engine.test_sync import FIELDS, World, row

BY_HAND = {**FIELDS, "name": {"path": "full_name", "when_both_changed": "manual"}}


async def contested(ours: str = "Ada B", theirs: str = "Ada C", **options: Any) -> World:
    """A linked pair whose name both sides have changed since."""
    world = World("ada", **{"fields": BY_HAND, **options})
    await world.push()
    world.put("ada", name=ours)
    world.provider.records["c1"] = {**world.provider.records["c1"], "full_name": theirs}
    return world


def names(world: World) -> tuple[str, str]:
    record = world.provider.records["c1"]
    return world.host.records["customer"]["ada"]["name"], record.get("full_name") or record["person"]["name"]


def only(world: World) -> FieldConflict:
    (found,) = world.state.conflicts.values()
    return found


def decide(world: World, decision: Decision) -> None:
    found = only(world)
    world.state.conflicts["customer", "ada", "name"] = replace(found, decision=decision)


async def sync(world: World) -> None:
    await world.pull()
    await world.push()


async def test_neither_side_is_overwritten_and_the_rest_of_the_record_goes_on() -> None:
    world = await contested()
    world.put("ada", name="Ada B", phone="1")
    world.provider.records["c1"]["mail"] = "ada@example.org"
    tally = await world.pull()
    assert (tally.conflicts, tally.failed, tally.contested) == (1, 0, {"name": {"open": 1}})
    await world.push()
    assert names(world) == ("Ada B", "Ada C")
    assert world.provider.records["c1"]["tel"] == "1"
    assert world.host.records["customer"]["ada"]["email"] == "ada@example.org"
    found = only(world)
    assert (found.local_id, found.remote_id, found.field) == ("ada", "c1", "name")
    assert (found.ours, found.theirs, found.agreed) == ("Ada B", "Ada C", {"ours": "Ada", "theirs": "Ada"})


async def test_a_sync_without_a_change_does_nothing_and_counts_nothing_again() -> None:
    world = await contested()
    await sync(world)
    sent, known = len(world.provider.sent), dict(world.state.links)
    tally = await world.pull()
    await world.push()
    assert (tally.conflicts, tally.contested, tally.updated) == (0, {}, 0)
    assert names(world) == ("Ada B", "Ada C")
    assert len(world.provider.sent) == sent
    assert world.state.links == known


async def test_an_open_field_isnt_sent_with_what_changes_later() -> None:
    world = await contested()
    await sync(world)
    world.put("ada", name="Ada D", phone="2")
    await sync(world)
    assert names(world) == ("Ada D", "Ada C")
    assert "full_name" not in world.provider.sent[-1].writes[0].body
    assert world.provider.records["c1"]["tel"] == "2"
    assert (only(world).ours, only(world).theirs) == ("Ada D", "Ada C")
    assert only(world).agreed == {"ours": "Ada", "theirs": "Ada"}


@pytest.mark.parametrize(
    ("decision", "both"),
    [
        (Decision("platform"), "Ada B"),
        (Decision("provider"), "Ada C"),
        (Decision("value", "Ada Lovelace"), "Ada Lovelace"),
    ],
)
async def test_a_decision_is_carried_out_though_the_provider_tells_of_nothing(
    decision: Decision, both: str
) -> None:
    world = await contested()
    await sync(world)
    world.provider.feed = [[]]
    decide(world, decision)
    tally = await world.pull()
    assert tally.contested == {"name": {"person": 1}}
    await world.push()
    assert names(world) == (both, both)
    assert world.state.conflicts == {}
    sent = len(world.provider.sent)
    world.provider.feed = []
    await sync(world)
    assert names(world) == (both, both)
    assert len(world.provider.sent) == sent


async def test_a_decided_field_is_synced_again_like_any_other() -> None:
    world = await contested()
    await sync(world)
    decide(world, Decision("provider"))
    await sync(world)
    world.put("ada", name="Ada E")
    await sync(world)
    assert names(world) == ("Ada E", "Ada E")


@pytest.mark.parametrize(
    ("ours", "both"),
    [("Ada", "Ada C"), ("Ada C", "Ada C")],
    ids=["ours goes back to what was agreed", "ours comes to theirs"],
)
async def test_a_conflict_that_ends_by_itself_is_settled(ours: str, both: str) -> None:
    world = await contested()
    await sync(world)
    world.provider.feed = [[]]
    world.put("ada", name=ours)
    await sync(world)
    assert names(world) == (both, both)
    assert world.state.conflicts == {}


async def test_theirs_that_goes_back_leaves_ours() -> None:
    world = await contested()
    await sync(world)
    world.provider.records["c1"]["full_name"] = "Ada"
    await sync(world)
    assert names(world) == ("Ada B", "Ada B")
    assert world.state.conflicts == {}


async def test_a_decision_about_other_values_is_asked_for_again() -> None:
    world = await contested()
    await sync(world)
    decide(world, Decision("platform"))
    world.provider.records["c1"]["full_name"] = "Ada X"
    await sync(world)
    assert names(world) == ("Ada B", "Ada X")
    assert (only(world).theirs, only(world).decision) == ("Ada X", None)


async def test_a_decision_that_the_platform_refuses_waits() -> None:
    class Refusing(MemoryHost):
        async def upsert(
            self, entity: str, changes: Sequence[HostChange], confirm: Confirm | None = None
        ) -> dict[str, str]:
            return {change.local_id: "no" for change in changes}

    world = await contested()
    await sync(world)
    decide(world, Decision("provider"))
    host, world.provider.feed = world.host, [[]]
    world.host = Refusing(host.venue_record, host.records, host.order, host.changes)
    tally = await world.pull()
    assert tally.failed == 1
    assert only(world).decision == Decision("provider")
    world.host = host
    await sync(world)
    assert names(world) == ("Ada C", "Ada C")


async def test_a_pair_just_matched_never_agreed() -> None:
    world = World("ada", fields=BY_HAND, match_on="email")
    world.provider.records["c1"] = {
        "id": "c1", "full_name": "Ada C", "mail": "ada@example.com", "tel": "9", "ref": None,
    }  # fmt: skip
    await sync(world)
    assert names(world) == ("Ada", "Ada C")
    assert world.host.records["customer"]["ada"]["phone"] == "9"
    assert only(world).agreed == {}
    await sync(world)
    assert names(world) == ("Ada", "Ada C")


async def test_a_whole_mapping_may_be_decided_by_hand() -> None:
    world = await contested(fields=FIELDS, when_both_changed="manual")
    world.put("ada", name="Ada B", email="a@example.com")
    world.provider.records["c1"]["mail"] = "b@example.com"
    await sync(world)
    assert {key[2] for key in world.state.conflicts} == {"name", "email"}
    assert names(world) == ("Ada B", "Ada C")


async def test_a_rule_that_decides_from_now_on_ends_what_waits() -> None:
    world = await contested()
    await sync(world)
    world.mapping = World(fields=FIELDS, when_both_changed="provider_wins").mapping
    await sync(world)
    assert names(world) == ("Ada C", "Ada C")
    assert world.state.conflicts == {}


async def test_a_field_that_is_no_longer_mapped_has_no_conflict() -> None:
    world = await contested()
    await sync(world)
    world.mapping = World(fields={name: rule for name, rule in FIELDS.items() if name != "name"}).mapping
    await sync(world)
    assert world.state.conflicts == {}
    assert names(world) == ("Ada B", "Ada C")


@pytest.mark.parametrize("deleted", [True, False], ids=["theirs", "ours"])
async def test_a_conflict_ends_with_its_record(deleted: bool) -> None:
    world = await contested()
    await sync(world)
    if deleted:
        world.provider.feed = [[row(world.provider.records["c1"], deleted=True)]]
    else:
        world.provider.feed = [[]]
        del world.host.records["customer"]["ada"]
    await world.pull()
    assert world.state.conflicts == {}
    assert "ada" not in world.host.records["customer"] or deleted


async def test_what_lies_beside_an_open_place_is_sent_with_what_is_there() -> None:
    """An update that replaces the object around it would clear it otherwise."""
    fields = {
        "name": {"path": "person.name", "when_both_changed": "manual"},
        "phone": "person.tel",
        "email": "mail",
    }
    world = await contested(fields=fields)
    record = world.provider.records["c1"]
    world.provider.records["c1"] = {"id": "c1", "mail": record["mail"], "person": {"name": "Ada C"}}
    await world.pull()
    world.put("ada", name="Ada B", phone="3")
    await world.push()
    assert world.provider.records["c1"]["person"] == {"name": "Ada C", "tel": "3"}
    sent = len(world.provider.sent)
    await sync(world)
    assert len(world.provider.sent) == sent
    assert names(world) == ("Ada B", "Ada C")


async def test_what_rules_decide_is_told_by_field_and_never_by_value() -> None:
    world = await contested(fields=FIELDS, when_both_changed="platform_wins")
    tally = await world.pull()
    assert (tally.conflicts, tally.contested) == (1, {"name": {"platform": 1}})


async def test_what_one_pull_found_to_be_written_a_second_one_doesnt_forget() -> None:
    """A webhook may bring a record in again before any push."""
    world = World("ada")
    await world.push()
    world.put("ada", phone="1")
    for mail in ("ada@example.org", "ada@example.net"):
        world.provider.records["c1"]["mail"] = mail
        await world.pull()
    await world.push()
    assert (world.provider.records["c1"]["tel"], world.provider.records["c1"]["mail"]) == (
        "1",
        "ada@example.net",
    )


@pytest.mark.parametrize("match_on", [None, "email"], ids=["linked", "just matched"])
async def test_what_changed_here_is_written_where_theirs_says_nothing_of_it(match_on: str | None) -> None:
    world = World("ada", match_on=match_on)
    if match_on is None:
        await world.push()
    world.put("ada", phone="1")
    world.provider.records["c1"] = {"id": "c1", "full_name": "Ada L", "mail": "ada@example.com"}
    await sync(world)
    assert world.provider.records["c1"]["tel"] == "1"


async def test_a_push_alone_doesnt_overwrite_what_nobody_here_has_seen() -> None:
    world = await contested()
    world.put("ada", name="Ada B", phone="4")
    tally = await world.push()
    assert (tally.conflicts, tally.contested) == (1, {"name": {"open": 1}})
    assert names(world) == ("Ada B", "Ada C")
    assert world.provider.records["c1"]["tel"] == "4"
    assert (only(world).ours, only(world).theirs) == ("Ada B", "Ada C")
    assert only(world).agreed == {"ours": "Ada", "theirs": "Ada"}
    tally = await world.pull()
    assert tally.conflicts == 0
    decide(world, Decision("platform"))
    await sync(world)
    assert names(world) == ("Ada B", "Ada B")


async def test_a_change_of_ours_alone_is_pushed_though_a_person_would_decide() -> None:
    world = World("ada", fields=BY_HAND)
    await world.push()
    asked = len(world.provider.asked)
    world.put("ada", phone="5")
    await world.push()
    assert len(world.provider.asked) == asked  # read only where such a field changed
    world.put("ada", name="Ada B", phone="5")
    await world.push()
    assert names(world) == ("Ada B", "Ada B")
    assert world.provider.asked[asked:] == [["c1"]]


async def test_an_open_field_that_comes_without_a_value_keeps_what_is_known_of_it() -> None:
    world = await contested()
    await sync(world)
    del world.provider.records["c1"]["full_name"]
    await sync(world)
    assert only(world).theirs == "Ada C"
    assert world.host.records["customer"]["ada"]["name"] == "Ada B"


async def test_a_record_that_the_provider_wont_be_asked_for_holds_up_no_other() -> None:
    world = World("ada", "bob", fields=BY_HAND)
    await world.push()
    world.provider.malformed = "c1"
    world.put("ada", name="Ada B")
    world.put("bob", name="Bob B")
    world.provider.records["c2"]["full_name"] = "Bob C"
    tally = await world.push()
    assert (tally.failed, tally.conflicts) == (0, 1)
    assert world.held() == ["Ada B", "Bob C"]
