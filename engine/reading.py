"""Read a provider's records: lists, feeds of changes, some by id. Memory doesn't grow with their number."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import compress, repeat
from typing import Any

import msgspec

from engine.auth import Signature
from engine.caller import Answer, Caller, RefusedError, unsigned
from engine.calls import Page, Request
from engine.errors import ExpressionError, ManifestError, ProviderError, UnexpectedResponseError
from engine.expressions import ABSENT, Expression, Path
from engine.filling import call_label, fill_call
from engine.manifest import Connector, ReadSpec, Resource
from engine.pagination import (
    MOST_REPEATS,
    MOST_REPEATS_IN_OVERLAP,
    STEPS_BACK,
    Ceilings,
    CycleGuard,
    OffsetPagination,
    Pagination,
    Seam,
    begin,
    build,
    foreseen,
    mark,
)
from engine.ports import Clock

Row = dict[str, Any]
Getter = Callable[[Row], Any]

# Turns of the event loop in which a request gets from the task that makes it to the socket. Only then does
# the provider work on the next page while the caller works on this one; fewer lose speed, never records.
TURNS_TO_SEND = 6

# The feed that is read where `changes` was cut: `list`, from the same moment.
LIST_SINCE = "list_since"


class ReadRecord(msgspec.Struct, frozen=True, gc=False):
    """One record that was read. `changed_at` is RFC 3339 in UTC; `version` the provider's own, as text.

    A struct, because there is one for every record of a read, and a dataclass takes six times as long.
    """

    record: Row
    id: str
    changed_at: str | None
    deleted: bool
    version: str | None


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """The records of one page. `resume` is JSON that continues after them; None on the last page.

    `complete` says that the pages from the first to the last list all there is, not only what changed.
    """

    records: list[ReadRecord]
    resume: dict[str, Any] | None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Walk:
    """A read that is laid out: one start for each batch of `for_each`, and how to go on from any page."""

    feed: str
    label: str
    spec: ReadSpec
    rows: RowReader
    pagination: Pagination | None
    signature: Signature
    scope: Mapping[str, Any]
    starts: Sequence[Request]
    complete: bool

    def begins(self, request: Request) -> bool:
        """Say whether a request asks for the first rows of a list whose pages overlap."""
        return self.overlap is not None and self.overlap.starts(request)

    def cut(self, page: Page) -> bool:
        """Whether a feed that has no pages left something out."""
        return self.spec.full_at is not None and len(page.records) >= self.spec.full_at

    @property
    def overlap(self) -> OffsetPagination | None:
        """How pages are asked for, when each is to begin with rows of the one before."""
        pagination = self.pagination
        return pagination if isinstance(pagination, OffsetPagination) and pagination.overlap else None

    def within(self, request: Request) -> Request:
        """Return a request for another page of this walk as it is sent."""
        return filled_again(self.spec, self.scope, unsigned(request, self.signature))

    def after(self, page: Page, number: int, ended: bool) -> tuple[Request | None, int]:
        """Return the request after a page and which start it belongs to; None when all is read."""
        following = (
            self.pagination.next_request(page.request, page) if self.pagination and not ended else None
        )
        if following is not None:
            return self.within(following), number
        number += 1
        return (self.starts[number] if number < len(self.starts) else None), number

    def seam(self, page: Page, marks: Sequence[str]) -> Seam:
        """Return what the page after this one has to begin with."""
        return Seam(self.overlap.shared(len(marks)), marks) if self.overlap else Seam()

    def back(self, request: Request, steps: int) -> Request:
        """Return the request for rows before those of one that turned out too late in the list."""
        if self.overlap is None or self.spec.page_size is None:
            return request  # neither has seams
        rows = self.spec.page_size.at_most - self.overlap.overlap if steps <= STEPS_BACK else sys.maxsize
        return self.within(self.overlap.back(request, rows))

    def ahead(self, asked: Request, page: Page) -> Request | None:
        """Return what can be asked for after a request nobody has answered yet, given an earlier page."""
        size = self.spec.page_size.at_most if self.spec.page_size else None
        if len(page.records) < (size or 1):  # it may have been the last
            return None
        following = foreseen(self.pagination, asked, size, page)
        return None if following is None else self.within(following)


class _Flight:
    """Pages that were asked for and not taken yet, in the order of the walk."""

    def __init__(self) -> None:
        self._asked: deque[tuple[Request, asyncio.Task[Page], bool]] = deque()

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def last(self) -> Request:
        """The last of what was asked for."""
        return self._asked[-1][0]

    def ask(self, request: Request, fetch: Coroutine[Any, Any, Page]) -> None:
        """Send a request on its way, after those that are."""
        self._asked.append((request, asyncio.create_task(fetch), bool(self._asked)))

    def brings(self, request: Request) -> bool:
        """Say whether a request is the first of those on their way."""
        return bool(self._asked) and self._asked[0][0] == request

    async def take(self) -> tuple[Page, bool]:
        """Wait for the first page; says too whether it was asked for while one before it was on its way."""
        _, task, early = self._asked.popleft()
        return await task, early

    async def drop(self) -> None:
        """Give up what is on its way, however it would have ended."""
        tasks = [task for _, task, _ in self._asked]
        self._asked.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Reader:
    """Reads one account's records through its `Caller`."""

    def __init__(self, connector: Connector, caller: Caller, clock: Clock, ceilings: Ceilings) -> None:
        self._connector = connector
        self._caller = caller
        self._clock = clock
        self._ceilings = ceilings

    async def pages(
        self, resource: Resource, since: datetime | None, resume: Mapping[str, Any] | None
    ) -> AsyncGenerator[ReadBatch, None]:
        """Stream pages; see `ProviderClient.pages`."""
        walk = await self._walk(resource, since, resume)
        number = resume["batch"] if resume else 0
        request = Request.from_json(resume["request"]) if resume else next(iter(walk.starts), None)
        if request is None:
            yield ReadBatch([], None)
            return
        seam, steps = _seam(resume), 0
        guard = CycleGuard(MOST_REPEATS_IN_OVERLAP if walk.overlap else MOST_REPEATS)
        started, bytes_before = self._clock.monotonic(), self._caller.bytes_read
        guard.asked(request)
        flight = _Flight()
        try:
            while request is not None:
                if not flight.brings(request):
                    await flight.drop()
                    flight.ask(request, self._fetch(walk, request))
                page, early = await flight.take()
                marks = walk.rows.marks(page.records) if walk.overlap else []
                if seam.torn(marks) and not walk.begins(request):
                    guard.stepped_back()
                    steps += 1
                    request = walk.back(request, steps)
                    continue
                rows = seam.fresh(page.records, marks)
                rows_of = walk.rows
                if walk.cut(page):
                    # What it holds counts all the same: deletions, for one, are told only here.
                    walk = await self._walk(resource, since, {"feed": LIST_SINCE})
                    following, number, seam = next(iter(walk.starts), None), 0, Seam()
                else:
                    ended = seam.ends(len(marks), len(rows))
                    following, at = walk.after(page, number, ended)
                    if early and walk.overlap and (following is None or at != number):
                        continue  # the last page has to be read last, or what moved to it meanwhile is missed
                    seam = walk.seam(page, marks) if following is not None and at == number else Seam()
                    number = at
                steps = 0
                guard.answered(page.records)
                request = following
                if request is not None:
                    self._check_ceilings(guard, started, bytes_before)
                    guard.asked(request)
                    await self._send_ahead(flight, walk, request, page)
                resume_here = _resume(walk.feed, number, request, seam)
                del page, marks  # so that its memory is there for the next page's
                yield ReadBatch(rows_of.read(rows), resume_here, walk.complete)
                del rows
        finally:
            await flight.drop()

    async def _send_ahead(self, flight: _Flight, walk: _Walk, request: Request, page: Page) -> None:
        """Send the next request on its way, and those after it that the manifest lets go at once."""
        if not flight.brings(request):
            await flight.drop()
            flight.ask(request, self._fetch(walk, request))
        while len(flight) < walk.spec.pages_at_once:
            following = walk.ahead(flight.last, page)
            if following is None:
                break
            flight.ask(following, self._fetch(walk, following))
        await _turns(TURNS_TO_SEND)

    async def get(self, resource: Resource, record_id: str) -> Row | None:
        """Return one record, or None when the provider has none under this id (any more)."""
        row = await self._look_up(resource, record_id)
        return row.record if row else None

    async def _look_up(self, resource: Resource, record_id: str) -> ReadRecord | None:
        spec = resource.get
        if spec is None:
            return (await self.look_up(resource, [record_id])).get(record_id)
        account = await self._caller.account()
        request = fill_call(spec.call, {**account.scope, "id": record_id, "now": self._now()})
        rows = RowReader(resource, spec, self._connector.times)

        def read(answer: Answer) -> ReadRecord | None:
            found = spec.records.evaluate(answer.body) if spec.records else answer.body
            records = rows.read(found[:1] if isinstance(found, list) else [found])
            return next((each for each in records if not each.deleted), None)

        try:
            return await self._caller.call(call_label(spec.call), request, read, writing=True)
        except RefusedError as refused:
            if refused.status in (404, 410) or refused.action == "recreate":
                return None
            raise _not_a_record(refused) from refused

    async def find(self, resource: Resource, scope: Mapping[str, Any]) -> list[ReadRecord]:
        """Return the records the manifest's search finds for what `scope` holds as `record`; one page of
        them.
        """
        spec = resource.find
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no call to find a record by its content")
        rows = RowReader(resource, spec, self._connector.times)

        def read(answer: Answer) -> list[ReadRecord]:
            return rows.read(_rows(spec, answer.body))

        return await self._caller.call(call_label(spec.call), fill_call(spec.call, scope), read, writing=True)

    async def get_many(self, resource: Resource, ids: Iterable[str]) -> dict[str, Row]:
        """Return records by id; those the provider doesn't have (any more) are left out."""
        return {each: row.record for each, row in (await self.look_up(resource, ids)).items()}

    async def look_up(self, resource: Resource, ids: Iterable[str]) -> dict[str, ReadRecord]:
        """Return records by id as a list would tell them; those the provider doesn't have are left out."""
        wanted = list(dict.fromkeys(ids))
        spec = resource.get_many
        if spec is None:
            if resource.get is None:
                raise ManifestError(f"`{resource.name}` has no call to get a record by its id")
            asking = (self._look_up(resource, each) for each in wanted)
            got = await asyncio.gather(*asking, return_exceptions=True)
            found: dict[str, ReadRecord] = {}
            for each, row in zip(wanted, got, strict=True):
                if isinstance(row, BaseException):
                    raise row
                if row is not None:
                    found[each] = row
            return found
        rows = RowReader(resource, spec, self._connector.times)
        account = await self._caller.account()
        records: dict[str, ReadRecord] = {}
        for start in range(0, len(wanted), spec.at_most):
            some = wanted[start : start + spec.at_most]
            name = spec.ids.name if spec.ids is not None and spec.ids.where == "name" else "ids"
            request = fill_call(spec.call, {**account.scope, "ids": some, name: some, "now": self._now()})
            if spec.ids is not None and spec.ids.where != "name":
                request = spec.ids.put(request, some)
            answered = await self._caller.call(
                call_label(spec.call), request, lambda answer: rows.read(_rows(spec, answer.body))
            )
            records.update((each.id, each) for each in answered if not each.deleted)
        return records

    async def _walk(
        self, resource: Resource, since: datetime | None, resume: Mapping[str, Any] | None
    ) -> _Walk:
        feed = resume["feed"] if resume else self._choose_feed(resource, since)
        spec = resource.changes if feed == "changes" else resource.list
        if spec is None:
            raise ManifestError(f"`{resource.name}` has no call that lists its records")
        if feed == "list" and resource.changes is not None:
            since = None  # the feed is what tells changes; the list's own filter may only know creations
        account = await self._caller.account()
        scope = {**account.scope, "now": self._now()}
        pagination = build(spec.pagination, account.server) if spec.pagination else None
        return _Walk(
            feed=feed,
            label=call_label(spec.call),
            spec=spec,
            rows=RowReader(resource, spec, self._connector.times),
            pagination=pagination,
            signature=account.signature,
            scope=scope,
            starts=[self._start(spec, pagination, scope, each, since) for each in _for_each(spec, scope)],
            complete=feed == "list" and resume is None and (since is None or spec.since is None),
        )

    def _choose_feed(self, resource: Resource, since: datetime | None) -> str:
        changes = resource.changes
        if changes is None or (since is None and resource.list is not None):
            return "list"
        if since is None or changes.reaches_back is None or resource.list is None:
            return "changes"
        return "changes" if self._clock.now() - since <= changes.reaches_back - changes.lookback else "list"

    def _start(
        self,
        spec: ReadSpec,
        pagination: Pagination | None,
        scope: Mapping[str, Any],
        batch: Mapping[str, Any],
        since: datetime | None,
    ) -> Request:
        asked = any(place.where == "name" for place in spec.places())
        # What templates see has to be there for every page, so the request carries it along.
        request = Request("GET", "", names={**batch, "now": scope["now"]} if asked else {})
        if not asked:
            request = fill_call(spec.call, {**scope, **batch})
        times = self._connector.times
        if since is not None and spec.since is not None:
            request = spec.since.put(request, write_time(since - spec.lookback, times))
        if spec.until is not None:
            request = spec.until.put(request, write_time(self._clock.now(), times))
        if spec.page_size is not None:
            request = spec.page_size.send.put(request, spec.page_size.at_most)
        return filled_again(spec, scope, begin(pagination, request))

    async def _fetch(self, walk: _Walk, request: Request) -> Page:
        def read(answer: Answer) -> Page:
            rows = _rows(walk.spec, answer.body)
            return Page(request, answer.body, answer.headers, answer.status, rows, answer.size)

        return await self._caller.call(walk.label, request, read)

    def _check_ceilings(self, guard: CycleGuard, started: float, bytes_before: int) -> None:
        ceilings = self._ceilings
        over = (
            (guard.pages >= ceilings.pages, f"{ceilings.pages} pages"),
            (self._clock.monotonic() - started > ceilings.seconds, f"{ceilings.seconds:g} seconds"),
            (self._caller.bytes_read - bytes_before > ceilings.bytes, f"{ceilings.bytes} bytes"),
        )
        for passed, limit in over:
            if passed:
                raise UnexpectedResponseError(f"the read goes on beyond {limit}")

    def _now(self) -> str:
        return write_rfc3339(self._clock.now())


