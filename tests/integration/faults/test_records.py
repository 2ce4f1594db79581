"""One record a provider won't take: its failure is its own, is kept, and ends when the record is mended."""

from decimal import Decimal

from tests.integration.hub import PROVIDERS, Hub, counts_of, customer_id, event_id
from tests.integration.hub import check_everything_is_in_step as check_all

BAD_CUSTOMERS = (3, 4)
DEAR_EVENT, UNEVEN_EVENT = 5, 6  # in euros, more than Stripe takes; in yen, with a fraction
FAILURES = (
    "SELECT integration_type, entity, resource, record_id, direction::text, field, retryable, message "
    "FROM record_failures ORDER BY 1, 3, 4"
)


def _spoil(hub: Hub) -> None:
    hub.database.execute(
        "UPDATE platform.customers SET email = 'nobody at nowhere', updated_at = '2026-02-01' WHERE id = $1",
        customer_id(BAD_CUSTOMERS[0]),
    )
    hub.database.execute(
        "UPDATE platform.customers SET phone = $2, updated_at = '2026-02-01' WHERE id = $1",
        customer_id(BAD_CUSTOMERS[1]),
        "+" + "4" * 24,
    )
    for event, price in ((DEAR_EVENT, "99999999999.99"), (UNEVEN_EVENT, "1200.50")):
        hub.database.execute(
            "UPDATE platform.events SET price = $2, updated_at = '2026-02-01' WHERE id = $1",
            event_id(event),
            Decimal(price),
        )


def _mend(hub: Hub) -> None:
    hub.database.execute(
        "UPDATE platform.customers SET email = 'somebody@example.com', phone = NULL, updated_at = now() "
        "WHERE id = ANY($1::uuid[])",
        [customer_id(number) for number in BAD_CUSTOMERS[:1]],
    )
    hub.database.execute(
        "UPDATE platform.customers SET phone = '+4915112345678', updated_at = now() WHERE id = $1",
        customer_id(BAD_CUSTOMERS[1]),
    )
    hub.database.execute(
        "UPDATE platform.events SET price = 99, updated_at = now() WHERE id = ANY($1::uuid[])",
        [event_id(DEAR_EVENT), event_id(UNEVEN_EVENT)],
    )


def test_a_rejected_record_fails_alone_is_kept_and_clears_when_mended(connected: Hub) -> None:
    _spoil(connected)
    states = connected.sync_all()
    bad, called = (str(customer_id(number)) for number in BAD_CUSTOMERS)
    rows = connected.database.rows(FAILURES)
    assert [row[:7] for row in rows if row[1] == "customer"] == sorted(
        [
            ("square", "customer", "customer", bad, "push", "email_address", False),
            ("square", "customer", "customer", called, "push", "phone_number", False),
            ("stripe", "customer", "customer", bad, "push", "email", False),
            ("stripe", "customer", "customer", called, "push", "phone", False),
        ]
    )
    dear, uneven = (str(event_id(number)) for number in (DEAR_EVENT, UNEVEN_EVENT))
    assert [(*row[:5], row[6]) for row in rows if row[1] == "event"] == [
        ("square", "event", "item", uneven, "push", False),
        *sorted(("stripe", "event", "price", each, "push", False) for each in (dear, uneven)),
    ]
    assert {row[5] for row in rows if row[3] == dear} == {"unit_amount"}  # what the provider complains of
    assert {row[5] for row in rows if row[3] == uneven} <= {"price", "ticket_types"}  # what can't be mapped
    assert all(row[7].startswith("the provider answered") for row in rows if row[3] in (bad, dear))
    assert all("more than the 0 decimals of JPY" in row[7] for row in rows if row[3] == uneven)
    assert all(row[7] for row in rows)

    for provider in PROVIDERS:
        failed = [row for row in rows if row[0] == provider]
        assert counts_of(states[provider], "push", "failed") == {"failed": len(failed)}
        assert states[provider]["overall"]["failedCount"] == len(failed)
        told = connected.database.rows(
            "SELECT failure ->> 'record_id', failure ->> 'field', failure ->> 'message' FROM sync_queue, "
            "jsonb_array_elements(result -> 'failures') failure WHERE integration_type = $1 ORDER BY 1",
            provider,
        )
        assert told == sorted((row[3], row[5], row[7]) for row in failed)

    stripe, square = connected.objects("stripe", "customer"), connected.objects("square", "customer")
    assert len(stripe) == len(square) == 24 - len(BAD_CUSTOMERS)
    assert len(connected.objects("stripe", "product")) == 12
    assert len(connected.objects("stripe", "price")) == 10
    assert len(connected.objects("square", "ITEM")) == 11

    _mend(connected)
    connected.sync_all()
    assert connected.database.rows(FAILURES) == []
    check_all(connected)


def test_a_record_that_stays_bad_costs_no_call_until_it_changes(connected: Hub) -> None:
    _spoil(connected)
    connected.sync_all()
    before = connected.writes()
    connected.sync_all()
    assert connected.writes() == before
    assert len(connected.database.rows(FAILURES)) >= 5
