"""Runs against a simulated provider through a worker: what a sync reads, writes and leaves behind."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy import delete, make_url, select, text, update

from engine.deliveries import Delivery
from engine.errors import HubError
from engine.manifest import Webhooks
from engine.ports import Secret
from engine.sync import Sync, Tally
from engine.webhooks import split_events
from server.catalog import store_templates, template_id
from server.credentials import place
from server.db.models import (
    Direction,
    DriftEvent,
    IntegrationConfig,
    IntegrationStatus,
    Operation,
    OperationStatus,
    OperationType,
    RecordFailure,
    RecordLink,
    SyncLog,
    SyncWatermark,
    VenueApiKey,
    Webhook,
    WebhookDelivery,
    WebhookStatus,
)
from server.demo.generate import SCHEMA
from server.services import operations, recovery, webhooks
from server.services.audit import Actor
from server.services.runs import Run, run_operation
from server.services.webhooks import UNKNOWN_TYPE, Arrival
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context
from server.worker.tasks import Worker, work
from tests.sandbox.core import Answer, FaultRule
from tests.sandbox.running import Sandbox, running_sandbox
from tests.sandbox.stripe import DEFAULT_ACCOUNT

EVENTS = 4


@pytest.fixture(scope="module")
def _serving() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_serving: Sandbox) -> Sandbox:
    _serving.stripe.start_empty()
    return _serving


@pytest.fixture
async def context(fresh_database_url: str, redis_url: str, sandbox: Sandbox) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": fresh_database_url,
            "REDIS_URL": redis_url,
            "HUB_ORIGIN_OVERRIDES": f"https://api.stripe.com={sandbox.stripe_url}",
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    address = make_url(fresh_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(address)
    await connection.execute(SCHEMA.read_text())  # several statements at once
    await connection.close()
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        yield context


@pytest.fixture
async def venue(context: WorkerContext) -> UUID:
    """A venue with four events on sale, one draft, and an integration that is connected."""
    venue_id = uuid4()
    async with context.sessions.begin() as session:
        await store_templates(session, context.catalog)
        await session.execute(
            text(
                "INSERT INTO platform.venues (id, name, type, currency, country, timezone)"
                " VALUES (:id, 'Club', 'music_venue', 'EUR', 'FR', 'Europe/Paris')"
            ),
            {"id": venue_id},
        )
        for number in range(EVENTS + 1):
            await session.execute(
                text(
                    "INSERT INTO platform.events (id, venue_id, name, status, price, currency, updated_at)"
                    " VALUES (:id, :venue, :name, :status, 12.5, 'EUR', '2026-01-01')"
                ),
                {
                    "id": uuid4(),
                    "venue": venue_id,
                    "name": f"Night {number}",
                    "status": "on_sale" if number < EVENTS else "draft",
                },
            )
        session.add(
            IntegrationConfig(
                venue_id=venue_id,
                integration_type="stripe",
                status=IntegrationStatus.CONNECTED,
                environment="sandbox",
                template_id=template_id("stripe", "default"),
                config={"syncEnabled": True, "syncInterval": 300, "syncDirection": "bidirectional"},
            )
        )
        key = VenueApiKey(
            id=uuid4(),
            venue_id=venue_id,
            integration_type="stripe",
            environment="sandbox",
            key_name="bearer",
        )
        key.encrypted_api_key = await context.vault.seal(
            Secret('{"apiKey": "sk_test_demo"}'), place(key, "encrypted_api_key")
        )
        session.add(key)
    return venue_id


async def _run(context: WorkerContext, venue: UUID, **given: Any) -> Operation:
    values: dict[str, Any] = {
        "operation_type": OperationType.SYNC,
        "entity_type": "products",
        "payload": {"syncType": "products", "trigger": "manual_sync"},
        "run_id": uuid4(),
        **given,
    }
    async with context.sessions.begin() as session:
        operation = await operations.enqueue(session, venue_id=venue, provider="stripe", **values)
    await asyncio.wait_for(work(Worker(context, "w"), operation.id), 60)
    async with context.sessions() as session:
        return await session.get_one(Operation, operation.id)


def _counts(operation: Operation, *names: str) -> dict[str, list[int]]:
    assert operation.result is not None
    return {
        f"{step['direction']} {step['entity']} {step['resource']}": [step[name] for name in names]
        for step in operation.result["mappings"]
    }


def _products(sandbox: Sandbox) -> list[str]:
    return sorted(str(product["name"]) for product in sandbox.stripe.stored("product"))


async def test_a_sync_brings_the_provider_in_step_and_a_second_one_calls_nobody(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    first = await _run(context, venue)
    assert (first.status, first.last_error) == ("completed", None)
    assert _counts(first, "read", "created", "skipped", "failed") == {
        "push event product": [5, 4, 1, 0],
        "push event price": [5, 4, 1, 0],
        "push ticket_type price": [0, 0, 0, 0],
    }
    assert _products(sandbox) == ["Night 0", "Night 1", "Night 2", "Night 3"]
    assert [price["unit_amount"] for price in sandbox.stripe.stored("price")] == [1250] * EVENTS
    async with context.sessions() as session:
        logs = list(await session.scalars(select(SyncLog).filter_by(sync_id=first.run_id)))
    assert sorted((log.entity_type, log.status, log.success_count, log.skip_count) for log in logs) == [
        ("event", "completed", 4, 1),
        ("event", "completed", 4, 1),
        ("ticket_type", "completed", 0, 0),
    ]
    calls = (
        sandbox.stripe.counts.total - sandbox.stripe.counts.by_call["GET /v1/account"]
    )  # of the run itself
    assert sum(log.api_calls_made or 0 for log in logs) == calls

    made = sandbox.stripe.counts.total
    second = await _run(context, venue)
    assert second.status == "completed"
    assert all(created == updated == 0 for created, updated in _counts(second, "created", "updated").values())
    assert sandbox.stripe.counts.total == made


async def test_many_events_that_are_gone_wait_for_approval(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO platform.events (id, venue_id, name, status, price, currency, updated_at)"
                " SELECT gen_random_uuid(), :venue, 'Series ' || n, 'on_sale', 10, 'EUR', '2026-01-01'"
                " FROM generate_series(1, 16) AS n"
            ),
            {"venue": venue},
        )
    await _run(context, venue)
    async with context.sessions.begin() as session:
        cancelled = (
            "UPDATE platform.events SET status = 'cancelled', updated_at = now() WHERE name LIKE 'Night %'"
        )
        await session.execute(text(cancelled))
        await session.execute(text("DELETE FROM platform.events WHERE name LIKE 'Series 1%'"))  # 1, 10 to 16

    def in_use() -> int:
        return sum(bool(product["active"]) for product in sandbox.stripe.stored("product"))

    step = "push event product"
    held = await _run(context, venue, payload={"syncType": "products", "options": {"complete": True}})
    assert (held.status, _counts(held, "held", "archived")[step], in_use()) == ("completed", [12, 0], 20)
    assert held.result is not None
    notes = [step["note"] for step in held.result["mappings"] if step["note"]]
    assert {note.split(",")[0] for note in notes} == {"12 of 20 linked records are gone"}

    approved = {"syncType": "products", "options": {"approveDeletes": True}}
    gone = await _run(context, venue, payload=approved)
    assert (_counts(gone, "held", "archived", "failed")[step], in_use()) == ([0, 12, 0], 8)
    async with context.sessions() as session:
        states = await session.scalars(select(RecordLink.state).filter_by(resource="product"))
        assert sorted(states) == ["archived"] * 12 + ["linked"] * 8
        assert (await session.scalars(select(RecordFailure))).all() == []


async def test_one_record_is_pushed_by_an_operation_of_its_own(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    async with context.sessions() as session:
        event_id = await session.scalar(text("SELECT id FROM platform.events WHERE name = 'Night 2'"))
    operation = await _run(
        context,
        venue,
        operation_type=OperationType.UPDATE,
        entity_type="event",
        entity_id=str(event_id),
        payload={},
    )
    assert operation.status == "completed"
    assert _counts(operation, "read", "created") == {
        "push event product": [1, 1],
        "push event price": [1, 1],
    }
    assert _products(sandbox) == ["Night 2"]


async def test_a_failed_record_is_tried_again_alone_on_the_way_it_failed(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    sandbox.stripe.faults.plan([FaultRule("POST /v1/products", "status:400")], 0)
    await _run(context, venue)
    sandbox.stripe.faults.plan([], 0)
    async with context.sessions() as session:
        failed = await session.scalars(select(RecordFailure.record_id).filter_by(resource="product"))
        some, *others = failed.all()
    operation = await _run(
        context,
        venue,
        operation_type=OperationType.UPDATE,
        entity_type="event",
        entity_id=some,
        payload={"direction": "push", "resource": "product"},
    )
    assert _counts(operation, "read", "created") == {"push event product": [1, 1]}
    assert len(_products(sandbox)) == 1
    async with context.sessions() as session:
        left = await session.scalars(select(RecordFailure.record_id).filter_by(resource="product"))
        assert sorted(left.all()) == sorted(others)


async def test_one_record_can_be_pulled_by_itself(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    ledger = sandbox.stripe.ledger(DEFAULT_ACCOUNT, live=False)
    made = [
        sandbox.stripe.new_customer(ledger, {"name": name, "email": f"{name}@example.com"})
        for name in ("ana", "ben")
    ]
    operation = await _run(
        context,
        venue,
        operation_type=OperationType.UPDATE,
        entity_type="customer",
        entity_id=made[1]["id"],
        payload={"direction": "pull", "resource": "customer"},
    )
    assert _counts(operation, "read", "created") == {"pull customer customer": [1, 1]}
    async with context.sessions() as session:
        assert (await session.scalars(text("SELECT email FROM platform.customers"))).all() == [
            "ben@example.com"
        ]


async def test_a_sync_of_which_every_record_failed_has_failed(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    sandbox.stripe.faults.plan([FaultRule("POST /v1/products", "status:400")], 0)
    operation = await _run(context, venue)
    assert (operation.status, operation.attempts) == ("failed", 1)
    assert operation.last_error is not None
    assert operation.last_error.startswith(f"each of {EVENTS * 2} records failed: ")
    assert _counts(operation, "created", "failed")["push event product"] == [0, EVENTS]
    assert operation.result is not None
    assert len(operation.result["failures"]) == EVENTS * 2
    async with context.sessions() as session:
        logs = list(await session.scalars(select(SyncLog).filter_by(sync_id=operation.run_id)))
        integration = (await session.scalars(select(IntegrationConfig))).one()
    assert {(log.status, log.error_count) for log in logs if log.error_count} == {("failed", EVENTS)}
    assert (integration.status, integration.last_error) == ("connected", operation.last_error)


async def test_a_field_that_the_provider_does_not_know_is_left_out_from_then_on(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    unknown = {
        "code": "parameter_unknown",
        "param": "active",
        "message": "Received unknown parameter: active",
    }
    page = Answer(400, {"error": {"type": "invalid_request_error", **unknown}})
    sandbox.stripe.faults.plan([FaultRule("POST /v1/products", "status:400", page=page)], 0)
    for _ in range(2):
        await _run(context, venue)
    async with context.sessions() as session:
        told = await session.scalars(select(DriftEvent.path).filter_by(kind="refused"))
        assert told.all() == ["active"]  # once, for eight records
    assert await schedule.check_drift(context) is True
    sandbox.stripe.faults.plan([], 0)
    await _run(context, venue)
    products = sandbox.stripe.stored("product")
    assert len(products) == EVENTS
    async with context.sessions() as session:
        integration = (await session.scalars(select(IntegrationConfig))).one()
    broken = [each["target"] for each in integration.field_mappings["broken"]]
    assert set(broken) == {"product.active"}


async def test_a_sync_between_dates_looks_at_nothing_else_and_the_next_one_at_all(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(
            text("UPDATE platform.events SET updated_at = '2026-01-15T12:00:00Z' WHERE name = 'Night 1'")
        )
    options = {"startDate": "2026-01-15", "endDate": "2026-01-15"}
    await _run(context, venue, payload={"syncType": "products", "options": options})
    assert _products(sandbox) == ["Night 1"]
    async with context.sessions() as session:
        assert (await session.scalars(select(SyncWatermark))).all() == []
    await _run(context, venue)
    assert _products(sandbox) == ["Night 0", "Night 1", "Night 2", "Night 3"]


async def test_a_record_that_failed_is_tried_again_by_the_next_sync(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    await _run(context, venue)
    async with context.sessions.begin() as session:  # as if one product had been refused for a while
        link = (await session.scalars(select(RecordLink).filter_by(resource="product").limit(1))).one()
        link.fingerprint = None
        session.add(
            RecordFailure(
                venue_id=venue,
                integration_type="stripe",
                entity="event",
                resource="product",
                direction=Direction.PUSH,
                record_id=link.local_id,
                code="SYNC_FAILED",
                message="down",
                retryable=True,
            )
        )
    again = await _run(context, venue)
    assert _counts(again, "updated", "created")["push event product"] == [1, 0]
    async with context.sessions() as session:
        assert (await session.scalars(select(RecordFailure))).all() == []
    assert len(_products(sandbox)) == EVENTS


async def test_a_record_that_could_not_be_pulled_is_asked_for_by_the_next_sync(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    customers = {"entity_type": "customers", "payload": {"syncType": "customers"}}
    ledger = sandbox.stripe.ledger(DEFAULT_ACCOUNT, live=False)
    made = sandbox.stripe.new_customer(ledger, {"name": "Ana Ruiz", "email": "ana@example.com"})
    first = await _run(context, venue, **customers)
    assert _counts(first, "created", "failed")["pull customer customer"] == [1, 0]
    async with context.sessions.begin() as session:  # as if the platform had refused her then
        await session.execute(text("DELETE FROM platform.customers"))
        await session.execute(text("DELETE FROM record_links"))
        await session.execute(  # nothing that changed since then
            update(SyncWatermark)
            .filter_by(direction=Direction.PULL)
            .values(position={"since": (datetime.now(UTC) + timedelta(days=1)).isoformat()})
        )
        session.add(
            RecordFailure(
                venue_id=venue,
                integration_type="stripe",
                entity="customer",
                resource="customer",
                direction=Direction.PULL,
                record_id=made["id"],
                code="REQUIRED_FIELD_MISSING",
                message="refused",
                retryable=True,
            )
        )
    await _run(context, venue, **customers)
    async with context.sessions() as session:
        assert (await session.scalars(text("SELECT email FROM platform.customers"))).all() == [
            "ana@example.com"
        ]
        assert (await session.scalars(select(RecordFailure))).all() == []


async def test_a_revoked_key_fails_the_sync_and_says_so_on_the_integration(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    sandbox.stripe.revoked.add("sk_test_demo")
    operation = await _run(context, venue)
    assert (operation.status, operation.attempts) == ("failed", 1)
    async with context.sessions() as session:
        integration = (await session.scalars(select(IntegrationConfig))).one()
    assert (integration.status, integration.failure_count) == ("error", 1)
    assert integration.last_error == operation.last_error
    assert "sk_test_demo" not in f"{operation.last_error} {operation.result}"


async def test_a_provider_that_is_down_is_tried_again_later(
    context: WorkerContext, venue: UUID, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*args: Any, **options: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr("httpcore.AsyncConnectionPool.handle_async_request", down)
    operation = await _run(context, venue)
    assert (operation.status, operation.attempts) == ("pending", 1)
    assert operation.next_retry_at is not None
    assert _products(sandbox) == []


async def test_a_step_that_fails_holds_up_no_other(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    sandbox.stripe.faults.plan([FaultRule("GET /v1/customers", "status:403")], 0)
    operation = await _run(context, venue, entity_type="full", payload={"syncType": "full"})
    assert operation.status == "failed"
    assert operation.last_error is not None
    assert "403" in operation.last_error
    assert _products(sandbox) == ["Night 0", "Night 1", "Night 2", "Night 3"]
    assert len(sandbox.stripe.stored("price")) == EVENTS
    calls = sandbox.stripe.counts
    assert calls.by_call["GET /v1/charges"] == 0  # orders name customers, so they wait for them
    assert calls.by_call["POST /v1/customers"] == 0
    async with context.sessions() as session:
        logs = list(await session.scalars(select(SyncLog).filter_by(sync_id=operation.run_id)))
    assert {(log.entity_type, log.details["direction"], log.status) for log in logs if log.details} >= {
        ("customer", "pull", "failed"),
        ("order", "pull", "failed"),
        ("customer", "push", "failed"),
        ("event", "push", "completed"),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"payload": {"syncType": "everything"}}, "`everything` isn't a sync type"),
        ({"operation_type": OperationType.UPDATE, "entity_type": "event"}, "the operation names no record"),
        ({"operation_type": OperationType.DELETE}, "an operation of type `delete` can't be worked"),
    ],
)
async def test_what_makes_no_sense_fails_at_once(
    context: WorkerContext, venue: UUID, given: dict[str, Any], message: str
) -> None:
    operation = await _run(context, venue, **given)
    assert (operation.status, operation.attempts) == ("failed", 1)
    assert operation.last_error is not None
    assert message in operation.last_error


async def test_a_disconnected_integration_is_not_synced(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    async with context.sessions.begin() as session:
        await session.execute(update(IntegrationConfig).values(status=IntegrationStatus.DISCONNECTED))
    operation = await _run(context, venue)
    assert (operation.status, operation.last_error) == ("failed", "this `stripe` integration is disconnected")
    assert sandbox.stripe.counts.total == 0


# --- what webhooks tell: the fresh record is read, and takes the way of any pull

KEY = {"Authorization": "Bearer sk_test_demo"}


async def told(
    context: WorkerContext,
    venue: UUID,
    *kinds: tuple[str, str],
    spec: Webhooks | None = None,
    created: int = 1772366340,
) -> list[UUID]:
    """Take in events of Stripe, type and id of the record, as an address of the venue's would; `spec` is a
    manifest of before, `created` when they happened.
    """
    spec = spec or context.catalog.connector("stripe").webhooks
    assert spec is not None
    arrivals = []
    for number, (kind, record) in enumerate(kinds):
        event = {"id": f"evt_{kind}_{record}_{number}", "type": kind, "created": created}
        body = json.dumps({**event, "data": {"object": {"id": record}}}).encode()
        delivery = Delivery("POST", "https://hub.example/x", {"content-type": "application/json"}, body)
        found = split_events(spec, delivery)
        arrivals.append(Arrival("stripe", venue, "hmac_sha256", delivery, found, UNKNOWN_TYPE))
    stored = await webhooks.store(context.reads, arrivals)
    return [each.id for each in stored.operations]


async def worked(context: WorkerContext, *ids: UUID) -> list[Operation]:
    for operation_id in ids:
        await asyncio.wait_for(work(Worker(context, "w"), operation_id), 60)
    async with context.sessions() as session:
        return [await session.get_one(Operation, each) for each in ids]


async def outcomes(context: WorkerContext) -> dict[str, tuple[WebhookStatus, str | None]]:
    async with context.sessions() as session:
        found = await session.scalars(select(Webhook))
        return {event.event_type: (event.status, event.error) for event in found}


async def customer(sandbox: Sandbox, **values: str) -> str:
    async with httpx.AsyncClient() as provider:
        answer = await provider.post(f"{sandbox.stripe_url}/v1/customers", data=values, headers=KEY)
    return str(answer.raise_for_status().json()["id"])


async def customers(context: WorkerContext) -> dict[str, str]:
    async with context.sessions() as session:
        rows = await session.execute(text("SELECT email, first_name FROM platform.customers"))
        return {row.email: row.first_name for row in rows}


async def test_a_record_is_read_afresh_and_an_older_event_undoes_nothing(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    first = await told(context, venue, ("customer.created", ana))
    [operation] = await worked(context, *first)
    assert operation.status is OperationStatus.COMPLETED
    assert await customers(context) == {"ana@example.com": "Ana"}
    async with httpx.AsyncClient() as provider:
        await provider.post(
            f"{sandbox.stripe_url}/v1/customers/{ana}", data={"name": "Anna Ruiz"}, headers=KEY
        )
    later = await told(context, venue, ("customer.updated", ana), ("customer.created", f"{ana}"))
    await worked(context, *later)
    assert await customers(context) == {"ana@example.com": "Anna"}
    assert {status for status, _ in (await outcomes(context)).values()} == {WebhookStatus.PROCESSED}


async def test_events_that_wait_are_worked_together(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ids = [await customer(sandbox, email=f"{n}@example.com", name=f"N{n} X") for n in range(5)]
    queued = await told(context, venue, *(("customer.created", each) for each in ids))
    assert len(queued) == 5
    first, *rest = await worked(context, *queued)
    assert len(await customers(context)) == 5
    assert first.progress is not None
    assert [step["read"] for step in first.progress["mappings"]] == [5]
    assert {each.status for each in rest} == {OperationStatus.COMPLETED}
    assert all(not (each.progress or {}).get("mappings") for each in rest)


async def test_events_wait_while_the_worker_of_their_run_is_stopped(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    [queued] = await told(context, venue, ("customer.created", ana))

    async def stopping(context: WorkerContext, run: Run) -> None:
        run.stopping = True
        await run_operation(context, run)

    await work(Worker(context, "w", run=stopping), queued)
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PENDING, None)}
    [operation] = await worked(context, queued)
    assert (operation.status, operation.attempts) == (OperationStatus.COMPLETED, 1)
    assert await customers(context) == {"ana@example.com": "Ana"}


async def test_what_is_gone_there_is_unlinked(context: WorkerContext, sandbox: Sandbox, venue: UUID) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    await worked(context, *await told(context, venue, ("customer.created", ana)))
    async with httpx.AsyncClient() as provider:
        await provider.delete(f"{sandbox.stripe_url}/v1/customers/{ana}", headers=KEY)
    await worked(context, *await told(context, venue, ("customer.deleted", ana)))
    async with context.sessions() as session:
        links = (await session.scalars(select(RecordLink).filter_by(remote_id=ana))).all()
    assert [link.state.value for link in links if link.state.value == "linked"] == []
    assert (await outcomes(context))["customer.deleted"] == (WebhookStatus.PROCESSED, None)
    assert "ana@example.com" in await customers(context)  # the platform's own record is its own affair


async def test_what_no_mapping_pulls_is_ignored(context: WorkerContext, venue: UUID) -> None:
    await worked(context, *await told(context, venue, ("product.updated", "prod_1")))
    status, error = (await outcomes(context))["product.updated"]
    assert status is WebhookStatus.IGNORED
    assert error is not None
    assert "product" in error


async def test_a_provider_that_is_away_is_asked_again(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    queued = await told(context, venue, ("customer.created", ana))
    sandbox.stripe.faults.plan([FaultRule("*/v1/customers/*", "status:400", 1.0, None)], 0)
    [operation] = await worked(context, *queued)
    status, error = (await outcomes(context))["customer.created"]
    assert status in (WebhookStatus.FAILED, WebhookStatus.PENDING)
    assert error
    sandbox.stripe.faults.plan([], 0)
    async with context.sessions() as session:
        event_id = (await session.scalars(select(Webhook.id))).one()
    await webhooks.retry(context, Actor("u"), event_id)
    await worked(context, await queued_last(context))
    assert await customers(context) == {"ana@example.com": "Ana"}
    assert (await outcomes(context))["customer.created"] == (WebhookStatus.PROCESSED, None)
    assert operation.status is not OperationStatus.PROCESSING


async def queued_last(context: WorkerContext) -> UUID:
    async with context.sessions() as session:
        found = await session.scalars(select(Operation.id).order_by(Operation.queued_at.desc()).limit(1))
        return found.one()


async def test_an_event_that_was_read_wrongly_is_worked_right_from_its_delivery(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    await told(context, venue, ("customer.created", ana))
    async with context.sessions.begin() as session:
        await session.execute(
            update(Webhook).values(record_id="nonsense", event_type="odd", status=WebhookStatus.FAILED)
        )
    replayed = await webhooks.replay(
        context, Actor("u"), venue_id=venue, provider="stripe", status=WebhookStatus.FAILED
    )
    assert replayed == 1
    await worked(context, await queued_last(context))
    assert await customers(context) == {"ana@example.com": "Ana"}
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PROCESSED, None)}


async def test_an_event_of_a_type_and_form_that_the_manifest_knows_by_now_is_worked(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    spec = context.catalog.connector("stripe").webhooks
    assert spec is not None
    before = replace(
        spec,
        events={kind: action for kind, action in spec.events.items() if kind != "customer.created"},
        shapes=tuple(replace(shape, record=None) for shape in spec.shapes),
    )
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    assert await told(context, venue, ("customer.created", ana), spec=before) == []
    assert await outcomes(context) == {"customer.created": (WebhookStatus.IGNORED, UNKNOWN_TYPE)}
    await webhooks.replay(
        context, Actor("u"), venue_id=venue, provider="stripe", status=WebhookStatus.IGNORED
    )
    await worked(context, await queued_last(context))
    assert await customers(context) == {"ana@example.com": "Ana"}
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PROCESSED, None)}


async def test_an_event_whose_delivery_is_forgotten_is_worked_as_it_was_read(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    await told(context, venue, ("customer.created", ana))
    async with context.sessions.begin() as session:
        await session.execute(delete(WebhookDelivery))
        await session.execute(update(Webhook).values(status=WebhookStatus.FAILED))
    await webhooks.replay(context, Actor("u"), venue_id=venue, provider="stripe", status=WebhookStatus.FAILED)
    await worked(context, await queued_last(context))
    assert await customers(context) == {"ana@example.com": "Ana"}
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PROCESSED, None)}


async def test_an_operation_that_failed_and_is_tried_again_works_all_that_failed_with_it(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ids = [await customer(sandbox, email=f"{n}@example.com", name=f"N{n} X") for n in range(3)]
    queued = await told(context, venue, *(("customer.created", each) for each in ids))
    sandbox.stripe.faults.plan([FaultRule("*/v1/customers/*", "status:401", 1.0, None)], 0)
    failed, *_ = await worked(context, *queued)
    assert failed.status is OperationStatus.FAILED
    assert {status for status, _ in (await outcomes(context)).values()} == {WebhookStatus.FAILED}
    sandbox.stripe.faults.plan([], 0)
    again = await recovery.retry_failed(context, Actor("u"), venue_id=venue, provider="stripe")
    assert again == 1
    await worked(context, failed.id)
    assert len(await customers(context)) == 3
    assert {status for status, _ in (await outcomes(context)).values()} == {WebhookStatus.PROCESSED}


async def test_an_operation_that_is_tried_again_reads_its_events_afresh(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    """The manifest may know by now where an event's id is, as when the event itself is tried again."""
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    queued = await told(context, venue, ("customer.created", ana))
    sandbox.stripe.faults.plan([FaultRule("*/v1/customers/*", "status:401", 1.0, None)], 0)
    await worked(context, *queued)
    async with context.sessions.begin() as session:
        await session.execute(update(Webhook).values(record_id="nonsense", event_type="odd"))
    sandbox.stripe.faults.plan([], 0)
    await recovery.retry_failed(context, Actor("u"), venue_id=venue, provider="stripe")
    await worked(context, *queued)
    assert await customers(context) == {"ana@example.com": "Ana"}
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PROCESSED, None)}


