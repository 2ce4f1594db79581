"""One message for an author: what is wrong, where, how to mend it, where to read more.

A message never blames and never shows a Python name. A code, once in CODES, keeps its meaning.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]
Style = Literal["text", "json", "github"]

DOCS_PAGE = "docs/reference/diagnostics.md"
EXCERPT_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A problem in a file an author wrote.

    `line` and `column` count from 1, in characters; `length` is how many characters the caret underlines.
    """

    code: str
    message: str
    file: str
    line: int
    column: int
    length: int = 1
    help: tuple[str, ...] = ()
    severity: Severity = "error"

    @property
    def docs(self) -> str:
        """Where this code is explained."""
        return f"{DOCS_PAGE}#{self.code}"


def in_file_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Sort by file, line and column, dropping repeats."""
    return sorted(dict.fromkeys(diagnostics), key=lambda each: (each.file, each.line, each.column))


def render(
    diagnostics: Iterable[Diagnostic], style: Style = "text", sources: Mapping[str, str] | None = None
) -> str:
    """Write diagnostics out, in the order given.

    `text` is for people and shows the line, from `sources` (file name to its text) or else from the file;
    `json` is an array of objects, `github` is one workflow command a line. Nothing to say is "", or `[]`
    for `json`.
    """
    return _STYLES[style](list(diagnostics), sources or {})


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice an author most likely meant by `word`, or None when none is close.

    Case, separators and camelCase do not count: `pageSize` is `page_size`.
    """
    known = list(choices)
    if word in known:
        return word
    plain = _normalise(word)
    for choice in known:
        if _normalise(choice) == plain:
            return choice
    from rapidfuzz.distance import OSA, JaroWinkler

    def score(choice: str) -> tuple[bool, float, float]:
        other = _normalise(choice)
        one_slip = len(plain) > 2 and OSA.distance(plain, other) == 1
        return (
            one_slip,
            JaroWinkler.normalized_similarity(plain, other),
            OSA.normalized_similarity(plain, other),
        )

    best = max(known, key=score, default=None)
    if best is None:
        return None
    one_slip, similarity, _ = score(best)
    return best if one_slip or similarity >= 0.8 else None


def did_you_mean(word: str, choices: Iterable[str]) -> tuple[str, ...]:
    """Return the help line that names the nearest choice, or nothing."""
    best = nearest(word, choices)
    return (f"did you mean `{best}`?",) if best is not None and best != word else ()


def listed(words: Iterable[str], most: int = 24) -> str:
    """Write words as `a, b, c`, cutting a very long list short."""
    every = list(words)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def _normalise(word: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word)
    return re.sub(r"[\W_]+", "_", spaced).strip("_").lower()


def _text(diagnostics: list[Diagnostic], sources: Mapping[str, str]) -> str:
    lines_of = {
        file: sources[file].split("\n") if file in sources else _lines(Path(file))
        for file in {each.file for each in diagnostics}
    }
    return "\n".join(_text_of(each, lines_of[each.file]) for each in diagnostics)


def _lines(file: Path) -> list[str]:
    """Read a file's lines to show one; a file that is gone or unreadable has none to show."""
    try:
        return file.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError):
        return []


def _text_of(diagnostic: Diagnostic, lines: list[str]) -> str:
    margin = " " * len(str(diagnostic.line))
    out = [
        f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}",
        f"{margin}--> {diagnostic.file}:{diagnostic.line}:{diagnostic.column}",
    ]
    if 0 < diagnostic.line <= len(lines):
        shown, before, underlined = _excerpt(lines[diagnostic.line - 1], diagnostic.column, diagnostic.length)
        out += [f"{margin} |", f"{diagnostic.line} | {shown}", f"{margin} | {' ' * before}{'^' * underlined}"]
    out += [f"{margin} = help: {each}" for each in diagnostic.help]
    out.append(f"{margin} = docs: {diagnostic.docs}")
    return "\n".join(out) + "\n"


def _excerpt(line: str, column: int, length: int) -> tuple[str, int, int]:
    """Return the part of a line worth showing, and the caret's indent and width in screen cells."""
    line = "".join(
        " " if character == "\t" else character if character.isprintable() else "\ufffd" for character in line
    )
    start = column - 1
    cut = max(0, start - EXCERPT_WIDTH // 2) if len(line) > EXCERPT_WIDTH else 0
    shown = line[cut : cut + EXCERPT_WIDTH]
    underlined = shown[start - cut : start - cut + length]
    lead = "…" if cut else ""
    tail = "…" if cut + EXCERPT_WIDTH < len(line) else ""
    before = lead + shown[: start - cut]
    return (lead + shown + tail).rstrip(), _cells(before), max(1, _cells(underlined))


def _cells(text: str) -> int:
    """Count terminal cells: combining marks take none, wide characters two."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _json(diagnostics: list[Diagnostic], sources: Mapping[str, str]) -> str:
    return json.dumps(
        [
            {
                "code": each.code,
                "severity": each.severity,
                "message": each.message,
                "file": each.file,
                "line": each.line,
                "column": each.column,
                "length": each.length,
                "help": list(each.help),
                "docs": each.docs,
            }
            for each in diagnostics
        ],
        ensure_ascii=False,
        indent=2,
    )


def _github(diagnostics: list[Diagnostic], sources: Mapping[str, str]) -> str:
    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    def value(text: str) -> str:
        return data(text).replace(":", "%3A").replace(",", "%2C")

    return "".join(
        f"::{each.severity} file={value(each.file)},line={each.line},col={each.column},"
        f"endColumn={each.column + each.length},title={value(each.code)}::"
        f"{data(chr(10).join((each.message, *each.help)))}\n"
        for each in diagnostics
    )


_STYLES: Mapping[Style, Callable[[list[Diagnostic], Mapping[str, str]], str]] = {
    "text": _text,
    "json": _json,
    "github": _github,
}
