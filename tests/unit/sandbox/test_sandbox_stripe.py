import base64
from typing import Any

import httpx
import pytest

DAY = 86_400


async def post(
    client: httpx.AsyncClient, path: str, data: dict[str, str], key: str | None = None
) -> httpx.Response:
    return await client.post(path, data=data, headers={"Idempotency-Key": key} if key else {})


async def made(client: httpx.AsyncClient, path: str, data: dict[str, str]) -> dict[str, Any]:
    answer = await client.post(path, data=data)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def error(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    body = answer.json()["error"]
    return answer.status_code, body.get("code"), body.get("param")


async def unlimited(client: httpx.AsyncClient) -> None:
    await client.post("/_sandbox/limits", json={"requests_per_second": None, "per_endpoint": None})


# Keys.


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("sk_test_demo_1", 200),
        ("sk_live_demo", 200),
        ("rk_test_demo", 403),
        ("sk_test_bad", 401),
        ("pk_test_demo", 401),
        ("", 401),
    ],
)
async def test_keys_on_the_account_call(stripe: httpx.AsyncClient, key: str, status: int) -> None:
    answer = await stripe.get("/v1/account", headers={"Authorization": f"Bearer {key}" if key else ""})
    assert answer.status_code == status
    assert answer.headers["Request-Id"].startswith("req_")
    if status != 200:
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_restricted_key_reads_products(stripe: httpx.AsyncClient) -> None:
    answer = await stripe.get("/v1/products?limit=1", headers={"Authorization": "Bearer rk_test_demo"})
    assert answer.status_code == 200


async def test_basic_authorization(stripe: httpx.AsyncClient) -> None:
    basic = base64.b64encode(b"sk_test_demo:").decode()
    answer = await stripe.get("/v1/account", headers={"Authorization": f"Basic {basic}"})
    assert answer.json()["id"] == "acct_demo"


async def test_accounts_and_modes_share_nothing(stripe: httpx.AsyncClient) -> None:
    new = (await stripe.post("/_sandbox/accounts", json={"account": "acct_two", "key": "sk_test_two"})).json()
    assert new == {"account": "acct_two", "key": "sk_test_two"}
    await made(stripe, "/v1/customers", {"name": "A"})
    for key in ("sk_test_two", "sk_live_demo"):
        answer = await stripe.get("/v1/customers", headers={"Authorization": f"Bearer {key}"})
        assert answer.json()["data"] == []


@pytest.mark.parametrize("what", [{"key": "sk_test_demo_1"}, {"account": "acct_demo"}])
async def test_revoked_credentials_are_401(stripe: httpx.AsyncClient, what: dict[str, str]) -> None:
    await stripe.post("/_sandbox/tokens/revoke", json=what)
    assert error(await stripe.get("/v1/account"))[:2] == (401, "api_key_expired")


# Bodies and parameters.


async def test_json_bodies_are_refused(stripe: httpx.AsyncClient) -> None:
    answer = await stripe.post("/v1/products", json={"name": "Ticket"})
    assert answer.status_code == 400
    assert "application/x-www-form-urlencoded" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        ("/v1/products", {"name": "A", "price": "1"}, (400, "parameter_unknown", "price")),
        ("/v1/products", {"description": "A"}, (400, "parameter_missing", "name")),
        ("/v1/products", {"name": ""}, (400, "parameter_invalid_empty", "name")),
        (
            "/v1/products",
            {"name": "A", "default_price_data[currency]": "usd", "default_price_data[amount]": "1"},
            (400, "parameter_unknown", "default_price_data[amount]"),
        ),
        ("/v1/products", {"name": "A", "metadata[k]": "v" * 501}, (400, "parameter_invalid", "metadata[k]")),
        ("/v1/customers", {"email": "no at sign"}, (400, "email_invalid", "email")),
        ("/v1/customers", {"email": "a" * 510 + "@x"}, (200, None, None)),
        ("/v1/customers", {"email": "a" * 511 + "@x"}, (400, "parameter_invalid_string", "email")),
        ("/v1/prices", {"currency": "usd", "unit_amount": "1"}, (400, "parameter_missing", "product")),
        (
            "/v1/prices",
            {"currency": "usd", "unit_amount": "1", "product": "nope"},
            (400, "resource_missing", "product"),
        ),
    ],
)
async def test_parameters_are_checked(
    stripe: httpx.AsyncClient, path: str, data: dict[str, str], expected: tuple[int, str | None, str | None]
) -> None:
    answer = await stripe.post(path, data=data)
    assert (error(answer) if expected[0] != 200 else (answer.status_code, None, None)) == expected


