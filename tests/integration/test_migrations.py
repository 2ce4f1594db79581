"""Migrations go up and down over filled tables, and end in what the models say."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from server.db import migrate
from server.db.engine import create_engine, session_factory
from server.db.models import (
    AuditEntry,
    Base,
    Direction,
    DriftEvent,
    EventDelivery,
    EventSubscriber,
    ExportPart,
    FieldConflict,
    FieldMappingTemplate,
    HealthChange,
    IdempotencyKey,
    IntegrationConfig,
    IntegrationCost,
    IntegrationHealth,
    LinkState,
    MaintenanceRun,
    MappingVersion,
    OAuthState,
    OAuthToken,
    ObservedField,
    Operation,
    OperationStatus,
    OperationType,
    OutboxMessage,
    PendingWrite,
    Priority,
    PushPlan,
    PushPlanRecord,
    RecordFailure,
    RecordLink,
    RollupMark,
    SyncLog,
    SyncRollup,
    SyncWatermark,
    VenueApiKey,
    Webhook,
    WebhookDelivery,
    WebhookEndpoint,
)

T = TypeVar("T")
VENUE = UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11")
RUN = UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c12")
OURS = {"venue_id": VENUE, "integration_type": "juniper"}
PAIR = {"entity": "customer", "resource": "customer"}


def one_of_each() -> list[Base]:
    """Rows for every table, with Unicode and nested JSON in them."""
    return [
        FieldMappingTemplate(name="Zaal", integration_type="juniper", mappings={"a": {"b": ["é"]}}),
        IntegrationConfig(**OURS, account="m_7", connection={"location": "L1"}),
        OAuthToken(
            **OURS, encrypted_access_token="hub1.a", scopes=["read", "write"], created_ip="2001:db8::1"
        ),
        VenueApiKey(**OURS, environment="sandbox", encrypted_api_key="hub1.b"),
        Operation(**OURS, operation_type=OperationType.SYNC, entity_type="full", payload={"force": True}),
        SyncLog(**OURS, sync_id=RUN, operation="manual_sync", status="completed", errors=[{"code": "X"}]),
        Webhook(integration_type="juniper", event_type="customer.updated", payload={"name": "Zoë"}),
        WebhookDelivery(
            integration_type="juniper", method="POST", url="https://hub/x", headers={}, body=b"\0", scheme="s"
        ),
        WebhookEndpoint(**OURS, token_hash="0" * 64, encrypted_token="hub1.c"),
        IntegrationHealth(**OURS, success_rate=98.5),
        HealthChange(
            **OURS, from_status="unknown", to_status="healthy", reason="good", explanation="All is well."
        ),
        SyncRollup(
            **OURS,
            width="day",
            bucket=datetime(2026, 11, 1, tzinfo=UTC),
            **dict.fromkeys(("syncs", "failed", "timed", "duration_ms"), 0),
            **dict.fromkeys(("success_count", "error_count", "api_calls"), 0),
            durations=[0],
        ),
        RollupMark(name="syncs", up_to=datetime(2026, 11, 1, tzinfo=UTC)),
        IntegrationCost(**OURS, period_start=date(2026, 11, 1), period_end=date(2026, 11, 30)),
        RecordLink(**OURS, **PAIR, local_id="1", remote_id="c_1", agreed={"name": "Zoë"}),
        SyncWatermark(**OURS, **PAIR, direction=Direction.PULL, position={"cursor": "abc"}),
        PendingWrite(**OURS, **PAIR, call_key="k", items=[{"local_id": "1"}]),
        RecordFailure(
            **OURS, **PAIR, direction=Direction.PUSH, record_id="1", code="X", message="no", retryable=False
        ),
        FieldConflict(
            **OURS,
            **PAIR,
            local_id="1",
            remote_id="2",
            field="name",
            ours="Zoë",
            theirs=None,
            agreed={"ours": "Zo"},
            resolution={"take": "value", "value": "Zoë"},
        ),
        PushPlan(id=RUN, **OURS, sync_type="full", operation_id=RUN, requested_by="u", counts={"update": 1}),
        PushPlanRecord(
            plan_id=RUN,
            venue_id=VENUE,
            **PAIR,
            local_id="1",
            action="update",
            reason="é",
            fields=[{"field": "name", "after": "Zoë"}],
            writes=True,
            pulls_first=False,
            ours="0",
            merged="0",
        ),
        OAuthState(**OURS, state_hash="0" * 64, user_id="u", redirect_uri="https://hub.example/cb"),
        AuditEntry(actor="u", action="connect", details={"provider": "juniper"}),
        MappingVersion(**OURS, version=1, mappings={}, reason="initial"),
        ObservedField(**OURS, resource="customer", path="given_name", types=["text", "null"]),
        DriftEvent(
            **OURS, resource="customer", path="name", kind="added", before=[], after=["text"], evidence=[]
        ),
        OutboxMessage(topic="sync.completed", payload={"run": str(RUN)}, streams=["redis"]),
        EventSubscriber(id=RUN, url="https://hooks.example", events=[], encrypted_secret="hub1.d"),
        EventDelivery(subscriber_id=RUN, outbox_id=1, give_up_at=datetime(2026, 11, 30, tzinfo=UTC)),
        IdempotencyKey(caller="u", key="k", request_hash="0" * 64),
        MaintenanceRun(id=RUN, kind="rotation", requested_by="u", progress={"step": "é", "done": 1}),
        ExportPart(run_id=RUN, number=1, data=b"PK"),
    ]


def on_database(url: str, work: Callable[[AsyncEngine], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        engine = create_engine(url, pooled=False)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


async def fill(engine: AsyncEngine) -> None:
    async with session_factory(engine).begin() as session:
        for row in one_of_each():  # one by one: some belong to others
            session.add(row)
            await session.flush()


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'hub_version'")
        )
        return set(rows.scalars())


async def catalog(engine: AsyncEngine) -> dict[str, list[Any]]:
    """All that PostgreSQL knows of our tables: columns, constraints, indexes with their conditions, enums."""
    queries = {
        "columns": """
            SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                   pg_get_expr(d.adbin, d.adrelid)
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
        "constraints": """
            SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
            FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE true""",
        "indexes": """
            SELECT c.relname, pg_get_indexdef(i.indexrelid)
            FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE true""",
        "enums": """
            SELECT t.typname, array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
            FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid GROUP BY t.typname""",
    }
    ours = " AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'hub_version'"
    async with engine.connect() as connection:
        return {
            name: sorted(
                map(repr, await connection.execute(text(query + (ours if "pg_class" in query else ""))))
            )
            for name, query in queries.items()
        }


