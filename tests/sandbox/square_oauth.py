"""Square's OAuth server, on authlib: code flow with a secret, or PKCE without one.

Code flow: the refresh token is good for ever and comes back unchanged. PKCE: it is good once, for
90 days, and every refresh brings a new one.
"""

import html
import ipaddress
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import (
    AuthorizationCodeMixin,
    AuthorizationServer,
    ClientMixin,
    OAuth2Request,
    TokenMixin,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7636 import CodeChallenge

from tests.sandbox.core import Answer, Call, SandboxClock, rfc3339
from tests.sandbox.forms import decode
from tests.sandbox.shelf import Json
from tests.sandbox.square_world import body_of, check_text, errors, refused

DAY = 86_400
CODE_SECONDS = 300
ACCESS_SECONDS = 30 * DAY
SHORT_SECONDS = DAY
PKCE_REFRESH_SECONDS = 90 * DAY
SCOPES = (
    *("ITEMS_READ", "ITEMS_WRITE", "CUSTOMERS_READ", "CUSTOMERS_WRITE", "ORDERS_READ", "ORDERS_WRITE"),
    *("PAYMENTS_READ", "PAYMENTS_WRITE", "INVENTORY_READ", "INVENTORY_WRITE", "INVOICES_READ"),
    *("INVOICES_WRITE", "MERCHANT_PROFILE_READ", "MERCHANT_PROFILE_WRITE"),
)
DEFAULT_SCOPES = "MERCHANT_PROFILE_READ PAYMENTS_READ"
# authlib refuses plain HTTP; the stand-in is reached on loopback, so it is shown the real address.
ORIGIN = "https://connect.squareupsandbox.com"


@dataclass(slots=True)
class Application(ClientMixin):
    """A registered application. It may send people back to any loopback address."""

    client_id: str
    client_secret: str
    disabled: bool = False

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return "http://127.0.0.1/callback"

    def get_allowed_scope(self, scope: Any) -> str:
        return str(scope or DEFAULT_SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        host = urlsplit(redirect_uri).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(self.client_secret, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in ("client_secret_post", "none")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")


@dataclass(slots=True)
class Code(AuthorizationCodeMixin):
    """An authorization code that has not been used."""

    code: str
    client_id: str
    redirect_uri: str  # empty when the request named none
    scope: str
    merchant: str
    expires_at: float
    code_challenge: str | None
    code_challenge_method: str | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass(slots=True)
class Refresh(TokenMixin):
    """A refresh token. Under PKCE it has an end and is `spent` by its first use."""

    token: str
    client_id: str
    merchant: str
    scope: str
    expires_at: float | None = None
    spent: bool = False

    def check_client(self, client: Application) -> bool:
        return client.client_id == self.client_id

    def get_scope(self) -> str:
        return self.scope


@dataclass(slots=True)
class Access:
    """An access token."""

    token: str
    client_id: str
    merchant: str
    scopes: frozenset[str]
    expires_at: float
    revoked: bool = False


@dataclass(slots=True)
class Credentials:
    """Everything that was issued."""

    applications: dict[str, Application] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    refresh: dict[str, Refresh] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)


class JsonBodyRequest(OAuth2Request):
    """A request whose parameters came as JSON or in the query, which authlib reads as a form."""

    def __init__(self, call: Call, parameters: dict[str, str]) -> None:
        super().__init__(call.method, f"{ORIGIN}{call.path}", headers=call.headers)
        self.payload = BasicOAuth2Payload(parameters)
        self._parameters = parameters

    @property
    def args(self) -> dict[str, str | None]:
        return dict(self._parameters)

    @property
    def form(self) -> dict[str, str]:
        return self._parameters


class CodeGrant(AuthorizationCodeGrant):
    """Issues and takes authorization codes."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_post", "none")
    server: "SquareAuthorization"

    def save_authorization_code(self, code: str, request: Any) -> None:
        sent = request.payload.data
        self.server.credentials.codes[code] = Code(
            code=code,
            client_id=request.client.client_id,
            redirect_uri=sent.get("redirect_uri", ""),
            scope=request.scope,
            merchant=request.user,
            expires_at=self.server.clock.now() + CODE_SECONDS,
            code_challenge=sent.get("code_challenge"),
            code_challenge_method=sent.get("code_challenge_method"),
        )

    def query_authorization_code(self, code: str, client: Any) -> Code | None:
        found = self.server.credentials.codes.get(code)
        if found is None or found.client_id != client.client_id or found.expires_at < self.server.clock.now():
            return None
        return found

    def delete_authorization_code(self, authorization_code: Code) -> None:
        del self.server.credentials.codes[authorization_code.code]

    def authenticate_user(self, authorization_code: Code) -> str:
        return authorization_code.merchant


class S256Challenge(CodeChallenge):
    """PKCE with S256, which Square takes for granted."""

    DEFAULT_CODE_CHALLENGE_METHOD = "S256"
    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 - declared by authlib as a list


class RenewGrant(RefreshTokenGrant):
    """Takes refresh tokens."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_post", "none")
    INCLUDE_NEW_REFRESH_TOKEN = True
    server: "SquareAuthorization"

    def authenticate_refresh_token(self, refresh_token: str) -> Any:
        found = self.server.credentials.refresh.get(refresh_token)
        if found is None or found.spent:
            return None
        if found.expires_at is None:
            # Given for a secret, so it takes the secret to use it.
            return found if self.request.auth_method == "client_secret_post" else None
        return found if found.expires_at >= self.server.clock.now() else None

    def authenticate_user(self, refresh_token: Refresh) -> str:
        return refresh_token.merchant

    def revoke_old_credential(self, refresh_token: Any) -> None:
        refresh_token.spent = refresh_token.expires_at is not None


class SquareAuthorization(AuthorizationServer):
    """Authorize, exchange, refresh. Answers are the sandbox's `Answer`."""

    def __init__(self, clock: SandboxClock, credentials: Credentials) -> None:
        super().__init__(scopes_supported=SCOPES)
        self.clock = clock
        self.credentials = credentials
        self._challenge = S256Challenge(required=True)
        self.register_grant(CodeGrant, [self._challenge])
        self.register_grant(RenewGrant)

    def query_client(self, client_id: str) -> Any:
        return self.credentials.applications.get(client_id)

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        return request

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Nobody listens."""

    def generate_token(self, *_: Any, **given: Any) -> Json:
        """Begin a token; `save_token` knows the rest."""
        return {"token_type": "bearer", "scope": given["scope"], "merchant_id": given["user"]}

    def save_token(self, token: Json, request: Any) -> None:
        """Fill in and keep what was issued."""
        now = self.clock.now()
        short = request.payload.data.get("short_lived") == "true"
        old: Refresh | None = request.refresh_token
        code: Code | None = request.authorization_code
        scope, merchant, client_id = token.pop("scope"), token["merchant_id"], request.client.client_id
        access = self.issue_access(
            client_id, merchant, scope.split(), SHORT_SECONDS if short else ACCESS_SECONDS
        )
        pkce = old.expires_at is not None if old else bool(code and code.code_challenge)
        refresh = old
        if refresh is None or pkce:
            refresh = Refresh(
                token=f"EQAAcanary7{secrets.token_urlsafe(45)}",
                client_id=client_id,
                merchant=merchant,
                scope=scope,
                expires_at=now + PKCE_REFRESH_SECONDS if pkce else None,
            )
            self.credentials.refresh[refresh.token] = refresh
        token.update(
            access_token=access.token,
            expires_at=rfc3339(access.expires_at),
            refresh_token=refresh.token,
            short_lived=short,
        )
        if refresh.expires_at is not None:
            token["refresh_token_expires_at"] = rfc3339(refresh.expires_at)

    def issue_access(self, client_id: str, merchant: str, scopes: list[str], seconds: float) -> Access:
        """Make an access token."""
        made = Access(
            token=f"EAAAcanary7{secrets.token_urlsafe(45)}",
            client_id=client_id,
            merchant=merchant,
            scopes=frozenset(scopes),
            expires_at=self.clock.now() + seconds,
        )
        self.credentials.access[made.token] = made
        return made

    def handle_response(self, status: int, body: Any, headers: Any) -> Answer:
        sent = {name: value for name, value in headers if name != "Content-Type"}
        if status == 302:
            return Answer(302, b"", sent, "text/plain")
        if "error" in body:
            return _worded(body)
        return Answer(status, body, sent)

    # The three endpoints and the two around them.

    def authorize(self, call: Call, sellers: Callable[[str], bool]) -> Answer:
        """GET shows the question or, told to approve, answers it; POST is the button pressed."""
        sent = decode(call.body.decode()) if call.method == "POST" else dict(call.query)
        decision = sent.pop("decision", None)
        if sent.pop("auto_approve", None) == "1" or sent.pop("_sandbox_approve", None) == "1":
            decision = "allow"
        merchant = sent.pop("_sandbox_merchant", "MDEMO")
        if not sellers(merchant):
            raise refused(400, "BAD_REQUEST", f"No merchant {merchant}.")
        sent.setdefault("response_type", "code")
        request = JsonBodyRequest(call, sent)
        try:
            grant = self._consent(request)
        except OAuth2Error as error:
            return _answer(self.handle_error_response(request, error))
        if decision is None:
            return Answer(200, _question(request, merchant), {}, "text/html; charset=utf-8")
        granted_by = merchant if decision == "allow" else None
        return _answer(self.create_authorization_response(request, grant_user=granted_by, grant=grant))

    def _consent(self, request: OAuth2Request) -> Any:
        # authlib's declaration leaves this method's parameters untyped.
        get_grant: Callable[[OAuth2Request], Any] = self.get_consent_grant
        return get_grant(request)

    def token(self, call: Call) -> Answer:
        """POST /oauth2/token, a JSON body."""
        body = body_of(call, required=("client_id", "grant_type"))
        sent = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in body.items()
            if isinstance(value, str | bool)
        }
        sent.pop("scope", None)
        return _answer(self.create_token_response(JsonBodyRequest(call, sent)))

    def revoke(self, call: Call) -> Answer:
        """POST /oauth2/revoke, authorized by the application's secret."""
        body = body_of(call, required=("client_id",))
        for name in ("client_id", "access_token", "merchant_id"):
            check_text(body, name, 1024)
        application = self.query_client(body["client_id"])
        scheme, _, secret = call.headers.get("authorization", "").partition(" ")
        if scheme != "Client" or application is None or not application.check_client_secret(secret.strip()):
            raise refused(401, "UNAUTHORIZED", "The client secret is not valid.")
        token, merchant = body.get("access_token"), body.get("merchant_id")
        if (token is None) == (merchant is None):
            raise refused(400, "BAD_REQUEST", "Exactly one of access_token and merchant_id is required.")
        issued = self.credentials.access
        if token is not None:
            if token not in issued or issued[token].client_id != application.client_id:
                raise refused(404, "NOT_FOUND", "No such access token.")
            if body.get("revoke_only_access_token"):
                issued[token].revoked = True
                return Answer(200, {"success": True})
            merchant = issued[token].merchant
        if not self.end(str(merchant), application.client_id):
            raise refused(404, "NOT_FOUND", "The merchant has no tokens for this application.")
        return Answer(200, {"success": True})

    def end(self, merchant: str, client_id: str | None = None) -> int:
        """Revoke all of a merchant's tokens, for one application or all; return how many."""
        ended = 0
        for access in self.credentials.access.values():
            if access.merchant == merchant and client_id in (None, access.client_id) and not access.revoked:
                access.revoked = True
                ended += 1
        for refresh in self.credentials.refresh.values():
            if refresh.merchant == merchant and client_id in (None, refresh.client_id) and not refresh.spent:
                refresh.spent = True
                ended += 1
        return ended

    def bearer(self, call: Call) -> Access:
        """Return the access token a call came with, or refuse it."""
        scheme, _, sent = call.headers.get("authorization", "").partition(" ")
        found = self.credentials.access.get(sent.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise refused(401, "UNAUTHORIZED", "This request could not be authorized.")
        if found.revoked:
            raise refused(401, "ACCESS_TOKEN_REVOKED", "The access token has been revoked.")
        if found.expires_at < self.clock.now():
            raise refused(401, "ACCESS_TOKEN_EXPIRED", "The access token has expired.")
        return found

    def status(self, call: Call) -> Answer:
        """POST /oauth2/token/status"""
        found = self.bearer(call)
        return Answer(
            200,
            {
                "scopes": sorted(found.scopes),
                "expires_at": rfc3339(found.expires_at),
                "client_id": found.client_id,
                "merchant_id": found.merchant,
            },
        )


def _answer(given: object) -> Answer:
    """Return what `handle_response` made, which authlib hands on without knowing its type."""
    assert isinstance(given, Answer)
    return given


def _worded(body: Json) -> Answer:
    """Say an OAuth error the way the rest of the API does."""
    kind, detail = body["error"], body.get("error_description") or body["error"]
    if kind in ("invalid_client", "invalid_grant", "unauthorized_client"):
        return errors(401, "UNAUTHORIZED", detail)
    return errors(400, "BAD_REQUEST", detail)


def _question(request: Any, merchant: str) -> bytes:
    fields = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in {**request.payload.data, "_sandbox_merchant": merchant}.items()
    )
    scopes = "".join(f"<li>{html.escape(scope)}</li>" for scope in request.scope.split())
    page = (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Allow access?</title></head><body>"
        f"<h1>{html.escape(request.payload.client_id)} asks for access to {html.escape(merchant)}</h1>"
        f"<ul>{scopes}</ul><form method='post' action='/oauth2/authorize'>{fields}"
        "<button name='decision' value='allow'>Allow</button> "
        "<button name='decision' value='deny'>Deny</button></form></body></html>"
    )
    return page.encode()
