"""How Alembic reaches the database.

`server.db.migrate` hands over an open connection. On a developer's `alembic` command line there is none, and
DATABASE_URL is used.
"""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from server.db.engine import create_engine
from server.db.migrate import OPTIONS
from server.db.models import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    engine = create_engine(os.environ["DATABASE_URL"], pooled=False)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(connect_and_run())
