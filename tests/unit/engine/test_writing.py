"""The words for writing beyond one call a record: versions, items, failure lists, finding, parts, jobs."""

import asyncio
import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest

from engine.batching import WriteGroup
from engine.client import Books, ProviderClient, Write, WriteResult
from engine.errors import ProviderError, RecordRejectedError, StoppedError, UnavailableError
from tests.fakes import FakeClock, FakeProvider, Reply, client_of, reply

HEAD = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth:
  type: bearer
  credentials: {apiKey: {title: Key}}
  token: apiKey
check: GET /me
errors:
  code: code
  message: message
  rules:
    - {code: STALE, then: reload_and_retry}
    - {code: TAKEN, then: adopt}
    - {code: BUSY, then: retry}
    - {code: USED, then: new_key}
    - {status: 404, then: recreate}
    - {status: 429, then: wait}
resources:
"""


def write(local_id: str, remote_id: str | None = None, /, **body: Any) -> Write:
    return Write(local_id, remote_id, body or {"name": local_id}, f"key-{local_id}")


async def sent(
    client: ProviderClient, resource: str, *writes: Write, books: Books | None = None
) -> list[WriteResult]:
    results: list[WriteResult] = []
    for group in client.plan(resource, writes):
        results += await (client.send(group, books) if books else client.send(group))
    return results


def outcome(result: WriteResult) -> tuple[str, str | None, str | None]:
    return result.write.local_id, result.remote_id, result.error.message if result.error else None


# ---- names of a call ---------------------------------------------------------------------------------


async def test_a_call_sees_names_of_its_own_one_made_of_another() -> None:
    manifest = (
        HEAD
        + """
  member:
    id: id
    fields: {email: email}
    create:
      call: PUT /members/{hash}
      with: {address: "{{ record.email | lower }}", hash: "{{ address | md5 }}"}
      query: {address: "{{ address }}"}
"""
    )
    provider = FakeProvider([reply({"id": "m1"})])
    (done,) = await sent(client_of(manifest, provider), "member", write("ada", email="Ana@Example.com"))
    assert done.remote_id == "m1"
    assert provider.calls == ["PUT /members/cdb9d6a1dddc375a09cc83e3001598dc?address=ana%40example.com"]


# ---- keys ---------------------------------------------------------------------------------------------


async def test_a_batch_whose_key_was_used_is_not_halved_under_new_ones() -> None:
    manifest = (
        HEAD
        + """
  member:
    id: id
    fields: {name: text}
    create_many:
      call: POST /members
      records: body members
      at_most: 10
      results: members
      pair_by: name
      idempotency_key: body key
"""
    )
    provider = FakeProvider([reply({"code": "USED", "message": "this key belongs to another body"}, 400)])
    results = await sent(client_of(manifest, provider), "member", write("ada"), write("bo"))
    assert [each.error.provider_code for each in results if each.error] == ["USED", "USED"]
    assert [(each.retryable, each.answered) for each in results] == [(True, True)] * 2
    assert len(provider.calls) == 1


# ---- versions ----------------------------------------------------------------------------------------

VERSIONED = (
    HEAD
    + """
  customer:
    id: Id
    version: Token
    updates: versioned
    fields: {name: text, price: decimal}
    get: {call: "GET /customer/{id}", record: Customer}
    get_many: {call: GET /query, ids: query ids, records: Rows}
    create: {call: POST /customer, result: Customer}
    update:
      call: POST /customer
      body: {Id: "{{ id }}", Token: "{{ version }}", sparse: true}
      result: Customer
      idempotency_key: query requestid
    create_many:
      call: POST /batch
      records: body Items
      item: {bId: "{{ number }}", operation: create, Customer: "{{ record }}"}
      results: Answers
      pair_by: bId
      result: Customer
      error: Fault
      error_code: Fault.code
      error_message: Fault.detail
    update_many:
      call: POST /batch
      records: body Items
      item: {bId: "{{ number }}", operation: update, Customer: "{{ record }}"}
      body_of_each: {Id: "{{ id }}", Token: "{{ version }}", sparse: true}
      results: Answers
      pair_by: bId
      result: Customer
      error: Fault
      error_code: Fault.code
      error_message: Fault.detail
