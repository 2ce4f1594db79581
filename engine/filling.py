"""Fill the placeholders of a manifest's calls: `/v1/customers/{id}` and the server's address.

A value from outside fills one segment of a path and no more: it can't climb out of it or add a query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from engine.calls import Request
from engine.errors import ExpressionError, ManifestError
from engine.expressions import ABSENT, Path
from engine.manifest import AuthMethod, CallSpec, Connector
from engine.ports import Credentials

PLACEHOLDER = re.compile(r"\{\{?\s*([A-Za-z_][\w.\[\]]*)\s*\}?\}")


def fill_path(path: str, scope: Mapping[str, Any]) -> str:
    """Return a path with each `{name}` replaced by its value, quoted; raises ExpressionError without one."""
    if "{" not in path:
        return path
    return PLACEHOLDER.sub(lambda found: _segment(found.group(1), scope), path)


def _segment(name: str, scope: Mapping[str, Any]) -> str:
    value = _find(name, scope)
    quoted = quote(str(value), safe="")
    if quoted in (".", ".."):
        raise ExpressionError(f"`{{{name}}}` can't be `{quoted}`")
    return quoted


def _find(name: str, scope: Mapping[str, Any]) -> str | int:
    value = _path(name).find(scope)
    if value is ABSENT or value is None or value == "":
        raise ExpressionError(f"`{{{name}}}` has no value here")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ExpressionError(f"`{{{name}}}` must be text or a whole number")
    return value


@lru_cache(maxsize=1024)
def _path(text: str) -> Path:
    return Path.parse(text)


def server_url(connector: Connector, environment: str, scope: Mapping[str, Any]) -> str:
    """Return the server's address, without a slash at the end; raises ManifestError when there is none."""
    written = connector.servers.get(environment)
    if written is None:
        known = ", ".join(connector.servers)
        raise ManifestError(f"{connector.name} has no server for `{environment}`; it has {known}")
    url = PLACEHOLDER.sub(lambda found: str(_find(found.group(1), scope)), written).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
        raise ManifestError(
            f"the server of {connector.name} isn't an address such as https://api.example.com"
        )
    return url


def plain_credentials(method: AuthMethod, credentials: Credentials) -> dict[str, str]:
    """Return the credential values that aren't secret, for templates."""
    return {
        each.name: credentials.values[each.name].reveal()
        for each in method.credentials
        if not each.secret and each.name in credentials.values
    }


def fill_call(call: CallSpec, scope: Mapping[str, Any]) -> Request:
    """Return the request a call describes; raises ExpressionError when a value it needs is missing."""
    if call.more:
        scope = dict(scope)
        for name, template in call.more.items():
            scope[name] = template.render(scope)
    query = call.query.render(scope) if call.query else {}
    headers = call.headers.render(scope) if call.headers else {}
    body = call.body.render(scope) if call.body else None
    return Request(call.method, fill_path(call.path, scope), query, headers, body)


def call_label(call: CallSpec) -> str:
    """Name a call as its manifest does, placeholders and all: what budgets and metrics are kept by."""
    return f"{call.method} {call.path}"
