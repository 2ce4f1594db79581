"""Look up again what a provider lists of an account, such as its locations: there may be new ones."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import delete, select

from engine.client import ProviderClient
from engine.errors import AuthenticationError, ProviderError, RateLimitedError
from server.db.models import Direction, IntegrationConfig, SyncWatermark
from server.services import operations
from server.services.operations import Claim

if TYPE_CHECKING:
    from server.worker.context import WorkerContext

log = structlog.get_logger(__name__)


def is_due(integration: IntegrationConfig, now: datetime) -> bool:
    """Say whether this is an integration's first sync of a day (UTC), and it wasn't connected today."""
    known = [at for at in (integration.connected_at, integration.last_sync_at) if at is not None]
    return not known or max(known).astimezone(UTC).date() < now.astimezone(UTC).date()


async def look_up_again(context: WorkerContext, claim: Claim, client: ProviderClient) -> None:
    """Save what the provider lists by now, if that is something else than at connect.

    The next pulls read everything then, for the records of a new location may be older than the watermark. A
    lookup that doesn't work is only told: what is known goes on. Raises LeaseLostError, AuthenticationError
    and RateLimitedError.
    """
    try:
        found = await client.learn(again=True)
    except (AuthenticationError, RateLimitedError):
        raise
    except ProviderError as error:
        await log.awarning("integration.lookup_failed", provider=claim.provider, error=error.code)
        return
    if not found:
        return
    mine = {"venue_id": claim.venue_id, "integration_type": claim.provider}
    async with context.sessions.begin() as session:
        await operations.confirm(session, claim)
        rows = await session.scalars(select(IntegrationConfig).filter_by(**mine).with_for_update())
        integration = rows.one()
        integration.connection = {**integration.connection, **found}
        await session.execute(delete(SyncWatermark).filter_by(**mine, direction=Direction.PULL))
    await log.ainfo("integration.looked_up", provider=claim.provider, values=sorted(found))
