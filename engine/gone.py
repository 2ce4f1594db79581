"""Records that are gone on one side: found beyond doubt, counted, and only then dealt with on the other.

What is gone is first written down in its link. So a crash loses none of it, and how many there are is known
before anything is archived, deleted or unlinked: with more than a mapping allows nothing is, until somebody
approves.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.client import ReadRecord
from engine.errors import (
    HubError,
    MappingError,
    RateLimitedError,
    RecordRejectedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.mapping import GoneRule
from engine.ports import Commit, Link, LinkState, Record, RecordFailure, RecordKey
from engine.reconcile import fingerprint
from engine.sides import Sides, batched
from engine.tally import Tally

COMPARED = 500  # links at once
AT_ONCE = 50  # calls made and saved together
MOST_REFUSALS = 10  # of putting one record away, before only a person may have it tried again

OWN_FAULTS = (RecordRejectedError, MappingError)  # a record's own, which harm no other
# Of one record or of all, and over by the next run.
PASSING = (RateLimitedError, UnavailableError, UnexpectedResponseError)


@dataclass(slots=True)
class Parted:
    """What became of the gone. `held` of `links` records would have gone, and none of them did; `refused`
    records aren't tried any more, because the provider refused too often.
    """

    archived: int = 0
    deleted: int = 0  # at the provider, or just their links when it was the provider who deleted them
    held: int = 0
    links: int = 0
    refused: int = 0
    failures: list[RecordFailure] = field(default_factory=list)

    def note(self, share: float) -> str:
        """Return, for people, that records were held or aren't tried any more; empty when there are none."""
        if self.refused:
            some = (
                "1 gone record stays as it is"
                if self.refused == 1
                else (f"{self.refused} gone records stay as they are")
            )
            return f"{some}, having been refused {MOST_REFUSALS} times: a sync that approves it tries again"
        if not self.held:
            return ""
        return (
            f"{self.held} of {self.links} linked records are gone, more than the {share:.0%} that one sync "
            "may put away unasked: none of them was, and a sync that approves it goes on"
        )


class Seen:
    """The ids of a complete read, at eight bytes each.

    Two ids that look the same let a gone record pass for one that was seen, which does no harm.
    """

    def __init__(self) -> None:
        self._hashes = array("q")
        self._sorted = True

    def add(self, ids: Iterable[str]) -> None:
        self._hashes.extend(map(hash, ids))
        self._sorted = False

    def __contains__(self, record_id: str) -> bool:
        if not self._sorted:
            self._hashes, self._sorted = array("q", sorted(self._hashes)), True
        wanted = hash(record_id)
        at = bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted


@dataclass(frozen=True, slots=True)
class Gone:
    """Deals with the gone records of one mapping. `approved`: a person wants them all to go."""

    sides: Sides
    approved: bool

    def rule(self, link: Link, ours: Record | None) -> GoneRule:
        """Say what becomes of their record, given ours as it is now (None: it isn't there any more)."""
        mapping, scope = self.sides.mapping, self.sides.scope({})
        if ours is None or mapping.is_deleted(ours, scope):
            return mapping.when_ours_is_gone
        wanted = "key" not in link.agreed or mapping.wants(ours, scope)  # we never wrote it, or do
        return "keep" if wanted else mapping.when_no_longer_wanted

    def leaves(self, link: Link, ours: Record | None) -> bool:
        """Say whether their record has to go. One that can't be told stays."""
        try:
            return self.sides.mapping.removes and link.state == "linked" and self.rule(link, ours) != "keep"
        except MappingError:
            return False

    # ---- ours is gone -----------------------------------------------------------------------------------

    async def compare_ours(self) -> None:
        """Look at every link for whether ours is still there and wanted."""
        if not self.sides.mapping.removes:
            return
        async for links in self._pages("linked", COMPARED):
            ours = await self.sides.host.fetch(self.sides.mapping.entity, [link.local_id for link in links])
            leaving = [link for link in links if self.leaves(link, ours.get(link.local_id))]
            if leaving:
                await self.sides.state.commit(Commit(links=[to_leave(link) for link in leaving]))

    async def settle_ours(self, parted: Parted) -> None:
        """Archive or delete theirs where ours is gone or not wanted any more, unless they are too many.

        Raises ProviderError for what stops the run; what was done until then is saved, and in `parted`.
        """
        if await self._too_many("leaving", ("linked", "leaving"), parted):
            return
        async for links in self._pages("leaving", AT_ONCE):
            tried = [link for link in links if self.approved or not self.refused(link)]
            parted.refused += len(links) - len(tried)
            if tried:
                await self._part(tried, parted)

    async def put_away(self, links: Sequence[Link], parted: Parted) -> None:
        """Archive or delete theirs of these links, however many they are: each of them was approved."""
        marked = [link if link.state == "leaving" else to_leave(link) for link in links]
        await self.sides.state.commit(Commit(links=marked))
        await self._part(marked, parted)

    def refused(self, link: Link) -> bool:
        """Say whether the provider refused to put theirs away so often that only a person tries again."""
        return _refusals(link) >= MOST_REFUSALS

    async def _part(self, links: Sequence[Link], parted: Parted) -> None:
        ours = await self.sides.host.fetch(self.sides.mapping.entity, [link.local_id for link in links])
        now = await asyncio.gather(*(self._put_away(link, ours.get(link.local_id)) for link in links))
        there = [each for each in now if isinstance(each, Link)]
        deleted = [link for link, each in zip(links, now, strict=True) if each is None]
        failed = [(link, each) for link, each in zip(links, now, strict=True) if isinstance(each, HubError)]
        archived = [link for link in there if link.state == "archived"]
        refused = [
            replace(link, agreed={**link.agreed, "refused": _refusals(link) + 1})
            for link, error in failed
            if isinstance(error, OWN_FAULTS)
        ]
        failures = [
            RecordFailure(*_key(link), error.code, error.message, not isinstance(error, OWN_FAULTS))
            for link, error in failed
        ]
        settled = [_key(link) for link in (*archived, *deleted)]
        commit = Commit(links=[*there, *refused], unlinked=deleted, failures=failures, settled=settled)
        await self.sides.state.commit(commit)
        parted.archived += len(archived)
        parted.deleted += len(deleted)
        parted.failures += failures
        ending = [error for _, error in failed if not isinstance(error, (*OWN_FAULTS, *PASSING))]
        if len(failed) == len(links):  # the provider is away
            ending += [error for _, error in failed if isinstance(error, PASSING)]
        if ending:
            raise ending[0]

    async def _put_away(self, link: Link, ours: Record | None) -> Link | HubError | None:
        """Do to their record what has to be done; returns the link as it is then, None when there is none."""
        try:
            rule = self.rule(link, ours)
            if rule == "keep":
                return to_stay(link)
            if rule == "delete":
                await self.sides.client.delete(link.resource, link.remote_id)
                return None
            key = fingerprint([link.resource, link.remote_id, link.agreed.get("key"), "archive"])
            await self.sides.client.archive(link.resource, link.remote_id, key)
            return replace(link, state="archived", fingerprint=None)
        except HubError as error:
            return error

    # ---- theirs is gone ---------------------------------------------------------------------------------

    async def compare_theirs(self, seen: Seen) -> None:
        """After a complete read, ask for every linked record that wasn't in it; note those that are gone."""
        if self.sides.resource.get is None and self.sides.resource.get_many is None:
            return  # nobody to ask, and a list alone is no proof
        async for links in self._pages("linked", COMPARED):
            unseen = [link for link in links if link.remote_id not in seen]
            for some in batched(unseen, AT_ONCE):
                self.sides.check_stop()
                missing = await self._missing(some)
                if missing:
                    moved = [replace(link, state="broken") for link in missing]
                    await self.sides.state.commit(Commit(links=moved))

    async def _missing(self, links: Sequence[Link]) -> Sequence[Link]:
        """Return the links whose remote record the provider doesn't have; a batch is only a first answer."""
        name = self.sides.resource.name
        if self.sides.resource.get_many is not None:
            there = await self.sides.client.get_many(name, [link.remote_id for link in links])
            links = [link for link in links if link.remote_id not in there]
        if self.sides.resource.get is not None:
            records = await asyncio.gather(
                *(self.sides.client.get(name, link.remote_id) for link in links), return_exceptions=True
            )
            for record in records:
                if isinstance(record, BaseException):
                    raise record
            links = [link for link, record in zip(links, records, strict=True) if record is None]
        return links

    async def settle_theirs(self, parted: Parted) -> None:
        """Unlink what is gone at the provider, where the mapping says so and they aren't too many."""
        unlinks = self.sides.mapping.when_theirs_is_gone == "unlink"
        if not unlinks or await self._too_many("broken", ("linked", "leaving", "broken"), parted):
            return
        async for links in self._pages("broken", COMPARED):
            await self.sides.state.commit(Commit(unlinked=links))
            parted.deleted += len(links)

    # ---- both -------------------------------------------------------------------------------------------

    async def settle(self, how: Callable[[Parted], Awaitable[None]], tally: Tally) -> None:
        """Deal with the gone of one side, and count what became of them even if it is cut short."""
        parted, calls = Parted(), self.sides.client.calls
        try:
            await how(parted)
        finally:
            tally.archived += parted.archived
            tally.deleted += parted.deleted
            tally.held += parted.held
            tally.note = parted.note(self.sides.mapping.at_most_gone) or tally.note
            for failure in parted.failures:
                tally.add_failure(failure)
            tally.api_calls += self.sides.client.calls - calls

    async def _too_many(self, state: LinkState, among: Sequence[LinkState], parted: Parted) -> bool:
        """Say whether more links are in a state than may go unasked, and note how many they are."""
        here, few = self.sides.here, self.sides.mapping.few_gone
        if self.approved or len(await self.sides.state.links_in_state(*here, state, limit=few + 1)) <= few:
            return False
        counts = await self.sides.state.count_links(*here)
        gone, links = counts.get(state, 0), sum(counts.get(each, 0) for each in among)
        if gone <= allowed(links, self.sides.mapping.at_most_gone, few):
            return False
        parted.held, parted.links = gone, links
        return True

    async def _pages(self, state: LinkState, size: int) -> AsyncIterator[list[Link]]:
        after = ""
        while links := await self.sides.state.links_in_state(
            *self.sides.here, state, after=after, limit=size
        ):
            self.sides.check_stop()
            yield links
            if len(links) < size:
                return
            after = links[-1].local_id


