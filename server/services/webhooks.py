"""What providers send: stored as it came before it is acknowledged, and worked by a worker afterwards.

An event is kept once for each connection it is about, however often it is delivered: its `external_id` is
made of the venue and of what the provider signed. One that no connection here is about is kept as `ignored`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson
import structlog
from sqlalchemy import ColumnElement, Text, case, cast, exists, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from engine.deliveries import Delivery
from engine.errors import MalformedDeliveryError
from engine.manifest import Webhooks
from engine.webhooks import Event, action_of, moment_of, split_events
from server.catalog import Catalog
from server.context import Context
from server.db import exact_json
from server.db.models import (
    IntegrationConfig,
    IntegrationStatus,
    Operation,
    OperationStatus,
    OperationType,
    Priority,
    Webhook,
    WebhookDelivery,
    WebhookStatus,
)
from server.db.reads import Reads
from server.errors import Detail, InvalidRequestError, NotFoundError
from server.services import audit, operations
from server.services.audit import Actor
from server.services.operations import Due, Wanted
from server.services.paging import Page
from server.telemetry import traces
from server.telemetry.metrics import DELIVERIES, WEBHOOKS, once_committed
from server.worker.relay import announce

log = structlog.get_logger(__name__)

RUNNABLE = (IntegrationStatus.CONNECTED, IntegrationStatus.ERROR)  # an error may be over by now
KEPT_HEADERS = 40  # of a delivery
LONGEST_HEADER = 2000  # characters of one that is kept
NEVER_KEPT = frozenset({"authorization", "cookie", "proxy-authorization"})
MOST_REPLAYED = 1000
REPLAYED_AT_ONCE = 100  # how many are held in memory, without their content; and one delivery
WORKED_AT_ONCE = 200
NOBODYS = "no connection here has this account"
UNKNOWN_TYPE = "the connector's manifest doesn't name this type of event"
UNWANTED = "the connector's manifest ignores this type of event"
OVERTAKEN = "it was connected again after this event"
GIVEN_UP_AT_ONCE = 1000
UNDER_WAY = (*operations.WAITING, OperationStatus.PROCESSING)
CLEARED = "the queue was cleared before this was worked"
CONFLICT = "the same id came before with other content; this one isn't worked"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery that has been proved and read. `venue_id` is its address's; None where all share one."""

    provider: str
    venue_id: UUID | None
    scheme: str
    delivery: Delivery
    events: Sequence[Event]
    ignored: str | None  # what to say of types the manifest doesn't name; None: they fail
    unkept: frozenset[str] = frozenset()  # headers that hold a secret itself, and no signature
    trace: str | None = None  # that its request belongs to


@dataclass(frozen=True, slots=True)
class Stored:
    """What was new of some arrivals: operations to announce, and how many events there were."""

    operations: Sequence[Due] = ()
    new: int = 0
    known: int = 0
    conflicts: int = 0
    refused: Collection[int] = ()  # which of the arrivals, by their place


