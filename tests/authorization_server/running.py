"""Serving it over HTTP in a thread, counting what is asked, and going wrong when told to."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from tests.authorization_server.grants import (
    Behaviour,
    Client,
    Family,
    HttpAnswer,
    HttpRequest,
    Issued,
    Rules,
    Token,
)

LONGEST_WAIT = 30.0


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests of one kind, instead of a good answer.

    `on` is a grant type or `revoke`. It happens before anything is done, or, with `after`, once it has been:
    then the tokens are rotated and the client doesn't get them. `hold` waits until `server.release` is set,
    `drop` closes the connection, `status` answers with that and `body`; with neither the answer is the good
    one.
    """

    on: str = "refresh_token"
    times: int = 1
    after: bool = False
    hold: bool = False
    drop: bool = False
    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def refuse(cls, error: str = "invalid_grant", **more: Any) -> Fault:
        """Refuse as RFC 6749 says."""
        body = orjson.dumps({"error": error})
        return cls(status=400, body=body, headers={"Content-Type": "application/json"}, **more)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the token or revocation endpoint: its kind, fields, and headers by lower-case name."""

    kind: str
    fields: Mapping[str, str]
    headers: Mapping[str, str]


class _Dropped(Exception):  # noqa: N818 -- it isn't an error: the connection ends here
    pass


class AuthorizationServer:
    """A running server.

    `counts` holds requests by grant type and `revoke`, what came of them (`exchanged`, `refreshed`, `reused`,
    `revoked`), and whether resources could be `read` or were `refused`.
    """

    def __init__(self, behaviour: Behaviour, client_id: str, client_secret: str) -> None:
        self.behaviour = behaviour
        self.client_id, self.client_secret = client_id, client_secret
        self.issued = Issued()
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.release = threading.Event()
        self.url = ""
        self._rules = Rules(Client(client_id, client_secret, behaviour), behaviour, self.issued)
        self._one_at_a_time = threading.Lock()
        self._changed = threading.Condition()

    @property
    def counts(self) -> Counter[str]:
        return self.issued.counts

    def grant(self, scope: str = "") -> dict[str, Any]:
        """Return a token answer as if a venue had just come by."""
        with self._one_at_a_time:
            answer: dict[str, Any] = {
                "token_type": "Bearer",
                "access_token": f"canary7{secrets.token_urlsafe(24)}",
                "refresh_token": f"canary7{secrets.token_urlsafe(24)}",
                "expires_in": self.behaviour.access_seconds,
                "scope": scope,
            }
            self._rules.remember(answer, Family(self.behaviour.user, scope))
            return answer

    def lives(self, access_token: str) -> Token | None:
        """Return the token when a resource may be read with it."""
        return self.issued.lives(access_token)

    def advance(self, seconds: float) -> None:
        """Let time pass, here."""
        self.issued.ahead += seconds

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this server holds; it is looked at after each request."""
        with self._changed:
            if not self._changed.wait_for(condition, LONGEST_WAIT):
                raise AssertionError(f"it didn't come to that: {dict(self.counts)}")

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request; raises _Dropped for none."""
        try:
            return self._answer(request)
        finally:
            with self._changed:
                self._changed.notify_all()

    def _answer(self, request: HttpRequest) -> HttpAnswer:
        if request.path == "/authorize":
            with self._one_at_a_time:
                return self._rules.authorize(request)
        if request.path not in ("/token", "/revoke"):
            return self._resource(request)
        with self._one_at_a_time:
            asked = self._note(request)
            fault = next((each for each in self.faults if each.on == asked.kind and each.times > 0), None)
            if fault is not None:
                fault.times -= 1
        with self._changed:
            self._changed.notify_all()
        if fault is not None and not fault.after:
            self._go_wrong(fault)
            if fault.status is not None:
                return HttpAnswer(fault.status, fault.body, dict(fault.headers))
        with self._one_at_a_time:
            good = self._rules.token(request) if request.path == "/token" else self._rules.revoke(request)
        if fault is not None and fault.after:
            with self._changed:
                self._changed.notify_all()
            self._go_wrong(fault)
            if fault.status is not None:
                return HttpAnswer(fault.status, fault.body, dict(fault.headers))
        return good

    def _go_wrong(self, fault: Fault) -> None:
        if fault.hold and not self.release.wait(LONGEST_WAIT):
            raise AssertionError("nobody released the answer")
        if fault.drop:
            raise _Dropped

    def _note(self, request: HttpRequest) -> Asked:
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            body = dict(parse_qsl(request.body.decode(errors="replace"), keep_blank_values=True))
        fields = {str(name): str(value) for name, value in body.items()}
        kind = "revoke" if request.path == "/revoke" else fields.get("grant_type", "")
        asked = Asked(kind, fields, request.headers)
        self.asked.append(asked)
        self.counts[kind] += 1
        return asked

    def _resource(self, request: HttpRequest) -> HttpAnswer:
        """Everything else is a resource, read with a bearer token."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        with self._one_at_a_time:
            token = self.issued.lives(text) if scheme.lower() == "bearer" else None
            self.counts["read" if token else "refused"] += 1
        if token is None:
            return HttpAnswer.json(401, {"error": "invalid_token"}, **{"WWW-Authenticate": "Bearer"})
        return HttpAnswer.json(200, {"account": token.family.user, "path": request.path})


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own matter."""


def _handler(server: AuthorizationServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            request = HttpRequest(
                self.command,
                parts.path,
                dict(parse_qsl(parts.query, keep_blank_values=True)),
                _Headers(self.headers.items()),
                self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            )
            try:
                answer = server.answer(request)
            except _Dropped:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 -- names of the base class

        def log_message(self, *args: object) -> None:  # nothing: it would hold tokens
            return None

    return Handler


class _Headers(dict[str, str]):
    """Headers by lower-case name, found by any."""

    def __init__(self, items: Any) -> None:
        super().__init__((name.lower(), value) for name, value in items)

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@contextmanager
def running_authorization_server(
    behaviour: Behaviour | None = None, *, client_id: str = "the-app", client_secret: str = "the-app-secret"
) -> Iterator[AuthorizationServer]:
    """Serve on a free port of this machine, in a thread, until the block ends."""
    server = AuthorizationServer(behaviour or Behaviour(), client_id, client_secret)
    http = _Http(_handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(
        target=http.serve_forever, args=(0.02,), name="authorization server", daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        http.shutdown()
        thread.join(LONGEST_WAIT)
        http.server_close()
