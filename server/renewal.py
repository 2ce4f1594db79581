"""Grants renewed: once for all who need it, and not lost between the provider's answer and the database.

In one process, all who need an integration's token wait for one renewal, which nobody's going away cuts off.
Between processes the token's row is locked while the provider is asked, and read again first: whoever comes
second finds the new token there. Before a refresh token that works once is sent, the row says so, and that is
committed: should the process end before the answer is stored, the next one knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NoReturn
from uuid import UUID

import httpx
import structlog
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from engine import auth
from engine.errors import (
    AuthenticationError,
    ProviderError,
    RateLimitedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.manifest import AuthMethod, Connector, OAuth
from engine.ports import Credentials, Secret
from server.catalog import Catalog
from server.credentials import (
    TokenRefreshError,
    client_app,
    oauth_method,
    open_token,
    read_rows,
    seal_grant,
)
from server.db.models import IntegrationConfig, IntegrationStatus, OAuthToken
from server.errors import CredentialsNotFoundError, KeysUnavailableError
from server.metering import metered
from server.services import audit
from server.services.audit import Actor
from server.settings import Settings
from server.telemetry import traces
from server.telemetry.metrics import TOKENS
from server.vault import Vault

log = structlog.get_logger(__name__)

CALL_SECONDS = 45.0  # for the provider's answer, tried again or not
LOCK_SECONDS = 20.0  # for another process that is at it
CLOSING_SECONDS = 20.0  # for what is under way when the process ends
SAVE_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)  # seconds between tries to store what a provider gave
FIRST_WAIT = timedelta(seconds=30)  # after a failure; it doubles with each
LONGEST_WAIT = timedelta(minutes=15)
TOLERATED = 3  # failures, before an integration whose token has ended is in error
HUB = Actor("hub")  # who does what happens by itself

_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :wait, true)")
_TOO_LONG = ("55P03", "57014")  # SQLSTATE: a lock that wasn't to be had in time, a statement cut off


class RenewalFailedError(UnavailableError):
    """The provider couldn't be asked, or couldn't answer; the grant may be as good as ever."""

    code: ClassVar[str] = "TOKEN_REFRESH_FAILED"


class RenewalBusyError(UnavailableError):
    """Another process is renewing this grant and takes long. Says nothing of the credentials."""

    code: ClassVar[str] = "STORE_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for: another access token than `seen`."""

    venue: UUID
    provider: str
    seen: Secret
    ended: bool  # the access token can't be used, whatever the clock says
    forced: bool  # a person asks, who may ask a provider that failed a moment ago


@dataclass(slots=True)
class _Claim:
    """A row that is ours until the transaction ends, and needs renewing."""

    connector: Connector
    method: AuthMethod
    oauth: OAuth
    integration: IntegrationConfig
    token: OAuthToken
    refresh_token: Secret
    cut_off: bool  # a renewal before this one was begun and never heard of


