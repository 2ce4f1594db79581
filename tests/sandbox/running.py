"""Serving the stand-ins: one server, one port for each provider.

In a test: `with running_sandbox() as sandbox: …` with `sandbox.stripe_url`, `sandbox.square_url`.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn

from tests.sandbox import mailchimp, quickbooks, square, stripe
from tests.sandbox.core import Receive, Scope, Send, StandIn
from tests.sandbox.mailchimp import Mailchimp
from tests.sandbox.quickbooks import QuickBooks
from tests.sandbox.square import Square
from tests.sandbox.stripe import Stripe

START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where the stand-ins listen, and the stand-ins themselves."""

    stripe_url: str
    square_url: str
    mailchimp_url: str
    quickbooks_url: str
    stripe: Stripe
    square: Square
    mailchimp: Mailchimp
    quickbooks: QuickBooks


# What makes a stand-in, and what fills it; the names are those of the fields of `Sandbox`.
PROVIDERS: Mapping[str, tuple[Callable[[], StandIn], Callable[[Any, Sequence[str]], None]]] = {
    "stripe": (Stripe, stripe.seed_demo),
    "square": (Square, square.seed_demo),
    "mailchimp": (Mailchimp, mailchimp.seed_demo),
    "quickbooks": (QuickBooks, quickbooks.seed_demo),
}


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


def stand_ins(seed: str | None = None, known_emails: Sequence[str] = ()) -> dict[str, StandIn]:
    """Make every stand-in; `seed` is None or `demo`, filled in again after a reset."""
    if seed not in (None, "demo"):
        raise ValueError(f"unknown seed {seed!r}")
    made = {name: make() for name, (make, _) in PROVIDERS.items()}
    if seed == "demo":
        for name, (_, fill) in PROVIDERS.items():
            made[name].start_with(partial(fill, made[name], known_emails))
    return made


def listen(host: str, port: int, *, move: bool = False) -> socket.socket:
    """Bind a listening socket; port 0 takes a free one, and with `move` so does a taken one."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        if not move:
            made.close()
            raise
        made.bind((host, 0))
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
    """Serve every stand-in on free ports, in a thread, until the block ends."""
    made = stand_ins(seed, known_emails)
    sockets = [listen("127.0.0.1", 0) for _ in made]
    listening = threading.Event()
    server = make_server(sockets, list(made.values()), listening.set)
    thread = threading.Thread(target=server.run, args=(sockets,), name="sandbox", daemon=True)
    thread.start()
    try:
        if not listening.wait(START_SECONDS):
            raise RuntimeError("the sandbox did not start")
        urls: dict[str, Any] = {
            f"{name}_url": url_of("127.0.0.1", bound) for name, bound in zip(made, sockets, strict=True)
        }
        yield Sandbox(**urls, **dict[str, Any](made))
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        for bound in sockets:
            bound.close()
