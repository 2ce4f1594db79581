"""Start, follow and stop syncs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from server.api import schemas
from server.api.dependencies import Acting, Shared, Stopping
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, Caller, CallerRequest
from server.api.idempotent import answer_once
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Offset,
    ProviderName,
    SyncId,
    VenueId,
    page_meta,
    read_cursor,
)
from server.context import Context
from server.db.models import Operation
from server.errors import NotFoundError, TooManyRequestsError
from server.services import recovery, syncs
from server.services.operations import WAITING

T = TypeVar("T")
TAGS = ["Syncs"]
SYNC = f"{PATH}/sync/{{provider:str}}/sync"
MOST_WATCHED = 20  # streams of one caller in one process: each looks at the database all the time
LONGEST_WATCH = 900.0  # seconds, after which a watcher shows its token again
RECONNECT_MS = 1000  # for a watcher whose stream ended with the process
QUIET_SECONDS = 15  # after which a watcher is told that the connection lives

WithFailures = Annotated[
    bool, QueryParameter(name="failures", description="Whether each sync comes with the records that failed.")
]

_ID = "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1"
_TOTALS = {"success": True, "syncedCount": 150, "failedCount": 5, "duration": 12500}
_STATE = {
    "syncId": _ID,
    "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
    "integration_type": "juniper",
    "sync_type": "full",
    "status": "completed",
    "ended": True,
    "attempts": 1,
    "queued_at": "2026-01-15T11:00:00Z",
    "started_at": "2026-01-15T11:00:00Z",
    "completed_at": "2026-01-15T11:00:03Z",
    "error": None,
    "progress": {
        "mappings": [
            {
                "entity": "event",
                "resource": "item",
                "direction": "push",
                "read": 60,
                "created": 50,
                "updated": 0,
                "unchanged": 8,
                "skipped": 0,
                "failed": 2,
                "conflicts": 0,
                "archived": 0,
                "deleted": 0,
                "api_calls": 12,
                "held": 0,
                "note": "",
                "conflict_fields": {},
                "duration_ms": 2100,
                "done": True,
            }
        ],
        "current": None,
    },
    "overall": {"success": True, "syncedCount": 58, "failedCount": 2, "duration": 2100},
    "failures": [
        {
            "entity": "event",
            "resource": "item",
            "direction": "push",
            "record_id": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
            "code": "SYNC_FAILED",
            "message": "name is too long",
            "retryable": False,
            "field": "name",
            "retry": {
                "method": "POST",
                "href": f"{PATH}/sync/juniper/sync/failures/retry",
                "body": {
                    "venueId": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                    "entity": "event",
                    "resource": "item",
                    "direction": "push",
                    "recordId": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
                },
            },
        }
    ],
}

_UNDER_WAY = {**_STATE, "status": "processing", "ended": False, "completed_at": None, "failures": []}


@post(
    SYNC,
    operation_id="startSync",
    summary="Sync now",
    description="Answers with the result if it is there within `wait` seconds, else 202 and where to look.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.SyncResultAnswer,
            "The sync has ended.",
            Example(
                summary="what it did",
                value={
                    "success": True,
                    "data": {
                        "overall": _TOTALS,
                        "syncId": _ID,
                        "products": {"syncedCount": 100, "failedCount": 2},
                        "customers": {"syncedCount": 50, "failedCount": 3},
                    },
                },
            ),
        ),
        202: good(
            schemas.SyncAcceptedAnswer,
            "The sync goes on; `Location` says where to look.",
            Example(
                summary="goes on", value={"success": True, "data": {"syncId": _ID, "status": "processing"}}
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "INTEGRATION_NOT_CONNECTED",
            "SYNC_IN_PROGRESS",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "QUEUE_FULL",
            "SYNC_FAILED",
        ),
    },
)
async def start_sync(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    stopping: Stopping,
    provider: ProviderName,
    data: schemas.SyncRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.SyncResultAnswer | schemas.SyncAcceptedAnswer]:
    request.user.require(data.venue_id)

    async def work() -> Response[schemas.SyncResultAnswer | schemas.SyncAcceptedAnswer]:
        operation = await syncs.request_sync(
            context,
            actor,
            venue_id=data.venue_id,
            provider=provider,
            sync_type=data.sync_type,
            complete=data.options.complete,
            approve_deletes=data.options.approve_deletes,
            start_date=data.options.start_date,
            end_date=data.options.end_date,
        )
        operation = await syncs.wait_for(context, operation, data.wait, stopping)
        return answer_for(operation, lambda ended: schemas.SyncResultAnswer(schemas.sync_result(ended)))

    return await answer_once(request, context, idempotency_key, work)


def answer_for(operation: Operation, result: Callable[[Operation], T]) -> Response[Any]:
    """Return the result of a sync that has ended well, or 202; raises SyncFailedError."""
    if not syncs.ended(operation):
        state = schemas.sync_state(operation)
        return Response(
            schemas.SyncAcceptedAnswer(
                schemas.SyncAccepted(
                    state.sync_id,
                    state.status,
                    operation.last_error if operation.status in WAITING else None,
                )
            ),
            status_code=202,
            headers={"Location": f"{PATH}/sync/{operation.integration_type}/sync/{state.sync_id}"},
        )
    if operation.status in syncs.FAILED:
        raise syncs.failure(operation)
    return Response(result(operation))


@post(
    f"{SYNC}/retry",
    operation_id="retryFailed",
    summary="Queue failed work again",
    description="Operations that failed or ran out of attempts start over, in their lane, those that ended "
    f"first first and at most {recovery.MOST_RETRIED:,} at once: call again for the rest. Records that "
    "failed in a sync that ended are no operations: the next sync tries those again, and `retryRecord` "
    "does now.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "Queued, or there was nothing to queue.",
            Example(
                summary="queued",
                value={"success": True, "message": "Failed items re-queued for retry: 3"},
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "NOT_FOUND",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def retry_failed(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.RetryRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.MessageAnswer]:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)

    async def work() -> Response[schemas.MessageAnswer]:
        queued = await recovery.retry_failed(
            context, actor, venue_id=data.venue_id, provider=provider, operation_id=data.queue_item_id
        )
        return Response(
            schemas.MessageAnswer(
                f"Failed items re-queued for retry: {queued}" if queued else "Nothing had failed"
            )
        )

    return await answer_once(request, context, idempotency_key, work)


@post(
    f"{SYNC}/stop",
    operation_id="stopSync",
    summary="Stop syncs",
    description="A sync that waits won't start; one that runs stops after its page. What is done stays done.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "Stopped, or there was nothing to stop.",
            Example(summary="stopped", value={"success": True, "message": "Sync stopped successfully"}),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def stop_sync(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.VenueRequest,
) -> schemas.MessageAnswer:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    stopped = await syncs.stop(context, actor, venue_id=data.venue_id, provider=provider)
    return schemas.MessageAnswer("Sync stopped successfully" if stopped else "No sync was under way")


@get(
    f"{SYNC}/status",
    operation_id="getSyncStatus",
    summary="Where an integration's work stands",
    description="For a page that shows one integration: ask as often as you like, it costs no call to the "
    "provider.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.SyncStatusAnswer,
            "The integration and its queue.",
            Example(
                summary="working",
                value={
                    "success": True,
                    "data": {
                        "integration": {
                            "status": "connected",
                            "last_sync_at": "2026-01-15T11:00:00Z",
                            "next_sync_at": "2026-01-15T11:05:00Z",
                            "last_error": None,
                        },
                        "queue": [{"status": "pending", "count": 5}, {"status": "processing", "count": 2}],
                        "current": _UNDER_WAY,
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def sync_status(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> schemas.SyncStatusAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        integration, queue, current = await syncs.status(session, venue_id, provider)
    return schemas.SyncStatusAnswer(
        schemas.SyncStatus(
            msgspec.convert(integration, schemas.IntegrationState, from_attributes=True),
            [schemas.QueueCount(status, count) for status, count in queue.items()],
            schemas.sync_state(current) if current else None,
        )
    )


@get(
    f"{SYNC}/history",
    operation_id="listSyncs",
    summary="Earlier syncs, newest first",
    description="Finished syncs, newest first.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.HistoryAnswer,
            "Finished syncs.",
            Example(
                summary="one sync",
                value={
                    "success": True,
                    "data": [
                        {
                            "id": _ID,
                            "operation": "manual_sync",
                            "status": "completed",
                            "success_count": 100,
                            "error_count": 5,
                            "skip_count": 0,
                            "api_calls_made": 14,
                            "duration_ms": 12500,
                            "started_at": "2026-01-15T11:00:00Z",
                            "completed_at": "2026-01-15T11:00:12.500000Z",
                            "failures": [],
                        }
                    ],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def sync_history(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    failures: WithFailures = False,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> schemas.HistoryAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        page = await syncs.history(
            session,
            venue_id,
            provider,
            limit=limit,
            offset=offset,
            after=read_cursor(cursor, [schemas.Moment, UUID]),
            failures=failures,
        )
    return schemas.HistoryAnswer(
        [schemas.history_row(entry, provider, venue_id) for entry in page.rows],
        page_meta(page, limit, offset),
    )


@get(
    f"{SYNC}/{{sync_id:uuid}}",
    operation_id="getSync",
    summary="One sync, as it is now",
    description="Poll it until `ended` is true, or watch it instead. Records that failed come with the end.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.SyncStateAnswer,
            "The sync.",
            Example(summary="ended", value={"success": True, "data": _STATE}),
            Example(summary="under way", value={"success": True, "data": _UNDER_WAY}),
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def get_sync(
    request: CallerRequest, context: Shared, provider: ProviderName, sync_id: SyncId
) -> schemas.SyncStateAnswer:
    return schemas.SyncStateAnswer(schemas.sync_state(await _find(context, request.user, provider, sync_id)))


@get(
    f"{SYNC}/{{sync_id:uuid}}/events",
    operation_id="watchSync",
    summary="Watch a sync",
    description="Server-sent events: `progress` when there is news, `ended` at the end; the data of both "
    "is that of `getSync`. The stream closes after `ended`, and after `stopping` when the process that "
    "sends it is being stopped and after a quarter of an hour: ask again then, as browsers do by "
    "themselves. A caller may have 20 streams open.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: ResponseSpec(
            str, generate_examples=False, description="The events.", media_type="text/event-stream"
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def watch_sync(
    request: CallerRequest, context: Shared, stopping: Stopping, provider: ProviderName, sync_id: SyncId
) -> ServerSentEvent:
    operation = await _find(context, request.user, provider, sync_id)
    watching: Counter[str] = request.app.state.setdefault("watching", Counter())
    if watching[request.user.id] >= MOST_WATCHED:
        raise TooManyRequestsError(retry_after=QUIET_SECONDS)
    return ServerSentEvent(_counted(watching, request.user.id, watch_events(context, operation, stopping)))


async def _counted(
    watching: Counter[str], caller: str, events: AsyncIterator[ServerSentEventMessage]
) -> AsyncIterator[ServerSentEventMessage]:
    watching[caller] += 1
    try:
        async for event in events:
            yield event
    finally:
        watching[caller] -= 1
        watching += Counter()  # forgets who has none


async def _find(context: Context, caller: Caller, provider: str, sync_id: UUID) -> Operation:
    async with context.sessions() as session:
        operation = await syncs.find_sync(session, provider, sync_id)
    if not caller.sees(operation.venue_id):
        raise syncs.no_such_sync(operation.venue_id)
    return operation


async def watch_events(
    context: Context, operation: Operation, stopping: asyncio.Event
) -> AsyncIterator[ServerSentEventMessage]:
    """Yield what becomes of a sync, until it ends, is cleared, `stopping` is set, or it was watched long."""
    told: Any = None
    quiet = watched = 0.0
    while True:
        state = schemas.sync_state(operation)
        if state.ended:
            yield ServerSentEventMessage(msgspec.json.encode(state).decode(), event="ended")
            return
        if (state.status, state.progress) != told:
            told, quiet = (state.status, state.progress), 0.0
            yield ServerSentEventMessage(msgspec.json.encode(state).decode(), event="progress")
        elif quiet >= QUIET_SECONDS:
            quiet = 0.0
            yield ServerSentEventMessage(data=None, comment="still here")
        watched += syncs.POLL_SECONDS
        if await syncs.pause(syncs.POLL_SECONDS, stopping) or watched >= LONGEST_WATCH:
            state = schemas.sync_state(operation)
            told_last = msgspec.json.encode(state).decode()
            yield ServerSentEventMessage(told_last, event="stopping", retry=RECONNECT_MS)
            return
        quiet += syncs.POLL_SECONDS
        try:
            operation = await syncs.look(context, operation)
        except NotFoundError:  # whoever asks again is told
            return


HANDLERS = (start_sync, stop_sync, retry_failed, sync_status, sync_history, get_sync, watch_sync)
