"""The vault's keys in AWS KMS: a key-encryption key never leaves it, and every use of one is on record there.

A data key comes from GenerateDataKey and is opened by Decrypt, with table, column, venue, provider and
environment as the encryption context. The row isn't part of it, so that one data key may seal values of
several rows in quick succession; each value is bound to its row all the same, by its own encryption.

Opened data keys are kept in memory for a while, or every request would wait for KMS. Python can't overwrite
them when they are let go; they are gone when their memory is used again.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from server.errors import KeysUnavailableError, VaultError
from server.vault import Context, DataKey, altered, unknown_key

K = TypeVar("K")
V = TypeVar("V")

KEEP_SECONDS = 900.0  # an opened data key; so long may a key that was disabled still open what was in use
SEAL_SECONDS = 60.0  # a data key that seals, and which key an alias stands for
MOST_KEPT = 10_000
MOST_USES = 1000  # of one data key to seal: far below where random nonces may repeat
_LONGEST = 6144  # bytes Decrypt takes
_ARN = re.compile(r"(?P<place>arn:[a-z-]+:kms:(?P<region>[a-z0-9-]+):\d+:)(?P<kind>key|alias)/.+")

# What is wrong with the value; what is wrong with the key, and stays so. All else may pass.
_ALTERED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_UNUSABLE = frozenset(
    {"DisabledException", "InvalidKeyUsageException", "KMSInvalidStateException", "NotFoundException"}
)


class KmsClient(Protocol):
    """The calls of `boto3.client("kms")` that are made here; all of them block."""

    def generate_data_key(self, **request: Any) -> Mapping[str, Any]: ...
    def encrypt(self, **request: Any) -> Mapping[str, Any]: ...
    def decrypt(self, **request: Any) -> Mapping[str, Any]: ...
    def describe_key(self, **request: Any) -> Mapping[str, Any]: ...


class KmsKeys:
    """A `KeyProvider` on AWS KMS. The first key seals; what any key of the same accounts sealed is opened.

    `keys` are ARNs, ids or aliases. An alias may come to stand for another key: new values are then sealed
    under that one within a minute.
    """

    __slots__ = ("_client", "_clock", "_keys", "_known", "_opened", "_sealing")

    name = "aws-kms"
    ids: Sequence[str] = ()

    def __init__(
        self, client: KmsClient, keys: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._keys = tuple(keys)
        self._clock = clock
        self._known: _Recent[str, str] = _Recent(clock, SEAL_SECONDS)
        self._opened: _Recent[tuple[str, bytes, str], bytes] = _Recent(clock, KEEP_SECONDS)
        self._sealing: _Recent[str, _Use] = _Recent(clock, SEAL_SECONDS)

    def may_open(self, key_id: str) -> bool:
        return key_id.startswith(f"{self.name}:")

    async def current(self) -> str:
        return self._id(await self._arn(self._keys[0]))

    async def new(self, context: Context) -> DataKey:
        bound = encryption_context(context)
        used = self._sealing.get(str(bound))
        if used is None or used.left <= 0:
            answer = await self._call(
                "generate_data_key", KeyId=self._keys[0], KeySpec="AES_256", EncryptionContext=bound
            )
            key = DataKey(self._id(answer["KeyId"]), answer["Plaintext"], answer["CiphertextBlob"])
            self._keep(key, bound)
            used = _Use(key)
            self._sealing.put(str(bound), used)
        used.left -= 1
        return used.key

    async def wrap(self, key: bytes, context: Context) -> DataKey:
        bound = encryption_context(context)
        answer = await self._call("encrypt", KeyId=self._keys[0], Plaintext=key, EncryptionContext=bound)
        wrapped = DataKey(self._id(answer["KeyId"]), key, answer["CiphertextBlob"])
        self._keep(wrapped, bound)
        return wrapped

    async def unwrap(self, key_id: str, wrapped: bytes, context: Context) -> bytes:
        bound = encryption_context(context)
        kept = self._opened.get((key_id, wrapped, str(bound)))
        if kept is not None:
            return kept
        arn = key_id.removeprefix(f"{self.name}:")
        if not await self._is_ours(arn):
            # Whoever can write to the database must not make us use a key of an account of theirs.
            raise unknown_key(key_id)
        if not 0 < len(wrapped) <= _LONGEST:
            raise altered()
        answer = await self._call("decrypt", KeyId=arn, CiphertextBlob=wrapped, EncryptionContext=bound)
        key = DataKey(key_id, answer["Plaintext"], wrapped)
        self._keep(key, bound)
        return key.key

    def _id(self, arn: str) -> str:
        return f"{self.name}:{arn}"

    def _keep(self, key: DataKey, bound: Mapping[str, str]) -> None:
        self._opened.put((key.key_id, key.wrapped, str(bound)), key.key)

    async def _arn(self, key: str) -> str:
        """Return the ARN of the key that this ARN, id or alias stands for now."""
        match = _ARN.fullmatch(key)
        if match and match["kind"] == "key":
            return key
        known = self._known.get(key)
        if known is None:
            answer = await self._call("describe_key", KeyId=key)
            known = str(answer["KeyMetadata"]["Arn"])
            self._known.put(key, known)
        return known

    async def _is_ours(self, arn: str) -> bool:
        found = _ARN.fullmatch(arn)
        if found is None or found["kind"] != "key":
            return False
        for key in self._keys:
            ours = _ARN.fullmatch(key) or _ARN.fullmatch(await self._arn(key))
            if ours and ours["place"] == found["place"]:
                return True
        return False

    async def _call(self, name: str, **request: Any) -> Mapping[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: Mapping[str, Any] = await asyncio.to_thread(getattr(self._client, name), **request)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in _ALTERED:
                raise altered() from None
            if code in _UNUSABLE:
                raise VaultError(f"AWS KMS can't use the key `{request['KeyId']}`: {code}") from None
            raise KeysUnavailableError(f"AWS KMS refuses the vault's keys for now: {code}") from None
        except BotoCoreError as error:
            raise KeysUnavailableError(f"AWS KMS doesn't answer: {type(error).__name__}") from None
        return answer


def connect(keys: Sequence[str]) -> KmsKeys:
    """Return the keys, reached as AWS's own libraries are set up by environment, files or the machine's role.

    Raises VaultError without boto3, or when no region is set and no key names one.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise VaultError("keys in AWS KMS need boto3: install integration-hub[aws]") from error
    named = _ARN.fullmatch(keys[0])
    config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
    try:
        client = boto3.client("kms", region_name=named["region"] if named else None, config=config)
    except BotoCoreError as error:
        raise VaultError(f"AWS KMS can't be set up: {error}") from error
    return KmsKeys(client, keys)


def encryption_context(context: Context) -> dict[str, str]:
    """Return what KMS binds a data key to and writes into its records: names and ids, nothing secret."""
    values = {
        "table": context.table,
        "column": context.column,
        "venue": str(context.venue_id),
        "provider": context.provider,
        "environment": context.environment,
    }
    return {name: value for name, value in values.items() if value}


class _Use:
    """A data key that seals, and how often it still may."""

    __slots__ = ("key", "left")

    def __init__(self, key: DataKey) -> None:
        self.key, self.left = key, MOST_USES


class _Recent(Generic[K, V]):
    """The values that were used last, each for so many seconds from when it was put there."""

    __slots__ = ("_clock", "_seconds", "_values")

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        if found is None:
            return None
        until, value = found
        if until <= self._clock():
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._values[key] = (self._clock() + self._seconds, value)
        self._values.move_to_end(key)
        if len(self._values) > MOST_KEPT:
            self._values.popitem(last=False)
