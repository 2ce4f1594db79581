"""What is known of each observed field, and what changed about a provider's records.

Revision: 0014
Follows: 0013
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE observed_fields
            ADD COLUMN shapes text[] DEFAULT '{}' NOT NULL,
            ADD COLUMN words text[] DEFAULT '{}' NOT NULL,
            ADD COLUMN record_count bigint DEFAULT 0 NOT NULL,
            ADD COLUMN null_count bigint DEFAULT 0 NOT NULL,
            ADD COLUMN missed_count bigint DEFAULT 0 NOT NULL,
            ADD COLUMN removed_at timestamptz
        """
    )
    op.execute(
        """
        CREATE TABLE drift_events (
            id bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            resource varchar(100) NOT NULL,
            path varchar(500) NOT NULL,
            kind varchar(20) NOT NULL,
            before text[] NOT NULL,
            after text[] NOT NULL,
            evidence text[] NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            handled_at timestamptz,
            CONSTRAINT pk_drift_events PRIMARY KEY (id)
        )
        """
    )
    op.execute("CREATE INDEX ix_drift_events_place ON drift_events (venue_id, integration_type, id)")
    op.execute("CREATE INDEX ix_drift_events_created_at ON drift_events (created_at)")
    op.execute("CREATE INDEX ix_drift_events_waiting ON drift_events (id) WHERE handled_at IS NULL")


def downgrade() -> None:
    op.execute("DROP TABLE drift_events")
    op.execute(
        """
        ALTER TABLE observed_fields
            DROP COLUMN removed_at,
            DROP COLUMN missed_count,
            DROP COLUMN null_count,
            DROP COLUMN record_count,
            DROP COLUMN words,
            DROP COLUMN shapes
        """
    )
