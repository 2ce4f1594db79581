"""What integrations used of their providers, what that costs, and what the month will have cost.

`server.metering` counts calls and bytes by integration and month, in UTC. Prices come from the operator's
price list, else from the provider's manifest, else from the list's default; without any, nothing is owed.

PostgreSQL calculates, exactly: a month's steps are summed and then rounded to cents, half up, and so is what
is due each month; a total is the sum of the two. An hour after its end a month is closed: then its costs are
kept as they are, whatever prices are later.

The forecast is of the month that runs: what was used so far, and for the days that are left the rate so far.
The rate is that since the month began, as if a day at the last month's rate had gone before; without a last
month, that since the first call, over a day at least. So no early morning is taken for a whole month.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from engine.manifest import Costs, PriceStep
from server.catalog import Catalog
from server.db.models import IntegrationCost
from server.errors import Detail, InvalidRequestError
from server.services.paging import Page

CLOSED_AT_ONCE = 1000  # months of integrations in one transaction
EARLIEST, LATEST = date(2000, 1, 1), date(2999, 12, 31)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the whole of the month that runs is expected to come to."""

    api_calls: int
    data_mb: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True)
class CostRow:
    """What an integration used in the months asked for. `currency` is None where nothing has a price."""

    venue_id: UUID
    integration_type: str
    total_api_calls: int
    total_data_mb: Decimal
    total_cost: Decimal
    currency: str | None
    forecast: Forecast | None  # without a call in the month that runs, or where that isn't asked for


@dataclass(frozen=True, slots=True)
class CostTotal:
    """The sums of all rows in one currency, whatever page is shown."""

    total_api_calls: int
    total_data_mb: Decimal
    total_cost: Decimal
    currency: str | None
    forecast: Forecast | None


@dataclass(frozen=True, slots=True)
class Report:
    """A page of rows, the totals of all of them, and the months looked at: first and last day."""

    page: Page
    totals: Sequence[CostTotal]
    period_start: date
    period_end: date


@dataclass(frozen=True, slots=True)
class Month:
    """What an integration used in a month; `closed` once nothing changes it any more."""

    period_start: date
    period_end: date
    api_calls: int
    data_mb: Decimal
    closed: bool


# --- prices, as SQL


@dataclass(frozen=True, slots=True)
class _Tariff:
    """What providers charge, written as expressions over a row called `costs`.

    Written out they are calculated for every integration in the time it takes to read the rows.
    """

    own: Mapping[str, Costs]  # by provider
    others: Costs | None

    @classmethod
    def of(cls, catalog: Catalog) -> _Tariff:
        names = dict.fromkeys((*catalog.connectors, *catalog.prices.providers))
        known = {name: found for name in names if (found := catalog.costs(name)) is not None}
        return cls(known, catalog.prices.default)

    @property
    def parameters(self) -> dict[str, str]:
        """Return the values of what the expressions have with a colon."""
        return {f"priced_{number}": name for number, name in enumerate(self.own)}

    @property
    def base(self) -> str:
        """Return what is due each month."""
        return self._each(lambda costs: f"round({costs.monthly:f}, 2)", "0.00")

    @property
    def currency(self) -> str:
        return self._each(lambda costs: f"'{costs.currency}'", "CAST(NULL AS text)")

    def overage(self, calls: str, megabytes: str) -> str:
        """Return what numbers of calls and megabytes, which are expressions, cost by their steps."""

        def write(costs: Costs) -> str:
            terms = [*_terms(costs.calls, calls), *_terms(costs.megabytes, megabytes)]
            return f"round({' + '.join(terms) or '0'}, 2)"

        return self._each(write, "0.00")

    def _each(self, write: Callable[[Costs], str], nothing: str) -> str:
        others = write(self.others) if self.others else nothing
        cases = [f"WHEN :{name} THEN {write(self.own[value])}" for name, value in self.parameters.items()]
        return f"CASE costs.integration_type {' '.join(cases)} ELSE {others} END" if cases else others


def _terms(steps: Sequence[PriceStep], number: str) -> Iterator[str]:
    """Write, for each step, how many of a number lie within it, at its price."""
    for step, following in zip_longest(steps, steps[1:]):
        within = f"least({number}, {following.above})" if following else number
        yield f"greatest({within} - {step.above}, 0) * {step.price:f}"


_MEGABYTES = "((costs.bytes_sent + costs.bytes_received) / 1000000.0)"


