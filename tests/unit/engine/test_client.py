"""Calling a provider by its manifest: connecting, reading, writing, and what can go wrong on the way."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from engine.calls import Request
from engine.client import (
    Ceilings,
    ProviderClient,
    Quota,
    ReadBatch,
    ReadRecord,
    Write,
    WriteGroup,
    WriteResult,
)
from engine.errors import (
    AuthenticationError,
    HubError,
    ManifestError,
    NothingFoundError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    SilentProviderError,
    StaleCursorError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from tests.fakes import START, FakeClock, FakeProvider, Reply, client_of, reply

HEAD = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example/v3}
auth:
  type: bearer
  credentials: {apiKey: {title: Key}}
  token: apiKey
check: GET /me?fields=id
headers: {Juniper-Version: "2026-01"}
errors:
  code: error.code
  message: error.message
  field: error.field
  rules:
    - {code: REVOKED, then: reconnect}
    - {code: STALE_CURSOR, then: restart_read}
    - {code: CONFLICT, then: reload_and_retry}
    - {code: EXISTS, then: adopt}
    - {code: UNKNOWN_FIELD, then: propose_heal}
    - {code: STOP, then: fail}
    - {code: EMPTY, then: ignore}
    - {status: 404, then: recreate}
"""
CUSTOMERS = """
resources:
  customer:
    id: id
    changed_at: updated_at
    version: version
    deleted: deleted
    fields: {id: id, name: text}
    list:
      call: GET /customers
      records: customers
      since: query updated_after
      lookback: 2 minutes
      pagination: {type: cursor, read: next, send: query cursor}
      page_size: {send: query limit, at_most: 2}
    get: {call: "GET /customers/{id}", record: customer}
    create:
      call: POST /customers
      result: customer
      idempotency_key: header Idempotency-Key
    update:
      call: PUT /customers/{id}
      result: customer
      idempotency_key: header Idempotency-Key
"""
READING = HEAD + CUSTOMERS


def error(code: str, status: int = 400, message: str = "no", **more: Any) -> httpx.Response:
    return reply({"error": {"code": code, "message": message, **more}}, status)


async def read_all(client: ProviderClient, resource: str = "customer", **how: Any) -> list[ReadBatch]:
    return [batch async for batch in client.pages(resource, **how)]


def ids(batches: list[ReadBatch]) -> list[list[str]]:
    return [[row.id for row in batch.records] for batch in batches]


def pages_of(*pages: list[str]) -> Callable[[httpx.Request], Reply]:
    """Answer pages of customers by cursor: none, then 1, 2, …"""

    def answer(request: httpx.Request) -> Reply:
        number = int(request.url.params.get("cursor", "0"))
        body: dict[str, Any] = {"customers": [{"id": each} for each in pages[number]]}
        if number + 1 < len(pages):
            body["next"] = str(number + 1)
        return reply(body)

    return answer


# ---------------------------------------------------------------------------------------- connecting


async def test_check_makes_the_manifests_call_signed() -> None:
    provider = FakeProvider([reply({"id": "m1"})])
    client = client_of(READING, provider)
    await client.check()
    (request,) = provider.requests
    assert str(request.url) == "https://api.juniper.example/v3/me?fields=id"
    assert request.headers["Authorization"] == "Bearer key-12345"
    assert request.headers["Juniper-Version"] == "2026-01"
    assert client.calls == 1
    assert client.bytes_read == len('{"id":"m1"}')


async def test_check_tells_bad_credentials_from_missing_permission() -> None:
    with pytest.raises(AuthenticationError):
        await client_of(READING, FakeProvider([error("BAD", 401)])).check()
    with pytest.raises(ProviderError) as refused:
        await client_of(READING, FakeProvider([error("FORBIDDEN", 403)])).check()
    assert not isinstance(refused.value, AuthenticationError)
    assert (refused.value.status, refused.value.provider_code) == (403, "FORBIDDEN")


async def test_learn_keeps_what_the_lookups_say() -> None:
    manifest = (
        HEAD
        + """
after_connecting:
  - call: GET /locations
    keep: {location_ids: "locations[?open].id"}
  - call: "GET /locations/{connection.location_ids[0]}"
    keep: {currency: location.currency}
"""
        + CUSTOMERS
    )
    locations = {"locations": [{"id": "L1", "open": True}, {"id": "L2", "open": False}]}
    provider = FakeProvider([reply(locations), reply({"location": {"currency": "EUR"}})])
    assert await client_of(manifest, provider).learn() == {"location_ids": ["L1"], "currency": "EUR"}
    assert provider.calls == ["GET /v3/locations", "GET /v3/locations/L1"]


async def test_lists_are_looked_up_again_and_what_a_venue_may_have_chosen_stays() -> None:
    lookups = """
after_connecting:
  - {call: GET /me, keep: {account: id}}
  - {call: GET /locations, keep: {location_ids: "locations[].id", main: "locations[0].id"}}
"""
    known = {"account": "a1", "location_ids": ["L1", "L2"], "main": "L2"}
    source = StaticCredentials(Credentials({"apiKey": Secret("key-12345")}, known))

    def listed(*names: str) -> httpx.Response:
        return reply({"locations": [{"id": name} for name in names]})

    provider = FakeProvider([listed("L2", "L1"), listed("L3", "L1", "L2")])
    client = client_of(HEAD + lookups + CUSTOMERS, provider, source=source)
    assert await client.learn(again=True) == {}
    assert await client.learn(again=True) == {"location_ids": ["L3", "L1", "L2"]}
    assert provider.calls == ["GET /v3/locations"] * 2


@pytest.mark.parametrize("status", [403, 404])
async def test_an_optional_lookup_may_be_forbidden(status: int) -> None:
    lookups = """
after_connecting:
  - {call: GET /me, keep: {account: id}, optional: true}
  - {call: GET /places, keep: {places: "ids"}}
"""
    provider = FakeProvider([error("NOT_YOURS", status), reply({"ids": ["L1"]})])
    assert await client_of(HEAD + lookups + CUSTOMERS, provider).learn() == {"places": ["L1"]}


@pytest.mark.parametrize(("answer", "optional"), [(error("NOT_YOURS", 403), "false"), (error("BAD"), "true")])
async def test_any_other_refusal_of_a_lookup_is_told(answer: httpx.Response, optional: str) -> None:
    lookups = f"after_connecting:\n  - {{call: GET /me, keep: {{account: id}}, optional: {optional}}}\n"
    with pytest.raises(ProviderError):
        await client_of(HEAD + lookups + CUSTOMERS, FakeProvider([answer])).learn()


async def test_a_lookup_that_finds_nothing_is_named() -> None:
    manifest = HEAD + "\nafter_connecting:\n  - {call: GET /me, keep: {account: id}}\n" + CUSTOMERS
    with pytest.raises(NothingFoundError) as refused:
        await client_of(manifest, FakeProvider([reply({})])).learn()
    assert (refused.value.field, refused.value.retryable) == ("connection.account", False)
    assert "`account`" in refused.value.message
    assert "`GET /me`" in refused.value.message


async def test_what_was_not_there_is_looked_up_again() -> None:
    lookups = "connection:\n  account: {title: Account, optional: true}\n"
    lookups += "after_connecting:\n  - {call: GET /me, keep: {account: id}}\n"
    provider = FakeProvider([reply({}), reply({"id": "a1"})])
    client = client_of(HEAD + lookups + CUSTOMERS, provider)
    assert await client.learn() == {}
    assert await client.learn(again=True) == {"account": "a1"}
    assert await client.learn(again=True) == {}
    assert provider.calls == ["GET /v3/me"] * 2


SOMEWHERE = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: "https://{{ connection.region }}.juniper.example/v3"}
headers: {Juniper-Account: "{{ connection.account }}"}
query: {minor: "75"}
connection:
  region: {title: Region, pattern: "^[a-z]{2}[0-9]$"}
  account: {title: Account}
  label: {title: Label, optional: true}
auth:
  - name: key
    type: api_key
    credentials: {apiKey: {title: Key}}
    token: apiKey
    send: query key
    keep: {region: "{{ apiKey | after_last('-') }}"}
  - {name: oauth, type: oauth2, authorize_url: /authorize, token_url: /token}
check: GET /ping
after_connecting:
  - for: [oauth]
    call: GET https://login.juniper.example/me?a=b
    headers: {authorization: "Own {{ access_token }}"}
    keep: {region: region}
  - call: GET https://accounts.juniper.example/mine
    keep: {account: id}
  - {call: "GET /accounts/{connection.account}", keep: {label: label}}
resources:
  customer:
    id: id
    fields: {id: id}
    list:
      call: GET /customers
      records: customers
      pagination: {type: next_link, read: next}
