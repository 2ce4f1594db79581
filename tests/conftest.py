"""The stores for tests that need real ones. Nothing starts until a test asks.

`DATABASE_URL` and `REDIS_URL` name other servers to use; then databases are made and dropped there, and
Redis databases 1 and up are emptied.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import redis
from hypothesis import settings
from sqlalchemy.engine import make_url

from server.embedded import Stores, embedded_stores
from tests import canary
from tests.canary import (
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

T = TypeVar("T")

settings.register_profile("patient", settings.default, deadline=None)  # no example is timed on a busy machine
settings.load_profile("patient")

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
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("server.context.load_catalog", _read_once)
                yield running
            canary.look_at_files("the stores", Path(folder).glob("logs/*.log"))


_read: dict[tuple[object, ...], Any] = {}


def _read_once(*places: Path | None) -> Any:
    """Read manifests and templates as a process does at its start, but once for all that are alike."""
    from server.catalog import load_catalog

    files = [file for place in places if place for file in (place.rglob("*") if place.is_dir() else [place])]
    key = (places, *sorted((str(file), file.stat().st_mtime_ns) for file in files))
    if key not in _read:
        _read[key] = load_catalog(*places)  # type: ignore[arg-type]  # as its caller gave them
    return _read[key]


@pytest.fixture(scope="session")
def _migrated_template(stores: Stores) -> Iterator[str]:
    """Name of a database with every migration applied and no data, to copy from."""
    from server.db.migrate import upgrade

    with _database(stores) as url:
        upgrade(url)
        name = make_url(url).database
        assert name is not None
        _shape_of_template["shape"] = _execute(url, _SHAPE)
        yield name


@pytest.fixture(scope="module")
def database_url(stores: Stores, _migrated_template: str) -> Iterator[str]:
    """A migrated, empty database of this test module's own."""
    with _database(stores, template=_migrated_template) as url:
        yield url


@pytest.fixture(scope="session")
def _spare_databases(stores: Stores, _migrated_template: str) -> Iterator[list[str]]:
    """Migrated databases that tests before have left, emptied: that takes a third of making another."""
    spare: list[str] = []
    yield spare
    for url in spare:
        _execute(stores.database_url, f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


@pytest.fixture
def fresh_database_url(stores: Stores, _migrated_template: str, _spare_databases: list[str]) -> Iterator[str]:
    """A migrated, empty database of this one test's own."""
    url = _spare_databases.pop() if _spare_databases else _create(stores, _migrated_template)
    yield url
    if _in_thread(_emptied(url)):
        _spare_databases.append(url)
    else:
        _execute(stores.database_url, f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


# What a test may change besides rows, as one number. A row of the catalog has another `xmin` once it changes.
_SHAPE = """
SELECT sum(hashtextextended(t.of || t.oid || ':' || t.xmin, 0)) FROM (
    SELECT 'c' AS of, oid::text, xmin::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 't', oid::text, xmin::text FROM pg_trigger
    UNION ALL SELECT 'p', oid::text, xmin::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'y', oid::text, xmin::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
    UNION ALL SELECT 'n', oid::text, xmin::text FROM pg_namespace
    UNION ALL SELECT 'e', oid::text, xmin::text FROM pg_extension
    UNION ALL SELECT 'd', '', setting::text FROM pg_db_role_setting, unnest(setconfig) AS setting
) AS t
"""
_shape_of_template: dict[str, int] = {}


async def _emptied(url: str) -> bool:
    """Look at what a test left in a database and empty it; says whether it is as new."""
    connection = await asyncpg.connect(_plain(url))
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        filled = await canary.look_at_tables("a database", connection)
        await connection.execute("DROP SCHEMA IF EXISTS platform CASCADE")  # which many tests put in
        if await connection.fetchval(_SHAPE) != _shape_of_template["shape"]:
            return False
        await connection.execute(
            empty({each for each in filled if each.startswith("public.")} - {"public.hub_version"})
        )
    except asyncpg.InsufficientPrivilegeError:  # on a server that isn't ours
        return False
    else:
        return True
    finally:
        await connection.close()


def empty(tables: Collection[str]) -> str:
    """Return statements that empty tables, whatever hangs on them and forbids it."""
    deletes = "".join(f"DELETE FROM {each};" for each in sorted(tables))
    return f"BEGIN; SET LOCAL session_replication_role = replica; {deletes} COMMIT" if tables else "SELECT 1"


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
    url = _create(stores, template)
    try:
        yield url
        canary.look_at_database("a database", url)
    finally:
        _execute(stores.database_url, f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


def _create(stores: Stores, template: str | None) -> str:
    name = f"hub_test_{secrets.token_hex(6)}"
    _execute(
        stores.database_url, f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else "")
    )
    return make_url(stores.database_url).set(database=name).render_as_string(hide_password=False)


def _execute(database_url: str, statement: str) -> Any:
    """Run one statement on a connection of its own; returns the first value it gives."""

    async def execute() -> Any:
        connection = await asyncpg.connect(_plain(database_url))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return _in_thread(execute())


def _in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Do something whether or not this thread has an event loop running."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
