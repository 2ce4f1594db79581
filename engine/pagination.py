"""Walk a provider's list call page by page.

A pagination type answers one question: given this page, what is the next request?
Types hold no state, so a run can stop after any page and start again from its request.

To add a type: write the class, name it in TYPES, describe it in
schemas/connector.schema.json and add its cases to tests/contract/pagination/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol
from urllib.parse import urljoin

from engine.calls import Page, Place, Request
from engine.errors import ManifestError, UnavailableError, UnexpectedResponseError
from engine.expressions import ABSENT, Expression, Path
from engine.manifest import TypeSpec
from engine.transport import origin_of, to_json


class Pagination(Protocol):
    def next_request(self, request: Request, page: Page) -> Request | None:
        """Return the request for the page after `page`, or None when it was the last."""


@dataclass(frozen=True, slots=True)
class CursorPagination:
    """Each page carries the cursor that asks for the next one. A short or empty page isn't the end."""

    read: Path
    send: Place
    more: Expression | None = None

    def next_request(self, request: Request, page: Page) -> Request | None:
        if self.more is not None and not self.more.evaluate(page.body):
            return None
        cursor = _scalar(self.read, page.body)
        return None if cursor is None else _moved(self.send, request, cursor, self.read.text)


@dataclass(frozen=True, slots=True)
class LastRecordPagination:
    """The next page is asked for by a value of this page's last record, usually its id."""

    read: Path
    send: Place
    more: Expression | None = None

    def next_request(self, request: Request, page: Page) -> Request | None:
        if self.more is not None and not self.more.evaluate(page.body):
            return None
        if not page.records:
            return None
        value = _scalar(self.read, page.records[-1])
        if value is None:
            raise UnexpectedResponseError(f"the last record of a page has no `{self.read.text}`")
        return _moved(self.send, request, value, self.read.text)


@dataclass(frozen=True, slots=True)
class OffsetPagination:
    """Pages are asked for by how many records came before. Ends at the total, or at an empty page.

    With `overlap`, a page is asked to begin with so many of the last rows of the one before. A list in the
    order of the last change loses its place with each record that changes meanwhile: it moves to the end, and
    all after it move up by one, past the seam of two pages. A row of the page before, found again unchanged,
    proves that none did; `Seam` looks for it. So with `overlap: n` fewer than n records may leave the part
    that was read while a page is on its way; after more the walk steps back and asks again.
    """

    send: Place
    first: int = 0
    total: Path | None = None
    overlap: int = 0

    def next_request(self, request: Request, page: Page) -> Request | None:
        rows = len(page.records)
        return self.ahead(request, rows, page) if rows else None

    def ahead(self, request: Request, rows: int, page: Page) -> Request | None:
        """Return the request after one that brings so many rows; `page` is any answer, for the total."""
        came = _asked(self.send, request, self.first) + rows
        total = _count(self.total, page)
        if total is not None and came - self.first >= total:
            return None
        return self.send.put(request, came - self.shared(rows))

    def shared(self, rows: int) -> int:
        """Return how many of a page's last rows the next page is asked to begin with.

        A page that isn't longer than the overlap is overlapped by half, so that the walk goes on.
        """
        return self.overlap if self.overlap < rows else rows // 2

    def back(self, request: Request, rows: int) -> Request:
        """Return a request that begins so many rows earlier, or at the start of the list."""
        return self.send.put(request, max(self.first, _asked(self.send, request, self.first) - rows))

    def starts(self, request: Request) -> bool:
        """Say whether a request asks from the start of the list, before which nothing can be missed."""
        return _asked(self.send, request, self.first) <= self.first


@dataclass(frozen=True, slots=True)
class PageNumberPagination:
    """Pages are numbered. Ends at the number of pages, or at an empty page."""

    send: Place
    first: int = 1
    pages: Path | None = None

    def next_request(self, request: Request, page: Page) -> Request | None:
        rows = len(page.records)
        return self.ahead(request, rows, page) if rows else None

    def ahead(self, request: Request, rows: int, page: Page) -> Request | None:
        """Return the request after another; `page` is any answer, for the number of pages."""
        number = _asked(self.send, request, self.first)
        pages = _count(self.pages, page)
        if pages is not None and number >= pages + self.first - 1:
            return None
        return self.send.put(request, number + 1)


