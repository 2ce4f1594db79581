"""The authorization code grant against a real authorization server, by the manifests as they are shipped.

authlib's rules answer under the providers' own paths; around them is just enough of each provider's API for
a connection to be checked. Three invented connectors show the rest: PKCE, the issuer, and each way of saying
who the application is.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit
from uuid import UUID

import httpx
import orjson
import pytest
from sqlalchemy import select, text

from server.app import create_app
from server.context import Context
from server.credentials import place
from server.db.models import OAuthToken
from server.settings import read_settings
from tests.authorization_server import AuthorizationServer, Fault, running_authorization_server
from tests.authorization_server.grants import HttpAnswer, HttpRequest
from tests.contract.api.conftest import API, OURS, SECRET, VAULT_KEYS, bearer, living, make_platform
from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.mailchimp_world import DATA_CENTRE

PROJECT = Path(__file__).resolve().parents[2]
JSON = {"Accept": "application/json"}
APP_ID, APP_SECRET = "the app: 7", "50%+of=it/&"  # each of which needs care somewhere
REALM, MERCHANT, ACCOUNT = "9130", "M-1", "acc-1"
ISSUER = "https://login.juniper.example"

# Where the providers have the endpoints that the authorization server has elsewhere.
ENDPOINTS = {
    "/oauth2/authorize": "/authorize",
    "/oauth2/token": "/token",
    "/connect/oauth2": "/authorize",
    "/oauth2/v1/tokens/bearer": "/token",
    "/v2/oauth2/tokens/revoke": "/revoke",
    "/oauth2/revoke": "/revoke",
    "/authorize": "/authorize",
    "/token": "/token",
    "/revoke": "/revoke",
}
RESOURCES: Mapping[str, Any] = {
    "/v2/merchants/me": {"merchant": [{"id": MERCHANT}]},
    "/v2/locations": {"locations": [{"id": "L1", "status": "ACTIVE"}]},
    "/oauth2/metadata": {"dc": DATA_CENTRE},
    "/3.0/ping": {"health_status": "fine"},
    "/3.0": {"account_id": ACCOUNT},
    "/3.0/": {"account_id": ACCOUNT},
    "/3.0/lists": {"lists": [{"id": "3f1a2b4c5d"}]},
    f"/v3/company/{REALM}/companyinfo/{REALM}": {"CompanyInfo": {"Id": "1"}},
    f"/v3/company/{REALM}/query": {"QueryResponse": {"Account": [{"Id": "7"}]}},
    "/me": {"id": "account-1"},
}


def answer_as_provider(server: AuthorizationServer, request: HttpRequest) -> HttpAnswer:
    """Answer with the authorization server's rules, and in its place for what a provider has of its own."""
    to = ENDPOINTS.get(request.path)
    if to == "/revoke":
        return _revoked(server, request)
    if to is not None:
        answer = server.answer(replace(request, path=to))
        if request.path == "/connect/oauth2" and "code=" in answer.headers.get("Location", ""):
            answer.headers["Location"] += f"&realmId={REALM}"
        return answer
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    wanted = "oauth" if request.path == "/oauth2/metadata" else "bearer"
    if scheme.lower() != wanted or server.lives(token) is None:
        return HttpAnswer.json(401, {"error": "invalid_token"})
    return (
        HttpAnswer.json(200, RESOURCES[request.path])
        if request.path in RESOURCES
        else HttpAnswer.json(404, {})
    )


def _revoked(server: AuthorizationServer, request: HttpRequest) -> HttpAnswer:
    """Revoke: two providers say it in JSON, and one names the application in a way of its own."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return server.answer(replace(request, path="/revoke"))
    said = orjson.loads(request.body)
    token = said.get("token") or said.get("access_token")
    headers = dict(request.headers)
    if headers.get("authorization", "").startswith("Client "):
        secret = headers["authorization"].removeprefix("Client ")
        application = f"{quote(said['client_id'])}:{quote(secret)}"
        headers["authorization"] = "Basic " + base64.b64encode(application.encode()).decode()
    headers["content-type"] = "application/x-www-form-urlencoded"
    auth, server.behaviour.client_auth = server.behaviour.client_auth, "header"
    try:
        form = urlencode({"token": token}).encode()
        return server.answer(HttpRequest("POST", "/revoke", {}, _Headers(headers), form))
    finally:
        server.behaviour.client_auth = auth


class _Headers(dict[str, str]):
    """Headers by lower-case name, found by any."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@contextmanager
