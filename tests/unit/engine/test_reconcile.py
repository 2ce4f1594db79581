"""Who wins, what counts as a change, and which id a remote record gets."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fields import Field, FieldCatalog
from engine.ports import Decision, FieldConflict
from engine.reconcile import ConflictRule, Resolution, fingerprint, local_id_for, plain, resolve, same
from engine.sides import still_open

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


# ---- fields that a person decides about ----------------------------------------------------------------


def conflict(name: str, ours: Any, theirs: Any, decision: Decision | None = None) -> FieldConflict:
    return FieldConflict("customer", "customer", "l1", "r1", name, ours, theirs, {}, decision=decision)


def laid(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    agreed: dict[str, Any],
    known: dict[str, FieldConflict] | None = None,
    rule: ConflictRule = "manual",
) -> Resolution:
    return resolve(ours, theirs, agreed, rule=rule, theirs_newer=True, fields=FIELDS, known=known)


def test_a_field_that_both_changed_waits_and_the_others_go_on() -> None:
    agreed = {"ours": {"name": "Ada", "phone": "1"}, "theirs": {"name": "Ada", "phone": "1"}}
    made = laid({"name": "A", "phone": "1"}, {"name": "B", "phone": "2"}, agreed)
    assert (made.take, made.ours_win, made.open) == ({"phone": "2"}, False, ("name",))
    assert made.outcomes == {"name": "open"}


def test_each_field_may_have_a_rule_of_its_own() -> None:
    agreed = {"ours": {"name": "Ada", "phone": "1"}, "theirs": {"name": "Ada", "phone": "1"}}
    rules: dict[str, ConflictRule] = {"name": "manual", "phone": "provider_wins"}
    made = resolve(
        {"name": "A", "phone": "2"},
        {"name": "B", "phone": "3"},
        agreed,
        rule=lambda name: rules[name],
        theirs_newer=False,
        fields=FIELDS,
    )
    assert made.take == {"phone": "3"}
    assert made.outcomes == {"name": "open", "phone": "provider"}


OPEN = {"ours": {"name": "Ada"}, "theirs": {"name": "Ada"}, "open": ["name"]}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("A", "B", ({}, False, ("name",), ())),  # as before
        ("C", "D", ({}, False, ("name",), ())),  # both went on
        ("A", "A", ({}, False, (), ("name",))),  # they agree by themselves
        ("Ada", "B", ({"name": "B"}, False, (), ("name",))),  # ours went back: theirs is the only change
        ("A", "Ada", ({}, True, (), ("name",))),  # theirs went back
    ],
)
def test_an_open_field_stays_open_until_only_one_side_differs(
    ours: str, theirs: str, expected: tuple[dict[str, Any], bool, tuple[str, ...], tuple[str, ...]]
) -> None:
    made = laid({"name": ours}, {"name": theirs}, OPEN)
    assert (dict(made.take), made.ours_win, made.open, made.over) == expected


def test_an_open_field_that_a_record_doesnt_have_this_time_stays_open() -> None:
    assert laid({"name": "A"}, {"phone": "1"}, OPEN).open == ("name",)


def test_a_rule_that_decides_ends_what_was_open() -> None:
    made = laid({"name": "A"}, {"name": "B"}, OPEN, {"name": conflict("name", "A", "B")}, "provider_wins")
    assert (made.take, made.open, made.over) == ({"name": "B"}, (), ("name",))


@pytest.mark.parametrize(
    ("decision", "take", "ours_win"),
    [
        (Decision("platform"), {}, True),
        (Decision("provider"), {"name": "B"}, False),
        (Decision("value", "C"), {"name": "C"}, True),
        (Decision("value", "A"), {}, True),
        (Decision("value", "B"), {"name": "B"}, False),
    ],
)
def test_a_decision_is_written_to_whichever_side_differs(
    decision: Decision, take: dict[str, Any], ours_win: bool
) -> None:
    made = laid({"name": "A"}, {"name": "B"}, OPEN, {"name": conflict("name", "A", "B", decision)})
    assert (made.take, made.ours_win, made.open, made.applied) == (take, ours_win, (), ("name",))
    assert made.outcomes == {"name": "person"}


@pytest.mark.parametrize(("ours", "theirs"), [("A2", "B"), ("A", "B2")])
def test_a_decision_about_other_values_is_dropped(ours: str, theirs: str) -> None:
    known = {"name": conflict("name", "A", "B", Decision("provider"))}
    made = laid({"name": ours}, {"name": theirs}, OPEN, known)
    assert (made.take, made.ours_win, made.open) == ({}, False, ("name",))
    assert (made.applied, made.over) == ((), ("name",))


def test_an_amount_that_a_person_gives_is_exact() -> None:
    agreed = {"ours": {"price": "5"}, "theirs": {"price": "5"}, "open": ["price"]}
    known = {"price": conflict("price", "6", "7", Decision("value", "6.50"))}
    made = laid({"price": Decimal("6.00")}, {"price": Decimal(7)}, agreed, known)
    assert made.take == {"price": Decimal("6.50")}


def after(
    ours: dict[str, Any], theirs: dict[str, Any], agreed: dict[str, Any], made: Resolution
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return both sides and what is agreed when a merge was written, as a sync does it."""
    ours = {**ours, **made.take}
    sent = {name: ours[name] for name in ours if name not in made.open} if made.ours_win else {}
    theirs = {**theirs, **sent}
    return ours, theirs, still_open({"ours": plain(ours), "theirs": plain(theirs)}, made.open, agreed)


