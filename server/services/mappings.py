"""Which mapping an integration uses, and how it is changed: a template, or one of the venue's own.

`integration_configs.field_mappings` is empty while the template says it all. A venue's own mapping is stored
there whole, in the form that templates are written in, so that it doesn't change with its template. Every
change is a version that can be restored; versions hold the same form.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, Literal
from uuid import UUID

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from engine.diagnostics import listed
from engine.errors import HubError
from engine.explaining import Explanation, explain, made_up_links
from engine.fields import FieldCatalog
from engine.layering import Origin, difference
from engine.manifest import Connector
from engine.mapping import Mapping as FieldMapping
from engine.mapping import MappingScope
from engine.pairs import (
    GonePair,
    KnownFields,
    PairFault,
    Rule,
    Written,
    compile_pairs,
    gone_pairs,
    known_fields,
    moved,
    pairs_of,
    rules_of,
    without_pairs,
    write_pairs,
)
from engine.ports import Record
from engine.previews import SAMPLE_VENUE
from engine.templates import MappingTemplate
from server.catalog import Catalog, template_id
from server.context import Context
from server.db.models import (
    FieldMappingTemplate,
    IntegrationConfig,
    MappingVersion,
    Operation,
    OperationStatus,
    OperationType,
    SyncWatermark,
)
from server.errors import (
    Detail,
    IntegrationNotFoundError,
    MappingInvalidError,
    NotFoundError,
    RequiredFieldMissingError,
    StaleError,
    TemplateNotFoundError,
)
from server.services import audit, drift, operations, outbox, shadow, venues
from server.services.audit import Actor
from server.services.integrations import get_integration, read_venue
from server.services.paging import Page
from server.telemetry.metrics import HEALS

log = structlog.get_logger(__name__)

SimplePairs = Mapping[str, str | Sequence[str]]
# What runs is taken up again with the new mapping once its worker has noticed that it lost it.
RESTART = timedelta(seconds=10)
MOST_TOLD = 50  # pairs, in an event


@dataclass(frozen=True, slots=True)
class Current:
    """The mapping of an integration. `template` is the one in use, or that a custom one began with.

    `broken` are pairs (source, target) that are left out of syncs, with what a person should know.
    """

    mappings: tuple[Written, ...]
    template: str | None
    template_id: UUID | None = None  # None: the venue's own
    applied_at: datetime | None = None
    broken: Mapping[tuple[str, str], str] = field(default_factory=dict)
    because: str | None = None  # why it is this template, where it was just given

    @property
    def pairs(self) -> dict[str, list[str]]:
        return pairs_of(self.mappings)

    @property
    def etag(self) -> str:
        """What changes when anything of it does, quoted as HTTP wants it."""
        shown = [self.stored(), str(self.template_id), str(self.applied_at)]
        return f'"{hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:32]}"'

    def stored(self) -> dict[str, Any]:
        """Return it as `field_mappings` and versions keep it."""
        broken = [{"source": pair[0], "target": pair[1], "why": why} for pair, why in self.broken.items()]
        return {
            "template": self.template,
            "mappings": [dict(each) for each in self.mappings],
            "broken": broken,
        }


def _read(
    stored: Mapping[str, Any], identity: UUID | None = None, applied: datetime | None = None
) -> Current:
    broken = {(each["source"], each["target"]): each["why"] for each in stored.get("broken", ())}
    return Current(tuple(stored["mappings"]), stored.get("template"), identity, applied, broken)


def _of_template(connector: str, template: MappingTemplate, applied: datetime | None) -> Current:
    return Current(template.written, template.name, template_id(connector, template.name), applied)


def current(catalog: Catalog, integration: IntegrationConfig) -> Current:
    """Return the mapping an integration uses; raises TemplateNotFoundError when it has none."""
    if integration.field_mappings:
        return _read(integration.field_mappings)
    name = integration.integration_type
    template = catalog.template(name, integration.template_id)
    return _of_template(name, template, integration.template_applied_at)


def compiled(catalog: Catalog, integration: IntegrationConfig) -> Sequence[FieldMapping]:
    """Return what a sync works by, without the pairs that are broken.

    A mapping that doesn't work without its broken pairs, such as the one that tells which records are the
    same, is left out whole. Raises TemplateNotFoundError, and MappingInvalidError when the venue's own
    mapping doesn't fit the manifests any more.
    """
    name = integration.integration_type
    if not integration.field_mappings:
        return catalog.template(name, integration.template_id).mappings
    own = _read(integration.field_mappings)
    whole = without_pairs(own.mappings, own.broken.keys())
    made, faults = compile_pairs(whole, catalog.connector(name), catalog.platform)
    hurt = {_sides(source, target) for source, target in own.broken}
    faults = [each for each in faults if _sides(each.source, each.target) not in hurt]
    if faults:
        raise _invalid(faults, len(faults))
    return made


def _sides(source: str, target: str) -> tuple[str, str]:
    return source.partition(".")[0], target.partition(".")[0]


# --- looking


def fields_of(catalog: Catalog, provider: str) -> KnownFields:
    """Return what mappings of a provider may name; raises UnknownProviderError."""
    return known_fields(catalog.connector(provider), catalog.platform, _all_written(catalog, provider))


async def look(context: Context, session: AsyncSession, venue_id: UUID, provider: str) -> Current:
    """Return the mapping of an integration.

    Raises UnknownProviderError, IntegrationNotFoundError and TemplateNotFoundError.
    """
    context.catalog.connector(provider)
    return current(context.catalog, await get_integration(session, venue_id, provider))


async def history(
    session: AsyncSession, venue_id: UUID, provider: str, *, limit: int, offset: int, before: int | None
) -> Page:
    """Return the versions of a mapping, newest first; `before` is the version the page before ended with."""
    await get_integration(session, venue_id, provider)
    mine = {"venue_id": venue_id, "integration_type": provider}
    total = await session.scalar(select(func.count()).select_from(MappingVersion).filter_by(**mine)) or 0
    statement = select(MappingVersion).filter_by(**mine).order_by(MappingVersion.version.desc())
    statement = (
        statement.offset(offset) if before is None else statement.where(MappingVersion.version < before)
    )
    rows = (await session.scalars(statement.limit(limit + 1))).all()
    more = len(rows) > limit
    return Page(rows[:limit], total, (str(rows[limit - 1].version),) if more else None)


# --- changing


@dataclass(frozen=True, slots=True)
class Change:
    """What a mapping becomes, and why; `details` are for the audit log."""

    to: Current
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose mapping is to be changed, by whom; `if_match` is the tag the caller knows it by."""

    venue_id: UUID
    provider: str
    if_match: str | None = None


