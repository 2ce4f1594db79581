"""What a process opens, as its settings say. No store is connected to."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from server import context
from server.db.engine import create_engine
from server.settings import read_settings
from tests.unit.server.test_settings import PRODUCTION


@pytest.mark.parametrize(("pooler", "given"), [("true", 0), ("false", None)])
async def test_behind_a_pooler_no_statement_is_prepared_ahead(
    pooler: str, given: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []

    def note(url: str, **options: Any) -> Any:
        opened.append(options)
        return create_engine(url, **options)

    monkeypatch.setattr(context, "create_engine", note)
    platform = "postgresql://hub@platform.example/platform"
    settings = read_settings({**PRODUCTION, "HUB_DATABASE_POOLER": pooler, "PLATFORM_DATABASE_URL": platform})
    async with context.open_context(settings, connections=7):
        pass

    assert [options.get("statement_cache_size") for options in opened] == [given, given]
    assert [options["pool_size"] for options in opened] == [7, 7]


@pytest.fixture
def every_level() -> Iterator[None]:
    """Log everything, whatever an earlier test's application was told."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


async def test_what_has_no_effect_is_logged_at_the_start(every_level: None) -> None:
    settings = read_settings({**PRODUCTION, "HUB_RETENTION_DAY": "7"})
    with capture_logs() as logs:
        async with context.open_context(settings):
            pass

    [said] = [line for line in logs if line["event"] == "settings.without_effect"]
    assert said["remark"] == "nothing reads HUB_RETENTION_DAY: did you mean `HUB_RETENTION_DAYS`?"
