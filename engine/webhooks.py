"""What a webhook tells: verify a delivery, answer a probe, split it into events.

Verification is `engine.signatures`' and comes first, over the raw bytes. A payload is a hint of what changed,
never the record itself: whoever works an event fetches the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from engine.errors import ExpressionError, MalformedDeliveryError, SignatureError
from engine.expressions import Expression
from engine.manifest import EventAction, EventShape, HeaderValue, Probe, Webhooks
from engine.ports import Secret
from engine.signatures import Delivery, verify

MOST_EVENTS = 1000  # in one delivery
MOST_DEPTH = 32  # of a payload, and of a form's bracketed names
LONGEST_REPLY = 1024  # characters of a probe's answer
LONGEST_ID = 180  # characters; the ledger puts the venue in front of it


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a delivery reports.

    `id` tells the same event from another: the provider's own, or made from what was signed. `at` is RFC
    3339, `account` whose event it is, `record` the id of the record it is about. `action` says what to do;
    None is an event the manifest doesn't know.
    """

    id: str
    type: str
    at: str | None = None
    account: str | None = None
    record: str | None = None
    action: EventAction | None = None
    payload: Any = field(default=None, repr=False)


def verify_delivery(
    webhooks: Webhooks, delivery: Delivery, secrets: Mapping[str, Sequence[Secret]], *, now: datetime
) -> str:
    """Return the name of the scheme that proves a delivery; raises SignatureError, which says why not."""
    return verify(webhooks.signatures, delivery, secrets, now=now.timestamp()).name


def probe_reply(webhooks: Webhooks, delivery: Delivery, *, verified: bool, now: datetime) -> str | None:
    """Return what to answer to a probe of the address, or None when the delivery is none.

    A probe by GET or HEAD, and one signed with a key that everybody knows, proves nothing and isn't proved;
    any other counts only when it was `verified`. Nothing of a probe is stored.
    """
    for probe in webhooks.probes:
        if probe.method != delivery.method:
            continue
        known = probe.secret is not None and _is_signed_with(webhooks, delivery, probe.secret, now)
        if not (known or verified or delivery.method in ("GET", "HEAD")):
            continue
        if probe.secret is not None and not known:
            continue
        reply = _reply(probe, delivery)
        if reply is not None:
            return reply
    return None


def _is_signed_with(webhooks: Webhooks, delivery: Delivery, secret: str, now: datetime) -> bool:
    known = {scheme.name: [Secret(secret)] for scheme in webhooks.signatures if scheme.type != "secret_url"}
    try:
        verify(webhooks.signatures, delivery, known, now=now.timestamp())
    except SignatureError:
        return False
    return True


def _reply(probe: Probe, delivery: Delivery) -> str | None:
    if probe.when is None and probe.reply is None:
        return ""
    try:
        data = _root(read_body(delivery) if delivery.body else {}, delivery)
        if probe.when is not None and not probe.when.evaluate(data, data):
            return None
        return "" if probe.reply is None else str(probe.reply.evaluate(data, data))[:LONGEST_REPLY]
    except (ExpressionError, MalformedDeliveryError):
        return None


def split_events(webhooks: Webhooks, delivery: Delivery) -> list[Event]:
    """Return the events of a verified delivery, in its order; raises MalformedDeliveryError."""
    body = read_body(delivery)
    root = _root(body, delivery)
    shape = next((each for each in webhooks.shapes if _fits(each, body)), None)
    if shape is None:
        raise MalformedDeliveryError("the delivery has no form that the manifest knows")
    events: list[Event] = []
    for number, (scope, payload) in enumerate(_items(shape, body, root)):
        if number == MOST_EVENTS:
            raise MalformedDeliveryError(f"the delivery has more than {MOST_EVENTS} events")
        events.append(_event(webhooks, shape, scope, payload, delivery, number))
    return events


def _fits(shape: EventShape, body: Any) -> bool:
    try:
        return shape.when is None or bool(shape.when.evaluate(body, {"body": body}))
    except ExpressionError:
        return False


