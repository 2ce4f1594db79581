"""What no expression may exceed, counted while it runs, and how its refusals are worded.

A stranger's text runs in threads and between awaits, where nothing can interrupt it. So the work itself is
counted: every part that makes, reads or repeats something says how much, and the part that would go over the
ceiling is refused. The same text over the same record is always refused, or never, however busy the machine.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

from engine.diagnostics import listed, nearest
from engine.errors import ExpressionError

LONGEST_TEXT: Final = 2000  # characters of an expression
LONGEST_RESULT: Final = 16 * 1024 * 1024  # characters of a rendered text
DEEPEST: Final = 40  # nested parts of an expression
MOST_WORK: Final = (
    128 * 1024 * 1024
)  # of one evaluation, a character each: of a page, as many steps as it needs
STEP: Final = 32  # what looking at one part of a value costs
MOST_RECORD_WORK: Final = 16 * 1024 * 1024  # of a mapping's expressions, for one record: well below a second


class _Meter(threading.local):
    """What is left of the work allowed; evaluations never await, so one for each thread is enough."""

    left = 0


_meter = _Meter()


def begin(most: int = MOST_WORK) -> None:
    """Allow this thread so much work, forgetting what was left."""
    _meter.left = most


def spend(work: int) -> None:
    """Count work about to be done; raises ExpressionError when it is more than what is left."""
    left = _meter.left = _meter.left - work
    if left < 0:
        raise ExpressionError("this takes too much work for one expression")


def spend_on(value: Any) -> None:
    """Count a value as large as it would be when written out, its parts included.

    Stops at the ceiling, so that a value that holds the same part many times costs no more than that.
    """
    if isinstance(value, str):
        spend(len(value))
        return
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            spend(len(each))
        elif isinstance(each, Mapping):
            spend(STEP + 2 * STEP * len(each))
            pending.extend(each)
            pending.extend(each.values())
        elif isinstance(each, list | tuple):
            spend(STEP + STEP * len(each))
            pending.extend(each)


def check_depth(value: Any) -> None:
    """Raise ExpressionError for a value nested too deeply to be written out, or to be walked by functions."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [each for holder in level if (parts := _parts(holder)) for each in parts]
        if not level:
            return
    raise ExpressionError("the value is nested too deeply")


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def check_size(characters: int) -> None:
    """Count a text of so many characters, about to be made; raises ExpressionError when it is too long."""
    if characters > LONGEST_RESULT:
        raise ExpressionError("the result is too long")
    spend(characters)


def check_length(text: str) -> None:
    """Raise ExpressionError for a text that is too long to be an expression."""
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"an expression can have {LONGEST_TEXT} characters, this one has {len(text)}")


def short(text: str) -> str:
    """Return a text as a message can quote it."""
    return text if len(text) <= 80 else text[:79] + "…"


def unknown(kind: str, name: str, known: Collection[str], position: int | None) -> NoReturn:
    """Raise ExpressionError for a name that isn't one of those known."""
    best = nearest(name, known)
    hint = f"; did you mean `{best}`?" if best and best != name else ""
    choices = f"; here are {listed(sorted(known))}" if known and not hint else ""
    raise ExpressionError(f"there is no {kind} `{short(name)}`{hint}{choices}", position)


def offset(text: str, word: str) -> int | None:
    """Return where a word stands in an expression, outside of quotes and not after a dot."""
    if not word.isidentifier():
        at = text.find(word)
        return at if at >= 0 else None
    found = re.search(rf"(?<![\w.'\"]){re.escape(word)}(?!\w)", text)
    return found.start() if found else None