"""
TOKEN = Credentials({"access_token": Secret("at-12345")}, method="oauth")


async def test_lookups_find_out_where_the_account_is() -> None:
    answers = [reply({"region": "eu2"}), reply({"id": 7}), reply({}), reply({"label": "Main"})]
    provider = FakeProvider(answers)
    client = client_of(SOMEWHERE, provider, source=StaticCredentials(TOKEN))
    assert await client.learn(check=True) == {"region": "eu2", "account": 7, "label": "Main"}
    assert [f"{each.method} {each.url}" for each in provider.requests] == [
        "GET https://login.juniper.example/me?a=b",
        "GET https://accounts.juniper.example/mine",
        "GET https://eu2.juniper.example/v3/ping?minor=75",  # as soon as it is known where
        "GET https://eu2.juniper.example/v3/accounts/7?minor=75",
    ]
    signed = [each.headers["Authorization"] for each in provider.requests]
    assert signed == ["Own at-12345", *["Bearer at-12345"] * 3]
    account = [each.headers.get("Juniper-Account") for each in provider.requests]
    assert account == [None, None, "7", "7"]  # the manifest's headers go to its own server alone


async def test_what_is_known_is_not_looked_up() -> None:
    provider = FakeProvider([reply({"label": None})])
    credentials = replace(TOKEN, connection={"region": "eu2", "account": "a1"})
    client = client_of(SOMEWHERE, provider, source=StaticCredentials(credentials))
    assert await client.learn() == {}  # a label is optional
    assert provider.calls == ["GET /v3/accounts/a1?minor=75"]


async def test_a_lookup_is_for_its_own_way_to_sign() -> None:
    provider = FakeProvider([reply({"id": 7}), reply({"label": "x"})])
    key = Credentials({"apiKey": Secret("k-eu2")}, {"region": "eu2"}, method="key")
    await client_of(SOMEWHERE, provider, source=StaticCredentials(key)).learn()
    assert provider.calls == ["GET /mine?key=k-eu2", "GET /v3/accounts/7?minor=75&key=k-eu2"]


@pytest.mark.parametrize("region", ["evil.example/", "eu2.evil", "EU2", "", 5])
async def test_a_value_that_is_not_as_declared_gets_no_credentials(region: Any) -> None:
    provider = FakeProvider([reply({"region": region})])
    client = client_of(SOMEWHERE, provider, source=StaticCredentials(TOKEN))
    with pytest.raises((UnexpectedResponseError, ManifestError)):
        await client.learn()
    known = StaticCredentials(replace(TOKEN, connection={"region": region, "account": "a1"}))
    with pytest.raises(ManifestError, match="region"):
        await client_of(SOMEWHERE, provider, source=known).check()
    assert [each.url.host for each in provider.requests] == ["login.juniper.example"]


async def test_a_server_that_is_not_known_is_said() -> None:
    client = client_of(SOMEWHERE, FakeProvider([]), source=StaticCredentials(TOKEN))
    with pytest.raises(ManifestError, match=r"connection\.region"):
        await client.check()


async def test_values_no_pattern_guards_stay_within_the_host() -> None:
    manifest = SOMEWHERE.replace(', pattern: "^[a-z]{2}[0-9]$"', "")
    for region in ("evil.example/x?", "a@b", "x:1", "a#"):
        source = StaticCredentials(replace(TOKEN, connection={"region": region, "account": "a1"}))
        with pytest.raises(ManifestError):
            await client_of(manifest, FakeProvider([]), source=source).check()


async def test_the_query_of_every_call_is_not_repeated_by_a_link() -> None:
    link = "https://eu2.juniper.example/v3/customers?page=2&minor=75"
    provider = FakeProvider([reply({"customers": [{"id": 1}], "next": link}), reply({})])
    source = StaticCredentials(replace(TOKEN, connection={"region": "eu2", "account": "a1"}))
    await read_all(client_of(SOMEWHERE, provider, source=source))
    assert provider.calls == ["GET /v3/customers?minor=75", "GET /v3/customers?page=2&minor=75"]


async def test_any_one_call() -> None:
    provider = FakeProvider([reply({"ok": True}, headers={"X-One": "1"})])
    answer = await client_of(READING, provider).call(Request.parse("GET /anything?a=1"))
    assert (answer.status, answer.body, answer.headers["x-one"]) == (200, {"ok": True}, "1")
    assert provider.calls == ["GET /v3/anything?a=1"]


# ------------------------------------------------------------------------------------------- reading


async def test_reads_every_page() -> None:
    provider = FakeProvider(pages_of(["c1", "c2"], [], ["c3"]))
    batches = await read_all(client_of(READING, provider))
    assert ids(batches) == [["c1", "c2"], [], ["c3"]]
    assert provider.calls == [
        "GET /v3/customers?limit=2",
        "GET /v3/customers?limit=2&cursor=1",
        "GET /v3/customers?limit=2&cursor=2",
    ]
    assert batches[-1].resume is None


async def test_records_carry_what_the_manifest_names() -> None:
    rows = [
        {"id": 7, "updated_at": "2026-01-31T20:30:00+02:00", "version": 3},
        {"id": "c2", "updated_at": "2026-01-31T18:30:00Z", "deleted": True},
    ]
    (batch,) = await read_all(client_of(READING, FakeProvider([reply({"customers": rows})])))
    assert batch.records == [
        ReadRecord(rows[0], "7", "2026-01-31T18:30:00Z", False, "3"),
        ReadRecord(rows[1], "c2", "2026-01-31T18:30:00Z", True, None),
    ]


async def test_a_missing_list_is_an_empty_one() -> None:
    assert ids(await read_all(client_of(READING, FakeProvider([reply({})])))) == [[]]


async def test_since_is_sent_less_the_lookback() -> None:
    provider = FakeProvider([reply({})])
    await read_all(client_of(READING, provider), since=datetime(2026, 2, 1, 10, 0, tzinfo=UTC))
    assert provider.requests[0].url.params["updated_after"] == "2026-02-01T09:58:00Z"


@pytest.mark.parametrize(
    ("times", "written"),
    [("epoch_seconds", "1769940000"), ("epoch_milliseconds", "1769940000000")],
)
async def test_times_as_the_provider_has_them(times: str, written: str) -> None:
    manifest = READING.replace("errors:", f"times: {times}\nerrors:", 1).replace(
        "      lookback: 2 minutes\n", ""
    )
    provider = FakeProvider([reply({"customers": [{"id": "c1", "updated_at": int(written)}]})])
    (batch,) = await read_all(client_of(manifest, provider), since=datetime(2026, 2, 1, 10, 0, tzinfo=UTC))
    assert provider.requests[0].url.params["updated_after"] == written
    assert batch.records[0].changed_at == "2026-02-01T10:00:00Z"


async def test_a_read_goes_on_from_where_it_stopped() -> None:
    provider = FakeProvider(pages_of(["c1"], ["c2"], ["c3"]))
    client = client_of(READING, provider)
    pages = client.pages("customer", since=START)
    first = await anext(pages)
    await pages.aclose()
    resume = json.loads(json.dumps(first.resume))
    assert "key-12345" not in json.dumps(first.resume)
    rest = await read_all(client_of(READING, provider), since=START, resume=resume)
    assert ids([first, *rest]) == [["c1"], ["c2"], ["c3"]]
    assert provider.requests[-2].url.params["updated_after"] == "2026-03-01T11:58:00Z"


async def test_the_next_page_is_on_its_way_while_this_one_is_worked_on() -> None:
    provider = FakeProvider(pages_of(["c1"], ["c2"], ["c3"], ["c4"]))
    asked = [len(provider.requests) async for _ in client_of(READING, provider).pages("customer")]
    assert asked == [2, 3, 4, 4]


async def test_leaving_early_stops_the_call_on_its_way() -> None:
    cancelled = asyncio.Event()

    class SlowSecondPage(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "cursor" not in request.url.params:
                return reply({"customers": [{"id": "c1"}], "next": "1"})
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

    client = client_of(READING, FakeProvider([]), transport=SlowSecondPage())
    pages = client.pages("customer")
    await anext(pages)
    await pages.aclose()
    assert cancelled.is_set()


FEED = (
    HEAD
    + """
resources:
  product:
    id: id
    deleted: archived
    fields: {id: id}
    list: {call: GET /products, records: data, since: "query created[gte]"}
    changes:
      call: GET /events
      query: {types: [product.updated, product.deleted]}
      records: data
      record: data.object
      changed_at: created_at
      deleted: type == 'product.deleted'
      since: query created[gte]
      lookback: 1 hours
      reaches_back: 30 days
