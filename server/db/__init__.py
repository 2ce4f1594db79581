"""What the service stores, and how: models, migrations and the engine's ports on PostgreSQL."""
