"""Connectors, mapping templates and the platform, read once when a process starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine.diagnostics import did_you_mean
from engine.documents import read_document
from engine.manifest import (
    Connector,
    Costs,
    Platform,
    PriceList,
    load_connector,
    load_platform,
    load_price_list,
)
from engine.ports import Record
from engine.templates import MappingTemplate, detect_template, load_templates
from server.db.models import FieldMappingTemplate
from server.errors import TemplateNotFoundError, UnknownProviderError

_TEMPLATES = UUID("5c4c1e0b-6b0e-5d0f-9a43-0d3b1b6a7c11")  # namespace of the ids of template packs' rows


@dataclass(frozen=True, slots=True)
class Catalog:
    """What this process can connect to, by name."""

    connectors: Mapping[str, Connector]
    templates: Mapping[str, tuple[MappingTemplate, ...]]  # by connector
    platform: Platform
    prices: PriceList = field(default_factory=PriceList)

    def costs(self, provider: str) -> Costs | None:
        """Return what a provider charges: by the operator's list, by its manifest, or as any other does."""
        connector = self.connectors.get(provider)
        own = connector.costs if connector else None
        return self.prices.providers.get(provider) or own or self.prices.default

    def connector(self, name: str) -> Connector:
        """Return a connector; raises UnknownProviderError, which names the nearest one."""
        if name in self.connectors:
            return self.connectors[name]
        advice = "; ".join(did_you_mean(name, self.connectors))
        raise UnknownProviderError(f"there is no provider `{name}`" + (f": {advice}" if advice else ""))

    def detect(self, connector: str, venue: Record) -> tuple[MappingTemplate, str]:
        """Return the template that suits a venue best, and why; raises TemplateNotFoundError without any."""
        templates = self.templates.get(connector, ())
        if not templates:
            raise TemplateNotFoundError(f"there is no mapping template for `{connector}`")
        return detect_template(templates, venue)

    def template(self, connector: str, row_id: UUID | None) -> MappingTemplate:
        """Return the template an integration was given, by `integration_configs.template_id`."""
        for template in self.templates.get(connector, ()):
            if template_id(connector, template.name) == row_id:
                return template
        raise TemplateNotFoundError(
            f"the mapping template of this `{connector}` integration is not here any more"
        )


def template_id(connector: str, name: str) -> UUID:
    """Return the id of a pack's row in `field_mapping_templates`: the same in every installation."""
    return uuid5(_TEMPLATES, f"{connector}/{name}")


def load_catalog(
    connectors_dir: Path, templates_dir: Path, platform: Path, prices: Path | None = None
) -> Catalog:
    """Read every manifest and template; raises DocumentError with all that is wrong in the first bad file."""
    host = load_platform(platform)
    connectors: dict[str, Connector] = {}
    for path in sorted(connectors_dir.glob("*.yaml")):
        if path.resolve() != platform.resolve():
            connector = load_connector(path)
            connectors[connector.name] = connector
    templates = {
        name: tuple(load_templates(templates_dir / name, connector, host))
        for name, connector in connectors.items()
        if (templates_dir / name).is_dir()
    }
    listed = load_price_list(prices) if prices else PriceList()
    return Catalog(MappingProxyType(connectors), MappingProxyType(templates), host, listed)


async def store_templates(session: AsyncSession, catalog: Catalog) -> None:
    """Copy the packs' templates into `field_mapping_templates`, where venues' own templates live too."""
    for connector, templates in catalog.templates.items():
        for template in templates:
            values = _row(connector, template)
            statement = insert(FieldMappingTemplate).values(values)
            changed = {name: statement.excluded[name] for name in values if name != "id"}
            await session.execute(
                statement.on_conflict_do_update(
                    index_elements=[FieldMappingTemplate.id],
                    set_={**changed, "updated_at": func.now()},
                    # Every process does this at its start; rows that say the same already are left alone.
                    where=FieldMappingTemplate.mappings != statement.excluded["mappings"],
                )
            )


def _row(connector: str, template: MappingTemplate) -> dict[str, Any]:
    venue_types = template.suits.venue_types
    return {
        "id": template_id(connector, template.name),
        "name": template.name,
        "description": template.title,
        "venue_type": venue_types[0] if venue_types else None,
        "integration_type": connector,
        "mappings": {**read_document(Path(template.file)).data, "mappings": list(template.written)},
        "is_default": template.name == "default",
    }
