"""Who is told of events, and what became of telling them."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Response, delete, get, patch, post
from litestar.openapi.spec import Example
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMIN, MANAGERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    Limit,
    MessageAnswer,
    Moment,
    Offset,
    PageMeta,
    body_of,
    page_meta,
    read_cursor,
)
from server.db.models import DeliveryStatus, EventSubscriber
from server.errors import Detail, VenueRequiredError
from server.services import subscribers
from server.services.subscribers import Delivered, Wanted, Wishes

TAGS = ["Events"]
SUBSCRIBERS = f"{PATH}/subscribers"
ONE = f"{SUBSCRIBERS}/{{subscriber_id:uuid}}"
DELIVERIES = f"{ONE}/deliveries"
DELIVERY = f"{DELIVERIES}/{{delivery_id:uuid}}"
LONGEST_URL = 2000
LONGEST_OVERLAP = 7 * 24  # hours

EventName = Literal[
    "integration.connected",
    "integration.disconnected",
    "sync.completed",
    "sync.failed",
    "conflict.detected",
    "mapping.healed",
    "health.changed",
]
Whose = Annotated[
    UUID | None,
    QueryParameter(
        name="venueId",
        description="The venue's id. Without it, the hub's own subscribers, which are told of every venue; "
        "they are an `admin`'s.",
    ),
]
SubscriberId = Annotated[UUID, PathParameter(description="The subscriber's id.")]
DeliveryId = Annotated[
    UUID, PathParameter(description="The delivery's id, as the list of deliveries has it.")
]
StatusFilter = Annotated[
    DeliveryStatus | None, QueryParameter(name="status", description="Only deliveries with this status.")
]
EventFilter = Annotated[
    EventName | Literal["ping"] | None,
    QueryParameter(name="event", description="Only deliveries of this event."),
]


# --- bodies

_Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=LONGEST_URL,
        description="Where events are sent: https, and on the public internet. Redirects aren't followed.",
    ),
]
_Events = Annotated[
    list[EventName],
    Meta(max_length=20, description="The events to be told of; none are all of them, also those to come."),
]
_Whose = Annotated[
    UUID | None,
    Meta(description="The venue. Without it, it is the hub's own and told of every venue: an `admin`'s."),
]


class SubscriberBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Who is to be told of what."""

    url: _Url
    venue_id: _Whose = None
    events: _Events = []
    description: Annotated[str, Meta(max_length=255)] | None = None
    active: Annotated[bool, Meta(description="Whether anything is sent.")] = True


class SubscriberChangeBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What is to change; what is left out, or null, stays."""

    venue_id: Annotated[UUID | None, Meta(description="Whose it is. It can't be given to another.")] = None
    url: _Url | None = None
    events: _Events | None = None
    description: Annotated[str, Meta(max_length=255, description="Empty: none.")] | None = None
    active: Annotated[
        bool | None, Meta(description="`false`: nothing is sent, and what is on its way ends as failed.")
    ] = None


class SubscriberOwnerBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Whose the subscriber is."""

    venue_id: _Whose = None


class RotateSecretBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """How long the old secret signs beside the new one."""

    venue_id: _Whose = None
    overlap_hours: Annotated[
        int, Meta(ge=0, le=LONGEST_OVERLAP, description="0: the old one is over at once.")
    ] = 24


class RedeliverBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The time whose events are sent again, by when they happened."""

    since: Annotated[Moment, Meta(description="Only events that happened then or later.")]
    venue_id: _Whose = None
    until: Annotated[Moment | None, Meta(description="Only events that happened before then.")] = None


class Subscriber(Struct, frozen=True):
    """An address that is told of events. Its secret isn't shown."""

    id: UUID
    venue_id: Annotated[UUID | None, Meta(description="Null: it is told of every venue.")]
    url: str
    events: Annotated[list[str], Meta(description="Empty: all of them.")]
    description: str | None
    active: bool
    disabled_at: Annotated[datetime | None, Meta(description="When the hub itself stopped telling it.")]
    disabled_reason: str | None
    failures: Annotated[int, Meta(description="Attempts that failed since the last one that didn't.")]
    failing_since: datetime | None
    previous_secret_expires_at: Annotated[
        datetime | None, Meta(description="Until when its secret before the last rotation signs as well.")
    ]
    created_at: datetime
    updated_at: Annotated[datetime, Meta(description="When somebody changed it, or the hub disabled it.")]


