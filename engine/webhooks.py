"""What a webhook tells: verify a delivery, answer a probe, split it into events.

Verification is `engine.signatures`' and comes first, over the raw bytes. A payload is a hint of what changed,
never the record itself: whoever works an event fetches the record.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from engine.deliveries import Delivery, read_body
from engine.errors import ExpressionError, MalformedDeliveryError, SignatureError
from engine.expressions import Expression
from engine.manifest import EventAction, EventShape, HeaderValue, Probe, Webhooks
from engine.ports import Secret
from engine.signatures import SignatureScheme, as_proved, is_at, sign, verify
from engine.transport import to_json

MOST_EVENTS = 1000  # in one delivery
LONGEST_REPLY = 1024  # characters of a probe's answer
LONGEST_ID = 180  # characters; the ledger puts the venue in front of it
_VISIBLE = re.compile(r"[!-~]([ -~]{0,1022}[!-~])?")  # what a header may hold


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


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a probe, always with 200.

    `keep` is a secret that the provider names and that has to be kept, for the scheme `scheme`, before this
    is answered; `visit` an address at its hosts that has to be called before.
    """

    text: str = ""
    kind: Literal["text/plain", "text/xml", "application/json"] = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: Secret | None = None
    scheme: str = ""
    visit: str | None = None


def verify_delivery(
    webhooks: Webhooks,
    delivery: Delivery,
    secrets: Mapping[str, Sequence[Secret]],
    *,
    now: datetime,
    keys: Sequence[str] = (),
) -> str:
    """Return the name of the scheme that proves a delivery; raises SignatureError, which says why not.

    `keys` are those published for the scheme that counts (`signatures.counting`).
    """
    return verify(webhooks.signatures, delivery, secrets, now=now.timestamp(), keys=keys).name


def proved_by(
    webhooks: Webhooks, name: str, delivery: Delivery, secrets: Mapping[str, Sequence[Secret]]
) -> Delivery:
    """Return a delivery that the scheme of this name has proved, as it is to be read and kept."""
    scheme = next(each for each in webhooks.signatures if each.name == name)
    return as_proved(scheme, delivery, secrets)


def probe_reply(
    webhooks: Webhooks,
    delivery: Delivery,
    *,
    verified: bool,
    now: datetime,
    secrets: Mapping[str, Sequence[Secret]] | None = None,
) -> Reply | None:
    """Return what to answer to a probe of the address, or None when the delivery is none.

    A probe by GET or HEAD, one the manifest calls `unsigned`, and one signed with a key that everybody knows
    prove nothing and aren't proved; any other counts only when it was `verified`. Nothing of a probe is
    stored. A provider that wants its challenge signed gets no answer while none of the `secrets` is known.
    """
    for probe in webhooks.probes:
        if probe.method != delivery.method:
            continue
        known = probe.secret is not None and _is_signed_with(webhooks, delivery, probe.secret, now)
        if not (known or verified or probe.unsigned or delivery.method in ("GET", "HEAD")):
            continue
        if probe.secret is not None and not known:
            continue
        if probe.visit is not None and not verified:
            continue
        reply = _reply(webhooks, probe, delivery, secrets or {})
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


def _reply(
    webhooks: Webhooks, probe: Probe, delivery: Delivery, secrets: Mapping[str, Sequence[Secret]]
) -> Reply | None:
    if probe.is_plain:
        return Reply()
    keep, scheme = None, keeps_for(webhooks)
    if probe.keep is not None:
        given = probe.keep.find(delivery)
        if not given or scheme is None or len(given[0]) > LONGEST_REPLY:
            return None
        keep = Secret(given[0])
    try:
        data = _root(read_body(delivery) if delivery.body else {}, delivery)
        if probe.when is not None and not probe.when.evaluate(data, data):
            return None
        if probe.sign is not None:
            known = secrets.get(probe.sign.name)
            if not known:
                return None
            data["signature"] = sign(probe.sign, delivery, known[0])
        text, kind = _text_of_reply(probe, data)
        return Reply(
            text,
            kind,
            _reply_headers(probe, data),
            keep,
            scheme.name if keep is not None and scheme is not None else "",
            _visited(probe, data),
        )
    except (ExpressionError, MalformedDeliveryError):
        return None


def _text_of_reply(
    probe: Probe, data: Mapping[str, Any]
) -> tuple[str, Literal["text/plain", "application/json"]]:
    if probe.reply_json is not None:
        text = to_json(probe.reply_json.render(data)).decode()
        if len(text) > LONGEST_REPLY:
            raise ExpressionError("the answer is too long")
        return text, "application/json"
    value = "" if probe.reply is None else probe.reply.evaluate(data, data)
    return str(value)[:LONGEST_REPLY], "text/plain"


def _reply_headers(probe: Probe, data: Mapping[str, Any]) -> dict[str, str]:
    rendered = probe.reply_headers.render(data) if probe.reply_headers is not None else {}
    headers = {name.lower(): str(value) for name, value in rendered.items()}
    if not all(_VISIBLE.fullmatch(value) for value in headers.values()):
        raise ExpressionError("the answer has a header that can't be written")
    return headers


def _visited(probe: Probe, data: Mapping[str, Any]) -> str | None:
    if probe.visit is None:
        return None
    url = probe.visit.evaluate(data, data)
    if not isinstance(url, str) or not is_at(url, probe.visit_hosts):
        raise ExpressionError("the address to call isn't its provider's")
    return url


def keeps_for(webhooks: Webhooks) -> SignatureScheme | None:
    """Return the scheme that a secret named by the provider is kept for: the first that isn't an address."""
    return next((each for each in webhooks.signatures if each.type != "secret_url"), None)


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
    return {
        **known,
        "body": body,
        "headers": dict(delivery.headers),
        "query": dict(delivery.parameters),
    }


def moment_of(event: Event) -> datetime | None:
    """Return when an event happened, if it says so in a way that can be read."""
    if event.at is None:
        return None
    try:
        moment = datetime.fromisoformat(event.at)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the first and last hours there are can't be said in UTC
        return None
