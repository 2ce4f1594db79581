"""Delete all the hub has stored for a venue, and prove that it is gone.

A maintenance run in steps, each worked in batches: disconnect every integration, wait for what runs, delete
from every table that has a `venue_id`, take persons out of the audit log, delete keys in Redis, wait for
transactions that may have seen the venue as it was, count again. What came in meanwhile goes in another
round. A process that dies repeats at most a batch; doing all of it twice is fine.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Table, and_, delete, func, null, or_, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from server.context import Context
from server.db.models import (
    AuditEntry,
    IntegrationConfig,
    IntegrationStatus,
    MaintenanceRun,
    OAuthToken,
    Operation,
    OperationStatus,
    VenueApiKey,
)
from server.errors import ServerError
from server.services import audit, integrations, maintenance, operations, venues
from server.services.audit import Actor
from server.services.venues import ERASURE

AT_ONCE = 1000  # rows in one statement
EACH_BATCH = 5000  # rows in one transaction
PATIENCE = 15.0  # seconds for runs to end at a page; then they are cut off and can save nothing any more
MOST_ROUNDS = 20
VERIFIED = "verified"
LONGEST_SETTLING = 60.0  # seconds to wait for transactions that were there before
WAIT = timedelta(milliseconds=300)  # between two looks

# Tables with a `venue_id` whose rows aren't simply deleted, and why.
KEPT: Mapping[str, str] = {
    "audit_log": "what was done and when has to be accounted for; who did it, from where and to what is "
    "taken out, and the venue's id replaced",
    "maintenance_runs": "erasures of the venue are the proof that it was erased; its exports are deleted",
}
# Tables without one, and what of a venue may be in them.
OF_NO_VENUE: Mapping[str, str] = {
    "export_parts": "deleted with their run",
    "field_mapping_templates": "templates that come with the hub, for everybody",
    "idempotency_keys": "answers kept for a caller, sealed, deleted within 24 hours",
    "rollup_marks": "nothing: up to which moment all venues' logs were added up",
}


@dataclass(frozen=True, slots=True)
class Place:
    """How far an erasure got. The salt makes pseudonyms, and is forgotten at the end."""

    step: str = "disconnecting"
    salt: str = ""
    role: str | None = None
    since: float | None = None  # when waiting began, in Unix seconds
    settle: int | None = None  # the transaction all before which have to be over
    rounds: int = 0
    provider: str = ""  # the last one disconnected
    disconnected: dict[str, str] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)  # rows there were at the beginning, by table
    deleted: dict[str, int] = field(default_factory=dict)
    keys: int = 0


class UnendingError(ServerError):
    """Something keeps writing rows of the venue."""


async def start(context: Context, actor: Actor, venue_id: UUID) -> MaintenanceRun:
    """Begin to erase a venue, or join the erasure that is under way; nothing new is taken for it from now."""
    async with context.sessions.begin() as session:
        await venues.close(session, venue_id)
        place = Place(salt=secrets.token_hex(32), role=actor.role)
        position = msgspec.to_builtins(place)
        run, new = await maintenance.start(session, actor, ERASURE, venue_id=venue_id, position=position)
        if new:
            audit.record(session, actor, "erasure.requested", target=str(venue_id), details={"run": run.id})
    return run


async def step(context: Context, session: AsyncSession, run: MaintenanceRun) -> bool:
    """Do a batch of an erasure, for `server.services.maintenance`."""
    place = msgspec.convert(run.position, Place)
    if not run.progress:
        place = replace(place, found=await count(session, _venue(run), run.id))
        run.progress = {"done": 0, "failed": 0, "total": sum(place.found.values())}
    place = await STEPS[place.step](Work(context, session, run, _venue(run)), place)
    done = sum(place.deleted.values())
    total = max(done, run.progress["total"])
    run.progress = {**run.progress, "step": place.step, "done": done, "total": total}
    if place.step == VERIFIED:
        return True
    run.position = msgspec.to_builtins(place)
    return False


@dataclass(frozen=True, slots=True)
class Work:
    """What every step is given: all it does in `session` is one transaction with where it got."""

    context: Context
    session: AsyncSession
    run: MaintenanceRun
    venue_id: UUID

    def again_soon(self) -> None:
        self.run.next_attempt_at = func.clock_timestamp() + WAIT

    async def now(self) -> float:
        return float(await self.session.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)


def _venue(run: MaintenanceRun) -> UUID:
    if run.venue_id is None:
        raise ValueError("an erasure is of a venue")
    return run.venue_id


# --- the steps, each of which returns where the next batch goes on


async def _disconnect(work: Work, place: Place) -> Place:
    """Disconnect one integration, in transactions of its own: it asks the provider to revoke credentials."""
    config = IntegrationConfig
    stored = or_(
        *(
            select(table.id)
            .where(table.venue_id == config.venue_id, table.integration_type == config.integration_type)
            .exists()
            for table in (OAuthToken, VenueApiKey)
        )
    )
    provider = await work.session.scalar(
        select(config.integration_type)
        .where(
            config.venue_id == work.venue_id,
            config.integration_type > place.provider,
            or_(config.status != IntegrationStatus.DISCONNECTED, stored),
        )
        .order_by(config.integration_type)
        .limit(1)
    )
    if provider is None:
        return replace(place, step="stopping", since=await work.now())
    run = work.run
    actor = Actor(run.requested_by, run.requested_ip, role=place.role)
    outcome = await integrations.disconnect(work.context, actor, venue_id=work.venue_id, provider=provider)
    disconnected = {**place.disconnected, provider: str(outcome or "nothing to revoke")}
    return replace(place, provider=provider, disconnected=disconnected)


async def _stop(work: Work, place: Place) -> Place:
    """Wait for runs to end at a page; take those away that don't."""
    running = select(Operation.integration_type).filter_by(
        venue_id=work.venue_id, status=OperationStatus.PROCESSING
    )
    providers = set(await work.session.scalars(running))
    if providers and await work.now() < (place.since or 0.0) + PATIENCE:
        work.again_soon()
        return place
    for provider in sorted(providers):
        await operations.end_running(work.session, work.venue_id, provider)
    return replace(place, step="deleting")


