"""What the parts of the Mailchimp stand-in share: accounts, problem documents, checks, pages, choices."""

import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter
from typing import Any

import orjson

from tests.sandbox.core import Answer, Call, RefusedError, SandboxClock
from tests.sandbox.courier import Letter
from tests.sandbox.money import CURRENCIES
from tests.sandbox.shelf import Json, Ordered, Rank, Shelf

Handler = Callable[["World", Call], Answer]
Query = Mapping[str, str]

DATA_CENTRE = "us6"
DEFAULT_COUNT = 10
MOST_A_PAGE = 1000
LONGEST_ID = 50
PROBLEM = "application/problem+json; charset=utf-8"
PROBLEM_TYPE = "https://mailchimp.com/developer/marketing/docs/errors/"
NO_CONTENT = Answer(204, b"")
INVALID = "The resource submitted could not be validated. For field-specific details, see the 'errors' array."
NOT_FOUND = "The requested resource could not be found."

# status -> title and detail, where a call does not say it better
TITLES: Mapping[int, tuple[str, str]] = {
    400: ("Bad Request", "Your request could not be processed."),
    401: (
        "API Key Invalid",
        "Your API key may be invalid, or you've attempted to access the wrong datacenter.",
    ),
    403: ("Forbidden", "You are not permitted to access this resource."),
    404: ("Resource Not Found", NOT_FOUND),
    405: ("Method Not Allowed", "The requested method and resource are not compatible."),
    414: ("Resource Nesting Too Deep", "The sub-resource requested is nested too deeply."),
    415: ("Unsupported Media Type", "The content type must be application/json."),
    422: ("Invalid Method Override", "The X-HTTP-Method-Override request method is invalid."),
    426: ("Upgrade Required", "Your request did not comply with our TLS requirements."),
    429: ("Too Many Requests", "You have exceeded the limit of 10 simultaneous connections."),
    500: ("Internal Server Error", "An unexpected internal error has occurred. Please contact Support."),
    503: ("Service Unavailable", "The API is unavailable at the moment."),
}

# What the documentation leaves open; a control call changes a choice.
CHOICES: Mapping[str, Any] = {
    "metadata_scheme": "OAuth",
    "concurrent": 10,
    "call_seconds": 0.005,
    "erased_are_barred": True,
    "archived_are_new": True,
    "archived_are_listed": True,
    "unknown_merge_fields": "ignore",
    "longest_merge_text": 255,
    "double_optin_needs_pending": True,
    "since_is_inclusive": False,
    "product_put": False,
    "webhooks_are_signed": True,
    "batch_seconds": 2.0,
    "batch_polls": True,
    "results_per_file": 100,
}


def _status_and_change(member: Json) -> str:
    return f"{member['status']} {member['last_changed']}"


def _members() -> Shelf:
    return Shelf(
        {
            "added": itemgetter("web_id"),
            **{name: itemgetter(name) for name in ("last_changed", "timestamp_opt", "timestamp_signup")},
            "status": _status_and_change,
        },
        {"hash": itemgetter("id"), "contact": itemgetter("contact_id"), "status": itemgetter("status")},
    )


def _email_hash(customer: Json) -> str:
    return str(customer["email_address"]).lower()


def _customer_id(order: Json) -> str:
    return str(order["customer"]["id"])


def _by_arrival(_: Json) -> int:
    return 0


