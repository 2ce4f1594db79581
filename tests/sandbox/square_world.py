"""What the parts of the Square stand-in share: sellers, errors, checks, cursors and repeated keys."""

import base64
import hashlib
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import orjson

from tests.sandbox.core import Answer, Call, RefusedError, SandboxClock, rfc3339
from tests.sandbox.money import CURRENCIES
from tests.sandbox.shelf import Json, Key, Ordered, Shelf

CURSOR_SECONDS = 300
SHORT_PAGE_EVERY = 3


def _by_created(value: Json) -> str:
    return str(value["created_at"])


def _by_updated(value: Json) -> str:
    return str(value["updated_at"])


def _email_of(value: Json) -> str | None:
    found = value.get("email_address")
    return None if found is None else str(found).casefold()


def _timed(indexes: Mapping[str, Callable[[Json], str | None]] | None = None) -> Shelf:
    return Shelf({"created": _by_created, "updated": _by_updated}, indexes)


@dataclass(slots=True)
class Seller:
    """One merchant and all that is theirs. Catalog shelves hold deleted objects too."""

    id: str
    currency: str = "USD"
    country: str = "US"
    locations: list[Json] = field(default_factory=list)
    catalog: Shelf = field(default_factory=_timed)
    customers: Shelf = field(default_factory=lambda: _timed({"email": _email_of}))
    orders: Shelf = field(default_factory=_timed)
    payments: Shelf = field(default_factory=_timed)
    refunds: Shelf = field(default_factory=_timed)
    counts: Shelf = field(default_factory=lambda: Shelf({"calculated": itemgetter("calculated_at")}))
    catalog_version: int = 0
    catalog_updated_at: str = ""
    catalog_busy: bool = False

    def location_ids(self) -> list[str]:
        """Return ids, the main location first."""
        return [location["id"] for location in self.locations]


