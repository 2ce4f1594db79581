"""What an operation does when a worker holds it, and what is written down when it ends.

A run goes through the steps its mapping template names: first the pulls, then the pushes, several at a time
where they have nothing to do with each other. Each step saves its own progress page by page, so a run may be
cut off anywhere and begun again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Interval,
    String,
    Table,
    Update,
    Uuid,
    any_,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from engine import applying
from engine.client import ProviderClient
from engine.errors import AuthenticationError, HubError, LeaseLostError, StoppedError, UnavailableError
from engine.mapping import Mapping as FieldMapping
from engine.ports import CredentialSource, Direction, RecordFailure
from engine.sync import KEPT_FAILURES, Period, Sync, Tally
from server.credentials import TokenRefreshError
from server.db import models
from server.db.models import (
    IntegrationConfig,
    IntegrationStatus,
    OperationStatus,
    OperationType,
    Priority,
    PushPlan,
    SyncLog,
    WebhookStatus,
)
from server.db.stores import Lease, PostgresSyncState
from server.errors import (
    IntegrationNotFoundError,
    InvalidRequestError,
    NotConnectedError,
    NotSupportedError,
    ServerError,
    StaleError,
)
from server.host import SqlHost
from server.metering import Usage
from server.services import (
    breaker,
    drift,
    lookups,
    mappings,
    operations,
    outbox,
    planned,
    quotas,
    webhooks,
)
from server.services.breaker import Heard
from server.services.operations import Claim
from server.services.steps import Step, StepKey, work_steps
from server.telemetry.operations import count_end, working

if TYPE_CHECKING:
    from server.worker.context import WorkerContext

# What the API's `syncType` means in entities of the platform; `full` is all of them.
SYNC_TYPES: Mapping[str, frozenset[str] | None] = {
    "full": None,
    "products": frozenset({"event", "ticket_type"}),
    "customers": frozenset({"customer"}),
    "transactions": frozenset({"order"}),
}
# What `syncDirection` allows; each mapping has a direction of its own as well.
DIRECTIONS: Mapping[str, tuple[Direction, ...]] = {
    "bidirectional": ("pull", "push"),
    "pull": ("pull",),
    "push": ("push",),
    "inbound": ("pull",),
    "outbound": ("push",),
}
RUNNABLE = (IntegrationStatus.CONNECTED, IntegrationStatus.ERROR)  # an error may be over by now
SHORTEST_INTERVAL = 60  # seconds
DEFAULT_INTERVAL = timedelta(minutes=5)
RETRIED_AT_ONCE = 500  # records
MAX_RECORD_ATTEMPTS = 10
LOG_STATUSES: Mapping[OperationStatus, str] = {
    OperationStatus.COMPLETED: "completed",
    OperationStatus.PAUSED: "stopped",
    OperationStatus.FAILED: "failed",
    OperationStatus.DEAD_LETTER: "failed",
}

_COUNTS = (
    *("read", "created", "updated", "unchanged", "skipped", "failed", "conflicts"),
    *("archived", "deleted", "api_calls"),
)

_SUCCESSES = ("created", "updated", "unchanged", "archived", "deleted")


class NothingSyncedError(ServerError):
    """A run came to its end, and every record it had something to do for failed. The next one tries again."""

    code = "SYNC_FAILED"


@dataclass(slots=True)
class StepReport:
    """What one step did so far, over all attempts of its operation."""

    entity: str
    resource: str
    direction: Direction
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    duration_ms: int = 0
    done: bool = False
    held: int = 0  # in this attempt: what an earlier one held may have gone since
    note: str = ""
    # Of fields that both sides had changed, how often who decided.
    contested: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[RecordFailure] = field(default_factory=list)
    error: HubError | None = None  # what stopped it

    def to_json(self) -> dict[str, Any]:
        return {
            "entity": self.entity,
            "resource": self.resource,
            "direction": self.direction,
            **self.counts,
            "held": self.held,
            "note": self.note,
            "conflict_fields": self.contested,
            "duration_ms": self.duration_ms,
            "done": self.done,
        }


@dataclass(slots=True)
class Run:
    """An operation being worked: what it did so far, and whether it should stop at the next page."""

    claim: Claim
    steps: dict[StepKey, StepReport] = field(default_factory=dict)
    running: set[StepKey] = field(default_factory=set)
    stopping: bool = False
    news: bool = False  # something changed since the progress was last saved
    began: float = field(default_factory=monotonic)
    circuit: breaker.Rule = field(default_factory=breaker.Rule)
    clients: list[ProviderClient] = field(default_factory=list)  # all that it called with
    usage: Usage = field(default_factory=Usage)  # calls made, until they are written down
    sightings: drift.Sightings = field(default_factory=dict)  # what records of the provider carried

    def __post_init__(self) -> None:
        for entry in (self.claim.progress or {}).get("mappings", ()):
            key: StepKey = (entry["entity"], entry["resource"], entry["direction"])
            counts = {name: entry.get(name, 0) for name in _COUNTS}
            contested = entry.get("conflict_fields", {})
            self.steps[key] = StepReport(
                *key, counts=counts, duration_ms=entry.get("duration_ms", 0), contested=contested
            )

    def progress(self) -> dict[str, Any]:
        """Return it as JSON, for `sync_queue.progress`."""
        return {
            "mappings": [step.to_json() for step in self.steps.values()],
            "current": next((list(key) for key in self.steps if key in self.running), None),
        }

    def result(self) -> dict[str, Any]:
        """Return it as JSON, for `sync_queue.result`."""
        failures = [asdict(failure) for step in self.steps.values() for failure in step.failures]
        return {"mappings": self.progress()["mappings"], "failures": failures[:KEPT_FAILURES]}

    def plan(self, steps: Sequence[Step]) -> None:
        """List the steps before any of them begins, so that a watcher sees all there is to come."""
        earlier = self.steps
        self.steps = {step.key: earlier.get(step.key) or StepReport(*step.key) for step in steps}
        self.news = True

    def counting(self, key: StepKey) -> Callable[[Tally], None]:
        """Return what adds one call's tally, which grows, to the step's counts so far."""
        report = self.steps[key]
        counts, duration, failures = dict(report.counts), report.duration_ms, list(report.failures)
        held, contested = report.held, report.contested

        def count(tally: Tally) -> None:
            report.counts = {name: counts[name] + getattr(tally, name) for name in _COUNTS}
            report.duration_ms = duration + round(tally.seconds * 1000)
            report.failures = [*failures, *tally.failures][:KEPT_FAILURES]
            report.held, report.note = held + tally.held, tally.note or report.note
            report.contested = _added(contested, tally.contested)
            self.news = True

        return count


def _added(
    one: Mapping[str, Mapping[str, int]], other: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Return counts of counts, added up."""
    return {
        name: dict(Counter(one.get(name, {})) + Counter(other.get(name, {}))) for name in {**one, **other}
    }


