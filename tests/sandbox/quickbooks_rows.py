"""Writing QuickBooks' rows: creating, full and sparse updates, deleting, voiding; the rules between rows."""

from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

from tests.sandbox.quickbooks_fields import ACCOUNT_TYPES, READ_ONLY, WRITABLE, checked
from tests.sandbox.quickbooks_world import Behaviour, Company, Table, World, missing, refused
from tests.sandbox.shelf import Json

NAMED = ("Account", "Item", "PaymentMethod")  # names unique within the entity
PEOPLE = ("Customer", "Vendor", "Employee")  # names unique across all three
SALES = ("Invoice", "SalesReceipt", "RefundReceipt", "CreditMemo")
TRANSACTIONS = (*SALES, "Payment")
NAME_PARTS = ("Title", "GivenName", "MiddleName", "FamilyName", "Suffix")
INVENTORY = ("AssetAccountRef", "ExpenseAccountRef", "InvStartDate", "QtyOnHand")
_KEPT = ("Id", "SyncToken", "MetaData", "domain", "sparse")
_FIRST_DOC = 1001


def new_company(world: World, realm: str, name: str, country: str = "US", currency: str = "USD") -> Company:
    """Register a company with a chart of accounts; its ids differ from every other company's."""
    company = Company(realm, name, country, currency)
    company.tables = {
        **{entity: Table(("Name", "Sku")) for entity in NAMED},
        **{entity: Table(("DisplayName", "PrimaryEmailAddr")) for entity in PEOPLE},
        **{entity: Table(("DocNumber", "CustomerRef")) for entity in SALES},
        "Payment": Table(("CustomerRef",)),
        "CompanyInfo": Table(),
        "Preferences": Table(),
    }
    for _ in range(30 + 10 * len(world.companies)):
        company.table("Account").new_id()
    world.companies[realm] = company
    for title, kind, detail in _CHART:
        create(world, company, "Account", {"Name": title, "AccountType": kind, "AccountSubType": detail})
    for title in ("Cash", "Check", "Visa"):
        kind = "CREDIT_CARD" if title == "Visa" else "NON_CREDIT_CARD"
        create(world, company, "PaymentMethod", {"Name": title, "Type": kind})
    _store(
        world,
        company,
        "CompanyInfo",
        {
            "CompanyName": name,
            "LegalName": name,
            "Country": country,
            "FiscalYearStartMonth": "January",
            "CompanyAddr": {"Line1": "1 Stage Street", "City": "San Francisco", "Country": country},
            "SupportedLanguages": "en",
        },
    )
    _store(
        world,
        company,
        "Preferences",
        {
            "CurrencyPrefs": {"HomeCurrency": {"value": currency}, "MultiCurrencyEnabled": False},
            "SalesFormsPrefs": {"CustomTxnNumbers": False},
            "ProductAndServicesPrefs": {"ForSales": True, "QuantityOnHand": True},
        },
    )
    return company


_CHART = (
    ("Sales of Product Income", "Income", "SalesOfProductIncome"),
    ("Event Ticket Sales", "Income", "ServiceFeeIncome"),
    ("Undeposited Funds", "Other Current Asset", "UndepositedFunds"),
    ("Checking", "Bank", "Checking"),
    ("Accounts Receivable (A/R)", "Accounts Receivable", "AccountsReceivable"),
    ("Inventory Asset", "Other Current Asset", "Inventory"),
    ("Cost of Goods Sold", "Cost of Goods Sold", "SuppliesMaterialsCogs"),
)


def account_named(company: Company, name: str) -> Json:
    """Return a reference to one of the accounts every company starts with."""
    (found,) = company.table("Account").found_by["Name"][name.casefold()]
    return {"value": found, "name": name}


def _store(world: World, company: Company, entity: str, values: Json, when: str | None = None) -> Json:
    table, stamp = company.table(entity), when or world.stamp()
    row = {
        **values,
        "domain": "QBO",
        "sparse": False,
        "Id": table.new_id(),
        "SyncToken": "0",
        "MetaData": {"CreateTime": stamp, "LastUpdatedTime": stamp},
    }
    table.put(row)
    return row


