"""The rules of health, and how slowly what is better is told."""

import pytest

from server.db.models import HealthStatus, IntegrationStatus
from server.services.conditions import Evidence, Told, diagnose, worse

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.DEGRADED,
    HealthStatus.UNHEALTHY,
    HealthStatus.UNKNOWN,
)


@pytest.mark.parametrize(
    ("evidence", "status", "reason"),
    [
        (Evidence(), UNKNOWN, "nothing_known"),
        (Evidence(syncs=10, successes=10), HEALTHY, "good"),
        (Evidence(checked=True, response_ms=200), HEALTHY, "good"),
        # The rate: from 90 percent on it is healthy, from 50 on degraded.
        (Evidence(syncs=10, successes=9), HEALTHY, "good"),
        (Evidence(syncs=1000, successes=899), DEGRADED, "success_rate"),
        (Evidence(syncs=2, successes=1), DEGRADED, "success_rate"),
        (Evidence(syncs=1000, successes=499), UNHEALTHY, "success_rate"),
        # The time of an answer: more than 5 seconds, more than 10.
        (Evidence(checked=True, response_ms=5_000), HEALTHY, "good"),
        (Evidence(checked=True, response_ms=5_001), DEGRADED, "slow"),
        (Evidence(checked=True, response_ms=10_000), DEGRADED, "slow"),
        (Evidence(checked=True, response_ms=10_001), UNHEALTHY, "slow"),
        # Recent failures, and several in a row.
        (Evidence(syncs=100, successes=99, failures=1), DEGRADED, "recent_failure"),
        (Evidence(syncs=100, successes=99, failures=4), DEGRADED, "recent_failure"),
        (Evidence(syncs=100, successes=99, failures=5), UNHEALTHY, "failing"),
        (Evidence(circuit_failures=4, checked=True), DEGRADED, "recent_failure"),
        (Evidence(circuit_failures=5, circuit_open=True), UNHEALTHY, "circuit_open"),
        # The connection test: one that wasn't answered may have been lost, a refusal is clear.
        (Evidence(checked=True, check_failures=1, check_error="SYNC_FAILED"), DEGRADED, "recent_failure"),
        (Evidence(checked=True, check_failures=2, check_error="SYNC_FAILED"), UNHEALTHY, "not_answering"),
        (
            Evidence(checked=True, check_failures=1, check_error="CONNECTION_TEST_FAILED"),
            UNHEALTHY,
            "refused",
        ),
        (Evidence(syncs=10, successes=10, authorization_ends=True), DEGRADED, "authorization_ends"),
        # One that can't work is what it is, whatever its past.
        (Evidence(status=IntegrationStatus.ERROR, syncs=10, successes=10), UNHEALTHY, "refused"),
        (Evidence(status=IntegrationStatus.SUSPENDED), UNHEALTHY, "suspended"),
        (Evidence(status=IntegrationStatus.DISCONNECTED, failures=9), UNKNOWN, "not_connected"),
        (Evidence(status=IntegrationStatus.CONNECTING, failures=9), UNKNOWN, "not_connected"),
        # The gravest comes first.
        (Evidence(syncs=100, successes=10, circuit_open=True, circuit_failures=7), UNHEALTHY, "circuit_open"),
    ],
)
def test_the_rules(evidence: Evidence, status: HealthStatus, reason: str) -> None:
    verdict = diagnose(evidence)
    assert (verdict.status, verdict.reason) == (status, reason)


@pytest.mark.parametrize(
    ("evidence", "told", "status"),
    [
        (Evidence(syncs=1000, successes=900), HEALTHY, HEALTHY),
        (Evidence(syncs=1000, successes=900), DEGRADED, DEGRADED),
        (Evidence(syncs=1000, successes=920), DEGRADED, HEALTHY),
        (Evidence(syncs=1000, successes=500), UNHEALTHY, UNHEALTHY),
        (Evidence(syncs=1000, successes=520), UNHEALTHY, DEGRADED),
        (Evidence(checked=True, response_ms=4_900), DEGRADED, DEGRADED),
        (Evidence(checked=True, response_ms=4_500), DEGRADED, HEALTHY),
        (Evidence(checked=True, response_ms=9_100), UNHEALTHY, UNHEALTHY),
    ],
)
def test_better_takes_a_margin(evidence: Evidence, told: HealthStatus, status: HealthStatus) -> None:
    assert diagnose(evidence, told).status is status


def test_a_sentence_says_what_was_seen() -> None:
    assert diagnose(Evidence(syncs=4, successes=1)).explanation == "1 of 4 syncs in 24 hours went well"
    open_ = Evidence(circuit_open=True, circuit_failures=6)
    assert diagnose(open_).explanation == "the provider didn't answer 6 times in a row"


def _told(start: HealthStatus, *measures: HealthStatus) -> list[HealthStatus]:
    told, seen = Told(start), []
    for measured in measures:
        told = told.after(measured)
        seen.append(told.status)
    return seen


@pytest.mark.parametrize(
    ("start", "measures", "seen"),
    [
        # Worse at once, better after three measures in a row.
        (HEALTHY, [DEGRADED, HEALTHY, HEALTHY, HEALTHY], [DEGRADED, DEGRADED, DEGRADED, HEALTHY]),
        (HEALTHY, [UNHEALTHY], [UNHEALTHY]),
        (DEGRADED, [HEALTHY, HEALTHY, DEGRADED, HEALTHY, HEALTHY], [DEGRADED] * 5),
        # The worst of the three counts.
        (UNHEALTHY, [HEALTHY, DEGRADED, HEALTHY], [UNHEALTHY, UNHEALTHY, DEGRADED]),
        (UNHEALTHY, [DEGRADED, UNHEALTHY, DEGRADED, DEGRADED, DEGRADED], [UNHEALTHY] * 4 + [DEGRADED]),
        # What isn't known yet, or any more, is told as it is.
        (UNKNOWN, [HEALTHY], [HEALTHY]),
        (UNKNOWN, [DEGRADED, HEALTHY], [DEGRADED, DEGRADED]),
        (UNHEALTHY, [UNKNOWN, HEALTHY], [UNKNOWN, HEALTHY]),
    ],
)
def test_what_is_told(start: HealthStatus, measures: list[HealthStatus], seen: list[HealthStatus]) -> None:
    assert _told(start, *measures) == seen


def test_a_provider_that_fails_now_and_then_does_not_flap() -> None:
    seen = _told(HEALTHY, *([DEGRADED, HEALTHY, HEALTHY] * 20))
    assert set(seen) == {DEGRADED}


def test_the_worse_of_two() -> None:
    assert worse(HEALTHY, UNHEALTHY) is UNHEALTHY
    assert worse(UNKNOWN, HEALTHY) is HEALTHY
    assert worse(DEGRADED, UNKNOWN) is DEGRADED
