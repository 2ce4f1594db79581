"""What a mapping makes of a record, told rule by rule: each way a value can come about, or not."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any

import pytest

from engine.documents import read_document
from engine.explaining import Explained, Explanation, Way, explain, made_up_links
from engine.expressions import ABSENT
from engine.layering import Origin
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import MappingScope
from engine.previews import previews, read_samples, sample_files
from engine.templates import load_template

ROOT = FilePath(__file__).parents[3]
VENUE = {"id": "v", "name": "Salle", "currency": "EUR"}


@pytest.fixture(scope="module")
def platform() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


@pytest.fixture(scope="module")
def stripe() -> Connector:
    return load_connector(ROOT / "connectors" / "stripe.yaml")


@pytest.fixture(scope="module")
def square() -> Connector:
    return load_connector(ROOT / "connectors" / "square.yaml")


def told_of(
    connector: Connector,
    platform: Platform,
    pair: tuple[str, str],
    fields: dict[str, Any],
    record: dict[str, Any],
    way: Way = "push",
    links: dict[tuple[str, str], str] | None = None,
    **head: Any,
) -> Explanation:
    """Explain a mapping of these fields that goes both ways."""
    entity, resource = pair
    written = {"entity": entity, "resource": resource, "direction": "bidirectional", **head, "fields": fields}
    return explain(
        written,
        connector.resources[resource],
        platform.entities[entity],
        record,
        MappingScope(venue=VENUE, links=links or {}),
        way,
    )


CUSTOMER = ("customer", "customer")


@pytest.mark.parametrize(
    ("rule", "record", "kind", "outcome", "after", "why"),
    [
        ("phone", {"phone": "1"}, "copied", "made", "1", ""),
        ("phone", {}, "copied", "absent", ABSENT, "the record has no `phone`"),
        ("phone", {"phone": None}, "copied", "made", None, "sent as null: that empties it"),
        ({"path": "phone", "push": "{{ value }}"}, {"phone": "1"}, "copied", "made", "1", ""),
        ({"path": "phone", "push": "first_name || phone"}, {"phone": "1"}, "query", "made", "1", ""),
        ({"path": "phone", "push": "{{ value | upper }}"}, {"phone": "a"}, "calculated", "made", "A", ""),
        ({"path": "phone", "push": "{{ 'x' }}"}, {}, "constant", "made", "x", ""),
        ({"path": "phone", "values": {"a": "A"}}, {"phone": "a"}, "values", "made", "A", ""),
        ({"path": "phone", "values": {"a": "A"}}, {"phone": "b"}, "values", "failed", ABSENT,
         "`phone` has a value that its `values` don't name"),
        ({"path": "phone", "values": {"a": "A"}, "unknown": "leave_out"}, {"phone": "b"}, "values", "absent",
         ABSENT, "`values` don't name `b`, and `unknown` says leave_out"),
        ({"path": "phone", "values": {"a": "A"}, "unknown": "keep"}, {"phone": "b"}, "values", "made", "b",
         "`values` don't name it, and `unknown` says keep"),
        ({"path": "phone", "default": "-"}, {"phone": None}, "copied", "default", "-",
         "there is none, so `default` is taken"),
        ({"path": "phone", "default": "-"}, {"phone": "1"}, "copied", "made", "1", ""),
        ({"path": "phone", "required": True}, {}, "copied", "failed", ABSENT,
         "`phone` has no value, and this mapping requires one"),
        ({"path": "phone", "push": "{{ value | minor_units('EUR') }}"}, {"phone": "x"}, "calculated",
         "failed", ABSENT, "`phone`: "),
        ({"path": "phone", "only_when": "first_name"}, {"phone": "1", "first_name": ""}, "copied",
         "not wanted", ABSENT, "`only_when` doesn't hold: first_name"),
        ({"path": "phone", "only_when": "first_name"}, {"phone": "1", "first_name": "A"}, "copied",
         "made", "1", ""),
        ({"path": "phone", "link": "product"}, {"phone": "e1"}, "link", "made", "prod_1",
         "the `product` that is linked with it"),
        ({"path": "phone", "link": "product"}, {"phone": "e2"}, "link", "failed", ABSENT,
         "`phone` refers to a `product` that isn't linked yet"),
        ({"path": "phone", "link": "product", "optional": True}, {"phone": "e2"}, "link", "absent", ABSENT,
         "the `product` it refers to isn't linked yet, and `optional` leaves it out"),
    ],
)  # fmt: skip
def test_each_way_a_value_comes_about(
    stripe: Connector, platform: Platform, rule: Any, record: dict[str, Any], kind: str, outcome: str,
    after: Any, why: str,
) -> None:  # fmt: skip
    told = told_of(stripe, platform, CUSTOMER, {"phone": rule}, record, links={("product", "e1"): "prod_1"})
    [only] = told.rules
    assert (only.source, only.target) == ("customer.phone", "customer.phone")
    assert (only.kind, only.outcome, only.after) == (kind, outcome, after)
    assert why in only.why if outcome == "failed" else only.why == why
    assert only.before == record.get("phone", ABSENT)
    assert only.rule == rule
    assert (told.error is not None) == (outcome == "failed")


def test_one_that_fails_keeps_no_other_from_being_shown(stripe: Connector, platform: Platform) -> None:
    fields = {"phone": {"path": "phone", "required": True}, "email": "email"}
    told = told_of(stripe, platform, CUSTOMER, fields, {"email": "a@b.example"})
    assert [(each.source, each.outcome) for each in told.rules] == [
        ("customer.phone", "failed"),
        ("customer.email", "made"),
    ]
    assert told.mapped is None
    assert (told.error_field, told.error) == ("phone", "`phone` has no value, and this mapping requires one")


@pytest.mark.parametrize(
    ("push", "reads"),
    [
        ("{{ record.first_name ~ record.last_name }}", ("customer.first_name", "customer.last_name")),
        ("{{ value ~ venue.currency }}", ("customer.phone", "venue.currency")),
        ("{{ 'record.email' }}", ()),
        ("first_name || last_name || 'phone'", ("customer.first_name", "customer.last_name")),
        ("{{ value }}", ("customer.phone",)),
    ],
)  # fmt: skip
def test_the_fields_that_a_rule_reads(
    stripe: Connector, platform: Platform, push: str, reads: tuple[str, ...]
) -> None:
    record = {"first_name": "A", "last_name": "B", "phone": "1"}
    [only] = told_of(stripe, platform, CUSTOMER, {"phone": {"path": "phone", "push": push}}, record).rules
    assert only.reads == reads


def test_of_several_rules_a_pull_takes_the_first_with_a_value(stripe: Connector, platform: Platform) -> None:
    fields = {"phone": ["name", "phone", "description"]}
    theirs = {"name": None, "phone": "1", "description": "2"}
    told = told_of(stripe, platform, CUSTOMER, fields, theirs, "pull")
    assert told.mapped == {"phone": "1"}
    assert [(each.source, each.target, each.outcome, each.why) for each in told.rules] == [
        ("customer.name", "customer.phone", "passed over", "a rule after it gives `customer.phone`"),
        ("customer.phone", "customer.phone", "made", ""),
        ("customer.description", "customer.phone", "passed over", "a rule before it gives `customer.phone`"),
    ]


def test_a_pull_has_its_own_defaults_conditions_and_fields(stripe: Connector, platform: Platform) -> None:
    fields = {
        "phone": {"path": "phone", "pull_default": "-", "default": "+"},
        "city": {"path": "address.city", "only_pull_when": "name"},
        "country": {"path": "address.country", "pull": "{{ record.address.country | upper }}"},
        "email": {"path": "email", "push": "{{ value }}"},
    }
    theirs = {"address": {"city": "Nîmes", "country": "fr"}}
    told = told_of(stripe, platform, CUSTOMER, fields, theirs, "pull", only_pull_when="id")
    assert [(each.source, each.outcome, each.after) for each in told.rules] == [
        ("customer.phone", "default", "-"),
        ("customer.address.city", "not wanted", ABSENT),
        ("customer.address.country", "made", "FR"),
    ]
    assert told.rules[2].reads == ("customer.address.country",)
    assert (told.wanted, told.condition) == (False, "id")
    assert told.mapped == {"phone": "-", "country": "FR"}


def test_whether_a_record_is_wanted(stripe: Connector, platform: Platform) -> None:
    wanted = told_of(stripe, platform, CUSTOMER, {"email": "email"}, {"email": "a"}, only_when="email")
    assert (wanted.wanted, wanted.condition, wanted.condition_error) == (True, "email", None)
    broken = told_of(stripe, platform, CUSTOMER, {"email": "email"}, {}, only_when="{{ 1 / record.email }}")
    assert not broken.wanted
    assert broken.condition_error is not None
    assert broken.condition_error.startswith("`only_when`: ")


@pytest.mark.parametrize("value", [[1], {"a": []}, True, 3, 1.5, "x", None])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_record_may_hold_anything(stripe: Connector, platform: Platform, value: Any, way: Way) -> None:
    """Somebody tries a mapping on whatever they have: what fails is told, and nothing is raised."""
    table = {"a": "A", "3": 3, "true": True}
    fields = {
        "phone": {"path": "phone", "values": table, "unknown": "keep"},
        "city": {"path": "address.city", "values": table, "unknown": "leave_out"},
        "id": {"path": "metadata.customer_id", "push": "{{ value.a.b | upper }}"},
        "email": {"path": "email", "link": "product", "optional": True},
        "country": {"path": "address.country", "push": "length(name)", "pull": "length(name)"},
        "name": {"path": "preferred_locales", "each": {"x": "y", "z": {"path": "w", "each": {"v": "v"}}}},
    }
    record = {"phone": value, "city": value, "id": value, "email": value, "name": value, "address": value,
              "metadata": value, "preferred_locales": value}  # fmt: skip
    told = told_of(stripe, platform, CUSTOMER, fields, record, way)
    assert {each.outcome for each in told.rules} <= {"made", "absent", "failed"}
    json.dumps(told.to_json(), default=str)
    phone = next(each for each in told.rules if "phone" in each.source)
    if value is not None:
        named = value is True or value == 3
        assert phone.why == ("" if named else "`values` don't name it, and `unknown` says keep")


def test_what_a_new_record_needs_and_no_rule_sends(stripe: Connector, platform: Platform) -> None:
    told = told_of(stripe, platform, ("event", "product"), {"url": "url"}, {"url": "u"}, direction="push")
    assert told.missing == ("product.name",)


def test_what_is_longer_than_it_may_be(square: Connector, platform: Platform) -> None:
    fields = {"first_name": "given_name", "last_name": {"path": "family_name", "default": "x"}}
    told = told_of(square, platform, CUSTOMER, fields, {"first_name": "a" * 301, "last_name": "b"})
    first, last = told.rules
    declared = square.resources["customer"].fields["given_name"]
    assert (declared.at_most, declared.too_long) == (300, "reject")
    assert (first.outcome, first.why) == ("failed", "`given_name` takes at most 300 characters, and has 301")
    assert last.after == "b"


ITEMS = {
    "name": "item_data.name",
    "ticket_types": {
        "path": "item_data.variations",
        "push": "{{ value | default([]) or [{'id': record.id, 'name': 'Ticket', 'price': record.price}] }}",
        "each": {
            "name": "item_variation_data.name",
            "price": {
                "path": "item_variation_data.price_money.amount",
                "push": "{{ value | minor_units(record.currency) }}",
            },
        },
    },
}


def test_the_items_of_a_list(square: Connector, platform: Platform) -> None:
    record = {
        "id": "e1",
        "name": "Rock",
        "currency": "EUR",
        "ticket_types": [{"name": "A", "price": Decimal(10)}, {"name": "B", "price": Decimal("2.5")}],
    }
    told = told_of(square, platform, ("event", "item"), ITEMS, record, direction="push")
    variations = told.rules[1]
    assert (variations.kind, variations.outcome) == ("list", "made")
    name, price = variations.items
    assert (name.source, name.target) == (
        "event.ticket_types[].name",
        "item.item_data.variations[].item_variation_data.name",
    )
    assert (name.before, name.after) == (["A", "B"], ["A", "B"])
    assert (price.before, price.after) == ([Decimal(10), Decimal("2.5")], [1000, 250])
    assert price.reads == ("event.ticket_types[].price", "event.currency")
    [made_up] = [
        each.before
        for each in told_of(square, platform, ("event", "item"), ITEMS, {**record, "ticket_types": []},
                            direction="push").rules[1].items
        if each.source.endswith("name")
    ]  # fmt: skip
    assert made_up == ["Ticket"]


def test_an_item_that_fails_is_told_in_its_place(square: Connector, platform: Platform) -> None:
    record = {"id": "e", "name": "R", "currency": "EUR", "ticket_types": [{"name": "A", "price": "0.001"}]}
    told = told_of(square, platform, ("event", "item"), ITEMS, record, direction="push")
    name, price = told.rules[1].items
    assert (name.outcome, name.after, price.outcome) == ("made", ["A"], "failed")
    assert "ticket_types[0]" in price.why


def test_rules_are_told_with_where_they_were_written(stripe: Connector, platform: Platform) -> None:
    written = {**dict(zip(("entity", "resource"), CUSTOMER, strict=True)), "direction": "push",
               "fields": {"id": ["metadata.a", "metadata.b"]}}  # fmt: skip
    told = explain(
        written, stripe.resources["customer"], platform.entities["customer"], {"id": "c"},
        MappingScope(venue=VENUE), "push", lambda field, number: Origin(field, "f.yaml", number),
    )  # fmt: skip
    assert [each.origin for each in told.rules] == [Origin("id", "f.yaml", 0), Origin("id", "f.yaml", 1)]
    assert told.to_json()["rules"][1] == {
        "source": "customer.id", "target": "customer.metadata.b", "kind": "copied", "rule": "metadata.b",
        "expression": None, "reads": ["customer.id"], "outcome": "made", "why": "", "before": "c",
        "after": "c", "layer": "id", "file": "f.yaml", "line": 1,
    }  # fmt: skip


def found(mapped: Any, rule: Explained, way: Way) -> Any:
    """Return what the whole has where a rule's value goes."""
    from engine.expressions import Path

    path = rule.target.partition(".")[2]
    return Path.parse(path).find(mapped) if way == "push" else mapped.get(path, ABSENT)


