"""What templates make of their samples: the text that snapshots keep, and that mutants must change.

A template that extends another one is shown over the samples of both, in its own venue. What it makes of the
other's samples is told only where it differs: a snapshot of a venue type reads as what is special about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path as FilePath
from typing import Any, Literal

from engine.documents import read_document
from engine.errors import MappingError
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.templates import MappingTemplate, load_template

HERE = FilePath(__file__).parent
ROOT = HERE.parents[2]
TEMPLATES = ROOT / "mapping-templates"

Way = Literal["push", "pull"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST_SHOWN = 200  # characters of a text that a snapshot holds as they are

# The words of a mapping that say what becomes of a record, beside what its fields become.
DECISIONS = (
    "direction",
    "match_on",
    "when_both_changed",
    "when_ours_is_gone",
    "when_no_longer_wanted",
    "when_theirs_is_gone",
    "at_most_gone",
    "few_gone",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A record to be mapped, of the file of `template`; `expect` holds what was worked out by hand."""

    name: str
    template: str
    way: Way
    entity: str | None
    resource: str
    record: Mapping[str, Any]
    scope: MappingScope
    expect: Any

    def mapping_of(self, mappings: tuple[FieldMapping, ...]) -> int:
        """Return which of a template's mappings it is for."""
        return next(
            number
            for number, each in enumerate(mappings)
            if each.resource == self.resource and self.entity in (None, each.entity)
        )


def template_files() -> list[FilePath]:
    return sorted(TEMPLATES.glob("*/*.yaml"))


@cache
def platform() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


@cache
def connector_of(name: str) -> Connector:
    return load_connector(ROOT / "connectors" / f"{name}.yaml")


@cache
def template_of(connector: str, name: str) -> MappingTemplate:
    return load_template(TEMPLATES / connector / f"{name}.yaml", connector_of(connector), platform())


def base_of(connector: str, name: str) -> str | None:
    """Return the template that one extends."""
    base = read_document(TEMPLATES / connector / f"{name}.yaml").data.get("extends")
    return None if base is None else str(base)


def _exact(value: Any) -> Any:
    """Return a value of a sample with its fractions as exact numbers, as the platform gives them."""
    if isinstance(value, dict):
        return {key: _exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_exact(each) for each in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


@cache
def samples_of(connector: str, name: str) -> tuple[Sample, ...]:
    """Return a template's own samples, then those of what it extends, as they are in its venue."""
    own = _file_of(connector, name)
    made = [_sample(name, own["venue"], each) for each in own["samples"]]
    base = base_of(connector, name)
    while base is not None:
        made += [_sample(base, own["venue"], each) for each in _file_of(connector, base)["samples"]]
        base = base_of(connector, base)
    return tuple(made)


def _file_of(connector: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = read_document(HERE / connector / f"{name}.samples.yaml").data
    return data


def _sample(template: str, venue: Mapping[str, Any], written: Mapping[str, Any]) -> Sample:
    way: Way = "push" if "push" in written else "pull"
    links = {}
    for key, other in written.get("links", {}).items():
        resource, record_id = key.split(" ")
        links[resource, record_id] = other
    return Sample(
        name=written["name"],
        template=template,
        way=way,
        entity=written.get("entity"),
        resource=written[way],
        record={**_exact(written["record"]), **_long(written.get("lengths", {}))},
        scope=MappingScope(venue={**venue, **written.get("venue", {})}, links=links),
        expect=_exact(written.get("expect")),
    )


def _long(lengths: Mapping[str, int]) -> dict[str, str]:
    """Return texts of so many characters, by field."""
    return {name: (LETTERS * (length // len(LETTERS) + 1))[:length] for name, length in lengths.items()}


def rendered(mapping: FieldMapping, sample: Sample) -> Any:
    """Return what a mapping makes of a sample, `skipped`, or the error as text."""
    record: Any = sample.record
    try:
        if sample.way == "push":
            wanted = mapping.pushes and mapping.wants(record, sample.scope)
            return mapping.push(record, sample.scope) if wanted else "skipped"
        wanted = mapping.pulls and mapping.wants_pull(record, sample.scope)
        return mapping.pull(record, sample.scope) if wanted else "skipped"
    except MappingError as error:
        return f"error in {error.field}: {error.message}"


def decisions(mapping: FieldMapping) -> dict[str, Any]:
    """Return the words of a mapping that no sample shows."""
    made = {name: getattr(mapping, name) for name in DECISIONS}
    by_field = {
        "conflicts": dict(mapping.conflict_rules),
        "lists": {each.path.text: each.resource for each in mapping.list_rules},
    }
    said = {name: each for name, each in by_field.items() if each}
    return {"pair": f"{mapping.entity} - {mapping.resource}", **made, **said}


def rendering(connector: str, name: str) -> dict[str, Any]:
    """Return all that a snapshot holds of a template."""
    template, base = template_of(connector, name), base_of(connector, name)
    below = template_of(connector, base) if base is not None else None
    return {
        "mappings": [decisions(each) for each in template.mappings],
        "samples": dict(_results(template, below, samples_of(connector, name))),
    }


def _results(
    template: MappingTemplate, below: MappingTemplate | None, samples: tuple[Sample, ...]
) -> Iterator[tuple[str, Any]]:
    for sample in samples:
        result = rendered(template.mappings[sample.mapping_of(template.mappings)], sample)
        if below is not None and sample.template != template.name:
            was = rendered(below.mappings[sample.mapping_of(below.mappings)], sample)
            if was == result:
                result = f"as {below.name} makes it"
        yield f"{sample.template}: {sample.name}", _shown(result)


def _shown(value: Any) -> Any:
    """Return a value with its long texts by their length and how they end."""
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"{value[:20]}... {len(value)} characters ...{value[-20:]}"
    return value
