"""Open a client for one account in a line, for scripts and the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from engine.client import ProviderClient
from engine.manifest import Connector
from engine.memory import StaticCredentials
from engine.ports import Credentials
from engine.transport import open_client


@asynccontextmanager
async def connect(
    connector: Connector,
    credentials: Credentials,
    *,
    origin_overrides: Mapping[str, str] | None = None,
) -> AsyncIterator[ProviderClient]:
    """Yield a client for these credentials, closed at the end of the block.

    The manifest's lookups after connecting are made first, unless `credentials.connection` has values.
    `origin_overrides` maps a provider's origin to another, for a simulated one. Raises ProviderError.
    """
    async with open_client(origin_overrides=origin_overrides or {}) as http:
        source = StaticCredentials(credentials)
        client = ProviderClient(connector, source, http=http)
        if connector.after_connecting and not credentials.connection:
            source.credentials = replace(credentials, connection=await client.learn())
        yield client
