"""Measure what it costs to look at the records of pulled pages, beside the same pull without it.

Pages of 100 records of about 1 KB are answered in this process, parsed and mapped (8 paths). Runs alternate;
the best of each counts. Prints a JSON line for a short run, most of whose records are looked at, and one for
a long one: `ratio` is the time with observation over the time without.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from uuid import uuid4

import httpx

from engine.client import ProviderClient
from engine.documents import read_document
from engine.fields import Field, FieldCatalog
from engine.manifest import Connector, Entity, compile_connector
from engine.mapping import MappingScope, compile_mapping
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from server.services import drift
from tests.load.pull import FIELDS, MANIFEST, PAGE, page_template

ROUNDS = 5
PAGES = (2, 100)
WANTED = 1.1  # of the long run
TEMPLATE = page_template()


def answers(pages: int) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("cursor", "0"))
        cursor = f',"next_cursor":"{number + 1}"' if number + 1 < pages else ""
        records = TEMPLATE.replace(b"@@@@@@@", b"%07d" % number)
        return httpx.Response(200, content=b'{"data":%s%s}' % (records, cursor.encode()))

    return answer


async def pull(connector: Connector, pages: int, *, observed: bool) -> float:
    """Return the seconds of processor time that a pull takes."""
    fields = FieldCatalog({name: Field(name) for name in FIELDS})
    entity = Entity("customer", "customers", None, "id", "venue_id", "updated_at", fields)
    written = {"direction": "pull", "fields": FIELDS}
    mapping, faults = compile_mapping(written, connector.resources["customer"], entity)
    assert mapping is not None, faults
    look = drift.watcher({}, connector, uuid4()) if observed else None
    scope, credentials = MappingScope(venue={}), Credentials({"apiKey": Secret("key")})
    async with httpx.AsyncClient(transport=httpx.MockTransport(answers(pages))) as http:
        client = ProviderClient(connector, StaticCredentials(credentials), http=http, on_records=look)
        started = time.process_time()
        async for batch in client.pages("customer"):
            for row in batch.records:
                mapping.pull(row.record, scope)
        return time.process_time() - started


def main() -> None:
    connector = compile_connector(read_document(MANIFEST, file="records.yaml"))
    for pages in PAGES:
        best = {True: float("inf"), False: float("inf")}
        for _ in range(ROUNDS):
            for observed in best:
                best[observed] = min(best[observed], asyncio.run(pull(connector, pages, observed=observed)))
        line = {
            "case": f"observe a pull of {pages * PAGE} records",
            "seconds": round(best[True], 4),
            "unobserved_seconds": round(best[False], 4),
            "ratio": round(best[True] / best[False], 3),
            "wanted_ratio": WANTED if pages == PAGES[-1] else None,
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
