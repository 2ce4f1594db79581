"""How things stand, read from PostgreSQL; and the answer to whoever asks for metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.telemetry.counting import Flush, read_counts
from server.telemetry.metrics import (
    BEYOND,
    CIRCUITS,
    CONNECTIONS,
    EVENTS,
    EVENTS_AGE,
    HEALTH,
    LEDGER,
    LEDGER_AGE,
    METRICS,
    OUTBOX,
    OUTBOX_AGE,
    PLAIN,
    QUEUE_DEPTH,
    READABLE,
    SUM,
    Counter,
    Counts,
    Histogram,
    Labels,
    State,
)

log = structlog.get_logger(__name__)

States: TypeAlias = dict[str, dict[Labels, float]]  # by metric, and its labels' values

KEPT_SECONDS = 5.0  # states: several who ask at once get the same
KEPT_TIMES = 20  # as long as reading them took: nobody asks so often that it is work for PostgreSQL
LONGEST_SECONDS = 5
_WAITING = ("pending", "recovering")
_AGING = (*_WAITING, "processing")
_HEALTH_VALUES = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}
_PRIORITIES = ("CRITICAL", "HIGH", "NORMAL", "LOW")

_LIMIT = text(f"SET LOCAL statement_timeout = '{LONGEST_SECONDS}s'")
_CONNECTIONS = text("SELECT integration_type, status::text, count(*) FROM integration_configs GROUP BY 1, 2")
_HEALTH = text(
    "SELECT integration_type, venue_id::text, health_status::text FROM integration_configs"
    " WHERE health_status <> 'unknown'"
)
# What is completed is most of the table, and no concern here: an index leads past it.
_LEDGER = text(
    "SELECT priority::text, status::text, count(*), extract(epoch FROM now() - min(queued_at))"
    " FROM sync_queue WHERE status IN"
    " ('pending', 'recovering', 'processing', 'paused', 'failed', 'dead_letter') GROUP BY 1, 2"
)
_OUTBOX = text(
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(available_at)), 0) FROM outbox"
    " WHERE published_at IS NULL AND available_at <= now()"
)


_EVENTS = text(
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM event_deliveries"
    " WHERE status = 'pending'"
)
_CIRCUITS = text(
    "SELECT integration_type, count(*) FROM integration_configs WHERE circuit_opened_at IS NOT NULL"
    " GROUP BY integration_type"
)


async def read_states(session: AsyncSession) -> States:
    """Return every metric of kind `State`."""
    await session.execute(_LIMIT)
    connections: dict[Labels, float] = {
        (row[0], row[1]): float(row[2]) for row in await session.execute(_CONNECTIONS)
    }
    health: dict[Labels, float] = {
        (row[0], row[1]): _HEALTH_VALUES[row[2]]
        for row in await session.execute(_HEALTH)
        if row[2] in _HEALTH_VALUES
    }
    ledger = [tuple(row) for row in await session.execute(_LEDGER)]
    depth = dict.fromkeys(((priority,) for priority in _PRIORITIES), 0.0)
    for priority, status, count, _ in ledger:
        if status in _WAITING:
            depth[(priority,)] += count
    waiting, oldest = (await session.execute(_OUTBOX)).one()
    untold, untold_age = (await session.execute(_EVENTS)).one()
    circuits: dict[Labels, float] = {(row[0],): float(row[1]) for row in await session.execute(_CIRCUITS)}
    return {
        CONNECTIONS.name: connections,
        HEALTH.name: health,
        QUEUE_DEPTH.name: {(priority,): value for (priority,), value in depth.items()},
        LEDGER.name: {(priority.lower(), status): float(count) for priority, status, count, _ in ledger},
        LEDGER_AGE.name: {
            (priority.lower(), status): float(age) for priority, status, _, age in ledger if status in _AGING
        },
        OUTBOX.name: {(): float(waiting)},
        OUTBOX_AGE.name: {(): float(oldest)},
        EVENTS.name: {(): float(untold)},
        EVENTS_AGE.name: {(): float(untold_age)},
        CIRCUITS.name: circuits,
    }


@dataclass(slots=True)
class Readings:
    """Answers Prometheus, for one process. States are kept for a few seconds; 0 for not at all."""

    sessions: async_sessionmaker[AsyncSession]
    redis: Redis
    flush: Flush
    kept: float = KEPT_SECONDS
    _states: States = field(default_factory=dict)
    _read_again: float = float("-inf")
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def text(self) -> bytes:
        """Return every metric in Prometheus' text format: without states while PostgreSQL is away."""
        async with self._reading:
            began = time.monotonic()
            if began >= self._read_again:
                self._states = await self._read()
                ended = time.monotonic()
                self._read_again = ended + (self.kept and max(self.kept, KEPT_TIMES * (ended - began)))
        await self.flush.try_flush()  # what this process counted is there at once
        counts = await read_counts(self.redis)
        return await asyncio.to_thread(render, self._states, counts)  # thousands of lines: others go on

    async def _read(self) -> States:
        try:
            async with asyncio.timeout(LONGEST_SECONDS), self.sessions() as session:
                return {**await read_states(session), READABLE.name: {(): 1.0}}
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            log.warning("metrics.states_not_read", error=type(error).__name__)
            return {READABLE.name: {(): 0.0}}


class _Measured:
    """Hands metrics that are measured already to the Prometheus client."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def render(states: States, counts: Counts) -> bytes:
    """Write metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Measured(list(_families(states, counts))))
    return generate_latest(registry)


def _families(states: States, counts: Counts) -> Iterator[Metric]:
    by_metric: dict[str, dict[Labels, dict[str, float]]] = {}
    for (name, labels, part), value in sorted(counts.items()):
        by_metric.setdefault(name, {}).setdefault(labels, {})[part] = value
    for metric in METRICS:
        counted = by_metric.get(metric.name, {})
        match metric:
            case State():
                gauge = GaugeMetricFamily(metric.name, metric.about, labels=metric.labels)
                for labels, value in states.get(metric.name, {}).items():
                    gauge.add_metric(labels, value)
                yield gauge
            case Counter():
                counter = CounterMetricFamily(metric.name, metric.about, labels=metric.labels)
                for labels, parts in counted.items():
                    counter.add_metric(labels, parts.get(PLAIN, 0))
                yield counter
            case Histogram():
                histogram = HistogramMetricFamily(metric.name, metric.about, labels=metric.labels)
                for labels, parts in counted.items():
                    histogram.add_metric(labels, _cumulated(metric, parts), parts.get(SUM, 0))
                yield histogram


def _cumulated(metric: Histogram, parts: Mapping[str, float]) -> list[Any]:
    total, buckets = 0.0, []
    for bound in (*map(str, metric.buckets), BEYOND):
        total += parts.get(bound, 0)
        buckets.append([bound, total])
    return buckets
