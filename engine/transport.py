"""How calls leave the machine: which addresses may be reached, and how bodies are written.

Only HTTPS to public addresses leaves. The name is resolved once per connection, every address it has is
checked, and the connection goes to the very address that was checked, so a name can't change its mind in
between. Origin overrides lead a provider's origin to a stand-in, for development and tests; those may be on
this machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote_plus, urlsplit, urlunsplit

import httpcore
import httpx
import orjson

from engine.errors import ForbiddenAddressError

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

DEFAULT_PORTS: Mapping[str, int] = {"https": 443, "http": 80}
CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 30.0

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Of a network's own, though not every Python says so: IPv4 addresses in other clothes, a site's NAT64, and
# what sites had before `fc00::/7`.
LOCAL = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "fec0::/10")))


def open_client(
    *,
    origin_overrides: Mapping[str, str] | None = None,
    allow_private: bool = False,
    timeout: float = 30.0,
    connections: int = 100,
    resolve: Resolver | None = None,
    wrap: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] = lambda transport: transport,
) -> httpx.AsyncClient:
    """Return the HTTP client every call goes through; close it with `async with` or `aclose`.

    `origin_overrides` leads an origin such as `https://api.example.com` to another, which may be plain HTTP
    on this machine. `allow_private` lifts the address rules for all origins. `wrap` puts something around
    what sends, such as what counts. Redirects are never followed: they could carry credentials elsewhere. A
    refused address raises ForbiddenAddressError.
    """
    transport = ProviderTransport(
        overrides={origin_of(source): target for source, target in (origin_overrides or {}).items()},
        allow_private=allow_private,
        connections=connections,
        resolve=resolve or resolve_name,
    )
    return httpx.AsyncClient(
        transport=wrap(transport),
        timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        follow_redirects=False,
        trust_env=False,
    )


class ProviderTransport(httpx.AsyncBaseTransport):
    """Sends overridden origins to their stand-ins, and everything else through the address guard."""

    def __init__(
        self, *, overrides: Mapping[str, str], allow_private: bool, connections: int, resolve: Resolver
    ) -> None:
        self._overrides = {source: httpx.URL(target) for source, target in overrides.items()}
        self._allow_private = allow_private
        context = httpx.create_ssl_context()
        self._open, self._guarded = (
            _Pool(
                httpcore.AsyncConnectionPool(
                    ssl_context=context,
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=KEEP_ALIVE_SECONDS,
                    network_backend=network,
                )
            )
            for network in (None, GuardedNetwork(resolve))
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        target = self._overrides.get(_origin(url.scheme, url.host, url.port)) if self._overrides else None
        if target is not None:
            # The Host header stays the provider's: the stand-in sees what the provider would see.
            request.url = url.copy_with(scheme=target.scheme, host=target.host, port=target.port)
            return await self._open.handle_async_request(request)
        if self._allow_private:
            return await self._open.handle_async_request(request)
        if url.scheme != "https":
            raise ForbiddenAddressError(f"only HTTPS leaves the hub; {url.scheme}://{url.host} is refused")
        return await self._guarded.handle_async_request(request)

    async def aclose(self) -> None:
        await self._open.aclose()
        await self._guarded.aclose()


class _Pool(httpx.AsyncHTTPTransport):
    """httpx's own transport over a connection pool that was made elsewhere."""

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pool = pool


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to the same address that was checked."""

    def __init__(self, resolve: Resolver, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._resolve = resolve
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} could not be resolved in time") from error
        except OSError as error:
            raise httpcore.ConnectError(f"{host} could not be resolved") from error
        if not addresses:
            raise httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            check_address(address, host)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} could not be reached")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddressError("local sockets are refused")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """Return every address a name has, in the system's order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_address(address: str, host: str) -> None:
    """Raise ForbiddenAddressError unless the address belongs to the public internet."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError as error:
        raise ForbiddenAddressError(f"{host} leads to something that isn't an address") from error
    for inner in _unwrapped(parsed):
        local = not inner.is_global or inner.is_multicast or any(inner in each for each in LOCAL)
        if local:
            raise ForbiddenAddressError(f"{host} leads to {address}, which isn't a public address")


def _unwrapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Yield the address, or the IPv4 address that an IPv6 one stands for together with it."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
        return
    yield address
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if address in NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def origin_of(url: str) -> str:
    """Return `scheme://host[:port]` of a URL, lower-cased and without a default port."""
    parts = urlsplit(url)
    return _origin(parts.scheme, parts.hostname or "", parts.port)


def _origin(scheme: str, host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    suffix = "" if port is None or port == DEFAULT_PORTS.get(scheme) else f":{port}"
    return f"{scheme}://{shown}{suffix}".lower()


def rewrite_origin(url: str, overrides: Mapping[str, str]) -> str:
    """Return a URL for a browser with its origin replaced, when an override names it."""
    origin = origin_of(url)
    target = next((to for source, to in overrides.items() if origin_of(source) == origin), None)
    if target is None:
        return url
    parts, new = urlsplit(url), urlsplit(target)
    return urlunsplit((new.scheme, new.netloc, parts.path, parts.query, parts.fragment))


def parse_overrides(text: str) -> dict[str, str]:
    """Read `origin=origin,…`, as HUB_ORIGIN_OVERRIDES has it; raises ValueError, the end of a sentence."""
    overrides: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        origin, _, target = entry.partition("=")
        if not _is_origin(origin) or not _is_origin(target):
            raise ValueError(
                "must look like https://api.example.com=http://127.0.0.1:9101, separated by commas, "
                f"and has {entry!r}"
            )
        overrides[origin.rstrip("/").lower()] = target.rstrip("/").lower()
    return overrides


def _is_origin(text: str) -> bool:
    parts = urlsplit(text)
    return (
        bool(parts.scheme in ("http", "https") and parts.hostname)
        and parts.path in ("", "/")
        and not parts.query
    )


def encode_form(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten a JSON object into form fields: `a[b]=1`, `list[0]=x`, `true`/`false`.

    None, and an empty list or object, become an empty value, which clears a field.
    """
    return [pair for name, item in value.items() for pair in _form_pairs(str(name), item)]


