"""Measure reads of the API against a bare Litestar handler with the same single query and the same answer.

Both are one process under uvicorn, asked by turns over real sockets. The hub verifies a token, counts the
request in Redis, logs it and checks what is asked for; the bare handler does nothing but query and answer.
Prints a JSON line for each route: `ratio` is the hub's requests a second over the bare handler's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import jwt
import orjson
import uvicorn
import uvloop
from litestar import Litestar, get
from litestar.datastructures import State

from server.db.migrate import upgrade
from server.services import views
from server.serving import serve
from server.settings import read_settings
from tests.load.asking import (
    SECRET,
    Request,
    ask,
    compare,
    hub_environment,
    plain_url,
    running_server,
    running_stores,
)

VENUE = UUID("7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f")
INTEGRATIONS = 9
SYNCS_A_DAY = 48  # of each integration; a day of them is there
CONFIG = {"syncEnabled": True, "syncInterval": 300, "syncDirection": "bidirectional"}
ROUNDS, SECONDS = 9, 1.5
CONNECTIONS = 15
PROVIDER = "stripe"
MODULE = "tests.load.reads"
PATHS = {
    "integrations": f"/api/v1/integrations?venueId={VENUE}",
    "health": f"/api/v1/integrations/health/{PROVIDER}?venueId={VENUE}",
}


async def fill(database_url: str) -> None:
    """Write the venue's integrations, and a day of syncs of each."""
    connection = await asyncpg.connect(plain_url(database_url))
    names = [PROVIDER, *(f"provider{number}" for number in range(1, INTEGRATIONS))]
    await connection.executemany(
        "INSERT INTO integration_configs (venue_id, integration_type, status, account, connected_at,"
        " last_sync_at, next_sync_at, config)"
        " VALUES ($1, $2, 'connected', 'A1', now(), now(), now(), $3)",
        [(VENUE, name, orjson.dumps(CONFIG).decode()) for name in names],
    )
    await connection.executemany(
        "INSERT INTO sync_logs (venue_id, integration_type, sync_id, operation, status, success_count,"
        " api_calls_made, started_at, completed_at) VALUES ($1, $2, $3, 'scheduled_sync', 'success', 10, 5,"
        " now() - $4 * interval '30 minutes', now() - $4 * interval '30 minutes' + interval '3 seconds')",
        [(VENUE, name, uuid4(), number) for name in names for number in range(SYNCS_A_DAY)],
    )
    await connection.execute("ANALYZE")
    await connection.close()


def serve_by_hand() -> None:
    """The bare handlers: a pool of asyncpg, the hub's own statements, answers the framework writes."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        url = plain_url(os.environ["DATABASE_URL"])
        async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            app.state.pool = pool
            yield

    @get("/api/v1/integrations")
    async def integrations(state: State, venueId: UUID, limit: int = 50, offset: int = 0) -> dict[str, Any]:  # noqa: N803 - as it is asked
        rows = await state.pool.fetch(views.LIST, venueId, None, limit + 1, offset)
        meta = {"total": rows[0]["total"], "limit": limit, "offset": offset, "next_cursor": None}
        return {"data": [_integration(row) for row in rows[:limit]], "meta": meta, "success": True}

    @get("/api/v1/integrations/health/{provider:str}")
    async def health(state: State, provider: str, venueId: UUID) -> dict[str, Any]:  # noqa: N803 - as it is asked
        row = await state.pool.fetchrow(views.ONE, venueId, provider)
        return {
            "data": {
                "status": "healthy",
                "success_rate": round(100 * row["successes"] / row["syncs"], 2),
                "average_sync_time_ms": round(row["took"]),
                "last_success_at": row["last_success_at"],
                "last_failure_at": row["last_failure_at"],
                "sync_count_24h": row["syncs"],
                "api_calls_24h": int(row["calls"]),
                "queue_depth": row["depth"],
            },
            "success": True,
        }

    app = Litestar([integrations, health], lifespan=[lifespan], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=int(os.environ["PORT"]), log_config=None, access_log=False)


def _integration(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "integration_type": row["integration_type"],
        "environment": row["environment"],
        "status": row["status"],
        "connected_at": row["connected_at"],
        "disconnected_at": row["disconnected_at"],
        "last_sync_at": row["last_sync_at"],
        "next_sync_at": row["next_sync_at"],
        "health_status": "healthy",
        "failure_count": row["failure_count"],
        "last_error": row["last_error"],
        "last_error_at": row["last_error_at"],
        "config": orjson.loads(row["config"]),
        "template_id": row["template_id"],
        "health": {
            "success_rate": round(100 * row["successes"] / row["syncs"], 2),
            "sync_count_24h": row["syncs"],
            "api_calls_24h": int(row["calls"]),
            "authorization_ends_at": row["ends_at"],
        },
    }


async def measure(environment: Mapping[str, str], rounds: int, seconds: float) -> None:
    """Print a line for each route. What both answer has to be equal."""
    claims = {"userId": "someone", "role": "user", "venueId": str(VENUE), "exp": int(time.time()) + 3600}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}
    with (
        running_server(MODULE, "hub", environment) as hub,
        running_server(MODULE, "by_hand", environment) as by_hand,
    ):
        servers = {"hub": hub, "by_hand": by_hand}
        for name, path in PATHS.items():
            request = Request(path, headers)
            raw = {role: request.raw(server.host) for role, server in servers.items()}
            answers = [await ask(server, raw[role]) for role, server in servers.items()]
            if answers[0] != answers[1] or answers[0][0] != 200:
                raise RuntimeError(f"the answers differ: {answers}")
            makes = {role: (lambda raw=raw[role]: raw) for role in servers}
            figures = await compare(servers, makes, rounds=rounds, seconds=seconds)
            print(json.dumps({"case": f"reads: {name}", "bytes": len(answers[0][1]), **figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("hub", "by_hand"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked = parser.parse_args()
    if asked.serve == "hub":
        serve(read_settings())
    elif asked.serve == "by_hand":
        serve_by_hand()
    else:
        with running_stores() as stores:
            upgrade(stores.database_url)
            asyncio.run(fill(stores.database_url))
            environment = hub_environment(stores)
            uvloop.run(measure(environment, asked.rounds, asked.seconds))


if __name__ == "__main__":
    main()
