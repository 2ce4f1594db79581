"""One handler makes every error answer: a sentence, a code, what is wrong where, when, in which request."""

import os
import re
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.serialization import decode_json
from litestar.types import Message, Scope
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from engine.errors import HubError, RateLimitedError
from server.db.engine import is_unstorable
from server.errors import (
    STATUSES,
    Detail,
    InvalidRequestError,
    ServerError,
    TooManyRequestsError,
    http_status,
)
from server.services.audit import Actor, address
from server.services.denials import Denial, Denials, stranger

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FRAMEWORK_CODES = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMIT_EXCEEDED",
    503: "STORE_UNAVAILABLE",
}
_PUBLIC_CODES = frozenset(STATUSES) - {"VAULT_ERROR", "UNEXPECTED_RESPONSE"}
DENIED = ("AUTH_REQUIRED", "INVALID_TOKEN", "TOKEN_EXPIRED", "FORBIDDEN", "OAUTH_STATE_INVALID")
_AWAY = ("08", "53", "57")  # SQLSTATE classes: no connection, no resources, shut down or starting
_RETRY_SECONDS = 5  # for a caller whom nobody told how long


class ErrorDetail(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where."""

    field: str
    message: str


class ErrorAnswer(msgspec.Struct, frozen=True, rename={"request_id": "requestId"}):
    """Every answer but a good one has this body."""

    success: bool
    error: str
    code: str
    details: list[ErrorDetail]
    timestamp: datetime
    request_id: str


def shown_path(scope: Any) -> str:
    """Return a request's path for the log; where a path holds a secret, the route's instead."""
    handler = scope.get("route_handler")
    if handler is not None and handler.opt.get("hides_path"):
        return str(scope.get("path_template"))
    return str(scope["path"])


def request_id(scope: Scope) -> str:
    """Return the request's id: the caller's `X-Request-Id` when it is a sensible one, else a new one."""
    state: dict[str, Any] = scope["state"]
    if "request_id" not in state:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        state["request_id"] = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
    return str(state["request_id"])


async def send_request_id(message: Message, scope: Scope) -> None:
    """Put the request's id on every answer."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (b"x-request-id", request_id(scope).encode())]


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorAnswer]:
    """Turn whatever was raised into an answer. What nobody foresaw says nothing of the inside."""
    known = _known(request, error)
    status, code, message, details = known or (500, "INTERNAL_ERROR", "something went wrong on our side", ())
    foreign = error.foreign_venue if isinstance(error, ServerError) else None
    if code in DENIED or foreign is not None:
        _note_denial(request, code, foreign)
    if known is None or status >= 500:
        log.error(
            "request.failed",
            code=code,
            path=shown_path(request.scope),
            exc_info=error if known is None else None,
        )
    return Response(
        _answer(code, message, request_id(request.scope), details),
        status_code=status,
        headers=_headers(status, code, error),
    )


def plain_error(status: int, message: str, request: str) -> bytes:
    """Return the body of an answer to what never became a request; `request` is the id it gets."""
    return msgspec.json.encode(_answer(_FRAMEWORK_CODES.get(status, "VALIDATION_ERROR"), message, request))


def _answer(code: str, message: str, request: str, details: Iterable[Detail] = ()) -> ErrorAnswer:
    return ErrorAnswer(
        success=False,
        error=message,
        code=code,
        details=[ErrorDetail(detail.field, detail.message) for detail in details],
        timestamp=datetime.now(UTC),
        request_id=request,
    )


def _note_denial(request: Request[Any, Any, Any], code: str, foreign: UUID | None) -> None:
    """Let the audit log know: who, what was asked for, and for which venue."""
    denials: Denials | None = request.app.state.get("denials")
    if denials is None:
        return
    ip = address(request.client.host if request.client else None)
    caller = request.scope.get("user")
    path = request.scope.get("path_template")
    provider = request.path_params.get("provider")
    venue = foreign or _uuid(request.path_params.get("venue_id") or request.query_params.get("venueId"))
    if caller is None or (venue is not None and foreign is None and not caller.sees(venue)):
        venue = None  # anybody can write a venue's id
    denials.note(
        Denial(
            Actor(caller.id, ip, role=caller.role) if caller else stranger(ip),
            code,
            f"{request.method} {path}" if path else None,
            venue,
            provider if provider in request.app.state.context.catalog.connectors else None,
            foreign is not None,
        )
    )


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None


