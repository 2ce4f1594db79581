"""The vault on AWS KMS, by boto3 over HTTP to moto's server, which keeps the keys as KMS does."""

import asyncio
import base64
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from server.context import open_context
from server.credentials import place as place_of
from server.db.models import IntegrationConfig, VenueApiKey
from server.errors import KeysUnavailableError, VaultError, http_status
from server.keys import open_keys
from server.kms import KEEP_SECONDS, MOST_USES, SEAL_SECONDS, KmsKeys
from server.services import rotation, upkeep
from server.services.audit import Actor
from server.settings import read_settings
from server.vault import Context, LocalKeyring, SeveralProviders, Vault, key_id_of

PLACE = Context(
    table="oauth_tokens",
    column="encrypted_access_token",
    row=UUID("0b8f2a76-54a7-4c8b-9a0e-3f4bb1a3c001"),
    venue_id=UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11"),
    provider="juniper",
    environment="production",
)
ACCOUNT = "123456789012"  # moto's own


@pytest.fixture(scope="module")
def kms_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.fixture
def aws(kms_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """AWS, set up by the environment alone; gives a client to arrange keys with."""
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": kms_url,
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("kms")


@dataclass
class Counted:
    """A client that counts the calls to KMS."""

    client: Any
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**request: Any) -> Any:
            self.calls.append(name)
            return getattr(self.client, name)(**request)

        return call


def new_key(aws: Any, alias: str | None = None) -> str:
    arn: str = aws.create_key()["KeyMetadata"]["Arn"]
    if alias is not None:
        aws.create_alias(AliasName=alias, TargetKeyId=arn)
    return arn


@contextmanager
def nothing_is_left(aws: Any, alias: str) -> Iterator[None]:
    yield
    aws.delete_alias(AliasName=alias)


async def test_a_value_is_sealed_and_opened_by_another_process(aws: Any) -> None:
    arn = new_key(aws)
    sealed = await Vault(KmsKeys(aws, [arn])).seal("sk_live_1", PLACE)
    assert key_id_of(sealed) == f"aws-kms:{arn}"
    elsewhere = Counted(aws)
    opened = await Vault(KmsKeys(elsewhere, [arn])).open(sealed, PLACE)
    assert opened.reveal() == "sk_live_1"
    assert elsewhere.calls == ["decrypt"]


async def test_kms_itself_holds_a_data_key_to_its_place(aws: Any) -> None:
    """What is asked of KMS with another place is refused by KMS, not only here."""
    arn = new_key(aws)
    sealed = await Vault(KmsKeys(aws, [arn])).seal("s", PLACE)
    wrapped = base64.urlsafe_b64decode(sealed.split(".")[2] + "==")
    context = {
        "table": "oauth_tokens",
        "column": "encrypted_access_token",
        "venue": "5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11",
        "provider": "juniper",
        "environment": "production",
    }
    assert len(aws.decrypt(KeyId=arn, CiphertextBlob=wrapped, EncryptionContext=context)["Plaintext"]) == 32
    for name in context:
        with pytest.raises(aws.exceptions.InvalidCiphertextException):
            aws.decrypt(KeyId=arn, CiphertextBlob=wrapped, EncryptionContext={**context, name: "other"})


