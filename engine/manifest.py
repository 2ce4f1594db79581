"""A manifest as frozen objects: everything parsed and compiled once, nothing looked up again per record.

`load_connector` and `load_platform` read a file strictly and report everything that is wrong with it at once.
What each key means to an author is written in `schemas/`; here it says what the engine does with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from engine.calls import Place
from engine.expressions import Expression, Path, Template
from engine.fields import FieldCatalog

Action = Literal[
    "retry",  # again, with backoff
    "wait",  # again, after the time the provider names (or backoff)
    "refresh_credentials",  # refresh once, then again
    "reconnect",  # the run fails: the venue has to connect again
    "reload_and_retry",  # read the record, merge, write again
    "adopt",  # a record with this id is already there: link it and update it
    "recreate",  # the linked record is gone: forget the link and create
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
    """One request to be filled in. Templates see `credentials` (plain ones), `connection`, `id`, `ids`, `key`,
    `record`, `result`, `now` and what `for_each` names, as far as each exists where the call is made."""

    method: str
    path: str  # with {placeholders}, filled from the same names
    query: Template | None = None
    headers: Template | None = None
    body: Template | None = None


@dataclass(frozen=True, slots=True)
class CredentialField:
    """A value the venue types in when connecting."""

    name: str
    title: str
    pattern: str | None = None
    secret: bool = True
    optional: bool = False


@dataclass(frozen=True, slots=True)
class OAuth:
    """The authorization code grant, as this provider has it. URLs may be paths below the server."""

    authorize_url: str
    token_url: str
    scopes: tuple[str, ...] = ()
    scope_separator: str = " "
    pkce: bool = False
    client: Literal["header", "body"] = "header"  # where client id and secret go on the token call
    token_body: Literal["form", "json"] = "form"
    authorize_params: Mapping[str, str] = field(default_factory=dict)
    refresh_before_expiry: timedelta = timedelta(minutes=5)
    expires_in: str | None = "expires_in"  # path of the lifetime in seconds
    expires_at: str | None = None  # path of the moment, when it says a moment instead
    keep: Mapping[str, Expression] = field(default_factory=dict)  # connection values from the token answer
    revoke: CallSpec | None = None  # sees client_id, client_secret, access_token, refresh_token, connection
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


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast an account may be called. Rates are calls per second; None means not declared."""

    requests: Mapping[str, float] = field(default_factory=dict)  # by environment
    each_call: float | None = None  # every method and path has this budget of its own
    concurrent: int = 4  # calls in flight at once


@dataclass(frozen=True, slots=True)
class Retries:
    attempts: int = 5  # calls in all, the first included
    first_wait: float = 0.5  # seconds; doubles, with full jitter
    longest_wait: float = 30.0
    timeout: float = 30.0  # seconds a call may take


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """When all conditions given fit, `then` says what to do. `wait_for` is where the provider says how long."""

    then: Action
    statuses: tuple[tuple[int, int], ...] = ()  # inclusive ranges: 5xx is (500, 599)
    code: tuple[str, ...] = ()
    text: str | None = None  # contained in the message, ignoring case
    header: tuple[str, str] | None = None  # name, value
    when: Expression | None = None  # over the body
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
    ids: Place | None = None  # reads by id: where the list of ids goes
    at_most: int = 100  # ids in one call
    for_each: ForEach | None = None


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
    new: Mapping[str, Template] = field(default_factory=dict)  # path to value a new record needs besides its mapped fields
    idempotency_key: IdempotencyKey | None = None
    then: tuple[CallSpec, ...] = ()  # calls that belong to it, made after it succeeded; see `result`


@dataclass(frozen=True, slots=True)
class WriteManySpec:
    """A call that writes several records, each with an outcome of its own."""

    call: CallSpec
    records: Place  # where the list (or map) goes
    results: Expression | None = None  # over the body: list in the order sent, or map by key
    result: Path | None = None  # where the written record is in each of `results`
    by_key: Literal["idempotency_key", "id"] | None = None  # records is a map keyed like this, results too
    pair_by_id: bool = False  # results come in any order: pair by id (and `new_ids`)
    new_ids: NewIds | None = None
    error: Expression | None = None  # within each of `results`: truthy when this record failed
    error_code: Expression | None = None
    error_message: Expression | None = None
    new: Mapping[str, Template] = field(default_factory=dict)
    at_most: int = 100
    weight: Expression | None = None  # what a record counts against `at_most`; None: 1
    idempotency_key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of record at the provider."""

    name: str
    id: Path
    fields: FieldCatalog
    changed_at: Path | None = None
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
    retire: WriteSpec | None = None  # puts a replaced record out of use
    create_many: WriteManySpec | None = None
    update_many: WriteManySpec | None = None
    write_many: WriteManySpec | None = None  # creates and updates together
    updates: Literal["sparse", "whole"] = "sparse"  # whole: the provider replaces, so read, merge and send all
    immutable: frozenset[str] = frozenset()  # a change of one of these makes a new record and retires the old
    one_write_at_a_time: bool = False
    line: int = 0  # where `fields` stands in the file, for messages


@dataclass(frozen=True, slots=True)
class AfterConnecting:
    """A lookup right after connecting whose answer is kept in `connection`."""

    call: CallSpec
    keep: Mapping[str, Expression]


@dataclass(frozen=True, slots=True)
class Connector:
    """A provider, as its manifest describes it."""

    name: str
    title: str
    docs: str
    servers: Mapping[str, str]  # by environment
    auth: tuple[AuthMethod, ...]
    check: CallSpec
    resources: Mapping[str, Resource]
    headers: Template | None = None
    encoding: Literal["json", "form"] = "json"
    times: Literal["rfc3339", "epoch_seconds", "epoch_milliseconds"] = "rfc3339"
    limits: Limits = Limits()
    retries: Retries = Retries()
    errors: ErrorRules = ErrorRules()
    account: Expression | None = None  # over `connection`: the account webhooks name
    after_connecting: tuple[AfterConnecting, ...] = ()
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


@dataclass(frozen=True, slots=True)
class Platform:
    """The host platform, as its manifest describes it."""

    name: str
    title: str
    entities: Mapping[str, Entity]
    file: str = ""
