"""Redis emptied or gone, PostgreSQL restarted: the sync that was asked for ends by itself."""

from dataclasses import dataclass

import pytest
import redis

from server.embedded import StoreProcess, Stores
from tests.integration.hub import PROVIDERS, Hub, Provider, check_everything_is_in_step


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
    for provider in PROVIDERS:  # so that there is a middle of a sync to hit
        connected.control(provider, "POST", "latency", {"seconds": 0.1})
    return OwnStores(connected, own_stores.postgres, own_stores.redis)


def _empty(hub: Hub) -> None:
    with redis.Redis.from_url(hub.redis_url) as client:
        client.flushall()


def _until_calls(hub: Hub, count: int) -> None:
    enough = hub.calls() + count
    hub.until(lambda: hub.calls() >= enough, f"{count} more calls at the providers")


def _end_well(hub: Hub, syncs: dict[Provider, str]) -> None:
    states = {provider: hub.ended(provider, sync_id) for provider, sync_id in syncs.items()}
    assert {state["status"] for state in states.values()} == {"completed"}, states
    check_everything_is_in_step(hub)


def test_redis_is_emptied_in_mid_sync(own: OwnStores) -> None:
    syncs = own.hub.begin_all()
    for _ in range(5):
        _until_calls(own.hub, 8)
        _empty(own.hub)
    _end_well(own.hub, syncs)


def test_redis_is_emptied_before_a_worker_has_looked(own: OwnStores) -> None:
    own.hub.kill("worker")
    syncs = own.hub.begin_all()
    _empty(own.hub)
    own.hub.start("worker")
    _end_well(own.hub, syncs)


def test_redis_restarts_in_mid_sync(own: OwnStores) -> None:
    syncs = own.hub.begin_all()
    _until_calls(own.hub, 10)
    own.redis.restart()
    _until_calls(own.hub, 5)
    own.redis.restart()
    _end_well(own.hub, syncs)


def test_syncs_are_asked_for_and_done_without_redis(own: OwnStores) -> None:
    own.redis.stop()
    try:
        _end_well(own.hub, own.hub.begin_all())
    finally:
        own.redis.start()


def test_postgresql_restarts_in_mid_sync(own: OwnStores) -> None:
    syncs = own.hub.begin_all()
    for _ in range(3):
        _until_calls(own.hub, 12)
        own.postgres.restart()
    _end_well(own.hub, syncs)
    assert own.hub.database.one("SELECT count(*) FROM pending_writes") == 0
