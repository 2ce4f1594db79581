"""Every table the service owns.

The platform's own tables are not here: `server.host` reads those as the platform manifest describes them, and
`venue_id` carries no foreign key because the platform owns venues. All times are timestamptz. Enum members
are stored by value; `Priority` is declared most urgent first, so `ORDER BY priority` is the order of work.

A change here needs a migration: `tests/integration/test_migrations.py` compares the two.
"""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class IntegrationStatus(StrEnum):
    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    ERROR = "error"
    SUSPENDED = "suspended"


class HealthStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class OperationType(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    SYNC = "sync"
    RECONCILE = "reconcile"
    PLAN = "plan"


class Priority(StrEnum):
    CRITICAL = "CRITICAL"
    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"


class OperationStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    PAUSED = "paused"
    RECOVERING = "recovering"


class WebhookStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    PROCESSED = "processed"
    FAILED = "failed"
    IGNORED = "ignored"


class Direction(StrEnum):
    PUSH = "push"
    PULL = "pull"


class LinkState(StrEnum):
    LINKED = "linked"
    BROKEN = "broken"
    LEAVING = "leaving"
    ARCHIVED = "archived"


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class MaintenanceStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


def _enum(members: type[StrEnum], name: str) -> Enum:
    return Enum(members, name=name, values_callable=lambda kind: [member.value for member in kind])


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy reads this class attribute itself
        str: Text(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
        list[str]: ARRAY(Text()),
        IntegrationStatus: _enum(IntegrationStatus, "integration_status"),
        HealthStatus: _enum(HealthStatus, "health_status"),
        OperationType: _enum(OperationType, "operation_type"),
        Priority: _enum(Priority, "operation_priority"),
        OperationStatus: _enum(OperationStatus, "operation_status"),
        WebhookStatus: _enum(WebhookStatus, "webhook_status"),
        Direction: _enum(Direction, "direction"),
        LinkState: _enum(LinkState, "link_state"),
        MaintenanceStatus: _enum(MaintenanceStatus, "maintenance_status"),
        DeliveryStatus: _enum(DeliveryStatus, "delivery_status"),
    }


ID = Annotated[UUID, mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))]
Provider = Annotated[str, mapped_column(String(50))]
Name = Annotated[str, mapped_column(String(255))]
Environment = Annotated[str, mapped_column(String(20), server_default="production")]
Now = Annotated[datetime, mapped_column(server_default=text("now()"))]
Count = Annotated[int, mapped_column(server_default=text("0"))]
No = Annotated[bool, mapped_column(server_default=text("false"))]
Yes = Annotated[bool, mapped_column(server_default=text("true"))]
EmptyObject = Annotated[dict[str, Any], mapped_column(server_default=text("'{}'::jsonb"))]
Texts = Annotated[list[str], mapped_column(server_default=text("'{}'"))]
BigCount = Annotated[int, mapped_column(BigInteger, server_default=text("0"))]
LargeMoney = Annotated[Decimal, mapped_column(Numeric(20, 2))]


class FieldMappingTemplate(Base):
    """A mapping to start from. Files in `mapping-templates/` are copied here, venues add their own."""

    __tablename__ = "field_mapping_templates"

    id: Mapped[ID]
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None]
    venue_type: Mapped[str | None] = mapped_column(String(50), index=True)
    integration_type: Mapped[Provider] = mapped_column(index=True)
    mappings: Mapped[dict[str, Any]]
    validation_rules: Mapped[dict[str, Any] | None]
    usage_count: Mapped[Count]
    last_used_at: Mapped[datetime | None]
    is_default: Mapped[No] = mapped_column(index=True)
    is_active: Mapped[Yes]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]


