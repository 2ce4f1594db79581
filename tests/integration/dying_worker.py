"""Workers whose runs kill them, as one would that uses up all memory: no end is written, no lease given back.

`python -m tests.integration.dying_worker 3` starts three, one after the death of the other, and ends then.
It reads its settings from the environment, like `hub worker`.
"""

import asyncio
import os
import signal
import sys

from server.services.runs import Run
from server.settings import read_settings
from server.worker.context import open_worker_context
from server.worker.main import serve
from server.worker.tasks import Worker


async def die(context: object, run: Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def serve_until_killed() -> None:
    settings = read_settings()
    async with open_worker_context(settings, application_name="dying worker", connections=5) as context:
        await serve(Worker(context, f"dying {os.getpid()}", run=die), concurrency=1, grace=1.0)


def main(workers: int) -> None:
    for _ in range(workers):
        child = os.fork()  # the imports are most of what a process costs
        if child == 0:
            asyncio.run(serve_until_killed())
            sys.exit("the worker ended by itself")
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit("the worker wasn't killed")


if __name__ == "__main__":
    main(int(sys.argv[1]))
