"""The results of a job: only what is waited for is kept, however much there is."""

import gzip
import io
import json
import tarfile
import tracemalloc
from typing import Any

import pytest

from engine import archives
from engine.errors import UnexpectedResponseError
from engine.expressions import Expression, Path
from engine.jobs import rows_of, unpacked
from engine.manifest import JobResults

RESULTS = JobResults(pair_by=Path.parse("n"), format="tar_gz_json")


def packed(*documents: Any) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for number, document in enumerate(documents):
            content = json.dumps(document).encode()
            entry = tarfile.TarInfo(f"{number}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue())


def test_only_the_wanted_are_kept_in_their_order() -> None:
    data = packed([{"n": 3}, {"n": 1}, {"n": 9}], [], [{"n": "2"}, {"other": "1"}, "odd"])
    assert unpacked(RESULTS, data, frozenset({"1", "2", "3"})) == [{"n": 3}, {"n": 1}, {"n": "2"}]


def test_a_name_may_come_back_in_other_letters() -> None:
    rows = [{"n": "Ada@Example.com"}, {"n": "bob@example.com"}]
    assert rows_of(RESULTS, [rows], frozenset({"ada@example.com"})) == rows[:1]


def test_results_that_are_no_list() -> None:
    with pytest.raises(UnexpectedResponseError, match="aren't a list"):
        rows_of(RESULTS, [{"n": "1"}], frozenset({"1"}))


def test_results_may_lie_deeper() -> None:
    results = JobResults(pair_by=Path.parse("n"), records=Expression.compile("rows"))
    assert rows_of(results, [{"rows": [{"n": "1"}]}, {"rows": None}], frozenset({"1"})) == [{"n": "1"}]


def peak(files: int) -> int:
    """Return the most memory that reading so many files of a megabyte took, in bytes."""
    data = packed(*([{"n": f"{number}", "text": "x" * 2**20}] for number in range(files)))
    tracemalloc.start()
    try:
        rows = unpacked(RESULTS, data, frozenset({"3"}))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert [row["n"] for row in rows] == ["3"]


def test_memory_does_not_grow_with_what_nobody_waits_for() -> None:
    assert peak(40) < 1.5 * peak(5)


def test_the_ceilings_are_as_promised() -> None:
    assert archives.MOST_BYTES == 64 * 2**20
    assert archives.MOST_OF_ONE <= archives.MOST_BYTES
