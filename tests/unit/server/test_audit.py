"""What gets into the audit log, and what never does."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from engine.ports import Secret
from server.db.models import AuditEntry, Base, IntegrationConfig, IntegrationStatus
from server.services import audit
from server.services.audit import PICTURED, Actor
from server.services.denials import MOST_EACH_MINUTE, PLACES_EACH, Denial, Denials, stranger

VENUE = UUID("11111111-1111-4111-8111-111111111111")
NOON = datetime(2026, 1, 15, 12, 0, 30, tzinfo=UTC)


def entry_of(**values: Any) -> AuditEntry:
    added: list[AuditEntry] = []
    session = cast(AsyncSession, SimpleNamespace(add=added.append))
    audit.record(session, Actor("u", "203.0.113.7", "r", "venue_admin"), "x.done", **values)
    [entry] = added
    return entry


def test_who_and_from_where() -> None:
    entry = entry_of(venue_id=VENUE, provider="juniper")
    assert (entry.actor, entry.role, entry.ip, entry.request_id) == ("u", "venue_admin", "203.0.113.7", "r")
    assert (entry.venue_id, entry.integration_type, entry.action) == (VENUE, "juniper", "x.done")


def test_only_what_differs_is_kept() -> None:
    entry = entry_of(before={"a": 1, "b": 2, "gone": 3}, after={"a": 1, "b": 4, "new": 5})
    assert entry.before == {"b": 2, "gone": 3, "new": None}
    assert entry.after == {"b": 4, "gone": None, "new": 5}


def test_something_new_has_no_before() -> None:
    entry = entry_of(after={"a": 1})
    assert (entry.before, entry.after) == (None, {"a": 1})


def test_secrets_are_replaced_by_type_and_by_name() -> None:
    entry = entry_of(
        details={"note": Secret("canary-1"), "apiKey": "canary-2", "list": [{"access_token": "canary-3"}]},
        after={"config": {"clientSecret": "canary-4", "kept": Secret("canary-5")}},
    )
    assert "canary" not in repr((entry.details, entry.after))
    assert entry.details == {"note": "***", "apiKey": "***", "list": [{"access_token": "***"}]}
    assert entry.after == {"config": {"clientSecret": "***", "kept": "***"}}


def test_what_has_no_plain_form_is_refused() -> None:
    with pytest.raises(TypeError):
        entry_of(details={"thing": object()})


def test_a_picture_is_plain_and_has_only_what_is_listed() -> None:
    row = IntegrationConfig(
        venue_id=VENUE,
        integration_type="juniper",
        environment="sandbox",
        status=IntegrationStatus.CONNECTED,
        account="m_7",
        config={"syncEnabled": True},
        template_id=VENUE,
        connection={"location": "L1"},
    )
    assert audit.picture(row) == {
        "environment": "sandbox",
        "status": "connected",
        "account": "m_7",
        "config": {"syncEnabled": True},
        "template_id": str(VENUE),
    }


def test_nothing_sealed_is_ever_pictured() -> None:
    for table, names in PICTURED.items():
        columns = {column.name for column in Base.metadata.tables[table.__tablename__].columns}
        assert set(names) <= columns
        assert not [name for name in names if name.startswith("encrypted_")]


# --- refused attempts


def denied(denials: Denials, actor: Actor, number: int = 0, now: datetime = NOON) -> None:
    denials.note(Denial(actor, "FORBIDDEN", "GET /", UUID(int=number)), now)


def test_the_same_attempt_is_counted_within_its_minute() -> None:
    denials, caller = Denials(), Actor("u", "203.0.113.7", role="user")
    for seconds in (0, 10, 29):
        denied(denials, caller, now=NOON + timedelta(seconds=seconds))
    denied(denials, caller, now=NOON + timedelta(seconds=30))
    assert list(denials.waiting.values()) == [3, 1]
    assert [minute.minute for minute, _ in denials.waiting] == [0, 1]


def test_requests_of_one_caller_are_not_told_apart() -> None:
    denials = Denials()
    for request in ("r1", "r2"):
        denied(denials, Actor("u", "203.0.113.7", request, "user"))
    assert list(denials.waiting.values()) == [2]


def test_one_caller_who_tries_everything_gets_few_entries() -> None:
    denials = Denials()
    for number in range(10_000):
        denied(denials, Actor("u", "203.0.113.7", role="user"), number)
    assert len(denials.waiting) == PLACES_EACH + 1
    assert denials.waiting.total() == 10_000
    [rest] = [denial for (_, denial), count in denials.waiting.items() if count > 1]
    assert (rest.actor.id, rest.venue_id, denials.waiting.most_common(1)[0][1]) == (
        "u",
        None,
        10_000 - PLACES_EACH,
    )


def test_many_callers_together_get_a_bounded_number_of_entries() -> None:
    denials = Denials()
    for number in range(10_000):
        denials.note(Denial(stranger(f"198.51.{number // 256}.{number % 256}"), "AUTH_REQUIRED"), NOON)
    assert len(denials.waiting) == MOST_EACH_MINUTE + 1
    assert denials.waiting.total() == 10_000


def test_of_ipv6_a_stranger_is_the_network() -> None:
    assert (
        stranger("2001:db8:1:2:aaaa::1")
        == stranger("2001:db8:1:2:bbbb::9")
        == Actor("anonymous", "2001:db8:1:2::/64")
    )
    assert stranger("203.0.113.7") == Actor("anonymous", "203.0.113.7")
    assert stranger(None) == Actor("anonymous")
