"""One request, one page, and the places a value can be sent.

Plain values: a request can be written down as JSON, kept beside a watermark and sent again tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

from engine.errors import ExpressionError
from engine.expressions import parse_steps

PLACES = ("query", "header", "body", "name")


@dataclass(frozen=True, slots=True)
class Request:
    """One call, before authentication and encoding.

    `url` is a path below the connector's server, or absolute. `body` is a plain JSON value or None;
    how it is encoded is the connector's business. `names` are values that the call's templates see: who puts
    one has to fill in the call again.
    """

    method: str
    url: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    names: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read `GET /customers?limit=5`, the way manifests and test cases write a request."""
        method, _, url = text.partition(" ")
        path, _, query = url.partition("?")
        if not path or method != method.upper():
            raise ExpressionError(f"`{text}` isn't a call; write it as `GET /path`")
        return cls(method, path, dict(parse_qsl(query, keep_blank_values=True)))

    def to_json(self) -> dict[str, Any]:
        """Return the request as a JSON object; `from_json` reads it back."""
        written = {
            "method": self.method,
            "url": self.url,
            "query": dict(self.query),
            "headers": dict(self.headers),
            "body": self.body,
        }
        return {**written, "names": dict(self.names)} if self.names else written

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        names = value.get("names", {})
        return cls(value["method"], value["url"], value["query"], value["headers"], value["body"], names)


@dataclass(frozen=True, slots=True)
class Page:
    """One answered list call: what was asked, the decoded answer, and the records found in it."""

    request: Request
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    records: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0  # bytes of the answer, as sent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value goes in a request: `query limit`, `header Retry-After`, `body query.filter`, `body`.

    A body place is a dotted path of names and `[n]`; bare `body` is the whole body. `name start` makes the
    value one that the call's templates see, for a provider that is asked in a language of its own.
    """

    where: str
    name: str
    steps: tuple[str | int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a place as manifests write it; raises ExpressionError with what was expected."""
        where, _, name = text.strip().partition(" ")
        name = name.strip()
        if where not in PLACES or (not name and where != "body"):
            raise ExpressionError(f"`{text}` isn't a place; write `query name`, `header Name` or `body path`")
        if where == "name" and not name.isidentifier():
            raise ExpressionError(f"`{name}` can't be a name; write letters, digits and `_`", len("name "))
        if where != "body" or not name:
            return cls(where, name)
        try:
            return cls(where, name, parse_steps(name))
        except ExpressionError as error:
            # The offset is within the path; the author wrote a place.
            raise ExpressionError(error.message, (error.position or 0) + text.rindex(name)) from error

    @property
    def text(self) -> str:
        """The place as it was written."""
        return f"{self.where} {self.name}".strip()

    def get(self, request: Request) -> Any:
        """Return the value the request carries in this place, or None."""
        if self.where == "query":
            return request.query.get(self.name)
        if self.where == "header":
            return request.headers.get(self.name)
        if self.where == "name":
            return request.names.get(self.name)
        value = request.body
        for step in self.steps:
            if isinstance(step, int):
                if not isinstance(value, list) or step >= len(value):
                    return None
                value = value[step]
            else:
                if not isinstance(value, Mapping):
                    return None
                value = value.get(step)
        return value

    def put(self, request: Request, value: Any) -> Request:
        """Return the request with `value` in this place; the given request is left as it was."""
        if self.where == "query":
            return replace(request, query={**request.query, self.name: value})
        if self.where == "header":
            return replace(request, headers={**request.headers, self.name: str(value)})
        if self.where == "name":
            return replace(request, names={**request.names, self.name: value})
        return replace(request, body=_put_steps(request.body, self.steps, value))


def _put_steps(target: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, int):
        items = list(target) if isinstance(target, list) else []
        items.extend({} for _ in range(step + 1 - len(items)))
        items[step] = _put_steps(items[step], rest, value)
        return items
    mapping = dict(target) if isinstance(target, Mapping) else {}
    mapping[step] = _put_steps(mapping.get(step), rest, value)
    return mapping
