"""Mailchimp e-commerce: stores, and the products, customers and orders inside them."""

from collections.abc import Mapping
from typing import Any

from tests.sandbox.core import Answer, Call
from tests.sandbox.mailchimp_audience import STATUSES, find, put
from tests.sandbox.mailchimp_world import (
    NO_CONTENT,
    Store,
    World,
    account_of,
    body_of,
    check,
    check_currency,
    check_email,
    check_id,
    fault,
    invalid,
    objects_in,
    page_of,
    page_of_shelf,
    query_of,
    refused,
)
from tests.sandbox.shelf import Json, Shelf

STORE: Mapping[str, type] = {
    "id": str,
    "list_id": str,
    "name": str,
    "platform": str,
    "domain": str,
    "is_syncing": bool,
    "email_address": str,
    "currency_code": str,
    "money_format": str,
    "primary_locale": str,
    "timezone": str,
    "phone": str,
    "address": dict,
}
VARIANT: Mapping[str, type] = {
    "id": str,
    "title": str,
    "url": str,
    "sku": str,
    "price": float,
    "inventory_quantity": int,
    "image_url": str,
    "backorders": str,
    "visibility": str,
}
PRODUCT: Mapping[str, type] = {
    "id": str,
    "title": str,
    "handle": str,
    "url": str,
    "description": str,
    "type": str,
    "vendor": str,
    "image_url": str,
    "variants": list,
    "images": list,
    "published_at_foreign": str,
}
CUSTOMER: Mapping[str, type] = {
    "id": str,
    "email_address": str,
    "opt_in_status": bool,
    "company": str,
    "first_name": str,
    "last_name": str,
    "address": dict,
}
LINE: Mapping[str, type] = {
    "id": str,
    "product_id": str,
    "product_variant_id": str,
    "quantity": int,
    "price": float,
    "discount": float,
}
LINE_REQUIRED = ("id", "product_id", "product_variant_id", "quantity", "price")
ORDER: Mapping[str, type] = {
    "id": str,
    "customer": dict,
    "campaign_id": str,
    "landing_site": str,
    "financial_status": str,
    "fulfillment_status": str,
    "currency_code": str,
    "order_total": float,
    "order_url": str,
    "discount_total": float,
    "tax_total": float,
    "shipping_total": float,
    "tracking_code": str,
    "processed_at_foreign": str,
    "cancelled_at_foreign": str,
    "updated_at_foreign": str,
    "shipping_address": dict,
    "billing_address": dict,
    "promos": list,
    "lines": list,
}
ORDER_REQUIRED = ("id", "customer", "currency_code", "order_total", "lines")


def _known(given: Json, types: Mapping[str, type], *drop: str) -> Json:
    return {name: given[name] for name in types if name in given and name not in drop}


def _found(value: Any) -> Any:
    if value is None:
        raise refused(404)
    return value


# Stores.


def store_of(call: Call) -> Store:
    """Return the store named in the path."""
    store: Store = _found(account_of(call).stores.get(call.parts["store"]))
    return store


def list_stores(_: World, call: Call) -> Answer:
    found = [store.document for store in account_of(call).stores.values()]
    return page_of("stores", query_of(call), found)


def create_store(world: World, call: Call) -> Answer:
    account = account_of(call)
    given = body_of(call, STORE, ("id", "list_id", "name", "currency_code"))
    check_id(given)
    check_currency(given)
    if given["list_id"] not in account.audiences:
        raise invalid([fault("list_id", "The list does not exist.")])
    if given["id"] in account.stores:
        raise refused(400, "A store with the provided ID already exists in the account.")
    stamp = world.stamp()
    document = {"is_syncing": False, **_known(given, STORE), "created_at": stamp, "updated_at": stamp}
    account.stores[given["id"]] = Store(document)
    world.effect("store.created")
    return Answer(200, document)


def get_store(_: World, call: Call) -> Answer:
    return Answer(200, store_of(call).document)


def update_store(world: World, call: Call) -> Answer:
    store = store_of(call)
    given = body_of(call, STORE)
    check_currency(given)
    if given.get("list_id", store.document["list_id"]) != store.document["list_id"]:
        raise invalid([fault("list_id", "The list of a store cannot be changed.")])
    store.document = {**store.document, **_known(given, STORE, "id"), "updated_at": world.stamp()}
    world.effect("store.updated")
    return Answer(200, store.document)


