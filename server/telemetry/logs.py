"""Logs: one JSON object a line, with no secret and no record in it."""

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog
from structlog.contextvars import get_contextvars

from engine.errors import HubError
from engine.ports import Secret

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_SECRET_NAMES = re.compile(
    r"(?i)secret|password|authorization|cookie|credential|api_?key|access_?token|refresh_?token|verifier"
    r"|^(token|code|state)$"
)
_OUR_CODES = re.compile(r"[A-Z]+(_[A-Z]+)+")  # error codes are no secrets, whatever the field is called
_SERVICE = "integration-hub"
_PLAIN = frozenset({str, int, float, bool, type(None)})
_OURS = ("server", "engine")
_SERVING = ("uvicorn",)  # says when it starts and stops


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Write every log event as one JSON object a line, secrets replaced by `***`; to standard output
    unless a command's answer goes there.
    """
    shared: list[structlog.typing.Processor] = [
        _name_service,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_type_and_place),
        structlog.processors.EventRenamer("message"),
        redact,
    ]
    # What the hub says itself doesn't go through `logging`, which takes six times as long for a line.
    global _at_info
    lines = _Lines(stream or sys.stdout)
    structlog.configure(
        processors=[*shared, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    wanted = logging.getLevelNamesMapping()[level.upper()]
    _at_info = lines if wanted <= logging.INFO else None
    # What libraries say below a warning may hold addresses with keys, headers, parameters and answers: at
    # `debug` one of them writes the very data keys of the vault. So only what is ours follows the level.
    root.setLevel(max(wanted, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(wanted)
    for name in _SERVING:
        logging.getLogger(name).setLevel(max(wanted, logging.INFO))


def say(message: str, **fields: Any) -> None:
    """Log an event at level `info` as a logger would, in a third of the time: for what is said very often."""
    if _at_info is not None:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        event = {"service": _SERVICE, **get_contextvars(), **fields}
        _at_info.info(
            _dumps(redact(None, "", {**event, "level": "info", "timestamp": now, "message": message}))
        )


class _Lines:
    """Writes lines. That nobody reads them any more stops no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def info(self, line: str) -> None:
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # a pipe without a reader, a stream that was closed
            return

    debug = warning = error = critical = info


_at_info: _Lines | None = None  # where `say` writes; None for nowhere


def _as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return _dumps(event)


def _type_and_place(exc_info: ExcInfo) -> str:
    """Write a traceback whose errors say what they are, and only if they are ours what it is about.

    The text of a database's or a library's error may hold a record or a credential.
    """
    return "\n".join(_told(exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "then:"
    if error.__traceback__ is not None:
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    yield f"{kind}: {error.message}" if isinstance(error, HubError) else kind
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield "of them:"
        yield from _told(each, seen)


def _name_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {"service": _SERVICE, **event}


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace secrets in a log event: every `Secret`, and every value whose name says that it is one."""
    return {name: _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if type(value) in _PLAIN and not _is_secret(name):
        return value
    if isinstance(value, Secret) or (value is not None and _is_secret(name)):
        return value if isinstance(value, str) and _OUR_CODES.fullmatch(value) else "***"
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", item) for item in value]
    return value


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
