"""Every planted fault is named first, at its line and column, in words that help.

`<name>.yaml` is a manifest, template or platform with one fault in it. `<name>.txt` says what the first
diagnostic must be: `code line:column`, then words that must be in it. The snapshot holds the whole text, for
reading. `right/` and `connectors/` hold the files before a fault was planted.
"""

import re
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from engine.diagnostics import render
from engine.lint import lint_file

HERE = Path(__file__).parent
FAULTS = sorted(file.stem for file in HERE.glob("*.yaml"))


def put_in_its_place(text: str) -> Path:
    """Write a file where its kind belongs, beside the right connector and platform; return its path."""
    Path("connectors").mkdir(exist_ok=True)
    for file in (HERE / "connectors").glob("*.yaml"):
        (Path("connectors") / file.name).write_text(file.read_text("utf-8"), "utf-8")
    name = re.search(r"^name: (\S+)", text, re.MULTILINE)
    if text.startswith("template:") and name:
        target = Path("mapping-templates/juniper") / f"{name.group(1)}.yaml"
    else:
        target = Path("connectors") / ("platform.yaml" if text.startswith("platform:") else "juniper.yaml")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, "utf-8")
    return target


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FAULTS)
def test_the_planted_fault_is_named_first(name: str, snapshot: SnapshotAssertion) -> None:
    expected, *words = (HERE / f"{name}.txt").read_text("utf-8").splitlines()
    found = lint_file(put_in_its_place((HERE / f"{name}.yaml").read_text("utf-8")))
    assert found, "nothing was found"
    first = found[0]
    assert f"{first.code} {first.line}:{first.column}" == expected
    said = render([first])
    assert [word for word in words if word not in said] == []
    assert render(found) == snapshot


def test_the_files_without_a_fault_are_clean() -> None:
    template = put_in_its_place((HERE / "right" / "music-venue.yaml").read_text("utf-8"))
    for file in (template, *sorted(Path("connectors").glob("*.yaml"))):
        assert lint_file(file) == []


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 60