def delete_store(world: World, call: Call) -> Answer:
    store_of(call)
    del account_of(call).stores[call.parts["store"]]
    world.effect("store.deleted")
    return NO_CONTENT


# Products and variants.


def list_products(_: World, call: Call) -> Answer:
    return page_of_shelf("products", query_of(call), store_of(call).products, store_id=call.parts["store"])


def get_product(_: World, call: Call) -> Answer:
    return Answer(200, _found(store_of(call).products.get(call.parts["product"])))


def create_product(world: World, call: Call) -> Answer:
    store = store_of(call)
    given = body_of(call, PRODUCT, ("id", "title", "variants"))
    if store.products.get(given["id"]) is not None:
        raise refused(400, "A product with the provided ID already exists.")
    return Answer(200, _new_product(world, store, given))


def upsert_product(world: World, call: Call) -> Answer:
    """PUT, which only the newest documentation has; a choice turns it on."""
    if not world.choices["product_put"]:
        raise refused(405)
    store = store_of(call)
    given = {**body_of(call, PRODUCT, ("title", "variants")), "id": call.parts["product"]}
    known = store.products.get(given["id"])
    made = _new_product(world, store, given) if known is None else _change_product(world, store, known, given)
    return Answer(200, made)


def update_product(world: World, call: Call) -> Answer:
    store = store_of(call)
    known = _found(store.products.get(call.parts["product"]))
    return Answer(200, _change_product(world, store, known, body_of(call, PRODUCT)))


def delete_product(world: World, call: Call) -> Answer:
    _found(store_of(call).products.remove(call.parts["product"]))
    world.effect("product.deleted")
    return NO_CONTENT


def _new_product(world: World, store: Store, given: Json) -> Json:
    check_id(given)
    made = {
        **{"handle": "", "url": "", "description": "", "type": "", "vendor": "", "image_url": ""},
        **_known(given, PRODUCT),
        "variants": _variants(world, given, {}),
        "images": given.get("images", []),
        "currency_code": store.document["currency_code"],
    }
    store.products.put(made["id"], made)
    world.effect("product.created")
    return made


def _change_product(world: World, store: Store, known: Json, given: Json) -> Json:
    changed = {**known, **_known(given, PRODUCT, "id")}
    if "variants" in given:
        old = {variant["id"]: variant for variant in known["variants"]}
        changed["variants"] = _variants(world, given, old)
    store.products.put(changed["id"], changed)
    world.effect("product.updated")
    return changed


def _variants(world: World, given: Json, old: Mapping[str, Json]) -> list[Json]:
    """Read the variants sent with a product: they take the place of those it had."""
    found: dict[str, Json] = {}
    for place, entry in enumerate(objects_in(given, "variants")):
        check(entry, VARIANT, ("id", "title"), f"variants.item:{place}.")
        check_id(entry, f"variants.item:{place}.id")
        if entry["id"] in found:
            raise invalid([fault(f"variants.item:{place}.id", "The id is used twice.")])
        found[entry["id"]] = _variant(world, entry, old.get(entry["id"]))
    if not found:
        raise invalid([fault("variants", "This collection should contain 1 element or more.")])
    return list(found.values())


def _variant(world: World, given: Json, old: Json | None) -> Json:
    stamp = world.stamp()
    blank = {
        **{"url": "", "sku": "", "price": 0, "inventory_quantity": 0, "image_url": ""},
        **{"backorders": "0", "visibility": "visible", "created_at": stamp},
    }
    return {**(old or blank), **_known(given, VARIANT), "updated_at": stamp}


def _product_of(call: Call) -> tuple[Store, Json]:
    store = store_of(call)
    return store, _found(store.products.get(call.parts["product"]))


def list_variants(_: World, call: Call) -> Answer:
    product = _product_of(call)[1]
    return page_of("variants", query_of(call), product["variants"], product_id=product["id"])


def get_variant(_: World, call: Call) -> Answer:
    product = _product_of(call)[1]
    found = (entry for entry in product["variants"] if entry["id"] == call.parts["variant"])
    return Answer(200, _found(next(found, None)))


def put_variant(world: World, call: Call) -> Answer:
    """PUT: changed or added."""
    given = {**body_of(call, VARIANT, ("title",)), "id": call.parts["variant"]}
    check_id(given)
    return _keep_variant(world, call, given, may_be_new=True)