class IntegrationConfig(Base):
    """A venue's use of a connector."""

    __tablename__ = "integration_configs"

    id: Mapped[ID]
    venue_id: Mapped[UUID] = mapped_column(index=True)
    integration_type: Mapped[Provider]
    environment: Mapped[Environment]
    status: Mapped[IntegrationStatus] = mapped_column(server_default="disconnected", index=True)
    account: Mapped[str | None] = mapped_column(doc="The account's id at the provider.")
    connection: Mapped[EmptyObject] = mapped_column(doc="Values learned at connect, such as a location id.")
    connected_at: Mapped[datetime | None]
    disconnected_at: Mapped[datetime | None]
    last_sync_at: Mapped[datetime | None]
    next_sync_at: Mapped[datetime | None]
    config: Mapped[EmptyObject]
    field_mappings: Mapped[EmptyObject]
    template_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("field_mapping_templates.id", ondelete="SET NULL")
    )
    template_applied_at: Mapped[datetime | None]
    health_status: Mapped[HealthStatus] = mapped_column(server_default="unknown", index=True)
    health_checked_at: Mapped[datetime | None]
    failure_count: Mapped[Count]
    last_error: Mapped[str | None]
    last_error_at: Mapped[datetime | None]
    answered_at: Mapped[datetime | None] = mapped_column(doc="When a run last heard from the provider.")
    circuit_failures: Mapped[Count] = mapped_column(doc="Attempts in a row that the provider didn't answer.")
    circuit_opened_at: Mapped[datetime | None] = mapped_column(
        doc="None: the circuit is closed, and operations are worked as they come."
    )
    circuit_until: Mapped[datetime | None] = mapped_column(
        doc="No operation is worked before; then one at a time, until one succeeds."
    )
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("venue_id", "integration_type"),
        CheckConstraint("failure_count >= 0", name="failure_count_not_negative"),
        Index(
            "ix_integration_configs_circuit",
            "venue_id",
            "integration_type",
            postgresql_where=text("circuit_opened_at IS NOT NULL"),
        ),
        Index(
            "ix_integration_configs_account",
            "integration_type",
            "account",
            postgresql_where=text("account IS NOT NULL"),
        ),
        Index(
            "ix_integration_configs_due",
            "next_sync_at",
            postgresql_where=text("status = 'connected'::integration_status"),
        ),
    )


class OAuthToken(Base):
    """One integration's OAuth credentials. Both tokens are sealed by `server.vault`."""

    __tablename__ = "oauth_tokens"

    id: Mapped[ID]
    venue_id: Mapped[UUID] = mapped_column(index=True)
    integration_type: Mapped[Provider]
    environment: Mapped[Environment]
    encrypted_access_token: Mapped[str]
    encrypted_refresh_token: Mapped[str | None]
    encryption_key_version: Mapped[int] = mapped_column(
        server_default=text("1"), doc="Grows as tokens are put under other keys; which, a sealed text says."
    )
    scopes: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    token_type: Mapped[str] = mapped_column(String(50), server_default="Bearer")
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    refresh_expires_at: Mapped[datetime | None]
    expires_in: Mapped[int | None] = mapped_column(doc="Seconds that the access token was granted for.")
    refresh_expires_in: Mapped[int | None] = mapped_column(
        doc="Seconds that a refresh token of this grant was granted for, at the most."
    )
    granted_at: Mapped[Now] = mapped_column(doc="When the provider last gave tokens.")
    grant_ended_at: Mapped[datetime | None] = mapped_column(
        doc="When the provider said that it renews no more. Only a person asks it again."
    )
    refresh_count: Mapped[Count]
    last_refreshed_at: Mapped[datetime | None]
    refresh_failed_count: Mapped[Count] = mapped_column(doc="Since the last time it went well.")
    refresh_started_at: Mapped[datetime | None] = mapped_column(
        doc="Of a renewal whose answer may have been lost: the provider was asked, and nothing stored since."
    )
    refresh_next_at: Mapped[datetime | None] = mapped_column(
        doc="After a failure: the provider isn't asked before."
    )
    created_by: Mapped[UUID | None]
    created_ip: Mapped[str | None] = mapped_column(INET())
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("venue_id", "integration_type"),)


class VenueApiKey(Base):
    """One integration's other credentials: a sealed JSON object of the manifest's credential fields."""

    __tablename__ = "venue_api_keys"

    id: Mapped[ID]
    venue_id: Mapped[UUID] = mapped_column(index=True)
    integration_type: Mapped[Provider]
    environment: Mapped[Environment]
    encrypted_api_key: Mapped[str]
    encrypted_api_secret: Mapped[str | None]
    key_name: Mapped[Name | None]
    is_valid: Mapped[Yes]
    last_validated_at: Mapped[datetime | None]
    validation_error: Mapped[str | None]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("venue_id", "integration_type", "environment"),)