Runner = Callable[["WorkerContext", Run], Coroutine[Any, Any, None]]


async def run_operation(context: WorkerContext, run: Run) -> None:
    """Work an operation to its end.

    Raises HubError for what stops the run: StoppedError at a page's end when `run.stopping` is set,
    LeaseLostError, ProviderError, and what the service itself refuses.
    """
    runner = RUNNERS.get(run.claim.operation_type)
    if runner is None:
        raise NotSupportedError(f"an operation of type `{run.claim.operation_type}` can't be worked")
    try:
        with working(run.claim):
            await runner(context, run)
    except TokenRefreshError:
        raise  # it says what to do already
    except AuthenticationError as error:
        title = context.catalog.connector(run.claim.provider).title
        raise AuthenticationError(
            f"{title} no longer accepts this connection: connect again ({error.message})",
            status=error.status,
            provider_code=error.provider_code,
            request_id=error.request_id,
        ) from error


async def _sync(context: WorkerContext, run: Run) -> None:
    if "planId" in run.claim.payload:
        await _apply(context, run, UUID(run.claim.payload["planId"]))
        return
    syncs = await _Syncs.open(context, run)
    kind = run.claim.payload.get("syncType", "full")
    if kind not in SYNC_TYPES:
        raise InvalidRequestError(f"`{kind}` isn't a sync type; there are {', '.join(SYNC_TYPES)}")
    steps = list(
        plan_steps(syncs.mappings, syncs.config.get("syncDirection", "bidirectional"), SYNC_TYPES[kind])
    )
    run.plan(steps)

    async def work(step: Step) -> None:
        again = [] if syncs.period else await _retryable(context, run.claim, step)
        bring = syncs.pull if step.direction == "pull" else syncs.push
        await bring(step)
        for start in range(0, len(again), RETRIED_AT_ONCE):
            await bring(step, again[start : start + RETRIED_AT_ONCE])

    await _work(run, steps, work)
    require_success(run)