async def store(reads: Reads, arrivals: Sequence[Arrival], depth: int = 0) -> Stored:
    """Write the unseen events of some deliveries, those deliveries, and an operation for each to be worked.

    They are written by one statement, so all of it counts once this returns, or nothing: only then may the
    providers be told that it arrived. Doing it again does no harm. A delivery about an integration of which
    `depth` operations wait already is refused: nothing of that integration's is written, and what others
    have in it is, so that the next try brings the rest.
    """
    venues, full = await _places(reads, arrivals, depth)
    refused: set[int] = set()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    deliveries: dict[UUID, dict[str, Any]] = {}
    repeated: list[dict[str, Any]] = []
    traced: dict[UUID, str | None] = {}
    for number, arrival in enumerate(arrivals):
        whose = [_whose(arrival, event, venues) for event in arrival.events]
        owners = {venue_id for found in whose for venue_id in found}
        kept = {owner: uuid4() for owner in owners if (owner, arrival.provider) not in full}
        if len(kept) < len(owners):
            refused.add(number)
        # A delivery about several venues is none's to keep: each has its own events of it.
        shared = len(owners) > 1 or not all(whose)
        for venue_id, delivery_id in kept.items():
            deliveries[delivery_id] = delivery_row(delivery_id, arrival, venue_id, with_body=not shared)
        for event, found in zip(arrival.events, whose, strict=True):
            for owner in found or (None,):
                if owner is not None and owner not in kept:
                    continue  # too much of its waits
                row = _event_row(arrival, event, owner, kept[owner] if owner else None)
                key = row["integration_type"], row["external_id"]
                traced[row["id"]] = arrival.trace
                repeated.append(row) if key in rows else rows.setdefault(key, row)
    if not rows:
        return Stored(refused=refused)
    # In one order everywhere, so that processes that store the same events don't wait for each other.
    events = [rows[key] for key in sorted(rows)]
    work = [
        _operation_row(row, traced[row["id"]]) for row in events if row["status"] == WebhookStatus.PENDING
    ]
    written = await reads.rows(
        _INSERT,
        *_columns(_EVENT, events),
        *_columns(_DELIVERY, deliveries.values()),
        *_columns(_OPERATION, work),
    )
    stored = {row["event_id"]: row for row in written}
    known = [row for row in rows.values() if row["id"] not in stored] + repeated
    conflicts = await _note_conflicts(reads, known, deliveries) if known else []
    fresh = [row for row in rows.values() if row["id"] in stored]
    lane = operations.lane_of(Priority.CRITICAL)
    queued = [
        Due(row["id"], row["venue_id"], row["integration_type"], lane, float(row["queued"]))
        for row in written
        if row["id"] is not None
    ]
    _count(fresh, known, conflicts)
    return Stored(queued, len(fresh), len(known), len(conflicts), refused)


def _count(
    fresh: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], conflicts: Sequence[str]
) -> None:
    for row in fresh:
        DELIVERIES.add(row["integration_type"], "accepted")
        WEBHOOKS.add(row["integration_type"], "received")
        if row["status"] != WebhookStatus.PENDING:
            WEBHOOKS.add(row["integration_type"], row["status"].value)
    for provider in conflicts:
        DELIVERIES.add(provider, "conflict")
    for provider, count in (Counter(row["integration_type"] for row in known) - Counter(conflicts)).items():
        DELIVERIES.add(provider, "duplicate", by=count)


Places = Mapping[tuple[str, str | UUID], Sequence[UUID]]  # venues by provider, and account or venue


async def _places(
    reads: Reads, arrivals: Sequence[Arrival], depth: int
) -> tuple[Places, set[tuple[UUID, str]]]:
    """Return the venues that have a connection, with an account or with the address that was used; and those
    integrations, venue and provider, of which as many operations wait as may.
    """
    accounts = {
        (arrival.provider, event.account)
        for arrival in arrivals
        if arrival.venue_id is None
        for event in arrival.events
        if event.account is not None
    }
    owners = {(arrival.provider, arrival.venue_id) for arrival in arrivals if arrival.venue_id is not None}
    by_account, by_owner = list(accounts), list(owners)
    found: dict[tuple[str, str | UUID], list[UUID]] = {}
    full: set[tuple[UUID, str]] = set()
    for provider, account, venue_id, crowded in await reads.rows(
        _PLACES,
        *([each[place] for each in wanted] for wanted in (by_account, by_owner) for place in (0, 1)),
        depth,
    ):
        found.setdefault((provider, venue_id if account is None else account), []).append(venue_id)
        if crowded:
            full.add((venue_id, provider))
    return found, full


