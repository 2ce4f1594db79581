"""One mapping, both ways: what is copied, calculated, linked and refused."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import MappingError
from engine.expressions import Path
from engine.fields import Field, FieldCatalog
from engine.manifest import Entity, ListPart, Resource
from engine.mapping import MOST_COMPILED, Fault, Mapping, MappingScope, compile_mapping
from engine.mapping import _compiled as compiled_mappings

ENTITY = Entity(
    "event",
    "platform.events",
    None,
    "id",
    "venue_id",
    "updated_at",
    FieldCatalog(
        {
            "name": Field("name", required=True),
            "note": Field("note"),
            "status": Field("status"),
            "price": Field("price", "money", unit="major", currency="currency"),
            "currency": Field("currency", "currency"),
            "tags": Field("tags", "list"),
            "customer_id": Field("customer_id", "id"),
            "open": Field("open", "boolean"),
        }
    ),
)
RESOURCE = Resource(
    "item", Path.parse("id"), FieldCatalog({"title": Field("title", required=True), "text": Field("text")})
)
VENUE = {"id": "v1", "name": "Le Duc", "currency": "EUR"}
SCOPE = MappingScope(venue=VENUE)


def mapping(fields: dict[str, Any], direction: str = "bidirectional", **more: Any) -> Mapping:
    made, faults = compile_mapping({"direction": direction, "fields": fields, **more}, RESOURCE, ENTITY)
    assert faults == ()
    assert made is not None
    return made


def faults(fields: dict[str, Any], direction: str = "bidirectional", **more: Any) -> tuple[Fault, ...]:
    made, found = compile_mapping({"direction": direction, "fields": fields, **more}, RESOURCE, ENTITY)
    assert made is None
    return found


# ---- copying


@pytest.mark.parametrize(
    ("paths", "record", "body"),
    [
        ({"name": "title"}, {"name": "Jazz"}, {"title": "Jazz"}),
        ({"name": "title", "note": "text"}, {"name": "Jazz"}, {"title": "Jazz"}),
        ({"name": "title", "note": "text"}, {"name": "Jazz", "note": None}, {"title": "Jazz", "text": None}),
        ({"note": "a.b.c", "status": "a.d"}, {"note": 1, "status": 2}, {"a": {"b": {"c": 1}, "d": 2}}),
        ({"note": "a.b", "status": "c"}, {"status": "x"}, {"c": "x"}),
        ({"note": "rows[0].id"}, {"note": "x"}, {"rows": [{"id": "x"}]}),
        ({"note": "rows[0].id"}, {}, {}),
        ({"note": "rows[2]", "status": "rows[0]"}, {"note": "x", "status": "y"}, {"rows": ["y", {}, "x"]}),
        ({"note": "rows[1].a", "status": "rows[0].b"}, {"note": 1}, {"rows": [{}, {"a": 1}]}),
        ({"note": "m[0][1]"}, {"note": 5}, {"m": [[{}, 5]]}),
        ({"note": "it-s.\\weird"}, {"note": 5}, {"it-s": {"\\weird": 5}}),
    ],
)
def test_push_copies_what_is_there_and_nothing_else(
    paths: dict[str, str], record: dict[str, Any], body: dict[str, Any]
) -> None:
    assert mapping(paths).push({**record, "secret": "never sent"}, SCOPE) == body


@pytest.mark.parametrize(
    ("paths", "remote", "values"),
    [
        ({"name": "title", "note": "text"}, {"title": "Jazz", "other": 1}, {"name": "Jazz"}),
        ({"name": "title", "note": "text"}, {"title": "Jazz", "text": None}, {"name": "Jazz", "note": None}),
        ({"note": "a.b", "status": "a.c"}, {"a": {"b": 1, "c": None}}, {"note": 1, "status": None}),
        ({"note": "a.b"}, {"a": None}, {}),
        ({"note": "a.b"}, {"a": "text"}, {}),
        ({"note": "a.b"}, {"a": ["b"]}, {}),
        ({"note": "rows[0].id"}, {"rows": [{"id": 3}]}, {"note": 3}),
        ({"note": "rows[0].id"}, {"rows": []}, {}),
        ({"note": "rows[0].id"}, {"rows": [None]}, {}),
        ({"note": "rows[0]"}, {"rows": "text"}, {}),
        ({"note": "rows[1][0].x"}, {"rows": [0, [{"x": 9}]]}, {"note": 9}),
        ({"note": "a", "status": "a.b"}, {"a": {"b": 1}}, {"note": {"b": 1}, "status": 1}),
        ({"note": "a.b", "status": "a[0]"}, {"a": [4]}, {"status": 4}),
    ],
)
def test_pull_tells_absent_from_null(
    paths: dict[str, str], remote: dict[str, Any], values: dict[str, Any]
) -> None:
    assert mapping(paths, "pull").pull(remote, SCOPE) == values


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3))
def test_generated_code_finds_what_a_path_finds(remote: dict[str, Any]) -> None:
    paths = {"note": "a", "status": "a.b", "tags": "a[0].c", "open": "b.c[1]", "customer_id": "c.c.c"}
    expected = {name: Path.parse(path).find(remote) for name, path in paths.items()}
    present = {name: value for name, value in expected.items() if repr(value) != "ABSENT"}
    assert mapping(paths, "pull").pull(remote, SCOPE) == present


def test_a_pull_does_not_change_the_remote_record() -> None:
    remote = {"a": {"b": [1]}}
    mapping({"note": "a.b"}, "pull").pull(remote, SCOPE)
    assert remote == {"a": {"b": [1]}}


def test_each_direction_does_only_its_own() -> None:
    assert mapping({"note": "text"}, "push").pull({"text": "x"}, SCOPE) == {}
    assert mapping({"note": "text"}, "pull").push({"note": "x"}, SCOPE) == {}
    assert mapping({"note": "text"}, "push").pulled_fields == ()
    assert mapping({"note": "text"}, "pull").pushed_paths == ()
    assert mapping({"note": "text"}).pushed_paths == ("text",)
    assert mapping({"note": "text"}).pulled_fields == ("note",)
    assert (mapping({"note": "text"}, "push").pushes, mapping({"note": "text"}, "push").pulls) == (
        True,
        False,
    )
    assert (mapping({"note": "text"}, "pull").pushes, mapping({"note": "text"}, "pull").pulls) == (
        False,
        True,
    )


# ---- calculating


def test_a_rule_calculates_each_way() -> None:
    made = mapping(
        {
            "open": {
                "path": "preferences.marketing",
                "push": "{{ 'subscribed' if value else 'unsubscribed' }}",
                "pull": "{{ value == 'subscribed' }}",
            }
        }
    )
    assert made.push({"open": True}, SCOPE) == {"preferences": {"marketing": "subscribed"}}
    assert made.push({"open": None}, SCOPE) == {"preferences": {"marketing": "unsubscribed"}}
    assert made.pull({"preferences": {"marketing": "cleaned"}}, SCOPE) == {"open": False}


def test_absent_stays_absent_unless_the_expression_makes_something_of_it() -> None:
    made = mapping(
        {
            "open": {"path": "a", "push": "{{ value == 1 }}", "pull": "{{ value == 1 }}"},
            "note": {"path": "b", "push": "{{ value | default('-') }}", "pull": "{{ value | default('-') }}"},
            "status": {"path": "c", "push": "{{ venue.name }}", "pull": "{{ venue.name }}"},
        }
    )
    assert made.push({}, SCOPE) == {"b": "-", "c": "Le Duc"}
    assert made.pull({}, SCOPE) == {"note": "-", "status": "Le Duc"}


def test_what_is_absent_hides_no_other_fault() -> None:
    made = mapping(
        {
            "price": {"path": "amount", "push": "{{ value | default(1) | minor_units(venue.currencyx) }}"},
            "status": {"path": "state", "push": "{{ {'paid': 'COMPLETED'}[value] }}"},
        }
    )
    with pytest.raises(MappingError, match="currencyx") as caught:
        made.push({"status": "paid"}, SCOPE)
    assert caught.value.field == "price"
    assert (
        mapping({"status": {"path": "state", "push": "{{ {'paid': 'DONE'}[value] }}"}}).push({}, SCOPE) == {}
    )


def test_one_way_rules_go_one_way() -> None:
    made = mapping(
        {"name": {"path": "title", "push": "{{ value | upper }}"}, "note": {"path": "text", "pull": "text"}}
    )
    assert made.push({"name": "jazz", "note": "x"}, SCOPE) == {"title": "JAZZ"}
    assert made.pull({"title": "JAZZ", "text": "x"}, SCOPE) == {"note": "x"}


def test_text_without_braces_is_jmespath_over_the_record_of_that_side() -> None:
    made = mapping({"tags": {"path": "labels", "push": "tags[*].name", "pull": "labels[].{name: @}"}})
    assert made.push({"tags": [{"name": "a"}, {"name": "b"}]}, SCOPE) == {"labels": ["a", "b"]}
    assert made.pull({"labels": ["a"]}, SCOPE) == {"tags": [{"name": "a"}]}


def test_a_field_may_have_several_rules() -> None:
    made = mapping({"note": ["first", {"path": "second", "push": "{{ value | upper }}"}, "third"]})
    assert made.push({"note": "a"}, SCOPE) == {"first": "a", "second": "A", "third": "a"}
    assert made.pull({"first": None, "third": "c", "second": "b"}, SCOPE) == {"note": "c"}
    assert made.pull({"first": "a", "third": "c"}, SCOPE) == {"note": "a"}
    assert made.pull({"third": None}, SCOPE) == {"note": None}
    assert made.pull({"second": "b"}, SCOPE) == {}


def test_a_rule_that_copies_nothing_needs_no_field_of_ours() -> None:
    made = mapping({"anything": {"path": "kind", "push": "{{ 'EVENT' }}"}}, "push")
    assert made.push({}, SCOPE) == {"kind": "EVENT"}


def test_braces_see_the_record_the_venue_and_the_links() -> None:
    made = mapping(
        {
            "id": {"path": "product", "link": "product"},
            "note": {"path": "text", "push": "{{ record.name ~ '/' ~ venue.id ~ '/' ~ links.product }}"},
        },
        "push",
    )
    scope = MappingScope(venue=VENUE, links={("product", "e1"): "prod_1"})
    assert made.push({"id": "e1", "name": "Jazz", "note": ""}, scope) == {
        "product": "prod_1",
        "text": "Jazz/v1/prod_1",
    }


def test_the_time_is_not_a_value_of_an_expression() -> None:
    (fault,) = faults({"note": {"path": "text", "push": "{{ now }}"}})
    assert (fault.code, fault.at, fault.position) == ("bad-template", ("fields", "note", "push"), 3)


def test_a_failing_expression_names_the_field_and_no_value() -> None:
    made = mapping({"price": {"path": "amount", "push": "{{ value | minor_units(record.currency) }}"}})
    with pytest.raises(MappingError) as caught:
        made.push({"price": Decimal("12.345"), "currency": "EUR"}, SCOPE)
    assert caught.value.field == "price"
    assert "more than the 2 decimals of EUR" in caught.value.message
    assert "12.345" not in caught.value.message


# ---- numbers and JSON


def test_exact_numbers_are_pulled_as_they_are_and_pushed_only_on_purpose() -> None:
    pulled = mapping({"price": {"path": "amount", "pull": "{{ value | major_units('EUR') }}"}}, "pull")
    assert pulled.pull({"amount": 1250}, SCOPE) == {"price": Decimal("12.50")}
    copied = mapping({"price": "amount"})
    assert copied.push({"price": 12}, SCOPE) == {"amount": 12}
    for bad in (Decimal("12.50"), float("inf"), object(), {"deep": [Decimal(1)]}):
        with pytest.raises(MappingError) as caught:
            copied.push({"price": bad}, SCOPE)
        assert caught.value.field == "price"
    with pytest.raises(MappingError, match="`minor_units` or `string`"):
        copied.push({"price": Decimal("12.50")}, SCOPE)


@pytest.mark.parametrize("rule", ["price", {"path": "price", "push": "{{ value }}"}])
def test_a_decimal_field_takes_an_exact_number(rule: Any) -> None:
    fields = FieldCatalog({"price": Field("price", "decimal")})
    resource = replace(RESOURCE, fields=fields)
    made, found = compile_mapping({"direction": "push", "fields": {"price": rule}}, resource, ENTITY)
    assert made is not None, found
    body = made.push({"price": Decimal("0.10")}, SCOPE)
    assert (body, type(body["price"])) == ({"price": Decimal("0.10")}, Decimal)
    with pytest.raises(MappingError):
        made.push({"price": Decimal("Infinity")}, SCOPE)


def test_what_braces_make_is_plain_json() -> None:
    made = mapping({"tags": {"path": "t", "push": "{{ (1, {'a': (2, none)}) }}", "pull": "{{ (value, 1) }}"}})
    assert made.push({"tags": None}, SCOPE) == {"t": [1, {"a": [2, None]}]}
    assert made.pull({"t": "x"}, SCOPE) == {"tags": ["x", 1]}


# ---- required fields


@pytest.mark.parametrize("rule", ["title", {"path": "title", "push": "{{ value }}"}])
@pytest.mark.parametrize("record", [{}, {"name": None}, {"name": ""}])
def test_a_required_remote_field_needs_a_value(rule: Any, record: dict[str, Any]) -> None:
    with pytest.raises(MappingError) as caught:
        mapping({"name": rule}, "push").push(record, SCOPE)
    assert caught.value.field == "name"
    assert caught.value.code == "REQUIRED_FIELD_MISSING"


@pytest.mark.parametrize("rule", ["title", {"path": "title", "pull": "{{ value }}"}])
def test_a_required_local_field_can_be_absent_but_not_null(rule: Any) -> None:
    made = mapping({"name": rule}, "pull")
    assert made.pull({}, SCOPE) == {}
    with pytest.raises(MappingError) as caught:
        made.pull({"title": None}, SCOPE)
    assert caught.value.field == "name"


# ---- links


LINKED = {"customer_id": {"path": "buyer.id", "link": "customer"}}


def test_a_link_translates_the_id_both_ways() -> None:
    made = mapping(LINKED)
    assert [(rule.local_field, rule.path.text, rule.resource) for rule in made.link_rules] == [
        ("customer_id", "buyer.id", "customer")
    ]
    push = MappingScope(venue=VENUE, links={("customer", "7"): "cus_7", ("item", "7"): "wrong"})
    assert made.push({"customer_id": 7}, push) == {"buyer": {"id": "cus_7"}}
    pull = MappingScope(venue=VENUE, links={("customer", "cus_7"): "7"})
    assert made.pull({"buyer": {"id": "cus_7"}}, pull) == {"customer_id": "7"}


def test_a_link_that_is_not_there_fails_the_record_unless_optional() -> None:
    for way, record in (("push", {"customer_id": "7"}), ("pull", {"buyer": {"id": "cus_7"}})):
        with pytest.raises(MappingError) as caught:
            getattr(mapping(LINKED), way)(record, SCOPE)
        assert caught.value.field == "customer_id"
        assert caught.value.retryable  # the next sync may have linked it
        relaxed = mapping({"customer_id": {**LINKED["customer_id"], "optional": True}})
        assert getattr(relaxed, way)(record, SCOPE) == {}


def test_no_reference_is_no_link() -> None:
    made = mapping(LINKED)
    assert made.push({"customer_id": None}, SCOPE) == {"buyer": {"id": None}}  # which clears theirs
    assert made.push({}, SCOPE) == {}
    assert made.pull({"buyer": {"id": None}}, SCOPE) == {}
    assert made.pull({}, SCOPE) == {}


# ---- conditions and pairing


def test_conditions_say_which_records_go() -> None:
    made = mapping(
        {"note": "text"},
        only_when="{{ record.status == 'on_sale' and venue.currency == 'EUR' }}",
        only_pull_when="status == 'succeeded'",
    )
    assert made.wants({"status": "on_sale"}, SCOPE)
    assert not made.wants({"status": "draft"}, SCOPE)
    assert made.wants_pull({"status": "succeeded"}, SCOPE)
    assert not made.wants_pull({}, SCOPE)
    assert mapping({"note": "text"}).wants({}, SCOPE)
    assert mapping({"note": "text"}).wants_pull({}, SCOPE)
    with pytest.raises(MappingError, match="`only_when`"):
        made.wants({}, SCOPE)


def test_pairing_and_conflicts() -> None:
    made = mapping(
        {"note": {"path": "a.b", "push": "{{ value }}"}}, match_on="note", when_both_changed="newest_wins"
    )
    assert made.match_on == "note"
    assert made.match_path == Path.parse("a.b")
    assert made.when_both_changed == "newest_wins"
    assert mapping({"note": "text"}).when_both_changed == "platform_wins"
    assert mapping({"note": "text"}).match_path is None


# ---- what can't be compiled


@pytest.mark.parametrize(
    ("fields", "code", "at"),
    [
        ({"note": "a..b"}, "bad-path", ("fields", "note")),
        ({"note": {"path": "a b"}}, "bad-path", ("fields", "note", "path")),
        ({"note": ["a", "b]"]}, "bad-path", ("fields", "note", 1)),
        ({"note": "[0].a"}, "bad-path", ("fields", "note")),
        ({"note": {"path": "a", "push": "{{ vlaue }}"}}, "bad-template", ("fields", "note", "push")),
        ({"note": {"path": "a", "pull": "lower(a"}}, "bad-expression", ("fields", "note", "pull")),
        ({"note": "a", "status": "a"}, "written-twice", ("fields", "status")),
        ({"note": "a.b", "status": "a"}, "written-twice", ("fields", "status")),
        ({"note": "a", "status": "a.b"}, "written-twice", ("fields", "status")),
        ({"note": "a.b", "status": "a[0]"}, "written-twice", ("fields", "status")),
        ({"note": "a[0].b", "status": {"path": "a.c"}}, "written-twice", ("fields", "status", "path")),
        ({"id": "reference"}, "unwritable-field", ("fields", "id")),
    ],
)
def test_a_fault_has_a_code_and_a_place(fields: dict[str, Any], code: str, at: tuple[str | int, ...]) -> None:
    assert [(fault.code, fault.at) for fault in faults(fields)] == [(code, at)]


def test_reading_one_path_twice_is_fine() -> None:
    made = mapping({"name": {"path": "title", "pull": "{{ value | first_word }}"}, "note": "title"}, "pull")
    assert made.pull({"title": "Ana Ruiz"}, SCOPE) == {"name": "Ana", "note": "Ana Ruiz"}


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        {"note": "a..b", "status": {"path": "c", "push": "{{ x }}"}}, match_on="nmae", only_when="{{ value }}"
    )
    assert [fault.at for fault in found] == [("fields", "note"), ("fields", "status", "push"), ("only_when",)]
    (unpaired,) = faults({"note": "a"}, match_on="name")
    assert (unpaired.code, unpaired.at) == ("unknown-field", ("match_on",))


def test_no_text_of_a_template_becomes_code() -> None:
    name = "x'] = 1; raise SystemExit  #"
    path = "\\x27:import_os;raise-SystemExit#"
    made = mapping({name: path})
    assert made.push({name: 5}, SCOPE) == {path: 5}
    assert made.pull({path: 6}, SCOPE) == {name: 6}


def test_a_one_way_copy_is_written_as_the_value_itself() -> None:
    made = mapping(
        {"note": {"path": "text", "push": "{{ value }}"}, "status": {"path": "s", "pull": "{{ value }}"}}
    )
    assert made.push({"note": None, "status": "x"}, SCOPE) == {"text": None}
    assert made.push({"status": "x"}, SCOPE) == {}
    assert made.pull({"text": "x", "s": None}, SCOPE) == {"status": None}


# ---- lists, item by item

PARTS = Resource(
    "item",
    Path.parse("id"),
    FieldCatalog(
        {
            "title": Field("title"),
            "parts[0].data.amount": Field("parts[0].data.amount", "integer", required=True),
            "parts[0].data.code": Field("parts[0].data.code", clears=False),
        }
    ),
    lists={"parts": ListPart(Path.parse("parts"), Path.parse("data.ours"))},
)


def of_parts(rule: dict[str, Any]) -> Mapping:
    made, found = compile_mapping({"direction": "push", "fields": {"tags": rule}}, PARTS, ENTITY)
    assert found == ()
    assert made is not None
    return made


EACH = {
    "id": "data.ours",
    "name": "name",
    "price": {"path": "data.amount", "push": "{{ value | minor_units(record.currency) }}"},
    "label": {"path": "label", "push": "{{ item.name }} at {{ record.name }} in {{ venue.name }}"},
}


def test_each_item_is_mapped_with_the_whole_record_in_sight() -> None:
    tags = [
        {"id": "t1", "name": "Front", "price": Decimal("12.50")},
        {"id": "t2", "name": "Rear", "price": Decimal(3)},
    ]
    record = {"id": "e1", "name": "Jazz", "currency": "EUR", "tags": tags}
    assert of_parts({"path": "parts", "each": EACH}).push(record, SCOPE) == {
        "parts": [
            {"data": {"ours": "t1", "amount": 1250}, "name": "Front", "label": "Front at Jazz in Le Duc"},
            {"data": {"ours": "t2", "amount": 300}, "name": "Rear", "label": "Rear at Jazz in Le Duc"},
        ]
    }


@pytest.mark.parametrize(
    ("record", "body"), [({}, {}), ({"tags": None}, {"parts": None}), ({"tags": []}, {"parts": []})]
)
def test_a_list_that_is_absent_null_or_empty_stays_so(record: dict[str, Any], body: dict[str, Any]) -> None:
    assert of_parts({"path": "parts", "each": EACH}).push(record, SCOPE) == body


def test_push_may_make_the_list_whose_items_are_mapped() -> None:
    one = "{{ value | default([]) or [{'id': record.id, 'price': record.price}] }}"
    rule = {"path": "parts", "push": one, "each": {"id": "data.ours", "price": EACH["price"]}}
    record = {"id": "e1", "price": Decimal("4"), "currency": "EUR", "tags": None}
    assert of_parts(rule).push(record, SCOPE) == {"parts": [{"data": {"ours": "e1", "amount": 400}}]}


@pytest.mark.parametrize("tags", ["text", ["text"], {"id": "t1"}])
def test_anything_else_than_objects_is_that_records_fault(tags: Any) -> None:
    with pytest.raises(MappingError, match="`tags` isn't a list of objects"):
        of_parts({"path": "parts", "each": EACH}).push({"tags": tags}, SCOPE)


def test_a_fault_names_the_item_it_is_in() -> None:
    tags = [{"id": "t1", "name": "A", "price": Decimal(1)}, {"id": "t2", "name": "B", "price": None}]
    with pytest.raises(MappingError) as raised:
        of_parts({"path": "parts", "each": EACH}).push({"name": "x", "currency": "EUR", "tags": tags}, SCOPE)
    assert raised.value.field == "tags"
    assert raised.value.message.startswith("`tags[1]`: `price` has no value")


def test_null_is_left_out_where_it_does_not_empty_the_field() -> None:
    each = {
        "price": "data.amount",
        "code": "data.code",
        "other": {"path": "data.other", "push": "{{ value }}"},
    }
    tags = [{"price": 1, "code": None, "other": None}]
    assert of_parts({"path": "parts", "each": each}).push({"tags": tags}, SCOPE) == {
        "parts": [{"data": {"amount": 1, "other": None}}]
    }


def test_items_that_are_records_need_to_be_paired_by_the_manifest() -> None:
    made = of_parts({"path": "parts", "each": EACH, "each_is": "part"})
    assert [(rule.path.text, rule.resource) for rule in made.list_rules] == [("parts", "part")]
    written = {"direction": "push", "fields": {"tags": {"path": "rows", "each": EACH, "each_is": "part"}}}
    _, found = compile_mapping(written, PARTS, ENTITY)
    assert [(fault.code, fault.at) for fault in found] == [("no-effect", ("fields", "tags", "path"))]


def test_a_list_mapped_item_by_item_is_never_pulled() -> None:
    made, _ = compile_mapping(
        {"direction": "bidirectional", "fields": {"tags": {"path": "parts", "each": EACH}, "name": "title"}},
        PARTS,
        ENTITY,
    )
    assert made is not None
    assert made.pulled_fields == ("name",)
    assert made.pull({"title": "Jazz", "parts": [{"data": {"ours": "t1"}}]}, SCOPE) == {"name": "Jazz"}


# ---- rules with conditions


@pytest.mark.parametrize(
    ("rule", "note", "body"),
    [
        ({"path": "text", "only_when": "status == 'sold'"}, "x", {"text": "x"}),
        ({"path": "text", "only_when": "status == 'draft'"}, "x", {}),
        ({"path": "text", "only_when": "{{ record.status == 'draft' }}", "push": "{{ value }}!"}, "x", {}),
        ({"path": "text", "only_when": "status", "push": "{{ value ~ '!' }}"}, "x", {"text": "x!"}),
        ({"path": "text", "only_when": "{{ venue.currency == 'EUR' }}"}, None, {"text": None}),
        ({"path": "text", "only_pull_when": "a == 'b'"}, "x", {"text": "x"}),
    ],
)  # fmt: skip
def test_a_rule_pushes_only_when_its_condition_holds(
    rule: dict[str, Any], note: str | None, body: dict[str, Any]
) -> None:
    made = mapping({"note": rule})
    assert made.push({"note": note, "status": "sold"}, SCOPE) == body


def test_a_copy_with_a_condition_of_what_is_not_there_stays_absent() -> None:
    made = mapping({"note": {"path": "text", "only_when": "status == 'sold'"}})
    assert made.push({"status": "sold"}, SCOPE) == {}


@pytest.mark.parametrize(("total", "found"), [(0, {"status": "void"}), (5, {"status": "paid", "note": 5})])
def test_a_rule_pulls_only_when_its_condition_holds(total: int, found: dict[str, Any]) -> None:
    void, worth = "total == `0`", "{{ record.total > 0 }}"
    made = mapping(
        {
            "note": {"path": "total", "only_pull_when": worth},
            "status": [
                {"path": "total", "only_pull_when": void, "pull": "{{ 'void' }}"},
                {"path": "total", "only_pull_when": worth, "pull": "{{ 'paid' }}"},
            ],
        },
        "pull",
    )
    assert made.pull({"total": total}, SCOPE) == found


def test_a_condition_that_cannot_be_told_fails_its_record() -> None:
    made = mapping({"note": {"path": "text", "only_when": "{{ record.price > 5 }}"}})
    with pytest.raises(MappingError, match="only_when"):
        made.push({"note": "x", "price": "many"}, SCOPE)


def test_what_cannot_be_compiled_of_a_condition_is_named() -> None:
    [fault] = faults({"note": {"path": "text", "only_when": "{{ value }}"}})
    assert (fault.code, fault.at) == ("bad-template", ("fields", "note", "only_when"))


# ---- tables, defaults and what must be there

STATUSES = {"path": "state", "values": {"on_sale": "ACTIVE", "sold_out": "ACTIVE", "void": "CANCELED"}}


@pytest.mark.parametrize(
    ("ours", "theirs", "back"),
    [("on_sale", "ACTIVE", "on_sale"), ("sold_out", "ACTIVE", "on_sale"), ("void", "CANCELED", "void")],
)
def test_a_table_goes_both_ways(ours: str, theirs: str, back: str) -> None:
    made = mapping({"status": STATUSES})
    assert made.push({"status": ours}, SCOPE) == {"state": theirs}
    assert made.pull({"state": theirs}, SCOPE) == {"status": back}


def test_a_table_keeps_null_null_and_absent_absent() -> None:
    made = mapping({"status": STATUSES})
    assert made.push({"status": None}, SCOPE) == {"state": None}
    assert made.push({}, SCOPE) == {}
    assert made.pull({"state": None}, SCOPE) == {"status": None}
    assert made.pull({}, SCOPE) == {}


@pytest.mark.parametrize(
    ("unknown", "pushed", "pulled"),
    [("leave_out", {}, {}), ("keep", {"state": "odd"}, {"status": "odd"})],
)
def test_what_a_table_does_not_name_is_said_by_unknown(
    unknown: str, pushed: dict[str, Any], pulled: dict[str, Any]
) -> None:
    made = mapping({"status": {**STATUSES, "unknown": unknown}})
    assert made.push({"status": "odd"}, SCOPE) == pushed
    assert made.pull({"state": "odd"}, SCOPE) == pulled


def test_without_unknown_it_fails_naming_the_field_and_no_value() -> None:
    made = mapping({"status": STATUSES})
    for run, record in ((made.push, {"status": "s3cret"}), (made.pull, {"state": ["s3cret"]})):
        with pytest.raises(MappingError, match="`status` has a value that its `values` don't name") as caught:
            run(record, SCOPE)
        assert caught.value.field == "status"
        assert "s3cret" not in caught.value.message


def test_a_table_of_truths_keeps_types_apart() -> None:
    made = mapping({"open": {"path": "state", "values": {"true": 1, "false": 0}}})
    assert made.push({"open": True}, SCOPE) == {"state": 1}
    assert made.pull({"state": 0}, SCOPE) == {"open": False}
    with pytest.raises(MappingError):
        made.pull({"state": True}, SCOPE)  # isn't 1
    with pytest.raises(MappingError):
        made.pull({"state": "1"}, SCOPE)  # nor is the text


def test_a_default_stands_in_for_null_and_absent_and_for_nothing_else() -> None:
    made = mapping({"note": {"path": "memo", "default": "none yet", "pull_default": ""}})
    assert made.push({}, SCOPE) == {"memo": "none yet"}
    assert made.push({"note": None}, SCOPE) == {"memo": "none yet"}
    assert made.push({"note": ""}, SCOPE) == {"memo": ""}
    assert made.pull({}, SCOPE) == {"note": ""}
    assert made.pull({"memo": None}, SCOPE) == {"note": ""}
    assert made.pull({"memo": "x"}, SCOPE) == {"note": "x"}


def test_a_default_is_never_shared() -> None:
    written: list[str] = ["live"]
    made = mapping({"tags": {"path": "labels", "default": written}}, "push")
    made.push({}, SCOPE)["labels"].append("changed")
    written.append("changed")
    assert made.push({}, SCOPE) == {"labels": ["live"]}


def test_a_default_follows_what_is_calculated() -> None:
    made = mapping({"note": {"path": "memo", "push": "{{ value | upper }}", "default": "NONE"}}, "push")
    assert made.push({"note": "x"}, SCOPE) == {"memo": "X"}
    assert made.push({}, SCOPE) == {"memo": "NONE"}


def test_what_is_required_is_there_or_fails_its_record() -> None:
    made = mapping({"note": {"path": "memo", "required": True}})
    assert made.push({"note": "x"}, SCOPE) == {"memo": "x"}
    for run, record in (
        (made.push, {}),
        (made.push, {"note": None}),
        (made.pull, {}),
        (made.pull, {"memo": None}),
    ):
        with pytest.raises(
            MappingError, match="`note` has no value, and this mapping requires one"
        ) as caught:
            run(record, SCOPE)
        assert caught.value.field == "note"


def test_a_default_is_enough_for_what_is_required() -> None:
    made = mapping({"note": {"path": "memo", "required": True, "default": 0}}, "push")
    assert made.push({}, SCOPE) == {"memo": 0}


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ({"values": {"a": "b"}, "push": "{{ value }}"}, "values"),
        ({"values": {"a": "b"}, "link": "customer"}, "values"),
        ({"unknown": "keep"}, "unknown"),
        ({"push": "{{ value }}", "pull_default": 1}, "pull_default"),
        ({"pull": "{{ value }}", "default": 1}, "default"),
    ],
)
def test_what_has_no_effect_is_said(rule: dict[str, Any], key: str) -> None:
    (fault,) = faults({"note": {"path": "memo", **rule}})
    assert (fault.code, fault.at) == ("no-effect", ("fields", "note", key))


# ---- lists within lists


NESTED = {
    "path": "lines",
    "each": {
        "name": "title",
        "kind": {"path": "type", "values": {"seat": "SEAT"}, "unknown": "keep"},
        "extras": {
            "path": "options",
            "each": {
                "name": {
                    "path": "label",
                    "push": "{{ value | upper }} in {{ record.name }}",
                    "required": True,
                },
                "count": {"path": "quantity", "default": 1},
            },
        },
    },
}


def test_items_of_items_are_mapped_with_the_whole_record_in_sight() -> None:
    made = of_parts(NESTED)
    record = {
        "name": "Gala",
        "tags": [
            {"name": "A1", "kind": "seat", "extras": [{"name": "meal", "count": 2}, {"name": "drink"}]},
            {"name": "A2", "kind": "box", "extras": []},
        ],
    }
    assert made.push(record, SCOPE) == {
        "lines": [
            {
                "title": "A1",
                "type": "SEAT",
                "options": [
                    {"label": "MEAL in Gala", "quantity": 2},
                    {"label": "DRINK in Gala", "quantity": 1},
                ],
            },
            {"title": "A2", "type": "box", "options": []},
        ]
    }
    assert made.pushed_paths == (
        "lines[0].title",
        "lines[0].type",
        "lines[0].options[0].label",
        "lines[0].options[0].quantity",
    )


def test_a_fault_names_the_item_within_the_item() -> None:
    made = of_parts(NESTED)
    with pytest.raises(MappingError, match=r"`tags\[1\]`: `extras\[0\]`: `name` has no value") as caught:
        made.push({"name": "Gala", "tags": [{"name": "A1"}, {"extras": [{"count": 1}]}]}, SCOPE)
    assert caught.value.field == "tags"


# ---- compiling once


def test_the_same_is_compiled_once_and_anything_else_anew() -> None:
    rule = {"note": {"path": "memo", "push": "{{ value | upper }}"}}
    first = mapping(rule)
    assert mapping({"note": {"path": "memo", "push": "{{ value | upper }}"}}) is first
    assert mapping({"note": {"path": "memo", "push": "{{ value | lower }}"}}) is not first
    assert mapping(rule, "push") is not first
    other = replace(RESOURCE, fields=FieldCatalog({"memo": Field("memo", required=True)}))
    made, _ = compile_mapping({"direction": "bidirectional", "fields": rule}, other, ENTITY)
    assert made is not None
    assert made is not first
    with pytest.raises(MappingError, match="the other side requires one"):
        made.push({}, SCOPE)


def test_no_more_are_kept_than_there_is_room_for() -> None:
    for number in range(MOST_COMPILED + 10):
        mapping({"note": f"memo{number}"}, "push")
    assert len(compiled_mappings) == MOST_COMPILED


# ---- ceilings


def test_lists_that_multiply_are_stopped() -> None:
    many = "{{ [" + "{}, " * 300 + "] }}"
    rule: dict[str, Any] = {"path": "d", "push": "{{ item.x | default('leaf') }}"}
    for path in "cba":
        rule = {"path": path, "push": many, "each": {"x": rule}}
    made = of_parts(rule)
    began = time.thread_time()
    with pytest.raises(MappingError, match="too much work"):
        made.push({}, SCOPE)
    assert time.thread_time() - began < 3


def test_all_rules_of_a_record_share_one_ceiling() -> None:
    big = "y" * 1_000_000
    made = mapping(
        {f"f{n}": {"path": f"f{n}", "push": "{{ record.note | upper }}"} for n in range(20)}, "push"
    )
    with pytest.raises(MappingError, match="`f16`: this takes too much work"):
        made.push({"note": big}, SCOPE)
    assert len(made.push({"note": big[:10_000]}, SCOPE)) == 20  # and the next record has one of its own


@pytest.mark.parametrize("condition", ["{{ record.note is defined }}", "note != 'x'"])
def test_conditions_of_rules_are_within_the_ceiling_of_their_record(condition: str) -> None:
    rule = {"push": "{{ record.note | upper }}", "only_when": condition}
    made = mapping({f"f{n}": {"path": f"f{n}", **rule} for n in range(20)}, "push")
    with pytest.raises(MappingError, match="this takes too much work"):
        made.push({"note": "y" * 1_000_000}, SCOPE)
    back = {"pull": "{{ record.memo | upper }}", "only_pull_when": condition.replace("note", "memo")}
    pulled = mapping({f"f{n}": {"path": f"f{n}", **back} for n in range(20)}, "pull")
    with pytest.raises(MappingError, match="this takes too much work"):
        pulled.pull({"memo": "y" * 1_000_000}, SCOPE)


def test_a_condition_has_room_of_its_own_after_a_record_that_had_too_much() -> None:
    lists = {"path": "text", "only_when": "length(to_string(@)) > `3`"}
    made = mapping({"note": lists}, "push")
    with pytest.raises(MappingError, match="too much work"):
        made.push({"note": "y" * 20_000_000}, SCOPE)
    assert made.push({"note": "short"}, SCOPE) == {"text": "short"}


def test_a_value_nested_too_deeply_fails_its_record() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(MappingError, match="`tags`: the value is nested too deeply"):
        mapping({"tags": "memo"}).push({"tags": deep}, SCOPE)


# ---- what decides when both sides changed --------------------------------------------------------------


def test_a_fields_own_rule_comes_before_the_mappings() -> None:
    made = mapping(
        {"note": {"path": "a", "when_both_changed": "manual"}, "name": "b"}, when_both_changed="newest_wins"
    )
    assert [made.conflict_rule(name) for name in ("note", "name")] == ["manual", "newest_wins"]


def test_a_mapping_that_only_pulls_takes_theirs() -> None:
    made = mapping({"note": "a"}, "pull", when_both_changed="manual")
    assert made.conflict_rule("note") == "provider_wins"


def test_of_several_rules_of_a_field_one_says_what_decides() -> None:
    rules = [{"path": "a", "when_both_changed": "manual"}, {"path": "b", "pull": "{{ value }}"}]
    assert mapping({"note": rules}).conflict_rule("note") == "manual"
    (fault,) = faults({"note": [rules[0], {**rules[1], "when_both_changed": "provider_wins"}]})
    assert (fault.code, fault.at) == ("no-effect", ("fields", "note", 1, "when_both_changed"))


def test_places_are_all_that_a_fields_rules_read_from_or_write_to() -> None:
    made = mapping(
        {
            "note": [
                {"path": "a.b", "push": "{{ value }}"},
                {"path": "a.c", "pull": "{{ value }}"},
                {"path": "a.c", "pull": "{{ value | upper }}"},
            ],
            "name": {"path": "d", "push": "{{ value }}"},
        }
    )
    assert {name: [path.text for path in paths] for name, paths in made.places.items()} == {
        "note": ["a.b", "a.c"]
    }
