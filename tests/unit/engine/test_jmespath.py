"""JMESPath's own compliance tests, on what evaluates JMESPath here.

The files in `jmespath/` come with the library jmespath.py (its `tests/compliance`), under the licence beside
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest

from engine.errors import ExpressionError
from engine.expressions import Expression

SUITE = FilePath(__file__).parent / "jmespath"


def cases() -> Iterator[Any]:
    for file in sorted(SUITE.glob("*.json")):
        number = 0
        for group in json.loads(file.read_text("utf-8")):
            for case in group["cases"]:
                number += 1
                yield pytest.param(group["given"], case, id=f"{file.stem}-{number}")


def test_the_suite_is_whole() -> None:
    assert len(list(cases())) > 850


@pytest.mark.parametrize(("given", "case"), list(cases()))
def test_it_complies(given: Any, case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(ExpressionError):
            Expression.compile(case["expression"]).evaluate(given)
        return
    result = Expression.compile(case["expression"]).evaluate(given)
    if "result" in case:  # those to be timed have none
        assert result == case["result"]
        assert isinstance(result, bool) == isinstance(case["result"], bool)
