from pathlib import Path

import pytest

from engine import shipped as module
from engine.shipped import shipped


@pytest.mark.parametrize("name", ["connectors", "mapping-templates", "migrations", "schemas"])
def test_a_checkout_has_them_beside_the_packages(name: str) -> None:
    assert shipped(name) == Path(module.__file__).parent.parent / name
    assert shipped(name).is_dir()


def test_a_wheel_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schemas").mkdir()
    monkeypatch.setattr(module, "_IN_A_WHEEL", tmp_path)

    assert shipped("schemas") == tmp_path / "schemas"
    assert shipped("connectors").parent != tmp_path