async def replace_pairs(context: Context, actor: Actor, asked: Asked, pairs: SimplePairs) -> Current:
    """Give an integration a mapping of its own.

    Raises MappingInvalidError or RequiredFieldMissingError with everything that is wrong, and what `_change`
    does.
    """

    def make(now: Current | None) -> Change:
        written = _written(context.catalog, asked.provider, pairs, now)
        return Change(Current(tuple(written), now.template if now else None), "updated")

    return await _change(context, actor, asked, make)


async def apply_template(context: Context, actor: Actor, asked: Asked, identity: UUID | None) -> Current:
    """Give an integration a template: this one, or the one that suits its venue best.

    Raises TemplateNotFoundError, and what `_change` does.
    """
    name = asked.provider
    context.catalog.connector(name)
    if identity is None:
        venue = await read_venue(context, asked.venue_id)
        template, why = context.catalog.detect(name, venue)
    else:
        template, why = _template(context.catalog, name, identity), "it was asked for"
    return await _give(context, actor, asked, template, "template_applied", why)


async def reset(context: Context, actor: Actor, asked: Asked) -> Current:
    """Give an integration its provider's default template; raises as `apply_template`."""
    context.catalog.connector(asked.provider)
    templates = context.catalog.templates.get(asked.provider, ())
    if not templates:
        raise TemplateNotFoundError(f"there is no mapping template for `{asked.provider}`")
    template = next((each for each in templates if each.name == "default"), templates[0])
    return await _give(context, actor, asked, template, "reset", "it is the default")


async def restore(context: Context, actor: Actor, asked: Asked, version: int | None) -> Current:
    """Bring back a version, or without one what the last change replaced; that is a new version.

    Raises NotFoundError when there is none, and what `_change` does.
    """
    context.catalog.connector(asked.provider)
    async with context.sessions() as session:
        await get_integration(session, asked.venue_id, asked.provider)
        mine = {"venue_id": asked.venue_id, "integration_type": asked.provider}
        statement = select(MappingVersion).filter_by(**mine).order_by(MappingVersion.version.desc())
        statement = (
            statement.offset(1) if version is None else statement.where(MappingVersion.version == version)
        )
        row = (await session.scalars(statement.limit(1))).one_or_none()
        healed = await _moved_before(session, asked, after=row.version) if row is not None else set()
    if row is None:
        what = "there is nothing to undo" if version is None else f"there is no version {version}"
        raise NotFoundError(f"{what} of this mapping")

    def make(now: Current | None) -> Change:
        to = _read(row.mappings)
        if row.template_id is not None:
            try:
                template = _template(context.catalog, asked.provider, row.template_id)
                to = _of_template(asked.provider, template, datetime.now(UTC))
            except TemplateNotFoundError:
                pass  # its pack is gone: it goes on as it was written
        return Change(to, "restored", {"restored": row.version})

    after = await _change(context, actor, asked, make)
    there = {(source, target) for source, targets in after.pairs.items() for target in targets}
    for source, target, to in healed:
        moved_to = {(source, to), (to, target)}
        if (source, target) in there and not moved_to & there:
            HEALS.add(asked.provider, "undone")
    return after


