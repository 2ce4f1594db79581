"""Failures as providers send them, and the verdict on each. The time is 2026-03-01 12:00:00 UTC."""

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml

from engine.error_rules import is_failure, judge
from engine.manifest import Action
from tests.fakes import START, connector_of

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
CASES = [
    pytest.param(document["errors"], case, id=f"{file.stem}: {case['name']}")
    for file in FILES
    for document in [yaml.safe_load(file.read_text("utf-8"))]
    for case in document["cases"]
]
TOLD = ("code", "field", "message", "request_id", "wait")


@pytest.mark.parametrize(("errors", "case"), CASES)
def test_verdict(errors: dict[str, Any], case: dict[str, Any]) -> None:
    connector = connector_of(
        f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example}}
auth: {{type: none}}
check: GET /me
errors: {json.dumps(errors)}
resources:
  customer: {{id: id, fields: {{id: id}}, list: GET /customers}}
"""
    )
    body = case.get("body")
    assert is_failure(connector.errors, case["status"], body) is case.get("failure", True)
    if "then" not in case:
        return
    verdict = judge(
        connector.errors,
        case["status"],
        httpx.Headers(case.get("headers")),
        body,
        writing=case.get("writing", False),
        now=START,
    )
    assert verdict.action == case["then"]
    for name in TOLD:
        if name in case:
            assert getattr(verdict, name) == case[name], name


def test_every_action_has_a_case() -> None:
    decided = {
        case["then"]
        for file in FILES
        for case in yaml.safe_load(file.read_text("utf-8"))["cases"]
        if "then" in case
    }
    assert decided == set(get_args(Action))
