"""Addresses that providers send webhooks to, their secrets, and the subscriptions behind them.

A connection whose connector's webhooks have an address of their own (`address: connection`) has a row with a
token nobody can guess. Where the manifest has a `subscription`, the hub makes the provider send there: it is
created after connecting, looked at each day, made anew when it is gone, and ended with the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import InvalidRequestError as RowGoneError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from engine.client import ProviderClient
from engine.deliveries import Delivery
from engine.errors import (
    ForbiddenAddressError,
    HubError,
    ProviderError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.manifest import Connector, Subscription, Webhooks
from engine.ports import Secret
from engine.published_keys import PublishedKeys
from engine.signatures import counting, key_address
from engine.webhooks import keeps_for
from server import vault
from server.context import Context
from server.db.models import IntegrationConfig, IntegrationStatus, WebhookEndpoint
from server.errors import NotSupportedError, StoreUnavailableError
from server.metering import metered
from server.services import audit
from server.services.audit import Actor
from server.settings import Settings

log = structlog.get_logger(__name__)

KEPT_UNPROVED_SECONDS = 1.0  # one without a secret: it is made just now, and the provider looks at it first
OPENED_WITHIN = 2.0  # seconds: providers that wait for an answer are told to come again
VISIT_SECONDS = 2.0
AGAIN_SECONDS = 1.0  # between two looks at an address of which a delivery wasn't proved
KEPT_SECONDS = 30.0  # how long a process keeps opened secrets: one that is replaced counts as long everywhere
MOST_KEPT = 10_000
CHECK_EVERY = timedelta(days=1)
LONGEST_WAIT = timedelta(hours=6)
AT_ONCE = 20  # of a provider, in a turn
PROVIDERS_AT_ONCE = 4  # each holds a connection while it is asked
TURN_SECONDS = 10.0  # after which nothing more is begun
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 bits
END_SECONDS = 10.0  # for a provider to end a subscription: what is stored here is erased in any case


@dataclass(frozen=True, slots=True)
class Address:
    """Whose address a token is, and what proves a delivery there: secrets by signature scheme."""

    id: UUID
    venue_id: UUID
    provider: str
    secrets: Mapping[str, Sequence[Secret]]


@dataclass(slots=True)
class _Kept:
    """What a token was when it was last opened, in monotonic seconds; `looked` is the last try."""

    address: Address | None
    opened: float
    looked: float
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lives(self, now: float) -> bool:
        proves = self.address is None or bool(self.address.secrets)
        return now - self.opened < (KEPT_SECONDS if proves else KEPT_UNPROVED_SECONDS)


@dataclass(slots=True)
class Addresses:
    """The addresses a process has opened lately. Unknown tokens are kept, too: guessing costs no query."""

    _kept: dict[str, _Kept] = field(default_factory=dict)

    async def find(self, context: Context, provider: str, token: str) -> Address | None:
        """Return whose address a token is, None when it is nobody's here.

        Raises StoreUnavailableError when that can't be found out in time.
        """
        hashed, now = token_hash(token), time.monotonic()
        kept = self._kept.get(hashed)
        if kept is None or not kept.lives(now):
            async with _in_time():
                found = await _open(context, hashed)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            kept = self._kept[hashed] = _Kept(found, now, time.monotonic())
        return _of(provider, kept.address)

    def forget(self, token: str) -> None:
        """Open an address anew when it is next asked for."""
        self._kept.pop(token_hash(token), None)

    async def find_again(self, context: Context, provider: str, token: str) -> Address | None:
        """Return an address as it is now, for a delivery that what is kept of it doesn't prove.

        Its secret may have been replaced by another process. Whoever knows an address can ask for this, so it
        is looked at once in AGAIN_SECONDS, for all who ask meanwhile. Raises as `find` does.
        """
        hashed, asked = token_hash(token), time.monotonic()
        kept = self._kept.get(hashed)
        if kept is None or kept.address is None:  # no token that was nobody's becomes somebody's
            return await self.find(context, provider, token)
        async with _in_time(), kept.looking:
            if asked - kept.looked >= AGAIN_SECONDS:
                kept.looked = now = time.monotonic()
                kept.address = await _open(context, hashed)
                kept.opened = now
        return _of(provider, kept.address)


def _of(provider: str, address: Address | None) -> Address | None:
    return address if address is not None and address.provider == provider else None


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(OPENED_WITHIN):
            yield
    except TimeoutError as error:
        raise StoreUnavailableError("the address can't be looked up now: send it again") from error


async def _open(context: Context, hashed: str) -> Address | None:
    async with context.sessions() as session:
        row = await session.scalar(select(WebhookEndpoint).filter_by(token_hash=hashed))
    if row is None:
        return None
    token = await context.vault.open(row.encrypted_token, place(row, "encrypted_token"))
    known: dict[str, list[Secret]] = {
        name: [Secret(each) for each in values]
        for name, values in (await opened_secrets(context, row)).items()
    }
    connector = context.catalog.connectors.get(row.integration_type)
    webhooks = connector.webhooks if connector else None
    for scheme in webhooks.signatures if webhooks else ():
        if scheme.type == "secret_url":
            known[scheme.name] = [token]
        elif scheme.name not in known and (shared := context.settings.webhook_secrets(row.integration_type)):
            known[scheme.name] = shared
    return Address(row.id, row.venue_id, row.integration_type, known)


async def opened_secrets(context: Context, row: WebhookEndpoint) -> dict[str, list[str]]:
    """Return an endpoint's secrets by scheme, as they are kept."""
    if row.encrypted_secrets is None:
        return {}
    opened = await context.vault.open(row.encrypted_secrets, place(row, "encrypted_secrets"))
    return msgspec.json.decode(opened.reveal(), type=dict[str, list[str]])


