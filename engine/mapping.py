"""Turn a record of one side into the other's, by one mapping of a template.

A mapping is compiled once into two Python functions. Their source holds names from the template only as
literals, and every computed value is a call, so a plain copy costs what hand-written code would. What the
template doesn't mention is never sent. *Absent* stays absent, *null* stays null.

A field's rule is a path (copied both ways) or `{path, push, pull, link, optional}`; a field may have several.
`values` is a table of ours and theirs, used both ways; `default` and `pull_default` stand in for a value that
is null or absent, and `required` says that there must be one.
With `push` and no `pull` the rule only pushes, and the other way round; a `link` is then for that way alone.
Where its `only_when` (of a pull: `only_pull_when`) doesn't hold, it says nothing: its field stays absent.
With `each` the value is a list whose items are mapped one by one, by rules whose paths start in the item, and
which may have an `each` themselves; such a rule only pushes.
"""

from __future__ import annotations

import math
import threading
from collections import abc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

import orjson
from jinja2 import UndefinedError

from engine.braces import FAILURES, UNDEFINED, finished, is_of_missing
from engine.ceilings import MOST_RECORD_WORK, STEP, begin, check_depth, spend, spend_on
from engine.errors import ExpressionError, MappingError
from engine.expressions import ABSENT, Expression, Path, Steps, has_braces
from engine.fields import Field, FieldCatalog
from engine.filters import as_text
from engine.manifest import Entity, Resource, parse_share
from engine.ports import Record

ConflictRule = Literal["newest_wins", "platform_wins", "provider_wins", "manual"]
MappingDirection = Literal["push", "pull", "bidirectional"]
GoneRule = Literal["keep", "archive", "delete"]  # what becomes of theirs
UnlinkRule = Literal["keep", "unlink"]  # what becomes of the link

# What braces may name, in `push` and `pull`, and in the conditions of a mapping.
RULE_NAMES = ("value", "record", "venue", "links")
ITEM_NAMES = ("value", "item", "record", "venue")
CONDITION_NAMES = ("record", "venue")

# Fields of these types come from the platform as JSON values; numbers of others may be Decimal.
_JSON_TYPES = frozenset(("text", "boolean", "id", "email", "phone", "url", "currency", "timestamp", "date"))

_PLAIN = frozenset((str, int, bool, type(None)))  # of what braces make, that which needs no look at it

MOST_COMPILED = 512  # mappings kept; each takes some tens of kilobytes

COPY = "{{ value }}"  # how a rule says that it copies one way only

Compute = Callable[[Any, "MappingScope"], Any]  # record, scope → value or ABSENT
Translate = Callable[[abc.Mapping[str, Any], "MappingScope"], dict[str, Any]]


class UnlinkedError(MappingError):
    """A record refers to another one that isn't linked yet; by the next run it may be."""

    retryable = True


@dataclass(frozen=True, slots=True)
class MappingScope:
    """What a mapping sees besides the record.

    `links` maps (resource, local id) to a remote id on push, (resource, remote id) to a local id on pull; it
    needs to hold only what the mapping's `link_rules` ask for. `now` is RFC 3339; expressions don't see it,
    for a body that changes with time would be sent again and again. `whole` is the record that the item of a
    list belongs to, while that item is mapped.
    """

    venue: Record
    links: abc.Mapping[tuple[str, str], str] = field(default_factory=dict)
    now: str = ""
    whole: abc.Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LinkRule:
    """`local_field` holds a local id, `path` the remote id linked to it at `resource`."""

    local_field: str
    path: Path
    resource: str


@dataclass(frozen=True, slots=True)
class ListRule:
    """The items of the list at `path` are records of `resource` there: their ids are worth keeping."""

    path: Path
    resource: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a mapping that can't be compiled; `at` is its place below the mapping."""

    code: str
    at: Steps
    message: str
    position: int | None = None
    key: bool = False


