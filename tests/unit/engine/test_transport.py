"""What leaves the machine: addresses, origins and bodies."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ForbiddenAddressError
from engine.transport import (
    GuardedNetwork,
    check_address,
    encode_body,
    encode_form,
    encode_query,
    form_text,
    open_client,
    origin_of,
    rewrite_origin,
    to_json,
    with_query,
)

# ------------------------------------------------------------------------------------------ encoding


def test_form_as_documented() -> None:
    body = {
        "name": "GA ticket",
        "active": True,
        "metadata": {"event_id": "ev 1"},
        "images": ["https://a/1.png"],
        "default_price_data": {"currency": "usd", "unit_amount": 4500},
    }
    assert form_text(encode_form(body)) == (
        "name=GA+ticket&active=true&metadata[event_id]=ev+1&images[0]=https%3A%2F%2Fa%2F1.png"
        "&default_price_data[currency]=usd&default_price_data[unit_amount]=4500"
    )


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ({"a": {"b": {"c": "month"}}}, [("a[b][c]", "month")]),
        (
            {"items": [{"price": "p1"}, {"price": "p2"}]},
            [("items[0][price]", "p1"), ("items[1][price]", "p2")],
        ),
        ({"off": False}, [("off", "false")]),
        ({"description": None}, [("description", "")]),
        ({"metadata": {}}, [("metadata", "")]),
        ({"images": []}, [("images", "")]),
        ({"metadata": {"k": ""}}, [("metadata[k]", "")]),
        ({"amount": Decimal("1E+3")}, [("amount", "1000")]),
        ({"amount": Decimal("0.10")}, [("amount", "0.10")]),
        ({"rate": 1.5}, [("rate", "1.5")]),
        ({}, []),
    ],
)
def test_form_values(value: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    assert encode_form(value) == pairs


def test_query_of_a_form_encoded_connector_nests() -> None:
    query = {"types": ["a.b", "c"], "created[gte]": 5, "limit": 100, "starting_after": None}
    assert encode_query(query, "form") == [
        ("types[0]", "a.b"),
        ("types[1]", "c"),
        ("created[gte]", "5"),
        ("limit", "100"),
    ]


def test_query_of_a_json_connector_repeats_names() -> None:
    assert encode_query({"id": [1, 2], "all": True, "cursor": None}) == [
        ("id", "1"),
        ("id", "2"),
        ("all", "true"),
    ]


def test_query_joins_one_that_is_there() -> None:
    assert with_query("https://a.example/x?y=1", [("z", "a b")]) == "https://a.example/x?y=1&z=a+b"
    assert with_query("https://a.example/x", []) == "https://a.example/x"


def test_json_keeps_every_digit_of_a_decimal() -> None:
    assert to_json({"amount": Decimal("12345678901234567890.10")}) == b'{"amount":12345678901234567890.10}'


def test_json_refuses_a_decimal_that_is_no_number() -> None:
    with pytest.raises(TypeError):
        to_json({"amount": Decimal("NaN")})


def test_bodies() -> None:
    assert encode_body(None, "json") == (None, None)
    assert encode_body({"a": [1]}, "json") == (b'{"a":[1]}', "application/json")
    assert encode_body({"a": [1]}, "form") == (b"a[0]=1", "application/x-www-form-urlencoded")


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_form_survives_a_round_trip(value: dict[str, str]) -> None:
    from urllib.parse import parse_qsl

    assert parse_qsl(form_text(encode_form(value)), keep_blank_values=True) == list(value.items())


# ------------------------------------------------------------------------------------------- origins


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://API.example.com/v1?x=1", "https://api.example.com"),
        ("https://api.example.com:443/", "https://api.example.com"),
        ("http://127.0.0.1:9101/x", "http://127.0.0.1:9101"),
        ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
    ],
)
def test_origin(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_a_browser_is_led_to_the_stand_in() -> None:
    overrides = {"https://connect.example.com": "http://127.0.0.1:9102"}
    url = "https://connect.example.com/oauth2/authorize?client_id=a&state=b%2F"
    assert rewrite_origin(url, overrides) == "http://127.0.0.1:9102/oauth2/authorize?client_id=a&state=b%2F"
    assert (
        rewrite_origin("https://connect.example.com.evil/x", overrides)
        == "https://connect.example.com.evil/x"
    )


# ----------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"]
)
def test_public_addresses_pass(address: str) -> None:
    check_address(address, "api.example.com")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.5",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep their credentials
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::7f00:1",
        "::ffff:0:7f00:1",
        "64:ff9b:1::7f00:1",
        "fec0::3",
        "not an address",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        check_address(address, "api.example.com")


class RecordingNetwork(httpcore.AsyncNetworkBackend):
    """Notes where connections go; the addresses in `down` refuse them."""

    def __init__(self, down: Sequence[str] = ()) -> None:
        self.down = down
        self.reached: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        self.reached.append(host)
        if host in self.down:
            raise httpcore.ConnectError("refused")
        return httpcore.AsyncNetworkStream()


def guarded(answers: list[list[str]], network: RecordingNetwork) -> GuardedNetwork:
    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    return GuardedNetwork(resolve, network)


async def test_connects_to_the_very_address_that_was_checked() -> None:
    network = RecordingNetwork()
    answers = [["93.184.215.14"], ["127.0.0.1"]]  # a name that changes its mind
    await guarded(answers, network).connect_tcp("api.example.com", 443)
    assert network.reached == ["93.184.215.14"]
    assert answers == [["127.0.0.1"]]


async def test_one_private_address_among_others_is_enough_to_refuse() -> None:
    network = RecordingNetwork()
    with pytest.raises(ForbiddenAddressError):
        await guarded([["93.184.215.14", "10.0.0.5"]], network).connect_tcp("api.example.com", 443)
    assert network.reached == []


async def test_tries_the_next_address_when_one_is_down() -> None:
    network = RecordingNetwork(down=["93.184.215.14"])
    await guarded([["93.184.215.14", "93.184.215.15"]], network).connect_tcp("api.example.com", 443)
    assert network.reached == ["93.184.215.14", "93.184.215.15"]


async def test_a_name_that_is_an_address_is_checked_too() -> None:
    async with open_client() as http:
        with pytest.raises(ForbiddenAddressError):
            await http.get("https://127.0.0.1/")


async def test_plain_http_is_refused() -> None:
    async with open_client() as http:
        with pytest.raises(ForbiddenAddressError):
            await http.get("http://api.example.com/")


async def test_an_unknown_name_is_a_connection_that_failed() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    async with open_client(resolve=resolve) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("https://api.example.com/")


@asynccontextmanager
async def stand_in(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server on this machine that gives one answer and keeps what it was asked."""
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_an_override_leads_to_a_stand_in_on_this_machine() -> None:
    async with stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (origin, asked):
        async with open_client(origin_overrides={"https://api.example.com": origin}) as http:
            assert (await http.get("https://api.example.com/v1/me?a=1")).text == "ok"
            with pytest.raises(ForbiddenAddressError):
                await http.get(origin)  # only by way of the override
    assert asked[0].startswith(b"GET /v1/me?a=1 HTTP/1.1\r\n")
    assert b"Host: api.example.com\r\n" in asked[0]


async def test_redirects_are_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"
    async with (
        stand_in(answer) as (origin, asked),
        open_client(origin_overrides={"https://api.example.com": origin}) as http,
    ):
        response = await http.get("https://api.example.com/")
    assert response.status_code == 302
    assert len(asked) == 1


async def test_private_addresses_can_be_allowed() -> None:
    async with stand_in(b"HTTP/1.1 204 No Content\r\n\r\n") as (origin, _):
        async with open_client(allow_private=True) as http:
            assert (await http.get(origin)).status_code == 204
