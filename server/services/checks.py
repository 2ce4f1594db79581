"""Ask providers whether connections still work: those that weren't heard from for a while, or didn't answer.

A sync that ran is as good as a question, so an integration that syncs every few minutes is never asked. Who
is due is asked in the order of who was heard from longest ago, a few at a time and no more in one turn than
fit into it, within the limits of each account like any other call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from sqlalchemy import text

from engine.errors import HubError, ProviderError, RateLimitedError, UnavailableError
from server.errors import CredentialsNotFoundError
from server.metering import metered
from server.services import breaker, quotas
from server.services.conditions import SLOW_MS

if TYPE_CHECKING:
    from server.worker.context import WorkerContext

log = structlog.get_logger(__name__)

ASKED_AT_ONCE = 20
ASKED_IN_A_TURN = 1000
TURN_SECONDS = 50.0
ANSWER_SECONDS = 10.0
AGAIN_SECONDS = 50.0  # after which one that doesn't answer is asked again

_DUE = text("""
    SELECT config.venue_id, config.integration_type
    FROM integration_configs AS config
    LEFT JOIN integration_health AS known USING (venue_id, integration_type)
    WHERE config.status = 'connected' AND (
        coalesce(greatest(known.checked_at, config.answered_at, config.connected_at), 'epoch')
            < now() - CAST(:every AS float) * interval '1 second'
        OR (
            (config.circuit_opened_at IS NOT NULL OR known.check_failures > 0 OR known.response_ms > :slow)
            AND coalesce(known.checked_at, 'epoch') < now() - CAST(:again AS float) * interval '1 second'
        )
    )
    ORDER BY greatest(known.checked_at, config.answered_at) NULLS FIRST
    LIMIT :limit
""")
# Once it has been asked, and not before: whoever is cut off has asked nobody whose turn then is over.
_ASKED = text("""
    INSERT INTO integration_health (venue_id, integration_type, checked_at)
    SELECT venue_id, integration_type, now() FROM integration_configs
    WHERE venue_id = :venue_id AND integration_type = :provider
    ON CONFLICT (venue_id, integration_type) DO UPDATE SET checked_at = now()
""")
_ANSWERED = text("""
    UPDATE integration_health SET check_failures = 0, check_error = NULL, response_ms = :took
    WHERE venue_id = :venue_id AND integration_type = :provider
""")
_FAILED = text("""
    UPDATE integration_health SET check_failures = check_failures + 1, check_error = :code
    WHERE venue_id = :venue_id AND integration_type = :provider
""")
_TURN = text("SELECT pg_try_advisory_xact_lock(hashtextextended('health checks', 0))")


async def ask_due(context: WorkerContext) -> int:
    """Make the check call of integrations whose turn it is; returns how many were asked to the end."""
    every = context.settings.health_check_seconds
    if not every:
        return 0
    async with context.sessions.begin() as turn:
        if not await turn.scalar(_TURN):  # another process is at it, until it ends or is lost
            return 0
        given = {"every": every, "again": AGAIN_SECONDS, "slow": SLOW_MS, "limit": ASKED_IN_A_TURN}
        due = (await turn.execute(_DUE, given)).all()
        turns = asyncio.Semaphore(ASKED_AT_ONCE)

        async def asked(venue_id: UUID, provider: str) -> None:
            async with turns:
                try:
                    await ask(context, venue_id, provider)
                except Exception as error:  # unforeseen: whoever comes after it has a turn, too
                    log.error("health.check_crashed", provider=provider, error=type(error).__name__)
                    await _end_turn(context, {"venue_id": venue_id, "provider": provider})
                    raise

        asking = [asyncio.create_task(asked(row.venue_id, row.integration_type)) for row in due]
        try:
            if asking:
                await asyncio.wait(asking, timeout=TURN_SECONDS)
        finally:
            for task in asking:  # the turn of those who are late comes again
                task.cancel()
            ended = await asyncio.gather(*asking, return_exceptions=True)
    return sum(each is None for each in ended)


async def ask(context: WorkerContext, venue_id: UUID, provider: str) -> None:
    """Make one integration's check call and write down what came of it. Raises when a store is away."""
    place = {"venue_id": venue_id, "provider": provider}
    try:
        connector = context.catalog.connector(provider)
        client = context.client(
            connector,
            context.credentials(venue_id, provider),
            limiter=context.limits.lane(critical=False),
            clock=context.clock,
            budget=f"venue {venue_id}",
        )
        async with metered(context.sessions, venue_id, provider), asyncio.timeout(ANSWER_SECONDS):
            await client.check()
    except RateLimitedError:  # it is there, and says when to come back
        await _end_turn(context, place)
        return
    except (ProviderError, CredentialsNotFoundError, TimeoutError) as error:
        code = error.code if isinstance(error, HubError) else UnavailableError.code
        log.info("health.check_failed", venue_id=str(venue_id), provider=provider, error=code)
        await _end_turn(context, place, failed=code)
        return
    except HubError as error:  # nothing that the provider could do anything about
        log.info("health.not_checked", venue_id=str(venue_id), provider=provider, error=error.code)
        await _end_turn(context, place)
        return
    took = None if client.answered_in is None else round(1000 * client.answered_in)
    async with context.sessions.begin() as session:
        await session.execute(_ASKED, place)
        await session.execute(_ANSWERED, {**place, "took": took})
        await quotas.write(session, venue_id, provider, client.quota)
        await breaker.let_one_through(session, venue_id, provider)


async def _end_turn(context: WorkerContext, place: Mapping[str, Any], *, failed: str | None = None) -> None:
    """Write down that an integration was asked, and with what code it `failed`."""
    async with context.sessions.begin() as session:
        await session.execute(_ASKED, place)
        if failed is not None:
            await session.execute(_FAILED, {**place, "code": failed})
