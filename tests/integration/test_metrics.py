"""Metrics on real stores: what processes counted is one, and states are read without going through tables."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisAwayError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.engine import create_engine, session_factory
from server.telemetry import metrics, states
from server.telemetry.counting import KEY, Flush, counting, read_counts
from server.telemetry.metrics import once_committed
from server.telemetry.states import read_states

CALLS = ("integration_api_calls_total", ("juniper",), "")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(redis_url)
    await client.flushdb()
    metrics.drain()
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
async def sessions(database_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_engine(database_url)
    yield session_factory(engine)
    await engine.dispose()


async def test_what_several_processes_counted_is_one(redis: Redis) -> None:
    one, other = Flush(redis), Flush(redis)
    metrics.API_CALLS.add("juniper", by=2)
    metrics.SYNC_SECONDS.observe(0.5, "juniper")
    await one.flush()
    metrics.API_CALLS.add("juniper", by=3)
    metrics.SYNC_SECONDS.observe(2.25, "juniper")
    await other.flush()
    name = "integration_sync_duration_seconds"
    assert await read_counts(redis) == {
        CALLS: 5,
        (name, ("juniper",), "1.0"): 1,
        (name, ("juniper",), "5.0"): 1,
        (name, ("juniper",), "sum"): 2.75,
    }


async def test_a_batch_whose_answer_was_lost_is_added_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = Flush(redis)
    metrics.API_CALLS.add("juniper")
    add = flush._add

    async def lose_the_answer(**given: Any) -> None:
        await add(**given)
        raise RedisAwayError("reset by peer")

    monkeypatch.setattr(flush, "_add", lose_the_answer)
    with pytest.raises(RedisAwayError):
        await flush.flush()
    metrics.API_CALLS.add("juniper")  # meanwhile
    monkeypatch.setattr(flush, "_add", add)
    await flush.flush()
    assert await read_counts(redis) == {CALLS: 1}
    await flush.flush()
    assert await read_counts(redis) == {CALLS: 2}


async def test_while_redis_is_away_counts_are_kept(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = Flush(redis)
    metrics.API_CALLS.add("juniper")
    add = flush._add

    async def refuse(**_: Any) -> None:
        raise RedisAwayError("refused")

    monkeypatch.setattr(flush, "_add", refuse)
    for _ in range(3):
        await flush.try_flush()
    monkeypatch.setattr(flush, "_add", add)
    await flush.try_flush()
    assert await read_counts(redis) == {CALLS: 1}


async def test_a_process_that_ends_brings_its_last_counts(redis: Redis) -> None:
    async with counting(redis, every=3600):
        metrics.API_CALLS.add("juniper", by=7)
    assert await read_counts(redis) == {CALLS: 7}


async def test_counts_of_another_version_do_no_harm(redis: Redis) -> None:
    name = "integration_sync_duration_seconds"
    for key, value in {
        ("integration_gone_total", ("a",), ""): 1,  # no such metric any more
        ("integration_api_calls_total", ("juniper", "more"), ""): 1,  # with other labels
        (name, ("juniper",), "2.0"): 3,  # a bucket that is no more
        (name, ("juniper",), "5.0"): 4,
        (name, ("juniper",), "7200.0"): 5,
    }.items():
        await redis.hset(KEY, json.dumps(key), value)
    assert await read_counts(redis) == {(name, ("juniper",), "5.0"): 7, (name, ("juniper",), "+Inf"): 5}


async def test_what_is_rolled_back_is_not_counted(sessions: async_sessionmaker[AsyncSession]) -> None:
    metrics.drain()
    async with sessions.begin() as session:
        await session.execute(text("SELECT 1"))
        once_committed(session, lambda: metrics.API_CALLS.add("juniper"))
        async with session.begin_nested():
            await session.execute(text("SELECT 1"))
        assert metrics.drain() == {}
    assert metrics.drain() == {CALLS: 1}
    async with sessions() as session:
        await session.execute(text("SELECT 1"))
        once_committed(session, lambda: metrics.API_CALLS.add("juniper"))
        await session.rollback()
        await session.execute(text("SELECT 1"))
        await session.commit()
    assert metrics.drain() == {}


_FILL = """
INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, priority, status, queued_at,
    lease_owner, lease_expires_at)
