"""One record a provider won't take: its failure is its own, is kept, and ends when the record is mended."""

from tests.integration.hub import PROVIDERS, Hub, counts_of, customer_id, event_id
from tests.integration.hub import check_everything_is_in_step as check_all

BAD_CUSTOMERS = (3, 4)
BAD_EVENT = 6
FAILURES = (
    "SELECT integration_type, entity, resource, record_id, direction::text, field, retryable, message "
    "FROM record_failures ORDER BY 1, 3, 4"
)


def _spoil(hub: Hub) -> None:
    hub.database.execute(
        "UPDATE platform.customers SET email = 'nobody at nowhere', updated_at = now() WHERE id = $1",
        customer_id(BAD_CUSTOMERS[0]),
    )
    hub.database.execute(
        "UPDATE platform.customers SET phone = $2, updated_at = now() WHERE id = $1",
        customer_id(BAD_CUSTOMERS[1]),
        "+" + "4" * 24,
    )
    hub.database.execute(
        "UPDATE platform.events SET price = 99999999999.99, updated_at = now() WHERE id = $1",
        event_id(BAD_EVENT),
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
        "UPDATE platform.events SET price = 99, updated_at = now() WHERE id = $1", event_id(BAD_EVENT)
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
    assert [row[:7] for row in rows if row[1] == "event" and row[0] == "stripe"] == [
        ("stripe", "event", "price", str(event_id(BAD_EVENT)), "push", "unit_amount", False)
    ]
    assert all("the provider answered" in row[7] for row in rows)

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
    assert len(connected.objects("stripe", "price")) == 11

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
