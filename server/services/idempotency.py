"""`Idempotency-Key`: the same request is worked once, and answered the same again.

Only good answers are kept: a request that failed changed nothing, so sending it again is trying again.
Kept answers are sealed, since one may hold an address that lets its reader finish an authorization.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from server import vault
from server.context import Context
from server.db.models import IdempotencyKey
from server.errors import KeyInUseError, KeyReusedError

# Longer than any request takes: past it, whoever held the key has died.
_ABANDONED = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept: `body` is plain JSON."""

    status: int
    body: Any
    headers: Mapping[str, str]
    replayed: bool = False


def request_hash(method: str, path: str, body: bytes) -> str:
    """Return a fingerprint of a request; the order of keys and white space in a JSON body don't count."""
    with suppress(orjson.JSONDecodeError):
        body = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"\n".join([method.encode(), path.encode(), body])).hexdigest()


async def once(
    context: Context, *, caller: str, key: str, fingerprint: str, work: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Work a request, or return the answer it got the first time.

    Raises KeyReusedError when the key belongs to another request, KeyInUseError while the first is worked.
    """
    kept = await _take(context, caller, key, fingerprint)
    if kept is not None:
        return kept
    try:
        # Keys may be kept by a service that is away: noticed now, nothing is done that can't be told.
        await context.vault.seal("", place(caller, key))
        answer = await work()
    except BaseException:
        async with context.sessions.begin() as session:
            await session.execute(delete(IdempotencyKey).filter_by(caller=caller, key=key, status=None))
        raise
    sealed = await context.vault.seal(
        orjson.dumps({"body": answer.body, "headers": dict(answer.headers)}).decode(), place(caller, key)
    )
    async with context.sessions.begin() as session:
        await session.execute(
            update(IdempotencyKey)
            .filter_by(caller=caller, key=key)
            .values(status=answer.status, response={"sealed": sealed})
        )
    return answer


async def _take(context: Context, caller: str, key: str, fingerprint: str) -> Answer | None:
    """Take the key for this request (None), or return the answer that is kept under it."""
    async with context.sessions.begin() as session:
        await session.execute(
            delete(IdempotencyKey)
            .filter_by(caller=caller, key=key)
            .where(
                or_(
                    IdempotencyKey.expires_at <= func.now(),
                    and_(
                        IdempotencyKey.status.is_(None), IdempotencyKey.created_at <= func.now() - _ABANDONED
                    ),
                )
            )
        )
        taken = await session.scalar(
            insert(IdempotencyKey)
            .values(caller=caller, key=key, request_hash=fingerprint)
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        )
        if taken is not None:
            return None
        row = await session.scalar(select(IdempotencyKey).filter_by(caller=caller, key=key))
    if row is None:  # the first request failed in this very moment
        raise KeyInUseError("the first request with this Idempotency-Key is ending: send it again")
    if row.request_hash != fingerprint:
        raise KeyReusedError("this Idempotency-Key belongs to a request with another body")
    if row.status is None or row.response is None:
        raise KeyInUseError("the first request with this Idempotency-Key isn't answered yet")
    opened = await context.vault.open(row.response["sealed"], place(caller, key))
    kept = orjson.loads(opened.reveal())
    return Answer(row.status, kept["body"], kept["headers"], replayed=True)


def place(caller: str, key: str) -> vault.Context:
    """Return where a kept answer lives, for the vault."""
    # An answer belongs to no venue, provider or environment; its row is known by two names.
    row = orjson.dumps([caller, key]).decode()
    return vault.Context(IdempotencyKey.__tablename__, "response", row, UUID(int=0), "", "")
