"""`hub venue export` and `hub venue erase`: they need the stores, and no other process."""

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.hub import PROJECT, Database

VENUE = uuid4()


@pytest.fixture(scope="module")
def environment(database_url: str, redis_url: str) -> Mapping[str, str]:
    return {
        **os.environ,
        "HUB_ENV": "test",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": "a secret of more than thirty-two bytes, for tests",
        "HUB_VAULT_KEYS": "test:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        "LOG_LEVEL": "error",
    }


def hub(environment: Mapping[str, str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", "venue", *arguments],
        cwd=PROJECT,
        env=dict(environment),
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def database(database_url: str) -> Database:
    database = Database(database_url)
    database.execute("DELETE FROM sync_logs")
    database.execute(
        "INSERT INTO sync_logs (venue_id, integration_type, operation, status)"
        " SELECT $1, 'juniper', 'manual_sync', 'completed' FROM generate_series(1, 3)",
        VENUE,
    )
    return database


def test_export_writes_a_file_for_its_owner_alone(
    environment: Mapping[str, str], database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "venue.zip"
    done = hub(environment, "export", str(VENUE), "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f" rows of {VENUE} are in {path}")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(archive.read("sync_logs.jsonl").splitlines()) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert database.one("SELECT actor || ' ' || role FROM audit_log WHERE venue_id = $1 LIMIT 1", VENUE) == (
        "hub-cli operator"
    )


def test_erase_asks_first(environment: Mapping[str, str], database: Database) -> None:
    done = hub(environment, "erase", str(VENUE), given="n\n")
    assert done.returncode == 1
    assert database.one("SELECT count(*) FROM sync_logs") == 3


def test_erase_tells_its_proof(environment: Mapping[str, str], database: Database) -> None:
    done = hub(environment, "erase", str(VENUE), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "completed"
    assert told["result"]["tables"]["sync_logs"] == {"erased": 3, "left": 0}
    assert database.one("SELECT count(*) FROM sync_logs") == 0


def test_an_id_that_is_none_is_misuse(environment: Mapping[str, str]) -> None:
    assert hub(environment, "erase", "our venue", "--yes").returncode == 2
