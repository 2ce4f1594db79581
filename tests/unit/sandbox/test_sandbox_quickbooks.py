import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from tests.sandbox.core import SandboxClock
from tests.sandbox.quickbooks import DEFAULT_REALM, LASTING_TOKEN, QuickBooks, seed_demo

Body = dict[str, Any]
BASE = f"/v3/company/{DEFAULT_REALM}"
JSON = {"Authorization": f"Bearer {LASTING_TOKEN}", "Accept": "application/json"}
NS = "{http://schema.intuit.com/finance/v3}"


def client(made: QuickBooks) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://quickbooks", headers=JSON)


@pytest.fixture
async def limited(clock: SandboxClock) -> AsyncIterator[httpx.AsyncClient]:
    """With the published limits."""
    async with client(QuickBooks(clock)) as calls:
        yield calls


@pytest.fixture
async def books(limited: httpx.AsyncClient) -> httpx.AsyncClient:
    await limited.post("/_sandbox/limits", json={"all": None})
    return limited


async def behave(books: httpx.AsyncClient, **values: Any) -> None:
    answer = await books.post("/_sandbox/behaviour", json=values)
    assert answer.status_code == 200, answer.text


async def send(books: httpx.AsyncClient, entity: str, body: Body, **params: str) -> httpx.Response:
    return await books.post(f"{BASE}/{entity.lower()}", json=body, params=params)


async def saved(books: httpx.AsyncClient, entity: str, body: Body, **params: str) -> Body:
    answer = await send(books, entity, body, **params)
    assert answer.status_code == 200, answer.text
    row: Body = answer.json()[entity]
    return row


async def ask(books: httpx.AsyncClient, text: str) -> Body:
    answer = await books.get(f"{BASE}/query", params={"query": text})
    assert answer.status_code == 200, answer.text
    found: Body = answer.json()["QueryResponse"]
    return found


async def names(books: httpx.AsyncClient, text: str) -> list[str]:
    return [row["DisplayName"] for row in (await ask(books, text)).get("Customer", [])]


async def income(books: httpx.AsyncClient) -> Body:
    rows = (await ask(books, "SELECT * FROM Account WHERE AccountType = 'Income'"))["Account"]
    return {"value": rows[0]["Id"]}


async def ticket(books: httpx.AsyncClient, name: str = "Ticket", **more: Any) -> Body:
    body = {"Name": name, "Type": "Service", "UnitPrice": 45.5, "IncomeAccountRef": await income(books)}
    return await saved(books, "Item", {**body, **more})


def lines(item: Body, quantity: float = 2, price: float = 45.5, amount: float = 91) -> list[Body]:
    detail = {"ItemRef": {"value": item["Id"]}, "Qty": quantity, "UnitPrice": price}
    return [{"Amount": amount, "DetailType": "SalesItemLineDetail", "SalesItemLineDetail": detail}]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["Fault"]["Error"][0]["code"]


async def later(books: httpx.AsyncClient, seconds: float) -> None:
    await books.post("/_sandbox/clock", json={"advance": seconds})


# Shapes.


async def test_a_fault_is_json_only_when_asked_for(books: httpx.AsyncClient) -> None:
    answer = await books.get(f"{BASE}/customer/9")
    assert (answer.status_code, answer.json()["Fault"]["type"]) == (400, "ValidationFault")
    assert set(answer.json()["Fault"]["Error"][0]) == {"Message", "Detail", "code", "element"}
    assert answer.headers["intuit_tid"]
    xml = await books.get(f"{BASE}/customer/9", headers={"Accept": "*/*"})
    assert xml.headers["content-type"] == "application/xml"
    error = ElementTree.fromstring(xml.content).find(f"{NS}Fault/{NS}Error")
    assert error is not None
    assert (error.get("code"), error.findtext(f"{NS}Message")) == ("610", "Object Not Found")


async def test_rows_as_xml(books: httpx.AsyncClient) -> None:
    made = await ticket(books, "Bread & Wine")
    xml = await books.get(f"{BASE}/item/{made['Id']}", headers={"Accept": "*/*"})
    item = ElementTree.fromstring(xml.content).find(f"{NS}Item")
    assert item is not None
    assert (item.get("domain"), item.get("sparse"), item.findtext(f"{NS}Name")) == (
        "QBO",
        "false",
        "Bread & Wine",
    )
    account = item.find(f"{NS}IncomeAccountRef")
    assert account is not None
    assert (account.text, account.get("name")) == (
        made["IncomeAccountRef"]["value"],
        made["IncomeAccountRef"]["name"],
    )


async def test_a_customer_as_created(books: httpx.AsyncClient) -> None:
    answer = await send(books, "Customer", {"GivenName": "Ada", "FamilyName": "Byron"})
    row = answer.json()["Customer"]
    assert (row["Id"], row["SyncToken"], row["DisplayName"]) == ("1", "0", "Ada Byron")
    assert row["MetaData"] == dict.fromkeys(("CreateTime", "LastUpdatedTime"), "2025-10-09T01:53:20-07:00")
    assert answer.json()["time"] == "2025-10-09T01:53:20.000-07:00"
    assert (await books.get(f"{BASE}/customer/1")).json()["Customer"] == row


