"""When a provider answered that it doesn't know a field.

Revision: 0017
Follows: 0016
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE observed_fields ADD COLUMN refused_at timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE observed_fields DROP COLUMN refused_at")
