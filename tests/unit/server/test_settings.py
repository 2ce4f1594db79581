import base64
import hashlib
import json
import pickle
import stat
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from server.settings import VARIABLES, Settings, SettingsError, read_settings
from server.vault import Context, LocalKeyring, Vault

SECRET = "3d0c1f7a-signs-tokens-of-callers"
KEY = base64.b64encode(
    bytes.fromhex("5ad1c64807be1f2fb30f69ee8d924c7a5e0813b6c9f0a7d43912e68bd05f7c21")
).decode()
WORDS = "Thirty-two letters make one key."
PLACE = Context("oauth_tokens", "encrypted_access_token", UUID(int=1), UUID(int=2), "juniper", "sandbox")
PRODUCTION = {
    "HUB_ENV": "production",
    "DATABASE_URL": "postgres://hub:pa%2Fss@db.example:5432/hub",
    "REDIS_URL": "rediss://:hush@redis.example:6380/0",
    "API_URL": "https://hub.example/base/",
    "JWT_SECRET": SECRET,
    "HUB_VAULT_KEYS": f"2026:{KEY}",
}


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refusal:
        read_settings(environ)
    for problem in refusal.value.problems:
        assert problem in refusal.value.message
    return refusal.value.problems


def keyring_of(settings: Settings) -> LocalKeyring:
    keyring = settings.keyring()
    assert keyring is not None
    return keyring


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_development_needs_nothing(tmp_path: Path) -> None:
    settings = read_settings({"HUB_STATE": str(tmp_path / "state")})

    assert (settings.environment, settings.host, settings.port) == ("development", "127.0.0.1", 3007)
    assert settings.api_url == "http://127.0.0.1:3007"
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.lease_seconds == 15
    assert settings.retention_days == 90
    assert settings.jwt_algorithm == "HS256"
    assert len(settings.jwt_key.reveal()) >= 32
    assert settings.connectors_dir.name == "connectors"
    assert settings.platform.name == "platform.yaml"
    assert not settings.production


def test_development_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    first = read_settings({"HUB_STATE": str(tmp_path)})
    second = read_settings({"HUB_STATE": str(tmp_path)})
    elsewhere = read_settings({"HUB_STATE": str(tmp_path / "other")})

    assert first.jwt_key.reveal() == second.jwt_key.reveal()
    assert first.jwt_key.reveal() != elsewhere.jwt_key.reveal()
    assert keyring_of(first).ids[0] == "local:dev"
    kept = tmp_path / "secrets.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert set(json.loads(kept.read_text())) == {"jwt_secret", "vault_keys"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "secrets.json"]


@pytest.mark.parametrize("environment", ["production", "test"])
def test_only_development_makes_secrets(environment: str, tmp_path: Path) -> None:
    environ = {**PRODUCTION, "HUB_ENV": environment, "HUB_STATE": str(tmp_path / "state")}
    del environ["JWT_SECRET"], environ["HUB_VAULT_KEYS"]

    assert problems(environ) == (
        "JWT_SECRET or JWT_PUBLIC_KEY must be set (only development makes its own)",
        "HUB_VAULT_KEYS or HUB_VAULT_KMS_KEY must be set (only development makes its own)",
    )
    assert not (tmp_path / "state").exists()


def test_production() -> None:
    settings = read_settings(PRODUCTION)

    assert settings.production
    assert settings.database_url == "postgresql+asyncpg://hub:pa%2Fss@db.example:5432/hub"
    assert settings.platform_database_url == settings.database_url
    assert settings.redis_url == PRODUCTION["REDIS_URL"]
    assert settings.api_url == "https://hub.example/base"
    assert settings.jwt_key.reveal() == SECRET
    assert keyring_of(settings).ids[0] == "local:2026"


def test_production_names_everything_that_is_wrong_at_once() -> None:
    assert problems(
        {
            "HUB_ENV": "production",
            "PORT": "30x7",
            "LOG_LEVEL": "loud",
            "WORKER_CONCURRENCY": "0",
            "DATABASE_URL": "mysql://root:hunter2@db/hub",
            "API_URL": "http://hub.example",
            "JWT_SECRET": "short",
            "HUB_ORIGIN_OVERRIDES": "https://api.example.com=http://127.0.0.1:9101",
            "HUB_VAULT_KEYS": f"2026:{base64.b64encode(b'k' * 16).decode()}",
            "HUB_CONNECTORS_DIR": "no/such/folder",
        }
    ) == (
        "PORT must be a whole number from 0 to 65535, and is '30x7'",
        "DATABASE_URL must look like postgresql://user:password@host:5432/database",
        "HUB_CONNECTORS_DIR must be a folder, and there is none at 'no/such/folder'",
        "LOG_LEVEL must be one of debug, info, warning, error, and is 'loud'",
        "WORKER_CONCURRENCY must be a whole number from 1 to 1000, and is '0'",
        "JWT_SECRET must have at least 32 bytes, and has 5",
        "REDIS_URL must be set in production",
        "API_URL must begin with https:// in production",
        "HUB_ORIGIN_OVERRIDES is refused in production",
        "HUB_VAULT_KEYS: vault key `2026` has 16 bytes; it takes 32",
    )


