"""Measure how many deliveries of webhooks are taken in, against a minimal endpoint written by hand.

Both are one process under uvicorn on the same stores, every commit on disk, asked by turns over real sockets
with the same deliveries, each of a new event. By hand: prove the signature, then for each request one
transaction that inserts the event unless it is known, and an operation; workers are told after the answer.
The hub does all it does: it also looks whose the event is, keeps the delivery, counts and logs.
Prints a JSON line; `ratio` is the hub's deliveries a second over the other's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import uvicorn
import uvloop
from litestar import Litestar, Request, post
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException
from litestar.response import Response
from redis.asyncio import Redis

from server.db.migrate import upgrade
from server.serving import serve
from server.settings import read_settings
from tests.load import asking
from tests.load.asking import Server, ask, compare, hub_environment, plain_url, running_server, running_stores

MODULE = "tests.load.intake"
PATH = "/api/v1/integrations/webhooks/square"
PUBLIC = "https://hub.example.org"
KEY = "a-key-of-the-measurement"
ACCOUNTS = 20
ROUNDS, SECONDS, AT_ONCE = 9, 1.5, 32
POOL = 15

FIND = """
SELECT venue_id FROM integration_configs
WHERE integration_type = 'square' AND account = $1 AND status = 'connected'
"""
EVENT = """
INSERT INTO integration_webhooks (id, venue_id, integration_type, event_type, event_id, external_id, payload)
VALUES ($1, $2::uuid, 'square', $3::text, $4::text, $2::uuid::text || ':' || $4::text, $5)
ON CONFLICT (integration_type, external_id) DO NOTHING RETURNING id
"""
OPERATION = """
INSERT INTO sync_queue (id, venue_id, integration_type, operation_type, entity_type, payload, priority,
    idempotency_key)
VALUES ($1, $2, 'square', 'reconcile', 'webhook', $3, 'CRITICAL', $4)
"""


async def fill(database_url: str) -> None:
    connection = await asyncpg.connect(plain_url(database_url))
    await connection.executemany(
        "INSERT INTO integration_configs (venue_id, integration_type, status, account) "
        "VALUES ($1, 'square', 'connected', $2)",
        [(uuid4(), f"M{number}") for number in range(ACCOUNTS)],
    )
    await connection.close()


def deliveries(server: Server) -> Callable[[], bytes]:
    """Return what makes a request for a new event each time."""
    numbers, prefix = count(), uuid4().hex

    def make() -> bytes:
        number = next(numbers)
        body = orjson.dumps(
            {
                "merchant_id": f"M{number % ACCOUNTS}",
                "type": "customer.updated",
                "event_id": f"{prefix}-{number}",
                "created_at": "2026-03-01T11:59:00Z",
                "data": {
                    "type": "customer",
                    "id": f"C{number}",
                    "object": {"customer": {"id": f"C{number}", "given_name": "Ana", "note": "x" * 400}},
                },
            }
        )
        digest = hmac.digest(KEY.encode(), f"{PUBLIC}{PATH}".encode() + body, "sha256")
        headers = {"X-Square-HmacSha256-Signature": base64.b64encode(digest).decode()}
        return asking.Request(PATH, headers, body).raw(server.host)

    return make


def serve_by_hand() -> None:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        url = plain_url(os.environ["DATABASE_URL"])
        async with (
            asyncpg.create_pool(url, min_size=POOL, max_size=POOL) as app.state.pool,
            Redis.from_url(os.environ["REDIS_URL"]) as app.state.redis,
        ):
            yield

    async def tell(redis: Redis, operation: UUID) -> None:
        await redis.zadd("by-hand", {str(operation): time.time()})

    @post(PATH, status_code=200)
    async def receive(request: Request[Any, Any, Any], state: State) -> Response[Any]:
        body = await request.body()
        digest = hmac.digest(KEY.encode(), f"{PUBLIC}{PATH}".encode() + body, hashlib.sha256)
        given = request.headers.get("x-square-hmacsha256-signature", "")
        if not hmac.compare_digest(base64.b64encode(digest), given.encode()):
            raise NotAuthorizedException
        event = orjson.loads(body)
        event_id, operation = uuid4(), uuid4()
        task = None
        async with state.pool.acquire() as connection, connection.transaction():
            venue = await connection.fetchval(FIND, event["merchant_id"])
            new = await connection.fetchval(
                EVENT, event_id, venue, event["type"], event["event_id"], body.decode()
            )
            if new is not None:
                payload = orjson.dumps({"webhookId": str(event_id)}).decode()
                await connection.execute(OPERATION, operation, venue, payload, f"webhook:{event_id}")
                task = BackgroundTask(tell, state.redis, operation)
        return Response({"received": True}, background=task)

    app = Litestar([receive], lifespan=[lifespan], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=int(os.environ["PORT"]), log_config=None, access_log=False)


async def measure(
    environment: Mapping[str, str], database_url: str, rounds: int, seconds: float, at_once: int
) -> None:
    """Print a line. Whatever was answered has to be stored, once each, with its operation."""
    with (
        running_server(MODULE, "hub", environment) as hub,
        running_server(MODULE, "by_hand", environment) as by_hand,
    ):
        servers = {"hub": hub, "by_hand": by_hand}
        for server in servers.values():
            status, said = await ask(server, deliveries(server)())
            if status != 200:
                raise RuntimeError(f"{status}: {said.decode(errors='replace')}")
        makes = {role: deliveries(server) for role, server in servers.items()}
        figures = await compare(servers, makes, rounds=rounds, seconds=seconds, connections=at_once)
    connection = await asyncpg.connect(plain_url(database_url))
    stored = await connection.fetchval("SELECT count(*) FROM integration_webhooks")
    queued = await connection.fetchval("SELECT count(*) FROM sync_queue")
    await connection.close()
    if not stored == queued == figures["answers"] + len(servers):
        raise RuntimeError(f"{figures['answers']} answers, {stored} events, {queued} operations")
    print(json.dumps({"case": "webhook intake", "at_once": at_once, **figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("hub", "by_hand"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    asked = parser.parse_args()
    if asked.serve == "hub":
        serve(read_settings())
    elif asked.serve == "by_hand":
        serve_by_hand()
    else:
        with running_stores() as stores:
            upgrade(stores.database_url)
            asyncio.run(fill(stores.database_url))
            environment = {
                **hub_environment(stores),
                "API_URL": PUBLIC,
                "SQUARE_WEBHOOK_SIGNATURE_KEY": KEY,
            }
            uvloop.run(measure(environment, stores.database_url, asked.rounds, asked.seconds, asked.at_once))


if __name__ == "__main__":
    main()
