"""Credentials as the database keeps them: opened for use, and renewed when they are about to end.

When that is, is said here; how it is done once for all processes, in `server.renewal`.
"""

import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from engine import auth
from engine.errors import AuthenticationError, ProviderError
from engine.manifest import AuthMethod, Connector, OAuth
from engine.ports import Credentials, Secret
from server import vault
from server.catalog import Catalog
from server.db.models import IntegrationConfig, OAuthToken, VenueApiKey
from server.errors import CredentialsNotFoundError, NotSupportedError
from server.settings import Settings
from server.vault import Vault

log = structlog.get_logger(__name__)

LONGEST_JITTER = timedelta(minutes=1)
PAUSE = timedelta(seconds=10)  # of one run, after a renewal that can wait came to nothing
LONGEST_LIFE = 2**31 - 1  # seconds, as the column holds them


class TokenRefreshError(AuthenticationError):
    """The grant is over: the venue has to connect again."""

    code = "TOKEN_REFRESH_FAILED"


class Renewer(Protocol):
    """Renews grants; `server.renewal.Renewals` does."""

    async def renew(
        self, venue: UUID, provider: str, seen: Secret, *, ended: bool = False, forced: bool = False
    ) -> Credentials:
        """Return credentials with another access token than `seen`: a newer one that is there, or a new one.

        `ended` says that `seen` can't be used any more, whatever the clock says; `forced` asks a provider
        that failed a moment ago, or said that the grant is over. Raises TokenRefreshError when the grant is
        over, and another ProviderError when it is to be tried later.
        """


def oauth_method(connector: Connector) -> tuple[AuthMethod, OAuth] | None:
    """Return the connector's OAuth method, if it has one."""
    return next(((method, method.oauth) for method in connector.auth if method.oauth is not None), None)


def client_app(settings: Settings, connector: Connector, environment: str) -> tuple[str, Secret]:
    """Return the client id and secret registered with the provider; raises NotSupportedError without them."""
    app = settings.client_app(connector.name, environment)
    if app is None:
        name = connector.name.upper().replace("-", "_")
        raise NotSupportedError(
            f"no application is registered with {connector.title}: set {name}_CLIENT_ID and _CLIENT_SECRET"
        )
    return app


def place(row: OAuthToken | VenueApiKey, column: str) -> vault.Context:
    """Return where a sealed column of a row lives, for the vault; a new row needs its id first."""
    return vault.Context(
        row.__tablename__, column, row.id, row.venue_id, row.integration_type, row.environment
    )


async def seal_grant(
    token: OAuthToken, grant: auth.Grant, keys: Vault, *, now: datetime | None = None
) -> None:
    """Put a grant into its row: whatever was wrong with the one before is over.

    A provider that sends no new refresh token keeps the old one valid.
    """
    now = now or datetime.now(UTC)
    token.encrypted_access_token = await keys.seal(grant.access_token, place(token, "encrypted_access_token"))
    if grant.refresh_token is not None:
        token.encrypted_refresh_token = await keys.seal(
            grant.refresh_token, place(token, "encrypted_refresh_token")
        )
    life = (grant.expires_at - now).total_seconds() if grant.expires_at is not None else None
    token.expires_at, token.expires_in = grant.expires_at, None if life is None else _seconds(life)
    if grant.refresh_expires_at is not None:
        before = token.refresh_expires_in if token.refresh_expires_at is not None else None
        lives = _seconds((grant.refresh_expires_at - now).total_seconds())
        token.refresh_expires_at, token.refresh_expires_in = grant.refresh_expires_at, max(before or 0, lives)
    if grant.scopes:
        token.scopes = list(grant.scopes)
    token.granted_at = now
    token.refresh_failed_count = 0
    token.last_refreshed_at = token.grant_ended_at = token.refresh_started_at = token.refresh_next_at = None


def _seconds(life: float) -> int:
    return min(max(0, round(life)), LONGEST_LIFE)


