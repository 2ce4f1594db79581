"""What is told of requests: lines in the log, metrics, and one trace from a request to a provider."""

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.ports import Secret
from server.db.models import WebhookStatus
from server.services import health, webhooks
from server.services.runs import Run, run_operation
from server.settings import Settings
from server.telemetry import configure_logging, metrics, traces
from server.telemetry.counting import KEY, read_counts
from server.worker.context import open_worker_context
from server.worker.main import serve
from server.worker.tasks import Worker
from tests import canary, claims
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, USER_ID, Hub, bearer
from tests.contract.api.test_webhooks import SQUARE_KEY, connected, square, square_event

ROOT = bearer("admin", None)
SYNC = f"{API}/sync/stripe/sync"
CONNECT = f"{API}/connect/{{provider}}"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged at level info, instead of where it went before."""
    loggers = [logging.getLogger(name) for name in (None, "server", "engine", "uvicorn")]
    before, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    configured = structlog.get_config()
    stream = io.StringIO()
    configure_logging("info", stream)
    yield stream
    structlog.configure(**configured)
    loggers[0].handlers[:] = before
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    canary.look("the log of requests", stream.getvalue())


@pytest.fixture
async def counted(hub: Hub) -> Callable[[], Awaitable[metrics.Counts]]:
    """What was counted since the test began, the processes' own way: by Redis."""
    await hub.context.flush.flush()
    await hub.context.redis.delete(KEY)

    async def read() -> metrics.Counts:
        await hub.context.flush.flush()
        return await read_counts(hub.context.redis)

    return read


def answered(lines: io.StringIO) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in told if line["message"] == "request.answered"]


