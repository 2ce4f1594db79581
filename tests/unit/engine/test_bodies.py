"""What is sent: texts as long as they may be, and whether anything would change."""

from decimal import Decimal
from typing import Any

import pytest

from engine.bodies import TooLongError, fitted, holds, limited_fields
from engine.expressions import Path
from engine.fields import Field, FieldCatalog
from engine.manifest import Resource

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
