"""The authorization server that credentials are tested against does what the RFCs say."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.authorization_server import (
    AuthorizationServer,
    Behaviour,
    Fault,
    running_authorization_server,
)

BACK = "https://hub.example/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


def authorize(server: AuthorizationServer, **changes: str | None) -> httpx.Response:
    asked = {
        "client_id": server.client_id,
        "response_type": "code",
        "redirect_uri": BACK,
        "scope": "read",
        "state": "s1",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **changes,
    }
    params = {name: value for name, value in asked.items() if value is not None}
    return httpx.get(f"{server.url}/authorize", params=params)


def returned(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 302
    return {
        name: values[0] for name, values in parse_qs(urlsplit(response.headers["Location"]).query).items()
    }


def token(server: AuthorizationServer, **fields: str) -> httpx.Response:
    auth = (server.client_id, server.client_secret)
    return httpx.post(f"{server.url}/token", data=fields, auth=auth)


def refresh(server: AuthorizationServer, refresh_token: str) -> httpx.Response:
    return token(server, grant_type="refresh_token", refresh_token=refresh_token)


def exchange(server: AuthorizationServer, code: str, **changes: str) -> httpx.Response:
    fields = {"redirect_uri": BACK, "code_verifier": VERIFIER, **changes}
    return token(server, grant_type="authorization_code", code=code, **fields)


def test_a_code_is_good_once_and_only_with_its_verifier(server: AuthorizationServer) -> None:
    back = returned(authorize(server))
    assert back["state"] == "s1"
    refused = exchange(server, back["code"], code_verifier="w" * 43)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    answer = exchange(server, back["code"]).json()
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 3600, "read")
    assert server.lives(answer["access_token"])
    assert exchange(server, back["code"]).json()["error"] == "invalid_grant"
    assert server.counts["exchanged"] == 1


def test_what_an_authorization_may_not_leave_out(server: AuthorizationServer) -> None:
    for changes in (
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge_method": "plain"},
    ):
        assert returned(authorize(server, **changes))["error"] == "invalid_request"
    assert authorize(server, client_id="nobody").status_code == 400
    server.behaviour.redirect_uris = ("https://hub.example/other",)
    assert authorize(server).status_code == 400
    server.behaviour.redirect_uris = (BACK,)
    server.behaviour.approves, server.behaviour.issuer = False, "https://issuer.example"
    assert returned(authorize(server)) == {
        "error": "access_denied",
        "error_description": returned(authorize(server))["error_description"],
        "state": "s1",
        "iss": "https://issuer.example",
    }


def test_a_used_refresh_token_ends_the_family(server: AuthorizationServer) -> None:
    first = server.grant()
    second = refresh(server, first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    again = refresh(server, first["refresh_token"])
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert refresh(server, second["refresh_token"]).json()["error"] == "invalid_grant"
    assert server.lives(second["access_token"]) is None
    assert (server.counts["refresh_token"], server.counts["refreshed"], server.counts["reused"]) == (3, 1, 1)


def test_within_the_grace_a_used_refresh_token_works_on(server: AuthorizationServer) -> None:
    server.behaviour.grace_seconds = 60
    first = server.grant()
    for _ in range(2):
        assert refresh(server, first["refresh_token"]).is_success
    server.advance(61)
    assert refresh(server, first["refresh_token"]).json()["error"] == "invalid_grant"
    assert server.counts["reused"] == 1


def test_one_that_is_kept_comes_not_back(server: AuthorizationServer) -> None:
    server.behaviour.rotates = False
    first = server.grant()
    for _ in range(2):
        assert "refresh_token" not in refresh(server, first["refresh_token"]).json()


def test_tokens_end(server: AuthorizationServer) -> None:
    server.behaviour.refresh_seconds = 100
    first = server.grant()
    server.advance(101)
    assert refresh(server, first["refresh_token"]).json()["error"] == "invalid_grant"
    assert server.lives(first["access_token"])
    server.advance(3600)
    assert server.lives(first["access_token"]) is None


@pytest.mark.parametrize("place", ["header", "body", "json"])
def test_the_client_says_who_it_is_in_one_place(place: Any) -> None:
    with running_authorization_server(Behaviour(client_auth=place)) as server:
        given = server.grant()
        fields = {"grant_type": "refresh_token", "refresh_token": given["refresh_token"]}
        secret = {"client_id": server.client_id, "client_secret": server.client_secret}
        url = f"{server.url}/token"
        tries: dict[str, Callable[[], httpx.Response]] = {
            "header": lambda: httpx.post(url, data=fields, auth=(server.client_id, server.client_secret)),
            "body": lambda: httpx.post(url, data={**fields, **secret}),
            "json": lambda: httpx.post(url, json={**fields, **secret}),
        }
        answers = {name: ask() for name, ask in tries.items() if name != place}
        assert {answer.status_code for answer in answers.values()} <= {400, 401}
        assert tries[place]().is_success


def test_revoking_either_token_ends_all(server: AuthorizationServer) -> None:
    for kind in ("access_token", "refresh_token"):
        given = server.grant()
        auth = (server.client_id, server.client_secret)
        assert httpx.post(f"{server.url}/revoke", data={"token": given[kind]}, auth=auth).status_code == 200
        assert server.lives(given["access_token"]) is None
        assert refresh(server, given["refresh_token"]).json()["error"] == "invalid_grant"
    assert (server.counts["revoke"], server.counts["revoked"]) == (2, 2)


def test_resources_take_a_living_token(server: AuthorizationServer) -> None:
    given = server.grant()
    bearer = {"Authorization": f"Bearer {given['access_token']}"}
    assert httpx.get(f"{server.url}/me", headers=bearer).json() == {"account": "account-1", "path": "/me"}
    assert httpx.get(f"{server.url}/me").status_code == 401


def test_faults_come_before_or_after_the_work(server: AuthorizationServer) -> None:
    given = server.grant()
    server.faults += [
        Fault(status=500, body=b"oops"),
        Fault.refuse("temporarily_unavailable"),
        Fault(drop=True, after=True),
    ]
    assert refresh(server, given["refresh_token"]).status_code == 500
    assert refresh(server, given["refresh_token"]).json()["error"] == "temporarily_unavailable"
    with pytest.raises(httpx.RemoteProtocolError):
        refresh(server, given["refresh_token"])
    assert (server.counts["refresh_token"], server.counts["refreshed"]) == (3, 1)
    assert refresh(server, given["refresh_token"]).json()["error"] == "invalid_grant"  # it was used


def test_answers_are_what_a_test_makes_of_them() -> None:
    behaviour = Behaviour(answer={"expires_in": "3600", "scope": None})
    with running_authorization_server(behaviour) as server:
        answer = refresh(server, server.grant("read")["refresh_token"]).json()
    assert answer["expires_in"] == "3600"
    assert "scope" not in answer
