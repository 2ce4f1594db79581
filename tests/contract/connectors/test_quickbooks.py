"""QuickBooks' manifest: connecting a company, and everything it reads."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, connect
from engine.auth import kept_of_callback, refresh, revoke
from engine.client import ProviderClient, ReadBatch
from engine.errors import AuthenticationError, ProviderError, UnexpectedResponseError
from engine.transport import open_client
from tests.contract.connectors.conftest import Standing
from tests.sandbox import quickbooks
from tests.sandbox.quickbooks import DEFAULT_CLIENT, DEFAULT_REALM, DEFAULT_SECRET, LASTING_TOKEN
from tests.sandbox.running import Sandbox

TOKEN = Credentials({"access_token": Secret(LASTING_TOKEN)}, {"realm_id": DEFAULT_REALM})
APPLICATION = {"client_id": DEFAULT_CLIENT, "client_secret": Secret(DEFAULT_SECRET)}
RESOURCES = ("customer", "item", "sales_receipt", "invoice", "payment")


@pytest.fixture
def standing(sandbox: Sandbox, fresh: Callable[[Standing], Standing]) -> Standing:
    client = (DEFAULT_CLIENT, DEFAULT_SECRET)
    made = fresh(Standing("quickbooks", sandbox.quickbooks_url, quickbooks.REPLACES, client))
    made.control("limits", {"all": None})
    return made


@asynccontextmanager
async def connected(standing: Standing, credentials: Credentials = TOKEN) -> AsyncIterator[ProviderClient]:
    async with connect(standing.connector, credentials, origin_overrides=standing.overrides) as client:
        yield client


class Office:
    """Somebody who works in the product: writes by hand, as the documentation says."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def save(self, entity: str, body: dict[str, Any], **query: str) -> dict[str, Any]:
        answer = self._http.post(f"/{entity.lower()}", json=body, params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()[entity])

    def add(self, names: list[str]) -> list[str]:
        """Make customers, thirty in a call; return their ids."""
        made: list[str] = []
        for start in range(0, len(names), 30):
            some = enumerate(names[start : start + 30])
            items = [
                {"bId": str(n), "operation": "create", "Customer": {"DisplayName": name}} for n, name in some
            ]
            answer = self._http.post("/batch", json={"BatchItemRequest": items}).json()
            made += [item["Customer"]["Id"] for item in answer["BatchItemResponse"]]
        return made


@pytest.fixture
def office(standing: Standing) -> Iterator[Office]:
    headers = {"Authorization": f"Bearer {LASTING_TOKEN}", "Accept": "application/json"}
    with httpx.Client(base_url=f"{standing.url}/v3/company/{DEFAULT_REALM}", headers=headers) as http:
        yield Office(http)


async def read(client: ProviderClient, resource: str = "customer", **how: Any) -> list[ReadBatch]:
    return [batch async for batch in client.pages(resource, **how)]


def names(batches: list[ReadBatch]) -> list[list[str]]:
    return [[each.record.get("DisplayName", each.id) for each in batch.records] for batch in batches]


async def test_connects_by_consent_and_keeps_the_company(standing: Standing) -> None:
    method = standing.connector.auth[0]
    grant, rest = await standing.consent(method)
    assert kept_of_callback(standing.connector, method, rest) == {"realm_id": DEFAULT_REALM}
    with pytest.raises(UnexpectedResponseError, match="realmId"):
        kept_of_callback(standing.connector, method, {"state": "s1"})
    assert grant.refresh_token is not None
    assert grant.expires_at is not None
    assert grant.refresh_expires_at is not None
    now = datetime.now(UTC)
    assert timedelta(minutes=59) < grant.expires_at - now <= timedelta(hours=1)
    assert timedelta(days=99) < grant.refresh_expires_at - now <= timedelta(days=100)
    values = {"access_token": grant.access_token, "refresh_token": grant.refresh_token}
    credentials = Credentials(values, {"realm_id": DEFAULT_REALM})
    async with connected(standing, credentials) as client:
        await client.check()
        assert names(await read(client)) == [[]]


async def test_a_refresh_token_a_day_old_is_replaced(standing: Standing) -> None:
    method = standing.connector.auth[0]
    grant, _ = await standing.consent(method)
    assert grant.refresh_token is not None
    tokens = [grant.refresh_token.reveal()]
    async with open_client(origin_overrides=standing.overrides) as http:
        app: dict[str, Any] = {"http": http, **APPLICATION}
        for seconds in (60, 86_400):
            standing.control("clock", {"advance": seconds})
            again = await refresh(
                standing.connector, method, "production", refresh_token=Secret(tokens[-1]), **app
            )
            assert again.refresh_token is not None
            tokens.append(again.refresh_token.reveal())
        assert tokens[0] == tokens[1] != tokens[2]
        with pytest.raises(AuthenticationError) as refused:
            await refresh(standing.connector, method, "production", refresh_token=Secret(tokens[0]), **app)
    assert refused.value.provider_code == "invalid_grant"


