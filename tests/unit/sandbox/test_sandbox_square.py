import asyncio
from typing import Any

import httpx
import pytest

Body = dict[str, Any]


def item(name: str, client_id: str = "#ev", amount: int = 4500, **more: Any) -> Body:
    return {
        "type": "ITEM",
        "id": client_id,
        "item_data": {
            "name": name,
            "variations": [
                {
                    "type": "ITEM_VARIATION",
                    "id": f"{client_id}-ga",
                    "item_variation_data": {
                        "item_id": client_id,
                        "name": "GA",
                        "pricing_type": "FIXED_PRICING",
                        "price_money": {"amount": amount, "currency": "USD"},
                    },
                }
            ],
            **more,
        },
    }


async def upsert(client: httpx.AsyncClient, key: str, *batches: list[Body]) -> httpx.Response:
    return await client.post(
        "/v2/catalog/batch-upsert",
        json={"idempotency_key": key, "batches": [{"objects": objects} for objects in batches]},
    )


async def stored(client: httpx.AsyncClient, *objects: Body, key: str = "first") -> list[Body]:
    answer = await upsert(client, key, list(objects))
    assert answer.status_code == 200, answer.text
    found: list[Body] = answer.json()["objects"]
    return found


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["errors"][0]["code"]


async def customer(client: httpx.AsyncClient, **fields: Any) -> Body:
    answer = await client.post("/v2/customers", json=fields)
    assert answer.status_code == 200, answer.text
    found: Body = answer.json()["customer"]
    return found


# Who calls.


async def test_tokens_are_needed(square: httpx.AsyncClient) -> None:
    answer = await square.get("/v2/locations", headers={"Authorization": "Bearer nobody"})
    assert answer.json()["errors"][0]["category"] == "AUTHENTICATION_ERROR"
    assert code(answer) == (401, "UNAUTHORIZED")


async def test_scopes_are_needed(square: httpx.AsyncClient) -> None:
    account = {"account": "MTWO", "scopes": ["ITEMS_READ"]}
    token = (await square.post("/_sandbox/accounts", json=account)).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert (await square.get("/v2/catalog/list", headers=headers)).status_code == 200
    assert code(await square.get("/v2/customers", headers=headers)) == (403, "INSUFFICIENT_SCOPES")


async def test_the_merchant_has_two_locations(square: httpx.AsyncClient) -> None:
    merchant = (await square.get("/v2/merchants/me")).json()["merchant"]
    locations = (await square.get("/v2/locations")).json()["locations"]
    assert merchant["main_location_id"] == locations[0]["id"]
    assert [location["status"] for location in locations] == ["ACTIVE", "ACTIVE"]


async def test_an_unknown_path_is_404(square: httpx.AsyncClient) -> None:
    assert code(await square.get("/v2/spaceships")) == (404, "NOT_FOUND")


async def test_the_version_header_comes_back(square: httpx.AsyncClient) -> None:
    answer = await square.get("/v2/locations", headers={"Square-Version": "2025-08-20"})
    assert answer.headers["Square-Version"] == "2025-08-20"


# Catalog.


async def test_temporary_ids_become_real_ones(square: httpx.AsyncClient) -> None:
    body = (await upsert(square, "k", [item("Concert")])).json()
    ids = {entry["client_object_id"]: entry["object_id"] for entry in body["id_mappings"]}
    assert set(ids) == {"#ev", "#ev-ga"}
    made = body["objects"][0]
    variation = made["item_data"]["variations"][0]
    assert (made["id"], variation["id"]) == (ids["#ev"], ids["#ev-ga"])
    assert variation["item_variation_data"]["item_id"] == ids["#ev"]
    alone = (await square.get(f"/v2/catalog/object/{variation['id']}")).json()["object"]
    assert alone == variation


async def test_a_text_that_looks_like_a_temporary_id_stays(square: httpx.AsyncClient) -> None:
    made = (await stored(square, item("#ev", description="#ev-ga")))[0]
    assert (made["item_data"]["name"], made["item_data"]["description"]) == ("#ev", "#ev-ga")


