"""A stand-in for Square: the API, OAuth, and the control calls. The parts are in `square_*.py`."""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson

from tests.sandbox import square_catalog as catalog
from tests.sandbox import square_customers as customers
from tests.sandbox import square_sales as sales
from tests.sandbox.core import Answer, Call, Handler, Route, SandboxClock, StandIn, rfc3339
from tests.sandbox.courier import Letter
from tests.sandbox.shelf import Json
from tests.sandbox.square_oauth import (
    ACCESS_SECONDS,
    SCOPES,
    Access,
    Application,
    Credentials,
    SquareAuthorization,
)
from tests.sandbox.square_world import Seller, World, errors, refused, seller_of

DEFAULT_MERCHANT = "MDEMO"
DEFAULT_CLIENT = "sq0idp-demo"
DEFAULT_SECRET = "sq0csp-demo"
PERSONAL_TOKEN = "EAAAdemo-personal"
CATALOG_WRITE_SECONDS = 0.01  # long enough for a second write to meet the first
# The older page's schedule: 1, 2, 4, 8, 16 and 32 minutes, then each hour for three days.
RETRY_WAITS = (60.0, 120.0, 240.0, 480.0, 960.0, 1_920.0, *(3_600.0,) * 70)
DELIVERY_SECONDS = 10.0

# call, handler, scope, writes
CALLS: Sequence[tuple[str, Callable[[World, Call], Answer], str, bool]] = (
    ("GET /v2/catalog/info", catalog.info, "ITEMS_READ", False),
    ("GET /v2/catalog/list", catalog.list_all, "ITEMS_READ", False),
    ("POST /v2/catalog/search", catalog.search, "ITEMS_READ", False),
    ("GET /v2/catalog/object/{id}", catalog.get_one, "ITEMS_READ", False),
    ("POST /v2/catalog/batch-retrieve", catalog.get_many, "ITEMS_READ", False),
    ("POST /v2/catalog/object", catalog.upsert_one, "ITEMS_WRITE", True),
    ("POST /v2/catalog/batch-upsert", catalog.upsert_many, "ITEMS_WRITE", True),
    ("DELETE /v2/catalog/object/{id}", catalog.delete_one, "ITEMS_WRITE", True),
    ("POST /v2/catalog/batch-delete", catalog.delete_many, "ITEMS_WRITE", True),
    ("GET /v2/customers", customers.list_all, "CUSTOMERS_READ", False),
    ("POST /v2/customers/search", customers.search, "CUSTOMERS_READ", False),
    ("GET /v2/customers/{id}", customers.get_one, "CUSTOMERS_READ", False),
    ("POST /v2/customers/bulk-retrieve", customers.bulk_retrieve, "CUSTOMERS_READ", False),
    ("POST /v2/customers", customers.create, "CUSTOMERS_WRITE", True),
    ("PUT /v2/customers/{id}", customers.update, "CUSTOMERS_WRITE", True),
    ("DELETE /v2/customers/{id}", customers.delete, "CUSTOMERS_WRITE", True),
    ("POST /v2/customers/bulk-create", customers.bulk_create, "CUSTOMERS_WRITE", True),
    ("POST /v2/customers/bulk-update", customers.bulk_update, "CUSTOMERS_WRITE", True),
    ("POST /v2/customers/bulk-delete", customers.bulk_delete, "CUSTOMERS_WRITE", True),
    ("POST /v2/orders/search", sales.search_orders, "ORDERS_READ", False),
    ("POST /v2/orders/batch-retrieve", sales.get_orders, "ORDERS_READ", False),
    ("GET /v2/orders/{id}", sales.get_order, "ORDERS_READ", False),
    ("POST /v2/orders", sales.create_order, "ORDERS_WRITE", True),
    ("PUT /v2/orders/{id}", sales.update_order, "ORDERS_WRITE", True),
    ("GET /v2/payments", sales.list_payments, "PAYMENTS_READ", False),
    ("GET /v2/payments/{id}", sales.get_payment, "PAYMENTS_READ", False),
    ("POST /v2/payments", sales.create_payment, "PAYMENTS_WRITE", True),
    ("GET /v2/refunds", sales.list_refunds, "PAYMENTS_READ", False),
    ("GET /v2/refunds/{id}", sales.get_refund, "PAYMENTS_READ", False),
    ("POST /v2/inventory/counts/batch-retrieve", sales.get_counts, "INVENTORY_READ", False),
    ("POST /v2/inventory/changes/batch-create", sales.change_inventory, "INVENTORY_WRITE", True),
)


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where the application's events go, and the key that signs them."""

    url: str
    key: str


