"""Say of one record what a mapping makes of it, rule by rule: from which value, by which rule, of which file.

Each rule is worked by itself, by the same compiled functions that a sync runs, so one that fails is told in
its place and keeps no other from being shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.bodies import fitted, limited_fields
from engine.errors import ExpressionError, HubError
from engine.expressions import ABSENT, Expression, Path, has_braces
from engine.fields import declared_field
from engine.layering import Origin
from engine.lint import QUOTED
from engine.manifest import Entity, Resource, unsent_fields
from engine.mapping import COPY, ITEM_NAMES, RULE_NAMES, MappingScope, compile_mapping
from engine.mapping import Mapping as Compiled
from engine.pairs import Rule, goes, paths_of, rules_of
from engine.ports import Record

Way = Literal["push", "pull"]
Kind = Literal["copied", "query", "calculated", "constant", "values", "link", "list"]
# A value was made; by a default; there is none; the rule's condition doesn't hold; another rule of the field
# came first; it failed.
Outcome = Literal["made", "default", "absent", "not wanted", "passed over", "failed"]

_MEMBER = re.compile(r"(?<![\w.])(record|venue|item|links)((?:\.[A-Za-z_]\w*|\[\d+\])+)")
_WORD = re.compile(r"(?<![\w.@&])[A-Za-z_]\w*(?![\w(])")
_SPOKEN = re.compile(r"'(?:[^'\\]|\\.)*'|`[^`]*`")  # texts and literals of JMESPath
_LIST = "[]"


@dataclass(frozen=True, slots=True)
class Explained:
    """What one rule makes of a record. `source` and `target` are as pairs write them, in the way it goes.

    `rule` is the rule as it is written, `expression` the part of it that calculates. `reads` are the fields
    it looks at. `before` is the source's value and `after` the target's, ABSENT for none; of the items of a
    list they are lists, an item without a value having null. `why` is a sentence, empty when there is nothing
    to say. `items` are the rules of a list's items.
    """

    source: str
    target: str
    kind: Kind
    rule: Any
    expression: str | None
    reads: tuple[str, ...]
    before: Any
    outcome: Outcome
    after: Any
    why: str = ""
    origin: Origin | None = None
    items: tuple[Explained, ...] = ()

    @property
    def has_value(self) -> bool:
        return self.after is not ABSENT

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, in which null is a value and what is absent isn't there."""
        made: dict[str, Any] = {
            "source": self.source,
            "target": self.target,
            "kind": self.kind,
            "rule": self.rule,
            "expression": self.expression,
            "reads": list(self.reads),
            "outcome": self.outcome,
            "why": self.why,
        }
        made |= {} if self.before is ABSENT else {"before": self.before}
        made |= {} if self.after is ABSENT else {"after": self.after}
        if self.origin is not None:
            made |= {"layer": self.origin.layer, "file": self.origin.file, "line": self.origin.line}
        return made | ({"items": [each.to_json() for each in self.items]} if self.items else {})


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a mapping makes of a record.

    `mapped` is the whole of it, None when there is an `error`; `error_field` is the field that it is about.
    `condition` is what decides whether the record is `wanted` at all, and `condition_error` why it couldn't.
    `missing` are fields that a new record needs at the provider, and that no rule sends.
    """

    entity: str
    resource: str
    direction: Way
    wanted: bool
    condition: str | None
    rules: tuple[Explained, ...]
    mapped: dict[str, Any] | None
    error: str | None = None
    error_field: str | None = None
    condition_error: str | None = None
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "entity": self.entity,
            "resource": self.resource,
            "direction": self.direction,
            "wanted": self.wanted,
            "condition": self.condition,
            "condition_error": self.condition_error,
            "mapped": self.mapped,
            "error": self.error,
            "missing": list(self.missing),
            "rules": [each.to_json() for each in self.rules],
        }


def explain(
    written: Mapping[str, Any],
    resource: Resource,
    entity: Entity,
    record: Record,
    scope: MappingScope,
    direction: Way,
    origins: Callable[[str, int], Origin | None] = lambda field, number: None,
) -> Explanation:
    """Explain what a mapping, as a template writes it, makes of a record of the side it starts from.

    `origins` tells where the rules of a field were written, by the field's name and the rule's number among
    those of that field. Nothing is raised for a record or a rule that is wrong: that is what is told.
    """
    one = _One(written, resource, entity, record, scope, direction)
    rules: list[Explained] = []
    numbers: dict[str, int] = {}
    for rule in rules_of([written]):
        number = numbers.setdefault(rule.field, -1) + 1
        numbers[rule.field] = number
        if one.goes(rule):
            rules.append(replace(one.explained(rule), origin=origins(rule.field, number)))
    wanted, condition, problem = one.is_wanted()
    whole = one.whole()
    failed = whole if isinstance(whole, _Failed) else None
    sent = {path for rule in rules_of([written]) if one.goes(rule) for path in paths_of(rule)}
    lacking = unsent_fields(resource, sent) if direction == "push" else ()
    missing = tuple(f"{resource.name}.{field.path}" for field in lacking)
    return Explanation(
        entity=entity.name,
        resource=resource.name,
        direction=direction,
        wanted=wanted,
        condition=condition,
        rules=_first_of_each(rules, direction),
        mapped=None if isinstance(whole, _Failed) else whole,
        error=failed.why if failed else None,
        error_field=failed.field if failed else None,
        condition_error=problem,
        missing=missing,
    )


def made_up_links(mapping: Compiled, record: Record, direction: Way) -> dict[tuple[str, str], str]:
    """Return links for all that a record refers to, with ids that say what they stand for."""
    if direction == "push":
        links = {
            (rule.resource, str(record.get(rule.local_field))): f"<{rule.resource} id>"
            for rule in mapping.link_rules
        }
        own = str(record.get("id"))
        return links | {(name, own): f"<{name} id>" for name in mapping.referred_resources}
    return {
        (rule.resource, str(rule.path.find(record))): f"<id of our {rule.resource}>"
        for rule in mapping.link_rules
    }


def _first_of_each(rules: list[Explained], direction: Way) -> tuple[Explained, ...]:
    """Of several rules for one field, a pull takes the first that has a value; say so of the others."""
    if direction == "push":
        return tuple(rules)
    first: dict[str, int] = {}
    for number, rule in enumerate(rules):
        if not _is_nothing(rule.after):
            first.setdefault(rule.target, number)
    made = []
    for number, rule in enumerate(rules):
        taken = first.get(rule.target, number)
        if rule.outcome in ("made", "default") and number != taken:
            which = "before" if taken < number else "after"
            rule = replace(rule, outcome="passed over", why=f"a rule {which} it gives `{rule.target}`")
        made.append(rule)
    return tuple(made)


@dataclass(frozen=True, slots=True)
class _Failed:
    """What came of a rule that failed; `field` is ours."""

    why: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class _One:
    """One mapping and one record, in one direction."""

    written: Mapping[str, Any]
    resource: Resource
    entity: Entity
    record: Record
    scope: MappingScope
    direction: Way

    # ---- the whole record -------------------------------------------------------------------------------

    def is_wanted(self) -> tuple[bool, str | None, str | None]:
        """Return whether the record goes at all, the condition that says so, and what is wrong with that."""
        key = "only_when" if self.direction == "push" else "only_pull_when"
        condition = self.written.get(key)
        if condition is None:
            return True, None, None
        held = self.holds(key, condition)
        if isinstance(held, _Failed):
            return False, condition, held.why
        return held, condition, None

    def whole(self) -> dict[str, Any] | _Failed:
        compiled = self.compiled(self.written["fields"])
        return compiled if isinstance(compiled, _Failed) else self.translated(compiled)

    def goes(self, rule: Rule) -> bool:
        other = "pull" if self.direction == "push" else "push"
        return bool(self.written["direction"] != other) and goes(rule, self.direction)

    def holds(self, key: str, condition: str) -> bool | _Failed:
        head = {**self._head, key: condition, "fields": self._any_field}
        compiled, faults = compile_mapping(head, self.resource, self.entity, keep=False)
        if compiled is None:
            return _Failed(faults[0].message)
        try:
            wants = compiled.wants if key == "only_when" else compiled.wants_pull
            return wants(self.record, self.scope)
        except HubError as error:
            return _Failed(error.message)

    # ---- one rule ---------------------------------------------------------------------------------------

    def explained(self, rule: Rule) -> Explained:
        options = rule.options
        kind, expression = _kind(options, self.direction)
        push = self.direction == "push"
        told = Explained(
            source=rule.source if push else rule.target,
            target=rule.target if push else rule.source,
            kind=kind,
            rule=rule.written,
            expression=expression,
            reads=self.reads(rule, kind, expression),
            before=self.record.get(rule.field, ABSENT) if push else Path.parse(rule.path).find(self.record),
            outcome="absent",
            after=ABSENT,
        )
        key = "only_when" if push else "only_pull_when"
        if key in options:
            held = self.holds(key, options[key])
            if isinstance(held, _Failed):
                return replace(told, outcome="failed", why=held.why)
            if not held:
                return replace(told, outcome="not wanted", why=f"`{key}` doesn't hold: {options[key]}")
        after = self.worked(rule, options)
        if isinstance(after, _Failed):
            told = replace(told, outcome="failed", why=after.why)
        else:
            told = self.ended(told, rule, after)
        if kind == "list":
            told = replace(told, items=tuple(self.items(rule, options, (), told.source, told.target)))
        return told

    def ended(self, told: Explained, rule: Rule, after: Any) -> Explained:
        """Say what a rule came to that didn't fail."""
        options = rule.options
        default = "default" if self.direction == "push" else "pull_default"
        if default in options and not _is_nothing(after):
            bare = {key: each for key, each in options.items() if key not in (default, "required")}
            if _is_nothing(self.worked(rule, bare)):
                return replace(
                    told, outcome="default", after=after, why=f"there is none, so `{default}` is taken"
                )
        if after is ABSENT:
            return replace(told, why=self.why_absent(told, rule))
        cut = ""
        if self.direction == "push":
            after, cut = self.cut(rule, after)
            if cut == "refused":
                return replace(told, outcome="failed", why=str(after))
        return replace(told, outcome="made", after=after, why=cut or self.why_made(told, options, after))

    def cut(self, rule: Rule, after: Any) -> tuple[Any, str]:
        """Return what is sent of a text, and why it isn't all of it; `refused` when it is too long to be."""
        body: dict[str, Any] = {}
        path = Path.parse(rule.path)
        path.put(body, after)
        try:
            body, cut = fitted(body, limited_fields(self.resource.fields))
        except HubError as error:
            return error.message, "refused"
        return path.find(body), f"cut to the {len(path.find(body))} characters it may have" if cut else ""

    def why_absent(self, told: Explained, rule: Rule) -> str:
        options = rule.options
        if told.kind == "values" and not _is_nothing(told.before):
            return f"`values` don't name `{told.before}`, and `unknown` says leave_out"
        if told.kind == "link" and not _is_nothing(told.before):
            return f"the `{options['link']}` it refers to isn't linked yet, and `optional` leaves it out"
        if told.before is ABSENT and told.kind != "constant":
            return f"the record has no `{told.source.partition('.')[2]}`"
        declared = declared_field(self.resource.fields, rule.path)
        if self.direction == "push" and declared is not None and not declared.clears:
            return f"null isn't sent: `{rule.path}` can't be emptied"
        return "the rule makes nothing of it"

    def why_made(self, told: Explained, options: Mapping[str, Any], after: Any) -> str:
        if told.kind == "values" and after is not None and options.get("unknown") == "keep":
            known = told.before in _given(options["values"], self.direction)
            return "" if known else "`values` don't name it, and `unknown` says keep"
        if told.kind == "link" and after is not None:
            return f"the `{options['link']}` that is linked with it"
        return "sent as null: that empties it" if after is None and self.direction == "push" else ""

    def items(
        self, rule: Rule, options: Mapping[str, Any], way: tuple[str, ...], source: str, target: str
    ) -> Iterator[Explained]:
        """Explain the rules of the items of a list; `way` are the names of the lists around them."""
        within = _at(options, way)
        for name, written in within["each"].items():
            item = {"path": written} if isinstance(written, str) else written
            kind, expression = _kind(item, "push")
            here, there = f"{source}{_LIST}.{name}", f"{target}{_LIST}.{item['path']}"
            alone = _only(options, way, name)
            after = self.worked(rule, alone)
            paths = [Path.parse(_at(options, way[: depth + 1])["path"]) for depth in range(len(way))]
            told = Explained(
                here, there, kind, written, expression,
                self.reads(replace(rule, field=name), kind, expression, item=source),
                [_found(each, name) for each in self.listed(rule, options, way)],
                "absent", ABSENT,
            )  # fmt: skip
            if isinstance(after, _Failed):
                told = replace(told, outcome="failed", why=after.why)
            else:
                flat = _flat(after, paths)
                values = [Path.parse(item["path"]).find(each) for each in flat]
                if any(each is not ABSENT for each in values):
                    shown = [None if each is ABSENT else each for each in values]
                    told = replace(told, outcome="made", after=shown)
            if kind == "list":
                told = replace(told, items=tuple(self.items(rule, options, (*way, name), here, there)))
            yield told

    def listed(self, rule: Rule, options: Mapping[str, Any], way: tuple[str, ...]) -> list[Any]:
        """Return the items of ours that a rule of a list is about, as `push` makes them."""
        value: Any = self.record.get(rule.field, ABSENT)
        if "push" in options and options["push"] != COPY:
            value = self.calculated(options["push"], value)
        items = value if isinstance(value, list | tuple) else []
        for name in way:
            inner = [each.get(name) for each in items if isinstance(each, Mapping)]
            items = [each for some in inner if isinstance(some, list) for each in some]
        return list(items)

    def calculated(self, text: str, value: Any) -> Any:
        names: dict[str, Any] = {"record": self.record, "venue": self.scope.venue, "links": {}}
        names |= {} if value is ABSENT else {"value": value}
        try:
            return Expression.compile(text, names=RULE_NAMES).evaluate(self.record, names)
        except ExpressionError:
            return ABSENT

    # ---- working it -------------------------------------------------------------------------------------

    @property
    def _head(self) -> dict[str, Any]:
        """The mapping without what is about several rules."""
        return {key: self.written[key] for key in ("entity", "resource", "direction")}

    @property
    def _any_field(self) -> dict[str, Any]:
        return {"id": {"path": "id", "push": "{{ value }}"}}

    def worked(self, rule: Rule, options: Mapping[str, Any]) -> Any:
        """Return what a rule by itself makes of the record: a value, ABSENT, or what went wrong."""
        alone = {
            key: each
            for key, each in options.items()
            if key not in ("only_when", "only_pull_when", "when_both_changed")
        }
        # What a rule's braces see of `links` depends on the mapping's other rules: those that push nothing.
        linked = {each.options["link"]: None for each in rules_of([self.written]) if "link" in each.options}
        fields: dict[str, Any] = {rule.field: alone}
        if "links" in str(options.get(self.direction, "")):
            fields |= {
                f"explained {name}": {"path": f"explained_{name}", "link": name, "optional": True}
                for name in linked
            }
        compiled = self.compiled(fields)
        if isinstance(compiled, _Failed):
            return compiled
        made = self.translated(compiled)
        if isinstance(made, _Failed):
            return made
        return Path.parse(rule.path).find(made) if self.direction == "push" else made.get(rule.field, ABSENT)

    def compiled(self, fields: Mapping[str, Any]) -> Compiled | _Failed:
        made, faults = compile_mapping(
            {**self._head, "fields": fields}, self.resource, self.entity, keep=False
        )
        return _Failed(faults[0].message) if made is None else made

    def translated(self, compiled: Compiled) -> dict[str, Any] | _Failed:
        try:
            if self.direction == "push":
                return compiled.push(self.record, self.scope)
            return compiled.pull(self.record, self.scope)
        except HubError as error:
            return _Failed(error.message, getattr(error, "field", None))

    # ---- what is read -----------------------------------------------------------------------------------

    def reads(self, rule: Rule, kind: Kind, expression: str | None, item: str = "") -> tuple[str, ...]:
        """Return the fields that a rule looks at, as pairs write them; of the venue, `venue.currency`."""
        side = self.entity.name if self.direction == "push" else self.resource.name
        own = f"{item}{_LIST}.{rule.field}" if item else (
            rule.source if self.direction == "push" else rule.target
        )  # fmt: skip
        if kind in ("copied", "values", "link") or expression is None:
            return (own,)
        found: dict[str, None] = {}
        if not has_braces(expression):
            known = {*map(str, self.record), *self.entity.fields, *map(_head, self.resource.fields)}
            words = _WORD.findall(_SPOKEN.sub("", expression))
            return tuple(dict.fromkeys(f"{side}.{word}" for word in words if word in known))
        try:
            names = Expression.compile(expression, names={*RULE_NAMES, *ITEM_NAMES}).names
        except ExpressionError:
            return (own,)  # what is wrong with it is said elsewhere
        if "value" in names:
            found[own] = None
        for owner, rest in _MEMBER.findall(QUOTED.sub("", expression)):
            whose = {"record": side, "venue": "venue", "item": f"{item}{_LIST}", "links": "links"}[owner]
            found[f"{whose}{rest}"] = None
        return tuple(found)


