"""The audit log on a real database: it grows, and nothing else can be done to it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.engine import create_engine, session_factory
from server.db.models import AuditEntry
from server.services import audit
from server.services.audit import Actor, Wanted
from server.services.denials import Denial, Denials, stranger

Sessions = async_sessionmaker[AsyncSession]
START = datetime(2026, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[Sessions]:
    engine = create_engine(fresh_database_url, pool_size=10)
    yield session_factory(engine)
    await engine.dispose()


async def write(sessions: Sessions, **values: Any) -> int:
    async with sessions.begin() as session:
        entry = AuditEntry(**{"actor": "u", "action": "x.done", **values})
        session.add(entry)
        await session.flush()
        return entry.id


async def run(sessions: Sessions, *statements: str, **values: Any) -> None:
    async with sessions.begin() as session:
        for statement in statements:
            wanted = {name: value for name, value in values.items() if f":{name}" in statement}
            await session.execute(text(statement), wanted)


async def entries(sessions: Sessions) -> list[dict[str, Any]]:
    async with sessions() as session:
        rows = await session.execute(text("SELECT * FROM audit_log ORDER BY id"))
        return [dict(row) for row in rows.mappings()]


ERASING = "SET LOCAL hub.erasing = 'on'"
PSEUDONYM = "erased:" + "0" * 32
TAKE_OUT = (
    f"actor = '{PSEUDONYM}', details = '{{}}', target = NULL, ip = NULL, request_id = NULL, "
    "before = NULL, after = NULL, same = NULL"
)


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE audit_log SET actor = 'somebody else'"],
        ["UPDATE audit_log SET details = '{}'"],
        ["UPDATE audit_log SET count = count + 1"],
        ["DELETE FROM audit_log"],
        ["TRUNCATE audit_log"],
        ["TRUNCATE audit_log, sync_logs"],
        [f"UPDATE audit_log SET {TAKE_OUT}"],
        [ERASING, "DELETE FROM audit_log"],
        [ERASING, "TRUNCATE audit_log"],
        [ERASING, "UPDATE audit_log SET actor = 'somebody else'"],
        [ERASING, f"UPDATE audit_log SET {TAKE_OUT}, action = 'y.done'"],
        [ERASING, f"UPDATE audit_log SET {TAKE_OUT}, created_at = now()"],
        [ERASING, f"UPDATE audit_log SET {TAKE_OUT.replace('ip = NULL, ', '')}"],
    ],
)
async def test_the_database_refuses_to_change_an_entry(sessions: Sessions, statements: list[str]) -> None:
    await write(sessions, ip="203.0.113.7", details={"a": 1})
    before = await entries(sessions)
    with pytest.raises(DBAPIError, match="never changed or deleted"):
        await run(sessions, *statements)
    assert await entries(sessions) == before


async def test_an_erasure_takes_persons_out_and_leaves_what_was_done(sessions: Sessions) -> None:
    venue, other = uuid4(), uuid4()
    await write(
        sessions,
        venue_id=venue,
        role="user",
        ip="203.0.113.7",
        request_id="r",
        target="t",
        details={"a": 1},
        before={"b": 1},
        after={"b": 2},
    )
    [before] = await entries(sessions)
    await run(sessions, ERASING, f"UPDATE audit_log SET {TAKE_OUT}, venue_id = :other", other=other)
    [after] = await entries(sessions)
    kept = ("id", "action", "created_at", "role", "integration_type", "count")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert (after["actor"], after["venue_id"], after["details"]) == (PSEUDONYM, other, {})
    gone = ("target", "ip", "request_id", "before", "after", "same")
    assert [after[name] for name in gone] == [None] * 6


async def test_the_flag_ends_with_its_transaction(sessions: Sessions) -> None:
    await write(sessions)
    async with sessions() as session:
        await session.execute(text(ERASING))
        await session.commit()
        with pytest.raises(DBAPIError, match="never changed"):
            await session.execute(text(f"UPDATE audit_log SET {TAKE_OUT}"))


async def test_attempts_are_one_entry_whichever_process_refused_them(sessions: Sessions) -> None:
    attempt = Denial(Actor("u", "203.0.113.7", role="user"), "FORBIDDEN", "GET /x", uuid4(), "juniper", True)
    processes = [Denials() for _ in range(4)]
    for _ in range(3):
        for process in processes:
            process.note(attempt, START)
            process.note(Denial(stranger("198.51.100.1"), "INVALID_TOKEN"), START)
        await asyncio.gather(*(process.write(sessions) for process in processes))
    known, unknown = sorted(await entries(sessions), key=lambda row: str(row["actor"]), reverse=True)
    assert (known["action"], known["actor"], known["count"]) == ("access.denied", "u", 12)
    assert known["details"] == {"code": "FORBIDDEN", "route": "GET /x", "foreign": True}
    assert (known["venue_id"], known["integration_type"]) == (attempt.venue_id, "juniper")
    assert (unknown["actor"], str(unknown["ip"]), unknown["count"]) == ("anonymous", "198.51.100.1", 12)


async def test_attempts_wait_while_the_database_is_away(sessions: Sessions, fresh_database_url: str) -> None:
    nowhere = create_engine(fresh_database_url.rpartition("/")[0] + "/no_such_database", pooled=False)
    denials = Denials()
    denials.note(Denial(stranger("198.51.100.1"), "INVALID_TOKEN"), START)
    with pytest.raises((DBAPIError, OSError)):
        await denials.write(session_factory(nowhere))
    assert await denials.write(sessions) == 1
    assert [row["count"] for row in await entries(sessions)] == [1]
    assert await denials.write(sessions) == 0


async def test_one_that_cannot_be_stored_keeps_no_others_back(sessions: Sessions) -> None:
    denials = Denials()
    denials.note(Denial(Actor("a\0b"), "INVALID_TOKEN"), START)  # PostgreSQL has no such text
    denials.note(Denial(stranger("198.51.100.1"), "INVALID_TOKEN"), START)
    assert await denials.write(sessions) == 1
    assert [row["actor"] for row in await entries(sessions)] == ["anonymous"]
    assert await denials.write(sessions) == 0


async def test_what_waits_is_written_when_the_process_stops(sessions: Sessions) -> None:
    denials = Denials()
    writing = asyncio.create_task(denials.keep_writing(sessions))
    await asyncio.sleep(0)
    denials.note(Denial(stranger("198.51.100.1"), "INVALID_TOKEN"), START)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert len(await entries(sessions)) == 1


# --- reading


async def some(sessions: Sessions) -> tuple[UUID, list[int]]:
    venue = uuid4()
    ids = [
        await write(
            sessions,
            actor=f"u{number % 2}",
            action=("sync.requested", "sync.stopped", "integration.connected")[number % 3],
            venue_id=venue if number < 6 else None,
            integration_type="juniper" if number < 3 else "other",
            created_at=START + timedelta(minutes=number),
        )
        for number in range(9)
    ]
    return venue, ids


async def found(sessions: Sessions, wanted: Wanted, **options: Any) -> list[int]:
    async with sessions() as session:
        page = await audit.read(session, wanted, **{"limit": 200, **options})
    return [row.id for row in page.rows]


async def test_filters(sessions: Sessions) -> None:
    venue, ids = await some(sessions)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ({"venue_id": venue}, [5, 4, 3, 2, 1, 0]),
        ({"provider": "juniper"}, [2, 1, 0]),
        ({"action": "sync.stopped"}, [7, 4, 1]),
        ({"action": "sync.*"}, [7, 6, 4, 3, 1, 0]),
        ({"action": "sync.%"}, []),
        ({"actor": "u1"}, [7, 5, 3, 1]),
        ({"since": START + timedelta(minutes=7)}, [8, 7]),
        ({"until": START + timedelta(minutes=2)}, [1, 0]),
        ({"venue_id": venue, "actor": "u0", "action": "sync.requested"}, [0]),
    ]
    for wanted, places in cases:
        assert await found(sessions, Wanted(**wanted)) == [ids[place] for place in places], wanted


async def test_pages_by_cursor_stay_though_entries_are_added(sessions: Sessions) -> None:
    _, ids = await some(sessions)
    seen: list[int] = []
    after: int | None = None
    while True:
        async with sessions() as session:
            page = await audit.read(session, Wanted(), limit=4, after=after)
        seen += [row.id for row in page.rows]
        if page.next_key is None:
            break
        after = int(page.next_key[0])
        await write(sessions)
    assert seen == ids[::-1]
    assert page.total == len(ids) + 2
    assert await found(sessions, Wanted(), limit=2, offset=3) == [ids[7], ids[6]]