@dataclass(frozen=True, slots=True)
class Mapping:
    """One entity paired with one resource.

    `match_on` is the local field that pairs records from before the first sync, `match_path` its remote path.
    `pulled_fields` are the local fields a pull may set, `pushed_paths` the remote paths a push may; a path
    within the items of a list is written with `[0]`. `conflict_rules` are those of fields with one of their
    own. `places` are the remote paths that a pulled field's rules read from or write to, `sources` our field
    by the remote path of each rule that pushes.

    `push(record, scope)` returns the remote body of a local record: plain JSON, nested, mapped fields only.
    `pull(remote, scope)` returns the local fields a remote record gives, by name. Both are the compiled
    functions themselves, for they run once a record. They raise MappingError naming the local field when a
    required one has no value, a link can't be resolved, an expression fails, or a value isn't JSON.
    """

    entity: str
    resource: str
    direction: MappingDirection
    match_on: str | None = None
    match_path: Path | None = None
    when_both_changed: ConflictRule = "platform_wins"
    conflict_rules: abc.Mapping[str, ConflictRule] = field(default_factory=dict, hash=False)
    when_ours_is_gone: GoneRule = "keep"
    when_no_longer_wanted: GoneRule = "keep"
    when_theirs_is_gone: UnlinkRule = "unlink"
    at_most_gone: float = 0.1  # of the links, in one run without approval
    few_gone: int = 5  # never too many; none where the share was written
    deleted: Expression | None = None  # the entity's: which of our records count as deleted
    only_when: Expression | None = None
    only_pull_when: Expression | None = None
    link_rules: tuple[LinkRule, ...] = ()
    list_rules: tuple[ListRule, ...] = ()
    pulled_fields: tuple[str, ...] = ()
    pushed_paths: tuple[str, ...] = ()
    sources: abc.Mapping[str, str] = field(default_factory=dict, hash=False)
    places: abc.Mapping[str, tuple[Path, ...]] = field(default_factory=dict, hash=False)
    push: Translate = field(default=lambda record, scope: {}, repr=False, compare=False)
    pull: Translate = field(default=lambda record, scope: {}, repr=False, compare=False)

    @property
    def linked_resources(self) -> frozenset[str]:
        """The resources whose records it links: its own, and what the items of its lists are records of."""
        return frozenset((self.resource, *(rule.resource for rule in self.list_rules)))

    @property
    def referred_resources(self) -> frozenset[str]:
        """The resources whose links it needs."""
        return frozenset(rule.resource for rule in self.link_rules)

    @property
    def pushes(self) -> bool:
        return self.direction != "pull"

    @property
    def pulls(self) -> bool:
        return self.direction != "push"

    @property
    def removes(self) -> bool:
        """Whether a push may put records of theirs out of use, or delete them."""
        return self.pushes and (self.when_ours_is_gone, self.when_no_longer_wanted) != ("keep", "keep")

    @property
    def returned_fields(self) -> tuple[str, ...]:
        """The fields that a pull may set from where a push writes to."""
        pushed = frozenset(self.pushed_paths)
        return tuple(
            name for name, places in self.places.items() if any(path.text in pushed for path in places)
        )

    @property
    def manual_fields(self) -> tuple[str, ...]:
        """The fields that a person decides about when both sides changed them."""
        return tuple(name for name in self.places if self.conflict_rule(name) == "manual")

    def conflict_rule(self, name: str) -> ConflictRule:
        """Return what decides when both sides changed a field; a mapping that only pulls takes theirs."""
        if self.direction == "pull":
            return "provider_wins"
        return self.conflict_rules.get(name, self.when_both_changed)

    def is_deleted(self, record: Record, scope: MappingScope) -> bool:
        """Say whether a local record counts as deleted: `deleted` of its entity holds."""
        return self.deleted is not None and _holds(self.deleted, "deleted", record, scope)

    def wants(self, record: Record, scope: MappingScope) -> bool:
        """Say whether a local record is to be pushed: `only_when` holds, or there is none."""
        return _holds(self.only_when, "only_when", record, scope)

    def wants_pull(self, remote: abc.Mapping[str, Any], scope: MappingScope) -> bool:
        """Say whether a remote record is to be pulled: `only_pull_when` holds, or there is none."""
        return _holds(self.only_pull_when, "only_pull_when", remote, scope)


def _holds(condition: Expression | None, name: str, record: Any, scope: MappingScope) -> bool:
    if condition is None:
        return True
    begin(MOST_RECORD_WORK)
    return _fits(condition, name, record, scope)


def _fits(condition: Expression, name: str, record: Any, scope: MappingScope) -> bool:
    """Say whether a condition holds, within the work that is left to its record."""
    try:
        return bool(condition.run(record, {"record": record, "venue": scope.venue}))
    except ExpressionError as error:
        raise MappingError(f"`{name}`: {error.message}") from error


# ---- reading the rules -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of one field, compiled; `at` is its place below the mapping."""

    field: str
    at: Steps
    path: Path
    pushes: bool
    pulls: bool
    push: Expression | None = None
    pull: Expression | None = None
    link: str | None = None
    optional: bool = False
    each: tuple[_Rule, ...] = ()  # how the items of a list are mapped
    each_is: str | None = None  # the resource they are records of
    only_when: Expression | None = None  # over our record: else nothing is pushed
    only_pull_when: Expression | None = None  # over theirs: else nothing is pulled
    values: abc.Mapping[str, Any] | None = None  # of ours, as text, and theirs
    unknown: str = "fail"  # what becomes of a value that isn't in `values`
    default: Any = ABSENT  # pushed for a missing value
    pull_default: Any = ABSENT
    required: bool = False
    when_both_changed: ConflictRule | None = None  # None: as the mapping has it

    @property
    def copies(self) -> bool:
        """Whether nothing happens to a value on its way but what its fields say."""
        return self.values is None and self.direct

    @property
    def direct(self) -> bool:
        """Whether what is made of a value is what is sent or kept."""
        return self.default is ABSENT and self.pull_default is ABSENT and not self.required


