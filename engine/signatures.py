"""Prove that a webhook comes from its provider.

A scheme is data: what is signed, how, and where the signature is read. What is signed are the bytes that
came, and signatures are compared in constant time. Nothing of a body is parsed before it is proved, unless
the provider signs fields of it, or writes the signature there.

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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qsl, quote_plus, urlsplit

import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from engine.deliveries import Delivery, read_body
from engine.errors import ExpressionError, HubError, MalformedDeliveryError, SignatureError
from engine.expressions import Expression, Path
from engine.filters import as_text
from engine.ports import Secret
from engine.public_keys import Digest, key_id, load_key, proves

READ_NAMES = frozenset({"method", "url", "path", "query", "parameters", "headers", "body", "payload"})
DELIVERED = READ_NAMES | {"form", "timestamp"}
SIGNED_NAMES = DELIVERED | {"secret"}
REQUIRED_NAMES = DELIVERED | {"claims"}
MOST_SIGNATURES = 16  # in one header; providers send two while a secret is replaced
LONGEST_HEADER = 8192  # characters
LONGEST_TOKEN = 1 << 20  # characters of one that is the whole body
_HOLE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_TEXTS = frozenset({"method", "url", "path", "query", "timestamp", "form", "secret"})
_OURS = frozenset({"method", "url", "path", "secret"})  # what a stranger who asks can't choose
_MOMENT = re.compile(r"[0-9]{1,16}")
_HALVES = re.compile(r"[\ud800-\udfff]")  # what bytes that are no text become: nothing is signed so
# What may be signed for whoever asks: nothing that a body could be read from.
_CHALLENGE = re.compile(r"[A-Za-z0-9_+/-]{1,256}={0,2}")

Encoding = Literal["text", "hex", "base64", "base64url"]
Unit = Literal["seconds", "milliseconds", "rfc3339", "http_date"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A place in a delivery, and which of its parts count: those between separators that have the prefix.

    A header's name is in lower case, and with `*` at its end it stands for all that begin so. A prefix with
    `*` at its beginning takes anything up to what follows. `steps` lead through the body; none is all of it.
    `made` is an expression over the delivery instead, for what is wrapped in something else.
    """

    name: str
    separator: str | None = None
    prefix: str = ""
    where: Literal["header", "query", "body", "made"] = "header"
    steps: tuple[str | int, ...] = ()
    made: Expression | None = None

    @property
    def header(self) -> str | None:
        """The header it is, in lower case; None when it is another place."""
        return self.name if self.where == "header" else None

    def find(self, delivery: Delivery) -> list[str] | None:
        """Return the parts without their prefix; None when there is nothing in this place."""
        longest = LONGEST_TOKEN if self.where == "body" and not self.steps else LONGEST_HEADER
        texts = [
            text
            for text in self._texts(delivery)
            if text.strip() and len(text) <= longest and not _HALVES.search(text)
        ]
        if not texts:
            return None
        parts = [
            part.strip()
            for text in texts
            for part in (text.split(self.separator) if self.separator else [text])
        ]
        found = (_without_prefix(part, self.prefix) for part in parts)
        return [each for each in found if each is not None][:MOST_SIGNATURES]

    def _texts(self, delivery: Delivery) -> Iterator[str]:
        if self.where == "query":
            yield from (value for name, value in delivery.parameters if name == self.name)
        elif self.where == "header" and self.name.endswith("*"):
            begins = self.name[:-1]
            yield from (value for name, value in delivery.headers.items() if name.startswith(begins))
        elif self.where == "header":
            yield delivery.headers.get(self.name, "")
        elif self.made is not None:
            try:
                found = self.made.evaluate(None, scope_of(self.made.names, delivery))
            except ExpressionError:
                return
            yield found if isinstance(found, str) else ""
        elif not self.steps:
            yield delivery.body.decode("utf-8", "replace")
        else:
            try:
                value = Path(self.name, self.steps).find(read_body(delivery))
            except MalformedDeliveryError:
                return
            if isinstance(value, str | int) and not isinstance(value, bool):
                yield str(value)


