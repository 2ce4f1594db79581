"""OAuth: where the browser is sent, what the token endpoint is asked, and what its answers mean."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from engine.auth import (
    FORM,
    Authenticator,
    Grant,
    authorization_url,
    check_issuer,
    exchange_code,
    kept_of_callback,
    refresh,
    revoke,
)
from engine.errors import (
    AuthenticationError,
    HubError,
    ManifestError,
    RateLimitedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.manifest import Connector
from engine.ports import Credentials, Secret
from tests.fakes import START, FakeClock, FakeProvider, connector_of, reply

PLAIN = """
  authorize_url: https://login.juniper.example/oauth/authorize
  token_url: https://login.juniper.example/oauth/token
  scopes: [a.read, b.write]
"""


def oauth_connector(options: str = PLAIN) -> Connector:
    return connector_of(
        f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example, sandbox: https://sandbox.juniper.example}}
auth:
  type: oauth2{options}
check: GET /me
resources:
  customer: {{id: id, fields: {{id: id}}, list: GET /customers}}
"""
    )


def browser_url(connector: Connector, **more: Any) -> tuple[str, dict[str, str]]:
    url = authorization_url(
        connector,
        connector.auth[0],
        "sandbox",
        client_id="app-1",
        redirect_uri="https://hub.example/callback?x=1",
        state="st/1",
        **more,
    )
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}", {n: v[0] for n, v in parse_qs(parts.query).items()}


async def exchanged(provider: FakeProvider, connector: Connector | None = None, **more: Any) -> Grant:
    connector = connector or oauth_connector()
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:
        return await exchange_code(
            connector,
            connector.auth[0],
            "production",
            http=http,
            client_id="app-1",
            client_secret=Secret("hush:1"),
            redirect_uri="https://hub.example/callback",
            code="code-1",
            clock=FakeClock(),
            **more,
        )


async def refreshed(provider: FakeProvider, connector: Connector | None = None) -> Grant:
    connector = connector or oauth_connector()
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:
        return await refresh(
            connector,
            connector.auth[0],
            "production",
            http=http,
            client_id="app-1",
            client_secret=Secret("hush:1"),
            refresh_token=Secret("rt-old"),
            clock=FakeClock(),
        )


def form_of(request: httpx.Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.content.decode()).items()}


GRANTED: Mapping[str, Any] = {
    "access_token": "at-1",
    "token_type": "Bearer",
    "refresh_token": "rt-1",
    "expires_in": 3600,
}


# ----------------------------------------------------------------------------------------- authorize


def test_authorize_url() -> None:
    assert browser_url(oauth_connector()) == (
        "https://login.juniper.example/oauth/authorize",
        {
            "response_type": "code",
            "client_id": "app-1",
            "redirect_uri": "https://hub.example/callback?x=1",
            "scope": "a.read b.write",
            "state": "st/1",
        },
    )


def test_authorize_url_below_the_server_of_the_environment() -> None:
    connector = oauth_connector(
        """
  authorize_url: /oauth2/authorize
  token_url: /oauth2/token
  authorize_params: {session: "false"}
  scopes: [a, b]
  scope_separator: ","
"""
    )
    where, query = browser_url(connector)
    assert where == "https://sandbox.juniper.example/oauth2/authorize"
    assert query["session"] == "false"
    assert query["scope"] == "a,b"


def test_authorize_url_of_a_stand_in() -> None:
    overrides = {"https://login.juniper.example": "http://127.0.0.1:9102"}
    where, _ = browser_url(oauth_connector(), origin_overrides=overrides)
    assert where == "http://127.0.0.1:9102/oauth/authorize"


