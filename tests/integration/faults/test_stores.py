"""Redis emptied or gone, PostgreSQL restarted: the sync that was asked for ends by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import redis

from server.embedded import StoreProcess, Stores
from tests.integration.hub import (
    AUDIENCE_AND_BOOKS,
    PROVIDERS,
    Hub,
    Provider,
    check_everything_is_in_step,
)

IDS = ("shops", "audience and books")


@dataclass(frozen=True, slots=True)
class OwnStores:
    """A hub with both providers connected, and the servers below it."""

    hub: Hub
    postgres: StoreProcess
    redis: StoreProcess


@pytest.fixture
def own(connected: Hub, own_stores: Stores) -> OwnStores:
    assert own_stores.postgres is not None
    assert own_stores.redis is not None
    for provider in connected.providers:  # so that there is a middle of a sync to hit
        connected.control(provider, "POST", "latency", {"seconds": 0.2})
    return OwnStores(connected, own_stores.postgres, own_stores.redis)


def _empty(hub: Hub) -> None:
    with redis.Redis.from_url(hub.redis_url) as client:
        client.flushall()


def _syncing(hub: Hub) -> bool:
    open_syncs = "operation_type = 'sync' AND status IN ('pending', 'processing')"
    return bool(hub.database.one(f"SELECT count(*) FROM sync_queue WHERE {open_syncs}"))


def _after(hub: Hub, calls: int) -> bool:
    """Wait for some more calls at the providers, or the end; say whether a sync goes on."""
    enough = hub.calls() + calls
    hub.until(lambda: hub.calls() >= enough or not _syncing(hub), f"{calls} more calls or the end")
    return _syncing(hub)


def _strike(hub: Hub, times: int, strike: Callable[[], None], calls: int = 8) -> None:
    """Do something up to so many times, with some calls in between, and at least once in mid-sync."""
    hits = 0
    while hits < times and _after(hub, calls):
        strike()
        hits += 1
    assert hits


def _end_well(hub: Hub, syncs: dict[Provider, str]) -> None:
    states = {provider: hub.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {state["status"] for state in states.values()} == {"completed"}, states
    check_everything_is_in_step(hub)


@pytest.mark.parametrize(
    ("connected", "calls"), [(PROVIDERS, 8), (AUDIENCE_AND_BOOKS, 3)], indirect=["connected"], ids=IDS
)
def test_redis_is_emptied_in_mid_sync(own: OwnStores, calls: int) -> None:
    syncs = own.hub.begin_all()
    _strike(own.hub, 5, partial(_empty, own.hub), calls)
    _end_well(own.hub, syncs)


def test_redis_is_emptied_before_a_worker_has_looked(own: OwnStores) -> None:
    own.hub.kill("worker")
    syncs = own.hub.begin_all()
    _empty(own.hub)
    own.hub.start("worker")
    _end_well(own.hub, syncs)


def test_redis_restarts_in_mid_sync(own: OwnStores) -> None:
    syncs = own.hub.begin_all()
    _strike(own.hub, 2, own.redis.restart)
    _end_well(own.hub, syncs)


def test_syncs_are_asked_for_and_done_without_redis(own: OwnStores) -> None:
    own.redis.stop()
    try:
        _end_well(own.hub, own.hub.begin_all())
    finally:
        own.redis.start()


def test_postgresql_restarts_in_mid_sync(own: OwnStores) -> None:
    syncs = own.hub.begin_all()
    _strike(own.hub, 3, own.postgres.restart)
    _end_well(own.hub, syncs)
    assert own.hub.database.one("SELECT count(*) FROM pending_writes") == 0
