"""Look at mappings, change and try them, and go back to an earlier one."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from litestar import Response, get, post, put
from litestar.datastructures import ResponseHeader
from litestar.openapi.spec import Example
from litestar.params import HeaderParameter
from msgspec import Meta, Struct

from engine.explaining import Explained
from engine.expressions import ABSENT
from engine.layering import Origin
from engine.pairs import GonePair, pairs_of
from server.api.dependencies import Acting, Shared
from server.api.described import good
from server.api.errors import error_answers
from server.api.guards import MANAGERS, READERS, TOKEN, CallerRequest
from server.api.paths import PATH
from server.api.schemas import (
    CursorText,
    Limit,
    MessageAnswer,
    Offset,
    PageMeta,
    ProviderName,
    VenueId,
    VenueRequest,
    body_of,
    page_meta,
    read_cursor,
)
from server.context import Context
from server.services import mappings
from server.services.mappings import Asked, Current

Answer = TypeVar("Answer")

TAGS = ["Mappings"]
MAPPINGS = f"{PATH}/mappings/{{provider:str}}"
_LARGEST_VERSION = 2**31 - 1

IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        max_length=500,
        description="The `ETag` you know the mapping by: it is changed only while it is still that one.",
    ),
]
_ETAG = [
    ResponseHeader(
        name="ETag",
        description="Changes whenever the mapping does; send it as `If-Match` to change no other.",
        documentation_only=True,
    )
]
PairName = Annotated[str, Meta(min_length=1, max_length=600)]
SimpleMappings = Annotated[
    dict[PairName, PairName | Annotated[list[PairName], Meta(min_length=1, max_length=50)]],
    Meta(
        max_length=1000,
        description="Pairs: our field, `entity.field`, and theirs, `resource.path`; a list for several.",
    ),
]


# --- requests


class MappingsBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The whole mapping: pairs that aren't in it are given up.

    A pair that is there already, or in a template, keeps how its value is calculated.
    """

    venue_id: UUID
    mappings: SimpleMappings


class TrialBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Mappings to try, and records to try them on."""

    mappings: SimpleMappings
    sample_data: Annotated[
        dict[Annotated[str, Meta(max_length=100)], dict[str, Any]],
        Meta(description="A record for each entity of ours (or resource of theirs, to try a pull)."),
    ]
    direction: Annotated[
        Literal["push", "pull"], Meta(description="`push`: from ours to theirs; `pull`: the other way.")
    ] = "push"
    venue_id: Annotated[
        UUID | None, Meta(description="Whose mapping says how values are calculated; else the templates do.")
    ] = None


class TemplateBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The template to apply; without one, that which suits the venue best."""

    venue_id: UUID
    template_id: UUID | None = None


class UndoBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The version to bring back; without one, what the last change replaced."""

    venue_id: UUID
    version: Annotated[int, Meta(ge=1, le=_LARGEST_VERSION)] | None = None


_VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"
_TEMPLATE = "9a3f0d52-8c1e-5d0b-8a77-61d7a5f0c3b2"
_PAIRS = {"event.name": "item.name", "customer.email": "customer.email_address"}
MappingsRequest = Annotated[MappingsBody, body_of(two_pairs={"venueId": _VENUE, "mappings": _PAIRS})]
TrialRequest = Annotated[
    TrialBody,
    body_of(
        an_event={
            "mappings": {"event.name": "item.name"},
            "sampleData": {"event": {"name": "Rock Concert"}},
        }
    ),
]
TemplateRequest = Annotated[
    TemplateBody,
    body_of(the_one_that_suits={"venueId": _VENUE}, this_one={"venueId": _VENUE, "templateId": _TEMPLATE}),
]
UndoRequest = Annotated[
    UndoBody, body_of(the_last_change={"venueId": _VENUE}, a_version={"venueId": _VENUE, "version": 3})
]


# --- answers


class Fields(Struct, frozen=True):
    """What mappings may name. An entity goes only with the resources of `pairs`."""

    source: Annotated[list[str], Meta(description="Our fields, as `entity.field`.")]
    target: Annotated[list[str], Meta(description="Theirs, as `resource.path`.")]
    pairs: Annotated[dict[str, list[str]], Meta(description="For each entity, the resources it goes with.")]
    required: Annotated[
        list[str], Meta(description="Their fields that a new record can't do without, where it is mapped.")
    ]


class FieldsAnswer(Struct, frozen=True):
    data: Fields
    success: Literal[True] = True


class BrokenPair(Struct, frozen=True):
    """A pair that is left out of syncs, and why."""

    source: str
    target: str
    message: str


class Mappings(Struct, frozen=True, rename="camel"):
    """The mapping in use. `templateId` is null for a mapping of the venue's own."""

    mappings: dict[str, str | list[str]]
    template_id: UUID | None
    template_applied_at: datetime | None
    template: Annotated[
        str | None, Meta(description="The template in use, or that the venue's own mapping began with.")
    ]
    broken: list[BrokenPair]


