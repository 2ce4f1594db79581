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
from engine.manifest import AuthMethod, CallSpec, ConnectionValue, Connector
from engine.ports import Credentials, Secret

# What may stand in a server's address where no pattern says it: it can't lead away from the rest of the host.
HOST_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
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
    """Return the server's address, without a slash at the end; raises ManifestError when there is none.

    A value of `connection` is looked at once more: another host would be handed the credentials.
    """
    written = connector.servers.get(environment)
    if written is None:
        known = ", ".join(connector.servers)
        raise ManifestError(f"{connector.name} has no server for `{environment}`; it has {known}")

    def fill(found: re.Match[str]) -> str:
        name = found.group(1)
        try:
            value = str(_find(name, scope))
        except ExpressionError as error:
            raise ManifestError(f"the server of {connector.name} isn't known: {error.message}") from None
        declared = connector.connection.get(name.removeprefix("connection."))
        right = fits(declared, value) if declared and declared.pattern else HOST_TEXT.fullmatch(value)
        if not right:
            raise ManifestError(f"the server of {connector.name} isn't known: `{{{name}}}` has a wrong value")
        return value

    url = PLACEHOLDER.sub(fill, written).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
        raise ManifestError(
            f"the server of {connector.name} isn't an address such as https://api.example.com"
        )
    return url


def fits(declared: ConnectionValue, value: Any) -> bool:
    """Say whether a value, or each of a list, is as the manifest declares it."""
    each = value if isinstance(value, list | tuple) else [value]
    return declared.pattern is None or all(re.fullmatch(declared.pattern, str(one)) for one in each)


def misfits(connector: Connector, values: Mapping[str, Any]) -> list[ConnectionValue]:
    """Return the declared values of `connection` that don't fit their pattern."""
    known = connector.connection
    return [known[name] for name, value in values.items() if name in known and not fits(known[name], value)]


def kept_of_credentials(method: AuthMethod, credentials: Mapping[str, Secret]) -> dict[str, Any]:
    """Return the values of `connection` that the credentials themselves hold, such as a key's suffix.

    A value that isn't there is left out.
    """
    scope = {name: secret.reveal() for name, secret in credentials.items()}
    kept: dict[str, Any] = {}
    for name, expression in method.keep.items():
        try:
            value = expression.evaluate(scope, scope)
        except ExpressionError:  # an optional credential that wasn't given
            continue
        if value is not None:
            kept[name] = value
    return kept


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
