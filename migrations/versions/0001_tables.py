"""The tables the service owns.

Revision: 0001
Follows:
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENUMS = {
    "integration_status": ("disconnected", "connecting", "connected", "error", "suspended"),
    "health_status": ("healthy", "degraded", "unhealthy", "unknown"),
    "operation_type": ("create", "update", "delete", "sync", "reconcile"),
    "operation_priority": ("CRITICAL", "HIGH", "NORMAL", "LOW"),
    "operation_status": (
        "pending",
        "processing",
        "completed",
        "failed",
        "dead_letter",
        "paused",
        "recovering",
    ),
    "webhook_status": ("pending", "processing", "processed", "failed", "ignored"),
    "direction": ("push", "pull"),
    "link_state": ("linked", "broken"),
}

TABLES = {
    "field_mapping_templates": (
        """
        CREATE TABLE field_mapping_templates (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            name varchar(100) NOT NULL,
            description text,
            venue_type varchar(50),
            integration_type varchar(50) NOT NULL,
            mappings jsonb NOT NULL,
            validation_rules jsonb,
            usage_count integer DEFAULT 0 NOT NULL,
            last_used_at timestamptz,
            is_default boolean DEFAULT false NOT NULL,
            is_active boolean DEFAULT true NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_field_mapping_templates PRIMARY KEY (id)
        )
        """,
        """
        CREATE INDEX ix_field_mapping_templates_integration_type
        ON field_mapping_templates (integration_type)
        """,
        "CREATE INDEX ix_field_mapping_templates_is_default ON field_mapping_templates (is_default)",
        "CREATE INDEX ix_field_mapping_templates_venue_type ON field_mapping_templates (venue_type)",
    ),
    "integration_configs": (
        """
        CREATE TABLE integration_configs (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            environment varchar(20) DEFAULT 'production' NOT NULL,
            status integration_status DEFAULT 'disconnected' NOT NULL,
            account text,
            connection jsonb DEFAULT '{}'::jsonb NOT NULL,
            connected_at timestamptz,
            disconnected_at timestamptz,
            last_sync_at timestamptz,
            next_sync_at timestamptz,
            config jsonb DEFAULT '{}'::jsonb NOT NULL,
            field_mappings jsonb DEFAULT '{}'::jsonb NOT NULL,
            template_id uuid,
            template_applied_at timestamptz,
            health_status health_status DEFAULT 'unknown' NOT NULL,
            health_checked_at timestamptz,
            failure_count integer DEFAULT 0 NOT NULL,
            last_error text,
            last_error_at timestamptz,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_integration_configs PRIMARY KEY (id),
            CONSTRAINT uq_integration_configs_venue_id_integration_type UNIQUE (venue_id, integration_type),
            CONSTRAINT ck_integration_configs_failure_count_not_negative CHECK (failure_count >= 0),
            CONSTRAINT fk_integration_configs_template_id
                FOREIGN KEY (template_id)
                REFERENCES field_mapping_templates (id) ON DELETE SET NULL
        )
        """,
        """
        CREATE INDEX ix_integration_configs_account
        ON integration_configs (integration_type, account)
        WHERE account IS NOT NULL
        """,
        """
        CREATE INDEX ix_integration_configs_due
        ON integration_configs (next_sync_at)
        WHERE status = 'connected'::integration_status
        """,
        "CREATE INDEX ix_integration_configs_health_status ON integration_configs (health_status)",
        "CREATE INDEX ix_integration_configs_status ON integration_configs (status)",
        "CREATE INDEX ix_integration_configs_venue_id ON integration_configs (venue_id)",
    ),
    "oauth_tokens": (
        """
        CREATE TABLE oauth_tokens (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            environment varchar(20) DEFAULT 'production' NOT NULL,
            encrypted_access_token text NOT NULL,
            encrypted_refresh_token text,
            encryption_key_version integer DEFAULT 1 NOT NULL,
            scopes text[] DEFAULT '{}'::text[] NOT NULL,
            token_type varchar(50) DEFAULT 'Bearer' NOT NULL,
            expires_at timestamptz,
            refresh_expires_at timestamptz,
            refresh_count integer DEFAULT 0 NOT NULL,
            last_refreshed_at timestamptz,
            refresh_failed_count integer DEFAULT 0 NOT NULL,
            created_by uuid,
            created_ip inet,
            last_used_at timestamptz,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_oauth_tokens PRIMARY KEY (id),
            CONSTRAINT uq_oauth_tokens_venue_id_integration_type UNIQUE (venue_id, integration_type)
        )
        """,
        "CREATE INDEX ix_oauth_tokens_expires_at ON oauth_tokens (expires_at)",
        "CREATE INDEX ix_oauth_tokens_venue_id ON oauth_tokens (venue_id)",
    ),
    "venue_api_keys": (
        """
        CREATE TABLE venue_api_keys (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            environment varchar(20) DEFAULT 'production' NOT NULL,
            encrypted_api_key text NOT NULL,
            encrypted_api_secret text,
            key_name varchar(255),
            is_valid boolean DEFAULT true NOT NULL,
            last_validated_at timestamptz,
            validation_error text,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_venue_api_keys PRIMARY KEY (id),
            CONSTRAINT uq_venue_api_keys_venue_id_integration_type_environment
                UNIQUE (venue_id, integration_type, environment)
        )
        """,
        "CREATE INDEX ix_venue_api_keys_venue_id ON venue_api_keys (venue_id)",
    ),
    "sync_queue": (
        """
        CREATE TABLE sync_queue (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            operation_type operation_type NOT NULL,
            entity_type varchar(100) NOT NULL,
            entity_id varchar(255),
            payload jsonb DEFAULT '{}'::jsonb NOT NULL,
            idempotency_key varchar(255),
            priority operation_priority DEFAULT 'NORMAL' NOT NULL,
            status operation_status DEFAULT 'pending' NOT NULL,
            attempts integer DEFAULT 0 NOT NULL,
            max_attempts integer DEFAULT 10 NOT NULL,
            next_retry_at timestamptz,
            queued_at timestamptz DEFAULT now() NOT NULL,
            started_at timestamptz,
            completed_at timestamptz,
            expires_at timestamptz DEFAULT now() + interval '7 days' NOT NULL,
            last_error text,
            error_count integer DEFAULT 0 NOT NULL,
            correlation_id varchar(255),
            run_id uuid,
            stop_requested boolean DEFAULT false NOT NULL,
            result jsonb,
            progress jsonb,
            lease_owner varchar(255),
            lease_expires_at timestamptz,
            fencing_token bigint DEFAULT 0 NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_sync_queue PRIMARY KEY (id),
            CONSTRAINT ck_sync_queue_attempts_not_negative CHECK (attempts >= 0),
            CONSTRAINT ck_sync_queue_max_attempts_positive CHECK (max_attempts > 0),
            CONSTRAINT ck_sync_queue_processing_is_leased
                CHECK (status <> 'processing'::operation_status
                    OR (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)),
            CONSTRAINT uq_sync_queue_idempotency_key UNIQUE (idempotency_key)
        )
        """,
        """
        CREATE INDEX ix_sync_queue_claimable
        ON sync_queue (priority, queued_at)
        WHERE status = ANY (ARRAY['pending', 'failed', 'recovering']::operation_status[])
        """,
        "CREATE INDEX ix_sync_queue_expires_at ON sync_queue (expires_at)",
        """
        CREATE INDEX ix_sync_queue_leases
        ON sync_queue (lease_expires_at)
        WHERE status = 'processing'::operation_status
        """,
        "CREATE INDEX ix_sync_queue_next_retry_at ON sync_queue (next_retry_at)",
        "CREATE INDEX ix_sync_queue_priority_status ON sync_queue (priority, status)",
        "CREATE INDEX ix_sync_queue_run_id ON sync_queue (run_id)",
        "CREATE INDEX ix_sync_queue_venue_id_status ON sync_queue (venue_id, status)",
        """
        CREATE UNIQUE INDEX uq_sync_queue_running_sync
        ON sync_queue (venue_id, integration_type)
        WHERE operation_type = 'sync'::operation_type AND status = 'processing'::operation_status
        """,
    ),
    "sync_logs": (
        """
        CREATE TABLE sync_logs (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            sync_id uuid,
            operation varchar(50) NOT NULL,
            entity_type varchar(100),
            entity_count integer,
            status varchar(20) NOT NULL,
            success_count integer DEFAULT 0 NOT NULL,
            error_count integer DEFAULT 0 NOT NULL,
            skip_count integer DEFAULT 0 NOT NULL,
            duration_ms integer,
            api_calls_made integer,
            details jsonb,
            errors jsonb,
            started_at timestamptz DEFAULT now() NOT NULL,
            completed_at timestamptz,
            CONSTRAINT pk_sync_logs PRIMARY KEY (id)
        )
        """,
        "CREATE INDEX ix_sync_logs_sync_id ON sync_logs (sync_id)",
        "CREATE INDEX ix_sync_logs_venue_id_started_at ON sync_logs (venue_id, started_at)",
    ),
    "integration_webhooks": (
        """
        CREATE TABLE integration_webhooks (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid,
            integration_type varchar(50) NOT NULL,
            event_type varchar(255) NOT NULL,
            event_id varchar(255),
            headers jsonb,
            payload jsonb NOT NULL,
            signature varchar(500),
            status webhook_status DEFAULT 'pending' NOT NULL,
            processed_at timestamptz,
            error text,
            retry_count integer DEFAULT 0 NOT NULL,
            external_id varchar(255),
            received_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_integration_webhooks PRIMARY KEY (id),
            CONSTRAINT uq_integration_webhooks_integration_type_external_id
                UNIQUE (integration_type, external_id)
        )
        """,
        "CREATE INDEX ix_integration_webhooks_external_id ON integration_webhooks (external_id)",
        "CREATE INDEX ix_integration_webhooks_received_at ON integration_webhooks (received_at)",
        "CREATE INDEX ix_integration_webhooks_venue_id_status ON integration_webhooks (venue_id, status)",
    ),
    "integration_health": (
        """
        CREATE TABLE integration_health (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            success_rate numeric(5, 2),
            average_sync_time_ms integer,
            last_success_at timestamptz,
            last_failure_at timestamptz,
            sync_count_24h integer DEFAULT 0 NOT NULL,
            success_count_24h integer DEFAULT 0 NOT NULL,
            failure_count_24h integer DEFAULT 0 NOT NULL,
            api_calls_24h integer DEFAULT 0 NOT NULL,
            api_quota_remaining integer,
            api_quota_resets_at timestamptz,
            queue_depth integer DEFAULT 0 NOT NULL,
            oldest_queue_item_at timestamptz,
            calculated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_integration_health PRIMARY KEY (id),
            CONSTRAINT uq_integration_health_venue_id_integration_type UNIQUE (venue_id, integration_type)
        )
        """,
        "CREATE INDEX ix_integration_health_calculated_at ON integration_health (calculated_at)",
    ),
    "integration_costs": (
        """
        CREATE TABLE integration_costs (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            period_start date NOT NULL,
            period_end date NOT NULL,
            api_calls integer DEFAULT 0 NOT NULL,
            data_synced_mb numeric(10, 2),
            base_cost numeric(10, 2),
            overage_cost numeric(10, 2),
            total_cost numeric(10, 2),
            included_in_plan boolean DEFAULT true NOT NULL,
            billed_to_venue boolean DEFAULT false NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_integration_costs PRIMARY KEY (id),
            CONSTRAINT uq_integration_costs_venue_id_integration_type_period_start
                UNIQUE (venue_id, integration_type, period_start),
            CONSTRAINT ck_integration_costs_period_in_order CHECK (period_end >= period_start)
        )
        """,
    ),
    "record_links": (
        """
        CREATE TABLE record_links (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            local_id varchar(255) NOT NULL,
            remote_id varchar(255),
            fingerprint varchar(128),
            agreed jsonb DEFAULT '{}'::jsonb NOT NULL,
            remote_version text,
            remote_changed_at timestamptz,
            last_direction direction,
            state link_state DEFAULT 'linked' NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_record_links PRIMARY KEY (id),
            CONSTRAINT uq_record_links_local UNIQUE (local_id, venue_id, integration_type, resource, entity)
        )
        """,
        """
        CREATE INDEX ix_record_links_venue_id_integration_type
        ON record_links (venue_id, integration_type)
        """,
        """
        CREATE UNIQUE INDEX uq_record_links_remote
        ON record_links (remote_id, venue_id, integration_type, resource)
        WHERE remote_id IS NOT NULL
        """,
    ),
    "sync_watermarks": (
        """
        CREATE TABLE sync_watermarks (
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            direction direction NOT NULL,
            position jsonb NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_sync_watermarks
                PRIMARY KEY (venue_id, integration_type, entity, resource, direction)
        )
        """,
    ),
    "pending_writes": (
        """
        CREATE TABLE pending_writes (
            id bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            call_key varchar(255) NOT NULL,
            items json NOT NULL,
            attempt integer DEFAULT 1 NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_pending_writes PRIMARY KEY (id),
            CONSTRAINT uq_pending_writes_call
                UNIQUE (venue_id, integration_type, entity, resource, call_key)
        )
        """,
    ),
    "record_failures": (
        """
        CREATE TABLE record_failures (
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            direction direction NOT NULL,
            record_id varchar(255) NOT NULL,
            code text NOT NULL,
            message text NOT NULL,
            retryable boolean NOT NULL,
            field text,
            attempts integer DEFAULT 1 NOT NULL,
            run_id uuid,
            first_failed_at timestamptz DEFAULT now() NOT NULL,
            last_failed_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_record_failures
                PRIMARY KEY (venue_id, integration_type, entity, resource, direction, record_id)
        )
        """,
    ),
    "oauth_states": (
        """
        CREATE TABLE oauth_states (
            state_hash varchar(64) NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            environment varchar(20) DEFAULT 'production' NOT NULL,
            user_id varchar(255) NOT NULL,
            encrypted_verifier text,
            redirect_uri text NOT NULL,
            config jsonb DEFAULT '{}'::jsonb NOT NULL,
            used_at timestamptz,
            created_at timestamptz DEFAULT now() NOT NULL,
            expires_at timestamptz DEFAULT now() + interval '10 minutes' NOT NULL,
            CONSTRAINT pk_oauth_states PRIMARY KEY (state_hash)
        )
        """,
        "CREATE INDEX ix_oauth_states_expires_at ON oauth_states (expires_at)",
    ),
    "audit_log": (
        """
        CREATE TABLE audit_log (
            id bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid,
            integration_type varchar(50),
            actor varchar(255) NOT NULL,
            action varchar(100) NOT NULL,
            target varchar(255),
            details jsonb DEFAULT '{}'::jsonb NOT NULL,
            ip inet,
            request_id varchar(255),
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_audit_log PRIMARY KEY (id)
        )
        """,
        "CREATE INDEX ix_audit_log_created_at ON audit_log (created_at)",
        "CREATE INDEX ix_audit_log_venue_id_created_at ON audit_log (venue_id, created_at)",
    ),
    "mapping_versions": (
        """
        CREATE TABLE mapping_versions (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            version integer NOT NULL,
            mappings jsonb NOT NULL,
            reason varchar(50) NOT NULL,
            template_id uuid,
            heal_plan jsonb,
            created_by varchar(255),
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_mapping_versions PRIMARY KEY (id),
            CONSTRAINT uq_mapping_versions_venue_id_integration_type_version
                UNIQUE (venue_id, integration_type, version),
            CONSTRAINT ck_mapping_versions_version_positive CHECK (version > 0),
            CONSTRAINT fk_mapping_versions_template_id
                FOREIGN KEY (template_id)
                REFERENCES field_mapping_templates (id) ON DELETE SET NULL
        )
        """,
    ),
    "observed_fields": (
        """
        CREATE TABLE observed_fields (
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            resource varchar(100) NOT NULL,
            path varchar(500) NOT NULL,
            types text[] NOT NULL,
            seen_count bigint DEFAULT 0 NOT NULL,
            first_seen_at timestamptz DEFAULT now() NOT NULL,
            last_seen_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_observed_fields PRIMARY KEY (venue_id, integration_type, resource, path)
        )
        """,
    ),
    "outbox": (
        """
        CREATE TABLE outbox (
            id bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid,
            topic varchar(100) NOT NULL,
            payload jsonb NOT NULL,
            attempts integer DEFAULT 0 NOT NULL,
            available_at timestamptz DEFAULT now() NOT NULL,
            published_at timestamptz,
            last_error text,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_outbox PRIMARY KEY (id)
        )
        """,
        "CREATE INDEX ix_outbox_unpublished ON outbox (available_at) WHERE published_at IS NULL",
    ),
    "idempotency_keys": (
        """
        CREATE TABLE idempotency_keys (
            caller varchar(255) NOT NULL,
            key varchar(255) NOT NULL,
            request_hash varchar(64) NOT NULL,
            status integer,
            response jsonb,
            created_at timestamptz DEFAULT now() NOT NULL,
            expires_at timestamptz DEFAULT now() + interval '24 hours' NOT NULL,
            CONSTRAINT pk_idempotency_keys PRIMARY KEY (caller, key)
        )
        """,
        "CREATE INDEX ix_idempotency_keys_expires_at ON idempotency_keys (expires_at)",
    ),
}


def upgrade() -> None:
    for name, values in ENUMS.items():
        op.execute(f"CREATE TYPE {name} AS ENUM ({', '.join(map(repr, values))})")
    for statements in TABLES.values():
        for statement in statements:
            op.execute(statement)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")
    for name in reversed(ENUMS):
        op.execute(f"DROP TYPE {name}")
