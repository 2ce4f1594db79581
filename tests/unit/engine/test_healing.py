"""What is known of a field makes its plan: names, types, what was there before, values, and hints."""

from typing import Any

import pytest

from engine.fields import Field
from engine.healing import HealPlan, plan_heal, plan_heals

TITLES = ["Jazz Night", "Rock Night", "Folk Night", "Soul Night", "Punk Night", "Open Stage"]


def first(plan: HealPlan) -> str | None:
    return plan.proposals[0].path if plan.proposals else None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("createdAt", "created_at"),
        ("start-date", "startDate"),
        ("img", "image"),
        ("desc", "description"),
        ("zip", "postal_code"),
        ("address1", "address_1"),
        ("data.attributes.title", "title"),
        ("seatMap.Url", "seat_map.url"),
    ],
)
def test_the_same_words_written_otherwise_apply_by_themselves(old: str, new: str) -> None:
    plan = plan_heal(old, {new: "string", "language": "string"}, old_type="string")
    assert (plan.status, plan.successor) == ("applies", new)
    assert plan.proposals[0].evidence[0] == "the same words, written differently"


@pytest.mark.parametrize(
    ("old", "candidates", "expected"),
    [
        ("qty", ["quantity", "price"], "quantity"),
        ("dob", ["date_of_death", "birth_date"], "birth_date"),
        ("fname", ["last_name", "given_name"], "given_name"),
        ("tel", ["phone_number", "fax_number"], "phone_number"),
        ("zip", ["address.postal_code", "address.city"], "address.postal_code"),
        ("phone", ["phones[0].number", "phones[0].type"], "phones[0].number"),
        ("email", ["contact.name", "contact.email"], "contact.email"),
        ("billing_address", ["billing.address", "shipping.address"], "billing.address"),
        ("modified", ["created_at", "updated_at"], "updated_at"),
        ("tags", ["labels", "limits"], "labels"),
    ],
)
def test_the_likest_is_proposed_first(old: str, candidates: list[str], expected: str) -> None:
    assert first(plan_heal(old, candidates)) == expected


def test_a_field_without_a_successor_is_broken() -> None:
    plan = plan_heal("seat_map", {"currency": "currency", "venue.city": "text"}, old_type="url")
    assert (plan.status, plan.successor, plan.proposals) == ("broken", None, ())


def test_a_field_that_is_still_there_is_unchanged() -> None:
    assert plan_heal("title", {"title": "string", "name": "string"}, old_type="text").status == "unchanged"


def test_of_a_field_that_became_a_group_its_part_is_proposed() -> None:
    now = {"capacity": "object", "capacity.count": "integer", "capacity.unit": "text"}
    plan = plan_heal("capacity", now, old_type="integer")
    assert (plan.status, first(plan)) == ("proposed", "capacity.count")


@pytest.mark.parametrize(
    ("old", "new", "type_", "kind"),
    [
        ("unitPrice", "unit_price", "decimal", "money"),
        ("feeTotal", "fee_total", "text", "money"),
        ("ticket", "Ticket", "money", "money"),
        ("emailAddress", "email_address", "text", "identity"),
        ("contact", "Contact", "phone", "identity"),
        ("lastName", "last_name", "text", "identity"),
        ("customerId", "customer_id", "text", "identity"),
        ("acceptsMarketing", "accepts_marketing", "boolean", "consent"),
        ("optIn", "opt_in", "boolean", "consent"),
    ],
)
def test_a_person_decides_about_money_identity_and_consent(old: str, new: str, type_: str, kind: str) -> None:
    plan = plan_heal(old, {new: type_}, old_type=type_, renamed={old: new})
    assert (plan.status, plan.protected, first(plan)) == ("proposed", kind, new)


def test_a_name_is_a_persons_unless_the_resource_is_something_else() -> None:
    assert plan_heal("Name", {"name": "text"}, old_type="text").protected == "identity"
    assert plan_heal("Name", {"name": "text"}, old_type="text", resource="customer").protected == "identity"
    plan = plan_heal("Name", {"name": "text"}, old_type="text", resource="catalog_item")
    assert (plan.protected, plan.successor) == (None, "name")


def test_what_a_caller_protects_never_applies() -> None:
    assert plan_heal("seatMap", ["seat_map"]).applies
    assert not plan_heal("seatMap", ["seat_map"], protected=["seatMap"]).applies
    assert not plan_heal("seatMap", ["seat_map"], protected=["seat_map"]).applies
    assert not plan_heal("seatMap", [{"path": "seat_map", "protected": True}]).applies
    assert not plan_heal("seatMap", [Field("seat_map", "decimal", unit="minor")]).applies


def test_the_providers_word_counts() -> None:
    plan = plan_heal(
        "billing_mode", ["collection_method", "mode"], renamed={"billing_mode": "collection_method"}
    )
    assert plan.successor == "collection_method"
    assert plan.proposals[0].evidence[0].startswith("the provider says so")


def test_the_providers_word_is_no_word_on_types() -> None:
    now = {"collection": "object"}
    plan = plan_heal("billing_mode", now, old_type="text", renamed={"billing_mode": "collection"})
    assert (plan.status, first(plan)) == ("proposed", "collection")


