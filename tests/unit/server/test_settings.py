import base64
import json
import pickle
import stat
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.settings import VARIABLES, SettingsError, read_settings
from server.vault import Context, LocalKeyring, Vault

SECRET = "3d0c1f7a-signs-tokens-of-callers"
KEY = base64.b64encode(bytes(range(7, 231, 7))).decode()
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
    assert first.keyring().ids[0] == "local:dev"
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
        "HUB_VAULT_KEYS must be set (only development makes its own)",
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
    assert settings.keyring().ids[0] == "local:2026"


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

    assert settings.keyring().ids == ("local:encryption_key",)
    sealed = await Vault(LocalKeyring({"encryption_key": WORDS.encode()})).seal("s", PLACE)
    assert (await Vault(settings.keyring()).open(sealed, PLACE)).reveal() == "s"


async def test_an_old_encryption_key_still_opens() -> None:
    old = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "ENCRYPTION_KEY": WORDS}).keyring()
    both = read_settings({**PRODUCTION, "ENCRYPTION_KEY": WORDS}).keyring()

    assert both.ids == ("local:2026", "local:encryption_key")
    assert (await Vault(both).open(await Vault(old).seal("s", PLACE), PLACE)).reveal() == "s"


async def test_vault_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"new:{KEY}\nold:{base64.b64encode(WORDS.encode()).decode()}\n")
    keyring = read_settings({**PRODUCTION, "HUB_VAULT_KEYS": "", "HUB_VAULT_KEY_FILE": str(file)}).keyring()

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
