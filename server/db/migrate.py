"""Bring a database to the tables of `server.db.models`, one process at a time."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.shipped import shipped
from server.db.engine import create_engine

T = TypeVar("T")

SCRIPTS = shipped("migrations")


def _ours(item: Any, name: str | None, kind: str, reflected: bool, model: Any) -> bool:
    return not (kind == "table" and reflected and model is None)


OPTIONS: dict[str, Any] = {
    # The platform may live in the same database and have an `alembic_version` and tables of its own.
    "version_table": "hub_version",
    "include_object": _ours,
    "compare_type": True,
    "compare_server_default": True,
}
_LOCK = 0x6875625F6D696772  # any constant; two processes that migrate at once wait for each other on it


def config() -> Config:
    """Return Alembic's configuration, for commands that need no database."""
    configuration = Config()
    configuration.set_main_option("script_location", str(SCRIPTS))
    configuration.set_main_option("path_separator", "os")
    return configuration


def head() -> str:
    """Return the newest revision there is."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    if revision is None:
        raise RuntimeError(f"there are no migrations in {SCRIPTS}")
    return revision


def outdated() -> frozenset[str | None]:
    """Return every revision that lacks something this version needs; None stands for an empty database.

    One that isn't known here belongs to a newer version, beside which this one goes on until it is replaced.
    """
    scripts = ScriptDirectory.from_config(config())
    known = {script.revision for script in scripts.walk_revisions()}
    return frozenset({None, *known} - {scripts.get_current_head()})


def upgrade(database_url: str, revision: str = "head") -> None:
    """Migrate up. Blocks until it is done."""
    _run(_locked(database_url, lambda configuration: command.upgrade(configuration, revision)))


def downgrade(database_url: str, revision: str) -> None:
    """Migrate down: `-1`, a revision, or `base` for an empty database."""
    _run(_locked(database_url, lambda configuration: command.downgrade(configuration, revision)))


def current(database_url: str) -> str | None:
    """Return the revision a database is at, or None when it never was migrated."""

    async def read() -> str | None:
        engine = create_engine(database_url, pooled=False)
        try:
            async with engine.connect() as connection:
                return await current_revision(connection)
        finally:
            await engine.dispose()

    return _run(read())


async def current_revision(connection: AsyncConnection) -> str | None:
    """As `current`, on a connection that is open already."""
    return await connection.run_sync(
        lambda sync: MigrationContext.configure(sync, opts=OPTIONS).get_current_revision()
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    # A thread of its own, whether or not this one has an event loop running.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _locked(database_url: str, migrate: Callable[[Config], None]) -> None:
    engine = create_engine(database_url, pooled=False, application_name="integration-hub migrate")

    def run(connection: Connection) -> None:
        configuration = config()
        configuration.attributes["connection"] = connection
        migrate(configuration)

    try:
        # The lock has a connection of its own, so that a migration may commit halfway and stay alone.
        async with engine.connect() as lock, engine.connect() as connection:
            await lock.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()
