"""Mappings over the API: what they may name, changing, trying, healing and undoing them."""

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest

from server.catalog import template_id
from tests.contract.api.conftest import API, OTHERS, OURS, USER_ID, Hub, bearer

MAPPINGS = f"{API}/mappings/stripe/mappings"
MUSIC, DEFAULT = (str(template_id("stripe", name)) for name in ("music-venue", "default"))
# A mapping of products and customers only; `price` needs more than two pairs.
SMALL = {
    "event.name": "product.name",
    "customer.email": "customer.email",
    "customer.first_name": "customer.name",
}


@pytest.fixture
async def connected(hub: Hub) -> Hub:
    answer = await hub.connect_by_key()
    assert answer.status_code == 200, answer.text
    return hub


async def look(hub: Hub) -> httpx.Response:
    answer = await hub.get(MAPPINGS, params={"venueId": str(OURS)})
    assert answer.status_code == 200, answer.text
    return answer


async def change(hub: Hub, pairs: Any, **headers: str) -> httpx.Response:
    body = {"venueId": str(OURS), "mappings": pairs}
    return await hub.http.put(MAPPINGS, json=body, headers={**bearer(), **headers})


async def act(hub: Hub, what: str, **body: Any) -> httpx.Response:
    return await hub.post(f"{MAPPINGS}/{what}", {"venueId": str(OURS), **body})