"""
)


def row(record_id: str, token: int, **more: Any) -> dict[str, Any]:
    return {"Id": record_id, "Token": str(token), **more}


async def test_an_update_names_the_version_it_changes_and_sends_the_mapped_fields_alone() -> None:
    there = row("7", 3, name="Ada", phone="1")
    provider = FakeProvider([reply({"Customer": there}), reply({"Customer": {**there, "Token": "4"}})])
    (done,) = await sent(client_of(VERSIONED, provider), "customer", write("a", "7", name="Eva"))
    assert provider.body() == {"Id": "7", "Token": "3", "sparse": True, "name": "Eva"}
    assert (done.remote_id, done.version, done.error) == ("7", "4", None)


async def test_what_holds_already_is_read_and_not_written_however_a_number_is_written() -> None:
    provider = FakeProvider([reply({"Customer": row("7", 3, name="Ada", price=19.5)})])
    wanted = write("a", "7", name="Ada", price=Decimal("19.50"))
    (done,) = await sent(client_of(VERSIONED, provider), "customer", wanted)
    assert (done.error, provider.calls) == (None, ["GET /customer/7"])


async def test_somebody_elses_change_is_read_and_the_key_is_a_new_one() -> None:
    """The body is the same, and a provider would replay the refusal that it keeps for its key."""
    provider = FakeProvider(
        [
            reply({"Customer": row("7", 3, name="Ada")}),
            reply({"code": "STALE", "message": "stale"}, 400),
            reply({"Customer": row("7", 4, name="Ida")}),
            reply({"Customer": row("7", 5, name="Eva")}),
        ]
    )
    (done,) = await sent(client_of(VERSIONED, provider), "customer", write("a", "7", name="Eva"))
    tokens = [json.loads(each.content)["Token"] for each in provider.requests if each.method == "POST"]
    keys = [each.url.params["requestid"] for each in provider.requests if each.method == "POST"]
    assert (done.version, tokens, len(set(keys))) == ("5", ["3", "4"], 2)


async def test_a_decimal_leaves_as_a_number_with_its_very_digits() -> None:
    provider = FakeProvider([reply({"Customer": row("7", 0)})])
    await sent(client_of(VERSIONED, provider), "customer", write("a", None, price=Decimal("1234567890.10")))
    assert provider.requests[0].content == b'{"price":1234567890.10}'


# ---- batches -----------------------------------------------------------------------------------------


async def test_items_wrap_each_record_and_answers_in_any_order_are_paired() -> None:
    rows = [row("1", 4, name="x"), row("2", 9, name="x"), row("3", 0, name="Cyd")]
    answers = [
        {"bId": "2", "Fault": {"code": "2010", "detail": "not allowed"}},
        {"bId": "1", "Customer": row("1", 5, name="Ada")},
    ]
    provider = FakeProvider([reply({"Rows": rows}), reply({"Answers": answers})])
    results = await sent(
        client_of(VERSIONED, provider),
        "customer",
        write("a", "1", name="Ada"),
        write("b", "2", name="Bob"),
        write("c", "3", name="Cyd"),  # holds already
    )
    assert provider.body() == {
        "Items": [
            {"bId": "1", "operation": "update",
             "Customer": {"Id": "1", "Token": "4", "sparse": True, "name": "Ada"}},
            {"bId": "2", "operation": "update",
             "Customer": {"Id": "2", "Token": "9", "sparse": True, "name": "Bob"}},
        ]
    }  # fmt: skip
    assert [outcome(each) for each in results] == [
        ("a", "1", None),
        ("b", "2", "the provider answered 2010: not allowed"),
        ("c", "3", None),
    ]


async def test_a_stale_item_of_a_batch_is_read_and_sent_again_alone() -> None:
    stale = {"bId": "2", "Fault": {"code": "STALE", "detail": "stale"}}
    provider = FakeProvider(
        [
            reply({"Rows": [row("1", 1), row("2", 1)]}),
            reply({"Answers": [{"bId": "1", "Customer": row("1", 2)}, stale]}),
            reply({"Rows": [row("2", 8)]}),
            reply({"Answers": [{"bId": "1", "Customer": row("2", 9)}]}),
        ]
    )
    results = await sent(client_of(VERSIONED, provider), "customer", write("a", "1"), write("b", "2"))
    assert [(each.version, each.error) for each in results] == [("2", None), ("9", None)]
    assert [each["Customer"]["Token"] for each in provider.body()["Items"]] == ["8"]


OUT_OF_USE = {"code": "GONE", "message": "not found or inactive"}


async def test_a_record_refused_as_gone_that_is_there_is_not_made_again() -> None:
    manifest = VERSIONED.replace("{status: 404, then: recreate}", "{code: GONE, then: recreate}")
    there = reply({"Customer": row("1", 3)})
    provider = FakeProvider([there, reply(OUT_OF_USE, 400), there])
    (result,) = await sent(client_of(manifest, provider), "customer", write("a", "1"))
    assert outcome(result) == ("a", "1", "the provider answered 400 GONE: not found or inactive")
    assert not result.retryable
    assert [call.split()[0] for call in provider.calls] == ["GET", "POST", "GET"]


async def test_of_those_a_batch_refuses_as_gone_only_the_missing_are_made_again() -> None:
    manifest = VERSIONED.replace("{status: 404, then: recreate}", "{code: GONE, then: recreate}")
    fault = {"code": "GONE", "detail": "not found or inactive"}
    provider = FakeProvider(
        [
            reply({"Rows": [row("1", 1), row("2", 1)]}),
            reply({"Answers": [{"bId": "1", "Fault": fault}, {"bId": "2", "Fault": fault}]}),
            reply({"Rows": [row("1", 1)]}),
            reply({"Customer": row("9", 0)}),
        ]
    )
    results = await sent(client_of(manifest, provider), "customer", write("a", "1"), write("b", "2"))
    assert [outcome(each) for each in results] == [
        ("a", "1", "the provider answered GONE: not found or inactive"),
        ("b", "9", None),
    ]


async def test_an_answer_that_leaves_an_item_out_is_no_success() -> None:
    provider = FakeProvider([reply({"Answers": [{"bId": "1", "Customer": row("1", 0)}]})])
    done, lost = await sent(client_of(VERSIONED, provider), "customer", write("a"), write("b"))
    assert (done.remote_id, done.error) == ("1", None)
    assert lost.error is not None
    assert (lost.retryable, lost.answered) == (True, False)


FAILURES = (
    HEAD
    + """
  member:
    id: id
    fields: {email_address: email}
    create_many:
      call: POST /members
      records: body members
      results: "[new, updated][]"
      pair_by: email_address
      failures: {records: errors, pair_by: email_address, code: error_code, message: error}
