"""Connect, list, look at and disconnect integrations."""

from litestar import Response, get, post
from litestar.enums import MediaType
from litestar.openapi.spec import Example

from server.api import schemas
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Offset,
    ProviderName,
    VenueId,
    config_values,
    page_meta,
    read_cursor,
)
from server.services import integrations, oauth, views

TAGS = ["Integrations"]

_INTEGRATION = {
    "id": "0b6a3c1e-5f0e-4c8f-9d3a-2f1f5b7f9a10",
    "integration_type": "juniper",
    "environment": "production",
    "status": "connected",
    "connected_at": "2026-01-15T10:00:00Z",
    "disconnected_at": None,
    "last_sync_at": "2026-01-15T11:00:00Z",
    "next_sync_at": "2026-01-15T11:05:00Z",
    "health_status": "healthy",
    "failure_count": 0,
    "last_error": None,
    "last_error_at": None,
    "config": {"syncEnabled": True, "syncInterval": 300, "syncDirection": "bidirectional"},
    "template_id": "9a3f0d52-8c1e-5d0b-8a77-61d7a5f0c3b2",
    "health": {
        "success_rate": 98.5,
        "sync_count_24h": 48,
        "api_calls_24h": 250,
        "authorization_ends_at": None,
    },
}


@get(
    PATH,
    operation_id="listIntegrations",
    summary="List a venue's integrations",
    description="By provider. One that was disconnected is listed, too: its links and its history are kept.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.IntegrationsAnswer,
            "The venue's integrations, by provider.",
            Example(
                summary="one integration",
                value={
                    "success": True,
                    "data": [_INTEGRATION],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED"),
    },
)
async def list_integrations(
    request: CallerRequest,
    context: Shared,
    venue_id: VenueId,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> schemas.IntegrationsAnswer:
    request.user.require(venue_id)
    page = await views.list_views(
        context.reads, venue_id, limit=limit, offset=offset, after=read_cursor(cursor, [str])
    )
    return schemas.IntegrationsAnswer(
        [schemas.integration(view) for view in page.rows], page_meta(page, limit, offset)
    )


@get(
    f"{PATH}/{{provider:str}}",
    operation_id="getIntegration",
    summary="Look at one integration",
    description="With its health of the last 24 hours, and when it syncs next.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            schemas.IntegrationAnswer,
            "The integration.",
            Example(summary="an integration", value={"success": True, "data": _INTEGRATION}),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def get_integration(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> schemas.IntegrationAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    view = await views.find_view(context.reads, venue_id, provider)
    if view is None:
        raise integrations.not_connected(provider)
    return schemas.IntegrationAnswer(schemas.integration(view))


@post(
    f"{PATH}/connect/{{provider:str}}",
    operation_id="connectIntegration",
    summary="Connect a provider",
    description="With credentials, they are tried at the provider first and stored only when it takes them. "
    "Without, for providers with OAuth, the answer says where to send the venue's browser. The first sync "
    "starts by itself unless `config.syncEnabled` is false.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    media_type=MediaType.JSON,
    responses={
        200: good(
            schemas.ConnectAnswer,
            "Connected, or an authorization was begun.",
            Example(
                summary="connected with credentials",
                value={
                    "success": True,
                    "data": {"message": "Integration connected successfully", "integrationType": "juniper"},
                },
            ),
            Example(
                summary="to be authorized",
                value={
                    "success": True,
                    "data": {
                        "message": "Please complete OAuth authorization",
                        "authUrl": "https://login.juniper.example/oauth/authorize?client_id=…&state=…",
                    },
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "PROVIDER_NOT_SUPPORTED",
            "CONNECTION_TEST_FAILED",
            "NOT_FOUND",
            "INVALID_PROVIDER",
            "TEMPLATE_NOT_FOUND",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "CONFLICT",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "RATE_LIMIT_EXCEEDED",
            "SYNC_FAILED",
        ),
    },
)
async def connect(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.ConnectRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.ConnectAnswer]:
    request.user.require(data.venue_id)

    async def work() -> Response[schemas.ConnectAnswer]:
        config = config_values(data.config)
        if data.credentials:
            await integrations.connect(
                context,
                actor,
                provider=provider,
                venue_id=data.venue_id,
                environment=data.environment,
                credentials=data.credentials,
                values=data.connection,
                config=config,
            )
            answer = schemas.Connected("Integration connected successfully", integration_type=provider)
        else:
            url = await oauth.begin(
                context,
                actor,
                provider=provider,
                venue_id=data.venue_id,
                environment=data.environment,
                values=data.connection,
                config=config,
                wanted_redirect=data.redirect_uri,
            )
            answer = schemas.Connected("Please complete OAuth authorization", auth_url=url)
        return Response(schemas.ConnectAnswer(answer))

    return await answer_once(request, context, idempotency_key, work)


@post(
    f"{PATH}/{{provider:str}}/disconnect",
    operation_id="disconnectIntegration",
    summary="Disconnect a provider",
    description="Credentials are erased here and, where the provider can, revoked there: `data` says what "
    "became of them. What waits is cancelled, and a running sync stops after its page. Links between records "
    "are kept for another time.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.DisconnectAnswer,
            "Disconnected.",
            Example(
                summary="disconnected",
                value={"success": True, "message": "juniper integration disconnected successfully"},
            ),
            Example(
                summary="disconnected, and the provider couldn't be asked to revoke the tokens",
                value={
                    "success": True,
                    "message": "juniper integration disconnected successfully",
                    "data": {"revocation": "failed"},
                },
            ),
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
async def disconnect(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.VenueRequest,
) -> schemas.DisconnectAnswer:
    request.user.require(data.venue_id)
    revocation = await integrations.disconnect(context, actor, venue_id=data.venue_id, provider=provider)
    return schemas.DisconnectAnswer(
        True,
        f"{provider} integration disconnected successfully",
        schemas.Disconnected(revocation) if revocation else None,
    )


@post(
    f"{PATH}/{{provider:str}}/api-key",
    operation_id="validateApiKey",
    summary="Try credentials",
    description="They are tried at the provider as connecting would, and nothing is stored. `valid` is false "
    "when the provider refuses them or they can't be its own. That it can't be asked is an error.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.ValidityAnswer,
            "The provider was asked.",
            Example(summary="it takes them", value={"success": True, "data": {"valid": True}}),
            Example(
                summary="it doesn't",
                value={
                    "success": True,
                    "data": {"valid": False, "reason": "Juniper refuses these credentials: unknown key"},
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "PROVIDER_NOT_SUPPORTED",
            "INVALID_PROVIDER",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "RATE_LIMIT_EXCEEDED",
            "SYNC_FAILED",
        ),
    },
)
async def validate_api_key(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.ApiKeyRequest,
) -> schemas.ValidityAnswer:
    if data.venue_id is not None:
        request.user.require(data.venue_id)
    named = {"apiKey": data.api_key, "apiSecret": data.api_secret}
    reason = await integrations.validate(
        context,
        actor,
        provider=provider,
        venue_id=data.venue_id,
        environment=data.environment,
        credentials={**{name: value for name, value in named.items() if value}, **data.credentials},
        values=data.connection,
    )
    return schemas.ValidityAnswer(schemas.Validity(reason is None, reason))


HANDLERS = (list_integrations, get_integration, connect, disconnect, validate_api_key)
