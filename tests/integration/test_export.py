"""All of a venue as one archive: complete, without credentials, in bounded pieces, whoever writes them."""

import hashlib
import io
import json
import secrets
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from server.db.models import (
    AuditEntry,
    Base,
    EventDelivery,
    EventSubscriber,
    ExportPart,
    FieldMappingTemplate,
    IntegrationConfig,
    MaintenanceRun,
    RecordLink,
)
from server.errors import BeingErasedError, NotFoundError, NotReadyError
from server.services import erasure, export, maintenance, upkeep
from server.services.audit import Actor
from server.settings import read_settings
from server.worker import schedule
from server.worker.context import WorkerContext, open_worker_context
from tests.integration.test_migrations import one_of_each

ACTOR = Actor("44444444-4444-4444-8444-444444444444", "203.0.113.7", "r-1", "venue_admin")
SEALED = "hub1.canary-sealed-value"


@pytest.fixture
async def context(fresh_database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": fresh_database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        await context.redis.flushdb()
        yield context


@pytest.fixture(autouse=True)
def first_failure_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "MOST_ATTEMPTS", 1)


async def fill(context: WorkerContext, venue_id: UUID) -> None:
    """Give a venue a row in every table that has rows of venues, with something sealed wherever it can be."""
    written: dict[str, Base] = {}
    async with context.sessions.begin() as session:
        for row in one_of_each():
            columns = row.__table__.columns
            if "venue_id" not in columns or isinstance(row, MaintenanceRun):
                continue
            for column in columns:
                if column.name.startswith("encrypted_") and column.name != "encryption_key_version":
                    setattr(row, column.name, SEALED)
            row.venue_id = venue_id  # type: ignore[attr-defined]  # it has one, as was looked up
            if "state_hash" in columns:
                row.state_hash = secrets.token_hex(32)  # type: ignore[attr-defined]  # as above
            if row.__tablename__ == "sync_queue":
                row.idempotency_key = None  # type: ignore[attr-defined]  # as above
            if isinstance(row, EventSubscriber):
                row.id = uuid4()
            if isinstance(row, EventDelivery):
                row.outbox_id = written["outbox"].id  # type: ignore[attr-defined]  # it has one
                row.subscriber_id = written["event_subscribers"].id  # type: ignore[attr-defined]  # as above
            session.add(row)
            await session.flush()
            written[row.__tablename__] = row


async def links(context: WorkerContext, venue_id: UUID, count: int, size: int = 10) -> None:
    async with context.sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO record_links"
                " (venue_id, integration_type, entity, resource, local_id, remote_id, agreed)"
                " SELECT CAST(:venue AS uuid), 'other', 'customer', 'customer', 'l' || n, 'r' || n,"
                " jsonb_build_object('name', repeat(md5(n::text), :size))"
                " FROM generate_series(1, :count) AS n"
            ),
            {"venue": venue_id, "count": count, "size": size},
        )


async def exported(context: WorkerContext, venue_id: UUID) -> MaintenanceRun:
    run = await export.start(context, ACTOR, venue_id)
    return await upkeep.work_to_end(context, run.id)


async def fetch(context: WorkerContext, run: MaintenanceRun) -> bytes:
    assert run.venue_id is not None
    archive = await export.open_archive(context, ACTOR, run.venue_id, run.id)
    data = b"".join([part async for part in export.read_parts(context, archive)])
    assert len(data) == archive.bytes
    assert hashlib.sha256(data).hexdigest() == archive.sha256
    return data


