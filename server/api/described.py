"""Good answers, as the API description shows them."""

from enum import Enum
from typing import Any

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example


class _Null(Enum):
    """A null that survives: the framework leaves None out of what it describes, in examples too."""

    NULL = None


def good(kind: type, description: str, *examples: Example) -> ResponseSpec:
    """Describe a good answer, with examples."""
    shown = [Example(summary=each.summary, value=_with_nulls(each.value)) for each in examples]
    return ResponseSpec(kind, generate_examples=False, description=description, examples=shown)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _Null.NULL if item is None else _with_nulls(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return value
