"""Options, links, and reads that would never end. The types' own cases are in tests/contract/pagination."""

from typing import Any

import pytest

from engine.calls import Request
from engine.errors import ManifestError, UnexpectedResponseError
from engine.manifest import TypeSpec
from engine.pagination import CycleGuard, build, links


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