"""
)


async def test_changes_come_from_the_feed_when_it_reaches_back_so_far() -> None:
    rows = [
        {"type": "product.deleted", "created_at": "2026-02-28T00:00:00Z", "data": {"object": {"id": "p1"}}},
        {"type": "product.updated", "created_at": "2026-02-27T00:00:00Z", "data": {"object": {"id": "p2"}}},
    ]
    provider = FakeProvider([reply({"data": rows})])
    (batch,) = await read_all(client_of(FEED, provider), "product", since=START - timedelta(days=3))
    assert provider.requests[0].url.path == "/v3/events"
    assert provider.requests[0].url.params.get_list("types") == ["product.updated", "product.deleted"]
    assert provider.requests[0].url.params["created[gte]"] == "2026-02-26T11:00:00Z"
    assert batch.records == [
        ReadRecord({"id": "p1"}, "p1", "2026-02-28T00:00:00Z", True, None),
        ReadRecord({"id": "p2"}, "p2", "2026-02-27T00:00:00Z", False, None),
    ]


@pytest.mark.parametrize("since", [None, START - timedelta(days=30)])
async def test_without_the_feed_everything_is_read(since: datetime | None) -> None:
    provider = FakeProvider([reply({"data": [{"id": "p1", "archived": True}]})])
    (batch,) = await read_all(client_of(FEED, provider), "product", since=since)
    assert provider.calls == ["GET /v3/products"]
    assert batch.records[0].deleted is True


ASKED = (
    HEAD
    + """
resources:
  customer:
    id: Id
    changed_at: At
    fields: {Name: text}
    list:
      call: GET /query
      query:
        ask: >-
          select * from Customer{{ ' where At >= ' ~ (since | quoted) if since is defined else '' }}
          startposition {{ start }} maxresults {{ size }}
      records: answer.Customer
      since: name since
      lookback: 5 minutes
      pagination: {type: offset, first: 1, send: name start}
      page_size: {send: name size, at_most: 2}
    changes:
      call: GET /cdc
      records: changed
      deleted: status == 'Deleted'
      since: query changedSince
      reaches_back: 29 days
      full_at: 3
    get_many:
      call: GET /query
      query: {ask: "select * from Customer where Id in ({{ wanted | quoted_list }})"}
      ids: name wanted
      at_most: 2
      records: answer.Customer
"""
)


def asked(provider: FakeProvider) -> list[str]:
    return [each.url.params["ask"] for each in provider.requests if "ask" in each.url.params]


def rows_of(*ids: str) -> list[dict[str, Any]]:
    return [{"Id": each, "At": "2026-02-28T00:00:00-08:00"} for each in ids]


async def test_a_query_is_written_anew_for_every_page() -> None:
    answers = [
        reply({"answer": {"Customer": rows_of("1", "2")}}),
        reply({"answer": {"Customer": rows_of("3")}}),
    ]
    provider = FakeProvider([*answers, reply({"answer": {}})])
    batches = await read_all(client_of(ASKED, provider))
    assert ids(batches) == [["1", "2"], ["3"], []]
    assert asked(provider) == [
        f"select * from Customer startposition {start} maxresults 2" for start in (1, 3, 4)
    ]
    assert batches[0].records[0].changed_at == "2026-02-28T08:00:00Z"


async def test_a_query_goes_on_from_where_it_stopped() -> None:
    manifest = ASKED[: ASKED.index("    changes:")] + ASKED[ASKED.index("    get_many:") :]
    pages = {1: rows_of("1", "2"), 3: rows_of("3")}

    def answer(request: httpx.Request) -> Reply:
        start = int(request.url.params["ask"].split("startposition ")[1].split()[0])
        return reply({"answer": {"Customer": pages.get(start, [])}})

    provider = FakeProvider(answer)
    since = datetime(2026, 2, 1, 10, 0, tzinfo=UTC)
    first = await read_all(client_of(manifest, provider), since=since)
    resume = json.loads(json.dumps(first[0].resume))
    again = FakeProvider(answer)
    rest = await read_all(client_of(manifest, again), since=since, resume=resume)
    assert ids([first[0], *rest]) == [["1", "2"], ["3"], []]
    assert asked(again)[1] == (
        "select * from Customer where At >= '2026-02-01T09:55:00Z' startposition 4 maxresults 2"
    )


async def test_records_by_id_are_asked_for_in_a_query() -> None:
    provider = FakeProvider([reply({"answer": {"Customer": rows_of("1", "2")}}), reply({"answer": {}})])
    found = await client_of(ASKED, provider).get_many("customer", ["1", "2", "3"])
    assert list(found) == ["1", "2"]
    assert asked(provider) == [
        "select * from Customer where Id in ('1', '2')",
        "select * from Customer where Id in ('3')",
    ]


async def test_a_feed_that_was_cut_goes_on_with_the_list_since_the_same_moment() -> None:
    cut = [*rows_of("1", "2"), {"Id": "9", "status": "Deleted"}]
    answers = [
        reply({"changed": cut}),
        reply({"answer": {"Customer": rows_of("1", "3")}}),
        reply({"answer": {}}),
    ]
    provider = FakeProvider(answers)
    since = START - timedelta(days=1)
    batches = await read_all(client_of(ASKED, provider), since=since)
    assert ids(batches) == [["1", "2", "9"], ["1", "3"], []]
    assert [each.deleted for each in batches[0].records] == [False, False, True]
    assert asked(provider)[0] == (
        "select * from Customer where At >= '2026-02-28T11:55:00Z' startposition 1 maxresults 2"
    )
    again = FakeProvider([reply({"answer": {"Customer": rows_of("3")}}), reply({"answer": {}})])
    await read_all(client_of(ASKED, again), since=since, resume=json.loads(json.dumps(batches[0].resume)))
    assert asked(again)[1].startswith(
        "select * from Customer where At >= '2026-02-28T11:55:00Z' startposition 2 "
    )


async def test_a_feed_that_was_not_cut_is_all() -> None:
    provider = FakeProvider([reply({"changed": rows_of("1", "2")})])
    assert ids(await read_all(client_of(ASKED, provider), since=START - timedelta(days=1))) == [["1", "2"]]
    assert asked(provider) == []


async def test_rows_of_other_resources_are_left_out() -> None:
    manifest = READING.replace("    deleted: deleted\n", "    where: type == 'PERSON'\n")
    rows = [{"id": "c1", "type": "PERSON"}, {"id": "c2", "type": "COMPANY"}]
    provider = FakeProvider([reply({"customers": rows})])
    assert ids(await read_all(client_of(manifest, provider))) == [["c1"]]


EACH = (
    HEAD
    + """
resources:
  order:
    id: id
    fields: {id: id}
    list:
      call: POST /orders/search
      for_each: {in: connection.location_ids, at_most: 2, as: locations}
      body: {location_ids: "{{ locations }}"}
      records: orders
      pagination: {type: cursor, read: next, send: body cursor}
"""
)


async def test_reads_once_for_each_batch_of_values() -> None:
    answers: list[Reply] = [
        reply({"orders": [{"id": "o1"}], "next": "x"}),
        reply({"orders": [{"id": "o2"}]}),
        reply({"orders": [{"id": "o3"}]}),
    ]
    provider = FakeProvider(answers)
    client = client_of(EACH, provider, connection={"location_ids": ["A", "B", "C"]})
    batches = await read_all(client, "order")
    assert ids(batches) == [["o1"], ["o2"], ["o3"]]
    assert [provider.body(number) for number in range(3)] == [
        {"location_ids": ["A", "B"]},
        {"location_ids": ["A", "B"], "cursor": "x"},
        {"location_ids": ["C"]},
    ]
    assert [batch.resume is None for batch in batches] == [False, False, True]


async def test_for_each_goes_on_from_where_it_stopped() -> None:
    provider = FakeProvider(
        lambda request: reply({"orders": [{"id": json.loads(request.content)["location_ids"][0]}]})
    )
    connection = {"location_ids": ["A", "B", "C", "D", "E"]}
    first, *_ = await read_all(client_of(EACH, provider, connection=connection), "order")
    rest = await read_all(client_of(EACH, provider, connection=connection), "order", resume=first.resume)
    assert ids(rest) == [["C"], ["E"]]


async def test_nothing_to_read_for_is_an_empty_end() -> None:
    batches = await read_all(client_of(EACH, FakeProvider([]), connection={"location_ids": []}), "order")
    assert batches == [ReadBatch([], None)]


async def test_a_value_that_was_never_learned_is_named() -> None:
    with pytest.raises(ManifestError, match="connect again"):
        await read_all(client_of(EACH, FakeProvider([])), "order")


async def test_a_key_in_the_query_goes_on_every_page_and_into_no_position() -> None:
    manifest = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth: {type: api_key, credentials: {apiKey: {title: Key}}, token: apiKey, send: query apikey}
check: GET /me
resources:
  customer:
    id: id
    fields: {id: id}
    list: {call: GET /customers, records: data, pagination: {type: next_link, read: next}}
"""
    answers: list[Reply] = [
        reply({"data": [{"id": "c1"}], "next": "/customers?page=2&apikey=key-12345"}),
        reply({"data": [{"id": "c2"}]}),
    ]
    provider = FakeProvider(answers)
    batches = await read_all(client_of(manifest, provider))
    assert provider.calls == ["GET /customers?apikey=key-12345", "GET /customers?page=2&apikey=key-12345"]
    assert "key-12345" not in json.dumps(batches[0].resume)


