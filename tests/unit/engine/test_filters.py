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


# ---- people, places, times, pages


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{{ '(201) 555-0123' | e164('US') }}", "+12015550123"),
        ("{{ '+44 20 7946 0958' | e164 }}", "+442079460958"),
        ("{{ '020 7946 0958' | e164('GBR') }}", "+442079460958"),
        ("{{ ' ' | e164 }}", None),
        ("{{ '+442079460958' | national_phone }}", "020 7946 0958"),
        ("{{ 'Juan de la Vega' | given_names }}", "Juan"),
        ("{{ 'Madonna' | family_name }}", None),
        ("{{ 'Ana María Ruiz' | name_part('middle') }}", "María"),
        ("{{ 'deu' | country_code }}", "DE"),
        ("{{ '276' | country_code }}", "DE"),
        ("{{ 'UK' | country_code }}", "GB"),
        ("{{ 'Côte d’Ivoire' | country_code }}", "CI"),
        ("{{ 'US' | country_name('de') }}", "Vereinigte Staaten"),
        ("{{ 'us-ca' | state_code('US') }}", "CA"),
        ("{{ 'Ontario' | state_code('Canada') }}", "ON"),
        ("{{ 'on' | state_name('CA') }}", "Ontario"),
        # The clocks of Berlin went forward on 2026-03-29 at 2:00, and go back on 2026-10-25 at 3:00.
        ("{{ '2026-03-29T01:30:00' | to_utc('Europe/Berlin') }}", "2026-03-29T00:30:00Z"),
        ("{{ '2026-10-25T02:30:00' | to_utc('Europe/Berlin') }}", "2026-10-25T00:30:00Z"),
        ("{{ '2026-07-01T20:30:00+02:00' | to_utc }}", "2026-07-01T18:30:00Z"),
        ("{{ '2026-12-31T23:30:00Z' | in_zone('America/New_York') }}", "2026-12-31T18:30:00-05:00"),
        ("{{ '2026-07-01T02:00:00Z' | date_in('America/New_York') }}", "2026-06-30"),
        ("{{ '2026-01-31T12:00:00Z' | plus(-1, 'days') }}", "2026-01-30T12:00:00Z"),
        ("{{ '20260701' | parse_time('%Y%m%d') | format_time('%d/%m/%y') }}", "01/07/26"),
        ("{{ '2.5' | round_to(0) }}", Decimal("3")),
        ("{{ '-2.345' | round_to(2) }}", Decimal("-2.35")),
        ("{{ '1234.5' | round_money('JPY') }}", Decimal("1235")),
        ("{{ 'off' | boolean }}", False),
        ("{{ 1 | boolean }}", True),
        ("{{ 1 | lookup({'1': 'wrong', 1: 'right'}) }}", "right"),
        ("{{ '1' | lookup({1: 'wrong', '1': 'right'}) }}", "right"),
        ("{{ true | lookup({1: 'wrong', 'true': 'right'}) }}", "right"),
        ("{{ 'new' | lookup({'old': 1}, none) }}", None),
        ("{{ [1, '1', 1, true] | unique }}", [1, "1", True]),
        ("{{ '478' | trim }}", "478"),
        ("{{ [] | last }}", None),
    ],
)
def test_people_places_and_times(text: str, result: Any) -> None:
    found = jinja(text)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    "text",
    [
        "{{ '555-0123' | e164 }}",  # of which country?
        "{{ '123' | e164('US') }}",
        "{{ 'no phone' | e164('US') }}",
        "{{ 'Atlantis' | country_code }}",
        "{{ 'Bavaria-on-Sea' | state_code('DE') }}",
        "{{ '2026-03-29T02:30:00' | to_utc('Europe/Berlin') }}",  # the clocks skipped it
        "{{ '2026-07-01T20:30:00' | to_utc }}",
        "{{ '2026-07-01T20:30:00' | in_zone('Europe/Berlin') }}",
        "{{ '2026-07-01T20:30:00Z' | in_zone('Mars/Olympus') }}",
        "{{ '01.07.2026' | parse_time('%Y-%m-%d') }}",
        "{{ '2026-07-01' | plus(1, 'months') }}",
        "{{ 'perhaps' | boolean }}",
        "{{ 2 | boolean }}",
        "{{ 'new' | lookup({'old': 1}) }}",
        "{{ 1 | lookup({true: 'wrong'}) }}",
        "{{ 'a' | lookup('a') }}",
        "{{ '1_000' | integer }}",
        "{{ 'Ana' | name_part('soul') }}",
        "{{ '%%%' | base64_decode }}",
        "{{ [[1]] | unique }}",
    ],
)
def test_what_cannot_be_told_is_an_error(text: str) -> None:
    with pytest.raises(ExpressionError):
        jinja(text)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("plain", "plain"),
        ("", None),
        ("<p>One<br>two</p>\n<ul><li>a<li>b</ul>", "One\ntwo\na\nb"),
        ("1 < 2 & 3 > 2", "1 < 2 & 3 > 2"),
        ("<b title='a > b'>bold</b>", "bold"),
        ("a<!-- <p>no</p> -->b", "ab"),
        ("<script>if (a < b) { x = '<p>' }</script>after", "after"),
        ("<STYLE>p { color: red }</STYLE><P>x</P>", "x"),
        ("<p>cut off <a href='", "cut off"),
        ("&lt;b&gt; isn&#39;t bold&hellip;", "<b> isn't bold…"),
        ("one\n  two", "one two"),
        ("<!doctype html><head><title>t</title></head><body>b", "b"),
    ],
)
def test_html_is_read_as_people_read_it(written: str, said: str | None) -> None:
    assert jinja("{{ value | html_text }}", value=written) == said


@pytest.mark.parametrize(
    ("text", "length", "cut"),
    [
        ("👩‍👩‍👧 and more", 3, "👩‍👩‍"[:3]),  # one picture of five characters: too long to stay whole
        ("ab👩‍👩‍👧", 4, "ab"),
        ("a🇩🇪b", 2, "a"),
        ("नमस्ते", 4, "नम"),
        ("a\r\nb", 2, "a"),
    ],
)
def test_what_is_read_as_one_character_is_not_cut_apart(text: str, length: int, cut: str) -> None:
    assert jinja("{{ value | truncate_to(length) }}", value=text, length=length) == cut.rstrip()


@given(st.text(max_size=60), st.integers(1, 20))
def test_a_text_is_never_cut_longer_than_asked(text: str, length: int) -> None:
    cut = jinja("{{ value | truncate_to(length) }}", value=text, length=length)
    assert len(cut) <= length
    assert text.startswith(cut)


def test_an_amount_with_more_digits_than_usual_stays_exact() -> None:
    assert (
        jinja("{{ '1234567890123456789012345678.91' | minor_units('EUR') }}")
        == 123456789012345678901234567891
    )
