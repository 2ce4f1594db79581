"""Change the demo as a venue would: `python -m server.demo.change --events 10` renames ten events on sale.

Writes what it changed to standard output, as JSON. PLATFORM_DATABASE_URL or DATABASE_URL says where; without
one it is the store that `hub dev` keeps in HUB_STATE, which mustn't be running then.
"""

import asyncio
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import click
from sqlalchemy import text

from server.db.engine import create_engine
from server.demo.generate import DEMO_VENUE_ID
from server.embedded import EmbeddedError, embedded_stores
from server.settings import SettingsError, read_settings

_EDITION = re.compile(r" \(edition (\d+)\)$")


def rename_events(database_url: str, count: int, venue_id: UUID = DEMO_VENUE_ID) -> list[dict[str, str]]:
    """Give `count` events on sale a new name; returns each one's `id`, `before` and `name`."""
    with ThreadPoolExecutor(1) as thread:  # whether or not this thread has an event loop running
        return thread.submit(asyncio.run, _rename_events(database_url, count, venue_id)).result()


async def _rename_events(database_url: str, count: int, venue_id: UUID) -> list[dict[str, str]]:
    engine = create_engine(database_url, pooled=False)
    try:
        async with engine.begin() as connection:
            rows = await connection.execute(
                text(
                    """
                    SELECT id, name FROM platform.events
                    WHERE venue_id = :venue AND status = 'on_sale'
                    ORDER BY id LIMIT :count FOR UPDATE
                    """
                ),
                {"venue": venue_id, "count": count},
            )
            changes = [{"id": str(row.id), "before": row.name, "name": _next(row.name)} for row in rows]
            if changes:
                await connection.execute(
                    text(
                        "UPDATE platform.events SET name = :name, updated_at = now() "
                        "WHERE id = CAST(CAST(:id AS text) AS uuid)"
                    ),
                    changes,
                )
            return changes
    finally:
        await engine.dispose()


def _next(name: str) -> str:
    found = _EDITION.search(name)
    return f"{_EDITION.sub('', name)} (edition {int(found[1]) + 1 if found else 2})"


@click.command()
@click.option("--events", default=10, show_default=True, help="How many events to rename.")
def main(events: int) -> None:
    """Change the demo platform as a venue would."""
    try:
        settings = read_settings()
        if settings.platform_database_url:
            changed = rename_events(settings.platform_database_url, events)
        else:
            with embedded_stores(settings.state, redis_url=settings.redis_url) as stores:
                changed = rename_events(stores.database_url, events)
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from error
    sys.stdout.write(json.dumps({"events": changed}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
