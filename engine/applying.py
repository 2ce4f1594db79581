"""Carry out a plan: exactly what it lists, and nothing of a record that changed since.

Ours and theirs are compared with what the plan rests on right before a record is written. One that an earlier
attempt wrote before it was cut off is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.gone import Gone, Parted
from engine.planning import UNANSWERED, PlannedRecord, existing, print_of, print_of_theirs
from engine.ports import Link, Record
from engine.pulling import Pull
from engine.pushing import Push
from engine.sides import Sides
from engine.tally import Tally

Fate = Literal["done", "failed", "changed"]

AWAY = ("archive", "delete")
MOST = 50  # records at once: of so many a tally keeps every failure


@dataclass(frozen=True, slots=True)
class Became:
    """What became of a planned record, and why where it isn't done."""

    fate: Fate
    why: str = ""


DONE = Became("done")
CHANGED = Became("changed", "changed since the plan")


@dataclass(frozen=True, slots=True)
class Application:
    """Applies a plan of one mapping. `push_of` and `pull_of` make one that counts in a tally."""

    sides: Sides
    gone: Gone
    push_of: Callable[[Tally], Push]
    pull_of: Callable[[Tally], Pull]

    async def apply(self, records: Sequence[PlannedRecord], tally: Tally) -> dict[str, Became]:
        """Do what the plan says of at most `MOST` records; returns what became of those it writes, by local
        id. `tally` is the push's, and counts the pulls that come first.

        Raises ProviderError for what stops the run, StoppedError, LeaseLostError.
        """
        self.sides.check_stop()
        planned = {each.local_id: each for each in records if each.writes}
        push = self.push_of(tally)
        waiting = await push.finish()  # for what an earlier attempt announced
        ours = await self.sides.host.fetch(self.sides.mapping.entity, list(planned))
        links = await self.sides.state.links_by_local(self.sides.mapping.resource, list(planned))
        written = await self._written(list(ours.values()))
        became: dict[str, Became] = {}
        left: dict[str, PlannedRecord] = {}
        for local_id, each in planned.items():
            known = (
                Became("failed", UNANSWERED)
                if local_id in waiting
                else _known(each, ours.get(local_id), links.get(local_id), local_id in written)
            )
            if known is None:
                left[local_id] = each
            else:
                became[local_id] = known
        changed = await self._changed_there(left, links)
        became |= dict.fromkeys(changed, CHANGED)
        left = {local_id: each for local_id, each in left.items() if local_id not in changed}
        away = [links[local_id] for local_id, each in left.items() if each.action in AWAY]
        became |= await self._put_away(away, tally)
        became |= await self._write([each for each in left.values() if each.action not in AWAY], push, tally)
        skipped = sum(each == CHANGED for each in became.values())
        tally.skipped += skipped
        if skipped:
            tally.note = "records that changed since the plan were left alone"
        return became

    async def _written(self, ours: Sequence[Record]) -> frozenset[str]:
        """Return which records nothing is to be written for any more."""
        looked = await self.push_of(self._aside()).look(ours)
        return frozenset(local_id for local_id, why in looked.passed.items() if why == "unchanged")

    async def _changed_there(
        self, planned: Mapping[str, PlannedRecord], links: Mapping[str, Link]
    ) -> set[str]:
        """Return which of theirs aren't as they were looked at, as far as that can be told."""
        sides = self.sides
        known = {
            each.remote_id: each
            for each in planned.values()
            if each.remote_id is not None and each.theirs is not None
        }
        if not known or not sides.askable:
            return set()
        there, _ = await sides.look_up(list(known))
        return {
            each.local_id
            for remote_id, each in known.items()
            if print_of_theirs(sides.mapping, existing(there.get(remote_id), links.get(each.local_id)))
            != each.theirs
        }

    async def _put_away(self, links: Sequence[Link], tally: Tally) -> dict[str, Became]:
        if not links:
            return {}
        failed: dict[str, Became] = {}

        async def put_away(parted: Parted) -> None:
            try:
                await self.gone.put_away(links, parted)
            finally:
                failed.update((each.record_id, Became("failed", each.message)) for each in parted.failures)

        await self.gone.settle(put_away, tally)
        return dict.fromkeys((link.local_id for link in links), DONE) | failed

    async def _write(self, planned: Sequence[PlannedRecord], push: Push, tally: Tally) -> dict[str, Became]:
        if not planned:
            return {}
        sides = self.sides
        first = [each.remote_id for each in planned if each.pulls_first and each.remote_id is not None]
        if first:
            pulled = self._aside()
            await self.pull_of(pulled).some(first)
            tally.conflicts += pulled.conflicts
            for failure in pulled.failures:
                tally.add_failure(failure)
        ours = await sides.host.fetch(sides.mapping.entity, [each.local_id for each in planned])
        expected = {each.local_id: each.merged for each in planned}
        same = [record for local_id, record in ours.items() if print_of(record) == expected[local_id]]
        failures = len(tally.failures)
        await push.these(same)
        failed = {each.record_id: each.message for each in tally.failures[failures:]}
        became: dict[str, Became] = dict.fromkeys(expected, CHANGED)
        became |= {str(record["id"]): DONE for record in same}
        return became | {local_id: Became("failed", why) for local_id, why in failed.items()}

    def _aside(self) -> Tally:
        return Tally(*self.sides.here, "push")


def _known(planned: PlannedRecord, ours: Record | None, link: Link | None, written: bool) -> Became | None:
    """Return what is known of a record before the provider is asked; None when it is to be gone on with."""
    if print_of(ours) not in (planned.ours, planned.merged):
        return CHANGED
    if planned.action in AWAY:
        if link is None or link.state == "archived":
            return DONE  # by an earlier attempt
        return None if link.remote_id == planned.remote_id else CHANGED
    if written:
        return DONE
    return None if link is None or link.remote_id == planned.remote_id else CHANGED
