"""Write records by jobs: handed in together, waited for, and each result read by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import orjson

from engine.batch_writes import BatchWrites, Item, item_scope, named
from engine.batching import Write, WriteGroup, derived_key, job_operation, paired
from engine.caller import RefusedError
from engine.error_rules import is_failure, judge
from engine.errors import ExpressionError, RateLimitedError, UnavailableError, UnexpectedResponseError
from engine.jobs import Jobs
from engine.manifest import Action, WriteJob
from engine.outcomes import Results, WriteResult, failed, left_out, succeeded
from engine.single_writes import Send, SingleWrites
from engine.target import Target

# What an operation of a job may need that only a call of its own can give.
_WRITTEN_ALONE: frozenset[Action] = frozenset(
    ("retry", "wait", "refresh_credentials", "reload_and_retry", "recreate", "adopt")
)


class JobWrites:
    """Writes groups of records of one resource as jobs."""

    def __init__(
        self, target: Target, jobs: Jobs, single: SingleWrites, batches: BatchWrites, send: Send
    ) -> None:
        self._target = target
        self._resource = target.resource
        self._connector = target.connector
        self._caller = target.caller
        self._books = target.books
        self._jobs = jobs
        self._single = single
        self._batches = batches
        self._send = send

    async def write(self, job: WriteJob, group: WriteGroup) -> Results:
        """Hand a group in, or wait for one that was handed in before, and read what became of each record."""
        results: Results = {}
        alone: list[Write] = []
        try:
            # Of updates, those that are gone are made again in here, which may look for what is there.
            async with self._target.claims.making() if group.kind == "create" else nullcontext():
                operations, rows = await self._handed_in(job, group, results)
                done = [
                    await self._operation_result(job, write, row)
                    for (write, _), row in zip(operations, rows, strict=True)
                ]
                if group.kind == "create":
                    for each in done:
                        self._target.made(each)
        except (
            RefusedError
        ):  # of the whole: what is wrong with it shows when it is written in the ordinary way
            left = tuple(write for write in group.writes if write.local_id not in results)
            key = derived_key(group.key, "instead of a job")
            written = await self._send(replace(group, key=key, writes=left))
            return results | {each.write.local_id: each for each in written}
        except (RateLimitedError, UnavailableError, UnexpectedResponseError) as error:
            return results | {
                write.local_id: failed(write, error)
                for write in group.writes
                if write.local_id not in results
            }
        for each in done:
            if isinstance(each.error, RefusedError) and each.error.action in _WRITTEN_ALONE:
                alone.append(each.write)
            else:
                results[each.write.local_id] = await self._single.parts(each, new=group.kind == "create")
        written = await self._target.each(
            self._single.write(write, derived_key(group.key, f"alone {write.local_id}")) for write in alone
        )
        return results | {each.write.local_id: each for each in written}

    async def _handed_in(
        self, job: WriteJob, group: WriteGroup, results: Results
    ) -> tuple[list[tuple[Write, str]], list[Any]]:
        """Return the writes of a job with the names of their operations, and the result of each."""
        account = await self._caller.account()
        scope = {**account.scope, "now": self._target.now()}
        new = self._resource.create.new if self._resource.create else {}
        name, stopped = group.job, self._books.stopped
        if name is None:
            items = await self._batches.items(group.kind, new, group, results)
        elif group.kind == "create":
            items = await self._batches.new_items(new, group.writes, results)
        else:  # an operation is only wanted for its name, which no version is part of
            items = [(replace(each, version=""), each.body) for each in group.writes]
        operations = self._operations(job, group, items, scope, results)
        named = [(write, operation_name) for write, operation_name, _ in operations]
        if not operations:
            return named, []
        if name is None:
            bodies = [operation for _, _, operation in operations]
            repeatable = group.kind == "update" or job.idempotency_key is not None
            name = await self._jobs.submit(job, bodies, scope, group.key, repeatable=repeatable)
            await self._books.submitted(group, name)
        names = [each for _, each in named]
        rows = await self._jobs.results(job, name, scope, names, new=group.job is None, stopped=stopped)
        return named, paired(names, job.results.pair_by, rows)

    def _operations(
        self,
        job: WriteJob,
        group: WriteGroup,
        items: Sequence[Item],
        scope: Mapping[str, Any],
        results: Results,
    ) -> list[tuple[Write, str, Any]]:
        """Return each write with its operation and what that is known by; numbers are those in the group."""
        template = job_operation(self._resource, group.kind)
        numbers = {write.local_id: number for number, write in enumerate(group.writes, 1)}
        made: list[tuple[Write, str, Any]] = []
        for write, body in items:
            try:
                number = numbers[write.local_id]
                operation = template.render(item_scope(scope, write, body, number)) if template else body
                made.append((write, named(job.results.pair_by, operation), operation))
            except ExpressionError as error:
                results[write.local_id] = failed(write, error)
        return made

    async def _operation_result(self, job: WriteJob, write: Write, row: Any) -> WriteResult:
        if row is None:
            return left_out(write, "the results of a job leave this record out")
        spec, errors = job.results, self._connector.errors
        status = spec.status.find(row) if spec.status else 200
        status = int(status) if str(status).isdecimal() else 0
        body = spec.body.find(row) if spec.body else row
        if spec.body_is == "json_text" and isinstance(body, str):
            body = _decoded(body)
        if is_failure(errors, status, body):
            account, now = await self._caller.account(), self._target.clock.now()
            verdict = judge(errors, status, {}, body, writing=True, now=now, hide=account.hide)
            if verdict.action != "ignore":
                return failed(write, RefusedError(verdict))
            body = None
        record = spec.result.find(body) if spec.result else body
        done = succeeded(
            self._resource, write, record if isinstance(record, Mapping) else None, write.remote_id
        )
        if done.remote_id is None:
            return left_out(write, "the result of an operation doesn't hold the record")
        return done


def _decoded(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
