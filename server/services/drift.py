"""What records of each integration carry, and what changed about that.

While a run reads and writes, some of the records are looked at: a few of a page, a few hundred of a run, and
a resource of an integration at most once a minute in a process. What was seen is written once, as the run
ends, so that observing costs a read and a write a minute. Names, types and shapes are kept, and no value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from engine.drift import KnownField, compare
from engine.manifest import Connector
from engine.observing import Sighting
from server.db.models import DriftEvent, ObservedField
from server.services.paging import Page

A_PAGE, A_RUN = 10, 200  # records looked at
LOOKS_EVERY = 60.0  # seconds, at a resource of an integration
MOST_PLACES = 100_000  # that a process remembers having looked at

Sightings = dict[str, tuple[Connector, Sighting]]  # by resource
Observed = dict[str, dict[str, KnownField]]  # what is known of fields, by resource and path

_looked: dict[tuple[UUID, str, str], float] = {}  # when this process last began to


def watcher(
    sightings: Sightings, connector: Connector, venue_id: UUID
) -> Callable[[str, Sequence[Mapping[str, Any]]], None]:
    """Return what looks at records of an integration and gathers in `sightings` what they carry."""

    def look(resource: str, records: Sequence[Mapping[str, Any]]) -> None:
        known = sightings.get(resource)
        if known is None:
            place, now = (venue_id, connector.name, resource), monotonic()
            if now - _looked.get(place, -LOOKS_EVERY) < LOOKS_EVERY:
                return
            if len(_looked) >= MOST_PLACES:
                _looked.clear()
            _looked[place] = now
            known = sightings[resource] = _begun(connector, resource)
        sighting = known[1]
        if sighting.records < A_RUN:
            sighting.look(records[:A_PAGE])

    return look


def complaints(sightings: Sightings, connector: Connector) -> Callable[[str, str], None]:
    """Return what gathers in `sightings` the fields that the provider answers it doesn't know."""

    def refuse(resource: str, field: str) -> None:
        known = sightings.get(resource)
        if known is None:
            known = sightings[resource] = _begun(connector, resource)
        known[1].refuse(field)

    return refuse


def _begun(connector: Connector, resource: str) -> tuple[Connector, Sighting]:
    fields = connector.resources[resource].fields
    words = frozenset(path for path, each in fields.items() if each.one_of)
    return connector, Sighting(enumerations=words)


async def write(session: AsyncSession, venue_id: UUID, provider: str, sightings: Sightings) -> None:
    """Write down what was seen, and what changed by it."""
    for resource, (connector, sighting) in sorted(sightings.items()):
        if sighting.records or sighting.refused:
            await _write(session, venue_id, provider, resource, connector, sighting)
    sightings.clear()


async def _write(
    session: AsyncSession, venue_id: UUID, provider: str, resource: str, connector: Connector, seen: Sighting
) -> None:
    mine = {"venue_id": venue_id, "integration_type": provider, "resource": resource}
    known = await observed(session, venue_id, provider, resource)
    spec = connector.resources[resource]
    made = compare(known, seen, spec.fields, resource=resource, renamed=spec.renamed)
    now = datetime.now(UTC)
    rows = [
        {
            **mine,
            "path": each.path,
            "types": list(each.types),
            "shapes": list(each.shapes),
            "words": list(each.words),
            "seen_count": each.seen,
            "record_count": each.records,
            "null_count": each.nulls,
            "missed_count": each.missed,
            "removed_at": now if each.removed else None,
            "refused_at": now if each.refused else None,
            "last_seen_at": now,
        }
        for each in made.fields.values()
    ]
    if rows:
        await session.execute(_KEEP, rows)
    if made.drift:
        await session.execute(
            insert(DriftEvent),
            [
                {
                    **mine,
                    "path": each.path,
                    "kind": each.kind,
                    "before": list(each.before),
                    "after": list(each.after),
                    "evidence": list(each.evidence),
                }
                for each in made.drift
            ],
        )


async def observed(
    session: AsyncSession, venue_id: UUID, provider: str, resource: str
) -> dict[str, KnownField]:
    """Return what is known of a resource's fields, by path."""
    return (await all_observed(session, venue_id, provider, resource=resource)).get(resource, {})


