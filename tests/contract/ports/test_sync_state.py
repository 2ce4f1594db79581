"""The same promises from what a sync remembers, in memory and on PostgreSQL."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from engine.errors import LeaseLostError
from engine.memory import MemorySyncState
from engine.ports import (
    Commit,
    ConflictEnd,
    Decision,
    Direction,
    FieldConflict,
    Link,
    PendingItem,
    PendingWrite,
    RecordFailure,
    SyncState,
)
from server.db.engine import create_engine
from server.db.stores import Lease, PostgresSyncState

ADA = Link(
    entity="customer",
    resource="customer",
    local_id="l1",
    remote_id="r1",
    fingerprint="f1",
    agreed={"ours": {"first_name": "Ada", "city": None}, "theirs": {"given_name": "Ada"}},
    remote_version="2026-11-24T02:43:48Z",
    last_direction="push",
)
BEN = replace(ADA, local_id="l2", remote_id="r2", fingerprint=None, agreed={}, remote_version=None)


@pytest.fixture(scope="module")
def engine(database_url: str) -> AsyncEngine:
    return create_engine(database_url, pooled=False)


@pytest.fixture(params=["memory", "postgresql"])
async def state(request: pytest.FixtureRequest) -> SyncState:
    if request.param == "memory":
        return MemorySyncState()
    return await postgres_state(request.getfixturevalue("engine"), venue_id=uuid4())


async def postgres_state(
    engine: AsyncEngine, *, venue_id: UUID, provider: str = "juniper", fencing_token: int = 3
) -> PostgresSyncState:
    """A state under a lease just claimed."""
    async with engine.begin() as connection:
        operation_id = await connection.scalar(
            text(
                """
                INSERT INTO sync_queue (venue_id, integration_type, operation_type, entity_type, run_id,
                                        status, lease_owner, lease_expires_at, fencing_token)
                VALUES (:venue, :provider, 'sync', 'full', gen_random_uuid(),
                        'processing', 'w1', now(), :token)
                RETURNING id
                """
            ),
            {"venue": venue_id, "provider": provider, "token": fencing_token},
        )
    lease = Lease(operation_id, fencing_token)
    return PostgresSyncState(engine, venue_id=venue_id, provider=provider, lease=lease)


def write(key: str, *local_ids: str, **more: Any) -> PendingWrite:
    items = tuple(
        PendingItem(local_id, None, {"name": local_id}, f"f-{local_id}", {"ours": {}})
        for local_id in local_ids
    )
    return PendingWrite(key, "customer", "customer", items, **more)


async def test_links_are_found_from_both_sides(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA, BEN]))
    assert await state.links_by_local("customer", ["l1", "l2", "l3"]) == {"l1": ADA, "l2": BEN}
    assert await state.links_by_remote("customer", ["r2", "r9"]) == {"r2": BEN}


async def test_nothing_is_found_where_nothing_is(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA]))
    assert await state.links_by_local("customer", []) == {}
    assert await state.links_by_remote("customer", []) == {}
    assert await state.links_by_local("item", ["l1"]) == {}
    assert await state.links_by_remote("item", ["r1"]) == {}
    assert await state.position("customer", "customer", "push") is None
    assert await state.announced("customer", "customer") == []


async def test_a_link_is_replaced_by_its_newer_self(state: SyncState) -> None:
    newer = replace(ADA, fingerprint=None, agreed={}, remote_version="v2", last_direction="pull")
    await state.commit(Commit(links=[ADA]))
    await state.commit(Commit(links=[newer]))
    assert await state.links_by_local("customer", ["l1"]) == {"l1": newer}


async def test_a_record_may_get_another_remote_record(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA]))
    moved = replace(ADA, remote_id="r7")
    await state.commit(Commit(links=[moved]))
    assert await state.links_by_local("customer", ["l1"]) == {"l1": moved}
    assert await state.links_by_remote("customer", ["r1", "r7"]) == {"r7": moved}


async def test_a_remote_record_has_one_link_the_newest(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA, BEN]))
    taken = replace(BEN, remote_id="r1")
    await state.commit(Commit(links=[taken]))
    assert await state.links_by_remote("customer", ["r1"]) == {"r1": taken}
    assert await state.links_by_local("customer", ["l1", "l2"]) == {"l2": taken}


async def test_two_links_may_trade_places_in_one_commit(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA, BEN]))
    ada, ben = replace(ADA, remote_id="r2"), replace(BEN, remote_id="r1")
    await state.commit(Commit(links=[ada, ben]))
    assert await state.links_by_local("customer", ["l1", "l2"]) == {"l1": ada, "l2": ben}


async def test_the_same_link_twice_in_one_commit_counts_once(state: SyncState) -> None:
    newer = replace(ADA, fingerprint="f2")
    await state.commit(Commit(links=[ADA, newer]))
    assert await state.links_by_local("customer", ["l1"]) == {"l1": newer}


async def test_unlinking_forgets(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA, BEN]))
    await state.commit(Commit(unlinked=[ADA]))
    assert await state.links_by_local("customer", ["l1", "l2"]) == {"l2": BEN}


async def test_an_unlinked_record_can_be_linked_anew_in_the_same_commit(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA]))
    anew = replace(ADA, remote_id="r9")
    await state.commit(Commit(unlinked=[ADA], links=[anew]))
    assert await state.links_by_local("customer", ["l1"]) == {"l1": anew}


async def test_links_are_told_by_their_state_page_by_page(state: SyncState) -> None:
    links = [replace(BEN, local_id=f"l{n}", remote_id=f"r{n}", state="leaving") for n in (3, 1, 2)]
    elsewhere = [
        replace(ADA, local_id="l4", remote_id="r4", state="leaving", resource="item"),
        replace(ADA, local_id="l5", remote_id="r5", state="leaving", entity="member"),
    ]
    gone = replace(ADA, local_id="l6", remote_id="r6", state="broken")
    await state.commit(Commit(links=[*links, *elsewhere, gone, replace(ADA, local_id="l7", remote_id="r7")]))

    first = await state.links_in_state("customer", "customer", "leaving", limit=2)
    assert first == [links[1], links[2]]
    assert await state.links_in_state("customer", "customer", "leaving", after="l2", limit=2) == [links[0]]
    assert await state.links_in_state("customer", "customer", "broken") == [gone]
    assert await state.links_in_state("customer", "customer", "archived") == []
    assert (await state.links_by_local("customer", ["l6"]))["l6"].state == "broken"
    counts = await state.count_links("customer", "customer")
    assert dict(counts) == {"leaving": 3, "broken": 1, "linked": 1}
    assert not any((await state.count_links("order", "order")).values())


async def test_a_links_state_changes_with_its_newer_self(state: SyncState) -> None:
    await state.commit(Commit(links=[ADA]))
    await state.commit(Commit(links=[replace(ADA, state="archived")]))
    assert (await state.links_by_remote("customer", ["r1"]))["r1"].state == "archived"
    await state.commit(Commit(links=[ADA]))
    assert (await state.links_by_remote("customer", ["r1"]))["r1"].state == "linked"


async def test_a_position_is_kept_for_each_mapping_and_direction(state: SyncState) -> None:
    walk = {"since": "2026-11-24T00:00:00Z", "walk": {"resume": {"query": {"cursor": "a", "limit": 100}}}}
    await state.commit(Commit(position=("customer", "customer", "pull", walk)))
    await state.commit(Commit(position=("customer", "customer", "push", {"id": "7"})))
    assert await state.position("customer", "customer", "pull") == walk
    assert await state.position("customer", "customer", "push") == {"id": "7"}
    assert await state.position("event", "item", "pull") is None
    await state.commit(Commit(position=("customer", "customer", "pull", {"since": "later"})))
    assert await state.position("customer", "customer", "pull") == {"since": "later"}


async def test_announced_writes_come_back_word_for_word_oldest_first(state: SyncState) -> None:
    body = {"zeta": Decimal("12.50"), "alpha": [1, None, True, "Zoë"], "nested": {"b": {}, "a": 0.5}}
    first = PendingWrite(
        "k9", "customer", "customer", (PendingItem("l1", "r1", body, "f1", {"ours": {}}),), 2
    )
    await state.announce([first, write("k1", "l2", "l3")])
    await state.announce([write("k0", "l4")])
    announced = await state.announced("customer", "customer")
    assert announced == [first, write("k1", "l2", "l3"), write("k0", "l4")]
    assert list(announced[0].items[0].body) == ["zeta", "alpha", "nested"]
    assert str(announced[0].items[0].body["zeta"]) == "12.50"
    assert await state.announced("event", "item") == []


async def test_a_write_keeps_the_moment_it_was_first_announced(state: SyncState) -> None:
    moment = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    await state.announce([write("k1", "l1", announced_at=moment)])
    await state.announce([write("k1", "l1", job="batch-7", announced_at=moment)])
    assert [each.announced_at for each in await state.announced("customer", "customer")] == [moment]


async def test_announcing_again_changes_the_write_and_keeps_its_place(state: SyncState) -> None:
    await state.announce([write("k1", "l1"), write("k2", "l2")])
    await state.announce([write("k1", "l1", attempt=2)])
    assert await state.announced("customer", "customer") == [write("k1", "l1", attempt=2), write("k2", "l2")]


async def test_the_job_a_write_was_handed_in_as_is_kept(state: SyncState) -> None:
    await state.announce([write("k1", "l1"), write("k2", "l2")])
    await state.announce([write("k1", "l1", job="batch-7")])
    assert [each.job for each in await state.announced("customer", "customer")] == ["batch-7", None]
    await state.announce([write("k3", "l1", attempt=2)], instead_of=["k1"])
    assert [each.job for each in await state.announced("customer", "customer")] == [None, None]


async def test_a_write_takes_the_place_of_another(state: SyncState) -> None:
    await state.announce([write("k1", "l1"), write("k2", "l2")])
    await state.announce([write("k3", "l1", attempt=2)], instead_of=["k1"])
    assert await state.announced("customer", "customer") == [write("k2", "l2"), write("k3", "l1", attempt=2)]


async def test_a_finished_write_is_gone_with_the_commit_of_its_links(state: SyncState) -> None:
    await state.announce([write("k1", "l1"), write("k2", "l2")])
    await state.commit(Commit(links=[ADA], finished_writes=["k1", "unknown"]))
    assert await state.announced("customer", "customer") == [write("k2", "l2")]


async def test_an_empty_commit_is_no_trouble(state: SyncState) -> None:
    await state.commit(Commit())


# ---- on PostgreSQL only: leases, neighbours, failures as rows ---------------------------------------------


async def failures(engine: AsyncEngine, state: PostgresSyncState) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT direction::text, record_id, code, message, retryable, field, f.attempts,
                       f.run_id = o.run_id
                FROM record_failures f JOIN sync_queue o USING (venue_id)
                WHERE o.id = :operation_id ORDER BY record_id, direction
                """
            ),
            {"operation_id": state.lease.operation_id},
        )
        return [tuple(row) for row in rows]