@dataclass(frozen=True, slots=True)
class Moved:
    """A pair that names another field now, `to`, because `gone` isn't known any more."""

    gone: GonePair
    to: str

    def to_json(self) -> dict[str, Any]:
        plan = self.gone.plan
        best = (
            next((each for each in plan.proposals if self.to.endswith(f".{each.path}")), None)
            if plan
            else None
        )
        return {
            "source": self.gone.source,
            "target": self.gone.target,
            "gone": self.gone.gone,
            "because": self.gone.because,
            "to": self.to,
            "evidence": list(best.evidence) if best else [],
        }


@dataclass(frozen=True, slots=True)
class Healed:
    """What looking at every mapped field came to."""

    checked: int
    broken: tuple[GonePair, ...]
    mended: tuple[tuple[str, str], ...]  # marked as broken before, and there again
    moved: tuple[Moved, ...] = ()

    @property
    def message(self) -> str:
        moved = f"; {len(self.moved)} name the field that took another's place" if self.moved else ""
        if not self.broken:
            again = f"; {len(self.mended)} that were gone are there again" if self.mended else ""
            return f"Mappings healed successfully: all {self.checked} mapped pairs are known{moved}{again}"
        return (
            f"{len(self.broken)} of {self.checked} mapped pairs have a field that isn't known any more. "
            f"They are left out of syncs until somebody maps them anew; nothing was removed{moved}"
        )


async def heal(context: Context, actor: Actor, asked: Asked) -> Healed:
    """Look at every mapped field whether it is known: one that surely took another's place is mapped for it,
    and other pairs whose field is gone are marked; those that are back are unmarked. Nothing is removed.

    What was healed before and undone isn't done again, nor what recent records of both sides deny, or what
    couldn't be tried on them. A field that only lists leave out isn't gone. Raises what `_change` does.
    """
    connector = context.catalog.connector(asked.provider)
    async with context.sessions() as session:
        seen = await drift.all_observed(session, asked.venue_id, asked.provider)
        undone = await _moved_before(session, asked)
        integration = await session.scalar(
            select(IntegrationConfig).filter_by(venue_id=asked.venue_id, integration_type=asked.provider)
        )
    shadows: dict[tuple[str, str, str | None], shadow.Shadow] = {}
    if integration is not None:
        seen = await _surely_missed(context, asked, integration, seen)
        undone |= await _denied(context, asked, integration, seen, undone, shadows)
    found: list[Healed] = []
    fresh: list[GonePair] = []

    def make(now: Current | None) -> Change | None:
        if now is None:
            raise TemplateNotFoundError(
                f"this `{asked.provider}` integration has no mapping: apply a template"
            )
        gone = gone_pairs(now.mappings, connector, context.catalog.platform, seen)
        checked = sum(len(targets) for targets in now.pairs.values())
        tried = [each for each in gone if (each.source, each.target, each.successor) in shadows]
        mappings, made = _move_sure(context.catalog, connector, now.mappings, gone, tried, undone)
        left = [each for each in gone if each not in [one.gone for one in made]]
        names = {(each.source, each.target) for each in left}
        moved_names = {(each.gone.source, each.gone.target) for each in made}
        mended = tuple(pair for pair in now.broken if pair not in names | moved_names)
        found.append(Healed(checked, tuple(left), mended, tuple(made)))
        broken = {(each.source, each.target): _why(each) for each in left}
        fresh[:] = [each for each in left if (each.source, each.target) not in now.broken]
        if broken == now.broken and not made:
            return None
        plan = {
            "applied": [
                {
                    **each.to_json(),
                    "shadow": shadows[each.gone.source, each.gone.target, each.to].to_json(),
                }
                for each in made
            ],
            "broken": [
                {
                    "source": each.source,
                    "target": each.target,
                    "because": each.because,
                    "proposal": each.proposal,
                    "plan": each.plan.as_dict() if each.plan else None,
                }
                for each in left
            ],
            "mended": [{"source": source, "target": target} for source, target in mended],
        }
        details = {"applied": len(made), "broken": len(left), "mended": len(mended)}
        return Change(Current(mappings, now.template, broken=broken), "healed", details, plan)

    await _change(context, actor, asked, make)
    for each in fresh:
        HEALS.add(asked.provider, "proposed" if each.proposal else "broken")
    for _ in found[-1].moved:
        HEALS.add(asked.provider, "applied")
    return found[-1]


