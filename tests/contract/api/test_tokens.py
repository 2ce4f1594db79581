"""Renewing a token by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import text

from server import renewal
from server.credentials import TokenRefreshError
from tests.contract.api.conftest import API, OURS, USER_ID, Hub

REFRESH = f"{API}/oauth/refresh/square"
BODY = {"venueId": str(OURS)}


async def connect(hub: Hub) -> None:
    """Connect our venue to Square by consent."""
    begun = await hub.post(
        f"{API}/connect/square",
        {"venueId": str(OURS), "config": {"syncEnabled": False}, "environment": "sandbox"},
    )
    async with httpx.AsyncClient() as browser:
        url = httpx.URL(begun.json()["data"]["authUrl"]).copy_merge_params({"auto_approve": "1"})
        page = await browser.get(url)
    query = parse_qs(urlsplit(page.headers["location"]).query)
    answer = await hub.http.get(
        f"{API}/oauth/callback/square",
        params={name: values[0] for name, values in query.items()},
        headers={"Accept": "application/json"},
    )
    assert answer.status_code == 200, answer.text


async def actions(hub: Hub) -> list[tuple[str, str]]:
    rows = await hub.rows("SELECT actor, action FROM audit_log WHERE action LIKE 'token.%' ORDER BY id")
    return [(row["actor"], row["action"]) for row in rows]


async def test_a_new_token_and_when_it_ends(hub: Hub) -> None:
    await connect(hub)
    [before] = await hub.rows("SELECT encrypted_access_token FROM oauth_tokens")
    answer = await hub.post(REFRESH, BODY)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["success"], told["message"]) == (True, "Token refreshed successfully")
    ends = datetime.fromisoformat(told["data"]["expiresAt"])
    assert timedelta(days=29) < ends - datetime.now(UTC) <= timedelta(days=30)
    [token] = await hub.rows("SELECT * FROM oauth_tokens")
    assert token["encrypted_access_token"] != before["encrypted_access_token"]
    assert (token["refresh_count"], token["expires_at"]) == (1, ends)
    assert await actions(hub) == [(USER_ID, "token.renewed")]


async def test_many_at_once_share_renewals(hub: Hub) -> None:
    await connect(hub)
    answers = await asyncio.gather(*(hub.post(REFRESH, BODY) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    # They came one after the other into one process, so those that came late found it done, or began anew.
    [token] = await hub.rows("SELECT refresh_count FROM oauth_tokens")
    assert token["refresh_count"] < 20


async def test_a_provider_that_is_down(hub: Hub) -> None:
    await connect(hub)
    await hub.break_provider(hub.sandbox.square_url, "POST /oauth2/token", "status:503")
    answer = await hub.post(REFRESH, BODY)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (502, "TOKEN_REFRESH_FAILED")
    assert "tried again by itself" in told["error"]
    [integration] = await hub.rows("SELECT status FROM integration_configs")
    assert integration["status"] == "connected"
    assert await actions(hub) == [(USER_ID, "token.renewal_failed")]


async def test_a_grant_that_is_over(hub: Hub) -> None:
    await connect(hub)
    async with httpx.AsyncClient() as control:
        url = f"{hub.sandbox.square_url}/_sandbox/tokens/revoke"
        (await control.post(url, json={"account": "MDEMO"})).raise_for_status()
    used = hub.context.credentials(OURS, "square")
    with pytest.raises(TokenRefreshError):  # as a run does whose token was refused
        await used.refresh(await used.current())
    answer = await hub.post(REFRESH, BODY)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (502, "TOKEN_REFRESH_FAILED")
    assert told["error"].endswith("connect again")
    [integration] = await hub.rows("SELECT status, last_error FROM integration_configs")
    assert integration["status"] == "error"
    assert "connect again" in integration["last_error"]
    assert await actions(hub) == [("hub", "token.refused"), (USER_ID, "token.renewal_failed")]

    await connect(hub)
    assert (await hub.post(REFRESH, BODY)).status_code == 200


async def test_a_lock_held_elsewhere_is_no_matter_of_credentials(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect(hub)
    monkeypatch.setattr(renewal, "LOCK_SECONDS", 0.2)
    async with hub.context.engine.begin() as elsewhere:
        await elsewhere.execute(text("SELECT 1 FROM oauth_tokens FOR UPDATE"))
        answer = await hub.post(REFRESH, BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")
    assert "retry-after" in answer.headers
    [integration] = await hub.rows("SELECT status FROM integration_configs")
    assert integration["status"] == "connected"


async def test_where_there_is_nothing_to_renew(hub: Hub) -> None:
    answer = await hub.post(REFRESH, BODY)
    assert (answer.status_code, answer.json()["code"]) == (404, "INTEGRATION_NOT_FOUND")
    assert (await hub.connect_by_key()).is_success
    answer = await hub.post(f"{API}/oauth/refresh/stripe", BODY)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert "connected with a key" in answer.json()["error"]
    await connect(hub)
    await hub.execute("UPDATE oauth_tokens SET encrypted_refresh_token = NULL")
    answer = await hub.post(REFRESH, BODY)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    await hub.execute("DELETE FROM oauth_tokens")
    answer = await hub.post(REFRESH, BODY)
    assert (answer.status_code, answer.json()["code"]) == (409, "CREDENTIALS_NOT_FOUND")


# --- taking a failed integration up again

RECONNECT = f"{API}/square/reconnect"


async def fail(hub: Hub) -> None:
    await hub.execute(
        "UPDATE integration_configs SET status = 'error', failure_count = 3, last_error = 'x', "
        "last_error_at = now()"
    )


async def state(hub: Hub) -> tuple[str, int, str | None]:
    [row] = await hub.rows("SELECT status, failure_count, last_error FROM integration_configs")
    return row["status"], row["failure_count"], row["last_error"]


async def test_a_failed_integration_is_taken_up_again_with_a_new_token(hub: Hub) -> None:
    await connect(hub)
    await fail(hub)
    answer = await hub.post(RECONNECT, BODY)
    assert answer.json() == {"success": True, "message": "Integration reconnected successfully"}
    assert await state(hub) == ("connected", 0, None)
    [token] = await hub.rows("SELECT refresh_count FROM oauth_tokens")
    assert token["refresh_count"] == 1
    [entry] = await hub.rows("SELECT before, after FROM audit_log WHERE action = 'integration.reconnected'")
    assert (entry["before"] or {}).get("status") in ("error", "connected")


async def test_a_grant_that_is_over_is_not_taken_up_again(hub: Hub) -> None:
    await connect(hub)
    async with httpx.AsyncClient() as control:
        (await control.post(f"{hub.sandbox.square_url}/_sandbox/reset")).raise_for_status()
    await fail(hub)
    answer = await hub.post(RECONNECT, BODY)
    assert answer.status_code in (401, 502)
    assert answer.json()["code"] in ("CONNECTION_TEST_FAILED", "TOKEN_REFRESH_FAILED")
    assert (await state(hub))[0] == "error"


async def test_a_key_is_tried(hub: Hub) -> None:
    await hub.connect_by_key()
    await fail(hub)
    assert (await hub.post(f"{API}/stripe/reconnect", BODY)).status_code == 200
    assert await state(hub) == ("connected", 0, None)
    await fail(hub)
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:401")
    refused = await hub.post(f"{API}/stripe/reconnect", BODY)
    assert (refused.status_code, refused.json()["code"]) == (401, "CONNECTION_TEST_FAILED")
    assert "connect again" in refused.json()["error"]
    assert (await state(hub))[0] == "error"
