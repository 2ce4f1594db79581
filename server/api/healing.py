"""What records of a provider carry, what changed about that, and fields that take another's place."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from litestar import Response, get, post
from litestar.openapi.spec import Example
from msgspec import Meta, Struct

from engine.drift import DriftKind
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, CallerRequest
from server.api.mappings import MAPPINGS, TAGS, IfMatch, PairName
from server.api.schemas import (
    CursorText,
    Limit,
    MessageAnswer,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    body_of,
    page_meta,
    read_cursor,
)
from server.services import drift, mappings
from server.services.integrations import get_integration
from server.services.mappings import Asked

_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_LARGEST_EVENT = 2**63 - 1


class SuccessorBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A pair whose field is gone, and the field that takes its place."""

    venue_id: UUID
    source: PairName
    target: PairName
    to: Annotated[PairName, Meta(description="The field that takes its place, as pairs write it.")]


SuccessorRequest = Annotated[
    SuccessorBody,
    body_of(
        one={
            "venueId": _VENUE,
            "source": "customer.email",
            "target": "customer.email_adress",
            "to": "customer.email_address",
        }
    ),
]


class FieldSeen(Struct, frozen=True):
    """A field that records of a provider really carried. No value of it is kept."""

    resource: Annotated[str, Meta(description="The provider's resource.")]
    path: Annotated[str, Meta(description="Where it is in a record.")]
    types: Annotated[list[str], Meta(description="The types it had.")]
    shapes: Annotated[list[str], Meta(description="What its values look like, such as `email`.")]
    share: Annotated[float, Meta(description="In which share of records it was, from 0 to 1.")]
    null_share: Annotated[float, Meta(description="In which share of those it was null.")]
    first_seen_at: Annotated[datetime, Meta(description="When a record first had it.")]
    last_seen_at: Annotated[datetime, Meta(description="When one last had it.")]
    removed_at: Annotated[
        datetime | None, Meta(description="Since when it counts as gone; null while it is there.")
    ]
    refused_at: Annotated[
        datetime | None,
        Meta(description="Since when the provider answers to writes that it doesn't know it; else null."),
    ]


class FieldsSeenAnswer(Struct, frozen=True):
    data: list[FieldSeen]
    meta: PageMeta
    success: Literal[True] = True


class DriftRow(Struct, frozen=True):
    """Something about a provider's records that changed."""

    id: int
    resource: Annotated[str, Meta(description="The provider's resource.")]
    path: Annotated[str, Meta(description="The field.")]
    kind: Annotated[DriftKind, Meta(description="What happened to it.")]
    before: Annotated[list[str], Meta(description="Types, values or the path of before.")]
    after: Annotated[list[str], Meta(description="And of now.")]
    evidence: Annotated[list[str], Meta(description="Of a rename, what speaks for it.")]
    created_at: Annotated[datetime, Meta(description="When it was noticed.")]


class DriftAnswer(Struct, frozen=True):
    data: list[DriftRow]
    meta: PageMeta
    success: Literal[True] = True


class ShadowRun(Struct, frozen=True):
    """What came of trying a field on recent records of both sides."""

    records: Annotated[int, Meta(description="Records that were read on both sides.")]
    compared: Annotated[int, Meta(description="Those with a value on both.")]
    equal: Annotated[int, Meta(description="Those of which it is the same.")]
    empty: Annotated[int, Meta(description="Those with a value of ours and none in the new field.")]


class ShadowAnswer(Struct, frozen=True):
    data: ShadowRun
    success: Literal[True] = True


