"""Events on their way out, on real stores: announced, put into streams, sent until they are taken."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from redis.exceptions import RedisError
from sqlalchemy import func, select, text, update
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from engine.errors import UnavailableError
from engine.ports import Secret
from engine.transport import open_client
from server.db.models import (
    AuditEntry,
    DeliveryStatus,
    EventDelivery,
    EventSubscriber,
    OperationStatus,
    OperationType,
    OutboxMessage,
    Priority,
)
from server.services import deliveries, operations, outbox, retention, runs, subscribers
from server.services.audit import Actor
from server.services.deliveries import Answer, Attempt, OpenedSecrets
from server.services.outbox import Event
from server.services.runs import Run
from server.services.subscribers import Wishes
from server.settings import read_settings
from server.streams import EXCHANGE, KEY, RabbitExchange, RedisStream, open_streams
from server.worker import telling
from server.worker.context import WorkerContext, open_worker_context
from server.worker.telling import Sender
from tests.docs.blocks import blocks

ACTOR = Actor("u_1", role="admin")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SEED = "whsec_" + base64.b64encode(bytes(range(32))).decode()


# ---- somebody who is told ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Receiver:
    """A subscriber's server. A path is answered with 204 unless `answers` says otherwise; None hangs."""

    port: int = 0
    answers: dict[str, tuple[int, Mapping[str, str], bytes] | None] = field(default_factory=dict)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was received is as it should be."""
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def ids(self, path: str) -> list[str]:
        return [headers["webhook-id"] for where, headers, _ in self.received if where == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                headers: dict[str, str] = {}
                while (line := await reader.readline()) != b"\r\n":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.received.append((path, headers, body))
                self.news.set()
                answer = self.answers.get(path, (204, {}, b""))
                if answer is None:
                    await asyncio.Event().wait()
                    return
                status, more, content = answer
                lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in more.items())]
                writer.write(
                    "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(cast("asyncio.Task[None]", task))
        await receiver.serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@pytest.fixture(scope="module")
async def context(database_url: str, redis_url: str) -> AsyncIterator[WorkerContext]:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
        }
    )
    async with open_worker_context(settings, application_name="test", connections=10) as context:
        yield context


@pytest.fixture(autouse=True)
async def empty(context: WorkerContext) -> None:
    await context.redis.flushdb()
    async with context.sessions.begin() as session:
        await session.execute(text("TRUNCATE outbox, event_subscribers, event_deliveries, sync_queue"))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with serving() as running:
        yield running


@pytest.fixture
async def http(receiver: Receiver) -> AsyncIterator[httpx.AsyncClient]:
    """The client as it is, but for one public name that leads to the receiver."""
    overrides = {"https://hooks.example.org": f"http://127.0.0.1:{receiver.port}"}
    async with deliveries.open_http(
        read_settings({"HUB_ENV": "test", **_SECRETS, **_origins(overrides)})
    ) as client:
        yield client


_SECRETS = {"JWT_SECRET": secrets.token_hex(32), "ENCRYPTION_KEY": secrets.token_hex(32)}


def _origins(overrides: Mapping[str, str]) -> dict[str, str]:
    return {"HUB_ORIGIN_OVERRIDES": ",".join(f"{name}={to}" for name, to in overrides.items())}


async def subscribe(
    context: WorkerContext, venue: UUID | None, path: str = "/events", *events: str
) -> tuple[EventSubscriber, str]:
    wishes = Wishes(f"https://hooks.example.org{path}", events)
    return await subscribers.create(context, ACTOR, venue, wishes)


async def announce(
    context: WorkerContext, venue: UUID, event: str = "sync.completed", *, times: int = 1, **data: Any
) -> None:
    async with context.sessions.begin() as session:
        for _ in range(times):
            outbox.announce(session, venue_id=venue, event=event, data={"provider": "juniper", **data})


async def distribute(context: WorkerContext, *streams: str) -> int:
    async with context.sessions.begin() as session:
        return await outbox.distribute(session, streams)


async def claim(context: WorkerContext, limit: int = 32, **options: Any) -> list[Attempt]:
    return await deliveries.claim(context, OpenedSecrets(), limit, options.pop("busy", {}), **options)


async def settle(
    context: WorkerContext, attempt: Attempt, answer: Answer, now: datetime = NOW
) -> DeliveryStatus | None:
    async with context.sessions.begin() as session:
        return await deliveries.settle(session, attempt, answer, now, lambda: 0.0)


async def told(context: WorkerContext) -> list[tuple[UUID, str]]:
    """Return whom deliveries were written for, and of which event."""
    async with context.sessions() as session:
        found = await session.execute(
            select(EventDelivery.subscriber_id, OutboxMessage.topic)
            .join(OutboxMessage, OutboxMessage.id == EventDelivery.outbox_id)
            .order_by(EventDelivery.outbox_id, EventDelivery.subscriber_id)
        )
        return [(row.subscriber_id, row.topic) for row in found]


async def streamed(context: WorkerContext) -> list[dict[str, str]]:
    """Return the entries of the Redis stream, the oldest first."""
    found = cast("list[tuple[str, dict[str, str]]]", await context.redis.xrange(KEY))
    return [fields for _, fields in found]


async def row(context: WorkerContext, delivery_id: UUID) -> EventDelivery:
    async with context.sessions() as session:
        return await session.get_one(EventDelivery, delivery_id)


async def subscriber(context: WorkerContext, identity: UUID) -> EventSubscriber:
    async with context.sessions() as session:
        return await session.get_one(EventSubscriber, identity)


async def one_attempt(context: WorkerContext, path: str = "/events") -> Attempt:
    venue = uuid4()
    await subscribe(context, venue, path)
    await announce(context, venue)
    await distribute(context)
    [attempt] = await claim(context)
    return attempt


async def lose(context: WorkerContext) -> None:
    """Let the leases of all attempts run out, as when whoever made them was killed."""
    async with context.sessions.begin() as session:
        await session.execute(update(EventDelivery).values(next_attempt_at=func.now()))


# ---- announcing --------------------------------------------------------------------------------------------


async def test_what_is_rolled_back_was_never_announced(context: WorkerContext) -> None:
    venue = uuid4()
    async with context.sessions.begin() as session:
        outbox.announce(session, venue_id=venue, event="sync.completed", data={})
        await session.flush()
        await session.rollback()
    assert await distribute(context) == 0


async def test_an_event_nobody_knows_is_not_announced(context: WorkerContext) -> None:
    async with context.sessions() as session:
        with pytest.raises(ValueError, match=r"`sync\.done` is not an event"):
            outbox.announce(session, venue_id=uuid4(), event="sync.done", data={})


async def test_an_event_is_told_by_type_time_and_data() -> None:
    identity, venue = UUID(int=7), uuid4()
    at = datetime(2026, 11, 24, 13, 0, 0, 500_000, tzinfo=UTC)
    event = outbox.told(identity, "sync.failed", venue, {"provider": "juniper"}, at)
    assert event.id == "evt_00000000000000000000000000000007"
    assert event.body == (
        b'{"type":"sync.failed","timestamp":"2026-11-24T13:00:00.500000Z","data":{"provider":"juniper"}}'
    )


def _run(operation: OperationType = OperationType.SYNC) -> Run:
    claimed: dict[str, Any] = {
        "operation_id": uuid4(),
        "venue_id": uuid4(),
        "provider": "juniper",
        "operation_type": operation,
        "entity_type": "full",
        "entity_id": None,
        "payload": {"syncType": "products"},
        "priority": Priority.NORMAL,
        "attempts": 2,
        "max_attempts": 10,
        "run_id": uuid4(),
        "correlation_id": None,
        "progress": None,
        "started_at": NOW,
        "owner": "worker",
        "fencing_token": 2,
        "lease": timedelta(seconds=60),
    }
    run = Run(operations.Claim(**claimed))
    run.steps["event", "item", "push"] = runs.StepReport("event", "item", "push")
    run.steps["event", "item", "push"].counts.update(read=5, created=2, failed=1, api_calls=3)
    return run


async def _messages(context: WorkerContext) -> list[tuple[str, dict[str, Any]]]:
    async with context.sessions() as session:
        found = await session.execute(
            select(OutboxMessage.topic, OutboxMessage.payload).order_by(OutboxMessage.id)
        )
        return [(each.topic, each.payload) for each in found]


async def test_the_end_of_a_sync_is_announced_with_it(context: WorkerContext) -> None:
    well, badly = _run(), _run()
    async with context.sessions.begin() as session:
        await runs.record(session, [runs.Ended(well, OperationStatus.COMPLETED, None)])
        error = UnavailableError("jo@example.org is shut")
        await runs.record(session, [runs.Ended(badly, OperationStatus.DEAD_LETTER, error)])
    counts = {
        **dict.fromkeys(("updated", "unchanged", "skipped", "conflicts", "archived", "deleted"), 0),
        **{"read": 5, "created": 2, "failed": 1, "api_calls": 3},
    }
    common = {"provider": "juniper", "sync_type": "products", "attempts": 2, "counts": counts}
    assert await _messages(context) == [
        (
            "sync.completed",
            {"venue_id": str(well.claim.venue_id), "sync_id": str(well.claim.run_id), **common},
        ),
        (
            "sync.failed",
            {
                "venue_id": str(badly.claim.venue_id),
                "sync_id": str(badly.claim.run_id),
                "error_code": UnavailableError.code,
                **common,
            },
        ),
    ]


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (OperationType.SYNC, OperationStatus.PENDING),  # it is tried again
        (OperationType.SYNC, OperationStatus.PAUSED),  # somebody stopped it
        (OperationType.UPDATE, OperationStatus.COMPLETED),
    ],
)
async def test_what_is_no_end_of_a_sync_is_not_announced(
    context: WorkerContext, operation: OperationType, status: OperationStatus
) -> None:
    async with context.sessions.begin() as session:
        await runs.record(session, [runs.Ended(_run(operation), status, None)])
    assert await _messages(context) == []


async def test_a_sync_that_waited_too_long_is_announced_as_failed(context: WorkerContext) -> None:
    venue = uuid4()
    async with context.sessions.begin() as session:
        for operation in (OperationType.SYNC, OperationType.UPDATE):
            queued = await operations.enqueue(
                session,
                venue_id=venue,
                provider="juniper",
                operation_type=operation,
                entity_type="full",
                payload={"syncType": "full"},
                run_id=uuid4(),
            )
            queued.expires_at = NOW - timedelta(days=400)
    async with context.sessions.begin() as session:
        assert await operations.settle(session) == 2
    [(topic, data)] = await _messages(context)
    assert topic == "sync.failed"
    assert data["venue_id"] == str(venue)
    assert data["error_code"] == operations.EXPIRED
    assert data["counts"] == dict.fromkeys(outbox.SYNC_COUNTS, 0)


# ---- to whom -----------------------------------------------------------------------------------------------


async def test_subscribers_are_told_what_they_want_of_whom_they_may(context: WorkerContext) -> None:
    ours, others = uuid4(), uuid4()
    everything, _ = await subscribe(context, ours)
    failures, _ = await subscribe(context, ours, "/failures", "sync.failed")
    elsewhere, _ = await subscribe(context, others)
    platform, _ = await subscribe(context, None, "/all", "sync.completed", "sync.failed")
    silent, _ = await subscribe(context, ours, "/silent")
    await subscribers.change(context, ACTOR, ours, silent.id, {"active": False})
    await announce(context, ours, "sync.completed")
    await announce(context, ours, "sync.failed")
    await announce(context, others, "health.changed")
    assert await distribute(context) == 3
    assert sorted(await told(context)) == sorted(
        [
            (everything.id, "sync.completed"),
            (everything.id, "sync.failed"),
            (failures.id, "sync.failed"),
            (platform.id, "sync.completed"),
            (platform.id, "sync.failed"),
            (elsewhere.id, "health.changed"),
        ]
    )
    assert await distribute(context) == 0


async def test_two_schedulers_in_the_same_moment_write_a_delivery_once(context: WorkerContext) -> None:
    venue = uuid4()
    await subscribe(context, venue)
    await announce(context, venue, times=20)
    assert sum(await asyncio.gather(*(distribute(context) for _ in range(4)))) == 20
    assert len(await told(context)) == 20


# ---- into streams ------------------------------------------------------------------------------------------


async def test_every_event_goes_into_the_redis_stream(context: WorkerContext) -> None:
    venue = uuid4()
    await announce(context, venue, "sync.completed", sync_id="s_1")
    await announce(context, venue, "health.changed")
    await distribute(context, "redis")
    async with open_streams(context.settings, context.redis) as [stream]:
        assert await outbox.publish(context.sessions, stream) == 2
        assert await outbox.publish(context.sessions, stream) == 0
    entries = await streamed(context)
    assert [entry["type"] for entry in entries] == ["sync.completed", "health.changed"]
    first = entries[0]
    async with context.sessions() as session:
        identity = await session.scalar(select(OutboxMessage.event_id).order_by(OutboxMessage.id).limit(1))
    assert identity is not None
    assert first["id"] == f"evt_{identity.hex}"
    assert first["venue_id"] == str(venue)
    body = json.loads(first["body"])
    assert body["type"] == "sync.completed"
    assert body["data"] == {"venue_id": str(venue), "provider": "juniper", "sync_id": "s_1"}


async def test_the_stream_is_cut_off_at_about_its_length(context: WorkerContext) -> None:
    events = [Event(f"evt_{n}", "sync.completed", None, b"{}") for n in range(1000)]
    await RedisStream(context.redis, 100).put(events)
    assert 100 <= await context.redis.xlen(KEY) < 300  # whole nodes of the stream are cut off
    assert (await streamed(context))[-1]["id"] == "evt_999"


async def test_no_stream_is_written_when_it_is_turned_off(context: WorkerContext) -> None:
    settings = replace(context.settings, event_stream_length=0)
    async with open_streams(settings, context.redis) as streams:
        assert streams == ()
    await announce(context, uuid4())
    await distribute(context)
    async with context.sessions() as session:
        assert await session.scalar(select(OutboxMessage.streams)) == []


@dataclass(slots=True)
class Tape:
    """A stream that keeps what is put in, and fails as often as it is told to, before or after keeping it."""

    name: str = "redis"
    kept: list[str] = field(default_factory=list)
    fails_before: int = 0
    fails_after: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event | None = None

    async def put(self, events: Any) -> None:
        self.entered.set()
        if self.may_go_on is not None:
            await self.may_go_on.wait()
        if self.fails_before:
            self.fails_before -= 1
            raise RedisError("away")
        self.kept += [event.id for event in events]
        if self.fails_after:
            self.fails_after -= 1
            raise RedisError("away")


async def test_a_stream_that_fails_is_given_the_same_events_again(context: WorkerContext) -> None:
    for _ in range(3):
        await announce(context, uuid4())
    await distribute(context, "redis", "rabbitmq")
    tape = Tape(fails_before=1, fails_after=1)
    for _ in range(2):
        with pytest.raises(RedisError):
            await outbox.publish(context.sessions, tape)
    assert await outbox.publish(context.sessions, tape) == 3
    assert tape.kept[:3] == tape.kept[3:]  # once before it was known to be kept, and once more
    assert len(set(tape.kept)) == 3
    other = Tape("rabbitmq")
    assert await outbox.publish(context.sessions, other) == 3  # one stream's trouble isn't another's
    assert other.kept == tape.kept[3:]


async def test_one_process_at_a_time_puts_events_into_a_stream(context: WorkerContext) -> None:
    await announce(context, uuid4())
    await distribute(context, "redis")
    slow, other = Tape(may_go_on=asyncio.Event()), Tape()
    first = asyncio.create_task(outbox.publish(context.sessions, slow))
    await slow.entered.wait()
    assert await outbox.publish(context.sessions, other) == 0
    assert slow.may_go_on is not None
    slow.may_go_on.set()
    assert await first == 1
    assert other.kept == []


# There is no RabbitMQ here: its client's messages are real, and what would be at the other end is played.


@dataclass(slots=True)
class Broker:
    """What the client would be connected to."""

    published: list[tuple[str, Any, bool]] = field(default_factory=list)
    declared: list[tuple[str, str, bool]] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    fails: int = 0

    async def connect(self, url: str) -> "Broker":
        assert url == "amqp://hub:pw@rabbit.example/"
        self.opened += 1
        return self

    async def channel(self, *, publisher_confirms: bool) -> "Broker":
        assert publisher_confirms
        return self

    async def declare_exchange(self, name: str, kind: str, *, durable: bool) -> "Broker":
        self.declared.append((name, str(kind), durable))
        return self

    async def publish(self, message: Any, routing_key: str, *, mandatory: bool) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the broker went away")
        self.published.append((routing_key, message, mandatory))

    async def close(self) -> None:
        self.closed += 1


async def test_rabbitmq_gets_events_by_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    monkeypatch.setattr("aio_pika.connect", broker.connect)
    exchange = RabbitExchange(Secret("amqp://hub:pw@rabbit.example/"))
    events = [
        Event("evt_1", "sync.completed", None, b'{"a":1}'),
        Event("evt_2", "health.changed", None, b'{"a":2}'),
    ]
    await exchange.put(events)
    await exchange.put(events[:1])
    assert (broker.opened, broker.closed) == (1, 0)
    assert broker.declared == [(EXCHANGE, "ExchangeType.TOPIC", True)]
    assert [(key, message.message_id, message.body) for key, message, _ in broker.published] == [
        ("sync.completed", "evt_1", b'{"a":1}'),
        ("health.changed", "evt_2", b'{"a":2}'),
        ("sync.completed", "evt_1", b'{"a":1}'),
    ]
    _, message, mandatory = broker.published[0]
    assert (message.delivery_mode, message.content_type, mandatory) == (2, "application/json", False)
    await exchange.close()
    assert broker.closed == 1


async def test_a_rabbitmq_that_goes_away_is_connected_to_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(fails=1)
    monkeypatch.setattr("aio_pika.connect", broker.connect)
    exchange = RabbitExchange(Secret("amqp://hub:pw@rabbit.example/"))
    events = [Event("evt_1", "sync.completed", None, b"{}")]
    with pytest.raises(ConnectionError):
        await exchange.put(events)
    assert broker.closed == 1
    await exchange.put(events)
    assert (broker.opened, len(broker.published)) == (2, 1)


# ---- signing -----------------------------------------------------------------------------------------------


def test_a_signature_is_that_of_the_standard() -> None:
    signed = b'evt_1.1700000000.{"type":"ping"}'
    by_hand = base64.b64encode(hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()).decode()
    assert deliveries.signature(Secret(SEED), "evt_1", 1700000000, b'{"type":"ping"}') == f"v1,{by_hand}"


def test_the_standards_own_library_takes_our_signatures_and_no_others() -> None:
    now = int(datetime.now(UTC).timestamp())
    other = subscribers.new_secret()
    event = Event("evt_1", "ping", None, b'{"type":"ping"}')
    headers = deliveries.headers(event, [Secret(other), Secret(SEED)], now)
    assert Verifier(SEED).verify(event.body, headers) == {"type": "ping"}
    assert Verifier(other).verify(event.body, headers) == {"type": "ping"}
    for changed, body in (
        (headers, b'{"type":"pong"}'),
        ({**headers, "webhook-id": "evt_2"}, event.body),
        ({**headers, "webhook-timestamp": str(now - 1)}, event.body),
        (deliveries.headers(event, [Secret(other)], now), event.body),
    ):
        with pytest.raises(WebhookVerificationError):
            Verifier(SEED).verify(body, changed)


def test_what_the_documentation_shows_takes_our_signatures_and_no_others() -> None:
    [block] = [each for each in blocks("python") if each.file.name == "subscribe-to-events.md"]
    page: dict[str, Any] = {}
    exec(block.text, page)
    is_from_the_hub = page["is_from_the_hub"]
    now = int(datetime.now(UTC).timestamp())
    event = Event("evt_1", "ping", None, b'{"type":"ping"}')
    headers = deliveries.headers(event, [Secret(subscribers.new_secret()), Secret(SEED)], now)
    assert is_from_the_hub(SEED, headers, event.body)
    assert not is_from_the_hub(SEED, headers, b'{"type":"pong"}')
    assert not is_from_the_hub(subscribers.new_secret(), headers, event.body)
    assert not is_from_the_hub(SEED, deliveries.headers(event, [Secret(SEED)], now - 301), event.body)


def test_secrets_are_long_enough_and_never_the_same() -> None:
    made = {subscribers.new_secret() for _ in range(50)}
    assert len(made) == 50
    assert {len(base64.b64decode(each.removeprefix("whsec_"))) for each in made} == {32}


# ---- one attempt -------------------------------------------------------------------------------------------


def _attempt(url: str) -> Attempt:
    event = Event("evt_1", "ping", None, b'{"type":"ping"}')
    return Attempt(uuid4(), uuid4(), 1, 0, NOW + timedelta(days=4), url, event, [Secret(SEED)])


async def _send(http: httpx.AsyncClient, path: str, **options: Any) -> Answer:
    attempt = _attempt(f"https://hooks.example.org{path}")
    return await deliveries.send(http, attempt, now=datetime.now(UTC).timestamp(), **options)


async def test_an_attempt_can_be_verified_where_it_arrives(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    answer = await _send(http, "/events?token=x")
    assert (answer.taken, answer.status, answer.complaint) == (True, 204, None)
    [(path, headers, body)] = receiver.received
    assert path == "/events?token=x"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "evt_1"
    assert Verifier(SEED).verify(body, headers) == {"type": "ping"}


@pytest.mark.parametrize("status", [200, 202, 299])
async def test_every_2xx_is_taken(http: httpx.AsyncClient, receiver: Receiver, status: int) -> None:
    receiver.answers["/"] = (status, {}, b"thanks")
    answer = await _send(http, "/")
    assert (answer.taken, answer.body) == (True, "thanks")


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_any_other_status_is_a_failure(
    http: httpx.AsyncClient, receiver: Receiver, status: int
) -> None:
    receiver.answers["/"] = (status, {}, b"no")
    answer = await _send(http, "/")
    assert (answer.taken, answer.complaint) == (False, f"it was answered with {status}")


async def test_a_redirect_is_a_failure_and_not_followed(http: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.answers["/"] = (307, {"Location": "https://hooks.example.org/elsewhere"}, b"")
    answer = await _send(http, "/")
    assert not answer.taken
    assert "redirects aren't followed" in (answer.complaint or "")
    assert [path for path, _, _ in receiver.received] == ["/"]


async def test_of_an_answer_only_the_beginning_is_read(http: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.answers["/"] = (500, {}, b"a\0\xff" + b"x" * 5000)
    answer = await _send(http, "/")
    assert answer.body == "a\ufffd\ufffd" + "x" * 1021


async def test_an_answer_that_doesn_t_come_is_waited_for_so_long(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers["/"] = None
    answer = await _send(http, "/", seconds=0.05)
    assert (answer.status, answer.complaint) == (None, "there was no answer within 0.05 seconds")


async def test_nobody_there_is_a_failure(http: httpx.AsyncClient) -> None:
    async with open_client(origin_overrides={"https://hooks.example.org": "http://127.0.0.1:9"}) as nowhere:
        answer = await _send(nowhere, "/")
    assert answer.complaint == "there is no connection to the address, or no secure one"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1"])
async def test_a_name_that_leads_inside_is_refused_without_saying_where(
    receiver: Receiver, address: str
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [address]

    async with open_client(resolve=resolve) as guarded:
        answer = await _send(guarded, "/")
    assert answer.complaint == "the address doesn't lead to the public internet, or isn't https"
    assert receiver.received == []


async def test_the_client_refuses_private_addresses_outside_development(receiver: Receiver) -> None:
    plain = _attempt(f"http://127.0.0.1:{receiver.port}/")
    async with deliveries.open_http(read_settings({"HUB_ENV": "test", **_SECRETS})) as guarded:
        assert not (await deliveries.send(guarded, plain, now=0.0)).taken
    assert receiver.received == []
    async with deliveries.open_http(read_settings({"HUB_ENV": "development", **_SECRETS})) as local:
        assert (await deliveries.send(local, plain, now=0.0)).taken


async def test_cookies_of_one_subscriber_are_not_sent_to_another(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers["/one"] = (200, {"Set-Cookie": "who=one; Path=/"}, b"")
    await _send(http, "/one")
    await _send(http, "/two")
    assert "cookie" not in receiver.received[1][1]


# ---- what comes of it --------------------------------------------------------------------------------------


async def test_a_delivery_that_is_taken_has_ended(context: WorkerContext) -> None:
    attempt = await one_attempt(context)
    assert await settle(context, attempt, Answer(12, 200, "ok")) is DeliveryStatus.DELIVERED
    done = await row(context, attempt.delivery_id)
    assert (done.status, done.attempts, done.next_attempt_at) == (DeliveryStatus.DELIVERED, 1, None)
    assert (done.answer_status, done.answer_body, done.duration_ms, done.error) == (200, "ok", 12, None)
    assert done.delivered_at == NOW
    assert await claim(context) == []


async def test_the_waits_of_the_standard_are_kept_for_over_three_days() -> None:
    attempt, waited = _attempt("https://hooks.example.org/"), []
    for step in range(20):
        again = deliveries.next_try(replace(attempt, step=step), Answer(1, 500), NOW, lambda: 0.0)
        if again is None:
            break
        waited.append((again - NOW).total_seconds())
    assert waited == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    assert timedelta(days=3) < timedelta(seconds=sum(waited)) < outbox.KEPT_TRYING


def test_no_two_wait_the_same_time() -> None:
    attempt = _attempt("https://hooks.example.org/")
    latest = deliveries.next_try(attempt, Answer(1, 500), NOW, lambda: 0.999)
    assert latest is not None
    assert timedelta(seconds=5) < latest - NOW < timedelta(seconds=6.1)


@pytest.mark.parametrize(
    ("said", "seconds"), [("120", 120), ("1", 5), ("99999999999999999999", 86400), ("soon", 5), ("-3", 5)]
)
async def test_retry_after_is_kept_to(
    context: WorkerContext, http: httpx.AsyncClient, receiver: Receiver, said: str, seconds: int
) -> None:
    receiver.answers["/"] = (429, {"Retry-After": said}, b"")
    answer = await _send(http, "/")
    assert deliveries.next_try(_attempt(""), answer, NOW, lambda: 0.0) == NOW + timedelta(seconds=seconds)


async def test_a_failed_attempt_waits_and_the_subscriber_is_left_alone_for_a_moment(
    context: WorkerContext,
) -> None:
    attempt = await one_attempt(context)
    assert await settle(context, attempt, Answer(7, 503, "later")) is DeliveryStatus.PENDING
    waiting = await row(context, attempt.delivery_id)
    assert waiting.next_attempt_at == NOW + timedelta(seconds=5)
    assert (waiting.answer_status, waiting.answer_body) == (503, "later")
    assert waiting.error == "it was answered with 503"
    failing = await subscriber(context, attempt.subscriber_id)
    assert (failing.failures, failing.failing_since) == (1, NOW)
    assert failing.held_until == NOW + timedelta(seconds=1)
    assert failing.active


def test_a_subscriber_is_left_alone_longer_each_time_and_never_longer_than_five_minutes() -> None:
    assert [deliveries.hold(n, lambda: 0.0).total_seconds() for n in (1, 2, 3, 9, 10, 5000)] == [
        *(1, 2, 4, 256, 300, 300)
    ]


async def test_after_the_last_wait_it_is_given_up(context: WorkerContext) -> None:
    attempt = replace(await one_attempt(context), step=len(deliveries.WAITS))
    assert await settle(context, attempt, Answer(7, error="it was dark")) is DeliveryStatus.FAILED
    ended = await row(context, attempt.delivery_id)
    assert (ended.status, ended.next_attempt_at, ended.error) == (DeliveryStatus.FAILED, None, "it was dark")


async def test_what_waited_behind_others_is_given_up_as_well(context: WorkerContext) -> None:
    attempt = replace(await one_attempt(context), give_up_at=NOW)
    assert await settle(context, attempt, Answer(7, 500)) is DeliveryStatus.FAILED


async def test_gone_ends_the_subscriber(context: WorkerContext) -> None:
    venue = uuid4()
    gone, _ = await subscribe(context, venue)
    await announce(context, venue, times=2)
    await distribute(context)
    first, _ = await claim(context)
    assert await settle(context, first, Answer(3, 410)) is DeliveryStatus.FAILED
    ended = await subscriber(context, gone.id)
    assert not ended.active
    assert ended.disabled_at is not None
    assert ended.disabled_reason == "it answered 410: nobody wants to be told there any more"
    async with context.sessions() as session:
        statuses = set(await session.scalars(select(EventDelivery.status)))
        entry = await session.scalar(
            select(AuditEntry).filter_by(action="subscriber.disabled", venue_id=venue)
        )
    assert statuses == {DeliveryStatus.FAILED}
    assert entry is not None
    assert (entry.actor, entry.target) == ("hub", str(gone.id))
    await announce(context, venue)
    await distribute(context)
    assert len(await told(context)) == 2  # nothing new


@pytest.mark.parametrize(
    ("failures", "days", "active"), [(8, 6, True), (9, 4, True), (9, 5, False), (5000, 30, False)]
)
async def test_a_subscriber_that_fails_for_days_is_disabled(
    context: WorkerContext, failures: int, days: int, active: bool
) -> None:
    attempt = await one_attempt(context)
    async with context.sessions.begin() as session:
        since = NOW - timedelta(days=days)
        await session.execute(update(EventSubscriber).values(failures=failures, failing_since=since))
    await settle(context, attempt, Answer(7, 500))
    found = await subscriber(context, attempt.subscriber_id)
    assert found.active is active
    if not active:
        assert found.disabled_reason == f"{failures + 1} attempts failed over {days} days, and none was taken"


async def test_one_that_is_taken_forgets_all_failures(context: WorkerContext) -> None:
    await one_attempt(context)
    async with context.sessions.begin() as session:
        long_ago = datetime(2026, 1, 1, tzinfo=UTC)
        await session.execute(
            update(EventSubscriber).values(failures=9, failing_since=long_ago, held_until=long_ago)
        )
    await lose(context)
    [attempt] = await claim(context)
    await settle(context, attempt, Answer(7, 200))
    found = await subscriber(context, attempt.subscriber_id)
    assert (found.failures, found.failing_since, found.held_until) == (0, None, None)


# ---- claiming ----------------------------------------------------------------------------------------------


async def test_whoever_is_killed_between_sending_and_writing_it_down_loses_nothing(
    context: WorkerContext, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    first = await one_attempt(context)
    await deliveries.send(http, first, now=NOW.timestamp())
    assert await claim(context) == []  # for as long as it may still be under way
    await lose(context)
    [again] = await claim(context)
    await deliveries.send(http, again, now=NOW.timestamp() + 60)
    assert receiver.ids("/events") == [first.event.id, first.event.id]
    assert receiver.received[0][2] == receiver.received[1][2]  # to the byte
    assert again.number == 2
    assert await settle(context, first, Answer(1, 500)) is None  # too late: another has begun
    assert await settle(context, again, Answer(1, 200)) is DeliveryStatus.DELIVERED


async def test_of_claimers_in_the_same_moment_each_gets_others(context: WorkerContext) -> None:
    venue = uuid4()
    for n in range(8):
        await subscribe(context, venue, f"/{n}")
    await announce(context, venue, times=2)
    await distribute(context)
    claimed = await asyncio.gather(*(claim(context) for _ in range(4)))
    ids = [attempt.delivery_id for each in claimed for attempt in each]
    assert len(ids) == len(set(ids)) == 16


async def test_nobodys_many_events_keep_anothers_few_waiting(context: WorkerContext) -> None:
    loud, quiet = uuid4(), uuid4()
    crowded, _ = await subscribe(context, loud)
    calm, _ = await subscribe(context, quiet)
    await announce(context, loud, times=30)
    await announce(context, quiet)
    await distribute(context)
    attempts = await claim(context)
    assert [each.subscriber_id for each in attempts].count(crowded.id) == deliveries.EACH
    assert [each.subscriber_id for each in attempts].count(calm.id) == 1
    busy = {crowded.id: deliveries.EACH}
    assert await claim(context, busy=busy) == []


async def test_when_there_is_room_for_few_each_subscriber_comes_first_once(context: WorkerContext) -> None:
    venue = uuid4()
    for n in range(3):
        await subscribe(context, venue, f"/{n}")
    await announce(context, venue, times=5)
    await distribute(context)
    attempts = await claim(context, limit=3)
    assert len({each.subscriber_id for each in attempts}) == 3


async def test_one_that_fails_is_asked_by_one_attempt_at_a_time(context: WorkerContext) -> None:
    venue = uuid4()
    failing, _ = await subscribe(context, venue)
    await announce(context, venue, times=5)
    await distribute(context)
    async with context.sessions.begin() as session:
        await session.execute(update(EventSubscriber).values(failures=1))
    assert len(await claim(context)) == 1
    assert await claim(context, busy={failing.id: 1}) == []
    async with context.sessions.begin() as session:
        await session.execute(update(EventSubscriber).values(held_until=func.now() + timedelta(minutes=1)))
    assert await claim(context) == []


async def test_what_can_t_be_signed_waits(context: WorkerContext) -> None:
    venue = uuid4()
    spoilt, _ = await subscribe(context, venue, "/spoilt")
    sound, _ = await subscribe(context, venue, "/sound")
    await announce(context, venue)
    await distribute(context)
    async with context.sessions.begin() as session:
        await session.execute(
            update(EventSubscriber)
            .where(EventSubscriber.id == spoilt.id)
            .values(encrypted_secret=sound.encrypted_secret)  # sealed for another row
        )
    assert [each.subscriber_id for each in await claim(context)] == [sound.id]


# ---- all of it together ------------------------------------------------------------------------------------


async def test_a_dead_subscriber_holds_up_nobody(
    context: WorkerContext, http: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "EVERY", 0.02)
    monkeypatch.setattr(telling, "GRACE_SECONDS", 0.0)
    venue = uuid4()
    await announce(context, venue, times=25)
    receiver.answers["/dead"] = None
    receiver.answers["/ill"] = (500, {}, b"")
    for path in ("/dead", "/ill", "/well"):
        await subscribe(context, venue, path)
    await distribute(context)
    stopping = asyncio.Event()
    sender = asyncio.create_task(Sender(context, http).run(stopping))

    await receiver.until(lambda: len(receiver.ids("/well")) == 25)
    stopping.set()
    await sender
    assert len(set(receiver.ids("/well"))) == len(receiver.ids("/well")) == 25
    assert len(receiver.ids("/dead")) == deliveries.EACH
    assert 1 <= len(receiver.ids("/ill")) <= deliveries.EACH + 1


async def test_the_scheduler_tells_the_outside_from_announcement_to_delivery(
    context: WorkerContext, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "EVERY", 0.02)
    overrides = {"https://hooks.example.org": f"http://127.0.0.1:{receiver.port}"}
    led = replace(context, settings=replace(context.settings, origin_overrides=overrides))
    venue = uuid4()
    _, secret = await subscribe(context, venue)
    stopping = asyncio.Event()
    working = asyncio.create_task(telling.keep_telling(led, stopping))
    await announce(context, venue, "sync.completed", sync_id="s_1")

    await receiver.until(lambda: bool(receiver.received))
    await context.redis.xread({KEY: "0"}, block=2500)
    stopping.set()
    await working
    [(_, headers, body)] = receiver.received
    assert Verifier(secret).verify(body, headers)["data"]["sync_id"] == "s_1"
    [entry] = await streamed(context)
    assert entry["id"] == headers["webhook-id"]
    assert entry["body"].encode() == body


async def test_what_was_told_long_ago_is_forgotten(context: WorkerContext) -> None:
    venue = uuid4()
    await subscribe(context, venue)
    await announce(context, venue, times=3)
    await distribute(context)
    taken, failed, pending = await claim(context)
    await settle(context, taken, Answer(1, 200))
    await settle(context, replace(failed, step=99), Answer(1, 500))
    await announce(context, venue)  # nobody was asked yet whether to tell it
    long_ago = {"created_at": datetime.now(UTC) - timedelta(days=100)}
    async with context.sessions.begin() as session:
        await session.execute(update(EventDelivery).values(long_ago))
        await session.execute(update(OutboxMessage).values(long_ago))
    await retention.forget_old(context.sessions, timedelta(days=90))
    async with context.sessions() as session:
        assert list(await session.scalars(select(EventDelivery.id))) == [pending.delivery_id]
        published = select(OutboxMessage.published_at.is_not(None)).order_by(OutboxMessage.id)
        assert list(await session.scalars(published)) == [True, False]