class MappingsAnswer(Struct, frozen=True):
    data: Mappings
    success: Literal[True] = True


class Applied(Struct, frozen=True, rename="camel"):
    template_id: UUID | None
    template: str | None
    because: Annotated[str | None, Meta(description="Why it is this template.")]


class AppliedAnswer(Struct, frozen=True):
    message: str
    data: Applied
    success: Literal[True] = True


class MadeValue(Struct, frozen=True):
    """Where a value comes from, how it is made, and where that is written.

    `layer` is the template the rule was written in, `venue` for the venue's own mapping, or `request` for a
    pair that nobody has yet.
    """

    source: str
    target: str
    rule: Literal["copied", "query", "calculated", "constant", "values", "link", "list"]
    expression: Annotated[str | None, Meta(description="How it is calculated.")]
    written: Annotated[Any, Meta(description="The rule as a template writes it: a path, or keys.")] = None
    reads: Annotated[list[str], Meta(description="The fields it looks at.")] = []
    outcome: Annotated[
        Literal["made", "default", "absent", "not wanted", "passed over", "failed"],
        Meta(
            description="What came of it: a value, its default, nothing, nothing because its condition "
            "doesn't hold, a value that another rule's goes before, or an error."
        ),
    ] = "made"
    before: Annotated[Any, Meta(description="The value it started from; null for none.")] = None
    after: Annotated[Any, Meta(description="The value that came of it; null for none.")] = None
    why: Annotated[str, Meta(description="Why, as a sentence; empty when there is nothing to say.")] = ""
    layer: Annotated[str, Meta(description="Whose rule it is.")] = ""
    version: Annotated[int | None, Meta(description="Of the venue's own mapping; else null.")] = None
    file: Annotated[str | None, Meta(description="The template's file; null without one.")] = None
    line: Annotated[int | None, Meta(description="Its line there.")] = None
    items: Annotated[
        list[dict[str, Any]], Meta(description="How the items of a list are made, each rule as these are.")
    ] = []


class TriedMapping(Struct, frozen=True):
    """One mapping that was tried on a record."""

    entity: Annotated[str, Meta(description="Ours.")]
    resource: Annotated[str, Meta(description="Theirs.")]
    wanted: Annotated[
        bool, Meta(description="Whether a sync would take the record: the mapping's condition holds.")
    ]
    condition: Annotated[str | None, Meta(description="The condition; null when there is none.")]


class LayerRule(Struct, frozen=True):
    """One rule of the mapping in use."""

    source: str
    target: str
    direction: Annotated[str, Meta(description="Which way the mapping goes: push, pull or bidirectional.")]
    written: Annotated[Any, Meta(description="The rule as a template writes it: a path, or keys.")]
    layer: Annotated[str, Meta(description="The template it was written in, or `venue`.")]
    version: Annotated[int | None, Meta(description="Of the venue's own mapping; else null.")]
    file: Annotated[str | None, Meta(description="The template's file; null without one.")]
    line: Annotated[int | None, Meta(description="Its line there.")]
    broken: Annotated[str | None, Meta(description="Why it is left out of syncs; null when it isn't.")]


