"""Splitting records into calls, the keys calls go under, and pairing answers back."""

import re
from typing import Any

import pytest

from engine.batching import (
    ItemResult,
    Sent,
    Write,
    WriteGroup,
    batch_spec,
    content_key,
    derived_key,
    fitting,
    group_key,
    halves,
    pair_results,
    sent_key,
    split,
)
from engine.calls import Place
from engine.errors import ManifestError, UnexpectedResponseError
from engine.manifest import IdempotencyKey, Resource, WriteManySpec
from tests.fakes import connector_of


def resource_of(keys: str) -> Resource:
    return connector_of(
        f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example}}
auth: {{type: none}}
check: GET /me
resources:
  item:
    id: id
    fields: {{id: id, name: text, parts: list}}
    get: GET /items/{{id}}
{keys}
"""
    ).resources["item"]


def new(number: int) -> Write:
    return Write(f"l{number}", None, {"name": f"n{number}"}, f"k{number}")


def old(number: int) -> Write:
    return Write(f"l{number}", f"r{number}", {"name": f"n{number}"}, f"k{number}")


def shape(groups: list[WriteGroup]) -> list[tuple[str, list[str]]]:
    return [(group.kind, [write.local_id for write in group.writes]) for group in groups]


SINGLE = "    create: POST /items\n    update: PUT /items/{id}\n"
MANY = "    write_many: {call: POST /items/batch, records: body items, results: items, at_most: 2}\n"

# --------------------------------------------------------------------------------------------- split


def test_without_a_batch_call_each_record_goes_alone() -> None:
    groups = split(resource_of(SINGLE), [new(1), old(2), new(3)])
    assert shape(groups) == [("create", ["l1"]), ("create", ["l3"]), ("update", ["l2"])]
    assert [group.key for group in groups] == ["k1", "k3", "k2"]


def test_creates_and_updates_never_share_a_call() -> None:
    groups = split(resource_of(MANY), [new(1), old(2), new(3), old(4), new(5)])
    assert shape(groups) == [("create", ["l1", "l3"]), ("create", ["l5"]), ("update", ["l2", "l4"])]


def test_the_same_writes_give_the_same_groups_and_keys() -> None:
    resource, writes = resource_of(MANY), [new(1), new(2), new(3)]
    assert split(resource, writes) == split(resource, list(writes))


def test_keys_of_groups_differ_with_their_records_and_order() -> None:
    keys = {
        group_key([new(1), new(2)]),
        group_key([new(2), new(1)]),
        group_key([new(1)]),
        group_key([new(1), new(3)]),
    }
    assert len(keys) == 4


def test_a_batch_is_cut_by_weight() -> None:
    resource = resource_of(
        """    write_many:
      call: POST /items/batch
      records: body items
      results: items
      at_most: 5
      weight: "sum([`1`, length(parts)])"
