"""The API's reference as one plain page: no script, and nothing fetched from elsewhere."""

from html import escape
from typing import Any

import orjson
from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

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
        f"<p>{escape(info.get('description', ''))}</p>"
        '<p>For programs: <a href="/schema/openapi.json">JSON</a>,'
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
    body = _content(operation.get("requestBody") or {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
    return (
        f"<section><h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3>"
        f"<p><strong>{escape(operation.get('summary') or '')}.</strong> "
        f"{escape(operation.get('description') or '')}</p>"
        + (f'<p>Body: <a href="#{escape(body)}"><code>{escape(body)}</code></a></p>' if body else "")
        + (f"<ul>{parameters}</ul>" if parameters else "")
        + f"<ul>{answers}</ul></section>"
    )


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
