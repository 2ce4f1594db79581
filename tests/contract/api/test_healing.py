"""Healing over the API: what surely took a field's place, what a person accepts, and what was observed."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from engine.client import ProviderClient
from engine.errors import UnavailableError
from engine.reading import ReadRecord
from server.db.models import IntegrationConfig
from server.host import SqlHost
from server.services import mappings
from server.services.audit import Actor
from server.services.mappings import Asked
from server.worker import schedule
from tests.contract.api.conftest import API, OURS, Hub
from tests.contract.api.test_mappings import SMALL, act, change, connected, faults, look, versions

__all__ = ["connected"]  # a fixture

ASKED = Asked(OURS, "stripe")
TEXTS = {"event.description": "product.description", "event.url": "product.url"}


async def was_called(hub: Hub, **paths: str) -> None:
    """As if fields of the provider had been called otherwise when they were mapped."""
    answer = await change(hub, {**SMALL, **TEXTS, "customer.phone": "customer.phone"})
    assert answer.status_code == 200, answer.text
    await as_if_called(hub, **paths)


async def as_if_called(hub: Hub, **paths: str) -> None:
    for path, earlier in paths.items():
        await hub.execute(
            "UPDATE integration_configs SET field_mappings ="
            " replace(field_mappings::text, :now, :earlier)::jsonb",
            now=f': "{path}"',  # the value, and not our field, which is the key
            earlier=f': "{earlier}"',
        )


async def link(hub: Hub, *ids: str) -> None:
    for each in ids:
        await hub.execute(
            "INSERT INTO record_links (venue_id, integration_type, entity, resource, local_id, remote_id)"
            " VALUES (:venue, 'stripe', 'event', 'product', :id, :remote)",
            venue=OURS,
            id=each,
            remote=f"prod_{each}",
        )


@pytest.fixture
def both_sides(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Records of ours by id; theirs are what the test puts beside them."""
    theirs: dict[str, dict[str, Any]] = {}

    async def look_up(self: ProviderClient, resource: str, ids: list[str]) -> dict[str, ReadRecord]:
        return {each: ReadRecord(theirs[each], each, None, False, None) for each in ids if each in theirs}

    async def fetch(self: SqlHost, entity: str, ids: list[str]) -> dict[str, dict[str, Any]]:
        return {each: {"id": each, "name": "Night", "url": f"https://a.example/{each}"} for each in ids}

    monkeypatch.setattr(ProviderClient, "look_up", look_up)
    monkeypatch.setattr(SqlHost, "fetch", fetch)
    return theirs


async def rename(hub: Hub) -> dict[str, Any]:
    answer = await act(hub, "heal")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


async def test_what_is_surely_the_same_takes_its_place_and_is_undone_for_good(connected: Hub) -> None:
    await was_called(connected, url="URL")
    data = await rename(connected)
    moved = {"source": "event.url", "target": "product.URL", "gone": "product.URL", "to": "product.url"}
    assert (data["applied"], data["broken"]) == ([moved], [])
    assert (await look(connected)).json()["data"]["mappings"]["event.url"] == "product.url"
    [version, *_] = await versions(connected)
    assert version["reason"] == "healed"
    [applied] = version["heal_plan"]["applied"]
    assert applied["shadow"] == {"records": 0, "compared": 0, "equal": 0, "empty": 0}
    assert applied["evidence"][0] == "the same words, written differently"
    assert (await act(connected, "undo")).status_code == 200
    await as_if_called(connected, url="URL")
    data = await rename(connected)
    assert data["applied"] == []
    assert [each["proposal"] for each in data["broken"]] == ["product.url"]


async def test_recent_records_that_agree_let_it_happen(
    connected: Hub, both_sides: dict[str, dict[str, Any]]
) -> None:
    await was_called(connected, url="URL")
    await link(connected, "1", "2", "3")
    for each in "123":
        both_sides[f"prod_{each}"] = {"url": f"https://a.example/{each}"}
    assert len((await rename(connected))["applied"]) == 1
    [version, *_] = await versions(connected)
    [applied] = version["heal_plan"]["applied"]
    assert applied["shadow"] == {"records": 3, "compared": 3, "equal": 3, "empty": 0}


async def test_recent_records_that_differ_forbid_it(
    connected: Hub, both_sides: dict[str, dict[str, Any]]
) -> None:
    await was_called(connected, url="URL")
    await link(connected, "1", "2", "3")
    for each in "123":
        both_sides[f"prod_{each}"] = {"url": "https://elsewhere.example"}
    data = await rename(connected)
    assert (data["applied"], [each["proposal"] for each in data["broken"]]) == ([], ["product.url"])


