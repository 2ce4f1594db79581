"""Who is calling, and what they may do.

A route is open only when it says `opt={"public": True}`, and answers a caller only when `opt={"roles": …}`
names the caller's role: a route that says nothing answers nobody.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import jwt
import structlog
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from server.errors import ForbiddenError, InvalidTokenError, TokenExpiredError, UnauthorizedError
from server.settings import Settings

ADMIN, VENUE_ADMIN, USER = "admin", "venue_admin", "user"
LONGEST_ID, LONGEST_ROLE = 255, 50  # characters: what the audit log keeps
KEPT_SECONDS = 60.0  # how long a token isn't verified again, at the most: never past its end
MOST_KEPT = 10_000  # tokens
IDENTIFIED = "caller"  # in a request's state: whom its token names, when that was looked at already

PUBLIC: Mapping[str, Any] = {"public": True}
READERS: Mapping[str, Any] = {"roles": frozenset({ADMIN, VENUE_ADMIN, USER})}
MANAGERS: Mapping[str, Any] = {"roles": frozenset({ADMIN, VENUE_ADMIN})}
ADMINS: Mapping[str, Any] = {"roles": frozenset({ADMIN})}
TOKEN: Sequence[dict[str, list[str]]] = [{"token": []}]  # how the API description says it


@dataclass(frozen=True, slots=True)
class Caller:
    """The person or program a token was issued to."""

    id: str
    role: str
    venues: frozenset[UUID] = frozenset()
    permissions: frozenset[str] = frozenset()

    def sees(self, venue_id: UUID) -> bool:
        return self.role == ADMIN or venue_id in self.venues

    def require(self, venue_id: UUID) -> None:
        """Raise ForbiddenError for a venue that isn't the caller's, whether or not it exists."""
        structlog.contextvars.bind_contextvars(venue_id=str(venue_id))  # of this request, for its log
        if not self.sees(venue_id):
            raise ForbiddenError("you may not act for this venue", foreign_venue=venue_id)


CallerRequest = Request[Caller, Any, State]


class Authentication(ASGIMiddleware):
    """Lets a request through to a public route, or to one that names the role of whom its token names.

    The algorithm and the key are the server's choice, never the token's. A guard of the framework would cost
    a copy of the route for each request.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        options = scope["route_handler"].opt
        if not (options.get("public") or cast("HTTPScope", scope)["method"] == "OPTIONS"):
            known: Caller | None = scope["state"].get(IDENTIFIED)
            caller = known or identify_scope(scope, self.settings)
            scope["user"], scope["auth"] = caller, None
            if caller.role not in options.get("roles", ()):
                raise ForbiddenError("your role doesn't allow this")
        await next_app(scope, receive, send)


def identify(connection: ASGIConnection[Any, Any, Any, Any], settings: Settings) -> Caller:
    """Return who is calling; raises UnauthorizedError without a token, and what `read_token` raises."""
    return identify_scope(connection.scope, settings)


def identify_scope(scope: Scope, settings: Settings) -> Caller:
    """Return who is calling, as `identify` does."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorizedError("send a token: `Authorization: Bearer …`")
    return read_token(token.strip(), settings)


# Tokens that were verified lately: whom they name, and until when that counts (in Unix time), by a hash of
# the token and of what it was verified with. A token that was refused is verified again.
_verified: dict[bytes, tuple[Caller, float]] = {}


def read_token(token: str, settings: Settings) -> Caller:
    """Verify a token and return whom it names; raises InvalidTokenError or TokenExpiredError."""
    proof = repr((settings.jwt_key.reveal(), settings.jwt_algorithm, settings.jwt_audience, token))
    key, now = hashlib.sha256(proof.encode()).digest(), time.time()
    known = _verified.get(key)
    if known is not None and known[1] - KEPT_SECONDS <= now < known[1]:
        return known[0]
    caller, ends = _verify_token(token, settings)
    if len(_verified) >= MOST_KEPT:
        _verified.clear()
    _verified[key] = caller, min(ends, now + KEPT_SECONDS)
    return caller


def _verify_token(token: str, settings: Settings) -> tuple[Caller, int]:
    """Return whom a token names, and when it expires."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            settings.jwt_key.reveal(),
            algorithms=[settings.jwt_algorithm],
            audience=settings.jwt_audience,
            options={"require": ["exp"], "verify_aud": settings.jwt_audience is not None},
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpiredError("the token has expired") from None
    except jwt.PyJWTError:
        raise InvalidTokenError("the token isn't valid") from None
    identity = next((claims[name] for name in ("userId", "id", "sub") if claims.get(name)), None)
    venues = claims.get("venueIds") or ([claims["venueId"]] if claims.get("venueId") else [])
    permissions = claims.get("permissions") or []
    role = claims.get("role") or USER
    try:
        if not isinstance(identity, str | int) or not isinstance(role, str):
            raise ValueError
        if len(str(identity)) > LONGEST_ID or len(role) > LONGEST_ROLE:
            raise ValueError
        if not f"{identity}{role}".isprintable():  # no database keeps all of what isn't
            raise ValueError
        caller = Caller(
            id=str(identity),
            role=role,
            venues=frozenset(UUID(venue) for venue in venues),
            permissions=frozenset(str(permission) for permission in permissions),
        )
        return caller, int(claims["exp"])
    except (ValueError, TypeError, AttributeError):
        raise InvalidTokenError("the token's claims can't be read") from None
