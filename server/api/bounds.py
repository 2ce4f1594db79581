"""How large a request's head may be, and how long its body may take."""

import asyncio

from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPReceiveMessage, Receive, Scope, Send

MOST_HEAD_BYTES = 32 * 1024  # request line and headers together
MOST_URL_BYTES = 8 * 1024  # path and query
MOST_HEADERS = 100
_BODILESS = ("GET", "HEAD", "OPTIONS")


class Bounds(ASGIMiddleware):
    """Refuses heads that are too large, before anything else is done, and bodies that take too long."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, body_seconds: float) -> None:
        self.body_seconds = body_seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        headers = list(scope["headers"])
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_URL_BYTES:
            raise HTTPException(status_code=414, detail=f"the address has more than {MOST_URL_BYTES} bytes")
        if len(headers) > MOST_HEADERS or sum(map(_size, headers)) > MOST_HEAD_BYTES:
            raise HTTPException(
                status_code=431,
                detail=f"send at most {MOST_HEADERS} headers, of at most {MOST_HEAD_BYTES} bytes together",
            )
        if scope["method"] not in _BODILESS:  # type: ignore[typeddict-item]  # the scope of HTTP has a method
            receive = _in_time(receive, self.body_seconds)
        await next_app(scope, receive, send)


def _size(header: tuple[bytes, bytes]) -> int:
    return len(header[0]) + len(header[1])


def _in_time(receive: Receive, seconds: float) -> Receive:
    deadline = asyncio.get_running_loop().time() + seconds
    complete = False

    async def receive_in_time() -> HTTPReceiveMessage:
        nonlocal complete
        if complete:  # from here on one only waits for a client that goes away
            return await receive()  # type: ignore[return-value]  # of HTTP, as its scope is
        try:
            async with asyncio.timeout_at(deadline):
                message: HTTPReceiveMessage = await receive()  # type: ignore[assignment]  # likewise
        except TimeoutError:
            raise HTTPException(
                status_code=408,
                detail="the body took too long to arrive",
                headers={"Connection": "close"},
            ) from None
        if message["type"] == "http.disconnect":
            raise HTTPException(status_code=400, detail="the body ended before it was complete")
        complete = not message["more_body"]
        return message

    return receive_in_time
