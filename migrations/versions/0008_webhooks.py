"""Deliveries as they came, addresses of connections, and what is known of an event.

Revision: 0008
Follows: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE webhook_deliveries (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid,
            integration_type varchar(50) NOT NULL,
            method varchar(10) NOT NULL,
            url text NOT NULL,
            headers jsonb NOT NULL,
            body bytea NOT NULL,
            scheme varchar(50) NOT NULL,
            received_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id)
        )
        """
    )
    op.execute("CREATE INDEX ix_webhook_deliveries_received_at ON webhook_deliveries (received_at)")
    op.execute("CREATE INDEX ix_webhook_deliveries_venue_id ON webhook_deliveries (venue_id)")
    op.execute(
        """
        CREATE TABLE webhook_endpoints (
            id uuid DEFAULT gen_random_uuid() NOT NULL,
            venue_id uuid NOT NULL,
            integration_type varchar(50) NOT NULL,
            environment varchar(20) DEFAULT 'production' NOT NULL,
            token_hash varchar(64) NOT NULL,
            encrypted_token text NOT NULL,
            encrypted_secrets text,
            subscription_id varchar(255),
            subscribed_at timestamptz,
            checked_at timestamptz,
            next_check_at timestamptz DEFAULT now(),
            failures integer DEFAULT 0 NOT NULL,
            last_error text,
            created_at timestamptz DEFAULT now() NOT NULL,
            updated_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_webhook_endpoints PRIMARY KEY (id),
            CONSTRAINT uq_webhook_endpoints_venue_id_integration_type UNIQUE (venue_id, integration_type),
            CONSTRAINT uq_webhook_endpoints_token_hash UNIQUE (token_hash)
        )
        """
    )
    op.execute("CREATE INDEX ix_webhook_endpoints_next_check_at ON webhook_endpoints (next_check_at)")
    op.execute(
        """
        ALTER TABLE integration_webhooks
            ADD COLUMN delivery_id uuid,
            ADD COLUMN account varchar(255),
            ADD COLUMN record_id varchar(255),
            ADD COLUMN occurred_at timestamptz,
            ADD COLUMN payload_hash varchar(64)
        """
    )
    op.execute("CREATE INDEX ix_integration_webhooks_delivery_id ON integration_webhooks (delivery_id)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_integration_webhooks_delivery_id")
    op.execute(
        """
        ALTER TABLE integration_webhooks
            DROP COLUMN delivery_id,
            DROP COLUMN account,
            DROP COLUMN record_id,
            DROP COLUMN occurred_at,
            DROP COLUMN payload_hash
        """
    )
    op.execute("DROP TABLE webhook_endpoints")
    op.execute("DROP TABLE webhook_deliveries")
