"""A manifest as frozen objects: everything parsed and compiled once, nothing looked up again per record.

`load_connector` and `load_platform` read a file strictly and report everything that is wrong with it at once.
What each key means to an author is written in `schemas/`; here it says what the engine does with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from hashlib import sha256
from pathlib import Path as FilePath
from typing import Any, Literal, TypeVar, cast

from engine.calls import Place, Request
from engine.diagnostics import Diagnostic, in_file_order
from engine.documents import Document, Steps, read_document, refused
from engine.errors import ExpressionError, ManifestError
from engine.expressions import Expression, Path, Template, has_braces, template_faults
from engine.fields import Field, FieldCatalog
from engine.schema import violations
from engine.signatures import (
    DELIVERED,
    DIGESTS,
    READ_NAMES,
    REQUIRED_NAMES,
    Age,
    Pairs,
    Published,
    Reading,
    SignatureScheme,
    SignedText,
)

T = TypeVar("T")

# What templates of a call may name everywhere; each kind of call knows more.
COMMON_NAMES = frozenset({"credentials", "connection", "now"})
GET_NAMES = COMMON_NAMES | {"id"}
CREATE_NAMES = COMMON_NAMES | {"key", "record"}
WRITE_NAMES = CREATE_NAMES | {"id"}
UPDATE_NAMES = WRITE_NAMES | {"version"}
GONE_NAMES = GET_NAMES | {"record", "version"}  # of calls that put a record away, as it is there
THEN_NAMES = WRITE_NAMES | {"result"}
PART_NAMES = THEN_NAMES | {"value"}
ITEM_NAMES = UPDATE_NAMES | {"number"}  # each record of a call for several
LIST_NAMES = WRITE_NAMES | {"number"}  # each new item of a list within a record
POLL_NAMES = COMMON_NAMES | {"job"}
LOOKUP_NAMES = COMMON_NAMES | {"access_token"}  # of a lookup that signs itself
REVOKE_NAMES = frozenset({"client_id", "client_secret", "access_token", "refresh_token", "connection"})
SUBSCRIBE_NAMES = COMMON_NAMES | {"url", "events", "key"}
SUBSCRIPTION_NAMES = SUBSCRIBE_NAMES | {"subscription"}
REVOKE_EACH_NAMES = REVOKE_NAMES | {"token", "token_type_hint"}  # with `tokens`, of the one a call is for
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# A `;` outside backticks divides what is wrong from what helps.
ADVICE = re.compile(r"; (?=(?:[^`]*`[^`]*`)*[^`]*$)")
BODY = Place("body", "")
ANYWHERE = Path("", ())

Action = Literal[
    "retry",  # again, with backoff
    "wait",  # again, after the time the provider names (or backoff)
    "refresh_credentials",  # refresh once, then again
    "reconnect",  # the run fails: the venue has to connect again
    "reload_and_retry",  # read the record, merge, write again
    "adopt",  # a record with this id is already there: link it and update it
    "recreate",  # the linked record is gone: forget the link and create
    "new_key",  # the key was used for something else: look for what that made, then again under a new one
    "reject",  # this record's own fault; the rest goes on
    "restart_read",  # the cursor is stale: read again from the watermark
    "propose_heal",  # reject, and let healing look at the field named
    "ignore",  # take it as an empty answer
    "fail",  # the run fails
]


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A choice by `type`, with its options as written; the module of that kind builds the object."""

    type: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One request to be filled in.

    Templates see `credentials` (plain ones), `connection`, `id`, `ids`, `key`, `record`, `result`, `now`
    and what `for_each` names, as far as each exists where the call is made, and what `more` adds to them.
    """

    method: str
    path: str  # with {placeholders}, filled from the same names
    query: Template | None = None
    headers: Template | None = None
    body: Template | None = None
    more: Mapping[str, Template] = field(default_factory=dict)  # further names, each may use those before it


@dataclass(frozen=True, slots=True)
class CredentialField:
    """A value the venue types in when connecting."""

    name: str
    title: str
    pattern: str | None = None
    secret: bool = True
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionValue:
    """A plain value kept with an integration, wherever it comes from: the venue, a token answer, a lookup."""

    name: str
    title: str
    pattern: str | None = None
    optional: bool = False
    list: bool = False  # of several values, which a lookup finds and nobody types


@dataclass(frozen=True, slots=True)
class OAuth:
    """The authorization code grant, as this provider has it. URLs may be paths below the server."""

    authorize_url: str
    token_url: str
    scopes: tuple[str, ...] = ()
    scope_separator: str = " "
    pkce: bool = False
    client: Literal["header", "body"] = "header"  # where client id and secret go on the token call
    token_body: Literal["form", "json"] = "form"  # noqa: S105 - an encoding
    authorize_params: Mapping[str, str] = field(default_factory=dict)
    refresh_before_expiry: timedelta = timedelta(minutes=5)
    keep_alive: timedelta | None = None  # a grant isn't left without a refresh for longer
    # Paths in the token answer: of the lifetime in seconds, or of the moment. Neither: it doesn't end.
    expires_in: str | None = "expires_in"
    expires_at: str | None = None
    refresh_expires_in: str | None = None
    refresh_expires_at: str | None = None
    refresh_token: Literal["keeps", "rotates"] = "rotates"  # noqa: S105 - whether using it ends it
    keep: Mapping[str, Expression] = field(default_factory=dict)  # connection values from the token answer
    keep_from_callback: Mapping[str, str] = field(default_factory=dict)  # and from the redirect's parameters
    issuer: str | None = None  # what the redirect's `iss` must be (RFC 9207); None: not looked at
    revoke: CallSpec | None = None  # sees client_id, client_secret, access_token, refresh_token, connection
    revoke_tokens: tuple[str, ...] = ()  # one call for each, which sees token and token_type_hint as well
    revoke_client: Literal["header"] | None = None  # where client id and secret go; None: as written
    revoke_encoding: Literal["json", "form"] = "json"


@dataclass(frozen=True, slots=True)
class AuthMethod:
    """One way to sign requests. Expressions see the credential fields by name."""

    type: Literal["none", "api_key", "bearer", "basic", "oauth2"]
    name: str
    credentials: tuple[CredentialField, ...] = ()
    token: Expression | None = None  # bearer, api_key
    username: Expression | None = None  # basic
    password: Expression | None = None  # basic
    send: Place | None = None  # api_key: `header X-Key` or `query key`
    prefix: str = ""  # api_key: text before the key
    oauth: OAuth | None = None
    keep: Mapping[str, Expression] = field(default_factory=dict)  # connection values from the credentials


@dataclass(frozen=True, slots=True)
class LimitHeaders:
    """Where each answer says how many calls are left, and when they are counted anew."""

    remaining: Place
    reset: Place | None = None
    reset_is: Literal["seconds", "moment"] = "seconds"


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast an account may be called. Rates are calls per second; None means not declared."""

    requests: Mapping[str, float] = field(default_factory=dict)  # by environment
    each_call: float | None = None  # every method and path has this budget of its own
    calls: Mapping[str, float] = field(default_factory=dict)  # or this one, by call as the manifest writes it
    concurrent: int = 4  # calls in flight at once
    read: LimitHeaders | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    attempts: int = 5  # calls in all, the first included
    first_wait: float = 0.5  # seconds; doubles, with full jitter
    longest_wait: float = 30.0
    timeout: float = 30.0  # seconds a call may take


