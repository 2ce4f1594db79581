from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from tests.sandbox.core import SandboxClock
from tests.sandbox.quickbooks import DEFAULT_CLIENT, DEFAULT_REALM, DEFAULT_SECRET, QuickBooks

Body = dict[str, Any]

APP = (DEFAULT_CLIENT, DEFAULT_SECRET)
CALLBACK = "http://localhost:3007/callback"
ACCOUNTING = "com.intuit.quickbooks.accounting"
ASKED = {
    "client_id": DEFAULT_CLIENT,
    "response_type": "code",
    "scope": ACCOUNTING,
    "redirect_uri": CALLBACK,
    "state": "a state",
}
DAY = 86_400


@pytest.fixture
async def books(clock: SandboxClock) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(QuickBooks(clock)),
        base_url="http://quickbooks",
        headers={"Accept": "application/json"},
    ) as client:
        yield client


async def later(books: httpx.AsyncClient, seconds: float) -> None:
    await books.post("/_sandbox/clock", json={"advance": seconds})


async def sent_back(books: httpx.AsyncClient, **more: str) -> dict[str, str]:
    answer = await books.get("/connect/oauth2", params={**ASKED, "auto_approve": "1", **more})
    assert answer.status_code == 302, answer.text
    location = urlsplit(answer.headers["location"])
    assert f"{location.scheme}://{location.netloc}{location.path}" == CALLBACK
    return dict(parse_qsl(location.query))


async def token(books: httpx.AsyncClient, **form: str) -> httpx.Response:
    return await books.post("/oauth2/v1/tokens/bearer", data=form, auth=APP)


async def exchange(books: httpx.AsyncClient, code: str, **more: str) -> httpx.Response:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, **more}
    return await token(books, **form)


async def connected(books: httpx.AsyncClient) -> Body:
    answer = await exchange(books, (await sent_back(books))["code"])
    assert answer.status_code == 200, answer.text
    body: Body = answer.json()
    return body


async def refreshed(books: httpx.AsyncClient, refresh_token: str) -> Body:
    answer = await token(books, grant_type="refresh_token", refresh_token=refresh_token)
    return {"status": answer.status_code, **answer.json()}


async def info(books: httpx.AsyncClient, access: str, realm: str = DEFAULT_REALM) -> httpx.Response:
    headers = {"Authorization": f"Bearer {access}"}
    return await books.get(f"/v3/company/{realm}/companyinfo/{realm}", headers=headers)


DEAD = {"status": 400, "error": "invalid_grant"}


async def test_the_company_is_in_the_callback_only(books: httpx.AsyncClient) -> None:
    back = await sent_back(books)
    assert (back["state"], back["realmId"]) == ("a state", DEFAULT_REALM)
    body = (await exchange(books, back["code"])).json()
    refresh, access = body.pop("refresh_token"), body.pop("access_token")
    assert body == {"token_type": "bearer", "expires_in": 3600, "x_refresh_token_expires_in": 8_640_000}
    assert refresh != access
    assert (await info(books, access)).json()["CompanyInfo"]["CompanyName"] == "Venue Demo"


async def test_another_company_can_be_chosen(books: httpx.AsyncClient) -> None:
    await books.post("/_sandbox/accounts", json={"account": "77", "name": "The Other"})
    back = await sent_back(books, _sandbox_realm="77")
    access = (await exchange(books, back["code"])).json()["access_token"]
    assert back["realmId"] == "77"
    assert (await info(books, access, "77")).json()["CompanyInfo"]["CompanyName"] == "The Other"
    refused = await info(books, access)
    assert (refused.status_code, refused.json()["Fault"]["Error"][0]["code"]) == (403, "3100")
    assert refused.json()["Fault"]["type"] == "AuthorizationFault"


async def test_signing_in_alone_brings_no_company(books: httpx.AsyncClient) -> None:
    back = await sent_back(books, scope="openid email")
    assert "realmId" not in back
    access = (await exchange(books, back["code"])).json()["access_token"]
    refused = await info(books, access)
    assert (refused.status_code, refused.json()["Fault"]["Error"][0]["code"]) == (403, "120")


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "nobody"},
        {"redirect_uri": "https://elsewhere.example/callback"},
        {"state": ""},
        {"_sandbox_realm": "5"},
    ],
)
async def test_a_bad_request_goes_nowhere(books: httpx.AsyncClient, change: dict[str, str]) -> None:
    answer = await books.get("/connect/oauth2", params={**ASKED, "auto_approve": "1", **change})
    assert answer.status_code == 400
    assert "location" not in answer.headers


async def test_an_unknown_scope_goes_back_as_an_error(books: httpx.AsyncClient) -> None:
    assert await sent_back(books, scope="everything") == {"error": "invalid_scope", "state": "a state"}


@pytest.mark.parametrize(("decision", "key"), [("allow", "code"), ("deny", "error")])
async def test_the_question_is_answered_by_its_form(
    books: httpx.AsyncClient, decision: str, key: str
) -> None:
    params = {**ASKED, "state": '"><script>'}
    page = await books.get("/connect/oauth2", params=params)
    assert page.headers["content-type"].startswith("text/html")
    assert "<form method='post'" in page.text
    assert "<script>" not in page.text
    answer = await books.post("/connect/oauth2", data={**params, "decision": decision})
    back = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
    assert (key in back, back["state"]) == (True, '"><script>')


async def test_a_code_is_good_once_and_for_ten_minutes(books: httpx.AsyncClient) -> None:
    first, late = (await sent_back(books))["code"], (await sent_back(books))["code"]
    assert (await exchange(books, first, redirect_uri=f"{CALLBACK}/other")).json() == {
        "error": "invalid_grant"
    }
    assert (await exchange(books, first)).status_code == 200
    assert (await exchange(books, first)).status_code == 400
    await later(books, 601)
    assert (await exchange(books, late)).json() == {"error": "invalid_grant"}


