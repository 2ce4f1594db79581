"""Paths, JMESPath and Jinja as manifests and templates use them, and what a stranger's text can't do."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jmespath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.braces import UNDEFINED
from engine.ceilings import LONGEST_TEXT
from engine.errors import ExpressionError
from engine.expressions import ABSENT, Expression, Path, Template, parse_steps, template_faults


def jinja(text: str, **scope: Any) -> Any:
    return Expression.compile(text).evaluate(None, scope)


def search(text: str, data: Any) -> Any:
    return Expression.compile(text).evaluate(data)


def refusal(text: str, **options: Any) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        Expression.compile(text, **options)
    return caught.value


# ---- paths


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("id", ("id",)),
        ("address.city", ("address", "city")),
        ("variations[0].price_money.amount", ("variations", 0, "price_money", "amount")),
        ("rows[1][2]", ("rows", 1, 2)),
        ("[0].id", (0, "id")),
        ("cf-10.naïve", ("cf-10", "naïve")),
        ("created[999]", ("created", 999)),
    ],
)
def test_a_path_is_names_dots_and_indexes(text: str, steps: tuple[str | int, ...]) -> None:
    assert parse_steps(text) == steps
    assert Path.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        (".a", 0),
        ("a.", 2),
        ("a..b", 2),
        ("a[]", 2),
        ("a[x]", 2),
        ("a[-1]", 2),
        ("a[²]", 2),
        ("a[1", 2),
        ("a[1000]", 2),
        ("a[0]b", 4),
        ("a | b", 1),
        ("a{b}", 1),
        ("a b", 1),
    ],
)
def test_a_bad_path_names_the_offset(text: str, position: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        Path.parse(text)
    assert caught.value.position == position


def test_a_path_can_not_be_endless() -> None:
    with pytest.raises(ExpressionError, match="30 steps"):
        Path.parse(".".join("a" * 31))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Ana"),
        ("nothing", None),
        ("missing", ABSENT),
        ("nothing.below", ABSENT),
        ("name.below", ABSENT),
        ("name[0]", ABSENT),
        ("rows[1].id", 2),
        ("rows[2]", ABSENT),
        ("rows.id", ABSENT),
        ("empty[0].id", ABSENT),
    ],
)
def test_finding_tells_absent_from_null(path: str, value: Any) -> None:
    document = {"name": "Ana", "nothing": None, "rows": [{"id": 1}, {"id": 2}], "empty": []}
    assert Path.parse(path).find(document) is value or Path.parse(path).find(document) == value


def test_absent_is_false_and_stays_itself() -> None:
    assert not ABSENT
    assert ABSENT is not None
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert repr(ABSENT) == "ABSENT"


def test_putting_makes_the_way_and_keeps_what_is_there() -> None:
    document: dict[str, Any] = {"a": {"x": 1}, "n": None}
    Path.parse("a.b[1].c").put(document, 5)
    Path.parse("a.b[1].d").put(document, None)
    Path.parse("n.deep").put(document, 6)
    assert document == {"a": {"x": 1, "b": [{}, {"c": 5, "d": None}]}, "n": {"deep": 6}}


@pytest.mark.parametrize(("path", "value"), [("a.b", 1), ("a.b.c", 1), ("a[0]", 1), ("list.x", 1)])
def test_putting_never_replaces_a_value_on_the_way(path: str, value: Any) -> None:
    document: dict[str, Any] = {"a": "text", "list": [1]}
    with pytest.raises(ExpressionError, match=f"`{path.replace('[', '.').split('.')[0]}"):
        Path.parse(path).put(document, value)
    assert document == {"a": "text", "list": [1]}


NAMES = st.text(alphabet="abcxyz_-é", min_size=1, max_size=4)


@given(st.lists(st.one_of(NAMES, st.integers(0, 3)), min_size=1, max_size=6))
def test_what_is_put_is_found(steps: list[str | int]) -> None:
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in ["top", *steps])
    path = Path.parse(written.removeprefix("."))
    document: dict[str, Any] = {}
    path.put(document, "here")
    assert path.find(document) == "here"


# ---- JMESPath


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("type", "ITEM"),
        ("type == 'ITEM'", True),
        ("missing", None),
        ("a.b[0]", 7),
        ("a.b[-1]", 9),
        ("a.c || type", "ITEM"),
        ("rows[?ok].id", [2]),
        ("sum([`1`, length(none || `[]`)])", 1),
        ("starts_with(type, 'IT')", True),
        ("to_lower(type)", "item"),
        ("to_upper(none)", None),
        ("items(map)", [{"key": "x", "value": 1}, {"key": "y", "value": 2}]),
        ("from_items(items(map)[?key=='y'])", {"y": 2}),
        ("items(none)", None),
        ("table(['id', 'n'], grid)", [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}]),
        ("explode(rows, 'tags')", [{"id": 1, "ok": False, "tags": "p"}, {"id": 2, "ok": True, "k": 3}]),
        ("merge(map, none, {y: `5`})", {"x": 1, "y": 5}),
        ("price > `10`", True),
        ("price == `12.5`", True),
        ("sum([price, `1`])", Decimal("13.5")),
        ("to_number(price)", Decimal("12.50")),
        ("to_string(price)", "12.50"),
        ("type(price)", "number"),
        ("to_number('nan')", None),
        ("to_number('1e999')", None),
        ("to_number('12.5')", 12.5),
    ],
)
def test_text_without_braces_is_jmespath(text: str, value: Any) -> None:
    data = {
        "type": "ITEM",
        "none": None,
        "a": {"b": [7, 9]},
        "map": {"x": 1, "y": 2},
        "rows": [{"id": 1, "ok": False, "tags": ["p"]}, {"id": 2, "ok": True, "tags": [{"k": 3}]}],
        "grid": [[1, "a"], [2, "b"]],
        "price": Decimal("12.50"),
    }
    if "['id', 'n']" in text:
        text = text.replace("['id', 'n']", '`["id", "n"]`')
    assert search(text, data) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(["a", "a.b", "a[0]", "a[0].b", "a.b.c", "b[1][0].c", "c.a[2]"]), JSON)
def test_a_plain_path_does_what_jmespath_does(text: str, data: Any) -> None:
    expression = Expression.compile(text)
    assert expression.steps == parse_steps(text)
    assert expression.evaluate(data) == jmespath.search(text, data)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "empty"),
        ("a[", 2, "too early"),
        ("a |", 3, "too early"),
        ("a ] b", 2, "`] b`"),
        ("a == #", 5, "`#`"),
        ("``", 0, "isn't JSON"),
        ("lenght(a)", 0, "did you mean `length`"),
        ("length(a, b)", 0, "takes 1 values, not 2"),
        ("not_null()", 0, "at least 1"),
        ("'`' == a && b == `text`", 17, "isn't JSON"),
        ("`1e400`", 0, "isn't JSON"),
        ("a == `NaN`", 5, "isn't JSON"),
        ("&a", 0, "stands for no value"),
        ("a || &b", 5, "stands for no value"),
        ("not_null(&a)", 9, "stands for no value"),
        ("map(&(&a), b)", 4, "stands for no value"),
    ],
)
def test_bad_jmespath_says_where(text: str, position: int, words: str) -> None:
    error = refusal(text)
    assert error.position == position
    assert words in error.message


@pytest.mark.parametrize(
    "text",
    [
        "length(none)",
        "a < text",
        "sum(text)",
        "explode(numbers, 'x')",
        "keys(text)",
        "sum([`1e308`, `1e308`])",
    ],
)
def test_jmespath_on_the_wrong_value_is_our_error_and_quotes_no_value(text: str) -> None:
    data = {"none": None, "a": 1, "text": "s3cret", "numbers": [1]}
    with pytest.raises(ExpressionError) as caught:
        search(text, data)
    assert text in caught.value.message
    assert "s3cret" not in caught.value.message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "@" + " | [@,@] | []" * 20,
        "(" * 500 + "a" + ")" * 500,
        "@" + " | [@,@,@,@,@,@,@,@,@,@] | []" * 5,
        "to_string([to_string([to_string([to_string([@])])])])",
        "a" * (LONGEST_TEXT + 1),
    ],
)
def test_jmespath_that_outgrows_its_input_is_refused(text: str) -> None:
    began = time.perf_counter()
    refusal(text)
    assert time.perf_counter() - began < 1


# ---- Jinja


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ record.price }}", Decimal("12.50")),
        ("{{ record.items }}", [1, 2]),
        ("{{ record['items'][1] }}", 2),
        ("{{ record.nothing }}", None),
        ("{{ value == 'a' }}", True),
        ("{{ '1e5' }}", "1e5"),
        ("{{ '[1,2]' }}", "[1,2]"),
        ("{{ '0123' }}", "0123"),
        ("{{ [value, 2] }}", ["a", 2]),
        ("{{ {'a': 'b'}[value] }}", "b"),
        ("{{ 'yes' if value else 'no' }}", "yes"),
        ("{{ value in ['a', 'b'] }}", True),
        ("{{ 'abc'[1:] }}", "bc"),
        ("{{ 7 // 2 + 1 }}", 4),
        ("{{ record.price * 2 }}", Decimal("25.00")),
        ("{{ record.missing | default('x') }}", "x"),
        ("{{ record.missing.deeper | default(none) }}", None),
        ("{{ record.missing is defined }}", False),
        ("{{ none is none }}", True),
    ],
)
def test_one_pair_of_braces_keeps_the_type(text: str, value: Any) -> None:
    record = {"price": Decimal("12.50"), "items": [1, 2], "nothing": None}
    result = jinja(text, record=record, value="a")
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#{{ key }}", "#k1"),
        ("{{ url }}{{ body }}", "https://x{}"),
        ("a {{ none }}b", "a b"),
        ("{{ key ~ none ~ big ~ true }}", "k1100true"),
        ("is {{ true }}, {{ big }}", "is true, 100"),
        ("{{ key }}\n", "k1\n"),
        ("<{{ '<b>' }}>", "<<b>>"),
    ],
)
def test_braces_within_text_give_text(text: str, value: str) -> None:
    assert jinja(text, key="k1", url="https://x", body="{}", big=Decimal("1E+2")) == value


def test_names_are_known_before_it_runs() -> None:
    assert Expression.compile("{{ value | minor_units(record.currency) }}").names == {"value", "record"}
    assert Expression.compile("a.b").names == frozenset()
    error = refusal("{{ value if recrod.ok else 1 }}", names=("value", "record", "venue"))
    assert "`recrod`" in error.message
    assert "did you mean `record`?" in error.message
    assert error.position == 12


def test_a_name_missing_at_run_time_is_named_with_the_nearest() -> None:
    with pytest.raises(ExpressionError, match="there is no value `recrod`; did you mean `record`"):
        jinja("{{ recrod.id }}", record={}, venue={})


def test_what_is_not_there_is_an_error_naming_it() -> None:
    with pytest.raises(ExpressionError, match="`city` isn't there"):
        jinja("{{ record.address.city }}", record={"address": {}})
    with pytest.raises(ExpressionError, match="the item isn't there"):
        jinja("{{ record[key] }}", record={}, key="ana@example.com")


@pytest.mark.parametrize(
    "text", ["{{ v }}", "{{ v == 1 }}", "{{ v ~ 'x' }}", "x{{ v }}", "{{ v | upper }}", "{{ v + 1 }}"]
)
def test_an_absent_value_can_not_be_used(text: str) -> None:
    with pytest.raises(ExpressionError, match="the value isn't there"):
        jinja(text, v=UNDEFINED)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("{% if x %}a{% endif %}", 0, "`{%`"),
        ("{{ a }}{% for x in y %}", 7, "`{%`"),
        ("{# note #}", 0, "`{#`"),
        ("{{ x.strip() }}", 10, "can't be called"),
        ("{{ range(9) }}", 8, "can't be called"),
        ("{{ 'a' if x }}", 7, "`if` needs an `else`"),
        ("{{ x | lowr }}", 7, "did you mean `lower`"),
        ("{{ x | lower(3) }}", 7, "takes nothing"),
        ("{{ x | minor_units }}", 7, "takes `currency`"),
        ("{{ x | replace('a') }}", 7, "takes `old`, `new`"),
        ("{{ x is odd }}", 8, "`odd`"),
        ("{{ self }}", 3, "`self`"),
        ("{{ _x }}", 3, "`_x`"),
        ("{{ x", None, "too early"),
        ("{{ }}", None, "can't be read"),
        ("{{ 2 ** 3 }}", None, "isn't allowed"),
        ("{{ 1e999 }}", None, "out of range"),
    ],
)
def test_bad_jinja_says_what(text: str, position: int | None, words: str) -> None:
    error = refusal(text)
    assert words in error.message
    assert error.position == position


ESCAPES = [
    "{{ x.__class__ }}",
    "{{ x['__class__'] }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ x | attr('__class__') }}",
    "{{ x.__init__.__globals__ }}",
    "{{ x.format }}",
    "{{ [].append }}",
    "{{ x.items.__self__ }}",
    "{{ cycler.__init__ }}",
    "{{ lipsum }}",
    "{{ namespace }}",
    "{{ (x|map('upper')) }}",
    "{{ ''|format(x) }}",
    "{{ x | xmlattr }}",
    "{{ self._TemplateReference__context }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_attribute_of_a_python_object_can_be_reached(text: str) -> None:
    with pytest.raises(ExpressionError):
        jinja(text, x={"a": 1})


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 600000000 }}",
        "{{ [1, 2] * 50000000 }}",
        "{{ '%09999999999d' % 3 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ " + "*".join(["99999999999999999999"] * 60) + " }}",
        "{{ 'a' | center(600000000) }}",
        "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
        "{{ " + "[" * 100 + "]" * 100 + " }}",
        "{{ " + "not " * 300 + "x }}",
        "{{ 'aaaaaaaaaa'" + " | replace('a', 'aaaaaaaaaaaaaaaaaaaa')" * 12 + " }}",
        "{{ x" + " + x" * 40 + " }}",
        "{{ " + "x" * LONGEST_TEXT + " }}",
        "{{ 1 / 0 }}",
        "{{ {[1]: 2} }}",
    ],
)
def test_work_that_outgrows_its_input_is_refused(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ExpressionError):
        jinja(text, x="y" * 1_000_000)
    assert time.perf_counter() - began < 1


@settings(max_examples=300)
@given(st.text(alphabet="{}%#[]()|.,:'\"`~+-*/ abx019_=<>@?&!\\\n", max_size=40))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    for candidate in (text, "{{ " + text + " }}"):
        try:
            Expression.compile(candidate).evaluate({"a": [1, "b"]}, {"a": [1, "b"], "x": {"b": None}})
        except ExpressionError:
            continue


# ---- templates


def test_a_constant_template_is_the_same_object() -> None:
    value = {"types": ["a", {"b": None}], "n": 1}
    template = Template.compile(value)
    assert template.constant
    assert template.names == frozenset()
    assert template.render({"x": 1}) is value


def test_a_template_fills_in_every_text_and_leaves_the_rest() -> None:
    template = Template.compile(
        {"a": "{{ x }}", "b": ["#{{ y }}", 1, {"c": "d"}], "n": "{{ z }}", "p": "{id}"}
    )
    assert not template.constant
    assert template.names == {"x", "y", "z"}
    assert template.render({"x": [1], "y": "k", "z": None}) == {
        "a": [1],
        "b": ["#k", 1, {"c": "d"}],
        "n": None,
        "p": "{id}",
    }


def test_a_template_never_changes_what_it_was_made_of() -> None:
    value: Mapping[str, Any] = {"a": ["{{ x }}"], "same": {"k": 1}}
    template = Template.compile(value)
    template.render({"x": 1})["a"].append(2)
    assert value == {"a": ["{{ x }}"], "same": {"k": 1}}
    assert template.render({"x": 1})["a"] == [1]


def test_a_template_checks_names() -> None:
    with pytest.raises(ExpressionError, match="`idd`"):
        Template.compile({"a": ["{{ idd }}"]}, names=("id", "key"))
    faults = list(template_faults({"a": ["{{ idd }}", "ok"], "b": "{{ x"}, names=("id",)))
    assert [at for at, _ in faults] == [("a", 0), ("b",)]
