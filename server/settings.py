"""What an operator can set, read from the environment once, at start.

`VARIABLES` is the whole list, with what the reference page says of each. A value that can't be used is
reported together with every other one, so that one start shows all there is to mend.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from engine.errors import HubError
from engine.ports import Secret
from engine.shipped import shipped
from engine.transport import parse_overrides
from server import environment as surroundings

if TYPE_CHECKING:
    from server.vault import LocalKeyring

Environment = Literal["development", "test", "production"]

_JWT_SECRET_BYTES = 32
_VAULT_KEY_BYTES = 32
_SECRETS = "secrets.json"  # of development, in the state folder
_ENCRYPTION_KEY_ID = "encryption_key"
_DEVELOPMENT_KEY_ID = "dev"
_KMS_KEY = re.compile(
    r"arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:(key|alias)/[\w/-]+|alias/[\w/-]+|(mrk-)?[0-9a-f-]{32,36}"
)
_FEWEST_DIFFERENT = 8  # of 32 random bytes or letters, more are
# What documents and generators put where a secret belongs.
_EXAMPLE = re.compile(r"<.*>|.*(change.?me|example|placeholder|your[-_ ]|dev-secret|a-string-secret).*", re.I)
_APP_ID_SUFFIXES = ("_CLIENT_ID", "_APP_ID")
_APP_SECRET_SUFFIXES = ("_CLIENT_SECRET", "_APP_SECRET")
_WEBHOOK_SUFFIXES = ("_WEBHOOK_SECRET", "_WEBHOOK_SIGNATURE_KEY", "_WEBHOOK_TOKEN")
_TRACES_GO_TO = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
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
    redirect_uris: tuple[str, ...]  # besides the hub's own; `{provider}` stands for the connector's name
    state: Path
    log_level: str
    public_health: bool  # whether integrations' health is told without a token
    worker_concurrency: int
    worker_provider_share: int  # of a worker's slots, in percent
    worker_venue_share: int
    queue_depth: int  # operations of one integration that may wait; 0 for any number
    lease_seconds: int
    database_pooler: bool  # whether connections are lent by a pooler, for a transaction each
    api_connections: int  # to each database, of one API process
    trusted_proxies: str  # whose `X-Forwarded-For` is believed: addresses and networks, divided by commas
    most_clients: int  # connections one API process takes at a time
    request_seconds: int  # how long a client may take to send a request, or stop reading an answer
    keep_alive_seconds: int  # how long a connection without a request is kept
    drain_seconds: int  # how long the API goes on after it was told to stop, saying that it isn't ready
    rate_limit_general: int  # requests of one caller in a window; 0 for as many as it likes
    rate_limit_webhooks: int
    rate_limit_admin: int
    rate_limit_window_ms: int
    circuit_failures: int  # attempts in a row without an answer that open an integration's circuit; 0: never
    circuit_seconds: int
    health_check_seconds: int  # since a provider was heard from, until it is asked; 0: never
    retention_days: int  # how long what ended well, and logs of syncs, are kept
    event_stream_length: int  # about how many events the Redis stream keeps; 0 for no stream
    rabbitmq_url: Secret | None
    tracing: bool  # whether traces are sent, where OpenTelemetry's own variables say
    connectors_dir: Path
    templates_dir: Path
    platform: Path
    prices: Path | None  # the operator's price list
    origin_overrides: Mapping[str, str]  # origin to origin; always empty in production
    jwt_algorithm: str  # HS256, RS256 or ES256
    jwt_key: Secret  # the shared secret, or the public key as PEM
    jwt_audience: str | None
    kms_keys: tuple[str, ...]  # the vault's keys in AWS KMS, the one that seals first
    vault_seals_with: str  # the name of a key provider: `local` or `aws-kms`
    remarks: tuple[str, ...]  # on what is set and has no effect
    database_url: str | None = field(repr=False)  # None: nobody named one, so `hub dev` starts its own
    platform_database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    _vault_keys: Secret
    _apps: Mapping[str, Secret]

    @property
    def production(self) -> bool:
        return self.environment == "production"

    def keyring(self) -> LocalKeyring | None:
        """Return the vault's own keys, the current one first; None when all are kept elsewhere."""
        from server.vault import LocalKeyring

        keys = self._vault_keys.reveal()
        return LocalKeyring.parse(keys) if keys else None

    def client_app(self, connector: str, environment: str = "production") -> tuple[str, Secret] | None:
        """Return the client id and secret registered with this connector's provider, or None.

        Another environment than production may have an application of its own, named for instance
        JUNIPER_SANDBOX_CLIENT_ID; else it has the same. Raises SettingsError when only one of the two is set.
        """
        name = connector.upper().replace("-", "_")
        if environment != "production":
            own = f"{name}_{environment.upper().replace('-', '_')}"
            return self._app(own) or self._app(name)
        return self._app(name)

    def webhook_secrets(self, connector: str) -> list[Secret]:
        """Return what this connector's provider signs webhooks with, in any environment; several may live.

        Named for instance JUNIPER_WEBHOOK_SECRET and JUNIPER_SANDBOX_WEBHOOK_SECRET; commas divide values.
        """
        name = connector.upper().replace("-", "_")
        return [
            Secret(value)
            for written in (name, f"{name}_SANDBOX")
            for suffix in _WEBHOOK_SUFFIXES
            if (found := self._apps.get(written + suffix)) is not None
            for value in map(str.strip, found.reveal().split(","))
            if value
        ]

    def _app(self, name: str) -> tuple[str, Secret] | None:
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


