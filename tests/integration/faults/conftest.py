"""One hub for each module of this folder, and a fresh start for each test."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.integration.hub")  # before it is imported

from tests.integration.hub import Hub, running_hub, start_over  # noqa: E402 - see above

EVENTS, CUSTOMERS = 12, 24  # enough for several calls of each kind, few enough to be quick


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest,
    database_url: str,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hub]:
    """A hub; a module that says `AS_SHIPPED` gets it with the limits of real life."""
    quick = not getattr(request.module, "AS_SHIPPED", False)
    with running_hub(database_url, redis_url, tmp_path_factory.mktemp("hub"), quick=quick) as hub:
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