def test_pkce_challenge_of_rfc_7636() -> None:
    connector = oauth_connector(PLAIN + "  pkce: true\n")
    _, query = browser_url(connector, code_verifier="dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert query["code_challenge"] == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert query["code_challenge_method"] == "S256"


def test_pkce_can_not_be_forgotten() -> None:
    with pytest.raises(ManifestError):
        browser_url(oauth_connector(PLAIN + "  pkce: true\n"))


# ------------------------------------------------------------------------------------------ exchange


async def test_exchange_with_a_form_and_the_client_in_the_header() -> None:
    provider = FakeProvider([reply(GRANTED)])
    grant = await exchanged(provider)
    (request,) = provider.requests
    assert str(request.url) == "https://login.juniper.example/oauth/token"
    assert request.headers["Authorization"] == "Basic " + base64.b64encode(b"app-1:hush%3A1").decode()
    assert form_of(request) == {
        "grant_type": "authorization_code",
        "code": "code-1",
        "redirect_uri": "https://hub.example/callback",
    }
    assert grant.access_token.reveal() == "at-1"
    assert grant.refresh_token is not None
    assert grant.refresh_token.reveal() == "rt-1"
    assert grant.expires_at == datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
    assert grant.scopes == ("a.read", "b.write")  # the answer names none: those asked for
    assert "at-1" not in repr(grant)


async def test_exchange_with_json_and_the_client_in_the_body() -> None:
    connector = oauth_connector(
        """
  authorize_url: /oauth2/authorize
  token_url: /oauth2/token
  token_body: json
  client: body
  pkce: true
  expires: {at: expires_at}
  keep: {merchant_id: merchant_id}
"""
    )
    answer = {
        "access_token": "at-1",
        "token_type": "bearer",
        "expires_at": "2026-03-31T12:00:00Z",
        "merchant_id": "m_7",
        "scope": "x y",
    }
    provider = FakeProvider([reply(answer)])
    grant = await exchanged(provider, connector, code_verifier="v" * 43)
    assert "Authorization" not in provider.requests[0].headers
    assert provider.body() == {
        "grant_type": "authorization_code",
        "code": "code-1",
        "redirect_uri": "https://hub.example/callback",
        "code_verifier": "v" * 43,
        "client_id": "app-1",
        "client_secret": "hush:1",
    }
    assert grant.expires_at == datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
    assert grant.connection == {"merchant_id": "m_7"}
    assert grant.scopes == ("x", "y")
    assert grant.refresh_token is None


@pytest.mark.parametrize(
    ("answer", "expires"),
    [
        ({"access_token": "at"}, None),
        ({"access_token": "at", "expires_in": 0}, None),
        ({"access_token": "at", "expires_in": "60"}, datetime(2026, 3, 1, 12, 1, tzinfo=UTC)),
    ],
)
async def test_lifetimes_as_providers_send_them(answer: dict[str, Any], expires: datetime | None) -> None:
    assert (await exchanged(FakeProvider([reply(answer)]))).expires_at == expires


async def test_expiry_as_unix_time() -> None:
    connector = oauth_connector(PLAIN + "  expires: {at: ends}\n")
    answer = {"access_token": "at", "ends": int(START.timestamp()) + 90}
    grant = await exchanged(FakeProvider([reply(answer)]), connector)
    assert grant.expires_at == datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("lifetime", [0, 3600])
async def test_a_token_that_never_ends(lifetime: int) -> None:
    connector = oauth_connector(PLAIN + "  expires: never\n")
    answer = {"access_token": "at", "expires_in": lifetime}
    assert (await exchanged(FakeProvider([reply(answer)]), connector)).expires_at is None


async def test_when_the_refresh_token_ends() -> None:
    connector = oauth_connector(PLAIN + "  refresh_token_expires: {in: refresh_ends_in}\n")
    grant = await exchanged(FakeProvider([reply({**GRANTED, "refresh_ends_in": 8640000})]), connector)
    assert grant.expires_at == datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
    assert grant.refresh_expires_at == datetime(2026, 6, 9, 12, 0, tzinfo=UTC)  # a hundred days later
    assert (await exchanged(FakeProvider([reply(GRANTED)]))).refresh_expires_at is None


DECLARED = (
    PLAIN
    + """
  credentials: {shop: {title: Shop, secret: false}}
  keep: {merchant: merchant.id, shop: "{{ shop }}"}
  keep_from_callback: {company: companyId}
connection:
  merchant: {title: Merchant, pattern: "^m[0-9]+$"}
  company: {title: Company, pattern: "^[0-9]+$"}
"""
)


async def test_values_of_the_answer_are_kept_as_declared() -> None:
    connector = oauth_connector(DECLARED)
    right = FakeProvider([reply({**GRANTED, "merchant": {"id": "m7"}})])
    assert (await exchanged(right, connector)).connection == {"merchant": "m7"}
    assert connector.auth[0].keep.keys() == {"shop"}  # what was typed in is kept at once
    with pytest.raises(UnexpectedResponseError, match="`merchant`"):
        await exchanged(FakeProvider([reply({**GRANTED, "merchant": {"id": "m7.evil"}})]), connector)


def test_values_of_the_redirect_are_kept_as_declared() -> None:
    connector = oauth_connector(DECLARED)
    method = connector.auth[0]
    assert kept_of_callback(connector, method, {"companyId": "91", "x": "y"}) == {"company": "91"}
    for parameters in ({}, {"companyId": ""}, {"companyId": "91/../x"}):
        with pytest.raises(UnexpectedResponseError, match="compan"):
            kept_of_callback(connector, method, parameters)


async def test_an_answer_without_a_token_type_is_a_bearer_token() -> None:
    grant = await exchanged(FakeProvider([reply({"access_token": "at-9"})]))
    assert grant.access_token.reveal() == "at-9"


# ------------------------------------------------------------------------------------------- refresh


async def test_refresh_keeps_the_old_refresh_token_when_none_comes_back() -> None:
    provider = FakeProvider([reply({"access_token": "at-2", "expires_in": 60})])
    grant = await refreshed(provider)
    assert form_of(provider.requests[0]) == {"grant_type": "refresh_token", "refresh_token": "rt-old"}
    assert grant.refresh_token is not None
    assert grant.refresh_token.reveal() == "rt-old"


async def test_refresh_takes_a_rotated_refresh_token() -> None:
    grant = await refreshed(FakeProvider([reply(GRANTED)]))
    assert grant.refresh_token is not None
    assert grant.refresh_token.reveal() == "rt-1"


async def test_a_refresh_token_that_keeps_is_asked_with_once_more() -> None:
    connector = oauth_connector(PLAIN + "  refresh_token: keeps\n")
    provider = FakeProvider([reply({}, 503), reply(GRANTED)])
    assert (await refreshed(provider, connector)).access_token.reveal() == "at-1"
    down = FakeProvider([reply({}, 503), reply({}, 503), reply(GRANTED)])
    with pytest.raises(UnavailableError):
        await refreshed(down, connector)
    assert len(down.requests) == 2


async def test_a_refresh_token_that_rotates_is_asked_with_once() -> None:
    for options in (PLAIN, PLAIN + "  refresh_token: rotates\n"):
        provider = FakeProvider([reply({}, 503), reply(GRANTED)])
        with pytest.raises(UnavailableError):
            await refreshed(provider, oauth_connector(options))
        assert len(provider.requests) == 1


Case = tuple[Callable[[], httpx.Response | Exception], type[HubError], str | None]


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (
            reply({"error": "invalid_grant", "error_description": "Token revoked"}, 400),
            AuthenticationError,
            "invalid_grant",
        ),
        (reply({"error": "invalid_client"}, 401), AuthenticationError, "invalid_client"),
        (
            reply({"errors": [{"code": "UNAUTHORIZED", "detail": "no"}]}, 401),
            AuthenticationError,
            "UNAUTHORIZED",
        ),
        (reply({"error": {"code": "bad", "message": "no"}}, 403), AuthenticationError, "bad"),
        (reply({"error": "invalid_grant"}, 200), AuthenticationError, "invalid_grant"),
        (httpx.Response(400, text="Bad Request"), AuthenticationError, None),
        (httpx.Response(502, html="<h1>Bad gateway</h1>"), UnavailableError, None),
        (httpx.Response(200, html="<h1>Maintenance</h1>"), UnavailableError, None),
        (httpx.Response(404, html="<h1>Nothing</h1>"), UnavailableError, None),
        (reply({"error": "server_error"}, 503), UnavailableError, None),
        (reply({}, 429), RateLimitedError, None),
        (httpx.ConnectError("refused"), UnavailableError, None),
        (httpx.ReadTimeout("slow"), UnavailableError, None),
        (reply({"token_type": "bearer"}), UnexpectedResponseError, None),
        (reply({"access_token": ""}), UnexpectedResponseError, None),
        (reply({"access_token": "at", "token_type": "mac"}), UnexpectedResponseError, None),
        (reply({"access_token": "at", "expires_in": "soon"}), UnexpectedResponseError, None),
        (reply([1]), UnexpectedResponseError, None),
    ],
)
async def test_answers_that_bring_no_token(
    answer: httpx.Response | Exception, error: type[HubError], code: str | None
) -> None:
    with pytest.raises(error) as refused:
        await refreshed(FakeProvider([answer]))
    assert type(refused.value) is error
    assert getattr(refused.value, "provider_code", None) == code