class MappingLayers(Struct, frozen=True):
    """The mapping in use by its layers."""

    layers: Annotated[list[str], Meta(description="The lowest first; `venue` is the venue's own.")]
    version: Annotated[int | None, Meta(description="Of the venue's own mapping; null without one.")]
    rules: Annotated[list[LayerRule], Meta(description="All rules, in their order.")]
    changes: Annotated[
        list[dict[str, Any]],
        Meta(
            description="What the venue's own mapping has different from the template it began with, as a "
            "template would write it that extends that one: null is taken away."
        ),
    ]


class MappingLayersAnswer(Struct, frozen=True):
    data: MappingLayers
    success: Literal[True] = True


class Problem(Struct, frozen=True):
    field: str
    message: str


class TrialResult(Struct, frozen=True):
    """What the mappings make of the records. Ids of linked records are made up."""

    original: dict[str, dict[str, Any]]
    mapped: dict[str, Any]
    rules: list[MadeValue]
    problems: Annotated[
        list[Problem], Meta(description="Why a record couldn't be mapped, or saving would be refused.")
    ]
    records: Annotated[list[TriedMapping], Meta(description="What was tried, and whether it is wanted.")]


class TrialAnswer(Struct, frozen=True):
    data: TrialResult
    success: Literal[True] = True


class Successor(Struct, frozen=True):
    """A field that may have taken another's place."""

    path: Annotated[str, Meta(description="The field, as pairs write it.")]
    score: Annotated[float, Meta(description="How likely it is, from 0 to 1.")]
    evidence: Annotated[list[str], Meta(description="What speaks for it, in sentences.")]
    doubts: Annotated[list[str], Meta(description="What speaks against it.")]


class Proposal(Struct, frozen=True):
    """A pair whose field isn't known any more, and the field most like it, which nobody has mapped."""

    source: str
    target: str
    gone: str
    proposal: str | None
    proposals: Annotated[list[Successor], Meta(description="All that are like it, the likeliest first.")]
    protected: Annotated[
        Literal["money", "identity", "consent"] | None,
        Meta(description="Why a person decides whatever the evidence; null when it isn't for such a reason."),
    ]
    because: Annotated[
        Literal["unknown", "missed", "refused"],
        Meta(
            description="The manifest doesn't know the field, records don't have it any more, or the "
            "provider answered to a write that it doesn't know it."
        ),
    ] = "unknown"


class MovedPair(Struct, frozen=True):
    """A pair that names the field which surely took the place of the one that is gone."""

    source: str
    target: str
    gone: str
    to: Annotated[str, Meta(description="The field that took its place.")]


class HealReport(Struct, frozen=True):
    checked: int
    applied: Annotated[list[MovedPair], Meta(description="Pairs that were healed by themselves; undo does.")]
    broken: list[Proposal]
    mended: Annotated[list[list[str]], Meta(description="Pairs that were broken and no longer are.")]


class HealAnswer(Struct, frozen=True):
    message: str
    data: HealReport
    success: Literal[True] = True


class VersionRow(Struct, frozen=True):
    """What a mapping was from a change on."""

    version: int
    reason: str
    template_id: UUID | None
    mappings: dict[str, str | list[str]]
    heal_plan: dict[str, Any] | None
    created_by: str | None
    created_at: datetime


class VersionsAnswer(Struct, frozen=True):
    data: list[VersionRow]
    meta: PageMeta
    success: Literal[True] = True


# --- routes

_NAMED = ("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "INTEGRATION_NOT_FOUND")
_CHANGING = (*_NAMED, "TEMPLATE_NOT_FOUND", "CONFLICT", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE")


@get(
    f"{MAPPINGS}/fields",
    operation_id="listMappingFields",
    summary="What mappings may name",
    description="The fields of both sides, as mappings write them. They are the same for every venue.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            FieldsAnswer,
            "The fields of both sides.",
            Example(
                summary="some fields",
                value={
                    "success": True,
                    "data": {
                        "source": ["event.id", "event.name", "customer.id", "customer.email"],
                        "target": ["item.id", "item.name", "customer.id", "customer.email_address"],
                        "pairs": {"event": ["item"], "customer": ["customer"]},
                        "required": ["item.name"],
                    },
                },
            ),
        ),
        **error_answers("VALIDATION_ERROR", "INVALID_PROVIDER"),
    },
)
async def list_fields(context: Shared, provider: ProviderName) -> FieldsAnswer:
    known = mappings.fields_of(context.catalog, provider)
    resources = {name: list(each) for name, each in known.resources.items()}
    return FieldsAnswer(Fields(list(known.sources), list(known.targets), resources, list(known.required)))