async def test_ids_are_per_entity_and_accounts_differ_by_company(books: httpx.AsyncClient) -> None:
    made = await saved(books, "Customer", {"DisplayName": "Ada"})
    assert (await ticket(books))["Id"] == made["Id"] == "1"
    other = (await books.post("/_sandbox/accounts", json={})).json()
    answer = await books.get(
        f"/v3/company/{other['account']}/query",
        params={"query": "SELECT * FROM Account"},
        headers={"Authorization": f"Bearer {other['token']}"},
    )
    theirs = {row["Id"] for row in answer.json()["QueryResponse"]["Account"]}
    ours = {row["Id"] for row in (await ask(books, "SELECT * FROM Account"))["Account"]}
    assert theirs != ours


async def test_company_and_preferences(books: httpx.AsyncClient) -> None:
    info = (await books.get(f"{BASE}/companyinfo/{DEFAULT_REALM}")).json()["CompanyInfo"]
    assert (info["CompanyName"], info["Country"]) == ("Venue Demo", "US")
    money = (await books.get(f"{BASE}/preferences")).json()["Preferences"]["CurrencyPrefs"]
    assert money == {"HomeCurrency": {"value": "USD"}, "MultiCurrencyEnabled": False}


# What is refused.


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Name": None}, "2020"),
        ({"Type": None}, "2020"),
        ({"IncomeAccountRef": None}, "2020"),
        ({"Type": "Ticket"}, "2170"),
        ({"Name": "a:b"}, "2170"),
        ({"Name": "x" * 101}, "2170"),
        ({"UnitPrice": "45.50"}, "2170"),
        ({"IncomeAccountRef": "1"}, "2170"),
        ({"IncomeAccountRef": {"value": "999"}}, "2500"),
        ({"Price": 1}, "2010"),
        ({"Type": "Inventory", "TrackQtyOnHand": True, "QtyOnHand": 5}, "2020"),
    ],
)
async def test_items_are_checked(books: httpx.AsyncClient, change: Body, expected: str) -> None:
    body = {"Name": "T", "Type": "Service", "IncomeAccountRef": await income(books), **change}
    assert code(await send(books, "Item", body)) == (400, expected)


async def test_income_goes_to_an_income_account(books: httpx.AsyncClient) -> None:
    bank = (await ask(books, "SELECT * FROM Account WHERE AccountType = 'Bank'"))["Account"][0]["Id"]
    body = {"Name": "T", "Type": "Service", "IncomeAccountRef": {"value": bank}}
    assert code(await send(books, "Item", body)) == (400, "6000")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"CompanyName": "only"}, "2020"),
        ({"DisplayName": "a\tb"}, "2170"),
        ({"DisplayName": "x" * 501}, "2170"),
        ({"GivenName": "x" * 101}, "2170"),
        ({"DisplayName": "A", "PrimaryEmailAddr": {"Address": "nobody"}}, "2170"),
        ({"DisplayName": "A", "PrimaryEmailAddr": {"Address": "a" * 92 + "@x.exampl"}}, "2170"),
        ({"DisplayName": "A", "PrimaryPhone": {"FreeFormNumber": "1" * 22}}, "2170"),
        ({"DisplayName": "A", "Email": "a@x.example"}, "2010"),
        ({"DisplayName": "A", "sparse": True}, "2020"),
    ],
)
async def test_customers_are_checked(books: httpx.AsyncClient, body: Body, expected: str) -> None:
    assert code(await send(books, "Customer", body)) == (400, expected)


async def test_display_names_are_unique_across_people(books: httpx.AsyncClient) -> None:
    made = await saved(books, "Vendor", {"DisplayName": "Ada"})
    assert code(await send(books, "Customer", {"DisplayName": "ADA"})) == (400, "6240")
    await saved(books, "Vendor", {**made, "DisplayName": "Ada of Lights"})
    await saved(books, "Customer", {"DisplayName": "Ada"})
    both = [{"DisplayName": name, "PrimaryEmailAddr": {"Address": "a@x.example"}} for name in ("B", "C")]
    assert [(await send(books, "Customer", body)).status_code for body in both] == [200, 200]


async def test_an_inactive_row_keeps_its_name(books: httpx.AsyncClient) -> None:
    made = await ticket(books)
    off = {"Id": made["Id"], "SyncToken": "0", "sparse": True, "Active": False}
    assert (await saved(books, "Item", off))["Name"] == "Ticket"
    body = {"Name": "ticket", "Type": "Service", "IncomeAccountRef": await income(books)}
    assert code(await send(books, "Item", body)) == (400, "6240")
    assert await ask(books, "SELECT * FROM Item") == {}
    found = await ask(books, "SELECT * FROM Item WHERE Active IN (true, false) AND Name = 'Ticket'")
    assert [row["Id"] for row in found["Item"]] == [made["Id"]]
    assert (await books.get(f"{BASE}/item/{made['Id']}")).json()["Item"]["Active"] is False
    sale = {"Line": lines(made)}
    assert code(await send(books, "SalesReceipt", sale)) == (400, "610")


