"""Every template over hand-written samples, both ways: values worked out by hand, and a snapshot of the rest.

A sample names a resource under `push` (`record` is ours) or `pull` (`record` is theirs), and the entity where
several go to one resource; without one it is the first mapping's. `links` are `resource id: other id`;
`venue` adds to the file's venue, `lengths` texts of so many letters to the record.
`expect` holds the values that matter, by path, worked out by hand: `absent` for what must not be there,
`length` and a number for a text cut to so many characters, `skipped` when the record must not be synced at
all, `error` naming the field that fails. Numbers with a fraction are exact, as the platform gives them.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from engine.expressions import ABSENT, Path
from tests.snapshot.templates.rendering import (
    base_of,
    rendered,
    rendering,
    samples_of,
    template_files,
    template_of,
)

NAMES = [
    pytest.param(each.parent.name, each.stem, id=f"{each.parent.name}-{each.stem}")
    for each in template_files()
]


def wrong(result: Any, expect: Any) -> str | None:
    """Return what isn't as it was worked out by hand."""
    if expect == "skipped":
        return None if result == "skipped" else f"isn't skipped but {result}"
    if "error" in expect:
        return (
            None if str(result).startswith(f"error in {expect['error']}: ") else f"is no error but {result}"
        )
    if not isinstance(result, dict):
        return str(result)
    for path, wanted in expect.items():
        found = Path.parse(path).find(result)
        if isinstance(wanted, str) and isinstance(found, str) and wanted == f"length {len(found)}":
            continue
        same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
        right = found is ABSENT if wanted == "absent" else same
        if not right:
            return f"`{path}` is {found!r}, not {wanted!r}"
    return None


@pytest.mark.parametrize(("connector", "name"), NAMES)
def test_a_template_over_its_samples(connector: str, name: str, snapshot: SnapshotAssertion) -> None:
    template = template_of(connector, name)
    faults = []
    for sample in samples_of(connector, name):
        if sample.template != name:
            continue  # its values were worked out for the template it is of
        result = rendered(template.mappings[sample.mapping_of(template.mappings)], sample)
        fault = wrong(result, sample.expect)
        if fault is not None:
            faults.append(f"{sample.name}: {fault}")
    assert faults == []
    assert rendering(connector, name) == snapshot


@pytest.mark.parametrize(("connector", "name"), NAMES)
def test_every_mapping_of_a_template_has_samples_both_ways(connector: str, name: str) -> None:
    """A bidirectional mapping needs a sample each way, another one its own way."""
    mappings = template_of(connector, name).mappings
    covered = {(each.way, each.mapping_of(mappings)) for each in samples_of(connector, name)}
    needed = {
        (way, number)
        for number, mapping in enumerate(mappings)
        for way, goes in (("push", mapping.pushes), ("pull", mapping.pulls))
        if goes
    }
    assert needed <= covered


@pytest.mark.parametrize(("connector", "name"), NAMES)
def test_samples_have_names_of_their_own(connector: str, name: str) -> None:
    names = [(each.template, each.name) for each in samples_of(connector, name)]
    assert len(names) == len(set(names))


def test_every_samples_file_is_of_a_template() -> None:
    here = FilePath(__file__).parent
    files = {(each.parent.name, each.name.removesuffix(".samples.yaml")) for each in here.glob("*/*.yaml")}
    assert files == {(each.parent.name, each.stem) for each in template_files()}
    for connector, name in files:
        assert base_of(connector, name) in {None, *(other for one, other in files if one == connector)}
