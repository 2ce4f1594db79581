"""OAuth: begin, come back, and everything that may go wrong on the way."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import structlog
from sqlalchemy import select

from engine.ports import Credentials
from server.credentials import place
from server.db.models import OAuthToken
from server.errors import InvalidRequestError
from server.services.integrations import check_environment
from server.vault import Context as Place
from tests.contract.api.conftest import API, OTHERS, OURS, USER_ID, Hub, bearer

CALLBACK = f"{API}/oauth/callback/square"
JSON = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def begin(hub: Hub, **body: Any) -> str:
    """Begin an authorization for our venue and return where the browser would go."""
    answer = await hub.post(
        f"{API}/connect/square",
        {"venueId": str(OURS), "config": {"syncEnabled": False}, "environment": "sandbox", **body},
    )
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["message"] == "Please complete OAuth authorization"
    return str(data["authUrl"])


async def approve(url: str) -> dict[str, str]:
    """Agree on the consent page and return the query the browser comes back with."""
    async with httpx.AsyncClient() as browser:
        page = await browser.get(httpx.URL(url).copy_merge_params({"auto_approve": "1"}))
    assert page.status_code == 302, page.text
    return {name: values[0] for name, values in parse_qs(urlsplit(page.headers["location"]).query).items()}


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def test_begin_leads_to_the_provider_and_keeps_only_a_hash(hub: Hub) -> None:
    url = await begin(hub)
    assert url.startswith(f"{hub.sandbox.square_url}/oauth2/authorize?")
    query = query_of(url)
    assert query["client_id"] == "sq0idp-demo"
    assert query["redirect_uri"] == "http://127.0.0.1:3007/api/v1/integrations/oauth/callback/square"
    assert len(query["state"]) == 43  # 32 random bytes in base64
    [row] = await hub.rows("SELECT *, expires_at - created_at AS lifetime FROM oauth_states")
    assert row["state_hash"] == hashlib.sha256(query["state"].encode()).hexdigest()
    assert query["state"] not in str(row)
    assert (row["venue_id"], row["user_id"], row["environment"]) == (OURS, USER_ID, "sandbox")
    assert row["lifetime"].total_seconds() == 600
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert integration["status"] == "connecting"


async def test_coming_back_connects(hub: Hub) -> None:
    query = await approve(await begin(hub, config={"syncEnabled": True, "syncInterval": 900}))
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    assert (answer.status_code, answer.json()) == (
        200,
        {"success": True, "data": {"venueId": str(OURS), "provider": "square"}},
    )
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert (integration["status"], integration["account"]) == ("connected", "MDEMO")
    assert integration["connection"]["merchant_id"] == "MDEMO"
    assert len(integration["connection"]["location_ids"]) == 2
    assert integration["config"]["syncInterval"] == 900
    [token] = await hub.rows("SELECT * FROM oauth_tokens")
    where = Place(OAuthToken.__tablename__, "encrypted_access_token", token["id"], OURS, "square", "sandbox")
    access_token = (await hub.context.vault.open(token["encrypted_access_token"], where)).reveal()
    assert access_token
    assert access_token not in str(token)
    assert str(token["created_by"]) == USER_ID
    assert token["expires_at"] is not None
    [operation] = await hub.rows("SELECT * FROM sync_queue")
    assert operation["operation_type"] == "sync"
    actions = [row["action"] for row in await hub.rows("SELECT action FROM audit_log ORDER BY id")]
    assert actions == ["oauth.begun", "integration.connected"]


async def test_a_browser_goes_on_to_a_page(hub: Hub) -> None:
    query = await approve(await begin(hub))
    answer = await hub.http.get(CALLBACK, params=query, headers=BROWSER)
    assert answer.status_code == 302
    assert answer.headers["location"] == f"/integrations/success?provider=square&venueId={OURS}"
    page = await hub.http.get(answer.headers["location"])
    assert page.status_code == 200
    assert "Square is connected" in page.text


async def test_a_state_works_once(hub: Hub) -> None:
    query = await approve(await begin(hub))
    answers = await asyncio.gather(*(hub.http.get(CALLBACK, params=query, headers=JSON) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    assert {a.json()["code"] for a in answers if a.status_code == 401} == {"OAUTH_STATE_INVALID"}


async def test_a_state_ends_after_ten_minutes(hub: Hub) -> None:
    query = await approve(await begin(hub))
    await hub.execute("UPDATE oauth_states SET expires_at = now()")
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (401, "OAUTH_STATE_INVALID")
    assert await hub.rows("SELECT * FROM oauth_tokens") == []


async def refusals(hub: Hub) -> list[tuple[str, str, str, int]]:
    """Return provider, actor, reason and count of the refused states in our venue's audit log."""
    entries = await hub.rows(
        "SELECT * FROM audit_log WHERE action = 'oauth.refused' AND venue_id = :venue ORDER BY id", venue=OURS
    )
    return [(e["integration_type"], e["actor"], e["details"]["reason"], e["count"]) for e in entries]


