import base64
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

Body = dict[str, Any]

VERIFIER = "a-verifier-of-at-least-forty-three-characters-0123456789"
CALLBACK = "http://127.0.0.1:3007/callback"
CLIENT = {"client_id": "sq0idp-demo"}
SECRET = {**CLIENT, "client_secret": "sq0csp-demo"}


def challenge() -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def code_for(client: httpx.AsyncClient, **more: str) -> str:
    params = {
        **CLIENT,
        "scope": "ITEMS_READ MERCHANT_PROFILE_READ",
        "state": "a state",
        "redirect_uri": CALLBACK,
        "auto_approve": "1",
        **more,
    }
    answer = await client.get("/oauth2/authorize", params=params)
    assert answer.status_code == 302, answer.text
    location = urlsplit(answer.headers["location"])
    assert f"{location.scheme}://{location.netloc}{location.path}" == CALLBACK
    query = parse_qs(location.query)
    assert query["state"] == ["a state"]
    return query["code"][0]


async def token(client: httpx.AsyncClient, **body: str) -> httpx.Response:
    return await client.post("/oauth2/token", json=body)


async def exchanged(client: httpx.AsyncClient, *, pkce: bool) -> Body:
    code = await code_for(client, **({"code_challenge": challenge()} if pkce else {}))
    proof = {**CLIENT, "code_verifier": VERIFIER} if pkce else SECRET
    grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    answer = await token(client, **proof, **grant)
    assert answer.status_code == 200, answer.text
    body: Body = answer.json()
    return body


async def refreshed(client: httpx.AsyncClient, proof: dict[str, str], refresh_token: str) -> httpx.Response:
    return await token(client, **proof, grant_type="refresh_token", refresh_token=refresh_token)


async def merchant(client: httpx.AsyncClient, access_token: str) -> tuple[int, str]:
    answer = await client.get("/v2/merchants/me", headers={"Authorization": f"Bearer {access_token}"})
    body = answer.json()
    return answer.status_code, body["errors"][0]["code"] if "errors" in body else body["merchant"]["id"]


async def test_code_flow_gives_a_token_that_works(square: httpx.AsyncClient) -> None:
    body = await exchanged(square, pkce=False)
    # 30 days after 2025-10-09T08:53:20Z
    assert (body["expires_at"], body["merchant_id"]) == ("2025-11-08T08:53:20.000Z", "MDEMO")
    assert (body["token_type"], body["short_lived"]) == ("bearer", False)
    assert not {"expires_in", "refresh_token_expires_at"} & set(body)
    assert await merchant(square, body["access_token"]) == (200, "MDEMO")
    headers = {"Authorization": f"Bearer {body['access_token']}"}
    status = (await square.post("/oauth2/token/status", headers=headers)).json()
    assert status["scopes"] == ["ITEMS_READ", "MERCHANT_PROFILE_READ"]
    customers = await square.get("/v2/customers", headers=headers)
    assert customers.json()["errors"][0]["code"] == "INSUFFICIENT_SCOPES"


async def test_a_code_is_good_once(square: httpx.AsyncClient) -> None:
    code = await code_for(square)
    grant = {**SECRET, "grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    assert (await token(square, **grant)).status_code == 200
    again = await token(square, **grant)
    assert (again.status_code, again.json()["errors"][0]["category"]) == (401, "AUTHENTICATION_ERROR")


async def test_a_code_is_good_for_five_minutes(square: httpx.AsyncClient) -> None:
    grant = {**SECRET, "grant_type": "authorization_code", "redirect_uri": CALLBACK}
    in_time, late = await code_for(square), await code_for(square)
    await square.post("/_sandbox/clock", json={"advance": 300})
    assert (await token(square, **grant, code=in_time)).status_code == 200
    await square.post("/_sandbox/clock", json={"advance": 1})
    assert (await token(square, **grant, code=late)).status_code == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"client_secret": "wrong"}, 401),
        ({"client_id": "sq0idp-nobody"}, 401),
        ({"code": "wrong"}, 401),
        ({"redirect_uri": "http://127.0.0.1:3007/other"}, 401),
        ({"grant_type": "password"}, 400),
    ],
)
async def test_a_bad_exchange_is_a_list_of_errors(
    square: httpx.AsyncClient, change: dict[str, str], status: int
) -> None:
    grant = {"grant_type": "authorization_code", "code": await code_for(square), "redirect_uri": CALLBACK}
    answer = await token(square, **{**SECRET, **grant, **change})
    assert answer.status_code == status
    assert isinstance(answer.json()["errors"], list)


async def test_the_token_call_takes_json(square: httpx.AsyncClient) -> None:
    answer = await square.post(
        "/oauth2/token", data={**SECRET, "grant_type": "authorization_code", "code": "x"}
    )
    assert answer.status_code == 415


