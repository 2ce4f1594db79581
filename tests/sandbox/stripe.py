"""A stand-in for Stripe's API v1: form bodies, immutable prices, last-id cursors, events.

Every account has one ledger for test and one for live keys, as they share nothing.
"""

import base64
import hashlib
import hmac
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter, methodcaller
from typing import Any

import orjson

from tests.sandbox import forms
from tests.sandbox.core import Answer, Call, Handler, RefusedError, Route, SandboxClock, StandIn
from tests.sandbox.courier import Letter
from tests.sandbox.forms import Check, ParameterError, flag, integer, list_of, metadata, one_of, text
from tests.sandbox.money import CURRENCIES
from tests.sandbox.shelf import Json, Shelf

DEFAULT_ACCOUNT = "acct_demo"
DAY = 86_400
EVENT_DAYS = 30
API_VERSION = "2026-10-28.endive"

PREFIXES = {
    "product": "prod",
    "price": "price",
    "customer": "cus",
    "payment_intent": "pi",
    "charge": "ch",
    "refund": "re",
    "balance_transaction": "txn",
    "event": "evt",
}
PATHS = {
    "product": "products",
    "price": "prices",
    "customer": "customers",
    "payment_intent": "payment_intents",
    "charge": "charges",
    "refund": "refunds",
    "balance_transaction": "balance_transactions",
    "event": "events",
}
INDEXES: Mapping[str, tuple[str, ...]] = {
    "price": ("product", "lookup_key"),
    "customer": ("email",),
    "payment_intent": ("customer",),
    "charge": ("customer", "payment_intent"),
    "refund": ("charge", "payment_intent"),
    "balance_transaction": ("source",),
}
EXPANDABLE = {
    "default_price": "price",
    "product": "product",
    "customer": "customer",
    "payment_intent": "payment_intent",
    "latest_charge": "charge",
    "charge": "charge",
    "balance_transaction": "balance_transaction",
}


def one_path(value: Any, param: str) -> str:
    """A path to what shall be expanded."""
    path = text()(value, param)
    if path is None:
        raise ParameterError("parameter_invalid_empty", f"You passed an empty string for '{param}'.", param)
    return str(path)


def currency(value: Any, param: str) -> str:
    """A known currency in lower case."""
    if value not in CURRENCIES:
        raise ParameterError(
            "parameter_invalid", f"Invalid currency: {value}. Use a lower-case ISO code.", param
        )
    return str(value)


EXPAND = list_of(one_path, most=20)
AMOUNT = integer(0, 999_999_999_999)
ADDRESS: Check = forms.fields(
    dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"), text())
)
RECURRING = forms.fields(
    {
        "interval": one_of("day", "week", "month", "year"),
        "interval_count": integer(1, 1095),
        "meter": text(),
        "trial_period_days": integer(1, 730),
        "usage_type": one_of("licensed", "metered"),
    },
    required=("interval",),
)
_CREATED_RANGE = forms.fields(dict.fromkeys(("gt", "gte", "lt", "lte"), integer(0, 10**11)))


def created_filter(value: Any, param: str) -> Any:
    """`created=<seconds>` or `created[gte]=…`."""
    return _CREATED_RANGE(value, param) if isinstance(value, dict) else integer(0, 10**11)(value, param)


LIST: Mapping[str, Check] = {
    "ending_before": text(),
    "expand": EXPAND,
    "limit": integer(1, 100),
    "starting_after": text(),
}
CREATED = {**LIST, "created": created_filter}
LISTS: Mapping[str, Mapping[str, Check]] = {
    "product": {
        **CREATED,
        "active": flag,
        "ids": list_of(text()),
        "shippable": flag,
        "type": one_of("good", "service"),
        "url": text(),
    },
    "price": {
        **CREATED,
        "active": flag,
        "currency": currency,
        "lookup_keys": list_of(text(200), most=10),
        "product": text(),
        "recurring": forms.anything,
        "type": one_of("one_time", "recurring"),
    },
    "customer": {**CREATED, "email": text(512), "test_clock": text()},
    "payment_intent": {**CREATED, "customer": text(), "customer_account": text()},
    "charge": {**CREATED, "customer": text(), "payment_intent": text(), "transfer_group": text()},
    "refund": {**CREATED, "charge": text(), "payment_intent": text()},
    "balance_transaction": {
        **CREATED,
        "currency": currency,
        "payout": text(),
        "source": text(),
        "type": text(),
    },
    "event": {**CREATED, "delivery_success": flag, "type": text(), "types": list_of(text(), most=20)},
}

_PRODUCT: Mapping[str, Check] = {
    "active": flag,
    "description": text(40_000),
    "expand": EXPAND,
    "images": list_of(text(2048), most=8),
    "marketing_features": list_of(forms.fields({"name": text(80)}, ("name",)), most=15),
    "metadata": metadata,
    "name": text(),
    "package_dimensions": forms.anything,
    "shippable": flag,
    "statement_descriptor": text(22),
    "tax_code": text(),
    "tax_details": forms.fields({"performance_location": text(), "tax_code": text()}),
    "unit_label": text(),
    "url": text(2048),
}
_DEFAULT_PRICE = forms.fields(
    {
        "currency": currency,
        "currency_options": forms.anything,
        "custom_unit_amount": forms.anything,
        "metadata": metadata,
        "recurring": RECURRING,
        "tax_behavior": one_of("exclusive", "inclusive", "unspecified"),
        "unit_amount": AMOUNT,
        "unit_amount_decimal": forms.decimal,
    },
    required=("currency",),
)
PRODUCT_CREATE = {
    **_PRODUCT,
    "default_price_data": _DEFAULT_PRICE,
    "id": text(255),
    "type": one_of("good", "service"),
}
PRODUCT_UPDATE = {**_PRODUCT, "default_price": text()}
PRICE_UPDATE: Mapping[str, Check] = {
    "active": flag,
    "currency_options": forms.anything,
    "expand": EXPAND,
    "lookup_key": text(200),
    "metadata": metadata,
    "nickname": text(),
    "tax_behavior": one_of("exclusive", "inclusive", "unspecified"),
    "transfer_lookup_key": flag,
}
PRICE_CREATE = {
    **PRICE_UPDATE,
    "billing_scheme": one_of("per_unit", "tiered"),
    "currency": currency,
    "custom_unit_amount": forms.anything,
    "product": text(),
    "product_data": forms.fields(
        {
            "active": flag,
            "id": text(255),
            "metadata": metadata,
            "name": text(),
            "statement_descriptor": text(22),
            "tax_code": text(),
            "tax_details": forms.anything,
            "unit_label": text(),
        },
        required=("name",),
    ),
    "recurring": RECURRING,
    "tiers": forms.anything,
    "tiers_mode": one_of("graduated", "volume"),
    "transform_quantity": forms.anything,
    "unit_amount": AMOUNT,
    "unit_amount_decimal": forms.decimal,
}


