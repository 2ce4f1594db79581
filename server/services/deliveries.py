"""Send events to subscribers, signed as Standard Webhooks has it, until they are taken or given up.

An attempt is claimed before it is made, for longer than it can last: one that nobody heard of again is made
once more, with the same id. A subscriber that doesn't answer is asked less and less often, by one attempt at
a time, so that it keeps nobody else's waiting.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.cookiejar import DefaultCookiePolicy
from uuid import UUID

import httpx
import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from engine.errors import ForbiddenAddressError
from engine.ports import Secret
from engine.transport import open_client
from server.context import Context
from server.db.models import DeliveryStatus, EventDelivery, EventSubscriber, OutboxMessage
from server.errors import VaultError
from server.services import subscribers
from server.services.outbox import Event, told
from server.settings import Settings

log = structlog.get_logger(__name__)

AT_ONCE = 32  # attempts in one process
EACH = 4  # of them to one subscriber; one, while it fails
ATTEMPT_SECONDS = 15.0
LEASE = timedelta(seconds=60)  # longer than an attempt, and writing down what came of it
BODY_BYTES = 1024  # of an answer that are kept
# Between attempts, as Standard Webhooks proposes: over three days in all, a little more by chance.
WAITS = tuple(
    timedelta(seconds=seconds)
    for seconds in (5, 300, 1800, 7200, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
JITTER = 0.2  # of a wait, at most
LONGEST_HOLD = timedelta(minutes=5)  # in which a subscriber that fails is left alone
LONGEST_RETRY_AFTER = timedelta(hours=24)
GIVEN_UP_AFTER = timedelta(days=5)  # of nothing but failures, and
GIVEN_UP_FAILURES = 10  # at least so many
GONE = 410
_SLOW_DOWN = frozenset({429, 502, 503, 504})
_MOST_OPENED = 1000
_OPENED_SECONDS = 30.0

# Pending deliveries of each subscriber that may be sent to, the longest due first; each one's first before
# anybody's second. Subscribers are found by leaping from one to the next in the index.
_CLAIM = text("""
WITH RECURSIVE waiting AS (
    (SELECT subscriber_id FROM event_deliveries WHERE status = 'pending' ORDER BY subscriber_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT subscriber_id FROM event_deliveries
        WHERE status = 'pending' AND subscriber_id > waiting.subscriber_id ORDER BY subscriber_id LIMIT 1
    ) FROM waiting WHERE waiting.subscriber_id IS NOT NULL
), busy AS (
    SELECT * FROM unnest(CAST(:busy AS uuid[]), CAST(:counts AS integer[])) AS busy (subscriber_id, count)
), open AS (
    SELECT subscriber.id,
           CASE WHEN subscriber.failures = 0 THEN :each ELSE 1 END - coalesce(busy.count, 0) AS free
    FROM waiting JOIN event_subscribers AS subscriber ON subscriber.id = waiting.subscriber_id
    LEFT JOIN busy USING (subscriber_id)
    WHERE subscriber.active AND (subscriber.held_until IS NULL OR subscriber.held_until <= now())
), due AS (
    SELECT found.id, found.next_attempt_at,
           row_number() OVER (PARTITION BY open.id ORDER BY found.next_attempt_at) AS turn
    FROM open CROSS JOIN LATERAL (
        SELECT delivery.id, delivery.next_attempt_at FROM event_deliveries AS delivery
        WHERE delivery.subscriber_id = open.id AND delivery.status = 'pending'
            AND delivery.next_attempt_at <= now()
        ORDER BY delivery.next_attempt_at LIMIT greatest(open.free, 0)
        FOR UPDATE SKIP LOCKED
    ) AS found
), chosen AS (
    SELECT id FROM due ORDER BY turn, next_attempt_at LIMIT :limit
)
UPDATE event_deliveries AS delivery
SET attempts = attempts + 1, last_attempt_at = now(), next_attempt_at = now() + :lease
FROM chosen WHERE delivery.id = chosen.id
RETURNING delivery.id
""")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was claimed: what to send where, and what it is the how-manieth of."""

    delivery_id: UUID
    subscriber_id: UUID
    number: int  # of all attempts ever: the result of any but the last is refused
    step: int
    give_up_at: datetime
    url: str
    event: Event
    secrets: Sequence[Secret]
    failing: bool = False  # whether its subscriber was, when it was claimed


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt came to: the status and the beginning of an answer, or why there was none."""

    duration_ms: int
    status: int | None = None
    body: str = ""
    error: str | None = None
    retry_after: timedelta | None = None

    @property
    def taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def complaint(self) -> str | None:
        """Why it counts as failed, as a sentence for whoever owns the address; None when it was taken."""
        if self.taken:
            return None
        if self.status is None:
            return self.error or "there was no answer"
        if 300 <= self.status < 400:
            return (
                f"it was answered with {self.status}: redirects aren't followed, change the address instead"
            )
        return f"it was answered with {self.status}"


# --- signing


def signature(secret: Secret, event_id: str, timestamp: int, body: bytes) -> str:
    """Return what Standard Webhooks 1.0 signs a message with, for a `whsec_…` secret."""
    key = base64.b64decode(secret.reveal().removeprefix(subscribers.SECRET_PREFIX))
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


def headers(event: Event, secrets: Sequence[Secret], timestamp: int) -> dict[str, str]:
    """Return the headers of a delivery; each of the secrets signs it."""
    signatures = [signature(secret, event.id, timestamp, event.body) for secret in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "integration-hub",
        "Accept-Encoding": "identity",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


# --- one attempt


@dataclass(slots=True)
class OpenedSecrets:
    """Secrets a process has opened lately, by what they were sealed to: a new one is another text."""

    _kept: dict[str, tuple[float, Secret]] = field(default_factory=dict)

    async def of(self, context: Context, row: EventSubscriber, now: datetime) -> list[Secret]:
        """Return what to sign with, the current secret first; raises VaultError."""
        found = [await self._open(context, row, "encrypted_secret", row.encrypted_secret)]
        expires, previous = row.previous_secret_expires_at, row.encrypted_previous_secret
        if previous is not None and expires is not None and expires > now:
            found.append(await self._open(context, row, "encrypted_previous_secret", previous))
        return found

    async def _open(self, context: Context, row: EventSubscriber, column: str, sealed: str) -> Secret:
        kept = self._kept.get(sealed)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        secret = await context.vault.open(sealed, subscribers.place(row, column))
        if len(self._kept) >= _MOST_OPENED:
            self._kept.clear()
        self._kept[sealed] = (time.monotonic() + _OPENED_SECONDS, secret)
        return secret


def open_http(settings: Settings) -> httpx.AsyncClient:
    """Return the client deliveries go through: to public addresses only, except in development."""
    http = open_client(
        origin_overrides=settings.origin_overrides,
        allow_private=settings.environment == "development",
        timeout=ATTEMPT_SECONDS,
        connections=2 * AT_ONCE,
    )
    # Several subscribers may be at one host, and none of them may tell by a cookie what another one said.
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return http


async def send(
    http: httpx.AsyncClient, attempt: Attempt, *, now: float, seconds: float = ATTEMPT_SECONDS
) -> Answer:
    """Make an attempt at the time `now`, in Unix seconds; raises nothing, however it goes."""
    started = time.perf_counter()
    status, body, error, retry_after = None, b"", None, None
    try:
        async with asyncio.timeout(seconds):
            async with http.stream(
                "POST",
                attempt.url,
                content=attempt.event.body,
                headers=headers(attempt.event, attempt.secrets, int(now)),
            ) as response:
                status = response.status_code
                retry_after = _retry_after(response) if status in _SLOW_DOWN else None
                with suppress(httpx.HTTPError):  # the status says it all
                    async for piece in response.aiter_raw(BODY_BYTES):
                        body += piece
                        if len(body) >= BODY_BYTES:
                            break
    except TimeoutError:
        error = None if status else f"there was no answer within {seconds:g} seconds"
    except httpx.TimeoutException:
        error = f"there was no answer within {seconds:g} seconds"
    except ForbiddenAddressError:  # where its name leads is nobody's business who only wrote it down
        error = "the address doesn't lead to the public internet, or isn't https"
    except httpx.ConnectError:
        error = "there is no connection to the address, or no secure one"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        error = "the connection broke off"
    took = round((time.perf_counter() - started) * 1000)
    shown = body[:BODY_BYTES].decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Answer(took, status, shown, error, retry_after)


def _retry_after(response: httpx.Response) -> timedelta | None:
    """Read `Retry-After` in seconds; a date is left out, as it would need their clock to be ours."""
    value = response.headers.get("retry-after", "")
    if not value.isascii() or not value.isdigit():
        return None
    return min(timedelta(seconds=min(int(value), 10**9)), LONGEST_RETRY_AFTER)


# --- claiming, and what comes of it


async def claim(
    context: Context, opened: OpenedSecrets, limit: int, busy: Mapping[UUID, int], *, each: int = EACH
) -> list[Attempt]:
    """Claim at most so many attempts that are due; `busy` is how many are under way here, by subscriber.

    What can't be signed is left to the next one who claims it, when the lease is over.
    """
    values = {
        "busy": list(busy),
        "counts": list(busy.values()),
        "each": each,
        "limit": limit,
        "lease": LEASE,
    }
    row, message = EventDelivery, OutboxMessage
    async with context.sessions.begin() as session:
        ids = (await session.scalars(_CLAIM, values)).all()
        if not ids:
            return []
        found = await session.execute(
            select(row, EventSubscriber, message)
            .join(EventSubscriber, EventSubscriber.id == row.subscriber_id)
            .join(message, message.id == row.outbox_id)
            .where(row.id.in_(ids))
        )
        claimed = found.all()
    attempts = []
    for sending, subscriber, said in claimed:
        try:
            secrets = await opened.of(context, subscriber, datetime.now(UTC))
        except VaultError as error:
            await log.aerror("event.not_signed", subscriber_id=str(subscriber.id), error=error.message)
            continue
        attempts.append(
            Attempt(
                sending.id,
                subscriber.id,
                sending.attempts,
                sending.step,
                sending.give_up_at,
                subscriber.url,
                told(said.event_id, said.topic, said.venue_id, said.payload, said.created_at),
                secrets,
                failing=subscriber.failures > 0,
            )
        )
    return attempts


async def settle(
    session: AsyncSession,
    attempt: Attempt,
    answer: Answer,
    now: datetime,
    chance: Callable[[], float] = random.random,
) -> DeliveryStatus | None:
    """Write down what an attempt came to; returns what became of the delivery.

    That is None when the attempt isn't the last one any more, or the delivery was ended or deleted meanwhile.
    """
    again = None if answer.taken or answer.status == GONE else next_try(attempt, answer, now, chance)
    status = (
        DeliveryStatus.DELIVERED
        if answer.taken
        else DeliveryStatus.PENDING
        if again is not None
        else DeliveryStatus.FAILED
    )
    # The subscriber first, as whoever changes it does: so the two never wait for each other in a ring.
    if attempt.failing or not answer.taken:
        await _note(session, attempt.subscriber_id, answer, now, chance)
    row = EventDelivery
    # One that was ended meanwhile, with its subscriber, stays so unless it was taken.
    ours = [row.id == attempt.delivery_id, row.attempts == attempt.number]
    if not answer.taken:
        ours.append(row.status == DeliveryStatus.PENDING)
    statement = (
        update(row)
        .where(*ours)
        .values(
            status=status,
            step=attempt.step + 1,
            next_attempt_at=again,
            delivered_at=now if answer.taken else None,
            duration_ms=answer.duration_ms,
            answer_status=answer.status,
            answer_body=answer.body if answer.status is not None else None,
            error=answer.complaint,
        )
        .returning(row.id)
        .execution_options(synchronize_session=False)
    )
    if await session.scalar(statement) is None:
        return None
    if answer.status == GONE:
        await _disable(
            session, attempt.subscriber_id, "it answered 410: nobody wants to be told there any more"
        )
    return status


def next_try(
    attempt: Attempt, answer: Answer, now: datetime, chance: Callable[[], float] = random.random
) -> datetime | None:
    """Return when to try again; None when it has been tried often and long enough."""
    if attempt.step >= len(WAITS):
        return None
    wait = WAITS[attempt.step] * (1 + JITTER * chance())
    again = now + max(wait, answer.retry_after or timedelta(0))
    return again if again <= attempt.give_up_at else None


async def _note(
    session: AsyncSession, subscriber_id: UUID, answer: Answer, now: datetime, chance: Callable[[], float]
) -> None:
    """Note how a subscriber is doing; one that has failed for days is disabled."""
    row = EventSubscriber
    if answer.taken:
        well = update(row).where(row.id == subscriber_id, row.failures > 0)
        well = well.values(failures=0, failing_since=None, held_until=None)
        await session.execute(well.execution_options(synchronize_session=False))
        return
    statement = (
        update(row)
        .where(row.id == subscriber_id)
        .values(failures=row.failures + 1, failing_since=func.coalesce(row.failing_since, now))
        .returning(row.failures, row.failing_since)
        .execution_options(synchronize_session=False)
    )
    found = (await session.execute(statement)).one_or_none()
    if found is None:  # deleted meanwhile
        return
    failures, since = found.failures, found.failing_since or now
    held = hold(failures, chance)
    if answer.retry_after is not None:
        held = max(held, min(answer.retry_after, LONGEST_HOLD))
    await session.execute(
        update(row)
        .where(row.id == subscriber_id)
        .values(held_until=now + held)
        .execution_options(synchronize_session=False)
    )
    if failures >= GIVEN_UP_FAILURES and now - since >= GIVEN_UP_AFTER:
        days = (now - since).days
        await _disable(
            session, subscriber_id, f"{failures} attempts failed over {days} days, and none was taken"
        )


def hold(failures: int, chance: Callable[[], float] = random.random) -> timedelta:
    """Return how long a subscriber is left alone after so many failures in a row."""
    longest: timedelta = min(timedelta(seconds=2 ** min(failures - 1, 16)), LONGEST_HOLD)
    return longest * (1 - JITTER * chance())


async def _disable(session: AsyncSession, subscriber_id: UUID, reason: str) -> None:
    if await subscribers.disable(session, subscriber_id, reason):
        await log.awarning("subscriber.disabled", subscriber_id=str(subscriber_id), reason=reason)