def _replace(world: World, company: Company, entity: str, old: Json, values: Json) -> Json:
    row = {
        **{name: value for name, value in values.items() if value is not None},
        "domain": "QBO",
        "sparse": False,
        "Id": old["Id"],
        "SyncToken": str(int(old["SyncToken"]) + 1),
        "MetaData": {**old["MetaData"], "LastUpdatedTime": world.stamp()},
    }
    company.table(entity).put(row)
    return row


# The four things that can be done.


def create(world: World, company: Company, entity: str, given: Json, when: str | None = None) -> Json:
    """Check and store a new row; `when` is its time, for rows that were there before."""
    _open(world.behaviour)
    if given.get("sparse") is True:
        raise missing("Id")
    values = _values(world, company, entity, given)
    values = {name: value for name, value in values.items() if value is not None}
    _COMPLETE[entity](world, company, entity, values, None)
    row = _store(world, company, entity, values, when)
    _settle(world, company, entity, None, row)
    world.effect(f"{entity.lower()}.created")
    world.tell(company, entity, row["Id"], "Create", world.stamp())
    return row


def update(world: World, company: Company, entity: str, given: Json) -> Json:
    """Check and store a changed row. What a full update leaves out is cleared."""
    _open(world.behaviour)
    old = current(company, entity, given)
    values = _values(world, company, entity, given)
    if given.get("sparse") is True:
        values = {**{name: value for name, value in old.items() if name not in _KEPT}, **values}
    values = {name: value for name, value in values.items() if value is not None}
    _COMPLETE[entity](world, company, entity, values, old)
    row = _replace(world, company, entity, old, values)
    _settle(world, company, entity, old, row)
    world.effect(f"{entity.lower()}.updated")
    world.tell(company, entity, row["Id"], "Update", world.stamp())
    return row


def delete(world: World, company: Company, entity: str, given: Json) -> Json:
    """Delete a transaction."""
    if entity not in TRANSACTIONS:
        raise refused("500", f"Operation delete is not supported for {entity}; make it inactive.")
    _open(world.behaviour)
    old = current(company, entity, given)
    _check_period(world.behaviour, old)
    if entity == "Invoice":
        _unlink(world, company, old)
    company.table(entity).remove(old["Id"], world.stamp())
    _settle(world, company, entity, old, None)
    world.effect(f"{entity.lower()}.deleted")
    world.tell(company, entity, old["Id"], "Delete", world.stamp())
    return {"Id": old["Id"], "status": "Deleted", "domain": "QBO"}


def void(world: World, company: Company, entity: str, given: Json) -> Json:
    """Set a transaction to nothing; it stays."""
    _open(world.behaviour)
    old = current(company, entity, given)
    _check_period(world.behaviour, old)
    if entity == "Invoice":
        _unlink(world, company, old)
        old = company.table(entity).rows[old["Id"]]
    values = {name: value for name, value in old.items() if name not in _KEPT}
    values["PrivateNote"] = "Voided"
    for name in ("TotalAmt", "Balance", "UnappliedAmt"):
        if name in values:
            values[name] = 0
    if entity == "Payment":
        values["Line"] = []
    else:
        values["Line"] = [_voided(line) for line in values["Line"]]
    row = _replace(world, company, entity, old, values)
    _settle(world, company, entity, old, row)
    world.effect(f"{entity.lower()}.voided")
    world.tell(company, entity, row["Id"], "Void", world.stamp())
    return row


def _voided(line: Json) -> Json:
    if "SalesItemLineDetail" not in line:
        return {**line, "Amount": 0}
    detail = {**line["SalesItemLineDetail"], "Qty": 0, "UnitPrice": 0}
    return {**line, "Amount": 0, "SalesItemLineDetail": detail}


def find(company: Company, entity: str, name: str) -> Json:
    """Return a row by its id, or refuse."""
    row = company.table(entity).rows.get(name)
    if row is None or (entity, name) in company.hidden:
        raise refused("610", f"{entity} {name} was not found")
    return row


