"""Jobs: many writes handed in together, looked at until the provider is done, and their results fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.archives import read_documents
from engine.batching import name_in, sent_key
from engine.caller import Answer, Caller, whole
from engine.errors import (
    ExpressionError,
    ProviderError,
    StoppedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.filling import call_label, fill_call
from engine.manifest import JobResults, WriteJob
from engine.ports import Clock

LONGEST_NAP = 5.0  # seconds; how late a stop is seen
FETCHES = 3  # a link may have run out when it is used


class JobPendingError(UnavailableError):
    """The provider isn't done with a job; it goes on, and can be looked at later."""


class JobLostError(UnexpectedResponseError):
    """A job is done, and what became of it can't be told."""


class Jobs:
    """Hands jobs in for one account, and looks at them."""

    def __init__(self, caller: Caller, clock: Clock) -> None:
        self._caller = caller
        self._clock = clock

    async def submit(
        self,
        job: WriteJob,
        operations: Sequence[Any],
        scope: Mapping[str, Any],
        key: str,
        *,
        repeatable: bool,
    ) -> str:
        """Hand operations in; returns the provider's name of the job. See `Caller.call` for `repeatable`."""
        request = job.operations.put(fill_call(job.submit, scope), list(operations))
        if job.idempotency_key is not None:
            request = job.idempotency_key.send.put(request, sent_key(key, job.idempotency_key))

        def read(answer: Answer) -> str:
            name = name_in(job.job, answer.body)
            if not name:
                raise UnexpectedResponseError("the provider's answer doesn't name the job")
            return name

        return await self._caller.call(
            call_label(job.submit), request, read, writing=True, repeatable=repeatable
        )

    async def results(
        self,
        job: WriteJob,
        name: str,
        scope: Mapping[str, Any],
        wanted: Iterable[str],
        *,
        new: bool,
        stopped: Callable[[], bool],
    ) -> list[Any]:
        """Wait until a job is done and return the results of the wanted operations, in the provider's order.
        Operations are known by what `pair_by` says, in any case.

        Raises JobPendingError when it takes too long, StoppedError when asked to stop, JobLostError when the
        provider knows nothing of it any more or its results can't be read, and what calls raise.
        """
        scope, names = {**scope, "job": name}, frozenset(each.casefold() for each in wanted)
        try:
            answer = await self._done(job, scope, new, stopped)
            for left in reversed(range(FETCHES)):
                try:
                    return await self._fetched(job, answer, names)
                except UnexpectedResponseError as error:
                    if not left:
                        raise JobLostError(error.message, status=error.status) from error
                answer = await self._look(job, scope)
        except ProviderError as error:
            if error.status in (404, 410):
                raise JobLostError("the provider knows nothing of what was handed in") from error
            raise
        raise AssertionError("the last try raises or returns")

    async def _fetched(self, job: WriteJob, answer: Answer, names: frozenset[str]) -> list[Any]:
        if job.results.url is None:
            return rows_of(job.results, [answer.body], names)
        address = job.results.url.evaluate(answer.body)
        if not isinstance(address, str) or not address:
            raise UnexpectedResponseError("the provider doesn't say where the results of a job are")
        data = await self._caller.download(f"results of {call_label(job.submit)}", address)
        return await asyncio.to_thread(unpacked, job.results, data, names)

    async def _done(
        self, job: WriteJob, scope: Mapping[str, Any], new: bool, stopped: Callable[[], bool]
    ) -> Answer:
        started, pause = self._clock.monotonic(), job.every.total_seconds()
        if new:
            await self._nap(pause, stopped)
            pause = min(pause * 2, job.up_to.total_seconds())
        while True:
            answer = await self._look(job, scope)
            try:
                done = bool(job.done.evaluate(answer.body, {"body": answer.body}))
            except ExpressionError as error:
                raise UnexpectedResponseError(
                    f"whether a job is done can't be told: {error.message}"
                ) from None
            if done:
                return answer
            if self._clock.monotonic() - started + pause > job.within.total_seconds():
                raise JobPendingError(
                    "the provider hasn't finished what was handed in; it is looked at again"
                )
            await self._nap(pause, stopped)
            pause = min(pause * 2, job.up_to.total_seconds())

    async def _look(self, job: WriteJob, scope: Mapping[str, Any]) -> Answer:
        return await self._caller.call(call_label(job.poll), fill_call(job.poll, scope), whole)

    async def _nap(self, seconds: float, stopped: Callable[[], bool]) -> None:
        while seconds > 0:
            if stopped():
                raise StoppedError("the sync was asked to stop; what was handed in goes on at the provider")
            await self._clock.sleep(min(seconds, LONGEST_NAP))
            seconds -= LONGEST_NAP


def unpacked(results: JobResults, data: bytes, names: frozenset[str]) -> list[Any]:
    """Return the rows of a file of results that are known by one of these names, in lower case."""
    return rows_of(results, read_documents(data, results.format), names)


def rows_of(results: JobResults, documents: Iterable[Any], names: frozenset[str]) -> list[Any]:
    """Return the rows of documents that are known by one of these names, in lower case."""
    rows: list[Any] = []
    for document in documents:
        found = results.records.evaluate(document) if results.records else document
        if found is not None and not isinstance(found, list):
            raise UnexpectedResponseError("the results of a job aren't a list")
        rows.extend(row for row in found or () if (name_in(results.pair_by, row) or "").casefold() in names)
        del document, found  # of a large file only what is wanted stays while the next one is read
    return rows
