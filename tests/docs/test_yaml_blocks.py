"""Every YAML block in the documentation is strict YAML; one that is a whole file lints clean."""

import shutil
from pathlib import Path

import pytest

from engine.documents import read_document
from engine.lint import KINDS, lint_file
from tests.docs.blocks import ROOT, Block, blocks

# Shown wrong on purpose, to show what lint says.
WRONG = {"paginaton"}


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_a_block_is_right(block: Block, tmp_path: Path) -> None:
    document = read_document(block.text, file=block.name)
    first = next(iter(document.data)) if isinstance(document.data, dict) else None
    if first not in KINDS:
        return  # a part of a file
    for folder in (ROOT / "docs" / "examples" / "connectors", ROOT / "connectors"):
        shutil.copytree(folder, tmp_path / "connectors", dirs_exist_ok=True)
    shutil.copytree(ROOT / "mapping-templates", tmp_path / "mapping-templates")  # a block may extend one
    if first == "template":
        file = tmp_path / "mapping-templates" / document.data["connector"] / f"{document.data['name']}.yaml"
    else:
        name = document.data["connector"] if first == "manifest" else str(first)
        file = tmp_path / "connectors" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text, "utf-8")
    found = lint_file(file)
    wrong = [each for each in found if not any(f"`{word}`" in each.message for word in WRONG)]
    assert [f"{each.code} {block.line + each.line - 1}: {each.message}" for each in wrong] == []


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs" / "examples").rglob("*.yaml")), ids=lambda file: file.name
)
def test_an_example_file_lints_clean(file: Path) -> None:
    assert lint_file(file) == []


def test_there_are_whole_files_among_the_blocks() -> None:
    whole = [block for block in blocks("yaml") if block.text.lstrip("# ").split(":")[0] in KINDS]
    assert len(whole) >= 3
