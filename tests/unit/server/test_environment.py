"""Settings in files and in parts, the original service's names, and names nobody reads."""

import re
from pathlib import Path
from typing import Any

import pytest

from server.environment import ALSO, UNNEEDED
from server.settings import VARIABLES, Settings, SettingsError, read_settings
from tests.unit.server.test_settings import KEY, PRODUCTION, SECRET, WORDS, keyring_of, problems

# The original documentation's list, with what each has to come to here. `square` and the others are the
# names of its connectors, which settings treat as they treat any.
ORIGINAL: tuple[tuple[str, str, str, Any], ...] = (
    ("PORT", "4100", "port", 4100),
    ("NODE_ENV", "production", "environment", "production"),
    ("LOG_LEVEL", "warn", "log_level", "warning"),
    ("DATABASE_URL", "postgresql://u:p@db:5432/x", "database_url", "postgresql+asyncpg://u:p@db:5432/x"),
    ("DB_HOST", "db.example", "database_url", "postgresql+asyncpg://hub@db.example:5432/hub"),
    ("REDIS_HOST", "cache", "redis_url", "redis://cache:6379/0"),
    ("RATE_LIMIT_WINDOW_MS", "30000", "rate_limit_window_ms", 30000),
    ("RATE_LIMIT_MAX_REQUESTS", "7", "rate_limit_general", 7),
    ("API_URL", "https://api.example.org", "api_url", "https://api.example.org"),
    ("KMS_KEY_ID", "alias/hub", "kms_keys", ("alias/hub",)),
)
WITH_ANOTHER = ("DB_PORT", "REDIS_PORT", "REDIS_PASSWORD", "JWT_SECRET", "ENCRYPTION_KEY")  # tested below
APPS = {
    "SQUARE_APP_ID": "SQUARE_APP_SECRET",
    "MAILCHIMP_CLIENT_ID": "MAILCHIMP_CLIENT_SECRET",
    "QUICKBOOKS_CLIENT_ID": "QUICKBOOKS_CLIENT_SECRET",
}
WEBHOOKS = ("SQUARE_WEBHOOK_SIGNATURE_KEY", "STRIPE_WEBHOOK_SECRET", "QUICKBOOKS_WEBHOOK_TOKEN")
NOT_NEEDED = ("SERVICE_NAME", "MOCK_KMS", "SQUARE_SANDBOX", "STRIPE_SECRET_KEY", "QUICKBOOKS_SANDBOX")


def production(**changes: str | None) -> dict[str, str]:
    return {name: value for name, value in {**PRODUCTION, **changes}.items() if value is not None}


def read(**changes: str | None) -> Settings:
    return read_settings(production(**changes))


@pytest.mark.parametrize(("name", "text", "attribute", "value"), ORIGINAL, ids=[row[0] for row in ORIGINAL])
def test_an_original_setting_works_under_its_name(name: str, text: str, attribute: str, value: Any) -> None:
    instead = {"NODE_ENV": "HUB_ENV", "DB_HOST": "DATABASE_URL", "REDIS_HOST": "REDIS_URL"}
    without = {instead[name]: None} if name in instead else {}

    settings = read(**without, **{name: text})

    assert getattr(settings, attribute) == value
    assert settings.remarks == ()


def test_original_names_of_applications_and_webhooks() -> None:
    for client_id, secret in APPS.items():
        connector = client_id.partition("_")[0].lower()
        app = read(**{client_id: "app-7", secret: "hush-7"}).client_app(connector)
        assert app is not None
        assert (app[0], app[1].reveal()) == ("app-7", "hush-7")
    for name in WEBHOOKS:
        found = read(**{name: "hush-8"}).webhook_secrets(name.partition("_")[0].lower())
        assert [secret.reveal() for secret in found] == ["hush-8"]


def test_original_settings_that_go_with_others() -> None:
    stores = read(
        DATABASE_URL=None,
        DB_HOST="::1",
        DB_PORT="5433",
        DB_USER="hub owner",
        DB_PASSWORD="p@ss/word",
        DB_NAME="hub",
        REDIS_URL=None,
        REDIS_HOST="cache",
        REDIS_PORT="6380",
        REDIS_PASSWORD="h:sh",
    )
    assert stores.database_url == "postgresql+asyncpg://hub%20owner:p%40ss%2Fword@[::1]:5433/hub"
    assert stores.redis_url == "redis://:h%3Ash@cache:6380/0"
    single = read(HUB_VAULT_KEYS=None, ENCRYPTION_KEY=KEY)
    assert keyring_of(single).ids[0] == "local:encryption_key"
    assert single.jwt_key.reveal() == SECRET


def test_a_url_counts_more_than_its_parts() -> None:
    settings = read(DB_HOST="elsewhere", REDIS_HOST="elsewhere", NODE_ENV="development")

    assert "elsewhere" not in f"{settings.database_url} {settings.redis_url}"
    assert settings.production


