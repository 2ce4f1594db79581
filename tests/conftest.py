"""The stores for tests that need real ones. Nothing starts until a test asks.

`DATABASE_URL` and `REDIS_URL` name other servers to use; then databases are made and dropped there, and
Redis databases 1 and up are emptied.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
import redis
from sqlalchemy.engine import make_url

from server.embedded import Stores, embedded_stores
from tests import canary
from tests.canary import (
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

__all__ = (  # hooks: they work from here
    "pytest_runtest_logreport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
)


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """PostgreSQL and Redis, embedded unless the environment names others; one pair per pytest process."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as folder:
        Path(folder).chmod(0o711)
        with embedded_stores(
            Path(folder),
            database_url=os.environ.get("DATABASE_URL"),
            redis_url=os.environ.get("REDIS_URL"),
            durable=False,
        ) as running:
            yield running
            canary.look_at_files("the stores", Path(folder).glob("logs/*.log"))


@pytest.fixture(scope="session")
def _migrated_template(stores: Stores) -> Iterator[str]:
    """Name of a database with every migration applied and no data, to copy from."""
    from server.db.migrate import upgrade

    with _database(stores) as url:
        upgrade(url)
        name = make_url(url).database
        assert name is not None
        yield name


@pytest.fixture(scope="module")
def database_url(stores: Stores, _migrated_template: str) -> Iterator[str]:
    """A migrated, empty database of this test module's own."""
    with _database(stores, template=_migrated_template) as url:
        yield url


@pytest.fixture
def fresh_database_url(stores: Stores, _migrated_template: str) -> Iterator[str]:
    """A migrated, empty database of this one test's own."""
    with _database(stores, template=_migrated_template) as url:
        yield url


@pytest.fixture
def empty_database_url(stores: Stores) -> Iterator[str]:
    """A database without tables, of this one test's own."""
    with _database(stores) as url:
        yield url


@pytest.fixture(scope="module")
def redis_url(stores: Stores) -> Iterator[str]:
    """A Redis database of this pytest process's own, emptied for each test module."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    url = make_url(stores.redis_url).set(database=str(worker % 15 + 1)).render_as_string(hide_password=False)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        canary.look_at_redis("a module's", url)
        client.flushdb()


@contextmanager
def _database(stores: Stores, template: str | None = None) -> Iterator[str]:
    name = f"hub_test_{secrets.token_hex(6)}"
    _execute(
        stores.database_url, f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else "")
    )
    try:
        url = make_url(stores.database_url).set(database=name).render_as_string(hide_password=False)
        yield url
        canary.look_at_database("a database", url)
    finally:
        _execute(stores.database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _execute(database_url: str, statement: str) -> None:
    async def execute() -> None:
        address = make_url(database_url).set(drivername="postgresql")
        connection = await asyncpg.connect(address.render_as_string(hide_password=False))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as executor:  # whether or not this thread has an event loop running
        executor.submit(asyncio.run, execute()).result()