def _form_pairs(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _form_pairs(f"{name}[{key}]", item)
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _form_pairs(f"{name}[{index}]", item)
    else:
        yield name, _plain(value)


def encode_query(value: Mapping[str, Any], encoding: str = "json") -> list[tuple[str, str]]:
    """Flatten query parameters, leaving out None.

    With `form` encoding, lists and objects nest as in a form body; otherwise a list repeats its name.
    """
    given = {name: item for name, item in value.items() if item is not None}
    if encoding == "form":
        return encode_form(given)
    pairs: list[tuple[str, str]] = []
    for name, item in given.items():
        items = item if isinstance(item, list | tuple) else [item]
        pairs.extend((name, _plain(each)) for each in items)
    return pairs


def _plain(value: Any) -> str:
    if value is None or value in ([], {}, ()):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping | list | tuple):
        return orjson.dumps(value, default=_exact).decode()
    return str(value)


def form_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Write form fields as `application/x-www-form-urlencoded`; brackets in names stay readable."""
    return "&".join(f"{quote_plus(name, safe='[]')}={quote_plus(value)}" for name, value in pairs)


def to_json(value: Any) -> bytes:
    """Write JSON. A Decimal becomes a number with exactly its digits."""
    return orjson.dumps(value, default=_exact)


def _exact(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(format(value, "f"))
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def encode_body(body: Any, encoding: str) -> tuple[bytes | None, str | None]:
    """Return the bytes of a body and their content type; (None, None) for no body."""
    if body is None:
        return None, None
    if encoding == "form":
        return form_text(encode_form(body)).encode(), "application/x-www-form-urlencoded"
    return to_json(body), "application/json"


def with_query(url: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Add parameters to a URL that may have some already."""
    if not pairs:
        return url
    return f"{url}{'&' if '?' in url else '?'}{form_text(pairs)}"
