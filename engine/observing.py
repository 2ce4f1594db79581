"""What records really carry: the type and shape of each field, and never a value.

`observe` is given records as they come by and keeps counts only. A shape says what values look like (`email`,
`digits(10)`, `iso-time`); no part of a value is kept, so nobody's data is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

MOST_FIELDS = 500  # of a resource; a provider that makes up names, such as dates for keys, has no end of them
MOST_SHAPES = 6  # of a field
LONGEST = 500  # characters of a path
DEEPEST = 6  # levels within each other
ITEMS_LOOKED_AT = 3  # of a list
SHAPES_LOOKED_AT = 30  # values of a field: what the others look like says little more
MOST_WORDS = 50  # of an enumeration
MOST_REFUSED = 20  # fields of a resource

# What other people call our types.
_OTHER_WORDS: Final[Mapping[str, str]] = {
    word: ours
    for ours, words in {
        "text": "string str varchar char enum hash html markdown keyword picklist textarea",
        "integer": "int int32 int64 long bigint short count",
        "decimal": "number float double numeric real percent",
        "boolean": "bool flag checkbox",
        "timestamp": "datetime date-time date_time time instant unix epoch timestamptz",
        "list": "array set collection multipicklist",
        "object": "dict map hashmap struct record json",
        "id": "uuid guid reference ref key identifier lookup",
        "url": "uri link href",
        "phone": "tel telephone",
        "any": "none unknown mixed ?",
    }.items()
    for word in words.split()
}

_SHAPES: Final[Mapping[str, str]] = {
    "email": r"[^@\s]+@[^@\s]+\.[^@\s]+",
    "url": r"[a-z][a-z0-9+.-]*://\S+",
    "iso-time": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*",
    "iso-date": r"\d{4}-\d\d-\d\d",
    "clock-time": r"\d{1,2}:\d\d(?::\d\d)?",
    "uuid": r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "phone": r"\+\d[\d\s().-]{6,20}|\(\d{3}\)\s?\d{3}-\d{4}|\d{3}-\d{3}-\d{4}",
    "decimal text": r"-?\d+\.\d+",
    "truth text": r"(?i:true|false|yes|no)",
    "hex-colour": r"#[0-9a-fA-F]{3,8}",
    "prefixed id": r"[a-z]{2,6}_[A-Za-z0-9_]{8,}",
    "upper code": r"[A-Z]{2,3}",
    "word": r"[A-Za-z][A-Za-z0-9_-]{0,39}",
}
_SHAPE_NAMES: Final = tuple(_SHAPES)
_SHAPE: Final = re.compile("|".join(f"({pattern})" for pattern in _SHAPES.values()))  # the first that fits
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,39}")
_NAMES: Final = re.compile(r"[^\W\d][\w-]*")  # of the steps of a path, however they are put together
_TYPE_OF_SHAPE: Final = {
    "email": "email",
    "url": "url",
    "iso-time": "timestamp",
    "iso-date": "date",
    "uuid": "id",
    "phone": "phone",
    "prefixed id": "id",
}


def family(type_: str | None) -> str:
    """Return our word for a type, whatever somebody calls it; `any` for what isn't known."""
    word = (type_ or "").strip().lower() or "any"
    return _OTHER_WORDS.get(word, word)


_JSON_TYPES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "decimal",
    Decimal: "decimal",
    str: "text",
    dict: "object",
    list: "list",
}


def json_type(value: Any) -> str:
    """Return the type JSON gives a value: text, integer, decimal, boolean, list, object or null."""
    known = _JSON_TYPES.get(type(value))
    if known is None:
        kinds = (each for kind, each in _JSON_TYPES.items() if isinstance(value, kind))
        known = next(kinds, "object" if isinstance(value, Mapping) else "list")
    return known


