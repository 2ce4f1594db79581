"""What the measurements of the API share: servers in processes of their own, and a client that keeps asking.

The client speaks HTTP by hand over a few kept connections, one request at a time on each, so that it costs
little beside what it measures.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from server.embedded import Stores, embedded_stores

CONNECTIONS = 16
SECRET = "a-secret-of-the-measurement-with-more-than-32-bytes"
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be sent, and the status that its answer must have."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def raw(self, host: str) -> bytes:
        """Return the request as bytes."""
        method = "GET" if self.body is None else "POST"
        headers = {"Host": host, **self.headers}
        if self.body is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(self.body))}
        lines = [f"{method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body or b"")


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers."""

    port: int
    pid: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """Return how long the process has run on a processor; a busy machine changes little about it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_stores() -> Iterator[Stores]:
    """Embedded stores for one measurement, every commit on disk."""
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        Path(folder).chmod(0o711)
        with embedded_stores(Path(folder), database_url=None, redis_url=None) as stores:
            yield stores


def hub_environment(stores: Stores) -> dict[str, str]:
    """Return the settings of a hub on these stores: requests are counted, and never too many."""
    counted = ("RATE_LIMIT_MAX_REQUESTS", "HUB_RATE_LIMIT_WEBHOOKS", "HUB_RATE_LIMIT_ADMIN")
    return {
        "HUB_ENV": "test",
        "DATABASE_URL": stores.database_url,
        "REDIS_URL": stores.redis_url,
        "JWT_SECRET": SECRET,
        "ENCRYPTION_KEY": secrets.token_hex(32),
        **dict.fromkeys(counted, "1000000"),
    }


@contextmanager
def running_server(module: str, role: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run `python -m <module> --serve <role>` with PORT set; yields it once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", module, "--serve", role]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PORT": str(port)},
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"{role} didn't start: {said.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def plain_url(database_url: str) -> str:
    """Return a database's address as asyncpg takes it."""
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


async def ask(server: Server, raw: bytes) -> tuple[int, bytes]:
    """Send one request; returns status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        return await _exchange(reader, writer, raw)
    finally:
        writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes
) -> tuple[int, bytes]:
    writer.write(raw)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return int(head[9:12]), await reader.readexactly(length)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a time of asking came to: seconds, those of the server's processor, and those of each answer."""

    seconds: float
    cpu: float
    took: Sequence[float]

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds


async def keep_asking(
    server: Server, make: Callable[[], bytes], seconds: float, connections: int = CONNECTIONS
) -> Answered:
    """Ask for some seconds over some connections; raises RuntimeError for any answer but 200."""
    took: list[float] = []
    cpu, started = server.cpu_seconds(), time.perf_counter()

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while (sent := time.perf_counter()) - started < seconds:
            status, body = await _exchange(reader, writer, make())
            took.append(time.perf_counter() - sent)
            if status != 200:
                raise RuntimeError(f"{status}: {body.decode(errors='replace')}")
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one())
    return Answered(time.perf_counter() - started, server.cpu_seconds() - cpu, took)


async def compare(
    servers: Mapping[str, Server],
    make: Mapping[str, Callable[[], bytes]],
    *,
    rounds: int,
    seconds: float,
    connections: int = CONNECTIONS,
) -> Mapping[str, Any]:
    """Ask `hub` and `by_hand` by turns.

    Returns the median of the rounds' ratios with the lowest and the highest, how many answers there were in
    all, and of each server its median rate, how long answers took, and its processor time for each.
    """
    first: list[Answered] = []
    found: dict[str, list[Answered]] = {role: [] for role in servers}
    for role, server in servers.items():  # whatever is compiled, connected or kept at the first requests
        first.append(await keep_asking(server, make[role], seconds, connections))
    for turn in range(rounds):
        for role in sorted(servers, reverse=bool(turn % 2)):
            found[role].append(await keep_asking(servers[role], make[role], seconds, connections))
    ratios = [hub.rate / hand.rate for hub, hand in zip(found["hub"], found["by_hand"], strict=True)]
    figures: dict[str, Any] = {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_from": round(min(ratios), 2),
        "ratio_to": round(max(ratios), 2),
        "answers": sum(len(each.took) for each in (*first, *found["hub"], *found["by_hand"])),
    }
    for role, answers in found.items():
        took = sorted(each for one in answers for each in one.took)
        figures |= {
            f"{role}_per_second": round(statistics.median(one.rate for one in answers)),
            f"{role}_p50_ms": round(took[len(took) // 2] * 1000, 1),
            f"{role}_p99_ms": round(took[len(took) * 99 // 100] * 1000, 1),
            f"{role}_cpu_ms": round(sum(one.cpu for one in answers) / len(took) * 1000, 2),
        }
    return figures
