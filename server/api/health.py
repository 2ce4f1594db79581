"""How integrations and the service itself are doing."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import QueryParameter

from engine.errors import ProviderError
from server.api import schemas
from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, MANAGERS, PUBLIC, READERS, TOKEN, CallerRequest, identify
from server.api.paths import PATH
from server.api.schemas import CursorText, Limit, Offset, ProviderName, VenueId, page_meta, read_cursor
from server.services import conditions, health, integrations, overview, recovery, views
from server.telemetry.states import Readings

TAGS = ["Health"]


@get(
    f"{PATH}/health/{{provider:str}}",
    operation_id="getIntegrationHealth",
    summary="How an integration is doing",
    description="Open to all unless `HUB_PUBLIC_HEALTH` is false, so it tells nothing but how syncs went: a "
    "venue that isn't connected, or isn't there, looks like one that never synced.",
    tags=TAGS,
    opt=PUBLIC,
    security=[{}, *TOKEN],
    responses={
        200: good(
            schemas.HealthAnswer,
            "The last 24 hours.",
            Example(
                summary="healthy",
                value={
                    "success": True,
                    "data": {
                        "status": "healthy",
                        "success_rate": 98.5,
                        "average_sync_time_ms": 3500,
                        "last_success_at": "2026-01-15T11:00:00Z",
                        "last_failure_at": "2026-01-14T15:30:00Z",
                        "sync_count_24h": 48,
                        "api_calls_24h": 250,
                        "queue_depth": 3,
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER"),
    },
)
async def integration_health(
    request: Request[Any, Any, Any],
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
) -> schemas.HealthAnswer:
    if not context.settings.public_health:
        identify(request, context.settings).require(venue_id)
    context.catalog.connector(provider)
    view = await views.find_view(context.reads, venue_id, provider)
    return schemas.HealthAnswer(schemas.health_answer(view))


@get(
    f"{PATH}/health/{{provider:str}}/metrics",
    operation_id="getIntegrationMetrics",
    summary="What an integration's syncs came to",
    description="Syncs that ended within the period, and the records they were about.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.MetricsAnswer,
            "The period that ends now.",
            Example(
                summary="a day",
                value={
                    "success": True,
                    "data": {
                        "total_syncs": 48,
                        "successful": 47,
                        "failed": 1,
                        "avg_duration": 3500,
                        "total_success_count": 4700,
                        "total_error_count": 12,
                        "success_rate": 97.92,
                        "api_calls": 250,
                        "median_duration": 3100,
                        "p95_duration": 8200,
                        "condition": {
                            "health_status": "healthy",
                            "reason": "good",
                            "explanation": "it works",
                            "circuit": {
                                "state": "closed",
                                "failures": 0,
                                "opened_at": None,
                                "until": None,
                            },
                            "quota": {"remaining": 4711, "resets_at": "2026-01-15T11:15:00Z"},
                            "checked_at": None,
                            "response_ms": None,
                        },
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def integration_metrics(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    period: Annotated[
        Literal["24h", "7d", "30d"], QueryParameter(description="How far back to look.")
    ] = "24h",
) -> schemas.MetricsAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        integration = await integrations.get_integration(session, venue_id, provider)
        found = await overview.metrics(session, venue_id, provider, overview.PERIODS[period])
        known = await conditions.known_of(session, venue_id, provider)
    condition = schemas.condition_answer(integration, known, datetime.now(UTC))
    return schemas.MetricsAnswer(schemas.IntegrationMetrics(**asdict(found), condition=condition))


@get(
    f"{PATH}/health/{{provider:str}}/changes",
    operation_id="listHealthChanges",
    summary="How an integration's health changed",
    description="The newest first. Worse is told at once, better when it was so for three minutes.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.HealthChangesAnswer,
            "The changes.",
            Example(
                summary="an outage begins",
                value={
                    "success": True,
                    "data": [
                        {
                            "from_status": "healthy",
                            "to_status": "unhealthy",
                            "reason": "circuit_open",
                            "explanation": "the provider didn't answer 5 times in a row",
                            "created_at": "2026-01-15T11:04:00Z",
                        }
                    ],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def health_changes(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> schemas.HealthChangesAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    after = read_cursor(cursor, [int])
    async with context.sessions() as session:
        await integrations.get_integration(session, venue_id, provider)
        page = await conditions.changes(
            session, venue_id, provider, limit=limit, offset=offset, after=after[0] if after else None
        )
    rows = [msgspec.convert(row, schemas.HealthChangeRow, from_attributes=True) for row in page.rows]
    return schemas.HealthChangesAnswer(rows, page_meta(page, limit, offset))


@post(
    f"{PATH}/health/{{provider:str}}/test",
    operation_id="testConnection",
    summary="Try the stored credentials",
    description="Makes the cheap call that proves them. `connected` is false when the provider refuses them "
    "or can't answer, and `error` says which.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.ConnectionTestAnswer,
            "What the provider said.",
            Example(
                summary="connected",
                value={
                    "success": True,
                    "data": {"connected": True, "timestamp": "2026-01-15T11:00:00Z", "error": None},
                },
            ),
            Example(
                summary="refused",
                value={
                    "success": True,
                    "data": {
                        "connected": False,
                        "timestamp": "2026-01-15T11:00:00Z",
                        "error": "Juniper refuses to renew the connection: connect again",
                    },
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "CREDENTIALS_NOT_FOUND",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def test_connection(
    request: CallerRequest, context: Shared, provider: ProviderName, data: schemas.VenueRequest
) -> schemas.ConnectionTestAnswer:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        await integrations.get_integration(session, data.venue_id, provider)
    error: str | None = None
    try:
        await recovery.try_connection(context, data.venue_id, provider)
    except ProviderError as refused:
        error = refused.message
    return schemas.ConnectionTestAnswer(schemas.ConnectionTest(error is None, datetime.now(UTC), error))


@get(
    "/health",
    operation_id="getLiveness",
    summary="Whether the process lives",
    description="For whatever restarts processes that don't answer. It looks at no store.",
    tags=TAGS,
    opt=PUBLIC,
    responses={
        200: good(
            schemas.Liveness,
            "It lives.",
            Example(summary="healthy", value={"status": "healthy", "service": "integration-hub"}),
        ),
        **error_answers("VALIDATION_ERROR", alone=True),
    },
)
async def liveness() -> schemas.Liveness:
    return schemas.Liveness()


@get(
    "/ready",
    operation_id="getReadiness",
    summary="Whether the service can work",
    description="For whatever sends requests here: PostgreSQL and Redis answer, and the database is at the "
    "newest revision.",
    tags=TAGS,
    opt=PUBLIC,
    responses={
        200: good(
            schemas.Readiness,
            "Both stores answer, and the database is at the newest revision.",
            Example(summary="ready", value={"status": "ready", "problems": {}}),
        ),
        503: good(
            schemas.Readiness,
            "Something is missing.",
            Example(
                summary="not ready",
                value={"status": "not ready", "problems": {"redis": "Redis can't be reached"}},
            ),
        ),
        **error_answers("VALIDATION_ERROR", alone=True),
    },
)
async def readiness(request: Request[Any, Any, Any], context: Shared) -> Response[schemas.Readiness]:
    problems = await health.readiness(context)
    if request.app.state.get("draining"):
        problems["process"] = "this process is being stopped"
    return Response(
        schemas.Readiness("not ready" if problems else "ready", problems),
        status_code=503 if problems else 200,
    )


@get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    description="Counted over all processes. It names venues, so it takes an administrator's token.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    media_type="text/plain; version=0.0.4",
    responses={
        200: ResponseSpec(
            str, generate_examples=False, description="Prometheus' text format.", media_type="text/plain"
        ),
        **error_answers(),
    },
)
async def metrics(state: State) -> Response[Any]:
    readings: Readings = state.readings
    # The character set is added to the type.
    return Response(await readings.text(), media_type="text/plain; version=0.0.4")


HANDLERS = (
    integration_health,
    integration_metrics,
    health_changes,
    test_connection,
    liveness,
    readiness,
    metrics,
)