def due_at(oauth: OAuth, token: OAuthToken) -> datetime | None:
    """Return when a token is to be renewed; None when it doesn't end, or there is nothing to renew it with.

    That is before its end by what the manifest says and a little more, which differs from one integration to
    the next and is the same in all processes. A token that was renewed isn't renewed again in the first half
    of its life, however short that is.
    """
    if token.expires_at is None or token.encrypted_refresh_token is None:
        return None
    early = oauth.refresh_before_expiry
    due: datetime = token.expires_at - early - _jitter(early, token)
    if token.last_refreshed_at is not None and token.expires_in is not None:
        life = timedelta(seconds=token.expires_in)
        if life < 2 * early:
            due = max(due, token.last_refreshed_at + life / 2)
    return due


def _jitter(early: timedelta, token: OAuthToken) -> timedelta:
    share = zlib.crc32(f"{token.venue_id} {token.integration_type}".encode()) / 2**32
    return share * min(LONGEST_JITTER, early / 5)


async def read_rows(
    session: AsyncSession, venue: UUID, provider: str, *, lock: bool = False
) -> tuple[IntegrationConfig, OAuthToken | None, VenueApiKey | None]:
    """Return an integration, and its token or key as they are now; raises CredentialsNotFoundError.

    With `lock` nobody else gets the token's row before this transaction ends. Only that row is locked, and
    before the integration's everywhere: nobody who reads or changes the integration waits for a provider, and
    no two transactions wait for each other.
    """
    mine = {"venue_id": venue, "integration_type": provider}
    fresh = {"populate_existing": True}
    tokens = select(OAuthToken).filter_by(**mine)
    token = await session.scalar(tokens.with_for_update() if lock else tokens, execution_options=fresh)
    integration = await session.scalar(select(IntegrationConfig).filter_by(**mine), execution_options=fresh)
    if integration is None:
        raise CredentialsNotFoundError(f"`{provider}` isn't connected at this venue")
    if token is not None:
        return integration, token, None
    key = await session.scalar(
        select(VenueApiKey).filter_by(**mine, environment=integration.environment), execution_options=fresh
    )
    return integration, None, key


async def open_token(
    integration: IntegrationConfig, token: OAuthToken, connector: Connector, keys: Vault
) -> Credentials:
    """Open both tokens; raises VaultError."""
    values = {
        "access_token": await keys.open(token.encrypted_access_token, place(token, "encrypted_access_token"))
    }
    if token.encrypted_refresh_token is not None:
        values["refresh_token"] = await keys.open(
            token.encrypted_refresh_token, place(token, "encrypted_refresh_token")
        )
    found = oauth_method(connector)
    return Credentials(
        values,
        integration.connection,
        integration.environment,
        token.expires_at,
        found[0].name if found else None,
    )


async def open_key(integration: IntegrationConfig, key: VenueApiKey | None, keys: Vault) -> Credentials:
    """Open the credential fields; raises CredentialsNotFoundError without any, VaultError."""
    if key is None:
        raise CredentialsNotFoundError(
            f"this `{integration.integration_type}` integration has no credentials: connect it"
        )
    sealed = await keys.open(key.encrypted_api_key, place(key, "encrypted_api_key"))
    values = msgspec.json.decode(sealed.reveal(), type=dict[str, str])
    return Credentials(
        {name: Secret(value) for name, value in values.items()},
        integration.connection,
        integration.environment,
        method=key.key_name,
    )


