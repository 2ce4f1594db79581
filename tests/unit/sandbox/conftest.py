"""Stand-ins reached in process, at a time that only moves when a test says so."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.sandbox.core import SandboxClock
from tests.sandbox.square import PERSONAL_TOKEN, Square
from tests.sandbox.stripe import Stripe

NOON = 1_760_000_000.0  # 2025-10-09T08:53:20Z


@pytest.fixture
def clock() -> SandboxClock:
    return SandboxClock(lambda: NOON)


@pytest.fixture
async def stripe(clock: SandboxClock) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(Stripe(clock)),
        base_url="http://stripe",
        headers={"Authorization": "Bearer sk_test_demo_1"},
    ) as client:
        yield client


@pytest.fixture
async def square(clock: SandboxClock) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(Square(clock)),
        base_url="http://square",
        headers={"Authorization": f"Bearer {PERSONAL_TOKEN}"},
    ) as client:
        yield client