def sentence(error: HubError) -> str:
    """Return what may be told of an error to whoever caused it."""
    return error.message if error.code in _PUBLIC_CODES else "something went wrong on our side"


def _known(
    request: Request[Any, Any, Any], error: Exception
) -> tuple[int, str, str, Iterable[Detail]] | None:
    if isinstance(error, HTTPException) and error.status_code < 500:
        status = error.status_code
        if status == 400:
            refused = _refusal(error)
            return 400, refused.code, refused.message, refused.details
        return status, _FRAMEWORK_CODES.get(status, "VALIDATION_ERROR"), f"{error.detail}", ()
    if isinstance(error, HubError):
        status = http_status(error)
        if error.code in _PUBLIC_CODES and status != 500:
            return status, error.code, error.message, getattr(error, "details", ())
        return (502, "SYNC_FAILED", error.message, ()) if status == 502 else None
    if _nested_too_deeply(error):
        refused = InvalidRequestError("the body is nested too deeply")
        return 400, refused.code, refused.message, ()
    if is_unstorable(error):
        return 400, "VALIDATION_ERROR", "a text has a character that can't be stored", ()
    if isinstance(error, IntegrityError):
        return 409, "CONFLICT", "this conflicts with another change made at the same time", ()
    if _store_is_away(error):
        return 503, "STORE_UNAVAILABLE", "a store can't be reached; try again", ()
    return None


