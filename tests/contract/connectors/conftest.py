"""The manifests of this project against the providers' stand-ins, through the engine alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from engine import load_connector
from engine.auth import Grant, authorization_url, exchange_code
from engine.manifest import AuthMethod, Connector
from engine.ports import Secret
from engine.transport import open_client
from tests.sandbox.running import Sandbox, running_sandbox

PROJECT = Path(__file__).resolve().parents[3]
REDIRECT = "http://127.0.0.1:9/callback"


@dataclass(frozen=True)
class Standing:
    """A provider's stand-in, and the manifest that is to fit it."""

    name: str
    url: str
    replaces: tuple[str, ...]
    client: tuple[str, str]

    @cached_property
    def connector(self) -> Connector:
        return load_connector(PROJECT / "connectors" / f"{self.name}.yaml")

    @property
    def overrides(self) -> dict[str, str]:
        return dict.fromkeys(self.replaces, self.url)

    def control(self, path: str, body: Any = None) -> Any:
        """Make a control call; GET without a body."""
        method = "GET" if body is None else "POST"
        answer = httpx.request(method, f"{self.url}/_sandbox/{path}", json=body)
        answer.raise_for_status()
        return answer.json()

    def now(self, later: float = 0) -> datetime:
        """Return the stand-in's time, after it has gone on by so many seconds."""
        return datetime.fromisoformat(self.control("clock", {"advance": later})["now"])

    @property
    def calls(self) -> Mapping[str, Any]:
        return dict(self.control("calls"))

    async def consent(self, method: AuthMethod) -> tuple[Grant, dict[str, str]]:
        """Go through the consent page; return the grant and what the redirect carries besides the code."""
        url = authorization_url(
            self.connector,
            method,
            "production",
            client_id=self.client[0],
            redirect_uri=REDIRECT,
            state="s1",
            origin_overrides=self.overrides,
        )
        async with httpx.AsyncClient() as browser:
            page = await browser.get(httpx.URL(url).copy_merge_params({"auto_approve": "1"}))
        assert page.status_code == 302, page.text
        query = parse_qs(urlsplit(page.headers["location"]).query)
        given = {name: values[0] for name, values in query.items()}
        async with open_client(origin_overrides=self.overrides) as http:
            grant = await exchange_code(
                self.connector,
                method,
                "production",
                http=http,
                client_id=self.client[0],
                client_secret=Secret(self.client[1]),
                redirect_uri=REDIRECT,
                code=given.pop("code"),
            )
        return grant, given


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def fresh(sandbox: Sandbox) -> Callable[[Standing], Standing]:
    """Empty a stand-in before a test."""

    def reset(standing: Standing) -> Standing:
        httpx.post(f"{standing.url}/_sandbox/reset").raise_for_status()
        return standing

    return reset