class World:
    """The state behind the API."""

    def __init__(self, clock: SandboxClock, effect: Callable[[str], None]) -> None:
        self.clock = clock
        self.effect = effect
        self.tell: Callable[[Seller, str, Json], None] = lambda *_: None  # seller, type, data
        self.sellers: dict[str, Seller] = {}
        self.random = random.Random(20_261_124)
        self.replayed = 0
        self._pages = 0
        self._last_stamp = 0
        self._outcomes: dict[tuple[str, str, str], tuple[bytes, Answer]] = {}

    def new_seller(self, name: str, currency: str = "USD", country: str = "US") -> Seller:
        """Register a merchant with two locations."""
        seller = Seller(name, currency, country)
        for place, title in enumerate(("Main Hall", "Garden Stage")):
            seller.locations.append(
                {
                    "id": f"L{name}{place + 1}",
                    "name": title,
                    "merchant_id": name,
                    "status": "ACTIVE",
                    "type": "PHYSICAL",
                    "country": country,
                    "currency": currency,
                    "language_code": "en-US",
                    "timezone": "America/New_York",
                    "capabilities": ["CREDIT_CARD_PROCESSING"],
                    "business_name": f"{title} of {name}",
                    "created_at": "2020-01-01T00:00:00.000Z",
                    "address": {"address_line_1": f"{place + 1} Stage Street", "country": country},
                }
            )
        self.sellers[name] = seller
        return seller

    def new_id(self, length: int = 24) -> str:
        """Return a fresh id of capital letters and digits."""
        return "".join(self.random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=length))

    def stamp(self) -> str:
        """Return the time of a write. Later writes get later times, even within a millisecond."""
        self._last_stamp = max(self._last_stamp + 1, int(self.clock.now() * 1000))
        return rfc3339(self._last_stamp / 1000)

    def version(self, seller: Seller) -> int:
        """Return the catalog version of the next write."""
        seller.catalog_version = max(seller.catalog_version + 1, int(self.clock.now() * 1000))
        return seller.catalog_version

    def once(self, call: Call, seller: Seller, body: Json, longest: int, run: Callable[[], Answer]) -> Answer:
        """Run unless the body's idempotency key has succeeded before; then return the same answer."""
        key = body.get("idempotency_key")
        if key is None:
            return run()
        if not isinstance(key, str) or not key:
            raise refused(400, "INVALID_VALUE", "The idempotency key must not be empty.", "idempotency_key")
        if len(key) > longest:
            message = f"Field must not be greater than {longest} length"
            raise refused(400, "VALUE_TOO_LONG", message, "idempotency_key")
        fingerprint = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        place = (seller.id, call.key, key)
        known = self._outcomes.get(place)
        if known is not None:
            if known[0] != fingerprint:
                message = "The idempotency key can only be retried with the same request data."
                raise refused(400, "IDEMPOTENCY_KEY_REUSED", message, "idempotency_key")
            self.replayed += 1
            return known[1]
        answer = run()
        if answer.status < 300:
            # Written out now, since the objects in the body go on changing.
            answer = Answer(answer.status, answer.content(), answer.headers)
            self._outcomes[place] = (fingerprint, answer)
        return answer

    def page(
        self,
        ordered: Ordered,
        objects: Mapping[str, Json],
        *,
        query: object,
        limit: int,
        cursor: str | None,
        fits: Callable[[Json], bool],
        descending: bool = False,
        at_least: str | None = None,
        at_most: str | None = None,
    ) -> tuple[list[Json], str | None]:
        """Return a page and the cursor for the next, None at the end. Every third page is short.

        `query` is whatever must stay the same while a cursor is followed.
        """
        digest = hashlib.sha256(orjson.dumps(query, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        after = self._read_cursor(cursor, digest) if cursor else None
        self._pages += 1
        if self._pages % SHORT_PAGE_EVERY == 0 and limit > 1:
            limit //= 2
        found: list[Json] = []
        last: Key | None = None
        for key in ordered.walk(descending=descending, after=after, at_least=at_least, at_most=at_most):
            value = objects[key[2]]
            if not fits(value):
                continue
            if len(found) == limit and last is not None:
                token = orjson.dumps([*last, self.clock.now(), digest])
                return found, base64.urlsafe_b64encode(token).decode()
            found.append(value)
            last = key
        return found, None

    def _read_cursor(self, cursor: str, digest: str) -> Key:
        try:
            rank, arrival, name, issued, own = orjson.loads(base64.urlsafe_b64decode(cursor))
        except (ValueError, TypeError) as error:
            raise refused(400, "INVALID_CURSOR", "The cursor is not valid.", "cursor") from error
        if own != digest:
            raise refused(400, "INVALID_CURSOR", "The cursor belongs to another query.", "cursor")
        if self.clock.now() - issued > CURSOR_SECONDS:
            raise refused(400, "INVALID_CURSOR", "The cursor has expired.", "cursor")
        return (rank, arrival, name)


def errors(
    status: int, code: str, detail: str, where: str | None = None, category: str | None = None
) -> Answer:
    """Word one error."""
    return Answer(status, {"errors": [error_entry(status, code, detail, where, category)]})


def error_entry(
    status: int, code: str, detail: str, where: str | None = None, category: str | None = None
) -> Json:
    """Word one entry of an error list."""
    if category is None:
        category = {401: "AUTHENTICATION_ERROR", 403: "AUTHENTICATION_ERROR", 429: "RATE_LIMIT_ERROR"}.get(
            status, "API_ERROR" if status >= 500 else "INVALID_REQUEST_ERROR"
        )
    entry: Json = {"category": category, "code": code, "detail": detail}
    if where:
        entry["field"] = where
    return entry


def refused(
    status: int, code: str, detail: str, where: str | None = None, category: str | None = None
) -> RefusedError:
    """Build what a handler raises to answer with an error."""
    return RefusedError(errors(status, code, detail, where, category))


def entries_of(error: RefusedError) -> list[Json]:
    """Return the error list inside a refusal."""
    found: list[Json] = error.answer.body["errors"]
    return found


def seller_of(call: Call) -> Seller:
    """Return whose token called."""
    seller: Seller = call.state["seller"]
    return seller


def body_of(call: Call, known: Collection[str] | None = None, required: Iterable[str] = ()) -> Json:
    """Return the JSON object sent; refuse unknown and missing fields."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if call.body and kind != "application/json":
        raise refused(415, "UNSUPPORTED_MEDIA_TYPE", "The content type must be application/json.")
    try:
        body = orjson.loads(call.body) if call.body else {}
    except ValueError as error:
        raise refused(400, "BAD_REQUEST", "The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise refused(400, "EXPECTED_OBJECT", "The body must be an object.")
    if known is not None:
        check_known(body, known)
    for name in required:
        if body.get(name) in (None, ""):
            raise refused(400, "MISSING_REQUIRED_PARAMETER", "Field must be set", name)
    return body


def check_known(given: Any, known: Collection[str], where: str = "") -> None:
    """Refuse what is no object, and the first field that is not known."""
    if not isinstance(given, dict):
        raise refused(400, "EXPECTED_OBJECT", f"Expected an object (field: {where})", where)
    for name in given:
        if name not in known:
            path = f"{where}.{name}" if where else name
            raise refused(400, "BAD_REQUEST", f"The field named '{path}' is unrecognized", path)


def object_in(given: Json, name: str, where: str) -> Json:
    """Return an object inside another, empty when it is absent or null."""
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refused(
            400, "EXPECTED_OBJECT", f"Expected an object (field: {where}.{name})", f"{where}.{name}"
        )
    return value


def texts(given: Json, name: str, where: str = "") -> list[str]:
    """Return a list of texts inside an object, empty when it is absent or null."""
    value = given.get(name)
    path = f"{where}.{name}" if where else name
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refused(400, "EXPECTED_ARRAY", f"Expected a list of strings (field: {path})", path)
    return value


def check_text(given: Json, name: str, longest: int, where: str = "", code: str = "VALUE_TOO_LONG") -> None:
    """Refuse what is no text of at most `longest` characters; absent and null pass."""
    value = given.get(name)
    path = f"{where}.{name}" if where else name
    if value is None:
        return
    if not isinstance(value, str):
        raise refused(400, "EXPECTED_STRING", f"Expected a string value (field: {path})", path)
    if len(value) > longest:
        raise refused(400, code, f"Field must not be greater than {longest} length", path)


def check_money(value: Any, where: str) -> None:
    """Refuse what is no amount in the smallest unit with a currency in capitals."""
    check_known(value, ("amount", "currency"), where)
    amount, currency = value.get("amount"), value.get("currency")
    if not isinstance(amount, int) or isinstance(amount, bool):
        raise refused(400, "EXPECTED_INTEGER", "Expected an integer value.", f"{where}.amount")
    if amount < 0:
        raise refused(400, "VALUE_TOO_LOW", "Must be at least 0.", f"{where}.amount")
    if not isinstance(currency, str) or currency != currency.upper() or currency.lower() not in CURRENCIES:
        raise refused(400, "INVALID_VALUE", f"`{currency}` is not a valid currency.", f"{where}.currency")


def limit_of(value: Any, *, default: int, most: int, strict: bool) -> int:
    """Read a page size. Out of bounds: refused when `strict`, else ignored."""
    if value is None or value == "":
        return default
    try:
        limit = int(value)
    except (TypeError, ValueError) as error:
        raise refused(400, "EXPECTED_INTEGER", "Expected an integer value.", "limit") from error
    if 1 <= limit <= most:
        return limit
    if not strict:
        return default
    if limit < 1:
        raise refused(400, "VALUE_TOO_LOW", "Must be at least 1.", "limit")
    raise refused(400, "VALUE_TOO_HIGH", f"Must be at most {most}.", "limit")


def time_of(value: Any, where: str) -> str | None:
    """Read an RFC 3339 time into the form stored, which sorts by time."""
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise refused(400, "INVALID_TIME", f"`{value}` is not an RFC 3339 time.", where) from error
    if moment.tzinfo is None:
        raise refused(400, "INVALID_TIME", f"`{value}` has no offset.", where)
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def range_of(given: Any, where: str) -> tuple[str | None, str | None]:
    """Read `{start_at, end_at}`."""
    given = {} if given is None else given
    check_known(given, ("start_at", "end_at"), where)
    return time_of(given.get("start_at"), f"{where}.start_at"), time_of(
        given.get("end_at"), f"{where}.end_at"
    )


def listed(name: str, found: list[Json], cursor: str | None) -> Answer:
    """Answer with a page: the list is left out when empty, the cursor at the end."""
    body: Json = {}
    if found:
        body[name] = found
    if cursor:
        body["cursor"] = cursor
    return Answer(200, body)


QUANTITY = re.compile(r"\d{1,12}(\.\d{1,5})?")