async def test_failures_are_kept_counted_and_settled(engine: AsyncEngine) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    bad = RecordFailure("customer", "customer", "push", "l1", "SYNC_FAILED", "no e-mail", False, "email")
    await state.commit(Commit(failures=[bad, replace(bad, direction="pull", record_id="r1", field=None)]))
    await state.commit(Commit(failures=[replace(bad, message="still none")]))
    assert await failures(engine, state) == [
        ("push", "l1", "SYNC_FAILED", "still none", False, "email", 2, True),
        ("pull", "r1", "SYNC_FAILED", "no e-mail", False, None, 1, True),
    ]
    await state.commit(Commit(settled=[("customer", "customer", "push", "l1")]))
    assert [row[1] for row in await failures(engine, state)] == ["r1"]


async def test_what_fails_and_settles_in_one_commit_has_failed(engine: AsyncEngine) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    bad = RecordFailure("customer", "customer", "push", "l1", "SYNC_FAILED", "no", True)
    await state.commit(Commit(failures=[bad], settled=[("customer", "customer", "push", "l1")]))
    assert [row[1] for row in await failures(engine, state)] == ["l1"]


@pytest.mark.parametrize(
    "takeover",
    [
        "fencing_token = fencing_token + 1",
        "status = 'pending', lease_owner = NULL",
        "status = 'completed'",
    ],
    ids=["claimed by another", "given back", "finished"],
)
async def test_a_lost_lease_saves_nothing(engine: AsyncEngine, takeover: str) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    await state.announce([write("k1", "l1")])
    await state.confirm()
    async with engine.begin() as connection:
        await connection.execute(
            text(f"UPDATE sync_queue SET {takeover} WHERE id = :id"), {"id": state.lease.operation_id}
        )
    with pytest.raises(LeaseLostError):
        await state.commit(
            Commit(
                links=[ADA], finished_writes=["k1"], position=("customer", "customer", "push", {"id": "1"})
            )
        )
    with pytest.raises(LeaseLostError):
        await state.confirm()
    with pytest.raises(LeaseLostError):
        await state.announce([write("k2", "l2")], instead_of=["k1"])
    assert await state.links_by_local("customer", ["l1"]) == {}
    assert await state.announced("customer", "customer") == [write("k1", "l1")]
    assert await state.position("customer", "customer", "push") is None


