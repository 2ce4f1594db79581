"""The audit log says more and can't be changed any more; archives of exports are kept in parts.

Revision: 0006
Follows: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE audit_log
            ADD COLUMN role varchar(50),
            ADD COLUMN before jsonb,
            ADD COLUMN after jsonb,
            ADD COLUMN count integer DEFAULT 1 NOT NULL,
            ADD COLUMN same varchar(64),
            ADD CONSTRAINT uq_audit_log_same UNIQUE (same),
            ADD CONSTRAINT ck_audit_log_count_positive CHECK (count > 0)
        """
    )
    # Two changes of an entry are let through: the count of a refused attempt grows, and an erasure, which
    # says that it is one, takes out what tells of persons. What was done and when stays in any case.
    op.execute(
        r"""
        CREATE FUNCTION audit_log_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                IF OLD.same IS NOT NULL AND NEW.count > OLD.count
                    AND to_jsonb(NEW) - 'count' = to_jsonb(OLD) - 'count'
                THEN
                    RETURN NEW;
                END IF;
                IF current_setting('hub.erasing', true) = 'on'
                    AND NEW.actor ~ '^erased:[0-9a-f]{32}$'
                    AND NEW.details = '{}'::jsonb
                    AND num_nonnulls(NEW.target, NEW.ip, NEW.request_id, NEW.before, NEW.after, NEW.same) = 0
                    AND (NEW.id, NEW.integration_type, NEW.action, NEW.created_at, NEW.role, NEW.count)
                        IS NOT DISTINCT FROM
                        (OLD.id, OLD.integration_type, OLD.action, OLD.created_at, OLD.role, OLD.count)
                THEN
                    RETURN NEW;
                END IF;
            END IF;
            RAISE EXCEPTION 'entries of audit_log are never changed or deleted'
                USING ERRCODE = 'insufficient_privilege';
        END
        $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_log_only_grows BEFORE UPDATE OR DELETE ON audit_log
        FOR EACH ROW EXECUTE FUNCTION audit_log_only_grows()
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_log_is_never_emptied BEFORE TRUNCATE ON audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION audit_log_only_grows()
        """
    )
    op.execute(
        """
        CREATE TABLE export_parts (
            run_id uuid NOT NULL,
            number integer NOT NULL,
            data bytea NOT NULL,
            CONSTRAINT pk_export_parts PRIMARY KEY (run_id, number),
            CONSTRAINT fk_export_parts_run_id FOREIGN KEY (run_id)
                REFERENCES maintenance_runs (id) ON DELETE CASCADE,
            CONSTRAINT ck_export_parts_data_not_large CHECK (octet_length(data) <= 1048576)
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE export_parts")
    op.execute("DROP TRIGGER audit_log_is_never_emptied ON audit_log")
    op.execute("DROP TRIGGER audit_log_only_grows ON audit_log")
    op.execute("DROP FUNCTION audit_log_only_grows()")
    op.execute(
        """
        ALTER TABLE audit_log
            DROP COLUMN same, DROP COLUMN count, DROP COLUMN after, DROP COLUMN before, DROP COLUMN role
        """
    )
