"""Results that come packed: what is read, and what is refused."""

import gzip
import io
import tarfile
from collections.abc import Sequence
from typing import Any

import pytest

from engine import archives
from engine.archives import read_documents
from engine.errors import UnexpectedResponseError


def packed(files: Sequence[tuple[str, bytes]], *, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, link, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def read(data: bytes) -> list[Any]:
    return list(read_documents(data, "tar_gz_json"))


def test_json_is_one_document() -> None:
    assert list(read_documents(b'[{"a": 1}]', "json")) == [[{"a": 1}]]


def test_an_archive_holds_documents_in_folders_compressed_or_not() -> None:
    data = packed([("./a-0.json", b"[1]"), ("./more/b_1.json", b"[2]")])
    assert read(gzip.compress(data)) == [[1], [2]]
    assert read(data) == [[1], [2]]  # a client of ours may have unpacked it on the way


def test_a_folder_is_passed_over() -> None:
    assert read(packed([("./", b""), ("./more/", b"")], kind=tarfile.DIRTYPE)) == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.json", "./a/../b.json", "a\\b.json", "a\nb.json", "./.hidden", "a/./b.json"]
)
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(UnexpectedResponseError, match="odd name"):
        read(packed([(name, b"[]")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_is_refused(kind: bytes) -> None:
    with pytest.raises(UnexpectedResponseError, match="isn't a file"):
        read(packed([("a.json", b"")], kind=kind, link="b.json"))


def test_a_small_archive_cannot_become_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 50_000)
    data = gzip.compress(packed([("a.json", b" " * 100_000 + b"[]")]))
    assert len(data) < 1_000
    with pytest.raises(UnexpectedResponseError, match="too large"):
        read(data)


def test_one_file_may_not_be_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_OF_ONE", 10)
    with pytest.raises(UnexpectedResponseError):
        read(packed([("a.json", b"[1,2,3,4,5,6]")]))


def test_an_archive_of_countless_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    with pytest.raises(UnexpectedResponseError, match="too many"):
        read(packed([(f"{number}.json", b"[]") for number in range(3)]))


@pytest.mark.parametrize(
    "data",
    [
        b"<Error>expired</Error>",
        gzip.compress(b"no tar in here"),
        gzip.compress(packed([("a.json", b"[1]")]))[:-40],
        gzip.compress(packed([("a.json", b"[1" + b"x" * 600)])),
    ],
    ids=["other", "no archive", "cut short", "no JSON"],
)
def test_what_cannot_be_read_is_told(data: bytes) -> None:
    with pytest.raises(UnexpectedResponseError):
        read(data)


def test_results_that_are_not_json() -> None:
    with pytest.raises(UnexpectedResponseError, match="aren't JSON"):
        list(read_documents(b"<html>", "json"))
