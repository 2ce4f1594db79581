"""Find what became of a field that is gone.

`plan_heal` looks for the successor of one field, `plan_heals` for those of all fields a resource lost. Three
kinds of evidence count: how alike the names are, whether type and shape fit, and whether linked records
carry the same values before and after. A candidate applies by itself only when nothing speaks against it;
in doubt a person decides. docs/explanation/healing.md says why, and
docs/how-to/ask-what-became-of-a-field.md what may be given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from engine.fields import FIELD_TYPES, Field
from engine.naming import QUALIFYING, Likeness, Protection, likeness, protected_as, read_name
from engine.observing import family, leaves, shape_of, type_of_values

Status = Literal["applies", "proposed", "broken", "unchanged"]
Named = str | Field | Mapping[str, Any] | Sequence[Any]  # a path, or a path with what is known of it
Names = Iterable[Named] | Mapping[str, Any]
Samples = Sequence[Mapping[str, Any]] | Mapping[str, Any]

MOST_PROPOSALS = 5
LEAST_SCORE = 0.34  # of a proposal
MARGIN = 0.12  # between what applies by itself and the next best
ENOUGH = 5  # different telling values that agree, for values to decide
TELLING_LENGTH = 4  # characters: shorter texts and numbers agree by chance
SAME = 0.75  # how well the types of a field before and now fit, for it to be the same still
ALL = 0.98  # of the values that agree, for values to decide
ALIGNED = 0.5  # of the values of some field that agree, for records to be taken for the same by their order
SCALARS = frozenset(FIELD_TYPES) - {"money", "list", "object", "any"}

# How well two types go together when they aren't the same; any other two: 0.35.
_FITS: Mapping[frozenset[str], float] = {
    frozenset(pair.split()): fit
    for pair, fit in {
        "text id": 0.95, "text email": 0.95, "text phone": 0.95, "text url": 0.95, "text currency": 0.95,
        "integer decimal": 0.9, "date timestamp": 0.85, "text timestamp": 0.8, "text date": 0.8,
        "integer timestamp": 0.75, "decimal money": 0.9, "integer money": 0.9, "text decimal": 0.6,
        "text integer": 0.6, "integer id": 0.85, "boolean text": 0.55, "boolean timestamp": 0.5,
        "object money": 0.8, "object decimal": 0.55, "object integer": 0.5, "object text": 0.6,
        "list text": 0.6, "list object": 0.75, "list id": 0.6, "id url": 0.5, "object id": 0.55,
        "object timestamp": 0.45, "list integer": 0.45, "boolean integer": 0.45,
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Proposal:
    """A field that may be the successor. `score` is from 0 to 1; `evidence` and `doubts` are sentences."""

    path: str
    score: float
    applies: bool
    evidence: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "score": round(self.score, 3),
            "applies": self.applies,
            "evidence": list(self.evidence),
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True, slots=True)
class HealPlan:
    """What is to become of a field: proposals, the best first.

    `status`: `applies` (the first proposal does by itself), `proposed` (a person decides), `broken` (there is
    no successor), `unchanged` (the field is still there). `protected` says why it never applies by itself.
    """

    field: str
    status: Status
    proposals: tuple[Proposal, ...] = ()
    protected: Protection | None = None

    @property
    def successor(self) -> str | None:
        """The path that takes the field's place by itself, or None."""
        return self.proposals[0].path if self.status == "applies" else None

    @property
    def applies(self) -> bool:
        return self.status == "applies"

    def as_dict(self, *, explain: bool = True) -> dict[str, Any]:
        """Return it as JSON; without `explain`, without the evidence."""
        shown = [each.as_dict() for each in self.proposals]
        if not explain:
            shown = [{key: each[key] for key in ("path", "score", "applies")} for each in shown]
        return {
            "field": self.field,
            "status": self.status,
            "successor": self.successor,
            "protected": self.protected,
            "proposals": shown,
        }


# ---- what is given -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A field as it was given: its type, words that describe it, and whether it may be written by itself."""

    path: str
    type: str
    words: str = ""
    protected: bool = False
    samples: tuple[Any, ...] = ()
    new: bool | None = None  # whether it wasn't there before; None: nobody says


