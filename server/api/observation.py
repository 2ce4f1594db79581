"""What is told of every request: a line in the log, its time among the metrics, and a span where traces go.

It stands around the whole application, so it sees the answer that really went out, whoever gave it.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from server.api.errors import request_id, shown_path
from server.api.guards import Caller, identify_scope
from server.errors import UnauthorizedError
from server.telemetry import traces
from server.telemetry.logs import say
from server.telemetry.metrics import REQUEST_SECONDS

log = structlog.get_logger(__name__)

NO_ANSWER = 499  # whoever asked went away first
NO_ROUTE = "none"
OTHER = "other"  # stands for all methods that callers make up: each told by its name would be a metric more
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds
_ABOUT = ("request_id", "provider", "venue_id")


def bind_provider(request: Request[Any, Any, Any]) -> None:
    """Let all that is logged while this request is worked name the provider that its path names."""
    provider = request.path_params.get("provider")
    if provider is not None:
        structlog.contextvars.bind_contextvars(provider=provider)


class Observation:
    """Tells of every request once, and gives whatever is logged during it the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = NO_ANSWER

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id(scope))
        try:
            if not traces.tracing():
                await self._app(scope, receive, watch)
                return
            with traces.span(_method(scope), kind="server", parent=_parent(scope)) as span:
                try:
                    await self._app(scope, receive, watch)
                finally:
                    _describe(span, scope, status)
        finally:
            seconds = time.perf_counter() - started
            route = str(scope.get("path_template") or NO_ROUTE)
            REQUEST_SECONDS.observe(seconds, route, _method(scope), str(status))
            caller = scope.get("user")
            # The path and not the query: an OAuth callback's query holds a code.
            (log.debug if route in PROBES else say)(
                "request.answered",
                method=scope["method"],
                path=shown_path(scope),
                status=status,
                duration_ms=round(seconds * 1000, 1),
                caller=caller.id if isinstance(caller, Caller) else None,
            )
            structlog.contextvars.unbind_contextvars(*_ABOUT)


def _method(scope: HTTPScope) -> str:
    method = str(scope["method"])
    return method if method in METHODS else OTHER


def _parent(scope: HTTPScope) -> str | None:
    """Return the trace that a caller goes on with; of those without a good token nobody's word is taken."""
    given = dict(scope["headers"]).get(b"traceparent")
    context = scope["litestar_app"].state.get("context")
    if given is None or context is None:
        return None
    try:
        identify_scope(scope, context.settings)
    except UnauthorizedError:
        return None
    return given.decode("latin-1")


def _describe(span: Any, scope: HTTPScope, status: int) -> None:
    """Say in a span what was asked for and answered: by the route, whose path holds no id and no secret."""
    route = str(scope.get("path_template") or NO_ROUTE)
    span.update_name(f"{_method(scope)} {route}")
    about = structlog.contextvars.get_contextvars()
    attributes = {
        "http.request.method": _method(scope),
        "http.route": route,
        "http.response.status_code": status,
        **{f"hub.{name}": about[name] for name in _ABOUT if name in about},
    }
    span.set_attributes(attributes)
    if status >= 500:
        traces.fail(span, str(status))
