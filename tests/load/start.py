"""Measure how long `hub lint` on one manifest takes as a whole process, beside an idle interpreter.

Prints one JSON line: seconds are medians; `ratio` is the first over the second.
"""

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 9
LINT = (sys.executable, "-m", "server.cli", "lint", "connectors/stripe.yaml")
NOTHING = (sys.executable, "-c", "pass")


def seconds(command: tuple[str, ...]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    seconds(LINT)
    pairs = [(seconds(LINT), seconds(NOTHING)) for _ in range(ROUNDS)]
    lint, nothing = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {
        "bench": "hub lint",
        "seconds": round(lint, 3),
        "interpreter_seconds": round(nothing, 3),
        "ratio": round(lint / nothing, 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
