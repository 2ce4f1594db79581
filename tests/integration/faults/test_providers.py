"""Providers on a bad day. Whatever they do, in the end each record is there once."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.hub import (
    AUDIENCE_AND_BOOKS,
    KEY,
    PROVIDERS,
    VENUE,
    Hub,
    Provider,
    check_everything_is_in_step,
)

CREATES: Mapping[Provider, tuple[str, ...]] = {
    "stripe": ("POST /v1/products", "POST /v1/prices", "POST /v1/customers"),
    "square": ("POST /v2/catalog/batch-upsert", "POST /v2/customers/bulk-create"),
    "mailchimp": ("POST /3.0/lists/{list}",),
    "quickbooks": ("POST /v3/company/{realm}/batch",),
}
LISTS: Mapping[Provider, str] = {"stripe": "GET /v1/customers", "square": "POST /v2/customers/search"}


def _operation(hub: Hub, sync_id: str, columns: str) -> tuple[Any, ...]:
    (row,) = hub.database.rows(f"SELECT {columns} FROM sync_queue WHERE run_id = $1::uuid", sync_id)
    return row


def _told(hub: Hub, provider: Provider, sync_id: str) -> str:
    """Wait until a sync has met its fault; returns what it says of it while it waits for another try."""

    def look() -> str | None:
        state = hub.state(provider, sync_id)
        return state["error"] if state and state["status"] == "pending" and state["error"] else None

    return str(hub.until(look, f"{provider}'s sync to meet its fault", 60))


def _end_well(hub: Hub, syncs: Mapping[Provider, str]) -> None:
    states = {provider: hub.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {provider: state["status"] for provider, state in states.items()} == dict.fromkeys(
        syncs, "completed"
    ), states


def _settled(hub: Hub) -> None:
    """Everything is in step, nothing is left over, and nothing is written again."""
    hub.sync_all()
    check_everything_is_in_step(hub)
    assert hub.database.rows("SELECT * FROM pending_writes") == []
    assert hub.database.rows("SELECT * FROM record_failures") == []
    before = hub.writes()
    hub.sync_all()
    assert hub.writes() == before


SAID = {
    "status:503": "503",
    "disconnect": "closed the connection",
    "html": "502",
    "truncated": "isn't JSON",
}


@pytest.mark.parametrize(
    "faults",
    [{"stripe": "status:503", "square": "truncated"}, {"stripe": "html", "square": "disconnect"}],
)
def test_down_for_a_while(connected: Hub, faults: Mapping[Provider, str]) -> None:
    for provider, fault in faults.items():
        connected.break_provider(provider, {"match": "*", "fault": fault})
    syncs = connected.begin_all()
    for provider, sync_id in syncs.items():
        message = _told(connected, provider, sync_id)
        assert SAID[faults[provider]] in message
        assert "<" not in message
        connected.mend_provider(provider)
    _end_well(connected, syncs)
    check_everything_is_in_step(connected)


@pytest.mark.parametrize(
    ("connected", "faults"),
    [
        (PROVIDERS, {"stripe": "after:500", "square": "after:disconnect"}),
        (PROVIDERS, {"stripe": "after:disconnect", "square": "after:500"}),
        (PROVIDERS, {"stripe": "after:503", "square": "truncated"}),
        (PROVIDERS, {"stripe": "truncated", "square": "after:503"}),
        (AUDIENCE_AND_BOOKS, {"mailchimp": "after:500", "quickbooks": "after:disconnect"}),
        (AUDIENCE_AND_BOOKS, {"mailchimp": "after:disconnect", "quickbooks": "truncated"}),
    ],
    indirect=["connected"],
)
def test_creates_that_only_look_as_if_they_had_failed_make_no_twins(
    connected: Hub, faults: Mapping[Provider, str]
) -> None:
    """Done, and answered as if not: several in a row, so that one call's retries meet it again."""
    for provider, fault in faults.items():
        rules = [{"match": match, "fault": fault, "times": 4} for match in CREATES[provider]]
        connected.break_provider(provider, *rules)
    _end_well(connected, connected.begin_all())
    for provider in connected.providers:
        assert connected.counts(provider)["faults"] >= 4 * len(CREATES[provider])
    _settled(connected)


