"""Write records, with an outcome for each: nothing is written twice, and one bad record harms no other.

Every call carries a key derived from its group's, so a group that is sent again after a crash is the same
calls word for word. The ways of writing are `single_writes`, `batch_writes` and `job_writes`; which of them a
group goes is said here.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from engine.batch_writes import BatchWrites
from engine.batching import Write, WriteGroup, batch_spec, derived_key, job_spec
from engine.bodies import path_of, version_of
from engine.caller import Caller, RefusedError, whole
from engine.errors import ExpressionError, ManifestError, RecordRejectedError
from engine.filling import call_label, fill_call
from engine.job_writes import JobWrites
from engine.jobs import Jobs
from engine.manifest import ArchiveSpec, CallSpec, Connector, Resource
from engine.outcomes import WriteResult, is_gone
from engine.ports import Clock
from engine.reading import Reader, write_rfc3339
from engine.single_writes import RELOADS, SingleWrites
from engine.target import NO_BOOKS, Books, Claims, Target

__all__ = ["NO_BOOKS", "Books", "WriteResult", "Writer"]


class Writer:
    """Writes one account's records through its `Caller`."""

    def __init__(self, connector: Connector, caller: Caller, reader: Reader, clock: Clock) -> None:
        self.connector = connector
        self.caller = caller
        self.reader = reader
        self.clock = clock
        self.jobs = Jobs(caller, clock)
        self._claims: dict[str, Claims] = {}

    async def send(self, resource: Resource, group: WriteGroup, books: Books = NO_BOOKS) -> list[WriteResult]:
        """Write a group; returns a result for each of its writes, in their order."""
        claims = self._claims.setdefault(resource.name, Claims())
        target = Target(self.connector, self.caller, self.reader, self.clock, resource, books, claims)
        sender = _Sender(target, self.jobs)
        if not resource.one_write_at_a_time:
            return await sender.send(group)
        async with await self.caller.turn("writes"):
            return await sender.send(group)

    async def archive(self, resource: Resource, record_id: str, key: str) -> None:
        """Put a record out of use, as the manifest says; see `ProviderClient.archive`."""
        spec = resource.archive
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no `archive`")
        try:
            await self._archive(resource, spec, record_id, key)
        except RecordRejectedError:
            if not spec.if_refused:
                raise
            for call in spec.if_refused:
                await self._put_away(resource, call, record_id)
            await self._archive(resource, spec, record_id, derived_key(key, "with nothing in the way"))

    async def _archive(self, resource: Resource, spec: ArchiveSpec, record_id: str, key: str) -> None:
        if spec.call is not None:
            await self._put_away(resource, spec.call, record_id)
            return
        body: dict[str, Any] = {}
        for text, value in spec.values.items():
            path_of(text).put(body, value)
        write = Write(record_id, record_id, body, key, only_existing=True)
        (result,) = await self.send(resource, WriteGroup(resource.name, key, (write,)))
        if result.error is not None and not is_gone(result.error):
            raise result.error

    async def delete(self, resource: Resource, record_id: str) -> None:
        """Delete a record; see `ProviderClient.delete`."""
        if resource.delete is None:
            raise ManifestError(f"`{resource.name}` has no `delete`")
        await self._put_away(resource, resource.delete.call, record_id)

    async def _put_away(self, resource: Resource, call: CallSpec, record_id: str) -> None:
        one = resource.one_write_at_a_time
        async with await self.caller.turn("writes") if one else nullcontext():
            await self._put_away_now(resource, call, record_id)

    async def _put_away_now(self, resource: Resource, call: CallSpec, record_id: str) -> None:
        account = await self.caller.account()
        scope = {**account.scope, "id": record_id, "now": write_rfc3339(self.clock.now())}
        for left in reversed(range(RELOADS)):
            if resource.get is not None or resource.get_many is not None:
                current = await self.reader.get(resource, record_id)
                if current is None:
                    return
                scope |= {"record": current, "version": version_of(resource, current)}
            try:
                await self.caller.call(call_label(call), fill_call(call, scope), whole, writing=True)
            except RefusedError as refused:
                if is_gone(refused):
                    return
                if refused.action != "reload_and_retry" or not left:
                    raise
            except ExpressionError as error:
                raise RecordRejectedError(error.message) from error
            else:
                return


class _Sender:
    """Writes groups of one resource, each in the way that the manifest has for so many records."""

    def __init__(self, target: Target, jobs: Jobs) -> None:
        self._target = target
        self._single = SingleWrites(target, self._ordinary)
        self._batches = BatchWrites(target, self._single, self._ordinary)
        self._jobs = JobWrites(target, jobs, self._single, self._batches, self._ordinary)

    async def send(self, group: WriteGroup) -> list[WriteResult]:
        job = job_spec(self._target.resource, group)
        if job is None:
            return await self._ordinary(group)
        results = await self._jobs.write(job, group)
        return [results[write.local_id] for write in group.writes]

    async def _ordinary(self, group: WriteGroup) -> list[WriteResult]:
        """Write a group by a call for all of it, or by one for each of its records."""
        spec = batch_spec(self._target.resource, group.kind, len(group.writes))
        if spec is not None:
            results = await self._batches.write(spec, group)
            return [results[write.local_id] for write in group.writes]
        if len(group.writes) == 1:
            return [await self._single.write(group.writes[0], group.key)]
        return await self._target.each(
            self._single.write(write, derived_key(group.key, write.local_id)) for write in group.writes
        )
