"""The filters: every example of the reference page, and the cases that are easy to get wrong."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.braces import TESTS
from engine.errors import ExpressionError
from engine.expressions import Expression
from engine.filters import FILTERS, exponent, filters_page

DOCS = FilePath(__file__).parents[3] / "docs" / "reference" / "filters.md"


def jinja(text: str, **scope: Any) -> Any:
    return Expression.compile(text).evaluate(None, scope)


@pytest.mark.parametrize("name", FILTERS)
def test_the_example_of_a_filter_gives_what_it_says(name: str) -> None:
    each = FILTERS[name]
    result = jinja(each.example)
    assert f"| {name}" in each.example
    assert result == each.gives
    assert type(result) is type(each.gives)


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"default"}))
def test_null_stays_null(name: str) -> None:
    # With what its example has in brackets.
    arguments = re.findall(rf"\| {name}(\([^|]*\))?", FILTERS[name].example)[-1]
    assert jinja(f"{{{{ none | {name}{arguments} }}}}") is None


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        (Decimal("12.50"), "EUR", 1250),
        (Decimal("12.5"), "usd", 1250),
        (Decimal("0"), "EUR", 0),
        (19.99, "EUR", 1999),
        (1.1, "KWD", 1100),
        ("0.29", "GBP", 29),
        (Decimal("3500"), "JPY", 3500),
        (Decimal("4.250"), "KWD", 4250),
        (Decimal("1500"), "ISK", 1500),
        (Decimal("2990.00"), "RSD", 299000),  # CLDR shows no decimals; ISO 4217 has two
        (Decimal("1.2345"), "CLF", 12345),
        (-5, "EUR", -500),
        (Decimal("90071992547409.93"), "EUR", 9007199254740993),  # more than a float can hold
    ],
)
def test_minor_units_are_exact_and_go_back(amount: Any, currency: str, minor: int) -> None:
    assert jinja("{{ value | minor_units(currency) }}", value=amount, currency=currency) == minor
    back = jinja("{{ value | major_units(currency) }}", value=minor, currency=currency)
    assert isinstance(back, Decimal)
    assert back == Decimal(str(amount))


@pytest.mark.parametrize(
    ("amount", "currency", "words"),
    [
        (Decimal("12.345"), "EUR", "more than the 2 decimals of EUR"),
        (Decimal("0.5"), "JPY", "more than the 0 decimals of JPY"),
        (Decimal("1"), "EURO", "isn't a code"),
        (Decimal("1"), "", "isn't a code"),
        (Decimal("1"), None, "the currency has no value"),
        ("12,50", "EUR", "a number was expected"),
        (True, "EUR", "a number was expected"),
        (Decimal("1E+999999"), "EUR", "out of range"),
        (Decimal("NaN"), "EUR", "out of range"),
        ([1], "EUR", "a number was expected"),
    ],
)
def test_money_that_would_not_be_exact_is_an_error(amount: Any, currency: Any, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        jinja("{{ value | minor_units(currency) }}", value=amount, currency=currency)
    assert words in caught.value.message


@given(st.integers(-(10**12), 10**12), st.sampled_from(["EUR", "JPY", "KWD", "CLF", "ISK", "RSD"]))
def test_minor_and_major_units_are_inverse(minor: int, currency: str) -> None:
    assert jinja("{{ v | major_units(c) | minor_units(c) }}", v=minor, c=currency) == minor


def test_the_exponents_are_those_of_iso_4217() -> None:
    assert [exponent(code) for code in ("EUR", "jpy", "KWD", "UGX", "LBP", "UYW")] == [2, 0, 3, 0, 2, 4]


@pytest.mark.parametrize(
    ("text", "value", "result"),
    [
        ("{{ value | from_epoch }}", 0, "1970-01-01T00:00:00Z"),
        ("{{ value | from_epoch }}", Decimal("1760000000.5"), "2025-10-09T08:53:20.500000Z"),
        ("{{ value | to_epoch }}", "2025-10-09T10:53:20+02:00", 1760000000),
        ("{{ value | to_epoch }}", "2025-10-09T08:53:20.999Z", 1760000000),
        ("{{ value | truncate_to(3) }}", "Noël", "Noë"),
        ("{{ value | truncate_to(3) }}", "Noe\u0308l", "No"),  # the accent stays with its letter
        ("{{ value | truncate_to(4) }}", "Ana María", "Ana"),
        ("{{ value | first_word }}", "  Ana  María ", "Ana"),
        ("{{ value | first_word }}", " ", None),
        ("{{ value | rest_of_name }}", "  Ana  María Ruiz ", "María Ruiz"),
        ("{{ value | rest_of_name }}", "Ana", None),
        ("{{ [value, none, ' ', 3] | join('-') }}", "a", "a-3"),
        ("{{ [value, none] | join }}", None, None),
        ("{{ value | string }}", Decimal("1E+2"), "100"),
        ("{{ value | string }}", True, "true"),
        ("{{ value | integer }}", "12.0", 12),
        ("{{ value | length }}", [1, 2], 2),
        ("{{ value | default('x') }}", "", ""),
        ("{{ value | after_last('-') }}", "a-b-us19", "us19"),
        ("{{ value | after_last('-') }}", "a-", None),
        ("{{ value | after_last('-') }}", "us19", None),
        ("{{ value | before_first('--') }}", "a--b--c", "a"),
        ("{{ value | before_first('-') }}", "abc", "abc"),
        ("{{ value | before_first('-') }}", "-b", None),
        ("{{ value | quoted }}", "O'Brien \\ Sons", "'O\\'Brien \\\\ Sons'"),
        ("{{ value | quoted }}", 12, "'12'"),
        ("{{ value | quoted_list }}", ["1", "a'b"], "'1', 'a\\'b'"),
        ("{{ value | quoted_list }}", [], ""),
        ("{{ value | escape_html }}", 'a < b & "c"', 'a &lt; b &amp; "c"'),
    ],
)
def test_filters(text: str, value: Any, result: Any) -> None:
    assert jinja(text, value=value) == result


@pytest.mark.parametrize(
    "text",
    [
        "{{ value | upper }}",
        "{{ value | from_epoch }}",
        "{{ value | to_epoch }}",
        "{{ value | integer }}",
        "{{ value | join(',') }}",
        "{{ [value] | join(',') }}",
        "{{ value | truncate_to(2) }}",
        "{{ 'abc' | truncate_to(0) }}",
        "{{ 'abc' | replace('', 'x') }}",
        "{{ 'abc' | after_last('') }}",
        "{{ 'abc' | before_first('') }}",
        "{{ value | after_last('-') }}",
        "{{ value | quoted }}",
        "{{ value | quoted_list }}",
        "{{ [value] | quoted_list }}",
        "{{ '2025-10-09T08:53:20' | to_epoch }}",
        "{{ 1e30 | from_epoch }}",
    ],
)
def test_a_filter_refuses_what_it_can_not_take(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        jinja(text, value={"secret": 1})
    assert "secret" not in caught.value.message


def test_the_reference_page_is_the_table() -> None:
    assert DOCS.read_text("utf-8") == filters_page(TESTS)
