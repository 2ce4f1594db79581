"""The vault's keys over the API: an administrator sees what is under which, and has it all rotated."""

from dataclasses import replace
from uuid import UUID

import pytest

from server.errors import KeysUnavailableError
from server.services import rotation, upkeep
from server.vault import Context, DataKey, LocalKeyring, Vault
from tests.contract.api.conftest import API, OURS, Hub, bearer

OLD = b"0123456789abcdef0123456789abcdef"  # what `VAULT_KEYS` of the fixture says
ADMIN = bearer("admin", None)
VAULT, ROTATE = f"{API}/admin/vault", f"{API}/admin/vault/rotate"


@pytest.fixture
def two_keys(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has a new key in front of the one its venue's credentials were sealed under."""
    keys = Vault(LocalKeyring({"newer": bytes(range(32)), "test": OLD}))
    context = replace(hub.context, vault=keys)
    monkeypatch.setattr(hub.app.state, "context", context)
    return replace(hub, context=context)


async def test_a_rotation_from_its_start_to_its_end(hub: Hub, two_keys: Hub) -> None:
    await hub.connect_by_key()
    await hub.execute("UPDATE venue_api_keys SET encrypted_api_secret = NULL")
    before = (await two_keys.http.get(VAULT, headers=ADMIN)).json()["data"]
    found = {key["key_id"]: key for key in before["keys"]}
    assert found.keys() == {"local:newer", "local:test"}
    assert before["rotation"] is None
    under_old = found["local:test"]["values"]

    begun = await two_keys.http.post(ROTATE, headers=ADMIN)
    assert begun.status_code == 202
    run_id = begun.json()["data"]["runId"]
    assert begun.json() == {"success": True, "data": {"runId": run_id, "status": "pending"}}
    assert begun.headers["location"] == f"{API}/admin/maintenance/{run_id}"
    joined = await two_keys.http.post(ROTATE, headers=ADMIN)
    assert joined.json()["data"]["runId"] == run_id

    await upkeep.work_to_end(two_keys.context, UUID(run_id))
    run = (await two_keys.http.get(begun.headers["location"], headers=ADMIN)).json()["data"]
    assert (run["id"], run["kind"], run["venue_id"], run["status"]) == (run_id, "rotation", None, "completed")
    assert run["error"] is None
    assert run["completed_at"] is not None
    after = (await two_keys.http.get(VAULT, headers=ADMIN)).json()["data"]
    assert after["rotation"] == run
    assert [(key["key_id"], key["current"], key["removable"]) for key in after["keys"]] == [
        ("local:newer", True, False),
        ("local:test", False, True),
    ]
    assert after["keys"][1]["values"] == 0
    assert after["keys"][0]["values"] == found["local:newer"]["values"] + under_old
    entries = await hub.rows("SELECT action, target FROM audit_log WHERE action LIKE 'vault.%' ORDER BY id")
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("vault.rotation_requested", run_id),
        ("vault.rotation_requested", run_id),
        ("vault.rotated", run_id),
    ]


async def test_a_rotation_can_be_stopped(two_keys: Hub) -> None:
    begun = await two_keys.http.post(ROTATE, headers=ADMIN)
    run = f"{API}/admin/maintenance/{begun.json()['data']['runId']}"
    stopped = await two_keys.http.post(f"{run}/stop", headers=ADMIN)
    assert (stopped.status_code, stopped.json()["data"]["status"]) == (200, "stopped")
    assert (await two_keys.http.get(run, headers=ADMIN)).json() == stopped.json()
    again = await two_keys.http.post(f"{run}/stop", headers=ADMIN)
    assert again.json() == stopped.json()
    [entry] = await two_keys.rows("SELECT * FROM audit_log WHERE action = 'maintenance.stopped'")
    assert entry["details"] == {"kind": "rotation"}
    another = await two_keys.http.post(ROTATE, headers=ADMIN)
    assert another.json()["data"]["runId"] not in run


async def test_keys_that_cannot_be_reached_are_a_store_that_is_away(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise KeysUnavailableError("AWS KMS doesn't answer: EndpointConnectionError")

    monkeypatch.setattr(rotation, "usage", away)
    answer = await hub.http.get(VAULT, headers=ADMIN)
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")


async def test_no_key_and_no_value_is_in_an_answer(two_keys: Hub) -> None:
    await two_keys.connect_by_key()
    [row] = await two_keys.rows("SELECT encrypted_api_key FROM venue_api_keys")
    text = (await two_keys.http.get(VAULT, headers=ADMIN)).text
    assert row["encrypted_api_key"] not in text
    assert OLD.decode() not in text


class KeysAway(LocalKeyring):
    """Keys behind a service that doesn't answer."""

    __slots__ = ()

    async def wrap(self, key: bytes, context: Context) -> DataKey:
        raise KeysUnavailableError("AWS KMS doesn't answer: EndpointConnectionError")


async def test_a_request_that_is_worked_once_is_not_worked_while_its_answer_can_not_be_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.connect_by_key()
    sync = (f"{API}/sync/stripe/sync", {"venueId": str(OURS), "wait": 0})
    headers = {**bearer(), "Idempotency-Key": "k-1"}
    with monkeypatch.context() as away:
        context = replace(hub.context, vault=Vault(KeysAway({"test": OLD})))
        away.setattr(hub.app.state, "context", context)
        refused = await hub.post(*sync, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "STORE_UNAVAILABLE")
    assert await hub.rows("SELECT 1 FROM sync_queue") == []
    worked = await hub.post(*sync, headers=headers)
    assert worked.status_code == 202
    assert (await hub.post(*sync, headers=headers)).json() == worked.json()
