"""What no client of ours would send: every route says in a 4xx what is wrong, and nothing of the inside."""

import asyncio
import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import jwt
import pytest

from engine.ports import Secret
from server.app import openapi_document
from server.errors import STATUSES
from tests.contract.api.conftest import API, OURS, SECRET, USER_ID, Hub, bearer, token

ADMIN = bearer("admin")
TEXTS = (
    "\0",
    "stripe\0",
    "'; DROP TABLE integration_configs; --",
    "' OR '1'='1",
    "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "${jndi:ldap://127.0.0.1/x}",
    "../../../../etc/passwd",
    "<script>alert(1)</script>",
    "%00%ff",
    "\u202e\U000e0041\ufffe",
    "-1",
    "NaN",
    "9" * 400,
    "x" * 5000,
)
WRONG: tuple[Any, ...] = ([[[]]], -(10**30), 1e308)  # right for no field of any body
DEPTH = 10_000
DEEP = b"[" * DEPTH + b"]" * DEPTH
BODIES = (
    DEEP,
    b'{"venueId":' * DEPTH + b"1" + b"}" * DEPTH,
    b"[" * DEPTH,
    b"{",
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"9" * 5000,
    b"\0",
    b'{"venueId": NaN}',
    b"\xff\xfe{}",
    b'{"venueId": "\\ud800"}',
    b'{"\\u0000": 1}',
)
INSIDE = ("Traceback", "asyncpg", "sqlalchemy", "msgspec", "litestar", ".py", "SELECT ", "psycopg")
HOSTILE_CONTENT = ("multipart/form-data; boundary=x", "application/xml", "application/x-www-form-urlencoded")
MEBIBYTE = 1024 * 1024
CODES = {*STATUSES, "METHOD_NOT_ALLOWED", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "CONFLICT"}


@dataclass(frozen=True, slots=True)
class Operation:
    """A route as the API's own description has it."""

    method: str
    path: str
    parameters: tuple[Mapping[str, Any], ...]
    body: Mapping[str, Any] | None  # a good one, from its examples
    times: tuple[str, ...]  # which fields of the body are a time
    open: bool  # to anybody

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def named(self, place: str) -> list[str]:
        return [each["name"] for each in self.parameters if each["in"] == place]

    def address(self, **values: str) -> str:
        path = self.path
        for name in self.named("path"):
            good = "stripe" if name == "provider" else str(OURS if name == "venue_id" else UUID(int=1))
            path = path.replace(f"{{{name}}}", quote(values.get(name, good), safe=""))
        return path

    def query(self, **values: str) -> dict[str, str]:
        good = {"venueId": str(OURS)} if "venueId" in self.named("query") else {}
        return {**good, **values}


def _operations() -> Iterator[Operation]:
    document = openapi_document()
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            body: Mapping[str, Any] | None = None
            times: list[str] = []
            if "requestBody" in described:
                for schema in re.findall(r"schemas/(\w+)", json.dumps(described["requestBody"])):
                    fields = document["components"]["schemas"][schema].get("properties", {})
                    times += [name for name, kind in fields.items() if is_time(kind)]
                examples = described["requestBody"]["content"]["application/json"]["examples"].values()
                body = {name: value for each in examples for name, value in each["value"].items()}
                ours = {"venueId": str(OURS), "integrationType": "stripe", "wait": 0}
                body |= {name: value for name, value in ours.items() if name in body}
            yield Operation(
                method.upper(),
                path,
                tuple(described.get("parameters", ())),
                body,
                tuple(times),
                not described.get("security"),
            )


def is_time(schema: Mapping[str, Any]) -> bool:
    return '"date-time"' in json.dumps(schema)


OPERATIONS = tuple(_operations())
WITH_BODY = tuple(each for each in OPERATIONS if each.body is not None)
every_route = pytest.mark.parametrize("operation", OPERATIONS, ids=str)
every_body = pytest.mark.parametrize("operation", WITH_BODY, ids=str)


def refused(answer: httpx.Response, *statuses: int, code: str | None = None) -> None:
    """The answer is an error in the API's own form, and says nothing of the inside."""
    told(answer)
    assert answer.status_code in statuses, answer.text
    if code is not None:
        assert answer.json()["code"] == code


def told(answer: httpx.Response) -> None:
    """The answer is a good one, or says in the API's own form that what was sent is at fault."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.headers["content-type"].startswith("application/json"):
        body = answer.json()
        assert set(body) == {"success", "error", "code", "details", "timestamp", "requestId"}
        assert body["success"] is False
        assert body["code"] in CODES
        assert not [word for word in INSIDE if word in body["error"]], body["error"]


async def send(hub: Hub, operation: Operation, content: bytes, **headers: str) -> httpx.Response:
    # An administrator needn't confirm what a venue's own people must.
    role = "admin" if "/admin/" in operation.path else "venue_admin"
    given = {**bearer(role), "content-type": "application/json", **headers}
    return await hub.http.request(operation.method, operation.address(), content=content, headers=given)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_the_description_has_every_route() -> None:
    assert len(OPERATIONS) >= 45
    assert len(WITH_BODY) >= 15


@every_route
@pytest.mark.parametrize("place", ["path", "query", "header"])
async def test_texts_in_every_parameter(hub: Hub, operation: Operation, place: str) -> None:
    content = encoded(operation.body) if operation.body is not None else None
    for name in operation.named(place):
        for value in TEXTS:
            headers = {**ADMIN, "content-type": "application/json"}
            if place == "header":
                if not value.isascii() or not value.isprintable():
                    continue
                headers[name] = value
            answer = await hub.http.request(
                operation.method,
                operation.address(**{name: value} if place == "path" else {}),
                params=operation.query(**{name: value} if place == "query" else {}),
                content=content,
                headers=headers,
            )
            told(answer)
            if place == "path" and not operation.open:
                refused(answer, 400, 404, 405)


@every_route
async def test_ids_that_are_none_and_numbers_nobody_counts_to(hub: Hub, operation: Operation) -> None:
    for described in operation.parameters:
        name, kind = described["name"], described["schema"]
        if described["in"] == "query" and (kind.get("format") == "uuid" or kind.get("type") == "integer"):
            for value in ("no-uuid", "9" * 400, "-1", "1e99", "\0", "[]"):
                answer = await hub.http.request(
                    operation.method,
                    operation.address(),
                    params=operation.query(**{name: value}),
                    headers=ADMIN,
                )
                refused(answer, 400)
        if described["in"] == "path" and kind.get("format") == "uuid":
            for value in ("no-uuid", "1", "' OR 1=1", "\0"):
                answer = await hub.http.request(
                    operation.method, operation.address(**{name: value}), headers=ADMIN
                )
                refused(answer, 404, 405)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_times_before_and_after_all_times(hub: Hub, time: str) -> None:
    asked = 0
    for operation in OPERATIONS:
        for described in operation.parameters:
            if described["in"] == "query" and is_time(described["schema"]):
                query = operation.query(**{described["name"]: time})
                path = operation.address()
                answer = await hub.http.request(operation.method, path, params=query, headers=ADMIN)
                refused(answer, 400, code="VALIDATION_ERROR")
                assert [each["field"] for each in answer.json()["details"]] == [described["name"]]
                asked += 1
        for name in operation.times:
            assert operation.body is not None
            answer = await send(hub, operation, encoded({**operation.body, name: time}))
            refused(answer, 400, code="VALIDATION_ERROR")
            assert name in [each["field"] for each in answer.json()["details"]]
            asked += 1
    assert asked >= 14


@every_body
async def test_bodies_that_are_none(hub: Hub, operation: Operation) -> None:
    for content in BODIES:
        refused(await send(hub, operation, content), 400)


@every_body
async def test_bodies_of_another_kind(hub: Hub, operation: Operation) -> None:
    for kind in HOSTILE_CONTENT:
        answer = await send(hub, operation, b"venueId=1", **{"content-type": kind})
        refused(answer, 415, code="UNSUPPORTED_MEDIA_TYPE")


@every_body
async def test_fields_of_another_type(hub: Hub, operation: Operation) -> None:
    assert operation.body is not None
    for name in operation.body:
        for value in (*WRONG, json.loads("[" * 500 + "]" * 500)):
            answer = await send(hub, operation, encoded({**operation.body, name: value}))
            refused(answer, 400)
            assert answer.json()["details"][0]["field"].startswith(name)
        deep = encoded({**operation.body, name: "deep"}).replace(b'"deep"', DEEP)
        refused(await send(hub, operation, deep), 400, code="VALIDATION_ERROR")


@every_body
async def test_texts_in_every_field(hub: Hub, operation: Operation) -> None:
    assert operation.body is not None
    for body in _with_texts(operation.body):
        told(await send(hub, operation, encoded(body)))
    [count] = await hub.rows("SELECT count(*) AS tables FROM integration_configs")
    assert count["tables"] <= 1  # it is there still


def _with_texts(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every body that has one text somewhere, in a value or as a name."""
    for text in TEXTS:
        yield {**body, text: 1}
        for name, value in body.items():
            yield {**body, name: text}
            if isinstance(value, dict):
                yield {**body, name: {**value, text: text}}
                for inner in value:
                    yield {**body, name: {**value, inner: text}}


@every_body
async def test_five_megabytes(hub: Hub, operation: Operation) -> None:
    content = b'{"venueId": "' + b"x" * (5 * MEBIBYTE) + b'"}'
    refused(await send(hub, operation, content), 413, code="PAYLOAD_TOO_LARGE")


async def in_parts(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536):
        yield b" " * 65536


@every_body
async def test_five_megabytes_that_do_not_say_so(hub: Hub, operation: Operation) -> None:
    answer = await hub.http.request(
        operation.method,
        operation.address(),
        content=in_parts(5 * MEBIBYTE),
        headers={**ADMIN, "content-type": "application/json"},
    )
    refused(answer, 413, code="PAYLOAD_TOO_LARGE")


# --- deliveries

HOOKS = f"{API}/webhooks"
KEY = "sq-signature-key"


async def delivered(hub: Hub, content: bytes) -> httpx.Response:
    """Deliver it with a good signature: what a provider's account, or whoever has its key, could send."""
    known = hub.context.settings._apps
    assert isinstance(known, dict)
    known["SQUARE_WEBHOOK_SIGNATURE_KEY"] = Secret(KEY)
    signed = f"http://127.0.0.1:3007{HOOKS}/square".encode() + content
    signature = base64.b64encode(hmac.digest(KEY.encode(), signed, "sha256")).decode()
    headers = {"x-square-hmacsha256-signature": signature, "content-type": "application/json"}
    return await hub.http.post(f"{HOOKS}/square", content=content, headers=headers)


@pytest.mark.parametrize("content", BODIES, ids=range(len(BODIES)))
async def test_a_signed_delivery_that_is_none(hub: Hub, content: bytes) -> None:
    refused(await delivered(hub, content), 400, code="WEBHOOK_PROCESSING_FAILED")


@pytest.mark.parametrize("field", ["merchant_id", "type", "event_id", "created_at", "data"])
async def test_texts_in_a_signed_delivery(hub: Hub, field: str) -> None:
    event = {
        "merchant_id": "M1",
        "type": "customer.updated",
        "event_id": "e1",
        "created_at": "2026-03-01T11:59:00Z",
        "data": {"id": "C1"},
    }
    for value in (*TEXTS, *WRONG, None, {"id": "\0"}, {"id": "9" * 5000}):
        told(await delivered(hub, encoded({**event, field: value})))


@pytest.mark.parametrize("path", [f"{HOOKS}/square", f"{HOOKS}/stripe/a-token"])
async def test_a_delivery_of_five_megabytes(hub: Hub, path: str) -> None:
    refused(await hub.http.post(path, content=b"x" * (5 * MEBIBYTE)), 413, code="PAYLOAD_TOO_LARGE")
    refused(await hub.http.post(path, content=in_parts(5 * MEBIBYTE)), 413, code="PAYLOAD_TOO_LARGE")


async def test_a_delivery_that_cannot_be_stored_leaves_others_alone(hub: Hub) -> None:
    """Deliveries that come together share a transaction, and one of them holds what no database takes."""

    def event(number: int, kind: str) -> bytes:
        return encoded({"merchant_id": "M1", "type": kind, "event_id": f"e{number}", "data": {"id": "C1"}})

    kinds = ["customer.updated"] * 12
    kinds[5] = "customer.updated\0"
    answers = await asyncio.gather(*(delivered(hub, event(n, kind)) for n, kind in enumerate(kinds)))
    assert [answer.status_code for answer in answers] == [200] * 5 + [400] + [200] * 6
    rows = await hub.rows("SELECT DISTINCT event_id FROM integration_webhooks")
    assert {row["event_id"] for row in rows} == {f"e{n}" for n in range(12) if n != 5}


# --- tokens

CLAIMS = {"userId": USER_ID, "role": "admin", "venueId": str(OURS), "exp": int(time.time()) + 3600}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(encoded(value)).rstrip(b"=").decode()


def forged() -> Iterator[tuple[str, str]]:
    soon = int(time.time()) + 1800
    yield "alg none", jwt.encode(CLAIMS, "", algorithm="none")
    for word in ("None", "NONE", "nOnE", "", None, "RS256", "ES256", 7, ["HS256"]):
        yield f"alg {word}", f"{part({'alg': word, 'typ': 'JWT'})}.{part(CLAIMS)}."
    yield "another algorithm", jwt.encode(CLAIMS, SECRET * 2, algorithm="HS512")
    yield "another secret", jwt.encode(CLAIMS, SECRET[::-1], algorithm="HS256")
    yield "not before", token("admin", nbf=soon)
    yield "issued later", token("admin", iat=soon)
    yield "never ends", token("admin", exp=None)
    yield "issued never", token("admin", iat="x")
    yield "claims that are none", f"{part({'alg': 'HS256'})}.{part([])}.{part('')}"
    yield "no signature", ".".join(token("admin").split(".")[:2])
    yield "cut", token("admin")[:-1]
    yield "longer", token("admin") + "A"
    yield "dots", "...."
    yield "one part", "x"
    yield "long", "x" * 30_000
    deep = f"{part({'alg': 'HS256'})}.{base64.urlsafe_b64encode(DEEP).rstrip(b'=').decode()}"
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), deep.encode(), "sha256"))
    yield "deep claims", f"{deep}.{signature.rstrip(b'=').decode()}"
    header = base64.urlsafe_b64encode(b'{"alg":' + DEEP + b"}").rstrip(b"=").decode()
    yield "deep header", f"{header}.{part(CLAIMS)}.x"