_RUNNABLE = ", ".join(f"'{each.value}'" for each in RUNNABLE)
# No more of an integration is looked at than it takes to know that it is full. Each is looked up by itself:
# then the plan is the same for few and for many (`Reads.by_index`).
_PLACES = f"""
WITH place AS (
    SELECT wanted.provider AS integration_type, wanted.account, found.venue_id
    FROM unnest($1::text[], $2::text[]) AS wanted (provider, account), LATERAL (
        SELECT venue_id FROM integration_configs
        WHERE integration_type = wanted.provider AND account = wanted.account AND status IN ({_RUNNABLE})
        OFFSET 0
    ) AS found
    UNION ALL
    SELECT wanted.provider, NULL, wanted.venue_id
    FROM unnest($3::text[], $4::uuid[]) AS wanted (provider, venue_id)
    WHERE EXISTS (
        SELECT FROM integration_configs AS found
        WHERE found.integration_type = wanted.provider AND found.venue_id = wanted.venue_id
            AND found.status IN ({_RUNNABLE})
        OFFSET 0
    )
)
SELECT integration_type, account, venue_id, $5 > 0 AND EXISTS (
    SELECT FROM sync_queue AS waiting
    WHERE waiting.venue_id = place.venue_id AND waiting.integration_type = place.integration_type
        AND waiting.status IN ('pending', 'recovering')
    OFFSET greatest($5::int, 1) - 1
)
FROM place ORDER BY venue_id
"""  # noqa: S608 - names of ours


def _whose(arrival: Arrival, event: Event, venues: Places) -> Sequence[UUID]:
    place = event.account if arrival.venue_id is None else arrival.venue_id
    return () if place is None else venues.get((arrival.provider, place), ())


def delivery_row(delivery_id: UUID, arrival: Arrival, venue_id: UUID, *, with_body: bool) -> dict[str, Any]:
    """Return what is kept of a delivery for a venue: no secret that proves it, and only some headers."""
    delivery = arrival.delivery
    return {
        "id": delivery_id,
        "venue_id": venue_id,
        "integration_type": arrival.provider,
        "method": delivery.method,
        "url": delivery.url if arrival.venue_id is None else _without_token(delivery.url),
        "headers": _kept_headers(arrival),
        "body": delivery.body if with_body else b"",
        "scheme": arrival.scheme,
    }


def _without_token(url: str) -> str:
    """Return the address of a connection without what nobody can guess of it, wherever that stands."""
    path, mark, query = url.partition("?")
    shared, _, token = path.rpartition("/")
    return f"{shared}{mark}{query}".replace(token, "***") if token else url


def _kept_headers(arrival: Arrival) -> dict[str, str]:
    left_out = NEVER_KEPT | arrival.unkept
    kept = [(name, value) for name, value in arrival.delivery.headers.items() if name not in left_out]
    return {name: value[:LONGEST_HEADER] for name, value in kept[:KEPT_HEADERS]}


def _event_row(
    arrival: Arrival, event: Event, venue_id: UUID | None, delivery_id: UUID | None
) -> dict[str, Any]:
    status, error = WebhookStatus.PENDING, None
    if venue_id is None:
        status, error = WebhookStatus.IGNORED, NOBODYS
    elif event.action is None:
        status = WebhookStatus.IGNORED if arrival.ignored else WebhookStatus.FAILED
        error = arrival.ignored or UNKNOWN_TYPE
    elif event.action.does == "ignore":
        status, error = WebhookStatus.IGNORED, UNWANTED
    # What is nobody's here is counted and not kept: nobody could have it erased.
    unkept: Mapping[str, Any] = {"payload": {}, "account": None, "record_id": None}
    return {
        "id": uuid4(),
        "venue_id": venue_id,
        "integration_type": arrival.provider,
        "event_id": event.id,
        "external_id": event.id if venue_id is None else f"{venue_id}:{event.id}",
        "status": status,
        "error": error,
        "delivery_id": delivery_id,
        "processed_at": None if status is WebhookStatus.PENDING else datetime.now(UTC),
        **_reading(event),
        **(unkept if venue_id is None else {}),
    }


def _reading(event: Event) -> dict[str, Any]:
    """Return the columns that the manifest reads from a delivery, other than which event it is."""
    payload = event.payload if isinstance(event.payload, dict) else {"value": event.payload}
    return {
        "event_type": event.type,
        "account": event.account[:255] if event.account else None,
        "record_id": event.record[:255] if event.record else None,
        "occurred_at": moment_of(event),
        "payload": payload,
        "payload_hash": hashlib.sha256(orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)).hexdigest(),
    }


