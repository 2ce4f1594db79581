"""Worker processes that call one account at once: they use nearly all of its budget, and never more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.budget_worker import COROUTINES, RATE
from tests.sandbox.core import Counts
from tests.sandbox.running import Sandbox, running_sandbox

PROJECT = Path(__file__).resolve().parents[2]
PROCESSES = 4
BURST = RATE // 10 + 1
LATENCY = 0.05
WANTED = 0.9


@contextmanager
def workers(sandbox: Sandbox, redis_url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    command = [sys.executable, "-m", "tests.integration.budget_worker", sandbox.stripe_url]
    environment = {**os.environ, "REDIS_URL": redis_url}
    started = [subprocess.Popen(command, cwd=PROJECT, env=environment) for _ in range(PROCESSES)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def wait_for(counts: Counts, calls: int) -> None:
    deadline = time.monotonic() + 60
    while counts.total < calls:
        if time.monotonic() > deadline:
            raise AssertionError(f"only {counts.total} of {calls} calls were made")
        time.sleep(0.005)


def share_used(counts: Counts, calls: int) -> float:
    """Return what share of the budget the next calls use; the best of a few tries, for a busy machine."""
    best = 0.0
    for _ in range(4):
        started, before = time.monotonic(), counts.total
        wait_for(counts, before + calls)
        seconds = time.monotonic() - started
        # Beyond the rate there may be what goes at once, and what was on its way when the window began.
        assert counts.total - before <= RATE * seconds + BURST + PROCESSES * COROUTINES
        best = max(best, calls / seconds / RATE)
        if best >= WANTED:
            break
    return best


def test_the_budget_is_used_and_kept_to(redis_url: str) -> None:
    with running_sandbox() as sandbox:
        stripe = sandbox.stripe
        stripe.set_limits = {"requests_per_second": float(RATE), "per_endpoint": None}
        stripe.latency = LATENCY
        with workers(sandbox, redis_url) as processes:
            wait_for(stripe.counts, 2 * RATE)  # all of them are under way
            assert share_used(stripe.counts, 4 * RATE) >= WANTED

            # Neither its place in the queue nor the slots it held keep the others up.
            processes[0].kill()
            processes[0].wait()
            assert share_used(stripe.counts, 3 * RATE) >= WANTED
        assert stripe.counts.rate_limited == 0
        assert set(stripe.counts.by_status) == {"200"}