@pytest.mark.parametrize("level", ["item", "variation"])
@pytest.mark.parametrize("version", [None, 1])
async def test_both_levels_need_the_latest_version(
    square: httpx.AsyncClient, level: str, version: int | None
) -> None:
    made = (await stored(square, item("Old")))[0]
    target = made if level == "item" else made["item_data"]["variations"][0]
    right = target["version"]
    target["version"] = version
    made["item_data"]["name"] = "New"
    refused = await upsert(square, "second", [made])
    assert code(refused) == (409, "VERSION_MISMATCH")
    assert "does not match latest database version" in refused.json()["errors"][0]["detail"]
    target["version"] = right
    assert (await stored(square, made, key="third"))[0]["item_data"]["name"] == "New"


async def test_an_update_changes_the_version_and_replaces_the_whole(square: httpx.AsyncClient) -> None:
    made = (await stored(square, item("Concert", description="long text")))[0]
    before = made["version"]
    variation = made["item_data"]["variations"][0]
    del made["item_data"]["description"]
    made["item_data"]["variations"] = [
        {
            "type": "ITEM_VARIATION",
            "id": "#vip",
            "item_variation_data": {"name": "VIP", "pricing_type": "VARIABLE_PRICING"},
        }
    ]
    after = (await stored(square, made, key="second"))[0]
    assert after["version"] > before
    assert "description" not in after["item_data"]
    assert [one["item_variation_data"]["name"] for one in after["item_data"]["variations"]] == ["VIP"]
    assert (await square.get(f"/v2/catalog/object/{variation['id']}")).status_code == 404


async def test_a_batch_is_all_or_nothing_and_batches_are_independent(square: httpx.AsyncClient) -> None:
    broken = item("Bad", "#b")
    broken["item_data"]["colour"] = "red"
    mixed = await upsert(square, "one", [item("A", "#a"), broken], [item("C", "#c")])
    assert mixed.status_code == 200
    assert [value["item_data"]["name"] for value in mixed.json()["objects"]] == ["C"]
    assert mixed.json()["errors"][0]["field"] == "batches[0].objects[1].item_data.colour"
    alone = await upsert(square, "two", [item("A", "#a"), broken])
    assert code(alone) == (400, "BAD_REQUEST")
    listed = (await square.get("/v2/catalog/list?types=ITEM")).json()["objects"]
    assert [value["item_data"]["name"] for value in listed] == ["C"]


async def test_batches_count_nested_objects(square: httpx.AsyncClient) -> None:
    fits = await upsert(square, "one", [item("A", f"#{place}") for place in range(500)])
    assert fits.status_code == 200
    over = await upsert(square, "two", [item("A", f"#{place}") for place in range(501)])
    assert code(over) == (400, "ARRAY_LENGTH_TOO_LONG")
    batch = [item("A", f"#{place}") for place in range(500)]
    renamed = [[{**value, "id": f"#{value['id']}{batch_no}"} for value in batch] for batch_no in range(11)]
    assert code(await upsert(square, "three", *renamed)) == (400, "ARRAY_LENGTH_TOO_LONG")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": None}, "item_data.name"),
        ({"name": "x" * 513}, "item_data.name"),
        ({"variations": []}, "item_data.variations"),
        ({"product_type": "EVENT"}, "item_data.product_type"),
        ({"category_id": "NONE"}, None),
    ],
)
async def test_items_are_checked(square: httpx.AsyncClient, change: Body, field: str | None) -> None:
    wrong = item("A")
    wrong["item_data"].update(change)
    answer = await square.post("/v2/catalog/object", json={"idempotency_key": "k", "object": wrong})
    assert answer.status_code == 400
    if field:
        assert answer.json()["errors"][0]["field"] == f"object.{field}"


