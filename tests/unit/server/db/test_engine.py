"""Any form of PostgreSQL address an operator writes is understood; others are refused by name."""

import pytest

from server.db.engine import async_url, create_engine


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@db:5433/hub", "postgresql+asyncpg://u:p@db:5433/hub"),
        ("postgresql://u:p%40ss@db/hub", "postgresql+asyncpg://u:p%40ss@db/hub"),
        ("postgresql+asyncpg://u@db/hub", "postgresql+asyncpg://u@db/hub"),
        ("postgresql+psycopg://u@db/hub", "postgresql+asyncpg://u@db/hub"),
        ("postgres://u@db/hub?sslmode=require", "postgresql+asyncpg://u@db/hub?ssl=require"),
    ],
)
def test_an_address_is_brought_into_one_form(given: str, used: str) -> None:
    assert async_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize("given", ["mysql://u:secret@db/hub", "sqlite:///hub.db"])
def test_another_database_is_refused_without_showing_the_password(given: str) -> None:
    with pytest.raises(ValueError, match="must start with `postgresql://`") as caught:
        async_url(given)
    assert "secret" not in str(caught.value)


def test_an_engine_opens_nothing_until_it_is_used() -> None:
    engine = create_engine("postgresql://u:secret@nowhere.invalid/hub")
    assert engine.pool.status().startswith("Pool size: 10")
    assert "secret" not in repr(engine)
