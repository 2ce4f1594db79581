"""Lists that change while they are walked by offset, and several pages on their way at once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.client import ProviderClient, ReadBatch
from engine.errors import ProviderError, UnavailableError, UnexpectedResponseError
from tests.fakes import FakeProvider, client_of, reply

MANIFEST = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example/v3}
auth:
  type: bearer
  credentials: {apiKey: {title: Key}}
  token: apiKey
check: GET /me
limits: {concurrent: 10}
retries: {attempts: 1}
resources:
  member:
    id: id
    changed_at: changed
    fields: {id: id}
    list:
      call: GET /members
      records: members
      PAGING
"""


def manifest(pagination: str, size: int = 5, at_once: int = 1, more: str = "") -> str:
    paging = f"pagination: {{{pagination}}}"
    if size:
        paging += f"\n      page_size: {{send: query count, at_most: {size}}}"
    if at_once > 1:
        paging += f"\n      pages_at_once: {at_once}"
    return MANIFEST.replace("PAGING", paging + more)


def by_offset(overlap: int, size: int = 5, at_once: int = 1, total: bool = False) -> str:
    told = ", total: total" if total else ""
    return manifest(f"type: offset, send: query offset, overlap: {overlap}{told}", size, at_once)


@dataclass
class Members:
    """A list in the order of the last change. `before` is called with each request about to be answered."""

    rows: list[tuple[str, int]]  # id, moment of change
    before: Callable[["Members", int], None] = lambda members, offset: None
    now: int = 1000
    offsets: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, before: Callable[["Members", int], None] | None = None) -> "Members":
        rows = [(f"m{number}", number) for number in range(count)]
        return cls(rows, before) if before else cls(rows)

    def change(self, *indexes: int) -> None:
        """Let the rows at these places change, in one go."""
        changed = [self.rows[index][0] for index in indexes]
        self.rows = [row for row in self.rows if row[0] not in changed]
        for each in changed:
            self.now += 1
            self.rows.append((each, self.now))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params.get("offset", "0"))
        self.before(self, offset)
        self.offsets.append(offset)
        rows = self.rows[offset : offset + int(request.url.params["count"])]
        members = [{"id": each, "changed": moment_of(moment)} for each, moment in rows]
        return reply({"members": members, "total": len(self.rows)})


def moment_of(number: int) -> str:
    return f"2026-03-01T12:00:00.{number:06}Z"


async def read(client: ProviderClient, **how: Any) -> list[ReadBatch]:
    return [batch async for batch in client.pages("member", **how)]


def ids(batches: list[ReadBatch]) -> list[list[str]]:
    return [[row.id for row in batch.records] for batch in batches]


def names(*numbers: int) -> list[str]:
    return [f"m{number}" for number in numbers]


# ------------------------------------------------------------------------------------- pages that overlap


async def test_rows_read_twice_count_once() -> None:
    members = Members.of(12)
    found = await read(client_of(by_offset(2), FakeProvider(members)))
    assert ids(found) == [names(0, 1, 2, 3, 4), names(5, 6, 7), names(8, 9, 10), names(11), []]
    assert members.offsets == [0, 3, 6, 9, 10]  # the fourth page had three rows, one of them new
    assert found[-1].resume is None
    assert found[-1].complete


async def test_a_total_saves_the_page_that_shows_the_end() -> None:
    members = Members.of(12)
    found = await read(client_of(by_offset(2, total=True), FakeProvider(members)))
    assert ids(found) == [names(0, 1, 2, 3, 4), names(5, 6, 7), names(8, 9, 10), names(11)]
    assert members.offsets == [0, 3, 6, 9]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
async def test_short_lists_end(count: int) -> None:
    found = await read(client_of(by_offset(2), FakeProvider(Members.of(count))))
    assert [each for page in ids(found) for each in page] == names(*range(count))


def once(page: int, change: Callable[[Members], None]) -> Callable[[Members, int], None]:
    """Let something happen before the answer with this number, from 0."""

    def before(members: Members, offset: int) -> None:
        if len(members.offsets) == page:
            change(members)

    return before