async def test_unknown_list_parameters_are_refused(stripe: httpx.AsyncClient) -> None:
    answer = await stripe.get("/v1/customers", params={"updated[gte]": "1"})
    assert error(answer) == (400, "parameter_unknown", "updated")


async def test_unknown_urls_are_404(stripe: httpx.AsyncClient) -> None:
    assert (await stripe.put("/v1/products/x", data={})).status_code == 404


# Products and prices.


async def test_a_product_id_can_be_chosen_once(stripe: httpx.AsyncClient) -> None:
    first = await made(stripe, "/v1/products", {"id": "ev_1", "name": "A"})
    assert first["id"] == "ev_1"
    again = await stripe.post("/v1/products", data={"id": "ev_1", "name": "B"})
    assert error(again) == (400, "resource_already_exists", "id")


async def test_default_price_data_makes_a_price(stripe: httpx.AsyncClient) -> None:
    product = await made(
        stripe,
        "/v1/products",
        {"name": "A", "default_price_data[currency]": "jpy", "default_price_data[unit_amount]": "4800"},
    )
    price = (await stripe.get(f"/v1/prices/{product['default_price']}")).json()
    assert (price["currency"], price["unit_amount"], price["product"]) == ("jpy", 4800, product["id"])
    expanded = (await stripe.get(f"/v1/products/{product['id']}?expand[]=default_price")).json()
    assert expanded["default_price"]["unit_amount"] == 4800


@pytest.mark.parametrize("currency", ["USD", "xyz", ""])
async def test_currencies_are_known_and_lower_case(stripe: httpx.AsyncClient, currency: str) -> None:
    product = await made(stripe, "/v1/products", {"name": "A"})
    answer = await stripe.post(
        "/v1/prices", data={"currency": currency, "unit_amount": "1", "product": product["id"]}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "currency")


@pytest.mark.parametrize("name", ["unit_amount", "currency", "product"])
async def test_prices_do_not_change(stripe: httpx.AsyncClient, name: str) -> None:
    product = await made(stripe, "/v1/products", {"name": "A"})
    price = await made(
        stripe, "/v1/prices", {"currency": "usd", "unit_amount": "100", "product": product["id"]}
    )
    answer = await stripe.post(f"/v1/prices/{price['id']}", data={name: "200"})
    assert error(answer) == (400, "parameter_unknown", name)


async def test_a_new_price_takes_over_from_the_old(stripe: httpx.AsyncClient) -> None:
    product = await made(stripe, "/v1/products", {"name": "A"})
    shared = {"currency": "usd", "product": product["id"], "lookup_key": "ga"}
    old = await made(stripe, "/v1/prices", {**shared, "unit_amount": "100"})
    await made(stripe, f"/v1/products/{product['id']}", {"default_price": old["id"]})
    taken = await stripe.post("/v1/prices", data={**shared, "unit_amount": "200"})
    assert error(taken) == (400, "resource_already_exists", "lookup_key")
    new = await made(stripe, "/v1/prices", {**shared, "unit_amount": "200", "transfer_lookup_key": "true"})
    assert (await stripe.get(f"/v1/prices/{old['id']}")).json()["lookup_key"] is None
    early = await stripe.post(f"/v1/prices/{old['id']}", data={"active": "false"})
    assert early.status_code == 400  # still the default price
    await made(stripe, f"/v1/products/{product['id']}", {"default_price": new["id"]})
    assert (await made(stripe, f"/v1/prices/{old['id']}", {"active": "false"}))["active"] is False
    listed = (await stripe.get("/v1/prices", params={"product": product["id"], "active": "true"})).json()[
        "data"
    ]
    assert [price["id"] for price in listed] == [new["id"]]
    by_key = (await stripe.get("/v1/prices", params={"lookup_keys[0]": "ga"})).json()["data"]
    assert [price["id"] for price in by_key] == [new["id"]]


async def test_only_a_product_without_prices_is_deleted(stripe: httpx.AsyncClient) -> None:
    product = (await made(stripe, "/v1/products", {"name": "A"}))["id"]
    await made(stripe, "/v1/prices", {"currency": "usd", "unit_amount": "100", "product": product})
    assert (await stripe.delete(f"/v1/products/{product}")).status_code == 400
    bare = (await made(stripe, "/v1/products", {"name": "B"}))["id"]
    assert (await stripe.delete(f"/v1/products/{bare}")).json()["deleted"] is True
    assert error(await stripe.get(f"/v1/products/{bare}"))[:2] == (404, "resource_missing")
    objects = (await stripe.get("/_sandbox/objects?type=product")).json()["objects"]
    assert {(value["id"], value.get("deleted", False)) for value in objects} == {
        (product, False),
        (bare, True),
    }