def shared_secrets(settings: Settings, connector: Connector) -> Mapping[str, Sequence[Secret]]:
    """Return what proves a delivery at an address all connections share."""
    webhooks = connector.webhooks
    known = settings.webhook_secrets(connector.name)
    if webhooks is None or not known:
        return {}
    return {scheme.name: known for scheme in webhooks.signatures if scheme.type != "secret_url"}


async def published_keys(
    known: PublishedKeys,
    webhooks: Webhooks,
    delivery: Delivery,
    secrets: Mapping[str, Sequence[Secret]],
    *,
    again: bool = False,
) -> tuple[str, ...]:
    """Return the keys that the provider publishes for proving a delivery; none where it publishes none.

    Raises SignatureError for keys that aren't the provider's, and StoreUnavailableError when they can't be
    had now.
    """
    scheme = counting(webhooks.signatures, secrets)
    address = key_address(scheme, delivery) if scheme is not None else None
    if scheme is None or scheme.keys is None or address is None:
        return ()
    try:
        named = not isinstance(scheme.keys.url, str)
        return await known.at(address, scheme.keys.read, again=again, named=named)
    except UnavailableError as error:
        raise StoreUnavailableError(f"{error.message}: send it again") from error


async def visit(context: Context, url: str) -> None:
    """Call an address that a provider wants called; raises StoreUnavailableError when it doesn't answer."""
    try:
        async with asyncio.timeout(VISIT_SECONDS), context.http.stream("GET", url) as answer:
            well = answer.is_success
    except (httpx.HTTPError, httpx.InvalidURL, ForbiddenAddressError, OSError) as error:
        raise StoreUnavailableError("the provider's address doesn't answer: send it again") from error
    if not well:
        raise StoreUnavailableError("the provider's address refuses: send it again")


def token_hash(token: str) -> str:
    # A token has 256 random bits, so a plain hash can't be guessed back.
    return hashlib.sha256(token.encode()).hexdigest()


def _without_token(row: WebhookEndpoint, told: str) -> str:
    """Return what a provider said without the token of an address: some repeat what they were sent."""
    return _TOKEN.sub(lambda found: "***" if token_hash(found[0]) == row.token_hash else found[0], told)