async def test_only_json_is_taken(books: httpx.AsyncClient) -> None:
    answer = await books.post(f"{BASE}/customer", data={"DisplayName": "A"})
    assert answer.status_code == 415
    assert (await books.post(f"{BASE}/Customer", json={"DisplayName": "A"})).status_code == 404


# Updates.


async def test_a_full_update_clears_what_it_leaves_out(books: httpx.AsyncClient) -> None:
    made = await saved(books, "Customer", {"DisplayName": "Ada", "Notes": "n", "CompanyName": "C"})
    sparse = {"Id": "1", "SyncToken": "0", "sparse": True, "Notes": "new"}
    kept = await saved(books, "Customer", sparse)
    assert (kept["CompanyName"], kept["Notes"], kept["SyncToken"]) == ("C", "new", "1")
    full = {"Id": "1", "SyncToken": "1", "DisplayName": "Ada", "Notes": "newer"}
    after = await saved(books, "Customer", full)
    assert ("CompanyName" in after, after["Notes"], after["SyncToken"]) == (False, "newer", "2")
    assert after["MetaData"]["CreateTime"] == made["MetaData"]["CreateTime"]


async def test_updates_need_the_current_token(books: httpx.AsyncClient) -> None:
    await saved(books, "Customer", {"DisplayName": "Ada"})
    change = {"Id": "1", "sparse": True, "Notes": "n"}
    assert code(await send(books, "Customer", change)) == (400, "2020")
    assert (await send(books, "Customer", {**change, "SyncToken": "0"})).status_code == 200
    assert code(await send(books, "Customer", {**change, "SyncToken": "0"})) == (400, "5010")
    assert code(await send(books, "Customer", {**change, "Id": "9", "SyncToken": "0"})) == (400, "610")


async def test_null_clears_in_a_sparse_update(books: httpx.AsyncClient) -> None:
    await saved(books, "Customer", {"DisplayName": "Ada", "Notes": "n"})
    after = await saved(books, "Customer", {"Id": "1", "SyncToken": "0", "sparse": True, "Notes": None})
    assert "Notes" not in after


async def test_lines_are_replaced_as_a_whole(books: httpx.AsyncClient) -> None:
    item = await ticket(books)
    made = await saved(books, "SalesReceipt", {"Line": [*lines(item), *lines(item, 1, 45.5, 45.5)]})
    first, second, subtotal = made["Line"]
    assert (first["Id"], second["Id"], subtotal["DetailType"]) == ("1", "2", "SubTotalLineDetail")
    assert (made["TotalAmt"], subtotal["Amount"]) == (136.5, 136.5)
    sparse = {"Id": made["Id"], "SyncToken": "0", "sparse": True, "Line": [second, *lines(item)]}
    after = await saved(books, "SalesReceipt", sparse)
    assert [line.get("Id") for line in after["Line"]] == ["2", "3", None]
    assert after["TotalAmt"] == 136.5


async def test_an_items_type_and_quantity_stay(books: httpx.AsyncClient) -> None:
    accounts = {
        row["Name"]: {"value": row["Id"]} for row in (await ask(books, "SELECT * FROM Account"))["Account"]
    }
    stock = {
        "Type": "Inventory",
        "TrackQtyOnHand": True,
        "QtyOnHand": 10,
        "InvStartDate": "2025-10-01",
        "AssetAccountRef": accounts["Inventory Asset"],
        "ExpenseAccountRef": accounts["Cost of Goods Sold"],
    }
    made = await ticket(books, "Shirt", **stock)
    sparse = {"Id": made["Id"], "SyncToken": "0", "sparse": True}
    assert code(await send(books, "Item", {**sparse, "Type": "Service"})) == (400, "6000")
    assert (await saved(books, "Item", {**sparse, "QtyOnHand": 99}))["QtyOnHand"] == 10
    await saved(books, "SalesReceipt", {"Line": lines(made)})
    assert (await books.get(f"{BASE}/item/{made['Id']}")).json()["Item"]["QtyOnHand"] == 8


# Transactions.


async def test_sales_are_checked(books: httpx.AsyncClient) -> None:
    item = await ticket(books)
    assert code(await send(books, "SalesReceipt", {"Line": []})) == (400, "2020")
    assert code(await send(books, "SalesReceipt", {"Line": lines(item, 2, 45.5, 90)})) == (400, "6070")
    assert code(await send(books, "Invoice", {"Line": lines(item)})) == (400, "2020")
    unknown = {"CustomerRef": {"value": "9"}, "Line": lines(item)}
    assert code(await send(books, "Invoice", unknown)) == (400, "2500")
    assert code(await send(books, "SalesReceipt", {"Line": lines({"Id": "9"})})) == (400, "2500")
    assert code(await send(books, "SalesReceipt", {"Line": lines(item), "DocNumber": "1" * 22})) == (
        400,
        "2170",
    )


