"""QuickBooks' manifest: what it writes, in batches of thirty, with versions and names that are taken."""

from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from engine import Credentials, Secret, connect
from engine.batching import Write
from engine.client import ProviderClient, WriteResult
from tests.contract.connectors.conftest import Standing
from tests.sandbox import quickbooks
from tests.sandbox.quickbooks import DEFAULT_CLIENT, DEFAULT_REALM, DEFAULT_SECRET, LASTING_TOKEN
from tests.sandbox.running import Sandbox

TOKEN = Credentials({"access_token": Secret(LASTING_TOKEN)}, {"realm_id": DEFAULT_REALM})


@pytest.fixture
def standing(sandbox: Sandbox, fresh: Callable[[Standing], Standing]) -> Standing:
    client = (DEFAULT_CLIENT, DEFAULT_SECRET)
    made = fresh(Standing("quickbooks", sandbox.quickbooks_url, quickbooks.REPLACES, client))
    made.control("limits", {"all": None})
    return made


@pytest.fixture
async def client(standing: Standing) -> AsyncIterator[ProviderClient]:
    async with connect(standing.connector, TOKEN, origin_overrides=standing.overrides) as made:
        yield made


async def office(standing: Standing, entity: str, body: dict[str, Any]) -> dict[str, Any]:
    """Write by hand, as somebody in the office does."""
    headers = {"Authorization": f"Bearer {LASTING_TOKEN}", "Accept": "application/json"}
    base = f"{standing.url}/v3/company/{DEFAULT_REALM}"
    async with httpx.AsyncClient(base_url=base, headers=headers) as http:
        answer = await http.post(f"/{entity.lower()}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()[entity])


async def sent(client: ProviderClient, resource: str, *writes: Write) -> list[WriteResult]:
    results: list[WriteResult] = []
    for group in client.plan(resource, writes):
        results += await client.send(group)
    return results


def write(name: str, remote_id: str | None = None, /, **body: Any) -> Write:
    return Write(name, remote_id, {"DisplayName": name, **body}, f"key-{name}-{sorted(body)}-{remote_id}")


async def held(client: ProviderClient, resource: str, record_id: str | None) -> dict[str, Any]:
    assert record_id is not None
    found = await client.get(resource, record_id)
    assert found is not None
    return found


async def test_many_customers_go_thirty_in_a_call_and_only_changes_go_again(
    standing: Standing, client: ProviderClient
) -> None:
    names = [f"Guest {number}" for number in range(64)]
    made = await sent(client, "customer", *(write(name, GivenName="Zoë") for name in names))
    assert [each.error for each in made] == [None] * 64
    assert len({each.remote_id for each in made}) == 64
    calls = client.calls
    changed = [
        write(each.write.local_id, each.remote_id, GivenName="Zoë" if number else "Ana")
        for number, each in enumerate(made)
    ]
    again = await sent(client, "customer", *changed)
    assert [each.error for each in again] == [None] * 64
    assert client.calls - calls == 3 + 1  # each thirty are read in one call; one batch has something to write
    assert (await held(client, "customer", made[0].remote_id))["GivenName"] == "Ana"


async def test_an_update_changes_what_is_mapped_and_nothing_else(
    standing: Standing, client: ProviderClient
) -> None:
    there = await office(standing, "Customer", {"DisplayName": "Ada", "Notes": "theirs", "GivenName": "A"})
    (done,) = await sent(client, "customer", write("Ada", there["Id"], GivenName="Ada"))
    assert (done.error, done.version) == (None, "1")
    now = await held(client, "customer", there["Id"])
    assert (now["GivenName"], now["Notes"]) == ("Ada", "theirs")


@pytest.mark.parametrize("together", [False, True])
async def test_a_name_that_an_inactive_customer_has_leads_to_that_customer(
    together: bool, standing: Standing, client: ProviderClient
) -> None:
    there = await office(standing, "Customer", {"DisplayName": "O'Hara & Co"})
    gone = {"Id": there["Id"], "SyncToken": "0", "sparse": True, "Active": False}
    await office(standing, "Customer", gone)
    writes = [write("O'Hara & Co", None, Active=True), *([write("Bob")] if together else [])]
    results = await sent(client, "customer", *writes)
    assert [each.error for each in results] == [None] * len(writes)
    assert results[0].remote_id == there["Id"]
    assert (await held(client, "customer", there["Id"]))["Active"] is True


async def test_a_record_refused_in_a_batch_harms_no_other(client: ProviderClient) -> None:
    results = await sent(
        client, "customer", write("Ada"), write("Bob", PrimaryEmailAddr={"Address": "nonsense"}), write("Cyd")
    )
    assert [each.error is None for each in results] == [True, False, True]
    assert results[1].error is not None
    assert results[1].error.provider_code is not None


async def test_prices_are_exact_and_an_item_is_a_service_with_the_companys_account(
    client: ProviderClient,
) -> None:
    item = {"Name": "Noche de Jazz", "UnitPrice": Decimal("19.90"), "Taxable": False}
    (made,) = await sent(client, "item", Write("e1", None, item, "key-e1"))
    assert made.error is None
    now = await held(client, "item", made.remote_id)
    assert (now["Type"], Decimal(str(now["UnitPrice"]))) == ("Service", Decimal("19.9"))
    calls = client.calls
    (again,) = await sent(client, "item", Write("e1", made.remote_id, item, "key-e2"))
    assert (again.error, client.calls - calls) == (None, 1)  # 19.9 is what it has: read, not written


async def test_a_sale_of_a_known_item_to_a_known_customer(client: ProviderClient) -> None:
    (item,) = await sent(client, "item", Write("e1", None, {"Name": "Jazz", "UnitPrice": 5}, "key-e1"))
    (customer,) = await sent(client, "customer", write("Ada"))
    line = {
        "DetailType": "SalesItemLineDetail",
        "Amount": Decimal("10.00"),
        "SalesItemLineDetail": {"ItemRef": {"value": item.remote_id}, "Qty": 2, "UnitPrice": Decimal("5.00")},
    }
    body = {"CustomerRef": {"value": customer.remote_id}, "Line": [line], "DocNumber": "T-1"}
    (sale,) = await sent(client, "sales_receipt", Write("o1", None, body, "key-o1"))
    assert sale.error is None
    assert Decimal(str((await held(client, "sales_receipt", sale.remote_id))["TotalAmt"])) == 10


async def test_the_same_call_again_is_the_same_record(client: ProviderClient) -> None:
    (group,) = client.plan("customer", [write("Ada")])
    (once,), (twice,) = await client.send(group), await client.send(group)
    assert once.remote_id == twice.remote_id
