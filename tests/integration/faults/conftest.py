"""One hub for all of this folder, on stores that may be ill-treated; a fresh start for each test."""

from collections.abc import Iterator

import pytest

from server.db.migrate import upgrade
from server.embedded import Stores, embedded_stores
from tests import canary

pytest.register_assert_rewrite("tests.integration.hub")  # before it is imported

from tests.integration.hub import PROVIDERS, Hub, running_hub, start_over  # noqa: E402 - see above

SQUARE_KEY = "square-signature-key-of-the-test"
EVENTS, CUSTOMERS, ORDERS = 12, 24, 12  # enough for several calls of each kind, few enough to be quick


@pytest.fixture(scope="session")
def own_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    folder = tmp_path_factory.mktemp("stores")
    with embedded_stores(folder, durable=False) as stores:
        upgrade(stores.database_url)
        yield stores
        canary.look_at_files("stores that are ill-treated", folder.glob("logs/*.log"))


@pytest.fixture(scope="session")
def running(own_stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """It logs all it can, so that nothing is kept out of the logs by their level alone."""
    folder = tmp_path_factory.mktemp("hub")
    with running_hub(
        own_stores.database_url,
        own_stores.redis_url,
        folder,
        LOG_LEVEL="debug",
        SQUARE_WEBHOOK_SIGNATURE_KEY=SQUARE_KEY,
    ) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub) -> Hub:
    """A hub with nothing connected, a small platform and empty providers."""
    start_over(running, events=EVENTS, customers=CUSTOMERS)
    return running


@pytest.fixture
def connected(hub: Hub, request: pytest.FixtureRequest) -> Hub:
    """The hub with both providers connected and nothing synced; a test may name others, who get orders."""
    providers = getattr(request, "param", PROVIDERS)
    if providers != PROVIDERS:
        start_over(hub, events=EVENTS, customers=CUSTOMERS, orders=ORDERS, providers=providers)
    hub.connect_all()
    return hub