@dataclass(frozen=True, slots=True)
class PriceStep:
    """The price of each one above a number, up to where the next one begins."""

    above: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Costs:
    """What calls cost in a month. Steps are in order; what is below the first one is included."""

    currency: str
    monthly: Decimal = Decimal(0)  # in each month with a call
    calls: tuple[PriceStep, ...] = ()
    megabytes: tuple[PriceStep, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceList:
    """What an operator says of costs: `default` is for providers that nobody has prices for."""

    default: Costs | None = None
    providers: Mapping[str, Costs] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """When all conditions given fit, `then` says what to do. `wait_for`: where the provider says how long."""

    then: Action
    statuses: tuple[tuple[int, int], ...] = ()  # inclusive ranges: 5xx is (500, 599)
    code: tuple[str, ...] = ()
    text: str | None = None  # contained in the message, ignoring case
    header: tuple[str, str] | None = None  # name, value
    when: Expression | None = None  # over the body
    json: bool | None = None  # whether the answer had a JSON body
    wait_for: Place | None = None  # header with seconds, an HTTP date, or Unix time


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """Where the provider writes its errors, and the rules; the first that fits decides."""

    code: Expression | None = None
    message: Expression | None = None
    field: Expression | None = None
    request_id: Place | None = None
    in_success: Expression | None = None  # truthy when a 2xx answer is a failure all the same
    rules: tuple[ErrorRule, ...] = ()


@dataclass(frozen=True, slots=True)
class PageSize:
    send: Place
    at_most: int


@dataclass(frozen=True, slots=True)
class ForEach:
    """Make the read once for each batch of these values."""

    values: Expression  # over {connection, credentials}
    name: str
    at_most: int = 1  # values in a batch; with 1 the name holds the value, else a list


@dataclass(frozen=True, slots=True)
class ReadSpec:
    """A call that answers records: all of them, those changed, or some by id."""

    call: CallSpec
    records: Expression | None = None  # over the body; None: the body is the list (or the record, for `get`)
    record: Expression | None = None  # within each of `records`; None: it is the record
    since: Place | None = None
    until: Place | None = None
    lookback: timedelta = timedelta(0)
    reaches_back: timedelta | None = None  # older than this, `list` is read instead
    changed_at: Expression | None = None  # within each of `records`, when it isn't the resource's own
    deleted: Expression | None = None  # within each of `records`
    pagination: TypeSpec | None = None
    page_size: PageSize | None = None
    pages_at_once: int = 1  # on their way at once
    ids: Place | None = None  # reads by id: where the list of ids goes
    at_most: int = 100  # ids in one call
    for_each: ForEach | None = None
    full_at: int | None = None  # an answer with so many rows was cut: `list` has to be read instead

    def places(self) -> tuple[Place, ...]:
        """Return where values go in a request besides what its templates say."""
        send = self.pagination.options.get("send") if self.pagination else None
        sizes = self.page_size.send if self.page_size else None
        paging = Place.parse(send) if send else None
        return tuple(each for each in (self.since, self.until, sizes, paging) if each is not None)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    send: Place
    at_most: int = 255  # characters


@dataclass(frozen=True, slots=True)
class NewIds:
    """The provider's answer naming the real ids of records sent under temporary ones."""

    records: Expression  # list, over the body
    sent: Path
    given: Path


@dataclass(frozen=True, slots=True)
class WriteSpec:
    """A call that writes one record."""

    call: CallSpec
    record: Place  # where the record goes; `body` is the whole body
    result: Path | None = None  # where the written record is in the answer; None: the body
    new: Mapping[str, Template] = field(
        default_factory=dict
    )  # path to value a new record needs besides its mapped fields
    idempotency_key: IdempotencyKey | None = None
    then: tuple[CallSpec, ...] = ()  # calls that belong to it, made after it succeeded; see `result`


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """How a record is put out of use: by a call, or by values that an ordinary update sets."""

    call: CallSpec | None = None
    values: Mapping[str, Any] = field(default_factory=dict)  # by path
    if_refused: tuple[CallSpec, ...] = ()  # what takes away that which stands in the way


@dataclass(frozen=True, slots=True)
class ListPart:
    """A list within a record whose items have ids of their own: they are paired one by one, not by place."""

    path: Path
    pair_by: Path  # within an item: what we write there, the same in ours and in theirs
    new: Mapping[str, Template] = field(default_factory=dict)  # what a new item needs besides mapped fields
    leave_out: tuple[Path, ...] = ()  # within an item


@dataclass(frozen=True, slots=True)
class FailureList:
    """Records that failed, in a list of their own in the answer."""

    records: Expression  # list, over the body
    pair_by: Path  # the same in what was sent for a record and in each failure
    code: Expression | None = None
    message: Expression | None = None


@dataclass(frozen=True, slots=True)
class WriteManySpec:
    """A call that writes several records, each with an outcome of its own."""

    call: CallSpec
    records: Place  # where the list (or map) goes
    results: Expression | None = None  # over the body: list in the order sent, or map by key
    result: Path | None = None  # where the written record is in each of `results`
    by_key: Literal["idempotency_key", "id"] | None = None  # records is a map keyed like this, results too
    renames: tuple[tuple[Path, Path], ...] = ()  # fields that this call knows by another name
    item: Template | None = None  # what is sent for a record; sees record, key, number, id, version
    body_of_each: Template | None = None  # constant parts of each record, under the mapped fields
    pair_by_id: bool = False  # results come in any order: pair by id (and `new_ids`)
    pair_by: Path | None = None  # results come in any order: the same in what was sent and in the result
    failures: FailureList | None = None
    new_ids: NewIds | None = None
    error: Expression | None = None  # within each of `results`: truthy when this record failed
    error_code: Expression | None = None
    error_message: Expression | None = None
    new: Mapping[str, Template] = field(default_factory=dict)
    at_most: int = 100
    weight: Expression | None = None  # what a record counts against `at_most`; None: 1
    idempotency_key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class JobResults:
    """What became of each operation of a job, as the provider lists it when the job is done."""

    pair_by: Path  # the same in an operation and in its result
    url: Expression | None = None  # over the last answer of `poll`; None: the results are in that answer
    format: Literal["json", "tar_gz_json"] = "json"
    records: Expression | None = None  # the list within a document of results; None: the document is it
    status: Path | None = None  # HTTP status of an operation
    body: Path | None = None  # what the operation was answered; None: the result itself
    body_is: Literal["json", "json_text"] = "json"
    result: Path | None = None  # where the written record is in that


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Many writes handed in together, worked on by the provider in its own time, and looked at until done."""

    submit: CallSpec
    operations: Place  # where the list of operations goes
    job: Path  # where the answer names the job
    poll: CallSpec  # sees `job`
    done: Expression  # over the answer of `poll`
    results: JobResults
    create: Template | None = None  # an operation; sees record, key, number, id, version
    update: Template | None = None
    idempotency_key: IdempotencyKey | None = None
    every: timedelta = timedelta(seconds=5)  # between looks; doubles
    up_to: timedelta = timedelta(minutes=1)
    within: timedelta = timedelta(hours=2)  # then the run ends, and a later one looks again
    at_least: int = 100  # fewer records are written in the ordinary way
    at_most: int = 1000


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of record at the provider."""

    name: str
    id: Path
    fields: FieldCatalog
    own_id: Expression | None = None  # the id a new record will have; sees `record`
    lasting_id: Path | None = None  # an id that stays when `id` changes
    changed_at: Path | None = None
    reference: Path | None = None  # where our own id is kept in their record, if a mapping writes it there
    version: Path | None = None
    where: Expression | None = None  # rows of a read that are this resource
    deleted: Expression | None = None  # truthy when a record that was read is really gone
    list: ReadSpec | None = None
    changes: ReadSpec | None = None
    get: ReadSpec | None = None
    get_many: ReadSpec | None = None
    create: WriteSpec | None = None
    update: WriteSpec | None = None
    delete: WriteSpec | None = None
    archive: ArchiveSpec | None = None
    retire: WriteSpec | None = None  # puts a replaced record out of use
    create_many: WriteManySpec | None = None
    update_many: WriteManySpec | None = None
    write_many: WriteManySpec | None = None  # creates and updates together
    find: ReadSpec | None = None  # reads by content what might be this record already; sees `record`
    write_job: WriteJob | None = None
    parts: Mapping[str, CallSpec] = field(default_factory=dict)  # fields written by a call of their own
    lists: Mapping[str, ListPart] = field(default_factory=dict)  # by path
    leave_out: tuple[Path, ...] = ()  # what was read and isn't sent back, where an update sends all
    # whole: the provider replaces, so read, merge and send all; versioned: read, compare, send the mapped
    # fields with the version that was read
    updates: Literal["sparse", "whole", "versioned"] = "sparse"
    immutable: frozenset[str] = frozenset()  # a change of one of these makes a new record and retires the old
    one_write_at_a_time: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)  # earlier paths and those they are now
    line: int = 0  # where `fields` stands in the file, for messages