class SubscriberAnswer(Struct, frozen=True):
    data: Subscriber
    success: Literal[True] = True


class SubscribersAnswer(Struct, frozen=True):
    data: list[Subscriber]
    meta: PageMeta
    success: Literal[True] = True


class SubscriberSecret(Struct, frozen=True):
    """A subscriber and its new secret, which is never shown again."""

    subscriber: Subscriber
    secret: Annotated[str, Meta(description="What its deliveries are signed with.")]


class SubscriberSecretAnswer(Struct, frozen=True):
    data: SubscriberSecret
    success: Literal[True] = True


class EventDelivery(Struct, frozen=True):
    """An event on its way to a subscriber, and what the last attempt came to."""

    id: UUID
    event_id: Annotated[str, Meta(description="The event's, which is the `webhook-id` of every attempt.")]
    event: str
    venue_id: UUID | None
    status: Annotated[
        DeliveryStatus,
        Meta(description="`pending`: it is sent until it is taken; `failed`: it was given up, or ended."),
    ]
    attempts: Annotated[int, Meta(description="How often it was sent, or tried to be.")]
    next_attempt_at: Annotated[datetime | None, Meta(description="Null when there won't be another.")]
    last_attempt_at: datetime | None
    delivered_at: datetime | None
    duration_ms: int | None
    answer_status: Annotated[int | None, Meta(description="The HTTP status of the last answer, if one came.")]
    answer_body: Annotated[str | None, Meta(description="How the last answer began: at most 1 KiB.")]
    error: Annotated[str | None, Meta(description="Why the last attempt, or all of it, failed.")]
    created_at: datetime


class EventDeliveryAnswer(Struct, frozen=True):
    data: EventDelivery
    success: Literal[True] = True


class EventDeliveriesAnswer(Struct, frozen=True):
    data: list[EventDelivery]
    meta: PageMeta
    success: Literal[True] = True


class Redelivered(Struct, frozen=True):
    events: Annotated[int, Meta(description="How many are on their way now.")]
    more: Annotated[bool, Meta(description="Whether there may be more: ask again for the rest.")]


class RedeliveredAnswer(Struct, frozen=True):
    data: Redelivered
    success: Literal[True] = True


_ID = "c1f4e0c2-6a27-4f6c-9a53-2a5b2f0d7e11"
_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_SUBSCRIBER: dict[str, Any] = {
    "id": _ID,
    "venue_id": _VENUE,
    "url": "https://box-office.example.org/hub-events",
    "events": ["sync.completed", "sync.failed"],
    "description": "Box office",
    "active": True,
    "disabled_at": None,
    "disabled_reason": None,
    "failures": 0,
    "failing_since": None,
    "previous_secret_expires_at": None,
    "created_at": "2026-01-15T11:00:00Z",
    "updated_at": "2026-01-15T11:00:00Z",
}
_DELIVERY: dict[str, Any] = {
    "id": "f0a5c3a6-64c8-43d7-8ad4-0b7c9a1d2e33",
    "event_id": "evt_2f1c7a9e0b6d4c5f8a3e1d2c3b4a5968",
    "event": "sync.completed",
    "venue_id": _VENUE,
    "status": "pending",
    "attempts": 1,
    "next_attempt_at": "2026-01-15T11:00:06Z",
    "last_attempt_at": "2026-01-15T11:00:00Z",
    "delivered_at": None,
    "duration_ms": 41,
    "answer_status": 503,
    "answer_body": "closed for the night",
    "error": "it was answered with 503",
    "created_at": "2026-01-15T11:00:00Z",
}
_PINGED = {
    **_DELIVERY,
    "event": "ping",
    "attempts": 0,
    "next_attempt_at": "2026-01-15T11:00:00Z",
    **dict.fromkeys(("last_attempt_at", "duration_ms", "answer_status", "answer_body", "error")),
}
_SECRET = {"subscriber": _SUBSCRIBER, "secret": "whsec_…"}
_ERRORS = ("VALIDATION_ERROR", "VENUE_ID_REQUIRED")
_BODY_ERRORS = (*_ERRORS, "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE")