class Operation(Base):
    """One durable unit of work. A worker holds it by a lease and writes under its fencing token."""

    __tablename__ = "sync_queue"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    operation_type: Mapped[OperationType]
    entity_type: Mapped[str] = mapped_column(String(100))
    entity_id: Mapped[Name | None]
    payload: Mapped[EmptyObject]
    idempotency_key: Mapped[Name | None] = mapped_column(unique=True)
    priority: Mapped[Priority] = mapped_column(server_default="NORMAL")
    status: Mapped[OperationStatus] = mapped_column(server_default="pending")
    attempts: Mapped[Count]
    max_attempts: Mapped[int] = mapped_column(server_default=text("10"))
    next_retry_at: Mapped[datetime | None] = mapped_column(index=True)
    queued_at: Mapped[Now]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    expires_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '7 days'"), index=True)
    last_error: Mapped[str | None]
    error_count: Mapped[Count]
    correlation_id: Mapped[Name | None]
    run_id: Mapped[UUID | None] = mapped_column(index=True, doc="`sync_logs.sync_id` of its run.")
    stop_requested: Mapped[No]
    result: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    lease_owner: Mapped[Name | None]
    lease_expires_at: Mapped[datetime | None]
    fencing_token: Mapped[int] = mapped_column(
        BigInteger,
        server_default=text("0"),
        doc="Grows with every claim; a commit under an older one is refused.",
    )
    lost_workers: Mapped[Count] = mapped_column(doc="In a row, while they worked on it.")
    error_code: Mapped[str | None] = mapped_column(String(100), doc="Of `last_error`.")
    attempts_log: Mapped[list[Any]] = mapped_column(
        server_default=text("'[]'::jsonb"), doc="How its latest attempts ended: `at`, `code`, `message`."
    )
    revivals: Mapped[Count] = mapped_column(doc="How often it was a dead letter and queued again.")
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        CheckConstraint("attempts >= 0", name="attempts_not_negative"),
        CheckConstraint("max_attempts > 0", name="max_attempts_positive"),
        CheckConstraint(
            "status <> 'processing'::operation_status"
            " OR (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="processing_is_leased",
        ),
        Index("ix_sync_queue_venue_id_status", "venue_id", "status"),
        Index("ix_sync_queue_priority_status", "priority", "status"),
        Index(
            "ix_sync_queue_claimable",
            "priority",
            "queued_at",
            postgresql_where=text(
                "status = ANY (ARRAY['pending', 'failed', 'recovering']::operation_status[])"
            ),
        ),
        Index(
            "ix_sync_queue_waiting",
            "venue_id",
            "integration_type",
            "priority",
            "queued_at",
            postgresql_where=text("status = ANY (ARRAY['pending', 'recovering']::operation_status[])"),
        ),
        Index(
            "ix_sync_queue_leases",
            "lease_expires_at",
            postgresql_where=text("status = 'processing'::operation_status"),
        ),
        Index(
            "ix_sync_queue_ended_badly",
            "completed_at",
            "id",
            postgresql_where=text("status = ANY (ARRAY['failed', 'dead_letter']::operation_status[])"),
        ),
        Index(
            "uq_sync_queue_running",
            "venue_id",
            "integration_type",
            unique=True,
            postgresql_where=text("status = 'processing'::operation_status"),
        ),
    )


class SyncLog(Base):
    """What a run did: one row for the run, or one for each of its mappings."""

    __tablename__ = "sync_logs"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    sync_id: Mapped[UUID | None] = mapped_column(index=True)
    operation: Mapped[str] = mapped_column(String(50))
    entity_type: Mapped[str | None] = mapped_column(String(100))
    entity_count: Mapped[int | None]
    status: Mapped[str] = mapped_column(String(20))
    success_count: Mapped[Count]
    error_count: Mapped[Count]
    skip_count: Mapped[Count]
    duration_ms: Mapped[int | None]
    api_calls_made: Mapped[int | None]
    details: Mapped[dict[str, Any] | None]
    errors: Mapped[list[Any] | None]
    started_at: Mapped[Now]
    completed_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_sync_logs_venue_id_started_at", "venue_id", "started_at"),
        Index("ix_sync_logs_completed_at", "completed_at"),
    )


class Webhook(Base):
    """One event of a delivery, kept before it is acknowledged. The same event is kept once."""

    __tablename__ = "integration_webhooks"

    id: Mapped[ID]
    venue_id: Mapped[UUID | None]
    integration_type: Mapped[Provider]
    event_type: Mapped[Name]
    event_id: Mapped[Name | None]
    headers: Mapped[dict[str, Any] | None]
    payload: Mapped[dict[str, Any]]
    signature: Mapped[str | None] = mapped_column(String(500))
    status: Mapped[WebhookStatus] = mapped_column(server_default="pending")
    processed_at: Mapped[datetime | None]
    error: Mapped[str | None]
    retry_count: Mapped[Count]
    external_id: Mapped[Name | None] = mapped_column(
        index=True, doc="What tells the same event from another: the venue, and the provider's id."
    )
    received_at: Mapped[Now] = mapped_column(index=True)
    delivery_id: Mapped[UUID | None] = mapped_column(index=True)
    account: Mapped[Name | None]
    record_id: Mapped[Name | None]
    occurred_at: Mapped[datetime | None]
    payload_hash: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        UniqueConstraint("integration_type", "external_id"),
        Index("ix_integration_webhooks_venue_id_status", "venue_id", "status"),
    )


