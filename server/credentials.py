"""Credentials as the database keeps them: opened for use, and refreshed once for all processes."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
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
from server.db.models import IntegrationConfig, IntegrationStatus, OAuthToken, VenueApiKey
from server.errors import CredentialsNotFoundError, NotSupportedError
from server.settings import Settings
from server.vault import Vault

log = structlog.get_logger(__name__)


class TokenRefreshError(AuthenticationError):
    """The provider refuses to renew the grant: the venue has to connect again."""

    code = "TOKEN_REFRESH_FAILED"


def oauth_method(connector: Connector) -> tuple[AuthMethod, OAuth] | None:
    """Return the connector's OAuth method, if it has one."""
    return next(((method, method.oauth) for method in connector.auth if method.oauth is not None), None)


def client_app(settings: Settings, connector: Connector) -> tuple[str, Secret]:
    """Return the client id and secret registered with the provider; raises NotSupportedError without them."""
    app = settings.client_app(connector.name)
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


async def seal_grant(token: OAuthToken, grant: auth.Grant, keys: Vault) -> None:
    """Put a grant into its row. A provider that sends no new refresh token keeps the old one valid."""
    token.encrypted_access_token = await keys.seal(grant.access_token, place(token, "encrypted_access_token"))
    if grant.refresh_token is not None:
        token.encrypted_refresh_token = await keys.seal(
            grant.refresh_token, place(token, "encrypted_refresh_token")
        )
    token.expires_at = grant.expires_at
    if grant.refresh_expires_at is not None:
        token.refresh_expires_at = grant.refresh_expires_at
    if grant.scopes:
        token.scopes = list(grant.scopes)


