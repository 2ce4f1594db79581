"""Square's customers: sparse updates, optional versions, bulk calls with errors by key."""

import re
from collections.abc import Callable
from typing import Any

import orjson

from tests.sandbox.core import Answer, Call, RefusedError
from tests.sandbox.shelf import Json
from tests.sandbox.square_world import (
    Seller,
    World,
    body_of,
    check_known,
    check_text,
    entries_of,
    limit_of,
    listed,
    object_in,
    range_of,
    refused,
    seller_of,
)

KEY_LENGTH = 128
BULK = 100
NAMING = ("given_name", "family_name", "company_name", "email_address", "phone_number")
LENGTHS = {
    "given_name": 300,
    "family_name": 300,
    "company_name": 500,
    "nickname": 100,
    "reference_id": 100,
    "email_address": 254,
}
FIELDS = frozenset({*LENGTHS, "phone_number", "address", "note", "birthday", "tax_ids"})
ADDRESS = frozenset(
    {
        *("address_line_1", "address_line_2", "address_line_3", "locality", "sublocality", "sublocality_2"),
        *("sublocality_3", "administrative_district_level_1", "administrative_district_level_2"),
        *("administrative_district_level_3", "postal_code", "country", "first_name", "last_name"),
    }
)
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_PHONE = re.compile(r"\+?\d{9,16}")
_BIRTHDAY = re.compile(r"(\d{4}-)?(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


def _check(given: Json) -> None:
    for name, longest in LENGTHS.items():
        check_text(
            given,
            name,
            longest,
            code="INVALID_EMAIL_ADDRESS" if name == "email_address" else "VALUE_TOO_LONG",
        )
    check_text(given, "note", 65_535)
    check_text(given, "phone_number", 64)
    check_text(given, "birthday", 10, code="INVALID_VALUE")
    if (email := given.get("email_address")) and not _EMAIL.fullmatch(email):
        message = f"Expected email_address to be a valid email address, got {email!r}"
        raise refused(400, "INVALID_EMAIL_ADDRESS", message, "email_address")
    if (phone := given.get("phone_number")) and not _PHONE.fullmatch(re.sub(r"[\s().-]", "", phone)):
        message = "Expected phone_number to be a valid phone number of 9 to 16 digits"
        raise refused(400, "INVALID_PHONE_NUMBER", message, "phone_number")
    if (birthday := given.get("birthday")) and not _BIRTHDAY.fullmatch(birthday):
        raise refused(400, "INVALID_VALUE", "Expected YYYY-MM-DD or MM-DD.", "birthday")
    if (address := given.get("address")) is not None:
        check_known(address, ADDRESS, "address")


def _visible(value: Json) -> bool:
    return any(value.get(name) for name in NAMING)


def create(world: World, call: Call) -> Answer:
    """POST /v2/customers"""
    seller = seller_of(call)
    body = body_of(call, known=FIELDS | {"idempotency_key"})
    return world.once(
        call,
        seller,
        body,
        KEY_LENGTH,
        lambda: Answer(200, {"customer": new(world, seller, body, world.stamp())}),
    )


def new(world: World, seller: Seller, given: Json, stamp: str) -> Json:
    """Check and store a customer."""
    check_known(given, FIELDS | {"idempotency_key"})
    if not _visible(given):
        message = f"At least one of {', '.join(NAMING)} must be set."
        raise refused(400, "MISSING_REQUIRED_PARAMETER", message)
    _check(given)
    value: Json = {
        "id": world.new_id(26),
        "created_at": stamp,
        "updated_at": stamp,
        **{name: item for name, item in given.items() if name in FIELDS and item not in (None, "")},
        "preferences": {"email_unsubscribed": False},
        "creation_source": "THIRD_PARTY",
        "version": 0,
    }
    if len(value.get("birthday", "")) == 5:
        value["birthday"] = f"0000-{value['birthday']}"
    seller.customers.put(value["id"], value)
    world.effect("customer.created")
    _tell(world, seller, "customer.created", value)
    return value


def _find(seller: Seller, name: str) -> Json:
    value = seller.customers.get(name)
    if value is None:
        raise refused(404, "NOT_FOUND", f"Customer with ID `{name}` not found.", "customer_id")
    return value


def get_one(_: World, call: Call) -> Answer:
    """GET /v2/customers/{id}"""
    return Answer(200, {"customer": _find(seller_of(call), call.parts["id"])})


def update(world: World, call: Call) -> Answer:
    """PUT /v2/customers/{id}"""
    body = body_of(call, known=FIELDS | {"version"})
    return Answer(200, {"customer": _alter(world, seller_of(call), call.parts["id"], body, world.stamp())})


def _alter(world: World, seller: Seller, name: str, given: Json, stamp: str) -> Json:
    value = _find(seller, name)
    check_known(given, FIELDS | {"version"})
    version = given.get("version")
    if version is not None and version != value["version"]:
        message = f"The customer has version {value['version']}, the request had {version}."
        raise refused(409, "CONFLICT", message, "version")
    changed = {**value, **{key: item for key, item in given.items() if key != "version"}}
    changed = {key: item for key, item in changed.items() if item not in (None, "")}
    if not _visible(changed):
        message = f"At least one of {', '.join(NAMING)} must be set."
        raise refused(400, "MISSING_REQUIRED_PARAMETER", message)
    _check(given)
    changed["version"], changed["updated_at"] = value["version"] + 1, stamp
    seller.customers.put(name, changed)
    world.effect("customer.updated")
    _tell(world, seller, "customer.updated", changed)
    return changed


def delete(world: World, call: Call) -> Answer:
    """DELETE /v2/customers/{id}"""
    _remove(world, seller_of(call), call.parts["id"])
    return Answer(200, {})


def _remove(world: World, seller: Seller, name: str) -> None:
    _find(seller, name)
    seller.customers.remove(name)
    world.effect("customer.deleted")
    world.tell(seller, "customer.deleted", {"type": "customer", "id": name, "deleted": True})


def _tell(world: World, seller: Seller, kind: str, value: Json) -> None:
    world.tell(seller, kind, {"type": "customer", "id": value["id"], "object": {"customer": value}})


def list_all(world: World, call: Call) -> Answer:
    """GET /v2/customers"""
    seller, query = seller_of(call), dict(call.query)
    check_known(query, ("cursor", "limit", "sort_field", "sort_order", "count"))
    order = query.get("sort_order", "ASC")
    found, cursor = world.page(
        seller.customers.orders["created"],
        seller.customers.objects,
        query=["customers", order],
        limit=limit_of(query.get("limit"), default=100, most=100, strict=True),
        cursor=query.get("cursor"),
        fits=_visible,
        descending=order == "DESC",
    )
    return listed("customers", found, cursor)


def search(world: World, call: Call) -> Answer:
    """POST /v2/customers/search"""
    seller = seller_of(call)
    body = body_of(call, known=("cursor", "limit", "query", "count"))
    query = object_in(body, "query", "")
    check_known(query, ("filter", "sort"), "query")
    filters, sort = object_in(query, "filter", "query"), object_in(query, "sort", "query")
    check_known(
        filters,
        (
            *("created_at", "updated_at", "email_address", "phone_number", "reference_id", "creation_source"),
            "group_ids",
        ),
        "query.filter",
    )
    created = range_of(filters.get("created_at"), "query.filter.created_at")
    updated = range_of(filters.get("updated_at"), "query.filter.updated_at")
    # Only one of the two can be the order that is walked; the other is looked at record by record.
    by_updated = updated != (None, None)
    email = object_in(filters, "email_address", "query.filter").get("exact")
    ordered = seller.customers.orders["updated" if by_updated else "created"]
    if email is not None and not by_updated:
        ordered = seller.customers.listed("email", str(email).casefold())
    least, most = updated if by_updated else created
    tests = _tests(filters)
    found, cursor = world.page(
        ordered,
        seller.customers.objects,
        query=query,
        limit=limit_of(body.get("limit"), default=100, most=100, strict=True),
        cursor=body.get("cursor"),
        fits=lambda value: (
            (created[0] is None or value["created_at"] >= created[0])
            and (created[1] is None or value["created_at"] <= created[1])
            and all(test(value) for test in tests)
        ),
        descending=sort.get("order", "ASC") == "DESC",
        at_least=least,
        at_most=most,
    )
    return listed("customers", found, cursor)


def _tests(filters: Json) -> list[Callable[[Json], bool]]:
    tests: list[Callable[[Json], bool]] = []
    for name in ("email_address", "phone_number", "reference_id"):
        given = object_in(filters, name, "query.filter")
        check_known(given, ("exact", "fuzzy"), f"query.filter.{name}")
        if (exact := given.get("exact")) is not None:
            wanted = str(exact).casefold()
            tests.append(_equals(name, wanted))
        if (fuzzy := given.get("fuzzy")) is not None:
            tests.append(_contains(name, str(fuzzy).casefold()))
    return tests


def _equals(name: str, wanted: str) -> Callable[[Json], bool]:
    return lambda value: str(value.get(name, "")).casefold() == wanted


def _contains(name: str, wanted: str) -> Callable[[Json], bool]:
    return lambda value: wanted in str(value.get(name, "")).casefold()


# In bulk: an error is the entry's own, the call succeeds.


def _each(names: list[str], run: Callable[[str], Json]) -> Answer:
    responses: Json = {}
    for name in names:
        try:
            responses[name] = run(name)
        except RefusedError as error:
            responses[name] = {"errors": entries_of(error)}
    return Answer(200, {"responses": responses})


def _bulk_map(call: Call) -> dict[str, Any]:
    body = body_of(call, known=("customers",), required=("customers",))
    given = body["customers"]
    if not isinstance(given, dict) or not all(isinstance(item, dict) for item in given.values()):
        raise refused(400, "EXPECTED_MAP", "Expected a map of objects.", "customers")
    _check_count(len(given), "customers")
    return given


def _bulk_ids(call: Call) -> list[str]:
    body = body_of(call, known=("customer_ids",), required=("customer_ids",))
    given = body["customer_ids"]
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise refused(400, "EXPECTED_ARRAY", "Expected a list of ids.", "customer_ids")
    _check_count(len(given), "customer_ids")
    return list(dict.fromkeys(given))


def _check_count(count: int, where: str) -> None:
    if count < 1:
        raise refused(400, "MAP_KEY_LENGTH_TOO_SHORT", "At least 1 entry is required.", where)
    if count > BULK:
        raise refused(400, "ARRAY_LENGTH_TOO_LONG", f"At most {BULK} entries are allowed.", where)


def bulk_create(world: World, call: Call) -> Answer:
    """POST /v2/customers/bulk-create: keys of the map are idempotency keys."""
    seller, given, stamp = seller_of(call), _bulk_map(call), world.stamp()

    def run(key: str) -> Json:
        entry = {**given[key], "idempotency_key": key}
        answer = world.once(
            call,
            seller,
            entry,
            KEY_LENGTH,
            lambda: Answer(200, {"customer": new(world, seller, entry, stamp)}),
        )
        entry_answer: Json = orjson.loads(answer.content())
        return entry_answer

    return _each(list(given), run)


def bulk_update(world: World, call: Call) -> Answer:
    """POST /v2/customers/bulk-update: keys of the map are customer ids."""
    seller, given, stamp = seller_of(call), _bulk_map(call), world.stamp()
    return _each(list(given), lambda name: {"customer": _alter(world, seller, name, given[name], stamp)})


def bulk_retrieve(_: World, call: Call) -> Answer:
    """POST /v2/customers/bulk-retrieve"""
    seller = seller_of(call)
    return _each(_bulk_ids(call), lambda name: {"customer": _find(seller, name)})


def bulk_delete(world: World, call: Call) -> Answer:
    """POST /v2/customers/bulk-delete"""
    seller = seller_of(call)

    def run(name: str) -> Json:
        _remove(world, seller, name)
        return {}

    return _each(_bulk_ids(call), run)
