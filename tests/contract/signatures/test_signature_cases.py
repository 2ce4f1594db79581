"""Every signature type: a good delivery of a provider, and what is bad about one that isn't.

A file of `cases/` holds a delivery that proves itself, and says where its bytes come from. What is altered
here is altered in it one at a time.
"""

import hmac
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.deliveries import Delivery
from engine.documents import read_document
from engine.errors import SignatureError
from engine.manifest import compile_connector
from engine.ports import Secret
from engine.signatures import TYPES, Age, Reading, SignatureScheme, SignedText, verify

HERE = Path(__file__).parent
FILES = sorted((HERE / "cases").glob("*.yaml"))
CASES = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in FILES}
IN_ADDRESS = [name for name in CASES if CASES[name]["signature"]["type"] == "secret_url"]
IN_HEADER = [name for name in CASES if CASES[name]["signature"].get("read", "").startswith("header ")]
OVER_BODY = [name for name in IN_HEADER if CASES[name]["signature"]["type"] not in ("secret_header", "jwt")]
TIMED = [
    name
    for name in CASES
    if "timestamp" in CASES[name]["signature"] or CASES[name]["signature"]["type"] == "detached_jws"
]
OTHER_KEYS = {  # of the same kind, so that only its value is wrong
    "public_key-rsa": None,
    "detached_jws": None,
    "public_key-p256": None,
    # RFC 8032, test 1
    "public_key-ed25519": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
}


def scheme_of(name: str) -> SignatureScheme:
    manifest = yaml.safe_load((HERE / "square-legacy.yaml").read_text("utf-8"))
    manifest["webhooks"]["signature"] = CASES[name]["signature"]
    connector = compile_connector(read_document(yaml.safe_dump(manifest), file=f"{name}.yaml"))
    assert connector.webhooks is not None
    return connector.webhooks.signatures[0]


def delivery_of(name: str) -> Delivery:
    case = CASES[name]
    headers = {key.lower(): value for key, value in case["headers"].items()}
    return Delivery("POST", case["url"], headers, case["body"].encode())


def refusal(
    name: str, delivery: Delivery, *, secret: str | None = None, now: float | None = None
) -> str | None:
    scheme, case = scheme_of(name), CASES[name]
    known = {scheme.name: [Secret(case["secret"] if secret is None else secret)]}
    try:
        verify([scheme], delivery, known, now=case["now"] if now is None else now)
    except SignatureError as error:
        return error.reason
    return None


def header_of(name: str) -> str:
    return str(CASES[name]["signature"]["read"]).removeprefix("header ").lower()


def with_header(name: str, value: str | None) -> Delivery:
    delivery = delivery_of(name)
    headers = {key: each for key, each in delivery.headers.items() if key != header_of(name)}
    return replace(delivery, headers=headers if value is None else {**headers, header_of(name): value})


@pytest.mark.parametrize("name", CASES)
def test_a_good_delivery(name: str) -> None:
    assert refusal(name, delivery_of(name)) is None


def test_parts_of_a_header_may_be_set_apart_by_spaces() -> None:
    read = Reading("x-signature", ",", "v1=")
    delivery = Delivery("POST", "https://hub.example", {"x-signature": "t=1, v1=ab ,v0=cd, v1=ef"}, b"")
    assert read.find(delivery) == ["ab", "ef"]


def test_a_public_key_may_come_without_its_frame() -> None:
    """As providers show it that write it on one line."""
    pem = CASES["public_key-p256"]["secret"]
    bare = "".join(line for line in pem.splitlines() if not line.startswith("-----"))
    assert refusal("public_key-p256", delivery_of("public_key-p256"), secret=bare) is None


@pytest.mark.parametrize("name", OVER_BODY)
def test_an_altered_body(name: str) -> None:
    delivery = delivery_of(name)
    assert refusal(name, replace(delivery, body=delivery.body + b" ")) == "signature_mismatch"


