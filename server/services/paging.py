"""What every list answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, how many there are in all, and where the next page starts."""

    rows: Sequence[Any]
    total: int
    next_key: tuple[str, ...] | None
