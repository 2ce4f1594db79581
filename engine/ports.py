"""What the engine needs from outside, and the plain values that cross the border.

Every port has an implementation in memory (`engine.memory`) and one on PostgreSQL or SQL (`server`);
both pass the same contract suite in `tests/contract/ports/`.

A record is a plain JSON object whose numbers may be Decimal. Times are RFC 3339 text in UTC, money is a
Decimal in major units, ids are text.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NoReturn, Protocol

Record = dict[str, Any]
Direction = Literal["push", "pull"]
LinkState = Literal[
    "linked",
    "leaving",  # ours is gone, or not wanted there any more; what that means for theirs is still to be done
    "archived",  # that was done: theirs is out of use, and comes back when ours does
    "broken",  # theirs is gone
]
RecordKey = tuple[
    str, str, Direction, str
]  # entity, resource, direction, local id (push) or remote id (pull)


Confirm = Callable[[], Awaitable[None]]


class Secret:
    """A value that can't be printed, formatted, pickled, copied elsewhere or serialised by accident.

    Two are compared in constant time, and one never equals a plain text. It can't be hashed, so it is no key
    of a dictionary and no member of a set.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value. Call it where the value leaves for the provider or the vault, nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # how Python says that a type can't be hashed

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What it takes to call one provider account.

    `values` are the manifest's credential fields, or `access_token` and `refresh_token` for OAuth.
    `connection` are plain values learned when connecting (account id, location ids, data centre).
    """

    values: Mapping[str, Secret]
    connection: Mapping[str, Any] = field(default_factory=dict)
    environment: str = "production"
    expires_at: datetime | None = None
    method: str | None = None  # which of the manifest's authentication methods; None: the only one


class CredentialSource(Protocol):
    """Opens credentials, and refreshes them under a lock shared by all processes."""

    async def current(self) -> Credentials:
        """Return credentials fit for use now; refreshes first when they are about to expire."""

    async def refresh(self, refused: Credentials) -> Credentials:
        """Return newer credentials than `refused`, which the provider has just answered with 401.

        Raises AuthenticationError when there is nothing to refresh with or the grant is dead.
        """


@dataclass(frozen=True, slots=True)
class Link:
    """A local and a remote record that are the same thing.

    `fingerprint` is that of the last body agreed for the remote side (None: must be written), `agreed` the
    local values both sides last agreed on, the key of the last write, from which the next one's follows, and
    under `retire` the remote ids whose place this one took, which are still to be put out of use, under
    `refused` how often the provider refused to put this one away, and under `version` the provider's version
    of what was last seen, where an update names it. Under `open` it names the fields that a person has to
    decide about, of which `ours` and `theirs` stay as they were last agreed on, and `due` says that ours has
    to be written though nothing of it changed. `remote_version` is the provider's moment of change.
    """

    entity: str
    resource: str
    local_id: str
    remote_id: str
    fingerprint: str | None = None
    agreed: Mapping[str, Any] = field(default_factory=dict)
    remote_version: str | None = None
    last_direction: Direction | None = None
    state: LinkState = "linked"


@dataclass(frozen=True, slots=True)
class PendingItem:
    """One record of a write that has been announced but not yet answered."""

    local_id: str
    remote_id: str | None
    body: Mapping[str, Any]
    fingerprint: str
    agreed: Mapping[str, Any]
    adopted: bool = False  # `remote_id` was made by an earlier call of ours whose answer was lost


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A call about to be made. It is saved first, so that after a crash it is repeated word for word.

    `key` is the provider's idempotency key, derived from the integration, the records and their content.
    """

    key: str
    entity: str
    resource: str
    items: tuple[PendingItem, ...]
    attempt: int = 1
    job: str | None = None  # the provider's name of the job that was handed in and may not be done yet
    announced_at: datetime | None = field(default=None, compare=False)  # at first, under whatever key


@dataclass(frozen=True, slots=True)
class RecordFailure:
    """A record that couldn't be synced, kept so that it can be seen and retried by itself."""

    entity: str
    resource: str
    direction: Direction
    record_id: str  # local id on push, remote id on pull
    code: str
    message: str
    retryable: bool
    field: str | None = None


Taken = Literal["platform", "provider", "value"]  # whose value a person took, or one of their own


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about a field; `value` counts only where `take` is `value`."""

    take: Taken
    value: Any = None


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """A field that both sides changed, and that each keeps its own value of until a person decides.

    Values are in the platform's terms and as storage has them: fractions are text. `agreed` has `ours` and
    `theirs` as the two last agreed, each only if they ever did. The moments of change are of the whole
    records, None where a side tells none.
    """

    entity: str
    resource: str
    local_id: str
    remote_id: str
    field: str
    ours: Any
    theirs: Any
    agreed: Mapping[str, Any]
    ours_changed_at: str | None = None
    theirs_changed_at: str | None = None
    decision: Decision | None = None  # not carried out yet


@dataclass(frozen=True, slots=True)
class ConflictEnd:
    """A conflict that is over: its decision was carried out, or (`applied` is false) no longer asked for."""

    resource: str
    local_id: str
    field: str
    applied: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """What one page or batch changes in the hub's own books; saved all together or not at all."""

    links: Sequence[Link] = ()
    unlinked: Sequence[Link] = ()
    failures: Sequence[RecordFailure] = ()
    settled: Sequence[RecordKey] = ()  # earlier failures of these records are over
    finished_writes: Sequence[str] = ()  # keys of pending writes that have been answered
    position: tuple[str, str, Direction, Mapping[str, Any]] | None = (
        None  # entity, resource, direction, value
    )
    conflicts: Sequence[FieldConflict] = ()  # seen, for the first time or again; after those that are over
    conflicts_over: Sequence[ConflictEnd] = ()