def unpack(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def rows(files: dict[str, bytes], table: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files[f"{table}.jsonl"].splitlines()]


async def test_it_has_all_of_the_venue_and_nothing_of_another(context: WorkerContext) -> None:
    ours, theirs = uuid4(), uuid4()
    await fill(context, ours)
    await links(context, theirs, 3)
    run = await exported(context, ours)
    assert (run.status.value, run.error) == ("completed", None)
    files = unpack(await fetch(context, run))
    for table in Base.metadata.tables.values():
        if "venue_id" in table.columns:
            found = rows(files, table.name)
            own = [row for row in found if row["venue_id"] == str(ours)]
            expected = {"maintenance_runs": 1, "audit_log": 2}.get(table.name, 1)
            assert (len(own), len(found)) == (expected, expected), table.name
    [link] = rows(files, "record_links")
    assert (link["local_id"], link["remote_id"], link["agreed"]) == ("1", "c_1", {"name": "Zoë"})


async def test_who_tried_from_another_venue_is_not_told(context: WorkerContext) -> None:
    venue_id, stranger = uuid4(), "77777777-7777-4777-8777-777777777777"
    async with context.sessions.begin() as session:
        for actor, details in ((stranger, {"foreign": True}), ("one-of-ours", {})):
            session.add(
                AuditEntry(
                    venue_id=venue_id,
                    actor=actor,
                    action="access.denied",
                    details={"code": "FORBIDDEN", **details},
                    ip="198.51.100.9",
                )
            )
    files = unpack(await fetch(context, await exported(context, venue_id)))
    entries = [entry for entry in rows(files, "audit_log") if entry["action"] == "access.denied"]
    assert [(entry["actor"], entry["ip"]) for entry in entries] == [
        ("another venue", None),
        ("one-of-ours", "198.51.100.9"),
    ]
    assert stranger.encode() not in b"".join(files.values())


async def test_proofs_of_senders_are_left_out(context: WorkerContext) -> None:
    venue_id = uuid4()
    await fill(context, venue_id)
    files = unpack(await fetch(context, await exported(context, venue_id)))
    [delivery], [address] = rows(files, "webhook_deliveries"), rows(files, "webhook_endpoints")
    assert "headers" not in delivery
    assert "token_hash" not in address


async def test_credentials_are_named_and_never_told(context: WorkerContext) -> None:
    venue_id = uuid4()
    await fill(context, venue_id)
    async with context.sessions.begin() as session:
        await session.execute(text("UPDATE oauth_tokens SET encrypted_refresh_token = NULL"))
    files = unpack(await fetch(context, await exported(context, venue_id)))
    assert b"canary" not in b"".join(files.values())
    [token] = rows(files, "oauth_tokens")
    assert (token["access_token"], token["refresh_token"]) == ("stored, and left out here", None)
    assert token["scopes"] == ["read", "write"]
    [state] = rows(files, "oauth_states")
    assert "state_hash" not in state
    [webhook] = rows(files, "integration_webhooks")
    assert {"headers", "signature"} & webhook.keys() == set()
    assert webhook["payload"] == {"name": "Zoë"}


def test_answers_kept_for_a_caller_are_sealed_and_of_no_venue() -> None:
    assert "idempotency_keys" not in {table.name for table in export.exported()}


async def test_the_manifest_says_what_is_in_it(context: WorkerContext) -> None:
    venue_id = uuid4()
    await fill(context, venue_id)
    await links(context, venue_id, 10)
    run = await exported(context, venue_id)
    files = unpack(await fetch(context, run))
    manifest = json.loads(files["manifest.json"])
    assert (manifest["format"], manifest["venue_id"], manifest["run_id"]) == (1, str(venue_id), str(run.id))
    assert [file["name"] for file in manifest["files"]] == [name for name in files if name != "manifest.json"]
    for file in manifest["files"]:
        data = files[file["name"]]
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["rows"] == data.count(b"\n")
    assert {file["table"]: file["rows"] for file in manifest["files"]}["record_links"] == 11
    assert run.result is not None
    assert run.result["rows"] == manifest["rows"] == sum(file["rows"] for file in manifest["files"])
    assert run.progress["done"] == run.progress["total"] == manifest["rows"]


async def test_templates_a_venue_uses_are_in_it(context: WorkerContext) -> None:
    venue_id = uuid4()
    async with context.sessions.begin() as session:
        used, other = (
            FieldMappingTemplate(name=name, integration_type="juniper", mappings={"a": name})
            for name in ("Zaal", "Other")
        )
        session.add_all([used, other])
        await session.flush()
        session.add(IntegrationConfig(venue_id=venue_id, integration_type="juniper", template_id=used.id))
    files = unpack(await fetch(context, await exported(context, venue_id)))
    assert [row["name"] for row in rows(files, "field_mapping_templates")] == ["Zaal"]


async def test_numbers_come_out_as_they_went_in(context: WorkerContext) -> None:
    venue_id = uuid4()
    async with context.sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO record_links (venue_id, integration_type, entity, resource, local_id, agreed)"
                """ VALUES (:venue, 'juniper', 'a', 'a', '1', '{"price": 12345678901234567890.123456789}')"""
            ),
            {"venue": venue_id},
        )
    files = unpack(await fetch(context, await exported(context, venue_id)))
    assert b"12345678901234567890.123456789" in files["record_links.jsonl"]


async def test_a_venue_nobody_knows_has_an_archive_of_nothing_but_its_asking(context: WorkerContext) -> None:
    run = await exported(context, uuid4())
    manifest = json.loads(unpack(await fetch(context, run))["manifest.json"])
    assert {file["table"] for file in manifest["files"] if file["rows"]} == {"maintenance_runs", "audit_log"}


