"""Processes that are killed, at moments counted in calls to the providers, so that each is in mid-work."""

import random

from tests.integration.hub import (
    PROVIDERS,
    Hub,
    Provider,
    check_everything_is_in_step,
    start_over,
)

KILLS = 20
CALLS = 20.0  # a worker's life, on average
SEED = 20261124


def _at_work(hub: Hub, syncs: dict[Provider, str]) -> str | None:
    """Return the name of a living worker that holds one of the syncs."""
    owners = hub.database.rows(
        "SELECT lease_owner FROM sync_queue WHERE run_id = ANY($1::uuid[]) AND status = 'processing'",
        list(syncs.values()),
    )
    pids = {int(owner.split(":")[1]) for (owner,) in owners}
    return next((name for name, process in hub.processes.items() if process.pid in pids), None)


def test_twenty_kills_during_the_first_sync_lose_and_double_nothing(hub: Hub) -> None:
    """The worker that holds a sync is killed and started again; a second one saves waiting for its start."""
    start_over(hub, events=30, customers=80)
    hub.connect_all()
    for provider in PROVIDERS:
        hub.control(provider, "POST", "latency", {"seconds": 0.1})
    chance = random.Random(SEED)
    hub.start("worker-b")
    try:
        syncs = hub.begin_all()
        for number in range(KILLS):
            enough = hub.calls() + 1 + round(chance.expovariate(1 / CALLS))
            victim = hub.until(
                lambda calls=enough: _at_work(hub, syncs) if hub.calls() >= calls else None,  # type: ignore[misc]  # bound now
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
