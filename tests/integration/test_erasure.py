"""A venue is erased completely, and that is proved; whatever is killed, comes in or goes on meanwhile."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from server.db.models import (
    AuditEntry,
    Base,
    IntegrationConfig,
    IntegrationStatus,
    MaintenanceRun,
    Operation,
    OperationStatus,
    OperationType,
    RecordLink,
)
from server.errors import BeingErasedError
from server.services import audit, erasure, export, integrations, maintenance, operations, upkeep, venues
from server.services.audit import Actor
from server.worker.context import WorkerContext
from tests import claims
from tests.integration.test_export import ACTOR, context, fill, first_failure_is_the_last, links

__all__ = ("context", "first_failure_is_the_last")  # fixtures


async def erase(context: WorkerContext, venue_id: UUID) -> MaintenanceRun:
    run = await erasure.start(context, ACTOR, venue_id)
    run = await upkeep.work_to_end(context, run.id)
    assert (run.status.value, run.error) == ("completed", None)
    return run


async def left(context: WorkerContext, venue_id: UUID) -> dict[str, int]:
    """Count a venue's rows by hand, in every table with a column of that name, whatever the code believes."""
    async with context.sessions() as session:
        tables = await session.scalars(
            text(
                "SELECT table_name::text FROM information_schema.columns"
                " WHERE table_schema = 'public' AND column_name = 'venue_id'"
            )
        )
        counts = {
            table: await session.scalar(
                text(f'SELECT count(*) FROM "{table}" WHERE venue_id = :venue'), {"venue": venue_id}
            )
            for table in tables.all()
        }
    return {table: count for table, count in counts.items() if count}


async def dump(context: WorkerContext, *without: str) -> str:
    """Return everything in the database as text."""
    async with context.sessions() as session:
        tables = [name for name in Base.metadata.tables if name not in without]
        rows = [
            await session.scalar(text(f'SELECT string_agg("{table}"::text, chr(10)) FROM "{table}"'))
            for table in tables
        ]
    return "\n".join(row or "" for row in rows)


def test_every_table_is_erased_or_says_why_not() -> None:
    with_venue = {table.name for table in venues.venue_tables()}
    assert with_venue == {name for name, table in Base.metadata.tables.items() if "venue_id" in table.columns}
    assert set(erasure.KEPT) < with_venue
    without = set(Base.metadata.tables) - with_venue
    assert without == set(erasure.OF_NO_VENUE), "say what of a venue is in a table that has no venue_id"
    assert all(len(reason) > 10 for reason in {**erasure.KEPT, **erasure.OF_NO_VENUE}.values())


async def test_nothing_of_the_venue_is_left_and_all_of_the_others(context: WorkerContext) -> None:
    ours, theirs = uuid4(), uuid4()
    await fill(context, ours)
    before = await left(context, ours)
    assert set(before) == {table.name for table in venues.venue_tables()} - {"maintenance_runs"}
    await links(context, theirs, 30)
    run = await erase(context, ours)
    assert await left(context, ours) == {"maintenance_runs": 1}
    assert await left(context, theirs) == {"record_links": 30}
    assert run.result is not None
    told = run.result["tables"]
    assert {name: entry["left"] for name, entry in told.items()} == dict.fromkeys(told, 0)
    for name in set(before) - {"audit_log"}:  # disconnecting adds entries; what it deletes counts as well
        assert told[name]["erased"] == before[name], name
    assert run.result["rounds"] == 1
    assert run.result["kept"].keys() == {"audit_log", "maintenance_runs"}
    assert datetime.now(UTC) - datetime.fromisoformat(run.result["verified_at"]) < timedelta(minutes=1)


async def test_the_venues_id_is_only_where_the_proof_is(context: WorkerContext) -> None:
    venue_id = uuid4()
    await fill(context, venue_id)
    await erase(context, venue_id)
    assert str(venue_id) not in await dump(context, "maintenance_runs", "audit_log")
    async with context.sessions() as session:
        entries = await session.scalars(
            select(AuditEntry.action).where(AuditEntry.target == str(venue_id)).order_by(AuditEntry.id)
        )
        assert entries.all() == ["erasure.requested", "erasure.completed"]
        others = await session.scalar(
            text(
                "SELECT count(*) FROM audit_log"
                " WHERE audit_log::text LIKE :id AND action NOT LIKE 'erasure.%'"
            ),
            {"id": f"%{venue_id}%"},
        )
    assert others == 0