"""
)


async def test_failures_in_a_list_of_their_own_and_addresses_in_other_letters() -> None:
    answer = {
        "new": [{"id": "m3", "email_address": "cyd@x.example"}],
        "updated": [{"id": "m1", "email_address": "ada@x.example"}],
        "errors": [{"email_address": "bob@x.example", "error": "no such domain", "error_code": "ERR"}],
    }
    provider = FakeProvider([reply(answer)])
    results = await sent(
        client_of(FAILURES, provider),
        "member",
        *(write(each, email_address=f"{each}@x.example") for each in ("Ada", "bob", "cyd")),
    )
    assert [outcome(each) for each in results] == [
        ("Ada", "m1", None),
        ("bob", None, "the provider answered ERR: no such domain"),
        ("cyd", "m3", None),
    ]


async def test_records_the_answer_would_call_the_same_go_in_different_calls() -> None:
    def answer(request: httpx.Request) -> Reply:
        members = json.loads(request.content)["members"]
        return reply({"new": [{"id": f"m-{each['name']}", **each} for each in members]})

    provider = FakeProvider(answer)
    results = await sent(
        client_of(FAILURES, provider),
        "member",
        write("a", email_address="a@x.example", name="one"),
        write("b", email_address="A@x.example", name="two"),
    )
    assert [each.remote_id for each in results] == ["m-one", "m-two"]
    assert len(provider.requests) == 2


# ---- finding what is there ---------------------------------------------------------------------------

FIND = (
    HEAD
    + """
  customer:
    id: id
    deleted: gone
    fields: {name: text}
    list: {call: GET /customers, records: rows}
    find: {call: "GET /find?name={record.name}", records: rows}
    create: POST /customers
    update: PATCH /customers/{id}
    create_many: {call: POST /many, records: body, results: rows, error: code}