async def all_observed(session: AsyncSession, venue_id: UUID, provider: str, **only: str) -> Observed:
    """Return what is known of the fields of an integration, by resource and path."""
    rows = await session.scalars(
        select(ObservedField)
        .filter_by(venue_id=venue_id, integration_type=provider, **only)
        .order_by(ObservedField.resource, ObservedField.path)
    )
    found: Observed = {}
    for row in rows:
        found.setdefault(row.resource, {})[row.path] = KnownField(
            row.path,
            tuple(row.types),
            tuple(row.shapes),
            tuple(row.words),
            row.record_count,
            row.seen_count,
            row.null_count,
            row.missed_count,
            removed=row.removed_at is not None,
            refused=row.refused_at is not None,
            first_seen=row.first_seen_at,
        )
    return found


async def forgive(session: AsyncSession, venue_id: UUID, provider: str) -> None:
    """Forget which fields the provider refused: somebody decided that they are to be tried again."""
    await session.execute(
        update(ObservedField)
        .where(
            ObservedField.venue_id == venue_id,
            ObservedField.integration_type == provider,
            ObservedField.refused_at.is_not(None),
        )
        .values(refused_at=None)
    )


# --- reading


async def fields_page(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    *,
    limit: int,
    offset: int,
    after: Sequence[str] | None,
) -> Page:
    """Return observed fields by resource and path; `after` are those the page before ended with."""
    mine = (ObservedField.venue_id == venue_id, ObservedField.integration_type == provider)
    total = await session.scalar(select(func.count()).select_from(ObservedField).where(*mine)) or 0
    order = (ObservedField.resource, ObservedField.path)
    statement = select(ObservedField).where(*mine).order_by(*order)
    statement = (
        statement.offset(offset)
        if after is None
        else statement.where(text("(resource, path) > (:r, :p)").bindparams(r=after[0], p=after[1]))
    )
    rows = (await session.scalars(statement.limit(limit + 1))).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(rows[:limit], total, (last.resource, last.path) if last else None)


async def events_page(
    session: AsyncSession, venue_id: UUID, provider: str, *, limit: int, offset: int, before: int | None
) -> Page:
    """Return what changed, the newest first; `before` is the event the page before ended with."""
    mine = (DriftEvent.venue_id == venue_id, DriftEvent.integration_type == provider)
    total = await session.scalar(select(func.count()).select_from(DriftEvent).where(*mine)) or 0
    statement = select(DriftEvent).where(*mine).order_by(DriftEvent.id.desc())
    statement = statement.offset(offset) if before is None else statement.where(DriftEvent.id < before)
    rows = (await session.scalars(statement.limit(limit + 1))).all()
    return Page(rows[:limit], total, (str(rows[limit - 1].id),) if len(rows) > limit else None)


async def take_waiting(session: AsyncSession, limit: int) -> list[tuple[UUID, str]]:
    """Mark events as handled; returns the integrations they are of."""
    some = (
        select(DriftEvent.id)
        .where(DriftEvent.handled_at.is_(None))
        .order_by(DriftEvent.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = await session.execute(
        update(DriftEvent)
        .where(DriftEvent.id.in_(some))
        .values(handled_at=func.now())
        .returning(DriftEvent.venue_id, DriftEvent.integration_type)
    )
    return sorted({(row.venue_id, row.integration_type) for row in taken})


_TABLE = cast(Table, ObservedField.__table__)
_INSERT = upsert(_TABLE)
_KEPT = (*("types", "shapes", "words", "seen_count", "record_count", "null_count", "missed_count"),)
_KEEP = _INSERT.on_conflict_do_update(
    index_elements=["venue_id", "integration_type", "resource", "path"],
    set_={
        **{name: _INSERT.excluded[name] for name in _KEPT},
        # What is missing keeps when it was last seen, and since when it is gone.
        "last_seen_at": text(
            "CASE WHEN excluded.missed_count = 0 THEN excluded.last_seen_at "
            "ELSE observed_fields.last_seen_at END"
        ),
        "removed_at": text(
            "CASE WHEN excluded.removed_at IS NULL THEN NULL "
            "ELSE coalesce(observed_fields.removed_at, excluded.removed_at) END"
        ),
        "refused_at": text(
            "CASE WHEN excluded.refused_at IS NULL THEN NULL "
            "ELSE coalesce(observed_fields.refused_at, excluded.refused_at) END"
        ),
    },
)