def serving(server: AuthorizationServer) -> Iterator[str]:
    """Serve the providers on one free port; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            headers = _Headers({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(headers.get("content-length") or 0))
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            answer = answer_as_provider(server, HttpRequest(self.command, parts.path, query, headers, body))
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = _serve  # noqa: N815 -- names of the base class

        def log_message(self, *args: object) -> None:
            return None

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is its own matter."""

    http = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        server.release.set()
        http.shutdown()
        thread.join(10)
        http.server_close()


MANIFEST = """
manifest: 1
connector: juniper_{auth}
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example}}
auth:
  type: oauth2
  authorize_url: https://login.juniper.example/authorize
  token_url: https://login.juniper.example/token
  scopes: [customers.read, customers.write]
  pkce: true
  issuer: {issuer}
  client: {client}
  token_body: {body}
  keep: {{account: account}}
  revoke:
    call: POST https://login.juniper.example/revoke
    client: header
    encoding: form
    tokens: [refresh_token, access_token]
    body: {{token: "{{{{ token }}}}", token_type_hint: "{{{{ token_type_hint }}}}"}}
account: account
check: GET /me
resources:
  customer: {{id: id, fields: {{id: id, email: email}}, list: GET /customers}}
"""
TEMPLATE = """
template: 1
name: default
connector: juniper_{auth}
title: Guests
mappings:
  - {{entity: customer, resource: customer, direction: pull, match_on: email, fields: {{email: email}}}}
"""
WAYS = {"header": ("header", "form"), "body": ("body", "form"), "json": ("body", "json")}


def write_connectors(folder: Path) -> tuple[Path, Path]:
    """Copy what is shipped, and add three invented providers; returns the folders."""
    connectors, templates = folder / "connectors", folder / "templates"
    shutil.copytree(PROJECT / "connectors", connectors)
    shutil.copytree(PROJECT / "mapping-templates", templates)
    for auth, (client, body) in WAYS.items():
        manifest = MANIFEST.format(auth=auth, issuer=ISSUER, client=client, body=body)
        (connectors / f"juniper_{auth}.yaml").write_text(manifest, encoding="utf-8")
        (templates / f"juniper_{auth}").mkdir()
        template = templates / f"juniper_{auth}" / "default.yaml"
        template.write_text(TEMPLATE.format(auth=auth), encoding="utf-8")
    return connectors, templates


@dataclass(frozen=True, slots=True)
class Flow:
    """The hub, the authorization server behind every provider, and a browser in between."""

    http: httpx.AsyncClient
    context: Context
    server: AuthorizationServer

    async def begin(self, provider: str) -> str:
        body = {"venueId": str(OURS), "config": {"syncEnabled": False}}
        answer = await self.http.post(f"{API}/connect/{provider}", json=body, headers=bearer())
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["authUrl"])

    async def consent(self, url: str) -> dict[str, str]:
        """Go where the hub says, and return what the browser is sent back with."""
        async with httpx.AsyncClient() as browser:
            answer = await browser.get(url)
        assert answer.status_code == 302, answer.text
        location = urlsplit(answer.headers["location"])
        expected = "/api/v1/integrations/oauth/callback/"
        assert location.path.startswith(expected)
        return {name: values[0] for name, values in parse_qs(location.query).items()}

    async def come_back(self, provider: str, query: Mapping[str, str]) -> httpx.Response:
        return await self.http.get(f"{API}/oauth/callback/{provider}", params=dict(query), headers=JSON)

    async def connect(self, provider: str) -> httpx.Response:
        return await self.come_back(provider, await self.consent(await self.begin(provider)))

    async def disconnect(self, provider: str) -> Any:
        path = f"{API}/{provider}/disconnect"
        answer = await self.http.post(path, json={"venueId": str(OURS)}, headers=bearer())
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def rows(self, query: str) -> list[Mapping[str, Any]]:
        async with self.context.sessions() as session:
            return [dict(row) for row in (await session.execute(text(query))).mappings()]

    async def tokens(self) -> dict[str, str]:
        """Return the stored tokens, opened."""
        async with self.context.sessions() as session:
            row = (await session.scalars(select(OAuthToken))).one()
        found = {}
        for name in ("access_token", "refresh_token"):
            column = f"encrypted_{name}"
            sealed = getattr(row, column)
            if sealed is not None:
                found[name] = (await self.context.vault.open(sealed, place(row, column))).reveal()
        return found


