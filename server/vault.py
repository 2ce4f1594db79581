"""Seal credentials so that a copy of the database is worth nothing.

Each value is encrypted under a data key of its own (AES-256-GCM), and that key is wrapped by a key-encryption
key which the database never sees. Both layers are bound to the place of the value, so a ciphertext copied to
another venue, provider, environment, table or column doesn't open there.

A sealed value is text: `hub1.<key id>.<wrapped data key>.<nonce>.<ciphertext>`.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
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
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Context:
    """Where a sealed value lives."""

    table: str
    column: str
    venue_id: UUID
    provider: str
    environment: str

    def associated_data(self, *more: str) -> bytes:
        """Return bytes no other place has."""
        place = [self.table, self.column, str(self.venue_id), self.provider, self.environment]
        return json.dumps([FORMAT, *place, *more]).encode()


class KeyProvider(Protocol):
    """Wraps data keys under key-encryption keys that have ids: a keyring, or a key management service."""

    @property
    def current(self) -> str:
        """The id of the key new values are sealed under: letters, digits, `_` and `-`."""

    def wrap(self, key_id: str, data_key: bytes, associated_data: bytes) -> bytes: ...

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the data key; raises VaultError when the key is unknown or the bytes were altered."""


class LocalKeyring:
    """Key-encryption keys held in memory, by id; the first one seals, all of them open."""

    __slots__ = ("_keys", "current")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise VaultError("the vault has no key")
        for number, (key_id, key) in enumerate(keys.items(), start=1):
            if not _KEY_ID.fullmatch(key_id):
                raise VaultError(f"the id of vault key {number} may hold letters, digits, `_` and `-` only")
            if len(key) != KEY_BYTES:
                raise VaultError(f"vault key `{key_id}` has {len(key)} bytes; it takes {KEY_BYTES}")
        self._keys = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.current = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> "LocalKeyring":
        """Read `id:base64,id:base64`, the current key first. Raises VaultError, which never shows a key."""
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
        return cls(keys)

    def wrap(self, key_id: str, data_key: bytes, associated_data: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._key(key_id).encrypt(nonce, data_key, associated_data)

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        try:
            return self._key(key_id).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated_data)
        except (InvalidTag, ValueError):
            raise VaultError("a sealed value was altered, or belongs to another place") from None

    def _key(self, key_id: str) -> AESGCM:
        key = self._keys.get(key_id)
        if key is None:
            raise VaultError(f"there is no vault key `{key_id}`")
        return key


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals and opens. Holds no value, so one serves the whole process."""

    keys: KeyProvider

    def seal(self, plaintext: Secret | str, context: Context) -> str:
        """Return the value as sealed text; sealing the same value twice gives different text."""
        data_key, nonce = AESGCM.generate_key(bit_length=256), os.urandom(NONCE_BYTES)
        value = plaintext.reveal() if isinstance(plaintext, Secret) else plaintext
        ciphertext = AESGCM(data_key).encrypt(nonce, value.encode(), context.associated_data())
        return self._sealed(data_key, context, nonce, ciphertext)

    def open(self, sealed: str, context: Context) -> Secret:
        """Return the value. Raises VaultError when anything is not as it was sealed."""
        key_id, wrapped, nonce, ciphertext = _parse(sealed)
        data_key = self.keys.unwrap(key_id, wrapped, context.associated_data(key_id))
        try:
            return Secret(AESGCM(data_key).decrypt(nonce, ciphertext, context.associated_data()).decode())
        except (InvalidTag, ValueError):
            raise VaultError("a sealed value was altered, or belongs to another place") from None

    def rotate(self, sealed: str, context: Context) -> str:
        """Return the value under the current key; what is under it already comes back as it was.

        Only the data key is wrapped anew: the value itself is not decrypted.
        """
        key_id, wrapped, nonce, ciphertext = _parse(sealed)
        data_key = self.keys.unwrap(key_id, wrapped, context.associated_data(key_id))
        if key_id == self.keys.current:
            return sealed
        return self._sealed(data_key, context, nonce, ciphertext)

    def key_id(self, sealed: str) -> str:
        """Return the id of the key a value is sealed under, without opening it."""
        return _parse(sealed)[0]

    def _sealed(self, data_key: bytes, context: Context, nonce: bytes, ciphertext: bytes) -> str:
        key_id = self.keys.current
        wrapped = self.keys.wrap(key_id, data_key, context.associated_data(key_id))
        return ".".join([FORMAT, key_id, *map(_encode, (wrapped, nonce, ciphertext))])


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
