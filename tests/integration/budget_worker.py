"""A process that calls one account of a stand-in, as fast as it is let, until it is killed.

`python -m tests.integration.budget_worker <origin of the stand-in>`; Redis is `REDIS_URL`.
"""

import asyncio
import os
import sys

from engine.calls import Request
from engine.client import ProviderClient
from engine.documents import read_document
from engine.manifest import compile_connector
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from engine.transport import open_client
from server.limits import SharedLimits
from server.worker.context import open_redis

ORIGIN = "https://api.juniper.example"
RATE = 40  # a second: less than what a busy machine can do
MANIFEST = f"""
manifest: 1
connector: juniper
title: Juniper
docs: {ORIGIN}
server: {{production: {ORIGIN}}}
auth: {{type: bearer, token: key, credentials: {{key: {{title: Key}}}}}}
check: GET /v1/customers
limits: {{requests: {RATE} per second, concurrent: 20}}
resources:
  customer: {{id: id, fields: {{name: text}}}}
"""
COROUTINES = 10


async def main(target: str, redis_url: str) -> None:
    credentials = StaticCredentials(Credentials({"key": Secret("sk_test_demo")}))
    connector = compile_connector(read_document(MANIFEST, file="juniper.yaml"))
    async with open_redis(redis_url) as redis, open_client(origin_overrides={ORIGIN: target}) as http:
        limiter = SharedLimits(redis).lane(critical=False)
        client = ProviderClient(connector, credentials, http=http, limiter=limiter, budget="venue-1")

        async def call() -> None:
            while True:
                await client.call(Request("GET", "/v1/customers", {"limit": "1"}))

        await asyncio.gather(*(call() for _ in range(COROUTINES)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], os.environ["REDIS_URL"]))