def _choice(*words: str, **also: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}, and is {text!r}")
        return word

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


def _redirect_uris(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    for uri in found:
        parts = urlsplit(uri)
        local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not (parts.scheme == "https" or local) or not parts.hostname or parts.fragment or parts.username:
            raise ValueError(
                "must be addresses such as https://app.example.org/connected/{provider}, separated by "
                f"commas, and has {uri!r}"
            )
    return found


def _database_url(text: str) -> str:
    # The text may hold a password, so no message shows it.
    scheme, separator, rest = text.partition("://")
    if scheme not in _DATABASE_SCHEMES or not separator or len(urlsplit(f"x://{rest}").path) < 2:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return f"{_DATABASE_SCHEMES[0]}://{rest}"


def _addresses(text: str) -> str:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            if part != "*":
                raise ValueError(
                    f"must be addresses and networks such as 10.0.0.0/8, divided by commas, and has {part!r}"
                ) from None
    return ",".join(parts)


def _redis_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path):
        raise ValueError("must look like redis://:password@host:6379/0")
    return text


def _rabbitmq_url(text: str) -> str:
    # The text may hold a password, so no message shows it.
    parts = urlsplit(text)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ValueError("must look like amqps://user:password@host:5671/vhost")
    if find_spec("aio_pika") is None:
        raise ValueError("needs aio-pika: install integration-hub[rabbitmq]")
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


