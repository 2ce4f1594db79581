"""Tell workers that there is work, and hand it out fairly. PostgreSQL has what is to be done; Redis has ids.

A lane has a shelf for each provider, a shelf a place for each venue, and a place the ids of its operations,
oldest first. Venues take turns: one that queues ten thousand operations has no more turns than one that
queues a single one. An operation is in its lane once however often it is announced, so sweeps don't flood.
Losing all of Redis loses nothing: the next sweep announces again whatever is due.

    hub:work:LANE                   set: providers with work
    hub:work:LANE:PROVIDER          sorted set: venues by their turn
    hub:work:LANE:PROVIDER:VENUE    sorted set: ids by the time they were queued
    hub:turn:LANE                   the turn that was served last
    hub:bell:LANE                   list: one entry when somebody who has nothing to do should look
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from server.services import operations
from server.services.operations import LANES, Due

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0  # the longest an operation waits to be announced again when Redis has forgotten it
_ANNOUNCE_SECONDS = 2.0  # a caller with a request to answer doesn't wait longer for Redis
MOST_LOOKED_AT = 100_000  # operations, in one sweep
_AT_ONCE = 500  # ids in one call of a script, which nobody else can interrupt

_ANNOUNCE = """
local new, rung = 0, {}
for i = 1, #ARGV, 5 do
    local lane, provider, venue = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local shelf = 'hub:work:' .. lane .. ':' .. provider
    if redis.call('ZADD', shelf .. ':' .. venue, 'NX', ARGV[i + 4], ARGV[i + 3]) == 1 then
        new = new + 1
        local turn = tonumber(redis.call('GET', 'hub:turn:' .. lane) or '0') + 1
        if redis.call('ZADD', shelf, 'NX', turn, venue) == 1 then
            redis.call('SADD', 'hub:work:' .. lane, provider)
        end
        rung[lane] = true
    end
end
for lane, _ in pairs(rung) do
    if redis.call('LLEN', 'hub:bell:' .. lane) == 0 then redis.call('LPUSH', 'hub:bell:' .. lane, 1) end
end
return new
"""

# Lanes are numbered from the most urgent. What begins in a lane counts in it and in all more urgent ones, and
# none of these may be full: neither for the worker (`free`), nor for the provider and the venue (`running`
# against `limits`). What can't begin now is left where it is.
_TAKE = """
local ask = cjson.decode(ARGV[1])
local taken, heads = {}, {}

local function may(place, kind, name)
    local running = ask.running[kind][name]
    for i = 1, place do
        if (running and running[i] or 0) >= ask.limits[kind][i] then return false end
    end
    return true
end

local function count(place, kind, name)
    local running = ask.running[kind][name] or {}
    for i = 1, #ask.lanes do
        running[i] = (running[i] or 0) + (i <= place and 1 or 0)
    end
    ask.running[kind][name] = running
end

local function open(place, provider, venue)
    return not ask.busy[venue .. ':' .. provider] and may(place, 'venue', venue)
end

local function head(shelf, place, provider)
    local from = 0
    while true do
        local some = redis.call('ZRANGE', shelf, from, from + 15, 'WITHSCORES')
        if #some == 0 then return false end
        for i = 1, #some, 2 do
            if open(place, provider, some[i]) then
                return {venue = some[i], turn = tonumber(some[i + 1])}
            end
        end
        from = from + 16
    end
end

