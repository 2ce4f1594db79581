"""What counts as a change of a provider's records, and what is only a record without a field."""

from typing import Any

from engine.drift import Comparison, KnownField, compare
from engine.fields import Field, FieldCatalog
from engine.observing import Sighting

NOTHING = FieldCatalog({})


def saw(*records: dict[str, Any], times: int = 1, enumerations: tuple[str, ...] = ()) -> Sighting:
    sighting = Sighting(enumerations=frozenset(enumerations))
    sighting.look(list(records) * times)
    return sighting


def after(*sightings: Sighting, declared: FieldCatalog = NOTHING, **options: Any) -> Comparison:
    """Return what the last sighting changed."""
    known: dict[str, KnownField] = {}
    made = Comparison()
    for each in sightings:
        made = compare(known, each, declared, **options)
        known = made.fields
    return made


def told(made: Comparison) -> list[tuple[str, str]]:
    return [(each.kind, each.path) for each in made.drift]


def test_the_first_records_are_no_change() -> None:
    assert told(after(saw({"a": 1}, times=100))) == []


def test_a_field_that_comes_is_added() -> None:
    made = after(saw({"a": 1}, times=20), saw({"a": 1, "b": {"c": "x"}}))
    assert told(made) == [("added", "b"), ("added", "b.c")]
    assert made.drift[1].after == ("text",)
    assert told(after(saw({"a": 1}, times=19), saw({"a": 1, "b": 2}))) == []  # too few to know


def test_a_field_that_is_missed_for_long_is_removed_once() -> None:
    there, gone = saw({"a": 1, "b": 2}, times=30), saw({"a": 1}, times=49)
    assert told(after(there, gone)) == []
    assert told(after(there, gone, saw({"a": 1}))) == [("removed", "b")]
    assert told(after(there, gone, saw({"a": 1}), saw({"a": 1}, times=50))) == []
    assert after(there, gone, saw({"a": 1})).fields["b"].removed


def test_a_field_that_is_rarely_there_is_missed_for_longer() -> None:
    rare = saw(*[{"a": 1, **({"b": 2} if n % 10 == 0 else {})} for n in range(200)])
    assert told(after(rare, saw({"a": 1}, times=79))) == []
    assert told(after(rare, saw({"a": 1}, times=80))) == [("removed", "b")]


def test_a_field_that_comes_back_is_there_again() -> None:
    made = after(saw({"a": 1, "b": 2}, times=30), saw({"a": 1}, times=60), saw({"a": 1, "b": 2}))
    assert told(made) == [("returned", "b")]
    assert (made.fields["b"].removed, made.fields["b"].missed) == (False, 0)


def test_what_is_within_something_empty_is_not_missed() -> None:
    there = {"id": "x", "card": {"last4": "1", "brand": "v"}, "items": [{"sku": "s", "note": "n"}]}
    empty: list[dict[str, Any]] = [
        {"id": "x", "card": None, "items": []},
        {"id": "x", "card": {}, "items": [{}]},
    ]
    assert told(after(saw(there, times=30), saw(*empty, times=200))) == []
    thin = {"id": "x", "card": {"brand": "v"}, "items": [{"sku": "s"}]}
    assert told(after(saw(there, times=30), saw(thin, times=50))) == [
        ("removed", "card.last4"),
        ("removed", "items[0].note"),
    ]
    only_id = {"id": "x", "card": "card_1", "items": [{"sku": "s", "note": "n"}]}
    made = after(saw(there, times=30), saw(only_id, times=50))
    assert told(made) == [("removed", "card.last4"), ("removed", "card.brand"), ("retyped", "card")]
    gone = {"id": "x", "items": [{"sku": "s", "note": "n"}]}
    assert told(after(saw(there, times=30), saw(gone, times=50)))[0] == ("removed", "card")
    assert len(told(after(saw(there, times=30), saw(gone, times=50)))) == 3


def refused(*paths: str) -> Sighting:
    sighting = Sighting()
    for each in paths:
        sighting.refuse(each)
    return sighting


def test_what_the_provider_does_not_know_is_refused_once() -> None:
    made = after(saw({"id": "x"}), refused("ship.city"))
    assert told(made) == [("refused", "ship.city")]
    assert made.fields["ship.city"].gone
    assert told(after(refused("ship.city"), refused("ship.city"))) == []


def test_what_was_refused_returns_with_records_that_have_it_for_the_first_time() -> None:
    made = after(refused("note"), saw({"id": "x", "note": "n"}))
    assert (told(made), made.fields["note"].gone) == ([("returned", "note")], False)
    read_only = after(saw({"note": "n"}), refused("note"), saw({"note": "n"}))
    assert (told(read_only), read_only.fields["note"].refused) == ([], True)


def test_another_type_is_told_and_a_fraction_is_none() -> None:
    made = after(saw({"a": 1, "b": 1}, times=20), saw({"a": 1.5, "b": "1"}))
    assert told(made) == [("retyped", "b")]
    assert (made.drift[0].before, made.drift[0].after) == (("integer",), ("integer", "text"))
    assert told(after(saw({"a": None}, times=20), saw({"a": "x"}))) == []  # nothing is no type


def test_a_value_that_the_manifest_does_not_know_is_told_once() -> None:
    declared = FieldCatalog({"state": Field("state", one_of=("open", "shut"))})
    old = saw({"state": "open", "name": "Ann"}, times=20, enumerations=("state",))
    new = saw({"state": "held", "name": "Ben"}, enumerations=("state",))
    made = after(old, new, declared=declared)
    assert told(made) == [("enumeration_grown", "state")]
    assert (made.drift[0].before, made.drift[0].after) == (("open", "shut"), ("held",))
    assert told(after(old, new, new, declared=declared)) == []
    assert "Ben" not in repr(made)


def test_what_came_where_something_went_is_renamed() -> None:
    made = after(
        saw({"id": "x", "seat_map": "u", "tone": "t"}, times=30),
        saw({"id": "x", "seatMapUrl": "u"}, times=50),
    )
    assert told(made) == [("renamed", "seat_map"), ("removed", "tone"), ("added", "seatMapUrl")]
    assert made.drift[0].after == ("seatMapUrl",)
    assert made.drift[0].evidence


def test_what_was_there_beside_it_is_no_new_name() -> None:
    made = after(
        saw({"id": "x", "seat_map": "u", "seatMap": "v"}, times=30),
        saw({"id": "x", "seatMap": "v"}, times=50),
    )
    assert told(made) == [("removed", "seat_map")]


def test_the_share_of_empty_ones_is_known() -> None:
    field = after(saw({"a": None}, {"a": "ann@example.com"}, {})).fields["a"]
    assert (field.records, field.seen, field.nulls, field.shapes) == (3, 2, 1, ("email",))
