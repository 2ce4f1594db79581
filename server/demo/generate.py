"""Make the demo platform: 3 venues, 300 events, 5,000 customers and 20,000 orders, always the same."""

import asyncio
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from server.db.engine import create_engine
from server.demo import names

SCHEMA = Path(__file__).with_name("schema.sql")
NAMESPACE = UUID("0b6c3d9e-7d2a-4f0e-9a53-2f1d8c4e6b70")
SEED = 20261124
TODAY = datetime(2026, 11, 1, tzinfo=UTC)  # nothing in the demo changed after this
BOOKS_FROM = date(2026, 10, 1)  # so that a first sync with an accounting provider takes seconds
_LOCK = 0x6875625F64656D6F
_DECIMALS = {"EUR": 2, "GBP": 2, "USD": 2, "MXN": 2, "JPY": 0, "KWD": 3}


def demo_id(kind: str, *parts: object) -> UUID:
    """Return the id of one of the demo's records: always the same for the same parts."""
    return uuid5(NAMESPACE, "/".join(map(str, (kind, *parts))))


DEMO_VENUE_ID = demo_id("venue", "jazz")


@dataclass(frozen=True, slots=True)
class Venue:
    key: str
    name: str
    type: str
    currency: str
    country: str
    timezone: str
    events: int
    customers: int
    guests: tuple[str, ...]  # currencies of its few events abroad, in turn
    abroad: int  # every so many events, one
    countries: tuple[str, ...]  # where its customers live; the first twice as often
    statuses: dict[str, int]  # weights
    prices: tuple[int, int]  # of a ticket, in its own currency

    @property
    def id(self) -> UUID:
        return demo_id("venue", self.key)


VENUES = (
    Venue(
        key="jazz",
        name="Le Caveau Bleu — Jazz Club",
        type="music_venue",
        currency="EUR",
        country="BE",
        timezone="Europe/Brussels",
        events=60,
        customers=600,
        guests=("JPY", "KWD", "GBP", "USD"),
        abroad=10,
        countries=("BE", "FR", "NL", "DE"),
        statuses={"on_sale": 52, "sold_out": 3, "past": 2, "cancelled": 1, "draft": 2},
        prices=(12, 48),
    ),
    Venue(
        key="comedy",
        name="The Laughing Fox Comedy Theatre",
        type="comedy_club",
        currency="GBP",
        country="GB",
        timezone="Europe/London",
        events=110,
        customers=1700,
        guests=("EUR",),
        abroad=25,
        countries=("GB", "IE"),
        statuses={"on_sale": 60, "sold_out": 10, "past": 30, "cancelled": 4, "draft": 6},
        prices=(8, 35),
    ),
    Venue(
        key="festival",
        name="Lakeside Sound Festival",
        type="festival",
        currency="USD",
        country="US",
        timezone="America/Chicago",
        events=130,
        customers=2700,
        guests=("MXN", "JPY"),
        abroad=20,
        countries=("US", "MX", "CA"),
        statuses={"on_sale": 80, "sold_out": 12, "past": 26, "cancelled": 2, "draft": 10},
        prices=(25, 240),
    ),
)
ORDERS_PER_CUSTOMER = 4
_RATES = {
    "JPY": Decimal(160),
    "KWD": Decimal("0.33"),
    "MXN": Decimal(20),
}  # roughly, to make prices plausible

Row = tuple[Any, ...]


@dataclass(slots=True)
class Tables:
    """Rows by table, in the order of `COLUMNS`."""

    venues: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    ticket_types: list[Row] = field(default_factory=list)
    customers: list[Row] = field(default_factory=list)
    orders: list[Row] = field(default_factory=list)
    tickets: list[Row] = field(default_factory=list)


COLUMNS = {
    "venues": "id name type currency country timezone books_from created_at updated_at",
    "events": "id venue_id name description status starts_at price currency capacity url "
    "created_at updated_at",
    "ticket_types": "id event_id name price quantity available position updated_at",
    "customers": "id venue_id first_name last_name email phone city postal_code country accepts_marketing "
    "created_at updated_at",
    "orders": "id venue_id customer_id number email status total currency placed_at source "
    "created_at updated_at",
    "tickets": "id order_id ticket_type_id price currency updated_at",
}


def generate() -> Tables:
    """Return all rows of the demo."""
    tables = Tables()
    for venue in VENUES:
        chance = random.Random(f"{SEED}/{venue.key}")
        opened = TODAY - timedelta(days=900)
        place = (venue.country, venue.timezone)
        tables.venues.append(
            (venue.id, venue.name, venue.type, venue.currency, *place, BOOKS_FROM, opened, opened)
        )
        sold = _add_events(tables, venue, chance)
        buyers = _add_customers(tables, venue, chance)
        _add_orders(tables, venue, chance, sold, buyers)
    _count_what_is_left(tables)
    return tables