def unsent_fields(resource: Resource, sent: Collection[str]) -> Iterator[Field]:
    """Yield the fields a new record can't do without and doesn't get: by a path that is sent, or by `new`."""
    specs = (resource.create, resource.create_many, resource.write_many)
    given = (*sent, *(path for spec in specs if spec for path in spec.new))
    for each in resource.fields.values():
        covered = any(
            path == each.path
            or each.path.startswith(f"{path}.")
            or (each.type == "list" and path.startswith(f"{each.path}[0]"))
            for path in given
        )
        if each.required and not covered:
            yield each


@dataclass(frozen=True, slots=True)
class AfterConnecting:
    """A lookup right after connecting whose answer is kept in `connection`."""

    call: CallSpec
    keep: Mapping[str, Expression]
    methods: frozenset[str] = frozenset()  # only for those ways to sign; none: for all
    signed: bool = True  # False: its own headers authorize it, and see `access_token`
    optional: bool = False  # the provider may forbid it: then its values are left out


@dataclass(frozen=True, slots=True)
class HeaderValue:
    """A value that a delivery carries in a header; the name is in lower case."""

    name: str


EventValue = Expression | HeaderValue


@dataclass(frozen=True, slots=True)
class Probe:
    """What a provider sends to see whether an address is alive. `reply` is over it; None: no body."""

    method: Literal["GET", "HEAD", "POST"]
    when: Expression | None = None
    reply: Expression | None = None
    secret: str | None = None  # known to everybody: the provider signs this probe with it
    reply_json: Template | None = None  # instead of `reply`
    reply_headers: Template | None = None
    sign: SignatureScheme | None = None  # replies see what it makes of the challenge as `signature`
    unsigned: bool = False
    keep: Reading | None = None  # what the provider will sign with
    visit: Expression | None = None  # an address that has to be called, at one of `visit_hosts`
    visit_hosts: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is answered with nothing, whatever is in it."""
        asked = (self.when, self.reply, self.reply_json, self.reply_headers, self.sign, self.keep, self.visit)
        return all(each is None for each in asked)


@dataclass(frozen=True, slots=True)
class EventShape:
    """Where a delivery says what happened. Values are over the delivery, or over what `each` walks."""

    type: EventValue | None
    id: EventValue | None = None
    at: EventValue | None = None
    account: EventValue | None = None
    record: EventValue | None = None
    when: Expression | None = None  # over the body: whether a delivery has this shape
    each: tuple[tuple[str, Expression], ...] = ()  # the first over the body, the rest over those before


@dataclass(frozen=True, slots=True)
class EventAction:
    """What an event asks for. `id` says which record, where it isn't the shape's own."""

    does: Literal["pull", "unlink", "changes", "disconnect", "ignore"]
    resource: str | None = None
    id: EventValue | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """The calls that make a provider send webhooks to a connection; see SUBSCRIPTION_NAMES."""

    create: CallSpec
    id: Expression  # over the answer of `create`
    secret: Expression | None = None  # over it, too: what the provider will sign with
    check: CallSpec | None = None
    alive: Expression | None = None  # over the answer of `check`; None: that it answers
    renew: CallSpec | None = None
    renew_every: timedelta | None = None
    delete: CallSpec | None = None


_TELLING = ("secret_header", "jwt")  # signatures that are as good as a secret, for a while at least


@dataclass(frozen=True, slots=True)
class Webhooks:
    """What a provider sends, how it is proved, and what it asks for."""

    signatures: tuple[SignatureScheme, ...]
    shapes: tuple[EventShape, ...]
    events: Mapping[str, EventAction] = field(default_factory=dict)  # by type, `*` stands for anything
    other_events: Literal["ignore", "fail"] = "ignore"
    probes: tuple[Probe, ...] = ()
    address: Literal["connection", "provider"] = (
        "connection"  # whether each connection has an address of its own
    )
    answer_within: timedelta = timedelta(seconds=5)
    subscription: Subscription | None = None
    acknowledge: str | None = None  # what is answered once a delivery is stored; None: our own words

    @property
    def publishes_keys(self) -> bool:
        """Whether what proves a delivery may have to be fetched."""
        return any(each.keys is not None for each in self.signatures)

    @property
    def secret_headers(self) -> frozenset[str]:
        """The headers, in lower case, that prove a delivery to whoever repeats them."""
        told = (each.read.header for each in self.signatures if each.read and each.type in _TELLING)
        return frozenset(name for name in told if name is not None)


@dataclass(frozen=True, slots=True)
class Connector:
    """A provider, as its manifest describes it."""

    name: str
    title: str
    docs: str
    servers: Mapping[str, str]  # by environment, with placeholders for values of `connection`
    auth: tuple[AuthMethod, ...]
    check: CallSpec
    resources: Mapping[str, Resource]
    headers: Template | None = None
    query: Template | None = None  # parameters of every call
    connection: Mapping[str, ConnectionValue] = field(default_factory=dict)
    encoding: Literal["json", "form"] = "json"
    times: Literal["rfc3339", "epoch_seconds", "epoch_milliseconds"] = "rfc3339"
    limits: Limits = Limits()
    retries: Retries = Retries()
    costs: Costs | None = None
    errors: ErrorRules = ErrorRules()
    account: Expression | None = None  # over `connection`: the account webhooks name
    after_connecting: tuple[AfterConnecting, ...] = ()
    webhooks: Webhooks | None = None
    file: str = ""
    digest: str = ""  # SHA-256 of the text, to tell versions apart


@dataclass(frozen=True, slots=True)
class Entity:
    """One kind of record on the platform: a table (or query), its key, venue, change column and fields."""

    name: str
    table: str | None  # schema.table
    query: str | None  # a SELECT to read instead; such an entity can't be written
    key: str
    venue: str
    changed_at: str
    fields: FieldCatalog
    line: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)  # values of a record created by a pull
    deleted: Expression | None = None  # over a record: truthy when it counts as deleted


@dataclass(frozen=True, slots=True)
class Platform:
    """The host platform, as its manifest describes it."""

    name: str
    title: str
    entities: Mapping[str, Entity]
    file: str = ""


def load_connector(path: FilePath | str) -> Connector:
    """Read a connector's manifest from a file; raises ManifestError with everything that is wrong with it."""
    return compile_connector(read_document(FilePath(path)))


