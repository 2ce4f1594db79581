"""What a run plans and how it counts, without stores."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from engine.errors import HubError
from engine.mapping import Mapping
from engine.ports import RecordFailure
from engine.sync import Period, Tally
from server.db.models import OperationType, Priority
from server.services import operations
from server.services.operations import Claim
from server.services.runs import Run, period_of, plan_steps, require_success, sync_interval
from server.services.steps import Step, StepKey

PUSH: StepKey = ("event", "item", "push")


@dataclass(frozen=True)
class FakeMapping:
    entity: str
    resource: str
    direction: str


def _mapping(entity: str, resource: str, direction: str) -> Mapping:
    return cast(Mapping, FakeMapping(entity, resource, direction))


MAPPINGS = [
    _mapping("event", "item", "push"),
    _mapping("customer", "customer", "bidirectional"),
    _mapping("order", "order", "pull"),
]


def _run(progress: dict[str, Any] | None = None) -> Run:
    return Run(
        Claim(
            operation_id=UUID(int=1),
            venue_id=UUID(int=2),
            provider="juniper",
            operation_type=OperationType.SYNC,
            entity_type="full",
            entity_id=None,
            payload={},
            priority=Priority.NORMAL,
            attempts=1,
            max_attempts=10,
            run_id=None,
            correlation_id=None,
            progress=progress,
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            owner="w",
            fencing_token=1,
            lease=timedelta(seconds=15),
        )
    )


def _planned(sync_direction: str, entities: frozenset[str] | None) -> list[str]:
    steps = plan_steps(MAPPINGS, sync_direction, entities)
    return [f"{step.direction} {step.mapping.resource}" for step in steps]


@pytest.mark.parametrize(
    ("sync_direction", "entities", "expected"),
    [
        ("bidirectional", None, ["pull customer", "pull order", "push item", "push customer"]),
        ("pull", None, ["pull customer", "pull order"]),
        ("push", None, ["push item", "push customer"]),
        ("bidirectional", frozenset({"customer"}), ["pull customer", "push customer"]),
        ("push", frozenset({"order"}), []),
    ],
)
def test_pulls_come_before_pushes_in_the_order_of_the_template(
    sync_direction: str, entities: frozenset[str] | None, expected: list[str]
) -> None:
    assert _planned(sync_direction, entities) == expected


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(HubError, match="`sideways` isn't a sync direction"):
        _planned("sideways", None)


def test_a_growing_tally_counts_once() -> None:
    run = _run()
    run.plan([Step("push", MAPPINGS[0])])
    count = run.counting(PUSH)
    tally = Tally("event", "item", "push")
    for read in (100, 200):
        tally.read, tally.seconds = read, read / 100
        count(tally)
    assert (run.steps[PUSH].counts["read"], run.steps[PUSH].duration_ms) == (200, 2000)


def test_a_second_call_of_a_step_counts_on() -> None:
    run = _run()
    run.plan([Step("push", MAPPINGS[0])])
    failure = RecordFailure("event", "item", "push", "e1", "SYNC_FAILED", "refused", retryable=True)
    run.counting(PUSH)(Tally("event", "item", "push", read=5, failed=1, failures=[failure]))
    run.counting(PUSH)(Tally("event", "item", "push", read=1, updated=1))
    assert run.steps[PUSH].counts["read"] == 6
    assert run.result()["failures"] == [
        {
            "entity": "event",
            "resource": "item",
            "direction": "push",
            "record_id": "e1",
            "code": "SYNC_FAILED",
            "message": "refused",
            "retryable": True,
            "field": None,
        }
    ]


def test_an_attempt_counts_on_from_what_earlier_ones_left() -> None:
    first = _run()
    first.plan([Step("push", MAPPINGS[0])])
    first.counting(PUSH)(Tally("event", "item", "push", read=5, created=5, seconds=1))
    first.steps[PUSH].done = True
    second = _run(first.progress())
    second.plan([Step("pull", MAPPINGS[2]), Step("push", MAPPINGS[0])])
    assert not second.steps[PUSH].done
    second.counting(PUSH)(Tally("event", "item", "push", read=5, unchanged=5, seconds=1))
    assert list(second.steps) == [("order", "order", "pull"), PUSH]
    counts = second.steps[PUSH].counts
    assert (counts["read"], counts["created"], counts["unchanged"]) == (10, 5, 5)
    assert second.steps[PUSH].duration_ms == 2000


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([{"read": 5}], None),
        ([{"read": 2, "failed": 1, "unchanged": 1}], None),
        ([{"failed": 3}, {"updated": 1}], None),
        ([{"failed": 1, "archived": 1}], None),
        ([{"read": 1, "failed": 1, "skipped": 4}], "the only record failed: refused"),
        ([{"failed": 1}, {"read": 2, "failed": 2}], "each of 3 records failed: refused"),
    ],
)
def test_a_run_failed_when_all_it_had_to_do_failed(counts: list[dict[str, int]], message: str | None) -> None:
    run = _run()
    run.plan([Step("push", mapping) for mapping in MAPPINGS[: len(counts)]])
    for key, given in zip(list(run.steps), counts, strict=True):
        failure = RecordFailure(*key, "e1", "SYNC_FAILED", "refused", retryable=True)
        failures = [failure] if "failed" in given else []
        run.counting(key)(Tally(*key, failures=failures, **cast(dict[str, Any], given)))
    if message is None:
        require_success(run)
        return
    with pytest.raises(HubError) as told:
        require_success(run)
    assert (told.value.message, told.value.code, told.value.retryable) == (message, "SYNC_FAILED", False)


def test_dates_are_whole_days() -> None:
    first, after = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    assert period_of({"startDate": "2026-01-01", "endDate": "2026-01-31"}) == Period(first, after)
    assert period_of({"startDate": "2026-01-01"}) == Period(first, None)
    assert period_of({"endDate": "2026-01-31"}) == Period(None, after)
    assert period_of({"complete": True}) is None


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        ({}, None),
        ({"syncEnabled": False, "syncInterval": 600}, None),
        ({"syncEnabled": True, "syncInterval": 600}, 600),
        ({"syncEnabled": True}, 300),
        ({"syncEnabled": True, "syncInterval": 1}, 60),
    ],
)
def test_the_time_between_scheduled_syncs(config: dict[str, Any], seconds: int | None) -> None:
    interval = sync_interval(config)
    assert interval == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("attempts", "longest"), [(1, 2), (2, 4), (5, 32), (11, 2048), (12, 3600), (1000, 3600)]
)
def test_a_retry_waits_a_random_time_up_to_a_bound(attempts: int, longest: int) -> None:
    assert operations.retry_wait(attempts, lambda: 0.0) == timedelta(0)
    assert operations.retry_wait(attempts, lambda: 0.25) == timedelta(seconds=longest / 4)