async def _delete(work: Work, place: Place) -> Place:
    left, deleted = EACH_BATCH, dict(place.deleted)
    for table in reversed(venues.venue_tables()):
        if table.name in KEPT and table.name != MaintenanceRun.__tablename__:
            continue
        while left > 0:
            gone = await _delete_some(work.session, table, _wanted(table, work.venue_id, work.run.id))
            left -= gone
            name = str(table.name)  # SQLAlchemy has a kind of text of its own for it
            deleted[name] = deleted.get(name, 0) + gone
            if gone < AT_ONCE:
                break
        if left <= 0:
            return replace(place, deleted=deleted)
    return replace(place, step="pseudonymising", deleted=deleted)


def _wanted(table: Table, venue_id: UUID, run_id: UUID) -> ColumnElement[bool]:
    """Return which rows of a table have to go."""
    mine = table.c.venue_id == venue_id
    if table.name == MaintenanceRun.__tablename__:
        return and_(mine, table.c.kind != ERASURE, table.c.id != run_id)
    return mine


async def _delete_some(session: AsyncSession, table: Table, wanted: ColumnElement[bool]) -> int:
    keys = list(table.primary_key.columns)
    some = select(*keys).where(wanted).limit(AT_ONCE).cte("some")
    match = and_(true(), *(key == some.c[key.name] for key in keys))
    # The condition again: a row may have been given to another venue meanwhile.
    result = await session.execute(delete(table).where(match, wanted).returning(keys[0]))
    return len(result.all())