async def test_what_moves_up_past_the_seam_is_read() -> None:
    members = Members.of(8, once(1, lambda members: members.change(0)))
    found = await read(client_of(by_offset(2), FakeProvider(members)))
    # The second page, from the fourth place on, begins with m4 instead of m3.
    assert ids(found)[:2] == [names(0, 1, 2, 3, 4), names(5, 6, 7, 0)]


async def test_a_record_that_changed_since_the_page_before_is_read_again() -> None:
    members = Members.of(6, once(1, lambda members: members.change(4)))
    first, second, *_ = await read(client_of(by_offset(2), FakeProvider(members)))
    assert [(row.id, row.changed_at) for row in first.records][-1] == ("m4", moment_of(4))
    assert [(row.id, row.changed_at) for row in second.records] == [
        ("m5", moment_of(5)),
        ("m4", moment_of(1001)),
    ]


async def test_without_a_row_of_the_page_before_the_walk_steps_back() -> None:
    members = Members.of(12, once(1, lambda members: members.change(0, 1, 2)))
    found = await read(client_of(by_offset(2), FakeProvider(members)))
    # From the fourth place on there were m6 to m10: three moved, and m5 was missing.
    assert members.offsets[:3] == [0, 3, 0]
    assert ids(found)[:3] == [names(0, 1, 2, 3, 4), names(5, 6, 7), names(8, 9, 10)]
    assert found[-1].complete
    assert {each for page in ids(found) for each in page} == set(names(*range(12)))


async def test_the_end_is_not_believed_when_it_was_moved_to() -> None:
    """Rows that were deleted move the end of the list before the next page's place."""
    members = Members.of(8, once(1, lambda members: members.rows.__delitem__(slice(0, 5))))
    found = await read(client_of(by_offset(2), FakeProvider(members)))
    assert members.offsets[:3] == [0, 3, 0]
    assert ids(found)[:2] == [names(0, 1, 2, 3, 4), names(5, 6, 7)]


async def test_a_walk_far_on_steps_back_by_pages_and_then_to_the_start() -> None:
    def before(members: Members, offset: int) -> None:
        if len(members.offsets) == 5:  # all that was read so far has changed
            members.change(*range(17))

    members = Members.of(40, before)
    found = await read(client_of(by_offset(2), FakeProvider(members)))
    assert members.offsets[:10] == [0, 3, 6, 9, 12, 15, 12, 9, 0, 3]
    assert {each for page in ids(found) for each in page} == set(names(*range(40)))


async def test_a_resumed_walk_finds_what_moved_in_between() -> None:
    members = Members.of(12)
    pages = client_of(by_offset(2), FakeProvider(members)).pages("member")
    first, second = await anext(pages), await anext(pages)
    await pages.aclose()
    assert ids([first, second]) == [names(0, 1, 2, 3, 4), names(5, 6, 7)]
    members.change(*range(6))
    members.offsets.clear()
    rest = await read(client_of(by_offset(2), FakeProvider(members)), resume=second.resume)
    assert members.offsets[:3] == [6, 3, 0]  # two pages back, that is to the start
    assert not rest[-1].complete
    assert set(names(*range(8, 12))) <= {each for page in ids(rest) for each in page}


async def test_a_walk_that_is_resumed_in_peace_goes_on_from_there() -> None:
    members = Members.of(12)
    pages = client_of(by_offset(2), FakeProvider(members)).pages("member")
    first = await anext(pages)
    await pages.aclose()
    assert first.resume is not None
    members.offsets.clear()
    rest = await read(client_of(by_offset(2), FakeProvider(members)), resume=first.resume)
    assert members.offsets == [3, 6, 9, 10]
    assert ids(rest) == [names(5, 6, 7), names(8, 9, 10), names(11), []]