@pytest.fixture(scope="module")
async def running(
    database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Flow]:
    connectors, templates = write_connectors(tmp_path_factory.mktemp("catalog"))
    await make_platform(database_url)
    with (
        running_authorization_server(client_id=APP_ID, client_secret=APP_SECRET) as server,
        serving(server) as url,
    ):
        origins = (
            *("https://connect.squareup.com", "https://api.juniper.example", ISSUER),
            *mailchimp.REPLACES,
            *quickbooks.REPLACES,
        )
        names = ("SQUARE", "MAILCHIMP", "QUICKBOOKS", *(f"JUNIPER_{auth.upper()}" for auth in WAYS))
        settings = read_settings(
            {
                "HUB_ENV": "test",
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "JWT_SECRET": SECRET,
                "HUB_VAULT_KEYS": VAULT_KEYS,
                "HUB_STATE": str(tmp_path_factory.mktemp("state")),
                "LOG_LEVEL": "error",
                "RATE_LIMIT_MAX_REQUESTS": "0",
                "API_URL": "http://127.0.0.1:3007",
                "HUB_CONNECTORS_DIR": str(connectors),
                "HUB_TEMPLATES_DIR": str(templates),
                "HUB_PLATFORM": str(connectors / "platform.yaml"),
                "HUB_ORIGIN_OVERRIDES": ",".join(f"{origin}={url}" for origin in origins),
                **{f"{name}_CLIENT_ID": APP_ID for name in names},
                **{f"{name}_CLIENT_SECRET": APP_SECRET for name in names},
            }
        )
        app = create_app(settings)
        transport = httpx.ASGITransport(cast(Any, app))
        async with living(app), httpx.AsyncClient(transport=transport, base_url="http://hub.test") as http:
            yield Flow(http, app.state.context, server)


@pytest.fixture
async def flow(running: Flow) -> AsyncIterator[Flow]:
    """Nothing connected, and an authorization server with nothing issued and nothing wrong."""
    fresh = type(running.server.behaviour)()
    for name in fresh.__slots__:
        setattr(running.server.behaviour, name, getattr(fresh, name))
    running.server.faults.clear()
    running.server.asked.clear()
    running.server.counts.clear()
    running.server.issued.tokens.clear()
    yield running
    tables = "integration_configs, oauth_tokens, venue_api_keys, oauth_states, sync_queue, audit_log"
    async with running.context.sessions.begin() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))  # past the log's guard
        await session.execute(text(f"TRUNCATE {tables}"))


def as_provider(flow: Flow, provider: str) -> None:
    """Let the authorization server want what this provider wants."""
    behaviour = flow.server.behaviour
    behaviour.pkce = provider.startswith("juniper")
    if provider == "square":
        behaviour.client_auth = "json"
        behaviour.answer = {"merchant_id": MERCHANT, "expires_in": None, "expires_at": "2999-01-01T00:00:00Z"}
    elif provider == "mailchimp":
        behaviour.client_auth = "body"
        behaviour.answer = {"expires_in": 0, "scope": None, "refresh_token": None}
    elif provider == "quickbooks":
        behaviour.answer = {"x_refresh_token_expires_in": 8_726_400}
    else:
        behaviour.client_auth = cast(Any, provider.removeprefix("juniper_"))
        behaviour.issuer = ISSUER


