"""Read a provider's failure and say what to do about it.

The manifest's rules come first, in their order; where none fits, what HTTP itself says decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, overload

from engine.errors import ExpressionError
from engine.expressions import Expression
from engine.manifest import Action, ErrorRule, ErrorRules

LONGEST_MESSAGE = 500  # characters of a provider's own words
EARLIEST_MOMENT = 1_000_000_000  # larger numbers are Unix time, smaller ones seconds to wait
EARLIEST_MILLISECONDS = 100_000_000_000
LONGEST_WAIT = 86_400.0  # seconds; whoever is told to wait longer asks again


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means. `wait` is in seconds from now, when the provider says how long."""

    action: Action
    message: str
    status: int | None = None
    code: str | None = None
    field: str | None = None
    request_id: str | None = None
    wait: float | None = None


def judge(
    rules: ErrorRules,
    status: int,
    headers: Mapping[str, str],
    body: Any,
    *,
    writing: bool,
    now: datetime,
    hide: Collection[str] = (),
) -> Verdict:
    """Return the verdict on a failed answer.

    `headers` must find names in any case; `body` is decoded JSON, or text when it wasn't JSON. `writing` says
    that the call writes records, so that a refusal is the record's own. Values of `hide` never show in the
    message.
    """
    code = _text(rules.code, body)
    said = _text(rules.message, body)
    rule = next((rule for rule in rules.rules if _fits(rule, status, headers, body, code, said)), None)
    return Verdict(
        action=rule.then if rule else _default_action(status, writing),
        message=_message(status, code, said, body, hide),
        status=status,
        code=_clean(code, hide),
        field=_clean(_text(rules.field, body), hide),
        request_id=headers.get(rules.request_id.name) if rules.request_id else None,
        wait=_wait(rule, headers, now),
    )


def judge_item(
    rules: ErrorRules,
    item: Any,
    *,
    code: Expression | None,
    message: Expression | None,
    hide: Collection[str] = (),
) -> Verdict:
    """Return the verdict on one record's failure inside an answer that succeeded as a whole.

    Only rules that look at the code, the text or the body can fit: the status belongs to the whole answer.
    """
    own_code, said = _text(code or rules.code, item), _text(message or rules.message, item)
    telling = (rule for rule in rules.rules if rule.code or rule.text or rule.when)
    rule = next((rule for rule in telling if _fits(rule, None, {}, item, own_code, said)), None)
    return Verdict(
        action=rule.then if rule else "reject",
        message=_message(None, own_code, said, item, hide),
        code=_clean(own_code, hide),
        field=_clean(_text(rules.field, item), hide),
    )


def is_failure(rules: ErrorRules, status: int, body: Any) -> bool:
    """Say whether an answer is a failure: by its status, or because the manifest finds one in its body."""
    if not 200 <= status < 300:
        return True
    if rules.in_success is None:
        return False
    try:
        return bool(rules.in_success.evaluate(body, {"body": body}))
    except ExpressionError:
        return False


def read_number(value: str | None) -> float | None:
    """Read a number; None for anything else, infinity included."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def read_wait(value: str | None, now: datetime) -> float | None:
    """Read how long to wait, in seconds: a number of them, an HTTP date, or Unix time (s or ms); never
    negative, nor longer than a day.
    """
    if not value or not value.strip():
        return None
    text = value.strip()
    number = read_number(text)
    if number is None:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max(0.0, (moment - now).total_seconds()), LONGEST_WAIT)
    if number >= EARLIEST_MILLISECONDS:
        number /= 1000
    wait = number - now.timestamp() if number >= EARLIEST_MOMENT else number
    return min(max(0.0, wait), LONGEST_WAIT)


def _fits(
    rule: ErrorRule,
    status: int | None,
    headers: Mapping[str, str],
    body: Any,
    code: str | None,
    said: str | None,
) -> bool:
    if rule.statuses and status is not None and not any(low <= status <= high for low, high in rule.statuses):
        return False
    if rule.code and code not in rule.code:
        return False
    if rule.text:
        haystack = said if said is not None else body if isinstance(body, str) else ""
        if rule.text.lower() not in haystack.lower():
            return False
    if rule.header:
        name, wanted = rule.header
        given = headers.get(name)
        if given is None or given.strip().lower() != wanted.lower():
            return False
    if rule.json is not None and rule.json == (body is None or isinstance(body, str)):
        return False
    return rule.when is None or _truth(rule.when, body)


def _default_action(status: int, writing: bool) -> Action:
    if status == 401:
        return "refresh_credentials"
    if status in (408, 425, 429):
        return "wait"
    if status >= 500:
        return "retry"
    return "reject" if writing else "fail"


def _wait(rule: ErrorRule | None, headers: Mapping[str, str], now: datetime) -> float | None:
    place = rule.wait_for if rule else None
    named = read_wait(headers.get(place.name), now) if place and place.where == "header" else None
    return named if named is not None else read_wait(headers.get("Retry-After"), now)


def _text(expression: Expression | None, body: Any) -> str | None:
    if expression is None or body is None:
        return None
    try:
        value = expression.evaluate(body, {"body": body})
    except ExpressionError:
        return None  # a failure needn't have the shape of the documented ones
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def _truth(expression: Expression, body: Any) -> bool:
    try:
        return bool(expression.evaluate(body, {"body": body}))
    except ExpressionError:
        return False


@overload
def _clean(text: str, hide: Collection[str]) -> str: ...
@overload
def _clean(text: str | None, hide: Collection[str]) -> str | None: ...
def _clean(text: str | None, hide: Collection[str]) -> str | None:
    for secret in hide:
        if secret and text:
            text = text.replace(secret, "***")
    return text


def _message(status: int | None, code: str | None, said: str | None, body: Any, hide: Collection[str]) -> str:
    text = said
    if text is None and isinstance(body, str) and not body.lstrip().startswith("<"):
        text = body
    what = " ".join(part for part in (str(status) if status else "", code or "") if part) or "a failure"
    words = " ".join((text or "").split())
    message = _clean(f"the provider answered {what}" + (f": {words}" if words else ""), hide)
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"
