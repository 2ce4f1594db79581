"""Who is told of events: addresses of a venue, or of the hub's own that are told of every venue.

What was on its way to one that stops being active ends as failed. When it is active again, `redeliver_since`
sends that, and what happened in between.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import ForbiddenAddressError
from engine.transport import check_address, origin_of
from server import vault
from server.context import Context
from server.db.models import DeliveryStatus, EventDelivery, EventSubscriber, OutboxMessage
from server.errors import ConflictError, Detail, InvalidRequestError, NotFoundError
from server.services import audit, outbox, venues
from server.services.audit import Actor
from server.services.paging import Page

MOST = 20  # subscribers of a venue, and of the hub itself
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105 -- how one begins; it is none
MOST_REDELIVERED = 10_000
STOPPED = "the subscriber is not active any more"
_AGAIN: Mapping[str, Any] = {
    "status": DeliveryStatus.PENDING,
    "step": 0,
    "next_attempt_at": func.now(),
    "give_up_at": func.now() + outbox.KEPT_TRYING,
    "error": None,
}
_HUB = UUID(int=0)  # stands for no venue where a sealed value lives


def place(row: EventSubscriber, column: str) -> vault.Context:
    """Return where a sealed column of a subscriber lives, for the vault."""
    return vault.Context(row.__tablename__, column, row.id, row.venue_id or _HUB, "", "")


def check_url(context: Context, url: str) -> None:
    """Raise InvalidRequestError for an address that nothing can be sent to.

    What a name leads to is looked at whenever something is sent: it may change.
    """
    problem = _problem(url, anywhere=context.settings.environment == "development")
    if problem is not None:
        raise InvalidRequestError(f"nothing can be sent there: {problem}", [Detail("url", problem)])


def _problem(url: str, *, anywhere: bool) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "this can't be read as an address"
    if not host or parts.scheme not in ("https", "http") or not url.isascii() or not url.isprintable():
        return "it must look like https://example.org/hub-events"
    if " " in url or parts.fragment:
        return "it can't have a space or a fragment"
    if parts.username is not None or parts.password is not None:
        return "it can't hold a user or a password: what is sent is signed"
    if anywhere:
        return None
    if parts.scheme != "https":
        return "it must begin with https://"
    try:
        check_address(host, host)
    except ForbiddenAddressError:
        return None if _is_name(host) else "it must lead to the public internet"
    return None


def _is_name(host: str) -> bool:
    """Say whether a host is a name that may be somebody's: not a number in disguise, not this machine."""
    last = host.rstrip(".").rpartition(".")[2]
    return "." in host.rstrip(".") and ":" not in host and not last.isdigit() and not last.startswith("0x")