async def test_a_state_is_its_providers_and_used_up_at_anothers(hub: Hub) -> None:
    query = await approve(await begin(hub))
    elsewhere = await hub.http.get(f"{API}/oauth/callback/quickbooks", params=query, headers=JSON)
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    for refused in (elsewhere, answer):
        assert (refused.status_code, refused.json()["code"]) == (401, "OAUTH_STATE_INVALID")
    assert await refusals(hub) == [
        ("square", "anonymous", "other_provider", 1),
        ("square", "anonymous", "used", 1),
    ]
    assert await hub.rows("SELECT * FROM oauth_tokens") == []


async def test_refused_states_are_in_the_audit_log_and_told_the_same(hub: Hub) -> None:
    query = await approve(await begin(hub))
    await hub.http.get(CALLBACK, params=query, headers=JSON)
    again = [await hub.http.get(CALLBACK, params=query, headers=JSON) for _ in range(3)]
    late = await approve(await begin(hub))
    await hub.execute("UPDATE oauth_states SET expires_at = now() WHERE used_at IS NULL")
    again.append(await hub.http.get(CALLBACK, params=late, headers=JSON))
    forged = {"code": "c", "state": "f" * 43}
    again.append(await hub.http.get(CALLBACK, params=forged, headers=JSON))
    assert {answer.status_code for answer in again} == {401}
    assert len({answer.json()["error"] for answer in again}) == 1  # whether there is such a state isn't told
    assert await refusals(hub) == [("square", "anonymous", "used", 3), ("square", "anonymous", "expired", 1)]
    shown = str(await hub.rows("SELECT * FROM audit_log"))
    assert query["state"] not in shown
    assert query["code"] not in shown