def read_fields(given: Names | None) -> dict[str, _Known]:
    """Return fields by path: names, or path and type, or groups as `plan_heal` describes."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        given = [_with_path(path, each) for path, each in given.items()]
    return {each.path: each for each in map(_read_field, given) if each.path}


def _with_path(path: str, given: Any) -> Mapping[str, Any] | Field:
    if isinstance(given, Field):
        return replace(given, path=path)
    return {**given, "path": path} if isinstance(given, Mapping) else {"path": path, "type": given}


def _read_field(given: Named) -> _Known:
    if isinstance(given, str):
        return _Known(given, "any")
    if isinstance(given, Field):
        return _Known(given.path, family(given.type), protected=given.unit is not None)
    if not isinstance(given, Mapping):
        given = dict(zip(("path", "type"), given, strict=False))
    path = next((given[key] for key in ("path", "name", "field") if given.get(key) is not None), None)
    if not isinstance(path, str):
        raise ValueError("a field needs a `path`")
    type_ = given.get("type")
    if isinstance(type_, list | tuple):  # as JSON Schema writes what may be null
        type_ = next((each for each in type_ if each != "null"), None)
    words = " ".join(str(given[key]) for key in ("label", "description") if given.get(key))
    samples = given.get("samples")
    known = family(type_) if isinstance(type_, str) else "any"
    if known == "any" and isinstance(samples, list):
        known = type_of_values(samples)
    new = given.get("new")
    return _Known(
        path,
        known,
        words,
        bool(given.get("protected")),
        tuple(samples) if isinstance(samples, list) else (),
        new if isinstance(new, bool) else None,
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """Values by path; at one index, all belong to the same record, surely if they are `linked` by a key."""

    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    linked: bool = False

    def of(self, path: str) -> Sequence[Any]:
        return self.columns.get(path, ())


def _read_samples(before: Samples | None, after: Samples | None, link_by: str) -> tuple[_Values, _Values]:
    """Return both sides' values with linked records at the same index.

    Records are linked by `link_by` where both sides have it with the same values, else by their order.
    """
    sides = [_by_path(each or ()) for each in (before, after)]
    ids = [[str(value) for value in side.get(link_by, ())] for side in sides]
    if ids[0] and ids[1] and set(ids[0]) & set(ids[1]):
        places = [{identity: at for at, identity in enumerate(each)} for each in ids]
        both = [identity for identity in places[0] if identity in places[1]]
        sides = [
            {
                path: [
                    values[place[identity]] if place[identity] < len(values) else None for identity in both
                ]
                for path, values in side.items()
            }
            for side, place in zip(sides, places, strict=True)
        ]
        return _Values(sides[0], linked=True), _Values(sides[1], linked=True)
    return _Values(sides[0]), _Values(sides[1])


def _by_path(samples: Samples) -> dict[str, Sequence[Any]]:
    if not isinstance(samples, Mapping):
        return _columns(samples)
    if all(isinstance(each, list | tuple) for each in samples.values()):
        return dict(samples)
    return _columns([samples])  # one record


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    columns: dict[str, list[Any]] = {}
    for at, record in enumerate(records):
        for path, value in leaves(record):
            column = columns.setdefault(path, [None] * len(records))
            if column[at] is None:
                column[at] = value
    return cast("dict[str, Sequence[Any]]", columns)


# ---- equal values ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Agreement:
    """How values of linked records agree: of `compared`, `equal` are the same, `like` written otherwise."""

    compared: int = 0
    equal: int = 0
    like: int = 0
    telling: int = 0  # different equal values that hardly agree by chance
    how: str = ""  # what differs where they are alike
    linked: bool = True  # the values are known to be of the same records

    @property
    def share(self) -> float:
        return self.equal / self.compared if self.compared else 0.0

    @property
    def loose_share(self) -> float:
        return (self.equal + self.like) / self.compared if self.compared else 0.0

    @property
    def decides(self) -> bool:
        return self.linked and self.telling >= ENOUGH and self.share >= ALL

    @property
    def denies(self) -> bool:
        return self.linked and self.compared >= 3 and self.loose_share < 0.5


def _agreement(old: Sequence[Any], new: Sequence[Any], *, linked: bool) -> _Agreement:
    compared = equal = like = 0
    telling: set[str] = set()
    how: dict[str, int] = {}
    for one, other in zip(old, new, strict=False):
        if one in (None, "") or other in (None, ""):
            continue
        compared += 1
        if type(one) is type(other) and one == other:
            equal += 1
            if _tells(one):
                telling.add(str(one))
        elif difference := _difference(one, other):
            like += 1
            how[difference] = how.get(difference, 0) + 1
    return _Agreement(
        compared, equal, like, len(telling), max(how, key=lambda each: how[each], default=""), linked
    )


def _tells(value: Any) -> bool:
    return not isinstance(value, bool | list | Mapping) and len(str(value)) >= TELLING_LENGTH


def _difference(one: Any, other: Any) -> str | None:
    """Say how two values that mean the same differ, or None when they don't."""
    if isinstance(one, bool) and isinstance(other, bool):
        return "the opposite" if one != other else None
    inner = list(other.values()) if isinstance(other, Mapping) else other if isinstance(other, list) else ()
    if one in inner:
        return "within a group" if isinstance(other, Mapping) else "within a list"
    if isinstance(one, str | int | float) and isinstance(other, str | int | float):
        if str(one).strip().casefold() == str(other).strip().casefold():
            return "of another type" if type(one) is not type(other) else "in other letters"
        numbers = [_number(each) for each in (one, other)]
        if numbers[0] is not None and numbers[1] is not None and numbers[0] and numbers[1]:
            ratio = numbers[1] / numbers[0]
            for times in (100, 1000, 60):
                if abs(ratio - times) < 1e-9 * times:
                    return f"{times} times as much"
                if abs(ratio * times - 1) < 1e-9:
                    return f"a {times}th"
        digits = ["".join(char for char in str(each) if char.isdigit()) for each in (one, other)]
        if len(digits[0]) >= 7 and digits[0] == digits[1]:
            return "written differently"
    return None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# ---- the plan ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A candidate with all that is known of it."""

    known: _Known
    score: float
    name: Likeness
    values: _Agreement
    new: bool | None  # None: nobody knows
    hinted: bool
    evidence: tuple[str, ...]
    doubts: tuple[str, ...]


