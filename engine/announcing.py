"""Calls that are announced before they are made, and what becomes of each of their records.

After a crash an announced call is still known, and is repeated word for word under its own key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from engine.batching import job_spec
from engine.client import Books, WriteGroup, WriteResult
from engine.errors import HubError, RateLimitedError, RecordRejectedError
from engine.linking import pushed_links
from engine.manifest import Resource
from engine.outcomes import is_gone
from engine.ports import Commit, Link, PendingItem, PendingWrite, RecordFailure
from engine.reconcile import fingerprint
from engine.sides import Sides, batched
from engine.tally import Tally

Call = tuple[PendingWrite, WriteGroup]  # as announced, and as sent

MAX_ATTEMPTS = 5  # of one announced write, over runs, before it is left to its failure
CHUNK = 50  # calls announced, made and saved together
REPEATED = 10  # after a crash: what is saved sooner shows sooner that workers aren't lost by these calls


def chunks(resource: Resource, calls: Sequence[Call], size: int = CHUNK) -> Iterator[Sequence[Call]]:
    """Cut calls into those made together. Jobs go by themselves and last: they may take hours, and what
    became of the others is saved before.
    """
    jobs = [call for call in calls if job_spec(resource, call[1]) is not None]
    others = [call for call in calls if job_spec(resource, call[1]) is None] if jobs else calls
    yield from batched(others, size)
    yield from batched(jobs, size)


@dataclass(slots=True)
class _Answers:
    """What the answers to a chunk of calls come to."""

    links: list[Link] = field(default_factory=list)
    done: list[str] = field(default_factory=list)  # local ids
    gone: list[str] = field(default_factory=list)  # local ids of those whose record there isn't any more
    failed: list[RecordFailure] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)  # keys of calls that are over
    again: list[PendingWrite] = field(default_factory=list)  # what is announced anew
    replaced: list[str] = field(default_factory=list)  # keys of those it is announced instead of
    stopped: HubError | None = None  # what ends the run
    down: HubError | None = None  # why a record wasn't written that may be another time
    through: bool = False  # the provider had an opinion on a record


class Announcer:
    """Makes announced calls of one mapping, and counts in `tally` what became of their records."""

    def __init__(self, sides: Sides, tally: Tally) -> None:
        self._sides = sides
        self._tally = tally
        self._fruitless = 0.0  # chunks of calls in a row of which nothing got through

    async def send(self, calls: Sequence[Call], *, repeating: bool = False) -> None:
        """Make calls that are announced, and save what became of each record.

        Raises what ends the run, and, when nothing gets through any more, why.
        """
        books = self._books([write for write, _ in calls])
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(self._attempt(group, books)) for _, group in calls]
        answers = _Answers()
        for (write, _), task in zip(calls, sent, strict=True):
            outcome = task.result()
            if isinstance(outcome, HubError):  # the run can't go on; this call stays announced
                answers.stopped = answers.stopped or outcome
            else:
                self._take(write, outcome, answers)
        parted = await self._parted(answers.gone)
        await self._sides.state.commit(
            Commit(
                links=[*answers.links, *parted],
                failures=answers.failed,
                settled=[self._sides.key("push", local_id) for local_id in (*answers.done, *answers.gone)],
                finished_writes=answers.finished,
            )
        )
        if answers.again:  # after the links: a crash in between repeats the old calls, which changes nothing
            await self._sides.state.announce(answers.again, instead_of=answers.replaced)
        if answers.stopped is not None:
            raise answers.stopped
        weight = len(calls) / CHUNK if repeating else 1  # repeated calls come in smaller chunks
        self._fruitless = 0 if answers.through else self._fruitless + weight
        if answers.down is not None and not answers.through:
            several = len(answers.failed) > 1 and not repeating
            await self._check_reachable(answers.down, several or self._fruitless > 1)

    def _take(self, write: PendingWrite, results: Sequence[WriteResult], answers: _Answers) -> None:
        """Note what became of the records of one call, and whether it is over, open, or made anew."""
        items = {item.local_id: item for item in write.items}
        retry: list[PendingItem] = []
        unanswered = False
        for result in results:
            item = items[result.write.local_id]
            if result.error is None:
                self._take_done(item, result, answers)
                continue
            if result.write.only_existing and is_gone(result.error):
                answers.through = True
                answers.gone.append(item.local_id)
                self._tally.skipped += 1
                continue
            refused = isinstance(result.error, RecordRejectedError)
            answers.through = answers.through or refused or not result.retryable
            made = result.remote_id not in (None, item.remote_id)  # also instead of what can't be changed
            # What goes with a record that is there may be refused today and not tomorrow.
            again = result.retryable or made or item.adopted or bool(result.write.retire)
            failure = self._sides.failure("push", item.local_id, result.error, result.error.field, again)
            answers.failed.append(failure)
            self._tally.add_failure(failure)
            if result.retryable:
                answers.down = result.error
            if (made or item.adopted) and not result.retryable:
                # It is there; what goes with it failed, and is tried again in the next run.
                links = pushed_links(self._sides, item, result)
                answers.links.extend(replace(link, fingerprint=None) for link in links)
            elif not result.answered or made:
                unanswered = True  # it may be there: only the same call under the same key is safe
            elif result.retryable and write.attempt < MAX_ATTEMPTS:
                retry.append(item)
        if unanswered:
            return
        if retry:
            # A provider may replay a stored failure for its key, so the next try takes a new one.
            attempt = write.attempt + 1
            key = fingerprint([write.key, attempt])
            answers.again.append(replace(write, key=key, items=tuple(retry), attempt=attempt, job=None))
            answers.replaced.append(write.key)
        else:
            answers.finished.append(write.key)

    async def _parted(self, local_ids: Sequence[str]) -> list[Link]:
        """Return the links whose record there is gone as they are then. What was agreed stays, should it come
        to life again.
        """
        if not local_ids:
            return []
        links = await self._sides.state.links_by_local(self._sides.mapping.resource, local_ids)
        return [replace(link, state="broken") for link in links.values()]

    def _take_done(self, item: PendingItem, result: WriteResult, answers: _Answers) -> None:
        answers.through = True
        answers.links.extend(pushed_links(self._sides, item, result))
        answers.done.append(item.local_id)
        new = item.remote_id is None or item.adopted
        self._tally.created += new
        self._tally.updated += not new

    async def _check_reachable(self, error: HubError, sure: bool) -> None:
        """Raise when it is the provider that is away: better to come back later than to try every record.

        A record that it never copes with is only that record's trouble, and holds up no other: what failed
        in earlier runs doesn't count as proof, nor does a single record.
        """
        if sure or isinstance(error, RateLimitedError):
            raise error
        await self._sides.client.check()

    def _books(self, pending: Sequence[PendingWrite]) -> Books:
        announced = {write.key: write for write in pending}

        async def submitted(group: WriteGroup, job: str) -> None:
            await self._sides.state.announce([replace(announced[group.key], job=job)])

        return Books(self._sides.linked, submitted, self._sides.stop)

    async def _attempt(self, group: WriteGroup, books: Books) -> list[WriteResult] | HubError:
        try:
            return await self._sides.client.send(group, books)
        except HubError as error:
            return error
