"""Which operations a worker may begin now: it keeps room for what is more urgent, and for other providers.

Of `concurrency` slots, a few are closed to the low lane and fewer to the normal one, so that the high lane
finds one however long the others take. The critical lane has slots of its own on top. One provider, and one
venue, may have a share of the slots and no more: a provider that hangs can't hold all of them.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

from server.services.operations import LANES, Due

URGENT = LANES[0]
FLOOR = 20  # every so many picks, the least urgent lane comes first
_KEPT = 0.1  # of the slots, for each lane that is more urgent, the critical one left aside
_ON_TOP = 0.5  # of the slots, for the critical lane
_AT_ONCE = 100  # operations taken in one go
_UNWRITTEN = 4  # times the slots: more ends that aren't written yet, and nothing new begins


@dataclass(slots=True)
class Slots:
    """The slots of one worker. `freed` is set whenever one becomes free."""

    lanes: Sequence[str]  # most urgent first
    most: Sequence[int]  # for each lane, how many of it and of those less urgent
    provider: Sequence[int]  # the same, of one provider
    venue: Sequence[int]  # the same, of one venue
    floor: int = FLOOR
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    _running: dict[UUID, Due] = field(default_factory=dict)
    _ending: dict[UUID, Due] = field(default_factory=dict)
    _picks: int = 0

    @classmethod
    def of(
        cls,
        concurrency: int,
        *,
        lanes: Sequence[str] = LANES,
        provider_share: int = 100,
        venue_share: int = 100,
        floor: int = FLOOR,
    ) -> Self:
        """Return the slots of a worker for these lanes; shares are in percent."""
        served = [lane for lane in LANES if lane in lanes]
        kept = math.ceil(concurrency * _KEPT)
        rest = [lane for lane in served if lane != URGENT]
        most = [max(1, concurrency - kept * place) for place in range(len(rest))]
        everything = concurrency
        if URGENT in served:
            everything += math.ceil(concurrency * _ON_TOP)
            most = [everything, *most]

        provider, venue = (
            [math.ceil(slots * share / 100) for slots in most] for share in (provider_share, venue_share)
        )
        return cls(served, most, provider, venue, floor)

    def ask(self) -> dict[str, Any] | None:
        """Return what `relay.take` needs to know to find operations that may begin; None when none may."""
        running = list(self._running.values())
        free = [most - used for most, used in zip(self.most, self._counts(running), strict=True)]
        if free[0] <= 0 or len(self._ending) > _UNWRITTEN * self.most[0]:
            return None
        return {
            "lanes": self.lanes,
            "free": free,
            "most": _AT_ONCE,
            "picks": self._picks,
            "floor": self.floor,
            "busy": {f"{due.venue_id}:{due.provider}": True for due in (*running, *self._ending.values())},
            "limits": {"provider": self.provider, "venue": self.venue},
            "running": {
                "provider": self._counts_by(running, lambda due: due.provider),
                "venue": self._counts_by(running, lambda due: str(due.venue_id)),
            },
        }

    def _counts(self, running: Sequence[Due]) -> list[int]:
        """Return, for each lane, how many of some operations are in it and in those less urgent."""
        by_lane = Counter(due.lane for due in running)
        return [sum(by_lane[lane] for lane in self.lanes[place:]) for place in range(len(self.lanes))]

    def _counts_by(self, running: Sequence[Due], name: Callable[[Due], str]) -> dict[str, list[int]]:
        groups: dict[str, list[Due]] = {}
        for due in running:
            groups.setdefault(name(due), []).append(due)
        return {key: self._counts(group) for key, group in groups.items()}

    def with_room(self) -> list[str]:
        """Return the lanes of which at least one more operation may begin."""
        ask = self.ask()
        if ask is None:
            return []
        closed = next((place for place, free in enumerate(ask["free"]) if free <= 0), len(self.lanes))
        return list(self.lanes[:closed])

    def fitting(self, found: Sequence[Due]) -> list[Due]:
        """Return those of some operations, in their order, that may begin now: for when there is no Redis."""
        ask = self.ask()
        if ask is None:
            return []
        none, fits = [0] * len(self.lanes), []
        for due in found:
            above = range(self.lanes.index(due.lane) + 1)  # its lane and those more urgent
            names = {"provider": due.provider, "venue": str(due.venue_id)}
            running = {kind: ask["running"][kind].setdefault(name, [*none]) for kind, name in names.items()}
            whose = f"{due.venue_id}:{due.provider}"
            full = any(
                ask["free"][place] <= 0
                or any(running[kind][place] >= ask["limits"][kind][place] for kind in names)
                for place in above
            )
            if full or whose in ask["busy"]:
                continue
            ask["busy"][whose] = True
            for place in above:
                ask["free"][place] -= 1
                for kind in names:
                    running[kind][place] += 1
            fits.append(due)
        return fits

    @property
    def messages(self) -> int:
        """How many messages may be worked on at a time: each has an operation that runs or ends, or more."""
        return (_UNWRITTEN + 2) * self.most[0]

    def take(self, due: Due) -> None:
        """Count an operation that is about to begin."""
        self._picks += 1
        self._running[due.id] = due

    def finish(self, operation_id: UUID) -> None:
        """Free the slot of an operation whose run has ended; its integration stays busy until `forget`."""
        due = self._running.pop(operation_id, None)
        if due is not None:
            self._ending[operation_id] = due
            self.freed.set()

    def forget(self, operation_id: UUID) -> Due | None:
        """Leave an operation out of every count: its end is written, or it wasn't to be had."""
        running = self._running.pop(operation_id, None)
        self.freed.set()
        return self._ending.pop(operation_id, running)
