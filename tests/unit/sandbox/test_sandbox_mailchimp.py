"""The Mailchimp stand-in, against what the provider's documentation says."""

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest

from tests.sandbox.core import SandboxClock
from tests.sandbox.mailchimp import DEFAULT_CLIENT, DEFAULT_KEY, DEFAULT_SECRET, Mailchimp, seed_demo
from tests.sandbox.mailchimp_audience import hash_of, signature
from tests.sandbox.running import running_sandbox

Body = dict[str, Any]
Client = httpx.AsyncClient

URIST = "Urist.McVankab@freddiesjabber.com"
URIST_HASH = "05a3125b1b57603f2150b6093990f221"  # md5sum of the address in small letters
CALLBACK = "http://127.0.0.1:3007/callback"
APP = {"client_id": DEFAULT_CLIENT, "client_secret": DEFAULT_SECRET}


def client_of(stand_in: Mailchimp, key: str = DEFAULT_KEY) -> Client:
    return Client(
        transport=httpx.ASGITransport(stand_in),
        base_url="https://us6.api.mailchimp.com",
        auth=httpx.BasicAuth("anybody", key),
    )


@pytest.fixture
def provider(clock: SandboxClock) -> Mailchimp:
    return Mailchimp(clock)


@pytest.fixture
async def api(provider: Mailchimp) -> AsyncIterator[Client]:
    async with client_of(provider) as client:
        yield client


@pytest.fixture
def audience(provider: Mailchimp) -> str:
    return f"/3.0/lists/{provider.audience.document['id']}"


async def choose(api: Client, **choices: Any) -> None:
    assert (await api.post("/_sandbox/choices", json=choices)).status_code == 200


async def advance(api: Client, seconds: float) -> None:
    assert (await api.post("/_sandbox/clock", json={"advance": seconds})).status_code == 200


async def add(api: Client, audience: str, address: str, **more: Any) -> Body:
    sent = {"email_address": address, "status": "subscribed", **more}
    answer = await api.post(f"{audience}/members", json=sent)
    assert answer.status_code == 200, answer.text
    found: Body = answer.json()
    return found


async def upsert(api: Client, audience: str, address: str, **more: Any) -> httpx.Response:
    sent = {"email_address": address, **more}
    return await api.put(f"{audience}/members/{hash_of(address)}", json=sent)


