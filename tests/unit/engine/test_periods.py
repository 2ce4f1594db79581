"""A sync of what changed within a period: nothing else is looked at, and the next one goes on as ever."""

from datetime import UTC, datetime
from typing import Any

import pytest

from engine.sides import Period
from engine.sync import Sync
from tests.unit.engine.test_sync import World, row

JANUARY = Period(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
SINCE = Period(since=datetime(2026, 1, 1, tzinfo=UTC))


def sync(world: World, period: Period) -> Sync:
    built = world.build()
    return Sync(
        world.connector,
        world.mapping,
        built.sides.client,
        world.host,
        world.state,
        venue=world.host.venue_record,
        clock=built.sides.clock,
        fields=built.fields,
        period=period,
    )


def theirs(name: str, changed_at: str | None) -> Any:
    return row({"id": name, "full_name": name, "mail": f"{name}@example.com", "tel": None}, changed_at)


@pytest.mark.parametrize(
    ("changed_at", "within"),
    [
        ("2025-12-31T23:59:59Z", False),
        ("2026-01-01T00:00:00Z", True),
        ("2026-02-01T00:59:59+01:00", True),
        ("2026-02-01T00:00:00Z", False),
        (None, True),  # it can't be told, so it is looked at
    ],
)
def test_what_is_within(changed_at: str | None, within: bool) -> None:
    assert JANUARY.holds(changed_at) is within


async def test_a_pull_takes_what_changed_within_and_moves_no_watermark() -> None:
    world = World()
    await world.pull()
    before = dict(world.state.positions)
    world.provider.feed = [
        [theirs("old", "2025-12-31T10:00:00Z"), theirs("mid", "2026-01-10T10:00:00Z")],
        [theirs("new", "2026-02-10T10:00:00Z")],
    ]
    tally = await sync(world, JANUARY).pull()
    assert (tally.read, tally.created) == (1, 1)
    assert [each["name"] for each in world.host.records["customer"].values()] == ["mid"]
    assert world.provider.reads[-1] == (JANUARY.since, None)
    assert world.state.positions == before


async def test_a_pull_that_waits_to_go_on_is_left_where_it_is() -> None:
    world = World()
    place = {"since": "2025-06-01T00:00:00Z", "walk": {"started": "x", "resume": {"page": 3}, "gone": {}}}
    world.state.positions[("customer", "customer", "pull")] = place
    await sync(world, SINCE).pull()
    assert world.provider.reads == [(SINCE.since, None)]
    assert world.state.positions[("customer", "customer", "pull")] == place


async def test_an_older_state_of_what_changed_after_the_period_is_no_news() -> None:
    """A feed, newest first, tells of each change: what was within the period is not how the record is now."""
    world = World(feed=True)
    world.provider.feed = [
        [theirs("ada", "2026-02-10T10:00:00Z")],
        [theirs("bob", "2026-01-20T10:00:00Z")],
        [theirs("ada", "2026-01-10T10:00:00Z")],
    ]
    tally = await sync(world, JANUARY).pull()
    assert (tally.read, [each["name"] for each in world.host.records["customer"].values()]) == (1, ["bob"])


async def test_a_push_sends_what_changed_within_and_moves_no_watermark() -> None:
    world = World()
    world.put("old", changed_at="2025-12-31T10:00:00Z")
    world.put("mid", changed_at="2026-01-10T10:00:00Z")
    world.put("new", changed_at="2026-02-10T10:00:00Z")
    tally = await sync(world, JANUARY).push()
    assert (tally.read, tally.created, world.held()) == (1, 1, ["Mid"])
    assert world.state.positions == {}
    await world.push()
    assert world.held() == ["Mid", "New", "Old"]


async def test_of_a_period_nothing_follows_for_what_was_not_read() -> None:
    world = World("ada")
    await world.push()
    await world.pull()
    world.provider.records.clear()
    tally = await sync(world, SINCE).pull()
    assert (tally.deleted, {link.state for link in world.state.links.values()}) == (0, {"linked"})