rules = st.sampled_from(["platform_wins", "provider_wins", "newest_wins", "manual"])
by_field = st.fixed_dictionaries({"name": rules, "phone": rules, "price": rules})
agreements = st.none() | st.tuples(records, records)


@given(records, records, agreements, by_field, st.booleans())
def test_a_sync_that_follows_without_a_change_does_nothing_and_loses_no_conflict(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    base: tuple[dict[str, Any], dict[str, Any]] | None,
    by_name: dict[str, ConflictRule],
    newer: bool,
) -> None:
    agreed: dict[str, Any] = {} if base is None else {"ours": plain(base[0]), "theirs": plain(base[1])}

    def merged(*sides: dict[str, Any]) -> Resolution:
        return resolve(*sides, rule=by_name.__getitem__, theirs_newer=newer, fields=FIELDS)

    first = merged(ours, theirs, agreed)
    kinds = {"name": "text", "phone": "phone", "price": "money"}
    for name in first.open:  # neither side's is overwritten, and only what a person decides about waits
        assert by_name[name] == "manual"
        assert name not in first.take
        assert not same(ours[name], theirs[name], kinds[name])
    state = after(ours, theirs, agreed, first)
    for _ in range(2):
        again = merged(*state)
        assert (again.take, again.ours_win, again.open) == ({}, False, first.open)
        state = after(*state, again)
    for name in set(kinds) - set(first.open):  # and all else has come together
        assert same(state[0][name], state[1][name], kinds[name]) or base is not None


@given(records, records, records, st.sampled_from(["platform", "provider", "value"]), values)
def test_a_decision_brings_both_sides_together(
    ours: dict[str, Any], theirs: dict[str, Any], base: dict[str, Any], take: Any, own: Any
) -> None:
    agreed = {"ours": plain(base), "theirs": plain(base)}
    first = laid(ours, theirs, agreed)
    ours, theirs, agreed = after(ours, theirs, agreed, first)
    decision = Decision(take, plain({"own": own})["own"])
    known = {
        name: conflict(name, plain(ours)[name], plain(theirs)[name], decision)
        for name in first.open
        if name != "price" or take != "value"
    }
    second = laid(ours, theirs, agreed, known)
    assert set(second.applied) == set(known)
    ours, theirs, agreed = after(ours, theirs, agreed, second)
    for name in known:
        assert same(ours[name], theirs[name])
    assert laid(ours, theirs, agreed).open == tuple(name for name in first.open if name not in known)