def _operation_row(row: Mapping[str, Any], trace: str | None) -> dict[str, Any]:
    return {
        "event_id": row["id"],
        "venue_id": row["venue_id"],
        "integration_type": row["integration_type"],
        "entity_id": row["record_id"],
        "payload": traces.carried({"webhookId": str(row["id"])}, trace),
        "idempotency_key": f"webhook:{row['id']}",
    }


async def _note_conflicts(
    reads: Reads, known: Sequence[Mapping[str, Any]], deliveries: Mapping[UUID, Mapping[str, Any]]
) -> list[str]:
    """Keep events whose id came before with other content, for a person to see, and what they came with;
    returns the providers of those that are new.
    """
    rows = await reads.rows(
        _BEFORE, [row["integration_type"] for row in known], [row["external_id"] for row in known]
    )
    before = {(provider, external_id): digest for provider, external_id, digest in rows}
    others = {
        (row["integration_type"], row["external_id"], row["payload_hash"]): {
            **row,
            "external_id": f"{row['external_id']}:{row['payload_hash'][:16]}",
            "status": WebhookStatus.IGNORED,
            "error": CONFLICT,
            "processed_at": datetime.now(UTC),
        }
        for row in known
        if before.get((row["integration_type"], row["external_id"])) != row["payload_hash"]
    }
    if not others:
        return []
    came_with = {row["delivery_id"] for row in others.values()} - {None}
    written = await reads.rows(
        _INSERT_CONFLICTS,
        *_columns(_EVENT, others.values()),
        *_columns(_DELIVERY, [deliveries[each] for each in came_with]),
    )
    return [row["integration_type"] for row in written]


