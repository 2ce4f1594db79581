"""Notice that records of a provider aren't what they were: `compare` what is known with what was just seen.

A field counts as removed only after it was missed much longer than it ever was, and one that appears is new
only once there is something to compare with. Where a new field is like one that was removed, it is renamed.
One that the provider answered it doesn't know is refused, until records have it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from engine.fields import FieldCatalog
from engine.healing import plan_heals
from engine.observing import MOST_FIELDS, MOST_SHAPES, Sighting

DriftKind = Literal["added", "removed", "returned", "refused", "retyped", "enumeration_grown", "renamed"]

SETTLED = 20  # records of a resource, or of a field, before anything is told of it
MISSED_AT_LEAST = 50  # records without a field, before it counts as removed
MISSED_TIMES = 8  # and how often it would have come in those
MOST_WORDS = 50  # values of an enumeration that are kept
RENAMED_SCORE = 0.6


@dataclass(frozen=True, slots=True)
class KnownField:
    """What is known of a field from all records so far.

    `records` were looked at since it first came; it was in `seen`, empty in `nulls`, and missing in the last
    `missed`. `words` are values of an enumeration that the manifest doesn't declare.
    """

    path: str
    types: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    records: int = 0
    seen: int = 0
    nulls: int = 0
    missed: int = 0
    removed: bool = False
    refused: bool = False  # the provider answered to a write that it doesn't know it
    first_seen: datetime | None = None  # None: with this sighting

    @property
    def gone(self) -> bool:
        return self.removed or self.refused

    @property
    def share(self) -> float:
        """In which share of records it was, from 0 to 1."""
        return self.seen / self.records if self.records else 0.0

    @property
    def type(self) -> str:
        """The one type it had, `decimal` for numbers of both kinds, otherwise `any`."""
        if set(self.types) == {"integer", "decimal"}:
            return "decimal"
        return self.types[0] if len(self.types) == 1 else "any"


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that changed. `before` and `after` are what it was and is: types, values, or a path."""

    kind: DriftKind
    path: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(slots=True)
class Comparison:
    """What is known now, by path, and what changed."""

    fields: dict[str, KnownField] = field(default_factory=dict)
    drift: list[Drift] = field(default_factory=list)


def compare(
    known: Mapping[str, KnownField],
    sighting: Sighting,
    declared: FieldCatalog,
    *,
    resource: str = "",
    renamed: Mapping[str, str] | None = None,
) -> Comparison:
    """Add what was seen to what is known of a resource, and tell what changed.

    The first sighting of a resource changes nothing. `declared` are the manifest's fields, whose `one_of`
    says which values an enumeration has; `renamed` is what the provider says itself.
    """
    made = Comparison()
    settled = max((each.records for each in known.values()), default=0) >= SETTLED
    chances = _Chances(sighting)
    for path, old in known.items():
        if path not in sighting.fields:
            made.fields[path] = _missed(old, chances.of(path), made)
    for path, seen in sighting.fields.items():
        if path not in known and len(made.fields) >= MOST_FIELDS:
            continue
        old = known.get(path, KnownField(path))
        if path not in known and settled:
            made.drift.append(Drift("added", path, (), tuple(seen.types)))
        # What was read all along and can't be written won't be written for being read again.
        returned = old.removed or (old.refused and not old.seen)
        if returned:
            made.drift.append(Drift("returned", path, (), tuple(seen.types)))
        types = (*old.types, *(each for each in seen.types if each not in old.types))
        if old.seen - old.nulls >= SETTLED and _kinds(types) != _kinds(old.types) and old.types:
            made.drift.append(Drift("retyped", path, old.types, types))
        words = _new_words(old, seen.words, declared)
        if words:
            made.drift.append(Drift("enumeration_grown", path, declared[path].one_of + old.words, words))
        made.fields[path] = replace(
            old,
            types=types,
            shapes=tuple(dict.fromkeys((*old.shapes, *seen.shapes)))[:MOST_SHAPES],
            words=(*old.words, *words)[:MOST_WORDS],
            records=old.records + sighting.records,
            seen=old.seen + seen.seen,
            nulls=old.nulls + seen.nulls,
            missed=0,
            removed=False,
            refused=old.refused and not returned,
        )
    for path in sorted(sighting.refused):
        _refuse(made, path)
    _find_renamed(made, known, resource, renamed or {})
    return made


def _missed(old: KnownField, records: int, made: Comparison) -> KnownField:
    missed = old.missed + records
    # A field that is rarely there has to be missed for longer.
    enough = missed >= MISSED_AT_LEAST and missed * old.share >= MISSED_TIMES
    removed = old.removed or (enough and old.seen >= SETTLED)
    if removed and not old.removed:
        made.drift.append(Drift("removed", old.path, old.types))
    # Its share is that of the time in which it was there.
    return replace(old, missed=missed, removed=removed)


class _Chances:
    """In how many of the records that were looked at a field could have been.

    What is within a group or a list can't be missed where that is empty, or null.
    """

    def __init__(self, sighting: Sighting) -> None:
        self._sighting = sighting
        self._within: dict[str, int] = {}
        for path, each in sighting.fields.items():
            group = path.rpartition(".")[0]
            self._within[group] = max(self._within.get(group, 0), each.seen)

    def of(self, path: str) -> int:
        group = path.rpartition(".")[0]
        if not group:
            return self._sighting.records
        if group in self._within:
            return self._within[group]
        parent = self._sighting.fields.get(group.removesuffix("[0]"))
        if parent is None:
            return self.of(group)
        return sum(times for kind, times in parent.types.items() if kind not in ("object", "list"))


def _refuse(made: Comparison, path: str) -> None:
    old = made.fields.get(path, KnownField(path))
    if not old.refused and (path in made.fields or len(made.fields) < MOST_FIELDS):
        made.drift.append(Drift("refused", path, old.types))
        made.fields[path] = replace(old, refused=True)


def _kinds(types: tuple[str, ...]) -> frozenset[str]:
    return frozenset("decimal" if each == "integer" else each for each in types)


def _new_words(old: KnownField, seen: set[str], declared: FieldCatalog) -> tuple[str, ...]:
    if old.path not in declared or not declared[old.path].one_of:
        return ()
    return tuple(sorted(seen - {*declared[old.path].one_of, *old.words}))


def _find_renamed(
    made: Comparison, known: Mapping[str, KnownField], resource: str, renamed: Mapping[str, str]
) -> None:
    """Make `renamed` of what was removed where something that came later is like it."""
    removed = [each.path for each in made.drift if each.kind == "removed"]
    if not removed:
        return
    # What was there while the field still was is no successor.
    oldest = {path: known[path] for path in removed}
    before: dict[str, Any] = {
        path: each.type
        for path, each in known.items()
        if each.records > min(k.missed for k in oldest.values())
    }
    before |= {path: each.type for path, each in oldest.items()}
    now = {path: each.type for path, each in made.fields.items() if not each.removed and path not in removed}
    plans = plan_heals(before, now, renamed=renamed, resource=resource, only=removed)
    for plan in plans:
        best = plan.proposals[0] if plan.proposals else None
        if best is not None and best.score >= RENAMED_SCORE and best.path not in before:
            at = next(
                i for i, each in enumerate(made.drift) if (each.kind, each.path) == ("removed", plan.field)
            )
            made.drift[at] = Drift("renamed", plan.field, (plan.field,), (best.path,), best.evidence)
