"""Who is told of events, and what was delivered to whom.

Revision: 0010
Follows: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TYPE delivery_status AS ENUM ('pending', 'delivered', 'failed')")
    op.execute(
        """
        ALTER TABLE outbox
            ADD COLUMN event_id uuid DEFAULT gen_random_uuid() NOT NULL,
            ADD COLUMN streams text[] DEFAULT '{}'::text[] NOT NULL
        """
    )
    op.execute("CREATE INDEX ix_outbox_streams ON outbox (id) WHERE streams <> '{}'::text[]")
    op.execute("CREATE INDEX ix_outbox_venue_id_created_at ON outbox (venue_id, created_at)")
    op.execute("CREATE INDEX ix_outbox_created_at ON outbox (created_at)")
    op.execute(
        """
        CREATE TABLE event_subscribers (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid,
            url text NOT NULL,
            events text[] NOT NULL,
            description varchar(255),
            active boolean DEFAULT true NOT NULL,
            disabled_at timestamptz,
            disabled_reason text,
            encrypted_secret text NOT NULL,
            encrypted_previous_secret text,
            previous_secret_expires_at timestamptz,
            failures integer DEFAULT 0 NOT NULL,
            failing_since timestamptz,
            held_until timestamptz,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_event_subscribers PRIMARY KEY (id)
        )
        """
    )
    op.execute("CREATE INDEX ix_event_subscribers_venue_id ON event_subscribers (venue_id)")
    op.execute(
        """
        CREATE TABLE event_deliveries (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            subscriber_id uuid NOT NULL,
            outbox_id bigint NOT NULL,
            venue_id uuid,
            status delivery_status DEFAULT 'pending' NOT NULL,
            attempts integer DEFAULT 0 NOT NULL,
            step integer DEFAULT 0 NOT NULL,
            next_attempt_at timestamptz,
            give_up_at timestamptz NOT NULL,
            last_attempt_at timestamptz,
            delivered_at timestamptz,
            duration_ms integer,
            answer_status integer,
            answer_body text,
            error text,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_event_deliveries PRIMARY KEY (id),
            CONSTRAINT uq_event_deliveries_subscriber_id_outbox_id UNIQUE (subscriber_id, outbox_id),
            CONSTRAINT fk_event_deliveries_subscriber_id FOREIGN KEY (subscriber_id)
                REFERENCES event_subscribers (id) ON DELETE CASCADE,
            CONSTRAINT fk_event_deliveries_outbox_id FOREIGN KEY (outbox_id)
                REFERENCES outbox (id) ON DELETE CASCADE
        )
        """
    )
    op.execute("CREATE INDEX ix_event_deliveries_venue_id ON event_deliveries (venue_id)")
    op.execute(
        """
        CREATE INDEX ix_event_deliveries_subscriber_id_created_at
            ON event_deliveries (subscriber_id, created_at, id)
        """
    )
    op.execute(
        """
        CREATE INDEX ix_event_deliveries_pending ON event_deliveries (subscriber_id, next_attempt_at)
            WHERE status = 'pending'::delivery_status
        """
    )
    op.execute("CREATE INDEX ix_event_deliveries_outbox_id ON event_deliveries (outbox_id)")
    op.execute("CREATE INDEX ix_event_deliveries_created_at ON event_deliveries (created_at)")


def downgrade() -> None:
    op.execute("DROP TABLE event_deliveries")
    op.execute("DROP TABLE event_subscribers")
    op.execute("DROP INDEX ix_outbox_created_at")
    op.execute("DROP INDEX ix_outbox_venue_id_created_at")
    op.execute("DROP INDEX ix_outbox_streams")
    op.execute("ALTER TABLE outbox DROP COLUMN streams, DROP COLUMN event_id")
    op.execute("DROP TYPE delivery_status")
