"""What unit tests put in the place of the outside: a clock, and a provider that answers from memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from engine.client import CallReport, Ceilings, ProviderClient
from engine.documents import read_document
from engine.manifest import Connector, compile_connector
from engine.memory import StaticCredentials
from engine.ports import Credentials, CredentialSource, RateLimiter, Secret

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@dataclass
class FakeClock:
    """Time that passes only by sleeping, at once. `chance` is what `random` gives."""

    seconds: float = 0.0
    chance: float = 0.5
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)

    def random(self) -> float:
        return self.chance


Reply = httpx.Response | Exception
Handler = Callable[[httpx.Request], Reply]


def reply(body: Any = None, status: int = 200, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """Return a JSON answer."""
    return httpx.Response(status, json=body, headers=headers)


class FakeProvider:
    """Answers with a function, or with replies in turn; keeps every request. `left` are replies not given."""

    def __init__(self, answer: Handler | Sequence[Reply]) -> None:
        self._answer = answer if callable(answer) else None
        self.left = [] if callable(answer) else list(answer)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        given = self._answer(request) if self._answer else self.left.pop(0)
        if isinstance(given, Exception):
            raise given
        if given.is_closed:  # made from content: send it as bytes, so that it can be given again
            return httpx.Response(
                given.status_code, headers=given.headers, stream=httpx.ByteStream(given.content)
            )
        return given

    @property
    def calls(self) -> list[str]:
        """Every request as `GET /path?query`."""
        return [f"{each.method} {each.url.raw_path.decode()}" for each in self.requests]

    def body(self, index: int = -1) -> Any:
        """Return the JSON body of a request."""
        return json.loads(self.requests[index].content)


def connector_of(manifest: str) -> Connector:
    """Compile a manifest from text."""
    return compile_connector(read_document(manifest, file="test.yaml"))


def client_of(
    connector: Connector | str,
    provider: FakeProvider,
    *,
    clock: FakeClock | None = None,
    source: CredentialSource | None = None,
    connection: Mapping[str, Any] | None = None,
    limiter: RateLimiter | None = None,
    ceilings: Ceilings | None = None,
    on_call: Callable[[CallReport], None] | None = None,
    on_unknown: Callable[[str, str], None] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> ProviderClient:
    """Return a client of a fake provider (or transport), with the credential `apiKey: key-12345`."""
    credentials = Credentials({"apiKey": Secret("key-12345")}, connection=connection or {})
    return ProviderClient(
        connector_of(connector) if isinstance(connector, str) else connector,
        source or StaticCredentials(credentials),
        http=httpx.AsyncClient(transport=transport or httpx.MockTransport(provider)),
        clock=clock or FakeClock(),
        limiter=limiter,
        ceilings=ceilings,
        on_call=on_call,
        on_unknown=on_unknown,
    )
