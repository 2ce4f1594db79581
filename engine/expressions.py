"""Paths, JMESPath and sandboxed Jinja, compiled once; and the one table of filters.

A path is names, dots and `[n]`: it reads and writes, and tells *absent* from *null*. In a read-only place,
text without braces is JMESPath over the data and text with braces is Jinja over named values. What Jinja may
do is a list of allowed parts of an expression: no statements, no calls, no attributes of Python objects, no
work that outgrows its input. A manifest or template from a stranger can be compiled and run in a server.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import json
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache, partial
from typing import Any, Final, NoReturn

import jmespath.exceptions
import jmespath.functions
import jmespath.parser
import jmespath.visitor
import orjson
from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.environment import TemplateExpression
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from engine.diagnostics import listed, nearest
from engine.errors import ExpressionError

LONGEST_TEXT = 2000  # characters of an expression
LONGEST_RESULT = 16 * 1024 * 1024  # characters of a rendered text
DEEPEST = 40  # nested parts of an expression
LARGEST_NUMBER = 10**40
LARGEST_INDEX = 999
MOST_STEPS = 30  # of a path

Steps = tuple[str | int, ...]

_OBJECT = (dict, Mapping)  # the first is what nearly every object is, and quick to see


class Absent:
    """The value of a path that leads nowhere; unlike None, which is a value. Falsy."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


# ---------------------------------------------------------------------------------------------- paths

_NAME = re.compile(r"[^\s.\[\]{}()|'\"`,]+")
_INDEX = re.compile(r"\[([0-9]+)\]")


def parse_steps(text: str) -> Steps:
    """Split `a.b[0].c` into `("a", "b", 0, "c")`; raises ExpressionError naming the offset."""
    steps: list[str | int] = []
    position = 0
    while True:
        name = _NAME.match(text, position)
        if name:
            steps.append(name.group())
            position = name.end()
        elif not (position == 0 and text.startswith("[")):
            odd = text[position : position + 1]
            why = "has an empty name" if odd in ("", ".", "[") else f"can't hold `{odd}`"
            raise ExpressionError(f"`{text}` {why}; a path is names, dots and `[n]`", position)
        while text.startswith("[", position):
            index = _INDEX.match(text, position)
            if not index or len(index.group(1)) > len(str(LARGEST_INDEX)):
                raise ExpressionError(
                    f"`{text}` needs a whole number up to {LARGEST_INDEX} in `[ ]`", position + 1
                )
            steps.append(int(index.group(1)))
            position = index.end()
        if len(steps) > MOST_STEPS:
            raise ExpressionError(f"a path can have {MOST_STEPS} steps, this one has more", position)
        if position == len(text):
            return tuple(steps)
        if text[position] != ".":
            after = text[position]
            why = "needs a dot after `]`" if _NAME.match(after) else f"can't hold `{after}`"
            raise ExpressionError(f"`{text}` {why}; a path is names, dots and `[n]`", position)
        position += 1


@dataclass(frozen=True, slots=True)
class Path:
    """Where a value is in a JSON document: `address.lines[0]`."""

    text: str
    steps: Steps

    @classmethod
    def parse(cls, text: str) -> Path:
        """Read a path; raises ExpressionError with the offset of the fault."""
        return cls(text, parse_steps(text))

    def find(self, document: Any) -> Any:
        """Return the value, which may be None, or ABSENT when the path leads nowhere."""
        value = document
        for step in self.steps:
            if isinstance(step, str):
                if not isinstance(value, _OBJECT) or step not in value:
                    return ABSENT
                value = value[step]
            elif not isinstance(value, list) or step >= len(value):
                return ABSENT
            else:
                value = value[step]
        return value

    def put(self, document: dict[str, Any], value: Any) -> None:
        """Set the value in place, creating the objects and lists on the way.

        Items a new list needs before this one are empty objects. Raises ExpressionError when the way leads
        through a value that is neither missing, null, object nor list.
        """
        target: Any = document
        for step, following in zip(self.steps, (*self.steps[1:], None), strict=True):
            if isinstance(step, str):
                if not isinstance(target, dict):
                    raise ExpressionError(f"`{self.text}` leads through a value that isn't an object")
            else:
                if not isinstance(target, list):
                    raise ExpressionError(f"`{self.text}` leads through a value that isn't a list")
                target.extend({} for _ in range(step + 1 - len(target)))
            if following is None:
                target[step] = value
                return
            inner = target.get(step) if isinstance(step, str) else target[step]
            if inner is None or (inner == {} and isinstance(following, int)):
                inner = [] if isinstance(following, int) else {}
                target[step] = inner
            target = inner


# -------------------------------------------------------------------------------------------- filters