@pytest.mark.parametrize(
    ("said", "wait"), [("120", 120.0), ("9" * 400, 86_400.0), ("Fri, 31 Dec 1999 23:59:59 GMT", None)]
)
async def test_how_long_a_server_that_is_busy_asks_to_wait(said: str, wait: float | None) -> None:
    answer = httpx.Response(429, json={}, headers={"Retry-After": said})
    with pytest.raises(RateLimitedError) as refused:
        await refreshed(FakeProvider([answer]))
    assert refused.value.retry_after == wait


async def test_an_error_never_repeats_a_secret() -> None:
    answer = reply({"error": "invalid_grant", "error_description": "rt-old of app-1 / hush:1 is dead"}, 400)
    with pytest.raises(AuthenticationError) as refused:
        await refreshed(FakeProvider([answer]))
    assert refused.value.message == (
        "the authorization server refused (invalid_grant): *** of app-1 / *** is dead"
    )


async def test_a_token_call_is_made_once() -> None:
    provider = FakeProvider([reply({}, 503), reply(GRANTED)])
    with pytest.raises(UnavailableError):
        await exchanged(provider)
    assert len(provider.requests) == 1


class Endless(httpx.AsyncByteStream):
    """An answer of 10 MiB, of which what was taken is counted."""

    taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(160):
            self.taken += 65536
            yield b" " * 65536