@get(
    f"{MAPPINGS}/mappings",
    operation_id="getMappings",
    summary="Look at a mapping",
    description="As pairs, with those that are broken. How a value is calculated isn't shown: try the "
    "mapping for that.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    response_headers=_ETAG,
    responses={
        200: good(
            MappingsAnswer,
            "The mapping in use.",
            Example(
                summary="a template's",
                value={
                    "success": True,
                    "data": {
                        "mappings": _PAIRS,
                        "templateId": _TEMPLATE,
                        "templateAppliedAt": "2026-01-15T10:00:00Z",
                        "template": "music-venue",
                        "broken": [
                            {
                                "source": "customer.phone",
                                "target": "customer.phone_number",
                                "message": "`customer` has no field `phone_number`",
                            }
                        ],
                    },
                },
            ),
        ),
        **error_answers(*_NAMED, "TEMPLATE_NOT_FOUND"),
    },
)
async def get_mappings(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> Response[MappingsAnswer]:
    request.user.require(venue_id)
    async with context.sessions() as session:
        now = await mappings.look(context, session, venue_id, provider)
    broken = [BrokenPair(source, target, why) for (source, target), why in now.broken.items()]
    shown = Mappings(_simple(now.pairs), now.template_id, now.applied_at, now.template, broken)
    return Response(MappingsAnswer(shown), headers={"ETag": now.etag})


@put(
    f"{MAPPINGS}/mappings",
    operation_id="updateMappings",
    summary="Change a mapping",
    description="The integration gets a mapping of its own, and `templateId` becomes null. The next sync "
    "looks at every record, and one that is running begins again; what the change makes no difference to "
    "isn't written.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    response_headers=_ETAG,
    responses={
        200: good(
            MessageAnswer,
            "Changed.",
            Example(summary="changed", value={"success": True, "message": "Mappings updated successfully"}),
        ),
        **error_answers(*_CHANGING, "MAPPING_INVALID", "REQUIRED_FIELD_MISSING"),
    },
)
async def update_mappings(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: MappingsRequest,
    if_match: IfMatch = None,
) -> Response[MessageAnswer]:
    request.user.require(data.venue_id)
    asked = Asked(data.venue_id, provider, if_match)
    now = await mappings.replace_pairs(context, actor, asked, data.mappings)
    return _tagged(MessageAnswer("Mappings updated successfully"), now)


@post(
    f"{MAPPINGS}/mappings/test",
    operation_id="testMappings",
    summary="Try a mapping on sample records",
    description="Nothing is saved, and no provider is asked.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            TrialAnswer,
            "What it makes of them.",
            Example(
                summary="an event",
                value={
                    "success": True,
                    "data": {
                        "original": {"event": {"name": "Rock Concert"}},
                        "mapped": {"item": {"name": "Rock Concert"}},
                        "rules": [
                            {
                                "source": "event.name",
                                "target": "item.name",
                                "rule": "copied",
                                "expression": None,
                                "written": "name",
                                "reads": ["event.name"],
                                "outcome": "made",
                                "before": "Rock Concert",
                                "after": "Rock Concert",
                                "why": "",
                                "layer": "default",
                                "version": None,
                                "file": "juniper/default.yaml",
                                "line": 14,
                                "items": [],
                            }
                        ],
                        "problems": [
                            {
                                "field": "item.price",
                                "message": "no sample has the field it is calculated from",
                            }
                        ],
                        "records": [
                            {"entity": "event", "resource": "item", "wanted": True, "condition": None}
                        ],
                    },
                },
            ),
        ),
        **error_answers(
            "VALIDATION_ERROR",
            "MAPPING_INVALID",
            "INVALID_PROVIDER",
            "INTEGRATION_NOT_FOUND",
            "TEMPLATE_NOT_FOUND",
            "PAYLOAD_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    },
)
async def try_mappings(
    request: CallerRequest, context: Shared, provider: ProviderName, data: TrialRequest
) -> TrialAnswer:
    if data.venue_id is not None:
        request.user.require(data.venue_id)
    trial = await mappings.try_pairs(
        context, provider, data.mappings, data.sample_data, data.direction, data.venue_id
    )
    return TrialAnswer(
        TrialResult(
            data.sample_data,
            trial.mapped,
            [_made(rule) for told in trial.explained for rule in told.rules],
            [Problem(each.field, each.message) for each in trial.problems],
            [
                TriedMapping(told.entity, told.resource, told.wanted, told.condition)
                for told in trial.explained
            ],
        )
    )


def _made(rule: Explained) -> MadeValue:
    return MadeValue(
        source=rule.source,
        target=rule.target,
        rule=rule.kind,
        expression=rule.expression,
        written=rule.rule,
        reads=list(rule.reads),
        outcome=rule.outcome,
        before=None if rule.before is ABSENT else rule.before,
        after=None if rule.after is ABSENT else rule.after,
        why=rule.why,
        **_place(rule.origin),
        items=[each.to_json() for each in rule.items],
    )


def _place(origin: Origin | None) -> dict[str, Any]:
    """Return whose rule it is, and where it is written."""
    if origin is None:
        return {}
    written = {"file": origin.file, "line": origin.line} if origin.file else {"file": None, "line": None}
    return {"layer": origin.layer, "version": origin.version, **written}


@get(
    f"{MAPPINGS}/mappings/layers",
    operation_id="getMappingLayers",
    summary="Where each rule of a mapping comes from",
    description="A venue begins with a template, which may extend another one, and may have a mapping of its "
    "own over them. Each rule is told with the layer it is from: a template's file and line, or the version "
    "of the venue's own mapping. That one doesn't change with the template it began with.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            MappingLayersAnswer,
            "The layers, and the rules.",
            Example(
                summary="one rule of the venue's own",
                value={
                    "success": True,
                    "data": {
                        "layers": ["default", "music-venue", "venue"],
                        "version": 2,
                        "rules": [
                            {
                                "source": "customer.email",
                                "target": "customer.email_address",
                                "direction": "bidirectional",
                                "written": "email_address",
                                "layer": "default",
                                "version": None,
                                "file": "juniper/default.yaml",
                                "line": 70,
                                "broken": None,
                            },
                            {
                                "source": "customer.city",
                                "target": "customer.note",
                                "direction": "bidirectional",
                                "written": "note",
                                "layer": "venue",
                                "version": 2,
                                "file": None,
                                "line": None,
                                "broken": None,
                            },
                        ],
                        "changes": [
                            {"entity": "customer", "resource": "customer", "fields": {"city": "note"}}
                        ],
                    },
                },
            ),
        ),
        **error_answers(*_NAMED, "TEMPLATE_NOT_FOUND"),
    },
)
async def get_layers(
    request: CallerRequest, context: Shared, provider: ProviderName, venue_id: VenueId
) -> MappingLayersAnswer:
    request.user.require(venue_id)
    async with context.sessions() as session:
        seen = await mappings.look_at_layers(context, session, venue_id, provider)
    rules = [
        LayerRule(
            source=each.rule.source,
            target=each.rule.target,
            direction=each.direction,
            written=each.rule.written,
            **_place(each.origin),
            broken=each.broken,
        )
        for each in seen.rules
    ]
    changes = [dict(each) for each in seen.changes]
    return MappingLayersAnswer(MappingLayers(list(seen.layers), seen.version, rules, changes))


