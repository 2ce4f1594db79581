"""When an account is looked at again."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from server.db.models import IntegrationConfig
from server.services.lookups import is_due

NOON = datetime(2026, 5, 2, 12, tzinfo=UTC)
YESTERDAY, MIDNIGHT = NOON - timedelta(days=1), datetime(2026, 5, 2, tzinfo=UTC)
IN_AUCKLAND = datetime(2026, 5, 2, 11, 59, tzinfo=timezone(timedelta(hours=12)))  # still the first in UTC


@pytest.mark.parametrize(
    ("connected", "synced", "due"),
    [
        (None, None, True),
        (YESTERDAY, None, True),
        (YESTERDAY, YESTERDAY, True),
        (YESTERDAY, MIDNIGHT, False),
        (MIDNIGHT, YESTERDAY, False),
        (IN_AUCKLAND, None, True),
    ],
)
def test_once_a_day(connected: datetime | None, synced: datetime | None, due: bool) -> None:
    assert is_due(IntegrationConfig(connected_at=connected, last_sync_at=synced), NOON) is due
