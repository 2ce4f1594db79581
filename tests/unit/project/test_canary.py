"""The look for secrets finds them: where one is written down, a run fails whose tests all passed."""

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from server.embedded import Stores
from tests import canary
from tests.canary import MARK

PROJECT = Path(__file__).resolve().parents[3]

WRITES_IT_DOWN = {
    "prints it": "print('a token: canary7-token')",
    "logs it": "import logging; logging.getLogger('anything').warning('a token: %s', 'canary7-token')",
    "prints it as an error": "import sys; print('canary7-token', file=sys.stderr)",
    "leaves it in a file": "(tmp_path / 'a.log').write_text('canary7-token'); "
    "from tests import canary; canary.look_at_files('here', tmp_path.iterdir())",
}


def run(folder: Path, body: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a suite of one test, which passes, with nothing but the look for secrets."""
    hooks = "pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown"
    (folder / "conftest.py").write_text(f"from tests.canary import {hooks}\n")
    (folder / "test_it.py").write_text(f"def test_it(tmp_path):\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", *more]
    return subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("body", WRITES_IT_DOWN.values(), ids=WRITES_IT_DOWN.keys())
def test_a_run_that_writes_a_secret_down_fails(tmp_path: Path, body: str) -> None:
    done = run(tmp_path, body)
    assert "1 passed" in done.stdout, done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "secrets that were written down" in done.stdout


def test_a_run_that_writes_none_down_passes(tmp_path: Path) -> None:
    done = run(tmp_path, "print('a token: ***')")
    assert done.returncode == pytest.ExitCode.OK, done.stdout


def test_a_run_in_several_processes_fails_as_well(tmp_path: Path) -> None:
    done = run(tmp_path, WRITES_IT_DOWN["leaves it in a file"], "-n", "1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "secrets that were written down" in done.stdout


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is found in one test, which is no find of the run."""
    mine: dict[str, str] = {}
    monkeypatch.setattr("tests.canary._found", mine)
    return mine


@pytest.mark.parametrize(
    "column",
    ["text 'a canary7 b'", 'jsonb \'{"a": ["canary7"]}\'', "bytea 'a canary7 b'", "ARRAY['canary7']"],
)
def test_it_is_found_in_a_database(fresh_database_url: str, found: dict[str, str], column: str) -> None:
    from tests.integration.hub import Database

    canary.look_at_database("here", fresh_database_url)
    assert found == {}
    Database(fresh_database_url).execute(f"CREATE TABLE public.notes AS SELECT 1 AS id, {column} AS note")
    canary.look_at_database("here", fresh_database_url)
    assert list(found) == ["here: table public.notes"]
    Database(fresh_database_url).execute("DROP TABLE public.notes")


def test_it_is_found_in_redis_whatever_the_type(
    stores: Stores, redis_url: str, found: dict[str, str]
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("a", "plain")
        canary.look_at_redis("here", redis_url)
        assert found == {}
        client.set("string", MARK)
        client.hset("hash", "field", MARK)
        client.rpush("list", MARK)
        client.sadd("set", MARK)
        client.zadd("zset", {MARK: 1})
        client.xadd("stream", {"id": MARK})
        client.set(MARK, "1")
        canary.look_at_redis("here", redis_url)
        client.flushdb()
    kinds = ("string", "hash", "list", "set", "zset", "stream")
    assert set(found) == {"here: a key of Redis", *(f"here: Redis, {kind}" for kind in kinds)}
