"""Mapping templates: read them, and find the one that suits a venue.

A template is a file in `mapping-templates/<connector>/`. Its mappings run in the order they are written. One
that `extends` another of its folder holds only what is different (`engine.layering`).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from engine.diagnostics import Diagnostic, did_you_mean, in_file_order, listed
from engine.documents import Document, Steps, read_document, refused
from engine.errors import DocumentError, ExpressionError, TemplateError
from engine.layering import Layers, Origin, laid_over, single
from engine.manifest import Connector, Platform, expression_diagnostic
from engine.mapping import Mapping, compile_mapping
from engine.ports import Record
from engine.schema import violations


@dataclass(frozen=True, slots=True)
class Suits:
    """Which venues a template is for; empty: any."""

    venue_types: tuple[str, ...] = ()
    name_mentions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MappingTemplate:
    """A file of mappings between a connector's resources and the platform's entities.

    `digest` is the SHA-256 of the text, with those of the templates it extends, to tell versions apart;
    `written` are its mappings as the file has them, laid over those of `layers` before it: the names of what
    it extends, itself last. `origins` tell where each part was written, by its path as in
    `("mappings", 0, "fields", "email")`.
    """

    name: str
    connector: str
    title: str
    suits: Suits
    mappings: tuple[Mapping, ...]
    file: str
    digest: str
    written: tuple[abc.Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)
    layers: tuple[str, ...] = ()
    origins: abc.Mapping[Steps, Origin] = field(default_factory=dict, repr=False, compare=False)


def load_template(path: FilePath | str, connector: Connector, platform: Platform) -> MappingTemplate:
    """Read and compile a template; raises TemplateError with everything that is wrong with it.

    A file that isn't readable YAML raises DocumentError.
    """
    return compile_template(read_document(FilePath(path)), connector, platform)


def load_templates(
    folder: FilePath | str, connector: Connector, platform: Platform
) -> tuple[MappingTemplate, ...]:
    """Read every template of a folder, by file name; raises for the first file that is wrong."""
    return tuple(load_template(path, connector, platform) for path in sorted(FilePath(folder).glob("*.yaml")))


def compile_template(document: Document, connector: Connector, platform: Platform) -> MappingTemplate:
    """Return the template a document describes; raises TemplateError."""
    template, diagnostics = check_template(document, connector, platform)
    if template is None:
        raise refused(diagnostics, TemplateError)
    return template


def check_template(
    document: Document, connector: Connector, platform: Platform
) -> tuple[MappingTemplate | None, list[Diagnostic]]:
    """Return the template, and what is wrong with its shape and expressions; one of the two is empty."""
    layers, found, _ = read_layers(document, connector, platform)
    if layers is None:
        return None, in_file_order(found)
    whole, mappings = layers.document, list[Mapping]()
    for index, written in enumerate(whole.data.get("mappings") or ()):
        mapping, faults = _mapping(whole, ("mappings", index), written, connector, platform)
        found.extend(faults)
        if mapping is not None:
            mappings.append(mapping)
    if found:
        return None, in_file_order(found)
    suits = whole.data.get("suits", {})
    template = MappingTemplate(
        name=whole.data["name"],
        connector=whole.data["connector"],
        title=whole.data["title"],
        suits=Suits(tuple(suits.get("venue_types", ())), tuple(suits.get("name_mentions", ()))),
        mappings=tuple(mappings),
        file=document.file,
        digest=hashlib.sha256("".join(reversed(layers.texts)).encode()).hexdigest(),
        written=tuple(whole.data["mappings"]),
        layers=layers.names,
        origins=layers.origins,
    )
    return template, []


def read_layers(
    document: Document, connector: Connector, platform: Platform
) -> tuple[Layers | None, list[Diagnostic], Layers | None]:
    """Return a template laid over what it extends, what is wrong with both as far as shape goes, and what it
    extends.

    Parts whose shape is wrong are emptied. The first is None when the rest can't be looked at.
    """
    broken = violations(document, "mapping-template")
    found = [each for each, _ in broken]
    right = document.without([path for _, path in broken])
    if not isinstance(right.data, dict):
        return None, found, None
    if right.data.get("connector", connector.name) != connector.name:
        message = f"this template is for `{right.data['connector']}`, not `{connector.name}`"
        found.append(document.diagnostic("wrong-connector", message, ("connector",)))
    if right.data.get("extends") is None:
        return (None if "extends" in right.data else single(right)), found, None
    base, faults = _extended(right, connector, platform)
    if base is None:
        return None, [*found, *faults], None
    layers, more = laid_over(right, base)
    return layers, [*found, *more], base


def _extended(
    document: Document, connector: Connector, platform: Platform
) -> tuple[Layers | None, list[Diagnostic]]:
    """Return what a template extends, or what is wrong with that."""
    file, name = FilePath(document.file), document.data["extends"]
    beside = {each.stem: each for each in sorted(file.parent.glob("*.yaml"))} if file.is_file() else {}
    others = [each for each in beside if each != file.stem]

    def refused_as(code: str, message: str, *advice: str) -> tuple[None, list[Diagnostic]]:
        return None, [document.diagnostic(code, message, ("extends",), *advice)]

    if name not in beside:
        has = (
            f"{connector.name} has {listed(others)}" if others else f"{connector.name} has no other template"
        )
        message = f"{connector.name} has no template `{name}`"
        return refused_as("unknown-template", message, *did_you_mean(name, others), has)
    way = [file.stem]
    try:
        while name is not None and name not in way:
            way.append(name)
            data = read_document(beside[name]).data if name in beside else {}
            name = data.get("extends") if isinstance(data, dict) else None
        if name == file.stem:
            message = f"`{file.stem}` extends itself: {' → '.join([*way, name])}"
            return refused_as("circular-template", message, "one of them has to extend none")
        base = read_document(beside[document.data["extends"]])
        if name is None and check_template(base, connector, platform)[0] is not None:
            return read_layers(base, connector, platform)[0], []
    except (DocumentError, RecursionError):
        pass  # it has problems of its own
    message = f"`{document.data['extends']}` has problems of its own, so what it gives cannot be checked"
    return refused_as("unchecked", message, f"`hub lint {beside[document.data['extends']]}` tells them")


def _mapping(
    document: Document, at: Steps, written: Any, connector: Connector, platform: Platform
) -> tuple[Mapping | None, list[Diagnostic]]:
    if not isinstance(written, dict) or not {"entity", "resource", "direction", "fields"} <= written.keys():
        return None, []  # its shape is wrong, which has been said
    found = [
        *_unknown(document, (*at, "entity"), written["entity"], platform.name, "entity", platform.entities),
        *_unknown(
            document, (*at, "resource"), written["resource"], connector.name, "resource", connector.resources
        ),
    ]
    for path, linked in _links(written["fields"], (*at, "fields")):
        found.extend(_unknown(document, path, linked, connector.name, "resource", connector.resources))
    entity = platform.entities.get(written["entity"])
    resource = connector.resources.get(written["resource"])
    if entity is None or resource is None:
        return None, found
    mapping, faults = compile_mapping(written, resource, entity)
    for fault in faults:
        error = ExpressionError(fault.message, fault.position)
        found.append(expression_diagnostic(document, (*at, *fault.at), error, fault.code, key=fault.key))
    return (None if found else mapping), found


def _links(fields: abc.Mapping[str, Any], at: Steps) -> Iterator[tuple[Steps, str]]:
    """Yield every resource that a mapping's rules name, with its place."""
    for name, rules in fields.items():
        several = isinstance(rules, list)
        for index, rule in enumerate(rules if several else [rules]):
            for key in ("link", "each_is"):
                if isinstance(rule, dict) and isinstance(rule.get(key), str):
                    yield (*at, name, *((index,) if several else ()), key), rule[key]


