"""What a verdict says in words, and verdicts on single records inside a batch."""

import httpx
import pytest

from engine.error_rules import LONGEST_MESSAGE, Verdict, judge, judge_item
from engine.expressions import Expression
from engine.manifest import ErrorRule, ErrorRules
from tests.fakes import START

RULES = ErrorRules(
    code=Expression.compile("error.code"),
    message=Expression.compile("error.message"),
    rules=(
        ErrorRule("refresh_credentials", statuses=((401, 401),)),
        ErrorRule("recreate", statuses=((404, 404),), code=("NOT_FOUND",)),
        ErrorRule("reload_and_retry", text="version"),
    ),
)


def verdict_of(message: str, hide: tuple[str, ...] = ()) -> Verdict:
    body = {"error": {"code": "BAD", "message": message}}
    return judge(RULES, 400, httpx.Headers(), body, writing=True, now=START, hide=hide)


def test_a_message_never_shows_a_credential() -> None:
    verdict = verdict_of("Invalid key sk_live_1234: use sk_test", hide=("sk_live_1234",))
    assert verdict.message == "the provider answered 400 BAD: Invalid key ***: use sk_test"


def test_neither_does_a_code_or_a_field() -> None:
    rules = ErrorRules(code=Expression.compile("error"), field=Expression.compile("param"))
    body = {"error": "no such key sk_live_1234", "param": "sk_live_1234"}
    for verdict in (
        judge(rules, 400, httpx.Headers(), body, writing=True, now=START, hide=("sk_live_1234",)),
        judge_item(rules, body, code=None, message=None, hide=("sk_live_1234",)),
    ):
        assert (verdict.code, verdict.field) == ("no such key ***", "***")
        assert "sk_live_1234" not in verdict.message


def test_a_message_is_cut() -> None:
    assert len(verdict_of("x" * 10_000).message) == LONGEST_MESSAGE


def test_a_code_that_is_a_number_is_text() -> None:
    verdict = judge(RULES, 400, httpx.Headers(), {"error": {"code": 1064}}, writing=True, now=START)
    assert verdict.code == "1064"


def item_verdict(item: object) -> Verdict:
    return judge_item(
        RULES,
        item,
        code=Expression.compile("errors[0].code"),
        message=Expression.compile("errors[0].detail"),
    )


def test_an_item_is_judged_by_its_own_code_and_words() -> None:
    verdict = item_verdict({"errors": [{"code": "BAD", "detail": "stale version"}]})
    assert (verdict.action, verdict.code) == ("reload_and_retry", "BAD")
    assert verdict.message == "the provider answered BAD: stale version"


def test_a_rule_with_status_and_code_fits_an_item_by_its_code() -> None:
    assert item_verdict({"errors": [{"code": "NOT_FOUND"}]}).action == "recreate"


def test_a_rule_with_only_a_status_never_fits_an_item() -> None:
    assert item_verdict({"errors": [{"code": "BAD"}]}).action == "reject"


@pytest.mark.parametrize("told", ["999999999", "99999999999", "1e300", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_is_made_to_wait_longer_than_a_day(told: str) -> None:
    verdict = judge(RULES, 429, httpx.Headers({"Retry-After": told}), None, writing=False, now=START)
    assert verdict.wait == 86400