class _Reader:
    """Compiles the texts of one mapping, gathering what it must refuse."""

    def __init__(self, written: abc.Mapping[str, Any]) -> None:
        self.written = written
        self.faults: list[Fault] = []

    def attempt(self, make: Callable[[], Any], code: str, at: Steps) -> Any:
        try:
            return make()
        except ExpressionError as error:
            self.faults.append(Fault(code, at, error.message, error.position))
            return None

    def expression(self, text: Any, at: Steps, names: abc.Collection[str]) -> Expression | None:
        if not isinstance(text, str):
            return None
        code = "bad-template" if has_braces(text) else "bad-expression"
        made: Expression | None = self.attempt(lambda: Expression.compile(text, names=names), code, at)
        return made

    def rules(self) -> list[_Rule]:
        direction = self.written["direction"]
        made: list[_Rule] = []
        for name, written in self.written["fields"].items():
            several = isinstance(written, list)
            for index, each in enumerate(written if several else [written]):
                at: Steps = ("fields", name, index) if several else ("fields", name)
                rule = self.rule(name, each, at, direction)
                if rule is not None:
                    made.append(rule)
        return made

    def rule(self, name: str, written: Any, at: Steps, direction: str) -> _Rule | None:
        options: dict[str, Any] = {"path": written} if isinstance(written, str) else written
        path_at = at if isinstance(written, str) else (*at, "path")
        path = self.attempt(lambda: Path.parse(options["path"]), "bad-path", path_at)
        push, pull = (
            None if options.get(way) == COPY else self.expression(options.get(way), (*at, way), RULE_NAMES)
            for way in ("push", "pull")
        )
        one_way = "push" in options or "pull" in options
        rule_pushes = direction != "pull" and ("push" in options or "each" in options or not one_way)
        rule_pulls = direction != "push" and ("pull" in options or not one_way) and "each" not in options
        items = [
            self.item_rule(item, each, (*at, "each", item)) for item, each in options.get("each", {}).items()
        ]
        for key, goes in (("default", rule_pushes), ("pull_default", rule_pulls)):
            if key in options and not goes:
                message = f"`{key}` has no effect: this rule doesn't {'pull' if 'pull' in key else 'push'}"
                self.faults.append(Fault("no-effect", (*at, key), message, key=True))
        if path is None:
            return None
        if isinstance(path.steps[0], int):
            self.faults.append(Fault("bad-path", path_at, f"`{path.text}` must start with a name", 0))
            return None
        return _Rule(
            name,
            path_at,
            path,
            rule_pushes,
            rule_pulls,
            push,
            pull,
            options.get("link"),
            bool(options.get("optional")),
            tuple(each for each in items if each is not None),
            options.get("each_is"),
            self.expression(options.get("only_when"), (*at, "only_when"), CONDITION_NAMES),
            self.expression(options.get("only_pull_when"), (*at, "only_pull_when"), CONDITION_NAMES),
            self.table(options, at),
            options.get("unknown", "fail"),
            options.get("default", ABSENT),
            options.get("pull_default", ABSENT),
            bool(options.get("required")),
            options.get("when_both_changed"),
        )

    def table(self, options: abc.Mapping[str, Any], at: Steps) -> abc.Mapping[str, Any] | None:
        values = dict(options["values"]) if "values" in options else None
        for key in ("push", "pull", "link", "each"):
            if values is not None and key in options:
                message = f"`values` says all of what becomes of a value: it goes without `{key}`"
                self.faults.append(Fault("no-effect", (*at, "values"), message, key=True))
        if "unknown" in options and values is None:
            message = "`unknown` has no effect without `values`"
            self.faults.append(Fault("no-effect", (*at, "unknown"), message, key=True))
        return values

    def item_rule(self, name: str, written: Any, at: Steps) -> _Rule | None:
        options: dict[str, Any] = {"path": written} if isinstance(written, str) else written
        path_at = at if isinstance(written, str) else (*at, "path")
        path = self.attempt(lambda: Path.parse(options["path"]), "bad-path", path_at)
        push = self.expression(options.get("push"), (*at, "push"), ITEM_NAMES)
        items = [
            self.item_rule(item, each, (*at, "each", item)) for item, each in options.get("each", {}).items()
        ]
        values = self.table(options, at)
        if path is None:
            return None
        return _Rule(
            name,
            path_at,
            path,
            pushes=True,
            pulls=False,
            push=push,
            each=tuple(each for each in items if each is not None),
            values=values,
            unknown=options.get("unknown", "fail"),
            default=options.get("default", ABSENT),
            required=bool(options.get("required")),
        )


_Compiled = tuple[Mapping | None, tuple[Fault, ...]]
_compiled: dict[tuple[bytes, int, int], tuple[_Compiled, Resource, Entity]] = {}  # the one used last is last
_compiling = threading.Lock()