async def test_an_answer_without_an_end_is_cut_off() -> None:
    answer = Endless()
    with pytest.raises(UnexpectedResponseError, match="far too long"):
        await refreshed(FakeProvider([httpx.Response(200, stream=answer)]))
    assert answer.taken <= 2 * 2**20


async def test_an_answer_that_can_not_be_decoded_is_no_refusal() -> None:
    answer = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    with pytest.raises(UnavailableError):
        await refreshed(FakeProvider([answer]))


# ------------------------------------------------------------- answers as authorization servers send them


async def test_what_is_not_asked_for_is_left_alone() -> None:
    more = {"id_token": "x.y.z", "user": {"name": "Zoë"}, "error": "", "x" * 300: [1, None]}
    grant = await exchanged(FakeProvider([reply({**GRANTED, **more})]))
    assert (grant.access_token.reveal(), grant.connection) == ("at-1", {})


@pytest.mark.parametrize("kind", ["bearer", "BEARER", "", None, 7])
async def test_the_token_type_in_any_case_or_none(kind: Any) -> None:
    grant = await exchanged(FakeProvider([reply({**GRANTED, "token_type": kind})]))
    assert grant.access_token.reveal() == "at-1"


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("x y", ("x", "y")),
        (["x", "y"], ("x", "y")),
        ("", ("a.read", "b.write")),  # not said: those asked for
        (None, ("a.read", "b.write")),
        ([], ("a.read", "b.write")),
        ({"x": 1}, ("a.read", "b.write")),
    ],
)
async def test_scopes_as_text_or_as_a_list(scope: Any, granted: tuple[str, ...]) -> None:
    assert (await exchanged(FakeProvider([reply({**GRANTED, "scope": scope})]))).scopes == granted


@pytest.mark.parametrize("lifetime", ["inf", 1e300, "-", [60], {"s": 60}])
async def test_a_lifetime_that_is_no_number_of_seconds(lifetime: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="`expires_in`"):
        await exchanged(FakeProvider([reply({**GRANTED, "expires_in": lifetime})]))


@pytest.mark.parametrize(
    ("moment", "expires"),
    [
        ("2026-03-01T13:00:00+01:00", datetime(2026, 3, 1, 12, 0, tzinfo=UTC)),
        (1772370000000, datetime(2026, 3, 1, 13, 0, tzinfo=UTC)),  # milliseconds
        ("1772370000", datetime(2026, 3, 1, 13, 0, tzinfo=UTC)),
        (None, None),
        (0, None),
    ],
)
async def test_moments_as_providers_send_them(moment: Any, expires: datetime | None) -> None:
    connector = oauth_connector(PLAIN + "  expires: {at: ends}\n")
    assert (
        await exchanged(FakeProvider([reply({**GRANTED, "ends": moment})]), connector)
    ).expires_at == expires


@pytest.mark.parametrize("moment", ["soon", "9" * 40, 10**30])
async def test_a_moment_that_is_none(moment: Any) -> None:
    connector = oauth_connector(PLAIN + "  expires: {at: ends}\n")
    with pytest.raises(UnexpectedResponseError, match="`ends`"):
        await exchanged(FakeProvider([reply({**GRANTED, "ends": moment})]), connector)


@pytest.mark.parametrize("token", ["at\r\nX-Evil: 1", "two words", "at\u00e9", "\x7f"])
async def test_a_token_that_no_header_can_carry(token: str) -> None:
    with pytest.raises(UnexpectedResponseError, match="no header") as refused:
        await exchanged(FakeProvider([reply({**GRANTED, "access_token": token})]))
    assert token not in refused.value.message


