"""Real processes: small Python programs that say when they are ready, so that nothing here waits for time."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from server import supervisor
from server.supervisor import ProcessFailedError, ProcessSpec, run_processes, supervised

FOREVER = "import signal; print('ready'); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready')\nwhile True: signal.pause()"
)


def python(
    name: str, code: str, env: Mapping[str, str] | None = None, *, restart: bool = True
) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", textwrap.dedent(code)], env or {}, restart=restart)


class Lines:
    """Collects what the processes write, and waits for a line."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._new = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.seen.append((name, line))
        self._new.set()

    async def until(self, met: Callable[[list[tuple[str, str]]], bool]) -> None:
        async with asyncio.timeout(20):
            while not met(self.seen):
                self._new.clear()
                await self._new.wait()

    async def until_said(self, name: str, line: str, times: int = 1) -> None:
        await self.until(lambda seen: seen.count((name, line)) >= times)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)


async def test_output_goes_to_the_log_and_the_listener(tmp_path: Path) -> None:
    lines = Lines()
    code = "import os; print(os.environ['WORD']); print('no end', end='')"
    spec = python("one", code, {"WORD": "héllo"}, restart=False)

    async with supervised([spec], logs=tmp_path, on_line=lines) as running:
        await running.wait()

    assert lines.seen == [("one", "héllo"), ("one", "no end")]
    assert (tmp_path / "one.log").read_text() == "héllo\nno end\n"


async def test_a_killed_process_comes_back_however_often(tmp_path: Path) -> None:
    lines = Lines()
    kills = supervisor.GIVE_UP_AFTER + 2
    async with supervised([python("worker", FOREVER)], logs=tmp_path, on_line=lines) as running:
        pids = set()
        for count in range(1, kills + 1):
            await lines.until_said("worker", "ready", count)
            pid = running.pid("worker")
            assert pid is not None
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
        await lines.until_said("worker", "ready", kills + 1)

        assert len(pids) == kills
        assert running.starts("worker") == kills + 1


async def test_a_process_that_keeps_failing_is_given_up_with_its_log(tmp_path: Path) -> None:
    broken = python("api", "print('the port is taken'); raise SystemExit(3)")
    async with supervised([broken, python("other", FOREVER)], logs=tmp_path) as running:
        with pytest.raises(ProcessFailedError, match=r"api ended with code 3 5 times in a row:\n") as failure:
            await running.wait()
        other = running.pid("other")

    assert "the port is taken" in str(failure.value)
    assert other is not None
    assert gone(other)


async def test_a_one_off_process_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    async with supervised([python("load", "raise SystemExit(2)", restart=False)], logs=tmp_path) as running:
        with pytest.raises(ProcessFailedError, match=r"^load ended with code 2:"):
            await running.wait()
        assert running.starts("load") == 1


async def test_a_program_that_does_not_exist_says_so(tmp_path: Path) -> None:
    spec = ProcessSpec("typo", ["no-such-program"], restart=False)
    async with supervised([spec], logs=tmp_path) as running:
        with pytest.raises(ProcessFailedError, match="No such file or directory"):
            await running.wait()


async def test_processes_stop_in_reverse_order(tmp_path: Path) -> None:
    code = """
        import signal, sys
        def end(*_):
            print("stopping"); sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("ready")
        signal.pause()
    """
    lines = Lines()
    async with supervised([python(n, code) for n in ("a", "b", "c")], logs=tmp_path, on_line=lines):
        for name in "abc":
            await lines.until_said(name, "ready")

    assert [name for name, line in lines.seen if line == "stopping"] == ["c", "b", "a"]


async def test_a_stubborn_process_and_its_children_are_killed_after_the_grace(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}])
        print(child.pid)
        {textwrap.indent(STUBBORN, " " * 8).strip()}
    """
    lines = Lines()
    async with supervised([python("stubborn", code)], logs=tmp_path, grace=0.01, on_line=lines) as running:
        await lines.until_said("stubborn", "ready", 2)
        parent = running.pid("stubborn")
        child = os.pidfd_open(next(int(line) for _, line in lines.seen if line.isdigit()))

    assert parent is not None
    assert gone(parent)
    assert wait_for_end(child)


async def test_what_a_dead_process_leaves_behind_does_not_hold_up_its_restart(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, os, signal
        child = subprocess.Popen([sys.executable, "-c", {FOREVER!r}], stdout=subprocess.PIPE)
        child.stdout.readline()
        subprocess.Popen([sys.executable, "-c", {FOREVER!r}])
        signal.pause()
    """
    lines = Lines()
    async with supervised([python("boss", code)], logs=tmp_path, on_line=lines) as running:
        await lines.until_said("boss", "ready")
        pid = running.pid("boss")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await lines.until_said("boss", "ready", 2)


SUPERVISE = """
import asyncio, sys
from pathlib import Path
from server.supervisor import ProcessSpec, run_processes
code = "import os, signal; print(os.getpid()); signal.pause()"
specs = [ProcessSpec(name, [sys.executable, "-c", code]) for name in ("a", "b")]
asyncio.run(run_processes(specs, logs=Path(sys.argv[1]), on_line=lambda name, line: print(line, flush=True)))
"""


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_nothing_outlives_the_supervisor(kind: signal.Signals, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        children = [int(output.readline()) for _ in range(2)]
        descriptors = [os.pidfd_open(pid) for pid in children]
        process.send_signal(kind)

        assert process.wait(20) == code
        for pid, descriptor in zip(children, descriptors, strict=True):
            assert wait_for_end(descriptor), pid


def wait_for_end(descriptor: int) -> bool:
    ended = bool(select.select([descriptor], [], [], 20)[0])
    os.close(descriptor)
    return ended


async def test_run_processes_ends_by_itself_when_all_are_done(tmp_path: Path) -> None:
    await run_processes([python("once", "print('done')", restart=False)], logs=tmp_path)

    assert (tmp_path / "once.log").read_text() == "done\n"
