"""A sealed value opens in its own place, unaltered, under a key we hold; in every other case it doesn't."""

import base64
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.ports import Secret
from server.errors import VaultError
from server.vault import Context, DataKey, LocalKeyring, SeveralProviders, Vault, key_id_of

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
PLACE = Context(
    table="oauth_tokens",
    column="encrypted_access_token",
    row=UUID("0b8f2a76-54a7-4c8b-9a0e-3f4bb1a3c001"),
    venue_id=UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c11"),
    provider="juniper",
    environment="production",
)
OTHERS = {
    "table": "venue_api_keys",
    "column": "encrypted_refresh_token",
    "row": UUID("0b8f2a76-54a7-4c8b-9a0e-3f4bb1a3c002"),
    "venue_id": UUID("5f0c0a52-9d0b-4a8e-8d7c-0d5f2b6a1c12"),
    "provider": "juniper2",
    "environment": "sandbox",
}
vault = Vault(LocalKeyring({"k1": OLD}))
both = Vault(LocalKeyring({"k2": NEW, "k1": OLD}))

texts = st.text(st.characters(exclude_categories=["Cs"]))
places = st.builds(
    Context,
    table=st.sampled_from(["oauth_tokens", "venue_api_keys"]),
    column=texts,
    row=st.uuids() | texts.filter(bool),
    venue_id=st.uuids(),
    provider=texts,
    environment=texts,
)


@given(texts, places)
async def test_what_was_sealed_opens(value: str, place: Context) -> None:
    assert (await vault.open(await vault.seal(value, place), place)).reveal() == value


async def test_a_secret_is_sealed_by_its_value() -> None:
    opened = await vault.open(await vault.seal(Secret("sk_test_1"), PLACE), PLACE)
    assert opened.reveal() == "sk_test_1"
    assert "sk_test_1" not in repr(opened)


async def test_the_text_has_five_parts_and_names_its_key_and_who_keeps_it() -> None:
    sealed = await vault.seal("s", PLACE)
    version, key_id, wrapped, nonce, ciphertext = sealed.split(".")
    assert (version, key_id) == ("hub1", "local:k1")
    # Bytes: 12 nonce + 32 key + 16 tag, 12 nonce, 1 letter + 16 tag; base64 without padding.
    assert [len(wrapped), len(nonce), len(ciphertext)] == [80, 16, 23]
    assert key_id_of(sealed) == "local:k1"


async def test_sealing_twice_shares_nothing() -> None:
    first, second = [(await vault.seal("s", PLACE)).split(".")[2:] for _ in range(2)]
    assert all(one != other for one, other in zip(first, second, strict=True))


@given(st.data(), texts, places)
async def test_any_flipped_bit_is_noticed(data: st.DataObject, value: str, place: Context) -> None:
    sealed = (await vault.seal(value, place)).encode()
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    altered = bytearray(sealed)
    altered[at // 8] ^= 1 << at % 8
    for attempt in (vault.open, vault.rotate, both.rotate):
        with pytest.raises(VaultError):
            await attempt(altered.decode("latin-1"), place)


@given(st.data())
async def test_any_flipped_bit_of_what_the_text_stands_for_is_noticed(data: st.DataObject) -> None:
    """The same for bits under the base64, where every altered text is one the vault could have written."""
    parts = (await vault.seal("sk_test_1", PLACE)).split(".")
    part = data.draw(st.integers(2, 4))
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=="))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    parts[part] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    for attempt in (vault.open, vault.rotate, both.rotate):
        with pytest.raises(VaultError):
            await attempt(".".join(parts), PLACE)


@given(st.data())
async def test_any_lost_tail_is_noticed(data: st.DataObject) -> None:
    sealed = await vault.seal("sk_test_1", PLACE)
    with pytest.raises(VaultError):
        await vault.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], PLACE)


@given(texts | st.text("hub1.:klocaAB-_=", max_size=60))
async def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(VaultError):
        await vault.open(text, PLACE)
    with pytest.raises(VaultError):
        await vault.open(f"hub1.local:k1.{text}", PLACE)


@given(places, places, texts, texts)
async def test_two_values_that_change_places_open_nowhere(
    here: Context, there: Context, one: str, other: str
) -> None:
    assume(here != there)
    first, second = await vault.seal(one, here), await vault.seal(other, there)
    for sealed, place in ((first, there), (second, here)):
        for attempt in (vault.open, vault.rotate, both.rotate):
            with pytest.raises(VaultError):
                await attempt(sealed, place)


@given(places, st.data())
async def test_a_place_that_differs_in_one_thing_is_another(place: Context, data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(fields(Context))).name
    change: dict[str, Any] = {changed: data.draw(st.uuids() if changed == "venue_id" else texts.filter(bool))}
    other = replace(place, **change)
    assume(str(getattr(other, changed)) != str(getattr(place, changed)))
    with pytest.raises(VaultError):
        await vault.open(await vault.seal("s", place), other)


