"""QuickBooks both ways: whatever the platform holds, one push is enough, and bad days make no doubles.

What the company holds in the end is worked out here; nothing is read back through the engine.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine import Credentials, Secret, load_platform
from engine.client import ProviderClient
from engine.clock import SystemClock
from engine.memory import MemoryHost, MemorySyncState, StaticCredentials
from engine.ports import Record
from engine.sync import Sync, Tally
from engine.templates import load_template
from engine.transport import open_client
from tests.contract.connectors.conftest import PROJECT, Standing
from tests.sandbox import quickbooks
from tests.sandbox.running import Sandbox

VENUE = {"id": "v-1", "name": "Café Zoë", "currency": "USD", "books_from": "2026-10-01"}
TOKEN = Credentials(
    {"access_token": Secret(quickbooks.LASTING_TOKEN)},
    {"realm_id": quickbooks.DEFAULT_REALM, "income_account": "31", "refund_account": "34"},
)
FEW = settings(
    max_examples=4,
    phases=[Phase.generate],  # a smaller example would take minutes to find
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def emptied(sandbox: Sandbox) -> Standing:
    client = (quickbooks.DEFAULT_CLIENT, quickbooks.DEFAULT_SECRET)
    standing = Standing("quickbooks", sandbox.quickbooks_url, quickbooks.REPLACES, client)
    standing.control("reset", {})
    standing.control("limits", {"all": None})
    return standing


class NoWaiting(SystemClock):
    """The time of day, as the stand-in has it; but what is waited for is over at once."""

    def __init__(self) -> None:
        self.waited = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.waited

    async def sleep(self, seconds: float) -> None:
        self.waited += seconds
        await asyncio.sleep(0)


class World:
    """A company, a platform, and what is remembered between them."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.platform = load_platform(PROJECT / "connectors" / "platform.yaml")
        pack = PROJECT / "mapping-templates" / "quickbooks" / "default.yaml"
        self.template = load_template(pack, standing.connector, self.platform)
        self.host, self.state = MemoryHost(dict(VENUE)), MemorySyncState()

    def fill(self, entity: str, records: Sequence[Record]) -> None:
        for record in records:
            self.host.put(entity, dict(record))

    async def run(self, *directions: str, complete: bool = False) -> list[Tally]:
        tallies: list[Tally] = []
        clock = NoWaiting()
        async with open_client(origin_overrides=self.standing.overrides) as http:
            client = ProviderClient(self.standing.connector, StaticCredentials(TOKEN), http=http, clock=clock)
            for direction in directions:
                for mapping in self.template.mappings:
                    if mapping.direction not in (direction, "bidirectional"):
                        continue
                    run = Sync(
                        self.standing.connector,
                        mapping,
                        client,
                        self.host,
                        self.state,
                        venue=await self.host.venue(),
                        clock=clock,
                        fields=self.platform.entities[mapping.entity].fields,
                        complete=complete,
                    )
                    tallies.append(await (run.pull() if direction == "pull" else run.push()))
        return tallies

    async def agree(self) -> None:
        """Push, pull, push: nothing fails, and after the first push nothing is written on either side."""
        assert [each.failures for each in await self.run("push") if each.failures] == []
        written, ours = self.writes(), {name: dict(rows) for name, rows in self.host.records.items()}
        again = await self.run("pull", "push", "pull", "push")
        assert [each.failures for each in again if each.failures] == []
        assert self.writes() == written
        assert self.host.records == ours

    def writes(self) -> int:
        return int(self.standing.calls["writes"])

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return list(self.standing.control(f"objects?type={kind}")["objects"])

    def office(self, entity: str, body: dict[str, Any], **query: str) -> dict[str, Any]:
        """Write by hand, as somebody in the office does."""
        url = f"{self.standing.url}/v3/company/{quickbooks.DEFAULT_REALM}/{entity.lower()}"
        headers = {"Authorization": f"Bearer {quickbooks.LASTING_TOKEN}", "Accept": "application/json"}
        answer = httpx.post(url, json=body, headers=headers, params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()[entity])


@pytest.fixture
def world(sandbox: Sandbox) -> World:
    return World(emptied(sandbox))


# ---- records made up ---------------------------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits + "äéñøßłşж東京 &<>'\"\\/.,:;!?()+-–_#%@*"
words = st.text(LETTERS, min_size=1, max_size=30).map(str.strip).filter(bool)
maybe_words = st.none() | words
prices = st.integers(0, 10**6).map(lambda cents: Decimal(cents).scaleb(-2))


