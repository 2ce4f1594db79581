"""The schemas themselves, and that every violation the library finds is told, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.documents import read_document
from engine.errors import DocumentError
from engine.fields import FIELD_TYPES
from engine.manifest import Action
from engine.mapping import ConflictRule, MappingDirection
from engine.pagination import TYPES as PAGINATION_TYPES
from engine.schema import load_schema, validate

NAMES = ("connector", "mapping-template", "platform")
ROOT = Path(__file__).parents[3]
FAULTS = ROOT / "tests" / "snapshot" / "diagnostics"
KINDS = {"manifest": "connector", "template": "mapping-template", "platform": "platform"}
# Every keyword that has a sentence of its own, and what only describes.
KEYWORDS = {
    "$ref", "additionalProperties", "allOf", "const", "else", "enum", "if", "items", "maximum",
    "maxProperties", "minItems", "minLength", "minProperties", "minimum", "pattern", "properties",
    "propertyNames", "required", "then", "type", "uniqueItems",
}  # fmt: skip
NOTES = {
    "$schema", "default", "definitions", "description", "examples", "title", "x-by-type", "x-expected",
    "x-name", "x-part",
}  # fmt: skip


def schemas_in(schema: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk a schema and every schema within it."""
    if not isinstance(schema, dict):
        return
    yield at, schema
    for word in ("properties", "definitions"):
        for key, inner in schema.get(word, {}).items():
            yield from schemas_in(inner, f"{at}.{key}")
    for word in ("additionalProperties", "propertyNames", "items", "if", "then", "else"):
        yield from schemas_in(schema.get(word), f"{at}/{word}")
    for index, inner in enumerate(schema.get("allOf", ())):
        yield from schemas_in(inner, f"{at}/{index}")


def resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return a property with what its reference adds."""
    reference = schema.get("$ref")
    return {**root["definitions"][reference.rpartition("/")[2]], **schema} if reference else schema


@pytest.mark.parametrize("name", NAMES)
def test_the_schemas_are_draft_07_and_use_only_what_has_a_sentence(name: str) -> None:
    schema = dict(load_schema(name))
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for at, each in schemas_in(schema, name):
        assert each.keys() <= KEYWORDS | NOTES, at
        reference = each.get("$ref", "#/definitions/")
        assert reference.startswith("#/definitions/"), at


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_described_with_an_example(name: str) -> None:
    """Reference pages and completion in editors come from here."""
    schema = dict(load_schema(name))
    for at, each in schemas_in(schema, name):
        if at.endswith("/if") or each.get("additionalProperties") is not False:
            continue
        for key, inner in each.get("properties", {}).items():
            about = resolved(inner, schema)
            assert about.get("description"), f"{at}.{key}"
            chosen = key == "type" and "x-by-type" in each
            assert chosen or about.get("examples") or "body" in key, f"{at}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_examples_and_defaults_are_right(name: str) -> None:
    schema = dict(load_schema(name))
    for at, each in schemas_in(schema, name):
        shown = list(each.get("examples", ()))
        shown += [each["default"]] if "default" in each else []
        for example in shown:
            whole = {**each, "definitions": schema["definitions"]}
            assert jsonschema.Draft7Validator(whole).is_valid(example), f"{at}: {example!r}"


def test_the_lists_of_the_schemas_are_those_of_the_code() -> None:
    connector, template = (
        load_schema("connector")["definitions"],
        load_schema("mapping-template")["definitions"],
    )
    assert connector["rule"]["properties"]["then"]["enum"] == list(get_args(Action))
    assert connector["pagination"]["properties"]["type"]["enum"] == list(PAGINATION_TYPES)
    for definitions in (connector, load_schema("platform")["definitions"]):
        assert definitions["field"]["allOf"][0]["then"]["enum"] == list(FIELD_TYPES)
    mapping = template["mapping"]["properties"]
    assert mapping["direction"]["enum"] == list(get_args(MappingDirection))
    assert mapping["when_both_changed"]["enum"] == list(get_args(ConflictRule))


def judged_by_the_library(data: Any, name: str) -> bool:
    return bool(jsonschema.Draft7Validator(dict(load_schema(name))).is_valid(data))


def kind_of(text: str) -> str:
    return KINDS.get(text.split(":")[0], "connector")


@pytest.mark.parametrize("file", sorted(FAULTS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_the_library_agrees_on_every_planted_fault(file: Path) -> None:
    text = file.read_text("utf-8")
    try:
        document = read_document(text)
    except DocumentError:
        return  # There is nothing to judge.
    assert (validate(document, kind_of(text)) == []) == judged_by_the_library(document.data, kind_of(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 700) | st.sampled_from(
        ["", "text", "GET /x", "query a", "5 minutes", "5xx", "1 per second", "cursor", "oauth2", "id"]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "read", "send", "call", "fields", "id", "list", "then", "status", "rules", "path", "x"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_the_library_agrees_on_any_value_anywhere(data: st.DataObject, name: str) -> None:
    schema = load_schema(name)
    part = data.draw(st.sampled_from(list(schema["properties"])))
    written = {part: data.draw(VALUES)}
    found = validate(read_document(json.dumps(written)), name)
    about_the_part = [each for each in found if not each.message.startswith("the file needs ")]
    of_the_part = {"properties": {part: schema["properties"][part]}, "definitions": schema["definitions"]}
    assert (about_the_part == []) == jsonschema.Draft7Validator(of_the_part).is_valid(written)