def load_platform(path: FilePath | str) -> Platform:
    """Read a platform's manifest from a file; raises ManifestError with everything that is wrong with it."""
    return compile_platform(read_document(FilePath(path)))


def load_price_list(path: FilePath | str) -> PriceList:
    """Read an operator's price list from a file; raises ManifestError with all that is wrong with it."""
    prices, diagnostics = check_price_list(read_document(FilePath(path)))
    if prices is None:
        raise refused(diagnostics, ManifestError)
    return prices


def compile_connector(document: Document) -> Connector:
    """Return the connector a document describes; raises ManifestError."""
    connector, diagnostics = check_connector(document)
    if connector is None:
        raise refused(diagnostics, ManifestError)
    return connector


def compile_platform(document: Document) -> Platform:
    """Return the platform a document describes; raises ManifestError."""
    platform, diagnostics = check_platform(document)
    if platform is None:
        raise refused(diagnostics, ManifestError)
    return platform


def check_connector(document: Document) -> tuple[Connector | None, list[Diagnostic]]:
    """Return the connector, and what is wrong with its shape and expressions; one of the two is empty."""
    return _checked(document, "connector", _connector)


def check_platform(document: Document) -> tuple[Platform | None, list[Diagnostic]]:
    """Return the platform, and what is wrong with its shape and expressions; one of the two is empty."""
    return _checked(document, "platform", _platform)


def check_price_list(document: Document) -> tuple[PriceList | None, list[Diagnostic]]:
    """Return the price list, and what is wrong with its shape; one of the two is empty."""
    return _checked(document, "price-list", _price_list)


def parse_duration(text: str) -> timedelta:
    """Read `5 minutes`; the schema has seen to it that it is one."""
    number, unit = text.split(" ")
    return timedelta(**{unit.rstrip("s") + "s": int(number)})


def parse_share(text: str) -> float:
    """Read `10 percent` as 0.1."""
    return int(text.split(" ")[0]) / 100


def parse_rate(text: str) -> float:
    """Read `10 per second` as calls per second."""
    number, _, unit = text.split(" ")
    return int(number) / parse_duration(f"1 {unit}").total_seconds()


def parse_statuses(value: int | str | Sequence[int | str]) -> tuple[tuple[int, int], ...]:
    """Read `429`, `5xx` or a list of them as inclusive ranges."""
    each = [value] if isinstance(value, int | str) else value
    return tuple(
        (one, one) if isinstance(one, int) else (int(one[0]) * 100, int(one[0]) * 100 + 99) for one in each
    )


def _checked(
    document: Document, schema_name: str, build: Callable[[_Part], T]
) -> tuple[T | None, list[Diagnostic]]:
    found = violations(document, schema_name)
    part = _Part(document.without([path for _, path in found]), (), [])
    built = build(part) if isinstance(part.value, dict) else None
    diagnostics = in_file_order([*(each for each, _ in found), *part.found])
    return (None if diagnostics else built), diagnostics


def expression_diagnostic(
    document: Document, path: Steps, error: ExpressionError, code: str, *, key: bool = False
) -> Diagnostic:
    """Return an expression's fault as a diagnostic: at its character, with its advice as help."""
    if key or error.position is None:
        place = document.place(path, key)
    else:
        place = document.within(path, error.position)
    message, *advice = ADVICE.split(error.message)
    return Diagnostic(code, message, document.file, *place, help=tuple(advice))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a document being compiled. What can't be compiled is gathered, and gives None for the while.

    The shape has been checked, so values are what the schema says; where it said no they are missing.
    """

    document: Document
    path: Steps
    found: list[Diagnostic]

    @property
    def value(self) -> Any:
        value = self.document.data
        for step in self.path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def __truediv__(self, step: str | int) -> _Part:
        return _Part(self.document, (*self.path, step), self.found)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the plain value of a key."""
        value = (self / key).value
        return default if value is None else value

    def items(self) -> Iterator[tuple[str, _Part]]:
        """Walk the keys of a group; nothing when it is missing."""
        keys = self.value if isinstance(self.value, dict) else {}
        return ((key, self / key) for key, value in keys.items() if value is not None)

    def each(self) -> Iterator[_Part]:
        """Walk the items of a list, or the one thing that stands for it."""
        if isinstance(self.value, list):
            yield from (self / index for index, item in enumerate(self.value) if item is not None)
        elif self.value is not None:
            yield self

    def compiled(self, make: Callable[[Any], T], code: str = "bad-expression") -> T | None:
        """Compile the value; None when there is none, or when it can't be (and that is noted)."""
        return None if self.value is None else self.attempt(partial(make, self.value), code)

    def text(self, make: Callable[[str], T], code: str = "bad-expression") -> T | None:
        """Compile a text. Something else is told of already, or stands where a wrong `type` is told of."""
        return self.compiled(make, code) if isinstance(self.value, str) else None

    def attempt(self, make: Callable[[], T], code: str, *, key: bool = False) -> T | None:
        """Return what `make` returns; an ExpressionError becomes a diagnostic at this part."""
        try:
            return make()
        except ExpressionError as error:
            self.found.append(expression_diagnostic(self.document, self.path, error, code, key=key))
            return None

    def refuse(self, code: str, message: str, advice: str) -> None:
        """Note that the group as it is written can't be."""
        self.found.append(self.document.diagnostic(code, message, self.path, advice, key=True))

    def expression(self, key: str, names: Collection[str] | None = None) -> Expression | None:
        return (self / key).text(partial(Expression.compile, names=names))

    def pointer(self, key: str) -> Path | None:
        return (self / key).text(Path.parse, "bad-path")

    def place(self, key: str) -> Place | None:
        return (self / key).text(Place.parse, "bad-place")

    def duration(self, key: str, default: timedelta) -> timedelta:
        text = self.get(key)
        return parse_duration(text) if text else default

    def template(self, key: str, names: Collection[str] | None = None) -> Template | None:
        return (self / key).as_template(names)

    def as_template(self, names: Collection[str] | None = None) -> Template | None:
        """Compile a tree of texts with braces; each fault is noted at its own place."""
        if self.value is None:
            return None
        faults = list(template_faults(self.value, names=names))
        for steps, error in faults:
            path = (*self.path, *steps)
            self.found.append(expression_diagnostic(self.document, path, error, "bad-template"))
        return None if faults else Template.compile(self.value)


