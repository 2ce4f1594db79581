"""What a stranger writes into a manifest does no harm: tests/security/templates.yaml, and chance."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.braces import UNDEFINED
from engine.ceilings import LONGEST_RESULT, MOST_RECORD_WORK, MOST_WORK, begin, spend, spend_on
from engine.errors import ExpressionError
from engine.expressions import Expression, Template

SECRET = "s3cret-0f-the-record"
SECONDS = 4.0  # of the thread's own time, also on a slow machine; a fraction of it on most
KILOBYTES = 200_000  # more than before
CORPUS = FilePath(__file__).parents[2] / "security" / "templates.yaml"


@cache
def values() -> Mapping[str, Any]:
    """Return what the texts of the corpus can name."""
    deep: Any = SECRET
    deep2: Any = SECRET
    for _ in range(5000):
        deep, deep2 = [deep], [deep2]
    return {
        "value": "hello",
        "name": "__class__",
        "x": {"a": 1, "secret": SECRET},
        "list": list(range(300)),
        "many": list(range(100_000)),
        "wide": [{**{f"k{n}": n for n in range(4000)}, "children": list(range(4000))}],
        "big": "y" * 1_000_000,
        "amount": Decimal("12.50"),
        "tiny": Decimal("1E-999999999"),
        "deep": deep,
        "deep2": deep2,
        "spaces": " " * 99 + "x",
        "tags": "<a <" * 200_000,
        "quotes": '<a b="' * 200_000,
        "comments": "<!--" * 200_000,
        "scripts": "<script>" * 200_000,
        "zalgo": "e" + "\u0301" * 500_000,
    }


def peak() -> int:
    """Return the most kilobytes this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def entries() -> list[Any]:
    corpus = yaml.safe_load(CORPUS.read_text("utf-8"))
    return [
        pytest.param(entry, id=f"{group}-{number}")
        for group, several in corpus.items()
        for number, entry in enumerate(several)
    ]


def written(entry: Mapping[str, Any]) -> str:
    if "text" in entry:
        return str(entry["text"])
    return "".join(part if isinstance(part, str) else part[0] * part[1] for part in entry["parts"])


def test_the_corpus_is_large() -> None:
    assert len(entries()) >= 200


@pytest.mark.parametrize("entry", entries())
def test_no_text_does_what_a_stranger_might_hope(entry: Mapping[str, Any]) -> None:
    text, scope = written(entry), values()
    began, held = time.thread_time(), peak()
    if entry["must"] == "be refused":
        with pytest.raises(ExpressionError):
            Expression.compile(text)
    else:
        expression = Expression.compile(text)
        begin(MOST_RECORD_WORK)
        if entry["must"] == "fail":
            with pytest.raises(ExpressionError) as caught:
                expression.run(scope, scope)
            assert SECRET not in caught.value.message
        else:
            result = expression.run(scope, scope)
            if entry["value"] != "any":
                assert result == entry["value"]
    assert time.thread_time() - began < SECONDS
    assert peak() - held < KILOBYTES


# ---- what is counted


def test_work_is_counted_and_refused_beyond_what_is_allowed() -> None:
    begin(10)
    spend(10)
    with pytest.raises(ExpressionError, match="too much work"):
        spend(1)


def test_a_value_costs_what_it_holds_as_often_as_it_holds_it() -> None:
    begin(100)
    spend_on("x" * 60)
    with pytest.raises(ExpressionError):
        spend_on(["x" * 20, "x" * 20])
    shared: Any = "x"
    for _ in range(200):
        shared = [shared, shared]  # more than any machine could walk
    begin(MOST_RECORD_WORK)
    with pytest.raises(ExpressionError):
        spend_on(shared)


