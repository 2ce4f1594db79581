"""`hub plan` as its user sees it, over an API that answers from memory."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from rich.console import Console

from server import showing
from server.dev import ApiClient, ApiError

ROW: dict[str, Any] = {
    "entity": "customer",
    "resource": "customer",
    "remote_id": None,
    "writes": True,
    "reason": "because",
    "outcome": None,
    "outcome_reason": None,
    "fields": [],
}
EMAIL = {
    "field": "email",
    "path": "mail",
    "ours": "new@[b]",
    "before": "old@",
    "after": "new@[b]",
    "reason": "changed here",
    "conflict": False,
}
ROWS = [
    {**ROW, "local_id": "c-1", "action": "update", "fields": [EMAIL]},
    {**ROW, "local_id": "c-2", "action": "conflict", "writes": False},
    {**ROW, "local_id": "c-3", "action": "skip", "writes": False},
]
STATE = {"id": "p-1", "status": "ready", "writes": 1, "error": None,
         "counts": {"update": 1, "conflict": 1, "skip": 1}}  # fmt: skip


class Hub:
    """An API with one plan: made after a look at it, and applied with these outcomes."""

    def __init__(self, *outcomes: tuple[str, str | None], status: str = "completed") -> None:
        self.asked: list[str] = []
        self.outcomes = outcomes
        self.status = status
        self.state = dict(STATE)
        self.api = ApiClient("http://hub.test", "token")
        self.api.http = httpx.AsyncClient(
            transport=httpx.MockTransport(self.answer), base_url="http://hub.test"
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/integrations/sync/juniper/sync")
        self.asked.append(f"{request.method} {path}")
        data: Any
        if path == "/plan":
            data = {"planId": "p-1", "status": "making"}
        elif path == "/plan/p-1":
            making = self.asked.count("GET /plan/p-1") == 1
            data = {**self.state, "status": "making"} if making else self.state
        elif path == "/plan/p-1/rows":
            number = int(request.url.params.get("cursor", "0"))
            more = str(number + 1) if number + 1 < len(ROWS) else None
            meta = {"next_cursor": more}
            row = ROWS[number]
            if "POST /plan/p-1/apply" in self.asked and number < len(self.outcomes):
                row = row | dict(zip(("outcome", "outcome_reason"), self.outcomes[number], strict=True))
            return httpx.Response(200, json={"success": True, "data": [row], "meta": meta})
        elif path == "/plan/p-1/apply":
            data = {"syncId": "s-1"}
        else:
            assert path == "/s-1"
            data = {"ended": True, "status": self.status, "error": "no"}
        return httpx.Response(200, json={"success": True, "data": data})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "LOOKS_EVERY", 0.0)


async def show(hub: Hub, **options: Any) -> tuple[int, str]:
    console = Console(width=200, force_terminal=False, record=True, quiet=False)
    async with hub.api:
        with console.capture() as told:
            status = await showing.show_plan(
                hub.api, "juniper", "v-1", "customers", console=console, **options
            )
    return status, told.get()


async def test_a_plan_is_made_and_shown_without_what_is_skipped() -> None:
    hub = Hub()
    status, text = await show(hub)
    assert status == 0
    assert "c-1" in text
    assert "c-3" not in text
    line = next(line for line in text.splitlines() if "old@" in line)
    assert line.split() == ["email", "old@", "new@[b]", "changed", "here"]
    assert "conflict (not written)" in text
    assert text.splitlines()[-1] == "plan p-1: 1 conflict, 1 skip, 1 update; 1 to be written"
    assert hub.asked == [
        "POST /plan",
        *["GET /plan/p-1"] * 2,
        *["GET /plan/p-1/rows"] * 3,
    ]


async def test_it_is_applied_when_that_is_meant() -> None:
    hub = Hub(("changed", "changed since the plan"))
    status, text = await show(hub, sure=lambda writes: writes == 1)
    assert status == 1
    assert "changed customer → customer c-1: changed since the plan" in text
    assert text.splitlines()[-1] == "0 records are written"
    assert "POST /plan/p-1/apply" in hub.asked

    hub = Hub(("done", None))
    assert (await show(hub, sure=lambda writes: True))[0] == 0
    hub = Hub()
    await show(hub, sure=lambda writes: False)
    assert "POST /plan/p-1/apply" not in hub.asked


async def test_one_that_is_there_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    hub = Hub()
    status, _ = await show(hub, plan_id="p-1", json_output=True)
    assert (status, "POST /plan" in hub.asked) == (0, False)
    assert json.loads(capsys.readouterr().out) == {"plan": STATE, "records": ROWS}


async def test_what_failed_is_told() -> None:
    hub = Hub()
    hub.state |= {"status": "failed", "error": "they refuse"}
    with pytest.raises(ApiError, match="the plan couldn't be made: they refuse"):
        await show(hub)


async def test_an_application_that_fails_is_told() -> None:
    with pytest.raises(ApiError, match="applying the plan: no"):
        await show(Hub(status="failed"), sure=lambda writes: True)
