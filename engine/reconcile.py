"""When two sides have the same record: is it unchanged, and who wins where both changed?

Pure functions over plain values. A field counts as changed when it differs from what both sides last agreed
on; each side is compared with its own last value, so a mapping that loses something on the way (a full name
split in two) never makes a change by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Literal
from uuid import UUID, uuid5

import orjson

from engine.fields import FieldCatalog
from engine.ports import Decision, FieldConflict, Link

__all__ = [
    "ConflictRule",
    "Link",
    "Outcome",
    "Resolution",
    "fingerprint",
    "local_id_for",
    "moment",
    "plain",
    "resolve",
    "same",
]

ConflictRule = Literal["newest_wins", "platform_wins", "provider_wins", "manual"]

_NAMESPACE = UUID("6f2f1f0e-9f0c-4d3a-8b51-6a7f4f0d2c11")


def fingerprint(value: Any) -> str:
    """Return a short digest of a plain value: equal values give equal digests, whatever their key order."""
    return hashlib.sha256(orjson.dumps(value, default=_exact, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]


def local_id_for(venue_id: str, connector: str, resource: str, remote_id: str) -> str:
    """Return a remote record's id on the platform: always the same, so a repeated page makes no twin."""
    return str(uuid5(_NAMESPACE, f"{venue_id}/{connector}/{resource}/{remote_id}"))


def moment(text: str | None) -> datetime | None:
    """Read an RFC 3339 moment; None when there is none or it can't be read."""
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def same(one: Any, other: Any, field_type: str = "any") -> bool:
    """Say whether two values of a field mean the same: missing is empty, 5 is 5.00, 10:00Z is 11:00+01:00."""
    if one in (None, "") and other in (None, ""):
        return True
    if field_type in ("timestamp", "date") and isinstance(one, str) and isinstance(other, str):
        left, right = moment(one), moment(other)
        if left and right:
            return left == right
    if isinstance(one, Decimal | float) or isinstance(other, Decimal | float):
        return _digits(one) == _digits(other)
    return bool(one == other)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from storage, so that the two can be compared: fractions are text."""
    return {name: plain_value(value) for name, value in values.items()}


def plain_value(value: Any) -> Any:
    """Return a number that is exact, or has a fraction, as text without trailing zeros; other values as they
    are.
    """
    if isinstance(value, float) and isfinite(value):
        value = Decimal(repr(value))
    return format(value.normalize(), "f") if isinstance(value, Decimal) else value


def _digits(value: Any) -> str:
    """Return a number as text, or the text that it was stored as."""
    return str(plain_value(value))


Outcome = Literal["platform", "provider", "person", "open"]  # who decided about a field, or that nobody did


@dataclass(frozen=True, slots=True)
class Resolution:
    """`take` are their values for the platform; `ours_win` says that the provider has to be written.

    `conflicts` are the fields that both sides had changed, and `outcomes` what became of each of them and of
    those that were `open` before. Those that are `open` now stay as they are on both sides. `applied` are
    those a person's decision was carried out for, `over` those it is no longer asked for.
    """

    take: Mapping[str, Any]
    ours_win: bool
    conflicts: tuple[str, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    applied: tuple[str, ...] = ()
    over: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[str, ...]:
        return tuple(name for name, outcome in self.outcomes.items() if outcome == "open")


def resolve(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    agreed: Mapping[str, Any],
    *,
    rule: ConflictRule | Callable[[str], ConflictRule],
    theirs_newer: bool,
    fields: FieldCatalog,
    known: Mapping[str, FieldConflict] | None = None,
    unsaid: Iterable[str] = (),
) -> Resolution:
    """Merge field by field against what was last agreed.

    `ours` are the platform's values now, `theirs` the provider's in the platform's terms. `agreed` is a
    link's (`{"ours": …, "theirs": …, "open": …}`), empty for a pair just matched: then a missing value takes
    the other side's. `rule` may give each field one of its own. `known` are conflicts by field, for what a
    person decided: that holds for the values it was decided about, and for no others. `unsaid` are fields
    that could come with `theirs` and don't: ours is to be written there where it changed.
    """
    before = {"ours": agreed.get("ours") or {}, "theirs": agreed.get("theirs") or {}}
    was_open, known = tuple(agreed.get("open", ())), known or {}
    take: dict[str, Any] = {}
    conflicts: list[str] = []
    outcomes: dict[str, Outcome] = {name: "open" for name in was_open if name not in theirs}
    applied: list[str] = []
    over: list[str] = []
    ours_win = False
    for name, their_value in theirs.items():
        declared = fields.get(name)
        kind = declared.type if declared else "any"
        our_value = ours.get(name)
        decided = known[name].decision if name in known else None
        if same(our_value, their_value, kind):
            over += [name] if name in was_open or name in known else []
            continue
        if decided is not None and _is_of(known[name], our_value, their_value, kind):
            value = _value_of(decided, our_value, their_value, kind)
            take |= {} if same(our_value, value, kind) else {name: value}
            ours_win = ours_win or not same(their_value, value, kind)
            outcomes[name] = "person"
            applied.append(name)
            continue
        they_changed = not same(before["theirs"].get(name), their_value, kind)
        we_changed = not same(before["ours"].get(name), our_value, kind)
        they_win = they_changed
        if they_changed and we_changed:
            conflicts.append(name)
            decides = rule if isinstance(rule, str) else rule(name)
            if decides == "manual":
                outcomes[name] = "open"
                over += [name] if decided is not None else []  # it was about other values
                continue
            they_win = decides == "provider_wins" or (decides == "newest_wins" and theirs_newer)
            outcomes[name] = "provider" if they_win else "platform"
        over += [name] if name in was_open or name in known else []
        if they_win:
            take[name] = their_value
        elif we_changed:
            ours_win = True
    for name in unsaid:
        if name not in theirs and name not in was_open:
            declared = fields.get(name)
            ours_win = ours_win or not same(
                before["ours"].get(name), ours.get(name), declared.type if declared else "any"
            )
    return Resolution(take, ours_win, tuple(conflicts), outcomes, tuple(applied), tuple(over))


def _is_of(conflict: FieldConflict, ours: Any, theirs: Any, kind: str) -> bool:
    """Say whether a conflict is still the one that was decided about: neither side has changed since."""
    return same(conflict.ours, ours, kind) and same(conflict.theirs, theirs, kind)


def _value_of(decision: Decision, ours: Any, theirs: Any, kind: str) -> Any:
    if decision.take == "platform":
        return ours
    if decision.take == "provider":
        return theirs
    numeric = kind in ("decimal", "money") and isinstance(decision.value, str | int)
    return Decimal(decision.value) if numeric else decision.value


def _exact(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    raise TypeError(f"a {type(value).__name__} isn't a plain value")