"""
)


class Customers:
    """A provider that refuses a second customer of a name."""

    def __init__(self, *there: Mapping[str, Any]) -> None:
        self.rows: dict[str, dict[str, Any]] = {each["id"]: dict(each) for each in there}
        self.slow = asyncio.Event()

    def make(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if any(each["name"] == body["name"] for each in self.rows.values()):
            return {"code": "TAKEN", "message": "the name is taken"}
        made = {"id": f"c{len(self.rows) + 1}", **body}
        self.rows[made["id"]] = made
        return made

    def __call__(self, request: httpx.Request) -> Reply:
        path = request.url.path
        if path == "/find":
            name = request.url.params["name"]
            return reply({"rows": [each for each in self.rows.values() if each["name"] == name]})
        body = json.loads(request.content)
        if path == "/many":
            return reply({"rows": [self.make(each) for each in body]})
        if request.method == "POST":
            made = self.make(body)
            return reply(made, 400 if "code" in made else 200)
        record = self.rows[path.rpartition("/")[2]]
        record.update(body)
        return reply(record)


def books(links: Mapping[str, str]) -> Books:
    async def linked(resource: str, ids: Sequence[str]) -> Mapping[str, str]:
        assert resource == "customer"
        return {each: links[each] for each in ids if each in links}

    return Books(linked=linked)


@pytest.mark.parametrize("together", [False, True])
async def test_a_name_that_is_taken_leads_to_the_record_that_has_it(together: bool) -> None:
    customers = Customers({"id": "c1", "name": "Ada"})
    client = client_of(FIND, FakeProvider(customers))
    writes = [write("a", name="Ada", phone="7"), *([write("b", name="Bob")] if together else [])]
    results = await sent(client, "customer", *writes, books=books({}))
    assert [(each.remote_id, each.error) for each in results] == [("c1", None), ("c2", None)][: len(writes)]
    assert customers.rows["c1"]["phone"] == "7"


@pytest.mark.parametrize(
    ("there", "links", "why"),
    [
        ([], {}, "no such record can be found"),
        (["c1", "c2"], {}, "more than one record could be it"),
        (["c1"], {"c1": "somebody"}, "it belongs to another record here already"),
    ],
)
async def test_beyond_doubt_or_not_at_all(there: list[str], links: dict[str, str], why: str) -> None:
    class Taken(Customers):
        def make(self, body: Mapping[str, Any]) -> dict[str, Any]:
            return {"code": "TAKEN", "message": "the name is taken"}

    customers = Taken(*({"id": each, "name": "Ada"} for each in there))
    client = client_of(FIND, FakeProvider(customers))
    (refused,) = await sent(client, "customer", write("a", name="Ada"), books=books(links))
    assert outcome(refused) == ("a", None, f"the provider answered 400 TAKEN: the name is taken; {why}")
    assert isinstance(refused.error, RecordRejectedError)
    assert not refused.retryable


async def test_of_several_only_the_one_that_is_free_and_not_gone() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "c1", "name": "Ada"},
        {"id": "c2", "name": "Ada", "gone": True},
        {"id": "c3", "name": "Ada"},
    ]
    client = client_of(FIND, FakeProvider(Customers(*rows)))
    (done,) = await sent(client, "customer", write("a", name="Ada"), books=books({"c1": "b"}))
    assert (done.remote_id, done.error) == ("c3", None)


async def test_a_twin_of_the_same_run_is_not_adopted_though_no_link_is_saved_yet() -> None:
    client = client_of(FIND, FakeProvider(Customers()))
    one, two = (
        WriteGroup("customer", "k1", (write("a", name="Ada"),)),
        WriteGroup("customer", "k2", (write("b", name="Ada"),)),
    )
    results = await asyncio.gather(client.send(one, books({})), client.send(two, books({})))
    made, refused = sorted((each[0] for each in results), key=lambda each: each.error is not None)
    assert made.remote_id == "c1"
    assert refused.error is not None
    assert "belongs to another record" in refused.error.message


# ---- parts -------------------------------------------------------------------------------------------

PARTS = (
    HEAD
    + """
  member:
    id: id
    fields: {name: text, tags: list}
    create: POST /members
    update: PATCH /members/{id}
    create_many: {call: POST /many, records: body, results: rows}
    parts:
      tags: {call: "POST /members/{id}/tags", body: {tags: "{{ value }}"}}
