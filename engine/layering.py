"""A template that `extends` another one holds only what is different; here the two become one.

Mappings meet by entity and resource. Within one, a field's rule replaces the one of the same name, null takes
it away, and any other key replaces the same key. What the other has comes first, in its order; what is new
comes after it. Every rule remembers the file and the line it was written in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.diagnostics import Diagnostic, did_you_mean, listed
from engine.documents import Document, Steps

Written = Mapping[str, Any]

_COMES_FROM = "it comes from "
_PAIR = ("entity", "resource")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule was written: the template's name, its file, and the line, counted from 1.

    A venue's own mapping is in no file, and has a `version`.
    """

    layer: str
    file: str = ""
    line: int = 0
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Layers:
    """A template's document with all that it extends, and the origin of each part of its mappings.

    `origins` has the mappings (`("mappings", 0)`), their keys, and their fields' rules
    (`("mappings", 0, "fields", "email")`). `names` are the templates, the one that extends none first;
    `texts` are those of their files, in the same order.
    """

    document: Document
    names: tuple[str, ...]
    origins: Mapping[Steps, Origin]
    texts: tuple[str, ...]

    @property
    def mappings(self) -> list[Any]:
        """The mappings as they are written; what has a wrong shape is None."""
        return list(self.document.data.get("mappings") or ())


def single(document: Document) -> Layers:
    """Return a template that extends none as layers; parts of a wrong shape have been emptied."""
    name = str(document.data.get("name", ""))
    origins = {
        steps: Origin(name, document.file, document.place(steps, key=True)[0])
        for at, mapping in enumerate(document.data.get("mappings") or ())
        if isinstance(mapping, dict)
        for steps in _parts(mapping, ("mappings", at))
    }
    return Layers(document, (name,), origins, (document.text,))


def laid_over(own: Document, base: Layers) -> tuple[Layers, list[Diagnostic]]:
    """Lay a template over the one it extends; also returns what in it means nothing or isn't whole."""
    above, name = single(own), base.names[-1]
    made: list[dict[str, Any]] = [dict(each) for each in base.mappings]
    parts = [
        {steps: base.origins["mappings", at, *steps] for steps in _parts(each)}
        for at, each in enumerate(made)
    ]
    found: list[Diagnostic] = []
    places: dict[int, int] = {}  # of the file's mappings, in the whole
    gone: set[int] = set()
    for number, written in enumerate(own.data.get("mappings") or ()):
        if not isinstance(written, dict):
            continue  # its shape is wrong, which has been said
        here: Steps = ("mappings", number)
        there = _position(made, written)
        if there in places.values():
            message = f"`{written['entity']}` is already paired with `{written['resource']}`"
            first = next(old for old, at in places.items() if at == there)
            line = own.place(("mappings", first))[0]
            found.append(own.diagnostic("duplicate-mapping", message, here, f"the first is on line {line}"))
            continue
        if there is None:
            lacking = list(_lacking(own, here, written, base))
            found += lacking
            if lacking or not written.get("fields"):
                continue
            places[number] = len(made)
            made.append({**written, "fields": _kept(written["fields"])})
            parts.append({steps: above.origins[(*here, *steps)] for steps in _parts(made[-1])})
            continue
        places[number] = there
        if written.get("fields", {}) is None:
            gone.add(there)
            continue
        found += _amiss(own, here, written, made[there], name)
        made[there] = {
            **made[there],
            **written,
            "fields": _kept({**made[there]["fields"], **(written.get("fields") or {})}),
        }
        parts[there] = {
            steps: above.origins[(*here, *steps)] if _says(written, steps) else parts[there][steps]
            for steps in _parts(made[there])
        }
    if gone == set(range(len(made))):
        found.append(own.diagnostic("too-few", "no mapping is left", ("mappings",), "keep one", key=True))
    left = [at for at in range(len(made)) if at not in gone]
    made = [made[at] for at in left]
    places = {number: left.index(at) for number, at in places.items() if at in left}
    origins = {
        ("mappings", at, *steps): each for at, old in enumerate(left) for steps, each in parts[old].items()
    }
    document = _whole(own, {**own.data, "mappings": made}, places, origins)
    return Layers(document, (*base.names, *above.names), origins, (*base.texts, own.text)), found


def repeated(own: Document, base: Layers) -> Iterator[Diagnostic]:
    """Yield what a template says just as the one it extends does."""
    name = base.names[-1]
    for number, written in enumerate(own.data.get("mappings") or ()):
        at = _position(base.mappings, written) if isinstance(written, dict) else None
        if at is None:
            continue
        known = base.mappings[at]
        same: list[Steps] = [
            (key,)
            for key, each in written.items()
            if key not in (*_PAIR, "fields") and known.get(key) == each
        ]
        same += [
            ("fields", field)
            for field, each in (written.get("fields") or {}).items()
            if each is not None and known["fields"].get(field) == each
        ]
        for steps in same:
            message = f"`{steps[-1]}` says what `{name}` says already"
            advice = f"leave it out; it is written in {base.origins['mappings', at, *steps]}"
            yield own.diagnostic("no-effect", message, ("mappings", number, *steps), advice, key=True)