async def _plan(context: WorkerContext, run: Run) -> None:
    """Plan what a push would do. Nothing but the plan is written: not even what its reading showed."""
    claim, plan_id = run.claim, UUID(run.claim.payload["planId"])
    syncs = await _Syncs.open(context, run)
    async with context.sessions.begin() as session:
        if not await planned.begin(session, claim, plan_id, syncs.basis()):
            return
    steps = [
        step
        for step in plan_steps(syncs.mappings, syncs.direction, SYNC_TYPES[claim.payload["syncType"]])
        if step.direction == "push"
    ]
    run.plan(steps)
    made: dict[tuple[str, str], str] = {}  # in the order of the mappings, for one may refer to another's
    referred = frozenset(resource for step in steps for resource in step.mapping.referred_resources)
    for step in steps:
        report, sync = run.steps[step.key], syncs.build(step, lambda tally: None)
        again = await _retryable(context, claim, step)
        run.running.add(step.key)
        try:
            async for records in sync.plan(made, pulls=syncs.pulls, referred=referred, again=again):
                async with context.sessions.begin() as session:
                    await planned.save(session, claim, plan_id, step, records)
                report.counts["read"] += len(records)
                run.news = True
        finally:
            report.counts["api_calls"] += sync.sides.client.calls
            run.running.discard(step.key)
        report.done = True
    async with context.sessions.begin() as session:
        await planned.finish(session, claim, plan_id)
    run.sightings.clear()


async def _apply(context: WorkerContext, run: Run, plan_id: UUID) -> None:
    """Do what a plan says, and nothing else."""
    claim = run.claim
    syncs = await _Syncs.open(context, run)
    async with context.sessions() as session:
        plan = await session.get(PushPlan, plan_id)
        if plan is None or plan.basis != syncs.basis():
            raise StaleError("what the plan rests on has changed since it was applied: plan again")
        steps = [
            step
            for step in plan_steps(syncs.mappings, syncs.direction, SYNC_TYPES[plan.sync_type])
            if step.direction == "push" and await planned.to_apply(session, plan_id, step, 1)
        ]
    run.plan(steps)

    async def work(step: Step) -> None:
        sync = syncs.build(step, lambda tally: None)
        while True:
            async with context.sessions() as session:
                some = await planned.to_apply(session, plan_id, step, applying.MOST)
            if not some:
                return
            sync.on_progress = count = run.counting(step.key)
            tally, became = await sync.apply(some)
            count(tally)
            async with context.sessions.begin() as session:
                await planned.note(session, claim, plan_id, step, became)

    await _work(run, steps, work)
    require_success(run)


async def _one_record(context: WorkerContext, run: Run) -> None:
    """Work one record: in its entity's mappings, or in the one way that a payload names. In both ways it is
    pulled by the provider's id, which the payload then names, and pushed after that.
    """
    claim = run.claim
    if claim.entity_id is None:
        raise InvalidRequestError("the operation names no record")
    direction, resource = claim.payload.get("direction", "push"), claim.payload.get("resource")
    syncs = await _Syncs.open(context, run)
    steps = [
        step
        for step in plan_steps(syncs.mappings, direction, frozenset({claim.entity_type}))
        if resource in (None, step.mapping.resource)
    ]
    run.plan(steps)
    ours, theirs = claim.entity_id, claim.payload.get("remoteId", claim.entity_id)

    async def work(step: Step) -> None:
        await (syncs.pull(step, [theirs]) if step.direction == "pull" else syncs.push(step, [ours]))

    await _work(run, steps, work)
    require_success(run)


