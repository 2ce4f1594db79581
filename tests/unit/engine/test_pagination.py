"""Options, links, and reads that would never end. The types' own cases are in tests/contract/pagination."""

from typing import Any

import pytest

from engine.calls import Page, Request
from engine.errors import ManifestError, UnavailableError, UnexpectedResponseError
from engine.lint import FORESEEABLE
from engine.manifest import TypeSpec
from engine.pagination import MOST_STEPS_BACK, TYPES, CycleGuard, Seam, build, foreseen, links, mark


def page(name: str) -> list[dict[str, Any]]:
    return [{"id": f"{name}{number}"} for number in range(3)]


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ManifestError, match="there is no pagination type `curser`"):
        build(TypeSpec("curser", {}), "https://api.example")


@pytest.mark.parametrize("header", ["", "nonsense", "<unfinished; rel=next", "<>", 'rel="next"'])
def test_a_broken_link_header_has_no_links(header: str) -> None:
    assert links(header).get("next") is None


def test_the_first_link_of_a_relation_counts() -> None:
    assert links('</a>; rel="next", </b>; rel="next"') == {"next": "/a"}


def test_a_long_hostile_link_header_is_read_quickly() -> None:
    assert links("<" * 50_000 + '; rel="next"') == {}
    assert links("<a>" + ";" * 50_000) == {}
    assert links("<a>;b" + " " * 50_000 + "<") == {}


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
def test_a_circle_of_requests_is_found_when_it_closes(length: int) -> None:
    guard = CycleGuard()
    for number in range(length):
        guard.asked(Request("GET", "/customers", {"cursor": f"c{number}"}))
    with pytest.raises(UnexpectedResponseError):
        guard.asked(Request("GET", "/customers", {"cursor": "c0"}))


def test_requests_differ_by_their_body_too() -> None:
    guard = CycleGuard()
    for cursor in ("a", "b"):
        guard.asked(Request("POST", "/search", body={"cursor": cursor}))
    with pytest.raises(UnexpectedResponseError):
        guard.asked(Request("POST", "/search", body={"cursor": "b"}))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 12])
def test_a_circle_of_records_behind_ever_new_cursors_is_found(length: int) -> None:
    guard = CycleGuard()

    def read() -> None:
        for number in range(10 * length + 10):
            guard.answered(page(f"{number % length}-"))

    with pytest.raises(UnexpectedResponseError):
        read()


def test_empty_pages_are_no_circle() -> None:
    guard = CycleGuard()
    for _ in range(50):
        guard.answered([])


def test_pages_that_differ_are_no_circle() -> None:
    guard = CycleGuard()
    for number in range(1000):
        guard.answered(page(f"{number}-"))
    assert guard.pages == 1000


# ---------------------------------------------------------------------------------------------- seams


def test_a_seam_is_torn_when_no_row_of_the_page_before_comes_again() -> None:
    seam = Seam(2, ["a", "b", "c"])
    assert seam.torn(["d", "e"])
    assert seam.torn([])
    assert not seam.torn(["c", "d"])
    assert not seam.torn(["a", "b", "c", "d"])  # the list grew in front


def test_where_pages_do_not_overlap_nothing_is_torn() -> None:
    assert not Seam().torn([])
    assert Seam().fresh([{"id": 1}], []) == [{"id": 1}]
    assert not Seam().ends(0, 0)


def test_only_rows_that_came_before_are_left_out() -> None:
    rows = [{"id": 3}, {"id": 4}, {"id": 5}]
    assert Seam(2, ["2", "3", "4"]).fresh(rows, ["3", "4", "5"]) == [{"id": 5}]


@pytest.mark.parametrize(
    ("rows", "fresh", "ends"), [(2, 0, True), (1, 0, True), (2, 1, False), (3, 0, False), (0, 0, False)]
)
def test_a_page_of_the_last_rows_alone_shows_the_end(rows: int, fresh: int, ends: bool) -> None:
    assert Seam(2, ["a", "b", "c"]).ends(rows, fresh) is ends


def test_a_seam_is_kept_by_the_rows_that_are_to_come_again() -> None:
    assert Seam(2, ["a", "b", "c"]).to_json() == ["b", "c"]
    assert Seam(0, ["a", "b", "c"]).to_json() == []


def test_equal_values_have_equal_marks() -> None:
    assert mark(["a", "2026-03-01T12:00:00Z"]) == mark(["a", "2026-03-01T12:00:00Z"])
    assert mark(["a", "2026-03-01T12:00:00Z"]) != mark(["a", "2026-03-01T12:00:01Z"])


def test_a_walk_that_steps_back_may_ask_again_but_not_for_ever() -> None:
    guard = CycleGuard()
    for _ in range(MOST_STEPS_BACK):
        guard.asked(Request("GET", "/customers", {"offset": 3}))
        guard.stepped_back()
    with pytest.raises(UnavailableError):
        guard.stepped_back()


# ------------------------------------------------------------------------------------------- foreseen


def offset(request: Request | None) -> object:
    return request.query.get("offset") if request else None


@pytest.mark.parametrize(
    ("options", "size", "asked", "total", "following"),
    [
        ({}, 100, 200, None, 300),
        ({}, 100, None, None, 100),
        ({"overlap": 10}, 100, 180, None, 270),
        ({"total": "total"}, 100, 200, 301, 300),
        ({"total": "total"}, 100, 200, 300, None),
        ({"total": "total", "overlap": 10}, 100, 180, 280, None),
        ({"total": "total", "overlap": 10}, 100, 180, 281, 270),
        ({"first": 1, "total": "total"}, 100, 201, 300, None),
        ({}, None, 200, None, None),  # nobody knows how long a page is
    ],
)
def test_offsets_are_foreseen(
    options: dict[str, Any], size: int | None, asked: int | None, total: int | None, following: int | None
) -> None:
    pagination = build(TypeSpec("offset", {"send": "query offset", **options}), "https://api.example")
    request = Request("GET", "/customers", {} if asked is None else {"offset": asked})
    came = Page(Request("GET", "/customers"), {"total": total}, records=page("a"))
    assert offset(foreseen(pagination, request, size, came)) == following


@pytest.mark.parametrize(("asked", "following"), [(2, 3), (3, None)])
def test_page_numbers_are_foreseen(asked: int, following: int | None) -> None:
    spec = TypeSpec("page_number", {"send": "query offset", "pages": "pages"})
    came = Page(Request("GET", "/customers"), {"pages": 3}, records=page("a"))
    request = Request("GET", "/customers", {"offset": asked})
    assert offset(foreseen(build(spec, "https://api.example"), request, None, came)) == following


FORESEEABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "cursor": {"read": "next", "send": "query cursor"},
    "last_record": {"read": "id", "send": "query after"},
    "offset": {"send": "query offset"},
    "page_number": {"send": "query page"},
    "next_link": {"read": "next"},
    "link_header": {},
}


@pytest.mark.parametrize("name", TYPES)
def test_lint_knows_which_pages_can_be_foreseen(name: str) -> None:
    pagination = build(TypeSpec(name, FORESEEABLE_OPTIONS[name]), "https://api.example")
    came = Page(Request("GET", "/customers"), {"next": "abc"}, records=page("a"))
    following = foreseen(pagination, Request("GET", "/customers"), 3, came)
    assert (following is not None) == (name in FORESEEABLE)