_BEFORE = """
SELECT integration_type, external_id, payload_hash FROM integration_webhooks
WHERE (integration_type, external_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
# The columns that are written of each, and their types: whole columns are sent, not rows.
_EVENT = {
    "id": "uuid",
    "venue_id": "uuid",
    "integration_type": "text",
    "event_type": "text",
    "event_id": "text",
    "external_id": "text",
    "payload": "jsonb",
    "payload_hash": "text",
    "status": "webhook_status",
    "error": "text",
    "delivery_id": "uuid",
    "account": "text",
    "record_id": "text",
    "occurred_at": "timestamptz",
    "processed_at": "timestamptz",
}
_DELIVERY = {
    "id": "uuid",
    "venue_id": "uuid",
    "integration_type": "text",
    "method": "text",
    "url": "text",
    "headers": "jsonb",
    "body": "bytea",
    "scheme": "text",
}
_OPERATION = {
    "event_id": "uuid",
    "venue_id": "uuid",
    "integration_type": "text",
    "entity_id": "text",
    "payload": "jsonb",
    "idempotency_key": "text",
}
_AS_TEXT = ("jsonb", "webhook_status")  # types that are sent as text


def _columns(kinds: Mapping[str, str], rows: Collection[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for column, kind in kinds.items():
        values = [row[column] for row in rows]
        yield [exact_json.dumps(each) for each in values] if kind == "jsonb" else values


def _given(kinds: Mapping[str, str], before: int = 0) -> str:
    """Return rows to select from: what `_columns` gives, after so many other parameters."""
    arrays = (
        f"${number}::{'text' if kind in _AS_TEXT else kind}[]"
        for number, kind in enumerate(kinds.values(), before + 1)
    )
    values = (f"{column}::{kind}" if kind in _AS_TEXT else column for column, kind in kinds.items())
    return f"SELECT {', '.join(values)} FROM unnest({', '.join(arrays)}) AS given ({', '.join(kinds)})"  # noqa: S608 - names of ours


_EVENTS = f"INSERT INTO integration_webhooks ({', '.join(_EVENT)}) {_given(_EVENT)} " + (
    "ON CONFLICT (integration_type, external_id) DO NOTHING"
)
_DELIVERIES = f"""
INSERT INTO webhook_deliveries ({", ".join(_DELIVERY)}) {_given(_DELIVERY, len(_EVENT))}
WHERE given.id IN (SELECT delivery_id FROM event)
"""  # noqa: S608 - made of the names above
# A delivery is there already when another of its events was unseen.
_INSERT_CONFLICTS = f"""
WITH event AS (
    {_EVENTS} RETURNING integration_type, delivery_id
), delivery AS (
    {_DELIVERIES} ON CONFLICT (id) DO NOTHING
)
SELECT integration_type FROM event
"""  # noqa: S608 - made of the names above
# The unseen events, their deliveries, and an operation for each that is to be worked, in one statement.
_INSERT = f"""
WITH event AS (
    {_EVENTS} RETURNING id, delivery_id
), delivery AS (
    {_DELIVERIES}
), operation AS (
    INSERT INTO sync_queue (operation_type, entity_type, priority, {", ".join(list(_OPERATION)[1:])})
    SELECT 'reconcile', 'webhook', 'CRITICAL', work.* FROM (
        {_given(_OPERATION, len(_EVENT) + len(_DELIVERY)).replace("SELECT event_id, ", "SELECT ", 1)}
        WHERE given.event_id IN (SELECT id FROM event)
    ) AS work
    ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING id, venue_id, integration_type, extract(epoch FROM queued_at) AS queued, idempotency_key
)
SELECT event.id AS event_id, operation.*
FROM event LEFT JOIN operation ON idempotency_key = 'webhook:' || event.id
"""  # noqa: S608 - made of the names above


# --- looking, and trying again


async def list_events(
    session: AsyncSession,
    provider: str,
    *,
    venues: Sequence[UUID] | None,
    status: WebhookStatus | None,
    limit: int,
    offset: int,
    after: tuple[datetime, UUID] | None,
) -> Page:
    """Return events, newest first, of some venues (None: of all, and of none)."""
    wanted = select(Webhook).where(Webhook.integration_type == provider)
    if venues is not None:
        wanted = wanted.where(Webhook.venue_id.in_(venues))
    if status is not None:
        wanted = wanted.where(Webhook.status == status)
    total = await session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    place = tuple_(Webhook.received_at, Webhook.id)
    statement = wanted.order_by(Webhook.received_at.desc(), Webhook.id.desc()).limit(limit + 1)
    statement = statement.offset(offset) if after is None else statement.where(place < tuple_(*after))
    rows = (await session.scalars(statement)).all()
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return Page(rows[:limit], total, (last.received_at.isoformat(), str(last.id)) if last else None)


async def find_event(session: AsyncSession, event_id: UUID) -> Webhook:
    """Return an event; raises NotFoundError."""
    event = await session.get(Webhook, event_id)
    if event is None:
        raise no_such_event()
    return event


def no_such_event() -> NotFoundError:
    """Return the error for an event that isn't there, and for one the caller may not see."""
    return NotFoundError("there is no such webhook event")


async def retry(context: Context, actor: Actor, event_id: UUID) -> None:
    """Work an event again, whatever became of it, as the manifest reads its delivery by now.

    Raises InvalidRequestError for one that no connection is about.
    """
    async with context.sessions.begin() as session:
        event = await session.get_one(Webhook, event_id, with_for_update=True)
        if event.venue_id is None:
            raise InvalidRequestError("no connection is about this event", [Detail("webhookId", NOBODYS)])
        await operations.require_room(
            session, event.venue_id, event.integration_type, context.settings.queue_depth
        )
        queued = await _queue_again(context, session, [event], actor)
        audit.record(
            session,
            actor,
            "webhook.retried",
            venue_id=event.venue_id,
            provider=event.integration_type,
            target=str(event.id),
        )
    await announce(context.redis, queued)


