"""Archiving and deleting single records: by a call, by an update, and when the record is gone already."""

from __future__ import annotations

import pytest

from engine.documents import read_document
from engine.errors import ManifestError, RecordRejectedError
from engine.manifest import compile_platform, parse_share
from tests.fakes import FakeProvider, client_of, reply

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
    - {status: 404, then: recreate}
resources:
"""
BY_CALL = f"""{HEAD}
  item:
    id: id
    version: version
    fields: {{name: text}}
    get: GET /items/{{id}}
    archive:
      call: POST /items/archive
      body: {{id: "{{{{ id }}}}", version: "{{{{ version }}}}", name: "{{{{ record.name }}}}"}}
    delete: DELETE /items/{{id}}
"""
BY_UPDATE = f"""{HEAD}
  item:
    id: id
    fields: {{name: text, active: boolean}}
    create: POST /items
    update: {{call: "POST /items/{{id}}", idempotency_key: header Key}}
    archive: {{set: {{active: false}}}}
"""
WHOLE = f"""{HEAD}
  item:
    id: id
    version: version
    updates: whole
    fields: {{name: text, data.archived: boolean}}
    get_many: {{call: POST /items/get, ids: body ids, records: items}}
    write_many: {{call: POST /items, records: body items, results: items, pair_by: id}}
    archive: {{set: {{data.archived: true}}}}
"""
GONE = reply({"code": "GONE", "message": "no such item"}, 404)
REFUSED = reply({"code": "IN_USE", "message": "still in use"}, 400)


async def test_a_call_sees_the_record_as_it_is_there() -> None:
    provider = FakeProvider([reply({"id": "i1", "version": 3, "name": "Ñandú"}), reply({})])
    await client_of(BY_CALL, provider).archive("item", "i1", "k")
    assert provider.calls == ["GET /items/i1", "POST /items/archive"]
    assert provider.body() == {"id": "i1", "version": 3, "name": "Ñandú"}


async def test_a_version_that_was_stale_is_read_again() -> None:
    provider = FakeProvider(
        [
            reply({"id": "i1", "version": 3, "name": "N"}),
            reply({"code": "STALE"}, 409),
            reply({"id": "i1", "version": 4, "name": "N"}),
            reply({}),
        ]
    )
    await client_of(BY_CALL, provider).archive("item", "i1", "k")
    assert provider.body()["version"] == 4


async def test_deleting_is_one_call_after_a_look() -> None:
    provider = FakeProvider([reply({"id": "i1"}), reply(None)])
    await client_of(BY_CALL, provider).delete("item", "i1")
    assert provider.calls == ["GET /items/i1", "DELETE /items/i1"]


@pytest.mark.parametrize("gone_at", [0, 1])
async def test_what_is_gone_already_is_done(gone_at: int) -> None:
    provider = FakeProvider([*[reply({"id": "i1"})] * gone_at, GONE])
    client = client_of(BY_CALL, provider)
    await client.delete("item", "i1")
    assert len(provider.requests) == gone_at + 1


async def test_a_refusal_says_why() -> None:
    provider = FakeProvider([reply({"id": "i1"}), REFUSED])
    with pytest.raises(RecordRejectedError, match="still in use"):
        await client_of(BY_CALL, provider).delete("item", "i1")


async def test_values_are_set_by_an_ordinary_update_under_its_key() -> None:
    provider = FakeProvider([reply({"id": "i1", "active": False})] * 3)
    client = client_of(BY_UPDATE, provider)
    for key in ("k", "k", "later"):
        await client.archive("item", "i1", key)
    assert provider.calls == ["POST /items/i1"] * 3
    assert provider.body() == {"active": False}
    first, again, later = (request.headers["Key"] for request in provider.requests)
    assert first == again
    assert later != first


async def test_an_update_to_archive_never_makes_the_record_anew() -> None:
    provider = FakeProvider([GONE])
    await client_of(BY_UPDATE, provider).archive("item", "i1", "k")
    assert provider.calls == ["POST /items/i1"]


async def test_whole_records_are_archived_with_all_they_hold() -> None:
    there = {"id": "i1", "version": 3, "name": "N", "data": {"colour": "red"}}
    after = {**there, "version": 4, "data": {"colour": "red", "archived": True}}
    provider = FakeProvider([reply({"items": [there]}), reply({"items": [after]})])
    await client_of(WHOLE, provider).archive("item", "i1", "k")
    assert provider.body()["items"] == [{**there, "data": {"colour": "red", "archived": True}}]


async def test_what_is_archived_already_costs_no_write() -> None:
    there = {"id": "i1", "version": 3, "data": {"archived": True}}
    provider = FakeProvider([reply({"items": [there]})])
    await client_of(WHOLE, provider).archive("item", "i1", "k")
    assert provider.calls == ["POST /items/get"]


async def test_a_whole_record_that_is_gone_is_not_made_anew() -> None:
    provider = FakeProvider([reply({"items": []})])
    await client_of(WHOLE, provider).archive("item", "i1", "k")
    assert provider.calls == ["POST /items/get"]


async def test_a_resource_without_the_operation_is_the_manifests_fault() -> None:
    client = client_of(BY_UPDATE, FakeProvider([]))
    with pytest.raises(ManifestError, match="has no `delete`"):
        await client.delete("item", "i1")


def test_a_platform_may_mark_rows_as_deleted() -> None:
    platform = """
