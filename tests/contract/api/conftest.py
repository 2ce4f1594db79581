"""The API in this process, over real stores and the providers' stand-ins; one venue is ours, one others'."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
import httpx
import jwt
import pytest
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.engine import make_url

import server.demo
from server.app import create_app
from server.context import Context
from server.settings import Settings, read_settings
from tests import canary
from tests.conftest import empty
from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.running import Sandbox, running_sandbox

SECRET = canary.planted("jwt", "-of-more-than-thirty-two-bytes")
VAULT_KEYS = "test:" + "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OURS = UUID("11111111-1111-4111-8111-111111111111")
OTHERS = UUID("22222222-2222-4222-8222-222222222222")
NOWHERE = UUID("33333333-3333-4333-8333-333333333333")
USER_ID = "44444444-4444-4444-8444-444444444444"
API = "/api/v1/integrations"
LIMITS = ("RATE_LIMIT_MAX_REQUESTS", "HUB_RATE_LIMIT_WEBHOOKS", "HUB_RATE_LIMIT_ADMIN")
KEPT = {"hub_version", "field_mapping_templates"}  # tables of which a test leaves what it found


def token(role: str = "venue_admin", venue: UUID | None = OURS, **claims: Any) -> str:
    """Sign a token as the platform would; a claim of None is left out."""
    given: dict[str, Any] = {
        "userId": USER_ID,
        "role": role,
        "venueId": str(venue) if venue else None,
        "exp": int(time.time()) + 6 * 3600,  # many are made when the tests are collected
        **claims,
    }
    return jwt.encode(
        {name: value for name, value in given.items() if value is not None}, SECRET, algorithm="HS256"
    )


def bearer(role: str = "venue_admin", venue: UUID | None = OURS, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(role, venue, **claims)}"}


@dataclass(frozen=True, slots=True)
class Hub:
    """The running API, and what it shares, for looking behind it."""

    app: Litestar
    http: httpx.AsyncClient
    context: Context
    sandbox: Sandbox

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, **{"headers": bearer(), **options})

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **{"headers": bearer(), **options})

    async def rows(self, query: str, **values: Any) -> list[Mapping[str, Any]]:
        async with self.context.sessions() as session:
            return [dict(row) for row in (await session.execute(text(query), values)).mappings()]

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.context.sessions.begin() as session:
            await session.execute(text(statement), values)

    async def break_provider(self, url: str, match: str, fault: str) -> None:
        """Let a stand-in answer calls with a fault until the next test."""
        async with httpx.AsyncClient() as control:
            rules = {"rules": [{"match": match, "fault": fault, "rate": 1}]}
            (await control.post(f"{url}/_sandbox/faults", json=rules)).raise_for_status()

    async def connect_by_key(self, **body: Any) -> httpx.Response:
        """Connect our venue by the stand-in's key; without a first sync unless `config` says so."""
        return await self.post(
            f"{API}/connect/stripe",
            {
                "venueId": str(OURS),
                "credentials": {"apiKey": f"sk_test_demo_{canary.MARK}"},
                "config": {"syncEnabled": False},
                "environment": "sandbox",
                **body,
            },
        )


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def settings(
    database_url: str, redis_url: str, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    stands_in = {
        "https://api.stripe.com": sandbox.stripe_url,
        "https://connect.squareup.com": sandbox.square_url,
        "https://connect.squareupsandbox.com": sandbox.square_url,
        **dict.fromkeys(mailchimp.REPLACES, sandbox.mailchimp_url),
        **dict.fromkeys(quickbooks.REPLACES, sandbox.quickbooks_url),
    }
    return read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": SECRET,
            "HUB_VAULT_KEYS": VAULT_KEYS,
            "HUB_STATE": str(tmp_path_factory.mktemp("state")),
            "LOG_LEVEL": "error",
            **dict.fromkeys(LIMITS, "0"),
            "API_URL": "http://127.0.0.1:3007",
            "HUB_REDIRECT_URIS": "https://app.example.org/connected/{provider}, "
            "http://127.0.0.1:9999/connected/{provider}",
            "SQUARE_CLIENT_ID": "sq0idp-demo",
            "SQUARE_CLIENT_SECRET": "sq0csp-demo",
            "MAILCHIMP_CLIENT_ID": mailchimp.DEFAULT_CLIENT,
            "MAILCHIMP_CLIENT_SECRET": mailchimp.DEFAULT_SECRET,
            "QUICKBOOKS_CLIENT_ID": quickbooks.DEFAULT_CLIENT,
            "QUICKBOOKS_CLIENT_SECRET": quickbooks.DEFAULT_SECRET,
            "HUB_ORIGIN_OVERRIDES": ",".join(f"{origin}={url}" for origin, url in stands_in.items()),
        }
    )