"""
)


def parts_provider(**failing: Reply) -> FakeProvider:
    def answer(request: httpx.Request) -> Reply:
        if request.url.path.endswith("/tags"):
            return failing.get("tags") or httpx.Response(204)
        if request.url.path == "/many":
            return reply({"rows": [{"id": each["name"]} for each in json.loads(request.content)]})
        return reply({"id": "m1"})

    return FakeProvider(answer)


async def test_a_part_is_written_after_its_record_and_never_with_it() -> None:
    provider = parts_provider()
    client = client_of(PARTS, provider)
    await sent(client, "member", write("a", name="Ada", tags=["vip"]))
    await sent(client, "member", write("a", "m1", name="Ada", tags=[]))
    assert [(each.method, each.url.path, json.loads(each.content)) for each in provider.requests] == [
        ("POST", "/members", {"name": "Ada"}),
        ("POST", "/members/m1/tags", {"tags": ["vip"]}),
        ("PATCH", "/members/m1", {"name": "Ada"}),
        ("POST", "/members/m1/tags", {"tags": []}),
    ]


async def test_a_new_record_has_nothing_to_clear_and_what_is_not_mapped_stays() -> None:
    provider = parts_provider()
    client = client_of(PARTS, provider)
    await sent(client, "member", write("a", name="Ada", tags=None))
    await sent(client, "member", write("b", name="Bob", tags=[]))
    await sent(client, "member", write("c", "m1", name="Cyd", tags=None))
    await sent(client, "member", write("d", "m1", name="Dan"))
    assert provider.calls == ["POST /members", "POST /members", "PATCH /members/m1", "PATCH /members/m1"]


async def test_parts_of_a_batch_are_written_one_by_one() -> None:
    provider = parts_provider()
    await sent(
        client_of(PARTS, provider),
        "member",
        write("a", name="a", tags=["x"]),
        write("b", name="b", tags=["y"]),
    )
    assert provider.calls == ["POST /many", "POST /members/a/tags", "POST /members/b/tags"]


async def test_a_part_that_fails_is_told_with_the_records_id() -> None:
    provider = parts_provider(tags=reply({"code": "NO", "message": "no such tag"}, 400))
    (failed,) = await sent(client_of(PARTS, provider), "member", write("a", name="Ada", tags=["vip"]))
    assert outcome(failed) == ("a", "m1", "the provider answered 400 NO: no such tag")
    assert not failed.retryable


# ---- jobs --------------------------------------------------------------------------------------------

JOBS = (
    HEAD
    + """
  member:
    id: id
    fields: {name: text, tags: list}
    create: POST /members
    update: PATCH /members/{id}
    write_job:
      submit: {call: POST /batches, operations: body operations, job: id}
      create:
        method: POST
        path: /members
        operation_id: "{{ number }}"
        body: "{{ record | json_text }}"
      update:
        method: PATCH
        path: "/members/{{ id }}"
        operation_id: "{{ number }}"
        body: "{{ record | json_text }}"
      poll:
        call: GET /batches/{job}
        done: status == 'finished'
        every: 5 seconds
        up_to: 20 seconds
        within: 2 minutes
      results:
        url: results_url
        format: tar_gz_json
        pair_by: operation_id
        status: status_code
        body: response
        body_is: json_text
      at_least: 2
      at_most: 3