def _without_prefix(part: str, prefix: str) -> str | None:
    if prefix.startswith("*"):
        _, found, rest = part.partition(prefix[1:])
        return rest if found else None
    return part[len(prefix) :] if part.startswith(prefix) else None


@dataclass(frozen=True, slots=True)
class Age:
    """Where the time of signing is read, how it is written, and how old (or early) a delivery may be."""

    read: Reading
    unit: Unit = "seconds"
    tolerance: timedelta = timedelta(minutes=5)
    early: bool = False  # whether a time to come is taken, however far off


@dataclass(frozen=True, slots=True)
class Pairs:
    """How `{{ form }}` is written: names and values, sorted by name."""

    between_name_and_value: str = ""
    between_pairs: str = ""
    without: frozenset[str] = frozenset()
    of: Literal["body", "address", "payload"] = "body"

    def write(self, delivery: Delivery) -> str:
        """Return the text; raises MalformedDeliveryError when it is of a payload that can't be read."""
        pairs = delivery.form if self.of == "body" else delivery.parameters
        if self.of == "payload":
            payload = read_body(delivery)
            known = payload if isinstance(payload, dict) else {}
            pairs = [
                (name, as_text(value))
                for name, value in known.items()
                if isinstance(value, str | int | float | bool)
            ]
        kept = sorted((name, value) for name, value in pairs if name not in self.without)
        return self.between_pairs.join(f"{name}{self.between_name_and_value}{value}" for name, value in kept)


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
        if not whole.names - {"secret"}:
            raise ExpressionError("what is signed depends on nothing of the delivery; write `{{ body }}`")
        parts: list[str | Expression] = []
        end = 0
        for hole in _HOLE.finditer(text):
            parts += [text[end : hole.start()], Expression.compile(hole.group(), names=SIGNED_NAMES)]
            end = hole.end()
        return cls(text, (*parts, text[end:]), whole.names)

    def render(
        self,
        delivery: Delivery,
        timestamp: str = "",
        *,
        pairs: Pairs = Pairs(),
        secret: str = "",
        challenge: bool = False,
    ) -> bytes:
        """Return the bytes that are signed; raises ExpressionError.

        `challenge` is for what anybody may ask to have signed: then each value has to be of letters, digits
        and a few signs, or it could be a delivery.
        """
        scope = scope_of(self.names, delivery, timestamp, pairs)
        if "secret" in self.names:
            scope["secret"] = secret
        return b"".join(self._bytes(part, scope, delivery, challenge) for part in self.parts)

    @staticmethod
    def _bytes(
        part: str | Expression, scope: Mapping[str, Any], delivery: Delivery, challenge: bool
    ) -> bytes:
        if isinstance(part, str):
            return part.encode()
        name = part.text.strip("{} ")
        if name == "body" and not challenge:
            return delivery.body
        value = scope[name] if name in _TEXTS else part.evaluate(None, scope)
        text = "" if value is None else as_text(value)
        if challenge and not part.names <= _OURS and not _CHALLENGE.fullmatch(text):
            raise ExpressionError("this is no challenge that may be signed")
        return text.encode("utf-8", "surrogateescape")


def scope_of(
    names: Collection[str], delivery: Delivery, timestamp: str = "", pairs: Pairs = Pairs()
) -> dict[str, Any]:
    """Return what expressions over a delivery that isn't proved yet may see, as far as `names` ask for it.

    Raises ExpressionError when it is to be of a payload that can't be read.
    """
    address = urlsplit(delivery.url)
    scope: dict[str, Any] = {
        "method": delivery.method,
        "url": delivery.url,
        "path": address.path,
        "query": address.query,
        "timestamp": timestamp,
        "headers": delivery.headers,
    }
    try:
        if "parameters" in names:
            scope["parameters"] = dict(delivery.parameters)
        if "form" in names:
            scope["form"] = pairs.write(delivery)
        if "payload" in names:
            scope["payload"] = read_body(delivery)
        if "body" in names:
            scope["body"] = delivery.body.decode("utf-8", "surrogateescape")
    except MalformedDeliveryError as error:
        raise ExpressionError(error.message) from None
    return scope