async def test_a_payment_is_applied_to_an_invoice(books: httpx.AsyncClient) -> None:
    item, ada = await ticket(books), {"value": (await saved(books, "Customer", {"DisplayName": "Ada"}))["Id"]}
    invoice = await saved(books, "Invoice", {"CustomerRef": ada, "Line": lines(item)})
    assert (invoice["TotalAmt"], invoice["Balance"]) == (91, 91)
    link = [{"Amount": 60, "LinkedTxn": [{"TxnId": invoice["Id"], "TxnType": "Invoice"}]}]
    payment = await saved(books, "Payment", {"CustomerRef": ada, "TotalAmt": 80, "Line": link})
    assert payment["UnappliedAmt"] == 20

    async def now(entity: str, name: str) -> Body:
        row: Body = (await books.get(f"{BASE}/{entity.lower()}/{name}")).json()[entity]
        return row

    after = await now("Invoice", invoice["Id"])
    assert (after["Balance"], after["SyncToken"]) == (31, "1")
    assert after["LinkedTxn"] == [{"TxnId": payment["Id"], "TxnType": "Payment"}]
    assert (await now("Customer", "1"))["Balance"] == 11
    over = [{**link[0], "Amount": 31.01}]
    body = {"CustomerRef": ada, "TotalAmt": 80, "Line": over}
    assert code(await send(books, "Payment", body)) == (400, "6000")
    gone = {"Id": payment["Id"], "SyncToken": "0"}
    answer = await send(books, "Payment", gone, operation="delete")
    assert answer.json()["Payment"] == {"Id": payment["Id"], "status": "Deleted", "domain": "QBO"}
    again = await now("Invoice", invoice["Id"])
    assert (again["Balance"], again["LinkedTxn"]) == (91, [])
    assert (await now("Customer", "1"))["Balance"] == 91
    assert code(await books.get(f"{BASE}/payment/{payment['Id']}")) == (400, "610")


async def test_deleting_an_invoice_frees_its_payment(books: httpx.AsyncClient) -> None:
    item, ada = await ticket(books), {"value": (await saved(books, "Customer", {"DisplayName": "Ada"}))["Id"]}
    invoice = await saved(books, "Invoice", {"CustomerRef": ada, "Line": lines(item)})
    link = [{"Amount": 91, "LinkedTxn": [{"TxnId": invoice["Id"], "TxnType": "Invoice"}]}]
    payment = await saved(books, "Payment", {"CustomerRef": ada, "TotalAmt": 91, "Line": link})
    await saved(books, "Invoice", {"Id": invoice["Id"], "SyncToken": "1"}, operation="delete")
    freed = (await books.get(f"{BASE}/payment/{payment['Id']}")).json()["Payment"]
    assert (freed["UnappliedAmt"], freed["Line"], freed["SyncToken"]) == (91, [], "1")


async def test_customers_and_items_cannot_be_deleted(books: httpx.AsyncClient) -> None:
    await saved(books, "Customer", {"DisplayName": "Ada"})
    answer = await send(books, "Customer", {"Id": "1", "SyncToken": "0"}, operation="delete")
    assert code(answer) == (400, "500")


async def test_voiding(books: httpx.AsyncClient) -> None:
    item, ada = await ticket(books), {"value": (await saved(books, "Customer", {"DisplayName": "Ada"}))["Id"]}
    invoice = await saved(books, "Invoice", {"CustomerRef": ada, "Line": lines(item)})
    voided = await saved(books, "Invoice", {"Id": invoice["Id"], "SyncToken": "0"}, operation="void")
    assert (voided["TotalAmt"], voided["Balance"], voided["PrivateNote"]) == (0, 0, "Voided")
    sale = await saved(books, "SalesReceipt", {"Line": lines(item)})
    void = {"operation": "update", "include": "void"}
    body = {"Id": sale["Id"], "SyncToken": "0"}
    assert code(await send(books, "SalesReceipt", body, **void)) == (400, "2020")  # sparse is missing
    after = await saved(books, "SalesReceipt", {**body, "sparse": True}, **void)
    assert (after["TotalAmt"], after["SyncToken"]) == (0, "1")
    assert code(await send(books, "SalesReceipt", body, operation="void")) == (400, "500")


async def test_what_a_company_may_have_set(books: httpx.AsyncClient) -> None:
    item = await ticket(books)
    sale = {"Line": lines(item), "DocNumber": "A1", "TxnDate": "2025-06-30"}
    await saved(books, "SalesReceipt", sale)
    await saved(books, "SalesReceipt", sale)  # numbers may repeat
    await behave(books, unique_doc_numbers=True)
    assert code(await send(books, "SalesReceipt", sale)) == (400, "6140")
    await behave(books, book_close_date="2025-06-30")
    assert code(await send(books, "SalesReceipt", {**sale, "DocNumber": "A2"})) == (400, "6210")
    await saved(books, "SalesReceipt", {**sale, "DocNumber": "A2", "TxnDate": "2025-07-01"})
    await behave(books, subscription_ended=True)
    assert code(await send(books, "Customer", {"DisplayName": "Ada"})) == (400, "6190")
    assert (await books.post("/_sandbox/behaviour", json={"batch_most": "10"})).status_code == 400