@dataclass(frozen=True, slots=True)
class _TicketType:
    id: UUID
    price: int  # in the smallest unit
    currency: str


def _add_events(tables: Tables, venue: Venue, chance: random.Random) -> list[_TicketType]:
    statuses = list(_spread(venue.statuses, venue.events))
    chance.shuffle(statuses)
    titles = [show.format(artist) for show in names.SHOWS[venue.type] for artist in names.ARTISTS[venue.type]]
    chance.shuffle(titles)
    sold: list[_TicketType] = []
    for number, (title, status) in enumerate(zip(titles, statuses, strict=False)):
        event_id = demo_id("event", venue.key, number)
        currency = venue.currency
        if number % venue.abroad == venue.abroad - 1:
            currency = venue.guests[number // venue.abroad % len(venue.guests)]
        if number % 40 == 17:
            title = names.LONG_SHOW.format(title)
        price = None if status == "draft" else _price(venue, currency, chance)
        if number == 5:
            price = Decimal("0.00") if price is not None else None
        days = -chance.randint(5, 300) if status == "past" else chance.randint(3, 240)
        made = TODAY - timedelta(days=chance.randint(20, 400), minutes=chance.randint(0, 1440))
        tables.events.append(
            (
                event_id,
                venue.id,
                title,
                None if chance.random() < 0.12 else chance.choice(names.DESCRIPTIONS),
                status,
                TODAY.replace(hour=19, minute=chance.choice((0, 30))) + timedelta(days=days),
                price,
                currency,
                None if chance.random() < 0.05 else chance.choice((60, 80, 120, 250, 400)),
                None if chance.random() < 0.2 else f"https://tickets.example/{venue.key}/{number}",
                made,
                made + timedelta(days=chance.randint(0, 15), seconds=chance.randint(0, 80000)),
            )
        )
        if price is None:
            continue
        for position, (name, factor) in enumerate((("Standard", 1), ("Front row", 2))):
            kind = demo_id("ticket type", venue.key, number, name)
            tables.ticket_types.append((kind, event_id, name, price * factor, 0, 0, position, made))
            amount = int((price * factor).scaleb(_DECIMALS[currency]))
            sold.append(_TicketType(kind, amount, currency))
    return sold


def _price(venue: Venue, currency: str, chance: random.Random) -> Decimal:
    """Return a price in major units, with the decimals its currency has."""
    euros = Decimal(chance.randint(*venue.prices)) + chance.choice(
        (Decimal(0), Decimal("0.50"), Decimal("0.99"))
    )
    amount = euros * _RATES.get(currency, Decimal(1))
    if currency == "KWD":
        return amount.quantize(Decimal("0.01")).quantize(Decimal("0.001"))  # the last digit is 0 by custom
    return amount.quantize(Decimal(1).scaleb(-_DECIMALS[currency]))


@dataclass(frozen=True, slots=True)
class _Buyer:
    id: UUID
    email: str | None


def _add_customers(tables: Tables, venue: Venue, chance: random.Random) -> list[_Buyer]:
    buyers: list[_Buyer] = []
    countries = (venue.countries[0], *venue.countries)
    for number in range(venue.customers):
        customer_id = demo_id("customer", venue.key, number)
        first, last = _name(number, chance)
        country = chance.choice(countries)
        place: tuple[str | None, ...] = (*chance.choice(names.PLACES[country]), country)
        email: str | None = f"{_plain(first)}.{_plain(last)}.{number}@{chance.choice(_MAIL)}"
        phone: str | None = f"{names.DIALLING[country]}{chance.randint(100000, 999999)}"
        kind = chance.random()
        if kind < 0.06:
            email = None
        elif kind < 0.31:
            phone = None
        elif kind < 0.34:
            place = (None, None, None)
        if email and chance.random() < 0.05:
            email = email.title()  # as people type it
        made = TODAY - timedelta(days=chance.randint(1, 880), seconds=chance.randint(0, 86000))
        changed = made + (TODAY - made) * chance.random()
        tables.customers.append(
            (
                customer_id,
                venue.id,
                first,
                None if number % 101 == 33 else last,
                email,
                phone,
                *place,
                chance.random() < 0.4,
                made,
                changed.replace(microsecond=chance.randint(0, 999999)),
            )
        )
        buyers.append(_Buyer(customer_id, email))
    return buyers


_FIRST_NAMES, _LAST_NAMES = names.FIRST_NAMES.split(), names.LAST_NAMES.split("|")
_MAIL = ("example.com", "example.org", "example.net", "mail.example", "post.example")


def _name(number: int, chance: random.Random) -> tuple[str, str]:
    if number % 60 == 41:
        return names.OTHER_SCRIPTS[number // 60 % len(names.OTHER_SCRIPTS)]
    first = chance.choice(names.LONG_FIRST_NAMES if number % 97 == 50 else _FIRST_NAMES)
    last = chance.choice(names.LONG_LAST_NAMES if number % 89 == 60 else _LAST_NAMES)
    return first, last


def _plain(name: str) -> str:
    """Return the letters of a name an e-mail address may have, 20 at most."""
    letters = unicodedata.normalize("NFKD", name.translate({0xD8: "O", 0xF8: "o", 0x141: "L", 0x142: "l"}))
    return (
        "".join(letter for letter in letters.lower() if letter.isascii() and letter.isalpha())[:20] or "fan"
    )


def _add_orders(
    tables: Tables, venue: Venue, chance: random.Random, sold: list[_TicketType], buyers: list[_Buyer]
) -> None:
    for number in range(venue.customers * ORDERS_PER_CUSTOMER):
        order_id = demo_id("order", venue.key, number)
        buyer = chance.choice(buyers)
        kind = chance.choice(sold)
        tickets = chance.choice((1, 1, 2, 2, 2, 3, 4))
        status = chance.choices(("paid", "refunded", "cancelled", "pending", "failed"), (90, 4, 2, 3, 1))[0]
        placed = TODAY - timedelta(days=chance.randint(1, 700), seconds=chance.randint(0, 86000))
        walk_in = chance.random() < 0.05
        tables.orders.append(
            (
                order_id,
                venue.id,
                None if walk_in else buyer.id,
                f"{venue.key[0].upper()}{number + 100001}",
                None if walk_in else buyer.email,
                status,
                kind.price * tickets,
                kind.currency,
                placed,
                "platform",
                placed,
                placed + timedelta(minutes=chance.randint(0, 600)),
            )
        )
        for seat in range(tickets):
            tables.tickets.append(
                (demo_id("ticket", order_id, seat), order_id, kind.id, kind.price, kind.currency, placed)
            )


def _count_what_is_left(tables: Tables) -> None:
    """Give each ticket type room for what was sold of it: a hundred, or what was sold and a few more."""
    counting = {order[0] for order in tables.orders if order[5] in ("paid", "pending")}
    sold = Counter(ticket[2] for ticket in tables.tickets if ticket[1] in counting)
    over = {event[0] for event in tables.events if event[4] == "sold_out"}
    for place, (kind, event, name, price, _, _, position, made) in enumerate(tables.ticket_types):
        quantity = sold[kind] if event in over else max(100, sold[kind] + 5)
        left = quantity - sold[kind]
        tables.ticket_types[place] = (kind, event, name, price, quantity, left, position, made)


def _spread(weights: dict[str, int], count: int) -> Iterator[str]:
    """Yield `count` names, each as often as its weight says; what rounding leaves over goes to the first."""
    shares = {name: weight * count // sum(weights.values()) for name, weight in weights.items()}
    shares[next(iter(weights))] += count - sum(shares.values())
    for name, share in shares.items():
        yield from [name] * share


def load_demo(database_url: str) -> bool:
    """Put the demo platform into a database; returns False, doing nothing, when it is already there.

    Raises RuntimeError when the schema `platform` holds something else. Blocks for a few seconds at most.
    """
    with ThreadPoolExecutor(1) as thread:  # whether or not this thread has an event loop running
        return thread.submit(asyncio.run, _load(database_url)).result()


async def _load(database_url: str) -> bool:
    engine = create_engine(database_url, pooled=False, application_name="integration-hub demo")
    try:
        return await _load_into(engine)
    finally:
        await engine.dispose()


async def _load_into(engine: AsyncEngine) -> bool:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if await connection.scalar(text("SELECT to_regnamespace('platform') IS NOT NULL")):
            # Without this table the question itself would fail.
            ours = await connection.scalar(text("SELECT to_regclass('platform.venues') IS NOT NULL"))
            if ours and await connection.scalar(
                text("SELECT true FROM platform.venues WHERE id = :id"), {"id": DEMO_VENUE_ID}
            ):
                return False
            raise RuntimeError("the schema `platform` exists and isn't the demo's; use another database")
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute(SCHEMA.read_text(encoding="utf-8"))
        tables = generate()
        for table, columns in COLUMNS.items():
            await raw.copy_records_to_table(
                table, records=getattr(tables, table), columns=columns.split(), schema_name="platform"
            )
        await raw.execute("ANALYZE platform.events, platform.customers, platform.orders")
    return True