async def test_disconnecting_ends_the_grant(standing: Standing) -> None:
    method = standing.connector.auth[0]
    grant, _ = await standing.consent(method)
    assert grant.refresh_token is not None
    values = {"access_token": grant.access_token, "refresh_token": grant.refresh_token}
    credentials = Credentials(values, {"realm_id": DEFAULT_REALM})
    async with open_client(origin_overrides=standing.overrides) as http:
        app: dict[str, Any] = {"http": http, **APPLICATION}
        assert await revoke(standing.connector, method, "production", credentials=credentials, **app)
    with pytest.raises(AuthenticationError):
        async with connected(standing, credentials):
            pass


async def test_another_company_is_refused(standing: Standing) -> None:
    known = {"realm_id": "9341450000000002", "income_account": "1", "refund_account": "2"}
    other = Credentials(TOKEN.values, known)
    async with connected(standing, other) as client:
        with pytest.raises(ProviderError, match="403"):
            await client.check()


async def test_an_income_account_is_looked_up(standing: Standing, office: Office) -> None:
    async with connect(standing.connector, TOKEN, origin_overrides=standing.overrides) as client:
        office.save("Item", {"Name": "Cap", "Type": "Service", "IncomeAccountRef": {"value": "31"}})
        [batch] = (await read(client, "item"))[:1]
    assert [each.record["Name"] for each in batch.records] == ["Cap"]
    assert standing.calls["by_call"]["GET /v3/company/{realm}/query"] >= 2


@pytest.mark.parametrize("resource", RESOURCES)
async def test_every_resource_can_be_listed_and_followed(standing: Standing, resource: str) -> None:
    async with connected(standing) as client:
        assert names(await read(client, resource)) == [[]]
        assert names(await read(client, resource, since=standing.now())) == [[]]
        assert await client.get(resource, "999999") is None
        assert await client.get_many(resource, ["999999"]) == {}


async def test_reads_beyond_one_page(standing: Standing, office: Office) -> None:
    guests = [f"Guest {number:04}" for number in range(1001)]
    made = office.add(guests)
    gone = office.save("Customer", {"Id": made[0], "SyncToken": "0", "sparse": True, "Active": False})
    assert gone["Active"] is False
    async with connected(standing) as client:
        pages = await read(client)
        rest = await read(client, resume=pages[0].resume)
        some = await client.get_many("customer", [*made[:150], "999999"])
    assert [len(page.records) for page in pages] == [1000, 1, 0]
    assert sorted(each for page in names(pages) for each in page) == guests  # the inactive one as well
    assert [len(page.records) for page in rest] == [1, 0]
    assert set(some) == set(made[:150])


async def test_changes_come_from_the_feed(standing: Standing, office: Office) -> None:
    [kept] = office.add(["Kept"])
    since = standing.now(3600) - timedelta(minutes=30)
    [changed] = office.add(["Changed"])
    office.save("Item", {"Name": "Cap", "Type": "Service", "IncomeAccountRef": {"value": "31"}})
    async with connected(standing) as client:
        batches = await read(client, since=since)
        assert names(batches) == [["Changed"]]
        assert batches[0].records[0].id == changed != kept
        assert (await client.get("customer", kept) or {})["DisplayName"] == "Kept"
    assert standing.calls["by_call"]["GET /v3/company/{realm}/cdc"] == 1


async def test_deletions_come_from_the_feed(standing: Standing, office: Office) -> None:
    item = office.save("Item", {"Name": "Cap", "Type": "Service", "IncomeAccountRef": {"value": "31"}})
    detail = {"ItemRef": {"value": item["Id"]}, "Qty": 1, "UnitPrice": 5}
    line = {"Amount": 5, "DetailType": "SalesItemLineDetail", "SalesItemLineDetail": detail}
    sold = [office.save("SalesReceipt", {"Line": [line]}) for _ in range(2)]
    gone = {"Id": sold[0]["Id"], "SyncToken": sold[0]["SyncToken"]}
    office.save("SalesReceipt", gone, operation="delete")
    async with connected(standing) as client:
        [batch] = await read(client, "sales_receipt", since=standing.now() - timedelta(hours=1))
    assert {each.id: each.deleted for each in batch.records} == {sold[0]["Id"]: True, sold[1]["Id"]: False}


async def test_a_feed_that_is_full_is_made_up_for_by_the_list(standing: Standing, office: Office) -> None:
    office.add(["Long ago"])
    since = standing.now(3600) - timedelta(minutes=30)
    guests = [f"Guest {number:04}" for number in range(1100)]
    office.add(guests)
    async with connected(standing) as client:
        batches = await read(client, since=since)
    assert [len(batch.records) for batch in batches] == [1000, 1000, 100, 0]
    assert {each for page in names(batches) for each in page} == set(guests)


async def test_a_watermark_out_of_the_feeds_reach_reads_everything(
    standing: Standing, office: Office
) -> None:
    office.add(["Long ago"])
    async with connected(standing) as client:
        batches = await read(client, since=datetime.now(UTC) - timedelta(days=40))
    assert names(batches) == [["Long ago"], []]
    assert "GET /v3/company/{realm}/cdc" not in standing.calls["by_call"]