async def test_an_answer_is_json_whatever_it_calls_itself() -> None:
    answer = httpx.Response(200, content=json.dumps(GRANTED), headers={"Content-Type": "text/html"})
    assert (await exchanged(FakeProvider([answer]))).access_token.reveal() == "at-1"


async def test_an_answer_that_is_a_form() -> None:
    answer = httpx.Response(
        200,
        text="access_token=at-1&token_type=bearer&expires_in=60&scope=x+y",
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
    )
    grant = await exchanged(FakeProvider([answer]))
    assert (grant.access_token.reveal(), grant.scopes) == ("at-1", ("x", "y"))
    assert grant.expires_at == datetime(2026, 3, 1, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize("status", [400, 401, 200])
async def test_a_refusal_that_is_a_form(status: int) -> None:
    answer = httpx.Response(
        status,
        text="error=invalid_grant&error_description=The+code%0A+of+code-1+was%20used",
        headers={"Content-Type": FORM},
    )
    with pytest.raises(AuthenticationError) as refused:
        await exchanged(FakeProvider([answer]))
    assert refused.value.provider_code == "invalid_grant"
    assert refused.value.message == (
        "the authorization server refused (invalid_grant): The code of *** was used"
    )


async def test_a_refusal_is_told_briefly() -> None:
    with pytest.raises(AuthenticationError) as refused:
        await exchanged(
            FakeProvider([reply({"error": "x" * 10_000, "error_description": "y" * 10_000}, 400)])
        )
    assert len(refused.value.message) < 700


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_with_the_secret(status: int) -> None:
    away = httpx.Response(status, headers={"Location": "https://elsewhere.example/token"})
    provider = FakeProvider([away, reply(GRANTED)])
    connector = oauth_connector()
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider), follow_redirects=True) as http:
        with pytest.raises(UnavailableError, match="isn't followed"):
            await exchange_code(
                connector,
                connector.auth[0],
                "production",
                http=http,
                client_id="app-1",
                client_secret=Secret("hush:1"),
                redirect_uri="https://hub.example/callback",
                code="code-1",
            )
    assert [request.url.host for request in provider.requests] == ["login.juniper.example"]


class Slow(httpx.AsyncByteStream):
    """An answer that never ends, a byte at a time."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.001)


async def test_an_answer_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.auth.LONGEST_CALL", 0.05)
    with pytest.raises(UnavailableError):
        await exchanged(FakeProvider([httpx.Response(200, stream=Slow())]))


async def test_client_id_and_secret_are_encoded_before_they_are_joined() -> None:
    connector, provider = oauth_connector(), FakeProvider([reply(GRANTED)])
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:
        await exchange_code(
            connector,
            connector.auth[0],
            "production",
            http=http,
            client_id="a:b c",
            client_secret=Secret("50%+é/"),
            redirect_uri="https://hub.example/callback",
            code="code-1",
        )
    sent = provider.requests[0].headers["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent) == b"a%3Ab%20c:50%25%2B%C3%A9%2F"


# ------------------------------------------------------------------------------------------- callback


@pytest.mark.parametrize("parameters", [{}, {"iss": ""}, {"iss": "https://login.juniper.example/"}])
def test_a_redirect_of_another_server_is_refused(parameters: dict[str, str]) -> None:
    connector = oauth_connector(PLAIN + "  issuer: https://login.juniper.example\n")
    check_issuer(connector, connector.auth[0], {"iss": "https://login.juniper.example"})
    with pytest.raises(UnexpectedResponseError, match="Juniper's own server"):
        check_issuer(connector, connector.auth[0], parameters)


def test_an_issuer_nobody_declared_is_not_looked_at() -> None:
    connector = oauth_connector()
    check_issuer(connector, connector.auth[0], {"iss": "https://elsewhere.example"})


# -------------------------------------------------------------------------------------------- revoke

REVOKING = """
  authorize_url: /oauth2/authorize
  token_url: /oauth2/token
  revoke:
    call: POST /oauth2/revoke
    headers: {Authorization: "Client {{ client_secret }}"}
    body: {client_id: "{{ client_id }}", access_token: "{{ access_token }}"}