@pytest.mark.parametrize(
    "money",
    [
        None,
        {"amount": "4500", "currency": "USD"},
        {"amount": 45.0, "currency": "USD"},
        {"amount": 4500, "currency": "usd"},
        {"amount": -1, "currency": "USD"},
    ],
)
async def test_prices_are_checked(square: httpx.AsyncClient, money: Body | None) -> None:
    wrong = item("A")
    wrong["item_data"]["variations"][0]["item_variation_data"]["price_money"] = money
    assert (await upsert(square, "k", [wrong])).status_code == 400


async def test_an_object_deleted_meanwhile_is_a_plain_400(square: httpx.AsyncClient) -> None:
    made = (await stored(square, item("A")))[0]
    gone = (await square.delete(f"/v2/catalog/object/{made['id']}")).json()["deleted_object_ids"]
    assert set(gone) == {made["id"], made["item_data"]["variations"][0]["id"]}
    assert code(await upsert(square, "second", [made])) == (400, "BAD_REQUEST")
    assert (await square.get("/v2/catalog/list")).json() == {}


async def test_search_finds_changes_after_a_time_and_deletions(square: httpx.AsyncClient) -> None:
    first = (await stored(square, item("A", "#a")))[0]
    mark = (await square.post("/v2/catalog/search", json={})).json()["latest_time"]
    await stored(square, item("B", "#b"), key="second")
    await square.delete(f"/v2/catalog/object/{first['id']}")

    async def search(**more: Any) -> list[tuple[str, bool]]:
        query = {"object_types": ["ITEM"], "begin_time": mark, **more}
        found = (await square.post("/v2/catalog/search", json=query)).json().get("objects", [])
        return [(value["item_data"]["name"], value["is_deleted"]) for value in found]

    assert await search() == [("B", False)]
    assert await search(include_deleted_objects=True) == [("B", False), ("A", True)]
    latest = (await square.post("/v2/catalog/search", json={})).json()["latest_time"]
    assert await search(begin_time=latest, include_deleted_objects=True) == []  # exclusive


async def test_search_by_exact_name_with_related_objects(square: httpx.AsyncClient) -> None:
    category = {"type": "CATEGORY", "id": "#cat", "category_data": {"name": "Jazz"}}
    await stored(square, category, item("A", "#a", category_id="#cat"), item("B", "#b"))
    query = {
        "object_types": ["ITEM"],
        "query": {"exact_query": {"attribute_name": "name", "attribute_value": "a"}},
        "include_related_objects": True,
    }
    found = (await square.post("/v2/catalog/search", json=query)).json()
    assert [value["item_data"]["name"] for value in found["objects"]] == ["A"]
    assert [value["category_data"]["name"] for value in found["related_objects"]] == ["Jazz"]


async def test_a_variation_written_alone_shows_in_its_item(square: httpx.AsyncClient) -> None:
    made = (await stored(square, item("A")))[0]
    variation = made["item_data"]["variations"][0]
    variation["item_variation_data"]["price_money"]["amount"] = 9900
    body = {"idempotency_key": "k", "object": variation}
    assert (await square.post("/v2/catalog/object", json=body)).status_code == 200
    now = (await square.get(f"/v2/catalog/object/{made['id']}")).json()["object"]
    assert now["item_data"]["variations"][0]["item_variation_data"]["price_money"]["amount"] == 9900
    assert now["version"] > made["version"]


async def test_one_catalog_write_at_a_time(square: httpx.AsyncClient) -> None:
    both = await asyncio.gather(upsert(square, "a", [item("A")]), upsert(square, "b", [item("B")]))
    assert sorted(answer.status_code for answer in both) == [200, 429]
    assert code(next(answer for answer in both if answer.status_code == 429)) == (429, "RATE_LIMITED")
    assert (await upsert(square, "c", [item("C")])).status_code == 200
    reads = await asyncio.gather(*(square.get("/v2/catalog/list") for _ in range(3)))
    assert {answer.status_code for answer in reads} == {200}


