"""What goes into PostgreSQL as JSON comes back as it was."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.db.exact_json import dumps, loads

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
)


@given(values)
def test_there_and_back(value: Any) -> None:
    assert json.loads(dumps(value), parse_float=str, parse_int=str) == _numbers_as_texts(value)


def _numbers_as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.replace("\0", "\ufffd"): _numbers_as_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_as_texts(item) for item in value]
    return str(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
        (Decimal("12.50"), "12.50"),
        (Decimal("NaN"), "null"),
        (2**70, "1180591620717411303424"),
        ("a\0b", '"a\ufffdb"'),
        ("\\u0000", '"\\\\u0000"'),
        ("\ud800", '"?"'),
        ([0.1, True, None], "[0.1,true,null]"),
    ],
)
def test_awkward_values(value: Any, text: str) -> None:
    assert dumps(value) == text


def test_fractions_come_back_exact() -> None:
    assert repr(loads('{"price": 0.10, "count": 3}')) == "{'price': Decimal('0.10'), 'count': 3}"


def test_what_is_not_plain_is_refused() -> None:
    with pytest.raises(TypeError):
        dumps({"when": object()})
