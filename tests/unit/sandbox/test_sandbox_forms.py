import pytest

from tests.sandbox import forms
from tests.sandbox.forms import ParameterError


def test_brackets_nest() -> None:
    text = (
        "name=GA+ticket&active=true&metadata[event_id]=ev+1&images[0]=a&images[1]=b"
        "&default_price_data[recurring][interval]=month"
    )
    assert forms.decode(text) == {
        "name": "GA ticket",
        "active": "true",
        "metadata": {"event_id": "ev 1"},
        "images": ["a", "b"],
        "default_price_data": {"recurring": {"interval": "month"}},
    }


def test_lists_by_empty_brackets_and_by_place() -> None:
    assert forms.decode("a[]=x&a[]=y") == {"a": ["x", "y"]}
    assert forms.decode("a[1]=y&a[0]=x") == {"a": ["x", "y"]}
    assert forms.decode("a[0][b]=1&a[1][b]=2") == {"a": [{"b": "1"}, {"b": "2"}]}


@pytest.mark.parametrize("text", ["a=1&a[b]=2", "a[b]=2&a=1", "a[b=1", "a[b][c]=1&a[b]=2"])
def test_contradictions_are_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        forms.decode(text)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"nme": "x"}, "parameter_unknown"),
        ({}, "parameter_missing"),
        ({"name": ""}, "parameter_invalid_empty"),
        ({"name": "x", "amount": "1.5"}, "parameter_invalid_integer"),
        ({"name": "x", "amount": "-1"}, "parameter_invalid_integer"),
        ({"name": "x", "exact": "NaN"}, "parameter_invalid_decimal"),
        ({"name": "x", "exact": "0.1234567890123"}, "parameter_invalid_decimal"),
        ({"name": "x", "on": "yes"}, "parameter_invalid_boolean"),
        ({"name": {"x": "y"}}, "parameter_invalid_string"),
    ],
)
def test_checks(given: dict[str, object], code: str) -> None:
    known = {
        "name": forms.text(),
        "amount": forms.integer(0, 10),
        "exact": forms.decimal,
        "on": forms.flag,
    }
    with pytest.raises(ParameterError) as caught:
        forms.check_all(given, known, required=("name",))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({f"k{place}": "v" for place in range(50)}, True),
        ({f"k{place}": "v" for place in range(51)}, False),
        ({"k" * 40: "v" * 500}, True),
        ({"k" * 41: "v"}, False),
        ({"k": "v" * 501}, False),
    ],
)
def test_metadata_limits(given: dict[str, str], fits: bool) -> None:
    if fits:
        assert forms.metadata(given, "metadata") == given
    else:
        with pytest.raises(ParameterError):
            forms.metadata(given, "metadata")
