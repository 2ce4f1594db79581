"""Mappings that are wrong in one place: each is to be noticed by the samples of its template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path as FilePath
from typing import Any, Final

from engine.documents import Steps
from tests.mutation.words import changes_of, negated

SCHEMA = FilePath(__file__).parents[2] / "schemas" / "mapping-template.schema.json"

_GONE: Final = object()  # in place of a value: it isn't there
_TEXTS = ("push", "pull")  # keys of a rule that hold expressions
_CONDITIONS = ("only_when", "only_pull_when")
_SWITCHES = (
    "optional",
    "required",
    "unknown",
    "default",
    "pull_default",
    "link",
    "each_is",
    "when_both_changed",
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong mapping. `at` is where below the mapping it was changed, `offset` where in a text.

    `written` is None when the mapping itself is gone, and the mapping's number in `swapped_with` when two
    mappings changed places.
    """

    at: Steps
    kind: str
    says: str
    written: Mapping[str, Any] | None
    offset: int | None = None


@cache
def _words(key: str, of: str = "mapping") -> tuple[tuple[str, ...], str | None]:
    """Return what a key of the language may say, and what it means to leave it out."""
    definitions = json.loads(SCHEMA.read_text("utf-8"))["definitions"]
    rule = definitions["mapping"] if of == "mapping" else definitions["field_rule"]["allOf"][1]["then"]
    said = rule["properties"][key]
    return tuple(said.get("enum", ())), said.get("default")


def put(value: Any, at: Steps, new: Any) -> Any:
    """Return a value with another one at a place within it, or without it."""
    if not at:
        return new
    step, rest = at[0], at[1:]
    if isinstance(value, list):
        made = list(value)
        if not rest and new is _GONE:
            del made[int(step)]
        else:
            made[int(step)] = put(made[int(step)], rest, new)
        return made
    if not rest and new is _GONE:
        return {key: each for key, each in value.items() if key != step}
    return {key: put(each, rest, new) if key == step else each for key, each in value.items()}


def mutants_of(written: Mapping[str, Any], resources: tuple[str, ...]) -> Iterator[Mutant]:
    """Yield a mapping wrong in every way we know, one at a time; `resources` are those a link can name."""
    yield Mutant((), "drop mapping", f"{written['entity']} - {written['resource']}", None)
    yield from _of_decisions(written)
    yield from _of_conditions(written, ())
    yield from _of_fields(written, ("fields",), resources)


def _of_decisions(written: Mapping[str, Any]) -> Iterator[Mutant]:
    for key in (
        "direction",
        "when_both_changed",
        "when_ours_is_gone",
        "when_no_longer_wanted",
        "when_theirs_is_gone",
    ):
        if key not in written:
            continue
        for word in _words(key)[0]:
            if word != written[key]:
                yield Mutant(
                    (key,), "change decision", f"{written[key]} -> {word}", put(written, (key,), word)
                )
    if "at_most_gone" in written:
        yield Mutant(("at_most_gone",), "change decision", "left out", put(written, ("at_most_gone",), _GONE))
        changed = "1 percent" if written["at_most_gone"] != "1 percent" else "2 percent"
        yield Mutant(
            ("at_most_gone",), "change decision", f"-> {changed}", put(written, ("at_most_gone",), changed)
        )
    if "match_on" in written:
        yield Mutant(("match_on",), "change decision", "left out", put(written, ("match_on",), _GONE))
        for name in written["fields"]:
            if name != written["match_on"]:
                yield Mutant(
                    ("match_on",), "change decision", f"-> {name}", put(written, ("match_on",), name)
                )


def _of_conditions(written: Mapping[str, Any], at: Steps) -> Iterator[Mutant]:
    """Yield what is wrong with the conditions of a mapping or of a rule, at its place."""
    holder = _value(written, at)
    for key in _CONDITIONS:
        text = holder.get(key)
        if text is None:
            continue
        here = (*at, key)
        yield Mutant(here, "drop condition", _short(text), put(written, here, _GONE))
        opposite = negated(text)
        if opposite is not None:
            yield Mutant(here, "negate condition", _short(opposite), put(written, here, opposite))
        yield from _of_text(written, here)


def _of_text(written: Mapping[str, Any], at: Steps) -> Iterator[Mutant]:
    for each in changes_of(_value(written, at)):
        says = (
            f"`{_short(each.was)}` -> `{_short(each.now)}`" if each.now else f"`{_short(each.was)}` removed"
        )
        yield Mutant(at, each.kind, says, put(written, at, each.text), each.offset)


