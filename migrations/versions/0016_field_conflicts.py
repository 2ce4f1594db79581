"""Fields that both sides changed and a person has to decide about.

Revision: 0016
Follows: 0015
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE field_conflicts (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            local_id varchar(255) NOT NULL,
            remote_id varchar(255) NOT NULL,
            field varchar(255) NOT NULL,
            ours json NOT NULL,
            theirs json NOT NULL,
            agreed json NOT NULL,
            ours_changed_at text,
            theirs_changed_at text,
            state varchar(20) DEFAULT 'open' NOT NULL,
            resolution json,
            resolved_by varchar(255),
            resolved_at timestamptz,
            detected_at timestamptz DEFAULT now() NOT NULL,
            seen_at timestamptz DEFAULT now() NOT NULL,
            ended_at timestamptz,
            CONSTRAINT pk_field_conflicts PRIMARY KEY (id),
            CONSTRAINT ck_field_conflicts_state_known CHECK (state IN ('open', 'resolved', 'settled'))
        )
        """
    )
    op.execute(
        """
        CREATE UNIQUE INDEX uq_field_conflicts_standing
            ON field_conflicts (venue_id, integration_type, resource, local_id, field)
            WHERE ended_at IS NULL
        """
    )
    op.execute("CREATE INDEX ix_field_conflicts_listed ON field_conflicts (venue_id, detected_at, id)")
    op.execute(
        """
        CREATE INDEX ix_record_links_due
            ON record_links (venue_id, integration_type, resource, entity, local_id) WHERE agreed ? 'due'
        """
    )
    op.execute("CREATE INDEX ix_field_conflicts_ended_at ON field_conflicts (ended_at)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_record_links_due")
    op.execute("DROP TABLE field_conflicts")