def _connector(part: _Part) -> Connector:
    servers = part.get("server", {})
    connecting = part / "after_connecting"
    return Connector(
        name=part.get("connector", ""),
        title=part.get("title", ""),
        docs=part.get("docs", ""),
        servers=dict(servers),
        auth=tuple(_auth(each) for each in (part / "auth").each()),
        check=_call(part / "check"),
        resources={name: _resource(name, each) for name, each in (part / "resources").items()},
        headers=part.template("headers", COMMON_NAMES),
        query=part.template("query", COMMON_NAMES),
        connection={name: _connection_value(name, each) for name, each in (part / "connection").items()},
        encoding=part.get("encoding", "json"),
        times=part.get("times", "rfc3339"),
        limits=_limits(part / "limits", tuple(servers)),
        retries=_retries(part / "retries"),
        costs=_costs(part / "costs"),
        errors=_errors(part / "errors"),
        account=part.expression("account"),
        after_connecting=tuple(_lookup(each) for each in connecting.each()),
        webhooks=_webhooks(part / "webhooks") if part.get("webhooks") else None,
        file=part.document.file,
        digest=sha256(part.document.text.encode()).hexdigest(),
    )


def _webhooks(part: _Part) -> Webhooks:
    shapes = list((part / "shapes").each()) or [part]
    signatures = tuple(_signature(each) for each in (part / "signature").each())
    first = next((each.name for each in signatures if each.type != "secret_url"), "")
    return Webhooks(
        signatures=signatures,
        shapes=tuple(_shape(each) for each in shapes),
        events={kind: _action(each) for kind, each in (part / "events").items()},
        other_events=part.get("other_events", "ignore"),
        probes=tuple(_probe(each, first) for each in (part / "probes").each()),
        address=part.get("address", "connection"),
        answer_within=part.duration("answer_within", timedelta(seconds=5)),
        subscription=_subscription(part / "subscription"),
        acknowledge=part.get("acknowledge"),
    )


def _probe(part: _Part, first: str) -> Probe:
    """Compile a probe; what it signs is signed with the `first` scheme's secret, unless it says another."""
    reply = part / "reply"
    in_json = isinstance(reply.value, dict)
    sign = _signature(part / "sign") if part.get("sign") else None
    visit = part / "visit"
    return Probe(
        part.get("method", "POST"),
        part.expression("when"),
        None if in_json else part.expression("reply"),
        part.get("secret"),
        reply_json=reply.as_template() if in_json else None,
        reply_headers=part.template("reply_headers"),
        sign=replace(sign, name=(part / "sign").get("name", first)) if sign else None,
        unsigned=part.get("unsigned", False) or bool(part.get("keep")),
        keep=_reading_of(part.place("keep")),
        visit=visit.expression("url") if visit.value else None,
        visit_hosts=tuple(visit.get("hosts", ())),
    )


def _signature(part: _Part) -> SignatureScheme:
    kind = part.get("type", "")
    signs = (part / "signs").compiled(SignedText.compile, "bad-template")
    keys = part / "keys"
    if kind in DIGESTS and (signs is None or "secret" not in signs.names):
        part.refuse("missing-key", "the secret isn't in the text, so anybody could make this digest",
                    "name `secret` in `signs`: `{{ secret }}{{ body }}`")  # fmt: skip
    if keys.value and kind == "jwt" and part.get("algorithm", "HS256").startswith("HS"):
        part.refuse("no-effect", "what is published is no shared secret", "`algorithm: RS256`, for example")
    age = part / "timestamp"
    tolerance = part.duration("tolerance", timedelta(minutes=5))
    made: Age | None = None
    if age.value or (kind in ("detached_jws", "jwt") and part.get("tolerance")):
        read = _reading(age) or Reading("")  # such a signature carries its time itself
        made = Age(read, age.get("unit", "seconds"), tolerance, age.get("early", False))
    return SignatureScheme(
        name=part.get("name", kind),
        type=kind,
        signs=signs,
        read=_reading(part),
        encoding=part.get("encoding", "text" if kind in ("secret_header", "secret_field") else "hex"),
        age=made,
        key_is=part.get("key_is", "text"),
        secret_prefix=part.get("secret_prefix", ""),
        parameter=part.get("parameter"),
        pairs=_pairs(part / "form"),
        digest=part.get("digest", "sha256"),
        padding=part.get("padding", "pkcs1"),
        algorithm=part.get("algorithm", "HS256"),
        keys=_published(keys) if keys.value else None,
        requires=part.expression("requires", REQUIRED_NAMES),
    )


def _pairs(part: _Part) -> Pairs:
    return Pairs(
        part.get("pair", ""),
        part.get("between", ""),
        frozenset(part.get("without", ())),
        part.get("of", "body"),
    )


def _published(part: _Part) -> Published | None:
    """Compile where keys are; an address that a delivery names has to be at a host that is written."""
    url = part / "url"
    hosts = tuple(part.get("hosts", ()))
    where = url.compiled(partial(Expression.compile, names=DELIVERED)) if _is_varying(url) else url.value
    if where is None:
        return None
    if not isinstance(where, str) and not hosts:
        part.refuse("missing-key", "the delivery says where the keys are, so anybody could sign",
                    "add `hosts`, for example `hosts: [keys.example.com]`")  # fmt: skip
    return Published(where, hosts, part.expression("read"))


def _is_varying(part: _Part) -> bool:
    return isinstance(part.value, str) and has_braces(part.value)


def _reading(part: _Part) -> Reading | None:
    if not isinstance(part.value, dict):
        return None
    separator, prefix = part.get("separator"), part.get("prefix", "")
    if _is_varying(part / "read"):
        made = part.expression("read", READ_NAMES)
        return Reading("", separator, prefix, "made", made=made) if made else None
    place = part.place("read")
    return _reading_of(place, separator, prefix) if place else None


def _reading_of(place: Place | None, separator: str | None = None, prefix: str = "") -> Reading | None:
    if place is None or place.where == "name":
        return None
    name = place.name.lower() if place.where == "header" else place.name
    return Reading(
        name, separator, prefix, cast('Literal["header", "query", "body"]', place.where), place.steps
    )


def _shape(part: _Part) -> EventShape:
    event = part / "event"
    each = [(name, one.compiled(Expression.compile)) for name, one in (part / "each").items()]
    values = {name: _event_value(event / name) for name in ("type", "id", "at", "account", "record")}
    return EventShape(
        **values,
        when=part.expression("when"),
        each=tuple((name, one) for name, one in each if one is not None),
    )