@dataclass(frozen=True, slots=True)
class Filter:
    """A function an expression may pipe a value through: `{{ value | name }}`.

    `example` gives `gives`; both are shown on the reference page, and checked by a test.
    """

    function: Callable[..., Any]
    doc: str
    example: str
    gives: Any


# ISO 4217's exponents other than 2. CLDR, and so babel, differs from ISO for RSD, LBP, PKR and a dozen more:
# its digits are for display, while providers count minor units as ISO does.
_EXPONENTS: Mapping[str, int] = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV",
         "XAF", "XOF", "XPF"),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip


@lru_cache(maxsize=512)
def exponent(currency: str) -> int:
    """Return how many digits follow the point in a currency (ISO 4217): 2 for EUR, 0 for JPY, 3 for KWD.

    Upper or lower case; raises ExpressionError for a code that isn't one.
    """
    from babel.core import get_global

    code = currency.upper()
    if code not in get_global("all_currencies"):
        raise ExpressionError("the currency isn't a code such as EUR")
    return _EXPONENTS.get(code, 2)


def _currency(value: Any) -> int:
    if not isinstance(value, str):
        raise ExpressionError("the currency has no value")
    return exponent(value)


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ExpressionError("a number was expected")
    try:
        # A float is taken as it prints, so 19.99 is 19.99 and not the nearest binary fraction.
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ExpressionError("a number was expected") from None
    if not number.is_finite() or number.adjusted() > 30 or number.adjusted() < -30:
        raise ExpressionError("the number is out of range")
    return number


def _minor_units(value: Any, currency: Any) -> int:
    digits = _currency(currency)
    number = _number(value).scaleb(digits)
    if number != number.to_integral_value():
        raise ExpressionError(f"the amount has more than the {digits} decimals of {currency.upper()}")
    return int(number)


def _major_units(value: Any, currency: Any) -> Decimal:
    number = _number(value)
    if number != number.to_integral_value():
        raise ExpressionError("an amount in minor units must be whole")
    digits = _currency(currency)
    return Decimal(int(number)).scaleb(-digits)


def _from_epoch(value: Any) -> str:
    try:
        moment = datetime.fromtimestamp(float(_number(value)), UTC)
    except (OverflowError, OSError, ValueError):
        raise ExpressionError("the time is out of range") from None
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")[:-6] + "Z"


def _to_epoch(value: Any) -> int:
    try:
        moment = datetime.fromisoformat(_text(value))
    except ValueError:
        raise ExpressionError("a time such as 2026-01-31T18:30:00Z was expected") from None
    if moment.tzinfo is None:
        raise ExpressionError("the time has no time zone")
    return math.floor(moment.timestamp())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ExpressionError("a text was expected")
    return value


def _truncate_to(value: Any, length: int) -> str:
    if length < 1:
        raise ExpressionError("a length of at least 1 was expected")
    return cut_text(_text(value), length)


def cut_text(text: str, length: int) -> str:
    """Return the beginning of a text, of at most so many characters."""
    if len(text) <= length:
        return text
    while length > 1 and unicodedata.combining(text[length]):
        length -= 1  # an accent stays with its letter
    return text[:length].rstrip()


def _first_word(value: Any) -> str | None:
    return next(iter(_text(value).split(None, 1)), None)


def _rest_of_name(value: Any) -> str | None:
    words = _text(value).split(None, 1)
    return words[1].rstrip() if len(words) > 1 else None


def _join(value: Any, separator: str = "") -> str | None:
    if not isinstance(value, list | tuple):
        raise ExpressionError("a list was expected")
    parts = [_string(part).strip() for part in value if part is not None and not isinstance(part, Undefined)]
    parts = [part for part in parts if part]
    _check_size(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts) or None


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if not old:
        raise ExpressionError("the text to replace can't be empty")
    _check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _after_last(value: Any, separator: str) -> str | None:
    _, found, after = _text(value).rpartition(_separator(separator))
    return after or None if found else None


def _before_first(value: Any, separator: str) -> str | None:
    return _text(value).partition(_separator(separator))[0] or None


def _from_json(value: Any) -> Any:
    text = _text(value)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ExpressionError("the text isn't JSON") from None


def _percent_decoded(value: Any, characters: str) -> str:
    text = _text(value)
    for character in characters:
        if ord(character) > 127 or character == "%":
            raise ExpressionError("only characters of ASCII other than `%` can be decoded one by one")
        written = f"%{ord(character):02X}"
        text = text.replace(written, character).replace(written.lower(), character)
    return text


def _separator(text: str) -> str:
    if not text:
        raise ExpressionError("the text to look for can't be empty")
    return text


