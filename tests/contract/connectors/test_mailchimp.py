"""Mailchimp's manifest: both ways to connect, and everything it reads."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import md5
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, connect
from engine.auth import Authenticator
from engine.client import ProviderClient
from engine.errors import AuthenticationError, UnexpectedResponseError
from engine.filling import kept_of_credentials
from tests.contract.connectors.conftest import Standing
from tests.sandbox import mailchimp
from tests.sandbox.mailchimp import DEFAULT_CLIENT, DEFAULT_KEY, DEFAULT_SECRET
from tests.sandbox.running import Sandbox

KEY = Credentials({"apiKey": Secret(DEFAULT_KEY)}, method="key")


@pytest.fixture
def standing(sandbox: Sandbox, fresh: Callable[[Standing], Standing]) -> Standing:
    client = (DEFAULT_CLIENT, DEFAULT_SECRET)
    return fresh(Standing("mailchimp", sandbox.mailchimp_url, mailchimp.REPLACES, client))


@asynccontextmanager
async def connected(standing: Standing, credentials: Credentials = KEY) -> AsyncIterator[ProviderClient]:
    async with connect(standing.connector, credentials, origin_overrides=standing.overrides) as client:
        yield client


def add_members(standing: Standing, *emails: str) -> None:
    """Subscribe people to the oldest audience, as somebody in the office would."""
    lists = httpx.get(f"{standing.url}/3.0/lists", auth=("", DEFAULT_KEY)).json()["lists"]
    for start in range(0, len(emails), 500):
        some = [{"email_address": each, "status": "subscribed"} for each in emails[start : start + 500]]
        answer = httpx.post(
            f"{standing.url}/3.0/lists/{lists[0]['id']}", auth=("", DEFAULT_KEY), json={"members": some}
        )
        assert answer.json()["error_count"] == 0, answer.text


async def read(client: ProviderClient, **how: Any) -> list[list[str]]:
    return [
        [each.record["email_address"] for each in batch.records]
        async for batch in client.pages("member", **how)
    ]


def hash_of(email: str) -> str:
    return md5(email.lower().encode()).hexdigest()


async def test_connects_with_a_key(standing: Standing) -> None:
    method = Authenticator.choose(standing.connector, KEY).method
    assert kept_of_credentials(method, KEY.values) == {"dc": "us6"}
    async with connected(standing) as client:
        await client.check()
    async with connected(standing, replace(KEY, connection={"dc": "us6"})) as client:
        learned = await client.learn()
    assert learned == {}  # `connect` has looked everything up


async def test_connects_by_consent(standing: Standing) -> None:
    oauth = next(method for method in standing.connector.auth if method.name == "oauth")
    grant, rest = await standing.consent(oauth)
    assert rest == {"state": "s1"}
    assert (grant.expires_at, grant.refresh_token, grant.refresh_expires_at) == (None, None, None)
    values = {"access_token": grant.access_token}
    async with connected(standing, Credentials(values, method="oauth")) as client:
        await client.check()
        add_members(standing, "ana@example.com")
        assert await read(client) == [["ana@example.com"]]


async def test_the_venue_names_its_audience(standing: Standing) -> None:
    other = standing.control("lists", {"name": "Friends"})["list"]
    standing.control("members", {"list": other, "email": "only@example.com", "status": "subscribed"})
    add_members(standing, "ana@example.com")
    async with connected(standing) as client:
        assert await read(client) == [["ana@example.com"]]  # of the oldest audience
    async with connected(standing, replace(KEY, connection={"list_id": other})) as client:
        assert await read(client) == [["only@example.com"]]


async def test_a_key_of_another_data_centre_is_refused(standing: Standing) -> None:
    values = {"apiKey": Secret(DEFAULT_KEY.replace("us6", "us7"))}
    overrides = {**standing.overrides, "https://us7.api.mailchimp.com": standing.url}
    with pytest.raises(AuthenticationError):
        async with connect(standing.connector, Credentials(values, method="key"), origin_overrides=overrides):
            pass


async def test_an_account_without_an_audience_is_told(sandbox: Sandbox, standing: Standing) -> None:
    sandbox.mailchimp.account.audiences.clear()
    with pytest.raises(UnexpectedResponseError, match="`list_id`"):
        async with connected(standing):
            pass


async def test_reads_beyond_one_page(standing: Standing) -> None:
    emails = [f"guest{number:04}@example.com" for number in range(1001)]
    add_members(standing, *emails)
    async with connected(standing) as client:
        pages = await read(client)
        [first, *_] = [batch async for batch in client.pages("member")]
        rest = await read(client, resume=first.resume)
    assert [len(page) for page in pages] == [1000, 1]
    assert sorted(email for page in pages for email in page) == emails
    assert [len(page) for page in rest] == [1]


async def test_reads_what_changed_since(standing: Standing) -> None:
    add_members(standing, "old@example.com")
    since = standing.now(3600) - timedelta(minutes=30)
    add_members(standing, "new@example.com")
    async with connected(standing) as client:
        assert await read(client, since=since) == [["new@example.com"]]
        assert await read(client, since=since + timedelta(hours=1)) == [[]]


async def test_gets_a_member_by_the_hash_of_the_address(standing: Standing) -> None:
    add_members(standing, "Ana@Example.com")
    async with connected(standing) as client:
        found = await client.get("member", hash_of("ana@example.com"))
        missing = await client.get("member", hash_of("nobody@example.com"))
    assert found is not None
    assert found["email_address"] == "Ana@Example.com"
    assert missing is None


async def test_the_edge_throttles_without_a_body(standing: Standing) -> None:
    async with connected(standing) as client:
        standing.control("faults", {"rules": [{"match": "GET /3.0/ping", "fault": "status:403", "times": 1}]})
        await client.check()  # tried again; a 403 of the API itself would have ended the run
