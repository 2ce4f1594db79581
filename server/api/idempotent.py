"""Puts `Idempotency-Key` around a handler's work."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from litestar import Response

from server.api.guards import CallerRequest
from server.context import Context
from server.services import idempotency

T = TypeVar("T")


async def answer_once(
    request: CallerRequest, context: Context, key: str | None, work: Callable[[], Awaitable[Response[T]]]
) -> Response[T]:
    """Return the work's answer, or the first one under this key, marked `Idempotent-Replayed: true`."""
    if key is None:
        return await work()

    async def worked() -> idempotency.Answer:
        response = await work()
        status, headers = response.status_code or 200, dict(response.headers)
        return idempotency.Answer(status, msgspec.to_builtins(response.content), headers)

    answer = await idempotency.once(
        context,
        caller=request.user.id,
        key=key,
        fingerprint=idempotency.request_hash(request.method, request.url.path, await request.body()),
        work=worked,
    )
    replayed = {"Idempotent-Replayed": "true"} if answer.replayed else {}
    content: Any = answer.body
    return Response(content, status_code=answer.status, headers={**answer.headers, **replayed})
