"""What every child process of the hub has in common: it dies with its parent, and its log stays small.

This file is also the program that turns into the child (`child_command`). It runs before anything is
installed or imported, so it needs nothing but the standard library.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

LOG_LIMIT = 10 * 1024 * 1024

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000


def child_command(
    argv: Sequence[str],
    on_parent_death: signal.Signals,
    *,
    user: int | None = None,
    appear_as: int | None = None,
) -> list[str]:
    """Return the command that runs `argv` and gets `on_parent_death` when its parent ends, even by kill -9.

    `user` is an id to become (from root). With `appear_as` the program runs in a user namespace where its
    own user has that id, and keeps its own permissions as an owner. When neither can be had, or `argv`
    can't be executed, the command ends with code 126 and says why.
    On Linux the parent is the thread that starts the child; elsewhere there is no such signal.
    """
    word = {"user": user, "appear_as": appear_as}
    options = [f"{name}={value}" for name, value in word.items() if value is not None]
    # -I and -S: no path, no site packages, no variable of ours; it starts in hundredths of a second.
    return [
        sys.executable,
        "-IS",
        __file__,
        str(int(on_parent_death)),
        str(os.getpid()),
        *options,
        "--",
        *argv,
    ]


def open_log(path: Path) -> BinaryIO:
    """Open a log file for appending, for its owner only; a long one is kept once as `<name>.1`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab", buffering=0)


def log_tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for a message about why its process ended."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _become(words: list[str]) -> None:
    on_parent_death, parent = int(words[0]), int(words[1])
    end = words.index("--")
    options = dict(word.split("=", 1) for word in words[2:end])
    argv = words[end + 1 :]
    if "user" in options:
        identity = int(options["user"])
        os.setgroups([])
        os.setgid(identity)
        os.setuid(identity)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if "appear_as" in options:
            user, group = os.geteuid(), os.getegid()
            if libc.unshare(_CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "user namespaces are not allowed here")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{options['appear_as']} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{options['appear_as']} {group} 1")
        # After every change of user, since those clear it.
        libc.prctl(_PR_SET_PDEATHSIG, on_parent_death, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above took effect
            sys.exit(126)
    elif "appear_as" in options:
        raise OSError("user namespaces are a feature of Linux")
    os.execvp(argv[0], argv)  # noqa: S606 - the point of this program; there is no shell


if __name__ == "__main__":
    try:
        _become(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(126)
