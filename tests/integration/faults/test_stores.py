"""Redis emptied or gone, PostgreSQL restarted: the sync that was asked for ends by itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from server.db.migrate import upgrade
from server.embedded import StoreProcess, embedded_stores
from tests.integration.faults.conftest import CUSTOMERS, EVENTS
from tests.integration.hub import Hub, Provider, check_everything_is_in_step, running_hub, start_over


@dataclass(frozen=True, slots=True)
class OwnStores:
    """A hub on stores that may be ill-treated."""

    hub: Hub
    postgres: StoreProcess
    redis: StoreProcess


@pytest.fixture(scope="module")
def on_own_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStores]:
    folder = tmp_path_factory.mktemp("stores")
    with embedded_stores(folder / "stores", durable=False) as stores:
        upgrade(stores.database_url)
        assert stores.postgres is not None
        assert stores.redis is not None
        with running_hub(stores.database_url, stores.redis_url, folder) as hub:
            yield OwnStores(hub, stores.postgres, stores.redis)


@pytest.fixture
def own(on_own_stores: OwnStores) -> OwnStores:
    start_over(on_own_stores.hub, events=EVENTS, customers=CUSTOMERS)
    on_own_stores.hub.connect_all()
    return on_own_stores


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
