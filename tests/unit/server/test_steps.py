"""Which steps of a run overlap, and what becomes of the others when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.errors import (
    AuthenticationError,
    HubError,
    LeaseLostError,
    ProviderError,
    RateLimitedError,
    StoppedError,
    UnavailableError,
)
from engine.expressions import Path
from engine.mapping import LinkRule, ListRule, Mapping
from engine.ports import Direction
from server.services.steps import Step, rests_on, work_steps


def _step(direction: Direction, entity: str, resource: str, *links: str, items: str | None = None) -> Step:
    rules = tuple(LinkRule(f"{link}_id", Path.parse(link), link) for link in links)
    lists = (ListRule(Path.parse("parts"), items),) if items else ()
    return Step(direction, Mapping(entity, resource, direction, link_rules=rules, list_rules=lists))


PULL_CUSTOMER = _step("pull", "customer", "customer")
PULL_ITEM = _step("pull", "event", "item")
PULL_ORDER = _step("pull", "order", "order", "customer")
PUSH_CUSTOMER = _step("push", "customer", "customer")
PUSH_PRODUCT = _step("push", "event", "product")
PUSH_CARD = _step("push", "loyalty", "card")
PUSH_PRICE = _step("push", "event", "price", "product")
PUSH_ITEM = _step("push", "event", "item", items="part")
PUSH_COUNT = _step("push", "ticket_type", "count", "part")


@dataclass
class Work:
    """Steps take a few turns of the loop; keeps what began when what else was running."""

    failing: dict[Step, BaseException] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    running: set[Step] = field(default_factory=set)
    beside: dict[Step, set[Step]] = field(default_factory=dict)

    async def __call__(self, step: Step) -> None:
        self.log.append(f"{step.direction} {step.mapping.resource}")
        self.beside[step] = set(self.running)
        for other in self.running:
            self.beside[other].add(step)
        self.running.add(step)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            if step in self.failing:
                raise self.failing[step]
        finally:
            self.running.discard(step)


@pytest.mark.parametrize(
    ("step", "earlier", "rests"),
    [
        (PULL_ITEM, PULL_CUSTOMER, False),
        (PULL_ORDER, PULL_CUSTOMER, True),  # an order names its customer
        (PULL_CUSTOMER, PULL_ORDER, True),  # and in this order the orders come first, as the template says
        (PUSH_PRICE, PUSH_PRODUCT, True),
        (PUSH_CUSTOMER, PUSH_PRODUCT, False),
        (PUSH_COUNT, PUSH_ITEM, True),  # it counts the parts of the items
        (PUSH_COUNT, PUSH_PRODUCT, False),
        (PUSH_CUSTOMER, PULL_CUSTOMER, True),
        (_step("push", "ticket_type", "item"), _step("push", "event", "item"), True),  # the same records
        (_step("pull", "event", "price"), PULL_ITEM, True),  # both write events
        (_step("push", "event", "poster"), PUSH_PRODUCT, False),  # both only read them
    ],
)
def test_what_a_step_rests_on(step: Step, earlier: Step, rests: bool) -> None:
    assert rests_on(step, earlier) is rests


async def test_steps_overlap_where_they_can() -> None:
    work = Work()
    assert await work_steps([PUSH_PRODUCT, PUSH_PRICE, PUSH_CUSTOMER], work) == {}
    assert work.log == ["push product", "push customer", "push price"]
    assert work.beside[PUSH_PRODUCT] == {PUSH_CUSTOMER}
    assert PUSH_PRODUCT not in work.beside[PUSH_PRICE]


async def test_pushes_wait_for_every_pull() -> None:
    work = Work()
    await work_steps([PULL_CUSTOMER, PULL_ORDER, PUSH_PRODUCT], work)
    assert work.log == ["pull customer", "pull order", "push product"]
    assert work.beside[PUSH_PRODUCT] == set()


async def test_no_more_run_at_once_than_said() -> None:
    steps = [_step("pull", f"entity {number}", f"resource {number}") for number in range(7)]
    most = 0
    running = 0

    async def count(step: Step) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await work_steps(steps, count, at_once=3)
    assert most == 3


async def test_a_step_that_fails_holds_up_only_what_rests_on_it() -> None:
    error = ProviderError("no permission")
    work = Work({PULL_CUSTOMER: error})
    errors = await work_steps([PULL_CUSTOMER, PULL_ITEM, PULL_ORDER, PUSH_CUSTOMER, PUSH_PRODUCT], work)
    assert errors == {PULL_CUSTOMER.key: error}
    assert work.log == ["pull customer", "pull item", "push product"]


@pytest.mark.parametrize(
    "error",
    [AuthenticationError("revoked"), RateLimitedError("come back in an hour"), StoppedError("stopped")],
)
async def test_what_concerns_the_whole_run_lets_no_other_step_begin(error: HubError) -> None:
    work = Work({PULL_CUSTOMER: error})
    errors = await work_steps([PULL_CUSTOMER, PULL_ITEM, PUSH_PRODUCT], work)
    assert errors == {PULL_CUSTOMER.key: error}
    assert work.log == ["pull customer", "pull item"]  # what had begun came to its end


async def test_the_gravest_error_comes_first() -> None:
    failing: dict[Step, BaseException] = {
        PULL_CUSTOMER: ProviderError("no permission"),
        PULL_ITEM: UnavailableError("down"),
        PUSH_CARD: StoppedError("stopped"),
    }
    errors = await work_steps([PULL_CUSTOMER, PULL_ITEM, PUSH_CARD], Work(failing))
    assert [type(error) for error in errors.values()] == [StoppedError, UnavailableError, ProviderError]


@pytest.mark.parametrize("error", [LeaseLostError("taken over"), KeyError("id")])
async def test_a_lost_lease_or_a_fault_of_ours_ends_all_at_once(error: BaseException) -> None:
    ended: list[str] = []

    async def work(step: Step) -> None:
        if step is PULL_CUSTOMER:
            raise error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(step.mapping.resource)
            raise

    steps: Sequence[Step] = [PULL_ITEM, PULL_CUSTOMER, PULL_ORDER, PUSH_PRODUCT]
    with pytest.raises(type(error)):
        await asyncio.wait_for(work_steps(steps, work), 5)
    assert ended == ["item"]


async def test_cancelling_a_run_cancels_its_steps() -> None:
    ended: list[str] = []

    async def work(step: Step) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(step.mapping.resource)

    running = asyncio.create_task(work_steps([PULL_CUSTOMER, PULL_ITEM, PULL_ORDER], work))
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(ended) == ["customer", "item"]
