"""Measure a pull against the same work in a hand-written asynchronous httpx loop with orjson.

Records of about 1 KB come in pages of 100 from a server in its own process, are mapped (8 paths) and written
as JSON lines. Each run is a fresh process; runs alternate and the best of each counts. Prints one JSON line:
`ratio` is the hub's throughput over the hand-written loop's, `peak_mb` the hub process's peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson

from engine.client import ProviderClient
from engine.documents import read_document
from engine.fields import Field, FieldCatalog
from engine.manifest import Entity, compile_connector
from engine.mapping import MappingScope, compile_mapping
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from engine.transport import open_client

PAGE = 100
ORIGIN = "https://records.example"
ROUNDS = 3
MOST_MEGABYTES = 120

MANIFEST = f"""
manifest: 1
connector: records
title: Records
docs: {ORIGIN}/docs
server: {{production: {ORIGIN}}}
auth:
  type: bearer
  credentials:
    apiKey: {{title: Key}}
  token: apiKey
check: GET /customers
resources:
  customer:
    id: id
    changed_at: updated_at
    fields:
      given_name: text
      family_name: text
      email_address: email
      phone_number: phone
      address.locality: text
      address.postal_code: text
      address.country: text
      updated_at: timestamp
    list:
      call: GET /customers
      records: data
      pagination: {{type: cursor, read: next_cursor, send: query cursor}}
      page_size: {{send: query limit, at_most: {PAGE}}}
"""
FIELDS = {
    "first_name": "given_name",
    "last_name": "family_name",
    "email": "email_address",
    "phone": "phone_number",
    "city": "address.locality",
    "postal_code": "address.postal_code",
    "country": "address.country",
    "updated": "updated_at",
}


# ------------------------------------------------------------------------------------------ the server


def page_template() -> bytes:
    """Return the records of a page; `@@@@@@@` in it stands for the page's number, seven digits wide."""
    records = [
        {
            "id": f"c_@@@@@@@_{number:02}",
            "given_name": f"José {number}",
            "family_name": "Šťastný-Llewellyn",
            "email_address": f"customer.@@@@@@@.{number:02}@mail.example",
            "phone_number": "+44 20 7946 0958",
            "address": {
                "address_line_1": "1 Long Street",
                "locality": "Łódź",
                "postal_code": "90-001",
                "country": "PL",
            },
            "preferences": {"email_unsubscribed": False, "tags": ["jazz", "late shows", "balcony"]},
            "created_at": "2026-01-31T18:30:00.123Z",
            "updated_at": "2026-02-28T09:15:00.456Z",
            "reference_id": f"ref-{number}",
            "amounts": [1999, 4500, 12.5, None, True],
            "note": "Prefers seats near the aisle; ask about the dog. " * 9,
        }
        for number in range(PAGE)
    ]
    return orjson.dumps(records)


class PageServer(asyncio.Protocol):
    """Answers `GET /customers?cursor=N` over keep-alive with page N; as little work as can be."""

    template = page_template()
    pages = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            query = parse_qs(urlsplit(target).query)
            self.answer(int(query.get("cursor", ["0"])[0]))

    def answer(self, number: int) -> None:
        cursor = f',"next_cursor":"{number + 1}"' if number + 1 < self.pages else ""
        records = self.template.replace(b"@@@@@@@", b"%07d" % number)
        length = len(records) + len(cursor) + len('{"data":}')
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        self.transport.write(b"".join((head.encode(), b'{"data":', records, cursor.encode(), b"}")))


async def serve(records: int) -> None:
    PageServer.pages = records // PAGE
    server = await asyncio.get_running_loop().create_server(PageServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


# ---------------------------------------------------------------------------------------- the two runs


def by_hand(record: dict[str, Any]) -> dict[str, Any]:
    address = record.get("address") or {}
    return {
        "first_name": record.get("given_name"),
        "last_name": record.get("family_name"),
        "email": record.get("email_address"),
        "phone": record.get("phone_number"),
        "city": address.get("locality"),
        "postal_code": address.get("postal_code"),
        "country": address.get("country"),
        "updated": record.get("updated_at"),
    }


class Stopwatch:
    """Measures from when a run is ready to call: start-up is once, and not what is compared here."""

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


async def hand_written(origin: str, out: IO[bytes], watch: Stopwatch) -> int:
    count, cursor = 0, None
    async with httpx.AsyncClient(base_url=origin, headers={"Authorization": "Bearer key"}) as client:
        watch.start()
        while True:
            params = {"limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
            response = await client.get("/customers", params=params)
            response.raise_for_status()
            body = orjson.loads(response.content)
            for record in body["data"]:
                out.write(orjson.dumps(by_hand(record), option=orjson.OPT_APPEND_NEWLINE))
                count += 1
            cursor = body.get("next_cursor")
            if not cursor:
                return count


@asynccontextmanager
async def hub_client(origin: str) -> AsyncIterator[Any]:
    connector = compile_connector(read_document(MANIFEST, file="records.yaml"))
    credentials = StaticCredentials(Credentials({"apiKey": Secret("key")}))
    # Its own address, not an override: the way there is then what it is in production.
    connector = replace(connector, servers={"production": origin})
    async with open_client(allow_private=True) as http:
        yield ProviderClient(connector, credentials, http=http)


async def by_hub(origin: str, out: IO[bytes], watch: Stopwatch) -> int:
    fields = FieldCatalog({name: Field(name) for name in FIELDS})
    entity = Entity("customer", "customers", None, "id", "venue_id", "updated_at", fields)
    count, scope = 0, MappingScope(venue={})
    async with hub_client(origin) as client:
        written = {"direction": "pull", "fields": FIELDS}
        mapping, faults = compile_mapping(written, client.connector.resources["customer"], entity)
        assert mapping is not None, faults
        watch.start()
        async for batch in client.pages("customer"):
            for row in batch.records:
                out.write(orjson.dumps(mapping.pull(row.record, scope), option=orjson.OPT_APPEND_NEWLINE))
                count += 1
    return count


RUNS = {"hand": hand_written, "hub": by_hub}


def run(name: str, origin: str) -> None:
    watch = Stopwatch()
    with Path("/dev/null").open("wb") as out:
        count = asyncio.run(RUNS[name](origin, out, watch))
    seconds, cpu = watch.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"records": count, "seconds": seconds, "cpu": cpu, "peak_mb": peak}))


# ---------------------------------------------------------------------------------------- the measure


@contextmanager
def running_server(records: int) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.load.pull", "--serve", "--records", str(records)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def measured(name: str, origin: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.load.pull", "--run", name, "--origin", origin]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def main(records: int = 100_000, rounds: int = ROUNDS) -> None:
    with running_server(records) as origin:
        results = [{name: measured(name, origin) for name in RUNS} for _ in range(rounds)]
    best = {name: min(result[name]["seconds"] for result in results) for name in RUNS}
    cpu = {name: min(result[name]["cpu"] for result in results) for name in RUNS}
    line = {
        "case": f"pull {records} records",
        "hub_per_second": round(records / best["hub"]),
        "hand_per_second": round(records / best["hand"]),
        "ratio": round(best["hand"] / best["hub"], 3),
        "cpu_ratio": round(cpu["hand"] / cpu["hub"], 3),
        "wanted_ratio": 0.9,
        "peak_mb": round(max(result["hub"]["peak_mb"] for result in results), 1),
        "wanted_peak_mb": MOST_MEGABYTES,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--run", choices=RUNS, help="be one run")
    parser.add_argument("--origin", default="")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.records))
    elif options.run:
        run(options.run, options.origin)
    else:
        main(options.records, options.rounds)