async def test_what_was_done_is_still_known_and_not_by_whom(context: WorkerContext) -> None:
    venue_id, other = uuid4(), uuid4()
    async with context.sessions.begin() as session:
        for number, name in enumerate(("anna", "bert", "anna")):
            actor = Actor(name, f"203.0.113.{number}", "r", "venue_admin")
            audit.record(
                session,
                actor,
                f"x.{number}",
                venue_id=venue_id,
                provider="juniper",
                target="t",
                details={"a": 1},
            )
        audit.record(session, Actor("anna", "203.0.113.9"), "x.9", venue_id=other)
    await erase(context, venue_id)
    async with context.sessions() as session:
        rows = (
            await session.scalars(
                select(AuditEntry).where(AuditEntry.action.like("x._")).order_by(AuditEntry.id)
            )
        ).all()
    assert [(row.action, row.role, row.integration_type) for row in rows] == [
        ("x.0", "venue_admin", "juniper"),
        ("x.1", "venue_admin", "juniper"),
        ("x.2", "venue_admin", "juniper"),
        ("x.9", None, None),
    ]
    anna, bert, again, elsewhere = (row.actor for row in rows)
    assert anna == again != bert
    assert {anna[:7], bert[:7]} == {"erased:"}
    assert elsewhere == "anna"
    assert [row.ip and str(row.ip) for row in rows] == [None, None, None, "203.0.113.9"]
    assert len({row.venue_id for row in rows[:3]} | {venue_id}) == 2
    assert {(row.target, row.request_id, str(row.details)) for row in rows[:3]} == {(None, None, "{}")}


async def test_nobody_can_find_the_name_again_by_guessing(context: WorkerContext) -> None:
    """The salt of the pseudonyms isn't stored anywhere once the run has ended."""
    venue_id = uuid4()
    await fill(context, venue_id)
    run = await erasure.start(context, ACTOR, venue_id)
    salt = run.position["salt"]
    assert len(salt) == 64
    await upkeep.work_to_end(context, run.id)
    assert salt not in await dump(context)


async def test_keys_in_redis_are_gone(context: WorkerContext) -> None:
    venue_id, other = uuid4(), uuid4()
    for venue in (venue_id, other):
        await context.redis.hset(f"hub:budget:{{juniper production venue {venue}}}", "tokens", "1")
        await context.redis.zadd(f"hub:slots:{{juniper production venue {venue}}}:turns", {"a": 1})
    run = await erase(context, venue_id)
    assert run.result is not None
    assert run.result["redis_keys"] == {"erased": 2, "left": 0}
    assert await erasure.redis_keys(context, venue_id) == []
    assert len(await erasure.redis_keys(context, other)) == 2


async def test_exports_are_erased_with_their_archives(context: WorkerContext) -> None:
    venue_id = uuid4()
    done = await export.start(context, ACTOR, venue_id)
    await upkeep.work_to_end(context, done.id)
    under_way = await export.start(context, ACTOR, venue_id)
    await erase(context, venue_id)
    async with context.sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM export_parts")) == 0
        assert await session.get(MaintenanceRun, under_way.id) is None
        assert await session.get(MaintenanceRun, done.id) is None


async def test_a_large_venue_goes_in_batches(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "AT_ONCE", 100)
    monkeypatch.setattr(erasure, "EACH_BATCH", 500)
    venue_id = uuid4()
    await links(context, venue_id, 2300)
    run = await erasure.start(context, ACTOR, venue_id)
    seen: list[int] = []

    def told(run: MaintenanceRun) -> None:
        seen.append(run.progress["done"])
        assert run.progress["total"] == 2300

    run = await upkeep.work_to_end(context, run.id, told)
    for count in (500, 1000, 1500, 2000, 2300):
        assert count in seen
    assert run.progress == {"step": "verified", "done": 2300, "total": 2300, "failed": 0}