async def test_a_list_that_never_holds_still_ends_the_read() -> None:
    members = Members.of(30, lambda members, offset: members.change(*range(len(members.rows))))
    with pytest.raises(UnavailableError, match="faster than it can be read"):
        await read(client_of(by_offset(2), FakeProvider(members)))
    assert len(members.offsets) < 300


async def test_rows_without_a_moment_of_change_are_told_apart_by_all_they_hold() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params.get("offset", "0"))
        seats = [1, 2, 3, 4] if offset == 0 else [1, 2, 3, 5, 6]
        rows = [{"id": f"m{at}", "seats": each} for at, each in enumerate(seats)]
        return reply({"members": rows[offset : offset + 4]})

    text = by_offset(2, size=4).replace("    changed_at: changed\n", "")
    first, second, *_ = await read(client_of(text, FakeProvider(answer)))
    assert ids([first]) == [names(0, 1, 2, 3)]
    assert [row.record for row in second.records] == [{"id": "m3", "seats": 5}, {"id": "m4", "seats": 6}]


async def test_a_provider_whose_pages_are_as_short_as_the_overlap() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params.get("offset", "0"))
        rows = [{"id": f"m{number}", "changed": moment_of(number)} for number in range(7)]
        return reply({"members": rows[offset : offset + 2]})

    found = await read(client_of(by_offset(2), FakeProvider(answer)))
    assert [each for page in ids(found) for each in page] == names(*range(7))


async def test_every_batch_of_for_each_has_seams_of_its_own() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params.get("offset", "0"))
        rows = [
            {"id": f"{request.url.params['place']}{number}", "changed": moment_of(1)} for number in range(6)
        ]
        return reply({"members": rows[offset : offset + 5]})

    more = "\n      query: {place: '{{ place }}'}\n      for_each: {in: connection.places, as: place}"
    text = manifest("type: offset, send: query offset, overlap: 1", more=more).replace(
        "check: GET /me", "check: GET /me\nconnection: {places: {title: Places}}"
    )
    client = client_of(text, FakeProvider(answer), connection={"places": ["a", "b"]})
    found = [each for page in ids(await read(client)) for each in page]
    assert found == [f"{place}{number}" for place in "ab" for number in range(6)]


# -------------------------------------------------------------------------------------- pages at once


class Slow(httpx.AsyncBaseTransport):
    """Answers each request after so many turns of the event loop as `turns` gives for it in order."""

    def __init__(
        self, answer: Callable[[httpx.Request], httpx.Response], turns: Callable[[], int] = lambda: 40
    ) -> None:
        self.answer = answer
        self.turns = turns
        self.flying = self.most = self.asked = self.cancelled = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            for _ in range(self.turns()):
                await asyncio.sleep(0)
            return self.answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.flying -= 1


def slow_client(text: str, slow: Slow) -> ProviderClient:
    return client_of(text, FakeProvider([]), transport=slow)


@pytest.mark.parametrize("at_once", [1, 2, 4])
async def test_so_many_pages_are_on_their_way_at_once(at_once: int) -> None:
    slow = Slow(Members.of(60))
    found = await read(slow_client(by_offset(0, at_once=at_once, total=True), slow))
    assert [each for page in ids(found) for each in page] == names(*range(60))
    assert slow.most == at_once
    assert slow.asked == 12  # the total is known, so none was asked for in vain


async def test_no_more_than_the_limit_for_connections() -> None:
    slow = Slow(Members.of(60))
    text = by_offset(0, at_once=4, total=True).replace("concurrent: 10", "concurrent: 2")
    found = await read(slow_client(text, slow))
    assert [each for page in ids(found) for each in page] == names(*range(60))
    assert slow.most == 2


async def test_a_list_of_one_short_page_is_asked_for_alone() -> None:
    slow = Slow(Members.of(4))
    assert ids(await read(slow_client(by_offset(0, at_once=4), slow))) == [names(0, 1, 2, 3), []]
    assert slow.most == 1
    assert slow.asked == 2


