"""Attempts that were refused, on their way into the audit log.

They are counted here first, and written every second: the same attempt again within a minute adds to its
entry's count. So nobody fills the log by trying, neither with one caller nor with many. A process that is
killed forgets the last second's.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.models import AuditEntry
from server.services.audit import Actor

log = structlog.get_logger(__name__)

ACTION = "access.denied"
STRANGER = "anonymous"  # has no token, or none that is believed
PLACES_EACH = 5  # entries of a caller and minute; beyond them what was tried isn't told apart any more
MOST_EACH_MINUTE = 100  # entries of a process and minute; beyond them nor is who tried
WRITE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Denial:
    """One refused attempt: by whom, with which answer, at what. `foreign`: at a venue that isn't theirs."""

    actor: Actor
    code: str
    route: str | None = None
    venue_id: UUID | None = None
    provider: str | None = None
    foreign: bool = False


def stranger(ip: str | None) -> Actor:
    """Return who somebody without a believed token is: an address, of IPv6 the network it is in."""
    if ip is not None and ":" in ip:  # one host has 2^64 of them to change between
        ip = str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return Actor(STRANGER, ip)


Waiting = Counter[tuple[datetime, Denial]]


@dataclass(slots=True)
class Denials:
    """What one process refused and hasn't written yet."""

    waiting: Waiting = field(default_factory=Counter)
    _minute: datetime | None = None
    _seen: set[Denial] = field(default_factory=set)
    _places: Counter[tuple[str, str | None]] = field(default_factory=Counter)

    def note(self, denial: Denial, now: datetime | None = None) -> None:
        """Count an attempt; it is in the log within a second or so."""
        minute = (now or datetime.now(UTC)).replace(second=0, microsecond=0)
        if minute != self._minute:
            self._minute, self._seen, self._places = minute, set(), Counter()
        self.waiting[minute, self._bounded(denial)] += 1

    def _bounded(self, denial: Denial) -> Denial:
        denial = replace(denial, actor=replace(denial.actor, request_id=None))
        caller = (denial.actor.id, denial.actor.ip if denial.actor.id == STRANGER else None)
        if denial not in self._seen and self._places[caller] >= PLACES_EACH:
            denial = Denial(denial.actor, denial.code)
        if denial not in self._seen and len(self._seen) >= MOST_EACH_MINUTE:
            denial = Denial(Actor(STRANGER), denial.code)
        if denial not in self._seen:
            self._seen.add(denial)
            self._places[caller] += 1
        return denial

    async def write(self, sessions: async_sessionmaker[AsyncSession]) -> int:
        """Write what waits; returns how many attempts. While the database is away they wait on.

        One that it refuses keeps no others from being written: it is logged, and forgotten.
        """
        waiting, self.waiting = self.waiting, Counter()
        if not waiting:
            return 0
        try:
            await _store(sessions, waiting)
        except (SQLAlchemyError, OSError) as error:
            if not _is_refused(error):
                self.waiting.update(waiting)
                raise
            return await _store_each(sessions, waiting)
        return waiting.total()

    async def keep_writing(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        """Write every second until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(WRITE_SECONDS)
                try:
                    await self.write(sessions)
                except (SQLAlchemyError, OSError) as error:
                    await log.awarning("denials.not_written", error=type(error).__name__)
        finally:
            with suppress(SQLAlchemyError, OSError):
                await self.write(sessions)


def _is_refused(error: Exception) -> bool:
    """Say whether the database was there and wouldn't take what it got: a value, or a constraint."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return state[:2] in ("22", "23")


async def _store(sessions: async_sessionmaker[AsyncSession], waiting: Waiting) -> None:
    async with sessions.begin() as session:
        await session.execute(_statement(waiting))


async def _store_each(sessions: async_sessionmaker[AsyncSession], waiting: Waiting) -> int:
    written = 0
    for each, count in waiting.items():
        try:
            await _store(sessions, Counter({each: count}))
            written += count
        except SQLAlchemyError as error:
            if not _is_refused(error):
                raise
            await log.aerror("denial.not_written", attempts=count, error=type(error).__name__)
    return written


def _statement(waiting: Waiting) -> Any:
    rows = [_row(minute, denial, count) for (minute, denial), count in waiting.items()]
    # In one order everywhere: two processes that count the same attempts never wait for each other in a ring.
    statement = insert(AuditEntry).values(sorted(rows, key=lambda row: str(row["same"])))
    return statement.on_conflict_do_update(
        index_elements=[AuditEntry.same], set_={"count": AuditEntry.count + statement.excluded.count}
    )


def _row(minute: datetime, denial: Denial, count: int) -> dict[str, Any]:
    actor = denial.actor
    details = {"code": denial.code, "route": denial.route, "foreign": denial.foreign or None}
    return {
        "venue_id": denial.venue_id,
        "integration_type": denial.provider,
        "actor": actor.id,
        "role": actor.role,
        "action": ACTION,
        "details": {name: value for name, value in details.items() if value is not None},
        "ip": actor.ip,
        "count": count,
        "same": hashlib.sha256(repr((minute, denial)).encode()).hexdigest(),
    }
