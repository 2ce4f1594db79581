"""Open a client for one account in a line, for scripts and the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from engine.auth import Authenticator
from engine.client import ProviderClient
from engine.filling import kept_of_credentials
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

    What the manifest keeps of the credentials and finds by lookups after connecting is found first, unless
    `credentials.connection` has it. `origin_overrides` maps a provider's origin to another, for a simulated
    one. Raises ProviderError.
    """
    async with open_client(origin_overrides=origin_overrides or {}) as http:
        method = Authenticator.choose(connector, credentials).method
        kept = kept_of_credentials(method, credentials.values)
        known = replace(credentials, connection={**kept, **credentials.connection})
        client = ProviderClient(connector, StaticCredentials(known), http=http)
        await client.learn()
        yield client
