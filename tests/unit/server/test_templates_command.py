"""`hub templates` as its user sees it, without stores."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from server.cli import main

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["templates", *arguments])
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def test_templates_are_listed_with_the_one_that_suits() -> None:
    code, shown = run("stripe", "--type", "comedy_club")
    assert code == 0
    assert "comedy-club, over default: Comedy club on Stripe\n  for comedy_club, comedy, cabaret\n" in shown
    assert shown.count("suits:") == 1
    assert "  suits: the venue's type is `comedy_club`\n" in shown


def test_without_a_venue_none_suits() -> None:
    code, shown = run("stripe")
    assert (code, "suits:" in shown) == (0, False)


def test_machines_are_told_the_same() -> None:
    code, shown = run("square", "--name", "Jazz Festival", "--json")
    rows: list[dict[str, Any]] = json.loads(shown)
    assert code == 0
    assert [each["name"] for each in rows] == sorted(each["name"] for each in rows)
    chosen = {each["name"]: each["because"] for each in rows if each["because"]}
    assert chosen == {
        "default": "the venue's name speaks for `festival` (`festival`) as much as for "
        "`music-venue` (`jazz`), so it is the default"
    }
    assert "usageCount" not in rows[0]


def test_an_unknown_provider_is_told_the_nearest() -> None:
    code, shown = run("strip")
    assert code == 1
    assert "did you mean `stripe`" in shown


def test_use_is_counted_in_a_database() -> None:
    code, shown = run("stripe", "--usage")
    assert code == 2
    assert "DATABASE_URL" in shown