async def try_successor(context: Context, asked: Asked, source: str, target: str, to: str) -> shadow.Shadow:
    """Try on recent records what `accept` would do. Raises NotFoundError when the pair isn't broken."""
    connector = context.catalog.connector(asked.provider)
    async with context.sessions() as session:
        now = await look(context, session, asked.venue_id, asked.provider)
        seen = await drift.all_observed(session, asked.venue_id, asked.provider)
    gone = gone_pairs(now.mappings, connector, context.catalog.platform, seen)
    pair = next((each for each in gone if (each.source, each.target) == (source, target)), None)
    if pair is None:
        raise NotFoundError(f"`{source}` and `{target}` are no pair whose field is gone")
    return await shadow.try_out(context, asked.venue_id, asked.provider, now.mappings, pair, to)


async def accept(context: Context, actor: Actor, asked: Asked, source: str, target: str, to: str) -> Current:
    """Let a pair whose field is gone name `to` for it, as a person decided.

    Raises NotFoundError when the pair isn't one of those, MappingInvalidError when `to` can't take its place,
    and what `_change` does.
    """
    connector, platform = context.catalog.connector(asked.provider), context.catalog.platform
    async with context.sessions() as session:
        seen = await drift.all_observed(session, asked.venue_id, asked.provider)

    def make(now: Current | None) -> Change:
        gone = gone_pairs(now.mappings, connector, platform, seen) if now else []
        pair = next((each for each in gone if (each.source, each.target) == (source, target)), None)
        if now is None or pair is None:
            raise NotFoundError(f"`{source}` and `{target}` are no pair whose field is gone")
        other = pair.target if pair.gone == pair.source else pair.source
        if not to.startswith(f"{pair.side}."):
            fault = PairFault(
                source, target, f"what takes the place of `{pair.gone}` is a field of `{pair.side}`"
            )
            raise _invalid([fault], 1)
        mappings = tuple(moved(now.mappings, pair, to))
        still = {(each.source, each.target) for each in gone_pairs(mappings, connector, platform, seen)}
        broken = {key: why for key, why in now.broken.items() if key != (source, target)}
        pairs = {(to, other) if pair.gone == pair.source else (other, to)}
        if pairs & still:
            raise _invalid([PairFault(source, target, f"`{to}` isn't known")], 1)
        left_out = broken.keys() | still
        faults = compile_pairs(without_pairs(mappings, left_out), connector, platform)[1]
        if faults:
            raise _invalid(faults, len(faults))
        plan = {"applied": [Moved(pair, to).to_json()], "broken": [], "mended": []}
        details = {"applied": 1, "broken": len(broken), "mended": 1}
        return Change(Current(mappings, now.template, broken=broken), "healed", details, plan)

    return await _change(context, actor, asked, make)


def _move_sure(
    catalog: Catalog,
    connector: Connector,
    mappings: tuple[Written, ...],
    gone: Sequence[GonePair],
    tried: Sequence[GonePair],
    undone: Collection[tuple[str, str, str]],
) -> tuple[tuple[Written, ...], list[Moved]]:
    """Let pairs name what surely took their field's place, as far as the mapping can be worked with it."""
    made: list[Moved] = []
    others = {(each.source, each.target) for each in gone}
    for each in tried:
        to = each.successor
        if to is None or (each.source, each.target, to) in undone:
            continue
        others.discard((each.source, each.target))
        fresh = tuple(moved(mappings, each, to))
        if compile_pairs(without_pairs(fresh, others), connector, catalog.platform)[1]:
            others.add((each.source, each.target))
            continue
        mappings, made = fresh, [*made, Moved(each, to)]
    return mappings, made


async def _denied(
    context: Context,
    asked: Asked,
    integration: IntegrationConfig,
    seen: drift.Observed,
    undone: Collection[tuple[str, str, str]],
    shadows: dict[tuple[str, str, str | None], shadow.Shadow],
) -> set[tuple[str, str, str]]:
    """Try on recent records what is sure; returns what they deny, and fills in what came of the others."""
    connector = context.catalog.connector(asked.provider)
    try:
        now = current(context.catalog, integration)
    except TemplateNotFoundError:
        return set()
    denied = set()
    for each in gone_pairs(now.mappings, connector, context.catalog.platform, seen):
        to = each.successor
        if to is None or (each.source, each.target, to) in undone:
            continue
        try:
            tried = await shadow.try_out(context, asked.venue_id, asked.provider, now.mappings, each, to)
        except HubError:
            denied.add((each.source, each.target, to))
            continue
        shadows[each.source, each.target, to] = tried
        if tried.denies:
            denied.add((each.source, each.target, to))
    return denied


