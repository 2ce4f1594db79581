"""The bodies of writes: what a new record carries, what an update sends, what is there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from decimal import Decimal
from functools import lru_cache
from typing import Any

from engine.errors import ExpressionError, MappingError
from engine.expressions import ABSENT, Path, Steps, Template
from engine.fields import Field, FieldCatalog
from engine.filters import cut_text
from engine.manifest import ListPart, Resource

Body = dict[str, Any]


class TooLongError(MappingError):
    """A text is longer than its field at the provider takes."""

    code = "VALIDATION_ERROR"


def limited_fields(fields: FieldCatalog) -> list[tuple[Path, Field]]:
    """Return the fields whose texts may not be longer than so many characters."""
    return [(path_of(text), each) for text, each in fields.items() if each.at_most and not each.read_only]


def fitted(body: Body, limited: Sequence[tuple[Path, Field]]) -> tuple[Body, Sequence[str]]:
    """Return a body whose texts are as long as their fields take, and the fields that were cut for it.

    Raises TooLongError for a text that may not be cut.
    """
    cut: list[str] = []
    for path, field in limited:
        value = path.find(body)
        if field.at_most is None or not isinstance(value, str) or len(value) <= field.at_most:
            continue
        if field.too_long == "reject":
            message = f"`{field.path}` takes at most {field.at_most} characters, and has {len(value)}"
            raise TooLongError(message, field.path)
        if not cut:
            body = deepcopy(body)  # a part of it may be the platform's own record
        path.put(body, cut_text(value, field.at_most))
        cut.append(field.path)
    return body, cut


def new_body(
    resource: Resource, body: Mapping[str, Any], new: Mapping[str, Template], scope: Mapping[str, Any]
) -> Body:
    """Return the body of a new record: `new` values where the mapping gives none, and nothing that is empty.

    There is nothing to clear yet, and a form would say so of an empty list or object.
    """
    made: Body = _without_empties(body)
    _fill(made, new, scope)
    for part in resource.lists.values():
        items = part.path.find(made)
        for number, item in enumerate(items if isinstance(items, list) else ()):
            _fill(item, part.new, {**scope, "number": str(number)})
    return made


def _fill(body: Body, new: Mapping[str, Template], scope: Mapping[str, Any]) -> None:
    for text, template in new.items():
        path = path_of(text)
        if path.find(body) is ABSENT:
            path.put(body, template.render(scope))


def without_nulls(value: Any) -> Any:
    """Return a copy without keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _without_empties(value: Any) -> Any:
    """Return a copy without keys whose value is null, or a list or an object with nothing in it."""
    if isinstance(value, Mapping):
        kept = {name: _without_empties(each) for name, each in value.items() if each is not None}
        return {name: each for name, each in kept.items() if each not in ({}, [])}
    if isinstance(value, list):
        return [_without_empties(each) for each in value]
    return value


def without(body: Mapping[str, Any], paths: Iterable[Steps]) -> Body:
    """Return a copy without these paths; objects that held nothing else go too."""
    unwanted = set(paths)
    return _without(body, (), unwanted) or {} if unwanted else dict(body)


def _without(value: Any, at: Steps, unwanted: set[Steps]) -> Any:
    if isinstance(value, Mapping):
        made = {
            name: kept
            for name, each in value.items()
            if (*at, name) not in unwanted and (kept := _without(each, (*at, name), unwanted)) is not ABSENT
        }
        return made if made or not value else ABSENT
    if isinstance(value, list):
        items = [_without(each, (*at, index), unwanted) for index, each in enumerate(value)]
        return [{} if each is ABSENT else each for each in items]
    return value


def renamed(body: Mapping[str, Any], renames: Iterable[tuple[Path, Path]]) -> Body:
    """Return a copy with values at other paths, for a call that knows its fields by other names."""
    moved = [(new, value) for old, new in renames if (value := old.find(body)) is not ABSENT]
    made = without(body, [old.steps for old, _ in renames])
    for path, value in moved:
        path.put(made, value)
    return made


def own_id(resource: Resource, body: Mapping[str, Any]) -> str | None:
    """Return the id that a record of this content has, where that follows from the content."""
    found: Any = resource.id.find(body)
    if not found and resource.own_id is not None:
        try:
            found = resource.own_id.evaluate(body, {"record": body})
        except ExpressionError:  # what it is made of isn't there
            return None
    return str(found) if found else None


def merge(current: Any, change: Any) -> Any:
    """Lay a change over what is there: objects by name, lists of objects by position, the rest replaced."""
    if isinstance(current, Mapping) and isinstance(change, Mapping):
        return {**current, **{name: merge(current.get(name), each) for name, each in change.items()}}
    if (
        isinstance(current, list)
        and isinstance(change, list)
        and all(isinstance(each, Mapping) for each in change)
    ):
        laid = [merge(*pair) for pair in zip(current, change, strict=False)]
        return [*laid, *change[len(current) :], *current[len(change) :]]
    return change