def place(row: WebhookEndpoint, column: str) -> vault.Context:
    """Return where a sealed column of an endpoint lives, for the vault."""
    return vault.Context(
        row.__tablename__, column, row.id, row.venue_id, row.integration_type, row.environment
    )


def url_of(settings: Settings, provider: str, token: str | None = None) -> str:
    """Return the address a provider is given."""
    shared = f"{settings.api_url}/api/v1/integrations/webhooks/{provider}"
    return shared if token is None else f"{shared}/{token}"


async def establish(session: AsyncSession, context: Context, integration: IntegrationConfig) -> None:
    """Give a connection its address, in the caller's transaction; one that has it keeps it.

    Another account or environment has another address: what still comes to the old one isn't this one's.
    """
    connector = context.catalog.connectors.get(integration.integration_type)
    webhooks = connector.webhooks if connector else None
    if webhooks is None or webhooks.address != "connection":
        return
    mine = {"venue_id": integration.venue_id, "integration_type": integration.integration_type}
    row = await session.scalar(select(WebhookEndpoint).filter_by(**mine).with_for_update())
    if row is not None and row.environment == integration.environment:
        row.next_check_at = datetime.now(UTC)
        return
    if row is not None:
        await session.delete(row)
        await session.flush()
    token = secrets.token_urlsafe(32)
    row = WebhookEndpoint(
        **mine, id=uuid4(), environment=integration.environment, token_hash=token_hash(token)
    )
    row.encrypted_token = await context.vault.seal(token, place(row, "encrypted_token"))
    session.add(row)


async def find(
    session: AsyncSession, venue_id: UUID, provider: str, *, lock: bool = False
) -> WebhookEndpoint | None:
    """Return a connection's endpoint; with `lock` to change it, or what another does meanwhile is undone."""
    mine = select(WebhookEndpoint).filter_by(venue_id=venue_id, integration_type=provider)
    rows = await session.scalars(mine.with_for_update() if lock else mine)
    return rows.one_or_none()


async def set_secret(
    context: Context, session: AsyncSession, row: WebhookEndpoint, webhooks: Webhooks, secret: Secret
) -> None:
    """Keep a secret that a person was shown by the provider; the one before counts on beside it.

    Raises NotSupportedError where the connector's webhooks are proved by their address alone.
    """
    scheme = keeps_for(webhooks)
    if scheme is None:
        raise NotSupportedError("these webhooks have no secret but their address")
    await _keep_secret(context, row, scheme.name, secret.reveal())


async def keep_named(context: Context, provider: str, token: str, scheme: str, secret: Secret) -> bool:
    """Keep a secret that the provider names itself when it first calls an address; False when it isn't taken.

    It is taken while none is known there, and while the provider is asked for a subscription: the address
    alone, should it leak, doesn't make a stranger the one who signs.
    """
    async with context.sessions.begin() as session:
        wanted = select(WebhookEndpoint).filter_by(token_hash=token_hash(token), integration_type=provider)
        row = await session.scalar(wanted.with_for_update())
        if row is None:
            return False
        known = (await opened_secrets(context, row)).get(scheme, [])
        if secret.reveal() in known[:1]:
            return True
        asked = row.next_check_at is not None and row.next_check_at <= datetime.now(UTC)
        if known and not asked:
            return False
        await _keep_secret(context, row, scheme, secret.reveal())
        audit.record(session, Actor(provider), "webhook.secret_set", venue_id=row.venue_id, provider=provider)
    return True


async def _keep_secret(context: Context, row: WebhookEndpoint, scheme: str, secret: str) -> None:
    known = await opened_secrets(context, row)
    # Two at most: the provider signs with both while one replaces the other.
    known[scheme] = [secret, *(each for each in known.get(scheme, ()) if each != secret)][:2]
    row.encrypted_secrets = await context.vault.seal(
        msgspec.json.encode(known).decode(), place(row, "encrypted_secrets")
    )
    row.updated_at = datetime.now(UTC)


