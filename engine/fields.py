"""The fields of a resource or entity: what a mapping may name, and of which type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

FIELD_TYPES = (
    "text", "integer", "decimal", "boolean", "id", "email", "phone", "url", "currency",
    "timestamp", "date", "money", "list", "object", "any",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `path` is names, dots and `[n]`; `at_most` a length in characters."""

    path: str
    type: str = "text"
    one_of: tuple[str, ...] = ()
    at_most: int | None = None
    too_long: Literal["reject", "cut"] = "reject"  # what becomes of a longer text
    clears: bool = True  # whether null empties it; else null isn't sent
    required: bool = False  # a new record can't do without it
    read_only: bool = False
    on_create_only: bool = False
    sent: bool = True  # else it's for the templates of calls, and no part of a body
    unit: str | None = None  # of money on the platform: major or minor
    currency: str | None = None  # of money on the platform: the field that holds its currency
    column: str | None = None  # on the platform: its column, when it isn't the field's name


@dataclass(frozen=True, slots=True)
class FieldCatalog(Mapping[str, Field]):
    """Fields by path, in the order they were declared."""

    fields: Mapping[str, Field]

    def __getitem__(self, path: str) -> Field:
        return self.fields[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


def declared_field(fields: FieldCatalog, path: str) -> Field | None:
    """Return the field a path means: declared itself, or within one that is an object, a list or anything."""
    if path in fields:
        return fields[path]
    return next(
        (
            each
            for each in fields.values()
            if each.type in ("object", "list", "any") and path.startswith((f"{each.path}.", f"{each.path}["))
        ),
        None,
    )