async def versions(hub: Hub, **params: Any) -> list[dict[str, Any]]:
    answer = await hub.get(f"{MAPPINGS}/history", params={"venueId": str(OURS), **params})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def faults(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return {each["field"]: each["message"] for each in answer.json()["details"]}


# --- looking


async def test_what_mappings_may_name(hub: Hub) -> None:
    answer = await hub.get(f"{API}/mappings/stripe/fields", headers=bearer("user"))
    data = answer.json()["data"]
    assert {"event.name", "event.id", "customer.email", "ticket_type.available"} <= set(data["source"])
    assert {"product.name", "price.unit_amount", "customer.address.city", "charge.id"} <= set(data["target"])
    assert data["pairs"] == {
        "event": ["product", "price"],
        "ticket_type": ["price"],
        "customer": ["customer"],
        "order": ["charge"],
    }
    assert data["required"] == ["product.name", "price.product", "price.currency"]


async def test_fields_of_nobody(hub: Hub) -> None:
    answer = await hub.get(f"{API}/mappings/strip/fields")
    assert faults(answer, 404, "INVALID_PROVIDER") == {}
    assert "`stripe`" in answer.json()["error"]


async def test_a_templates_mapping_in_its_simple_form(connected: Hub) -> None:
    answer = await look(connected)
    data = answer.json()["data"]
    assert (data["templateId"], data["template"], data["broken"]) == (MUSIC, "music-venue", [])
    assert data["templateAppliedAt"] is not None
    assert data["mappings"]["event.name"] == "product.name"
    assert data["mappings"]["event.id"] == [
        "product.metadata.event_id",
        "price.product",
        "price.lookup_key",
        "price.metadata.event_id",
    ]
    assert data["mappings"]["order.number"] == ["charge.payment_intent", "charge.id"]
    assert answer.headers["etag"] == (await look(connected)).headers["etag"]


# --- changing


async def test_the_whole_template_sent_back_is_the_same_mapping(connected: Hub) -> None:
    before = (await look(connected)).json()["data"]["mappings"]
    answer = await change(connected, before)
    assert answer.json() == {"success": True, "message": "Mappings updated successfully"}
    after = (await look(connected)).json()["data"]
    assert after["mappings"] == before
    assert (after["templateId"], after["templateAppliedAt"], after["template"]) == (None, None, "music-venue")
    [row] = await connected.rows("SELECT field_mappings, template_id FROM integration_configs")
    template = next(
        each for each in connected.context.catalog.templates["stripe"] if each.name == "music-venue"
    )
    assert row["field_mappings"]["mappings"] == list(template.written)
    assert row["template_id"] is None


async def test_a_pair_that_stays_keeps_its_calculation_and_a_new_one_copies(connected: Hub) -> None:
    pairs = {**SMALL, "event.description": "product.description", "event.capacity": "product.tax_code"}
    assert (await change(connected, pairs)).status_code == 200
    [row] = await connected.rows("SELECT field_mappings FROM integration_configs")
    product, customer = row["field_mappings"]["mappings"]
    assert product["fields"] == {
        "name": "name",
        "description": {"path": "description", "push": "{{ value | default('Live at ' ~ venue.name) }}"},
        "capacity": {"path": "tax_code", "push": "{{ value | string }}"},
    }
    assert product["only_when"] == "{{ record.status in ['on_sale', 'sold_out'] }}"
    assert list(customer["fields"]) == ["email", "first_name"]
    assert customer["match_on"] == "email"


async def test_everything_that_is_wrong_is_named_with_the_nearest_that_is_right(connected: Hub) -> None:
    before = (await look(connected)).headers["etag"]
    answer = await change(
        connected,
        {
            **SMALL,
            "event.nmae": "product.description",
            "evnt.url": "product.url",
            "event.url": "product.urll",
            "event.capacity": "produkt.name",
            "customer.phone": "product.name",
            "event.ticket_types": "product.tax_code",
            "nonsense": "nothing",
        },
    )
    found = faults(answer, 400, "MAPPING_INVALID")
    assert found == {
        "mappings.event.nmae": "`event` has no field `nmae`; did you mean `name`?",
        "mappings.evnt.url": "there is no entity `evnt`; did you mean `event`?",
        "mappings.event.url": "`product` has no field `urll`; did you mean `url`?",
        "mappings.event.capacity": "Stripe has no `produkt`; did you mean `product`?",
        "mappings.customer.phone": "`customer` can't be mapped to `product`: it goes with customer",
        "mappings.event.ticket_types": "`event.ticket_types` (list, read-only) and `product.tax_code` (text) "
        "don't go together in a mapping with direction push; it goes with `images`",
        "mappings.nonsense": found["mappings.nonsense"],
    }
    assert found["mappings.nonsense"].startswith("there is no entity `nonsense`; ")
    assert (await look(connected)).headers["etag"] == before
    assert await versions(connected) == []


async def test_two_fields_cannot_go_to_one(connected: Hub) -> None:
    answer = await change(connected, {**SMALL, "event.description": "product.name"})
    [message] = faults(answer, 400, "MAPPING_INVALID").values()
    assert message == "`name` is already written by another rule of this mapping"


async def test_what_is_required_and_is_not_mapped_is_named(connected: Hub) -> None:
    answer = await change(
        connected,
        {
            "event.url": "product.url",
            "event.price": "price.unit_amount",
            "customer.city": "customer.address.city",
        },
    )
    assert faults(answer, 422, "REQUIRED_FIELD_MISSING") == {
        "product.name": "Stripe needs `product.name`, and no field of `event` is mapped to it",
        "price.product": "Stripe needs `price.product`, and no field of `event` is mapped to it",
        "price.currency": "Stripe needs `price.currency`, and no field of `event` is mapped to it",
        "customer.email": "`customer.email` pairs records with those of `customer`, so it has to be mapped",
    }


async def test_what_is_referred_to_has_to_be_mapped(connected: Hub) -> None:
    answer = await change(connected, {"event.id": "price.product", "event.currency": "price.currency"})
    assert faults(answer, 400, "MAPPING_INVALID") == {
        "mappings.event.id": "`event.id` refers to a `product` of theirs, and nothing is mapped to `product`"
    }


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ({"event.name": 7}, "mappings.event.name"),
        ({"event.name": []}, "mappings.event.name"),
        ({"event.name": ""}, "mappings.event.name"),
        ("event.name", "mappings"),
    ],
)
async def test_a_body_of_another_shape(connected: Hub, pairs: Any, field: str) -> None:
    assert field in faults(await change(connected, pairs), 400, "VALIDATION_ERROR")


async def test_an_empty_mapping(connected: Hub) -> None:
    assert faults(await change(connected, {}), 400, "MAPPING_INVALID") == {"mappings": "there is none"}