def test_no_secret_is_shown_or_pickled() -> None:
    settings = read_settings({**PRODUCTION, "SQUARE_APP_ID": "app-1", "SQUARE_APP_SECRET": "sesame"})

    shown = f"{settings!r} {settings} {settings.client_app('square')}"
    for secret in (SECRET, KEY, "pa%2Fss", "hush", "sesame"):
        assert secret not in shown
    with pytest.raises(TypeError):
        pickle.dumps(settings)


def test_a_problem_never_shows_a_password() -> None:
    wrong = {
        "DATABASE_URL": "postgres://hub:hunter2@/",
        "REDIS_URL": "http://:hunter2@redis",
        "JWT_SECRET": "hunter2",
    }

    assert "hunter2" not in " ".join(problems({**PRODUCTION, **wrong}))


def test_empty_is_unset() -> None:
    assert read_settings({**PRODUCTION, "PORT": "", "JWT_AUDIENCE": "", "JWT_PUBLIC_KEY": ""}).port == 3007


def test_origin_overrides(tmp_path: Path) -> None:
    settings = read_settings(
        {
            "HUB_STATE": str(tmp_path),
            "HUB_ORIGIN_OVERRIDES": "https://api.a.example=http://127.0.0.1:1, https://B.example/=http://127.0.0.1:2/,",
        }
    )

    assert settings.origin_overrides == {
        "https://api.a.example": "http://127.0.0.1:1",
        "https://b.example": "http://127.0.0.1:2",
    }


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example",
        "https://a.example/v1=http://127.0.0.1:1",
        "a.example=http://b.example",
        "https://a=ftp://b",
    ],
)
def test_origin_overrides_are_origins(text: str, tmp_path: Path) -> None:
    (problem,) = problems({"HUB_STATE": str(tmp_path), "HUB_ORIGIN_OVERRIDES": text})

    assert problem.startswith("HUB_ORIGIN_OVERRIDES must look like")


@pytest.fixture(scope="module")
def rsa_pem() -> str:
    return public_pem(rsa.generate_private_key(65537, 2048))


def test_a_public_key_decides_the_algorithm(rsa_pem: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(public_pem(ec.generate_private_key(ec.SECP256R1())))
    environ = {**PRODUCTION, "JWT_SECRET": ""}

    assert read_settings({**environ, "JWT_PUBLIC_KEY": rsa_pem}).jwt_algorithm == "RS256"
    assert read_settings({**environ, "JWT_PUBLIC_KEY_FILE": str(file)}).jwt_algorithm == "ES256"
    one_line = read_settings({**environ, "JWT_PUBLIC_KEY": rsa_pem.replace("\n", "\\n")})
    assert one_line.jwt_key.reveal() == rsa_pem


def test_a_public_key_is_never_used_as_a_shared_secret(rsa_pem: str) -> None:
    environ = {**PRODUCTION, "JWT_SECRET": "", "JWT_PUBLIC_KEY": rsa_pem, "JWT_ALGORITHM": "HS256"}

    assert problems(environ) == ("JWT_ALGORITHM is HS256, and the key that is set is for RS256",)


def test_weak_and_wrong_public_keys(tmp_path: Path) -> None:
    environ = {**PRODUCTION, "JWT_SECRET": ""}
    small_curve = public_pem(ec.generate_private_key(ec.SECP224R1()))

    assert problems({**environ, "JWT_PUBLIC_KEY": "no key"}) == (
        "JWT_PUBLIC_KEY must be a public key as PEM (-----BEGIN PUBLIC KEY-----)",
    )
    assert problems({**environ, "JWT_PUBLIC_KEY": small_curve}) == (
        "JWT_PUBLIC_KEY must be an RSA key of at least 2048 bits or an elliptic-curve key on P-256",
    )
    assert problems({**environ, "JWT_PUBLIC_KEY_FILE": str(tmp_path / "none")}) == (
        f"JWT_PUBLIC_KEY_FILE must be a file, and there is none at {str(tmp_path / 'none')!r}",
    )
    assert problems({**PRODUCTION, "JWT_PUBLIC_KEY": small_curve}) == (
        "only one of JWT_SECRET and JWT_PUBLIC_KEY may be set",
    )


@pytest.mark.parametrize("text", [WORDS, WORDS.encode().hex(), base64.b64encode(WORDS.encode()).decode()])
async def test_a_single_encryption_key(text: str) -> None:
    settings = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "ENCRYPTION_KEY": text})

    assert keyring_of(settings).ids == ("local:encryption_key",)
    sealed = await Vault(LocalKeyring({"encryption_key": WORDS.encode()})).seal("s", PLACE)
    assert (await Vault(keyring_of(settings)).open(sealed, PLACE)).reveal() == "s"


