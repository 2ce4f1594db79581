-- The demo platform's own tables. The hub knows them only through connectors/platform.yaml.
CREATE SCHEMA platform;

CREATE TABLE platform.venues (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    type text NOT NULL,
    currency text NOT NULL,
    country text NOT NULL,
    timezone text NOT NULL,
    books_from date,  -- sales before this day are in the accounts already; null: none are
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE platform.events (
    id uuid PRIMARY KEY,
    venue_id uuid NOT NULL REFERENCES platform.venues,
    name text NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'draft'
        CHECK (status IN ('draft', 'on_sale', 'sold_out', 'cancelled', 'past')),
    starts_at timestamptz,
    price numeric CHECK (price >= 0),  -- in major units; a draft may have none yet
    currency text NOT NULL,
    capacity integer CHECK (capacity > 0),
    url text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_changed ON platform.events (venue_id, updated_at, id);

CREATE TABLE platform.ticket_types (
    id uuid PRIMARY KEY,
    event_id uuid NOT NULL REFERENCES platform.events,
    name text NOT NULL,
    price numeric CHECK (price >= 0),
    quantity integer NOT NULL CHECK (quantity >= 0),
    available integer CHECK (available BETWEEN 0 AND quantity),  -- not sold yet; null: nobody counts
    position integer NOT NULL DEFAULT 0,  -- among the event's
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ticket_types_event ON platform.ticket_types (event_id);

-- An event has changed when what it sells has; how many are left is no change of the event.
CREATE FUNCTION platform.touch_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        UPDATE platform.events SET updated_at = now() WHERE id = OLD.event_id;
    ELSE
        UPDATE platform.events SET updated_at = NEW.updated_at
        WHERE id = NEW.event_id AND updated_at < NEW.updated_at;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ticket_types_touch_event
    AFTER INSERT OR DELETE OR UPDATE OF name, price, position ON platform.ticket_types
    FOR EACH ROW EXECUTE FUNCTION platform.touch_event();

-- Events as the hub sees them: writable, and with their ticket types in a column.
CREATE VIEW platform.events_with_ticket_types AS
SELECT
    events.*,
    (
        SELECT json_agg(
            json_build_object('id', id, 'name', name, 'price', price, 'available', available)
            ORDER BY position, id
        )
        FROM platform.ticket_types
        WHERE event_id = events.id
    ) AS ticket_types
FROM platform.events;

CREATE TABLE platform.customers (
    id uuid PRIMARY KEY,
    venue_id uuid NOT NULL REFERENCES platform.venues,
    first_name text,
    last_name text,
    email text,
    phone text,
    city text,
    postal_code text,
    country text,
    accepts_marketing boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX customers_changed ON platform.customers (venue_id, updated_at, id);
CREATE INDEX customers_email ON platform.customers (venue_id, lower(email));

CREATE TABLE platform.orders (
    id uuid PRIMARY KEY,
    venue_id uuid NOT NULL REFERENCES platform.venues,
    customer_id uuid REFERENCES platform.customers,
    number text,
    email text,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'paid', 'failed', 'partially_refunded', 'refunded', 'cancelled')),
    total bigint,  -- in the currency's smallest unit
    currency text,
    placed_at timestamptz NOT NULL DEFAULT now(),
    source text NOT NULL DEFAULT 'platform',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_changed ON platform.orders (venue_id, updated_at, id);
CREATE UNIQUE INDEX orders_number ON platform.orders (venue_id, number) WHERE source = 'platform';

CREATE TABLE platform.tickets (
    id uuid PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES platform.orders,
    ticket_type_id uuid NOT NULL REFERENCES platform.ticket_types,
    price bigint NOT NULL,
    currency text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tickets_order ON platform.tickets (order_id);

-- Orders as the hub sees them: writable, and with what was sold in columns. An order has an event when all its
-- tickets are of one, and is a number of tickets at one price, or else one thing at its total.
CREATE VIEW platform.orders_with_tickets AS
SELECT
    orders.*,
    (
        SELECT CAST(orders.placed_at AT TIME ZONE timezone AS date)
        FROM platform.venues
        WHERE id = orders.venue_id
    ) AS sold_on,
    (
        SELECT CASE WHEN count(DISTINCT kind.event_id) = 1 THEN CAST(min(CAST(kind.event_id AS text)) AS uuid) END
        FROM platform.tickets JOIN platform.ticket_types AS kind ON kind.id = tickets.ticket_type_id
        WHERE tickets.order_id = orders.id
    ) AS event_id,
    (
        SELECT CASE WHEN count(DISTINCT price) = 1 AND sum(price) = orders.total THEN count(*) ELSE 1 END
        FROM platform.tickets
        WHERE order_id = orders.id
    ) AS quantity
FROM platform.orders;