def _kind(options: Mapping[str, Any], direction: Way) -> tuple[Kind, str | None]:
    """Return how a rule makes its value, and the expression it does it by."""
    expression = options.get(direction)
    if "each" in options:
        return "list", expression
    if "values" in options:
        return "values", None
    if "link" in options:
        return "link", None
    if expression is None or expression == COPY:
        return "copied", None
    if not has_braces(expression):
        return "query", expression
    try:
        names = Expression.compile(expression, names={*RULE_NAMES, *ITEM_NAMES}).names
    except ExpressionError:
        return "calculated", expression
    return ("calculated" if names else "constant"), expression


def _at(options: Mapping[str, Any], way: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the rule of a list within a list, by the names of the items' fields."""
    for name in way:
        options = options["each"][name]
    return options


def _only(options: Mapping[str, Any], way: tuple[str, ...], name: str) -> dict[str, Any]:
    """Return the rule of a list with one rule for its items, and none of the others."""
    if not way:
        return {**options, "each": {name: options["each"][name]}}
    return {**options, "each": {way[0]: _only(options["each"][way[0]], way[1:], name)}}


def _flat(items: Any, paths: list[Path]) -> list[Any]:
    """Return the items of a list, or of the lists within its items, by their paths."""
    found = items if isinstance(items, list) else []
    for path in paths:
        inner = [path.find(each) for each in found]
        found = [each for some in inner if isinstance(some, list) for each in some]
    return found


def _found(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else None


def _given(table: Mapping[str, Any], direction: Way) -> list[Any]:
    """Return the values that a table takes, as a record may have them."""
    if direction == "pull":
        return list(table.values())
    numbers = [int(each) for each in table if each.removeprefix("-").isdecimal()]
    return [*table, *(each == "true" for each in table if each in ("true", "false")), *numbers]


def _is_nothing(value: Any) -> bool:
    return value is ABSENT or value is None


def _head(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]
