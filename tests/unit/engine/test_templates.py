"""Reading templates, saying what is wrong with one, and choosing among them."""

from __future__ import annotations

import hashlib
from pathlib import Path as FilePath
from typing import Any

import pytest

from engine.errors import DocumentError, TemplateError
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import MappingScope
from engine.templates import MappingTemplate, Suits, detect_template, load_template, load_templates

ROOT = FilePath(__file__).parents[3]

WORKING = """\
template: 1
name: small
connector: square
title: Small
suits:
  venue_types: [cafe]
  name_mentions: [café théâtre, jazz]
mappings:
  - entity: customer
    resource: customer
    direction: bidirectional
    fields:
      email: email_address
  - entity: event
    resource: item
    direction: push
    fields:
      name: item_data.name
"""


@pytest.fixture(scope="module")
def platform() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


@pytest.fixture(scope="module")
def square() -> Connector:
    return load_connector(ROOT / "connectors" / "square.yaml")


def written(folder: FilePath, text: str, name: str = "small.yaml") -> FilePath:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_template_is_read(tmp_path: FilePath, square: Connector, platform: Platform) -> None:
    path = written(tmp_path, WORKING)
    template = load_template(path, square, platform)
    assert (template.name, template.connector, template.title) == ("small", "square", "Small")
    assert template.suits == Suits(("cafe",), ("café théâtre", "jazz"))
    assert [(each.entity, each.resource, each.direction) for each in template.mappings] == [
        ("customer", "customer", "bidirectional"),
        ("event", "item", "push"),
    ]
    assert template.file == str(path)
    assert template.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    scope = MappingScope({"id": "v1"})
    assert template.mappings[0].push({"email": "a@b.example"}, scope) == {"email_address": "a@b.example"}


