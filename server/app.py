"""The API's application: the only place that wires things together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar, Request, Router
from litestar.openapi.spec import Components, Contact, License, SecurityScheme, Server, Tag
from litestar.serialization import decode_json, encode_json
from sqlalchemy.exc import SQLAlchemyError

from engine.published_keys import PublishedKeys
from server.api import (
    admin,
    audit,
    conflicts,
    costs,
    dead_letters,
    events,
    failures,
    healing,
    health,
    integrations,
    mappings,
    oauth,
    plans,
    privacy,
    schemas,
    subscribers,
    syncs,
    templates,
    tokens,
    vault,
    webhooks,
)
from server.api.bounds import Bounds
from server.api.checking import check_request, send_methods
from server.api.dependencies import DEPENDENCIES
from server.api.described import ABOUT
from server.api.errors import answer_error, send_request_id
from server.api.guards import PUBLIC, Authentication
from server.api.limits import RateLimits, RequestCounts, send_standing
from server.api.observation import Observation, bind_provider
from server.api.openapi import Description
from server.api.reference import PAGE_HEADERS, JsonPlugin, ReferencePlugin, YamlPlugin
from server.catalog import store_templates
from server.context import Context, open_context
from server.db.reads import Reads
from server.intake import TRANSACTIONS, Intake
from server.services.denials import Denials
from server.services.endpoints import Addresses
from server.settings import Settings
from server.telemetry import configure_logging
from server.telemetry.states import Readings

log = structlog.get_logger(__name__)

HANDLERS = (
    *integrations.HANDLERS,
    *oauth.HANDLERS,
    *tokens.HANDLERS,
    *syncs.HANDLERS,
    *failures.HANDLERS,
    *conflicts.HANDLERS,
    *plans.HANDLERS,
    *dead_letters.HANDLERS,
    *mappings.HANDLERS,
    *templates.HANDLERS,
    *healing.HANDLERS,
    *health.HANDLERS,
    *admin.HANDLERS,
    *audit.HANDLERS,
    *costs.HANDLERS,
    *privacy.HANDLERS,
    *vault.HANDLERS,
    *webhooks.HANDLERS,
    *subscribers.HANDLERS,
)
_PAGES = {**PUBLIC, "any_query": True}
API_VERSION = "1.0.0"  # of the interface: a breaking change gets a path of its own
DATABASE_SECONDS = 3.0  # to wait for the database at the start, before serving without it
RETRY_SECONDS = 1.0
MOST_BODY_BYTES = 1024 * 1024


def create_app(settings: Settings) -> Litestar:
    """Return the API. Stores are opened when it starts, and closed when it stops."""
    configure_logging(settings.log_level)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with (
            open_context(
                settings, application_name="integration-hub api", connections=settings.api_connections
            ) as context,
            Reads(
                str(settings.database_url),
                application_name="integration-hub api",
                connections=TRANSACTIONS,  # of its own: what arrives waits behind no other request
                pooler=settings.database_pooler,
                by_index=True,
            ) as store,
            Intake(store, context.redis, depth=settings.queue_depth) as intake,
        ):
            app.state.context, app.state.intake, app.state.addresses = context, intake, Addresses()
            app.state.published_keys = PublishedKeys(context.http)
            app.state.stopping = asyncio.Event()
            app.state.denials = Denials()
            app.state.readings = Readings(context.sessions, context.redis, context.flush)
            app.state.request_counts = RequestCounts(context.redis, settings)
            writing = asyncio.create_task(app.state.denials.keep_writing(context.sessions))
            storing = asyncio.create_task(_store_templates(context))
            try:
                await asyncio.wait({storing}, timeout=DATABASE_SECONDS)
                if storing.done():
                    storing.result()
                yield
            finally:
                storing.cancel()
                writing.cancel()
                await asyncio.gather(storing, writing, return_exceptions=True)

    app = _application(
        lifespan=[lifespan],
        middleware=[
            Bounds(settings.request_seconds),
            RateLimits(settings),
            Authentication(settings),
        ],
    )
    app.asgi_handler = Observation(app.asgi_handler)
    return app


async def _store_templates(context: Context) -> None:
    """Store the packs' templates as soon as the database takes them; `/ready` says what is wrong."""
    while True:
        try:
            async with context.sessions.begin() as session:
                await store_templates(session, context.catalog)
            return
        except (SQLAlchemyError, OSError) as error:
            await log.awarning("templates.not_stored", error=type(error).__name__)
        await asyncio.sleep(RETRY_SECONDS)


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the API; needs no settings and no store."""
    document: dict[str, Any] = decode_json(encode_json(_application().openapi_schema.to_schema()))
    return document


def _application(**options: Any) -> Litestar:
    return Litestar(
        route_handlers=list(HANDLERS),
        before_request=_begin,
        before_send=[send_request_id, send_standing, send_methods],
        exception_handlers={Exception: answer_error},
        dependencies=dict(DEPENDENCIES),
        type_decoders=[(schemas.is_secret, schemas.read_secret)],
        plugins=[schemas.SecretPlugin()],
        request_max_body_size=MOST_BODY_BYTES,
        openapi_config=_openapi(),
        logging_config=None,
        **options,
    )


async def _begin(request: Request[Any, Any, Any]) -> None:
    bind_provider(request)
    await check_request(request)


def _openapi() -> Description:
    return Description(
        handlers=HANDLERS,
        sent=events.SENT,
        title="Integration Hub",
        version=API_VERSION,
        description=ABOUT,
        contact=Contact(name="Whoever runs this hub"),
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        servers=[Server(url="/", description="The hub that serves this description")],
        tags=[
            Tag("Integrations", "Connect providers and look at what is connected."),
            Tag("OAuth", "Where providers send browsers back to."),
            Tag("Syncs", "Start, follow and stop syncs."),
            Tag("Mappings", "Which of a venue's fields are which of the provider's."),
            Tag("Webhooks", "What providers send, and what became of it."),
            Tag("Events", "Who is told of what happens here, and what became of telling them."),
            Tag("Health", "How integrations and the service itself are doing."),
            Tag("Administration", "What administrators of the platform see and do across venues."),
            Tag("Audit and privacy", "Who did what; a venue's data as a file, and erasing it."),
        ],
        components=Components(
            security_schemes={
                "token": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    bearer_format="JWT",
                    description="A JSON Web Token of the platform's, signed as this hub is told to expect.",
                )
            }
        ),
        render_plugins=[ReferencePlugin(), JsonPlugin(), YamlPlugin()],
        openapi_router=Router(
            "/schema", route_handlers=[], opt=_PAGES, include_in_schema=False, response_headers=PAGE_HEADERS
        ),
    )