def test_every_original_variable_is_accounted_for() -> None:
    """The list of the original's documentation, by hand: each is read, or known to be without effect."""
    names = {row[0] for row in ORIGINAL} | set(WITH_ANOTHER) | set(APPS) | set(APPS.values()) | set(WEBHOOKS)
    assert len(names | set(NOT_NEEDED)) == 28 + 1  # the deployment section's list, and KMS_KEY_ID of the code
    read_here = {variable.name for variable in VARIABLES} | set(ALSO)
    for name in {row[0] for row in ORIGINAL} | set(WITH_ANOTHER):
        assert name in read_here
    for name in NOT_NEEDED:
        generic = re.sub(r"^(SQUARE|STRIPE|QUICKBOOKS)", "<CONNECTOR>", name)
        assert generic in {unneeded.name for unneeded in UNNEEDED}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SERVICE_NAME", "integration-service", None),
        ("MOCK_KMS", "false", None),
        ("MOCK_KMS", "true", "MOCK_KMS has no effect: credentials are always encrypted"),
        ("SQUARE_SANDBOX", "false", None),
        ("SQUARE_SANDBOX", "true", "SQUARE_SANDBOX has no effect: each connection says where it belongs"),
        ("STRIPE_SECRET_KEY", "sk_live_1", "STRIPE_SECRET_KEY has no effect: each venue connects with a key"),
        ("DJANGO_SECRET_KEY", "x", None),  # another program's
        ("HUB_RETENTION_DAY", "7", "nothing reads HUB_RETENTION_DAY: did you mean `HUB_RETENTION_DAYS`?"),
        ("HUB_ZZZ", "7", "nothing reads HUB_ZZZ"),
        ("HUB_CREDENTIAL_APIKEY", "x", None),  # commands for authors read it
        ("RETENTION_DAYS", "7", None),
    ],
)
def test_what_has_no_effect_is_said(name: str, value: str, says: str | None) -> None:
    remarks = read(**{name: value}).remarks

    assert len(remarks) == (says is not None)
    assert all(remark.startswith(says or "") for remark in remarks)
    assert "sk_live_1" not in "".join(remarks)


def test_any_value_may_be_in_a_file(tmp_path: Path) -> None:
    files = {}
    for name, value in {**PRODUCTION, "SQUARE_APP_SECRET": "hush", "SQUARE_APP_ID": "app"}.items():
        path = tmp_path / name
        path.write_text(value + "\n")
        files[f"{name}_FILE"] = str(path)

    settings = read_settings(files)

    assert settings.production
    assert settings.redis_url == PRODUCTION["REDIS_URL"]
    assert settings.jwt_key.reveal() == SECRET
    assert keyring_of(settings).ids[0] == "local:2026"
    app = settings.client_app("square")
    assert app is not None
    assert app[1].reveal() == "hush"
    assert settings.remarks == ()


def test_files_that_can_not_be_used_are_named_with_all_else(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    short = tmp_path / "short"
    short.write_text("tiny")

    assert problems(
        production(
            DATABASE_URL=None,
            DATABASE_URL_FILE=str(tmp_path / "nowhere"),
            REDIS_URL_FILE=str(short),
            HUB_VAULT_KEYS=None,
            HUB_VAULT_KEYS_FILE=str(binary),
            JWT_SECRET=None,
            JWT_SECRET_FILE=str(short),
        )
    ) == (
        "DATABASE_URL_FILE can't be read: No such file or directory",
        "HUB_VAULT_KEYS_FILE can't be read: it is no text",
        "only one of REDIS_URL and REDIS_URL_FILE may be set",
        "JWT_SECRET must have at least 32 bytes, and has 4",
        "DATABASE_URL must be set in production",
        "HUB_VAULT_KEYS or HUB_VAULT_KMS_KEY must be set (only development makes its own)",
    )


def test_a_problem_never_shows_what_a_file_holds(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_text("hunter2")

    with pytest.raises(SettingsError) as refusal:
        read(DATABASE_URL=None, DATABASE_URL_FILE=str(held), JWT_SECRET=None, JWT_SECRET_FILE=str(held))
    assert "hunter2" not in refusal.value.message
    with pytest.raises(SettingsError) as refusal:
        read(DATABASE_URL=None, DB_HOST="x", DB_PASSWORD="hunter2", DB_PORT="no")
    assert "hunter2" not in refusal.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [("10.0.0.7, fd00::/8", "10.0.0.7,fd00::/8"), ("*", "*"), ("", "127.0.0.1,::1")],
)
def test_trusted_proxies(text: str, value: str) -> None:
    assert read(FORWARDED_ALLOW_IPS=text).trusted_proxies == value


def test_proxies_by_name_are_refused() -> None:
    assert problems(production(FORWARDED_ALLOW_IPS="10.0.0.1,proxy.internal")) == (
        "FORWARDED_ALLOW_IPS must be addresses and networks such as 10.0.0.0/8, divided by commas, and has "
        "'proxy.internal'",
    )


def test_an_encryption_key_out_of_a_document_is_refused_in_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")

    found = problems(
        production(HUB_VAULT_KEYS=None, ENCRYPTION_KEY_FILE=str(tmp_path / "key"), JWT_SECRET=WORDS)
    )

    assert any(problem.startswith("ENCRYPTION_KEY repeats itself") for problem in found)
