"""Public keys that providers sign with: read in the forms they are shown in, and tried on a signature."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from engine.errors import ExpressionError, HubError, UnexpectedResponseError
from engine.expressions import Expression

MOST_KEYS = 32  # of one document
Digest = Literal["sha1", "sha256", "sha384", "sha512"]
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_DIGESTS: Mapping[str, HashAlgorithm] = {
    "sha1": SHA1(),  # noqa: S303 - providers that still sign with it leave no choice
    "sha256": SHA256(),
    "sha384": SHA384(),
    "sha512": SHA512(),
}
_WEB_KEYS: Mapping[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
_ED25519_BYTES = 32
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


@lru_cache(maxsize=256)
def load_key(text: str) -> PublicKey:
    """Read a public key: PEM (of a key or a certificate), or what stands within that of a key, a JSON Web
    Key, or the 32 bytes of an Ed25519 key in hexadecimal or Base64. Raises HubError for anything else.

    Who vouches for a certificate, and until when, isn't looked at: it counts because of where it comes from.
    """
    bare = text.strip()
    try:
        if bare.startswith("{"):
            key: Any = _WEB_KEYS[json.loads(bare)["kty"]].from_jwk(bare)
        elif re.fullmatch(r"[0-9a-fA-F]{64}", bare):
            key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(bare))
        elif bare.startswith("-----BEGIN CERTIFICATE"):
            key = load_pem_x509_certificate(bare.encode()).public_key()
        elif bare.startswith("-----"):
            key = load_pem_public_key(bare.encode())
        else:
            raw = base64.b64decode("".join(bare.split()), validate=True)
            short = len(raw) == _ED25519_BYTES
            key = ed25519.Ed25519PublicKey.from_public_bytes(raw) if short else load_der_public_key(raw)
    except (ValueError, KeyError, TypeError, RecursionError, UnsupportedAlgorithm, InvalidKeyError):
        raise HubError("the webhook's public key can't be read") from None
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return key
    raise HubError("the webhook's key isn't a public key of a kind that signs webhooks")


def proves(key: PublicKey, signed: bytes, signature: bytes, digest: Digest, *, pss: bool = False) -> bool:
    """Tell whether a key made a signature. One of an elliptic curve may be DER, or its two halves."""
    algorithm = _DIGESTS[digest]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            salted = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            key.verify(signature, signed, salted if pss else padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(_as_der(key, signature), signed, ec.ECDSA(algorithm))
        else:
            key.verify(signature, signed)
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _as_der(key: ec.EllipticCurvePublicKey, signature: bytes) -> bytes:
    half = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * half:
        return signature
    halves = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    return encode_dss_signature(*halves)


def key_id(text: str) -> str | None:
    """Return the `kid` of a JSON Web Key, None for a key in any other form, or without one."""
    if not text.startswith("{"):
        return None
    kid = json.loads(text).get("kid")
    return kid if isinstance(kid, str) else None


def keys_in(document: bytes, read: Expression | None = None) -> tuple[str, ...]:
    """Return the keys that a published document holds, each as `load_key` takes it.

    They are those of a JSON Web Key Set, one JSON Web Key, keys or certificates in PEM, an object of them by
    name, or what `read` finds in it. What is no key is left out; raises UnexpectedResponseError when nothing
    is left.
    """
    try:
        text = document.decode()
        found: Any = text if text.lstrip().startswith("-----") else orjson.loads(document)
        if read is not None and not isinstance(found, str):
            found = read.evaluate(found, {"body": found})
    except (ValueError, ExpressionError):
        found = None
    kept = tuple(each for each in _walk(found) if _is_key(each))[:MOST_KEYS]
    if not kept:
        raise UnexpectedResponseError("what should hold the keys webhooks are signed with holds none")
    return kept


def _walk(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield from _PEM.findall(found) or [found]
    elif isinstance(found, list):
        for each in found[: 2 * MOST_KEYS]:
            if isinstance(each, str) or (isinstance(each, dict) and "kty" in each):
                yield from _walk(each)
    elif isinstance(found, dict) and "kty" in found:
        if found.get("use", "sig") == "sig":
            yield orjson.dumps(found).decode()
    elif isinstance(found, dict) and isinstance(found.get("keys"), list):
        yield from _walk(found["keys"])
    elif isinstance(found, dict):
        yield from (each for each in found.values() if isinstance(each, str) and _PEM.search(each))


def _is_key(text: str) -> bool:
    try:
        load_key(text)
    except (HubError, binascii.Error):
        return False
    return True