@pytest.mark.parametrize("name", IN_HEADER)
def test_an_altered_header(name: str) -> None:
    value = delivery_of(name).headers[header_of(name)]
    place = len(value) - 4
    other = "A" if value[place] != "A" else "B"
    other = other if CASES[name]["signature"].get("encoding") == "base64" or value[place].isupper() else "0"
    other = "1" if value[place] == "0" == other else other
    assert (
        refusal(name, with_header(name, value[:place] + other + value[place + 1 :])) == "signature_mismatch"
    )


@pytest.mark.parametrize("name", IN_HEADER)
def test_a_wrong_secret(name: str) -> None:
    secret = CASES[name]["secret"]
    if name in OTHER_KEYS:
        other = OTHER_KEYS[name] or _other_key(secret)
    else:
        other = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert refusal(name, delivery_of(name), secret=other) == "signature_mismatch"


def _other_key(pem: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    if isinstance(load_pem_public_key(pem.encode()), rsa.RSAPublicKey):
        fresh: Any = rsa.generate_private_key(65537, 2048).public_key()
    else:
        fresh = ec.generate_private_key(ec.SECP256R1()).public_key()
    return str(fresh.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.mark.parametrize("name", IN_HEADER)
@pytest.mark.parametrize("value", [None, "", "   "])
def test_a_missing_signature(name: str, value: str | None) -> None:
    assert refusal(name, with_header(name, value)) == "missing_signature"


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize(("off", "reason"), [(300, None), (301, "timestamp_outside_tolerance")])
def test_a_stale_delivery(name: str, off: int, reason: str | None) -> None:
    for now in (CASES[name]["now"] + off, CASES[name]["now"] - off):
        assert refusal(name, delivery_of(name), now=now) == reason


@pytest.mark.parametrize("name", [name for name in TIMED if name != "detached_jws"])
@pytest.mark.parametrize("value", [None, "", "now", "-1", "1.5", "1" * 17, "1700000000, 1"])
def test_a_time_that_cannot_be_read(name: str, value: str | None) -> None:
    header = CASES[name]["signature"]["timestamp"]["read"].removeprefix("header ").lower()
    delivery = delivery_of(name)
    headers = {key: each for key, each in delivery.headers.items() if key != header}
    headers |= {} if value is None else {header: value}
    assert refusal(name, replace(delivery, headers=headers)) == "malformed_signature"


@pytest.mark.parametrize("name", IN_ADDRESS)
def test_a_secret_address(name: str) -> None:
    delivery, secret = delivery_of(name), CASES[name]["secret"]
    for other, reason in (
        (secret[:-1], "url_secret_mismatch"),
        (f"{secret}0", "url_secret_mismatch"),
        ("", "missing_url_secret"),
    ):
        altered = replace(delivery, url=delivery.url.replace(secret, other))
        assert urlsplit(altered.url).path
        assert refusal(name, altered) == reason


def test_a_secret_in_a_field_of_the_body() -> None:
    delivery = delivery_of("secret_field")
    for body, reason in (
        (delivery.body.replace(b"4f7c", b"4f7d"), "signature_mismatch"),
        (b'{"client":{}}', "missing_signature"),
        (b'{"client":{"token":["0b8f3b6e4c5d4f7c"]}}', "missing_signature"),
        (b"not JSON", "missing_signature"),
    ):
        assert refusal("secret_field", replace(delivery, body=body)) == reason


def test_a_token_counts_until_it_ends() -> None:
    assert refusal("jwt", delivery_of("jwt"), now=1300819380) == "timestamp_outside_tolerance"


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"none","ts":1700000000,"b64":false,"crit":["b64"]}',
        '{"alg":"HS256","ts":1700000000,"b64":false,"crit":["b64"]}',
        '{"alg":"RS256","ts":1700000000,"b64":true,"crit":["b64"]}',
        '{"alg":"RS256","ts":1700000000,"b64":false,"crit":["b64","exp"]}',
        '{"alg":"RS256","ts":1700000000}',
        "[]",
        "not JSON",
    ],
)
def test_a_detached_signature_of_another_kind(header: str) -> None:
    from base64 import urlsafe_b64encode

    first = urlsafe_b64encode(header.encode()).rstrip(b"=").decode()
    signature = delivery_of("detached_jws").headers["x-jws"].rpartition(".")[2]
    assert (
        refusal("detached_jws", with_header("detached_jws", f"{first}..{signature}")) == "malformed_signature"
    )