def require_success(run: Run) -> None:
    """Raise when every record that there was something to do for failed."""
    failed = sum(step.counts["failed"] for step in run.steps.values())
    if failed and not any(step.counts[name] for step in run.steps.values() for name in _SUCCESSES):
        first = next((failure.message for step in run.steps.values() for failure in step.failures), "")
        records = "the only record" if failed == 1 else f"each of {failed} records"
        raise NothingSyncedError(f"{records} failed: {first}" if first else f"{records} failed")


async def _work(run: Run, steps: Sequence[Step], work: Callable[[Step], Awaitable[None]]) -> None:
    """Work all steps, telling the run; raises the gravest of their errors when they have all ended."""

    async def watched(step: Step) -> None:
        run.running.add(step.key)
        run.news = True
        try:
            await work(step)
            run.steps[step.key].done = True
        finally:
            run.running.discard(step.key)
            run.news = True

    errors = await work_steps(steps, watched)
    for key, error in errors.items():
        run.steps[key].error = error
    for error in errors.values():
        raise error


async def _work_events(context: WorkerContext, run: Run) -> None:
    """Work what webhooks told of an integration: the event of this operation, and all that wait beside it.

    The fresh records are read, so their order doesn't matter, and an older event undoes nothing. Where trying
    again can't help, each thing they told of is worked by itself: one that can't be read fails no other.
    """
    claim = run.claim
    connector = context.catalog.connector(claim.provider)
    mine = _own_event(claim)
    # By one of them, perhaps, it was lost or failed before: each by itself shows by which.
    alone = mine if claim.lost_workers or claim.attempts > 1 else None
    async with context.sessions.begin() as session:
        whose = (session, claim.venue_id, claim.provider)
        revived = mine if claim.revivals else None
        events = await webhooks.waiting(*whose, only=alone, revived=revived)
        if len(events) == webhooks.WORKED_AT_ONCE and mine not in {None, *(event.id for event in events)}:
            # Its own is worked with those in front of it, or nobody might come for it any more.
            events = [*events, *await webhooks.waiting(*whose, only=mine, revived=revived)]
        await webhooks.read_again(context.catalog, session, events)
    if not events or connector.webhooks is None:
        return
    if ended := webhooks.endings(connector.webhooks, events):
        async with context.sessions() as session:
            late = await webhooks.overtaken(session, ended)
        await _settle(context, claim, {(WebhookStatus.IGNORED, webhooks.OVERTAKEN): late})
        events = [event for event in events if event.id not in late]
    told, looked, outcomes = webhooks.sorted_out(connector.webhooks, events)
    if webhooks.endings(connector.webhooks, events):
        await _settle(context, claim, {(WebhookStatus.PROCESSED, None): [event.id for event in events]})
        raise AuthenticationError("its owner took back what was allowed")
    refused: dict[tuple[str, str], HubError] = {}
    try:
        syncs = await _Syncs.open(context, run)
        steps = [
            step
            for step in plan_steps(syncs.mappings, syncs.config.get("syncDirection", "bidirectional"), None)
            if step.direction == "pull" and step.mapping.resource in {*told, *looked}
        ]
        run.plan(steps)
        await _pull_told(run, syncs, steps, told, looked, refused)
    except (StoppedError, LeaseLostError):
        raise  # whoever goes on with the operation finds the events waiting
    except HubError as error:
        status = WebhookStatus.PENDING if error.retryable else WebhookStatus.FAILED
        settled: dict[tuple[WebhookStatus, str | None], list[UUID]] = {}
        for event_id, subject in outcomes.items():
            own = refused.get(subject) if subject is not None else None
            place = (status, error.message) if own is None else (WebhookStatus.FAILED, own.message)
            settled.setdefault(place, []).append(event_id)
        await _settle(context, claim, settled)
        raise
    failures = {
        (step.resource, failure.record_id): failure.message
        for step in run.steps.values()
        for failure in step.failures
    }
    failures |= {subject: error.message for subject, error in refused.items()}
    pulled = {step.mapping.resource for step in steps}
    await _settle(context, claim, webhooks.grouped(outcomes, pulled, failures))
    for event_id, subject in outcomes.items():
        if subject in refused and str(event_id) == claim.payload.get("webhookId"):
            raise refused[subject]