async def members(api: Client, audience: str, **query: str | int) -> list[str]:
    answer = await api.get(f"{audience}/members", params=query)
    assert answer.status_code == 200, answer.text
    return [member["email_address"] for member in answer.json()["members"]]


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and title of a problem document, which is complete."""
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
    body = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert body["status"] == answer.status_code
    return answer.status_code, body["title"]


# Who calls.


async def test_ping_and_root(api: Client) -> None:
    assert (await api.get("/3.0/ping")).json() == {"health_status": "Everything's Chimpy!"}
    for path in ("/3.0", "/3.0/"):
        body = (await api.get(path)).json()
        assert (body["account_id"], body["login_id"], body["role"]) == ("mc-demo", "login-mc-demo", "owner")


@pytest.mark.parametrize(
    ("header", "outcome"),
    [
        ({"Authorization": f"Bearer {DEFAULT_KEY}"}, 200),
        ({"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}, (401, "API Key Invalid")),
        ({"Authorization": "Basic !"}, (401, "API Key Missing")),
        ({}, (401, "API Key Missing")),
        (
            {"Authorization": f"Bearer {DEFAULT_KEY}", "Host": "us7.api.mailchimp.com"},
            (401, "API Key Invalid"),
        ),
        ({"Authorization": f"Bearer {DEFAULT_KEY}", "Host": "api.mailchimp.com"}, 200),
    ],
)
async def test_a_key_is_for_one_data_centre(
    provider: Mailchimp, header: dict[str, str], outcome: int | tuple[int, str]
) -> None:
    async with Client(
        transport=httpx.ASGITransport(provider), base_url="https://us6.api.mailchimp.com"
    ) as client:
        answer = await client.get("/3.0/ping", headers=header)
    assert (answer.status_code if outcome == 200 else told(answer)) == outcome
    assert answer.headers["X-Request-Id"]


async def test_keys_die_and_users_are_disabled(api: Client, provider: Mailchimp) -> None:
    made = (await api.post("/_sandbox/accounts", json={"account": "two", "dc": "us6"})).json()
    async with client_of(provider, made["key"]) as other:
        assert (await other.get("/3.0/")).json()["account_id"] == "two"
        await api.post("/_sandbox/accounts", json={"account": "two", "disabled": True})
        assert told(await other.get("/3.0/ping")) == (403, "User Disabled")
        await api.post("/_sandbox/tokens/revoke", json={"account": "two"})
        assert told(await other.get("/3.0/ping")) == (401, "API Key Invalid")
    assert (await api.get("/3.0/ping")).status_code == 200


async def test_ten_calls_at_a_time_for_one_user(api: Client, provider: Mailchimp) -> None:
    await api.post("/_sandbox/latency", json={"seconds": 0.05})
    second = (await api.post("/_sandbox/accounts", json={"account": "mc-demo"})).json()["key"]
    async with client_of(provider, second) as other:  # another key, the same user
        calls = [api.get("/3.0/ping") for _ in range(8)] + [other.get("/3.0/ping") for _ in range(5)]
        answers = await asyncio.gather(*calls)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [told(answer) for answer in refused] == [(429, "Too Many Requests")] * 3
    assert "retry-after" not in refused[0].headers
    assert (await api.get("/3.0/ping")).status_code == 200
    assert (await api.get("/_sandbox/calls")).json()["rate_limited"] == 3


async def test_the_edge_refuses_without_json(api: Client) -> None:
    await api.post("/_sandbox/limits", json={"requests_per_second": 1})
    answers = [await api.get("/3.0/ping") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["content-type"] == "text/html"
    await api.post("/_sandbox/limits", json={"requests_per_second": None})
    await api.post("/_sandbox/faults", json={"rules": [{"match": "*", "fault": "status:403"}]})
    answer = await api.get("/3.0/ping")
    assert (answer.status_code, answer.headers["content-type"]) == (403, "text/html")
    await api.post("/_sandbox/faults", json={"rules": [{"match": "*", "fault": "status:429"}]})
    assert told(await api.get("/3.0/ping")) == (429, "Too Many Requests")


@pytest.mark.parametrize(
    ("method", "path", "more", "outcome"),
    [
        ("GET", "/3.0/nothing", {}, (404, "Resource Not Found")),
        ("GET", "/3.0/lists/nothing", {}, (404, "Resource Not Found")),
        ("DELETE", "/3.0/ping", {}, (405, "Method Not Allowed")),
        ("POST", "/3.0/batches", {"content": b"{"}, (400, "JSON Parse Exception")),
        ("POST", "/3.0/batches", {"data": {"a": "b"}}, (415, "Unsupported Media Type")),
        ("POST", "/3.0/batches", {"json": []}, (400, "Invalid Resource")),
        (
            "GET",
            "/3.0/ping",
            {"headers": {"X-Trigger-Error": "InternalServerError"}},
            (500, "Internal Server Error"),
        ),
        (
            "POST",
            "/3.0/ping",
            {"headers": {"X-HTTP-Method-Override": "BREW"}},
            (422, "Invalid Method Override"),
        ),
    ],
)
async def test_errors_are_problem_documents(
    api: Client, method: str, path: str, more: Body, outcome: tuple[int, str]
) -> None:
    assert told(await api.request(method, path, **more)) == outcome


async def test_a_post_may_stand_for_another_method(api: Client, audience: str) -> None:
    made = await add(api, audience, "ada@mail.example")
    path, override = f"{audience}/members/{made['id']}", {"X-HTTP-Method-Override": "PATCH"}
    answer = await api.post(path, json={"language": "de"}, headers=override)
    assert answer.json()["language"] == "de"


# Signing in.


async def code_for(api: Client, **more: str) -> str:
    query = {
        "response_type": "code",
        "client_id": DEFAULT_CLIENT,
        "redirect_uri": CALLBACK,
        "state": "a state",
        "auto_approve": "1",
        **more,
    }
    answer = await api.get("/oauth2/authorize", params=query)
    assert answer.status_code == 302, answer.text
    assert answer.headers["location"].startswith(f"{CALLBACK}?")
    found = parse_qs(urlsplit(answer.headers["location"]).query)
    assert found["state"] == ["a state"]
    return found["code"][0]


def grant(code: str) -> dict[str, str]:
    return {**APP, "grant_type": "authorization_code", "redirect_uri": CALLBACK, "code": code}


async def test_a_token_has_no_end_and_finds_its_data_centre(api: Client) -> None:
    code = await code_for(api)
    answer = await api.post("/oauth2/token", data=grant(code))
    body = answer.json()
    token = body.pop("access_token")
    assert body == {"expires_in": 0, "scope": None}
    api.auth = httpx.Auth()  # nothing is added
    found = (await api.get("/oauth2/metadata", headers={"Authorization": f"OAuth {token}"})).json()
    assert (found["dc"], found["api_endpoint"]) == ("us6", "https://us6.api.mailchimp.com")
    assert found["login_url"] == "https://login.mailchimp.com"
    await advance(api, 10 * 365 * 86_400)
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await api.get("/3.0/ping", headers=bearer)).status_code == 200
    assert (await api.get("/oauth2/metadata", headers=bearer)).status_code == 401
    await choose(api, metadata_scheme="any")
    assert (await api.get("/oauth2/metadata", headers=bearer)).status_code == 200
    again = await api.post("/oauth2/token", data=grant(code))
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    await api.post("/_sandbox/tokens/revoke", json={"token": token})
    assert told(await api.get("/3.0/ping", headers=bearer)) == (401, "API Key Invalid")


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"client_secret": "wrong"}, (401, "invalid_client")),
        ({"client_secret": "é"}, (401, "invalid_client")),
        ({"client_id": "1"}, (401, "invalid_client")),
        ({"code": "wrong"}, (400, "invalid_grant")),
        ({"redirect_uri": f"{CALLBACK}2"}, (400, "invalid_grant")),
        ({"grant_type": "refresh_token"}, (400, "unsupported_grant_type")),
    ],
)
async def test_a_bad_exchange(api: Client, change: dict[str, str], outcome: tuple[int, str]) -> None:
    answer = await api.post("/oauth2/token", data={**grant(await code_for(api)), **change})
    assert (answer.status_code, answer.json()["error"]) == outcome


async def test_the_token_call_takes_a_form_and_codes_end(api: Client) -> None:
    code = await code_for(api)
    assert (await api.post("/oauth2/token", json=grant(code))).json()["error"] == "invalid_request"
    await advance(api, 601)
    assert (await api.post("/oauth2/token", data=grant(code))).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("change", [{"client_id": "1"}, {"redirect_uri": "https://elsewhere.example/"}])
async def test_nobody_is_sent_to_a_strangers_address(api: Client, change: dict[str, str]) -> None:
    query = {"response_type": "code", "client_id": DEFAULT_CLIENT, "redirect_uri": CALLBACK}
    answer = await api.get("/oauth2/authorize", params={**query, "auto_approve": "1", **change})
    assert answer.status_code == 400
    assert "location" not in answer.headers


async def test_the_question_is_asked_and_denied(api: Client) -> None:
    query = {"response_type": "code", "client_id": DEFAULT_CLIENT, "redirect_uri": CALLBACK, "state": '"><b>'}
    page = await api.get("/oauth2/authorize", params=query)
    assert "<form method='post'" in page.text
    assert "<b>" not in page.text
    answer = await api.post("/oauth2/authorize", data={**query, "decision": "deny"})
    assert parse_qs(urlsplit(answer.headers["location"]).query) == {
        "error": ["access_denied"],
        "state": ['"><b>'],
    }


# Members.


async def test_a_member_is_found_by_hash_address_and_contact_id(api: Client, audience: str) -> None:
    made = await add(api, audience, URIST, merge_fields={"FNAME": "Urist"}, tags=["vip"])
    assert (made["id"], made["status"], made["full_name"]) == (URIST_HASH, "subscribed", "Urist")
    assert made["merge_fields"] == {"FNAME": "Urist", "LNAME": "", "ADDRESS": "", "PHONE": "", "BIRTHDAY": ""}
    assert [tag["name"] for tag in made["tags"]] == ["vip"]
    assert (made["timestamp_opt"], made["last_changed"]) == ("2025-10-09T08:53:20+00:00",) * 2
    for name in (URIST_HASH, URIST.upper(), made["contact_id"]):
        assert (await api.get(f"{audience}/members/{name}")).json() == made
    again = await api.post(f"{audience}/members", json={"email_address": URIST.lower(), "status": "pending"})
    assert told(again) == (400, "Member Exists")


async def test_put_creates_and_leaves_the_status_of_those_it_knows(api: Client, audience: str) -> None:
    made = await upsert(api, audience, URIST, status_if_new="unsubscribed", tags=["vip"])
    assert (made.status_code, made.json()["status"], made.json()["tags"]) == (200, "unsubscribed", [])
    kept = await upsert(api, audience, URIST, status_if_new="subscribed", merge_fields={"LNAME": "McVankab"})
    assert (kept.json()["status"], kept.json()["full_name"]) == ("unsubscribed", "McVankab")
    back = await upsert(api, audience, URIST, status_if_new="pending", status="subscribed")
    assert back.json()["status"] == "subscribed"
    wrong = await upsert(api, audience, URIST)
    assert told(wrong) == (400, "Invalid Resource")
    assert wrong.json()["errors"] == [
        {"field": "status_if_new", "message": "This value should not be blank."}
    ]


async def test_patch_is_sparse_and_follows_a_new_address(api: Client, audience: str) -> None:
    made = await add(api, audience, "ada@mail.example", merge_fields={"FNAME": "Ada", "LNAME": "L"})
    path = f"{audience}/members/{made['id']}"
    changed = (await api.patch(path, json={"merge_fields": {"LNAME": "Lovelace"}})).json()
    assert (changed["full_name"], changed["status"]) == ("Ada Lovelace", "subscribed")
    moved = (await api.patch(path, json={"email_address": "countess@mail.example"})).json()
    assert moved["id"] == hash_of("countess@mail.example")
    assert moved["contact_id"] == made["contact_id"]
    assert told(await api.patch(path, json={})) == (404, "Resource Not Found")
    await add(api, audience, "ada@mail.example")
    clash = await api.patch(f"{audience}/members/{moved['id']}", json={"email_address": "ada@mail.example"})
    assert told(clash) == (400, "Member Exists")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"email_address": 5}, "email_address"),
        ({"status": "happy"}, "status"),
        ({"vip": "yes"}, "vip"),
        ({"language": None}, "language"),
        ({"merge_fields": {"FNAME": "x" * 256}}, "FNAME"),
        ({"merge_fields": {"FNAME": None}}, "FNAME"),
        ({"merge_fields": {"ADDRESS": "1 Stage Street"}}, "ADDRESS"),
    ],
)
async def test_what_is_wrong_with_a_member_is_said_by_field(
    api: Client, audience: str, change: Body, where: str
) -> None:
    sent = {"email_address": "ada@mail.example", "status": "subscribed", **change}
    answer = await api.post(f"{audience}/members", json=sent)
    assert told(answer) == (400, "Invalid Resource")
    assert [entry["field"] for entry in answer.json()["errors"]] == [where]
    assert await members(api, audience) == []


async def test_no_address(api: Client, audience: str) -> None:
    answer = await api.post(f"{audience}/members", json={"email_address": "ada at home", "status": "pending"})
    assert answer.json()["detail"] == "Please provide a valid email address."


async def test_required_and_unknown_merge_fields(api: Client, audience: str) -> None:
    field = {"name": "Seat", "type": "text", "tag": "seat", "required": True}
    made = (await api.post(f"{audience}/merge-fields", json=field)).json()
    assert (made["tag"], made["merge_id"]) == ("SEAT", 6)
    assert told(await api.post(f"{audience}/merge-fields", json=field)) == (400, "Bad Request")
    refused = await upsert(api, audience, URIST, status_if_new="pending", merge_fields={"ROW": "A"})
    assert refused.json()["errors"] == [{"field": "SEAT", "message": "This value should not be blank."}]
    path = f"{audience}/members/{URIST_HASH}"
    sent = {"email_address": URIST, "status_if_new": "pending", "merge_fields": {"ROW": "A"}}
    made = (await api.put(path, json=sent, params={"skip_merge_validation": "true"})).json()
    assert "ROW" not in made["merge_fields"]
    await choose(api, unknown_merge_fields="refuse")
    refused = await api.put(path, json=sent, params={"skip_merge_validation": "true"})
    assert [entry["field"] for entry in refused.json()["errors"]] == ["merge_fields.ROW"]
    fields = (await api.get(f"{audience}/merge-fields", params={"count": 2, "offset": 4})).json()
    assert [entry["tag"] for entry in fields["merge_fields"]] == ["BIRTHDAY", "SEAT"]
    assert fields["total_items"] == 6


async def test_archived_is_kept_and_erased_is_gone_and_barred(api: Client, audience: str) -> None:
    made = await add(api, audience, URIST)
    path = f"{audience}/members/{made['id']}"
    gone = await api.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await api.get(path)).json()["status"] == "archived"
    assert await members(api, audience) == [URIST]
    assert told(await api.delete(path)) == (405, "Method Not Allowed")
    assert (await upsert(api, audience, URIST, status_if_new="pending")).json()["status"] == "pending"
    assert (await api.post(f"{path}/actions/delete-permanent")).status_code == 204
    assert told(await api.get(path)) == (404, "Resource Not Found")
    barred = await upsert(api, audience, URIST, status_if_new="subscribed")
    assert told(barred) == (400, "Forgotten Email Not Subscribed")
    await choose(api, erased_are_barred=False)
    assert (await upsert(api, audience, URIST, status_if_new="subscribed")).status_code == 200


async def test_tags_are_set_by_their_own_call(api: Client, audience: str) -> None:
    made = await add(api, audience, URIST, tags=["old"])
    tags = [{"name": "old", "status": "inactive"}, {"name": "new", "status": "active"}]
    answer = await api.post(f"{audience}/members/{made['id']}/tags", json={"tags": tags})
    assert (answer.status_code, answer.content) == (204, b"")
    found = (await api.get(f"{audience}/members/{made['id']}/tags")).json()
    assert [tag["name"] for tag in found["tags"]] == ["new"]
    wrong = await api.post(f"{audience}/members/{made['id']}/tags", json={"tags": [{"name": "x"}]})
    assert wrong.json()["errors"][0]["field"] == "tags.item:0.status"


async def test_a_double_optin_audience_asks_first(api: Client) -> None:
    made = (await api.post("/_sandbox/lists", json={"double_optin": True})).json()["list"]
    audience = f"/3.0/lists/{made}"
    assert (await api.get(audience)).json()["double_optin"] is True
    refused = await upsert(api, audience, URIST, status_if_new="subscribed")
    assert refused.json()["errors"][0]["field"] == "status"
    assert (await upsert(api, audience, URIST, status_if_new="pending")).status_code == 200
    await api.post("/_sandbox/members", json={"list": made, "email": URIST, "status": "subscribed"})
    assert (await upsert(api, audience, URIST, status_if_new="pending")).json()["status"] == "subscribed"


# Pages.


async def test_pages_by_offset(api: Client, audience: str) -> None:
    for number in range(12):
        await add(api, audience, f"m{number:02}@mail.example")
    first = (await api.get(f"{audience}/members")).json()
    assert (len(first["members"]), first["total_items"]) == (10, 12)
    assert await members(api, audience, offset=10) == ["m10@mail.example", "m11@mail.example"]
    assert await members(api, audience, offset=12) == []
    newest = await members(api, audience, count=2, offset=1, sort_dir="DESC", sort_field="last_changed")
    assert newest == ["m10@mail.example", "m09@mail.example"]
    assert await members(api, audience, count=1000) == [f"m{number:02}@mail.example" for number in range(12)]
    for wrong in ({"count": 1001}, {"offset": -1}, {"count": "x"}, {"sort_field": "email"}):
        assert told(await api.get(f"{audience}/members", params=wrong)) == (400, "Invalid Resource")


async def test_only_what_changed_after_a_moment(api: Client, audience: str) -> None:
    for name in ("a", "b", "c"):
        await add(api, audience, f"{name}@mail.example")
        await advance(api, 10)  # 08:53:20, :30, :40
    since = {"since_last_changed": "2025-10-09T08:53:30+00:00"}
    assert await members(api, audience, **since) == ["c@mail.example"]
    assert await members(api, audience, since_last_changed="2025-10-09T08:53:29.5Z") == [
        "b@mail.example",
        "c@mail.example",
    ]
    before = {"before_last_changed": "2025-10-09T08:53:30Z"}
    assert await members(api, audience, **before) == ["a@mail.example"]
    await api.patch(f"{audience}/members/a@mail.example", json={"language": "fr"})  # at :50
    await api.patch(f"{audience}/members/b@mail.example", json={"language": ""})  # nothing new
    assert await members(api, audience, **since) == ["a@mail.example", "c@mail.example"]
    sort = {"sort_field": "last_changed", "sort_dir": "ASC"}
    assert await members(api, audience, **since, **sort) == ["c@mail.example", "a@mail.example"]
    await choose(api, since_is_inclusive=True)
    assert await members(api, audience, **since, **sort) == [
        "b@mail.example",
        "c@mail.example",
        "a@mail.example",
    ]
    wrong = await api.get(f"{audience}/members?since_last_changed=2025-10-09T08:53:30+00:00")  # a blank
    assert told(wrong) == (400, "Invalid Resource")


async def test_by_status(api: Client, audience: str) -> None:
    for name, status in (("a", "subscribed"), ("b", "unsubscribed"), ("c", "subscribed")):
        await add(api, audience, f"{name}@mail.example", status=status)
        await advance(api, 10)
    assert await members(api, audience, status="subscribed") == ["a@mail.example", "c@mail.example"]
    late = await members(api, audience, status="subscribed", since_last_changed="2025-10-09T08:53:25Z")
    assert late == ["c@mail.example"]
    newest = {"status": "subscribed", "sort_field": "last_changed", "sort_dir": "DESC"}
    assert await members(api, audience, **newest) == ["c@mail.example", "a@mail.example"]
    assert await members(api, audience, **newest, before_last_changed="2025-10-09T08:53:40Z") == [
        "a@mail.example"
    ]
    opted = await members(api, audience, since_timestamp_opt="2025-10-09T08:53:00Z", sort_dir="DESC")
    assert opted == ["c@mail.example", "a@mail.example"]
    left = {"status": "unsubscribed", "unsubscribed_since": "2025-10-09T08:53:20Z"}
    assert await members(api, audience, **left) == ["b@mail.example"]
    left["unsubscribed_since"] = "2025-10-09T08:53:30Z"
    assert await members(api, audience, **left) == []


async def test_parts_of_an_answer(api: Client, audience: str) -> None:
    await add(api, audience, URIST)
    query = {"fields": "members.id,members.merge_fields.FNAME,total_items"}
    assert (await api.get(f"{audience}/members", params=query)).json() == {
        "members": [{"id": URIST_HASH, "merge_fields": {"FNAME": ""}}],
        "total_items": 1,
    }
    found = (await api.get(audience, params={"exclude_fields": "stats.member_count,name"})).json()
    assert "name" not in found
    assert "member_count" not in found["stats"]
    assert found["stats"]["unsubscribe_count"] == 0
    both = await api.get(audience, params={"fields": "id", "exclude_fields": "name"})
    assert told(both) == (400, "Bad Request")


async def test_repeat_page_promises_more(api: Client, audience: str) -> None:
    await add(api, audience, URIST)
    rule = {"match": "GET /3.0/lists/{list}/members", "fault": "repeat_page"}
    await api.post("/_sandbox/faults", json={"rules": [rule]})
    first = (await api.get(f"{audience}/members")).json()
    assert first["total_items"] > 1
    assert (await api.get(f"{audience}/members", params={"offset": 10})).json() == first


async def test_lists(api: Client, provider: Mailchimp) -> None:
    await advance(api, 60)
    second = (await api.post("/_sandbox/lists", json={"name": "Press"})).json()["list"]
    found = (await api.get("/3.0/lists")).json()
    assert [entry["name"] for entry in found["lists"]] == ["Newsletter", "Press"]
    since = {"since_date_created": "2025-10-09T08:53:20Z"}
    found = (await api.get("/3.0/lists", params=since)).json()
    assert ([entry["id"] for entry in found["lists"]], found["total_items"]) == ([second], 1)


# Many at once.


async def test_a_batch_of_members_tells_each_outcome(api: Client, audience: str) -> None:
    await add(api, audience, "known@mail.example", tags=["old", "kept"])
    entries = [
        {"email_address": "new@mail.example", "status": "subscribed", "tags": ["kept"]},
        {"email_address": "known@mail.example", "status": "unsubscribed", "tags": ["kept"]},
        {"email_address": "NEW@mail.example", "status": "unsubscribed"},
        {"email_address": "nowhere", "status": "subscribed"},
        {"email_address": "vague@mail.example"},
    ]
    body = (await api.post(audience, json={"members": entries})).json()
    assert (body["total_created"], body["total_updated"], body["error_count"]) == (1, 0, 4)
    assert [(entry["email_address"], entry["error_code"]) for entry in body["errors"]] == [
        ("known@mail.example", "ERROR_CONTACT_EXISTS"),
        ("NEW@mail.example", "ERROR_DUPLICATE"),
        ("nowhere", "ERROR_GENERIC"),
        ("vague@mail.example", "ERROR_GENERIC"),
    ]
    assert body["errors"][3]["field"] == "status"
    again = {"members": entries[1:3], "update_existing": True, "sync_tags": True}
    body = (await api.post(audience, json=again, params={"skip_duplicate_check": "true"})).json()
    assert (body["total_updated"], body["error_count"]) == (2, 0)
    known = body["updated_members"][0]
    assert (known["status"], [tag["name"] for tag in known["tags"]]) == ("unsubscribed", ["kept"])
    too_many = {"members": [{"email_address": f"m{n}@mail.example"} for n in range(501)]}
    assert told(await api.post(audience, json=too_many)) == (400, "Invalid Resource")


def operation(audience: str, address: str, name: str, **body: Any) -> Body:
    sent = {"email_address": address, "status_if_new": "subscribed", **body}
    path = f"{audience.removeprefix('/3.0')}/members/{hash_of(address)}"
    return {"method": "PUT", "path": path, "body": json.dumps(sent), "operation_id": name}


def unpacked(content: bytes) -> dict[str, list[tuple[int, Any]]]:
    """Read an archive: operation id to status codes and decoded responses."""
    found: dict[str, list[tuple[int, Any]]] = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        for entry in tar:
            packed = tar.extractfile(entry)
            for result in json.load(packed) if packed else ():
                response = json.loads(result["response"]) if result["response"] else None
                found.setdefault(result["operation_id"], []).append((result["status_code"], response))
    return found


async def test_an_asynchronous_batch_is_looked_at_until_it_is_finished(
    api: Client, provider: Mailchimp, audience: str
) -> None:
    await add(api, audience, "gone@mail.example")
    gone = f"{audience.removeprefix('/3.0')}/members/{hash_of('gone@mail.example')}"
    operations = [
        operation(audience, "good@mail.example", "good"),
        operation(audience, "bad@mail.example", "bad", status="happy"),
        {"method": "DELETE", "path": gone, "operation_id": "gone"},
        {"method": "GET", "path": "lists", "params": {"fields": "total_items"}, "operation_id": "lists"},
        {"method": "POST", "path": "/batches", "body": "{}", "operation_id": "nested"},
    ]
    await choose(api, results_per_file=2)
    made = (await api.post("/3.0/batches", json={"operations": operations})).json()
    assert (made["status"], made["total_operations"], made["response_body_url"]) == ("pending", 5, "")
    seen = [(await api.get(f"/3.0/batches/{made['id']}")).json() for _ in range(5)]
    assert [look["status"] for look in seen] == [
        "pending",
        "preprocessing",
        "started",
        "finalizing",
        "finished",
    ]
    assert [look["finished_operations"] for look in seen] == [0, 0, 2, 5, 5]
    assert seen[4]["errored_operations"] == 3  # 400, 405 and the 204
    url = seen[4]["response_body_url"]
    assert url.startswith("https://mailchimp-api-batch.s3.amazonaws.com/batch-results/")
    refused = await api.get(url)  # comes with the key
    assert refused.status_code == 400
    async with Client(transport=httpx.ASGITransport(provider)) as stranger:
        answer = await stranger.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/gzip")
        results = unpacked(answer.content)
        await advance(api, 600)
        late = await stranger.get(url)
        assert (late.status_code, "Request has expired" in late.text) == (403, True)
        fresh = (await api.get(f"/3.0/batches/{made['id']}")).json()["response_body_url"]
        assert (await stranger.get(fresh)).status_code == 200
    assert {name: found[0][0] for name, found in results.items()} == {
        "good": 200,
        "bad": 400,
        "gone": 204,
        "lists": 200,
        "nested": 405,
    }
    assert results["good"][0][1]["email_address"] == "good@mail.example"
    assert results["bad"][0][1]["title"] == "Invalid Resource"
    assert results["lists"][0][1] == {"total_items": 1}
    await advance(api, 7 * 86_400)
    assert (await api.get(f"/3.0/batches/{made['id']}")).json()["response_body_url"] == ""


async def test_a_batch_goes_on_without_being_looked_at(api: Client, audience: str) -> None:
    await choose(api, batch_polls=False)
    operations = [operation(audience, f"m{number}@mail.example", str(number)) for number in range(4)]
    made = (await api.post("/3.0/batches", json={"operations": operations})).json()["id"]
    assert await members(api, audience) == []
    await advance(api, 1)  # half of the two seconds
    assert len(await members(api, audience)) == 2
    await advance(api, 1)
    assert (await api.get(f"/3.0/batches/{made}")).json()["status"] == "finished"
    assert len(await members(api, audience)) == 4


async def test_a_read_in_a_batch_pages_by_itself(api: Client, provider: Mailchimp, audience: str) -> None:
    for start in (0, 500, 1000):
        some = [
            {"email_address": f"m{n}@mail.example", "status": "subscribed"} for n in range(start, start + 500)
        ]
        await api.post(audience, json={"members": some[: 500 if start < 1000 else 1]})
    read = {"method": "GET", "path": f"{audience.removeprefix('/3.0')}/members", "operation_id": "all"}
    made = (await api.post("/3.0/batches", json={"operations": [read]})).json()["id"]
    await advance(api, 2)
    url = (await api.get(f"/3.0/batches/{made}")).json()["response_body_url"]
    async with Client(transport=httpx.ASGITransport(provider)) as stranger:
        results = unpacked((await stranger.get(url)).content)
    assert [len(body["members"]) for _, body in results["all"]] == [1000, 1]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"body": {"email_address": URIST}}, "operations.item:0.body"),
        ({"method": "FETCH"}, "method"),
        ({"path": ""}, "operations.item:0.path"),
    ],
)
async def test_a_batch_is_checked_when_it_comes(api: Client, change: Body, where: str) -> None:
    sent = {"operations": [{"method": "GET", "path": "/lists", **change}]}
    answer = await api.post("/3.0/batches", json=sent)
    assert told(answer) == (400, "Invalid Resource")
    assert answer.json()["errors"][0]["field"] == where


async def test_five_hundred_batches_may_be_pending(api: Client) -> None:
    await choose(api, batch_seconds=None, call_seconds=0)
    sent = {"operations": [{"method": "GET", "path": "/lists"}]}
    made = [(await api.post("/3.0/batches", json=sent)).json()["id"] for _ in range(500)]
    assert told(await api.post("/3.0/batches", json=sent)) == (429, "Too Many Requests")
    assert (await api.delete(f"/3.0/batches/{made[0]}")).status_code == 204
    assert told(await api.get(f"/3.0/batches/{made[0]}")) == (404, "Resource Not Found")
    assert (await api.post("/3.0/batches", json=sent)).status_code == 200


# Stores.


@pytest.fixture
async def shop(api: Client, provider: Mailchimp) -> str:
    sent = {
        "id": "shop",
        "list_id": provider.audience.document["id"],
        "name": "Box office",
        "currency_code": "EUR",
    }
    answer = await api.post("/3.0/ecommerce/stores", json=sent)
    assert answer.status_code == 200, answer.text
    product = {
        "id": "concert",
        "title": "Concert",
        "variants": [{"id": "ga", "title": "Standing", "price": 12.5, "inventory_quantity": 100}],
    }
    assert (await api.post("/3.0/ecommerce/stores/shop/products", json=product)).status_code == 200
    return "/3.0/ecommerce/stores/shop"


def order(**more: Any) -> Body:
    line = {"id": "1", "product_id": "concert", "product_variant_id": "ga", "quantity": 2, "price": 12.5}
    buyer = {"id": "ada", "email_address": "ada@mail.example", "opt_in_status": False}
    base = {"id": "o1", "customer": buyer, "currency_code": "EUR", "order_total": 25.0, "lines": [line]}
    return {**base, **more}


async def test_a_store_keeps_its_list(api: Client, shop: str) -> None:
    assert (await api.patch(shop, json={"is_syncing": True})).json()["is_syncing"] is True
    moved = await api.patch(shop, json={"list_id": "another"})
    assert moved.json()["errors"][0]["field"] == "list_id"
    again = await api.post("/3.0/ecommerce/stores", json=(await api.get(shop)).json())
    assert "already exists" in again.json()["detail"]
    low = {"id": "s2", "list_id": "x", "name": "S", "currency_code": "eur"}
    refused = await api.post("/3.0/ecommerce/stores", json=low)
    assert refused.json()["errors"][0]["field"] == "currency_code"


async def test_products_have_no_put_but_variants_have(api: Client, shop: str) -> None:
    product = (await api.get(f"{shop}/products/concert")).json()
    assert (product["variants"][0]["price"], product["currency_code"]) == (12.5, "EUR")
    put = {"title": "Gala", "variants": [{"id": "ga", "title": "Standing"}]}
    assert told(await api.put(f"{shop}/products/concert", json=put)) == (405, "Method Not Allowed")
    again = await api.post(f"{shop}/products", json={**put, "id": "concert"})
    assert again.json()["detail"] == "A product with the provided ID already exists."
    assert (await api.patch(f"{shop}/products/concert", json={"title": "Gala"})).json()["title"] == "Gala"
    seat = f"{shop}/products/concert/variants/seat"
    assert told(await api.patch(seat, json={"price": 1})) == (404, "Resource Not Found")
    assert (await api.put(seat, json={"title": "Seat", "price": 40})).json()["inventory_quantity"] == 0
    assert (await api.patch(seat, json={"inventory_quantity": 9})).json()["price"] == 40
    wrong = await api.patch(seat, json={"inventory_quantity": 9.5, "price": "40"})
    assert [entry["field"] for entry in wrong.json()["errors"]] == ["price", "inventory_quantity"]
    assert (await api.delete(seat)).status_code == 204
    assert told(await api.delete(f"{shop}/products/concert/variants/ga")) == (400, "Invalid Action")
    listed = (await api.get(f"{shop}/products")).json()
    assert ([entry["id"] for entry in listed["products"]], listed["total_items"]) == (["concert"], 1)
    await choose(api, product_put=True)
    assert (await api.put(f"{shop}/products/concert", json=put)).json()["title"] == "Gala"


async def test_a_customer_becomes_a_contact(api: Client, shop: str, audience: str) -> None:
    sent = {"id": "ada", "email_address": "ada@mail.example", "opt_in_status": False, "first_name": "Ada"}
    assert (await api.put(f"{shop}/customers/ada", json=sent)).status_code == 200
    contact = (await api.get(f"{audience}/members/ada@mail.example")).json()
    assert (contact["status"], contact["full_name"]) == ("transactional", "Ada")
    await api.put(f"{shop}/customers/ada", json={**sent, "opt_in_status": True})
    assert (await api.get(f"{audience}/members/ada@mail.example")).json()["status"] == "subscribed"
    found = (await api.get(f"{shop}/customers", params={"email_address": "ADA@mail.example"})).json()
    assert [customer["id"] for customer in found["customers"]] == ["ada"]
    long = await api.put(f"{shop}/customers/{'x' * 51}", json={**sent, "id": "x" * 51})
    assert long.json()["errors"][0]["field"] == "id"


async def test_orders_need_their_product_and_have_no_put(api: Client, shop: str) -> None:
    made = (await api.post(f"{shop}/orders", json=order())).json()
    assert (made["customer"]["orders_count"], made["lines"][0]["product_title"]) == (1, "Concert")
    assert told(await api.put(f"{shop}/orders/o1", json=order())) == (405, "Method Not Allowed")
    assert "already exists" in (await api.post(f"{shop}/orders", json=order())).json()["detail"]
    for name in ("product_id", "product_variant_id"):
        line = {**order()["lines"][0], name: "nothing"}
        refused = await api.post(f"{shop}/orders", json=order(id="o2", lines=[line]))
        assert refused.json()["errors"][0]["field"] == f"lines.item:0.{name}"
    changed = (await api.patch(f"{shop}/orders/o1", json={"order_total": 20})).json()
    assert (changed["order_total"], len(changed["lines"])) == (20, 1)
    found = (await api.get(f"{shop}/orders", params={"customer_id": "ada"})).json()
    assert [entry["id"] for entry in found["orders"]] == ["o1"]
    assert (await api.delete(f"{shop}/orders/o1")).status_code == 204
    assert told(await api.get(f"{shop}/orders/o1")) == (404, "Resource Not Found")


async def test_a_status_sends_mail_unless_the_store_is_being_filled(api: Client, shop: str) -> None:
    async def sent() -> int:
        found: int = (await api.get("/_sandbox/calls")).json()["effects"].get("order.mail_sent", 0)
        return found

    await api.patch(shop, json={"is_syncing": True})
    await api.post(f"{shop}/orders", json=order(financial_status="paid"))
    assert await sent() == 0
    await api.patch(shop, json={"is_syncing": False})
    await api.patch(f"{shop}/orders/o1", json={"financial_status": "paid"})
    assert await sent() == 0
    await api.patch(f"{shop}/orders/o1", json={"fulfillment_status": "shipped"})
    assert await sent() == 1


# Webhooks.


def test_the_signature_is_the_documented_one() -> None:
    assert signature("sec1", 1_760_000_000, "type=subscribe&data%5Bid%5D=1") == (
        "t=1760000000,v1=3d73bc71bb0f310db561172387afeed1449fefe1deed162c95f92c6997da0750"
    )


async def test_what_a_person_does_is_told_and_what_the_api_does_is_not(api: Client, audience: str) -> None:
    sent = {"url": "https://hub.example/hook", "sources": {"user": True, "admin": True, "api": False}}
    made = (await api.post(f"{audience}/webhooks", json=sent)).json()
    secret = made.pop("signing_secret")
    assert (await api.get(f"{audience}/webhooks/{made['id']}")).json() == made
    assert (await api.get(f"{audience}/webhooks")).json()["webhooks"] == [made]
    member = await add(api, audience, URIST, merge_fields={"FNAME": "Urist"})
    assert (await api.get("/_sandbox/deliveries")).json()["deliveries"] == []
    await api.post("/_sandbox/members", json={"email": URIST, "status": "unsubscribed"})
    [delivery] = (await api.get("/_sandbox/deliveries")).json()["deliveries"]
    assert delivery["headers"]["X-Mailchimp-Signature"] == signature(secret, 1_760_000_000, delivery["body"])
    body = dict(parse_qsl(delivery["body"], keep_blank_values=True))
    assert (body["type"], body["fired_at"]) == ("unsubscribe", "2025-10-09 08:53:20")
    assert (body["data[id]"], body["data[email]"]) == (member["unique_email_id"], URIST)
    assert (body["data[action]"], body["data[merges][FNAME]"]) == ("unsub", "Urist")
    assert told(await api.post(f"{audience}/webhooks", json=sent)) == (400, "Bad Request")


async def test_a_finished_batch_is_told(api: Client) -> None:
    made = (await api.post("/3.0/batch-webhooks", json={"url": "https://hub.example/batch"})).json()
    sent = {"operations": [{"method": "GET", "path": "/lists"}]}
    batch = (await api.post("/3.0/batches", json=sent)).json()["id"]
    await advance(api, 2)
    await api.get("/3.0/ping")
    [delivery] = (await api.get("/_sandbox/deliveries")).json()["deliveries"]
    body = dict(parse_qsl(delivery["body"]))
    assert (body["type"], body["data[id]"]) == ("batch_operation_completed", batch)
    assert signature(made["signing_secret"], 1_760_000_002, delivery["body"]) in delivery["headers"].values()
    for number in range(19):
        await api.post("/3.0/batch-webhooks", json={"url": f"https://hub.example/{number}"})
    refused = await api.post("/3.0/batch-webhooks", json={"url": "https://hub.example/21"})
    assert told(refused) == (400, "Invalid Action")


# What it holds.


async def test_it_goes_on_where_it_stopped(
    clock: SandboxClock, provider: Mailchimp, api: Client, audience: str, shop: str, tmp_path: Path
) -> None:
    made = await add(api, audience, URIST)
    await choose(api, batch_polls=False)
    sent = {"operations": [operation(audience, "late@mail.example", "late")]}
    batch = (await api.post("/3.0/batches", json=sent)).json()["id"]
    provider.save(tmp_path / "mailchimp")
    after = Mailchimp(clock)
    after.load(tmp_path / "mailchimp")
    clock.advance(2)
    async with client_of(after) as later:
        assert (await later.get(f"{audience}/members/{URIST_HASH}")).json() == made
        assert (await later.get(f"{shop}/products/concert")).status_code == 200
        assert (await later.get(f"/3.0/batches/{batch}")).json()["status"] == "finished"
        assert await members(later, audience) == [URIST, "late@mail.example"]


async def test_the_demo_knows_some_of_our_addresses(clock: SandboxClock) -> None:
    provider = Mailchimp(clock)
    provider.start_with(lambda: seed_demo(provider, ["one@venue.example", "two@venue.example"]))
    async with client_of(provider) as api:
        for _ in range(2):
            found = (await api.get("/_sandbox/objects", params={"type": "member"})).json()["objects"]
            addresses = {member["email_address"] for member in found}
            assert len(addresses) == 12
            assert {"one@venue.example", "two@venue.example"} < addresses
            assert sorted({member["status"] for member in found}) == ["cleaned", "subscribed", "unsubscribed"]
            assert {member["account"] for member in found} == {"mc-demo"}
            await api.post("/_sandbox/reset")


def test_whoever_calls_by_address_finds_the_results_there() -> None:
    with running_sandbox() as sandbox:
        with httpx.Client(base_url=sandbox.mailchimp_url, auth=("anybody", DEFAULT_KEY)) as api:
            sent = {"operations": [{"method": "GET", "path": "/lists", "operation_id": "lists"}]}
            made = api.post("/3.0/batches", json=sent).json()["id"]
            looks = [api.get(f"/3.0/batches/{made}").json() for _ in range(5)]
        url = looks[-1]["response_body_url"]
        assert url.startswith(f"{sandbox.mailchimp_url}/")
        assert unpacked(httpx.get(url).content)["lists"][0][0] == 200