local function take_one(place)
    local lane = ask.lanes[place]
    local key = 'hub:work:' .. lane
    local best, best_provider
    for _, provider in ipairs(redis.call('SMEMBERS', key)) do
        if may(place, 'provider', provider) then
            local shelf = key .. ':' .. provider
            local first = heads[shelf]
            if first == nil or (first and not open(place, provider, first.venue)) then
                first = head(shelf, place, provider)
                heads[shelf] = first
            end
            if first and (not best or first.turn < best.turn) then best, best_provider = first, provider end
        end
    end
    if not best then return false end
    local shelf = key .. ':' .. best_provider
    local ids = shelf .. ':' .. best.venue
    local id = redis.call('ZPOPMIN', ids)[1]
    local turn = math.max(best.turn, tonumber(redis.call('GET', 'hub:turn:' .. lane) or '0'))
    redis.call('SET', 'hub:turn:' .. lane, turn)
    if redis.call('EXISTS', ids) == 1 then
        redis.call('ZADD', shelf, turn + 1, best.venue)
    else
        redis.call('ZREM', shelf, best.venue)
        if redis.call('EXISTS', shelf) == 0 then redis.call('SREM', key, best_provider) end
    end
    heads[shelf] = nil
    if id then
        ask.busy[best.venue .. ':' .. best_provider] = true
        count(place, 'venue', best.venue)
        count(place, 'provider', best_provider)
        for _, value in ipairs({lane, best_provider, best.venue, id}) do taken[#taken + 1] = value end
    end
    return true
end

local function has_room(place)
    for i = 1, place do
        if ask.free[i] <= 0 then return false end
    end
    return true
end

local function pick(backwards)
    local first, last, step = 1, #ask.lanes, 1
    if backwards then first, last, step = #ask.lanes, 1, -1 end
    for place = first, last, step do
        if has_room(place) and take_one(place) then
            for i = 1, place do ask.free[i] = ask.free[i] - 1 end
            return true
        end
    end
    return false
end

while #taken < 4 * ask.most and pick((ask.picks + #taken / 4 + 1) % ask.floor == 0) do end
for _, lane in ipairs(ask.lanes) do
    local bell = 'hub:bell:' .. lane
    if redis.call('EXISTS', 'hub:work:' .. lane) == 0 then
        redis.call('DEL', bell, 'hub:turn:' .. lane)
    elseif #taken > 0 and redis.call('LLEN', bell) == 0 then
        redis.call('LPUSH', bell, 1)
    end
end
return taken
"""


def bell_key(lane: str) -> str:
    """Return the Redis list that has an entry when somebody should look into a lane."""
    return f"hub:bell:{lane}"


async def announce(redis: Redis, found: Sequence[Due]) -> bool:
    """Put operations that have just been committed into their lanes; never raises.

    False: Redis can't be reached, and a sweep will do it.
    """
    try:
        async with asyncio.timeout(_ANNOUNCE_SECONDS):
            await _announce(redis, found)
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        log.warning("relay.announce_failed", operations=len(found), error=type(error).__name__)
        return False
    return True


async def sweep(
    sessions: async_sessionmaker[AsyncSession],
    redis: Redis,
    *,
    lanes: Collection[str] = LANES,
    limit: int = 1000,
) -> int:
    """Announce what is due and in no lane; returns how many there were. Raises when a store is away.

    It looks at the `limit` most urgent, and at ten times as many for as long as some of them were in no lane:
    when Redis has lost them all, they are all back with the next sweep.
    """
    announced = 0
    while True:
        async with sessions() as session:
            found = await operations.due(session, limit, lanes=lanes)
        new = await _announce(redis, found)
        announced += new
        if not new or len(found) < limit or limit >= MOST_LOOKED_AT:
            return announced
        limit *= 10


async def _announce(redis: Redis, found: Sequence[Due]) -> int:
    script = redis.register_script(_ANNOUNCE)
    new = 0
    for start in range(0, len(found), _AT_ONCE):
        some = [
            value
            for each in found[start : start + _AT_ONCE]
            for value in (each.lane, each.provider, str(each.venue_id), str(each.id), each.queued_at)
        ]
        new += int(await script(args=some))
    return new


async def take(redis: Redis, ask: Mapping[str, Any]) -> list[Due]:
    """Take operations out of their lanes, as many as a worker's `Slots.ask` says; raises RedisError, OSError.

    What isn't an id is dropped: somebody else wrote it.
    """
    values = await redis.register_script(_TAKE)(args=[orjson.dumps(ask).decode()])
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    found = []
    for lane, provider, venue, operation in zip(*(texts[start::4] for start in range(4)), strict=True):
        try:
            found.append(Due(UUID(operation), UUID(venue), provider, lane, 0.0))
        except ValueError:
            log.warning("lanes.not_an_id", lane=lane)
    return found


async def listed(redis: Redis, lane: str) -> list[UUID]:
    """Return the operations in a lane, in no order; for a person or a test to look at."""
    members: list[Any] = []
    async for key in redis.scan_iter(match=f"hub:work:{lane}:*:*"):
        members += await redis.zrange(key, 0, -1)
    return [UUID(each.decode() if isinstance(each, bytes) else each) for each in members]
