"""What is known of a grant's renewals: begun, failed, over, and when it was last given.

Revision: 0007
Follows: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE oauth_tokens
            ADD COLUMN expires_in integer,
            ADD COLUMN refresh_expires_in integer,
            ADD COLUMN granted_at timestamptz DEFAULT now() NOT NULL,
            ADD COLUMN grant_ended_at timestamptz,
            ADD COLUMN refresh_started_at timestamptz,
            ADD COLUMN refresh_next_at timestamptz
        """
    )
    op.execute("UPDATE oauth_tokens SET granted_at = coalesce(last_refreshed_at, updated_at)")


def downgrade() -> None:
    op.execute(
        """
        ALTER TABLE oauth_tokens
            DROP COLUMN expires_in,
            DROP COLUMN refresh_expires_in,
            DROP COLUMN granted_at,
            DROP COLUMN grant_ended_at,
            DROP COLUMN refresh_started_at,
            DROP COLUMN refresh_next_at
        """
    )
