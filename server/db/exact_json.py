"""JSON for PostgreSQL that keeps decimals exact and never fails on what a provider sent."""

import json
from decimal import Decimal
from typing import Any

import orjson


def dumps(value: Any) -> str:
    """Write any plain value, Decimal as a number. Characters PostgreSQL can't keep become U+FFFD."""
    try:
        text = orjson.dumps(value, default=_default)
    except orjson.JSONEncodeError:  # a lone surrogate, an integer of more than 64 bits
        text = None
    if text is None or b"\\u0000" in text:
        text = orjson.dumps(_storable(value), default=_default)
    return text.decode()


def loads(text: str) -> Any:
    """Read JSON, numbers with a fraction as Decimal."""
    return json.loads(text, parse_float=Decimal)


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else None
    raise TypeError(f"{type(value).__name__} isn't a plain value")


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if isinstance(value, int) and value.bit_length() > 63:
        return Decimal(value)
    return value