_NAMED = ("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND")
_BODY = (*_NAMED, "TEMPLATE_NOT_FOUND", "NOT_FOUND", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE")
_META = {"total": 1, "limit": 50, "offset": 0, "next_cursor": None}


@get(
    f"{MAPPINGS}/observed",
    operation_id="listObservedFields",
    summary="What records of a provider carry",
    description="Fields as syncs saw them in some of the records they read or wrote, by resource and path.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            FieldsSeenAnswer,
            "Fields, by resource and path.",
            Example(
                summary="one",
                value={
                    "success": True,
                    "data": [
                        {
                            "resource": "customer",
                            "path": "email",
                            "types": ["text"],
                            "shapes": ["email"],
                            "share": 1.0,
                            "null_share": 0.25,
                            "first_seen_at": "2026-01-15T10:00:00Z",
                            "last_seen_at": "2026-01-20T10:00:00Z",
                            "removed_at": None,
                            "refused_at": None,
                        }
                    ],
                    "meta": _META,
                },
            ),
        ),
        **error_answers(*_NAMED),
    },
)
async def list_observed(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> FieldsSeenAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    after = read_cursor(cursor, [str, str])
    async with context.sessions() as session:
        await get_integration(session, venue_id, provider)
        page = await drift.fields_page(session, venue_id, provider, limit=limit, offset=offset, after=after)
    rows = [
        FieldSeen(
            row.resource,
            row.path,
            row.types,
            row.shapes,
            round(row.seen_count / row.record_count, 3) if row.record_count else 0.0,
            round(row.null_count / row.seen_count, 3) if row.seen_count else 0.0,
            row.first_seen_at,
            row.last_seen_at,
            row.removed_at,
            row.refused_at,
        )
        for row in page.rows
    ]
    return FieldsSeenAnswer(rows, page_meta(page, limit, offset))


@get(
    f"{MAPPINGS}/drift",
    operation_id="listDrift",
    summary="What changed about a provider's records",
    description="Fields that were added, removed, back again, refused by the provider, retyped or renamed, "
    "and enumerations that grew, the newest first. The mapping is looked at for each by itself.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            DriftAnswer,
            "Changes, the newest first.",
            Example(
                summary="a rename",
                value={
                    "success": True,
                    "data": [
                        {
                            "id": 7,
                            "resource": "customer",
                            "path": "default_card",
                            "kind": "renamed",
                            "before": ["default_card"],
                            "after": ["default_source"],
                            "evidence": ["the names share `default`", "it wasn't there before"],
                            "created_at": "2026-01-15T10:00:00Z",
                        }
                    ],
                    "meta": _META,
                },
            ),
        ),
        **error_answers(*_NAMED),
    },
)
async def list_drift(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> DriftAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    before = read_cursor(cursor, [Annotated[int, Meta(ge=0, le=_LARGEST_EVENT)]])
    async with context.sessions() as session:
        await get_integration(session, venue_id, provider)
        page = await drift.events_page(
            session, venue_id, provider, limit=limit, offset=offset, before=before[0] if before else None
        )
    rows = [
        DriftRow(
            row.id, row.resource, row.path, row.kind, row.before, row.after, row.evidence, row.created_at
        )
        for row in page.rows
    ]
    return DriftAnswer(rows, page_meta(page, limit, offset))


@post(
    f"{MAPPINGS}/mappings/heal/try",
    operation_id="tryHealing",
    summary="Try a field for one that is gone",
    description="Up to 20 records that are linked are read on both sides, and what the pair would bring over "
    "is compared with what is there. Nothing is written.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            ShadowAnswer,
            "How far both sides agree.",
            Example(
                summary="all agree",
                value={"success": True, "data": {"records": 20, "compared": 18, "equal": 18, "empty": 0}},
            ),
        ),
        **error_answers(
            *_BODY,
            "CREDENTIALS_NOT_FOUND",
            "CONNECTION_TEST_FAILED",
            "SYNC_FAILED",
            "TOKEN_REFRESH_FAILED",
        ),
    },
)
async def try_healing(
    request: CallerRequest, context: Shared, provider: ProviderName, data: SuccessorRequest
) -> ShadowAnswer:
    request.user.require(data.venue_id)
    asked = Asked(data.venue_id, provider)
    tried = await mappings.try_successor(context, asked, data.source, data.target, data.to)
    return ShadowAnswer(ShadowRun(**tried.to_json()))


@post(
    f"{MAPPINGS}/mappings/heal/accept",
    operation_id="acceptHealing",
    summary="Let a field take the place of one that is gone",
    description="The pair names it from now on, and is worked again. That is a version, and undo brings back "
    "the one before.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            MessageAnswer,
            "The pair names it.",
            Example(summary="done", value={"success": True, "message": "Mapping healed"}),
        ),
        **error_answers(*_BODY, "CONFLICT", "MAPPING_INVALID"),
    },
)
async def accept_healing(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: SuccessorRequest,
    if_match: IfMatch = None,
) -> Response[MessageAnswer]:
    request.user.require(data.venue_id)
    asked = Asked(data.venue_id, provider, if_match)
    now = await mappings.accept(context, actor, asked, data.source, data.target, data.to)
    return Response(MessageAnswer("Mapping healed"), headers={"ETag": now.etag})


HANDLERS = (list_observed, list_drift, try_healing, accept_healing)
