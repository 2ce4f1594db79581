"""Signatures, and where keys may be: what strangers write there is refused and breaks nothing."""

import pytest

from engine.deliveries import Delivery
from engine.errors import SignatureError
from engine.expressions import Expression
from engine.ports import Secret
from engine.signatures import READ_NAMES, Reading, SignatureScheme, is_at, verify


@pytest.mark.parametrize("kind", ["hmac_sha256", "secret_header"])
def test_a_signature_made_of_bytes_that_are_no_text_is_none(kind: str) -> None:
    made = Expression.compile("{{ body | lower }}", names=READ_NAMES)
    scheme = SignatureScheme("ours", kind, read=Reading("", where="made", made=made), encoding="text")
    delivery = Delivery("POST", "https://hub.example/x", {}, b"\xff\xfe")
    with pytest.raises(SignatureError) as refused:
        verify([scheme], delivery, {"ours": [Secret("juniper-secret")]}, now=0.0)
    assert refused.value.reason == "missing_signature"


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("keys.eu.juniper.example", True),
        ("keys.eu-west-1.juniper.example", True),
        ("keys.juniper.example", False),
        ("keys.a.b.juniper.example", False),
        ("keys..juniper.example", False),
        ("keys.eu.juniper.example.evil.example", False),
        ("evil.example/keys.eu.juniper.example", False),
    ],
)
def test_a_star_stands_for_one_label_of_a_host(host: str, is_one: bool) -> None:
    assert is_at(f"https://{host}/key.pem", ["keys.*.juniper.example"]) is is_one