def test_every_template_of_a_folder_is_read_by_name(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    written(tmp_path, WORKING.replace("name: small", "name: b"), "b.yaml")
    written(tmp_path, WORKING.replace("name: small", "name: a"), "a.yaml")
    written(tmp_path, "not a template", "notes.txt")
    assert [each.name for each in load_templates(tmp_path, square, platform)] == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "code", "place", "words"),
    [
        ("connector: square", "connector: stripe", "wrong-connector", (3, 12), "is for `stripe`"),
        ("entity: event", "entity: evnt", "unknown-entity", (14, 13), "no entity `evnt`"),
        ("resource: item", "resource: itme", "unknown-resource", (15, 15), "no resource `itme`"),
        ("email: email_address", "email: email..address", "bad-path", (13, 20), "empty name"),
        (
            "name: item_data.name",
            "name: {path: item_data.name, push: '{{ vlue }}'}",
            "bad-template",
            (18, 46),
            "no value `vlue`",
        ),
        (
            "email: email_address",
            "email: {path: email_address, link: custmer}",
            "unknown-resource",
            (13, 42),
            "no resource `custmer`",
        ),
        (
            "email: email_address",
            "email: [email_address, {path: nickname, link: custmer}]",
            "unknown-resource",
            (13, 53),
            "no resource `custmer`",
        ),
        ("direction: push", "direction: pushes", "unknown-value", (16, 16), "`pushes`"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(
    tmp_path: FilePath,
    square: Connector,
    platform: Platform,
    old: str,
    new: str,
    code: str,
    place: tuple[int, int],
    words: str,
) -> None:
    path = written(tmp_path, WORKING.replace(old, new, 1))
    with pytest.raises(TemplateError) as caught:
        load_template(path, square, platform)
    (told,) = caught.value.diagnostics
    assert (told.code, (told.line, told.column)) == (code, place)
    assert words in told.message


def test_the_nearest_name_is_offered(tmp_path: FilePath, square: Connector, platform: Platform) -> None:
    path = written(tmp_path, WORKING.replace("resource: item", "resource: itme"))
    with pytest.raises(TemplateError) as caught:
        load_template(path, square, platform)
    assert "did you mean `item`?" in caught.value.diagnostics[0].help


def test_everything_wrong_is_told_at_once(tmp_path: FilePath, square: Connector, platform: Platform) -> None:
    text = (
        WORKING.replace("title: Small\n", "").replace("email_address", "a..b").replace("item_data.name", "c]")
    )
    with pytest.raises(TemplateError) as caught:
        load_template(written(tmp_path, text), square, platform)
    assert sorted(each.code for each in caught.value.diagnostics) == ["bad-path", "bad-path", "missing-key"]


def test_a_file_that_is_not_yaml_is_a_document_error(
    tmp_path: FilePath, square: Connector, platform: Platform
) -> None:
    with pytest.raises(DocumentError):
        load_template(written(tmp_path, "a: [1"), square, platform)
    with pytest.raises(TemplateError):
        load_template(written(tmp_path, "- just a list"), square, platform)


# ---- choosing


def named(name: str, suits: Suits = Suits()) -> MappingTemplate:  # noqa: B008 - frozen
    return MappingTemplate(name, "juniper", name, suits, (), f"{name}.yaml", "")


MUSIC = named("music", Suits(("music_venue", "concert_hall"), ("jazz", "live music", "Théâtre")))
COMEDY = named("comedy", Suits(("comedy_club",), ("comedy", "live")))
DEFAULT = named("default")


@pytest.mark.parametrize(
    ("venue", "template", "why"),
    [
        ({"type": "comedy_club", "name": "Jazz Live Music"}, COMEDY, "type is `comedy_club`"),
        ({"type": "concert_hall"}, MUSIC, "type is `concert_hall`"),
        ({"type": "museum", "name": "The JAZZ Cellar"}, MUSIC, "mentions `jazz`"),
        ({"type": None, "name": "Petit Theatre"}, MUSIC, "mentions `Théâtre`"),
        ({"name": "Live Jazz & Music"}, MUSIC, "mentions `jazz`, `live music`"),
        ({"name": "Live!"}, COMEDY, "mentions `live`"),
        ({"name": "Jazzercise"}, DEFAULT, "neither"),
        ({"type": "museum", "name": None}, DEFAULT, "neither"),
        ({}, DEFAULT, "neither"),
    ],
)
def test_the_template_that_suits_a_venue_is_chosen_and_says_why(
    venue: dict[str, Any], template: MappingTemplate, why: str
) -> None:
    chosen, reason = detect_template([COMEDY, DEFAULT, MUSIC], venue)
    assert chosen is template
    assert why in reason


SMALL = named("small", Suits(("comedy_club",), ("cellar",)))


@pytest.mark.parametrize(
    ("venue", "template", "why"),
    [
        ({"type": "comedy_club", "name": "Fox Cellar"}, SMALL,
         "several templates are for the type `comedy_club`, and the venue's name mentions `cellar`"),
        ({"type": "comedy_club", "name": "Fox"}, COMEDY,
         "several templates are for the type `comedy_club`, and it mentions `comedy`"),
        ({"type": "Comedy-Club", "name": "Live Cellar"}, DEFAULT,
         "several templates are for the type `Comedy-Club`, and the venue's name speaks for "
         "`comedy` (`live`) as much as for `small` (`cellar`), so it is the default"),
        ({"type": None, "name": "Jazz Comedy"}, DEFAULT,
         "the venue's name speaks for `comedy` (`comedy`) as much as for `music` (`jazz`), "
         "so it is the default"),
    ],
)  # fmt: skip
def test_what_suits_several_templates_is_decided_by_words_or_is_the_default(
    venue: dict[str, Any], template: MappingTemplate, why: str
) -> None:
    assert detect_template([SMALL, COMEDY, DEFAULT, MUSIC], venue) == (template, why)


def test_of_several_for_a_type_that_nothing_speaks_for_none_is_taken() -> None:
    one, other = named("one", Suits(("bar",))), named("other", Suits(("bar",)))
    chosen, why = detect_template([one, DEFAULT, other], {"type": "bar", "name": "Fox"})
    assert chosen is DEFAULT
    several = "several templates are for the type `bar`"
    assert why == f"{several}, and nothing speaks for one of them, so it is the default"


def test_without_a_default_the_first_is_taken() -> None:
    assert detect_template([COMEDY, MUSIC], {"name": "x"})[0] is COMEDY
