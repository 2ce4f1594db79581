"""What is written in one turn of the loop is sent together, and nothing is held back for longer."""

import asyncio
from typing import Any, cast

import pytest

from server.serving import TOGETHER_BYTES, _Together


class Wire:
    """A transport that notes what it is given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
async def both() -> tuple[Wire, Any]:
    wire = Wire()
    return wire, _Together(cast("asyncio.Transport", wire), asyncio.get_running_loop())


async def test_one_turn_is_one_write(both: tuple[Wire, Any]) -> None:
    wire, together = both
    for part in (b"head", b"body", b""):
        together.write(part)
    assert wire.sent == []
    await asyncio.sleep(0)
    together.write(b"next")
    await asyncio.sleep(0)
    assert wire.sent == [b"headbody", b"next"]


async def test_much_is_written_at_once(both: tuple[Wire, Any]) -> None:
    """Else whoever makes a long answer wouldn't be told that its client is slow."""
    wire, together = both
    together.write(b"x" * TOGETHER_BYTES)
    assert wire.sent == []
    together.write(b"y")
    assert [len(each) for each in wire.sent] == [TOGETHER_BYTES + 1]
    await asyncio.sleep(0)
    assert len(wire.sent) == 1


async def test_closing_sends_what_is_there(both: tuple[Wire, Any]) -> None:
    wire, together = both
    together.write(b"last")
    together.close()
    assert (wire.sent, wire.closed, together.is_closing()) == ([b"last"], True, True)


async def test_nothing_is_sent_on_a_connection_that_closes(both: tuple[Wire, Any]) -> None:
    wire, together = both
    together.write(b"late")
    wire.closed = True
    await asyncio.sleep(0)
    assert wire.sent == []
