"""The platform's records over SQL, as its manifest describes them. No table or column is named here.

What a manifest must get right: the key is unique, and the changed-at column is never null and grows with
every change. Columns of JSON are read and written whole; a field whose `column` is a path into one
(`extra.seat`) is read only.
"""

# ruff: noqa: S608 - names come from the operator's manifest and are quoted, values are parameters

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cached_property
from itertools import groupby
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from engine.errors import ExpressionError
from engine.fields import Field
from engine.filters import exponent
from engine.manifest import Entity, Platform
from engine.ports import Confirm, HostChange, HostPage, Record
from server.db import exact_json
from server.errors import HostError, NotFoundError

VENUE = "venue"  # the entity that is the venue itself

# A row's changed-at is when its transaction began, and the row is seen when that transaction ends. Positions
# stay this far behind the clock, so that a slow one isn't passed over; a record read twice costs no call.
SETTLING = timedelta(seconds=60)

_TIMES = ("timestamptz", "timestamp", "date")
_INTEGERS = ("int2", "int4", "int8")
_JSON = ("json", "jsonb")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column in SQL: its quoted name, what reads it, and its type."""

    name: str
    read: str
    type: str  # PostgreSQL's own name, such as int8
    sql_type: str  # quoted, for casts


@dataclass(frozen=True)
class _Source:
    """An entity as the database really has it."""

    entity: Entity
    sql: str  # what stands after FROM
    key: _Column
    venue: _Column
    changed_at: _Column
    fields: Mapping[str, _Column]

    @cached_property
    def select(self) -> str:
        columns = (self.key, self.changed_at, *self.fields.values())
        return f"SELECT {', '.join(column.read for column in columns)} FROM {self.sql}"

    def record(self, row: Sequence[Any]) -> Record:
        """Make a record of a row that `select` read."""
        record: Record = {"id": _plain(row[0]), "changed_at": _plain(row[1])}
        for path, column, value in zip(self.fields, self.fields.values(), row[2:], strict=True):
            record[path] = _value(self.entity.fields[path], column, value)
        for path, field in self.entity.fields.items():
            if field.type == "money" and field.unit == "minor" and record[path] is not None:
                record[path] = _major(record[path], record.get(field.currency or ""))
        return record

    def keys(self, ids: Iterable[str]) -> list[str]:
        """Return those ids that can be keys here; the others name no record."""
        return [each for each in ids if _is_key(self.key.type, each)]


class SqlHost:
    """`engine.ports.HostStore` over a PostgreSQL database, for one venue.

    Records carry `changed_at` besides `id` and their fields. Raises HostError when the database isn't as the
    manifest says.
    """

    def __init__(
        self, engine: AsyncEngine, platform: Platform, venue_id: UUID | str, *, settling: timedelta = SETTLING
    ) -> None:
        self._engine = engine
        self._platform = platform
        self._venue_id = str(venue_id)
        self._settling = settling
        self._sources: dict[str, _Source] = {}

    async def venue(self) -> Record:
        found = await self.fetch(VENUE, [self._venue_id])
        if self._venue_id not in found:
            raise NotFoundError("the platform has no such venue")
        return found[self._venue_id]

    async def changed(
        self,
        entity: str,
        since: Mapping[str, Any] | None,
        *,
        page_size: int = 500,
        earliest: datetime | None = None,
    ) -> AsyncIterator[HostPage]:
        source = await self._source(entity)
        async with self._engine.connect() as connection:
            horizon = await self._horizon(connection, source, check_nulls=since is None)
        after = since
        if after is None and earliest is not None and source.changed_at.type in _TIMES:
            after = {"changed_at": _plain(earliest)}
        while True:
            rows = await self._read(*_page_query(source, self._venue_id, after, page_size))
            if not rows:
                return
            after = {"changed_at": _plain(rows[-1][1]), "id": _plain(rows[-1][0])}
            settled = horizon is None or rows[-1][1] <= horizon
            position = after if settled else {"changed_at": _plain(horizon)}
            yield HostPage([source.record(row) for row in rows], position)
            if len(rows) < page_size:
                return

    async def fetch(self, entity: str, ids: Sequence[str]) -> dict[str, Record]:
        source = await self._source(entity)
        keys = source.keys(ids)
        if not keys:
            return {}
        query = f"{source.select} WHERE {_IN_VENUE.format(source.venue)} AND {_AMONG.format(source.key)}"
        records = map(source.record, await self._read(text(query), {"venue": self._venue_id, "ids": keys}))
        return {record["id"]: record for record in records}

    async def find(self, entity: str, field: str, values: Sequence[str]) -> dict[str, list[str]]:
        source = await self._source(entity)
        wanted = {value.lower() for value in values if "\0" not in value}
        if not wanted:
            return {}
        column = source.fields[field]
        as_text = column.read if column.type in ("text", "varchar", "citext") else f"({column.read})::text"
        query = f"""
            SELECT {source.key.read}, {as_text} FROM {source.sql}
            WHERE {_IN_VENUE.format(source.venue)} AND lower({as_text}) = ANY(CAST(:values AS text[]))
            ORDER BY {source.key.read}
            """
        found: dict[str, list[str]] = {}
        for key, value in await self._read(text(query), {"venue": self._venue_id, "values": list(wanted)}):
            found.setdefault(value.lower(), []).append(_plain(key))
        return found

    async def upsert(
        self, entity: str, changes: Sequence[HostChange], confirm: Confirm | None = None
    ) -> dict[str, str]:
        source = await self._source(entity)
        if source.entity.table is None:
            raise HostError(f"`{entity}` is read by a query and can't be written")
        merged = _merged(changes)
        known = await self._currencies(source, merged)
        refused: dict[str, str] = {}
        rows: list[_Row] = []
        for change in merged:
            try:
                rows.append(_row(source, change, known.get(change.local_id, {})))
            except _RefusedError as refusal:
                refused[change.local_id] = str(refusal)
        # In the order of ids, so that two runs over the same records wait for each other.
        rows.sort(key=lambda row: (row.shape, row.id))
        async with self._engine.begin() as connection:
            for _, group in groupby(rows, key=lambda row: row.shape):
                refused |= await self._write(connection, source, list(group))
            if confirm is not None:
                await confirm()
        return refused

    async def _write(
        self, connection: AsyncConnection, source: _Source, rows: list["_Row"]
    ) -> dict[str, str]:
        """Write rows of one shape; where the database refuses them together, find out which ones it means."""
        try:
            async with connection.begin_nested():
                return await self._write_together(connection, source, rows)
        except DBAPIError as error:
            refusal = _refusal(source, error)
            if refusal is None:
                raise
            if len(rows) == 1:
                return {rows[0].id: refusal}
        half = len(rows) // 2
        first = await self._write(connection, source, rows[:half])
        return first | await self._write(connection, source, rows[half:])

    async def _write_together(
        self, connection: AsyncConnection, source: _Source, rows: list["_Row"]
    ) -> dict[str, str]:
        values: dict[str, Any] = {"venue": self._venue_id, "ids": [row.id for row in rows]}
        for number in range(len(rows[0].values)):
            values[f"c{number}"] = [row.values[number] for row in rows]
        written = await connection.execute(_write_query(source, rows[0]), values)
        missing = {row.id for row in rows} - {_plain(key) for key in written.scalars()}
        if missing:  # unchanged, or not this venue's
            query = text(
                f"SELECT {source.key.read} FROM {source.sql} "
                f"WHERE {_IN_VENUE.format(source.venue)} AND {_AMONG.format(source.key)}"
            )
            known = await connection.execute(query, {"venue": self._venue_id, "ids": list(missing)})
            missing -= {_plain(key) for key in known.scalars()}
        return dict.fromkeys(missing, "the platform has no such record in this venue")

    async def _currencies(self, source: _Source, changes: Sequence[HostChange]) -> dict[str, Record]:
        """Read the records whose amounts, in minor units, come without a currency."""
        amounts = [
            (path, field.currency) for path, field in source.entity.fields.items() if field.unit == "minor"
        ]
        ids = [
            change.local_id
            for change in changes
            if any(path in change.values and currency not in change.values for path, currency in amounts)
        ]
        return await self.fetch(source.entity.name, ids) if ids else {}

    async def _read(self, query: TextClause, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        async with self._engine.connect() as connection:
            return (await connection.execute(query, values)).all()

    async def _horizon(
        self, connection: AsyncConnection, source: _Source, *, check_nulls: bool
    ) -> datetime | date | None:
        if check_nulls:
            query = text(
                f"SELECT EXISTS (SELECT FROM {source.sql} "
                f"WHERE {_IN_VENUE.format(source.venue)} AND {source.changed_at.read} IS NULL)"
            )
            if await connection.scalar(query, {"venue": self._venue_id}):
                raise HostError(f"`{source.entity.name}` has records without a value of `changed_at`")
        if source.changed_at.type not in _TIMES:
            return None
        query = text(f"SELECT CAST(now() - CAST(:settling AS interval) AS {source.changed_at.sql_type})")
        horizon: datetime | date | None = await connection.scalar(query, {"settling": self._settling})
        return horizon

    async def _source(self, name: str) -> _Source:
        if name not in self._sources:
            entity = self._platform.entities.get(name)
            if entity is None:
                raise HostError(f"the platform has no entity `{name}`")
            async with self._engine.connect() as connection:
                self._sources[name] = await _look_at(connection, entity)
        return self._sources[name]


# ---- reading -----------------------------------------------------------------------------------------

_IN_VENUE = "{0.read} = CAST(CAST(:venue AS text) AS {0.sql_type})"
_AMONG = "{0.read} = ANY(CAST(CAST(:ids AS text[]) AS {0.sql_type}[]))"


def _page_query(
    source: _Source, venue_id: str, after: Mapping[str, Any] | None, page_size: int
) -> tuple[TextClause, dict[str, Any]]:
    key, changed_at = source.key, source.changed_at
    values: dict[str, Any] = {"venue": venue_id, "limit": page_size}
    condition = ""
    if after is not None:
        values["changed_at"] = str(after["changed_at"])
        condition = f"AND {changed_at.read} >= CAST(CAST(:changed_at AS text) AS {changed_at.sql_type})"
        if "id" in after:
            values["id"] = str(after["id"])
            condition = (
                f"AND ({changed_at.read}, {key.read}) > ("
                f"CAST(CAST(:changed_at AS text) AS {changed_at.sql_type}), "
                f"CAST(CAST(:id AS text) AS {key.sql_type}))"
            )
    query = (
        f"{source.select} WHERE {_IN_VENUE.format(source.venue)} {condition} "
        f"ORDER BY {changed_at.read}, {key.read} LIMIT :limit"
    )
    return text(query), values


async def _look_at(connection: AsyncConnection, entity: Entity) -> _Source:
    """Ask the database what an entity's columns are; raises HostError naming what it doesn't have."""
    if entity.table is not None:
        source = ".".join(map(_quoted, entity.table.split(".")))
    else:
        # In SQLAlchemy's texts a single colon would start a parameter's name.
        source = "(" + re.sub(r"(?<!:):(?!:)", r"\:", entity.query or "") + ") AS source"
    paths = {path: (field.column or path).split(".") for path, field in entity.fields.items()}
    special = [entity.key, entity.venue, entity.changed_at]
    wanted = list(dict.fromkeys([*special, *(steps[0] for steps in paths.values())]))
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    try:
        prepared = await raw.prepare(
            f"SELECT {', '.join(map(_quoted, wanted))} FROM {source.replace(chr(92) + ':', ':')} LIMIT 0"
        )
    except (asyncpg.PostgresSyntaxError, asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError) as error:
        raise HostError(
            f"the platform's `{entity.name}` can't be read as its manifest says: {error}"
        ) from None
    except asyncpg.InvalidSchemaNameError as error:
        raise HostError(
            f"the platform's `{entity.name}` can't be read as its manifest says: {error}"
        ) from None
    columns = {
        name: _column(name, each.type) for name, each in zip(wanted, prepared.get_attributes(), strict=True)
    }
    return _Source(
        entity=entity,
        sql=source,
        key=columns[entity.key],
        venue=columns[entity.venue],
        changed_at=columns[entity.changed_at],
        fields={path: _inside(columns[steps[0]], steps[1:]) for path, steps in paths.items()},
    )


def _column(name: str, kind: Any) -> _Column:
    base = kind.name.removesuffix("[]")
    sql_type = f"{_quoted(kind.schema)}.{_quoted(base)}" + kind.name[len(base) :]
    quoted = _quoted(name)
    # The driver has no JSON of its own here; as text it keeps its decimals.
    return _Column(quoted, f"{quoted}::text" if base in _JSON else quoted, kind.name, sql_type)


def _inside(column: _Column, steps: Sequence[str]) -> _Column:
    """Return what reads a path inside a column of JSON."""
    if not steps:
        return column
    if column.type not in _JSON:
        raise HostError(f"{column.name} isn't a column of JSON, so it has no `{'.'.join(steps)}`")
    path = ", ".join("'" + step.replace("'", "''").replace(":", r"\:") + "'" for step in steps)
    return _Column("", f"({column.name} #> ARRAY[{path}])::text", "jsonb", "pg_catalog.jsonb")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_key(kind: str, text: str) -> bool:
    try:
        if kind == "uuid":
            UUID(text)
        elif kind in _INTEGERS:
            return abs(int(text)) < 2**63
    except ValueError:
        return False
    return "\0" not in text


def _plain(value: Any) -> str:
    """Write a key or a moment as text: RFC 3339 for times."""
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat().removesuffix("+00:00") + "Z"
    return value.isoformat() if isinstance(value, date) else str(value)


def _value(field: Field, column: _Column, value: Any) -> Any:
    """Make a plain value of what the driver read."""
    if value is not None and column.type in _JSON:
        value = exact_json.loads(value)
    if value is None or field.type in ("list", "object", "any"):
        return value
    if field.type in ("money", "decimal"):
        return value if isinstance(value, Decimal) else _decimal(value)
    if field.type == "integer":
        return int(value)
    if field.type == "boolean":
        return bool(value)
    return _plain(value)


def _decimal(value: Any) -> Decimal | None:
    try:
        return Decimal(str(value))  # by way of text: a float column means what it prints
    except InvalidOperation:
        return None


def _major(amount: Decimal, currency: Any) -> Decimal | None:
    """Return an amount in major units; None when its currency isn't known, for then it means nothing."""
    try:
        return amount.scaleb(-exponent(currency)) if isinstance(currency, str) else None
    except ExpressionError:
        return None


