import asyncio

import httpx
import pytest

from tests.sandbox.core import FaultRule, SandboxClock
from tests.sandbox.running import running_sandbox
from tests.sandbox.shelf import Ordered, Shelf


async def plan(client: httpx.AsyncClient, *rules: dict[str, object], seed: int = 0) -> None:
    answer = await client.post("/_sandbox/faults", json={"rules": list(rules), "seed": seed})
    assert answer.status_code == 200, answer.text


async def counts(client: httpx.AsyncClient) -> dict[str, object]:
    found: dict[str, object] = (await client.get("/_sandbox/calls")).json()
    return found


async def test_calls_are_counted_by_route(stripe: httpx.AsyncClient) -> None:
    made = (await stripe.post("/v1/products", data={"name": "Ticket"})).json()["id"]
    await stripe.get(f"/v1/products/{made}")
    await stripe.get("/v1/products/unknown")
    found = await counts(stripe)
    assert found["by_call"] == {"POST /v1/products": 1, "GET /v1/products/{id}": 2}
    assert (found["total"], found["writes"], found["writes_succeeded"]) == (3, 1, 1)
    assert found["by_status"] == {"200": 2, "404": 1}
    await stripe.post("/_sandbox/calls/reset")
    assert (await counts(stripe))["total"] == 0


async def test_reads_by_post_are_no_writes(square: httpx.AsyncClient) -> None:
    await square.post("/v2/customers/search", json={})
    await square.post("/v2/catalog/batch-retrieve", json={"object_ids": ["X"]})
    found = await counts(square)
    assert (found["total"], found["writes"]) == (2, 0)


async def test_versions_asked_for_are_recorded(stripe: httpx.AsyncClient) -> None:
    await stripe.get("/v1/account", headers={"Stripe-Version": "2025-01-01.test"})
    assert (await counts(stripe))["versions"] == {"2025-01-01.test": 1}


async def test_a_status_fault_stops_the_call_before_it_is_executed(stripe: httpx.AsyncClient) -> None:
    await plan(
        stripe,
        {"match": "POST /v1/customers", "fault": "status:503", "times": 1, "headers": {"Retry-After": "1"}},
    )
    first = await stripe.post("/v1/customers", data={"name": "A"})
    second = await stripe.post("/v1/customers", data={"name": "A"})
    assert (first.status_code, first.headers["Retry-After"], second.status_code) == (503, "1", 200)
    assert len((await stripe.get("/v1/customers")).json()["data"]) == 1
    assert (await counts(stripe))["faults"] == 1


async def test_an_after_fault_fails_the_answer_of_an_executed_call(stripe: httpx.AsyncClient) -> None:
    await plan(stripe, {"match": "POST /v1/customers", "fault": "after:500", "times": 1})
    assert (await stripe.post("/v1/customers", data={"name": "A"})).status_code == 500
    assert len((await stripe.get("/v1/customers")).json()["data"]) == 1


async def test_html_and_truncated_answers(stripe: httpx.AsyncClient) -> None:
    await plan(
        stripe,
        {"match": "GET /v1/account", "fault": "html", "times": 1},
        {"match": "GET /v1/account", "fault": "truncated", "times": 1},
    )
    page = await stripe.get("/v1/account")
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
    cut = await stripe.get("/v1/account")
    assert cut.status_code == 200
    with pytest.raises(ValueError, match=r"JSON|Unterminated|delimiter|Expecting"):
        cut.json()


async def test_repeat_page_never_ends(square: httpx.AsyncClient) -> None:
    await square.post("/v2/customers", json={"given_name": "Ada"})
    await plan(square, {"match": "GET /v2/customers", "fault": "repeat_page"})
    first = (await square.get("/v2/customers")).json()
    second = (await square.get("/v2/customers", params={"cursor": first["cursor"]})).json()
    assert first == second
    await square.delete("/_sandbox/faults")
    assert "cursor" not in (await square.get("/v2/customers")).json()


async def test_the_same_seed_fails_the_same_calls(stripe: httpx.AsyncClient) -> None:
    async def run(seed: int) -> list[int]:
        await plan(stripe, {"match": "GET /v1/*", "fault": "status:500", "rate": 0.5}, seed=seed)
        await stripe.post("/_sandbox/limits", json={"requests_per_second": None, "per_endpoint": None})
        return [(await stripe.get("/v1/account")).status_code for _ in range(40)]

    first = await run(7)
    assert first == await run(7)
    assert set(first) == {200, 500}
    assert first != await run(8)


@pytest.mark.parametrize("fault", ["status", "after:html", "disconnect:1", "timeout:soon", "boom", "after:"])
def test_a_fault_that_makes_no_sense_is_refused(fault: str) -> None:
    with pytest.raises(ValueError, match="unknown fault"):
        FaultRule.read({"match": "*", "fault": fault})