def update_variant(world: World, call: Call) -> Answer:
    given = {**body_of(call, VARIANT), "id": call.parts["variant"]}
    return _keep_variant(world, call, given, may_be_new=False)


def delete_variant(world: World, call: Call) -> Answer:
    store, product = _product_of(call)
    kept = [entry for entry in product["variants"] if entry["id"] != call.parts["variant"]]
    if len(kept) == len(product["variants"]):
        raise refused(404)
    if not kept:
        raise refused(400, "A product has at least one variant.", "Invalid Action")
    store.products.put(product["id"], {**product, "variants": kept})
    world.effect("variant.deleted")
    return NO_CONTENT


def _keep_variant(world: World, call: Call, given: Json, *, may_be_new: bool) -> Answer:
    store, product = _product_of(call)
    variants = {entry["id"]: entry for entry in product["variants"]}
    old = variants.get(given["id"])
    if old is None and not may_be_new:
        raise refused(404)
    made = variants[given["id"]] = _variant(world, given, old)
    store.products.put(product["id"], {**product, "variants": list(variants.values())})
    world.effect("variant.created" if old is None else "variant.updated")
    return Answer(200, made)


# Customers.


def list_customers(_: World, call: Call) -> Answer:
    store, query = store_of(call), query_of(call)
    if address := query.get("email_address"):
        found = _indexed(store.customers, "email", address.lower())
        return page_of("customers", query, found, store_id=call.parts["store"])
    return page_of_shelf("customers", query, store.customers, store_id=call.parts["store"])


def _indexed(shelf: Shelf, index: str, value: str) -> list[Json]:
    return [shelf.objects[key[2]] for key in shelf.listed(index, value).walk()]


def get_customer(_: World, call: Call) -> Answer:
    return Answer(200, _found(store_of(call).customers.get(call.parts["customer"])))


def create_customer(world: World, call: Call) -> Answer:
    store = store_of(call)
    given = body_of(call, CUSTOMER, ("id", "email_address", "opt_in_status"))
    if store.customers.get(given["id"]) is not None:
        raise refused(400, "A customer with the provided ID already exists.")
    return Answer(200, _put_customer(world, call, store, given))


def upsert_customer(world: World, call: Call) -> Answer:
    store = store_of(call)
    given = body_of(call, CUSTOMER, ("id", "email_address", "opt_in_status"))
    if given["id"] != call.parts["customer"]:
        raise invalid([fault("id", "The id is not the one in the path.")])
    return Answer(200, _put_customer(world, call, store, given))


def update_customer(world: World, call: Call) -> Answer:
    store = store_of(call)
    _found(store.customers.get(call.parts["customer"]))
    given = {**body_of(call, CUSTOMER), "id": call.parts["customer"]}
    given.pop("email_address", None)  # fixed once it is known
    return Answer(200, _put_customer(world, call, store, given))


def delete_customer(world: World, call: Call) -> Answer:
    _found(store_of(call).customers.remove(call.parts["customer"]))
    world.effect("customer.deleted")
    return NO_CONTENT


def _put_customer(world: World, call: Call, store: Store, given: Json, where: str = "") -> Json:
    check_id(given, f"{where}id")
    check_email(given)
    stamp = world.stamp()
    old = store.customers.get(given["id"])
    blank = {
        **{"company": "", "first_name": "", "last_name": "", "orders_count": 0, "total_spent": 0},
        **{"address": {}, "created_at": stamp},
    }
    made = {**(old or blank), **_known(given, CUSTOMER), "updated_at": stamp}
    _touch_contact(world, call, store, made)
    store.customers.put(made["id"], made)
    world.effect("customer.created" if old is None else "customer.updated")
    return made


def _touch_contact(world: World, call: Call, store: Store, customer: Json) -> None:
    """A customer is a contact of the store's list: transactional, or subscribed by opting in."""
    audience = account_of(call).audiences[store.document["list_id"]]
    known = find(audience, customer["email_address"])
    status = None
    if known is None or known["status"] == "archived":
        status = "subscribed" if customer["opt_in_status"] else "transactional"
    elif customer["opt_in_status"] and known["status"] == "transactional":
        status = "subscribed"
    if known is not None and status is None:
        return
    assert status in STATUSES
    names = {"FNAME": customer["first_name"], "LNAME": customer["last_name"]}
    given = {
        "email_address": customer["email_address"],
        "merge_fields": {tag: value for tag, value in names.items() if value},
    }
    put(world, audience, known, given, status, skip=True, source="store")


