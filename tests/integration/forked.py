"""Processes of the hub that start in hundredths of a second: forks of one that has imported everything.

They are processes like any other, with their own environment, session and log, and can be killed; only the
two seconds that Python takes to import what they all import are spent once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.processes import open_log

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.integration.imported"])
_PR_SET_PDEATHSIG = 1


class Forked:
    """`hub <arguments>` as a process; what it can be told is told as to a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._process = _CONTEXT.Process(
            target=_become, args=(list(arguments), dict(environment), log), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return how it ended, None while it lives; a signal's number is negative."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("hub", timeout or 0)
        return self._process.exitcode


def _become(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.setsid()
    with open_log(log) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    if sys.platform == "linux":  # with the process it was forked from, which ends with the tests
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    from server.cli import main

    main(arguments, prog_name="hub")