# --- create, look, change, delete


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a subscriber wants; no `events` are all of them, those to come as well."""

    url: str
    events: Sequence[str] = ()
    description: str | None = None
    active: bool = True


async def create(
    context: Context, actor: Actor, venue_id: UUID | None, wishes: Wishes
) -> tuple[EventSubscriber, str]:
    """Add a subscriber of a venue, or of the hub; returns it and its secret, which is never told again.

    Raises InvalidRequestError for an address that can't be used, ConflictError when there are MOST already,
    BeingErasedError.
    """
    check_url(context, wishes.url)
    row = EventSubscriber(
        id=uuid4(),
        venue_id=venue_id,
        url=wishes.url,
        events=list(wishes.events),
        description=wishes.description,
        active=wishes.active,
        failures=0,
    )
    secret = new_secret()
    row.encrypted_secret = await context.vault.seal(secret, place(row, "encrypted_secret"))
    async with context.sessions.begin() as session:
        if venue_id is not None:
            await venues.check_open(session, venue_id)
        turn = func.pg_advisory_xact_lock(func.hashtextextended(f"subscribers {venue_id}", 0))
        await session.execute(select(turn))
        there = await session.scalar(select(func.count()).where(EventSubscriber.venue_id == venue_id)) or 0
        if there >= MOST:
            raise ConflictError(f"there are {there} subscribers already: delete one first")
        session.add(row)
        await session.flush()
        _record(session, actor, row, "created", after=_picture(row))
        await session.refresh(row)
    return row, secret


async def find(
    session: AsyncSession, venue_id: UUID | None, subscriber_id: UUID, *, lock: bool = False
) -> EventSubscriber:
    """Return a subscriber of a venue, or of the hub for None; raises NotFoundError."""
    wanted = select(EventSubscriber).where(
        EventSubscriber.id == subscriber_id, EventSubscriber.venue_id == venue_id
    )
    if lock:
        wanted = wanted.with_for_update(key_share=True)  # new deliveries may refer to it meanwhile
    row = (await session.scalars(wanted)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such subscriber")
    return row


async def list_all(
    session: AsyncSession,
    venue_id: UUID | None,
    *,
    limit: int,
    offset: int,
    after: tuple[datetime, UUID] | None,
) -> Page:
    """Return the subscribers of a venue, or of the hub for None, the oldest first."""
    row = EventSubscriber
    mine = row.venue_id == venue_id
    total = await session.scalar(select(func.count()).where(mine)) or 0
    statement = select(row).where(mine).order_by(row.created_at, row.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(tuple_(row.created_at, row.id) > tuple_(*after))
    else:
        statement = statement.offset(offset)
    rows = (await session.scalars(statement)).all()
    return _page(rows, total, limit)


def _page(rows: Sequence[Any], total: int, limit: int) -> Page:
    more = len(rows) > limit
    key = (rows[limit - 1].created_at.isoformat(), str(rows[limit - 1].id)) if more else None
    return Page(rows[:limit], total, key)


async def change(
    context: Context, actor: Actor, venue_id: UUID | None, subscriber_id: UUID, wishes: Mapping[str, Any]
) -> EventSubscriber:
    """Change what a subscriber wants: `wishes` are fields of Wishes, those that are to change.

    One made active again begins anew, whatever it was disabled for. Raises as `create`, and NotFoundError.
    """
    if "url" in wishes:
        check_url(context, wishes["url"])
    async with context.sessions.begin() as session:
        row = await find(session, venue_id, subscriber_id, lock=True)
        before, was, old_url = _picture(row), row.active, row.url
        for name, value in wishes.items():
            setattr(row, name, list(value) if name == "events" else value)
        if row.active and not was:
            row.disabled_at = row.disabled_reason = None
        if (row.active and not was) or row.url != old_url:
            row.failures, row.failing_since, row.held_until = 0, None, None
        if was and not row.active:
            await end_pending(session, row.id, STOPPED)
        row.updated_at = func.now()
        await session.flush()
        details = {"url_changed": row.url != old_url}
        _record(session, actor, row, "changed", details=details, before=before, after=_picture(row))
        await session.refresh(row)
    return row


async def delete(context: Context, actor: Actor, venue_id: UUID | None, subscriber_id: UUID) -> None:
    """Delete a subscriber, and what is known of its deliveries; raises NotFoundError."""
    async with context.sessions.begin() as session:
        row = await find(session, venue_id, subscriber_id, lock=True)
        _record(session, actor, row, "deleted", before=_picture(row))
        await session.delete(row)


async def disable(session: AsyncSession, subscriber_id: UUID, reason: str) -> bool:
    """Stop telling a subscriber, and say so; returns whether it was active until now."""
    row = EventSubscriber
    statement = (
        update(row)
        .where(row.id == subscriber_id, row.active)
        .values(active=False, disabled_at=func.now(), disabled_reason=reason, updated_at=func.now())
        .returning(row)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    found = (await session.scalars(statement)).one_or_none()
    if found is None:
        return False
    await end_pending(session, subscriber_id, STOPPED)
    _record(session, Actor("hub"), found, "disabled", details={"reason": reason})
    return True


async def end_pending(session: AsyncSession, subscriber_id: UUID, why: str) -> None:
    """End what is on its way to a subscriber as failed."""
    row = EventDelivery
    await session.execute(
        update(row)
        .where(row.subscriber_id == subscriber_id, row.status == DeliveryStatus.PENDING)
        .values(status=DeliveryStatus.FAILED, next_attempt_at=None, error=func.coalesce(row.error, why))
        .execution_options(synchronize_session=False)
    )


# --- secrets


def new_secret() -> str:
    """Return a secret to sign with, as receivers' libraries take it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


