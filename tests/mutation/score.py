"""How many wrong mappings the samples of the template packs notice.

A mutant is killed when what its samples become, or what it decides, isn't what the snapshots hold. One that
can't be compiled could never have been used: it is refused, and counts neither way. One that means the same
is listed in equivalent.yaml, with the reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path as FilePath
from typing import Any
from unittest import mock

import orjson
from syrupy.extensions.amber.serializer import AmberDataSerializer

import engine.mapping
from engine.documents import Steps, read_document
from engine.expressions import Expression
from engine.mapping import compile_mapping
from engine.templates import MappingTemplate, Suits, detect_template
from tests.mutation.mutants import Mutant, mutants_of
from tests.snapshot.templates.rendering import (
    HERE,
    ROOT,
    Sample,
    connector_of,
    decisions,
    platform,
    rendered,
    rendering,
    samples_of,
    template_files,
    template_of,
)
from tests.snapshot.templates.venues import venues

EQUIVALENT = FilePath(__file__).with_name("equivalent.yaml")
LEAST = 95  # percent, for each template and for all

# What a sample would have to be for such a mutant to be noticed.
ADVICE: Mapping[str, str] = {
    "drop mapping": "a sample of this mapping",
    "drop field": "a sample in which this field has a value",
    "drop rule": "a sample that only this rule has a value for",
    "swap order": "a sample in which both rules have a value, and not the same",
    "swap sources": "a sample in which the two have different values",
    "drop calculation": "a sample whose value is another one after the calculation",
    "change constant": "a sample that comes to this constant",
    "change comparison": "samples on both sides of the comparison, and on its edge",
    "change calculation": "a sample with numbers that tell the two apart",
    "remove filter": "a sample whose value the filter changes",
    "change source": "a sample in which this has a value",
    "change condition": "a sample for which only one of the two holds",
    "negate condition": "a sample for which it holds, or one for which it doesn't",
    "drop condition": "a sample for which it doesn't hold",
    "drop link": "a sample with a link of this resource",
    "change link": "a sample with a link of this resource",
    "drop optional": "a sample whose link isn't there",
    "drop required": "a sample without a value",
    "drop unknown": "a sample with a value that the table doesn't name",
    "drop default": "a sample without a value",
    "drop pull_default": "a sample without a value",
    "drop value": "a sample with this value, each way that the rule goes",
    "swap values": "a sample with one of the two",
    "drop venue type": "a venue of this type in venues.yaml",
    "drop name mention": "a venue whose name has this word in venues.yaml",
}


@dataclass(frozen=True, slots=True)
class Survivor:
    """A mutant that no sample noticed, and where its rule is written."""

    template: str
    place: str
    kind: str
    says: str

    def __str__(self) -> str:
        advice = ADVICE.get(self.kind)
        wanted = f"; add {advice}" if advice else ""
        return f"{self.place}: {self.template}: {self.kind}: {self.says}{wanted}"


@dataclass(slots=True)
class Score:
    """What became of the mutants of one template."""

    template: str
    killed: int = 0
    refused: int = 0
    equivalent: int = 0
    survivors: list[Survivor] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def counted(self) -> int:
        return self.killed + len(self.survivors)

    @property
    def percent(self) -> float:
        return 100 * self.killed / self.counted if self.counted else 100.0


@dataclass(frozen=True, slots=True)
class _Case:
    """A sample, and what the mapping as it is makes of it."""

    sample: Sample
    result: bytes


def scores(names: Sequence[str] = (), *, share: float = 1.0, seed: int = 0) -> list[Score]:
    """Return the score of each template, `connector/name`; of a share of the mutants, drawn by a seed."""
    chance = random.Random(seed)
    known, used = _equivalents(), set[int]()
    made = []
    with _remembered_expressions():
        for path in template_files():
            name = f"{path.parent.name}/{path.stem}"
            if not names or name in names:
                made.append(_score(name, chance, share, known, used))
    if not names and share == 1.0 and len(used) < len(known):
        unused = [known[number] for number in range(len(known)) if number not in used]
        raise ValueError(f"equivalent.yaml names mutants that there are none of: {unused}")
    return made


def outdated(names: Sequence[str]) -> list[str]:
    """Return the templates whose samples don't come to what the snapshots hold: they have no score."""
    file = HERE / "__snapshots__" / "test_rendered_templates.ambr"
    kept = {each.name: each.data for each in AmberDataSerializer.read_file(str(file))}
    return [
        name
        for name in names
        if kept.get(f"test_a_template_over_its_samples[{name.replace('/', '-')}]")
        != AmberDataSerializer.serialize(rendering(*name.split("/")))
    ]