async def test_the_application_says_who_it_is(books: httpx.AsyncClient) -> None:
    form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK}
    path = "/oauth2/v1/tokens/bearer"
    code = (await sent_back(books))["code"]
    for proof in ({"auth": (DEFAULT_CLIENT, "wrong")}, {}, {"headers": {"Authorization": "Basic %%%"}}):
        answer = await books.post(path, data={**form, "code": code}, **proof)
        assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
    in_body = {"client_id": DEFAULT_CLIENT, "client_secret": DEFAULT_SECRET}
    assert (await books.post(path, data={**form, **in_body, "code": code})).status_code == 200
    as_json = await books.post(path, json={**form, "code": code}, auth=APP)
    assert (as_json.status_code, as_json.json()) == (400, {"error": "invalid_request"})
    assert (await token(books, grant_type="password")).json() == {"error": "unsupported_grant_type"}


async def test_a_refresh_token_changes_after_a_day(books: httpx.AsyncClient) -> None:
    first = await connected(books)
    await later(books, DAY - 1)
    same = await refreshed(books, first["refresh_token"])
    assert same["refresh_token"] == first["refresh_token"]
    assert same["access_token"] != first["access_token"]
    assert same["x_refresh_token_expires_in"] == 99 * DAY + 1
    await later(books, 1)
    changed = await refreshed(books, first["refresh_token"])
    assert changed["refresh_token"] != first["refresh_token"]
    assert changed["x_refresh_token_expires_in"] == 100 * DAY
    assert await refreshed(books, first["refresh_token"]) == DEAD
    assert (await refreshed(books, changed["refresh_token"]))["status"] == 200


async def test_a_replaced_token_may_have_a_grace(books: httpx.AsyncClient) -> None:
    switches = {"refresh_rotation_seconds": 0, "refresh_grace_seconds": 60}
    await books.post("/_sandbox/behaviour", json=switches)
    first = await connected(books)
    second = await refreshed(books, first["refresh_token"])
    assert second["refresh_token"] != first["refresh_token"]
    await later(books, 59)
    again = await refreshed(books, first["refresh_token"])
    assert again["refresh_token"] == second["refresh_token"]
    await later(books, 1)
    assert await refreshed(books, first["refresh_token"]) == DEAD


async def test_access_ends_after_an_hour(books: httpx.AsyncClient) -> None:
    access = (await connected(books))["access_token"]
    await later(books, 3600)
    assert (await info(books, access)).status_code == 200
    await later(books, 1)
    ended = await info(books, access)
    error = ended.json()["Fault"]
    assert (ended.status_code, error["type"], error["Error"][0]["code"]) == (
        401,
        "AuthenticationFault",
        "3200",
    )


async def test_a_token_nobody_knows_meets_the_gateway(books: httpx.AsyncClient) -> None:
    answer = await info(books, "nonsense")
    assert (answer.status_code, answer.json()["fault"]["error"][0]["code"]) == (401, "3200")
    assert answer.json()["warnings"] is None


async def test_a_refresh_token_lives_a_hundred_days(books: httpx.AsyncClient) -> None:
    refresh = (await connected(books))["refresh_token"]
    await later(books, 100 * DAY + 1)
    assert await refreshed(books, refresh) == DEAD


async def test_a_chain_ends_after_five_years(books: httpx.AsyncClient) -> None:
    refresh = (await connected(books))["refresh_token"]
    for _ in range(19):  # 1,805 days of 1,825
        await later(books, 95 * DAY)
        refresh = (await refreshed(books, refresh))["refresh_token"]
    form = {"grant_type": "refresh_token", "refresh_token": refresh}
    headers = {"x-include-refresh-token-hard-expires-in": "true"}
    answer = await books.post("/oauth2/v1/tokens/bearer", data=form, auth=APP, headers=headers)
    assert answer.json()["x_refresh_token_hard_expires_in"] == 20 * DAY
    assert answer.json()["x_refresh_token_expires_in"] == 20 * DAY
    await later(books, 20 * DAY + 1)
    assert await refreshed(books, refresh) == DEAD


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
async def test_revoking_ends_the_consent(books: httpx.AsyncClient, which: str) -> None:
    body, other = await connected(books), await connected(books)
    path, sent = "/v2/oauth2/tokens/revoke", {"token": body[which]}
    assert (await books.post(path, json=sent)).status_code == 401
    assert (await books.post(path, data=sent, auth=APP)).status_code == 400
    assert (await books.post(path, json={"token": "x"}, auth=APP)).status_code == 400
    assert (await books.post(path, json=sent, auth=APP)).status_code == 200
    assert (await info(books, body["access_token"])).status_code == 401
    assert await refreshed(books, body["refresh_token"]) == DEAD
    assert (await info(books, other["access_token"])).status_code == 200


async def test_control_ends_tokens(books: httpx.AsyncClient) -> None:
    body = await connected(books)
    await books.post("/_sandbox/tokens/revoke", json={"token": body["access_token"]})
    assert (await info(books, body["access_token"])).status_code == 401
    assert (await refreshed(books, body["refresh_token"]))["status"] == 200
    await books.post("/_sandbox/tokens/revoke", json={"account": DEFAULT_REALM})
    assert await refreshed(books, body["refresh_token"]) == DEAD


async def test_discovery_names_the_real_addresses(books: httpx.AsyncClient) -> None:
    found = (await books.get("/.well-known/openid_configuration/")).json()
    assert found["token_endpoint"] == "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer"
    assert found == (await books.get("/.well-known/openid_sandbox_configuration/")).json()