async def test_empty_texts_clear(stripe: httpx.AsyncClient) -> None:
    product = await made(
        stripe, "/v1/products", {"name": "A", "description": "d", "metadata[a]": "1", "metadata[b]": "2"}
    )
    path = f"/v1/products/{product['id']}"
    changed = await made(stripe, path, {"description": "", "metadata[a]": ""})
    assert (changed["description"], changed["metadata"]) == (None, {"b": "2"})
    assert (await made(stripe, path, {"metadata": ""}))["metadata"] == {}


# Customers.


async def test_an_email_may_be_used_twice_and_is_looked_up_exactly(stripe: httpx.AsyncClient) -> None:
    first = await made(stripe, "/v1/customers", {"email": "Ada@x.example"})
    second = await made(stripe, "/v1/customers", {"email": "Ada@x.example"})
    found = (await stripe.get("/v1/customers", params={"email": "Ada@x.example"})).json()["data"]
    assert [value["id"] for value in found] == [second["id"], first["id"]]
    assert (await stripe.get("/v1/customers", params={"email": "ada@x.example"})).json()["data"] == []


async def test_a_deleted_customer_says_so(stripe: httpx.AsyncClient) -> None:
    path = f"/v1/customers/{(await made(stripe, '/v1/customers', {'name': 'A'}))['id']}"
    await stripe.delete(path)
    answer = await stripe.get(path)
    assert (answer.status_code, answer.json()["deleted"]) == (200, True)
    assert (await stripe.post(path, data={"name": "B"})).status_code == 404
    assert (await stripe.get("/v1/customers")).json()["data"] == []


# Lists.


async def test_lists_page_newest_first_both_ways(stripe: httpx.AsyncClient) -> None:
    ids = [(await made(stripe, "/v1/customers", {"name": str(place)}))["id"] for place in range(12)]
    first = (await stripe.get("/v1/customers")).json()
    assert ([value["id"] for value in first["data"]], first["has_more"]) == (ids[:1:-1], True)
    rest = (await stripe.get("/v1/customers", params={"starting_after": ids[2]})).json()
    assert ([value["id"] for value in rest["data"]], rest["has_more"]) == ([ids[1], ids[0]], False)
    back = (await stripe.get("/v1/customers", params={"ending_before": ids[2], "limit": 2})).json()
    assert ([value["id"] for value in back["data"]], back["has_more"]) == ([ids[4], ids[3]], True)
    assert first["url"] == "/v1/customers"


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "101"}, {"starting_after": "cus_none"}])
async def test_bad_list_parameters(stripe: httpx.AsyncClient, params: dict[str, str]) -> None:
    assert (await stripe.get("/v1/customers", params=params)).status_code == 400


async def test_created_bounds(stripe: httpx.AsyncClient) -> None:
    await unlimited(stripe)
    moments: list[int] = []
    for _ in range(3):
        moments.append((await made(stripe, "/v1/customers", {"name": "A"}))["created"])
        await stripe.post("/_sandbox/clock", json={"advance": 10})

    async def found(**bounds: int) -> list[int]:
        params = {f"created[{name}]": value for name, value in bounds.items()}
        listed = (await stripe.get("/v1/customers", params=params)).json()["data"]
        return [value["created"] for value in listed]

    assert await found(gte=moments[1]) == [moments[2], moments[1]]
    assert await found(gt=moments[1]) == [moments[2]]
    assert await found(lt=moments[2], gte=moments[1]) == [moments[1]]
    assert await found(lte=moments[0]) == [moments[0]]


# Events.


async def test_changes_are_events_with_what_was_before(stripe: httpx.AsyncClient) -> None:
    product = await made(stripe, "/v1/products", {"name": "Old", "description": "same"})
    await made(stripe, f"/v1/products/{product['id']}", {"name": "New", "description": "same"})
    await made(stripe, f"/v1/products/{product['id']}", {"name": "New"})  # no change, no event
    events = (await stripe.get("/v1/events")).json()["data"]
    assert [event["type"] for event in events] == ["product.updated", "product.created"]
    assert events[0]["data"]["object"]["name"] == "New"
    assert events[0]["data"]["previous_attributes"]["name"] == "Old"
    assert "description" not in events[0]["data"]["previous_attributes"]
    assert events[1]["data"]["object"]["name"] == "Old"


async def test_events_are_filtered_and_end_after_30_days(stripe: httpx.AsyncClient) -> None:
    await made(stripe, "/v1/customers", {"name": "A"})
    await made(stripe, "/v1/products", {"name": "A"})

    async def kinds(params: dict[str, str]) -> list[str]:
        listed = (await stripe.get("/v1/events", params=params)).json()["data"]
        return [event["type"] for event in listed]

    assert await kinds({"type": "customer.*"}) == ["customer.created"]
    assert await kinds({"types[0]": "product.created", "types[1]": "price.created"}) == ["product.created"]
    too_many = {f"types[{place}]": "product.created" for place in range(21)}
    assert (await stripe.get("/v1/events", params=too_many)).status_code == 400
    await stripe.post("/_sandbox/clock", json={"advance": 30 * DAY + 1})
    assert await kinds({}) == []


