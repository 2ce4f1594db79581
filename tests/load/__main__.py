"""`make bench`: every measurement, one after the other; a JSON line for each figure.

Figures are ratios against a hand-written equivalent taken in the same run, or peak memory. Nothing is
asserted: times on a shared machine are for reading, not for failing.
"""

import subprocess
import sys
import time

BENCHES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("start", ()),
    ("mapping", ()),
    ("pull", ("--records", "10000")),
    ("pull", ("--records", "100000")),
    ("pull", ("--records", "1000000", "--rounds", "1")),
    ("observing", ()),
    ("lanes", ()),
    ("reads", ()),
    ("intake", ()),
)


def main() -> int:
    """Run all, or those named as arguments; returns 1 when one could not be run."""
    wanted = set(sys.argv[1:]) or {name for name, _ in BENCHES}
    unknown = wanted - {name for name, _ in BENCHES}
    if unknown:
        sys.stderr.write(f"no such measurement: {', '.join(sorted(unknown))}\n")
        return 2
    failed = 0
    for name, arguments in BENCHES:
        if name not in wanted:
            continue
        sys.stdout.write(f"# {' '.join((name, *arguments))}\n")
        sys.stdout.flush()
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"tests.load.{name}", *arguments], check=False)
        failed |= done.returncode
        sys.stdout.write(f"# {time.monotonic() - started:.0f} s\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
