"""A worker whose runs go through ten slow pages, each saved in a table.

`python -m tests.integration.paging_worker` reads its settings from the environment, like `hub worker`.
"""

import asyncio
import signal

from sqlalchemy import text

from engine.errors import StoppedError
from server.services.runs import Run
from server.settings import read_settings
from server.worker.context import open_worker_context
from server.worker.main import serve
from server.worker.tasks import Worker

PAGES = 10
SECONDS = 0.05  # a page takes
TABLE = "CREATE TABLE IF NOT EXISTS pages (operation_id uuid, page int, PRIMARY KEY (operation_id, page))"


def paging_worker(worker: Worker) -> Worker:
    """Give a worker runs that go on after the last page that was saved."""

    async def run(context: object, run: Run) -> None:
        sessions = worker.context.sessions
        identity = {"id": run.claim.operation_id}
        async with sessions() as session:
            done = await session.scalar(
                text("SELECT coalesce(max(page), 0) FROM pages WHERE operation_id = :id"), identity
            )
        assert isinstance(done, int)
        for page in range(done + 1, PAGES + 1):
            if run.stopping:
                raise StoppedError("stopped between pages")
            await asyncio.sleep(SECONDS)
            async with sessions.begin() as session:
                await session.execute(
                    text("INSERT INTO pages VALUES (:id, :page)"), {**identity, "page": page}
                )

    worker.run = run
    return worker


async def main() -> None:
    settings = read_settings()
    async with open_worker_context(settings, application_name="paging worker", connections=10) as context:
        worker = paging_worker(Worker(context, "killed"))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await serve(worker, concurrency=4, grace=5.0)


if __name__ == "__main__":
    asyncio.run(main())
