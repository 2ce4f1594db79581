"""The simple form of mappings: to and from the form that templates are written in."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drift import KnownField
from engine.fields import FieldCatalog
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import MappingScope
from engine.pairs import (
    compile_pairs,
    gone_pairs,
    known_fields,
    moved,
    pairs_of,
    without_pairs,
    write_pairs,
)
from engine.templates import load_template

ROOT = FilePath(__file__).parents[3]
TEMPLATES = sorted((ROOT / "mapping-templates").glob("*/*.yaml"))

BASE: list[dict[str, Any]] = [
    {
        "entity": "event",
        "resource": "product",
        "direction": "push",
        "only_when": "name",
        "fields": {
            "name": {"path": "name", "push": "{{ value | upper }}"},
            "id": ["metadata.event_id", {"path": "statement_descriptor", "push": "{{ value }}"}],
            "made": {"path": "active", "push": "{{ true }}"},
        },
    },
    {
        "entity": "customer",
        "resource": "customer",
        "direction": "bidirectional",
        "fields": {"email": "email", "phone": "phone"},
    },
]


@pytest.fixture(scope="module")
def platform() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


@pytest.fixture(scope="module")
def stripe() -> Connector:
    return load_connector(ROOT / "connectors" / "stripe.yaml")


def test_pairs_name_every_rule() -> None:
    assert pairs_of(BASE) == {
        "event.name": ["product.name"],
        "event.id": ["product.metadata.event_id", "product.statement_descriptor"],
        "event.made": ["product.active"],
        "customer.email": ["customer.email"],
        "customer.phone": ["customer.phone"],
    }


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_pack_goes_there_and_back(file: FilePath, platform: Platform) -> None:
    connector = load_connector(ROOT / "connectors" / f"{file.parent.name}.yaml")
    written = list(load_template(file, connector, platform).written)
    made, faults = write_pairs(pairs_of(written), [written], connector, platform)
    assert (made, faults) == (written, [])
    assert [list(each["fields"]) for each in made] == [list(each["fields"]) for each in written]
    assert gone_pairs(written, connector, platform) == []


def test_order_does_not_matter_and_what_is_left_out_goes(stripe: Connector, platform: Platform) -> None:
    pairs = {"event.made": ["product.active"], "event.name": ["product.name"]}
    made, faults = write_pairs(pairs, [BASE], stripe, platform)
    assert faults == []
    assert made == [{**BASE[0], "fields": {name: BASE[0]["fields"][name] for name in ("name", "made")}}]
    assert list(made[0]["fields"]) == ["name", "made"]


def test_the_first_that_knows_a_pair_says_how(stripe: Connector, platform: Platform) -> None:
    own = [{**BASE[0], "direction": "push", "fields": {"name": "name"}}]
    pairs = {"event.name": ["product.name"], "event.made": ["product.active"]}
    [made], _ = write_pairs(pairs, [own, BASE], stripe, platform)
    assert made["fields"] == {"name": "name", "made": {"path": "active", "push": "{{ true }}"}}


@pytest.mark.parametrize(
    ("source", "target", "rule"),
    [
        ("event.description", "product.description", "description"),
        ("event.capacity", "product.tax_code", {"path": "tax_code", "push": "{{ value | string }}"}),
        (
            "event.price",
            "product.tax_code",
            {"path": "tax_code", "push": "{{ value | string }}"},
        ),
        ("customer.city", "customer.address.city", "address.city"),
        # Ours can't be set, so it only goes there.
        (
            "customer.id",
            "customer.metadata.customer_id",
            {"path": "metadata.customer_id", "push": "{{ value }}"},
        ),
    ],
)
def test_what_a_new_pair_becomes(
    stripe: Connector, platform: Platform, source: str, target: str, rule: Any
) -> None:
    pairs = {"event.name": ["product.name"], "customer.email": ["customer.email"], source: [target]}
    made, faults = write_pairs(pairs, [BASE], stripe, platform)
    assert faults == []
    written = next(each for each in made if each["entity"] == source.split(".")[0])
    assert written["fields"][source.split(".")[1]] == rule


def test_money_goes_to_a_whole_number_in_the_currencys_smallest_unit(
    stripe: Connector, platform: Platform
) -> None:
    from decimal import Decimal

    head = {"entity": "event", "resource": "price", "direction": "push", "fields": {"currency": "currency"}}
    link = {"path": "product", "push": "{{ value }}"}
    base = [{**head, "fields": {**head["fields"], "id": link}}]  # type: ignore[dict-item]  # plain data
    pairs = {**pairs_of(base), "event.price": ["price.unit_amount"]}
    made, faults = write_pairs(pairs, [base], stripe, platform)
    assert faults == []
    (mapping,), wrong = compile_pairs(made, stripe, platform)
    assert wrong == []
    scope = MappingScope(venue={"currency": "EUR"})
    for currency, price, amount in (("JPY", "500", 500), ("EUR", "19.99", 1999), ("KWD", "1.5", 1500)):
        record = {"id": "e", "currency": currency, "price": Decimal(price)}
        assert mapping.push(record, scope)["unit_amount"] == amount
    assert mapping.push({"id": "e", "currency": "EUR", "price": None}, scope).get("unit_amount") is None


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("event.ticket_types", "product.tax_code"),  # a list is no text
        ("event.name", "product.active"),
        ("event.name", "product.created"),  # theirs can't be set
        ("event.status", "product.active"),
        ("customer.id", "customer.created"),  # neither can be set
    ],
)
def test_what_does_not_go_together(stripe: Connector, platform: Platform, source: str, target: str) -> None:
    pairs = {"event.name": ["product.name"], "customer.email": ["customer.email"]}
    known = {**pairs, source: [*pairs.get(source, []), target]}
    _, [fault] = write_pairs(known, [BASE], stripe, platform)
    assert (fault.source, fault.target, fault.kind) == (source, target, "invalid")
    assert "don't go together" in fault.message


def test_an_entity_goes_only_where_a_template_brings_it(stripe: Connector, platform: Platform) -> None:
    _, faults = write_pairs(
        {"order.email": ["customer.email"], "event.name": ["customer.name"]}, [BASE], stripe, platform
    )
    assert [fault.message for fault in faults] == [
        "`order` can't be mapped to `customer`: it goes with nothing here",
        "`event` can't be mapped to `customer`: it goes with product",
    ]


def test_broken_pairs_are_left_out_and_a_mapping_without_any_too() -> None:
    left = without_pairs(
        BASE,
        {
            ("event.id", "product.metadata.event_id"),
            ("customer.email", "customer.email"),
            ("customer.phone", "customer.phone"),
        },
    )
    assert len(left) == 1
    assert left[0]["fields"] == {
        "name": {"path": "name", "push": "{{ value | upper }}"},
        "id": {"path": "statement_descriptor", "push": "{{ value }}"},
        "made": {"path": "active", "push": "{{ true }}"},
    }


def test_what_is_gone_on_either_side(stripe: Connector, platform: Platform) -> None:
    mappings = [
        {**BASE[0], "fields": {"nmae": "name", "url": "urls", "x": {"path": "active", "push": "{{ true }}"}}},
        {**BASE[1], "resource": "buyer", "fields": {"email": "email"}},
        {**BASE[1], "fields": {"telephone_number": "qqq"}},
    ]
    found = [(each.source, each.gone, each.proposal) for each in gone_pairs(mappings, stripe, platform)]
    assert found == [
        ("event.nmae", "event.nmae", "event.name"),
        ("event.url", "product.urls", "product.url"),
        ("customer.email", "buyer.email", None),
        ("customer.telephone_number", "customer.telephone_number", "customer.phone"),
    ]


def test_the_one_that_is_surely_the_same_takes_its_place(stripe: Connector, platform: Platform) -> None:
    own = {"path": "statementDescriptor", "push": "{{ value | string }}"}
    mappings = [{**BASE[0], "fields": {"name": "name", "capacity": own}}]
    [gone] = gone_pairs(mappings, stripe, platform)
    assert (gone.gone, gone.successor) == ("product.statementDescriptor", "product.statement_descriptor")
    [made] = moved(mappings, gone, "product.statement_descriptor")
    capacity = {**own, "path": "statement_descriptor"}
    assert made == {**BASE[0], "fields": {"name": "name", "capacity": capacity}}
    assert gone_pairs([made], stripe, platform) == []


def test_a_field_of_ours_is_renamed_where_it_pairs_records_too(stripe: Connector, platform: Platform) -> None:
    mappings = [{**BASE[1], "match_on": "mail", "fields": {"mail": "email", "phone": "phone"}}]
    [gone] = gone_pairs(mappings, stripe, platform)
    assert (gone.gone, gone.successor) == ("customer.mail", None)  # whose address it is, a person says
    [made] = moved(mappings, gone, "customer.email")
    assert (made["match_on"], made["fields"]) == ("email", {"email": "email", "phone": "phone"})


LOST = KnownField("url", ("text",), records=40, seen=40, missed=90, removed=True)
URL = [{**BASE[0], "fields": {"name": "name", "url": "url"}}]


def test_what_records_lost_is_gone_though_the_manifest_knows_it(
    stripe: Connector, platform: Platform
) -> None:
    seen = {"product": {"url": LOST, "name": KnownField("name", ("text",), records=130, seen=130)}}
    [gone] = gone_pairs(URL, stripe, platform, seen)
    assert (gone.gone, gone.because, gone.proposal, gone.successor) == ("product.url", "missed", None, None)
    refused = {"product": {"url": KnownField("url", refused=True)}}
    assert [each.because for each in gone_pairs(URL, stripe, platform, refused)] == ["refused"]
    assert gone_pairs(URL, stripe, platform, {"product": {"url": replace(LOST, removed=False)}}) == []


def test_a_new_field_of_records_is_proposed_and_needs_the_manifest(
    stripe: Connector, platform: Platform
) -> None:
    later = KnownField("page_url", ("text",), records=90, seen=90)
    earlier = KnownField("site_url", ("text",), records=130, seen=130)
    seen = {"product": {"url": LOST, "page_url": later, "site_url": earlier}}
    [gone] = gone_pairs(URL, stripe, platform, seen)
    assert (gone.proposal, gone.successor) == ("product.page_url", None)
    assert gone.plan is not None
    assert [each.path for each in gone.plan.proposals] == ["page_url"]


def test_a_declared_field_takes_the_place_of_what_records_lost(stripe: Connector, platform: Platform) -> None:
    hinted = replace(stripe.resources["product"], renamed={"url": "statement_descriptor"})
    connector = replace(stripe, resources={**stripe.resources, "product": hinted})
    [gone] = gone_pairs(URL, connector, platform, {"product": {"url": LOST}})
    assert gone.successor == "product.statement_descriptor"
    taken = [{**BASE[0], "fields": {"name": "statement_descriptor", "url": "url"}}]
    [gone] = gone_pairs(taken, connector, platform, {"product": {"url": LOST}})
    assert gone.successor is None
    also_lost = {"product": {"url": LOST, "statement_descriptor": replace(LOST, path="statement_descriptor")}}
    [gone] = gone_pairs(URL, connector, platform, also_lost)
    assert gone.successor is None


def test_no_field_takes_the_place_of_two_by_itself(stripe: Connector, platform: Platform) -> None:
    hinted = replace(stripe.resources["product"], renamed={"link": "url", "address": "url"})
    connector = replace(stripe, resources={**stripe.resources, "product": hinted})
    one = [{**BASE[0], "fields": {"name": "name", "url": "link"}}]
    [gone] = gone_pairs(one, connector, platform)
    assert gone.successor == "product.url"
    again = [{**BASE[0], "fields": {"name": "name", "url": "link", "description": "link"}}]
    assert [each.successor for each in gone_pairs(again, connector, platform)] == ["product.url"] * 2
    two = [{**BASE[0], "fields": {"name": "name", "url": "link", "description": "address"}}]
    told = gone_pairs(two, connector, platform)
    assert [(each.successor, each.proposal) for each in told] == [(None, "product.url")] * 2
    assert told[0].plan is not None
    assert "it would take the place of another field that is gone, too" in told[0].plan.proposals[0].doubts


def test_a_mapping_whose_resource_is_gone_is_told_and_the_others_compiled(
    stripe: Connector, platform: Platform
) -> None:
    made, faults = compile_pairs([{**BASE[1], "resource": "buyer"}, BASE[0]], stripe, platform)
    assert [mapping.resource for mapping in made] == ["product"]
    assert [fault.message for fault in faults] == ["`buyer` isn't known any more"]


def test_what_may_be_named(stripe: Connector, platform: Platform) -> None:
    known = known_fields(stripe, platform, BASE)
    assert {"event.id", "event.name", "event.made", "order.total"} <= set(known.sources)
    assert {"product.id", "product.name", "charge.currency"} <= set(known.targets)
    assert known.resources == {"event": ("product",), "customer": ("customer",)}
    assert known.required == ("product.name",)


# ---- there and back, whatever a template may say ---------------------------------------------------------

WORDS = st.sampled_from(["on", "off", "", "a b", "é"])
VALUES = st.one_of(WORDS, st.integers(-3, 3), st.booleans())
PATHS = st.sampled_from(["name", "url", "metadata.a", "address.lines[0].x", "variations[1].price.amount"])
WAYS = st.sampled_from(["{{ value }}", "{{ value | upper }}", "{{ 'x' }}", "name || url"])


def item_rules(depth: int) -> st.SearchStrategy[Any]:
    """Return rules of a list's items, which may hold lists of their own."""
    optional: dict[str, Any] = {
        "push": WAYS,
        "values": st.dictionaries(WORDS, VALUES, min_size=1),
        "unknown": st.sampled_from(["fail", "leave_out", "keep"]),
        "default": VALUES,
        "required": st.booleans(),
    }
    if depth:
        optional["each"] = st.dictionaries(st.sampled_from("uvw"), item_rules(depth - 1), min_size=1)
    return PATHS | st.fixed_dictionaries({"path": PATHS}, optional=optional)


