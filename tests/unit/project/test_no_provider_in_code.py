"""A provider is one manifest: nothing else of the hub names one, neither in code nor in comments."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PLANNED = {
    "stripe",
    "square",
    "mailchimp",
    "quickbooks",
    "shopify",
    "salesforce",
    "hubspot",
    "xero",
    "constant_contact",
}
PROVIDERS = PLANNED | {path.stem for path in (PROJECT / "connectors").glob("*.yaml")} - {"platform"}
NAMED = re.compile(r"(?<![A-Za-z])(" + "|".join(sorted(PROVIDERS)) + r")(?![a-z])", re.IGNORECASE)
FILES = [
    path
    for folder in ("engine", "server", "migrations")
    for path in sorted((PROJECT / folder).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_provider_is_named(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if NAMED.search(line)] == []
