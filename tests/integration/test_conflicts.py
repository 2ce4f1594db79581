"""A field that both sides changed, from the sync that finds it to the one that carries a decision out."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from engine.ports import Decision
from server.catalog import template_id
from server.db.models import AuditEntry, FieldConflict, IntegrationConfig, Operation, OutboxMessage
from server.errors import ConflictError
from server.services import conflicts
from server.services.conflicts import Filter
from server.services.retention import forget_old
from server.worker.context import WorkerContext
from tests.integration import test_plans as world
from tests.integration.test_plans import ACTOR, VENUE, here, linked, person, sync, there, worked, writes
from tests.sandbox.running import Sandbox

_serving, sandbox, context, venue = world._serving, world.sandbox, world.context, world.venue


async def decide_by_hand(context: WorkerContext, *fields: str) -> None:
    """Let the venue's own mapping of customers say that a person decides about these fields."""
    written = deepcopy(
        [dict(each) for each in context.catalog.template("stripe", template_id("stripe", "default")).written]
    )
    (customers,) = (each for each in written if each["entity"] == "customer")
    for name in fields:
        rule = customers["fields"][name]
        customers["fields"][name] = {"path": rule, "when_both_changed": "manual"}
    async with context.sessions.begin() as session:
        await session.execute(update(IntegrationConfig).values(field_mappings={"mappings": written}))


async def standing(context: WorkerContext) -> dict[str, FieldConflict]:
    async with context.sessions() as session:
        rows = await session.scalars(select(FieldConflict).where(FieldConflict.ended_at.is_(None)))
        return {row.field: row for row in rows}


async def ours(context: WorkerContext, name: str) -> Mapping[str, Any]:
    async with context.sessions() as session:
        found = await session.execute(
            text("SELECT phone, city, postal_code FROM platform.customers WHERE id = :id"),
            {"id": person(name)},
        )
        return dict(found.mappings().one())


def theirs(sandbox: Sandbox) -> Mapping[str, Any]:
    (record,) = (each for each in sandbox.stripe.stored("customer") if each["email"] == "ana@example.com")
    address = record["address"] or {}
    return {"phone": record["phone"], **{name: address.get(name) for name in ("city", "postal_code")}}


async def resolve(context: WorkerContext, conflict: FieldConflict, decision: Decision) -> FieldConflict:
    return await conflicts.resolve(
        context, ACTOR, venue_id=VENUE, provider="stripe", conflict_id=conflict.id, decision=decision
    )


async def waiting(context: WorkerContext) -> list[Operation]:
    async with context.sessions() as session:
        return list(await session.scalars(select(Operation).where(Operation.status == "pending")))


