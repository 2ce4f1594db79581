"""Operations that ended badly over the API: listed with their history, and many of them queued again."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import QueryParameter
from msgspec import Meta, Struct

from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, MANAGERS, READERS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Moment,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    body_of,
    page_meta,
    read_cursor,
)
from server.api.syncs import SYNC
from server.api.syncs import TAGS as SYNC_TAGS
from server.db.models import Operation, OperationStatus, OperationType, Priority
from server.services import dead_letters
from server.services.dead_letters import MOST_RETRIED, Filter

ALL_DEAD_LETTERS = f"{PATH}/admin/dead-letters"
DEAD_LETTERS = f"{SYNC}/dead-letters"

EndedBadly = Literal["failed", "dead_letter"]
VenueFilter = Annotated[UUID | None, QueryParameter(name="venueId", description="Only this venue's.")]
ProviderFilter = Annotated[
    str | None, QueryParameter(name="provider", max_length=50, description="Only this provider's.")
]
StatusFilter = Annotated[
    EndedBadly | None,
    QueryParameter(
        name="status", description="Only those that can't be helped, or only those out of attempts."
    ),
]
CodeFilter = Annotated[
    str | None, QueryParameter(name="code", max_length=100, description="Only those with this error.")
]
EntityFilter = Annotated[
    str | None,
    QueryParameter(name="entity", max_length=100, description="Only those about this, such as `full`."),
]
Since = Annotated[
    Moment | None, QueryParameter(name="since", description="Only those that ended then or later.")
]
Until = Annotated[Moment | None, QueryParameter(name="until", description="Only those that ended before.")]

_Word = Annotated[str, Meta(max_length=100)]
_Code = Annotated[_Word | None, Meta(description="Only those with this error.")]
_Entity = Annotated[_Word | None, Meta(description="Only those about this, such as `full`.")]
_Status = Annotated[
    EndedBadly | None,
    Meta(description="Only those that can't be helped, or only those out of attempts."),
]
_Since = Annotated[Moment | None, Meta(description="Only those that ended then or later.")]
_Until = Annotated[Moment | None, Meta(description="Only those that ended before.")]
_DryRun = Annotated[bool, Meta(description="Only count: nothing is queued.")]
_Most = Annotated[
    int, Meta(ge=1, le=MOST_RETRIED, description="At most so many; `left` says how many are left.")
]


class DeadLetterRetryBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which of an integration's operations that ended badly to queue again: all that fit."""

    venue_id: UUID
    code: _Code = None
    entity: _Entity = None
    status: _Status = None
    since: _Since = None
    until: _Until = None
    dry_run: _DryRun = False
    limit: _Most = 1000


class AllDeadLettersRetryBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which operations that ended badly to queue again, of all venues: all that fit."""

    venue_id: Annotated[UUID | None, Meta(description="Only this venue's.")] = None
    integration_type: Annotated[
        Annotated[str, Meta(max_length=50)] | None, Meta(description="Only this provider's.")
    ] = None
    code: _Code = None
    entity: _Entity = None
    status: _Status = None
    since: _Since = None
    until: _Until = None
    dry_run: _DryRun = False
    limit: _Most = 1000


_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
DeadLetterRetryRequest = Annotated[
    DeadLetterRetryBody,
    body_of(of_an_outage={"venueId": _VENUE, "code": "SYNC_FAILED", "since": "2026-01-15T09:00:00Z"}),
]
AllDeadLettersRetryRequest = Annotated[
    AllDeadLettersRetryBody,
    body_of(
        how_many={"integrationType": "juniper", "code": "SYNC_FAILED", "dryRun": True},
        of_a_day={"since": "2026-01-15T00:00:00Z", "until": "2026-01-16T00:00:00Z", "limit": 5000},
    ),
]


class EndedAttempt(Struct, frozen=True):
    """How one attempt of an operation ended."""

    at: Annotated[datetime, Meta(description="When it ended.")]
    attempt: Annotated[int, Meta(description="Which one it was, of those since it was last queued.")]
    code: str
    message: Annotated[str, Meta(description="What was wrong, as a sentence.")]


class DeadLetter(Struct, frozen=True):
    """An operation that ended badly."""

    id: Annotated[UUID, Meta(description="The operation's id, which is a `queueItemId` elsewhere.")]
    venue_id: UUID
    integration_type: str
    operation_type: Annotated[OperationType, Meta(description="What was to be done.")]
    entity_type: Annotated[str, Meta(description="What it was about, such as `full`, or an entity.")]
    entity_id: Annotated[str | None, Meta(description="The one record it was about; null for several.")]
    status: OperationStatus
    priority: Annotated[Priority, Meta(description="The lane it was queued in.")]
    sync_id: Annotated[UUID | None, Meta(description="The sync it was a part of; null for none.")]
    error_code: Annotated[str | None, Meta(description="Why it ended, for programs.")]
    error: Annotated[str | None, Meta(description="Why it ended, as a sentence.")]
    attempts: int
    attempts_log: Annotated[
        list[EndedAttempt], Meta(description="How its latest attempts ended, the newest last.")
    ]
    revivals: Annotated[int, Meta(description="How often it was queued again after it had ended badly.")]
    payload: Annotated[dict[str, Any], Meta(description="What it was queued with.")]
    queued_at: Annotated[datetime, Meta(description="When it was queued first.")]
    ended_at: Annotated[datetime | None, Meta(description="When it ended; null where nobody wrote it down.")]


class DeadLettersAnswer(Struct, frozen=True):
    data: list[DeadLetter]
    meta: PageMeta
    success: Literal[True] = True


class DeadLettersRetried(Struct, frozen=True):
    """What became of a request to queue operations again. Of a dry run: what would."""

    matched: Annotated[int, Meta(description="How many fit.")]
    queued: Annotated[int, Meta(description="How many were queued, in the low lane.")]
    left: Annotated[int, Meta(description="How many are left for another request like this one.")]
    held_back: Annotated[
        int,
        Meta(
            description="How many it is of no use to queue: their integration isn't connected, or they "
            "killed their workers (`WORKER_LOST`), and only naming that code queues them."
        ),
    ]
    dry_run: Annotated[bool, Meta(description="Whether nothing was queued.")]


class DeadLettersRetriedAnswer(Struct, frozen=True):
    data: DeadLettersRetried
    success: Literal[True] = True


_EXAMPLE: dict[str, Any] = {
    "id": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1",
    "venue_id": _VENUE,
    "integration_type": "juniper",
    "operation_type": "sync",
    "entity_type": "full",
    "entity_id": None,
    "status": "dead_letter",
    "priority": "NORMAL",
    "sync_id": "8d2c2c5a-0f4d-4a0b-8f0b-3d1f6f1f4b0e",
    "error_code": "SYNC_FAILED",
    "error": "the provider answered 503",
    "attempts": 10,
    "attempts_log": [
        {
            "at": "2026-01-15T11:04:00Z",
            "attempt": 10,
            "code": "SYNC_FAILED",
            "message": "the provider answered 503",
        }
    ],
    "revivals": 0,
    "payload": {"syncType": "full", "trigger": "scheduled_sync"},
    "queued_at": "2026-01-15T09:00:00Z",
    "ended_at": "2026-01-15T11:04:00Z",
}
_LISTED = good(
    DeadLettersAnswer,
    "The operations.",
    Example(
        summary="one operation",
        value={
            "success": True,
            "data": [_EXAMPLE],
            "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
        },
    ),
)
_RETRIED = good(
    DeadLettersRetriedAnswer,
    "What was queued.",
    Example(
        summary="some are left",
        value={
            "success": True,
            "data": {"matched": 1510, "queued": 1000, "left": 500, "held_back": 10, "dry_run": False},
        },
    ),
)


@get(
    DEAD_LETTERS,
    operation_id="listDeadLetters",
    summary="Operations that ended badly",
    description="Those that ended last come first, each with why, how its attempts ended and what it was "
    "queued with.",
    tags=SYNC_TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: _LISTED,
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER"),
    },
)
async def list_dead_letters(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    status: StatusFilter = None,
    code: CodeFilter = None,
    entity: EntityFilter = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> DeadLettersAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    wanted = Filter(venue_id, provider, _status(status), code, entity, since, until)
    return await _listed(context, wanted, limit, offset, cursor)


@get(
    ALL_DEAD_LETTERS,
    operation_id="listAllDeadLetters",
    summary="Operations of all venues that ended badly",
    description="Those that ended last come first, each with why, how its attempts ended and what it was "
    "queued with.",
    tags=["Administration"],
    opt=ADMINS,
    security=TOKEN,
    responses={200: _LISTED, **error_answers("VALIDATION_ERROR")},
)
async def list_all_dead_letters(
    context: Shared,
    venue_id: VenueFilter = None,
    provider: ProviderFilter = None,
    status: StatusFilter = None,
    code: CodeFilter = None,
    entity: EntityFilter = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> DeadLettersAnswer:
    wanted = Filter(venue_id, provider, _status(status), code, entity, since, until)
    return await _listed(context, wanted, limit, offset, cursor)


def _status(status: EndedBadly | None) -> OperationStatus | None:
    return None if status is None else OperationStatus(status)


async def _listed(
    context: Shared, wanted: Filter, limit: int, offset: int, cursor: str | None
) -> DeadLettersAnswer:
    after = read_cursor(cursor, [Moment, UUID])
    async with context.sessions() as session:
        page = await dead_letters.listing(session, wanted, limit=limit, offset=offset, after=after)
    return DeadLettersAnswer([_told(row) for row in page.rows], page_meta(page, limit, offset))


def _told(row: Operation) -> DeadLetter:
    return DeadLetter(
        id=row.id,
        venue_id=row.venue_id,
        integration_type=row.integration_type,
        operation_type=row.operation_type,
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        status=row.status,
        priority=row.priority,
        sync_id=row.run_id,
        error_code=row.error_code,
        error=row.last_error,
        attempts=row.attempts,
        attempts_log=[
            EndedAttempt(datetime.fromisoformat(each["at"]), each["attempt"], each["code"], each["message"])
            for each in row.attempts_log
        ],
        revivals=row.revivals,
        payload=row.payload,
        queued_at=row.queued_at,
        ended_at=row.completed_at,
    )


_RETRY = (
    "Queues all that fit again, in the low lane, behind what is fresh; each goes on from what it had saved. "
    "With `dryRun` it only counts. Asking again goes on with what is left: what is queued fits no more."
)


@post(
    f"{DEAD_LETTERS}/retry",
    operation_id="retryDeadLetters",
    summary="Queue operations that ended badly again",
    description=_RETRY,
    tags=SYNC_TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: _RETRIED,
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def retry_dead_letters(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: DeadLetterRetryRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[DeadLettersRetriedAnswer]:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    wanted = Filter(
        data.venue_id, provider, _status(data.status), data.code, data.entity, data.since, data.until
    )

    async def work() -> Response[DeadLettersRetriedAnswer]:
        return await _retried(context, actor, wanted, data.dry_run, data.limit)

    return await answer_once(request, context, idempotency_key, work)


@post(
    f"{ALL_DEAD_LETTERS}/retry",
    operation_id="retryAllDeadLetters",
    summary="Queue operations of all venues that ended badly again",
    description=_RETRY,
    tags=["Administration"],
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: _RETRIED,
        **error_answers(
            "VALIDATION_ERROR",
            "INVALID_PROVIDER",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def retry_all_dead_letters(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    data: AllDeadLettersRetryRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[DeadLettersRetriedAnswer]:
    if data.integration_type is not None:
        context.catalog.connector(data.integration_type)
    wanted = Filter(
        data.venue_id,
        data.integration_type,
        _status(data.status),
        data.code,
        data.entity,
        data.since,
        data.until,
    )

    async def work() -> Response[DeadLettersRetriedAnswer]:
        return await _retried(context, actor, wanted, data.dry_run, data.limit)

    return await answer_once(request, context, idempotency_key, work)


async def _retried(
    context: Shared, actor: Acting, wanted: Filter, dry_run: bool, limit: int
) -> Response[DeadLettersRetriedAnswer]:
    came = await dead_letters.retry(context, actor, wanted, dry_run=dry_run, limit=limit)
    told = DeadLettersRetried(came.matched, came.queued, came.left, came.held_back, dry_run)
    return Response(DeadLettersRetriedAnswer(told))


HANDLERS = (list_dead_letters, retry_dead_letters, list_all_dead_letters, retry_all_dead_letters)