async def _pseudonymise(work: Work, place: Place) -> Place:
    """Take persons out of some of the venue's entries, and its id: the salt that hid them is forgotten."""
    entry = AuditEntry
    some = select(entry.id).where(entry.venue_id == work.venue_id).order_by(entry.id).limit(AT_ONCE)
    await work.session.execute(text("SET LOCAL hub.erasing = 'on'"))
    digest = func.encode(func.sha256(func.convert_to(func.concat(place.salt, entry.actor), "UTF8")), "hex")
    hidden = await work.session.scalars(
        update(entry)
        .where(entry.id.in_(some))
        .values(
            venue_id=pseudonym(place.salt, work.venue_id),
            actor=func.concat("erased:", func.left(digest, 32)),
            details={},
            **dict.fromkeys(("target", "before", "after", "ip", "request_id", "same"), null()),
        )
        .returning(entry.id)
        .execution_options(synchronize_session=False)
    )
    changed = len(hidden.all())
    table = entry.__tablename__
    place = replace(place, deleted={**place.deleted, table: place.deleted.get(table, 0) + changed})
    return place if changed == AT_ONCE else replace(place, step="forgetting keys")


def pseudonym(salt: str, venue_id: UUID) -> UUID:
    """Return what stands for a venue in its audit entries; nobody can tell the venue from it."""
    return UUID(bytes=sha256(f"{salt}{venue_id}".encode()).digest()[:16], version=5)


async def _forget_keys(work: Work, place: Place) -> Place:
    found = await redis_keys(work.context, work.venue_id)
    if found:
        await work.context.redis.unlink(*found)
    current = await work.session.scalar(select(text("pg_current_xact_id()::text")))
    return replace(
        place, step="settling", keys=place.keys + len(found), settle=int(current or 0), since=await work.now()
    )


async def redis_keys(context: Context, venue_id: UUID) -> list[str | bytes]:
    """Return the keys in Redis that hold a venue's id."""
    return [key async for key in context.redis.scan_iter(match=f"*{venue_id}*", count=1000)]


async def _settle(work: Work, place: Place) -> Place:
    """Wait for every transaction that began before: it may have seen the venue as it was, and write yet."""
    oldest = await work.session.scalar(select(text("pg_snapshot_xmin(pg_current_snapshot())::text")))
    over = int(oldest or 0) > (place.settle or 0)
    if not over and await work.now() < (place.since or 0.0) + LONGEST_SETTLING:
        work.again_soon()
        return place
    return replace(place, step="verifying")


async def _verify(work: Work, place: Place) -> Place:
    """Count what is left. The run ends with the proof, or goes another round."""
    left = await count(work.session, work.venue_id, work.run.id)
    keys = await redis_keys(work.context, work.venue_id)
    if any(left.values()) or keys:
        if place.rounds >= MOST_ROUNDS:
            raise UnendingError("something keeps writing rows of this venue")
        return replace(place, step="disconnecting", provider="", rounds=place.rounds + 1)
    run = work.run
    # What disconnecting deleted was found at the beginning; what came in later is only in what was deleted.
    erased = {name: max(place.found.get(name, 0), place.deleted.get(name, 0)) for name in left}
    run.result = {
        "tables": {name: {"erased": erased[name], "left": still} for name, still in left.items()},
        "redis_keys": {"erased": place.keys, "left": 0},
        "disconnected": place.disconnected,
        "kept": dict(KEPT),
        "rounds": place.rounds + 1,
        "verified_at": datetime.now(UTC).isoformat(),
    }
    mine = (MaintenanceRun.venue_id == work.venue_id, MaintenanceRun.kind == ERASURE)
    await work.session.execute(update(MaintenanceRun).where(*mine).values(requested_ip=None, position={}))
    rows = sum(erased.values())
    audit.record(
        work.session,
        Actor(run.requested_by, role=place.role),
        "erasure.completed",
        target=str(work.venue_id),
        details={"run": run.id, "rows": rows},
    )
    return replace(place, step=VERIFIED)


async def count(session: AsyncSession, venue_id: UUID, run_id: UUID) -> dict[str, int]:
    """Return how many rows an erasure still has to see to, by table."""
    counts = {}
    for table in venues.venue_tables():
        found = select(func.count()).select_from(table).where(_wanted(table, venue_id, run_id))
        counts[str(table.name)] = await session.scalar(found) or 0
    return counts


STEPS: Mapping[str, Callable[[Work, Place], Awaitable[Place]]] = {
    "disconnecting": _disconnect,
    "stopping": _stop,
    "deleting": _delete,
    "pseudonymising": _pseudonymise,
    "forgetting keys": _forget_keys,
    "settling": _settle,
    "verifying": _verify,
}
