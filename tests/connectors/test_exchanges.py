"""Exchanges as the providers' documentation shows them, one folder per provider, without a word of Python.

A file says where its bytes come from, and what is connected: `credentials`, `connection`, and the `method`
where there are several. Each case does one
thing (`read`, `get`, `write`, `push`, `pull`, `learn` or `check`) and lists the exchanges it makes, each a
request that has to be made word for word, and the answer it gets. `headers` are those that matter, null for
one that must not be there; a `form` or `query` is complete, a `body` is JSON and complete, and `*` stands for
any text. `expect` holds what the engine makes of the answers. An answer may be `text` instead of a `body`, or
`tar_gz`: an archive of documents by their names. With `job_at_least`, so few records are a job already.

`write` and `push` write `records`: of the provider as `{id, remote, key, body}`, or of the platform, through
the default template, as fields with their `id`. It is 12:00 UTC on 1 March 2026 in every case.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import orjson
import pytest

from engine.batching import Write
from engine.client import ProviderClient
from engine.documents import read_document
from engine.errors import HubError
from engine.manifest import Connector, Platform, load_connector, load_platform
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.memory import StaticCredentials
from engine.ports import Credentials, Secret
from engine.templates import load_template
from tests.fakes import FakeClock

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
FILES = sorted(HERE.glob("*/*.yaml"))
CASES = [
    pytest.param(file.parent.name, document, case, id=f"{file.parent.name}-{file.stem}: {case['name']}")
    for file in FILES
    for document in [read_document(file).data]
    for case in document["cases"]
]


@cache
def connector_of(name: str) -> Connector:
    return load_connector(PROJECT / "connectors" / f"{name}.yaml")


@cache
def platform() -> Platform:
    return load_platform(PROJECT / "connectors" / "platform.yaml")


def mapping_of(provider: str, entity: str, resource: str) -> FieldMapping:
    file = PROJECT / "mapping-templates" / provider / "default.yaml"
    template = load_template(file, connector_of(provider), platform())
    return next(each for each in template.mappings if (each.entity, each.resource) == (entity, resource))


class Recording:
    """Answers as recorded, and holds every request against the one that has to come next."""

    def __init__(self, exchanges: list[Mapping[str, Any]]) -> None:
        self.left = list(exchanges)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert self.left, f"a call too many: {request.method} {request.url}"
        exchange = self.left.pop(0)
        wanted = exchange["request"]
        method, _, address = wanted["call"].partition(" ")
        url = request.url.copy_with(query=None)
        assert (request.method, str(url)) == (method, address)
        query = sorted(list(pair) for pair in request.url.params.multi_items())
        assert fits(sorted(list(pair) for pair in pairs(wanted.get("query", {}))), query), query
        for name, value in wanted.get("headers", {}).items():
            assert fits(value, request.headers.get(name)), name
        if "form" in wanted:
            assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
            assert sorted(parse_qsl(request.content.decode(), True)) == sorted(pairs(wanted["form"]))
        elif "body" in wanted:
            assert request.headers["Content-Type"] == "application/json"
            sent = orjson.loads(request.content)
            assert fits(wanted["body"], sent), sent
        else:
            assert request.content == b""
        answer = exchange["answer"]
        status, headers = answer.get("status", 200), answer.get("headers")
        if "text" in answer:
            return httpx.Response(status, headers=headers, text=answer["text"])
        if "tar_gz" in answer:
            return httpx.Response(status, headers=headers, content=archive_of(answer["tar_gz"]))
        return httpx.Response(status, headers=headers, json=answer.get("body", {}))


def archive_of(documents: Mapping[str, Any]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, document in documents.items():
            content = orjson.dumps(document)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def fits(wanted: Any, sent: Any) -> bool:
    if wanted == "*":
        return isinstance(sent, str) and sent != ""
    if isinstance(wanted, Mapping):
        return (
            isinstance(sent, Mapping)
            and wanted.keys() == sent.keys()
            and all(fits(each, sent[name]) for name, each in wanted.items())
        )
    if isinstance(wanted, list):
        return isinstance(sent, list) and len(wanted) == len(sent) and all(map(fits, wanted, sent))
    return bool(wanted == sent) and isinstance(wanted, bool) == isinstance(sent, bool)


def pairs(written: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in written.items()]


def client_for(provider: str, document: Mapping[str, Any], recording: Recording) -> ProviderClient:
    secrets = {name: Secret(value) for name, value in document["credentials"].items()}
    connection, method = document.get("connection", {}), document.get("method")
    connector = connector_of(provider)
    if "job_at_least" in document:
        connector = with_small_jobs(connector, document["job_at_least"])
    return ProviderClient(
        connector,
        StaticCredentials(Credentials(secrets, connection=connection, method=method)),
        http=httpx.AsyncClient(transport=httpx.MockTransport(recording)),
        clock=FakeClock(),
    )


def with_small_jobs(connector: Connector, at_least: int) -> Connector:
    resources = {
        name: replace(each, write_job=replace(each.write_job, at_least=at_least)) if each.write_job else each
        for name, each in connector.resources.items()
    }
    return replace(connector, resources=resources)


@pytest.mark.parametrize(("provider", "document", "case"), CASES)
async def test_an_exchange(provider: str, document: Mapping[str, Any], case: Mapping[str, Any]) -> None:
    recording = Recording(case["exchanges"])
    client = client_for(provider, {**document, **case.get("with", {})}, recording)
    made = await act(client, provider, case)
    assert recording.left == []
    assert made == exact(case["expect"])


async def act(client: ProviderClient, provider: str, case: Mapping[str, Any]) -> Any:
    """Do what a case says; returns what `expect` is held against."""
    if isinstance(case["expect"], Mapping) and "error" in case["expect"]:
        with pytest.raises(HubError) as raised:
            await act(client, provider, {**case, "expect": {}})
        return {"error": kind_of(raised.value)}
    if "check" in case:
        await client.check()
        return {}
    if "learn" in case:
        return await client.learn()
    if "get" in case:
        ((resource, record_id),) = case["get"].items()
        return await client.get(resource, record_id)
    if "write" in case or "push" in case:
        return await written(client, provider, case)
    return await found(client, provider, case)


async def written(client: ProviderClient, provider: str, case: Mapping[str, Any]) -> list[dict[str, Any]]:
    writes: list[Write] = []
    for record in case["records"]:
        if "write" in case:
            resource = case["write"]
            writes.append(Write(record["id"], record.get("remote"), record["body"], record["key"]))
            continue
        entity, resource = case["push"].split(" ")
        ours = exact({name: value for name, value in record.items() if name not in ("remote", "key")})
        body = mapping_of(provider, entity, resource).push(ours, scope_of(case))
        writes.append(Write(str(record["id"]), record.get("remote"), body, record["key"]))
    results = [each for group in client.plan(resource, writes) for each in await client.send(group)]
    return [
        {
            "id": each.write.local_id,
            "remote": each.remote_id,
            **({"error": kind_of(each.error), "field": each.error.field} if each.error else {}),
            **({"retryable": True} if each.retryable else {}),
        }
        for each in results
    ]


async def found(client: ProviderClient, provider: str, case: Mapping[str, Any]) -> list[dict[str, Any]]:
    entity, _, resource = case["pull"].partition(" ") if "pull" in case else ("", "", case["read"])
    since = datetime.fromisoformat(case["since"]) if "since" in case else None
    rows = [row async for batch in client.pages(resource, since=since) for row in batch.records]
    if not entity:
        return [
            {"id": row.id, "changed_at": row.changed_at, **({"deleted": True} if row.deleted else {})}
            for row in rows
        ]
    mapping = mapping_of(provider, entity, resource)
    return [mapping.pull(row.record, scope_of(case)) for row in rows]


def kind_of(error: HubError) -> str:
    """Name the published kind of an error."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == HubError.__module__)


def scope_of(case: Mapping[str, Any]) -> MappingScope:
    links: dict[tuple[str, str], str] = {}
    for key, other in case.get("links", {}).items():
        resource, _, record_id = key.partition(" ")
        links[resource, record_id] = other
    return MappingScope(venue={"id": "v1", "name": "Théâtre du Port", "currency": "EUR"}, links=links)


def exact(value: Any) -> Any:
    """Return a value with its fractions as exact numbers, as the platform gives and takes them."""
    if isinstance(value, Mapping):
        return {key: exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [exact(each) for each in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("file", [pytest.param(each, id=f"{each.parent.name}-{each.stem}") for each in FILES])
def test_a_file_says_where_its_bytes_come_from(file: Path) -> None:
    assert len(read_document(file).data["source"]) > 20
