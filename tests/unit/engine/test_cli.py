"""What the engine's commands say to input that isn't what they take."""

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