async def create_from_models(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


def test_every_table_has_a_row_to_fill_it_with() -> None:
    assert {row.__tablename__ for row in one_of_each()} == set(Base.metadata.tables)


def test_up_filled_down_and_up_again(empty_database_url: str) -> None:
    url = empty_database_url
    assert migrate.current(url) is None
    migrate.upgrade(url)
    assert migrate.current(url) == migrate.head()
    assert on_database(url, tables) == set(Base.metadata.tables)
    on_database(url, fill)

    migrate.downgrade(url, "base")
    assert migrate.current(url) is None
    assert on_database(url, tables) == set()

    migrate.upgrade(url)
    on_database(url, fill)


def test_an_upgrade_keeps_what_is_there(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    on_database(empty_database_url, fill)
    migrate.upgrade(empty_database_url)

    async def counts(engine: AsyncEngine) -> list[int]:
        async with engine.connect() as connection:
            queries = [select(func.count()).select_from(table) for table in Base.metadata.tables.values()]
            return [(await connection.execute(query)).scalar_one() for query in queries]

    assert set(on_database(empty_database_url, counts)) == {1}


def test_a_downgrade_leaves_alone_what_was_gone(empty_database_url: str) -> None:
    """To an older version a link to what was archived, or is to be, is broken: it writes nothing there."""
    migrate.upgrade(empty_database_url)

    async def link(engine: AsyncEngine) -> None:
        async with session_factory(engine).begin() as session:
            session.add_all(
                RecordLink(**OURS, **PAIR, local_id=state, remote_id=state, state=state)
                for state in LinkState
            )

    async def states(engine: AsyncEngine) -> dict[str, str]:
        async with engine.connect() as connection:
            rows = await connection.execute(text("SELECT local_id, state::text FROM record_links"))
            return dict(rows.tuples().all())

    on_database(empty_database_url, link)
    migrate.downgrade(empty_database_url, "0002")
    expected = {"linked": "linked", "broken": "broken", "leaving": "broken", "archived": "broken"}
    assert on_database(empty_database_url, states) == expected
    migrate.upgrade(empty_database_url)
    assert on_database(empty_database_url, states) == expected


def test_migrations_end_in_what_the_models_say(empty_database_url: str, fresh_database_url: str) -> None:
    on_database(empty_database_url, create_from_models)
    assert on_database(fresh_database_url, catalog) == on_database(empty_database_url, catalog)


def test_alembic_sees_no_difference_either(fresh_database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=migrate.OPTIONS), Base.metadata)
        )

    async def compare(engine: AsyncEngine) -> list[Any]:
        async with engine.connect() as connection:
            return await connection.run_sync(differences)

    assert on_database(fresh_database_url, compare) == []