async def test_a_bad_control_call_is_a_400(stripe: httpx.AsyncClient) -> None:
    answer = await stripe.post("/_sandbox/faults", json={"rules": [{"fault": "boom"}]})
    assert answer.status_code == 400
    assert (await stripe.get("/_sandbox/objects?type=spaceship")).status_code == 400
    assert (await stripe.get("/_sandbox/nothing")).status_code == 404


async def test_limits_refill_with_time(stripe: httpx.AsyncClient) -> None:
    statuses = [(await stripe.get("/v1/account")).status_code for _ in range(26)]
    assert statuses == [200] * 25 + [429]
    await stripe.post("/_sandbox/clock", json={"advance": 0.1})  # 25 a second: two more
    statuses = [(await stripe.get("/v1/account")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await counts(stripe))["rate_limited"] == 2


async def test_limits_can_be_set_and_switched_off(square: httpx.AsyncClient) -> None:
    await square.post("/_sandbox/limits", json={"per_endpoint": 1})
    assert [(await square.get("/v2/locations")).status_code for _ in range(2)] == [200, 429]
    assert (await square.get("/v2/merchants/me")).status_code == 200
    await square.post("/_sandbox/limits", json={"per_endpoint": None})
    assert (await square.get("/v2/locations")).status_code == 200


async def test_reset_empties_everything(stripe: httpx.AsyncClient) -> None:
    await stripe.post("/v1/customers", data={"name": "A"})
    await plan(stripe, {"match": "*", "fault": "status:500"})
    await stripe.post("/_sandbox/reset")
    assert (await stripe.get("/v1/customers")).json()["data"] == []
    assert (await counts(stripe))["total"] == 1


def test_disconnects_and_ports_on_a_real_server() -> None:
    with running_sandbox("demo") as sandbox, httpx.Client() as client:
        key = {"Authorization": "Bearer sk_test_demo"}
        rule = {"match": "POST /v1/customers", "fault": "after:disconnect", "times": 1}
        client.post(f"{sandbox.stripe_url}/_sandbox/faults", json={"rules": [rule]})
        with pytest.raises(httpx.TransportError):
            client.post(f"{sandbox.stripe_url}/v1/customers", data={"name": "A"}, headers=key)
        listed = client.get(f"{sandbox.stripe_url}/_sandbox/objects?type=customer").json()["objects"]
        assert len(listed) == 16  # the 15 of the seed and the one whose answer was lost
        orders = client.get(f"{sandbox.square_url}/_sandbox/objects?type=order").json()["objects"]
        assert len(orders) == 100
        client.post(f"{sandbox.stripe_url}/_sandbox/reset")
        listed = client.get(f"{sandbox.stripe_url}/_sandbox/objects?type=customer").json()["objects"]
        assert len(listed) == 15
        url = sandbox.stripe_url
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/_sandbox/calls")


async def test_latency_lets_calls_meet(stripe: httpx.AsyncClient) -> None:
    await stripe.post("/_sandbox/latency", json={"seconds": 0.01})
    both = await asyncio.gather(
        *(
            stripe.post("/v1/customers", data={"name": "A"}, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        )
    )
    assert sorted(answer.status_code for answer in both) == [200, 409]


def test_the_clock_only_moves_forward_when_pushed() -> None:
    clock = SandboxClock(lambda: 5.0)
    clock.advance(2.5)
    assert clock.now() == 7.5


def test_ordered_walks_both_ways_within_bounds() -> None:
    ordered = Ordered()
    for name, rank in (("c", 3), ("a", 1), ("b1", 2), ("b2", 2)):
        ordered.put(name, rank)
    names = [key[2] for key in ordered.walk()]
    assert names == ["a", "b1", "b2", "c"]
    assert [key[2] for key in ordered.walk(descending=True, at_most=2)] == ["b2", "b1", "a"]
    gone = ordered.place("b1")
    ordered.remove("b1")
    assert [key[2] for key in ordered.walk(after=gone)] == ["b2", "c"]
    assert [key[2] for key in ordered.walk(after=gone, descending=True)] == ["a"]
    ordered.put("a", 9)
    assert [key[2] for key in ordered.walk(at_least=3)] == ["c", "a"]


def test_shelf_indexes_follow_changes() -> None:
    shelf = Shelf({"made": lambda value: value["made"]}, {"email": lambda value: value.get("email")})
    shelf.put("1", {"made": 1, "email": "a"})
    shelf.put("2", {"made": 2, "email": "a"})
    shelf.put("1", {"made": 1, "email": "b"})
    assert [key[2] for key in shelf.listed("email", "a").walk()] == ["2"]
    assert [key[2] for key in shelf.listed("email", "b").walk()] == ["1"]
    assert shelf.remove("2") == {"made": 2, "email": "a"}
    assert len(shelf.listed("email", "a")) == 0
