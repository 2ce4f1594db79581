"""What became of a write: one record's outcome, read from an answer or from what was raised instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.batching import Write
from engine.bodies import version_of
from engine.caller import RefusedError
from engine.errors import (
    ExpressionError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.expressions import ABSENT
from engine.jobs import JobLostError
from engine.manifest import Resource

Results = dict[str, "WriteResult"]


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of one write.

    Without `error` it is done, under `remote_id`. With one, `retryable` says whether trying again can help,
    and `answered` False that no answer came to its end: only the same group under the same key may be sent
    again. After a server error, which is an answer, the record may be there too, but its key can be spent:
    some providers replay their failure. An error together with a `remote_id` on a create means that the
    record is there, but a call that belongs to it failed. `write` is what was to be written, with those left
    in `retire` that are still to be put out of use. `changed_at` is RFC 3339 in UTC. `heal` says that the
    provider complains of a field, named by the error.
    """

    write: Write
    remote_id: str | None = None
    version: str | None = None
    changed_at: str | None = None
    record: Mapping[str, Any] | None = None
    error: ProviderError | None = None
    retryable: bool = False
    answered: bool = True
    heal: bool = False


def left_out(write: Write, message: str) -> WriteResult:
    """Return the result of a write whose answer came to its end without a word about it."""
    return WriteResult(write, write.remote_id, error=UnexpectedResponseError(message), retryable=True)


def succeeded(
    resource: Resource, write: Write, record: Mapping[str, Any] | None, remote_id: str | None
) -> WriteResult:
    """Return the result of a write that succeeded; an answer without a readable time just has none."""
    found = resource.id.find(record) if record is not None else ABSENT
    version = version_of(resource, record)
    changed = resource.changed_at.find(record) if resource.changed_at and record is not None else None
    return WriteResult(
        write=write,
        remote_id=str(found) if found else remote_id,
        version=str(version) if version is not None else None,
        changed_at=str(changed) if changed else None,
        record=record,
    )


def failed(write: Write, error: ProviderError | ExpressionError) -> WriteResult:
    """Return the result of a write that failed; what ends a whole run is raised on."""
    if isinstance(error, ExpressionError):
        return WriteResult(write, write.remote_id, error=RecordRejectedError(error.message))
    if isinstance(error, RefusedError):
        heal = error.action == "propose_heal"
        return WriteResult(
            write, write.remote_id, error=error, retryable=error.action == "new_key", heal=heal
        )
    if isinstance(error, RecordRejectedError):
        return WriteResult(write, write.remote_id, error=error)
    if isinstance(error, RateLimitedError):
        return WriteResult(write, write.remote_id, error=error, retryable=True)
    if isinstance(error, UnavailableError | UnexpectedResponseError):
        # A server error is an answer, and some providers replay it for its key for ever. A job whose results
        # are lost came to its end: what it held is announced anew.
        answered = isinstance(error, JobLostError) or (
            isinstance(error, UnavailableError) and error.status is not None and error.status >= 500
        )
        return WriteResult(write, write.remote_id, error=error, retryable=True, answered=answered)
    raise error


def is_gone(error: ProviderError) -> bool:
    """Say whether a write failed because the record isn't there any more."""
    recreate = isinstance(error, RefusedError) and error.action == "recreate"
    return isinstance(error, RecordRejectedError) and (recreate or error.status in (404, 410))
