"""A template that extends another: what comes of the two, where each part is from, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.diagnostics import Diagnostic
from engine.documents import read_document
from engine.layering import difference, laid_over, single
from engine.lint import lint_template
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import MappingScope
from engine.templates import MappingTemplate, load_template

ROOT = FilePath(__file__).parents[3]

BASE = """\
template: 1
name: default
connector: square
title: Base
mappings:
  - entity: event
    resource: item
    direction: push
    only_when: name
    fields:
      name: item_data.name
      description: item_data.description_html
      archived: {path: item_data.is_archived, push: "{{ false }}"}
      ticket_types:
        path: item_data.variations
        each_is: variation
        each:
          name: item_variation_data.name
          price: {path: item_variation_data.price_money.amount, push: "{{ value | minor_units('EUR') }}"}
          currency: {path: item_variation_data.price_money.currency, push: "{{ record.currency }}"}
  - entity: customer
    resource: customer
    direction: bidirectional
    match_on: email
    fields:
      email: email_address
      first_name: given_name
  - entity: order
    resource: order
    direction: pull
    fields:
      number: reference_id
"""

HEAD = "template: 1\nname: theater\nextends: default\nconnector: square\ntitle: Theater\n"

OVER = (
    HEAD
    + """\
mappings:
  - entity: customer
    resource: customer
    when_both_changed: newest_wins
    fields:
      last_name: family_name
      first_name: {path: given_name, push: "{{ value | upper }}"}
  - entity: event
    resource: item
    fields:
      description: ~
  - entity: order
    resource: order
    fields: ~
  - entity: ticket_type
    resource: inventory
    direction: push
    fields:
      available: {path: quantity, push: "{{ value | string }}"}
      id: {path: catalog_object_id, link: variation}
"""
)


@pytest.fixture(scope="module")
def platform() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


@pytest.fixture(scope="module")
def square() -> Connector:
    return load_connector(ROOT / "connectors" / "square.yaml")


def loaded(folder: FilePath, connector: Connector, platform: Platform, **files: str) -> MappingTemplate:
    """Write files by name, and load the last of them."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return load_template(folder / f"{list(files)[-1]}.yaml", connector, platform)


def linted(folder: FilePath, connector: Connector, platform: Platform, **files: str) -> list[Diagnostic]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return lint_template(read_document(folder / f"{list(files)[-1]}.yaml"), connector, platform)


def test_only_what_is_different_is_written(tmp_path: FilePath, square: Connector, platform: Platform) -> None:
    template = loaded(tmp_path, square, platform, default=BASE, theater=OVER)
    assert template.layers == ("default", "theater")
    assert [(each["entity"], each["resource"]) for each in template.written] == [
        ("event", "item"),
        ("customer", "customer"),
        ("ticket_type", "inventory"),
    ]
    event, customer, _ = template.written
    assert (event["direction"], event["only_when"]) == ("push", "name")
    assert list(event["fields"]) == ["name", "archived", "ticket_types"]
    assert (customer["match_on"], customer["when_both_changed"]) == ("email", "newest_wins")
    assert list(customer["fields"].items()) == [
        ("email", "email_address"),
        ("first_name", {"path": "given_name", "push": "{{ value | upper }}"}),
        ("last_name", "family_name"),
    ]
    record = {"email": "a@b.example", "first_name": "Ana", "last_name": "Ruiz"}
    assert template.mappings[1].push(record, MappingScope({"id": "v"})) == {
        "email_address": "a@b.example",
        "given_name": "ANA",
        "family_name": "Ruiz",
    }