async def test_what_cannot_be_tried_does_not_happen(
    connected: Hub, both_sides: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(self: ProviderClient, resource: str, ids: list[str]) -> dict[str, ReadRecord]:
        raise UnavailableError("Stripe doesn't answer")

    monkeypatch.setattr(ProviderClient, "look_up", look_up)
    await was_called(connected, url="URL")
    await link(connected, "1")
    assert (await rename(connected))["applied"] == []


async def test_a_person_is_asked_about_identity_and_accepts(connected: Hub) -> None:
    await was_called(connected, phone="phoneNumber")
    data = await rename(connected)
    [broken] = data["broken"]
    assert (broken["proposal"], broken["protected"]) == ("customer.phone", "identity")
    pair = {"source": "customer.phone", "target": "customer.phoneNumber", "to": "customer.phone"}
    tried = await act(connected, "heal/try", **pair)
    assert tried.json()["data"] == {"records": 0, "compared": 0, "equal": 0, "empty": 0}
    answer = await act(connected, "heal/accept", **pair)
    assert answer.json() == {"success": True, "message": "Mapping healed"}
    data = (await look(connected)).json()["data"]
    assert (data["mappings"]["customer.phone"], data["broken"]) == ("customer.phone", [])
    [version, *_] = await versions(connected)
    assert (version["reason"], len(version["heal_plan"]["applied"])) == ("healed", 1)
    assert faults(await act(connected, "heal/accept", **pair), 404, "NOT_FOUND") == {}


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("product.name", "is a field of `customer`"),
        ("customer.nothing", "isn't known"),
        ("customer.email", "already written"),
    ],
)
async def test_what_cannot_take_the_place_is_refused(connected: Hub, to: str, said: str) -> None:
    await was_called(connected, phone="phoneNumber")
    await rename(connected)
    pair = {"source": "customer.phone", "target": "customer.phoneNumber", "to": to}
    [message] = faults(await act(connected, "heal/accept", **pair), 400, "MAPPING_INVALID").values()
    assert said in message


async def test_trying_needs_a_pair_that_is_broken(connected: Hub) -> None:
    pair = {"source": "event.name", "target": "product.name", "to": "product.url"}
    assert faults(await act(connected, "heal/try", **pair), 404, "NOT_FOUND") == {}


async def test_what_was_observed_and_what_changed(connected: Hub) -> None:
    await connected.execute(
        "INSERT INTO observed_fields (venue_id, integration_type, resource, path, types, shapes, seen_count,"
        " record_count, null_count)"
        " VALUES (:venue, 'stripe', 'customer', 'email', '{text}', '{email}', 8, 10, 2)",
        venue=OURS,
    )
    await connected.execute(
        "INSERT INTO drift_events (venue_id, integration_type, resource, path, kind, before, after, evidence)"
        " VALUES (:venue, 'stripe', 'customer', 'mail', 'renamed', '{mail}', '{email}', '{why}')",
        venue=OURS,
    )
    params = {"venueId": str(OURS)}
    [seen] = (await connected.get(f"{API}/mappings/stripe/observed", params=params)).json()["data"]
    assert (seen["path"], seen["shapes"], seen["share"], seen["null_share"]) == (
        "email",
        ["email"],
        0.8,
        0.25,
    )
    [event] = (await connected.get(f"{API}/mappings/stripe/drift", params=params)).json()["data"]
    assert (event["kind"], event["path"], event["after"]) == ("renamed", "mail", ["email"])


async def test_the_mapping_is_looked_at_when_something_changed(connected: Hub) -> None:
    await was_called(connected, url="URL")
    await connected.execute(
        "INSERT INTO drift_events (venue_id, integration_type, resource, path, kind, before, after, evidence)"
        " VALUES (:venue, 'stripe', 'product', 'URL', 'removed', '{text}', '{}', '{}'),"
        " (:nobody, 'stripe', 'product', 'URL', 'removed', '{text}', '{}', '{}')",
        venue=OURS,
        nobody=uuid4(),
    )
    assert await schedule.check_drift(connected.context) is True  # type: ignore[arg-type]  # no limits needed
    assert (await look(connected)).json()["data"]["mappings"]["event.url"] == "product.url"
    assert await schedule.check_drift(connected.context) is False  # type: ignore[arg-type]
    [version, *_] = await versions(connected)
    assert version["created_by"] == "hub"


async def observe(hub: Hub, path: str, *, resource: str = "product", **state: bool) -> None:
    """Note what is known of a field: `removed` from records, or `refused` by the provider, or neither."""
    await hub.execute(
        "INSERT INTO observed_fields (venue_id, integration_type, resource, path, types, seen_count,"
        " record_count, missed_count, removed_at, refused_at)"
        " VALUES (:venue, 'stripe', :resource, :path, '{text}', 40, 40, 90,"
        " CASE WHEN :removed THEN now() END, CASE WHEN :refused THEN now() END)"
        " ON CONFLICT (venue_id, integration_type, resource, path) DO UPDATE"
        " SET removed_at = excluded.removed_at, refused_at = excluded.refused_at",
        venue=OURS,
        resource=resource,
        path=path,
        removed=state.get("removed", False),
        refused=state.get("refused", False),
    )


