"""The reference pages of the server: its settings and its API, beside those the engine writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
import orjson

from engine.reference import GENERATED, PROJECT, command_line_page, reference_pages
from server.settings import VARIABLES

Json = Mapping[str, Any]


def every_page(commands: click.Group) -> dict[str, str]:
    """Return all reference pages as Markdown by file name; `commands` is the whole command line."""
    from server.app import openapi_document

    return {
        **reference_pages(),
        "command-line.md": command_line_page("hub", commands),
        "settings.md": settings_page(),
        "api.md": api_page(openapi_document()),
    }


# ---- settings ----------------------------------------------------------------------------------------


def settings_page() -> str:
    """Return the page of every environment variable the server reads."""
    lines = [
        GENERATED,
        "# Settings",
        "",
        "Read from the environment once, when a process starts. An empty value counts as unset. Where",
        "something can't be used, all of it is told at once, and the process doesn't start.",
        "",
        "| Variable | Default | What it is |",
        "|---|---|---|",
    ]
    for variable in VARIABLES:
        default = (variable.default or "").replace(f"{PROJECT}/", "")
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{variable.name}` | {shown} | {_cell(variable.about)} |")
    lines += [
        "",
        "## Apps registered with providers",
        "",
        "A connector with OAuth needs the app you registered with its provider:",
        "`<CONNECTOR>_CLIENT_ID` and `<CONNECTOR>_CLIENT_SECRET`, the connector's name in capitals.",
        "`_APP_ID` and `_APP_SECRET` are understood as well. One without the other is an error.",
        "",
    ]
    return "\n".join(lines)


# ---- the API -----------------------------------------------------------------------------------------


def api_page(document: Json) -> str:
    """Return the page of the API, from its OpenAPI document."""
    lines = [GENERATED, "# The API", "", document["info"]["description"].strip(), ""]
    lines += [
        "A running hub serves the same at `/schema`, and the OpenAPI 3.1 document at `/schema/openapi.json`;",
        "`hub openapi` prints it.",
        "",
        "| Call | Does |",
        "|---|---|",
    ]
    operations = list(_operations(document))
    for call, operation in operations:
        lines.append(f"| [`{call}`](#{operation['operationId'].lower()}) | {_cell(operation['summary'])} |")
    for call, operation in operations:
        lines += ["", *_operation_lines(document, call, operation)]
    lines += ["", *_failure_lines(operations)]
    return "\n".join(lines).rstrip() + "\n"


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method in ("get", "post", "put", "patch", "delete"):
            if method in item:
                yield f"{method.upper()} {path}", item[method]


def _operation_lines(document: Json, call: str, operation: Json) -> list[str]:
    lines = [f"## {operation['operationId']}", "", f"`{call}`", ""]
    lines += [f"{operation['summary']}. {operation.get('description', '')}".strip(), ""]
    lines += ["Needs a token." if operation.get("security") else "Open to all.", ""]
    parameters = operation.get("parameters", ())
    if parameters:
        lines += ["| Parameter | In | Takes | What it is |", "|---|---|---|---|"]
        for each in parameters:
            says = f"{'Needed. ' if each.get('required') else ''}{each.get('description', '')}"
            takes = _takes(document, each.get("schema", {}))
            lines.append(f"| `{each['name']}` | {each['in']} | {_cell(takes)} | {_cell(says.strip())} |")
        lines.append("")
    body = operation.get("requestBody")
    if body:
        lines += ["Body:", "", *_fields(document, _content(body).get("schema", {}))]
    lines += ["| Answer | What it means |", "|---|---|"]
    lines += [
        f"| {status} | {_cell(each['description'])} |" for status, each in operation["responses"].items()
    ]
    for status, each in operation["responses"].items():
        if status.startswith("2"):
            for example in _examples(each):
                lines += [
                    "",
                    f"{status}, {example.get('summary', 'for example')}:",
                    "",
                    *_json(example["value"]),
                ]
    return lines


def _content(holder: Json) -> Json:
    return next(iter(holder.get("content", {}).values()), {})


def _examples(response: Json) -> list[Json]:
    return [each for each in _content(response).get("examples", {}).values() if "value" in each]


def _fields(document: Json, schema: Json) -> list[str]:
    schema = _resolved(document, schema)
    needed = set(schema.get("required", ()))
    lines = ["| Field | Takes | Default | What it is |", "|---|---|---|---|"]
    for name, each in schema.get("properties", {}).items():
        found = _resolved(document, each)
        default = "needed" if name in needed else _default(each, found)
        says = str(each.get("description") or found.get("description", ""))
        takes = _takes(document, each)
        lines.append(f"| `{name}` | {_cell(takes)} | {_cell(default)} | {_cell(says)} |")
        for inner, its in found.get("properties", {}).items():
            kept = _default(its, _resolved(document, its))
            about = _cell(str(its.get("description", "")))
            lines.append(f"| `{name}.{inner}` | {_cell(_takes(document, its))} | {_cell(kept)} | {about} |")
    return [*lines, ""]


def _default(schema: Json, resolved: Json) -> str:
    found = schema.get("default", resolved.get("default"))
    return "" if found is None or found == {} else f"`{orjson.dumps(found).decode()}`"


def _takes(document: Json, schema: Json) -> str:
    found = _resolved(document, schema)
    if "enum" in found:
        return ", ".join(f"`{each}`" for each in found["enum"])
    parts = [each for key in ("oneOf", "anyOf") for each in found.get(key, ()) if each.get("type") != "null"]
    if parts:
        return " or ".join(dict.fromkeys(_takes(document, each) for each in parts))
    kind = found.get("type", "anything")
    kinds = [kind] if isinstance(kind, str) else [each for each in kind if each != "null"]
    low, high = found.get("minimum"), found.get("maximum")
    bounds = f", {low:g} to {high:g}" if low is not None and high is not None else ""
    form = f" ({found['format']})" if "format" in found else ""
    return " or ".join(kinds) + form + bounds


def _resolved(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        schema = document["components"]["schemas"][name]
    return schema


def _failure_lines(operations: list[tuple[str, Json]]) -> list[str]:
    """List every error code once, with its status and a sentence."""
    codes: dict[str, tuple[str, str]] = {}
    body: Json | None = None
    for _, operation in operations:
        for status, each in operation["responses"].items():
            for example in _examples(each):
                value = example["value"]
                if isinstance(value, Mapping) and value.get("success") is False:
                    codes[value["code"]] = (status, value["error"])
                    body = body or value
    lines = ["## Failures", "", "Every answer but a good one has the same body:", ""]
    lines += _json(body) if body else []
    lines += ["", "| Code | Status | A sentence it comes with |", "|---|---|---|"]
    found = sorted(codes.items(), key=lambda each: (each[1][0], each[0]))
    return [*lines, *(f"| `{code}` | {status} | {_cell(says)} |" for code, (status, says) in found)]


def _json(value: Any) -> list[str]:
    return ["```json", orjson.dumps(value, option=orjson.OPT_INDENT_2).decode(), "```"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
