"""How metrics are counted in a process and written for Prometheus."""

import pytest

from server.telemetry import metrics
from server.telemetry.metrics import Counter, Histogram, State
from server.telemetry.states import render

CALLS = metrics.API_CALLS
TIMES = metrics.SYNC_SECONDS  # 1, 5, 15, 30, 60, 300, 900 and 3600 seconds


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    metrics.drain()


def test_what_happened_is_counted_once() -> None:
    CALLS.add("juniper")
    CALLS.add("juniper")
    CALLS.add("other", by=5)
    assert metrics.drain() == {
        ("integration_api_calls_total", ("juniper",), ""): 2,
        ("integration_api_calls_total", ("other",), ""): 5,
    }
    assert metrics.drain() == {}


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, "1.0"), (1.0, "1.0"), (1.01, "5.0"), (3600.0, "3600.0"), (3601.0, "+Inf")]
)
def test_a_time_is_in_the_first_bucket_that_holds_it(seconds: float, bucket: str) -> None:
    TIMES.observe(seconds, "juniper")
    name = "integration_sync_duration_seconds"
    assert metrics.drain() == {(name, ("juniper",), bucket): 1, (name, ("juniper",), "sum"): seconds}


def test_buckets_are_written_as_prometheus_wants_them() -> None:
    for seconds in (0.5, 0.7, 20, 4000):
        TIMES.observe(seconds, "juniper")
    told = render({}, metrics.drain()).decode().splitlines()
    name = "integration_sync_duration_seconds"
    shown = [line.rpartition(" ")[2] for line in told if line.startswith(f"{name}_bucket")]
    assert shown == ["2.0", "2.0", "2.0", "3.0", "3.0", "3.0", "3.0", "3.0", "4.0"]
    assert f'{name}_sum{{provider="juniper"}} 4021.2' in told
    assert f'{name}_count{{provider="juniper"}} 4.0' in told


def test_labels_are_escaped() -> None:
    CALLS.add('a"b\nc\\d')
    told = render({}, metrics.drain()).decode()
    assert 'integration_api_calls_total{provider="a\\"b\\nc\\\\d"} 1.0' in told


def test_states_are_written_as_they_are() -> None:
    told = render({"integration_outbox_waiting": {(): 3.0}}, {}).decode().splitlines()
    assert "integration_outbox_waiting 3.0" in told
    assert "# TYPE integration_outbox_waiting gauge" in told


def test_the_seven_that_were_asked_for_are_there_with_their_labels() -> None:
    asked = {
        "integration_connections_total": ("provider", "status"),
        "integration_sync_duration_seconds": ("provider",),
        "integration_sync_total": ("provider", "status"),
        "integration_webhook_total": ("provider", "status"),
        "integration_health_status": ("provider", "venue_id"),
        "integration_api_calls_total": ("provider",),
        "integration_queue_depth": ("priority",),
    }
    assert {name: metrics.BY_NAME[name].labels for name in asked} == asked


def test_every_metric_is_listed_once_and_named_as_its_kind_is() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, State | Counter | Histogram)]
    assert sorted(each.name for each in declared) == sorted(each.name for each in metrics.METRICS)
    assert len(metrics.BY_NAME) == len(metrics.METRICS)
    for each in metrics.METRICS:
        match each:
            case Counter():
                assert each.name.endswith("_total")
            case Histogram():
                assert each.name.endswith("_seconds")
                assert list(each.buckets) == sorted(each.buckets)