# Orders.


def list_orders(_: World, call: Call) -> Answer:
    store, query = store_of(call), query_of(call)
    more = {"store_id": call.parts["store"]}
    if wanted := query.get("customer_id"):
        return page_of("orders", query, _indexed(store.orders, "customer", wanted), **more)
    return page_of_shelf("orders", query, store.orders, **more)


def get_order(_: World, call: Call) -> Answer:
    return Answer(200, _found(store_of(call).orders.get(call.parts["order"])))


def create_order(world: World, call: Call) -> Answer:
    store = store_of(call)
    given = body_of(call, ORDER, ORDER_REQUIRED)
    check_id(given)
    if store.orders.get(given["id"]) is not None:
        raise refused(400, "An order with the provided ID already exists.")
    lines = _lines(store, given)
    check_currency(given)
    customer = _customer_of(world, call, store, given["customer"])
    customer = {
        **customer,
        "orders_count": customer["orders_count"] + 1,
        "total_spent": customer["total_spent"] + given["order_total"],
    }
    store.customers.put(customer["id"], customer)
    blank = {
        **{"campaign_id": "", "landing_site": "", "financial_status": "", "fulfillment_status": ""},
        **{"order_url": "", "discount_total": 0, "tax_total": 0, "shipping_total": 0, "tracking_code": ""},
        **{"processed_at_foreign": "", "cancelled_at_foreign": "", "updated_at_foreign": "", "promos": []},
        **{"shipping_address": {}, "billing_address": {}},
    }
    made = {
        **blank,
        **_known(given, ORDER),
        "store_id": store.document["id"],
        "customer": customer,
        "lines": lines,
    }
    store.orders.put(made["id"], made)
    world.effect("order.created")
    _notify(world, store, blank, made)
    return Answer(200, made)


def update_order(world: World, call: Call) -> Answer:
    store = store_of(call)
    known = _found(store.orders.get(call.parts["order"]))
    given = body_of(call, ORDER)
    check_currency(given)
    changed = {**known, **_known(given, ORDER, "id", "lines", "customer")}
    if "lines" in given:
        merged = {line["id"]: line for line in (*known["lines"], *_lines(store, given))}
        changed["lines"] = list(merged.values())
    if "customer" in given:
        changed["customer"] = _customer_of(world, call, store, given["customer"])
    store.orders.put(changed["id"], changed)
    world.effect("order.updated")
    _notify(world, store, known, changed)
    return Answer(200, changed)


def delete_order(world: World, call: Call) -> Answer:
    _found(store_of(call).orders.remove(call.parts["order"]))
    world.effect("order.deleted")
    return NO_CONTENT


def _customer_of(world: World, call: Call, store: Store, given: Json) -> Json:
    check(given, CUSTOMER, ("id",), "customer.")
    known = store.customers.get(given["id"])
    if known is None:
        check(given, {}, ("email_address", "opt_in_status"), "customer.")
    elif set(given) == {"id"}:
        return known
    return _put_customer(world, call, store, given, "customer.")


def _lines(store: Store, given: Json) -> list[Json]:
    found = []
    for place, line in enumerate(objects_in(given, "lines")):
        where = f"lines.item:{place}."
        check(line, LINE, LINE_REQUIRED, where)
        check_id(line, f"{where}id")
        product = store.products.get(line["product_id"])
        if product is None:
            raise invalid([fault(f"{where}product_id", "The product does not exist in the store.")])
        variants = {variant["id"]: variant for variant in product["variants"]}
        if line["product_variant_id"] not in variants:
            raise invalid([fault(f"{where}product_variant_id", "The product has no such variant.")])
        titles = {
            "product_title": product["title"],
            "product_variant_title": variants[line["product_variant_id"]]["title"],
        }
        found.append({"discount": 0, **_known(line, LINE), **titles})
    if not found:
        raise invalid([fault("lines", "This collection should contain 1 element or more.")])
    return found


def _notify(world: World, store: Store, old: Json, new: Json) -> None:
    """Count the mail a buyer gets when a status changes in a store that is not being filled."""
    if store.document["is_syncing"]:
        return
    for name in ("financial_status", "fulfillment_status"):
        if new[name] and new[name] != old[name]:
            world.effect("order.mail_sent")