async def test_batches_are_written_by_whoever_comes_and_each_is_bounded(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PIECE_BYTES", 50_000)
    monkeypatch.setattr(export, "PART_BYTES", 4_000)
    venue_id = uuid4()
    await links(context, venue_id, 500, size=20)
    run = await export.start(context, ACTOR, venue_id)
    batches = 0
    while await maintenance.work_one(context, upkeep.KINDS, only=run.id):
        batches += 1
    assert batches > 5
    async with context.sessions() as session:
        run = await maintenance.read(session, run.id)
        longest = await session.scalar(select(func.max(func.length(ExportPart.data))))
    assert longest is not None
    assert longest <= 4_000
    files = unpack(await fetch(context, run))
    assert sorted(row["local_id"] for row in rows(files, "record_links")) == sorted(
        f"l{number}" for number in range(1, 501)
    )


async def test_a_batch_that_is_cut_off_is_written_again_and_nothing_is_in_it_twice(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a killed process leaves it: the parts were written, and their transaction never ended."""
    monkeypatch.setattr(export, "PIECE_BYTES", 20_000)
    venue_id = uuid4()
    await links(context, venue_id, 200, size=20)
    run = await export.start(context, ACTOR, venue_id)
    while True:
        async with context.sessions() as session:
            cut = await session.get_one(MaintenanceRun, run.id)
            await export.step(context, session, cut)
            await session.flush()
            await session.rollback()
        if not await maintenance.work_one(context, upkeep.KINDS, only=run.id):
            break
        async with context.sessions() as session:
            run = await maintenance.read(session, run.id)
        if run.status not in maintenance.UNFINISHED:
            break
    files = unpack(await fetch(context, run))
    assert len(rows(files, "record_links")) == 200


async def test_two_who_ask_are_given_the_same_run(context: WorkerContext) -> None:
    venue_id = uuid4()
    first, second = await export.start(context, ACTOR, venue_id), await export.start(context, ACTOR, venue_id)
    other = await export.start(context, ACTOR, uuid4())
    assert first.id == second.id != other.id


async def test_an_archive_is_there_when_it_is_finished_and_for_its_venue_alone(
    context: WorkerContext,
) -> None:
    venue_id = uuid4()
    run = await export.start(context, ACTOR, venue_id)
    with pytest.raises(NotReadyError):
        await export.open_archive(context, ACTOR, venue_id, run.id)
    await upkeep.work_to_end(context, run.id)
    await export.open_archive(context, ACTOR, venue_id, run.id)
    for venue, wanted in ((uuid4(), run.id), (venue_id, uuid4())):
        with pytest.raises(NotFoundError):
            await export.open_archive(context, ACTOR, venue, wanted)


async def test_an_archive_is_kept_for_a_week(context: WorkerContext) -> None:
    venue_id = uuid4()
    run = await exported(context, venue_id)
    for age, there in ((timedelta(days=6, hours=23), True), (timedelta(days=7, minutes=1), False)):
        async with context.sessions.begin() as session:
            await session.execute(update(MaintenanceRun).values(completed_at=func.now() - age))
        await schedule.forget_old(context)
        async with context.sessions() as session:
            parts = await session.scalar(select(func.count()).select_from(ExportPart))
        assert bool(parts) is there
    with pytest.raises(NotFoundError, match="start another"):
        await export.open_archive(context, ACTOR, venue_id, run.id)


async def test_a_venue_that_is_being_erased_is_not_exported(context: WorkerContext) -> None:
    venue_id = uuid4()
    await erasure.start(context, ACTOR, venue_id)
    with pytest.raises(BeingErasedError):
        await export.start(context, ACTOR, venue_id)


async def test_who_exported_and_fetched_is_written_down(context: WorkerContext) -> None:
    venue_id = uuid4()
    run = await exported(context, venue_id)
    await fetch(context, run)
    async with context.sessions() as session:
        found = await session.execute(
            text("SELECT action, actor, role, target, host(ip) FROM audit_log ORDER BY id")
        )
    assert [tuple(row) for row in found] == [
        (action, ACTOR.id, "venue_admin", str(run.id), "203.0.113.7")
        for action in ("export.requested", "export.downloaded")
    ]


async def test_links_of_other_venues_do_not_matter(context: WorkerContext) -> None:
    ours, theirs = uuid4(), uuid4()
    await links(context, theirs, 2000)
    await links(context, ours, 20)
    files = unpack(await fetch(context, await exported(context, ours)))
    assert {row["venue_id"] for row in rows(files, "record_links")} == {str(ours)}
    async with context.sessions() as session:
        assert await session.scalar(select(func.count()).select_from(RecordLink)) == 2020


@pytest.mark.parametrize("count", [0, 9, 10, 11, 20])
async def test_the_last_row_is_in_it_wherever_pieces_end(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(export, "MOST_ROWS", 10)
    venue_id = uuid4()
    await links(context, venue_id, count)
    files = unpack(await fetch(context, await exported(context, venue_id)))
    assert sorted(int(row["local_id"][1:]) for row in rows(files, "record_links")) == list(
        range(1, count + 1)
    )