async def test_strange_text_is_refused_like_any_other(connected: Hub) -> None:
    for text in (
        "customer.'; DROP TABLE x",
        "{{ 7777 * 7777 }}",
        "customer.\x00",
        "customer.[0]",
        "customer.",
    ):
        answer = await change(connected, {**SMALL, "customer.phone": text})
        assert "mappings.customer.phone" in faults(answer, 400, "MAPPING_INVALID")
        assert "60481729" not in answer.text


async def test_nobody_overwrites_what_another_changed(connected: Hub) -> None:
    tag = (await look(connected)).headers["etag"]
    changed = await change(connected, SMALL, **{"If-Match": tag})
    assert changed.status_code == 200
    stale = await change(connected, {**SMALL, "customer.phone": "customer.phone"}, **{"If-Match": tag})
    now = (await look(connected)).headers["etag"]
    assert changed.headers["etag"] == now != tag
    assert faults(stale, 409, "CONFLICT") == {"If-Match": f"it is {now} now"}
    for fits in (f'"other", {now}', "*"):
        assert (await change(connected, SMALL, **{"If-Match": fits})).status_code == 200


async def test_of_two_at_once_with_the_same_tag_one_wins(connected: Hub) -> None:
    tag = (await look(connected)).headers["etag"]
    answers = await asyncio.gather(
        change(connected, SMALL, **{"If-Match": tag}),
        change(connected, {**SMALL, "customer.phone": "customer.phone"}, **{"If-Match": tag}),
    )
    assert sorted(each.status_code for each in answers) == [200, 409]


async def test_a_change_is_a_version_and_in_the_audit_log(connected: Hub) -> None:
    await change(connected, SMALL)
    new, old = await versions(connected)
    assert (old["version"], old["reason"], old["template_id"]) == (1, "initial", MUSIC)
    assert (new["version"], new["reason"], new["template_id"]) == (2, "updated", None)
    assert (new["mappings"], new["created_by"]) == (SMALL, USER_ID)
    assert [each["version"] for each in await versions(connected, limit=1)] == [2]
    [entry] = await connected.rows("SELECT * FROM audit_log WHERE action = 'mapping.updated'")
    assert (entry["venue_id"], entry["integration_type"], entry["actor"]) == (OURS, "stripe", USER_ID)
    assert (entry["before"]["template_id"], entry["after"]["template_id"]) == (MUSIC, None)
    assert entry["before"]["mappings"]["event.name"] == ["product.name"]
    assert entry["after"]["mappings"] == {source: [target] for source, target in SMALL.items()}
    assert entry["details"] == {"version": 2}


async def test_versions_come_in_pages(connected: Hub) -> None:
    for _ in range(2):
        await change(connected, SMALL)
    params = {"venueId": str(OURS), "limit": 2}
    first = (await connected.get(f"{MAPPINGS}/history", params=params)).json()
    assert first["meta"]["total"] == 3
    params["cursor"] = first["meta"]["next_cursor"]
    second = (await connected.get(f"{MAPPINGS}/history", params=params)).json()
    assert [each["version"] for each in (*first["data"], *second["data"])] == [3, 2, 1]


async def test_a_running_sync_begins_again_and_looks_at_every_record(connected: Hub) -> None:
    await connected.execute(
        "INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, status,"
        " lease_owner, lease_expires_at, fencing_token) VALUES (:venue, 'stripe', 'sync', 'full',"
        " 'processing', 'w', now() + interval '1 minute', 4)",
        venue=OURS,
    )
    for venue in (OURS, OTHERS):
        await connected.execute(
            "INSERT INTO sync_watermarks (venue_id, integration_type, entity, resource, direction, position)"
            " VALUES (:venue, 'stripe', 'event', 'product', 'push', '{}')",
            venue=venue,
        )
    assert (await change(connected, SMALL)).status_code == 200
    [row] = await connected.rows("SELECT status, lease_owner, fencing_token FROM sync_queue")
    assert row == {"status": "recovering", "lease_owner": None, "fencing_token": 5}
    assert await connected.rows("SELECT venue_id FROM sync_watermarks") == [{"venue_id": OTHERS}]