def filled_again(spec: ReadSpec, scope: Mapping[str, Any], request: Request) -> Request:
    """Return a request whose templates have seen its names; one without names is as it should be."""
    if not request.names:
        return request
    filled = replace(fill_call(spec.call, {**scope, **request.names}), names=request.names)
    for place in spec.places():
        value = place.get(request)
        if place.where != "name" and value is not None:
            filled = place.put(filled, value)
    return filled


class RowReader:
    """Turns the rows of an answer into records, a column at a time, which is quicker than row by row."""

    def __init__(self, resource: Resource, spec: ReadSpec, times: str) -> None:
        self._times = times
        self._record = _getter(spec.record)
        self._where = _getter(resource.where)
        self._id: Getter = _getter(resource.id) or _no
        self._version = _getter(resource.version)
        self._row_changed = _getter(spec.changed_at)
        self._changed = _getter(resource.changed_at)
        self._row_deleted = _getter(spec.deleted)
        self._deleted = _getter(resource.deleted)

    def read(self, rows: Sequence[Any]) -> list[ReadRecord]:
        """Return the records in the rows, those of other resources left out.

        Raises UnexpectedResponseError for a row that isn't an object or has no id.
        """
        _check_objects(rows)
        records = rows
        if self._record:
            records = [*map(self._record, rows)]
            _check_objects(records)
        if self._where:
            wanted = [*map(bool, map(self._where, records))]
            rows, records = [*compress(rows, wanted)], [*compress(records, wanted)]
        return [*map(ReadRecord, records, self._ids(records), self._moments(rows, records),
                     self._deletions(rows, records), self._versions(records))]  # fmt: skip

    def marks(self, rows: Sequence[Row]) -> list[str]:
        """Return a mark for each row: of its id and the moment it changed, or of all where that isn't told.

        A record that is read again unchanged has the same mark.
        """
        of_row, own, version = (
            self._row_changed or _nothing,
            self._changed or _nothing,
            self._version or _nothing,
        )
        marks = []
        for row in rows:
            record = self._record(row) if self._record else row
            moment = of_row(row) or own(record)
            marks.append(mark([self._id(record), moment, version(record)] if moment else row))
        return marks

    def _ids(self, records: Sequence[Row]) -> Iterable[str]:
        ids = [*map(self._id, records)]
        if None in ids or "" in ids:
            raise UnexpectedResponseError("a record in the answer has no id")
        return map(str, ids)

    def _versions(self, records: Sequence[Row]) -> Iterable[str | None]:
        if self._version is None:
            return repeat(None)
        return [None if version is None else str(version) for version in map(self._version, records)]

    def _moments(self, rows: Sequence[Row], records: Sequence[Row]) -> Iterable[str | None]:
        found: Iterable[Any] = map(self._changed, records) if self._changed else repeat(None)
        if self._row_changed:
            found = [own or other for own, other in zip(map(self._row_changed, rows), found, strict=False)]
        elif self._changed is None:
            return found
        times = self._times
        if times == "rfc3339":  # most times are fine as they are
            return [
                moment if moment is None or (moment.__class__ is str and moment[-1:] == "Z")
                else read_time(moment, times)
                for moment in found
            ]  # fmt: skip
        return [None if moment is None else read_time(moment, times) for moment in found]

    def _deletions(self, rows: Sequence[Row], records: Sequence[Row]) -> Iterable[bool]:
        if self._row_deleted is None and self._deleted is None:
            return repeat(False)
        of_row, own = self._row_deleted or _no, self._deleted or _no
        return [bool(of_row(row) or own(record)) for row, record in zip(rows, records, strict=True)]


