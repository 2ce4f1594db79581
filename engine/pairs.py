"""The simple form of mappings: pairs of `entity.field` and `resource.path`, as people see and edit them.

The pack form, which templates are written in, says more: how a value is calculated, what is linked, which
records are wanted. Written from pairs, a mapping keeps all of that for the pairs it had; a new pair is a
copy, or what its two types need. `write_pairs(pairs_of(mappings), [mappings], …)` gives the mappings again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.diagnostics import did_you_mean, listed, nearest
from engine.drift import KnownField
from engine.errors import ExpressionError
from engine.expressions import Path
from engine.fields import Field, declared_field
from engine.healing import HealPlan, plan_heal
from engine.lint import made_up
from engine.manifest import Connector, Entity, Platform, Resource, unsent_fields
from engine.mapping import COPY, compile_mapping
from engine.mapping import Mapping as Compiled

Written = Mapping[str, Any]  # one mapping as a template writes it
Pairs = Mapping[str, Sequence[str]]  # `entity.field` → the `resource.path`s it goes to or comes from

# Which types take a value of a type as it is; every type takes and gives `any`.
_TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "id", "email", "phone", "url"),
    "id": ("text", "id"),
    "email": ("text", "id", "email"),
    "phone": ("text", "id", "phone"),
    "url": ("text", "id", "url"),
    "currency": ("text", "id", "currency"),
    "timestamp": ("text", "timestamp"),
    "date": ("text", "date"),
    "integer": ("integer", "decimal"),
    "decimal": ("decimal", "money"),
    "money": ("money", "decimal"),
    "boolean": ("boolean",),
    "list": ("list",),
    "object": ("object",),
}
_STRINGS = ("integer", "decimal", "money")  # sent to a text as their digits


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a mapping, with the pair that it belongs to."""

    entity: str
    field: str
    resource: str
    path: str
    written: str | Mapping[str, Any]

    @property
    def source(self) -> str:
        return f"{self.entity}.{self.field}"

    @property
    def target(self) -> str:
        return f"{self.resource}.{self.path}"

    @property
    def options(self) -> Mapping[str, Any]:
        return {"path": self.written} if isinstance(self.written, str) else self.written


@dataclass(frozen=True, slots=True)
class PairFault:
    """What is wrong with a pair; of something `missing`, the side that isn't there is empty.

    One that is `unlinked` refers to records that no other pair is of.
    """

    source: str
    target: str
    message: str
    kind: Literal["invalid", "missing", "unlinked"] = "invalid"


@dataclass(frozen=True, slots=True)
class GonePair:
    """A pair one of whose fields isn't known any more; `proposal` is the free one most like it.

    `plan` says what became of the field, with paths of its own side; None when its whole resource is gone.
    `because`: the manifest doesn't know it, records don't have it any more (`missed`), or the provider
    answered that it doesn't know it (`refused`).
    """

    source: str
    target: str
    gone: str
    proposal: str | None
    plan: HealPlan | None = None
    because: Literal["unknown", "missed", "refused"] = "unknown"

    @property
    def side(self) -> str:
        """The entity or the resource whose field is gone."""
        return self.gone.partition(".")[0]

    @property
    def successor(self) -> str | None:
        """The field that takes its place by itself, as pairs write it, or None."""
        found = self.plan.successor if self.plan else None
        return f"{self.side}.{found}" if found else None


@dataclass(frozen=True, slots=True)
class KnownFields:
    """What pairs may name, which resources an entity goes with, and what those can't do without."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    resources: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]


def rules_of(mappings: Sequence[Written]) -> Iterator[Rule]:
    """Walk over all rules of mappings, in the order they are written."""
    for mapping in mappings:
        for name, written in mapping["fields"].items():
            for rule in written if isinstance(written, list) else [written]:
                path = rule if isinstance(rule, str) else rule["path"]
                yield Rule(mapping["entity"], name, mapping["resource"], path, rule)


def pairs_of(mappings: Sequence[Written]) -> dict[str, list[str]]:
    """Return mappings in the simple form."""
    pairs: dict[str, list[str]] = {}
    for rule in rules_of(mappings):
        targets = pairs.setdefault(rule.source, [])
        if rule.target not in targets:
            targets.append(rule.target)
    return pairs


def known_fields(connector: Connector, platform: Platform, templates: Sequence[Written]) -> KnownFields:
    """Return what pairs may name; `templates` are all mappings of the connector's templates."""
    sources = {
        f"{entity.name}.{name}": None
        for entity in platform.entities.values()
        for name in ("id", *entity.fields)
    }
    targets = {
        f"{resource.name}.{path}": None
        for resource in connector.resources.values()
        for path in (resource.id.text, *resource.fields)
    }
    resources: dict[str, dict[str, None]] = {}
    for mapping in templates:
        resources.setdefault(mapping["entity"], {})[mapping["resource"]] = None
    for rule in rules_of(templates):
        sources.setdefault(rule.source)
        targets.setdefault(rule.target)
    pushed = {mapping["resource"]: None for mapping in templates if mapping["direction"] != "pull"}
    required = [
        f"{name}.{field.path}"
        for name in pushed
        if name in connector.resources
        for field in unsent_fields(connector.resources[name], ())
    ]
    return KnownFields(
        tuple(sources),
        tuple(targets),
        {name: tuple(each) for name, each in resources.items()},
        tuple(required),
    )