# Idempotency.


async def test_the_first_outcome_is_replayed(stripe: httpx.AsyncClient) -> None:
    first = await post(stripe, "/v1/customers", {"name": "A"}, "key")
    await stripe.post(f"/v1/customers/{first.json()['id']}", data={"name": "changed"})
    again = await post(stripe, "/v1/customers", {"name": "A"}, "key")
    assert again.json() == first.json()
    assert (again.headers["Idempotent-Replayed"], "Idempotent-Replayed" in first.headers) == ("true", False)
    other = await post(stripe, "/v1/customers", {"name": "B"}, "key")
    assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")
    assert len((await stripe.get("/v1/customers")).json()["data"]) == 1
    assert (await post(stripe, "/v1/customers", {"name": "B"}, "k" * 256)).status_code == 400


async def test_a_500_is_stored_but_a_validation_error_is_not(stripe: httpx.AsyncClient) -> None:
    await stripe.post(
        "/_sandbox/faults", json={"rules": [{"match": "POST /v1/*", "fault": "after:500", "times": 1}]}
    )
    assert (await post(stripe, "/v1/customers", {"name": "A"}, "one")).status_code == 500
    again = await post(stripe, "/v1/customers", {"name": "A"}, "one")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (500, "true")
    assert (await post(stripe, "/v1/products", {}, "two")).status_code == 400
    assert (await post(stripe, "/v1/products", {"name": "A"}, "two")).status_code == 200


async def test_a_lost_answer_can_be_had_again(stripe: httpx.AsyncClient) -> None:
    await stripe.post(
        "/_sandbox/faults", json={"rules": [{"match": "POST /v1/*", "fault": "after:502", "times": 1}]}
    )
    assert (await post(stripe, "/v1/customers", {"name": "A"}, "one")).status_code == 502
    again = await post(stripe, "/v1/customers", {"name": "A"}, "one")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert len((await stripe.get("/v1/customers")).json()["data"]) == 1


async def test_rate_limits_name_the_limiter(stripe: httpx.AsyncClient) -> None:
    await stripe.post("/_sandbox/limits", json={"requests_per_second": 100, "per_endpoint": 1})
    await stripe.get("/v1/account")
    answer = await stripe.get("/v1/account")
    assert (answer.status_code, answer.headers["Stripe-Rate-Limited-Reason"]) == (429, "endpoint-rate")


# Payments.


async def test_seeded_payments_hang_together(stripe: httpx.AsyncClient) -> None:
    body = {"count": 4, "customer_emails": ["a@x.example", "b@x.example"]}
    ids = (await stripe.post("/_sandbox/payments", json=body)).json()["payment_intents"]
    intents = (await stripe.get("/v1/payment_intents")).json()["data"]
    assert [intent["id"] for intent in intents] == ids[::-1]  # newest first
    intent = intents[0]
    charge = (await stripe.get(f"/v1/charges/{intent['latest_charge']}")).json()
    assert (charge["payment_intent"], charge["amount"]) == (intent["id"], intent["amount_received"])
    entry = (await stripe.get(f"/v1/balance_transactions/{charge['balance_transaction']}")).json()
    assert entry["net"] == charge["amount"] - entry["fee"]
    mine = (await stripe.get("/v1/charges", params={"customer": intent["customer"]})).json()["data"]
    assert len(mine) == 2
    assert len((await stripe.get("/v1/customers")).json()["data"]) == 2


async def test_refunds_are_bounded_by_the_charge(stripe: httpx.AsyncClient) -> None:
    await stripe.post("/_sandbox/payments", json={"count": 1})
    charge = (await stripe.get("/v1/charges")).json()["data"][0]
    part = await made(stripe, "/v1/refunds", {"charge": charge["id"], "amount": "100"})
    assert part["payment_intent"] == charge["payment_intent"]
    too_much = await stripe.post(
        "/v1/refunds", data={"charge": charge["id"], "amount": str(charge["amount"])}
    )
    assert too_much.status_code == 400
    rest = await made(stripe, "/v1/refunds", {"payment_intent": charge["payment_intent"]})
    assert rest["amount"] == charge["amount"] - 100
    done = await stripe.post("/v1/refunds", data={"charge": charge["id"]})
    assert error(done)[:2] == (400, "charge_already_refunded")
    assert (await stripe.get(f"/v1/charges/{charge['id']}")).json()["refunded"] is True