def plan_heal(
    old_path: str,
    candidates: Names,
    *,
    old_type: str | None = None,
    before: Names | None = None,
    samples_before: Samples | None = None,
    samples_after: Samples | None = None,
    renamed: Mapping[str, str] | None = None,
    resource: str = "",
    link_by: str = "id",
    protected: Collection[str] = (),
    label: str = "",
) -> HealPlan:
    """Return what took the place of the field `old_path`, which is gone.

    `candidates` are the fields there are now: names, `{path: type}`, `Field`s, or groups with `path` and, if
    known, `type`, `label`, `description`, `protected` and `new` (it wasn't there before). Type words of other
    systems (`string`, `number`, `datetime`, `array`) are understood; a type may be unknown.

    What more is known makes the plan surer, and none of it is needed: `old_type`; `before`, the fields there
    were when `old_path` still was (in the same forms), since what was there already is hardly a successor;
    `samples_before` and `samples_after`, records or `{path: [values]}` of the time before and of now, linked
    by their `link_by` or else by their order; `renamed`, what the provider says itself, old path to new;
    `resource`, the name of what the fields belong to; `protected`, paths that a person always decides about;
    `label`, words that describe the old field.
    """
    if isinstance(samples_before, list | tuple) and not any(isinstance(e, Mapping) for e in samples_before):
        samples_before = {old_path: samples_before}  # values of this field alone
    given = _Given(
        read_fields(candidates),
        read_fields(before) if before is not None else None,
        *_read_samples(samples_before, samples_after, link_by),
        renamed or {},
        resource,
        protected,
        link_by,
    )
    return _plan(old_path, given, old_type, label)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a question tells, read once for all of its fields."""

    there: Mapping[str, _Known]
    earlier: Mapping[str, _Known] | None
    values_before: _Values
    values_after: _Values
    renamed: Mapping[str, str]
    resource: str
    protected: Collection[str]
    link_by: str

    def shown(self, old_path: str) -> bool:
        """Say whether records tell what there was before: more than the field that is gone and their key."""
        columns, now = self.values_before.columns, self.values_after.columns
        others = [path for path in columns if path not in (old_path, self.link_by)]
        return any(path in self.there or path in now for path in others)

    def linked(self, had: Sequence[Any]) -> bool:
        """Say whether values of both sides are of the same records.

        Where only their order says so, something has to agree: nothing does when they are of other ones.
        """
        if self.values_before.linked:
            return True
        pairs = [(had, each) for each in self.values_after.columns.values()]
        pairs += [
            (column, self.values_after.of(path))
            for path, column in self.values_before.columns.items()
            if self.values_after.of(path)
        ]
        return any(
            each.loose_share >= ALIGNED and each.telling + each.like > 0
            for each in (_agreement(one, other, linked=True) for one, other in pairs)
        )


def _plan(old_path: str, given: _Given, old_type: str | None = None, label: str = "") -> HealPlan:
    resource, earlier = given.resource, given.earlier
    old = (earlier or {}).get(old_path) or _Known(old_path, "any", label)
    had = given.values_before.of(old_path)
    old = replace(old, type=_type(old_type or old.type, had or old.samples), words=label or old.words)
    if old_path in given.there and _fit(old.type, given.there[old_path].type) >= SAME:
        return HealPlan(old_path, "unchanged")
    old_shapes = _shapes(had or old.samples)
    linked = given.linked(had)
    shown = given.shown(old_path)
    weighed = []
    for path, each in given.there.items():
        if path == old_path:
            continue  # it is of another type: what is within it may be the successor
        has = given.values_after.of(path)
        kind = _type(each.type, has)
        new = each.new if earlier is None else path not in earlier
        if new is None and shown:
            new = path not in given.values_before.columns
        agreement = _agreement(had or old.samples, has or each.samples, linked=linked and bool(had and has))
        weighed.append(
            _weigh(
                old,
                each if kind == each.type else replace(each, type=kind),
                resource,
                agreement,
                (old_shapes, _shapes(has or each.samples)),
                new=new,
                hinted=given.renamed.get(old_path) == path,
            )
        )
    weighed.sort(key=lambda each: (-each.score, each.known.path))
    why: Protection | None = protected_as(old_path, old.type, resource)
    private = why is not None or old.protected or old_path in given.protected
    proposals = [
        Proposal(
            each.known.path,
            each.score,
            at == 0 and not private and _is_sure(old, each, weighed[1:], resource, given.protected),
            each.evidence,
            each.doubts,
        )
        for at, each in enumerate(weighed[:MOST_PROPOSALS])
        if each.score >= LEAST_SCORE
    ]
    status: Status = "broken" if not proposals else "applies" if proposals[0].applies else "proposed"
    return HealPlan(old_path, status, tuple(proposals), why or ("identity" if private else None))


def plan_heals(
    old_fields: Names,
    new_fields: Names,
    *,
    samples_before: Samples | None = None,
    samples_after: Samples | None = None,
    renamed: Mapping[str, str] | None = None,
    resource: str = "",
    link_by: str = "id",
    protected: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[HealPlan]:
    """Return a plan for each of the `old_fields` that isn't among the `new_fields` (or those in `only`).

    A new field takes the place of one old field: where two claim it, the likelier one keeps it and the other
    doesn't apply by itself. Otherwise as `plan_heal`.
    """
    old, new = read_fields(old_fields), read_fields(new_fields)
    gone = [path for path in old if path not in new or _fit(old[path].type, new[path].type) < SAME]
    samples = _read_samples(samples_before, samples_after, link_by)
    given = _Given(new, old, *samples, renamed or {}, resource, protected, link_by)
    plans = [_plan(path, given) for path in gone]
    plans = _shared_out(plans)
    return [plan for plan in plans if only is None or plan.field in only]


def _shared_out(plans: Sequence[HealPlan]) -> list[HealPlan]:
    """Give each candidate to the plan that wants it most."""
    claims: dict[str, list[float]] = {}
    for plan in plans:
        for each in plan.proposals[:1]:
            claims.setdefault(each.path, []).append(each.score)
    made = []
    for plan in plans:
        proposals = [
            replace(
                each,
                score=each.score * 0.75,
                applies=False,
                doubts=(*each.doubts, "another field that is gone is more like it"),
            )
            if each.path in claims and each.score < max(claims[each.path])
            else replace(each, applies=each.applies and not _is_contested(claims.get(each.path, ())))
            for each in plan.proposals
        ]
        # What another field took stays last of its likes: the order changes only where scores do.
        proposals.sort(key=lambda each: -each.score)
        first = bool(proposals) and proposals[0].applies
        proposals = [replace(each, applies=at == 0 and first) for at, each in enumerate(proposals)]
        status: Status = plan.status if plan.status == "broken" else "applies" if first else "proposed"
        made.append(replace(plan, status=status, proposals=tuple(proposals)))
    return made


def _is_contested(scores: Sequence[float]) -> bool:
    return len(scores) > 1 and sorted(scores)[-2] > max(scores) - MARGIN


def _type(given: str | None, values: Sequence[Any]) -> str:
    known = family(given)
    return type_of_values(values) if known == "any" and values else known


def _fit(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if "any" in (one, other):
        return 0.9
    return _FITS.get(frozenset((one, other)), 0.35)


def _shapes(values: Sequence[Any]) -> frozenset[str]:
    return frozenset(shape for value in values[:50] if (shape := shape_of(value)) is not None)


def _weigh(
    old: _Known,
    new_field: _Known,
    resource: str,
    values: _Agreement,
    shapes: tuple[frozenset[str], frozenset[str]],
    *,
    new: bool | None,
    hinted: bool,
) -> _Weighed:
    name = likeness(old.path, new_field.path, resource)
    evidence: list[str] = []
    doubts = list(name.against)
    score = name.score
    if name.same:
        evidence.append("the same words, written differently")
    elif name.shared:
        evidence.append(f"the names share {', '.join(f'`{word}`' for word in name.shared)}")
    described = _described(old, new_field)
    if described > score:
        score = 0.5 * score + 0.5 * described
        evidence.append("its description says so")
    fit = _fit(old.type, new_field.type)
    # A number may well be called a count, and an instant be said to be at some time.
    plain = (
        {"count"} if {old.type, new_field.type} <= {"integer", "decimal"} else {"at"} if fit == 1 else set()
    )
    if any(word not in plain for word in name.changed):
        score *= 0.8
    score *= 0.55 + 0.45 * fit
    if "any" not in (old.type, new_field.type):
        if fit == 1:
            evidence.append(f"both are of type {old.type}")
        else:
            doubts.append(f"{old.type} became {new_field.type}")
    if shapes[0] and shapes[1]:
        if shapes[0] & shapes[1]:
            evidence.append(f"values of both look like {', '.join(sorted(shapes[0] & shapes[1]))}")
            score = min(1.0, score * 1.05)
        else:
            doubts.append(f"values looked like {_listed(shapes[0])} and now like {_listed(shapes[1])}")
            score *= 0.8
    if new is True:
        evidence.append("it wasn't there before")
        score = 0.85 * score + 0.12
    elif new is False:
        doubts.append("it was there before, beside the field that is gone")
        score *= 0.6
    score, said, doubted = _by_values(score, values)
    evidence += said
    doubts += doubted
    if hinted:
        score = max(score, 0.97)
        evidence.insert(0, "the provider says so: the manifest lists it as renamed")
    return _Weighed(new_field, min(score, 1.0), name, values, new, hinted, tuple(evidence), tuple(doubts))


def _described(old: _Known, new: _Known) -> float:
    """Return how well a label or description of one fits the other's name."""
    return max(
        (
            0.9 * likeness(one, other).score
            for one, other in ((old.words, new.path), (old.path, new.words))
            if one and other
        ),
        default=0.0,
    )