def _event_value(part: _Part) -> EventValue | None:
    """Compile `header X-Topic`, or an expression."""
    if isinstance(part.value, str) and part.value.startswith("header "):
        place = part.compiled(Place.parse, "bad-place")
        return HeaderValue(place.name.lower()) if place else None
    return part.compiled(Expression.compile)


def _action(part: _Part) -> EventAction:
    for does in ("pull", "unlink", "changes"):
        if part.get(does):
            return EventAction(does, part.get(does), _event_value(part / "id"))
    return EventAction("disconnect" if part.get("disconnect") else "ignore")


def _subscription(part: _Part) -> Subscription | None:
    if part.value is None:
        return None
    identity = part.expression("id")
    every = part.get("renew_every")
    calls = {
        name: _call(part / name, names) if part.get(name) else None
        for name, names in (
            ("create", SUBSCRIBE_NAMES),
            ("check", SUBSCRIPTION_NAMES),
            ("renew", SUBSCRIPTION_NAMES),
            ("delete", SUBSCRIPTION_NAMES),
        )
    }
    create = calls.pop("create")
    if create is None or identity is None:
        return None
    return Subscription(
        create=create,
        id=identity,
        secret=part.expression("secret"),
        alive=part.expression("alive"),
        renew_every=parse_duration(every) if every else None,
        **calls,
    )


def _call(part: _Part, names: Collection[str] = COMMON_NAMES) -> CallSpec:
    """Compile `GET /path` or a group of keys with `call`; a query in the text joins `query`."""
    grouped = isinstance(part.value, dict)
    written = part / "call" if grouped else part
    more: dict[str, Template] = {}
    for name, each in (part / "with").items() if grouped else ():
        template = each.as_template(names)
        if template is not None:
            more[name] = template
        names = {*names, name}
    request = written.compiled(Request.parse) or Request("GET", "/")
    query = part.template("query", names) if grouped else None
    if request.query:
        in_text = {name: PLACEHOLDER.sub(r"{{ \1 }}", value) for name, value in request.query.items()}
        more = query.value if query else {}
        query = written.attempt(lambda: Template.compile({**in_text, **more}, names=names), "bad-template")
    if not grouped:
        return CallSpec(request.method, request.url, query)
    return CallSpec(
        request.method,
        request.url,
        query,
        part.template("headers", names),
        part.template("body", names),
        more,
    )


def _connection_value(name: str, part: _Part) -> ConnectionValue:
    pattern = (part / "pattern").compiled(_pattern, "bad-pattern")
    return ConnectionValue(
        name, part.get("title", ""), pattern, part.get("optional", False), part.get("list", False)
    )


def _lookup(part: _Part) -> AfterConnecting:
    signs = any(name.lower() == "authorization" for name, _ in (part / "headers").items())
    return AfterConnecting(
        _call(part, LOOKUP_NAMES if signs else COMMON_NAMES),
        _keep(part / "keep"),
        frozenset(part.get("for", ())),
        not signs,
        part.get("optional", False),
    )


def _keep(part: _Part, names: Collection[str] | None = None) -> dict[str, Expression]:
    """Compile what is kept: over an answer, or, with `names`, over the credentials of these names."""
    compile_ = partial(Expression.compile, names=names)
    compiled = {name: each.compiled(compile_) for name, each in part.items()}
    return {name: each for name, each in compiled.items() if each is not None}


def _auth(part: _Part) -> AuthMethod:
    kind = part.get("type", "none")
    names = tuple(part.get("credentials", ()))
    kept = _keep(part / "keep", names)
    # With OAuth, text with braces is about what the venue typed in, and a path about the token answer.
    typed_in = {name: each for name, each in kept.items() if kind != "oauth2" or has_braces(each.text)}
    answered = {name: each for name, each in kept.items() if name not in typed_in}
    return AuthMethod(
        type=kind,
        name=part.get("name", kind),
        credentials=tuple(
            CredentialField(
                name,
                each.get("title", ""),
                (each / "pattern").compiled(_pattern, "bad-pattern"),
                each.get("secret", True),
                each.get("optional", False),
            )
            for name, each in (part / "credentials").items()
        ),
        token=part.expression("token", names),
        username=part.expression("username", names),
        password=part.expression("password", names),
        send=part.place("send"),
        prefix=part.get("prefix", ""),
        oauth=_oauth(part, answered) if kind == "oauth2" else None,
        keep=typed_in,
    )


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        message = f"`{text}` is not a regular expression: {error.msg}"
        raise ExpressionError(message, error.pos) from error
    return text


def _oauth(part: _Part, kept: Mapping[str, Expression]) -> OAuth:
    revoke = part / "revoke"
    expires_in, expires_at = _expiry(part / "expires", "expires_in")
    refresh_expires_in, refresh_expires_at = _expiry(part / "refresh_token_expires", None)
    return OAuth(
        authorize_url=part.get("authorize_url", ""),
        token_url=part.get("token_url", ""),
        scopes=tuple(part.get("scopes", ())),
        scope_separator=part.get("scope_separator", " "),
        pkce=part.get("pkce", False),
        client=part.get("client", "header"),
        token_body=part.get("token_body", "form"),
        authorize_params=part.get("authorize_params", {}),
        refresh_before_expiry=part.duration("refresh_before_expiry", timedelta(minutes=5)),
        keep_alive=(part / "keep_alive").compiled(_keep_alive, "out-of-range"),
        expires_in=expires_in,
        expires_at=expires_at,
        refresh_expires_in=refresh_expires_in,
        refresh_expires_at=refresh_expires_at,
        refresh_token=part.get("refresh_token", "rotates"),
        keep=kept,
        keep_from_callback=part.get("keep_from_callback", {}),
        issuer=part.get("issuer"),
        revoke=_call(revoke, revoke_names(revoke.value)) if revoke.value else None,
        revoke_tokens=tuple(revoke.get("tokens", ())),
        revoke_client=revoke.get("client"),
        revoke_encoding=revoke.get("encoding", "json"),
    )


def revoke_names(revoke: Any) -> frozenset[str]:
    """Return what the templates of a `revoke` see, as it is written."""
    return REVOKE_EACH_NAMES if isinstance(revoke, Mapping) and "tokens" in revoke else REVOKE_NAMES


def _keep_alive(text: str) -> timedelta:
    if (found := parse_duration(text)) < timedelta(hours=1):
        raise ExpressionError("`keep_alive` must be at least an hour; each time is a call of the provider")
    return found


def _expiry(part: _Part, usual: str | None) -> tuple[str | None, str | None]:
    """Return where a token answer says a lifetime, and where a moment; `never` is neither."""
    if part.value is None or part.value == "never":
        return (usual if part.value is None else None), None
    for key in ("in", "at"):
        part.pointer(key)
    return part.get("in"), part.get("at")


def _limits(part: _Part, environments: Sequence[str]) -> Limits:
    requests, each_call = part / "requests", part.get("each_call")
    if isinstance(requests.value, str):
        rates = dict.fromkeys(environments, requests.value)
    else:
        rates = {name: each.value for name, each in requests.items()}
    return Limits(
        requests={name: parse_rate(rate) for name, rate in rates.items()},
        each_call=parse_rate(each_call) if each_call else None,
        calls={call: parse_rate(each.value) for call, each in (part / "calls").items()},
        concurrent=part.get("concurrent", 4),
        read=_limit_headers(part / "read"),
    )


