"""The API's reference, written from its OpenAPI document.

As one page on which every operation can be tried, with nothing fetched from elsewhere, and as
`docs/reference/api.md`, which `hub docs` writes.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import orjson
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin, YamlRenderPlugin

from engine.reference import GENERATED
from server.api.openapi import ROLES, operations, resolve

Json = dict[str, Any]

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1d1d1b;--soft:#5d5b56;--line:#dddad3;--shade:#f5f4f1;
--get:#1d5fa8;--post:#17693f;--put:#8a5a00}
@media(prefers-color-scheme:dark){:root{--page:#181817;--text:#ecebe6;--soft:#a9a69e;--line:#3a3934;
--shade:#22221f;--get:#7fb4ee;--post:#6fce9b;--put:#e2b35c}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;
background:var(--page);color:var(--text)}
code,pre,textarea{font:14px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
pre{background:var(--shade);padding:.75rem;overflow:auto;border-radius:.4rem}
header{position:sticky;top:0;background:var(--page);border-bottom:1px solid var(--line);padding:.75rem 0;
display:flex;gap:1rem;flex-wrap:wrap;z-index:1}
header label{flex:1 1 16rem}
label{display:block;color:var(--soft);font-size:.9rem}
input,textarea{width:100%;padding:.4rem .5rem;font-size:14px;color:inherit;background:var(--shade);
border:1px solid var(--line);border-radius:.3rem}
textarea{min-height:7rem}
button{font:inherit;padding:.3rem 1rem;border:1px solid var(--line);border-radius:.3rem;cursor:pointer;
background:var(--shade);color:inherit}
.operation{border-top:1px solid var(--line);padding:.4rem 0}
summary{cursor:pointer}
.method{display:inline-block;min-width:3.5rem;font-weight:600;color:var(--get)}
.post{color:var(--post)}.put{color:var(--put)}
form{display:grid;gap:.6rem;margin:.75rem 0}
.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0}
"""
# Sends an operation's form to this server and shows the answer. The token stays in its field.
_SCRIPT = """
'use strict';
const token = document.getElementById('token'), wanted = document.getElementById('wanted');
wanted.addEventListener('input', () => {
  const words = wanted.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const each of document.querySelectorAll('.operation')) {
    const text = each.dataset.text;
    each.hidden = !words.every((word) => text.includes(word));
  }
});
for (const form of document.querySelectorAll('form[data-path]')) {
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const shown = form.querySelector('output'), headers = {};
    let path = form.dataset.path;
    const query = new URLSearchParams();
    for (const field of form.querySelectorAll('input[data-in]')) {
      const { in: place, name } = field.dataset;
      if (place === 'path') path = path.replace(`{${name}}`, encodeURIComponent(field.value));
      else if (field.value && place === 'query') query.set(name, field.value);
      else if (field.value && place === 'header') headers[name] = field.value;
    }
    const body = form.querySelector('textarea');
    if (body) headers['Content-Type'] = 'application/json';
    if (token.value.trim()) headers.Authorization = `Bearer ${token.value.trim()}`;
    const address = path + (query.size ? `?${query}` : '');
    shown.textContent = 'Waiting…';
    try {
      const method = form.dataset.method;
      const answer = await fetch(address, { method, headers, body: body ? body.value : undefined });
      const kind = answer.headers.get('content-type') || '';
      let text = kind.includes('zip') ? `(${kind})` : await answer.text();
      if (kind.includes('json')) text = JSON.stringify(JSON.parse(text), null, 2);
      const told = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join('\\n');
      const parts = [`${method} ${address}`, `${answer.status} ${answer.statusText}`, told, text];
      shown.textContent = parts.join('\\n\\n');
    } catch (error) {
      shown.textContent = `No answer: ${error.message}`;
    }
  });
}
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src '{_hash(_STYLE)}'; "
    f"script-src '{_hash(_SCRIPT)}'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Once:
    """Renders once: the document never changes, anybody may ask for it, and writing it takes seconds."""

    _rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if self._rendered is None:
            self._rendered = super().render(request, openapi_schema)  # type: ignore[misc]  # of what it is mixed into
        return self._rendered


class _Page(OpenAPIRenderPlugin):
    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return page(orjson.loads(self.render_json(request, openapi_schema))).encode()


class ReferencePlugin(_Once, _Page):
    """Serves the page at `/schema`."""


class JsonPlugin(_Once, JsonRenderPlugin):
    """Serves the document as JSON."""


class YamlPlugin(_Once, YamlRenderPlugin):
    """Serves the document as YAML."""


def page(document: Json) -> str:
    """Write an OpenAPI document as HTML."""
    info = document["info"]
    by_tag = {tag["name"]: tag for tag in document["tags"]}
    sections = "".join(
        f"<h2>{escape(name)}</h2><p>{escape(tag['description'])}</p>"
        + "".join(
            _operation(document, method, path, operation)
            for path, method, operation in operations(document)
            if name in operation["tags"]
        )
        for name, tag in by_tag.items()
    )
    sent = "".join(
        _operation(document, method, name, operation)
        for name, method, operation in operations(document, "webhooks")
    )
    schemas = document.get("components", {}).get("schemas", {})
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        + "".join(f"<p>{escape(text)}</p>" for text in info.get("description", "").split("\n\n"))
        + '<p>For programs: <a href="/schema/openapi.json">JSON</a>,'
        ' <a href="/schema/openapi.yaml">YAML</a>.</p>'
        '<header><label>Find <input id="wanted" type="search" placeholder="sync history"></label>'
        '<label>Token, sent with what you try <input id="token" type="password" autocomplete="off"></label>'
        "</header>"
        + sections
        + (f"<h2>What the hub sends</h2>{sent}" if sent else "")
        + "<h2>Bodies</h2>"
        + "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
        + f"<script>{_SCRIPT}</script></body></html>"
    )


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    called = path.startswith("/")
    words = f"{method} {path} {operation['summary']} {' '.join(operation.get('tags', ()))}".lower()
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}{_examples(document, answer)}</td>"
        "</tr>"
        for status, answer in _answers(document, operation)
    )
    callers = f'<p class="soft">{escape(_callers(operation))}</p>' if called else ""
    return (
        f'<details class="operation" id="{escape(operation["operationId"])}" data-text="{escape(words)}">'
        f'<summary><span class="method {method}">{method.upper()}</span> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary>"
        f"<p>{escape(operation.get('description') or '')}</p>{callers}"
        + (_form(document, method, path, operation) if called else _body_of(document, operation))
        + f"<table><tr><th>Answer</th><th>When</th></tr>{answers}</table></details>"
    )


def _form(document: Json, method: str, path: str, operation: Json) -> str:
    fields = "".join(
        f"<label><code>{escape(each['name'])}</code>{', required' if each.get('required') else ''}. "
        f"{escape(each.get('description') or '')}"
        f'<input data-in="{each["in"]}" data-name="{escape(each["name"])}" '
        f'placeholder="{escape(str(each.get("example", "")))}"'
        f"{' required' if each.get('required') else ''}></label>"
        for each in operation["parameters"]
    )
    return (
        f'<form data-method="{method.upper()}" data-path="{escape(path)}">{fields}'
        f"{_body_of(document, operation)}<div><button>Send</button></div><pre><output></output></pre></form>"
    )


def _body_of(document: Json, operation: Json) -> str:
    content = _content(operation.get("requestBody") or {})
    if not content:
        return ""
    name = _reference(content["schema"]).rpartition("/")[2]
    values = [resolve(document, each)["value"] for each in content.get("examples", {}).values()]
    shown = escape(_json(values[0])) if values else ""
    about = f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' if name else "JSON"
    return f"<label>Body: {about}<textarea>{shown}</textarea></label>"


def _answers(document: Json, operation: Json) -> Iterator[tuple[str, Json]]:
    for status, answer in sorted(operation["responses"].items()):
        yield status, resolve(document, answer)


def _callers(operation: Json) -> str:
    roles = operation.get("x-roles")
    return f"For {', '.join(roles)}." if roles else "Open to all."


def _reference(schema: Json) -> str:
    """Return what a schema refers to, or nothing."""
    return str(schema.get("$ref", ""))


def _content(part: Json) -> Json:
    found: Json = next(iter((part.get("content") or {}).values()), {})
    return found


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _examples(document: Json, answer: Json) -> str:
    found = (resolve(document, each) for each in (_content(answer).get("examples") or {}).values())
    return "".join(
        f"<details><summary>{escape(each['summary'])}</summary><pre>{escape(_json(each['value']))}</pre></details>"
        for each in found
    )


def _schema(name: str, schema: Json) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(_plain_type(each))}</td>"
        f"<td>{escape(each.get('description') or '')}</td></tr>"
        for field, each in schema.get("properties", {}).items()
    )
    shown = "".join(f"<pre>{escape(_json(each))}</pre>" for each in schema.get("examples", ())[:1])
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{escape(schema.get('description') or '')}</p><table>{rows}</table>{shown}</details>"
    )


def _plain_type(schema: Json) -> str:
    return _type(schema).replace("`", "").replace("](", " (").replace("[", "")


# --- as Markdown


def markdown(document: Json) -> str:
    """Write an OpenAPI document as Markdown."""
    info = document["info"]
    lines = [
        GENERATED,
        f"# {info['title']}: the API",
        "",
        info["description"].strip(),
        "",
        *_errors(document),
        "",
        *_access(document),
    ]
    for tag in document["tags"]:
        lines += ["", f"## {tag['name']}", "", tag["description"]]
        for path, method, operation in operations(document):
            if tag["name"] in operation["tags"]:
                lines += [
                    "",
                    f"### `{method.upper()} {path}`",
                    "",
                    *_operation_lines(document, operation),
                ]
    if document.get("webhooks"):
        lines += ["", "## What the hub sends"]
        for name, _, operation in operations(document, "webhooks"):
            lines += ["", f"### `{name}`", "", *_operation_lines(document, operation)]
    lines += ["", "## Bodies"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += ["", f"### {name}", "", *_schema_lines(schema)]
    return "\n".join(lines) + "\n"


def _errors(document: Json) -> list[str]:
    rows: dict[str, tuple[str, str]] = {}
    for _, _, operation in operations(document):
        for status, answer in _answers(document, operation):
            for example in (_content(answer).get("examples") or {}).values():
                value = resolve(document, example)["value"]
                if isinstance(value, dict) and value.get("success") is False:
                    rows[value["code"]] = (status, value["error"])
    table = [
        f"| {status} | `{code}` | {sentence} |"
        for code, (status, sentence) in sorted(rows.items(), key=lambda row: (row[1][0], row[0]))
    ]
    return ["## Errors", "", "| Status | Code | For example |", "|---|---|---|", *table]


_VENUE_WORDS: Mapping[str | None, tuple[str, str]] = {
    "path": ("in the path", "404"),
    "query": ("`venueId` in the query", "400"),
    "body": ("`venueId` in the body", "400"),
    None: ("", ""),
}


def _access(document: Json) -> list[str]:
    """Return the table of who may call what."""
    lines = [
        "## Who may call what",
        "",
        "Without a token it is 401, with a role that isn't ticked 403. A venue that isn't the caller's is",
        "403, too, whether or not it exists; an `admin` may act for every venue.",
        "",
        f"| Route | {' | '.join(f'`{role}`' for role in ROLES)} | Venue | Without it |",
        "|---|---|---|---|---|---|",
    ]
    for path, method, operation in operations(document):
        roles = operation["x-roles"]
        marks = ["✓" if role in roles else "" for role in ROLES] if roles else ["all"] * len(ROLES)
        place, without = _VENUE_WORDS[operation["x-venue"]]
        optional = operation["x-venue"] is not None and not operation["x-venue-required"]
        shown = f"{place}, if at all" if optional else place
        told = "" if optional else without
        lines.append(f"| `{method.upper()} {path}` | {' | '.join(marks)} | {shown} | {told} |")
    return lines


def _operation_lines(document: Json, operation: Json) -> list[str]:
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
    answers = list(_answers(document, operation))
    lines += [f"| {status} | {answer['description']} |" for status, answer in answers]
    good = next((answer for status, answer in answers if status.startswith("2")), {})
    for example in (_content(good).get("examples") or {}).values():
        shown = resolve(document, example)
        lines += ["", f"For example, {shown['summary']}:", "", "```json", _json(shown["value"]), "```"]
    return lines


def _schema_lines(schema: Json) -> list[str]:
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


def _default(schema: Json) -> str:
    default = schema.get("default")
    return f"no; `{orjson.dumps(default).decode()}`" if default not in (None, {}, []) else "no"


def _type(schema: Json) -> str:
    if _reference(schema):
        name = _reference(schema).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "const" in schema:
        return f"`{orjson.dumps(schema['const']).decode()}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)
