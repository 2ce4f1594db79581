"""Traces cost nothing until somebody wants them, and say nothing that isn't theirs to say."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from engine.client import CallReport
from server.settings import SettingsError, read_settings
from server.telemetry import traces
from server.telemetry.calls import watch_calls

ENVIRONMENT = {
    "HUB_ENV": "test",
    "JWT_SECRET": "a-secret-of-more-than-thirty-two-bytes",
    "ENCRYPTION_KEY": "0123456789abcdef0123456789abcdef",
}


def test_nothing_is_traced_until_it_is_wanted() -> None:
    assert not traces.tracing()
    with traces.span("work", provider="juniper") as span:
        assert span is None
        assert traces.traceparent() is None
        watch_calls("juniper")(CallReport("GET /customers", 200, 0.1, 10, 1))
    assert traces.carried({"syncType": "full"}) == {"syncType": "full"}
    traces.flush()


def test_opentelemetry_is_not_imported_until_it_is_wanted() -> None:
    program = (
        "import sys, server.telemetry.calls, server.telemetry.operations, server.telemetry.traces as t\n"
        "t.span('x'); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_SERVICE_NAME": "hub"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_say_whether_traces_are_sent(more: dict[str, str], wanted: bool) -> None:
    assert read_settings({**ENVIRONMENT, **more}).tracing is wanted


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError) as refused:
        read_settings({**ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert refused.value.problems == (
        "OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: install integration-hub[tracing], or set "
        "OTEL_SDK_DISABLED=true",
    )


def test_spans_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, str | None, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers["x-tenant"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        answering = Thread(target=collector.handle_request)
        answering.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=venues")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=staging")
        traces.configure_tracing("integration-hub worker")
        try:
            with traces.span("work sync", kind="consumer", provider="juniper"):
                pass
            traces.flush()
        finally:
            traces.stop()
        answering.join(timeout=10)
    [(path, tenant, body)] = received
    assert (path, tenant) == ("/v1/traces", "venues")
    for said in (b"work sync", b"juniper", b"integration-hub", b"integration-hub worker", b"staging"):
        assert said in body
