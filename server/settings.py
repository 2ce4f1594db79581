"""What an operator can set, read from the environment once, at start.

`VARIABLES` is the whole list, with what the reference page says of each. A value that can't be used is
reported together with every other one, so that one start shows all there is to mend.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from engine.errors import HubError
from engine.ports import Secret
from engine.transport import parse_overrides

if TYPE_CHECKING:
    from server.vault import LocalKeyring

Environment = Literal["development", "test", "production"]

_PROJECT = Path(__file__).resolve().parent.parent
_JWT_SECRET_BYTES = 32
_VAULT_KEY_BYTES = 32
_ENCRYPTION_KEY_ID = "encryption_key"
_APP_ID_SUFFIXES = ("_CLIENT_ID", "_APP_ID")
_APP_SECRET_SUFFIXES = ("_CLIENT_SECRET", "_APP_SECRET")
_DATABASE_SCHEMES = ("postgresql+asyncpg", "postgresql", "postgres")


class SettingsError(HubError):
    """The environment can't be used; `problems` has one sentence for each fault, and so has the message."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(
            "the hub can't start with these settings:\n" + "\n".join(f"  - {p}" for p in problems)
        )
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. Addresses hold passwords, so they are left out of the representation."""

    environment: Environment
    host: str
    port: int
    api_url: str  # public, without a slash at the end
    state: Path
    log_level: str
    public_health: bool  # whether integrations' health is told without a token
    worker_concurrency: int
    lease_seconds: int
    retention_days: int  # how long what ended well, and logs of syncs, are kept
    connectors_dir: Path
    templates_dir: Path
    platform: Path
    origin_overrides: Mapping[str, str]  # origin to origin; always empty in production
    jwt_algorithm: str  # HS256, RS256 or ES256
    jwt_key: Secret  # the shared secret, or the public key as PEM
    jwt_audience: str | None
    database_url: str | None = field(repr=False)  # None: nobody named one, so `hub dev` starts its own
    platform_database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    _vault_keys: Secret
    _apps: Mapping[str, Secret]

    @property
    def production(self) -> bool:
        return self.environment == "production"

    def keyring(self) -> LocalKeyring:
        """Return the vault's keys, the current one first."""
        from server.vault import LocalKeyring

        return LocalKeyring.parse(self._vault_keys.reveal())

    def client_app(self, connector: str) -> tuple[str, Secret] | None:
        """Return the client id and secret registered with this connector's provider, or None.

        Raises SettingsError when only one of the two is set.
        """
        name = connector.upper().replace("-", "_")
        client_id = self._app_value(name, _APP_ID_SUFFIXES)
        client_secret = self._app_value(name, _APP_SECRET_SUFFIXES)
        if client_id is None and client_secret is None:
            return None
        if client_id is None or client_secret is None:
            given, missing = ("SECRET", "ID") if client_id is None else ("ID", "SECRET")
            raise SettingsError([f"{name}_CLIENT_{given} is set and {name}_CLIENT_{missing} is not"])
        return client_id.reveal(), client_secret

    def _app_value(self, name: str, suffixes: tuple[str, ...]) -> Secret | None:
        return next((self._apps[name + s] for s in suffixes if name + s in self._apps), None)


# --- how a text becomes a value; each raises ValueError with the end of the sentence "NAME ..."


def _text(text: str) -> str:
    return text


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}, and is {text!r}")
        return text.lower()

    return parse


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}, and is {text!r}")
        return int(text)

    return parse


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError(f"must be a folder, and there is none at {text!r}")
    return path.resolve()


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"must be a file, and there is none at {text!r}")
    return path.resolve()


def _new_folder(text: str) -> Path:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"must be a folder, and {text!r} is a file")
    return path.resolve()


def _content(text: str) -> str:
    return _file(text).read_text()


def _public_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an address such as https://hub.example.org")
    return text.rstrip("/")


