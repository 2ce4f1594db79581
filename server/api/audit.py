"""Read who did what: administrators all of it, a venue's administrators what was done at theirs."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import get
from litestar.openapi.spec import Example
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from server.api.admin import ADMIN, ProviderFilter
from server.api.dependencies import Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, MANAGERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import CursorText, Limit, Offset, PageMeta, page_meta, read_cursor
from server.context import Context
from server.db.models import AuditEntry
from server.errors import Detail, InvalidRequestError
from server.services import audit
from server.services.audit import Wanted

TAGS = ["Audit and privacy"]
VENUE = f"{PATH}/venue/{{venue_id:uuid}}"
_LARGEST_ID = 2**63 - 1

VenueInPath = Annotated[UUID, PathParameter(description="The venue's id.")]
VenueFilter = Annotated[
    UUID | None, QueryParameter(name="venueId", description="Only what was done at this venue.")
]
ActionFilter = Annotated[
    str | None,
    QueryParameter(
        name="action",
        max_length=100,
        description="Only this action, such as `sync.requested`; `integration.*` is all of a group.",
    ),
]
ActorFilter = Annotated[
    str | None, QueryParameter(name="actorId", max_length=255, description="Only what this caller did.")
]
FromFilter = Annotated[
    datetime | None, QueryParameter(name="from", description="Only what was done then or later.")
]
ToFilter = Annotated[
    datetime | None, QueryParameter(name="to", description="Only what was done before then.")
]


class AuditRow(Struct, frozen=True):
    """One thing that was done, or refused."""

    id: int
    created_at: datetime
    action: str
    actor: Annotated[
        str, Meta(description="The caller's id. To a venue, callers of other venues are `another venue`.")
    ]
    role: str | None
    venue_id: UUID | None
    integration_type: str | None
    target: Annotated[str | None, Meta(description="The id of what it was done to.")]
    details: dict[str, Any]
    before: Annotated[dict[str, Any] | None, Meta(description="What changed, as it was; never a secret.")]
    after: Annotated[dict[str, Any] | None, Meta(description="What changed, as it was afterwards.")]
    ip: str | None
    request_id: str | None
    count: Annotated[int, Meta(description="How often within a minute; over 1 only for what was refused.")]


class AuditAnswer(Struct, frozen=True):
    data: list[AuditRow]
    meta: PageMeta
    success: Literal[True] = True


_ENTRIES = good(
    AuditAnswer,
    "Entries, newest first.",
    Example(
        summary="two entries",
        value={
            "success": True,
            "data": [
                {
                    "id": 1042,
                    "created_at": "2026-01-15T11:00:00Z",
                    "action": "integration.connected",
                    "actor": "44444444-4444-4444-8444-444444444444",
                    "role": "venue_admin",
                    "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                    "integration_type": "juniper",
                    "target": "0b6a3c1e-5f0e-4c8f-9d3a-2f1f5b7f9a10",
                    "details": {"template": "music-venue"},
                    "before": {"status": "disconnected"},
                    "after": {"status": "connected"},
                    "ip": "203.0.113.7",
                    "request_id": "5f0c3b8e2f6a4d0e9b7a1c2d3e4f5a6b",
                    "count": 1,
                },
                {
                    "id": 1041,
                    "created_at": "2026-01-15T10:58:00Z",
                    "action": "access.denied",
                    "actor": "55555555-5555-4555-8555-555555555555",
                    "role": "user",
                    "venue_id": "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f",
                    "integration_type": "juniper",
                    "target": None,
                    "details": {
                        "code": "FORBIDDEN",
                        "route": "POST /api/v1/integrations/connect/{provider}",
                    },
                    "before": None,
                    "after": None,
                    "ip": "203.0.113.8",
                    "request_id": None,
                    "count": 12,
                },
            ],
            "meta": {"total": 2, "limit": 50, "offset": 0, "next_cursor": None},
        },
    ),
)


@get(
    f"{ADMIN}/audit",
    operation_id="listAudit",
    summary="Who did what, everywhere",
    description="Attempts that were refused are `access.denied`, counted by caller and minute.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={200: _ENTRIES, **error_answers("VALIDATION_ERROR")},
)
async def list_audit(
    context: Shared,
    venue_id: VenueFilter = None,
    provider: ProviderFilter = None,
    action: ActionFilter = None,
    actor_id: ActorFilter = None,
    since: FromFilter = None,
    until: ToFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> AuditAnswer:
    wanted = Wanted(venue_id, provider, action, actor_id, since, until)
    return await _answer(context, wanted, limit, offset, cursor)


@get(
    f"{VENUE}/audit",
    operation_id="listVenueAudit",
    summary="Who did what at a venue",
    description="As `listAudit`, for one venue. Who tried from another venue isn't told.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={200: _ENTRIES, **error_answers("VALIDATION_ERROR")},
)
async def list_venue_audit(
    request: CallerRequest,
    context: Shared,
    venue_id: VenueInPath,
    provider: ProviderFilter = None,
    action: ActionFilter = None,
    actor_id: ActorFilter = None,
    since: FromFilter = None,
    until: ToFilter = None,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> AuditAnswer:
    request.user.require(venue_id)
    wanted = Wanted(venue_id, provider, action, actor_id, since, until, own_only=True if actor_id else None)
    return await _answer(context, wanted, limit, offset, cursor, to_venue=True)


async def _answer(
    context: Context, wanted: Wanted, limit: int, offset: int, cursor: str | None, *, to_venue: bool = False
) -> AuditAnswer:
    for name, moment in (("from", wanted.since), ("to", wanted.until)):
        if moment is not None and moment.tzinfo is None:
            raise InvalidRequestError(
                "a time needs its zone", [Detail(name, "end it in `Z`, or in an offset such as `+01:00`")]
            )
    after = read_cursor(cursor, [Annotated[int, Meta(ge=0, le=_LARGEST_ID)]])
    async with context.sessions() as session:
        page = await audit.read(
            session, wanted, limit=limit, offset=offset, after=None if after is None else after[0]
        )
    return AuditAnswer([_row(entry, to_venue) for entry in page.rows], page_meta(page, limit, offset))


def _row(entry: AuditEntry, to_venue: bool) -> AuditRow:
    hidden = to_venue and entry.details.get("foreign") is True
    return AuditRow(
        id=entry.id,
        created_at=entry.created_at,
        action=entry.action,
        actor="another venue" if hidden else entry.actor,
        role=entry.role,
        venue_id=entry.venue_id,
        integration_type=entry.integration_type,
        target=entry.target,
        details=entry.details,
        before=entry.before,
        after=entry.after,
        ip=None if hidden or entry.ip is None else str(entry.ip),
        request_id=entry.request_id,
        count=entry.count,
    )


HANDLERS = (list_audit, list_venue_audit)
