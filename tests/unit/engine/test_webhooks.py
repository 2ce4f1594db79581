"""What a delivery tells: bodies, probes, shapes, events, and what is asked for."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from engine.deliveries import Delivery, read_body
from engine.documents import read_document
from engine.errors import MalformedDeliveryError
from engine.manifest import Webhooks, compile_connector
from engine.webhooks import Event, action_of, moment_of, probe_reply, split_events

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BASE = """
manifest: 1
connector: juniper
title: Juniper Point of Sale
docs: https://developer.juniper.example/reference
server: {production: https://api.juniper.example/v3}
auth: {type: bearer, credentials: {api_key: {title: API key}}, token: api_key}
check: GET /merchant
resources:
  customer: {id: id, fields: {given_name: text}, get: "GET /customers/{id}"}
  item: {id: id, fields: {name: text}, list: GET /items}
"""


def webhooks(**keys: Any) -> Webhooks:
    given = {
        "signature": {"type": "hmac_sha256", "read": "header X-Signature"},
        "event": {
            "id": "event_id",
            "type": "type",
            "at": "created_at",
            "account": "merchant",
            "record": "data.id",
        },
        "events": {"customer.updated": {"pull": "customer"}},
        **keys,
    }
    manifest = yaml.safe_load(BASE) | {
        "webhooks": {name: each for name, each in given.items() if each is not None}
    }
    found = compile_connector(
        read_document(yaml.safe_dump(manifest, sort_keys=False), file="juniper.yaml")
    ).webhooks
    assert found is not None
    return found


def delivery(
    body: Any, *, method: str = "POST", url: str = "https://hub.example/hook", **headers: str
) -> Delivery:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Delivery(method, url, {"content-type": "application/json", **headers}, raw)


def form(text: str) -> Delivery:
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    return Delivery("POST", "https://hub.example/hook", {"content-type": kind}, text.encode())


def only(found: list[Event]) -> Event:
    assert len(found) == 1
    return found[0]


# --- bodies


def test_bracketed_names_of_a_form_are_nested() -> None:
    assert read_body(
        form("type=subscribe&data%5Bid%5D=8a&data[merges][FNAME]=Ana+Mar%C3%ADa&data[merges][X]=")
    ) == {
        "type": "subscribe",
        "data": {"id": "8a", "merges": {"FNAME": "Ana María", "X": ""}},
    }


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a=1&a=2", {"a": "2"}),
        ("a=1&a[b]=2", {"a": {"b": "2"}}),
        ("a[b]=2&a=1", {"a": "1"}),
        ("a[b=1", {"a": "1"}),
        ("[b]=1", {"": {"b": "1"}}),
        ("", {}),
    ],
)
def test_odd_forms_are_read_all_the_same(text: str, read: Any) -> None:
    assert read_body(form(text)) == read


def xml(text: str) -> Delivery:
    return Delivery(
        "POST", "https://hub.example/hook", {"content-type": "application/soap+xml"}, text.encode()
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<a/>", {"a": ""}),
        ("<a> b &amp; c </a>", {"a": "b & c"}),
        ("<a>x<b>1</b>y<c><d>2</d></c></a>", {"a": {"b": "1", "c": {"d": "2"}}}),
        ("<a><b>1</b><b>2</b><b><c/></b></a>", {"a": {"b": ["1", "2", {"c": ""}]}}),
        ('<n:a xmlns:n="urn:x" n:k="v"><n:b>1</n:b></n:a>', {"a": {"b": "1"}}),
        ("<?xml version='1.0'?>\n<a><![CDATA[<b>]]></a>", {"a": "<b>"}),
    ],
)
def test_elements_of_xml_are_objects(text: str, read: Any) -> None:
    assert read_body(xml(text)) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a>",
        "no XML",
        "<a/><b/>",
        "<a>&b;</a>",
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        "<a>" * 40 + "</a>" * 40,
        "<a>" * 100_000,
    ],
    ids=["empty", "cut off", "text", "two", "unknown", "entity", "outside", "deep", "very deep"],
)
def test_xml_that_is_not_read(text: str) -> None:
    with pytest.raises(MalformedDeliveryError):
        read_body(xml(text))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 33 + b"1" + b"}" * 33, b"nothing"],
    ids=["empty", "cut off", "no text", "very deep", "deep", "no JSON"],
)
def test_a_body_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(MalformedDeliveryError):
        split_events(webhooks(), delivery(body))


def test_a_form_nested_too_deep() -> None:
    with pytest.raises(MalformedDeliveryError):
        read_body(form("a" + "[b]" * 40 + "=1"))


def test_the_deepest_body_that_is_taken() -> None:
    body = b'{"type":"t","a":' + b'{"a":' * 30 + b"1" + b"}" * 30 + b"}"
    assert only(split_events(webhooks(), delivery(body))).type == "t"


# --- events

CHANGE = {
    "event_id": "e1",
    "type": "customer.updated",
    "created_at": "2026-03-01T11:59:00Z",
    "merchant": "m7",
    "data": {"id": 42},
}


def test_an_event_says_what_whose_and_when() -> None:
    event = only(split_events(webhooks(), delivery(CHANGE)))
    assert (event.id, event.type, event.at, event.account, event.record) == (
        "e1",
        "customer.updated",
        "2026-03-01T11:59:00Z",
        "m7",
        "42",
    )
    assert event.action is not None
    assert (event.action.does, event.action.resource) == ("pull", "customer")
    assert event.payload == CHANGE
    assert "created_at" not in repr(event)


def test_an_id_of_the_action_comes_before_the_shapes() -> None:
    known = webhooks(events={"customer.updated": {"pull": "customer", "id": "merchant"}})
    assert only(split_events(known, delivery(CHANGE))).record == "m7"


def test_an_event_without_an_id_is_known_by_its_bytes() -> None:
    body = json.dumps({"type": "t"}).encode()
    event = only(split_events(webhooks(), delivery(body)))
    assert event.id == f"sha256:{hashlib.sha256(body).hexdigest()}:0"
    assert only(split_events(webhooks(), delivery(body + b" "))).id != event.id


def test_a_very_long_id_is_kept_as_a_digest() -> None:
    event = only(split_events(webhooks(), delivery({**CHANGE, "event_id": "x" * 181})))
    assert event.id == f"sha256:{hashlib.sha256(b'x' * 181).hexdigest()}"
    assert only(split_events(webhooks(), delivery({**CHANGE, "event_id": "x" * 180}))).id == "x" * 180


@pytest.mark.parametrize("kind", [None, "", {"a": 1}, ["t"], True, 1.5])
def test_an_event_without_a_type(kind: Any) -> None:
    with pytest.raises(MalformedDeliveryError):
        split_events(webhooks(), delivery({**CHANGE, "type": kind}))


def test_values_may_be_in_headers() -> None:
    known = webhooks(
        event={
            "id": "header X-Event-Id",
            "type": "header X-Topic",
            "account": "header X-Shop",
            "record": "id",
        }
    )
    found = split_events(
        known, delivery({"id": 9}, **{"x-event-id": "e", "x-topic": "customer.updated", "x-shop": "s"})
    )
    event = only(found)
    assert (event.id, event.type, event.account, event.record) == ("e", "customer.updated", "s", "9")


def test_what_came_with_a_delivery_is_seen_by_expressions() -> None:
    known = webhooks(event={"type": "{{ headers['x-topic'] }}:{{ query.kind }}", "id": "body.event_id"})
    found = split_events(known, delivery(CHANGE, url="https://hub.example/hook?kind=a", **{"x-topic": "t"}))
    assert (only(found).type, only(found).id) == ("t:a", "e1")


def test_every_item_of_nested_lists_is_an_event() -> None:
    known = webhooks(
        each={"notification": "notifications", "change": "notification.changes"},
        event={
            "type": "change.kind",
            "account": "notification.realm",
            "id": "{{ notification.realm }}:{{ change.id }}",
        },
    )
    body = {
        "notifications": [
            {"realm": "1", "changes": [{"kind": "a", "id": 1}, {"kind": "b", "id": 2}]},
            {"realm": "2", "changes": []},
            {"realm": "3"},
            {"realm": "4", "changes": {"kind": "c", "id": 3}},
        ]
    }
    found = split_events(known, delivery(body))
    assert [(event.type, event.account, event.id) for event in found] == [
        ("a", "1", "1:1"),
        ("b", "1", "1:2"),
        ("c", "4", "4:3"),
    ]


def test_two_events_alike_but_for_their_place_are_two() -> None:
    known = webhooks(each={"item": "items"}, event={"type": "item.t"})
    first, second = split_events(known, delivery({"items": [{"t": "a"}, {"t": "a"}]}))
    assert first.id != second.id


def test_a_list_that_is_none() -> None:
    known = webhooks(each={"item": "items"}, event={"type": "item.t"})
    with pytest.raises(MalformedDeliveryError, match="`item` isn't a list"):
        split_events(known, delivery({"items": "a"}))
    assert split_events(known, delivery({})) == []


def test_more_events_than_anybody_sends() -> None:
    known = webhooks(each={"item": "items"}, event={"type": "item"})
    assert len(split_events(known, delivery({"items": ["t"] * 1000}))) == 1000
    with pytest.raises(MalformedDeliveryError, match="1000"):
        split_events(known, delivery({"items": ["t"] * 1001}))


def test_the_first_shape_that_fits_counts() -> None:
    known = webhooks(
        event=None,
        shapes=[
            {"when": "type(@) == 'array'", "each": {"item": "@"}, "event": {"type": "item.t"}},
            {"when": "kind", "event": {"type": "kind"}},
        ],
    )
    assert [event.type for event in split_events(known, delivery([{"t": "a"}, {"t": "b"}]))] == ["a", "b"]
    assert only(split_events(known, delivery({"kind": "k"}))).type == "k"
    with pytest.raises(MalformedDeliveryError, match="no form"):
        split_events(known, delivery({"other": 1}))


def test_a_type_by_its_whole_name_comes_before_patterns() -> None:
    known = webhooks(
        events={
            "a.*": {"pull": "customer"},
            "*": {"ignore": True},
            "a.deleted": {"unlink": "customer"},
            "things": {"changes": "item"},
            "gone": {"disconnect": True},
        }
    )
    asked = {kind: action_of(known, kind) for kind in ("a.deleted", "a.updated", "things", "gone", "else")}
    assert {kind: (each.does, each.resource) for kind, each in asked.items() if each} == {
        "a.deleted": ("unlink", "customer"),
        "a.updated": ("pull", "customer"),
        "things": ("changes", "item"),
        "gone": ("disconnect", None),
        "else": ("ignore", None),
    }


def test_a_type_nobody_named() -> None:
    event = only(split_events(webhooks(), delivery({**CHANGE, "type": "customer.merged"})))
    assert event.action is None
    assert webhooks().other_events == "ignore"


@pytest.mark.parametrize(
    ("at", "moment"),
    [
        ("2026-03-01T11:59:00Z", datetime(2026, 3, 1, 11, 59, tzinfo=UTC)),
        ("2026-03-01T12:59:00+01:00", datetime(2026, 3, 1, 11, 59, tzinfo=UTC)),
        ("2025-10-09T08:53:09.179851517Z", datetime(2025, 10, 9, 8, 53, 9, 179851, tzinfo=UTC)),
        ("2026-03-01 11:59:00", datetime(2026, 3, 1, 11, 59, tzinfo=UTC)),
        ("yesterday", None),
        ("0001-01-01T00:00:00+01:00", None),  # in UTC, a year before the first
        (None, None),
    ],
)
def test_when_an_event_happened(at: str | None, moment: datetime | None) -> None:
    assert moment_of(Event("e", "t", at)) == moment


# --- probes


def probed(known: Webhooks, given: Delivery, *, verified: bool = False) -> str | None:
    reply = probe_reply(known, given, verified=verified, now=NOW)
    assert reply is None or (reply.kind, dict(reply.headers), reply.keep, reply.visit) == (
        *("text/plain", {}),
        *(None, None),
    )
    return None if reply is None else reply.text


def test_an_address_is_asked_for() -> None:
    known = webhooks(probes=[{"method": "GET"}])
    assert probed(known, delivery(b"", method="GET")) == ""
    assert probed(known, delivery(b"", method="HEAD")) is None
    assert probed(known, delivery(CHANGE), verified=True) is None
    assert probed(webhooks(), delivery(b"", method="GET")) is None


def test_a_challenge_is_answered_when_it_is_signed() -> None:
    known = webhooks(probes=[{"when": "type == 'verification'", "reply": "challenge"}])
    challenge = delivery({"type": "verification", "challenge": "abc"})
    assert probed(known, challenge, verified=True) == "abc"
    assert probed(known, challenge) is None
    assert probed(known, delivery({"type": "other", "challenge": "abc"}), verified=True) is None
    assert probed(known, delivery(b"not JSON"), verified=True) is None


def test_a_challenge_in_the_address() -> None:
    known = webhooks(probes=[{"method": "GET", "reply": "{{ query['hub.challenge'] }}"}])
    asked = delivery(b"", method="GET", url="https://hub.example/hook?hub.challenge=c%2F1")
    assert probed(known, asked) == "c/1"
    assert probed(known, delivery(b"", method="GET")) is None
    long = delivery(b"", method="GET", url="https://hub.example/hook?hub.challenge=" + "c" * 2000)
    assert probed(known, long) == "c" * 1024
