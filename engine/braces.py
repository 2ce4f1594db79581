"""Values in braces: Jinja's expressions, turned into functions that can do nothing else.

Jinja reads the text. What may be in it is a list of allowed parts of an expression: no statements, no calls,
no attributes of Python objects. Each part is then written as Python of our own, in which whatever the author
wrote stands only as a literal, and every use of a value is a call of a function below. Nothing is computed
while compiling.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final

import jinja2.tests
from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import TemplateError

from engine.ceilings import (
    DEEPEST,
    check_length,
    check_size,
    offset,
    short,
    spend,
    spend_on,
    unknown,
)
from engine.diagnostics import listed
from engine.errors import ExpressionError
from engine.filters import FILTERS, as_text

LARGEST_NUMBER: Final = 10**40
_SMALL: Final = 256  # characters not worth counting: an expression has room for some hundred operations

# What `is` may ask.
TESTS = ("boolean", "defined", "false", "float", "integer", "mapping", "none", "number", "sequence",
         "string", "true", "undefined")  # fmt: skip


# What the direct function of an expression may raise, besides its result being a missing value.
FAILURES: Final = (
    ExpressionError, TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Braces:
    """A text with braces, compiled: the names it uses, in order, and two ways to evaluate it.

    `run(scope)` takes the values by name. `direct(*values)` takes them in the order of `names`, for one
    that has called `ceilings.begin`: it raises FAILURES, which `refusal` puts into words, and its result
    still has to go through `finished` unless it is a text, a whole number, true, false or null.
    """

    text: str
    names: tuple[str, ...]
    direct: Callable[..., Any]

    def run(self, scope: Mapping[str, Any]) -> Any:
        """Return the value; raises ExpressionError, which never quotes a value."""
        try:
            return finished(self.direct(*[scope.get(name, UNDEFINED) for name in self.names]))
        except FAILURES as error:
            if isinstance(error, UndefinedError):
                for name in self.names:
                    if name not in scope:
                        unknown("value", name, scope.keys(), offset(self.text, name))
            raise self.refusal(error) from (error if isinstance(error, ExpressionError) else None)

    def refusal(self, error: Exception) -> ExpressionError:
        """Return what failed, in words that quote no value."""
        place = f", in `{short(self.text)}`"
        if isinstance(error, ExpressionError):
            return ExpressionError(f"{error.message}{place}", error.position)
        if isinstance(error, UndefinedError):
            return ExpressionError(f"{error.message}{place}")
        # The library's own message may quote the value.
        reason = "division by zero" if isinstance(error, ZeroDivisionError) else "the value doesn't fit"
        return ExpressionError(f"{reason}{place}")


def finished(value: Any) -> Any:
    """Return the result of an expression, if it is one that may leave it; raises FAILURES."""
    if isinstance(value, Undefined):
        str(value)  # raises
    if isinstance(value, str):
        check_size(len(value))
    elif isinstance(value, list | tuple | dict):
        spend_on(value)
    return value


class _Missing(StrictUndefined):
    """A value that isn't there: any use but `default` and `is defined` is an error."""

    __slots__ = ()


_NOT_THERE = "the value isn't there"
UNDEFINED: Final = _Missing(_NOT_THERE)  # in a scope, stands for an absent value


def is_of_missing(error: Exception) -> bool:
    """Say whether an expression failed because it used UNDEFINED, and for no other reason."""
    return isinstance(error, UndefinedError | ExpressionError) and str(error.message).startswith(_NOT_THERE)


# ---- what the written functions call -----------------------------------------------------------------


def _item(holder: Any, key: Any) -> Any:
    if type(holder) is dict and type(key) is str and key in holder:  # what nearly every use is
        return holder[key]
    if isinstance(holder, Undefined):
        return holder
    if isinstance(key, Undefined):
        return key
    if isinstance(holder, Mapping):
        if isinstance(key, str | int) and key in holder:
            return holder[key]
    elif isinstance(holder, list | tuple | str) and isinstance(key, int | slice):
        try:
            found = holder[key]
        except IndexError:
            pass
        else:
            if isinstance(key, slice):
                spend(len(found))
            return found
    # A computed key may be a value, which no message may hold.
    named = isinstance(key, str) and key.isidentifier() and len(key) <= 60
    return _Missing(f"`{key}` isn't there" if named else "the item isn't there")


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _calculated(sign: str, left: Any, right: Any) -> Any:
    for operand in (left, right):
        if isinstance(operand, Undefined):
            str(operand)  # raises
    texts = isinstance(left, str) and isinstance(right, str)
    lists = isinstance(left, list) and isinstance(right, list)
    if sign == "+" and (texts or lists):
        check_size(len(left) + len(right))
        return left + right
    for operand in (left, right):
        if isinstance(operand, bool) or not isinstance(operand, int | float | Decimal):
            raise ExpressionError(f"`{sign}` needs numbers")
    result = _OPERATORS[sign](left, right)
    if not abs(result) <= LARGEST_NUMBER:
        raise ExpressionError(f"the result of `{sign}` is out of range")
    return result


