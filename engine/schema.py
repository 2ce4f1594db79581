"""Check the shape of a document against `schemas/`, reporting every violation in words.

The sentences come from here, the key names and phrases from the schemas: `x-expected` says what was wanted
("a duration such as `5 minutes`"), `x-name` what an object without a key of its own is called ("a rule").
A choice by `type` is written as `if`/`then`, so a failure is always about the branch the author chose.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.diagnostics import Diagnostic, did_you_mean, in_file_order, listed, nearest
from engine.documents import Document, Steps
from engine.shipped import shipped

Found = tuple[Diagnostic, Steps]

SCHEMAS = shipped("schemas")

TYPE_WORDS: Mapping[str, str] = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "object": "a group of keys",
    "array": "a list",
    "null": "nothing",
}
TRUTH: Mapping[str, str] = {
    **dict.fromkeys(("yes", "on", "y", "true", "enabled"), "true"),
    **dict.fromkeys(("no", "off", "n", "false", "disabled"), "false"),
}


@lru_cache
def load_schema(name: str) -> Mapping[str, Any]:
    """Return a schema by name: `connector`, `mapping-template`, `platform` or `price-list`."""
    schema: Mapping[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
    return schema


def validate(document: Document, schema_name: str) -> list[Diagnostic]:
    """Return every violation of a schema, in file order; an empty list when the shape is right."""
    return in_file_order(each for each, _ in violations(document, schema_name))


def violations(document: Document, schema_name: str) -> list[Found]:
    """Return every violation with the path of what is wrong: without those parts the shape is right."""
    if not isinstance(document.data, dict):
        message = f"the file must hold keys, not {shown(document.data)}"
        return [(document.diagnostic("wrong-type", message, ()), ())]
    found: list[Found] = []
    for violation in _check(schema_name, document.data):
        found.extend(_HANDLERS.get(violation.keyword, _wrong_form)(violation, document))
    return found


def shown(value: object) -> str:
    """Name a value as an author wrote it: text in backticks, cut when long."""
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    if value is None or value == "":
        return "nothing"
    text = json.dumps(value) if isinstance(value, bool | int | float) else str(value)
    kind = "the text " if isinstance(value, str) else ""
    return f"{kind}`{text if len(text) <= 60 else text[:57] + '…'}`"


def subject(path: Steps, schema: Mapping[str, Any] | None = None, value: object = None) -> str:
    """Name the thing at a path the way a sentence would: `list`, an item of `scopes`, the file."""
    if schema and "x-name" in schema:
        named = str(schema["x-name"])
    elif not path:
        named = "the file"
    elif isinstance(path[-1], str):
        named = f"`{path[-1]}`"
    else:
        above = next((step for step in reversed(path) if isinstance(step, str)), "the file")
        named = f"an item of `{above}`"
    chosen = value.get("type") if isinstance(value, dict) else None
    if schema and schema.get("x-by-type") and isinstance(chosen, str):
        named += f" of type `{chosen}`"
    return named


@dataclass(frozen=True, slots=True)
class _Violation:
    """One failed keyword: what it wanted, of which value, in which schema."""

    keyword: str
    wanted: Any
    schema: Mapping[str, Any]
    instance: Any
    path: Steps
    root: Mapping[str, Any]


def _check(name: str, data: Any) -> Iterator[_Violation]:
    """Ask the library; a value of the wrong type has that said of it and nothing else."""
    validator = _validator(name)
    errors = list(validator.iter_errors(data))
    mistyped = {
        (tuple(error.absolute_path), id(error.schema)) for error in errors if error.validator == "type"
    }
    for error in errors:
        path: Steps = tuple(error.absolute_path)
        keyword = str(error.validator)
        if keyword != "type" and (path, id(error.schema)) in mistyped:
            continue
        if "propertyNames" in error.absolute_schema_path:
            keyword, path = "propertyNames", (*path, str(error.instance))
        yield _Violation(keyword, error.validator_value, error.schema, error.instance, path, validator.schema)


@lru_cache
def _validator(name: str) -> Any:
    """Compile a schema once. It may refer to the connector's; from a registry nothing is fetched."""
    from jsonschema import Draft7Validator, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry, Resource

    def required(validator: Any, keys: list[str], value: Any, schema: Any) -> Iterator[ValidationError]:
        """One error for each missing key, which it names; the library's own names them in its message."""
        for key in keys if isinstance(value, dict) else ():
            if key not in value:
                yield ValidationError(key, validator_value=key)

    kind = extend(Draft7Validator, {"required": required})  # type: ignore[no-untyped-call]  # the stub's gap
    connector = Resource.from_contents(load_schema("connector"))
    return kind(load_schema(name), registry=Registry().with_resource("connector.schema.json", connector))


def _found(
    document: Document, code: str, message: str, path: Steps, *advice: str, key: bool = False
) -> Found:
    return document.diagnostic(code, message, path, *advice, key=key), path


def _unknown_keys(error: _Violation, document: Document) -> Iterator[Found]:
    schema: Mapping[str, Any] = error.schema
    allowed = list(schema.get("properties", ()))
    name = subject(error.path, schema, error.instance)
    for key in error.instance:
        if key in allowed:
            continue
        advice = did_you_mean(key, allowed)
        homes = [home for home in _homes(error.root).get(key, ()) if home != name]
        if not advice and homes:
            advice = (f"`{key}` is a key of {listed(homes, 4)}",)
        takes = f"{name} takes {listed(allowed)}" if allowed else f"{name} takes no keys"
        message = f"`{key}` is not a key of {name}"
        said, path = _found(document, "unknown-key", message, (*error.path, key), *advice, takes, key=True)
        # Misspelling a key that is needed leaves the whole object without it.
        lost = {each for each in schema.get("required", ()) if each not in error.instance}
        yield said, error.path if nearest(key, allowed) in lost else path