def _limit_headers(part: _Part) -> LimitHeaders | None:
    remaining, reset = part.place("remaining"), part.place("reset")
    return LimitHeaders(remaining, reset, part.get("reset_is", "seconds")) if remaining else None


def _retries(part: _Part) -> Retries:
    usual = Retries()

    def seconds(key: str, default: float) -> float:
        return part.duration(key, timedelta(seconds=default)).total_seconds()

    return Retries(
        attempts=part.get("attempts", usual.attempts),
        first_wait=seconds("first_wait", usual.first_wait),
        longest_wait=seconds("longest_wait", usual.longest_wait),
        timeout=seconds("timeout", usual.timeout),
    )


def _price_list(part: _Part) -> PriceList:
    providers = {name: _costs(each) for name, each in (part / "providers").items()}
    return PriceList(
        default=_costs(part / "default"),
        providers={name: costs for name, costs in providers.items() if costs is not None},
    )


def _costs(part: _Part) -> Costs | None:
    if part.value is None:
        return None
    return Costs(
        currency=part.get("currency", ""),
        monthly=Decimal(part.get("monthly", "0")),
        calls=_price_steps(part / "calls"),
        megabytes=_price_steps(part / "megabytes"),
    )


def _price_steps(part: _Part) -> tuple[PriceStep, ...]:
    if isinstance(part.value, str):
        return (PriceStep(0, Decimal(part.value)),)
    steps: dict[int, Decimal] = {}
    for each in part.each():
        above = each.get("above", 0)
        if above in steps:
            message = f"two prices begin above {above}"
            each.found.append(each.document.diagnostic("no-effect", message, each.path, "leave one out"))
        steps[above] = Decimal(each.get("price", "0"))
    return tuple(PriceStep(above, steps[above]) for above in sorted(steps))


def _errors(part: _Part) -> ErrorRules:
    return ErrorRules(
        code=part.expression("code"),
        message=part.expression("message"),
        field=part.expression("field"),
        request_id=part.place("request_id"),
        in_success=part.expression("in_success"),
        rules=tuple(_rule(each) for each in (part / "rules").each()),
    )


def _rule(part: _Part) -> ErrorRule:
    code, status, header = part.get("code", ()), part.get("status"), part.get("header")
    return ErrorRule(
        then=part.get("then", "fail"),
        statuses=parse_statuses(status) if status is not None else (),
        code=(code,) if isinstance(code, str) else tuple(code),
        text=part.get("text"),
        header=next(iter(header.items())) if header else None,
        when=part.expression("when"),
        json=part.get("json"),
        wait_for=part.place("for"),
    )


def _resource(name: str, part: _Part) -> Resource:
    def read(key: str, names: frozenset[str] = COMMON_NAMES) -> ReadSpec | None:
        return _read(part / key, names) if part.get(key) is not None else None

    def write(key: str, names: frozenset[str] = WRITE_NAMES) -> WriteSpec | None:
        return _write(part / key, names) if part.get(key) is not None else None

    def write_many(key: str) -> WriteManySpec | None:
        return _write_many(part / key) if part.get(key) is not None else None

    return Resource(
        name=name,
        id=part.pointer("id") or ANYWHERE,
        fields=_fields(part / "fields"),
        own_id=part.expression("own_id", frozenset({"record"})),
        lasting_id=part.pointer("lasting_id"),
        changed_at=part.pointer("changed_at"),
        reference=part.pointer("reference"),
        version=part.pointer("version"),
        where=part.expression("where"),
        deleted=part.expression("deleted"),
        list=read("list"),
        changes=read("changes"),
        get=read("get", GET_NAMES),
        get_many=read("get_many", COMMON_NAMES | {"ids"}),
        create=write("create", CREATE_NAMES),
        update=write("update", UPDATE_NAMES),
        delete=write("delete", GONE_NAMES),
        archive=_archive(part / "archive") if part.get("archive") is not None else None,
        retire=write("retire"),
        create_many=write_many("create_many"),
        update_many=write_many("update_many"),
        write_many=write_many("write_many"),
        find=read("find", CREATE_NAMES),
        write_job=_write_job(part / "write_job") if part.get("write_job") is not None else None,
        parts={path: _call(each, PART_NAMES) for path, each in (part / "parts").items()},
        lists={path: _list_part(path, each) for path, each in (part / "lists").items()},
        leave_out=_paths(part / "leave_out"),
        updates=part.get("updates", "sparse"),
        immutable=frozenset(part.get("immutable", ())),
        one_write_at_a_time=part.get("one_write_at_a_time", False),
        renamed=_renamed(part / "renamed"),
        line=part.document.place((*part.path, "fields"), key=True)[0],
    )


def _renamed(part: _Part) -> dict[str, str]:
    """Return what each earlier path is called now, where a path was renamed more than once as well."""
    steps: dict[str, str] = {}
    for _, version in part.items():
        for path, to in version.items():
            if to.text(Path.parse, "bad-path") is not None:
                steps[path] = to.value
    now: dict[str, str] = {}
    for path, last in steps.items():
        seen = {path}
        while last in steps and last not in seen:
            seen.add(last)
            last = steps[last]
        now[path] = last
    return now


def _fields(part: _Part) -> FieldCatalog:
    made: dict[str, Field] = {}
    for path, each in part.items():
        each.attempt(partial(Path.parse, path), "bad-path", key=True)
        if isinstance(each.value, str):
            made[path] = Field(path, each.value)
            continue
        kind = each.get("type", "text")
        made[path] = Field(
            path,
            kind,
            one_of=tuple(each.get("one_of", ())),
            at_most=each.get("at_most"),
            too_long=each.get("too_long", "reject"),
            clears=each.get("clears", True),
            required=each.get("required", False),
            read_only=each.get("read_only", False),
            on_create_only=each.get("only_on") == "create",
            sent=each.get("sent", True),
            unit=each.get("unit"),
            currency=each.get("currency"),
            column=each.get("column"),
        )
    return FieldCatalog(made)


def _read(part: _Part, names: frozenset[str]) -> ReadSpec:
    if isinstance(part.value, str):
        return ReadSpec(_call(part, names))
    size, loop, pagination = part / "page_size", part / "for_each", part / "pagination"
    for key in ("read", "total", "pages"):
        pagination.pointer(key)
    paging = pagination.place("send")
    pagination.expression("more")
    (pagination / "overlap").compiled(partial(_overlap, size.get("at_most")), "out-of-range")
    values = loop.expression("in", COMMON_NAMES)
    if values:
        names |= {loop.get("as", "")}
    send, since, until, ids = size.place("send"), part.place("since"), part.place("until"), part.place("ids")
    names |= {place.name for place in (send, since, until, ids, paging) if place and place.where == "name"}
    reaches = part.get("reaches_back")
    return ReadSpec(
        call=_call(part, names),
        records=part.expression("records"),
        record=part.expression("record"),
        since=since,
        until=until,
        lookback=part.duration("lookback", timedelta(0)),
        reaches_back=parse_duration(reaches) if reaches else None,
        changed_at=part.expression("changed_at"),
        deleted=part.expression("deleted"),
        pagination=_type_spec(pagination) if pagination.value else None,
        page_size=PageSize(send, size.get("at_most", 1)) if send else None,
        pages_at_once=part.get("pages_at_once", 1),
        ids=ids,
        at_most=part.get("at_most", 100),
        for_each=ForEach(values, loop.get("as", ""), loop.get("at_most", 1)) if values else None,
        full_at=part.get("full_at"),
    )