def test_what_was_there_before_is_hardly_a_successor() -> None:
    now = {"seat_map": "url"}
    before = plan_heal("seatMap", now, before={"seatMap": "url", "seat_map": "url"})
    new = plan_heal("seatMap", now, before={"seatMap": "url"})
    assert (before.status, new.status) == ("proposed", "applies")
    assert before.proposals[0].score < new.proposals[0].score


def test_a_candidate_may_say_itself_whether_it_is_new() -> None:
    told = [
        plan_heal("seatMap", [{"path": "seat_map", "type": "url", "new": new}], old_type="url").status
        for new in (True, None, False)
    ]
    assert told == ["applies", "applies", "proposed"]


def records(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_equal_values_decide_where_names_do_not() -> None:
    before = {"show_title": TITLES, "status": ["on"] * 6}
    after = {"headline_title": TITLES, "series_title": ["Autumn"] * 6, "status": ["on"] * 6}
    plan = plan_heal("show_title", list(after), samples_before=before, samples_after=after)
    assert (plan.status, plan.successor) == ("applies", "headline_title")
    assert "6 of 6 linked records have the same value, 6 of them telling ones" in plan.proposals[0].evidence


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("capacity", "remaining_capacity"),
        ("quantity", "reserved_quantity"),
        ("stock", "initial_stock"),
        ("duration", "max_duration"),
        ("max_duration", "duration"),
        ("genre", "sub_genre"),
        ("title", "shortTitle"),
        ("notes", "internal_notes"),
        ("category", "parent.category"),
        ("arrival", "scheduled_arrival"),
        ("tracking_code", "return_tracking_code"),
    ],
)
def test_equal_values_decide_nothing_where_a_name_has_a_word_that_makes_it_a_part(old: str, new: str) -> None:
    plan = plan_heal(old, [new], samples_before={old: TITLES, "note": TITLES},
                     samples_after={new: TITLES, "note": TITLES})  # fmt: skip
    assert (plan.status, plan.proposals[0].path) == ("proposed", new)


def test_records_are_linked_by_their_id_in_whatever_order() -> None:
    ids = ["e1", "e2", "e3", "e4", "e5", "e6"]
    before = records(id=ids, show_title=TITLES, status=["on"] * 6)
    after = list(reversed(records(id=ids, headline_title=TITLES, status=["on"] * 6)))
    plan = plan_heal("show_title", ["headline_title"], samples_before=before, samples_after=after)
    assert plan.successor == "headline_title"
    unlinked = [{"headline_title": each["headline_title"]} for each in after]
    plan = plan_heal("show_title", ["headline_title"], samples_before=before, samples_after=unlinked)
    assert plan.successor is None


def test_other_values_deny_the_same_name() -> None:
    plan = plan_heal(
        "seatMap",
        ["seat_map"],
        samples_before={"id": ["e1", "e2", "e3"], "seatMap": ["A front", "B side", "C back"]},
        samples_after={"id": ["e1", "e2", "e3"], "seat_map": ["red", "blue", "green"]},
    )
    assert plan.successor is None
    assert "only 0 of 3 linked records have the same value" in plan.proposals[0].doubts


def test_values_of_other_records_deny_nothing_and_forbid_it_still() -> None:
    plan = plan_heal(
        "showName",
        ["show_name", "status"],
        samples_before={"showName": ["Jazz Night", "Rock Night", "Folk Night"]},
        samples_after={"show_name": ["Late Show", "Matinee", "Open Stage"], "status": ["on", "off", "on"]},
    )
    assert (plan.status, first(plan)) == ("proposed", "show_name")
    assert plan.proposals[0].score >= 0.9
    assert plan.proposals[0].doubts == (
        "no value is the same: records of before and after may be different ones",
    )


def test_records_that_show_nothing_else_do_not_tell_what_is_new() -> None:
    ids = ["e1", "e2", "e3", "e4", "e5", "e6"]
    before, after = records(id=ids, show_title=TITLES), records(id=ids, headline_title=TITLES)
    plan = plan_heal("show_title", ["id", "headline_title"], samples_before=before, samples_after=after)
    assert (plan.status, first(plan)) == ("proposed", "headline_title")


@pytest.mark.parametrize(
    ("old", "now", "first_one", "applies"),
    [
        ("lines[0].seatMap", ["lines[].seat_map"], "lines[].seat_map", True),
        ("lines.0.seatMap", ["lines[*].seat_map"], "lines[*].seat_map", True),
        ("lines[0].seatMap", ["lines.seat_map"], "lines.seat_map", False),
        ("/show/seatMap", ["/show/seat_map", "/show/name"], "/show/seat_map", True),
        ("$.show['seatMap']", ["show.seat_map"], "show.seat_map", True),
        ("latLng", ["latlng"], "latlng", True),
        ("lastmodifieddate", ["name", "modified_at"], "modified_at", False),
        ("showcoverimage", ["show_cover_image"], "show_cover_image", True),
        ("poster.image_url", ["url", "poster.image"], "poster.image", False),
        (
            "crlPoint",
            ["certificate_revocation_list_url", "point_count"],
            "certificate_revocation_list_url",
            False,
        ),
        ("größeNetto", ["Größe_Netto", "Größe_Brutto"], "Größe_Netto", True),
        ("座席", ["座席", "日付"], None, False),
        ("", ["a"], None, False),
        ("...", ["..", "a"], None, False),
        ("seatMap", [], None, False),
        ("seatMap", ["", "seat_map"], "seat_map", True),
    ],
)
def test_paths_are_understood_however_they_are_written(
    old: str, now: list[str], first_one: str | None, applies: bool
) -> None:
    plan = plan_heal(old, now)
    assert (first(plan), plan.applies) == (first_one, applies)


