"""Keep a few processes running: start, restart with a growing pause, log, stop in order.

Each process has a session of its own, so Ctrl-C reaches only the supervisor, and dies with it on Linux
even by kill -9. What a process writes goes to `<logs>/<name>.log` and, line by line, to whoever listens.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from server.processes import LOG_LIMIT, child_command, log_tail, open_log

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
STEADY_SECONDS = 10.0  # after running this long, a process counts as well again
GIVE_UP_AFTER = 5
LONGEST_LINE = 1024 * 1024

LineListener = Callable[[str, str], None]  # process name, one line without its end


class ProcessFailedError(RuntimeError):
    """A process can't be kept running; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running.

    `env` is added to the supervisor's own environment. With `restart` off, ending with code 0 is fine and
    ending otherwise stops everything.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    restart: bool = True
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(slots=True)
class _Supervised:
    spec: ProcessSpec
    log: Path
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while it starts or stops
    process: asyncio.subprocess.Process | None = None
    starts: int = 0


@dataclass(slots=True)
class Running:
    """The processes of a `supervised` block."""

    _all: dict[str, _Supervised]
    _keepers: list[asyncio.Task[None]]

    def pid(self, name: str) -> int | None:
        """Process id of the process as it runs now; None while it is down."""
        process = self._all[name].process
        return process.pid if process is not None and process.returncode is None else None

    def starts(self, name: str) -> int:
        """How often the process has been started."""
        return self._all[name].starts

    async def wait(self) -> None:
        """Return when every process has ended for good.

        Raises ProcessFailedError as soon as one can't be kept running.
        """
        # Whoever stops waiting doesn't stop the processes.
        await asyncio.gather(*(asyncio.shield(keeper) for keeper in self._keepers))


@asynccontextmanager
async def supervised(
    specs: Sequence[ProcessSpec], *, logs: Path, grace: float = 10.0, on_line: LineListener | None = None
) -> AsyncIterator[Running]:
    """Run the processes for as long as the block lasts, started in order and stopped in reverse.

    Each gets `grace` seconds after its stop signal, then is killed with everything it started.
    The block isn't told of a failure while it does something else: await `Running.wait` beside it.
    """
    everything = {spec.name: _Supervised(spec, logs / f"{spec.name}.log") for spec in specs}
    keepers: list[asyncio.Task[None]] = []
    try:
        for item in everything.values():
            output = await _start(item)
            assert output is not None
            keepers.append(asyncio.create_task(_keep(item, output, on_line), name=f"keep {item.spec.name}"))
        yield Running(everything, keepers)
    finally:
        try:
            for item in everything.values():
                item.stopping.set()
            for item in reversed(everything.values()):
                await _stop(item, grace)
        finally:
            for item in everything.values():
                _kill(item)
        await asyncio.gather(*keepers, return_exceptions=True)


async def run_processes(
    specs: Sequence[ProcessSpec], *, logs: Path, grace: float = 10.0, on_line: LineListener | None = None
) -> None:
    """Run the processes until SIGINT, SIGTERM or their own end.

    Raises ProcessFailedError when one can't be kept running. A second signal stops waiting for grace.
    """
    async with supervised(specs, logs=logs, grace=grace, on_line=on_line) as running, stop_signals() as stop:
        ended = asyncio.create_task(running.wait())
        stopped = asyncio.create_task(stop.wait())
        done, pending = await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if ended in done:
            ended.result()


@asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """Set the event at SIGINT or SIGTERM instead of ending at once; a second one ends the ordinary way."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        event.set()
        for kind in kinds:
            loop.remove_signal_handler(kind)

    for kind in kinds:
        loop.add_signal_handler(kind, stop)
    try:
        yield event
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)


async def _start(item: _Supervised) -> asyncio.StreamReader | None:
    """Start the process; returns what it writes, or None when it is to stop."""
    async with item.changing:
        if item.stopping.is_set():
            return None
        # A pipe of our own: asyncio's would make `wait` wait for whatever the process leaves behind.
        reading, writing = os.pipe()
        output = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(reading, "rb", buffering=0)
        )
        try:
            item.process = await asyncio.create_subprocess_exec(
                *child_command(item.spec.argv, signal.SIGTERM),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **item.spec.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        item.starts += 1
        return output


async def _keep(item: _Supervised, output: asyncio.StreamReader, on_line: LineListener | None) -> None:
    """Follow one process through its restarts; ends when it has ended for good."""
    loop, failures, pause = asyncio.get_running_loop(), 0, FIRST_PAUSE
    while True:
        started = loop.time()
        assert item.process is not None
        reading = asyncio.create_task(_pass_on(item, output, on_line))
        code = await item.process.wait()
        _kill(item)  # what it left behind holds its output open, and perhaps work
        await reading
        if item.stopping.is_set() or (code == 0 and not item.spec.restart):
            return
        if loop.time() - started >= STEADY_SECONDS:
            failures, pause = 0, FIRST_PAUSE
        # A process that somebody killed is not at fault, however often that happens.
        failures += code >= 0
        if not item.spec.restart or failures >= GIVE_UP_AFTER:
            times = f" {failures} times in a row" if item.spec.restart else ""
            raise ProcessFailedError(f"{item.spec.name} ended with code {code}{times}:\n{log_tail(item.log)}")
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await item.stopping.wait()
        pause = min(pause * 2, LONGEST_PAUSE) if code >= 0 else FIRST_PAUSE
        again = await _start(item)
        if again is None:
            return
        output = again


async def _pass_on(item: _Supervised, output: asyncio.StreamReader, on_line: LineListener | None) -> None:
    log, rest = open_log(item.log), b""
    try:
        while chunk := await output.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            log = _write(log, item, lines, on_line)
        if rest:
            log = _write(log, item, [rest], on_line)
    finally:
        log.close()


def _write(log: BinaryIO, item: _Supervised, lines: list[bytes], on_line: LineListener | None) -> BinaryIO:
    log.write(b"".join(line + b"\n" for line in lines))
    if on_line is not None:
        for line in lines:
            on_line(item.spec.name, line.decode(errors="replace").rstrip("\r"))
    if log.tell() <= LOG_LIMIT:
        return log
    log.close()
    return open_log(item.log)


async def _stop(item: _Supervised, grace: float) -> None:
    async with item.changing:
        process = item.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(item.spec.stop_signal)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await process.wait()
        _kill(item)
        await process.wait()


def _kill(item: _Supervised) -> None:
    """Kill the process and everything it started: that is in its session too."""
    if item.process is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(item.process.pid, signal.SIGKILL)
