"""Values of a connection: what a venue chooses, what a redirect says, and what is found out."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.contract.api.conftest import API, OURS, Hub
from tests.sandbox.mailchimp import DEFAULT_KEY
from tests.sandbox.quickbooks import DEFAULT_REALM

JSON = {"Accept": "application/json"}


async def connect(hub: Hub, provider: str, **body: Any) -> httpx.Response:
    usual = {"venueId": str(OURS), "config": {"syncEnabled": False}}
    return await hub.post(f"{API}/connect/{provider}", {**usual, **body})


async def by_consent(hub: Hub, provider: str, change: dict[str, str | None], **body: Any) -> httpx.Response:
    """Connect through the consent page; `change` alters the address the browser comes back to."""
    begun = await connect(hub, provider, **body)
    assert begun.status_code == 200, begun.text
    async with httpx.AsyncClient() as browser:
        url = httpx.URL(begun.json()["data"]["authUrl"]).copy_merge_params({"auto_approve": "1"})
        page = await browser.get(url)
    assert page.status_code == 302, page.text
    back = parse_qs(urlsplit(page.headers["location"]).query)
    query = {**{name: values[0] for name, values in back.items()}, **change}
    kept = {name: value for name, value in query.items() if value is not None}
    return await hub.http.get(f"{API}/oauth/callback/{provider}", params=kept, headers=JSON)


async def connection(hub: Hub) -> tuple[str | None, dict[str, Any]]:
    """Return the account and the values of our one integration."""
    [row] = await hub.rows("SELECT account, connection FROM integration_configs WHERE status = 'connected'")
    return row["account"], row["connection"]


async def new_audience(hub: Hub) -> str:
    async with httpx.AsyncClient() as control:
        made = await control.post(f"{hub.sandbox.mailchimp_url}/_sandbox/lists", json={"name": "Friends"})
    return str(made.json()["list"])


async def test_what_a_key_holds_and_lookups_say_is_kept(hub: Hub) -> None:
    answer = await connect(hub, "mailchimp", credentials={"apiKey": DEFAULT_KEY})
    assert answer.status_code == 200, answer.text
    account, values = await connection(hub)
    assert values.keys() == {"dc", "account_id", "list_id"}
    assert values["dc"] == "us6"
    assert values["list_id"] == next(iter(hub.sandbox.mailchimp.account.audiences))
    assert account == values["account_id"]
    assert DEFAULT_KEY not in str(values)


async def test_the_same_by_consent_with_a_token_that_never_ends(hub: Hub) -> None:
    answer = await by_consent(hub, "mailchimp", {})
    assert answer.status_code == 200, answer.text
    _, values = await connection(hub)
    assert values.keys() == {"dc", "account_id", "list_id"}
    [token] = await hub.rows("SELECT expires_at, refresh_expires_at FROM oauth_tokens")
    assert (token["expires_at"], token["refresh_expires_at"]) == (None, None)


@pytest.mark.parametrize("credentials", [{"apiKey": DEFAULT_KEY}, {}])
async def test_a_venue_chooses(hub: Hub, credentials: dict[str, str]) -> None:
    chosen = {"list_id": await new_audience(hub)}
    if credentials:
        answer = await connect(hub, "mailchimp", credentials=credentials, connection=chosen)
    else:
        answer = await by_consent(hub, "mailchimp", {}, connection=chosen)
    assert answer.status_code == 200, answer.text
    _, values = await connection(hub)
    assert values["list_id"] == chosen["list_id"]


@pytest.mark.parametrize(
    ("provider", "chosen", "told"),
    [
        ("square", {"merchant_id": "ANOTHER"}, "MDEMO"),
        ("quickbooks", {"realm_id": "9341450000000002"}, DEFAULT_REALM),
    ],
)
async def test_whose_account_it_is_says_the_provider(
    hub: Hub, provider: str, chosen: dict[str, str], told: str
) -> None:
    answer = await by_consent(hub, provider, {}, connection=chosen)
    assert answer.status_code == 200, answer.text
    account, values = await connection(hub)
    assert account == told
    assert not chosen.items() & values.items()


@pytest.mark.parametrize("credentials", [{"apiKey": DEFAULT_KEY}, {}])
@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"list": "a"}, "connection.list", "did you mean `list_id`?"),
        ({"list_id": "a/../b"}, "connection.list_id", "this doesn't look like: Audience"),
        ({"dc": "evil.example/"}, "connection.dc", "this doesn't look like: Data centre"),
    ],
)
async def test_what_is_wrong_with_a_choice_is_named(
    hub: Hub, credentials: dict[str, str], given: dict[str, str], field: str, words: str
) -> None:
    answer = await connect(hub, "mailchimp", credentials=credentials, connection=given)
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    [detail] = answer.json()["details"]
    assert detail["field"] == field
    assert words in detail["message"]
    assert await hub.rows("SELECT * FROM venue_api_keys") == []
    assert await hub.rows("SELECT * FROM oauth_states") == []


async def test_a_value_the_provider_does_not_have(hub: Hub) -> None:
    answer = await hub.connect_by_key(connection={"list_id": "a"})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert "is not a value of a connection here; it takes" in answer.json()["details"][0]["message"]


async def test_a_list_that_is_looked_up_is_not_typed(hub: Hub) -> None:
    """As text, its first letter would have been taken for the first location."""
    answer = await connect(hub, "square", connection={"location_ids": "LMAIN"})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    [detail] = answer.json()["details"]
    assert detail["field"] == "connection.location_ids"
    assert "are looked up at Square" in detail["message"]
    assert await hub.rows("SELECT * FROM oauth_states") == []


async def test_an_account_that_is_found_out_is_not_chosen(hub: Hub) -> None:
    credentials = {"apiKey": "sk_test_demo"}
    answer = await connect(hub, "stripe", credentials=credentials, connection={"account": "acct_another"})
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert [each["field"] for each in answer.json()["details"]] == ["connection.account"]
    assert await hub.rows("SELECT * FROM venue_api_keys") == []


async def test_the_redirect_names_the_company(hub: Hub) -> None:
    answer = await by_consent(hub, "quickbooks", {})
    assert answer.status_code == 200, answer.text
    account, values = await connection(hub)
    assert (account, values["realm_id"]) == (DEFAULT_REALM, DEFAULT_REALM)
    assert values.keys() == {"realm_id", "income_account", "refund_account"}
    [token] = await hub.rows("SELECT expires_at, refresh_expires_at FROM oauth_tokens")
    left = token["refresh_expires_at"] - datetime.now(UTC)
    assert timedelta(days=99) < left <= timedelta(days=100)


@pytest.mark.parametrize("realm", [None, "", "9341450000000001/../x"])
async def test_a_redirect_without_the_company_connects_nothing(hub: Hub, realm: str | None) -> None:
    answer = await by_consent(hub, "quickbooks", {"realmId": realm})
    assert (answer.status_code, answer.json()["code"]) == (502, "OAUTH_EXCHANGE_FAILED")
    assert await hub.rows("SELECT * FROM oauth_tokens") == []
    [row] = await hub.rows("SELECT status FROM integration_configs")
    assert row["status"] == "disconnected"


async def test_a_redirect_that_names_another_company_connects_nothing(hub: Hub) -> None:
    answer = await by_consent(hub, "quickbooks", {"realmId": "9341450000000002"})
    assert (answer.status_code, answer.json()["code"]) == (401, "CONNECTION_TEST_FAILED")
    assert await hub.rows("SELECT * FROM oauth_tokens") == []
