"""Trying credentials: what the provider says of them, and that nothing is kept."""

from typing import Any

import pytest

from tests.canary import MARK
from tests.contract.api.conftest import API, OTHERS, OURS, Hub, bearer

GOOD = f"sk_test_demo_{MARK}"
KEPT = ("integration_configs", "venue_api_keys", "oauth_tokens", "oauth_states", "sync_queue")


async def nothing_is_stored(hub: Hub) -> bool:
    return not any([await hub.rows(f"SELECT * FROM {table}") for table in KEPT])


@pytest.mark.parametrize(
    "body",
    [
        {"apiKey": GOOD},
        {"credentials": {"apiKey": GOOD}, "environment": "sandbox"},
        {"apiKey": GOOD, "venueId": str(OURS)},
    ],
)
async def test_a_good_key_is_valid_and_not_stored(hub: Hub, body: dict[str, Any]) -> None:
    answer = await hub.post(f"{API}/stripe/api-key", body)
    assert (answer.status_code, answer.json()) == (200, {"success": True, "data": {"valid": True}})
    assert await nothing_is_stored(hub)
    [entry] = await hub.rows("SELECT * FROM audit_log")
    assert (entry["action"], entry["integration_type"]) == ("credentials.validated", "stripe")
    assert entry["details"] == {"environment": body.get("environment", "production"), "valid": True}
    assert GOOD not in str(entry)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sk_test_wrong", "Stripe refuses these credentials"),
        ("pk_test_1", "this doesn't look like: Secret or restricted key"),
        ("nonsense", "this doesn't look like: Secret or restricted key"),
    ],
)
async def test_a_bad_key_is_not_valid_and_not_repeated(hub: Hub, key: str, words: str) -> None:
    answer = await hub.post(f"{API}/stripe/api-key", {"apiKey": key})
    data = answer.json()["data"]
    assert (answer.status_code, data["valid"]) == (200, False)
    assert words in data["reason"]
    assert key not in answer.text
    assert await nothing_is_stored(hub)
    [entry] = await hub.rows("SELECT details FROM audit_log")
    assert entry["details"]["valid"] is False


async def test_a_key_that_may_not_do_enough_is_not_valid(hub: Hub) -> None:
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:403")
    data = (await hub.post(f"{API}/stripe/api-key", {"apiKey": GOOD})).json()["data"]
    assert data["valid"] is False
    assert "may not do all that is needed" in data["reason"]


async def test_a_provider_that_can_not_be_asked_is_no_answer(hub: Hub) -> None:
    await hub.break_provider(hub.sandbox.stripe_url, "GET /v1/products", "status:400")
    answer = await hub.post(f"{API}/stripe/api-key", {"apiKey": GOOD})
    assert (answer.status_code, answer.json()["code"]) == (502, "SYNC_FAILED")
    assert await nothing_is_stored(hub)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["credentials.apiKey"]),
        ({"apiKey": ""}, ["credentials.apiKey"]),
        ({"apiKey": GOOD, "apiSecret": "x"}, ["credentials.apiSecret"]),
        ({"credentials": {"apiKy": GOOD}}, ["credentials.apiKy", "credentials.apiKey"]),
        ({"apiKey": GOOD, "connection": {"colour": "red"}}, ["connection.colour"]),
        ({"apiKey": 5}, ["apiKey"]),
        ({"apiKey": "x" * 4097}, ["apiKey"]),
        ({"credentials": {"apiKey": "x" * 4097}}, ["credentials.apiKey"]),
        ({"apiKey": GOOD, "environment": "staging"}, ["environment"]),
    ],
)
async def test_a_body_that_is_wrong_is_named(hub: Hub, body: dict[str, Any], fields: list[str]) -> None:
    answer = await hub.post(f"{API}/stripe/api-key", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer.json()["details"]] == fields
    assert await hub.rows("SELECT * FROM audit_log WHERE action <> 'access.denied'") == []


async def test_a_provider_that_takes_no_key(hub: Hub) -> None:
    answer = await hub.post(f"{API}/square/api-key", {"apiKey": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "PROVIDER_NOT_SUPPORTED")
    unknown = await hub.post(f"{API}/strip/api-key", {"apiKey": "x"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "INVALID_PROVIDER")


@pytest.mark.parametrize(
    ("headers", "venue", "status"),
    [
        (bearer("user"), None, 403),
        (bearer("venue_admin"), str(OTHERS), 403),
        (bearer("admin", None), str(OTHERS), 200),
        ({}, None, 401),
    ],
)
async def test_who_may_ask(hub: Hub, headers: dict[str, str], venue: str | None, status: int) -> None:
    body = {"apiKey": GOOD, **({"venueId": venue} if venue else {})}
    answer = await hub.post(f"{API}/stripe/api-key", body, headers=headers)
    assert answer.status_code == status
