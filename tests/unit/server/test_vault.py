"""A sealed value opens in its own place, unaltered, under a key we hold; in every other case it doesn't."""

import base64
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ports import Secret
from server.errors import VaultError
from server.vault import Context, LocalKeyring, Vault

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
PLACE = Context(
    table="oauth_tokens",
    column="encrypted_access_token",
    venue_id=UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11"),
    provider="juniper",
    environment="production",
)
vault = Vault(LocalKeyring({"k1": OLD}))

texts = st.text(st.characters(exclude_categories=["Cs"]))
places = st.builds(
    Context,
    table=st.sampled_from(["oauth_tokens", "venue_api_keys"]),
    column=texts,
    venue_id=st.uuids(),
    provider=texts,
    environment=texts,
)


@given(texts, places)
def test_what_was_sealed_opens(value: str, place: Context) -> None:
    assert vault.open(vault.seal(value, place), place).reveal() == value


def test_a_secret_is_sealed_by_its_value() -> None:
    opened = vault.open(vault.seal(Secret("sk_test_1"), PLACE), PLACE)
    assert opened.reveal() == "sk_test_1"
    assert "sk_test_1" not in repr(opened)


def test_the_text_has_five_parts_and_names_its_key() -> None:
    sealed = vault.seal("s", PLACE)
    version, key_id, wrapped, nonce, ciphertext = sealed.split(".")
    assert (version, key_id) == ("hub1", "k1")
    # Bytes: 12 nonce + 32 key + 16 tag, 12 nonce, 1 letter + 16 tag; base64 without padding.
    assert [len(wrapped), len(nonce), len(ciphertext)] == [80, 16, 23]
    assert vault.key_id(sealed) == "k1"


def test_sealing_twice_shares_nothing() -> None:
    first, second = vault.seal("s", PLACE).split(".")[2:], vault.seal("s", PLACE).split(".")[2:]
    assert all(one != other for one, other in zip(first, second, strict=True))


@given(st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject) -> None:
    sealed = vault.seal("sk_test_1", PLACE).encode()
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    altered = bytearray(sealed)
    altered[at // 8] ^= 1 << at % 8
    with pytest.raises(VaultError):
        vault.open(altered.decode("latin-1"), PLACE)


@given(st.data())
def test_any_lost_tail_is_noticed(data: st.DataObject) -> None:
    sealed = vault.seal("sk_test_1", PLACE)
    with pytest.raises(VaultError):
        vault.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], PLACE)


@given(texts)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(VaultError):
        vault.open(text, PLACE)


@given(places)
def test_no_other_place_opens_it(other: Context) -> None:
    with pytest.raises(VaultError):
        vault.open(vault.seal("s", PLACE), other)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLACE, table="venue_api_keys"),
        replace(PLACE, column="encrypted_refresh_token"),
        replace(PLACE, venue_id=UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c12")),
        replace(PLACE, provider="juniper2"),
        replace(PLACE, environment="sandbox"),
        # The same letters, divided otherwise.
        replace(PLACE, provider="juniperpro", environment="duction"),
    ],
    ids=["table", "column", "venue", "provider", "environment", "boundary"],
)
def test_each_part_of_the_place_counts(other: Context) -> None:
    sealed = vault.seal("s", PLACE)
    for attempt in (vault.open, Vault(LocalKeyring({"k2": NEW, "k1": OLD})).rotate):
        with pytest.raises(VaultError):
            attempt(sealed, other)


def test_parts_of_two_values_cannot_be_mixed() -> None:
    one, other = vault.seal("first", PLACE).split("."), vault.seal("second", PLACE).split(".")
    with pytest.raises(VaultError):
        vault.open(".".join([*one[:3], *other[3:]]), PLACE)


def test_rotation_moves_a_value_to_the_current_key() -> None:
    sealed = vault.seal("s", PLACE)
    both = Vault(LocalKeyring({"k2": NEW, "k1": OLD}))
    rotated = both.rotate(sealed, PLACE)
    assert both.key_id(rotated) == "k2"
    assert Vault(LocalKeyring({"k2": NEW})).open(rotated, PLACE).reveal() == "s"
    assert both.open(sealed, PLACE).reveal() == "s"
    assert both.rotate(rotated, PLACE) == rotated


def test_a_missing_key_is_named_and_the_value_is_not_shown() -> None:
    sealed = vault.seal("sk_test_1", PLACE)
    with pytest.raises(VaultError, match="no vault key `k1`"):
        Vault(LocalKeyring({"k2": NEW})).open(sealed, PLACE)


def test_the_wrong_key_under_the_right_id_opens_nothing() -> None:
    with pytest.raises(VaultError, match="altered"):
        Vault(LocalKeyring({"k1": NEW})).open(vault.seal("s", PLACE), PLACE)


def test_a_key_id_cannot_be_renamed() -> None:
    version, _, *rest = vault.seal("s", PLACE).split(".")
    twins = Vault(LocalKeyring({"k1": OLD, "k2": OLD}))
    with pytest.raises(VaultError):
        twins.open(".".join([version, "k2", *rest]), PLACE)


def test_a_keyring_is_read_from_text_current_first() -> None:
    text = f"2026:{base64.b64encode(NEW).decode()}, k1:{base64.urlsafe_b64encode(OLD).decode()}"
    keyring = LocalKeyring.parse(text)
    assert keyring.current == "2026"
    assert Vault(keyring).open(vault.seal("s", PLACE), PLACE).reveal() == "s"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "vault key 1 isn't written as"),
        (f"k1:{base64.b64encode(OLD).decode()},", "vault key 2 isn't written as"),
        ("k1:c2hvcnQ=", "has 5 bytes; it takes 32"),
        ("k1:not base64!", "vault key 1 isn't base64"),
        (f"a.b:{base64.b64encode(OLD).decode()}", "letters, digits"),
        (",".join([f"k1:{base64.b64encode(OLD).decode()}"] * 2), "vault key 2 repeats"),
    ],
)
def test_a_bad_keyring_is_refused_without_showing_keys(text: str, says: str) -> None:
    with pytest.raises(VaultError, match=says) as caught:
        LocalKeyring.parse(text)
    assert base64.b64encode(OLD).decode() not in str(caught.value)
