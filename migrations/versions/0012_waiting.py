"""An index of what waits, by integration: its next operation, and how many there are.

Revision: 0012
Follows: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE INDEX ix_sync_queue_waiting ON sync_queue (venue_id, integration_type, priority, queued_at)
            WHERE status = ANY (ARRAY['pending', 'recovering']::operation_status[])
        """
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_sync_queue_waiting")
