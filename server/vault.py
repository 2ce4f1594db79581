"""Seal credentials so that a copy of the database is worth nothing.

A value is encrypted under a data key (AES-256-GCM), and that key is wrapped by a key-encryption key which the
database never sees. Both are bound to the place of the value, so a ciphertext copied to another row, column,
table, venue, provider or environment doesn't open there.

A sealed value is text: `hub1.<key id>.<wrapped data key>.<nonce>.<ciphertext>`. The key id begins with who
keeps the key: `local:2026`, `aws-kms:arn:aws:kms:…`.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.ports import Secret
from server.errors import VaultError

FORMAT = "hub1"
KEY_BYTES = 32
NONCE_BYTES = 12
_KEY_ID = re.compile(r"[a-z][a-z0-9-]{0,31}:[A-Za-z0-9_:/-]{1,255}")
_LOCAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Context:
    """Where a sealed value lives. `row` is what identifies it in its table, known before it is stored."""

    table: str
    column: str
    row: UUID | str
    venue_id: UUID
    provider: str
    environment: str

    def __post_init__(self) -> None:
        if not self.row:
            raise VaultError("a value can't be sealed or opened without the id of its row")

    def associated_data(self, *more: str) -> bytes:
        """Return bytes no other place has."""
        place = [self.table, self.column, str(self.row), str(self.venue_id), self.provider, self.environment]
        return json.dumps([FORMAT, *place, *more]).encode()


@dataclass(frozen=True, slots=True, repr=False)
class DataKey:
    """A key for values: itself, as its provider wrapped it, and under which key-encryption key."""

    key_id: str
    key: bytes
    wrapped: bytes


class KeyProvider(Protocol):
    """Makes and opens data keys under key-encryption keys: a keyring, or a key management service.

    Each method raises VaultError, and KeysUnavailableError when the keys can't be reached for now.
    """

    @property
    def name(self) -> str:
        """What the ids of its keys begin with, before a colon."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the keys that are held here; a service may hold more that aren't listed."""

    def may_open(self, key_id: str) -> bool:
        """Return whether this is a key it has; whether it really opens, a service only says when asked."""

    async def current(self) -> str:
        """Return the id of the key that seals now."""

    async def new(self, context: Context) -> DataKey:
        """Return a data key under the current key, bound to a place."""

    async def wrap(self, key: bytes, context: Context) -> DataKey:
        """Wrap a data key that there is under the current key."""

    async def unwrap(self, key_id: str, wrapped: bytes, context: Context) -> bytes:
        """Return the data key; refused when the key is unknown, or the bytes or the place are others."""


class LocalKeyring:
    """Key-encryption keys held in memory, by id; the first one seals, all of them open."""

    __slots__ = ("_current", "_keys", "ids")

    name = "local"

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise VaultError("the vault has no key")
        for number, (key_id, key) in enumerate(keys.items(), start=1):
            if not _LOCAL_ID.fullmatch(key_id):
                raise VaultError(f"the id of vault key {number} may hold letters, digits, `_` and `-` only")
            if len(key) != KEY_BYTES:
                raise VaultError(f"vault key `{key_id}` has {len(key)} bytes; it takes {KEY_BYTES}")
        self._keys = {f"{self.name}:{key_id}": AESGCM(key) for key_id, key in keys.items()}
        self.ids = tuple(self._keys)
        self._current = self.ids[0]

    @classmethod
    def parse(cls, text: str) -> "LocalKeyring":
        """Read `id:base64,id:base64`, the current key first. Raises VaultError, which never shows a key."""
        return cls(parse_keys(text))

    def may_open(self, key_id: str) -> bool:
        return key_id in self._keys

    async def current(self) -> str:
        return self._current

    async def new(self, context: Context) -> DataKey:
        return await self.wrap(AESGCM.generate_key(bit_length=256), context)

    async def wrap(self, key: bytes, context: Context) -> DataKey:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._keys[self._current].encrypt(nonce, key, context.associated_data(self._current))
        return DataKey(self._current, key, nonce + sealed)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Context) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            raise unknown_key(key_id)
        try:
            return key.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context.associated_data(key_id))
        except (InvalidTag, ValueError):
            raise altered() from None