def _applied(message: str) -> Any:
    return good(
        AppliedAnswer,
        "Applied.",
        Example(
            summary="applied",
            value={
                "success": True,
                "message": message,
                "data": {
                    "templateId": _TEMPLATE,
                    "template": "music-venue",
                    "because": "the venue's type is `music_venue`",
                },
            },
        ),
    )


@post(
    f"{MAPPINGS}/mappings/apply-template",
    operation_id="applyTemplate",
    summary="Apply a mapping template",
    description="Without `templateId`, the one that suits the venue by its type or the words in its name.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    response_headers=_ETAG,
    responses={200: _applied("Template applied successfully"), **error_answers(*_CHANGING, "NOT_FOUND")},
)
async def apply_template(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: TemplateRequest,
    if_match: IfMatch = None,
) -> Response[AppliedAnswer]:
    request.user.require(data.venue_id)
    asked = Asked(data.venue_id, provider, if_match)
    now = await mappings.apply_template(context, actor, asked, data.template_id)
    applied = Applied(now.template_id, now.template, now.because)
    answer = AppliedAnswer("Template applied successfully", applied)
    return _tagged(answer, now)


@post(
    f"{MAPPINGS}/mappings/reset",
    operation_id="resetMappings",
    summary="Go back to the default template",
    description="The provider's default template replaces the venue's own mapping, which stays in the "
    "history.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    response_headers=_ETAG,
    responses={200: _applied("Mappings reset to default template"), **error_answers(*_CHANGING)},
)
async def reset_mappings(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: VenueRequest,
    if_match: IfMatch = None,
) -> Response[AppliedAnswer]:
    request.user.require(data.venue_id)
    now = await mappings.reset(context, actor, Asked(data.venue_id, provider, if_match))
    applied = Applied(now.template_id, now.template, now.because)
    answer = AppliedAnswer("Mappings reset to default template", applied)
    return _tagged(answer, now)


