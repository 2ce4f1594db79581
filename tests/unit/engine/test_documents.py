"""What strict YAML means, what it refuses and where it says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.diagnostics import Diagnostic
from engine.documents import MOST_BYTES, Document, read_document
from engine.errors import DocumentError


def refusals(source: str | Path) -> list[tuple[str, int, int]]:
    with pytest.raises(DocumentError) as caught:
        read_document(source)
    return [(each.code, each.line, each.column) for each in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("1.10", 1.1),
        ("999999999999999999", 999999999999999999),
        # Everything below is text: the surprises of older YAML.
        ("NO", "NO"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", "True"),
        ("Null", "Null"),
        ("0123", "0123"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("+31", "+31"),
        ("1e5", "1e5"),
        (".5", ".5"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("1000000000000000000", "1000000000000000000"),
        ("9" * 5000, "9" * 5000),
        ("=", "="),
        ("'5'", "5"),
        ('"true"', "true"),
        ("'it''s'", "it's"),
        ('"a\\tb"', "a\tb"),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_scalars(written: str, meant: object) -> None:
    value = read_document(f"key: {written}\n").data["key"]
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", [("duplicate-key", 3, 1)]),
        ("a:\n  b: {c: 1, c: 2}\n  b: 2\n", [("duplicate-key", 2, 13), ("duplicate-key", 3, 3)]),
        ("a: &name 1\nb: *name\n", [("anchor", 1, 4), ("alias", 2, 4)]),
        ("a: &name {b: 1}\nc: 1\n", [("anchor", 1, 4)]),
        ("a: {b: 1}\n<<: {c: 1}\n", [("merge-key", 2, 1)]),
        ("a: !!python/object:os.system x\n", [("tag", 1, 4)]),
        ("a: !secret\n  b: 1\n", [("tag", 1, 4)]),
        ("%YAML 1.1\n---\na: yes\n", [("directive", 1, 1)]),
        ("a: 1\n---\nb: 1\n", [("second-document", 2, 1)]),
        ("404: x\n", [("key-not-text", 1, 1)]),
        ("a:\n  true: x\n  null: y\n", [("key-not-text", 2, 3), ("key-not-text", 3, 3)]),
        ("[a]: 1\n", [("key-not-text", 1, 1)]),
        ("? {a: 1}\n: 1\n", [("key-not-text", 1, 3)]),
        ("a: 1\nb: {{ value }}\n", [("unquoted-braces", 2, 4)]),
        ("b: {{ value }} and more\n", [("unquoted-braces", 1, 4)]),
        ("- [x, {{ value }}]\n", [("unquoted-braces", 1, 7)]),
        ("a:\n\tb: 1\n", [("tab", 2, 1)]),
        ("a:\n  b: 1\n \tc: 1\n", [("tab", 3, 2)]),
        ("a: b: c\n", [("syntax", 1, 5)]),
        ("a: 1\nb: 'never\nc: 1\n", [("syntax", 2, 4)]),
        ("a: [1, 2\nb: 3\n", [("syntax", 1, 4)]),
        ("a: {b: 1\nc: 3\n", [("syntax", 1, 4)]),
        ("a: @home\n", [("syntax", 1, 4)]),
        ("a: `x`\n", [("syntax", 1, 4)]),
        ("a: 50 %\nb: %x\n", [("syntax", 2, 4)]),
        ('a: "\\q"\n', [("syntax", 1, 5)]),
        ('a: "x" y\n', [("syntax", 1, 8)]),
        ("a:\n    b: 1\n  c: 2\n", [("syntax", 3, 3)]),
        ("a: 1\nlost\nb: 1\n", [("syntax", 2, 1)]),
        ("- a\nb: 1\n", [("syntax", 2, 1)]),
        ("a: - b\n", [("syntax", 1, 4)]),
        ("", [("empty-file", 1, 1)]),
        ("# only a comment\n", [("empty-file", 1, 1)]),
        ("---\n", [("empty-file", 1, 1)]),
        ("a: x\x07\n", [("bad-character", 1, 5)]),
        ("a: 1\nb: \ud800\n", [("encoding", 2, 4)]),
        ("a: " + "[" * 49 + "]" * 49 + "\n", []),
        ("a: " + "[" * 50 + "]" * 50 + "\n", [("too-deep", 1, 53)]),
        ("a: " + "[" * 200_000, [("too-deep", 1, 53)]),
        ("a: " + "x" * MOST_BYTES, [("too-large", 1, 1)]),
        # An alias bomb is refused where it begins to share, without being built.
        (
            "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
            [
                ("anchor", 1, 4),
                ("anchor", 2, 4),
                ("alias", 2, 8),
                ("alias", 2, 12),
                ("alias", 3, 5),
                ("alias", 3, 9),
            ],
        ),
    ],
)
def test_refusals(text: str, expected: list[tuple[str, int, int]]) -> None:
    if expected:
        assert refusals(text) == expected
    else:
        assert read_document(text).data


def test_the_exception_says_the_first_and_how_many_more() -> None:
    with pytest.raises(DocumentError) as caught:
        read_document("a: 1\na: 2\nb: &x 1\n", file="f.yaml")
    assert caught.value.message == "f.yaml:2:1: `a` is written twice (and 1 more)"


def test_bytes_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\nb: 1\r\n")
    assert read_document(file).data == {"a": "é", "b": 1}
    file.write_bytes("a: 1\n".encode("utf-16"))
    assert refusals(file) == [("encoding", 1, 1)]
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    assert refusals(file) == [("encoding", 2, 7)]
    assert refusals(tmp_path / "missing.yaml") == [("unreadable", 1, 1)]
    assert refusals(tmp_path) == [("unreadable", 1, 1)]


PLACES = """\
name: juniper
list: {call: GET /x, "send": 'query limit'}
rules:
  - {status: 5xx, then: retry}
  - then: wait
