"""Writes a zip archive a piece at a time, so that it may be begun in one process and ended in another.

Between pieces there are only numbers to remember. What is compressed ends at a whole byte (a full flush), so
pieces can be put one after the other. A file's header holds its sizes, so it is made last and put before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

END = b"\x03\x00"  # of a file's content: an empty last block
_VERSION, _UTF8, _DEFLATED = 20, 0x0800, 8
_VERSION_64 = 45
_COUNT, _LARGE = 0xFFFF, 0xFFFFFFFF  # and what says that the number is elsewhere, with 64 bits
_UNIX, _PLAIN_FILE = 3 << 8, 0o100600 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: where its header begins, and in bytes how long it is, plain and compressed.

    `compressed` counts `END`, too.
    """

    name: str
    at: int
    crc: int = 0
    size: int = 0
    compressed: int = 0


def squeeze(data: bytes) -> bytes:
    """Return a piece of a file's content as it goes into the archive."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def header(member: Member, when: datetime) -> bytes:
    """Return what comes before a file's content."""
    name = member.name.encode()
    large = max(member.size, member.compressed) >= _LARGE
    sizes = (_LARGE, _LARGE) if large else (member.compressed, member.size)
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.compressed) if large else b""
    version = _VERSION_64 if large else _VERSION
    numbers = (0x04034B50, version, _UTF8, _DEFLATED, *_time(when), member.crc, *sizes)
    return struct.pack("<IHHHHHIIIHH", *numbers, len(name), len(extra)) + name + extra


def directory(members: Sequence[Member], at: int, when: datetime) -> bytes:
    """Return the end of the archive; `at` is how many bytes come before it."""
    entries = b"".join(_entry(member, when) for member in members)
    count, length = len(members), len(entries)
    end = b""
    if count >= _COUNT or at + length >= _LARGE:
        numbers = (0x06064B50, 44, _UNIX | _VERSION_64, _VERSION_64, 0, 0, count, count, length, at)
        end = struct.pack("<IQHHIIQQQQ", *numbers) + struct.pack("<IIQI", 0x07064B50, 0, at + length, 1)
        count, length, at = _COUNT, _LARGE, _LARGE
    return entries + end + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, length, at, 0)


def _entry(member: Member, when: datetime) -> bytes:
    name = member.name.encode()
    sizes = (member.compressed, member.size, member.at)
    extra = b""
    if max(sizes) >= _LARGE:
        extra = struct.pack("<HHQQQ", 1, 24, member.size, member.compressed, member.at)
        sizes = (_LARGE, _LARGE, _LARGE)
    version = _VERSION_64 if extra else _VERSION
    numbers = (0x02014B50, _UNIX | version, version, _UTF8, _DEFLATED, *_time(when), member.crc, *sizes[:2])
    lengths = (len(name), len(extra), 0, 0, 0)  # no comment, the first disk, binary
    return struct.pack("<IHHHHHHIIIHHHHHII", *numbers, *lengths, _PLAIN_FILE, sizes[2]) + name + extra


def _time(when: datetime) -> tuple[int, int]:
    """Return a time and a date as zip archives write them, in steps of two seconds."""
    time = when.hour << 11 | when.minute << 5 | when.second // 2
    return time, (when.year - 1980) << 9 | when.month << 5 | when.day