def write_pairs(
    pairs: Pairs, known: Sequence[Sequence[Written]], connector: Connector, platform: Platform
) -> tuple[list[dict[str, Any]], list[PairFault]]:
    """Return the mappings that pairs mean, and what is wrong with them.

    A pair that one of the `known` sets of mappings has keeps its rule, of the first such set; so does a
    mapping its conditions, direction and place. An entity goes only with resources that it goes with there.
    """
    writer = _Writer(known, connector, platform)
    for source, targets in pairs.items():
        for target in dict.fromkeys(targets):
            writer.add(source, target)
    made = writer.mappings()
    return made, writer.faults or [*_missing(made, connector, platform), *_unlinked(made)]


def compile_pairs(
    mappings: Sequence[Written], connector: Connector, platform: Platform
) -> tuple[tuple[Compiled, ...], list[PairFault]]:
    """Compile mappings; returns those that could be, and what is wrong with the others."""
    made: list[Compiled] = []
    faults: list[PairFault] = []
    for mapping in mappings:
        entity = platform.entities.get(mapping["entity"])
        resource = connector.resources.get(mapping["resource"])
        if entity is None or resource is None:
            gone = mapping["entity"] if entity is None else mapping["resource"]
            pair = (mapping["entity"], mapping["resource"])
            faults.append(PairFault(*pair, f"`{gone}` isn't known any more"))
            continue
        compiled, found = compile_mapping(mapping, resource, entity)
        for fault in found:
            field = str(fault.at[1]) if fault.at[0] == "fields" else ""
            path = next((each.path for each in rules_of([mapping]) if each.field == field), "")
            faults.append(PairFault(f"{entity.name}.{field}", f"{resource.name}.{path}", fault.message))
        if compiled is not None:
            made.append(compiled)
    return tuple(made), faults