"""
)


class Batches:
    """Works a job off in the order it likes; `outcomes` are statuses by the name of the record."""

    def __init__(self, looks: int = 2, **outcomes: tuple[int, Any]) -> None:
        self.looks = looks
        self.outcomes = outcomes
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.seen: dict[str, int] = {}
        self.downloads: list[httpx.Request] = []
        self.alone: list[str] = []
        self.expired = 0
        self.extra: Callable[[httpx.Request], Reply | None] = lambda request: None

    def __call__(self, request: httpx.Request) -> Reply:
        special = self.extra(request)
        if special is not None:
            return special
        path = request.url.path
        if request.url.host == "files.example":
            return self.download(request)
        if path == "/batches":
            name = f"job{len(self.jobs) + 1}"
            self.jobs[name] = json.loads(request.content)["operations"]
            return reply({"id": name, "status": "pending"})
        if path.startswith("/batches/"):
            name = path.rpartition("/")[2]
            self.seen[name] = self.seen.get(name, 0) + 1
            if name not in self.jobs:
                return reply({"message": "no such job"}, 404)
            if self.seen[name] < self.looks:
                return reply({"id": name, "status": "started"})
            link = f"https://files.example/{name}.tar.gz?signature=s{self.seen[name]}"
            return reply({"id": name, "status": "finished", "results_url": link})
        self.alone.append(f"{request.method} {path}")
        return reply({"id": f"alone-{json.loads(request.content)['name']}"})

    def download(self, request: httpx.Request) -> Reply:
        self.downloads.append(request)
        if self.expired:
            self.expired -= 1
            return httpx.Response(403, text="<Error>expired</Error>")
        job = self.jobs[request.url.path[1:].partition(".")[0]]
        lists = [job[1:][::-1], job[:1]]  # in another order, over two files
        return httpx.Response(200, content=self.packed(lists))

    def packed(self, lists: Sequence[Sequence[Mapping[str, Any]]]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for number, operations in enumerate(lists):
                content = json.dumps([each for each in map(self.result, operations) if each]).encode()
                entry = tarfile.TarInfo(f"./{number}.json")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return gzip.compress(raw.getvalue())

    def result(self, operation: Mapping[str, Any]) -> dict[str, Any] | None:
        name = json.loads(operation["body"])["name"]
        made = operation["path"].rpartition("/")[2] if operation["method"] == "PATCH" else f"m-{name}"
        status, response = self.outcomes.get(name, (200, {"id": made, "name": name}))
        if status == 0:
            return None
        text = json.dumps(response) if response is not None else ""
        return {"status_code": status, "operation_id": operation["operation_id"], "response": text}


async def test_a_job_is_handed_in_looked_at_and_read_operation_by_operation() -> None:
    batches, clock = Batches(looks=4, Bob=(400, {"code": "BAD", "message": "no"})), FakeClock()
    provider = FakeProvider(batches)
    results = await sent(
        client_of(JOBS, provider, clock=clock),
        "member",
        write("a", name="Ada", amount=Decimal("1.50")),
        write("b", name="Bob"),
        write("c", name="Cyd"),
    )
    assert [outcome(each) for each in results] == [
        ("a", "m-Ada", None),
        ("b", None, "the provider answered 400 BAD: no"),
        ("c", "m-Cyd", None),
    ]
    assert batches.jobs["job1"][0] == {
        "method": "POST",
        "path": "/members",
        "operation_id": "1",
        "body": '{"name":"Ada","amount":1.50}',
    }
    assert clock.slept == [5] * 11  # 5, 10, 20, 20, in naps that a stop can end
    (download,) = batches.downloads
    assert "Authorization" not in download.headers
    assert batches.alone == []


async def test_too_few_for_a_job_are_written_in_the_ordinary_way_and_so_is_the_rest_of_many() -> None:
    batches = Batches()
    client = client_of(JOBS, FakeProvider(batches))
    await sent(client, "member", write("a"))
    assert (batches.jobs, batches.alone) == ({}, ["POST /members"])
    results = await sent(client, "member", *(write(each) for each in "abcdefg"))
    assert [len(each) for each in batches.jobs.values()] == [3, 3]
    assert [each.remote_id for each in results] == ["m-a", "m-b", "m-c", "m-d", "m-e", "m-f", "alone-g"]


async def test_an_update_without_a_body_in_its_answer_is_done() -> None:
    client = client_of(JOBS, FakeProvider(Batches(a=(204, None))))
    results = await sent(client, "member", write("a", "r1"), write("b", "r2"))
    assert [outcome(each) for each in results] == [("a", "r1", None), ("b", "r2", None)]


async def test_what_a_job_cannot_settle_is_written_by_itself() -> None:
    """Failures that may pass, and records that are gone or there already, take a call of their own."""
    batches = Batches(a=(503, None), b=(404, {"message": "gone"}))
    results = await sent(client_of(JOBS, FakeProvider(batches)), "member", write("a", "r1"), write("b", "r2"))
    assert batches.alone == ["PATCH /members/r1", "PATCH /members/r2"]
    assert [each.error for each in results] == [None, None]


async def test_a_link_that_ran_out_is_asked_for_anew() -> None:
    batches = Batches(looks=1)
    batches.expired = 1
    results = await sent(client_of(JOBS, FakeProvider(batches)), "member", write("a"), write("b"))
    assert [each.remote_id for each in results] == ["m-a", "m-b"]
    assert [each.url.params["signature"] for each in batches.downloads] == ["s1", "s2"]


async def test_the_jobs_name_is_kept_before_it_is_looked_at_and_leads_back_to_it() -> None:
    batches = Batches(looks=1)
    kept: list[tuple[str, str, int]] = []

    async def submitted(group: WriteGroup, job: str) -> None:
        kept.append((group.key, job, sum(batches.seen.values())))
        raise StoppedError("killed")  # as if the process died right here

    client = client_of(JOBS, FakeProvider(batches))
    (group,) = client.plan("member", [write("a"), write("b")])
    with pytest.raises(StoppedError):
        await client.send(group, Books(submitted=submitted))
    assert kept == [(group.key, "job1", 0)]
    resumed = WriteGroup(group.resource, group.key, group.writes, job="job1")
    clock = FakeClock()
    results = await client_of(JOBS, FakeProvider(batches), clock=clock).send(resumed)
    assert [each.remote_id for each in results] == ["m-a", "m-b"]
    assert (len(batches.jobs), clock.slept) == (1, [])


async def test_a_job_that_takes_too_long_stays_open() -> None:
    batches, clock = Batches(looks=1000), FakeClock()
    results = await sent(
        client_of(JOBS, FakeProvider(batches), clock=clock), "member", write("a"), write("b")
    )
    assert [(type(each.error), each.retryable, each.answered) for each in results] == [
        (results[0].error.__class__, True, False)
    ] * 2
    assert isinstance(results[0].error, UnavailableError)
    assert 100 <= clock.seconds <= 145


async def test_waiting_ends_when_the_run_is_stopped() -> None:
    clock = FakeClock()
    client = client_of(JOBS, FakeProvider(Batches(looks=1000)), clock=clock)
    with pytest.raises(StoppedError):
        await sent(client, "member", write("a"), write("b"), books=Books(stopped=lambda: clock.seconds >= 30))
    assert clock.seconds == 30


@pytest.mark.parametrize("lost", ["unknown", "unreadable", "left out"])
async def test_a_job_whose_results_are_lost_is_announced_anew(lost: str) -> None:
    batches = Batches(looks=1, **({"a": (0, None)} if lost == "left out" else {}))
    client = client_of(JOBS, FakeProvider(batches))
    (group,) = client.plan("member", [write("a"), write("b")])
    if lost == "unknown":
        group = WriteGroup(group.resource, group.key, group.writes, job="job9")
    if lost == "unreadable":
        batches.extra = lambda each: (
            httpx.Response(200, text="?") if each.url.host == "files.example" else None
        )
    results = await client.send(group)
    failed = results[:1] if lost == "left out" else results
    assert all(each.error is not None and each.retryable and each.answered for each in failed)
    if lost == "left out":
        assert (results[1].remote_id, results[1].error) == ("m-b", None)


async def test_a_job_that_is_refused_as_a_whole_is_written_in_the_ordinary_way() -> None:
    batches = Batches()
    batches.extra = lambda each: reply({"code": "BAD"}, 400) if each.url.path == "/batches" else None
    results = await sent(client_of(JOBS, FakeProvider(batches)), "member", write("a"), write("b"))
    assert [each.remote_id for each in results] == ["alone-a", "alone-b"]


async def test_a_refusal_to_say_how_far_a_job_is_ends_the_run_and_leaves_it_open() -> None:
    batches = Batches()
    batches.extra = lambda each: reply({"code": "NO"}, 403) if re.match("/batches/", each.url.path) else None
    with pytest.raises(ProviderError):
        await sent(client_of(JOBS, FakeProvider(batches)), "member", write("a"), write("b"))


@pytest.mark.parametrize(
    "address", ["", "file:///etc/passwd", "https://me:secret@files.example/a", "no address"]
)
async def test_results_are_fetched_from_addresses_only(address: str) -> None:
    batches = Batches()
    batches.extra = lambda each: (
        reply({"status": "finished", "results_url": address})
        if each.url.path.startswith("/batches/")
        else None
    )
    provider = FakeProvider(batches)
    results = await sent(client_of(JOBS, provider), "member", write("a"), write("b"))
    assert all(each.error is not None and each.retryable for each in results)
    assert batches.downloads == []


async def test_results_may_be_in_the_last_answer_itself() -> None:
    manifest = JOBS.replace(
        "        url: results_url\n        format: tar_gz_json\n", "        records: rows\n"
    )
    batches = Batches()
    rows = [
        {"operation_id": "2", "status_code": 200, "response": '{"id": "m2"}'},
        {"operation_id": "1", "status_code": 200, "response": '{"id": "m1"}'},
    ]
    batches.extra = lambda each: (
        reply({"status": "finished", "rows": rows}) if each.url.path.startswith("/batches/") else None
    )
    results = await sent(client_of(manifest, FakeProvider(batches)), "member", write("a"), write("b"))
    assert [each.remote_id for each in results] == ["m1", "m2"]


async def test_a_job_of_updates_whose_record_is_gone_can_still_look_for_it() -> None:
    manifest = JOBS.replace(
        "    create: POST /members\n",
        "    version: version\n    updates: versioned\n"
        "    get_many: {call: GET /some, ids: query ids, records: rows}\n"
        '    find: {call: "GET /find?name={record.name}", records: rows}\n'
        "    create: POST /members\n",
    ).replace("PATCH /members/{id}", '{call: "PATCH /members/{id}", body: {v: "{{ version }}"}}')
    manifest = manifest.replace(
        '        path: "/members/{{ id }}"', '        path: "/members/{{ id }}"\n        v: "{{ version }}"'
    )
    there = {"id": "r9", "name": "gone", "version": 1}
    batches = Batches(looks=1)

    def extra(request: httpx.Request) -> Reply | None:
        path = request.url.path
        if path == "/some":
            rows = [{"id": "r1", "version": 4}, {"id": "r2", "version": 5}, there]
            asked = request.url.params.get_list("ids")
            return reply({"rows": [each for each in rows if each["id"] in asked]})
        if path == "/find":
            return reply({"rows": [there]})
        return reply({"code": "TAKEN"}, 400) if (request.method, path) == ("POST", "/members") else None

    batches.extra = extra
    results = await asyncio.wait_for(
        sent(
            client_of(manifest, FakeProvider(batches)), "member",
            write("a", "r1"), write("b", "r2"), write("c", "lost", name="gone"),
        ),
        timeout=5,
    )  # fmt: skip
    assert [(each.remote_id, each.error) for each in results] == [("r1", None), ("r2", None), ("r9", None)]
    assert [each["v"] for each in batches.jobs["job1"]] == [4, 5]
