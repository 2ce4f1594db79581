"""A circuit breaker for each integration: while a provider doesn't answer, what it is needed for waits.

Closed, operations are worked as they come. After `Rule.failures` attempts in a row that ended because the
provider didn't answer, the circuit opens: no operation of the integration is claimed before `circuit_until`.
Then it is half open: one operation goes, as an integration has one at a time anyway. Heard from the provider,
and the circuit is closed; not heard, and it waits again, twice as long, up to LONGEST_WAIT. An attempt that
fails while the circuit isn't closed costs the operation none of its attempts.

The state is in `integration_configs`, written by the statement that ends an attempt: it costs nothing more.
Webhooks are taken whatever the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    FromClause,
    Integer,
    Interval,
    Table,
    bindparam,
    case,
    exists,
    func,
    null,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from engine.errors import HubError, ProviderError, RateLimitedError, SilentProviderError, UnavailableError
from engine.jobs import JobPendingError
from server.db.models import IntegrationConfig

LONGEST_WAIT = timedelta(minutes=15)
_SPREAD = 0.2  # integrations of one provider don't all come back in the same moment
_MOST_DOUBLINGS = 20

_CONFIG = cast(Table, IntegrationConfig.__table__)


class Heard(StrEnum):
    """What an attempt showed of the provider."""

    ANSWER = "answer"  # whatever it said
    SILENCE = "silence"  # 5xx, no answer in time, or none at all, after all that the manifest tries again
    NOTHING = "nothing"  # it wasn't asked, or only told to come back later


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Rule:
    """When a circuit opens, 0 `failures` for never, and how long it waits for the first time."""

    failures: int = 5
    wait: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Circuit:
    """An integration's circuit as it is now; unless it is closed, the next operation may go at `until`."""

    state: CircuitState = CircuitState.CLOSED
    failures: int = 0
    opened_at: datetime | None = None
    until: datetime | None = None


def heard(error: HubError | None, *, calls: int, silent: bool = False) -> Heard:
    """Return what an attempt that ended so, after so many calls, showed of the provider.

    `silent` says that it came to its end and each of its records failed for want of an answer.
    """
    if silent:
        return Heard.SILENCE
    if isinstance(error, JobPendingError | RateLimitedError):
        return Heard.NOTHING
    if isinstance(error, UnavailableError | SilentProviderError):
        return Heard.SILENCE
    if isinstance(error, ProviderError) or (error is None and calls):
        return Heard.ANSWER
    return Heard.NOTHING


def changes(what: Heard) -> Mapping[str, Any]:
    """Return what an attempt's end sets in `integration_configs`; silence needs `parameters` to be bound."""
    if what is Heard.NOTHING:
        return {}
    if what is Heard.ANSWER:
        return {"answered_at": func.now(), **_CLOSED}
    row = _CONFIG.c
    failures = row.circuit_failures + 1
    threshold: ColumnElement[int] = bindparam("circuit_threshold", type_=Integer())
    wait: ColumnElement[timedelta] = bindparam("circuit_wait", type_=Interval())
    doublings = func.least(failures - threshold, _MOST_DOUBLINGS)
    seconds = func.least(wait * func.pow(2, doublings), LONGEST_WAIT)
    until = func.now() + seconds * (1 + _SPREAD * (func.random() - 0.5))
    opens = failures >= threshold
    return {
        "circuit_failures": failures,
        "circuit_opened_at": case((opens, func.coalesce(row.circuit_opened_at, func.now())), else_=null()),
        "circuit_until": case((opens, until), else_=null()),
    }


def parameters(what: Heard, rule: Rule) -> dict[str, Any]:
    """Return what `changes` leaves to be bound."""
    if what is not Heard.SILENCE:
        return {}
    return {"circuit_threshold": rule.failures or 2**31 - 1, "circuit_wait": rule.wait}


def cut_off(operation: FromClause) -> ColumnElement[bool]:
    """Return the condition that an operation's integration has to wait for its provider."""
    return exists().where(
        _CONFIG.c.venue_id == operation.c.venue_id,
        _CONFIG.c.integration_type == operation.c.integration_type,
        _CONFIG.c.circuit_opened_at.is_not(None),
        _CONFIG.c.circuit_until > func.now(),
    )


def circuit_of(row: Any, now: datetime) -> Circuit:
    """Return the circuit that a row of `integration_configs` describes, in whatever form it was read."""
    if row.circuit_opened_at is None:
        return Circuit(failures=row.circuit_failures)
    waits = row.circuit_until is not None and row.circuit_until > now
    state = CircuitState.OPEN if waits else CircuitState.HALF_OPEN
    return Circuit(state, row.circuit_failures, row.circuit_opened_at, row.circuit_until)


async def is_closed(session: AsyncSession, venue_id: UUID, provider: str) -> bool:
    """Tell whether operations of an integration are worked as they come."""
    found = select(_CONFIG.c.id).where(*_of(venue_id, provider), _CONFIG.c.circuit_opened_at.is_not(None))
    return (await session.scalar(found)) is None


async def let_one_through(session: AsyncSession, venue_id: UUID, provider: str) -> bool:
    """Half open a circuit now rather than later, and return whether it wasn't closed.

    A person asked for something, or the provider answered a question: it is worth a try.
    """
    opened = (
        update(_CONFIG)
        .where(*_of(venue_id, provider), _CONFIG.c.circuit_opened_at.is_not(None))
        .values(circuit_until=func.now())
        .returning(_CONFIG.c.id)
    )
    return (await session.scalar(opened)) is not None


def _of(venue_id: UUID, provider: str) -> tuple[ColumnElement[bool], ...]:
    return (_CONFIG.c.venue_id == venue_id, _CONFIG.c.integration_type == provider)


_CLOSED: Mapping[str, Any] = {"circuit_failures": 0, "circuit_opened_at": None, "circuit_until": None}