def event(number: int, **fields: Any) -> Record:
    blank = {"description": None, "status": "on_sale", "currency": "USD", "price": Decimal("45.10")}
    return {**blank, "id": f"ev-{number}", "name": f"Show {number}", **fields}


def customer(number: int, **fields: Any) -> Record:
    blank = {"phone": None, "city": None, "postal_code": None, "country": None, "accepts_marketing": True}
    names = {"first_name": "Zoë", "last_name": f"O'Brien {number}", "email": f"guest{number}@example.com"}
    return {**blank, "id": f"cu-{number}", **names, **fields}


def order(number: int, **fields: Any) -> Record:
    blank = {
        "number": f"J{number:06}",
        "status": "paid",
        "total": Decimal("90.20"),
        "currency": "USD",
        "placed_at": "2026-10-05T20:30:00Z",
        "source": "platform",
        "email": None,
        "customer_id": "cu-1",
        "event_id": "ev-1",
        "quantity": 2,
        "sold_on": "2026-10-05",
    }
    return {**blank, "id": f"or-{number}", **fields}


@st.composite
def events(draw: Callable[..., Any]) -> list[Record]:
    return [
        event(
            number,
            name=draw(words),
            description=draw(maybe_words),
            status=draw(st.sampled_from(["on_sale", "sold_out", "past", "draft"])),
            price=draw(st.none() | prices),
        )
        for number in range(draw(st.integers(1, 4)))
    ]


@st.composite
def customers(draw: Callable[..., Any]) -> list[Record]:
    return [
        customer(
            number,
            first_name=draw(maybe_words),
            last_name=draw(maybe_words),
            phone=draw(st.none() | st.integers(10**8, 10**9 - 1).map(lambda digits: f"+33{digits}")),
            city=draw(maybe_words),
            country=draw(st.sampled_from([None, "BE", "FR"])),
        )
        for number in range(draw(st.integers(1, 4)))
    ]


@st.composite
def orders(draw: Callable[..., Any]) -> list[Record]:
    made: list[Record] = []
    for number in range(draw(st.integers(1, 5))):
        quantity, price = draw(st.integers(1, 6)), draw(prices)
        made.append(
            order(
                number,
                status=draw(st.sampled_from(["paid", "paid", "paid", "pending", "refunded"])),
                source=draw(st.sampled_from(["platform", "platform", "provider"])),
                customer_id=("cu-0", "cu-1", None)[number % 3],  # an order keeps its buyer
                event_id=draw(st.sampled_from(["ev-0", "ev-1"])),
                quantity=quantity,
                total=price * quantity,
                sold_on=draw(st.sampled_from(["2026-10-01", "2026-10-31", "2026-09-30"])),
            )
        )
    return made


# ---- the properties ----------------------------------------------------------------------------------


@FEW
@given(first=events(), second=events())
async def test_events_settle(first: list[Record], second: list[Record], sandbox: Sandbox) -> None:
    world = World(emptied(sandbox))
    items: dict[str, Decimal] = {}
    for made in (first, second):
        world.fill("event", made)
        items |= {
            row["id"]: row["price"] for row in made if row["status"] != "draft" and row["price"] is not None
        }
        await world.agree()
        rows = world.objects("Item")
        assert {row["Sku"]: Decimal(str(row["UnitPrice"])) for row in rows} == items
        assert len(rows) == len(items)


@FEW
@given(first=customers(), second=customers())
async def test_customers_settle(first: list[Record], second: list[Record], sandbox: Sandbox) -> None:
    world = World(emptied(sandbox))
    everyone: dict[str, str | None] = {}
    for made in (first, second):
        world.fill("customer", made)
        everyone |= {row["email"]: (row["first_name"] or "")[:25].strip() or None for row in made}
        await world.agree()
        rows = world.objects("Customer")
        assert {row["PrimaryEmailAddr"]["Address"]: row.get("GivenName") for row in rows} == everyone
        assert len(rows) == len(everyone)


@pytest.mark.parametrize("most", [25, 100])
async def test_long_names_go_through_whatever_their_length_is_and_stay_whole_here(
    most: int, world: World
) -> None:
    world.standing.control("behaviour", {"name_part_most": most})
    first, last = "Maximiliane Alexandra Josephine", "von und zu Hohenstein-Sigmaringen"
    world.fill("customer", [customer(1, first_name=first, last_name=last)])
    await world.agree()
    world.fill("customer", [customer(1, first_name=first, last_name=last, city="Köln")])
    await world.agree()
    [row] = world.objects("Customer")
    assert (row["GivenName"], row["BillAddr"]["City"]) == ("Maximiliane Alexandra Jos", "Köln")
    assert row["DisplayName"].startswith(f"{first} {last}")
    ours = world.host.records["customer"]["cu-1"]
    assert (ours["first_name"], ours["last_name"]) == (first, last)


