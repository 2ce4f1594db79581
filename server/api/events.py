"""What events are to those who are told of them: the payload of each, for the API's description."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from server.api.openapi import Sent
from server.db.models import HealthStatus
from server.services.outbox import EVENTS, PING

_Provider = Annotated[str, Meta(description="The provider, by its connector's name.")]
_IntegrationId = Annotated[UUID, Meta(description="The integration's id.")]
_Environment = Annotated[str, Meta(description="Where at the provider: `production`, or `sandbox`.")]


class _Data(Struct, frozen=True, kw_only=True):
    venue_id: Annotated[UUID, Meta(description="The venue it happened at.")]
    provider: _Provider


class IntegrationConnectedData(_Data, frozen=True, kw_only=True):
    """Which integration was connected."""

    integration_id: _IntegrationId
    environment: _Environment
    reconnected: Annotated[bool, Meta(description="Whether it had been connected before.")]


class IntegrationDisconnectedData(_Data, frozen=True, kw_only=True):
    """Which integration was disconnected."""

    integration_id: _IntegrationId
    environment: _Environment


class EventSyncCounts(Struct, frozen=True):
    """Records over all mappings, and calls made to the provider."""

    read: int
    created: int
    updated: int
    unchanged: int
    skipped: int
    failed: int
    conflicts: int
    archived: int
    deleted: int
    api_calls: int


class SyncCompletedData(_Data, frozen=True, kw_only=True):
    """Which sync ended, and what it did."""

    sync_id: Annotated[UUID, Meta(description="The sync's id, by which its progress and errors are found.")]
    sync_type: Annotated[str, Meta(description="`full`, or which kind of record.")]
    attempts: Annotated[int, Meta(description="How often it was begun.")]
    counts: Annotated[EventSyncCounts, Meta(description="What it did.")]


class SyncFailedData(SyncCompletedData, frozen=True, kw_only=True):
    """Which sync was given up, why, and what it had done."""

    error_code: Annotated[str, Meta(description="What was wrong, as a code of the API's.")]


class ConflictDetectedData(_Data, frozen=True, kw_only=True):
    """Which field of which record a person has to decide about."""

    conflict_id: Annotated[UUID, Meta(description="The conflict's id, by which it is read and resolved.")]
    entity: Annotated[str, Meta(description="The platform's entity.")]
    resource: Annotated[str, Meta(description="The provider's resource.")]
    field: Annotated[str, Meta(description="The platform's field.")]
    record_id: Annotated[str, Meta(description="The platform's record.")]


class HealedPair(Struct, frozen=True):
    """A pair one of whose fields is gone, and what becomes of it."""

    source: Annotated[str, Meta(description="Our field.")]
    target: Annotated[str, Meta(description="The provider's.")]
    because: Annotated[
        Literal["unknown", "missed", "refused"],
        Meta(
            description="The manifest doesn't know it, records don't have it any more, or the provider "
            "answered to a write that it doesn't know it."
        ),
    ]
    outcome: Annotated[
        Literal["applied", "proposed", "broken"],
        Meta(description="Another field took its place, one is proposed, or nothing is like it."),
    ]
    to: Annotated[str | None, Meta(description="The field that took its place or is proposed.")]
    evidence: Annotated[list[str], Meta(description="What speaks for that, in sentences.")]


class MappingHealedData(_Data, frozen=True, kw_only=True):
    """Whose mapping changed, and how."""

    integration_id: _IntegrationId
    version: Annotated[int, Meta(description="The mapping's new version.")]
    applied: Annotated[int, Meta(description="Pairs that name the field which took another's place.")]
    broken: Annotated[int, Meta(description="Pairs whose field isn't known, which syncs leave out.")]
    mended: Annotated[int, Meta(description="Pairs that were broken before and aren't any more.")]
    pairs: Annotated[list[HealedPair], Meta(description="Those applied and broken, 50 at most.")]


class HealthChangedData(_Data, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}):
    """Whose health changed, how and why."""

    before: Annotated[HealthStatus, Meta(description="How it was doing before.")]
    after: Annotated[HealthStatus, Meta(description="How it is doing now.")]
    reason: Annotated[str, Meta(description="Why, in a word for programs.")]
    explanation: Annotated[str, Meta(description="Why, in a sentence for people.")]


class PingData(Struct, frozen=True):
    """Who was to be sent a ping."""

    venue_id: Annotated[UUID | None, Meta(description="Whose the subscriber is; null: the hub's own.")]
    subscriber_id: Annotated[UUID, Meta(description="The subscriber's id.")]


_DATA: Mapping[str, type[Struct]] = {
    "integration.connected": IntegrationConnectedData,
    "integration.disconnected": IntegrationDisconnectedData,
    "sync.completed": SyncCompletedData,
    "sync.failed": SyncFailedData,
    "conflict.detected": ConflictDetectedData,
    "mapping.healed": MappingHealedData,
    "health.changed": HealthChangedData,
    PING: PingData,
}


def _payload(name: str) -> type[Struct]:
    title = "".join(part.title() for part in name.split("."))
    fields: list[tuple[str, Any]] = [
        ("type", Annotated[Literal[name], Meta(description="Which event it is.")]),
        ("timestamp", Annotated[datetime, Meta(description="When it happened.", tz=True)]),
        ("data", Annotated[_DATA[name], Meta(description="What there is to say of it.")]),
    ]
    return msgspec.defstruct(
        f"{title}Event", fields, frozen=True, module=__name__, namespace={"__doc__": ABOUT[name]}
    )


ABOUT: Mapping[str, str] = {**EVENTS, PING: "Somebody asked to send this subscriber a ping."}
PAYLOADS: Mapping[str, type[Struct]] = {name: _payload(name) for name in _DATA}

_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_OURS = {"venue_id": _VENUE, "provider": "juniper"}
_INTEGRATION = {**_OURS, "integration_id": "0b6a3c1e-5f0e-4c8f-9d3a-2f1f5b7f9a10"}
_COUNTS = {
    **{"read": 120, "created": 3, "updated": 12, "unchanged": 104, "skipped": 0, "failed": 1},
    **{"conflicts": 0, "archived": 0, "deleted": 0, "api_calls": 9},
}
_SYNC = {
    **_OURS,
    "sync_id": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1",
    "sync_type": "full",
    "attempts": 1,
    "counts": _COUNTS,
}
_EXAMPLE_DATA: Mapping[str, Mapping[str, Any]] = {
    "integration.connected": {**_INTEGRATION, "environment": "production", "reconnected": False},
    "integration.disconnected": {**_INTEGRATION, "environment": "production"},
    "sync.completed": _SYNC,
    "sync.failed": {**_SYNC, "attempts": 10, "error_code": "UNAVAILABLE"},
    "conflict.detected": {
        **_OURS,
        "conflict_id": "5b0f6a5e-8d0c-4a59-9c57-64d3b1b0f0a2",
        "entity": "customer",
        "resource": "customer",
        "field": "last_name",
        "record_id": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
    },
    "mapping.healed": {
        **_INTEGRATION,
        "version": 4,
        "applied": 0,
        "broken": 1,
        "mended": 0,
        "pairs": [
            {
                "source": "customer.notes",
                "target": "customer.note",
                "because": "refused",
                "outcome": "proposed",
                "to": "customer.remark",
                "evidence": ["`note` and `remark` are often put for each other"],
            }
        ],
    },
    "health.changed": {
        **_OURS,
        "from": "healthy",
        "to": "degraded",
        "reason": "some_syncs_fail",
        "explanation": "12 of 100 syncs failed within a day",
    },
    PING: {"venue_id": _VENUE, "subscriber_id": "c1f4e0c2-6a27-4f6c-9a53-2a5b2f0d7e11"},
}
EXAMPLES: Mapping[str, dict[str, Any]] = {
    name: {"type": name, "timestamp": "2026-01-15T11:00:00Z", "data": dict(data)}
    for name, data in _EXAMPLE_DATA.items()
}

_SUMMARIES: Mapping[str, str] = {
    "integration.connected": "A provider was connected",
    "integration.disconnected": "A connection was ended",
    "sync.completed": "A sync came to its end",
    "sync.failed": "A sync was given up",
    "conflict.detected": "A person has to decide about a field",
    "mapping.healed": "A mapping was healed",
    "health.changed": "An integration's health changed",
    PING: "A ping",
}
SENT: Mapping[str, Sent] = {
    name: Sent(_SUMMARIES[name], ABOUT[name], PAYLOADS[name], EXAMPLES[name], "Events") for name in PAYLOADS
}