@pytest.mark.parametrize(("kind", "text"), list(forged()), ids=[kind for kind, _ in forged()])
async def test_tokens_nobody_issued(hub: Hub, kind: str, text: str) -> None:
    headers = {"Authorization": f"Bearer {text}"}
    answer = await hub.http.get(API, params={"venueId": str(OURS)}, headers=headers)
    refused(answer, 401, code="INVALID_TOKEN")
    assert answer.json()["details"] == []


async def test_a_token_that_has_expired(hub: Hub) -> None:
    for ended in (int(time.time()) - 1, 0):
        answer = await hub.http.get(API, params={"venueId": str(OURS)}, headers=bearer("admin", exp=ended))
        refused(answer, 401, code="TOKEN_EXPIRED")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer\t", "bearer:x", "\0"])
async def test_headers_without_a_token(hub: Hub, value: str) -> None:
    headers = {"Authorization": value}
    answer = await hub.http.get(API, params={"venueId": str(OURS)}, headers=headers)
    refused(answer, 401, code="AUTH_REQUIRED")


# --- all that is wrong, at once

# Routes that providers and browsers call, with what they like in the query.
ANY_QUERY = ("/oauth/callback/", f"{HOOKS}/{{provider}}/{{token}}")
CHECKED = tuple(
    each
    for each in OPERATIONS
    if not any(part in each.path for part in ANY_QUERY) and each.path != f"{HOOKS}/{{provider}}"
)


