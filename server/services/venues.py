"""What is a venue's in the hub's own tables, and whether it is being erased."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import ColumnElement, Function, Table, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from server.db.models import Base, MaintenanceRun, MaintenanceStatus
from server.errors import BeingErasedError

ERASURE = "erasure"
_UNFINISHED = (MaintenanceStatus.PENDING, MaintenanceStatus.RUNNING)


@cache
def venue_tables() -> tuple[Table, ...]:
    """Return every table whose rows belong to venues, those that others refer to first."""
    return tuple(table for table in Base.metadata.sorted_tables if "venue_id" in table.c)


async def check_open(session: AsyncSession, venue_id: UUID, *, since: datetime | None = None) -> None:
    """Raise BeingErasedError while a venue is being erased, and when that ended later than `since`.

    Belongs at the start of a transaction that brings a venue something new. An erasure begins only after the
    transaction's end, and so finds what it wrote.
    """
    await session.execute(select(func.pg_advisory_xact_lock_shared(_lock(venue_id))))
    erased: ColumnElement[bool] = MaintenanceRun.status.in_(_UNFINISHED)
    if since is not None:
        erased = or_(erased, MaintenanceRun.completed_at > since)
    if await session.scalar(
        select(exists().where(MaintenanceRun.venue_id == venue_id, MaintenanceRun.kind == ERASURE, erased))
    ):
        raise BeingErasedError("what is stored for this venue is being erased")


async def close(session: AsyncSession, venue_id: UUID) -> None:
    """Wait for all who found a venue open; who looks from now on waits for this transaction's end."""
    await session.execute(select(func.pg_advisory_xact_lock(_lock(venue_id))))


def _lock(venue_id: UUID) -> Function[int]:
    return func.hashtextextended(f"{ERASURE}:{venue_id}", 0)
