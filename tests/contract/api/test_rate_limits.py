"""How often one caller may ask, and who counts as one."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from litestar import Litestar
from redis.asyncio import Redis

from server.api.limits import RETRY_SECONDS, RequestCounts, network
from server.app import create_app
from server.settings import Settings, SettingsError, read_settings
from tests.contract.api.conftest import API, OTHERS, OURS, SECRET, VAULT_KEYS, Hub, bearer, living

GENERAL, WEBHOOKS, ADMIN = 5, 7, 3
WINDOW_MS = 60_000
HEADERS = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
MINE: Mapping[str, Any] = {"params": {"venueId": str(OURS)}}


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return replace(
        settings,
        rate_limit_general=GENERAL,
        rate_limit_webhooks=WEBHOOKS,
        rate_limit_admin=ADMIN,
        rate_limit_window_ms=WINDOW_MS,
    )


@pytest.fixture
async def api(limited: Settings, hub: Hub) -> AsyncIterator[Litestar]:
    """The running API with small limits; nobody has asked anything yet."""
    if keys := await counted(hub.app):
        await hub.context.redis.delete(*keys)
    before = hub.app.state.request_counts
    hub.app.state.request_counts = RequestCounts(hub.context.redis, limited)
    yield hub.app
    hub.app.state.request_counts = before


async def counted(app: Litestar) -> list[bytes]:
    return [key async for key in app.state.context.redis.scan_iter("hub:requests:*")]


async def ask(app: Litestar, path: str, *, host: str = "192.0.2.1", **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(cast(Any, app), client=(host, 1234))
    method = options.pop("method", "GET")
    async with httpx.AsyncClient(transport=transport, base_url="http://hub.test") as http:
        return await http.request(method, path, **options)


async def statuses(app: Litestar, times: int, path: str = API, **options: Any) -> list[int]:
    options = {**MINE, "headers": bearer(), **options}
    return [(await ask(app, path, **options)).status_code for _ in range(times)]


def test_what_the_original_says_is_the_default() -> None:
    settings = read_settings({"HUB_ENV": "test", "JWT_SECRET": SECRET, "HUB_VAULT_KEYS": VAULT_KEYS})
    assert settings.rate_limit_general == 100
    assert settings.rate_limit_webhooks == 1000
    assert settings.rate_limit_admin == 50
    assert settings.rate_limit_window_ms == 60_000


def test_numbers_that_are_none_are_refused_at_the_start() -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings(
            {
                "HUB_ENV": "test",
                "JWT_SECRET": SECRET,
                "HUB_VAULT_KEYS": VAULT_KEYS,
                "RATE_LIMIT_MAX_REQUESTS": "-1",
                "HUB_RATE_LIMIT_ADMIN": "many",
                "RATE_LIMIT_WINDOW_MS": "0",
            }
        )
    assert [problem.split()[0] for problem in refusal.value.problems] == [
        "RATE_LIMIT_MAX_REQUESTS",
        "HUB_RATE_LIMIT_ADMIN",
        "RATE_LIMIT_WINDOW_MS",
    ]


async def test_answers_say_where_a_caller_stands(api: Litestar) -> None:
    for asked in range(1, GENERAL + 1):
        answer = await ask(api, API, headers=bearer(), **MINE)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-limit"] == "5"
        assert answer.headers["ratelimit-remaining"] == str(GENERAL - asked)
        assert 1 <= int(answer.headers["ratelimit-reset"]) <= 60
        assert "retry-after" not in answer.headers


async def test_one_too_many_is_refused_and_told_when_to_come_back(api: Litestar) -> None:
    await statuses(api, GENERAL)
    answer = await ask(api, API, headers=bearer(), **MINE)
    assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert answer.json()["error"].startswith("too many requests: try again in ")
    assert answer.headers["ratelimit-remaining"] == "0"
    assert answer.headers["retry-after"] == answer.headers["ratelimit-reset"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-request-id"] == answer.json()["requestId"]


async def test_many_at_once_are_counted_one_by_one(api: Litestar) -> None:
    answers = await asyncio.gather(*(ask(api, API, headers=bearer(), **MINE) for _ in range(40)))
    assert sorted(answer.status_code for answer in answers) == [200] * GENERAL + [429] * (40 - GENERAL)
    assert {answer.headers["ratelimit-remaining"] for answer in answers} == {"0", "1", "2", "3", "4"}


async def test_processes_count_together(api: Litestar, limited: Settings) -> None:
    other = create_app(limited)
    async with living(other):
        assert await statuses(api, 3) == [200] * 3
        assert await statuses(other, 3) == [200, 200, 429]
        assert await statuses(api, 1) == [429]


async def test_a_window_ends(api: Litestar) -> None:
    await statuses(api, GENERAL)
    redis: Redis = api.state.context.redis
    [key] = await counted(api)
    await redis.pexpire(key, 30_000)
    assert await statuses(api, 1) == [429]
    assert 0 < await redis.pttl(key) <= 30_000  # what is refused doesn't lengthen it
    await redis.pexpireat(key, 1)  # it is over
    assert await statuses(api, 1) == [200]


async def test_a_count_without_an_end_gets_one(api: Litestar) -> None:
    await statuses(api, 1)
    redis: Redis = api.state.context.redis
    [key] = await counted(api)
    await redis.persist(key)
    await statuses(api, 1)
    assert 0 < await redis.pttl(key) <= WINDOW_MS


async def test_redis_is_not_told_who_asks(api: Litestar) -> None:
    await statuses(api, 1, headers=bearer(userId="jane@example.com"))
    assert await counted(api)
    keys = [key async for key in api.state.context.redis.scan_iter("*")]
    assert not [key for key in keys if b"jane" in key]


# --- who counts as one


async def test_a_caller_is_whom_the_token_names(api: Litestar) -> None:
    assert await statuses(api, GENERAL + 1, headers=bearer(userId="a")) == [200] * GENERAL + [429]
    assert await statuses(api, 1, headers=bearer(userId="b")) == [200]
    # Neither another token, nor another address, nor another venue makes another caller.
    assert await statuses(api, 1, headers=bearer(userId="a", jti="2")) == [429]
    assert await statuses(api, 1, headers=bearer(userId="a"), host="192.0.2.9") == [429]
    assert await statuses(api, 1, headers=bearer("venue_admin", OTHERS, userId="a")) == [429]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x.y.z"}, bearer(exp=1)])
async def test_without_a_good_token_it_is_the_address(api: Litestar, headers: dict[str, str]) -> None:
    assert await statuses(api, GENERAL + 1, headers=headers) == [401] * GENERAL + [429]
    assert await statuses(api, 1, headers=headers, host="192.0.2.2") == [401]
    assert await statuses(api, 1) == [200]  # one with a token isn't kept out by others at its address


async def test_refusals_say_where_a_caller_stands_too(api: Litestar) -> None:
    for status, headers in ((401, {}), (403, bearer("superuser"))):
        answer = await ask(api, API, headers=headers, **MINE)
        assert answer.status_code == status
        assert answer.headers["ratelimit-remaining"] == "4"


async def test_a_forged_address_makes_no_other_caller(api: Litestar) -> None:
    for number in range(GENERAL):
        headers = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
        await ask(api, f"{API}/health/stripe", headers=headers, **MINE)
    answer = await ask(api, f"{API}/health/stripe", headers={"X-Forwarded-For": "192.0.2.77"}, **MINE)
    assert answer.status_code == 429


@pytest.mark.parametrize(
    ("host", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("proxy", "proxy"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_whose_an_address_is(host: str | None, whose: str) -> None:
    assert network(host) == whose


# --- what counts as what


async def test_administrators_routes_are_counted_apart(api: Litestar) -> None:
    path = f"{API}/admin/queue-metrics"
    headers = bearer("admin", None)
    assert await statuses(api, ADMIN + 1, path, headers=headers, params={}) == [200] * ADMIN + [429]
    assert await statuses(api, 1, headers=headers) == [200]
    answer = await ask(api, path, headers=bearer("admin", None, userId="b"))
    assert answer.headers["ratelimit-limit"] == "3"


async def test_deliveries_are_counted_apart(api: Litestar) -> None:
    path = f"{API}/webhooks/square"
    post: Mapping[str, Any] = {"method": "POST", "headers": {}}
    assert await statuses(api, WEBHOOKS + 1, path, **post) == [401] * WEBHOOKS + [429]
    # A token in the path, or in a header, makes no other caller; another provider does.
    assert await statuses(api, 1, f"{path}/another", **post) == [429]
    assert await statuses(api, 1, path, method="POST", headers=bearer()) == [429]
    assert await statuses(api, 1, f"{API}/webhooks/mailchimp/token", **post) != [429]
    assert await statuses(api, 1, path, host="192.0.2.2", **post) == [401]
    assert await statuses(api, 1, f"{API}/webhooks/square/events") == [200]  # is no delivery


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/oauth/callback/square",
        "/integrations/success",
        "/integrations/error",
        "/health",
        "/ready",
        "/metrics",
        "/schema/openapi.json",
    ],
)
async def test_what_is_never_counted(api: Litestar, path: str) -> None:
    headers = bearer("admin", None)
    for _ in range(GENERAL + WEBHOOKS + ADMIN):
        answer = await ask(api, path, headers=headers)
        assert answer.status_code != 429
        assert not set(HEADERS) & set(answer.headers)


async def test_no_limit_is_no_limit(api: Litestar, limited: Settings) -> None:
    unlimited = replace(limited, rate_limit_general=0)
    api.state.request_counts = RequestCounts(api.state.context.redis, unlimited)
    for _ in range(GENERAL * 2):
        answer = await ask(api, API, headers=bearer(), **MINE)
        assert answer.status_code == 200
        assert not set(HEADERS) & set(answer.headers)
    answers = await statuses(api, ADMIN + 1, f"{API}/admin/queue-metrics", headers=bearer("admin"), params={})
    assert answers == [200] * ADMIN + [429]


async def test_every_route_that_is_counted_says_so(hub: Hub) -> None:
    paths = (await hub.http.get("/schema/openapi.json")).json()["paths"]
    free = {"/health", "/ready", "/integrations/success", "/integrations/error"}
    for path, operations in paths.items():
        for operation in operations.values():
            assert ("429" in operation["responses"]) is (path not in free), path


# --- while Redis is away


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


async def test_nobody_is_refused_while_redis_is_away(api: Litestar, limited: Settings) -> None:
    await statuses(api, GENERAL)
    redis: Redis = Redis.from_url("redis://127.0.0.1:1/0")
    api.state.request_counts = RequestCounts(redis, limited)
    for _ in range(GENERAL * 2):
        answer = await ask(api, API, headers=bearer(), **MINE)
        assert answer.status_code == 200
        assert not set(HEADERS) & set(answer.headers)
    await redis.aclose()


async def test_one_request_finds_out_and_the_others_do_not_wait(limited: Settings, hub: Hub) -> None:
    clock = Clock()
    counts = RequestCounts(hub.context.redis, limited, clock=cast(Any, clock))
    script, asked = counts._count, 0

    async def away(**_: Any) -> Any:
        nonlocal asked
        asked += 1
        raise ConnectionError

    counts._count = cast(Any, away)
    assert [await counts.take("general", "waits") for _ in range(9)] == [None] * 9
    assert asked == 1
    clock.at += RETRY_SECONDS
    assert await counts.take("general", "waits") is None
    assert asked == 2
    counts._count = script
    assert await counts.take("general", "waits") is None  # not asked yet
    clock.at += RETRY_SECONDS
    standing = await counts.take("general", "waits")
    assert standing is not None
    assert (standing.limit, standing.remaining) == (GENERAL, GENERAL - 1)
    assert await counts.take("general", "waits") is not None


async def test_a_redis_that_hangs_keeps_nobody(
    limited: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.limits.ANSWER_SECONDS", 0.01)
    counts = RequestCounts(hub.context.redis, limited)

    async def hangs(**_: Any) -> Any:
        await asyncio.Event().wait()

    counts._count = cast(Any, hangs)
    assert await asyncio.wait_for(counts.take("general", "hangs"), 5) is None


async def test_requests_that_come_at_once_are_counted_by_themselves(limited: Settings, hub: Hub) -> None:
    counts = RequestCounts(hub.context.redis, limited)
    callers = ["a", "b", "a", "c", "a", "b"]
    found = await asyncio.gather(*(counts.take("general", each) for each in callers))
    assert [(each.count, each.limit) for each in found if each] == [
        (1, GENERAL),
        (1, GENERAL),
        (2, GENERAL),
        (1, GENERAL),
        (3, GENERAL),
        (2, GENERAL),
    ]


async def test_requests_that_come_meanwhile_share_a_question(limited: Settings, hub: Hub) -> None:
    counts, questions, asked = RequestCounts(hub.context.redis, limited), [], asyncio.Event()
    script = counts._count

    async def noted(**question: Any) -> Any:
        questions.append((len(question["keys"]), question["args"][1:]))
        asked.set()
        return await script(**question)

    counts._count = cast(Any, noted)
    first = asyncio.create_task(counts.take("general", "first"))
    await asked.wait()
    callers = [*["later"] * 8, "other", "later"]
    found = await asyncio.gather(first, *(counts.take("general", caller) for caller in callers))
    assert questions == [(1, [1]), (2, [9, 1])]
    assert [each.count for each in found if each] == [1, *range(1, 9), 1, 9]  # each has its own place


async def test_whoever_waits_for_a_redis_that_fails_is_let_go_with_the_first(
    limited: Settings, hub: Hub
) -> None:
    counts, fail, asked = RequestCounts(hub.context.redis, limited), asyncio.Event(), asyncio.Event()
    questions = 0

    async def fails(**_: Any) -> Any:
        nonlocal questions
        questions += 1
        asked.set()
        await fail.wait()
        raise ConnectionError

    counts._count = cast(Any, fails)
    first = asyncio.create_task(counts.take("general", "first"))
    await asked.wait()
    later = [asyncio.create_task(counts.take("general", "later")) for _ in range(3)]
    await asyncio.sleep(0)
    fail.set()
    assert await asyncio.wait_for(asyncio.gather(first, *later), 5) == [None] * 4
    assert questions == 1


async def test_one_that_went_away_keeps_nobody(limited: Settings, hub: Hub) -> None:
    counts = RequestCounts(hub.context.redis, limited)
    gone = asyncio.create_task(counts.take("general", "gone"))
    stays = asyncio.create_task(counts.take("general", "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    assert await asyncio.wait_for(stays, 5) is not None