class StoredCredentials:
    """The `CredentialSource` of one integration.

    A refresh happens under a row lock, so however many workers notice an expired token at once, the provider
    is asked once, and the new tokens are committed before anybody uses them.
    """

    __slots__ = (
        "_catalog",
        "_http",
        "_now",
        "_opened",
        "_provider",
        "_sessions",
        "_settings",
        "_vault",
        "_venue",
    )

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        vault: Vault,
        catalog: Catalog,
        settings: Settings,
        http: httpx.AsyncClient,
        venue: UUID,
        provider: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sessions = sessions
        self._vault = vault
        self._catalog = catalog
        self._settings = settings
        self._http = http
        self._venue = venue
        self._provider = provider
        self._now = now
        self._opened: Credentials | None = None

    async def stored(self, session: AsyncSession) -> Credentials:
        """Return the credentials as they are, about to expire or not; nobody renews them until its end."""
        integration, token, key = await self._rows(session, lock=True)
        if token is None:
            return await self._open_key(integration, key)
        return await self._open_token(integration, token)

    async def current(self) -> Credentials:
        # Opened once per run: whoever replaces them makes the provider answer 401, and `refresh` reads again.
        if self._opened is not None and not self._is_due(self._opened.expires_at):
            return self._opened
        async with self._sessions() as session:
            integration, token, key = await self._rows(session)
            if token is None:
                return self._keep(await self._open_key(integration, key))
            opened = await self._open_token(integration, token)
        if not self._is_due(token.expires_at) or token.encrypted_refresh_token is None:
            return self._keep(opened)
        try:
            return await self._renew(lambda row, _: self._is_due(row.expires_at))
        except TokenRefreshError:
            raise
        except ProviderError:
            # Refreshing early leaves time: while the old token lives, an outage there may pass.
            if token.expires_at is not None and token.expires_at <= self._now():
                raise
            await log.awarning("token.refresh_postponed", provider=self._provider, venue_id=str(self._venue))
            return self._keep(opened)

    async def refresh(self, refused: Credentials) -> Credentials:
        access_token = refused.values.get("access_token")
        if access_token is not None:
            return await self._renew(
                lambda _, opened: opened.values["access_token"].reveal() == access_token.reveal()
            )
        async with self._sessions.begin() as session:
            integration, token, key = await self._rows(session)
            if token is not None:
                return self._keep(await self._open_token(integration, token))
            opened = await self._open_key(integration, key)
            if _revealed(opened.values) != _revealed(refused.values):
                return self._keep(opened)
            if key is not None:
                key.is_valid, key.validation_error = False, "refused by the provider"
        raise AuthenticationError("the provider refuses the stored credentials: connect again", status=401)

    async def _renew(self, needed: Callable[[OAuthToken, Credentials], bool]) -> Credentials:
        """Refresh the token if it is still `needed` once the lock is ours."""
        connector = self._catalog.connector(self._provider)
        found = oauth_method(connector)
        if found is None:
            raise AuthenticationError(
                "the provider refuses the stored credentials: connect again", status=401
            )
        async with self._sessions.begin() as session:
            integration, token, _ = await self._rows(session, lock=True)
            if token is None:
                raise CredentialsNotFoundError(
                    f"this {connector.title} integration has no credentials: connect it"
                )
            opened = await self._open_token(integration, token)
            if not needed(token, opened):
                return self._keep(opened)
            refresh_token = opened.values.get("refresh_token")
            try:
                if refresh_token is None:
                    raise AuthenticationError(
                        "the token ended and there is nothing to renew it with", status=401
                    )
                client_id, client_secret = client_app(self._settings, connector)
                grant = await auth.refresh(
                    connector,
                    found[0],
                    integration.environment,
                    http=self._http,
                    client_id=client_id,
                    client_secret=client_secret,
                    refresh_token=refresh_token,
                    values=integration.connection,
                )
            except AuthenticationError as error:
                # Nobody else can have renewed it meanwhile: they would need the lock we hold.
                refused: AuthenticationError = error
                token.refresh_failed_count += 1
                integration.status = IntegrationStatus.ERROR
                integration.last_error = f"{connector.title} no longer accepts this connection: connect again"
                integration.last_error_at = self._now()
            else:
                await seal_grant(token, grant, self._vault)
                token.refresh_count += 1
                token.refresh_failed_count = 0
                token.last_refreshed_at = token.updated_at = self._now()
                integration.connection = {**integration.connection, **grant.connection}
                renewed = await self._open_token(integration, token)
                await session.commit()
                await log.ainfo("token.refreshed", provider=self._provider, venue_id=str(self._venue))
                return self._keep(renewed)
        raise TokenRefreshError(
            f"{connector.title} refuses to renew the connection: connect again",
            status=refused.status,
            provider_code=refused.provider_code,
        ) from refused

    def _keep(self, credentials: Credentials) -> Credentials:
        self._opened = credentials
        return credentials

    def _is_due(self, expires_at: datetime | None) -> bool:
        found = oauth_method(self._catalog.connector(self._provider))
        early = found[1].refresh_before_expiry if found else timedelta(0)
        return expires_at is not None and expires_at - early <= self._now()

    async def _rows(
        self, session: AsyncSession, *, lock: bool = False
    ) -> tuple[IntegrationConfig, OAuthToken | None, VenueApiKey | None]:
        # Only the token's row is locked, and before the integration's everywhere: nobody who reads or changes
        # the integration waits for a provider, and no two transactions wait for each other.
        tokens = select(OAuthToken).filter_by(venue_id=self._venue, integration_type=self._provider)
        token = await session.scalar(tokens.with_for_update() if lock else tokens)
        integration = await session.scalar(
            select(IntegrationConfig).filter_by(venue_id=self._venue, integration_type=self._provider)
        )
        if integration is None:
            raise CredentialsNotFoundError(f"`{self._provider}` isn't connected at this venue")
        if token is not None:
            return integration, token, None
        key = await session.scalar(
            select(VenueApiKey).filter_by(
                venue_id=self._venue, integration_type=self._provider, environment=integration.environment
            )
        )
        return integration, None, key

    async def _open_token(self, integration: IntegrationConfig, token: OAuthToken) -> Credentials:
        values = {
            "access_token": await self._vault.open(
                token.encrypted_access_token, place(token, "encrypted_access_token")
            )
        }
        if token.encrypted_refresh_token is not None:
            values["refresh_token"] = await self._vault.open(
                token.encrypted_refresh_token, place(token, "encrypted_refresh_token")
            )
        found = oauth_method(self._catalog.connector(self._provider))
        return Credentials(
            values,
            integration.connection,
            integration.environment,
            token.expires_at,
            found[0].name if found else None,
        )

    async def _open_key(self, integration: IntegrationConfig, key: VenueApiKey | None) -> Credentials:
        if key is None:
            raise CredentialsNotFoundError(
                f"this `{self._provider}` integration has no credentials: connect it"
            )
        sealed = await self._vault.open(key.encrypted_api_key, place(key, "encrypted_api_key"))
        values = msgspec.json.decode(sealed.reveal(), type=dict[str, str])
        return Credentials(
            {name: Secret(value) for name, value in values.items()},
            integration.connection,
            integration.environment,
            method=key.key_name,
        )


def _revealed(values: Mapping[str, Secret]) -> dict[str, str]:
    return {name: value.reveal() for name, value in values.items()}
