"""Serving the stand-ins: one server, one port for each provider.

In a test: `with running_sandbox() as sandbox: …` with `sandbox.stripe_url`, `sandbox.square_url`.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn

from tests.sandbox import square, stripe
from tests.sandbox.core import Receive, Scope, Send, StandIn
from tests.sandbox.square import Square
from tests.sandbox.stripe import Stripe

START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where the stand-ins listen, and the stand-ins themselves."""

    stripe_url: str
    square_url: str
    stripe: Stripe
    square: Square


class ByPort:
    """Hands each call to the stand-in whose port it came in by."""

    def __init__(self, stand_ins: Mapping[int, StandIn]) -> None:
        self._stand_ins = stand_ins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stand_ins[scope["server"][1]](scope, receive, send)


class AnnouncingServer(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()


def stand_ins(seed: str | None = None, known_emails: Sequence[str] = ()) -> tuple[Stripe, Square]:
    """Make both stand-ins; `seed` is None or `demo`, filled in again after a reset."""
    made = Stripe(), Square()
    if seed == "demo":
        made[0].start_with(partial(stripe.seed_demo, made[0], known_emails))
        made[1].start_with(partial(square.seed_demo, made[1], known_emails))
    elif seed is not None:
        raise ValueError(f"unknown seed {seed!r}")
    return made


def listen(host: str, port: int) -> socket.socket:
    """Bind a listening socket; port 0 takes a free one."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    return made


def make_server(
    sockets: Sequence[socket.socket], made: Sequence[StandIn], listening: Callable[[], None]
) -> AnnouncingServer:
    """Build the server for sockets and stand-ins, in the same order."""
    ports = {bound.getsockname()[1]: stand_in for bound, stand_in in zip(sockets, made, strict=True)}
    config = uvicorn.Config(
        ByPort(ports),
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return AnnouncingServer(config, listening)


def url_of(host: str, bound: socket.socket) -> str:
    """Return the origin of a bound socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


@contextmanager
def running_sandbox(seed: str | None = None, known_emails: Sequence[str] = ()) -> Iterator[Sandbox]:
    """Serve both stand-ins on free ports, in a thread, until the block ends."""
    made = stand_ins(seed, known_emails)
    sockets = [listen("127.0.0.1", 0), listen("127.0.0.1", 0)]
    listening = threading.Event()
    server = make_server(sockets, made, listening.set)
    thread = threading.Thread(target=server.run, args=(sockets,), name="sandbox", daemon=True)
    thread.start()
    try:
        if not listening.wait(START_SECONDS):
            raise RuntimeError("the sandbox did not start")
        yield Sandbox(url_of("127.0.0.1", sockets[0]), url_of("127.0.0.1", sockets[1]), *made)
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        for bound in sockets:
            bound.close()