@pytest.mark.parametrize("name", ["square/default", "stripe/default"])
def test_what_is_told_is_what_a_sync_makes(name: str, platform: Platform) -> None:
    """Over all samples of a pack: every value told is the one in the whole, and none of it is untold."""
    connector = load_connector(ROOT / "connectors" / f"{name.split('/')[0]}.yaml")
    file = ROOT / "mapping-templates" / f"{name}.yaml"
    template = load_template(file, connector, platform)
    [samples] = sample_files(file, template.layers)
    seen = 0
    for preview in previews(template, connector, platform, read_samples(read_document(samples))):
        told = preview.explanation
        failed = [each for each in told.rules if each.outcome == "failed"]
        if told.mapped is None:
            assert failed, preview.sample
            continue
        for rule in told.rules:
            if rule.outcome in ("made", "default") and rule.why[:3] != "cut":
                assert found(told.mapped, rule, told.direction) == rule.after, (preview.sample, rule.target)
                seen += 1
            elif rule.outcome == "absent" and told.direction == "push":
                assert found(told.mapped, rule, told.direction) is ABSENT
    assert seen > 100


def test_links_are_made_up_for_all_that_is_referred_to(platform: Platform) -> None:
    connector = load_connector(ROOT / "connectors" / "stripe.yaml")
    template = load_template(ROOT / "mapping-templates/stripe/default.yaml", connector, platform)
    price = next(each for each in template.mappings if each.resource == "price")
    links = made_up_links(price, {"id": "e1"}, "push")
    assert links["product", "e1"] == "<product id>"
    charge = next(each for each in template.mappings if each.resource == "charge")
    assert made_up_links(charge, {"customer": "cus_1"}, "pull")["customer", "cus_1"] == "<id of our customer>"
