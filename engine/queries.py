"""JMESPath, with the functions a connector can't do without, under the ceilings of every expression."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any

import jmespath.exceptions
import jmespath.functions
import jmespath.parser
import jmespath.visitor

from engine.ceilings import (
    STEP,
    check_depth,
    check_length,
    check_size,
    short,
    spend,
    spend_on,
    unknown,
)
from engine.errors import ExpressionError
from engine.filters import as_text


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

    @jmespath.functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, items: list[str]) -> str:
        check_size(sum(map(len, items)) + len(separator) * len(items))
        return separator.join(items)

    @jmespath.functions.signature({"types": ["array", "null"]}, {"types": ["array", "null"]})
    def _func_table(self, names: list[Any] | None, rows: list[Any] | None) -> list[dict[str, Any]] | None:
        if names is None or rows is None:
            return None
        spend(8 * len(names) * len(rows))
        return [dict(zip(map(str, names), row, strict=False)) for row in rows]

    @jmespath.functions.signature({"types": ["array", "null"]}, {"types": ["string"]})
    def _func_explode(self, value: list[Any] | None, key: str) -> list[dict[str, Any]] | None:
        if value is None:
            return None
        made = []
        for parent in value:
            outer = {name: each for name, each in parent.items() if name != key}
            for child in parent.get(key) or ():
                spend(8 + 8 * len(outer))
                made.append({**outer, **(child if isinstance(child, dict) else {key: child})})
        return made

    @jmespath.functions.signature({"types": ["object", "null"], "variadic": True})
    def _func_merge(self, *values: dict[str, Any] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for value in values:
            merged.update(value or {})
        return merged

    # Exact numbers, as the platform's amounts are, are numbers: the library's own cut off their decimals.

    @jmespath.functions.signature({"types": []})
    def _func_to_number(self, value: Any) -> Any:
        if isinstance(value, Decimal):
            return value
        made = super()._func_to_number(value)  # type: ignore[misc, no-untyped-call, unused-ignore]  # the stubs leave this method out
        return None if isinstance(made, float) and not isfinite(made) else made

    @jmespath.functions.signature({"types": []})
    def _func_to_string(self, value: Any) -> Any:
        if isinstance(value, Decimal):
            return as_text(value)
        return super()._func_to_string(value)  # type: ignore[misc, no-untyped-call, unused-ignore]  # the stubs leave this method out

    @jmespath.functions.signature({"types": []})
    def _func_type(self, value: Any) -> Any:
        if isinstance(value, Decimal):
            return "number"
        return super()._func_type(value)  # type: ignore[misc, no-untyped-call, unused-ignore]  # the stubs leave this method out

    @jmespath.functions.signature({"types": ["string", "null"]})
    def _func_to_lower(self, value: str | None) -> str | None:
        return None if value is None else value.lower()

    @jmespath.functions.signature({"types": ["string", "null"]})
    def _func_to_upper(self, value: str | None) -> str | None:
        return None if value is None else value.upper()


_FUNCTIONS = _Functions()
_VISIT = STEP  # what a step into a node costs
_WHOLE = frozenset(("to_string", "contains", "join"))  # functions that look into all of what they are given


class _Interpreter(jmespath.visitor.TreeInterpreter):
    """Counts its steps: a projection repeats what follows it for every item."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        spend(_VISIT)
        return _VISITS[node["type"]](self, node, *args)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        if isinstance(left, Decimal) or isinstance(right, Decimal):
            return self.COMPARATOR_FUNC[node["value"]](left, right)
        return super().visit_comparator(node, value)  # type: ignore[no-untyped-call, unused-ignore]  # untyped in the stubs

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        spend(8 * sum(len(each) if isinstance(each, list) else 1 for each in base))  # before they are there
        return [item for each in base for item in (each if isinstance(each, list) else (each,))]

    def visit_slice(self, node: Any, value: Any) -> Any:
        made = super().visit_slice(node, value)  # type: ignore[no-untyped-call, unused-ignore]  # untyped in the stubs
        spend(8 * len(made or ()))
        return made

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        given = [self.visit(child, value) for child in node["children"]]
        name = node["value"]
        for each in given:
            if name in _WHOLE:
                spend_on(each)
            elif isinstance(each, str):
                spend(len(each))
            elif isinstance(each, list | dict):
                spend(8 * len(each))
        made = _FUNCTIONS.call_function(name, given)
        if isinstance(made, float) and not isfinite(made):
            raise ValueError  # JSON has no such number
        return made