@dataclass(slots=True)
class Renewals:
    """Renews grants for one process. `at_once` is how many database connections they take at most."""

    sessions: async_sessionmaker[AsyncSession]
    vault: Vault
    catalog: Catalog
    settings: Settings
    http: httpx.AsyncClient
    at_once: int = 4
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _under_way: dict[tuple[UUID, str], asyncio.Task[Credentials]] = field(default_factory=dict)
    _turns: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    async def renew(
        self, venue: UUID, provider: str, seen: Secret, *, ended: bool = False, forced: bool = False
    ) -> Credentials:
        """Return credentials with another access token than `seen`: see `server.credentials.Renewer`.

        `forced` asks a provider that failed a moment ago, or said that the grant is over.

        Raises TokenRefreshError, RenewalFailedError, RenewalBusyError, CredentialsNotFoundError, and
        NotSupportedError when no application is registered with the provider.
        """
        wanted, key = _Wanted(venue, provider, seen, ended, forced), (venue, provider)
        while (joined := self._under_way.get(key)) is not None:
            try:
                renewed = await asyncio.shield(joined)
            except ProviderError:
                if not forced:
                    raise
                forced = False  # once more, for the person who asks
                continue
            if renewed.values.get("access_token") != seen:
                return renewed
        return await asyncio.shield(self._begin(key, wanted))

    async def close(self) -> None:
        """Let what is under way come to its end: an answer that isn't stored may be lost for good."""
        if self._under_way:
            await asyncio.wait(set(self._under_way.values()), timeout=CLOSING_SECONDS)

    def _begin(self, key: tuple[UUID, str], wanted: _Wanted) -> asyncio.Task[Credentials]:
        task = asyncio.create_task(self._renew(wanted))
        self._under_way[key] = task

        def forget(ended: asyncio.Task[Credentials]) -> None:
            del self._under_way[key]
            if not ended.cancelled():
                ended.exception()  # those who waited have it; there may be none left

        task.add_done_callback(forget)
        return task

    def _turn(self, name: str, number: int) -> asyncio.Semaphore:
        return self._turns.setdefault(name, asyncio.Semaphore(max(1, number)))

    async def _renew(self, wanted: _Wanted) -> Credentials:
        connector = self.catalog.connector(wanted.provider)
        found = oauth_method(connector)
        if found is None:
            raise AuthenticationError(
                "the provider refuses the stored credentials: connect again", status=401
            )
        # A provider that is slow to answer takes half of the turns at most.
        async with (
            self._turn(wanted.provider, self.at_once // 2),
            self._turn("", self.at_once),
            metered(self.sessions, wanted.venue, wanted.provider),
            self.sessions() as session,
        ):
            claim = await self._claim(session, wanted, connector, *found)
            if isinstance(claim, Credentials):
                return claim
            answer: auth.Grant | ProviderError
            try:
                with traces.span("renew token", kind="client", **_of(wanted)):
                    answer = await self._ask(claim)
            except ProviderError as error:
                answer = error
            return await self._settle(session, wanted, claim, answer)

    # -- before the provider is asked

    async def _claim(
        self, session: AsyncSession, wanted: _Wanted, connector: Connector, method: AuthMethod, oauth: OAuth
    ) -> _Claim | Credentials:
        """Lock the row, and mark it where a refresh token works once; or return newer credentials."""
        mine: datetime | None = None  # the mark of this renewal
        met: datetime | None = None  # another's
        cut_off = False
        while True:
            integration, token = await self._locked(session, wanted)
            opened = await open_token(integration, token, connector, self.vault)
            if opened.values["access_token"] != wanted.seen:
                return opened
            refresh_token = opened.values.get("refresh_token")
            if refresh_token is None:
                nothing = AuthenticationError(
                    "the token ended and there is nothing to renew it with", status=401
                )
                await self._end_grant(session, wanted, connector, token, nothing)
            if not wanted.forced:
                _refuse_to_ask(connector, token, self.now())
            mark = token.refresh_started_at
            client_app(self.settings, connector, integration.environment)  # without one nobody is asked
            if oauth.refresh_token == "keeps" or (mine is not None and mark == mine):  # noqa: S105 - a choice of the manifest
                return _Claim(connector, method, oauth, integration, token, refresh_token, cut_off)
            if mark is not None and mark != met:
                # Whoever set it may live, and wait for the lock as we did: behind them we find out.
                met = mark
                await session.rollback()
                continue
            cut_off = mark is not None
            mine = token.refresh_started_at = await session.scalar(select(func.clock_timestamp()))
            await session.commit()

    async def _locked(self, session: AsyncSession, wanted: _Wanted) -> tuple[IntegrationConfig, OAuthToken]:
        try:
            await session.execute(_LOCK_TIMEOUT, {"wait": str(round(LOCK_SECONDS * 1000))})
            integration, token, _ = await read_rows(session, wanted.venue, wanted.provider, lock=True)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) in _TOO_LONG:
                raise RenewalBusyError("this connection is being renewed elsewhere: try again") from None
            raise
        if token is None:
            raise CredentialsNotFoundError(f"`{wanted.provider}` isn't connected by authorization")
        return integration, token

    async def _ask(self, claim: _Claim) -> auth.Grant:
        client_id, client_secret = client_app(self.settings, claim.connector, claim.integration.environment)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await auth.refresh(
                    claim.connector,
                    claim.method,
                    claim.integration.environment,
                    http=self.http,
                    client_id=client_id,
                    client_secret=client_secret,
                    refresh_token=claim.refresh_token,
                    values=claim.integration.connection,
                )
        except TimeoutError:
            raise UnavailableError("the authorization server doesn't answer") from None

    # -- once it has answered

    async def _settle(
        self, session: AsyncSession, wanted: _Wanted, claim: _Claim, answer: auth.Grant | ProviderError
    ) -> Credentials:
        """Write down what the provider answered, however often that takes: nobody else has it.

        Returns the new credentials, or newer ones that somebody stored meanwhile.
        """
        granted = isinstance(answer, auth.Grant)
        for tried, wait in enumerate((*(SAVE_WAITS if granted else SAVE_WAITS[:2]), None)):
            try:
                if tried or not granted:  # the lock may have been lost with the connection that held it
                    claim.integration, claim.token = await self._locked(session, wanted)
                    if (newer := await self._newer(claim)) is not None:
                        return newer
                if isinstance(answer, ProviderError):
                    await self._note_failure(session, wanted, claim, answer)
                return await self._store(session, wanted, claim, answer)
            except (SQLAlchemyError, OSError, RenewalBusyError, KeysUnavailableError) as error:
                await log.awarning("token.not_stored", **_of(wanted), error=type(error).__name__)
                if wait is None:
                    raise
            await session.invalidate()
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def _store(
        self, session: AsyncSession, wanted: _Wanted, claim: _Claim, grant: auth.Grant
    ) -> Credentials:
        integration, token, now = claim.integration, claim.token, self.now()
        failing = token.refresh_failed_count >= TOLERATED or token.grant_ended_at is not None
        await seal_grant(token, grant, self.vault, now=now)
        token.refresh_count += 1
        token.last_refreshed_at = token.updated_at = now
        await session.refresh(integration, with_for_update=True)
        integration.connection = {**integration.connection, **grant.connection}
        if failing and integration.status == IntegrationStatus.ERROR:
            before = audit.picture(integration)
            integration.status, integration.last_error = IntegrationStatus.CONNECTED, None
            integration.updated_at = now
            _record(session, wanted, "token.recovered", before, integration)
        renewed = await open_token(integration, token, claim.connector, self.vault)
        await session.commit()
        TOKENS.add(wanted.provider, "renewed")
        await log.ainfo("token.refreshed", **_of(wanted))
        return renewed

    async def _note_failure(
        self, session: AsyncSession, wanted: _Wanted, claim: _Claim, error: ProviderError
    ) -> NoReturn:
        """Write down that it didn't work, and raise that."""
        ended_before = claim.token.grant_ended_at is not None
        if auth.ends_grant(error, refused=wanted.ended or ended_before):
            await self._end_grant(session, wanted, claim.connector, claim.token, error, cut_off=claim.cut_off)
        token, title, now = claim.token, claim.connector.title, self.now()
        token.refresh_failed_count += 1
        token.refresh_next_at = _next_try(token, error, now)
        if not isinstance(error, UnavailableError | UnexpectedResponseError):
            token.refresh_started_at = None  # it was refused, so nothing was used up
        over = wanted.ended or (token.expires_at is not None and token.expires_at <= now)
        if over and token.refresh_failed_count >= TOLERATED:
            told = (
                f"{title} couldn't renew the connection {token.refresh_failed_count} times "
                f"({error.message}). It is tried again by itself; if that goes on, connect again"
            )
            await self._set_error(session, wanted, told, "token.failing", {"reason": error.message})
        await session.commit()
        TOKENS.add(wanted.provider, "failed")
        await log.awarning(
            "token.refresh_failed",
            **_of(wanted),
            error=error.code,
            status=error.status,
            failures=token.refresh_failed_count,
        )
        raise RenewalFailedError(
            f"{title} can't renew the connection just now ({error.message}): "
            + ("try again" if ended_before else "it is tried again by itself"),
            status=error.status,
            provider_code=error.provider_code,
        ) from error

    async def _newer(self, claim: _Claim) -> Credentials | None:
        """Return what is stored, unless that is what this renewal began with."""
        opened = await open_token(claim.integration, claim.token, claim.connector, self.vault)
        return None if opened.values.get("refresh_token") == claim.refresh_token else opened

    async def _end_grant(
        self,
        session: AsyncSession,
        wanted: _Wanted,
        connector: Connector,
        token: OAuthToken,
        error: ProviderError,
        *,
        cut_off: bool = False,
    ) -> NoReturn:
        """Write down that only the venue can mend this, and raise it. Nobody asks again by themselves."""
        why = ""
        if cut_off and token.refresh_failed_count:
            why = " (the answer to an earlier renewal never came, and it may have used up the refresh token)"
        elif cut_off:
            why = " (the hub was stopped in the middle of an earlier renewal, and lost its answer)"
        told = f"{connector.title} no longer accepts this connection{why}: connect again"
        token.grant_ended_at = token.updated_at = self.now()
        token.refresh_failed_count += 1
        details = {"reason": error.provider_code, "answer_lost": cut_off}
        await self._set_error(session, wanted, told, "token.refused", details)
        await session.commit()
        TOKENS.add(wanted.provider, "refused")
        await log.awarning("token.refused", **_of(wanted), code=error.provider_code, answer_lost=cut_off)
        raise TokenRefreshError(
            f"{connector.title} refuses to renew the connection{why}: connect again",
            status=error.status,
            provider_code=error.provider_code,
        ) from error

    async def _set_error(
        self, session: AsyncSession, wanted: _Wanted, told: str, action: str, details: Mapping[str, Any]
    ) -> None:
        mine = {"venue_id": wanted.venue, "integration_type": wanted.provider}
        fresh = select(IntegrationConfig).filter_by(**mine).with_for_update()
        integration = await session.scalar(fresh, execution_options={"populate_existing": True})
        if integration is None or integration.status not in _WORKING:
            return
        before = audit.picture(integration)
        integration.status, integration.last_error = IntegrationStatus.ERROR, told
        integration.last_error_at = integration.updated_at = self.now()
        if before["status"] != IntegrationStatus.ERROR:
            _record(session, wanted, action, before, integration, details)


