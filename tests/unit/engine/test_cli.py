"""What the engine's commands say to input that isn't what they take."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli import commands

PROJECT = Path(__file__).parents[3]
TEMPLATE = "mapping-templates/stripe/default.yaml"


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(commands, list(arguments), input=given)


@pytest.mark.parametrize("sample", ["[1]", '"text"', "null"])
def test_a_sample_is_a_record(sample: str) -> None:
    done = run("preview", TEMPLATE, "-", given=sample)
    assert (done.exit_code, "SAMPLE isn't a record" in done.output) == (2, True)


def test_a_venue_is_a_record() -> None:
    done = run("preview", TEMPLATE, "-", "--venue", "[]", given="{}")
    assert (done.exit_code, "--venue isn't a record" in done.output) == (2, True)


@pytest.mark.parametrize("text", ["just words\n", "- a list\n", "connector: [1]\n"])
def test_a_template_names_its_connector(tmp_path: Path, text: str) -> None:
    template = tmp_path / "t.yaml"
    template.write_text(text)
    done = run("preview", str(template), "-", given="{}")
    said = " ".join(done.output.replace("│", " ").split())  # without the frame, which breaks lines
    assert (done.exit_code, "names no connector" in said) == (2, True)


QUESTIONS = """[
  {"name": "one", "old_path": "createdAt", "candidates": {"created_at": "string", "updated_at": "string"}},
  {"name": "all", "before": ["id", "seatMap", "tone"], "candidates": ["id", "seat_map"]}
]"""


def test_what_became_of_fields_is_answered_as_json() -> None:
    done = run("heal", "-", "--explain", "--json", given=QUESTIONS)
    plans = json.loads(done.output)["plans"]
    assert done.exit_code == 0
    assert [(each["name"], each["field"], each["status"], each["successor"]) for each in plans] == [
        ("one", "createdAt", "applies", "created_at"),
        ("all", "seatMap", "applies", "seat_map"),
        ("all", "tone", "broken", None),
    ]
    assert plans[0]["proposals"][0]["evidence"] == ["the same words, written differently"]


@pytest.mark.parametrize(
    "given",
    [
        '{"field": "createdAt", "new": ["created_at"]}',
        "old: createdAt\nnew: [created_at]\n",
        '{"cases": [{"old": ["createdAt"], "new_fields": {"created_at": "datetime"}}]}',
        '{"old_path": "createdAt", "candidates": ["created_at"]}\n{"old": ["a"], "new": ["a"]}\n',
    ],
)
def test_questions_may_be_written_in_several_ways(given: str) -> None:
    done = run("heal", "-", "--json", given=given)
    assert [each["successor"] for each in json.loads(done.output)["plans"]] == ["created_at"]


def test_without_explain_no_evidence_is_shown() -> None:
    assert "the same words" not in run("heal", "-", given=QUESTIONS).output
    done = run("heal", "-", "--explain", given=QUESTIONS)
    assert "createdAt: applies by itself\n  0.95  created_at\n        + the same words" in done.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[1]", "holds one question"),
        ('{"old_path": "a"}', "needs `candidates`"),
        ('{"candidates": ["a"]}', "needs `old_path`"),
        ('{"old_path": "a", "candidates": 7}', "`candidates` is a list"),
        ('{"old_path": "a", "candidates": ["b"], "resource": 7}', "`resource` of a question is a text"),
        ('{"old_path": "a", "candidates": ["b"], "samples_before": 7}', "isn't in the form"),
        ("{", "neither JSON nor YAML"),
    ],
)
def test_what_is_no_question_is_told(given: str, said: str) -> None:
    done = run("heal", "-", given=given)
    shown = " ".join(done.output.replace("│", " ").split())
    assert (done.exit_code, said in shown) == (2, True), shown


def test_a_question_that_is_none_keeps_no_other_from_its_answer() -> None:
    given = [{"old_path": "a"}, {"old_path": "createdAt", "candidates": ["created_at"]}]
    done = run("heal", "-", "--json", given=json.dumps(given))
    assert [each["successor"] for each in json.loads(done.stdout)["plans"]] == ["created_at"]
    assert (done.exit_code, "question 1: a question needs" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("explain", "square/default", "--record"), ()),
        (("preview", "square/default"), ()),
        (("heal",), ()),
        (("heal", "--old"), ("--connector", "square", "--resource", "customer")),
    ],
)
def test_a_file_that_is_no_text_is_told(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    file = tmp_path / "given.json"
    file.write_bytes(b"\xff{}")
    done = run(*before, str(file), *after)
    assert (done.exit_code, "isn't text in UTF-8" in done.output) == (2, True)
    file.write_bytes(b"\xef\xbb\xbf{")
    assert "BOM" not in run(*before, str(file), *after).output


def test_where_no_field_is_left_all_are_without_a_successor(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text('["seatMap"]')
    new.write_text("[]")
    done = run("heal", "--old", str(old), "--new", str(new), "--json")
    assert [each["status"] for each in json.loads(done.output)["plans"]] == ["broken"]


def test_a_manifest_says_what_fields_there_are(tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    new.write_text('{"id": "id", "email_address": "email", "remark": "text", "nickName": "text"}')
    asked = ("--connector", "square", "--resource", "customer", "--json")
    done = run("heal", *asked, "--new", str(new), "--field", "note")
    assert [each["field"] for each in json.loads(done.output)["plans"]] == ["note"]
    done = run("heal", *asked, "--field", "email_adress")
    assert json.loads(done.output)["plans"][0]["proposals"][0]["path"] == "email_address"
    done = run("heal", "--connector", "square", "--resource", "customer")
    assert done.exit_code == 2
