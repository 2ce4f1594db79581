"""Every template over hand-written samples, both ways: values worked out by hand, and a snapshot of the rest.

A sample names a resource under `push` (`record` is ours) or `pull` (`record` is theirs), and the entity where
several go to one resource; without one it is the first mapping's. `links` are
`resource id: other id`. `expect` holds the values that matter, by path, worked out by hand: `absent` for what
must not be there, `skipped` when the record must not be synced at all, `error` naming the field that fails.
Numbers with a fraction are exact, as the platform gives them.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from engine.documents import read_document
from engine.errors import MappingError
from engine.expressions import ABSENT, Path
from engine.manifest import load_connector, load_platform
from engine.mapping import Mapping, MappingScope
from engine.templates import MappingTemplate, load_template

HERE = FilePath(__file__).parent
ROOT = HERE.parents[2]
TEMPLATES = ROOT / "mapping-templates"


@cache
def template_of(connector: str, name: str) -> MappingTemplate:
    manifest = load_connector(ROOT / "connectors" / f"{connector}.yaml")
    platform = load_platform(ROOT / "connectors" / "platform.yaml")
    return load_template(TEMPLATES / connector / f"{name}.yaml", manifest, platform)


def exact(value: Any) -> Any:
    """Return a value of a sample with its fractions as exact numbers."""
    if isinstance(value, dict):
        return {key: exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [exact(each) for each in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def samples() -> list[Any]:
    found = []
    for path in sorted(HERE.glob("*/*.samples.yaml")):
        connector, name = path.parent.name, path.name.removesuffix(".samples.yaml")
        data = read_document(path).data
        for sample in data["samples"]:
            title = f"{connector}-{name}-{sample['name']}"
            found.append(pytest.param(connector, name, data["venue"], sample, id=title))
    return found


def rendered(mapping: Mapping, way: str, record: dict[str, Any], scope: MappingScope) -> Any:
    """Return what the mapping makes of a record, `skipped`, or the error as text."""
    try:
        if way == "push":
            return mapping.push(record, scope) if mapping.wants(record, scope) else "skipped"
        return mapping.pull(record, scope) if mapping.wants_pull(record, scope) else "skipped"
    except MappingError as error:
        return f"error in {error.field}: {error.message}"


def mapping_of(template: MappingTemplate, sample: dict[str, Any], way: str) -> Mapping:
    found = [each for each in template.mappings if each.resource == sample[way]]
    return next(each for each in found if each.entity == sample.get("entity", found[0].entity))


@pytest.mark.parametrize(("connector", "name", "venue", "sample"), samples())
def test_a_template_over_a_sample(
    connector: str, name: str, venue: dict[str, Any], sample: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    way = "push" if "push" in sample else "pull"
    mapping = mapping_of(template_of(connector, name), sample, way)
    links = {}
    for key, other in sample.get("links", {}).items():
        resource, record_id = key.split(" ")
        links[resource, record_id] = other
    record = exact(sample["record"])
    result = rendered(mapping, way, record, MappingScope(venue=venue, links=links))

    expect = sample["expect"]
    if expect == "skipped":
        assert result == "skipped"
    elif "error" in expect:
        assert str(result).startswith(f"error in {expect['error']}: ")
    else:
        assert isinstance(result, dict), result
        for path, wanted in exact(expect).items():
            found = Path.parse(path).find(result)
            assert (found is ABSENT) if wanted == "absent" else found == wanted, path
    assert result == snapshot


@pytest.mark.parametrize(
    "path",
    [pytest.param(each, id=f"{each.parent.name}-{each.stem}") for each in sorted(TEMPLATES.glob("*/*.yaml"))],
)
def test_every_mapping_of_every_template_has_samples_both_ways(path: FilePath) -> None:
    """A bidirectional mapping needs a sample each way, another one its own way."""
    template = template_of(path.parent.name, path.stem)
    covered = {
        (way, mapping_of(template, sample, way).entity, sample[way])
        for sample in read_document(HERE / path.parent.name / f"{path.stem}.samples.yaml").data["samples"]
        for way in ("push", "pull")
        if way in sample
    }
    needed = {
        (way, mapping.entity, mapping.resource)
        for mapping in template.mappings
        for way, goes in (("push", mapping.pushes), ("pull", mapping.pulls))
        if goes
    }
    assert needed <= covered
