"""Credentials that are wrong, revoked or at their end."""

import pytest

from tests.integration.hub import (
    KEY,
    VENUE,
    Hub,
    Provider,
    check_everything_is_in_step,
    event_id,
)

OTHER_KEY = f"{KEY}_rolled"


def _rename(hub: Hub, *numbers: int) -> None:
    hub.database.execute(
        "UPDATE platform.events SET name = name || ' – new', updated_at = now() WHERE id = ANY($1::uuid[])",
        [event_id(number) for number in numbers],
    )


def _revoke(hub: Hub, provider: Provider) -> None:
    hub.control(
        provider, "POST", "tokens/revoke", {"key": KEY} if provider == "stripe" else {"account": "MDEMO"}
    )


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        ("not-a-key", 400, "VALIDATION_ERROR"),
        ("sk_live_0000000000000000wrong", 401, "CONNECTION_TEST_FAILED"),
    ],
)
def test_wrong_credentials_are_refused_and_not_kept(hub: Hub, key: str, status: int, code: str) -> None:
    answer = hub.connect("stripe", key)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "Stripe" in answer.json()["error"]
    assert key not in answer.text
    for table in ("integration_configs", "venue_api_keys", "oauth_tokens", "sync_queue"):
        assert hub.database.one(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.parametrize("provider", ["stripe", "square"])
def test_revoked_between_two_syncs(connected: Hub, provider: Provider) -> None:
    connected.sync_all()
    links = "SELECT count(*) FROM record_links WHERE integration_type = $1"
    linked = connected.database.one(links, provider)
    _revoke(connected, provider)
    _rename(connected, 1, 2, 3)
    before = connected.writes()

    state = connected.sync(provider)
    assert state["status"] == "failed"
    assert "connect again" in state["error"]
    integration = connected.integration(provider)
    assert integration["status"] == "error"
    assert "connect again" in integration["last_error"]
    assert connected.writes()[provider] == before[provider]
    assert connected.database.one(links, provider) == linked

    assert connected.connect(provider, OTHER_KEY).is_success
    assert connected.integration(provider)["status"] == "connected"
    connected.sync_all()
    check_everything_is_in_step(connected)
    writes = connected.writes()[provider] - before[provider]
    assert writes == (3 if provider == "stripe" else 1)  # one call for each product; one for all items


def test_the_other_provider_does_not_suffer(connected: Hub) -> None:
    _revoke(connected, "stripe")
    syncs = connected.begin_all()
    assert connected.ended("stripe", syncs["stripe"])["status"] == "failed"
    assert connected.ended("square", syncs["square"])["status"] == "completed"


def test_an_expired_access_token_is_refreshed_once_in_mid_sync(connected: Hub) -> None:
    """The provider ends it early, so nobody here knows before a call is refused; several are under way."""
    before = connected.counts("square")["by_call"]["POST /oauth2/token"]
    connected.control("square", "POST", "clock", {"advance": 31 * 86_400})
    connected.sync_all()
    assert connected.counts("square")["by_call"]["POST /oauth2/token"] == before + 1
    assert connected.database.one("SELECT refresh_count FROM oauth_tokens") == 1
    check_everything_is_in_step(connected)


def test_a_token_about_to_expire_is_refreshed_before_it_is_used(connected: Hub) -> None:
    connected.kill("scheduler")  # which would do it, too
    connected.database.execute("UPDATE oauth_tokens SET expires_at = now() + interval '4 minutes'")
    before = connected.counts("square")
    connected.sync_all()
    after = connected.counts("square")
    assert after["by_call"]["POST /oauth2/token"] == before["by_call"]["POST /oauth2/token"] + 1
    assert after["by_status"].get("401", 0) == before["by_status"].get("401", 0) == 0
    check_everything_is_in_step(connected)


def test_a_key_of_another_account_begins_anew(connected: Hub) -> None:
    """Links of one account say nothing of another's records."""
    connected.sync_all()
    connected.control("square", "POST", "accounts", {"account": "MOTHER"})
    answer = connected.connect("square", merchant="MOTHER")
    assert answer.is_success
    connected.sync_all()
    for kind, count in (("ITEM", 12), ("customer", 24)):
        theirs = [row for row in connected.objects("square", kind) if row["account"] == "MOTHER"]
        assert len(theirs) == count
    assert connected.database.one("SELECT count(*) FROM platform.customers WHERE venue_id = $1", VENUE) == 24
