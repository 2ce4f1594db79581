"""Every pagination type answers for its cases: given this page, what is the next request?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.calls import Page, Request
from engine.errors import HubError
from engine.manifest import TypeSpec
from engine.pagination import TYPES, build
from engine.transport import encode_query, with_query

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
CASES = [
    pytest.param(document, case, id=f"{file.stem}: {case['name']}")
    for file in FILES
    for document in [yaml.safe_load(file.read_text("utf-8"))]
    for case in document["cases"]
]


def written(request: Request | None) -> str | None:
    return f"{request.method} {with_query(request.url, encode_query(request.query))}" if request else None


@pytest.mark.parametrize(("document", "case"), CASES)
def test_next_request(document: dict[str, Any], case: dict[str, Any]) -> None:
    options = dict(document["pagination"])
    pagination = build(TypeSpec(options.pop("type"), options), document.get("server", "https://api.example"))
    asked = Request.parse(case["request"])
    asked = replace(asked, body=case.get("body"), names=case.get("names", {}))
    rows = next((value for value in case["page"].values() if isinstance(value, list)), [])
    page = Page(asked, case["page"], case.get("headers", {}), records=rows)
    if "error" in case:
        with pytest.raises(HubError) as refused:
            pagination.next_request(asked, page)
        assert refused.value.code == case["error"]
        return
    following = pagination.next_request(asked, page)
    assert written(following) == case["next"]
    for part in ("body", "names"):
        if f"next_{part}" in case:
            assert following is not None
            assert getattr(following, part) == case[f"next_{part}"]


def test_every_type_has_cases() -> None:
    covered = {yaml.safe_load(file.read_text("utf-8"))["pagination"]["type"] for file in FILES}
    assert covered == set(TYPES)