@pytest.mark.parametrize(
    "faults",
    [
        {"stripe": "after:500", "square": "after:disconnect"},
        {"stripe": "after:disconnect", "square": "after:500"},
    ],
)
def test_a_run_that_ends_between_a_create_and_its_answer_makes_no_twins(
    connected: Hub, faults: Mapping[Provider, str]
) -> None:
    """Longer than one run tries: the next one has to find out what was done."""
    for provider, fault in faults.items():
        connected.break_provider(provider, *({"match": match, "fault": fault} for match in CREATES[provider]))
    syncs = connected.begin_all()
    for provider in syncs:
        connected.until(
            lambda provider=provider: connected.database.one(  # type: ignore[misc]  # bound now
                "SELECT (SELECT count(*) FROM record_failures"
                " WHERE integration_type = $1 AND entity = 'customer') = 24"
                # Where nobody answers, the run doesn't go through all of them.
                " OR (SELECT last_error IS NOT NULL FROM sync_queue WHERE run_id = $2::uuid)",
                provider,
                syncs[provider],
            ),
            f"the failures at {provider}",
        )
        connected.mend_provider(provider)
    _end_well(connected, syncs)
    _settled(connected)


def test_a_429_storm_is_waited_out(connected: Hub) -> None:
    storm = {"match": "*", "fault": "status:429", "rate": 0.3, "headers": {"Retry-After": "1"}, "times": 12}
    for provider in PROVIDERS:
        connected.break_provider(provider, storm)
    _end_well(connected, connected.begin_all())
    check_everything_is_in_step(connected)
    assert connected.counts("stripe")["by_status"]["429"] == 12


def test_told_to_wait_long_a_sync_comes_back_later(hub: Hub) -> None:
    """Longer than a run may idle: the operation waits, and no worker does."""
    # Of a key of its own: what is held back is this key's calls.
    assert hub.connect("stripe", f"{KEY}_held").is_success
    headers = {"Retry-After": "300"}
    hub.break_provider("stripe", {"match": "*", "fault": "status:429", "headers": headers})
    sync_id = hub.begin("stripe")
    assert "429" in _told(hub, "stripe", sync_id)
    waits, lease = _operation(hub, sync_id, "extract(epoch FROM next_retry_at - now())::float, lease_owner")
    assert 280 < waits < 310
    assert lease is None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_page_that_repeats_is_told_and_outlived(connected: Hub, provider: Provider) -> None:
    connected.sync_all()
    before = connected.writes()
    connected.database.execute("DELETE FROM sync_watermarks WHERE direction = 'pull'")
    connected.break_provider(provider, {"match": LISTS[provider], "fault": "repeat_page"})
    sync_id = connected.begin(provider)
    message = _told(connected, provider, sync_id)
    assert "same" in message
    assert "UNEXPECTED" not in message
    assert connected.database.one("SELECT count(*) FROM platform.customers WHERE venue_id = $1", VENUE) == 24
    connected.mend_provider(provider)
    _end_well(connected, {provider: sync_id})
    assert connected.writes() == before
    check_everything_is_in_step(connected)


def test_a_call_that_takes_longer_than_the_lease_keeps_it(connected: Hub) -> None:
    for provider in PROVIDERS:
        connected.control(provider, "POST", "latency", {"seconds": 0.1})
        connected.break_provider(
            provider, *({"match": match, "fault": "timeout:2.5", "times": 1} for match in CREATES[provider])
        )
    syncs = connected.begin_all()
    _end_well(connected, syncs)
    check_everything_is_in_step(connected)
    for sync_id in syncs.values():
        assert _operation(connected, sync_id, "fencing_token, error_count") == (1, 0)


MIX = (
    *("status:500", "status:503", "status:429", "html", "disconnect", "truncated"),
    *("after:500", "after:502", "after:disconnect"),
)


@pytest.mark.parametrize(
    ("connected", "percent", "seed"),
    [
        pytest.param(PROVIDERS, 5, 1, id="shops 1"),
        pytest.param(PROVIDERS, 5, 2, id="shops 2"),
        pytest.param(AUDIENCE_AND_BOOKS, 30, 3, id="audience and books 3"),  # few calls, with much in each
        pytest.param(AUDIENCE_AND_BOOKS, 30, 5, id="audience and books 5"),
    ],
    indirect=["connected"],
)
def test_some_calls_in_a_hundred_fail_somehow(connected: Hub, percent: int, seed: int) -> None:
    for provider in connected.providers:
        rules = [{"match": "*", "fault": fault, "rate": percent / 100 / len(MIX)} for fault in MIX]
        connected.break_provider(provider, *rules, seed=seed)
    _end_well(connected, connected.begin_all())
    assert sum(connected.counts(provider)["faults"] for provider in connected.providers) > 0
    for provider in connected.providers:
        connected.mend_provider(provider)
    _settled(connected)
