"""Work on what is stored itself: rotations, exports and erasures, a batch at a time.

Revision: 0005
Follows: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE TYPE maintenance_status AS ENUM ('pending', 'running', 'completed', 'failed', 'stopped')"
    )
    op.execute(
        """
        CREATE TABLE maintenance_runs (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            kind varchar(50) NOT NULL,
            venue_id uuid,
            status maintenance_status DEFAULT 'pending' NOT NULL,
            position jsonb DEFAULT '{}'::jsonb NOT NULL,
            progress jsonb DEFAULT '{}'::jsonb NOT NULL,
            result jsonb,
            error text,
            requested_by varchar(255) NOT NULL,
            requested_ip inet,
            attempts integer DEFAULT 0 NOT NULL,
            next_attempt_at timestamptz DEFAULT now() NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            started_at timestamptz,
            updated_at timestamptz DEFAULT now() NOT NULL,
            completed_at timestamptz,
            CONSTRAINT pk_maintenance_runs PRIMARY KEY (id),
            CONSTRAINT ck_maintenance_runs_attempts_not_negative CHECK (attempts >= 0)
        )
        """
    )
    op.execute(
        """
        CREATE UNIQUE INDEX uq_maintenance_runs_unfinished ON maintenance_runs (kind, venue_id)
        NULLS NOT DISTINCT
        WHERE status = ANY (ARRAY['pending', 'running']::maintenance_status[])
        """
    )
    op.execute("CREATE INDEX ix_maintenance_runs_venue_id ON maintenance_runs (venue_id)")


def downgrade() -> None:
    op.execute("DROP TABLE maintenance_runs")
    op.execute("DROP TYPE maintenance_status")