def compile_mapping(
    written: abc.Mapping[str, Any], resource: Resource, entity: Entity, *, keep: bool = True
) -> tuple[Mapping | None, tuple[Fault, ...]]:
    """Compile a mapping as a template writes it, its shape already checked.

    Returns the mapping, or None with everything that is wrong with it. The same again is not compiled again:
    the mappings of a venue are read anew by every operation. One that won't be needed again isn't to be kept.
    """
    if not keep:
        return _compile(written, resource, entity)
    try:
        text = orjson.dumps(written)
    except TypeError:  # what no file can say
        return _compile(written, resource, entity)
    key = (text, id(resource), id(entity))
    with _compiling:
        known = _compiled.pop(key, None)
        if known is not None:
            _compiled[key] = known  # now the one used last
            return known[0]
    made = _compile(written, resource, entity)
    with _compiling:
        # Both are kept with it, so that no other ever has their identity.
        _compiled[key] = (made, resource, entity)
        if len(_compiled) > MOST_COMPILED:
            del _compiled[next(iter(_compiled))]
    return made


def _compile(
    written: abc.Mapping[str, Any], resource: Resource, entity: Entity
) -> tuple[Mapping | None, tuple[Fault, ...]]:
    reader = _Reader(written)
    rules = reader.rules()
    only_when = reader.expression(written.get("only_when"), ("only_when",), CONDITION_NAMES)
    only_pull_when = reader.expression(written.get("only_pull_when"), ("only_pull_when",), CONDITION_NAMES)
    pushed = [rule for rule in rules if rule.pushes]
    pulled = [rule for rule in rules if rule.pulls]
    tree = _body_tree(pushed, reader.faults)
    _check_lists(pushed, reader.faults)
    for rule in pulled:
        if rule.field == "id":
            reader.faults.append(
                Fault("unwritable-field", rule.at, "a pull can't set `id`: give the rule a `push` of its own")
            )
    match_on = written.get("match_on")
    match_path = next((rule.path for rule in rules if rule.field == match_on), None)
    if match_on is not None and match_path is None and not reader.faults:
        reader.faults.append(
            Fault("unknown-field", ("match_on",), f"`{match_on}` isn't one of this mapping's fields")
        )
    for rule in pushed:
        if rule.each_is and rule.path.text not in resource.lists:
            message = f"`{resource.name}` has no `lists` that pairs the items of `{rule.path.text}`"
            reader.faults.append(Fault("no-effect", rule.at, message))
    conflict_rules = _conflict_rules(pulled, reader.faults)
    if reader.faults:
        return None, tuple(reader.faults)
    linked = {(rule.field, rule.link): rule for rule in rules if rule.link and (rule.pushes or rule.pulls)}
    link_rules = tuple(LinkRule(rule.field, rule.path, rule.link) for rule in linked.values() if rule.link)
    mapping = Mapping(
        entity=entity.name,
        resource=resource.name,
        direction=written["direction"],
        match_on=match_on,
        match_path=match_path,
        when_both_changed=written.get("when_both_changed", "platform_wins"),
        conflict_rules=conflict_rules,
        when_ours_is_gone=written.get("when_ours_is_gone", "keep"),
        when_no_longer_wanted=written.get("when_no_longer_wanted", "keep"),
        when_theirs_is_gone=written.get("when_theirs_is_gone", "unlink"),
        at_most_gone=parse_share(written.get("at_most_gone", "10 percent")),
        few_gone=0 if "at_most_gone" in written else 5,
        deleted=entity.deleted,
        only_when=only_when,
        only_pull_when=only_pull_when,
        link_rules=link_rules,
        list_rules=tuple(ListRule(rule.path, rule.each_is) for rule in pushed if rule.each_is),
        pulled_fields=tuple(dict.fromkeys(rule.field for rule in pulled)),
        pushed_paths=tuple(_pushed_paths(pushed)),
        sources={rule.path.text: rule.field for rule in pushed},
        places={
            name: tuple({each.path.text: each.path for each in rules if each.field == name}.values())
            for name in dict.fromkeys(rule.field for rule in pulled)
        },
        push=_push_function(tree, resource.fields, entity.fields, link_rules),
        pull=_pull_function(pulled, entity.fields, link_rules),
    )
    return mapping, ()


def _check_lists(rules: abc.Iterable[_Rule], faults: list[Fault]) -> None:
    for rule in rules:
        if rule.each:
            _body_tree(rule.each, faults)
            _check_lists(rule.each, faults)


def _conflict_rules(rules: abc.Iterable[_Rule], faults: list[Fault]) -> dict[str, ConflictRule]:
    """Return what decides for fields that say so themselves; two rules of one field must not differ."""
    made: dict[str, ConflictRule] = {}
    for rule in rules:
        if rule.when_both_changed is None:
            continue
        if made.setdefault(rule.field, rule.when_both_changed) != rule.when_both_changed:
            known = made[rule.field]
            message = f"another rule of `{rule.field}` says `when_both_changed: {known}`: say it once"
            faults.append(Fault("no-effect", (*_head_of(rule.at), "when_both_changed"), message))
    return made


