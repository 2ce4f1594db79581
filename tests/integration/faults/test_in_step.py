"""What a sync is for: both sides hold the same, once, and work that isn't needed isn't done."""

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.integration.hub import (
    PROVIDERS,
    VENUE,
    Hub,
    check_everything_is_in_step,
    counts_of,
    event_id,
    running_hub,
    start_over,
)

EVENTS, CUSTOMERS, SALES = 40, 60, 130


@pytest.fixture(scope="module")
def synced(database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the manifests as shipped, after its first sync with providers that had sales before."""
    with running_hub(database_url, redis_url, tmp_path_factory.mktemp("shipped"), quick=False) as hub:
        start_over(hub, events=EVENTS, customers=CUSTOMERS)
        hub.connect_all()
        hub.control("stripe", "POST", "payments", {"count": SALES, "live": True})
        hub.control("square", "POST", "orders", {"count": SALES})
        hub.sync_all()
        yield hub


def test_every_event_and_customer_is_at_both_providers_once(synced: Hub) -> None:
    check_everything_is_in_step(synced)
    assert len(synced.objects("stripe", "product")) == EVENTS
    assert len(synced.objects("square", "customer")) >= CUSTOMERS


def test_sales_are_in_the_platform_store(synced: Hub) -> None:
    """Totals are in the currency's smallest unit on all three sides, so nothing is converted here."""
    found = sorted(
        synced.database.rows(
            "SELECT total, currency, status FROM platform.orders WHERE venue_id = $1 AND source = 'provider'",
            VENUE,
        )
    )
    paid = [
        (charge["amount_captured"], charge["currency"].upper(), "paid")
        for charge in synced.objects("stripe", "charge")
        if charge["status"] == "succeeded"
    ]
    states = {"COMPLETED": "paid", "CANCELED": "cancelled", "OPEN": "pending"}
    orders = [
        (order["total_money"]["amount"], order["total_money"]["currency"], states[order["state"]])
        for order in synced.objects("square", "order")
        if order["state"] != "DRAFT"
    ]
    assert paid
    assert orders
    assert found == sorted(paid + orders)


def test_a_second_sync_writes_nothing(synced: Hub) -> None:
    before = synced.writes()
    stored = synced.database.rows("SELECT id, updated_at FROM platform.events ORDER BY id")
    for state in synced.sync_all().values():
        assert counts_of(state, "push", "created", "updated", "failed") == {
            "created": 0,
            "updated": 0,
            "failed": 0,
        }
    assert synced.writes() == before
    assert synced.database.rows("SELECT id, updated_at FROM platform.events ORDER BY id") == stored


def test_ten_changed_events_are_ten_writes(synced: Hub) -> None:
    synced.sync_all()
    before = {provider: synced.counts(provider) for provider in PROVIDERS}
    changed = [event_id(number) for number in range(10)]
    synced.database.execute(
        "UPDATE platform.events SET name = name || ' – sold out soon', updated_at = now() "
        "WHERE id = ANY($1::uuid[])",
        changed,
    )
    states = synced.sync_all()
    for state in states.values():
        assert counts_of(state, "push", "created", "updated") == {"created": 0, "updated": 10}
    stripe, square = (synced.counts(provider) for provider in PROVIDERS)
    made = stripe["by_call"]["POST /v1/products/{id}"] - before["stripe"]["by_call"]["POST /v1/products/{id}"]
    assert made == stripe["writes"] - before["stripe"]["writes"] == 10
    assert square["writes"] - before["square"]["writes"] == 1
    assert square["effects"]["item.updated"] - before["square"]["effects"].get("item.updated", 0) == 10
    check_everything_is_in_step(synced)


def test_a_new_price_is_one_new_price_and_the_old_one_retires(synced: Hub) -> None:
    synced.sync_all()
    prices = len(synced.objects("stripe", "price"))
    synced.database.execute(
        "UPDATE platform.events SET price = $2, updated_at = now() WHERE id = $1",
        event_id(3),
        Decimal("21.5"),
    )
    synced.sync_all()
    assert len(synced.objects("stripe", "price")) == prices + 1
    check_everything_is_in_step(synced)


def test_one_of_our_own_found_at_the_provider_is_paired_and_left_as_it_is(hub: Hub) -> None:
    """As after a crash between a create and its link. A pull alone would give `Cher` a first name."""
    hub.connect_all()
    before = hub.database.rows("SELECT * FROM platform.customers ORDER BY id")
    hub.sync_all()
    made = {provider: hub.counts(provider)["effects"]["customer.created"] for provider in PROVIDERS}
    hub.database.execute("DELETE FROM record_links WHERE entity = 'customer'")
    hub.database.execute("DELETE FROM sync_watermarks WHERE entity = 'customer'")
    hub.sync_all()
    assert hub.database.rows("SELECT * FROM platform.customers ORDER BY id") == before
    assert made == {provider: hub.counts(provider)["effects"]["customer.created"] for provider in PROVIDERS}
    check_everything_is_in_step(hub)
