"""Plans against a simulated provider, made and applied by a worker: nothing is written but what they list."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4, uuid5

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url, select, text

from engine.ports import Secret
from server.catalog import store_templates, template_id
from server.credentials import place
from server.db.models import (
    IntegrationConfig,
    IntegrationStatus,
    Operation,
    OperationType,
    PushPlanRecord,
    RecordLink,
    VenueApiKey,
)
from server.demo.generate import SCHEMA
from server.errors import ConflictError, NotFoundError, StaleError
from server.services import operations, planned, plans
from server.services.audit import Actor
from server.services.plans import Known
from server.settings import read_settings
from server.worker.context import WorkerContext, open_worker_context
from server.worker.tasks import Worker, work
from tests.sandbox.running import Sandbox, running_sandbox

VENUE = UUID("8f0c3a52-0f5e-4f59-8b39-0d3a5be5a3f2")
ACTOR = Actor("tester")
PEOPLE = ("ana", "ben", "cy", "dora", "eve")


def person(name: str) -> str:
    return str(uuid5(VENUE, name))


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
    """A connected venue with three customers, that has synced."""
    async with context.sessions.begin() as session:
        await store_templates(session, context.catalog)
        await session.execute(
            text(
                "INSERT INTO platform.venues (id, name, type, currency, country, timezone)"
                " VALUES (:id, 'Club', 'music_venue', 'EUR', 'FR', 'Europe/Paris')"
            ),
            {"id": VENUE},
        )
        session.add(
            IntegrationConfig(
                venue_id=VENUE,
                integration_type="stripe",
                status=IntegrationStatus.CONNECTED,
                environment="sandbox",
                template_id=template_id("stripe", "default"),
                config={"syncEnabled": False, "syncDirection": "bidirectional"},
            )
        )
        key = VenueApiKey(
            id=uuid4(),
            venue_id=VENUE,
            integration_type="stripe",
            environment="sandbox",
            key_name="bearer",
        )
        key.encrypted_api_key = await context.vault.seal(
            Secret('{"apiKey": "sk_test_demo"}'), place(key, "encrypted_api_key")
        )
        session.add(key)
    for name in PEOPLE[:3]:
        await here(context, name, new=True, old=True)
    await sync(context)
    return VENUE


async def here(
    context: WorkerContext, name: str, *, new: bool = False, old: bool = False, **values: str
) -> None:
    """Add or change a customer on the platform, long ago or now."""
    if new:
        values = {"first_name": name.title(), "email": f"{name}@example.com", **values}
    changes = "".join(f"{column} = :{column}, " for column in values)
    moment = "timestamptz '2026-01-01'" if old else "now()"
    async with context.sessions.begin() as session:
        if new:
            await session.execute(
                text("INSERT INTO platform.customers (id, venue_id) VALUES (:id, :venue)"),
                {"id": person(name), "venue": VENUE},
            )
        await session.execute(
            text(f"UPDATE platform.customers SET {changes}updated_at = {moment} WHERE id = :id"),
            {**values, "id": person(name)},
        )


def there(sandbox: Sandbox, remote_id: str | None = None, **form: str) -> str:
    """Make or change a customer at the provider, behind the hub's back; returns its id."""
    answer = httpx.post(
        f"{sandbox.stripe_url}/v1/customers{f'/{remote_id}' if remote_id else ''}",
        data=form,
        headers={"Authorization": "Bearer sk_test_demo"},
    )
    return str(answer.raise_for_status().json()["id"])


