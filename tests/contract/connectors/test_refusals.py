"""What the shipped connectors do about answers that are easily taken for something else."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import load_connector
from engine.error_rules import judge

CONNECTORS = Path(__file__).parents[3] / "connectors"
NO_RETRY = {"Stripe-Should-Retry": "false"}
REUSED_THERE = {"errors": [{"code": "IDEMPOTENCY_KEY_REUSED", "detail": "Another request has this key."}]}


def stripe_error(kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"type": kind, **({"code": code} if code else {}), "message": "no"}}


@pytest.mark.parametrize(
    ("connector", "status", "headers", "body", "action"),
    [
        ("stripe", 400, {}, stripe_error("idempotency_error"), "new_key"),
        ("stripe", 409, {}, stripe_error("idempotency_error", "idempotency_key_in_use"), "retry"),
        ("stripe", 402, NO_RETRY, stripe_error("card_error"), "reject"),
        ("stripe", 500, NO_RETRY, stripe_error("api_error"), "retry"),
        ("stripe", 503, NO_RETRY, "upstream connect error", "retry"),
        ("square", 400, {}, REUSED_THERE, "new_key"),
    ],
)
def test_what_a_refusal_of_a_write_means(
    connector: str, status: int, headers: dict[str, str], body: Any, action: str
) -> None:
    rules = load_connector(CONNECTORS / f"{connector}.yaml").errors
    verdict = judge(
        rules, status, httpx.Headers(headers), body, writing=True, now=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert verdict.action == action