def email(value: Any, param: str) -> str | None:
    """At most 512 characters with something on both sides of an at sign."""
    checked = text(512)(value, param)
    name, at, host = str(checked or "").rpartition("@")
    if checked is not None and not (name and at and host and " " not in checked):
        raise ParameterError("email_invalid", f"Invalid email address: {checked}", param)
    return checked if checked is None else str(checked)


_CUSTOMER: Mapping[str, Check] = {
    "address": ADDRESS,
    "balance": integer(-999_999_999_999, 999_999_999_999),
    "business_name": text(150),
    "cash_balance": forms.anything,
    "description": text(),
    "email": email,
    "expand": EXPAND,
    "individual_name": text(150),
    "invoice_prefix": text(12),
    "invoice_settings": forms.anything,
    "metadata": metadata,
    "name": text(256),
    "next_invoice_sequence": integer(1, 10**9),
    "phone": text(20),
    "preferred_locales": list_of(text()),
    "shipping": forms.fields({"address": ADDRESS, "name": text(), "phone": text()}, ("address", "name")),
    "source": text(),
    "tax": forms.anything,
    "tax_exempt": one_of("none", "exempt", "reverse"),
}
CUSTOMER_CREATE = {
    **_CUSTOMER,
    "payment_method": text(),
    "tax_id_data": forms.anything,
    "test_clock": text(),
}
CUSTOMER_UPDATE = {**_CUSTOMER, "default_source": text()}
REFUND_CREATE: Mapping[str, Check] = {
    "amount": integer(1, 999_999_999_999),
    "charge": text(),
    "currency": currency,
    "customer": text(),
    "expand": EXPAND,
    "instructions_email": email,
    "metadata": metadata,
    "origin": text(),
    "payment_intent": text(),
    "reason": one_of("duplicate", "fraudulent", "requested_by_customer"),
    "refund_application_fee": flag,
    "reverse_transfer": flag,
}


ENDPOINT_CREATE: Mapping[str, Check] = {
    "api_version": text(),
    "connect": flag,
    "description": text(5000),
    "enabled_events": list_of(text()),
    "expand": EXPAND,
    "metadata": metadata,
    "url": text(2048),
}
DELIVERY_SECONDS = 20.0  # not stated by the provider
# Growing waits over three days for live events, three tries over some hours for others.
RETRY_WAITS = tuple(min(300.0 * 2**n, 43_200.0) for n in range(12))
TEST_RETRY_WAITS = (300.0, 3_600.0, 14_400.0)


@dataclass(slots=True)
class Ledger:
    """All objects of one account in one mode."""

    account: str
    live: bool
    shelves: dict[str, Shelf]
    deleted: dict[str, str] = field(default_factory=dict)  # id -> type


@dataclass(slots=True)
class Stored:
    """The first outcome of an idempotency key; `answer` is None while the call runs."""

    fingerprint: bytes
    answer: Answer | None = None


@dataclass(slots=True)
class Account:
    """An account and what it is."""

    id: str
    country: str = "US"
    currency: str = "usd"


@dataclass(slots=True)
class Endpoint:
    """Where events of a ledger are sent. `shown` is the object, without its secret."""

    account: str
    live: bool
    secret: str
    shown: Json

    def wants(self, kind: str) -> bool:
        events = self.shown["enabled_events"]
        return self.shown["status"] == "enabled" and ("*" in events or kind in events)


