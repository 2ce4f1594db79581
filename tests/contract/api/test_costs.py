"""What integrations used and what that costs, over the API: by administrators, and by a venue for its own."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from server.metering import Usage, add
from server.services import costs
from server.settings import Settings
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, Hub, bearer

COSTS = f"{API}/admin/costs"
PRICES = """
prices: 1
default: {currency: USD, calls: "0.01"}
providers:
  square: {currency: EUR, calls: "0.0025"}
"""
JANUARY, MARCH = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 3, 31, 23, 59, tzinfo=UTC)


@pytest.fixture(scope="module")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    file = tmp_path_factory.mktemp("prices") / "prices.yaml"
    file.write_text(PRICES)
    return replace(settings, prices=file)


@pytest.fixture
async def hub(hub: Hub) -> Hub:
    for venue in (OURS, OTHERS):
        for provider in ("mailchimp", "square", "stripe"):
            await hub.execute(
                "INSERT INTO integration_configs (venue_id, integration_type, status, config) "
                "VALUES (:venue, :provider, 'connected', '{}')",
                venue=venue,
                provider=provider,
            )
    await hub.execute("TRUNCATE integration_costs")
    return hub


async def used(hub: Hub, provider: str, at: datetime, *numbers: int, venue: UUID = OURS) -> None:
    """Let so many calls be made, so many bytes sent and so many received."""
    async with hub.context.sessions.begin() as session:
        await add(session, venue, provider, Usage(*numbers), at=at)


async def ask(hub: Hub, **params: Any) -> httpx.Response:
    return await hub.get(COSTS, params=params, headers=bearer("admin", None))


async def data(hub: Hub, **params: Any) -> dict[str, Any]:
    answer = await ask(hub, **params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


async def close(hub: Hub, now: datetime) -> None:
    async with hub.context.sessions.begin() as session:
        await costs.close_months(session, hub.context.catalog, now=now)


async def test_the_report(hub: Hub) -> None:
    await used(hub, "square", JANUARY, 10_000, 500_000, 50_000_000)
    await used(hub, "square", datetime(2026, 2, 1, tzinfo=UTC), 4, 4_999, 0)
    await used(hub, "square", JANUARY, 400, venue=OTHERS)
    await used(hub, "square", MARCH, 1_000_000)
    answer = await ask(hub, startDate="2026-01-01", endDate="2026-02-28")
    assert answer.json() == {
        "success": True,
        "data": {
            "costs": [
                {
                    "venue_id": str(OURS),
                    "integration_type": "square",
                    "total_api_calls": 10_004,
                    "total_data_mb": 50.50,  # 50.504999
                    "total_cost": 25.01,
                    "currency": "EUR",
                    "forecast": None,
                },
                {
                    "venue_id": str(OTHERS),
                    "integration_type": "square",
                    "total_api_calls": 400,
                    "total_data_mb": 0.0,
                    "total_cost": 1.0,
                    "currency": "EUR",
                    "forecast": None,
                },
            ],
            "total": 26.01,
            "totals": [
                {
                    "currency": "EUR",
                    "total_api_calls": 10_404,
                    "total_data_mb": 50.50,
                    "total_cost": 26.01,
                    "forecast": None,
                }
            ],
            "period_start": "2026-01-01",
            "period_end": "2026-02-28",
        },
        "meta": {"total": 2, "limit": 50, "offset": 0, "next_cursor": None},
    }


async def test_several_currencies_have_no_one_total(hub: Hub) -> None:
    await used(hub, "square", JANUARY, 400)
    await used(hub, "mailchimp", JANUARY, 300)
    found = await data(hub, startDate="2026-01-01", endDate="2026-01-01")
    assert found["total"] is None
    assert [(each["currency"], each["total_cost"]) for each in found["totals"]] == [
        ("EUR", 1.0),
        ("USD", 3.0),
    ]


async def test_filters_and_pages(hub: Hub) -> None:
    for provider in ("mailchimp", "square", "stripe"):
        for venue in (OURS, OTHERS):
            await used(hub, provider, JANUARY, 100, venue=venue)
    period = {"startDate": "2026-01-01", "endDate": "2026-01-31"}
    everything = (await data(hub, **period))["costs"]
    assert [(row["venue_id"], row["integration_type"]) for row in everything] == [
        (str(venue), provider) for venue in (OURS, OTHERS) for provider in ("mailchimp", "square", "stripe")
    ]
    first = (await ask(hub, **period, limit=4)).json()
    second = (await ask(hub, **period, limit=4, cursor=first["meta"]["next_cursor"])).json()
    assert first["data"]["costs"] + second["data"]["costs"] == everything
    assert (first["meta"]["total"], second["meta"]["next_cursor"]) == (6, None)
    assert first["data"]["totals"] == second["data"]["totals"]  # of all pages
    assert (await data(hub, **period, offset=5))["costs"] == everything[5:]
    assert (await data(hub, **period, venueId=str(OTHERS)))["costs"] == everything[3:]
    stripe = await data(hub, **period, provider="stripe", venueId=str(OURS))
    assert stripe["costs"] == [everything[2]]
    assert stripe["totals"][0]["total_api_calls"] == 100
    assert await data(hub, **period, venueId=str(NOWHERE)) == {
        "costs": [],
        "total": 0.0,
        "totals": [],
        "period_start": "2026-01-01",
        "period_end": "2026-01-31",
    }


async def test_what_cant_be_asked(hub: Hub) -> None:
    wrong: tuple[tuple[Mapping[str, str], str], ...] = (
        ({"startDate": "2026-02-30"}, "startDate"),
        ({"endDate": "yesterday"}, "endDate"),
        ({"startDate": "2026-02-01", "endDate": "2026-01-31"}, "endDate"),
        ({"startDate": "0001-01-01"}, "startDate"),
        ({"endDate": "9999-12-31"}, "endDate"),
        ({"venueId": "1; DROP TABLE"}, "venueId"),
        ({"cursor": "WzFd"}, "cursor"),
        ({"limit": "201"}, "limit"),
    )
    for params, field in wrong:
        answer = await ask(hub, **params)
        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_ERROR"), params
        assert [each["field"] for each in answer.json()["details"]] == [field]


async def test_the_month_that_runs_is_the_usual_one_and_has_a_forecast(hub: Hub) -> None:
    now = datetime.now(UTC)
    await used(hub, "square", now, 1000, 0, 10_000_000)
    found = await data(hub)
    row = found["costs"][0]
    assert found["period_start"] == now.date().replace(day=1).isoformat()
    assert (row["total_api_calls"], row["total_data_mb"], row["total_cost"]) == (1000, 10.0, 2.5)
    assert row["forecast"] == found["totals"][0]["forecast"]
    assert row["forecast"].keys() == {"api_calls", "data_mb", "cost"}
    assert row["forecast"]["api_calls"] >= 1000


async def test_a_venue_sees_its_usage_by_month(hub: Hub) -> None:
    await used(hub, "square", JANUARY, 812, 70_000, 4_000_000)
    await used(hub, "square", MARCH, 3)
    await used(hub, "square", JANUARY, 9, venue=OTHERS)
    await close(hub, datetime(2026, 2, 2, tzinfo=UTC))
    params = {"venueId": str(OURS)}
    answer = await hub.get(f"{API}/square/usage", params=params, headers=bearer("user"))
    newer = {"period_start": "2026-03-01", "period_end": "2026-03-31", "api_calls": 3, "data_mb": 0.0}
    older = {"period_start": "2026-01-01", "period_end": "2026-01-31", "api_calls": 812, "data_mb": 4.07}
    assert answer.json() == {
        "success": True,
        "data": [{**newer, "closed": False}, {**older, "closed": True}],
        "meta": {"total": 2, "limit": 12, "offset": 0, "next_cursor": None},
    }
    first = (await hub.get(f"{API}/square/usage", params={**params, "limit": 1})).json()
    cursor = first["meta"]["next_cursor"]
    second = (await hub.get(f"{API}/square/usage", params={**params, "cursor": cursor})).json()
    assert first["data"] + second["data"] == answer.json()["data"]


async def test_calls_of_a_connection_are_counted(hub: Hub) -> None:
    await hub.execute("DELETE FROM integration_configs")
    assert (await hub.connect_by_key()).status_code == 200
    before = await _calls(hub)
    answer = await hub.post(f"{API}/health/stripe/test", {"venueId": str(OURS)})
    assert answer.json()["data"]["connected"] is True
    assert await _calls(hub) == before + 1


async def _calls(hub: Hub) -> int:
    answer = await hub.get(f"{API}/stripe/usage", params={"venueId": str(OURS)})
    return sum(month["api_calls"] for month in answer.json()["data"])
