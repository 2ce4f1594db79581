"""`hub new` writes a manifest that is right as it is, and never over another."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli import commands
from engine.documents import read_document
from engine.lint import lint_file
from engine.manifest import load_connector


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["new", *arguments])


def test_the_manifest_lints_clean_and_loads() -> None:
    result = new("juniper")
    assert (result.exit_code, "connectors/juniper.yaml" in result.output) == (0, True)
    file = Path("connectors/juniper.yaml")
    assert lint_file(file) == []
    connector = load_connector(file)
    assert (connector.name, connector.title) == ("juniper", "Juniper")
    assert connector.resources["customer"].list is not None


@pytest.mark.parametrize(
    "title",
    [
        "Juniper Point of Sale",
        "Juniper: Café & Bar",
        'The "Blue" # Note',
        "true",
        "2024",
        "{{ x }}",
        "Two\nlines",
    ],
)
def test_any_title_comes_through(title: str) -> None:
    assert new("juniper", "--title", title).exit_code == 0
    file = Path("connectors/juniper.yaml")
    assert lint_file(file) == []
    assert read_document(file).data["title"] == " ".join(title.split())


@pytest.mark.parametrize("name", ["no", "yes", "on", "juniper_pos", "x2"])
def test_a_name_that_yaml_could_take_for_something_else(name: str) -> None:
    result = new(name)
    assert result.exit_code == 0
    file = Path(f"connectors/{name}.yaml")
    assert [each.message for each in lint_file(file)] == []
    assert read_document(file).data["connector"] == name


def test_an_existing_file_is_left_as_it_is() -> None:
    Path("connectors").mkdir()
    Path("connectors/juniper.yaml").write_text("mine\n")
    result = new("juniper")
    assert result.exit_code == 2
    assert "connectors/juniper.yaml is there already" in result.output
    assert Path("connectors/juniper.yaml").read_text() == "mine\n"


@pytest.mark.parametrize(
    "name", ["Juniper", "../juniper", "juniper.yaml", "2go", "platform", "null", "true", "a b", ""]
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    assert new(name).exit_code == 2
    assert not Path("connectors").exists()