RULE = PATHS | st.fixed_dictionaries(
    {"path": PATHS},
    optional={
        "push": WAYS,
        "pull": WAYS,
        "link": st.sampled_from(["product", "customer"]),
        "optional": st.booleans(),
        "values": st.dictionaries(WORDS, VALUES, min_size=1),
        "unknown": st.sampled_from(["fail", "leave_out", "keep"]),
        "default": VALUES | st.lists(WORDS, max_size=2),
        "pull_default": VALUES | st.dictionaries(WORDS, WORDS, max_size=2),
        "required": st.booleans(),
        "only_when": st.sampled_from(["name", "{{ record.name }}"]),
        "only_pull_when": st.sampled_from(["id", "{{ record.id }}"]),
        "when_both_changed": st.sampled_from(["newest_wins", "platform_wins", "provider_wins", "manual"]),
        "each": st.dictionaries(st.sampled_from("uvw"), item_rules(1), min_size=1),
        "each_is": st.just("variation"),
    },
)
MAPPINGS = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.sampled_from(["event", "customer"]),
            "resource": st.sampled_from(["product", "price", "customer"]),
            "direction": st.sampled_from(["push", "pull", "bidirectional"]),
            "fields": st.dictionaries(
                st.sampled_from(["id", "name", "status", "made_up"]),
                RULE | st.lists(RULE, min_size=1, max_size=3),
                min_size=1,
            ),
        },
        optional={
            "only_when": st.just("name"),
            "only_pull_when": st.just("id"),
            "match_on": st.just("name"),
            "when_both_changed": st.sampled_from(["newest_wins", "manual"]),
            "when_ours_is_gone": st.just("archive"),
            "when_no_longer_wanted": st.just("archive"),
            "when_theirs_is_gone": st.just("keep"),
            "at_most_gone": st.just("25 percent"),
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda each: (each["entity"], each["resource"]),
)