class WebhookDelivery(Base):
    """A POST as it came, proved to be its provider's; kept so that its events can be read again."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[ID]
    venue_id: Mapped[UUID | None] = mapped_column(index=True, doc="None: the address is all venues'.")
    integration_type: Mapped[Provider]
    method: Mapped[str] = mapped_column(String(10))
    url: Mapped[str]
    headers: Mapped[dict[str, Any]]
    body: Mapped[bytes] = mapped_column(LargeBinary())
    scheme: Mapped[str] = mapped_column(String(50))
    received_at: Mapped[Now] = mapped_column(index=True)


class WebhookEndpoint(Base):
    """A connection's own address, and the subscription that makes the provider send there."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    environment: Mapped[Environment]
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    encrypted_token: Mapped[str]
    encrypted_secrets: Mapped[str | None] = mapped_column(doc="A JSON object: secrets by signature scheme.")
    subscription_id: Mapped[Name | None]
    subscribed_at: Mapped[datetime | None]
    checked_at: Mapped[datetime | None]
    next_check_at: Mapped[datetime | None] = mapped_column(server_default=text("now()"), index=True)
    failures: Mapped[Count]
    last_error: Mapped[str | None]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("venue_id", "integration_type"),)


class IntegrationHealth(Base):
    """What the last look at an integration measured."""

    __tablename__ = "integration_health"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    success_rate: Mapped[Decimal | None] = mapped_column(Numeric(5, 2))
    average_sync_time_ms: Mapped[int | None]
    last_success_at: Mapped[datetime | None]
    last_failure_at: Mapped[datetime | None]
    sync_count_24h: Mapped[Count]
    success_count_24h: Mapped[Count]
    failure_count_24h: Mapped[Count]
    api_calls_24h: Mapped[Count]
    api_quota_remaining: Mapped[int | None]
    api_quota_resets_at: Mapped[datetime | None]
    queue_depth: Mapped[Count]
    oldest_queue_item_at: Mapped[datetime | None]
    calculated_at: Mapped[Now] = mapped_column(index=True)
    checked_at: Mapped[datetime | None] = mapped_column(doc="When the provider was last asked, to see.")
    check_failures: Mapped[Count] = mapped_column(doc="Of these questions, in a row.")
    check_error: Mapped[str | None] = mapped_column(String(50), doc="The code of the last one's error.")
    response_ms: Mapped[int | None] = mapped_column(doc="How long the last answer to such a question took.")
    reason: Mapped[str | None] = mapped_column(String(50), doc="Why the health is as it is, in a word.")
    explanation: Mapped[str | None] = mapped_column(doc="And in a sentence.")
    better_status: Mapped[HealthStatus | None] = mapped_column(
        doc="The worst of the latest measures in a row that were all better than the health that is told."
    )
    better_count: Mapped[Count] = mapped_column(doc="How many those are.")

    __table_args__ = (UniqueConstraint("venue_id", "integration_type"),)


class HealthChange(Base):
    """An integration began to do better or worse, and why."""

    __tablename__ = "health_changes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    from_status: Mapped[HealthStatus]
    to_status: Mapped[HealthStatus]
    reason: Mapped[str] = mapped_column(String(50))
    explanation: Mapped[str]
    created_at: Mapped[Now] = mapped_column(index=True)

    __table_args__ = (Index("ix_health_changes_place", "venue_id", "integration_type", "created_at"),)


class SyncRollup(Base):
    """An integration's syncs that began in an hour or a day (UTC), added up from `sync_logs`."""

    __tablename__ = "sync_rollups"

    width: Mapped[str] = mapped_column(String(4), primary_key=True, doc="`hour` or `day`.")
    bucket: Mapped[datetime] = mapped_column(primary_key=True, doc="Its beginning.")
    venue_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    integration_type: Mapped[Provider] = mapped_column(primary_key=True)
    syncs: Mapped[int]
    failed: Mapped[int]
    timed: Mapped[int] = mapped_column(doc="Syncs whose duration is known.")
    duration_ms: Mapped[int] = mapped_column(BigInteger, doc="Of all of them together.")
    durations: Mapped[list[int]] = mapped_column(ARRAY(Integer), doc="How many took how long, by class.")
    success_count: Mapped[int] = mapped_column(BigInteger)
    error_count: Mapped[int] = mapped_column(BigInteger)
    api_calls: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint("width IN ('hour', 'day')", name="width_known"),)


class RollupMark(Base):
    """How far something was added up: all that ended before."""

    __tablename__ = "rollup_marks"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    up_to: Mapped[datetime]


