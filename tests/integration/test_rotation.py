"""Rotation: everything goes under the current key, whatever else goes on meanwhile, and nothing is lost."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from sqlalchemy import func, inspect, select, update

from server.credentials import place
from server.db.models import (
    AuditEntry,
    Base,
    IdempotencyKey,
    IntegrationConfig,
    IntegrationStatus,
    MaintenanceRun,
    OAuthState,
    OAuthToken,
    VenueApiKey,
    WebhookEndpoint,
)
from server.errors import KeysUnavailableError
from server.services import endpoints, idempotency, maintenance, oauth, rotation, upkeep
from server.services.audit import Actor
from server.services.rotation import SEALED, usage
from server.settings import read_settings
from server.vault import Context as Place
from server.vault import DataKey, LocalKeyring, Vault, key_id_of
from server.worker.context import WorkerContext, open_worker_context

OLD, NEW, OTHER = (bytes([n]) * 32 for n in (1, 2, 3))
BEFORE, AFTER = LocalKeyring({"k1": OLD}), LocalKeyring({"k2": NEW, "k1": OLD})
ONLY_NEW = Vault(LocalKeyring({"k2": NEW}))
ADMIN = Actor("u_1", "203.0.113.7", "r_1")
PROJECT = Path(__file__).resolve().parents[2]
LATER = timedelta(days=30)


def keys_text(keys: Mapping[str, bytes]) -> str:
    return ",".join(f"{key_id}:{base64.b64encode(key).decode()}" for key_id, key in keys.items())


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """What a process is started with that has the new key in front."""
    return {
        "HUB_ENV": "test",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": secrets.token_hex(32),
        "HUB_VAULT_KEYS": keys_text({"k2": NEW, "k1": OLD}),
        "LOG_LEVEL": "error",
    }


@pytest.fixture
async def context(fresh_database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(environment(fresh_database_url, redis_url))
    async with open_worker_context(settings, application_name="test", connections=12) as context:
        yield context


async def fill(context: WorkerContext, keys: int, tokens: int) -> None:
    """Store integrations whose credentials are sealed under the old key."""
    vault = Vault(BEFORE)
    rows: list[Base] = []
    for number in range(keys + tokens):
        mine = {
            "venue_id": uuid4(),
            "integration_type": "stripe" if number < keys else "square",
            "environment": "sandbox",
        }
        rows.append(IntegrationConfig(**mine, status=IntegrationStatus.CONNECTED))
        if number < keys:
            key = VenueApiKey(id=uuid4(), **mine, key_name="bearer")
            key.encrypted_api_key = await vault.seal(
                '{"apiKey":"sk_test_demo"}', place(key, "encrypted_api_key")
            )
            rows.append(key)
        else:
            token = OAuthToken(id=uuid4(), **mine, expires_at=datetime.now(UTC) + LATER)
            for column in ("encrypted_access_token", "encrypted_refresh_token"):
                setattr(token, column, await vault.seal(f"{column} {token.id}", place(token, column)))
            rows.append(token)
    async with context.sessions.begin() as session:
        session.add_all(rows)


async def begin(context: WorkerContext) -> MaintenanceRun:
    return (await rotation.request(context, ADMIN))[0]


async def work(context: WorkerContext, *, most: int = 200) -> MaintenanceRun:
    """Work the rotation until it has ended, waiting for nothing."""
    for _ in range(most):
        await step(context)
        run = await look(context)
        if run.status not in maintenance.UNFINISHED:
            return run
    raise AssertionError(f"no end after {most} batches: {run.progress}")


async def step(context: WorkerContext) -> None:
    async with context.sessions.begin() as session:
        await session.execute(update(MaintenanceRun).values(next_attempt_at=datetime(2026, 1, 1, tzinfo=UTC)))
    await maintenance.work_one(context, {rotation.KIND: rotation.step})


async def look(context: WorkerContext) -> MaintenanceRun:
    async with context.sessions() as session:
        run = await rotation.last(session)
    assert run is not None
    return run


async def counts(context: WorkerContext) -> dict[str | None, int]:
    async with context.sessions() as session:
        return {use.key_id: use.count for use in await usage(session, context.vault.keys)}


async def values(context: WorkerContext) -> list[tuple[str, Place]]:
    """Return every sealed value there is, and where it is."""
    found = []
    async with context.sessions() as session:
        for sealed in SEALED:
            for row in await session.scalars(select(sealed.table)):
                if (text := sealed.read(row)) is not None:
                    found.append((text, sealed.place(row)))
    return found


def test_every_sealed_column_is_known() -> None:
    """A column that rotation left out would be lost when the old key is removed."""
    columns = {
        f"{mapper.local_table.name}.{column.name}"  # type: ignore[attr-defined]  # tables have names
        for mapper in Base.registry.mappers
        for column in inspect(mapper.class_).columns
        if column.name.startswith("encrypted_")
    }
    assert {sealed.name for sealed in SEALED} == columns | {"idempotency_keys.response"}


async def one_of_each(context: WorkerContext) -> None:
    """Store a value in every sealed column, under the old key."""
    vault = Vault(BEFORE)
    await fill(context, keys=1, tokens=1)
    async with context.sessions.begin() as session:
        key = (await session.scalars(select(VenueApiKey))).one()
        key.encrypted_api_secret = await vault.seal("secret", place(key, "encrypted_api_secret"))
        state = OAuthState(
            state_hash="a" * 64,
            venue_id=uuid4(),
            integration_type="square",
            environment="sandbox",
            user_id="u",
            redirect_uri="https://hub.example/cb",
        )
        state.encrypted_verifier = await vault.seal("verifier", oauth.place(state))
        endpoint = WebhookEndpoint(
            id=uuid4(),
            venue_id=key.venue_id,
            integration_type="stripe",
            environment="sandbox",
            token_hash="b" * 64,
        )
        for column in ("encrypted_token", "encrypted_secrets"):
            setattr(endpoint, column, await vault.seal(column, endpoints.place(endpoint, column)))
        answer = orjson.dumps({"body": {"success": True}, "headers": {}}).decode()
        session.add_all(
            [
                state,
                endpoint,
                IdempotencyKey(
                    caller="u/1",
                    key="k",
                    request_hash="0" * 64,
                    status=200,
                    response={"sealed": await vault.seal(answer, idempotency.place("u/1", "k"))},
                ),
                IdempotencyKey(caller="u/1", key="in flight", request_hash="0" * 64),
            ]
        )


async def test_all_there_is_goes_under_the_current_key(context: WorkerContext) -> None:
    await one_of_each(context)
    assert await counts(context) == {"local:k2": 0, "local:k1": 8}
    run = await begin(context)
    ended = await work(context)
    assert (ended.id, ended.status, ended.error) == (run.id, "completed", None)
    assert ended.result == {"key": "local:k2", "moved": 8, "failed": 0, "values": []}
    assert (ended.progress["done"], ended.progress["total"]) == (8, 8)
    assert await counts(context) == {"local:k2": 8, "local:k1": 0}
    moved = await values(context)
    assert len(moved) == 8
    for text, where in moved:  # without the old key
        assert (await ONLY_NEW.open(text, where)).reveal()


async def test_what_is_sealed_under_which_key_can_be_seen(context: WorkerContext) -> None:
    await fill(context, keys=2, tokens=1)
    async with context.sessions.begin() as session:
        keys = (await session.scalars(select(VenueApiKey).order_by(VenueApiKey.id))).all()
        keys[0].encrypted_api_key = await Vault(LocalKeyring({"lost": OTHER})).seal(
            "s", place(keys[0], "encrypted_api_key")
        )
        keys[1].encrypted_api_key = "plain"
    held = LocalKeyring({"k2": NEW, "k1": OLD, "k0": OTHER})
    async with context.sessions() as session:
        uses = {use.key_id: use for use in await usage(session, held)}
    assert {name: (use.count, use.known, use.current, use.removable) for name, use in uses.items()} == {
        "local:k2": (0, True, True, False),
        "local:k1": (2, True, False, False),
        "local:k0": (0, True, False, True),
        "local:lost": (1, False, False, False),
        None: (1, False, False, False),
    }
    assert uses["local:k1"].values == {
        "oauth_tokens.encrypted_access_token": 1,
        "oauth_tokens.encrypted_refresh_token": 1,
    }


async def test_nothing_to_do_is_done_at_once(context: WorkerContext) -> None:
    await begin(context)
    ended = await work(context)
    assert (ended.status, ended.result) == (
        "completed",
        {"key": "local:k2", "moved": 0, "failed": 0, "values": []},
    )


async def test_the_counter_of_a_token_grows_and_nothing_else_changes(context: WorkerContext) -> None:
    await fill(context, keys=0, tokens=1)

    async def token() -> dict[str, Any]:
        async with context.sessions() as session:
            row = (await session.scalars(select(OAuthToken))).one()
            return {column.name: getattr(row, column.name) for column in inspect(OAuthToken).columns}

    before = await token()
    await begin(context)
    await work(context)
    after = await token()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"encrypted_access_token", "encrypted_refresh_token", "encryption_key_version"}
    assert (before["encryption_key_version"], after["encryption_key_version"]) == (1, 3)


async def test_a_second_request_joins_and_both_are_on_record(context: WorkerContext) -> None:
    first, new = await rotation.request(context, ADMIN)
    second, again = await rotation.request(context, ADMIN)
    assert (first.id, new, again) == (second.id, True, False)
    await work(context)
    async with context.sessions() as session:
        entries = (await session.scalars(select(AuditEntry).order_by(AuditEntry.id))).all()
    assert [(entry.action, entry.actor, str(entry.ip), entry.target) for entry in entries] == [
        ("vault.rotation_requested", "u_1", "203.0.113.7", str(first.id)),
        ("vault.rotation_requested", "u_1", "203.0.113.7", str(first.id)),
        ("vault.rotated", "u_1", "203.0.113.7", str(first.id)),
    ]
    assert entries[-1].details == {"key": "local:k2", "moved": 0, "failed": 0}


async def test_a_row_somebody_holds_is_left_and_not_waited_for(context: WorkerContext) -> None:
    await fill(context, keys=5, tokens=0)
    async with context.sessions() as session:
        held = (await session.scalars(select(VenueApiKey).limit(1).with_for_update())).one()
        await begin(context)
        async with asyncio.timeout(60):  # it would wait for ever, since we only let go afterwards
            run = await look(context)
            while (run.next_attempt_at - run.updated_at).total_seconds() < 0.5:
                await step(context)
                run = await look(context)
        # A round that moved nothing is over, and it waits a little before it looks again.
        assert run.status == "running"
        assert await counts(context) == {"local:k2": 4, "local:k1": 1}
        assert key_id_of(held.encrypted_api_key) == "local:k1"
    ended = await work(context)
    assert (ended.status, ended.result and ended.result["moved"]) == ("completed", 5)
    assert await counts(context) == {"local:k2": 5, "local:k1": 0}


class SlowKeys(LocalKeyring):
    """Keys behind a service: `meanwhile` happens while it is asked to wrap."""

    __slots__ = ("meanwhile",)

    meanwhile: Callable[[], Awaitable[None]]

    async def wrap(self, key: bytes, context: Place) -> DataKey:
        await self.meanwhile()
        return await super().wrap(key, context)


async def test_what_was_sealed_anew_meanwhile_is_not_overwritten(context: WorkerContext) -> None:
    await fill(context, keys=1, tokens=0)
    keys = SlowKeys({"k2": NEW, "k1": OLD})
    context = replace(context, vault=Vault(keys))
    done = False

    async def connect_again() -> None:
        nonlocal done
        if not done:
            done = True
            async with context.sessions.begin() as session:
                row = (await session.scalars(select(VenueApiKey))).one()
                # A process that was not started anew yet: under the old key.
                row.encrypted_api_key = await Vault(BEFORE).seal("newer", place(row, "encrypted_api_key"))

    keys.meanwhile = connect_again
    await begin(context)
    ended = await work(context)
    assert ended.status == "completed"
    ((text, where),) = await values(context)
    assert (await ONLY_NEW.open(text, where)).reveal() == "newer"


async def test_what_cannot_be_opened_is_named_and_the_rest_goes_on(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    await fill(context, keys=6, tokens=0)
    async with context.sessions.begin() as session:
        rows = (await session.scalars(select(VenueApiKey).order_by(VenueApiKey.id))).all()
        moved_here = rows[1].encrypted_api_key
        rows[2].encrypted_api_key = moved_here  # another row's
        rows[4].encrypted_api_key = await Vault(LocalKeyring({"lost": OTHER})).seal(
            "s", place(rows[4], "encrypted_api_key")
        )
        ids = [str(rows[2].id), str(rows[4].id)]
    await begin(context)
    ended = await work(context)
    assert ended.status == "failed"
    assert ended.error == (
        "2 values can't be opened: connect those integrations again, or give their key back"
    )
    column = "venue_api_keys.encrypted_api_key"
    assert ended.result == {
        "key": "local:k2",
        "moved": 4,
        "failed": 2,
        "values": [
            {
                "column": column,
                "row": ids[0],
                "error": "a sealed value was altered, or belongs to another place",
            },
            {"column": column, "row": ids[1], "error": "there is no vault key `local:lost`"},
        ],
    }
    assert (ended.progress["done"], ended.progress["failed"]) == (4, 2)
    assert await counts(context) == {"local:k2": 4, "local:k1": 1, "local:lost": 1}
    # With its key given back it goes on, and a value that was altered still doesn't count as moved.
    found = replace(context, vault=Vault(LocalKeyring({"k2": NEW, "k1": OLD, "lost": OTHER})))
    await begin(found)
    again = await work(found)
    assert again.error == "a value can't be opened: connect those integrations again, or give their key back"
    assert await counts(found) == {"local:k2": 5, "local:k1": 1, "local:lost": 0}


async def test_keys_that_are_away_for_a_while_fail_nothing(context: WorkerContext) -> None:
    await fill(context, keys=3, tokens=0)
    keys = SlowKeys({"k2": NEW, "k1": OLD})
    context = replace(context, vault=Vault(keys))

    async def away() -> None:
        raise KeysUnavailableError("AWS KMS doesn't answer: EndpointConnectionError")

    async def there() -> None: ...

    keys.meanwhile = away
    await begin(context)
    for _ in range(4):
        await step(context)
    run = await look(context)
    assert (run.status, run.error) == ("running", "AWS KMS doesn't answer: EndpointConnectionError")
    assert run.attempts > 0
    assert await counts(context) == {"local:k2": 0, "local:k1": 3}
    keys.meanwhile = there
    ended = await work(context)
    assert (ended.status, ended.error, ended.result and ended.result["failed"]) == ("completed", None, 0)


async def test_a_newer_key_in_the_middle_becomes_the_one_to_reach(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    await fill(context, keys=5, tokens=0)
    await begin(context)
    while (await counts(context))["local:k2"] < 2:
        await step(context)
    newest = replace(context, vault=Vault(LocalKeyring({"k3": OTHER, "k2": NEW, "k1": OLD})))
    ended = await work(newest)
    assert (ended.status, ended.result and ended.result["key"]) == ("completed", "local:k3")
    assert await counts(newest) == {"local:k3": 5, "local:k2": 0, "local:k1": 0}


@asynccontextmanager
async def process(*words: str, environ: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *words,
        cwd=PROJECT,
        env={**os.environ, **environ},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if "vault" in words else None,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def test_under_load_nobody_fails_to_open_anything(
    context: WorkerContext, fresh_database_url: str, redis_url: str
) -> None:
    """1,000 integrations are read by tasks and another process, and sealed anew by one that is behind."""
    await fill(context, keys=500, tokens=500)
    integrations = select(IntegrationConfig.venue_id, IntegrationConfig.integration_type)
    async with context.sessions() as session:
        places = (await session.execute(integrations)).tuples().all()
    stopping = asyncio.Event()
    opened = 0

    async def read(mine: Sequence[tuple[UUID, str]]) -> None:
        nonlocal opened
        while not stopping.is_set():
            for venue, provider in mine:
                await context.credentials(venue, provider).current()
                opened += 1
                if stopping.is_set():
                    return

    async def renew() -> None:
        """Seal tokens anew as a refresh does; first under the old key, as a process that is behind would."""
        async with context.sessions() as session:
            ids = (await session.scalars(select(OAuthToken.id).order_by(OAuthToken.id).limit(60))).all()
        for number, token_id in enumerate(ids):
            vault = Vault(BEFORE if number < 30 else AFTER)
            async with context.sessions.begin() as session:
                token = await session.get_one(OAuthToken, token_id, with_for_update=True)
                sealed = await vault.seal("renewed", place(token, "encrypted_access_token"))
                token.encrypted_access_token = sealed

    environ = environment(fresh_database_url, redis_url)
    async with process("tests.integration.opening_worker", environ=environ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert await other.stdout.readline() == b"ready\n"
        async with asyncio.TaskGroup() as group:
            for n in range(4):
                group.create_task(read(places[n::4]))
            renewing = group.create_task(renew())
            run = await begin(context)
            async with asyncio.timeout(240):
                ended = await upkeep.work_to_end(context, run.id)
            await renewing
            stopping.set()
        other.stdin.close()
        report = json.loads(await other.stdout.read())
    assert (ended.status, ended.error) == ("completed", None)
    assert report["errors"] == []
    assert min(opened, report["opened"]) > 0
    if (await counts(context))["local:k1"]:  # renewed by the process that is behind, after the end
        await begin(context)
        assert (await work(context)).status == "completed"
    assert await counts(context) == {"local:k2": 1500, "local:k1": 0}
    renewed = 0
    for text, where in await values(context):
        renewed += (await ONLY_NEW.open(text, where)).reveal() == "renewed"
    assert renewed == 60


async def test_a_process_killed_in_the_middle_loses_nothing(
    context: WorkerContext, fresh_database_url: str, redis_url: str
) -> None:
    await fill(context, keys=1000, tokens=500)
    environ = environment(fresh_database_url, redis_url)
    async with process("server.cli", "vault", "rotate", "--wait", environ=environ) as rotating:
        assert rotating.stdout is not None
        while not (line := await rotating.stdout.readline()).startswith(b"200 of 2000"):
            assert line, "it ended before it had begun"
        rotating.send_signal(signal.SIGKILL)
        await rotating.wait()
    run = await look(context)
    assert run.status == "running"
    done = run.progress["done"]
    assert 200 <= done < 2000
    assert (await counts(context))["local:k2"] == done, "what it says is done is done"
    both = Vault(AFTER)
    for text, where in await values(context):
        assert (await both.open(text, where)).reveal()
    async with asyncio.timeout(240):
        ended = await upkeep.work_to_end(context, run.id)
    assert (ended.status, ended.result and ended.result["moved"]) == ("completed", 2000)
    assert await counts(context) == {"local:k2": 2000, "local:k1": 0}


async def test_the_commands(context: WorkerContext, fresh_database_url: str, redis_url: str) -> None:
    await fill(context, keys=2, tokens=1)
    environ = environment(fresh_database_url, redis_url)

    async def hub(*words: str) -> tuple[int, str, str]:
        async with process("server.cli", *words, environ=environ) as running:
            out, err = await running.communicate()
        return running.returncode or 0, out.decode(), err.decode()

    code, out, _ = await hub("vault", "status")
    assert (code, out.splitlines()) == (
        0,
        [
            "local:k2         0 values  seals what is new",
            "local:k1         4 values  opens what is left: rotate",
        ],
    )
    code, out, _ = await hub("vault", "rotate")
    assert (code, out) == (
        0,
        f"rotation {(await look(context)).id} is under way; `hub vault status` shows how far it is\n",
    )
    code, out, _ = await hub("vault", "rotate", "--wait")
    assert code == 0
    assert out.splitlines()[-1] == "all values are under local:k2"
    code, out, _ = await hub("vault", "status", "--json")
    assert [(key["keyId"], key["values"], key["removable"]) for key in json.loads(out)["keys"]] == [
        ("local:k2", 4, False),
        ("local:k1", 0, True),
    ]
    async with context.sessions.begin() as session:
        row = (await session.scalars(select(VenueApiKey).limit(1))).one()
        row.encrypted_api_key, broken = "hub1.local:k1.AAAA.AAAAAAAAAAAAAAAA.AAAA", row.id
    code, out, err = await hub("vault", "rotate", "--wait", "--json")
    assert (code, json.loads(out)["status"]) == (1, "failed")
    assert f"venue_api_keys.encrypted_api_key of row {broken}: a sealed value was altered" in err
    assert "a value can't be opened" in err


async def test_runs_are_found_in_the_order_they_were_started(context: WorkerContext) -> None:
    async with context.sessions() as session:
        assert await rotation.last(session) is None
    first = await begin(context)
    await work(context)
    second = await begin(context)
    assert (await look(context)).id == second.id != first.id
    async with context.sessions() as session:
        assert await session.scalar(select(func.count()).select_from(MaintenanceRun)) == 2
