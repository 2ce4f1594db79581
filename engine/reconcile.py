"""When two sides have the same record: is it unchanged, and who wins where both changed?

Pure functions over plain values. A field counts as changed when it differs from what both sides last agreed
on; each side is compared with its own last value, so a mapping that loses something on the way (a full name
split in two) never makes a change by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Literal
from uuid import UUID, uuid5

import orjson

from engine.fields import FieldCatalog
from engine.ports import Link

__all__ = [
    "ConflictRule",
    "Link",
    "Resolution",
    "fingerprint",
    "local_id_for",
    "moment",
    "plain",
    "resolve",
    "same",
]

ConflictRule = Literal["newest_wins", "platform_wins", "provider_wins"]

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


@dataclass(frozen=True, slots=True)
class Resolution:
    """`take` are their values for the platform; `ours_win` says that the provider has to be written."""

    take: Mapping[str, Any]
    ours_win: bool
    conflicts: tuple[str, ...] = ()


def resolve(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    agreed: Mapping[str, Any],
    *,
    rule: ConflictRule,
    theirs_newer: bool,
    fields: FieldCatalog,
) -> Resolution:
    """Merge field by field against what was last agreed.

    `ours` are the platform's values now, `theirs` the provider's in the platform's terms. `agreed` is a
    link's (`{"ours": …, "theirs": …}`), empty for a pair just matched: then a missing value takes the other
    side's.
    """
    agreed_ours, agreed_theirs = agreed.get("ours"), agreed.get("theirs")
    take: dict[str, Any] = {}
    conflicts: list[str] = []
    ours_win = False
    for name, their_value in theirs.items():
        field = fields.get(name)
        kind = field.type if field else "any"
        our_value = ours.get(name)
        if same(our_value, their_value, kind):
            continue
        if agreed_ours is None or agreed_theirs is None:
            they_changed, we_changed = their_value not in (None, ""), our_value not in (None, "")
        else:
            they_changed = name not in agreed_theirs or not same(agreed_theirs[name], their_value, kind)
            we_changed = name not in agreed_ours or not same(agreed_ours[name], our_value, kind)
        if they_changed and we_changed:
            conflicts.append(name)
            they_win = rule == "provider_wins" or (rule == "newest_wins" and theirs_newer)
        else:
            they_win = they_changed
        if they_win:
            take[name] = their_value
        elif we_changed:
            ours_win = True
    return Resolution(take, ours_win, tuple(conflicts))


def _exact(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    raise TypeError(f"a {type(value).__name__} isn't a plain value")
