"""What integrations use of their providers: bytes beside calls, and when a month's costs were fixed.

Revision: 0009
Follows: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE integration_costs
            ALTER COLUMN api_calls TYPE bigint,
            ALTER COLUMN base_cost TYPE numeric(20, 2),
            ALTER COLUMN overage_cost TYPE numeric(20, 2),
            ALTER COLUMN total_cost TYPE numeric(20, 2),
            ADD COLUMN bytes_sent bigint DEFAULT 0 NOT NULL,
            ADD COLUMN bytes_received bigint DEFAULT 0 NOT NULL,
            ADD COLUMN currency varchar(3),
            ADD COLUMN updated_at timestamptz DEFAULT now() NOT NULL,
            ADD COLUMN closed_at timestamptz
        """
    )
    # Megabytes that were written down before are kept as what came in.
    op.execute(
        "UPDATE integration_costs SET bytes_received = data_synced_mb * 1000000 "
        "WHERE data_synced_mb IS NOT NULL"
    )
    op.execute(
        """
        ALTER TABLE integration_costs
            DROP COLUMN data_synced_mb,
            ADD COLUMN data_synced_mb numeric(20, 2)
                GENERATED ALWAYS AS (round((bytes_sent + bytes_received)::numeric / 1000000.0, 2)) STORED
        """
    )
    op.execute("CREATE INDEX ix_integration_costs_period_start ON integration_costs (period_start)")
    op.execute(
        "CREATE INDEX ix_integration_costs_open ON integration_costs (period_end) WHERE closed_at IS NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_integration_costs_open")
    op.execute("DROP INDEX ix_integration_costs_period_start")
    op.execute("ALTER TABLE integration_costs ALTER COLUMN data_synced_mb DROP EXPRESSION")
    op.execute(
        """
        ALTER TABLE integration_costs
            ALTER COLUMN data_synced_mb TYPE numeric(10, 2),
            ALTER COLUMN api_calls TYPE integer,
            ALTER COLUMN base_cost TYPE numeric(10, 2),
            ALTER COLUMN overage_cost TYPE numeric(10, 2),
            ALTER COLUMN total_cost TYPE numeric(10, 2),
            DROP COLUMN bytes_sent,
            DROP COLUMN bytes_received,
            DROP COLUMN currency,
            DROP COLUMN updated_at,
            DROP COLUMN closed_at
        """
    )