# ------------------------------------------------------------------------ reads that must not go on


async def test_pages_that_go_in_a_circle() -> None:
    def answer(request: httpx.Request) -> Reply:
        following = {"0": "1", "1": "2", "2": "1"}[request.url.params.get("cursor", "0")]
        return reply({"customers": [{"id": f"c{following}"}], "next": following})

    with pytest.raises(UnexpectedResponseError):
        await read_all(client_of(READING, FakeProvider(answer)))


async def test_a_page_that_repeats_under_ever_new_cursors() -> None:
    provider = FakeProvider(
        lambda request: reply({"customers": [{"id": "c1"}], "next": f"n{len(provider.requests)}"})
    )
    with pytest.raises(UnexpectedResponseError):
        await read_all(client_of(READING, provider))
    assert len(provider.requests) < 5


def endless() -> FakeProvider:
    provider = FakeProvider(
        lambda request: reply(
            {"customers": [{"id": f"c{len(provider.requests)}"}], "next": f"n{len(provider.requests)}"}
        )
    )
    return provider


@pytest.mark.parametrize("ceilings", [Ceilings(pages=10), Ceilings(bytes=200)])
async def test_a_read_without_end_ends_at_a_ceiling(ceilings: Ceilings) -> None:
    provider = endless()
    with pytest.raises(UnexpectedResponseError, match="beyond"):
        await read_all(client_of(READING, provider, ceilings=ceilings))
    assert len(provider.requests) <= 11


async def test_a_read_ends_at_a_ceiling_of_time() -> None:
    clock = FakeClock()
    pages = client_of(READING, endless(), clock=clock, ceilings=Ceilings(seconds=60)).pages("customer")
    await anext(pages)
    clock.seconds = 61
    with pytest.raises(UnexpectedResponseError, match="60 seconds"):
        await anext(pages)


async def test_an_answer_without_end_is_cut_off() -> None:
    provider = FakeProvider([httpx.Response(200, content=b" " * 3_000_000)])
    with pytest.raises(ProviderError, match="larger than 2 MiB"):
        await client_of(READING, provider, ceilings=Ceilings(page_bytes=2 * 2**20)).check()


async def test_a_stale_cursor_says_so() -> None:
    with pytest.raises(StaleCursorError):
        await read_all(client_of(READING, FakeProvider([error("STALE_CURSOR")])))


@pytest.mark.parametrize(
    "bad",
    [
        httpx.Response(200, html="<h1>Maintenance</h1>"),
        httpx.Response(200, content=b'{"customers": [{"id": "c1"}, {"id"'),
        httpx.Response(200, stream=httpx.ByteStream(b"not gzip"), headers={"Content-Encoding": "gzip"}),
        reply([1, 2]),
        reply({"customers": {"id": "c1"}}),
        reply({"customers": ["c1"]}),
    ],
    ids=["html", "truncated", "not gzip", "a list", "an object", "rows of text"],
)
async def test_an_answer_of_another_shape_is_asked_for_again(bad: httpx.Response) -> None:
    good = reply({"customers": [{"id": "c1"}]})
    clock = FakeClock()
    assert ids(await read_all(client_of(READING, FakeProvider([bad, good]), clock=clock))) == [["c1"]]
    assert clock.slept == [0.25]


async def test_an_answer_that_stays_of_another_shape_ends_the_read() -> None:
    provider = FakeProvider(lambda request: httpx.Response(200, html="<h1>Maintenance</h1>"))
    with pytest.raises(UnexpectedResponseError):
        await read_all(client_of(READING, provider))
    assert len(provider.requests) == 5


async def test_a_row_without_an_id_ends_the_read() -> None:
    with pytest.raises(UnexpectedResponseError, match="no id"):
        await read_all(client_of(READING, FakeProvider([reply({"customers": [{"name": "x"}]})])))


# ------------------------------------------------------------------------------- retries and limits


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
    ],
)
async def test_failures_that_pass_are_waited_out_ever_longer(failure: Reply) -> None:
    clock = FakeClock(chance=1.0)
    answers: list[Reply] = [failure, failure, failure, failure, reply({"id": "m1"})]
    provider = FakeProvider(answers)
    await client_of(READING, provider, clock=clock).check()
    assert clock.slept == [0.5, 1, 2, 4]


async def test_waits_are_spread_by_chance() -> None:
    clock = FakeClock(chance=0.1)
    await client_of(READING, FakeProvider([httpx.Response(503), reply({})]), clock=clock).check()
    assert clock.slept == [pytest.approx(0.05)]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.Response(503), UnavailableError),
        (httpx.ConnectError("refused"), UnavailableError),
        (httpx.Response(429), RateLimitedError),
    ],
)
async def test_failures_that_stay_end_the_call(failure: Reply, kind: type[HubError]) -> None:
    provider = FakeProvider(lambda request: failure)
    with pytest.raises(kind) as ended:
        await client_of(READING, provider).check()
    assert type(ended.value) is kind
    assert len(provider.requests) == 5


async def test_calls_in_a_row_without_an_answer_end_the_run() -> None:
    away: Reply = httpx.ConnectError("refused")
    answers: list[Reply] = [*[away] * 5 * 4, reply({"id": "m1"}), *[away] * 5 * 5]
    client = client_of(READING, FakeProvider(answers))
    for _ in range(4):
        with pytest.raises(UnavailableError):
            await client.check()
    await client.check()  # an answer, and it is counted anew
    for _ in range(4):
        with pytest.raises(UnavailableError):
            await client.check()
    with pytest.raises(SilentProviderError, match="as for 4 calls before") as ended:
        await client.check()
    assert ended.value.retryable


async def test_answers_of_a_broken_server_may_be_for_the_records() -> None:
    client = client_of(READING, FakeProvider(lambda request: httpx.Response(503)))
    for _ in range(10):
        with pytest.raises(UnavailableError):
            await client.check()


async def test_what_is_left_of_a_quota_is_known() -> None:
    manifest = READING.replace("errors:", "limits: {read: {remaining: header X-Left}}\nerrors:", 1)
    client = client_of(manifest, FakeProvider([reply({}, headers={"X-Left": "7"}), reply({})]))
    known = [client.quota]
    for _ in range(2):  # the second answer tells none
        await client.check()
        known.append(client.quota)
    assert known == [None, Quota(7, START), Quota(7, START)]


async def test_a_429_waits_as_long_as_it_says() -> None:
    clock = FakeClock(chance=0.0)
    busy = httpx.Response(429, headers={"Retry-After": "7"})
    await client_of(READING, FakeProvider([busy, busy, reply({})]), clock=clock).check()
    assert clock.slept == [7, 7]


async def test_a_wait_too_long_for_a_run_ends_it_at_once() -> None:
    provider = FakeProvider([httpx.Response(429, headers={"Retry-After": "3600"})])
    with pytest.raises(RateLimitedError) as ended:
        await client_of(READING, provider).check()
    assert ended.value.retry_after == 3600
    assert len(provider.requests) == 1


async def test_calls_are_spaced_by_account_and_by_call() -> None:
    manifest = READING.replace(
        "errors:", "limits: {requests: 100 per second, each_call: 2 per second}\nerrors:", 1
    )
    clock = FakeClock()
    client = client_of(manifest, FakeProvider(lambda request: reply({"customer": {"id": "c1"}})), clock=clock)
    for _ in range(3):
        await client.check()
    await client.get("customer", "c1")  # another call, a budget of its own
    assert sum(clock.slept) == pytest.approx(0.9)  # 1.2 at once, then one each half second


async def test_a_call_may_have_a_budget_of_its_own() -> None:
    limits = 'limits: {calls: {"GET /customers/{id}": 1 per second}}'
    manifest = READING.replace("errors:", f"{limits}\nerrors:", 1)
    clock = FakeClock()
    client = client_of(manifest, FakeProvider(lambda request: reply({"customer": {"id": "c1"}})), clock=clock)
    for number in range(3):
        await client.check()  # has none
        await client.get("customer", f"c{number}")
    assert sum(clock.slept) == pytest.approx(1.9)  # 1.1 at once, then one each second


