"""One hub for each module of this folder, and a fresh start for each test."""

from collections.abc import Iterator

import pytest

from tests.integration.hub import Hub, running_hub, start_over

EVENTS, CUSTOMERS = 12, 24  # enough for several calls of each kind, few enough to be quick


@pytest.fixture(scope="module")
def running(database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(database_url, redis_url, tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub) -> Hub:
    """A hub with nothing connected, a small platform and empty providers."""
    start_over(running, events=EVENTS, customers=CUSTOMERS)
    return running


@pytest.fixture
def connected(hub: Hub) -> Hub:
    """The hub with both providers connected and nothing synced."""
    hub.connect_all()
    return hub
