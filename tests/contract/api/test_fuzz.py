"""Requests made up from the API's own description, right and wrong ones: each is answered as the description says.

The suite sends a few of each kind, the same ones every time. `make fuzz` sends many, and others every time.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.contract.api.conftest import OURS, Hub, bearer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
CONFIG = Path(__file__).with_name("schemathesis.toml")
CALLERS: Mapping[str, Mapping[str, str]] = {
    "anonymous": {},
    "user": bearer("user"),
    "venue_admin": bearer("venue_admin"),
    "admin": bearer("admin", exp=2**31 - 1),
}


@pytest.fixture
async def address(hub: Hub) -> AsyncIterator[str]:
    """Where the API listens, with one integration of our venue."""
    await hub.connect_by_key()
    config = uvicorn.Config(hub.app, port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    [listening] = server.servers
    yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.mark.parametrize("caller", CALLERS)
async def test_answers_are_as_the_description_says(address: str, caller: str) -> None:
    arguments: list[str] = [f"--config-file={CONFIG}", "run", f"{address}/schema/openapi.json", "--no-color"]
    for name, value in CALLERS[caller].items():
        arguments += ["--header", f"{name}: {value}"]
    if EXAMPLES:
        arguments += ["--max-examples", str(EXAMPLES), "--continue-on-failure"]
    else:
        arguments += ["--phases=fuzzing", "--max-examples=2", "--generation-deterministic", "--no-shrink"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