def told(data: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    return [(each["target"], each["because"], each["proposal"]) for each in data["broken"]]


async def test_a_field_that_records_lost_is_marked_and_mended_when_it_is_back(connected: Hub) -> None:
    await was_called(connected)
    await observe(connected, "url", removed=True)
    data = await rename(connected)
    assert (told(data), data["applied"]) == ([("product.url", "missed", None)], [])
    assert (await look(connected)).json()["data"]["broken"] == [
        {
            "source": "event.url",
            "target": "product.url",
            "message": "`product.url` is missing from records that used to have it",
        }
    ]
    [version, *_] = await versions(connected)
    assert version["heal_plan"]["broken"][0]["because"] == "missed"
    await observe(connected, "url")
    data = await rename(connected)
    assert (told(data), data["mended"]) == ([], [["event.url", "product.url"]])
    assert (await look(connected)).json()["data"]["broken"] == []


async def test_a_field_that_only_lists_leave_out_is_not_gone(
    connected: Hub, both_sides: dict[str, dict[str, Any]]
) -> None:
    await was_called(connected)
    await link(connected, "1", "2")
    both_sides["prod_1"], both_sides["prod_2"] = {"name": "Night"}, {"url": None}
    await observe(connected, "url", removed=True)
    assert told(await rename(connected)) == []
    both_sides["prod_2"] = {"name": "Night"}
    assert told(await rename(connected)) == [("product.url", "missed", None)]
    both_sides["prod_2"] = {"url": None}  # it was decided; records that are looked at by syncs mend it
    assert told(await rename(connected)) == [("product.url", "missed", None)]


async def test_what_cannot_be_looked_at_is_not_taken_for_gone(
    connected: Hub, both_sides: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(self: ProviderClient, resource: str, ids: list[str]) -> dict[str, ReadRecord]:
        raise UnavailableError("Stripe doesn't answer")

    monkeypatch.setattr(ProviderClient, "look_up", look_up)
    await was_called(connected)
    await link(connected, "1")
    await observe(connected, "url", removed=True)
    assert told(await rename(connected)) == []


async def test_a_field_the_provider_refuses_is_marked_until_a_person_tries_again(connected: Hub) -> None:
    await was_called(connected)
    await observe(connected, "url", refused=True)
    assert told(await rename(connected)) == [("product.url", "refused", None)]
    assert len(await versions(connected)) == 3
    assert told(await rename(connected)) == [("product.url", "refused", None)]
    assert len(await versions(connected)) == 3
    [message] = await connected.rows("SELECT payload FROM outbox WHERE topic = 'mapping.healed'")
    assert message["payload"]["pairs"] == [
        {
            "source": "event.url",
            "target": "product.url",
            "because": "refused",
            "outcome": "broken",
            "to": None,
            "evidence": [],
        }
    ]
    pairs = (await look(connected)).json()["data"]["mappings"]
    assert (await change(connected, pairs)).status_code == 200
    data = await rename(connected)
    assert (told(data), data["mended"]) == ([], [])


async def test_a_mapping_that_does_not_work_without_the_pair_is_left_out_whole(connected: Hub) -> None:
    await was_called(connected)
    await observe(connected, "email", resource="customer", refused=True)
    assert told(await rename(connected))[0][:2] == ("customer.email", "refused")
    async with connected.context.sessions() as session:
        integration = (await session.scalars(select(IntegrationConfig))).one()
    matched = [each.get("match_on") for each in integration.field_mappings["mappings"]]
    assert "email" in matched  # nothing else says which customers are the same
    made = mappings.compiled(connected.context.catalog, integration)
    assert {each.entity for each in made} == {"event"}


async def test_what_is_undone_is_counted(connected: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(mappings, "HEALS", SimpleNamespace(add=lambda *labels: counted.append(labels)))
    await was_called(connected, url="URL", phone="phoneNumber")
    await connected.execute(
        "UPDATE mapping_versions SET mappings = (SELECT field_mappings FROM integration_configs)"
    )
    await rename(connected)
    await rename(connected)  # says the same, and is no news
    assert counted == [("stripe", "proposed"), ("stripe", "applied")]
    assert (await act(connected, "undo")).status_code == 200
    assert counted[2:] == [("stripe", "undone")]
    assert (await act(connected, "undo")).status_code == 200  # back to what was healed
    assert counted[3:] == []


async def test_nothing_happens_where_nothing_is_gone(connected: Hub) -> None:
    healed = await mappings.heal(connected.context, Actor("hub"), ASKED)
    assert (healed.moved, healed.broken) == ((), ())
    assert await versions(connected) == []