def _overlap(size: Any, rows: Any) -> Any:
    """Return an overlap that a walk over pages of this size gets on with."""
    if size is None:
        raise ExpressionError("`overlap` needs to know how long a page is; add `page_size`")
    if isinstance(rows, int) and isinstance(size, int) and rows >= size:
        raise ExpressionError(
            f"an overlap of {rows} rows doesn't get on in pages of {size}; a small part of a page will do"
        )
    return rows


def _type_spec(part: _Part) -> TypeSpec:
    options = dict(part.value)
    return TypeSpec(options.pop("type"), options)


def _write(part: _Part, names: frozenset[str]) -> WriteSpec:
    if isinstance(part.value, str):
        return WriteSpec(_call(part, names), BODY)
    return WriteSpec(
        call=_call(part, names),
        record=part.place("record") or BODY,
        result=part.pointer("result"),
        new=_new(part / "new"),
        idempotency_key=_idempotency_key(part / "idempotency_key", BODY),
        then=tuple(_call(each, THEN_NAMES) for each in (part / "then").each()),
    )


def _archive(part: _Part) -> ArchiveSpec:
    values = part / "set"
    if_refused = tuple(_call(each, GONE_NAMES) for each in (part / "if_refused").each())
    if not values.value:
        return ArchiveSpec(_call(part, GONE_NAMES), if_refused=if_refused)
    for path, each in values.items():
        each.attempt(partial(Path.parse, path), "bad-path", key=True)
    return ArchiveSpec(values=dict(values.value), if_refused=if_refused)


def _write_many(part: _Part) -> WriteManySpec:
    records = part.place("records") or BODY
    ids, pair_by = part / "new_ids", part.get("pair_by")
    renamed, sent, given = ids.expression("records"), ids.pointer("sent"), ids.pointer("given")
    return WriteManySpec(
        call=_call(part, CREATE_NAMES),
        records=records,
        results=part.expression("results"),
        result=part.pointer("result"),
        by_key=part.get("by_key"),
        renames=_renames(part / "renames"),
        item=part.template("item", ITEM_NAMES),
        body_of_each=part.template("body_of_each", ITEM_NAMES),
        pair_by_id=pair_by == "id",
        pair_by=part.pointer("pair_by") if pair_by != "id" else None,
        failures=_failures(part / "failures"),
        new_ids=NewIds(renamed, sent, given) if renamed and sent and given else None,
        error=part.expression("error"),
        error_code=part.expression("error_code"),
        error_message=part.expression("error_message"),
        new=_new(part / "new"),
        at_most=part.get("at_most", 100),
        weight=part.expression("weight"),
        idempotency_key=_idempotency_key(part / "idempotency_key", records),
    )


def _renames(part: _Part) -> tuple[tuple[Path, Path], ...]:
    made: list[tuple[Path, Path]] = []
    for path, each in part.items():
        each.attempt(partial(Path.parse, path), "bad-path", key=True)
        made.append((_path_or_anywhere(path), each.compiled(Path.parse, "bad-path") or ANYWHERE))
    return tuple(made)


def _list_part(path: str, part: _Part) -> ListPart:
    part.attempt(partial(Path.parse, path), "bad-path", key=True)
    return ListPart(
        path=_path_or_anywhere(path),
        pair_by=part.pointer("pair_by") or ANYWHERE,
        new=_new(part / "new", LIST_NAMES),
        leave_out=_paths(part / "leave_out"),
    )


def _path_or_anywhere(text: str) -> Path:
    try:
        return Path.parse(text)
    except ExpressionError:
        return ANYWHERE  # said where it is written


def _paths(part: _Part) -> tuple[Path, ...]:
    found = (each.compiled(Path.parse, "bad-path") for each in part.each())
    return tuple(path for path in found if path is not None)


def _failures(part: _Part) -> FailureList | None:
    records, pair_by = part.expression("records"), part.pointer("pair_by")
    code, message = part.expression("code"), part.expression("message")
    return FailureList(records, pair_by, code, message) if records and pair_by else None


def _write_job(part: _Part) -> WriteJob:
    submit, poll, results = part / "submit", part / "poll", part / "results"
    operations = submit.place("operations") or BODY
    return WriteJob(
        submit=_call(submit),
        operations=operations,
        job=submit.pointer("job") or ANYWHERE,
        poll=_call(poll, POLL_NAMES),
        done=poll.expression("done") or Expression.compile("id"),
        results=JobResults(
            pair_by=results.pointer("pair_by") or ANYWHERE,
            url=results.expression("url"),
            format=results.get("format", "json"),
            records=results.expression("records"),
            status=results.pointer("status"),
            body=results.pointer("body"),
            body_is=results.get("body_is", "json"),
            result=results.pointer("result"),
        ),
        create=part.template("create", ITEM_NAMES),
        update=part.template("update", ITEM_NAMES),
        idempotency_key=_idempotency_key(submit / "idempotency_key", operations),
        every=poll.duration("every", timedelta(seconds=5)),
        up_to=poll.duration("up_to", timedelta(minutes=1)),
        within=poll.duration("within", timedelta(hours=2)),
        at_least=part.get("at_least", 100),
        at_most=part.get("at_most", 1000),
    )


def _new(part: _Part, names: frozenset[str] = CREATE_NAMES) -> dict[str, Template]:
    made: dict[str, Template] = {}
    for path, each in part.items():
        each.attempt(partial(Path.parse, path), "bad-path", key=True)
        compiled = each.as_template(names)
        if compiled is not None:
            made[path] = compiled
    return made


def _idempotency_key(part: _Part, records: Place) -> IdempotencyKey | None:
    """Compile a place, or keys. Without `send` the key is that of a map, which goes where the records go."""
    if part.value is None:
        return None
    if isinstance(part.value, str):
        return IdempotencyKey(part.compiled(Place.parse, "bad-place") or records)
    return IdempotencyKey(part.place("send") or records, part.get("at_most", 255))


def _platform(part: _Part) -> Platform:
    return Platform(
        name=part.get("name", ""),
        title=part.get("title", ""),
        entities={name: _entity(name, each) for name, each in (part / "entities").items()},
        file=part.document.file,
    )


def _entity(name: str, part: _Part) -> Entity:
    return Entity(
        name=name,
        table=part.get("table"),
        query=part.get("query"),
        key=part.get("key", ""),
        venue=part.get("venue", ""),
        changed_at=part.get("changed_at", ""),
        fields=_fields(part / "fields"),
        line=part.document.place((*part.path, "fields"), key=True)[0],
        defaults=part.get("defaults", {}),
        deleted=part.expression("deleted", frozenset({"record"})),
    )
