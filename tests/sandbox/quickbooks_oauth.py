"""Intuit's OAuth server: code flow with the company in the callback, and refresh tokens that change.

A refresh token comes back unchanged until it is a day old; then the next use replaces it. It lives
100 days, its chain 5 years. All tokens of one consent end together.
"""

import base64
import binascii
import html
import ipaddress
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson

from tests.sandbox.core import Answer, Call, RefusedError, SandboxClock
from tests.sandbox.quickbooks_world import Behaviour, refused
from tests.sandbox.shelf import Json

DAY = 86_400
CODE_SECONDS = 600
ACCESS_SECONDS = 3600
REFRESH_SECONDS = 100 * DAY
CHAIN_SECONDS = 5 * 365 * DAY
ACCOUNTING = "com.intuit.quickbooks.accounting"
SCOPES = (ACCOUNTING, "com.intuit.quickbooks.payment", "openid", "profile", "email", "phone", "address")
WANTED = ("client_id", "response_type", "scope", "redirect_uri", "state")
FORM = "application/x-www-form-urlencoded"


@dataclass(slots=True)
class Grant:
    """One consent: an application, a company, and how long the chain of tokens can go on."""

    client_id: str
    realm: str
    scopes: tuple[str, ...]
    ends_at: float
    revoked: bool = False
    newest: str = ""  # its refresh token that has not been replaced


@dataclass(slots=True)
class Code:
    """An authorization code that has not been used."""

    client_id: str
    realm: str
    scopes: tuple[str, ...]
    redirect_uri: str
    expires_at: float


@dataclass(slots=True)
class Refresh:
    """A refresh token; `replaced_at` is set once there is a newer one."""

    grant: Grant
    issued_at: float
    replaced_at: float | None = None


@dataclass(slots=True)
class Access:
    """An access token."""

    grant: Grant
    expires_at: float
    revoked: bool = False