def current(company: Company, entity: str, given: Json) -> Json:
    """Return the row a write is about, which must be in the state the caller saw."""
    for name in ("Id", "SyncToken"):
        if given.get(name) in (None, ""):
            raise missing(name)
    row = find(company, entity, str(given["Id"]))
    if str(given["SyncToken"]) != row["SyncToken"]:
        detail = "You and another user were working on this at the same time; the other saved it first."
        raise refused("5010", detail)
    return row


def _open(behaviour: Behaviour) -> None:
    if behaviour.subscription_ended:
        raise refused("6190", "The company's subscription has ended")


def _values(world: World, company: Company, entity: str, given: Json) -> Json:
    values = checked(company, {**READ_ONLY, **WRITABLE[entity]}, given)
    for name in NAME_PARTS:
        if entity in PEOPLE and len(values.get(name) or "") > world.behaviour.name_part_most:
            raise refused("2170", f"{name} has more than {world.behaviour.name_part_most} characters", name)
    return {name: value for name, value in values.items() if name not in READ_ONLY}


# What an entity must have, and what the server fills in. Nothing is stored yet.


def _named(_: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    if not values.get("Name"):
        raise missing("Name")
    taken = company.table(entity).found_by["Name"].get(values["Name"].casefold(), {})
    if any(name != (old or {}).get("Id") for name in taken):
        raise refused("6240", "The name supplied already exists.")
    values.setdefault("Active", True)


def _account(world: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    if "AccountType" not in values:
        raise missing("AccountType")
    _named(world, company, entity, values, old)
    values["Classification"] = ACCOUNT_TYPES[values["AccountType"]]
    values["FullyQualifiedName"] = values["Name"]
    values["CurrentBalance"] = (old or {}).get("CurrentBalance", 0)
    values.setdefault("SubAccount", False)


def _item(world: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    if "Type" not in values:
        raise missing("Type")
    if old is not None and old["Type"] != values["Type"] and world.behaviour.type_fixed:
        raise refused("6000", "The type of an item can't be changed.", "Type")
    _named(world, company, entity, values, old)
    if "IncomeAccountRef" not in values:
        raise missing("IncomeAccountRef")
    if old is not None and "QtyOnHand" in old:
        values["QtyOnHand"] = old["QtyOnHand"]  # what is written later has no effect
    if values["Type"] == "Inventory":
        for name in INVENTORY:
            if name not in values:
                raise missing(name)
        if values.get("TrackQtyOnHand") is not True:
            raise missing("TrackQtyOnHand")
    else:
        values.pop("QtyOnHand", None)
        values["TrackQtyOnHand"] = False
    values["FullyQualifiedName"] = values["Name"]
    values.setdefault("Taxable", False)
    values.setdefault("UnitPrice", 0)
    values.setdefault("PurchaseCost", 0)


def _person(_: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    parts = [values[part] for part in NAME_PARTS if values.get(part)]
    if not values.get("DisplayName"):
        if not parts:
            raise missing("DisplayName")
        values["DisplayName"] = " ".join(parts)
    known = company.names.get(values["DisplayName"].casefold())
    if known is not None and known != (entity, (old or {}).get("Id")):
        raise refused("6240", "The name supplied already exists.")
    values.setdefault("Active", True)
    values.setdefault("PrintOnCheckName", values["DisplayName"])
    if entity == "Customer":
        values["FullyQualifiedName"] = values["DisplayName"]
        values["Balance"] = (old or {}).get("Balance", 0)
        values["BalanceWithJobs"] = values["Balance"]
        values.setdefault("Taxable", True)
        values.setdefault("Job", False)
        values.setdefault("BillWithParent", False)
        values.setdefault("PreferredDeliveryMethod", "None")
        values["CurrencyRef"] = {"value": company.currency}


def _transaction(world: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    values.setdefault("TxnDate", (old or {}).get("TxnDate", world.stamp()[:10]))
    values["CurrencyRef"] = {"value": company.currency}
    _check_period(world.behaviour, values, old)
    if entity == "Payment":
        return
    docs = company.table(entity).found_by["DocNumber"]
    number = values.get("DocNumber")
    if number is None:
        values["DocNumber"] = (old or {}).get("DocNumber") or _next_doc(docs)
    elif world.behaviour.unique_doc_numbers and set(docs.get(number.casefold(), ())) - {
        (old or {}).get("Id")
    }:
        raise refused("6140", f"DocNumber={number} is in use.", "DocNumber")


def _next_doc(docs: dict[str, dict[str, None]]) -> str:
    number = _FIRST_DOC + len(docs)
    while str(number) in docs:
        number += 1
    return str(number)


def _check_period(behaviour: Behaviour, *rows: Json | None) -> None:
    closed = behaviour.book_close_date
    for row in rows:
        if closed and row and date.fromisoformat(row["TxnDate"]) <= date.fromisoformat(closed):
            raise refused("6210", f"The books are closed up to {closed}.", "TxnDate")


def _money(value: Any) -> Decimal:
    return Decimal(str(value))


def _plain(value: Decimal) -> int | float:
    value = round(value, 2)
    return int(value) if value == value.to_integral_value() else float(value)


def _sale(world: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    if not values.get("Line"):
        raise missing("Line")
    if entity in ("Invoice", "CreditMemo") and "CustomerRef" not in values:
        raise missing("CustomerRef")
    if entity == "RefundReceipt" and "DepositToAccountRef" not in values:
        raise missing("DepositToAccountRef")
    _transaction(world, company, entity, values, old)
    lines = _numbered(values["Line"], old)
    signs = {"SalesItemLineDetail": 1, "DiscountLineDetail": -1}
    subtotal = sum(
        (_money(line["Amount"]) * signs[line["DetailType"]] for line in lines if line["DetailType"] in signs),
        Decimal(0),
    )
    total = subtotal + _money((values.get("TxnTaxDetail") or {}).get("TotalTax") or 0)
    values["Line"] = [
        *lines,
        {"Amount": _plain(subtotal), "DetailType": "SubTotalLineDetail", "SubTotalLineDetail": {}},
    ]
    values["TotalAmt"] = _plain(total)
    if entity == "SalesReceipt":
        values.setdefault("DepositToAccountRef", account_named(company, "Undeposited Funds"))
        values["Balance"] = 0
    if entity == "Invoice":
        values["LinkedTxn"] = (old or {}).get("LinkedTxn", [])
        values.setdefault("DueDate", values["TxnDate"])
        paid = _money(old["TotalAmt"]) - _money(old["Balance"]) if old else Decimal(0)
        if total < paid:
            raise refused("6000", "The invoice has payments of more than this amount.", "Line")
        values["Balance"] = _plain(total - paid)


def _numbered(lines: list[Json], old: Json | None) -> list[Json]:
    """Give new lines their ids: one without an id, or with one the row has not, is new."""
    known = {line["Id"] for line in (old or {}).get("Line", ()) if "Id" in line}
    last = max((int(name) for name in known), default=0)
    numbered = []
    for place, line in enumerate((line for line in lines if line["DetailType"] != "SubTotalLineDetail"), 1):
        name = line.get("Id")
        if name not in known:
            last += 1
            name = str(last)
        known.discard(name)
        numbered.append({**line, "Id": name, "LineNum": place})
    return numbered


def _payment(world: World, company: Company, entity: str, values: Json, old: Json | None) -> None:
    if "CustomerRef" not in values:
        raise missing("CustomerRef")
    if "TotalAmt" not in values:
        raise missing("TotalAmt")
    _transaction(world, company, entity, values, old)
    values.setdefault("Line", [])
    values.setdefault("DepositToAccountRef", account_named(company, "Undeposited Funds"))
    applied, before = _applied(values), _applied(old)
    unapplied = _money(values["TotalAmt"]) - sum(applied.values(), Decimal(0))
    if unapplied < 0:
        raise refused("6000", "More is applied than the amount of the payment.", "Line")
    values["UnappliedAmt"] = _plain(unapplied)
    for name, amount in applied.items():
        invoice = company.table("Invoice").rows.get(name)
        if invoice is None or ("Invoice", name) in company.hidden:
            raise refused("2500", f"Invoice element id {name} not found", "Line.LinkedTxn")
        if invoice["CustomerRef"]["value"] != values["CustomerRef"]["value"]:
            raise refused("6000", f"Invoice {name} is another customer's.", "Line.LinkedTxn")
        if amount - before.get(name, Decimal(0)) > _money(invoice["Balance"]):
            raise refused("6000", f"More is applied to invoice {name} than is open.", "Line.Amount")


def _applied(payment: Json | None) -> dict[str, Decimal]:
    amounts: dict[str, Decimal] = {}
    for line in (payment or {}).get("Line", ()):
        name = line["LinkedTxn"][0]["TxnId"]
        amounts[name] = amounts.get(name, Decimal(0)) + _money(line["Amount"])
    return amounts


Complete = Callable[[World, Company, str, Json, Json | None], None]
_COMPLETE: dict[str, Complete] = {
    **dict.fromkeys(PEOPLE, _person),
    **dict.fromkeys(SALES, _sale),
    "Account": _account,
    "Item": _item,
    "Payment": _payment,
    "PaymentMethod": _named,
}


# What follows from a write in other rows.


def _settle(world: World, company: Company, entity: str, old: Json | None, new: Json | None) -> None:
    if entity in PEOPLE:
        if old is not None:
            company.names.pop(old["DisplayName"].casefold(), None)
        if new is not None:
            company.names[new["DisplayName"].casefold()] = (entity, new["Id"])
    if entity == "Payment":
        _apply(world, company, old, new)
    for sign, row in ((-1, old), (1, new)):
        if row is not None:
            _owe(company, entity, row, sign)
            _move_stock(company, entity, row, sign)


def _owe(company: Company, entity: str, row: Json, sign: int) -> None:
    direction = {"Invoice": 1, "Payment": -1, "CreditMemo": -1}.get(entity)
    if direction is None:
        return
    customer = company.table("Customer").rows[row["CustomerRef"]["value"]]
    owed = _money(customer["Balance"]) + direction * sign * _money(row["TotalAmt"])
    # Not a change of the customer: neither its SyncToken nor its time moves.
    customer["Balance"] = customer["BalanceWithJobs"] = _plain(owed)


def _move_stock(company: Company, entity: str, row: Json, sign: int) -> None:
    direction = {"Invoice": -1, "SalesReceipt": -1, "RefundReceipt": 1, "CreditMemo": 1}.get(entity)
    if direction is None:
        return
    moved: Counter[str] = Counter()
    for line in row["Line"]:
        if detail := line.get("SalesItemLineDetail"):
            moved[detail["ItemRef"]["value"]] += detail.get("Qty") or 0
    for name, quantity in moved.items():
        item = company.table("Item").rows[name]
        if "QtyOnHand" in item:
            item["QtyOnHand"] += direction * sign * quantity


def _apply(world: World, company: Company, old: Json | None, new: Json | None) -> None:
    before, after = _applied(old), _applied(new)
    payment = (new or old or {})["Id"]
    link = {"TxnId": payment, "TxnType": "Payment"}
    for name in dict.fromkeys([*before, *after]):
        change = after.get(name, Decimal(0)) - before.get(name, Decimal(0))
        invoice = company.table("Invoice").rows.get(name)
        if invoice is None or (not change and name in after):
            continue
        links = [entry for entry in invoice["LinkedTxn"] if entry["TxnId"] != payment]
        if name in after:
            links.append(link)
        values = {**invoice, "Balance": _plain(_money(invoice["Balance"]) - change), "LinkedTxn": links}
        _replace(world, company, "Invoice", invoice, values)


def _unlink(world: World, company: Company, invoice: Json) -> None:
    """Free the payments of an invoice that goes away: their amounts become unapplied."""
    for link in list(invoice["LinkedTxn"]):
        payment = company.table("Payment").rows[link["TxnId"]]
        lines = [line for line in payment["Line"] if line["LinkedTxn"][0]["TxnId"] != invoice["Id"]]
        freed = _applied(payment)[invoice["Id"]]
        values = {**payment, "Line": lines, "UnappliedAmt": _plain(_money(payment["UnappliedAmt"]) + freed)}
        _apply(world, company, payment, _replace(world, company, "Payment", payment, values))