def shape_of(value: Any) -> str | None:
    """Say what a text or number looks like; None for other values, and for the empty text."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return "unix-time" if 1_000_000_000 <= value < 5_000_000_000 else "number"
    if isinstance(value, float | Decimal):
        return "fraction"
    if not isinstance(value, str) or not value:
        return None
    if value.isascii() and value.isdigit():
        return f"digits({len(value)})"
    start = value[:200]
    found = _SHAPE.fullmatch(start)
    return _SHAPE_NAMES[found.lastindex - 1] if found and found.lastindex else _prose(start)


def _prose(text: str) -> str:
    return "markup" if text.lstrip().startswith("<") else "long text" if len(text) > 80 else "short text"


def type_of_values(values: Iterable[Any]) -> str:
    """Return the type that fits all values: a finer one such as `email` when all have its shape."""
    found, shapes = set(), set()
    for value in values:
        if value is not None and value != "":
            found.add(json_type(value))
            shapes.add(shape_of(value))
    if found == {"text"} and len(shapes) == 1:
        return _TYPE_OF_SHAPE.get(shapes.pop() or "", "text")
    if found == {"integer", "decimal"}:
        return "decimal"
    return found.pop() if len(found) == 1 else "any"


def leaves(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return path and value of everything in a record, groups as well; items of lists as `[0]`."""
    found: list[tuple[str, Any]] = []
    _gather(record, "", DEEPEST, found)
    return found


def _gather(record: Mapping[str, Any], within: str, depth: int, found: list[tuple[str, Any]]) -> None:
    for name, value in record.items():
        path = f"{within}{name}"
        found.append((path, value))
        kind = type(value)
        if kind is str or depth == 1:
            continue
        if kind is dict or isinstance(value, Mapping):
            _gather(value, f"{path}.", depth - 1, found)
        elif isinstance(value, list | tuple):
            for item in value[:ITEMS_LOOKED_AT]:
                if isinstance(item, Mapping):
                    _gather(item, f"{path}[0].", depth - 1, found)


@dataclass(slots=True)
class Observed:
    """What was seen of one field: how often, how often with nothing in it, its types and shapes by count."""

    seen: int = 0  # records that had it
    nulls: int = 0  # of those, with nothing in it
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)  # values, of fields that are declared as enumerations only

    @property
    def null_share(self) -> float:
        """From 0 to 1."""
        return self.nulls / self.seen if self.seen else 0.0

    def add(self, value: Any, *, enumeration: bool = False) -> None:
        self.seen += 1
        if enumeration and isinstance(value, str) and _WORD.fullmatch(value) and len(self.words) < MOST_WORDS:
            self.words.add(value)
        if value is None:
            self.nulls += 1
            return
        kind = json_type(value)
        self.types[kind] = self.types.get(kind, 0) + 1
        if self.seen > SHAPES_LOOKED_AT:
            return
        shape = shape_of(value)
        if shape is not None and (shape in self.shapes or len(self.shapes) < MOST_SHAPES):
            self.shapes[shape] = self.shapes.get(shape, 0) + 1


@dataclass(slots=True)
class Sighting:
    """What was seen of the fields of one resource, in `records` records."""

    records: int = 0
    fields: dict[str, Observed] = field(default_factory=dict)
    enumerations: frozenset[str] = frozenset()  # paths whose values are words of the provider's own
    refused: set[str] = field(default_factory=set)  # paths that it answered it doesn't know

    def look(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count in what some records carry."""
        for record in records:
            self.records += 1
            here: set[str] = set()
            for path, value in leaves(record):
                known = self.fields.get(path)
                if known is None:
                    if len(self.fields) >= MOST_FIELDS or len(path) > LONGEST or not path.isprintable():
                        continue
                    known = self.fields[path] = Observed()
                if path not in here:  # of a list's items the first one counts
                    here.add(path)
                    known.add(value, enumeration=path in self.enumerations)

    def refuse(self, path: str) -> None:
        """Note a field that the provider refused to take because it doesn't know it."""
        if len(self.refused) < MOST_REFUSED and len(path) <= LONGEST and path.isprintable():
            self.refused.add(path)


def path_meant(named: str, paths: Iterable[str]) -> str | None:
    """Return which of the paths that were sent a provider complains of, however it names it.

    It has the same steps, or is the only one that ends with them, or that what it is called ends with.
    """
    meant = _NAMES.findall(named.lower())
    steps = {path: _NAMES.findall(path.lower()) for path in paths} if meant else {}
    same = [path for path, each in steps.items() if each == meant]
    near = same or [
        path
        for path, each in steps.items()
        if each and (each[-len(meant) :] == meant or meant[-len(each) :] == each)
    ]
    return near[0] if len(near) == 1 else None


def observe(records: Iterable[Mapping[str, Any]]) -> dict[str, Observed]:
    """Return what records carry, by path."""
    sighting = Sighting()
    sighting.look(list(records))
    return sighting.fields
