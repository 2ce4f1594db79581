"""Prove that a webhook comes from its provider.

A scheme is data: what is signed, how, and where the signature is read. Nothing of a delivery is parsed before
it is proved: what is signed are the bytes that came, and signatures are compared in constant time.

To add a type: write its check, name it in TYPES, describe it in schemas/connector.schema.json and add its
cases to tests/contract/signatures/.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from jwt.algorithms import RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from engine.errors import ExpressionError, HubError, SignatureError
from engine.expressions import Expression
from engine.ports import Secret

_TEXTS = frozenset({"method", "url", "path", "query", "timestamp"})
SIGNED_NAMES = frozenset({"method", "url", "path", "query", "body", "timestamp", "form", "headers"})
MOST_SIGNATURES = 16  # in one header; providers send two while a secret is replaced
LONGEST_HEADER = 8192  # characters
_HOLE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_MOMENT = re.compile(r"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A POST (or a probe) as it came: `url` as the provider knows it, header names in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> list[tuple[str, str]]:
        """The body's form parameters, in the order sent."""
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)


@dataclass(frozen=True, slots=True)
class Reading:
    """A header, and which of its parts counts: those between separators that begin with the prefix."""

    header: str  # lower case
    separator: str | None = None
    prefix: str = ""

    def find(self, delivery: Delivery) -> list[str] | None:
        """Return the parts without their prefix; None when the header is missing or empty."""
        text = delivery.headers.get(self.header, "")
        if not text.strip() or len(text) > LONGEST_HEADER:
            return None
        parts = [part.strip() for part in text.split(self.separator)] if self.separator else [text]
        return [part[len(self.prefix) :] for part in parts if part.startswith(self.prefix)][:MOST_SIGNATURES]


@dataclass(frozen=True, slots=True)
class Age:
    """Where the time of signing is read, and how old (or early) a delivery may be."""

    read: Reading
    unit: Literal["seconds", "milliseconds"] = "seconds"
    tolerance: timedelta = timedelta(minutes=5)
    early: bool = False  # whether a time to come is taken, however far off


