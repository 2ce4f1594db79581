"""Traces: one from a request over the operation it queued to the calls a worker makes of it.

Nothing of OpenTelemetry is imported unless the settings say that traces are sent; until then `span` and
`called` return at once. A span holds names, ids, statuses and times: a path as its route or manifest writes
it, never a query, a header, a body or the text of an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

Kind: TypeAlias = Literal["server", "consumer", "client", "internal"]
Value: TypeAlias = str | int | float | bool

SERVICE = "integration-hub"
TRACEPARENT = "traceparent"  # W3C's header, and its name in an operation's payload
FLUSH_MILLIS = 5000


@dataclass(frozen=True, slots=True)
class _Tracing:
    """What is imported once traces are wanted."""

    api: Any  # the module `opentelemetry.trace`
    tracer: Any
    provider: Any
    propagator: Any


_tracing: _Tracing | None = None


def tracing() -> bool:
    """Tell whether anything is traced in this process."""
    return _tracing is not None


def configure_tracing(process: str, processor: Callable[[], SpanProcessor] | None = None) -> None:
    """Begin to trace in this process, once; `process` says what it is.

    Where traces go and how many is read from the environment by the SDK itself, unless there is a
    `processor`. Needs the extra `tracing`.
    """
    global _tracing
    if _tracing is not None:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    named = Resource({"service.name": SERVICE, "hub.process": process})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor((processor or _exporting)())
    _tracing = _Tracing(trace, provider.get_tracer(SERVICE), provider, TraceContextTextMapPropagator())


def _exporting() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def flush() -> None:
    """Send what is left, waiting a few seconds at most; blocks."""
    if _tracing is not None:
        _tracing.provider.force_flush(FLUSH_MILLIS)


def stop() -> None:
    """Trace no more."""
    global _tracing
    if _tracing is not None:
        _tracing.provider.shutdown()
    _tracing = None


def span(
    name: str, *, kind: Kind = "internal", parent: str | None = None, **attributes: Value | None
) -> AbstractContextManager[Span | None]:
    """Return what traces a block, as part of what is traced around it or of the `parent` (a traceparent).

    Yields None when nothing is traced. An exception that leaves the block is told by its type.
    """
    return nullcontext() if _tracing is None else _span(_tracing, name, kind, parent, attributes)


@contextmanager
def _span(
    tracing: _Tracing, name: str, kind: Kind, parent: str | None, attributes: Mapping[str, Value | None]
) -> Iterator[Span]:
    context = tracing.propagator.extract({TRACEPARENT: parent}) if parent else None
    with tracing.tracer.start_as_current_span(
        name,
        context=context,
        kind=tracing.api.SpanKind[kind.upper()],
        attributes={f"hub.{key}": value for key, value in attributes.items() if value is not None},
        record_exception=False,  # its text may hold a record
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            fail(current, type(error).__name__)
            raise


def fail(current: Span | None, error: str) -> None:
    """Mark a span as failed; `error` is a code or the name of a type."""
    if current is not None and _tracing is not None:
        current.set_attribute("error.type", error)
        current.set_status(_tracing.api.StatusCode.ERROR)


def traceparent() -> str | None:
    """Return what is traced just now, as another process can go on with it; None when nothing is."""
    if _tracing is None:
        return None
    carrier: dict[str, str] = {}
    _tracing.propagator.inject(carrier)
    return carrier.get(TRACEPARENT)


def carried(payload: Mapping[str, Any], parent: str | None = None) -> dict[str, Any]:
    """Return an operation's payload with what is traced just now (or a `parent`), for its worker."""
    parent = parent or traceparent()
    return {**payload, TRACEPARENT: parent} if parent else dict(payload)


def called(name: str, seconds: float, *, status: int | None, provider: str, attempt: int, size: int) -> None:
    """Add a call to a provider that has just ended to what is traced."""
    if _tracing is None:
        return
    end = time.time_ns()
    current = _tracing.tracer.start_span(
        name,
        kind=_tracing.api.SpanKind.CLIENT,
        start_time=end - round(seconds * 1e9),
        attributes={
            "hub.provider": provider,
            "http.request.method": name.partition(" ")[0],
            "url.template": name.partition(" ")[2],
            "http.response.body.size": size,
            **({} if status is None else {"http.response.status_code": status}),
            **({"http.request.resend_count": attempt - 1} if attempt > 1 else {}),
        },
    )
    if status is None or status >= 400:
        fail(current, "none" if status is None else str(status))
    current.end(end)