async def test_code_flow_keeps_its_refresh_token(square: httpx.AsyncClient) -> None:
    first = await exchanged(square, pkce=False)
    second = (await refreshed(square, SECRET, first["refresh_token"])).json()
    assert second["refresh_token"] == first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    assert (await refreshed(square, SECRET, first["refresh_token"])).status_code == 200
    assert (await refreshed(square, CLIENT, first["refresh_token"])).status_code == 401  # no secret


async def test_pkce_needs_the_right_verifier(square: httpx.AsyncClient) -> None:
    for proof in ({"code_verifier": VERIFIER[::-1]}, {}):
        code = await code_for(square, code_challenge=challenge())
        grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        assert (await token(square, **CLIENT, **proof, **grant)).status_code in (400, 401)


async def test_pkce_refresh_tokens_are_good_once(square: httpx.AsyncClient) -> None:
    first = await exchanged(square, pkce=True)
    assert first["refresh_token_expires_at"] == "2026-01-07T08:53:20.000Z"  # 90 days
    second = (await refreshed(square, CLIENT, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    spent = await refreshed(square, CLIENT, first["refresh_token"])
    assert (spent.status_code, spent.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    third = await refreshed(square, CLIENT, second["refresh_token"])
    assert await merchant(square, third.json()["access_token"]) == (200, "MDEMO")


async def test_tokens_end(square: httpx.AsyncClient) -> None:
    body = await exchanged(square, pkce=True)
    await square.post("/_sandbox/clock", json={"advance": 30 * 86_400})
    assert (await merchant(square, body["access_token"]))[0] == 200
    await square.post("/_sandbox/clock", json={"advance": 1})
    assert await merchant(square, body["access_token"]) == (401, "ACCESS_TOKEN_EXPIRED")
    await square.post("/_sandbox/clock", json={"advance": 60 * 86_400})
    assert (await refreshed(square, CLIENT, body["refresh_token"])).status_code == 401


async def test_revoking_ends_all_tokens_of_the_seller(square: httpx.AsyncClient) -> None:
    body = await exchanged(square, pkce=False)
    other = (await refreshed(square, SECRET, body["refresh_token"])).json()["access_token"]
    request = {**CLIENT, "access_token": body["access_token"]}
    refused = await square.post("/oauth2/revoke", json=request)  # a bearer token does not authorize this
    assert refused.status_code == 401
    secret = {"Authorization": "Client sq0csp-demo"}
    only = await square.post(
        "/oauth2/revoke", json={**request, "revoke_only_access_token": True}, headers=secret
    )
    assert only.json() == {"success": True}
    assert await merchant(square, body["access_token"]) == (401, "ACCESS_TOKEN_REVOKED")
    assert (await merchant(square, other))[0] == 200
    await square.post("/oauth2/revoke", json={**CLIENT, "merchant_id": "MDEMO"}, headers=secret)
    assert await merchant(square, other) == (401, "ACCESS_TOKEN_REVOKED")
    assert (await refreshed(square, SECRET, body["refresh_token"])).status_code == 401


async def test_control_revokes_one_token(square: httpx.AsyncClient) -> None:
    body = await exchanged(square, pkce=False)
    await square.post("/_sandbox/tokens/revoke", json={"token": body["access_token"]})
    assert await merchant(square, body["access_token"]) == (401, "ACCESS_TOKEN_REVOKED")
    assert (await refreshed(square, SECRET, body["refresh_token"])).status_code == 200


@pytest.mark.parametrize(("decision", "key"), [("allow", "code"), ("deny", "error")])
async def test_the_question_is_answered_by_its_form(
    square: httpx.AsyncClient, decision: str, key: str
) -> None:
    params = {**CLIENT, "scope": "ITEMS_READ", "state": '"><script>', "redirect_uri": CALLBACK}
    page = await square.get("/oauth2/authorize", params=params)
    assert page.headers["content-type"].startswith("text/html")
    assert "<form method='post'" in page.text
    assert "<script>" not in page.text
    answer = await square.post("/oauth2/authorize", data={**params, "decision": decision})
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert answer.status_code == 302
    assert key in query
    assert query["state"] == ['"><script>']


@pytest.mark.parametrize(
    "change",
    [{"client_id": "sq0idp-nobody"}, {"redirect_uri": "https://elsewhere.example/callback"}],
)
async def test_nobody_is_sent_to_an_address_that_is_not_the_applications(
    square: httpx.AsyncClient, change: dict[str, str]
) -> None:
    params = {**CLIENT, "scope": "ITEMS_READ", "redirect_uri": CALLBACK, "auto_approve": "1", **change}
    answer = await square.get("/oauth2/authorize", params=params)
    assert answer.status_code in (400, 401)
    assert "location" not in answer.headers


async def test_an_unknown_scope_goes_back_as_an_error(square: httpx.AsyncClient) -> None:
    params = {**CLIENT, "scope": "EVERYTHING", "redirect_uri": CALLBACK, "auto_approve": "1"}
    answer = await square.get("/oauth2/authorize", params=params)
    assert parse_qs(urlsplit(answer.headers["location"]).query)["error"] == ["invalid_scope"]