async def test_an_old_encryption_key_still_opens() -> None:
    old = keyring_of(read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "ENCRYPTION_KEY": WORDS}))
    both = keyring_of(read_settings({**PRODUCTION, "ENCRYPTION_KEY": WORDS}))

    assert both.ids == ("local:2026", "local:encryption_key")
    assert (await Vault(both).open(await Vault(old).seal("s", PLACE), PLACE)).reveal() == "s"


async def test_vault_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"new:{KEY}\nold:{base64.b64encode(WORDS.encode()).decode()}\n")
    settings = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "HUB_VAULT_KEY_FILE": str(file)})
    keyring = keyring_of(settings)

    assert keyring.ids == ("local:new", "local:old")
    sealed = await Vault(LocalKeyring({"old": WORDS.encode()})).seal("s", PLACE)
    assert (await Vault(keyring).open(sealed, PLACE)).reveal() == "s"


def test_client_apps_of_any_connector(tmp_path: Path) -> None:
    settings = read_settings(
        {
            "HUB_STATE": str(tmp_path),
            "JUNIPER_CLIENT_ID": "id-1",
            "JUNIPER_CLIENT_SECRET": "one",
            "RED_MAPLE_APP_ID": "id-2",
            "RED_MAPLE_APP_SECRET": "two",
            "HALF_CLIENT_ID": "id-3",
        }
    )

    juniper, maple = settings.client_app("juniper"), settings.client_app("red-maple")
    assert juniper is not None
    assert (juniper[0], juniper[1].reveal()) == ("id-1", "one")
    assert maple is not None
    assert (maple[0], maple[1].reveal()) == ("id-2", "two")
    assert settings.client_app("unknown") is None
    with pytest.raises(SettingsError, match="HALF_CLIENT_ID is set and HALF_CLIENT_SECRET is not"):
        settings.client_app("half")


def test_every_variable_says_what_it_is_for() -> None:
    assert all(variable.about.endswith(".") for variable in VARIABLES)
    assert len({variable.name for variable in VARIABLES}) == len(VARIABLES)


# --- what production refuses: secrets nobody drew

STRONG = bytes.fromhex("c2f19b04e7d85a3360bf7e12a94d0cf8861b35eed7204f9ab35c68017ed9a2b4")
DRAW = "draw one at random"


def vault_key(key: bytes, key_id: str = "2026") -> dict[str, str]:
    return {**PRODUCTION, "HUB_VAULT_KEYS": f"{key_id}:{base64.b64encode(key).decode()}"}


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (b"k" * 32, f"vault key `2026` has only 1 different bytes: {DRAW}"),
        (bytes(32), f"vault key `2026` has only 1 different bytes: {DRAW}"),
        (b"abcdefg" * 4 + b"abcd", f"vault key `2026` has only 7 different bytes: {DRAW}"),
        (STRONG[:16] * 2, f"vault key `2026` repeats itself: {DRAW}"),
        (bytes(range(32)), f"vault key `2026` counts up or down: {DRAW}"),
        (bytes(range(255, 223, -1)), f"vault key `2026` counts up or down: {DRAW}"),
        (b"this-is-an-example-of-some-key-1", f"vault key `2026` is an example out of a document: {DRAW}"),
    ],
)
def test_a_vault_key_nobody_drew_is_refused(key: bytes, says: str) -> None:
    assert len(key) == 32
    assert problems(vault_key(key)) == (says,)
    # Elsewhere a key that is easy to write down is welcome.
    assert not read_settings({**vault_key(key), "HUB_ENV": "test"}).production


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x" * 32, f"ENCRYPTION_KEY has only 1 different bytes: {DRAW}"),
        ("0" * 64, f"ENCRYPTION_KEY has only 1 different bytes: {DRAW}"),
        ("your-32-character-encryption-key", f"ENCRYPTION_KEY is an example out of a document: {DRAW}"),
        ("<32-character-key>", "ENCRYPTION_KEY must be 32 characters, or 32 bytes in hexadecimal or base64"),
    ],
)
def test_a_single_key_nobody_drew_is_refused(text: str, says: str) -> None:
    assert problems({**PRODUCTION, "HUB_VAULT_KEYS": "", "ENCRYPTION_KEY": text}) == (says,)


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("dev-secret", "JWT_SECRET must have at least 32 bytes, and has 10"),
        ("s" * 64, f"JWT_SECRET has only 1 different bytes: {DRAW}"),
        ("qwertyuiop12345678" * 2, f"JWT_SECRET repeats itself: {DRAW}"),
        ("a-string-secret-at-least-256-bits-long", f"JWT_SECRET is an example out of a document: {DRAW}"),
        ("please-CHANGE-ME-in-production-1234", f"JWT_SECRET is an example out of a document: {DRAW}"),
        ("<a secret of two hundred fifty-six bits>", f"JWT_SECRET is an example out of a document: {DRAW}"),
    ],
)
def test_a_token_secret_nobody_drew_is_refused(secret: str, says: str) -> None:
    assert problems({**PRODUCTION, "JWT_SECRET": secret}) == (says,)


