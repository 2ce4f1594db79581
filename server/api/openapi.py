"""Completes the API's OpenAPI document, so that a client can be generated from it as it is.

The framework knows routes, parameters and statuses. Here are added: exact schemas of bodies (by the library
that reads and writes them), words and examples for every schema, the headers of answers, and who may call
what. What several operations have alike is written once, as a component.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import cleandoc
from types import MappingProxyType
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Example, OpenAPI
from litestar.params import BodyKwarg

from engine.ports import Secret
from server.api.glossary import FIELDS, PARAMETERS, SCHEMAS
from server.api.guards import ADMIN, USER, VENUE_ADMIN
from server.api.schemas import LONGEST_SECRET, body_kind

Json = dict[str, Any]

ROLES = (ADMIN, VENUE_ADMIN, USER)
METHODS = ("get", "put", "post", "delete", "patch")
_REF = "#/components/schemas/{name}"
_COUNTED = "/api/"
_RESPONSES: Mapping[str, str] = {
    "400": "BadRequest",
    "401": "Unauthorized",
    "403": "Forbidden",
    "404": "NotFound",
    "408": "RequestTimeout",
    "409": "Conflict",
    "413": "ContentTooLarge",
    "414": "UriTooLong",
    "415": "UnsupportedMediaType",
    "422": "UnprocessableContent",
    "429": "TooManyRequests",
    "431": "HeadersTooLarge",
    "500": "InternalError",
    "502": "BadGateway",
    "503": "ServiceUnavailable",
}


def _header(about: str, example: str | int) -> Json:
    kind = {"type": "integer", "minimum": 0} if isinstance(example, int) else {"type": "string"}
    return {"description": about, "schema": kind, "example": example}


_HEADERS: Mapping[str, Json] = {
    "X-Request-Id": _header(
        "The request's id: the one that was sent, if it can be used, else a new one.",
        "5f0c3b8e2f6a4d0e9b7a1c2d3e4f5a6b",
    ),
    "RateLimit-Limit": _header("How many requests a caller may send in a window.", 100),
    "RateLimit-Remaining": _header("How many of them are left.", 58),
    "RateLimit-Reset": _header("Seconds until the window ends.", 42),
    "Retry-After": _header("Seconds after which to try again.", 42),
    "WWW-Authenticate": _header("What kind of token is wanted.", "Bearer"),
    "Location": _header(
        "Where to look.", "/api/v1/integrations/sync/juniper/sync/3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1"
    ),
    "Idempotent-Replayed": _header("`true` when this is the first answer under the key, once more.", "true"),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A webhook that the hub sends: what is in its body, and an example of it."""

    summary: str
    description: str
    body: type[msgspec.Struct]
    example: Json
    tag: str


@dataclass
class Description(OpenAPIConfig):
    """The framework's own configuration, for a document that is completed."""

    handlers: Sequence[HTTPRouteHandler] = ()
    sent: Mapping[str, "Sent"] = field(default_factory=dict)

    def to_openapi_schema(self) -> OpenAPI:
        plain = super().to_openapi_schema()
        values = {each.name: getattr(plain, each.name) for each in fields(plain)}
        return _Document(**values, handlers=self.handlers, sent=self.sent)


@dataclass
class _Document(OpenAPI):
    handlers: Sequence[HTTPRouteHandler] = field(default=(), kw_only=True)
    sent: Mapping[str, "Sent"] = field(default_factory=dict, kw_only=True)

    @property
    def _exclude_fields(self) -> set[str]:
        return {"handlers", "sent"}

    def to_schema(self) -> Json:
        return complete(super().to_schema(), self.handlers, self.sent)


def operations(document: Json, part: str = "paths") -> Iterator[tuple[str, str, Json]]:
    """Yield (path, method, operation) of everything that can be called; of `webhooks`, (name, method, …)."""
    for path, item in document.get(part, {}).items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def resolve(document: Json, part: Json) -> Json:
    """Return what a reference stands for, or the part itself."""
    while "$ref" in part:
        name = part["$ref"]
        part = document
        for step in name.removeprefix("#/").split("/"):
            part = part[step.replace("~1", "/").replace("~0", "~")]
    return part


