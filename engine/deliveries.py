"""A webhook as it came, and what its body says.

Reading a body proves nothing: whoever does so before a delivery is proved looks only for what proves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.parsers import expat

import orjson

from engine.errors import MalformedDeliveryError

MOST_DEPTH = 32  # of a payload, and of a form's bracketed names
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A POST (or a probe) as it came: `url` as the provider knows it, header names in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> list[tuple[str, str]]:
        """The body's form parameters, in the order sent."""
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The parameters in the address, in the order sent."""
        return parse_qsl(urlsplit(self.url).query, keep_blank_values=True)


def read_body(delivery: Delivery) -> Any:
    """Return a payload: JSON, XML, or a form with bracketed names as objects; raises MalformedDeliveryError.

    An element of XML is an object of those within it, by name without prefix, or else its text; several of a
    name are a list.
    """
    kind = delivery.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        return _nested(delivery.form)
    if kind.endswith(("/xml", "+xml")):
        return _read_xml(delivery.body)
    try:
        value = orjson.loads(delivery.body)
    except orjson.JSONDecodeError:
        raise MalformedDeliveryError("the body isn't JSON") from None
    if _too_deep(value):
        raise MalformedDeliveryError(f"the body is nested more than {MOST_DEPTH} deep")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _read_xml(body: bytes) -> dict[str, Any]:
    open_: list[tuple[dict[str, Any], list[str]]] = [({}, [])]

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        if len(open_) > MOST_DEPTH:
            raise MalformedDeliveryError(f"the body is nested more than {MOST_DEPTH} deep")
        open_.append(({}, []))

    def end(name: str) -> None:
        inner, texts = open_.pop()
        value, holder, key = inner or "".join(texts).strip(), open_[-1][0], name.rpartition(" ")[2]
        if key not in holder:
            holder[key] = value
        elif isinstance(holder[key], list):
            holder[key].append(value)
        else:
            holder[key] = [holder[key], value]

    def declare(*_: object) -> None:  # what could be defined there could outgrow everything
        raise MalformedDeliveryError("the body declares a type of document")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = lambda text: open_[-1][1].append(text)
    parser.StartDoctypeDeclHandler = declare
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, LookupError, ValueError):  # the latter two are of encodings it may name
        raise MalformedDeliveryError("the body isn't XML") from None
    return open_[0][0]


def _nested(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return `data[merges][FNAME]=Ana` as nested objects; a name given twice keeps its last value."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        head, bracket, rest = name.partition("[")
        steps = [head, *(rest.removesuffix("]").split("][") if bracket and rest.endswith("]") else ())]
        if len(steps) > MOST_DEPTH:
            raise MalformedDeliveryError(f"a name of the form is nested more than {MOST_DEPTH} deep")
        target = made
        for step in steps[:-1]:
            inner = target.get(step)
            if not isinstance(inner, dict):
                inner = target[step] = {}
            target = inner
        target[steps[-1]] = value
    return made