class StoredCredentials:
    """The `CredentialSource` of one integration, for one run."""

    __slots__ = (
        "_again_at",
        "_catalog",
        "_now",
        "_opened",
        "_provider",
        "_renewer",
        "_sessions",
        "_vault",
        "_venue",
    )

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        vault: Vault,
        catalog: Catalog,
        renewer: Renewer,
        venue: UUID,
        provider: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sessions = sessions
        self._vault = vault
        self._catalog = catalog
        self._renewer = renewer
        self._venue = venue
        self._provider = provider
        self._now = now
        self._opened: Credentials | None = None
        self._again_at: datetime | None = None  # when to look into the database again; None: no need

    async def stored(self, session: AsyncSession) -> Credentials:
        """Return the credentials as they are, about to expire or not; nobody renews them until its end."""
        return (await self._read(session, lock=True))[0]

    async def current(self) -> Credentials:
        # Opened once per run: whoever replaces them makes the provider answer 401, and `refresh` reads again.
        if self._opened is not None and (self._again_at is None or self._now() < self._again_at):
            return self._opened
        async with self._sessions() as session:
            opened, token = await self._read(session)
        if token is None or not self._is_due(token):
            return self._keep(opened, token)
        assert token.expires_at is not None  # or it would not be due
        if token.expires_at > self._now() and token.refresh_next_at and token.refresh_next_at > self._now():
            return self._wait_with(opened, token, token.refresh_next_at)
        try:
            return await self._renewed(opened)
        except TokenRefreshError:
            raise
        except ProviderError:
            # Refreshing early leaves time: while the old token lives, an outage there may pass.
            if token.expires_at <= self._now():
                raise
            await log.awarning("token.refresh_postponed", provider=self._provider, venue_id=str(self._venue))
            return self._wait_with(opened, token, self._now() + PAUSE)

    async def refresh(self, refused: Credentials) -> Credentials:
        if "access_token" in refused.values:
            return await self._renewed(refused, ended=True)
        async with self._sessions.begin() as session:
            integration, token, key = await read_rows(session, self._venue, self._provider)
            if token is not None:
                connector = self._catalog.connector(self._provider)
                return self._keep(await open_token(integration, token, connector, self._vault), token)
            opened = await open_key(integration, key, self._vault)
            if opened.values != refused.values:
                return self._keep(opened)
            if key is not None:
                key.is_valid, key.validation_error = False, "refused by the provider"
        raise AuthenticationError("the provider refuses the stored credentials: connect again", status=401)

    async def renew(self, *, forced: bool = False) -> Credentials:
        """Renew the grant now, due or not; `forced` even if that failed a moment ago. Raises as `Renewer`."""
        async with self._sessions() as session:
            opened, token = await self._read(session)
        if token is None:
            raise CredentialsNotFoundError(f"`{self._provider}` isn't connected by authorization")
        return await self._renewed(opened, forced=forced)

    async def _renewed(self, old: Credentials, *, ended: bool = False, forced: bool = False) -> Credentials:
        seen = old.values["access_token"]
        renewed = await self._renewer.renew(self._venue, self._provider, seen, ended=ended, forced=forced)
        self._opened, self._again_at = renewed, self._early(renewed.expires_at)
        return renewed

    async def _read(
        self, session: AsyncSession, *, lock: bool = False
    ) -> tuple[Credentials, OAuthToken | None]:
        integration, token, key = await read_rows(session, self._venue, self._provider, lock=lock)
        if token is None:
            return await open_key(integration, key, self._vault), None
        connector = self._catalog.connector(self._provider)
        return await open_token(integration, token, connector, self._vault), token

    def _is_due(self, token: OAuthToken) -> bool:
        found = oauth_method(self._catalog.connector(self._provider))
        due = due_at(found[1], token) if found else None
        return due is not None and due <= self._now()

    def _early(self, expires_at: datetime | None) -> datetime | None:
        found = oauth_method(self._catalog.connector(self._provider))
        if expires_at is None or found is None:
            return None
        return expires_at - found[1].refresh_before_expiry - LONGEST_JITTER

    def _keep(self, credentials: Credentials, token: OAuthToken | None = None) -> Credentials:
        self._opened = credentials
        self._again_at = self._early(token.expires_at) if token is not None else None
        return credentials

    def _wait_with(self, credentials: Credentials, token: OAuthToken, until: datetime) -> Credentials:
        """Use what there is, and look again later: at its end at the latest."""
        self._opened = credentials
        self._again_at = until if token.expires_at is None else min(until, token.expires_at)
        return credentials
