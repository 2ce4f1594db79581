"""Read YAML strictly, keeping the place of every key and value.

Only what an author sees is meant: `true` and `false` are the only booleans, `null`, `~` and nothing at all
are null, plain numbers are numbers, and everything else is text: NO, on, 2024-01-31, 0123, 12:30, 1e5, a
number of more than 18 digits. Duplicate keys, anchors, aliases, merge keys, tags, directives and a second
document are refused.

Events are checked as they come from the C parser, before anything is built of them: nesting, size and sharing
are bounded whatever the file says, so a stranger's file can be read in a server.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.diagnostics import Diagnostic, in_file_order
from engine.errors import DocumentError

MOST_BYTES = 1024 * 1024
MOST_DEPTH = 50

Steps = tuple[str | int, ...]
Place = tuple[int, int, int]

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")
WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BARE_BRACES = re.compile(r"(?:^|[-:,\[{]) *(\{\{)")


@dataclass(frozen=True, slots=True)
class Document:
    """A file that could be read: plain values, and where each was written.

    `data` holds only dict, list, str, int, float, bool and None; `text` is the source, for diagnostics.
    `remarks` are said of what is wrong at or below a path, by the nearest path above it.
    """

    file: str
    text: str
    data: Any
    _values: Mapping[Steps, Place] = field(repr=False)
    _keys: Mapping[Steps, Place] = field(repr=False)
    remarks: Mapping[Steps, str] = field(default_factory=dict, repr=False)

    def place(self, path: Sequence[str | int], key: bool = False) -> Place:
        """Return (line, column, length), counted from 1, of the value at a path, or of its key.

        The value of a block is its first key; an item of a list has no key but its own place. A path that
        is not in the file gives the nearest one above it.
        """
        steps = tuple(path)
        table = self._keys if key and steps and isinstance(steps[-1], str) else self._values
        while steps and steps not in table:
            steps, table = steps[:-1], self._keys
        return table.get(steps) or self._values.get(steps, (1, 1, 1))

    def diagnostic(
        self, code: str, message: str, path: Sequence[str | int], *advice: str, key: bool = False
    ) -> Diagnostic:
        """Return a diagnostic that points at the value (or the key) at a path."""
        steps = tuple(path)
        while self.remarks and steps and steps not in self.remarks:
            steps = steps[:-1]
        remark = self.remarks.get(steps)
        help_ = (*advice, remark) if remark else advice
        return Diagnostic(code, message, self.file, *self.place(path, key), help=help_)

    def within(self, path: Sequence[str | int], offset: int) -> Place:
        """Return the place of one character of a text value, `offset` counted from 0 in the value.

        Exact for plain text and for quoted text without escapes on one line; else the whole value's place.
        """
        line, column, length = self.place(path)
        source = self.text.split("\n")[line - 1][column - 1 : column - 1 + length]
        quote = source[:1] if source[:1] in ("'", '"') else ""
        value = self.value(path)
        if source != f"{quote}{value}{quote}" or not 0 <= offset <= len(value):
            return line, column, length
        return line, column + len(quote) + min(offset, max(0, len(value) - 1)), 1

    def without(self, paths: Iterable[Steps]) -> "Document":
        """Return the document with None for some values, for looking at what is right beside what is wrong.

        Within a list it is the whole item that becomes None.
        """
        data = self.data
        for path in paths:
            item = next((at + 1 for at, step in enumerate(path) if isinstance(step, int)), len(path))
            if item:
                data = _emptied(data, path[:item])
        return replace(self, data=data)

    def rearranged(
        self,
        data: Any,
        moves: Mapping[Steps, Steps],
        pins: Mapping[Steps, Steps],
        remarks: Mapping[Steps, str],
    ) -> "Document":
        """Return a document of other data that points into this file.

        `moves` maps where a part of this file is to where it is in `data`; `pins` maps a part of `data` that
        isn't in this file to the part of the file to point at instead.
        """

        def moved(table: Mapping[Steps, Place]) -> dict[Steps, Place]:
            heads = {head[:-1] for head in moves}
            kept = {
                steps: place
                for steps, place in table.items()
                if not any(steps[: len(head)] == head and len(steps) > len(head) for head in heads)
            }
            for old, new in moves.items():
                kept |= {
                    (*new, *steps[len(old) :]): place
                    for steps, place in table.items()
                    if steps[: len(old)] == old
                }
            return kept

        pinned = {steps: self.place(there) for steps, there in pins.items()}
        return replace(
            self,
            data=data,
            _values={**moved(self._values), **pinned},
            _keys={**moved(self._keys), **pinned},
            remarks=remarks,
        )

    def value(self, path: Sequence[str | int]) -> Any:
        """Return the value at a path that exists."""
        found = self.data
        for step in path:
            found = found[step]
        return found

    def written(self, path: Sequence[str | int]) -> str:
        """Return a one-line value as it was typed, quotes and all."""
        line, column, length = self.place(path)
        return self.text.split("\n")[line - 1][column - 1 : column - 1 + length]


def _emptied(data: Any, path: Steps) -> Any:
    if not path:
        return None
    if isinstance(data, dict):
        return {name: _emptied(value, path[1:]) if name == path[0] else value for name, value in data.items()}
    if isinstance(data, list):
        return [_emptied(value, path[1:]) if at == path[0] else value for at, value in enumerate(data)]
    return data


def read_document(source: Path | str, *, file: str | None = None) -> Document:
    """Read a YAML file (a Path) or text (a str); `file` is the name diagnostics show.

    Raises DocumentError carrying every diagnostic, in file order.
    """
    name = file or str(source if isinstance(source, Path) else "<text>")
    text = _decoded(source, name)
    reader = _Reader(name, text)
    data = reader.read()
    if reader.found:
        raise refused(reader.found)
    return Document(name, text, data, reader.values, reader.keys)


def refused(diagnostics: Sequence[Diagnostic], error: type[DocumentError] = DocumentError) -> DocumentError:
    """Return the exception for diagnostics, its message saying the first and how many more."""
    ordered = in_file_order(diagnostics)
    first = ordered[0]
    more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
    return error(f"{first.file}:{first.line}:{first.column}: {first.message}{more}", ordered)


def _decoded(source: Path | str, name: str) -> str:
    if isinstance(source, Path):
        try:
            with source.open("rb") as opened:
                raw = opened.read(MOST_BYTES + 1)
        except OSError as error:
            reason = error.strerror or "it cannot be opened"
            raise refused(
                [Diagnostic("unreadable", f"`{name}` cannot be read: {reason}", name, 1, 1)]
            ) from error
    else:
        raw = source.encode("utf-8", "surrogatepass")
    if len(raw) > MOST_BYTES:
        raise refused([Diagnostic("too-large", "the file is larger than 1 MiB", name, 1, 1)])
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        advice = ("save the file with the encoding UTF-8",)
        raise refused([Diagnostic("encoding", "the file is UTF-16, not UTF-8", name, 1, 1, help=advice)])
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the byte 0x{raw[error.start]:02x} is not UTF-8"
        advice = ("save the file with the encoding UTF-8",)
        raise refused([Diagnostic("encoding", message, name, line, column, help=advice)]) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = UNPRINTABLE.search(text)
    if bad:
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        message = f"the character U+{ord(bad.group()):04X} cannot stand in a file"
        advice = ('inside double quotes it can be written as an escape, such as "\\x07"',)
        raise refused([Diagnostic("bad-character", message, name, line, column, help=advice)])
    return text


def scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted word means."""
    if text in WORDS:
        return WORDS[text]
    number = NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number.group(1) else int(text)


