"""Operations that workers work: how long they waited and took, how they ended, and a span for each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import StoppedError
from server.db.models import OperationStatus, OperationType
from server.telemetry import traces
from server.telemetry.metrics import LANE_SECONDS, OPERATION_SECONDS, SYNC_SECONDS, SYNCS, once_committed

if TYPE_CHECKING:
    from server.services.operations import Claim

_SYNC_STATUSES = {
    OperationStatus.COMPLETED: "completed",
    OperationStatus.PAUSED: "stopped",
    OperationStatus.FAILED: "failed",
    OperationStatus.DEAD_LETTER: "failed",
}


@contextmanager
def working(claim: Claim) -> Iterator[None]:
    """Trace the work on an operation as part of what queued it; the first time, count how long it waited."""
    if claim.fencing_token == 1 and claim.queued_at is not None:
        waited = (claim.started_at - claim.queued_at).total_seconds()
        LANE_SECONDS.observe(max(0.0, waited), claim.priority.value.lower())
    stopped: StoppedError | None = None
    with traces.span(
        f"work {claim.operation_type.value}",
        kind="consumer",
        parent=claim.payload.get(traces.TRACEPARENT),
        operation_id=str(claim.operation_id),
        operation_type=claim.operation_type.value,
        provider=claim.provider,
        venue_id=str(claim.venue_id),
        sync_id=None if claim.run_id is None else str(claim.run_id),
        request_id=claim.correlation_id,
        attempt=claim.attempts,
    ):
        try:
            yield
        except StoppedError as error:  # as asked: nothing failed
            stopped = error
    if stopped is not None:
        raise stopped


def count_end(session: AsyncSession, claim: Claim, status: OperationStatus, began: float) -> None:
    """Count how an attempt ended, once that is committed; `began` is a monotonic time."""

    def count() -> None:
        seconds = time.monotonic() - began
        OPERATION_SECONDS.observe(seconds, claim.operation_type.value, status.value)
        if claim.operation_type is OperationType.SYNC and status in _SYNC_STATUSES:
            SYNCS.add(claim.provider, _SYNC_STATUSES[status])
            took = (datetime.now(UTC) - claim.started_at).total_seconds()
            SYNC_SECONDS.observe(max(0.0, took), claim.provider)

    once_committed(session, count)