async def test_a_429_holds_all_calls_of_the_account() -> None:
    manifest = READING.replace("errors:", "limits: {requests: 100 per second}\nerrors:", 1)
    clock = FakeClock(chance=0.0)
    provider = FakeProvider([httpx.Response(429, headers={"Retry-After": "60"})] + [reply({})] * 2)
    client = client_of(manifest, provider, clock=clock)
    await asyncio.gather(client.check(), client.check())
    assert len(provider.requests) == 3
    assert clock.seconds >= 60


async def test_no_more_calls_at_once_than_the_manifest_says() -> None:
    manifest = READING.replace("errors:", "limits: {concurrent: 3}\nerrors:", 1)
    running, most = 0, 0

    class Counting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1
            return reply({})

    client = client_of(manifest, FakeProvider([]), transport=Counting())
    await asyncio.gather(*(client.check() for _ in range(20)))
    assert most == 3


async def test_a_provider_that_never_answers_is_given_up() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    manifest = READING.replace("errors:", "retries: {attempts: 1, timeout: 1 seconds}\nerrors:", 1)
    with pytest.raises(UnavailableError, match="within 1 seconds"):
        await client_of(manifest, FakeProvider([]), transport=Silent()).check()


async def test_every_exchange_is_reported() -> None:
    reports: list[tuple[str, int | None, int]] = []
    provider = FakeProvider(
        [httpx.ConnectError("refused"), httpx.Response(503), reply({"customer": {"id": "c1"}})]
    )
    client = client_of(
        READING, provider, on_call=lambda each: reports.append((each.call, each.status, each.attempt))
    )
    await client.get("customer", "c1")
    assert reports == [
        ("GET /customers/{id}", None, 1),
        ("GET /customers/{id}", 503, 2),
        ("GET /customers/{id}", 200, 3),
    ]


# -------------------------------------------------------------------------------------- credentials


@dataclass
class Rotating:
    """Credentials whose token is the number of refreshes; a dead grant refuses to refresh."""

    dead: bool = False
    number: int = 1
    refreshes: list[str] = field(default_factory=list)

    async def current(self) -> Credentials:
        return Credentials({"apiKey": Secret(f"token-{self.number}")})

    async def refresh(self, refused: Credentials) -> Credentials:
        self.refreshes.append(refused.values["apiKey"].reveal())
        if self.dead:
            raise AuthenticationError("the grant is dead")
        self.number += 1
        return await self.current()


async def test_refused_credentials_are_refreshed_once_and_the_call_made_again() -> None:
    provider = FakeProvider([error("EXPIRED", 401), reply({})])
    source = Rotating()
    await client_of(READING, provider, source=source).check()
    assert source.refreshes == ["token-1"]
    assert [each.headers["Authorization"] for each in provider.requests] == [
        "Bearer token-1",
        "Bearer token-2",
    ]


async def test_credentials_refused_after_a_refresh_end_the_run() -> None:
    provider = FakeProvider(lambda request: error("EXPIRED", 401))
    source = Rotating()
    with pytest.raises(AuthenticationError):
        await client_of(READING, provider, source=source).check()
    assert len(source.refreshes) == 1
    assert len(provider.requests) == 2


@pytest.mark.parametrize(("code", "refreshes"), [("EXPIRED", 1), ("REVOKED", 0)])
async def test_a_dead_grant_ends_the_run(code: str, refreshes: int) -> None:
    source = Rotating(dead=True)
    with pytest.raises(AuthenticationError):
        await client_of(READING, FakeProvider([error(code, 401)]), source=source).check()
    assert len(source.refreshes) == refreshes


async def test_a_message_never_shows_the_key() -> None:
    provider = FakeProvider([error("STOP", message="bad key key-12345")])
    with pytest.raises(ProviderError) as refused:
        await client_of(READING, provider).check()
    assert refused.value.message == "the provider answered 400 STOP: bad key ***"


# ------------------------------------------------------------------------------------- single reads


async def test_get() -> None:
    provider = FakeProvider([reply({"customer": {"id": "a/b"}})])
    assert await client_of(READING, provider).get("customer", "a/b") == {"id": "a/b"}
    assert provider.calls == ["GET /v3/customers/a%2Fb"]


@pytest.mark.parametrize(
    "gone", [error("NOT_FOUND", 404), httpx.Response(410), reply({"customer": {"id": "c", "deleted": True}})]
)
async def test_get_of_a_record_that_is_gone(gone: httpx.Response) -> None:
    assert await client_of(READING, FakeProvider([gone])).get("customer", "c") is None


async def test_get_that_fails_otherwise_is_an_error() -> None:
    with pytest.raises(ProviderError) as refused:
        await client_of(READING, FakeProvider([error("BAD")])).get("customer", "c")
    assert not isinstance(refused.value, RecordRejectedError)


async def test_get_many_by_batches() -> None:
    manifest = (
        HEAD
        + """
resources:
  order:
    id: id
    fields: {id: id}
    get_many: {call: POST /orders/batch, ids: body order_ids, at_most: 2, records: orders}
"""
    )
    provider = FakeProvider(
        lambda request: reply(
            {"orders": [{"id": each} for each in json.loads(request.content)["order_ids"] if each != "x"]}
        )
    )
    found = await client_of(manifest, provider).get_many("order", ["a", "x", "b", "a"])
    assert found == {"a": {"id": "a"}, "b": {"id": "b"}}
    assert [provider.body(number) for number in range(2)] == [{"order_ids": ["a", "x"]}, {"order_ids": ["b"]}]


async def test_get_many_one_by_one() -> None:
    provider = FakeProvider(
        lambda request: (
            error("NO", 404)
            if request.url.path.endswith("x")
            else reply({"customer": {"id": request.url.path[-1]}})
        )
    )
    assert await client_of(READING, provider).get_many("customer", ["a", "x", "b"]) == {
        "a": {"id": "a"},
        "b": {"id": "b"},
    }


# -------------------------------------------------------------------------------- writing one by one


def new(**body: Any) -> WriteGroup:
    return WriteGroup("customer", "key-1", (Write("l1", None, body, "key-1"),))


def old(**body: Any) -> WriteGroup:
    return WriteGroup("customer", "key-1", (Write("l1", "r1", body, "key-1"),))


async def sent(
    manifest: str, answers: list[Reply], group: WriteGroup, clock: FakeClock | None = None
) -> tuple[WriteResult, FakeProvider]:
    provider = FakeProvider(answers)
    (result,) = await client_of(manifest, provider, clock=clock).send(group)
    assert provider.left == [], "a call was not made"
    return result, provider


async def test_create() -> None:
    record = {"id": "r1", "version": 4, "updated_at": "2026-02-01T00:00:00Z"}
    result, provider = await sent(READING, [reply({"customer": record})], new(name="Ana", phone=None))
    assert provider.calls == ["POST /v3/customers"]
    assert provider.body() == {"name": "Ana"}
    assert provider.requests[0].headers["Idempotency-Key"] == "key-1"
    assert result == WriteResult(
        new(name="Ana", phone=None).writes[0], "r1", "4", "2026-02-01T00:00:00Z", record
    )


async def test_update_sends_nulls_and_a_key_of_its_content() -> None:
    result, provider = await sent(READING, [reply({"customer": {"id": "r1"}})], old(name="Ana", phone=None))
    assert provider.calls == ["PUT /v3/customers/r1"]
    assert provider.body() == {"name": "Ana", "phone": None}
    first = provider.requests[0].headers["Idempotency-Key"]
    _, provider = await sent(READING, [reply({"customer": {"id": "r1"}})], old(name="Eva"))
    assert len({"key-1", first, provider.requests[0].headers["Idempotency-Key"]}) == 3
    assert result.error is None


async def test_an_update_may_answer_nothing() -> None:
    result, _ = await sent(READING, [httpx.Response(204)], old(name="Ana"))
    assert (result.error, result.remote_id, result.record) == (None, "r1", None)


async def test_a_call_is_repeated_under_the_same_key() -> None:
    answers: list[Reply] = [
        httpx.ReadTimeout("slow"),
        httpx.Response(502, html="<p>"),
        reply({"customer": {"id": "r1"}}),
    ]
    result, provider = await sent(READING, answers, new(name="Ana"))
    assert {each.headers["Idempotency-Key"] for each in provider.requests} == {"key-1"}
    assert result.remote_id == "r1"