def _check_objects(rows: Sequence[Any]) -> None:
    if rows and {*map(type, rows)} != {dict}:
        raise UnexpectedResponseError("a record in the answer isn't an object")


def _nothing(row: Row) -> None:
    return None


def _no(row: Row) -> bool:
    return False


def _getter(source: Path | Expression | None) -> Getter | None:
    """Return the quickest function that reads a path or expression; absent is None."""
    if source is None:
        return None
    if source.steps is not None and len(source.steps) == 1 and isinstance(source.steps[0], str):
        name = source.steps[0]
        return lambda row: row.get(name)
    if isinstance(source, Expression):
        return source.evaluate
    return lambda row: None if (value := source.find(row)) is ABSENT else value


def _rows(spec: ReadSpec, body: Any) -> list[Any]:
    """Return the rows of an answer: none when the list is missing; anything but a list is refused."""
    if spec.records is None:
        rows = body
    elif isinstance(body, dict):
        try:
            rows = spec.records.evaluate(body)
        except ExpressionError as error:
            raise UnexpectedResponseError(
                f"the answer isn't what the manifest says: {error.message}"
            ) from None
    else:
        raise UnexpectedResponseError("the provider's answer isn't an object")
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise UnexpectedResponseError("the records in the provider's answer aren't a list")
    _check_objects(rows)
    return rows


