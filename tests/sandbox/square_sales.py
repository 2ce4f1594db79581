"""Square's orders, payments, refunds and inventory."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from tests.sandbox.core import Answer, Call, rfc3339
from tests.sandbox.shelf import Json
from tests.sandbox.square_world import (
    QUANTITY,
    Seller,
    World,
    body_of,
    check_known,
    check_money,
    check_text,
    limit_of,
    listed,
    object_in,
    range_of,
    refused,
    seller_of,
    texts,
    time_of,
)

DAY = 86_400
ORDER_FIELDS = frozenset(
    {
        *("location_id", "reference_id", "source", "customer_id", "line_items", "taxes", "discounts"),
        *(
            "service_charges",
            "fulfillments",
            "metadata",
            "pricing_options",
            "state",
            "ticket_name",
            "version",
        ),
    }
)
LINE_FIELDS = frozenset(
    {
        *("uid", "name", "quantity", "quantity_unit", "note", "catalog_object_id", "catalog_version"),
        *("variation_name", "item_type", "metadata", "modifiers", "applied_taxes", "applied_discounts"),
        *("applied_service_charges", "base_price_money", "pricing_blocklists", "variation_total_price_money"),
        *("gross_sales_money", "total_tax_money", "total_discount_money", "total_money"),
    }
)
STATES = ("OPEN", "COMPLETED", "CANCELED", "DRAFT")


# Orders.


def search_orders(world: World, call: Call) -> Answer:
    """POST /v2/orders/search"""
    seller = seller_of(call)
    body = body_of(
        call, known=("location_ids", "cursor", "query", "limit", "return_entries"), required=("location_ids",)
    )
    locations = texts(body, "location_ids")
    if not 1 <= len(locations) <= 10:
        raise refused(400, "INVALID_VALUE", "location_ids must have 1 to 10 entries.", "location_ids")
    for name in locations:
        _check_location(seller, name, "location_ids", 400)
    query = object_in(body, "query", "")
    check_known(query, ("filter", "sort"), "query")
    filters, sort = object_in(query, "filter", "query"), object_in(query, "sort", "query")
    check_known(
        filters,
        ("state_filter", "date_time_filter", "fulfillment_filter", "source_filter", "customer_filter"),
        "query.filter",
    )
    field = sort.get("sort_field", "CREATED_AT")
    times = object_in(filters, "date_time_filter", "query.filter")
    check_known(times, ("created_at", "updated_at", "closed_at"), "query.filter.date_time_filter")
    named = next(iter(times), None)
    if len(times) > 1 or (named and field != named.upper()):
        message = "The sort_field must be the one of the date_time_filter."
        raise refused(400, "BAD_REQUEST", message, "query.sort.sort_field")
    least, most = range_of(times.get(named or ""), f"query.filter.date_time_filter.{named}")
    states = texts(object_in(filters, "state_filter", "query.filter"), "states")
    customers = texts(object_in(filters, "customer_filter", "query.filter"), "customer_ids")
    order = "updated" if field == "UPDATED_AT" else "created"
    closed = (least, most) if field == "CLOSED_AT" else (None, None)
    found, cursor = world.page(
        seller.orders.orders[order],
        seller.orders.objects,
        query=[query, locations],
        limit=limit_of(body.get("limit"), default=500, most=1000, strict=True),
        cursor=body.get("cursor"),
        fits=lambda value: (
            value["location_id"] in locations
            and (not states or value["state"] in states)
            and (not customers or value.get("customer_id") in customers)
            and (closed[0] is None or value.get("closed_at", "") >= closed[0])
            and (closed[1] is None or value.get("closed_at", "9") <= closed[1])
        ),
        descending=sort.get("sort_order", "DESC") == "DESC",
        at_least=None if field == "CLOSED_AT" else least,
        at_most=None if field == "CLOSED_AT" else most,
    )
    if body.get("return_entries"):
        entries = [
            {"order_id": value["id"], "version": value.get("version", 1), "location_id": value["location_id"]}
            for value in found
        ]
        return listed("order_entries", entries, cursor)
    return listed("orders", found, cursor)


def _check_location(seller: Seller, name: Any, where: str, status: int = 404) -> None:
    if name not in seller.location_ids():
        raise refused(status, "NOT_FOUND" if status == 404 else "BAD_REQUEST", f"No location {name}.", where)


def create_order(world: World, call: Call) -> Answer:
    """POST /v2/orders"""
    seller = seller_of(call)
    body = body_of(call, known=("order", "idempotency_key"), required=("order",))

    def run() -> Answer:
        given = body["order"]
        _check_order(given)
        _check_location(seller, given.get("location_id"), "order.location_id", 400)
        stamp = world.stamp()
        value = {
            "id": world.new_id(22),
            "state": "OPEN",
            "source": {"name": "Sandbox application"},
            **given,
            "version": 1,
            "created_at": stamp,
            "updated_at": stamp,
        }
        _total(world, seller, value)
        seller.orders.put(value["id"], value)
        world.effect("order.created")
        _tell_order(world, seller, "order_created", value)
        return Answer(200, {"order": value})

    return world.once(call, seller, body, 192, run)


def _check_order(given: Any) -> None:
    check_known(given, ORDER_FIELDS, "order")
    check_text(given, "reference_id", 40, "order")
    if given.get("state", "OPEN") not in STATES:
        raise refused(400, "INVALID_ENUM_VALUE", "Not a valid state.", "order.state")
    notes = object_in(given, "metadata", "order")
    if len(notes) > 10 or any(len(key) > 60 or len(str(item)) > 255 for key, item in notes.items()):
        raise refused(
            400, "BAD_REQUEST", "Metadata has 10 entries at most, keys 60, values 255.", "order.metadata"
        )
    lines = given.get("line_items") or []
    if not isinstance(lines, list):
        raise refused(400, "EXPECTED_ARRAY", "Expected a list.", "order.line_items")
    for place, line in enumerate(lines):
        where = f"order.line_items[{place}]"
        check_known(line, LINE_FIELDS, where)
        check_text(line, "catalog_object_id", 192, where)
        check_text(line, "name", 512, where)
        check_text(line, "note", 2000, where)
        quantity = line.get("quantity")
        if not isinstance(quantity, str) or not QUANTITY.fullmatch(quantity) or len(quantity) > 12:
            raise refused(400, "INVALID_VALUE", "A quantity is a decimal string.", f"{where}.quantity")
        if "base_price_money" in line:
            check_money(line["base_price_money"], f"{where}.base_price_money")


def _total(world: World, seller: Seller, order: Json) -> None:
    total, currency = 0, seller.currency
    lines: list[Json] = []
    for line in order.get("line_items") or []:
        line = {"uid": world.new_id(16), **line}
        price = line.get("base_price_money")
        if price is None and (variation := seller.catalog.get(line.get("catalog_object_id", ""))):
            data = variation.get("item_variation_data", {})
            price = data.get("price_money")
            line.setdefault("variation_name", data.get("name"))
        price = price or {"amount": 0, "currency": currency}
        amount = int(Decimal(line["quantity"]) * price["amount"])
        currency = price["currency"]
        line["base_price_money"] = price
        line["total_money"] = {"amount": amount, "currency": currency}
        total += amount
        lines.append(line)
    if lines:
        order["line_items"] = lines
    zero = {"amount": 0, "currency": currency}
    order["total_money"] = {"amount": total, "currency": currency}
    for name in ("total_tax_money", "total_discount_money", "total_tip_money"):
        order[name] = zero


def get_order(_: World, call: Call) -> Answer:
    """GET /v2/orders/{id}"""
    return Answer(200, {"order": _find(seller_of(call).orders.objects, call.parts["id"], "Order")})


def _find(objects: dict[str, Json], name: str, kind: str) -> Json:
    if name not in objects:
        raise refused(404, "NOT_FOUND", f"{kind} {name} was not found.")
    return objects[name]


def update_order(world: World, call: Call) -> Answer:
    """PUT /v2/orders/{id}"""
    seller = seller_of(call)
    body = body_of(call, known=("order", "fields_to_clear", "idempotency_key"), required=("order",))

    def run() -> Answer:
        value = _find(seller.orders.objects, call.parts["id"], "Order")
        given = body["order"]
        _check_order(given)
        if "version" not in value:
            raise refused(400, "BAD_REQUEST", "Orders made outside the API cannot be updated.", "order")
        if given.get("version") is None:
            raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", "order.version")
        if given["version"] != value["version"]:
            message = f"The order has version {value['version']}."
            raise refused(409, "VERSION_MISMATCH", message, "order.version")
        if value["state"] in ("COMPLETED", "CANCELED"):
            raise refused(400, "BAD_REQUEST", f"A {value['state']} order cannot change.", "order.state")
        changed = {**value, **given, "version": value["version"] + 1, "updated_at": world.stamp()}
        for name in texts(body, "fields_to_clear"):
            changed.pop(name, None)
        _total(world, seller, changed)
        seller.orders.put(changed["id"], changed)
        world.effect("order.updated")
        _tell_order(world, seller, "order_updated", changed)
        return Answer(200, {"order": changed})

    return world.once(call, seller, body, 192, run)


def get_orders(_: World, call: Call) -> Answer:
    """POST /v2/orders/batch-retrieve"""
    seller = seller_of(call)
    body = body_of(call, known=("location_id", "order_ids"), required=("order_ids",))
    ids = texts(body, "order_ids")
    if len(ids) > 100:
        raise refused(400, "ARRAY_LENGTH_TOO_LONG", "At most 100 ids are allowed.", "order_ids")
    return listed("orders", [value for name in ids if (value := seller.orders.get(name))], None)


# Payments and refunds.


def _list_timed(
    world: World, call: Call, name: str, known: Sequence[str], main_location_only: bool
) -> Answer:
    seller, query = seller_of(call), dict(call.query)
    check_known(query, known)
    shelf = seller.payments if name == "payments" else seller.refunds
    by_updated = query.get("sort_field") == "UPDATED_AT"
    begin = time_of(query.get("begin_time"), "begin_time")
    created = (begin or rfc3339(world.clock.now() - 365 * DAY), time_of(query.get("end_time"), "end_time"))
    updated = (
        time_of(query.get("updated_at_begin_time"), "updated_at_begin_time"),
        time_of(query.get("updated_at_end_time"), "updated_at_end_time"),
    )
    location = query.get("location_id") or (seller.location_ids()[0] if main_location_only else None)
    status = query.get("status")
    least, most = updated if by_updated else created
    found, cursor = world.page(
        shelf.orders["updated" if by_updated else "created"],
        shelf.objects,
        query=[name, sorted((key, value) for key, value in query.items() if key not in ("cursor", "limit"))],
        limit=min(limit_of(query.get("limit"), default=100, most=100, strict=False), 100),
        cursor=query.get("cursor"),
        fits=lambda value: (
            (location is None or value["location_id"] == location)
            and (status is None or value["status"] == status)
            and _within(value["created_at"], created)
            and _within(value["updated_at"], updated)
        ),
        descending=query.get("sort_order", "DESC") == "DESC",
        at_least=least,
        at_most=most,
    )
    return listed(name, found, cursor)


def _within(value: str, bounds: tuple[str | None, str | None]) -> bool:
    return (bounds[0] is None or value >= bounds[0]) and (bounds[1] is None or value <= bounds[1])


_TIMES = (
    *("begin_time", "end_time", "updated_at_begin_time", "updated_at_end_time", "sort_order", "sort_field"),
    *("cursor", "location_id", "limit"),
)


def list_payments(world: World, call: Call) -> Answer:
    """GET /v2/payments"""
    known = (
        *_TIMES,
        *("total", "last_4", "card_brand", "is_offline_payment", "offline_begin_time", "offline_end_time"),
    )
    return _list_timed(world, call, "payments", known, main_location_only=True)


def list_refunds(world: World, call: Call) -> Answer:
    """GET /v2/refunds"""
    return _list_timed(world, call, "refunds", (*_TIMES, "status", "source_type"), main_location_only=False)


def get_payment(_: World, call: Call) -> Answer:
    """GET /v2/payments/{id}"""
    return Answer(200, {"payment": _find(seller_of(call).payments.objects, call.parts["id"], "Payment")})


def get_refund(_: World, call: Call) -> Answer:
    """GET /v2/refunds/{id}"""
    return Answer(200, {"refund": _find(seller_of(call).refunds.objects, call.parts["id"], "Refund")})


PAYMENT_FIELDS = frozenset(
    {
        *("source_id", "idempotency_key", "amount_money", "tip_money", "app_fee_money", "autocomplete"),
        *("order_id", "customer_id", "location_id", "reference_id", "note", "buyer_email_address"),
        *("external_details", "cash_details", "billing_address", "shipping_address", "delay_duration"),
        *("delay_action", "team_member_id", "verification_token", "accept_partial_authorization"),
        *("statement_description_identifier", "customer_details", "buyer_phone_number"),
    }
)


def create_payment(world: World, call: Call) -> Answer:
    """POST /v2/payments"""
    seller = seller_of(call)
    body = body_of(call, known=PAYMENT_FIELDS, required=("source_id", "idempotency_key"))

    def run() -> Answer:
        check_money(body.get("amount_money"), "amount_money")
        check_text(body, "reference_id", 40)
        check_text(body, "order_id", 192)
        location = body.get("location_id") or seller.location_ids()[0]
        _check_location(seller, location, "location_id", 400)
        source = {"CASH": ("CASH", "cash_details"), "EXTERNAL": ("EXTERNAL", "external_details")}.get(
            str(body["source_id"]), ("CARD", "")
        )
        if source[1] and not body.get(source[1]):
            raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", source[1])
        order = body.get("order_id")
        if order is not None and seller.orders.get(order) is None:
            raise refused(404, "NOT_FOUND", f"Order {order} was not found.", "order_id")
        stamp = world.stamp()
        value = _payment(world, seller, location, body["amount_money"], stamp, source[0])
        kept = ("order_id", "customer_id", "reference_id", "note", "buyer_email_address", source[1])
        value.update({name: body[name] for name in kept if name and body.get(name) is not None})
        seller.payments.put(value["id"], value)
        world.effect("payment.created")
        tell_payment(world, seller, "payment.created", value)
        return Answer(200, {"payment": value})

    return world.once(call, seller, body, 45, run)


def _payment(world: World, seller: Seller, location: str, money: Json, stamp: str, source: str) -> Json:
    value: Json = {
        "id": world.new_id(22),
        "created_at": stamp,
        "updated_at": stamp,
        "amount_money": money,
        "total_money": money,
        "approved_money": money,
        "status": "COMPLETED",
        "source_type": source,
        "location_id": location,
        "receipt_number": world.new_id(4),
        "version_token": world.new_id(32),
        "delay_action": "CANCEL",
    }
    if source == "CARD":
        value["card_details"] = {"status": "CAPTURED", "card": {"card_brand": "VISA", "last_4": "1111"}}
        fee = money["amount"] * 26 // 1000 + 10
        value["processing_fee"] = [
            {"effective_at": stamp, "type": "INITIAL", "amount_money": {**money, "amount": fee}}
        ]
    return value


# Inventory.


def get_counts(world: World, call: Call) -> Answer:
    """POST /v2/inventory/counts/batch-retrieve"""
    seller = seller_of(call)
    body = body_of(
        call, known=("catalog_object_ids", "location_ids", "updated_after", "cursor", "states", "limit")
    )
    after = time_of(body.get("updated_after"), "updated_after")
    objects, locations, states = (
        texts(body, name) for name in ("catalog_object_ids", "location_ids", "states")
    )
    found, cursor = world.page(
        seller.counts.orders["calculated"],
        seller.counts.objects,
        query={**body, "cursor": None, "limit": None},
        limit=limit_of(body.get("limit"), default=100, most=1000, strict=True),
        cursor=body.get("cursor"),
        fits=lambda value: (
            (not objects or value["catalog_object_id"] in objects)
            and (not locations or value["location_id"] in locations)
            and (not states or value["state"] in states)
            and value["calculated_at"] != after
        ),
        at_least=after,
    )
    return listed("counts", found, cursor)


def change_inventory(world: World, call: Call) -> Answer:
    """POST /v2/inventory/changes/batch-create. All changes are made, or none."""
    seller = seller_of(call)
    body = body_of(
        call,
        known=("idempotency_key", "changes", "ignore_unchanged_counts"),
        required=("idempotency_key", "changes"),
    )

    def run() -> Answer:
        changes = body["changes"]
        if not isinstance(changes, list) or len(changes) > 100:
            raise refused(400, "ARRAY_LENGTH_TOO_LONG", "At most 100 changes are allowed.", "changes")
        steps = [_step(world, seller, change, f"changes[{place}]") for place, change in enumerate(changes)]
        stamp = world.stamp()
        counts: list[Json] = []
        for step in steps:
            counts += step(stamp)
        answer: Json = {"changes": changes}
        if counts:
            answer["counts"] = counts
        return Answer(200, answer)

    return world.once(call, seller, body, 128, run)


def _step(world: World, seller: Seller, change: Any, where: str) -> Callable[[str], list[Json]]:
    kind = change.get("type") if isinstance(change, dict) else None
    if kind not in ("PHYSICAL_COUNT", "ADJUSTMENT"):
        raise refused(400, "INVALID_ENUM_VALUE", f"`{kind}` is not a valid enum value.", f"{where}.type")
    part = kind.lower()
    check_known(change, ("type", part), where)
    given = object_in(change, part, where)
    path = f"{where}.{part}"
    for name in ("catalog_object_id", "state", "from_state", "to_state"):
        check_text(given, name, 100, path)
    variation = seller.catalog.get(given.get("catalog_object_id") or "")
    if variation is None or variation["is_deleted"] or variation["type"] != "ITEM_VARIATION":
        raise refused(404, "NOT_FOUND", "No such item variation.", f"{path}.catalog_object_id")
    _check_location(seller, given.get("location_id"), f"{path}.location_id", 400)
    quantity = given.get("quantity")
    if not isinstance(quantity, str) or not QUANTITY.fullmatch(quantity):
        raise refused(400, "INVALID_VALUE", "A quantity is a decimal string.", f"{path}.quantity")
    occurred = time_of(given.get("occurred_at"), f"{path}.occurred_at")
    if occurred is None:
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.occurred_at")
    now = world.clock.now()
    if not rfc3339(now - DAY) <= occurred <= rfc3339(now + 1):
        message = "The time must not be older than 24 hours nor in the future."
        raise refused(400, "INVALID_TIME", message, f"{path}.occurred_at")
    place = (variation["id"], given["location_id"])
    number = Decimal(quantity)
    if kind == "PHYSICAL_COUNT":
        state = given.get("state") or "IN_STOCK"
        return lambda stamp: [_set_count(world, seller, (*place, state), number, stamp)]
    source, target = given.get("from_state"), given.get("to_state")
    if not source or not target:
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.from_state")

    def move(stamp: str) -> list[Json]:
        moved: list[Json] = []
        for state, sign in ((source, -1), (target, 1)):
            if state in ("NONE", "SOLD", "WASTE", "UNLINKED_RETURN"):  # not kept as counts
                continue
            moved.append(
                _set_count(
                    world, seller, (*place, state), _count(seller, (*place, state)) + sign * number, stamp
                )
            )
        return moved

    return move


def _count(seller: Seller, place: tuple[str, str, str]) -> Decimal:
    known = seller.counts.get("/".join(place))
    return Decimal(known["quantity"]) if known else Decimal(0)


def _set_count(
    world: World, seller: Seller, place: tuple[str, str, str], number: Decimal, stamp: str
) -> Json:
    value = {
        "catalog_object_id": place[0],
        "catalog_object_type": "ITEM_VARIATION",
        "location_id": place[1],
        "state": place[2],
        "quantity": f"{number.normalize():f}",
        "calculated_at": stamp,
    }
    seller.counts.put("/".join(place), value)
    world.effect("inventory.updated")
    data = {"type": "inventory_counts", "id": place[0], "object": {"inventory_counts": [value]}}
    world.tell(seller, "inventory.count.updated", data)
    return value


def _tell_order(world: World, seller: Seller, name: str, value: Json) -> None:
    """Tell of an order: its event has ids and the version only."""
    ids = {
        "order_id": value["id"],
        "version": value["version"],
        "location_id": value.get("location_id"),
        "state": value["state"],
    }
    data = {"type": name, "id": value["id"], "object": {name: ids}}
    world.tell(seller, name.replace("_", "."), data)


def tell_payment(world: World, seller: Seller, kind: str, value: Json) -> None:
    """Tell of a payment, which its event holds as it is."""
    world.tell(seller, kind, {"type": "payment", "id": value["id"], "object": {"payment": value}})


# Seeding.


def seed_orders(world: World, seller: Seller, count: int, customers: Sequence[Json] = ()) -> list[str]:
    """Store completed orders with payments of the past 60 days; return the orders' ids.

    Every tenth payment is partly refunded; every fifth order is of the second location.
    """
    now, made = world.clock.now(), []
    for place in range(count):
        stamp = rfc3339(now - 60 * DAY + (place + 1) * 60 * DAY / (count + 1))
        location = seller.location_ids()[1 if place % 5 == 4 else 0]
        customer = customers[place % len(customers)] if customers else None
        order: Json = {
            "id": world.new_id(22),
            "location_id": location,
            "state": "COMPLETED",
            "source": {"name": "Point of Sale"},
            "created_at": stamp,
            "updated_at": stamp,
            "closed_at": stamp,
            "reference_id": f"box-office-{place + 1}",
            "line_items": [
                {
                    "name": ("General admission", "Balcony", "Café crème", "T-shirt")[place % 4],
                    "quantity": str(1 + place % 3),
                    "base_price_money": {
                        "amount": (4500, 6000, 350, 2500)[place % 4],
                        "currency": seller.currency,
                    },
                }
            ],
        }
        if customer:
            order["customer_id"] = customer["id"]
        _total(world, seller, order)
        payment = _payment(world, seller, location, order["total_money"], stamp, ("CARD", "CASH")[place % 2])
        payment["order_id"] = order["id"]
        if customer:
            payment["customer_id"] = customer["id"]
        order["tenders"] = [
            {
                "id": payment["id"],
                "type": payment["source_type"],
                "amount_money": order["total_money"],
                "payment_id": payment["id"],
            }
        ]
        order["net_amounts"] = {"total_money": order["total_money"]}
        seller.orders.put(order["id"], order)
        if place % 10 == 9:
            _seed_refund(world, seller, payment, stamp)
        seller.payments.put(payment["id"], payment)
        tell_payment(world, seller, "payment.created", payment)  # an order made at the till is not told of
        made.append(order["id"])
    return made


def _seed_refund(world: World, seller: Seller, payment: Json, stamp: str) -> None:
    money = {**payment["amount_money"], "amount": payment["amount_money"]["amount"] // 2}
    refund = {
        "id": f"{payment['id']}_{world.new_id(20)}",
        "status": "COMPLETED",
        "payment_id": payment["id"],
        "order_id": payment["order_id"],
        "location_id": payment["location_id"],
        "amount_money": money,
        "reason": "Show cancelled",
        "created_at": stamp,
        "updated_at": stamp,
    }
    payment["refunded_money"] = money
    payment["refund_ids"] = [refund["id"]]
    seller.refunds.put(refund["id"], refund)