@pytest.fixture
def every_event() -> Iterator[None]:
    """Let every event through, whatever level the settings of these tests have."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("every_event")
async def test_a_forged_state_is_logged(hub: Hub) -> None:
    with structlog.testing.capture_logs() as logged:
        await hub.http.get(CALLBACK, params={"code": "c", "state": "forged-state"}, headers=JSON)
    assert {"reason": "unknown", "provider": "square", "ip": "127.0.0.1"}.items() <= _only(
        logged, "oauth.refused"
    ).items()
    assert "forged-state" not in str(logged)


def _only(logged: list[Any], event: str) -> dict[str, Any]:
    [found] = [each for each in logged if each["event"] == event]
    return dict(found)


async def test_a_token_that_is_sent_is_that_of_who_began(hub: Hub) -> None:
    query = await approve(await begin(hub))
    other = await hub.http.get(CALLBACK, params=query, headers={**JSON, **bearer(userId="somebody-else")})
    assert (other.status_code, other.json()["code"]) == (401, "OAUTH_STATE_INVALID")
    mine = await hub.http.get(CALLBACK, params=query, headers={**JSON, **bearer()})
    assert mine.json()["code"] == "OAUTH_STATE_INVALID"  # it has been in wrong hands
    assert await refusals(hub) == [
        ("square", "somebody-else", "other_user", 1),
        ("square", USER_ID, "used", 1),
    ]
    query = await approve(await begin(hub))
    bad = await hub.http.get(CALLBACK, params=query, headers={**JSON, "Authorization": "Bearer x.y.z"})
    assert (bad.status_code, bad.json()["code"]) == (401, "INVALID_TOKEN")
    good = await hub.http.get(CALLBACK, params=query, headers={**JSON, **bearer()})
    assert good.status_code == 200, good.text


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/api/v1/integrations/oauth/callback/square",
        "http://127.0.0.1:3007/api/v1/integrations/oauth/callback/square/",
        "http://127.0.0.1:3007/api/v1/integrations/oauth/callback/quickbooks",
        "https://app.example.org/connected/quickbooks",
        "https://app.example.org/connected/square?next=https://evil.example",
        "https://app.example.org/connected/square#x",
        "https://APP.example.org/connected/square",
        "",
    ],
)
async def test_a_redirect_address_nobody_listed_is_refused(hub: Hub, uri: str) -> None:
    answer = await hub.post(f"{API}/connect/square", {"venueId": str(OURS), "redirectUri": uri})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == ["redirectUri"]
    assert await hub.rows("SELECT * FROM oauth_states") == []


async def test_a_listed_redirect_address_is_finished_by_the_same_user(hub: Hub) -> None:
    listed = "http://127.0.0.1:9999/connected/square"
    for headers, status in ((JSON, 401), ({**JSON, **bearer(userId="u9")}, 401), ({**JSON, **bearer()}, 200)):
        url = await begin(hub, redirectUri=listed)
        assert query_of(url)["redirect_uri"] == listed
        answer = await hub.http.get(CALLBACK, params=await approve(url), headers=headers)
        assert answer.status_code == status, answer.text
    assert [reason for _, _, reason, _ in await refusals(hub)] == ["other_user", "other_user"]
    assert len(await hub.rows("SELECT * FROM oauth_tokens")) == 1


@pytest.mark.parametrize("name", ["state", "code", "error"])
async def test_a_parameter_that_is_there_twice_is_refused(hub: Hub, name: str) -> None:
    query = await approve(await begin(hub))
    pairs: list[tuple[str, str | int | float | bool | None]] = [*query.items(), (name, "x"), (name, "y")]
    answer = await hub.http.get(CALLBACK, params=pairs, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == [name]
    good = await hub.http.get(CALLBACK, params=query, headers=JSON)
    assert good.status_code == 200  # nothing was used up


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        ("access_denied", "access_denied", "said no"),
        ("invalid_scope", "invalid_scope", "doesn't grant"),
        ("unauthorized_client", "unauthorized_client", "doesn't let"),
        ("invalid_request", "invalid_request", "didn't understand"),
        ("unsupported_response_type", "unsupported_response_type", "didn't understand"),
        ("server_error", "server_error", "try again"),
        ("temporarily_unavailable", "temporarily_unavailable", "try again later"),
        ("consent_required", "consent_required", "didn't authorize"),
        ("<b>call 555</b>", "error", "didn't authorize"),
    ],
)
async def test_what_the_provider_says_instead_of_a_code(hub: Hub, error: str, told: str, words: str) -> None:
    state = query_of(await begin(hub))["state"]
    query = {"state": state, "error": error, "error_description": "Visit evil.example", "code": "c-1"}
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    said = answer.json()
    assert (answer.status_code, said["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert said["details"] == [{"field": "error", "message": told}]
    assert words in said["error"]
    assert "evil.example" not in answer.text
    calls = await _calls(hub)
    assert not [call for call in calls if "token" in call]  # the code beside an error isn't tried


async def _calls(hub: Hub) -> list[str]:
    async with httpx.AsyncClient() as control:
        answer = await control.get(f"{hub.sandbox.square_url}/_sandbox/calls")
    return list(answer.json().get("by_call", {}))


async def test_two_authorizations_that_end_at_once_both_connect(hub: Hub) -> None:
    queries = [await approve(await begin(hub)) for _ in range(3)]
    answers = await asyncio.gather(*(hub.http.get(CALLBACK, params=q, headers=JSON) for q in queries))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(await hub.rows("SELECT * FROM oauth_tokens")) == 1


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json, text/plain, */*", 200),
        ("application/json", 200),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 302),
        ("*/*", 302),
    ],
)
async def test_who_gets_json_and_who_a_page(hub: Hub, accept: str, status: int) -> None:
    query = await approve(await begin(hub))
    answer = await hub.http.get(CALLBACK, params=query, headers={"Accept": accept})
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"


async def test_an_environment_the_provider_does_not_have(hub: Hub) -> None:
    connector = hub.context.catalog.connector("square")
    only = replace(connector, servers={"production": connector.servers["production"]})
    with pytest.raises(InvalidRequestError, match="it has production") as refused:
        check_environment(only, "sandbox")
    assert [detail.field for detail in refused.value.details] == ["environment"]


@pytest.mark.parametrize(
    ("query", "fields"),
    [({}, ["state", "code"]), ({"code": "c"}, ["state"]), ({"state": "s"}, ["code"])],
)
async def test_code_and_state_are_needed(hub: Hub, query: dict[str, str], fields: list[str]) -> None:
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == fields


async def test_a_person_who_refuses(hub: Hub) -> None:
    state = query_of(await begin(hub))["state"]
    query = {"state": state, "error": "access_denied"}
    answer = await hub.http.get(CALLBACK, params=query, headers=BROWSER)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("/integrations/error?code=OAUTH_EXCHANGE_FAILED&")
    page = await hub.http.get(answer.headers["location"])
    assert "Square wasn&#x27;t allowed to be connected." in page.text
    assert "agree when Square asks" in page.text
    assert answer.headers["x-request-id"] in page.text
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert (integration["status"], "said no" in integration["last_error"]) == ("disconnected", True)
    again = await hub.http.get(CALLBACK, params={"state": state, "code": "c"}, headers=JSON)
    assert again.json()["code"] == "OAUTH_STATE_INVALID"


async def test_a_code_the_provider_does_not_know(hub: Hub) -> None:
    state = query_of(await begin(hub))["state"]
    answer = await hub.http.get(CALLBACK, params={"state": state, "code": "made-up"}, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert "made-up" not in answer.text
    assert await hub.rows("SELECT * FROM oauth_tokens") == []


async def test_a_failed_authorization_leaves_a_connected_integration_alone(hub: Hub) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    state = query_of(await begin(hub))["state"]
    await hub.http.get(CALLBACK, params={"state": state, "error": "access_denied"}, headers=JSON)
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert integration["status"] == "connected"
    assert len(await hub.rows("SELECT * FROM oauth_tokens")) == 1


async def test_a_failed_authorization_leaves_a_broken_integration_broken(hub: Hub) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    await hub.execute("UPDATE integration_configs SET status = 'error'")
    state = query_of(await begin(hub))["state"]
    await hub.http.get(CALLBACK, params={"state": state, "error": "access_denied"}, headers=JSON)
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert integration["status"] == "error"


async def test_a_provider_without_an_application_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(hub.context.settings), "client_app", lambda *_: None)
    answer = await hub.post(f"{API}/connect/square", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()["code"]) == (400, "PROVIDER_NOT_SUPPORTED")
    assert "SQUARE_CLIENT_ID" in answer.json()["error"]


async def test_credentials_for_a_provider_that_wants_authorization(hub: Hub) -> None:
    answer = await hub.post(f"{API}/connect/square", {"venueId": str(OURS), "credentials": {"apiKey": "x"}})
    assert (answer.status_code, answer.json()["code"]) == (400, "PROVIDER_NOT_SUPPORTED")


async def test_disconnect_revokes_at_the_provider(hub: Hub) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    [row] = await hub.rows("SELECT * FROM oauth_tokens")
    where = Place(OAuthToken.__tablename__, "encrypted_access_token", row["id"], OURS, "square", "sandbox")
    token = (await hub.context.vault.open(row["encrypted_access_token"], where)).reveal()
    assert await _merchant(hub, token) == 200
    answer = await hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)})
    assert answer.status_code == 200
    assert await hub.rows("SELECT * FROM oauth_tokens") == []
    assert await _merchant(hub, token) == 401


async def test_disconnect_revokes_the_token_there_is_when_it_ends(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    revoked: list[str] = []

    async def revoke(*_: Any, credentials: Credentials, **__: Any) -> None:
        revoked.append(credentials.values["access_token"].reveal())

    monkeypatch.setattr("engine.auth.revoke", revoke)
    async with hub.context.sessions.begin() as session:  # a refresh that is under way
        token = (await session.scalars(select(OAuthToken).with_for_update())).one()
        token.encrypted_access_token = await hub.context.vault.seal(
            "newer", place(token, "encrypted_access_token")
        )
        await session.flush()
        ending = asyncio.create_task(hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)}))
        async with asyncio.timeout(20):
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not await hub.rows(waiting):  # noqa: ASYNC110 - a database has no event to wait for
                await asyncio.sleep(0.01)
    assert (await ending).status_code == 200
    assert revoked == ["newer"]


async def test_disconnect_works_when_revoking_does_not_and_says_so(hub: Hub) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    await hub.break_provider(hub.sandbox.square_url, "POST /oauth2/revoke", "status:500")
    answer = await hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)})
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "success": True,
            "message": "square integration disconnected successfully",
            "data": {"revocation": "failed"},
        },
    )
    assert await hub.rows("SELECT * FROM oauth_tokens") == []
    [entry] = await hub.rows("SELECT * FROM audit_log WHERE action = 'integration.not_revoked'")
    assert entry["details"] == {
        "revocation": "failed",
        "error": "the authorization server answered 500",
    }
    again = await hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)})
    assert "data" not in again.json()  # there is nothing to revoke any more


async def test_an_account_that_another_venue_has_is_not_revoked(hub: Hub) -> None:
    before = set(hub.sandbox.square.credentials.access)
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    both = bearer("admin", None)
    begun = await hub.post(
        f"{API}/connect/square",
        {"venueId": str(OTHERS), "config": {"syncEnabled": False}, "environment": "sandbox"},
        headers=both,
    )
    query = await approve(begun.json()["data"]["authUrl"])
    assert (await hub.http.get(CALLBACK, params=query, headers=JSON)).status_code == 200
    tokens = set(hub.sandbox.square.credentials.access) - before
    answer = await hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)})
    assert answer.json()["data"] == {"revocation": "shared"}
    assert [await _merchant(hub, token) for token in tokens] == [200, 200]
    last = await hub.post(f"{API}/square/disconnect", {"venueId": str(OTHERS)}, headers=both)
    assert last.json()["data"] == {"revocation": "done"}
    assert [await _merchant(hub, token) for token in tokens] == [401, 401]


async def test_the_error_page_shows_no_words_of_the_address(hub: Hub) -> None:
    page = await hub.http.get(
        "/integrations/error", params={"code": "<script>", "message": "Call this number <b>now</b>"}
    )
    assert page.status_code == 200
    assert "script>" not in page.text.replace("</script>", "")
    assert "Call this number" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    known = await hub.http.get("/integrations/error", params={"code": "OAUTH_STATE_INVALID"})
    assert "too old" in known.text
    for name in ("code", "error", "provider", "reference"):
        page = await hub.http.get("/integrations/error", params={name: "<img src=x> 555-0100"})
        assert "555-0100" not in page.text


async def test_the_pages_stand_alone(hub: Hub) -> None:
    for path in ("/integrations/success?provider=square", "/integrations/error?code=SYNC_FAILED"):
        page = await hub.http.get(path)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        style = re.search(r"<style>(.*)</style>", page.text, re.S)
        assert style is not None
        digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"]
        assert "prefers-color-scheme:dark" in style.group(1)
        assert '<html lang="en">' in page.text
        assert len(re.findall("<h1>", page.text)) == 1
        assert not re.search(r"<script|<link|<img|\bon\w+=|https?://|style=", page.text)


async def test_a_replayed_answer_with_a_state_is_sealed_where_it_is_kept(hub: Hub) -> None:
    body = {"venueId": str(OURS), "environment": "sandbox"}
    headers = {**bearer(), "Idempotency-Key": "oauth-1"}
    first = await hub.post(f"{API}/connect/square", body, headers=headers)
    again = await hub.post(f"{API}/connect/square", body, headers=headers)
    assert first.json() == again.json()
    state = query_of(first.json()["data"]["authUrl"])["state"]
    [row] = await hub.rows("SELECT * FROM idempotency_keys")
    assert state not in str(row)


async def _merchant(hub: Hub, token: str) -> int:
    async with httpx.AsyncClient() as client:
        answer = await client.get(
            f"{hub.sandbox.square_url}/v2/merchants/me", headers={"Authorization": f"Bearer {token}"}
        )
    return answer.status_code
