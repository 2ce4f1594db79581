"""Change the demo as a venue would: `python -m server.demo.change --events 10` renames ten events on sale,
`--cancel 3` cancels three, which archives them at the providers.

Writes what it changed to standard output, as JSON. PLATFORM_DATABASE_URL or DATABASE_URL says where; without
one it is the store that `hub dev` keeps in HUB_STATE, which mustn't be running then.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import click
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from server.db.engine import create_engine
from server.demo.generate import DEMO_VENUE_ID
from server.embedded import EmbeddedError, embedded_stores
from server.settings import SettingsError, read_settings

Changes = list[dict[str, str]]

_EDITION = re.compile(r" \(edition (\d+)\)$")


def rename_events(database_url: str, count: int, venue_id: UUID = DEMO_VENUE_ID) -> Changes:
    """Give `count` events on sale a new name; returns each one's `id`, `before` and `name`."""
    return _change(_rename_events, database_url, count, venue_id)


def cancel_events(database_url: str, count: int, venue_id: UUID = DEMO_VENUE_ID) -> Changes:
    """Cancel `count` events on sale, the last by id; returns each one's `id` and `name`."""
    return _change(_cancel_events, database_url, count, venue_id)


def _change(
    change: Callable[[AsyncConnection, int, UUID], Coroutine[Any, Any, Changes]],
    database_url: str,
    count: int,
    venue_id: UUID,
) -> Changes:
    async def run() -> Changes:
        engine = create_engine(database_url, pooled=False)
        try:
            async with engine.begin() as connection:
                return await change(connection, count, venue_id)
        finally:
            await engine.dispose()

    with ThreadPoolExecutor(1) as thread:  # whether or not this thread has an event loop running
        return thread.submit(asyncio.run, run()).result()


async def _rename_events(connection: AsyncConnection, count: int, venue_id: UUID) -> Changes:
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


async def _cancel_events(connection: AsyncConnection, count: int, venue_id: UUID) -> Changes:
    rows = await connection.execute(
        text(
            """
            UPDATE platform.events SET status = 'cancelled', updated_at = now()
            WHERE id IN (
                SELECT id FROM platform.events
                WHERE venue_id = :venue AND status = 'on_sale'
                ORDER BY id DESC LIMIT :count FOR UPDATE
            )
            RETURNING id, name
            """
        ),
        {"venue": venue_id, "count": count},
    )
    return sorted(({"id": str(row.id), "name": row.name} for row in rows), key=lambda row: row["id"])


def _next(name: str) -> str:
    found = _EDITION.search(name)
    return f"{_EDITION.sub('', name)} (edition {int(found[1]) + 1 if found else 2})"


@click.command()
@click.option("--events", type=int, help="How many events to rename.  [default: 10; 0 with --cancel]")
@click.option("--cancel", default=0, help="How many events to cancel.")
def main(events: int | None, cancel: int) -> None:
    """Change the demo platform as a venue would."""
    try:
        settings = read_settings()
        renamed = events if events is not None else 0 if cancel else 10
        if settings.platform_database_url:
            changed = _both(settings.platform_database_url, renamed, cancel)
        else:
            with embedded_stores(settings.state, redis_url=settings.redis_url) as stores:
                changed = _both(stores.database_url, renamed, cancel)
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from error
    sys.stdout.write(json.dumps(changed, ensure_ascii=False) + "\n")


def _both(database_url: str, renamed: int, cancelled: int) -> dict[str, Changes]:
    changed = {"events": rename_events(database_url, renamed)}
    return changed | ({"cancelled": cancel_events(database_url, cancelled)} if cancelled else {})


if __name__ == "__main__":
    main()