class Stripe(StandIn):
    """The API, `https://api.stripe.com`."""

    version_header = "stripe-version"

    def __init__(self, clock: SandboxClock | None = None) -> None:
        super().__init__(clock)

    def route_table(self) -> Sequence[Route]:
        lists = [Route(f"GET /v1/{path}", partial(self._list, kind=kind)) for kind, path in PATHS.items()]
        gets = [
            Route(f"GET /v1/{path}/{{id}}", partial(self._retrieve, kind=kind))
            for kind, path in PATHS.items()
        ]
        return [
            Route("GET /v1/account", self._account),
            *lists,
            *gets,
            Route("POST /v1/products", self._create_product, writes=True),
            Route("POST /v1/products/{id}", self._update_product, writes=True),
            Route("DELETE /v1/products/{id}", self._delete_product, writes=True),
            Route("POST /v1/prices", self._create_price, writes=True),
            Route("POST /v1/prices/{id}", self._update_price, writes=True),
            Route("POST /v1/customers", self._create_customer, writes=True),
            Route("POST /v1/customers/{id}", self._update_customer, writes=True),
            Route("DELETE /v1/customers/{id}", self._delete_customer, writes=True),
            Route("POST /v1/refunds", self._create_refund, writes=True),
            Route("GET /v1/webhook_endpoints", self._list_endpoints),
            Route("POST /v1/webhook_endpoints", self._create_endpoint, writes=True),
            Route("GET /v1/webhook_endpoints/{id}", self._retrieve_endpoint),
            Route("DELETE /v1/webhook_endpoints/{id}", self._delete_endpoint, writes=True),
        ]

    def control_table(self) -> dict[str, Handler]:
        return {
            "POST /_sandbox/accounts": self._new_account,
            "POST /_sandbox/payments": self._new_payments,
        }

    def empty_state(self) -> None:
        self._random = random.Random(20_261_124)
        self.accounts = {DEFAULT_ACCOUNT: Account(DEFAULT_ACCOUNT)}
        self.keys: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.ledgers: dict[tuple[str, bool], Ledger] = {}
        self._outcomes: dict[tuple[str, bool, str], Stored] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.ledger(DEFAULT_ACCOUNT, live=False)

    def memory(self) -> Sequence[tuple[object, Sequence[str]]]:
        return [(self, ("_random", "accounts", "keys", "revoked", "ledgers", "_outcomes", "endpoints"))]

    def ledger(self, account: str, *, live: bool) -> Ledger:
        """Return the ledger of an account, made when it is first asked for."""
        found = self.ledgers.get((account, live))
        if found is None:
            shelves = {
                kind: Shelf(
                    {"created": itemgetter("created")},
                    {name: methodcaller("get", name) for name in INDEXES.get(kind, ())},
                )
                for kind in PREFIXES
            }
            found = self.ledgers[account, live] = Ledger(account, live, shelves)
        return found

    def stored(self, kind: str) -> list[Json]:
        if kind not in PREFIXES:
            raise ValueError(f"no type {kind!r}; there are {sorted(PREFIXES)}")
        found: list[Json] = []
        for ledger in self.ledgers.values():
            found += [{**value, "account": ledger.account} for value in ledger.shelves[kind].objects.values()]
            found += [
                {"id": name, "object": kind, "deleted": True, "account": ledger.account}
                for name, deleted_kind in ledger.deleted.items()
                if deleted_kind == kind
            ]
        return found

    # Errors, keys, limits and repeated calls.

    def failure(self, status: int, detail: str | None = None) -> Answer:
        if status == 404:
            method, _, path = str(detail).partition(": ")
            return _error(404, f"Unrecognized request URL ({method}: {path}).")
        if status == 429:
            reason = detail or "global-rate"
            return Answer(
                429,
                {
                    "error": {
                        "type": "invalid_request_error",
                        "code": "rate_limit",
                        "message": "Request rate limit exceeded.",
                    }
                },
                {"Stripe-Rate-Limited-Reason": reason, "Stripe-Should-Retry": "true"},
            )
        return Answer(
            status,
            {"error": {"type": "api_error", "message": "An unknown error occurred; we have been notified."}},
        )

    def rates(self, call: Call) -> tuple[float | None, float | None]:
        live = "_live_" in _key_of(call)
        return (100.0 if live else 25.0), 25.0

    def admit(self, call: Call, route: Route) -> Answer | None:
        key = _key_of(call)
        account = self._account_of(key)
        if key.startswith("rk_") and call.key == "GET /v1/account":
            raise RefusedError(
                _error(
                    403,
                    "The provided key does not have the required permissions for this endpoint on account "
                    f"'{account}'. Another permission would allow this request.",
                    code="more_permissions_required",
                )
            )
        acting_for = call.headers.get("stripe-account", account)
        if acting_for not in self.accounts:
            message = f"The provided key does not have access to account '{acting_for}'"
            raise RefusedError(_error(403, message, code="account_invalid"))
        ledger = self.ledger(acting_for, live="_live_" in key)
        call.state["ledger"] = ledger
        call.state["given"] = self._parameters(call)
        name = call.headers.get("idempotency-key")
        if call.method != "POST" or name is None:
            return None
        return self._claim(call, ledger, name)

    def _claim(self, call: Call, ledger: Ledger, name: str) -> Answer | None:
        if not 0 < len(name) <= 255:
            raise RefusedError(
                _error(400, "An idempotency key has 1 to 255 characters.", kind="idempotency_error")
            )
        fingerprint = call.path.encode() + orjson.dumps(call.state["given"], option=orjson.OPT_SORT_KEYS)
        place = (ledger.account, ledger.live, name)
        known = self._outcomes.get(place)
        if known is None:
            self._outcomes[place] = Stored(fingerprint)
            call.state["claimed"] = place
            return None
        if known.fingerprint != fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used "
                f"with. Try using a key other than '{name}' if you meant to execute a different request."
            )
            raise RefusedError(_error(400, message, kind="idempotency_error"))
        if known.answer is None:
            message = f"There is currently another in-progress request using this Idempotent Key: {name}"
            raise RefusedError(_error(409, message, kind="idempotency_error", code="idempotency_key_in_use"))
        return Answer(
            known.answer.status, known.answer.body, {**known.answer.headers, "Idempotent-Replayed": "true"}
        )

    def settle(self, call: Call, answer: Answer) -> None:
        place = call.state.get("claimed")
        if place is None or (answer.status == 400 and _code_of(answer).startswith("parameter_")):
            return
        # The body is kept as bytes: the objects in it go on changing.
        self._outcomes[place].answer = Answer(answer.status, answer.content(), answer.headers)

    def release(self, call: Call) -> None:
        place = call.state.get("claimed")
        if place is not None and self._outcomes[place].answer is None:
            del self._outcomes[place]

    def executed_failure(self, call: Call, status: int, answer: Answer) -> Answer:
        # A 500 of Stripe's own is stored like any outcome; 502 to 504 come from something in front of it.
        return self.failure(500) if status == 500 else answer

    def finish(self, call: Call, answer: Answer) -> Answer:
        headers = {
            **answer.headers,
            "Request-Id": f"req_{self._random.getrandbits(56):014x}",
            "Stripe-Version": call.headers.get("stripe-version", API_VERSION),
        }
        if call.method == "POST" and (name := call.headers.get("idempotency-key")):
            headers["Idempotency-Key"] = name
        return Answer(answer.status, answer.body, headers, answer.content_type)

    def repeated(self, page: Answer) -> Answer:
        body = page.body
        if isinstance(body, dict) and "has_more" in body:
            body = {**body, "has_more": True}
        return Answer(page.status, orjson.dumps(body), page.headers)

    def revoke(self, given: Json) -> int:
        account, key = given.get("account"), given.get("key") or given.get("token")
        if key:
            self.revoked.add(str(key))
            return 1
        if account not in self.accounts:
            raise ValueError(f"no account {account!r}")
        self.revoked.add(str(account))
        return 1

    def _account_of(self, key: str) -> str:
        if not key:
            message = (
                "You did not provide an API key. You need to provide your API key in the Authorization "
                "header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
            )
            raise RefusedError(_error(401, message))
        shown = f"{key[:8]}{'*' * 8}{key[-4:]}"
        if key.startswith("pk_"):
            message = (
                "This API call cannot be made with a publishable API key. Please use a secret API key. "
                "You can find a list of your API keys at https://dashboard.stripe.com/account/apikeys."
            )
            raise RefusedError(_error(401, message, code="secret_key_required"))
        account = self.keys.get(key)
        if account is None and key.startswith(
            ("sk_test_demo", "sk_live_demo", "rk_test_demo", "rk_live_demo")
        ):
            account = DEFAULT_ACCOUNT
        if account is None:
            raise RefusedError(_error(401, f"Invalid API Key provided: {shown}"))
        if key in self.revoked or account in self.revoked:
            raise RefusedError(_error(401, f"Expired API Key provided: {shown}", code="api_key_expired"))
        return account

    def _parameters(self, call: Call) -> Json:
        try:
            if call.method != "POST":
                return forms.nest(call.query)
            kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
            if call.body and kind != "application/x-www-form-urlencoded":
                message = (
                    "Invalid request (check that your POST content type is "
                    f"application/x-www-form-urlencoded, not {kind or 'missing'})."
                )
                raise RefusedError(_error(400, message))
            return forms.decode(call.body.decode())
        except (ParameterError, UnicodeDecodeError) as error:
            raise RefusedError(_as_error(error)) from error

    # Reading.

    def _account(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        account = self.accounts[ledger.account]
        return Answer(
            200,
            {
                "id": account.id,
                "object": "account",
                "business_type": "company",
                "charges_enabled": True,
                "country": account.country,
                "default_currency": account.currency,
                "details_submitted": True,
                "email": f"owner@{account.id.replace('_', '-')}.example",
                "payouts_enabled": True,
                "type": "standard",
            },
        )

    def _retrieve(self, call: Call, kind: str) -> Answer:
        ledger, name = _ledger_of(call), call.parts["id"]
        given = _checked(call, {"expand": EXPAND})
        if kind == "customer" and ledger.deleted.get(name) == "customer":
            return Answer(200, {"id": name, "object": "customer", "deleted": True})
        value = _find(ledger, kind, name, param="id")
        if kind == "event" and value["created"] < self.clock.now() - EVENT_DAYS * DAY:
            raise RefusedError(_missing(kind, name, "id"))
        return Answer(200, _expanded(ledger, value, given.get("expand", [])))

    def _list(self, call: Call, kind: str) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, LISTS[kind])
        shelf = ledger.shelves[kind]
        limit = given.pop("limit", None) or 10
        expand = [path.removeprefix("data.") for path in given.pop("expand", [])]
        before, after = given.pop("ending_before", None), given.pop("starting_after", None)
        if before and after:
            raise RefusedError(
                _error(400, "Received both starting_after and ending_before parameters. Pass only one.")
            )
        if given.get("types") and given.get("type"):
            raise RefusedError(_error(400, "You may only specify one of these parameters: type, types."))
        if given.get("ids") and (before or after):
            raise RefusedError(_error(400, "The `ids` parameter cannot be used with cursors.", param="ids"))
        cursor = None
        if name := before or after:
            cursor = shelf.orders["created"].place(name)
            if cursor is None:
                raise RefusedError(
                    _missing(kind, name, "ending_before" if before else "starting_after", status=400)
                )
        at_least, at_most = _bounds(given.pop("created", None))
        if kind == "event":
            at_least = max(at_least or 0, int(self.clock.now()) - EVENT_DAYS * DAY)
        ordered = shelf.orders["created"]
        for index in INDEXES.get(kind, ()):
            if given.get(index):
                ordered = shelf.listed(index, given.pop(index))
                break
        fits = _filter(given)
        data: list[Json] = []
        more = False
        for _, _, name in ordered.walk(
            descending=not before, after=cursor, at_least=at_least, at_most=at_most
        ):
            value = shelf.objects[name]
            if not fits(value):
                continue
            if len(data) == limit:
                more = True
                break
            data.append(_expanded(ledger, value, expand))
        if before:
            data.reverse()
        return Answer(200, {"object": "list", "data": data, "has_more": more, "url": f"/v1/{PATHS[kind]}"})

    # Writing.

    def new_id(self, kind: str) -> str:
        """Return a fresh id of the type."""
        return f"{PREFIXES[kind]}_{self._random.getrandbits(84):021x}"

    def put(self, ledger: Ledger, kind: str, value: Json, event: str | None) -> Json:
        """Store an object and tell of it."""
        ledger.shelves[kind].put(value["id"], value)
        if event:
            self._tell(ledger, event, value)
        return value

    def _tell(
        self, ledger: Ledger, kind: str, value: Json, previous: Json | None = None, created: int | None = None
    ) -> None:
        self.effect(kind)
        # The snapshot is written out now, since the object goes on changing.
        data: Json = {"object": orjson.Fragment(orjson.dumps(value))}
        if previous is not None:
            data["previous_attributes"] = orjson.Fragment(orjson.dumps(previous))
        name = self.new_id("event")
        wanting = [
            each
            for each in self.endpoints.values()
            if (each.account, each.live) == (ledger.account, ledger.live) and each.wants(kind)
        ]
        event: Json = {
            "id": name,
            "object": "event",
            "api_version": API_VERSION,
            "created": self._seconds() if created is None else created,
            "data": data,
            "livemode": ledger.live,
            "pending_webhooks": len(wanting),
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        ledger.shelves["event"].put(name, event)
        for endpoint in wanting:
            self.deliver(endpoint, event)

    def deliver(self, endpoint: Endpoint, event: Json) -> None:
        """Send an event to an endpoint; each try has its own time and signature."""
        content = orjson.dumps(event, option=orjson.OPT_INDENT_2)

        def sign(_: int) -> Mapping[str, str]:
            seconds = self._seconds()
            signed = f"{seconds}.".encode() + content
            digest = hmac.new(endpoint.secret.encode(), signed, hashlib.sha256).hexdigest()
            return {"Stripe-Signature": f"t={seconds},v1={digest}"}

        self.courier.send(
            Letter(
                f"{event['type']} {event['id']}",
                endpoint.shown["url"],
                content,
                "application/json; charset=utf-8",
                sign,
                RETRY_WAITS if endpoint.live else TEST_RETRY_WAITS,
                DELIVERY_SECONDS,
            )
        )

    # Webhook endpoints.

    def _create_endpoint(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, ENDPOINT_CREATE, required=("enabled_events", "url"))
        if ledger.live and not given["url"].startswith("https://"):
            raise RefusedError(
                _error(400, "Invalid URL: URL must be HTTPS.", code="url_invalid", param="url")
            )
        name, secret = (
            f"we_{self._random.getrandbits(84):021x}",
            f"whsec_{self._random.getrandbits(160):040x}",
        )
        shown: Json = {
            "id": name,
            "object": "webhook_endpoint",
            "api_version": given.get("api_version"),
            "application": None,
            "created": self._seconds(),
            "description": given.get("description"),
            "enabled_events": given["enabled_events"],
            "livemode": ledger.live,
            "metadata": given.get("metadata") or {},
            "status": "enabled",
            "url": given["url"],
        }
        self.endpoints[name] = Endpoint(ledger.account, ledger.live, secret, shown)
        self.effect("webhook_endpoint.created")
        return Answer(200, {**shown, "secret": secret})

    def _endpoint_of(self, call: Call) -> Endpoint:
        ledger, name = _ledger_of(call), call.parts["id"]
        found = self.endpoints.get(name)
        if found is None or (found.account, found.live) != (ledger.account, ledger.live):
            raise RefusedError(_missing("webhook_endpoint", name, "webhook_endpoint"))
        return found

    def _retrieve_endpoint(self, call: Call) -> Answer:
        return Answer(200, self._endpoint_of(call).shown)

    def _list_endpoints(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        _checked(call, LIST)
        found = [
            each.shown
            for each in self.endpoints.values()
            if (each.account, each.live) == (ledger.account, ledger.live)
        ]
        return Answer(
            200, {"object": "list", "data": found[::-1], "has_more": False, "url": "/v1/webhook_endpoints"}
        )

    def _delete_endpoint(self, call: Call) -> Answer:
        name = self._endpoint_of(call).shown["id"]
        del self.endpoints[name]
        self.effect("webhook_endpoint.deleted")
        return Answer(200, {"id": name, "object": "webhook_endpoint", "deleted": True})

    # Time and changes.

    def _seconds(self) -> int:
        return int(self.clock.now())

    def _alter(self, ledger: Ledger, kind: str, value: Json, changes: Json) -> Json:
        """Set what `changes` names, store and tell, unless nothing changes."""
        previous: Json = {}
        for name, new in changes.items():
            if name == "metadata":
                new = _merged(value["metadata"], new)
            if value.get(name) != new:
                previous[name] = value.get(name)
                value[name] = new
        if not previous:
            return value
        if "updated" in value:
            previous["updated"] = value["updated"]
            value["updated"] = self._seconds()
        ledger.shelves[kind].put(value["id"], value)
        self._tell(ledger, f"{kind}.updated", value, previous)
        return value

    def _create_product(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, PRODUCT_CREATE, required=("name",))
        expand = given.pop("expand", [])
        price = given.pop("default_price_data", None)
        if price is not None:
            _check_amount(price, "default_price_data")
        value = self._product(ledger, given)
        if price is not None:
            value["default_price"] = self._price(ledger, {**price, "product": value["id"]})["id"]
        self.put(ledger, "product", value, "product.created")
        return Answer(200, _expanded(ledger, value, expand))

    def _product(self, ledger: Ledger, given: Json) -> Json:
        name = given.get("id") or self.new_id("product")
        if name in ledger.shelves["product"].objects:
            raise RefusedError(
                _error(400, "Product already exists.", code="resource_already_exists", param="id")
            )
        now = self._seconds()
        value: Json = {
            "id": name,
            "object": "product",
            "active": True,
            "created": now,
            "default_price": None,
            "description": None,
            "images": [],
            "livemode": ledger.live,
            "marketing_features": [],
            "metadata": {},
            "name": "",
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": None,
            "type": "service",
            "unit_label": None,
            "updated": now,
            "url": None,
        }
        value.update(_given(given, drop=("id",)))
        return value

    def _update_product(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        value = _find(ledger, "product", call.parts["id"], param="id")
        given = _checked(call, PRODUCT_UPDATE)
        expand = given.pop("expand", [])
        if "name" in given and given["name"] is None:
            raise RefusedError(_as_error(_empty("name")))
        if price := given.get("default_price"):
            found = _find(ledger, "price", price, param="default_price", status=400)
            if found["product"] != value["id"]:
                message = f"The price `{price}` belongs to another product."
                raise RefusedError(_error(400, message, param="default_price"))
            if not found["active"]:
                message = f"The price `{price}` is inactive and cannot be the default price."
                raise RefusedError(_error(400, message, param="default_price"))
        return Answer(200, _expanded(ledger, self._alter(ledger, "product", value, given), expand))

    def _delete_product(self, call: Call) -> Answer:
        ledger, name = _ledger_of(call), call.parts["id"]
        value = _find(ledger, "product", name, param="id")
        if len(ledger.shelves["price"].listed("product", name)):
            message = "This product cannot be deleted because it has one or more user-created prices."
            raise RefusedError(_error(400, message))
        ledger.shelves["product"].remove(name)
        ledger.deleted[name] = "product"
        self._tell(ledger, "product.deleted", value)
        return Answer(200, {"id": name, "object": "product", "deleted": True})

    def _create_price(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, PRICE_CREATE, required=("currency",))
        expand = given.pop("expand", [])
        data = given.pop("product_data", None)
        if (data is None) == (given.get("product") is None):
            message = "You must specify exactly one of `product` or `product_data`."
            raise RefusedError(_error(400, message, code="parameter_missing", param="product"))
        _check_amount(given)
        if data is None:
            _find(ledger, "product", given["product"], param="product", status=400)
        self._move_lookup_key(ledger, given, None)
        if data is not None:
            product = self.put(ledger, "product", self._product(ledger, data), "product.created")
            given["product"] = product["id"]
        return Answer(200, _expanded(ledger, self._price(ledger, given), expand))

    def _price(self, ledger: Ledger, given: Json) -> Json:
        amount, exact = given.get("unit_amount"), given.get("unit_amount_decimal")
        if amount is None and exact is not None and "." not in exact:
            amount = int(exact)
        value: Json = {
            "id": self.new_id("price"),
            "object": "price",
            "active": True,
            "billing_scheme": "per_unit",
            "created": self._seconds(),
            "currency": given["currency"],
            "custom_unit_amount": None,
            "livemode": ledger.live,
            "lookup_key": None,
            "metadata": {},
            "nickname": None,
            "product": given["product"],
            "recurring": None,
            "tax_behavior": "unspecified",
            "tiers_mode": None,
            "transform_quantity": None,
            "type": "recurring" if given.get("recurring") else "one_time",
        }
        value.update(_given(given, drop=("transfer_lookup_key", "tiers", "currency_options")))
        value["unit_amount"] = amount
        value["unit_amount_decimal"] = exact or (None if amount is None else str(amount))
        return self.put(ledger, "price", value, "price.created")

    def _move_lookup_key(self, ledger: Ledger, given: Json, own: str | None) -> None:
        wanted = given.get("lookup_key")
        transfer = given.pop("transfer_lookup_key", None)
        if not wanted:
            return
        prices = ledger.shelves["price"]
        holders = [key[2] for key in prices.listed("lookup_key", wanted).walk()]
        for name in holders:
            holder = prices.objects[name]
            if name == own or not holder["active"]:
                continue
            if not transfer:
                message = f"A price (`{name}`) already uses that lookup key."
                raise RefusedError(_error(400, message, code="resource_already_exists", param="lookup_key"))
            self._alter(ledger, "price", holder, {"lookup_key": None})

    def _update_price(self, call: Call) -> Answer:
        ledger, name = _ledger_of(call), call.parts["id"]
        value = _find(ledger, "price", name, param="id")
        given = _checked(call, PRICE_UPDATE)
        expand = given.pop("expand", [])
        if given.get("active") is False and value["active"]:
            product = ledger.shelves["product"].get(value["product"])
            if product is not None and product["default_price"] == name:
                message = "This price cannot be archived because it is the default price of its product."
                raise RefusedError(_error(400, message))
        if given.get("active") and not value["active"] and "lookup_key" not in given:
            self._move_lookup_key(ledger, {"lookup_key": value["lookup_key"]}, name)
        self._move_lookup_key(ledger, given, name)
        given.pop("currency_options", None)
        return Answer(200, _expanded(ledger, self._alter(ledger, "price", value, given), expand))

    def _create_customer(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, CUSTOMER_CREATE)
        expand = given.pop("expand", [])
        return Answer(200, _expanded(ledger, self.new_customer(ledger, given), expand))

    def new_customer(self, ledger: Ledger, given: Json, created: int | None = None) -> Json:
        """Store a customer with checked parameters."""
        value: Json = {
            "id": self.new_id("customer"),
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": self._seconds() if created is None else created,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "email": None,
            "invoice_prefix": f"{self._random.getrandbits(32):08X}",
            "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None},
            "livemode": ledger.live,
            "metadata": {},
            "name": None,
            "next_invoice_sequence": 1,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
        }
        value.update(_given(given, drop=("source", "payment_method", "tax", "tax_id_data", "cash_balance")))
        return self.put(ledger, "customer", value, "customer.created")

    def _update_customer(self, call: Call) -> Answer:
        ledger, name = _ledger_of(call), call.parts["id"]
        value = _find(ledger, "customer", name, param="id")
        given = _checked(call, CUSTOMER_UPDATE)
        expand = given.pop("expand", [])
        for unstored in ("source", "tax", "cash_balance"):
            given.pop(unstored, None)
        return Answer(200, _expanded(ledger, self._alter(ledger, "customer", value, given), expand))

    def _delete_customer(self, call: Call) -> Answer:
        ledger, name = _ledger_of(call), call.parts["id"]
        value = _find(ledger, "customer", name, param="id")
        ledger.shelves["customer"].remove(name)
        ledger.deleted[name] = "customer"
        self._tell(ledger, "customer.deleted", value)
        return Answer(200, {"id": name, "object": "customer", "deleted": True})

    def _create_refund(self, call: Call) -> Answer:
        ledger = _ledger_of(call)
        given = _checked(call, REFUND_CREATE)
        if name := given.get("charge"):
            charge = _find(ledger, "charge", name, param="charge")
        elif name := given.get("payment_intent"):
            intent = _find(ledger, "payment_intent", name, param="payment_intent")
            charge = _find(ledger, "charge", intent["latest_charge"], param="payment_intent")
        else:
            message = "One of these params should be provided for this request: payment_intent or charge."
            raise RefusedError(_error(400, message, code="parameter_missing"))
        left = charge["amount"] - charge["amount_refunded"]
        if left == 0:
            message = f"Charge {charge['id']} has already been refunded."
            raise RefusedError(_error(400, message, code="charge_already_refunded"))
        amount = given.get("amount") or left
        if amount > left:
            message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
            raise RefusedError(_error(400, message, param="amount"))
        refund = self._refund(ledger, charge, amount, given.get("reason"), given.get("metadata") or {})
        return Answer(200, _expanded(ledger, refund, given.get("expand", [])))

    def _refund(self, ledger: Ledger, charge: Json, amount: int, reason: str | None, notes: Json) -> Json:
        previous = {"amount_refunded": charge["amount_refunded"], "refunded": charge["refunded"]}
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        now = self._seconds()
        refund: Json = {
            "id": self.new_id("refund"),
            "object": "refund",
            "amount": amount,
            "charge": charge["id"],
            "created": now,
            "currency": charge["currency"],
            "metadata": dict(notes),
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "status": "succeeded",
        }
        refund["balance_transaction"] = self._entry(ledger, "refund", -amount, 0, refund, now)["id"]
        self.put(ledger, "refund", refund, "refund.created")
        self._tell(ledger, "charge.refunded", charge, previous)
        return refund

    def _entry(self, ledger: Ledger, kind: str, amount: int, fee: int, source: Json, created: int) -> Json:
        return self.put(
            ledger,
            "balance_transaction",
            {
                "id": self.new_id("balance_transaction"),
                "object": "balance_transaction",
                "amount": amount,
                "available_on": created + 2 * DAY,
                "created": created,
                "currency": source["currency"],
                "description": None,
                "fee": fee,
                "net": amount - fee,
                "reporting_category": kind,
                "source": source["id"],
                "status": "available" if created + 2 * DAY < self.clock.now() else "pending",
                "type": kind,
            },
            None,
        )

    # Control.

    def _new_account(self, call: Call) -> Answer:
        given = call.json()
        name = str(given.get("account") or f"acct_{self._random.getrandbits(64):016x}")
        key = str(given.get("key") or f"sk_test_{self._random.getrandbits(96):024x}")
        if not key.startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_")):
            raise ValueError("a key starts with sk_test_, sk_live_, rk_test_ or rk_live_")
        account = self.accounts.setdefault(
            name, Account(name, str(given.get("country", "US")), str(given.get("currency", "usd")))
        )
        self.keys[key] = name
        self.ledger(name, live="_live_" in key)
        return Answer(200, {"account": account.id, "key": key})

    def _new_payments(self, call: Call) -> Answer:
        given = call.json()
        account = str(given.get("account", DEFAULT_ACCOUNT))
        if account not in self.accounts:
            raise ValueError(f"no account {account!r}")
        ledger = self.ledger(account, live=bool(given.get("live", False)))
        made = self.seed_payments(ledger, int(given.get("count", 1)), list(given.get("customer_emails", [])))
        return Answer(200, {"payment_intents": made})

    def seed_payments(self, ledger: Ledger, count: int, emails: Sequence[str]) -> list[str]:
        """Store succeeded payments of the past 90 days; return the payment intents' ids.

        Each e-mail address belongs to one customer, found or made; payments go round them.
        """
        customers: list[Json] = []
        for address in emails:
            known = next(ledger.shelves["customer"].listed("email", address).walk(), None)
            customers.append(
                ledger.shelves["customer"].objects[known[2]]
                if known
                else self.new_customer(ledger, {"email": address})
            )
        now, made = self._seconds(), []
        for place in range(count):
            created = now - 90 * DAY + (place + 1) * (90 * DAY) // (count + 1)
            customer = customers[place % len(customers)] if customers else None
            made.append(self._payment(ledger, place, created, customer))
        return made

    def _payment(self, ledger: Ledger, place: int, created: int, customer: Json | None) -> str:
        money = ("usd", "eur", "gbp", "usd", "jpy", "cad", "usd", "kwd")[place % 8]
        amount = {"jpy": 4_800, "kwd": 12_500}.get(money, 4_500) * (1 + place % 4) + (place % 7) * 10
        name, charge_name = self.new_id("payment_intent"), self.new_id("charge")
        charge: Json = {
            "id": charge_name,
            "object": "charge",
            "amount": amount,
            "amount_captured": amount,
            "amount_refunded": 0,
            "billing_details": {
                "address": None,
                "email": customer and customer["email"],
                "name": customer and customer["name"],
                "phone": None,
            },
            "captured": True,
            "created": created,
            "currency": money,
            "customer": customer and customer["id"],
            "description": f"Tickets, order {1000 + place}",
            "disputed": False,
            "livemode": ledger.live,
            "metadata": {"order": str(1000 + place)},
            "paid": True,
            "payment_intent": name,
            "receipt_email": customer and customer["email"],
            "refunded": False,
            "status": "succeeded",
            "transfer_group": None,
        }
        fee = amount * 29 // 1000 + 30
        charge["balance_transaction"] = self._entry(ledger, "charge", amount, fee, charge, created)["id"]
        intent: Json = {
            "id": name,
            "object": "payment_intent",
            "amount": amount,
            "amount_received": amount,
            "capture_method": "automatic",
            "created": created,
            "currency": money,
            "customer": customer and customer["id"],
            "description": charge["description"],
            "latest_charge": charge_name,
            "livemode": ledger.live,
            "metadata": dict(charge["metadata"]),
            "payment_method_types": ["card"],
            "receipt_email": charge["receipt_email"],
            "status": "succeeded",
        }
        self.put(ledger, "charge", charge, None)
        self.put(ledger, "payment_intent", intent, None)
        self._tell(ledger, "charge.succeeded", charge, created=created)
        self._tell(ledger, "payment_intent.succeeded", intent, created=created)
        return name


def seed_demo(stripe: Stripe, known_emails: Sequence[str] = ()) -> None:
    """Fill the default account: 15 customers who were there before, and 120 payments."""
    ledger = stripe.ledger(DEFAULT_ACCOUNT, live=False)
    addresses = [
        known_emails[place] if place < min(len(known_emails), 8) else f"guest{place + 1}@mail.example"
        for place in range(15)
    ]
    since = int(stripe.clock.now()) - 120 * DAY
    for place, address in enumerate(addresses):
        given = {"email": address, "name": _NAMES[place], "metadata": {"source": "box office"}}
        stripe.new_customer(ledger, given, created=since + place * DAY)
    stripe.seed_payments(ledger, 120, addresses)


_NAMES = (
    *("Zoë Åkesson", "José Muñoz", "Mary-Jane O'Neill", "Łukasz Wójcik", "Priya Raman"),
    *("Chloé Lefèvre", "Tom Baker", "Nguyễn Thị Hoa", "Søren Kjær", "Anna Müller"),
    *("Kwame Mensah", "Yuki Tanaka", "Ivan Petrov", "Sofía Álvarez", "Grace Liu"),
)


def _key_of(call: Call) -> str:
    scheme, _, value = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[0]
        except ValueError:
            return ""
    return value.strip() if scheme.lower() == "bearer" else ""


def _ledger_of(call: Call) -> Ledger:
    ledger: Ledger = call.state["ledger"]
    return ledger


def _checked(call: Call, known: Mapping[str, Check], required: Iterable[str] = ()) -> Json:
    try:
        return forms.check_all(call.state["given"], known, tuple(required))
    except ParameterError as error:
        raise RefusedError(_as_error(error)) from error


def _find(ledger: Ledger, kind: str, name: str, *, param: str, status: int = 404) -> Json:
    value = ledger.shelves[kind].get(name)
    if value is None:
        raise RefusedError(_missing(kind, name, param, status))
    return value


def _missing(kind: str, name: str, param: str, status: int = 404) -> Answer:
    named = "PaymentIntent" if kind == "payment_intent" else kind.replace("_", " ")
    return _error(status, f"No such {named}: '{name}'", code="resource_missing", param=param)


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> Answer:
    body: Json = {"type": kind, "message": message}
    if code:
        body["code"] = code
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    if param:
        body["param"] = param
    return Answer(status, {"error": body})


def _as_error(error: Exception) -> Answer:
    if isinstance(error, ParameterError):
        return _error(400, error.message, code=error.code, param=error.param)
    return _error(400, "The body is not valid UTF-8.", code="parameter_invalid_string")


def _empty(param: str) -> ParameterError:
    message = f"You passed an empty string for '{param}'. {param} cannot be unset."
    return ParameterError("parameter_invalid_empty", message, param)


def _code_of(answer: Answer) -> str:
    body = answer.body
    return str(body["error"].get("code", "")) if isinstance(body, dict) and "error" in body else ""


def _check_amount(given: Json, prefix: str = "") -> None:
    amounts = [name for name in ("unit_amount", "unit_amount_decimal", "custom_unit_amount") if name in given]
    if given.get("billing_scheme") == "tiered":
        return
    if len(amounts) != 1:
        message = (
            "Exactly one of `unit_amount`, `unit_amount_decimal` or `custom_unit_amount` is required "
            "unless `billing_scheme` is `tiered`."
        )
        param = f"{prefix}[unit_amount]" if prefix else "unit_amount"
        raise RefusedError(_error(400, message, code="parameter_missing", param=param))


def _given(given: Json, drop: Iterable[str]) -> Json:
    """What is stored of checked parameters: the unset ones keep their first values."""
    return {name: value for name, value in given.items() if value is not None and name not in drop}


def _merged(old: dict[str, str], changes: dict[str, str] | None) -> dict[str, str]:
    if changes is None:
        return {}
    return {key: value for key, value in {**old, **changes}.items() if value != ""}


def _bounds(created: Any) -> tuple[int | None, int | None]:
    if created is None:
        return None, None
    if isinstance(created, int):
        return created, created
    least = [created["gte"]] if "gte" in created else []
    least += [created["gt"] + 1] if "gt" in created else []
    most = [created["lte"]] if "lte" in created else []
    most += [created["lt"] - 1] if "lt" in created else []
    return max(least, default=None), min(most, default=None)


def _filter(given: Json) -> Callable[[Json], bool]:
    """Return what tells whether an object fits the filters that are left."""
    exact: Json = {}
    among: dict[str, frozenset[str]] = {}
    starts = ""
    for name, wanted in given.items():
        if wanted is None or name in ("delivery_success", "recurring", "payout", "test_clock"):
            continue
        if name in ("ids", "lookup_keys", "types"):
            among[name.removesuffix("s")] = frozenset(wanted)
        elif name == "type" and wanted.endswith("*"):
            starts = wanted[:-1]
        else:
            exact[name] = wanted

    def fits(value: Json) -> bool:
        return (
            all(value.get(name) == wanted for name, wanted in exact.items())
            and all(value.get(name) in wanted for name, wanted in among.items())
            and (not starts or value["type"].startswith(starts))
        )

    return fits


def _expanded(ledger: Ledger, value: Json, paths: Sequence[str]) -> Json:
    for path in paths:
        head, _, rest = path.partition(".")
        kind = EXPANDABLE.get(head)
        if kind is None or head not in value:
            raise RefusedError(_error(400, f"This property cannot be expanded ({path}).", param="expand"))
        inner = value[head]
        if isinstance(inner, str):
            found = ledger.shelves[kind].get(inner)
            inner = found if found is not None else {"id": inner, "object": kind, "deleted": True}
        if rest and isinstance(inner, dict):
            inner = _expanded(ledger, inner, [rest])
        value = {**value, head: inner}
    return value
