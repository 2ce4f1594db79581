"""What the stand-ins send: signed as the fact sheets say, repeated until taken, and for whom it is meant."""

import base64
import hashlib
import hmac
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import httpx
import orjson
import pytest

from tests.sandbox import mailchimp, quickbooks, square, stripe
from tests.sandbox import quickbooks_rows as rows
from tests.sandbox.courier import Courier, Letter
from tests.sandbox.running import Sandbox, running_sandbox


@dataclass(slots=True)
class Taken:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """Takes deliveries; `answers` are the statuses of the next ones, then 200."""

    url: str = ""
    taken: list[Taken] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.taken.append(Taken(self.command, self.path, headers, body))
            self.send_response(found.answers.pop(0) if found.answers else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def _serving() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_serving: Sandbox) -> Sandbox:
    for each in (_serving.stripe, _serving.square, _serving.mailchimp, _serving.quickbooks):
        each.start_empty()
    return _serving


def letter(receiver: Receiver, name: str = "a", waits: tuple[float, ...] = ()) -> Letter:
    return Letter(
        name, receiver.url, name.encode(), "text/plain", lambda n: {"try": str(n)}, waits, timeout=5.0
    )


def test_a_letter_is_tried_until_it_is_taken_each_time_signed_anew(receiver: Receiver) -> None:
    receiver.answers = [500, 302]
    courier = Courier()
    courier.behave(speed=1000)
    courier.send(letter(receiver, waits=(10, 10, 10)))
    assert courier.settled()
    assert [each.headers["try"] for each in receiver.taken] == ["0", "1", "2"]
    assert [(sent.tries, sent.taken) for sent in courier.sent] == [([500, 302, 200], True)]


def test_a_letter_is_given_up_after_its_last_wait(receiver: Receiver) -> None:
    receiver.answers = [503] * 5
    courier = Courier()
    courier.send(letter(receiver, waits=(0.001,)))
    assert courier.settled()
    assert [(sent.tries, sent.over, sent.taken) for sent in courier.sent] == [([503, 503], True, False)]


def test_letters_are_held_and_doubled_when_asked(receiver: Receiver) -> None:
    courier = Courier()
    courier.behave(held=True, doubled=1.0)
    courier.send(letter(receiver))
    assert receiver.taken == []
    courier.behave(held=False)
    assert courier.settled()
    assert [each.body for each in receiver.taken] == [b"a", b"a"]