async def test_batch_delete_and_retrieve(square: httpx.AsyncClient) -> None:
    one, two = await stored(square, item("A", "#a"), item("B", "#b"))
    over = await square.post("/v2/catalog/batch-delete", json={"object_ids": [str(n) for n in range(201)]})
    assert over.status_code == 400
    ids = {"object_ids": [one["id"], "NONE"]}
    gone = (await square.post("/v2/catalog/batch-delete", json=ids)).json()["deleted_object_ids"]
    assert gone == [one["id"], one["item_data"]["variations"][0]["id"]]
    ids = {"object_ids": [one["id"], two["id"], "NONE"]}
    left = (await square.post("/v2/catalog/batch-retrieve", json=ids)).json()["objects"]
    assert [value["id"] for value in left] == [two["id"]]
    assert (await square.post("/v2/catalog/batch-retrieve", json={"object_ids": ["NONE"]})).json() == {}
    limits = (await square.get("/v2/catalog/info")).json()["limits"]
    assert (limits["batch_upsert_max_objects_per_batch"], limits["batch_delete_max_object_ids"]) == (
        1000,
        200,
    )


# Idempotency keys.


async def test_the_same_key_and_body_is_the_same_answer(square: httpx.AsyncClient) -> None:
    first = await upsert(square, "key", [item("A")])
    again = await upsert(square, "key", [item("A")])
    assert again.json() == first.json()
    assert code(await upsert(square, "key", [item("B")])) == (400, "IDEMPOTENCY_KEY_REUSED")
    assert len((await square.get("/v2/catalog/list")).json()["objects"]) == 1
    assert (await square.get("/_sandbox/calls")).json()["replayed"] == 1


async def test_an_answer_lost_after_the_work_can_be_had_again(square: httpx.AsyncClient) -> None:
    rule = {"match": "POST /v2/customers", "fault": "after:500", "times": 1}
    await square.post("/_sandbox/faults", json={"rules": [rule]})
    body = {"idempotency_key": "k", "given_name": "Ada"}
    assert (await square.post("/v2/customers", json=body)).status_code == 500
    assert (await square.post("/v2/customers", json=body)).status_code == 200
    assert len((await square.get("/v2/customers")).json()["customers"]) == 1


@pytest.mark.parametrize(
    ("path", "longest", "body"),
    [
        (
            "/v2/payments",
            45,
            {
                "source_id": "CASH",
                "amount_money": {"amount": 1, "currency": "USD"},
                "cash_details": {"buyer_supplied_money": {"amount": 1, "currency": "USD"}},
            },
        ),
        ("/v2/catalog/object", 128, {"object": item("A")}),
        ("/v2/orders", 192, {"order": {"location_id": "LMDEMO1"}}),
    ],
)
async def test_keys_have_their_lengths(
    square: httpx.AsyncClient, path: str, longest: int, body: Body
) -> None:
    over = await square.post(path, json={**body, "idempotency_key": "k" * (longest + 1)})
    assert code(over) == (400, "VALUE_TOO_LONG")
    assert (await square.post(path, json={**body, "idempotency_key": "k" * longest})).status_code == 200


# Customers.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"nickname": "only"}, "MISSING_REQUIRED_PARAMETER"),
        ({"email_address": "nobody"}, "INVALID_EMAIL_ADDRESS"),
        ({"email_address": "a" * 250 + "@x.example"}, "INVALID_EMAIL_ADDRESS"),
        ({"phone_number": "12345678"}, "INVALID_PHONE_NUMBER"),
        ({"phone_number": "1" * 17}, "INVALID_PHONE_NUMBER"),
        ({"given_name": "x" * 301}, "VALUE_TOO_LONG"),
        ({"given_name": 7}, "EXPECTED_STRING"),
        ({"given_name": "A", "birthday": "30.01.1990"}, "INVALID_VALUE"),
        ({"given_name": "A", "first_name": "B"}, "BAD_REQUEST"),
    ],
)
async def test_customers_are_checked(square: httpx.AsyncClient, fields: Body, expected: str) -> None:
    assert code(await square.post("/v2/customers", json=fields)) == (400, expected)


