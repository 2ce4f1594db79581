"""Who wins, what counts as a change, and which id a remote record gets."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fields import Field, FieldCatalog
from engine.reconcile import ConflictRule, fingerprint, local_id_for, plain, resolve, same

FIELDS = FieldCatalog(
    {
        "name": Field("name"),
        "phone": Field("phone", "phone"),
        "starts_at": Field("starts_at", "timestamp"),
        "price": Field("price", "money"),
    }
)


def merge(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    agreed: dict[str, Any],
    rule: ConflictRule = "platform_wins",
    theirs_newer: bool = False,
) -> tuple[dict[str, Any], bool, tuple[str, ...]]:
    result = resolve(ours, theirs, agreed, rule=rule, theirs_newer=theirs_newer, fields=FIELDS)
    return dict(result.take), result.ours_win, result.conflicts


BEFORE = {"ours": {"name": "Ada", "phone": "1"}, "theirs": {"name": "Ada", "phone": "1"}}


def test_only_their_change_is_taken() -> None:
    assert merge({"name": "Ada", "phone": "1"}, {"name": "Ada L", "phone": "1"}, BEFORE) == (
        {"name": "Ada L"},
        False,
        (),
    )


def test_only_our_change_is_kept_and_has_to_be_pushed() -> None:
    assert merge({"name": "Ada L", "phone": "1"}, {"name": "Ada", "phone": "1"}, BEFORE) == ({}, True, ())


def test_changes_of_different_fields_are_both_kept() -> None:
    assert merge({"name": "Ada L", "phone": "1"}, {"name": "Ada", "phone": "2"}, BEFORE) == (
        {"phone": "2"},
        True,
        (),
    )


@pytest.mark.parametrize(
    ("rule", "theirs_newer", "expected"),
    [
        ("platform_wins", True, ({}, True, ("name",))),
        ("provider_wins", False, ({"name": "B"}, False, ("name",))),
        ("newest_wins", True, ({"name": "B"}, False, ("name",))),
        ("newest_wins", False, ({}, True, ("name",))),
    ],
)
def test_a_conflict_goes_by_the_rule(
    rule: ConflictRule, theirs_newer: bool, expected: tuple[dict[str, Any], bool, tuple[str, ...]]
) -> None:
    before = {"ours": {"name": "Ada"}, "theirs": {"name": "Ada"}}
    assert merge({"name": "A"}, {"name": "B"}, before, rule, theirs_newer) == expected


def test_a_pair_just_matched_fills_gaps_from_the_other_side() -> None:
    assert merge({"name": "Ada", "phone": None}, {"name": "", "phone": "7"}, {}) == ({"phone": "7"}, True, ())


def test_a_mapping_that_loses_something_makes_no_change_by_itself() -> None:
    """The provider splits `de la Cruz` otherwise than we do; nobody changed anything."""
    agreed = {"ours": {"name": "Ana María de la Cruz"}, "theirs": {"name": "Ana"}}
    assert merge({"name": "Ana María de la Cruz"}, {"name": "Ana"}, agreed) == ({}, False, ())


@pytest.mark.parametrize(
    ("one", "other", "kind", "expected"),
    [
        (None, "", "text", True),
        ("", 0, "integer", False),
        ("2025-06-01T10:00:00Z", "2025-06-01T12:00:00+02:00", "timestamp", True),
        ("2025-06-01T10:00:00Z", "2025-06-01T10:00:00.000Z", "timestamp", True),
        ("2025-06-01T10:00:00Z", "2025-06-01T10:00:01Z", "timestamp", False),
        (Decimal("5.00"), "5", "money", True),
        (Decimal("5.10"), "5.1", "money", True),
        (Decimal("5.10"), "5.01", "money", False),
        (Decimal("45.990"), 45.99, "money", True),  # as JSON has it, and as it was agreed
        ("45.99", 45.99, "money", True),
        (Decimal("20.00"), 20, "money", True),
        (Decimal("20.00"), 20.01, "money", False),
        ("478", 478, "text", False),
    ],
)
def test_same(one: Any, other: Any, kind: str, expected: bool) -> None:
    assert same(one, other, kind) is expected


def test_what_was_stored_is_what_comes_again() -> None:
    """Storage reads fractions as exact numbers, which are not the floats that an answer holds."""
    assert plain({"a": 45.99, "b": Decimal("45.990"), "c": 20}) == {"a": "45.99", "b": "45.99", "c": 20}


def test_fingerprint_ignores_key_order_and_trailing_zeros() -> None:
    assert fingerprint({"a": 1, "b": Decimal("2.50")}) == fingerprint({"b": Decimal("2.5"), "a": 1})


def test_fingerprint_tells_absent_from_null_and_text_from_number() -> None:
    prints = {fingerprint(value) for value in ({}, {"a": None}, {"a": "1"}, {"a": 1}, {"a": True})}
    assert len(prints) == 5


def test_a_remote_record_always_gets_the_same_local_id_and_never_anothers() -> None:
    ids = {
        local_id_for("v1", "juniper", "customer", "c1"),
        local_id_for("v2", "juniper", "customer", "c1"),
        local_id_for("v1", "cedar", "customer", "c1"),
        local_id_for("v1", "juniper", "item", "c1"),
        local_id_for("v1", "juniper", "customer", "c2"),
    }
    assert len(ids) == 5
    assert local_id_for("v1", "juniper", "customer", "c1") in ids


values = st.none() | st.text(max_size=5) | st.decimals(allow_nan=False, allow_infinity=False, places=2)
records = st.fixed_dictionaries({"name": values, "phone": values, "price": values})


@given(records, records, records, st.sampled_from(["platform_wins", "provider_wins", "newest_wins"]))
def test_merging_twice_is_merging_once(
    ours: dict[str, Any], theirs: dict[str, Any], base: dict[str, Any], rule: ConflictRule
) -> None:
    agreed = {"ours": plain(base), "theirs": plain(base)}
    take, _, _ = merge(ours, theirs, agreed, rule)
    after = {**ours, **take}
    again = merge(after, theirs, {"ours": plain(after), "theirs": plain(theirs)}, rule)
    assert again[0] == {}
    assert again[2] == ()


@given(records, records)
def test_what_provider_wins_takes_is_exactly_what_differs(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    agreed = dict.fromkeys(ours, "as it was")  # both sides have changed everything
    before: dict[str, Any] = {"ours": agreed, "theirs": agreed}
    take, ours_win, _ = merge(ours, theirs, before, "provider_wins")
    kinds = {"name": "text", "phone": "phone", "price": "money"}
    assert set(take) == {name for name in theirs if not same(ours[name], theirs[name], kinds[name])}
    assert ours_win is False