def final_body(
    resource: Resource,
    body: Mapping[str, Any],
    current: Mapping[str, Any] | None,
    scope: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Return what to send in an update, given what is there (None: not read).

    `scope` is what the templates of a list's new items see.
    """
    if current is None or resource.updates == "versioned":
        return body
    final: Body
    if resource.updates == "whole":
        there = _sendable(resource, current)
        final = merge(there, body)
        for part in resource.lists.values():
            ours, theirs = part.path.find(body), part.path.find(there)
            if isinstance(ours, list):
                known = theirs if isinstance(theirs, list) else []
                part.path.put(final, list(_laid_over(part, known, ours, scope)))
        final = without_nulls(final)
        return final
    version = version_of(resource, current)
    if resource.version is None or version is None:
        return body
    final = merge({}, body)
    resource.version.put(final, version)
    return final


def _laid_over(
    part: ListPart, theirs: Sequence[Any], ours: Sequence[Any], scope: Mapping[str, Any]
) -> Iterator[Any]:
    """Yield their items in their order, ours laid over them, and then the new ones."""
    left = {str(part.pair_by.find(item)): item for item in ours}
    for item in theirs:
        name = part.pair_by.find(item)
        if name is ABSENT or name is None:
            yield item
        elif str(name) in left:
            yield merge(item, left.pop(str(name)))
    for number, item in enumerate(left.values(), len(theirs)):
        made: Body = without_nulls(item)
        _fill(made, part.new, {**scope, "number": str(number)})
        yield made


def _sendable(resource: Resource, record: Mapping[str, Any]) -> Body:
    """Return a record that was read as it may be sent back: without nulls and what the provider fills in."""
    unwanted = [path.steps for path in resource.leave_out]
    for part in resource.lists.values():
        items = part.path.find(record)
        places = range(len(items) if isinstance(items, list) else 0)
        unwanted += [(*part.path.steps, place, *path.steps) for place in places for path in part.leave_out]
    sent: Body = without_nulls(without(record, unwanted))
    return sent


def at_version(resource: Resource, body: Mapping[str, Any], version: Any) -> Mapping[str, Any]:
    """Return the body of an update that changes only what is sent, naming the version it changes if known."""
    if resource.version is None or resource.updates != "sparse" or version is None:
        return body
    named: Body = merge({}, body)
    resource.version.put(named, version)
    return named


def version_of(resource: Resource, record: Mapping[str, Any] | None) -> Any:
    """Return the provider's version of a record; None when there is none."""
    found = resource.version.find(record) if resource.version and record is not None else None
    return None if found is ABSENT else found


def holds(resource: Resource, current: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Say whether writing `body` over what is there would change nothing.

    Numbers are equal when they mean the same, whatever their digits; null is as good as not there. A list is
    the whole list, and where an update sends the whole record, what is left out of it is cleared.
    """
    if resource.updates == "whole":
        there = _sendable(resource, current)
        return covers(there, body) and covers(body, there)
    return covers(current, body)


def covers(there: Any, wanted: Any) -> bool:
    """Say whether what is there has all of what is wanted."""
    if wanted is None:
        return there is None
    if isinstance(wanted, Mapping):
        if there is not None and not isinstance(there, Mapping):
            return False
        inner = there or {}
        return all(covers(inner.get(name), each) for name, each in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(there, list) or len(wanted) != len(there):
            return False
        return all(map(covers, there, wanted))
    return bool(_number(wanted) == _number(there))


def _number(value: Any) -> Any:
    """Return a number that isn't whole as the decimal it is written as; other values as they are."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def differs(path: Path, body: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Say whether a body sets another value at a path than there is."""
    wanted, there = path.find(body), path.find(current)
    if wanted is ABSENT:
        return False
    return bool(_number(wanted) != _number(None if there is ABSENT else there))


@lru_cache(maxsize=4096)
def path_of(text: str) -> Path:
    return Path.parse(text)


def not_in_updates(resource: Resource) -> frozenset[Steps]:
    """Return the paths of fields that an update leaves out: those set once, and those with a call of their
    own.
    """
    return only_on_create(resource) | parts_of(resource)


def only_on_create(resource: Resource) -> frozenset[Steps]:
    return frozenset(path_of(text).steps for text, each in resource.fields.items() if each.on_create_only)


def parts_of(resource: Resource) -> frozenset[Steps]:
    """Return the paths of fields that no body holds: written by a call of their own, or never sent."""
    unsent = (text for text, each in resource.fields.items() if not each.sent)
    return frozenset(path_of(text).steps for text in (*resource.parts, *unsent))