# --- subscriptions


_DUE = (
    select(WebhookEndpoint)
    .join(
        IntegrationConfig,
        (IntegrationConfig.venue_id == WebhookEndpoint.venue_id)
        & (IntegrationConfig.integration_type == WebhookEndpoint.integration_type),
    )
    .where(
        IntegrationConfig.status == IntegrationStatus.CONNECTED,
        WebhookEndpoint.next_check_at <= func.now(),
    )
)
_PROVIDERS_DUE = _DUE.with_only_columns(WebhookEndpoint.integration_type).distinct()
_NEXT_DUE = _DUE.with_only_columns(WebhookEndpoint.venue_id).order_by(WebhookEndpoint.next_check_at).limit(1)


async def tend(context: Context) -> int:
    """Create, look at and renew subscriptions that are due; returns how many were looked at.

    Providers are asked side by side: one that hangs keeps only its own waiting.
    """
    async with context.sessions() as session:
        providers = (await session.scalars(_PROVIDERS_DUE)).all()
    turns = asyncio.Semaphore(PROVIDERS_AT_ONCE)

    async def in_turn(provider: str) -> int:
        async with turns:
            return await _tend_some(context, provider)

    # To the end of each, whatever becomes of the others: a subscription that is made has to be stored.
    tended = await asyncio.gather(*map(in_turn, providers), return_exceptions=True)
    for each in tended:
        if isinstance(each, BaseException):
            raise each
    return sum(each for each in tended if isinstance(each, int))


async def _tend_some(context: Context, provider: str) -> int:
    """Look at what is due of one provider, as much as fits in a turn; returns how many.

    Each has one turn at a time, so two schedulers never make two of one.
    """
    began = time.monotonic()
    for tended in range(AT_ONCE):
        if time.monotonic() - began > TURN_SECONDS:
            return tended
        async with context.sessions() as session:
            venue_id = await session.scalar(_NEXT_DUE.where(WebhookEndpoint.integration_type == provider))
        if venue_id is None:
            return tended
        # Before anything is locked: a renewal waits for the token, which whoever disconnects holds meanwhile.
        with suppress(HubError):  # what is wrong is told when the provider is asked
            await context.credentials(venue_id, provider).current()
        async with (
            metered(context.sessions, venue_id, provider),
            context.sessions.begin() as session,
        ):
            # Not the row: while the provider is asked, it may name a secret that has to be written there.
            turn = func.hashtextextended(f"subscription {venue_id} {provider}", 0)
            mine = await session.scalar(select(func.pg_try_advisory_xact_lock(turn)))
            row = await session.scalar(
                select(WebhookEndpoint)
                .filter_by(venue_id=venue_id, integration_type=provider)
                .where(WebhookEndpoint.next_check_at <= func.now())
            )
            if not mine or row is None:
                return tended  # somebody else is at it: the next turn goes on
            try:
                await _tend(context, session, row)
                await session.flush()
            except (StaleDataError, RowGoneError):
                # The connection ended meanwhile, and its address with it.
                await session.rollback()
                return tended
    return AT_ONCE


async def _tend(context: Context, session: AsyncSession, row: WebhookEndpoint) -> None:
    connector = context.catalog.connectors.get(row.integration_type)
    subscription = connector.webhooks.subscription if connector and connector.webhooks else None
    if connector is None or connector.webhooks is None or subscription is None:
        row.next_check_at = None
        return
    now = datetime.now(UTC)
    if not context.settings.api_url.startswith("https://"):
        # No provider sends to an address that isn't public; the next connect or start tries again.
        row.last_error = "the hub has no public address: set API_URL to one that begins with https://"
        row.next_check_at = now + CHECK_EVERY
        return
    try:
        await _subscribe(context, session, row, connector, subscription)
    except HubError as error:
        row.failures += 1
        row.last_error = _without_token(row, error.message)
        wait: timedelta = min(timedelta(minutes=1) * 2 ** min(row.failures, 16), LONGEST_WAIT)
        row.next_check_at = now + wait
        log.warning(
            "webhooks.not_subscribed",
            venue_id=str(row.venue_id),
            provider=row.integration_type,
            error=error.code,
        )
        return
    row.failures, row.last_error, row.checked_at = 0, None, now
    row.next_check_at = now + min(subscription.renew_every or CHECK_EVERY, CHECK_EVERY)


