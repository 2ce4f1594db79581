"""An integration has one running operation, whatever it does.

Revision: 0013
Follows: 0012
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE UNIQUE INDEX uq_sync_queue_running ON sync_queue (venue_id, integration_type)
            WHERE status = 'processing'::operation_status
        """
    )
    op.execute("DROP INDEX uq_sync_queue_running_sync")


def downgrade() -> None:
    op.execute(
        """
        CREATE UNIQUE INDEX uq_sync_queue_running_sync ON sync_queue (venue_id, integration_type)
            WHERE operation_type = 'sync'::operation_type AND status = 'processing'::operation_status
        """
    )
    op.execute("DROP INDEX uq_sync_queue_running")