def _report_statement(tariff: _Tariff) -> TextClause:
    """Return the page's rows, one for each integration and currency, and then the totals by currency.

    Of `f_` is what the whole of the month that runs is expected to come to.
    """
    return text(f"""
WITH clock AS (
    SELECT CAST(month AS date) AS month, CAST(month + interval '1 month' AS date) AS next_month,
        CAST(month - interval '1 month' AS date) AS last_month,
        CAST(extract(epoch FROM CAST(:now AS timestamptz) AT TIME ZONE 'UTC' - month) AS numeric) / 86400
            AS gone
    FROM date_trunc('month', CAST(:now AS timestamptz) AT TIME ZONE 'UTC') AS month
),
wanted AS (
    SELECT costs.*, {_MEGABYTES} AS megabytes
    FROM integration_costs AS costs
    WHERE costs.period_start >= :first AND costs.period_start <= :last
        AND (CAST(:venue AS uuid) IS NULL OR costs.venue_id = :venue)
        AND (CAST(:provider AS varchar) IS NULL OR costs.integration_type = :provider)
),
paced AS (
    SELECT costs.*,
        CASE WHEN costs.period_start = clock.month
            THEN clock.next_month - clock.month - clock.gone END AS left_over,
        CASE
            WHEN last.id IS NOT NULL THEN clock.gone + 1
            ELSE greatest(clock.gone - CAST(
                extract(epoch FROM costs.created_at AT TIME ZONE 'UTC' - clock.month) AS numeric) / 86400, 1)
        END AS days,
        coalesce(last.api_calls / CAST(clock.month - clock.last_month AS numeric), 0) AS last_calls,
        coalesce((last.bytes_sent + last.bytes_received) / 1000000.0 / (clock.month - clock.last_month), 0)
            AS last_megabytes
    FROM wanted AS costs
    CROSS JOIN clock
    LEFT JOIN integration_costs AS last ON costs.period_start = clock.month
        AND last.venue_id = costs.venue_id AND last.integration_type = costs.integration_type
        AND last.period_start = clock.last_month
),
expected AS (
    SELECT costs.*,
        round(costs.api_calls + (costs.api_calls + costs.last_calls) / costs.days * costs.left_over)
            AS f_calls,
        costs.megabytes + (costs.megabytes + costs.last_megabytes) / costs.days * costs.left_over
            AS f_megabytes
    FROM paced AS costs
),
priced AS (
    SELECT costs.venue_id, costs.integration_type, costs.api_calls, costs.megabytes, costs.f_calls,
        costs.f_megabytes, coalesce(costs.currency, {tariff.currency}, '') AS currency,
        CASE WHEN costs.closed_at IS NOT NULL THEN coalesce(costs.total_cost, 0)
            ELSE {tariff.base} + {tariff.overage("costs.api_calls", "costs.megabytes")} END AS cost,
        CASE WHEN costs.f_calls IS NOT NULL
            THEN {tariff.base} + {tariff.overage("costs.f_calls", "costs.f_megabytes")} END AS f_cost
    FROM expected AS costs
),
summed AS MATERIALIZED (
    SELECT venue_id, integration_type, currency, count(*) AS number, sum(api_calls) AS api_calls,
        sum(megabytes) AS megabytes, sum(cost) AS cost, sum(f_calls) AS f_calls,
        sum(f_megabytes) AS f_megabytes, sum(f_cost) AS f_cost
    FROM priced GROUP BY venue_id, integration_type, currency
)
(
    SELECT * FROM summed
    WHERE CAST(:after_venue AS uuid) IS NULL
        OR (venue_id, integration_type, currency) > (:after_venue, :after_provider, :after_currency)
    ORDER BY venue_id, integration_type, currency LIMIT :limit OFFSET :offset
)
UNION ALL
SELECT NULL, NULL, currency, count(*), sum(api_calls), sum(megabytes), sum(cost), sum(f_calls),
    sum(f_megabytes), sum(f_cost)
FROM summed GROUP BY currency
ORDER BY venue_id NULLS LAST, integration_type, currency
""")  # noqa: S608 - written here; of the prices only checked numbers and currencies are


def _closing_statement(tariff: _Tariff) -> TextClause:
    return text(f"""
WITH ended AS (
    SELECT id FROM integration_costs
    WHERE closed_at IS NULL
        AND period_end < CAST((CAST(:now AS timestamptz) - interval '1 hour') AT TIME ZONE 'UTC' AS date)
    ORDER BY period_end LIMIT {CLOSED_AT_ONCE} FOR UPDATE SKIP LOCKED
),
priced AS (
    SELECT costs.id, {tariff.currency} AS currency, {tariff.base} AS base,
        {tariff.overage("costs.api_calls", _MEGABYTES)} AS overage
    FROM integration_costs AS costs
    JOIN ended ON ended.id = costs.id
)
UPDATE integration_costs AS costs
SET base_cost = base, overage_cost = overage, total_cost = base + overage, currency = priced.currency,
    included_in_plan = overage = 0, closed_at = CAST(:now AS timestamptz),
    updated_at = CAST(:now AS timestamptz)
FROM priced
WHERE costs.id = priced.id AND costs.closed_at IS NULL
RETURNING costs.id
""")  # noqa: S608 - written here; of the prices only checked numbers and currencies are


