"""A stand-in for QuickBooks Online: the API, Intuit's OAuth server, and the control calls.

The parts are in `quickbooks_*.py`. Beside the shared control calls there are

    POST /_sandbox/sales      {"count", "account"}: so many paid sales receipts
    POST /_sandbox/behaviour  {name: value}: what `Behaviour` in quickbooks_world.py lists
    POST /_sandbox/limits     also takes the names in LIMITS and "concurrent"; {"all": null} lifts all

What the documentation leaves open is decided here. Those marked * are switched by `behaviour`.

* tokens: a replaced refresh token is dead at once *; a code lives 10 minutes; revoking one token ends the
  whole consent; PKCE parameters are ignored; any loopback address may be the redirect
* 401: an unknown token gets the gateway's lower-case body, in JSON; an ended one gets a Fault with 3200
* 403: another company's path 3100, a missing scope 120
* 429: code 003001 *, no Retry-After *; minutes and months are counted from their starts
* a request id is remembered for ever once a write succeeded; with another body it is error 600 *
* an inactive row can be read by its id *, but not referred to (610); names stay taken by inactive rows
* names, and text in queries, compare without regard to case; `SELECT *` leaves an item's Sku out *
* without ORDERBY the row changed last comes first, so pages shift when rows change
* PrimaryEmailAddr can be asked for in WHERE, by that name only
* query errors are 4000 (language) and 4001 (field, entity, bounds); unknown fields in a body are 2010
* name parts have 100 characters *; an item's Type never changes *; QtyOnHand is written once
* the lines of a sale need an ItemRef, and Amount = Qty x UnitPrice is checked (6070)
* numbers in bodies must be JSON numbers; only JSON bodies are taken
* change data capture keeps the longest-ago 1,000 changes, entity by entity in the order named
* DocNumbers may repeat *
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import orjson

from tests.sandbox import quickbooks_calls as calls
from tests.sandbox import quickbooks_query as query
from tests.sandbox import quickbooks_rows as rows
from tests.sandbox.core import Answer, Call, Handler, RefusedError, Route, SandboxClock, StandIn
from tests.sandbox.courier import Letter
from tests.sandbox.quickbooks_fields import WRITABLE
from tests.sandbox.quickbooks_oauth import ACCOUNTING, SCOPES, Access, Credentials, Grant, IntuitOAuth
from tests.sandbox.quickbooks_world import (
    Company,
    Windows,
    World,
    as_xml,
    fault,
    iso,
    month_of,
    refused,
)
from tests.sandbox.shelf import Json

REPLACES = (
    "https://quickbooks.api.intuit.com",
    "https://sandbox-quickbooks.api.intuit.com",
    "https://appcenter.intuit.com",
    "https://oauth.platform.intuit.com",
    "https://developer.api.intuit.com",
    "https://developer.intuit.com",
)
DEFAULT_REALM = "9341450000000001"
DEFAULT_CLIENT = "ABdemoQuickBooksClient"
DEFAULT_SECRET = "demo-quickbooks-secret"
LASTING_TOKEN = "eyJdemo-quickbooks"
DAY = 86_400
BASE = "/v3/company/{realm}"
REQUEST_ID_MOST = 50
BATCH_REQUEST_ID_MOST = 36

# name: how many, of which calls, counted for whom, in which stretch of time
LIMITS: dict[str, tuple[int, str, tuple[str, ...], str]] = {
    "requests_per_minute": (500, "all", ("realm",), "minute"),
    "batches_per_minute": (40, "batch", ("realm", "app"), "minute"),
    "company_batches_per_minute": (120, "batch", ("realm",), "minute"),
    "combined_per_minute": (800, "all", ("app",), "minute"),
    "reads_per_month": (500_000, "read", ("app",), "month"),
}
CONCURRENT = 10
PER_SECOND = 10.0

CALLS: Sequence[tuple[str, Callable[[World, Call], Answer], bool]] = (
    (f"GET {BASE}/query", query.by_get, False),
    (f"POST {BASE}/query", query.by_post, False),
    (f"GET {BASE}/cdc", calls.changes, False),
    (f"POST {BASE}/batch", calls.batch, True),
    (f"GET {BASE}/preferences", calls.preferences, False),
    (f"GET {BASE}/companyinfo/{{id}}", calls.company_info, False),
)


RETRY_WAITS = (10.0, 20.0, 30.0, 300.0, 1_200.0, 7_200.0, 14_400.0, 21_600.0, 21_600.0)
DELIVERY_SECONDS = 3.0
_VERBS = {"Create": "created", "Update": "updated", "Delete": "deleted", "Void": "voided"}


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where the application's events go, its verifier token, and which of the two forms they have."""

    url: str
    token: str
    cloud_events: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a row."""

    realm: str
    entity: str
    id: str
    done: str
    when: str


def _notifications(changes: Sequence[Change]) -> Json:
    entities: dict[str, list[Json]] = {}
    for each in changes:
        entities.setdefault(each.realm, []).append(
            {"name": each.entity, "id": each.id, "operation": each.done, "lastUpdated": each.when}
        )
    return {
        "eventNotifications": [
            {"realmId": realm, "dataChangeEvent": {"entities": found}} for realm, found in entities.items()
        ]
    }


def _cloud_events(changes: Sequence[Change]) -> list[Json]:
    return [
        {
            "specversion": "1.0",
            "id": str(uuid4()),
            "source": "intuit.sandbox",
            "type": f"qbo.{each.entity.lower()}.{_VERBS[each.done]}.v1",
            "datacontenttype": "application/json",
            "time": each.when,
            "intuitentityid": each.id,
            "intuitaccountid": each.realm,
            "data": {},
        }
        for each in changes
    ]


class QuickBooks(StandIn):
    """The API and the OAuth server: every host Intuit has for them."""

    version_header = "x-none"  # the version is in the query

    def __init__(self, clock: SandboxClock | None = None) -> None:
        super().__init__(clock)

    def route_table(self) -> Sequence[Route]:
        found = [
            Route("GET /connect/oauth2", self._authorize, limits_apply=False),
            Route("POST /connect/oauth2", self._authorize, limits_apply=False),
            *(
                Route(key, partial(self._in_oauth, run), limits_apply=False)
                for key, run in (
                    ("POST /oauth2/v1/tokens/bearer", IntuitOAuth.token),
                    ("POST /v2/oauth2/tokens/revoke", IntuitOAuth.revoke),
                    ("GET /.well-known/openid_configuration/", IntuitOAuth.discovery),
                    ("GET /.well-known/openid_sandbox_configuration/", IntuitOAuth.discovery),
                )
            ),
            *(Route(key, self._in_world(run), writes, ACCOUNTING) for key, run, writes in CALLS),
        ]
        for entity in WRITABLE:
            path = f"{BASE}/{entity.lower()}"
            save, read = partial(calls.save, entity=entity), partial(calls.read, entity=entity)
            found.append(Route(f"POST {path}", self._in_world(save), True, ACCOUNTING))
            found.append(Route(f"GET {path}/{{id}}", self._in_world(read), False, ACCOUNTING))
        return found

    def _in_world(self, run: Callable[[World, Call], Answer]) -> Handler:
        return lambda call: run(self.world, call)

    def _in_oauth(self, run: Callable[[IntuitOAuth, Call], Answer], call: Call) -> Answer:
        return run(self.oauth, call)

    def control_table(self) -> dict[str, Handler]:
        return {
            "POST /_sandbox/accounts": self._new_account,
            "POST /_sandbox/sales": self._new_sales,
            "POST /_sandbox/subscriptions": self._subscribe,
            "POST /_sandbox/limits": self._change_limits,
            "POST /_sandbox/behaviour": lambda call: Answer(200, self.world.behaviour.change(call.json())),
        }

    def empty_state(self) -> None:
        self.world = World(self.clock, self.effect)
        self.world.tell = self._tell
        self.subscription: Subscription | None = None
        self.gathered: list[Change] | None = None  # while changes are gathered into one delivery
        self.credentials = Credentials({DEFAULT_CLIENT: DEFAULT_SECRET})
        self.oauth = IntuitOAuth(self.clock, self.credentials, self.world.behaviour)
        self.windows = Windows()
        self.limits: dict[str, float | None] = {name: limit[0] for name, limit in LIMITS.items()}
        self.concurrent: float | None = CONCURRENT
        rows.new_company(self.world, DEFAULT_REALM, "Venue Demo")
        self.counts.effects.clear()
        lasting = self._grant(DEFAULT_REALM, SCOPES)
        self.credentials.access[LASTING_TOKEN] = Access(lasting, self.clock.now() + 365 * 100 * DAY)

    def memory(self) -> Sequence[tuple[object, Sequence[str]]]:
        issued = ("applications", "codes", "refresh", "access")
        return [
            (self.world, ("companies", "outcomes")),
            (self, ("subscription",)),
            (self.credentials, issued),
        ]

    def _grant(self, realm: str, scopes: Sequence[str]) -> Grant:
        return Grant(DEFAULT_CLIENT, realm, tuple(scopes), self.clock.now() + 5 * 365 * DAY)

    @property
    def company(self) -> Company:
        """The company every sandbox starts with."""
        return self.world.companies[DEFAULT_REALM]

    def stored(self, kind: str) -> list[Json]:
        known = {name.casefold(): name for name in self.company.tables}
        if kind.casefold() not in known:
            raise ValueError(f"no type {kind!r}; there are {sorted(known.values())}")
        found: list[Json] = []
        for company in self.world.companies.values():
            table = company.table(known[kind.casefold()])
            found += [{**row, "account": company.realm} for row in table.rows.values()]
            found += [{**row, "account": company.realm} for row in table.gone.values()]
        return found

    # Webhooks: what the developer portal sets, for all companies of the application.

    def _subscribe(self, call: Call) -> Answer:
        given = call.json()
        events = bool(given.get("cloud_events", False))
        self.subscription = Subscription(str(given["url"]), str(given["token"]), events)
        return Answer(200, {"cloud_events": events})

    def _tell(self, company: Company, entity: str, name: str, done: str, when: str) -> None:
        change = Change(company.realm, entity, name, done, when)
        if self.gathered is not None:
            self.gathered.append(change)
        else:
            self.deliver([change])

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Send what changes within the block as one delivery, of however many companies."""
        self.gathered = []
        try:
            yield
        finally:
            changes, self.gathered = self.gathered, None
            self.deliver(changes)

    def deliver(self, changes: Sequence[Change]) -> None:
        """Send changes as one delivery, in the form that is set."""
        subscription = self.subscription
        if subscription is None or not changes:
            return
        body = _cloud_events(changes) if subscription.cloud_events else _notifications(changes)
        content = orjson.dumps(body)
        digest = hmac.new(subscription.token.encode(), content, hashlib.sha256).digest()
        headers = {"intuit-signature": base64.b64encode(digest).decode()}
        name = ", ".join(f"{each.entity}.{each.done} {each.realm}/{each.id}" for each in changes)
        self.courier.send(
            Letter(
                name,
                subscription.url,
                content,
                "application/json; charset=utf-8",
                lambda _: headers,
                RETRY_WAITS,
                DELIVERY_SECONDS,
            )
        )

    # Errors, tokens, limits and repeated calls.

    def failure(self, status: int, detail: str | None = None) -> Answer:
        match status:
            case 401:
                return Answer(401, fault("3200", "AuthenticationFailed", kind="AuthenticationFault"))
            case 403:
                return Answer(403, fault("3100", "ApplicationAuthorizationFailed", kind="AuthorizationFault"))
            case 404:
                return Answer(404, fault("500", f"Operation {detail} is not supported."))
            case 429:
                behaviour = self.world.behaviour
                wait = behaviour.retry_after
                headers = {} if wait is None else {"Retry-After": str(wait)}
                body = fault(behaviour.throttle_code, "ThrottleExceeded", kind="ThrottlingFault")
                return Answer(429, body, headers)
        return Answer(
            status,
            fault(
                "10000", "An application error has occurred while processing your request", kind="SystemFault"
            ),
        )

    def rates(self, call: Call) -> tuple[float | None, float | None]:
        return PER_SECOND, None

    def admit(self, call: Call, route: Route) -> Answer | None:
        if route.scope is None:
            return None
        grant = self.oauth.bearer(call).grant
        if route.scope not in grant.scopes:
            raise refused("120", "Authorization Failure", kind="AuthorizationFault", status=403)
        realm = call.parts["realm"]
        if realm != grant.realm:
            detail = "ApplicationAuthorizationFailed"
            raise refused("3100", detail, kind="AuthorizationFault", status=403)
        call.state["company"] = self.world.companies[realm]
        parameters = dict(call.query)
        if version := parameters.get("minorversion"):
            self.counts.versions[version] += 1
        self._throttle(call, route, {"realm": realm, "app": grant.client_id})
        request_id = parameters.get("requestid")
        if call.method == "POST" and route.writes and request_id is not None:
            return self._claim(call, realm, request_id)
        return None

    def _throttle(self, call: Call, route: Route, who: dict[str, str]) -> None:
        now = self.clock.now()
        at = {"minute": int(now // 60), "month": month_of(now)}
        kinds = {"all", "batch"} if call.key.endswith("/batch") else {"all"}
        kinds |= set() if route.writes else {"read"}
        for name, (_, kind, whose, stretch) in LIMITS.items():
            most = self.limits[name]
            if most is None or kind not in kinds:
                continue
            if not self.windows.take((name, *(who[key] for key in whose)), at[stretch], most):
                raise RefusedError(self.failure(429))
        caller = (who["realm"], who["app"])
        if self.concurrent is not None and self.windows.under_way.get(caller, 0) >= self.concurrent:
            raise RefusedError(self.failure(429))
        self.windows.under_way[caller] = self.windows.under_way.get(caller, 0) + 1
        call.state["under_way"] = caller

    def _claim(self, call: Call, realm: str, request_id: str) -> Answer | None:
        most = BATCH_REQUEST_ID_MOST if call.key.endswith("/batch") else REQUEST_ID_MOST
        if not 0 < len(request_id) <= most:
            raise refused("2170", f"requestid must have 1 to {most} characters", "requestid")
        asked = [pair for pair in call.query if pair[0] in ("operation", "include")]
        text = call.path.encode() + orjson.dumps(asked) + call.body
        fingerprint, place = hashlib.sha256(text).digest(), (realm, request_id)
        known = self.world.outcomes.get(place)
        if known is None:
            self.world.outcomes[place] = (fingerprint, None)
            call.state["claimed"] = place, fingerprint
            return None
        if known[1] is None or (known[0] != fingerprint and not self.world.behaviour.clash_replays):
            raise refused("600", f"The request id {request_id} has been used.", "requestid")
        # Kept as text, since rows go on changing; read again, since it may be asked for as XML now.
        return Answer(known[1].status, orjson.loads(known[1].content()))

    def settle(self, call: Call, answer: Answer) -> None:
        if "claimed" in call.state and answer.status < 300:
            place, fingerprint = call.state["claimed"]
            self.world.outcomes[place] = (fingerprint, Answer(answer.status, answer.content()))

    def release(self, call: Call) -> None:
        if caller := call.state.pop("under_way", None):
            self.windows.under_way[caller] -= 1
        if "claimed" in call.state:
            place, _ = call.state["claimed"]
            if self.world.outcomes[place][1] is None:
                del self.world.outcomes[place]

    def finish(self, call: Call, answer: Answer) -> Answer:
        headers = {**answer.headers, "intuit_tid": f"1-{self.counts.total:08x}-sandbox"}
        body, kind = answer.body, answer.content_type
        asks_json = "application/json" in call.headers.get("accept", "")
        if call.path.startswith("/v3/") and not asks_json and isinstance(body, dict) and "fault" not in body:
            body, kind = as_xml(body), "application/xml"
        return Answer(answer.status, body, headers, kind)

    def repeated(self, page: Answer) -> Answer:
        # A full page is the promise of more; it comes again whatever position is asked for.
        return Answer(page.status, page.content(), page.headers, page.content_type)

    def revoke(self, given: Json) -> int:
        token = given.get("token") or given.get("key")
        if token is None:
            realm = str(given.get("account"))
            if realm not in self.world.companies:
                raise ValueError(f"no company {realm!r}")
            return self.oauth.end(realm)
        if token in self.credentials.access:
            self.credentials.access[token].revoked = True
            return 1
        if self.credentials.refresh.pop(token, None) is not None:
            return 1
        raise ValueError("no such token")

    def _authorize(self, call: Call) -> Answer:
        return self.oauth.authorize(call, self.world.companies.keys(), DEFAULT_REALM)

    # Control.

    def _change_limits(self, call: Call) -> Answer:
        given = call.json()
        if "all" in given:
            given = {**dict.fromkeys((*LIMITS, "concurrent", "requests_per_second")), **given}
            if given.pop("all") is not None:
                raise ValueError("all can only be null")
        for name, value in given.items():
            most = None if value is None else float(value)
            if name in LIMITS:
                self.limits[name] = most
            elif name == "concurrent":
                self.concurrent = most
            elif name in ("requests_per_second", "per_endpoint"):
                self.set_limits[name] = most
            else:
                raise ValueError(f"unknown limit {name!r}")
        return Answer(200, {**self.set_limits, **self.limits, "concurrent": self.concurrent})

    def _new_account(self, call: Call) -> Answer:
        given = call.json()
        realm = str(given.get("account") or int(DEFAULT_REALM) + len(self.world.companies))
        if not realm.isdigit():
            raise ValueError("a realm id has digits only")
        if realm not in self.world.companies:
            name = str(given.get("name", f"Venue {realm}"))
            country, currency = str(given.get("country", "US")), str(given.get("currency", "USD"))
            rows.new_company(self.world, realm, name, country, currency)
        grant = self._grant(realm, [str(scope) for scope in given.get("scopes", SCOPES)])
        refresh = self.oauth.new_refresh(grant)
        return Answer(
            200, {"account": realm, "token": self.oauth.new_access(grant), "refresh_token": refresh}
        )

    def _new_sales(self, call: Call) -> Answer:
        given = call.json()
        company = self.world.companies[str(given.get("account", DEFAULT_REALM))]
        return Answer(200, {"sales": seed_sales(self.world, company, int(given.get("count", 1)))})


def seed_sales(world: World, company: Company, count: int) -> int:
    """Add paid sales receipts, spread over the 90 days before now; return how many."""
    items = [row for row in company.table("Item").rows.values() if row["Active"]]
    if not items:
        values = {"Name": "Ticket", "Type": "Service", "UnitPrice": 25}
        values["IncomeAccountRef"] = rows.account_named(company, "Event Ticket Sales")
        items = [rows.create(world, company, "Item", values)]
    people = [row for row in company.table("Customer").rows.values() if row["Active"]]
    now = world.clock.now()
    for place in range(count):
        when = iso(now - (count - place) * 90 * DAY / max(count, 1))
        item, quantity = items[place % len(items)], 1 + place % 4
        detail = {
            "ItemRef": {"value": item["Id"]},
            "Qty": quantity,
            "UnitPrice": item["UnitPrice"],
        }
        line = {
            "Amount": round(quantity * item["UnitPrice"], 2),
            "DetailType": "SalesItemLineDetail",
            "SalesItemLineDetail": detail,
        }
        values = {"TxnDate": when[:10], "Line": [line]}
        if people and place % 5:
            values["CustomerRef"] = {"value": people[place % len(people)]["Id"]}
        rows.create(world, company, "SalesReceipt", values, when)
    return count


def seed_demo(made: QuickBooks, known_emails: Sequence[str] = ()) -> None:
    """Fill the default company: 12 customers and 6 items who were there before, 60 sales, 4 invoices."""
    world, company, now = made.world, made.company, made.clock.now()
    for place, (given_name, family_name) in enumerate(_PEOPLE):
        known = place < min(len(known_emails), 6)
        address = known_emails[place] if known else f"patron{place + 1}@mail.example"
        values: Json = {
            "GivenName": given_name,
            "FamilyName": family_name,
            "DisplayName": f"{given_name} {family_name}",
            "PrimaryEmailAddr": {"Address": address},
            "PrimaryPhone": {"FreeFormNumber": f"(415) 555-01{place:02d}"},
            "Active": place != len(_PEOPLE) - 1,
        }
        rows.create(world, company, "Customer", values, iso(now - (200 - place) * DAY))
    income = rows.account_named(company, "Event Ticket Sales")
    for place, (name, price) in enumerate(_ITEMS):
        values = {
            "Name": name,
            "Type": "Service",
            "UnitPrice": price,
            "Sku": f"QB-{place + 1}",
            "IncomeAccountRef": income,
            "Active": place != len(_ITEMS) - 1,
        }
        rows.create(world, company, "Item", values, iso(now - (150 - place) * DAY))
    rows.create(world, company, "Vendor", {"DisplayName": "Stage Lights Ltd"}, iso(now - 150 * DAY))
    seed_sales(world, company, 60)
    for place in range(4):
        _seed_invoice(world, company, str(place + 1), iso(now - (20 - place) * DAY), paid=place < 2)


def _seed_invoice(world: World, company: Company, customer: str, when: str, *, paid: bool) -> None:
    detail = {"ItemRef": {"value": "1"}, "Qty": 2, "UnitPrice": 45}
    line = {"Amount": 90, "DetailType": "SalesItemLineDetail", "SalesItemLineDetail": detail}
    values: Json = {"CustomerRef": {"value": customer}, "TxnDate": when[:10], "Line": [line]}
    invoice = rows.create(world, company, "Invoice", values, when)
    if paid:
        link = {"Amount": 90, "LinkedTxn": [{"TxnId": invoice["Id"], "TxnType": "Invoice"}]}
        values = {"CustomerRef": {"value": customer}, "TotalAmt": 90, "TxnDate": when[:10], "Line": [link]}
        rows.create(world, company, "Payment", values, when)


_PEOPLE = (
    *(("Amélie", "Dupont"), ("Björn", "Lindqvist"), ("Carmen", "García Núñez"), ("Dara", "O'Brien")),
    *(("Eoin", "Ó Briain"), ("Fatima", "El-Sayed"), ("Gülşen", "Yıldız"), ("Haruka", "Sato")),
    *(("Ines", "Gonçalves"), ("Jane", "Smith"), ("Kofi", "Mensah"), ("Lena", "Former")),
)
_ITEMS = (
    *(("General Admission", 45), ("VIP Balcony", 120.5), ("Student Ticket", 18), ("Coat Check", 3)),
    *(("Late Show", 27.5), ("Old Season Pass", 300)),
)