def complete(
    document: Json, handlers: Sequence[HTTPRouteHandler], sent: Mapping[str, Sent] = MappingProxyType({})
) -> Json:
    """Complete the framework's document in place, and return it."""
    by_id = {each.operation_id: each for each in handlers if isinstance(each.operation_id, str)}
    components = document["components"]
    components["schemas"], answers = _schemas(by_id.values(), [each.body for each in sent.values()])
    components["headers"] = dict(_HEADERS)
    components["examples"] = {}
    for path, method, operation in operations(document):
        handler = by_id[operation["operationId"]]
        operation["parameters"] = [
            _parameter(document, operation["operationId"], each) for each in operation.get("parameters", ())
        ]
        if "requestBody" in operation:
            operation["requestBody"] = _request_body(handler)
        operation.setdefault("security", [])
        operation.pop("deprecated", None)
        operation["x-roles"] = [role for role in ROLES if role in handler.opt.get("roles", ())]
        operation["x-venue"], operation["x-venue-required"] = _venue_place(document, path, operation)
        for status, (code, sentence) in _ANYWHERE.items():
            if status != "404" or "{" in path:
                operation["responses"].setdefault(status, _failure(code, sentence))
        operation["responses"] = dict(sorted(operation["responses"].items()))
        for status, answer in operation["responses"].items():
            _complete_response(components, path, method, operation, status, answer)
    if sent:
        document["webhooks"] = {name: {"post": _sent(name, each)} for name, each in sent.items()}
    _describe(components["schemas"], document)
    for name in answers:
        _always_there(components["schemas"][name])
    _show(document)
    _share_responses(document)
    return document


# What any route may answer, before it is even known which it is.
_ANYWHERE: Mapping[str, tuple[str, str]] = {
    "404": ("NOT_FOUND", "Not Found"),
    "408": ("VALIDATION_ERROR", "the body took too long to arrive"),
    "414": ("VALIDATION_ERROR", "the address has more than 8192 bytes"),
    "431": ("VALIDATION_ERROR", "send at most 100 headers, of at most 32768 bytes together"),
}


def _failure(code: str, sentence: str) -> Json:
    shown = {
        "success": False,
        "error": sentence,
        "code": code,
        "details": [],
        "timestamp": "2026-01-15T11:00:00Z",
        "requestId": "5f0c3b8e2f6a4d0e9b7a1c2d3e4f5a6b",
    }
    return {
        "description": f"{code}: {sentence}",
        "content": {
            "application/json": {
                "schema": {"$ref": _REF.format(name="ErrorAnswer")},
                "examples": {"it": {"summary": sentence, "value": shown}},
            }
        },
    }


# --- schemas


def _schemas(
    handlers: Collection[HTTPRouteHandler], sent: Sequence[type[msgspec.Struct]]
) -> tuple[Json, list[str]]:
    """Return the schemas of all bodies by name, and which of them are only answered, whole."""
    asked = [_body_type(each) for each in handlers if _body_type(each) is not None]
    told: list[Any] = [
        spec.data_container
        for each in handlers
        for spec in (each.responses or {}).values()
        if isinstance(spec.data_container, type) and issubclass(spec.data_container, msgspec.Struct)
    ]
    told += sent
    generate = partial(msgspec.json.schema_components, schema_hook=_secret, ref_template=_REF)
    _, schemas = generate([*asked, *told])
    _, requests = generate(asked)
    kinds = {_name(kind): kind for kind in _structs([*asked, *told])}
    for name, schema in schemas.items():
        _settle(schema)
        if name in kinds:
            _add_time_formats(schema, kinds[name])
    whole = [
        name
        for name, kind in kinds.items()
        if name not in requests and not kind.__struct_config__.omit_defaults
    ]
    return dict(sorted(schemas.items())), whole


def _secret(kind: type) -> Json:
    if kind is not Secret:
        raise TypeError(f"no schema for {kind}")
    return {"type": "string", "maxLength": LONGEST_SECRET, "writeOnly": True}


def _body_type(handler: HTTPRouteHandler) -> Any:
    parameter = handler.parsed_fn_signature.parameters.get("data")
    return None if parameter is None else body_kind(parameter.annotation)


def _structs(kinds: Sequence[Any]) -> set[type[msgspec.Struct]]:
    """Return all structs that are in some structs."""
    found: set[type[msgspec.Struct]] = set()
    left: list[Any] = list(msgspec.inspect.multi_type_info(kinds))
    while left:
        each = left.pop()
        if isinstance(each, msgspec.inspect.StructType):
            if each.cls in found:
                continue
            found.add(each.cls)
            left += [one.type for one in each.fields]
        elif isinstance(each, msgspec.inspect.Type):
            left += [
                inner
                for name in each.__struct_fields__
                for value in [getattr(each, name)]
                for inner in (value if isinstance(value, tuple) else (value,))
                if isinstance(inner, msgspec.inspect.Type)
            ]
    return found


def _name(kind: type) -> str:
    return kind.__name__


