"""`hub plan`: make a plan through the API, show it as a table, apply it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.dev import API, ApiClient, ApiError

LOOKS_EVERY = 0.25  # seconds
COLORS: Mapping[str, str] = {
    "create": "green",
    "update": "cyan",
    "archive": "magenta",
    "delete": "magenta",
    "conflict": "yellow",
    "error": "red",
    "skip": "dim",
}
LONGEST = 60  # characters of a value


async def show_plan(
    api: ApiClient,
    provider: str,
    venue: str,
    sync_type: str,
    *,
    plan_id: str | None = None,
    sure: Callable[[int], bool] | None = None,
    json_output: bool = False,
    console: Console | None = None,
) -> int:
    """Make a plan, or take up one, and show it; apply it when `sure` says so of the number of its writes.

    Returns 0, or 1 when a record has an error or wasn't written as planned.
    """
    console = console or Console(stderr=json_output)
    path = f"{API}/sync/{provider}/sync/plan"
    if plan_id is None:
        answer = await api.request("POST", path, json={"venueId": venue, "syncType": sync_type})
        plan_id = str(answer["data"]["planId"])
    place, whose = f"{path}/{plan_id}", {"venueId": venue}
    state = await _known(api, place, whose)
    while state["status"] == "making":
        await asyncio.sleep(LOOKS_EVERY)
        state = await _known(api, place, whose)
    if state["status"] == "failed":
        raise ApiError(f"the plan couldn't be made: {state['error']}")
    rows = await _rows(api, place, whose)
    if not json_output:
        tell_plan(console, state, rows)
    if sure is not None and state["writes"] and sure(state["writes"]):
        await _apply(api, provider, place, venue)
        state = await _known(api, place, whose)
        rows = await _rows(api, place, whose)
        if not json_output:
            tell_outcome(console, rows)
    if json_output:
        sys.stdout.write(json.dumps({"plan": state, "records": rows}) + "\n")
    left = any(row["outcome"] in ("failed", "changed") for row in rows)
    return 1 if left or any(row["action"] == "error" for row in rows) else 0


async def _known(api: ApiClient, place: str, whose: Mapping[str, str]) -> dict[str, Any]:
    return dict((await api.request("GET", place, params=whose))["data"])


async def _rows(api: ApiClient, place: str, whose: Mapping[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = {**whose, "limit": "200", **({"cursor": cursor} if cursor else {})}
        answer = await api.request("GET", f"{place}/rows", params=params)
        rows += answer["data"]
        cursor = answer["meta"]["next_cursor"]
        if cursor is None:
            return rows


async def _apply(api: ApiClient, provider: str, place: str, venue: str) -> None:
    answer = await api.request("POST", f"{place}/apply", json={"venueId": venue, "wait": 0})
    sync_id = str(answer["data"]["syncId"])
    state = await api.sync_progress(provider, sync_id)
    while not state["ended"]:
        await asyncio.sleep(LOOKS_EVERY)
        state = await api.sync_progress(provider, sync_id)
    if state["status"] != "completed":
        raise ApiError(f"applying the plan: {state['error'] or state['status']}")


def tell_plan(console: Console, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what becomes of each record, field by field; those that nothing becomes of only as numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("action", "record", "field", "there", "then", "why"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        if row["action"] == "skip":
            continue
        color, name = COLORS[row["action"]], f"{row['entity']} → {row['resource']} {row['local_id']}"
        action = f"[{color}]{row['action']}[/]" + ("" if row["writes"] else " [dim](not written)[/]")
        table.add_row(action, escape(name), "", "", "", escape(row["reason"]))
        for each in row["fields"]:
            named = each["field"] or each["path"] or ""
            values = (_shown(each["before"]), _shown(each["after"]))
            table.add_row("", "", escape(named), *values, f"[dim]{escape(each['reason'])}[/]")
    if table.row_count:
        console.print(table)
    counts = ", ".join(f"{number} {action}" for action, number in sorted(state["counts"].items()))
    console.print(f"plan {state['id']}: {counts or 'nothing to look at'}; {state['writes']} to be written")


def tell_outcome(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print how many records were written, and why the others weren't."""
    for row in rows:
        if row["outcome"] in ("failed", "changed"):
            name = f"{row['entity']} → {row['resource']} {row['local_id']}"
            console.print(f"[red]{row['outcome']}[/] {escape(name)}: {escape(row['outcome_reason'] or '')}")
    console.print(f"{sum(row['outcome'] == 'done' for row in rows)} records are written")


def _shown(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
