"""Which grants need renewing without anybody using them, and renewing one because a person asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import AuthenticationError, ProviderError
from engine.manifest import OAuth
from server.catalog import Catalog
from server.context import Context
from server.credentials import LONGEST_JITTER, due_at, oauth_method, read_rows
from server.db.models import IntegrationConfig, IntegrationStatus, OAuthToken
from server.errors import CredentialsNotFoundError, InvalidRequestError
from server.services import audit, integrations, recovery
from server.services.audit import Actor

AT_ONCE = 100  # of each provider; the rest follow with the next turn
NEAR_ITS_END = timedelta(days=14)  # of a refresh token: then a renewal may put it off, or a person is told
PUT_OFF_EVERY = timedelta(days=1)
_LONG = 2 * 14 * 86_400  # seconds
_HALF_A_SECOND = text("interval '500 milliseconds'")
# Whoever waits for something else doesn't lose the grant meanwhile.
_HELD = (IntegrationStatus.CONNECTED, IntegrationStatus.ERROR, IntegrationStatus.SUSPENDED)


@dataclass(frozen=True, slots=True)
class Due:
    """A grant to renew: before its access token ends, or only `to_keep` it."""

    venue_id: UUID
    provider: str
    to_keep: bool


async def due(session: AsyncSession, catalog: Catalog, *, now: datetime | None = None) -> Sequence[Due]:
    """Return the grants to renew now, for each provider those first whose access tokens end first.

    Left out are those that a provider said it renews no more, and those that failed a moment ago.
    """
    now = now or datetime.now(UTC)
    found: list[Due] = []
    for connector in catalog.connectors.values():
        if (method := oauth_method(connector)) is not None:
            found += [each async for each in _due_of(session, connector.name, method[1], now)]
    return found


async def _due_of(session: AsyncSession, provider: str, oauth: OAuth, now: datetime) -> AsyncIterator[Due]:
    token, integration = OAuthToken, IntegrationConfig
    failing = and_(integration.status == IntegrationStatus.ERROR, token.refresh_failed_count > 0)
    ends = and_(
        or_(integration.status == IntegrationStatus.CONNECTED, failing),
        token.expires_at <= now + oauth.refresh_before_expiry + LONGEST_JITTER,
    )
    idle = and_(integration.status.in_(_HELD), _is_idle(oauth, now))
    rows = await session.execute(
        select(token, func.coalesce(ends, False), func.coalesce(idle, False))
        .join(
            integration,
            and_(
                integration.venue_id == token.venue_id,
                integration.integration_type == token.integration_type,
            ),
        )
        .where(
            token.integration_type == provider,
            token.encrypted_refresh_token.is_not(None),
            token.grant_ended_at.is_(None),
            or_(token.refresh_next_at.is_(None), token.refresh_next_at <= now),
            or_(ends, idle),
        )
        .order_by(token.expires_at)
        .limit(AT_ONCE)
    )
    for row, ending, unused in rows:
        at = due_at(oauth, row) if ending else None
        if at is not None and at <= now:
            yield Due(row.venue_id, provider, to_keep=False)
        elif unused:
            yield Due(row.venue_id, provider, to_keep=True)


def _is_idle(oauth: OAuth, now: datetime) -> ColumnElement[bool]:
    """Say whether a grant is renewed only to keep it: the manifest says so, or its end is near."""
    token = OAuthToken
    near = and_(
        token.refresh_expires_at <= now + NEAR_ITS_END,
        # One that lives for less is near its end in the last half of that.
        token.refresh_expires_at <= now + func.coalesce(token.refresh_expires_in, _LONG) * _HALF_A_SECOND,
        token.granted_at <= now - PUT_OFF_EVERY,
    )
    return near if oauth.keep_alive is None else or_(near, token.granted_at <= now - oauth.keep_alive)


async def renew_due(context: Context, due: Due) -> None:
    """Renew one of them; raises as `StoredCredentials` does."""
    credentials = context.credentials(due.venue_id, due.provider)
    await (credentials.renew() if due.to_keep else credentials.current())


async def renew_by_hand(context: Context, actor: Actor, *, venue_id: UUID, provider: str) -> datetime | None:
    """Renew an integration's token now, whatever was said before; returns when the new one ends.

    Raises IntegrationNotFoundError, CredentialsNotFoundError, InvalidRequestError when there is nothing to
    renew it with, TokenRefreshError when the venue has to connect again, RenewalFailedError for later.
    """
    title = context.catalog.connector(provider).title
    async with context.sessions() as session:
        await integrations.get_integration(session, venue_id, provider)
        _, token, key = await read_rows(session, venue_id, provider)
    if token is None and key is None:
        raise CredentialsNotFoundError(f"this {title} integration has no credentials: connect it")
    if token is None or token.encrypted_refresh_token is None:
        reason = "it is connected with a key" if token is None else "it never ends"
        raise InvalidRequestError(f"there is nothing to renew at {title}: {reason}")
    try:
        renewed = await context.credentials(venue_id, provider).renew(forced=True)
    except ProviderError as error:
        await _record(context, actor, "token.renewal_failed", venue_id, provider, {"reason": error.message})
        raise
    await _record(context, actor, "token.renewed", venue_id, provider, {})
    return renewed.expires_at


async def reconnect(context: Context, actor: Actor, *, venue_id: UUID, provider: str) -> None:
    """Take an integration that failed up again with the credentials it has, renewed if they can be.

    Raises what `renew_by_hand` raises; ConnectionTestError, which says to connect again, when the provider
    refuses credentials that can't be renewed; other ProviderErrors when it can't be asked just now.
    """
    title = context.catalog.connector(provider).title
    async with context.sessions() as session:
        await integrations.get_integration(session, venue_id, provider)
        _, token, _ = await read_rows(session, venue_id, provider)
    if token is not None and token.encrypted_refresh_token is not None:
        await renew_by_hand(context, actor, venue_id=venue_id, provider=provider)
    try:
        await recovery.try_connection(context, venue_id, provider)
    except AuthenticationError as error:
        raise integrations.ConnectionTestError(
            f"{title} doesn't accept the stored credentials any more: connect again", status=error.status
        ) from error
    async with context.sessions.begin() as session:
        integration = await integrations.own_integration(session, venue_id, provider)
        before = audit.picture(integration)
        if integration.status in (IntegrationStatus.ERROR, IntegrationStatus.CONNECTED):
            integration.status = IntegrationStatus.CONNECTED
            integration.failure_count, integration.last_error, integration.last_error_at = 0, None, None
        audit.record(
            session,
            actor,
            "integration.reconnected",
            venue_id=venue_id,
            provider=provider,
            before=before,
            after=audit.picture(integration),
        )


async def _record(
    context: Context, actor: Actor, action: str, venue_id: UUID, provider: str, details: Mapping[str, str]
) -> None:
    async with context.sessions.begin() as session:
        audit.record(session, actor, action, venue_id=venue_id, provider=provider, details=details)
