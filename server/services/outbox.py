"""What the hub tells the outside: written down in the transaction that makes it true, told later.

`announce` writes it. `distribute` writes a delivery for every subscriber who wants it, and which streams it
has to be put into; `publish` puts it there. Each is a transaction that may be repeated: nothing is lost, and
who is told twice is told the same, under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import orjson
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.db.models import OutboxMessage

# Every event there is, and when it happens: the API's reference is made of these sentences.
EVENTS: Mapping[str, str] = {
    "integration.connected": "A venue connected a provider, or connected it again.",
    "integration.disconnected": "A venue's connection was ended: its credentials are erased.",
    "sync.completed": "A sync came to its end. Single records may have failed; `failed` says how many.",
    "sync.failed": "A sync was given up. What it had done until then is kept.",
    "conflict.detected": "Both sides changed a field whose rule is `manual`: a person has to decide.",
    "mapping.healed": "Looking at every mapped field changed which pairs are left out of syncs.",
    "health.changed": "An integration is doing better or worse than when it was last looked at.",
}
PING = "ping"  # goes to one subscriber only, when it is asked for
KEPT_TRYING = timedelta(days=4)  # longer than all waits between attempts together
AT_ONCE = 500  # events in one transaction

_DISTRIBUTE = text("""
WITH news AS (
    SELECT id, venue_id, topic FROM outbox
    WHERE published_at IS NULL AND available_at <= now()
    ORDER BY id LIMIT :limit
    FOR UPDATE SKIP LOCKED
), told AS (
    INSERT INTO event_deliveries (subscriber_id, outbox_id, venue_id, next_attempt_at, give_up_at)
    SELECT subscriber.id, news.id, news.venue_id, now(), now() + :kept
    FROM news JOIN event_subscribers AS subscriber ON subscriber.venue_id = news.venue_id
    WHERE subscriber.active AND (subscriber.events = '{}' OR news.topic = ANY(subscriber.events))
    UNION ALL
    SELECT subscriber.id, news.id, news.venue_id, now(), now() + :kept
    FROM news JOIN event_subscribers AS subscriber ON subscriber.venue_id IS NULL
    WHERE subscriber.active AND (subscriber.events = '{}' OR news.topic = ANY(subscriber.events))
    ON CONFLICT (subscriber_id, outbox_id) DO NOTHING
)
UPDATE outbox SET published_at = now(), streams = CAST(:streams AS text[])
FROM news WHERE outbox.id = news.id
RETURNING outbox.id
""")


def announce(session: AsyncSession, *, venue_id: UUID, event: str, data: Mapping[str, Any]) -> None:
    """Write down that something happened at a venue; whoever wants to know is told after the commit.

    `event` is one of EVENTS. `data` is what JSON holds (ids, the provider, counts, codes): never a
    credential, a record's content or anything about a person. `venue_id` is added to it.
    """
    if event not in EVENTS:
        raise ValueError(f"`{event}` is not an event; there are {', '.join(EVENTS)}")
    session.add(OutboxMessage(venue_id=venue_id, topic=event, payload={"venue_id": str(venue_id), **data}))


# Of a sync, over all its mappings: records, and in the end calls.
SYNC_COUNTS = (
    *("read", "created", "updated", "unchanged", "skipped", "failed", "conflicts", "archived", "deleted"),
    "api_calls",
)


def announce_sync(
    session: AsyncSession,
    *,
    venue_id: UUID,
    provider: str,
    sync_id: UUID,
    sync_type: str,
    attempts: int,
    steps: Iterable[Mapping[str, Any]],
    error_code: str | None = None,
) -> None:
    """Write down that a sync ended, well without an `error_code`; `steps` are those of its progress."""
    steps = list(steps)
    ended = {} if error_code is None else {"error_code": error_code}
    announce(
        session,
        venue_id=venue_id,
        event="sync.completed" if error_code is None else "sync.failed",
        data={
            "provider": provider,
            "sync_id": str(sync_id),
            "sync_type": sync_type,
            "attempts": attempts,
            "counts": {name: sum(step.get(name, 0) for step in steps) for name in SYNC_COUNTS},
            **ended,
        },
    )


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it is told: `body` is the same to the byte however often, and so is `id`."""

    id: str
    type: str
    venue_id: UUID | None
    body: bytes


def public_id(event_id: UUID) -> str:
    """Return an event's id as it is told: the `webhook-id` of all its deliveries."""
    return f"evt_{event_id.hex}"


def told(event_id: UUID, topic: str, venue_id: UUID | None, data: Mapping[str, Any], at: datetime) -> Event:
    """Return what a row of the outbox is to the outside."""
    payload = {"type": topic, "timestamp": at.astimezone(UTC), "data": data}
    return Event(public_id(event_id), topic, venue_id, orjson.dumps(payload, option=orjson.OPT_UTC_Z))


async def distribute(session: AsyncSession, streams: Sequence[str]) -> int:
    """Write deliveries for what was announced, and the streams it goes into; returns how many events."""
    values = {"limit": AT_ONCE, "kept": KEPT_TRYING, "streams": list(streams)}
    return len((await session.scalars(_DISTRIBUTE, values)).all())


class Stream(Protocol):
    """Something that every event is put into, besides what subscribers are sent."""

    @property
    def name(self) -> str:
        """What the outbox calls it."""

    async def put(self, events: Sequence[Event]) -> None:
        """Put events in, in order; raises when it isn't sure that all of them are kept there."""


async def publish(sessions: async_sessionmaker[AsyncSession], stream: Stream) -> int:
    """Put the events that wait for a stream into it, in order; returns how many.

    One process at a time does it for a stream. One that dies in between puts them in once more.
    """
    row = OutboxMessage
    waiting = (
        select(row.id, row.event_id, row.topic, row.venue_id, row.payload, row.created_at)
        .where(text("streams <> '{}'::text[]"), row.streams.contains([stream.name]))
        .order_by(row.id)
        .limit(AT_ONCE)
    )
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"stream {stream.name}", 0))
    async with sessions.begin() as session:
        if not await session.scalar(select(lock)):
            return 0
        found = (await session.execute(waiting)).all()
        if not found:
            return 0
        await stream.put(
            [told(each.event_id, each.topic, each.venue_id, each.payload, each.created_at) for each in found]
        )
        await session.execute(
            update(row)
            .where(row.id.in_([each.id for each in found]))
            .values(streams=func.array_remove(row.streams, stream.name))
            .execution_options(synchronize_session=False)
        )
    return len(found)
