"""The questions `hub heal` is asked, as a file writes them, and its answers.

docs/how-to/ask-what-became-of-a-field.md describes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.healing import plan_heal, plan_heals, read_fields

# By what each thing may be called in a question.
_CALLED: Mapping[str, tuple[str, ...]] = {
    "old_path": ("old_path", "field", "path"),
    "candidates": ("candidates", "new_fields", "new", "after"),
    "before": ("before", "old_fields", "old"),
    "old_type": ("old_type",),
    "samples_before": ("samples_before", "records_before"),
    "samples_after": ("samples_after", "records_after"),
    "renamed": ("renamed",),
    "resource": ("resource",),
    "link_by": ("link_by",),
    "protected": ("protected",),
    "label": ("label", "description"),
    "only": ("only",),
}
_ECHOED = ("name", "id", "provider", "resource")
_ONE = frozenset(_CALLED) - {"only"}
_ALL = frozenset(_CALLED) - {"old_path", "old_type", "label"}
_TEXTS = ("old_path", "old_type", "resource", "link_by", "label")


def read_questions(given: Any) -> list[dict[str, Any]]:
    """Return the questions of a file: one, a list, or a list below `questions` or `cases`."""
    if isinstance(given, Mapping):
        given = next(
            (given[key] for key in ("questions", "cases") if isinstance(given.get(key), list)), [given]
        )
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise ValueError("a file of questions holds one question, a group of keys, or a list of them")
    return [dict(each) for each in given]


def answer(question: Mapping[str, Any], *, explain: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the plans a question asks for: what was asked (its `name`, if it has one), and the plan as JSON.

    A question with `old_path` asks for one field, another for all fields that are gone. Raises ValueError.
    """
    given = {
        key: question[name]
        for key, names in _CALLED.items()
        for name in reversed(names)
        if question.get(name) is not None
    }
    if isinstance(given.get("before"), str):  # `old: a_path`
        given.setdefault("old_path", given.pop("before"))
    for key in _TEXTS:
        if key in given and not isinstance(given[key], str):
            raise ValueError(f"`{key}` of a question is a text")
    if "candidates" not in given:
        raise ValueError("a question needs `candidates`, the fields there are now")
    if not isinstance(given["candidates"], Mapping | list):
        raise ValueError("`candidates` is a list, or a group of paths and types")
    echoed = {key: question[key] for key in _ECHOED if question.get(key)}
    try:
        if "old_path" in given:
            plan = plan_heal(**{key: value for key, value in given.items() if key in _ONE})
            yield echoed, plan.as_dict(explain=explain)
            return
        if "before" not in given:
            raise ValueError(
                "a question needs `old_path`, the field that is gone, or `before`, what there was"
            )
        read_fields(given["before"])
        named = {key: value for key, value in given.items() if key in _ALL}
        was, now = named.pop("before"), named.pop("candidates")
        for plan in plan_heals(was, now, **named):
            yield echoed, plan.as_dict(explain=explain)
    except (TypeError, AttributeError) as error:
        page = "docs/how-to/ask-what-became-of-a-field.md"
        raise ValueError(f"a question isn't in the form {page} describes") from error
