"""An archive written in pieces is one that everybody else's tools read."""

import io
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server import zipping
from server.zipping import Member

WHEN = datetime(2026, 11, 24, 6, 15, 31, tzinfo=UTC)
FILES: Mapping[str, Sequence[bytes]] = {
    "links.jsonl": [b'{"a": 1}\n' * 1000, b'{"b": "Zo\xc3\xab"}\n', bytes(range(256)) * 4096],
    "nothing.jsonl": [],
    "Ålesund.json": [b"{}"],
}


def archive(files: Mapping[str, Sequence[bytes]]) -> bytes:
    written, members = b"", []
    for name, pieces in files.items():
        member, content = Member(name, at=len(written)), b""
        for piece in pieces:
            packed = zipping.squeeze(piece)
            content += packed
            member = replace(
                member,
                crc=zlib.crc32(piece, member.crc),
                size=member.size + len(piece),
                compressed=member.compressed + len(packed),
            )
        member = replace(member, compressed=member.compressed + len(zipping.END))
        written += zipping.header(member, WHEN) + content + zipping.END
        members.append(member)
    return written + zipping.directory(members, len(written), WHEN)


def test_it_holds_what_was_put_in() -> None:
    with zipfile.ZipFile(io.BytesIO(archive(FILES))) as read:
        assert read.testzip() is None
        assert {name: read.read(name) for name in read.namelist()} == {
            name: b"".join(pieces) for name, pieces in FILES.items()
        }
        assert {info.date_time for info in read.infolist()} == {(2026, 11, 24, 6, 15, 30)}


def test_an_archive_without_files() -> None:
    with zipfile.ZipFile(io.BytesIO(archive({}))) as read:
        assert read.namelist() == []


def test_an_altered_byte_is_found() -> None:
    written = bytearray(archive({"a": [b"some content that is long enough to be altered"]}))
    written[60] ^= 1
    with zipfile.ZipFile(io.BytesIO(bytes(written))) as read:
        with pytest.raises((zipfile.BadZipFile, zlib.error)):
            read.read("a")


@pytest.mark.parametrize(
    "large",
    [
        Member("large", at=5 * 2**30, crc=7, size=6 * 2**40, compressed=5 * 2**32),
        Member("late", at=5 * 2**30, crc=7, size=6, compressed=8),
        Member("squeezed well", at=10, crc=7, size=2**32, compressed=4 * 2**20),
        Member("as large as goes", at=2**32 - 2, crc=7, size=2**32 - 2, compressed=2**32 - 2),
    ],
)
def test_sizes_beyond_four_gibibytes_are_told(large: Member) -> None:
    start = b"\0" * 10
    with zipfile.ZipFile(io.BytesIO(start + zipping.directory([large], len(start), WHEN))) as read:
        [info] = read.infolist()
    assert (info.file_size, info.compress_size, info.header_offset) == (
        large.size,
        large.compressed,
        large.at,
    )


def test_the_header_of_a_large_file_tells_its_size_elsewhere() -> None:
    """As in APPNOTE 4.5.3: both sizes are FFFFFFFF, and an extra field 0001 holds the plain one first."""
    large = zipping.header(Member("a", at=0, crc=7, size=2**32, compressed=9), WHEN)
    assert large[18:26] == b"\xff" * 8
    assert large[31:] == b"\1\0\x10\0" + (2**32).to_bytes(8, "little") + (9).to_bytes(8, "little")
    small = zipping.header(Member("a", at=0, crc=7, size=12, compressed=9), WHEN)
    assert (small[14:18], small[18:22], small[22:26]) == (b"\7\0\0\0", b"\x09\0\0\0", b"\x0c\0\0\0")
    assert len(small) == 31


def test_other_tools_that_are_installed_read_it(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(archive(FILES))
    commands = ([sys.executable, "-m", "zipfile", "-t"], ["unzip", "-t"], ["bsdtar", "-tvf"], ["7z", "t"])
    for command in commands:
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(path)], capture_output=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
