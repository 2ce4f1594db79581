"""The goals of healing, on real renames and removals, on traps, and on fields that only have siblings."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.healing import HealPlan, plan_heal
from tests.healing.cases import HALVES, SETS, Given, blocks, cases, fields, score

GIVEN: tuple[Given, ...] = ("names", "types", "before", "resource")
TRAPS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "traps.yaml").read_text("utf-8"))


def test_the_set_is_large_enough() -> None:
    found = [case for each in SETS for case in cases(each)]
    assert sum(case.successor is not None for case in found) >= 600
    assert sum(case.successor is None and not case.derived for case in found) + len(TRAPS) >= 300
    assert all(block["source"].startswith("https://") for each in SETS for block in blocks(each))
    assert not {block["provider"] for block in blocks("development")} & {
        block["provider"] for block in blocks("held_out")
    }


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("half", SETS)
def test_most_renames_are_proposed_first_and_nothing_wrong_applies(half: str, given: Given) -> None:
    reached = score(half, given)
    assert reached.wrong == ()
    assert reached.first / reached.renames >= 0.8, reached.missed


def test_knowing_what_was_there_before_makes_plans_better() -> None:
    for half in HALVES:
        names, before = score(half, "names"), score(half, "before")
        assert before.first > names.first
        assert before.silent > names.silent


def test_some_renames_apply_by_themselves() -> None:
    assert sum(score(half, "before").applied for half in HALVES) >= 20


def plans_of(trap: dict[str, Any]) -> list[HealPlan]:
    """Plan with records as columns and one by one, with and without what there was before."""
    path, type_ = trap["old"].split()
    now = fields(trap["now"].split(","))
    before, after = trap.get("before"), trap.get("after")
    rows = [
        [dict(zip(side, values, strict=True)) for values in zip(*side.values(), strict=True)]
        if side
        else None
        for side in (before, after)
    ]
    plans = [
        plan_heal(path, now, old_type=type_, samples_before=before, samples_after=after),
        plan_heal(path, now, before={path: type_}, samples_before=rows[0], samples_after=rows[1]),
    ]
    if trap["about"] not in ("other types",) and not before:
        plans.append(plan_heal(path, list(now)))
    return plans


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: f"{trap['about']} {trap['old']}")
def test_nothing_applies_in_a_trap(trap: dict[str, Any]) -> None:
    for plan in plans_of(trap):
        assert plan.successor is None, plan.as_dict()


@pytest.mark.parametrize("half", HALVES)
def test_a_field_that_only_has_siblings_is_left_alone(half: str) -> None:
    """Take away one field after another: those that stay are others, whatever they are called."""
    wrong = []
    for block in blocks(half):
        there = fields(block["stays"].split(",")) | fields(block.get("added", "").split(","))
        for path in there:
            left = {each: type_ for each, type_ in there.items() if each != path}
            plan = plan_heal(path, left, old_type=there[path])
            wrong += [f"{block['resource']}: {path} -> {plan.successor}"] if plan.applies else []
    assert wrong == []