class IntegrationCost(Base):
    """What an integration used of its provider in a month, in UTC. Once `closed_at`, nothing changes it."""

    __tablename__ = "integration_costs"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    period_start: Mapped[date] = mapped_column(index=True)
    period_end: Mapped[date]
    api_calls: Mapped[BigCount]
    bytes_sent: Mapped[BigCount] = mapped_column(doc="Of bodies, as they were sent.")
    bytes_received: Mapped[BigCount]
    data_synced_mb: Mapped[Decimal] = mapped_column(
        Numeric(20, 2),
        Computed("round((bytes_sent + bytes_received)::numeric / 1000000.0, 2)", persisted=True),
        nullable=True,
    )
    base_cost: Mapped[LargeMoney | None]
    overage_cost: Mapped[LargeMoney | None]
    total_cost: Mapped[LargeMoney | None]
    currency: Mapped[str | None] = mapped_column(String(3))
    included_in_plan: Mapped[Yes]
    billed_to_venue: Mapped[No]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]
    closed_at: Mapped[datetime | None] = mapped_column(doc="When its costs were fixed.")

    __table_args__ = (
        UniqueConstraint("venue_id", "integration_type", "period_start"),
        CheckConstraint("period_end >= period_start", name="period_in_order"),
        Index("ix_integration_costs_open", "period_end", postgresql_where=text("closed_at IS NULL")),
    )


class RecordLink(Base):
    """A local record and a remote record known to be the same thing."""

    __tablename__ = "record_links"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    entity: Mapped[str] = mapped_column(String(100))
    resource: Mapped[str] = mapped_column(String(100))
    local_id: Mapped[Name]
    remote_id: Mapped[Name | None]
    fingerprint: Mapped[str | None] = mapped_column(String(128), doc="Of the body last pushed.")
    agreed: Mapped[EmptyObject] = mapped_column(doc="The local values both sides last agreed on.")
    remote_version: Mapped[str | None]
    remote_changed_at: Mapped[datetime | None]
    last_direction: Mapped[Direction | None]
    state: Mapped[LinkState] = mapped_column(server_default="linked")
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    # Both start with the id: which one to use is plain even before PostgreSQL has statistics, as in a
    # first sync of a venue.
    __table_args__ = (
        UniqueConstraint(
            "local_id", "venue_id", "integration_type", "resource", "entity", name="uq_record_links_local"
        ),
        Index(
            "uq_record_links_remote",
            "remote_id",
            "venue_id",
            "integration_type",
            "resource",
            unique=True,
            postgresql_where=text("remote_id IS NOT NULL"),
        ),
        Index(
            "ix_record_links_place",
            *("venue_id", "integration_type", "resource", "entity", "state", "local_id"),
        ),
        Index(
            "ix_record_links_due",
            *("venue_id", "integration_type", "resource", "entity", "local_id"),
            postgresql_where=text("agreed ? 'due'"),
        ),
    )


class SyncWatermark(Base):
    """How far a mapping got in one direction."""

    __tablename__ = "sync_watermarks"

    venue_id: Mapped[UUID] = mapped_column(primary_key=True)
    integration_type: Mapped[Provider] = mapped_column(primary_key=True)
    entity: Mapped[str] = mapped_column(String(100), primary_key=True)
    resource: Mapped[str] = mapped_column(String(100), primary_key=True)
    direction: Mapped[Direction] = mapped_column(primary_key=True)
    position: Mapped[dict[str, Any]]
    updated_at: Mapped[Now]


class PendingWrite(Base):
    """A write recorded before it is sent, and deleted with the links it made: nothing is sent twice."""

    __tablename__ = "pending_writes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    entity: Mapped[str] = mapped_column(String(100))
    resource: Mapped[str] = mapped_column(String(100))
    call_key: Mapped[Name] = mapped_column(doc="The idempotency key the provider is given.")
    # json, not jsonb: jsonb reorders keys, and a write is repeated word for word.
    items: Mapped[list[Any]] = mapped_column(JSON())
    attempt: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    job: Mapped[Name | None] = mapped_column(doc="What the provider calls it while it works on it.")

    __table_args__ = (
        UniqueConstraint(
            "venue_id", "integration_type", "entity", "resource", "call_key", name="uq_pending_writes_call"
        ),
    )


class RecordFailure(Base):
    """A record that can't be synced for now; deleted when it can."""

    __tablename__ = "record_failures"

    venue_id: Mapped[UUID] = mapped_column(primary_key=True)
    integration_type: Mapped[Provider] = mapped_column(primary_key=True)
    entity: Mapped[str] = mapped_column(String(100), primary_key=True)
    resource: Mapped[str] = mapped_column(String(100), primary_key=True)
    direction: Mapped[Direction] = mapped_column(primary_key=True)
    record_id: Mapped[Name] = mapped_column(primary_key=True, doc="Local on push, remote on pull.")
    code: Mapped[str]
    message: Mapped[str]
    retryable: Mapped[bool]
    field: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default=text("1"))
    run_id: Mapped[UUID | None]
    first_failed_at: Mapped[Now]
    last_failed_at: Mapped[Now]


ConflictState = Literal["open", "resolved", "settled"]


