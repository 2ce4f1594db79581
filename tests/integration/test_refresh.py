"""What becomes of a grant when renewing it goes well, goes wrong, or is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from engine.errors import ProviderError, UnavailableError
from engine.ports import Secret
from engine.transport import open_client
from server import renewal
from server.catalog import Catalog, load_catalog
from server.credentials import StoredCredentials, TokenRefreshError
from server.db.engine import create_engine, session_factory
from server.db.models import IntegrationStatus
from server.errors import CredentialsNotFoundError, NotSupportedError
from server.renewal import RenewalBusyError, RenewalFailedError, Renewals
from server.settings import Settings, read_settings
from tests.authorization_server import AuthorizationServer, Fault, running_authorization_server
from tests.integration.refreshing import KEYS, audited, environment, integrate, row

LONGEST = 30.0
HOUR = timedelta(hours=1)


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


@pytest.fixture(scope="module")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(database_url, application_name="a test of renewals")
    yield made
    await made.dispose()


@dataclass(slots=True)
class Process:
    """Renewals as one process has them; its clock can be put forward."""

    sessions: async_sessionmaker[AsyncSession]
    catalog: Catalog
    renewals: Renewals
    ahead: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def run(self, venue: UUID) -> StoredCredentials:
        """Return the credentials of a new run."""
        return StoredCredentials(
            self.sessions, KEYS, self.catalog, self.renewals, venue, "juniper", now=self.now
        )

    async def token(self, venue: UUID) -> str:
        """Return the access token a new run gets."""
        return (await self.run(venue).current()).values["access_token"].reveal()


@pytest.fixture
def settings(database_url: str, tmp_path: Path, server: AuthorizationServer) -> Settings:
    return read_settings(environment(database_url, "redis://127.0.0.1:1", tmp_path, server))


Start = Callable[[], Process]


@pytest.fixture
async def start(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Start]:
    catalog = load_catalog(settings.connectors_dir, settings.templates_dir, settings.platform)
    sessions = session_factory(engine)
    async with open_client(origin_overrides=settings.origin_overrides) as http:

        def begin() -> Process:
            process = Process(sessions, catalog, Renewals(sessions, KEYS, catalog, settings, http))
            process.renewals.now = process.now
            return process

        yield begin


@pytest.fixture
def process(start: Start) -> Process:
    return start()


async def asked(server: AuthorizationServer, times: int) -> None:
    """Wait until the authorization server has been asked so often."""
    await asyncio.to_thread(server.wait_for, lambda: server.counts["refresh_token"] >= times)


async def a_while(engine: AsyncEngine) -> None:
    """Let whatever else can go on go on, for as long as many statements take."""
    for _ in range(20):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))


# ---- waiting for others ----------------------------------------------------------------------------------


async def test_a_lock_that_is_not_to_be_had_says_nothing_of_the_credentials(
    engine: AsyncEngine, server: AuthorizationServer, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOCK_SECONDS", 0.2)
    expired, _ = await integrate(engine, server)
    living, given = await integrate(engine, server, expires_in=timedelta(minutes=3))
    async with engine.begin() as elsewhere:
        await elsewhere.execute(text("SELECT 1 FROM oauth_tokens FOR UPDATE"))
        with pytest.raises(RenewalBusyError) as busy:
            await process.token(expired)
        assert await process.token(living) == given["access_token"]
    assert isinstance(busy.value, UnavailableError)
    assert (busy.value.code, busy.value.retryable) == ("STORE_UNAVAILABLE", True)
    for venue in (expired, living):
        token = await row(engine, "oauth_tokens", venue)
        assert (token["refresh_failed_count"], token["refresh_next_at"]) == (0, None)
        integration = await row(engine, "integration_configs", venue)
        assert (integration["status"], integration["last_error"]) == ("connected", None)
    assert server.counts["refresh_token"] == 0
    assert await process.token(expired) != given["access_token"]


async def test_whoever_goes_away_cuts_nothing_off(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(after=True, hold=True))
    callers = [asyncio.create_task(process.token(venue)) for _ in range(3)]
    await asked(server, 1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    server.release.set()
    await process.renewals.close()
    renewed = await process.token(venue)
    assert server.lives(renewed)
    assert (server.counts["refresh_token"], server.counts["reused"]) == (1, 0)


async def test_other_integrations_do_not_wait_for_one(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    slow, _ = await integrate(engine, server)
    quick, _ = await integrate(engine, server)
    server.faults.append(Fault(hold=True))
    waiting = asyncio.create_task(process.token(slow))
    await asked(server, 1)
    assert server.lives(await process.token(quick))
    server.release.set()
    assert server.lives(await waiting)


async def test_what_a_provider_keeps_waiting_takes_half_of_the_connections(
    engine: AsyncEngine, server: AuthorizationServer, start: Start
) -> None:
    process = start()
    process.renewals.at_once = 4
    venues = [(await integrate(engine, server))[0] for _ in range(5)]
    server.faults.append(Fault(hold=True, times=9))
    waiting = [asyncio.create_task(process.token(venue)) for venue in venues]
    await asked(server, 2)
    await a_while(engine)
    assert server.counts["refresh_token"] == 2
    server.release.set()
    assert len(set(await asyncio.gather(*waiting))) == 5


# ---- the answer is there, and the database isn't ---------------------------------------------------------


async def end_connections(engine: AsyncEngine) -> None:
    """End every connection that waits within a transaction, as a database that is restarted does."""
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND state = 'idle in transaction' AND pid <> pg_backend_pid()"
            )
        )


async def test_an_answer_is_stored_though_the_connection_ended_meanwhile(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(after=True, hold=True))
    waiting = asyncio.create_task(process.token(venue))
    await asked(server, 1)
    await end_connections(engine)
    server.release.set()
    renewed = await waiting
    assert server.lives(renewed)
    assert await process.token(venue) == renewed
    assert (server.counts["refresh_token"], server.counts["reused"]) == (1, 0)
    assert (await row(engine, "oauth_tokens", venue))["refresh_started_at"] is None


async def test_a_refusal_is_not_believed_when_somebody_else_has_renewed(
    engine: AsyncEngine, server: AuthorizationServer, start: Start
) -> None:
    """Its lock was lost with its connection, so another got in between: what is stored there is good."""
    venue, _ = await integrate(engine, server)
    first, second = start(), start()
    server.faults.append(Fault.refuse("invalid_grant", hold=True))
    waiting = asyncio.create_task(first.token(venue))
    await asked(server, 1)
    await end_connections(engine)
    renewed = await second.token(venue)
    assert server.lives(renewed)
    server.release.set()
    assert await waiting == renewed
    token = await row(engine, "oauth_tokens", venue)
    assert (token["refresh_failed_count"], token["grant_ended_at"]) == (0, None)
    assert (await row(engine, "integration_configs", venue))["status"] == "connected"


# ---- over for good ---------------------------------------------------------------------------------------


async def test_a_grant_that_is_over_is_told_once_and_not_asked_for_again(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, given = await integrate(engine, server)
    async with httpx.AsyncClient(auth=(server.client_id, server.client_secret)) as person:
        await person.post(f"{server.url}/revoke", data={"token": given["refresh_token"]})
    assert server.counts["revoked"] == 1
    for _ in range(3):
        with pytest.raises(TokenRefreshError) as over:
            await process.token(venue)
        assert (over.value.code, over.value.retryable) == ("TOKEN_REFRESH_FAILED", False)
        assert "connect again" in over.value.message
    assert server.counts["refresh_token"] == 1
    integration = await row(engine, "integration_configs", venue)
    assert integration["status"] == "error"
    assert integration["last_error"] == "Juniper no longer accepts this connection: connect again"
    [(actor, action, details)] = await audited(engine, venue)
    assert (actor, action, details) == (
        "hub",
        "token.refused",
        {"reason": "invalid_grant", "answer_lost": False},
    )
    assert given["refresh_token"] not in f"{over.value}{integration}"


async def test_an_answer_lost_on_its_way_is_why(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, given = await integrate(engine, server, expires_in=timedelta(minutes=3))
    server.faults.append(Fault(after=True, drop=True))
    assert await process.token(venue) == given["access_token"]
    process.ahead = timedelta(minutes=4)
    with pytest.raises(TokenRefreshError):
        await process.token(venue)
    assert (await row(engine, "integration_configs", venue))["last_error"] == (
        "Juniper no longer accepts this connection (the answer to an earlier renewal never came, and it may "
        "have used up the refresh token): connect again"
    )
    assert server.counts["reused"] == 1


async def test_where_the_used_token_works_on_a_lost_answer_costs_nothing(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    server.behaviour.grace_seconds = 1800
    venue, _ = await integrate(engine, server, expires_in=timedelta(minutes=3))
    server.faults.append(Fault(after=True, drop=True))
    await process.token(venue)
    process.ahead = timedelta(minutes=4)
    assert server.lives(await process.token(venue))
    token = await row(engine, "oauth_tokens", venue)
    assert (token["refresh_failed_count"], token["refresh_started_at"]) == (0, None)


async def test_a_token_that_nothing_renews(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server, expires_in=HOUR, encrypted_refresh_token=None)
    source = process.run(venue)
    opened = await source.current()
    with pytest.raises(TokenRefreshError):
        await source.refresh(opened)
    assert server.counts["refresh_token"] == 0
    assert (await row(engine, "integration_configs", venue))["status"] == "error"


# ---- over for now ----------------------------------------------------------------------------------------


async def test_an_outage_before_the_end_is_waited_out_without_asking_all_the_time(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, given = await integrate(engine, server, expires_in=timedelta(minutes=3))
    server.faults.append(Fault(status=503, times=99))
    for _ in range(5):
        assert await process.token(venue) == given["access_token"]
    assert server.counts["refresh_token"] == 1
    process.ahead = timedelta(seconds=31)
    assert await process.token(venue) == given["access_token"]
    assert server.counts["refresh_token"] == 2
    server.faults.clear()
    process.ahead = timedelta(seconds=92)  # the second wait is twice as long
    assert server.lives(await process.token(venue))
    assert (await row(engine, "integration_configs", venue))["status"] == "connected"
    assert await audited(engine, venue) == []


async def test_three_failures_of_an_ended_token_are_an_error_that_mends_itself(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(status=502, times=99))
    for failures, ahead in ((1, 0), (2, 31), (3, 92)):
        process.ahead = timedelta(seconds=ahead)
        with pytest.raises(RenewalFailedError) as failed:
            await process.token(venue)
        assert (failed.value.code, failed.value.retryable) == ("TOKEN_REFRESH_FAILED", True)
        assert server.counts["refresh_token"] == failures
        with pytest.raises(
            RenewalFailedError, match="3 times.*connect again" if failures == 3 else "a moment"
        ):
            await process.token(venue)
        status = (await row(engine, "integration_configs", venue))["status"]
        assert status == ("error" if failures == 3 else "connected")
    assert server.counts["refresh_token"] == 3
    integration = await row(engine, "integration_configs", venue)
    assert integration["last_error"] == (
        "Juniper couldn't renew the connection 3 times (the authorization server answered 502). It is tried "
        "again by itself; if that goes on, connect again"
    )
    assert integration["last_error_at"] is not None

    server.faults.clear()
    process.ahead = timedelta(seconds=92 + 121)
    assert server.lives(await process.token(venue))
    integration = await row(engine, "integration_configs", venue)
    assert (integration["status"], integration["last_error"]) == ("connected", None)
    token = await row(engine, "oauth_tokens", venue)
    assert (token["refresh_failed_count"], token["refresh_next_at"]) == (0, None)
    assert [(actor, action) for actor, action, _ in await audited(engine, venue)] == [
        ("hub", "token.failing"),
        ("hub", "token.recovered"),
    ]


async def test_an_integration_that_is_in_error_for_something_else_stays_so(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server, status=IntegrationStatus.ERROR)
    assert server.lives(await process.token(venue))
    assert (await row(engine, "integration_configs", venue))["status"] == "error"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.refuse("invalid_client"), id="the application's secret is another"),
        pytest.param(Fault.refuse("temporarily_unavailable"), id="not now"),
        pytest.param(Fault(status=403, body=b"<html>blocked</html>"), id="something on the way"),
        pytest.param(Fault(status=400, body=b"Bad Request"), id="a gateway"),
        pytest.param(Fault(status=200, body=b"<html>hello</html>"), id="a page"),
        pytest.param(Fault(status=302, headers={"Location": "/login"}), id="a redirect"),
        pytest.param(Fault(drop=True), id="no answer"),
    ],
)
async def test_only_a_refusal_of_the_grant_ends_it(
    engine: AsyncEngine, server: AuthorizationServer, process: Process, fault: Fault
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(fault)
    with pytest.raises(ProviderError) as failed:
        await process.token(venue)
    assert type(failed.value) is RenewalFailedError
    assert "connect again" not in failed.value.message
    process.ahead = timedelta(seconds=31)
    assert server.lives(await process.token(venue))
    assert (await row(engine, "integration_configs", venue))["status"] == "connected"
    fault.times = 1


async def test_a_provider_that_names_a_time_is_not_asked_before(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(status=429, headers={"Retry-After": "300"}))
    with pytest.raises(RenewalFailedError):
        await process.token(venue)
    process.ahead = timedelta(seconds=290)
    with pytest.raises(RenewalFailedError):
        await process.token(venue)
    assert server.counts["refresh_token"] == 1
    process.ahead = timedelta(seconds=301)
    assert server.lives(await process.token(venue))


async def test_an_answer_that_never_ends_is_not_waited_for(
    engine: AsyncEngine, server: AuthorizationServer, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "CALL_SECONDS", 0.2)
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(hold=True))
    with pytest.raises(RenewalFailedError, match="doesn't answer"):
        await process.token(venue)


# ---- a person asks ---------------------------------------------------------------------------------------


async def test_whoever_asks_by_hand_need_not_wait(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(status=503))
    with pytest.raises(RenewalFailedError):
        await process.token(venue)
    renewed = await process.run(venue).renew(forced=True)
    assert server.lives(renewed.values["access_token"].reveal())


async def test_ten_who_ask_by_hand_at_once_are_one_renewal(
    engine: AsyncEngine, server: AuthorizationServer, start: Start
) -> None:
    venue, _ = await integrate(engine, server, expires_in=HOUR)
    server.faults.append(Fault(after=True, hold=True))
    first, second = start(), start()
    sources = [process.run(venue) for process in (first, second) for _ in range(5)]
    waiting = [asyncio.create_task(source.renew(forced=True)) for source in sources]
    await asked(server, 1)
    await a_while(engine)  # the others read the row before it changes
    server.release.set()
    renewed = {each.values["access_token"].reveal() for each in await asyncio.gather(*waiting)}
    assert len(renewed) == 1
    assert server.counts["refresh_token"] == 1


async def test_a_person_may_try_a_grant_that_was_said_to_be_over(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault.refuse())
    with pytest.raises(TokenRefreshError):
        await process.token(venue)
    renewed = await process.run(venue).renew(forced=True)
    assert server.lives(renewed.values["access_token"].reveal())
    integration = await row(engine, "integration_configs", venue)
    assert (integration["status"], integration["last_error"]) == ("connected", None)


async def test_what_was_disconnected_meanwhile_is_not_renewed(
    engine: AsyncEngine, server: AuthorizationServer, process: Process
) -> None:
    venue, given = await integrate(engine, server)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM oauth_tokens WHERE venue_id = :venue"), {"venue": venue})
    with pytest.raises(CredentialsNotFoundError):
        await process.renewals.renew(venue, "juniper", Secret(given["access_token"]))
    assert server.counts["refresh_token"] == 0


async def test_without_an_application_nobody_is_asked_and_nothing_counted(
    engine: AsyncEngine, server: AuthorizationServer, settings: Settings, process: Process
) -> None:
    venue, _ = await integrate(engine, server)
    nobody = {"HUB_ENV": "test", "JWT_SECRET": "x" * 32, "ENCRYPTION_KEY": "0" * 32}
    process.renewals.settings = read_settings(nobody)
    with pytest.raises(NotSupportedError):
        await process.token(venue)
    token = await row(engine, "oauth_tokens", venue)
    assert token["refresh_failed_count"] == 0
    assert token["refresh_started_at"] is None  # nothing was sent whose answer could be lost
