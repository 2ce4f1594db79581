"""Mailchimp's sign-in host: the code flow with a secret, tokens without an end, and the metadata call.

There are no scopes, no PKCE and no refresh tokens; `expires_in` is 0 and means "never".
"""

import html
import ipaddress
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.sandbox.core import Answer, Call, SandboxClock
from tests.sandbox.shelf import Json

CODE_SECONDS = 600
FORM = "application/x-www-form-urlencoded"


@dataclass(slots=True)
class Application:
    """A registered application. It may send people back to any loopback address."""

    client_id: str
    client_secret: str


@dataclass(slots=True)
class Code:
    """An authorization code that has not been used."""

    client_id: str
    redirect_uri: str
    account: str
    expires_at: float


@dataclass(slots=True)
class Access:
    """An access token, or an API key when no application got it."""

    token: str
    account: str
    client_id: str | None = None
    revoked: bool = False


@dataclass(slots=True)
class Credentials:
    """Everything that was issued."""

    applications: dict[str, Application] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)

    def issue(self, account: str, client_id: str | None = None, token: str | None = None) -> Access:
        """Make an access token, or note an API key."""
        made = Access(token or f"canary7{secrets.token_hex(16)}", account, client_id)
        self.access[made.token] = made
        return made

    def end(self, account: str) -> int:
        """Revoke everything an account gave out; return how much that was."""
        living = [found for found in self.access.values() if found.account == account and not found.revoked]
        for found in living:
            found.revoked = True
        return len(living)


def refusal(status: int, error: str, description: str) -> Answer:
    """Word an error of the sign-in host."""
    return Answer(status, {"error": error, "error_description": description})


def authorize(
    clock: SandboxClock, credentials: Credentials, call: Call, known: Callable[[str], bool], usual: str
) -> Answer:
    """GET shows the question or, told to approve, answers it; POST is the button pressed."""
    given = dict(parse_qsl(call.body.decode())) if call.method == "POST" else dict(call.query)
    decision = given.pop("decision", None)
    if given.pop("auto_approve", None) == "1" or given.pop("_sandbox_approve", None) == "1":
        decision = "allow"
    account = given.pop("_sandbox_account", usual)
    client_id, redirect_uri = given.get("client_id", ""), given.get("redirect_uri", "")
    # Nobody is sent to an address before it is known to be the application's.
    if client_id not in credentials.applications:
        return refusal(400, "invalid_client", "The client_id is not known.")
    if not _is_loopback(redirect_uri):
        return refusal(400, "invalid_request", "The redirect_uri is not the application's.")
    if not known(account):
        return refusal(400, "invalid_request", f"There is no account {account}.")
    state = {"state": given["state"]} if "state" in given else {}
    if given.get("response_type") != "code":
        return _back(redirect_uri, {"error": "unsupported_response_type", **state})
    if decision is None:
        return Answer(200, _question(given, account), {}, "text/html; charset=utf-8")
    if decision != "allow":
        return _back(redirect_uri, {"error": "access_denied", **state})
    code = f"canary7{secrets.token_hex(16)}"
    credentials.codes[code] = Code(client_id, redirect_uri, account, clock.now() + CODE_SECONDS)
    return _back(redirect_uri, {"code": code, **state})


def token(clock: SandboxClock, credentials: Credentials, call: Call) -> Answer:
    """POST /oauth2/token, a form with the secret in it."""
    if call.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return refusal(400, "invalid_request", "The body must be a form.")
    given = dict(parse_qsl(call.body.decode("utf-8", "replace")))
    application = credentials.applications.get(given.get("client_id", ""))
    secret = given.get("client_secret", "").encode()
    if application is None or not secrets.compare_digest(application.client_secret.encode(), secret):
        return refusal(401, "invalid_client", "The client credentials are invalid.")
    if given.get("grant_type") != "authorization_code":
        return refusal(400, "unsupported_grant_type", "Only authorization_code is supported.")
    code = credentials.codes.get(given.get("code", ""))
    if code is None or code.client_id != application.client_id or code.expires_at < clock.now():
        return refusal(400, "invalid_grant", "The code is not valid.")
    if code.redirect_uri != given.get("redirect_uri"):
        return refusal(400, "invalid_grant", "The redirect_uri is not the one the code was given for.")
    del credentials.codes[given["code"]]
    made = credentials.issue(code.account, application.client_id)
    return Answer(200, {"access_token": made.token, "expires_in": 0, "scope": None})


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _back(redirect_uri: str, parameters: dict[str, str]) -> Answer:
    joint = "&" if "?" in redirect_uri else "?"
    return Answer(302, b"", {"Location": f"{redirect_uri}{joint}{urlencode(parameters)}"}, "text/plain")


def _question(given: Json, account: str) -> bytes:
    fields = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in {**given, "_sandbox_account": account}.items()
    )
    page = (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Allow access?</title></head><body>"
        f"<h1>{html.escape(given['client_id'])} asks for access to {html.escape(account)}</h1>"
        f"<form method='post' action='/oauth2/authorize'>{fields}"
        "<button name='decision' value='allow'>Allow</button> "
        "<button name='decision' value='deny'>Deny</button></form></body></html>"
    )
    return page.encode()