def _of_fields(written: Mapping[str, Any], at: Steps, resources: tuple[str, ...]) -> Iterator[Mutant]:
    """Yield what is wrong with the rules of a mapping, or of the items of a list."""
    rules = list(_rules(_value(written, at), at))
    for name, several in _value(written, at).items():
        if len(_value(written, at)) > 1:
            yield Mutant((*at, name), "drop field", f"{name}", put(written, (*at, name), _GONE))
        if isinstance(several, list):
            for number in range(len(several)):
                at_rule = (*at, name, number)
                if len(several) > 1:
                    yield Mutant(at_rule, "drop rule", _path(several[number]), put(written, at_rule, _GONE))
            for one, other in combinations(range(len(several)), 2):
                if not (_pulls(written, several[one]) and _pulls(written, several[other])):
                    continue  # only what is kept depends on an order: the first that has a value
                order = list(several)
                order[one], order[other] = order[other], order[one]
                says = f"{_path(several[one])} <-> {_path(several[other])}"
                yield Mutant((*at, name, one), "swap order", says, put(written, (*at, name), order))
    for (here, first), (there, second) in combinations(rules, 2):
        alike = (
            here[:-1] == there[:-1]
            and isinstance(here[-1], int)
            and _with_path(first, "") == _with_path(second, "")
        )
        ordered = _pulls(written, first) and _pulls(written, second)
        if _path(first) != _path(second) and (ordered or not alike):
            swapped = put(written, here, _with_path(first, _path(second)))
            swapped = put(swapped, there, _with_path(second, _path(first)))
            yield Mutant(here, "swap sources", f"{_path(first)} <-> {_path(second)}", swapped)
    for at_rule, rule in rules:
        if isinstance(rule, dict):
            yield from _of_rule(written, at_rule, rule, resources)


def _of_rule(
    written: Mapping[str, Any], at: Steps, rule: Mapping[str, Any], resources: tuple[str, ...]
) -> Iterator[Mutant]:
    yield from _of_conditions(written, at)
    for key in _TEXTS:
        if key in rule:
            yield Mutant((*at, key), "drop calculation", _short(rule[key]), put(written, (*at, key), _GONE))
            yield from _of_text(written, (*at, key))
    for key in _SWITCHES:
        if key in rule:
            yield Mutant((*at, key), f"drop {key}", _short(str(rule[key])), put(written, (*at, key), _GONE))
    for key in ("default", "pull_default"):
        if key in rule:
            yield Mutant(
                (*at, key), "change constant", f"{rule[key]!r}", put(written, (*at, key), _other(rule[key]))
            )
    if "when_both_changed" in rule:
        for word in _words("when_both_changed", "rule")[0]:
            if word != rule["when_both_changed"]:
                here = (*at, "when_both_changed")
                yield Mutant(
                    here,
                    "change decision",
                    f"{rule['when_both_changed']} -> {word}",
                    put(written, here, word),
                )
    if "link" in rule:
        for resource in resources:
            if resource != rule["link"]:
                here = (*at, "link")
                yield Mutant(
                    here, "change link", f"{rule['link']} -> {resource}", put(written, here, resource)
                )
    if "values" in rule:
        yield from _of_table(written, (*at, "values"), rule["values"])
    if "each" in rule:
        yield from _of_fields(written, (*at, "each"), resources)


def _of_table(written: Mapping[str, Any], at: Steps, table: Mapping[str, Any]) -> Iterator[Mutant]:
    for ours, theirs in table.items():
        if len(table) > 1:
            yield Mutant((*at, ours), "drop value", f"{ours}: {theirs}", put(written, (*at, ours), _GONE))
        yield Mutant((*at, ours), "change constant", f"{theirs!r}", put(written, (*at, ours), _other(theirs)))
    for one, other in combinations(table, 2):
        if table[one] != table[other]:
            swapped = {**table, one: table[other], other: table[one]}
            yield Mutant((*at, one), "swap values", f"{one} <-> {other}", put(written, at, swapped))


# ---- reading a mapping ---------------------------------------------------------------------------------


def _rules(fields: Mapping[str, Any], at: Steps) -> Iterator[tuple[Steps, Any]]:
    for name, several in fields.items():
        if isinstance(several, list):
            yield from (((*at, name, number), each) for number, each in enumerate(several))
        else:
            yield (*at, name), several


def _value(written: Any, at: Steps) -> Any:
    for step in at:
        written = written[step]
    return written


def _path(rule: Any) -> str:
    return str(rule if isinstance(rule, str) else rule["path"])


def _with_path(rule: Any, path: str) -> Any:
    return path if isinstance(rule, str) else {**rule, "path": path}


def _pulls(written: Mapping[str, Any], rule: Any) -> bool:
    one_way = isinstance(rule, dict) and ("push" in rule or "each" in rule) and "pull" not in rule
    return written["direction"] != "push" and not one_way


def _other(value: Any) -> Any:
    """Return another constant of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}~"
        case list():
            return [*value, "~"]
        case _:
            return {**value, "~": "~"}


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 70 else f"{words[:67]}..."