_SHELVES = ("customer", "order", "payment", "refund", "count")


class Square(StandIn):
    """The API and the OAuth server, `https://connect.squareupsandbox.com`."""

    version_header = "square-version"

    def __init__(self, clock: SandboxClock | None = None) -> None:
        super().__init__(clock)

    def route_table(self) -> Sequence[Route]:
        return [
            Route("GET /oauth2/authorize", self._authorize, limits_apply=False),
            Route("POST /oauth2/authorize", self._authorize, limits_apply=False),
            Route("POST /oauth2/token", lambda call: self.oauth.token(call), limits_apply=False),
            Route("POST /oauth2/revoke", lambda call: self.oauth.revoke(call), limits_apply=False),
            Route("POST /oauth2/token/status", lambda call: self.oauth.status(call), limits_apply=False),
            Route("GET /v2/merchants/me", self._merchant, scope="MERCHANT_PROFILE_READ"),
            Route("GET /v2/merchants/{id}", self._merchant, scope="MERCHANT_PROFILE_READ"),
            Route("GET /v2/locations", self._locations, scope="MERCHANT_PROFILE_READ"),
            Route("GET /v2/locations/{id}", self._location, scope="MERCHANT_PROFILE_READ"),
            *(Route(key, self._in_world(run), writes, scope) for key, run, scope, writes in CALLS),
        ]

    def _in_world(self, run: Callable[[World, Call], Answer]) -> Handler:
        return lambda call: run(self.world, call)

    def control_table(self) -> dict[str, Handler]:
        return {
            "POST /_sandbox/accounts": self._new_account,
            "POST /_sandbox/orders": self._new_orders,
            "POST /_sandbox/subscriptions": self._subscribe,
        }

    def empty_state(self) -> None:
        self.world = World(self.clock, self.effect)
        self.world.tell = self._tell
        self.subscriptions: list[Subscription] = []
        self.world.new_seller(DEFAULT_MERCHANT)
        self.credentials = Credentials()
        self.credentials.applications[DEFAULT_CLIENT] = Application(DEFAULT_CLIENT, DEFAULT_SECRET)
        self.oauth = SquareAuthorization(self.clock, self.credentials)
        self._add_personal_token(PERSONAL_TOKEN, DEFAULT_MERCHANT)

    def memory(self) -> Sequence[tuple[object, Sequence[str]]]:
        world = ("sellers", "random", "_pages", "_last_stamp", "_outcomes")
        return [
            (self.world, world),
            (self, ("subscriptions",)),
            (self.credentials, ("applications", "codes", "refresh", "access")),
        ]

    def _add_personal_token(self, token: str, merchant: str) -> None:
        self.credentials.access[token] = Access(
            token, DEFAULT_CLIENT, merchant, frozenset(SCOPES), self.clock.now() + 365 * 100 * 86_400
        )

    @property
    def seller(self) -> Seller:
        """The merchant every sandbox starts with."""
        return self.world.sellers[DEFAULT_MERCHANT]

    def stored(self, kind: str) -> list[Json]:
        found: list[Json] = []
        for seller in self.world.sellers.values():
            if kind.lower() in _SHELVES:
                values = list(getattr(seller, f"{kind.lower()}s").objects.values())
            elif kind.lower() == "catalog":
                values = list(seller.catalog.objects.values())
            elif kind.upper() in catalog.DATA_FIELDS:
                values = [value for value in seller.catalog.objects.values() if value["type"] == kind.upper()]
            else:
                known = sorted({*_SHELVES, "catalog", *map(str.lower, catalog.DATA_FIELDS)})
                raise ValueError(f"no type {kind!r}; there are {known}")
            found += [{**value, "account": seller.id} for value in values]
        return found

    # Webhooks: what the developer's own page sets, for all sellers of the application.

    def _subscribe(self, call: Call) -> Answer:
        given = call.json()
        self.subscriptions.append(Subscription(str(given["url"]), str(given["key"])))
        return Answer(200, {"subscriptions": len(self.subscriptions)})

    def _tell(self, seller: Seller, kind: str, data: Json) -> None:
        event = {
            "merchant_id": seller.id,
            "type": kind,
            "event_id": str(UUID(int=self.world.random.getrandbits(128), version=4)),
            "created_at": rfc3339(self.clock.now()),
            "data": data,
        }
        for subscription in self.subscriptions:
            self.deliver(subscription, event)

    def deliver(self, subscription: Subscription, event: Json) -> None:
        """Send an event; every try has the same signature, for no time is signed."""
        content = orjson.dumps(event)
        signed = subscription.url.encode() + content
        digest = hmac.new(subscription.key.encode(), signed, hashlib.sha256).digest()

        def sign(number: int) -> Mapping[str, str]:
            headers = {
                "x-square-hmacsha256-signature": base64.b64encode(digest).decode(),
                "square-environment": "Sandbox",
            }
            again = {"square-retry-number": str(number), "square-retry-reason": "http_error"}
            return {**headers, **again} if number else headers

        self.courier.send(
            Letter(
                f"{event['type']} {event['event_id']}",
                subscription.url,
                content,
                "application/json",
                sign,
                RETRY_WAITS,
                DELIVERY_SECONDS,
            )
        )

    # Errors, tokens, and one catalog write at a time.

    def failure(self, status: int, detail: str | None = None) -> Answer:
        match status:
            case 404:
                return errors(404, "NOT_FOUND", f"API endpoint for `{detail}` not found")
            case 429:
                return errors(429, "RATE_LIMITED", "Too many requests; try again later.")
            case 503:
                return errors(503, "SERVICE_UNAVAILABLE", "The service is not available.")
            case 504:
                return errors(504, "GATEWAY_TIMEOUT", "The service took too long.")
        return errors(
            status, "INTERNAL_SERVER_ERROR", "An internal error has occurred.", category="API_ERROR"
        )

    def admit(self, call: Call, route: Route) -> Answer | None:
        if route.scope is None:
            return None
        token = self.oauth.bearer(call)
        if route.scope not in token.scopes:
            message = f"The merchant has not given your application sufficient permissions: {route.scope}"
            raise refused(403, "INSUFFICIENT_SCOPES", message)
        seller = self.world.sellers[token.merchant]
        call.state["seller"] = seller
        if self._is_catalog_write(route):
            if seller.catalog_busy:
                raise refused(429, "RATE_LIMITED", "Another catalog write of this seller is under way.")
            seller.catalog_busy = True
            call.state["catalog_claimed"] = True
        return None

    def _is_catalog_write(self, route: Route) -> bool:
        return route.writes and "/v2/catalog/" in route.key

    def hold(self, call: Call, route: Route) -> float:
        return CATALOG_WRITE_SECONDS if self._is_catalog_write(route) else 0.0

    def settle(self, call: Call, answer: Answer) -> None:
        # Keys are in the body here, so each handler keeps its own outcome.
        self.counts.replayed += self.world.replayed
        self.world.replayed = 0

    def release(self, call: Call) -> None:
        if call.state.get("catalog_claimed"):
            seller_of(call).catalog_busy = False

    def finish(self, call: Call, answer: Answer) -> Answer:
        version = call.headers.get("square-version", "2026-09-16")
        return Answer(
            answer.status, answer.body, {**answer.headers, "Square-Version": version}, answer.content_type
        )

    def repeated(self, page: Answer) -> Answer:
        body = page.body
        if isinstance(body, dict):
            body = {**body, "cursor": "the-same-page-again"}
        return Answer(page.status, orjson.dumps(body), page.headers)

    def revoke(self, given: Json) -> int:
        token = given.get("token") or given.get("key")
        if token is None:
            merchant = str(given.get("account"))
            if merchant not in self.world.sellers:
                raise ValueError(f"no merchant {merchant!r}")
            return self.oauth.end(merchant)
        if token in self.credentials.access:
            self.credentials.access[token].revoked = True
            return 1
        if token in self.credentials.refresh:
            self.credentials.refresh[token].spent = True
            return 1
        raise ValueError("no such token")

    # The seller.

    def _authorize(self, call: Call) -> Answer:
        return self.oauth.authorize(call, self.world.sellers.__contains__)

    def _merchant(self, call: Call) -> Answer:
        seller = seller_of(call)
        if call.parts.get("id", seller.id) != seller.id:
            raise refused(404, "NOT_FOUND", "No such merchant.")
        return Answer(
            200,
            {
                "merchant": {
                    "id": seller.id,
                    "business_name": f"Venue {seller.id}",
                    "country": seller.country,
                    "language_code": "en-US",
                    "currency": seller.currency,
                    "status": "ACTIVE",
                    "main_location_id": seller.location_ids()[0],
                    "created_at": "2020-01-01T00:00:00.000Z",
                }
            },
        )

    def _locations(self, call: Call) -> Answer:
        return Answer(200, {"locations": seller_of(call).locations})

    def _location(self, call: Call) -> Answer:
        wanted, seller = call.parts["id"], seller_of(call)
        wanted = seller.location_ids()[0] if wanted == "main" else wanted
        for location in seller.locations:
            if location["id"] == wanted:
                return Answer(200, {"location": location})
        raise refused(404, "NOT_FOUND", "No such location.")

    # Control.

    def _new_account(self, call: Call) -> Answer:
        given = call.json()
        name = str(given.get("account") or given.get("merchant") or f"M{self.world.new_id(12)}")
        seller = self.world.sellers.get(name) or self.world.new_seller(
            name, str(given.get("currency", "USD")), str(given.get("country", "US"))
        )
        scopes = [str(scope) for scope in given.get("scopes", SCOPES)]
        access = self.oauth.issue_access(DEFAULT_CLIENT, name, scopes, ACCESS_SECONDS)
        return Answer(
            200,
            {
                "account": name,
                "token": access.token,
                "expires_at": rfc3339(access.expires_at),
                "locations": seller.location_ids(),
            },
        )

    def _new_orders(self, call: Call) -> Answer:
        given = call.json()
        seller = self.world.sellers[str(given.get("account", DEFAULT_MERCHANT))]
        known = list(seller.customers.objects.values()) if given.get("with_customers", True) else []
        return Answer(
            200, {"orders": sales.seed_orders(self.world, seller, int(given.get("count", 1)), known)}
        )


def seed_demo(square: Square, known_emails: Sequence[str] = ()) -> None:
    """Fill the default merchant: 10 customers who were there before, and 100 paid orders."""
    seller = square.seller
    now = square.clock.now()
    for place, (given_name, family_name) in enumerate(_PEOPLE):
        known = place < min(len(known_emails), 6)
        customers.new(
            square.world,
            seller,
            {
                "given_name": given_name,
                "family_name": family_name,
                "email_address": known_emails[place] if known else f"regular{place + 1}@mail.example",
                "reference_id": f"pos-{place + 1}",
            },
            rfc3339(now - (120 - place) * 86_400),
        )
    sales.seed_orders(square.world, seller, 100, list(seller.customers.objects.values()))


_PEOPLE = (
    *(("Amélie", "Dupont"), ("Björn", "Lindqvist"), ("Carmen", "García Núñez"), ("Dmitri", "Sokolov")),
    *(("Eoin", "Ó Briain"), ("Fatima", "El-Sayed"), ("Gülşen", "Yıldız"), ("Haruka", "Sato")),
    *(("Ines", "Gonçalves"), ("Jane", "Smith")),
)