@dataclass(frozen=True, slots=True)
class SignedText:
    """What is signed, as text with holes; `{{ body }}` stands for the very bytes."""

    text: str
    parts: tuple[str | Expression, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def compile(cls, text: str) -> SignedText:
        """Raises ExpressionError for a text that can't be compiled, or names what no delivery has."""
        whole = Expression.compile(text, names=SIGNED_NAMES)
        if not whole.names:
            raise ExpressionError("what is signed depends on nothing of the delivery; write `{{ body }}`")
        parts: list[str | Expression] = []
        end = 0
        for hole in _HOLE.finditer(text):
            parts += [text[end : hole.start()], Expression.compile(hole.group(), names=SIGNED_NAMES)]
            end = hole.end()
        return cls(text, (*parts, text[end:]), whole.names)

    def render(self, delivery: Delivery, timestamp: str) -> bytes:
        """Return the bytes that were signed; raises ExpressionError."""
        address = urlsplit(delivery.url)
        scope: dict[str, Any] = {
            "method": delivery.method,
            "url": delivery.url,
            "path": address.path,
            "query": address.query,
            "timestamp": timestamp,
            "headers": delivery.headers,
        }
        if "form" in self.names:
            scope["form"] = "".join(f"{name}{value}" for name, value in sorted(delivery.form))
        if "body" in self.names:
            scope["body"] = delivery.body.decode("utf-8", "surrogateescape")
        return b"".join(self._bytes(part, scope, delivery) for part in self.parts)

    @staticmethod
    def _bytes(part: str | Expression, scope: Mapping[str, Any], delivery: Delivery) -> bytes:
        if isinstance(part, str):
            return part.encode()
        name = part.text.strip("{} ")
        if name == "body":
            return delivery.body
        value = scope[name] if name in _TEXTS else part.evaluate(None, scope)
        return str(value).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class SignatureScheme:
    """One scheme of a connector. `name` is how its secrets are kept."""

    name: str
    type: str
    signs: SignedText | None = None
    read: Reading | None = None
    encoding: Literal["hex", "base64"] = "hex"
    age: Age | None = None
    key_is: Literal["text", "base64", "hex"] = "text"  # how a secret becomes a key
    secret_prefix: str = ""  # not part of the key
    parameter: str | None = None  # secret_url: the query parameter; None: the last part of the path


def verify(
    schemes: Sequence[SignatureScheme],
    delivery: Delivery,
    secrets: Mapping[str, Sequence[Secret]],
    *,
    now: float,
) -> SignatureScheme:
    """Return the scheme that a delivery was proved by.

    `secrets` are those of each scheme by its name, `now` is Unix time. The first scheme that has a secret
    counts, and no other: so whoever holds a signing secret takes nothing that isn't signed. While a secret is
    replaced, several live side by side. Raises SignatureError, whose `reason` is one of no_secret,
    missing_signature, malformed_signature, no_known_scheme, signature_mismatch, timestamp_outside_tolerance,
    missing_url_secret and url_secret_mismatch.
    """
    for scheme in schemes:
        known = secrets.get(scheme.name)
        if known:
            TYPES[scheme.type](scheme, delivery, [each.reveal() for each in known], now)
            return scheme
    raise _refused("no_secret")


Verifier = Callable[[SignatureScheme, Delivery, Sequence[str], float], None]
Proof = Callable[
    [str, bytes, bytes, SignatureScheme], bool
]  # secret, signed bytes, what the header holds, scheme


def _signed(proves: Proof) -> Verifier:
    """Return what verifies signatures in a header; `proves` tells whether a secret made one of them."""

    def check(scheme: SignatureScheme, delivery: Delivery, secrets: Sequence[str], now: float) -> None:
        given = scheme.read.find(delivery) if scheme.read else None
        if given is None:
            raise _refused("missing_signature")
        if not given:
            raise _refused("no_known_scheme")
        timestamp = _timestamp(scheme.age, delivery)
        try:
            signed = scheme.signs.render(delivery, timestamp) if scheme.signs else delivery.body
        except ExpressionError:
            raise _refused("malformed_signature") from None
        # Every secret is tried with every signature, so the time it takes tells nothing of which one fits.
        fits = [proves(secret, signed, each.encode(), scheme) for secret in secrets for each in given]
        if not any(fits):
            raise _refused("signature_mismatch")
        _check_age(scheme.age, timestamp, now)

    return check


def _timestamp(age: Age | None, delivery: Delivery) -> str:
    if age is None:
        return ""
    found = age.read.find(delivery) or [""]
    if not _MOMENT.fullmatch(found[0]):
        raise _refused("malformed_signature")
    return found[0]


def _check_age(age: Age | None, timestamp: str, now: float) -> None:
    if age is None:
        return
    seconds = int(timestamp) / (1000 if age.unit == "milliseconds" else 1)
    late, tolerance = now - seconds, age.tolerance.total_seconds()
    if late > tolerance or (not age.early and -late > tolerance):
        raise _refused("timestamp_outside_tolerance")


def _hmac(algorithm: Literal["sha1", "sha256", "sha512"]) -> Verifier:
    def proves(secret: str, signed: bytes, given: bytes, scheme: SignatureScheme) -> bool:
        digest = hmac.digest(_key(secret, scheme), signed, algorithm)
        expected = digest.hex().encode() if scheme.encoding == "hex" else base64.b64encode(digest)
        return hmac.compare_digest(expected, given)

    return _signed(proves)


def _key(secret: str, scheme: SignatureScheme) -> bytes:
    text = secret.removeprefix(scheme.secret_prefix)
    try:
        if scheme.key_is == "base64":
            return base64.b64decode(text, validate=True)
        return bytes.fromhex(text) if scheme.key_is == "hex" else text.encode()
    except (ValueError, binascii.Error):
        raise HubError(f"the webhook secret isn't {scheme.key_is}") from None


def _public_key(secret: str, signed: bytes, given: bytes, scheme: SignatureScheme) -> bool:
    try:
        raw = (
            base64.b64decode(given, validate=True)
            if scheme.encoding == "base64"
            else bytes.fromhex(given.decode())
        )
    except (ValueError, binascii.Error):
        return False
    key = _load_key(secret)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(raw, signed, padding.PKCS1v15(), SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(raw, signed, ec.ECDSA(SHA256()))
        else:
            key.verify(raw, signed)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=256)
def _load_key(text: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """Read a public key: PEM, or what stands within it, a JSON Web Key (RSA), or the 32 bytes of an Ed25519
    key in hexadecimal.
    """
    try:
        if text.lstrip().startswith("{"):
            key: Any = RSAAlgorithm.from_jwk(text)
        elif re.fullmatch(r"[0-9a-fA-F]{64}", text):
            key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        elif text.lstrip().startswith("-----"):
            key = load_pem_public_key(text.encode())
        else:
            key = load_der_public_key(base64.b64decode("".join(text.split()), validate=True))
    except (ValueError, UnsupportedAlgorithm, InvalidKeyError):
        raise HubError("the webhook's public key can't be read") from None
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return key
    raise HubError("the webhook's key isn't a public key of a kind that signs webhooks")


def _detached_jws(scheme: SignatureScheme, delivery: Delivery, secrets: Sequence[str], now: float) -> None:
    """A JSON Web Signature (RFC 7515) whose payload is the body as it stands (RFC 7797); always RS256."""
    given = scheme.read.find(delivery) if scheme.read else None
    if not given:
        raise _refused("missing_signature")
    first, *rest = given[0].split(".")
    if len(rest) != 2 or rest[0]:
        raise _refused("malformed_signature")
    try:
        header, raw = json.loads(_base64url(first)), _base64url(rest[1])
    except (ValueError, RecursionError):
        raise _refused("malformed_signature") from None
    # The algorithm is ours, never the sender's, and whatever is critical has to be understood.
    wanted = {"alg": "RS256", "b64": False, "crit": ["b64"]}
    if not isinstance(header, dict) or any(header.get(name) != value for name, value in wanted.items()):
        raise _refused("malformed_signature")
    signed = first.encode() + b"." + delivery.body
    if not any(_proves_rs256(secret, signed, raw) for secret in secrets):
        raise _refused("signature_mismatch")
    if scheme.age is not None:
        moment = header.get("ts")
        if not isinstance(moment, int) or isinstance(moment, bool):
            raise _refused("malformed_signature")
        _check_age(scheme.age, str(moment), now)


def _proves_rs256(secret: str, signed: bytes, raw: bytes) -> bool:
    key = _load_key(secret)
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(raw, signed, padding.PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def _base64url(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _secret_url(scheme: SignatureScheme, delivery: Delivery, secrets: Sequence[str], _: float) -> None:
    """A provider that signs nothing knows an address that nobody can guess."""
    address = urlsplit(delivery.url)
    if scheme.parameter is None:
        given = address.path.rpartition("/")[2]
    else:
        given = dict(parse_qsl(address.query)).get(scheme.parameter, "")
    if not given:
        raise _refused("missing_url_secret")
    if not any(_same(secret, given) for secret in secrets):
        raise _refused("url_secret_mismatch")


def _secret_header(scheme: SignatureScheme, delivery: Delivery, secrets: Sequence[str], _: float) -> None:
    """A provider that sends a token both sides know, and signs nothing."""
    given = scheme.read.find(delivery) if scheme.read else None
    if not given:
        raise _refused("missing_signature")
    if not any(_same(secret, given[0]) for secret in secrets):
        raise _refused("signature_mismatch")


def _same(secret: str, given: str) -> bool:
    # Digests have one length, so the comparison doesn't tell how long the secret is.
    return hmac.compare_digest(
        hashlib.sha256(secret.encode()).digest(), hashlib.sha256(given.encode()).digest()
    )


TYPES: Mapping[str, Verifier] = {
    "hmac_sha1": _hmac("sha1"),
    "hmac_sha256": _hmac("sha256"),
    "hmac_sha512": _hmac("sha512"),
    "public_key": _signed(_public_key),
    "detached_jws": _detached_jws,
    "secret_url": _secret_url,
    "secret_header": _secret_header,
}

_SENTENCES: Mapping[str, str] = {
    "no_secret": "no secret is known that could prove this delivery",
    "missing_signature": "the delivery isn't signed",
    "malformed_signature": "the delivery's signature can't be read",
    "no_known_scheme": "the delivery is signed in a way that isn't known",
    "signature_mismatch": "the delivery's signature is wrong",
    "timestamp_outside_tolerance": "the delivery was signed too long ago, or in the future",
    "missing_url_secret": "the address has no secret in it",
    "url_secret_mismatch": "the secret in the address is wrong",
}


def _refused(reason: str) -> SignatureError:
    return SignatureError(_SENTENCES[reason], reason)