async def _surely_missed(
    context: Context, asked: Asked, integration: IntegrationConfig, seen: drift.Observed
) -> drift.Observed:
    """Return what was seen, without the removals that recent records, each read by itself, don't bear out.

    A pair that is marked already stays so until records have its field again. Where the provider can't be
    asked, a field isn't taken for gone: it is looked at again when something changes.
    """
    try:
        now = current(context.catalog, integration)
    except TemplateNotFoundError:
        return seen
    connector = context.catalog.connector(asked.provider)
    seen = {resource: dict(fields) for resource, fields in seen.items()}
    for each in gone_pairs(now.mappings, connector, context.catalog.platform, seen):
        if each.because != "missed" or (each.source, each.target) in now.broken:
            continue
        resource, _, path = each.gone.partition(".")
        try:
            there = await shadow.still_there(context, asked.venue_id, asked.provider, now.mappings, each)
        except HubError:
            there = True
        if there:
            seen[resource][path] = replace(seen[resource][path], removed=False)
    return seen


async def _moved_before(session: AsyncSession, asked: Asked, *, after: int = 0) -> set[tuple[str, str, str]]:
    """Return what was healed in versions `after` one: when it is to be healed again, somebody undid it."""
    plans = await session.scalars(
        select(MappingVersion.heal_plan).where(
            MappingVersion.venue_id == asked.venue_id,
            MappingVersion.integration_type == asked.provider,
            MappingVersion.version > after,
            MappingVersion.heal_plan.is_not(None),
        )
    )
    return {
        (each["source"], each["target"], each["to"])
        for plan in plans
        if plan is not None
        for each in plan.get("applied", ())
    }


_GONE = {
    "unknown": "isn't known any more",
    "missed": "is missing from records that used to have it",
    "refused": "isn't known to the provider any more, by its answer to a write",
}


def _why(gone: GonePair) -> str:
    near = f"; `{gone.proposal}` is like it" if gone.proposal else ""
    return f"`{gone.gone}` {_GONE[gone.because]}{near}"


async def _give(
    context: Context, actor: Actor, asked: Asked, template: MappingTemplate, reason: str, why: str
) -> Current:
    to = replace(_of_template(asked.provider, template, datetime.now(UTC)), because=why)

    def make(now: Current | None) -> Change:
        return Change(to, reason, {"template": template.name, "because": why})

    made = await _change(context, actor, asked, make)
    await log.ainfo("template.given", provider=asked.provider, template=template.name, because=why)
    return made


async def _change(
    context: Context, actor: Actor, asked: Asked, make: Callable[[Current | None], Change | None]
) -> Current:
    """Change a mapping in one transaction: its version, the audit log, and all records to be looked at anew.

    `make` sees what is there and answers what it becomes; None leaves it. Raises UnknownProviderError,
    IntegrationNotFoundError, BeingErasedError, StaleError when `if_match` is old, and what `make` raises.
    """
    catalog = context.catalog
    catalog.connector(asked.provider)
    mine = {"venue_id": asked.venue_id, "integration_type": asked.provider}
    async with context.sessions.begin() as session:
        await venues.check_open(session, asked.venue_id)
        await operations.hold_running(session, asked.venue_id, asked.provider)
        rows = await session.scalars(select(IntegrationConfig).filter_by(**mine).with_for_update())
        integration = rows.one_or_none()
        if integration is None:
            raise IntegrationNotFoundError(f"`{asked.provider}` isn't connected at this venue")
        try:
            before: Current | None = current(catalog, integration)
        except TemplateNotFoundError:
            before = None
        _check_match(asked.if_match, before)
        change = make(before)
        if change is None:
            assert before is not None  # only what is there can be left as it is
            return before
        last = await session.scalar(select(func.max(MappingVersion.version)).filter_by(**mine)) or 0
        if last == 0 and before is not None:
            last = 1
            session.add(_version(asked, before, last, "initial", None))
        after, now = change.to, datetime.now(UTC)
        integration.field_mappings = {} if after.template_id else after.stored()
        integration.template_id, integration.template_applied_at = after.template_id, after.applied_at
        integration.updated_at = now
        session.add(_version(asked, after, last + 1, change.reason, actor, change.plan))
        if after.template_id is not None and change.reason != "restored":
            await session.execute(
                update(FieldMappingTemplate)
                .where(FieldMappingTemplate.id == after.template_id)
                .values(usage_count=FieldMappingTemplate.usage_count + 1, last_used_at=func.now())
            )
        await _look_at_all_again(session, asked)
        if change.reason != "healed":  # a person decided that every field is tried again
            await drift.forgive(session, asked.venue_id, asked.provider)
        if change.reason == "healed":
            outbox.announce(
                session,
                venue_id=asked.venue_id,
                event="mapping.healed",
                data={
                    "provider": asked.provider,
                    "integration_id": str(integration.id),
                    "version": last + 1,
                    **change.details,
                    "pairs": _told(change.plan or {}),
                },
            )
        audit.record(
            session,
            actor,
            f"mapping.{change.reason}",
            venue_id=asked.venue_id,
            provider=asked.provider,
            target=str(integration.id),
            details={"version": last + 1, **change.details},
            before=_picture(before),
            after=_picture(after),
        )
        return after