_VISITS: Mapping[str, Callable[..., Any]] = {
    name.removeprefix("visit_"): getattr(_Interpreter, name)
    for name in dir(_Interpreter)
    if name.startswith("visit_")
}


def _finite(text: str) -> float:
    """Return the number of a literal; raises ValueError for one that JSON doesn't have."""
    number = float(text)
    if not isfinite(number):
        raise ValueError
    return number


_LITERAL = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`((?:\\`|[^`])*)`""")
_LITERALS = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_DEEPEST = 110  # nested parts, such as a dot or a pipe; each takes two calls of Python's
_MOST_GROWTH = 4096  # how many times larger than its input a result may be
_MOST_TO_STRING = 3  # each nesting doubles the backslashes of the one within


def compile_query(text: str) -> Callable[[Any], Any]:
    """Return the function a JMESPath text means; both raise ExpressionError, never quoting a value."""
    check_length(text)
    for literal in _LITERAL.finditer(text):
        if literal.group(1) is None:
            continue
        try:
            value = _LITERALS.decode(literal.group(1).replace("\\`", "`"))
        except RecursionError:
            raise ExpressionError(f"`{short(text)}` is nested too deeply", literal.start()) from None
        except ValueError:
            # Read as text by the library, which calls it deprecated; more often it is a mistake.
            shown = short(literal.group())
            message = f"{shown} isn't JSON; write text in quotes, as in `'text'`"
            raise ExpressionError(message, literal.start()) from None
        check_depth(value)
    try:
        tree = jmespath.parser.Parser().parse(text).parsed
    except jmespath.exceptions.EmptyExpressionError:
        raise ExpressionError("the expression is empty", 0) from None
    except (jmespath.exceptions.ParseError, jmespath.exceptions.LexerError) as error:
        position = error.lex_position
        if position >= len(text):
            raise ExpressionError(f"`{short(text)}` ends too early", len(text)) from error
        raise ExpressionError(
            f"`{short(text)}` can't be read from `{text[position:][:20]}` on", position
        ) from error
    except (jmespath.exceptions.JMESPathError, ValueError) as error:
        raise ExpressionError(f"`{short(text)}` can't be read") from error
    except RecursionError as error:
        raise ExpressionError(f"`{short(text)}` is nested too deeply") from error
    _check_jmespath(tree, text)
    interpreter = _Interpreter()

    def evaluate(data: Any) -> Any:
        try:
            return interpreter.visit(tree, data)
        except ExpressionError as error:
            raise ExpressionError(f"{error.message}, in `{short(text)}`") from error
        except (jmespath.exceptions.JMESPathError, TypeError, ValueError, AttributeError, LookupError,
                ArithmeticError, RecursionError):  # fmt: skip
            # The library's own message may quote the value.
            raise ExpressionError(f"`{short(text)}` doesn't fit the value") from None

    return evaluate


def _check_jmespath(tree: Mapping[str, Any], text: str) -> None:
    growth = 1
    to_strings = 0
    taken: set[int] = set()  # the `&` that functions ask for
    pending: list[tuple[Any, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > _DEEPEST:
            raise ExpressionError(f"`{short(text)}` is nested too deeply")
        kind = node["type"]
        if kind in ("multi_select_list", "multi_select_dict"):
            # Copies of all there is are seen here; copies of its parts cost work when they are made use of.
            chosen = [
                each["children"][0] if each["type"] == "key_val_pair" else each for each in node["children"]
            ]
            growth *= max(1, sum(each["type"] == "current" for each in chosen))
        if kind == "function_expression":
            name = node["value"]
            known = _Functions.FUNCTION_TABLE
            if name not in known:
                unknown("function", name, list(known), text.find(name))
            wanted = known[name]["signature"]
            given = len(node["children"])
            variadic = bool(wanted) and bool(wanted[-1].get("variadic"))
            if given < len(wanted) or (given > len(wanted) and not variadic):
                more = "at least " if variadic else ""
                raise ExpressionError(
                    f"`{name}` takes {more}{len(wanted)} values, not {given}", text.find(name)
                )
            to_strings += name == "to_string"
            taken.update(
                id(each)
                for each, takes in zip(node["children"], wanted, strict=False)
                if takes["types"] == ["expref"]
            )
        if kind == "expref" and id(node) not in taken:
            raise ExpressionError(
                "`&` says what a function does with each item: it stands for no value", text.find("&")
            )
        pending.extend((child, depth + 1) for child in node["children"] if isinstance(child, dict))
    if growth > _MOST_GROWTH or to_strings > _MOST_TO_STRING:
        raise ExpressionError(f"`{short(text)}` could make a result far larger than its input")
