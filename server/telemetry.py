"""What the service tells about itself: structured logs and metrics. Only this module knows their names.

Metrics are read from PostgreSQL when they are asked for, so one answer covers every process: the API, all
workers and those that ended yesterday.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, TextIO
from uuid import UUID

import orjson
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import HubError
from engine.ports import Secret

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_SECRET_NAMES = re.compile(
    r"(?i)secret|password|authorization|cookie|credential|api_?key|access_?token|refresh_?token|verifier"
    r"|^(token|code|state)$"
)
_OUR_CODES = re.compile(r"[A-Z]+(_[A-Z]+)+")  # error codes are no secrets, whatever the field is called
_OURS = ("server", "engine")
_SERVING = ("uvicorn",)  # says when it starts and stops


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Write every log event as one JSON object a line, secrets replaced by `***`; to standard output
    unless a command's answer goes there.
    """
    shared: list[structlog.typing.Processor] = [
        _name_service,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_type_and_place),
        structlog.processors.EventRenamer("message"),
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    wanted = logging.getLevelNamesMapping()[level.upper()]
    # What libraries say below a warning may hold addresses with keys, headers, parameters and answers: at
    # `debug` one of them writes the very data keys of the vault. So only what is ours follows the level.
    root.setLevel(max(wanted, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(wanted)
    for name in _SERVING:
        logging.getLogger(name).setLevel(max(wanted, logging.INFO))


def _type_and_place(exc_info: ExcInfo) -> str:
    """Write a traceback whose errors say what they are, and only if they are ours what it is about.

    The text of a database's or a library's error may hold a record or a credential.
    """
    return "\n".join(_told(exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "then:"
    if error.__traceback__ is not None:
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    yield f"{kind}: {error.message}" if isinstance(error, HubError) else kind
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield "of them:"
        yield from _told(each, seen)


def _name_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {"service": "integration-hub", **event}


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace secrets in a log event: every `Secret`, and every value whose name says that it is one."""
    return {name: _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Secret) or (value is not None and _SECRET_NAMES.search(name)):
        return value if isinstance(value, str) and _OUR_CODES.fullmatch(value) else "***"
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", item) for item in value]
    return value


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


_BUCKETS = (1, 5, 15, 30, 60, 300, 900, 3600)  # seconds a sync may take

_CONNECTIONS = text("SELECT integration_type, status::text, count(*) FROM integration_configs GROUP BY 1, 2")
_SYNCS = text(
    "SELECT integration_type, status, count(*), coalesce(sum(api_calls_made), 0),"  # noqa: S608 - see below
    " coalesce(sum(duration_ms), 0) / 1000.0, "
    + ", ".join(f"count(*) FILTER (WHERE coalesce(duration_ms, 0) <= {limit * 1000})" for limit in _BUCKETS)
    + " FROM sync_logs GROUP BY 1, 2"
)  # the only values written into it are the numbers above
_WEBHOOKS = text("SELECT integration_type, status::text, count(*) FROM integration_webhooks GROUP BY 1, 2")
_QUEUE = text("SELECT priority::text, count(*) FROM sync_queue WHERE status = 'pending' GROUP BY 1")
_HEALTH_VALUES = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}


async def metrics(session: AsyncSession, health: Sequence[tuple[str, UUID, str]]) -> bytes:
    """Return every metric in Prometheus' text; `health` is provider, venue and status of each integration."""
    rows: dict[str, Sequence[Any]] = {
        name: (await session.execute(query)).all()
        for name, query in (
            ("connections", _CONNECTIONS),
            ("syncs", _SYNCS),
            ("webhooks", _WEBHOOKS),
            ("queue", _QUEUE),
        )
    }
    registry = CollectorRegistry()
    registry.register(_Measured(list(_families({**rows, "health": health}))))
    return generate_latest(registry)


class _Measured:
    """Hands metrics that are measured already to the Prometheus client."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _families(rows: Mapping[str, Sequence[Any]]) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "integration_connections_total", "Integrations by status.", labels=["provider", "status"]
    )
    for provider, status, count in rows["connections"]:
        connections.add_metric([provider, status], count)
    yield connections

    health = GaugeMetricFamily(
        "integration_health_status",
        "Health: 1 healthy, 0.5 degraded, 0 unhealthy; unknown is left out.",
        labels=["provider", "venue_id"],
    )
    for provider, venue_id, status in rows["health"]:
        if status in _HEALTH_VALUES:
            health.add_metric([provider, str(venue_id)], _HEALTH_VALUES[status])
    yield health

    syncs = CounterMetricFamily(
        "integration_sync", "Syncs of one mapping that ended.", labels=["provider", "status"]
    )
    calls = CounterMetricFamily("integration_api_calls", "Calls made to providers.", labels=["provider"])
    durations = HistogramMetricFamily(
        "integration_sync_duration_seconds", "How long syncs of one mapping took.", labels=["provider"]
    )
    totals: dict[str, list[float]] = {}
    for provider, status, count, made, seconds, *within in rows["syncs"]:
        syncs.add_metric([provider, status], count)
        sums = totals.setdefault(provider, [0.0] * (3 + len(_BUCKETS)))
        for index, value in enumerate([made, seconds, count, *within]):
            sums[index] += float(value)
    for provider, (made, seconds, count, *within) in totals.items():
        calls.add_metric([provider], made)
        buckets = [(str(float(limit)), value) for limit, value in zip(_BUCKETS, within, strict=True)]
        durations.add_metric([provider], [*buckets, ("+Inf", count)], seconds)
    yield from (syncs, calls, durations)

    webhooks = CounterMetricFamily(
        "integration_webhook", "Webhook events received.", labels=["provider", "status"]
    )
    for provider, status, count in rows["webhooks"]:
        webhooks.add_metric([provider, status], count)
    yield webhooks

    depth = GaugeMetricFamily("integration_queue_depth", "Operations waiting.", labels=["priority"])
    waiting: dict[str, int] = dict(rows["queue"])
    for priority in ("CRITICAL", "HIGH", "NORMAL", "LOW"):
        depth.add_metric([priority], waiting.get(priority, 0))
    yield depth