# ---- writing -----------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """One record can't be written; the message goes into its outcome and shows no value."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A record to write, as texts in the order of its shape."""

    id: str
    create: bool
    columns: tuple[str, ...]  # fields that are written
    defaults: tuple[str, ...]  # fields that only a new record gets
    values: tuple[str | None, ...]

    @property
    def shape(self) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
        """What rows must share to be written by one statement."""
        return self.create, self.columns, self.defaults


def _merged(changes: Sequence[HostChange]) -> list[HostChange]:
    """Join changes of one record: the later value counts."""
    merged: dict[str, HostChange] = {}
    for change in changes:
        earlier = merged.get(change.local_id)
        if earlier:
            values = {**earlier.values, **change.values}
            change = HostChange(change.local_id, values, create=earlier.create or change.create)
        merged[change.local_id] = change
    return list(merged.values())


def _row(source: _Source, change: HostChange, known: Record) -> _Row:
    if not _is_key(source.key.type, change.local_id):
        raise _RefusedError(f"the id isn't one of the platform's: it takes {source.key.type}")
    fixed = {source.key.name, source.venue.name, source.changed_at.name, ""}
    for path in change.values:
        if path not in source.fields:
            raise _RefusedError(f"`{path}` isn't a field of `{source.entity.name}`")
        if source.entity.fields[path].read_only or source.fields[path].name in fixed:
            raise _RefusedError(f"`{path}` can't be written")
    defaults = {
        path: value
        for path, value in (source.entity.defaults if change.create else {}).items()
        if path not in change.values
    }
    values = {**defaults, **change.values}
    columns, default_columns = tuple(sorted(change.values)), tuple(sorted(defaults))
    return _Row(
        change.local_id,
        change.create,
        columns,
        default_columns,
        tuple(_written(source, path, {**known, **values}) for path in columns + default_columns),
    )


