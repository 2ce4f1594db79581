"""A whole hub for a test: API, worker and scheduler as processes, a platform to sync, simulated providers.

Everything is done as a client, an operator or a bad day would do it: through the public API, with signals, in
the platform's own tables, at the providers' control calls. Waiting is for conditions, each with a deadline.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import UUID, uuid5

import asyncpg
import httpx
import jwt
import redis
from sqlalchemy.engine import make_url

import server.demo
from server.processes import log_tail
from tests import canary
from tests.integration.forked import Forked
from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.running import Sandbox, running_sandbox

T = TypeVar("T")
Provider = Literal["stripe", "square", "mailchimp", "quickbooks"]

PROJECT = Path(__file__).resolve().parents[2]
API = "/api/v1/integrations"
PROVIDERS: tuple[Provider, ...] = ("stripe", "square")
AUDIENCE_AND_BOOKS: tuple[Provider, ...] = ("mailchimp", "quickbooks")
KEY = f"sk_live_demo_{canary.MARK}"
KEYS: Mapping[Provider, str] = {"stripe": KEY, "mailchimp": mailchimp.DEFAULT_KEY}
APP = ("sq0idp-demo", "sq0csp-demo")
VENUE = UUID("5d0c3a52-0f5e-4f59-8b39-0d3a5be5a3f1")
PLATFORM = "platform.tickets, platform.ticket_types, platform.orders, platform.customers, platform.events"
HUB = (
    "integration_configs, oauth_tokens, venue_api_keys, sync_queue, sync_logs, oauth_states, audit_log, "
    "idempotency_keys, record_links, sync_watermarks, pending_writes, record_failures"
)


# Making a client takes longer than what is asked with it. Connections aren't kept: servers come and go here.
_HTTP = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0))


# ---- one database -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Database:
    """SQL by hand, each call on a connection of its own, so that a restart of the server ends nothing."""

    url: str

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return a query's rows."""
        return [tuple(row) for row in self._do(lambda found: found.fetch(query, *values))]

    def one(self, query: str, *values: Any) -> Any:
        """Return the first value of a query's first row."""
        return self._do(lambda found: found.fetchval(query, *values))

    def execute(self, statement: str, *values: Any) -> None:
        self._do(lambda found: found.execute(statement, *values))

    def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._do(lambda found: found.executemany(statement, rows))

    def _do(self, work: Callable[[asyncpg.Connection], Any]) -> Any:
        async def run() -> Any:
            address = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
            connection = await asyncpg.connect(address)
            try:
                return await work(connection)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:  # whether or not this thread has an event loop running
            for _ in range(10):
                # What empties tables may meet a job that reads them in another order; then one of both loses.
                with suppress(asyncpg.DeadlockDetectedError):
                    return thread.submit(asyncio.run, run()).result()
            return thread.submit(asyncio.run, run()).result()


# ---- the platform -----------------------------------------------------------------------------------------

_SHOWS = ("Noche de Jazz", "東京の夜", "Ålesund – live", "Žižkov <Blues> & More", "Señora Ñandú")
_PRICES = (("45.00", "EUR"), ("4500", "JPY"), ("12.340", "KWD"), ("19.99", "USD"), ("0.50", "GBP"))
_PEOPLE = (("Zoë", "Brontë"), ("Ana María", "de la Cruz"), ("Łukasz", "Żak"), ("Jane", None), (None, "Cher"))


def event_id(number: int) -> UUID:
    return uuid5(VENUE, f"event {number}")


def customer_id(number: int) -> UUID:
    return uuid5(VENUE, f"customer {number}")