PROVIDERS = ("square", "mailchimp", "quickbooks", *(f"juniper_{auth}" for auth in WAYS))
ACCOUNTS = {"square": MERCHANT, "mailchimp": ACCOUNT, "quickbooks": REALM}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_venue_connects(flow: Flow, provider: str) -> None:
    as_provider(flow, provider)
    answer = await flow.connect(provider)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"success": True, "data": {"venueId": str(OURS), "provider": provider}}
    [issued] = flow.server.issued.tokens
    expected = {"access_token": issued.access_token, "refresh_token": issued.refresh_token}
    if provider == "mailchimp":
        del expected["refresh_token"]
    assert await flow.tokens() == expected
    [row] = await flow.rows("SELECT * FROM integration_configs")
    assert (row["status"], row["account"]) == ("connected", ACCOUNTS.get(provider, "account-1"))
    [token] = await flow.rows("SELECT * FROM oauth_tokens")
    assert (token["expires_at"] is None) == (provider == "mailchimp")
    assert (token["refresh_expires_at"] is not None) == (provider == "quickbooks")
    [state] = await flow.rows("SELECT * FROM oauth_states")
    assert state["used_at"] is not None
    assert issued.access_token not in str([row, token, state, *await flow.rows("SELECT * FROM audit_log")])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_application_says_who_it_is_as_the_provider_wants(flow: Flow, provider: str) -> None:
    as_provider(flow, provider)
    assert (await flow.connect(provider)).status_code == 200
    [asked] = flow.server.asked
    in_header = flow.server.behaviour.client_auth == "header"
    assert ("authorization" in asked.headers) == in_header
    assert ("client_secret" in asked.fields) != in_header
    kind = (
        "application/json"
        if flow.server.behaviour.client_auth == "json"
        else "application/x-www-form-urlencoded"
    )
    assert asked.headers.get("content-type") == kind
    assert ("code_verifier" in asked.fields) == provider.startswith("juniper")


@pytest.mark.parametrize(
    ("provider", "revocation", "asked"),
    [
        ("square", "done", 1),
        ("quickbooks", "done", 2),
        ("juniper_header", "done", 2),
        ("mailchimp", "not_offered", 0),
    ],
)
async def test_disconnecting_revokes(flow: Flow, provider: str, revocation: str, asked: int) -> None:
    as_provider(flow, provider)
    await flow.connect(provider)
    [issued] = flow.server.issued.tokens
    answer = await flow.disconnect(provider)
    assert answer["data"] == {"revocation": revocation}
    assert flow.server.counts["revoke"] == asked
    assert (flow.server.lives(issued.access_token) is None) == (asked > 0)
    assert await flow.rows("SELECT * FROM oauth_tokens") == []


@pytest.mark.parametrize(
    "fault", [{"drop": True}, {"status": 500}, {"status": 401, "body": b'{"error": "invalid_client"}'}]
)
async def test_tokens_are_erased_here_whatever_becomes_of_them_there(
    flow: Flow, fault: dict[str, Any]
) -> None:
    as_provider(flow, "quickbooks")
    await flow.connect("quickbooks")
    flow.server.faults.append(Fault(on="revoke", times=9, **fault))
    answer = await flow.disconnect("quickbooks")
    assert answer["data"] == {"revocation": "failed"}
    assert await flow.rows("SELECT * FROM oauth_tokens") == []
    [entry] = await flow.rows("SELECT * FROM audit_log WHERE action = 'integration.not_revoked'")
    assert entry["details"]["revocation"] == "failed"


async def test_who_says_no_is_not_connected(flow: Flow) -> None:
    as_provider(flow, "juniper_header")
    flow.server.behaviour.approves = False
    answer = await flow.connect("juniper_header")
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert answer.json()["details"] == [{"field": "error", "message": "access_denied"}]
    assert flow.server.asked == []
    [row] = await flow.rows("SELECT * FROM integration_configs")
    assert row["status"] == "disconnected"


async def test_a_scope_the_provider_does_not_have(flow: Flow) -> None:
    as_provider(flow, "juniper_header")
    url = httpx.URL(await flow.begin("juniper_header"))
    assert url.params["scope"] == "customers.read customers.write"
    assert url.params["code_challenge_method"] == "S256"
    plain = url.copy_merge_params({"code_challenge_method": "plain"})
    answer = await flow.come_back("juniper_header", await flow.consent(str(plain)))
    assert answer.json()["details"] == [{"field": "error", "message": "invalid_request"}]


async def test_another_verifier_is_refused(flow: Flow) -> None:
    """A code that somebody else's authorization got is worth nothing in ours."""
    as_provider(flow, "juniper_header")
    stolen = await flow.consent(await flow.begin("juniper_header"))
    mine = await flow.consent(await flow.begin("juniper_header"))
    answer = await flow.come_back("juniper_header", {**mine, "code": stolen["code"]})
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert await flow.rows("SELECT * FROM oauth_tokens") == []


async def test_a_code_works_once(flow: Flow) -> None:
    as_provider(flow, "juniper_header")
    query = await flow.consent(await flow.begin("juniper_header"))
    assert (await flow.come_back("juniper_header", query)).status_code == 200
    again = await flow.consent(await flow.begin("juniper_header"))
    answer = await flow.come_back("juniper_header", {**again, "code": query["code"]})
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert len(await flow.rows("SELECT * FROM oauth_tokens")) == 1  # the first one's, as it was


