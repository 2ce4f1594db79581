"""Plans of pushes: what one would do, kept until it is applied or too old.

Revision: 0015
Follows: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TYPE operation_type ADD VALUE 'plan'")
    op.execute(
        """
        CREATE TABLE push_plans (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            sync_type varchar(20) NOT NULL,
            status varchar(20) DEFAULT 'making' NOT NULL,
            operation_id uuid NOT NULL,
            basis jsonb DEFAULT '{}'::jsonb NOT NULL,
            mapping_version integer,
            counts jsonb DEFAULT '{}'::jsonb NOT NULL,
            requested_by varchar(255) NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            made_at timestamptz,
            expires_at timestamptz DEFAULT now() + interval '24 hours' NOT NULL,
            sync_id uuid,
            applied_at timestamptz,
            CONSTRAINT pk_push_plans PRIMARY KEY (id),
            CONSTRAINT ck_push_plans_status_known CHECK (status IN ('making', 'ready', 'applied'))
        )
        """
    )
    op.execute("CREATE INDEX ix_push_plans_venue_id ON push_plans (venue_id)")
    op.execute("CREATE INDEX ix_push_plans_expires_at ON push_plans (expires_at)")
    op.execute(
        """
        CREATE TABLE push_plan_records (
            plan_id uuid NOT NULL,
            number bigint GENERATED ALWAYS AS IDENTITY,
            venue_id uuid NOT NULL,
            entity varchar(100) NOT NULL,
            resource varchar(100) NOT NULL,
            local_id varchar(255) NOT NULL,
            remote_id varchar(255),
            action varchar(20) NOT NULL,
            reason text NOT NULL,
            fields jsonb NOT NULL,
            writes boolean NOT NULL,
            pulls_first boolean NOT NULL,
            ours varchar(64) NOT NULL,
            merged varchar(64) NOT NULL,
            theirs varchar(64),
            outcome varchar(20),
            why text,
            CONSTRAINT pk_push_plan_records PRIMARY KEY (plan_id, number),
            CONSTRAINT uq_push_plan_records_record UNIQUE (plan_id, entity, resource, local_id),
            CONSTRAINT fk_push_plan_records_plan_id
                FOREIGN KEY (plan_id) REFERENCES push_plans (id) ON DELETE CASCADE
        )
        """
    )
    op.execute("CREATE INDEX ix_push_plan_records_venue_id ON push_plan_records (venue_id)")


def downgrade() -> None:
    op.execute("DROP TABLE push_plan_records")
    op.execute("DROP TABLE push_plans")
    # An operation that plans has nothing to do any more.
    op.execute("DELETE FROM sync_queue WHERE operation_type = 'plan'")
    op.execute("ALTER TYPE operation_type RENAME TO operation_type_of_0015")
    op.execute("CREATE TYPE operation_type AS ENUM ('create', 'update', 'delete', 'sync', 'reconcile')")
    op.execute(
        "ALTER TABLE sync_queue ALTER COLUMN operation_type TYPE operation_type"
        " USING operation_type::text::operation_type"
    )
    op.execute("DROP TYPE operation_type_of_0015")
