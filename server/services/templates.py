"""The mapping templates of a provider: which one suits a venue and why, and how much each is used."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from engine.ports import Record
from engine.templates import MappingTemplate
from server.catalog import Catalog, template_id
from server.db.models import FieldMappingTemplate, IntegrationConfig


@dataclass(frozen=True, slots=True)
class Offer:
    """A template and its use. `because` says why it is the one that suits the venue; null for the others.

    `used` counts how often it was given to an integration, by choice or by itself; `in_use` the connected
    integrations that have it now, `adapted` those whose own mapping began with it.
    """

    id: UUID
    template: MappingTemplate
    because: str | None
    used: int = 0
    last_used_at: datetime | None = None
    in_use: int = 0
    adapted: int = 0

    @property
    def extends(self) -> str | None:
        """The template it is laid over, by name."""
        return self.template.layers[-2] if len(self.template.layers) > 1 else None


def offers(catalog: Catalog, provider: str, venue: Record | None) -> list[Offer]:
    """Return a provider's templates by name; raises UnknownProviderError.

    With a venue's record, one of them says why it suits that venue.
    """
    catalog.connector(provider)
    templates = catalog.templates.get(provider, ())
    chosen, why = catalog.detect(provider, venue) if templates and venue is not None else (None, None)
    return [
        Offer(template_id(provider, each.name), each, why if each is chosen else None)
        for each in sorted(templates, key=lambda each: each.name)
    ]


async def with_use(session: AsyncSession, provider: str, offered: list[Offer]) -> list[Offer]:
    """Return a provider's templates with how much each is used."""
    counted = await session.execute(
        select(FieldMappingTemplate.id, FieldMappingTemplate.usage_count, FieldMappingTemplate.last_used_at)
    )
    used = {row.id: (row.usage_count, row.last_used_at) for row in counted}
    connected = (IntegrationConfig.integration_type == provider, IntegrationConfig.status != "disconnected")
    now = select(IntegrationConfig.template_id, func.count()).where(*connected)
    in_use = dict((await session.execute(now.group_by(IntegrationConfig.template_id))).tuples().all())
    began = IntegrationConfig.field_mappings["template"].astext
    own = select(began, func.count()).where(*connected, IntegrationConfig.template_id.is_(None))
    adapted: dict[str | None, int] = dict((await session.execute(own.group_by(began))).tuples().all())
    made = []
    for each in offered:
        count, last = used.get(each.id, (0, None))
        now_used, began_with = in_use.get(each.id, 0), adapted.get(each.template.name, 0)
        made.append(replace(each, used=count, last_used_at=last, in_use=now_used, adapted=began_with))
    return made