async def test_connecting_again_keeps_a_mapping_of_ones_own(connected: Hub) -> None:
    await change(connected, SMALL)
    assert (await connected.connect_by_key()).status_code == 200
    data = (await look(connected)).json()["data"]
    assert (data["mappings"], data["templateId"]) == (SMALL, None)


# --- templates


async def test_a_template_by_its_id_and_the_one_that_suits(connected: Hub) -> None:
    used = "SELECT usage_count FROM field_mapping_templates WHERE id = CAST(:id AS uuid)"
    [before] = await connected.rows(used, id=DEFAULT)
    answer = await act(connected, "apply-template", templateId=DEFAULT)
    assert answer.json() == {
        "success": True,
        "message": "Template applied successfully",
        "data": {"templateId": DEFAULT, "template": "default", "because": "it was asked for"},
    }
    [after] = await connected.rows(used, id=DEFAULT)
    assert after["usage_count"] == before["usage_count"] + 1
    await change(connected, SMALL)
    suits = await act(connected, "apply-template")
    assert suits.headers["etag"] == (await look(connected)).headers["etag"]
    assert suits.json()["data"] == {
        "templateId": MUSIC,
        "template": "music-venue",
        "because": "the venue's type is `music_venue`",
    }
    data = (await look(connected)).json()["data"]
    assert (data["templateId"], data["mappings"]["event.ticket"]) == (MUSIC, "price.nickname")
    [entry, _] = await connected.rows(
        "SELECT details FROM audit_log WHERE action = 'mapping.template_applied' ORDER BY id DESC"
    )
    assert entry["details"]["because"] == "the venue's type is `music_venue`"


async def listed(hub: Hub, venue: UUID = OURS) -> dict[str, dict[str, Any]]:
    params = {"venueId": str(venue)}
    answer = await hub.get(f"{API}/mappings/stripe/templates", params=params, headers=bearer("admin"))
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["data"]}


async def test_templates_say_how_much_they_are_used(hub: Hub) -> None:
    before = await listed(hub)
    assert (before["music-venue"]["inUse"], before["default"]["inUse"]) == (0, 0)
    await hub.connect_by_key()  # chosen by itself
    given = await listed(hub)
    assert given["music-venue"]["usageCount"] == before["music-venue"]["usageCount"] + 1
    assert given["music-venue"]["lastUsedAt"] is not None
    assert (given["music-venue"]["inUse"], given["music-venue"]["adapted"]) == (1, 0)
    await hub.connect_by_key()  # it has one already
    await act(hub, "apply-template", templateId=DEFAULT)  # chosen by a person
    await act(hub, "apply-template")
    await act(hub, "reset")
    left = await listed(hub)
    assert left["music-venue"]["usageCount"] == before["music-venue"]["usageCount"] + 2
    assert left["default"]["usageCount"] == before["default"]["usageCount"] + 2
    assert (left["music-venue"]["inUse"], left["default"]["inUse"]) == (0, 1)
    await change(hub, SMALL)
    own = await listed(hub)
    assert (own["default"]["inUse"], own["default"]["adapted"]) == (0, 1)
    await hub.post(f"{API}/stripe/disconnect", {"venueId": str(OURS)})
    assert (await listed(hub))["default"]["adapted"] == 0


async def test_the_template_that_suits_a_venue_says_why(hub: Hub) -> None:
    ours, others = await listed(hub), await listed(hub, OTHERS)
    assert {name for name, each in ours.items() if each["because"]} == {"music-venue"}
    assert ours["music-venue"]["because"] == "the venue's type is `music_venue`"
    assert {name: each["because"] for name, each in others.items() if each["because"]} == {
        "theater": "the venue's type is `theatre`"
    }
    assert ours["theater"]["extends"] == "default"
    assert ours["default"]["extends"] is None
    assert ours["theater"]["venueTypes"] == ["theater", "theatre", "playhouse", "opera_house"]
    assert ours["music-venue"]["templateId"] == MUSIC