def without_pairs(mappings: Sequence[Written], left_out: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return mappings without the rules of some pairs (source, target); one without any rule is left out."""
    made = []
    for mapping in mappings:
        rules = [rule for rule in rules_of([mapping]) if (rule.source, rule.target) not in left_out]
        if rules:
            made.append(_mapping(mapping, rules))
    return made


def gone_pairs(
    mappings: Sequence[Written],
    connector: Connector,
    platform: Platform,
    observed: Mapping[str, Mapping[str, KnownField]] | None = None,
) -> list[GonePair]:
    """Return the pairs one of whose fields isn't known any more, with what became of it.

    `observed` is what records of theirs had, by resource and path: a field that is gone from them counts as
    well, though the manifest knows it.
    """
    pairs = pairs_of(mappings)
    targets = {target for each in pairs.values() for target in each}
    found: dict[tuple[str, str], GonePair] = {}
    for rule in rules_of(mappings):
        entity, resource = platform.entities.get(rule.entity), connector.resources.get(rule.resource)
        key = (rule.source, rule.target)
        if entity is None or resource is None:
            gone = rule.source if entity is None else rule.target
            found[key] = GonePair(*key, gone, None)
            continue
        seen = (observed or {}).get(rule.resource, {})
        was = seen.get(rule.path)
        known = _is_known(rule, resource)
        if rule.field != "id" and rule.field not in entity.fields and not made_up(rule.options):
            free = [each for name, each in entity.fields.items() if f"{rule.entity}.{name}" not in pairs]
            plan = plan_heal(rule.field, free, resource=rule.entity)
            found[key] = GonePair(*key, rule.source, _proposal(plan, rule.entity, free), plan)
        elif not known or (was is not None and was.gone and rule.path != resource.id.text):
            free = [
                each
                for path, each in resource.fields.items()
                if f"{rule.resource}.{path}" not in targets and path != rule.path
            ]
            plan = plan_heal(
                rule.path,
                _there(free, resource, seen, was, targets) if known and was is not None else free,
                old_type=was.type if was else None,
                renamed=resource.renamed,
                resource=rule.resource,
            )
            because: Literal["unknown", "missed", "refused"] = (
                "unknown" if not known or was is None else "refused" if was.refused else "missed"
            )
            likely = _proposal(plan, rule.resource, free if not known else ())
            found[key] = GonePair(*key, rule.target, likely, plan, because)
    return _shared_out(list(found.values()))


def _shared_out(found: Sequence[GonePair]) -> list[GonePair]:
    """Let no field take the place of two others by itself."""
    claims: dict[str | None, set[str]] = {}
    for each in found:
        claims.setdefault(each.successor, set()).add(each.gone)
    return [
        replace(each, plan=_doubted(each.plan)) if each.plan and len(claims[each.successor]) > 1 else each
        for each in found
    ]


def _doubted(plan: HealPlan) -> HealPlan:
    if not plan.applies:
        return plan
    first, *others = plan.proposals
    doubts = (*first.doubts, "it would take the place of another field that is gone, too")
    return replace(plan, status="proposed", proposals=(replace(first, applies=False, doubts=doubts), *others))


def _there(
    free: Sequence[Field],
    resource: Resource,
    seen: Mapping[str, KnownField],
    was: KnownField,
    targets: Collection[str],
) -> list[dict[str, Any]]:
    """Return what may have taken the place of a field that the manifest still has: other fields of its own,
    and new ones that records have. What it doesn't know, nobody can map by itself.
    """

    def new(path: str) -> bool | None:
        known = seen.get(path)
        return None if known is None or not was.removed else known.records <= was.missed

    there = [
        {"path": each.path, "type": each.type, "new": new(each.path), "protected": each.unit is not None}
        for each in free
        if each.path not in seen or not seen[each.path].gone
    ]
    unknown = (
        {"path": path, "type": known.type, "new": True, "protected": True}
        for path, known in seen.items()
        if not known.gone and path not in resource.fields and new(path)
    )
    return [*there, *(each for each in unknown if f"{resource.name}.{each['path']}" not in targets)]


def _proposal(plan: HealPlan, side: str, free: Sequence[Field]) -> str | None:
    """Return the likeliest field as pairs write it; what nothing is like may be a slip of the pen."""
    likely = plan.proposals[0].path if plan.proposals else nearest(plan.field, [each.path for each in free])
    return f"{side}.{likely}" if likely else None


def moved(mappings: Sequence[Written], gone: GonePair, to: str) -> list[dict[str, Any]]:
    """Return mappings whose rules of a pair name `to`, as pairs write it, for the field that is gone."""
    _, _, path = to.partition(".")
    made = []
    for mapping in mappings:
        rules: list[Rule] = []
        head = dict(mapping)
        for rule in rules_of([mapping]):
            if (rule.source, rule.target) != (gone.source, gone.target):
                rules.append(rule)
            elif gone.gone == gone.target:
                written = path if isinstance(rule.written, str) else {**rule.written, "path": path}
                rules.append(replace(rule, path=path, written=written))
            else:
                head |= {"match_on": path} if mapping.get("match_on") == rule.field else {}
                rules.append(replace(rule, field=path))
        made.append(_mapping(head, rules))
    return made


# ---- writing -----------------------------------------------------------------------------------------


class _Writer:
    """Gathers pairs into mappings, and what is wrong with them."""

    def __init__(self, known: Sequence[Sequence[Written]], connector: Connector, platform: Platform) -> None:
        self.connector, self.platform = connector, platform
        self.heads: dict[tuple[str, str], Written] = {}
        self.rules: dict[tuple[str, str], list[Rule]] = {}  # by pair
        for mappings in known:
            fresh: dict[tuple[str, str], list[Rule]] = {}
            for mapping in mappings:
                self.heads.setdefault((mapping["entity"], mapping["resource"]), mapping)
            for rule in rules_of(mappings):
                fresh.setdefault((rule.source, rule.target), []).append(rule)
            self.rules = {**fresh, **self.rules}
        self.taken: dict[tuple[str, str], list[Rule]] = {}  # by entity and resource
        self.faults: list[PairFault] = []

    def add(self, source: str, target: str) -> None:
        made = self.rules.get((source, target)) or self.new(source, target)
        if isinstance(made, str):
            self.faults.append(PairFault(source, target, made))
            return
        self.taken.setdefault((made[0].entity, made[0].resource), []).extend(made)

    def new(self, source: str, target: str) -> list[Rule] | str:
        """Return the rule of a pair nobody had yet, or what is wrong with the pair."""
        (entity_name, _, name), (resource_name, _, path) = source.partition("."), target.partition(".")
        entity = self.platform.entities.get(entity_name)
        if entity is None:
            return _unknown(f"there is no entity `{entity_name}`", entity_name, self.platform.entities)
        resource = self.connector.resources.get(resource_name)
        if resource is None:
            message = f"{self.connector.title} has no `{resource_name}`"
            return _unknown(message, resource_name, self.connector.resources)
        head = self.heads.get((entity_name, resource_name))
        if head is None:
            with_it = [there for ours, there in self.heads if ours == entity_name]
            goes = f"it goes with {listed(with_it)}" if with_it else "it goes with nothing here"
            return f"`{entity_name}` can't be mapped to `{resource_name}`: {goes}"
        ours = _key("id") if name == "id" else entity.fields.get(name)
        if ours is None:
            return _unknown(f"`{entity_name}` has no field `{name}`", name, entity.fields)
        theirs = declared_field(resource.fields, path) or (_key(path) if path == resource.id.text else None)
        if theirs is None or not _is_path(path):
            return _unknown(f"`{resource_name}` has no field `{path}`", path, resource.fields)
        direction = head["direction"]
        rule = _new_rule(ours, theirs, path, direction, self.platform)
        if rule is None:
            return (
                f"`{source}` ({_described(ours)}) and `{target}` ({_described(theirs)}) don't go together "
                f"in a mapping with direction {direction}{self.others(ours, resource, path, direction)}"
            )
        long = _too_long(ours, theirs, rule) if direction != "pull" else None
        if long:
            return f"`{source}` may have {long} characters, and `{target}` takes at most {theirs.at_most}"
        return [Rule(entity_name, name, resource_name, path, rule)]

    def others(self, ours: Field, resource: Resource, path: str, direction: str) -> str:
        """Return the part of a sentence that names what a field of ours does go with, the nearest first."""
        fit = [
            each.path
            for each in resource.fields.values()
            if each.path != path and _new_rule(ours, each, each.path, direction, self.platform) is not None
        ]
        if not fit:
            return ""
        first = [best for word in (ours.path, path) if (best := nearest(word, fit)) is not None]
        return f"; it goes with {listed((f'`{each}`' for each in dict.fromkeys([*first, *fit])), 3)}"

    def mappings(self) -> list[dict[str, Any]]:
        return [_mapping(head, self.arranged(head)) for key, head in self.heads.items() if key in self.taken]

    def arranged(self, head: Written) -> list[Rule]:
        """Return the rules taken for a mapping: as it had them, then the others as they were given."""
        taken = self.taken[head["entity"], head["resource"]]
        own = [rule for rule in rules_of([head]) if rule in taken]
        return [*own, *(rule for rule in taken if rule not in own)]


def _mapping(head: Written, rules: Sequence[Rule]) -> dict[str, Any]:
    """Write a mapping anew with these rules; a field's rules come together, where its first one is."""
    fields: dict[str, list[Any]] = {}
    for rule in rules:
        fields.setdefault(rule.field, []).append(rule.written)
    as_it_was = head["fields"]
    return {
        **head,
        "fields": {
            name: each if len(each) > 1 or as_it_was.get(name) == each else each[0]
            for name, each in fields.items()
        },
    }


def _new_rule(
    ours: Field, theirs: Field, path: str, direction: str, platform: Platform
) -> str | dict[str, str] | None:
    """Return the rule that brings a value over, as far as types and direction let it; None: no way at all."""
    push = _conversion(ours, theirs, platform) if direction != "pull" and not theirs.read_only else None
    pull = _conversion(theirs, ours, platform) if direction != "push" and not ours.read_only else None
    if (
        (push, pull) == (COPY, COPY)
        or (direction == "push" and push == COPY)
        or (direction, pull) == ("pull", COPY)
    ):
        return path
    ways = {"push": push, "pull": pull}
    given = {way: text for way, text in ways.items() if text is not None}
    return {"path": path, **given} if given else None


def _conversion(given: Field, taker: Field, platform: Platform) -> str | None:
    """Return the expression that makes one field's value the other's, or None when there is none."""
    if taker.one_of and not (given.one_of and set(given.one_of) <= set(taker.one_of)):
        return None
    if "any" in (given.type, taker.type) or taker.type in _TAKEN_BY.get(given.type, ()):
        return COPY
    if given.type == "money" and taker.type == "integer" and given.unit is not None:
        venue = platform.entities.get("venue")
        known = [f"record.{given.currency}"] if given.currency else []
        known += ["venue.currency"] if venue is not None and "currency" in venue.fields else []
        if known:
            currency = known[0] + "".join(f" | default({each})" for each in known[1:])
            return f"{{{{ value | minor_units({currency}) if value is not none else none }}}}"
    if given.type in _STRINGS and taker.type == "text":
        return "{{ value | string }}"
    return None


def _too_long(ours: Field, theirs: Field, rule: str | Mapping[str, str]) -> int | None:
    """Return how many characters ours may have, when theirs refuses so many."""
    copies = isinstance(rule, str) or rule.get("push") == COPY
    if not copies or theirs.at_most is None or theirs.too_long == "cut":
        return None
    longest = max((len(each) for each in ours.one_of), default=ours.at_most or 0)
    return longest if longest > theirs.at_most else None


def _missing(mappings: Sequence[Written], connector: Connector, platform: Platform) -> Iterator[PairFault]:
    """Yield what mappings can't do without and don't have."""
    for mapping in mappings:
        rules = list(rules_of([mapping]))
        entity: Entity = platform.entities[mapping["entity"]]
        resource: Resource = connector.resources[mapping["resource"]]
        if mapping["direction"] != "pull":
            sent = {path for rule in rules if goes(rule, "push") for path in paths_of(rule)}
            for field in unsent_fields(resource, sent):
                target = f"{resource.name}.{field.path}"
                message = (
                    f"{connector.title} needs `{target}`, and no field of `{entity.name}` is mapped to it"
                )
                yield PairFault("", target, message, "missing")
        if mapping["direction"] != "push":
            kept = {rule.field for rule in rules if goes(rule, "pull")}
            for name, field in entity.fields.items():
                if field.required and not field.read_only and name not in kept:
                    source = f"{entity.name}.{name}"
                    message = (
                        f"the platform needs `{source}`, and no field of `{resource.name}` is mapped to it"
                    )
                    yield PairFault(source, "", message, "missing")
        match_on = mapping.get("match_on")
        if match_on is not None and all(rule.field != match_on for rule in rules):
            source = f"{entity.name}.{match_on}"
            message = f"`{source}` pairs records with those of `{resource.name}`, so it has to be mapped"
            yield PairFault(source, "", message, "missing")


def _unlinked(mappings: Sequence[Written]) -> Iterator[PairFault]:
    """Yield references to records that no mapping links."""
    linked = {mapping["resource"] for mapping in mappings}
    linked |= {rule.options["each_is"] for rule in rules_of(mappings) if "each_is" in rule.options}
    for rule in rules_of(mappings):
        link = rule.options.get("link")
        if link is not None and link not in linked and not rule.options.get("optional"):
            message = f"`{rule.source}` refers to a `{link}` of theirs, and nothing is mapped to `{link}`"
            yield PairFault(rule.source, rule.target, message, "unlinked")


def goes(rule: Rule, way: str) -> bool:
    """Say whether a rule takes a value over in a direction, as far as its mapping's own direction lets it."""
    one_way = "push" in rule.options or "pull" in rule.options or "each" in rule.options
    return way in rule.options or not one_way or (way == "push" and "each" in rule.options)


def paths_of(rule: Rule) -> Iterator[str]:
    """Yield the paths a rule is about: its own, and those of the items of its lists, written with `[0]`."""
    yield rule.path
    yield from _paths_of_items(rule.path, rule.options)


def _paths_of_items(path: str, options: Mapping[str, Any]) -> Iterator[str]:
    for written in options.get("each", {}).values():
        item = {"path": written} if isinstance(written, str) else written
        within = f"{path}[0].{item['path']}"
        yield within
        yield from _paths_of_items(within, item)


def _is_known(rule: Rule, resource: Resource) -> bool:
    """Say whether a rule's path is a field, or a list whose items have some."""
    items = f"{rule.path}[0]."
    return (
        rule.path == resource.id.text
        or declared_field(resource.fields, rule.path) is not None
        or ("each" in rule.options and any(path.startswith(items) for path in resource.fields))
    )


def _key(path: str) -> Field:
    return Field(path, "id", read_only=True)


def _described(field: Field) -> str:
    kind = f"one of {listed(field.one_of)}" if field.one_of else field.type
    return f"{kind}, read-only" if field.read_only else kind


def _unknown(message: str, word: str, known: Collection[str]) -> str:
    advice = did_you_mean(word, known) or (f"there are {listed(known)}",)
    return f"{message}; {advice[0]}"


def _is_path(text: str) -> bool:
    try:
        return not isinstance(Path.parse(text).steps[0], int)
    except ExpressionError:
        return False