@dataclass(slots=True)
class Credentials:
    """Everything that was issued. Applications: id and secret."""

    applications: dict[str, str] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    refresh: dict[str, Refresh] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IntuitOAuth:
    """Authorize, exchange, refresh, revoke; and who a bearer is."""

    clock: SandboxClock
    credentials: Credentials
    behaviour: Behaviour

    def discovery(self, _: Call) -> Answer:
        """GET /.well-known/openid_configuration/"""
        return Answer(
            200,
            {
                "issuer": "https://oauth.platform.intuit.com/op/v1",
                "authorization_endpoint": "https://appcenter.intuit.com/connect/oauth2",
                "token_endpoint": "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer",
                "revocation_endpoint": "https://developer.api.intuit.com/v2/oauth2/tokens/revoke",
                "response_types_supported": ["code"],
                "scopes_supported": list(SCOPES),
                "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            },
        )

    def authorize(self, call: Call, realms: Collection[str], default_realm: str) -> Answer:
        """GET shows the question or, told to approve, answers it; POST is the button pressed."""
        posted = call.method == "POST"
        sent = dict(parse_qsl(call.body.decode(), keep_blank_values=True)) if posted else dict(call.query)
        decision = sent.pop("decision", None)
        if sent.pop("auto_approve", None) == "1" or sent.pop("_sandbox_approve", None) == "1":
            decision = "allow"
        realm = sent.pop("_sandbox_realm", default_realm)
        for name in WANTED:
            if not sent.get(name):
                return _page(400, f"The {name} query parameter is missing from the authorization request.")
        if sent["client_id"] not in self.credentials.applications:
            return _page(400, "The client_id is not known.")
        if not _is_loopback(sent["redirect_uri"]):
            return _page(400, "The redirect_uri query parameter value is invalid.")
        if realm not in realms:
            return _page(400, f"There is no company {realm}.")
        scopes = tuple(dict.fromkeys(sent["scope"].split()))
        if sent["response_type"] != "code":
            return _back(sent, {"error": "unsupported_response_type"})
        if not set(scopes) <= set(SCOPES):
            return _back(sent, {"error": "invalid_scope"})
        if decision is None:
            return _page(200, _question(sent, scopes, realm))
        if decision != "allow":
            return _back(sent, {"error": "access_denied"})
        code = f"AB1canary7{secrets.token_hex(24)}"
        self.credentials.codes[code] = Code(
            sent["client_id"], realm, scopes, sent["redirect_uri"], self.clock.now() + CODE_SECONDS
        )
        # The company is told here and nowhere else.
        company = {"realmId": realm} if any(scope.startswith("com.intuit.") for scope in scopes) else {}
        return _back(sent, {"code": code}, company)

    def token(self, call: Call) -> Answer:
        """POST /oauth2/v1/tokens/bearer, a form."""
        if call.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            return _error(400, "invalid_request")
        sent = dict(parse_qsl(call.body.decode(errors="replace"), keep_blank_values=True))
        client_id = self._client(call, sent)
        now = self.clock.now()
        match sent.get("grant_type"):
            case "authorization_code":
                code = self.credentials.codes.get(sent.get("code", ""))
                if code is None or code.client_id != client_id or code.expires_at < now:
                    return _error(400, "invalid_grant")
                if code.redirect_uri != sent.get("redirect_uri"):
                    return _error(400, "invalid_grant")
                del self.credentials.codes[sent["code"]]
                grant = Grant(client_id, code.realm, code.scopes, now + CHAIN_SECONDS)
                return self._issued(call, grant, self.new_refresh(grant))
            case "refresh_token":
                return self._renewed(call, client_id, sent.get("refresh_token", ""))
            case None:
                return _error(400, "invalid_request")
        return _error(400, "unsupported_grant_type")

    def _client(self, call: Call, sent: Mapping[str, str]) -> str:
        scheme, _, encoded = call.headers.get("authorization", "").partition(" ")
        client_id, secret = sent.get("client_id", ""), sent.get("client_secret", "")
        if scheme.lower() == "basic":
            try:
                client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                client_id = secret = ""
        known = self.credentials.applications.get(client_id)
        if known is None or not secrets.compare_digest(known.encode(), secret.encode()):
            raise RefusedError(_error(401, "invalid_client"))
        return client_id

    def _renewed(self, call: Call, client_id: str, name: str) -> Answer:
        found, now = self.credentials.refresh.get(name), self.clock.now()
        if found is None or found.grant.client_id != client_id or found.grant.revoked:
            return _error(400, "invalid_grant")
        if now > min(found.issued_at + REFRESH_SECONDS, found.grant.ends_at):
            return _error(400, "invalid_grant")
        if found.replaced_at is not None:
            if now - found.replaced_at >= self.behaviour.refresh_grace_seconds:
                return _error(400, "invalid_grant")
            return self._issued(call, found.grant, found.grant.newest)
        if now - found.issued_at >= self.behaviour.refresh_rotation_seconds:
            found.replaced_at = now
            name = self.new_refresh(found.grant)
        return self._issued(call, found.grant, name)

    def new_refresh(self, grant: Grant) -> str:
        """Make a refresh token."""
        name = f"RT1-canary7{secrets.token_hex(24)}"
        self.credentials.refresh[name] = Refresh(grant, self.clock.now())
        grant.newest = name
        return name

    def new_access(self, grant: Grant, seconds: float = ACCESS_SECONDS) -> str:
        """Make an access token."""
        name = f"eyJcanary7{secrets.token_urlsafe(60)}"
        self.credentials.access[name] = Access(grant, self.clock.now() + seconds)
        return name

    def _issued(self, call: Call, grant: Grant, refresh: str) -> Answer:
        now = self.clock.now()
        ends = min(self.credentials.refresh[refresh].issued_at + REFRESH_SECONDS, grant.ends_at)
        body: Json = {
            "access_token": self.new_access(grant),
            "refresh_token": refresh,
            "token_type": "bearer",
            "expires_in": ACCESS_SECONDS,
            "x_refresh_token_expires_in": int(ends - now),
        }
        if call.headers.get("x-include-refresh-token-hard-expires-in", "").lower() == "true":
            body["x_refresh_token_hard_expires_in"] = int(grant.ends_at - now)
        return Answer(200, body, {"Cache-Control": "no-store"})

    def revoke(self, call: Call) -> Answer:
        """POST /v2/oauth2/tokens/revoke, JSON: the whole consent ends, whichever token is named."""
        client_id = self._client(call, {})
        try:
            token = orjson.loads(call.body)["token"]
        except (ValueError, KeyError, TypeError):
            return _error(400, "invalid_request")
        found = self.credentials.access.get(token) or self.credentials.refresh.get(token)
        if found is None or found.grant.client_id != client_id:
            return _error(400, "invalid_request")
        found.grant.revoked = True
        return Answer(200, b"")

    def end(self, realm: str) -> int:
        """Revoke every consent for a company; return how many tokens that ends."""
        issued: list[Access | Refresh] = [*self.credentials.access.values()]
        issued += self.credentials.refresh.values()
        ending = [token for token in issued if token.grant.realm == realm and not token.grant.revoked]
        for token in ending:
            token.grant.revoked = True
        return len(ending)

    def bearer(self, call: Call) -> Access:
        """Return the access token a call came with, or refuse it."""
        scheme, _, sent = call.headers.get("authorization", "").partition(" ")
        found = self.credentials.access.get(sent.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise RefusedError(Answer(401, gateway_refusal()))
        if found.revoked or found.grant.revoked or found.expires_at < self.clock.now():
            detail = "Token revoked" if found.revoked or found.grant.revoked else "Token expired"
            raise refused("3200", detail, kind="AuthenticationFault", status=401)
        return found


def gateway_refusal() -> Json:
    """Word what a gateway in front of the API says to a token nobody knows."""
    message = "message=AuthenticationFailed; errorCode=003200; statusCode=401"
    entry = {"message": message, "detail": "Malformed bearer token", "code": "3200", "element": None}
    return {"warnings": None, "fault": {"error": [entry], "type": "AUTHENTICATION"}}


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error(status: int, error: str) -> Answer:
    return Answer(status, {"error": error}, {"Cache-Control": "no-store"})


def _back(sent: Mapping[str, str], *answers: Mapping[str, str]) -> Answer:
    query = dict(answers[0])
    query["state"] = sent["state"]
    for more in answers[1:]:
        query.update(more)
    joint = "&" if urlsplit(sent["redirect_uri"]).query else "?"
    return Answer(302, b"", {"Location": f"{sent['redirect_uri']}{joint}{urlencode(query)}"}, "text/plain")


def _page(status: int, inside: str) -> Answer:
    page = (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Connect a company</title></head>"
        f"<body>{inside if inside.startswith('<') else html.escape(inside)}</body></html>"
    )
    return Answer(status, page.encode(), {}, "text/html; charset=utf-8")


def _question(sent: Mapping[str, str], scopes: Collection[str], realm: str) -> str:
    fields = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in {**sent, "_sandbox_realm": realm}.items()
    )
    asked = "".join(f"<li>{html.escape(scope)}</li>" for scope in scopes)
    return (
        f"<h1>{html.escape(sent['client_id'])} asks for access to company {html.escape(realm)}</h1>"
        f"<ul>{asked}</ul><form method='post' action='/connect/oauth2'>{fields}"
        "<button name='decision' value='allow'>Connect</button> "
        "<button name='decision' value='deny'>Cancel</button></form>"
    )