@dataclass(frozen=True, slots=True)
class NextLinkPagination:
    """Each page names the address of the next one, whole or without its host."""

    read: Path
    server: str

    def next_request(self, request: Request, page: Page) -> Request | None:
        link = self.read.find(page.body)
        if not link:
            return None
        if not isinstance(link, str):
            raise UnexpectedResponseError(f"`{self.read.text}` isn't an address")
        return _followed(link, request, self.server)


@dataclass(frozen=True, slots=True)
class LinkHeaderPagination:
    """Each page names the address of the next one in its Link header."""

    server: str
    rel: str = "next"

    def next_request(self, request: Request, page: Page) -> Request | None:
        link = links(page.headers.get("Link") or page.headers.get("link") or "").get(self.rel)
        return _followed(link, request, self.server) if link else None


TYPES: Mapping[str, Callable[..., Pagination]] = {
    "cursor": CursorPagination,
    "last_record": LastRecordPagination,
    "offset": OffsetPagination,
    "page_number": PageNumberPagination,
    "next_link": NextLinkPagination,
    "link_header": LinkHeaderPagination,
}

_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "read": Path.parse,
    "send": Place.parse,
    "more": Expression.compile,
    "total": Path.parse,
    "pages": Path.parse,
    "first": int,
    "overlap": int,
    "rel": str,
}
_NEED_SERVER = (NextLinkPagination, LinkHeaderPagination)


def build(spec: TypeSpec, server: str) -> Pagination:
    """Return the pagination a manifest describes. `server` is the address its calls are below."""
    make = TYPES.get(spec.type)
    if make is None:
        raise ManifestError(f"there is no pagination type `{spec.type}`; there are {', '.join(TYPES)}")
    options = {name: _OPTIONS[name](value) for name, value in spec.options.items()}
    return make(**options, server=server) if make in _NEED_SERVER else make(**options)


def begin(pagination: Pagination | None, request: Request) -> Request:
    """Return the first request. Templates that name the position have to be told it from the start."""
    if isinstance(pagination, OffsetPagination | PageNumberPagination) and pagination.send.where == "name":
        return pagination.send.put(request, pagination.first)
    return request


def foreseen(pagination: Pagination | None, request: Request, size: int | None, page: Page) -> Request | None:
    """Return the request that follows one nobody has answered yet, if it brings a full page.

    `size` is how many rows a full page has, `page` the last one that came. None where only the answer can
    tell, or when that page says that nothing follows.
    """
    if isinstance(pagination, OffsetPagination) and size is not None:
        return pagination.ahead(request, size, page)
    if isinstance(pagination, PageNumberPagination):
        return pagination.ahead(request, 0, page)
    return None


def absolute_url(url: str, server: str) -> str:
    """Return where a request goes: its path below the server, or its own address."""
    return url if url.startswith(("https://", "http://")) else server + url