async def replay(
    context: Context,
    actor: Actor,
    *,
    venue_id: UUID,
    provider: str,
    status: WebhookStatus,
    since: datetime | None = None,
    until: datetime | None = None,
) -> int:
    """Work a venue's events again that have a status and came within a time, oldest first, as the manifest
    reads their deliveries by now; returns how many.

    At most MOST_REPLAYED at once: call again for the rest.
    """
    context.catalog.connector(provider)
    place = tuple_(Webhook.received_at, Webhook.id)
    statement = (
        select(Webhook)
        .options(defer(Webhook.payload), defer(Webhook.headers))
        .filter_by(venue_id=venue_id, integration_type=provider, status=status)
        .order_by(Webhook.received_at, Webhook.id)
        .with_for_update(skip_locked=True)
    )
    if since is not None:
        statement = statement.where(Webhook.received_at >= since)
    if until is not None:
        statement = statement.where(Webhook.received_at < until)
    async with context.sessions.begin() as session:
        await operations.require_room(session, venue_id, provider, context.settings.queue_depth)
        queued: list[Due] = []
        after = statement
        while len(queued) < MOST_REPLAYED:
            page = after.limit(min(REPLAYED_AT_ONCE, MOST_REPLAYED - len(queued)))
            events = (await session.scalars(page)).all()
            if not events:
                break
            after = statement.where(place > tuple_(events[-1].received_at, events[-1].id))
            queued += await _queue_again(context, session, events, actor)
            session.expunge_all()  # they are written
        audit.record(
            session,
            actor,
            "webhooks.replayed",
            venue_id=venue_id,
            provider=provider,
            details={"events": len(queued), "status": status.value},
        )
    await announce(context.redis, queued)
    return len(queued)


async def _queue_again(
    context: Context, session: AsyncSession, events: Sequence[Webhook], actor: Actor
) -> list[Due]:
    """Read an integration's events afresh and write an operation for each; returns those, to be announced."""
    by_delivery: dict[UUID | None, list[Webhook]] = defaultdict(list)
    for event in events:
        by_delivery[event.delivery_id].append(event)
    for whose in by_delivery.values():
        await _read_afresh(context.catalog, session, whose)
        for event in whose:
            event.retry_count += 1
            event.status, event.error, event.processed_at = WebhookStatus.PENDING, None, None
        await session.flush()
        for event in whose:  # a delivery may be a megabyte: no two are held
            session.expire(event, ["payload"])
    wanted: list[Wanted] = []
    for event in events:
        assert event.venue_id is not None
        wanted.append(
            Wanted(
                UUID(int=event.venue_id.int),  # the driver's own kind can't be written as JSON
                event.integration_type,
                OperationType.RECONCILE,
                "webhook",
                {"webhookId": str(event.id)},
                entity_id=event.record_id,
                priority=Priority.CRITICAL,
                idempotency_key=f"webhook:{event.id}:{event.retry_count}",
                correlation_id=actor.request_id,
            )
        )
    return await operations.enqueue_many(session, wanted)


async def read_again(catalog: Catalog, session: AsyncSession, events: Sequence[Webhook]) -> None:
    """Read those of some events afresh that have failed, as `retry` does, since they are worked again."""
    by_delivery: dict[UUID | None, list[Webhook]] = defaultdict(list)
    for event in events:
        if event.status is WebhookStatus.FAILED:
            by_delivery[event.delivery_id].append(event)
    for whose in by_delivery.values():
        await _read_afresh(catalog, session, whose)


async def _read_afresh(catalog: Catalog, session: AsyncSession, events: Sequence[Webhook]) -> None:
    """Put what the manifest of today reads from a stored delivery in place of what was read before, in its
    events.

    Which event of which venue each is never changes. One stays as it is when the delivery isn't kept, has no
    form that the manifest knows any more, or has no such event by now. Deliveries were proved when they came;
    what proves them isn't kept.
    """
    first = events[0]
    connector = catalog.connectors.get(first.integration_type)
    spec = connector.webhooks if connector else None
    delivery = await _stored_delivery(session, first) if spec else None
    found: Sequence[Event] = ()
    why = "the delivery isn't stored" if spec else "the connector has no webhooks any more"
    if spec is not None and delivery is not None:
        try:
            found, why = split_events(spec, delivery), "the delivery has no such event"
        except MalformedDeliveryError as error:
            why = error.message
    digest = hashlib.sha256(delivery.body).hexdigest() if delivery else ""
    for event in events:
        again = _found_again(event, found, digest)
        if again is None:
            log.debug("webhook.kept_as_read", webhook_id=str(event.id), reason=why)
            continue
        for column, value in _reading(again).items():
            setattr(event, column, value)


