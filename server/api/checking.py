"""Looks at a request as a whole before it is worked, and says all that is wrong with it at once.

Names that a route doesn't know are wrong, in its query as in its body. Paths are checked by routing, and what
values mean together by the services.
"""

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache, reduce
from itertools import islice
from operator import or_
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter, ParameterKwarg, QueryParameter
from litestar.routes import HTTPRoute
from litestar.types import Message, Scope
from msgspec import Meta, ValidationError

from engine.diagnostics import did_you_mean, listed
from engine.ports import Secret
from server.api.schemas import body_kind, read_secret
from server.errors import Detail, InvalidRequestError, VenueRequiredError

REFUSED = "the request can't be accepted"
MOST_TOLD = 50  # faults of a query, and of a body: finding the nearest names takes its time
MOST_PARTS = 1000  # of one list or object within a body
_LONGEST_SHOWN = 50
_LAX = (int, float, bool)  # what a query can only write as text
_CONSTRAINTS = ("ge", "le", "gt", "lt", "min_length", "max_length", "pattern")
_WORDS: Mapping[str, str] = {
    "array": "a list",
    "bool": "`true` or `false`",
    "date": "a date",
    "datetime": "a time",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "an object",
    "str": "text",
    "uuid": "a UUID",
}
_INVALID: Mapping[str, str] = {
    "Invalid UUID": "this isn't a UUID, such as `7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f`",
    "Invalid RFC3339 encoded datetime": "this isn't a time, such as `2026-01-15T11:00:00Z`",
    "Expected `datetime` with a timezone component": "a time needs its zone: end it in `Z`, or in an offset "
    "such as `+01:00`",
    "Invalid RFC3339 encoded date": "this isn't a date, such as `2026-01-15`",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a route takes: parameters by the name callers use, and its body."""

    query: Mapping[str, "Parameter"]
    headers: Mapping[str, "Parameter"]
    body: Any
    body_required: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    kind: Any
    required: bool
    strict: bool


async def check_request(request: Request[Any, Any, Any]) -> None:
    """Raise InvalidRequestError with everything that is wrong with a request; 415 for a body that isn't JSON.

    A route whose body is its own business has the option `raw_body`, one that is called with a query nobody
    here chose `any_query`.
    """
    handler = request.route_handler
    if handler.opt.get("raw_body"):
        return
    if request.method in ("POST", "PUT", "PATCH"):
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(status_code=415, detail="send JSON: `Content-Type: application/json`")
    expected = expectations(handler)
    wrong = [*_wrong_headers(request, expected.headers)]
    if not handler.opt.get("any_query"):
        wrong += islice(_wrong_query(request, expected.query), MOST_TOLD)
    if expected.body is not None:
        wrong += _wrong_body(await request.body(), expected)
    refuse(wrong)


async def send_methods(message: Message, scope: Scope) -> None:
    """Name all methods of a path in an answer to OPTIONS: the framework names its first handler's."""
    if (
        message["type"] == "http.response.start"
        and scope.get("method") == "OPTIONS"
        and message["status"] == 204
    ):
        template = scope.get("path_template")
        known = {
            method
            for route in scope["litestar_app"].routes
            if isinstance(route, HTTPRoute) and route.path_format == template
            for method in route.methods
        }
        kept = [header for header in message["headers"] if header[0].lower() != b"allow"]
        message["headers"] = [*kept, (b"allow", ", ".join(sorted(known)).encode())]


def refuse(wrong: list[Detail]) -> None:
    """Raise InvalidRequestError for what is wrong, if anything is."""
    if not wrong:
        return
    if any(each.field == "venueId" and each.message == _missing("venueId") for each in wrong):
        raise VenueRequiredError(_missing("venueId") if len(wrong) == 1 else REFUSED, wrong)
    raise InvalidRequestError(REFUSED, wrong)


@cache
def expectations(handler: HTTPRouteHandler) -> Expected:
    """Return what a route takes, as its function says."""
    query: dict[str, Parameter] = {}
    headers: dict[str, Parameter] = {}
    parameters = handler.parsed_fn_signature.parameters
    for each in parameters.values():
        definition = each.kwarg_definition
        if isinstance(definition, QueryParameter | HeaderParameter):
            found = query if isinstance(definition, QueryParameter) else headers
            kind, strict = _parameter_kind(each.annotation, definition)
            found[definition.name or each.name] = Parameter(kind, not each.has_default, strict)
    body = parameters.get("data")
    if body is None:
        return Expected(query, headers, None, False)
    return Expected(query, headers, body_kind(body.annotation), not body.has_default)


def _parameter_kind(annotation: Any, definition: ParameterKwarg) -> tuple[Any, bool]:
    kinds = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    kind: Any = reduce(or_, (each for each in kinds if each is not type(None)))
    limits = {name: getattr(definition, name) for name in _CONSTRAINTS}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return (Annotated[kind, Meta(**given)] if given else kind), kind not in _LAX


def _wrong_query(request: Request[Any, Any, Any], expected: Mapping[str, Parameter]) -> Iterator[Detail]:
    given = request.query_params
    for name in given:
        if name not in expected:
            yield _unknown(name, expected, "the query")
    for name, parameter in expected.items():
        values = given.getall(name, [])
        if len(values) > 1:
            yield Detail(name, f"`{name}` is there more than once")
        elif values:
            yield from _wrong_text(name, values[0], parameter)
        elif parameter.required:
            yield Detail(name, _missing(name))


def _wrong_headers(request: Request[Any, Any, Any], expected: Mapping[str, Parameter]) -> Iterator[Detail]:
    for name, parameter in expected.items():
        value = request.headers.get(name)
        if value is not None:
            yield from _wrong_text(name, value, parameter)
        elif parameter.required:
            yield Detail(name, _missing(name))


def _wrong_text(name: str, value: str, parameter: Parameter) -> Iterator[Detail]:
    try:
        found = msgspec.convert(value, parameter.kind, strict=parameter.strict)
    except ValidationError as error:
        yield Detail(name, _sentence(error, parameter.kind, value))
    else:
        yield from _beyond_all_times(name, found)


def _wrong_body(content: bytes, expected: Expected) -> list[Detail]:
    if not content:
        return [Detail("body", "send a JSON body")] if expected.body_required else []
    try:
        value = msgspec.json.decode(content)
    except RecursionError:
        raise InvalidRequestError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error) if "JSON" in str(error) else "the body can't be read as JSON"
        raise InvalidRequestError(reason[:1].lower() + reason[1:]) from None
    return list(islice(wrong_in(expected.body, value), MOST_TOLD))


