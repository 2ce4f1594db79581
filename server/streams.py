"""Where every event goes besides subscribers: a Redis stream, and RabbitMQ when an operator names one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from engine.ports import Secret
from server.services.outbox import Event, Stream
from server.settings import Settings

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange

KEY = "hub:events"
EXCHANGE = "integration.events"
PUT_SECONDS = 10.0  # for all events of a turn


@asynccontextmanager
async def open_streams(settings: Settings, redis: Redis) -> AsyncIterator[tuple[Stream, ...]]:
    """Open the streams that are wanted, each connected to when it is first used."""
    exchange: RabbitExchange | None = None
    opened: list[Stream] = []
    if settings.event_stream_length > 0:
        opened.append(RedisStream(redis, settings.event_stream_length))
    if settings.rabbitmq_url is not None:
        exchange = RabbitExchange(settings.rabbitmq_url)
        opened.append(exchange)
    try:
        yield tuple(opened)
    finally:
        if exchange is not None:
            await exchange.close()


@dataclass(frozen=True, slots=True)
class RedisStream:
    """The stream `hub:events`. An entry has the event's `id`, its `type`, the `venue_id` and the `body`.

    It is cut off at about `length` entries, the oldest first.
    """

    redis: Redis
    length: int
    name: str = "redis"

    async def put(self, events: Sequence[Event]) -> None:
        async with asyncio.timeout(PUT_SECONDS), self.redis.pipeline(transaction=False) as pipeline:
            for event in events:
                fields = {
                    "id": event.id,
                    "type": event.type,
                    "venue_id": str(event.venue_id or ""),
                    "body": event.body,
                }
                pipeline.xadd(KEY, fields, maxlen=self.length, approximate=True)  # type: ignore[arg-type]  # invariant
            await pipeline.execute()


@dataclass(slots=True)
class RabbitExchange:
    """The topic exchange `integration.events`: an event's type is its routing key, its id the message's.

    An event counts as put in when the broker has confirmed it. One that no queue is bound for, it drops.
    """

    url: Secret
    name: str = "rabbitmq"
    _connection: AbstractConnection | None = field(default=None, repr=False)
    _exchange: AbstractExchange | None = field(default=None, repr=False)

    async def put(self, events: Sequence[Event]) -> None:
        from aio_pika import DeliveryMode, Message

        try:
            async with asyncio.timeout(PUT_SECONDS):
                exchange = self._exchange or await self._open()
                publishing = []
                for event in events:
                    message = Message(
                        event.body,
                        message_id=event.id,
                        type=event.type,
                        content_type="application/json",
                        delivery_mode=DeliveryMode.PERSISTENT,
                    )
                    publishing.append(exchange.publish(message, event.type, mandatory=False))
                await asyncio.gather(*publishing)
        except BaseException:  # whatever state it is in: the next turn begins anew
            await self.close()
            raise

    async def _open(self) -> AbstractExchange:
        from aio_pika import ExchangeType, connect

        self._connection = await connect(self.url.reveal())
        channel = await self._connection.channel(publisher_confirms=True)
        self._exchange = await channel.declare_exchange(EXCHANGE, ExchangeType.TOPIC, durable=True)
        return self._exchange

    async def close(self) -> None:
        """Close the connection, if there is one; the next event opens another."""
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            await connection.close()