def _example(summary: str, data: Any) -> Example:
    return Example(summary=summary, value={"success": True, "data": data})


def _route(**more: Any) -> dict[str, Any]:
    return {"tags": TAGS, "opt": MANAGERS, "security": TOKEN, **more}


# --- subscribers


@get(
    SUBSCRIBERS,
    **_route(
        operation_id="listSubscribers",
        summary="Who is told of events",
        description="A venue's, or without one the hub's own. Their secrets aren't shown.",
        responses={
            200: good(
                SubscribersAnswer,
                "Subscribers, the oldest first.",
                Example(
                    summary="one",
                    value={
                        "success": True,
                        "data": [_SUBSCRIBER],
                        "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                    },
                ),
            ),
            **error_answers(*_ERRORS),
        },
    ),
)
async def list_subscribers(
    request: CallerRequest,
    context: Shared,
    venue_id: Whose = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> SubscribersAnswer:
    owner = _owner(request, venue_id)
    after = read_cursor(cursor, [datetime, UUID])
    async with context.sessions() as session:
        page = await subscribers.list_all(
            session, owner, limit=limit, offset=offset, after=None if after is None else (after[0], after[1])
        )
    return SubscribersAnswer([_subscriber(row) for row in page.rows], page_meta(page, limit, offset))


@post(
    SUBSCRIBERS,
    **_route(
        operation_id="createSubscriber",
        summary="Tell somebody of events",
        description="Events are sent to the address as Standard Webhooks has it, signed with the secret in "
        "the answer, which is never shown again.",
        status_code=201,
        responses={
            201: good(SubscriberSecretAnswer, "The subscriber, and its secret.", _example("made", _SECRET)),
            **error_answers(*_BODY_ERRORS, "CONFLICT"),
        },
    ),
)
async def create_subscriber(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    data: Annotated[
        SubscriberBody,
        body_of(
            syncs_of_a_venue={
                "venueId": _VENUE,
                "url": "https://box-office.example.org/hub-events",
                "events": ["sync.completed", "sync.failed"],
                "description": "Box office",
            },
            everything_of_every_venue={"url": "https://platform.example.org/hub-events"},
        ),
    ],
) -> Response[SubscriberSecretAnswer]:
    owner = _owner(request, data.venue_id)
    wishes = Wishes(data.url, data.events, data.description or None, data.active)
    row, secret = await subscribers.create(context, actor, owner, wishes)
    return Response(
        SubscriberSecretAnswer(SubscriberSecret(_subscriber(row), secret)),
        status_code=201,
        headers={"Location": _where(ONE, row.id), "Cache-Control": "no-store"},
    )


@get(
    ONE,
    **_route(
        operation_id="getSubscriber",
        summary="A subscriber",
        description="With how many attempts have failed since the last one that didn't.",
        responses={
            200: good(SubscriberAnswer, "The subscriber.", _example("one", _SUBSCRIBER)),
            **error_answers(*_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def get_subscriber(
    request: CallerRequest, context: Shared, subscriber_id: SubscriberId, venue_id: Whose = None
) -> SubscriberAnswer:
    owner = _owner(request, venue_id)
    async with context.sessions() as session:
        return SubscriberAnswer(_subscriber(await subscribers.find(session, owner, subscriber_id)))


@patch(
    ONE,
    **_route(
        operation_id="changeSubscriber",
        summary="Change a subscriber",
        description="One that is made active again begins anew; `redeliver` sends what it missed.",
        responses={
            200: good(SubscriberAnswer, "The subscriber as it is now.", _example("changed", _SUBSCRIBER)),
            **error_answers(*_BODY_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def change_subscriber(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    data: Annotated[
        SubscriberChangeBody,
        body_of(
            fewer_events={"venueId": _VENUE, "events": ["sync.failed"]},
            for_the_time_being={"venueId": _VENUE, "active": False},
        ),
    ],
) -> SubscriberAnswer:
    owner = _owner(request, data.venue_id)
    given = {"url": data.url, "events": data.events, "active": data.active}
    wishes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if data.description is not None:
        wishes["description"] = data.description or None
    return SubscriberAnswer(
        _subscriber(await subscribers.change(context, actor, owner, subscriber_id, wishes))
    )


@delete(
    ONE,
    **_route(
        operation_id="deleteSubscriber",
        summary="Delete a subscriber",
        description="What is known of its deliveries goes as well.",
        status_code=200,
        responses={
            200: good(
                MessageAnswer,
                "It is gone.",
                Example(summary="gone", value={"success": True, "message": "The subscriber is deleted"}),
            ),
            **error_answers(*_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def delete_subscriber(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    venue_id: Whose = None,
) -> MessageAnswer:
    await subscribers.delete(context, actor, _owner(request, venue_id), subscriber_id)
    return MessageAnswer("The subscriber is deleted")


@post(
    f"{ONE}/rotate-secret",
    **_route(
        operation_id="rotateSubscriberSecret",
        summary="Give a subscriber a new secret",
        description="Until the overlap is over, deliveries are signed with both, so that the receiver can "
        "change over at its own time.",
        status_code=200,
        responses={
            200: good(
                SubscriberSecretAnswer, "The subscriber, and its new secret.", _example("new", _SECRET)
            ),
            **error_answers(*_BODY_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def rotate_secret(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    data: Annotated[
        RotateSecretBody,
        body_of(over_a_day={"venueId": _VENUE}, at_once={"venueId": _VENUE, "overlapHours": 0}),
    ],
) -> Response[SubscriberSecretAnswer]:
    row, secret = await subscribers.rotate_secret(
        context,
        actor,
        _owner(request, data.venue_id),
        subscriber_id,
        timedelta(hours=data.overlap_hours),
    )
    return Response(
        SubscriberSecretAnswer(SubscriberSecret(_subscriber(row), secret)),
        headers={"Cache-Control": "no-store"},
    )


@post(
    f"{ONE}/test",
    **_route(
        operation_id="testSubscriber",
        summary="Send a subscriber a ping",
        description="An event `ping` that tells of nothing, sent at once whatever events it wants.",
        status_code=202,
        responses={
            202: good(
                EventDeliveryAnswer,
                "It is on its way; `Location` says where to look what becomes of it.",
                _example("on its way", _PINGED),
            ),
            **error_answers(*_BODY_ERRORS, "NOT_FOUND", "CONFLICT"),
        },
    ),
)
async def test_subscriber(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    data: Annotated[SubscriberOwnerBody, body_of(a_venue_s={"venueId": _VENUE}, the_hub_s_own={})],
) -> Response[EventDeliveryAnswer]:
    owner = _owner(request, data.venue_id)
    return _on_its_way(subscriber_id, await subscribers.ping(context, actor, owner, subscriber_id))


# --- deliveries


@get(
    DELIVERIES,
    **_route(
        operation_id="listEventDeliveries",
        summary="What became of a subscriber's events",
        description="Newest first. What was delivered is forgotten after a while.",
        responses={
            200: good(
                EventDeliveriesAnswer,
                "Deliveries, newest first.",
                Example(
                    summary="one that is tried again",
                    value={
                        "success": True,
                        "data": [_DELIVERY],
                        "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                    },
                ),
            ),
            **error_answers(*_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def list_deliveries(
    request: CallerRequest,
    context: Shared,
    subscriber_id: SubscriberId,
    venue_id: Whose = None,
    status: StatusFilter = None,
    event: EventFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> EventDeliveriesAnswer:
    owner = _owner(request, venue_id)
    before = read_cursor(cursor, [datetime, UUID])
    async with context.sessions() as session:
        page = await subscribers.deliveries(
            session,
            await subscribers.find(session, owner, subscriber_id),
            Wanted(status, event),
            limit=limit,
            offset=offset,
            before=None if before is None else (before[0], before[1]),
        )
    return EventDeliveriesAnswer([_delivery(each) for each in page.rows], page_meta(page, limit, offset))


@get(
    DELIVERY,
    **_route(
        operation_id="getEventDelivery",
        summary="What became of one event",
        description="With what the last attempt came to, and when the next one is.",
        responses={
            200: good(EventDeliveryAnswer, "The delivery.", _example("tried again", _DELIVERY)),
            **error_answers(*_ERRORS, "NOT_FOUND"),
        },
    ),
)
async def get_delivery(
    request: CallerRequest,
    context: Shared,
    subscriber_id: SubscriberId,
    delivery_id: DeliveryId,
    venue_id: Whose = None,
) -> EventDeliveryAnswer:
    owner = _owner(request, venue_id)
    async with context.sessions() as session:
        subscriber = await subscribers.find(session, owner, subscriber_id)
        return EventDeliveryAnswer(_delivery(await subscribers.delivery(session, subscriber, delivery_id)))


@post(
    f"{DELIVERY}/redeliver",
    **_route(
        operation_id="redeliverEvent",
        summary="Send an event once more",
        description="Whatever became of it; with the same `webhook-id`.",
        status_code=202,
        responses={
            202: good(
                EventDeliveryAnswer,
                "It is on its way; `Location` says where to look.",
                _example("again", _DELIVERY),
            ),
            **error_answers(*_BODY_ERRORS, "NOT_FOUND", "CONFLICT"),
        },
    ),
)
async def redeliver_event(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    delivery_id: DeliveryId,
    data: Annotated[SubscriberOwnerBody, body_of(a_venue_s={"venueId": _VENUE}, the_hub_s_own={})],
) -> Response[EventDeliveryAnswer]:
    owner = _owner(request, data.venue_id)
    found = await subscribers.redeliver(context, actor, owner, subscriber_id, delivery_id)
    return _on_its_way(subscriber_id, found)


@post(
    f"{ONE}/redeliver",
    **_route(
        operation_id="redeliverEvents",
        summary="Send what a subscriber missed",
        description="All events of a time that it wants and didn't take: deliveries that failed, and what "
        "happened while it wasn't active or before it was there, as far as events are kept.",
        status_code=202,
        responses={
            202: good(
                RedeliveredAnswer,
                "They are on their way.",
                _example("three", {"events": 3, "more": False}),
            ),
            **error_answers(*_BODY_ERRORS, "NOT_FOUND", "CONFLICT"),
        },
    ),
)
async def redeliver_events(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    subscriber_id: SubscriberId,
    data: Annotated[RedeliverBody, body_of(since_noon={"venueId": _VENUE, "since": "2026-01-15T12:00:00Z"})],
) -> RedeliveredAnswer:
    count = await subscribers.redeliver_since(
        context,
        actor,
        _owner(request, data.venue_id),
        subscriber_id,
        since=data.since,
        until=data.until,
    )
    return RedeliveredAnswer(Redelivered(count, count == subscribers.MOST_REDELIVERED))


# --- what they share


def _owner(request: CallerRequest, venue_id: UUID | None) -> UUID | None:
    """Return whose subscribers are meant; raises ForbiddenError, and VenueRequiredError except for admins."""
    if venue_id is not None:
        request.user.require(venue_id)
    elif request.user.role != ADMIN:
        raise VenueRequiredError("say which venue it is for", [Detail("venueId", "`venueId` is missing")])
    return venue_id


def _subscriber(row: EventSubscriber) -> Subscriber:
    return Subscriber(**{name: getattr(row, name) for name in Subscriber.__struct_fields__})


def _delivery(found: Delivered) -> EventDelivery:
    told: dict[str, Any] = {"event_id": found.event_id, "event": found.event}
    names = [name for name in EventDelivery.__struct_fields__ if name not in told]
    return EventDelivery(**told, **{name: getattr(found.row, name) for name in names})


def _on_its_way(subscriber_id: UUID, found: Delivered) -> Response[EventDeliveryAnswer]:
    where = _where(DELIVERY, subscriber_id).replace("{delivery_id:uuid}", str(found.row.id))
    return Response(EventDeliveryAnswer(_delivery(found)), status_code=202, headers={"Location": where})


def _where(path: str, subscriber_id: UUID) -> str:
    return path.replace("{subscriber_id:uuid}", str(subscriber_id))


HANDLERS = (
    list_subscribers,
    create_subscriber,
    get_subscriber,
    change_subscriber,
    delete_subscriber,
    rotate_secret,
    test_subscriber,
    list_deliveries,
    get_delivery,
    redeliver_event,
    redeliver_events,
)