def _database_url(text: str) -> str:
    # The text may hold a password, so no message shows it.
    scheme, separator, rest = text.partition("://")
    if scheme not in _DATABASE_SCHEMES or not separator or len(urlsplit(f"x://{rest}").path) < 2:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return f"{_DATABASE_SCHEMES[0]}://{rest}"


def _redis_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path):
        raise ValueError("must look like redis://:password@host:6379/0")
    return text


def _origins(text: str) -> Mapping[str, str]:
    return MappingProxyType(parse_overrides(text))


def _jwt_secret(text: str) -> str:
    if len(text.encode()) < _JWT_SECRET_BYTES:
        raise ValueError(f"must have at least {_JWT_SECRET_BYTES} bytes, and has {len(text.encode())}")
    return text


def _encryption_key(text: str) -> bytes:
    """Accept 32 characters, or 32 bytes written in hexadecimal or base64."""
    if len(text.encode()) == _VAULT_KEY_BYTES:
        return text.encode()
    for decode in (bytes.fromhex, lambda value: base64.b64decode(value, validate=True)):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == _VAULT_KEY_BYTES:
            return key
    raise ValueError("must be 32 characters, or 32 bytes in hexadecimal or base64")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable. `default` None means unset; `about` is what the reference page says."""

    name: str
    parse: Callable[[str], Any]
    default: str | None
    about: str


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "HUB_ENV",
        _choice("development", "test", "production"),
        "development",
        "Where the hub runs. Only `development` makes its own secrets, and only outside `production` may "
        "provider addresses be replaced.",
    ),
    Variable("HOST", _text, "127.0.0.1", "The address the API listens on; `0.0.0.0` for all."),
    Variable("PORT", _number(0, 65535), "3007", "The port the API listens on; 0 takes a free one."),
    Variable(
        "API_URL",
        _public_url,
        None,
        "The hub's public address, as providers see it: OAuth returns and webhooks go there, and signatures "
        "may cover it. Unset: `http://127.0.0.1:PORT`. In production it is needed, with `https`.",
    ),
    Variable("DATABASE_URL", _database_url, None, "PostgreSQL. Unset: `hub dev` starts one of its own."),
    Variable("REDIS_URL", _redis_url, None, "Redis or Valkey. Unset: `hub dev` starts one of its own."),
    Variable(
        "PLATFORM_DATABASE_URL",
        _database_url,
        None,
        "The platform's PostgreSQL. Unset: the same as `DATABASE_URL`.",
    ),
    Variable(
        "HUB_STATE", _new_folder, ".hub", "The folder for embedded stores, logs and development secrets."
    ),
    Variable(
        "HUB_CONNECTORS_DIR", _folder, str(_PROJECT / "connectors"), "The folder of connector manifests."
    ),
    Variable(
        "HUB_TEMPLATES_DIR", _folder, str(_PROJECT / "mapping-templates"), "The folder of mapping templates."
    ),
    Variable(
        "HUB_PLATFORM",
        _file,
        str(_PROJECT / "connectors" / "platform.yaml"),
        "The manifest of the host platform.",
    ),
    Variable(
        "HUB_PUBLIC_HEALTH",
        _choice("true", "false"),
        "true",
        "Whether an integration's health is told without a token.",
    ),
    Variable("LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info", "The least that is logged."),
    Variable("WORKER_CONCURRENCY", _number(1, 1000), "10", "How many operations one worker works at a time."),
    Variable(
        "LEASE_SECONDS",
        _number(1, 3600),
        "15",
        "How long a silent worker keeps an operation before another takes it over, in seconds.",
    ),
    Variable(
        "HUB_RETENTION_DAYS",
        _number(1, 36500),
        "90",
        "How long logs of syncs, and operations that were completed or stopped, are kept, in days. What "
        "failed and the audit log are kept in any case.",
    ),
    Variable(
        "HUB_ORIGIN_OVERRIDES",
        _origins,
        "",
        "Other addresses for providers, as `origin=origin` separated by commas, for simulated ones. "
        "Refused in production.",
    ),
    Variable("JWT_SECRET", _jwt_secret, None, "The secret that signs tokens with HS256, at least 32 bytes."),
    Variable("JWT_PUBLIC_KEY", _text, None, "The public key, as PEM, for tokens signed with RS256 or ES256."),
    Variable("JWT_PUBLIC_KEY_FILE", _content, None, "A file with that key, instead."),
    Variable(
        "JWT_ALGORITHM",
        _choice("hs256", "rs256", "es256"),
        None,
        "The only algorithm accepted. Unset: the one that fits the key.",
    ),
    Variable("JWT_AUDIENCE", _text, None, "What a token's `aud` must hold. Unset: not looked at."),
    Variable(
        "HUB_VAULT_KEYS",
        _text,
        None,
        "The keys that seal credentials, as `id:base64` separated by commas, each of 32 bytes. The first one "
        "seals, all of them open.",
    ),
    Variable("HUB_VAULT_KEY_FILE", _content, None, "A file with those keys, instead; one a line will do."),
    Variable(
        "ENCRYPTION_KEY",
        _encryption_key,
        None,
        "A single such key: 32 characters, or 32 bytes in hexadecimal or base64. Beside `HUB_VAULT_KEYS` it "
        "only opens what it sealed earlier.",
    ),
)


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all settings; raises SettingsError naming every one that can't be used.

    An empty value counts as unset. In development, missing secrets are made once and kept in the state
    folder, readable by its owner only.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        text = environ.get(variable.name) or variable.default
        try:
            values[variable.name] = None if text is None else variable.parse(text)
        except ValueError as error:
            values[variable.name] = None
            problems.append(f"{variable.name} {error}")
        except OSError as error:
            values[variable.name] = None
            problems.append(f"{variable.name} can't be read: {error.strerror}")

    if values["HUB_ENV"] == "production":
        problems += _production_problems(environ, values)
    made: Mapping[str, str] = {}
    if values["HUB_ENV"] == "development" and values["HUB_STATE"] is not None:
        try:
            made = _development_secrets(values["HUB_STATE"])
        except (OSError, ValueError) as error:
            problems.append(f"HUB_STATE can't keep development secrets: {error}")
    algorithm, jwt_key = _jwt(environ, values, made, problems)
    vault_keys = _vault_keys(environ, values, made, problems)
    if problems:
        raise SettingsError(problems)

    return Settings(
        environment=values["HUB_ENV"],
        host=values["HOST"],
        port=values["PORT"],
        api_url=values["API_URL"] or f"http://127.0.0.1:{values['PORT']}",
        state=values["HUB_STATE"],
        log_level=values["LOG_LEVEL"],
        public_health=values["HUB_PUBLIC_HEALTH"] == "true",
        worker_concurrency=values["WORKER_CONCURRENCY"],
        lease_seconds=values["LEASE_SECONDS"],
        retention_days=values["HUB_RETENTION_DAYS"],
        connectors_dir=values["HUB_CONNECTORS_DIR"],
        templates_dir=values["HUB_TEMPLATES_DIR"],
        platform=values["HUB_PLATFORM"],
        origin_overrides=values["HUB_ORIGIN_OVERRIDES"],
        jwt_algorithm=algorithm,
        jwt_key=Secret(jwt_key),
        jwt_audience=values["JWT_AUDIENCE"],
        database_url=values["DATABASE_URL"],
        platform_database_url=values["PLATFORM_DATABASE_URL"] or values["DATABASE_URL"],
        redis_url=values["REDIS_URL"],
        _vault_keys=Secret(vault_keys),
        _apps={
            name: Secret(value)
            for name, value in environ.items()
            if value and name.endswith(_APP_ID_SUFFIXES + _APP_SECRET_SUFFIXES)
        },
    )


def _production_problems(environ: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name} must be set in production"
        for name in ("DATABASE_URL", "REDIS_URL", "API_URL")
        if not environ.get(name)
    ]
    if values["API_URL"] is not None and not values["API_URL"].startswith("https://"):
        problems.append("API_URL must begin with https:// in production")
    if values["HUB_ORIGIN_OVERRIDES"]:
        problems.append("HUB_ORIGIN_OVERRIDES is refused in production")
    return problems


def _jwt(
    environ: Mapping[str, str], values: Mapping[str, Any], made: Mapping[str, str], problems: list[str]
) -> tuple[str, str]:
    """Return the algorithm and its key; adds to `problems` what keeps them from fitting together."""
    names = [n for n in ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_FILE") if environ.get(n)]
    if len(names) > 1:
        problems.append(f"only one of {' and '.join(names)} may be set")
        return "", ""
    wanted: str | None = values["JWT_ALGORITHM"] and values["JWT_ALGORITHM"].upper()
    if not names:
        if "jwt_secret" not in made:
            problems.append("JWT_SECRET or JWT_PUBLIC_KEY must be set (only development makes its own)")
            return "", ""
        fitting, key = "HS256", made["jwt_secret"]
    elif values[names[0]] is None:  # said already
        return "", ""
    elif names == ["JWT_SECRET"]:
        fitting, key = "HS256", values["JWT_SECRET"]
    else:
        key = values[names[0]].replace("\\n", "\n")  # how one-line variables carry a PEM
        try:
            fitting = _public_key_algorithm(key)
        except ValueError as error:
            problems.append(f"{names[0]} {error}")
            return "", ""
    if wanted is not None and wanted != fitting:
        problems.append(f"JWT_ALGORITHM is {wanted}, and the key that is set is for {fitting}")
    return fitting, key


def _public_key_algorithm(pem: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("must be a public key as PEM (-----BEGIN PUBLIC KEY-----)") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    raise ValueError("must be an RSA key of at least 2048 bits or an elliptic-curve key on P-256")


def _vault_keys(
    environ: Mapping[str, str], values: Mapping[str, Any], made: Mapping[str, str], problems: list[str]
) -> str:
    """Return the keyring as `id:base64,...`, the current key first; adds what is wrong with it."""
    from server.errors import VaultError
    from server.vault import LocalKeyring

    names = [n for n in ("HUB_VAULT_KEYS", "HUB_VAULT_KEY_FILE") if environ.get(n)]
    if len(names) > 1:
        problems.append(f"only one of {' and '.join(names)} may be set")
        return ""
    keys = [",".join(values[name].replace(",", " ").split()) for name in names if values[name]]
    if values["ENCRYPTION_KEY"] is not None:
        keys.append(f"{_ENCRYPTION_KEY_ID}:{base64.b64encode(values['ENCRYPTION_KEY']).decode()}")
    if not keys and not names and not environ.get("ENCRYPTION_KEY"):
        if "vault_keys" not in made:
            problems.append("HUB_VAULT_KEYS must be set (only development makes its own)")
            return ""
        keys = [made["vault_keys"]]
    keyring = ",".join(keys)
    if keyring:
        try:
            LocalKeyring.parse(keyring)
        except VaultError as error:
            problems.append(f"{names[0] if names else 'the development secrets'}: {error.message}")
    return keyring


def _development_secrets(state: Path) -> Mapping[str, str]:
    """Return the secrets of this state folder, made the first time; safe for processes starting together."""
    path = state / "secrets.json"
    if not path.exists():
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        made = {
            "jwt_secret": secrets.token_urlsafe(48),
            "vault_keys": f"dev:{base64.b64encode(secrets.token_bytes(_VAULT_KEY_BYTES)).decode()}",
        }
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(made, file)
        try:
            path.hardlink_to(fresh)  # unlike a rename it leaves another process's file alone
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    kept: Mapping[str, str] = json.loads(path.read_text())
    return kept
