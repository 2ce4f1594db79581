"""Calls to providers: each is counted, traced, and at level `debug` logged."""

from collections.abc import Callable

import structlog

from engine.client import CallReport
from server.telemetry import traces
from server.telemetry.metrics import API_CALLS, CALL_SECONDS

log = structlog.get_logger(__name__)


def watch_calls(provider: str) -> Callable[[CallReport], None]:
    """Return what a client is to tell of its calls (`on_call`)."""

    def watch(report: CallReport) -> None:
        status = "none" if report.status is None else f"{report.status // 100}xx"
        API_CALLS.add(provider)
        CALL_SECONDS.observe(report.seconds, provider, status)
        traces.called(
            report.call,
            report.seconds,
            status=report.status,
            provider=provider,
            attempt=report.attempt,
            size=report.bytes,
        )
        log.debug(
            "provider.called",
            provider=provider,
            call=report.call,
            status=report.status,
            duration_ms=round(report.seconds * 1000, 1),
            bytes=report.bytes,
            attempt=report.attempt,
        )

    return watch