@pytest.mark.parametrize("form", ["{0}.{1}", "{0}..{1}.{1}", "{0}.e30.{1}", "..", "{0}.."])
def test_a_detached_signature_in_another_form(form: str) -> None:
    first, _, last = delivery_of("detached_jws").headers["x-jws"].split(".")
    assert (
        refusal("detached_jws", with_header("detached_jws", form.format(first, last)))
        == "malformed_signature"
    )


def test_an_address_with_encoded_characters_is_signed_partly_decoded() -> None:
    """HubSpot decodes `:` and `/` and leaves `%20` as it is: signed here over the text its rule makes."""
    import base64

    case = CASES["hmac_sha256-hubspot"]
    plain = "https://www.example.com/a:b/c%20d?e=%26"
    signed = f"POST{plain}{case['body']}1693657560000".encode()
    signature = base64.b64encode(hmac.digest(case["secret"].encode(), signed, "sha256")).decode()
    called = replace(
        with_header("hmac_sha256-hubspot", signature), url="https://www.example.com/a%3Ab%2Fc%20d?e=%26"
    )
    assert refusal("hmac_sha256-hubspot", called) is None


@pytest.mark.parametrize(
    ("unit", "text", "moment"),
    [
        ("rfc3339", "2026-03-01T12:00:00Z", 1772366400),
        ("rfc3339", "2026-03-01T13:00:00.5+01:00", 1772366400.5),
        ("rfc3339", "20260301T120000Z", 1772366400),
        ("http_date", "Sun, 01 Mar 2026 12:00:00 GMT", 1772366400),
        ("milliseconds", "1772366400250", 1772366400.25),
        ("rfc3339", "yesterday", None),
        ("rfc3339", "1772366400", None),
        ("http_date", "Sun, 41 Mar 2026 12:00:00 GMT", None),
        ("http_date", "", None),
        ("milliseconds", "2026-03-01T12:00:00Z", None),
    ],
)
def test_times_are_written_in_several_ways(unit: Any, text: str, moment: float | None) -> None:
    """`signs` has the time as it was written; how old a delivery is, is told of what it means."""
    signs = SignedText.compile("{{ timestamp }}{{ body }}")
    age = Age(Reading("x-time"), unit, timedelta(seconds=60))
    scheme = SignatureScheme("s", "hmac_sha256", signs, Reading("x-signature"), age=age)
    proof = hmac.digest(b"secret", text.encode() + b"{}", "sha256").hex()
    headers = {"x-time": text, "x-signature": proof}

    def reason(now: float) -> str | None:
        try:
            verify([scheme], Delivery("POST", "https://hub.example", headers, b"{}"), known, now=now)
        except SignatureError as error:
            return error.reason
        return None

    known = {"s": [Secret("secret")]}
    if moment is None:
        assert reason(1772366400) == "malformed_signature"
    else:
        assert [reason(moment + late) for late in (60, 60.25)] == [None, "timestamp_outside_tolerance"]


@given(body=st.binary(max_size=200), flipped=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_bytes_can_be_signed_and_any_bit_counts(body: bytes, flipped: int, bit: int) -> None:
    """A body needs not be text: nothing of it is decoded on the way."""
    case = CASES["hmac_sha512"]
    digest = hmac.digest(case["secret"].encode(), b"1700000000" + body, "sha512").hex()
    delivery = replace(with_header("hmac_sha512", digest), body=body)
    assert refusal("hmac_sha512", delivery) is None
    if body:
        altered = bytearray(body)
        altered[flipped % len(body)] ^= 1 << bit
        assert refusal("hmac_sha512", replace(delivery, body=bytes(altered))) == "signature_mismatch"


def test_every_type_has_cases() -> None:
    assert {case["signature"]["type"] for case in CASES.values()} == set(TYPES)
