"""Who did what. Entries are written in the transaction of what they tell of, and only ever added."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from server.db.models import AuditEntry


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asked for something: a caller's id, where from, and in which request."""

    id: str
    ip: str | None = None
    request_id: str | None = None


def address(host: str | None) -> str | None:
    """Return a client's address when it is one; proxies and tests may give a name."""
    try:
        return str(ipaddress.ip_address(host)) if host else None
    except ValueError:
        return None


def record(
    session: AsyncSession,
    actor: Actor,
    action: str,
    *,
    venue_id: UUID | None = None,
    provider: str | None = None,
    target: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry. `details` are plain values: never credentials, never a record's content."""
    session.add(
        AuditEntry(
            venue_id=venue_id,
            integration_type=provider,
            actor=actor.id,
            action=action,
            target=target,
            details=dict(details or {}),
            ip=actor.ip,
            request_id=actor.request_id,
        )
    )