def told_gone(rows: Sequence[ReadRecord], known: Mapping[str, Link]) -> tuple[list[Link], list[Link]]:
    """Return the links that the deletions among these rows break, and those that are over: nobody has either
    record any more. A broken link holds its place until it is known how many there are.
    """
    gone = [(known[row.id], row) for row in rows if row.deleted and row.id in known]
    broken = [
        replace(link, state="broken", remote_version=row.changed_at or link.remote_version)
        for link, row in gone
        if not is_parted(link)
    ]
    return broken, [link for link, _ in gone if is_parted(link)]


def to_leave(link: Link) -> Link:
    """Return a link whose other record has to go. What was refused at an earlier time doesn't count."""
    return replace(_never_refused(link), state="leaving")


def to_stay(link: Link) -> Link:
    """Return a link whose two records are both wanted."""
    return replace(_never_refused(link), state="linked")


def _never_refused(link: Link) -> Link:
    agreed = {name: value for name, value in link.agreed.items() if name != "refused"}
    return replace(link, agreed=agreed)


def _refusals(link: Link) -> int:
    return int(link.agreed.get("refused", 0))


def is_parted(link: Link | None) -> bool:
    """Say whether ours is gone, so that nothing their record says is of interest."""
    return link is not None and link.state in ("leaving", "archived")


def allowed(links: int, share: float, few: int) -> int:
    """Return how many of so many links may go in one run without approval; `few` may go in any case."""
    return max(few, int(links * share))


def _key(link: Link) -> RecordKey:
    return link.entity, link.resource, "push", link.local_id
