"""What a worker or scheduler process opens once and every operation uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import timedelta

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.clock import SystemClock
from engine.ports import Clock
from server import cancelling, context
from server.db.reads import Reads
from server.limits import SharedLimits
from server.services import breaker
from server.settings import Settings

LEDGER_CONNECTIONS = 2


@dataclass(frozen=True, slots=True)
class WorkerContext(context.Context):
    """What every process shares, and the limits on calls that all processes keep together.

    `ledger` has connections of its own for what is asked of the ledger at every operation.
    """

    limits: SharedLimits
    clock: Clock
    ledger: Reads

    @property
    def lease(self) -> timedelta:
        """How long an operation stays with a worker that doesn't answer."""
        return timedelta(seconds=self.settings.lease_seconds)

    @property
    def circuit(self) -> breaker.Rule:
        """When an integration's operations wait for its provider."""
        settings = self.settings
        return breaker.Rule(settings.circuit_failures, timedelta(seconds=settings.circuit_seconds))


@asynccontextmanager
async def open_worker_context(
    settings: Settings, *, application_name: str, connections: int
) -> AsyncIterator[WorkerContext]:
    """Open everything and close it at the end, as `server.context.open_context` does, which see."""
    async with (
        context.open_context(settings, application_name=application_name, connections=connections) as shared,
        open_redis(settings.redis_url or "") as redis,
        Reads(
            str(settings.database_url),
            application_name=application_name,
            connections=LEDGER_CONNECTIONS,
            pooler=settings.database_pooler,
            by_index=True,
        ) as ledger,
    ):
        values = {field.name: getattr(shared, field.name) for field in fields(shared)}
        yield WorkerContext(
            **{**values, "redis": redis}, limits=SharedLimits(redis), clock=SystemClock(), ledger=ledger
        )


def open_redis(url: str) -> Redis:
    """Open a pool of Redis connections, lazily. A call fails soon rather than late: the database steps in."""
    return cancelling.open_redis(
        url,
        decode_responses=True,
        socket_connect_timeout=2,
        socket_timeout=3,  # longer than any blocking call
        retry=Retry(NoBackoff(), 1),  # for a connection that Redis closed while it was idle
    )