def _quoted(value: Any) -> str:
    escaped = _string(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _quoted_list(value: Any) -> str:
    if not isinstance(value, list | tuple):
        raise ExpressionError("a list was expected")
    quoted = [_quoted(item) for item in value]
    _check_size(sum(map(len, quoted)) + 2 * len(quoted))
    return ", ".join(quoted)


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, int | float | str):
        return str(value)
    raise ExpressionError("a text or a number was expected")


def _integer(value: Any) -> int:
    number = _number(value)
    if number != number.to_integral_value():
        raise ExpressionError("a whole number was expected")
    return int(number)


def _length(value: Any) -> int:
    if not isinstance(value, str | list | tuple | dict):
        raise ExpressionError("a text or a list was expected")
    return len(value)


def _digest(value: Any, algorithm: Callable[[bytes], Any]) -> str:
    return str(algorithm(_text(value).encode("utf-8", "surrogatepass")).hexdigest())


def _json_text(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_json_number).decode()
    except (TypeError, ValueError):
        raise ExpressionError("the value can't be written as JSON") from None


def _json_number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(format(value, "f"))
    raise TypeError


def _default(value: Any, fallback: Any = None) -> Any:
    return fallback if value is None or isinstance(value, Undefined) else value


def _check_size(characters: int) -> None:
    if characters > LONGEST_RESULT:
        raise ExpressionError("the result is too long")


FILTERS: Mapping[str, Filter] = {
    "after_last": Filter(
        _after_last,
        "What follows the last occurrence of a text; null when there is none.",
        "{{ '0a1b-us19' | after_last('-') }}",
        "us19",
    ),
    "before_first": Filter(
        _before_first,
        "What comes before the first occurrence of a text; the whole text when there is none.",
        "{{ 'ana@example.com' | before_first('@') }}",
        "ana",
    ),
    "default": Filter(
        _default,
        "The value, or the one given when it is null or absent; without one, null.",
        "{{ none | default('unknown') }}",
        "unknown",
    ),
    "escape_html": Filter(
        lambda value: html.escape(_text(value), quote=False),
        "The text as HTML: `&`, `<` and `>` written so that they show.",
        "{{ 'Rock & Roll' | escape_html }}",
        "Rock &amp; Roll",
    ),
    "first_word": Filter(
        _first_word,
        "The first word of a name; null when there is none.",
        "{{ 'Ana María Ruiz' | first_word }}",
        "Ana",
    ),
    "from_epoch": Filter(
        _from_epoch,
        "Unix seconds as a time in UTC.",
        "{{ 1760000000 | from_epoch }}",
        "2025-10-09T08:53:20Z",
    ),
    "from_json": Filter(
        _from_json,
        "What a text holds that is written as JSON.",
        """{{ '{"name": "Ana"}' | from_json }}""",
        {"name": "Ana"},
    ),
    "integer": Filter(
        _integer, "A number, or a text holding one, as a whole number.", "{{ '42' | integer }}", 42
    ),
    "join": Filter(
        _join,
        "The items of a list as one text, those that are null or blank left out; null when none is left.",
        "{{ ['Ana', none, 'Ruiz'] | join(' ') }}",
        "Ana Ruiz",
    ),
    "json_text": Filter(
        _json_text,
        "The value written as JSON, for a provider that wants JSON within a text. Numbers are exact.",
        "{{ {'name': 'Ana', 'tags': []} | json_text }}",
        '{"name":"Ana","tags":[]}',
    ),
    "length": Filter(_length, "How many characters or items there are.", "{{ 'Ruiz' | length }}", 4),
    "lower": Filter(
        lambda value: _text(value).lower(), "The text in lower case.", "{{ 'EUR' | lower }}", "eur"
    ),
    "major_units": Filter(
        _major_units,
        "An amount counted in the currency's smallest unit (ISO 4217), as a number of whole units. Exact.",
        "{{ 1999 | major_units('EUR') }}",
        Decimal("19.99"),
    ),
    "md5": Filter(
        lambda value: _digest(value, partial(hashlib.md5, usedforsecurity=False)),
        "The MD5 digest of the text, as 32 hexadecimal digits: some providers make ids so.",
        "{{ 'ana@example.com' | md5 }}",
        "cdb9d6a1dddc375a09cc83e3001598dc",
    ),
    "minor_units": Filter(
        _minor_units,
        "An amount in the currency's smallest unit (ISO 4217): cents for EUR, yen for JPY, fils for KWD."
        " Exact: an amount with more decimals than the currency has is an error.",
        "{{ 19.99 | minor_units('EUR') }}",
        1999,
    ),
    "percent_decode": Filter(
        _percent_decoded,
        "An address with those percent-encoded characters decoded that are given, and no other.",
        "{{ '/a%3Ab%20c' | percent_decode(':/') }}",
        "/a:b%20c",
    ),
    "quoted": Filter(
        _quoted,
        "The text in single quotes, quotes and backslashes within it escaped by a backslash, for queries.",
        """{{ "O'Brien" | quoted }}""",
        "'O\\'Brien'",
    ),
    "quoted_list": Filter(
        _quoted_list,
        "The items of a list, each in single quotes as `quoted` writes it, with commas between them.",
        "{{ ['1', '2'] | quoted_list }}",
        "'1', '2'",
    ),
    "replace": Filter(
        _replace,
        "The text with every occurrence of one text replaced by another.",
        "{{ '01 23 45' | replace(' ', '') }}",
        "012345",
    ),
    "rest_of_name": Filter(
        _rest_of_name,
        "A name without its first word; null when nothing is left.",
        "{{ 'Ana María Ruiz' | rest_of_name }}",
        "María Ruiz",
    ),
    "sha256": Filter(
        lambda value: _digest(value, hashlib.sha256),
        "The SHA-256 digest of the text, as 64 hexadecimal digits.",
        "{{ 'Ana' | sha256 }}",
        "dea210f058b407db5c1b5ea89b2e42a57221c003dba55e2f1776a75a3254d386",
    ),
    "string": Filter(_string, "A number or truth value as text.", "{{ 19.50 | string }}", "19.5"),
    "to_epoch": Filter(
        _to_epoch,
        "A time with its zone as Unix seconds, fractions cut off.",
        "{{ '2025-10-09T08:53:20Z' | to_epoch }}",
        1760000000,
    ),
    "trim": Filter(
        lambda value: _text(value).strip(),
        "The text without white space around it.",
        "{{ ' Ana ' | trim }}",
        "Ana",
    ),
    "truncate_to": Filter(
        _truncate_to,
        "The text cut to at most so many characters.",
        "{{ 'Saxophone' | truncate_to(3) }}",
        "Sax",
    ),
    "upper": Filter(
        lambda value: _text(value).upper(), "The text in upper case.", "{{ 'eur' | upper }}", "EUR"
    ),
}

