"""Read files of results that a provider packed: JSON, or a compressed tar archive of JSON documents.

Nothing is written to a disk, no member is read that isn't a plain file with a plain name, and what comes out
is counted: a small archive can't become a large one.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Literal, cast

import orjson

from engine.errors import UnexpectedResponseError

MOST_BYTES = 64 * 2**20  # of all documents of an archive, unpacked
MOST_OF_ONE = 32 * 2**20
MOST_MEMBERS = 10_000

_GZIP = b"\x1f\x8b"
_PLAIN_NAME = re.compile(r"\.|(\./)?([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def read_documents(data: bytes, packed: Literal["json", "tar_gz_json"]) -> Iterator[Any]:
    """Yield the JSON documents of a file, one at a time; raises UnexpectedResponseError for anything odd."""
    if packed == "json":
        if len(data) > MOST_OF_ONE:
            raise UnexpectedResponseError("the file of results is too large")
        yield _document(data)
        return
    source: io.BufferedIOBase = io.BytesIO(data)
    if data.startswith(_GZIP):  # else it was unpacked on the way, as an encoding of the answer
        source = gzip.GzipFile(fileobj=source)
    try:
        with tarfile.open(fileobj=cast(Any, _Counted(source)), mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= MOST_MEMBERS:
                    raise UnexpectedResponseError("the archive of results has too many files")
                if not _PLAIN_NAME.fullmatch(member.name) or member.issparse():
                    raise UnexpectedResponseError("the archive of results holds a file with an odd name")
                if member.isdir():
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.size > MOST_OF_ONE:
                    raise UnexpectedResponseError("the archive of results holds something that isn't a file")
                raw = content.read()
                document = _document(raw)
                del raw  # before the reader takes its time with it
                yield document
                del document
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        raise UnexpectedResponseError("the archive of results can't be read") from None


class _Counted:
    """A stream that ends with an error when more comes out of it than an archive may hold."""

    def __init__(self, source: io.BufferedIOBase) -> None:
        self._source = source
        self._left = MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UnexpectedResponseError("the archive of results is too large")
        return data


def _document(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        raise UnexpectedResponseError("the results aren't JSON") from None