async def test_a_commit_that_fails_halfway_leaves_nothing(engine: AsyncEngine) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    too_long: tuple[str, str, Direction, dict[str, str]] = ("c" * 101, "customer", "push", {"id": "1"})
    with pytest.raises(DBAPIError, match="too long"):
        await state.commit(Commit(links=[ADA], position=too_long))
    assert await state.links_by_local("customer", ["l1"]) == {}


async def test_integrations_do_not_see_each_other(engine: AsyncEngine) -> None:
    venue = uuid4()
    state = await postgres_state(engine, venue_id=venue)
    neighbours = [
        await postgres_state(engine, venue_id=venue, provider="other"),
        await postgres_state(engine, venue_id=uuid4()),
    ]
    for one in (state, *neighbours):
        await one.commit(Commit(links=[ADA], position=("customer", "customer", "push", {"id": "1"})))
        await one.announce([write("k1", "l1")])
    await state.commit(Commit(unlinked=[ADA], finished_writes=["k1"]))
    for neighbour in neighbours:
        assert await neighbour.links_by_remote("customer", ["r1"]) == {"r1": ADA}
        assert await neighbour.announced("customer", "customer") == [write("k1", "l1")]


async def test_awkward_values_are_kept(engine: AsyncEngine) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    odd = replace(
        ADA, agreed={"price": Decimal("0.1"), "count": 2**70, "text": "a\0b\ud800", "escaped": "\\u0000"}
    )
    await state.commit(Commit(links=[odd]))
    kept = (await state.links_by_local("customer", ["l1"]))["l1"].agreed
    # A character PostgreSQL can't keep is replaced, everything else is exact.
    assert kept == {
        "price": Decimal("0.1"),
        "count": 2**70,
        "text": "a\ufffdb?",
        "escaped": "\\u0000",
    }


