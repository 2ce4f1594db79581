"""Circuits of integrations, how their health changed, what each attempt came to, and syncs by hour and day.

Revision: 0011
Follows: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE integration_configs
            ADD COLUMN answered_at timestamptz,
            ADD COLUMN circuit_failures integer DEFAULT 0 NOT NULL,
            ADD COLUMN circuit_opened_at timestamptz,
            ADD COLUMN circuit_until timestamptz
        """
    )
    op.execute(
        """
        CREATE INDEX ix_integration_configs_circuit ON integration_configs (venue_id, integration_type)
            WHERE circuit_opened_at IS NOT NULL
        """
    )
    op.execute(
        """
        ALTER TABLE integration_health
            ADD COLUMN checked_at timestamptz,
            ADD COLUMN check_failures integer DEFAULT 0 NOT NULL,
            ADD COLUMN check_error varchar(50),
            ADD COLUMN response_ms integer,
            ADD COLUMN reason varchar(50),
            ADD COLUMN explanation text,
            ADD COLUMN better_status health_status,
            ADD COLUMN better_count integer DEFAULT 0 NOT NULL
        """
    )
    op.execute(
        """
        CREATE TABLE health_changes (
            id bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            from_status health_status NOT NULL,
            to_status health_status NOT NULL,
            reason varchar(50) NOT NULL,
            explanation text NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_health_changes PRIMARY KEY (id)
        )
        """
    )
    op.execute(
        "CREATE INDEX ix_health_changes_place ON health_changes (venue_id, integration_type, created_at)"
    )
    op.execute("CREATE INDEX ix_health_changes_created_at ON health_changes (created_at)")
    op.execute(
        """
        ALTER TABLE sync_queue
            ADD COLUMN lost_workers integer DEFAULT 0 NOT NULL,
            ADD COLUMN error_code varchar(100),
            ADD COLUMN attempts_log jsonb DEFAULT '[]'::jsonb NOT NULL,
            ADD COLUMN revivals integer DEFAULT 0 NOT NULL
        """
    )
    op.execute(
        """
        CREATE INDEX ix_sync_queue_ended_badly ON sync_queue (completed_at, id)
            WHERE status = ANY (ARRAY['failed', 'dead_letter']::operation_status[])
        """
    )
    op.execute("CREATE INDEX ix_sync_logs_completed_at ON sync_logs (completed_at)")
    op.execute(
        """
        CREATE TABLE sync_rollups (
            width varchar(4) NOT NULL,
            bucket timestamptz NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            syncs integer NOT NULL,
            failed integer NOT NULL,
            timed integer NOT NULL,
            duration_ms bigint NOT NULL,
            durations integer[] NOT NULL,
            success_count bigint NOT NULL,
            error_count bigint NOT NULL,
            api_calls bigint NOT NULL,
            CONSTRAINT pk_sync_rollups PRIMARY KEY (width, bucket, venue_id, integration_type),
            CONSTRAINT ck_sync_rollups_width_known CHECK (width IN ('hour', 'day'))
        )
        """
    )
    op.execute("CREATE INDEX ix_sync_rollups_venue_id ON sync_rollups (venue_id)")
    op.execute(
        """
        CREATE TABLE rollup_marks (
            name varchar(50) NOT NULL,
            up_to timestamptz NOT NULL,
            CONSTRAINT pk_rollup_marks PRIMARY KEY (name)
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE rollup_marks")
    op.execute("DROP TABLE sync_rollups")
    op.execute("DROP INDEX ix_sync_logs_completed_at")
    op.execute("DROP INDEX ix_sync_queue_ended_badly")
    op.execute(
        """
        ALTER TABLE sync_queue
            DROP COLUMN lost_workers,
            DROP COLUMN error_code,
            DROP COLUMN attempts_log,
            DROP COLUMN revivals
        """
    )
    op.execute("DROP TABLE health_changes")
    op.execute(
        """
        ALTER TABLE integration_health
            DROP COLUMN checked_at,
            DROP COLUMN check_failures,
            DROP COLUMN check_error,
            DROP COLUMN response_ms,
            DROP COLUMN reason,
            DROP COLUMN explanation,
            DROP COLUMN better_status,
            DROP COLUMN better_count
        """
    )
    op.execute("DROP INDEX ix_integration_configs_circuit")
    op.execute(
        """
        ALTER TABLE integration_configs
            DROP COLUMN answered_at,
            DROP COLUMN circuit_failures,
            DROP COLUMN circuit_opened_at,
            DROP COLUMN circuit_until
        """
    )
