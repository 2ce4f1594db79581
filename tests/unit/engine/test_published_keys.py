"""Published keys: fetched when they are needed, kept, and never fetched at a stranger's will."""

import asyncio
import json

import httpx
import pytest

from engine.errors import UnavailableError, UnexpectedResponseError
from engine.expressions import Expression
from engine.public_keys import keys_in, load_key
from engine.published_keys import MOST_BYTES, MOST_FETCHES, MOST_KEPT, PublishedKeys

URL = "https://keys.juniper.example/keys.json"
# RFC 8032, tests 1 and 2, as RFC 8037 writes keys
FIRST = {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
SECOND = {"kty": "OKP", "crv": "Ed25519", "x": "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"}
PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
    "-----END PUBLIC KEY-----"
)


class Web:
    """Answers with what was put there last, and counts how often it was asked."""

    def __init__(self, answer: httpx.Response | None = None) -> None:
        self.now, self.calls, self.answer = 0.0, 0, answer or self.of(FIRST)
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        self.keys = PublishedKeys(http, monotonic=lambda: self.now)

    @staticmethod
    def of(*keys: object) -> httpx.Response:
        return httpx.Response(200, json={"keys": keys})

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        await asyncio.sleep(0)
        return self.answer


async def test_keys_are_kept_for_an_hour() -> None:
    web = Web()
    found = await web.keys.at(URL)
    assert [json.loads(each)["kid"] for each in found] == ["a"]
    web.answer = Web.of(SECOND)
    for web.now, calls in ((3599.0, 1), (3600.0, 2)):
        changed = await web.keys.at(URL)
        assert (web.calls, changed != found) == (calls, calls == 2)


async def test_a_key_that_is_not_there_is_looked_for_once_a_minute() -> None:
    web = Web()
    for web.now, calls in ((0.0, 1), (1.0, 1), (59.0, 1), (60.0, 2), (61.0, 2)):
        await web.keys.at(URL, again=True)
        assert web.calls == calls


async def test_many_who_ask_at_once_ask_once() -> None:
    web = Web()
    await asyncio.gather(*(web.keys.at(URL, again=True) for _ in range(20)))
    assert web.calls == 1


async def test_strangers_who_name_many_addresses_have_few_of_them_fetched() -> None:
    web = Web()
    for number in range(MOST_FETCHES):
        await web.keys.at(f"{URL}?{number}")
    with pytest.raises(UnavailableError):
        await web.keys.at(f"{URL}?more")
    assert web.calls == MOST_FETCHES
    web.now = 60.0
    assert await web.keys.at(f"{URL}?more")


async def test_strangers_drive_out_no_keys_that_are_known() -> None:
    web = Web()
    known = await web.keys.at(URL)
    web.answer = httpx.Response(404)
    for number in range(2 * MOST_KEPT):
        with pytest.raises(UnavailableError):
            await web.keys.at(f"{URL}?{number}")
    calls = web.calls
    assert (await web.keys.at(URL), web.calls) == (known, calls)
    # Nor do they keep them from being looked up anew.
    web.answer = Web.of(SECOND)
    web.now = 3600.0
    for number in range(MOST_FETCHES):
        await web.keys.at(f"{URL}?new{number}")
    assert await web.keys.at(URL) != known


async def test_there_is_room_for_so_many_addresses() -> None:
    web = Web()
    for number in range(MOST_KEPT + 1):
        web.now = 60.0 * number
        await web.keys.at(f"{URL}?{number}")
    assert len(web.keys._kept) == MOST_KEPT
    assert f"{URL}?0" not in web.keys._kept


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(302, headers={"location": "https://127.0.0.1/"}),
        httpx.Response(200, content=b"not keys"),
        httpx.Response(200, json={"keys": []}),
        httpx.Response(200, content=PEM.encode() + b" " * MOST_BYTES),
    ],
)
async def test_what_can_not_be_had_leaves_what_was_known(answer: httpx.Response) -> None:
    web = Web(answer)
    with pytest.raises(UnavailableError):
        await web.keys.at(URL)
    web.now, web.answer = 60.0, Web.of(FIRST)
    known = await web.keys.at(URL)
    web.now, web.answer = 3660.0, httpx.Response(500)
    assert await web.keys.at(URL) == known
    assert web.calls == 3


@pytest.mark.parametrize(
    ("document", "read", "count"),
    [
        ({"keys": [FIRST, SECOND, {**SECOND, "use": "enc"}, {"kty": "oct", "k": "AAAA"}, 7, "x"]}, None, 2),
        (FIRST, None, 1),
        ({"a": PEM, "b": PEM, "c": "no key"}, None, 2),
        ({"public_keys": [{"key": PEM, "id": 1}, {"key": PEM}]}, "public_keys[].key", 2),
        ({"keys": [FIRST] * 100}, None, 32),
    ],
)
def test_keys_are_published_in_several_forms(document: object, read: str | None, count: int) -> None:
    found = keys_in(json.dumps(document).encode(), Expression.compile(read) if read else None)
    assert len(found) == count
    assert all(load_key(each) for each in found)


def test_several_keys_in_one_file() -> None:
    assert keys_in(f"{PEM}\n{PEM}\n".encode()) == (PEM, PEM)


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{", b"\xff", b'{"keys": 1}', b'{"keys": [[["a"]]]}', b"7"]
)
def test_what_holds_no_key(document: bytes) -> None:
    with pytest.raises(UnexpectedResponseError):
        keys_in(document)


async def test_what_deliveries_name_keeps_nothing_from_addresses_that_manifests_name() -> None:
    web = Web()
    for number in range(MOST_FETCHES):
        await web.keys.at(f"{URL}?{number}")
    with pytest.raises(UnavailableError):
        await web.keys.at(f"{URL}?more")
    assert await web.keys.at(URL, named=False)


async def test_addresses_that_manifests_name_make_no_room_for_others() -> None:
    web = Web()
    await web.keys.at(URL, named=False)
    for number in range(2 * MOST_KEPT):
        web.now = 10.0 * number
        await web.keys.at(f"{URL}?{number}")
    assert len(web.keys._kept) == MOST_KEPT
    calls = web.calls
    assert await web.keys.at(URL, named=False)
    assert web.calls == calls
