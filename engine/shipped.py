"""Where the files that come with the program are: connectors, mapping templates, schemas, migrations.

In a checkout they are beside the packages. A wheel holds a copy of them, so that it needs no checkout.
"""

from pathlib import Path

_IN_A_WHEEL = Path(__file__).with_name("shipped_files")
_IN_A_CHECKOUT = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """Return one of those folders by its name in the project."""
    within = _IN_A_WHEEL / name
    return within if within.is_dir() else _IN_A_CHECKOUT / name