@pytest.fixture(scope="module")
async def running(settings: Settings, sandbox: Sandbox) -> AsyncIterator[Hub]:
    assert settings.database_url is not None
    await make_platform(settings.database_url)
    app = create_app(settings)
    async with (
        living(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(cast(Any, app)),
            base_url="http://hub.test",
            event_hooks={"response": [_look]},
        ) as http,
    ):
        yield Hub(app, http, app.state.context, sandbox)


async def _look(answer: httpx.Response) -> None:
    await answer.aread()
    canary.look(f"an answer of {answer.request.url.path}", f"{answer.headers}\n{answer.text}")


def _urls(sandbox: Sandbox) -> tuple[str, ...]:
    return (sandbox.stripe_url, sandbox.square_url, sandbox.mailchimp_url, sandbox.quickbooks_url)


@dataclass(frozen=True, slots=True)
class Behind:
    """Connections of the tests' own, to the API's database and to the stand-ins: making them takes time."""

    database: asyncpg.Connection
    control: httpx.AsyncClient


@pytest.fixture(scope="module")
async def _behind(running: Hub) -> AsyncIterator[Behind]:
    url = make_url(str(running.context.settings.database_url)).set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    # Connections aren't kept: the stand-ins close what is idle for a few seconds.
    unkept = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=unkept) as control:
        yield Behind(connection, control)
    await connection.close()


@pytest.fixture
async def hub(running: Hub, _behind: Behind) -> AsyncIterator[Hub]:
    """The API with nothing connected, and stand-ins as they start."""
    resets = (_behind.control.post(f"{url}/_sandbox/reset") for url in _urls(running.sandbox))
    for answer in await asyncio.gather(*resets):
        answer.raise_for_status()
    yield running
    filled = await canary.look_at_tables("the API", _behind.database)
    canary.look_at_redis("the API", str(running.context.settings.redis_url))
    await _behind.database.execute(
        empty({each for each in filled if each.startswith("public.")} - {f"public.{each}" for each in KEPT})
    )


@asynccontextmanager
async def living(app: Litestar) -> AsyncIterator[None]:
    """Start and stop an app in one task, as its server would; fixtures run each half in another."""
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            started.set()
            await stop.wait()

    task = asyncio.create_task(live())
    starting = asyncio.create_task(started.wait())
    await asyncio.wait({task, starting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        starting.cancel()
        await task
    yield
    stop.set()
    await task


async def make_platform(database_url: str) -> None:
    schema = Path(server.demo.__file__).with_name("schema.sql").read_text(encoding="utf-8")
    address = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(address)
    try:
        await connection.execute(schema)
        await connection.executemany(
            "INSERT INTO platform.venues (id, name, type, currency, country, timezone) "
            "VALUES ($1, $2, $3, 'EUR', 'FR', 'Europe/Paris')",
            [(OURS, "Le Caveau Jazz", "music_venue"), (OTHERS, "Elsewhere", "theatre")],
        )
    finally:
        await connection.close()
