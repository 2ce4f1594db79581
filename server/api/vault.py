"""The vault's keys: what is sealed under which, and putting all of it under the current one."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import PathParameter
from msgspec import Meta, Struct

from server.api.admin import ADMIN, TAGS
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import ADMINS, TOKEN
from server.db.models import MaintenanceRun
from server.services import maintenance, rotation

RUN = f"{ADMIN}/maintenance/{{run_id:uuid}}"

RunId = Annotated[UUID, PathParameter(description="The `runId` that starting it answered.")]


class KeyUse(Struct, frozen=True):
    """How much is sealed under one key."""

    key_id: Annotated[
        str | None,
        Meta(
            description="Who keeps the key, and its id there: `local:2026`, `aws-kms:arn:aws:kms:…`. "
            "Null: what is stored isn't a sealed value."
        ),
    ]
    values: int
    by_column: dict[str, int]
    known: Annotated[
        bool, Meta(description="Whether the hub has this key. Else these values can't be opened.")
    ]
    current: Annotated[bool, Meta(description="Whether it is the one that seals.")]
    removable: Annotated[bool, Meta(description="Whether nothing needs this key any more.")]


class VaultState(Struct, frozen=True):
    keys: list[KeyUse]
    rotation: Annotated["RunState | None", Meta(description="The rotation that was started last.")]


class RunState(Struct, frozen=True):
    """Work on what is stored itself: a rotation, an export or an erasure."""

    id: UUID
    kind: str
    venue_id: UUID | None
    status: Literal["pending", "running", "completed", "failed", "stopped"]
    progress: Annotated[
        dict[str, Any], Meta(description="`step` it is at, `done` of `total`, and how many `failed`.")
    ]
    result: dict[str, Any] | None
    error: str | None
    attempts: Annotated[int, Meta(description="How often the batch that is next has failed.")]
    requested_by: str
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None


class VaultAnswer(Struct, frozen=True):
    data: VaultState
    success: Literal[True] = True


class RunAnswer(Struct, frozen=True):
    data: RunState
    success: Literal[True] = True


class RunAccepted(Struct, frozen=True, rename="camel"):
    run_id: UUID
    status: str


class RunAcceptedAnswer(Struct, frozen=True):
    data: RunAccepted
    success: Literal[True] = True


_ID = "7b0e6a0c-3f43-4b55-8a63-0d9f1f9a7e21"
_RUN = {
    "id": _ID,
    "kind": "rotation",
    "venue_id": None,
    "status": "running",
    "progress": {"step": "oauth_tokens.encrypted_access_token", "done": 400, "total": 2300, "failed": 0},
    "result": None,
    "error": None,
    "attempts": 0,
    "requested_by": "u_1",
    "created_at": "2026-01-15T11:00:00Z",
    "started_at": "2026-01-15T11:00:00Z",
    "updated_at": "2026-01-15T11:00:02Z",
    "completed_at": None,
}


@get(
    f"{ADMIN}/vault",
    operation_id="getVault",
    summary="What is sealed under which key",
    description="Says which keys may be removed. It opens nothing.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(
            VaultAnswer,
            "The keys, and the rotation that was started last.",
            Example(
                summary="a rotation is under way",
                value={
                    "success": True,
                    "data": {
                        "keys": [
                            {
                                "key_id": "local:2027",
                                "values": 400,
                                "by_column": {"oauth_tokens.encrypted_access_token": 400},
                                "known": True,
                                "current": True,
                                "removable": False,
                            },
                            {
                                "key_id": "local:2026",
                                "values": 1900,
                                "by_column": {
                                    "oauth_tokens.encrypted_access_token": 750,
                                    "oauth_tokens.encrypted_refresh_token": 1150,
                                },
                                "known": True,
                                "current": False,
                                "removable": False,
                            },
                        ],
                        "rotation": _RUN,
                    },
                },
            ),
        ),
        **error_answers("STORE_UNAVAILABLE"),
    },
)
async def get_vault(context: Shared) -> VaultAnswer:
    async with context.sessions() as session:
        keys = await rotation.usage(session, context.vault.keys)
        last = await rotation.last(session)
    uses = [
        KeyUse(each.key_id, each.count, dict(each.values), each.known, each.current, each.removable)
        for each in keys
    ]
    return VaultAnswer(VaultState(uses, None if last is None else run_state(last)))


@post(
    f"{ADMIN}/vault/rotate",
    operation_id="rotateVault",
    summary="Put everything under the current key",
    description="Goes on in the background, in batches, while syncs run. One that is under way is joined. "
    "Set the new key first, in front of the old one, and start all processes anew.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=202,
    responses={
        202: good(
            RunAcceptedAnswer,
            "It goes on; `Location` says where to look.",
            Example(summary="begun", value={"success": True, "data": {"runId": _ID, "status": "pending"}}),
        ),
        **error_answers(),
    },
)
async def rotate_vault(context: Shared, actor: Acting) -> Response[RunAcceptedAnswer]:
    run, _ = await rotation.request(context, actor)
    return Response(
        RunAcceptedAnswer(RunAccepted(run.id, run.status)),
        status_code=202,
        headers={"Location": RUN.replace("{run_id:uuid}", str(run.id))},
    )


@get(
    RUN,
    operation_id="getMaintenance",
    summary="A rotation, export or erasure as it is now",
    description="Poll it until `completed_at` is there.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    responses={
        200: good(RunAnswer, "The run.", Example(summary="under way", value={"success": True, "data": _RUN})),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def get_maintenance(context: Shared, run_id: RunId) -> RunAnswer:
    async with context.sessions() as session:
        return RunAnswer(run_state(await maintenance.read(session, run_id)))


@post(
    f"{RUN}/stop",
    operation_id="stopMaintenance",
    summary="Stop a rotation, export or erasure",
    description="It stops after the batch it is at. What is done stays done; nothing is half done.",
    tags=TAGS,
    opt=ADMINS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            RunAnswer,
            "The run, stopped, or as it had ended before.",
            Example(
                summary="stopped",
                value={
                    "success": True,
                    "data": {**_RUN, "status": "stopped", "completed_at": "2026-01-15T11:00:03Z"},
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "NOT_FOUND"),
    },
)
async def stop_maintenance(context: Shared, actor: Acting, run_id: RunId) -> RunAnswer:
    async with context.sessions.begin() as session:
        return RunAnswer(run_state(await maintenance.stop(session, actor, run_id)))


def run_state(run: MaintenanceRun) -> RunState:
    return msgspec.convert(run, RunState, from_attributes=True)


HANDLERS = (get_vault, rotate_vault, get_maintenance, stop_maintenance)