def fill_platform(database: Database, *, events: int, customers: int) -> None:
    """Put one venue with so many events on sale and customers in; a draft and a cancelled event besides."""
    database.execute(f"TRUNCATE {PLATFORM}")
    rows = []
    for number in range(events + 2):
        price, currency = _PRICES[number % len(_PRICES)]
        status = "draft" if number == events else "cancelled" if number == events + 1 else "on_sale"
        name = f"{_SHOWS[number % len(_SHOWS)]} {number}"
        rows.append((event_id(number), VENUE, name, status, Decimal(price), currency, number))
    database.insert(
        "INSERT INTO platform.events (id, venue_id, name, status, price, currency, updated_at) "
        "VALUES ($1, $2, $3, $4, $5, $6, timestamptz '2026-01-01' + make_interval(mins => $7))",
        rows,
    )
    people = []
    for number in range(customers):
        first, last = _PEOPLE[number % len(_PEOPLE)]
        email = f"guest{number}@example.com" if number % 10 != 7 else None
        phone = f"+4915112{number:06d}" if number % 3 else None
        people.append((customer_id(number), VENUE, first, last, email, phone, "Bruxelles", "BE", number))
    database.insert(
        "INSERT INTO platform.customers "
        "(id, venue_id, first_name, last_name, email, phone, city, country, updated_at) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, timestamptz '2026-01-01' + make_interval(mins => $9))",
        people,
    )


def sell(database: Database, orders: int) -> None:
    """Let so many orders be paid, in euros, each of one to three tickets for one event that is on sale."""
    database.execute("UPDATE platform.venues SET books_from = '2026-01-15' WHERE id = $1", VENUE)
    events = [
        (event, price)
        for event, price in database.rows(
            "SELECT id, price FROM platform.events "
            "WHERE venue_id = $1 AND status = 'on_sale' AND currency = 'EUR' ORDER BY id",
            VENUE,
        )
    ]
    kinds = [(uuid5(event, "ticket"), event, "Ticket", price) for event, price in events]
    database.insert(
        "INSERT INTO platform.ticket_types (id, event_id, name, price, quantity) "
        "VALUES ($1, $2, $3, $4, 100)",
        kinds,
    )
    sold, tickets = [], []
    for number in range(orders):
        order, (kind, _, _, price) = uuid5(VENUE, f"order {number}"), kinds[number % len(kinds)]
        cents, count = int(price * 100), 1 + number % 3
        sold.append((order, VENUE, customer_id(number), f"N-{number}", cents * count, number))
        tickets += [(uuid5(order, str(place)), order, kind, cents) for place in range(count)]
    database.insert(
        "INSERT INTO platform.orders (id, venue_id, customer_id, number, status, total, currency, placed_at, "
        "updated_at) VALUES ($1, $2, $3, $4, 'paid', $5, 'EUR', timestamptz '2026-02-01', "
        "timestamptz '2026-02-01' + make_interval(mins => $6))",
        sold,
    )
    database.insert(
        "INSERT INTO platform.tickets (id, order_id, ticket_type_id, price, currency) "
        "VALUES ($1, $2, $3, $4, 'EUR')",
        tickets,
    )


# ---- the hub ----------------------------------------------------------------------------------------------


class TooLateError(AssertionError):
    """What a test waited for didn't come."""