def is_inherited(diagnostic: Diagnostic) -> bool:
    """Say whether a diagnostic is about something that an extended template has written."""
    return any(each.startswith(_COMES_FROM) for each in diagnostic.help)


def difference(base: Sequence[Written], own: Sequence[Written]) -> list[dict[str, Any]]:
    """Return mappings as a template would write them that extends `base`: only what is different.

    What is taken away is null: a field, a key, or all `fields` of a mapping that `own` hasn't.
    """
    made = []
    for mapping in own:
        at = _position(base, mapping)
        known = base[at] if at is not None else {"fields": {}}
        keys = {
            key: mapping.get(key)
            for key in dict.fromkeys((*known, *mapping))
            if key not in (*_PAIR, "fields") and mapping.get(key) != known.get(key)
        }
        fields = {
            name: mapping["fields"].get(name)
            for name in dict.fromkeys((*known["fields"], *mapping["fields"]))
            if mapping["fields"].get(name) != known["fields"].get(name)
        }
        if keys or fields:
            made.append({**_pair(mapping), **keys, **({"fields": fields} if fields else {})})
    gone = [each for each in base if _position(own, each) is None]
    return [*made, *({**_pair(each), "fields": None} for each in gone)]


# ---- the parts of a mapping ----------------------------------------------------------------------------


def _parts(mapping: Written, at: Steps = ()) -> Iterator[Steps]:
    """Yield the paths of a mapping's parts: itself, each key, each field."""
    yield at
    for key in mapping:
        yield (*at, key)
    for name in mapping.get("fields") or ():
        yield (*at, "fields", name)


def _says(written: Written, steps: Steps) -> bool:
    """Say whether a mapping has a part of its own, beside what it meets another one by."""
    if len(steps) == 2:
        return steps[1] in (written.get("fields") or {})
    return bool(steps) and steps[0] in written and steps[0] not in _PAIR


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in fields.items() if each is not None}


def _pair(mapping: Written) -> dict[str, Any]:
    return {key: mapping[key] for key in _PAIR}


def _position(mappings: Sequence[Written], wanted: Written) -> int | None:
    return next((at for at, each in enumerate(mappings) if _pair(each) == _pair(wanted)), None)


def _lacking(own: Document, here: Steps, written: Written, base: Layers) -> Iterator[Diagnostic]:
    """Yield what a mapping lacks that the extended template doesn't have."""
    name, entity, resource = base.names[-1], written["entity"], written["resource"]
    nearest = did_you_mean(resource, [each["resource"] for each in base.mappings if each["entity"] == entity])
    pairs = listed(f"{each['entity']} and {each['resource']}" for each in base.mappings)
    advice = (*nearest, f"`{name}` has {pairs}")
    none = f"`{name}` has no mapping of `{entity}` and `{resource}`"
    for key in ("direction", "fields"):
        if not written.get(key):
            yield own.diagnostic("missing-key", f"{none}, so it needs `{key}`", here, *advice, key=True)
    for field, each in (written.get("fields") or {}).items():
        if each is None:
            message = f"`{field}` takes nothing away: {none}"
            yield own.diagnostic("no-effect", message, (*here, "fields", field), *advice, key=True)


def _amiss(own: Document, here: Steps, written: Written, known: Written, name: str) -> Iterator[Diagnostic]:
    """Yield what is wrong with how a mapping changes one of the extended template."""
    fields = written.get("fields") or {}
    for field, each in fields.items():
        if each is None and field not in known["fields"]:
            message = f"`{field}` takes nothing away: `{name}` has no such field here"
            advice = (*did_you_mean(field, known["fields"]), f"it has {listed(known['fields'])}")
            yield own.diagnostic("no-effect", message, (*here, "fields", field), *advice, key=True)
    if not _kept({**known["fields"], **fields}):
        message = f"nothing is left of the fields of `{written['entity']}` and `{written['resource']}`"
        yield own.diagnostic("too-few", message, (*here, "fields"), "keep at least one field", key=True)


def _whole(
    own: Document, data: dict[str, Any], places: Mapping[int, int], origins: Mapping[Steps, Origin]
) -> Document:
    """Return the whole as a document that points into the file that extends.

    What the file doesn't write itself is pointed at where the file changes its mapping, or where it says
    which template it extends.
    """
    file_at = {at: number for number, at in places.items()}
    pins: dict[Steps, Steps] = {}
    remarks: dict[Steps, str] = {}
    for steps, origin in origins.items():
        at = int(steps[1])
        if origin.file == own.file or (len(steps) == 2 and at in file_at):
            remarks[steps] = ""
        else:
            pins[steps] = ("mappings", file_at[at]) if at in file_at else ("extends",)
            remarks[steps] = f"{_COMES_FROM}`{origin.layer}`, {origin}"
    moves: dict[Steps, Steps] = {("mappings", number): ("mappings", at) for number, at in places.items()}
    return own.rearranged(data, moves, pins, remarks)
