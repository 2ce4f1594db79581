"""What one process opens once and shares: settings, stores, the vault, the catalog, clients and limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import httpx
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from engine.clock import SystemClock
from engine.ports import Clock, RateLimiter
from engine.rate_limits import LocalRateLimiter
from engine.transport import open_client
from server.catalog import Catalog, load_catalog
from server.credentials import StoredCredentials
from server.db.engine import create_engine, session_factory
from server.settings import Settings, SettingsError
from server.vault import Vault


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a service, a run or a job needs besides a session."""

    settings: Settings
    catalog: Catalog
    vault: Vault
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    platform: AsyncEngine  # the platform's database; the same engine when it is the same database
    redis: Redis
    http: httpx.AsyncClient
    limiter: RateLimiter  # how fast this process calls each account
    clock: Clock

    @property
    def lease(self) -> timedelta:
        """How long an operation stays with a worker that doesn't answer."""
        return timedelta(seconds=self.settings.lease_seconds)

    def credentials(self, venue_id: UUID, provider: str) -> StoredCredentials:
        """Return the credentials of one integration, to open and refresh."""
        return StoredCredentials(
            self.sessions, self.vault, self.catalog, self.settings, self.http, venue_id, provider
        )


@asynccontextmanager
async def open_context(
    settings: Settings, *, application_name: str = "integration-hub", connections: int = 10
) -> AsyncIterator[Context]:
    """Open all of it, and close it at the end. Stores are connected to when they are first used.

    `connections` to each database are kept open; a few more are opened while all of them are in use.
    Raises SettingsError without store addresses, DocumentError for a manifest or template that is wrong.
    """
    if settings.database_url is None or settings.redis_url is None:
        raise SettingsError(["DATABASE_URL and REDIS_URL must be set"])
    catalog = load_catalog(settings.connectors_dir, settings.templates_dir, settings.platform)
    async with AsyncExitStack() as stack:

        def open_engine(url: str) -> AsyncEngine:
            engine = create_engine(url, application_name=application_name, pool_size=connections)
            stack.push_async_callback(engine.dispose)
            return engine

        engine = open_engine(settings.database_url)
        apart = settings.platform_database_url
        redis = open_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        yield Context(
            settings=settings,
            catalog=catalog,
            vault=Vault(settings.keyring()),
            engine=engine,
            sessions=session_factory(engine),
            platform=engine if apart in (None, settings.database_url) else open_engine(str(apart)),
            redis=redis,
            http=await stack.enter_async_context(open_client(origin_overrides=settings.origin_overrides)),
            limiter=LocalRateLimiter(),
            clock=SystemClock(),
        )


def open_redis(url: str) -> Redis:
    """Open a pool of Redis connections, lazily. A call fails soon rather than late: sweeps make up for it."""
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=2,
        socket_timeout=10,  # longer than any blocking call
        retry=Retry(NoBackoff(), 1),  # for a connection that Redis closed while it was idle
    )
    return client
