"""Bodies of requests and answers. Callers write camelCase; rows come back in snake_case."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, cast, get_args
from uuid import UUID

import msgspec
import orjson
from litestar.enums import RequestEncodingType
from litestar.openapi.spec import Example, OpenAPIType, Schema
from litestar.params import BodyKwarg, HeaderParameter, PathParameter, QueryParameter
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from msgspec import Meta, Struct

from engine.ports import Secret
from server.api.paths import PATH
from server.db import models
from server.db.models import (
    Direction,
    HealthStatus,
    IntegrationConfig,
    IntegrationStatus,
    Operation,
    OperationStatus,
    Priority,
)
from server.errors import Detail, InvalidRequestError
from server.services import breaker, health, syncs
from server.services.breaker import CircuitState
from server.services.integrations import Page, Revocation
from server.services.views import View

MOST_ROWS = 200
MOST_SKIPPED = 1_000_000_000  # less than PostgreSQL's integer holds

ProviderName = Annotated[str, PathParameter(description="The provider, by its connector's name.")]
SyncId = Annotated[UUID, PathParameter(description="The `syncId` that starting the sync answered.")]
VenueId = Annotated[UUID, QueryParameter(name="venueId", description="The venue's id.")]
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_ROWS, description="How many rows to answer.")]
Offset = Annotated[
    int,
    QueryParameter(
        ge=0,
        le=MOST_SKIPPED,
        description="How many rows to skip. Rows added meanwhile shift it; a cursor stays.",
    ),
]
CursorText = Annotated[
    str | None,
    QueryParameter(name="cursor", max_length=500, description="`meta.next_cursor` of the page before."),
]
IdempotencyKeyText = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of your own, for sending a request again safely: the same key and body get the "
        "first answer again, for 24 hours.",
    ),
]

Moment = Annotated[datetime, Meta(tz=True)]
SyncType = Literal["products", "customers", "transactions", "full"]


# --- requests

LONGEST_SECRET = 4096  # characters


def is_secret(kind: Any) -> bool:
    """Say whether a type is that of a secret, for the framework's table of decoders."""
    return kind is Secret


def read_secret(kind: Any, value: Any) -> Secret:
    """Read a secret from a body, so that it is one from the start; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError("Expected `str`")
    if len(value) > LONGEST_SECRET:
        raise ValueError(f"Expected `str` of length <= {LONGEST_SECRET}")
    return Secret(value)


def body_kind(annotation: Any) -> Any:
    """Return the struct a body is read into; of one that may be left out, too."""
    kinds = (annotation, *get_args(annotation))
    return next(each for each in kinds if isinstance(each, type) and issubclass(each, Struct))


class SecretPlugin(OpenAPISchemaPlugin):
    """Describes a secret in a body: it is text, and no answer ever has it."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return is_secret(value)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        return Schema(type=OpenAPIType.STRING, max_length=LONGEST_SECRET, write_only=True)


class SyncConfig(Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=False):
    """How an integration is kept in step."""

    sync_enabled: Annotated[bool, Meta(description="Sync by itself, and once right after connecting.")] = True
    sync_interval: Annotated[int, Meta(ge=60, le=31 * 86400, description="Seconds between syncs.")] = 300
    sync_direction: Annotated[
        Literal["bidirectional", "inbound", "outbound", "pull", "push"],
        Meta(description="Which ways records may go: `inbound` (or `pull`) is to the platform."),
    ] = "bidirectional"


class ConnectBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What it takes to connect. Without credentials an authorization by OAuth is begun."""

    venue_id: UUID
    credentials: Annotated[
        dict[str, Secret],
        Meta(description="The provider's credential fields, such as `apiKey`; none for OAuth."),
    ] = {}
    connection: Annotated[
        dict[str, Annotated[str, Meta(max_length=255)]],
        Meta(description="Values of the connection the venue chooses itself; the rest is found out."),
    ] = {}
    config: SyncConfig = SyncConfig()
    environment: Literal["production", "sandbox"] = "production"
    redirect_uri: Annotated[
        Annotated[str, Meta(max_length=2000)] | None,
        Meta(
            description="For OAuth: an address from `HUB_REDIRECT_URIS` that the provider sends the "
            "browser back to, instead of the hub's own. Whoever is there calls the hub's with code, state "
            "and the token of the same user.",
        ),
    ] = None


class ApiKeyBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Credentials to try: `apiKey` and `apiSecret`, or whatever fields the provider takes."""

    api_key: Secret | None = None
    api_secret: Secret | None = None
    credentials: Annotated[dict[str, Secret], Meta(description="The provider's credential fields.")] = {}
    connection: Annotated[
        dict[str, Annotated[str, Meta(max_length=255)]],
        Meta(description="Values of the connection the venue chooses itself."),
    ] = {}
    environment: Literal["production", "sandbox"] = "production"
    venue_id: Annotated[UUID | None, Meta(description="Whom it is for, for the audit log.")] = None


class VenueBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The venue to act for."""

    venue_id: UUID


class SyncOptions(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which changes to look at, and what to do about records that are gone.

    With a date, only records that changed from the beginning of `startDate` to the end of `endDate` (in UTC)
    are looked at, on either side, whether or not an earlier sync did. Where a provider doesn't say when its
    records changed, all are. It changes nothing for later syncs: they go on where the last one without dates
    got to.
    """

    complete: Annotated[
        bool,
        Meta(
            description="Also look for what was deleted without a word: compare all that is linked. "
            "Not together with dates."
        ),
    ] = False
    approve_deletes: Annotated[
        bool,
        Meta(description="Archive, delete and unlink what is gone, however much that is."),
    ] = False
    force: Annotated[
        bool, Meta(description="Changes nothing: a manual sync never waits for the interval.")
    ] = False
    start_date: Annotated[date | None, Meta(description="The first day whose changes are looked at.")] = None
    end_date: Annotated[date | None, Meta(description="The last day whose changes are looked at.")] = None


class SyncBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which records to bring in step."""

    venue_id: UUID
    sync_type: SyncType = "full"
    options: SyncOptions = SyncOptions()
    wait: Annotated[
        float, Meta(ge=0, le=60, description="Seconds to wait for the result before answering 202.")
    ] = 25


class RetryBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which operations to queue again."""

    venue_id: UUID
    queue_item_id: Annotated[UUID | None, Meta(description="One operation; all that failed without it.")] = (
        None
    )


class ForceSyncBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The integration to bring in step."""

    venue_id: UUID
    integration_type: Annotated[str, Meta(max_length=50)]
    wait: Annotated[
        float, Meta(ge=0, le=60, description="Seconds to wait for the result before answering 202.")
    ] = 25


class RecordRetryBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which failed record to try again, named as failures name it."""

    venue_id: UUID
    entity: Annotated[str, Meta(max_length=100, description="Ours, such as `event`.")]
    resource: Annotated[str, Meta(max_length=100, description="The provider's, such as `item`.")]
    direction: Direction
    record_id: Annotated[str, Meta(max_length=255, description="Ours on a push, theirs on a pull.")]


class ClearQueueBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which operations to delete: those that fit all that is given."""

    venue_id: UUID | None = None
    integration_type: Annotated[str, Meta(max_length=50)] | None = None
    status: OperationStatus | None = None


_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"


def body_of(**examples: dict[str, Any]) -> BodyKwarg:
    """Describe a JSON body, with examples by what they show."""
    shown = [Example(summary=name.replace("_", " "), value=value) for name, value in examples.items()]
    return BodyKwarg(media_type=RequestEncodingType.JSON, examples=shown)


ConnectRequest = Annotated[
    ConnectBody,
    body_of(
        with_credentials={
            "venueId": _VENUE,
            "credentials": {"apiKey": "jp_live_…"},
            "config": {"syncEnabled": True, "syncInterval": 300, "syncDirection": "bidirectional"},
        },
        by_OAuth={"venueId": _VENUE, "environment": "sandbox"},
    ),
]
ApiKeyRequest = Annotated[
    ApiKeyBody,
    body_of(
        a_key={"apiKey": "jp_test_…"},
        other_fields={"credentials": {"username": "box-office", "password": "…"}, "environment": "sandbox"},
    ),
]
VenueRequest = Annotated[VenueBody, body_of(a_venue={"venueId": _VENUE})]
SyncRequest = Annotated[
    SyncBody,
    body_of(
        everything={"venueId": _VENUE},
        products_without_waiting={"venueId": _VENUE, "syncType": "products", "wait": 0},
        what_changed_in_January={
            "venueId": _VENUE,
            "options": {"startDate": "2026-01-01", "endDate": "2026-01-31"},
        },
    ),
]
RetryRequest = Annotated[
    RetryBody,
    body_of(
        all_that_failed={"venueId": _VENUE},
        one={"venueId": _VENUE, "queueItemId": "3c1d6a52-0f5e-4f59-8b39-0d3a5be5a3f1"},
    ),
]
RecordRetryRequest = Annotated[
    RecordRetryBody,
    body_of(
        an_event={
            "venueId": _VENUE,
            "entity": "event",
            "resource": "item",
            "direction": "push",
            "recordId": "0d5c8a5e-6a3b-4c06-9b7e-2f6f3f1f8a10",
        }
    ),
]
ForceSyncRequest = Annotated[
    ForceSyncBody, body_of(an_integration={"venueId": _VENUE, "integrationType": "juniper"})
]
ClearQueueRequest = Annotated[
    ClearQueueBody,
    body_of(
        what_failed={"status": "failed"},
        one_integration={"venueId": _VENUE, "integrationType": "juniper"},
    ),
]


# --- answers


class PageMeta(Struct, frozen=True):
    """Where a page stands among all rows. `next_cursor` is null on the last one."""

    total: int
    limit: int
    offset: int
    next_cursor: str | None


class IntegrationHealth(Struct, frozen=True):
    """An integration's last 24 hours; `success_rate` is in percent of its syncs."""

    success_rate: float | None
    sync_count_24h: int
    api_calls_24h: int
    authorization_ends_at: Annotated[
        datetime | None,
        Meta(description="Told when it is near: connect again before, unless a renewal puts it off."),
    ] = None


class Integration(Struct, frozen=True):
    """A venue's use of a provider."""

    id: UUID
    integration_type: str
    environment: str
    status: IntegrationStatus
    connected_at: datetime | None
    disconnected_at: datetime | None
    last_sync_at: datetime | None
    next_sync_at: datetime | None
    health_status: HealthStatus
    failure_count: int
    last_error: str | None
    last_error_at: datetime | None
    config: dict[str, Any]
    template_id: UUID | None
    health: IntegrationHealth


class IntegrationAnswer(Struct, frozen=True):
    data: Integration
    success: Literal[True] = True


class IntegrationsAnswer(Struct, frozen=True):
    data: list[Integration]
    meta: PageMeta
    success: Literal[True] = True


