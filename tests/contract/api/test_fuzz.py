"""Requests made up from the API's own description, right and wrong: each is answered as it says.

The suite sends a few, the same ones every time. `make fuzz` sends many as each caller, and others every time.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import uvicorn

from tests.contract.api.conftest import Hub, bearer

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")  # for each operation and caller
CONFIG = Path(__file__).with_name("schemathesis.toml")
LATER = 2**31 - 1  # when these tokens expire: a long run takes longer than a token lives
CALLERS: Mapping[str, Mapping[str, str]] = {
    "anonymous": {},
    "user": bearer("user", exp=LATER),
    "venue_admin": bearer("venue_admin", exp=LATER),
    "admin": bearer("admin", exp=LATER),
}
A_FEW = ("--phases=fuzzing", "--max-examples=1", "--generation-deterministic", "--no-shrink", "--workers=2")
MANY = ("--continue-on-failure",)


@pytest.fixture
async def address(hub: Hub) -> AsyncIterator[str]:
    """Where the API listens, with one integration of our venue."""
    await hub.connect_by_key()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(hub.app, log_config=None, lifespan="off", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.mark.parametrize("caller", CALLERS if EXAMPLES else ["admin"])
async def test_answers_are_as_the_description_says(address: str, caller: str, tmp_path: Path) -> None:
    headers = [f"--header={name}: {value}" for name, value in CALLERS[caller].items()]
    amount = (*MANY, f"--max-examples={EXAMPLES}") if EXAMPLES else A_FEW
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}"),
        *("run", f"{address}/schema/openapi.json", "--no-color", *headers, *amount),
        cwd=tmp_path,  # where it keeps what it found
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    print(said.decode())
