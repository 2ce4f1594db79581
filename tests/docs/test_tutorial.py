"""The first tutorial, done by a reader who types exactly what it says: each answer is the one it shows."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.blocks import ROOT, blocks_of
from tests.sandbox.running import listen

PAGE = ROOT / "docs" / "tutorials" / "first-connector.md"
PORT = "9300"


@contextmanager
def background(folder: Path, port: str) -> Iterator[Callable[[list[str]], None]]:
    """Yield what starts the reader's second terminal and waits until its server listens."""
    started: list[subprocess.Popen[bytes]] = []

    def start(argv: list[str]) -> None:
        started.append(subprocess.Popen(argv, cwd=folder))
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
                return
            except OSError:
                assert started[-1].poll() is None, "the tutorial's server ended"
                assert time.monotonic() < deadline, "the tutorial's server did not start"
                time.sleep(0.05)

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
            process.wait(10)


def free_port() -> str:
    with listen("127.0.0.1", 0) as bound:
        return str(bound.getsockname()[1])


def typed(script: str, project: Path) -> str:
    """Run a block as in one terminal: variables and the folder are kept. Returns what it shows."""
    state = project / "terminal"
    before = state.read_text() if state.exists() else f"cd {project}\n"
    keep = f'export -p > {state}; echo "cd $PWD" >> {state}'
    run = subprocess.run(
        ["bash", "-c", f"{before}\n{script}\n{keep}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=project,
    )
    return run.stdout + run.stderr


def test_the_first_connector(tmp_path: Path) -> None:
    hub = tmp_path / ".venv" / "bin" / "hub"
    hub.parent.mkdir(parents=True)
    hub.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m server.cli "$@"\n')
    hub.chmod(0o755)
    shutil.copytree(ROOT / "connectors", tmp_path / "connectors")
    folder = tmp_path / "try"
    port = free_port()
    shown: str | None = None
    compared = 0
    with background(folder, port) as start:
        for block in blocks_of(PAGE):
            text = block.text.replace(PORT, port)
            if block.language in ("yaml", "python"):
                (folder / text.split("\n", 1)[0].removeprefix("# ")).write_text(text, "utf-8")
            elif text.startswith("python3 "):
                start(text.split())
            elif block.language == "sh":
                shown = typed(text, tmp_path)
            else:
                assert shown == text, f"{block.name} shows something else"
                compared += 1
    assert compared >= 10
