"""Changes of one expression: each a text that says something else, and where it differs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment

from engine.expressions import has_braces

_LEXER = Environment(autoescape=True, keep_trailing_newline=True)
_SPACE = ("whitespace", "comment")
_OPEN, _CLOSE = ("(", "[", "{"), (")", "]", "}")
_CALCULATIONS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*"}
_COMPARISONS = {
    "==": ("!=",),
    "!=": ("==",),
    ">=": ("<", ">"),
    ">": ("<=", ">="),
    "<=": (">", "<"),
    "<": (">=", "<="),
}
_QUERY = re.compile(
    r"(?P<literal>`[^`]*`|'[^']*')|(?P<compares>[=!<>]=|[<>])|(?P<joins>&&|\|\|)|(?P<not>!)|(?P<name>[A-Za-z_]\w*(?!\w*\())"
)


@dataclass(frozen=True, slots=True)
class Change:
    """One way to say something else: at `offset` of the old text, `now` in place of `was`."""

    kind: str
    offset: int
    was: str
    now: str
    text: str


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int


def changes_of(text: str) -> Iterator[Change]:
    """Yield every change of one word of an expression."""
    yield from _changes_of_braces(text) if has_braces(text) else _changes_of_query(text)


def negated(text: str) -> str | None:
    """Return the opposite of a condition; None where it isn't one whole expression."""
    if not has_braces(text):
        return f"!({text})"
    body = text.strip()
    whole = body.startswith("{{") and body.endswith("}}") and body.count("{{") == 1
    return f"{{{{ not ({body[2:-2].strip()}) }}}}" if whole else None


def _swap(text: str, kind: str, token: _Token, now: str, was: str | None = None) -> Change:
    was = token.text if was is None else was
    end = token.offset + len(was)
    return Change(kind, token.offset, was.strip(), now.strip(), text[: token.offset] + now + text[end:])


# ---- braces --------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[_Token]:
    made, offset = [], 0
    for _, kind, value in _LEXER.lex(text):
        made.append(_Token(kind, value, offset))
        offset += len(value)
    return made


def _changes_of_braces(text: str) -> Iterator[Change]:
    tokens = [each for each in _tokens(text) if each.kind not in _SPACE]
    for at, token in enumerate(tokens):
        before = tokens[at - 1].text if at else ""
        after = tokens[at + 1].text if at + 1 < len(tokens) else ""
        if token.kind == "data" and token.text.strip():
            yield _swap(text, "change constant", token, f"{token.text}~")
        elif token.kind == "string":
            quote = token.text[0]
            yield _swap(text, "change constant", token, f"{token.text[:-1]}~{quote}")
        elif token.kind == "integer":
            yield _swap(text, "change constant", token, str(int(token.text) + 1))
        elif token.kind == "float":
            yield _swap(text, "change constant", token, f"{token.text}1")
        elif token.kind == "operator":
            yield from _changes_of_sign(text, tokens, at)
        elif token.kind == "name":
            yield from _changes_of_name(text, tokens, at, before, after)


def _changes_of_sign(text: str, tokens: Sequence[_Token], at: int) -> Iterator[Change]:
    token = tokens[at]
    for now in _COMPARISONS.get(token.text, ()):
        yield _swap(text, "change comparison", token, now)
    if token.text in _CALCULATIONS:
        yield _swap(text, "change calculation", token, _CALCULATIONS[token.text])
    if token.text == "|":
        end = at + 1  # the filter's name
        if end + 1 < len(tokens) and tokens[end + 1].text == "(":
            end = _closing(tokens, end + 1)
        stop = tokens[end].offset + len(tokens[end].text)
        yield _swap(text, "remove filter", token, "", text[token.offset : stop])


def _changes_of_name(
    text: str, tokens: Sequence[_Token], at: int, before: str, after: str
) -> Iterator[Change]:
    token = tokens[at]
    if before in (".",):
        yield _swap(text, "change source", token, f"{token.text}_")
    elif before == "|" or before == "is" or (before == "not" and at > 1 and tokens[at - 2].text == "is"):
        return  # a filter's name, and what `is` asks: they are changed as a whole
    elif token.text in ("true", "false"):
        yield _swap(text, "change constant", token, "false" if token.text == "true" else "true")
    elif token.text == "none":
        yield _swap(text, "change constant", token, "'~'")
    elif token.text in ("and", "or"):
        yield _swap(text, "change condition", token, "or" if token.text == "and" else "and")
    elif token.text == "in" and before != "not":
        yield _swap(text, "negate condition", token, "not in")
    elif token.text == "is":
        negative = after == "not"
        stop = tokens[at + 1] if negative else token
        was = text[token.offset : stop.offset + len(stop.text)]
        yield _swap(text, "negate condition", token, "is" if negative else "is not", was)
    elif token.text == "not":
        yield _swap(text, "negate condition", token, "")
    elif token.text == "if":
        end = tokens[_end_of_condition(tokens, at)].offset
        inner = text[tokens[at + 1].offset : end].strip()
        yield _swap(text, "negate condition", token, f"if not ({inner}) ", text[token.offset : end])
    elif token.text in ("value", "item") and before != "." and after != ".":
        yield _swap(text, "change source", token, "none")


def _closing(tokens: Sequence[_Token], at: int) -> int:
    depth = 0
    for number in range(at, len(tokens)):
        depth += (tokens[number].text in _OPEN) - (tokens[number].text in _CLOSE)
        if depth == 0:
            return number
    return len(tokens) - 1


def _end_of_condition(tokens: Sequence[_Token], at: int) -> int:
    """Return which token ends the condition after an `if`: its `else`, or what it stands within."""
    depth = 0
    for number in range(at + 1, len(tokens)):
        text = tokens[number].text
        if depth == 0 and (
            text == "else" or text in _CLOSE or text == "," or tokens[number].kind == "variable_end"
        ):
            return number
        depth += (text in _OPEN) - (text in _CLOSE)
    return len(tokens) - 1


# ---- JMESPath ------------------------------------------------------------------------------------------


def _changes_of_query(text: str) -> Iterator[Change]:
    for found in _QUERY.finditer(text):
        word, token = found.group(), _Token("", found.group(), found.start())
        match found.lastgroup:
            case "literal":
                inner = word[1:-1]
                numeric = re.fullmatch(r"-?\d+", inner)
                changed = (
                    str(int(inner) + 1)
                    if numeric
                    else {"true": "false", "false": "true"}.get(inner, f"{inner}~")
                )
                yield _swap(text, "change constant", token, f"{word[0]}{changed}{word[0]}")
            case "compares":
                for now in _COMPARISONS[word]:
                    yield _swap(text, "change comparison", token, now)
            case "joins":
                yield _swap(text, "change condition", token, "||" if word == "&&" else "&&")
            case "not":
                yield _swap(text, "negate condition", token, "")
            case _:
                yield _swap(text, "change source", token, f"{word}_")