# The query language.


@pytest.fixture
async def people(books: httpx.AsyncClient) -> httpx.AsyncClient:
    """Three customers, ten seconds apart, the second changed last."""
    for name, mail in (("Dara O'Brien", "Dara@x.example"), (r"Back\slash", "b@x.example"), ("Cy", "")):
        await saved(
            books, "Customer", {"DisplayName": name, "PrimaryEmailAddr": {"Address": mail or "c@y.example"}}
        )
        await later(books, 10)
    await saved(books, "Customer", {"Id": "2", "SyncToken": "0", "sparse": True, "Notes": "n"})
    return books


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (r"DisplayName = 'Dara O\'Brien'", ["1"]),
        (r"DisplayName = 'Back\\slash'", ["2"]),
        ("displayname = 'x'", None),
        ("DisplayName LIKE '%a%'", ["1", "2"]),
        ("DisplayName LIKE 'c%'", ["3"]),
        ("DisplayName LIKE 'c'", []),
        ("PrimaryEmailAddr = 'dara@X.example'", ["1"]),
        ("Id IN ('3', '1', '9')", ["1", "3"]),
        ("Id >= '2'", ["2", "3"]),
        ("Id = '1' AND DisplayName = 'Cy'", []),
        ("MetaData.LastUpdatedTime > '2025-10-09T01:53:20-07:00'", ["2", "3"]),
        ("MetaData.LastUpdatedTime >= '2025-10-09T08:53:20Z'", ["1", "2", "3"]),
        ("MetaData.LastUpdatedTime < '2025-10-09T01:53:50-07:00'", ["1", "3"]),
        ("MetaData.LastUpdatedTime <= '2025-10-09T01:53:50'", ["1", "2", "3"]),
        ("Active = false", []),
        ("Balance IN (0, 1)", ["1", "2", "3"]),
        ("Balance IN (1, 2)", []),
        ("Active IN (true, false) AND Balance < '1'", ["1", "2", "3"]),
    ],
)
async def test_conditions(people: httpx.AsyncClient, where: str, expected: list[str] | None) -> None:
    text = f"SELECT * FROM Customer WHERE {where} ORDERBY Id"
    answer = await people.get(f"{BASE}/query", params={"query": text})
    if expected is None:
        assert code(answer) == (400, "4001")
        return
    found = answer.json()["QueryResponse"].get("Customer", [])
    assert [row["Id"] for row in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "4000"),
        ("SELECT *", "4000"),
        ("SELECT * FROM Customer WHERE DisplayName = 'O'Brien'", "4000"),
        ("SELECT * FROM Customer WHERE DisplayName = 'a' OR Id = '1'", "4000"),
        ("SELECT * FROM Customer WHERE DisplayName != 'a'", "4000"),
        ("SELECT * FROM Customer WHERE DisplayName = Ada", "4000"),
        ("SELECT * FROM Customer GROUP BY Id", "4000"),
        ("SELECT * FROM Customer MAXRESULTS 10 STARTPOSITION 1", "4000"),
        ("SELECT * FROM Person", "4001"),
        ("SELECT * FROM Customer WHERE Notes = 'x'", "4001"),
        ("SELECT * FROM Customer WHERE PrimaryEmailAddr.Address = 'x'", "4001"),
        ("SELECT * FROM Customer MAXRESULTS 1001", "4001"),
        ("SELECT * FROM Customer STARTPOSITION 0", "4001"),
        ("SELECT * FROM Customer WHERE MetaData.LastUpdatedTime > '2025-10-09T01:53:20 07:00'", "4001"),
    ],
)
async def test_what_the_language_has_not(books: httpx.AsyncClient, text: str, expected: str) -> None:
    assert code(await books.get(f"{BASE}/query", params={"query": text})) == (400, expected)


async def test_an_offset_that_was_not_encoded_is_refused(books: httpx.AsyncClient) -> None:
    text = "select%20*%20from%20Customer%20where%20MetaData.CreateTime%20%3E%20'2025-10-09T01:53:20{}02:00'"
    answers = [await books.get(f"{BASE}/query?query={text.format(plus)}") for plus in ("+", "%2B")]
    assert [answer.status_code for answer in answers] == [400, 200]


