"""What every stand-in shares: the HTTP side, counters, limits, planned faults and the control API.

A provider subclasses `StandIn`, gives a table of routes and says how it words its own errors.
Handlers are plain functions from `Call` to `Answer`; they run to their end without a pause, so
each is atomic. A pause (latency) comes between `admit` and the handler, which is where two calls
can meet.
"""

import asyncio
import copyreg
import pickle
import random
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson

from tests.sandbox.courier import Courier
from tests.sandbox.shelf import Json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Documents are kept as the text they are sent as; that text is what a saved state holds.
copyreg.pickle(orjson.Fragment, lambda fragment: (orjson.Fragment, (orjson.dumps(fragment),)))

CONTROL = "/_sandbox/"
HTML_FAILURE = (
    b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
)
FAULTS = re.compile(
    r"status:\d{3}|html|disconnect|truncated|repeat_page|timeout:\d+(\.\d+)?"
    r"|after:(\d{3}|disconnect|timeout:\d+(\.\d+)?)"
)


@dataclass(slots=True)
class Call:
    """One request. `parts` holds what filled the braces of the route."""

    method: str
    path: str
    key: str
    parts: dict[str, str]
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    state: Json = field(default_factory=dict)  # what `admit` found out: caller, claimed keys

    def json(self) -> Any:
        """Return the body read as JSON; raise ValueError when it is none."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. A `body` of bytes is sent as it is, anything else as JSON."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    def content(self) -> bytes:
        """Return the bytes of the body."""
        return self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)


class RefusedError(Exception):
    """Ends a call with an error answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


Handler = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API. `key` reads `POST /v1/things/{id}`; `writes` says it changes state."""

    key: str
    handler: Handler
    writes: bool = False
    scope: str | None = None
    limits_apply: bool = True


class Routes:
    """Finds the route of a path without trying them all."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact: dict[str, Route] = {}
        self._patterns: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}
        for route in routes:
            method, path = route.key.split(" ", 1)
            if "{" in path:
                pieces = path.split("/")
                self._patterns.setdefault((method, len(pieces)), []).append((pieces, route))
            else:
                self._exact[route.key] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """Return the route and what filled its braces, or None."""
        if route := self._exact.get(f"{method} {path}"):
            return route, {}
        pieces = path.split("/")
        for wanted, route in self._patterns.get((method, len(pieces)), ()):
            parts: dict[str, str] = {}
            for want, piece in zip(wanted, pieces, strict=True):
                if want.startswith("{") and piece:
                    parts[want[1:-1]] = piece
                elif want != piece:
                    break
            else:
                return route, parts
        return None


class SandboxClock:
    """The time of day for the stand-in; a test may push it forward."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead = 0.0

    def now(self) -> float:
        """Return Unix seconds."""
        return self._source() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let `seconds` go by at once."""
        self._ahead += seconds