def _unknown(
    document: Document, at: Steps, word: str, owner: str, kind: str, known: abc.Collection[str]
) -> Iterator[Diagnostic]:
    if word not in known:
        advice = (*did_you_mean(word, known), f"{owner} has {listed(known)}")
        yield document.diagnostic(f"unknown-{kind}", f"{owner} has no {kind} `{word}`", at, *advice)


def detect_template(templates: Sequence[MappingTemplate], venue: Record) -> tuple[MappingTemplate, str]:
    """Return the template that suits a venue best, and why, in a sentence for people.

    Its type decides. Where that is none's or several's, it is the template of which the venue's name (or
    else its type) has the most words. Where those are as many for another, or none, it is the template called
    `default`, or the first. `templates` can't be empty.
    """
    kind = venue.get("type")
    default = next((each for each in templates if each.name == "default"), templates[0])
    of_type = [each for each in templates if kind is not None and _is_for(each, str(kind))]
    if len(of_type) == 1:
        return of_type[0], f"the venue's type is `{kind}`"
    said = ""
    if kind is not None:
        several = f"several templates are for the type `{kind}`, and "
        said = several if of_type else f"no template is for the type `{kind}`, but "
    for what, text in (("the venue's name", venue.get("name")), ("it" if said else "", kind)):
        best = _most_mentioned(of_type or templates, str(text or ""))
        if len(best) == 1:
            template, mentions = best[0]
            return template, f"{said}{what} mentions {_quoted(mentions)}"
        if best:
            one, *others = (f"`{template.name}` ({_quoted(mentions)})" for template, mentions in best)
            alike = f"{said}{what} speaks for {one} as much as for {', '.join(others)}"
            return default, f"{alike}, so it is the default"
    if of_type:
        return default, f"{said}nothing speaks for one of them, so it is the default"
    return default, "neither the venue's type nor its name speaks for another template"


def _is_for(template: MappingTemplate, kind: str) -> bool:
    return any(_words(each) == _words(kind) for each in template.suits.venue_types)


def _most_mentioned(
    templates: Sequence[MappingTemplate], text: str
) -> list[tuple[MappingTemplate, list[str]]]:
    """Return the templates of whose words a text has the most, with these words; none when it has none."""
    words = set(_words(text))
    found = [
        (template, [each for each in template.suits.name_mentions if set(_words(each)) <= words])
        for template in sorted(templates, key=lambda each: each.name)
    ]
    most = max(len(mentions) for _, mentions in found)
    return [each for each in found if most and len(each[1]) == most]


def _quoted(words: Sequence[str]) -> str:
    return listed(f"`{each}`" for each in words)


def _words(text: str) -> list[str]:
    """Return the words of a name without case and accents: `Café-Théâtre` is `cafe`, `theatre`."""
    plain = "".join(
        each for each in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(each)
    )
    return re.findall(r"[^\W_]+", plain)
