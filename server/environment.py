"""Where settings come from besides variables of their own: files, parts, the original service's names.

Whatever is set and read by nobody gets a sentence, to be logged at the start.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from engine.diagnostics import did_you_mean

FILE = "_FILE"
# Names of the original service that mean what another setting does here. Ours counts when both are set.
ALSO: Mapping[str, str] = {"NODE_ENV": "HUB_ENV", "KMS_KEY_ID": "HUB_VAULT_KMS_KEY"}
_ELSEWHERE = ("HUB_CREDENTIAL_", "HUB_PROVIDER_ENVIRONMENT")  # what commands for authors and the demo read


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A setting of the original service without effect here; nothing is said of it at `harmless`.

    `<CONNECTOR>` in a name stands for any connector's, in capitals.
    """

    name: str
    harmless: str | None  # None: at any value
    why: str


UNNEEDED: tuple[Unneeded, ...] = (
    Unneeded("SERVICE_NAME", None, "logs and answers always say `integration-hub`"),
    Unneeded(
        "MOCK_KMS",
        "false",
        "credentials are always encrypted: by keys in AWS KMS with HUB_VAULT_KMS_KEY, else by the hub's own",
    ),
    Unneeded(
        "<CONNECTOR>_SANDBOX",
        "false",
        'each connection says where it belongs when it is made, as `"environment": "sandbox"`',
    ),
    Unneeded("<CONNECTOR>_SECRET_KEY", "", "each venue connects with a key of its own, kept in the vault"),
)


def complete(
    environ: Mapping[str, str], names: Iterable[str], suffixes: tuple[str, ...]
) -> tuple[dict[str, str], list[str]]:
    """Return the environment with every value under the name it is read by, and what is wrong on the way.

    `names` are all variables, `suffixes` the endings of those that are named after a connector.
    """
    problems: list[str] = []
    found = {name: value for name, value in environ.items() if value}
    for name, base in _in_files(found, names, suffixes):
        if base in found:
            problems.append(f"only one of {base} and {name} may be set")
            continue
        try:
            found[base] = Path(found[name]).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name} can't be read: {getattr(error, 'strerror', None) or 'it is no text'}")
    for name, ours in ALSO.items():
        if name in found:
            found.setdefault(ours, found[name])
    if "DB_HOST" in found:
        found.setdefault("DATABASE_URL", f"postgresql://{_authority(found, 'DB', '5432')}/{_database(found)}")
    if "REDIS_HOST" in found:
        found.setdefault("REDIS_URL", f"redis://{_authority(found, 'REDIS', '6379')}/0")
    return found, problems


def _in_files(
    found: Mapping[str, str], names: Iterable[str], suffixes: tuple[str, ...]
) -> list[tuple[str, str]]:
    known = set(names)
    return [
        (name, base)
        for name in sorted(found)
        if name not in known
        and name.endswith(FILE)
        and ((base := name.removesuffix(FILE)) in known or base.endswith(suffixes))
    ]


def _authority(found: Mapping[str, str], kind: str, port: str) -> str:
    user = found.get("DB_USER", "hub") if kind == "DB" else ""
    password = f":{quote(found[f'{kind}_PASSWORD'], safe='')}" if f"{kind}_PASSWORD" in found else ""
    host = found[f"{kind}_HOST"]
    host = f"[{host}]" if ":" in host else host
    at = "@" if user or password else ""
    return f"{quote(user, safe='')}{password}{at}{host}:{found.get(f'{kind}_PORT', port)}"


def _database(found: Mapping[str, str]) -> str:
    return quote(found.get("DB_NAME", "hub"), safe="")


def remarks(environ: Mapping[str, str], names: Iterable[str], connectors: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that is set and has no effect: unknown, or not needed here."""
    known = [*names]
    prefixes = [name.upper().replace("-", "_") for name in connectors]
    for name in sorted(environ):
        read = name in known or name.startswith(_ELSEWHERE) or name.removesuffix(FILE) in known
        if name.startswith("HUB_") and not read:
            advice = "; ".join(did_you_mean(name, known))
            yield f"nothing reads {name}" + (f": {advice}" if advice else "")
    for unneeded in UNNEEDED:
        for name in dict.fromkeys(unneeded.name.replace("<CONNECTOR>", prefix) for prefix in prefixes):
            value = environ.get(name, "")
            if value and unneeded.harmless is not None and value.lower() != unneeded.harmless:
                yield f"{name} has no effect: {unneeded.why}"
