"""Every metric there is, and how it is counted.

States, such as how much waits, are read from PostgreSQL when somebody asks (`server.telemetry.states`).
What happens is counted in the process where it happens, which is an addition in memory, and every few seconds
brought to Redis, where the counts of all processes are one (`server.telemetry.counting`).

To add one: a line here and in METRICS, and a call of `add` or `observe` where it happens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

Labels: TypeAlias = tuple[str, ...]
# By metric, its labels' values and, in a histogram, a bucket's bound; `sum` holds what was observed in all.
Counts: TypeAlias = dict[tuple[str, Labels, str], float]

SUM, BEYOND, PLAIN = "sum", "+Inf", ""
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
WAITS = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
RUNS = (1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

_counts: Counts = {}  # of this process, since they were last brought to Redis


def drain() -> Counts:
    """Return what was counted in this process since the last time, and begin anew."""
    taken = dict(_counts)
    _counts.clear()
    return taken


@dataclass(frozen=True, slots=True)
class State:
    """Something that is so at this moment."""

    name: str
    about: str
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Counter:
    """Something that happens."""

    name: str  # ends in `_total`
    about: str
    labels: Labels

    def add(self, *labels: str, by: float = 1) -> None:
        """Count it, with the values of its labels in order."""
        key = (self.name, labels, PLAIN)
        _counts[key] = _counts.get(key, 0) + by


@dataclass(frozen=True, slots=True)
class Histogram:
    """Something that takes time."""

    name: str
    about: str
    labels: Labels
    buckets: Sequence[float] = FAST
    _bounds: Sequence[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_bounds", (*map(str, self.buckets), BEYOND))

    def observe(self, seconds: float, *labels: str) -> None:
        """Count one that took so long, with the values of its labels in order."""
        name = self.name
        bucket = (name, labels, self._bounds[bisect_left(self.buckets, seconds)])
        _counts[bucket] = _counts.get(bucket, 0) + 1
        total = (name, labels, SUM)
        _counts[total] = _counts.get(total, 0) + seconds


Metric: TypeAlias = State | Counter | Histogram

# --- states

CONNECTIONS = State("integration_connections_total", "Integrations by status.", ("provider", "status"))
HEALTH = State(
    "integration_health_status",
    "Health as last measured: 1 healthy, 0.5 degraded, 0 unhealthy; unknown is left out.",
    ("provider", "venue_id"),
)
QUEUE_DEPTH = State(
    "integration_queue_depth", "Operations that wait, also those that wait for another try.", ("priority",)
)
LEDGER = State(
    "integration_ledger_operations",
    "Operations that are not completed, by lane and status.",
    ("lane", "status"),
)
LEDGER_AGE = State(
    "integration_ledger_oldest_seconds",
    "How long ago the oldest of them was queued; of those that wait or are worked.",
    ("lane", "status"),
)
OUTBOX = State(
    "integration_outbox_waiting", "Events that aren't on their way to streams and subscribers yet."
)
OUTBOX_AGE = State("integration_outbox_oldest_seconds", "How long the oldest of them has been due.")
EVENTS = State("integration_event_deliveries_waiting", "Events that subscribers are still to be told.")
EVENTS_AGE = State(
    "integration_event_deliveries_oldest_seconds", "How long ago the oldest of them was to be told first."
)
CIRCUITS = State(
    "integration_circuits_open", "Integrations whose operations wait for a silent provider.", ("provider",)
)
READABLE = State(
    "integration_states_readable",
    "1, or 0 while PostgreSQL can't be asked: then the other states are missing.",
)

# --- what happens

SYNCS = Counter("integration_sync_total", "Syncs that ended, by how.", ("provider", "status"))
SYNC_SECONDS = Histogram(
    "integration_sync_duration_seconds", "How long syncs took, pauses included.", ("provider",), RUNS
)
API_CALLS = Counter(
    "integration_api_calls_total", "Calls made to providers, tries that failed included.", ("provider",)
)
CALL_SECONDS = Histogram(
    "integration_api_call_seconds",
    "How long providers took to answer; `status` is `2xx`, `4xx` and so on, or `none` without an answer.",
    ("provider", "status"),
)
WEBHOOKS = Counter(
    "integration_webhook_total",
    "Webhook events: `received`, and in the end `processed`, `ignored` or `failed`.",
    ("provider", "status"),
)
DELIVERIES = Counter(
    "integration_webhook_delivery_total",
    "What providers sent: events that were new (`accepted`), known (`duplicate`), known with other content "
    "(`conflict`), and deliveries that couldn't be proved or read (`refused`) or stored (`unavailable`).",
    ("provider", "outcome"),
)
INTAKE_SECONDS = Histogram(
    "integration_webhook_intake_seconds",
    "How long deliveries took until they were stored and could be acknowledged.",
    ("provider",),
)
LANE_SECONDS = Histogram(
    "integration_operation_wait_seconds",
    "How long operations waited until a worker began with them for the first time.",
    ("lane",),
    WAITS,
)
OPERATION_SECONDS = Histogram(
    "integration_operation_seconds",
    "How long workers worked on operations, each attempt by itself; `status` is what it left behind.",
    ("type", "status"),
    RUNS,
)
TOKENS = Counter(
    "integration_token_refresh_total",
    "Renewals of tokens: `renewed`, `failed` for now, or `refused` for good.",
    ("provider", "outcome"),
)
HEALS = Counter(
    "integration_heal_total",
    "Mapped fields that are gone: a successor was `proposed`, `applied` or `undone`, or there was none "
    "(`broken`).",
    ("provider", "outcome"),
)
EVENT_SECONDS = Histogram(
    "integration_event_delivery_seconds",
    "How long subscribers took to answer; `status` is what became of the delivery: `delivered`, `pending` "
    "for another try, `failed` for good, or `ended` meanwhile.",
    ("status",),
)
REFUSED = Counter(
    "integration_rate_limited_total", "Requests refused as too many, by what counts.", ("kind",)
)
UNCOUNTED = Counter(
    "integration_rate_limit_open_total",
    "Requests let through uncounted while Redis was away, by what would have counted.",
    ("kind",),
)
BUDGET_SECONDS = Histogram(
    "integration_budget_wait_seconds",
    "How long calls waited for their turn in what a provider allows.",
    ("provider",),
    WAITS,
)
REQUEST_SECONDS = Histogram(
    "integration_request_seconds",
    "How long requests took; `route` is the path as the API's description writes it.",
    ("route", "method", "status"),
)
JOB_SECONDS = Histogram(
    "integration_job_seconds",
    "How long the scheduler's jobs took; `outcome` is `done` or `failed`.",
    ("job", "outcome"),
)

METRICS: tuple[Metric, ...] = (
    *(CONNECTIONS, SYNC_SECONDS, SYNCS, WEBHOOKS, HEALTH, API_CALLS, QUEUE_DEPTH),  # the original's seven
    *(LEDGER, LEDGER_AGE, LANE_SECONDS, OPERATION_SECONDS),
    *(CALL_SECONDS, BUDGET_SECONDS, CIRCUITS, TOKENS, HEALS),
    *(DELIVERIES, INTAKE_SECONDS, OUTBOX, OUTBOX_AGE, EVENTS, EVENTS_AGE, EVENT_SECONDS),
    *(REQUEST_SECONDS, REFUSED, UNCOUNTED, JOB_SECONDS, READABLE),
)
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


# --- what counts only once its transaction is committed

_WAITING = "counts"


def once_committed(session: AsyncSession, count: Callable[[], None]) -> None:
    """Count when this session's transaction is committed; a rollback forgets it."""
    session.info.setdefault(_WAITING, []).append(count)


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    if not session.in_nested_transaction():  # the end of a savepoint isn't the end
        for count in session.info.pop(_WAITING, ()):
            count()


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, ended: SessionTransaction) -> None:
    if not ended.nested:
        session.info.pop(_WAITING, None)