@dataclass(frozen=True, slots=True)
class _Syntax:
    """What the parser says (part of its problem, and of what it was doing), and what we say instead."""

    problem: str
    message: str
    advice: tuple[str, ...]
    doing: str = ""
    where_it_began: bool = False  # point at the start of the unfinished thing


SYNTAX: Sequence[_Syntax] = (
    _Syntax(
        "mapping values are not allowed",
        "a `:` cannot stand here",
        (
            "if it belongs to the value, put the value in quotes",
            "if it follows a key, give the key the same indentation as the keys beside it",
        ),
    ),
    _Syntax(
        "block sequence entries are not allowed",
        "a list cannot start here",
        ("put each `-` on a line of its own, or write the list as [a, b]",),
    ),
    _Syntax(
        "found unexpected end of stream",
        "this quote is never closed",
        ("add the closing quote",),
        doing="quoted scalar",
        where_it_began=True,
    ),
    _Syntax(
        "unknown escape character",
        "this escape is not known",
        ("use single quotes, or write the backslash twice",),
    ),
    _Syntax(
        "did not find expected ',' or ']'",
        "this `[` is never closed",
        ("put a comma between the items and a `]` after the last",),
        where_it_began=True,
    ),
    _Syntax(
        "did not find expected ',' or '}'",
        "this `{` is never closed",
        ("put a comma between the keys and a `}` after the last",),
        where_it_began=True,
    ),
    _Syntax(
        "did not find expected key",
        "a key was expected here",
        ("give the line the same indentation as the keys beside it",),
        doing="block mapping",
    ),
    _Syntax(
        "did not find expected '-' indicator",
        "another item of the list was expected here",
        ("start it with `-`, or indent the line deeper to continue the item above",),
    ),
    _Syntax(
        "could not find expected ':'",
        "this key has no `:` after it",
        ("write it as `key: value`",),
        where_it_began=True,
    ),
    _Syntax("cannot start any token", "text cannot start with CHARACTER", ("put the value in quotes",)),
    _Syntax(
        "expected alphabetic or numeric character",
        "text cannot start with CHARACTER",
        ("put the value in quotes",),
        where_it_began=True,
    ),
    _Syntax(
        "undefined tag handle",
        "text cannot start with CHARACTER",
        ("put the value in quotes",),
        where_it_began=True,
    ),
    _Syntax(
        "did not find expected <document start>",
        "nothing can follow the document here",
        ("give the line the same indentation as the keys of the file",),
    ),
)