async def test_a_template_of_nobody_or_of_another_provider(connected: Hub) -> None:
    for identity in (str(OURS), str(template_id("square", "default"))):
        answer = await act(connected, "apply-template", templateId=identity)
        assert (answer.status_code, answer.json()["code"]) == (404, "TEMPLATE_NOT_FOUND")
    assert "templateId" in faults(
        await act(connected, "apply-template", templateId="x"), 400, "VALIDATION_ERROR"
    )


async def test_back_to_the_default(connected: Hub) -> None:
    await change(connected, SMALL)
    answer = await act(connected, "reset")
    assert answer.json()["message"] == "Mappings reset to default template"
    data = (await look(connected)).json()["data"]
    assert (data["templateId"], data["template"]) == (DEFAULT, "default")
    [row] = await connected.rows("SELECT field_mappings FROM integration_configs")
    assert row["field_mappings"] == {}


# --- undoing


async def test_undo_brings_back_what_the_last_change_replaced(connected: Hub) -> None:
    whole = (await look(connected)).json()["data"]["mappings"]
    await change(connected, SMALL)
    answer = await act(connected, "undo")
    assert answer.json() == {"success": True, "message": "Mappings restored successfully"}
    data = (await look(connected)).json()["data"]
    assert (data["mappings"], data["templateId"]) == (whole, MUSIC)
    assert (await act(connected, "undo", version=2)).status_code == 200
    assert (await look(connected)).json()["data"]["mappings"] == SMALL
    assert [(each["version"], each["reason"]) for each in await versions(connected)] == [
        (4, "restored"),
        (3, "restored"),
        (2, "updated"),
        (1, "initial"),
    ]


async def test_nothing_to_undo(connected: Hub) -> None:
    for body in ({}, {"version": 7}):
        answer = await act(connected, "undo", **body)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


# --- healing


async def test_all_is_well(connected: Hub) -> None:
    answer = await act(connected, "heal")
    assert answer.json()["data"]["broken"] == []
    assert answer.json()["message"].startswith("Mappings healed successfully: all ")
    assert await versions(connected) == []


async def test_a_field_that_is_gone_is_marked_and_proposed_and_nothing_is_removed(connected: Hub) -> None:
    await change(connected, {**SMALL, "customer.phone": "customer.phone"})
    # As if the provider's field had been called so when it was mapped.
    await connected.execute(
        "UPDATE integration_configs SET field_mappings ="
        ' replace(field_mappings::text, \'"phone": "phone"\', \'"phone": "phones"\')::jsonb'
    )
    report = (await act(connected, "heal")).json()
    [successor] = report["data"]["broken"][0].pop("proposals")
    assert (successor["path"], successor["evidence"]) == ("customer.phone", ["the names share `phone`"])
    assert report["message"].startswith("1 of 4 mapped pairs have a field that isn't known any more.")
    assert report["data"] == {
        "checked": 4,
        "applied": [],
        "broken": [
            {
                "source": "customer.phone",
                "target": "customer.phones",
                "gone": "customer.phones",
                "proposal": "customer.phone",
                "protected": "identity",
                "because": "unknown",
            }
        ],
        "mended": [],
    }
    data = (await look(connected)).json()["data"]
    assert data["mappings"]["customer.phone"] == "customer.phones"
    assert data["broken"] == [
        {
            "source": "customer.phone",
            "target": "customer.phones",
            "message": "`customer.phones` isn't known any more; `customer.phone` is like it",
        }
    ]
    assert [each["reason"] for each in await versions(connected)] == ["healed", "updated", "initial"]
    again = (await act(connected, "heal")).json()["data"]
    assert again["broken"][0].pop("proposals") == [successor]
    assert again == report["data"]
    assert len(await versions(connected)) == 3
    refused = await change(connected, data["mappings"])
    assert list(faults(refused, 400, "MAPPING_INVALID")) == ["mappings.customer.phone"]
    assert (
        await change(connected, {**data["mappings"], "customer.phone": "customer.phone"})
    ).status_code == 200
    assert (await look(connected)).json()["data"]["broken"] == []


# --- trying


