"""A process that asks for credentials as it is told, line by line, until its input ends.

`python -m tests.integration.refresh_worker`; the hub's settings are in the environment. It says `ready`.
A line `<venue> <how many> <what>` is that many callers at once, each a run of its own. They want the
`current` token, or another one than that which is named: the provider refuses it. The answer is a line of
JSON: how many got which token, and which error.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from uuid import UUID

import orjson

from engine.errors import HubError
from engine.ports import Credentials, Secret
from server.context import Context, open_context
from server.settings import read_settings
from server.telemetry import configure_logging


async def call(context: Context, venue: UUID, refused: str | None) -> tuple[str, str]:
    source = context.credentials(venue, "juniper")
    try:
        if refused is None:
            opened = await source.current()
        else:
            opened = await source.refresh(Credentials({"access_token": Secret(refused)}))
    except HubError as error:
        return "errors", f"{type(error).__name__} {error.code}"
    return "tokens", opened.values["access_token"].reveal()


async def answer(context: Context, line: str) -> bytes:
    venue, callers, what = line.split()
    refused = None if what == "current" else what
    came = Counter(await asyncio.gather(*(call(context, UUID(venue), refused) for _ in range(int(callers)))))
    told = {kind: {name: n for (of, name), n in came.items() if of == kind} for kind in ("tokens", "errors")}
    return orjson.dumps(told)


async def main() -> None:
    settings = read_settings(dict(os.environ))
    configure_logging(settings.log_level)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with open_context(settings, application_name="refresh worker") as context:
        print("ready", flush=True)
        while line := await lines.readline():
            print((await answer(context, line.decode())).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
