"""The scheduler's part: what is about to end, what nobody uses, and providers that keep others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from server.db.models import HealthStatus, IntegrationStatus
from server.db.reads import Reads
from server.services import conditions, health, tokens, views
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context
from tests.authorization_server import AuthorizationServer, Fault, running_authorization_server
from tests.integration.refreshing import LOGIN, MANIFEST, audited, environment, integrate, row

KEPT = MANIFEST.replace("refresh_before_expiry:", "keep_alive: 30 days\n  refresh_before_expiry:")
OTHER_LOGIN = "https://login.larch.example"
OTHER = MANIFEST.replace("connector: juniper", "connector: larch").replace(LOGIN, OTHER_LOGIN)
DAY = timedelta(days=1)


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


@pytest.fixture
def other_server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


@pytest.fixture
async def context(
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    server: AuthorizationServer,
    other_server: AuthorizationServer,
) -> AsyncIterator[WorkerContext]:
    values = environment(database_url, redis_url, tmp_path, server, KEPT)
    (tmp_path / "connectors" / "larch.yaml").write_text(OTHER, encoding="utf-8")
    values["HUB_ORIGIN_OVERRIDES"] += f",{OTHER_LOGIN}={other_server.url}"
    values |= {"LARCH_CLIENT_ID": server.client_id, "LARCH_CLIENT_SECRET": server.client_secret}
    async with open_worker_context(
        read_settings(values), application_name="a test of the scheduler", connections=16
    ) as opened:
        yield opened
        async with opened.engine.begin() as connection:
            await connection.execute(text("TRUNCATE integration_configs, oauth_tokens"))


async def due(context: WorkerContext, **ahead: float) -> set[tuple[UUID, bool]]:
    """Return the integrations that are due after some time, and whether only to keep the grant."""
    async with context.sessions() as session:
        now = datetime.now(UTC) + timedelta(**ahead)
        return {(each.venue_id, each.to_keep) for each in await tokens.due(session, context.catalog, now=now)}


async def test_what_is_about_to_end_is_renewed_before(
    context: WorkerContext, server: AuthorizationServer
) -> None:
    engine = context.engine
    soon, given = await integrate(engine, server, expires_in=timedelta(minutes=4, seconds=59))
    later, _ = await integrate(engine, server, expires_in=timedelta(minutes=6, seconds=5))
    assert await schedule.refresh_tokens(context) == 1
    assert (await row(engine, "oauth_tokens", soon))["refresh_count"] == 1
    assert (await row(engine, "oauth_tokens", later))["refresh_count"] == 0
    assert server.counts["refreshed"] == 1
    assert await schedule.refresh_tokens(context) == 0
    renewed = await context.credentials(soon, "juniper").current()
    assert renewed.values["access_token"].reveal() != given["access_token"]


async def test_not_all_of_them_in_the_same_second(
    context: WorkerContext, server: AuthorizationServer
) -> None:
    """Forty tokens that end together are due over a minute, each at a time that every process knows."""
    venues = {
        (await integrate(context.engine, server, expires_in=timedelta(minutes=10)))[0] for _ in range(40)
    }
    assert await due(context, minutes=3, seconds=59) == set()
    half = await due(context, minutes=4, seconds=30)
    assert 5 < len(half) < 35
    assert half <= await due(context, minutes=4, seconds=31)
    assert {venue for venue, _ in await due(context, minutes=5)} == venues


async def test_a_provider_that_does_not_answer_keeps_no_other_waiting(
    context: WorkerContext,
    server: AuthorizationServer,
    other_server: AuthorizationServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "TURN_SECONDS", 0.5)
    server.faults.append(Fault(hold=True, times=99))
    slow = [(await integrate(context.engine, server))[0] for _ in range(12)]
    quick = [(await integrate(context.engine, other_server, provider="larch"))[0] for _ in range(3)]
    async with asyncio.timeout(30):
        while other_server.counts["refreshed"] < 3:
            await schedule.refresh_tokens(context)
        for venue in quick:  # answered is not yet stored
            while (await row(context.engine, "oauth_tokens", venue))["refresh_count"] < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert 0 < server.counts["refresh_token"] <= 4  # half of half of the connections
    server.release.set()
    await context.renewals.close()
    for venue in slow:
        assert (await row(context.engine, "oauth_tokens", venue))["refresh_count"] == 1
    assert server.counts["reused"] == 0


async def test_what_failed_is_tried_again_and_gets_well(
    context: WorkerContext, server: AuthorizationServer
) -> None:
    engine = context.engine
    venue, _ = await integrate(engine, server)
    server.faults.append(Fault(status=500, times=3))
    for _ in range(3):
        assert await schedule.refresh_tokens(context) == 1
        assert await schedule.refresh_tokens(context) == 0  # not yet again
        await let_time_pass(context, minutes=20)
    assert (await row(engine, "integration_configs", venue))["status"] == "error"
    assert await schedule.refresh_tokens(context) == 1
    integration = await row(engine, "integration_configs", venue)
    assert (integration["status"], integration["last_error"]) == ("connected", None)
    assert server.counts["refreshed"] == 1


async def let_time_pass(context: WorkerContext, **time: float) -> None:
    async with context.engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE oauth_tokens SET refresh_next_at = refresh_next_at - CAST(:time AS interval), "
                "granted_at = granted_at - CAST(:time AS interval)"
            ),
            {"time": timedelta(**time)},
        )


async def test_what_is_over_is_left_alone(context: WorkerContext, server: AuthorizationServer) -> None:
    venue, _ = await integrate(context.engine, server)
    server.faults.append(Fault.refuse())
    assert await schedule.refresh_tokens(context) == 1
    await let_time_pass(context, days=400)
    assert await schedule.refresh_tokens(context) == 0
    assert await due(context, days=1) == set()
    assert server.counts["refresh_token"] == 1
    assert [action for _, action, _ in await audited(context.engine, venue)] == ["token.refused"]


@pytest.mark.parametrize(
    "status", [IntegrationStatus.CONNECTED, IntegrationStatus.ERROR, IntegrationStatus.SUSPENDED]
)
async def test_a_grant_that_nobody_uses_is_kept_alive(
    context: WorkerContext, server: AuthorizationServer, status: IntegrationStatus
) -> None:
    long = timedelta(days=300)  # for an access token that ends later than the grant would
    now = datetime.now(UTC)
    idle, _ = await integrate(
        context.engine, server, status=status, expires_in=long, granted_at=now - 31 * DAY
    )
    await integrate(context.engine, server, status=status, expires_in=long, granted_at=now - 29 * DAY)
    assert await due(context) == {(idle, True)}
    assert await schedule.refresh_tokens(context) == 1
    assert (await row(context.engine, "oauth_tokens", idle))["refresh_count"] == 1
    assert (await row(context.engine, "integration_configs", idle))["status"] == status.value
    assert await due(context) == set()


@pytest.mark.parametrize("status", [IntegrationStatus.DISCONNECTED, IntegrationStatus.CONNECTING])
async def test_what_is_not_connected_is_not_kept_alive(
    context: WorkerContext, server: AuthorizationServer, status: IntegrationStatus
) -> None:
    await integrate(context.engine, server, status=status, granted_at=datetime.now(UTC) - 31 * DAY)
    assert await due(context) == set()


async def test_where_the_manifest_names_no_time_a_grant_may_rest(
    context: WorkerContext, other_server: AuthorizationServer
) -> None:
    values: dict[str, Any] = {"provider": "larch", "granted_at": datetime.now(UTC) - 400 * DAY}
    await integrate(context.engine, other_server, expires_in=DAY, **values)
    assert await due(context) == set()


async def test_the_end_of_a_refresh_token_is_put_off_once_a_day(
    context: WorkerContext, other_server: AuthorizationServer
) -> None:
    now = datetime.now(UTC)
    values: dict[str, Any] = {"provider": "larch", "expires_in": 40 * DAY}
    near, _ = await integrate(
        context.engine,
        other_server,
        refresh_expires_at=now + 13 * DAY,
        granted_at=now - 2 * DAY,
        **values,
    )
    await integrate(
        context.engine,
        other_server,
        refresh_expires_at=now + 15 * DAY,
        granted_at=now - 2 * DAY,
        **values,
    )
    await integrate(
        context.engine,
        other_server,
        refresh_expires_at=now + 13 * DAY,
        granted_at=now - DAY / 2,
        **values,
    )
    assert await due(context) == {(near, True)}
    other_server.behaviour.refresh_seconds = 100 * 86_400
    assert await schedule.refresh_tokens(context) == 1
    ends = (await row(context.engine, "oauth_tokens", near))["refresh_expires_at"]
    assert timedelta(days=99) < ends - now < timedelta(days=101)


async def test_what_takes_longer_than_a_turn_is_not_begun_twice(
    context: WorkerContext, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "TURN_SECONDS", 0.2)
    venue, _ = await integrate(context.engine, server)
    server.faults.append(Fault(after=True, hold=True))
    for _ in range(3):
        assert await schedule.refresh_tokens(context) == 1
    await asyncio.to_thread(server.wait_for, lambda: server.counts["refreshed"] == 1)
    server.release.set()
    await context.renewals.close()
    assert (await row(context.engine, "oauth_tokens", venue))["refresh_count"] == 1
    assert (server.counts["refresh_token"], server.counts["reused"]) == (1, 0)


async def test_a_refresh_token_of_a_short_life_is_not_always_near_its_end(
    context: WorkerContext, other_server: AuthorizationServer
) -> None:
    now = datetime.now(UTC)
    values: dict[str, Any] = {"provider": "larch", "expires_in": 40 * DAY, "granted_at": now - 2 * DAY}
    week: dict[str, Any] = {"refresh_expires_in": 7 * 86_400}
    far, _ = await integrate(context.engine, other_server, refresh_expires_at=now + 4 * DAY, **week, **values)
    near, _ = await integrate(
        context.engine, other_server, refresh_expires_at=now + 3 * DAY, **week, **values
    )
    assert await due(context) == {(near, True)}
    async with context.sessions.begin() as session:
        assert await health.write(session) == 2
        assert await conditions.judge_some(session) == 2
    async with Reads(str(context.settings.database_url), application_name="test") as reads:
        found = [await views.find_view(reads, venue, "larch") for venue in (near, far)]
    told = [health.judge(view, view.measured) for view in found if view is not None]
    assert told == [HealthStatus.DEGRADED, HealthStatus.UNKNOWN]
    assert found[0] is not None
    assert found[0].measured is not None
    assert found[0].measured.authorization_ends_at == now + 3 * DAY
    written = await row(context.engine, "integration_configs", near)
    assert written["health_status"] == "degraded"