def _missing(error: _Violation, document: Document) -> Iterator[Found]:
    name = subject(error.path, error.schema, error.instance)
    known = error.schema.get("properties", {})
    told = error.schema.get("additionalProperties") is False or error.schema.get("x-part", False)
    if told and error.wanted in {nearest(key, known) for key in error.instance if key not in known}:
        return  # It is there, misspelt, and that is said of it.
    example = next(iter(known.get(error.wanted, {}).get("examples", ())), None)
    advice = (f"for example `{error.wanted}: {_inline(example)}`",) if example is not None else ()
    yield _found(document, "missing-key", f"{name} needs `{error.wanted}`", error.path, *advice, key=True)


def _wrong_type(error: _Violation, document: Document) -> Iterator[Found]:
    kinds = (error.wanted,) if isinstance(error.wanted, str) else error.wanted
    wanted = error.schema.get("x-expected") or " or ".join(TYPE_WORDS[kind] for kind in kinds)
    value = error.instance
    advice: tuple[str, ...] = ()
    written = document.written(error.path)
    if isinstance(value, bool | int | float) and "string" in kinds:
        fits = re.search(error.schema.get("pattern", ""), written)
        advice = (f'put it in quotes: "{written}"',) if fits else ()
    elif isinstance(value, str) and "boolean" in kinds and value.lower() in TRUTH:
        advice = (f"did you mean `{TRUTH[value.lower()]}`?",)
    elif isinstance(value, str) and {"integer", "number"} & set(kinds) and value.isdecimal():
        advice = ("leave the quotes out",) if written != value else ()
    elif "array" in kinds and not isinstance(value, dict) and value is not None:
        advice = (f"write it as a list: [{written}]",)
    # A number is shown as it was typed: 1.10, not 1.1.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    given = f"`{written}`" if number else shown(value)
    message = f"{subject(error.path)} must be {wanted}, not {given}"
    yield _found(document, "wrong-type", message, error.path, *advice)


def _unknown_value(error: _Violation, document: Document) -> Iterator[Found]:
    choices = [error.wanted] if error.keyword == "const" else error.wanted
    words = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
    advice = did_you_mean(error.instance, words) if isinstance(error.instance, str) else ()
    name = subject(error.path)
    message = f"{name} cannot be {shown(error.instance).removeprefix('the text ')}"
    yield _found(
        document, "unknown-value", message, error.path, *advice, f"{name} is one of {listed(words, 40)}"
    )


def _wrong_form(error: _Violation, document: Document) -> Iterator[Found]:
    wanted = error.schema.get("x-expected", "text" if error.keyword == "minLength" else "written another way")
    yield _found(
        document,
        "wrong-form",
        f"{subject(error.path)} must be {wanted}, not {shown(error.instance)}",
        error.path,
    )


def _name(error: _Violation, document: Document) -> Iterator[Found]:
    wanted = error.schema.get("x-expected", "written another way")
    yield _found(
        document, "wrong-form", f"the name `{error.instance}` must be {wanted}", error.path, key=True
    )


def _out_of_range(error: _Violation, document: Document) -> Iterator[Found]:
    bound = "at least" if error.keyword == "minimum" else "at most"
    message = f"{subject(error.path)} must be {bound} {error.wanted}, not {shown(error.instance)}"
    yield _found(document, "out-of-range", message, error.path)


def _too_few(error: _Violation, document: Document) -> Iterator[Found]:
    what = {"minItems": "item", "minProperties": "key"}[error.keyword]
    more = "" if error.wanted == 1 else "s"
    message = f"{subject(error.path)} needs at least {error.wanted} {what}{more}"
    yield _found(document, "too-few", message, error.path, key=True)


def _repeated(error: _Violation, document: Document) -> Iterator[Found]:
    for index, item in enumerate(error.instance):
        if item in error.instance[:index]:
            message = f"{shown(item)} is in {subject(error.path)} twice"
            yield _found(document, "repeated-item", message, (*error.path, index))


_HANDLERS: Mapping[str, Callable[[_Violation, Document], Iterator[Found]]] = {
    "additionalProperties": _unknown_keys,
    "required": _missing,
    "type": _wrong_type,
    "enum": _unknown_value,
    "const": _unknown_value,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "minItems": _too_few,
    "minProperties": _too_few,
    "uniqueItems": _repeated,
    "propertyNames": _name,
}


def _inline(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _homes(root: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """Every key of a schema, with the objects that take it: what to say of a key in the wrong place."""
    homes: dict[str, dict[str, None]] = {}
    seen: set[tuple[int, str]] = set()
    definitions = root.get("definitions") or load_schema("connector")["definitions"]

    def walk(schema: object, named: str, kind: str = "") -> None:
        if isinstance(schema, list):
            for each in schema:
                walk(each, named)
        if not isinstance(schema, dict) or (id(schema), named) in seen:
            return
        seen.add((id(schema), named))
        here = str(schema.get("x-name", named))
        if "x-by-type" in schema:
            here += f" of type `{kind}`"
        reference = schema.get("$ref")
        if isinstance(reference, str):
            walk(definitions[reference.rpartition("/")[2]], here)
            return
        for key, inner in schema.get("properties", {}).items():
            if schema.get("additionalProperties") is False:
                homes.setdefault(key, {})[here] = None
            walk(inner, f"`{key}`")
        chosen = schema.get("if", {}).get("properties", {}).get("type", {}).get("const", "")
        for word in ("allOf", "then", "else", "items", "additionalProperties"):
            walk(schema.get(word), here, chosen)

    walk(root, "the file")
    return {key: tuple(where) for key, where in homes.items()}