# --- what is asked


async def report(
    session: AsyncSession,
    catalog: Catalog,
    *,
    start: date | None,
    end: date | None,
    venue_id: UUID | None,
    provider: str | None,
    limit: int,
    offset: int,
    after: tuple[UUID, str, str] | None,
    now: datetime | None = None,
) -> Report:
    """Return what integrations used, and cost, in all months that `start` to `end` touches.

    Without `start` that is the month of `end`, without `end` up to the month that runs. Raises
    InvalidRequestError for an end before the start.
    """
    now = now or datetime.now(UTC)
    first, last = _months(start, end, now.astimezone(UTC).date())
    tariff = _Tariff.of(catalog)
    given = {
        **tariff.parameters,
        "now": now,
        "first": first,
        "last": last,
        "venue": venue_id,
        "provider": provider,
        "limit": limit + 1,
        "offset": offset if after is None else 0,
        **dict(zip(("after_venue", "after_provider", "after_currency"), after or (None,) * 3, strict=True)),
    }
    found = (await session.execute(_report_statement(tariff), given)).mappings().all()
    rows = [each for each in found if each["venue_id"] is not None]
    totals = [each for each in found if each["venue_id"] is None]
    shown = rows[:limit]
    key = shown[-1] if len(rows) > limit else None
    return Report(
        Page(
            [CostRow(each["venue_id"], each["integration_type"], *_sums(each)) for each in shown],
            sum(each["number"] for each in totals),
            (str(key["venue_id"]), key["integration_type"], key["currency"]) if key else None,
        ),
        [CostTotal(*_sums(each)) for each in totals],
        first,
        _end_of(last),
    )


def _sums(row: Mapping[Any, Any]) -> tuple[int, Decimal, Decimal, str | None, Forecast | None]:
    forecast = None
    if row["f_cost"] is not None:
        forecast = Forecast(int(row["f_calls"]), _cents(row["f_megabytes"]), row["f_cost"])
    return int(row["api_calls"]), _cents(row["megabytes"]), row["cost"], row["currency"] or None, forecast


def _cents(number: Decimal) -> Decimal:
    return number.quantize(Decimal("0.01"), "ROUND_HALF_UP")


def _months(start: date | None, end: date | None, today: date) -> tuple[date, date]:
    """Return the first days of the first and the last month that are asked for."""
    for name, day in (("startDate", start), ("endDate", end)):
        if day is not None and not EARLIEST <= day <= LATEST:
            raise InvalidRequestError(
                "there are no costs of such a day", [Detail(name, f"it must be from {EARLIEST} to {LATEST}")]
            )
    if start is not None and end is not None and end < start:
        raise InvalidRequestError(
            "the end is before the start", [Detail("endDate", f"it must be {start} or later")]
        )
    last = end or max(start or today, today)
    return (start or last).replace(day=1), last.replace(day=1)


def _end_of(month: date) -> date:
    """Return the last day of a month that begins then."""
    return date.fromordinal(date(month.year + month.month // 12, month.month % 12 + 1, 1).toordinal() - 1)


async def usage(
    session: AsyncSession, venue_id: UUID, provider: str, *, limit: int, offset: int, after: date | None
) -> Page:
    """Return what an integration used by month, the newest first."""
    cost = IntegrationCost
    mine = select(cost).filter_by(venue_id=venue_id, integration_type=provider)
    total = await session.scalar(select(func.count()).select_from(mine.subquery())) or 0
    statement = mine.order_by(cost.period_start.desc()).limit(limit + 1)
    statement = statement.offset(offset) if after is None else statement.where(cost.period_start < after)
    rows = (await session.scalars(statement)).all()
    months = [
        Month(row.period_start, row.period_end, row.api_calls, row.data_synced_mb, row.closed_at is not None)
        for row in rows[:limit]
    ]
    return Page(months, total, (str(months[-1].period_start),) if len(rows) > limit else None)


async def close_months(session: AsyncSession, catalog: Catalog, *, now: datetime | None = None) -> int:
    """Fix the costs of months that ended an hour ago or longer; returns how many there were, at most 1000.

    Two that do it at once share the work.
    """
    tariff = _Tariff.of(catalog)
    given = {**tariff.parameters, "now": now or datetime.now(UTC)}
    return len((await session.scalars(_closing_statement(tariff), given)).all())
