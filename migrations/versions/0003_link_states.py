"""What becomes of a link when one side is gone, and finding those links.

Revision: 0003
Follows: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TYPE link_state ADD VALUE 'leaving'")
    op.execute("ALTER TYPE link_state ADD VALUE 'archived'")
    op.execute(
        """
        CREATE INDEX ix_record_links_place
        ON record_links (venue_id, integration_type, resource, entity, state, local_id)
        """
    )
    op.execute("DROP INDEX ix_record_links_venue_id_integration_type")


def downgrade() -> None:
    op.execute(
        "CREATE INDEX ix_record_links_venue_id_integration_type ON record_links (venue_id, integration_type)"
    )
    op.execute("DROP INDEX ix_record_links_place")
    op.execute("ALTER TABLE record_links ALTER COLUMN state DROP DEFAULT")
    op.execute("ALTER TYPE link_state RENAME TO link_state_of_0003")
    op.execute("CREATE TYPE link_state AS ENUM ('linked', 'broken')")
    # What was to be archived, or is, would be written again as if it were wanted: nothing happens to it so.
    op.execute(
        """
        ALTER TABLE record_links ALTER COLUMN state TYPE link_state
        USING (CASE state::text WHEN 'linked' THEN 'linked' ELSE 'broken' END)::link_state
        """
    )
    op.execute("ALTER TABLE record_links ALTER COLUMN state SET DEFAULT 'linked'")
    op.execute("DROP TYPE link_state_of_0003")