async def _pull_told(
    run: Run,
    syncs: _Syncs,
    steps: Sequence[Step],
    told: Mapping[str, Sequence[str]],
    looked: Collection[str],
    refused: dict[tuple[str, str], HubError],
) -> None:
    """Pull the records that were told of, by resource, and the changes of those that were `looked` at.

    What can't be pulled and never will be is put into `refused`, by resource and record. Raises what stops
    all of it.
    """

    async def together(step: Step) -> None:
        resource = step.mapping.resource
        if resource in told:
            await syncs.pull(step, told[resource], told=True)
        if resource in looked:
            await syncs.pull(step)

    try:
        await _work(run, steps, together)
        return
    except HubError as error:
        if _concerns_all(error):
            raise
    for step in steps:
        report, resource = run.steps[step.key], step.mapping.resource
        if report.done:
            continue
        report.error = None
        each_told: list[str | None] = [*told.get(resource, ()), *([None] if resource in looked else [])]
        for record in each_told:
            try:
                await _work(run, [step], _pulling(syncs, record))
            except HubError as error:
                if _concerns_all(error):
                    raise
                report.error = None
                refused[resource, record or ""] = error


def _pulling(syncs: _Syncs, record: str | None) -> Callable[[Step], Awaitable[None]]:
    if record is None:
        return syncs.pull
    return lambda step: syncs.pull(step, [record], told=True)


def _concerns_all(error: HubError) -> bool:
    """Whether an error says nothing of the record that was asked for."""
    return error.retryable or isinstance(error, AuthenticationError | StoppedError | LeaseLostError)


def _own_event(claim: Claim) -> UUID | None:
    """Return the event that an operation was written for."""
    event_id = claim.payload.get("webhookId")
    return UUID(event_id) if event_id else None


async def _settle(
    context: WorkerContext,
    claim: Claim,
    outcomes: Mapping[tuple[WebhookStatus, str | None], Sequence[UUID]],
) -> None:
    """Write down what became of events; raises LeaseLostError when somebody else works them by now."""
    async with context.sessions.begin() as session:
        await operations.confirm(session, claim)
        for (status, why), ids in outcomes.items():
            await webhooks.settle(session, ids, status, why)


RUNNERS: Mapping[OperationType, Runner] = {
    OperationType.RECONCILE: _work_events,
    OperationType.SYNC: _sync,
    OperationType.CREATE: _one_record,
    OperationType.UPDATE: _one_record,
    OperationType.PLAN: _plan,
}


@dataclass(frozen=True, slots=True)
class _Syncs:
    """Builds the engine's `Sync` for each step of one run. Each has a client, so that calls are its own."""

    run: Run
    config: Mapping[str, Any]
    mappings: Sequence[FieldMapping]
    build: Callable[[Step, Callable[[Tally], None]], Sync]
    period: Period | None  # of the changes to look at
    basis: Callable[[], Mapping[str, str]]  # what a plan rests on

    @property
    def direction(self) -> str:
        """The ways that records of this integration go."""
        return str(self.config.get("syncDirection", "bidirectional"))

    @property
    def pulls(self) -> bool:
        """Whether a sync of all pulls before it pushes."""
        return "pull" in DIRECTIONS.get(self.direction, ())

    @classmethod
    async def open(cls, context: WorkerContext, run: Run) -> _Syncs:
        claim, catalog = run.claim, context.catalog
        connector = catalog.connector(claim.provider)
        async with context.sessions() as session:
            integration = await _integration(session, claim)
        limiter = context.limits.lane(critical=claim.priority is Priority.CRITICAL)

        def client_of(credentials: CredentialSource) -> ProviderClient:
            client = context.client(
                connector,
                credentials,
                limiter=limiter,
                clock=context.clock,
                budget=f"venue {claim.venue_id}",
                on_records=drift.watcher(run.sightings, connector, claim.venue_id),
                on_unknown=drift.complaints(run.sightings, connector),
            )
            run.clients.append(client)
            return client

        if claim.operation_type is OperationType.SYNC and lookups.is_due(integration, context.clock.now()):
            known = context.credentials(claim.venue_id, claim.provider)
            await lookups.look_up_again(context, claim, client_of(known))
        credentials = context.credentials(claim.venue_id, claim.provider)
        host = SqlHost(context.platform, catalog.platform, str(claim.venue_id))
        state = PostgresSyncState(
            context.engine,
            venue_id=claim.venue_id,
            provider=claim.provider,
            lease=Lease(claim.operation_id, claim.fencing_token),
        )
        venue = await host.venue()

        options: Mapping[str, Any] = claim.payload.get("options") or {}
        period = period_of(options)

        def build(step: Step, on_progress: Callable[[Tally], None]) -> Sync:
            return Sync(
                connector,
                step.mapping,
                client_of(credentials),
                host,
                state,
                venue=venue,
                clock=context.clock,
                fields=catalog.platform.entities[step.mapping.entity].fields,
                stop=lambda: run.stopping,
                on_progress=on_progress,
                complete=options.get("complete") is True,
                approved=options.get("approveDeletes") is True,
                period=period,
            )

        compiled = mappings.compiled(catalog, integration)

        def basis() -> Mapping[str, str]:
            return planned.basis(catalog, integration, venue)

        return cls(run, integration.config, compiled, build, period, basis)

    async def pull(self, step: Step, ids: Sequence[str] | None = None, *, told: bool = False) -> None:
        count = self.run.counting(step.key)
        count(await self.build(step, count).pull(ids, told=told))

    async def push(self, step: Step, ids: Sequence[str] | None = None) -> None:
        count = self.run.counting(step.key)
        count(await self.build(step, count).push(ids))