async def rotate_secret(
    context: Context, actor: Actor, venue_id: UUID | None, subscriber_id: UUID, overlap: timedelta
) -> tuple[EventSubscriber, str]:
    """Give a subscriber a new secret, which is never told again; the old one signs as well for `overlap`.

    Of several rotations in that time only the last one's old secret does. Raises NotFoundError.
    """
    secret = new_secret()
    async with context.sessions.begin() as session:
        row = await find(session, venue_id, subscriber_id, lock=True)
        old = await context.vault.open(row.encrypted_secret, place(row, "encrypted_secret"))
        row.encrypted_secret = await context.vault.seal(secret, place(row, "encrypted_secret"))
        row.encrypted_previous_secret = row.previous_secret_expires_at = None
        if overlap > timedelta(0):
            row.previous_secret_expires_at = datetime.now(UTC) + overlap
            row.encrypted_previous_secret = await context.vault.seal(
                old.reveal(), place(row, "encrypted_previous_secret")
            )
        row.updated_at = func.now()
        details = {"overlap_seconds": int(overlap.total_seconds())}
        _record(session, actor, row, "secret_rotated", details=details)
        await session.flush()
        await session.refresh(row)
    return row, secret


async def forget_previous_secrets(session: AsyncSession) -> int:
    """Delete secrets whose overlap is over; returns how many."""
    row = EventSubscriber
    statement = (
        update(row)
        .where(row.previous_secret_expires_at <= func.now())
        .values(encrypted_previous_secret=None, previous_secret_expires_at=None)
        .returning(row.id)
        .execution_options(synchronize_session=False)
    )
    return len((await session.scalars(statement)).all())


# --- deliveries


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivery, and the event it is of."""

    row: EventDelivery
    event_id: str
    event: str

    @property
    def created_at(self) -> datetime:
        return self.row.created_at

    @property
    def id(self) -> UUID:
        return self.row.id


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which deliveries to list: None takes all."""

    status: DeliveryStatus | None = None
    event: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        wanted: list[ColumnElement[bool]] = []
        if self.status is not None:
            wanted.append(EventDelivery.status == self.status)
        if self.event is not None:
            wanted.append(OutboxMessage.topic == self.event)
        return wanted


async def deliveries(
    session: AsyncSession,
    subscriber: EventSubscriber,
    wanted: Wanted,
    *,
    limit: int,
    offset: int,
    before: tuple[datetime, UUID] | None,
) -> Page:
    """Return deliveries to a subscriber, newest first, as `Delivered`."""
    row, told = EventDelivery, OutboxMessage
    statement = (
        select(row, told.event_id, told.topic)
        .join(told, told.id == row.outbox_id)
        .where(row.subscriber_id == subscriber.id, *wanted.conditions())
    )
    total = await session.scalar(select(func.count()).select_from(statement.subquery())) or 0
    statement = statement.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(tuple_(row.created_at, row.id) < tuple_(*before))
    else:
        statement = statement.offset(offset)
    found = [_delivered(*each) for each in await session.execute(statement)]
    return _page(found, total, limit)


async def delivery(session: AsyncSession, subscriber: EventSubscriber, delivery_id: UUID) -> Delivered:
    """Return one delivery to a subscriber; raises NotFoundError."""
    row, told = EventDelivery, OutboxMessage
    found = await session.execute(
        select(row, told.event_id, told.topic)
        .join(told, told.id == row.outbox_id)
        .where(row.subscriber_id == subscriber.id, row.id == delivery_id)
        .execution_options(populate_existing=True)
    )
    one = found.one_or_none()
    if one is None:
        raise NotFoundError("there is no such delivery")
    return _delivered(*one)


def _delivered(row: EventDelivery, event_id: UUID, topic: str) -> Delivered:
    return Delivered(row, outbox.public_id(event_id), topic)


async def ping(context: Context, actor: Actor, venue_id: UUID | None, subscriber_id: UUID) -> Delivered:
    """Send a subscriber an event that tells of nothing.

    Raises NotFoundError, and ConflictError when it is inactive.
    """
    async with context.sessions.begin() as session:
        if venue_id is not None:
            await venues.check_open(session, venue_id)
        subscriber = await _active(session, venue_id, subscriber_id)
        message = OutboxMessage(
            venue_id=venue_id,
            topic=outbox.PING,
            payload={
                "venue_id": None if venue_id is None else str(venue_id),
                "subscriber_id": str(subscriber.id),
            },
            published_at=func.now(),
        )
        session.add(message)
        await session.flush()
        sending = EventDelivery(
            subscriber_id=subscriber.id,
            outbox_id=message.id,
            venue_id=venue_id,
            next_attempt_at=func.now(),
            give_up_at=func.now() + outbox.KEPT_TRYING,
        )
        session.add(sending)
        await session.flush()
        _record(session, actor, subscriber, "pinged", details={"delivery": str(sending.id)})
        return await delivery(session, subscriber, sending.id)