def rfc3339(seconds: float) -> str:
    """Write Unix seconds as `2026-11-24T02:43:00.123Z`; such texts sort by time."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class Bucket:
    """A token bucket holding at most one second's worth of calls."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._tokens = max(rate, 1.0)
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        self._tokens = min(max(self.rate, 1.0), self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class FaultRule:
    """One planned failure. `match` is a route key, with `*` and `?` as in file names."""

    match: str
    fault: str
    rate: float = 1.0
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    page: Answer | None = None

    @classmethod
    def read(cls, given: Json) -> "FaultRule":
        """Build a rule from the control API's JSON; raise ValueError when it makes no sense."""
        extra = set(given) - {"match", "fault", "rate", "times", "headers"}
        fault = str(given.get("fault"))
        if not FAULTS.fullmatch(fault):
            raise ValueError(f"unknown fault {fault!r}; a fault looks like {FAULTS.pattern}")
        if extra:
            raise ValueError(f"unknown keys {sorted(extra)}")
        return cls(
            match=str(given.get("match", "*")),
            fault=fault,
            rate=float(given.get("rate", 1.0)),
            times=None if given.get("times") is None else int(given["times"]),
            headers={str(k): str(v) for k, v in given.get("headers", {}).items()},
        )


class Faults:
    """Decides which calls fail. The dice are seeded: the same calls fail in every run."""

    def __init__(self) -> None:
        self.rules: list[FaultRule] = []
        self._dice = random.Random(0)

    def plan(self, rules: Sequence[FaultRule], seed: int) -> None:
        """Replace all rules."""
        self.rules = list(rules)
        self._dice = random.Random(seed)

    def draw(self, key: str) -> FaultRule | None:
        """Return the rule that hits this call, used up by one."""
        for rule in self.rules:
            if rule.times == 0 or not fnmatchcase(key, rule.match):
                continue
            if rule.rate < 1.0 and self._dice.random() >= rule.rate:
                continue
            if rule.times is not None:
                rule.times -= 1
            return rule
        return None


@dataclass(slots=True)
class Counts:
    """How often what was called, and what came of it."""

    by_call: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    total: int = 0
    writes: int = 0
    writes_succeeded: int = 0
    rate_limited: int = 0
    faults: int = 0
    replayed: int = 0


class DroppedError(Exception):
    """The connection is to be closed without an answer."""


class StandIn(ABC):
    """An ASGI application that answers like a provider."""

    version_header: str

    def __init__(self, clock: SandboxClock | None = None) -> None:
        self.clock = clock or SandboxClock()
        self.courier = Courier()
        self.routes = Routes(self.route_table())
        self.controls: dict[str, Handler] = {**self._shared_controls(), **self.control_table()}
        self._restart: Callable[[], None] = lambda: None
        self.start_empty()

    def start_empty(self) -> None:
        """Forget everything, limits, faults and counters included."""
        self.counts = Counts()
        self.faults = Faults()
        self.latency = 0.0
        self.set_limits: Json = {}
        self._buckets: dict[tuple[str, ...], Bucket] = {}
        self.courier.forget()
        self.empty_state()

    def start_with(self, seed: Callable[[], None]) -> None:
        """Fill with `seed`, now and after every reset."""
        self._restart = seed
        seed()
        self.counts = Counts()

    # What a provider says for itself.

    @abstractmethod
    def route_table(self) -> Sequence[Route]:
        """Return the calls of the API."""

    @abstractmethod
    def control_table(self) -> dict[str, Handler]:
        """Return control calls beyond the shared ones."""

    @abstractmethod
    def empty_state(self) -> None:
        """Set every collection to its first state."""

    @abstractmethod
    def stored(self, kind: str) -> list[Json]:
        """Return all objects of a type, of every account, with `account` added."""

    @abstractmethod
    def memory(self) -> Sequence[tuple[object, Sequence[str]]]:
        """Return what is worth keeping between two starts: objects, and the names of their attributes."""

    def save(self, path: Path) -> None:
        """Write the memory to a file, whole or not at all."""
        kept = [{name: getattr(owner, name) for name in names} for owner, names in self.memory()]
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(pickle.dumps(kept))
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; the file is this sandbox's own."""
        for (owner, _), values in zip(self.memory(), pickle.loads(path.read_bytes()), strict=True):
            for name, value in values.items():
                setattr(owner, name, value)

    @abstractmethod
    def failure(self, status: int, detail: str | None = None) -> Answer:
        """Word an error of the provider's own side, or 429, or an unknown path (404)."""

    @abstractmethod
    def admit(self, call: Call, route: Route) -> Answer | None:
        """Check who calls and claim what the call needs; an answer here ends the call (a replay)."""

    @abstractmethod
    def settle(self, call: Call, answer: Answer) -> None:
        """Remember the outcome of an executed call for repeated idempotency keys."""

    @abstractmethod
    def release(self, call: Call) -> None:
        """Give back what `admit` claimed."""

    @abstractmethod
    def finish(self, call: Call, answer: Answer) -> Answer:
        """Add the headers every answer carries."""

    @abstractmethod
    def repeated(self, page: Answer) -> Answer:
        """Return a list answer that promises more."""

    @abstractmethod
    def revoke(self, given: Json) -> int:
        """Let credentials die; return how many."""

    def rates(self, call: Call) -> tuple[float | None, float | None]:
        """Return calls per second for the account and for each endpoint; None is no limit."""
        return None, None

    def hold(self, call: Call, route: Route) -> float:
        """Return the seconds a call takes at least."""
        return 0.0

    def executed_failure(self, call: Call, status: int, answer: Answer) -> Answer:
        """Return what repeated calls shall get when the work was done and `status` was sent."""
        return answer

    def effect(self, name: str) -> None:
        """Count a change of stored data, such as `product.created`."""
        self.counts.effects[name] += 1

    # The way of a call.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("the sandbox speaks HTTP only")
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        path, method = scope["path"], scope["method"]
        call = Call(
            method=method,
            path=path,
            key=f"{method} {path}",
            parts={},
            query=parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True),
            headers={
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
            },
            body=body,
        )
        if path.startswith(CONTROL):
            await _send(send, self._control(call))
            return
        try:
            answer = await self._answer(call)
        except DroppedError:
            await _drop(receive, send)
            return
        self.counts.by_status[str(answer.status)] += 1
        await _send(send, answer)

    async def _answer(self, call: Call) -> Answer:
        counts = self.counts
        found = self.routes.find(call.method, call.path)
        counts.total += 1
        if version := call.headers.get(self.version_header):
            counts.versions[version] += 1
        if found is None:
            counts.by_call[f"{call.method} (unknown)"] += 1
            return self.finish(call, self.failure(404, f"{call.method}: {call.path}"))
        route, call.parts = found
        call.key = route.key
        counts.by_call[route.key] += 1
        counts.writes += route.writes
        rule = self.faults.draw(route.key)
        fault = rule.fault if rule else ""
        counts.faults += bool(rule)
        if rule and rule.page:
            return rule.page
        kind, _, value = fault.partition(":")
        match kind:
            case "status":
                return self.finish(call, self._failed(int(value), rule))
            case "html":
                return Answer(502, HTML_FAILURE, rule.headers if rule else {}, "text/html; charset=utf-8")
            case "disconnect":
                raise DroppedError
            case "timeout":
                await asyncio.sleep(float(value))
        answer = await self._execute(call, route, value if kind == "after" else "")
        if answer.status == 429:
            counts.rate_limited += 1
        answer = self.finish(call, answer)
        match kind:
            case "after":
                return await self._fail_after(call, answer, value, rule)
            case "truncated":
                content = answer.content()
                return Answer(200, content[: len(content) // 2], answer.headers)
            case "repeat_page" if rule and answer.status == 200:
                rule.page = self.repeated(answer)
                return rule.page
        if route.writes and answer.status < 300:
            counts.writes_succeeded += 1
        return answer

    async def _execute(self, call: Call, route: Route, after: str) -> Answer:
        if route.limits_apply and not self._within_limits(call):
            return self.failure(429, call.state.get("limiter"))
        try:
            try:
                replay = self.admit(call, route)
                pause = max(self.latency, self.hold(call, route))
                if pause:
                    await asyncio.sleep(pause)
                if replay is not None:
                    self.counts.replayed += 1
                    return replay
                try:
                    answer = route.handler(call)
                except RefusedError as refusal:
                    answer = refusal.answer
                outcome = self.executed_failure(call, int(after), answer) if after.isdigit() else answer
                self.settle(call, outcome)
                return answer
            finally:
                self.release(call)
        except RefusedError as refusal:
            return refusal.answer

    async def _fail_after(self, call: Call, answer: Answer, what: str, rule: FaultRule | None) -> Answer:
        if what == "disconnect":
            raise DroppedError
        if what.startswith("timeout:"):
            await asyncio.sleep(float(what.partition(":")[2]))
            return answer
        return self.finish(call, self._failed(int(what), rule))

    def _failed(self, status: int, rule: FaultRule | None) -> Answer:
        answer = self.failure(status)
        headers = {**answer.headers, **(rule.headers if rule else {})}
        return Answer(answer.status, answer.body, headers, answer.content_type)

    def _within_limits(self, call: Call) -> bool:
        whole, each = self.rates(call)
        whole = self.set_limits.get("requests_per_second", whole)
        each = self.set_limits.get("per_endpoint", each)
        caller = call.headers.get("authorization", "")
        for limiter, name, rate in (
            ("global-rate", (caller,), whole),
            ("endpoint-rate", (caller, call.key), each),
        ):
            if rate is None:
                continue
            bucket = self._buckets.get(name)
            if bucket is None or bucket.rate != rate:
                bucket = self._buckets[name] = Bucket(rate, self.clock.now())
            if not bucket.take(self.clock.now()):
                call.state["limiter"] = limiter
                return False
        return True

    # The control API.

    def _control(self, call: Call) -> Answer:
        handler = self.controls.get(call.key)
        if handler is None:
            return Answer(404, {"error": f"no control call {call.key}", "known": sorted(self.controls)})
        try:
            return handler(call)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return Answer(400, {"error": f"{type(error).__name__}: {error}"})

    def _shared_controls(self) -> dict[str, Handler]:
        return {
            "GET /_sandbox/calls": self._show_calls,
            "POST /_sandbox/calls/reset": self._reset_calls,
            "GET /_sandbox/objects": lambda call: Answer(
                200, {"objects": self.stored(dict(call.query).get("type", ""))}
            ),
            "POST /_sandbox/faults": self._plan_faults,
            "DELETE /_sandbox/faults": self._clear_faults,
            "POST /_sandbox/latency": self._set_latency,
            "POST /_sandbox/limits": self._set_limits,
            "POST /_sandbox/clock": self._advance_clock,
            "GET /_sandbox/letters": self._show_letters,
            "POST /_sandbox/courier": self._change_courier,
            "POST /_sandbox/tokens/revoke": lambda call: Answer(200, {"revoked": self.revoke(call.json())}),
            "POST /_sandbox/reset": self._reset,
        }

    def _show_calls(self, _: Call) -> Answer:
        counts = self.counts
        return Answer(
            200,
            {
                "total": counts.total,
                "by_call": counts.by_call,
                "by_status": counts.by_status,
                "versions": counts.versions,
                "effects": counts.effects,
                "writes": counts.writes,
                "writes_succeeded": counts.writes_succeeded,
                "rate_limited": counts.rate_limited,
                "faults": counts.faults,
                "replayed": counts.replayed,
            },
        )

    def _reset_calls(self, _: Call) -> Answer:
        self.counts = Counts()
        return Answer(200, {"reset": True})

    def _plan_faults(self, call: Call) -> Answer:
        given = call.json()
        rules = [FaultRule.read(rule) for rule in given["rules"]]
        self.faults.plan(rules, int(given.get("seed", 0)))
        return Answer(200, {"rules": len(rules)})

    def _clear_faults(self, _: Call) -> Answer:
        self.faults.plan([], 0)
        return Answer(200, {"rules": 0})

    def _show_letters(self, _: Call) -> Answer:
        sent = [
            {"name": each.letter.name, "url": each.letter.url, "tries": each.tries, "over": each.over}
            for each in self.courier.sent
        ]
        return Answer(200, {"letters": sent})

    def _change_courier(self, call: Call) -> Answer:
        given = call.json()
        self.courier.behave(**given)
        return Answer(200, given)

    def _set_latency(self, call: Call) -> Answer:
        self.latency = float(call.json()["seconds"])
        return Answer(200, {"seconds": self.latency})

    def _set_limits(self, call: Call) -> Answer:
        given = call.json()
        unknown = set(given) - {"requests_per_second", "per_endpoint"}
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        self.set_limits.update({name: None if rate is None else float(rate) for name, rate in given.items()})
        return Answer(200, self.set_limits)

    def _advance_clock(self, call: Call) -> Answer:
        self.clock.advance(float(call.json()["advance"]))
        return Answer(200, {"now": rfc3339(self.clock.now())})

    def _reset(self, _: Call) -> Answer:
        self.start_empty()
        self.start_with(self._restart)
        return Answer(200, {"reset": True})


async def _send(send: Send, answer: Answer) -> None:
    content = answer.content()
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(content)).encode()),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _drop(receive: Receive, send: Send) -> None:
    # ASGI has no way to hang up; the server's connection is behind the method it gave us.
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionResetError("the sandbox was told to drop this connection")
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
