"""Work the steps of a run at the same time, as far as they have nothing to do with each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from engine.errors import AuthenticationError, HubError, LeaseLostError, RateLimitedError, StoppedError
from engine.mapping import Mapping
from engine.ports import Direction

StepKey = tuple[str, str, Direction]

AT_ONCE = 4  # steps of one run
# After one of these no other step begins: it would fare the same. The earlier in the list, the graver.
_END_THE_RUN = (LeaseLostError, StoppedError, AuthenticationError, RateLimitedError)


class Step(NamedTuple):
    """One direction of one mapping."""

    direction: Direction
    mapping: Mapping

    @property
    def key(self) -> StepKey:
        return (self.mapping.entity, self.mapping.resource, self.direction)


def rests_on(step: Step, earlier: Step) -> bool:
    """Say whether a step needs what an earlier one does.

    It does when they work on the same records, on the platform's side if they write there, or when records of
    one refer to records of the other.
    """
    one, other = step.mapping, earlier.mapping
    writes_here = "pull" in (step.direction, earlier.direction)
    return bool(
        (writes_here and one.entity == other.entity)
        or one.linked_resources & (other.linked_resources | other.referred_resources)
        or one.referred_resources & other.linked_resources
    )


async def work_steps(
    steps: Sequence[Step], work: Callable[[Step], Awaitable[None]], *, at_once: int = AT_ONCE
) -> dict[StepKey, HubError]:
    """Work all steps and return what stopped those that came to no end of their own, the gravest first.

    A step begins when those before it that it rests on are done; a push also waits for every pull to end. One
    that fails holds up only what rests on it, unless its error concerns the whole run. Steps that never began
    aren't in the answer. Anything but a HubError ends all of them at once and is raised.
    """
    ended = [asyncio.Event() for _ in steps]
    done: set[int] = set()
    errors: dict[StepKey, HubError] = {}
    free = asyncio.Semaphore(at_once)

    async def run(number: int, step: Step) -> None:
        needed = [before for before in range(number) if rests_on(step, steps[before])]
        try:
            for before in range(number):
                if before in needed or steps[before].direction != step.direction:
                    await ended[before].wait()
            async with free:
                over = any(isinstance(error, _END_THE_RUN) for error in errors.values())
                if over or not done.issuperset(needed):
                    return
                await work(step)
            done.add(number)
        except HubError as error:
            errors[step.key] = error
            if isinstance(error, LeaseLostError):  # another worker is at it already
                raise
        finally:
            ended[number].set()

    tasks = [asyncio.create_task(run(number, step)) for number, step in enumerate(steps)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return dict(sorted(errors.items(), key=lambda each: _gravity(each[1])))


def _gravity(error: HubError) -> int:
    """Order errors by what a run should end with; of the others, one that may be over next time."""
    for place, kind in enumerate(_END_THE_RUN):
        if isinstance(error, kind):
            return place
    return len(_END_THE_RUN) + (not error.retryable)
