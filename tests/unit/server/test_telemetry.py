"""What a log line holds, and what it never does."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from engine.ports import Secret
from server.telemetry import configure_logging, redact


@contextmanager
def configured() -> Iterator[None]:
    """Log as the service does; in the test itself, for pytest sets up its own handlers around a test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("info")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_secrets_are_replaced_wherever_they_are() -> None:
    event = {
        "message": "connected",
        "venue": "v1",
        "key": Secret("one"),
        "apiKey": "two",
        "headers": {"Authorization": "Bearer three", "Accept": "*/*"},
        "tokens": [Secret("four"), {"refresh_token": "five"}],
        "client_secret": "six",
        "code": "seven",
    }
    shown = redact(None, "", event)
    assert shown == {
        "message": "connected",
        "venue": "v1",
        "key": "***",
        "apiKey": "***",
        "headers": {"Authorization": "***", "Accept": "*/*"},
        "tokens": ["***", {"refresh_token": "***"}],
        "client_secret": "***",
        "code": "***",
    }


def test_an_error_code_is_no_secret() -> None:
    assert redact(None, "", {"code": "SYNC_FAILED"}) == {"code": "SYNC_FAILED"}
    assert redact(None, "", {"code": "SYNC"}) == {"code": "***"}


def test_an_absent_secret_may_be_seen_to_be_absent() -> None:
    assert redact(None, "", {"refresh_token": None}) == {"refresh_token": None}


def test_a_line_is_json_with_level_time_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    with configured(), structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("test").info("integration.connected", provider="juniper")
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["message"], line["provider"]) == ("info", "integration.connected", "juniper")
    assert (line["request_id"], line["service"]) == ("r1", "integration-hub")
    assert line["timestamp"].endswith("Z")


def test_other_libraries_log_the_same_way_and_addresses_stay_out(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        logging.getLogger("another.library").info("started")
        logging.getLogger("httpx").info("GET https://juniper.example/?api_key=1")
    [line] = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["level"]) == ("started", "info")


def test_what_is_less_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        structlog.get_logger("test").debug("detail")
    assert capsys.readouterr().out == ""


def test_an_exception_is_told_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            structlog.get_logger("test").exception("request.failed")
    line = json.loads(capsys.readouterr().out)
    assert "RuntimeError: broken" in line["exception"]