def _written(source: _Source, path: str, values: Mapping[str, Any]) -> str | None:
    """Return a value as PostgreSQL reads it; raises _RefusedError naming the field, never the value."""
    field, column, value = source.entity.fields[path], source.fields[path], values[path]
    if value is None:
        return None
    if column.type in _JSON or column.type.endswith("[]"):
        return exact_json.dumps(value)
    if field.type == "money":
        amount = _decimal(value)
        if amount is None or not amount.is_finite():
            raise _RefusedError(f"`{path}` isn't an amount")
        if field.unit == "minor":
            amount = _minor(path, amount, values.get(field.currency or ""))
        return format(amount, "f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, list | dict):
        raise _RefusedError(f"`{path}` takes a single value")
    written = str(value)
    if "\0" in written:
        raise _RefusedError(f"`{path}` holds a character the platform can't store")
    return written


def _minor(path: str, amount: Decimal, currency: Any) -> Decimal:
    try:
        minor = amount.scaleb(exponent(str(currency)))
    except ExpressionError:
        raise _RefusedError(f"`{path}` is an amount without a currency") from None
    if minor != minor.to_integral_value():
        raise _RefusedError(f"`{path}` has more decimals than its currency")
    return minor.to_integral_value()


def _write_query(source: _Source, shape: _Row) -> TextClause:
    """Return one statement for all rows of a shape. It returns the keys of rows it really changed."""
    paths = shape.columns + shape.defaults
    columns = [source.fields[path] for path in paths]
    parameters = ["CAST(:ids AS text[])", *(f"CAST(:c{number} AS text[])" for number in range(len(columns)))]
    names = ["id", *(f"c{number}" for number in range(len(columns)))]
    new = f"unnest({', '.join(parameters)}) AS new ({', '.join(names)})"
    values = [_cast(f"new.c{number}", column) for number, column in enumerate(columns)]
    key = f"CAST(new.id AS {source.key.sql_type})"
    now = ["now()"] if source.changed_at.type in _TIMES else []
    written = columns[: len(shape.columns)]
    if shape.create:
        assigned = [f"{column.name} = excluded.{column.name}" for column in written]
        differs = [
            f"{_same('stored', column)} IS DISTINCT FROM {_same('excluded', column)}" for column in written
        ]
        into = [source.key, source.venue, *columns, *([source.changed_at] if now else [])]
        venue = f"CAST(CAST(:venue AS text) AS {source.venue.sql_type})"
        on_conflict = "NOTHING"
        if written:
            touched = [f"{source.changed_at.name} = now()"] if now else []
            on_conflict = f"""UPDATE SET {", ".join(assigned + touched)}
                WHERE stored.{source.venue.name} = excluded.{source.venue.name}
                AND ({" OR ".join(differs)})"""
        return text(
            f"""
            INSERT INTO {source.sql} AS stored ({", ".join(column.name for column in into)})
            SELECT {", ".join([key, venue, *values, *now])} FROM {new}
            ON CONFLICT ({source.key.name}) DO {on_conflict}
            RETURNING stored.{source.key.name}
            """
        )
    assigned = [f"{column.name} = {value}" for column, value in zip(written, values, strict=True)]
    differs = [
        f"{_same('stored', column)} IS DISTINCT FROM {value}{'::text' if column.type == 'json' else ''}"
        for column, value in zip(written, values, strict=True)
    ]
    touched = [f"{source.changed_at.name} = now()"] if now else []
    venue_is = _IN_VENUE.format(_Column("", f"stored.{source.venue.name}", "", source.venue.sql_type))
    return text(
        f"""
        UPDATE {source.sql} AS stored SET {", ".join(assigned + touched)}
        FROM {new}
        WHERE stored.{source.key.name} = {key} AND {venue_is} AND ({" OR ".join(differs) or "false"})
        RETURNING stored.{source.key.name}
        """
    )


def _cast(value: str, column: _Column) -> str:
    if column.type.endswith("[]"):  # a list, sent as JSON
        items = f"ARRAY(SELECT jsonb_array_elements_text({value}::jsonb))::{column.sql_type}"
        return f"CASE WHEN {value} IS NOT NULL THEN {items} END"
    return f"CAST({value} AS {column.sql_type})"


def _same(row: str, column: _Column) -> str:
    # `json` has no equality.
    return f"{row}.{column.name}::text" if column.type == "json" else f"{row}.{column.name}"


_REFUSALS = {
    "23502": "a value that may not be missing is missing",
    "23503": "it refers to a record the platform doesn't have",
    "23505": "another record already has this value",
    "23514": "the platform doesn't allow one of its values",
    "22001": "a text is too long",
}


def _refusal(source: _Source, error: DBAPIError) -> str | None:
    """Say in a sentence, without a value in it, why PostgreSQL refuses a record; None when that isn't it."""
    cause = error.orig.__cause__ if error.orig else None
    if not isinstance(cause, asyncpg.PostgresError) or cause.sqlstate is None:
        return None
    if cause.sqlstate[:2] not in ("22", "23"):
        return None
    column = cause.column_name
    names = [path for path, each in source.fields.items() if column and each.name == _quoted(column)]
    place = f"`{names[0]}`: " if names else ""
    rule = f" ({cause.constraint_name})" if cause.constraint_name else ""
    return place + _REFUSALS.get(cause.sqlstate, "a value doesn't fit its column") + rule
