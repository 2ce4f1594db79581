"""The API's process: how it takes connections, what ends those that are slow, and how it stops.

A client may take `request_seconds` for a request's head, as long again for its body (`server.api.bounds` says
so to it), and as long to read what waits for it. What the application takes is its own time.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, cast
from uuid import uuid4

import h11
import structlog
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from server.api.bounds import MOST_HEAD_BYTES
from server.api.errors import plain_error
from server.settings import Settings

log = structlog.get_logger(__name__)

SHUTDOWN_SECONDS = 20  # for what is under way, after the last connection was taken
LINGER_SECONDS = 2.0  # for a client to read an answer that came before the end of its request
TOGETHER_BYTES = 16 * 1024  # that are written at once, however much follows
FRESH_SECONDS = 1.0  # for the request on a connection that was taken just before the stop
SPARE_FILES = 500  # beside a descriptor for each client: stores, providers, logs


def serve(settings: Settings) -> None:
    """Serve the API until SIGTERM or SIGINT; what it has taken on is answered first.

    With `drain_seconds` it goes on for so long, saying at `/ready` that it is stopping. A second signal ends
    that at once.
    """
    from server.app import create_app

    _allow_files(settings.most_clients + SPARE_FILES)
    app = create_app(settings)
    _Server(_Config(app, settings), app, settings.drain_seconds).run()


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Config(uvicorn.Config):
    def __init__(self, app: Any, settings: Settings) -> None:
        super().__init__(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws="none",
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self.most_clients = settings.most_clients
        self.request_seconds = settings.request_seconds


class _Server(uvicorn.Server):
    """Tells the app at once that it is to stop, so that nobody is kept waiting for a sync to end."""

    def __init__(self, config: uvicorn.Config, app: Litestar, drain_seconds: float = 0) -> None:
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        loop = asyncio.get_running_loop()
        if self._drain_seconds and not self._draining:
            self._draining = True
            loop.call_soon_threadsafe(self._drain, sig)
        else:
            loop.call_soon_threadsafe(self._stop_waiting)
            super().handle_exit(sig, frame)

    def _drain(self, sig: int) -> None:
        log.info("api.draining", seconds=self._drain_seconds)
        self._app.state.draining = True
        self._close_after_answers()
        asyncio.get_running_loop().call_later(self._drain_seconds, self.handle_exit, sig, None)

    def _stop_waiting(self) -> None:
        stopping: asyncio.Event | None = self._app.state.get("stopping")
        if stopping is not None:
            stopping.set()

    def _close_after_answers(self) -> None:
        if CLOSE_HEADER not in self.config.encoded_headers:
            self.config.encoded_headers.append(CLOSE_HEADER)  # what the default headers are made of
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE_HEADER]

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        # What is there by now stays: manifests, routes. Looking through it for garbage again and again would
        # take a tenth of the processor's time.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: Any = None) -> None:
        self._close_after_answers()
        await super().shutdown(sockets)


class _Together:
    """A transport that sends what is written in one turn of the loop together: an answer's head and body.

    Handing each of them to the system takes as long as making both.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._send)
        self._held += data
        if len(self._held) > TOGETHER_BYTES:  # whoever writes much has to learn when it is too much
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class Connection(H11Protocol):
    """One client's connection, on which everything a client may take its time for has an end."""

    config: _Config
    _timer: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _state: Any = None
    since = 0.0  # when it was last heard of; the loop's own clock counts in milliseconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn's own override of BaseProtocol's method is as narrow.
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Together(transport, self.loop))
        self.since = time.monotonic()
        self._watch()
        if len(self.connections) > self.config.most_clients:
            _make_room(cast("Sequence[Connection]", list(self.connections)))

    def data_received(self, data: bytes) -> None:
        self.since = time.monotonic()
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._reader):
            if timer is not None:
                timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # What is still sent goes nowhere; closing at once could take the answer away from the client.
            self._start(LINGER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(self.config.request_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def shutdown(self) -> None:
        if self._cycle is None and time.monotonic() - self.since < FRESH_SECONDS:
            self.loop.call_later(FRESH_SECONDS, self._end)
        else:
            super().shutdown()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered on it."""
        return self._cycle is None or self._cycle.response_complete

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # which is None until there is a request, whatever its type says

    def _watch(self) -> None:
        """Start the clock when it is the client's turn to send, and stop it when it isn't any more."""
        before, state = self._state, self.conn.their_state
        if state is before:
            return
        self._state = state
        if state is h11.IDLE and before is h11.SEND_BODY:  # the rest of a request, after its answer
            self._state = h11.DONE
            self._start(None)
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif state is h11.IDLE:
            self._start(self.config.request_seconds)
        elif state is h11.SEND_BODY:
            # The application answers a body that is late. This is for one that nobody waits for.
            self._start(self.config.request_seconds + LINGER_SECONDS)
        else:
            self._start(None)

    def _start(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if not self.idle or self.conn.their_state is not h11.IDLE:
            self.transport.abort()
        elif self.conn.trailing_data[0]:
            self._refuse(408, "the request took too long to arrive")
        else:  # nothing was asked, so there is nothing to answer
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or a head that is too large, as the API answers everything else."""
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if hint == 431:
            self._refuse(431, f"the request's head has more than {MOST_HEAD_BYTES} bytes")
        else:
            self._refuse(400, "this isn't an HTTP request")

    def _refuse(self, status: int, sentence: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id = uuid4().hex
            body = plain_error(status, sentence, request_id)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("x-request-id", request_id),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            log.info("request.refused", status=status, request_id=request_id)
        self.transport.close()


def _make_room(connections: Sequence[Connection]) -> None:
    """Close whichever has been silent longest of those that wait for an answer to nothing."""
    silent = [each for each in connections if each.idle and not each.transport.is_closing()]
    if silent:
        min(silent, key=lambda each: each.since).transport.abort()