# What `is` may ask in an expression.
TESTS = ("boolean", "defined", "false", "float", "integer", "mapping", "none", "number", "sequence",
         "string", "true", "undefined")  # fmt: skip


def _null_stays_null(function: Callable[..., Any]) -> Callable[..., Any]:
    def filtered(value: Any, *args: Any, **kwargs: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Undefined):
            str(value)  # raises: a strict undefined can't be printed
        return function(value, *args, **kwargs)

    return filtered


# ---------------------------------------------------------------------------------------------- Jinja


class _Missing(StrictUndefined):
    """A value that isn't there: any use but `default` and `is defined` is an error."""

    __slots__ = ()


UNDEFINED: Final = _Missing("the value isn't there")  # in a scope, stands for an absent value


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without attributes of Python objects, globals, and operators that outgrow their operands."""

    intercepted_binops = frozenset({"+", "*", "%", "**", "//", "/", "-"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj
        if isinstance(obj, Mapping):
            if isinstance(argument, str | int) and argument in obj:
                return obj[argument]
        elif isinstance(obj, list | tuple | str) and isinstance(argument, int | slice):
            try:
                return obj[argument]
            except IndexError:
                pass
        # A computed key may be a value, which no message may hold.
        named = isinstance(argument, str) and argument.isidentifier() and len(argument) <= 60
        return self.undefined(f"`{argument}` isn't there" if named else "the item isn't there")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for operand in (left, right):
            if isinstance(operand, Undefined):
                str(operand)  # raises
        texts = isinstance(left, str) and isinstance(right, str)
        lists = isinstance(left, list) and isinstance(right, list)
        if operator == "+" and (texts or lists):
            _check_size(len(left) + len(right))
            return left + right
        for operand in (left, right):
            if isinstance(operand, bool) or not isinstance(operand, int | float | Decimal):
                raise ExpressionError(f"`{operator}` needs numbers")
        result = super().call_binop(context, operator, left, right)
        if not abs(result) <= LARGEST_NUMBER:
            raise ExpressionError(f"the result of `{operator}` is out of range")
        return result


def _printed(value: Any) -> Any:
    """Return what stands for a value within a text: nothing for null, `true`, exact numbers."""
    if value is None:
        return ""
    return _string(value) if isinstance(value, bool | Decimal) else value


def _concatenated(values: list[Any]) -> str:
    parts = [str(_printed(value)) for value in values]
    _check_size(sum(map(len, parts)))
    return "".join(parts)


class _Concatenations(NodeTransformer):
    """Makes `a ~ b` treat null as any text does; Jinja would write `None`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - Jinja's naming
        items = nodes.List([self.visit(each) for each in node.nodes], lineno=node.lineno)
        return nodes.Filter(items, _CONCATENATE, [], [], None, None, lineno=node.lineno)