async def test_names_that_are_not_known_in_every_query(running: Hub) -> None:
    for operation in CHECKED:
        for name in operation.named("query") or ["nothing"]:
            query = {**operation.query(), f"{name}x": "1"}
            content = encoded(operation.body) if operation.body is not None else None
            answer = await running.http.request(
                operation.method,
                operation.address(),
                params=query,
                content=content,
                headers={**ADMIN, "content-type": "application/json"},
            )
            refused(answer, 400)
            [detail] = [each for each in answer.json()["details"] if each["field"] == f"{name}x"]
            hint = "takes nothing" if name == "nothing" else f"did you mean `{name}`?"
            assert hint in detail["message"], (str(operation), detail)


async def test_a_parameter_that_is_there_twice_in_every_query(running: Hub) -> None:
    for operation in CHECKED:
        for name in operation.named("query"):
            query: dict[str, Any] = {**operation.query(), name: ["1", "2"]}
            answer = await running.http.request(
                operation.method, operation.address(), params=query, headers=ADMIN
            )
            refused(answer, 400)
            assert {"field": name, "message": f"`{name}` is there more than once"} in answer.json()["details"]


async def test_names_that_are_not_known_in_every_body(running: Hub) -> None:
    for operation in WITH_BODY:
        assert operation.body is not None
        for name, value in operation.body.items():
            for path, body in (
                (f"{name}x", {**operation.body, f"{name}x": 1}),
                *(
                    (f"{name}.{key}x", {**operation.body, name: {**value, f"{key}x": 1}})
                    for key in (value if name in ("config", "options") else ())
                ),
            ):
                answer = await send(running, operation, encoded(body))
                refused(answer, 400)
                [detail] = answer.json()["details"]
                right = path.rpartition(".")[2][:-1]
                assert detail["field"] == path
                assert f"did you mean `{right}`?" in detail["message"], detail


async def test_everything_that_is_wrong_with_a_body_and_a_query_is_told(running: Hub) -> None:
    for operation in WITH_BODY:
        assert operation.body is not None
        body = {**{name: [[[]]] for name in operation.body}, "unheardOf": 1}
        answer = await running.http.request(
            operation.method,
            operation.address(),
            params={"unheardOfToo": "1"},
            content=encoded(body),
            headers={**ADMIN, "content-type": "application/json"},
        )
        refused(answer, 400)
        named = {re.split(r"[.\[]", each["field"])[0] for each in answer.json()["details"]}
        assert named == {*operation.body, "unheardOf", "unheardOfToo"}, str(operation)