async def _subscribe(
    context: Context,
    session: AsyncSession,
    row: WebhookEndpoint,
    connector: Connector,
    subscription: Subscription,
) -> None:
    """Bring a provider's subscription about, or see that it lives."""
    webhooks = connector.webhooks
    assert webhooks is not None
    client = client_of(context, connector, row.venue_id)
    token = await context.vault.open(row.encrypted_token, place(row, "encrypted_token"))
    scope: dict[str, Any] = {
        "url": url_of(context.settings, connector.name, token.reveal()),
        "events": list(webhooks.events),
        "key": f"{row.id}:{row.subscription_id or 'first'}",
    }
    if row.subscription_id is not None:
        known = {**scope, "subscription": row.subscription_id}
        if await _lives(client, subscription, known):
            every, made = subscription.renew_every, row.subscribed_at
            if every is None or made is None or made + every > datetime.now(UTC):
                return
            if subscription.renew is not None:
                await client.make(subscription.renew, known)
                row.subscribed_at = datetime.now(UTC)
                return
        row.subscription_id = None
    answer = await client.make(subscription.create, scope)
    made_id = subscription.id.evaluate(answer)
    if made_id is None:
        raise UnexpectedResponseError(f"{connector.title} named no subscription in its answer")
    row.subscription_id = str(made_id)[:255]
    row.subscribed_at = datetime.now(UTC)
    secret = subscription.secret.evaluate(answer) if subscription.secret else None
    scheme = keeps_for(webhooks)
    if isinstance(secret, str) and secret and scheme is not None:
        # As it is by now: a person may have set one meanwhile.
        await session.refresh(row, ["encrypted_secrets"], with_for_update=True)
        await _keep_secret(context, row, scheme.name, secret)
    log.info("webhooks.subscribed", venue_id=str(row.venue_id), provider=connector.name)


def client_of(context: Context, connector: Connector, venue_id: UUID) -> ProviderClient:
    """Return what calls a venue's account."""
    return context.client(connector, context.credentials(venue_id, connector.name))


async def _lives(client: ProviderClient, subscription: Subscription, scope: Mapping[str, Any]) -> bool:
    if subscription.check is None:
        return True
    try:
        answer = await client.make(subscription.check, scope)
    except ProviderError as error:
        if error.status in (404, 410):
            return False
        raise
    return subscription.alive is None or bool(subscription.alive.evaluate(answer))


async def end(context: Context, venue_id: UUID, provider: str) -> None:
    """End a connection's subscription, if the provider lets it; call it while credentials are there."""
    connector = context.catalog.connectors.get(provider)
    subscription = connector.webhooks.subscription if connector and connector.webhooks else None
    async with context.sessions() as session:
        row = await find(session, venue_id, provider)
    if connector is None or subscription is None or subscription.delete is None:
        return
    if row is None or row.subscription_id is None:
        return
    client = client_of(context, connector, venue_id)
    scope = {"subscription": row.subscription_id, "url": "", "events": []}
    try:
        async with metered(context.sessions, venue_id, provider), asyncio.timeout(END_SECONDS):
            await client.make(subscription.delete, scope)
    except (HubError, TimeoutError) as error:
        why = error.code if isinstance(error, HubError) else f"no answer within {END_SECONDS} seconds"
        log.warning("webhooks.not_unsubscribed", venue_id=str(venue_id), provider=provider, error=why)
