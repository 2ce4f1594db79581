"""Stored credentials: opened, refreshed once however many ask, and what becomes of a dead grant."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from engine.auth import Grant
from engine.errors import AuthenticationError, UnavailableError
from engine.ports import Credentials, Secret
from server.catalog import Catalog, load_catalog
from server.credentials import StoredCredentials, TokenRefreshError, place, seal_grant
from server.db.engine import create_engine, session_factory
from server.db.models import IntegrationConfig, IntegrationStatus, OAuthToken, VenueApiKey
from server.errors import CredentialsNotFoundError, VaultError
from server.renewal import Renewals
from server.settings import Settings, read_settings
from server.vault import LocalKeyring, Vault

VENUE = UUID("11111111-1111-4111-8111-111111111111")
NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
SOON = NOW + timedelta(minutes=4)  # within the five minutes of the manifest
LATER = NOW + timedelta(days=30)
KEYS = Vault(LocalKeyring({"test": b"0" * 32}))

Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_engine(database_url, pool_size=12)
    made = session_factory(engine)
    yield made
    async with made.begin() as session:
        for table in (OAuthToken, VenueApiKey, IntegrationConfig):
            await session.execute(delete(table))
    await engine.dispose()


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_settings(
        {
            "HUB_ENV": "test",
            "JWT_SECRET": "x" * 32,
            "ENCRYPTION_KEY": "0" * 32,
            "SQUARE_CLIENT_ID": "the-app",
            "SQUARE_CLIENT_SECRET": "the-secret",
        }
    )


@pytest.fixture(scope="module")
def catalog(settings: Settings) -> Catalog:
    return load_catalog(settings.connectors_dir, settings.templates_dir, settings.platform)


class TokenServer:
    """The provider's token endpoint: counts what it is asked, and never takes a refresh token twice."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Answers | None = None
        self.spent: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        sent = orjson.loads(request.content)
        self.asked.append(sent)
        if self.answer is not None:
            return self.answer(request)
        if sent["refresh_token"] in self.spent:
            return httpx.Response(400, json={"error": "invalid_grant"})
        self.spent.add(sent["refresh_token"])
        number = len(self.asked)
        return httpx.Response(
            200,
            json={
                "access_token": f"access-{number}",
                "refresh_token": f"refresh-{number}",
                "token_type": "bearer",
                "expires_at": "2026-02-14T12:00:00Z",
                "merchant_id": "M1",
            },
        )


@pytest.fixture
def provider() -> TokenServer:
    return TokenServer()


@pytest.fixture
async def build(
    sessions: async_sessionmaker[AsyncSession], settings: Settings, catalog: Catalog, provider: TokenServer
) -> AsyncIterator[Callable[..., StoredCredentials]]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:

        def make(name: str = "square", now: datetime = NOW) -> StoredCredentials:
            renewals = Renewals(sessions, KEYS, catalog, settings, http, now=lambda: now)
            return StoredCredentials(sessions, KEYS, catalog, renewals, VENUE, name, now=lambda: now)

        yield make


async def store_grant(
    sessions: async_sessionmaker[AsyncSession],
    expires_at: datetime | None,
    refresh_token: str | None = "refresh-0",
) -> None:
    async with sessions.begin() as session:
        session.add(
            IntegrationConfig(
                venue_id=VENUE,
                integration_type="square",
                environment="sandbox",
                status=IntegrationStatus.CONNECTED,
                connection={"location_ids": ["L1"]},
            )
        )
        token = OAuthToken(id=uuid4(), venue_id=VENUE, integration_type="square", environment="sandbox")
        grant = Grant(
            Secret("access-0"), Secret(refresh_token) if refresh_token else None, expires_at, ("ITEMS_READ",)
        )
        await seal_grant(token, grant, KEYS)
        session.add(token)


async def token_row(sessions: async_sessionmaker[AsyncSession]) -> OAuthToken:
    async with sessions() as session:
        return (await session.scalars(select(OAuthToken))).one()


async def integration_row(sessions: async_sessionmaker[AsyncSession]) -> IntegrationConfig:
    async with sessions() as session:
        return (await session.scalars(select(IntegrationConfig))).one()


def revealed(credentials: Credentials) -> dict[str, str]:
    return {name: value.reveal() for name, value in credentials.values.items()}


Sessions = async_sessionmaker[AsyncSession]
Build = Callable[..., StoredCredentials]


async def test_a_token_with_time_left_is_used_as_it_is(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, LATER)
    opened = await build().current()
    assert revealed(opened) == {"access_token": "access-0", "refresh_token": "refresh-0"}
    assert (opened.connection, opened.environment, opened.expires_at) == (
        {"location_ids": ["L1"]},
        "sandbox",
        LATER,
    )
    assert provider.asked == []


async def test_a_token_about_to_end_is_renewed_and_saved_first(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, SOON)
    opened = await build().current()
    assert revealed(opened) == {"access_token": "access-1", "refresh_token": "refresh-1"}
    [asked] = provider.asked
    assert asked == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-0",
        "client_id": "the-app",
        "client_secret": "the-secret",
    }
    row = await token_row(sessions)
    kept = await KEYS.open(row.encrypted_access_token, place(row, "encrypted_access_token"))
    assert kept.reveal() == "access-1"
    assert (row.refresh_count, row.refresh_failed_count, row.last_refreshed_at) == (1, 0, NOW)
    assert row.expires_at == datetime(2026, 2, 14, 12, tzinfo=UTC)
    integration = await integration_row(sessions)
    assert integration.connection == {"location_ids": ["L1"], "merchant_id": "M1"}


