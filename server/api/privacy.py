"""A venue's data: all of it as one file, and all of it erased."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Response, get, post
from litestar.datastructures import ResponseHeader
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg
from litestar.response import Stream
from msgspec import Meta, Struct

from server.api.audit import TAGS, VENUE, VenueInPath
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMIN, MANAGERS, TOKEN, CallerRequest
from server.api.vault import RunAccepted, RunAcceptedAnswer, RunAnswer, RunId, run_state
from server.context import Context
from server.db.models import MaintenanceRun
from server.errors import Detail, InvalidRequestError
from server.services import erasure, export
from server.services.venues import ERASURE

EXPORT, ERASE = f"{VENUE}/export", f"{VENUE}/erase"
_RUN = "{run_id:uuid}"

_ID = "7b0e6a0c-3f43-4b55-8a63-0d9f1f9a7e21"
_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_STATE: dict[str, Any] = {
    "id": _ID,
    "venue_id": _VENUE,
    "status": "completed",
    "error": None,
    "attempts": 0,
    "requested_by": "u_1",
    "created_at": "2026-01-15T11:00:00Z",
    "started_at": "2026-01-15T11:00:00Z",
    "updated_at": "2026-01-15T11:00:09Z",
    "completed_at": "2026-01-15T11:00:09Z",
}
_BEGUN = Example(summary="begun", value={"success": True, "data": {"runId": _ID, "status": "pending"}})


class EraseBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Says that it is meant."""

    confirm: Annotated[
        UUID | None, Meta(description="The venue's id once more. Only an `admin` may leave it out.")
    ] = None


@post(
    EXPORT,
    operation_id="exportVenue",
    summary="Export a venue",
    description="All the hub has stored for the venue, as one zip archive: a file of JSON lines for each "
    "table and a `manifest.json` with counts and checksums. Credentials are left out. It is written in the "
    "background; one that is under way is joined. The archive can be fetched for 7 days.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=202,
    responses={
        202: good(RunAcceptedAnswer, "It goes on; `Location` says where to look.", _BEGUN),
        **error_answers("VALIDATION_ERROR", "CONFLICT"),
    },
)
async def export_venue(
    request: CallerRequest, context: Shared, actor: Acting, venue_id: VenueInPath
) -> Response[RunAcceptedAnswer]:
    request.user.require(venue_id)
    return _accepted(await export.start(context, actor, venue_id), EXPORT)


@get(
    f"{EXPORT}/{_RUN}",
    operation_id="getExport",
    summary="How far an export is",
    description="Poll it until `status` is none of `pending` and `running`; then the archive can be fetched.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={
        200: good(
            RunAnswer,
            "The export; `result` is there when it is completed.",
            Example(
                summary="completed",
                value={
                    "success": True,
                    "data": {
                        **_STATE,
                        "kind": "export",
                        "progress": {"step": "webhooks", "done": 4711, "total": 4711, "failed": 0},
                        "result": {
                            "bytes": 220134,
                            "parts": 61,
                            "files": 22,
                            "rows": 4711,
                            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                            "expires_at": "2026-01-22T11:00:09+00:00",
                        },
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def get_export(
    request: CallerRequest, context: Shared, venue_id: VenueInPath, run_id: RunId
) -> RunAnswer:
    request.user.require(venue_id)
    return await _state(context, export.KIND, venue_id, run_id)


@get(
    f"{EXPORT}/{_RUN}/download",
    operation_id="downloadExport",
    summary="Fetch an export",
    description="The archive. Who fetched it is written down. One that isn't finished yet is a conflict.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    media_type="application/zip",
    response_headers=[
        ResponseHeader(name="ETag", description="The archive's SHA-256.", documentation_only=True),
        ResponseHeader(
            name="Content-Disposition", description="A name for the file.", documentation_only=True
        ),
    ],
    responses={
        200: ResponseSpec(
            bytes,
            generate_examples=False,
            description="The archive; the `ETag` is its SHA-256.",
            media_type="application/zip",
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND", "CONFLICT"),
    },
)
async def download_export(
    request: CallerRequest, context: Shared, actor: Acting, venue_id: VenueInPath, run_id: RunId
) -> Stream:
    request.user.require(venue_id)
    archive = await export.open_archive(context, actor, venue_id, run_id)
    return Stream(
        export.read_parts(context, archive),
        media_type="application/zip",
        headers={
            "Content-Length": str(archive.bytes),
            "Content-Disposition": f'attachment; filename="venue-{venue_id}.zip"',
            "ETag": f'"{archive.sha256}"',
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


@post(
    ERASE,
    operation_id="eraseVenue",
    summary="Erase a venue",
    description="Disconnects every integration, revoking its credentials at the provider, ends what runs and "
    "deletes all the hub has stored for the venue. This can't be undone. While it goes on nothing new is "
    "taken for the venue. At its end all is counted again; the run's `result` is the proof. The audit log "
    "keeps what was done and when, without persons. One that is under way is joined.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=202,
    responses={
        202: good(RunAcceptedAnswer, "It goes on; `Location` says where to look.", _BEGUN),
        **error_answers("VALIDATION_ERROR", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"),
    },
)
async def erase_venue(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    venue_id: VenueInPath,
    data: Annotated[
        EraseBody | None,
        BodyKwarg(examples=[Example(summary="meant", value={"confirm": _VENUE})]),
    ] = None,
) -> Response[RunAcceptedAnswer]:
    request.user.require(venue_id)
    confirmed = data.confirm if data else None
    if confirmed != venue_id and (confirmed is not None or request.user.role != ADMIN):
        raise InvalidRequestError(
            "erasing a venue can't be undone: confirm it with the venue's id",
            [Detail("confirm", "this isn't the venue's id" if confirmed else "`confirm` is missing")],
        )
    return _accepted(await erasure.start(context, actor, venue_id), ERASE)


@get(
    f"{ERASE}/{_RUN}",
    operation_id="getErasure",
    summary="How far an erasure is, and its proof",
    description="It stays readable when everything else of the venue is gone.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    responses={
        200: good(
            RunAnswer,
            "The erasure; `result` is there when it is completed.",
            Example(
                summary="completed",
                value={
                    "success": True,
                    "data": {
                        **_STATE,
                        "kind": ERASURE,
                        "progress": {"step": "verified", "done": 4711, "total": 4711, "failed": 0},
                        "result": {
                            "tables": {
                                "record_links": {"erased": 4200, "left": 0},
                                "sync_logs": {"erased": 500, "left": 0},
                            },
                            "redis_keys": {"erased": 2, "left": 0},
                            "disconnected": {"juniper": "done"},
                            "kept": {"audit_log": "what was done and when has to be accounted for; …"},
                            "rounds": 1,
                            "verified_at": "2026-01-15T11:00:09+00:00",
                        },
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def get_erasure(
    request: CallerRequest, context: Shared, venue_id: VenueInPath, run_id: RunId
) -> RunAnswer:
    request.user.require(venue_id)
    return await _state(context, ERASURE, venue_id, run_id)


async def _state(context: Context, kind: str, venue_id: UUID, run_id: UUID) -> RunAnswer:
    async with context.sessions() as session:
        return RunAnswer(run_state(await export.find(session, kind, venue_id, run_id)))


def _accepted(run: MaintenanceRun, path: str) -> Response[RunAcceptedAnswer]:
    where = f"{path.replace('{venue_id:uuid}', str(run.venue_id))}/{run.id}"
    return Response(
        RunAcceptedAnswer(RunAccepted(run.id, run.status)), status_code=202, headers={"Location": where}
    )


HANDLERS = (export_venue, get_export, download_export, erase_venue, get_erasure)