def _settle(schema: Any) -> None:
    """Write a schema, and what is in it, the way generators understand best."""
    if isinstance(schema, list):
        for each in schema:
            _settle(each)
    if not isinstance(schema, dict):
        return
    if "description" in schema and isinstance(schema["description"], str):
        schema["description"] = cleandoc(schema["description"])
    allowed = schema.get("enum")
    if isinstance(allowed, list):
        if all(isinstance(value, str) for value in allowed):
            schema["type"] = "string"
        if len(allowed) == 1:
            schema["const"] = schema.pop("enum")[0]
    if schema.get("default", "") is None:
        del schema["default"]
    for name, each in schema.items():
        if name not in ("default", "enum", "const"):
            _settle(each)


def _add_time_formats(schema: Json, kind: type[msgspec.Struct]) -> None:
    """A time is one also where its zone isn't asked for, which the generator leaves out."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    for each in info.fields:
        kinds = each.type.types if isinstance(each.type, msgspec.inspect.UnionType) else (each.type,)
        if any(isinstance(one, msgspec.inspect.DateTimeType) for one in kinds):
            found = schema["properties"][each.encode_name]
            for one in found.get("anyOf", (found,)):
                if one.get("type") == "string":
                    one["format"] = "date-time"


def _always_there(schema: Json) -> None:
    """What is answered has all its fields; that one has a default is the code's business."""
    for each in schema["properties"].values():
        each.pop("default", None)
    schema["required"] = list(schema["properties"])


def _describe(schemas: Json, document: Json) -> None:
    """Give every schema and every field its words, and what is a request's its own."""
    for _, _, operation in operations(document):
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                if name and "description" not in schemas[name]:
                    schemas[name]["description"] = SCHEMAS.get(name, answer["description"])
    for name, schema in schemas.items():
        if "description" not in schema and name in SCHEMAS:
            schema["description"] = SCHEMAS[name]
        for each, about in schema.get("properties", {}).items():
            words = FIELDS.get(f"{name}.{each}") or FIELDS.get(each)
            if words and "description" not in about:
                about["description"] = words


# --- parameters and bodies


def _parameter(document: Json, operation: str, parameter: Json) -> Json:
    schema = {name: value for name, value in parameter["schema"].items() if name != "description"}
    for name in ("minimum", "maximum"):
        if name in schema:
            schema[name] = int(schema[name])
    if "oneOf" in schema:  # one that may be left out can't be sent as null
        [kind] = [each for each in schema.pop("oneOf") if each != {"type": "null"}]
        schema = {**kind, **schema}
    allowed = resolve(document, schema).get("enum", (None,))
    name = parameter["name"]
    own = PARAMETERS.get(f"{operation}.{name}")
    shown = own or PARAMETERS.get(name, schema.get("default", allowed[0]))
    return {
        **{name: value for name, value in parameter.items() if value is not False and name != "schema"},
        "schema": schema,
        **({} if shown is None else {"example": shown}),
    }


def _request_body(handler: HTTPRouteHandler) -> Json:
    parameter = handler.parsed_fn_signature.parameters["data"]
    kwarg = parameter.kwarg_definition
    examples = kwarg.examples if isinstance(kwarg, BodyKwarg) else None
    body = _body_type(handler)
    return {
        "description": cleandoc(body.__doc__ or ""),
        "required": body is parameter.annotation,
        "content": {
            "application/json": {
                "schema": {"$ref": _REF.format(name=_name(body))},
                "examples": {_slug(str(each.summary)): _example(each) for each in examples or ()},
            }
        },
    }


def _example(example: Example) -> Json:
    return {"summary": example.summary, "value": example.value}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def _venue_place(document: Json, path: str, operation: Json) -> tuple[str | None, bool]:
    """Say where a caller names the venue (`path`, `query`, `body` or nowhere), and whether it has to."""
    if "{venue_id}" in path:
        return "path", True
    for each in operation["parameters"]:
        if each["name"] == "venueId":
            return "query", bool(each.get("required"))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = resolve(document, content["schema"])
        if "venueId" in body["properties"]:
            return "body", "venueId" in body["required"]
    return None, False


# --- answers