def _listed(shapes: Collection[str]) -> str:
    return " or ".join(sorted(shapes))


def _by_values(score: float, values: _Agreement) -> tuple[float, list[str], list[str]]:
    evidence: list[str] = []
    doubts: list[str] = []
    if not values.compared:
        return score, evidence, doubts
    same = f"{values.equal} of {values.compared} linked records have the same value"
    if not values.linked and not values.equal and not values.like:
        doubts.append("no value is the same: records of before and after may be different ones")
    elif values.denies:
        doubts.append(f"only {same}")
        score *= 0.45
    elif values.share >= 0.5:
        evidence.append(f"{same}, {values.telling} of them telling ones")
        sure = min(1.0, values.telling / ENOUGH)
        score = max(score, score + (1 - score) * 0.8 * values.share * sure)
    elif values.loose_share >= 0.5:
        doubts.append(f"{values.like} of {values.compared} linked records have it {values.how}")
        score += (1 - score) * 0.5 * values.loose_share
    return score, evidence, doubts


def _is_sure(
    old: _Known, best: _Weighed, others: Sequence[_Weighed], resource: str, protected: Collection[str]
) -> bool:
    """Say whether the best candidate may take the field's place with nobody asked."""
    known = best.known
    if protected_as(known.path, known.type, resource) or known.protected or known.path in protected:
        return False
    if best.name.opposed or best.new is False or not _same_kind(old.type, known.type):
        return False
    if read_name(old.path).items != read_name(known.path).items or best.values.denies:
        return False
    if best.values.compared and best.values.share < ALL:
        return False
    if best.hinted:
        return True
    if any(each.score > best.score - MARGIN for each in others):
        return False
    if any(each.name.same or each.values.decides for each in others):
        return False
    if best.name.same:
        return True
    if best.new and best.name.same_but_time and old.type == known.type == "timestamp":
        return True
    # Of two names, one with a word such as `remaining` may be of something that has the same value for now.
    if ({*read_name(old.path).words} ^ {*read_name(known.path).words}) & QUALIFYING:
        return False
    return best.values.decides and best.new is True and not best.name.against and best.name.score >= 0.5


def _same_kind(one: str, other: str) -> bool:
    """Say whether a value of one type is a value of the other: unknown types are taken for the same."""
    if "any" in (one, other):
        return {one, other} <= {*SCALARS, "any"}
    return one == other and one in SCALARS