@pytest.mark.parametrize(
    ("answer", "kind", "answered"),
    [
        (httpx.ReadTimeout("slow"), UnavailableError, False),
        (httpx.Response(500), UnavailableError, True),
        (httpx.Response(200, html="<p>"), UnexpectedResponseError, False),
        (reply({"customer": {}}), UnexpectedResponseError, False),
        (httpx.Response(429), RateLimitedError, True),
    ],
    ids=["timeout", "500", "html", "no id", "429"],
)
async def test_an_outcome_that_stays_open(answer: Reply, kind: type[HubError], answered: bool) -> None:
    result, _ = await sent(READING, [answer] * 5, new(name="Ana"))
    assert type(result.error) is kind
    assert (result.retryable, result.answered) == (True, answered)


async def test_a_429_after_a_lost_answer_leaves_the_outcome_open() -> None:
    answers: list[Reply] = [httpx.ReadTimeout("slow"), *[httpx.Response(429)] * 4]
    result, _ = await sent(READING, answers, new(name="Ana"))
    assert (result.retryable, result.answered) == (True, False)


async def test_a_server_error_is_an_answer_and_a_lost_one_is_none() -> None:
    answers: list[Reply] = [httpx.Response(500), *[httpx.ReadTimeout("slow")] * 4]
    result, _ = await sent(READING, answers, new(name="Ana"))
    assert result.answered is False
    answers = [httpx.ReadTimeout("slow"), *[httpx.Response(500)] * 4]
    result, _ = await sent(READING, answers, new(name="Ana"))
    assert (result.answered, result.retryable) == (True, True)


async def test_what_goes_with_a_create_is_done_for_one_whose_answer_was_lost() -> None:
    group = WriteGroup(
        "customer", "k", (Write("l1", "r1", {"product": "p1", "amount": 1}, "k", adopted=True),)
    )
    there = {"id": "r1", "product": "p1", "amount": 1}
    result, provider = await sent(PRICES, [reply(there), reply({})], group)
    assert provider.calls == ["GET /v3/prices/r1", "POST /v3/products/p1"]
    assert (result.remote_id, result.error) == ("r1", None)


async def test_a_refusal_is_the_records_own() -> None:
    result, _ = await sent(READING, [error("INVALID", message="bad name", field="name")], new(name=""))
    assert isinstance(result.error, RecordRejectedError)
    assert (result.error.provider_code, result.error.field, result.error.status) == ("INVALID", "name", 400)
    assert (result.retryable, result.answered, result.heal) == (False, True, False)


async def test_a_complaint_of_a_field_is_marked_for_healing() -> None:
    result, _ = await sent(READING, [error("UNKNOWN_FIELD", field="nmae")], new(nmae="x"))
    assert result.heal is True
    assert result.error is not None
    assert result.error.field == "nmae"


async def test_complaints_of_fields_are_told() -> None:
    told: list[tuple[str, str]] = []
    answers: list[Reply] = [
        error("UNKNOWN_FIELD", field="customer.nmae"),
        error("UNKNOWN_FIELD", field="of_nothing_that_was_sent"),
        error("UNKNOWN_FIELD"),
        error("INVALID", field="nmae"),
    ]
    client = client_of(READING, FakeProvider(answers), on_unknown=lambda *named: told.append(named))
    for _ in answers:
        await client.send(new(nmae="x"))
    assert told == [("customer", "nmae")]


@pytest.mark.parametrize(
    ("code", "status", "kind"), [("STOP", 400, ProviderError), ("REVOKED", 401, AuthenticationError)]
)
async def test_what_ends_a_run_is_raised(code: str, status: int, kind: type[HubError]) -> None:
    with pytest.raises(kind):
        await client_of(READING, FakeProvider([error(code, status)])).send(new(name="Ana"))


async def test_a_record_that_is_gone_is_made_again() -> None:
    answers: list[Reply] = [error("GONE", 404), error("GONE", 404), reply({"customer": {"id": "r2"}})]
    result, provider = await sent(READING, answers, old(name="Ana", phone=None))
    assert provider.calls == ["PUT /v3/customers/r1", "GET /v3/customers/r1", "POST /v3/customers"]
    assert provider.body() == {"name": "Ana"}
    assert provider.requests[0].headers["Idempotency-Key"] != provider.requests[2].headers["Idempotency-Key"]
    assert (result.remote_id, result.write.remote_id) == ("r2", "r1")


async def test_a_record_that_is_only_said_to_be_gone_gets_no_twin() -> None:
    """A 404 may mean another thing: an address that isn't there, a record that is out of use."""
    answers: list[Reply] = [error("GONE", 404), reply({"customer": {"id": "r1", "name": "Ann"}})]
    result, provider = await sent(READING, answers, old(name="Ana"))
    assert provider.calls == ["PUT /v3/customers/r1", "GET /v3/customers/r1"]
    assert isinstance(result.error, RecordRejectedError)
    assert not result.retryable


async def test_a_stale_update_is_made_again_over_the_version_that_is_there() -> None:
    answers: list[Reply] = [
        error("CONFLICT", 409),
        reply({"customer": {"id": "r1", "version": 9}}),
        reply({"customer": {"id": "r1", "version": 10}}),
    ]
    result, provider = await sent(READING, answers, old(name="Ana"))
    assert provider.calls == ["PUT /v3/customers/r1", "GET /v3/customers/r1", "PUT /v3/customers/r1"]
    assert provider.body() == {"name": "Ana", "version": 9}
    assert result.version == "10"


async def test_an_update_that_stays_stale_is_given_up() -> None:
    there = reply({"customer": {"id": "r1", "version": 9}})
    answers: list[Reply] = [error("CONFLICT"), there, error("CONFLICT"), there, error("CONFLICT")]
    result, _ = await sent(READING, answers, old(name="Ana"))
    assert isinstance(result.error, RecordRejectedError)


NEW_IDS = READING.replace(
    "fields: {id: id, name: text}", "fields: {id: {type: id, only_on: create}, name: text}"
).replace(
    "      call: POST /customers\n",
    '      call: POST /customers\n      new: {id: "cus-{{ key }}", kind: person}\n',
)


async def test_values_a_new_record_needs_besides() -> None:
    _, provider = await sent(NEW_IDS, [reply({"customer": {"id": "cus-l1"}})], new(name="Ana"))
    assert provider.body() == {"name": "Ana", "id": "cus-l1", "kind": "person"}
    _, provider = await sent(NEW_IDS, [reply({"customer": {"id": "own"}})], new(id="own"))
    assert provider.body() == {"id": "own", "kind": "person"}


async def test_a_record_that_is_there_already_is_adopted() -> None:
    result, provider = await sent(
        NEW_IDS, [error("EXISTS"), reply({"customer": {"id": "cus-l1"}})], new(name="Ana")
    )
    assert provider.calls == ["POST /v3/customers", "PUT /v3/customers/cus-l1"]
    assert provider.body() == {"name": "Ana"}
    assert (result.remote_id, result.error) == ("cus-l1", None)


async def test_adopting_and_making_again_do_not_chase_each_other() -> None:
    result, _ = await sent(
        NEW_IDS, [error("EXISTS"), error("GONE", 404), error("GONE", 404)], new(name="Ana")
    )
    assert isinstance(result.error, RecordRejectedError)


async def test_a_field_only_for_new_records_is_not_sent_in_an_update() -> None:
    _, provider = await sent(NEW_IDS, [reply({"customer": {"id": "r1"}})], old(id="r1", name="Ana"))
    assert provider.body() == {"name": "Ana"}


WHOLE = READING.replace("    deleted: deleted\n", "    deleted: deleted\n    updates: whole\n")


async def test_a_whole_update_lays_the_change_over_what_is_there() -> None:
    there = {
        "id": "r1",
        "version": 3,
        "name": "Ana",
        "tags": ["a"],
        "parts": [{"id": "p1", "v": 1}, {"id": "p2"}],
        "old": 1,
    }
    group = old(name="Eva", tags=["b"], parts=[{"v": 2}], old=None)
    result, provider = await sent(
        WHOLE, [reply({"customer": there}), reply({"customer": {"id": "r1", "version": 4}})], group
    )
    assert provider.body() == {
        "id": "r1", "version": 3, "name": "Eva", "tags": ["b"], "parts": [{"id": "p1", "v": 2}, {"id": "p2"}],
    }  # fmt: skip
    assert result.version == "4"


async def test_a_whole_update_that_changes_nothing_makes_no_write() -> None:
    there = {"id": "r1", "version": 3, "name": "Ana"}
    result, provider = await sent(WHOLE, [reply({"customer": there})], old(name="Ana", phone=None))
    assert provider.calls == ["GET /v3/customers/r1"]
    assert (result.error, result.version, result.record) == (None, "3", there)


async def test_a_whole_update_that_is_stale_is_merged_again() -> None:
    answers: list[Reply] = [
        reply({"customer": {"id": "r1", "version": 3, "city": "Graz"}}),
        error("CONFLICT"),
        reply({"customer": {"id": "r1", "version": 4, "city": "Linz"}}),
        reply({"customer": {"id": "r1", "version": 5}}),
    ]
    _, provider = await sent(WHOLE, answers, old(name="Ana"))
    assert provider.body() == {"id": "r1", "version": 4, "city": "Linz", "name": "Ana"}


