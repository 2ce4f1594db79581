"""What is stored of a plan: its records, what it rests on, and what applying it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine.applying import Became
from engine.planning import PlannedField, PlannedRecord
from engine.ports import Record
from engine.reconcile import fingerprint, plain, plain_value
from server.catalog import Catalog
from server.db.models import IntegrationConfig, MappingVersion, PushPlan, PushPlanRecord
from server.services import mappings, operations
from server.services.operations import Claim
from server.services.steps import Step

LONGEST_SHOWN = 2000  # characters of a value
_ROW = PushPlanRecord


def basis(catalog: Catalog, integration: IntegrationConfig, venue: Record) -> dict[str, str]:
    """Return prints of what a plan rests on besides its records, by what it is."""
    known = mappings.current(catalog, integration)
    return {
        "mapping": fingerprint(known.stored()),
        "syncDirection": str(integration.config.get("syncDirection")),
        "connection": fingerprint([integration.account, integration.environment, integration.connection]),
        "venue": fingerprint(plain({name: venue[name] for name in venue if name != "changed_at"})),
    }


async def begin(
    session: AsyncSession, claim: Claim, plan_id: UUID, rests_on: Mapping[str, str]
) -> PushPlan | None:
    """Forget what an earlier attempt planned; returns the plan, None when it isn't asked for any more.

    Raises LeaseLostError, as all that save for a claim do.
    """
    await operations.confirm(session, claim)
    plan = await session.get(PushPlan, plan_id, with_for_update=True)
    if plan is None or plan.status != "making":
        return None
    await session.execute(delete(_ROW).where(_ROW.plan_id == plan_id))
    mine = {"venue_id": plan.venue_id, "integration_type": plan.integration_type}
    plan.basis, plan.counts = dict(rests_on), {}
    plan.mapping_version = await session.scalar(select(func.max(MappingVersion.version)).filter_by(**mine))
    return plan


async def save(
    session: AsyncSession, claim: Claim, plan_id: UUID, step: Step, records: Sequence[PlannedRecord]
) -> None:
    """Add records of one step to a plan; one that is there already is replaced."""
    await operations.confirm(session, claim)
    key: dict[str, Any] = {"plan_id": plan_id, "venue_id": claim.venue_id}
    key |= {"entity": step.mapping.entity, "resource": step.mapping.resource}
    rows = [{**key, **_columns(each)} for each in {each.local_id: each for each in records}.values()]
    if not rows:
        return
    statement = insert(_ROW)
    told = {name: statement.excluded[name] for name in rows[0] if name not in key and name != "local_id"}
    await session.execute(
        statement.on_conflict_do_update(constraint="uq_push_plan_records_record", set_=told), rows
    )
    known = await session.scalar(select(PushPlan.counts).where(PushPlan.id == plan_id)) or {}
    counts = Counter(known) + Counter(each.action for each in records)
    await session.execute(update(PushPlan).where(PushPlan.id == plan_id).values(counts=dict(counts)))


async def finish(session: AsyncSession, claim: Claim, plan_id: UUID) -> None:
    """Say that a plan is all there."""
    await operations.confirm(session, claim)
    counted = await session.execute(
        select(_ROW.action, func.count()).where(_ROW.plan_id == plan_id).group_by(_ROW.action)
    )
    await session.execute(
        update(PushPlan)
        .where(PushPlan.id == plan_id)
        .values(status="ready", counts=dict(counted.tuples().all()), made_at=func.clock_timestamp())
    )


async def to_apply(session: AsyncSession, plan_id: UUID, step: Step, limit: int) -> list[PlannedRecord]:
    """Return the next records of a step that are to be written, and weren't yet."""
    rows = await session.scalars(
        select(_ROW)
        .where(
            _ROW.plan_id == plan_id,
            _ROW.entity == step.mapping.entity,
            _ROW.resource == step.mapping.resource,
            _ROW.writes,
            _ROW.outcome.is_(None),
        )
        .order_by(_ROW.number)
        .limit(limit)
    )
    return [_record(row) for row in rows]


async def note(
    session: AsyncSession, claim: Claim, plan_id: UUID, step: Step, became: Mapping[str, Became]
) -> None:
    """Write down what applying some records came to."""
    await operations.confirm(session, claim)
    for outcome in set(became.values()):
        ids = [local_id for local_id, each in became.items() if each == outcome]
        await session.execute(
            update(_ROW)
            .where(
                _ROW.plan_id == plan_id,
                _ROW.entity == step.mapping.entity,
                _ROW.resource == step.mapping.resource,
                _ROW.local_id.in_(ids),
            )
            .values(outcome=outcome.fate, why=outcome.why or None)
        )


async def forget_expired(session: AsyncSession) -> int:
    """Delete plans that are too old, with all that is in them; returns how many."""
    gone = await session.scalars(
        delete(PushPlan).where(PushPlan.expires_at <= func.now()).returning(PushPlan.id)
    )
    return len(gone.all())


def _columns(planned: PlannedRecord) -> dict[str, Any]:
    names = ("local_id", "remote_id", "action", "reason", "writes", "pulls_first", "ours", "merged", "theirs")
    return {
        **{name: getattr(planned, name) for name in names},
        "fields": [_field(each) for each in planned.fields],
    }


def _field(planned: PlannedField) -> dict[str, Any]:
    values = asdict(planned)
    return values | {name: _shown(values[name]) for name in ("ours", "before", "after")}


def _shown(value: Any) -> Any:
    value = plain_value(value)
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"{value[:LONGEST_SHOWN]}…"
    return value


def _record(row: PushPlanRecord) -> PlannedRecord:
    """Return a stored record as applying needs it: without its fields, which are for people."""
    return PlannedRecord(
        local_id=row.local_id,
        action=row.action,  # type: ignore[arg-type]  # stored from an Action
        reason=row.reason,
        remote_id=row.remote_id,
        writes=row.writes,
        pulls_first=row.pulls_first,
        ours=row.ours,
        merged=row.merged,
        theirs=row.theirs,
    )
