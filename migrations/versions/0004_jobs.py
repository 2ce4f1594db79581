"""A write under way may be a job that the provider works on in its own time.

Revision: 0004
Follows: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE pending_writes ADD COLUMN job varchar(255)")


def downgrade() -> None:
    op.execute("ALTER TABLE pending_writes DROP COLUMN job")