"""
    )
    writes = [
        Write(f"l{n}", None, {"parts": ["p"] * parts}, f"k{n}") for n, parts in enumerate([1, 2, 3, 9, 0])
    ]
    # Weights 2, 3, 4, 10, 1: the one that is too heavy for any batch goes alone, for the provider to judge.
    assert shape(split(resource, writes)) == [
        ("create", ["l0", "l1"]),
        ("create", ["l2"]),
        ("create", ["l3"]),
        ("create", ["l4"]),
    ]


def test_a_weight_that_is_no_number_is_the_manifests_fault() -> None:
    resource = resource_of(MANY.replace("at_most: 2", "at_most: 2, weight: name"))
    with pytest.raises(ManifestError):
        split(resource, [new(1)])


def test_a_record_is_not_batched_when_a_field_of_it_can_not_change() -> None:
    resource = resource_of(SINGLE + MANY + "    immutable: [name]\n")
    assert shape(split(resource, [old(1), old(2), new(3), new(4)])) == [
        ("create", ["l3", "l4"]),
        ("update", ["l1"]),
        ("update", ["l2"]),
    ]


def test_a_call_that_is_missing_is_named() -> None:
    with pytest.raises(ManifestError, match="`item` has no call to update a record"):
        split(resource_of("    create: POST /items\n"), [old(1)])


def test_one_record_alone_takes_the_single_call_when_there_is_one() -> None:
    resource = resource_of(SINGLE + MANY)
    assert batch_spec(resource, "create", 1) is None
    assert batch_spec(resource, "create", 2) is not None
    assert batch_spec(resource_of(MANY), "create", 1) is not None


# ---------------------------------------------------------------------------------------------- keys


def test_a_key_that_fits_is_sent_as_it_is() -> None:
    assert sent_key("k" * 45, IdempotencyKey(Place.parse("header K"), 45)) == "k" * 45


def test_a_key_that_is_too_long_is_hashed_not_cut() -> None:
    limit = IdempotencyKey(Place.parse("header K"), 45)
    one, other = sent_key("k" * 64 + "1", limit), sent_key("k" * 64 + "2", limit)
    assert len(one) == len(other) == 45
    assert one != other
    assert re.fullmatch("[0-9a-f]+", one)


def test_derived_keys_depend_on_all_they_are_derived_from() -> None:
    keys = {
        derived_key("k", "half 0"),
        derived_key("k", "half 1"),
        derived_key("j", "half 0"),
        content_key("k", {"a": 1}),
        content_key("k", {"a": 2}),
        content_key("j", {"a": 1}),
    }
    assert len(keys) == 6
    assert content_key("k", {"a": 1}) == content_key("k", {"a": 1})


def test_halves_carry_keys_of_the_batch_alone() -> None:
    items: list[tuple[Write, dict[str, Any]]] = [(new(n), {}) for n in range(3)]
    first, second = halves(items, "batch")
    assert [write.local_id for write, _ in first[0]] == ["l0"]
    assert [write.local_id for write, _ in second[0]] == ["l1", "l2"]
    again = [(Write(write.local_id, None, {}, "another key"), body) for write, body in items]
    assert [key for _, key in halves(again, "batch")] == [first[1], second[1]]


# ------------------------------------------------------------------------------------------- pairing


def many(keys: str) -> tuple[WriteManySpec, Resource]:
    resource = resource_of(f"    write_many: {{call: POST /items/batch, records: body items, {keys}}}\n")
    assert resource.write_many is not None
    return resource.write_many, resource


def paired(keys: str, sent: list[tuple[str, str | None]], body: Any) -> list[ItemResult]:
    return pair_results(*many(keys), [Sent(*each) for each in sent], body)


def test_pairs_by_order() -> None:
    body = {"items": [{"id": "r1"}, {"id": "r2"}]}
    assert paired("results: items", [("a", None), ("b", None)], body) == [
        ItemResult({"id": "r1"}, "r1"),
        ItemResult({"id": "r2"}, "r2"),
    ]


@pytest.mark.parametrize("body", [{"items": [{"id": "r1"}]}, {"items": None}, {}, {"items": {"id": "r1"}}])
def test_an_answer_of_another_length_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedResponseError):
        paired("results: items", [("a", None), ("b", None)], body)


KEYED = "by_key: idempotency_key, results: responses, result: item, error: errors"


def test_pairs_by_key_with_errors_of_single_records() -> None:
    bad = {"errors": [{"code": "INVALID"}]}
    body = {"responses": {"b": bad, "a": {"item": {"id": "r1"}}, "c": {"item": {"id": "r3"}, "errors": []}}}
    assert paired(KEYED, [("a", None), ("b", None), ("c", None), ("d", None)], body) == [
        ItemResult({"id": "r1"}, "r1"),
        ItemResult(failed=bad),
        ItemResult({"id": "r3"}, "r3"),
        ItemResult(missing=True),
    ]


def test_a_list_where_a_map_was_due_is_refused() -> None:
    with pytest.raises(UnexpectedResponseError):
        paired(KEYED, [("a", None)], {"responses": []})


RENAMED = "results: items, pair_by: id, new_ids: {records: ids, sent: client, given: real}"


def test_pairs_by_id_in_any_order_under_new_ids() -> None:
    body = {
        "items": [{"id": "r2"}, {"id": "r9"}, {"id": "r1"}],
        "ids": [
            {"client": "#a", "real": "r1"},
            {"client": "#a-0", "real": "v1"},
            {"client": "#b", "real": "r2"},
        ],
    }
    assert paired(RENAMED, [("#a", None), ("#b", None), ("r9", "r9"), ("r7", "r7")], body) == [
        ItemResult({"id": "r1"}, "r1"),
        ItemResult({"id": "r2"}, "r2"),
        ItemResult({"id": "r9"}, "r9"),
        ItemResult(remote_id="r7", missing=True),
    ]


def test_pairs_by_id_without_new_ids() -> None:
    assert paired(RENAMED, [("r1", "r1")], {"items": [{"id": "r1"}]}) == [ItemResult({"id": "r1"}, "r1")]


def test_fitting_keeps_order_and_loses_nothing() -> None:
    spec, _ = many("results: items, at_most: 3")
    items: list[tuple[Write, dict[str, Any]]] = [(new(n), {}) for n in range(8)]
    batches = list(fitting(spec, items))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert [item for batch in batches for item in batch] == items
