"""A manifest becomes frozen objects: what is written, what is left out, and what shorthand means."""

from datetime import timedelta
from pathlib import Path

import pytest

from engine.documents import read_document
from engine.errors import DocumentError, ManifestError
from engine.fields import Field
from engine.manifest import (
    Connector,
    Platform,
    compile_connector,
    load_connector,
    load_platform,
    parse_duration,
    parse_rate,
    parse_statuses,
)

ROOT = Path(__file__).parents[3]
SMALL = """\
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example, sandbox: https://sandbox.juniper.example}
auth: {type: bearer, credentials: {apiKey: {title: API key}}, token: apiKey}
check: GET /merchant?limit=1
resources:
  customer:
    id: id
    fields: {email: email}
"""


def small(*more: str) -> Connector:
    return compile_connector(read_document(SMALL + "".join(more), file="connectors/juniper.yaml"))


@pytest.fixture(scope="module")
def juniper() -> Connector:
    return load_connector(ROOT / "tests" / "snapshot" / "diagnostics" / "connectors" / "juniper.yaml")


@pytest.fixture(scope="module")
def demo() -> Platform:
    return load_platform(ROOT / "tests" / "snapshot" / "diagnostics" / "connectors" / "platform.yaml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500 milliseconds", 0.5),
        ("1 second", 1),
        ("5 minutes", 300),
        ("1 hour", 3600),
        ("30 days", 2_592_000),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "each_second"), [("10 per second", 10), ("300 per minute", 5), ("86400 per day", 1)]
)
def test_rates(text: str, each_second: float) -> None:
    assert parse_rate(text) == each_second


def test_statuses() -> None:
    assert parse_statuses(429) == ((429, 429),)
    assert parse_statuses("5xx") == ((500, 599),)
    assert parse_statuses([404, "4xx"]) == ((404, 404), (400, 499))


def test_what_is_left_out_has_its_default() -> None:
    made = small()
    assert (made.encoding, made.times, made.headers, made.account) == ("json", "rfc3339", None, None)
    assert (made.limits.concurrent, made.limits.each_call, dict(made.limits.requests)) == (4, None, {})
    assert (made.retries.attempts, made.retries.first_wait, made.retries.timeout) == (5, 0.5, 30.0)
    assert made.errors.rules == ()
    customer = made.resources["customer"]
    assert (customer.updates, customer.immutable, customer.list) == ("sparse", frozenset(), None)
    assert customer.line == 11


def test_a_query_in_the_text_joins_the_query() -> None:
    check = small().check
    assert (check.method, check.path) == ("GET", "/merchant")
    assert check.query is not None
    assert check.query.render() == {"limit": "1"}


def test_a_placeholder_in_the_query_is_filled_in() -> None:
    made = small("    get: {call: 'GET /customer?id={id}', query: {deep: 'yes'}}\n")
    get = made.resources["customer"].get
    assert get is not None
    assert get.call.query is not None
    assert get.call.query.render({"id": "c_1"}) == {"id": "c_1", "deep": "yes"}


def test_one_way_to_sign_is_named_by_its_type() -> None:
    (method,) = small().auth
    assert (method.type, method.name) == ("bearer", "bearer")
    assert method.credentials[0].secret
    assert method.token is not None
    assert method.token.evaluate({"apiKey": "k"}) == "k"


def test_oauth(juniper: Connector) -> None:
    oauth = juniper.auth[0].oauth
    assert oauth is not None
    assert oauth.scopes == ("customers.read", "customers.write")
    assert (oauth.client, oauth.token_body, oauth.pkce) == ("header", "form", False)
    assert oauth.refresh_before_expiry == timedelta(minutes=5)
    assert (oauth.expires_in, oauth.expires_at) == ("expires_in", None)
    assert oauth.keep["merchant_id"].evaluate({"merchant": {"id": "m_7"}}) == "m_7"


def test_rules_and_limits(juniper: Connector) -> None:
    assert [rule.then for rule in juniper.errors.rules] == [
        "refresh_credentials",
        "wait",
        "retry",
        "reload_and_retry",
    ]
    wait = juniper.errors.rules[1]
    assert wait.statuses == ((429, 429),)
    assert wait.wait_for is not None
    assert wait.wait_for.text == "header Retry-After"
    assert juniper.errors.rules[3].code == ("VERSION_CONFLICT",)
    assert dict(juniper.limits.requests) == {"production": 10.0, "sandbox": 5.0}


