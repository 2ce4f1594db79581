"""Recognisable secrets, and a look for them in whatever the suite leaves behind.

Every token, key and secret that tests give the hub holds `MARK`, or is one of `WORDS`. The fixtures that run
a hub look at what it wrote before they throw it away: databases, Redis, log files, answers. What tests print
and log is looked at as well. One find, and the whole run has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
from sqlalchemy.engine import make_url

MARK = "canary7"
# The stand-ins' own applications have secrets that people type in by hand, so they don't hold the mark.
WORDS = (MARK, "sq0csp-demo", "mailchimp-demo-secret", "demo-quickbooks-secret")
AROUND = 60  # characters that are shown before and after a find
_found: dict[str, str] = {}  # by place: what is around the first find there
# A row as text. Bytes are written in a way in which text that they hold can be read.
_ROW = (
    "(SELECT string_agg(CASE WHEN value ~ '^\\\\x([0-9a-f]{2})*$' THEN encode(value::bytea, 'escape') "
    "ELSE value END, ' ') FROM jsonb_each_text(to_jsonb(r)))"
)


def planted(kind: str, more: str = "") -> str:
    """Return a secret to give the hub: it says what it is, and is found wherever it is written down."""
    return f"{MARK}-{kind}{more}"


def finds() -> dict[str, str]:
    """Return what was found so far, by place."""
    return _found


def look(place: str, content: str | bytes) -> None:
    """Look at one piece of what was left behind. A find is remembered, and fails the run at its end."""
    seen = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    at = max(seen.find(word) for word in WORDS)
    if at >= 0:
        _found.setdefault(place, seen[max(0, at - AROUND) : at + AROUND])


def look_at_files(place: str, files: Iterable[Path]) -> None:
    """Look at log files."""
    for file in files:
        look(f"{place}: {file.name}", file.read_bytes())


def look_at_redis(place: str, url: str) -> None:
    """Look at every key of a database, and at all that is under it, whatever its type."""
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            look(f"{place}: a key of Redis", key)
            for value in _held(client, key):
                look(f"{place}: Redis, {key.decode(errors='replace')}", value)


def _held(client: redis.Redis, key: bytes) -> list[bytes]:
    """Return what is under a key as plain bytes: a dump of it would be compressed."""
    held: Any
    match client.type(key):
        case b"string":
            held = [client.get(key)]
        case b"hash":
            held = client.hgetall(key)
        case b"list":
            held = client.lrange(key, 0, -1)
        case b"set":
            held = client.smembers(key)
        case b"zset":
            held = client.zrange(key, 0, -1)
        case b"stream":
            held = client.xrange(key)
        case _:  # gone meanwhile
            held = []
    return [repr(held).encode()]


async def look_at_tables(place: str, connection: asyncpg.Connection) -> set[str]:
    """Look at every row of every table; returns the names of the tables that have any."""
    tables = await connection.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    if not tables:
        return set()
    # One query for all, for this is done after each test; and whatever is empty, as most is, costs little.
    each = [f"SELECT '{t['name']}' AS name WHERE EXISTS (SELECT FROM {t['name']})" for t in tables]
    filled = [t["name"] for t in await connection.fetch(" UNION ALL ".join(each))]
    for name in filled:
        for row in await connection.fetch(f"SELECT {_ROW} FROM {name} AS r"):
            look(f"{place}: table {name}", row[0])
    return set(filled)


def look_at_database(place: str, url: str) -> None:
    """Look at every row of every table."""

    async def work() -> None:
        connection = await asyncpg.connect(
            make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        try:
            await look_at_tables(place, connection)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:  # whether or not this thread has an event loop running
        thread.submit(asyncio.run, work()).result()


# ---- hooks, which tests/conftest.py names


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, content in report.sections:
        look(f"{report.nodeid}: {name}", content)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    workers = getattr(session.config, "workeroutput", None)
    if workers is not None:
        workers["canary"] = dict(_found)
    elif _found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _found.update(getattr(node, "workeroutput", {}).get("canary", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _found:
        terminalreporter.section("secrets that were written down", red=True)
        for place, around in _found.items():
            terminalreporter.write_line(f"{place}: {around!r}")
