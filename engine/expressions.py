"""Paths, JMESPath and sandboxed Jinja, compiled once.

A path is names, dots and `[n]`: it reads and writes, and tells *absent* from *null*. In a read-only place,
text without braces is JMESPath over the data (`engine.queries`) and text with braces is Jinja over named
values (`engine.braces`). Neither can do more than make a value of the values it is given, nor work that
outgrows them. A manifest or template from a stranger can be compiled and run in a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from engine.braces import Braces, compile_braces
from engine.ceilings import begin, check_length
from engine.errors import ExpressionError
from engine.queries import compile_query

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


# ---- expressions and templates ------------------------------------------------------------------------

_PLAIN = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(?:\[[0-9]{1,3}\])*(?:\.[A-Za-z_][A-Za-z0-9_]*(?:\[[0-9]{1,3}\])*)*"
)


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


def has_braces(text: str) -> bool:
    """Whether a text is Jinja rather than JMESPath or plain text."""
    return "{{" in text or "{%" in text or "{#" in text


@dataclass(frozen=True, slots=True)
class Expression:
    """A read-only text of a manifest or template.

    `names` are the values a Jinja text uses, empty for JMESPath. `steps` are those of a text that is a plain
    path, else None. `run(data, scope)` is `evaluate` within the work that its caller has allowed
    (`ceilings.begin`): for many expressions under one ceiling.
    """

    text: str
    names: frozenset[str] = frozenset()
    steps: Steps | None = None
    run: Callable[[Any, Mapping[str, Any]], Any] = field(
        default=lambda data, scope: None, repr=False, compare=False
    )
    braces: Braces | None = field(default=None, repr=False, compare=False)

    @classmethod
    def compile(cls, text: str, *, names: Collection[str] | None = None) -> Expression:
        """Compile a text: with braces it is Jinja, without it is JMESPath.

        With `names`, a Jinja text that uses another name is refused. Raises ExpressionError.
        """
        if has_braces(text):
            made = compile_braces(text, names)
            return cls(text, frozenset(made.names), None, lambda data, scope: made.run(scope), made)
        check_length(text)
        if _PLAIN.fullmatch(text) and text.count(".") + text.count("[") < MOST_STEPS:
            steps = parse_steps(text)
            follow = _follow(steps)
            return cls(text, frozenset(), steps, lambda data, scope: follow(data))
        search = compile_query(text)
        return cls(text, frozenset(), None, lambda data, scope: search(data))

    def evaluate(self, data: Any, scope: Mapping[str, Any] | None = None) -> Any:
        """Return the value of JMESPath over `data`, or of Jinja over `scope`.

        A text that is one `{{ … }}` keeps the value's type, any other Jinja text gives text. JMESPath gives
        None for what isn't there; Jinja raises ExpressionError, which never quotes a value.
        """
        if self.steps is None:
            begin()
        return self.run(data, {} if scope is None else scope)


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
        if self._render is None:
            return self.value
        begin()
        return self._render({} if scope is None else scope)


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
            compile_braces(value, names)
        except ExpressionError as error:
            yield at, error


def _compile_tree(
    value: Any, known: Collection[str] | None, used: set[str]
) -> Callable[[Mapping[str, Any]], Any] | None:
    """Return what renders a tree, or None when nothing in it varies."""
    if isinstance(value, str) and has_braces(value):
        made = compile_braces(value, known)
        used.update(made.names)
        return made.run
    if isinstance(value, Mapping):
        below = {key: _compile_tree(each, known, used) for key, each in value.items()}
        if any(below.values()):
            return lambda scope: {
                key: render(scope) if render else value[key] for key, render in below.items()
            }
    elif isinstance(value, list):
        parts = [_compile_tree(each, known, used) for each in value]
        if any(parts):
            return lambda scope: [
                render(scope) if render else each for each, render in zip(value, parts, strict=True)
            ]
    return None