def test_every_part_knows_where_it_was_written(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    template = loaded(tmp_path, square, platform, default=BASE, theater=OVER)

    def origin(*steps: str | int) -> tuple[str, str, int]:
        found = template.origins["mappings", *steps]
        return found.layer, FilePath(found.file).name, found.line

    assert origin(0, "fields", "name") == ("default", "default.yaml", 11)
    assert origin(0, "only_when") == ("default", "default.yaml", 9)
    assert origin(1, "fields", "email") == ("default", "default.yaml", 26)
    assert origin(1, "fields", "first_name") == ("theater", "theater.yaml", 12)
    assert origin(1, "fields", "last_name") == ("theater", "theater.yaml", 11)
    assert origin(1, "when_both_changed") == ("theater", "theater.yaml", 9)
    assert origin(1, "match_on") == ("default", "default.yaml", 24)
    assert origin(2, "fields", "id") == ("theater", "theater.yaml", 25)
    assert ("mappings", 0, "fields", "description") not in template.origins


def test_a_chain_and_what_tells_versions_apart(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    opera = (
        "template: 1\nname: opera\nextends: theater\nconnector: square\ntitle: Opera\nmappings:\n"
        "  - {entity: customer, resource: customer, fields: {first_name: given_name, last_name: ~}}\n"
    )
    template = loaded(tmp_path, square, platform, default=BASE, theater=OVER, opera=opera)
    assert template.layers == ("default", "theater", "opera")
    assert template.written[1]["fields"] == {"email": "email_address", "first_name": "given_name"}
    assert template.written[1]["when_both_changed"] == "newest_wins"
    assert template.digest == hashlib.sha256((opera + OVER + BASE).encode()).hexdigest()
    other = loaded(tmp_path, square, platform, default=BASE + "# changed\n", opera=opera)
    assert other.digest != template.digest


def test_one_that_changes_nothing_but_whom_it_suits(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    template = loaded(
        tmp_path, square, platform, default=BASE, theater=HEAD + "suits: {venue_types: [theater]}\n"
    )
    base = load_template(tmp_path / "default.yaml", square, platform)
    assert (template.written, template.suits.venue_types) == (base.written, ("theater",))
    assert base.layers == ("default",)


EVENT = "mappings:\n  - entity: event\n    resource: item\n"


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        (HEAD.replace("extends: default", "extends: defualt"), "unknown-template", (3, 10), "`default`?"),
        (HEAD.replace("extends: default", "extends: theater"),
         "circular-template", (3, 10), "theater → theater"),
        (HEAD + EVENT + "    fields: {descripton: ~}\n", "no-effect", (9, 14), "did you mean `description`?"),
        (HEAD + EVENT + "    fields: {name: item_data.nam}\n", "unknown-field", (9, 20), "`item_data.name`?"),
        (HEAD + EVENT + "    fields: {name: item_data.name}\n", "no-effect", (9, 14), "default.yaml:11"),
        (HEAD + EVENT + "    only_when: name\n", "no-effect", (9, 5), "default.yaml:9"),
        # Taking a field away leaves the mapping without what the provider needs.
        (HEAD + EVENT + "    fields: {name: ~}\n", "required-field", (9, 5), "item_data.name"),
        # What isn't written here is pointed at where its mapping is changed.
        (HEAD + "mappings:\n  - entity: customer\n    resource: customer\n    direction: pull\n"
         "    fields: {first_name: {path: given_name, pull: \"{{ value }}\"}}\n"
         "  - {entity: event, resource: item, fields: {capacity: item_data.description_html}}\n",
         "written-twice", (11, 56), "description_html"),
        (HEAD + "mappings:\n  - {entity: customer, resource: custmer, fields: {a: ~}}\n",
         "missing-key", (7, 5), "did you mean `customer`?"),
        (HEAD + "mappings:\n  - {entity: order, resource: order, direction: push}\n",
         "read-only", (7, 5), "it comes from `default`"),
        (HEAD + EVENT + "    direction: push\n" + EVENT[10:] + "    only_when: id\n",
         "duplicate-mapping", (10, 5), "line 7"),
        (HEAD + EVENT + "    fields: ~\n  - {entity: customer, resource: customer, fields: ~}\n"
         "  - {entity: order, resource: order, fields: ~}\n", "too-few", (6, 1), "no mapping is left"),
        (HEAD + EVENT + "    fields: {name: 3}\n", "wrong-type", (9, 20), "a path"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_its_place(
    tmp_path: FilePath, square: Connector, platform: Platform,
    text: str, code: str, place: tuple[int, int], words: str,
) -> None:  # fmt: skip
    found = linted(tmp_path, square, platform, default=BASE, theater=text)
    told = [each for each in found if each.code == code and (each.line, each.column) == place]
    assert told, found
    assert any(words in text for each in told for text in (each.message, *each.help))
    assert {FilePath(each.file).name for each in found} == {"theater.yaml"}


@pytest.mark.parametrize(
    "mappings",
    [
        "mappings: 5",
        "mappings: [7]",
        "mappings: [{entity: customer, fields: {email: ~}}]",
        "mappings: [{entity: customer, resource: customer, fields: 5}]",
        "mappings: [{entity: customer, resource: customer, fields: [email]}]",
    ],
)
def test_a_wrong_shape_of_what_extends_is_told(
    tmp_path: FilePath, square: Connector, platform: Platform, mappings: str
) -> None:
    found = linted(tmp_path, square, platform, default=BASE, theater=f"{HEAD}{mappings}\n")
    assert found
    assert {each.code for each in found} <= {"wrong-type", "missing-key"}


def test_what_is_wrong_with_the_extended_one_is_told_there(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    broken = BASE.replace("item_data.name", "item_data.name[")
    [told] = linted(tmp_path, square, platform, default=broken, theater=HEAD)
    assert (told.code, told.line) == ("unchecked", 3)
    # A fault that lets it be read is its own, too.
    mean = BASE.replace("title: Base", "title: Base").replace(
        "only_when: name", 'only_when: "{{ record.nam }}"'
    )
    assert [each.code for each in linted(tmp_path, square, platform, default=mean)] == ["unknown-field"]
    assert linted(tmp_path, square, platform, theater=HEAD) == []


def test_a_ring_of_templates_is_told_and_ends(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    ring = HEAD.replace("extends: default", "extends: b").replace("theater", "a")
    other = HEAD.replace("extends: default", "extends: a").replace("theater", "b")
    [told] = linted(tmp_path, square, platform, b=other, a=ring)
    assert (told.code, told.message) == ("circular-template", "`a` extends itself: a → b → a")
    [outside] = linted(tmp_path, square, platform, c=ring.replace("name: a", "name: c"))
    assert outside.code == "unchecked"


def test_without_extends_all_has_to_be_written(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    text = BASE.replace("    direction: pull\n", "").replace("email: email_address", "email: ~")
    found = linted(tmp_path, square, platform, default=text)
    assert [(each.code, each.line) for each in found] == [("wrong-type", 26), ("missing-key", 28)]
    [no_mappings] = linted(tmp_path, square, platform, default=BASE.split("mappings:")[0])
    assert (no_mappings.code, no_mappings.message) == ("missing-key", "the file needs `mappings`")


RULES = st.sampled_from(["a", "b", {"path": "c", "push": "{{ value }}"}, ["a", "b"]])
FIELDS = st.dictionaries(st.sampled_from("uvwxyz"), RULES, min_size=1)
MAPPINGS = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.sampled_from(["e", "f"]),
            "resource": st.sampled_from(["r", "s"]),
            "direction": st.sampled_from(["push", "pull"]),
            "fields": FIELDS,
        },
        optional={"match_on": st.sampled_from("uv")},
    ),
    min_size=1,
    unique_by=lambda each: (each["entity"], each["resource"]),
)


def as_file(name: str, mappings: list[dict[str, Any]], extends: str = "") -> str:
    import json

    data = {"template": 1, "name": name, "connector": "c", "title": "T", "mappings": mappings}
    return json.dumps({**data, **({"extends": extends} if extends else {})})


@given(base=MAPPINGS, own=MAPPINGS)
@settings(max_examples=40, deadline=None)
def test_the_difference_laid_over_gives_the_whole_again(
    base: list[dict[str, Any]], own: list[dict[str, Any]]
) -> None:
    """Order apart, and a key of a mapping that only the base has: it can't be taken away, only changed."""
    for mapping in own:
        known = [
            each
            for each in base
            if (each["entity"], each["resource"]) == (mapping["entity"], mapping["resource"])
        ]
        if known and "match_on" in known[0]:
            mapping.setdefault("match_on", known[0]["match_on"])
    over = difference(base, own)
    layers, found = laid_over(
        read_document(as_file("o", over, "b"), file="o.yaml"),
        single(read_document(as_file("b", base), file="b.yaml")),
    )
    assert found == []

    def by_pair(mappings: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(each["entity"], each["resource"]): each for each in mappings}

    assert by_pair(layers.mappings) == by_pair(own)
