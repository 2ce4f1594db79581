"""Percentiles from counts by class, and where periods begin."""

from datetime import UTC, datetime

import pytest

from server.services.rollups import CLASSES, percentile, period_since


def _counts(**given: int) -> list[int]:
    counts = [0] * (len(CLASSES) + 1)
    for name, count in given.items():
        counts[int(name.removeprefix("c"))] = count
    return counts


@pytest.mark.parametrize(
    ("counts", "share", "duration"),
    [
        (_counts(), 0.5, None),
        (_counts(c0=1), 1.0, 250),  # of one below 250 ms it is known that it took no longer
        (_counts(c2=10), 0.5, 750),  # in the middle of 500 to 1000
        (_counts(c0=50, c4=50), 0.5, 250),
        (_counts(c0=50, c4=50), 0.75, 3500),  # in the middle of 2000 to 5000
        (_counts(c0=90, c12=10), 0.95, 3_600_000),  # longer than any bound
    ],
)
def test_percentiles(counts: list[int], share: float, duration: int | None) -> None:
    assert percentile(counts, share) == duration


@pytest.mark.parametrize(
    ("period", "width", "since"),
    [
        ("24h", "hour", datetime(2026, 3, 9, 15, tzinfo=UTC)),
        ("7d", "day", datetime(2026, 3, 4, tzinfo=UTC)),
        ("30d", "day", datetime(2026, 2, 9, tzinfo=UTC)),
    ],
)
def test_a_period_ends_with_the_bucket_that_has_begun(period: str, width: str, since: datetime) -> None:
    now = datetime(2026, 3, 10, 14, 35, 7, tzinfo=UTC)
    assert period_since(period, now) == {"width": width, "since": since}
