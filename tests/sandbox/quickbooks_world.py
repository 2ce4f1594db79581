"""What the parts of the QuickBooks stand-in share: companies, tables, faults, and answers as XML."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from xml.sax.saxutils import escape, quoteattr
from zoneinfo import ZoneInfo

import orjson

from tests.sandbox.core import Answer, Call, RefusedError, SandboxClock
from tests.sandbox.shelf import Json, Key, Ordered

NAMESPACE = "http://schema.intuit.com/finance/v3"
ZONE = ZoneInfo("America/Los_Angeles")

MESSAGES = {
    "500": "Unsupported Operation",
    "600": "Duplicate Request Id",
    "610": "Object Not Found",
    "1040": "Too many batch items",
    "2010": "Request has invalid or unsupported property",
    "2020": "Required param missing, need to supply the required value for the API",
    "2170": "Invalid value",
    "2500": "Invalid Reference Id",
    "4000": "Error parsing query",
    "4001": "Invalid query",
    "5010": "Stale Object Error",
    "6000": "A business validation error has occurred while processing your request",
    "6070": "Amount calculation incorrect in the request",
    "6140": "Duplicate Document Number Error",
    "6190": "Subscription period has ended or canceled or there was a billing problem",
    "6210": "Account Period Closed",
    "6240": "Duplicate Name Exists Error",
}


@dataclass(slots=True)
class Behaviour:
    """What the documentation leaves open, or a company may have set. Changed by a control call."""

    refresh_rotation_seconds: int = 86_400  # a refresh token this old is replaced when it is used
    refresh_grace_seconds: int = 0  # how long a replaced refresh token is still taken
    retry_after: int | None = None  # sent with 429 when set
    throttle_code: str = "003001"
    batch_most: int = 30
    batch_reversed: bool = False  # answers in the opposite order
    clash_replays: bool = False  # a request id with another body: the first answer, not error 600
    star_has_sku: bool = False  # `SELECT *` brings an item's Sku
    inactive_reads_fail: bool = False  # reading an inactive row by its id: error 610
    name_part_most: int = 100  # the schema files say 25
    type_fixed: bool = True  # an item's Type never changes
    unique_doc_numbers: bool = False
    subscription_ended: bool = False
    book_close_date: str | None = None

    def change(self, given: Json) -> Json:
        """Take what the control call sent; return everything. Raise ValueError for what makes no sense."""
        known = {entry.name for entry in fields(self)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"no behaviour {name!r}; there are {sorted(known)}")
            old = getattr(self, name)
            if value is not None and old is not None and type(value) is not type(old):
                raise ValueError(f"{name} is {type(old).__name__}")
            setattr(self, name, value)
        return {name: getattr(self, name) for name in sorted(known)}


# Rows.


def seconds_of(text: str) -> int:
    """Read an ISO time as Unix seconds; one without offset is the company's."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=ZONE)).timestamp())


def iso(seconds: float) -> str:
    """Write Unix seconds as the company's local time with its offset, whole seconds."""
    return datetime.fromtimestamp(int(seconds), ZONE).isoformat()


def _updated(row: Json) -> tuple[int, int]:
    return seconds_of(row["MetaData"]["LastUpdatedTime"]), int(row["Id"])


def _folded(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("Address", value.get("value"))
    return None if value is None else str(value).casefold()


class Table:
    """All rows of one entity, in the order they changed, and looked up by some of their fields."""

    def __init__(self, looked_up: Iterable[str] = ()) -> None:
        self.rows: dict[str, Json] = {}
        self.gone: dict[str, Json] = {}
        self.changed = Ordered()  # ranks are (seconds, id)
        self.active = Ordered()
        self.deleted = Ordered()
        self.found_by: dict[str, dict[str, dict[str, None]]] = {name: {} for name in looked_up}
        self._last_id = 0

    def new_id(self) -> str:
        """Return the next id."""
        self._last_id += 1
        return str(self._last_id)

    def put(self, row: Json) -> None:
        """Store a row, or what replaces it."""
        name = row["Id"]
        if (old := self.rows.get(name)) is not None:
            self._unfile(old)
        self.rows[name] = row
        self.changed.put(name, _updated(row))
        if row.get("Active", True):
            self.active.put(name, _updated(row))
        else:
            self.active.remove(name)
        for column, ids in self.found_by.items():
            if (value := _folded(row.get(column))) is not None:
                ids.setdefault(value, {})[name] = None

    def remove(self, name: str, when: str) -> None:
        """Delete a row; what is left of it is known to change data capture."""
        self._unfile(self.rows.pop(name))
        self.changed.remove(name)
        self.active.remove(name)
        rest = {"domain": "QBO", "status": "Deleted", "Id": name, "MetaData": {"LastUpdatedTime": when}}
        self.gone[name] = rest
        self.deleted.put(name, _updated(rest))

    def _unfile(self, row: Json) -> None:
        for column, ids in self.found_by.items():
            if (value := _folded(row.get(column))) is not None:
                ids[value].pop(row["Id"])
                if not ids[value]:
                    del ids[value]

    def since(self, seconds: int, most: int) -> list[Json]:
        """Return at most `most` rows changed or deleted since, the longest ago first."""
        low = (seconds, 0)
        changed: list[Key] = list(islice(self.changed.walk(at_least=low), most))
        deleted: list[Key] = list(islice(self.deleted.walk(at_least=low), most))
        keys = sorted([*((key[0], False, key[2]) for key in changed), *((k[0], True, k[2]) for k in deleted)])
        return [(self.gone if dead else self.rows)[name] for _, dead, name in keys[:most]]


@dataclass(slots=True)
class Company:
    """One company and all that is its own."""

    realm: str
    name: str
    country: str = "US"
    currency: str = "USD"
    tables: dict[str, Table] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)  # display name -> entity, id
    hidden: set[tuple[str, str]] = field(default_factory=set)  # what a running batch created

    def table(self, entity: str) -> Table:
        """Return the rows of an entity."""
        return self.tables[entity]