@pytest.mark.parametrize("issuer", [None, "https://evil.example", f"{ISSUER}/"])
async def test_a_browser_that_comes_from_another_server(flow: Flow, issuer: str | None) -> None:
    as_provider(flow, "juniper_header")
    flow.server.behaviour.issuer = issuer
    answer = await flow.connect("juniper_header")
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert flow.server.asked == []  # the code is shown to nobody


async def test_a_double_callback_is_exchanged_once(flow: Flow) -> None:
    as_provider(flow, "juniper_header")
    query = await flow.consent(await flow.begin("juniper_header"))
    answers = await asyncio.gather(*(flow.come_back("juniper_header", query) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]
    assert flow.server.counts["authorization_code"] == 1


@pytest.mark.parametrize(
    "laid_over",
    [
        {"token_type": "BEARER", "expires_in": "3600", "surprise": {"a": [1]}, "scope": ["a", "b"]},
        {"token_type": None, "expires_in": None, "scope": None, "refresh_token": None},
    ],
)
async def test_answers_that_are_unusual_and_sound(flow: Flow, laid_over: dict[str, Any]) -> None:
    as_provider(flow, "juniper_header")
    flow.server.behaviour.answer = laid_over
    assert (await flow.connect("juniper_header")).status_code == 200
    [token] = await flow.rows("SELECT * FROM oauth_tokens")
    assert (token["expires_at"] is None) == ("surprise" not in laid_over)
    assert token["scopes"] == (
        ["a", "b"] if "surprise" in laid_over else ["customers.read", "customers.write"]
    )


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
AWAY = {"Location": "http://127.0.0.1:1/token"}


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 307, "headers": AWAY},
        {"status": 302, "headers": AWAY},
        {"status": 200, "body": b'{"error": "invalid_grant", "error_description": "no"}'},
        {"status": 200, "body": b"error=invalid_grant", "headers": FORM},
        {"status": 400, "body": b"error=invalid_grant&error_description=no", "headers": FORM},
        {"status": 200, "body": b"<html>Maintenance</html>", "headers": {"Content-Type": "text/html"}},
        {"status": 200, "body": b'{"access_token": "' + b"a" * 2**21 + b'"}'},
        {"status": 200, "body": b'{"access_token": "at\\r\\nX-Evil: 1"}'},
        {"status": 200, "body": b'{"access_token": 7}'},
        {"status": 200, "body": b"[" * 100_000},
        {"status": 200, "body": b""},
        {"status": 204},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"drop": True},
        {"drop": True, "after": True},
    ],
)
async def test_answers_that_are_none(flow: Flow, fault: dict[str, Any]) -> None:
    as_provider(flow, "juniper_header")
    flow.server.faults.append(Fault(on="authorization_code", times=9, **fault))
    answer = await flow.connect("juniper_header")
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED"), answer.text
    assert flow.server.counts["authorization_code"] == 1  # a code is never tried twice
    assert APP_SECRET not in answer.text
    assert len(answer.text) < 1000
    assert await flow.rows("SELECT * FROM oauth_tokens") == []
    [row] = await flow.rows("SELECT * FROM integration_configs")
    assert row["status"] == "disconnected"
    [entry] = await flow.rows("SELECT * FROM audit_log WHERE action = 'oauth.failed'")
    assert entry["venue_id"] == UUID(str(OURS))
    assert entry["details"] == {"error": "OAUTH_EXCHANGE_FAILED"}


async def test_an_answer_that_takes_for_ever(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.auth.LONGEST_CALL", 0.2)
    as_provider(flow, "juniper_header")
    flow.server.faults.append(Fault(on="authorization_code", hold=True))
    answer = await flow.connect("juniper_header")
    flow.server.release.set()
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")


async def test_what_was_granted_is_tried_before_it_is_stored(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_provider(flow, "juniper_header")
    monkeypatch.setattr(type(flow.server), "lives", lambda *_: None)  # the token isn't taken anywhere
    answer = await flow.connect("juniper_header")
    assert (answer.status_code, answer.json()["code"]) == (401, "CONNECTION_TEST_FAILED")
    assert await flow.rows("SELECT * FROM oauth_tokens") == []