_CONCATENATE = "~"  # not a name an author can write


@cache
def _sandbox() -> _Sandbox:
    environment = _Sandbox(
        undefined=_Missing, autoescape=False, keep_trailing_newline=True, finalize=_printed
    )
    environment.globals.clear()
    environment.filters.clear()
    environment.filters.update(
        {
            name: each.function if name == "default" else _null_stays_null(each.function)
            for name, each in FILTERS.items()
        }
    )
    environment.filters[_CONCATENATE] = _concatenated
    tests = {name: environment.tests[name] for name in TESTS}
    environment.tests.clear()
    environment.tests.update(tests)
    return environment


_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict,
    nodes.Pair, nodes.CondExpr, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add,
    nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat, nodes.Keyword,
)  # fmt: skip


def has_braces(text: str) -> bool:
    """Whether a text is Jinja rather than JMESPath or plain text."""
    return "{{" in text or "{%" in text or "{#" in text


def _compile_jinja(
    text: str, known: Collection[str] | None
) -> tuple[frozenset[str], Callable[[Mapping[str, Any]], Any]]:
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"an expression can have {LONGEST_TEXT} characters, this one has {len(text)}")
    sandbox = _sandbox()
    try:
        for _, token, value in sandbox.lex(text):
            if token in ("block_begin", "comment_begin"):
                raise ExpressionError(
                    f"`{value}` isn't used here: braces hold a value, as in `{{{{ value }}}}`",
                    text.find(value),
                )
        tree = sandbox.parse(text)
        _check_jinja(tree, text)
        names = frozenset(meta.find_undeclared_variables(tree))
        if known is not None:
            for name in sorted(names - set(known), key=lambda each: _offset(text, each) or 0):
                _unknown("value", name, known, _offset(text, name))
        tree = _Concatenations().visit(tree)
        body = [part for output in tree.body if isinstance(output, nodes.Output) for part in output.nodes]
        if len(body) == 1 and not isinstance(body[0], nodes.TemplateData):
            assign = nodes.Assign(nodes.Name("result", "store", lineno=1), body[0], lineno=1)
            template = sandbox.from_string(nodes.Template([assign], lineno=1))
            return names, _guarded(text, names, TemplateExpression(template, undefined_to_none=False))
        return names, _guarded(text, names, sandbox.from_string(tree).render)
    except ExpressionError:
        raise
    except TemplateSyntaxError as error:
        raise ExpressionError(f"`{_short(text)}` can't be read: {_plainly(error.message)}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ExpressionError(f"`{_short(text)}` is nested too deeply") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        # Constant parts are computed while compiling.
        raise ExpressionError(f"`{_short(text)}` can't be computed") from error


def _check_jinja(tree: nodes.Template, text: str) -> None:
    def walk(node: nodes.Node, depth: int) -> None:
        if depth > DEEPEST:
            raise ExpressionError(f"`{_short(text)}` is nested too deeply")
        if isinstance(node, nodes.Call):
            raise ExpressionError(
                "functions and methods can't be called here; use a filter, as in `value | lower`",
                _offset(text, "("),
            )
        if not isinstance(node, _ALLOWED):
            raise ExpressionError(f"`{_short(text)}` uses something that isn't allowed here")
        if isinstance(node, nodes.Const) and isinstance(node.value, float) and math.isinf(node.value):
            raise ExpressionError(f"`{_short(text)}` has a number that is out of range")
        if isinstance(node, nodes.CondExpr) and node.expr2 is None:
            raise ExpressionError(
                "`if` needs an `else`, as in `{{ 'a' if value else 'b' }}`", _offset(text, "if")
            )
        if isinstance(node, nodes.Name) and (node.name == "self" or node.name.startswith("_")):
            _unknown("value", node.name, (), _offset(text, node.name))
        if isinstance(node, nodes.Filter):
            _check_filter(node, text)
        if isinstance(node, nodes.Test):
            _check_test(node, text)
        for child in node.iter_child_nodes():
            walk(child, depth + 1)

    for node in tree.body:
        walk(node, 0)


def _check_filter(node: nodes.Filter, text: str) -> None:
    known = FILTERS.get(node.name)
    if known is None:
        _unknown("filter", node.name, FILTERS, _offset(text, node.name))
    if node.dyn_args or node.dyn_kwargs:
        raise ExpressionError("`*` isn't used here", _offset(text, "*"))
    signature = inspect.signature(known.function)
    try:
        signature.bind(None, *node.args, **{str(each.key): each.value for each in node.kwargs})
    except TypeError:
        wants = [f"`{each}`" for each in list(signature.parameters)[1:]]
        takes = f"takes {listed(wants)} in brackets" if wants else "takes nothing in brackets"
        raise ExpressionError(f"`{node.name}` {takes}", _offset(text, node.name)) from None


def _check_test(node: nodes.Test, text: str) -> None:
    if node.name not in TESTS:
        _unknown("question after `is`", node.name, TESTS, _offset(text, node.name))
    if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise ExpressionError(f"`is {node.name}` takes nothing after it", _offset(text, node.name))


def _unknown(kind: str, name: str, known: Collection[str], position: int | None) -> NoReturn:
    best = nearest(name, known)
    hint = f"; did you mean `{best}`?" if best and best != name else ""
    choices = f"; here are {listed(sorted(known))}" if known and not hint else ""
    raise ExpressionError(f"there is no {kind} `{name}`{hint}{choices}", position)


def _offset(text: str, word: str) -> int | None:
    if not word.isidentifier():
        at = text.find(word)
        return at if at >= 0 else None
    found = re.search(rf"(?<![\w.'\"]){re.escape(word)}(?!\w)", text)
    return found.start() if found else None


def _guarded(
    text: str, names: frozenset[str], run: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Mapping[str, Any]], Any]:
    def evaluate(scope: Mapping[str, Any]) -> Any:
        try:
            value = run(scope)
            if isinstance(value, Undefined):
                str(value)  # raises
        except ExpressionError as error:
            raise ExpressionError(f"{error.message}, in `{_short(text)}`", error.position) from error
        except UndefinedError as error:
            for name in names:
                if name not in scope:
                    _unknown("value", name, scope.keys(), _offset(text, name))
            raise ExpressionError(f"{error.message}, in `{_short(text)}`") from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            # The library's own message may quote the value.
            reason = "division by zero" if isinstance(error, ZeroDivisionError) else "the value doesn't fit"
            raise ExpressionError(f"{reason}, in `{_short(text)}`") from None
        if isinstance(value, str) and len(value) > LONGEST_RESULT:
            raise ExpressionError(f"the result is too long, in `{_short(text)}`")
        return value

    return evaluate


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _plainly(message: str | None) -> str:
    """Put the parser's words in ours."""
    said = (message or "").rstrip(".")
    for theirs, ours in (
        ("'end of print statement'", "`}}`"),
        ("unexpected end of template", "the text ends too early"),
        ("end of template", "the end of the text"),
        ("expected token 'name'", "expected a name"),
    ):
        said = said.replace(theirs, ours)
    return said