def _told(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what subscribers are told of the pairs a heal plan is about."""
    moved_pairs = [(each, "applied", each["to"], each["evidence"]) for each in plan.get("applied", ())]
    for each in plan.get("broken", ()):
        best = next(iter((each["plan"] or {}).get("proposals", ())), None)
        outcome = "proposed" if best else "broken"
        moved_pairs.append(
            (each, outcome, each["proposal"] if best else None, best["evidence"] if best else [])
        )
    return [
        {
            **{key: each[key] for key in ("source", "target", "because")},
            "outcome": outcome,
            "to": to,
            "evidence": evidence,
        }
        for each, outcome, to, evidence in moved_pairs[:MOST_TOLD]
    ]


def _check_match(if_match: str | None, now: Current | None) -> None:
    """Raise StaleError unless a header `If-Match` names what is there; `*` is anything."""
    if if_match is None:
        return
    tags = [each.strip() for each in if_match.split(",")]
    if now is None or ("*" not in tags and now.etag not in tags):
        raise StaleError(
            "the mapping was changed by somebody else: read it again",
            [Detail("If-Match", f"it is {now.etag} now" if now else "there is no mapping")],
        )


def _version(
    asked: Asked,
    state: Current,
    number: int,
    reason: str,
    actor: Actor | None,
    plan: dict[str, Any] | None = None,
) -> MappingVersion:
    return MappingVersion(
        venue_id=asked.venue_id,
        integration_type=asked.provider,
        version=number,
        mappings=state.stored(),
        reason=reason,
        template_id=state.template_id,
        heal_plan=plan,
        created_by=actor.id if actor else None,
    )


def _picture(state: Current | None) -> dict[str, Any]:
    """Return what the audit log keeps of a mapping."""
    if state is None:
        return {"template_id": None, "mappings": {}, "broken": []}
    return {
        "template_id": None if state.template_id is None else str(state.template_id),
        "mappings": state.pairs,
        "broken": [list(pair) for pair in state.broken],
    }


async def _look_at_all_again(session: AsyncSession, asked: Asked) -> None:
    """Let the next sync look at every record, and a running one begin again with the new mapping.

    What the new mapping makes no difference to costs no write. Belongs after `hold_running`.
    """
    mine = {"venue_id": asked.venue_id, "integration_type": asked.provider}
    await session.execute(
        update(Operation)
        .filter_by(**mine, operation_type=OperationType.SYNC, status=OperationStatus.PROCESSING)
        .values(
            status=OperationStatus.RECOVERING,
            lease_owner=None,
            lease_expires_at=None,
            fencing_token=Operation.fencing_token + 1,
            next_retry_at=func.now() + RESTART,
            updated_at=func.now(),
        )
    )
    await session.execute(delete(SyncWatermark).filter_by(**mine))


# --- what pairs mean


def _all_written(catalog: Catalog, provider: str) -> list[Written]:
    return [written for template in catalog.templates.get(provider, ()) for written in template.written]


def _template(catalog: Catalog, provider: str, identity: UUID) -> MappingTemplate:
    for template in catalog.templates.get(provider, ()):
        if template_id(provider, template.name) == identity:
            return template
    known = listed(
        f"{template_id(provider, each.name)} ({each.name})" for each in catalog.templates.get(provider, ())
    )
    raise TemplateNotFoundError(f"`{provider}` has no template `{identity}`; it has {known or 'none'}")


def _known(catalog: Catalog, provider: str, now: Current | None) -> list[Sequence[Written]]:
    """Return where rules are looked for: what is there, what it began with, then all other templates."""
    templates = catalog.templates.get(provider, ())
    began = now.template if now else None
    order = sorted(templates, key=lambda each: (each.name != began, each.name != "default"))
    return [*([now.mappings] if now else []), *(each.written for each in order)]


def _listed_pairs(pairs: SimplePairs) -> dict[str, list[str]]:
    return {
        source: [targets] if isinstance(targets, str) else list(targets) for source, targets in pairs.items()
    }


def _written(
    catalog: Catalog, provider: str, pairs: SimplePairs, now: Current | None
) -> list[dict[str, Any]]:
    """Return the mappings pairs mean; raises MappingInvalidError, and RequiredFieldMissingError."""
    connector, wanted = catalog.connector(provider), _listed_pairs(pairs)
    made, faults = write_pairs(wanted, _known(catalog, provider, now), connector, catalog.platform)
    invalid = [fault for fault in faults if fault.kind != "missing"]
    if not faults:
        gone = gone_pairs(made, connector, catalog.platform)
        invalid = [PairFault(each.source, each.target, _why(each)) for each in gone]
        invalid = invalid or compile_pairs(made, connector, catalog.platform)[1]
    if invalid:
        raise _invalid(invalid, sum(len(each) for each in wanted.values()))
    if faults:
        details = [Detail(fault.source or fault.target, fault.message) for fault in faults]
        raise RequiredFieldMissingError(f"a required field isn't mapped: {details[0].message}", details)
    if not made:
        raise MappingInvalidError("map at least one field", [Detail("mappings", "there is none")])
    return made


def _invalid(faults: Collection[PairFault], of: int) -> MappingInvalidError:
    details = [Detail(f"mappings.{fault.source}", fault.message) for fault in faults]
    message = f"{len(details)} of {of} pairs can't be mapped: {details[0].message}"
    return MappingInvalidError(message, details)


# --- trying


@dataclass(frozen=True, slots=True)
class Trial:
    """What mappings make of sample records.

    `mapped` has the other side's records by name; `explained` tells of each mapping that was tried how each
    value is made, and where its rule was written.
    """

    mapped: dict[str, Any]
    explained: tuple[Explanation, ...]
    problems: tuple[Detail, ...]


async def try_pairs(
    context: Context,
    provider: str,
    pairs: SimplePairs,
    samples: Mapping[str, Record],
    direction: Literal["push", "pull"],
    venue_id: UUID | None,
) -> Trial:
    """Return what mappings would make of records, by entity (push) or resource (pull); nothing is kept.

    Rules come from the integration's own mapping for a venue, else from the templates. What is required and
    isn't mapped is a problem here and no error. Raises MappingInvalidError.
    """
    catalog, now, version, venue = context.catalog, None, None, SAMPLE_VENUE
    connector, wanted = catalog.connector(provider), _listed_pairs(pairs)
    if venue_id is not None:
        async with context.sessions() as session:
            now = await look(context, session, venue_id, provider)
            version = await _newest_version(session, venue_id, provider)
        venue = dict(await read_venue(context, venue_id))
    written, faults = write_pairs(wanted, _known(catalog, provider, now), connector, catalog.platform)
    invalid = [fault for fault in faults if fault.kind == "invalid"]
    problems = [
        Detail(fault.source or fault.target, fault.message) for fault in faults if fault.kind != "invalid"
    ]
    unpaired = [{name: value for name, value in each.items() if name != "match_on"} for each in written]
    compiled_, uncompiled = compile_pairs(unpaired, connector, catalog.platform)
    if invalid or uncompiled:
        raise _invalid([*invalid, *uncompiled], sum(len(each) for each in wanted.values()))
    layers = _Layers(catalog, provider, now, version)

    def explain_all() -> list[Explanation]:
        made = []
        for one, mapping in zip(unpaired, compiled_, strict=True):
            starts_at = mapping.entity if direction == "push" else mapping.resource
            if starts_at not in samples or not (mapping.pushes if direction == "push" else mapping.pulls):
                continue
            entity, resource = (
                catalog.platform.entities[mapping.entity],
                connector.resources[mapping.resource],
            )
            record = dict(samples[starts_at])
            if direction == "push":
                exact = {name: _exact(name, value, entity.fields) for name, value in record.items()}
                record = {"id": "sample", **exact}
            scope = MappingScope(venue=venue, links=made_up_links(mapping, record, direction))
            made.append(explain(one, resource, entity, record, scope, direction, layers.of(one)))
        return made

    explained = await asyncio.to_thread(explain_all)  # each rule is compiled by itself: others go on
    mapped: dict[str, Any] = {}
    for told in explained:
        ours, theirs = (told.entity, told.resource) if direction == "push" else (told.resource, told.entity)
        if told.mapped is not None:
            mapped[theirs] = {**mapped.get(theirs, {}), **told.mapped}
        else:
            problems.append(Detail(f"{ours}.{told.error_field or ''}".rstrip("."), told.error or ""))
    starts = {each.entity if direction == "push" else each.resource for each in explained}
    problems += [
        Detail(f"sampleData.{name}", f"no mapping starts at `{name}` in this direction")
        for name in samples
        if name not in starts
    ]
    return Trial(mapped, tuple(explained), tuple(problems))


def _exact(name: str, value: Any, fields: FieldCatalog) -> Any:
    """Return a value as the platform would give it: amounts are exact."""
    known = fields.get(name)
    amount = known is not None and known.type in ("money", "decimal")
    return (
        Decimal(str(value))
        if amount and isinstance(value, int | float) and not isinstance(value, bool)
        else value
    )


# --- layers

VENUE = "venue"  # the layer of a venue's own mapping, above those of templates
FRESH = "request"  # a rule that nobody has yet: made of what the two fields are


@dataclass(frozen=True, slots=True)
class Layered:
    """A rule of a mapping, and where it was written: a template's file and line, or the venue's own mapping.

    `broken` says why it is left out of syncs.
    """

    rule: Rule
    direction: str
    origin: Origin
    broken: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """A mapping by its layers: the names of the templates, the lowest first, and of the venue's own.

    `changes` are what the venue's own layer has different, as a template would write it that extends the one
    it began with: null is taken away. `version` is that of the venue's own layer.
    """

    layers: tuple[str, ...]
    version: int | None
    rules: tuple[Layered, ...]
    changes: tuple[Written, ...]


async def look_at_layers(context: Context, session: AsyncSession, venue_id: UUID, provider: str) -> Look:
    """Return where each rule of an integration's mapping comes from; raises as `look`."""
    now = await look(context, session, venue_id, provider)
    version = await _newest_version(session, venue_id, provider)
    catalog, own = context.catalog, now.template_id is None
    template = _began_with(catalog, provider, now)
    layers = _Layers(catalog, provider, now, version)
    rules = []
    for mapping in now.mappings:
        origin, numbers = layers.of(mapping), dict[str, int]()
        for rule in rules_of([mapping]):
            number = numbers.get(rule.field, 0)
            numbers[rule.field] = number + 1
            why = now.broken.get((rule.source, rule.target))
            rules.append(Layered(rule, mapping["direction"], origin(rule.field, number), why))
    below = template.layers if template else ()
    changes = difference(template.written if template else (), now.mappings) if own else []
    return Look((*below, *((VENUE,) if own else ())), version if own else None, tuple(rules), tuple(changes))


@dataclass(frozen=True, slots=True)
class _Layers:
    """Tells where rules of a mapping were written, by finding the same rule in what it was made of."""

    catalog: Catalog
    provider: str
    now: Current | None
    version: int | None

    def of(self, written: Written) -> Callable[[str, int], Origin]:
        """Return what tells the origin of a field's rule by its number.

        The template in use, or that the venue's own mapping began with, goes first; then the venue's own
        mapping, and the other templates.
        """

        def origin(field_name: str, number: int) -> Origin:
            rule = _rule_at(written, field_name, number)
            began = _began_with(self.catalog, self.provider, self.now)
            own = Origin(VENUE, version=self.version)
            others = [each for each in self.catalog.templates.get(self.provider, ()) if each is not began]
            sources = [
                *([(began.written, began)] if began else []),
                *([(self.now.mappings, None)] if self.now and self.now.template_id is None else []),
                *((each.written, each) for each in others),
            ]
            for mappings, template in sources:
                at = _same_rule(mappings, written, field_name, rule)
                if at is not None and template is not None:
                    found = template.origins["mappings", at, "fields", field_name]
                    return Origin(found.layer, _short(found.file), found.line)
                if at is not None:
                    return own
            return Origin(FRESH)

        return origin


def _rule_at(written: Written, field_name: str, number: int) -> Any:
    rules = written["fields"][field_name]
    return rules[number] if isinstance(rules, list) else rules


def _same_rule(mappings: Sequence[Written], wanted: Written, field_name: str, rule: Any) -> int | None:
    """Return which of some mappings has a rule, of the same entity, resource and field."""
    for at, each in enumerate(mappings):
        if (each["entity"], each["resource"]) == (wanted["entity"], wanted["resource"]):
            rules = each["fields"].get(field_name)
            if rule in (rules if isinstance(rules, list) else [rules]):
                return at
    return None


def _began_with(catalog: Catalog, provider: str, now: Current | None) -> MappingTemplate | None:
    name = now.template if now else "default"
    return next((each for each in catalog.templates.get(provider, ()) if each.name == name), None)


def _short(file: str) -> str:
    """Name a template's file without the folders of this installation."""
    path = FilePath(file)
    return f"{path.parent.name}/{path.name}"


async def _newest_version(session: AsyncSession, venue_id: UUID, provider: str) -> int | None:
    mine = {"venue_id": venue_id, "integration_type": provider}
    return await session.scalar(select(func.max(MappingVersion.version)).filter_by(**mine))