async def test_statements_do_not_grow_with_records(engine: AsyncEngine) -> None:
    state = await postgres_state(engine, venue_id=uuid4())
    statements: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    bad = RecordFailure("customer", "customer", "push", "x", "SYNC_FAILED", "no", True)
    await state.commit(
        Commit(
            links=[replace(ADA, local_id=f"l{n}", remote_id=f"r{n}") for n in range(1000)],
            failures=[replace(bad, record_id=f"x{n}") for n in range(1000)],
            settled=[("customer", "customer", "push", f"s{n}") for n in range(1000)],
            finished_writes=[f"k{n}" for n in range(1000)],
            position=("customer", "customer", "push", {"id": "1"}),
        )
    )
    assert len(statements) <= 8  # one of them only in the first commit of a run


# ---- conflicts -----------------------------------------------------------------------------------------

NAME = FieldConflict(
    entity="customer",
    resource="customer",
    local_id="l1",
    remote_id="r1",
    field="first_name",
    ours="Ada",
    theirs=None,
    agreed={"ours": "Ad", "theirs": "A\u0101"},
    ours_changed_at="2026-11-24T02:43:48Z",
)
PRICE = replace(NAME, local_id="l2", remote_id="r2", field="price", ours="5.5", theirs=["x", 1], agreed={})


async def test_conflicts_come_back_as_they_were_found(state: SyncState) -> None:
    await state.commit(Commit(conflicts=[NAME, PRICE]))
    assert await state.conflicts_of("customer", ["l1", "l9"]) == [NAME]
    assert await state.open_conflicts("customer", "customer") == [NAME, PRICE]
    assert await state.conflicts_of("customer", []) == []
    assert await state.conflicts_of("item", ["l1"]) == []
    assert await state.open_conflicts("item", "customer") == []


async def test_a_conflict_seen_again_is_the_same_one_with_its_newest_values(state: SyncState) -> None:
    newer = replace(NAME, theirs="B", theirs_changed_at="2026-11-25T00:00:00Z")
    await state.commit(Commit(conflicts=[NAME]))
    await state.commit(Commit(conflicts=[newer]))
    assert await state.conflicts_of("customer", ["l1"]) == [newer]