def _printed(value: Any) -> str:
    """Return what stands for a value within a text: nothing for null, `true`, exact numbers."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, bool | Decimal):
        return as_text(value)
    if isinstance(value, Mapping | list | tuple):
        spend_on(value)
    return str(value)


def _joined(*values: Any) -> str:
    size, parts = 0, []
    for value in values:
        part = value if type(value) is str else _printed(value)
        size += len(part)
        parts.append(part)
    if size > _SMALL:
        check_size(size)
    return "".join(parts)


def _null_stays_null(function: Callable[..., Any]) -> Callable[..., Any]:
    def filtered(value: Any, *args: Any, **named: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, str):
            if len(value) > _SMALL:
                spend(len(value))
        elif isinstance(value, Undefined):
            str(value)  # raises: a strict undefined can't be printed
        return function(value, *args, **named) if named else function(value, *args)

    return filtered


_FILTERS: Mapping[str, Callable[..., Any]] = {
    name: each.function if name == "default" else _null_stays_null(each.function)
    for name, each in FILTERS.items()
}
_BUILT: Mapping[str, Any] = {
    "__builtins__": {},
    "item": _item,
    "calculated": _calculated,
    "joined": _joined,
    "slice": slice,
    **{f"is_{name}": jinja2.tests.TESTS[name] for name in TESTS},
    **{f"filter_{name}": each for name, each in _FILTERS.items()},
}


# ---- reading ------------------------------------------------------------------------------------------


@cache
def _grammar() -> Environment:
    """Return what reads the texts; it never runs one."""
    return Environment(autoescape=False, keep_trailing_newline=True)  # noqa: S701 - what is made is no HTML


def compile_braces(text: str, known: Collection[str] | None) -> Braces:
    """Compile a text with braces.

    A text that is one `{{ … }}` keeps the value's type, any other gives text. With `known`, another name is
    refused. Raises ExpressionError.
    """
    check_length(text)
    try:
        for _, token, value in _grammar().lex(text):
            if token in ("block_begin", "comment_begin", "raw_begin"):
                raise ExpressionError(
                    f"`{value}` isn't used here: braces hold a value, as in `{{{{ value }}}}`",
                    text.find(value),
                )
        tree = _grammar().parse(text)
        _check(tree, text)
        names = sorted({name.name for name in tree.find_all(nodes.Name)})
        if known is not None:
            for name in sorted(set(names) - set(known), key=lambda each: offset(text, each) or 0):
                unknown("value", name, known, offset(text, name))
        return Braces(text, tuple(names), _written(tree, names))
    except TemplateSyntaxError as error:
        raise ExpressionError(f"`{short(text)}` can't be read: {_plainly(error.message)}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ExpressionError(f"`{short(text)}` is nested too deeply") from error
    except ValueError as error:
        raise ExpressionError(f"`{short(text)}` can't be read") from error


_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict,
    nodes.Pair, nodes.CondExpr, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add,
    nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat, nodes.Keyword,
)  # fmt: skip


def _check(tree: nodes.Template, text: str) -> None:
    def walk(node: nodes.Node, depth: int) -> None:
        if depth > DEEPEST:
            raise ExpressionError(f"`{short(text)}` is nested too deeply")
        if isinstance(node, nodes.Call):
            raise ExpressionError(
                "functions and methods can't be called here; use a filter, as in `value | lower`",
                offset(text, "("),
            )
        if not isinstance(node, _ALLOWED):
            raise ExpressionError(f"`{short(text)}` uses something that isn't allowed here")
        if isinstance(node, nodes.Const) and isinstance(node.value, float) and math.isinf(node.value):
            raise ExpressionError(f"`{short(text)}` has a number that is out of range")
        if isinstance(node, nodes.CondExpr) and node.expr2 is None:
            raise ExpressionError(
                "`if` needs an `else`, as in `{{ 'a' if value else 'b' }}`", offset(text, "if")
            )
        if isinstance(node, nodes.Name) and (node.name == "self" or node.name.startswith("_")):
            unknown("value", node.name, (), offset(text, node.name))
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
        unknown("filter", node.name, FILTERS, offset(text, node.name))
    if node.dyn_args or node.dyn_kwargs:
        raise ExpressionError("`*` isn't used here", offset(text, "*"))
    signature = inspect.signature(known.function)
    try:
        signature.bind(None, *node.args, **{str(each.key): each.value for each in node.kwargs})
    except TypeError:
        wants = [f"`{each}`" for each in list(signature.parameters)[1:]]
        takes = f"takes {listed(wants)} in brackets" if wants else "takes nothing in brackets"
        raise ExpressionError(f"`{node.name}` {takes}", offset(text, node.name)) from None


def _check_test(node: nodes.Test, text: str) -> None:
    if node.name not in TESTS:
        unknown("question after `is`", node.name, TESTS, offset(text, node.name))
    if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise ExpressionError(f"`is {node.name}` takes nothing after it", offset(text, node.name))


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


# ---- writing ------------------------------------------------------------------------------------------

_COMPARISONS: Mapping[str, str] = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip


def _written(tree: nodes.Template, names: list[str]) -> Callable[..., Any]:
    """Return the function a checked text means."""
    variables = {name: f"n{number}" for number, name in enumerate(names)}
    parts = [part for output in tree.body if isinstance(output, nodes.Output) for part in output.nodes]
    if len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData):
        result = _python(parts[0], variables)
    else:
        result = f"joined({', '.join(_python(part, variables) for part in parts)})"
    source = f"def direct({', '.join(variables.values())}):\n    return {result}\n"
    namespace = dict(_BUILT)
    exec(compile(source, "<braces>", "exec"), namespace)  # noqa: S102 - the author's words are literals
    made: Callable[..., Any] = namespace["direct"]
    return made


def _python(node: nodes.Node, names: Mapping[str, str]) -> str:
    write = _WRITERS[type(node)]
    return write(node, lambda each: "None" if each is None else _python(each, names), names)


_Inner = Callable[[Any], str]
_Writer = Callable[[Any, _Inner, Mapping[str, str]], str]


def _binary(sign: str) -> _Writer:
    return lambda node, inner, names: f"calculated({sign!r}, {inner(node.left)}, {inner(node.right)})"


def _compare(node: nodes.Compare, inner: _Inner, names: Mapping[str, str]) -> str:
    rest = "".join(f" {_COMPARISONS[each.op]} {inner(each.expr)}" for each in node.ops)
    return f"({inner(node.expr)}{rest})"


def _filter(node: nodes.Filter, inner: _Inner, names: Mapping[str, str]) -> str:
    given = [inner(each) for each in (node.node, *node.args)]
    given += [f"{each.key}={inner(each.value)}" for each in node.kwargs]
    return f"filter_{node.name}({', '.join(given)})"


def _dict(node: nodes.Dict, inner: _Inner, names: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{inner(each.key)}: {inner(each.value)}" for each in node.items) + "}"


_WRITERS: Mapping[type[nodes.Node], _Writer] = {
    nodes.TemplateData: lambda node, inner, names: repr(node.data),
    nodes.Name: lambda node, inner, names: names[node.name],
    nodes.Const: lambda node, inner, names: f"({node.value!r})",
    nodes.List: lambda node, inner, names: f"[{', '.join(map(inner, node.items))}]",
    nodes.Tuple: lambda node, inner, names: f"({''.join(f'{inner(each)}, ' for each in node.items)})",
    nodes.Dict: _dict,
    nodes.CondExpr: lambda node, inner, names: (
        f"({inner(node.expr1)} if {inner(node.test)} else {inner(node.expr2)})"
    ),
    nodes.Getattr: lambda node, inner, names: f"item({inner(node.node)}, {node.attr!r})",
    nodes.Getitem: lambda node, inner, names: f"item({inner(node.node)}, {inner(node.arg)})",
    nodes.Slice: lambda node, inner, names: (
        f"slice({inner(node.start)}, {inner(node.stop)}, {inner(node.step)})"
    ),
    nodes.Filter: _filter,
    nodes.Test: lambda node, inner, names: f"is_{node.name}({inner(node.node)})",
    nodes.Compare: _compare,
    nodes.And: lambda node, inner, names: f"({inner(node.left)} and {inner(node.right)})",
    nodes.Or: lambda node, inner, names: f"({inner(node.left)} or {inner(node.right)})",
    nodes.Not: lambda node, inner, names: f"(not {inner(node.node)})",
    nodes.Neg: lambda node, inner, names: f"(-{inner(node.node)})",
    nodes.Pos: lambda node, inner, names: f"(+{inner(node.node)})",
    nodes.Concat: lambda node, inner, names: f"joined({', '.join(map(inner, node.nodes))})",
    nodes.Add: _binary("+"),
    nodes.Sub: _binary("-"),
    nodes.Mul: _binary("*"),
    nodes.Div: _binary("/"),
    nodes.FloorDiv: _binary("//"),
    nodes.Mod: _binary("%"),
}