@dataclass(frozen=True, slots=True)
class Published:
    """Where a provider publishes the keys it signs with.

    An address that depends on the delivery has to be at one of the `hosts`, in which `*` stands for one label
    of a name, or a part of it. `read` finds the keys in what is there.
    """

    url: str | Expression
    hosts: tuple[str, ...] = ()
    read: Expression | None = None


@dataclass(frozen=True, slots=True)
class SignatureScheme:
    """One scheme of a connector. `name` is how its secrets are kept."""

    name: str
    type: str
    signs: SignedText | None = None
    read: Reading | None = None
    encoding: Encoding = "hex"
    age: Age | None = None
    key_is: Literal["text", "base64", "base64url", "hex", "sha1", "sha256"] = (
        "text"  # how a secret becomes one
    )
    secret_prefix: str = ""  # not part of the key
    parameter: str | None = None  # secret_url: the query parameter; None: the last part of the path
    pairs: Pairs = Pairs()
    digest: Digest = "sha256"  # public_key
    padding: Literal["pkcs1", "pss"] = "pkcs1"  # of RSA, for public_key
    algorithm: str = "HS256"  # jwt
    keys: Published | None = None  # public_key and jwt: else the secrets are the keys
    requires: Expression | None = None  # over REQUIRED_NAMES: true of every delivery that counts

    @property
    def needs_secret(self) -> bool:
        """Whether nothing can be proved without a secret."""
        return self.keys is None or (self.signs is not None and "secret" in self.signs.names)


def counting(
    schemes: Sequence[SignatureScheme], secrets: Mapping[str, Sequence[Secret]]
) -> SignatureScheme | None:
    """Return the scheme that a delivery has to be proved by: the first one that has what it needs."""
    return next((each for each in schemes if secrets.get(each.name) or not each.needs_secret), None)


def verify(
    schemes: Sequence[SignatureScheme],
    delivery: Delivery,
    secrets: Mapping[str, Sequence[Secret]],
    *,
    now: float,
    keys: Sequence[str] = (),
) -> SignatureScheme:
    """Return the scheme that a delivery was proved by.

    `secrets` are those of each scheme by its name, `now` is Unix time, `keys` are the published ones of the
    scheme that counts. That is the first one that has a secret or needs none, and no other: so whoever holds
    a signing secret takes nothing that isn't signed. While a secret is replaced, several live side by side.
    Raises SignatureError, whose `reason` is one of no_secret, missing_signature, malformed_signature,
    no_known_scheme, signature_mismatch, unknown_key, timestamp_outside_tolerance, requirement_not_met,
    missing_url_secret and url_secret_mismatch.
    """
    scheme = counting(schemes, secrets)
    if scheme is None:
        raise _refused("no_secret")
    known = _Known([each.reveal() for each in secrets.get(scheme.name, ())], keys)
    claims = TYPES[scheme.type](scheme, delivery, known, now)
    if scheme.requires is not None:
        try:
            scope = scope_of(scheme.requires.names, delivery, pairs=scheme.pairs)
            met = scheme.requires.evaluate(None, {**scope, "claims": claims})
        except ExpressionError:
            met = False
        if not met:
            raise _refused("requirement_not_met")
    return scheme


def key_address(scheme: SignatureScheme, delivery: Delivery) -> str | None:
    """Return where the keys of a scheme are published; None when they aren't.

    Raises SignatureError (forbidden_key_address) when the delivery leads elsewhere than its provider's hosts.
    """
    if scheme.keys is None:
        return None
    url = scheme.keys.url
    if isinstance(url, str):
        return url
    try:
        found = url.evaluate(None, scope_of(url.names, delivery))
    except ExpressionError:
        found = None
    if not isinstance(found, str) or not is_at(found, scheme.keys.hosts):
        raise _refused("forbidden_key_address")
    return found