def period_of(options: Mapping[str, Any]) -> Period | None:
    """Return the period that `startDate` and `endDate` mean, days in UTC; None for no dates."""
    start, end = options.get("startDate"), options.get("endDate")
    if start is None and end is None:
        return None
    since = datetime.combine(date.fromisoformat(start), time.min, UTC) if start else None
    until = datetime.combine(date.fromisoformat(end) + timedelta(days=1), time.min, UTC) if end else None
    return Period(since, until)


def plan_steps(
    mappings: Sequence[FieldMapping], sync_direction: str, entities: frozenset[str] | None
) -> Iterator[Step]:
    """Return the steps of a sync: all pulls, then all pushes, of these entities (None: all).

    Raises InvalidRequestError for an unknown direction.
    """
    if sync_direction not in DIRECTIONS:
        raise InvalidRequestError(
            f"`{sync_direction}` isn't a sync direction; there are {', '.join(DIRECTIONS)}"
        )
    for direction in DIRECTIONS[sync_direction]:
        for mapping in mappings:
            if mapping.direction in (direction, "bidirectional") and (
                entities is None or mapping.entity in entities
            ):
                yield Step(direction, mapping)


async def _integration(session: AsyncSession, claim: Claim) -> IntegrationConfig:
    integration = await session.scalar(
        select(IntegrationConfig).filter_by(venue_id=claim.venue_id, integration_type=claim.provider)
    )
    if integration is None:
        raise IntegrationNotFoundError(f"this venue has no `{claim.provider}` integration")
    if integration.status not in RUNNABLE:
        raise NotConnectedError(f"this `{claim.provider}` integration is {integration.status.value}")
    return integration


async def _retryable(context: WorkerContext, claim: Claim, step: Step) -> list[str]:
    """Return the records that failed in earlier runs and may go through by now.

    They don't come up again by themselves: only a change on their side would bring them.
    """
    failed = models.RecordFailure
    async with context.sessions() as session:
        found = await session.scalars(
            select(failed.record_id)
            .where(
                failed.venue_id == claim.venue_id,
                failed.integration_type == claim.provider,
                failed.entity == step.mapping.entity,
                failed.resource == step.mapping.resource,
                failed.direction == models.Direction(step.direction),
                failed.retryable,
                failed.attempts < MAX_RECORD_ATTEMPTS,
            )
            .order_by(failed.record_id)
        )
        return list(found)


class Ended(NamedTuple):
    """How an attempt ended; `error` is None when it came to its own end, or was asked to stop."""

    run: Run
    status: OperationStatus
    error: HubError | None