class FieldConflict(Base):
    """A field that both sides of a pair changed, and that a person has to decide about.

    `ours`, `theirs` and what was `agreed` are the values it is about: the platform's data, as links hold it.
    One that was decided stands until a sync has carried the decision out.
    """

    __tablename__ = "field_conflicts"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    entity: Mapped[str] = mapped_column(String(100))
    resource: Mapped[str] = mapped_column(String(100))
    local_id: Mapped[Name]
    remote_id: Mapped[Name]
    field: Mapped[Name] = mapped_column(doc="Of the platform's record.")
    # json, not jsonb: numbers keep their digits, and objects the order of their keys.
    ours: Mapped[Any] = mapped_column(JSON())
    theirs: Mapped[Any] = mapped_column(JSON(), doc="In the platform's terms.")
    agreed: Mapped[dict[str, Any]] = mapped_column(
        JSON(), doc="`ours` and `theirs` as they last agreed; empty for never."
    )
    ours_changed_at: Mapped[str | None] = mapped_column(
        doc="When our record changed, as the platform has it."
    )
    theirs_changed_at: Mapped[str | None]
    state: Mapped[ConflictState] = mapped_column(
        String(20), server_default="open", doc="`open`, `resolved` by a person, or `settled` without one."
    )
    resolution: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True), doc="Whose value was taken, and one of a person's own."
    )
    resolved_by: Mapped[Name | None]
    resolved_at: Mapped[datetime | None]
    detected_at: Mapped[Now]
    seen_at: Mapped[Now]
    ended_at: Mapped[datetime | None] = mapped_column(
        index=True, doc="When its decision was carried out, or it was settled."
    )

    __table_args__ = (
        CheckConstraint("state IN ('open', 'resolved', 'settled')", name="state_known"),
        Index(
            "uq_field_conflicts_standing",
            *("venue_id", "integration_type", "resource", "local_id", "field"),
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_field_conflicts_listed", "venue_id", "detected_at", "id"),
    )


class PushPlan(Base):
    """What a push would do, until it is applied or too old. Its operation makes it."""

    __tablename__ = "push_plans"

    id: Mapped[ID]
    venue_id: Mapped[UUID] = mapped_column(index=True)
    integration_type: Mapped[Provider]
    sync_type: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(
        String(20), server_default="making", doc="`making`, `ready` or `applied`."
    )
    operation_id: Mapped[UUID]
    basis: Mapped[EmptyObject] = mapped_column(doc="What it rests on besides the records, each by its print.")
    mapping_version: Mapped[int | None]
    counts: Mapped[EmptyObject] = mapped_column(doc="Records by action.")
    requested_by: Mapped[Name]
    created_at: Mapped[Now]
    made_at: Mapped[datetime | None]
    expires_at: Mapped[datetime] = mapped_column(
        server_default=text("now() + interval '24 hours'"), index=True
    )
    sync_id: Mapped[UUID | None] = mapped_column(doc="`run_id` of the sync that applies it.")
    applied_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("status IN ('making', 'ready', 'applied')", name="status_known"),)


class PushPlanRecord(Base):
    """What becomes of one record; see `engine.planning.PlannedRecord`."""

    __tablename__ = "push_plan_records"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("push_plans.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    venue_id: Mapped[UUID] = mapped_column(index=True)
    entity: Mapped[str] = mapped_column(String(100))
    resource: Mapped[str] = mapped_column(String(100))
    local_id: Mapped[Name]
    remote_id: Mapped[Name | None]
    action: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str]
    fields: Mapped[list[Any]]
    writes: Mapped[bool]
    pulls_first: Mapped[bool]
    ours: Mapped[str] = mapped_column(String(64), doc="The fingerprint of our record.")
    merged: Mapped[str] = mapped_column(String(64), doc="And after what changed there was taken over.")
    theirs: Mapped[str | None] = mapped_column(String(64))
    outcome: Mapped[str | None] = mapped_column(String(20), doc="What applying it came to.")
    why: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("plan_id", "entity", "resource", "local_id", name="uq_push_plan_records_record"),
    )


class OAuthState(Base):
    """An authorization that was begun. Good once, and for ten minutes; only the state's hash is kept."""

    __tablename__ = "oauth_states"

    state_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    environment: Mapped[Environment]
    user_id: Mapped[Name]
    encrypted_verifier: Mapped[str | None]
    redirect_uri: Mapped[str]
    config: Mapped[EmptyObject]
    connection: Mapped[EmptyObject] = mapped_column(doc="Values the venue chose, such as an audience.")
    used_at: Mapped[datetime | None]
    created_at: Mapped[Now]
    expires_at: Mapped[datetime] = mapped_column(
        server_default=text("now() + interval '10 minutes'"), index=True
    )