def is_at(url: str, hosts: Collection[str]) -> bool:
    """Tell whether an address is by `https` at one of some hosts; `*` stands for letters within a label."""
    if len(url) > LONGEST_HEADER or not url.isascii() or any(each <= " " or each == "\\" for each in url):
        return False
    try:
        address = urlsplit(url)
        plain = address.scheme == "https" and address.port in (None, 443) and "@" not in address.netloc
    except ValueError:
        return False
    host = address.hostname or ""
    return plain and any(_host_pattern(each).fullmatch(host) for each in hosts)


@lru_cache(maxsize=256)
def _host_pattern(host: str) -> re.Pattern[str]:
    return re.compile("[a-z0-9-]+".join(map(re.escape, host.lower().split("*"))))


def as_proved(
    scheme: SignatureScheme, delivery: Delivery, secrets: Mapping[str, Sequence[Secret]]
) -> Delivery:
    """Return a delivery that a scheme has proved as it is to be read and kept.

    A body that is a token is what the token says; a secret within a body isn't kept.
    """
    if scheme.type == "jwt" and scheme.read is not None and scheme.read.where == "body":
        if scheme.read.steps:
            return delivery
        token = (scheme.read.find(delivery) or [""])[0]
        headers = {**delivery.headers, "content-type": "application/json"}
        return replace(delivery, headers=headers, body=_base64url(token.split(".")[1]))
    if scheme.type != "secret_field":
        return delivery
    body = delivery.body
    for secret in secrets.get(scheme.name, ()):
        plain = secret.reveal()
        in_json = {orjson.dumps(plain).decode()[1:-1], json.dumps(plain)[1:-1]}
        slashed = {each.replace("/", "\\/") for each in in_json}
        for each in {plain, quote_plus(plain), *in_json, *slashed}:
            body = body.replace(each.encode(), b"***")
    return replace(delivery, body=body)


