"""Conflicts over the API: which fields a person has to decide about, and deciding."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from engine.ports import Decision, Taken
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Moment,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    body_of,
    page_meta,
    read_cursor,
)
from server.api.syncs import SYNC, TAGS
from server.db.models import ConflictState, FieldConflict
from server.errors import Detail, InvalidRequestError
from server.services import conflicts
from server.services.conflicts import MOST_RESOLVED, Filter, Side

CONFLICTS = f"{SYNC}/conflicts"

ConflictId = Annotated[UUID, PathParameter(description="The conflict's id.")]
EntityFilter = Annotated[
    str | None, QueryParameter(name="entity", max_length=100, description="Only of this entity's records.")
]
FieldFilter = Annotated[
    str | None, QueryParameter(name="field", max_length=255, description="Only about this field of ours.")
]
RecordFilter = Annotated[
    str | None, QueryParameter(name="recordId", max_length=255, description="Only of this record of ours.")
]
StateFilter = Annotated[
    ConflictState | None,
    QueryParameter(
        name="state",
        description="Only those that are open, were resolved by a person, or settled without one.",
    ),
]

_Word = Annotated[str, Meta(max_length=100)]
_LongWord = Annotated[str, Meta(max_length=255)]
_LARGEST = 10**15  # beyond, not every number has a place of its own in JSON
_Scalar = (
    Annotated[str, Meta(max_length=10_000)]
    | Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)]
    | Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
    | bool
)


class ResolveBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Whose value both sides get: the platform's, the provider's, or a person's own."""

    venue_id: UUID
    take: Annotated[Taken, Meta(description="Whose value: `value` takes the one given here.")]
    value: Annotated[
        _Scalar | None,
        Meta(
            description="With `value`: what both sides get, as the platform's field holds it. An empty text "
            "empties the field. Lists and objects can't be given: take one of the sides'."
        ),
    ] = None
    version: Annotated[
        _Word | None,
        Meta(description="The version that was looked at: refused when the values are others by now."),
    ] = None


class ResolveManyBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Whose values win in all open conflicts that fit."""

    venue_id: UUID
    take: Annotated[Side, Meta(description="Whose values.")]
    entity: Annotated[_Word | None, Meta(description="Only of this entity's records.")] = None
    field: Annotated[_LongWord | None, Meta(description="Only about this field of ours.")] = None
    record_id: Annotated[_LongWord | None, Meta(description="Only of this record of ours.")] = None
    dry_run: Annotated[bool, Meta(description="Only count: nothing is decided.")] = False
    limit: Annotated[
        int, Meta(ge=1, le=MOST_RESOLVED, description="At most so many; `left` says how many are left.")
    ] = MOST_RESOLVED


_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
ResolveRequest = Annotated[
    ResolveBody,
    body_of(
        ours={"venueId": _VENUE, "take": "platform", "version": "0c1d2e3f4a5b-1a2b3c4d5e6f"},
        one_of_our_own={"venueId": _VENUE, "take": "value", "value": "de la Cruz"},
    ),
]
ResolveManyRequest = Annotated[
    ResolveManyBody,
    body_of(of_a_field={"venueId": _VENUE, "take": "provider", "entity": "customer", "field": "phone"}),
]


class AgreedValues(Struct, frozen=True):
    """What each side had when the two last agreed."""

    ours: Annotated[Any, Meta(description="The platform's value then.")]
    theirs: Annotated[Any, Meta(description="The provider's value then, in the platform's terms.")]


class Resolution(Struct, frozen=True):
    """What a person decided."""

    take: Annotated[Taken, Meta(description="Whose value both sides get.")]
    value: Annotated[Any, Meta(description="A person's own value; null for one of the sides'.")]


class Conflict(Struct, frozen=True):
    """A field that both sides changed, and that each keeps its own value of until a person decides."""

    id: UUID
    entity: str
    resource: Annotated[str, Meta(description="The provider's resource.")]
    field: Annotated[str, Meta(description="The platform's field.")]
    record_id: Annotated[str, Meta(description="The platform's record.")]
    remote_id: Annotated[str, Meta(description="The provider's record.")]
    ours: Annotated[Any, Meta(description="The platform's value; a number with a fraction is text.")]
    theirs: Annotated[Any, Meta(description="The provider's value, in the platform's terms.")]
    agreed: Annotated[AgreedValues | None, Meta(description="What they last agreed on; null for never.")]
    ours_changed_at: Annotated[
        str | None, Meta(description="When the platform's record changed last, as it tells.")
    ]
    theirs_changed_at: Annotated[
        str | None, Meta(description="When the provider's record changed last; null where it doesn't tell.")
    ]
    changed_last: Annotated[
        Side | None, Meta(description="Which side's record changed last; null where that isn't known.")
    ]
    state: Annotated[
        ConflictState,
        Meta(
            description="`open`; `resolved` by a person; `settled` without one, for the sides agree again or "
            "one of them went back."
        ),
    ]
    version: Annotated[str, Meta(description="Changes with the values; send it along to resolve just these.")]
    resolution: Annotated[Resolution | None, Meta(description="What a person decided; null for nothing.")]
    resolved_by: Annotated[str | None, Meta(description="Who decided; null for nobody.")]
    resolved_at: Annotated[datetime | None, Meta(description="When it was decided; null for never.")]
    detected_at: Annotated[datetime, Meta(description="When a sync first saw it.")]
    seen_at: Annotated[datetime, Meta(description="When a sync last saw it.")]
    ended_at: Annotated[
        datetime | None,
        Meta(description="When a sync carried the decision out, or saw it settled; null for not yet."),
    ]


class ConflictsAnswer(Struct, frozen=True):
    data: list[Conflict]
    meta: PageMeta
    success: Literal[True] = True


class ConflictAnswer(Struct, frozen=True):
    data: Conflict
    success: Literal[True] = True


class ConflictsResolved(Struct, frozen=True):
    """What became of a request to decide about many. Of a dry run: what would."""

    matched: Annotated[int, Meta(description="How many fit and are open.")]
    resolved: Annotated[int, Meta(description="How many were decided.")]
    left: Annotated[int, Meta(description="How many are left for another request like this one.")]
    dry_run: Annotated[bool, Meta(description="Whether nothing was decided.")]


class ConflictsResolvedAnswer(Struct, frozen=True):
    data: ConflictsResolved
    success: Literal[True] = True


_OPEN: dict[str, Any] = {
    "id": "5b0f6a5e-8d0c-4a59-9c57-64d3b1b0f0a2",
    "entity": "customer",
    "resource": "customer",
    "field": "last_name",
    "record_id": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
    "remote_id": "c_42",
    "ours": "Cruz",
    "theirs": "M. Cruz",
    "agreed": {"ours": "de la Cruz", "theirs": "de la Cruz"},
    "ours_changed_at": "2026-01-15T10:00:00Z",
    "theirs_changed_at": "2026-01-15T10:20:00Z",
    "changed_last": "provider",
    "state": "open",
    "version": "0c1d2e3f4a5b-1a2b3c4d5e6f",
    "resolution": None,
    "resolved_by": None,
    "resolved_at": None,
    "detected_at": "2026-01-15T11:00:00Z",
    "seen_at": "2026-01-15T11:00:00Z",
    "ended_at": None,
}
_DECIDED = {
    **_OPEN,
    "state": "resolved",
    "resolution": {"take": "platform", "value": None},
    "resolved_by": "u_17",
    "resolved_at": "2026-01-15T11:30:00Z",
}
_NAMED = ("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND")
_BODY = (
    *_NAMED,
    "INTEGRATION_NOT_CONNECTED",
    "QUEUE_FULL",
    "IDEMPOTENCY_KEY_IN_USE",
    "IDEMPOTENCY_KEY_REUSED",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
)


@get(
    CONFLICTS,
    operation_id="listConflicts",
    summary="Fields that a person has to decide about",
    description="The newest come first, the open ones and those that are over. Each shows the values of both "
    "sides, so it is for those who may manage the integration.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={
        200: good(
            ConflictsAnswer,
            "The conflicts.",
            Example(
                summary="one that is open",
                value={
                    "success": True,
                    "data": [_OPEN],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers(*_NAMED),
    },
)
async def list_conflicts(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    entity: EntityFilter = None,
    field: FieldFilter = None,
    record_id: RecordFilter = None,
    only: StateFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> ConflictsAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    after = read_cursor(cursor, [Moment, UUID])
    wanted = Filter(venue_id, provider, entity, field, record_id, only)
    async with context.sessions() as session:
        page = await conflicts.listing(session, wanted, limit=limit, offset=offset, after=after)
    return ConflictsAnswer([_told(row) for row in page.rows], page_meta(page, limit, offset))


@get(
    f"{CONFLICTS}/{{conflict_id:uuid}}",
    operation_id="getConflict",
    summary="One field that a person has to decide about",
    description="The values of both sides and what they last agreed on, as the last sync saw them.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={
        200: good(
            ConflictAnswer,
            "The conflict.",
            Example(summary="one that is open", value={"success": True, "data": _OPEN}),
        ),
        **error_answers(*_NAMED, "NOT_FOUND"),
    },
)
async def get_conflict(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    conflict_id: ConflictId,
    venue_id: VenueId,
) -> ConflictAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        return ConflictAnswer(_told(await conflicts.read(session, venue_id, provider, conflict_id)))


@post(
    f"{CONFLICTS}/{{conflict_id:uuid}}/resolve",
    operation_id="resolveConflict",
    summary="Decide about a field",
    description="Both sides are looked at first: where one has changed since, nothing is decided, and "
    "`details` name it. The record is queued before scheduled work. Should a side change until it is worked, "
    "the decision is dropped and the conflict is open again.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            ConflictAnswer,
            "It is decided; `ended_at` says when it was carried out.",
            Example(summary="decided", value={"success": True, "data": _DECIDED}),
        ),
        **error_answers(*_BODY, "NOT_FOUND", "CONFLICT", "TEMPLATE_NOT_FOUND", "MAPPING_INVALID"),
    },
)
async def resolve_conflict(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    conflict_id: ConflictId,
    data: ResolveRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[ConflictAnswer]:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    decision = _decision(data)

    async def work() -> Response[ConflictAnswer]:
        row = await conflicts.resolve(
            context,
            actor,
            venue_id=data.venue_id,
            provider=provider,
            conflict_id=conflict_id,
            decision=decision,
            version=data.version,
        )
        return Response(ConflictAnswer(_told(row)))

    return await answer_once(request, context, idempotency_key, work)


@post(
    f"{CONFLICTS}/resolve",
    operation_id="resolveConflicts",
    summary="Decide about many fields at once",
    description="All open conflicts that fit get the values of one side, the oldest first. The values aren't "
    "looked at first: where one has changed since the last sync, the conflict is open again after the next.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            ConflictsResolvedAnswer,
            "What was decided.",
            Example(
                summary="some are left",
                value={
                    "success": True,
                    "data": {"matched": 620, "resolved": 500, "left": 120, "dry_run": False},
                },
            ),
        ),
        **error_answers(*_BODY),
    },
)
async def resolve_conflicts(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: ResolveManyRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[ConflictsResolvedAnswer]:
    request.user.require(data.venue_id)
    context.catalog.connector(provider)
    wanted = Filter(data.venue_id, provider, data.entity, data.field, data.record_id)

    async def work() -> Response[ConflictsResolvedAnswer]:
        came = await conflicts.resolve_many(
            context, actor, wanted, data.take, limit=data.limit, dry_run=data.dry_run
        )
        told = ConflictsResolved(came.matched, came.resolved, came.left, data.dry_run)
        return Response(ConflictsResolvedAnswer(told))

    return await answer_once(request, context, idempotency_key, work)


def _decision(data: ResolveBody) -> Decision:
    given = data.value is not None
    if given != (data.take == "value"):
        why = "give a `value` to take" if data.take == "value" else f"`{data.take}` takes no value of its own"
        raise InvalidRequestError(why, [Detail("value", why)])
    return Decision(data.take, data.value)


def _told(row: FieldConflict) -> Conflict:
    return Conflict(
        id=row.id,
        entity=row.entity,
        resource=row.resource,
        field=row.field,
        record_id=row.local_id,
        remote_id=row.remote_id,
        ours=row.ours,
        theirs=row.theirs,
        agreed=AgreedValues(row.agreed.get("ours"), row.agreed.get("theirs")) if row.agreed else None,
        ours_changed_at=row.ours_changed_at,
        theirs_changed_at=row.theirs_changed_at,
        changed_last=conflicts.changed_last(row),
        state=row.state,
        version=conflicts.version_of(row),
        resolution=Resolution(row.resolution["take"], row.resolution.get("value"))
        if row.resolution
        else None,
        resolved_by=row.resolved_by,
        resolved_at=row.resolved_at,
        detected_at=row.detected_at,
        seen_at=row.seen_at,
        ended_at=row.ended_at,
    )


HANDLERS = (list_conflicts, resolve_conflicts, get_conflict, resolve_conflict)