async def test_a_trial_shows_what_comes_of_it_and_saves_nothing(connected: Hub) -> None:
    before = (await look(connected)).headers["etag"]
    sample = {"event": {"id": "e1", "name": "Rock Concert", "price": 50, "currency": "EUR"}}
    body = {
        "mappings": {
            "event.name": "product.name",
            "event.price": "price.unit_amount",
            "event.currency": "price.currency",
            "event.id": ["price.product", "price.lookup_key"],
        },
        "sampleData": sample,
    }
    answer = await connected.post(f"{MAPPINGS}/test", body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["original"] == sample
    assert data["mapped"] == {
        "product": {"name": "Rock Concert"},
        "price": {"unit_amount": 5000, "currency": "eur", "product": "<product id>", "lookup_key": "e1"},
    }
    how = {(each["source"], each["target"]): each["rule"] for each in data["rules"]}
    assert how == {
        ("event.name", "product.name"): "copied",
        ("event.price", "price.unit_amount"): "calculated",
        ("event.currency", "price.currency"): "calculated",
        ("event.id", "price.product"): "link",
        ("event.id", "price.lookup_key"): "copied",
    }
    assert data["problems"] == []
    assert (await look(connected)).headers["etag"] == before


async def test_a_trial_of_a_pull(hub: Hub) -> None:
    body = {
        "mappings": {"order.total": "charge.amount_captured", "order.currency": "charge.currency"},
        "sampleData": {"charge": {"amount_captured": 1999, "currency": "eur"}},
        "direction": "pull",
    }
    data = (await hub.post(f"{MAPPINGS}/test", body)).json()["data"]
    assert float(data["mapped"]["order"]["total"]) == 19.99
    assert data["mapped"]["order"]["currency"] == "EUR"
    assert {each["target"] for each in data["rules"]} == {"order.total", "order.currency"}


async def test_a_trial_tells_what_saving_would_refuse_and_what_fails(hub: Hub) -> None:
    body = {
        "mappings": {"event.price": "price.unit_amount", "event.url": "product.url"},
        "sampleData": {"event": {"price": 0.001, "currency": "EUR"}, "guest": {}},
    }
    data = (await hub.post(f"{MAPPINGS}/test", body)).json()["data"]
    problems = {each["field"]: each["message"] for each in data["problems"]}
    assert {"product.name", "price.product", "price.currency", "event.price", "sampleData.guest"} == set(
        problems
    )
    assert "decimals" in problems["event.price"]


async def test_a_trial_of_what_is_not_there(hub: Hub) -> None:
    body = {"mappings": {"event.nmae": "product.name"}, "sampleData": {"event": {}}}
    assert "mappings.event.nmae" in faults(await hub.post(f"{MAPPINGS}/test", body), 400, "MAPPING_INVALID")


async def test_a_trial_tells_how_each_value_came_about(connected: Hub) -> None:
    await change(connected, {**SMALL, "event.capacity": "product.tax_code"})
    body = {
        "mappings": {
            **SMALL,
            "event.capacity": "product.tax_code",
            "event.description": "product.description",
            "event.url": "product.url",
        },
        "sampleData": {"event": {"name": "Rock", "capacity": 300, "status": "draft"}},
        "venueId": str(OURS),
    }
    data = (await connected.post(f"{MAPPINGS}/test", body)).json()["data"]
    told = {each["target"]: each for each in data["rules"]}
    name, capacity, text, url = (
        told[f"product.{each}"] for each in ("name", "tax_code", "description", "url")
    )
    assert (name["before"], name["after"], name["outcome"]) == ("Rock", "Rock", "made")
    assert (name["layer"], name["file"], name["version"]) == ("default", "stripe/default.yaml", None)
    assert capacity["written"] == {"path": "tax_code", "push": "{{ value | string }}"}
    assert (capacity["before"], capacity["after"]) == (300, "300")
    assert (capacity["layer"], capacity["file"], capacity["version"]) == ("venue", None, 2)
    assert text["reads"] == ["event.description", "venue.name"]
    assert (text["before"], text["layer"]) == (None, "music-venue")
    assert text["after"].startswith("Live at ")
    assert (url["outcome"], url["after"], url["why"]) == ("absent", None, "the record has no `url`")
    assert data["records"] == [
        {
            "entity": "event",
            "resource": "product",
            "wanted": False,
            "condition": "{{ record.status in ['on_sale', 'sold_out'] }}",
        }
    ]


async def test_a_trial_of_a_pair_that_nobody_has_yet(hub: Hub) -> None:
    body = {"mappings": {"event.capacity": "product.tax_code"}, "sampleData": {"event": {"capacity": 3}}}
    data = (await hub.post(f"{MAPPINGS}/test", body)).json()["data"]
    [rule] = data["rules"]
    assert (rule["layer"], rule["file"], rule["line"], rule["after"]) == ("request", None, None, "3")


# --- layers


async def layers(hub: Hub) -> dict[str, Any]:
    answer = await hub.get(f"{MAPPINGS}/layers", params={"venueId": str(OURS)}, headers=bearer("user"))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


async def test_a_templates_layers(connected: Hub) -> None:
    data = await layers(connected)
    assert (data["layers"], data["version"], data["changes"]) == (["default", "music-venue"], None, [])
    rules = {(each["source"], each["target"]): each for each in data["rules"]}
    name, ticket = rules["event.name", "product.name"], rules["event.ticket", "price.nickname"]
    assert (name["layer"], name["file"], name["written"]) == ("default", "stripe/default.yaml", "name")
    assert (ticket["layer"], ticket["file"]) == ("music-venue", "stripe/music-venue.yaml")
    pack = (connected.context.settings.templates_dir / "stripe" / "music-venue.yaml").read_text("utf-8")
    assert pack.split("\n")[ticket["line"] - 1].strip() == "ticket:"


async def test_what_a_venue_has_different_is_a_layer_of_its_own(connected: Hub) -> None:
    whole = (await look(connected)).json()["data"]["mappings"]
    own = {name: each for name, each in whole.items() if name not in ("event.url", "order.email")}
    await change(connected, {**own, "event.capacity": "product.tax_code"})
    data = await layers(connected)
    assert (data["layers"], data["version"]) == (["default", "music-venue", "venue"], 2)
    assert data["changes"] == [
        {
            "entity": "event",
            "resource": "product",
            "fields": {"url": None, "capacity": {"path": "tax_code", "push": "{{ value | string }}"}},
        },
        {"entity": "order", "resource": "charge", "fields": {"email": None}},
    ]
    of_the_venue = [each for each in data["rules"] if each["layer"] == "venue"]
    assert [(each["source"], each["version"], each["file"]) for each in of_the_venue] == [
        ("event.capacity", 2, None)
    ]


# --- who may


async def test_who_may_change_and_try(connected: Hub) -> None:
    trial = {"mappings": SMALL, "sampleData": {}, "venueId": str(OURS)}
    for role, status in (("user", 403), ("venue_admin", 200), ("admin", 200)):
        answer = await connected.http.put(
            MAPPINGS, json={"venueId": str(OURS), "mappings": SMALL}, headers=bearer(role)
        )
        assert answer.status_code == status
        assert (await connected.post(f"{MAPPINGS}/test", trial, headers=bearer(role))).status_code == status
    for venue in (OTHERS, OURS):
        caller = bearer("venue_admin", OTHERS if venue == OURS else OURS)
        body = {"venueId": str(venue), "mappings": SMALL}
        assert (await connected.http.put(MAPPINGS, json=body, headers=caller)).status_code == 403
        answer = await connected.post(f"{MAPPINGS}/test", {**trial, "venueId": str(venue)}, headers=caller)
        assert answer.status_code == 403


async def test_without_an_integration(hub: Hub) -> None:
    assert (await change(hub, SMALL)).json()["code"] == "INTEGRATION_NOT_FOUND"
    for method, path in (
        ("GET", f"{API}/mappings/stripe/fields"),
        ("PUT", MAPPINGS),
        ("POST", f"{MAPPINGS}/test"),
    ):
        assert (await hub.http.request(method, path)).status_code == 401