@pytest.mark.parametrize("part", [field.name for field in fields(Context)])
async def test_each_part_of_the_place_counts(part: str) -> None:
    other: dict[str, Any] = {part: OTHERS[part]}
    sealed = await vault.seal("s", PLACE)
    for attempt in (vault.open, both.rotate):
        with pytest.raises(VaultError):
            await attempt(sealed, replace(PLACE, **other))


async def test_the_same_letters_divided_otherwise_are_another_place() -> None:
    sealed = await vault.seal("s", PLACE)
    with pytest.raises(VaultError):
        await vault.open(sealed, replace(PLACE, provider="juniperpro", environment="duction"))


@pytest.mark.parametrize("row", [None, ""])
def test_a_place_without_a_row_is_none(row: Any) -> None:
    """A row that isn't stored yet has no id from the database, and nothing may be bound to that."""
    with pytest.raises(VaultError, match="id of its row"):
        replace(PLACE, row=row)


async def test_parts_of_two_values_cannot_be_mixed() -> None:
    one, other = [(await vault.seal(value, PLACE)).split(".") for value in ("first", "second")]
    with pytest.raises(VaultError):
        await vault.open(".".join([*one[:3], *other[3:]]), PLACE)


@given(texts, places)
async def test_rotation_moves_a_value_to_the_current_key(value: str, place: Context) -> None:
    sealed = await vault.seal(value, place)
    rotated = await both.rotate(sealed, place)
    assert key_id_of(rotated) == "local:k2"
    assert sealed.split(".")[3:] == rotated.split(".")[3:], "the value itself isn't sealed anew"
    assert (await Vault(LocalKeyring({"k2": NEW})).open(rotated, place)).reveal() == value
    assert (await both.open(sealed, place)).reveal() == value
    assert await both.rotate(rotated, place) == rotated


async def test_rotation_does_not_hide_that_a_value_is_broken() -> None:
    """The wrapped key is good and the value under it isn't: wrapping that anew would look like success."""
    *kept, ciphertext = (await vault.seal("sk_test_1", PLACE)).split(".")
    with pytest.raises(VaultError):
        await both.rotate(".".join([*kept, "A" * len(ciphertext)]), PLACE)


async def test_a_missing_key_is_named_and_the_value_is_not_shown() -> None:
    sealed = await vault.seal("sk_test_1", PLACE)
    with pytest.raises(VaultError, match="no vault key `local:k1`"):
        await Vault(LocalKeyring({"k2": NEW})).open(sealed, PLACE)


async def test_the_wrong_key_under_the_right_id_opens_nothing() -> None:
    with pytest.raises(VaultError, match="altered"):
        await Vault(LocalKeyring({"k1": NEW})).open(await vault.seal("s", PLACE), PLACE)


async def test_a_key_id_cannot_be_renamed() -> None:
    version, _, *rest = (await vault.seal("s", PLACE)).split(".")
    twins = Vault(LocalKeyring({"k1": OLD, "k2": OLD}))
    with pytest.raises(VaultError):
        await twins.open(".".join([version, "local:k2", *rest]), PLACE)


class OtherKeys(LocalKeyring):
    """Keys kept somewhere else."""

    __slots__ = ()
    name = "other"


async def test_of_several_providers_the_first_seals_and_each_opens_its_own() -> None:
    local, other = LocalKeyring({"k1": OLD}), OtherKeys({"k1": NEW})
    first = await Vault(local).seal("s", PLACE)
    moved = Vault(SeveralProviders((other, local)))
    second = await moved.seal("t", PLACE)
    assert (key_id_of(first), key_id_of(second)) == ("local:k1", "other:k1")
    assert [(await moved.open(sealed, PLACE)).reveal() for sealed in (first, second)] == ["s", "t"]
    assert key_id_of(await moved.rotate(first, PLACE)) == "other:k1"
    with pytest.raises(VaultError, match="no vault key `other:k1`"):
        await Vault(SeveralProviders((local,))).open(second, PLACE)


def test_a_data_key_is_not_shown() -> None:
    assert "sesame" not in repr(DataKey("local:k1", b"sesame", b""))


async def test_a_keyring_is_read_from_text_current_first() -> None:
    text = f"2026:{base64.b64encode(NEW).decode()}, k1:{base64.urlsafe_b64encode(OLD).decode()}"
    keyring = LocalKeyring.parse(text)
    assert keyring.ids == ("local:2026", "local:k1")
    assert await keyring.current() == "local:2026"
    assert (await Vault(keyring).open(await vault.seal("s", PLACE), PLACE)).reveal() == "s"


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
