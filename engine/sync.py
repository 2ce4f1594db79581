"""One run of one mapping: pull what changed at the provider, push what changed on the platform.

Both go page by page, and each page is saved whole before the next counts: a crash repeats at most a page, and
repeating it changes nothing. A push announces its calls before it makes them, so that after a crash they are
repeated word for word under the same idempotency keys. What happens to one record is that record's alone.

Beneath it, from the provider's side to the platform's: `pulling` and `pushing` take a page on its way,
`recovery` and `announcing` see to it that no write is lost or made twice, `linking` says which records are
the same, `gone` deals with those that are gone on one side, and `sides` is what all of them ask. `planning`
says what a push would do, and `applying` does that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence

from engine.applying import Application, Became
from engine.client import ProviderClient
from engine.fields import FieldCatalog
from engine.gone import Gone
from engine.manifest import Connector
from engine.mapping import Mapping as FieldMapping
from engine.planning import Plan, PlannedRecord
from engine.ports import Clock, Direction, HostStore, Record, SyncState
from engine.pulling import Pull
from engine.pushing import Push
from engine.sides import Period, Sides
from engine.tally import KEPT_FAILURES, Tally

__all__ = ["KEPT_FAILURES", "Period", "Sync", "Tally"]


class Sync:
    """Runs one mapping of one venue. `stop` is asked between pages; `on_progress` is told after each.

    A `complete` run also looks for what is gone without a word: it compares every link with the platform, and
    reads all of the provider's records. `approved` says that a person wants all the gone to go, however many.
    With a `period` only what changed within it is looked at, and no position moves.
    """

    def __init__(
        self,
        connector: Connector,
        mapping: FieldMapping,
        client: ProviderClient,
        host: HostStore,
        state: SyncState,
        *,
        venue: Record,
        clock: Clock,
        fields: FieldCatalog,
        stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Tally], None] = lambda tally: None,
        complete: bool = False,
        approved: bool = False,
        period: Period | None = None,
    ) -> None:
        self.sides = Sides(connector, mapping, client, host, state, venue, clock, stop)
        self._gone = Gone(self.sides, approved)
        self.fields = fields
        self.on_progress = on_progress
        self._complete = complete
        self._period = period

    async def pull(self, ids: Sequence[str] | None = None, *, told: bool = False) -> Tally:
        """Bring the platform in step with what changed at the provider since the last finished pull; with
        `ids`, with these records only, as far as the provider can be asked for them. When the provider has
        `told` of them, one it doesn't have is gone.

        Raises ProviderError for what stops the run, StoppedError, LeaseLostError.
        """
        tally = self._tally("pull")
        pull = self._pull_of(tally, self.on_progress)
        await (pull.changed() if ids is None else pull.some(ids, told=told))
        return tally

    async def push(self, ids: Sequence[str] | None = None) -> Tally:
        """Bring the provider in step with what changed on the platform; with `ids`, these records only.

        An unchanged record costs no call. Raises ProviderError for what stops the run, StoppedError,
        LeaseLostError.
        """
        tally = self._tally("push")
        push = self._push_of(tally, self.on_progress)
        await (push.changed() if ids is None else push.some(ids))
        return tally

    def plan(
        self,
        made: dict[tuple[str, str], str],
        *,
        pulls: bool,
        referred: Collection[str] = (),
        again: Sequence[str] = (),
    ) -> AsyncIterator[list[PlannedRecord]]:
        """Yield what a push would do, some records at a time, and write nothing.

        `pulls` says whether a sync pulls this mapping before it pushes. `referred` names the resources whose
        records other mappings refer to: of those that this plan makes, `made` gets what stands for their
        remote ids, for the mappings that come after. `again` are records to look at that failed before.
        Raises ProviderError for what stops it, StoppedError.
        """
        push = self._push_of(self._tally("push"), _nobody)
        return Plan(
            self.sides, self._gone, push, fields=self.fields, pulls=pulls, referred=referred, made=made
        ).records(again)

    async def apply(self, records: Sequence[PlannedRecord]) -> tuple[Tally, dict[str, Became]]:
        """Do what a plan of this mapping says of some records, at most `engine.applying.MOST`; returns the
        push's tally, and what became of each record that was to be written, by local id.

        Raises as `push`.
        """
        tally = self._tally("push")
        application = Application(
            self.sides,
            self._gone,
            lambda tally: self._push_of(tally, self.on_progress),
            lambda tally: self._pull_of(tally, _nobody),
        )
        return tally, await application.apply(records, tally)

    def _pull_of(self, tally: Tally, report: Callable[[Tally], None]) -> Pull:
        return Pull(
            self.sides,
            self._gone,
            tally,
            fields=self.fields,
            report=report,
            complete=self._complete,
            period=self._period,
        )

    def _push_of(self, tally: Tally, report: Callable[[Tally], None]) -> Push:
        return Push(
            self.sides,
            self._gone,
            tally,
            fields=self.fields,
            report=report,
            complete=self._complete,
            period=self._period,
        )

    def _tally(self, direction: Direction) -> Tally:
        return Tally(*self.sides.here, direction)


def _nobody(tally: Tally) -> None:
    return None
