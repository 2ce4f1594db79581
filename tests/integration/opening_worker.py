"""A process that opens the credentials of every integration, over and over, until its input ends.

`python -m tests.integration.opening_worker`; the settings are the environment's. In the end it writes how
often it opened some, and what went wrong.
"""

import asyncio
import json
import sys

from sqlalchemy import select

from engine.errors import HubError
from server.context import open_context
from server.db.models import IntegrationConfig
from server.settings import read_settings


async def main() -> None:
    asked_to_stop = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    opened, errors = 0, []
    async with open_context(read_settings(), application_name="opening", connections=4) as context:
        async with context.sessions() as session:
            places = select(IntegrationConfig.venue_id, IntegrationConfig.integration_type)
            integrations = (await session.execute(places)).tuples().all()
        print("ready", flush=True)
        while not asked_to_stop.done():
            for venue, provider in integrations:
                try:
                    await context.credentials(venue, provider).current()
                    opened += 1
                except HubError as error:
                    errors.append(f"{venue} {provider}: {error.message}")
                if asked_to_stop.done():
                    break
    print(json.dumps({"opened": opened, "errors": errors}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
