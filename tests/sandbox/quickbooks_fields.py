"""The fields of QuickBooks' entities, and what is refused in each."""

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from tests.sandbox.quickbooks_world import Company, refused
from tests.sandbox.shelf import Json

Check = Callable[[Company, str, Any], Any]
"""Takes the company, the path and the value; returns what is stored, or refuses."""

_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_BOUND = 99_999_999_999.99


def _bad(where: str, detail: str) -> Exception:
    return refused("2170", f"{where} {detail}", where)


def text(most: int = 4000, *, plain: bool = False) -> Check:
    """Text of at most `most` characters; `plain` has no colon, tab or newline."""

    def check(_: Company, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _bad(where, "must be a string")
        if len(value) > most:
            raise _bad(where, f"has {len(value)} characters, at most {most} are allowed")
        if plain and re.search(r"[:\t\n]", value):
            raise _bad(where, "must not contain a colon, tab or newline")
        return value

    return check


def one_of(*allowed: str) -> Check:
    """One of some words."""

    def check(_: Company, where: str, value: Any) -> str:
        if value not in allowed:
            raise _bad(where, f"is {value!r}; it must be one of {', '.join(allowed)}")
        return str(value)

    return check


def number(_: Company, where: str, value: Any) -> int | float:
    """A decimal number, not text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _BOUND:
        raise _bad(where, "must be a decimal number")
    return value


def flag(_: Company, where: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _bad(where, "must be true or false")
    return value


def day(_: Company, where: str, value: Any) -> str:
    """A date, `YYYY-MM-DD`."""
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError) as error:
        raise _bad(where, "must be a date, YYYY-MM-DD") from error


def anything(_: Company, __: str, value: Any) -> Any:
    """What the stand-in keeps and does not look into."""
    return value


def fields(known: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """An object of known fields."""

    def check(company: Company, where: str, value: Any) -> Json:
        if not isinstance(value, dict):
            raise _bad(where, "must be an object")
        for name in required:
            if value.get(name) in (None, ""):
                raise refused("2020", f"Required parameter {where}.{name} is missing in the request", name)
        return checked(company, known, value, f"{where}.")

    return check


def checked(company: Company, known: Mapping[str, Check], given: Json, prefix: str = "") -> Json:
    """Check an object field by field; null and empty text stay as None."""
    kept: Json = {}
    for name, value in given.items():
        check = known.get(name)
        if check is None:
            detail = f"Property Name:{prefix}{name} specified is unsupported or invalid"
            raise refused("2010", detail, f"{prefix}{name}")
        kept[name] = None if value in (None, "") else check(company, f"{prefix}{name}", value)
    return kept


def reference(entity: str | None = None, *types: str) -> Check:
    """`{"value": id, "name"}` of an existing, active row, of an account of one of these types.

    Without an entity: of something the stand-in does not keep.
    """

    def check(company: Company, where: str, value: Any) -> Json:
        if not isinstance(value, dict) or not isinstance(value.get("value"), str):
            raise _bad(where, 'must be an object with the id as text in "value"')
        for name in value:
            if name not in ("value", "name", "type"):
                raise refused("2010", f"Property Name:{where}.{name} specified is unsupported", where)
        if entity is None:
            return value
        row = company.table(entity).rows.get(value["value"])
        if row is None or (entity, row["Id"]) in company.hidden:
            raise refused("2500", f"{entity} element id {value['value']} not found", where)
        if not row.get("Active", True):
            raise refused("610", f"{entity} {value['value']} has been made inactive", where)
        if types and row["AccountType"] not in types:
            raise refused("6000", f"{where} needs an account of type {' or '.join(types)}", where)
        named = row.get("DisplayName") or row.get("Name")
        return {"value": row["Id"], **({"name": named} if named else {})}

    return check


def home_currency(company: Company, where: str, value: Any) -> Json:
    """The company's own currency: it has no other."""
    found = reference()(company, where, value)
    if found["value"] != company.currency:
        raise refused("6000", f"Multicurrency is off; {where} must be {company.currency}", where)
    return {"value": company.currency}


def email(company: Company, where: str, value: Any) -> Json:
    """`{"Address"}`, at most 100 characters with an at sign and a host."""
    found: Json = fields({"Address": text(100), "Id": anything, "Default": anything})(company, where, value)
    address = found.get("Address")
    if address is not None and not _EMAIL.fullmatch(address):
        raise _bad(f"{where}.Address", f"is {address!r}, which is no e-mail address")
    return found


PHONE = fields({"FreeFormNumber": text(21), "Id": anything})
MEMO = fields({"value": text(1000)})
ADDRESS = fields(
    {
        **dict.fromkeys(("Line1", "Line2", "Line3", "Line4", "Line5"), text(500)),
        **dict.fromkeys(("City", "Country", "CountrySubDivisionCode"), text(255)),
        "PostalCode": text(31),
        **dict.fromkeys(("Id", "Lat", "Long", "Note"), anything),
    }
)
WEB = fields({"URI": text(1000)})
NAME_PART = text(100)

# Given back by those who read a row and send it again; what they say is not looked at.
READ_ONLY: Mapping[str, Check] = dict.fromkeys(
    ("Id", "SyncToken", "sparse", "domain", "MetaData", "FullyQualifiedName", "Level", "status"), anything
)

INCOME = reference("Account", "Income", "Other Income")
DEPOSIT = reference("Account", "Bank", "Other Current Asset")

ACCOUNT_TYPES = {
    "Bank": "Asset",
    "Other Current Asset": "Asset",
    "Accounts Receivable": "Asset",
    "Fixed Asset": "Asset",
    "Other Asset": "Asset",
    "Accounts Payable": "Liability",
    "Credit Card": "Liability",
    "Other Current Liability": "Liability",
    "Long Term Liability": "Liability",
    "Equity": "Equity",
    "Income": "Revenue",
    "Other Income": "Revenue",
    "Cost of Goods Sold": "Expense",
    "Expense": "Expense",
    "Other Expense": "Expense",
}

_SALE_DETAIL = fields(
    {
        "ItemRef": reference("Item"),
        "Qty": number,
        "UnitPrice": number,
        "ServiceDate": day,
        **dict.fromkeys(("ItemAccountRef", "TaxCodeRef", "ClassRef"), reference()),
        **dict.fromkeys(("DiscountRate", "DiscountAmt", "TaxInclusiveAmt"), number),
        "MarkupInfo": anything,
    },
    required=("ItemRef",),
)
_LINE: Mapping[str, Check] = {
    "Id": text(20),
    "LineNum": number,
    "Description": text(4000),
    "Amount": number,
    "DetailType": one_of(
        "SalesItemLineDetail", "DiscountLineDetail", "SubTotalLineDetail", "DescriptionOnly"
    ),
    "SalesItemLineDetail": _SALE_DETAIL,
    **dict.fromkeys(("DiscountLineDetail", "SubTotalLineDetail", "DescriptionLineDetail"), anything),
    **dict.fromkeys(("LinkedTxn", "CustomField"), anything),
}


def _objects(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(where, "must be an array")
    return value


def sale_lines(company: Company, where: str, value: Any) -> list[Json]:
    """The lines of a sale; subtotals are left out, they are calculated."""
    lines = []
    for place, given in enumerate(_objects(where, value)):
        path = f"{where}[{place}]"
        line: Json = fields(_LINE, ("DetailType",))(company, path, given)
        line = {name: item for name, item in line.items() if item is not None}
        kind = line["DetailType"]
        if kind == "SubTotalLineDetail":
            continue
        if kind != "DescriptionOnly" and "Amount" not in line:
            raise refused("2020", f"Required parameter {path}.Amount is missing in the request", "Amount")
        if kind == "SalesItemLineDetail":
            detail = line.get(kind)
            if detail is None:
                raise refused("2020", f"Required parameter {path}.{kind} is missing in the request", kind)
            quantity, price = detail.get("Qty"), detail.get("UnitPrice")
            if None not in (quantity, price) and abs(round(quantity * price, 2) - line["Amount"]) >= 0.005:
                raise refused("6070", f"{path}.Amount is not equal to UnitPrice * Qty", "Amount")
        lines.append(line)
    return lines


_LINKED = fields({"TxnId": text(20), "TxnType": text(30), "TxnLineId": text(20)}, ("TxnId", "TxnType"))


def payment_lines(company: Company, where: str, value: Any) -> list[Json]:
    """What a payment is applied to."""
    lines = []
    for place, given in enumerate(_objects(where, value)):
        path = f"{where}[{place}]"
        known: Mapping[str, Check] = {"Amount": number, "LinkedTxn": anything, "LineEx": anything}
        line: Json = fields(known, ("Amount", "LinkedTxn"))(company, path, given)
        links = _objects(f"{path}.LinkedTxn", line["LinkedTxn"])
        if len(links) != 1:
            raise _bad(f"{path}.LinkedTxn", "must have one entry")
        link = _LINKED(company, f"{path}.LinkedTxn[0]", links[0])
        if link["TxnType"] != "Invoice":
            raise _bad(f"{path}.LinkedTxn[0].TxnType", "must be Invoice here")
        lines.append({"Amount": line["Amount"], "LinkedTxn": [link]})
    return lines


_PERSON: Mapping[str, Check] = {
    "DisplayName": text(500, plain=True),
    **dict.fromkeys(("Title", "GivenName", "MiddleName", "FamilyName", "Suffix"), NAME_PART),
    "CompanyName": text(100),
    "PrintOnCheckName": text(110),
    "Active": flag,
    "PrimaryEmailAddr": email,
    **dict.fromkeys(("PrimaryPhone", "AlternatePhone", "Mobile", "Fax"), PHONE),
    "WebAddr": WEB,
    "BillAddr": ADDRESS,
    "Notes": text(1024),
    "CurrencyRef": home_currency,
    **dict.fromkeys(("Balance", "BalanceWithJobs", "V4IDPseudonym"), anything),
}
_TRANSACTION: Mapping[str, Check] = {
    "DocNumber": text(21),
    "TxnDate": day,
    "PrivateNote": text(4000),
    "CurrencyRef": home_currency,
    "ExchangeRate": number,
    **dict.fromkeys(("DepartmentRef", "ClassRef", "TxnSource", "CustomField", "LinkedTxn"), anything),
    **dict.fromkeys(("TotalAmt", "HomeTotalAmt", "Balance", "HomeBalance"), anything),
}
_SALE: Mapping[str, Check] = {
    **_TRANSACTION,
    "Line": sale_lines,
    "CustomerRef": reference("Customer"),
    "CustomerMemo": MEMO,
    "BillEmail": email,
    "BillAddr": ADDRESS,
    "ShipAddr": ADDRESS,
    "ShipDate": day,
    "TxnTaxDetail": fields({"TotalTax": number, "TxnTaxCodeRef": reference(), "TaxLine": anything}),
    "PrintStatus": one_of("NotSet", "NeedToPrint", "PrintComplete"),
    "EmailStatus": one_of("NotSet", "NeedToSend", "EmailSent"),
    "ApplyTaxAfterDiscount": flag,
    "GlobalTaxCalculation": one_of("TaxExcluded", "TaxInclusive", "NotApplicable"),
    **dict.fromkeys(("ShipMethodRef", "TaxExemptionRef"), reference()),
    **dict.fromkeys(("FreeFormAddress", "TrackingNum", "DeliveryInfo"), anything),
}
_PAID: Mapping[str, Check] = {
    "PaymentMethodRef": reference("PaymentMethod"),
    "PaymentRefNum": text(21),
    "DepositToAccountRef": DEPOSIT,
}

WRITABLE: Mapping[str, Mapping[str, Check]] = {
    "Account": {
        "Name": text(100, plain=True),
        "AcctNum": text(20),
        "Description": text(100),
        "Active": flag,
        "AccountType": one_of(*ACCOUNT_TYPES),
        "AccountSubType": text(100),
        "Classification": anything,
        "SubAccount": flag,
        "ParentRef": reference("Account"),
        "CurrencyRef": home_currency,
        **dict.fromkeys(("CurrentBalance", "CurrentBalanceWithSubAccounts"), anything),
    },
    "CreditMemo": {**_SALE, "PaymentMethodRef": reference("PaymentMethod"), "RemainingCredit": anything},
    "Customer": {
        **_PERSON,
        "ShipAddr": ADDRESS,
        **dict.fromkeys(("Taxable", "Job", "BillWithParent", "IsProject"), flag),
        "ParentRef": reference("Customer"),
        "PaymentMethodRef": reference("PaymentMethod"),
        **dict.fromkeys(("DefaultTaxCodeRef", "SalesTermRef", "CustomerTypeRef"), reference()),
        "PreferredDeliveryMethod": one_of("Print", "Email", "None"),
        **dict.fromkeys(("ResaleNum", "PrimaryTaxIdentifier"), text(16)),
        "OpenBalanceDate": day,
        "ClientEntityId": anything,
    },
    "Employee": {**_PERSON, "PrimaryAddr": ADDRESS, "EmployeeNumber": text(100)},
    "Invoice": {
        **_SALE,
        "DueDate": day,
        "Deposit": number,
        **dict.fromkeys(("AllowOnlineCreditCardPayment", "AllowOnlineACHPayment"), flag),
        **dict.fromkeys(("AllowIPNPayment", "AllowOnlinePayment"), flag),
        "SalesTermRef": reference(),
        "BillEmailCc": email,
        "BillEmailBcc": email,
    },
    "Item": {
        "Name": text(100, plain=True),
        "Sku": text(100),
        "Description": text(4000),
        "PurchaseDesc": text(1000),
        **dict.fromkeys(("Active", "SubItem", "Taxable", "TrackQtyOnHand"), flag),
        **dict.fromkeys(("SalesTaxIncluded", "PurchaseTaxIncluded"), flag),
        **dict.fromkeys(("UnitPrice", "PurchaseCost", "QtyOnHand", "ReorderPoint"), number),
        "Type": one_of("Service", "NonInventory", "Inventory"),
        "IncomeAccountRef": INCOME,
        "ExpenseAccountRef": reference("Account", "Cost of Goods Sold", "Expense", "Other Expense"),
        "AssetAccountRef": reference("Account", "Other Current Asset"),
        "InvStartDate": day,
        "ParentRef": reference("Item"),
        "PrefVendorRef": reference("Vendor"),
        **dict.fromkeys(("SalesTaxCodeRef", "PurchaseTaxCodeRef", "ClassRef"), reference()),
        "ItemCategoryType": anything,
    },
    "Payment": {
        **_TRANSACTION,
        **_PAID,
        "CustomerRef": reference("Customer"),
        "TotalAmt": number,
        "Line": payment_lines,
        "ARAccountRef": reference("Account", "Accounts Receivable"),
        **dict.fromkeys(("UnappliedAmt", "ProcessPayment"), anything),
    },
    "PaymentMethod": {"Name": text(31), "Active": flag, "Type": one_of("CREDIT_CARD", "NON_CREDIT_CARD")},
    "RefundReceipt": {**_SALE, **_PAID},
    "SalesReceipt": {**_SALE, **_PAID},
    "Vendor": {**_PERSON, "AcctNum": text(100), "Vendor1099": flag, "TaxIdentifier": text(20)},
}
