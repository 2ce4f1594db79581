"""OAuth: begin, come back, and everything that may go wrong on the way."""

import asyncio
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import select

from engine.ports import Credentials
from server.credentials import place
from server.db.models import OAuthToken
from server.vault import Context as Place
from tests.contract.api.conftest import API, OURS, USER_ID, Hub, bearer

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


async def test_a_state_is_its_providers(hub: Hub) -> None:
    query = await approve(await begin(hub))
    await hub.execute("UPDATE oauth_states SET integration_type = 'other'")
    answer = await hub.http.get(CALLBACK, params=query, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (401, "OAUTH_STATE_INVALID")


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
    [integration] = await hub.rows("SELECT * FROM integration_configs")
    assert (integration["status"], "access_denied" in integration["last_error"]) == ("disconnected", True)
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


async def test_disconnect_works_when_revoking_does_not(hub: Hub) -> None:
    await hub.http.get(CALLBACK, params=await approve(await begin(hub)), headers=JSON)
    await hub.break_provider(hub.sandbox.square_url, "POST /oauth2/revoke", "status:500")
    answer = await hub.post(f"{API}/square/disconnect", {"venueId": str(OURS)})
    assert answer.status_code == 200
    assert await hub.rows("SELECT * FROM oauth_tokens") == []


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
