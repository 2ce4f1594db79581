"""What is kept of records: types and shapes, and nothing of their values."""

from decimal import Decimal
from typing import Any

import pytest

from engine.observing import (
    MOST_FIELDS,
    MOST_REFUSED,
    Sighting,
    family,
    observe,
    path_meant,
    shape_of,
    type_of_values,
)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("ann@example.com", "email"),
        ("https://example.com/a", "url"),
        ("2025-01-31T10:00:00Z", "iso-time"),
        ("2025-01-31", "iso-date"),
        ("19:30", "clock-time"),
        ("0123456789", "digits(10)"),
        ("7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f", "uuid"),
        ("+1 555 010 0000", "phone"),
        ("12.50", "decimal text"),
        ("true", "truth text"),
        ("#ff0000", "hex-colour"),
        ("cus_NffrFeUfNV2Hib", "prefixed id"),
        ("USD", "upper code"),
        ("on_sale", "word"),
        ("Jazz Night", "short text"),
        ("a " * 50, "long text"),
        ("<p>Hello</p>", "markup"),
        (1735689600, "unix-time"),
        (42, "number"),
        (1.5, "fraction"),
        (Decimal("1.5"), "fraction"),
        (True, None),
        (None, None),
        ("", None),
        ([1], None),
    ],
)
def test_shapes(value: Any, shape: str | None) -> None:
    assert shape_of(value) == shape


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("String", "text"),
        ("number", "decimal"),
        ("date-time", "timestamp"),
        ("array", "list"),
        ("bool", "boolean"),
        ("money", "money"),
        ("", "any"),
        (None, "any"),
    ],
)
def test_words_for_types(word: str | None, ours: str) -> None:
    assert family(word) == ours


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a@b.example", "c@d.example"], "email"),
        (["a@b.example", "nobody"], "text"),
        ([1, 2.5], "decimal"),
        ([1, "a"], "any"),
        ([None, ""], "any"),
        ([True, None], "boolean"),
    ],
)
def test_the_type_that_fits_all_values(values: list[Any], expected: str) -> None:
    assert type_of_values(values) == expected


def test_records_are_counted_and_not_kept() -> None:
    seen = observe(
        [
            {"email": "ann@example.com", "address": {"city": "Lyon"}, "lines": [{"n": 1}, {"n": 2}]},
            {"email": None, "address": {"city": None}, "lines": []},
        ]
    )
    assert set(seen) == {"email", "address", "address.city", "lines", "lines[0].n"}
    email = seen["email"]
    assert (email.seen, email.nulls, email.null_share, email.types) == (2, 1, 0.5, {"text": 1})
    assert email.shapes == {"email": 1}
    assert (seen["lines[0].n"].seen, seen["lines[0].n"].types) == (1, {"integer": 1})
    assert "Lyon" not in repr(seen)


def test_a_record_with_made_up_names_is_bounded() -> None:
    assert len(observe([{f"day-{n}": n for n in range(MOST_FIELDS + 50)}])) == MOST_FIELDS


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("item_data.name", "item_data.name"),
        ("object.item_data.name", "item_data.name"),
        ("objects[3].item_data.name", "item_data.name"),
        ("/data/ship_to", "ship_to"),
        ("ShIp_To", "ship_to"),
        ("category[name]", "category.name"),
        ("title", "category.title"),
        ("name", None),  # which of them?
        ("customers.b2c3.nothing", None),
        ("", None),
    ],
)
def test_what_a_provider_complains_of_is_found_in_what_was_sent(named: str, meant: str | None) -> None:
    sent = ["item_data.name", "item_data.variations[0].name", "category.name", "category.title", "ship_to"]
    assert path_meant(named, sent) == meant


def test_complaints_are_bounded() -> None:
    sighting = Sighting()
    for number in range(MOST_REFUSED + 1):
        sighting.refuse(f"field_{number}")
    sighting.refuse("x" * 501)
    sighting.refuse("a\x00b")
    assert len(sighting.refused) == MOST_REFUSED
