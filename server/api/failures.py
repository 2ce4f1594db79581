"""Failed records over the API: which there are, and another try for one of them."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import QueryParameter
from msgspec import Struct

from server.api import schemas
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Offset,
    ProviderName,
    RetryLink,
    VenueId,
    page_meta,
    read_cursor,
    retry_link,
)
from server.api.syncs import SYNC, TAGS
from server.db.models import Direction
from server.services import failures

FAILURES = f"{SYNC}/failures"

EntityFilter = Annotated[
    str | None,
    QueryParameter(
        name="entity", max_length=100, description="Only records of this entity, such as `event`."
    ),
]
CodeFilter = Annotated[
    str | None,
    QueryParameter(name="code", max_length=100, description="Only failures with this code."),
]


class FailureRow(Struct, frozen=True):
    """A record that can't be synced for now. `record_id` is ours on a push and theirs on a pull.

    Syncs try one that is `retryable` again by themselves, up to ten times; `retry` does so now.
    """

    entity: str
    resource: str
    direction: str
    record_id: str
    code: str
    message: str
    field: str | None
    retryable: bool
    attempts: int
    sync_id: UUID | None
    first_failed_at: datetime
    last_failed_at: datetime
    retry: RetryLink


class FailuresAnswer(Struct, frozen=True):
    data: list[FailureRow]
    meta: schemas.PageMeta
    success: bool = True


_KEY = {
    "entity": "event",
    "resource": "item",
    "direction": "push",
    "record_id": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
}
_ROW: dict[str, Any] = {
    **_KEY,
    "code": "SYNC_FAILED",
    "message": "name is too long",
    "field": "name",
    "retryable": False,
    "attempts": 3,
    "sync_id": "8d2c2c5a-0f4d-4a0b-8f0b-3d1f6f1f4b0e",
    "first_failed_at": "2026-01-14T11:00:02Z",
    "last_failed_at": "2026-01-15T11:00:02Z",
    "retry": msgspec.to_builtins(retry_link("juniper", UUID("11111111-1111-4111-8111-111111111111"), **_KEY)),
}


@get(
    FAILURES,
    operation_id="listFailures",
    summary="Records that can't be synced for now",
    description="Those that failed last come first. A record is taken off the list when it goes through, or "
    "when it is gone.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            FailuresAnswer,
            "The failed records.",
            Example(
                summary="one record",
                value={
                    "success": True,
                    "data": [_ROW],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def list_failures(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    entity: EntityFilter = None,
    code: CodeFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> FailuresAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    after = read_cursor(cursor, [schemas.Moment, str, str, Direction, str])
    async with context.sessions() as session:
        page = await failures.listing(
            session,
            venue_id,
            provider,
            entity=entity,
            code=code,
            limit=limit,
            offset=offset,
            after=after,
        )
    return FailuresAnswer(
        [_row(each, venue_id, provider) for each in page.rows], page_meta(page, limit, offset)
    )


def _row(failed: failures.Failed, venue_id: UUID, provider: str) -> FailureRow:
    key = failed.key
    named = {
        "entity": key.entity,
        "resource": key.resource,
        "direction": key.direction.value,
        "record_id": key.record_id,
    }
    return FailureRow(
        **named,
        code=failed.code,
        message=failed.message,
        field=failed.field,
        retryable=failed.retryable,
        attempts=failed.attempts,
        sync_id=failed.run_id,
        first_failed_at=failed.first_failed_at,
        last_failed_at=failed.last_failed_at,
        retry=retry_link(provider, venue_id, **named),
    )


@post(
    f"{FAILURES}/retry",
    operation_id="retryRecord",
    summary="Try one failed record again",
    description="Queued before scheduled work. The record leaves the list of failures when it goes through, "
    "and stays there with its new error otherwise.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "Queued.",
            Example(
                summary="queued", value={"success": True, "message": "The record is queued for another try"}
            ),
        ),
        **error_answers(
            "QUEUE_FULL",
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "INTEGRATION_NOT_CONNECTED",
            "NOT_FOUND",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def retry_record(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.RecordRetryRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.MessageAnswer]:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    key = failures.RecordKey(data.entity, data.resource, data.direction, data.record_id)

    async def work() -> Response[schemas.MessageAnswer]:
        await failures.retry(context, actor, venue_id=data.venue_id, provider=provider, key=key)
        return Response(schemas.MessageAnswer("The record is queued for another try"))

    return await answer_once(request, context, idempotency_key, work)


HANDLERS = (list_failures, retry_record)