async def test_a_page_of_conflicts_ends_with_a_record(state: SyncState) -> None:
    mail = replace(NAME, field="email")
    await state.commit(Commit(conflicts=[NAME, PRICE, mail]))
    first = await state.open_conflicts("customer", "customer", limit=1)
    assert sorted(each.field for each in first) == ["email", "first_name"]
    assert await state.open_conflicts("customer", "customer", after="l1", limit=1) == [PRICE]
    assert await state.open_conflicts("customer", "customer", after="l2") == []


@pytest.mark.parametrize("applied", [True, False])
async def test_a_conflict_that_is_over_may_come_again(state: SyncState, applied: bool) -> None:
    end = ConflictEnd("customer", "l1", "first_name", applied)
    await state.commit(Commit(conflicts=[NAME, PRICE]))
    await state.commit(Commit(conflicts_over=[end]))
    assert await state.open_conflicts("customer", "customer") == [PRICE]
    again = replace(NAME, theirs="C")
    await state.commit(Commit(conflicts=[again], conflicts_over=[end]))  # over first, then seen
    assert await state.conflicts_of("customer", ["l1"]) == [again]


@pytest.mark.parametrize(
    "gone",
    [
        Commit(unlinked=[ADA]),
        Commit(links=[replace(ADA, state="broken")]),
        Commit(links=[replace(ADA, state="archived")]),
    ],
    ids=["unlinked", "broken", "archived"],
)
async def test_a_conflict_ends_with_its_link(state: SyncState, gone: Commit) -> None:
    await state.commit(Commit(links=[ADA, BEN], conflicts=[NAME, PRICE]))
    await state.commit(gone)
    assert await state.open_conflicts("customer", "customer") == [PRICE]


async def test_links_that_are_due_are_found_in_order(state: SyncState) -> None:
    due = [replace(each, agreed={"due": True}) for each in (BEN, ADA)]
    await state.commit(Commit(links=[*due, replace(ADA, local_id="l3", remote_id="r3")]))
    assert await state.links_due("customer", "customer") == [due[1], due[0]]
    assert await state.links_due("customer", "customer", limit=1) == [due[1]]
    assert await state.links_due("customer", "customer", after="l1") == [due[0]]
    assert await state.links_due("item", "customer") == []


async def test_of_a_new_conflict_whoever_wants_to_know_is_told_once(engine: AsyncEngine) -> None:
    venue = uuid4()
    state = await postgres_state(engine, venue_id=venue)
    for _ in range(2):
        await state.commit(Commit(conflicts=[NAME]))
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT topic, payload FROM outbox WHERE venue_id = :venue"), {"venue": venue}
        )
        (told,) = found.all()
        kept = await connection.scalar(
            text("SELECT id::text FROM field_conflicts WHERE venue_id = :venue"), {"venue": venue}
        )
    assert told.topic == "conflict.detected"
    assert told.payload == {
        **{"venue_id": str(venue), "provider": "juniper", "conflict_id": kept, "entity": "customer"},
        **{"resource": "customer", "field": "first_name", "record_id": "l1"},
    }


async def test_what_was_decided_stays_about_the_values_it_was_decided_about(engine: AsyncEngine) -> None:
    venue = uuid4()
    state = await postgres_state(engine, venue_id=venue)
    await state.commit(Commit(conflicts=[NAME]))
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE field_conflicts SET state = 'resolved', resolution = :decided WHERE venue_id = :venue"
            ),
            {"venue": venue, "decided": '{"take": "value", "value": "5.10"}'},
        )
    await state.commit(Commit(conflicts=[replace(NAME, theirs="B")]))
    (kept,) = await state.conflicts_of("customer", ["l1"])
    assert (kept.theirs, kept.decision) == (None, Decision("value", "5.10"))
    await state.commit(Commit(conflicts_over=[ConflictEnd("customer", "l1", "first_name", True)]))
    async with engine.connect() as connection:
        ended = await connection.scalars(
            text("SELECT state FROM field_conflicts WHERE venue_id = :venue AND ended_at IS NOT NULL"),
            {"venue": venue},
        )
        assert ended.all() == ["resolved"]