LONGEST_LINK_HEADER = 8192
_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[\w!#$&+.^`|~*-]+\s*(?:=\s*(?:"[^"]*"|[^\s",;]*))?)*)')
_REL = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s",;]*))', re.IGNORECASE)


def links(header: str) -> dict[str, str]:
    """Read a Link header (RFC 8288) as relation to address; the first of a relation counts."""
    found: dict[str, str] = {}
    for match in _LINK.finditer(header[:LONGEST_LINK_HEADER]):
        rel = _REL.search(match.group(2))
        for name in (rel.group(1) or rel.group(2) or "").lower().split() if rel else ():
            found.setdefault(name, match.group(1))
    return found


def _followed(link: str, request: Request, server: str) -> Request:
    """Return the request for a link, which must stay with the server: the credentials go along."""
    url = urljoin(absolute_url(request.url, server), link)
    if origin_of(url) != origin_of(server):
        raise UnexpectedResponseError("the link to the next page leads to another server")
    return replace(request, url=url.partition("#")[0], query={}, names={})


def _moved(send: Place, request: Request, value: str | int, read: str) -> Request:
    if str(value) == str(send.get(request)):
        # Some providers repeat the last cursor instead of leaving it out; following it would never end.
        raise UnexpectedResponseError(f"`{read}` returned the same cursor twice")
    return send.put(request, value)


def _scalar(path: Path, document: Any) -> str | int | None:
    value = path.find(document)
    if not value or value is True:
        return None
    if not isinstance(value, str | int):
        raise UnexpectedResponseError(f"`{path.text}` should be text or a number")
    return value


def _count(path: Path | None, page: Page) -> int | None:
    """Return a number the page carries; None when it doesn't, or isn't asked for one."""
    value = path.find(page.body) if path else None
    return None if path is None or value is None or value is ABSENT else _number(value, path.text)


def _number(value: Any, name: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UnexpectedResponseError(f"`{name}` isn't a number") from None


def _asked(send: Place, request: Request, first: int) -> int:
    """Return the position a request asks for; the first one when it doesn't say."""
    value = send.get(request)
    return first if value is None else _number(value, send.text)


# ------------------------------------------------------------------------------------------------- seams


@dataclass(frozen=True, slots=True)
class Seam:
    """The rows of the page before, by their marks; the next page should begin with the last `shared` of them.

    A mark is a row's id and state in short: the same again is the same record, unchanged, at its place.
    """

    shared: int = 0
    marks: Sequence[str] = ()

    def torn(self, marks: Sequence[str]) -> bool:
        """Say whether a page has none of the rows it should have: then some may lie between the two."""
        return self.shared > 0 and not set(self.marks).intersection(marks)

    def fresh(self, rows: list[Any], marks: Sequence[str]) -> list[Any]:
        """Return the rows that the page before didn't have. One that changed since is fresh."""
        if not self.shared:
            return rows
        known = set(self.marks)
        return [row for row, mark in zip(rows, marks, strict=True) if mark not in known]

    def ends(self, rows: int, fresh: int) -> bool:
        """Say whether a page of so many rows shows that the list ended with the page before."""
        return not fresh and 0 < rows <= self.shared

    def to_json(self) -> list[str]:
        """Return what is enough to go on with after a stop; `Seam(len(marks), marks)` reads it."""
        return list(self.marks[-self.shared :]) if self.shared else []


def mark(value: Any) -> str:
    """Return a short mark of a plain value."""
    return _digest(value).hex()


# ---------------------------------------------------------------------------------------- no endless reads


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Where a read ends by force: something is wrong with a provider that goes on beyond."""

    pages: int = 200_000
    seconds: float = 12 * 3600.0
    bytes: int = 100 * 2**30  # of all answers of a read
    page_bytes: int = 64 * 2**20  # of one answer


STEPS_BACK = 2  # from a torn seam, of a page each; where even they don't find it, the list is read anew
MOST_STEPS_BACK = 100  # in one read
MOST_REPEATS = 2  # a list that grows by exactly a page meanwhile shows one again; that is no circle
MOST_REPEATS_IN_OVERLAP = 50  # where a page begins few rows after the one before, no more have to move for it


@dataclass(slots=True)
class CycleGuard:
    """Notices a read that goes in circles, however long the circle.

    Requests and pages are remembered as eight bytes each, so that a provider that keeps inventing cursors for
    the same pages is found out as well.
    """

    most_repeats: int = MOST_REPEATS
    pages: int = 0
    steps_back: int = 0
    _asked: set[bytes] = field(default_factory=set)
    _answered: set[bytes] = field(default_factory=set)
    _repeats: int = 0

    def asked(self, request: Request) -> None:
        """Note a request about to be made; raises UnexpectedResponseError when it was made before."""
        digest = _digest([request.method, request.url, request.query, request.body])
        if digest in self._asked:
            raise UnexpectedResponseError("the pages go in a circle: a page was asked for twice")
        self._asked.add(digest)

    def stepped_back(self) -> None:
        """Note that pages will be asked for again; raises UnavailableError when that happens all the time."""
        self.steps_back += 1
        if self.steps_back > MOST_STEPS_BACK:
            raise UnavailableError("the list changes faster than it can be read")
        self._asked.clear()
        self._answered.clear()

    def answered(self, rows: list[Any]) -> None:
        """Note a page's rows; raises UnexpectedResponseError when pages keep coming again."""
        self.pages += 1
        if not rows:
            return
        digest = _digest([len(rows), rows[0], rows[-1]])
        self._repeats += digest in self._answered
        if self._repeats > self.most_repeats:
            raise UnexpectedResponseError("the pages go in a circle: the same records came again")
        self._answered.add(digest)


def _digest(value: Any) -> bytes:
    return blake2b(to_json(value), digest_size=8).digest()
