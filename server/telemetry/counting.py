"""What happened, of all processes together: brought to Redis by each of them, and read when somebody asks.

Redis may be emptied at any time; counters then begin again at zero, which Prometheus takes for a restart.
While it is away each process keeps what it counted. A process that is killed loses the last seconds' counts.
"""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.telemetry import metrics
from server.telemetry.metrics import BEYOND, SUM, Counts, Histogram

log = structlog.get_logger(__name__)

KEY = "hub:{metrics}:counts"
FLUSH_SECONDS = 2.0
REDIS_SECONDS = 2.0
_MARK_SECONDS = 3600
# A batch has a number, so that one whose answer was lost isn't added twice when it is sent again.
_ADD = """
if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for index = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[index], ARGV[index + 1]) end
return 1
"""


class Flush:
    """Brings this process's counts to Redis."""

    def __init__(self, redis: Redis) -> None:
        self._add = redis.register_script(_ADD)
        self._mark = f"hub:{{metrics}}:flushed:{secrets.token_hex(8)}"
        self._number = 0
        self._batch: Counts = {}
        self._away = False
        self._flushing = asyncio.Lock()

    async def flush(self) -> None:
        """Bring what was counted to Redis; raises RedisError or OSError, and then it is kept."""
        async with self._flushing:
            if not self._batch:
                self._batch = metrics.drain()
                self._number += 1
            if not self._batch:
                return
            args: list[str | int | float] = [self._number, _MARK_SECONDS]
            for key, value in self._batch.items():
                args += [orjson.dumps(key).decode(), value]
            async with asyncio.timeout(REDIS_SECONDS):
                await self._add(keys=[KEY, self._mark], args=args)
            self._batch = {}

    async def try_flush(self) -> None:
        """Flush, and say in the log when Redis can't be reached."""
        try:
            await self.flush()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            if not self._away:
                log.warning("metrics.not_kept", error=type(error).__name__)
            self._away = True
        else:
            self._away = False

    async def keep_flushing(self, every: float = FLUSH_SECONDS) -> None:
        """Flush again and again, until cancelled."""
        while True:
            await asyncio.sleep(every)
            await self.try_flush()


@asynccontextmanager
async def counting(redis: Redis, every: float = FLUSH_SECONDS) -> AsyncIterator[Flush]:
    """Bring this process's counts to Redis every few seconds, and the last ones at the end."""
    flush = Flush(redis)
    task = asyncio.create_task(flush.keep_flushing(every))
    try:
        yield flush
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await flush.try_flush()


async def read_counts(redis: Redis) -> Counts:
    """Return what all processes counted; empty while Redis is away."""
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            found = await redis.hgetall(KEY)
    except (RedisError, OSError) as error:
        log.warning("metrics.not_read", error=type(error).__name__)
        return {}
    counts: Counts = {}
    for written, value in found.items():
        name, labels, part = orjson.loads(written)
        metric = metrics.BY_NAME.get(name)
        if metric is None or len(labels) != len(metric.labels):  # another version's
            continue
        if isinstance(metric, Histogram) and part not in (SUM, BEYOND):
            place = bisect_left(metric.buckets, float(part))  # another version's buckets go where they fit
            part = str(metric.buckets[place]) if place < len(metric.buckets) else BEYOND
        key = (name, tuple(labels), part)
        counts[key] = counts.get(key, 0) + float(value)
    return counts
