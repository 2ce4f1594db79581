"""What administrators of the platform see and do across venues."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import QueryParameter

from server.api import schemas
from server.api.dependencies import Acting, Shared, Stopping
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.paths import PATH
from server.api.schemas import CursorText, IdempotencyKeyText, Limit, Offset, page_meta, read_cursor
from server.api.syncs import answer_for
from server.db.models import HealthStatus, IntegrationStatus
from server.errors import SyncInProgressError
from server.services import overview, recovery, rollups, syncs
from server.services.paging import Page

TAGS = ["Administration"]
ADMIN = f"{PATH}/admin"

Period = Literal["24h", "7d", "30d"]
VenueFilter = Annotated[UUID | None, QueryParameter(name="venueId", description="Only this venue's.")]
ProviderFilter = Annotated[
    str | None, QueryParameter(name="provider", max_length=50, description="Only this provider's.")
]
StatusFilter = Annotated[
    IntegrationStatus | None, QueryParameter(name="status", description="Only those with this status.")
]
Fresh = Annotated[bool, QueryParameter(description="Count now, whatever was counted a moment ago.")]
HealthFilter = Annotated[
    HealthStatus | None,
    QueryParameter(name="healthStatus", description="Only those that were doing like this when measured."),
]


_NUMBERS = {
    **{"syncs": 48, "failed": 1, "success_rate": 97.92, "mean_ms": 3500, "median_ms": 3100, "p95_ms": 8200},
    **{"success_count": 4700, "error_count": 12, "api_calls": 250},
}


@get(
    f"{ADMIN}/all-venues",
    operation_id="listAllIntegrations",
    summary="Integrations of all venues",
    description="By venue and provider. Health is as it was last measured, within five minutes.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            schemas.VenueIntegrationsAnswer,
            "The integrations.",
            Example(
                summary="one integration",
                value={
                    "success": True,
                    "data": [
                        {
                            "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                            "integration_type": "juniper",
                            "environment": "production",
                            "status": "connected",
                            "health_status": "healthy",
                            "health_checked_at": "2026-01-15T11:04:00Z",
                            "last_sync_at": "2026-01-15T11:00:00Z",
                            "next_sync_at": "2026-01-15T11:05:00Z",
                            "failure_count": 0,
                            "last_error": None,
                        }
                    ],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR"),
    },
)
async def list_all(
    context: Shared,
    status: StatusFilter = None,
    health_status: HealthFilter = None,
    provider: ProviderFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> schemas.VenueIntegrationsAnswer:
    async with context.sessions() as session:
        page = await overview.list_integrations(
            session,
            status=status,
            health_status=health_status,
            provider=provider,
            limit=limit,
            offset=offset,
            after=read_cursor(cursor, [UUID, str]),
        )
    return schemas.VenueIntegrationsAnswer(
        [msgspec.convert(row, schemas.VenueIntegration, from_attributes=True) for row in page.rows],
        page_meta(page, limit, offset),
    )


@get(
    f"{ADMIN}/health-summary",
    operation_id="getHealthSummary",
    summary="How everything is doing",
    description="Counted at most every five minutes, or when it is to be `fresh`; `calculated_at` says when.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            schemas.HealthSummaryAnswer,
            "Integrations by health, and operations by status.",
            Example(
                summary="a platform",
                value={
                    "success": True,
                    "data": {
                        "integrations": {
                            "total": 150,
                            "connected": 120,
                            "healthy": 108,
                            "degraded": 8,
                            "unhealthy": 2,
                            "unknown": 2,
                        },
                        "queues": [{"status": "pending", "count": 45}],
                        "calculated_at": "2026-01-15T11:00:00Z",
                        "circuits_open": 1,
                        "periods": {"24h": _NUMBERS, "7d": _NUMBERS, "30d": _NUMBERS},
                    },
                },
            ),
        ),
        **error_answers(),
    },
)
async def health_summary(context: Shared, fresh: Fresh = False) -> schemas.HealthSummaryAnswer:
    summary = await overview.health_summary(context, fresh=fresh)
    return schemas.HealthSummaryAnswer(
        schemas.HealthSummary(
            msgspec.convert(summary.integrations, schemas.IntegrationCounts, from_attributes=True),
            [schemas.QueueCount(each.status, each.count) for each in summary.queues],
            datetime.fromisoformat(summary.calculated_at),
            summary.circuits_open,
            {
                period: msgspec.convert(numbers, schemas.PeriodNumbers, from_attributes=True)
                for period, numbers in _periods(summary)
            },
        )
    )


@get(
    f"{ADMIN}/integration-metrics",
    operation_id="listIntegrationMetrics",
    summary="What each integration's syncs came to",
    description="Those of which most syncs fail come first. A period is of whole hours or days (UTC) and "
    "ends now; what ended within the last five minutes may be missing. Of one integration alone "
    "`health/{provider}/metrics` tells it exactly.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            schemas.IntegrationPeriodsAnswer,
            "The integrations that had any.",
            Example(
                summary="one integration",
                value={
                    "success": True,
                    "data": [
                        {
                            "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                            "integration_type": "juniper",
                            **_NUMBERS,
                        }
                    ],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "INVALID_PROVIDER"),
    },
)
async def list_metrics(
    context: Shared,
    period: Annotated[Period, QueryParameter(description="How far back to look.")] = "24h",
    venue_id: VenueFilter = None,
    provider: ProviderFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> schemas.IntegrationPeriodsAnswer:
    if provider is not None:
        context.catalog.connector(provider)
    async with context.sessions() as session:
        found, total = await rollups.by_integration(
            session, period, venue_id=venue_id, provider=provider, limit=limit, offset=offset
        )
    return schemas.IntegrationPeriodsAnswer(
        [
            schemas.IntegrationPeriod(
                **asdict(each.numbers), venue_id=each.venue_id, integration_type=each.provider
            )
            for each in found
        ],
        page_meta(Page(found, total, None), limit, offset),
    )


@post(
    f"{ADMIN}/force-sync",
    operation_id="forceSync",
    summary="Sync now, whatever the interval",
    description="A complete sync: it also compares all that is linked. When one is under way, that one is "
    "waited for. Answers with the result if it is there within `wait` seconds, else 202 and where to look.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.ForcedSyncAnswer,
            "The sync has ended.",
            Example(
                summary="what it did",
                value={
                    "success": True,
                    "data": {
                        "syncedCount": 100,
                        "failedCount": 0,
                        "syncId": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1",
                    },
                },
            ),
        ),
        202: good(
            schemas.SyncAcceptedAnswer,
            "The sync goes on; `Location` says where to look.",
            Example(
                summary="goes on",
                value={
                    "success": True,
                    "data": {"syncId": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1", "status": "processing"},
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "INTEGRATION_NOT_CONNECTED",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "QUEUE_FULL",
            "SYNC_FAILED",
        ),
    },
)
async def force_sync(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    stopping: Stopping,
    data: schemas.ForceSyncRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.ForcedSyncAnswer | schemas.SyncAcceptedAnswer]:
    async def work() -> Response[Any]:
        venue_id, provider = data.venue_id, data.integration_type
        try:
            operation = await syncs.request_sync(
                context, actor, venue_id=venue_id, provider=provider, sync_type="full", complete=True
            )
        except SyncInProgressError as other:
            sync_id = UUID(other.details[0].message)
            async with context.sessions() as session:
                operation = await syncs.find_sync(session, provider, sync_id)
        operation = await syncs.wait_for(context, operation, data.wait, stopping)
        return answer_for(operation, lambda ended: schemas.ForcedSyncAnswer(schemas.forced_sync(ended)))

    return await answer_once(request, context, idempotency_key, work)


@post(
    f"{ADMIN}/clear-queue",
    operation_id="clearQueue",
    summary="Delete operations from the queue",
    description="Those that fit all that is given. What is being worked stays, and so does what is completed "
    "unless `status` says so. What is deleted won't be worked: use with caution. Events of webhooks "
    "that nothing works any more are `ignored`, and can be replayed.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "How many were deleted.",
            Example(summary="cleared", value={"success": True, "message": "25 queue items cleared"}),
        ),
        **error_answers(
            "VALIDATION_ERROR", "INVALID_PROVIDER", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"
        ),
    },
)
async def clear_queue(
    context: Shared, actor: Acting, data: schemas.ClearQueueRequest
) -> schemas.MessageAnswer:
    cleared = await recovery.clear_queue(
        context, actor, venue_id=data.venue_id, provider=data.integration_type, status=data.status
    )
    return schemas.MessageAnswer(f"{_items(cleared)} cleared")


@post(
    f"{ADMIN}/process-dead-letter",
    operation_id="processDeadLetter",
    summary="Try dead letters again",
    description="Dead letters of integrations whose provider answers now go to the low lane, as "
    "`recovering`. The scheduler does the same every hour.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "How many were queued again.",
            Example(
                summary="some were revived",
                value={
                    "success": True,
                    "message": "Dead letter queue processing initiated: 12 queue items queued again; "
                    "1 integration doesn't answer yet",
                },
            ),
        ),
        **error_answers(),
    },
)
async def process_dead_letter(context: Shared, actor: Acting) -> schemas.MessageAnswer:
    revived = await recovery.revive_dead_letters(context, actor)
    silent = ""
    if revived.silent:
        silent = f"; {revived.silent} integration{'s don' if revived.silent > 1 else ' doesn'}'t answer yet"
    return schemas.MessageAnswer(
        f"Dead letter queue processing initiated: {_items(revived.requeued)} queued again{silent}"
    )


@post(
    f"{ADMIN}/recover-stale",
    operation_id="recoverStale",
    summary="Take operations over from lost workers",
    description="The scheduler does so within seconds of a lease's end; this is for when none runs.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "How many there were.",
            Example(
                summary="none",
                value={
                    "success": True,
                    "message": "Stale operations recovery initiated: 0 queue items to be taken over",
                },
            ),
        ),
        **error_answers(),
    },
)
async def recover_stale(context: Shared, actor: Acting) -> schemas.MessageAnswer:
    stale = await recovery.recover_stale(context, actor)
    return schemas.MessageAnswer(f"Stale operations recovery initiated: {_items(stale)} to be taken over")


@get(
    f"{ADMIN}/queue-metrics",
    operation_id="getQueueMetrics",
    summary="The queue by priority and status",
    description="Operations of all venues, counted now.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            schemas.QueueMetricsAnswer,
            "Counts, the most urgent first; what is nowhere is left out.",
            Example(
                summary="busy",
                value={
                    "success": True,
                    "data": [
                        {"priority": "CRITICAL", "status": "pending", "count": 5},
                        {"priority": "HIGH", "status": "processing", "count": 10},
                    ],
                },
            ),
        ),
        **error_answers(),
    },
)
async def queue_metrics(context: Shared) -> schemas.QueueMetricsAnswer:
    async with context.sessions() as session:
        cells = await overview.queue_metrics(session)
    return schemas.QueueMetricsAnswer(
        [schemas.QueueCell(cell.priority, cell.status, cell.count) for cell in cells]
    )


def _periods(summary: overview.Summary) -> Sequence[tuple[Period, rollups.Numbers]]:
    names: tuple[Period, ...] = ("24h", "7d", "30d")
    return [(name, summary.periods[name]) for name in names]


def _items(count: int) -> str:
    return f"{count} queue item{'' if count == 1 else 's'}"


HANDLERS = (
    list_all,
    health_summary,
    list_metrics,
    force_sync,
    clear_queue,
    process_dead_letter,
    recover_stale,
    queue_metrics,
)