class SyncState(Protocol):
    """What is remembered between runs of one integration: links, positions, writes under way, failures.

    Bound to one venue and provider. Every method that saves raises LeaseLostError when another worker
    has taken the run over.
    """

    async def links_by_local(self, resource: str, local_ids: Sequence[str]) -> dict[str, Link]:
        """Return the links of these local ids, keyed by local id; ids without a link are left out."""

    async def links_by_remote(self, resource: str, remote_ids: Sequence[str]) -> dict[str, Link]:
        """Return the links of these remote ids, keyed by remote id."""

    async def links_in_state(
        self, entity: str, resource: str, state: LinkState, *, after: str = "", limit: int = 500
    ) -> list[Link]:
        """Return links in this state in the order of their local ids, beginning after the local id `after`.

        Fewer than `limit` are the last ones.
        """

    async def links_due(self, entity: str, resource: str, *, after: str = "", limit: int = 500) -> list[Link]:
        """Return links that are `due`, as `links_in_state` does those in a state."""

    async def count_links(self, entity: str, resource: str) -> Mapping[LinkState, int]:
        """Return how many links are in each state; states without links may be left out."""

    async def conflicts_of(self, resource: str, local_ids: Sequence[str]) -> list[FieldConflict]:
        """Return the conflicts of these records that aren't over, with what was decided about them."""

    async def open_conflicts(
        self, entity: str, resource: str, *, after: str = "", limit: int = 500
    ) -> list[FieldConflict]:
        """Return conflicts that aren't over in the order of their local ids, beginning after the local id
        `after`: `limit`, and all others of the last one's record. When there are none, none are left.
        """

    async def position(self, entity: str, resource: str, direction: Direction) -> Mapping[str, Any] | None:
        """Return how far this mapping got, as last committed, or None."""

    async def confirm(self) -> None:
        """Raise LeaseLostError when another worker has taken the run over; changes nothing."""

    async def announce(self, writes: Sequence[PendingWrite], *, instead_of: Sequence[str] = ()) -> None:
        """Save writes before they are sent, in one transaction; drop those with the keys `instead_of`."""

    async def announced(self, entity: str, resource: str) -> list[PendingWrite]:
        """Return writes that were announced and never finished, oldest first."""

    async def commit(self, commit: Commit) -> None:
        """Save all of it in one transaction."""


@dataclass(frozen=True, slots=True)
class HostPage:
    """Some records of the platform in the order they changed; `position` is where the next page starts."""

    records: list[Record]
    position: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HostChange:
    """Fields to write to one record of the platform; only the named fields change."""

    local_id: str
    values: Mapping[str, Any]
    create: bool = False


class HostStore(Protocol):
    """The platform's own records, as its manifest describes them. Bound to one venue."""

    async def venue(self) -> Record:
        """Return the venue's record: at least id, name and currency."""

    def changed(
        self,
        entity: str,
        since: Mapping[str, Any] | None,
        *,
        page_size: int = 500,
        earliest: datetime | None = None,
    ) -> AsyncIterator[HostPage]:
        """Stream the records that changed since a position (None: all), oldest change first. Without one,
        those that changed before `earliest` may be left out.

        Each record has its declared fields and `id`. A record with missing values has them as None.
        """

    async def fetch(self, entity: str, ids: Sequence[str]) -> dict[str, Record]:
        """Return these records by id; unknown ids are left out."""

    async def find(self, entity: str, field: str, values: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of records whose `field` is one of `values`, ignoring case, by lower-cased value."""

    async def upsert(
        self, entity: str, changes: Sequence[HostChange], confirm: Confirm | None = None
    ) -> dict[str, str]:
        """Write the changes in one transaction; returns local id to message for those refused.

        Creating an id that exists updates it, so a repeated page does no harm. `confirm` is awaited when the
        rows are written and not yet committed: if it raises, nothing is. A worker that stood still meanwhile
        thus undoes nothing of the one that took over, which waits for the rows until then.
        """


class RateLimiter(Protocol):
    """Spaces calls out. A key names a budget: an account, or one call of an account.

    Calls of one budget go in the order in which they asked. One on Redis keeps to a budget in all processes.
    """

    async def acquire(self, key: str, rate: float, burst: float) -> None:
        """Wait until one call may be made under a budget of `rate` calls per second, `burst` at once.

        Raises RateLimitedError when that is longer than a run should wait.
        """

    async def hold(self, key: str, seconds: float) -> None:
        """Let nobody call under this budget for a while: the provider said so."""

    async def lower(self, key: str, left: int, seconds: float | None) -> None:
        """Let at most `left` more calls go within `seconds` from now: the provider said that many are left.

        Without `seconds` it counts for what may go at once. It never lets more go than the budget does.
        """

    def slot(self, key: str, most: int) -> AbstractAsyncContextManager[None]:
        """Be one of at most `most` at the same time, waiting for a turn on the way in."""


class Clock(Protocol):
    """Time, waiting and chance; tests bring their own."""

    def now(self) -> datetime:
        """Return the time in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    async def sleep(self, seconds: float) -> None: ...

    def random(self) -> float:
        """Return a number in [0, 1)."""
