"""Plan a push, look at the plan, apply it."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from server.api import schemas
from server.api.dependencies import Acting, Shared, Stopping
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, CallerRequest
from server.api.idempotent import answer_once
from server.api.schemas import (
    CursorText,
    IdempotencyKeyText,
    Limit,
    Offset,
    ProviderName,
    SyncType,
    VenueId,
    body_of,
    page_meta,
    read_cursor,
)
from server.api.syncs import SYNC, TAGS, answer_for
from server.db.models import PushPlanRecord
from server.services import plans, syncs

PLAN = f"{SYNC}/plan"

Action = Literal["create", "update", "archive", "delete", "conflict", "skip", "error"]
Outcome = Literal["done", "failed", "changed"]
Status = Literal["making", "ready", "failed", "applied", "expired"]
PlanId = Annotated[UUID, PathParameter(description="The `planId` that asking for the plan answered.")]
ActionFilter = Annotated[
    Action | None, QueryParameter(name="action", description="Only records that this becomes of.")
]
EntityFilter = Annotated[
    str | None,
    QueryParameter(name="entity", max_length=100, description="Only records of this entity."),
]
ResourceFilter = Annotated[
    str | None,
    QueryParameter(name="resource", max_length=100, description="Only records of this collection."),
]
OutcomeFilter = Annotated[
    Outcome | None,
    QueryParameter(name="outcome", description="Only records that applying the plan came to this for."),
]


class PlanBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which records to plan for."""

    venue_id: UUID
    sync_type: SyncType = "full"


class ApplyBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Whose plan to apply."""

    venue_id: UUID
    wait: Annotated[
        float, Meta(ge=0, le=60, description="Seconds to wait for the result before answering 202.")
    ] = 25


class PlanAccepted(Struct, frozen=True, rename={"plan_id": "planId"}):
    """A plan that is being made; `Location` says where to look."""

    plan_id: UUID
    status: str


class PlanAcceptedAnswer(Struct, frozen=True):
    """The plan is being made in the background."""

    data: PlanAccepted
    success: bool = True


class PlanState(Struct, frozen=True):
    """A plan: how many records of which action it has, and what became of it."""

    id: UUID
    venue_id: UUID
    integration_type: str
    sync_type: str
    status: Annotated[
        Status,
        Meta(description="Only one that is `ready` can be applied, and once."),
    ]
    counts: Annotated[
        dict[str, int],
        Meta(description="Records by action; while the plan is being made, those looked at so far."),
    ]
    writes: Annotated[int, Meta(description="How many records applying it writes.")]
    mapping_version: Annotated[
        int | None, Meta(description="Of the mapping it was made with; null where that never changed.")
    ]
    requested_by: str
    created_at: datetime
    made_at: Annotated[datetime | None, Meta(description="When it was ready; null while it isn't.")]
    expires_at: Annotated[datetime, Meta(description="From then on it can't be applied, and is forgotten.")]
    applied_at: Annotated[datetime | None, Meta(description="When it was applied; null while it wasn't.")]
    sync_id: Annotated[UUID | None, Meta(description="The sync that applies it; null while none does.")]
    error: str | None


class PlanAnswer(Struct, frozen=True):
    data: PlanState
    success: bool = True


class PlanFieldRow(Struct, frozen=True):
    """What becomes of one field."""

    field: Annotated[str | None, Meta(description="Ours; null where we have no name for it.")]
    path: Annotated[str | None, Meta(description="Theirs; null where nothing is written.")]
    ours: Annotated[Any, Meta(description="The platform's value.")]
    before: Annotated[Any, Meta(description="What the provider has; null for nothing.")]
    after: Annotated[Any, Meta(description="What the provider has when the plan is applied.")]
    reason: str
    conflict: Annotated[bool, Meta(description="Whether both sides changed it since the last sync.")]


class PlanRecordRow(Struct, frozen=True):
    """What becomes of one record, and why. Long texts are cut in what is shown."""

    entity: str
    resource: str
    local_id: Annotated[str, Meta(description="Our record's id.")]
    remote_id: Annotated[str | None, Meta(description="The provider's id; null for what isn't there yet.")]
    action: Annotated[Action, Meta(description="What becomes of it.")]
    writes: Annotated[bool, Meta(description="Whether applying the plan writes it.")]
    reason: str
    fields: Annotated[list[PlanFieldRow], Meta(description="What changes, and what both sides changed.")]
    outcome: Annotated[
        Outcome | None,
        Meta(description="What applying came to: `changed` wasn't written. Null until then."),
    ]
    outcome_reason: Annotated[str | None, Meta(description="Why it isn't done; null when it is.")]


class PlanRecordsAnswer(Struct, frozen=True):
    data: list[PlanRecordRow]
    meta: schemas.PageMeta
    success: bool = True


_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_ID = "9a4f2f0e-8d25-4d43-9c55-2f0a3f8f6a77"
PlanRequest = Annotated[
    PlanBody, body_of(everything={"venueId": _VENUE}, customers={"venueId": _VENUE, "syncType": "customers"})
]
ApplyRequest = Annotated[
    ApplyBody, body_of(a_venue={"venueId": _VENUE}, without_waiting={"venueId": _VENUE, "wait": 0})
]
_STATE: dict[str, Any] = {
    "id": _ID,
    "venue_id": _VENUE,
    "integration_type": "juniper",
    "sync_type": "full",
    "status": "ready",
    "counts": {"create": 12, "update": 3, "conflict": 1, "skip": 840},
    "writes": 16,
    "mapping_version": 4,
    "requested_by": "44444444-4444-4444-8444-444444444444",
    "created_at": "2026-01-15T11:00:00Z",
    "made_at": "2026-01-15T11:00:04Z",
    "expires_at": "2026-01-16T11:00:00Z",
    "applied_at": None,
    "sync_id": None,
    "error": None,
}
_ROW: dict[str, Any] = {
    "entity": "customer",
    "resource": "customer",
    "local_id": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
    "remote_id": "c_42",
    "action": "conflict",
    "writes": True,
    "reason": "both sides changed `last_name`",
    "fields": [
        {
            "field": "last_name",
            "path": "family_name",
            "ours": "Cruz",
            "before": "de la Cruz",
            "after": "Cruz",
            "reason": "both sides changed it since the last sync (there 2026-01-15T10:40:00Z): the platform "
            "wins by the mapping's rule",
            "conflict": True,
        }
    ],
    "outcome": None,
    "outcome_reason": None,
}


@post(
    PLAN,
    operation_id="planPush",
    summary="Plan a push",
    description="Finds out what a sync would write at the provider now, and why, and writes nothing. It "
    "reads there what it has to: the plan is made in the background, and kept for a day.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=202,
    responses={
        202: good(
            PlanAcceptedAnswer,
            "The plan is being made; `Location` says where to look.",
            Example(
                summary="being made", value={"success": True, "data": {"planId": _ID, "status": "making"}}
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "INTEGRATION_NOT_CONNECTED",
            "CONFLICT",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "QUEUE_FULL",
        ),
    },
)
async def plan_push(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: PlanRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[PlanAcceptedAnswer]:
    request.user.require(data.venue_id)

    async def work() -> Response[PlanAcceptedAnswer]:
        plan = await plans.request_plan(
            context, actor, venue_id=data.venue_id, provider=provider, sync_type=data.sync_type
        )
        place = f"{PLAN.replace('{provider:str}', provider)}/{plan.id}?venueId={data.venue_id}"
        answer = PlanAcceptedAnswer(PlanAccepted(plan.id, plan.status))
        return Response(answer, status_code=202, headers={"Location": place})

    return await answer_once(request, context, idempotency_key, work)


@get(
    f"{PLAN}/{{plan_id:uuid}}",
    operation_id="getPlan",
    summary="One plan, as it is now",
    description="Poll it until it isn't `making` any more. Its records are a list of their own.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(PlanAnswer, "The plan.", Example(summary="ready", value={"success": True, "data": _STATE})),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "NOT_FOUND"),
    },
)
async def get_plan(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId, plan_id: PlanId
) -> PlanAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        known = await plans.look(session, venue_id, provider, plan_id)
    values = {name: getattr(known.plan, name) for name in _STATE if hasattr(known.plan, name)}
    values |= {"status": known.status, "writes": known.writes, "error": known.error}
    return PlanAnswer(msgspec.convert(values, PlanState))


@get(
    f"{PLAN}/{{plan_id:uuid}}/rows",
    operation_id="listPlanRecords",
    summary="What a plan says of each record",
    description="In the order in which a sync would come to them.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            PlanRecordsAnswer,
            "Records of the plan.",
            Example(
                summary="one record",
                value={
                    "success": True,
                    "data": [_ROW],
                    "meta": {"total": 1, "limit": 50, "offset": 0, "next_cursor": None},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "NOT_FOUND"),
    },
)
async def list_plan_records(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    plan_id: PlanId,
    action: ActionFilter = None,
    entity: EntityFilter = None,
    resource: ResourceFilter = None,
    outcome: OutcomeFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> PlanRecordsAnswer:
    request.user.require(venue_id)
    context.catalog.connector(provider)
    async with context.sessions() as session:
        page = await plans.records(
            session,
            venue_id,
            provider,
            plan_id,
            action=action,
            entity=entity,
            resource=resource,
            outcome=outcome,
            limit=limit,
            offset=offset,
            after=read_cursor(cursor, [int]),
        )
    return PlanRecordsAnswer([_row(each) for each in page.rows], page_meta(page, limit, offset))


def _row(row: PushPlanRecord) -> PlanRecordRow:
    values = {name: getattr(row, name) for name in _ROW if name != "outcome_reason"}
    return msgspec.convert({**values, "outcome_reason": row.why}, PlanRecordRow)


@post(
    f"{PLAN}/{{plan_id:uuid}}/apply",
    operation_id="applyPlan",
    summary="Apply a plan",
    description="Starts a sync that writes exactly what the plan lists, once. Where the mapping, a record "
    "of the platform that it writes, or anything else it rests on has changed since, or a sync ran, it is "
    "refused, and `details` say what changed. A record that changed at the provider is found when its turn "
    "comes: it is left alone, and the plan says so.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            schemas.SyncResultAnswer,
            "The sync has ended.",
            Example(
                summary="what it did",
                value={
                    "success": True,
                    "data": {
                        "overall": {"success": True, "syncedCount": 16, "failedCount": 0, "duration": 2100},
                        "syncId": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1",
                        "customers": {"syncedCount": 16, "failedCount": 0},
                    },
                },
            ),
        ),
        202: good(
            schemas.SyncAcceptedAnswer,
            "The sync goes on; `Location` says where to look.",
            Example(
                summary="goes on",
                value={
                    "success": True,
                    "data": {"syncId": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1", "status": "processing"},
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "VENUE_ID_REQUIRED",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "INTEGRATION_NOT_CONNECTED",
            "NOT_FOUND",
            "CONFLICT",
            "SYNC_IN_PROGRESS",
            "IDEMPOTENCY_KEY_IN_USE",
            "IDEMPOTENCY_KEY_REUSED",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "QUEUE_FULL",
            "SYNC_FAILED",
        ),
    },
)
async def apply_plan(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    stopping: Stopping,
    provider: ProviderName,
    plan_id: PlanId,
    data: ApplyRequest,
    idempotency_key: IdempotencyKeyText = None,
) -> Response[schemas.SyncResultAnswer | schemas.SyncAcceptedAnswer]:
    request.user.require(data.venue_id)

    async def work() -> Response[schemas.SyncResultAnswer | schemas.SyncAcceptedAnswer]:
        operation = await plans.apply(
            context, actor, venue_id=data.venue_id, provider=provider, plan_id=plan_id
        )
        operation = await syncs.wait_for(context, operation, data.wait, stopping)
        return answer_for(operation, lambda ended: schemas.SyncResultAnswer(schemas.sync_result(ended)))

    return await answer_once(request, context, idempotency_key, work)


HANDLERS = (plan_push, get_plan, list_plan_records, apply_plan)
