"""Where providers send browsers back to, and the two pages that venues see then."""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from litestar import Request, Response, get
from litestar.datastructures import ResponseHeader
from litestar.enums import MediaType
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import FromQuery, QueryParameter
from litestar.response import Redirect

from engine.diagnostics import listed
from engine.errors import HubError
from server.api import schemas
from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers, request_id, sentence
from server.api.guards import PUBLIC, identify
from server.api.paths import PATH
from server.api.schemas import ProviderName
from server.context import Context
from server.errors import Detail, InvalidRequestError
from server.services import oauth
from server.services.audit import address

_LONGEST_PARAMETER = 255
_ANY = {**PUBLIC, "any_query": True}  # providers and browsers add what they like
_OURS = ("code", "state", "error")  # of all parameters, those that may be longer


@get(
    f"{PATH}/oauth/callback/{{provider:str}}",
    operation_id="finishAuthorization",
    summary="Finish an OAuth authorization",
    description="The provider sends the venue's browser here. A browser goes on to a page that says how it "
    "went; a caller that accepts JSON gets that instead. The state works once, for ten minutes; showing it "
    "in a wrong place uses it up, too. A token isn't needed. One that is sent must be of the user who began, "
    "and when connecting named a `redirectUri` it has to be sent. When the provider says why it didn't "
    "authorize, `details` repeats its `error`.",
    tags=["OAuth"],
    opt=_ANY,
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
            "INVALID_TOKEN",
            "TOKEN_EXPIRED",
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
    home = urlsplit(context.settings.api_url).path
    try:
        _refuse_repeated(request)
        venue_id = await oauth.finish(
            context,
            provider=provider,
            state=state_token,
            code=code,
            error=error,
            parameters=_parameters(request),
            user_id=_user(request, context),
            ip=address(request.client.host if request.client else None),
            request_id=request_id(request.scope),
        )
    except HubError as refusal:
        if wants_json:
            raise
        query = {"code": refusal.code, "message": sentence(refusal), "provider": provider}
        declined = [each.message for each in getattr(refusal, "details", ()) if each.field == "error"]
        query |= {"error": declined[0]} if declined else {}
        query["reference"] = request_id(request.scope)
        return Redirect(f"{home}/integrations/error?{urlencode(query)}", status_code=302)
    if wants_json:
        return Response(schemas.AuthorizedAnswer(schemas.Authorized(venue_id, provider)))
    query = {"provider": provider, "venueId": str(venue_id)}
    return Redirect(f"{home}/integrations/success?{urlencode(query)}", status_code=302)


def _user(request: Request[Any, Any, Any], context: Context) -> str | None:
    """Return whose token came with the call; raises InvalidTokenError for one that isn't good."""
    return identify(request, context.settings).id if "authorization" in request.headers else None


def _refuse_repeated(request: Request[Any, Any, Any]) -> None:
    """Raise InvalidRequestError for a parameter that is there twice (RFC 6749, 3.1)."""
    repeated = [name for name in _OURS if len(request.query_params.getall(name, [])) > 1]
    if repeated:
        raise InvalidRequestError(
            f"{listed(repeated)} may be in the address once",
            [Detail(name, f"{name} is there more than once") for name in repeated],
        )


def _parameters(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Return what else the address carries: some providers say there what was connected."""
    return {name: value for name, value in request.query_params.items() if len(value) <= _LONGEST_PARAMETER}


@get("/integrations/success", opt=_ANY, include_in_schema=False, media_type=MediaType.HTML)
async def success_page(context: Shared, provider: FromQuery[str] = "") -> Response[str]:
    """Tell the person in the browser that it worked."""
    name = _title(context, provider) or "The provider"
    return page(
        "Connected",
        f"{name} is connected.",
        "The first records are on their way. You can close this window and go on where you came from.",
        good=True,
    )


@get("/integrations/error", opt=_ANY, include_in_schema=False, media_type=MediaType.HTML)
async def error_page(
    context: Shared,
    code: FromQuery[str] = "",
    error: FromQuery[str] = "",
    provider: FromQuery[str] = "",
    reference: FromQuery[str] = "",
) -> Response[str]:
    """Tell the person in the browser that it didn't work, and what to do about it.

    The address could have been written by anybody, so only sentences of ours are shown, found by the codes.
    """
    name = _title(context, provider) or "the provider"
    happened, next_step = _DECLINED.get(error) or _WORDS.get(code) or _WORDS[""]
    return page(
        "Not connected",
        happened.format(name=name)[:1].upper() + happened.format(name=name)[1:],
        next_step.format(name=name),
        good=False,
        reference=reference if _REFERENCE.fullmatch(reference) else None,
    )


def _title(context: Context, provider: str) -> str | None:
    connector = context.catalog.connectors.get(provider)
    return connector.title if connector else None


_REFERENCE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_AGAIN = "Go back to where you started and connect again."
_TELL = "Tell whoever runs this service: it has to be put right there. Trying again won't help."
_LATER = "Wait a few minutes, then go back to where you started and connect again."
# What happened, and what to do next: by the provider's own error, and by ours.
_DECLINED: Mapping[str, tuple[str, str]] = {
    "access_denied": (
        "{name} wasn't allowed to be connected.",
        "If that was a mistake, go back to where you started, connect again, and agree when {name} asks.",
    ),
    "invalid_scope": ("{name} doesn't grant what is needed.", _TELL),
    "unauthorized_client": ("{name} doesn't let this service ask.", _TELL),
    "invalid_request": ("{name} didn't understand the request.", _TELL),
    "unsupported_response_type": ("{name} didn't understand the request.", _TELL),
    "server_error": ("{name} failed on its side.", _LATER),
    "temporarily_unavailable": ("{name} is too busy or closed for now.", _LATER),
}
_WORDS: Mapping[str, tuple[str, str]] = {
    "": ("Something went wrong.", _AGAIN),
    "VALIDATION_ERROR": ("{name} sent you back without what is needed.", _AGAIN),
    "OAUTH_STATE_INVALID": (
        "This link was used already, or is too old.",
        "It works once, for ten minutes. See whether {name} is connected by now; if not, connect again.",
    ),
    "OAUTH_EXCHANGE_FAILED": ("{name} didn't confirm the connection.", _LATER),
    "CONNECTION_TEST_FAILED": (
        "{name} agreed, but doesn't allow all that is needed.",
        "Connect again with an account of {name} that may manage everything, and agree to all it asks.",
    ),
    "SYNC_FAILED": ("{name} can't be reached.", _LATER),
    "RATE_LIMIT_EXCEEDED": ("{name} is asked too much right now.", _LATER),
    "PROVIDER_NOT_SUPPORTED": ("{name} isn't set up here.", _TELL),
    "INVALID_PROVIDER": ("There is no such provider.", _TELL),
    "STORE_UNAVAILABLE": ("This service can't save anything right now.", _LATER),
}

_STYLE = """
:root{color-scheme:light dark;--page:#f4f3f0;--card:#fff;--text:#22211f;--soft:#5a5853;--line:#dcdad4;
--good:#17693f;--bad:#a52a1e}
@media(prefers-color-scheme:dark){:root{--page:#171715;--card:#22221f;--text:#efeee9;--soft:#b5b3ab;
--line:#3a3934;--good:#6fce9b;--bad:#f2917f}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;background:var(--page);
color:var(--text);font:1.0625rem/1.55 system-ui,sans-serif}
main{width:100%;max-width:30rem;padding:2.25rem 2rem;background:var(--card);border:1px solid var(--line);
border-radius:.75rem}
svg{display:block;width:3rem;height:3rem;fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round;
stroke-linejoin:round}
.good svg{color:var(--good)}.bad svg{color:var(--bad)}
h1{margin:1rem 0 .75rem;font-size:1.5rem;line-height:1.25}p{margin:0 0 .75rem}
p:last-child{margin-bottom:0}small{color:var(--soft)}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
"""
_TICK = '<path d="m7.5 12.5 3 3 6-7"/>'
_CROSS = '<path d="m8.5 8.5 7 7m0-7-7 7"/>'
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def page(
    title: str, happened: str, next_step: str, *, good: bool, reference: str | None = None
) -> Response[str]:
    """Return a page for a person: it needs no script, and nothing from elsewhere."""
    told = f"<p><small>Reference: <code>{escape(reference)}</code></small></p>" if reference else ""
    return Response(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex">'
        f'<style>{_STYLE}</style></head><body><main class="{"good" if good else "bad"}">'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="10"/>'
        f"{_TICK if good else _CROSS}</svg>"
        f"<h1>{escape(title)}</h1><p>{escape(happened)}</p><p>{escape(next_step)}</p>{told}"
        "</main></body></html>",
        media_type=MediaType.HTML,
        headers=dict(PAGE_HEADERS),
    )


HANDLERS = (callback, success_page, error_page)