async def test_an_unknown_field_is_named(square: httpx.AsyncClient) -> None:
    answer = await square.post("/v2/customers", json={"given_name": "A", "first_name": "B"})
    assert answer.json()["errors"][0] == {
        "category": "INVALID_REQUEST_ERROR",
        "code": "BAD_REQUEST",
        "detail": "The field named 'first_name' is unrecognized",
        "field": "first_name",
    }


async def test_updates_are_sparse_and_null_removes(square: httpx.AsyncClient) -> None:
    made = await customer(square, given_name="Ada", family_name="Byron", phone_number="+441234567890")
    body = {"family_name": "Lovelace", "phone_number": None}
    after = (await square.put(f"/v2/customers/{made['id']}", json=body)).json()["customer"]
    assert (after["given_name"], after["family_name"], "phone_number" in after) == ("Ada", "Lovelace", False)
    assert (made["version"], after["version"]) == (0, 1)
    stale = await square.put(f"/v2/customers/{made['id']}", json={"note": "x", "version": 0})
    assert code(stale) == (409, "CONFLICT")
    last = await square.put(
        f"/v2/customers/{made['id']}", json={"note": "x"}
    )  # no version: the last one wins
    assert last.status_code == 200


async def test_a_deleted_customer_is_404(square: httpx.AsyncClient) -> None:
    made = await customer(square, given_name="Ada")
    assert (await square.delete(f"/v2/customers/{made['id']}")).json() == {}
    assert code(await square.get(f"/v2/customers/{made['id']}")) == (404, "NOT_FOUND")


async def test_search_by_update_time_and_by_email(square: httpx.AsyncClient) -> None:
    ada = await customer(square, given_name="Ada", email_address="Ada@x.example")
    bob = await customer(square, given_name="Bob")
    await square.put(f"/v2/customers/{ada['id']}", json={"note": "changed"})

    async def search(filters: Body, order: str = "ASC") -> list[str]:
        query = {"query": {"filter": filters, "sort": {"field": "CREATED_AT", "order": order}}}
        found = (await square.post("/v2/customers/search", json=query)).json()
        return [value["given_name"] for value in found.get("customers", [])]

    assert await search({"updated_at": {"start_at": bob["updated_at"]}}) == ["Bob", "Ada"]
    assert await search({"updated_at": {"start_at": bob["updated_at"]}}, "DESC") == ["Ada", "Bob"]
    assert await search({"updated_at": {"end_at": bob["updated_at"]}}) == ["Bob"]
    assert await search({"email_address": {"exact": "ada@x.example"}}) == ["Ada"]
    assert await search({"email_address": {"exact": "bob@x.example"}}) == []


async def test_bulk_calls_answer_key_by_key(square: httpx.AsyncClient) -> None:
    entries = {"k1": {"given_name": "Ada"}, "k2": {"nickname": "nobody"}}
    made = await square.post("/v2/customers/bulk-create", json={"customers": entries})
    assert made.status_code == 200
    responses = made.json()["responses"]
    assert responses["k2"]["errors"][0]["code"] == "MISSING_REQUIRED_PARAMETER"
    again = await square.post("/v2/customers/bulk-create", json={"customers": {"k1": {"given_name": "Ada"}}})
    assert again.json()["responses"]["k1"] == responses["k1"]
    ada = responses["k1"]["customer"]
    stale = {"given_name": "A", "version": 9}
    changes = {ada["id"]: {"given_name": "Augusta", "version": 0}, "NONE": stale}
    changed = (await square.post("/v2/customers/bulk-update", json={"customers": changes})).json()[
        "responses"
    ]
    assert changed[ada["id"]]["customer"]["given_name"] == "Augusta"
    assert changed["NONE"]["errors"][0]["code"] == "NOT_FOUND"
    ids = {"customer_ids": [ada["id"], "NONE"]}
    read = (await square.post("/v2/customers/bulk-retrieve", json=ids)).json()["responses"]
    assert (read[ada["id"]]["customer"]["version"], "errors" in read["NONE"]) == (1, True)
    gone = (await square.post("/v2/customers/bulk-delete", json=ids)).json()["responses"]
    assert (gone[ada["id"]], "errors" in gone["NONE"]) == ({}, True)