async def test_a_whole_update_of_a_record_that_is_gone_makes_it_again() -> None:
    result, provider = await sent(
        WHOLE, [error("GONE", 404), reply({"customer": {"id": "r2"}})], old(name="Ana")
    )
    assert provider.calls == ["GET /v3/customers/r1", "POST /v3/customers"]
    assert result.remote_id == "r2"


PRICES = (
    HEAD.replace("errors:", "encoding: form\nerrors:", 1)
    + """
resources:
  customer:
    id: id
    fields: {product: id, amount: integer, nickname: text}
    immutable: [product, amount]
    get: GET /prices/{id}
    create:
      call: POST /prices
      body: {transfer: true}
      idempotency_key: header Idempotency-Key
      then:
        - call: POST /products/{result.product}
          body: {default_price: "{{ result.id }}"}
    update: POST /prices/{id}
    retire: {call: "POST /prices/{id}", body: {active: false}}
"""
)


def form(provider: FakeProvider, index: int) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(provider.requests[index].content.decode()).items()}


async def test_a_change_that_can_not_be_made_makes_a_new_record_and_retires_the_old() -> None:
    answers: list[Reply] = [
        reply({"id": "r1", "product": "p1", "amount": 100}),
        reply({"id": "r2", "product": "p1", "amount": 200}),
        reply({}),
        reply({}),
    ]
    result, provider = await sent(PRICES, answers, old(product="p1", amount=200, nickname="GA"))
    assert provider.calls == [
        "GET /v3/prices/r1",
        "POST /v3/prices",
        "POST /v3/products/p1",
        "POST /v3/prices/r1",
    ]
    assert form(provider, 1) == {"transfer": "true", "product": "p1", "amount": "200", "nickname": "GA"}
    assert form(provider, 2) == {"default_price": "r2"}
    assert form(provider, 3) == {"active": "false"}
    assert (result.remote_id, result.error) == ("r2", None)
    assert provider.requests[1].headers["Idempotency-Key"] != "key-1"


async def test_other_fields_of_such_a_record_are_updated_in_place() -> None:
    answers: list[Reply] = [reply({"id": "r1", "product": "p1", "amount": 100}), reply({"id": "r1"})]
    _, provider = await sent(PRICES, answers, old(product="p1", amount=100, nickname="GA"))
    assert form(provider, 1) == {"nickname": "GA"}


async def test_such_a_record_without_a_change_costs_no_write() -> None:
    there = {"id": "r1", "product": "p1", "amount": 100, "nickname": "GA"}
    _, provider = await sent(PRICES, [reply(there)], old(product="p1", amount=100, nickname="GA"))
    assert provider.calls == ["GET /v3/prices/r1"]


async def test_a_call_that_belongs_to_a_write_and_fails_is_told_with_the_new_id() -> None:
    answers: list[Reply] = [reply({"id": "r1", "product": "p1"}), *[httpx.Response(503)] * 5]
    result, _ = await sent(PRICES, answers, new(product="p1", amount=1))
    assert result.remote_id == "r1"
    assert isinstance(result.error, UnavailableError)
    assert result.retryable is True


async def test_the_same_group_makes_the_same_calls() -> None:
    def answers() -> list[Reply]:
        return [
            reply({"id": "r1", "product": "p1", "amount": 100}),
            reply({"id": "r2", "product": "p1"}),
            reply({}),
            reply({}),
        ]

    runs = [await sent(PRICES, answers(), old(product="p1", amount=200)) for _ in range(2)]
    told = [
        [
            (each.method, str(each.url), each.headers.get("Idempotency-Key"), each.content)
            for each in provider.requests
        ]
        for _, provider in runs
    ]
    assert told[0] == told[1]


# ------------------------------------------------------------------------------- writing in batches


@dataclass
class Shelf:
    """A provider that upserts items in batches: all or nothing, versions checked, ids given."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    bodies: list[list[dict[str, Any]]] = field(default_factory=list)
    count: int = 0

    def __call__(self, request: httpx.Request) -> Reply:
        body = json.loads(request.content)
        if request.url.path.endswith("/retrieve"):
            return reply({"items": [self.items[each] for each in body["ids"] if each in self.items]})
        self.keys.append(body["key"])
        self.bodies.append(body["items"])
        if len(body["items"]) > 4:
            return error("TOO_MANY")
        for item in body["items"]:
            if item.get("name") == "bad":
                return error("INVALID", message="the name is bad", field="name")
            if item["id"] in self.items and item.get("version") != self.items[item["id"]]["version"]:
                return error("CONFLICT", message="another version")
            if not item["id"].startswith("#") and item["id"] not in self.items:
                return error("INVALID", message="there is no such item")
        results, given = [], []
        for item in body["items"]:
            if item["id"].startswith("#"):
                self.count += 1
                given.append({"client": item["id"], "real": f"r{self.count}"})
                item = {**item, "id": f"r{self.count}"}
            item = {**item, "version": item.get("version", 0) + 1}
            self.items[item["id"]] = item
            results.append(item)
        return reply({"items": results[::-1], "ids": given})


BATCHES = (
    HEAD
    + """
resources:
  item:
    id: id
    version: version
    fields: {id: id, name: text, kind: {type: text, only_on: create}}
    updates: whole
    one_write_at_a_time: true
    get_many: {call: POST /items/retrieve, ids: body ids, at_most: 100, records: items}
    write_many:
      call: POST /items/upsert
      records: body items
      results: items
      pair_by: id
      new_ids: {records: ids, sent: client, given: real}
      at_most: 4
      idempotency_key: {send: body key, at_most: 40}
      new: {id: "#{{ key }}"}
"""
)


def items(names: list[str], remote: list[str] | None = None) -> list[Write]:
    return [
        Write(f"l{number}", remote[number] if remote else None, {"name": name}, f"k{number}")
        for number, name in enumerate(names)
    ]


async def written(client: ProviderClient, writes: list[Write], resource: str = "item") -> list[WriteResult]:
    return [each for group in client.plan(resource, writes) for each in await client.send(group)]


async def test_new_records_in_batches_get_their_real_ids() -> None:
    shelf = Shelf()
    results = await written(client_of(BATCHES, FakeProvider(shelf)), items(["a", "b", "c", "d", "e"]))
    assert [result.write.local_id for result in results] == ["l0", "l1", "l2", "l3", "l4"]
    assert [shelf.items[result.remote_id or ""]["name"] for result in results] == ["a", "b", "c", "d", "e"]
    assert [result.version for result in results] == ["1"] * 5
    assert [len(body) for body in shelf.bodies] == [4, 1]
    assert all(len(key) <= 40 for key in shelf.keys)


async def test_the_bad_record_of_a_batch_stands_alone() -> None:
    shelf = Shelf()
    results = await written(client_of(BATCHES, FakeProvider(shelf)), items(["a", "bad", "c", "d"]))
    assert [result.error is None for result in results] == [True, False, True, True]
    failed = results[1]
    assert failed.error is not None
    assert (failed.error.field, failed.retryable) == ("name", False)
    assert sorted(each["name"] for each in shelf.items.values()) == ["a", "c", "d"]
    assert len(set(shelf.keys)) == len(shelf.keys)  # another content, another key


async def test_every_record_bad_is_every_record_told() -> None:
    results = await written(client_of(BATCHES, FakeProvider(Shelf())), items(["bad"] * 4))
    assert [result.error is not None for result in results] == [True] * 4


async def test_a_batch_sent_again_is_the_same_calls() -> None:
    told = []
    for key in ("k", "other"):
        shelf = Shelf()
        provider = FakeProvider(shelf)
        writes = tuple(Write(each.local_id, None, each.body, key) for each in items(["a", "bad", "c", "d"]))
        await client_of(BATCHES, provider).send(WriteGroup("item", "announced", writes))
        told.append([(str(each.url), each.content) for each in provider.requests])
    assert told[0] == told[1]  # a repeated group knows its own key, not those of its records


async def test_updates_in_batches_lay_the_change_over_what_is_there() -> None:
    shelf = Shelf({f"r{n}": {"id": f"r{n}", "version": 5, "name": "x", "price": n} for n in range(3)})
    results = await written(
        client_of(BATCHES, FakeProvider(shelf)), items(["a", "x", "c"], ["r0", "r1", "r2"])
    )
    assert [result.error for result in results] == [None] * 3
    assert shelf.bodies == [
        [
            {"id": "r0", "version": 5, "name": "a", "price": 0},
            {"id": "r2", "version": 5, "name": "c", "price": 2},
        ]
    ]
    assert [result.version for result in results] == ["6", "5", "6"]  # r1 was the same already


async def test_a_stale_batch_is_merged_again() -> None:
    shelf = Shelf({"r0": {"id": "r0", "version": 1, "name": "x"}})
    stale = [True]

    def answer(request: httpx.Request) -> Reply:
        if request.url.path.endswith("/upsert") and stale:
            stale.clear()
            shelf.items["r0"] = {"id": "r0", "version": 2, "name": "x", "city": "Graz"}
        return shelf(request)

    (result,) = await written(client_of(BATCHES, FakeProvider(answer)), items(["a"], ["r0"]))
    assert result.version == "3"
    assert shelf.items["r0"] == {"id": "r0", "version": 3, "name": "a", "city": "Graz"}
    assert len(set(shelf.keys)) == 2


async def test_records_of_a_batch_that_are_gone_are_made_again() -> None:
    shelf = Shelf({"x1": {"id": "x1", "version": 1, "name": "old"}})
    results = await written(
        client_of(BATCHES, FakeProvider(shelf)), items(["a", "b", "c"], ["x0", "x1", "x2"])
    )
    assert [result.remote_id for result in results] == ["r1", "x1", "r2"]
    assert [result.write.remote_id for result in results] == ["x0", "x1", "x2"]
    assert {each["name"] for each in shelf.items.values()} == {"a", "b", "c"}


async def test_a_batch_without_an_answer_stays_open_for_all() -> None:
    provider = FakeProvider(lambda request: httpx.ReadTimeout("slow"))
    results = await written(client_of(BATCHES, provider), items(["a", "b"]))
    assert [(result.retryable, result.answered) for result in results] == [(True, False)] * 2
    assert len({provider.body(number)["key"] for number in range(5)}) == 1


async def test_only_one_write_at_a_time() -> None:
    running, most, shelf = 0, 0, Shelf()

    class Counting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            given = shelf(request)
            assert isinstance(given, httpx.Response)
            return given

    client = client_of(BATCHES, FakeProvider([]), transport=Counting())
    groups = client.plan("item", items(["a"] * 20))
    await asyncio.gather(*(client.send(group) for group in groups))
    assert (most, len(shelf.items)) == (1, 20)


KEYED = (
    HEAD
    + """
