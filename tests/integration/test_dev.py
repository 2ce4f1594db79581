"""`hub dev` as a person uses it: begun, interrupted, begun again; and what it says when it can't."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from server import cli, dev
from server.app import openapi_document
from server.embedded import EmbeddedError, embedded_stores, forget
from server.settings import Settings, read_settings

PROJECT = Path(__file__).parents[2]
VENUE = "2cde518b-53c8-54ff-83b8-6a5073f9af6c"
WRITES = ("created", "updated", "failed")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings({"HUB_STATE": str(tmp_path / "state"), "PORT": "0"})


@contextmanager
def hub_dev(state: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `hub dev` with nothing but paths in its environment; it is ended with the block.

    The two providers are those whose limits don't make a first sync take a minute.
    """
    connectors = state / "connectors"
    connectors.mkdir(exist_ok=True)
    for name in ("square", "mailchimp"):
        shutil.copy(PROJECT / "connectors" / f"{name}.yaml", connectors)
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "dev", *options],
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "HUB_STATE": str(state / "state"),
            "HUB_CONNECTORS_DIR": str(connectors),
            "PORT": "0",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def synced(state: Path) -> Mapping[str, Any]:
    """Run to the end of a sync; returns each mapping's counts by `provider entity direction`."""
    with hub_dev(state, "--once", "--json") as process:
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 0
    return {
        f"{provider} {row['entity']} {row['resource']} {row['direction']}": row
        for provider, sync in json.loads(output)["syncs"].items()
        for row in sync["progress"]["mappings"]
    }


def test_an_interrupted_run_is_gone_on_with_and_a_second_writes_nothing(tmp_path: Path) -> None:
    with hub_dev(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("connected square"):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130

    synced(tmp_path)
    again = synced(tmp_path)
    assert {name: row["read"] for name, row in again.items() if any(row.get(kind) for kind in WRITES)} == {}
    assert {
        "mailchimp customer member push",
        "square event item push",
        "square order order pull",
    } <= again.keys()


def unknown_names(document: Mapping[str, Any], request: httpx.Request) -> set[str]:
    """Return what a request's query has and its route doesn't take: the API refuses such a request."""
    fitting = [
        path
        for path in document["paths"]
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), request.url.path)
    ]
    route = document["paths"][min(fitting, key=lambda path: path.count("{"))]
    known = {each["name"] for each in route[request.method.lower()]["parameters"] if each["in"] == "query"}
    return set(request.url.params) - known


class Api(dev.ApiClient):
    """An API of which one provider's sync was left by an earlier run; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        document = openapi_document()
        states = {"left": "juniper", "new-juniper": "juniper", "new-maple": "maple"}

        def answer(request: httpx.Request) -> httpx.Response:
            self.asked.append(f"{request.method} {request.url.path.removeprefix(dev.API)}")
            assert unknown_names(document, request) == set()
            path = request.url.path.removeprefix(f"{dev.API}/sync/").split("/")
            if request.method == "POST":
                return httpx.Response(200, json={"success": True, "data": {"syncId": f"new-{path[0]}"}})
            if path[-1] == "status":
                current = {"syncId": "left"} if path[0] == "juniper" else None
                return httpx.Response(200, json={"success": True, "data": {"current": current}})
            assert states[path[-1]] == path[0]
            state = {"status": "completed", "ended": True, "progress": {"mappings": []}}
            return httpx.Response(200, json={"success": True, "data": state})

        self.http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://hub.test")


async def test_what_was_interrupted_goes_first() -> None:
    async with Api() as api:
        assert (
            await dev.sync_all(api, VENUE, ["juniper", "maple"], Console(quiet=True), json_output=False) == 0
        )
    assert api.asked == [
        "GET /sync/juniper/sync/status",
        "GET /sync/maple/sync/status",
        "GET /sync/juniper/sync/left",
        "POST /sync/juniper/sync",
        "POST /sync/maple/sync",
        "GET /sync/juniper/sync/new-juniper",
        "GET /sync/maple/sync/new-maple",
    ]


async def test_a_consent_page_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = iter(["connecting", "connected"])

    def answer(request: httpx.Request) -> httpx.Response:
        data: Any = {"message": "", "authUrl": "https://login.juniper.example/oauth?state=x"}
        if request.method == "GET":
            data = [{"integration_type": "juniper", "status": next(statuses), "last_error": None}]
        return httpx.Response(200, json={"success": True, "data": data})

    api = dev.ApiClient("http://hub.test", "token")
    api.http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://hub.test")
    async with api:
        await api.connect(dev.Provider("juniper"), VENUE, Console())
    assert "https://login.juniper.example/oauth?state=x" in capsys.readouterr().out
    assert next(statuses, None) is None


def test_a_port_that_is_taken_is_named_before_anything_uses_it(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(dev.DevError, match=f"port {port} .*choose another port with PORT"):
            dev.run_dev(replace(settings, port=port), real=False, once=True, json_output=False)


def test_real_and_simulated_providers_have_stores_of_their_own(settings: Settings) -> None:
    assert dev.stores_folder(settings, real=True) != dev.stores_folder(settings, real=False)


def test_forget_leaves_what_is_not_the_hubs(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly").write_text("old")
    (tmp_path / "secrets.json").write_text("{}")
    (tmp_path / "thesis.txt").write_text("mine")
    forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "secrets.json", "thesis.txt"]


def test_forget_refuses_while_the_hub_runs(tmp_path: Path) -> None:
    elsewhere = ("postgresql://other/hub", "redis://other")
    with embedded_stores(tmp_path, database_url=elsewhere[0], redis_url=elsewhere[1]):
        (tmp_path / "redis").mkdir()
        with pytest.raises(EmbeddedError, match="already running"):
            forget(tmp_path)
        assert (tmp_path / "redis").is_dir()


def test_fresh_is_for_stores_of_the_hubs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_STATE", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody@db.example/hub")
    done = CliRunner().invoke(cli.main, ["dev", "--fresh"])
    assert done.exit_code == 2
    assert "DATABASE_URL" in done.output