def _head_of(at: Steps) -> Steps:
    """Return the place of a rule, given that of its path."""
    return at[:-1] if at[-1] == "path" else at


def _pushed_paths(rules: abc.Iterable[_Rule]) -> abc.Iterator[str]:
    for rule in rules:
        yield from (f"{rule.path.text}[0].{each}" for each in _pushed_paths(rule.each))
        if not rule.each:
            yield rule.path.text


# ---- pushing -----------------------------------------------------------------------------------------

_Tree = dict[str | int, "_Tree | _Rule"]


def _body_tree(rules: abc.Iterable[_Rule], faults: list[Fault]) -> _Tree:
    """Arrange rules as the body they make; a path under or over another one is a fault."""
    root: _Tree = {}
    for rule in rules:
        *way, last = rule.path.steps
        node: _Tree | _Rule = root
        for step in way:
            if isinstance(node, _Rule) or _mixes(node, step):
                break
            node = node.setdefault(step, {})
        else:
            if isinstance(node, dict) and last not in node and not _mixes(node, last):
                node[last] = rule
                continue
        message = f"`{rule.path.text}` is already written by another rule of this mapping"
        faults.append(Fault("written-twice", rule.at, message))
    return root


def _mixes(node: _Tree, step: str | int) -> bool:
    """Say whether a step would make one value an object and a list at once."""
    return any(isinstance(each, int) != isinstance(step, int) for each in node)


