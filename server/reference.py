"""Every reference page: those the engine writes, and those of the server, its settings and its API."""

from __future__ import annotations

import click

from engine.reference import GENERATED, PROJECT, command_line_page, reference_pages
from server.environment import UNNEEDED
from server.settings import VARIABLES
from server.telemetry.metrics import METRICS, Counter, Histogram, State


def every_page(commands: click.Group) -> dict[str, str]:
    """Return all reference pages as Markdown by file name; `commands` is the whole command line."""
    from server.api.reference import markdown
    from server.app import openapi_document

    return {
        **reference_pages(),
        "command-line.md": command_line_page("hub", commands),
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "api.md": markdown(openapi_document()),
    }


def metrics_page() -> str:
    """Return the page of every metric at `/metrics`."""
    kinds = {State: "state", Counter: "counter", Histogram: "histogram"}
    lines = [
        GENERATED,
        "# Metrics",
        "",
        "What `GET /metrics` answers, in Prometheus' text format. Each API process answers for all of them.",
        "[How to watch the hub](../how-to/watch-it-run.md) says how to ask, and what to look at.",
        "",
        "- A **state** is how things stand, read from PostgreSQL and kept for a few seconds.",
        "- A **counter** grows with what happens. Processes bring theirs to Redis every two seconds; where",
        "  that is emptied they begin at zero again.",
        "- A **histogram** counts times in seconds by size, as `NAME_bucket`, `NAME_sum` and `NAME_count`.",
        "",
        "| Metric | Kind | Labels | What it says |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {kinds[type(metric)]} | {labels} | {metric.about} |")
    lines.append("")
    return "\n".join(lines)


def settings_page() -> str:
    """Return the page of every environment variable the server reads."""
    lines = [
        GENERATED,
        "# Settings",
        "",
        "Read from the environment once, when a process starts. An empty value counts as unset. Where",
        "something can't be used, all of it is told at once, and the process doesn't start. A variable that",
        "begins with `HUB_` and that nothing reads is named in the log, with the nearest name that is read.",
        "",
        "Each may be in a file instead, for secrets that are mounted: `JWT_SECRET_FILE` names the file that",
        "holds `JWT_SECRET`. White space at its ends doesn't count.",
        "",
        "| Variable | Default | What it is |",
        "|---|---|---|",
    ]
    for variable in VARIABLES:
        default = (variable.default or "").replace(f"{PROJECT}/", "")
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{variable.name}` | {shown} | {variable.about} |")
    lines += [
        "",
        "## Apps registered with providers",
        "",
        "A connector with OAuth needs the app you registered with its provider:",
        "`<CONNECTOR>_CLIENT_ID` and `<CONNECTOR>_CLIENT_SECRET`, the connector's name in capitals.",
        "`_APP_ID` and `_APP_SECRET` are understood as well. One without the other is an error.",
        "",
        "What a provider signs webhooks with, where that isn't kept with each connection, is",
        "`<CONNECTOR>_WEBHOOK_SECRET`, `_WEBHOOK_SIGNATURE_KEY` or `_WEBHOOK_TOKEN`.",
        "",
        "## The original service's settings",
        "",
        "All of them work under their names, as above. These are accepted and not needed:",
        "",
        "| Variable | Why |",
        "|---|---|",
        *(f"| `{unneeded.name}` | {unneeded.why[0].upper()}{unneeded.why[1:]}. |" for unneeded in UNNEEDED),
        "",
        "## The demo with real providers",
        "",
        "`hub dev --real` alone also reads these:",
        "",
        "- `<CONNECTOR>_<CREDENTIAL>`: a value that a venue would type in to connect, both names in",
        "  capitals, such as `JUNIPER_APIKEY`.",
        "- `HUB_PROVIDER_ENVIRONMENT`: which of a manifest's servers is called, `production` unless it",
        "  says `sandbox`.",
        "",
    ]
    return "\n".join(lines)