async def test_a_person_decides_and_both_sides_agree(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    await decide_by_hand(context, "phone", "city")
    ana = await linked(context, "ana")
    await here(context, "ana", phone="+331", city="Paris", postal_code="75001")
    there(sandbox, ana, **{"phone": "+332", "address[city]": "Lyon"})

    done = await sync(context)
    assert await ours(context, "ana") == {"phone": "+331", "city": "Paris", "postal_code": "75001"}
    assert theirs(sandbox) == {"phone": "+332", "city": "Lyon", "postal_code": "75001"}
    assert done.result is not None
    pull = next(each for each in done.result["mappings"] if each["direction"] == "pull")
    assert (pull["conflicts"], pull["failed"]) == (2, 0)
    assert pull["conflict_fields"] == {"phone": {"open": 1}, "city": {"open": 1}}
    found = await standing(context)
    assert {name: (row.ours, row.theirs, row.state) for name, row in found.items()} == {
        "phone": ("+331", "+332", "open"),
        "city": ("Paris", "Lyon", "open"),
    }
    async with context.sessions() as session:
        told = await session.scalars(
            select(OutboxMessage.payload["field"].as_string()).where(
                OutboxMessage.topic == "conflict.detected"
            )
        )
        assert sorted(told) == ["city", "phone"]

    before = writes(sandbox)
    await sync(context)
    assert writes(sandbox) == before
    assert {row.id for row in (await standing(context)).values()} == {row.id for row in found.values()}

    there(sandbox, ana, phone="+333")
    with pytest.raises(ConflictError) as refused:
        await resolve(context, found["phone"], Decision("platform"))
    assert [each.field for each in refused.value.details] == ["theirs"]
    assert (await standing(context))["phone"].theirs == "+333"

    decided = await resolve(context, found["phone"], Decision("platform"))
    assert (decided.state, decided.resolved_by, decided.ended_at) == ("resolved", "tester", None)
    await resolve(context, found["city"], Decision("value", "Marseille"))
    with pytest.raises(ConflictError):
        await resolve(context, found["city"], Decision("provider"))
    (operation,) = await waiting(context)
    assert (operation.entity_id, operation.priority) == (person("ana"), "HIGH")
    assert (await worked(context, operation.id)).status == "completed"
    both = {"phone": "+331", "city": "Marseille", "postal_code": "75001"}
    assert await ours(context, "ana") == both
    assert theirs(sandbox) == both
    assert await standing(context) == {}

    before = writes(sandbox)
    await sync(context)
    assert (writes(sandbox), theirs(sandbox)) == (before, both)
    async with context.sessions() as session:
        entries = await session.scalars(select(AuditEntry).filter_by(action="conflict.resolved"))
        shown = [(entry.details["field"], entry.details["take"]) for entry in entries]
    assert shown == [("phone", "platform"), ("city", "value")]


async def test_many_are_decided_at_once_and_carried_out_by_the_next_sync(
    context: WorkerContext, venue: UUID, sandbox: Sandbox
) -> None:
    await decide_by_hand(context, "phone")
    for name in ("ana", "ben"):
        await here(context, name, phone="+331")
        there(sandbox, await linked(context, name), phone="+332")
    await sync(context)
    wanted = Filter(VENUE, "stripe", field="phone")
    counted = await conflicts.resolve_many(context, ACTOR, wanted, "provider", limit=1, dry_run=True)
    assert (counted.matched, counted.resolved, counted.left) == (2, 1, 1)
    assert len(await waiting(context)) == 0
    came = await conflicts.resolve_many(context, ACTOR, wanted, "provider", limit=500)
    assert (came.matched, came.resolved, came.left) == (2, 2, 0)
    assert len(await waiting(context)) == 2
    async with context.sessions.begin() as session:  # should they get lost
        await session.execute(text("DELETE FROM sync_queue WHERE status = 'pending'"))
    there(sandbox, await linked(context, "ben"), phone="+339")  # changed since: nobody decided about this
    await sync(context)
    assert (await ours(context, "ana"))["phone"] == "+332"
    assert (await ours(context, "ben"))["phone"] == "+331"
    (left,) = (await standing(context)).values()
    assert (left.local_id, left.theirs, left.state) == (person("ben"), "+339", "open")


async def test_conflicts_that_are_over_are_forgotten_after_a_while(context: WorkerContext) -> None:
    values = {"entity": "customer", "resource": "customer", "remote_id": "c", "field": "phone"}
    async with context.sessions.begin() as session:
        for local_id, age in (("old", 40), ("fresh", 1), ("open", None)):
            ended = None if age is None else datetime.now(UTC) - timedelta(days=age)
            session.add(
                FieldConflict(
                    venue_id=VENUE,
                    integration_type="stripe",
                    local_id=local_id,
                    ours="1",
                    theirs="2",
                    agreed={},
                    detected_at=datetime.now(UTC) - timedelta(days=50),
                    ended_at=ended,
                    **values,
                )
            )
    await forget_old(context.sessions, timedelta(days=30))
    async with context.sessions() as session:
        assert set(await session.scalars(select(FieldConflict.local_id))) == {"fresh", "open"}
