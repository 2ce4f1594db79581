"""Square's catalog: whole objects, versions at both levels, temporary ids, batches."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.sandbox.core import Answer, Call, RefusedError
from tests.sandbox.shelf import Json
from tests.sandbox.square_world import (
    Seller,
    World,
    body_of,
    check_known,
    check_money,
    check_text,
    entries_of,
    limit_of,
    listed,
    object_in,
    refused,
    seller_of,
    texts,
    time_of,
)

PAGE = 100
BATCH_OBJECTS = 1_000
REQUEST_OBJECTS = 10_000
RETRIEVE_IDS = 1_000
DELETE_IDS = 200
SEARCH_PAGE = 1_000
VARIATIONS = 250
KEY_LENGTH = 128
CREATABLE_PRODUCTS = ("REGULAR", "APPOINTMENTS_SERVICE")

OBJECT_FIELDS = frozenset(
    {
        *("type", "id", "version", "updated_at", "created_at", "is_deleted", "custom_attribute_values"),
        *("catalog_v1_ids", "present_at_all_locations", "present_at_location_ids"),
        *("absent_at_location_ids", "image_id"),
    }
)
DATA_FIELDS: Mapping[str, frozenset[str] | None] = {
    "ITEM": frozenset(
        {
            *("name", "description", "abbreviation", "label_color", "is_taxable", "category_id", "tax_ids"),
            *("modifier_list_info", "variations", "product_type", "skip_modifier_screen", "item_options"),
            *("ecom_uri", "ecom_image_uris", "image_ids", "sort_name", "categories", "description_html"),
            *("description_plaintext", "channels", "is_archived", "ecom_seo_data", "kitchen_name"),
            *("food_and_beverage_details", "reporting_category", "is_alcoholic", "buyer_facing_name"),
            *("available_online", "available_for_pickup", "available_electronically"),
        }
    ),
    "ITEM_VARIATION": frozenset(
        {
            *(
                "item_id",
                "name",
                "sku",
                "upc",
                "ordinal",
                "pricing_type",
                "price_money",
                "location_overrides",
            ),
            *(
                "track_inventory",
                "inventory_alert_type",
                "inventory_alert_threshold",
                "user_data",
                "sellable",
            ),
            *("service_duration", "available_for_booking", "item_option_values", "measurement_unit_id"),
            *("stockable", "image_ids", "team_member_ids", "stockable_conversion", "kitchen_name"),
        }
    ),
    # Kept and not looked into.
    "CATEGORY": None,
    "TAX": None,
    "DISCOUNT": None,
    "MODIFIER_LIST": None,
    "MODIFIER": None,
    "ITEM_OPTION": None,
    "ITEM_OPTION_VAL": None,
    "IMAGE": None,
    "MEASUREMENT_UNIT": None,
    "CUSTOM_ATTRIBUTE_DEFINITION": None,
    "PRODUCT_SET": None,
    "PRICING_RULE": None,
    "TIME_PERIOD": None,
}
CHILDREN = {
    "ITEM": ("variations", "ITEM_VARIATION"),
    "MODIFIER_LIST": ("modifiers", "MODIFIER"),
    "ITEM_OPTION": ("values", "ITEM_OPTION_VAL"),
}
PARENT_FIELD = {
    "ITEM_VARIATION": "item_id",
    "MODIFIER": "modifier_list_id",
    "ITEM_OPTION_VAL": "item_option_id",
}
REFERENCES = frozenset({*PARENT_FIELD.values(), "category_id", "item_option_value_id", "measurement_unit_id"})
REFERENCE_LISTS = frozenset({"tax_ids", "image_ids"})
REFERENCE_OBJECTS = frozenset({"categories", "reporting_category"})
_TAGS = re.compile(r"<[^>]+>")


def data_key(kind: str) -> str:
    """Return where an object of the type keeps its own fields, such as `item_data`."""
    return f"{kind.lower()}_data" if kind != "ITEM_OPTION_VAL" else "item_option_value_data"


def children(value: Json) -> list[Json]:
    """Return the objects nested in one."""
    nested = CHILDREN.get(str(value.get("type")))
    if nested is None:
        return []
    data = value.get(data_key(value["type"]))
    found = data.get(nested[0]) if isinstance(data, dict) else None
    return found if isinstance(found, list) else []


# Reading.


def info(_: World, __: Call) -> Answer:
    """GET /v2/catalog/info"""
    return Answer(
        200,
        {
            "limits": {
                "batch_upsert_max_objects_per_batch": BATCH_OBJECTS,
                "batch_upsert_max_total_objects": REQUEST_OBJECTS,
                "batch_retrieve_max_object_ids": RETRIEVE_IDS,
                "search_max_page_limit": SEARCH_PAGE,
                "batch_delete_max_object_ids": DELETE_IDS,
            }
        },
    )


def list_all(world: World, call: Call) -> Answer:
    """GET /v2/catalog/list"""
    seller, query = seller_of(call), dict(call.query)
    check_known(query, ("cursor", "types", "catalog_version"))
    types = _types([kind for kind in query.get("types", "").split(",") if kind])
    found, cursor = world.page(
        seller.catalog.orders["created"],
        seller.catalog.objects,
        query=["catalog", types],
        limit=PAGE,
        cursor=query.get("cursor"),
        fits=lambda value: value["type"] in types and not value["is_deleted"],
    )
    return listed("objects", found, cursor)


def _types(given: Sequence[str]) -> list[str]:
    for kind in given:
        if kind not in DATA_FIELDS:
            raise refused(400, "INVALID_ENUM_VALUE", f"`{kind}` is not a valid enum value.", "types")
    return sorted(given) or sorted(set(DATA_FIELDS) - set(PARENT_FIELD))


def search(world: World, call: Call) -> Answer:
    """POST /v2/catalog/search"""
    seller = seller_of(call)
    body = body_of(
        call,
        known=(
            *("cursor", "object_types", "include_deleted_objects", "include_related_objects"),
            *("begin_time", "query", "limit", "include_category_path_to_root"),
        ),
    )
    types = _types(texts(body, "object_types"))
    begin = time_of(body.get("begin_time"), "begin_time")
    with_deleted = bool(body.get("include_deleted_objects"))
    matches = _query(body.get("query"))
    found, cursor = world.page(
        seller.catalog.orders["updated"],
        seller.catalog.objects,
        query={**body, "cursor": None, "limit": None},
        limit=limit_of(body.get("limit"), default=PAGE, most=SEARCH_PAGE, strict=False),
        cursor=body.get("cursor"),
        fits=lambda value: (
            value["type"] in types
            and (with_deleted or not value["is_deleted"])
            and value["updated_at"] != begin
            and matches(value)
        ),
        at_least=begin,
    )
    answer = listed("objects", found, cursor)
    if body.get("include_related_objects") and (related := _related(seller, found)):
        answer.body["related_objects"] = related
    answer.body["latest_time"] = seller.catalog_updated_at or "1970-01-01T00:00:00.000Z"
    return answer


def _query(given: Any) -> Any:
    """Return what tells whether an object fits a search query of one of the simple kinds."""
    if not given:
        return lambda _: True
    check_known(given, ("exact_query", "prefix_query", "set_query", "text_query"), "query")
    if len(given) != 1:
        raise refused(400, "INVALID_VALUE", "Exactly one kind of query must be given.", "query")
    kind = next(iter(given))
    wanted = object_in(given, kind, "query")

    def read(value: Json) -> str:
        name = str(wanted.get("attribute_name", "name"))
        return str(value.get(data_key(value["type"]), {}).get(name, "")).casefold()

    if kind == "exact_query":
        exact = str(wanted.get("attribute_value", "")).casefold()
        return lambda value: read(value) == exact
    if kind == "prefix_query":
        prefix = str(wanted.get("attribute_prefix", "")).casefold()
        return lambda value: read(value).startswith(prefix)
    if kind == "set_query":
        values = {item.casefold() for item in texts(wanted, "attribute_values", "query.set_query")}
        return lambda value: read(value) in values
    words = [word.casefold() for word in texts(wanted, "keywords", "query.text_query")]
    return lambda value: all(word in read(value) for word in words)


def _related(seller: Seller, found: Sequence[Json]) -> list[Json]:
    own = {value["id"] for value in found}
    names: dict[str, None] = {}
    for value in found:
        names.update(dict.fromkeys(_references(value.get(data_key(value["type"]), {}))))
    objects = seller.catalog.objects
    return [
        objects[name]
        for name in names
        if name not in own and name in objects and not objects[name]["is_deleted"]
    ]


def _references(data: Any, key: str = "") -> Iterator[str]:
    if isinstance(data, dict):
        if key in REFERENCE_OBJECTS and isinstance(data.get("id"), str):
            yield data["id"]
        for name, value in data.items():
            yield from _references(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _references(value, key)
    elif isinstance(data, str) and (key in REFERENCES or key in REFERENCE_LISTS):
        yield data


def get_one(_: World, call: Call) -> Answer:
    """GET /v2/catalog/object/{id}"""
    seller, name = seller_of(call), call.parts["id"]
    value = seller.catalog.get(name)
    if value is None or value["is_deleted"]:
        raise refused(404, "NOT_FOUND", f"Catalog object with ID {name} not found.")
    body: Json = {"object": value}
    if dict(call.query).get("include_related_objects") == "true" and (related := _related(seller, [value])):
        body["related_objects"] = related
    return Answer(200, body)


def get_many(_: World, call: Call) -> Answer:
    """POST /v2/catalog/batch-retrieve"""
    seller = seller_of(call)
    body = body_of(
        call,
        known=(
            *("object_ids", "include_related_objects", "catalog_version", "include_deleted_objects"),
            "include_category_path_to_root",
        ),
        required=("object_ids",),
    )
    ids = _ids(body["object_ids"], RETRIEVE_IDS)
    found = [
        value
        for name in ids
        if (value := seller.catalog.get(name))
        and (body.get("include_deleted_objects") or not value["is_deleted"])
    ]
    answer = listed("objects", found, None)
    if body.get("include_related_objects") and (related := _related(seller, found)):
        answer.body["related_objects"] = related
    return answer


def _ids(given: Any, most: int) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise refused(400, "EXPECTED_ARRAY", "Expected a list of ids.", "object_ids")
    if len(given) > most:
        raise refused(400, "ARRAY_LENGTH_TOO_LONG", f"At most {most} ids are allowed.", "object_ids")
    return list(dict.fromkeys(given))


# Writing.


def upsert_one(world: World, call: Call) -> Answer:
    """POST /v2/catalog/object"""
    seller = seller_of(call)
    body = body_of(call, known=("idempotency_key", "object"), required=("idempotency_key", "object"))

    def run() -> Answer:
        stored, mappings = _upsert(world, seller, [body["object"]], {}, "object")
        answer: Json = {"catalog_object": stored[0]}
        if mappings:
            answer["id_mappings"] = _mappings(mappings)
        return Answer(200, answer)

    return world.once(call, seller, body, KEY_LENGTH, run)


def upsert_many(world: World, call: Call) -> Answer:
    """POST /v2/catalog/batch-upsert. A batch succeeds or fails as one, batches by themselves."""
    seller = seller_of(call)
    body = body_of(call, known=("idempotency_key", "batches"), required=("idempotency_key", "batches"))
    batches = body["batches"]
    if not isinstance(batches, list) or not all(
        isinstance(batch, dict) and isinstance(batch.get("objects"), list) and batch["objects"]
        for batch in batches
    ):
        raise refused(400, "INVALID_VALUE", "Each batch must have objects.", "batches")
    if not batches:
        raise refused(400, "INVALID_VALUE", "At least one batch is required.", "batches")
    sizes = [_size(batch["objects"]) for batch in batches]
    if max(sizes) > BATCH_OBJECTS:
        message = f"A batch may hold {BATCH_OBJECTS} objects; nested objects count."
        raise refused(400, "ARRAY_LENGTH_TOO_LONG", message, f"batches[{sizes.index(max(sizes))}].objects")
    if sum(sizes) > REQUEST_OBJECTS:
        message = f"A request may hold {REQUEST_OBJECTS} objects; nested objects count."
        raise refused(400, "ARRAY_LENGTH_TOO_LONG", message, "batches")

    def run() -> Answer:
        stored: list[Json] = []
        mappings: dict[str, str] = {}
        refusals: list[RefusedError] = []
        for place, batch in enumerate(batches):
            try:
                check_known(batch, ("objects",), f"batches[{place}]")
                done, mapped = _upsert(world, seller, batch["objects"], mappings, f"batches[{place}].objects")
            except RefusedError as refusal:
                refusals.append(refusal)
                continue
            stored += done
            mappings.update(mapped)
        if refusals and not stored:
            raise RefusedError(
                Answer(
                    refusals[0].answer.status,
                    {"errors": [entry for one in refusals for entry in entries_of(one)]},
                )
            )
        answer: Json = {"objects": stored, "updated_at": seller.catalog_updated_at}
        if mappings:
            answer["id_mappings"] = _mappings(mappings)
        if refusals:
            answer["errors"] = [entry for one in refusals for entry in entries_of(one)]
        return Answer(200, answer)

    return world.once(call, seller, body, KEY_LENGTH, run)


def _size(given: Sequence[Any]) -> int:
    return sum(1 + len(children(value)) for value in given if isinstance(value, dict))


def _mappings(mapped: Mapping[str, str]) -> list[Json]:
    return [{"client_object_id": client, "object_id": real} for client, real in mapped.items()]


def _upsert(
    world: World, seller: Seller, given: Sequence[Any], earlier: Mapping[str, str], where: str
) -> tuple[list[Json], dict[str, str]]:
    """Check everything first, then store; return the objects and what the temporary ids became."""
    mapped: dict[str, str] = {}
    seen: set[str] = set()
    for place, value in enumerate(given):
        path = f"{where}[{place}]" if where != "object" else where
        _check_object(seller, value, path, seen, mapped, world)
        data = value.get(data_key(value["type"])) or {}
        nested = CHILDREN.get(value["type"])
        for inner_place, inner in enumerate(children(value)):
            inner_path = f"{path}.{data_key(value['type'])}.{nested[0] if nested else ''}[{inner_place}]"
            _check_object(seller, inner, inner_path, seen, mapped, world, parent=value)
        if value["type"] == "ITEM" and not 1 <= len(data.get("variations") or []) <= VARIATIONS:
            message = f"An item must have 1 to {VARIATIONS} variations."
            raise refused(400, "INVALID_VALUE", message, f"{path}.item_data.variations")
    ids = {**earlier, **mapped}
    for place, value in enumerate(given):
        _check_references(seller, value, ids, f"{where}[{place}]")
    stamp, version = world.stamp(), world.version(seller)
    stored = [_store(world, seller, value, ids, stamp, version) for value in given]
    _tell_version(world, seller, stamp)
    return stored, mapped


def _tell_version(world: World, seller: Seller, stamp: str) -> None:
    """Move the catalog on; its event names no object."""
    seller.catalog_updated_at = stamp
    world.tell(
        seller,
        "catalog.version.updated",
        {"type": "catalog", "id": "", "object": {"catalog_version": {"updated_at": stamp}}},
    )


def _check_object(
    seller: Seller,
    value: Any,
    path: str,
    seen: set[str],
    mapped: dict[str, str],
    world: World,
    parent: Json | None = None,
) -> None:
    if not isinstance(value, dict):
        raise refused(400, "EXPECTED_OBJECT", f"Expected an object (field: {path})", path)
    kind, name = value.get("type"), value.get("id")
    if not isinstance(kind, str) or kind not in DATA_FIELDS:
        raise refused(400, "INVALID_ENUM_VALUE", f"`{kind}` is not a valid enum value.", f"{path}.type")
    if parent is not None and kind != CHILDREN[parent["type"]][1]:
        raise refused(400, "INVALID_VALUE", f"A {kind} cannot be nested here.", f"{path}.type")
    if not isinstance(name, str) or not name:
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.id")
    if name in seen:
        raise refused(400, "INVALID_VALUE", f"Object id {name} appears more than once.", f"{path}.id")
    seen.add(name)
    check_known(value, OBJECT_FIELDS | {data_key(kind)}, path)
    data = value.get(data_key(kind))
    if not isinstance(data, dict):
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.{data_key(kind)}")
    known = DATA_FIELDS[kind]
    if known is not None:
        check_known(data, known, f"{path}.{data_key(kind)}")
    old = _check_version(seller, value, path)
    if kind == "ITEM":
        _check_item(data, f"{path}.item_data", old)
    elif kind == "ITEM_VARIATION":
        _check_variation(data, f"{path}.item_variation_data", parent)
    if old is None:
        mapped[name] = world.new_id()


def _check_version(seller: Seller, value: Json, path: str) -> Json | None:
    name = value["id"]
    if name.startswith("#"):
        return None
    old = seller.catalog.get(name)
    if old is None or old["is_deleted"]:
        raise refused(400, "BAD_REQUEST", f"Object with id {name} cannot be written.", f"{path}.id")
    if old["type"] != value["type"]:
        raise refused(400, "INVALID_VALUE", f"Object {name} is a {old['type']}.", f"{path}.type")
    if value.get("version") != old["version"]:
        message = (
            f"Object version does not match latest database version. Object {name} has version "
            f"{old['version']}, the request had {value.get('version')}."
        )
        raise refused(409, "VERSION_MISMATCH", message, f"{path}.version")
    return old


def _check_item(data: Json, path: str, old: Json | None) -> None:
    check_text(data, "name", 512, path)
    check_text(data, "description", 4096, path)
    check_text(data, "description_html", 65_535, path)
    check_text(data, "abbreviation", 24, path)
    if not data.get("name"):
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.name")
    if not isinstance(data.get("variations", []), list):
        raise refused(400, "EXPECTED_ARRAY", "Expected a list.", f"{path}.variations")
    product = data.get("product_type")
    if old is None and product is not None and product not in CREATABLE_PRODUCTS:
        message = f"Items of product type {product} cannot be created by the API."
        raise refused(400, "INVALID_VALUE", message, f"{path}.product_type")
    if old is not None and product not in (None, old["item_data"]["product_type"]):
        raise refused(400, "INVALID_VALUE", "The product type cannot change.", f"{path}.product_type")


def _check_variation(data: Json, path: str, parent: Json | None) -> None:
    check_text(data, "name", 255, path)
    check_text(data, "sku", 255, path)
    check_text(data, "user_data", 255, path)
    pricing, money = data.get("pricing_type"), data.get("price_money")
    if pricing not in (None, "FIXED_PRICING", "VARIABLE_PRICING"):
        raise refused(
            400, "INVALID_ENUM_VALUE", f"`{pricing}` is not a valid enum value.", f"{path}.pricing_type"
        )
    if money is not None:
        check_money(money, f"{path}.price_money")
    if pricing == "FIXED_PRICING" and money is None:
        message = "A variation with fixed pricing must have a price."
        raise refused(400, "MISSING_REQUIRED_PARAMETER", message, f"{path}.price_money")
    if pricing == "VARIABLE_PRICING" and money is not None:
        message = "A variation with variable pricing must not have a price."
        raise refused(400, "INVALID_VALUE", message, f"{path}.price_money")
    check_text(data, "item_id", 192, path)
    own = data.get("item_id")
    if parent is None and not own:
        raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", f"{path}.item_id")
    if parent is not None and own not in (None, parent["id"]):
        message = f"The variation names item {own} and is nested in {parent['id']}."
        raise refused(400, "INVALID_VALUE", message, f"{path}.item_id")


def _check_references(seller: Seller, value: Json, ids: Mapping[str, str], path: str) -> None:
    for name in _references(value.get(data_key(value["type"]), {})):
        known = seller.catalog.get(name)
        if name not in ids and (known is None or known["is_deleted"]):
            raise refused(400, "INVALID_VALUE", f"Object {name} is referred to and does not exist.", path)


def _resolved(data: Any, ids: Mapping[str, str], key: str = "") -> Any:
    """Copy fields, with real ids for temporary ones where ids stand."""
    if isinstance(data, dict):
        copied = {name: _resolved(value, ids, name) for name, value in data.items() if value is not None}
        if key in REFERENCE_OBJECTS and isinstance(copied.get("id"), str):
            copied["id"] = ids.get(copied["id"], copied["id"])
        return copied
    if isinstance(data, list):
        return [_resolved(value, ids, key) for value in data]
    if isinstance(data, str) and (key in REFERENCES or key in REFERENCE_LISTS):
        return ids.get(data, data)
    return data


def _store(
    world: World,
    seller: Seller,
    given: Json,
    ids: Mapping[str, str],
    stamp: str,
    version: int,
    parent: str | None = None,
    ordinal: int | None = None,
) -> Json:
    kind, name = given["type"], ids.get(given["id"], given["id"])
    old = seller.catalog.get(name)
    nested = CHILDREN.get(kind)
    data = given[data_key(kind)]
    kept = _resolved({k: v for k, v in data.items() if nested is None or k != nested[0]}, ids)
    value: Json = {
        "type": kind,
        "id": name,
        "updated_at": stamp,
        "created_at": old["created_at"] if old else stamp,
        "version": version,
        "is_deleted": False,
        **{
            key: item
            for key, item in given.items()
            if key in OBJECT_FIELDS
            and key not in ("type", "id", "version", "updated_at", "created_at", "is_deleted")
            and item is not None
        },
        data_key(kind): kept,
    }
    value.setdefault("present_at_all_locations", True)
    if kind == "ITEM":
        kept.setdefault("product_type", old["item_data"]["product_type"] if old else "REGULAR")
        kept.setdefault("is_archived", False)
        kept.setdefault("is_taxable", True)
        kept.pop("description_plaintext", None)
        if html := kept.get("description_html"):
            kept["description_plaintext"] = _TAGS.sub("", html)
    if parent is not None:
        kept[PARENT_FIELD[kind]] = parent
        kept["ordinal"] = ordinal
    if kind == "ITEM_VARIATION":
        kept.setdefault("sellable", True)
        kept.setdefault("stockable", True)
    if nested is not None:
        kept[nested[0]] = [
            _store(world, seller, inner, ids, stamp, version, name, place)
            for place, inner in enumerate(children(given))
        ]
        now = {inner["id"] for inner in kept[nested[0]]}
        for gone in children(old) if old else []:
            if gone["id"] not in now:
                _mark_deleted(world, seller, gone, stamp, version)
    seller.catalog.put(name, value)
    world.effect(f"{kind.lower()}.{'updated' if old else 'created'}")
    if parent is None and kind in PARENT_FIELD:
        _join_parent(seller, value, stamp, version)
    return value


def _join_parent(seller: Seller, value: Json, stamp: str, version: int) -> None:
    parent = seller.catalog.get(value[data_key(value["type"])].get(PARENT_FIELD[value["type"]], ""))
    if parent is None:
        return
    inner = children(parent)
    places = [place for place, other in enumerate(inner) if other["id"] == value["id"]]
    if places:
        inner[places[0]] = value
    else:
        inner.append(value)
    parent["updated_at"], parent["version"] = stamp, version
    seller.catalog.put(parent["id"], parent)


def _mark_deleted(world: World, seller: Seller, value: Json, stamp: str, version: int) -> list[str]:
    gone = [value["id"]]
    value["is_deleted"], value["updated_at"], value["version"] = True, stamp, version
    for inner in children(value):
        gone += _mark_deleted(world, seller, inner, stamp, version)
    seller.catalog.put(value["id"], value)
    world.effect(f"{value['type'].lower()}.deleted")
    return gone


def delete_one(world: World, call: Call) -> Answer:
    """DELETE /v2/catalog/object/{id}"""
    seller, name = seller_of(call), call.parts["id"]
    deleted = _delete(world, seller, [name])
    if not deleted:
        raise refused(404, "NOT_FOUND", f"Catalog object with ID {name} not found.")
    return Answer(200, {"deleted_object_ids": deleted, "deleted_at": seller.catalog_updated_at})


def delete_many(world: World, call: Call) -> Answer:
    """POST /v2/catalog/batch-delete"""
    seller = seller_of(call)
    body = body_of(call, known=("object_ids",), required=("object_ids",))
    deleted = _delete(world, seller, _ids(body["object_ids"], DELETE_IDS))
    if not deleted:
        return Answer(200, {})
    return Answer(200, {"deleted_object_ids": deleted, "deleted_at": seller.catalog_updated_at})


def _delete(world: World, seller: Seller, names: Sequence[str]) -> list[str]:
    deleted: list[str] = []
    found = [value for name in names if (value := seller.catalog.get(name)) and not value["is_deleted"]]
    if not found:
        return deleted
    stamp, version = world.stamp(), world.version(seller)
    for value in found:
        if value["is_deleted"]:  # its parent was in the list, too
            continue
        deleted += _mark_deleted(world, seller, value, stamp, version)
        _leave_parent(seller, value, stamp, version)
    _tell_version(world, seller, stamp)
    return deleted


def _leave_parent(seller: Seller, value: Json, stamp: str, version: int) -> None:
    if value["type"] not in PARENT_FIELD:
        return
    parent = seller.catalog.get(value[data_key(value["type"])].get(PARENT_FIELD[value["type"]], ""))
    if parent is None or parent["is_deleted"]:
        return
    inner = children(parent)
    inner[:] = [other for other in inner if other["id"] != value["id"]]
    parent["updated_at"], parent["version"] = stamp, version
    seller.catalog.put(parent["id"], parent)