def answering(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, record: str, answer: Callable[[], httpx.Response]
) -> None:
    """Let the provider give this answer for a record, whenever it is asked for it."""
    real = context.http._transport

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(record):
            return answer()
        return await real.handle_async_request(request)

    monkeypatch.setattr(context.http, "_transport", httpx.MockTransport(handle))


async def records_of(context: WorkerContext, *queued: UUID) -> list[str]:
    async with context.sessions() as session:
        found = [await session.get_one(Operation, each) for each in queued]
    return [str(operation.entity_id) for operation in found]


@pytest.mark.parametrize("bad", [0, 1])
async def test_an_event_that_can_never_be_worked_fails_no_other(
    context: WorkerContext, sandbox: Sandbox, venue: UUID, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    emails = {await customer(sandbox, email=f"{n}@x.com", name=f"N{n} X"): f"{n}@x.com" for n in range(3)}
    queued = await told(context, venue, *(("customer.created", each) for each in emails))
    ids = await records_of(context, *queued)
    pull = Sync.pull

    async def pull_most(sync: Sync, only: Sequence[str] | None = None, **given: Any) -> Tally:
        if ids[bad] in (only or ()):
            raise HubError("this can't be worked")
        return await pull(sync, only, **given)

    monkeypatch.setattr(Sync, "pull", pull_most)
    own, *others = await worked(context, *queued)
    assert set(await customers(context)) == {emails[each] for each in ids if each != ids[bad]}
    async with context.sessions() as session:
        found = {event.record_id: event for event in await session.scalars(select(Webhook))}
    assert [found[each].status for each in ids] == [
        WebhookStatus.FAILED if number == bad else WebhookStatus.PROCESSED for number in range(3)
    ]
    assert found[ids[bad]].error == "this can't be worked"
    # Only the operation whose own event it is says so; for the others there is nothing left to do.
    assert own.status is (OperationStatus.FAILED if bad == 0 else OperationStatus.COMPLETED)
    assert {each.status for each in others} == {OperationStatus.COMPLETED}


async def test_an_event_that_can_not_be_worked_now_keeps_no_other_waiting(
    context: WorkerContext, sandbox: Sandbox, venue: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await customer(sandbox, email=f"{n}@example.com", name=f"N{n} X") for n in range(3)]
    [bad] = await told(context, venue, ("customer.created", ids[0]))
    [good] = await told(context, venue, ("customer.created", ids[1]))
    # An answer that can't be read may be another one the next time, so it is tried again.
    answering(context, monkeypatch, ids[0], lambda: httpx.Response(200, text="<html>no record</html>"))
    async with context.sessions.begin() as session:
        await session.execute(update(Operation).values(attempts=1))
    await worked(context, good)
    assert set(await customers(context)) == {"1@example.com"}
    # Once it is a dead letter, what comes later is worked without it at once.
    async with context.sessions.begin() as session:
        await session.execute(
            update(Operation).where(Operation.id == bad).values(status=OperationStatus.DEAD_LETTER)
        )
    [later] = await told(context, venue, ("customer.created", ids[2]))
    [operation] = await worked(context, later)
    assert (operation.status, operation.attempts) == (OperationStatus.COMPLETED, 1)
    assert set(await customers(context)) == {"1@example.com", "2@example.com"}
    # Somebody who has it worked again gives it an operation that is none.
    monkeypatch.undo()
    replayed = await webhooks.replay(
        context, Actor("u"), venue_id=venue, provider="stripe", status=WebhookStatus.PENDING
    )
    assert replayed == 1
    await worked(context, await queued_last(context))
    assert set(await customers(context)) == {"0@example.com", "1@example.com", "2@example.com"}


async def test_a_worker_that_was_replaced_says_nothing_of_events(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    """One that stood still while another worked them to their end doesn't put them back."""
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    [queued] = await told(context, venue, ("customer.created", ana))
    sandbox.stripe.faults.plan([FaultRule("*/v1/customers/*", "status:401", 1.0, None)], 0)

    async def late(context: WorkerContext, run: Run) -> None:
        real = webhooks.waiting

        async def waiting(*args: Any, **given: Any) -> Any:
            found = await real(*args, **given)
            async with context.sessions.begin() as session:
                await session.execute(
                    update(Operation).values(
                        fencing_token=Operation.fencing_token + 1, status=OperationStatus.COMPLETED
                    )
                )
                await session.execute(update(Webhook).values(status=WebhookStatus.PROCESSED))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(webhooks, "waiting", waiting)
            await run_operation(context, run)

    await work(Worker(context, "w", run=late), queued)
    assert await outcomes(context) == {"customer.created": (WebhookStatus.PROCESSED, None)}


async def test_an_event_that_kills_its_workers_takes_no_other_with_it(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ids = [await customer(sandbox, email=f"{n}@example.com", name=f"N{n} X") for n in range(3)]
    queued = [await told(context, venue, ("customer.created", each)) for each in ids]
    first, bad, last = (operation for (operation,) in queued)
    async with context.sessions.begin() as session:  # its worker was lost
        await session.execute(
            update(Operation)
            .where(Operation.id == first)
            .values(
                status=OperationStatus.PROCESSING,
                lease_owner="lost",
                lease_expires_at=datetime.now(UTC) - timedelta(minutes=1),
            )
        )
    await worked(context, first)
    assert set(await customers(context)) == {"0@example.com"}
    async with context.sessions.begin() as session:  # and three of the next one's were
        await session.execute(
            update(Operation)
            .where(Operation.id == bad)
            .values(status=OperationStatus.DEAD_LETTER, error_code=operations.WORKER_LOST)
        )
    await worked(context, last)
    assert set(await customers(context)) == {"0@example.com", "2@example.com"}


async def test_an_account_that_takes_back_what_it_allowed(context: WorkerContext, venue: UUID) -> None:
    now = int(datetime.now(UTC).timestamp())
    ended = ("account.application.deauthorized", "ca_1")
    await worked(context, *await told(context, venue, ended, created=now))
    async with context.sessions() as session:
        row = (await session.scalars(select(IntegrationConfig).filter_by(venue_id=venue))).one()
    assert row.status is IntegrationStatus.ERROR
    assert row.last_error is not None
    assert "connect again" in row.last_error


async def test_what_was_taken_back_before_it_was_allowed_again_ends_nothing(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    async with context.sessions.begin() as session:
        row = (await session.scalars(select(IntegrationConfig).filter_by(venue_id=venue))).one()
        row.connected_at = datetime.fromtimestamp(1772366400, UTC)  # a minute later
    ended = "account.application.deauthorized"
    first, *_ = await told(context, venue, (ended, "ca_1"), ("customer.created", ana))
    await worked(context, first)
    assert await outcomes(context) == {
        ended: (WebhookStatus.IGNORED, "it was connected again after this event"),
        "customer.created": (WebhookStatus.PROCESSED, None),
    }
    async with context.sessions() as session:
        row = (await session.scalars(select(IntegrationConfig).filter_by(venue_id=venue))).one()
    assert row.status is IntegrationStatus.CONNECTED


@pytest.mark.parametrize(
    ("attempts", "older"), [(0, WebhookStatus.PROCESSED), (1, WebhookStatus.PENDING)], ids=["with", "alone"]
)
async def test_an_operation_works_its_own_event_behind_many_that_wait(
    context: WorkerContext,
    sandbox: Sandbox,
    venue: UUID,
    monkeypatch: pytest.MonkeyPatch,
    attempts: int,
    older: WebhookStatus,
) -> None:
    monkeypatch.setattr(webhooks, "WORKED_AT_ONCE", 1)
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    bo = await customer(sandbox, email="bo@example.com", name="Bo Ruiz")
    await told(context, venue, ("customer.updated", ana))
    [last] = await told(context, venue, ("customer.created", bo))
    async with context.sessions.begin() as session:
        await session.execute(update(Operation).where(Operation.id == last).values(attempts=attempts))
    [operation] = await worked(context, last)
    assert operation.attempts == attempts + 1
    assert await outcomes(context) == {
        "customer.updated": (older, None),
        "customer.created": (WebhookStatus.PROCESSED, None),
    }


async def test_an_event_whose_operation_is_given_twice_is_worked_once(
    context: WorkerContext, sandbox: Sandbox, venue: UUID
) -> None:
    ana = await customer(sandbox, email="ana@example.com", name="Ana Ruiz")
    queued = await told(context, venue, ("customer.created", ana))
    await worked(context, *queued, *queued)
    assert await customers(context) == {"ana@example.com": "Ana"}
