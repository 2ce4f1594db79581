"""Claim an operation as a worker does, for tests that go on from there."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from server.db.reads import Reads
from server.services import operations
from server.services.operations import LANES, Claim


async def claim(
    engine: AsyncEngine,
    operation_id: UUID | None = None,
    *,
    owner: str,
    lease: timedelta,
    lanes: Collection[str] = LANES,
) -> Claim | None:
    """Take one operation, or the most urgent one there is; None when it isn't to be had."""
    if operation_id is None:
        async with AsyncSession(engine) as session:
            wanted = [each.id for each in await operations.due(session, 20, lanes=lanes)]
    else:
        wanted = [operation_id]
    url = engine.url.render_as_string(hide_password=False)
    async with Reads(url, application_name="test", connections=1) as ledger:
        for each in wanted:
            try:
                claims = await operations.claim(ledger, [each], owner=owner, lease=lease, lanes=lanes)
            except asyncpg.UniqueViolationError:
                continue
            if claims:
                return claims[0]
    return None