def _items(shape: EventShape, body: Any, root: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Walk what a delivery holds; each level's name is seen by the ones below it."""
    if not shape.each:
        yield root, body
        return
    own = {name: root[name] for name in ("headers", "query")}

    def walk(
        level: int, scope: Mapping[str, Any], over: Any, payload: Any
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        if level == len(shape.each):
            yield scope, payload
            return
        name, expression = shape.each[level]
        try:
            found = expression.evaluate(over, scope)
        except ExpressionError as error:
            raise MalformedDeliveryError(f"`{name}` can't be read: {error.message}") from error
        if isinstance(found, Mapping):
            found = [found]
        if found is not None and not isinstance(found, list):
            raise MalformedDeliveryError(f"`{name}` isn't a list")
        for item in found or ():
            inner = {**scope, name: item}
            yield from walk(level + 1, inner, inner, item)

    yield from walk(0, {**own, "body": body}, body, body)


def _event(
    webhooks: Webhooks,
    shape: EventShape,
    scope: Mapping[str, Any],
    payload: Any,
    delivery: Delivery,
    number: int,
) -> Event:
    kind = _text(shape.type, scope, delivery, "type")
    if not kind:
        raise MalformedDeliveryError("an event has no type")
    identity = _text(shape.id, scope, delivery, "id")
    if not identity:
        # Made from the very bytes that were signed: the same delivery again is the same event.
        digest = hashlib.sha256(delivery.body).hexdigest()
        identity = f"sha256:{digest}:{number}"
    elif len(identity) > LONGEST_ID:
        identity = f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"
    action = action_of(webhooks, kind)
    record = _text(shape.record, scope, delivery, "record")
    if action is not None and action.id is not None:
        record = _text(action.id, scope, delivery, "id of the record")
    return Event(
        identity,
        kind[:LONGEST_ID],
        _text(shape.at, scope, delivery, "at"),
        _text(shape.account, scope, delivery, "account"),
        record,
        action,
        payload,
    )


def action_of(webhooks: Webhooks, kind: str) -> EventAction | None:
    """Return what the manifest says of an event's type: by its name, else by the first pattern that fits."""
    if kind in webhooks.events:
        return webhooks.events[kind]
    return next((action for pattern, action in webhooks.events.items() if fnmatchcase(kind, pattern)), None)


def _text(
    source: Expression | HeaderValue | None, scope: Mapping[str, Any], delivery: Delivery, what: str
) -> str | None:
    if source is None:
        return None
    if isinstance(source, HeaderValue):
        return delivery.headers.get(source.name) or None
    try:
        value = source.evaluate(scope, scope)
    except ExpressionError as error:
        raise MalformedDeliveryError(f"an event's {what} can't be read: {error.message}") from error
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise MalformedDeliveryError(f"an event's {what} isn't text or a whole number")
    return str(value)


def _root(body: Any, delivery: Delivery) -> dict[str, Any]:
    known = body if isinstance(body, dict) else {}
    query = dict(parse_qsl(urlsplit(delivery.url).query, keep_blank_values=True))
    return {**known, "body": body, "headers": dict(delivery.headers), "query": query}


def read_body(delivery: Delivery) -> Any:
    """Return a payload: JSON, or a form with bracketed names as objects; raises MalformedDeliveryError."""
    kind = delivery.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _nested(delivery.form)
    try:
        value = orjson.loads(delivery.body)
    except orjson.JSONDecodeError:
        raise MalformedDeliveryError("the body isn't JSON") from None
    if _too_deep(value):
        raise MalformedDeliveryError(f"the body is nested more than {MOST_DEPTH} deep")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _nested(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return `data[merges][FNAME]=Ana` as nested objects; a name given twice keeps its last value."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        head, bracket, rest = name.partition("[")
        steps = [head, *(rest.removesuffix("]").split("][") if bracket and rest.endswith("]") else ())]
        if len(steps) > MOST_DEPTH:
            raise MalformedDeliveryError(f"a name of the form is nested more than {MOST_DEPTH} deep")
        target = made
        for step in steps[:-1]:
            inner = target.get(step)
            if not isinstance(inner, dict):
                inner = target[step] = {}
            target = inner
        target[steps[-1]] = value
    return made


def moment_of(event: Event) -> datetime | None:
    """Return when an event happened, if it says so in a way that can be read."""
    if event.at is None:
        return None
    try:
        moment = datetime.fromisoformat(event.at)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the first and last hours there are can't be said in UTC
        return None
