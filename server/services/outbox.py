"""What the hub tells the outside: written down in the transaction that makes it true, told later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from server.db.models import OutboxMessage

# Every event there is, and when it happens: the API's reference is made of these sentences.
EVENTS: Mapping[str, str] = {
    "integration.connected": "A venue connected a provider, or connected it again.",
    "integration.disconnected": "A venue's connection ended: by a person, or because its owner took it back.",
    "sync.completed": "A sync came to its end. Single records may have failed; `failed` says how many.",
    "sync.failed": "A sync could not come to its end, and is not tried again by itself.",
    "mapping.healed": "Looking at every mapped field changed which pairs are left out of syncs.",
    "health.changed": "An integration is doing better or worse than when it was last looked at.",
}


def announce(session: AsyncSession, *, venue_id: UUID, event: str, data: Mapping[str, Any]) -> None:
    """Write down that something happened at a venue; whoever wants to know is told after the commit.

    `event` is one of EVENTS. `data` is what JSON holds (ids, the provider, counts, codes): never a
    credential, a record's content or anything about a person. `venue_id` is added to it.
    """
    if event not in EVENTS:
        raise ValueError(f"`{event}` is not an event; there are {', '.join(EVENTS)}")
    session.add(OutboxMessage(venue_id=venue_id, topic=event, payload={"venue_id": str(venue_id), **data}))
