"""How calls of one account keep to its limits: clients that share a limiter, and what answers say of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from engine.batching import Write
from engine.client import ProviderClient
from engine.errors import RateLimitedError, UnavailableError
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from engine.rate_limits import LocalRateLimiter
from tests.fakes import START, FakeClock, FakeProvider, client_of, connector_of, reply


def manifest(limits: str = "{}", more: str = "") -> str:
    return f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://juniper.example
server: {{production: https://api.juniper.example}}
auth: {{type: bearer, token: apiKey, credentials: {{apiKey: {{title: Key}}}}}}
check: GET /me
limits: {limits}
{more}
resources:
  item: {{id: id, fields: {{name: text}}, one_write_at_a_time: true, create: POST /items}}
  tax: {{id: id, fields: {{name: text}}, one_write_at_a_time: true, create: POST /taxes}}
"""


COUNTED = "{requests: 100 per second, read: {remaining: header X-Left, reset: header X-Reset}}"
BY_MOMENT = COUNTED.replace("reset: header", "reset_is: moment, reset: header")


class Counting(httpx.AsyncBaseTransport):
    """Answers after a while; `most` is how many calls there were at once."""

    def __init__(self) -> None:
        self.running = self.most = self.calls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.running += 1
        self.calls += 1
        self.most = max(self.most, self.running)
        for _ in range(5):
            await asyncio.sleep(0)
        self.running -= 1
        return reply({"id": "i1"})


class KeptKeys(LocalRateLimiter):
    """Remembers which budgets were asked."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.keys: set[str] = set()

    async def acquire(self, key: str, rate: float, burst: float) -> None:
        self.keys.add(key)


async def test_clients_of_one_account_share_its_slots() -> None:
    transport, limiter = Counting(), LocalRateLimiter(FakeClock())
    connector = connector_of(manifest("{concurrent: 3}"))
    clients = [client_of(connector, FakeProvider([]), limiter=limiter, transport=transport) for _ in range(3)]
    await asyncio.gather(*(client.check() for client in clients * 5))
    assert (transport.most, transport.calls) == (3, 15)


async def test_writes_one_at_a_time_are_so_for_all_resources_and_clients_of_an_account() -> None:
    transport, limiter = Counting(), LocalRateLimiter(FakeClock())
    connector = connector_of(manifest())
    clients = [client_of(connector, FakeProvider([]), limiter=limiter, transport=transport) for _ in range(2)]
    sent = []
    for number, client in enumerate(clients):
        for resource in ("item", "tax"):
            writes = [Write(f"l{number}", None, {"name": "x"}, f"k{number}")]
            sent += [client.send(group) for group in client.plan(resource, writes)]
    await asyncio.gather(*sent)
    assert (transport.most, transport.calls) == (1, 4)


@pytest.mark.parametrize(
    ("limits", "reset"),
    [
        (COUNTED, "30"),
        (BY_MOMENT, str(int(START.timestamp()) + 30)),
        (BY_MOMENT, format_datetime(START + timedelta(seconds=30), usegmt=True)),
        ("{read: {remaining: header X-Left, reset: header X-Reset}}", "30"),  # nothing else is known
    ],
)
async def test_no_call_goes_before_the_provider_counts_anew(limits: str, reset: str) -> None:
    clock = FakeClock()
    answers = [reply({}, headers={"X-Left": "1", "X-Reset": reset})] + [reply({})] * 2
    client = client_of(manifest(limits), FakeProvider(answers), clock=clock)
    await client.check()
    await client.check()
    assert clock.seconds == 0
    await client.check()
    assert clock.seconds == pytest.approx(30)


@pytest.mark.parametrize("headers", [{}, {"X-Left": "many", "X-Reset": "30"}, {"X-Reset": "30"}])
async def test_an_answer_that_says_nothing_of_it_changes_nothing(headers: Mapping[str, str]) -> None:
    clock = FakeClock()
    client = client_of(manifest(COUNTED), FakeProvider([reply({}, headers=headers)] * 5), clock=clock)
    for _ in range(5):
        await client.check()
    assert clock.seconds == 0


async def test_without_a_reset_the_number_is_what_may_go_at_once() -> None:
    clock = FakeClock()
    limits = "{requests: 10 per second, read: {remaining: header X-Left}}"
    client = client_of(manifest(limits), FakeProvider([reply({}, headers={"X-Left": "0"})] * 2), clock=clock)
    await client.check()
    await client.check()
    assert clock.seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("connection", "budget", "key"),
    [
        ({"merchant": "m-1"}, "venue-1", "juniper production m-1"),
        ({}, "venue-1", "juniper production venue-1"),
    ],
)
async def test_a_budget_is_the_accounts(connection: dict[str, Any], budget: str, key: str) -> None:
    more = "account: merchant\nafter_connecting: [{call: GET /me, keep: {merchant: id}}]"
    limiter = KeptKeys()
    client = ProviderClient(
        connector_of(manifest("{requests: 10 per second}", more)),
        StaticCredentials(Credentials({"apiKey": Secret("key-12345")}, connection)),
        http=httpx.AsyncClient(transport=httpx.MockTransport(FakeProvider([reply({})]))),
        limiter=limiter,
        clock=FakeClock(),
        budget=budget,
    )
    await client.check()
    assert limiter.keys == {key}


async def test_an_account_on_hold_for_hours_is_not_called() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    busy = FakeProvider([reply({}, 429, {"Retry-After": "3600"})])
    connector = connector_of(manifest("{requests: 10 per second}"))
    with pytest.raises(RateLimitedError):
        await client_of(connector, busy, limiter=limiter, clock=clock).check()
    other = FakeProvider([])
    with pytest.raises(RateLimitedError) as refused:
        await client_of(connector, other, limiter=limiter, clock=clock).check()
    assert refused.value.retry_after == pytest.approx(3600, abs=1)
    assert other.requests == []


async def test_a_call_that_may_have_been_made_is_not_taken_for_one_that_was_not() -> None:
    clock = FakeClock()
    limiter = LocalRateLimiter(clock)
    connector = connector_of(manifest("{requests: 10 per second}"))

    def answer(request: httpx.Request) -> httpx.Response:
        holding.append(asyncio.ensure_future(limiter.hold("juniper production venue-1", 3600)))
        raise httpx.ReadTimeout("slow")

    holding: list[asyncio.Future[None]] = []
    client = ProviderClient(
        connector,
        StaticCredentials(Credentials({"apiKey": Secret("key-12345")})),
        http=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
        limiter=limiter,
        clock=clock,
        budget="venue-1",
    )
    with pytest.raises(UnavailableError):
        await client.check()
    assert len(holding) == 1