class Connected(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Either `integrationType`, and the integration is connected; or `authUrl`, where to send a browser."""

    message: str
    integration_type: str | None = None
    auth_url: str | None = None


class ConnectAnswer(Struct, frozen=True):
    data: Connected
    success: Literal[True] = True


class MessageAnswer(Struct, frozen=True):
    message: str
    success: Literal[True] = True


class Validity(Struct, frozen=True, omit_defaults=True):
    """Whether the provider takes credentials, and if it doesn't, why."""

    valid: bool
    reason: str | None = None


class ValidityAnswer(Struct, frozen=True):
    data: Validity
    success: Literal[True] = True


class Disconnected(Struct, frozen=True):
    """What became of the tokens at the provider. `shared`: they live, another venue has the account."""

    revocation: Revocation


class DisconnectAnswer(Struct, frozen=True, omit_defaults=True):
    """`data` is there when the integration had tokens."""

    success: bool
    message: str
    data: Disconnected | None = None


class Authorized(Struct, frozen=True, rename="camel"):
    venue_id: UUID
    provider: str


class AuthorizedAnswer(Struct, frozen=True):
    data: Authorized
    success: Literal[True] = True


class Renewed(Struct, frozen=True, rename="camel"):
    """When the new token ends; null when nobody says."""

    expires_at: datetime | None


class RenewedAnswer(Struct, frozen=True):
    message: str
    data: Renewed
    success: Literal[True] = True


class SyncCounts(Struct, frozen=True, rename="camel"):
    """Records in step now (created, updated or unchanged), and records that failed."""

    synced_count: int
    failed_count: int


class SyncTotals(Struct, frozen=True, rename="camel"):
    """As the counts, over everything; `duration` is in milliseconds."""

    success: bool
    synced_count: int
    failed_count: int
    duration: int | None


class SyncResult(Struct, frozen=True, omit_defaults=True, rename={"sync_id": "syncId"}):
    """What a sync did: in all, and for each kind of record it touched."""

    overall: SyncTotals
    sync_id: UUID
    products: SyncCounts | None = None
    customers: SyncCounts | None = None
    transactions: SyncCounts | None = None


class SyncResultAnswer(Struct, frozen=True):
    data: SyncResult
    success: Literal[True] = True


class SyncAccepted(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A sync that goes on; the `Location` header says where to look."""

    sync_id: UUID
    status: OperationStatus
    waiting_because: Annotated[
        str | None,
        Meta(
            description="Why it waits for another attempt, such as a provider that doesn't answer; left out "
            "when it doesn't."
        ),
    ] = None


class SyncAcceptedAnswer(Struct, frozen=True):
    data: SyncAccepted
    success: Literal[True] = True


class MappingProgress(Struct, frozen=True):
    """One direction of one mapping; counts are of records."""

    entity: str
    resource: str
    direction: str
    read: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    conflicts: int = 0
    archived: int = 0
    deleted: int = 0
    api_calls: int = 0
    held: Annotated[
        int,
        Meta(description="Gone records left alone because they are many; `approveDeletes` lets them go."),
    ] = 0
    note: Annotated[str, Meta(description="What a person has to know, such as why records are held.")] = ""
    conflict_fields: Annotated[
        dict[str, dict[str, int]],
        Meta(
            description="By field, how often both sides had changed it and who decided: `platform` or "
            "`provider` by the mapping's rule, a `person`, or nobody yet (`open`)."
        ),
    ] = {}
    duration_ms: int = 0
    done: bool = False


class SyncProgress(Struct, frozen=True):
    """How far a sync got. `current` is the entity, resource and direction it is at."""

    mappings: list[MappingProgress] = []
    current: list[str] | None = None


class RetryLink(Struct, frozen=True):
    """The request that tries one record again, to be sent as it stands."""

    method: Literal["POST"]
    href: str
    body: dict[str, str]


class FailedRecord(Struct, frozen=True):
    """A record that wasn't synced. `record_id` is ours on a push and theirs on a pull."""

    entity: str
    resource: str
    direction: str
    record_id: str
    code: str
    message: str
    retryable: bool
    field: str | None = None
    retry: Annotated[RetryLink | None, Meta(description="Tries it again; 404 once it went through.")] = None


class SyncState(Struct, frozen=True, rename={"sync_id": "syncId"}):
    """A sync as it is now. It has ended when `ended` is true; `error` says why when it didn't end well.

    `failures` come with the end; at most the first 100.
    """

    sync_id: UUID
    venue_id: UUID
    integration_type: str
    sync_type: str
    status: OperationStatus
    ended: bool
    attempts: int
    queued_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    progress: SyncProgress
    overall: SyncTotals
    failures: list[FailedRecord] = []


class SyncStateAnswer(Struct, frozen=True):
    data: SyncState
    success: Literal[True] = True


class IntegrationState(Struct, frozen=True):
    status: IntegrationStatus
    last_sync_at: datetime | None
    next_sync_at: datetime | None
    last_error: str | None


class QueueCount(Struct, frozen=True):
    status: OperationStatus
    count: int


class SyncStatus(Struct, frozen=True):
    """The integration, its operations counted by status, and the sync under way if there is one."""

    integration: IntegrationState
    queue: list[QueueCount]
    current: SyncState | None


class SyncStatusAnswer(Struct, frozen=True):
    data: SyncStatus
    success: Literal[True] = True


class HistoryRow(Struct, frozen=True):
    """One finished sync; `id` is its `syncId`."""

    id: UUID
    operation: str
    status: str
    success_count: int
    error_count: int
    skip_count: int
    api_calls_made: int
    duration_ms: int | None
    started_at: datetime
    completed_at: datetime | None
    failures: Annotated[
        list[FailedRecord], Meta(description="The first 100, when they are asked for by `failures=true`.")
    ] = []


class HistoryAnswer(Struct, frozen=True):
    data: list[HistoryRow]
    meta: PageMeta
    success: Literal[True] = True


class Health(Struct, frozen=True):
    """How an integration is doing. One that is unknown here and one that never synced look the same."""

    status: HealthStatus
    success_rate: float | None
    average_sync_time_ms: int | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    sync_count_24h: int
    api_calls_24h: int
    queue_depth: int


class HealthAnswer(Struct, frozen=True):
    data: Health
    success: Literal[True] = True


class CircuitAnswer(Struct, frozen=True):
    """Whether operations are worked, or wait for a provider that doesn't answer."""

    state: Annotated[
        CircuitState,
        Meta(description="`open`: they wait. `half_open`: one of them is tried; if it succeeds all go on."),
    ]
    failures: Annotated[int, Meta(description="Attempts in a row that the provider didn't answer.")]
    opened_at: Annotated[datetime | None, Meta(description="Since when they wait; null if they don't.")]
    until: Annotated[datetime | None, Meta(description="When one is tried next; null if they don't wait.")]


class QuotaAnswer(Struct, frozen=True):
    """What the provider last said of how many calls it takes."""

    remaining: Annotated[int, Meta(description="How many are left.")]
    resets_at: Annotated[datetime | None, Meta(description="When there are more; null if it didn't say.")]


class Condition(Struct, frozen=True):
    """How an integration is doing as it was last judged, within a minute, and why."""

    health_status: HealthStatus
    reason: Annotated[
        str | None, Meta(description="Why, in a word for programs; null before the first time.")
    ]
    explanation: Annotated[str | None, Meta(description="Why, in a sentence for people.")]
    circuit: CircuitAnswer
    quota: Annotated[
        QuotaAnswer | None, Meta(description="Null where the provider doesn't say, or hasn't been asked.")
    ]
    checked_at: Annotated[
        datetime | None,
        Meta(description="When the provider was asked whether it is there; null when syncs showed that."),
    ]
    response_ms: Annotated[int | None, Meta(description="How long it took to answer that, in milliseconds.")]


class HealthChangeRow(Struct, frozen=True):
    """An integration began to do better or worse."""

    from_status: Annotated[HealthStatus, Meta(description="How it was doing before.")]
    to_status: Annotated[HealthStatus, Meta(description="How it did from then on.")]
    reason: Annotated[str, Meta(description="Why, in a word for programs.")]
    explanation: Annotated[str, Meta(description="Why, in a sentence for people.")]
    created_at: Annotated[datetime, Meta(description="When it was noticed.")]


class HealthChangesAnswer(Struct, frozen=True):
    data: list[HealthChangeRow]
    meta: PageMeta
    success: Literal[True] = True


class IntegrationMetrics(Struct, frozen=True):
    """An integration's syncs in a period. Durations are in milliseconds, the totals are of records."""

    total_syncs: int
    successful: int
    failed: int
    avg_duration: int | None
    total_success_count: int
    total_error_count: int
    success_rate: Annotated[float | None, Meta(description="In percent of syncs; null without any.")]
    api_calls: int
    median_duration: Annotated[
        int | None, Meta(description="Half of the syncs took no longer, in milliseconds; null without any.")
    ]
    p95_duration: Annotated[
        int | None, Meta(description="95 of 100 took no longer, in milliseconds; null without any.")
    ]
    condition: Condition


class MetricsAnswer(Struct, frozen=True):
    data: IntegrationMetrics
    success: Literal[True] = True


class ConnectionTest(Struct, frozen=True):
    """Whether the provider takes the stored credentials. `error` says why when it doesn't."""

    connected: bool
    timestamp: datetime
    error: str | None = None


class ConnectionTestAnswer(Struct, frozen=True):
    data: ConnectionTest
    success: Literal[True] = True


class VenueIntegration(Struct, frozen=True):
    """An integration among those of all venues."""

    venue_id: UUID
    integration_type: str
    environment: str
    status: IntegrationStatus
    health_status: HealthStatus
    health_checked_at: datetime | None
    last_sync_at: datetime | None
    next_sync_at: datetime | None
    failure_count: int
    last_error: str | None


class VenueIntegrationsAnswer(Struct, frozen=True):
    data: list[VenueIntegration]
    meta: PageMeta
    success: Literal[True] = True


class IntegrationCounts(Struct, frozen=True):
    """Integrations of all venues; those by health are the connected ones."""

    total: int
    connected: int
    healthy: int
    degraded: int
    unhealthy: int
    unknown: int


class PeriodNumbers(Struct, frozen=True):
    """What syncs of a period came to. Durations are in milliseconds; percentiles are read from classes."""

    syncs: Annotated[int, Meta(description="Syncs that began in it and have ended.")]
    failed: int
    success_rate: Annotated[float | None, Meta(description="In percent of syncs; null without any.")]
    mean_ms: Annotated[int | None, Meta(description="How long one took on average; null without any.")]
    median_ms: Annotated[int | None, Meta(description="Half of them took no longer; null without any.")]
    p95_ms: Annotated[int | None, Meta(description="95 of 100 took no longer; null without any.")]
    success_count: Annotated[int, Meta(description="Records that went through.")]
    error_count: int
    api_calls: int


class IntegrationPeriod(PeriodNumbers, frozen=True, kw_only=True):
    """What one integration's syncs of a period came to."""

    venue_id: UUID
    integration_type: str


class IntegrationPeriodsAnswer(Struct, frozen=True):
    data: list[IntegrationPeriod]
    meta: PageMeta
    success: Literal[True] = True


class HealthSummary(Struct, frozen=True):
    integrations: IntegrationCounts
    queues: list[QueueCount]
    calculated_at: datetime
    circuits_open: Annotated[int, Meta(description="Integrations whose operations wait for their provider.")]
    periods: Annotated[
        dict[Literal["24h", "7d", "30d"], PeriodNumbers],
        Meta(description="What the syncs of all of them came to, in whole hours and days (UTC)."),
    ]


class HealthSummaryAnswer(Struct, frozen=True):
    data: HealthSummary
    success: Literal[True] = True


class QueueCell(Struct, frozen=True):
    priority: Priority
    status: OperationStatus
    count: int


class QueueMetricsAnswer(Struct, frozen=True):
    data: list[QueueCell]
    success: Literal[True] = True


class ForcedSync(Struct, frozen=True, rename="camel"):
    """What a forced sync did, over all it touched."""

    synced_count: int
    failed_count: int
    sync_id: UUID


class ForcedSyncAnswer(Struct, frozen=True):
    data: ForcedSync
    success: Literal[True] = True


class Liveness(Struct, frozen=True):
    status: Literal["healthy"] = "healthy"
    service: Literal["integration-hub"] = "integration-hub"


class Readiness(Struct, frozen=True):
    """`problems` says, by part, what keeps the service from working."""

    status: Literal["ready", "not ready"]
    problems: dict[str, str]


# --- from what services return


def integration(row: View) -> Integration:
    measured = row.measured
    return Integration(
        id=row.id,
        integration_type=row.integration_type,
        environment=row.environment,
        status=row.status,
        connected_at=row.connected_at,
        disconnected_at=row.disconnected_at,
        last_sync_at=row.last_sync_at,
        next_sync_at=row.next_sync_at,
        health_status=health.judge(row, measured),
        failure_count=row.failure_count,
        last_error=row.last_error,
        last_error_at=row.last_error_at,
        config=row.config,
        template_id=row.template_id,
        health=IntegrationHealth(
            measured.success_rate if measured else None,
            measured.sync_count_24h if measured else 0,
            measured.api_calls_24h if measured else 0,
            measured.authorization_ends_at if measured else None,
        ),
    )


def sync_result(operation: Operation) -> SyncResult:
    report = syncs.report(operation)
    counts = {name: SyncCounts(each.synced, each.failed) for name, each in report.by_name.items()}
    return SyncResult(
        overall=_totals(report),
        sync_id=cast(UUID, operation.run_id),
        products=counts.get("products"),
        customers=counts.get("customers"),
        transactions=counts.get("transactions"),
    )


def forced_sync(operation: Operation) -> ForcedSync:
    overall = syncs.report(operation).overall
    return ForcedSync(overall.synced, overall.failed, cast(UUID, operation.run_id))


def sync_state(operation: Operation) -> SyncState:
    return SyncState(
        sync_id=cast(UUID, operation.run_id),
        venue_id=operation.venue_id,
        integration_type=operation.integration_type,
        sync_type=operation.entity_type,
        status=operation.status,
        ended=syncs.ended(operation),
        attempts=operation.attempts,
        queued_at=operation.queued_at,
        started_at=operation.started_at,
        completed_at=operation.completed_at,
        error=operation.last_error,
        progress=msgspec.convert(operation.progress or {}, SyncProgress),
        overall=_totals(syncs.report(operation)),
        failures=failed_records(
            (operation.result or {}).get("failures", []), operation.integration_type, operation.venue_id
        ),
    )


def failed_records(rows: Sequence[Mapping[str, Any]], provider: str, venue_id: UUID) -> list[FailedRecord]:
    """Return failures as they are kept, each with what tries it again."""
    return [
        msgspec.convert(
            {
                **row,
                "retry": retry_link(
                    provider,
                    venue_id,
                    **{name: row[name] for name in ("entity", "resource", "direction", "record_id")},
                ),
            },
            FailedRecord,
        )
        for row in rows
    ]


def retry_link(
    provider: str, venue_id: UUID, *, entity: str, resource: str, direction: str, record_id: str
) -> RetryLink:
    """Return the request that tries one record again."""
    return RetryLink(
        "POST",
        f"{PATH}/sync/{provider}/sync/failures/retry",
        {
            "venueId": str(venue_id),
            "entity": entity,
            "resource": resource,
            "direction": direction,
            "recordId": record_id,
        },
    )


def _totals(report: syncs.Report) -> SyncTotals:
    return SyncTotals(report.success, report.overall.synced, report.overall.failed, report.duration_ms)


def history_row(entry: syncs.HistoryEntry, provider: str, venue_id: UUID) -> HistoryRow:
    row = {name: getattr(entry, name) for name in HistoryRow.__struct_fields__}
    return HistoryRow(**{**row, "failures": failed_records(entry.failures, provider, venue_id)})


def health_answer(row: View | None) -> Health:
    measured = row.measured if row else None
    known = measured or health.Health(HealthStatus.UNKNOWN)
    return Health(
        status=HealthStatus.UNKNOWN if row is None else health.judge(row, measured),
        success_rate=known.success_rate,
        average_sync_time_ms=known.average_sync_time_ms,
        last_success_at=known.last_success_at,
        last_failure_at=known.last_failure_at,
        sync_count_24h=known.sync_count_24h,
        api_calls_24h=known.api_calls_24h,
        queue_depth=known.queue_depth,
    )


def condition_answer(
    row: IntegrationConfig, known: models.IntegrationHealth | None, now: datetime
) -> Condition:
    """Return how an integration is doing, with what its last measures wrote down."""
    circuit = breaker.circuit_of(row, now)
    quota = None
    if known is not None and known.api_quota_remaining is not None:
        quota = QuotaAnswer(known.api_quota_remaining, known.api_quota_resets_at)
    return Condition(
        health_status=row.health_status,
        reason=known.reason if known else None,
        explanation=known.explanation if known else None,
        circuit=CircuitAnswer(circuit.state, circuit.failures, circuit.opened_at, circuit.until),
        quota=quota,
        checked_at=known.checked_at if known else None,
        response_ms=known.response_ms if known else None,
    )


def page_meta(page: Page, limit: int, offset: int) -> PageMeta:
    cursor = None if page.next_key is None else write_cursor(page.next_key)
    return PageMeta(page.total, limit, offset, cursor)


def write_cursor(key: Sequence[str]) -> str:
    """Return a row's sort key as text that callers pass back and don't read."""
    return base64.urlsafe_b64encode(orjson.dumps(list(key))).rstrip(b"=").decode()


_LARGEST_NUMBER = 2**63 - 1  # of PostgreSQL's bigint


def read_cursor(text: str | None, kinds: Sequence[Any]) -> tuple[Any, ...] | None:
    """Return the sort key a cursor holds, each part as its kind; raises InvalidRequestError."""
    if text is None:
        return None
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if not isinstance(parts, list) or len(parts) != len(kinds):
            raise ValueError
        return tuple(_key_part(part, kind) for part, kind in zip(parts, kinds, strict=True))
    except (ValueError, OverflowError, binascii.Error, msgspec.ValidationError):
        raise InvalidRequestError(
            "this cursor can't be read", [Detail("cursor", "pass `meta.next_cursor` of the page before")]
        ) from None


def _key_part(part: Any, kind: Any) -> Any:
    """Return a part of a sort key; raises ValueError or OverflowError for one PostgreSQL can't read."""
    value = msgspec.convert(part, kind, strict=False)
    if isinstance(value, str) and "\0" in value:
        raise ValueError
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise ValueError
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def config_values(config: SyncConfig) -> Mapping[str, Any]:
    """Return a config as it is stored: with the names callers use."""
    return cast(Mapping[str, Any], msgspec.to_builtins(config))
