"""The labelled set: what became of fields of real provider APIs, and how well plans say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from engine.healing import HealPlan, plan_heal, plan_heals

HALVES = ("development", "held_out")
SETS = (*HALVES, "looked_up")  # by provider, in the first two; each entry checked at its source, in the last
Given = Literal["names", "types", "before", "resource"]


@dataclass(frozen=True)
class Case:
    """A field that is gone, what there was before and is now, and its successor, if it has one."""

    provider: str
    resource: str
    old: str
    before: dict[str, str]
    now: dict[str, str]
    successor: str | None
    derived: bool = False  # a rename whose successor was taken away: nothing is right then


@cache
def blocks(half: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / f"{half}.yaml").read_text("utf-8"))
    return found


def cases(half: str) -> Iterator[Case]:
    for block in blocks(half):
        stays = fields(block.get("stays", "").split(","))
        added = fields(block.get("added", "").split(","))
        renamed = [line.split(" -> ") for line in block.get("renamed") or ()]
        old = fields([one for one, _ in renamed] + list(block.get("removed") or ()))
        new = fields([other for _, other in renamed])
        before, now = {**stays, **old}, {**stays, **added, **new}
        successors = {one.split()[0]: other.split()[0] for one, other in renamed}
        for path in old:
            case = Case(block["provider"], block["resource"], path, before, now, successors.get(path))
            yield case
            if case.successor is not None:
                left = {each: type_ for each, type_ in now.items() if each != case.successor}
                yield Case(case.provider, case.resource, path, before, left, None, derived=True)


def fields(lines: list[str]) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in lines if line.strip()}


def plan(case: Case, given: Given) -> HealPlan:
    """Plan with as much given as `given` says, each including the one before."""
    match given:
        case "names":
            return plan_heal(case.old, list(case.now))
        case "types":
            return plan_heal(case.old, case.now, old_type=case.before[case.old])
        case "before":
            return plan_heal(case.old, case.now, before=case.before)
        case "resource":
            made = _whole(tuple(case.before.items()), tuple(case.now.items()), case.resource)
            return made[case.old]


@cache
def _whole(
    before: tuple[tuple[str, str], ...], now: tuple[tuple[str, str], ...], resource: str
) -> dict[str, HealPlan]:
    return {each.field: each for each in plan_heals(dict(before), dict(now), resource=resource)}


@dataclass(frozen=True)
class Score:
    renames: int
    first: int  # renames whose successor is the first proposal
    among: int  # and those where it is among the proposals
    applied: int  # and those where it applies by itself
    removals: int
    silent: int  # removals with no proposal at all
    wrong: tuple[str, ...]  # what applies by itself and shouldn't
    missed: tuple[str, ...]


@cache
def score(half: str, given: Given) -> Score:
    renames = first = among = applied = removals = silent = 0
    wrong, missed = [], []
    for case in cases(half):
        if case.derived and given == "resource":
            continue  # `before` has tried it; all of a resource once more for each takes too long
        made = plan(case, given)
        paths = [each.path for each in made.proposals]
        if made.applies and made.successor != case.successor:
            wrong.append(f"{case.provider} {case.resource}: {case.old} -> {made.successor}")
        if case.successor is None:
            removals += not case.derived
            silent += not case.derived and not paths
            continue
        renames += 1
        hit = paths[:1] == [case.successor]
        first, among = first + hit, among + (case.successor in paths)
        applied += made.applies
        if not hit:
            missed.append(f"{case.provider} {case.resource}: {case.old} -> {case.successor}, not {paths[:2]}")
    return Score(renames, first, among, applied, removals, silent, tuple(wrong), tuple(missed))