@dataclass(slots=True)
class Audience:
    """One list. Members are kept by their short id, which stays when the address changes."""

    document: Json
    members: Shelf = field(default_factory=_members)
    merge_fields: dict[str, Json] = field(default_factory=dict)  # by tag
    tags: dict[str, int] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)  # hashes
    webhooks: dict[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class Store:
    """One shop; nothing of it exists outside."""

    document: Json
    products: Shelf = field(default_factory=lambda: Shelf({"added": _by_arrival}))
    customers: Shelf = field(default_factory=lambda: Shelf({"added": _by_arrival}, {"email": _email_hash}))
    orders: Shelf = field(default_factory=lambda: Shelf({"added": _by_arrival}, {"customer": _customer_id}))


@dataclass(slots=True)
class Batch:
    """An asynchronous batch. `results` are filled as its operations are executed."""

    document: Json
    operations: list[Json]
    order: list[int]
    submitted: float
    stage: int = 0
    results: list[Json] = field(default_factory=list)
    completed: float | None = None
    archive: bytes = b""


@dataclass(slots=True)
class Account:
    """One user's account."""

    id: str
    dc: str = DATA_CENTRE
    role: str = "owner"
    disabled: bool = False
    audiences: dict[str, Audience] = field(default_factory=dict)
    stores: dict[str, Store] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    unfinished: dict[str, Batch] = field(default_factory=dict)
    batch_webhooks: dict[str, Json] = field(default_factory=dict)


class World:
    """The state behind the API.

    `dispatch` runs one call of a batch: account, method, path, query, body.
    """

    def __init__(
        self,
        clock: SandboxClock,
        effect: Callable[[str], None],
        dispatch: Callable[[Account, str, str, Query, str], Answer],
    ) -> None:
        self.clock = clock
        self.effect = effect
        self.dispatch = dispatch
        self.accounts: dict[str, Account] = {}
        self.choices: Json = dict(CHOICES)
        self.random = random.Random(20_261_124)
        self.links: dict[str, tuple[str, str, float]] = {}  # token -> account, batch, end
        self.deliveries: list[Json] = []
        self.send: Callable[[Letter], None] = lambda _: None
        self.secrets: dict[str, str] = {}  # of webhooks, which show them once
        self._numbers = 0

    def new_id(self, length: int = 10) -> str:
        """Return a fresh id of hexadecimal digits."""
        return f"{self.random.getrandbits(length * 4):0{length}x}"

    def number(self) -> int:
        """Return the next number, for `web_id` and such."""
        self._numbers += 1
        return 100_000 + self._numbers

    def stamp(self) -> str:
        """Return the time of now as it is written, to the second."""
        return iso(self.clock.now())

    def new_account(self, name: str, dc: str = DATA_CENTRE) -> Account:
        """Register an account without an audience."""
        made = self.accounts[name] = Account(name, dc)
        return made


def iso(seconds: float) -> str:
    """Write Unix seconds as `2025-10-09T08:53:20+00:00`; such texts sort by time."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


# Errors.


def problem(status: int, detail: str | None = None, title: str | None = None, **more: Any) -> Answer:
    """Word an error; its `instance` is added when it is sent."""
    usual = TITLES.get(status, TITLES[500])
    body = {
        "type": PROBLEM_TYPE,
        "title": title or usual[0],
        "status": status,
        "detail": detail or usual[1],
        **more,
    }
    return Answer(status, body, {}, PROBLEM)


def refused(status: int, detail: str | None = None, title: str | None = None) -> RefusedError:
    """Build what a handler raises to answer with an error."""
    return RefusedError(problem(status, detail, title))


def invalid(errors: Sequence[Json], detail: str = INVALID) -> RefusedError:
    """Build the refusal of a body, with what is wrong field by field."""
    return RefusedError(problem(400, detail, "Invalid Resource", errors=list(errors)))


def fault(where: str, message: str) -> Json:
    """Word one entry of `errors`."""
    return {"field": where, "message": message}


# Who calls, and with what.


def account_of(call: Call) -> Account:
    """Return whose key or token called."""
    account: Account = call.state["account"]
    return account


def query_of(call: Call) -> Query:
    """Return the query; the last of equal names counts."""
    return dict(call.query)


def flag_in(query: Query, name: str) -> bool:
    """Tell whether a switch in the query is on."""
    return query.get(name, "").lower() in ("true", "1")


_NAMES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "NULL",
}


def mistyped(given: Json, types: Mapping[str, type], where: str = "") -> list[Json]:
    """Return an entry for every known field with a value of another type; unknown fields pass."""
    found = []
    for name, wanted in types.items():
        if name not in given:
            continue
        value = given[name]
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            message = f"Schema describes {_NAMES[wanted]}, {_NAMES[type(value)]} found instead"
            found.append(fault(f"{where}{name}", message))
    return found


def missing(given: Json, required: Iterable[str], where: str = "") -> list[Json]:
    """Return an entry for every required field that is absent or empty."""
    return [
        fault(f"{where}{name}", "This value should not be blank.")
        for name in required
        if given.get(name) in (None, "")
    ]


def check(given: Json, types: Mapping[str, type], required: Iterable[str] = (), where: str = "") -> None:
    """Refuse a body with missing or mistyped fields, all of them named."""
    if found := missing(given, required, where) + mistyped(given, types, where):
        raise invalid(found)


def body_of(call: Call, types: Mapping[str, type], required: Iterable[str] = ()) -> Json:
    """Return the JSON object sent, checked."""
    kind = call.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if call.body and kind != "application/json":
        raise refused(415)
    try:
        body = orjson.loads(call.body or b"{}")
    except ValueError as error:
        raise refused(
            400, "We encountered an unspecified JSON parsing error.", "JSON Parse Exception"
        ) from error
    if not isinstance(body, dict):
        raise invalid([fault("", f"Schema describes object, {_NAMES[type(body)]} found instead")])
    check(body, types, required)
    return body


def objects_in(given: Json, name: str) -> list[Json]:
    """Return a list of objects inside a checked body, empty when it is absent."""
    value = given.get(name, [])
    for place, entry in enumerate(value):
        if not isinstance(entry, dict):
            message = f"Schema describes object, {_NAMES[type(entry)]} found instead"
            raise invalid([fault(f"{name}.item:{place}", message)])
    return list(value)


def check_id(given: Json, where: str = "id") -> None:
    """Refuse an id of the caller's own choice that is too long."""
    if len(str(given.get("id", ""))) > LONGEST_ID:
        message = f"This value is too long. It should have {LONGEST_ID} characters or less."
        raise invalid([fault(where, message)])


def check_currency(given: Json) -> None:
    """Refuse a currency that is not three capitals known to the stand-in."""
    code = given.get("currency_code")
    if code is not None and (code != code.upper() or code.lower() not in CURRENCIES):
        raise invalid([fault("currency_code", "This value is not a valid currency.")])


_EMAIL = re.compile(r"[^@\s,;]+@[^@\s,;.]+(\.[^@\s,;.]+)+")


def check_email(given: Json, name: str = "email_address") -> None:
    """Refuse what cannot be an address."""
    if name in given and not _EMAIL.fullmatch(given[name]):
        raise RefusedError(problem(400, "Please provide a valid email address.", "Invalid Resource"))


def one_of(given: Mapping[str, Any], name: str, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices; an absent one passes."""
    if name in given and given[name] not in choices:
        message = f"Value must be one of: {', '.join(sorted(choices))}"
        raise invalid([fault(name, message)])


# Pages.


def moment(query: Query, name: str) -> float | None:
    """Read an ISO 8601 time from the query."""
    if name not in query:
        return None
    try:
        found = datetime.fromisoformat(query[name])
    except ValueError as error:
        raise invalid([fault(name, "This value is not a valid datetime.")]) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def bounds_of(world: World, query: Query, name: str) -> tuple[str | None, str | None]:
    """Read `since_<name>` and `before_<name>` as the first and the last second that fit."""
    since, before = moment(query, f"since_{name}"), moment(query, f"before_{name}")
    if world.choices["since_is_inclusive"]:
        first, last = since and math.ceil(since), before and math.floor(before)
    else:
        first, last = since and math.floor(since) + 1, before and math.ceil(before) - 1
    return (None if first is None else iso(first)), (None if last is None else iso(last))


def window(query: Query) -> tuple[int, int]:
    """Read `offset` and `count`."""
    found = {}
    for name, usual, most in (("offset", 0, 10**9), ("count", DEFAULT_COUNT, MOST_A_PAGE)):
        text = query.get(name, str(usual))
        if not text.isdecimal() or int(text) > most:
            raise refused(400, f"`{name}` must be a whole number from 0 to {most}.", "Invalid Resource")
        found[name] = int(text)
    return found["offset"], found["count"]


def page_of(name: str, query: Query, found: Sequence[Json], **more: Any) -> Answer:
    """Answer with a page of a collection that is small or was filtered already."""
    offset, count = window(query)
    return Answer(200, {name: found[offset : offset + count], **more, "total_items": len(found)})


def page_of_shelf(name: str, query: Query, shelf: Shelf, **more: Any) -> Answer:
    """Answer with a page of everything on a shelf, in its first order."""
    ordered = next(iter(shelf.orders.values()))
    return page_of_range(name, query, shelf, Range(ordered), descending=False, **more)


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of an order, both ends included."""

    ordered: Ordered
    low: Rank | None = None
    high: Rank | None = None

    def names(self, *, descending: bool, skip: int = 0) -> Iterator[str]:
        """Yield the ids in the stretch."""
        walk = self.ordered.walk(descending=descending, at_least=self.low, at_most=self.high, skip=skip)
        return (key[2] for key in walk)

    def __len__(self) -> int:
        return self.ordered.count(at_least=self.low, at_most=self.high)


def page_of_range(
    name: str, query: Query, shelf: Shelf, stretch: Range, *, descending: bool, **more: Any
) -> Answer:
    """Answer with a page of a stretch, at the cost of the page."""
    offset, count = window(query)
    names = islice(stretch.names(descending=descending, skip=offset), count)
    found = [shelf.objects[each] for each in names]
    return Answer(200, {name: found, **more, "total_items": len(stretch)})


def shaped(query: Query, answer: Answer) -> Answer:
    """Leave in an answer what `fields` names, or what `exclude_fields` does not."""
    wanted, unwanted = query.get("fields"), query.get("exclude_fields")
    if wanted and unwanted:
        raise refused(400, "Only one of fields and exclude_fields may be given.")
    if answer.status != 200 or not isinstance(answer.body, dict) or not (wanted or unwanted):
        return answer
    tree = _tree(str(wanted or unwanted))
    cut: Callable[[Any, Json], Any] = _only if wanted else _without
    return Answer(200, cut(answer.body, tree), answer.headers, answer.content_type)


def _tree(paths: str) -> Json:
    tree: Json = {}
    for path in paths.split(","):
        inner = tree
        for step in path.strip().split("."):
            inner = inner.setdefault(step, {})
    return tree


def _only(value: Any, tree: Json) -> Any:
    if not tree:
        return value
    if isinstance(value, list):
        return [_only(entry, tree) for entry in value]
    if isinstance(value, dict):
        return {name: _only(value[name], inner) for name, inner in tree.items() if name in value}
    return value


def _without(value: Any, tree: Json) -> Any:
    if isinstance(value, list):
        return [_without(entry, tree) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without(inner, tree[name]) if name in tree else inner
        for name, inner in value.items()
        if name not in tree or tree[name]
    }
