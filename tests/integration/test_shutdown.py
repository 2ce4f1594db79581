"""An API that is told to stop finishes what it has taken on, and says beforehand that it will stop."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
from sqlalchemy.engine import make_url

from tests.integration.api_process import API, VENUE, ApiProcess, running_api

HOOK = f"{API}/webhooks/square"


async def connect(database_url: str) -> asyncpg.Connection:
    address = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    return await asyncpg.connect(address)


async def a_sync_under_way(database: asyncpg.Connection) -> UUID:
    """Write a sync that no worker takes up, of an integration that is connected."""
    await database.execute(
        "INSERT INTO integration_configs (venue_id, integration_type, status, account) "
        "VALUES ($1, 'square', 'connected', 'M1')",
        VENUE,
    )
    sync_id = uuid4()
    await database.execute(
        "INSERT INTO sync_queue (run_id, venue_id, integration_type, operation_type, entity_type, payload, "
        "priority, status) VALUES ($1, $2, 'square', 'sync', 'full', $3, 'NORMAL', 'pending')",
        sync_id,
        VENUE,
        json.dumps({"syncType": "full", "trigger": "manual_sync"}),
    )
    return sync_id


async def is_waiting_for(database: asyncpg.Connection, table: str) -> bool:
    return bool(
        await database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass", table
        )
    )


async def watch(api: ApiProcess, sync_id: UUID, began: asyncio.Event) -> list[tuple[str, Any]]:
    """Return the events of a sync's stream until it closes, as names and data."""
    events: list[tuple[str, Any]] = []
    name = ""
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"{api.url}{API}/sync/square/sync/{sync_id}/events"
        async with client.stream("GET", url, headers=api.bearer()) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("event:"):
                    name = line.removeprefix("event:").strip()
                elif line.startswith("data:"):
                    events.append((name, json.loads(line.removeprefix("data:"))))
                    began.set()
    return events


async def test_what_was_taken_on_is_finished(database_url: str, redis_url: str, tmp_path: Path) -> None:
    database, locker = await connect(database_url), await connect(database_url)
    sync_id = await a_sync_under_way(database)
    async with running_api(database_url, redis_url, tmp_path, HUB_DRAIN_SECONDS="600") as api:
        began = asyncio.Event()
        watching = asyncio.create_task(watch(api, sync_id, began))
        first = asyncio.create_task(began.wait())
        await asyncio.wait({watching, first}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert began.is_set(), watching

        # A delivery whose commit has to wait, and one whose body is still on its way.
        lock = locker.transaction()
        await lock.start()
        await locker.execute("LOCK TABLE integration_webhooks IN ACCESS EXCLUSIVE MODE")
        body, headers = api.delivery("stored-while-stopping")
        async with httpx.AsyncClient(timeout=60) as client:
            storing = asyncio.create_task(client.post(f"{api.url}{HOOK}", content=body, headers=headers))
            await api.until(lambda: is_waiting_for(database, "integration_webhooks"), "the delivery")
            late, signed = api.delivery("sent-while-stopping")
            head = [f"POST {HOOK} HTTP/1.1", "host: hub", f"content-length: {len(late)}"]
            head += [f"{name}: {value}" for name, value in signed.items()]
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write("\r\n".join([*head, "", ""]).encode() + late[:10])
            await writer.drain()

            # Told to stop, it says so, and answers all the same; a kept connection ends with the answer.
            api.process.send_signal(signal.SIGTERM)

            async def drains() -> httpx.Response | None:
                answer = await api.ready()
                return answer if answer is not None and answer.status_code == 503 else None

            answer = await api.until(drains, "/ready to say that it stops")
            assert answer.json() == {
                "status": "not ready",
                "problems": {"process": "this process is being stopped"},
            }
            assert answer.headers["connection"] == "close"
            async with httpx.AsyncClient(timeout=60, headers=api.bearer()) as other:
                served = await other.get(f"{api.url}{API}/square?venueId={VENUE}")
            assert served.status_code == 200
            assert not watching.done()
            assert not storing.done()

            # Told again, it takes no more connections, and finishes.
            api.process.send_signal(signal.SIGTERM)

            async def refuses() -> bool:
                return await api.ready() is None

            await api.until(refuses, "connections to be refused")
            assert api.process.returncode is None
            await lock.rollback()
            assert (await storing).status_code == 200
            writer.write(late[10:])
            assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 200 ")
            writer.close()

        events = await asyncio.wait_for(watching, 60)
        assert [name for name, _ in events] == ["progress", "stopping"]
        assert events[-1][1]["syncId"] == str(sync_id)
        assert await asyncio.wait_for(api.process.wait(), 60) == -signal.SIGTERM
        kept = await database.fetch("SELECT event_id FROM integration_webhooks ORDER BY 1")
        assert [row[0] for row in kept] == ["sent-while-stopping", "stored-while-stopping"]
        assert not [line for line in api.logged() if line["level"] == "error"]
    await locker.close()
    await database.close()


async def test_a_drained_process_ends_by_itself(database_url: str, redis_url: str, tmp_path: Path) -> None:
    async with running_api(database_url, redis_url, tmp_path, HUB_DRAIN_SECONDS="1") as api:
        api.process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(api.process.wait(), 60) == -signal.SIGTERM
        events = [line["message"] for line in api.logged()]
        assert "api.draining" in events
        assert not [line for line in api.logged() if line["level"] == "error"]
