"""Where providers send browsers back to, and the two pages that venues see then."""

from html import escape
from typing import Annotated, Any
from urllib.parse import urlencode

from litestar import Request, Response, get
from litestar.datastructures import ResponseHeader
from litestar.enums import MediaType
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import FromQuery, QueryParameter
from litestar.response import Redirect

from engine.errors import HubError
from server.api import schemas
from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers, request_id, sentence
from server.api.guards import PUBLIC
from server.api.integrations import PATH
from server.api.schemas import ProviderName
from server.services import oauth
from server.services.audit import address

_LONGEST_PARAMETER = 255
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@get(
    f"{PATH}/oauth/callback/{{provider:str}}",
    operation_id="finishAuthorization",
    summary="Finish an OAuth authorization",
    description="The provider sends the venue's browser here. A browser goes on to a page that says how it "
    "went; a caller that accepts JSON gets that instead. The state works once, for ten minutes.",
    tags=["OAuth"],
    opt=PUBLIC,
    responses={
        200: good(
            schemas.AuthorizedAnswer,
            "Connected, for a caller that accepts `application/json`.",
            Example(
                summary="connected",
                value={
                    "success": True,
                    "data": {"venueId": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f", "provider": "juniper"},
                },
            ),
        ),
        302: ResponseSpec(
            None, description="To the page that says how it went, for browsers: success or error."
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "PROVIDER_NOT_SUPPORTED",
            "OAUTH_STATE_INVALID",
            "CONNECTION_TEST_FAILED",
            "INVALID_PROVIDER",
            "NOT_FOUND",
            "TEMPLATE_NOT_FOUND",
            "CONFLICT",
            "RATE_LIMIT_EXCEEDED",
            "OAUTH_EXCHANGE_FAILED",
            "SYNC_FAILED",
            token=False,
        ),
    },
    response_headers=[
        ResponseHeader(
            name="Cache-Control", description="Never kept: the address holds a code.", value="no-store"
        )
    ],
)
async def callback(
    request: Request[Any, Any, Any],
    context: Shared,
    provider: ProviderName,
    code: Annotated[
        str | None, QueryParameter(max_length=4096, description="The authorization code.")
    ] = None,
    state_token: Annotated[
        str | None, QueryParameter(name="state", max_length=512, description="The state, as it was given.")
    ] = None,
    error: Annotated[
        str | None, QueryParameter(max_length=512, description="Why the provider didn't authorize.")
    ] = None,
) -> Response[Any]:
    wants_json = request.accept.best_match(["text/html", "application/json"]) == "application/json"
    try:
        venue_id = await oauth.finish(
            context,
            provider=provider,
            state=state_token,
            code=code,
            error=error,
            parameters=_parameters(request),
            ip=address(request.client.host if request.client else None),
            request_id=request_id(request.scope),
        )
    except HubError as refusal:
        if wants_json:
            raise
        query = {"code": refusal.code, "message": sentence(refusal)}
        return Redirect(f"/integrations/error?{urlencode(query)}", status_code=302)
    if wants_json:
        return Response(schemas.AuthorizedAnswer(schemas.Authorized(venue_id, provider)))
    query = {"provider": provider, "venueId": str(venue_id)}
    return Redirect(f"/integrations/success?{urlencode(query)}", status_code=302)


def _parameters(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Return what else the address carries: some providers say there what was connected."""
    return {name: value for name, value in request.query_params.items() if len(value) <= _LONGEST_PARAMETER}


@get("/integrations/success", opt=PUBLIC, include_in_schema=False, media_type=MediaType.HTML)
async def success_page(context: Shared, provider: FromQuery[str] = "") -> Response[str]:
    """Tell the person in the browser that it worked."""
    connector = context.catalog.connectors.get(provider)
    name = connector.title if connector else "The provider"
    return _page("Connected", f"{name} is connected. You can close this window.")


@get("/integrations/error", opt=PUBLIC, include_in_schema=False, media_type=MediaType.HTML)
async def error_page(code: FromQuery[str] = "") -> Response[str]:
    """Tell the person in the browser that it didn't work.

    The address could have been written by anybody, so only sentences of ours are shown, found by the code.
    """
    return _page(
        "Not connected", _WORDS.get(code, "Something went wrong."), "Start again from where you came."
    )


_WORDS = {
    "VALIDATION_ERROR": "The provider came back without what is needed.",
    "OAUTH_STATE_INVALID": "This authorization is not known, finished already, or too old.",
    "OAUTH_EXCHANGE_FAILED": "The provider did not authorize the connection.",
    "CONNECTION_TEST_FAILED": "The provider agreed, but does not allow what is needed.",
    "PROVIDER_NOT_SUPPORTED": "This provider is not set up here.",
    "INVALID_PROVIDER": "There is no such provider.",
}


def _page(title: str, *sentences: str) -> Response[str]:
    body = "".join(f"<p>{escape(text)}</p>" for text in sentences)
    return Response(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>body{font:1.1rem system-ui;'
        "margin:20vh auto;"
        f"max-width:32rem;padding:0 1rem}}</style></head><body><h1>{escape(title)}</h1>{body}"
        "</body></html>",
        media_type=MediaType.HTML,
        headers=_PAGE_HEADERS,
    )


HANDLERS = (callback, success_page, error_page)
