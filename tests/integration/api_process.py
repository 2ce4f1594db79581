"""The API as a process of its own, for what only a real server shows: slow clients, signals, a proxy."""

import asyncio
import base64
import hmac
import json
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import jwt

from server.processes import child_command, log_tail, open_log
from tests import canary

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[2]
API = "/api/v1/integrations"
VENUE = UUID("5d0c3a52-0f5e-4f59-8b39-0d3a5be5a3f2")
WEBHOOK_KEY = canary.planted("signature-key")


@dataclass(frozen=True, slots=True)
class ApiProcess:
    """A running `hub serve`."""

    process: asyncio.subprocess.Process
    environment: Mapping[str, str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bearer(self, role: str = "venue_admin") -> dict[str, str]:
        claims = {"sub": "tester", "role": role, "venueId": str(VENUE), "exp": int(time.time()) + 600}
        token = jwt.encode(claims, self.environment["JWT_SECRET"], algorithm="HS256")
        return {"Authorization": f"Bearer {token}"}

    def delivery(self, event_id: str) -> tuple[bytes, dict[str, str]]:
        """Return a webhook's body and headers, for account M1 and signed as its provider would."""
        event = {
            "merchant_id": "M1",
            "type": "customer.updated",
            "event_id": event_id,
            "created_at": "2026-03-01T11:59:00Z",
            "data": {"id": "C1"},
        }
        body = json.dumps(event).encode()
        signed = f"{self.environment['API_URL']}{API}/webhooks/square".encode() + body
        signature = base64.b64encode(hmac.digest(WEBHOOK_KEY.encode(), signed, "sha256")).decode()
        return body, {"x-square-hmacsha256-signature": signature, "content-type": "application/json"}

    async def ready(self) -> httpx.Response | None:
        """Return what `/ready` says on a connection of its own; None when nobody answers."""
        async with httpx.AsyncClient(timeout=60) as client:
            with suppress(httpx.HTTPError):
                return await client.get(f"{self.url}/ready")
        return None

    async def until(self, condition: Callable[[], Awaitable[T | None]], what: str, seconds: float = 60) -> T:
        """Wait until a condition gives something; raises AssertionError with the log's end."""
        deadline = time.monotonic() + seconds
        while (found := await condition()) is None or found is False:
            assert time.monotonic() < deadline, f"waited for {what}\n{log_tail(self.log)}"
            await asyncio.sleep(0.02)
        return found

    def logged(self) -> list[dict[str, Any]]:
        """Return the events it has logged, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@asynccontextmanager
async def running_api(
    database_url: str, redis_url: str, folder: Path, **settings: str
) -> AsyncIterator[ApiProcess]:
    """Run the API over these stores until the block ends, with settings of the test's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "HUB_ENV": "test",
        "PORT": str(port),
        "API_URL": f"http://127.0.0.1:{port}",
        "HUB_STATE": str(folder / "state"),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": canary.planted("jwt", secrets.token_hex(32)),
        "ENCRYPTION_KEY": canary.planted("vault", secrets.token_hex(16))[:32],
        "SQUARE_WEBHOOK_SIGNATURE_KEY": WEBHOOK_KEY,
        **settings,
    }
    with open_log(folder / "api.log") as output:
        process = await asyncio.create_subprocess_exec(
            *child_command([sys.executable, "-m", "server.cli", "serve"], signal.SIGKILL),
            cwd=PROJECT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    api = ApiProcess(process, environment, port, folder / "api.log")

    async def is_ready() -> bool:
        assert process.returncode is None, log_tail(api.log)
        answer = await api.ready()
        return answer is not None and answer.status_code == 200

    try:
        await api.until(is_ready, "the API to be ready", 120)
        yield api
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        canary.look_at_files("an API process", [api.log])
