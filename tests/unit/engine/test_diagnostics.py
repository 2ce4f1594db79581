"""How a diagnostic reads, in each style, and which word is suggested."""

import json
from pathlib import Path

import pytest

from engine.diagnostics import CODES, Diagnostic, in_file_order, listed, nearest, render

LINE_46 = "      paginaton: {type: cursor, read: next_cursor, send: query cursor}"
SOURCE = "\n" * 45 + LINE_46 + "\n"
UNKNOWN_KEY = Diagnostic(
    code="unknown-key",
    message="`paginaton` is not a key of `list`",
    file="connectors/juniper.yaml",
    line=46,
    column=7,
    length=9,
    help=("did you mean `pagination`?", "`list` takes call, records, since, pagination, page_size"),
)


def test_text_is_the_documented_example() -> None:
    assert render([UNKNOWN_KEY], sources={"connectors/juniper.yaml": SOURCE}) == (
        "error[unknown-key]: `paginaton` is not a key of `list`\n"
        "  --> connectors/juniper.yaml:46:7\n"
        "   |\n"
        "46 |       paginaton: {type: cursor, read: next_cursor, send: query cursor}\n"
        "   |       ^^^^^^^^^\n"
        "   = help: did you mean `pagination`?\n"
        "   = help: `list` takes call, records, since, pagination, page_size\n"
        "   = docs: docs/reference/diagnostics.md#unknown-key\n"
    )


def test_text_without_the_source_leaves_the_line_out() -> None:
    assert render([Diagnostic("syntax", "a `:` cannot stand here", "a.yaml", 3, 1, severity="warning")]) == (
        "warning[syntax]: a `:` cannot stand here\n"
        " --> a.yaml:3:1\n"
        "  = docs: docs/reference/diagnostics.md#syntax\n"
    )


def test_several_are_divided_by_an_empty_line() -> None:
    text = render([UNKNOWN_KEY, UNKNOWN_KEY])
    assert text.count("\n\n") == 1
    assert render([]) == ""


@pytest.mark.parametrize(
    ("line", "column", "length", "shown", "carets"),
    [
        ("名前: x", 5, 1, "名前: x", "      ^"),  # two wide characters take two cells each
        ("e\u0301a: x", 5, 1, "e\u0301a: x", "   ^"),  # a combining accent takes none
        ("a:\tx", 4, 1, "a: x", "   ^"),  # a tab is shown as one blank
        ("a: x", 4, 30, "a: x", "   ^"),  # never underlines past the end of the line
        ("a: \x1bx", 5, 1, "a: \ufffdx", "    ^"),  # control characters do not reach the terminal
    ],
)
def test_the_caret_stands_under_what_it_means(
    line: str, column: int, length: int, shown: str, carets: str
) -> None:
    rows = render([Diagnostic("syntax", "m", "f", 1, column, length)], sources={"f": line}).split("\n")
    assert rows[3:5] == [f"1 | {shown}", f"  | {carets}"]


def test_a_very_long_line_is_cut_around_the_place() -> None:
    line = "a" * 500 + "HERE" + "b" * 500
    rows = render([Diagnostic("syntax", "m", "f", 1, 501, 4)], sources={"f": line}).split("\n")
    assert rows[3] == "1 | …" + "a" * 60 + "HERE" + "b" * 56 + "…"
    assert rows[4] == "  | " + " " * 61 + "^^^^"


def test_json_has_every_part() -> None:
    assert json.loads(render([UNKNOWN_KEY], "json")) == [
        {
            "code": "unknown-key",
            "severity": "error",
            "message": "`paginaton` is not a key of `list`",
            "file": "connectors/juniper.yaml",
            "line": 46,
            "column": 7,
            "length": 9,
            "help": [
                "did you mean `pagination`?",
                "`list` takes call, records, since, pagination, page_size",
            ],
            "docs": "docs/reference/diagnostics.md#unknown-key",
        }
    ]
    assert json.loads(render([], "json")) == []


def test_github_is_one_escaped_command_a_line() -> None:
    diagnostic = Diagnostic("wrong-form", "100% wrong", "a,b:c.yaml", 2, 3, 4, ("first\nsecond",))
    assert render([diagnostic], "github") == (
        "::error file=a%2Cb%3Ac.yaml,line=2,col=3,endColumn=7,title=wrong-form::"
        "100%25 wrong%0Afirst%0Asecond\n"
    )


def test_file_order_sorts_by_place_and_drops_repeats() -> None:
    late, early = Diagnostic("a", "m", "f", 9, 1), Diagnostic("b", "m", "f", 2, 7)
    earlier = Diagnostic("c", "m", "f", 2, 3)
    assert in_file_order([late, early, late, earlier]) == [earlier, early, late]


@pytest.mark.parametrize(
    ("word", "choices", "meant"),
    [
        ("paginaton", ["call", "records", "pagination", "page_size"], "pagination"),
        ("pageSize", ["pagination", "page_size"], "page_size"),
        ("PAGE-SIZE", ["pagination", "page_size"], "page_size"),
        ("email_adress", ["given_name", "email_address"], "email_address"),
        ("recrods", ["record", "records"], "records"),
        ("call", ["call", "calls"], "call"),
        ("kye", ["connection", "key", "record"], "key"),  # two letters swapped in a short word
        ("ie", ["id", "is"], None),  # in a word of two letters a slip could be anything
        ("colour", ["call", "since", "records"], None),
        ("x", ["call"], None),
        ("anything", [], None),
    ],
)
def test_nearest(word: str, choices: list[str], meant: str | None) -> None:
    assert nearest(word, choices) == meant


def test_a_long_list_is_cut_short() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


ROOT = Path(__file__).parents[3]


def test_every_code_is_published_and_shown_by_a_test() -> None:
    planted = {
        file.read_text("utf-8").split(" ")[0]
        for file in (ROOT / "tests" / "snapshot" / "diagnostics").glob("*.txt")
    }
    # These are about whole files, which tests/unit/engine makes: test_documents, test_lint, test_templates.
    about_files = {"unreadable", "too-large", "encoding", "wrong-name", "unchecked", "wrong-connector"}
    assert planted | about_files == set(CODES)