async def test_pages(people: httpx.AsyncClient) -> None:
    order = "ORDERBY MetaData.LastUpdatedTime, Id"
    first = await ask(people, f"SELECT * FROM Customer {order} STARTPOSITION 1 MAXRESULTS 2")
    assert ([row["Id"] for row in first["Customer"]], first["startPosition"], first["maxResults"]) == (
        ["1", "3"],
        1,
        2,
    )
    second = await ask(people, f"SELECT * FROM Customer {order} STARTPOSITION 3 MAXRESULTS 2")
    assert ([row["Id"] for row in second["Customer"]], second["maxResults"]) == (["2"], 1)
    assert await ask(people, f"SELECT * FROM Customer {order} STARTPOSITION 5 MAXRESULTS 2") == {}
    assert "totalCount" not in first
    assert await names(people, "SELECT * FROM Customer ORDERBY DisplayName DESC MAXRESULTS 2") == [
        "Dara O'Brien",
        "Cy",
    ]
    # Without an order the row changed last comes first.
    assert (await names(people, "SELECT * FROM Customer MAXRESULTS 1")) == [r"Back\slash"]


async def test_a_hundred_rows_unless_more_are_asked_for(books: httpx.AsyncClient) -> None:
    await books.post("/_sandbox/sales", json={"count": 1001})
    assert (await ask(books, "SELECT * FROM SalesReceipt"))["maxResults"] == 100
    assert (await ask(books, "SELECT * FROM SalesReceipt MAXRESULTS 1000"))["maxResults"] == 1000
    assert await ask(books, "SELECT COUNT(*) FROM SalesReceipt") == {"totalCount": 1001}
    assert await ask(books, "select count(*) from SalesReceipt where Id = '7'") == {"totalCount": 1}


async def test_a_query_by_post(people: httpx.AsyncClient) -> None:
    text = r"SELECT * FROM Customer WHERE DisplayName = 'Dara O\'Brien'"
    answer = await people.post(f"{BASE}/query", content=text, headers={"Content-Type": "application/text"})
    assert [row["Id"] for row in answer.json()["QueryResponse"]["Customer"]] == ["1"]
    assert (await people.post(f"{BASE}/query", json={"query": text})).status_code == 415
    counted = (await people.get("/_sandbox/calls")).json()
    assert counted["writes"] == 4  # the queries are none


async def test_sku_comes_when_named(books: httpx.AsyncClient) -> None:
    await ticket(books, Sku="T-1")
    bare = (await ask(books, "SELECT * FROM Item WHERE Sku = 'T-1'"))["Item"][0]
    assert "Sku" not in bare
    assert (await ask(books, "SELECT *, Sku FROM Item"))["Item"][0] == {**bare, "Sku": "T-1"}


# Change data capture.


async def test_changes_since(people: httpx.AsyncClient) -> None:
    item = await ticket(people)
    sale = await saved(people, "SalesReceipt", {"Line": lines(item)})
    await later(people, 10)
    await saved(people, "SalesReceipt", {"Id": sale["Id"], "SyncToken": "0"}, operation="delete")
    params = {"entities": "Customer,Invoice,SalesReceipt", "changedSince": "2025-10-09T01:53:31-07:00"}
    body = (await people.get(f"{BASE}/cdc", params=params)).json()
    customers, invoices, sales = body["CDCResponse"][0]["QueryResponse"]
    assert [row["Id"] for row in customers["Customer"]] == ["3", "2"]
    assert (customers["maxResults"], invoices) == (2, {})
    assert sales["SalesReceipt"] == [
        {
            "domain": "QBO",
            "status": "Deleted",
            "Id": sale["Id"],
            "MetaData": {"LastUpdatedTime": "2025-10-09T01:54:00-07:00"},
        }
    ]
    old = {**params, "changedSince": "2025-09-09T01:53:00-07:00"}
    assert code(await people.get(f"{BASE}/cdc", params=old)) == (400, "2170")
    unknown = {**params, "entities": "Customer,Person"}
    assert code(await people.get(f"{BASE}/cdc", params=unknown)) == (400, "2170")


async def test_changes_stop_at_a_thousand(clock: SandboxClock) -> None:
    async with client(QuickBooks(clock)) as calls:
        await calls.post("/_sandbox/limits", json={"all": None})
        await calls.post("/_sandbox/sales", json={"count": 3500})  # over 90 days: 1,166 within 30
        params = {"entities": "Item,SalesReceipt", "changedSince": "2025-09-10T00:00:00-07:00"}
        item, sales = (await calls.get(f"{BASE}/cdc", params=params)).json()["CDCResponse"][0][
            "QueryResponse"
        ]
        assert (item["maxResults"], sales["maxResults"]) == (1, 999)


# Batches.


async def batch(books: httpx.AsyncClient, *items: Body, **params: str) -> httpx.Response:
    return await books.post(f"{BASE}/batch", json={"BatchItemRequest": list(items)}, params=params)


def making(name: str, place: object = None) -> Body:
    return {"bId": str(place or name), "operation": "create", "Customer": {"DisplayName": name}}


