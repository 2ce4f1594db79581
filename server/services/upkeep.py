"""Every kind of maintenance run there is, for whoever works them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from uuid import UUID

from server.context import Context
from server.db.models import MaintenanceRun
from server.services import erasure, export, maintenance, rotation
from server.services.maintenance import Step
from server.services.venues import ERASURE

KINDS: Mapping[str, Step] = {
    rotation.KIND: rotation.step,
    export.KIND: export.step,
    ERASURE: erasure.step,
}
LOOK_SECONDS = 0.2


async def work_to_end(
    context: Context, run_id: UUID, told: Callable[[MaintenanceRun], None] = lambda run: None
) -> MaintenanceRun:
    """Work a run in this process until it has ended, whoever else works it, too; `told` sees each batch."""
    while True:
        worked = await maintenance.work_one(context, KINDS, only=run_id)
        async with context.sessions() as session:
            run = await maintenance.read(session, run_id)
        told(run)
        if run.status not in maintenance.UNFINISHED:
            return run
        if not worked:
            await asyncio.sleep(LOOK_SECONDS)
