"""The reference pages are what `hub docs` writes, and leave nothing out that an author may write."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from engine.diagnostics import CODES
from engine.reference import command_line_page, diagnostics_page, reference_pages, write_reference
from server.cli import main
from server.environment import UNNEEDED
from server.reference import every_page
from server.settings import VARIABLES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "reference"
COMMITTED = {str(file.relative_to(FOLDER)): file.read_text("utf-8") for file in FOLDER.rglob("*.md")}
SCHEMA_PAGES = {
    "connector": "manifest.md",
    "mapping-template": "mapping-templates.md",
    "platform": "platform.md",
}


def test_the_committed_pages_are_what_the_command_writes() -> None:
    """When this fails, run `make docs` and look at what changed."""
    written = every_page(main)
    assert sorted(COMMITTED) == sorted(written)
    assert [name for name, text in written.items() if COMMITTED[name] != text] == []


def test_the_command_writes_into_a_folder_and_removes_pages_of_connectors_that_are_gone(
    tmp_path: Path,
) -> None:
    (tmp_path / "connectors").mkdir()
    (tmp_path / "connectors" / "gone.md").write_text("# Gone\n")
    (tmp_path / "own.md").write_text("# By hand\n")
    result = CliRunner().invoke(main, ["docs", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    files = {Path(file) for file in json.loads(result.stdout)["files"]}
    assert tmp_path / "settings.md" in files
    assert set(tmp_path.rglob("*.md")) == files | {tmp_path / "own.md"}


def test_the_engine_alone_writes_what_needs_no_server(tmp_path: Path) -> None:
    files = {str(file.relative_to(tmp_path)) for file in write_reference(tmp_path)}
    assert files == set(reference_pages())
    assert not files & {"settings.md", "api.md", "command-line.md"}


def keys_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
        for name, inner in schema.items():
            if name != "if":  # a condition repeats keys that are described elsewhere
                yield from keys_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from keys_of(inner)


@pytest.mark.parametrize(("schema", "page"), list(SCHEMA_PAGES.items()))
def test_every_key_of_a_schema_has_a_row(schema: str, page: str) -> None:
    keys = set(keys_of(json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text("utf-8"))))
    assert len(keys) > 5
    assert {key for key in keys if f"\n| `{key}` |" not in COMMITTED[page]} == set()


def test_every_code_has_an_example_that_shows_it() -> None:
    sections = re.split(r"(?m)^## ", diagnostics_page())[1:]
    assert [section.split("\n", 1)[0] for section in sections] == list(CODES)
    for section in sections:
        code = section.split("\n", 1)[0]
        assert re.search(rf"```text\n(error|warning)\[{code}\]: ", section), code


def each_command(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from each_command(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


@pytest.mark.parametrize(("name", "command"), list(each_command(main)))
def test_every_command_is_described_with_its_options(name: str, command: click.Command) -> None:
    section = COMMITTED["command-line.md"].split(f"## hub {name}\n", 1)[1].split("\n## ", 1)[0]
    options = [word for each in command.params if isinstance(each, click.Option) for word in each.opts]
    assert [word for word in options if f"`{word}`" not in section] == []


def test_a_command_page_of_a_group_made_up() -> None:
    group = click.Group("tool", help="Does things.")
    argument, option = click.Argument(["file"]), click.Option(["--times", "-t"], default=3, help="How often.")
    group.add_command(click.Command("do", params=[argument, option], help="Do it.\n\n  Again and again."))
    page = command_line_page("tool", group)
    assert "## tool do\n\n`tool do [OPTIONS] FILE`\n\nDo it.\n\nAgain and again.\n" in page
    assert "| `--times`, `-t` `INTEGER` | `3` | How often. |" in page


def test_every_setting_is_described() -> None:
    ours, _, of_the_original = COMMITTED["settings.md"].partition("## The original service's settings")
    rows = r"(?m)^\| `([A-Z_<>]+)` \|"
    assert re.findall(rows, ours) == [variable.name for variable in VARIABLES]
    assert re.findall(rows, of_the_original.partition("\n## ")[0]) == [each.name for each in UNNEEDED]
    assert str(ROOT) not in COMMITTED["settings.md"]


def test_every_connector_has_a_page_with_its_resources() -> None:
    assert "### customer\n" in COMMITTED["connectors/square.md"]
    assert "| `item_data.name` | text | needed, at most 512 characters |" in COMMITTED["connectors/square.md"]
    assert "- 25 per second for an account in `sandbox`" in COMMITTED["connectors/stripe.md"]
    assert "| status `401` | `reconnect` |" in COMMITTED["connectors/stripe.md"]


def anchors(text: str) -> set[str]:
    """Return what a heading can be reached by where Markdown is shown."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?s)```.*?```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_links_within_a_page_lead_somewhere(name: str) -> None:
    text = COMMITTED[name]
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors(text) == set()