async def test_ten_workers_at_once_refresh_once(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, SOON)
    opened = await asyncio.gather(*(build().current() for _ in range(10)))
    assert len(provider.asked) == 1
    assert {credentials.values["access_token"].reveal() for credentials in opened} == {"access-1"}


async def test_ten_workers_refused_at_once_refresh_once(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, LATER)
    workers = [build() for _ in range(10)]
    refused = await asyncio.gather(*(worker.current() for worker in workers))
    renewed = await asyncio.gather(
        *(worker.refresh(old) for worker, old in zip(workers, refused, strict=True))
    )
    assert len(provider.asked) == 1
    assert {credentials.values["access_token"].reveal() for credentials in renewed} == {"access-1"}
    assert revealed(await workers[0].current())["access_token"] == "access-1"


async def test_a_dead_grant_is_an_error_of_the_integration(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, SOON)
    provider.answer = lambda _: httpx.Response(400, json={"error": "invalid_grant"})
    with pytest.raises(TokenRefreshError) as refused:
        await build().current()
    assert (refused.value.code, refused.value.retryable) == ("TOKEN_REFRESH_FAILED", False)
    assert refused.value.provider_code == "invalid_grant"
    row, integration = await token_row(sessions), await integration_row(sessions)
    assert (row.refresh_failed_count, row.refresh_count) == (1, 0)
    assert integration.status == IntegrationStatus.ERROR
    assert "connect again" in (integration.last_error or "")
    assert "refresh-0" not in f"{refused.value}{integration.last_error}"


async def test_an_outage_passes_while_the_old_token_lives(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, SOON)
    provider.answer = lambda _: httpx.Response(502, html="<h1>Bad gateway</h1>")
    assert revealed(await build().current())["access_token"] == "access-0"
    with pytest.raises(UnavailableError):
        await build(now=SOON).current()
    assert (await integration_row(sessions)).status == IntegrationStatus.CONNECTED


async def test_a_token_without_a_refresh_token(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, LATER, refresh_token=None)
    source = build()
    refused = await source.current()
    with pytest.raises(TokenRefreshError):
        await source.refresh(refused)
    assert provider.asked == []
    assert (await integration_row(sessions)).status == IntegrationStatus.ERROR


async def test_a_token_that_never_ends_is_not_renewed(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, None)
    assert revealed(await build().current())["access_token"] == "access-0"
    assert provider.asked == []


async def test_a_refresh_token_that_is_not_replaced_is_kept(
    sessions: Sessions, build: Build, provider: TokenServer
) -> None:
    await store_grant(sessions, SOON)
    provider.answer = lambda _: httpx.Response(
        200, json={"access_token": "access-1", "expires_at": "2026-02-14T12:00:00Z"}
    )
    assert revealed(await build().current()) == {"access_token": "access-1", "refresh_token": "refresh-0"}


async def test_a_key_is_opened_and_a_refused_one_is_marked(sessions: Sessions, build: Build) -> None:
    key = VenueApiKey(id=uuid4(), venue_id=VENUE, integration_type="stripe", environment="production")
    key.encrypted_api_key = await KEYS.seal('{"apiKey":"sk_test_1"}', place(key, "encrypted_api_key"))
    async with sessions.begin() as session:
        session.add(
            IntegrationConfig(venue_id=VENUE, integration_type="stripe", status=IntegrationStatus.CONNECTED)
        )
        session.add(key)
    source = build("stripe")
    opened = await source.current()
    assert revealed(opened) == {"apiKey": "sk_test_1"}
    with pytest.raises(AuthenticationError):
        await source.refresh(opened)
    async with sessions() as session:
        row = (await session.scalars(select(VenueApiKey))).one()
    assert (row.is_valid, row.validation_error) == (False, "refused by the provider")

    sealed = await KEYS.seal('{"apiKey":"sk_test_2"}', place(row, "encrypted_api_key"))
    async with sessions.begin() as session:
        await session.execute(update(VenueApiKey).values(encrypted_api_key=sealed))
    assert revealed(await source.refresh(opened)) == {"apiKey": "sk_test_2"}


async def test_a_ciphertext_moved_to_another_venue_does_not_open(sessions: Sessions, build: Build) -> None:
    await store_grant(sessions, LATER)
    other = OAuthToken(id=uuid4(), venue_id=UUID(int=9), integration_type="square", environment="sandbox")
    sealed = await KEYS.seal("stolen", place(other, "encrypted_access_token"))
    async with sessions.begin() as session:
        await session.execute(update(OAuthToken).values(encrypted_access_token=sealed))
    with pytest.raises(VaultError):
        await build().current()


async def test_what_was_never_connected_has_no_credentials(build: Build) -> None:
    with pytest.raises(CredentialsNotFoundError):
        await build().current()