_WORKING = (IntegrationStatus.CONNECTED, IntegrationStatus.ERROR)


def _of(wanted: _Wanted) -> dict[str, str]:
    return {"provider": wanted.provider, "venue_id": str(wanted.venue)}


def _record(
    session: AsyncSession,
    wanted: _Wanted,
    action: str,
    before: Mapping[str, Any],
    integration: IntegrationConfig,
    details: Mapping[str, Any] | None = None,
) -> None:
    audit.record(
        session,
        HUB,
        action,
        venue_id=wanted.venue,
        provider=wanted.provider,
        details=details,
        before=before,
        after=audit.picture(integration),
    )


def _refuse_to_ask(connector: Connector, token: OAuthToken, now: datetime) -> None:
    """Raise what the provider said last, if it needn't or shouldn't be asked again now."""
    if token.grant_ended_at is not None:
        raise TokenRefreshError(f"{connector.title} no longer accepts this connection: connect again")
    if token.refresh_next_at is not None and token.refresh_next_at > now:
        often = token.refresh_failed_count >= TOLERATED
        times = f"{token.refresh_failed_count} times" if often else "a moment ago"
        advice = "; if that goes on, connect again" if often else ""
        raise RenewalFailedError(
            f"{connector.title} couldn't renew the connection {times}: it is tried again by itself{advice}"
        )


def _next_try(token: OAuthToken, error: ProviderError, now: datetime) -> datetime:
    """Return when to ask again: later each time, and when the token ends in any case."""
    wait: timedelta = min(FIRST_WAIT * 2 ** min(token.refresh_failed_count - 1, 16), LONGEST_WAIT)
    if isinstance(error, RateLimitedError) and error.retry_after is not None:
        wait = max(wait, min(timedelta(seconds=error.retry_after), LONGEST_WAIT))
    again: datetime = now + wait
    return token.expires_at if token.expires_at is not None and now < token.expires_at < again else again
