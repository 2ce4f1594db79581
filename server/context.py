"""What one process opens once and shares: settings, stores, the vault, the catalog, the HTTP client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from engine.client import ProviderClient
from engine.manifest import Connector
from engine.ports import CredentialSource
from engine.transport import open_client
from server.cancelling import open_redis
from server.catalog import Catalog, load_catalog
from server.credentials import StoredCredentials
from server.db.engine import create_engine, session_factory
from server.db.reads import Reads
from server.keys import open_keys
from server.metering import MeteredTransport
from server.renewal import Renewals
from server.settings import Settings, SettingsError
from server.telemetry import traces
from server.telemetry.calls import watch_calls
from server.telemetry.counting import Flush, counting
from server.vault import Vault

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a service needs besides a session."""

    settings: Settings
    catalog: Catalog
    vault: Vault
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    platform: AsyncEngine  # the platform's database; the same engine when it is the same database
    redis: Redis
    http: httpx.AsyncClient
    renewals: Renewals
    flush: Flush  # brings what is counted for metrics to Redis
    reads: Reads  # for what is asked for most: connections of its own, made when they are needed

    def client(self, connector: Connector, credentials: CredentialSource, **options: Any) -> ProviderClient:
        """Return a client for one account, whose calls are told of; `options` are ProviderClient's."""
        watch = watch_calls(connector.name)
        return ProviderClient(connector, credentials, http=self.http, on_call=watch, **options)

    def credentials(self, venue_id: UUID, provider: str) -> StoredCredentials:
        """Return the credentials of one integration, to open and refresh."""
        return StoredCredentials(self.sessions, self.vault, self.catalog, self.renewals, venue_id, provider)


@asynccontextmanager
async def open_context(
    settings: Settings, *, application_name: str = "integration-hub", connections: int = 15
) -> AsyncIterator[Context]:
    """Open all of it, and close it at the end. Stores are connected to when they are first used.

    `connections` is how many each database gets at most. Raises SettingsError without store addresses,
    DocumentError for a manifest or template that is wrong.
    """
    if settings.database_url is None or settings.redis_url is None:
        raise SettingsError(["DATABASE_URL and REDIS_URL must be set"])
    for remark in settings.remarks:
        log.warning("settings.without_effect", remark=remark)
    if settings.tracing:
        traces.configure_tracing(application_name)
    catalog = load_catalog(
        settings.connectors_dir, settings.templates_dir, settings.platform, settings.prices
    )
    for provider in catalog.prices.providers.keys() - catalog.connectors.keys():
        log.warning("prices.without_connector", provider=provider)
    async with AsyncExitStack() as stack:
        pool: dict[str, Any] = {
            "application_name": application_name,
            "pool_size": connections,
            "max_overflow": 0,
            **({"statement_cache_size": 0} if settings.database_pooler else {}),
        }
        if settings.tracing:
            stack.push_async_callback(asyncio.to_thread, traces.flush)
        engine = create_engine(settings.database_url, **pool)
        stack.push_async_callback(engine.dispose)
        platform = engine
        if settings.platform_database_url not in (None, settings.database_url):
            platform = create_engine(str(settings.platform_database_url), **pool)
            stack.push_async_callback(platform.dispose)
        redis = open_redis(settings.redis_url, socket_connect_timeout=2, socket_timeout=5)
        stack.push_async_callback(redis.aclose)
        flush = await stack.enter_async_context(counting(redis))
        http = await stack.enter_async_context(
            open_client(origin_overrides=settings.origin_overrides, wrap=MeteredTransport)
        )
        reads = await stack.enter_async_context(
            Reads(settings.database_url, application_name=application_name, pooler=settings.database_pooler)
        )
        sessions, vault = session_factory(engine), Vault(open_keys(settings))
        at_once = max(1, connections // 2)
        renewals = Renewals(sessions, vault, catalog, settings, http, at_once)
        stack.push_async_callback(renewals.close)
        yield Context(
            settings, catalog, vault, engine, sessions, platform, redis, http, renewals, flush, reads
        )