resources:
  customer:
    id: id
    version: version
    fields: {id: id, name: text}
    get: {call: "GET /customers/{id}", record: customer}
    create_many:
      call: POST /customers/create
      records: body customers
      by_key: idempotency_key
      results: responses
      result: customer
      error: error
      error_code: error.code
      error_message: error.message
      idempotency_key: {at_most: 50}
    update_many:
      call: POST /customers/update
      records: body customers
      by_key: id
      results: responses
      result: customer
      error: error
      error_code: error.code
      error_message: error.message
"""
)


@dataclass
class Keyed:
    """A provider that answers each record of a map by itself; `failures` are used up, by name and in turn."""

    failures: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    seen: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: httpx.Request) -> Reply:
        if request.method == "GET":
            asked = request.url.path.rpartition("/")[2]
            return (
                error("GONE", 404) if asked in self.gone else reply({"customer": {"id": asked, "version": 7}})
            )
        responses: dict[str, Any] = {}
        for key, body in json.loads(request.content)["customers"].items():
            self.seen[key] += 1
            if self.failures.get(body["name"]):
                responses[key] = {"error": {"code": self.failures[body["name"]].pop(0), "message": "no"}}
            elif request.url.path.endswith("/create"):
                made = self.made.setdefault(key, f"r{len(self.made)}")
                responses[key] = {"customer": {"id": made, **body}}
            else:
                responses[key] = {"customer": {"id": key, **body}}
        return reply({"responses": responses})


async def test_each_record_of_a_map_has_an_outcome_of_its_own() -> None:
    keyed = Keyed(failures={"b": ["INVALID"]})
    results = await written(client_of(KEYED, FakeProvider(keyed)), items(["a", "b", "c"]), "customer")
    assert [result.remote_id for result in results] == ["r0", None, "r1"]
    assert results[1].error is not None
    assert results[1].error.provider_code == "INVALID"
    assert results[1].error.message == "the provider answered INVALID: no"
    assert all(len(key) <= 50 for key in keyed.seen)


async def test_what_a_provider_says_of_one_record_never_repeats_a_secret() -> None:
    keyed = Keyed(failures={"a": ["no right of key-12345"]})
    (refused, _) = await written(client_of(KEYED, FakeProvider(keyed)), items(["a", "b"]), "customer")
    assert refused.error is not None
    assert "key-12345" not in refused.error.message
    assert "key-12345" not in str(refused.error.provider_code)


async def test_a_record_that_failed_for_the_moment_is_sent_again_under_its_key() -> None:
    manifest = KEYED.replace("    - {code: STOP", "    - {code: BUSY, then: retry}\n    - {code: STOP")
    keyed = Keyed(failures={"b": ["BUSY", "BUSY"]})
    clock = FakeClock(chance=1.0)
    results = await written(
        client_of(manifest, FakeProvider(keyed), clock=clock), items(["a", "b"]), "customer"
    )
    assert [result.error for result in results] == [None, None]
    assert sorted(keyed.seen.values()) == [1, 3]
    assert clock.slept == [0.5, 1.0]


async def test_a_record_that_keeps_failing_for_the_moment_may_be_tried_later() -> None:
    manifest = KEYED.replace("    - {code: STOP", "    - {code: BUSY, then: retry}\n    - {code: STOP")
    keyed = Keyed(failures={"b": ["BUSY"] * 10})
    results = await written(client_of(manifest, FakeProvider(keyed)), items(["a", "b"]), "customer")
    assert (results[0].error, results[1].retryable, results[1].answered) == (None, True, True)


async def test_updates_of_a_map_by_id_with_a_stale_one_and_one_that_is_gone() -> None:
    manifest = KEYED.replace("    - {code: STOP", "    - {code: GONE, then: recreate}\n    - {code: STOP")
    keyed = Keyed(failures={"a": ["CONFLICT"], "b": ["GONE"]}, gone=frozenset({"x1"}))
    provider = FakeProvider(keyed)
    results = await written(
        client_of(manifest, provider), items(["a", "b", "c"], ["x0", "x1", "x2"]), "customer"
    )
    assert [result.error for result in results] == [None] * 3
    assert [result.remote_id for result in results] == ["x0", "r0", "x2"]
    updates = [
        json.loads(each.content)["customers"]
        for each in provider.requests
        if each.url.path.endswith("update")
    ]
    assert updates[1] == {"x0": {"name": "a", "version": 7}}


async def test_a_record_the_answer_leaves_out_stays_open() -> None:
    provider = FakeProvider([reply({"responses": {}})])
    (result, _) = await written(client_of(KEYED, provider), items(["a", "b"]), "customer")
    assert isinstance(result.error, UnexpectedResponseError)
    assert (result.retryable, result.answered) == (True, False)


async def test_an_unknown_resource_is_named() -> None:
    with pytest.raises(ManifestError, match="has no resource `custommer`"):
        client_of(READING, FakeProvider([])).plan("custommer", [])


# ------------------------------------------------------------------------------- calls without a key

UNKEYED = READING.replace("      idempotency_key: header Idempotency-Key\n", "")


@pytest.mark.parametrize(
    "lost", [httpx.ReadTimeout("slow"), reply({}, 503), reply("not a record"), httpx.Response(200, text="<")]
)
async def test_a_create_that_nothing_protects_is_not_sent_twice_when_it_may_be_done(lost: Reply) -> None:
    provider = FakeProvider([lost, reply({"customer": {"id": "c1"}})])
    (result,) = await client_of(UNKEYED, provider).send(
        WriteGroup("customer", "k", (Write("l1", None, {"name": "Ada"}, "k"),))
    )
    assert provider.calls == ["POST /v3/customers"]
    assert result.retryable


async def test_a_create_that_nothing_protects_is_sent_again_after_a_429() -> None:
    provider = FakeProvider([reply({}, 429), reply({"customer": {"id": "c1"}})])
    (result,) = await client_of(UNKEYED, provider).send(
        WriteGroup("customer", "k", (Write("l1", None, {"name": "Ada"}, "k"),))
    )
    assert result.remote_id == "c1"


async def test_an_update_is_sent_again_without_a_key() -> None:
    provider = FakeProvider([reply({}, 503), reply({"customer": {"id": "c1"}})])
    (result,) = await client_of(UNKEYED, provider).send(
        WriteGroup("customer", "k", (Write("l1", "c1", {"name": "Ada"}, "k"),))
    )
    assert result.error is None
