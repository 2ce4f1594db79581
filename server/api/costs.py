"""What integrations use of their providers: with costs for administrators, without for their venue."""

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from litestar import get
from litestar.openapi.spec import Example
from litestar.params import QueryParameter
from msgspec import Meta, Struct

from server.api.admin import ADMIN, ProviderFilter
from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, READERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    Limit,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    page_meta,
    read_cursor,
)
from server.services import costs, integrations

VenueFilter = Annotated[UUID | None, QueryParameter(name="venueId", description="Only this venue's.")]
StartDate = Annotated[
    date | None,
    QueryParameter(
        name="startDate",
        description="A day in the first month to look at, in UTC. Left out: the month of `endDate`.",
    ),
]
EndDate = Annotated[
    date | None,
    QueryParameter(
        name="endDate",
        description="A day in the last month to look at, in UTC. Left out: the month that runs.",
    ),
]

Calls = Annotated[int, Meta(description="Calls made to the provider, failed ones included.")]
Megabytes = Annotated[
    float, Meta(description="Bodies sent and received, in megabytes of 1,000,000 bytes, as they travelled.")
]
Currency = Annotated[
    str | None, Meta(description="The currency of the costs; null where nothing has a price.")
]
Cost = Annotated[float, Meta(description="What that costs, to the cent. Nothing where nothing has a price.")]


class CostForecast(Struct, frozen=True):
    """What the whole of the month that runs is expected to come to."""

    api_calls: Calls
    data_mb: Megabytes
    cost: Cost


MaybeForecast = Annotated[
    CostForecast | None,
    Meta(
        description="What the whole of the month that runs is expected to come to; null when it isn't among "
        "the months looked at, or nothing was called in it yet."
    ),
]


class IntegrationCosts(Struct, frozen=True):
    """What an integration used in the months looked at, in one currency."""

    venue_id: Annotated[UUID, Meta(description="The venue's id.")]
    integration_type: Annotated[str, Meta(description="The provider.")]
    total_api_calls: Calls
    total_data_mb: Megabytes
    total_cost: Cost
    currency: Currency
    forecast: MaybeForecast


class CostTotal(Struct, frozen=True):
    """The sums of all integrations in one currency, whatever page is shown."""

    currency: Currency
    total_api_calls: Calls
    total_data_mb: Megabytes
    total_cost: Cost
    forecast: MaybeForecast


class CostReport(Struct, frozen=True):
    """A page of costs, and the totals of all pages."""

    costs: Annotated[list[IntegrationCosts], Meta(description="By venue and provider.")]
    total: Annotated[
        float | None,
        Meta(description="What all of them cost; null when that is in several currencies: see `totals`."),
    ]
    totals: Annotated[list[CostTotal], Meta(description="The sums by currency.")]
    period_start: Annotated[date, Meta(description="The first day looked at: that of a month.")]
    period_end: Annotated[date, Meta(description="The last day looked at: that of a month.")]


class CostsAnswer(Struct, frozen=True):
    data: CostReport
    meta: PageMeta
    success: Literal[True] = True


class UsageMonth(Struct, frozen=True):
    """What an integration used in a month, in UTC."""

    period_start: Annotated[date, Meta(description="The month's first day.")]
    period_end: Annotated[date, Meta(description="The month's last day.")]
    api_calls: Calls
    data_mb: Megabytes
    closed: Annotated[bool, Meta(description="Whether the month is over and nothing changes it any more.")]


class UsageAnswer(Struct, frozen=True):
    data: list[UsageMonth]
    meta: PageMeta
    success: Literal[True] = True


@get(
    f"{ADMIN}/costs",
    operation_id="getCosts",
    summary="What integrations used, and what that costs",
    description="Of whole months, in UTC: all that the dates touch. Prices come from `HUB_PRICES`, else from "
    "the provider's manifest. A month's costs are fixed an hour after its end; until then they follow the "
    "prices. The forecast is what was used so far, and for the rest of the month the rate so far.",
    tags=["Administration"],
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            CostsAnswer,
            "The costs, by venue and provider.",
            Example(
                summary="one integration",
                value={
                    "success": True,
                    "data": {
                        "costs": [
                            {
                                "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                                "integration_type": "juniper",
                                "total_api_calls": 10000,
                                "total_data_mb": 50.5,
                                "total_cost": 25.0,
                                "currency": "USD",
                                "forecast": {"api_calls": 20667, "data_mb": 104.37, "cost": 51.67},
                            }
                        ],
                        "total": 25.0,
                        "totals": [
                            {
                                "currency": "USD",
                                "total_api_calls": 10000,
                                "total_data_mb": 50.5,
                                "total_cost": 25.0,
                                "forecast": {"api_calls": 20667, "data_mb": 104.37, "cost": 51.67},
                            }
                        ],
                        "period_start": "2026-01-01",
                        "period_end": "2026-01-31",
                    },
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR"),
    },
)
async def report(
    context: Shared,
    start_date: StartDate = None,
    end_date: EndDate = None,
    venue_id: VenueFilter = None,
    provider: ProviderFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> CostsAnswer:
    async with context.sessions() as session:
        found = await costs.report(
            session,
            context.catalog,
            start=start_date,
            end=end_date,
            venue_id=venue_id,
            provider=provider,
            limit=limit,
            offset=offset,
            after=read_cursor(cursor, [UUID, str, str]),
        )
    currencies = {each.currency for each in found.totals if each.total_cost}
    total = float(sum(each.total_cost for each in found.totals)) if len(currencies) < 2 else None
    return CostsAnswer(
        CostReport(
            msgspec.convert(found.page.rows, list[IntegrationCosts], from_attributes=True, strict=False),
            total,
            msgspec.convert(found.totals, list[CostTotal], from_attributes=True, strict=False),
            found.period_start,
            found.period_end,
        ),
        page_meta(found.page, limit, offset),
    )


@get(
    f"{PATH}/{{provider:str}}/usage",
    operation_id="getUsage",
    summary="What an integration used of its provider",
    description="By month, in UTC, the newest first. Counted are all calls of syncs, and what else goes on "
    "for an integration: tests, renewals of its tokens, subscriptions to webhooks.",
    tags=["Integrations"],
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            UsageAnswer,
            "Months in which something was called.",
            Example(
                summary="two months",
                value={
                    "success": True,
                    "data": [
                        {
                            "period_start": "2026-02-01",
                            "period_end": "2026-02-28",
                            "api_calls": 812,
                            "data_mb": 4.07,
                            "closed": False,
                        },
                        {
                            "period_start": "2026-01-01",
                            "period_end": "2026-01-31",
                            "api_calls": 10000,
                            "data_mb": 50.5,
                            "closed": True,
                        },
                    ],
                    "meta": {"total": 2, "limit": 12, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND"),
    },
)
async def usage(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    limit: Limit = 12,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> UsageAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    after = read_cursor(cursor, [date])
    async with context.sessions() as session:
        await integrations.get_integration(session, venue_id, provider)
        page = await costs.usage(
            session, venue_id, provider, limit=limit, offset=offset, after=after[0] if after else None
        )
    return UsageAnswer(
        msgspec.convert(page.rows, list[UsageMonth], from_attributes=True, strict=False),
        page_meta(page, limit, offset),
    )


HANDLERS = (report, usage)