@FEW
@given(first=orders(), second=orders())
async def test_orders_settle(first: list[Record], second: list[Record], sandbox: Sandbox) -> None:
    world = World(emptied(sandbox))
    world.fill("event", [event(0), event(1)])
    world.fill("customer", [customer(0), customer(1)])
    sold: dict[str, tuple[str, Decimal, str]] = {}
    refunded: dict[str, Decimal] = {}
    for made in (first, second):
        world.fill("order", made)
        for row in made:
            if row["source"] == "platform" and row["sold_on"] >= "2026-10-01":
                total = sold[row["id"]][1] if row["id"] in sold else row["total"]  # booked once
                if row["status"] in ("paid", "refunded"):
                    sold[row["id"]] = (row["number"], total, row["sold_on"])
                if row["status"] == "refunded":
                    refunded.setdefault(row["id"], row["total"])
        await world.agree()
        rows = world.objects("SalesReceipt")
        found = {
            row["PrivateNote"]: (row["DocNumber"], Decimal(str(row["TotalAmt"])), row["TxnDate"])
            for row in rows
        }
        assert found == sold
        assert len(rows) == len(sold)
        back = world.objects("RefundReceipt")
        assert {row["PrivateNote"]: Decimal(str(row["TotalAmt"])) for row in back} == refunded
        assert len(back) == len(refunded)


async def test_a_receipt_names_the_item_the_buyer_and_the_exact_amount(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1), order(2, customer_id=None, quantity=1, total=Decimal("0.10"))])
    await world.run("push")
    [item], [buyer] = world.objects("Item"), world.objects("Customer")
    first, second = sorted(world.objects("SalesReceipt"), key=lambda row: str(row["PrivateNote"]))
    assert first["CustomerRef"]["value"] == buyer["Id"]
    assert "CustomerRef" not in second
    detail = first["Line"][0]["SalesItemLineDetail"]
    assert (detail["ItemRef"]["value"], detail["Qty"], detail["UnitPrice"]) == (item["Id"], 2, 45.1)
    assert (first["Line"][0]["Amount"], second["TotalAmt"]) == (90.2, 0.1)


async def test_a_price_that_is_not_exact_is_left_to_the_books(world: World) -> None:
    """Three for 100.00: 33.33 times three is another amount."""
    world.fill("event", [event(1)])
    world.fill("order", [order(1, customer_id=None, quantity=3, total=Decimal("100.00"))])
    await world.agree()
    [row] = world.objects("SalesReceipt")
    assert row["TotalAmt"] == row["Line"][0]["Amount"] == 100
    assert row["Line"][0]["SalesItemLineDetail"].keys() == {"ItemRef"}


async def test_a_refund_is_a_receipt_of_its_own_and_names_its_sale(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1)])
    await world.agree()
    assert world.objects("RefundReceipt") == []
    world.fill("order", [order(1, status="refunded")])
    await world.agree()
    [sale], [refund] = world.objects("SalesReceipt"), world.objects("RefundReceipt")
    assert (refund["TotalAmt"], refund["CustomerRef"]) == (90.2, sale["CustomerRef"])
    assert (refund["DocNumber"], refund["PaymentRefNum"]) == ("J000001-R", sale["Id"])
    assert refund["DepositToAccountRef"]["value"] == "34"
    assert (sale["TotalAmt"], world.host.records["order"]["or-1"]["status"]) == (90.2, "refunded")


async def test_what_was_refunded_before_it_was_booked_is_booked_with_its_refund(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("order", [order(1, customer_id=None, status="refunded")])
    await world.agree()
    assert [row["TotalAmt"] for row in world.objects("SalesReceipt")] == [90.2]
    assert [row["TotalAmt"] for row in world.objects("RefundReceipt")] == [90.2]


def void(world: World, entity: str, row: dict[str, Any]) -> None:
    body = {"Id": row["Id"], "SyncToken": row["SyncToken"], "sparse": True}
    world.office(entity, body, operation="update", include="void")


async def test_a_void_receipt_cancels_its_order_and_takes_no_total_away(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1)])
    await world.run("push", "pull")
    [buyer] = world.objects("Customer")
    world.office("Payment", {"CustomerRef": {"value": buyer["Id"]}, "TotalAmt": 33.5})
    await world.run("pull", "push")
    [paid] = [row for row in world.host.records["order"].values() if row["id"] != "or-1"]
    assert (paid["total"], paid["status"]) == (33.5, "paid")

    void(world, "SalesReceipt", world.objects("SalesReceipt")[0])
    void(world, "Payment", world.objects("Payment")[0])
    await world.run("pull", "push")
    ours = world.host.records["order"]
    assert (ours["or-1"]["total"], ours["or-1"]["status"]) == (Decimal("90.20"), "cancelled")
    assert (ours[paid["id"]]["total"], ours[paid["id"]]["status"]) == (33.5, "cancelled")
    assert [row["TotalAmt"] for row in world.objects("SalesReceipt")] == [0]
    await world.agree()