class AuditEntry(Base):
    """Who did what. Rows are only ever added: the database refuses nearly all else (migration 0006)."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    venue_id: Mapped[UUID | None]
    integration_type: Mapped[Provider | None]
    actor: Mapped[Name]
    action: Mapped[str] = mapped_column(String(100))
    target: Mapped[Name | None]
    details: Mapped[EmptyObject]
    ip: Mapped[str | None] = mapped_column(INET())
    request_id: Mapped[Name | None]
    created_at: Mapped[Now] = mapped_column(index=True)
    role: Mapped[str | None] = mapped_column(String(50))
    before: Mapped[dict[str, Any] | None] = mapped_column(doc="What changed, as it was.")
    after: Mapped[dict[str, Any] | None] = mapped_column(doc="What changed, as it is now.")
    count: Mapped[int] = mapped_column(
        server_default=text("1"), doc="How often; more than once only for attempts that were refused."
    )
    same: Mapped[str | None] = mapped_column(
        String(64), unique=True, doc="What refused attempts have in common that are counted in one entry."
    )

    __table_args__ = (
        Index("ix_audit_log_venue_id_created_at", "venue_id", "created_at"),
        CheckConstraint("count > 0", name="count_positive"),
    )


class MappingVersion(Base):
    """One version of an integration's mapping; any of them can be restored."""

    __tablename__ = "mapping_versions"

    id: Mapped[ID]
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    version: Mapped[int]
    mappings: Mapped[dict[str, Any]]
    reason: Mapped[str] = mapped_column(String(50))
    template_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("field_mapping_templates.id", ondelete="SET NULL")
    )
    heal_plan: Mapped[dict[str, Any] | None]
    created_by: Mapped[Name | None]
    created_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("venue_id", "integration_type", "version"),
        CheckConstraint("version > 0", name="version_positive"),
    )


class ObservedField(Base):
    """A field that records of a resource really carried, and the types it had."""

    __tablename__ = "observed_fields"

    venue_id: Mapped[UUID] = mapped_column(primary_key=True)
    integration_type: Mapped[Provider] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(String(100), primary_key=True)
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    types: Mapped[list[str]]
    seen_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    first_seen_at: Mapped[Now]
    last_seen_at: Mapped[Now]
    shapes: Mapped[Texts] = mapped_column(doc="What values look like, such as `email`.")
    words: Mapped[Texts] = mapped_column(doc="Values of an enumeration that the manifest doesn't declare.")
    record_count: Mapped[BigCount] = mapped_column(doc="Records looked at while it was there.")
    null_count: Mapped[BigCount] = mapped_column(doc="Those that had it with nothing in it.")
    missed_count: Mapped[BigCount] = mapped_column(doc="The last records, in a row, that didn't have it.")
    removed_at: Mapped[datetime | None] = mapped_column(doc="When it was missed for so long that it is gone.")
    refused_at: Mapped[datetime | None] = mapped_column(
        doc="When the provider answered to a write that it doesn't know it."
    )


class DriftEvent(Base):
    """Something about a provider's records changed: see `engine.drift`."""

    __tablename__ = "drift_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    venue_id: Mapped[UUID]
    integration_type: Mapped[Provider]
    resource: Mapped[str] = mapped_column(String(100))
    path: Mapped[str] = mapped_column(String(500))
    kind: Mapped[str] = mapped_column(String(20))
    before: Mapped[list[str]]
    after: Mapped[list[str]]
    evidence: Mapped[list[str]]
    created_at: Mapped[Now] = mapped_column(index=True)
    handled_at: Mapped[datetime | None] = mapped_column(doc="When the mapping was looked at for it.")

    __table_args__ = (
        Index("ix_drift_events_place", "venue_id", "integration_type", "id"),
        Index("ix_drift_events_waiting", "id", postgresql_where=text("handled_at IS NULL")),
    )


