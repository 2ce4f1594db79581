"""What providers last said is left of an account's calls, kept for each integration."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from engine.client import Quota

_WRITE = text("""
    INSERT INTO integration_health (venue_id, integration_type, api_quota_remaining, api_quota_resets_at)
    VALUES (:venue_id, :provider, :remaining, :resets_at)
    ON CONFLICT (venue_id, integration_type) DO UPDATE SET
        api_quota_remaining = excluded.api_quota_remaining,
        api_quota_resets_at = excluded.api_quota_resets_at
""")


def newest(quotas: Iterable[Quota | None]) -> Quota | None:
    """Return what was said last."""
    return max(
        (quota for quota in quotas if quota is not None), key=lambda quota: quota.said_at, default=None
    )


async def write(session: AsyncSession, venue_id: UUID, provider: str, quota: Quota | None) -> None:
    """Keep what a provider said; None leaves what is known."""
    if quota is not None:
        await session.execute(
            _WRITE,
            {
                "venue_id": venue_id,
                "provider": provider,
                "remaining": quota.remaining,
                "resets_at": quota.resets_at,
            },
        )