async def test_lines_that_the_office_added_stay(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("order", [order(1, customer_id=None)])
    await world.run("push", "pull")
    [row] = world.objects("SalesReceipt")
    ours = [line for line in row["Line"] if "Id" in line]
    fee = {
        "Amount": 5,
        "DetailType": "SalesItemLineDetail",
        "SalesItemLineDetail": {"ItemRef": {"value": "1"}},
    }
    head = {"Id": row["Id"], "SyncToken": row["SyncToken"], "sparse": True}
    world.office("SalesReceipt", {**head, "Line": [fee, *ours]})
    world.fill("order", [order(1, customer_id=None) | {"number": "J000009"}])
    await world.run("pull", "push", "pull", "push")
    [row] = world.objects("SalesReceipt")
    assert (row["DocNumber"], row["TotalAmt"]) == ("J000009", 95.2)
    assert [line["Amount"] for line in row["Line"] if "Id" in line] == [5, 90.2]
    await world.agree()


async def test_what_is_gone_here_goes_out_of_use(world: World) -> None:
    world.fill("event", [event(1), event(2)])
    world.fill("customer", [customer(1), customer(2)])
    await world.run("push", "pull")
    del world.host.records["event"]["ev-1"], world.host.records["customer"]["cu-1"]
    await world.run("pull", "push", complete=True)
    assert {row["Sku"]: row["Active"] for row in world.objects("Item")} == {"ev-1": False, "ev-2": True}
    active = {row["PrimaryEmailAddr"]["Address"]: row["Active"] for row in world.objects("Customer")}
    assert active == {"guest1@example.com": False, "guest2@example.com": True}
    assert world.host.records["customer"].keys() == {"cu-2"}
    await world.agree()


async def test_many_that_are_gone_here_are_held(world: World) -> None:
    world.fill("customer", [customer(number) for number in range(20)])
    await world.run("push", "pull")
    for number in range(6):
        del world.host.records["customer"][f"cu-{number}"]
    tallies = await world.run("pull", "push", complete=True)
    assert sum(each.held for each in tallies) == 6
    assert all(row["Active"] for row in world.objects("Customer"))


async def test_sales_and_payments_of_the_office_are_orders_once(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1)])
    await world.run("push")
    [item], [buyer] = world.objects("Item"), world.objects("Customer")
    detail = {"ItemRef": {"value": item["Id"]}, "Qty": 1, "UnitPrice": 20}
    line = {"Amount": 20, "DetailType": "SalesItemLineDetail", "SalesItemLineDetail": detail}
    world.office("SalesReceipt", {"Line": [line], "PrivateNote": "at the door"})
    world.office("Payment", {"CustomerRef": {"value": buyer["Id"]}, "TotalAmt": 33.5})
    for _ in range(2):
        tallies = await world.run("pull", "push")
        assert [each.failures for each in tallies if each.failures] == []
        found = [row for row in world.host.records["order"].values() if row["id"] != "or-1"]
        assert sorted((row["total"], row["status"], row.get("customer_id")) for row in found) == [
            (20, "paid", None),
            (33.5, "paid", "cu-1"),
        ]
        assert world.host.records["order"]["or-1"] == order(1)
        assert len(world.objects("SalesReceipt")) == 2


async def test_receipts_are_known_by_our_id_when_the_links_are_lost(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1)])
    await world.run("push")
    receipts = [key for key in world.state.links if key[0] == "sales_receipt"]
    for key in receipts:
        del world.state.local_ids["sales_receipt", world.state.links.pop(key).remote_id]
    world.state.positions.pop(("order", "sales_receipt", "push"))
    await world.run("pull", "push")
    assert len(world.objects("SalesReceipt")) == len(world.host.records["order"]) == 1
    assert world.host.records["order"]["or-1"]["total"] == Decimal("90.20")


