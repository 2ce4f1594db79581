"""Bracket-nested forms, and parameters checked against exactly what is known.

`a[b][0]=x` reads as `{"a": {"b": ["x"]}}`. A check takes the value as sent and the parameter's
full name, and returns what is stored; an empty text stands for "unset" and becomes None.
"""

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qsl

from tests.sandbox.shelf import Json

Check = Callable[[Any, str], Any]

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


class ParameterError(Exception):
    """A parameter that is unknown, missing or wrong; `code` as the provider names it."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def decode(text: str) -> Json:
    """Read a form or query string into nested objects and lists."""
    return nest(parse_qsl(text, keep_blank_values=True))


def nest(pairs: Collection[tuple[str, str]]) -> Json:
    """Build nested objects from names with brackets."""
    root: Json = {}
    for name, value in pairs:
        if "[" not in name:
            _place(root, name, value, name)
            continue
        matched = _KEY.fullmatch(name)
        if matched is None:
            raise ParameterError("parameter_unknown", f"Received unknown parameter: {name}", name)
        steps = [matched[1], *(step.rstrip("]") for step in matched[2].split("[")[1:])]
        inner = root
        for step in steps[:-1]:
            inner = inner.setdefault(step or str(len(inner)), {})
            if not isinstance(inner, dict):
                raise ParameterError("parameter_invalid", f"Invalid parameter: {name}", name)
        last = steps[-1] or str(len(inner))
        _place(inner, last, value, name)
    return {name: _listed(value) for name, value in root.items()}


def _place(inner: Json, step: str, value: str, name: str) -> None:
    if step in inner and isinstance(inner[step], dict):
        raise ParameterError("parameter_invalid", f"Invalid parameter: {name}", name)
    inner[step] = value


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(inner) for key, inner in value.items()}


def check_all(
    given: Json, known: Mapping[str, Check], required: Collection[str] = (), prefix: str = ""
) -> Json:
    """Return the checked parameters; raise ParameterError for the first that does not fit."""
    for name in given:
        if name not in known:
            full = _full(prefix, name)
            raise ParameterError("parameter_unknown", f"Received unknown parameter: {full}", full)
    for name in required:
        if name not in given:
            full = _full(prefix, name)
            raise ParameterError("parameter_missing", f"Missing required param: {full}.", full)
        if given[name] == "":
            full = _full(prefix, name)
            message = f"You passed an empty string for '{full}'. {full} cannot be unset."
            raise ParameterError("parameter_invalid_empty", message, full)
    return {name: known[name](value, _full(prefix, name)) for name, value in given.items()}


def _full(prefix: str, name: str) -> str:
    return f"{prefix}[{name}]" if prefix else name


def text(longest: int = 5000) -> Check:
    """A text of at most `longest` characters."""

    def check(value: Any, param: str) -> str | None:
        if not isinstance(value, str):
            raise ParameterError("parameter_invalid_string", f"Invalid string: {value}", param)
        if len(value) > longest:
            message = f"Invalid string: must be at most {longest} characters"
            raise ParameterError("parameter_invalid_string", message, param)
        return value or None

    return check


def flag(value: Any, param: str) -> bool:
    """`true` or `false`."""
    if value not in ("true", "false"):
        raise ParameterError("parameter_invalid_boolean", f"Invalid boolean: {value}", param)
    return bool(value == "true")


def integer(least: int, most: int) -> Check:
    """A whole number within bounds."""

    def check(value: Any, param: str) -> int | None:
        if value == "":
            return None
        if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
            raise ParameterError("parameter_invalid_integer", f"Invalid integer: {value}", param)
        number = int(value)
        if not least <= number <= most:
            message = f"This value must be between {least} and {most}."
            raise ParameterError("parameter_invalid_integer", message, param)
        return number

    return check


def decimal(value: Any, param: str) -> str:
    """A number of at least zero with up to 12 decimals."""
    try:
        number = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or number < 0:
        raise ParameterError("parameter_invalid_decimal", f"Invalid decimal: {value}", param)
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -12:
        raise ParameterError(
            "parameter_invalid_decimal", f"Invalid decimal: {value}; 12 decimals at most", param
        )
    return str(value)


def one_of(*choices: str) -> Check:
    """One of the given words."""

    def check(value: Any, param: str) -> str | None:
        if value == "":
            return None
        if value not in choices:
            raise ParameterError(
                "parameter_invalid", f"Invalid {param}: must be one of {', '.join(choices)}", param
            )
        return str(value)

    return check


def list_of(inner: Check, most: int = 100) -> Check:
    """An indexed list; an empty text clears it."""

    def check(value: Any, param: str) -> list[Any]:
        if value == "":
            return []
        if not isinstance(value, list):
            raise ParameterError("parameter_invalid_array", f"Invalid array: {param}", param)
        if len(value) > most:
            message = f"Invalid array: at most {most} elements are allowed"
            raise ParameterError("parameter_invalid_array", message, param)
        return [inner(item, f"{param}[{place}]") for place, item in enumerate(value)]

    return check


def fields(known: Mapping[str, Check], required: Collection[str] = ()) -> Check:
    """An object with known keys; an empty text clears it."""

    def check(value: Any, param: str) -> Json | None:
        if value == "":
            return None
        if not isinstance(value, dict):
            raise ParameterError("parameter_invalid_object", f"Invalid object: {param}", param)
        return check_all(value, known, required, param)

    return check


def anything(value: Any, _: str) -> Any:
    """Known and kept, but not looked at."""
    return value


def metadata(value: Any, param: str) -> dict[str, str] | None:
    """Up to 50 keys of 40 characters with values of 500; None clears all, an empty value its key."""
    if value == "":
        return None
    if isinstance(value, list):  # keys made of digits only look like an index
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        raise ParameterError("parameter_invalid_object", "Invalid object: metadata", param)
    for key, item in value.items():
        if not isinstance(item, str):
            raise ParameterError("parameter_invalid_string", f"Invalid string: {item}", f"{param}[{key}]")
        if len(key) > 40:
            message = f"Metadata keys must be at most 40 characters; {key!r} has {len(key)}."
            raise ParameterError("parameter_invalid", message, param)
        if len(item) > 500:
            message = f"Metadata values must be at most 500 characters; {key!r} has {len(item)}."
            raise ParameterError("parameter_invalid", message, f"{param}[{key}]")
    if len(value) > 50:
        raise ParameterError("parameter_invalid", "Metadata may have at most 50 keys.", param)
    return dict(value)