def test_every_evaluation_may_do_as_much_as_the_one_before() -> None:
    expression = Expression.compile("{{ v ~ v ~ v }}")
    v = "y" * 4_000_000
    for _ in range(MOST_WORK // (3 * len(v)) + 2):
        assert len(expression.evaluate(None, {"v": v})) == 3 * len(v)


def test_a_thread_spends_only_its_own() -> None:
    bomb = Expression.compile("{{ [" + "v | upper, " * 150 + "] | length }}")
    tame = Expression.compile("{{ v[:3] | upper }}")
    scope = {"v": "y" * 1_000_000}

    def run(number: int) -> str:
        try:
            return str((bomb if number % 2 else tame).evaluate(None, scope))
        except ExpressionError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(6))) == ["YYY", "refused"] * 3


def test_a_text_as_long_as_allowed_is_made_and_none_longer() -> None:
    assert (
        len(Template.compile("{{ v }}{{ v }}").render({"v": "y" * (LONGEST_RESULT // 2)})) == LONGEST_RESULT
    )
    with pytest.raises(ExpressionError, match="too long"):
        Template.compile("{{ v }}{{ v }}x").render({"v": "y" * (LONGEST_RESULT // 2)})


# ---- chance

NAMES = st.sampled_from(["a", "b", "c", "gone"])
LITERALS = st.sampled_from(
    ["1", "0", "2.5", "'x'", "'yz'", "''", "none", "true", "false", "[1, 2]", "{'k': 'v'}"]
)
FORMS = [
    "({} + {})", "({} - {})", "({} * {})", "({} % {})", "({} ~ {})", "({} == {})", "({} != {})", "({} < {})",
    "({} >= {})", "({} in {})", "({} and {})", "({} or {})", "({} if {} else 'no')", "[{}, {}]",
]  # fmt: skip
SINGLE = [
    "(not {})", "(-{})", "{}.k", "{}['k']", "{}[0]", "({} is none)", "({} is defined)",
    "({} is string)", "({} is number)", "({} is mapping)", "({} is true)",
]  # fmt: skip
TEXTS = st.recursive(
    NAMES | LITERALS,
    lambda inner: (
        st.tuples(st.sampled_from(FORMS), inner, inner).map(lambda each: each[0].format(each[1], each[2]))
        | st.tuples(st.sampled_from(SINGLE), inner).map(lambda each: each[0].format(each[1]))
    ),
    max_leaves=6,
)


class _Plain(ImmutableSandboxedEnvironment):
    """Jinja's own evaluation, with the rules of ours that it can't know by itself."""

    intercepted_binops = frozenset({"+", "-", "*", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, StrictUndefined):
            return obj
        try:
            if isinstance(obj, dict) == isinstance(argument, str):
                return obj[argument]
        except (LookupError, TypeError):
            pass
        return self.undefined()

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        plain = [type(each) in (int, float) for each in (left, right)]
        if not all(plain) and not (
            operator == "+" and type(left) is type(right) and type(left) in (str, list)
        ):
            raise TypeError
        return super().call_binop(context, operator, left, right)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_an_expression_means_what_it_means_to_jinja(text: str) -> None:
    scope = {"a": 3, "b": "yz", "c": {"k": ["v", None]}, "gone": UNDEFINED}
    if "~" in text:
        return  # null joins as nothing here, and as `None` there
    try:
        plain = _Plain(undefined=StrictUndefined).compile_expression(text, undefined_to_none=False)
        expected: Any = plain(**{key: value for key, value in scope.items() if key != "gone"})
        if isinstance(expected, StrictUndefined):
            str(expected)
    except (TemplateError, TypeError, ArithmeticError, ValueError, SyntaxError):
        expected = ExpressionError
    try:
        result: Any = Expression.compile("{{ " + text + " }}").evaluate(None, scope)
    except ExpressionError:
        result = ExpressionError
    if isinstance(expected, list | tuple):
        assert str(expected) == str(result) or "Undefined" in str(type(expected))
    else:
        assert result == expected
        assert type(result) is type(expected)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab.[]*?|&@(),:{}`'\"!<=>0123- ", max_size=40))
def test_any_query_compiles_or_is_refused(text: str) -> None:
    data = {"a": [{"b": 1}, {"b": "x"}], "b": {"a": None}}
    try:
        Expression.compile(text).evaluate(data, data)
    except ExpressionError:
        return