def test_one_rate_is_for_every_environment() -> None:
    assert dict(small("limits: {requests: 60 per minute}\n").limits.requests) == {
        "production": 1,
        "sandbox": 1,
    }


def test_reads_and_writes(juniper: Connector) -> None:
    customer, item = juniper.resources["customer"], juniper.resources["item"]
    read, create, many = customer.list, customer.create, item.write_many
    assert read is not None
    assert create is not None
    assert many is not None
    assert read.since is not None
    assert read.since.text == "query updated_after"
    assert read.lookback == timedelta(minutes=5)
    assert read.pagination is not None
    assert read.pagination.type == "cursor"
    assert dict(read.pagination.options) == {"read": "next_cursor", "send": "query cursor"}
    assert read.page_size is not None
    assert (read.page_size.send.text, read.page_size.at_most) == ("query limit", 100)
    assert create.record.text == "body"
    assert create.idempotency_key is not None
    assert (create.idempotency_key.send.text, create.idempotency_key.at_most) == (
        "header Idempotency-Key",
        128,
    )
    assert (many.records.text, many.at_most) == ("body objects", 1000)
    assert many.idempotency_key is not None
    assert many.idempotency_key.at_most == 255
    assert {path: each.render({"key": "k"}) for path, each in many.new.items()} == {
        "type": "ITEM",
        "id": "#k",
    }


def test_a_key_of_a_map_goes_where_the_records_go() -> None:
    made = small(
        "    create_many:\n"
        "      {call: POST /bulk, records: body customers, results: responses,"
        " by_key: idempotency_key, idempotency_key: {at_most: 45}}\n"
    )
    many = made.resources["customer"].create_many
    assert many is not None
    assert many.idempotency_key is not None
    assert (many.idempotency_key.send.text, many.idempotency_key.at_most) == ("body customers", 45)


def test_fields(juniper: Connector, demo: Platform) -> None:
    fields = juniper.resources["customer"].fields
    assert fields["email_address"] == Field("email_address", "email", at_most=254)
    assert fields["preferences.marketing"].one_of == ("subscribed", "unsubscribed")
    assert fields["updated_at"].read_only
    assert demo.entities["event"].fields["price"] == Field(
        "price", "money", unit="major", currency="currency"
    )


def test_a_platform(demo: Platform) -> None:
    order = demo.entities["order"]
    assert (order.table, order.query, order.key, order.venue) == ("platform.orders", None, "id", "venue_id")
    assert dict(order.defaults) == {"source": "provider"}
    assert demo.entities["report"].query == "SELECT * FROM platform.sales"


def test_the_digest_tells_versions_apart() -> None:
    assert small().digest == small().digest
    assert small().digest != small("# changed\n").digest


def test_everything_that_is_wrong_is_raised_at_once(tmp_path: Path) -> None:
    file = tmp_path / "juniper.yaml"
    file.write_text(SMALL.replace("check: GET", "check: FETCH").replace("id: id", "id: a..b"))
    with pytest.raises(ManifestError) as caught:
        load_connector(file)
    assert [(each.code, each.line) for each in caught.value.diagnostics] == [
        ("wrong-form", 7),
        ("bad-path", 10),
    ]
    assert caught.value.message.startswith(f"{file}:7:8: ")
    assert caught.value.message.endswith("(and 1 more)")


def test_a_file_that_cannot_be_read_is_a_document_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError):
        load_connector(tmp_path / "gone.yaml")
    with pytest.raises(DocumentError):
        load_platform(tmp_path / "gone.yaml")


def test_what_was_renamed_more_than_once_is_what_it_is_called_now() -> None:
    made = small(
        '    renamed: {"2023": {e_mail: mail}, "2024": {mail: email}, "2025": {contact: email}}\n'
    ).resources["customer"]
    assert made.renamed == {"e_mail": "email", "mail": "email", "contact": "email"}
    assert small().resources["customer"].renamed == {}


def test_renames_in_a_circle_end() -> None:
    made = small('    renamed: {"2023": {a: email}, "2024": {email: a}}\n').resources["customer"]
    assert set(made.renamed) == {"a", "email"}