empty:
block: |
  one
  two
é: {ü: x}
"""


@pytest.fixture
def document() -> Document:
    return read_document(PLACES, file="f.yaml")


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("name",), (1, 7, 7), (1, 1, 4)),
        (("list",), (2, 7, 1), (2, 1, 4)),
        (("list", "call"), (2, 14, 6), (2, 8, 4)),
        (("list", "send"), (2, 30, 13), (2, 22, 6)),
        (("rules",), (4, 3, 1), (3, 1, 5)),
        (("rules", 0), (4, 5, 1), None),
        (("rules", 0, "then"), (4, 25, 5), (4, 19, 4)),
        (("rules", 1, "then"), (5, 11, 4), (5, 5, 4)),
        (("empty",), (6, 1, 5), (6, 1, 5)),
        (("block",), (7, 8, 1), (7, 1, 5)),
        (("é", "ü"), (10, 8, 1), (10, 5, 1)),
        ((), (1, 1, 4), None),
    ],
)
def test_places(
    document: Document,
    path: tuple[str | int, ...],
    value: tuple[int, int, int],
    key: tuple[int, int, int] | None,
) -> None:
    assert document.place(path) == value
    if key is not None:
        assert document.place(path, key=True) == key


def test_the_place_of_what_is_missing_is_the_key_above(document: Document) -> None:
    assert document.place(("list", "records")) == (2, 1, 4)
    assert document.place(("nothing", "here")) == (1, 1, 4)


def test_a_place_within_a_value(document: Document) -> None:
    assert document.within(("list", "call"), 4) == (2, 18, 1)
    assert document.within(("list", "send"), 6) == (2, 37, 1)
    assert document.within(("block",), 2) == (7, 8, 1)


def test_values_and_what_was_typed(document: Document) -> None:
    assert document.value(("rules", 0, "status")) == "5xx"
    assert document.written(("list", "send")) == "'query limit'"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcé.[0] ", min_size=1), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text("abc", min_size=1), JSON_VALUES, min_size=1))
def test_json_is_read_as_json(value: dict[str, Any]) -> None:
    assert read_document(json.dumps(value, ensure_ascii=False)).data == value


@given(st.text(st.sampled_from("ab1 :-?[]{},#&*!|>'\"%@`\n\t~<é\ufeff\x00\r"), max_size=60))
def test_any_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    found: tuple[Diagnostic, ...] = ()
    try:
        read_document(text)
    except DocumentError as error:
        found = error.diagnostics
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for each in found:
        assert 1 <= each.line <= len(lines)
        assert 1 <= each.column <= len(lines[each.line - 1]) + 1