def _kms_keys(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    for number, key in enumerate(found, start=1):
        if not _KMS_KEY.fullmatch(key):
            raise ValueError(f"must be ARNs, ids or aliases such as alias/hub, and number {number} is none")
    return found


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
        "provider addresses be replaced. `NODE_ENV` is understood as well.",
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
    Variable(
        "HUB_REDIRECT_URIS",
        _redirect_uris,
        "",
        "Addresses besides the hub's own to which a provider may send a browser back, separated by commas; "
        "`{provider}` stands for the connector's name. Whoever receives it there finishes the authorization "
        "with the token of the user who began it.",
    ),
    Variable(
        "HUB_KEEP_ALIVE_SECONDS",
        _number(1, 3600),
        "75",
        "How long the API keeps a connection on which nothing is asked, in seconds. A proxy in front of it "
        "should give up sooner.",
    ),
    Variable(
        "HUB_REQUEST_SECONDS",
        _number(1, 600),
        "20",
        "How long a client may take to send a request's head, and again to send its body; and how long an "
        "answer may wait for a client that doesn't read it. In seconds.",
    ),
    Variable(
        "HUB_MOST_CLIENTS",
        _number(1, 100_000),
        "1000",
        "How many connections one API process takes at a time. The one that has been silent longest gives "
        "way to a new one.",
    ),
    Variable(
        "HUB_DRAIN_SECONDS",
        _number(0, 600),
        "0",
        "How long the API goes on answering after it was told to stop, in seconds, while `/ready` says 503 "
        "and connections are closed after an answer: as long as a load balancer takes to notice.",
    ),
    Variable(
        "FORWARDED_ALLOW_IPS",
        _addresses,
        "127.0.0.1,::1",
        "The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: addresses and networks, "
        "separated by commas; `*` for all. Callers without a token are told apart by it.",
    ),
    Variable("DATABASE_URL", _database_url, None, "PostgreSQL. Unset: `hub dev` starts one of its own."),
    Variable("DB_HOST", _text, None, "PostgreSQL's host, instead of `DATABASE_URL`, with these four."),
    Variable("DB_PORT", _number(1, 65535), "5432", "PostgreSQL's port, beside `DB_HOST`."),
    Variable("DB_USER", _text, "hub", "PostgreSQL's role, beside `DB_HOST`."),
    Variable("DB_PASSWORD", _text, None, "Its password, beside `DB_HOST`."),
    Variable("DB_NAME", _text, "hub", "The database, beside `DB_HOST`."),
    Variable(
        "HUB_DATABASE_POOLER",
        _choice("true", "false"),
        "false",
        "Whether `DATABASE_URL` leads to a pooler that lends connections for a transaction each, such as "
        "PgBouncer. No statement is prepared ahead then. `hub migrate` needs PostgreSQL itself.",
    ),
    Variable(
        "HUB_API_CONNECTIONS",
        _number(2, 1000),
        "15",
        "How many connections one API process has to each database at most, besides 5 that only read. A "
        "worker has two for each operation and 5 more, the scheduler 20.",
    ),
    Variable("REDIS_URL", _redis_url, None, "Redis or Valkey. Unset: `hub dev` starts one of its own."),
    Variable("REDIS_HOST", _text, None, "Redis' host, instead of `REDIS_URL`, with these two."),
    Variable("REDIS_PORT", _number(1, 65535), "6379", "Redis' port, beside `REDIS_HOST`."),
    Variable("REDIS_PASSWORD", _text, None, "Its password, beside `REDIS_HOST`."),
    Variable(
        "PLATFORM_DATABASE_URL",
        _database_url,
        None,
        "The platform's PostgreSQL. Unset: the same as `DATABASE_URL`.",
    ),
    Variable(
        "HUB_STATE", _new_folder, ".hub", "The folder for embedded stores, logs and development secrets."
    ),
    Variable("HUB_CONNECTORS_DIR", _folder, str(shipped("connectors")), "The folder of connector manifests."),
    Variable(
        "HUB_TEMPLATES_DIR", _folder, str(shipped("mapping-templates")), "The folder of mapping templates."
    ),
    Variable(
        "HUB_PLATFORM",
        _file,
        str(shipped("connectors") / "platform.yaml"),
        "The manifest of the host platform.",
    ),
    Variable(
        "HUB_PRICES",
        _file,
        None,
        "A list of what providers charge for calls, for the cost report. Unset: as their manifests say.",
    ),
    Variable(
        "HUB_PUBLIC_HEALTH",
        _choice("true", "false"),
        "true",
        "Whether an integration's health is told without a token.",
    ),
    Variable(
        "LOG_LEVEL",
        _choice("debug", "info", "warning", "error", warn="warning"),
        "info",
        "The least that is logged.",
    ),
    Variable(
        "WORKER_CONCURRENCY",
        _number(1, 1000),
        "10",
        "How many operations one worker works at a time. Some slots are kept for the high and normal lanes, "
        "and half as many again are there for the critical lane.",
    ),
    Variable(
        "WORKER_PROVIDER_SHARE",
        _number(1, 100),
        "75",
        "How much of a worker's slots one provider's operations may have in each lane, in percent: one that "
        "hangs can't hold all of them.",
    ),
    Variable(
        "WORKER_VENUE_SHARE",
        _number(1, 100),
        "50",
        "How much of a worker's slots one venue's operations may have in each lane, in percent.",
    ),
    Variable(
        "HUB_QUEUE_DEPTH",
        _number(0, 1_000_000),
        "10000",
        "How many operations of one integration may wait. More are refused with `QUEUE_FULL`, webhooks too, "
        "which their provider then sends again later; 0 for any number.",
    ),
    Variable(
        "LEASE_SECONDS",
        _number(1, 3600),
        "15",
        "How long a silent worker keeps an operation before another takes it over, in seconds.",
    ),
    Variable(
        "RATE_LIMIT_MAX_REQUESTS",
        _number(0, 1_000_000),
        "100",
        "How many requests of one caller the API takes in a window, besides those below; 0 for any number. A "
        "caller is the user a token names, or without one an address.",
    ),
    Variable(
        "HUB_RATE_LIMIT_WEBHOOKS",
        _number(0, 1_000_000),
        "1000",
        "How many deliveries of one provider from one address are taken in a window; 0 for any number.",
    ),
    Variable(
        "HUB_RATE_LIMIT_ADMIN",
        _number(0, 1_000_000),
        "50",
        "How many requests of one caller to administrators' routes are taken in a window; 0 for any number.",
    ),
    Variable(
        "RATE_LIMIT_WINDOW_MS",
        _number(1000, 3_600_000),
        "60000",
        "How long a window is in which requests are counted, in milliseconds.",
    ),
    Variable(
        "HUB_CIRCUIT_FAILURES",
        _number(0, 1000),
        "5",
        "After how many attempts in a row that a provider didn't answer an integration's operations wait; 0 "
        "for never.",
    ),
    Variable(
        "HUB_CIRCUIT_SECONDS",
        _number(1, 900),
        "30",
        "How long they wait for the first time, in seconds. Then one of them is tried, and while that fails "
        "the others wait twice as long each time, up to 15 minutes.",
    ),
    Variable(
        "HUB_HEALTH_CHECK_SECONDS",
        _number(0, 86_400),
        "600",
        "How long after a provider was last heard from a connected integration makes its check call, in "
        "seconds; 0 for never. One that is doing badly makes it each minute.",
    ),
    Variable(
        "HUB_RETENTION_DAYS",
        _number(1, 36500),
        "90",
        "How long logs of syncs, operations that were completed or stopped, and events are kept, in days. "
        "Operations that failed and the audit log are kept in any case.",
    ),
    Variable(
        "HUB_EVENT_STREAM_LENGTH",
        _number(0, 100_000_000),
        "100000",
        "About how many events the Redis stream `hub:events` keeps, the newest; 0 for no stream.",
    ),
    Variable(
        "RABBITMQ_URL",
        _rabbitmq_url,
        None,
        "RabbitMQ: its exchange `integration.events` is then given every event. Needs the extra `rabbitmq`.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        _text,
        None,
        "Where traces go, by OTLP over HTTP, such as `http://collector.internal:4318`. Needs the extra "
        "`tracing`. Other variables of OpenTelemetry count as its SDK reads them: `OTEL_SERVICE_NAME`, "
        "`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_SDK_DISABLED` and so on.",
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
    Variable(
        "HUB_VAULT_KMS_KEY",
        _kms_keys,
        "",
        "A key in AWS KMS that seals credentials: its ARN, id or alias. Several are separated by commas: the "
        "first one seals, and what keys of the same AWS accounts sealed is opened. Region and credentials "
        "are set as for AWS's own tools. `KMS_KEY_ID` is understood as well.",
    ),
    Variable(
        "HUB_VAULT_SEAL_WITH",
        _choice("local", "aws-kms"),
        None,
        "Which keys seal when there are both; the others only open. Unset: those in AWS KMS.",
    ),
)


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all settings; raises SettingsError naming every one that can't be used.

    An empty value counts as unset. Each may also be in a file, which NAME_FILE names. In development,
    missing secrets are made once and kept in the state folder, readable by its owner only.
    """
    given = os.environ if environ is None else environ
    names = [variable.name for variable in VARIABLES]
    environ, problems = surroundings.complete(
        given, names, _APP_ID_SUFFIXES + _APP_SECRET_SUFFIXES + _WEBHOOK_SUFFIXES
    )
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
    tracing = _tracing(environ, problems)
    if values["HUB_ENV"] == "production":
        problems += _weak_secrets(values, algorithm, jwt_key, vault_keys)
    if problems:
        raise SettingsError(problems)

    return Settings(
        environment=values["HUB_ENV"],
        host=values["HOST"],
        port=values["PORT"],
        api_url=values["API_URL"] or f"http://127.0.0.1:{values['PORT']}",
        redirect_uris=values["HUB_REDIRECT_URIS"],
        state=values["HUB_STATE"],
        log_level=values["LOG_LEVEL"],
        public_health=values["HUB_PUBLIC_HEALTH"] == "true",
        worker_concurrency=values["WORKER_CONCURRENCY"],
        worker_provider_share=values["WORKER_PROVIDER_SHARE"],
        worker_venue_share=values["WORKER_VENUE_SHARE"],
        queue_depth=values["HUB_QUEUE_DEPTH"],
        lease_seconds=values["LEASE_SECONDS"],
        database_pooler=values["HUB_DATABASE_POOLER"] == "true",
        api_connections=values["HUB_API_CONNECTIONS"],
        trusted_proxies=values["FORWARDED_ALLOW_IPS"],
        most_clients=values["HUB_MOST_CLIENTS"],
        request_seconds=values["HUB_REQUEST_SECONDS"],
        keep_alive_seconds=values["HUB_KEEP_ALIVE_SECONDS"],
        drain_seconds=values["HUB_DRAIN_SECONDS"],
        rate_limit_general=values["RATE_LIMIT_MAX_REQUESTS"],
        rate_limit_webhooks=values["HUB_RATE_LIMIT_WEBHOOKS"],
        rate_limit_admin=values["HUB_RATE_LIMIT_ADMIN"],
        rate_limit_window_ms=values["RATE_LIMIT_WINDOW_MS"],
        circuit_failures=values["HUB_CIRCUIT_FAILURES"],
        circuit_seconds=values["HUB_CIRCUIT_SECONDS"],
        health_check_seconds=values["HUB_HEALTH_CHECK_SECONDS"],
        retention_days=values["HUB_RETENTION_DAYS"],
        event_stream_length=values["HUB_EVENT_STREAM_LENGTH"],
        rabbitmq_url=Secret(values["RABBITMQ_URL"]) if values["RABBITMQ_URL"] else None,
        tracing=tracing,
        connectors_dir=values["HUB_CONNECTORS_DIR"],
        templates_dir=values["HUB_TEMPLATES_DIR"],
        platform=values["HUB_PLATFORM"],
        prices=values["HUB_PRICES"],
        origin_overrides=values["HUB_ORIGIN_OVERRIDES"],
        jwt_algorithm=algorithm,
        jwt_key=Secret(jwt_key),
        jwt_audience=values["JWT_AUDIENCE"],
        kms_keys=values["HUB_VAULT_KMS_KEY"],
        vault_seals_with=values["HUB_VAULT_SEAL_WITH"]
        or ("aws-kms" if values["HUB_VAULT_KMS_KEY"] else "local"),
        remarks=tuple(surroundings.remarks(given, names, _connectors(values["HUB_CONNECTORS_DIR"]))),
        database_url=values["DATABASE_URL"],
        platform_database_url=values["PLATFORM_DATABASE_URL"] or values["DATABASE_URL"],
        redis_url=values["REDIS_URL"],
        _vault_keys=Secret(vault_keys),
        _apps={
            name: Secret(value)
            for name, value in environ.items()
            if value and name.endswith(_APP_ID_SUFFIXES + _APP_SECRET_SUFFIXES + _WEBHOOK_SUFFIXES)
        },
    )


def _tracing(environ: Mapping[str, str], problems: list[str]) -> bool:
    """Return whether the environment says where traces go, as OpenTelemetry's own SDK would read it."""
    named = next((name for name in _TRACES_GO_TO if environ.get(name)), None)
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if named is None or disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        problems.append(
            f"{named} needs OpenTelemetry: install integration-hub[tracing], or set OTEL_SDK_DISABLED=true"
        )
    return True


def _connectors(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.yaml")]


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
    """Return the keyring as `id:base64,...`, the current key first; adds what is wrong with it.

    It is empty when all keys are kept elsewhere.
    """
    from server.errors import VaultError
    from server.vault import LocalKeyring

    names = [n for n in ("HUB_VAULT_KEYS", "HUB_VAULT_KEY_FILE") if environ.get(n)]
    if len(names) > 1:
        problems.append(f"only one of {' and '.join(names)} may be set")
        return ""
    keys = [",".join(values[name].replace(",", " ").split()) for name in names if values[name]]
    if values["ENCRYPTION_KEY"] is not None:
        keys.append(f"{_ENCRYPTION_KEY_ID}:{base64.b64encode(values['ENCRYPTION_KEY']).decode()}")
    kms = bool(environ.get("HUB_VAULT_KMS_KEY"))
    if not keys and not names and not environ.get("ENCRYPTION_KEY") and not kms:
        if "vault_keys" not in made:
            problems.append(
                "HUB_VAULT_KEYS or HUB_VAULT_KMS_KEY must be set (only development makes its own)"
            )
            return ""
        keys = [made["vault_keys"]]
    seals = values["HUB_VAULT_SEAL_WITH"]
    if seals is not None and not {"local": bool(keys), "aws-kms": kms}[seals]:
        problems.append(f"HUB_VAULT_SEAL_WITH is {seals}, and no such key is set")
    if kms and find_spec("boto3") is None:
        problems.append("HUB_VAULT_KMS_KEY needs boto3: install integration-hub[aws]")
    keyring = ",".join(keys)
    if keyring:
        try:
            LocalKeyring.parse(keyring)
        except VaultError as error:
            problems.append(f"{names[0] if names else 'the development secrets'}: {error.message}")
    return keyring


def _weak_secrets(values: Mapping[str, Any], algorithm: str, jwt_key: str, vault_keys: str) -> Iterator[str]:
    """Say of each secret why it can't protect production: it is development's, an example's or no secret."""
    from server.errors import VaultError
    from server.vault import parse_keys

    development = _known_secrets(values["HUB_STATE"])
    if algorithm == "HS256" and jwt_key:
        if jwt_key == development.get("jwt_secret"):
            yield "JWT_SECRET is the one made for development"
        elif weakness := _weakness(jwt_key.encode()):
            yield f"JWT_SECRET {weakness}"
    try:
        keys = parse_keys(vault_keys) if vault_keys else {}
        known = parse_keys(development["vault_keys"]) if "vault_keys" in development else {}
    except VaultError:  # said already
        return
    for key_id, key in keys.items():
        if key_id == _DEVELOPMENT_KEY_ID or key in known.values():
            yield f"vault key `{key_id}` is the one made for development"
        elif len(key) == _VAULT_KEY_BYTES and (weakness := _weakness(key)):
            name = "ENCRYPTION_KEY" if key_id == _ENCRYPTION_KEY_ID else f"vault key `{key_id}`"
            yield f"{name} {weakness}"


def _known_secrets(state: Path | None) -> Mapping[str, str]:
    """Return the development secrets that lie about here, if any."""
    try:
        kept: Mapping[str, str] = json.loads((state / _SECRETS).read_text()) if state else {}
    except (OSError, ValueError):
        return {}
    return kept


def _weakness(secret: bytes) -> str | None:
    """Return how one sees that nobody drew this at random, as the end of a sentence; None if one can't."""
    text = secret.decode("latin-1")
    if text.isascii() and text.isprintable() and _EXAMPLE.fullmatch(text):
        return "is an example out of a document: draw one at random"
    different = len(set(secret))
    if different < _FEWEST_DIFFERENT:
        return f"has only {different} different bytes: draw one at random"
    if any(secret.startswith(secret[period:]) for period in range(1, len(secret) // 2 + 1)):
        return "repeats itself: draw one at random"
    if len({(after - before) % 256 for before, after in pairwise(secret)}) == 1:
        return "counts up or down: draw one at random"
    return None


def _development_secrets(state: Path) -> Mapping[str, str]:
    """Return the secrets of this state folder, made the first time; safe for processes starting together."""
    path = state / _SECRETS
    if not path.exists():
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        key = base64.b64encode(secrets.token_bytes(_VAULT_KEY_BYTES)).decode()
        made = {"jwt_secret": secrets.token_urlsafe(48), "vault_keys": f"{_DEVELOPMENT_KEY_ID}:{key}"}
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
