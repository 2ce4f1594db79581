"""The mapping templates of a provider: how much each is used, which suits a venue and why."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from litestar import get
from litestar.openapi.spec import Example
from msgspec import Meta, Struct

from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import READERS, TOKEN, CallerRequest
from server.api.mappings import MAPPINGS, TAGS
from server.api.schemas import ProviderName, VenueId
from server.services.integrations import read_venue
from server.services.templates import offers, with_use


class Template(Struct, frozen=True, rename="camel"):
    """A mapping to start from. Use is counted over all venues; none is named."""

    template_id: Annotated[UUID, Meta(description="What to apply it by.")]
    name: Annotated[str, Meta(description="Its name among those of the provider.")]
    title: Annotated[str, Meta(description="What people call it.")]
    extends: Annotated[
        str | None, Meta(description="The template it is laid over; null for one that says all itself.")
    ]
    venue_types: Annotated[list[str], Meta(description="Types of venues it is for; empty: any.")]
    name_mentions: Annotated[list[str], Meta(description="Words in a venue's name that speak for it.")]
    usage_count: Annotated[int, Meta(description="How often it was given to an integration, by itself too.")]
    last_used_at: Annotated[datetime | None, Meta(description="When it last was; null when it never was.")]
    in_use: Annotated[int, Meta(description="Connected integrations that have it now.")]
    adapted: Annotated[int, Meta(description="Connected integrations whose own mapping began with it.")]
    because: Annotated[
        str | None, Meta(description="Why it is the one that suits the venue; null for the others.")
    ]


class TemplatesAnswer(Struct, frozen=True):
    data: list[Template]
    success: Literal[True] = True


@get(
    f"{MAPPINGS}/templates",
    operation_id="listMappingTemplates",
    summary="List mapping templates",
    description="By name, with how much each is used. The one that suits the venue says why: that is the one "
    "an integration gets when it is connected, or when a template is applied without naming one.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            TemplatesAnswer,
            "The provider's templates.",
            Example(
                summary="one of them",
                value={
                    "success": True,
                    "data": [
                        {
                            "templateId": "9a3f0d52-8c1e-5d0b-8a77-61d7a5f0c3b2",
                            "name": "comedy-club",
                            "title": "Comedy club",
                            "extends": "default",
                            "venueTypes": ["comedy_club"],
                            "nameMentions": ["comedy", "improv"],
                            "usageCount": 12,
                            "lastUsedAt": "2026-01-15T10:00:00Z",
                            "inUse": 9,
                            "adapted": 2,
                            "because": "the venue's type is `comedy_club`",
                        }
                    ],
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "NOT_FOUND"),
    },
)
async def list_templates(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> TemplatesAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    offered = offers(context.catalog, provider, await read_venue(context, venue_id))
    async with context.sessions() as session:
        listed = await with_use(session, provider, offered)
    return TemplatesAnswer(
        [
            Template(
                each.id,
                each.template.name,
                each.template.title,
                each.extends,
                list(each.template.suits.venue_types),
                list(each.template.suits.name_mentions),
                each.used,
                each.last_used_at,
                each.in_use,
                each.adapted,
                each.because,
            )
            for each in listed
        ]
    )


HANDLERS = (list_templates,)