SELECT gen_random_uuid(), 'juniper', 'sync', 'full', CAST(:priority AS operation_priority),
    CAST(:status AS operation_status), now() - make_interval(secs => :age), 'w', now()
FROM generate_series(1, :count)
"""


@pytest.fixture(scope="module")
async def filled(sessions: async_sessionmaker[AsyncSession]) -> None:
    """A ledger that is mostly history, as ledgers are."""
    async with sessions.begin() as session:
        for priority, status, age, count in (
            ("NORMAL", "completed", 90_000, 20_000),
            ("CRITICAL", "pending", 3, 2),
            ("LOW", "pending", 60, 1),
            ("LOW", "recovering", 120, 3),
            ("NORMAL", "processing", 30, 4),
            ("NORMAL", "dead_letter", 7200, 5),
        ):
            values = {"priority": priority, "status": status, "age": age, "count": count}
            await session.execute(text(_FILL), values)
        subscriber = await session.scalar(
            text(
                "INSERT INTO event_subscribers (url, events, encrypted_secret) VALUES"
                " ('https://subscriber.example', '{}', 'sealed') RETURNING id"
            )
        )
        for status, health in (("connected", "healthy"), ("connected", "degraded"), ("error", "unhealthy")):
            await session.execute(
                text(
                    "INSERT INTO integration_configs (venue_id, integration_type, status, health_status)"
                    " VALUES (:venue, 'juniper', CAST(:status AS integration_status),"
                    " CAST(:health AS health_status))"
                ),
                {"venue": uuid4(), "status": status, "health": health},
            )
        for seconds, published in (("90", "NULL"), ("10", "NULL"), ("-60", "NULL"), ("500", "now()")):
            await session.execute(
                text(
                    "INSERT INTO outbox (topic, payload, available_at, published_at) VALUES"
                    f" ('sync.completed', '{{}}', now() - interval '{seconds} seconds', {published})"
                )
            )
        for status, age in (("pending", 20), ("pending", 50), ("delivered", 500)):
            await session.execute(
                text(
                    "INSERT INTO event_deliveries (subscriber_id, outbox_id, status, give_up_at, created_at)"
                    " SELECT :subscriber, id, CAST(:status AS delivery_status), now(),"
                    " now() - make_interval(secs => :age) FROM outbox"
                    " WHERE id NOT IN (SELECT outbox_id FROM event_deliveries) LIMIT 1"
                ),
                {"subscriber": subscriber, "status": status, "age": age},
            )
        await session.execute(
            text("UPDATE integration_configs SET circuit_opened_at = now() WHERE status = 'error'")
        )
    async with sessions() as session:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await connection.execute(text("VACUUM ANALYZE sync_queue"))


async def test_states(filled: None, sessions: async_sessionmaker[AsyncSession]) -> None:
    async with sessions() as session:
        found = await read_states(session)
    assert found["integration_connections_total"] == {
        ("juniper", "connected"): 2,
        ("juniper", "error"): 1,
    }
    assert sorted(found["integration_health_status"].values()) == [0.0, 0.5, 1.0]
    assert found["integration_queue_depth"] == {
        ("CRITICAL",): 2,
        ("HIGH",): 0,
        ("NORMAL",): 0,
        ("LOW",): 4,
    }
    assert found["integration_ledger_operations"] == {
        ("critical", "pending"): 2,
        ("low", "pending"): 1,
        ("low", "recovering"): 3,
        ("normal", "processing"): 4,
        ("normal", "dead_letter"): 5,
    }
    ages = {labels: value // 10 * 10 for labels, value in found["integration_ledger_oldest_seconds"].items()}
    assert ages == {
        ("critical", "pending"): 0,
        ("low", "pending"): 60,
        ("low", "recovering"): 120,
        ("normal", "processing"): 30,
    }
    assert found["integration_outbox_waiting"] == {(): 2}
    assert found["integration_outbox_oldest_seconds"][()] // 10 == 9
    assert found["integration_event_deliveries_waiting"] == {(): 2}
    assert found["integration_event_deliveries_oldest_seconds"][()] // 10 == 5
    assert found["integration_circuits_open"] == {("juniper",): 1}


async def test_history_is_not_read(filled: None, sessions: async_sessionmaker[AsyncSession]) -> None:
    async with sessions() as session:
        plan = await session.scalars(text(f"EXPLAIN {states._LEDGER}"))
        assert not [line for line in plan if "Seq Scan" in line]
