"""Every vector of vectors.json, from YAML alone: who signed a delivery, and what it tells.

Source: verified facts about providers, computed from each scheme and checked with the providers'
own verifiers, as the file says.
"""

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.deliveries import Delivery
from engine.errors import SignatureError
from engine.manifest import Webhooks, load_connector
from engine.ports import Secret
from engine.webhooks import Event, Reply, probe_reply, split_events, verify_delivery

HERE = Path(__file__).parent
CONNECTORS = HERE.parents[2] / "connectors"
VECTORS: list[dict[str, Any]] = json.loads((HERE / "vectors.json").read_text("utf-8"))["vectors"]
BY_ID = {vector["id"]: vector for vector in VECTORS}
# Which manifest speaks a scheme, and the name its secrets are kept under there.
SCHEMES = {
    "stripe_v1": (CONNECTORS / "stripe.yaml", "hmac_sha256"),
    "square_hmac_sha256": (CONNECTORS / "square.yaml", "hmac_sha256"),
    "square_hmac_sha1_legacy": (HERE / "square-legacy.yaml", "hmac_sha1"),
    "intuit_hmac_sha256": (CONNECTORS / "quickbooks.yaml", "hmac_sha256"),
    "mailchimp_v1": (CONNECTORS / "mailchimp.yaml", "signed"),
    "url_secret": (CONNECTORS / "mailchimp.yaml", "address"),
    "mandrill_hmac_sha1": (HERE / "mandrill.yaml", "hmac_sha1"),
}
# A contact is read by the hash of its address, which a vector doesn't hold: MD5 of what it names, by hand.
CONTACTS = {"8a25ff1d98": hashlib.md5(b"fan+vip@example.com", usedforsecurity=False).hexdigest()}


@cache
def webhooks_of(file: Path) -> Webhooks:
    found = load_connector(file).webhooks
    assert found is not None
    return found


def read(vector: dict[str, Any]) -> tuple[Webhooks, Delivery, dict[str, list[Secret]], datetime]:
    file, name = SCHEMES[vector["scheme"]]
    body = vector["raw_body"].encode()
    assert hashlib.sha256(body).hexdigest() == vector["raw_body_sha256"]
    delivery = Delivery(vector["method"], vector["url"], vector["headers"], body)
    now = datetime.fromtimestamp(vector["now"] or 1760000000, UTC)
    return webhooks_of(file), delivery, {name: [Secret(vector["secret"])]}, now


def refusal(vector: dict[str, Any]) -> str | None:
    webhooks, delivery, secrets, now = read(vector)
    try:
        verify_delivery(webhooks, delivery, secrets, now=now)
    except SignatureError as error:
        return error.reason
    return None


def events(vector: dict[str, Any]) -> list[Event]:
    webhooks, delivery, _, _ = read(vector)
    return split_events(webhooks, delivery)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["id"]))
def test_vector(vector: dict[str, Any]) -> None:
    webhooks, delivery, _, now = read(vector)
    expected, refused = vector["expected"], refusal(vector)
    if expected["reason"] == "url_validation":
        assert probe_reply(webhooks, delivery, verified=refused is None, now=now) == Reply()
        return
    assert probe_reply(webhooks, delivery, verified=refused is None, now=now) is None
    assert (refused is None) == expected["signature_valid"]
    if refused is not None:
        if not vector["advisory"]:
            assert refused == expected["reason"]
        return
    wanted = vector["event"] if isinstance(vector["event"], list) else [vector["event"]]
    found = events(vector)
    assert len(found) == len(wanted)
    for event, hoped in zip(found, wanted, strict=True):
        assert f"{vector['provider']}:{event.id}" == hoped["dedup_key"]
        assert (event.type, event.at) == (hoped["event_type"], hoped["occurred_at"])
        assert event.record == CONTACTS.get(hoped["object_id"], hoped["object_id"])
        if vector["provider"] != "mailchimp":  # its audience is known from the address
            assert event.account == hoped.get("tenant_hint")
    if vector["replay_of"]:
        before = {event.id for event in events(BY_ID[vector["replay_of"]])}
        assert {event.id for event in found} <= before
        assert expected["reason"] == "duplicate_event"


def test_only_what_was_not_there_before_of_a_batch_is_new() -> None:
    first = {event.id for event in events(BY_ID["quickbooks.valid_cloudevents"])}
    batch = BY_ID["quickbooks.partly_duplicate_batch"]
    duplicates = [bool(each.get("duplicate")) for each in batch["event"]]
    assert [event.id in first for event in events(batch)] == duplicates == [True, False]


def test_while_a_secret_is_replaced_both_count() -> None:
    vector = BY_ID["square.valid"]
    webhooks, delivery, secrets, now = read(vector)
    both = {name: [Secret("the new one"), *known] for name, known in secrets.items()}
    assert verify_delivery(webhooks, delivery, both, now=now) == "hmac_sha256"
    with pytest.raises(SignatureError) as refused:
        verify_delivery(webhooks, delivery, {"hmac_sha256": [Secret("the new one")]}, now=now)
    assert refused.value.reason == "signature_mismatch"


def test_whoever_has_a_signing_secret_takes_nothing_that_is_not_signed() -> None:
    """An address that leaked must not be a way around the signature."""
    vector = BY_ID["mailchimp.url_secret_valid"]
    webhooks, delivery, secrets, now = read(vector)
    with pytest.raises(SignatureError) as refused:
        verify_delivery(webhooks, delivery, {**secrets, "signed": [Secret("s")]}, now=now)
    assert refused.value.reason == "missing_signature"


def test_nothing_is_believed_without_a_secret() -> None:
    webhooks, delivery, _, now = read(BY_ID["stripe.valid"])
    nothing: list[dict[str, list[Secret]]] = [{}, {"hmac_sha256": []}, {"another": [Secret("x")]}]
    for none in nothing:
        with pytest.raises(SignatureError) as refused:
            verify_delivery(webhooks, delivery, none, now=now)
        assert refused.value.reason == "no_secret"