"""


async def revoked(provider: FakeProvider, connector: Connector) -> bool:
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:
        return await revoke(
            connector,
            connector.auth[0],
            "production",
            http=http,
            client_id="app-1",
            client_secret=Secret("hush:1"),
            credentials=Credentials({"access_token": Secret("at-1"), "refresh_token": Secret("rt-1")}),
        )


async def test_revoke_as_the_manifest_writes_it() -> None:
    provider = FakeProvider([reply({"success": True})])
    assert await revoked(provider, oauth_connector(REVOKING)) is True
    (request,) = provider.requests
    assert str(request.url) == "https://api.juniper.example/oauth2/revoke"
    assert request.headers["Authorization"] == "Client hush:1"
    assert json.loads(request.content) == {"client_id": "app-1", "access_token": "at-1"}


async def test_revoke_elsewhere_with_the_client_in_the_header() -> None:
    options = """
  authorize_url: /oauth2/authorize
  token_url: /oauth2/token
  revoke:
    call: POST https://login.juniper.example/revoke
    client: header
    body: {token: "{{ refresh_token }}"}
"""
    provider = FakeProvider([reply({})])
    assert await revoked(provider, oauth_connector(options)) is True
    (request,) = provider.requests
    assert str(request.url) == "https://login.juniper.example/revoke"
    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) == b"app-1:hush%3A1"
    assert json.loads(request.content) == {"token": "rt-1"}


@pytest.mark.parametrize(
    "answer",
    [
        reply({"errors": [{"code": "NOT_FOUND"}]}, 404),
        reply({"error": "invalid_request"}, 400),  # as one says of a token it doesn't know
        reply({"error": "invalid_token"}, 401),
        httpx.Response(400, text="error=invalid_grant", headers={"Content-Type": FORM}),
    ],
)
async def test_a_token_that_is_dead_already_counts_as_revoked(answer: httpx.Response) -> None:
    assert await revoked(FakeProvider([answer]), oauth_connector(REVOKING)) is True


@pytest.mark.parametrize(
    "answer",
    [
        reply({"error": "invalid_client"}, 401),
        reply({"error": "invalid_client"}, 400),
        reply({"errors": [{"code": "UNAUTHORIZED"}]}, 401),  # the application's secret is wrong
        reply({"error": "unsupported_token_type"}, 400),
        reply({"error": "invalid_client"}, 200),
    ],
)
async def test_revoke_says_when_the_application_itself_is_refused(answer: httpx.Response) -> None:
    with pytest.raises(AuthenticationError):
        await revoked(FakeProvider([answer]), oauth_connector(REVOKING))


EACH = """
  authorize_url: /oauth2/authorize
  token_url: /oauth2/token
  revoke:
    call: POST /oauth2/revoke
    client: header
    tokens: [refresh_token, access_token]
    encoding: form
    body: {token: "{{ token }}", token_type_hint: "{{ token_type_hint }}"}
"""


async def test_each_token_is_revoked_where_the_provider_wants_it() -> None:
    provider = FakeProvider([reply({}), reply({})])
    assert await revoked(provider, oauth_connector(EACH)) is True
    assert [form_of(request) for request in provider.requests] == [
        {"token": "rt-1", "token_type_hint": "refresh_token"},
        {"token": "at-1", "token_type_hint": "access_token"},
    ]


async def test_a_token_that_can_not_be_revoked_keeps_no_other_from_it() -> None:
    provider = FakeProvider([reply({}, 503), reply({})])
    with pytest.raises(UnavailableError):
        await revoked(provider, oauth_connector(EACH))
    assert [form_of(request)["token"] for request in provider.requests] == ["rt-1", "at-1"]


async def test_revoke_says_when_the_provider_is_down() -> None:
    with pytest.raises(UnavailableError):
        await revoked(FakeProvider([reply({}, 500)]), oauth_connector(REVOKING))


async def test_nothing_to_revoke_with() -> None:
    assert await revoked(FakeProvider([]), oauth_connector()) is False


# ------------------------------------------------------------------------------------------- methods


def test_credentials_choose_among_several_methods() -> None:
    connector = connector_of(
        """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth:
  - {type: bearer, name: token, credentials: {key: {title: Key}}, token: key}
  - {type: basic, name: login, credentials: {user: {title: User}}, username: user}
check: GET /me
resources:
  customer: {id: id, fields: {id: id}, list: GET /customers}
"""
    )
    chosen = Authenticator.choose(connector, Credentials({"user": Secret("u")}, method="login"))
    assert chosen.method.type == "basic"
    for method in (None, "other"):
        with pytest.raises(ManifestError):
            Authenticator.choose(connector, Credentials({}, method=method))