async def _stored_delivery(session: AsyncSession, event: Webhook) -> Delivery | None:
    """Return what an event came with, as far as it is kept; None when it isn't, or without what it said."""
    stored = WebhookDelivery
    rows = await session.execute(
        select(stored.method, stored.url, stored.headers, stored.body).where(
            stored.id == event.delivery_id, stored.venue_id == event.venue_id, stored.body != b""
        )
    )
    row = rows.one_or_none()
    return None if row is None else Delivery(row.method, row.url, row.headers, row.body)


def _found_again(event: Webhook, found: Sequence[Event], digest: str) -> Event | None:
    """Return which of a delivery's events this one is: by the provider's id, else by its place in the body
    with this digest, of which its id was made when the manifest knew no other.
    """
    same = [each for each in found if each.id == event.event_id]
    if len(same) > 1:  # an id that came twice with different content
        return next((each for each in same if _reading(each)["payload_hash"] == event.payload_hash), same[0])
    if same:
        return same[0]
    made_of, _, place = (event.event_id or "").rpartition(":")
    if made_of == f"sha256:{digest}" and place.isdecimal() and int(place) < len(found):
        return found[int(place)]
    return None


async def give_up(session: AsyncSession, event_ids: Sequence[UUID]) -> None:
    """Ignore those of some events that wait and have no operation any more; they can be replayed."""
    for start in range(0, len(event_ids), GIVEN_UP_AT_ONCE):
        some = event_ids[start : start + GIVEN_UP_AT_ONCE]
        kept = exists().where(_own_operation() & Operation.status.in_(UNDER_WAY))
        waiting = select(Webhook.id).where(Webhook.id.in_(some), Webhook.status == WebhookStatus.PENDING)
        left = waiting.where(~kept).with_for_update(of=Webhook)
        await settle(session, (await session.scalars(left)).all(), WebhookStatus.IGNORED, CLEARED)


# --- as workers see it


async def waiting(
    session: AsyncSession,
    venue_id: UUID,
    provider: str,
    *,
    only: UUID | None = None,
    revived: UUID | None = None,
) -> Sequence[Webhook]:
    """Return an integration's events that wait, the oldest first; none whose own operation is a dead letter.

    They are WORKED_AT_ONCE at most; `only` is the one event that is wanted, however many are older.
    `revived` is the event of an operation that failed and is worked again: with it come all that failed with
    it, since theirs ended without anything left to do.
    """
    wanted: ColumnElement[bool] = Webhook.status == WebhookStatus.PENDING
    if revived is not None:
        own = aliased(Webhook)
        together = (
            (own.id == revived)
            & (own.status == WebhookStatus.FAILED)
            & ((own.id == Webhook.id) | (own.processed_at == Webhook.processed_at))
            & (own.error == Webhook.error)
        )
        wanted |= (Webhook.status == WebhookStatus.FAILED) & exists().where(together)
    if only is not None:
        wanted &= Webhook.id == only
    rows = await session.scalars(
        select(Webhook)
        .filter_by(venue_id=venue_id, integration_type=provider)
        .where(wanted, ~exists().where(_set_aside()))
        .order_by(Webhook.received_at)
        .limit(WORKED_AT_ONCE)
    )
    return rows.all()


def _set_aside() -> ColumnElement[bool]:
    """Return the condition that an operation of an event is a dead letter: until that is revived, what can't
    be worked keeps no other of the integration from being worked.
    """
    return _own_operation() & (Operation.status == OperationStatus.DEAD_LETTER)


