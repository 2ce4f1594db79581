"""What tests of renewed tokens share: a provider with an authorization server, integrations with a grant."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from engine.auth import Grant
from engine.ports import Secret
from server.credentials import seal_grant
from server.db.engine import session_factory
from server.db.models import IntegrationConfig, IntegrationStatus, OAuthToken
from server.vault import LocalKeyring, Vault
from tests.authorization_server import AuthorizationServer

LOGIN = "https://login.juniper.example"
VAULT_KEY = "test:" + base64.b64encode(bytes(range(32))).decode()
KEYS = Vault(LocalKeyring.parse(VAULT_KEY))

MANIFEST = f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example}}
auth:
  type: oauth2
  authorize_url: {LOGIN}/authorize
  token_url: {LOGIN}/token
  pkce: true
  client: header
  refresh_token_expires: {{in: refresh_token_expires_in}}
  refresh_before_expiry: 5 minutes
check: GET /me
resources:
  customer: {{id: id, fields: {{name: text}}}}
"""


def environment(
    database_url: str, redis_url: str, folder: Path, server: AuthorizationServer, manifest: str = MANIFEST
) -> dict[str, str]:
    """Return the settings of a hub that knows one provider, whose authorization server is `server`."""
    connectors = folder / "connectors"
    connectors.mkdir(parents=True, exist_ok=True)
    (connectors / "juniper.yaml").write_text(manifest, encoding="utf-8")
    return {
        "HUB_ENV": "test",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": "a secret of thirty-two bytes, or more",
        "HUB_VAULT_KEYS": VAULT_KEY,
        "HUB_CONNECTORS_DIR": str(connectors),
        "HUB_STATE": str(folder / "state"),
        "LOG_LEVEL": "error",
        "JUNIPER_CLIENT_ID": server.client_id,
        "JUNIPER_CLIENT_SECRET": server.client_secret,
        "HUB_ORIGIN_OVERRIDES": f"{LOGIN}={server.url}",
    }


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[None]:
    """Forget all integrations at the end."""
    yield
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE integration_configs, oauth_tokens, venue_api_keys"))


async def integrate(
    engine: AsyncEngine,
    server: AuthorizationServer,
    *,
    expires_in: timedelta = timedelta(minutes=-1),
    status: IntegrationStatus = IntegrationStatus.CONNECTED,
    provider: str = "juniper",
    **values: Any,
) -> tuple[UUID, Mapping[str, Any]]:
    """Connect a new venue as if it had come by; returns it, and what the authorization server granted.

    `expires_in` is from now; `values` are further ones of the token's row.
    """
    venue, given, now = uuid4(), server.grant(), datetime.now(UTC)
    grant = Grant(
        Secret(given["access_token"]),
        Secret(given["refresh_token"]),
        now + expires_in,
        (),
        refresh_expires_at=None,
    )
    async with session_factory(engine).begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=venue, integration_type=provider, environment="production", status=status
            )
        )
        token = OAuthToken(id=uuid4(), venue_id=venue, integration_type=provider, environment="production")
        await seal_grant(token, grant, KEYS)
        for name, value in values.items():
            setattr(token, name, value)
        session.add(token)
    return venue, given


async def row(engine: AsyncEngine, table: str, venue: UUID) -> Mapping[str, Any]:
    """Return a venue's one row of a table."""
    async with engine.connect() as connection:
        found = await connection.execute(
            text(f"SELECT * FROM {table} WHERE venue_id = :venue"), {"venue": venue}
        )
        return dict(found.mappings().one())


async def audited(engine: AsyncEngine, venue: UUID) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return who did what to a venue's integration, with details, in order."""
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT actor, action, details FROM audit_log WHERE venue_id = :venue ORDER BY id"),
            {"venue": venue},
        )
        return [(each.actor, each.action, each.details) for each in found]
