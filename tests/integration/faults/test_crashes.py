"""Processes that are killed. Moments are counted in calls the providers have had, so that each is in mid-work."""

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


def _at_work(hub: Hub, syncs: dict[Provider, str]) -> bool:
    """Whether a worker that lives holds one of the syncs; a lease of the dead isn't extended."""
    return bool(
        hub.database.one(
            "SELECT count(*) FROM sync_queue WHERE run_id = ANY($1::uuid[]) AND status = 'processing' "
            "AND lease_expires_at > now()",
            list(syncs.values()),
        )
    )


def test_twenty_kills_during_the_first_sync_lose_and_double_nothing(hub: Hub) -> None:
    start_over(hub, events=30, customers=80)
    hub.connect_all()
    for provider in PROVIDERS:
        hub.control(provider, "POST", "latency", {"seconds": 0.1})
    chance = random.Random(SEED)
    syncs = hub.begin_all()
    for number in range(KILLS):
        enough = hub.calls() + 1 + round(chance.expovariate(1 / CALLS))
        hub.until(
            lambda calls=enough: hub.calls() >= calls and _at_work(hub, syncs),  # type: ignore[misc]  # bound now
            f"the worker to be at work for the {number + 1}. time",
        )
        hub.kill("worker")
        hub.start("worker")
    states = {provider: hub.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {state["status"] for state in states.values()} == {"completed"}
    check_everything_is_in_step(hub)
    assert hub.database.one("SELECT count(*) FROM pending_writes") == 0
    assert hub.database.one("SELECT count(*) FROM record_failures") == 0
    before = hub.writes()
    hub.sync_all()
    assert hub.writes() == before


def test_killing_every_process_at_once_only_delays(connected: Hub) -> None:
    syncs = connected.begin_all()
    enough = connected.calls() + 20
    connected.until(lambda: connected.calls() >= enough, "both syncs to be under way")
    for name in ("scheduler", "worker", "api"):
        connected.kill(name)
    connected.start("worker", "scheduler", "api")
    states = {provider: connected.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {state["status"] for state in states.values()} == {"completed"}
    check_everything_is_in_step(connected)
