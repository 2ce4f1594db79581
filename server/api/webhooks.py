"""Where providers send webhooks, and what people see of them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import msgspec
import structlog
from litestar import HttpMethod, get, post, put, route
from litestar.datastructures import ResponseHeader, State
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import PathParameter, QueryParameter
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Receive, Scope, Send
from msgspec import Meta, Struct

from engine.deliveries import Delivery
from engine.errors import MalformedDeliveryError, SignatureError, WebhookError
from engine.manifest import Webhooks
from engine.ports import Secret
from engine.webhooks import Reply, probe_reply, proved_by, split_events, verify_delivery
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMIN, MANAGERS, PUBLIC, READERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    Limit,
    MessageAnswer,
    Moment,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    body_of,
    page_meta,
    read_cursor,
)
from server.context import Context
from server.db.models import WebhookStatus
from server.errors import IntegrationNotFoundError, NotSupportedError, QueueFullError, StoreUnavailableError
from server.services import audit, endpoints, integrations, webhooks
from server.services.webhooks import Arrival
from server.telemetry import traces
from server.telemetry.metrics import DELIVERIES, INTAKE_SECONDS

log = structlog.get_logger(__name__)

TAGS = ["Webhooks"]
WEBHOOKS = f"{PATH}/webhooks"
_OF_SECRETS = ("no_secret", "signature_mismatch")  # refusals that another secret could have prevented
_OF_KEYS = ("signature_mismatch", "unknown_key")  # or another published key
MARGIN_SECONDS = 0.5  # before a provider gives up: an answer has to get there, too
_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"

EndpointToken = Annotated[
    str, PathParameter(max_length=255, description="The token of a connection's own address.")
]


class Received(Struct, frozen=True):
    """The delivery is stored; its events are worked afterwards."""

    received: Literal[True] = True


class WebhookEvent(Struct, frozen=True):
    """An event as it was received. `record_id` is the provider's; `error` says what went wrong."""

    id: UUID
    venue_id: UUID | None
    event_type: str
    event_id: str | None
    record_id: str | None
    status: WebhookStatus
    error: str | None
    retry_count: int
    occurred_at: datetime | None
    received_at: datetime
    processed_at: datetime | None


class WebhookEventsAnswer(Struct, frozen=True):
    data: list[WebhookEvent]
    meta: PageMeta
    success: Literal[True] = True


class WebhookAddress(Struct, frozen=True, rename="camel"):
    """Where the provider sends, and whether it does. `secretKnown`: what it signs with is known here."""

    url: str
    shared: bool
    subscribed: bool
    secret_known: bool
    checked_at: datetime | None
    error: str | None


class WebhookAddressAnswer(Struct, frozen=True):
    data: WebhookAddress
    success: Literal[True] = True


class RetryWebhookBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The event to work again."""

    webhook_id: UUID


class ReplayBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The events to work again: those of a venue with a status, received within a time."""

    venue_id: UUID
    status: Literal["failed", "ignored", "processed"] = "failed"
    since: Moment | None = None
    until: Moment | None = None


class WebhookSecretBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the provider signs with, as it shows it."""

    venue_id: UUID
    secret: Annotated[str, Meta(min_length=8, max_length=4096)]


_SHOWN = "whsec_C2FVsBQIhrscChlQIMV"
_NO_STORE = [ResponseHeader(name="Cache-Control", description="Never kept.", value="no-store")]


def _answering(app: ASGIApp) -> ASGIApp:
    """Return what answers providers: a middleware of their routes, with nothing behind it.

    What the framework does for a handler (its parameters, dependencies and response) takes longer than all
    that is done about a delivery. Routing, limits, errors and the API's description stay the framework's.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        provider: str = scope["path_params"]["provider"]
        structlog.contextvars.bind_contextvars(provider=provider)
        try:
            reply = await _take(cast("HTTPScope", scope), receive, provider)
        except WebhookError:
            DELIVERIES.add(provider, "refused")
            raise
        except (QueueFullError, StoreUnavailableError):
            DELIVERIES.add(provider, "unavailable")
            raise
        body, kind = (_RECEIVED, _JSON) if reply is None else _written(reply)
        headers = [*kind, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


def _written(reply: Reply) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    more = ((name.encode(), value.encode()) for name, value in reply.headers.items())
    return reply.text.encode(), (*_KINDS[reply.kind], *more)


_RECEIVED = msgspec.json.encode(Received())
_JSON = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
_TEXT = (
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
_XML = ((b"content-type", b"text/xml; charset=utf-8"), *_TEXT[1:])
_KINDS = {"application/json": _JSON, "text/plain": _TEXT, "text/xml": _XML}
_OPEN: dict[str, Any] = {**PUBLIC, "raw_body": True, "hides_path": True}
_RECEIVE: dict[str, Any] = {
    "tags": TAGS,
    "middleware": [_answering],
    "opt": _OPEN,
    "status_code": 200,
    "response_headers": _NO_STORE,
    "responses": {
        200: good(
            Received,
            "Stored, or known already; or the answer to a probe.",
            Example(summary="stored", value={"received": True}),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "PROVIDER_NOT_SUPPORTED",
            "WEBHOOK_PROCESSING_FAILED",
            "WEBHOOK_SIGNATURE_INVALID",
            "INVALID_PROVIDER",
            "PAYLOAD_TOO_LARGE",
            "QUEUE_FULL",
            "STORE_UNAVAILABLE",
            token=False,
        ),
    },
}
_PROBE: dict[str, Any] = {
    "tags": TAGS,
    "middleware": [_answering],
    "response_headers": _NO_STORE,
    "opt": _OPEN,
    "media_type": "text/plain",
    "responses": {
        200: ResponseSpec(
            str, generate_examples=False, description="What it asks for.", media_type="text/plain"
        ),
        **error_answers(
            "PROVIDER_NOT_SUPPORTED",
            "WEBHOOK_PROCESSING_FAILED",
            "WEBHOOK_SIGNATURE_INVALID",
            "INVALID_PROVIDER",
            token=False,
        ),
    },
}
_LOOK: dict[str, Any] = {
    "http_method": HttpMethod.HEAD,
    "middleware": [_answering],
    "opt": _OPEN,
    "include_in_schema": False,
}


@post(
    f"{WEBHOOKS}/{{provider:str}}",
    operation_id="receiveWebhook",
    summary="Receive a webhook at the address all connections share",
    description="Proved over the raw body by the connector's signature before anything is read, and stored "
    "before it is acknowledged. Whose events they are, their account says.",
    **_RECEIVE,
)
async def receive(provider: ProviderName) -> Received:
    raise _not_reached()


@post(
    f"{WEBHOOKS}/{{provider:str}}/{{token:str}}",
    operation_id="receiveOwnWebhook",
    summary="Receive a webhook at a connection's own address",
    description="As at the shared address; the token says whose events they are.",
    **_RECEIVE,
)
async def receive_own(provider: ProviderName, token: EndpointToken) -> Received:
    raise _not_reached()


@get(
    f"{WEBHOOKS}/{{provider:str}}",
    operation_id="probeWebhook",
    summary="Answer a provider that looks whether the shared address is there",
    description="Some providers ask before they send: for a text of theirs, or just whether anybody answers.",
    **_PROBE,
)
async def probe(provider: ProviderName) -> str:
    raise _not_reached()


@get(
    f"{WEBHOOKS}/{{provider:str}}/{{token:str}}",
    operation_id="probeOwnWebhook",
    summary="Answer a provider that looks whether a connection's own address is there",
    description="As at the shared address.",
    **_PROBE,
)
async def probe_own(provider: ProviderName, token: EndpointToken) -> str:
    raise _not_reached()


@route(f"{WEBHOOKS}/{{provider:str}}", **_LOOK)
async def look(provider: ProviderName) -> str:
    raise _not_reached()


@route(f"{WEBHOOKS}/{{provider:str}}/{{token:str}}", **_LOOK)
async def look_own(provider: ProviderName, token: EndpointToken) -> str:
    raise _not_reached()


def _not_reached() -> Exception:
    return RuntimeError("this route is answered before its handler")


async def _take(scope: HTTPScope, receive: Receive, provider: str) -> Reply | None:
    """Take a delivery in; returns what to answer, and None for the words of ours that say it is stored."""
    began = perf_counter()
    state = scope["litestar_app"].state
    context: Context = state.context
    connector = context.catalog.connector(provider)
    spec = connector.webhooks
    if spec is None:
        raise NotSupportedError(f"{connector.title} sends no webhooks here")
    token: str | None = scope["path_params"].get("token")
    # The address as the provider was given it, not as a proxy rewrote it: signatures may cover it.
    url = endpoints.url_of(context.settings, provider, token)
    query = scope["query_string"].decode("latin-1")
    headers = _named(scope["headers"])
    body = await _read(scope, receive, headers)
    delivery = Delivery(scope["method"], f"{url}?{query}" if query else url, headers, body)
    now = datetime.now(UTC)
    venue_id: UUID | None = None
    if token is None:
        secrets = endpoints.shared_secrets(context.settings, connector)
    else:
        address = await state.addresses.find(context, provider, token)
        venue_id = address.venue_id if address else None
        secrets = address.secrets if address else {}
        if venue_id is not None:
            structlog.contextvars.bind_contextvars(venue_id=str(venue_id))
    # Published keys prove whose provider it is, and not that this is an address of anybody's.
    scheme: str | None = None
    refused: SignatureError | None = SignatureError("nobody here has this address", "no_secret")
    if venue_id is not None or secrets or (token is None and spec.address == "provider"):
        scheme, refused = await _proved(state, spec, delivery, secrets, now)
    if refused is not None and refused.reason in _OF_SECRETS and token is not None and venue_id is not None:
        address = await state.addresses.find_again(context, provider, token)
        venue_id = address.venue_id if address else None
        secrets = address.secrets if address else {}
        if address is not None:
            scheme, refused = await _proved(state, spec, delivery, secrets, now)
    reply = probe_reply(spec, delivery, verified=scheme is not None, now=now, secrets=secrets)
    if reply is not None and await _may_answer(state, reply, provider, token):
        return reply
    if scheme is None:
        assert refused is not None
        log.warning("webhook.refused", provider=provider, reason=refused.reason)
        raise refused
    if delivery.method != "POST":
        raise MalformedDeliveryError("a webhook is sent by POST")
    delivery = proved_by(spec, scheme, delivery, secrets)
    arrival = Arrival(
        provider,
        venue_id,
        scheme,
        delivery,
        split_events(spec, delivery),
        webhooks.UNKNOWN_TYPE if spec.other_events == "ignore" else None,
        spec.secret_headers,
        traces.traceparent(),
    )
    if arrival.events:
        # A provider's time has run since its first bytes came; one that was slow itself gets a moment, too.
        left = spec.answer_within.total_seconds() - MARGIN_SECONDS - (perf_counter() - began)
        seconds = max(left, MARGIN_SECONDS)
        await state.intake.accept(arrival, seconds)
        INTAKE_SECONDS.observe(perf_counter() - began, provider)
    if spec.acknowledge is None:
        return None
    # The manifest's own words; what a stranger sent is never given back as anything but plain text or JSON.
    return Reply(spec.acknowledge, "text/xml" if spec.acknowledge.startswith("<") else "text/plain")


async def _proved(
    state: State,
    spec: Webhooks,
    delivery: Delivery,
    secrets: Mapping[str, Sequence[Secret]],
    now: datetime,
) -> tuple[str | None, SignatureError | None]:
    """Return the scheme that proves a delivery, or why none does; raises StoreUnavailableError."""
    keys: Sequence[str] = ()
    try:
        if spec.publishes_keys:
            keys = await endpoints.published_keys(state.published_keys, spec, delivery, secrets)
        try:
            return verify_delivery(spec, delivery, secrets, now=now, keys=keys), None
        except SignatureError as error:
            if not keys or error.reason not in _OF_KEYS:
                raise
        keys = await endpoints.published_keys(state.published_keys, spec, delivery, secrets, again=True)
        return verify_delivery(spec, delivery, secrets, now=now, keys=keys), None
    except SignatureError as error:
        return None, error


async def _may_answer(state: State, reply: Reply, provider: str, token: str | None) -> bool:
    """Do what a probe asks for before it is answered; False when its secret isn't taken."""
    context: Context = state.context
    if reply.keep is not None:
        if token is None or not await endpoints.keep_named(
            context, provider, token, reply.scheme, reply.keep
        ):
            return False
        state.addresses.forget(token)
    if reply.visit is not None:
        await endpoints.visit(context, reply.visit)
    return True


def _named(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; of one that came on several lines, its values with commas between them."""
    headers: dict[str, str] = {}
    for line, text in lines:
        name, value = line.decode("latin-1"), text.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _read(scope: HTTPScope, receive: Receive, headers: Mapping[str, str]) -> bytes:
    """Return the body; raises RequestEntityTooLarge as soon as it is known to be."""
    most = cast("HTTPRouteHandler", scope["route_handler"]).resolve_request_max_body_size() or 0
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise RequestEntityTooLarge
    parts, size = [], 0
    while True:
        message = cast("HTTPReceiveMessage", await receive())
        if message["type"] == "http.disconnect":  # a body that doesn't end is refused before it comes here
            break
        parts.append(message["body"])
        size += len(message["body"])
        if size > most:
            raise RequestEntityTooLarge
        if not message["more_body"]:
            break
    return b"".join(parts)


StatusFilter = Annotated[
    WebhookStatus | None, QueryParameter(name="status", description="Only events with this status.")
]
OptionalVenue = Annotated[
    UUID | None,
    QueryParameter(
        name="venueId",
        description="Only this venue's. Left out: of all the caller's venues; administrators see those of no "
        "venue as well.",
    ),
]


@get(
    f"{WEBHOOKS}/{{provider:str}}/events",
    operation_id="listWebhookEvents",
    summary="Webhook events, newest first",
    description="What arrived, and what became of it. Bodies aren't shown: they hold what customers told a "
    "provider.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            WebhookEventsAnswer,
            "Events.",
            Example(
                summary="one event",
                value={
                    "success": True,
                    "data": [
                        {
                            "id": "5a9c1d1e-7f0e-4b0e-8f0e-0a1b2c3d4e5f",
                            "venue_id": _VENUE,
                            "event_type": "payment.created",
                            "event_id": "ev_1",
                            "record_id": "pay_1",
                            "status": "processed",
                            "error": None,
                            "retry_count": 0,
                            "occurred_at": "2026-01-15T09:59:59Z",
                            "received_at": "2026-01-15T10:00:00Z",
                            "processed_at": "2026-01-15T10:00:05Z",
                        }
                    ],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "INVALID_PROVIDER"),
    },
)
async def list_events(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: OptionalVenue = None,
    status: StatusFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> WebhookEventsAnswer:
    context.catalog.connector(provider)
    if venue_id is not None:
        request.user.require(venue_id)
    everything = venue_id is None and request.user.role == ADMIN
    venues = None if everything else [venue_id] if venue_id is not None else sorted(request.user.venues)
    async with context.sessions() as session:
        page = await webhooks.list_events(
            session,
            provider,
            venues=venues,
            status=status,
            limit=limit,
            offset=offset,
            after=read_cursor(cursor, [Moment, UUID]),
        )
    return WebhookEventsAnswer(
        [msgspec.convert(row, WebhookEvent, from_attributes=True) for row in page.rows],
        page_meta(page, limit, offset),
    )


@post(
    f"{WEBHOOKS}/retry",
    operation_id="retryWebhook",
    summary="Work an event again",
    description="Whatever became of it before. Working an event twice does no harm: the record is fetched "
    "anew.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            MessageAnswer,
            "Queued.",
            Example(summary="queued", value={"success": True, "message": "Webhook queued for retry"}),
        ),
        **error_answers(
            "QUEUE_FULL", "VALIDATION_ERROR", "NOT_FOUND", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"
        ),
    },
)
async def retry_event(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    data: Annotated[RetryWebhookBody, body_of(an_event={"webhookId": _VENUE})],
) -> MessageAnswer:
    async with context.sessions() as session:
        event = await webhooks.find_event(session, data.webhook_id)
    if event.venue_id is None and request.user.role != ADMIN:
        raise webhooks.no_such_event()
    if event.venue_id is not None and not request.user.sees(event.venue_id):
        raise webhooks.no_such_event()
    await webhooks.retry(context, actor, event.id)
    return MessageAnswer("Webhook queued for retry")


@post(
    f"{WEBHOOKS}/{{provider:str}}/replay",
    operation_id="replayWebhooks",
    summary="Work many events again",
    description=f"The oldest first, at most {webhooks.MOST_REPLAYED} at once: call again for the rest.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            MessageAnswer,
            "Queued.",
            Example(summary="queued", value={"success": True, "message": "12 webhook events queued"}),
        ),
        **error_answers(
            "QUEUE_FULL",
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def replay_events(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: Annotated[ReplayBody, body_of(what_failed={"venueId": _VENUE, "status": "failed"})],
) -> MessageAnswer:
    request.user.require(data.venue_id)
    queued = await webhooks.replay(
        context,
        actor,
        venue_id=data.venue_id,
        provider=provider,
        status=WebhookStatus(data.status),
        since=data.since,
        until=data.until,
    )
    return MessageAnswer(f"{queued} webhook event{'' if queued == 1 else 's'} queued")


_ADDRESS = {
    "url": "https://hub.example.org/api/v1/integrations/webhooks/juniper/…",
    "shared": False,
    "subscribed": True,
    "secretKnown": True,
    "checkedAt": "2026-01-15T10:00:00Z",
    "error": None,
}


@get(
    f"{PATH}/{{provider:str}}/webhook",
    operation_id="getWebhookAddress",
    summary="Where the provider sends webhooks",
    description="The address of a connection is as good as a secret, so only those who manage it see it.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={
        200: good(
            WebhookAddressAnswer,
            "The address.",
            Example(summary="subscribed", value={"success": True, "data": _ADDRESS}),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "PROVIDER_NOT_SUPPORTED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
        ),
    },
)
async def webhook_address(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> WebhookAddressAnswer:
    request.user.require(venue_id)
    return WebhookAddressAnswer(await _address(context, venue_id, provider))


@put(
    f"{PATH}/{{provider:str}}/webhook",
    operation_id="setWebhookSecret",
    summary="Say what the provider signs with",
    description="For a webhook that was set up at the provider by hand. The secret before it counts on, so "
    "that one can replace the other without losing a delivery.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            WebhookAddressAnswer,
            "Kept.",
            Example(summary="kept", value={"success": True, "data": _ADDRESS}),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "PROVIDER_NOT_SUPPORTED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def set_webhook_secret(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: Annotated[WebhookSecretBody, body_of(a_secret={"venueId": _VENUE, "secret": _SHOWN})],
) -> WebhookAddressAnswer:
    request.user.require(data.venue_id)
    connector = context.catalog.connector(provider)
    async with context.sessions.begin() as session:
        await integrations.get_integration(session, data.venue_id, provider)
        row = await endpoints.find(session, data.venue_id, provider, lock=True)
        if connector.webhooks is None or row is None:
            raise NotSupportedError(f"{connector.title} has no webhook address for each connection")
        await endpoints.set_secret(context, session, row, connector.webhooks, Secret(data.secret))
        audit.record(session, actor, "webhook.secret_set", venue_id=data.venue_id, provider=provider)
    return WebhookAddressAnswer(await _address(context, data.venue_id, provider))


async def _address(context: Context, venue_id: UUID, provider: str) -> WebhookAddress:
    connector = context.catalog.connector(provider)
    if connector.webhooks is None:
        raise NotSupportedError(f"{connector.title} sends no webhooks here")
    async with context.sessions() as session:
        await integrations.get_integration(session, venue_id, provider)
        row = await endpoints.find(session, venue_id, provider)
    if connector.webhooks.address == "provider":
        known = bool(endpoints.shared_secrets(context.settings, connector))
        return WebhookAddress(endpoints.url_of(context.settings, provider), True, False, known, None, None)
    if row is None:
        raise IntegrationNotFoundError(f"`{provider}` isn't connected at this venue")
    token = await context.vault.open(row.encrypted_token, endpoints.place(row, "encrypted_token"))
    alone = all(each.type == "secret_url" for each in connector.webhooks.signatures)
    return WebhookAddress(
        endpoints.url_of(context.settings, provider, token.reveal()),
        False,
        row.subscription_id is not None,
        alone or row.encrypted_secrets is not None,
        row.checked_at,
        row.last_error,
    )


HANDLERS = (
    receive,
    receive_own,
    probe,
    probe_own,
    look,
    look_own,
    list_events,
    retry_event,
    replay_events,
    webhook_address,
    set_webhook_secret,
)