# ------------------------------------------------------------------------------------------- JMESPath


class _Functions(jmespath.functions.Functions):
    """JMESPath's own functions, and those a connector can't do without."""

    def _get_allowed_pytypes(self, types: Sequence[str]) -> tuple[list[str], list[Any]]:
        allowed, subtypes = super()._get_allowed_pytypes(types)  # type: ignore[misc, no-untyped-call, unused-ignore]  # the stubs leave this method out
        if "float" in allowed:
            allowed.append("Decimal")
        return allowed, [(*each, "Decimal") if "float" in each else each for each in subtypes]

    @jmespath.functions.signature({"types": ["object", "null"]})
    def _func_items(self, value: dict[str, Any] | None) -> list[dict[str, Any]] | None:
        return None if value is None else [{"key": key, "value": each} for key, each in value.items()]

    @jmespath.functions.signature({"types": ["array", "null"]})
    def _func_from_items(self, value: list[Any] | None) -> dict[str, Any] | None:
        return None if value is None else {str(each["key"]): each["value"] for each in value}

    @jmespath.functions.signature({"types": ["array", "null"]}, {"types": ["array", "null"]})
    def _func_table(self, names: list[Any] | None, rows: list[Any] | None) -> list[dict[str, Any]] | None:
        if names is None or rows is None:
            return None
        return [dict(zip(map(str, names), row, strict=False)) for row in rows]

    @jmespath.functions.signature({"types": ["array", "null"]}, {"types": ["string"]})
    def _func_explode(self, value: list[Any] | None, key: str) -> list[dict[str, Any]] | None:
        if value is None:
            return None
        made = []
        for parent in value:
            outer = {name: each for name, each in parent.items() if name != key}
            for child in parent.get(key) or ():
                made.append({**outer, **(child if isinstance(child, dict) else {key: child})})
        return made

    @jmespath.functions.signature({"types": ["object", "null"], "variadic": True})
    def _func_merge(self, *values: dict[str, Any] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for value in values:
            merged.update(value or {})
        return merged

    @jmespath.functions.signature({"types": ["string", "null"]})
    def _func_to_lower(self, value: str | None) -> str | None:
        return None if value is None else value.lower()

    @jmespath.functions.signature({"types": ["string", "null"]})
    def _func_to_upper(self, value: str | None) -> str | None:
        return None if value is None else value.upper()


class _Interpreter(jmespath.visitor.TreeInterpreter):
    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        if isinstance(left, Decimal) or isinstance(right, Decimal):
            return self.COMPARATOR_FUNC[node["value"]](left, right)
        return super().visit_comparator(node, value)  # type: ignore[no-untyped-call, unused-ignore]  # untyped in the stubs


_PLAIN = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(?:\[[0-9]{1,3}\])*(?:\.[A-Za-z_][A-Za-z0-9_]*(?:\[[0-9]{1,3}\])*)*"
)
_LITERAL = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`((?:\\`|[^`])*)`""")
_MOST_GROWTH = 4096  # how many times larger than its input a result may be
_MOST_TO_STRING = 3  # each nesting doubles the backslashes of the one within


def _compile_jmespath(text: str) -> Callable[[Any], Any]:
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"an expression can have {LONGEST_TEXT} characters, this one has {len(text)}")
    for literal in _LITERAL.finditer(text):
        if literal.group(1) is None:
            continue
        try:
            json.loads(literal.group(1).replace("\\`", "`"))
        except (ValueError, RecursionError):
            # Read as text by the library, which calls it deprecated; more often it is a mistake.
            shown = _short(literal.group())
            message = f"{shown} isn't JSON; write text in quotes, as in `'text'`"
            raise ExpressionError(message, literal.start()) from None
    try:
        tree = jmespath.parser.Parser().parse(text).parsed
    except jmespath.exceptions.EmptyExpressionError:
        raise ExpressionError("the expression is empty", 0) from None
    except (jmespath.exceptions.ParseError, jmespath.exceptions.LexerError) as error:
        position = error.lex_position
        if position >= len(text):
            raise ExpressionError(f"`{_short(text)}` ends too early", len(text)) from error
        raise ExpressionError(
            f"`{_short(text)}` can't be read from `{text[position:][:20]}` on", position
        ) from error
    except (jmespath.exceptions.JMESPathError, ValueError) as error:
        raise ExpressionError(f"`{_short(text)}` can't be read") from error
    except RecursionError as error:
        raise ExpressionError(f"`{_short(text)}` is nested too deeply") from error
    _check_jmespath(tree, text)
    interpreter = _Interpreter(jmespath.visitor.Options(custom_functions=_Functions()))

    def evaluate(data: Any) -> Any:
        try:
            return interpreter.visit(tree, data)
        except (jmespath.exceptions.JMESPathError, TypeError, ValueError, AttributeError, LookupError,
                ArithmeticError, RecursionError):  # fmt: skip
            # The library's own message may quote the value.
            raise ExpressionError(f"`{_short(text)}` doesn't fit the value") from None

    return evaluate


def _check_jmespath(tree: Mapping[str, Any], text: str) -> None:
    growth = 1
    to_strings = 0
    pending: list[tuple[Any, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > DEEPEST:
            raise ExpressionError(f"`{_short(text)}` is nested too deeply")
        kind = node["type"]
        if kind in ("multi_select_list", "multi_select_dict"):
            growth *= max(1, len(node["children"]))
        if kind == "function_expression":
            name = node["value"]
            known = _Functions.FUNCTION_TABLE
            if name not in known:
                _unknown("function", name, list(known), text.find(name))
            wanted = known[name]["signature"]
            given = len(node["children"])
            variadic = bool(wanted) and bool(wanted[-1].get("variadic"))
            if given < len(wanted) or (given > len(wanted) and not variadic):
                more = "at least " if variadic else ""
                raise ExpressionError(
                    f"`{name}` takes {more}{len(wanted)} values, not {given}", text.find(name)
                )
            to_strings += name == "to_string"
        pending.extend((child, depth + 1) for child in node["children"] if isinstance(child, dict))
    if growth > _MOST_GROWTH or to_strings > _MOST_TO_STRING:
        raise ExpressionError(f"`{_short(text)}` could make a result far larger than its input")


def _follow(steps: Steps) -> Callable[[Any], Any]:
    """Return what JMESPath would do with a plain path, without its interpreter."""
    if len(steps) == 1:
        (only,) = steps
        return lambda data: data.get(only) if isinstance(data, _OBJECT) else None

    def follow(data: Any) -> Any:
        for step in steps:
            if isinstance(step, str):
                if not isinstance(data, _OBJECT):
                    return None
                data = data.get(step)
            elif not isinstance(data, list) or step >= len(data):
                return None
            else:
                data = data[step]
        return data

    return follow


# ---------------------------------------------------------------------------- expressions and templates


@dataclass(frozen=True, slots=True)
class Expression:
    """A read-only text of a manifest or template.

    `names` are the values a Jinja text uses, empty for JMESPath. `steps` are those of a text that is a plain
    path, else None.
    """

    text: str
    names: frozenset[str] = frozenset()
    steps: Steps | None = None
    _run: Callable[[Any, Mapping[str, Any]], Any] = field(
        default=lambda data, scope: None, repr=False, compare=False
    )

    @classmethod
    def compile(cls, text: str, *, names: Collection[str] | None = None) -> Expression:
        """Compile a text: with braces it is Jinja, without it is JMESPath.

        With `names`, a Jinja text that uses another name is refused. Raises ExpressionError.
        """
        if has_braces(text):
            used, render = _compile_jinja(text, names)
            return cls(text, used, None, lambda data, scope: render(scope))
        if _PLAIN.fullmatch(text) and len(text) <= LONGEST_TEXT:
            steps = parse_steps(text)
            follow = _follow(steps)
            return cls(text, frozenset(), steps, lambda data, scope: follow(data))
        search = _compile_jmespath(text)
        return cls(text, frozenset(), None, lambda data, scope: search(data))

    def evaluate(self, data: Any, scope: Mapping[str, Any] | None = None) -> Any:
        """Return the value of JMESPath over `data`, or of Jinja over `scope`.

        A text that is one `{{ … }}` keeps the value's type, any other Jinja text gives text. JMESPath gives
        None for what isn't there; Jinja raises ExpressionError, which never quotes a value.
        """
        return self._run(data, {} if scope is None else scope)


@dataclass(frozen=True, slots=True)
class Template:
    """A YAML tree whose texts may hold braces: a body, a set of headers, a query."""

    value: Any
    names: frozenset[str] = frozenset()
    constant: bool = True
    _render: Callable[[Mapping[str, Any]], Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def compile(cls, value: Any, *, names: Collection[str] | None = None) -> Template:
        """Compile every text with braces in a tree; the rest stays as it is. Raises ExpressionError."""
        used: set[str] = set()
        render = _compile_tree(value, names, used)
        return cls(value, frozenset(used), render is None, render)

    def render(self, scope: Mapping[str, Any] | None = None) -> Any:
        """Return the tree with every text filled in. A constant template returns the very same object."""
        return self.value if self._render is None else self._render({} if scope is None else scope)


def template_faults(
    value: Any, *, names: Collection[str] | None = None, at: Steps = ()
) -> Iterator[tuple[Steps, ExpressionError]]:
    """Yield every text of a tree that doesn't compile, with its place in the tree."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from template_faults(each, names=names, at=(*at, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from template_faults(each, names=names, at=(*at, index))
    elif isinstance(value, str) and has_braces(value):
        try:
            _compile_jinja(value, names)
        except ExpressionError as error:
            yield at, error


def _compile_tree(
    value: Any, known: Collection[str] | None, used: set[str]
) -> Callable[[Mapping[str, Any]], Any] | None:
    """Return what renders a tree, or None when nothing in it varies."""
    if isinstance(value, str) and has_braces(value):
        names, render = _compile_jinja(value, known)
        used |= names
        return render
    if isinstance(value, Mapping):
        made = {key: _compile_tree(each, known, used) for key, each in value.items()}
        if any(made.values()):
            return lambda scope: {
                key: render(scope) if render else value[key] for key, render in made.items()
            }
    elif isinstance(value, list):
        parts = [_compile_tree(each, known, used) for each in value]
        if any(parts):
            return lambda scope: [
                render(scope) if render else each for each, render in zip(value, parts, strict=True)
            ]
    return None


def filters_page() -> str:
    """Return the reference page of filters, as Markdown."""
    lines = [
        "# Filters",
        "",
        "A value in braces goes through a filter like this: `{{ value | upper }}`.",
        "Null stays null in every filter but `default`. An absent value is an error, except for `default`",
        "and within the list of `join`.",
        "",
        "| Filter | Does | Example | Gives |",
        "|---|---|---|---|",
    ]
    for name in sorted(FILTERS):
        each = FILTERS[name]
        takes = list(inspect.signature(each.function).parameters)[1:]
        written = f"{name}({', '.join(takes)})" if takes else name
        example = each.example.replace("|", "\\|")
        gives = json.dumps(each.gives, default=str, ensure_ascii=False)
        lines.append(f"| `{written}` | {each.doc} | `{example}` | `{gives}` |")
    lines += [
        "",
        "Besides filters there are `+ - * / // %` on numbers, `+` on texts and lists, `~` joining texts",
        "(null is empty), comparisons, `in`, `and`, `or`, `not`, `a if b else c`, `value.name`, `value[0]`,",
        "`value[0:3]`, lists, objects, and `is` with",
        f"{', '.join(f'`{each}`' for each in TESTS)}.",
        "Functions and methods can't be called, and there are no statements (`{% … %}`).",
        "",
    ]
    return "\n".join(lines)