def _score(
    name: str, chance: random.Random, share: float, known: Sequence[Mapping[str, Any]], used: set[int]
) -> Score:
    connector, stem = name.split("/")
    template, score = template_of(connector, stem), Score(name)
    spec, host = connector_of(connector), platform()
    cases = _cases(template, samples_of(connector, stem))
    for number, written in enumerate(template.written):
        decided = _canonical(decisions(template.mappings[number]))
        for mutant in mutants_of(written, tuple(spec.resources)):
            if share < 1.0 and chance.random() >= share:
                continue
            if mutant.written is None:
                _count(score, template, number, mutant, bool(cases[number]), known, used)
                continue
            resource, entity = spec.resources[written["resource"]], host.entities[written["entity"]]
            made, _ = compile_mapping(mutant.written, resource, entity)
            if made is None:
                score.refused += 1
                continue
            noticed = _canonical(decisions(made)) != decided or any(
                _canonical(rendered(made, case.sample)) != case.result for case in cases[number]
            )
            _count(score, template, number, mutant, noticed, known, used)
    for kind, says, at, noticed in _suits(template):
        _count(score, template, None, Mutant(at, kind, says, None), noticed, known, used)
    return score


def _count(
    score: Score, template: MappingTemplate, number: int | None, mutant: Mutant, noticed: bool,
    known: Sequence[Mapping[str, Any]], used: set[int],
) -> None:  # fmt: skip
    score.kinds[mutant.kind] += 1
    if noticed:
        score.killed += 1
        return
    found = {"at": ".".join(map(str, mutant.at)), "kind": mutant.kind, "says": mutant.says}
    pair = (
        None
        if number is None
        else f"{template.mappings[number].entity} - {template.mappings[number].resource}"
    )
    for at, each in enumerate(known):
        same = all(each[key] == found[key] for key in found) and each["pair"] == pair
        if same and each["connector"] == template.connector:
            used.add(at)
            score.equivalent += 1
            return
    place = _place(template, number, mutant)
    score.survivors.append(Survivor(score.template, place, mutant.kind, mutant.says))


def _cases(template: MappingTemplate, samples: Sequence[Sample]) -> list[list[_Case]]:
    made: list[list[_Case]] = [[] for _ in template.mappings]
    for sample in samples:
        number = sample.mapping_of(template.mappings)
        made[number].append(_Case(sample, _canonical(rendered(template.mappings[number], sample))))
    return made


def _suits(template: MappingTemplate) -> Iterator[tuple[str, str, Steps, bool]]:
    """Yield each word of `suits` left out, and whether another template is chosen for some venue then."""
    others = [template_of(path.parent.name, path.stem) for path in template_files()]
    pack = [each for each in others if each.connector == template.connector]
    right = [_chosen(pack, venue) for venue in venues()]
    for kind, key in (("drop venue type", "venue_types"), ("drop name mention", "name_mentions")):
        words = getattr(template.suits, key)
        for at, word in enumerate(words):
            left = {key: (*words[:at], *words[at + 1 :])}
            kept = {"venue_types": template.suits.venue_types, "name_mentions": template.suits.name_mentions}
            changed = replace(template, suits=Suits(**{**kept, **left}))
            mutated = [changed if each is template else each for each in pack]
            noticed = any(_chosen(mutated, venue) != was for venue, was in zip(venues(), right, strict=True))
            yield kind, word, ("suits", key, at), noticed


def _chosen(pack: Sequence[MappingTemplate], venue: dict[str, Any]) -> tuple[str, str]:
    template, why = detect_template(pack, venue)
    return template.name, why


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, default=_exact, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _exact(value: Any) -> Any:
    if isinstance(value, Decimal):
        return {"exact": str(value)}
    raise TypeError(f"{type(value).__name__} is no value of a record")


def _equivalents() -> list[Mapping[str, Any]]:
    data = read_document(EQUIVALENT).data
    return list(data["equivalent"] or ())


@contextmanager
def _remembered_expressions() -> Iterator[None]:
    """Compile each text once: nearly all of a mutant is as it was."""
    compiled = cache(lambda text, names: Expression.compile(text, names=names))

    class Remembered:
        @staticmethod
        def compile(text: str, *, names: Any = None) -> Expression:
            return compiled(text, names)

    with mock.patch.object(engine.mapping, "Expression", Remembered):
        yield


# ---- where it is written -------------------------------------------------------------------------------


def _place(template: MappingTemplate, number: int | None, mutant: Mutant) -> str:
    """Return file:line:column of what was changed, in the file it is written in."""
    if number is None:
        document = read_document(FilePath(template.file))
        line, column, _ = document.place(mutant.at)
        return _shown(document.file, line, column)
    part: Steps = ("mappings", number, *mutant.at[: 2 if mutant.at[:1] == ("fields",) else 1])
    origin = template.origins[part]
    document, mapping = read_document(FilePath(origin.file)), template.mappings[number]
    pairs = [(each["entity"], each["resource"]) for each in document.data["mappings"]]
    at: Steps = ("mappings", pairs.index((mapping.entity, mapping.resource)), *mutant.at)
    if mutant.offset is None:
        line, column, _ = document.place(at, key=True)
    else:
        line, column, _ = document.within(at, mutant.offset)
    return _shown(document.file, line, column)


def _shown(file: str, line: int, column: int) -> str:
    return f"{FilePath(file).relative_to(ROOT)}:{line}:{column}"
