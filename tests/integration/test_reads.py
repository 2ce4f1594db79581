"""Reads straight over asyncpg: they outlive a database that starts again, and say when it is away."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from server.db.reads import Reads
from server.errors import StoreUnavailableError

PID = "SELECT pg_backend_pid() AS pid"


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Reads]:
    async with Reads(database_url, application_name="reads", connections=1) as opened:
        yield opened


async def test_values_are_given_and_json_is_read(reads: Reads) -> None:
    [row] = await reads.rows("""SELECT $1::int + 1 AS number, '{"a": [1.5]}'::jsonb AS data""", 41)
    assert (row["number"], row["data"]) == (42, {"a": [1.5]})


async def test_times_are_utc(reads: Reads) -> None:
    [row] = await reads.rows("SHOW timezone")
    assert row[0] == "UTC"


async def test_a_connection_that_died_is_replaced(reads: Reads, database_url: str) -> None:
    [before] = await reads.rows(PID)
    other = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    await other.execute("SELECT pg_terminate_backend($1, 5000)", before["pid"])
    await other.close()
    [after] = await reads.rows(PID)
    assert after["pid"] != before["pid"]


async def test_one_that_dies_under_a_statement_is_replaced_once(reads: Reads) -> None:
    with pytest.raises(StoreUnavailableError):
        await reads.rows("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
    assert await reads.rows(PID)


async def test_a_database_that_is_away_is_told() -> None:
    async with Reads("postgresql://hub:x@127.0.0.1:1/hub", application_name="reads") as away:
        with pytest.raises(StoreUnavailableError):
            await away.rows("SELECT 1")


async def test_what_is_wrong_with_a_statement_is_not_taken_for_that(reads: Reads) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError):
        await reads.rows("SELECT nothing")


async def test_more_at_once_than_there_are_connections_wait(reads: Reads) -> None:
    found = await asyncio.gather(*(reads.rows("SELECT $1::int AS number", each) for each in range(20)))
    assert [rows[0]["number"] for rows in found] == list(range(20))
