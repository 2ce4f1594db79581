"""Operations that ended badly: listed with their history, and queued again by filter."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.errors import AuthenticationError
from server.services import operations
from tests.contract.api.conftest import API, NOWHERE, OTHERS, OURS, Hub, bearer
from tests.contract.api.test_admin import ADMIN, claim, dead_letter, fail, queue, state

ROOT = bearer("admin", None)
MINE = f"{API}/sync/stripe/sync/dead-letters"
ALL = f"{ADMIN}/dead-letters"
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


async def ended(hub: Hub, hours: int = 0, **values: Any) -> UUID:
    """Return a dead letter that ended so many hours after noon."""
    columns = {key: values.pop(key) for key in ("error_code", "entity_type") if key in values}
    operation_id = await dead_letter(hub, **values)
    at = NOON + timedelta(hours=hours)
    await hub.execute("UPDATE sync_queue SET completed_at = :at WHERE id = :id", at=at, id=operation_id)
    for column, value in columns.items():
        await hub.execute(f"UPDATE sync_queue SET {column} = :v WHERE id = :id", v=value, id=operation_id)
    return operation_id


async def retry(hub: Hub, path: str = ALL, /, **body: Any) -> dict[str, Any]:
    answer = await hub.post(f"{path}/retry", body, headers=ROOT)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_a_dead_letter_keeps_its_payload_cause_and_history(hub: Hub) -> None:
    await hub.connect_by_key()
    operation_id = await queue(hub, max_attempts=2)
    for _ in range(2):
        await hub.execute("UPDATE sync_queue SET next_retry_at = NULL")
        await fail(hub, operation_id)
    answer = await hub.get(MINE, params={"venueId": str(OURS)})
    [row] = answer.json()["data"]
    assert row["id"] == str(operation_id)
    assert (row["status"], row["attempts"], row["revivals"]) == ("dead_letter", 2, 0)
    assert (row["error_code"], row["error"]) == ("SYNC_FAILED", "away")
    assert row["payload"] == {"syncType": "full"}
    history = [(each["attempt"], each["code"], each["message"]) for each in row["attempts_log"]]
    assert history == [(1, "SYNC_FAILED", "away"), (2, "SYNC_FAILED", "away")]


async def test_dead_letters_are_listed_by_page_the_newest_first(hub: Hub) -> None:
    await hub.connect_by_key()
    ids = [str(await ended(hub, hours)) for hours in (0, 1, 2)]
    await queue(hub)
    first = (await hub.get(MINE, params={"venueId": str(OURS), "limit": 2})).json()
    assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
    assert first["meta"]["total"] == 3
    params = {"venueId": str(OURS), "limit": 2, "cursor": first["meta"]["next_cursor"]}
    second = (await hub.get(MINE, params=params)).json()
    assert [row["id"] for row in second["data"]] == [ids[0]]
    assert second["meta"]["next_cursor"] is None


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, {"old", "new", "refused", "other", "foreign"}),
        ({"venueId": str(OURS)}, {"old", "new", "refused", "other"}),
        ({"provider": "square"}, {"other"}),
        ({"status": "failed"}, {"refused"}),
        ({"code": "RATE_LIMIT_EXCEEDED"}, {"new"}),
        ({"entity": "customer"}, {"old"}),
        ({"since": "2026-01-15T13:00:00Z", "until": "2026-01-15T15:00:00Z"}, {"new", "refused"}),
        ({"venueId": str(OURS), "status": "dead_letter", "until": "2026-01-15T13:00:00Z"}, {"old"}),
    ],
)
async def test_filters(hub: Hub, params: dict[str, str], found: set[str]) -> None:
    refused = await queue(hub)
    await fail(hub, refused, for_good=True)
    ids = {
        "old": await ended(hub, 0, entity_type="customer"),
        "new": await ended(hub, 1, error_code="RATE_LIMIT_EXCEEDED"),
        "refused": refused,
        "other": await ended(hub, 4, provider="square"),
        "foreign": await ended(hub, 5, venue=OTHERS),
    }
    at = NOON + timedelta(hours=2)
    await hub.execute("UPDATE sync_queue SET completed_at = :at WHERE id = :id", at=at, id=refused)
    answer = await hub.get(ALL, params=params, headers=ROOT)
    names = {str(value): name for name, value in ids.items()}
    assert {names[row["id"]] for row in answer.json()["data"]} == found


async def test_a_venue_sees_and_queues_its_own_only(hub: Hub) -> None:
    await hub.connect_by_key()
    mine, foreign = await ended(hub), await ended(hub, venue=OTHERS)
    listed = await hub.get(MINE, params={"venueId": str(OURS)})
    assert [row["id"] for row in listed.json()["data"]] == [str(mine)]
    answer = await hub.post(f"{MINE}/retry", {"venueId": str(OURS)})
    assert answer.json()["data"] == {
        "matched": 1,
        "queued": 1,
        "left": 0,
        "held_back": 0,
        "dry_run": False,
    }
    assert await state(hub, mine) == ("recovering", "LOW", 0)
    assert (await state(hub, foreign))[0] == "dead_letter"
    refused = await hub.post(f"{MINE}/retry", {"venueId": str(OTHERS)})
    assert refused.status_code in (403, 404)


async def test_a_dry_run_only_counts(hub: Hub) -> None:
    await hub.connect_by_key()
    dead = await ended(hub)
    came = await retry(hub, dryRun=True)
    assert came == {"matched": 1, "queued": 1, "left": 0, "held_back": 0, "dry_run": True}
    assert (await state(hub, dead))[0] == "dead_letter"
    assert await hub.rows("SELECT 1 FROM audit_log WHERE action = 'dead_letters.retried'") == []


async def test_it_is_bounded_and_repeating_it_goes_on(hub: Hub) -> None:
    await hub.connect_by_key()
    ids = [await ended(hub, hours) for hours in range(5)]
    assert await retry(hub, limit=3) == {
        "matched": 5,
        "queued": 3,
        "left": 2,
        "held_back": 0,
        "dry_run": False,
    }
    assert [(await state(hub, each))[0] for each in ids] == ["recovering"] * 3 + ["dead_letter"] * 2
    assert (await retry(hub, limit=3))["queued"] == 2
    assert await retry(hub, limit=3) == {
        "matched": 0,
        "queued": 0,
        "left": 0,
        "held_back": 0,
        "dry_run": False,
    }
    [first, *_] = await hub.rows("SELECT details FROM audit_log WHERE action = 'dead_letters.retried'")
    assert first["details"] == {"operations": 3, "filter": {}}
    [row] = await hub.rows(
        "SELECT revivals, attempts, lost_workers FROM sync_queue WHERE id = :id", id=ids[0]
    )
    assert (row["revivals"], row["attempts"], row["lost_workers"]) == (1, 0, 0)


async def test_what_fails_again_at_once_is_queued_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.connect_by_key()
    dead = await ended(hub)

    async def announce(_: object, found: Sequence[operations.Due]) -> bool:
        for each in found:
            taken = await claim(hub, each.id)
            async with hub.context.sessions.begin() as session:
                await operations.fail(session, taken, AuthenticationError("no", status=401))
        return True

    monkeypatch.setattr("server.worker.relay.announce", announce)
    assert (await retry(hub))["queued"] == 1
    assert (await state(hub, dead))[0] == "failed"


async def test_the_same_key_queues_once(hub: Hub) -> None:
    await hub.connect_by_key()
    await ended(hub)
    headers = {**ROOT, "Idempotency-Key": str(uuid4())}
    first = await hub.post(f"{ALL}/retry", {}, headers=headers)
    await ended(hub)
    again = await hub.post(f"{ALL}/retry", {}, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"


async def test_what_is_of_no_use_is_held_back(hub: Hub) -> None:
    await hub.connect_by_key()
    nobodys = await ended(hub, venue=NOWHERE)  # nothing is connected there
    killer = await ended(hub, error_code="WORKER_LOST")
    assert await retry(hub) == {
        "matched": 2,
        "queued": 0,
        "left": 0,
        "held_back": 2,
        "dry_run": False,
    }
    assert (await retry(hub, code="WORKER_LOST"))["queued"] == 1
    assert (await state(hub, killer))[0] == "recovering"
    assert (await state(hub, nobodys))[0] == "dead_letter"


async def test_one_integration_that_can_not_be_tried_holds_up_no_other(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.services import recovery

    await hub.connect_by_key()
    body = {"venueId": str(OTHERS), "credentials": {"apiKey": "sk_test_demo_others"}}
    answer = await hub.post(f"{API}/connect/stripe", {**body, "environment": "sandbox"}, headers=ROOT)
    assert answer.status_code == 200, answer.text
    broken, well = await dead_letter(hub), await dead_letter(hub, venue=OTHERS)
    tried = recovery.try_connection

    async def try_connection(context: Any, venue_id: UUID, provider: str) -> None:
        if venue_id == OURS:
            raise RuntimeError("nobody foresaw this")
        await tried(context, venue_id, provider)

    monkeypatch.setattr(recovery, "try_connection", try_connection)
    found = await recovery.revive_dead_letters(hub.context)
    assert (found.requeued, found.answering, found.silent) == (1, 1, 1)
    assert [(await state(hub, each))[0] for each in (broken, well)] == ["dead_letter", "recovering"]


async def test_the_hub_by_itself_takes_longer_each_time(hub: Hub) -> None:
    from server.services import recovery

    await hub.connect_by_key()
    first, again, killer, killed = [await dead_letter(hub) for _ in range(4)]
    await hub.execute("UPDATE sync_queue SET revivals = 2 WHERE id = :id", id=again)
    for each, revivals in ((killer, 0), (killed, 1)):
        await hub.execute(
            "UPDATE sync_queue SET error_code = 'WORKER_LOST', revivals = :n, "
            "completed_at = now() - interval '9 days' WHERE id = :id",
            id=each,
            n=revivals,
        )
    assert (await recovery.revive_dead_letters(hub.context)).requeued == 2
    states = [(await state(hub, each))[0] for each in (first, again, killer, killed)]
    assert states == ["recovering", "dead_letter", "recovering", "dead_letter"]
    await hub.execute(
        "UPDATE sync_queue SET completed_at = now() - interval '181 minutes' WHERE id = :id", id=again
    )  # 2 times 2 hours less one
    assert (await recovery.revive_dead_letters(hub.context)).requeued == 1
