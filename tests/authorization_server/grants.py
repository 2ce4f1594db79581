"""What was issued, and authlib's grants over it: code with PKCE, refresh with rotation, revocation."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from authlib.oauth2 import OAuth2Request
from authlib.oauth2.rfc6749 import AuthorizationServer as AuthlibServer
from authlib.oauth2.rfc6749 import (
    ClientMixin,
    InvalidRequestError,
    OAuth2Error,
    TokenMixin,
    grants,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge

FORM = "application/x-www-form-urlencoded"
CODE_SECONDS = 60


@dataclass(slots=True)
class Behaviour:
    """How this server is set up. May be changed while it runs."""

    client_auth: Literal["header", "body", "json"] = "header"  # `json`: in the body, which is JSON
    pkce: bool = True  # an authorization without a challenge is refused; only S256 is taken
    rotates: bool = True  # each refresh gives a new refresh token, and ends the used one
    grace_seconds: float = 0.0  # how long a used refresh token goes on working; later use of it is theft
    access_seconds: int = 3600
    refresh_seconds: int | None = None  # None: a refresh token doesn't end, and no answer says when
    approves: bool = True  # what the venue says when asked
    user: str = "account-1"
    redirect_uris: tuple[str, ...] = ()  # empty: any
    issuer: str | None = None  # goes into the redirect as `iss`
    answer: dict[str, Any] = field(default_factory=dict)  # laid over token answers; None leaves a key out


@dataclass(frozen=True, slots=True)
class Client(ClientMixin):
    """The one application that is registered."""

    client_id: str
    client_secret: str
    behaviour: Behaviour

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return self.behaviour.redirect_uris[0] if self.behaviour.redirect_uris else ""

    def get_allowed_scope(self, scope: Any) -> str:
        return str(scope or "")

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return not self.behaviour.redirect_uris or redirect_uri in self.behaviour.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(self.client_secret, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        wanted = "client_secret_basic" if self.behaviour.client_auth == "header" else "client_secret_post"
        return method == wanted

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")


@dataclass(slots=True)
class Family:
    """All tokens of one consent. They end together when a used refresh token comes again."""

    user: str
    scope: str
    revoked: bool = False


@dataclass(slots=True)
class Token(TokenMixin):
    """One answer's tokens. `used_at` is when its refresh token was used and replaced."""

    family: Family
    client_id: str
    access_token: str
    refresh_token: str | None
    issued_at: float
    access_seconds: float
    refresh_seconds: float | None
    used_at: float | None = None

    def check_client(self, client: Any) -> bool:
        return bool(client.client_id == self.client_id)

    def get_scope(self) -> str:
        return self.family.scope


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code, its challenge, and where it was sent."""

    code: str
    user: str
    scope: str
    redirect_uri: str
    code_challenge: str | None
    code_challenge_method: str | None
    ends_at: float

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass(slots=True)
class Issued:
    """Everything that was issued. `counts` also counts what was asked for, by grant type."""

    codes: dict[str, Code] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    ahead: float = 0.0  # seconds that this server's clock is ahead

    def now(self) -> float:
        return time.time() + self.ahead

    def by_refresh_token(self, text: str) -> Token | None:
        return next((each for each in self.tokens if each.refresh_token == text), None)

    def by_access_token(self, text: str) -> Token | None:
        return next((each for each in self.tokens if each.access_token == text), None)

    def lives(self, access_token: str) -> Token | None:
        """Return the token if it may be used."""
        token = self.by_access_token(access_token)
        if token is None or token.family.revoked or token.issued_at + token.access_seconds < self.now():
            return None
        return token


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it came over the wire."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class HttpAnswer:
    """What goes back over the wire."""

    status: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def json(cls, status: int, body: Any, **headers: str) -> HttpAnswer:
        return cls(status, orjson.dumps(body), {"Content-Type": "application/json", **headers})


class Request(OAuth2Request):
    """A request as authlib reads it: as if TLS ended in front of this server."""

    def __init__(self, request: HttpRequest, fields: Mapping[str, str]) -> None:
        super().__init__(
            request.method, f"https://authorization.example{request.path}", None, request.headers
        )
        self._fields = dict(fields)
        self.payload = BasicOAuth2Payload({**request.query, **fields})

    @property
    def args(self) -> dict[str, str | None]:
        return dict(self._fields)

    @property
    def form(self) -> dict[str, str]:
        return self._fields


class Rules(AuthlibServer):
    """authlib's server over this one's store; one request at a time."""

    def __init__(self, client: Client, behaviour: Behaviour, issued: Issued) -> None:
        super().__init__()
        self.client, self.behaviour, self.issued = client, behaviour, issued
        generator = BearerTokenGenerator(
            lambda **_: f"canary7{secrets.token_urlsafe(24)}",
            lambda **_: f"canary7{secrets.token_urlsafe(24)}",
            lambda *_: behaviour.access_seconds,
        )
        self.register_token_generator("default", generator)
        self.register_grant(CodeGrant, [OnlyS256(required=True)])
        self.register_grant(RefreshGrant)
        self.register_endpoint(Revocation)

    def query_client(self, client_id: str) -> Any:
        return self.client if client_id == self.client.client_id else None

    def create_oauth2_request(self, request: Any) -> OAuth2Request:
        return request if isinstance(request, OAuth2Request) else Request(request, self.fields(request))

    def fields(self, request: HttpRequest) -> dict[str, str]:
        """Read a body; raises InvalidRequestError when it is of another kind than this server takes."""
        if request.method != "POST":
            return {}
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.behaviour.client_auth == "json":
            if kind != "application/json":
                raise InvalidRequestError("the body must be JSON")
            return {str(name): str(value) for name, value in orjson.loads(request.body).items()}
        if kind != FORM:
            raise InvalidRequestError("the body must be a form")
        return dict(parse_qsl(request.body.decode(), keep_blank_values=True))

    def handle_response(self, status: int, body: Any, headers: Any) -> Any:
        content = orjson.dumps(body) if isinstance(body, dict) else str(body).encode()
        return HttpAnswer(status, content, dict(headers))

    def send_signal(self, name: Any, *args: object, **kwargs: object) -> None:
        return None

    def save_token(self, token: dict[str, Any], request: Any) -> None:
        """Remember a token answer. It belongs to the consent that it comes from."""
        before: Token | None = request.refresh_token
        family = before.family if before else Family(str(request.user), str(token.get("scope", "")))
        self.remember(token, family)

    def remember(self, token: dict[str, Any], family: Family) -> None:
        behaviour = self.behaviour
        self.issued.tokens.append(
            Token(
                family,
                self.client.client_id,
                str(token["access_token"]),
                token.get("refresh_token"),
                self.issued.now(),
                behaviour.access_seconds,
                behaviour.refresh_seconds,
            )
        )
        if behaviour.refresh_seconds is not None and "refresh_token" in token:
            token["refresh_token_expires_in"] = behaviour.refresh_seconds
        token["account"] = family.user
        for name, value in behaviour.answer.items():
            if value is None:
                token.pop(name, None)
            else:
                token[name] = value

    # -- endpoints

    def authorize(self, request: HttpRequest) -> HttpAnswer:
        """Ask the venue, who answers at once."""
        asked = Request(request, request.query)
        try:
            grant = self.get_consent_grant(asked, end_user=self.behaviour.user)  # type: ignore[no-untyped-call]  # its stub
        except OAuth2Error as error:
            answer: Any = self.handle_error_response(asked, error)
        else:
            user = self.behaviour.user if self.behaviour.approves else None
            answer = self.create_authorization_response(asked, grant_user=user, grant=grant)
        if self.behaviour.issuer is not None and "Location" in answer.headers:
            joint = "&" if urlsplit(answer.headers["Location"]).query else "?"
            answer.headers["Location"] += joint + urlencode({"iss": self.behaviour.issuer})
        return _typed(answer)

    def token(self, request: HttpRequest) -> HttpAnswer:
        return _typed(self._answered(lambda: self.create_token_response(request)))

    def revoke(self, request: HttpRequest) -> HttpAnswer:
        return _typed(
            self._answered(
                lambda: self.create_endpoint_response("revocation", request)  # type: ignore[no-untyped-call]  # its stub
            )
        )

    def _answered(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OAuth2Error as error:  # of a body that can't be read
            return self.handle_response(*error())


class OnlyS256(CodeChallenge):
    """PKCE as RFC 9700 wants it: no `plain`, and nobody without, when the server says so."""

    SUPPORTED_CODE_CHALLENGE_METHOD: list[str] = ["S256"]  # noqa: RUF012 -- authlib's name and type

    def validate_code_challenge(self, grant: Any, redirect_uri: Any) -> None:
        asked = grant.request.payload.data
        if grant.server.behaviour.pkce and not asked.get("code_challenge"):
            raise InvalidRequestError("Missing 'code_challenge'")
        if asked.get("code_challenge") and asked.get("code_challenge_method") != "S256":
            raise InvalidRequestError("Unsupported 'code_challenge_method'")
        super().validate_code_challenge(grant, redirect_uri)


class CodeGrant(grants.AuthorizationCodeGrant):
    """The authorization code grant."""

    server: Rules

    def save_authorization_code(self, code: str, request: Any) -> None:
        asked = request.payload.data
        self.server.issued.codes[code] = Code(
            code,
            str(request.user),
            request.scope or "",
            request.payload.redirect_uri or "",
            asked.get("code_challenge"),
            asked.get("code_challenge_method"),
            self.server.issued.now() + CODE_SECONDS,
        )

    def query_authorization_code(self, code: str, client: Any) -> Code | None:
        found = self.server.issued.codes.get(code)
        return found if found is not None and found.ends_at > self.server.issued.now() else None

    def delete_authorization_code(self, authorization_code: Code) -> None:
        del self.server.issued.codes[authorization_code.code]
        self.server.issued.counts["exchanged"] += 1

    def authenticate_user(self, authorization_code: Code) -> str:
        return authorization_code.user


class RefreshGrant(grants.RefreshTokenGrant):
    """Refresh. A used refresh token that comes again ends the whole family, as RFC 9700 wants."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")
    server: Rules

    def __init__(self, request: OAuth2Request, server: Rules) -> None:
        super().__init__(request, server)
        self.INCLUDE_NEW_REFRESH_TOKEN = server.behaviour.rotates

    def authenticate_refresh_token(self, refresh_token: str) -> Any:
        issued, behaviour = self.server.issued, self.server.behaviour
        token = issued.by_refresh_token(refresh_token)
        if token is None or token.family.revoked:
            return None
        if token.refresh_seconds is not None and token.issued_at + token.refresh_seconds < issued.now():
            return None
        if token.used_at is not None and issued.now() - token.used_at >= behaviour.grace_seconds:
            issued.counts["reused"] += 1
            token.family.revoked = True
            return None
        return token

    def authenticate_user(self, refresh_token: Any) -> str:
        return str(refresh_token.family.user)

    def revoke_old_credential(self, refresh_token: Any) -> None:
        issued = self.server.issued
        issued.counts["refreshed"] += 1
        if self.server.behaviour.rotates and refresh_token.used_at is None:
            refresh_token.used_at = issued.now()


class Revocation(RevocationEndpoint):
    """RFC 7009: whichever token is named, the whole consent ends."""

    CLIENT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")
    server: Rules

    def query_token(self, token_string: str, token_type_hint: Any) -> Token | None:
        issued = self.server.issued
        return issued.by_access_token(token_string) or issued.by_refresh_token(token_string)

    def revoke_token(self, token: Token, request: Any) -> None:
        token.family.revoked = True
        self.server.issued.counts["revoked"] += 1


def _typed(answer: Any) -> HttpAnswer:
    assert isinstance(answer, HttpAnswer)
    return answer