@post(
    f"{MAPPINGS}/mappings/heal",
    operation_id="healMappings",
    summary="Look for mapped fields that are gone",
    description="Pairs one of whose fields isn't known any more are marked and left out of syncs, and the "
    "fields most like it are proposed with reasons: accept one, or map it anew. One that is surely the same "
    "takes its place by itself when recent records of both sides agree, never for money, identity and "
    "consent. Nothing is removed, and each change is a version that can be undone.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    responses={
        200: good(
            HealAnswer,
            "What was found.",
            Example(
                summary="one is gone",
                value={
                    "success": True,
                    "message": "1 of 12 mapped pairs have a field that isn't known any more. They are left "
                    "out of syncs until somebody maps them anew; nothing was removed; 1 name the field that "
                    "took another's place",
                    "data": {
                        "checked": 12,
                        "applied": [
                            {
                                "source": "event.url",
                                "target": "item.pageUrl",
                                "gone": "item.pageUrl",
                                "to": "item.page_url",
                            }
                        ],
                        "broken": [
                            {
                                "source": "customer.email",
                                "target": "customer.email_adress",
                                "gone": "customer.email_adress",
                                "proposal": "customer.email_address",
                                "proposals": [
                                    {
                                        "path": "customer.email_address",
                                        "score": 0.72,
                                        "evidence": ["the names share `email`"],
                                        "doubts": [],
                                    }
                                ],
                                "protected": "identity",
                                "because": "unknown",
                            }
                        ],
                        "mended": [],
                    },
                },
            ),
        ),
        **error_answers(*_CHANGING),
    },
)
async def heal_mappings(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: VenueRequest,
    if_match: IfMatch = None,
) -> HealAnswer:
    request.user.require(data.venue_id)
    healed = await mappings.heal(context, actor, Asked(data.venue_id, provider, if_match))
    applied = [
        MovedPair(each.gone.source, each.gone.target, each.gone.gone, each.to) for each in healed.moved
    ]
    broken = [_proposal(each) for each in healed.broken]
    report = HealReport(healed.checked, applied, broken, [list(pair) for pair in healed.mended])
    return HealAnswer(healed.message, report)


