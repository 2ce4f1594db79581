"""What is asked for most, straight over asyncpg: one statement each, no session and no transaction.

A session costs several round trips and most of a request's time, which one statement doesn't need. Whatever
locks or reads twice takes a session, and so does what writes, unless doing it again does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import asyncpg
import orjson
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.asyncpg import dialect as driver
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from server.errors import StoreUnavailableError

CONNECTIONS = 5
STATEMENTS = 100  # of which a connection remembers how they are done
STATEMENT_SECONDS = 10.0
_AWAY = ("08", "53", "57")  # SQLSTATE classes: no connection, no resources, shut down or starting


class Reads:
    """A pool of its own. `async with` opens it; connections are made when they are first needed."""

    def __init__(
        self,
        database_url: str,
        *,
        application_name: str,
        connections: int = CONNECTIONS,
        pooler: bool = False,
        by_index: bool = False,
    ) -> None:
        """`pooler`: something before the database shares connections, so that none keeps statements.

        `by_index`: statements are planned once, by indexes: for what is asked all the time, of tables that
        grow from nothing.
        """
        self._url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._name = application_name
        self._connections = connections
        self._cached = 0 if pooler else STATEMENTS
        self._by_index = by_index and not pooler
        self._pool: Any = None

    async def __aenter__(self) -> Self:
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._connections,
            timeout=STATEMENT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            init=_plan_by_index if self._by_index else _decode_json,
            statement_cache_size=self._cached,
            reset=_nothing,  # no statement here leaves anything behind, and it would cost a round trip
            server_settings={"timezone": "UTC", "application_name": self._name},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.terminate()

    async def rows(self, statement: str, *values: Any) -> Sequence[asyncpg.Record]:
        """Return what a statement finds; raises StoreUnavailableError when the database is away.

        A connection that turns out to be dead is replaced once: the database may have started again.
        """
        try:
            try:
                return await self._fetch(statement, values)
            except (asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError, ConnectionResetError):
                return await self._fetch(statement, values)
        except (asyncpg.InterfaceError, OSError) as error:  # TimeoutError is an OSError
            if isinstance(error, ValueError):  # a value that can't be sent, whatever the database does
                raise
            raise StoreUnavailableError("the database can't be reached") from error
        except asyncpg.PostgresError as error:
            if str(error.sqlstate).startswith(_AWAY):
                raise StoreUnavailableError("the database can't be reached") from error
            raise

    async def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[asyncpg.Record]:
        async with self._pool.acquire(timeout=STATEMENT_SECONDS) as connection:
            found: Sequence[asyncpg.Record] = await connection.fetch(statement, *values)
            return found


@dataclass(frozen=True, slots=True)
class Plain:
    """A statement of SQLAlchemy's as the driver takes it, without values that become several parameters.

    Its rows hold what the driver makes of them: an enum is its text.
    """

    text: str
    _names: Sequence[str]
    _constants: Mapping[str, Any]

    @classmethod
    def of(cls, statement: ClauseElement) -> Self:
        made = statement.compile(dialect=driver())  # type: ignore[no-untyped-call]  # SQLAlchemy's own
        assert isinstance(made, SQLCompiler)
        return cls(made.string, tuple(made.positiontup or ()), made.params)

    def values(self, **given: Any) -> list[Any]:
        """Return the values to call `Reads.rows` with, after the text."""
        everything = {**self._constants, **given}
        return [everything[name] for name in self._names]


async def _decode_json(connection: Any) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=orjson.loads)


async def _plan_by_index(connection: Any) -> None:
    await _decode_json(connection)
    # A plan that is kept and reads a whole table is good for as long as the table is small.
    await connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")


async def _nothing(connection: Any) -> None:
    return