@given(mappings=MAPPINGS, data=st.data())
@settings(max_examples=30, deadline=None)
def test_whatever_a_template_says_goes_there_and_back(
    mappings: list[dict[str, Any]], data: st.DataObject
) -> None:
    """The pairs, in whatever order people send them, mean the very mappings they were made of."""
    connector, platform = stripe_once(), platform_once()
    pairs = pairs_of(mappings)
    shuffled = {
        source: data.draw(st.permutations(pairs[source]))
        for source in data.draw(st.permutations(list(pairs)))
    }
    made, faults = write_pairs(shuffled, [mappings], connector, platform)
    assert [fault for fault in faults if fault.kind == "invalid"] == []
    assert made == mappings
    assert [list(each["fields"]) for each in made] == [list(each["fields"]) for each in mappings]
    assert pairs_of(made) == pairs


@given(mappings=MAPPINGS, data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_is_left_out_takes_nothing_else_with_it(
    mappings: list[dict[str, Any]], data: st.DataObject
) -> None:
    connector, platform = stripe_once(), platform_once()
    every = [(source, target) for source, targets in pairs_of(mappings).items() for target in targets]
    kept = data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1))
    pairs: dict[str, list[str]] = {}
    for source, target in kept:
        pairs.setdefault(source, []).append(target)
    made, _ = write_pairs(pairs, [mappings], connector, platform)
    assert made == without_pairs(mappings, set(every) - set(kept))
    # What was left out is found again, with its rule, where the mapping comes from.
    again, _ = write_pairs(pairs_of(mappings), [made, mappings], connector, platform)
    by_pair = {(each["entity"], each["resource"]): each for each in again}
    for mapping in mappings:
        found = by_pair[mapping["entity"], mapping["resource"]]
        assert {name: as_list(each) for name, each in sorted_fields(found).items()} == {
            name: as_list(each) for name, each in sorted_fields(mapping).items()
        }
        assert {key: each for key, each in found.items() if key != "fields"} == {
            key: each for key, each in mapping.items() if key != "fields"
        }