async def test_a_request_is_told_with_whom_and_what_it_is_about(hub: Hub, lines: io.StringIO) -> None:
    await hub.connect_by_key()
    lines.seek(0)
    lines.truncate()
    await hub.get(
        f"{API}/stripe", params={"venueId": str(OURS)}, headers={**bearer(), "X-Request-Id": "req-1"}
    )
    [line] = answered(lines)
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "service": "integration-hub",
        "level": "info",
        "message": "request.answered",
        "request_id": "req-1",
        "provider": "stripe",
        "venue_id": str(OURS),
        "method": "GET",
        "path": f"{API}/stripe",
        "status": 200,
        "caller": USER_ID,
    }


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", f"{API}/stripe?venueId={OURS}", {}, 401),
        ("GET", f"{API}/stripe?venueId={OURS}", {"Authorization": "Bearer nonsense"}, 401),
        ("GET", f"{API}/stripe?venueId={OTHERS}", bearer(), 403),
        ("GET", f"{API}/stripe", bearer(), 400),
        ("GET", "/nowhere", bearer(), 404),
        ("PATCH", f"{API}/stripe?venueId={OURS}", bearer(), 405),
    ],
)
async def test_the_line_has_the_status_that_was_answered(
    hub: Hub, lines: io.StringIO, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await hub.http.request(method, path, headers=headers)
    assert answer.status_code == status
    [line] = answered(lines)
    assert (line["status"], line["method"], line["path"]) == (status, method, path.partition("?")[0])
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_what_is_refused_as_too_many_has_its_status_and_is_counted(
    hub: Hub,
    lines: io.StringIO,
    counted: Callable[[], Awaitable[metrics.Counts]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {**hub.app.state.request_counts.limits, "general": 1}
    monkeypatch.setattr(hub.app.state.request_counts, "limits", limits)
    caller = bearer(userId=str(uuid4()))
    for _ in range(2):
        await hub.get(f"{API}/stripe", params={"venueId": str(OURS)}, headers=caller)
    assert [line["status"] for line in answered(lines)] == [404, 429]
    found = await counted()
    assert found[("integration_rate_limited_total", ("general",), "")] == 1
    route = f"{API}/{{provider}}"
    times = {
        labels: sum(value for (name, of, part), value in found.items() if of == labels and part != "sum")
        for (name, labels, part) in found
        if name == "integration_request_seconds"
    }
    assert times == {(route, "GET", "404"): 1, (route, "GET", "429"): 1}


async def test_methods_that_callers_make_up_are_counted_as_one(
    hub: Hub, counted: Callable[[], Awaitable[metrics.Counts]]
) -> None:
    for method in ("FETCH", "FETCH2", "x" * 100):
        assert (await hub.http.request(method, "/health")).status_code == 405
    assert {labels for (name, labels, _) in await counted() if name == "integration_request_seconds"} == {
        ("none", "other", "405")
    }


async def test_what_nobody_foresaw_is_told_as_500(
    hub: Hub, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = "ana@example.com"

    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(record)

    monkeypatch.setattr(health, "readiness", fail)
    assert (await hub.http.get("/ready")).status_code == 500
    [failed] = [json.loads(line) for line in lines.getvalue().splitlines() if "request.failed" in line]
    assert failed["exception"].endswith("builtins.RuntimeError")
    assert record not in lines.getvalue()


async def test_probes_are_no_news(hub: Hub, lines: io.StringIO) -> None:
    for path in ("/health", "/ready"):
        await hub.http.get(path)
    assert answered(lines) == []


async def test_nothing_of_a_request_is_said_of_the_next(hub: Hub, lines: io.StringIO) -> None:
    await hub.get(f"{API}/stripe", params={"venueId": str(OURS)})
    await hub.get(f"{API}", params={"venueId": str(NOWHERE)})
    await hub.get("/nowhere")
    first, second, third = answered(lines)
    assert (first["provider"], first["venue_id"]) == ("stripe", str(OURS))
    assert (second.get("provider"), second["venue_id"]) == (None, str(NOWHERE))
    assert "venue_id" not in third
    assert len({first["request_id"], second["request_id"], third["request_id"]}) == 3
    assert "request_id" not in structlog.contextvars.get_contextvars()


# --- metrics


async def test_metrics_count_what_happened_in_all_processes(
    hub: Hub, counted: Callable[[], Awaitable[metrics.Counts]]
) -> None:
    hub.app.state.readings.kept = 0
    await hub.connect_by_key(config={"syncEnabled": True})
    async with hub.context.sessions.begin() as session:
        await health.write(session)
    # Another process's, brought here two seconds ago.
    await hub.context.redis.hset(KEY, '["integration_sync_total",["stripe","completed"],""]', "3")
    metrics.SYNCS.add("stripe", "completed")
    metrics.SYNC_SECONDS.observe(2.0, "stripe")
    metrics.SYNC_SECONDS.observe(40.0, "stripe")
    answer = await hub.http.get("/metrics", headers=ROOT)
    # Prometheus refuses a header in which a parameter is there twice.
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = answer.text.splitlines()
    async with httpx.AsyncClient() as control:
        calls = (await control.get(f"{hub.sandbox.stripe_url}/_sandbox/calls")).json()["total"]
    assert calls > 0
    for line in (
        'integration_connections_total{provider="stripe",status="connected"} 1.0',
        'integration_sync_total{provider="stripe",status="completed"} 4.0',
        'integration_sync_duration_seconds_bucket{le="1.0",provider="stripe"} 0.0',
        'integration_sync_duration_seconds_bucket{le="5.0",provider="stripe"} 1.0',
        'integration_sync_duration_seconds_bucket{le="60.0",provider="stripe"} 2.0',
        'integration_sync_duration_seconds_bucket{le="+Inf",provider="stripe"} 2.0',
        'integration_sync_duration_seconds_count{provider="stripe"} 2.0',
        'integration_sync_duration_seconds_sum{provider="stripe"} 42.0',
        f'integration_api_calls_total{{provider="stripe"}} {calls}.0',  # that proved the key
        'integration_queue_depth{priority="NORMAL"} 1.0',
        'integration_queue_depth{priority="CRITICAL"} 0.0',
        'integration_ledger_operations{lane="normal",status="pending"} 1.0',
        f'integration_request_seconds_count{{method="POST",route="{CONNECT}",status="200"}} 1.0',
        "integration_states_readable 1.0",
    ):
        assert line in told, line
    for metric in metrics.METRICS:
        assert any(line.startswith(f"# HELP {metric.name} ") for line in told), metric.name


async def test_metrics_without_postgresql(
    hub: Hub, counted: Callable[[], Awaitable[metrics.Counts]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise ConnectionError("db.internal:5432 refused")

    monkeypatch.setattr("server.telemetry.states.read_states", refuse)
    hub.app.state.readings.kept = 0
    metrics.SYNCS.add("stripe", "failed")
    answer = await hub.http.get("/metrics", headers=ROOT)
    assert answer.status_code == 200
    assert "integration_states_readable 0.0" in answer.text.splitlines()
    assert 'integration_sync_total{provider="stripe",status="failed"} 1.0' in answer.text.splitlines()


async def test_deliveries_and_their_events_are_counted(
    hub: Hub, counted: Callable[[], Awaitable[metrics.Counts]]
) -> None:
    known = hub.context.settings._apps
    assert isinstance(known, dict)
    known["SQUARE_WEBHOOK_SIGNATURE_KEY"] = Secret(SQUARE_KEY)
    await connected(hub, "square", "M1")
    one, other = square_event(), square_event(data={"id": "C2"})
    for event, key in ((one, SQUARE_KEY), (one, SQUARE_KEY), (other, SQUARE_KEY), (one, "another's key")):
        await square(hub, event, key=key)
    [stored] = await hub.rows("SELECT id FROM integration_webhooks WHERE status = 'pending'")
    async with hub.context.sessions.begin() as session:
        await webhooks.settle(session, [stored["id"]], WebhookStatus.PROCESSED)
    found = await counted()
    assert {labels: found[name, labels, part] for name, labels, part in found if "delivery" in name} == {
        ("square", "accepted"): 1,
        ("square", "duplicate"): 1,
        ("square", "conflict"): 1,
        ("square", "refused"): 1,
    }
    assert {labels: found[name, labels, part] for name, labels, part in found if "webhook_total" in name} == {
        ("square", "received"): 1,
        ("square", "processed"): 1,
    }
    intake = {part: value for (name, _, part), value in found.items() if "webhook_intake" in name}
    assert intake.pop("sum") > 0
    assert sum(intake.values()) == 3


async def test_work_is_counted(
    hub: Hub, settings: Settings, counted: Callable[[], Awaitable[metrics.Counts]]
) -> None:
    await hub.connect_by_key()
    async with open_worker_context(settings, application_name="test worker", connections=10) as context:
        made = Worker(context, "test")
        running = asyncio.create_task(serve(made, concurrency=1, grace=5))
        answer = await hub.post(SYNC, {"venueId": str(OURS), "wait": 20, "syncType": "customers"})
        made.stop()
        await running
        assert answer.status_code == 200, answer.text
    found = await counted()
    names = ("integration_operation_wait_seconds", "integration_operation_seconds", "integration_sync_total")
    times = {
        (name, labels): sum(found[each] for each in found if each[:2] == (name, labels) and each[2] != "sum")
        for name, labels, _ in found
        if name in (*names, "integration_sync_duration_seconds")
    }
    assert times == {
        ("integration_operation_wait_seconds", ("high",)): 1,
        ("integration_operation_seconds", ("sync", "completed")): 1,
        ("integration_sync_total", ("stripe", "completed")): 1,
        ("integration_sync_duration_seconds", ("stripe",)): 1,
    }
    calls = found["integration_api_calls_total", ("stripe",), ""]
    answers = [each for each in found if each[0] == "integration_api_call_seconds" and each[2] != "sum"]
    assert sum(found[each] for each in answers) == calls
    assert {each[1] for each in answers} == {("stripe", "2xx")}
    waits = [each for each in found if each[0] == "integration_budget_wait_seconds" and each[2] != "sum"]
    assert sum(found[each] for each in waits) > 0
    assert {each[1] for each in waits} == {("stripe",)}


# --- traces


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    traces.stop()
    traces.configure_tracing("test", lambda: SimpleSpanProcessor(kept))
    yield kept
    traces.stop()


@pytest.fixture
async def worked(hub: Hub, settings: Settings, spans: InMemorySpanExporter) -> dict[str, Any]:
    """A sync that a request asked for and a worker did: what the caller said of its trace."""
    await hub.connect_by_key()
    spans.clear()
    caller = f"00-{'ab' * 16}-{'cd' * 8}-01"
    answer = await hub.post(
        SYNC,
        {"venueId": str(OURS), "wait": 0, "syncType": "customers"},
        headers={**bearer(), "traceparent": caller, "X-Request-Id": "req-1"},
    )
    assert answer.status_code == 202
    assert traces.traceparent() is None  # what follows knows the trace from the ledger alone
    async with open_worker_context(settings, application_name="test worker", connections=5) as context:
        claim = await claims.claim(context.engine, owner="test", lease=timedelta(minutes=1))
        assert claim is not None
        await run_operation(context, Run(claim))
    return {"claim": claim, "trace": int("ab" * 16, 16), "caller": int("cd" * 8, 16)}


async def test_one_trace_from_a_request_to_the_provider(
    worked: dict[str, Any], spans: InMemorySpanExporter
) -> None:
    told = spans.get_finished_spans()
    assert {span.context.trace_id for span in told} == {worked["trace"]}
    request = _one(told, f"POST {API}/sync/{{provider}}/sync")
    work = _one(told, "work sync")
    calls = [span for span in told if span.kind is SpanKind.CLIENT]
    assert request.parent is not None
    assert (request.kind, request.parent.span_id) == (SpanKind.SERVER, worked["caller"])
    assert work.parent is not None
    assert (work.kind, work.parent.span_id) == (SpanKind.CONSUMER, request.context.span_id)
    assert "GET /v1/customers" in {call.name for call in calls}
    assert {call.parent and call.parent.span_id for call in calls} == {work.context.span_id}
    claim = worked["claim"]
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": f"{API}/sync/{{provider}}/sync",
        "http.response.status_code": 202,
        "hub.request_id": "req-1",
        "hub.provider": "stripe",
        "hub.venue_id": str(OURS),
    }
    assert dict(work.attributes or {}) == {
        "hub.operation_id": str(claim.operation_id),
        "hub.operation_type": "sync",
        "hub.provider": "stripe",
        "hub.venue_id": str(OURS),
        "hub.sync_id": str(claim.run_id),
        "hub.request_id": "req-1",
        "hub.attempt": 1,
    }
    listed = next(call for call in calls if call.name == "GET /v1/customers")
    assert {**(listed.attributes or {}), "http.response.body.size": 0} == {
        "hub.provider": "stripe",
        "http.request.method": "GET",
        "url.template": "/v1/customers",
        "http.response.body.size": 0,
        "http.response.status_code": 200,
    }


async def test_spans_hold_no_secret_and_no_record(
    worked: dict[str, Any], spans: InMemorySpanExporter
) -> None:
    for span in spans.get_finished_spans():
        written = span.to_json()
        canary.look("a span", written)
        assert canary.MARK not in written
        assert "?" not in written
        assert "@" not in written
        assert not span.events


@pytest.mark.parametrize("token", [{}, {"Authorization": "Bearer nonsense"}], ids=["none", "no good one"])
async def test_a_trace_of_a_stranger_is_not_gone_on_with(
    hub: Hub, spans: InMemorySpanExporter, token: dict[str, str]
) -> None:
    await hub.http.get(
        f"{API}/health/stripe",
        params={"venueId": str(OURS)},
        headers={**token, "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"},
    )
    [span] = spans.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id != int("ab" * 16, 16)


async def test_a_webhook_is_traced_into_the_operation_it_makes(hub: Hub, spans: InMemorySpanExporter) -> None:
    known = hub.context.settings._apps
    assert isinstance(known, dict)
    known["SQUARE_WEBHOOK_SIGNATURE_KEY"] = Secret(SQUARE_KEY)
    await connected(hub, "square", "M1")
    assert (await square(hub, square_event())).status_code == 200
    [span] = spans.get_finished_spans()
    [operation] = await hub.rows("SELECT payload FROM sync_queue")
    trace, parent = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
    assert operation["payload"]["traceparent"].startswith(f"00-{trace}-{parent}-")


async def test_a_failure_is_told_by_its_type(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="ana"), traces.span("work", provider="juniper"):
        raise ValueError("ana@example.com")
    [span] = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert dict(span.attributes or {}) == {"hub.provider": "juniper", "error.type": "ValueError"}
    assert not span.events


def _one(spans: tuple[ReadableSpan, ...], name: str) -> ReadableSpan:
    [found] = [span for span in spans if span.name == name]
    return found
