"""Which values of a person's own a field takes, and how they are kept."""

from typing import Any

import pytest

from engine.fields import Field
from server.errors import InvalidRequestError
from server.services.conflicts import value_of


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        (Field("a"), "Zoë", "Zoë"),
        (Field("a"), "", ""),
        (Field("a"), None, None),
        (Field("a", "money"), 12.5, "12.5"),
        (Field("a", "money"), "12.50", "12.5"),
        (Field("a", "money"), 12, "12"),
        (Field("a", "money"), "-999999999999999.99", "-999999999999999.99"),
        (Field("a", "decimal"), "0e-30", "0"),
        (Field("a", "money"), "", None),
        (Field("a", "integer"), 7, 7),
        (Field("a", "boolean"), False, False),
        (Field("a", "timestamp"), "2026-01-15T11:00:00Z", "2026-01-15T11:00:00Z"),
        (Field("a", "date"), "2026-01-15", "2026-01-15"),
        (Field("a", one_of=("draft", "past")), "past", "past"),
        (Field("a", "any"), 1.5, "1.5"),
    ],
    ids=str,
)
def test_a_value_that_fits_is_kept_as_links_hold_it(field: Field, value: Any, kept: Any) -> None:
    made = value_of(field, value)
    assert (made, type(made)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (Field("a"), 1, "takes a text"),
        (Field("a", "email"), ["a@b"], "takes a text"),
        (Field("a", "integer"), True, "a whole number"),
        (Field("a", "integer"), "7", "a whole number"),
        (Field("a", "boolean"), 1, "`true` or `false`"),
        (Field("a", "money"), True, "an amount"),
        (Field("a", "money"), "a lot", "an amount"),
        (Field("a", "money"), "NaN", "an amount"),
        (Field("a", "decimal"), "Infinity", "a number"),
        (Field("a", "money"), "1e30000000", "its size is below 1000000000000000"),
        (Field("a", "money"), "-1000000000000000", "its size is below 1000000000000000"),
        (Field("a", "decimal"), "1e-999999", "at most 12 decimals"),
        (Field("a", "timestamp"), "soon", "takes a time"),
        (Field("a", "list"), "x", "a list: take one of the sides'"),
        (Field("a", "object"), 1, "an object: take one of the sides'"),
        (Field("a", one_of=("draft", "past")), "gone", "one of `draft`, `past`"),
        (Field("a", at_most=3), "four", "at most 3"),
        (Field("a", required=True), None, "can't do without"),
        (Field("a", required=True), "", "can't do without"),
    ],
    ids=str,
)
def test_a_value_that_doesnt_fit_is_refused_and_says_why(field: Field, value: Any, why: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        value_of(field, value)
    (detail,) = refused.value.details
    assert detail.field == "value"
    assert why in detail.message