async def test_cut_off_at_every_batch_it_ends_all_the_same(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `kill -9` leaves it: each batch is done once for nothing before it is done."""
    monkeypatch.setattr(erasure, "AT_ONCE", 100)
    monkeypatch.setattr(erasure, "EACH_BATCH", 200)
    venue_id = uuid4()
    await fill(context, venue_id)
    await links(context, venue_id, 450)
    run = await erasure.start(context, ACTOR, venue_id)
    while run.status in maintenance.UNFINISHED:
        async with context.sessions() as session:
            cut = await session.get_one(MaintenanceRun, run.id)
            await erasure.step(context, session, cut)
            await session.flush()
            await session.rollback()
        async with context.sessions.begin() as session:
            await session.execute(update(MaintenanceRun).values(next_attempt_at=func.now()))
        assert await maintenance.work_one(context, upkeep.KINDS, only=run.id)
        async with context.sessions() as session:
            run = await maintenance.read(session, run.id)
    assert run.status.value == "completed"
    assert await left(context, venue_id) == {"maintenance_runs": 1}


async def test_twice_is_fine_and_at_once_is_the_same_run(context: WorkerContext) -> None:
    venue_id = uuid4()
    await fill(context, venue_id)
    runs = await asyncio.gather(*(erasure.start(context, ACTOR, venue_id) for _ in range(5)))
    assert len({run.id for run in runs}) == 1
    await upkeep.work_to_end(context, runs[0].id)
    again = await erase(context, venue_id)
    assert again.id != runs[0].id
    assert again.result is not None
    assert sum(entry["erased"] for entry in again.result["tables"].values()) == 0


# --- what goes on meanwhile


async def integrate(context: WorkerContext, venue_id: UUID) -> None:
    async with context.sessions.begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=venue_id, integration_type="juniper", status=IntegrationStatus.CONNECTED
            )
        )


async def running(context: WorkerContext, venue_id: UUID) -> operations.Claim:
    async with context.sessions.begin() as session:
        operation = await operations.enqueue(
            session,
            venue_id=venue_id,
            provider="juniper",
            operation_type=OperationType.SYNC,
            entity_type="full",
            payload={},
        )
    claim = await claims.claim(context.engine, operation.id, owner="w", lease=timedelta(minutes=1))
    assert claim is not None
    return claim


async def until(context: WorkerContext, run: MaintenanceRun, name: str) -> None:
    """Work the run until it is at a step."""
    async with asyncio.timeout(20):
        while True:
            async with context.sessions() as session:
                if (await maintenance.read(session, run.id)).position["step"] == name:
                    return
            await maintenance.work_one(context, upkeep.KINDS, only=run.id)


async def test_integrations_are_disconnected_first(context: WorkerContext) -> None:
    venue_id = uuid4()
    await integrate(context, venue_id)
    run = await erasure.start(context, ACTOR, venue_id)
    await until(context, run, "stopping")
    async with context.sessions() as session:
        [row] = await session.scalars(select(IntegrationConfig))
        [entry] = await session.scalars(select(AuditEntry).filter_by(action="integration.disconnected"))
    assert row.status is IntegrationStatus.DISCONNECTED
    assert (entry.actor, entry.role) == (ACTOR.id, "venue_admin")


async def test_it_waits_for_what_runs(context: WorkerContext) -> None:
    venue_id = uuid4()
    await integrate(context, venue_id)
    claim = await running(context, venue_id)
    run = await erasure.start(context, ACTOR, venue_id)
    await until(context, run, "stopping")
    async with context.sessions.begin() as session:
        assert await operations.heartbeat(session, claim) is operations.Hold.STOP
    await maintenance.work_one(context, upkeep.KINDS, only=run.id)
    async with context.sessions.begin() as session:
        assert (await maintenance.read(session, run.id)).position["step"] == "stopping"
        await operations.pause(session, claim, {})
    await until(context, run, "deleting")


async def test_what_does_not_stop_is_taken_away_from_its_worker(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "PATIENCE", 0.0)
    venue_id = uuid4()
    await integrate(context, venue_id)
    claim = await running(context, venue_id)
    await erase(context, venue_id)
    async with context.sessions.begin() as session:
        assert await operations.heartbeat(session, claim) is operations.Hold.LOST
    assert await left(context, venue_id) == {"maintenance_runs": 1}


async def test_what_comes_in_meanwhile_is_deleted_in_another_round(context: WorkerContext) -> None:
    venue_id = uuid4()
    run = await erasure.start(context, ACTOR, venue_id)
    await until(context, run, "settling")
    await fill(context, venue_id)
    await context.redis.set(f"late:{venue_id}", "1")
    run = await upkeep.work_to_end(context, run.id)
    assert run.result is not None
    assert run.result["rounds"] == 2
    assert await left(context, venue_id) == {"maintenance_runs": 1}
    assert await erasure.redis_keys(context, venue_id) == []


async def test_it_waits_for_transactions_that_were_there_before(context: WorkerContext) -> None:
    venue_id = uuid4()
    run = await erasure.start(context, ACTOR, venue_id)
    async with context.sessions() as late:
        late.add(RecordLink(venue_id=venue_id, integration_type="j", entity="a", resource="a", local_id="1"))
        await late.flush()
        await until(context, run, "settling")
        for _ in range(3):
            async with context.sessions.begin() as session:
                await session.execute(update(MaintenanceRun).values(next_attempt_at=func.now()))
            await maintenance.work_one(context, upkeep.KINDS, only=run.id)
        async with context.sessions() as session:
            assert (await maintenance.read(session, run.id)).position["step"] == "settling"
        await late.commit()
    run = await upkeep.work_to_end(context, run.id)
    assert run.result is not None
    assert (run.result["rounds"], run.result["tables"]["record_links"]) == (2, {"erased": 1, "left": 0})
    assert await left(context, venue_id) == {"maintenance_runs": 1}


async def test_nothing_new_is_taken_while_it_is_under_way(context: WorkerContext) -> None:
    venue_id = uuid4()
    run = await erasure.start(context, ACTOR, venue_id)
    with pytest.raises(BeingErasedError):
        async with context.sessions.begin() as session:
            await integrations.own_integration(session, venue_id, "juniper")
    async with context.sessions.begin() as session:
        await integrations.own_integration(session, uuid4(), "juniper")
    await upkeep.work_to_end(context, run.id)
    async with context.sessions.begin() as session:
        await integrations.own_integration(session, venue_id, "juniper")


async def test_what_was_asked_for_before_does_not_come_after(context: WorkerContext) -> None:
    """Connecting takes its time at the provider: a venue may be erased between asking and storing."""
    venue_id, asked_at = uuid4(), datetime.now(UTC)
    await erase(context, venue_id)
    with pytest.raises(BeingErasedError):
        async with context.sessions.begin() as session:
            await integrations.take_turn(session, venue_id, "juniper", since=asked_at)
    async with context.sessions.begin() as session:
        await integrations.take_turn(session, venue_id, "juniper", since=datetime.now(UTC))


async def test_an_erasure_begins_after_what_found_the_venue_open(context: WorkerContext) -> None:
    venue_id = uuid4()
    async with context.sessions() as earlier:
        await integrations.own_integration(earlier, venue_id, "juniper")
        starting = asyncio.create_task(erasure.start(context, ACTOR, venue_id))
        done, _ = await asyncio.wait({starting}, timeout=0.2)
        assert not done
        await earlier.commit()
    run = await upkeep.work_to_end(context, (await starting).id)
    assert run.result is not None
    assert run.result["tables"]["integration_configs"]["erased"] == 1


async def test_operations_of_others_go_on(context: WorkerContext) -> None:
    ours, theirs = uuid4(), uuid4()
    for venue in (ours, theirs):
        await integrate(context, venue)
    claim = await running(context, theirs)
    await erase(context, ours)
    async with context.sessions.begin() as session:
        assert await operations.heartbeat(session, claim) is operations.Hold.HELD
        [row] = await session.scalars(select(Operation))
    assert (row.venue_id, row.status) == (theirs, OperationStatus.PROCESSING)


async def test_something_that_never_stops_writing_fails_the_run(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "MOST_ROUNDS", 2)

    async def always(*_: Any) -> dict[str, int]:
        return {"record_links": 1}

    monkeypatch.setattr(erasure, "count", always)
    run = await erasure.start(context, ACTOR, uuid4())
    run = await upkeep.work_to_end(context, run.id)
    assert (run.status.value, run.error) == ("failed", "something keeps writing rows of this venue")
