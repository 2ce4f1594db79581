"""What a log line holds, and what it never does."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
import structlog

from engine.errors import RateLimitedError
from engine.ports import Secret
from server.telemetry import configure_logging, redact
from server.telemetry.logs import say


@contextmanager
def configured(wanted: str = "info", stream: TextIO | None = None) -> Iterator[None]:
    """Log as the service does; in the test itself, for pytest sets up its own handlers around a test."""
    loggers = [logging.getLogger(name) for name in (None, "server", "engine", "uvicorn")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    configure_logging(wanted, stream)
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
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
        structlog.get_logger("server.test").info("integration.connected", provider="juniper")
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["message"], line["provider"]) == ("info", "integration.connected", "juniper")
    assert (line["request_id"], line["service"]) == ("r1", "integration-hub")
    assert line["timestamp"].endswith("Z")


def _fail() -> None:
    """Fail as a database does, whose error repeats what it was given."""
    try:
        try:
            raise ValueError("invalid input for query argument $1: 'ana@example.com'")
        except ValueError as error:
            raise RuntimeError("(DataError) 'ana@example.com'") from error
    except RuntimeError as error:
        raise ExceptionGroup("with ana@example.com", [error, RateLimitedError("wait a minute")]) from None


@pytest.mark.parametrize("name", ["test", "juniper.library"])
def test_a_traceback_tells_type_and_place_and_no_values(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with configured():
        try:
            _fail()
        except ExceptionGroup:
            if name == "test":
                structlog.get_logger(name).error("request.failed", exc_info=True)
            else:
                logging.getLogger(name).exception("it failed")
    trace = json.loads(capsys.readouterr().out)["exception"]
    lines = [line for line in trace.splitlines() if not line.startswith(" ")]
    assert lines == [
        "builtins.ExceptionGroup",
        "of them:",
        "builtins.ValueError",
        "then:",
        "builtins.RuntimeError",
        "of them:",
        "engine.errors.RateLimitedError: wait a minute",
    ]
    assert "in _fail" in trace


def test_other_libraries_log_the_same_way_and_addresses_stay_out(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        logging.getLogger("another.library").warning("the pool is full")
        logging.getLogger("httpx").info("GET https://juniper.example/?api_key=1")
    [line] = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["level"]) == ("the pool is full", "warning")


def test_what_is_less_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        structlog.get_logger("server.test").debug("detail")
    assert capsys.readouterr().out == ""


def test_an_exception_is_told_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            structlog.get_logger("test").exception("request.failed")
    line = json.loads(capsys.readouterr().out)
    assert line["exception"].endswith("builtins.RuntimeError")


@pytest.mark.parametrize(
    "library",
    ["httpx", "httpcore.http11", "sqlalchemy.engine", "botocore.parsers", "urllib3", "never.heard.of"],
)
def test_what_libraries_say_to_developers_is_not_logged(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their messages may hold addresses with keys, headers, and answers with secrets in them."""
    with configured("debug"):
        logging.getLogger(library).debug("Authorization: Bearer %s", "canary-debug")
        logging.getLogger(library).info("GET https://api.example/?key=%s", "canary-info")
        logging.getLogger(library).warning("the pool is full")
        logging.getLogger("server.anything").debug("ours is")
    shown = capsys.readouterr().out
    assert "canary" not in shown
    assert "the pool is full" in shown
    assert "ours is" in shown


def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    stream = io.StringIO()
    with configured(stream=stream):
        stream.close()
        structlog.get_logger("server.test").info("worked")


def test_what_the_hub_says_and_what_libraries_say_comes_in_order_on_one_stream() -> None:
    stream = io.StringIO()
    with configured(stream=stream):
        structlog.get_logger("server.test").info("first")
        logging.getLogger("another.library").warning("second")
        structlog.get_logger("server.test").info("third")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [
        "first",
        "second",
        "third",
    ]


def test_what_is_said_often_looks_as_if_a_logger_had_said_it() -> None:
    stream = io.StringIO()
    with configured(stream=stream), structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("server.test").info("request.answered", status=200, secret="hidden")
        say("request.answered", status=200, secret="hidden")
    by_logger, said = (json.loads(line) for line in stream.getvalue().splitlines())
    assert by_logger.pop("timestamp").endswith("Z")
    assert said.pop("timestamp").endswith("Z")
    assert said == by_logger
    assert said["secret"] == "***"


@pytest.mark.parametrize(("level", "lines"), [("debug", 1), ("info", 1), ("warning", 0), ("error", 0)])
def test_what_is_said_often_keeps_to_the_level(level: str, lines: int) -> None:
    stream = io.StringIO()
    with configured(level, stream):
        say("request.answered")
    assert len(stream.getvalue().splitlines()) == lines
