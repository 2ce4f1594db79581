"""Tell the outside what was announced: into streams, and to subscribers. Part of the scheduler's process.

Two of them do no harm: what one has claimed, the other leaves alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import httpx
import structlog

from server.context import Context
from server.services import deliveries, outbox
from server.services.deliveries import Attempt, OpenedSecrets
from server.services.outbox import Stream
from server.streams import open_streams
from server.telemetry.metrics import EVENT_SECONDS
from server.worker.context import WorkerContext
from server.worker.schedule import Job, run_jobs

log = structlog.get_logger(__name__)

EVERY = 0.5  # seconds between two looks
PAUSE = 0.05  # seconds between two looks for attempts at least: those that end in it make room together
GRACE_SECONDS = 5.0  # for attempts under way at the end; others are made once more


async def keep_telling(context: WorkerContext, stopping: asyncio.Event) -> None:
    """Tell the outside until `stopping` is set. No store's absence ends it."""
    async with (
        open_streams(context.settings, context.redis) as streams,
        deliveries.open_http(context.settings) as http,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(run_jobs(context, stopping, jobs(streams)))
        group.create_task(Sender(context, http).run(stopping))


def jobs(streams: Sequence[Stream]) -> tuple[Job, ...]:
    """Return what is done by the clock: events to deliveries, and into each of the streams."""
    names = [stream.name for stream in streams]

    async def distribute(context: WorkerContext) -> int:
        async with context.sessions.begin() as session:
            return await outbox.distribute(session, names)

    def publishing(stream: Stream) -> Job:
        async def publish(context: WorkerContext) -> int:
            return await outbox.publish(context.sessions, stream)

        return Job(f"publish_to_{stream.name}", EVERY, publish, backlog=True)

    return (Job("distribute_events", EVERY, distribute, backlog=True), *map(publishing, streams))


@dataclass(slots=True)
class Sender:
    """Makes attempts, many at a time. A slow subscriber has its own, and the others theirs."""

    context: Context
    http: httpx.AsyncClient
    opened: OpenedSecrets = field(default_factory=OpenedSecrets)
    under_way: dict[asyncio.Task[None], UUID] = field(default_factory=dict)  # whom each is for

    async def run(self, stopping: asyncio.Event) -> None:
        """Make attempts as they are due until `stopping` is set; then those under way may end."""
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                try:
                    await self.begin()
                except Exception as error:  # most often a store that is away
                    log.warning("event.claim_failed", error=type(error).__name__)
                await asyncio.wait({stop}, timeout=PAUSE)
                await asyncio.wait(
                    {stop, *self.under_way}, timeout=EVERY, return_when=asyncio.FIRST_COMPLETED
                )
            if self.under_way:
                await asyncio.wait(set(self.under_way), timeout=GRACE_SECONDS)
        finally:
            tasks = [stop, *self.under_way]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self) -> int:
        """Begin all attempts that are due and that there is room for; returns how many."""
        room = deliveries.AT_ONCE - len(self.under_way)
        if room <= 0:
            return 0
        busy = Counter(self.under_way.values())
        attempts = await deliveries.claim(self.context, self.opened, room, busy)
        for attempt in attempts:
            task = asyncio.create_task(self._make(attempt))
            self.under_way[task] = attempt.subscriber_id
            task.add_done_callback(self.under_way.pop)
        return len(attempts)

    async def _make(self, attempt: Attempt) -> None:
        try:
            answer = await deliveries.send(self.http, attempt, now=datetime.now(UTC).timestamp())
            async with self.context.sessions.begin() as session:
                became = await deliveries.settle(session, attempt, answer, datetime.now(UTC))
        except Exception as error:  # it is made once more when its lease is over, with the same id
            log.warning("event.not_settled", event_id=attempt.event.id, error=type(error).__name__)
            return
        outcome = "ended" if became is None else became.value
        EVENT_SECONDS.observe(answer.duration_ms / 1000, outcome)
        log.info(
            "event.sent",
            event_id=attempt.event.id,
            type=attempt.event.type,
            subscriber_id=str(attempt.subscriber_id),
            attempt=attempt.number,
            answered=answer.status,
            became=became.value if became else None,
            duration_ms=answer.duration_ms,
        )
