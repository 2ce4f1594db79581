"""Deliveries go on being stored, and workers being told, whatever happened to those before."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from structlog.testing import capture_logs

from engine.deliveries import Delivery
from engine.errors import MalformedDeliveryError
from server import intake
from server.errors import QueueFullError, StoreUnavailableError
from server.intake import Intake
from server.services import webhooks
from server.services.operations import Due
from server.services.webhooks import Arrival, Stored

VENUE = UUID(int=1)
SECONDS = 5.0  # more than any of this takes


def arrival(scheme: str) -> Arrival:
    """Return a delivery, told from others by its scheme."""
    return Arrival("juniper", VENUE, scheme, Delivery("POST", "https://hub.test", {}, b""), [], None)


def due(number: int) -> Due:
    return Due(UUID(int=number), VENUE, "juniper", "critical", 0.0)


class Store:
    """Stores what it is given; `faults` by scheme are raised for a transaction that holds such a delivery."""

    def __init__(self, faults: dict[str, Exception]) -> None:
        self.faults = faults
        self.stored: list[str] = []
        self.full: set[str] = set()

    async def __call__(self, _: Any, arrivals: Sequence[Arrival], depth: int) -> Stored:
        for each in arrivals:
            if each.scheme in self.faults:
                raise self.faults[each.scheme]
        first = len(self.stored) + 1
        self.stored += [each.scheme for each in arrivals]
        refused = [place for place, each in enumerate(arrivals) if each.scheme in self.full]
        return Stored([due(first + n) for n in range(len(arrivals))], len(arrivals), refused=refused)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store({})
    monkeypatch.setattr(webhooks, "store", store)
    return store


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The operations that workers were told of."""
    numbers: list[int] = []

    async def announce(_: Any, found: Sequence[Due]) -> bool:
        numbers.extend(each.id.int for each in found)
        return True

    monkeypatch.setattr(intake, "announce", announce)
    return numbers


def taking() -> Intake:
    return Intake(cast(Any, None), cast(Any, None))


async def outcomes(taking: Intake, *schemes: str) -> list[type]:
    given = (taking.accept(arrival(scheme), SECONDS) for scheme in schemes)
    return [type(each) for each in await asyncio.gather(*given, return_exceptions=True)]


@pytest.mark.parametrize("fault", [TypeError("Ada"), KeyError("Ada"), RuntimeError("Ada")])
async def test_an_exception_nobody_thought_of_ends_nothing(
    store: Store, told: list[int], fault: Exception
) -> None:
    store.faults["bad"] = fault
    async with taking() as running:
        with capture_logs() as logs:
            assert await outcomes(running, "bad") == [StoreUnavailableError]
        assert await outcomes(running, "good") == [type(None)]
    assert (store.stored, told) == (["good"], [1])
    [said] = [each for each in logs if each["event"] == "webhooks.not_stored"]
    # The exception itself is given to the logs, which write its type and place, and no text of it.
    assert (said["log_level"], said["exc_info"]) == ("error", fault)
    assert "Ada" not in str({name: value for name, value in said.items() if name != "exc_info"})


async def test_it_is_answered_to_those_alone_whose_delivery_it_is_of(store: Store, told: list[int]) -> None:
    store.faults["bad"] = TypeError()
    async with taking() as running:
        found = await outcomes(running, "one", "bad", "two")
    assert found == [type(None), StoreUnavailableError, type(None)]
    assert (store.stored, sorted(told)) == (["one", "two"], [1, 2])


async def test_what_is_known_is_answered_for_what_it_is(store: Store, told: list[int]) -> None:
    store.faults |= {
        "away": StoreUnavailableError("away"),
        "NUL": asyncpg.UntranslatableCharacterError("no such text"),
    }
    store.full.add("full")
    async with taking() as running:
        for scheme, error in (
            ("away", StoreUnavailableError),
            ("NUL", MalformedDeliveryError),
            ("full", QueueFullError),
        ):
            assert await outcomes(running, scheme) == [error]
        assert await outcomes(running, "good") == [type(None)]


async def test_workers_are_told_again_after_telling_them_went_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    async def announce(_: Any, found: Sequence[Due]) -> bool:
        if found[0].id.int == 1:
            raise TypeError
        told.extend(each.id.int for each in found)
        return True

    monkeypatch.setattr(intake, "announce", announce)
    async with taking() as running:
        with capture_logs() as logs:
            assert await outcomes(running, "first") == [type(None)]
            if running._telling is not None:
                await running._telling
            assert running._telling is None
        assert await outcomes(running, "second") == [type(None)]
    assert told == [2]
    assert [each["event"] for each in logs] == ["webhooks.not_told"]


async def test_enough_that_wait_begin_beside_a_transaction_and_fewer_don_t(
    monkeypatch: pytest.MonkeyPatch, told: list[int]
) -> None:
    batches: list[int] = []
    go_on = asyncio.Event()

    async def store(_: Any, arrivals: Sequence[Arrival], depth: int) -> Stored:
        batches.append(len(arrivals))
        await go_on.wait()
        return Stored([], len(arrivals))

    monkeypatch.setattr(webhooks, "store", store)
    async with taking() as running, asyncio.TaskGroup() as group:

        async def more(count: int) -> None:
            for _ in range(count):
                group.create_task(running.accept(arrival("good"), SECONDS))
            for _ in range(5):  # turns of the loop
                await asyncio.sleep(0)

        await more(3)
        await more(intake.ENOUGH - 1)
        assert batches == [3]
        await more(1)
        assert batches == [3, intake.ENOUGH]
        await more(2 * intake.ENOUGH)
        assert batches == [3, intake.ENOUGH]  # no more than two at a time
        go_on.set()
    assert batches == [3, intake.ENOUGH, 2 * intake.ENOUGH]


async def test_whoever_waits_too_long_is_told_to_send_it_again(
    monkeypatch: pytest.MonkeyPatch, told: list[int]
) -> None:
    go_on = asyncio.Event()

    async def store(_: Any, arrivals: Sequence[Arrival], depth: int) -> Stored:
        await go_on.wait()
        return Stored([], len(arrivals))

    monkeypatch.setattr(webhooks, "store", store)
    monkeypatch.setattr(intake, "LOOK_SECONDS", 0.001)
    async with taking() as running:
        patient = asyncio.create_task(running.accept(arrival("patient"), SECONDS))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError):
            await running.accept(arrival("late"), 0)
        assert not patient.done()
        go_on.set()
        await patient
