"""What is sent: texts as long as they may be, and whether anything would change."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from engine.bodies import (
    TooLongError,
    final_body,
    fitted,
    holds,
    limited_fields,
    new_body,
    not_in_updates,
    own_id,
    parts_of,
    renamed,
    without,
)
from engine.expressions import Expression, Path, Template
from engine.fields import Field, FieldCatalog
from engine.manifest import ListPart, Resource

FIELDS = FieldCatalog(
    {
        "name": Field("name", at_most=5),
        "notes[0].text": Field("notes[0].text", at_most=4, too_long="cut"),
        "read": Field("read", at_most=1, read_only=True),
        "free": Field("free"),
    }
)


def resource(updates: Any) -> Resource:
    return Resource(name="item", id=Path.parse("id"), fields=FIELDS, updates=updates)


def test_a_text_of_just_the_length_is_sent_as_it_is() -> None:
    body = {"name": "ábcde", "notes": [{"text": "abcd"}], "read": "long", "free": "x" * 9000}
    assert fitted(body, limited_fields(FIELDS)) == (body, [])


def test_a_longer_text_is_refused_by_field_and_limit_without_its_content() -> None:
    with pytest.raises(TooLongError) as refused:
        fitted({"name": "secret"}, limited_fields(FIELDS))
    assert refused.value.message == "`name` takes at most 5 characters, and has 6"
    assert refused.value.field == "name"


def test_or_cut_where_the_manifest_says_so_and_the_platforms_record_stays() -> None:
    notes = [{"text": "abcdefg"}]
    body, cut = fitted({"notes": notes}, limited_fields(FIELDS))
    assert (body, cut) == ({"notes": [{"text": "abcd"}]}, ["notes[0].text"])
    assert notes == [{"text": "abcdefg"}]


@pytest.mark.parametrize(
    ("there", "wanted", "held"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 19.99}, {"a": Decimal("19.990")}, True),
        ({"a": 20}, {"a": Decimal("20.00")}, True),
        ({"a": 0.1}, {"a": Decimal("0.10000000000000001")}, False),
        ({}, {"a": None}, True),
        ({}, {"a": {"b": None}}, True),
        ({"a": "x"}, {"a": None}, False),
        ({"a": "x"}, {"a": {"b": "x"}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"l": [{"x": 1, "id": 7}]}, {"l": [{"x": 1}]}, True),
        ({"l": [{"x": 1}]}, {"l": [{"x": 1}, {"x": 2}]}, False),
        ({"l": [{"x": 1}, {"x": 2}]}, {"l": [{"x": 1}]}, False),
        ({"l": ["a"]}, {"l": ["a"]}, True),
        ({"l": "a"}, {"l": ["a"]}, False),
    ],
)
def test_whether_sending_the_mapped_fields_would_change_nothing(there: Any, wanted: Any, held: bool) -> None:
    assert holds(resource("versioned"), there, wanted) is held


def test_a_whole_record_that_leaves_something_out_changes_it() -> None:
    there = {"a": Decimal("5.00"), "b": {"c": 1}, "gone": None}
    assert holds(resource("whole"), there, {"a": 5, "b": {"c": 1}})
    assert not holds(resource("whole"), there, {"a": 5})


# ---- lists of records


MADE = {"type": Template.compile("PART"), "id": Template.compile("#{{ key }}-{{ number }}")}
WITH_PARTS = replace(
    resource("whole"),
    lists={
        "parts": ListPart(
            Path.parse("parts"),
            Path.parse("data.ours"),
            {**MADE, "data.of": Template.compile("{{ id | default('#' ~ key) }}")},
            (Path.parse("data.place"),),
        )
    },
    leave_out=(Path.parse("at"), Path.parse("data.text")),
)


def test_a_new_record_has_nothing_to_clear() -> None:
    body: dict[str, Any] = {
        "name": "",
        "note": None,
        "address": {"city": None, "geo": {"lat": None}},
        "tags": [],
        "rows": [{}],
    }
    assert new_body(resource("sparse"), body, {}, {}) == {"name": "", "rows": [{}]}


def test_each_item_of_a_new_record_gets_what_a_new_one_needs() -> None:
    body = {"parts": [{"data": {"ours": "a", "note": None}}, {"type": "OTHER", "data": {"ours": "b"}}]}
    assert new_body(WITH_PARTS, body, {}, {"key": "k"}) == {
        "parts": [
            {"type": "PART", "id": "#k-0", "data": {"ours": "a", "of": "#k"}},
            {"type": "OTHER", "id": "#k-1", "data": {"ours": "b", "of": "#k"}},
        ]
    }


def test_items_are_paired_by_our_id_wherever_they_are() -> None:
    current = {
        "at": "yesterday",
        "data": {"text": "x", "name": "n"},
        "parts": [
            {"id": "P1", "version": 3, "data": {"ours": "a", "price": 1, "place": 0}},
            {"id": "P2", "data": {"ours": "gone", "place": 1}},
            {"id": "P3", "data": {"price": 9, "place": 2}},
        ],
    }
    body = {"parts": [{"data": {"ours": "b"}}, {"data": {"ours": "a", "price": 2}}]}
    final = final_body(WITH_PARTS, body, current, {"key": "k", "id": "I1"})
    assert final == {
        "data": {"name": "n"},
        "parts": [
            {"id": "P1", "version": 3, "data": {"ours": "a", "price": 2}},
            {"id": "P3", "data": {"price": 9}},
            {"type": "PART", "id": "#k-3", "data": {"ours": "b", "of": "I1"}},
        ],
    }
    assert not holds(WITH_PARTS, current, final)


def test_a_list_that_lost_an_item_has_changed_and_an_equal_one_in_another_order_has_not() -> None:
    current = {
        "at": "now",
        "parts": [{"id": "P1", "data": {"ours": "a"}}, {"id": "P2", "data": {"ours": "b"}}],
    }
    fewer = final_body(WITH_PARTS, {"parts": [{"data": {"ours": "b"}}]}, current, {})
    assert fewer == {"parts": [{"id": "P2", "data": {"ours": "b"}}]}
    assert not holds(WITH_PARTS, current, fewer)
    turned = {"parts": [{"data": {"ours": "b"}}, {"data": {"ours": "a"}}]}
    assert holds(WITH_PARTS, current, final_body(WITH_PARTS, turned, current, {}))


def test_a_list_that_is_not_mapped_stays() -> None:
    current = {"name": "x", "parts": [{"id": "P2", "data": {"ours": "b"}}]}
    assert final_body(WITH_PARTS, {"name": "y"}, current, {}) == {**current, "name": "y"}


def test_a_call_may_know_a_field_by_another_name() -> None:
    body = {"first": {"status": "in", "kept": 1}, "name": "Ada"}
    renames = [
        (Path.parse("first.status"), Path.parse("status")),
        (Path.parse("absent"), Path.parse("other")),
    ]
    assert renamed(body, renames) == {"first": {"kept": 1}, "name": "Ada", "status": "in"}
    assert body["first"] == {"status": "in", "kept": 1}


def test_two_fields_may_change_names() -> None:
    swapped = [(Path.parse("a"), Path.parse("b")), (Path.parse("b"), Path.parse("a"))]
    assert renamed({"a": 1, "b": 2}, swapped) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"name": "Ada"}, "ada"),
        ({"name": "Ada", "id": "m1"}, "m1"),
        ({"note": "Ada"}, None),
        ({"name": ""}, None),
    ],
)
def test_an_id_may_follow_from_the_content(body: Any, found: str | None) -> None:
    follows = Expression.compile("{{ record.name | lower }}")
    assert own_id(replace(resource("sparse"), own_id=follows), body) == found


def test_without_a_word_of_it_no_id_follows() -> None:
    assert own_id(resource("sparse"), {"name": "Ada"}) is None


def test_a_field_that_only_calls_see_is_in_no_body() -> None:
    fields = FieldCatalog({"shop": Field("shop", "id", sent=False), "name": Field("name")})
    made = replace(resource("sparse"), fields=fields)
    body = {"shop": "s1", "name": "Gala"}
    assert without(body, parts_of(made)) == {"name": "Gala"}
    assert without(body, not_in_updates(made)) == {"name": "Gala"}