class OutboxMessage(Base):
    """Something to tell the outside, written in the transaction that made it true."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(
        server_default=text("gen_random_uuid()"), doc="What those who are told know it by, however often."
    )
    venue_id: Mapped[UUID | None]
    topic: Mapped[str] = mapped_column(String(100))
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[Count]
    available_at: Mapped[Now]
    published_at: Mapped[datetime | None] = mapped_column(
        doc="When its deliveries to subscribers were written, and `streams` was."
    )
    streams: Mapped[list[str]] = mapped_column(
        server_default=text("'{}'::text[]"), doc="Those that it still has to be put into."
    )
    last_error: Mapped[str | None]
    created_at: Mapped[Now]

    __table_args__ = (
        Index("ix_outbox_unpublished", "available_at", postgresql_where=text("published_at IS NULL")),
        Index("ix_outbox_streams", "id", postgresql_where=text("streams <> '{}'::text[]")),
        Index("ix_outbox_venue_id_created_at", "venue_id", "created_at"),
        Index("ix_outbox_created_at", "created_at"),
    )


class EventSubscriber(Base):
    """Who is told of events: an address, and the secrets that what is sent there is signed with."""

    __tablename__ = "event_subscribers"

    id: Mapped[ID]
    venue_id: Mapped[UUID | None] = mapped_column(index=True, doc="None: it is told of every venue.")
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(doc="Empty: all of them, those to come as well.")
    description: Mapped[Name | None]
    active: Mapped[Yes]
    disabled_at: Mapped[datetime | None] = mapped_column(doc="When the hub itself ended it.")
    disabled_reason: Mapped[str | None]
    encrypted_secret: Mapped[str]
    encrypted_previous_secret: Mapped[str | None]
    previous_secret_expires_at: Mapped[datetime | None]
    failures: Mapped[Count] = mapped_column(doc="Attempts since the last one that was taken.")
    failing_since: Mapped[datetime | None]
    held_until: Mapped[datetime | None] = mapped_column(doc="After a failure: nothing is sent before.")
    created_at: Mapped[Now]
    updated_at: Mapped[Now]


class EventDelivery(Base):
    """An event on its way to a subscriber, and what the last attempt came to."""

    __tablename__ = "event_deliveries"

    id: Mapped[ID]
    subscriber_id: Mapped[UUID] = mapped_column(ForeignKey("event_subscribers.id", ondelete="CASCADE"))
    outbox_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("outbox.id", ondelete="CASCADE"))
    venue_id: Mapped[UUID | None] = mapped_column(index=True, doc="Of the event.")
    status: Mapped[DeliveryStatus] = mapped_column(server_default="pending")
    attempts: Mapped[Count] = mapped_column(doc="Ever; the result of an older one than the last is refused.")
    step: Mapped[Count] = mapped_column(doc="Of the waits between attempts, which begin anew on request.")
    next_attempt_at: Mapped[datetime | None] = mapped_column(
        doc="While an attempt is under way: when another may be made, should nobody hear of this one."
    )
    give_up_at: Mapped[datetime]
    last_attempt_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None]
    answer_status: Mapped[int | None]
    answer_body: Mapped[str | None] = mapped_column(doc="The beginning of it.")
    error: Mapped[str | None]
    created_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("subscriber_id", "outbox_id"),
        Index("ix_event_deliveries_subscriber_id_created_at", "subscriber_id", "created_at", "id"),
        Index(
            "ix_event_deliveries_pending",
            "subscriber_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'::delivery_status"),
        ),
        Index("ix_event_deliveries_outbox_id", "outbox_id"),
        Index("ix_event_deliveries_created_at", "created_at"),
    )


class IdempotencyKey(Base):
    """A caller's `Idempotency-Key` and the answer it got; no answer yet means the request is in flight."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[Name] = mapped_column(primary_key=True)
    key: Mapped[Name] = mapped_column(primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None] = mapped_column(doc="The HTTP status of the answer.")
    response: Mapped[dict[str, Any] | None]
    created_at: Mapped[Now]
    expires_at: Mapped[datetime] = mapped_column(
        server_default=text("now() + interval '24 hours'"), index=True
    )


class MaintenanceRun(Base):
    """Work on what is stored itself, done in batches by `server.services.maintenance`.

    At most one of a kind is unfinished for a venue, and one for the whole hub where `venue_id` is null.
    """

    __tablename__ = "maintenance_runs"

    id: Mapped[ID]
    kind: Mapped[str] = mapped_column(String(50))
    venue_id: Mapped[UUID | None] = mapped_column(index=True)
    status: Mapped[MaintenanceStatus] = mapped_column(server_default="pending")
    position: Mapped[EmptyObject] = mapped_column(doc="Where the next batch goes on.")
    progress: Mapped[EmptyObject] = mapped_column(doc="`step`, `done`, `total` and `failed`.")
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    requested_by: Mapped[Name]
    requested_ip: Mapped[str | None] = mapped_column(INET())
    attempts: Mapped[Count] = mapped_column(doc="Of the batch that is next; one that succeeds sets it to 0.")
    next_attempt_at: Mapped[Now]
    created_at: Mapped[Now]
    started_at: Mapped[datetime | None]
    updated_at: Mapped[Now]
    completed_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("attempts >= 0", name="attempts_not_negative"),
        Index(
            "uq_maintenance_runs_unfinished",
            "kind",
            "venue_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("status = ANY (ARRAY['pending', 'running']::maintenance_status[])"),
        ),
    )


class ExportPart(Base):
    """A piece of an export's archive; all of them in order are the file."""

    __tablename__ = "export_parts"

    run_id: Mapped[UUID] = mapped_column(
        ForeignKey("maintenance_runs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]

    __table_args__ = (CheckConstraint("octet_length(data) <= 1048576", name="data_not_large"),)