platform: 1
name: demo
title: Demo
entities:
  event:
    table: t.events
    key: id
    venue: venue_id
    changed_at: updated_at
    deleted: erased_at != null
    fields: {erased_at: timestamp}
"""
    deleted = compile_platform(read_document(platform, file="platform.yaml")).entities["event"].deleted
    assert deleted is not None
    assert [deleted.evaluate({"erased_at": at}) for at in (None, "2026-01-01T00:00:00Z")] == [False, True]


@pytest.mark.parametrize(("text", "share"), [("10 percent", 0.1), ("0 percent", 0.0), ("100 percent", 1.0)])
def test_shares_are_read(text: str, share: float) -> None:
    assert parse_share(text) == share


IN_THE_WAY = f"""{HEAD}
  price:
    id: id
    fields: {{product: id, active: boolean}}
    get: GET /prices/{{id}}
    create: POST /prices
    update: {{call: "POST /prices/{{id}}", idempotency_key: header Key}}
    archive:
      set: {{active: false}}
      if_refused:
        - {{call: "POST /products/{{record.product}}", body: {{default: ""}}}}
"""
DEFAULT = {"code": "NO", "message": "it is the default of its product"}


async def test_what_stands_in_the_way_of_a_refused_one_is_taken_away() -> None:
    there = reply({"id": "p1", "product": "prod 1"})
    provider = FakeProvider([reply(DEFAULT, 400), there, reply({}), reply({"id": "p1"})])
    await client_of(IN_THE_WAY, provider).archive("price", "p1", "key1")
    assert provider.calls == [
        "POST /prices/p1",
        "GET /prices/p1",
        "POST /products/prod%201",
        "POST /prices/p1",
    ]
    assert provider.body(2) == {"default": ""}
    assert provider.body(0) == provider.body(3) == {"active": False}
    first, second = (provider.requests[at].headers["Key"] for at in (0, 3))
    assert first != second  # a provider may answer as before under the same key


async def test_what_is_not_refused_needs_no_more_and_is_tried_once_more_only() -> None:
    provider = FakeProvider([reply({"id": "p1"})])
    await client_of(IN_THE_WAY, provider).archive("price", "p1", "key1")
    assert provider.calls == ["POST /prices/p1"]
    there = reply({"id": "p1", "product": "prod"})
    provider = FakeProvider([reply(DEFAULT, 400), there, reply({}), reply(DEFAULT, 400)])
    with pytest.raises(RecordRejectedError, match="default of its product"):
        await client_of(IN_THE_WAY, provider).archive("price", "p1", "key1")