def test_what_development_made_is_refused_in_production(tmp_path: Path) -> None:
    read_settings({"HUB_STATE": str(tmp_path)})
    made = json.loads((tmp_path / "secrets.json").read_text())
    key = made["vault_keys"].removeprefix("dev:")
    environ = {**PRODUCTION, "HUB_STATE": str(tmp_path), "JWT_SECRET": made["jwt_secret"]}
    assert problems({**environ, "HUB_VAULT_KEYS": f"k9:{key}"}) == (
        "JWT_SECRET is the one made for development",
        "vault key `k9` is the one made for development",
    )
    # By its name alone too, and where it only opens.
    assert problems({**PRODUCTION, "HUB_VAULT_KEYS": f"2026:{KEY},dev:{key}"}) == (
        "vault key `dev` is the one made for development",
    )


@given(st.binary(max_size=32).map(lambda seed: hashlib.sha256(seed).digest()))
def test_a_key_that_was_drawn_is_taken(key: bytes) -> None:
    assert keyring_of(read_settings(vault_key(key))).ids == ("local:2026",)
    text = base64.urlsafe_b64encode(key)[:32].decode()
    taken = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "ENCRYPTION_KEY": text, "JWT_SECRET": text})
    assert taken.production


# --- keys in AWS KMS

ARN = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_keys_may_be_kept_in_aws_alone() -> None:
    settings = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "HUB_VAULT_KMS_KEY": f"alias/hub, {ARN}"})
    assert settings.kms_keys == ("alias/hub", ARN)
    assert settings.keyring() is None
    assert settings.vault_seals_with == "aws-kms"


def test_with_keys_in_both_places_those_in_aws_seal_unless_it_is_said() -> None:
    environ = {**PRODUCTION, "HUB_VAULT_KMS_KEY": ARN}
    assert read_settings(environ).vault_seals_with == "aws-kms"
    back = read_settings({**environ, "HUB_VAULT_SEAL_WITH": "local"})
    assert back.vault_seals_with == "local"
    assert keyring_of(back).ids == ("local:2026",)


@pytest.mark.parametrize(
    "key", ["hub", "arn:aws:s3:::bucket", f"{ARN} x", "alias/", "http://kms.example/key"]
)
def test_what_is_no_key_of_kms(key: str) -> None:
    assert problems({**PRODUCTION, "HUB_VAULT_KMS_KEY": f"{ARN},{key}"}) == (
        "HUB_VAULT_KMS_KEY must be ARNs, ids or aliases such as alias/hub, and number 2 is none",
    )


@pytest.mark.parametrize("kind", ["local", "aws-kms"])
def test_only_keys_that_are_there_can_seal(kind: str) -> None:
    there = {"HUB_VAULT_KMS_KEY": ARN, "HUB_VAULT_KEYS": ""} if kind == "local" else {}
    assert problems({**PRODUCTION, **there, "HUB_VAULT_SEAL_WITH": kind}) == (
        f"HUB_VAULT_SEAL_WITH is {kind}, and no such key is set",
    )


def test_keys_in_aws_need_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.settings.find_spec", lambda name: None)
    assert problems({**PRODUCTION, "HUB_VAULT_KMS_KEY": ARN}) == (
        "HUB_VAULT_KMS_KEY needs boto3: install integration-hub[aws]",
    )


def test_rabbitmq_is_named_by_an_address_that_is_never_shown() -> None:
    assert read_settings(PRODUCTION).rabbitmq_url is None
    address = "amqps://hub:hush@rabbit.example:5671/events"
    settings = read_settings({**PRODUCTION, "RABBITMQ_URL": address})
    assert settings.rabbitmq_url is not None
    assert settings.rabbitmq_url.reveal() == address
    assert "hush" not in repr(settings)
    assert problems({**PRODUCTION, "RABBITMQ_URL": "http://hub:hush@rabbit.example"}) == (
        "RABBITMQ_URL must look like amqps://user:password@host:5671/vhost",
    )


def test_rabbitmq_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.settings.find_spec", lambda name: None)
    assert problems({**PRODUCTION, "RABBITMQ_URL": "amqp://rabbit.example/"}) == (
        "RABBITMQ_URL needs aio-pika: install integration-hub[rabbitmq]",
    )
