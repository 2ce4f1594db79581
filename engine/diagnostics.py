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


# Every code that is published: what it means, and how to mend it.
CODES: Mapping[str, tuple[str, str]] = {
    "unreadable": ("The file cannot be opened.", "Check its name and its permissions."),
    "too-large": (
        "The file is larger than 1 MiB.",
        "Divide it: a manifest of that size describes more than one provider.",
    ),
    "encoding": ("The file is not UTF-8.", "Save it with the encoding UTF-8."),
    "bad-character": (
        "A character that no text file should hold, such as a control character.",
        "Remove it, or write it as an escape inside double quotes.",
    ),
    "empty-file": ("The file holds nothing.", "Begin with `manifest: 1`, `platform: 1` or `template: 1`."),
    "syntax": (
        "The line cannot be read as YAML.",
        "The help says what was expected; most often a value needs quotes, or a line other indentation.",
    ),
    "tab": ("A tab stands where only spaces can indent a line.", "Indent with spaces."),
    "too-deep": (
        "More than 50 levels lie within each other.",
        "Nothing in the language is that deep; a bracket is probably never closed.",
    ),
    "second-document": (
        "`---` starts a second document in the file.",
        "Write each document into a file of its own.",
    ),
    "directive": ("A line starts with `%`.", "Leave it out; the version of YAML is always the same."),
    "anchor": (
        "`&name` gives a part of the file a name.",
        "Leave it out: each part is written where it is used, so that it can be read there.",
    ),
    "alias": ("`*name` repeats a named part of the file.", "Write the part out again."),
    "merge-key": ("`<<` copies keys from elsewhere.", "Write the keys out again."),
    "tag": ("`!name` gives a value a type.", "Leave it out; quotes make a value text."),
    "duplicate-key": (
        "A key is written twice in one group, and only one of them could count.",
        "Keep one of the two.",
    ),
    "key-not-text": ("A key is a number, a boolean, nothing, or a group.", "Write it in quotes."),
    "unquoted-braces": (
        "A value with `{{ }}` stands without quotes, which YAML reads as a group of keys.",
        "Put quotes around the whole value.",
    ),
    "unknown-kind": (
        "The file does not say whether it is a manifest, a platform or a template.",
        "Begin with `manifest: 1`, `platform: 1` or `template: 1`.",
    ),
    "wrong-name": (
        "The name in the file is not the name of the file.",
        "Rename one of the two; they are found by either.",
    ),
    "unknown-key": (
        "The key does not exist in this place.",
        "The help names the nearest key, the place the key belongs to, and all keys of this place.",
    ),
    "missing-key": ("A key that is needed is not there.", "Add it; the help shows an example."),
    "wrong-type": (
        "The value is of another kind than is wanted: a number for text, text for a list.",
        "Quotes make text of a number; brackets make a list.",
    ),
    "unknown-value": (
        "The value is not one of those the key takes, or its field never has it.",
        "The help lists them.",
    ),
    "wrong-form": (
        "The value is not written as it should be: a duration, a rate, a place, a call, an address.",
        "The message shows an example of the form.",
    ),
    "out-of-range": ("The number is too small or too large.", "The message names the bound."),
    "too-few": ("The list or group holds too little.", "Add to it, or leave it out."),
    "repeated-item": ("A list holds the same thing twice.", "Remove one of the two."),
    "bad-path": (
        "A path cannot be read. A path is names, dots and `[n]`.",
        "Write it as `address.lines[0]`; a wildcard needs an expression, where one is taken.",
    ),
    "bad-expression": (
        "A JMESPath expression cannot be read, or uses something that does not exist.",
        "The caret stands where reading stopped.",
    ),
    "bad-template": (
        "A text with braces cannot be read, or uses a name, a filter or a statement unknown there.",
        "Braces hold one value, its filters, and `a if b else c`.",
    ),
    "bad-place": ("A place cannot be read.", "Write `query name`, `header Name` or `body path`."),
    "bad-pattern": (
        "A regular expression cannot be read.",
        "A bracket or brace meant as itself needs a backslash.",
    ),
    "unreachable-rule": (
        "An error rule never decides, because an earlier one fits whenever it does.",
        "Put the narrower rule first, or remove it.",
    ),
    "no-effect": (
        "Something is written that changes nothing, most often because what it works with is missing.",
        "Add what is missing, or leave it out.",
    ),
    "missing-operation": (
        "Something needs a call that is not declared: a push needs `create`, a replacement needs `get`.",
        "Declare the call, or choose another way.",
    ),
    "missing-pagination": (
        "A list is read in pages, and nothing says how to ask for the next one.",
        "Add `pagination`. It is a warning where a list may well come in one piece.",
    ),
    "body-on-get": (
        "A GET would be sent with a body, which providers ignore or refuse.",
        "Send the value in the query, or use another method.",
    ),
    "unused-id": ("A call for one record never says which.", "Use `{id}` in the call."),
    "unused-name": (
        "A value goes by a name to the templates of a call, and none of them uses it.",
        "Use it in `query`, `headers`, `body` or the path, or send it to another place.",
    ),
    "unsigned-value": (
        "What tells one event of a webhook from another, or whose it is, isn't covered by the signature: "
        "whoever has seen one delivery could send it again as another.",
        "Take it from what is signed, or leave `id` out: it is then made from the body.",
    ),
    "unknown-placeholder": (
        "A `{name}` in a call is not known where the call is made.",
        "The help lists the names that are; values of the connection are `{connection.name}`.",
    ),
    "unknown-credential": (
        "An expression of `auth` names a credential the venue is never asked for.",
        "Declare it in `credentials`, or correct the name.",
    ),
    "unknown-connection-value": (
        "An expression names a value that nothing keeps when connecting.",
        "Keep it, with `keep` in `auth` or in `after_connecting`, or correct the name.",
    ),
    "unknown-method": (
        "A lookup is for a way to sign that `auth` does not have.",
        "Correct the name; a single way without a name is called like its type.",
    ),
    "kept-secret": (
        "A secret credential would be kept as a plain value, which people are shown.",
        "Keep only the part that calls need, or say that the credential isn't secret.",
    ),
    "unknown-call": (
        "A budget is set for a call that the manifest doesn't make.",
        "Write the call as it stands where it is made, names in braces and all.",
    ),
    "unknown-environment": (
        "A limit is set for an environment that `server` does not have.",
        "Correct the name, or add the server.",
    ),
    "duplicate-name": ("Two ways to sign have the same name.", "Give each a name of its own."),
    "field-conflict": ("A field lies within another one that is not an object.", "Leave one of the two out."),
    "unknown-connector": ("There is no connector with this name.", "The help lists the connectors."),
    "wrong-connector": (
        "The template is for another connector than the one it is used with.",
        "Use it with its own connector.",
    ),
    "unknown-template": (
        "The connector has no template with the name that this one extends.",
        "Correct the name; the help lists the templates beside this one.",
    ),
    "circular-template": (
        "A template extends itself, by way of others.",
        "Let one of them extend none.",
    ),
    "unchecked": (
        "The connector, the platform or an extended template has problems of its own, so names here cannot "
        "be checked.",
        "Mend those first.",
    ),
    "unknown-entity": ("The platform has no entity with this name.", "The help lists the entities."),
    "unknown-resource": ("The connector has no resource with this name.", "The help lists the resources."),
    "unknown-field": (
        "A record has no field with this name.",
        "The help names the nearest field and the line where fields are declared.",
    ),
    "read-only": ("A field that can only be read would be written.", "Map it one way, or leave it out."),
    "required-field": (
        "The other side needs a field that no rule gives it.",
        "Add a rule, or a constant in `new` of the connector.",
    ),
    "written-twice": (
        "Two rules write the same field, or one writes within what the other writes.",
        "Keep one of the two.",
    ),
    "unwritable-field": (
        "A pull would set the `id` of our own record.",
        "Give the rule a `push` of its own.",
    ),
    "duplicate-mapping": ("The same entity and resource are paired twice.", "Join the two mappings."),
}


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


def codes_page() -> str:
    """Return the reference page of all codes, as Markdown."""
    parts = [
        "# Diagnostics\n\n"
        "What `hub lint` says, by code. A code keeps its meaning; new ones are added.\n"
        "Run it with `--format github` to annotate a pull request, `--format json` for programs.\n"
    ]
    parts += [f"## {code}\n\n{meaning}\n{mend}\n" for code, (meaning, mend) in CODES.items()]
    return "\n".join(parts)


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