def _nested_too_deeply(error: Exception) -> bool:
    """Tell whether a body's nesting ended its reading: the one fault the framework gives no status."""
    return isinstance(error, RecursionError) and any(
        frame.f_globals.get("__name__") == decode_json.__module__
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _store_is_away(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        return error.connection_invalidated or state[:2] in _AWAY
    return isinstance(error, PoolTimeoutError | RedisError | OSError)


def _headers(status: int, code: str, error: Exception) -> dict[str, str]:
    headers = dict(getattr(error, "headers", None) or {})
    if status == 401 and code in ("AUTH_REQUIRED", "INVALID_TOKEN", "TOKEN_EXPIRED"):
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        wait = error.retry_after if isinstance(error, RateLimitedError | TooManyRequestsError) else None
        headers["Retry-After"] = str(max(1, round(wait or _RETRY_SECONDS)))
    return headers


def _refusal(error: HTTPException) -> InvalidRequestError:
    """Say in this service's words what the framework alone finds wrong: a request is checked before it."""
    found = [item for item in error.extra or () if isinstance(item, Mapping)]
    details = [Detail(str(item.get("key") or "body"), str(item.get("message", ""))) for item in found]
    return InvalidRequestError("the request can't be accepted", details)


# --- what the API description says of errors

_SENTENCES: Mapping[str, str] = {
    "VALIDATION_ERROR": "the request can't be accepted",
    "VENUE_ID_REQUIRED": "venueId is required",
    "PROVIDER_NOT_SUPPORTED": "no application is registered with Juniper: set JUNIPER_CLIENT_ID",
    "MAPPING_INVALID": "1 of 3 pairs can't be mapped: `customer` has no field `emial`; did you mean `email`?",
    "REQUIRED_FIELD_MISSING": "Juniper needs `item.name`, and no field of `event` is mapped to it",
    "AUTH_REQUIRED": "send a token: `Authorization: Bearer …`",
    "INVALID_TOKEN": "the token isn't valid",
    "TOKEN_EXPIRED": "the token has expired",
    "OAUTH_STATE_INVALID": "this authorization isn't known, is finished already, or is too old",
    "WEBHOOK_PROCESSING_FAILED": "the body isn't JSON",
    "WEBHOOK_SIGNATURE_INVALID": "the delivery's signature is wrong",
    "CONNECTION_TEST_FAILED": "Juniper refuses these credentials",
    "FORBIDDEN": "you may not act for this venue",
    "NOT_FOUND": "there is no such sync",
    "INVALID_PROVIDER": "there is no provider `junipr`: did you mean `juniper`?",
    "INTEGRATION_NOT_FOUND": "`juniper` isn't connected at this venue",
    "TEMPLATE_NOT_FOUND": "there is no mapping template for `juniper`",
    "INTEGRATION_NOT_CONNECTED": "`juniper` is disconnected: connect it first",
    "CREDENTIALS_NOT_FOUND": "this `juniper` integration has no credentials: connect it",
    "SYNC_IN_PROGRESS": "a sync of this integration is under way",
    "IDEMPOTENCY_KEY_IN_USE": "the first request with this Idempotency-Key isn't answered yet",
    "CONFLICT": "this conflicts with another change made at the same time",
    "PAYLOAD_TOO_LARGE": "Request Entity Too Large",
    "UNSUPPORTED_MEDIA_TYPE": "send JSON: `Content-Type: application/json`",
    "IDEMPOTENCY_KEY_REUSED": "this Idempotency-Key belongs to a request with another body",
    "RATE_LIMIT_EXCEEDED": "too many requests: try again in 42 seconds",
    "INTERNAL_ERROR": "something went wrong on our side",
    "SYNC_FAILED": "the provider can't be reached",
    "OAUTH_EXCHANGE_FAILED": "Juniper didn't accept the authorization code",
    "TOKEN_REFRESH_FAILED": "Juniper refuses to renew the connection: connect again",
    "QUEUE_FULL": "10000 operations of this integration wait already: try again when some of them are done",
    "STORE_UNAVAILABLE": "a store can't be reached; try again",
}  # fmt: skip
_EXAMPLE_DETAILS: Mapping[str, ErrorDetail] = {
    "VALIDATION_ERROR": ErrorDetail(
        "config.syncIntervl", "`config.syncIntervl` is not known here; did you mean `syncInterval`?"
    ),
    "VENUE_ID_REQUIRED": ErrorDetail("venueId", "venueId is required"),
    "MAPPING_INVALID": ErrorDetail(
        "mappings.customer.emial", "`customer` has no field `emial`; did you mean `email`?"
    ),
    "REQUIRED_FIELD_MISSING": ErrorDetail(
        "item.name", "Juniper needs `item.name`, and no field of `event` is mapped to it"
    ),
}  # fmt: skip
_EXTRA_STATUSES = {"CONFLICT": 409, **{code: status for status, code in _FRAMEWORK_CODES.items()}}
_EVERYWHERE = ("VALIDATION_ERROR", "RATE_LIMIT_EXCEEDED", "INTERNAL_ERROR", "STORE_UNAVAILABLE")
_WITH_TOKEN = ("AUTH_REQUIRED", "INVALID_TOKEN", "TOKEN_EXPIRED", "FORBIDDEN")


def error_answers(*codes: str, token: bool = True, alone: bool = False) -> dict[int, ResponseSpec]:
    """Return the API description of a route's errors: by status, an example for each code.

    Those that any route may have needn't be named; `alone` says that there are no others.
    """
    by_status: dict[int, list[Example]] = {}
    everywhere = () if alone else (*(_WITH_TOKEN if token else ()), *_EVERYWHERE)
    for code in dict.fromkeys((*codes, *everywhere)):
        body = ErrorAnswer(
            success=False,
            error=_SENTENCES[code],
            code=code,
            details=[_EXAMPLE_DETAILS[code]] if code in _EXAMPLE_DETAILS else [],
            timestamp=datetime(2026, 1, 15, 11, tzinfo=UTC),
            request_id="5f0c3b8e2f6a4d0e9b7a1c2d3e4f5a6b",
        )
        status = STATUSES.get(code) or _EXTRA_STATUSES[code]
        example = Example(summary=code, value=msgspec.to_builtins(body))
        by_status.setdefault(status, []).append(example)
    return {
        status: ResponseSpec(
            ErrorAnswer,
            generate_examples=False,
            description=" or ".join(str(example.summary) for example in examples),
            examples=examples,
        )
        for status, examples in sorted(by_status.items())
    }