@pytest.mark.parametrize(
    "change",
    [
        {"table": "venue_api_keys"},
        {"column": "encrypted_refresh_token"},
        {"row": UUID(int=2)},
        {"venue_id": UUID(int=3)},
        {"provider": "juniper2"},
        {"environment": "sandbox"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("known", [True, False], ids=["data key in memory", "data key forgotten"])
async def test_no_other_place_opens_it(aws: Any, change: dict[str, Any], known: bool) -> None:
    arn = new_key(aws)
    vault = Vault(KmsKeys(aws, [arn]))
    sealed = await vault.seal("s", PLACE)
    if not known:
        vault = Vault(KmsKeys(aws, [arn]))
    with pytest.raises(VaultError, match="altered, or belongs to another place"):
        await vault.open(sealed, replace(PLACE, **change))


async def test_values_of_two_rows_under_one_data_key_cannot_change_places(aws: Any) -> None:
    vault = Vault(KmsKeys(aws, [new_key(aws)]))
    other = replace(PLACE, row=UUID(int=2))
    first, second = await vault.seal("1", PLACE), await vault.seal("2", other)
    assert first.split(".")[2] == second.split(".")[2], "one data key, or this tests nothing"
    assert (await vault.open(second, other)).reveal() == "2"
    for sealed, place in ((first, other), (second, PLACE)):
        with pytest.raises(VaultError):
            await vault.open(sealed, place)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
async def test_any_flipped_bit_is_noticed(aws: Any, data: st.DataObject) -> None:
    keys = KmsKeys(aws, [new_key(aws)])
    parts = (await Vault(keys).seal("sk_live_1", PLACE)).split(".")
    part = data.draw(st.integers(2, 4))
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=="))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    parts[part] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(VaultError):
        await Vault(keys).open(".".join(parts), PLACE)


async def test_kms_is_not_asked_for_every_value(aws: Any) -> None:
    client, now = Counted(aws), [0.0]
    vault = Vault(KmsKeys(client, [new_key(aws)], clock=lambda: now[0]))
    sealed = [await vault.seal(str(n), replace(PLACE, row=UUID(int=n + 1))) for n in range(50)]
    for n, text in enumerate(sealed):
        assert (await vault.open(text, replace(PLACE, row=UUID(int=n + 1)))).reveal() == str(n)
    assert client.calls == ["generate_data_key"]
    await vault.seal("s", replace(PLACE, venue_id=UUID(int=9)))
    assert client.calls == ["generate_data_key"] * 2, "another place has another data key"

    now[0] = SEAL_SECONDS
    await vault.seal("s", PLACE)
    assert client.calls == ["generate_data_key"] * 3
    now[0] = KEEP_SECONDS
    await vault.open(sealed[0], replace(PLACE, row=UUID(int=1)))
    await vault.open(sealed[1], replace(PLACE, row=UUID(int=2)))
    assert client.calls == ["generate_data_key"] * 3 + ["decrypt"], "forgotten, asked for, and kept again"


async def test_a_data_key_seals_so_many_values_and_no_more(aws: Any) -> None:
    client = Counted(aws)
    vault = Vault(KmsKeys(client, [new_key(aws)], clock=lambda: 0.0))
    for _ in range(MOST_USES):
        await vault.seal("s", PLACE)
    assert len(client.calls) == 1
    await vault.seal("s", PLACE)
    assert len(client.calls) == 2


async def test_what_is_kept_in_memory_is_bounded(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.kms.MOST_KEPT", 2)
    client = Counted(aws)
    vault = Vault(KmsKeys(client, [new_key(aws)]))
    places = [replace(PLACE, venue_id=UUID(int=n)) for n in (1, 2, 3)]
    sealed = [await vault.seal("s", place) for place in places]
    client.calls.clear()
    for text, place in list(zip(sealed, places, strict=True))[1:]:
        await vault.open(text, place)
    assert client.calls == []
    await vault.open(sealed[0], places[0])
    assert client.calls == ["decrypt"]


async def test_many_at_once_do_not_hold_up_the_loop(aws: Any) -> None:
    arn = new_key(aws)
    vault = Vault(KmsKeys(aws, [arn]))
    places = [replace(PLACE, venue_id=UUID(int=n)) for n in range(20)]
    sealed = await asyncio.gather(*(vault.seal("s", place) for place in places))
    opened = await asyncio.gather(
        *(Vault(KmsKeys(aws, [arn])).open(text, place) for text, place in zip(sealed, places, strict=True))
    )
    assert {secret.reveal() for secret in opened} == {"s"}


async def test_an_alias_seals_under_the_key_it_stands_for(aws: Any) -> None:
    now = [0.0]
    first = new_key(aws, "alias/hub")
    with nothing_is_left(aws, "alias/hub"):
        keys = KmsKeys(aws, ["alias/hub"], clock=lambda: now[0])
        vault = Vault(keys)
        sealed = await vault.seal("s", PLACE)
        assert await keys.current() == key_id_of(sealed) == f"aws-kms:{first}"
        second = new_key(aws)
        aws.update_alias(AliasName="alias/hub", TargetKeyId=second)
        now[0] = SEAL_SECONDS
        assert await keys.current() == f"aws-kms:{second}"
        rotated = await vault.rotate(sealed, PLACE)
        assert key_id_of(rotated) == key_id_of(await vault.seal("t", PLACE)) == f"aws-kms:{second}"
        afresh = Vault(KmsKeys(aws, ["alias/hub"]))
        assert [(await afresh.open(text, PLACE)).reveal() for text in (sealed, rotated)] == ["s", "s"]


async def test_from_the_keyring_to_kms_and_back(aws: Any) -> None:
    arn = new_key(aws)
    keyring, kms = LocalKeyring({"k1": bytes(range(32))}), KmsKeys(aws, [arn])
    sealed = await Vault(keyring).seal("sk_live_1", PLACE)
    there = await Vault(SeveralProviders((kms, keyring))).rotate(sealed, PLACE)
    assert key_id_of(there) == f"aws-kms:{arn}"
    assert (await Vault(KmsKeys(aws, [arn])).open(there, PLACE)).reveal() == "sk_live_1"
    back = await Vault(SeveralProviders((keyring, kms))).rotate(there, PLACE)
    assert key_id_of(back) == "local:k1"
    assert (await Vault(keyring).open(back, PLACE)).reveal() == "sk_live_1"


async def test_a_whole_hub_moves_from_its_keyring_to_kms_and_back(
    aws: Any, fresh_database_url: str, redis_url: str
) -> None:
    arn = new_key(aws)
    local = {"HUB_VAULT_KEYS": f"k1:{base64.b64encode(bytes(range(32))).decode()}"}
    stores = {"DATABASE_URL": fresh_database_url, "REDIS_URL": redis_url}
    venues = [UUID(int=n + 1) for n in range(20)]
    async with open_context(hub_settings(**stores, **local)) as context:
        async with context.sessions.begin() as session:
            for venue in venues:
                row = VenueApiKey(
                    id=uuid4(), venue_id=venue, integration_type="stripe", environment="production"
                )
                row.encrypted_api_key = await context.vault.seal(
                    f'{{"apiKey":"sk {venue}"}}', place_of(row, "encrypted_api_key")
                )
                session.add(row)
                session.add(IntegrationConfig(venue_id=venue, integration_type="stripe"))
    both = {**stores, **local, "HUB_VAULT_KMS_KEY": arn}
    moves: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
        (f"aws-kms:{arn}", both, {**stores, "HUB_VAULT_KMS_KEY": arn}),
        ("local:k1", {**both, "HUB_VAULT_SEAL_WITH": "local"}, {**stores, **local}),
    )
    for target, moving, alone in moves:
        async with open_context(hub_settings(**moving)) as context:
            run, _ = await rotation.request(context, Actor("u_1"))
            ended = await upkeep.work_to_end(context, run.id)
            assert (ended.status, ended.result and (ended.result["key"], ended.result["moved"])) == (
                "completed",
                (target, 20),
            )
        async with open_context(hub_settings(**alone)) as context:  # what was left isn't needed any more
            for venue in venues:
                opened = await context.credentials(venue, "stripe").current()
                assert opened.values["apiKey"].reveal() == f"sk {venue}"


async def test_a_key_of_a_foreign_account_is_never_used(aws: Any) -> None:
    """Who can write to the database could else put a value there that they sealed with a key of their own."""
    ours = new_key(aws)
    theirs = new_key(aws)
    sealed = await Vault(KmsKeys(aws, [theirs])).seal("planted", PLACE)
    foreign = sealed.replace(ACCOUNT, "999999999999")
    client = Counted(aws)
    with pytest.raises(VaultError, match="there is no vault key"):
        await Vault(KmsKeys(client, [ours])).open(foreign, PLACE)
    elsewhere = sealed.replace("eu-west-1", "us-east-1")
    with pytest.raises(VaultError, match="there is no vault key"):
        await Vault(KmsKeys(client, [ours])).open(elsewhere, PLACE)
    assert client.calls == []


async def test_a_key_that_is_not_there_is_named(aws: Any) -> None:
    arn = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    with pytest.raises(VaultError, match="NotFoundException") as caught:
        await Vault(KmsKeys(aws, [arn])).seal("s", PLACE)
    assert arn in caught.value.message
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("code", "says", "passes"),
    [
        ("InvalidCiphertextException", "altered, or belongs to another place", False),
        ("IncorrectKeyException", "altered, or belongs to another place", False),
        ("DisabledException", "can't use the key", False),
        ("KMSInvalidStateException", "can't use the key", False),
        ("ThrottlingException", "for now: ThrottlingException", True),
        ("KMSInternalException", "for now: KMSInternalException", True),
        ("AccessDeniedException", "for now: AccessDeniedException", True),
        ("ExpiredTokenException", "for now: ExpiredTokenException", True),
    ],
)
async def test_what_kms_says_is_told_apart(aws: Any, code: str, says: str, passes: bool) -> None:
    """By botocore's own stub: moto decides neither on rights nor on a key's state."""
    arn = new_key(aws)
    sealed = await Vault(KmsKeys(aws, [arn])).seal("s", PLACE)
    with Stubber(aws) as stub:
        stub.add_client_error("decrypt", code, "arn:aws:sts::1:assumed-role/secret-role isn't authorized")
        with pytest.raises(VaultError, match=says) as caught:
            await Vault(KmsKeys(aws, [arn])).open(sealed, PLACE)
    assert isinstance(caught.value, KeysUnavailableError) is passes
    assert caught.value.retryable is passes
    assert "secret-role" not in caught.value.message


async def test_kms_that_is_away_is_an_outage_and_nothing_worse(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arn = new_key(aws)
    sealed = await Vault(KmsKeys(aws, [arn])).seal("s", PLACE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    vault = Vault(open_keys(hub_settings(HUB_VAULT_KMS_KEY=arn)))
    for attempt in (vault.open(sealed, PLACE), vault.seal("s", PLACE)):
        with pytest.raises(KeysUnavailableError, match="EndpointConnectionError") as caught:
            await attempt
        assert caught.value.retryable
        assert http_status(caught.value) == 503


def hub_settings(**more: str) -> Any:
    return read_settings({"HUB_ENV": "test", "JWT_SECRET": "3d0c1f7a-signs-tokens-of-callers", **more})


async def test_the_settings_say_where_keys_are(aws: Any) -> None:
    arn = new_key(aws, "alias/settings")
    with nothing_is_left(aws, "alias/settings"):
        local = {"HUB_VAULT_KEYS": f"k1:{base64.b64encode(bytes(range(32))).decode()}"}
        both = {**local, "HUB_VAULT_KMS_KEY": "alias/settings"}
        found = [
            await open_keys(hub_settings(**each)).current()
            for each in (
                local,
                {"HUB_VAULT_KMS_KEY": "alias/settings"},
                both,
                {**both, "HUB_VAULT_SEAL_WITH": "local"},
            )
        ]
        assert found == ["local:k1", f"aws-kms:{arn}", f"aws-kms:{arn}", "local:k1"]
        old = await Vault(open_keys(hub_settings(**local))).seal("s", PLACE)
        assert (await Vault(open_keys(hub_settings(**both))).open(old, PLACE)).reveal() == "s"


def test_a_region_comes_from_the_key_or_from_the_environment(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    arn = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    assert open_keys(hub_settings(HUB_VAULT_KMS_KEY=arn)).name == "aws-kms"
    with pytest.raises(VaultError, match="region"):
        open_keys(hub_settings(HUB_VAULT_KMS_KEY="alias/hub"))
