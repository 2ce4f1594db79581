"""What a real server does to clients that are slow, send too much, or are too many."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from click.testing import CliRunner

from server.cli import main
from tests.integration.api_process import API, VENUE, ApiProcess, running_api

SECONDS = 2  # HUB_REQUEST_SECONDS
MOST = 40  # HUB_MOST_CLIENTS
HOOK = f"{API}/webhooks/square"
CONNECT = f"{API}/connect/square"
LATE = "the request took too long to arrive"
LATE_BODY = "the body took too long to arrive"


@pytest.fixture(scope="module")
async def api(
    database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ApiProcess]:
    folder = tmp_path_factory.mktemp("api")
    limits = {"HUB_REQUEST_SECONDS": str(SECONDS), "HUB_MOST_CLIENTS": str(MOST)}
    async with running_api(database_url, redis_url, folder, **limits) as running:
        yield running


def head(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: hub"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def talk(api: ApiProcess, first: bytes, rest: bytes = b"", every: float = 0.05) -> tuple[bytes, float]:
    """Send something, then the rest on and on until the server closes; return what it said, and when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    began = time.monotonic()
    writer.write(first)

    async def trickle() -> None:
        while rest:
            writer.write(rest)
            await writer.drain()
            await asyncio.sleep(every)

    trickling = asyncio.create_task(trickle())
    said = b""
    try:
        async with asyncio.timeout(60):
            while part := await reader.read(65536):
                said += part
    except ConnectionResetError:
        pass
    finally:
        trickling.cancel()
        writer.close()
        await asyncio.gather(trickling, return_exceptions=True)
    return said, time.monotonic() - began


def status_and_error(said: bytes) -> tuple[int, str]:
    """Return the status and the sentence of an answer, which is the API's usual one."""
    start, _, body = said.partition(b"\r\n\r\n")
    answer = json.loads(body)
    assert answer["success"] is False
    assert answer["requestId"] in start.decode()
    return int(start.split()[1]), answer["error"]


# What is sent at first, what is sent on and on, the answer, and the least seconds until it.
SLOW: Mapping[str, tuple[bytes, bytes, int, str, float]] = {
    "head by the line": (b"GET /health HTTP/1.1\r\nhost: hub\r\n", b"x: 1\r\n", 408, LATE, SECONDS),
    "head that stays half": (b"GET /hea", b"", 408, LATE, SECONDS),
    "body by the byte": (head("POST", HOOK, content_length="5000"), b"{", 408, LATE_BODY, SECONDS),
    "chunks of a byte": (
        head("POST", HOOK, transfer_encoding="chunked"),
        b"1\r\n{\r\n",
        408,
        LATE_BODY,
        SECONDS,
    ),
    # Without a token nobody waits for the body, however long it takes.
    "body that isn't asked for": (
        head("POST", CONNECT, content_length="5000", content_type="application/json"),
        b"{",
        401,
        "send a token: `Authorization: Bearer …`",
        0,
    ),
}


async def test_slow_clients_are_cut_off_and_others_are_served(api: ApiProcess) -> None:
    silent = asyncio.create_task(talk(api, b""))
    slow = {name: asyncio.create_task(talk(api, first, rest)) for name, (first, rest, *_) in SLOW.items()}
    answered = 0
    async with httpx.AsyncClient(timeout=60) as client:
        while not all(task.done() for task in (silent, *slow.values())):
            assert (await client.get(f"{api.url}/health")).status_code == 200
            answered += not any(task.done() for task in slow.values())

    assert answered > 0  # while each of them was being slow
    for name, task in slow.items():
        said, took = await task
        _, _, status, error, least = SLOW[name]
        assert status_and_error(said) == (status, error), name
        assert took > least - 0.1, name  # the server's clock counts in milliseconds
    said, took = await silent
    assert said == b""
    assert took > SECONDS - 0.1


async def test_a_body_that_comes_after_its_answer_keeps_the_connection(api: ApiProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    for _ in range(2):
        writer.write(head("POST", CONNECT, content_length="7", content_type="application/json"))
        start = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in start.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split()[1]))
        assert start.startswith(b"HTTP/1.1 401 ")
        writer.write(b'{"a":1}')
    writer.close()