def test_stripe_signs_time_and_body_for_the_endpoints_that_want_the_event(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    headers = {"Authorization": "Bearer sk_test_demo"}
    made = httpx.post(
        f"{sandbox.stripe_url}/v1/webhook_endpoints",
        headers=headers,
        data={"url": receiver.url, "enabled_events[0]": "customer.created"},
    ).json()
    ledger = sandbox.stripe.ledger(stripe.DEFAULT_ACCOUNT, live=False)
    customer = sandbox.stripe.new_customer(ledger, {"email": "ana@example.com"})
    httpx.post(f"{sandbox.stripe_url}/v1/products", headers=headers, data={"name": "Night"})
    assert sandbox.stripe.courier.settled()
    (taken,) = receiver.taken
    event = orjson.loads(taken.body)
    assert (event["type"], event["data"]["object"]["id"]) == ("customer.created", customer["id"])
    assert b"\n  " in taken.body  # indented, so only the raw bytes verify
    moment, _, signature = taken.headers["stripe-signature"].partition(",v1=")
    signed = moment.removeprefix("t=").encode() + b"." + taken.body
    assert signature == hmac.new(made["secret"].encode(), signed, hashlib.sha256).hexdigest()
    shown = httpx.get(f"{sandbox.stripe_url}/v1/webhook_endpoints/{made['id']}", headers=headers).json()
    assert (shown["status"], "secret" in shown) == ("enabled", False)
    httpx.delete(f"{sandbox.stripe_url}/v1/webhook_endpoints/{made['id']}", headers=headers)
    sandbox.stripe.new_customer(ledger, {"email": "ben@example.com"})
    assert sandbox.stripe.courier.settled()
    assert len(receiver.taken) == 1


def test_square_signs_its_address_and_body_and_tells_of_every_change(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    httpx.post(f"{sandbox.square_url}/_sandbox/subscriptions", json={"url": receiver.url, "key": "key1"})
    headers = {"Authorization": f"Bearer {square.PERSONAL_TOKEN}"}
    body = {"given_name": "Ana"}
    made = httpx.post(f"{sandbox.square_url}/v2/customers", headers=headers, json=body).json()["customer"]
    path = f"{sandbox.square_url}/v2/customers/{made['id']}"
    httpx.put(path, headers=headers, json={"given_name": "Anna"})
    httpx.delete(path, headers=headers)
    assert sandbox.square.courier.settled()
    events = {orjson.loads(each.body)["type"]: orjson.loads(each.body) for each in receiver.taken}
    assert set(events) == {"customer.created", "customer.updated", "customer.deleted"}
    deleted = events["customer.deleted"]
    assert (deleted["merchant_id"], deleted["data"]["id"]) == (square.DEFAULT_MERCHANT, made["id"])
    assert "object" not in deleted["data"]
    for each in receiver.taken:
        digest = hmac.new(b"key1", receiver.url.encode() + each.body, hashlib.sha256).digest()
        assert each.headers["x-square-hmacsha256-signature"] == base64.b64encode(digest).decode()


def test_mailchimp_asks_for_the_address_and_then_sends_signed_forms(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    at = f"{sandbox.mailchimp_url}/3.0/lists/{sandbox.mailchimp.audience.document['id']}"
    made = httpx.post(
        f"{at}/webhooks",
        headers={"Authorization": f"Bearer {mailchimp.DEFAULT_KEY}"},
        json={"url": receiver.url, "sources": {"user": True, "admin": True, "api": False}},
    ).json()
    httpx.post(
        f"{sandbox.mailchimp_url}/_sandbox/members",
        json={"email": "ana@example.com", "status": "subscribed", "source": "user"},
    ).raise_for_status()
    assert sandbox.mailchimp.courier.settled()
    probe, taken = receiver.taken
    assert (probe.method, taken.headers["content-type"]) == ("GET", "application/x-www-form-urlencoded")
    form = dict(parse_qsl(taken.body.decode()))
    assert (form["type"], form["data[email]"]) == ("subscribe", "ana@example.com")
    moment, _, signature = taken.headers["x-mailchimp-signature"].partition(",v1=")
    signed = moment.removeprefix("t=").encode() + b"." + taken.body
    assert signature == hmac.new(made["signing_secret"].encode(), signed, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("cloud_events", [False, True])
def test_quickbooks_puts_changes_of_several_companies_into_one_delivery(
    sandbox: Sandbox, receiver: Receiver, cloud_events: bool
) -> None:
    books = sandbox.quickbooks
    other = rows.new_company(books.world, "9341450000000002", "Other")
    httpx.post(
        f"{sandbox.quickbooks_url}/_sandbox/subscriptions",
        json={"url": receiver.url, "token": "verifier1", "cloud_events": cloud_events},
    )
    with books.gathering():
        for company, name in ((books.company, "Ana"), (other, "Ben")):
            rows.create(books.world, company, "Customer", {"DisplayName": name})
    assert books.courier.settled()
    (taken,) = receiver.taken
    digest = hmac.new(b"verifier1", taken.body, hashlib.sha256).digest()
    assert taken.headers["intuit-signature"] == base64.b64encode(digest).decode()
    body = orjson.loads(taken.body)
    if cloud_events:
        told = [(each["intuitaccountid"], each["type"]) for each in body]
        assert told == [
            (quickbooks.DEFAULT_REALM, "qbo.customer.created.v1"),
            ("9341450000000002", "qbo.customer.created.v1"),
        ]
    else:
        notifications = body["eventNotifications"]
        assert [each["realmId"] for each in notifications] == [quickbooks.DEFAULT_REALM, "9341450000000002"]
        (entity,) = notifications[0]["dataChangeEvent"]["entities"]
        assert (entity["name"], entity["operation"]) == ("Customer", "Create")