def wrong_in(kind: Any, value: Any, path: str = "") -> Iterator[Detail]:
    """Yield everything that is wrong with a value that ought to be of a kind, each with its path."""
    parts = _wrong_parts(kind, value, path)
    if (first := next(parts, None)) is not None:
        yield first
        yield from parts  # one by one: nobody looks at all of very many
        return
    try:
        found = msgspec.convert(value, kind, dec_hook=_decode)
    except ValidationError as error:
        yield Detail(path or "body", _sentence(error, kind, value))
    else:
        yield from _beyond_all_times(path, found)


def _beyond_all_times(path: str, value: Any) -> Iterator[Detail]:
    """Yield what is wrong with a time that is none in UTC, where the year is before 1 or after 9999."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        try:
            value.astimezone(UTC)
        except OverflowError:
            yield Detail(path, "it is before or after all times")


def _wrong_parts(kind: Any, value: Any, path: str) -> Iterator[Detail]:
    if isinstance(value, dict | list) and len(value) > MOST_PARTS:
        yield Detail(path or "body", f"this has {len(value)} parts, and at most {MOST_PARTS} are taken")
        return
    for plain in _alternatives(kind):
        if isinstance(value, dict) and isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            fields = {each.encode_name: each for each in msgspec.structs.fields(plain)}
            for name in value:
                if name not in fields:
                    yield _unknown(_join(path, name), fields, f"`{path}`" if path else "the body")
            for name, each in fields.items():
                where = _join(path, name)
                if name in value:
                    yield from wrong_in(each.type, value[name], where)
                elif each.required:
                    yield Detail(where, _missing(where))
        elif isinstance(value, dict) and get_origin(plain) is dict:
            for name, inner in value.items():
                yield from wrong_in(get_args(plain)[1], inner, _join(path, name))
        elif isinstance(value, list) and get_origin(plain) is list:
            for number, inner in enumerate(value):
                yield from wrong_in(get_args(plain)[0], inner, f"{path}[{number}]")


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yield what a kind is, without its limits; of a union, each."""
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in _UNIONS:
        for each in get_args(kind):
            yield from _alternatives(each)
    else:
        yield kind


_UNIONS = (typing.Union, type(int | str))


def _decode(kind: type, value: Any) -> Any:
    if kind is not Secret:
        raise TypeError(f"no decoder for {kind}")
    return read_secret(kind, value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _missing(name: str) -> str:
    return f"{name} is required"


def _unknown(path: str, known: Mapping[str, Any], place: str) -> Detail:
    hints = did_you_mean(path.rpartition(".")[2], known)
    if not hints:
        hints = (f"{place} takes {listed(known)}" if known else f"{place} takes nothing",)
    return Detail(path, f"`{path}` is not known here; {hints[0]}")


def _sentence(error: ValidationError, kind: Any, value: Any) -> str:
    """Say what is wrong with a value in words for people who don't know this program's language."""
    text = str(error).partition(" - at ")[0]
    if text in _INVALID:
        return _INVALID[text]
    if text.startswith("Invalid enum value"):
        allowed = [*_allowed(kind)]
        shown = f"`{value}`" if isinstance(value, str) and len(value) <= _LONGEST_SHOWN else "this"
        hints = did_you_mean(str(value), allowed)
        return "; ".join((f"{shown} isn't one of {listed(f'`{each}`' for each in allowed)}", *hints))
    text = re.sub(r"`([a-z |]+)`", lambda found: _kinds(found[1]), text)
    return text[:1].lower() + text[1:]


def _kinds(text: str) -> str:
    return " or ".join(_WORDS.get(each, each) for each in text.split(" | "))


def _allowed(kind: Any) -> Iterator[str]:
    for each in _alternatives(kind):
        if get_origin(each) is Literal:
            yield from map(str, get_args(each))
        elif isinstance(each, type) and issubclass(each, Enum):
            yield from (str(member.value) for member in each)