@dataclass(slots=True)
class World:
    """The state behind the API."""

    clock: SandboxClock
    effect: Callable[[str], None]
    behaviour: Behaviour = field(default_factory=Behaviour)
    companies: dict[str, Company] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], tuple[bytes, Answer | None]] = field(default_factory=dict)
    # Company, entity, id, what was done, and when.
    tell: Callable[[Company, str, str, str, str], None] = lambda *_: None

    def stamp(self) -> str:
        """Return the time of a write."""
        return iso(self.clock.now())

    def answered(self, body: Json) -> Answer:
        """Answer with a body and the server's time."""
        return Answer(200, {**body, "time": timed(self.clock.now())})


def timed(seconds: float) -> str:
    """Write the time of an answer, with milliseconds."""
    return datetime.fromtimestamp(seconds, ZONE).isoformat(timespec="milliseconds")


def company_of(call: Call) -> Company:
    """Return whose token called."""
    company: Company = call.state["company"]
    return company


# Faults.


def fault(code: str, detail: str, element: str = "", *, kind: str = "ValidationFault") -> Json:
    """Word a fault: a message by its code, and what exactly is wrong."""
    message = MESSAGES.get(code, detail)
    entry = {"Message": message, "Detail": f"{message} : {detail}", "code": code, "element": element}
    return {"Fault": {"Error": [entry], "type": kind}}


def refused(
    code: str, detail: str, element: str = "", *, kind: str = "ValidationFault", status: int = 400
) -> RefusedError:
    """Build what a handler raises to answer with a fault."""
    return RefusedError(Answer(status, fault(code, detail, element, kind=kind)))


def missing(element: str) -> RefusedError:
    """Refuse for want of a field."""
    return refused("2020", f"Required parameter {element} is missing in the request", element)


def body_of(call: Call) -> Json:
    """Return the JSON object sent."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refused("500", f"Content type {kind or 'none'} is not taken here.", status=415)
    try:
        body = orjson.loads(call.body)
    except ValueError as error:
        raise refused("2170", "The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise refused("2170", "The body must be an object.")
    return body


# XML, which is what a caller gets who does not ask for JSON.

_ATTRIBUTES = frozenset(
    {"domain", "sparse", "status", "startPosition", "maxResults", "totalCount", "bId", "time", "type", "name"}
    | {"code", "element"}
)


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nodes(tag: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _nodes(tag, item)
    elif isinstance(value, Mapping):
        attributes = "".join(
            f" {key}={quoteattr(_scalar(item))}"
            for key, item in value.items()
            if key in _ATTRIBUTES and not isinstance(item, Mapping | list)
        )
        yield f"<{tag}{attributes}>"
        for key, item in value.items():
            if key == "value":
                yield escape(_scalar(item))
            elif key not in _ATTRIBUTES or isinstance(item, Mapping | list):
                yield from _nodes(key, item)
        yield f"</{tag}>"
    elif value is not None:
        yield f"<{tag}>{escape(_scalar(value))}</{tag}>"


def as_xml(body: Json) -> bytes:
    """Write an answer as XML; what JSON calls `value` is the text, what the schema calls so attributes."""
    inside = "".join(_nodes("IntuitResponse", body)).replace("<IntuitResponse", "", 1)
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    return f'{head}<IntuitResponse xmlns="{NAMESPACE}"{inside}'.encode()


class Windows:
    """Counts calls by minute or month, and how many are under way."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], tuple[int, int]] = {}
        self.under_way: dict[tuple[str, ...], int] = {}

    def take(self, name: tuple[str, ...], window: int, most: float) -> bool:
        """Count a call in a window; False when it is one too many."""
        at, count = self._counts.get(name, (window, 0))
        count = count + 1 if at == window else 1
        self._counts[name] = (window, count)
        return count <= most


def month_of(seconds: float) -> int:
    """Number the calendar months."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.year * 12 + moment.month