def _own_operation() -> ColumnElement[bool]:
    """Return the condition that an operation is an event's own: its first, or that of its latest retry."""
    retried = ":" + cast(Webhook.retry_count, Text)
    latest = case((Webhook.retry_count == 0, ""), else_=retried)
    return Operation.idempotency_key == "webhook:" + cast(Webhook.id, Text) + latest


def sorted_out(
    spec: Webhooks, events: Sequence[Webhook]
) -> tuple[Mapping[str, Sequence[str]], set[str], Mapping[UUID, tuple[str, str] | None]]:
    """Return what events ask for: records by resource, resources of which something has changed, and for each
    event the resource and record it is about; None for one that asks for nothing any more.
    """
    told: dict[str, dict[str, None]] = {}
    looked: set[str] = set()
    about: dict[UUID, tuple[str, str] | None] = {}
    for event in events:
        action = action_of(spec, event.event_type)
        about[event.id] = None
        if action is None or action.resource is None:
            continue
        if action.does == "changes":
            looked.add(action.resource)
            about[event.id] = (action.resource, "")
        elif event.record_id is not None:
            told.setdefault(action.resource, {})[event.record_id] = None
            about[event.id] = (action.resource, event.record_id)
    return {resource: list(ids) for resource, ids in told.items()}, looked, about


def endings(spec: Webhooks, events: Sequence[Webhook]) -> list[Webhook]:
    """Return those of some events that say that the account took back what it had allowed."""
    actions = ((event, action_of(spec, event.event_type)) for event in events)
    return [event for event, action in actions if action is not None and action.does == "disconnect"]


async def overtaken(session: AsyncSession, ended: Sequence[Webhook]) -> list[UUID]:
    """Return those of an integration's events from before it was connected: what they ended, they ended
    already, and what was allowed since isn't what was taken back.
    """
    if not ended:
        return []
    found = await session.scalars(
        select(Webhook.id)
        .join(
            IntegrationConfig,
            (IntegrationConfig.venue_id == Webhook.venue_id)
            & (IntegrationConfig.integration_type == Webhook.integration_type),
        )
        .where(
            Webhook.id.in_([event.id for event in ended]),
            func.coalesce(Webhook.occurred_at, Webhook.received_at)
            # Providers tell the second something happened in.
            < func.date_trunc("second", IntegrationConfig.connected_at),
        )
    )
    return list(found.all())


def grouped(
    about: Mapping[UUID, tuple[str, str] | None],
    pulled: Collection[str],
    failures: Mapping[tuple[str, str], str],
) -> Mapping[tuple[WebhookStatus, str | None], Sequence[UUID]]:
    """Return events by what became of them. `pulled` are the resources that a mapping of the venue pulls."""
    found: dict[tuple[WebhookStatus, str | None], list[UUID]] = {}
    for event_id, subject in about.items():
        outcome: tuple[WebhookStatus, str | None] = (WebhookStatus.PROCESSED, None)
        if subject is None:
            outcome = (WebhookStatus.IGNORED, UNWANTED)
        elif subject[0] not in pulled:
            outcome = (WebhookStatus.IGNORED, f"no mapping of this venue pulls `{subject[0]}`")
        elif subject in failures:
            outcome = (WebhookStatus.FAILED, failures[subject])
        found.setdefault(outcome, []).append(event_id)
    return found


async def settle(
    session: AsyncSession, event_ids: Sequence[UUID], status: WebhookStatus, error: str | None = None
) -> None:
    """Write down what became of events."""
    settled = await session.scalars(
        update(Webhook)
        .where(Webhook.id.in_(event_ids))
        .values(
            status=status,
            error=error,
            processed_at=func.now() if status is not WebhookStatus.PENDING else None,
        )
        .returning(Webhook.integration_type)
    )
    providers = settled.all()

    def count() -> None:
        for provider in providers:
            WEBHOOKS.add(provider, status.value)

    if status is not WebhookStatus.PENDING:
        once_committed(session, count)
