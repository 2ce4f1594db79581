"""Connections to PostgreSQL."""

from typing import Any

import orjson
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from server.db import exact_json

_UNSTORABLE = ("22021", "22P05")  # SQLSTATE: a character that text, and one that JSON, can't hold


def async_url(database_url: str) -> URL:
    """Return the URL as SQLAlchemy wants it for asyncpg, from any form operators write (`postgres://…?sslmode=require`)."""
    url = make_url(database_url)
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"the database URL must start with `postgresql://`, not `{url.drivername}://`")
    sslmode = url.query.get("sslmode")
    url = url.set(drivername="postgresql+asyncpg").difference_update_query(["sslmode"])
    return url.update_query_dict({"ssl": sslmode}) if sslmode else url


def create_engine(
    database_url: str,
    *,
    pool_size: int = 10,
    max_overflow: int = 5,
    pooled: bool = True,
    application_name: str = "integration-hub",
    statement_cache_size: int = 100,
) -> AsyncEngine:
    """Open a pool of connections, lazily. Every session runs in UTC.

    `pooled=False` opens one connection for each use, for short-lived commands. Set `statement_cache_size`
    to 0 behind a pooler that shares connections between transactions.
    """
    pool: dict[str, Any] = (
        {"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": 30, "pool_recycle": 1800}
        if pooled
        else {"poolclass": NullPool}
    )
    engine = create_async_engine(
        async_url(database_url),
        # A database that restarted is noticed when a connection is taken, not in the middle of a page.
        pool_pre_ping=pooled,
        hide_parameters=True,  # errors are logged, and parameters are records and sealed credentials
        json_serializer=exact_json.dumps,
        json_deserializer=orjson.loads,
        connect_args={
            "timeout": 10,
            "statement_cache_size": statement_cache_size,
            "prepared_statement_cache_size": statement_cache_size,
            "server_settings": {"timezone": "UTC", "application_name": application_name},
        },
        **pool,
    )
    event.listen(engine.sync_engine, "connect", _plan_for_each_call)
    return engine


def session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return what opens sessions: `async with sessions.begin() as session:` is one transaction."""
    return async_sessionmaker(engine, expire_on_commit=False)


def _plan_for_each_call(connection: Any, record: Any) -> None:
    # A plan that is kept from when a table was empty reads all of it once it has grown: as in a first sync.
    cursor = connection.cursor()
    cursor.execute("SET plan_cache_mode = force_custom_plan")
    cursor.close()
    connection.commit()


def is_unstorable(error: Exception) -> bool:
    """Say whether a text was at fault: PostgreSQL keeps no NUL, and SQLAlchemy has no class for that."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return getattr(said, "sqlstate", None) in _UNSTORABLE