@pytest.mark.parametrize(("count", "status"), [(0, 400), (100, 200), (101, 400)])
async def test_bulk_maps_have_1_to_100_entries(square: httpx.AsyncClient, count: int, status: int) -> None:
    entries = {f"k{place}": {"given_name": "Ada"} for place in range(count)}
    answer = await square.post("/v2/customers/bulk-create", json={"customers": entries})
    assert answer.status_code == status


# Paging.


async def all_pages(client: httpx.AsyncClient, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    params: dict[str, Any] = {"limit": limit}
    while True:
        body = (await client.get("/v2/customers", params=params)).json()
        pages.append([value["given_name"] for value in body["customers"]])
        if "cursor" not in body:
            return pages
        params["cursor"] = body["cursor"]


async def test_every_third_page_is_short_and_nothing_is_lost(square: httpx.AsyncClient) -> None:
    for place in range(12):
        await customer(square, given_name=str(place))
    pages = await all_pages(square, 4)
    assert [len(page) for page in pages] == [4, 4, 2, 2]
    assert [name for page in pages for name in page] == [str(place) for place in range(12)]


async def test_an_empty_list_is_left_out(square: httpx.AsyncClient) -> None:
    assert (await square.get("/v2/customers")).json() == {}


@pytest.mark.parametrize(("limit", "expected"), [("0", "VALUE_TOO_LOW"), ("101", "VALUE_TOO_HIGH")])
async def test_customer_limits(square: httpx.AsyncClient, limit: str, expected: str) -> None:
    assert code(await square.get("/v2/customers", params={"limit": limit})) == (400, expected)


async def test_cursors_die_after_five_minutes_and_belong_to_a_query(square: httpx.AsyncClient) -> None:
    for place in range(3):
        await customer(square, given_name=str(place))
    cursor = (await square.get("/v2/customers", params={"limit": 1})).json()["cursor"]
    other = {"limit": 1, "cursor": cursor, "sort_order": "DESC"}
    assert code(await square.get("/v2/customers", params=other)) == (400, "INVALID_CURSOR")
    assert code(await square.get("/v2/customers", params={"cursor": "abc"})) == (400, "INVALID_CURSOR")
    await square.post("/_sandbox/clock", json={"advance": 300})
    assert (await square.get("/v2/customers", params={"cursor": cursor})).status_code == 200
    await square.post("/_sandbox/clock", json={"advance": 1})
    assert code(await square.get("/v2/customers", params={"cursor": cursor})) == (400, "INVALID_CURSOR")


# Orders, payments, inventory.


async def test_seeded_orders_have_payments(square: httpx.AsyncClient) -> None:
    await square.post("/_sandbox/orders", json={"count": 10})
    body = {
        "location_ids": ["LMDEMO1", "LMDEMO2"],
        "query": {"filter": {"state_filter": {"states": ["COMPLETED"]}}},
    }
    orders = (await square.post("/v2/orders/search", json=body)).json()["orders"]
    assert len(orders) == 10
    assert orders[0]["created_at"] > orders[-1]["created_at"]  # newest first
    main = (await square.get("/v2/payments")).json()["payments"]
    assert len(main) == 8  # the main location only, unless another is named
    other = (await square.get("/v2/payments", params={"location_id": "LMDEMO2"})).json()["payments"]
    assert len(other) == 2
    by_order = {payment["order_id"]: payment for payment in [*main, *other]}
    assert all(by_order[order["id"]]["total_money"] == order["total_money"] for order in orders)
    assert len((await square.get("/v2/refunds")).json()["refunds"]) == 1


async def test_order_search_rules(square: httpx.AsyncClient) -> None:
    async def search(body: Body) -> int:
        return (await square.post("/v2/orders/search", json=body)).status_code

    times = {"updated_at": {"start_at": "2025-01-01T00:00:00Z"}}
    wrong_sort = {"filter": {"date_time_filter": times}}
    right_sort = {**wrong_sort, "sort": {"sort_field": "UPDATED_AT"}}
    assert await search({}) == 400
    assert await search({"location_ids": ["LMDEMO1"] * 11}) == 400
    assert await search({"location_ids": ["NONE"]}) == 400
    assert await search({"location_ids": ["LMDEMO1"], "query": wrong_sort}) == 400
    assert await search({"location_ids": ["LMDEMO1"], "query": right_sort}) == 200


async def test_orders_change_by_version_and_only_while_open(square: httpx.AsyncClient) -> None:
    line = {"name": "GA", "quantity": "2", "base_price_money": {"amount": 4500, "currency": "USD"}}
    body = {"idempotency_key": "k", "order": {"location_id": "LMDEMO1", "line_items": [line]}}
    made = (await square.post("/v2/orders", json=body)).json()["order"]
    assert made["total_money"] == {"amount": 9000, "currency": "USD"}
    path = f"/v2/orders/{made['id']}"
    change = {"location_id": "LMDEMO1", "state": "COMPLETED"}
    assert code(await square.put(path, json={"order": {**change, "version": 7}})) == (409, "VERSION_MISMATCH")
    done = (await square.put(path, json={"order": {**change, "version": 1}})).json()["order"]
    assert (done["version"], done["state"]) == (2, "COMPLETED")
    assert (await square.put(path, json={"order": {**change, "version": 2}})).status_code == 400
    await square.post("/_sandbox/orders", json={"count": 1})
    sold = (await square.get("/_sandbox/objects?type=order")).json()["objects"][-1]
    foreign = await square.put(f"/v2/orders/{sold['id']}", json={"order": {**change, "version": 1}})
    assert foreign.status_code == 400
    ids = {"order_ids": [made["id"], "NONE"]}
    found = (await square.post("/v2/orders/batch-retrieve", json=ids)).json()["orders"]
    assert [order["id"] for order in found] == [made["id"]]


async def test_inventory_counts_are_set_and_moved(square: httpx.AsyncClient) -> None:
    variation = (await stored(square, item("A")))[0]["item_data"]["variations"][0]["id"]

    async def change(key: str, kind: str, quantity: str, occurred_at: str, **more: str) -> httpx.Response:
        entry = {
            "catalog_object_id": variation,
            "location_id": "LMDEMO1",
            "quantity": quantity,
            "occurred_at": occurred_at,
            **more,
        }
        body = {"idempotency_key": key, "changes": [{"type": kind, kind.lower(): entry}]}
        return await square.post("/v2/inventory/changes/batch-create", json=body)

    now, old, later = "2025-10-09T08:53:20Z", "2025-10-08T08:53:19Z", "2025-10-09T08:53:30Z"
    assert (await change("a", "PHYSICAL_COUNT", "100", now, state="IN_STOCK")).status_code == 200
    assert (await change("b", "PHYSICAL_COUNT", "100", old, state="IN_STOCK")).status_code == 400
    assert (await change("c", "PHYSICAL_COUNT", "100", later, state="IN_STOCK")).status_code == 400
    assert (await change("d", "PHYSICAL_COUNT", "1.123456", now, state="IN_STOCK")).status_code == 400
    sold = await change("e", "ADJUSTMENT", "2.5", now, from_state="IN_STOCK", to_state="SOLD")
    assert sold.status_code == 200
    ids = {"catalog_object_ids": [variation]}
    counts = (await square.post("/v2/inventory/counts/batch-retrieve", json=ids)).json()["counts"]
    assert [(count["state"], count["quantity"]) for count in counts] == [("IN_STOCK", "97.5")]
