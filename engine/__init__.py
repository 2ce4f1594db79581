"""The engine: read and write any provider by its manifest. Knows no database, queue or web framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.connecting import connect
    from engine.manifest import load_connector, load_platform
    from engine.ports import Credentials, Secret

__all__ = ["Credentials", "Secret", "connect", "load_connector", "load_platform"]

_HOMES = {
    "Credentials": "engine.ports",
    "Secret": "engine.ports",
    "connect": "engine.connecting",
    "load_connector": "engine.manifest",
    "load_platform": "engine.manifest",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a command that lints needs no HTTP client."""
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