def as_list(rules: Any) -> list[str]:
    return sorted(
        json.dumps(each, sort_keys=True) for each in (rules if isinstance(rules, list) else [rules])
    )


def sorted_fields(mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(mapping["fields"].items()))


@cache
def stripe_once() -> Connector:
    return load_connector(ROOT / "connectors" / "stripe.yaml")


@cache
def platform_once() -> Platform:
    return load_platform(ROOT / "connectors" / "platform.yaml")


def test_a_field_that_does_not_fit_is_told_with_those_that_do(stripe: Connector, platform: Platform) -> None:
    pairs = {"event.name": ["product.name", "product.active"]}
    _, [fault] = write_pairs(pairs, [BASE], stripe, platform)
    assert fault.message.startswith(
        "`event.name` (text) and `product.active` (boolean) don't go together in a mapping with direction "
        "push; it goes with `name`, "
    )


def test_a_text_that_may_be_too_long_is_told(platform: Platform) -> None:
    quickbooks = load_connector(ROOT / "connectors" / "quickbooks.yaml")
    entity = platform.entities["customer"]
    longer = replace(entity.fields["first_name"], at_most=300)
    fields = FieldCatalog({**entity.fields, "first_name": longer})
    wide = replace(platform, entities={**platform.entities, "customer": replace(entity, fields=fields)})
    base = [{"entity": "customer", "resource": "customer", "direction": "push", "fields": {"email": "Notes"}}]
    _, faults = write_pairs({"customer.first_name": ["customer.GivenName"]}, [base], quickbooks, wide)
    assert [fault.message for fault in faults if fault.kind == "invalid"] == [
        "`customer.first_name` may have 300 characters, and `customer.GivenName` takes at most 100"
    ]
    _, faults = write_pairs({"customer.first_name": ["customer.GivenName"]}, [base], quickbooks, platform)
    assert [fault for fault in faults if fault.kind == "invalid"] == []
