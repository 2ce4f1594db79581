"""Venues of every kind, with the template that suits each."""

from functools import cache
from pathlib import Path
from typing import Any

from engine.documents import read_document


@cache
def venues() -> tuple[dict[str, Any], ...]:
    """Return records of venues; `template` is the name of the one that suits."""
    return tuple(read_document(Path(__file__).with_name("venues.yaml")).data["venues"])