@pytest.mark.parametrize(
    "now",
    [
        {"seat_map": "string", "name": "string"},
        {"seat_map": ["string", "null"], "name": None},
        [{"path": "seat_map", "type": "string"}, {"name": "name"}],
        [("seat_map", "string"), ("name", "string")],
        {"seat_map": {"type": ["null", "string"]}, "name": {}},
        (path for path in ("seat_map", "name")),
    ],
)
def test_fields_are_understood_however_they_are_given(now: Any) -> None:
    assert plan_heal("seatMap", now).successor == "seat_map"


def test_the_old_path_among_the_candidates_is_still_there() -> None:
    assert plan_heal("seatMap", ["seatMap", "seat_map"]).status == "unchanged"


@pytest.mark.parametrize(
    "samples", [{"seat_map": "A front"}, [{"seat_map": "A front"}], {"seat_map": ["A front"]}]
)
@pytest.mark.parametrize("before", [{"seatMap": "A front"}, [{"seatMap": "A front"}], ["A front"]])
def test_samples_are_understood_however_they_are_given(before: Any, samples: Any) -> None:
    plan = plan_heal("seatMap", ["seat_map"], samples_before=before, samples_after=samples)
    assert "1 of 1 linked records have the same value, 1 of them telling ones" in plan.proposals[0].evidence


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([12.5, 20.0, 7.25], [1250, 2000, 725], "3 of 3 linked records have it 100 times as much"),
        ([90, 45, 30], [5400, 2700, 1800], "3 of 3 linked records have it 60 times as much"),
        ([True, False, True], [False, True, False], "3 of 3 linked records have it the opposite"),
        ([12, 20, 7], ["12", "20", "7"], "3 of 3 linked records have it of another type"),
        (["a", "b", "c"], [["a"], ["b"], ["c"]], "3 of 3 linked records have it within a list"),
        (
            ["a", "b", "c"],
            [{"v": "a"}, {"v": "b"}, {"v": "c"}],
            "3 of 3 linked records have it within a group",
        ),
        (["AB", "CD", "EF"], ["ab", "cd", "ef"], "3 of 3 linked records have it in other letters"),
    ],
)
def test_values_that_were_changed_are_told_and_never_apply(before: Any, after: Any, said: str) -> None:
    plan = plan_heal(
        "length", ["length_total"], samples_before={"length": before}, samples_after={"length_total": after}
    )
    assert plan.successor is None
    assert said in plan.proposals[0].doubts


def test_a_description_helps() -> None:
    plan = plan_heal("doors", [{"path": "entry", "description": "doors open at"}, {"path": "exit"}])
    assert first(plan) == "entry"
    assert "its description says so" in plan.proposals[0].evidence


def test_a_field_takes_the_place_of_one_only() -> None:
    plans = plan_heals(["headline_title", "Title", "status"], ["title", "status"])
    got = {plan.field: (plan.status, plan.proposals[0].doubts[-1:]) for plan in plans}
    assert got == {
        "headline_title": ("proposed", ("another field that is gone is more like it",)),
        "Title": ("applies", ()),
    }


def test_only_what_is_asked_for_is_planned() -> None:
    plans = plan_heals({"a_b": "text", "c_d": "text"}, {"aB": "text", "cD": "text"}, only=["c_d"])
    assert [(plan.field, plan.successor) for plan in plans] == [("c_d", "cD")]


def test_a_field_whose_type_changed_is_gone_too() -> None:
    [plan] = plan_heals({"seats": "integer"}, {"seats": "object", "seats.total": "integer"})
    assert (plan.field, plan.status) == ("seats", "proposed")


def test_as_json() -> None:
    plan = plan_heal("seatMap", {"seat_map": "url"}, old_type="url")
    assert plan.as_dict() == {
        "field": "seatMap",
        "status": "applies",
        "successor": "seat_map",
        "protected": None,
        "proposals": [
            {
                "path": "seat_map",
                "score": 1.0,
                "applies": True,
                "evidence": ["the same words, written differently", "both are of type url"],
                "doubts": [],
            }
        ],
    }
    assert plan.as_dict(explain=False)["proposals"] == [{"path": "seat_map", "score": 1.0, "applies": True}]


def test_a_field_needs_a_path() -> None:
    with pytest.raises(ValueError, match="a field needs a `path`"):
        plan_heal("a", [{"type": "text"}])
