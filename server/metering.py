"""Count what each integration uses of its provider: calls, and bytes of bodies as they travel.

Everything leaves through one HTTP client a process, whose transport counts for whoever said last that it
wants to: `counting` sets a context variable, which tasks inherit. So whatever is called within is counted,
retries, pages read ahead and answers that never came among it, and no place that calls has to think of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import httpx
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

log = structlog.get_logger(__name__)

WRITE_SECONDS = 5.0  # at most, for usage that is written by itself


@dataclass(slots=True)
class Usage:
    """What was used and isn't written down yet. Bytes are those of bodies, compressed as they were sent."""

    calls: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __bool__(self) -> bool:
        return bool(self.calls or self.bytes_sent or self.bytes_received)

    def take(self) -> Usage:
        """Return all of it and begin at nothing; `give_back` what couldn't be written."""
        taken = Usage(self.calls, self.bytes_sent, self.bytes_received)
        self.calls = self.bytes_sent = self.bytes_received = 0
        return taken

    def give_back(self, taken: Usage) -> None:
        self.calls += taken.calls
        self.bytes_sent += taken.bytes_sent
        self.bytes_received += taken.bytes_received


_counts_for: ContextVar[Usage | None] = ContextVar("counts_for", default=None)


@contextmanager
def counting(usage: Usage) -> Iterator[Usage]:
    """Count every call made within, and in tasks begun within, for this one."""
    token = _counts_for.set(usage)
    try:
        yield usage
    finally:
        _counts_for.reset(token)


class MeteredTransport(httpx.AsyncBaseTransport):
    """Counts what goes through another transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        usage = _counts_for.get()
        if usage is None:
            return await self._transport.handle_async_request(request)
        usage.calls += 1
        usage.bytes_sent += int(request.headers.get("Content-Length", 0))
        response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _MeteredStream(response.stream, usage)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


class _MeteredStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, usage: Usage) -> None:
        self._stream, self._usage = stream, usage

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._usage.bytes_received += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


# An integration that was erased meanwhile gets no row again, and a month that was closed doesn't change.
_ADD = text("""
INSERT INTO integration_costs AS known
    (venue_id, integration_type, period_start, period_end, api_calls, bytes_sent, bytes_received)
SELECT ours.venue_id, ours.integration_type, month, CAST(month + interval '1 month' AS date) - 1,
    :calls, :sent, :received
FROM integration_configs AS ours,
    coalesce(CAST(:at AS timestamptz), clock_timestamp()) AS moment,
    CAST(date_trunc('month', moment AT TIME ZONE 'UTC') AS date) AS month
WHERE ours.venue_id = :venue AND ours.integration_type = :provider
ON CONFLICT (venue_id, integration_type, period_start) DO UPDATE SET
    api_calls = known.api_calls + excluded.api_calls,
    bytes_sent = known.bytes_sent + excluded.bytes_sent,
    bytes_received = known.bytes_received + excluded.bytes_received,
    updated_at = now()
WHERE known.closed_at IS NULL
""")


async def add(
    session: AsyncSession, venue_id: UUID, provider: str, used: Usage, *, at: datetime | None = None
) -> None:
    """Add usage to an integration's month: that of `at`, or of now, in UTC.

    The row stays locked until the end of the transaction, so this belongs at its end.
    """
    if used:
        await session.execute(
            _ADD,
            {
                "venue": venue_id,
                "provider": provider,
                "calls": used.calls,
                "sent": used.bytes_sent,
                "received": used.bytes_received,
                "at": at,
            },
        )


async def write(
    sessions: async_sessionmaker[AsyncSession], venue_id: UUID, provider: str, usage: Usage
) -> None:
    """Write usage down in a transaction of its own. When that can't be done, only the log has it.

    Don't call it while a connection to the database is held: it takes another.
    """
    if not usage:
        return
    taken = usage.take()
    try:
        async with asyncio.timeout(WRITE_SECONDS), sessions.begin() as session:
            await add(session, venue_id, provider, taken)
    except Exception as error:
        log.warning(
            "usage.not_written",
            venue_id=str(venue_id),
            provider=provider,
            calls=taken.calls,
            error=type(error).__name__,
        )


@asynccontextmanager
async def metered(
    sessions: async_sessionmaker[AsyncSession], venue_id: UUID, provider: str
) -> AsyncIterator[Usage]:
    """Count the calls made within for this integration, and write them down at the end, however it ends."""
    with counting(Usage()) as usage:
        try:
            yield usage
        finally:
            await write(sessions, venue_id, provider, usage)