async def test_a_batch_fails_item_by_item(books: httpx.AsyncClient) -> None:
    await saved(books, "Customer", {"DisplayName": "Old"})
    answer = await batch(
        books,
        making("Ada"),
        making("ada", "twice"),
        {"bId": "u", "operation": "update", "Customer": {"Id": "1", "SyncToken": "7", "DisplayName": "O"}},
        {"bId": "q", "Query": "SELECT * FROM Customer"},
        {"bId": "x", "operation": "upsert", "Customer": {"DisplayName": "Eve"}},
    )
    assert answer.status_code == 200
    found = {item["bId"]: item for item in answer.json()["BatchItemResponse"]}
    assert found["Ada"]["Customer"]["DisplayName"] == "Ada"
    codes = {name: item["Fault"]["Error"][0]["code"] for name, item in found.items() if "Fault" in item}
    assert codes == {"twice": "6240", "u": "5010", "x": "500"}
    # Items do not see what others of their batch made.
    assert [row["DisplayName"] for row in found["q"]["QueryResponse"]["Customer"]] == ["Old"]
    assert await names(books, "SELECT * FROM Customer ORDERBY Id") == ["Old", "Ada"]


async def test_a_batch_cannot_refer_to_itself(books: httpx.AsyncClient) -> None:
    item = await ticket(books)
    sale = {"CustomerRef": {"value": "1"}, "Line": lines(item)}
    invoice = {"bId": "i", "operation": "create", "Invoice": sale}
    first = (await batch(books, making("Ada"), invoice)).json()["BatchItemResponse"]
    assert first[1]["Fault"]["Error"][0]["code"] == "2500"
    assert "Invoice" in (await batch(books, invoice)).json()["BatchItemResponse"][0]


async def test_a_batch_has_thirty_items(books: httpx.AsyncClient) -> None:
    thirty = [making(f"C{place}") for place in range(30)]
    assert code(await batch(books, *thirty, making("C30"))) == (400, "1040")
    assert (await ask(books, "SELECT COUNT(*) FROM Customer")) == {"totalCount": 0}
    assert (await batch(books, *thirty)).status_code == 200
    assert code(await batch(books, making("D", "1"), making("E", "1"))) == (400, "2170")
    await behave(books, batch_most=25, batch_reversed=True)
    assert code(await batch(books, *thirty[:26])) == (400, "1040")
    answer = await batch(books, making("F"), making("G"))
    assert [item["bId"] for item in answer.json()["BatchItemResponse"]] == ["G", "F"]


# Request ids.


async def test_a_request_id_writes_once(books: httpx.AsyncClient) -> None:
    first = await send(books, "Customer", {"DisplayName": "Ada"}, requestid="r1")
    await later(books, 5)
    again = await send(books, "Customer", {"DisplayName": "Ada"}, requestid="r1")
    assert again.json() == first.json()
    assert code(await send(books, "Customer", {"DisplayName": "Eve"}, requestid="r1")) == (400, "600")
    await behave(books, clash_replays=True)
    assert (await send(books, "Customer", {"DisplayName": "Eve"}, requestid="r1")).json() == first.json()
    assert (await ask(books, "SELECT COUNT(*) FROM Customer")) == {"totalCount": 1}
    assert (await books.get("/_sandbox/calls")).json()["replayed"] == 2


async def test_a_lost_answer_can_be_had_again(books: httpx.AsyncClient) -> None:
    rule = {"match": "POST /v3/company/{realm}/customer", "fault": "after:503", "times": 1}
    await books.post("/_sandbox/faults", json={"rules": [rule]})
    body = {"DisplayName": "Ada"}
    lost = await send(books, "Customer", body, requestid="r")
    assert (lost.status_code, lost.json()["Fault"]["type"]) == (503, "SystemFault")
    assert (await send(books, "Customer", body, requestid="r")).json()["Customer"]["Id"] == "1"


async def test_a_refusal_is_no_outcome(books: httpx.AsyncClient) -> None:
    made = await saved(books, "Customer", {"DisplayName": "Ada"})
    assert code(await send(books, "Customer", {"DisplayName": "Ada"}, requestid="r")) == (400, "6240")
    await saved(books, "Customer", {**made, "DisplayName": "Eve"})
    assert (await send(books, "Customer", {"DisplayName": "Ada"}, requestid="r")).status_code == 200


async def test_request_ids_have_their_lengths(books: httpx.AsyncClient) -> None:
    assert code(await send(books, "Customer", {"DisplayName": "A"}, requestid="r" * 51)) == (400, "2170")
    assert (await send(books, "Customer", {"DisplayName": "A"}, requestid="r" * 50)).status_code == 200
    assert code(await batch(books, making("B"), requestid="r" * 37)) == (400, "2170")
    assert code(await batch(books, making("B", "b" * 11), requestid="q" * 36)) == (400, "2170")
    assert (await batch(books, making("B", "b" * 10), requestid="q" * 36)).status_code == 200


async def test_a_request_id_under_way_is_a_clash(books: httpx.AsyncClient) -> None:
    await books.post("/_sandbox/latency", json={"seconds": 0.01})
    both = await asyncio.gather(
        *(send(books, "Customer", {"DisplayName": "Ada"}, requestid="r") for _ in range(2))
    )
    assert sorted(answer.status_code for answer in both) == [200, 400]