async def test_a_receipt_that_the_office_deleted_is_not_made_again(world: World) -> None:
    world.fill("event", [event(1)])
    world.fill("customer", [customer(1)])
    world.fill("order", [order(1)])
    await world.run("push", "pull")
    [row] = world.objects("SalesReceipt")
    gone = {"Id": row["Id"], "SyncToken": row["SyncToken"]}
    world.office("SalesReceipt", gone, operation="delete")
    await world.run("pull")
    world.fill("order", [order(1, total=Decimal("91.20"))])
    await world.run("push")
    assert [each for each in world.objects("SalesReceipt") if each.get("status") != "Deleted"] == []


@pytest.mark.parametrize("reads_fail", [False, True])
@pytest.mark.parametrize("several", [False, True])
async def test_what_the_office_made_inactive_stays_so_and_gets_no_twin(
    several: bool, reads_fail: bool, world: World
) -> None:
    numbers = range(1, 3 if several else 2)
    world.fill("event", [event(number) for number in numbers])
    world.fill("customer", [customer(number) for number in numbers])
    await world.run("push", "pull")
    world.standing.control("behaviour", {"inactive_reads_fail": reads_fail})
    for kind in ("Item", "Customer"):
        for row in world.objects(kind):
            body = {"Id": row["Id"], "SyncToken": row["SyncToken"], "sparse": True, "Active": False}
            world.office(kind, body)
    world.fill("event", [event(number, name=f"Renamed {number}") for number in numbers])
    world.fill("customer", [customer(number, last_name=f"Ruiz {number}") for number in numbers])
    tallies = await world.run("pull", "push")
    assert [each.failures for each in tallies if each.failures] == []
    for kind, name in (("Item", "Name"), ("Customer", "DisplayName")):
        rows = world.objects(kind)
        assert [row["Active"] for row in rows] == [False] * len(numbers)
        assert all("Renamed" in row[name] or "Ruiz" in row[name] for row in rows)


@pytest.mark.parametrize("several", [False, True])
async def test_an_item_whose_name_is_taken_is_that_item(several: bool, world: World) -> None:
    account = {"value": "31"}
    there = world.office("Item", {"Name": "Show 1 #ev-1", "Type": "Service", "IncomeAccountRef": account})
    gone = {"Id": there["Id"], "SyncToken": "0", "sparse": True, "Active": False}
    world.office("Item", gone)
    world.fill("event", [event(1), event(2)] if several else [event(1)])
    await world.agree()
    items = {row["Name"]: row for row in world.objects("Item")}
    assert len(items) == len(world.objects("Item")) == (2 if several else 1)
    ours = items["Show 1 #ev-1"]
    assert (ours["Id"], ours["Active"], ours["Sku"]) == (there["Id"], False, "ev-1")


# ---- a bad day ---------------------------------------------------------------------------------------

MIX = ("status:500", "after:500", "after:disconnect", "disconnect", "html", "truncated")
RUNS = 8  # at most, until nothing is left over


@pytest.mark.parametrize("seed", [1, 2])
async def test_five_calls_in_a_hundred_fail_somehow(seed: int, world: World) -> None:
    world.fill("event", [event(number) for number in range(40)])
    world.fill("customer", [customer(number) for number in range(200)])
    sales = [order(number, event_id=f"ev-{number % 40}", customer_id=f"cu-{number}") for number in range(60)]
    world.fill("order", sales)
    rules = [{"match": "*", "fault": fault, "rate": 0.05 / len(MIX)} for fault in MIX]
    # And every one of them once for certain, at what would make doubles.
    sure = [
        {"match": "POST /v3/company/{realm}/batch", "fault": fault, "times": 1, "rate": 0.5} for fault in MIX
    ]
    world.standing.control("faults", {"rules": [*sure, *rules], "seed": seed})
    for _ in range(RUNS):
        tallies = await world.run("pull", "push")
        if not any(each.failures or each.created or each.updated for each in tallies):
            break
    assert world.standing.calls["faults"] >= len(MIX)
    world.standing.control("faults", {"rules": []})
    await world.run("pull", "push")
    await world.agree()
    assert world.state.pending == {}
    assert world.state.failures == {}
    names = {kind: [row[key] for row in world.objects(kind)] for kind, key in KEYS.items()}
    assert sorted(names["Item"]) == sorted(f"ev-{number}" for number in range(40))
    assert sorted(names["SalesReceipt"]) == sorted(f"or-{number}" for number in range(60))
    assert len(names["Customer"]) == len(set(names["Customer"])) == 200
    assert len(world.host.records["order"]) == 60


KEYS = {"Item": "Sku", "Customer": "DisplayName", "SalesReceipt": "PrivateNote"}