async def record(session: AsyncSession, ended: Sequence[Ended]) -> None:
    """Write down how attempts ended: their logs once they are final, and how the integrations stand.

    Belongs in the transaction that ends the operations, after it: that is where the leases are checked. It
    takes a handful of statements, however many there are.
    """
    await _record_integrations(session, ended)
    final = [each for each in ended if each.status is not OperationStatus.PENDING]
    logged = [each for each in final if each.run.claim.operation_type is not OperationType.PLAN]
    if logged:
        await _record_logs(session, logged)
    for run, status, error in final:
        _announce(session, run, status, error)
    for run, status, _ in ended:
        quota = quotas.newest(client.quota for client in run.clients)
        await quotas.write(session, run.claim.venue_id, run.claim.provider, quota)
        await drift.write(session, run.claim.venue_id, run.claim.provider, run.sightings)
        count_end(session, run.claim, status, run.began)


def _announce(session: AsyncSession, run: Run, status: OperationStatus, error: HubError | None) -> None:
    claim = run.claim
    if claim.operation_type is not OperationType.SYNC or status is OperationStatus.PAUSED:
        return
    outbox.announce_sync(
        session,
        venue_id=claim.venue_id,
        provider=claim.provider,
        sync_id=_sync_id(claim),
        sync_type=claim.payload.get("syncType", "full"),
        attempts=claim.attempts,
        steps=[step.to_json() for step in run.steps.values()],
        error_code=None if error is None else error.code,
    )


async def _record_integrations(session: AsyncSession, ended: Sequence[Ended]) -> None:
    # Locked in order, so that two who lock several never wait for each other. One may have been disconnected.
    claims = [each.run.claim for each in ended]
    rows = await session.execute(
        _INTEGRATIONS_OF,
        {"venues": [each.venue_id for each in claims], "providers": [each.provider for each in claims]},
    )
    found = {(row.venue_id, row.integration_type): row for row in rows}
    alike: dict[Update, list[dict[str, Any]]] = {}
    following: list[dict[str, Any]] = []
    for run, status, error in ended:
        claim, heard = run.claim, heard_of(run, error)
        row = found.get((claim.venue_id, claim.provider))
        if row is None:
            continue
        is_sync = claim.operation_type is OperationType.SYNC
        statement = _integration_statement(
            failed=error is not None,
            refused=isinstance(error, AuthenticationError),
            completed=status is OperationStatus.COMPLETED,
            synced=status is OperationStatus.COMPLETED and is_sync,
            heard=heard,
        )
        told = {} if error is None else {"message": error.message}
        alike.setdefault(statement, []).append(
            {"integration": row.id, **told, **breaker.parameters(heard, run.circuit)}
        )
        if is_sync:
            following.append({"integration": row.id, "interval": sync_interval(row.config)})
    for statement, values in alike.items():
        await session.execute(statement, values)
    if following:
        await session.execute(_SCHEDULE_NEXT, following)


def heard_of(run: Run, error: HubError | None) -> Heard:
    """Return what an attempt that ended with this error, None for none, showed of the provider."""
    failures = [failure for step in run.steps.values() for failure in step.failures]
    return breaker.heard(
        error,
        calls=sum(step.counts["api_calls"] for step in run.steps.values()),
        silent=isinstance(error, NothingSyncedError)
        and bool(failures)
        and all(failure.retryable and failure.code == UnavailableError.code for failure in failures),
    )


@cache
def _integration_statement(
    *, failed: bool, refused: bool, completed: bool, synced: bool, heard: Heard
) -> Update:
    values: dict[str, Any] = {"updated_at": func.now(), **breaker.changes(heard)}
    if failed:
        values |= {
            "failure_count": _INTEGRATION.failure_count + 1,
            "last_error": bindparam("message"),
            "last_error_at": func.now(),
        }
    if refused:
        values["status"] = IntegrationStatus.ERROR
    if completed:
        values |= {"failure_count": 0, "last_error": None, "status": IntegrationStatus.CONNECTED}
    if synced:
        values["last_sync_at"] = func.now()
    return update(_INTEGRATIONS).where(_INTEGRATION.id == bindparam("integration")).values(values)