# Limits.


async def statuses(books: httpx.AsyncClient, count: int) -> list[int]:
    return [(await books.get(f"{BASE}/preferences")).status_code for _ in range(count)]


async def test_ten_a_second(limited: httpx.AsyncClient) -> None:
    assert await statuses(limited, 11) == [200] * 10 + [429]
    answer = await limited.get(f"{BASE}/preferences")
    assert code(answer) == (429, "003001")
    assert "retry-after" not in answer.headers
    await later(limited, 1)
    assert await statuses(limited, 10) == [200] * 10
    await behave(limited, retry_after=60, throttle_code="3001")
    answer = await limited.get(f"{BASE}/preferences")
    assert (code(answer), answer.headers["retry-after"]) == ((429, "3001"), "60")


async def test_five_hundred_a_minute(limited: httpx.AsyncClient) -> None:
    await limited.post("/_sandbox/limits", json={"requests_per_second": None})
    assert await statuses(limited, 501) == [200] * 500 + [429]
    await later(limited, 60)
    assert await statuses(limited, 1) == [200]


async def test_forty_batches_a_minute(limited: httpx.AsyncClient) -> None:
    await limited.post("/_sandbox/limits", json={"requests_per_second": None})
    query = {"bId": "q", "Query": "SELECT COUNT(*) FROM Customer"}
    answers = [(await batch(limited, query)).status_code for _ in range(41)]
    assert answers == [200] * 40 + [429]
    assert await statuses(limited, 1) == [200]


async def test_reads_run_out_till_the_month_ends(limited: httpx.AsyncClient) -> None:
    await limited.post("/_sandbox/limits", json={"reads_per_month": 2})
    assert await statuses(limited, 3) == [200, 200, 429]
    await saved(limited, "Customer", {"DisplayName": "Ada"})
    await later(limited, 22 * 86_400)  # 31 October
    assert await statuses(limited, 1) == [429]
    await later(limited, 86_400)
    assert await statuses(limited, 1) == [200]


async def test_ten_at_once(limited: httpx.AsyncClient) -> None:
    await limited.post("/_sandbox/limits", json={"requests_per_second": None})
    await limited.post("/_sandbox/latency", json={"seconds": 0.05})
    answers = await asyncio.gather(*(limited.get(f"{BASE}/preferences") for _ in range(11)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429]
    assert await statuses(limited, 1) == [200]


# The sandbox itself.


async def test_versions_are_counted(books: httpx.AsyncClient) -> None:
    await books.get(f"{BASE}/preferences", params={"minorversion": "75"})
    assert (await books.get("/_sandbox/calls")).json()["versions"] == {"75": 1}


async def test_the_demo_has_something_to_match(clock: SandboxClock) -> None:
    made = QuickBooks(clock)
    made.start_with(lambda: seed_demo(made, ["guest@venue.example"]))
    async with client(made) as calls:
        await calls.post("/_sandbox/limits", json={"all": None})
        found = await names(calls, "SELECT * FROM Customer WHERE PrimaryEmailAddr = 'guest@venue.example'")
        assert len(found) == 1
        assert await ask(calls, "SELECT COUNT(*) FROM Customer") == {"totalCount": 11}  # one is inactive
        assert await ask(calls, "SELECT COUNT(*) FROM SalesReceipt") == {"totalCount": 60}
        stored = (await calls.get("/_sandbox/objects?type=customer")).json()["objects"]
        assert (len(stored), stored[0]["account"]) == (12, DEFAULT_REALM)
        await saved(calls, "Customer", {"DisplayName": "New"})
        await calls.post("/_sandbox/reset")
        assert await ask(calls, "SELECT COUNT(*) FROM Customer") == {"totalCount": 11}


async def test_it_goes_on_where_it_stopped(clock: SandboxClock, tmp_path: Path) -> None:
    before, after = QuickBooks(clock), QuickBooks(clock)
    async with client(before) as calls:
        await calls.post("/_sandbox/limits", json={"all": None})
        made = await saved(calls, "Customer", {"DisplayName": "Ada"}, requestid="r")
        other = (await calls.post("/_sandbox/accounts", json={"account": "77"})).json()
    before.save(tmp_path / "quickbooks")
    after.load(tmp_path / "quickbooks")
    async with client(after) as calls:
        assert (await ask(calls, "SELECT * FROM Customer WHERE DisplayName = 'ada'"))["Customer"] == [made]
        assert await saved(calls, "Customer", {"DisplayName": "Ada"}, requestid="r") == made
        assert code(await send(calls, "Customer", {"DisplayName": "Ada"})) == (400, "6240")
        assert (await saved(calls, "Customer", {"DisplayName": "Eve"}))["Id"] == "2"
        bearer = {"Authorization": f"Bearer {other['token']}"}
        info = await calls.get("/v3/company/77/companyinfo/77", headers=bearer)
        assert info.json()["CompanyInfo"]["CompanyName"] == "Venue 77"