class _Source:
    """Python source of one function, and the objects it names."""

    def __init__(self, header: str) -> None:
        self.lines = [header]
        self.names: dict[str, Any] = {
            "ABSENT": ABSENT,
            "checked": _checked,
            "missing": _missing,
            "put": _put_item,
            "begin": begin,
            "UNDEFINED": UNDEFINED,
            "FAILURES": FAILURES,
            "PLAIN": _PLAIN,
        }
        self.count = 0

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def variable(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def keep(self, value: Any) -> str:
        """Return the name under which the source can use an object."""
        name = self.variable("c")
        self.names[name] = value
        return name

    def function(self) -> Translate:
        namespace = dict(self.names)
        exec(compile("\n".join(self.lines), "<mapping>", "exec"), namespace)  # noqa: S102 - names are literals
        made: Translate = namespace["mapped"]
        return made


def _push_function(
    tree: _Tree, remote: FieldCatalog, local: FieldCatalog, links: tuple[LinkRule, ...],
    *, within: bool = False,
) -> Translate:  # fmt: skip
    source = _Source("def mapped(record, scope):")
    source.add(1, "body = {}")
    if not within and _calculates(tree):
        source.add(1, f"begin({MOST_RECORD_WORK})")
    _write_children(source, tree, "body", remote, local, links, within=within)
    source.add(1, "return body")
    return source.function()


def _calculates(tree: _Tree) -> bool:
    return any(
        _calculates(each) if isinstance(each, dict) else bool(each.push or each.each or each.only_when)
        for each in tree.values()
    )


def _write_children(
    source: _Source, tree: _Tree, target: str, remote: FieldCatalog, local: FieldCatalog,
    links: tuple[LinkRule, ...], *, within: bool,
) -> None:  # fmt: skip
    for step, child in sorted(tree.items()) if any(isinstance(step, int) for step in tree) else tree.items():

        def store(value: str, step: str | int = step) -> str:
            return (
                f"put({target}, {step}, {value})"
                if isinstance(step, int)
                else f"{target}[{step!r}] = {value}"
            )

        if isinstance(child, dict):
            inner = source.variable("o")
            is_list = any(isinstance(each, int) for each in child)
            source.add(1, f"{inner} = {'[]' if is_list else '{}'}")
            _write_children(source, child, inner, remote, local, links, within=within)
            source.add(1, f"if {inner}: {store(inner)}")
            continue
        name = child.field
        declared = remote.get(child.path.text)
        required = declared is not None and declared.required
        clears = declared is None or declared.clears
        plain = child.link is None and not child.each and child.only_when is None and child.copies
        if child.push is None and plain:
            known = local.get(name)
            exact = known is not None and known.type in _JSON_TYPES
            check = source.keep(_check_of(declared)) if declared is not None else "checked"
            value = f"record[{name!r}]" if exact else f"{check}(record[{name!r}], {name!r})"
            if required:
                source.add(1, f"if record.get({name!r}) in (None, ''): raise missing({name!r})")
            there = f"{name!r} in record" if clears else f"record.get({name!r}) is not None"
            source.add(1, f"if {there}: {store(value)}")
        else:
            if child.push is not None and child.push.braces and plain:
                source.add(1, f"s = record.get({name!r}, UNDEFINED)")
                _write_braces(source, child, child.push, links, _check_of(declared), within=within)
            else:
                compute = _completed(child, _push_compute(child, links, remote), child.default)
                kept = source.keep(_conditional(compute, child.only_when, "only_when"))
                source.add(1, f"v = {kept}(record, scope)")
            if required:
                source.add(1, f"if v is ABSENT or v in (None, ''): raise missing({name!r})")
            source.add(1, f"if v is not ABSENT{'' if clears else ' and v is not None'}: {store('v')}")


def _push_compute(rule: _Rule, links: tuple[LinkRule, ...], remote: FieldCatalog) -> Compute:
    name = rule.field

    def source(record: Any) -> Any:
        return record.get(name, ABSENT)

    if rule.each:
        # The list stays as it is until its items are mapped: only then is it what is sent.
        made = _evaluate(rule, rule.push, source, links, _listed) if rule.push else None
        return _list_compute(rule, made or (lambda record, scope: source(record)), remote)
    if rule.link is not None:
        return _link_compute(rule, source, of_none=None)  # no longer a reference here: theirs is cleared
    check = _check_of(remote.get(rule.path.text))
    if rule.values is not None:
        return _table_compute(rule, source, rule.values, check, as_text)
    if rule.push is None:
        return lambda record, scope: value if (value := source(record)) is ABSENT else check(value, name)
    return _evaluate(rule, rule.push, source, links, check)


def _list_compute(rule: _Rule, items_of: Compute, remote: FieldCatalog) -> Compute:
    """Map the items of a list, each with the whole record in sight; faults name the item, from 0."""
    name, start = rule.field, f"{rule.path.text}[0]."
    declared = {text.removeprefix(start): each for text, each in remote.items() if text.startswith(start)}
    tree = _body_tree(rule.each, [])
    push = _push_function(tree, FieldCatalog(declared), FieldCatalog({}), (), within=True)
    cost = 2 * STEP * len(rule.each)

    def compute(record: Any, scope: MappingScope) -> Any:
        items = items_of(record, scope)
        if items is ABSENT or items is None:
            return items
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise MappingError(f"`{name}` isn't a list of objects", name)
        inner, made = replace(scope, whole=record if scope.whole is None else scope.whole), []
        for number, item in enumerate(items):
            try:
                spend(cost)
                made.append(push(item, inner))
            except UndefinedError as error:  # an expression made the item of what isn't there
                raise MappingError(f"`{name}[{number}]`: {error.message}", name) from error
            except ExpressionError as error:
                raise MappingError(f"`{name}`: {error.message}", name) from error
            except MappingError as error:
                raise MappingError(f"`{name}[{number}]`: {error.message}", name) from error
        return made

    return compute


# ---- pulling -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A place in a remote record: what is copied from it, and what lies below."""

    fields: list[str] = field(default_factory=list)
    below: dict[str | int, _Node] = field(default_factory=dict)


def _pull_function(rules: list[_Rule], local: FieldCatalog, links: tuple[LinkRule, ...]) -> Translate:
    source = _Source("def mapped(record, scope):")
    source.add(1, "values = {}")
    root = _Node()
    by_field: dict[str, list[_Rule]] = {}
    for rule in rules:
        by_field.setdefault(rule.field, []).append(rule)
    computed: list[tuple[str, Compute]] = []
    direct: list[tuple[_Rule, Expression]] = []
    for name, several in by_field.items():
        first = several[0]
        plain = len(several) == 1 and first.link is None and first.only_pull_when is None and first.copies
        if plain and first.pull is None:
            node = root
            for step in first.path.steps:
                node = node.below.setdefault(step, _Node())
            node.fields.append(name)
        elif plain and first.pull is not None and first.pull.braces:
            direct.append((first, first.pull))
        else:
            computes = [
                _conditional(
                    _completed(rule, _pull_compute(rule, links, local.get(name)), rule.pull_default),
                    rule.only_pull_when,
                    "only_pull_when",
                )
                for rule in several
            ]
            computed.append((name, _first_value(computes)))
    required = {name for name in by_field if name in local and local[name].required}
    if computed or direct:
        source.add(1, f"begin({MOST_RECORD_WORK})")
    _read_children(source, root, "record", 1, required)
    for rule, expression in direct:
        _write_finding(source, rule.path.steps)
        _write_braces(source, rule, expression, links, _listed, within=False)
        if rule.field in required:
            source.add(1, f"if v is None: raise missing({rule.field!r})")
        source.add(1, f"if v is not ABSENT: values[{rule.field!r}] = v")
    for name, compute in computed:
        source.add(1, f"v = {source.keep(compute)}(record, scope)")
        if name in required:
            source.add(1, f"if v is None: raise missing({name!r})")
        source.add(1, f"if v is not ABSENT: values[{name!r}] = v")
    source.add(1, "return values")
    return source.function()


def _read_children(source: _Source, node: _Node, holder: str, depth: int, required: set[str]) -> None:
    for step, child in node.below.items():
        there = f"{step!r} in {holder}" if isinstance(step, str) else f"len({holder}) > {step}"
        for name in child.fields:
            if name in required:
                source.add(depth, f"if {there} and {holder}[{step!r}] is None: raise missing({name!r})")
            source.add(depth, f"if {there}: values[{name!r}] = {holder}[{step!r}]")
        for kind in (str, int):
            below = _Node(below={key: each for key, each in child.below.items() if isinstance(key, kind)})
            if not below.below:
                continue
            inner = source.variable("o")
            source.add(
                depth,
                f"{inner} = {holder}.get({step!r})"
                if isinstance(step, str)
                else f"{inner} = {holder}[{step}] if {there} else None",
            )
            source.add(depth, f"if isinstance({inner}, {'dict' if kind is str else 'list'}):")
            _read_children(source, below, inner, depth + 1, required)


def _pull_compute(rule: _Rule, links: tuple[LinkRule, ...], declared: Field | None) -> Compute:
    find = rule.path.find
    if rule.values is not None:
        # Of several of ours that are one of theirs, the first.
        back = {_key(theirs): _typed(ours, declared) for ours, theirs in reversed(list(rule.values.items()))}
        return _table_compute(rule, find, back, _listed, _key)
    if rule.link is not None:
        return _link_compute(rule, find, of_none=ABSENT)
    if rule.pull is None:
        return lambda record, scope: find(record)
    return _evaluate(rule, rule.pull, find, links, _listed)


def _conditional(compute: Compute, condition: Expression | None, name: str) -> Compute:
    """Let a rule say nothing of records for which its condition doesn't hold."""
    if condition is None:
        return compute
    return lambda record, scope: compute(record, scope) if _fits(condition, name, record, scope) else ABSENT


def _first_value(computes: list[Compute]) -> Compute:
    """Of several rules for one field, take the first with a value; null only when none has one."""
    if len(computes) == 1:
        return computes[0]

    def compute(record: Any, scope: MappingScope) -> Any:
        found: Any = ABSENT
        for each in computes:
            value = each(record, scope)
            if value is not ABSENT and value is not None:
                return value
            if value is None:
                found = None
        return found

    return compute


# ---- both --------------------------------------------------------------------------------------------


def _evaluate(
    rule: _Rule,
    expression: Expression,
    source: Callable[[Any], Any],
    links: tuple[LinkRule, ...],
    finish: Callable[[Any, str], Any],
) -> Compute:
    name = rule.field
    needs_value = "value" in expression.names
    resources = {each.resource for each in links} if "links" in expression.names else set()

    def compute(record: Any, scope: MappingScope) -> Any:
        value = source(record)
        if value is ABSENT:
            value = UNDEFINED
        own = str(record.get("id"))
        linked = {each: scope.links.get((each, own)) for each in resources}
        names = {"value": value, "record": record, "venue": scope.venue, "links": linked}
        if scope.whole is not None:
            names |= {"item": record, "record": scope.whole}
        try:
            result = expression.run(record, names)
            if isinstance(result, list | dict):
                spend_on(result)
        except ExpressionError as error:
            if value is UNDEFINED and needs_value and is_of_missing(error):
                return ABSENT  # absent stays absent, unless the expression makes something of it
            raise MappingError(f"`{name}`: {error.message}", name) from error
        return finish(result, name)

    return compute


def _key(value: Any) -> Any:
    """Return what stands for a value in a table: true isn't 1, nor is the text that shows it."""
    return (bool, value) if isinstance(value, bool) else value


def _typed(text: str, declared: Field | None) -> Any:
    """Return one of our values, which a table writes as text, as its field holds it."""
    if declared is not None and declared.type == "boolean" and text in ("true", "false"):
        return text == "true"
    if declared is not None and declared.type == "integer" and text.removeprefix("-").isdecimal():
        return int(text)
    return text


def _table_compute(
    rule: _Rule, source: Callable[[Any], Any], table: abc.Mapping[Any, Any],
    check: Callable[[Any, str], Any], key_of: Callable[[Any], Any],
) -> Compute:  # fmt: skip
    name, unknown = rule.field, rule.unknown

    def compute(record: Any, scope: MappingScope) -> Any:
        value = source(record)
        if value is ABSENT or value is None:
            return value
        if isinstance(value, str | int | float):
            key = key_of(value)
            if key in table:
                return table[key]
        if unknown == "keep":
            return check(value, name)
        if unknown == "leave_out":
            return ABSENT
        raise MappingError(f"`{name}` has a value that its `values` don't name", name)

    return compute


def _completed(rule: _Rule, compute: Compute, default: Any) -> Compute:
    """Let a default stand in for a missing value, or refuse that there is none."""
    if rule.direct:
        return compute
    name, required = rule.field, rule.required
    default = deepcopy(default)  # what it is written in may change; so may the body it becomes a part of

    def complete(record: Any, scope: MappingScope) -> Any:
        value = compute(record, scope)
        if value is ABSENT or value is None:
            if default is not ABSENT:
                return deepcopy(default)
            if required:
                raise MappingError(f"`{name}` has no value, and this mapping requires one", name)
        return value

    return complete


def _write_finding(source: _Source, steps: Steps) -> None:
    """Write what finds a value in a remote record, as `s`."""
    holder, default = "record", "None"
    for number, step in enumerate(steps):
        if number == len(steps) - 1:
            default = "UNDEFINED"
        if isinstance(step, str):
            found = f"{holder}.get({step!r}, {default})"
            source.add(1, f"s = {found if number == 0 else f'{found} if isinstance(s, dict) else {default}'}")
        else:
            source.add(1, f"s = s[{step}] if isinstance(s, list) and len(s) > {step} else {default}")
        holder = "s"


def _write_braces(
    source: _Source, rule: _Rule, expression: Expression, links: tuple[LinkRule, ...],
    finish: Callable[[Any, str], Any], *, within: bool,
) -> None:  # fmt: skip
    """Write what evaluates an expression over the value `s`, as `v`; within the items of a list or not."""
    braces = expression.braces
    assert braces is not None
    name = rule.field
    needs_value = "value" in braces.names
    resources = {each.resource for each in links} if "links" in braces.names else set()

    def linked(record: Any, scope: MappingScope) -> dict[str, str | None]:
        return {each: scope.links.get((each, str(record.get("id")))) for each in resources}

    def failed(error: Exception, value: Any) -> Any:
        if value is UNDEFINED and needs_value and is_of_missing(error):
            return ABSENT  # absent stays absent, unless the expression makes something of it
        refused = braces.refusal(error)
        raise MappingError(f"`{name}`: {refused.message}", name) from (
            error if isinstance(error, ExpressionError) else None
        )

    def checked(result: Any, value: Any) -> Any:
        if result is ABSENT:
            return result
        try:
            finished(result)
        except FAILURES as error:
            return failed(error, value)
        return finish(result, name)

    values = {
        "value": "s",
        "record": "scope.whole" if within else "record",
        "item": "record",
        "venue": "scope.venue",
        "links": f"{source.keep(linked)}(record, scope)" if resources else "{}",
    }
    given = ", ".join(values[each] for each in braces.names)
    source.add(1, f"try: v = {source.keep(braces.direct)}({given})")
    source.add(1, f"except FAILURES as e: v = {source.keep(failed)}(e, s)")
    source.add(1, f"if type(v) not in PLAIN: v = {source.keep(checked)}(v, s)")


def _link_compute(rule: _Rule, source: Callable[[Any], Any], *, of_none: Any) -> Compute:
    name, resource, optional = rule.field, str(rule.link), rule.optional

    def compute(record: Any, scope: MappingScope) -> Any:
        value = source(record)
        if value is ABSENT or value is None:
            return of_none if value is None else ABSENT
        other = scope.links.get((resource, str(value)))
        if other is not None:
            return other
        if optional:
            return ABSENT
        raise UnlinkedError(f"`{name}` refers to a `{resource}` that isn't linked yet", name)

    return compute


def _missing(name: str) -> MappingError:
    return MappingError(f"`{name}` has no value, and the other side requires one", name)


def _checked(value: Any, name: str) -> Any:
    """Return a value as plain JSON; raises MappingError for what JSON can't hold exactly."""
    if isinstance(value, dict | list | tuple):
        try:
            check_depth(value)
        except ExpressionError as error:
            raise MappingError(f"`{name}`: {error.message}", name) from error
    return _plain(value, name)


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise MappingError(f"`{name}` isn't a finite number", name)
    if isinstance(value, dict):
        return {key: _plain(each, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, Decimal):
        raise MappingError(f"`{name}` is an exact number: send it by `minor_units` or `string`", name)
    raise MappingError(f"`{name}` isn't a value that can be sent", name)


def _check_of(declared: Field | None) -> Callable[[Any, str], Any]:
    """Return what looks at a value before it is sent: only a decimal field takes an exact number."""
    return _checked_decimal if declared is not None and declared.type == "decimal" else _checked


def _checked_decimal(value: Any, name: str) -> Any:
    """Return a value as JSON holds it; an exact number becomes a JSON number with all its digits."""
    return value if isinstance(value, Decimal) and value.is_finite() else _checked(value, name)


def _listed(value: Any, name: str) -> Any:
    """Return a pulled value with tuples, which braces can make, as lists."""
    return [_listed(each, name) for each in value] if isinstance(value, tuple) else value


def _put_item(items: list[Any], index: int, value: Any) -> None:
    items.extend({} for _ in range(index - len(items)))
    items.append(value)