@dataclass(frozen=True, slots=True)
class SeveralProviders:
    """Key providers together: the first one seals, and each opens what it sealed."""

    providers: Sequence[KeyProvider]

    @property
    def name(self) -> str:
        return self.providers[0].name

    @property
    def ids(self) -> Sequence[str]:
        return [key_id for provider in self.providers for key_id in provider.ids]

    def may_open(self, key_id: str) -> bool:
        return any(provider.may_open(key_id) for provider in self.providers)

    async def current(self) -> str:
        return await self.providers[0].current()

    async def new(self, context: Context) -> DataKey:
        return await self.providers[0].new(context)

    async def wrap(self, key: bytes, context: Context) -> DataKey:
        return await self.providers[0].wrap(key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Context) -> bytes:
        for provider in self.providers:
            if key_id.startswith(f"{provider.name}:"):
                return await provider.unwrap(key_id, wrapped, context)
        raise unknown_key(key_id)


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals and opens. Holds no value, so one serves the whole process."""

    keys: KeyProvider

    async def seal(self, plaintext: Secret | str, context: Context) -> str:
        """Return the value as sealed text; sealing the same value twice gives different text."""
        value = plaintext.reveal() if isinstance(plaintext, Secret) else plaintext
        key, nonce = await self.keys.new(context), os.urandom(NONCE_BYTES)
        return _written(key, nonce, AESGCM(key.key).encrypt(nonce, value.encode(), context.associated_data()))

    async def open(self, sealed: str, context: Context) -> Secret:
        """Return the value. Raises VaultError when anything is not as it was sealed."""
        key_id, wrapped, nonce, ciphertext = _parse(sealed)
        key = await self.keys.unwrap(key_id, wrapped, context)
        return Secret(_decrypted(key, nonce, ciphertext, context).decode())

    async def rotate(self, sealed: str, context: Context) -> str:
        """Return the value under the current key; what is under it already comes back as it was.

        Only the data key is wrapped anew. The value is opened to see that it can be, and thrown away: one
        that doesn't open raises VaultError.
        """
        key_id, wrapped, nonce, ciphertext = _parse(sealed)
        key = await self.keys.unwrap(key_id, wrapped, context)
        _decrypted(key, nonce, ciphertext, context)
        if key_id == await self.keys.current():
            return sealed
        return _written(await self.keys.wrap(key, context), nonce, ciphertext)


def key_id_of(sealed: str) -> str:
    """Return the id of the key a value is sealed under, without opening it; raises VaultError."""
    return _parse(sealed)[0]


def parse_keys(text: str) -> dict[str, bytes]:
    """Read `id:base64,id:base64` into keys by id, in order. Raises VaultError, which never shows a key."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(text.split(","), start=1):
        key_id, colon, encoded = entry.strip().partition(":")
        if not colon:
            raise VaultError(f"vault key {number} isn't written as `id:base64`")
        if key_id in keys:
            raise VaultError(f"vault key {number} repeats the id of another")
        try:
            keys[key_id] = base64.b64decode(
                encoded, altchars=b"-_" if set(encoded) & set("-_") else None, validate=True
            )
        except (binascii.Error, ValueError):
            raise VaultError(f"vault key {number} isn't base64") from None
    return keys


def altered() -> VaultError:
    """What is said of a value that doesn't open: whether it was altered or moved can't be told apart."""
    return VaultError("a sealed value was altered, or belongs to another place")


def unknown_key(key_id: str) -> VaultError:
    """What is said of a value under a key that isn't here."""
    return VaultError(f"there is no vault key `{key_id}`")


def _decrypted(key: bytes, nonce: bytes, ciphertext: bytes, context: Context) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, context.associated_data())
    except (InvalidTag, ValueError):
        raise altered() from None


def _written(key: DataKey, nonce: bytes, ciphertext: bytes) -> str:
    return ".".join([FORMAT, key.key_id, *map(_encode, (key.wrapped, nonce, ciphertext))])


def _parse(sealed: str) -> tuple[str, bytes, bytes, bytes]:
    version, *parts = sealed.split(".")
    if version != FORMAT or len(parts) != 4 or not _KEY_ID.fullmatch(parts[0]):
        raise VaultError("this isn't a sealed value")
    wrapped, nonce, ciphertext = map(_decode, parts[1:])
    if len(nonce) != NONCE_BYTES:
        raise VaultError("this isn't a sealed value")
    return parts[0], wrapped, nonce, ciphertext


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise VaultError("this isn't a sealed value") from None
    # Base64 spells the same bytes in several ways; only the one we write is taken, so no altered text opens.
    if _encode(value) != text:
        raise VaultError("this isn't a sealed value")
    return value