async def test_a_client_that_does_not_read_is_cut_off(api: ApiProcess) -> None:
    with socket.create_connection(("127.0.0.1", api.port)) as client:
        for _ in range(100):  # far more answers than buffers between the two can hold
            client.sendall(head("GET", "/schema/openapi.json"))

        async def is_cut_off() -> bool:
            try:
                client.send(head("GET", "/health"))
            except ConnectionError:
                return True
            return False

        await api.until(is_cut_off, "the connection to be closed")
    assert (await api.ready()) is not None


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (head("GET", "/health", x="a" * 40_000), 431),
        (head("GET", "/health", x="a" * 400_000), 431),
        (head("GET", "/health", **{f"x_{number}": "1" for number in range(101)}), 431),
        (head("GET", f"/health?{'a' * 9_000}"), 414),
        (head("GET", f"{API}/{'a' * 9_000}"), 414),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
        (head("POST", HOOK, content_length="many"), 400),
        (head("POST", HOOK, transfer_encoding="chunked") + b"zz\r\n", 400),
    ],
    ids=[
        "headers",
        "endless headers",
        "many headers",
        "query",
        "path",
        "no http",
        "no length",
        "no chunk",
    ],
)
async def test_a_head_that_is_too_large_or_none(api: ApiProcess, request_: bytes, status: int) -> None:
    said, _ = await talk(api, request_.replace(b"host: hub", b"host: hub\r\nconnection: close"))

    assert status_and_error(said)[0] == status


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
@pytest.mark.parametrize("path", [HOOK, CONNECT])
async def test_a_body_over_the_limit(api: ApiProcess, path: str, announced: bool) -> None:
    size = 1024 * 1024 + 1

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 65536

    headers = {**api.bearer(), "content-type": "application/json"}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(
            api.url + path, content=b" " * size if announced else chunks(), headers=headers
        )

    assert answer.status_code == 413
    assert answer.json()["code"] == "PAYLOAD_TOO_LARGE"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"venueId":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"credentials":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
        b'{"venueId":"' + str(VENUE).encode() + b'","config":' + b"[" * 500_000,
        b"{" + b",".join(b'"f%d":1' % number for number in range(80_000)) + b"}",
        b'{"credentials":{' + b",".join(b'"f%d":"1"' % number for number in range(60_000)) + b"}}",
    ],
    ids=["open", "lists", "objects", "within", "half a million", "many fields", "many credentials"],
)
async def test_a_bomb_is_an_ordinary_mistake(api: ApiProcess, body: bytes) -> None:
    headers = {**api.bearer(), "content-type": "application/json"}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(api.url + CONNECT, content=body, headers=headers)

    assert answer.status_code == 400, answer.text
    assert answer.json()["success"] is False
    assert len(answer.content) < 5_000


@pytest.mark.parametrize("body", [b"[" * 10_000, b'{"data":' * 10_000 + b"1" + b"}" * 10_000])
async def test_a_signed_bomb_is_an_ordinary_mistake(
    api: ApiProcess, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.api_process.json.dumps", lambda event: body.decode())
    _, headers = api.delivery("e1")
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(api.url + HOOK, content=body, headers=headers)

    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "WEBHOOK_PROCESSING_FAILED"


async def test_silent_connections_give_way_to_new_ones(api: ApiProcess) -> None:
    for _ in range(5):  # a machine that is too busy lets them all run out of their own time
        began = time.monotonic()
        silent = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(MOST)]
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"{api.url}/health")).status_code == 200
        assert await asyncio.wait_for(silent[0][0].read(), 60) == b""
        took = time.monotonic() - began
        gone = [number for number, (reader, _) in enumerate(silent) if reader.at_eof()]
        for _, writer in silent:
            writer.close()
        if took < SECONDS / 2:
            break
    assert took < SECONDS / 2
    assert gone == [0]


async def test_callers_are_told_apart_behind_a_proxy(api: ApiProcess) -> None:
    async def left(forwarded: str) -> int:
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.get(f"{api.url}{API}", headers={"X-Forwarded-For": forwarded})
        return int(answer.headers["ratelimit-remaining"])

    assert await left("203.0.113.9") == 99
    assert await left("203.0.113.9") == 98
    assert await left("198.51.100.1") == 99
    assert await left("192.0.2.77, 203.0.113.9") == 97  # what a caller wrote itself isn't believed


async def test_a_health_check_asks_without_settings(api: ApiProcess) -> None:
    async def alive(*words: str) -> tuple[int, str]:
        run = await asyncio.to_thread(CliRunner().invoke, main, ["alive", *words])
        return run.exit_code, run.output.strip()

    assert await alive("--url", api.url) == (0, "healthy")
    assert await alive("--url", api.url, "--ready") == (0, "ready")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, said = await alive("--url", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert code == 1
    assert "/health" in said


async def test_no_request_of_these_was_a_fault(api: ApiProcess) -> None:
    """The last test of this module: nothing above is told as an error of the service."""
    assert [line for line in api.logged() if line["level"] == "error"] == []