def _proposal(gone: GonePair) -> Proposal:
    proposals = gone.plan.proposals if gone.plan else ()
    return Proposal(
        gone.source,
        gone.target,
        gone.gone,
        gone.proposal,
        [
            Successor(
                f"{gone.side}.{each.path}", round(each.score, 3), list(each.evidence), list(each.doubts)
            )
            for each in proposals
        ],
        gone.plan.protected if gone.plan else None,
        gone.because,
    )


@get(
    f"{MAPPINGS}/mappings/history",
    operation_id="listMappingVersions",
    summary="The versions of a mapping",
    description="Newest first. Every change makes one, and each can be brought back.",
    tags=TAGS,
    opt=READERS,
    security=TOKEN,
    responses={
        200: good(
            VersionsAnswer,
            "Versions, newest first.",
            Example(
                summary="one version",
                value={
                    "success": True,
                    "data": [
                        {
                            "version": 2,
                            "reason": "updated",
                            "template_id": None,
                            "mappings": _PAIRS,
                            "heal_plan": None,
                            "created_by": "44444444-4444-4444-8444-444444444444",
                            "created_at": "2026-01-15T11:00:00Z",
                        }
                    ],
                    "meta": {"total": 2, "limit": 1, "offset": 0, "next_cursor": "WyIyIl0"},
                },
            ),
        ),
        **error_answers(*_NAMED),
    },
)
async def list_versions(
    request: CallerRequest,
    context: Shared,
    provider: ProviderName,
    venue_id: VenueId,
    limit: Limit = 50,
    offset: Offset = 0,
    cursor: CursorText = None,
) -> VersionsAnswer:
    request.user.require(venue_id)
    return await _versions(context, venue_id, provider, limit, offset, cursor)


async def _versions(
    context: Context, venue_id: UUID, provider: str, limit: int, offset: int, cursor: str | None
) -> VersionsAnswer:
    context.catalog.connector(provider)
    before = read_cursor(cursor, [Annotated[int, Meta(ge=0, le=_LARGEST_VERSION)]])
    async with context.sessions() as session:
        page = await mappings.history(
            session, venue_id, provider, limit=limit, offset=offset, before=before[0] if before else None
        )
    rows = [
        VersionRow(
            version=row.version,
            reason=row.reason,
            template_id=row.template_id,
            mappings=_simple(pairs_of(row.mappings["mappings"])),
            heal_plan=row.heal_plan,
            created_by=row.created_by,
            created_at=row.created_at,
        )
        for row in page.rows
    ]
    return VersionsAnswer(rows, page_meta(page, limit, offset))


@post(
    f"{MAPPINGS}/mappings/undo",
    operation_id="undoMappings",
    summary="Bring back an earlier mapping",
    description="The version becomes the newest one again. Undoing an undo brings back what was undone.",
    tags=TAGS,
    opt=MANAGERS,
    security=TOKEN,
    status_code=200,
    response_headers=_ETAG,
    responses={
        200: good(
            MessageAnswer,
            "Brought back.",
            Example(
                summary="brought back", value={"success": True, "message": "Mappings restored successfully"}
            ),
        ),
        **error_answers(*_CHANGING, "NOT_FOUND"),
    },
)
async def undo_mappings(
    request: CallerRequest,
    context: Shared,
    actor: Acting,
    provider: ProviderName,
    data: UndoRequest,
    if_match: IfMatch = None,
) -> Response[MessageAnswer]:
    request.user.require(data.venue_id)
    now = await mappings.restore(context, actor, Asked(data.venue_id, provider, if_match), data.version)
    return _tagged(MessageAnswer("Mappings restored successfully"), now)


def _simple(pairs: dict[str, list[str]]) -> dict[str, str | list[str]]:
    """Write pairs as callers do: a list only for several."""
    return {source: targets if len(targets) > 1 else targets[0] for source, targets in pairs.items()}


def _tagged(answer: Answer, now: Current) -> Response[Answer]:
    return Response(answer, headers={"ETag": now.etag})


HANDLERS = (
    list_fields,
    get_mappings,
    get_layers,
    update_mappings,
    try_mappings,
    apply_template,
    reset_mappings,
    heal_mappings,
    list_versions,
    undo_mappings,
)