def sign(scheme: SignatureScheme, delivery: Delivery, secret: Secret) -> str:
    """Return the signature of a challenge, which is proof to a provider that its secret is known here.

    Raises ExpressionError for what is no challenge: anybody may send one, and mustn't have a delivery signed.
    """
    if scheme.signs is None:
        raise ExpressionError("nothing says what is signed")
    known = secret.reveal()
    signed = scheme.signs.render(delivery, pairs=scheme.pairs, secret=known, challenge=True)
    name = scheme.type.removeprefix("hmac_")
    if scheme.type.startswith("hmac_"):
        return _written(hmac.digest(_key(known, scheme), signed, name), scheme.encoding)
    return _written(hashlib.new(name, signed, usedforsecurity=False).digest(), scheme.encoding)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a delivery may be proved by."""

    secrets: Sequence[str] = field(repr=False)
    published: Sequence[str] = ()

    def keys(self, scheme: SignatureScheme) -> Sequence[str]:
        return self.secrets if scheme.keys is None else self.published


Verifier = Callable[[SignatureScheme, Delivery, _Known, float], Mapping[str, Any]]  # returns claims
Proof = Callable[[str, bytes, str, SignatureScheme], bool]  # key, signed bytes, what is given, scheme
_NO_CLAIMS: Mapping[str, Any] = {}


def _signed(proof: Proof) -> Verifier:
    """Return what verifies signatures of a text; `proof` tells whether a key made one of them."""

    def check(scheme: SignatureScheme, delivery: Delivery, known: _Known, now: float) -> Mapping[str, Any]:
        given = scheme.read.find(delivery) if scheme.read else None
        if given is None:
            raise _refused("missing_signature")
        if not given:
            raise _refused("no_known_scheme")
        timestamp, moment = _timestamp(scheme.age, delivery)

        def signed(secret: str) -> bytes:
            if scheme.signs is None:
                return delivery.body
            return scheme.signs.render(delivery, timestamp, pairs=scheme.pairs, secret=secret)

        try:
            if scheme.signs is not None and "secret" in scheme.signs.names:
                texts = [(secret, signed(secret)) for secret in known.secrets]
            else:
                texts = [("", signed(""))]
        except ExpressionError:
            raise _refused("malformed_signature") from None
        tried = [
            (key, text, each)
            for secret, text in texts
            for key in (known.keys(scheme) if scheme.keys is not None or not secret else [secret])
            for each in given
        ]
        # Every secret is tried with every signature, so the time it takes tells nothing of which one fits.
        fits = [proof(key, text, each, scheme) for key, text, each in tried]
        if not any(fits):
            raise _refused("signature_mismatch")
        _check_age(scheme.age, moment, now)
        return _NO_CLAIMS

    return check


def _timestamp(age: Age | None, delivery: Delivery) -> tuple[str, float]:
    """Return the time of signing as it is written, and in Unix seconds."""
    if age is None:
        return "", 0.0
    text = (age.read.find(delivery) or [""])[0]
    try:
        return text, _MOMENTS[age.unit](text)
    except (ValueError, OverflowError, TypeError):
        raise _refused("malformed_signature") from None


def _counted(text: str) -> int:
    if not _MOMENT.fullmatch(text):
        raise ValueError
    return int(text)


def _in_utc(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_MOMENTS: Mapping[Unit, Callable[[str], float]] = {
    "seconds": _counted,
    "milliseconds": lambda text: _counted(text) / 1000,
    "rfc3339": lambda text: _in_utc(datetime.fromisoformat(text)),
    "http_date": lambda text: _in_utc(parsedate_to_datetime(text)),
}


def _check_age(age: Age | None, moment: float, now: float) -> None:
    if age is None:
        return
    late, tolerance = now - moment, age.tolerance.total_seconds()
    if late > tolerance or (not age.early and -late > tolerance):
        raise _refused("timestamp_outside_tolerance")


def _hmac(algorithm: str) -> Verifier:
    def proof(secret: str, signed: bytes, given: str, scheme: SignatureScheme) -> bool:
        return _is_written(hmac.digest(_key(secret, scheme), signed, algorithm), given, scheme.encoding)

    return _signed(proof)


def _digest(algorithm: str) -> Verifier:
    """A digest of a text that the secret is part of."""

    def proof(_: str, signed: bytes, given: str, scheme: SignatureScheme) -> bool:
        made = hashlib.new(algorithm, signed, usedforsecurity=False).digest()
        return _is_written(made, given, scheme.encoding)

    return _signed(proof)


def _written(digest: bytes, encoding: Encoding) -> str:
    if encoding == "hex":
        return digest.hex()
    if encoding == "base64url":
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return base64.b64encode(digest).decode()


def _is_written(digest: bytes, given: str, encoding: Encoding) -> bool:
    if encoding == "base64url":
        given = given.rstrip("=")
    return hmac.compare_digest(_written(digest, encoding).encode(), given.encode())


def _read(given: str, encoding: Encoding) -> bytes:
    """Return the bytes that a text stands for; raises ValueError."""
    if encoding == "hex":
        return bytes.fromhex(given)
    if encoding == "base64url":
        return _base64url(given.rstrip("="))
    return base64.b64decode(given, validate=True) if encoding == "base64" else given.encode()


def _key(secret: str, scheme: SignatureScheme) -> bytes:
    text, form = secret.removeprefix(scheme.secret_prefix), scheme.key_is
    if form == "sha1" or form == "sha256":
        return hashlib.new(form, text.encode(), usedforsecurity=False).digest()
    try:
        return _read(text, form)
    except (ValueError, binascii.Error):
        raise HubError(f"the webhook secret isn't {form}") from None


def _public_key(key: str, signed: bytes, given: str, scheme: SignatureScheme) -> bool:
    try:
        raw = _read(given, scheme.encoding)
    except (ValueError, binascii.Error):
        return False
    loaded = load_key(key.removeprefix(scheme.secret_prefix))
    return proves(loaded, signed, raw, scheme.digest, pss=scheme.padding == "pss")


def _detached_jws(
    scheme: SignatureScheme, delivery: Delivery, known: _Known, now: float
) -> Mapping[str, Any]:
    """A JSON Web Signature (RFC 7515) whose payload is the body as it stands (RFC 7797); always RS256."""
    given = scheme.read.find(delivery) if scheme.read else None
    if not given:
        raise _refused("missing_signature")
    first, middle, last = _parts(given[0])
    if middle:
        raise _refused("malformed_signature")
    header, raw = _json_part(first), _bytes_part(last)
    # The algorithm is ours, never the sender's, and whatever is critical has to be understood.
    wanted = {"alg": "RS256", "b64": False, "crit": ["b64"]}
    if any(header.get(name) != value for name, value in wanted.items()):
        raise _refused("malformed_signature")
    signed = first.encode() + b"." + delivery.body
    if not any(_proves("RS256", key, signed, raw, scheme) for key in known.secrets):
        raise _refused("signature_mismatch")
    if scheme.age is not None:
        _check_age(scheme.age, _number(header, "ts"), now)
    return _NO_CLAIMS


def _jwt(scheme: SignatureScheme, delivery: Delivery, known: _Known, now: float) -> Mapping[str, Any]:
    """A JSON Web Token (RFC 7519). It says nothing of the body unless the manifest requires that it does."""
    given = scheme.read.find(delivery) if scheme.read else None
    if not given:
        raise _refused("missing_signature" if given is None else "no_known_scheme")
    first, middle, last = _parts(given[0])
    header, claims, raw = _json_part(first), _json_part(middle), _bytes_part(last)
    # As above: and nothing critical is understood.
    if header.get("alg") != scheme.algorithm or "crit" in header:
        raise _refused("malformed_signature")
    # What is published is known to all, and can't be a secret that is shared.
    shared = ALGORITHMS[scheme.algorithm][0] is str
    keys = known.secrets if shared else known.keys(scheme)
    if scheme.keys is not None and isinstance(header.get("kid"), str):
        keys = [key for key in keys if key_id(key) in (None, header["kid"])]
        if not keys:
            raise _refused("unknown_key")
    signed = f"{first}.{middle}".encode()
    fits = [_proves(scheme.algorithm, key, signed, raw, scheme) for key in keys]
    if not any(fits):
        raise _refused("signature_mismatch")
    leeway = scheme.age.tolerance.total_seconds() if scheme.age else 0.0
    ended = "exp" in claims and _number(claims, "exp") + leeway <= now
    if ended or ("nbf" in claims and _number(claims, "nbf") - leeway > now):
        raise _refused("timestamp_outside_tolerance")
    if scheme.age is not None:
        _check_age(scheme.age, _number(claims, "iat"), now)
    return claims


# How JSON Web Algorithms (RFC 7518, 8037) are made: with what kind of key, and which digest.
ALGORITHMS: Mapping[str, tuple[type, Digest]] = {
    "HS256": (str, "sha256"),
    "HS384": (str, "sha384"),
    "HS512": (str, "sha512"),
    "RS256": (rsa.RSAPublicKey, "sha256"),
    "RS384": (rsa.RSAPublicKey, "sha384"),
    "RS512": (rsa.RSAPublicKey, "sha512"),
    "PS256": (rsa.RSAPublicKey, "sha256"),
    "ES256": (ec.EllipticCurvePublicKey, "sha256"),
    "ES384": (ec.EllipticCurvePublicKey, "sha384"),
    "EdDSA": (ed25519.Ed25519PublicKey, "sha512"),
}


def _proves(algorithm: str, key: str, signed: bytes, raw: bytes, scheme: SignatureScheme) -> bool:
    kind, digest = ALGORITHMS[algorithm]
    if kind is str:
        return hmac.compare_digest(hmac.digest(_key(key, scheme), signed, digest), raw)
    loaded = load_key(key.removeprefix(scheme.secret_prefix))
    return isinstance(loaded, kind) and proves(loaded, signed, raw, digest, pss=algorithm == "PS256")


def _parts(token: str) -> tuple[str, str, str]:
    parts = token.split(".")
    if len(parts) != 3:
        raise _refused("malformed_signature")
    return parts[0], parts[1], parts[2]


def _json_part(part: str) -> dict[str, Any]:
    try:
        found = json.loads(_base64url(part))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused("malformed_signature")
    return found


def _bytes_part(part: str) -> bytes:
    try:
        return _base64url(part)
    except ValueError:
        raise _refused("malformed_signature") from None


def _number(values: Mapping[str, Any], name: str) -> float:
    found = values.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _refused("malformed_signature")
    return float(found)


def _base64url(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _secret_url(scheme: SignatureScheme, delivery: Delivery, known: _Known, _: float) -> Mapping[str, Any]:
    """A provider that signs nothing knows an address that nobody can guess."""
    address = urlsplit(delivery.url)
    if scheme.parameter is None:
        given = address.path.rpartition("/")[2]
    else:
        given = dict(parse_qsl(address.query)).get(scheme.parameter, "")
    if not given:
        raise _refused("missing_url_secret")
    fits = [_same(secret, given) for secret in known.secrets]
    if not any(fits):
        raise _refused("url_secret_mismatch")
    return _NO_CLAIMS


def _secret_value(scheme: SignatureScheme, delivery: Delivery, known: _Known, _: float) -> Mapping[str, Any]:
    """A provider that sends a token both sides know, and signs nothing."""
    given = scheme.read.find(delivery) if scheme.read else None
    if not given:
        raise _refused("missing_signature")
    try:
        text = _read(given[0], scheme.encoding).decode()
    except (ValueError, binascii.Error):
        raise _refused("malformed_signature") from None
    fits = [_same(secret, text) for secret in known.secrets]
    if not any(fits):
        raise _refused("signature_mismatch")
    return _NO_CLAIMS


def _same(secret: str, given: str) -> bool:
    # Digests have one length, so the comparison doesn't tell how long the secret is.
    return hmac.compare_digest(
        hashlib.sha256(secret.encode()).digest(), hashlib.sha256(given.encode()).digest()
    )


HMACS = ("md5", "sha1", "sha256", "sha384", "sha512")
DIGESTS = ("md5", "sha1", "sha256", "sha512")
TYPES: Mapping[str, Verifier] = {
    **{f"hmac_{name}": _hmac(name) for name in HMACS},
    **{name: _digest(name) for name in DIGESTS},
    "public_key": _signed(_public_key),
    "jwt": _jwt,
    "detached_jws": _detached_jws,
    "secret_url": _secret_url,
    "secret_header": _secret_value,
    "secret_field": _secret_value,
}

_SENTENCES: Mapping[str, str] = {
    "no_secret": "no secret is known that could prove this delivery",
    "missing_signature": "the delivery isn't signed",
    "malformed_signature": "the delivery's signature can't be read",
    "no_known_scheme": "the delivery is signed in a way that isn't known",
    "signature_mismatch": "the delivery's signature is wrong",
    "unknown_key": "the delivery is signed with a key that its provider doesn't publish",
    "forbidden_key_address": "the delivery names keys that aren't its provider's",
    "timestamp_outside_tolerance": "the delivery was signed too long ago, or in the future",
    "requirement_not_met": "the delivery isn't what the manifest requires it to be",
    "missing_url_secret": "the address has no secret in it",
    "url_secret_mismatch": "the secret in the address is wrong",
}


def _refused(reason: str) -> SignatureError:
    return SignatureError(_SENTENCES[reason], reason)