def _complete_response(
    components: Json, path: str, method: str, operation: Json, status: str, answer: Json
) -> None:
    own = answer.get("headers", {})
    if status == "302":
        own = {name: value for name, value in own.items() if name.lower() != "location"}
    names = ["X-Request-Id"]
    names += [name for name in _HEADERS if name.startswith("RateLimit-") and _is_counted(path)]
    names += ["Retry-After"] if status in ("429", "503") else []
    names += ["WWW-Authenticate"] if status == "401" and operation["security"] else []
    names += ["Location"] if status in ("202", "302") else []
    replayable = any(each["name"] == "Idempotency-Key" for each in operation["parameters"])
    names += ["Idempotent-Replayed"] if status.startswith("2") and replayable else []
    answer["headers"] = {
        **{name: _plain(value) for name, value in own.items()},
        **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    for media, content in list(answer.get("content", {}).items()):
        if media == "null" or content is None:
            del answer["content"][media]
            continue
        if not media.startswith(("application/json", "text/")):
            content["schema"] = {"type": "string", "format": "binary"}
        examples: Json = {}
        for each in (content.get("examples") or {}).values():
            value = each["value"]
            code = value.get("code") if isinstance(value, dict) and value.get("success") is False else None
            if code and components["examples"].setdefault(code, each) == each:
                examples[code] = {"$ref": f"#/components/examples/{code}"}
            else:
                examples[_slug(each["summary"])] = each
        if examples:
            content["examples"] = examples


def _sent(name: str, event: Sent) -> Json:
    """Describe a webhook as Standard Webhooks has it."""
    return {
        "operationId": "on" + "".join(word.capitalize() for word in re.split(r"[^a-z]+", name)),
        "summary": event.summary,
        "description": event.description,
        "tags": [event.tag],
        "security": [],
        "parameters": [
            {
                "name": header,
                "in": "header",
                "required": True,
                "description": about,
                "schema": {"type": "string"},
                "example": example,
            }
            for header, about, example in _SIGNED
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF.format(name=_name(event.body))},
                    "examples": {_slug(name): {"summary": event.summary, "value": event.example}},
                }
            },
        },
        "responses": {
            "2XX": {"description": "It is taken: it isn't sent again."},
            "410": {"description": "The address is gone: nothing is sent there any more."},
            "default": {"description": "It isn't taken: it is tried again for about three days."},
        },
    }


_SIGNED = (
    (
        "webhook-id",
        "The event's id, the same whenever it is sent again.",
        "evt_2f1c7a9e0b6d4c5f8a3e1d2c3b4a5968",
    ),
    ("webhook-timestamp", "When it was sent, in seconds since 1970.", "1768474800"),
    (
        "webhook-signature",
        "`v1,` and the base64 HMAC-SHA256 of id, timestamp and body, joined by dots; several are divided by "
        "spaces, and one that is right is enough.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
)


def _is_counted(path: str) -> bool:
    return path.startswith(_COUNTED) and "/oauth/callback/" not in path


def _plain(header: Json) -> Json:
    return {
        "description": header.get("description", ""),
        "schema": {"type": "string"},
        **({"example": header["schema"]["examples"][0]} if header.get("schema", {}).get("examples") else {}),
    }


def _show(document: Json) -> None:
    """Give every schema examples: those of the bodies it is, or is part of."""
    schemas = document["components"]["schemas"]

    def walk(schema: Json, value: Any) -> None:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name:
            schema = schemas[name]
            shown = schema.setdefault("examples", [])
            if value not in shown and len(shown) < _MOST_EXAMPLES and value is not None:
                shown.append(value)
        for each in schema.get("anyOf", ()):
            if value is not None and each.get("type") != "null":
                walk(each, value)
        if isinstance(value, dict):
            for key, inner in value.items():
                named = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
                if isinstance(named, dict):
                    walk(named, inner)
        if isinstance(value, list) and "items" in schema:
            for inner in value:
                walk(schema["items"], inner)

    for part in ("paths", "webhooks"):
        for _, _, operation in operations(document, part):
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in (each for body in bodies for each in body.get("content", {}).values()):
                for each in content.get("examples", {}).values():
                    walk(content["schema"], resolve(document, each)["value"])
    for schema in schemas.values():
        if "enum" in schema:
            schema["examples"] = [schema["enum"][0]]


_MOST_EXAMPLES = 3


def _share_responses(document: Json) -> None:
    """Write an error's answer once, where many operations have the same."""
    found = Counter(
        (status, msgspec.json.encode(answer, order="sorted"))
        for _, _, operation in operations(document)
        for status, answer in operation["responses"].items()
        if status in _RESPONSES
    )
    shared: dict[str, bytes] = {}
    for (status, text), count in found.most_common():
        if count > 1:
            shared.setdefault(status, text)
    document["components"]["responses"] = {
        _RESPONSES[status]: msgspec.json.decode(text) for status, text in sorted(shared.items())
    }
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if shared.get(status) == msgspec.json.encode(answer, order="sorted"):
                reference = f"#/components/responses/{_RESPONSES[status]}"
                operation["responses"][status] = {"$ref": reference}
