"""The API's reference, written from its OpenAPI document.

As one plain page, without a script and with nothing fetched from elsewhere, and as `docs/reference/api.md`,
which `hub docs` writes.
"""

from html import escape
from typing import Any

import orjson
from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

from engine.reference import GENERATED

_STYLE = """
body{font:16px/1.5 system-ui;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c1c1c}
code,pre{font:14px/1.5 ui-monospace,monospace}pre{background:#f5f5f3;padding:1rem;overflow:auto}
section{border-top:1px solid #ddd;padding-top:.5rem}summary{cursor:pointer}
b{display:inline-block;min-width:3.5rem}
"""


class ReferencePlugin(OpenAPIRenderPlugin):
    """Serves the page at `/schema`."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return page(orjson.loads(self.render_json(request, openapi_schema))).encode()


def page(document: dict[str, Any]) -> str:
    """Write an OpenAPI document as HTML."""
    info = document["info"]
    sections = "".join(
        _operation(method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict)
    )
    schemas = document.get("components", {}).get("schemas", {})
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        + "".join(f"<p>{escape(text)}</p>" for text in info.get("description", "").split("\n\n"))
        + '<p>For programs: <a href="/schema/openapi.json">JSON</a>,'
        ' <a href="/schema/openapi.yaml">YAML</a>.</p>'
        f"{sections}<h2>Bodies</h2>"
        + "".join(_example(name, schema) for name, schema in sorted(schemas.items()))
        + "</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(each['name'])}</code> in {escape(each['in'])}"
        f"{', required' if each.get('required') else ''}. {escape(each.get('description') or '')}</li>"
        for each in operation.get("parameters", [])
    )
    answers = "".join(
        f"<li><b>{escape(status)}</b>{escape(answer.get('description', ''))}{_examples(answer)}</li>"
        for status, answer in operation.get("responses", {}).items()
    )
    body = _reference(_content(operation.get("requestBody") or {}).get("schema", {})).rpartition("/")[2]
    return (
        f"<section><h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3>"
        f"<p><strong>{escape(operation.get('summary') or '')}.</strong> "
        f"{escape(operation.get('description') or '')}</p>"
        + (f'<p>Body: <a href="#{escape(body)}"><code>{escape(body)}</code></a></p>' if body else "")
        + (f"<ul>{parameters}</ul>" if parameters else "")
        + f"<ul>{answers}</ul></section>"
    )


def _reference(schema: dict[str, Any]) -> str:
    """Return where a schema refers to; one with examples of its own does so inside `allOf`."""
    inner = schema["allOf"][0] if "allOf" in schema else schema
    return str(inner.get("$ref", ""))


def _content(part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter((part.get("content") or {}).values()), {})
    return found


def _examples(answer: dict[str, Any]) -> str:
    examples = _content(answer).get("examples") or {}
    return "".join(
        _example(each.get("summary") or name, each.get("value"), anchor=False)
        for name, each in examples.items()
    )


def _example(name: str, value: Any, *, anchor: bool = True) -> str:
    identity = f' id="{escape(name)}"' if anchor else ""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    summary = f"<summary><code>{escape(name)}</code></summary>"
    return f"<details{identity}>{summary}<pre>{escape(text)}</pre></details>"


# --- as Markdown


def markdown(document: dict[str, Any]) -> str:
    """Write an OpenAPI document as Markdown."""
    info = document["info"]
    lines = [
        GENERATED,
        f"# {info['title']}: the API",
        "",
        info["description"].strip(),
        "",
        *_errors(document),
    ]
    for tag in document["tags"]:
        lines += ["", f"## {tag['name']}", "", tag["description"]]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    lines += ["", f"### `{method.upper()} {path}`", "", *_operation_lines(operation)]
    lines += ["", "## Bodies"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += ["", f"### {name}", "", *_schema_lines(schema)]
    return "\n".join(lines) + "\n"


def _errors(document: dict[str, Any]) -> list[str]:
    rows: dict[str, tuple[str, str]] = {}
    for item in document["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                for example in (_content(answer).get("examples") or {}).values():
                    value = example["value"]
                    if value.get("success") is False:
                        rows[value["code"]] = (status, value["error"])
    table = [
        f"| {status} | `{code}` | {sentence} |"
        for code, (status, sentence) in sorted(rows.items(), key=lambda row: (row[1][0], row[0]))
    ]
    return ["## Errors", "", "| Status | Code | For example |", "|---|---|---|", *table]


def _operation_lines(operation: dict[str, Any]) -> list[str]:
    lines = [f"**{operation['summary']}.** {operation.get('description') or ''}".strip()]
    parameters = [
        f"| `{each['name']}` | {each['in']} | {'yes' if each.get('required') else 'no'} "
        f"| {each.get('description') or ''} |"
        for each in operation.get("parameters", [])
    ]
    if parameters:
        lines += ["", "| Parameter | In | Required | About |", "|---|---|---|---|", *parameters]
    body = _type(_content(operation.get("requestBody") or {}).get("schema", {}))
    if body != "any":
        lines += ["", f"Body: {body}"]
    lines += ["", "| Answer | When |", "|---|---|"]
    lines += [
        f"| {status} | {answer['description']} |" for status, answer in sorted(operation["responses"].items())
    ]
    good = next(answer for status, answer in sorted(operation["responses"].items()) if status.startswith("2"))
    for example in (_content(good).get("examples") or {}).values():
        text = orjson.dumps(example["value"], option=orjson.OPT_INDENT_2).decode()
        lines += ["", f"For example, {example['summary']}:", "", "```json", text, "```"]
    return lines


def _schema_lines(schema: dict[str, Any]) -> list[str]:
    about = [schema["description"], ""] if schema.get("description") else []
    if "enum" in schema:
        return [*about, f"One of {', '.join(f'`{value}`' for value in schema['enum'])}."]
    required = schema.get("required", ())
    rows = [
        f"| `{name}` | {_type(each)} | {'yes' if name in required else _default(each)} "
        f"| {each.get('description') or ''} |"
        for name, each in schema.get("properties", {}).items()
    ]
    return [*about, "| Field | Type | Required | About |", "|---|---|---|---|", *rows]


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return f"no; `{orjson.dumps(default).decode()}`" if default not in (None, {}, []) else "no"


def _type(schema: dict[str, Any]) -> str:
    if _reference(schema):
        name = _reference(schema).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "oneOf" in schema:
        return " or ".join(_type(each) for each in schema["oneOf"])
    if "const" in schema:
        return f"`{orjson.dumps(schema['const']).decode()}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(kind, list):
        return " or ".join(kind)
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)
