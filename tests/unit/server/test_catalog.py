"""What a process can connect to."""

from pathlib import Path
from uuid import UUID

import pytest

from engine.errors import DocumentError
from server.catalog import Catalog, load_catalog, template_id
from server.errors import TemplateNotFoundError, UnknownProviderError

PROJECT = Path(__file__).resolve().parents[3]
CONNECTORS, TEMPLATES = PROJECT / "connectors", PROJECT / "mapping-templates"
PLATFORM = CONNECTORS / "platform.yaml"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CONNECTORS, TEMPLATES, PLATFORM)


def test_every_manifest_but_the_platforms_is_a_connector(catalog: Catalog) -> None:
    assert set(catalog.connectors) == {path.stem for path in CONNECTORS.glob("*.yaml")} - {"platform"}
    assert catalog.platform.entities


def test_every_connector_has_its_templates(catalog: Catalog) -> None:
    for name, templates in catalog.templates.items():
        assert {t.name for t in templates} == {path.stem for path in (TEMPLATES / name).glob("*.yaml")}


def test_an_unknown_provider_is_told_the_nearest(catalog: Catalog) -> None:
    name = next(iter(catalog.connectors))
    with pytest.raises(UnknownProviderError, match=f"did you mean `{name}`"):
        catalog.connector(name + "s")
    with pytest.raises(UnknownProviderError):
        catalog.connector("")


def test_a_templates_id_is_the_same_everywhere(catalog: Catalog) -> None:
    name, templates = next(iter(catalog.templates.items()))
    for template in templates:
        identity = template_id(name, template.name)
        assert identity == template_id(name, template.name)
        assert catalog.template(name, identity) is template


def test_a_template_that_is_gone(catalog: Catalog) -> None:
    name = next(iter(catalog.connectors))
    for identity in (None, UUID(int=1)):
        with pytest.raises(TemplateNotFoundError):
            catalog.template(name, identity)
    with pytest.raises(TemplateNotFoundError):
        catalog.detect("nobody", {"id": "v", "name": "Venue"})


def test_a_broken_manifest_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("manifest: 1\nconnector: broken\n", encoding="utf-8")
    with pytest.raises(DocumentError):
        load_catalog(tmp_path, TEMPLATES, PLATFORM)