async def redeliver(
    context: Context, actor: Actor, venue_id: UUID | None, subscriber_id: UUID, delivery_id: UUID
) -> Delivered:
    """Send an event once more, whatever became of it; one that is on its way is sent now.

    Raises NotFoundError, and ConflictError when the subscriber is inactive.
    """
    async with context.sessions.begin() as session:
        subscriber = await _active(session, venue_id, subscriber_id)
        found = await delivery(session, subscriber, delivery_id)
        await session.execute(
            update(EventDelivery)
            .where(EventDelivery.id == found.row.id)
            .values(_AGAIN)
            .execution_options(synchronize_session=False)
        )
        _record(session, actor, subscriber, "redelivered", details={"delivery": str(delivery_id)})
        return await delivery(session, subscriber, delivery_id)


async def redeliver_since(
    context: Context,
    actor: Actor,
    venue_id: UUID | None,
    subscriber_id: UUID,
    *,
    since: datetime,
    until: datetime | None = None,
) -> int:
    """Send a subscriber what it wants of a time and didn't take: what failed, and what it was never sent.

    Returns how many events, at most MOST_REDELIVERED, the oldest first; asking again goes on with the rest.
    Raises NotFoundError, and ConflictError when the subscriber is inactive.
    """
    async with context.sessions.begin() as session:
        subscriber = await _active(session, venue_id, subscriber_id)
        told, sent = OutboxMessage, EventDelivery
        wanted: list[ColumnElement[bool]] = [
            told.published_at.is_not(None),
            told.created_at >= since,
            told.topic.in_(subscriber.events or list(outbox.EVENTS)),
            or_(sent.id.is_(None), sent.status == DeliveryStatus.FAILED),
        ]
        if venue_id is not None:
            wanted.append(told.venue_id == venue_id)
        if until is not None:
            wanted.append(told.created_at < until)
        missed = (
            select(
                literal(subscriber.id, EventDelivery.subscriber_id.type),
                told.id,
                told.venue_id,
                func.now(),
                func.now() + literal(outbox.KEPT_TRYING),
            )
            .outerjoin(sent, (sent.outbox_id == told.id) & (sent.subscriber_id == subscriber.id))
            .where(*wanted)
            .order_by(told.id)
            .limit(MOST_REDELIVERED)
        )
        statement = insert(EventDelivery).from_select(
            ["subscriber_id", "outbox_id", "venue_id", "next_attempt_at", "give_up_at"], missed
        )
        again = statement.on_conflict_do_update(
            index_elements=["subscriber_id", "outbox_id"],
            set_=_AGAIN,
            where=EventDelivery.status == DeliveryStatus.FAILED,
        ).returning(EventDelivery.id)
        count = len((await session.scalars(again)).all())
        details = {"since": since, "until": until, "events": count}
        _record(session, actor, subscriber, "redelivered", details=details)
    return count


async def _active(session: AsyncSession, venue_id: UUID | None, subscriber_id: UUID) -> EventSubscriber:
    subscriber = await find(session, venue_id, subscriber_id, lock=True)
    if not subscriber.active:
        raise ConflictError("this subscriber isn't active: make it active first")
    subscriber.held_until = None  # whoever asks has mended it, or wants to see whether it works
    return subscriber


# --- the audit log


def _picture(row: EventSubscriber) -> dict[str, Any]:
    """Return what the log may show. An address may hold a secret after its origin."""
    return {
        "origin": origin_of(row.url),
        "events": list(row.events),
        "description": row.description,
        "active": row.active,
    }


def _record(
    session: AsyncSession,
    actor: Actor,
    row: EventSubscriber,
    action: str,
    *,
    details: Mapping[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    audit.record(
        session,
        actor,
        f"subscriber.{action}",
        venue_id=row.venue_id,
        target=str(row.id),
        details=details,
        before=before,
        after=after,
    )
