"""Every authentication type answers for its cases: what does signing add to a request?"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.auth import TYPES, Authenticator
from engine.errors import HubError
from engine.filling import kept_of_credentials
from engine.ports import Credentials, Secret
from tests.fakes import connector_of

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
CASES = [
    pytest.param(document["auth"], case, id=f"{file.stem}: {case['name']}")
    for file in FILES
    for document in [yaml.safe_load(file.read_text("utf-8"))]
    for case in document["cases"]
]


@pytest.mark.parametrize(("auth", "case"), CASES)
def test_signature(auth: dict[str, Any], case: dict[str, Any]) -> None:
    connector = connector_of(
        f"""
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {{production: https://api.juniper.example}}
auth: {json.dumps(auth)}
check: GET /me
resources:
  customer: {{id: id, fields: {{id: id}}, list: GET /customers}}
"""
    )
    credentials = Credentials({name: Secret(value) for name, value in case["credentials"].items()})
    authenticator = Authenticator.choose(connector, credentials)
    if "error" in case:
        with pytest.raises(HubError) as refused:
            authenticator.sign(credentials)
        assert refused.value.code == case["error"]
        assert not any(value and value in refused.value.message for value in case["credentials"].values())
        return
    signature = authenticator.sign(credentials)
    assert dict(signature.headers) == case["headers"]
    assert dict(signature.query) == case.get("query", {})
    kept = kept_of_credentials(authenticator.method, credentials.values)
    assert kept == case.get("kept", {})
    assert not any(secret in repr(signature) for secret in case["credentials"].values())


def test_every_type_has_cases() -> None:
    assert {yaml.safe_load(file.read_text("utf-8"))["auth"]["type"] for file in FILES} == set(TYPES)