async def test_without_a_total_pages_beyond_the_end_are_given_up() -> None:
    slow = Slow(Members.of(11))
    found = await read(slow_client(by_offset(0, at_once=4), slow))
    assert ids(found) == [names(0, 1, 2, 3, 4), names(5, 6, 7, 8, 9), names(10), []]
    assert found[-1].resume is None
    assert slow.flying == 0


async def test_a_caller_that_waits_is_not_run_ahead_of() -> None:
    slow = Slow(Members.of(100))
    pages = slow_client(by_offset(0, at_once=3, total=True), slow).pages("member")
    await anext(pages)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert slow.asked == 4  # the page that is worked on, and three after it
    await pages.aclose()


async def test_leaving_early_stops_all_that_is_on_its_way() -> None:
    slow = Slow(Members.of(60))
    pages = slow_client(by_offset(0, at_once=4, total=True), slow).pages("member")
    await anext(pages)
    await pages.aclose()
    assert slow.cancelled == 4
    assert slow.flying == 0


async def test_a_page_that_fails_ends_the_walk_at_its_place() -> None:
    members = Members.of(60)

    def answer(request: httpx.Request) -> httpx.Response:
        return reply({}, 400) if request.url.params.get("offset") == "15" else members(request)

    turns = iter([5, 60, 60, 5, *[40] * 20])  # the fourth page fails long before the second comes
    slow = Slow(answer, lambda: next(turns))
    pages = slow_client(by_offset(0, at_once=4, total=True), slow).pages("member")
    found = [await anext(pages) for _ in range(3)]
    with pytest.raises(ProviderError):
        await anext(pages)
    assert ids(found) == [names(0, 1, 2, 3, 4), names(5, 6, 7, 8, 9), names(10, 11, 12, 13, 14)]
    assert found[-1].resume is not None
    assert found[-1].resume["request"]["query"]["offset"] == 15
    assert slow.flying == 0


async def test_a_page_beyond_the_end_that_fails_harms_nobody() -> None:
    members = Members.of(12)

    def answer(request: httpx.Request) -> httpx.Response:
        beyond = int(request.url.params.get("offset", "0")) > 12
        return reply({"error": "beyond the end"}, 400) if beyond else members(request)

    found = await read(slow_client(by_offset(0, at_once=4), Slow(answer)))
    assert [each for page in ids(found) for each in page] == names(*range(12))


async def test_a_short_page_is_followed_from_where_it_ends() -> None:
    """A provider may give less than it was asked for; what was asked ahead is then of no use."""

    def answer(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params.get("offset", "0"))
        rows = [{"id": f"m{number}", "changed": moment_of(1)} for number in range(23)]
        return reply({"members": rows[offset : offset + (3 if offset == 5 else 5)]})

    found = await read(slow_client(by_offset(0, at_once=3), Slow(answer)))
    assert [each for page in ids(found) for each in page] == names(*range(23))


@pytest.mark.parametrize(("pages", "asked"), [(", pages: last", 6), ("", 9)])
async def test_numbered_pages_at_once(pages: str, asked: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("page", "1"))
        rows = [{"id": f"m{number}", "changed": moment_of(1)}] if number <= 6 else []
        return reply({"members": rows, "last": 6})

    slow = Slow(answer)
    text = manifest(f"type: page_number, send: query page{pages}", size=0, at_once=3)
    found = await read(slow_client(text, slow))
    assert [each for page in ids(found) for each in page] == names(1, 2, 3, 4, 5, 6)
    assert slow.most == 3
    assert slow.asked == asked


async def test_pages_that_tell_the_next_are_asked_for_one_by_one() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("cursor", "0"))
        body: dict[str, Any] = {"members": [{"id": f"m{number}"}]}
        return reply({**body, "next": str(number + 1)} if number < 4 else body)

    slow = Slow(answer)
    text = manifest("type: cursor, read: next, send: query cursor", at_once=4)
    assert ids(await read(slow_client(text, slow))) == [names(n) for n in range(5)]
    assert slow.most == 1