async def schedule_next(session: AsyncSession, integration_id: UUID, config: Mapping[str, Any]) -> None:
    """Set when the next scheduled sync of an integration is due: never, unless its `config` enables it."""
    await session.execute(_SCHEDULE_NEXT, {"integration": integration_id, "interval": sync_interval(config)})


def sync_interval(config: Mapping[str, Any]) -> timedelta | None:
    """Return the time between scheduled syncs, or None when an integration has none."""
    if config.get("syncEnabled") is not True:
        return None
    seconds = config.get("syncInterval")
    return (
        timedelta(seconds=max(seconds, SHORTEST_INTERVAL)) if isinstance(seconds, int) else DEFAULT_INTERVAL
    )


async def _record_logs(session: AsyncSession, ended: Sequence[Ended]) -> None:
    # The log of a run that was revived is the log of its last end.
    again = [_sync_id(each.run.claim) for each in ended if each.run.claim.fencing_token > 1]
    if again:
        await session.execute(_FORGET_LOGS, {"syncs": again})
    # One that ended before there was a step has a log all the same.
    await session.execute(
        _LOG,
        [
            _log_values(each, step)
            for each in ended
            for step in list(each.run.steps.values()) or [_no_step(each.run.claim)]
        ],
    )


def _sync_id(claim: Claim) -> UUID:
    return claim.run_id or claim.operation_id


def _no_step(claim: Claim) -> StepReport:
    return StepReport(claim.entity_type, claim.entity_type, "push")


def _log_values(ended: Ended, step: StepReport) -> dict[str, Any]:
    run, status, error = ended
    claim, counts = run.claim, step.counts
    fruitless = isinstance(error, NothingSyncedError) and counts["failed"] > 0
    errors = [asdict(failure) for failure in step.failures]
    stopped_by = step.error or error
    if stopped_by is not None and not isinstance(stopped_by, StoppedError) and not step.done:
        errors.insert(0, {"code": stopped_by.code, "message": stopped_by.message})
    return {
        "venue_id": claim.venue_id,
        "integration_type": claim.provider,
        "sync_id": _sync_id(claim),
        "operation": claim.payload.get("trigger", "manual_sync"),
        "entity_type": step.entity,
        "entity_count": counts["read"],
        "status": "completed" if step.done and not fruitless else LOG_STATUSES[status],
        "success_count": counts["created"] + counts["updated"] + counts["unchanged"],
        "error_count": counts["failed"],
        "skip_count": counts["skipped"],
        "duration_ms": step.duration_ms,
        "api_calls_made": counts["api_calls"],
        "details": {
            "resource": step.resource,
            "direction": step.direction,
            **counts,
            "held": step.held,
            "note": step.note,
            "conflict_fields": step.contested,
        },
        "errors": errors or None,
        "started_at": claim.started_at,
    }


# --- statements, built once

_INTEGRATIONS = cast(Table, IntegrationConfig.__table__)
_INTEGRATION = _INTEGRATIONS.c
_LOGS = cast(Table, SyncLog.__table__)
_SCHEDULE_NEXT = (
    update(_INTEGRATIONS)
    .where(_INTEGRATION.id == bindparam("integration"))
    .values(next_sync_at=func.now() + bindparam("interval", type_=Interval()))
)
_WHOSE = (
    func.unnest(bindparam("venues", type_=ARRAY(Uuid)), bindparam("providers", type_=ARRAY(String)))
    .table_valued("venue_id", "provider")
    .render_derived()
)
_INTEGRATIONS_OF = (
    select(_INTEGRATION.id, _INTEGRATION.venue_id, _INTEGRATION.integration_type, _INTEGRATION.config)
    .where(
        tuple_(_INTEGRATION.venue_id, _INTEGRATION.integration_type).in_(
            select(_WHOSE.c.venue_id, _WHOSE.c.provider)
        ),
        _INTEGRATION.status.in_(RUNNABLE),
    )
    .order_by(_INTEGRATION.id)
    .with_for_update()
)
_FORGET_LOGS = delete(_LOGS).where(_LOGS.c.sync_id == any_(bindparam("syncs", type_=ARRAY(Uuid))))
_LOG = insert(_LOGS).values(completed_at=func.now())