def customers(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    return {each["email"]: each for each in sandbox.stripe.stored("customer")}


def writes(sandbox: Sandbox) -> int:
    calls = sandbox.stripe.counts.by_call
    return sum(number for call, number in calls.items() if not call.startswith("GET "))


async def worked(context: WorkerContext, operation_id: UUID) -> Operation:
    await asyncio.wait_for(work(Worker(context, "w"), operation_id), 30)
    async with context.sessions() as session:
        return await session.get_one(Operation, operation_id)


async def sync(context: WorkerContext) -> Operation:
    async with context.sessions.begin() as session:
        operation = await operations.enqueue(
            session,
            venue_id=VENUE,
            provider="stripe",
            operation_type=OperationType.SYNC,
            entity_type="customers",
            payload={"syncType": "customers"},
            run_id=uuid4(),
        )
    done = await worked(context, operation.id)
    assert done.status == "completed", done.last_error
    return done


async def plan(
    context: WorkerContext, sync_type: str = "customers"
) -> tuple[Known, Mapping[str, PushPlanRecord]]:
    """Plan a push; returns the plan and its records by local id and, but for customers, resource."""
    made = await plans.request_plan(context, ACTOR, venue_id=VENUE, provider="stripe", sync_type=sync_type)
    operation = await worked(context, made.operation_id)
    assert operation.status == "completed", operation.last_error
    async with context.sessions() as session:
        known = await plans.look(session, VENUE, "stripe", made.id)
        rows = await session.scalars(select(PushPlanRecord).filter_by(plan_id=made.id))
        return known, {
            row.local_id if sync_type == "customers" else f"{row.resource} {row.local_id}": row
            for row in rows
        }


async def apply(context: WorkerContext, known: Known) -> Operation:
    operation = await plans.apply(context, ACTOR, venue_id=VENUE, provider="stripe", plan_id=known.plan.id)
    return await worked(context, operation.id)


def changes(row: PushPlanRecord) -> dict[str, tuple[Any, Any]]:
    """Return what a planned record changes at the provider, by path: before and after."""
    return {each["path"]: (each["before"], each["after"]) for each in row.fields}


async def linked(context: WorkerContext, name: str) -> str:
    async with context.sessions() as session:
        found = await session.scalar(select(RecordLink.remote_id).filter_by(local_id=person(name)))
    assert found is not None
    return found


async def test_a_plan_writes_nothing_and_applying_it_what_it_lists(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    await here(context, "ana", email="ana@example.org")
    there(sandbox, await linked(context, "ben"), **{"address[city]": "Lyon"})
    await here(context, "ben", city="Paris")
    await here(context, "cy")
    await here(context, "dora", new=True)
    eve = there(sandbox, email="eve@example.com")
    await here(context, "eve", new=True, city="Nice")
    before = writes(sandbox)
    async with context.sessions() as session:
        links = (await session.scalars(select(RecordLink.local_id))).all()

    known, rows = await plan(context)
    assert writes(sandbox) == before
    async with context.sessions() as session:
        assert sorted((await session.scalars(select(RecordLink.local_id))).all()) == sorted(links)
    assert (known.status, known.writes) == ("ready", 4)
    assert known.plan.counts == {"create": 1, "update": 2, "conflict": 1, "skip": 1}
    found = {name: rows[person(name)] for name in PEOPLE}
    assert {name: row.action for name, row in found.items()} == {
        "ana": "update",
        "ben": "conflict",
        "cy": "skip",
        "dora": "create",
        "eve": "update",
    }
    assert changes(found["ana"]) == {"email": ("ana@example.com", "ana@example.org")}
    assert [each["reason"] for each in found["ana"].fields] == ["changed here since the last sync"]
    assert changes(found["ben"]) == {"address.city": ("Lyon", "Paris")}
    (field,) = found["ben"].fields
    assert (field["field"], field["ours"], field["conflict"]) == ("city", "Paris", True)
    assert field["reason"] == (
        "both sides changed it since the last sync: the platform wins, whose record changed last"
    )
    assert (found["cy"].reason, found["cy"].fields) == ("unchanged since the last sync", [])
    assert changes(found["dora"]) == {
        "email": (None, "dora@example.com"),
        "name": (None, "Dora"),
        "metadata.customer_id": (None, person("dora")),
    }
    assert (found["eve"].remote_id, found["eve"].reason) == (
        eve,
        "paired with a record that is there already",
    )

    done = await apply(context, known)
    assert done.status == "completed", done.last_error
    assert done.result is not None
    (step,) = done.result["mappings"]
    assert (step["created"], step["updated"], step["failed"], step["skipped"]) == (1, 3, 0, 0)
    assert writes(sandbox) == before + 4
    now = customers(sandbox)
    assert set(now) == {*(f"{name}@example.com" for name in PEOPLE if name != "ana"), "ana@example.org"}
    assert now["ben@example.com"]["address"]["city"] == "Paris"
    assert (now["eve@example.com"]["id"], now["eve@example.com"]["name"]) == (eve, "Eve")
    async with context.sessions() as session:
        outcomes = await session.execute(
            select(PushPlanRecord.action, PushPlanRecord.outcome).filter_by(plan_id=known.plan.id)
        )
        assert {(action, outcome) for action, outcome in outcomes.tuples()} == {
            ("create", "done"),
            ("update", "done"),
            ("conflict", "done"),
            ("skip", None),
        }
    with pytest.raises(ConflictError) as again:
        await apply(context, known)
    assert [(each.field, each.message) for each in again.value.details] == [("syncId", str(done.run_id))]

    second, rows = await plan(context)
    assert (second.writes, set(second.plan.counts)) == (0, {"skip"})
    assert {row.reason for row in rows.values()} == {"unchanged since the last sync"}


async def refused(context: WorkerContext, known: Known) -> list[str]:
    """Return what has changed since, as a refusal names it."""
    with pytest.raises(StaleError) as stale:
        await plans.apply(context, ACTOR, venue_id=VENUE, provider="stripe", plan_id=known.plan.id)
    return [each.field for each in stale.value.details]


async def sql(context: WorkerContext, statement: str, **values: Any) -> None:
    async with context.sessions.begin() as session:
        await session.execute(text(statement), values)


async def test_a_plan_that_rests_on_what_has_changed_is_refused(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    await here(context, "ana", email="ana@example.org")
    await here(context, "ben", city="Paris")
    known, _ = await plan(context)
    before = writes(sandbox)
    assert known.writes == 2

    template = "UPDATE integration_configs SET template_id = :id"
    await sql(context, template, id=template_id("stripe", "music-venue"))
    assert await refused(context, known) == ["mapping"]
    await sql(context, template, id=template_id("stripe", "default"))

    direction = "UPDATE integration_configs SET config = jsonb_set(config, '{syncDirection}', :to)"
    await sql(context, direction.replace(":to", "'\"push\"'"))
    assert await refused(context, known) == ["syncDirection"]
    await sql(context, direction.replace(":to", "'\"bidirectional\"'"))

    await sql(context, "UPDATE platform.venues SET currency = 'USD'")
    assert await refused(context, known) == ["venue"]
    await sql(context, "UPDATE platform.venues SET currency = 'EUR'")

    await here(context, "ana", email="ana@example.net")
    assert await refused(context, known) == [f"customer.{person('ana')}"]
    await here(context, "ana", email="ana@example.org")  # as it was: that it changed twice is nothing

    await sql(
        context,
        "INSERT INTO pending_writes (venue_id, integration_type, entity, resource, call_key, items)"
        " VALUES (:venue, 'stripe', 'customer', 'customer', 'k', '[]')",
        venue=VENUE,
    )
    assert await refused(context, known) == ["writes"]
    await sql(context, "DELETE FROM pending_writes")

    await sql(context, "UPDATE push_plans SET expires_at = now()")
    assert await refused(context, known) == ["expires_at"]
    await sql(context, "UPDATE push_plans SET expires_at = now() + interval '1 hour'")

    # What changed at the provider is found when its turn comes, and is left alone.
    there(sandbox, await linked(context, "ana"), phone="+33123456789")
    changed = writes(sandbox)
    assert changed == before + 1
    done = await apply(context, known)
    assert done.status == "completed", done.last_error
    assert writes(sandbox) == changed + 1
    async with context.sessions() as session:
        written = await session.scalars(select(PushPlanRecord).filter_by(plan_id=known.plan.id, writes=True))
        assert {row.local_id: (row.outcome, row.why) for row in written} == {
            person("ana"): ("changed", "changed since the plan"),
            person("ben"): ("done", None),
        }
    assert "ana@example.com" in customers(sandbox)
    assert done.result is not None
    (step,) = done.result["mappings"]
    assert (step["updated"], step["skipped"], step["note"]) == (
        1,
        1,
        "records that changed since the plan were left alone",
    )

    later, rows = await plan(context)
    assert (later.writes, rows[person("ana")].action) == (1, "update")
    await sync(context)
    assert await refused(context, later) == ["sync", f"customer.{person('ana')}"]
    assert "ana@example.org" in customers(sandbox)

    await sql(context, "UPDATE push_plans SET expires_at = now()")
    async with context.sessions.begin() as session:
        assert await planned.forget_expired(session) == 2
    async with context.sessions() as session:
        assert (await session.scalars(select(PushPlanRecord))).all() == []
        with pytest.raises(NotFoundError):
            await plans.look(session, VENUE, "stripe", later.plan.id)


async def test_records_that_others_refer_to_and_that_go(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    event = str(uuid5(VENUE, "event"))
    await sql(
        context,
        "INSERT INTO platform.events (id, venue_id, name, status, price, currency)"
        " VALUES (:id, :venue, 'Night', 'on_sale', 12.5, 'EUR')",
        id=event,
        venue=VENUE,
    )
    known, rows = await plan(context, "products")
    product, price = rows[f"product {event}"], rows[f"price {event}"]
    assert (product.action, price.action, known.writes) == ("create", "create", 2)
    assert changes(price)["product"] == (None, "(the new product)")
    assert changes(price)["unit_amount"] == (None, 1250)
    assert (await apply(context, known)).status == "completed"
    (made,), (sold,) = sandbox.stripe.stored("product"), sandbox.stripe.stored("price")
    assert (made["name"], sold["product"], sold["unit_amount"]) == ("Night", made["id"], 1250)

    await sql(context, "UPDATE platform.events SET status = 'cancelled', updated_at = now()")
    known, rows = await plan(context, "products")
    assert {(row.action, row.reason, row.writes) for row in rows.values()} == {
        ("archive", "not wanted there any more", True)
    }
    assert (known.writes, sandbox.stripe.stored("product")[0]["active"]) == (2, True)
    assert (await apply(context, known)).status == "completed"
    assert [sandbox.stripe.stored(kind)[0]["active"] for kind in ("product", "price")] == [False, False]
