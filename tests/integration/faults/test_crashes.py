"""Processes that are killed, at moments counted in calls to the providers, so that each is in mid-work."""

import random
from functools import partial

import pytest

from tests.integration.hub import (
    API,
    AUDIENCE_AND_BOOKS,
    PROVIDERS,
    VENUE,
    Hub,
    Provider,
    check_everything_is_in_step,
    start_over,
)

SEED = 20261124


def _revive(hub: Hub) -> None:
    """Retry what was set aside: whoever loses three workers in a row and gets nothing done looks guilty."""
    for provider, operation_id in hub.database.rows(
        "SELECT integration_type, id::text FROM sync_queue"
        " WHERE status = 'dead_letter' AND error_code = 'WORKER_LOST'"
    ):
        body = {"venueId": str(VENUE), "queueItemId": operation_id}
        assert hub.request("POST", f"{API}/sync/{provider}/sync/retry", json=body).is_success


def _at_work(hub: Hub, syncs: dict[Provider, str], enough: int) -> str | None:
    """Return the name of a living worker that holds one of the syncs, after so many calls."""
    _revive(hub)
    if hub.calls() < enough:
        return None
    owners = hub.database.rows(
        "SELECT lease_owner FROM sync_queue WHERE run_id = ANY($1::uuid[]) AND status = 'processing'",
        list(syncs.values()),
    )
    pids = {int(owner.split(":")[1]) for (owner,) in owners}
    return next((name for name, process in hub.processes.items() if process.pid in pids), None)


@pytest.mark.parametrize(
    ("providers", "orders", "kills", "calls", "latency"),
    [
        pytest.param(PROVIDERS, 0, 20, 12.0, 0.1, id="shops"),
        # Few calls, with much in each.
        pytest.param(AUDIENCE_AND_BOOKS, 40, 5, 3.0, 0.3, id="audience and books"),
    ],
)
def test_kills_during_the_first_sync_lose_and_double_nothing(
    hub: Hub, providers: tuple[Provider, ...], orders: int, kills: int, calls: float, latency: float
) -> None:
    """The worker that holds a sync is killed and started again; a second one saves waiting for its start.

    `calls` are what a worker makes in its life, on average.
    """
    start_over(hub, events=30, customers=80, orders=orders, providers=providers)
    hub.connect_all()
    for provider in providers:
        hub.control(provider, "POST", "latency", {"seconds": latency})
    chance = random.Random(SEED)
    hub.start("worker-b")
    try:
        syncs = hub.begin_all()
        for number in range(kills):
            enough = hub.calls() + 1 + round(chance.expovariate(1 / calls))
            victim = hub.until(
                partial(_at_work, hub, syncs, enough),
                f"a worker to be at work for the {number + 1}. time",
            )
            assert victim is not None
            hub.kill(victim)
            hub.start(victim)
        _end_well(hub, syncs)
    finally:
        hub.kill("worker-b")
    assert hub.database.one("SELECT count(*) FROM pending_writes") == 0
    assert hub.database.one("SELECT count(*) FROM record_failures") == 0
    before = hub.writes()
    hub.sync_all()
    assert hub.writes() == before


def _end_well(hub: Hub, syncs: dict[Provider, str]) -> None:
    def over() -> bool:
        _revive(hub)
        left = "SELECT count(*) FROM sync_queue WHERE status <> 'completed' AND run_id = ANY($1::uuid[])"
        return bool(hub.database.one(left, list(syncs.values())) == 0)

    hub.until(over, "the syncs to come to their ends", 60)
    states = {provider: hub.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {state["status"] for state in states.values()} == {"completed"}, states
    check_everything_is_in_step(hub)


def test_killing_every_process_at_once_only_delays(connected: Hub) -> None:
    syncs = connected.begin_all()
    enough = connected.calls() + 20
    connected.until(lambda: connected.calls() >= enough, "both syncs to be under way")
    for name in ("scheduler", "worker", "api"):
        connected.kill(name)
    connected.start("worker", "scheduler", "api")
    _end_well(connected, syncs)
