"""Many callers in several processes need a token that ends, and its refresh token works once."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from server.db.engine import create_engine
from tests.authorization_server import AuthorizationServer, Fault, running_authorization_server
from tests.integration.refreshing import environment, integrate, row

PROJECT = Path(__file__).resolve().parents[2]
PROCESSES = 4
CALLERS = 50  # in each process
LONGEST = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


@pytest.fixture(scope="module")
def settings(
    database_url: str,
    redis_url: str,
    server: AuthorizationServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    return environment(database_url, redis_url, tmp_path_factory.mktemp("hub"), server)


@pytest.fixture(scope="module")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(database_url)
    yield made
    await made.dispose()


@asynccontextmanager
async def processes(settings: dict[str, str], count: int) -> AsyncIterator[Sequence[Process]]:
    """Start so many processes, and wait until they are ready."""
    command = [sys.executable, "-m", "tests.integration.refresh_worker"]
    started = [
        await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT, env={**os.environ, **settings}, stdin=PIPE, stdout=PIPE
        )
        for _ in range(count)
    ]
    try:
        for process in started:
            assert await said(process) == b"ready\n"
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def said(process: Process) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readline(), LONGEST)


def tell(process: Process, venue: object, callers: int, what: str = "current") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{venue} {callers} {what}\n".encode())


async def answers(started: Sequence[Process]) -> list[dict[str, Any]]:
    return [orjson.loads(await said(process)) for process in started]


@pytest.fixture(scope="module")
async def fleet(settings: dict[str, str]) -> AsyncIterator[Sequence[Process]]:
    async with processes(settings, PROCESSES) as started:
        yield started


@pytest.fixture(autouse=True)
def good_again(server: AuthorizationServer) -> None:
    server.counts.clear()
    server.faults.clear()
    server.release.clear()


@pytest.mark.parametrize(
    ("expires_in", "refused"),
    [
        pytest.param(timedelta(minutes=-1), False, id="expired"),
        pytest.param(timedelta(minutes=3), False, id="about to expire"),
        pytest.param(timedelta(hours=1), True, id="refused by the provider"),
    ],
)
async def test_two_hundred_callers_cause_one_refresh(
    fleet: Sequence[Process],
    engine: AsyncEngine,
    server: AuthorizationServer,
    expires_in: timedelta,
    refused: bool,
) -> None:
    venue, given = await integrate(engine, server, expires_in=expires_in)
    # The answer is held until everybody had the time to come by, however slow the machine is.
    server.faults.append(Fault(after=True, hold=True))
    for process in fleet:
        tell(process, venue, CALLERS, given["access_token"] if refused else "current")
    await asyncio.to_thread(server.wait_for, lambda: server.counts["refresh_token"] > 0)
    await waiting_for_a_lock(engine, PROCESSES - 1)
    server.release.set()
    told = await answers(fleet)

    assert [each["errors"] for each in told] == [{}] * PROCESSES
    [renewed] = {token for each in told for token in each["tokens"]}
    assert renewed != given["access_token"]
    assert server.lives(renewed)
    assert sum(n for each in told for n in each["tokens"].values()) == PROCESSES * CALLERS
    assert (server.counts["refresh_token"], server.counts["refreshed"], server.counts["reused"]) == (1, 1, 0)
    token = await row(engine, "oauth_tokens", venue)
    assert (token["refresh_count"], token["refresh_failed_count"]) == (1, 0)


async def waiting_for_a_lock(engine: AsyncEngine, count: int) -> None:
    """Wait until so many connections of the fleet wait for a lock: one for each other process, not more."""
    from sqlalchemy import text

    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refresh worker' "
        "AND wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(LONGEST):
        while True:
            async with engine.connect() as connection:
                if (found := await connection.scalar(query)) >= count:
                    assert found == count
                    return
            await asyncio.sleep(0.01)


async def test_a_process_that_is_killed_before_it_is_answered(
    fleet: Sequence[Process], settings: dict[str, str], engine: AsyncEngine, server: AuthorizationServer
) -> None:
    """The provider hasn't done anything: another process renews, as soon as the lock is free."""
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(hold=True))
    async with processes(settings, 1) as (victim,):
        tell(victim, venue, 10)
        await asyncio.to_thread(server.wait_for, lambda: server.counts["refresh_token"] == 1)
        tell(fleet[0], venue, CALLERS)
        await waiting_for_a_lock(engine, 1)
        victim.kill()
        await victim.wait()
    [told] = await answers(fleet[:1])
    assert told["errors"] == {}
    assert list(told["tokens"].values()) == [CALLERS]
    assert (server.counts["refresh_token"], server.counts["refreshed"]) == (2, 1)
    server.release.set()


async def test_killed_between_the_answer_and_the_commit_where_the_used_token_works_on(
    fleet: Sequence[Process], settings: dict[str, str], engine: AsyncEngine, server: AuthorizationServer
) -> None:
    server.behaviour.grace_seconds = 60
    try:
        venue, _ = await integrate(engine, server)
        await kill_with_the_answer_on_its_way(settings, engine, server, venue)
        tell(fleet[0], venue, CALLERS)
        [told] = await answers(fleet[:1])
    finally:
        server.behaviour.grace_seconds = 0
    assert told["errors"] == {}
    [renewed] = told["tokens"]
    assert server.lives(renewed)
    assert server.counts["refreshed"] == 2
    assert (await row(engine, "oauth_tokens", venue))["refresh_started_at"] is None


async def test_killed_between_the_answer_and_the_commit_where_it_works_once(
    fleet: Sequence[Process], settings: dict[str, str], engine: AsyncEngine, server: AuthorizationServer
) -> None:
    """Nothing can save this grant. It is said what happened, once, and nobody asks again and again."""
    venue, _ = await integrate(engine, server)
    await kill_with_the_answer_on_its_way(settings, engine, server, venue)
    for process in fleet:
        tell(process, venue, CALLERS)
    told = await answers(fleet)
    assert [each["tokens"] for each in told] == [{}] * PROCESSES
    assert {error for each in told for error in each["errors"]} == {"TokenRefreshError TOKEN_REFRESH_FAILED"}
    assert (server.counts["refresh_token"], server.counts["reused"]) == (
        2,
        1,
    )  # the killed one's and one more
    integration = await row(engine, "integration_configs", venue)
    assert integration["status"] == "error"
    assert integration["last_error"] == (
        "Juniper no longer accepts this connection (the hub was stopped in the middle of an earlier renewal, "
        "and lost its answer): connect again"
    )


async def kill_with_the_answer_on_its_way(
    settings: dict[str, str], engine: AsyncEngine, server: AuthorizationServer, venue: object
) -> None:
    server.faults.append(Fault(after=True, hold=True))
    async with processes(settings, 1) as (victim,):
        tell(victim, venue, 10)
        await asyncio.to_thread(server.wait_for, lambda: server.counts["refreshed"] == 1)
        victim.kill()
        await victim.wait()
    server.release.set()
