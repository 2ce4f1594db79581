"""Which template each venue gets, and the reason it is told, the same for every pack of venue types."""

from __future__ import annotations

from typing import Any

import pytest

from engine.templates import MappingTemplate, detect_template
from tests.snapshot.templates.rendering import template_files, template_of
from tests.snapshot.templates.venues import venues

VENUE_TYPES = {"default", "music-venue", "comedy-club", "theater", "festival"}


def packs() -> dict[str, list[MappingTemplate]]:
    made: dict[str, list[MappingTemplate]] = {}
    for path in template_files():
        made.setdefault(path.parent.name, []).append(template_of(path.parent.name, path.stem))
    return made


@pytest.mark.parametrize("venue", venues(), ids=lambda venue: f"{venue['type']}-{venue['name']}")
def test_a_venue_gets_the_template_that_suits_it(venue: dict[str, Any]) -> None:
    chosen = {name: detect_template(pack, venue) for name, pack in packs().items()}
    assert {name: template.name for name, (template, _) in chosen.items()} == dict.fromkeys(
        chosen, venue["template"]
    )
    assert {why for _, why in chosen.values()} == {venue["because"]}


def test_every_provider_has_a_template_for_each_kind_of_venue() -> None:
    for name, pack in packs().items():
        assert {each.name for each in pack} >= VENUE_TYPES, name
        suits = {each.name: each.suits for each in pack if each.name in VENUE_TYPES}
        first = {each.name: each.suits for each in next(iter(packs().values())) if each.name in VENUE_TYPES}
        assert suits == first, name