def test_tables_of_the_platform_are_left_alone(empty_database_url: str) -> None:
    async def platform(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE alembic_version (version_num text)"))
            await connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))

    async def theirs(engine: AsyncEngine) -> str:
        async with engine.connect() as connection:
            return str(await connection.scalar(text("SELECT version_num FROM alembic_version")))

    on_database(empty_database_url, platform)
    migrate.upgrade(empty_database_url)
    migrate.downgrade(empty_database_url, "base")
    assert on_database(empty_database_url, theirs) == "theirs"


def test_processes_that_migrate_at_once_wait_for_each_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [empty_database_url] * 4))
    assert migrate.current(empty_database_url) == migrate.head()


async def refused(engine: AsyncEngine, *rows: Base) -> str:
    """Return the name of the constraint that refuses these rows."""
    with pytest.raises(IntegrityError) as caught:
        async with session_factory(engine).begin() as session:
            session.add_all(rows)
    name = getattr(caught.value.orig.__cause__ if caught.value.orig else None, "constraint_name", None)
    assert isinstance(name, str)
    return name


def leased(kind: OperationType, **more: Any) -> Operation:
    return Operation(
        **{
            **OURS,
            "operation_type": kind,
            "entity_type": "full",
            "status": OperationStatus.PROCESSING,
            "lease_owner": "w1",
            "lease_expires_at": datetime(2026, 11, 24, tzinfo=UTC),
            **more,
        }
    )


def test_what_the_database_itself_refuses(fresh_database_url: str) -> None:
    async def attempts(engine: AsyncEngine) -> dict[str, str]:
        async with session_factory(engine).begin() as session:
            session.add(leased(OperationType.SYNC))
            session.add(leased(OperationType.CREATE, integration_type="other"))
            session.add(RecordLink(**OURS, **PAIR, local_id="1", remote_id="c_1"))
            session.add(RecordLink(**OURS, **PAIR, local_id="2", remote_id=None))
            session.add(RecordLink(**OURS, **PAIR, local_id="3", remote_id=None))
        return {
            "second that runs": await refused(engine, leased(OperationType.CREATE)),
            "running without a lease": await refused(engine, leased(OperationType.CREATE, lease_owner=None)),
            "same local record": await refused(
                engine, RecordLink(**OURS, **PAIR, local_id="1", remote_id="c_9")
            ),
            "same remote record": await refused(
                engine, RecordLink(**OURS, **PAIR, local_id="9", remote_id="c_1")
            ),
        }

    assert on_database(fresh_database_url, attempts) == {
        "second that runs": "uq_sync_queue_running",
        "running without a lease": "ck_sync_queue_processing_is_leased",
        "same local record": "uq_record_links_local",
        "same remote record": "uq_record_links_remote",
    }


def test_defaults_are_the_databases_own(fresh_database_url: str) -> None:
    async def look(engine: AsyncEngine) -> Operation:
        async with session_factory(engine).begin() as session:
            session.add_all(
                Operation(**OURS, operation_type=OperationType.SYNC, entity_type=priority, priority=priority)
                for priority in (Priority.LOW, Priority.CRITICAL, Priority.NORMAL, Priority.HIGH)
            )
            session.add(Operation(**OURS, operation_type=OperationType.SYNC, entity_type="default"))
        async with AsyncSession(engine) as session:
            ordered = await session.scalars(select(Operation).order_by(Operation.priority))
            assert [row.priority for row in ordered] == ["CRITICAL", "HIGH", "NORMAL", "NORMAL", "LOW"]
            return await session.scalar(select(Operation).filter_by(entity_type="default")) or Operation()

    row = on_database(fresh_database_url, look)
    assert (row.status, row.attempts, row.max_attempts, row.fencing_token) == ("pending", 0, 10, 0)
    assert row.expires_at - row.queued_at == timedelta(days=7)
    assert row.queued_at.tzinfo is not None