class _Reader:
    """Builds plain values from events, gathering what it must refuse."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.lines = text.split("\n")
        self.found: list[Diagnostic] = []
        self.values: dict[Steps, Place] = {}
        self.keys: dict[Steps, Place] = {}
        self.depth = 0

    def read(self) -> Any:
        import yaml

        loader = getattr(yaml, "CLoader", yaml.Loader)
        try:
            return self._document(self._events(yaml.parse(self.text, Loader=loader)))
        except _TooDeepError as error:
            self._refuse("too-deep", f"nested more than {MOST_DEPTH} levels deep", error.event)
        except yaml.MarkedYAMLError as error:
            self._syntax(error)
        except yaml.YAMLError as error:
            self.found.append(Diagnostic("syntax", f"the file cannot be read: {error}", self.file, 1, 1))
        return None

    def _events(self, events: Iterator[Any]) -> Iterator[tuple[str, Any]]:
        for event in events:
            yield type(event).__name__.removesuffix("Event"), event

    def _document(self, events: Iterator[tuple[str, Any]]) -> Any:
        data: Any = None
        documents = 0
        for kind, event in events:
            if kind == "DocumentStart":
                documents += 1
                if documents > 1:
                    advice = ("write each document into a file of its own",)
                    self._refuse("second-document", "`---` starts a second document", event, advice, length=3)
                    # What follows would overwrite the places of the first document.
                    return data
                if event.version or event.tags:
                    self._refuse("directive", "a line that starts with `%` is not used here", event)
            elif kind in ("Scalar", "Alias", "MappingStart", "SequenceStart"):
                data = self._node(kind, event, events, ())
        if documents == 0 or (data is None and not self.found and () not in self.values):
            self.found.append(Diagnostic("empty-file", "the file is empty", self.file, 1, 1))
        return data

    def _node(self, kind: str, event: Any, events: Iterator[tuple[str, Any]], path: Steps) -> Any:
        self.values[path] = self._place(event)
        if kind == "Alias":
            self._refuse(
                "alias",
                f"`*{event.anchor}` repeats another part of the file, which is not used here",
                event,
                ("write the part out again",),
            )
            return None
        self._plain(event)
        if kind == "Scalar":
            return self._scalar(event, path)
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _TooDeepError(event)
        made = self._mapping(event, events, path) if kind == "MappingStart" else self._sequence(events, path)
        self.depth -= 1
        return made

    def _scalar(self, event: Any, path: Steps) -> Any:
        if event.value == "" and event.style == "":
            # Nothing was written: its key is the better place to point at.
            self.values[path] = self.keys.get(path, self.values[path])
            if not path:
                del self.values[path]
        return scalar(event.value) if event.style == "" else event.value

    def _sequence(self, events: Iterator[tuple[str, Any]], path: Steps) -> list[Any]:
        made: list[Any] = []
        for kind, event in events:
            if kind == "SequenceEnd":
                return made
            made.append(self._node(kind, event, events, (*path, len(made))))
        return made

    def _mapping(self, start: Any, events: Iterator[tuple[str, Any]], path: Steps) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for kind, event in events:
            if kind == "MappingEnd":
                return made
            name = self._key(kind, event, events, start, path)
            inner = (*path, name)
            if name in made and name != "<<":
                line = self.keys[inner][0]
                advice = (f"it was first written on line {line}; keep one of the two",)
                self._refuse("duplicate-key", f"`{name}` is written twice", event, advice)
                # Read on beside the first one, so that its places stay.
                inner = (*path, name, f"line {event.start_mark.line + 1}")
            self.keys[inner] = self._place(event)
            kind, event = next(events)
            value = self._node(kind, event, events, inner)
            made.setdefault(name, value)
        return made

    def _key(self, kind: str, event: Any, events: Iterator[tuple[str, Any]], start: Any, path: Steps) -> str:
        if kind == "Alias":
            self._node(kind, event, events, path)
            return f"*{event.anchor}"
        if kind != "Scalar":
            before = len(self.found)
            place = dict(self.values)
            self._node(kind, event, events, (*path, "?"))
            self.values = place
            del self.found[before:]
            braces = self._braces(start.start_mark)
            if braces:
                self.found.append(braces)
            else:
                self._refuse("key-not-text", "a key must be text, not a list or a group of keys", event)
            return f"?{event.start_mark.index}"
        self._plain(event)
        if event.style == "" and event.value == "<<":
            advice = ("write the keys out again",)
            self._refuse(
                "merge-key", "`<<` copies keys from elsewhere, which is not used here", event, advice
            )
        elif event.style == "" and not isinstance(scalar(event.value), str):
            shown = event.value or "nothing"
            quoted = (f'write it in quotes: "{event.value}"',) if event.value else ()
            self._refuse("key-not-text", f"a key must be text, and `{shown}` is not", event, quoted)
        return str(event.value)

    def _plain(self, event: Any) -> None:
        if event.anchor:
            advice = ("leave the name out, and write the part again where it is needed",)
            self._refuse(
                "anchor",
                f"`&{event.anchor}` names a part of the file, which is not used here",
                event,
                advice,
                length=len(event.anchor) + 1,
            )
        if event.tag:
            written = self._rest(event.start_mark).split(" ")
            tag = next((word for word in written if word.startswith("!")), event.tag)
            advice = ("leave it out; put a value in quotes to make it text",)
            self._refuse(
                "tag", f"`{tag}` gives a value a type, which is not used here", event, advice, length=len(tag)
            )

    def _braces(self, mark: Any) -> Diagnostic | None:
        """Return what to say when `{{` was meant as an expression but stands without quotes."""
        rest = self._rest(mark)
        if not rest.startswith("{{"):
            return None
        end = rest.rfind("}}") + 2 if "}}" in rest else len(rest)
        shown = rest[:end] if len(rest[:end]) < 60 else "{{ … }}"
        return Diagnostic(
            "unquoted-braces",
            "a value with braces needs quotes around it",
            self.file,
            mark.line + 1,
            mark.column + 1,
            end,
            (f'write "{shown}"' if '"' not in shown else f"write '{shown}'",),
        )

    def _rest(self, mark: Any) -> str:
        return self.lines[mark.line][mark.column :] if mark.line < len(self.lines) else ""

    def _place(self, event: Any) -> Place:
        start, end = event.start_mark, event.end_mark
        if type(event).__name__ in ("MappingStartEvent", "SequenceStartEvent"):
            # The end of a group is not known yet: point at its first line's worth of a word.
            word = re.match(r"\[|\{|-|[^\s:,]+", self._rest(start))
            return start.line + 1, start.column + 1, len(word.group()) if word else 1
        if end.line == start.line:
            return start.line + 1, start.column + 1, max(1, end.column - start.column)
        return start.line + 1, start.column + 1, max(1, len(self._rest(start).rstrip()))

    def _refuse(
        self, code: str, message: str, event: Any, advice: tuple[str, ...] = (), *, length: int | None = None
    ) -> None:
        line, column, whole = self._place(event)
        self.found.append(Diagnostic(code, message, self.file, line, column, length or whole, advice))

    def _syntax(self, error: Any) -> None:
        at = self._within_file(error.problem_mark or error.context_mark)
        line = self.lines[at.line]
        if any(each.code == "unquoted-braces" and each.line == at.line + 1 for each in self.found):
            return
        braces = BARE_BRACES.search(line[: at.column + 2])
        said = self._braces(_Mark(at.line, braces.start(1))) if braces else None
        if said:
            self.found.append(said)
            return
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in (line[at.column : at.column + 1], *indent):
            at = at if line[at.column : at.column + 1] == "\t" else _Mark(at.line, indent.index("\t"))
            self._say("tab", "a tab cannot indent a line", at, ("indent with spaces",))
            return
        if "expected key" in error.problem and line[: at.column].rstrip().endswith(("'", '"')):
            self._say(
                "syntax", "text follows the closing quote", at, ("put all of the value inside the quotes",)
            )
            return
        for row in SYNTAX:
            if row.problem in error.problem and row.doing in (error.context or ""):
                place = self._within_file(error.context_mark) if row.where_it_began else at
                character = self.lines[place.line][place.column : place.column + 1]
                shown = "a backtick" if character == "`" else f"`{character}`"
                self._say("syntax", row.message.replace("CHARACTER", shown), place, row.advice)
                return
        self._say("syntax", f"this line cannot be read: {error.problem}", at, ())

    def _say(self, code: str, message: str, at: "_Mark", advice: tuple[str, ...]) -> None:
        self.found.append(Diagnostic(code, message, self.file, at.line + 1, at.column + 1, 1, advice))

    def _within_file(self, mark: Any) -> "_Mark":
        """Marks at the end of the file lie below the last line."""
        line = min(mark.line, len(self.lines) - 1)
        return _Mark(line, min(mark.column, len(self.lines[line])))


@dataclass(frozen=True, slots=True)
class _Mark:
    line: int
    column: int


class _TooDeepError(Exception):
    def __init__(self, event: Any) -> None:
        super().__init__()
        self.event = event