@dataclass(slots=True)
class Hub:
    """A running hub. `environment` is that of its processes, whose output goes to `logs`."""

    database: Database
    redis_url: str
    sandbox: Sandbox
    environment: Mapping[str, str]
    url: str
    logs: Path
    processes: dict[str, Forked] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)  # all the API has said
    providers: tuple[Provider, ...] = PROVIDERS  # who is meant where nobody is named

    # -- processes

    def start(self, *names: str) -> None:
        """Start `api`, `worker` or `scheduler`."""
        commands = {"api": "serve", "worker": "worker", "scheduler": "scheduler"}
        for name in names:
            command, log = commands[name.partition("-")[0]], self.logs / f"{name}.log"
            self.processes[name] = Forked([command], self.environment, log)
        if "api" in names:
            self.until(self._answers, "the API to be ready")

    def kill(self, name: str) -> None:
        """End a process as `kill -9` does, and return when it is gone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self.processes.clear()

    def _answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return _HTTP.get(f"{self.url}/ready", timeout=5).status_code == 200
        return False

    def until(self, condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
        """Wait until a condition holds and return what it gave; raises TooLateError with the logs' ends."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            ended = any(process.poll() is not None for process in self.processes.values())
            if ended or time.monotonic() > deadline:
                tails = "\n".join(f"{path.name}:\n{log_tail(path)}" for path in sorted(self.logs.iterdir()))
                raise TooLateError(f"waited {seconds:g} seconds for {what}\n{tails}")
            time.sleep(0.02)
        return found

    # -- the API, as a client sees it

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        claims = {
            "sub": "tester",
            "role": "venue_admin",
            "venueId": str(VENUE),
            "exp": int(time.time()) + 600,
        }
        token = jwt.encode(claims, self.environment["JWT_SECRET"], algorithm="HS256")
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        answer = _HTTP.request(method, self.url + path, headers=headers, timeout=60, **options)
        self.answers.append(f"{answer.headers}\n{answer.text}")
        return answer

    def data(self, method: str, path: str, **options: Any) -> Any:
        """Return the `data` of a good answer."""
        answer = self.request(method, path, **options)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    def connect(
        self, provider: Provider, key: str | None = None, merchant: str | None = None
    ) -> httpx.Response:
        """Connect as a venue would, with a key or on a merchant's consent page; returns the last answer."""
        body: dict[str, Any] = {
            "venueId": str(VENUE),
            "environment": "production",
            "config": {"syncEnabled": False},
        }
        if provider in KEYS:
            body["credentials"] = {"apiKey": key or KEYS[provider]}
        answer = self.request("POST", f"{API}/connect/{provider}", json=body)
        if not answer.is_success or provider in KEYS:
            return answer
        told = {"auto_approve": "1", **({"_sandbox_merchant": merchant} if merchant else {})}
        consent = httpx.URL(answer.json()["data"]["authUrl"]).copy_merge_params(told)
        back = _HTTP.get(consent).headers["location"]
        answer = _HTTP.get(back, headers={"Accept": "application/json"}, timeout=60)
        self.answers.append(f"{answer.headers}\n{answer.text}")
        return answer

    def connect_all(self) -> None:
        for provider in self.providers:
            answer = self.connect(provider)
            assert answer.is_success, answer.text

    def begin(self, provider: Provider, sync_type: str = "full") -> str:
        """Ask for a sync and return its id."""
        body = {"venueId": str(VENUE), "syncType": sync_type, "wait": 0}
        return str(self.data("POST", f"{API}/sync/{provider}/sync", json=body)["syncId"])

    def begin_all(self) -> dict[Provider, str]:
        return {provider: self.begin(provider) for provider in self.providers}

    def state(self, provider: Provider, sync_id: str) -> dict[str, Any] | None:
        """Return a sync as the API tells it; None while the API can't."""
        with suppress(httpx.HTTPError):
            answer = self.request("GET", f"{API}/sync/{provider}/sync/{sync_id}")
            if answer.is_success:
                return dict(answer.json()["data"])
        return None

    def ended(self, provider: Provider, sync_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the end of a sync and return how it ended."""

        def look() -> dict[str, Any] | None:
            found = self.state(provider, sync_id)
            return found if found and found["ended"] else None

        found = self.until(look, f"the end of {provider}'s sync {sync_id}", seconds)
        assert found is not None
        return found

    def sync(self, provider: Provider, seconds: float = 60.0) -> dict[str, Any]:
        return self.ended(provider, self.begin(provider), seconds)

    def sync_all(self, seconds: float = 60.0) -> dict[Provider, dict[str, Any]]:
        """Sync with every provider at once, to good ends."""
        states = {each: self.ended(each, sync_id, seconds) for each, sync_id in self.begin_all().items()}
        assert {each: state["status"] for each, state in states.items()} == dict.fromkeys(
            self.providers, "completed"
        ), states
        return states

    def integration(self, provider: Provider) -> dict[str, Any]:
        return dict(self.data("GET", f"{API}/{provider}", params={"venueId": str(VENUE)}))

    # -- providers

    def provider_url(self, provider: Provider) -> str:
        return str(getattr(self.sandbox, f"{provider}_url"))

    def control(self, provider: Provider, method: str, path: str, body: Any = None) -> Any:
        """Make one of a simulated provider's control calls."""
        url = f"{self.provider_url(provider)}/_sandbox/{path}"
        answer = _HTTP.request(method, url, json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def break_provider(self, provider: Provider, *rules: Mapping[str, Any], seed: int = 7) -> None:
        self.control(provider, "POST", "faults", {"rules": list(rules), "seed": seed})

    def mend_provider(self, provider: Provider) -> None:
        self.control(provider, "DELETE", "faults")

    def objects(self, provider: Provider, kind: str) -> list[dict[str, Any]]:
        return list(self.control(provider, "GET", f"objects?type={kind}")["objects"])

    def counts(self, provider: Provider) -> dict[str, Any]:
        return dict(self.control(provider, "GET", "calls"))

    def calls(self) -> int:
        """Return how many calls the providers have had, without making one."""
        sandbox = self.sandbox
        stand_ins = (sandbox.stripe, sandbox.square, sandbox.mailchimp, sandbox.quickbooks)
        return sum(each.counts.total for each in stand_ins)

    def writes(self) -> dict[Provider, int]:
        """Return how many writing calls each provider has had."""
        return {provider: self.counts(provider)["writes"] for provider in self.providers}


def quick_connectors(folder: Path) -> Path:
    """Copy the manifests, with hardly any limits and short waits, for tests in which much is tried again."""
    folder.mkdir(parents=True)
    for provider, limits in QUICK_LIMITS.items():
        text = (PROJECT / "connectors" / f"{provider}.yaml").read_text(encoding="utf-8")
        text = re.sub(r"(?m)^retries:\n(?:  .*\n)+", "", text)
        quick, found = re.subn(r"(?m)^limits:\n(?:  .*\n)+", f"limits: {limits}\n{QUICK_RETRIES}", text)
        assert found == 1
        (folder / f"{provider}.yaml").write_text(quick, encoding="utf-8")
    return folder


QUICK_LIMITS: Mapping[Provider, str] = {
    "stripe": "{requests: 1000 per second, concurrent: 100}",
    "square": "{requests: 1000 per second, concurrent: 100}",
    "mailchimp": "{concurrent: 10}",  # which the stand-in insists on
    "quickbooks": "{requests: 1000 per second, concurrent: 100}",
}
QUICK_RETRIES = "retries: {first_wait: 100 milliseconds, longest_wait: 500 milliseconds}\n"
NO_LIMITS: Mapping[Provider, Mapping[str, Any]] = {
    "stripe": {"requests_per_second": None, "per_endpoint": None},
    "square": {"requests_per_second": None, "per_endpoint": None},
    "mailchimp": {},
    "quickbooks": {"all": None},
}


@contextmanager
def running_hub(
    database_url: str, redis_url: str, folder: Path, *, quick: bool = True, **settings: str
) -> Iterator[Hub]:
    """Run a hub over a migrated database and a Redis of its own, until the block ends.

    `quick` is for `quick_connectors`; without it the manifests are as they are shipped.
    """
    if quick:
        settings["HUB_CONNECTORS_DIR"] = str(quick_connectors(folder / "connectors"))
    database = Database(database_url)
    database.execute(Path(server.demo.__file__).with_name("schema.sql").read_text(encoding="utf-8"))
    database.execute(
        "INSERT INTO platform.venues (id, name, type, currency, country, timezone) "
        "VALUES ($1, 'Le Caveau Bleu', 'gallery', 'EUR', 'BE', 'Europe/Brussels')",
        VENUE,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with running_sandbox() as sandbox:
        environment = {
            "HUB_ENV": "test",
            "PORT": str(port),
            "API_URL": url,
            "HUB_STATE": str(folder / "state"),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LEASE_SECONDS": "1",
            "RATE_LIMIT_MAX_REQUESTS": "0",
            "HUB_RATE_LIMIT_WEBHOOKS": "0",
            "HUB_RATE_LIMIT_ADMIN": "0",
            "JWT_SECRET": canary.planted("jwt", secrets.token_hex(32)),
            "ENCRYPTION_KEY": canary.planted("vault", secrets.token_hex(16))[:32],
            "SQUARE_CLIENT_ID": APP[0],
            "SQUARE_CLIENT_SECRET": APP[1],
            "QUICKBOOKS_CLIENT_ID": quickbooks.DEFAULT_CLIENT,
            "QUICKBOOKS_CLIENT_SECRET": quickbooks.DEFAULT_SECRET,
            "HUB_ORIGIN_OVERRIDES": ",".join(
                f"{origin}={url}"
                for origins, url in (
                    (("https://api.stripe.com",), sandbox.stripe_url),
                    (("https://connect.squareup.com",), sandbox.square_url),
                    (mailchimp.REPLACES, sandbox.mailchimp_url),
                    (quickbooks.REPLACES, sandbox.quickbooks_url),
                )
                for origin in origins
            ),
            **settings,
        }
        hub = Hub(database, redis_url, sandbox, environment, url, folder / "logs")
        try:
            hub.start("worker", "scheduler", "api")
            yield hub
        finally:
            hub.stop_all()
            look_for_secrets(hub)
            canary.look_at_files("a hub", hub.logs.iterdir())


def look_for_secrets(hub: Hub) -> None:
    """Look at all that a hub has written and said, before it is forgotten."""
    canary.look_at_database("a hub", hub.database.url)
    canary.look_at_redis("a hub", hub.redis_url)
    canary.look("what a hub answered", "\n".join(hub.answers))


def start_over(
    hub: Hub, *, events: int, customers: int, orders: int = 0, providers: tuple[Provider, ...] = PROVIDERS
) -> None:
    """Forget what earlier tests did, everywhere; processes that a test ended are started again."""
    hub.providers = providers
    look_for_secrets(hub)
    names = {"worker", "scheduler", "api"}
    for name in [name for name, process in hub.processes.items() if process.poll() is not None]:
        del hub.processes[name]
    hub.database.execute(
        "BEGIN; ALTER TABLE audit_log DISABLE TRIGGER USER;"  # which keeps it from ever being emptied
        f"TRUNCATE {HUB}; ALTER TABLE audit_log ENABLE TRIGGER USER; COMMIT"
    )
    fill_platform(hub.database, events=events, customers=customers)
    if orders:
        sell(hub.database, orders)
    for provider, limits in NO_LIMITS.items():
        hub.control(provider, "POST", "reset")
        if "HUB_CONNECTORS_DIR" in hub.environment and limits:
            hub.control(provider, "POST", "limits", limits)
    with redis.Redis.from_url(hub.redis_url) as client:
        client.flushdb()
    hub.start(*(names - hub.processes.keys()))


# ---- what must be there in the end ------------------------------------------------------------------------

# By hand: how many of a currency's smallest units make one.
_UNITS = "CASE currency WHEN 'JPY' THEN 1 WHEN 'KWD' THEN 1000 ELSE 100 END"


def check_everything_is_in_step(hub: Hub) -> None:
    """What each provider is for is there exactly once, as the platform has it."""
    if hub.providers == AUDIENCE_AND_BOOKS:
        check_audience(hub)
        check_books(hub)
    else:
        check_events(hub)
        check_customers(hub)


def check_events(hub: Hub, providers: Sequence[Provider] = PROVIDERS) -> None:
    expected = sorted(
        hub.database.rows(
            f"SELECT id::text, name, (price * {_UNITS})::bigint, currency FROM platform.events "
            "WHERE venue_id = $1 AND status IN ('on_sale', 'sold_out')",
            VENUE,
        )
    )
    assert expected
    found = {"stripe": _stripe_events, "square": _square_events}
    for provider in providers:
        assert found[provider](hub) == expected, provider


def _stripe_events(hub: Hub) -> list[tuple[Any, ...]]:
    products = hub.objects("stripe", "product")
    by_product: dict[str, list[dict[str, Any]]] = {}
    for price in hub.objects("stripe", "price"):
        if price["active"]:
            by_product.setdefault(price["product"], []).append(price)
    rows = []
    for product in products:
        prices = by_product.pop(product["id"], [])
        assert [price["id"] for price in prices] == [product["default_price"]]
        (price,) = prices
        assert price["metadata"]["event_id"] == product["metadata"]["event_id"]
        rows.append(
            (
                product["metadata"]["event_id"],
                product["name"],
                price["unit_amount"],
                price["currency"].upper(),
            )
        )
    assert by_product == {}
    return sorted(rows)


def _square_events(hub: Hub) -> list[tuple[Any, ...]]:
    rows = []
    for item in hub.objects("square", "ITEM"):
        if item.get("is_deleted"):
            continue
        (variation,) = item["item_data"]["variations"]
        data = variation["item_variation_data"]
        money = data["price_money"]
        rows.append((data["user_data"], item["item_data"]["name"], money["amount"], money["currency"]))
    return sorted(rows)


def check_customers(hub: Hub, providers: Sequence[Provider] = PROVIDERS) -> None:
    people = hub.database.rows(
        "SELECT id::text, first_name, last_name, email, phone, city, country FROM platform.customers "
        "WHERE venue_id = $1 ORDER BY id::text",
        VENUE,
    )
    assert people
    if "stripe" in providers:
        expected = sorted(
            (who, " ".join(filter(None, (first, last))), email, phone, city, country)
            for who, first, last, email, phone, city, country in people
        )
        found = sorted(
            (
                customer["metadata"].get("customer_id", "nobody's"),
                customer["name"],
                customer["email"],
                customer["phone"],
                *((customer["address"] or {}).get(name) for name in ("city", "country")),
            )
            for customer in hub.objects("stripe", "customer")
        )
        assert found == expected
    if "square" in providers:
        found = sorted(
            (
                customer.get("reference_id", "nobody's"),
                *(customer.get(name) for name in ("given_name", "family_name", "email_address")),
                customer.get("phone_number"),
                *(customer.get("address", {}).get(name) for name in ("locality", "country")),
            )
            for customer in hub.objects("square", "customer")
        )
        assert found == sorted(people)


def check_audience(hub: Hub) -> None:
    """Everybody with an address is a member, who was only told of what they bought."""
    expected = hub.database.rows(
        "SELECT email, coalesce(first_name, ''), coalesce(last_name, ''), coalesce(phone, ''), "
        "'transactional' FROM platform.customers WHERE venue_id = $1 AND email IS NOT NULL "
        'ORDER BY email COLLATE "C"',
        VENUE,
    )
    assert expected
    found = sorted(
        (
            member["email_address"],
            *(member["merge_fields"][name] for name in ("FNAME", "LNAME", "PHONE")),
            member["status"],
        )
        for member in hub.objects("mailchimp", "member")
    )
    assert found == expected


def check_books(hub: Hub) -> None:
    """Items for what has a price, customers, and a receipt for each paid order since the books were begun."""
    items = hub.database.rows(
        "SELECT id::text, name || ' #' || left(id::text, 8), price FROM platform.events "
        "WHERE venue_id = $1 AND status <> 'draft' AND price IS NOT NULL ORDER BY id::text",
        VENUE,
    )
    assert items
    found = hub.objects("quickbooks", "Item")
    assert sorted((item["Sku"], item["Name"], exactly(item["UnitPrice"])) for item in found) == items

    people = hub.database.rows(
        "SELECT concat_ws(' ', first_name, last_name, '(' || coalesce(email, id::text) || ')'), "
        "email, phone, city, country FROM platform.customers WHERE venue_id = $1 "
        "AND coalesce(first_name, last_name, email) IS NOT NULL",
        VENUE,
    )
    customers = hub.objects("quickbooks", "Customer")
    assert sorted(
        (
            person["DisplayName"],
            person.get("PrimaryEmailAddr", {}).get("Address"),
            person.get("PrimaryPhone", {}).get("FreeFormNumber"),
            *(person.get("BillAddr", {}).get(name) for name in ("City", "Country")),
        )
        for person in customers
    ) == sorted(people, key=lambda person: str(person[0]))

    sales = hub.database.rows(
        "SELECT id::text, number, total / 100.0 FROM platform.orders "
        "WHERE venue_id = $1 AND source = 'platform' ORDER BY id::text",
        VENUE,
    )
    receipts = hub.objects("quickbooks", "SalesReceipt")
    sold = [(each["PrivateNote"], each["DocNumber"], exactly(each["TotalAmt"])) for each in receipts]
    assert sorted(sold) == sales
    assert {each["CustomerRef"]["value"] for each in receipts} <= {person["Id"] for person in customers}


def exactly(number: float | int) -> Decimal:
    """Return a number of JSON as it is written."""
    return Decimal(repr(number))


def counts_of(state: Mapping[str, Any], direction: str, *names: str) -> dict[str, int]:
    """Add up counts of one direction over a sync's mappings."""
    mappings = [row for row in state["progress"]["mappings"] if row["direction"] == direction]
    return {name: sum(row[name] for row in mappings) for name in names}
