"""Renew an OAuth token, or take a failed integration up again, because a person asks."""

from litestar import post
from litestar.openapi.spec import Example

from server.api import schemas
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import ProviderName
from server.services import tokens


@post(
    f"{PATH}/oauth/refresh/{{provider:str}}",
    operation_id="refreshToken",
    summary="Renew an OAuth token now",
    description="Tokens are renewed by themselves, minutes before they end; this does it at once, also for "
    "an integration that is in error because it failed. Any number of calls at once are one renewal. "
    "`TOKEN_REFRESH_FAILED` says in its sentence whether it is tried again or the venue has to connect "
    "again; `STORE_UNAVAILABLE` that another process has been at it for long.",
    tags=["OAuth"],
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.RenewedAnswer,
            "There is a new token.",
            Example(
                summary="renewed",
                value={
                    "success": True,
                    "message": "Token refreshed successfully",
                    "data": {"expiresAt": "2026-01-15T12:00:00Z"},
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "PROVIDER_NOT_SUPPORTED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "CREDENTIALS_NOT_FOUND",
            "TOKEN_REFRESH_FAILED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def refresh_token(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.VenueRequest,
) -> schemas.RenewedAnswer:
    request.user.require(data.venue_id)
    ends = await tokens.renew_by_hand(context, actor, venue_id=data.venue_id, provider=provider)
    return schemas.RenewedAnswer("Token refreshed successfully", schemas.Renewed(ends))


@post(
    f"{PATH}/{{provider:str}}/reconnect",
    operation_id="reconnectIntegration",
    summary="Take a failed integration up again",
    description="With the credentials it has: a token is renewed, a key tried at the provider. When they "
    "aren't accepted any more, connect again.",
    tags=["Integrations"],
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.MessageAnswer,
            "Connected again.",
            Example(
                summary="connected again",
                value={"success": True, "message": "Integration reconnected successfully"},
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "PROVIDER_NOT_SUPPORTED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "CREDENTIALS_NOT_FOUND",
            "CONNECTION_TEST_FAILED",
            "TOKEN_REFRESH_FAILED",
            "SYNC_FAILED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def reconnect(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: schemas.VenueRequest,
) -> schemas.MessageAnswer:
    request.user.require(data.venue_id)
    await tokens.reconnect(context, actor, venue_id=data.venue_id, provider=provider)
    return schemas.MessageAnswer("Integration reconnected successfully")


HANDLERS = (refresh_token, reconnect)