def _for_each(spec: ReadSpec, scope: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each batch of values adds to the scope; one batch that adds nothing without `for_each`."""
    loop = spec.for_each
    if loop is None:
        return [{}]
    values = loop.values.evaluate(scope, scope)
    if values is None:
        raise ManifestError(f"`{loop.values.text}` has no value; connect again so that it is looked up")
    items = list(values) if isinstance(values, list | tuple) else [values]
    if loop.at_most == 1:
        return [{loop.name: item} for item in items]
    return [{loop.name: items[at : at + loop.at_most]} for at in range(0, len(items), loop.at_most)]


def _resume(feed: str, number: int, request: Request | None, seam: Seam) -> dict[str, Any] | None:
    if request is None:
        return None
    written: dict[str, Any] = {"feed": feed, "batch": number, "request": request.to_json()}
    return {**written, "seam": seam.to_json()} if seam.shared else written


def _seam(resume: Mapping[str, Any] | None) -> Seam:
    marks = resume.get("seam", []) if resume else []
    return Seam(len(marks), marks)


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def _not_a_record(refused: RefusedError) -> ProviderError:
    return ProviderError(
        refused.message,
        status=refused.status,
        provider_code=refused.provider_code,
        request_id=refused.request_id,
        field=refused.field,
    )


# ---------------------------------------------------------------------------------------------- times


def write_rfc3339(moment: datetime) -> str:
    """Write a moment as `2026-01-31T18:30:00Z`, with microseconds when it has them."""
    return moment.astimezone(UTC).isoformat()[:-6] + "Z"


def write_time(moment: datetime, times: str) -> str | int:
    """Write a moment as the provider's `times` are."""
    if times == "rfc3339":
        return write_rfc3339(moment)
    return int(moment.timestamp() * (1000 if times == "epoch_milliseconds" else 1))


def read_time(value: Any, times: str) -> str:
    """Read a provider's time as RFC 3339 in UTC; raises UnexpectedResponseError for anything else."""
    try:
        if times != "rfc3339":
            seconds = float(value) / (1000 if times == "epoch_milliseconds" else 1)
            return write_rfc3339(datetime.fromtimestamp(seconds, UTC))
        if not isinstance(value, str):
            raise ValueError
        if value.endswith("Z"):
            return value
        moment = datetime.fromisoformat(value)
        return write_rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (TypeError, ValueError, OverflowError, OSError):
        raise UnexpectedResponseError("a time in the answer can't be read") from None