async def test_a_provider_that_never_gets_on_is_found_out() -> None:
    """It gives the same first page whatever it is asked for."""
    slow = Slow(lambda request: reply({"members": [{"id": "m1", "changed": moment_of(1)}] * 5}))
    with pytest.raises(UnexpectedResponseError, match="circle"):
        await read(slow_client(by_offset(0, at_once=4), slow))
    assert slow.asked < 10


async def test_pages_that_overlap_may_show_the_same_rows_and_are_no_circle() -> None:
    """Pages begin one row apart, and the list moves by one row between them, eight times."""
    members = Members.of(8)

    def one_more(members: Members, offset: int) -> None:
        if 0 < len(members.offsets) <= 8:
            members.rows.insert(0, (f"older{len(members.offsets)}", 0))

    members.before = one_more
    found = await read(client_of(by_offset(4, total=True), FakeProvider(members)))
    assert [each for page in ids(found) for each in page] == names(*range(8))


async def test_the_last_page_is_read_last() -> None:
    """The first record of a page asked for early changes after the last page was answered."""
    members = Members.of(13)
    members.before = lambda members, offset: members.change(5) if len(members.offsets) == 2 else None
    # The second page is answered after the third, which goes up to the end: m5 is on neither.
    turns = iter([5, 80, 5, *[5] * 20])
    slow = Slow(members, lambda: next(turns))
    found = await read(slow_client(by_offset(1, at_once=2, total=True), slow))
    assert members.offsets == [0, 8, 4, 8]
    assert ids(found) == [names(0, 1, 2, 3, 4), names(6, 7, 8, 9), names(10, 11, 12, 5)]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), count=st.integers(0, 40), overlap=st.integers(1, 4), at_once=st.integers(1, 4))
def test_no_record_is_missed_whatever_changes_meanwhile(
    data: st.DataObject, count: int, overlap: int, at_once: int
) -> None:
    """The list changes before every answer, answers come in any order, and with any number of turns."""
    gone: set[str] = set()
    told: dict[str, str | None] = {}
    changes = data.draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 7]), min_size=12, max_size=12))

    def before(members: Members, offset: int) -> None:
        number = len(members.offsets)
        for _ in range(changes[number] if number < len(changes) else 0):
            if members.rows:
                members.change(data.draw(st.integers(0, len(members.rows) - 1)))
        if number < len(changes) and members.rows and data.draw(st.booleans()):
            gone.add(members.rows.pop(data.draw(st.integers(0, len(members.rows) - 1)))[0])

    members = Members.of(count, before)
    total = data.draw(st.booleans())
    slow = Slow(members, lambda: data.draw(st.integers(0, 60)))
    found = asyncio.run(read(slow_client(by_offset(overlap, at_once=at_once, total=total), slow)))
    for batch in found:
        told.update((row.id, row.changed_at) for row in batch.records)
    assert told.keys() - gone == {each for each, _ in members.rows}
    if total:  # then nothing was asked for after the end was seen, so nothing changed after it either
        assert {each: told[each] for each, _ in members.rows} == {
            each: moment_of(moment) for each, moment in members.rows
        }


@settings(max_examples=50, deadline=None)
@given(data=st.data(), overlap=st.integers(2, 4), count=st.integers(0, 40))
def test_fewer_changes_than_the_overlap_cost_no_call_more(
    data: st.DataObject, overlap: int, count: int
) -> None:
    def before(members: Members, offset: int) -> None:
        for _ in range(data.draw(st.integers(0, overlap - 1)) if len(members.offsets) < 8 else 0):
            if members.rows:
                members.change(data.draw(st.integers(0, len(members.rows) - 1)))

    members = Members.of(count, before)
    found = asyncio.run(read(client_of(by_offset(overlap, total=True), FakeProvider(members))))
    assert members.offsets == sorted(set(members.offsets))  # never back
    assert {each for page in ids(found) for each in page} == set(names(*range(count)))
