"""What is wrong with a body: all of it, each with its path and a hint."""

from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from msgspec import Meta, Struct

from engine.ports import Secret
from server.api.checking import MOST_TOLD, refuse, wrong_in
from server.errors import Detail, InvalidRequestError, VenueRequiredError

VENUE = "7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f"


class Inner(Struct, forbid_unknown_fields=True, rename="camel"):
    wanted_days: Annotated[int, Meta(ge=1, le=7)] = 1
    secret: Secret | None = None


class Body(Struct, forbid_unknown_fields=True, rename="camel"):
    venue_id: UUID
    kind: Literal["full", "customers"] = "full"
    inner: Inner | None = None
    names: list[Annotated[str, Meta(max_length=3)]] = []
    by_name: dict[str, Inner] = {}


def found(**body: Any) -> dict[str, str]:
    return {each.field: each.message for each in wrong_in(Body, {"venueId": VENUE, **body})}


def test_a_good_body_has_nothing_wrong() -> None:
    assert found(inner={"wantedDays": 7, "secret": "s"}, names=["abc"], byName={"x": {}}) == {}
    assert found(inner=None) == {}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"venueId": "x"}, "venueId", "this isn't a UUID, such as `7d7f1c0e-3f0e-4b0e-8f0e-0a1b2c3d4e5f`"),
        ({"venueId": 7}, "venueId", "expected a UUID, got a whole number"),
        ({"kind": "ful"}, "kind", "`ful` isn't one of `full`, `customers`; did you mean `full`?"),
        ({"kind": "x" * 60}, "kind", "this isn't one of `full`, `customers`"),
        ({"inner": {"wantedDays": 8}}, "inner.wantedDays", "expected a whole number <= 7"),
        ({"inner": {"wantedDays": "1"}}, "inner.wantedDays", "expected a whole number, got text"),
        ({"inner": {"wantedDay": 1}}, "inner.wantedDay", "`inner.wantedDay` is not known here; did you mean "
         "`wantedDays`?"),
        ({"inner": {"z": 1}}, "inner.z", "`inner.z` is not known here; `inner` takes wantedDays, secret"),
        ({"inner": {"secret": 5}}, "inner.secret", "expected text"),
        ({"names": ["abc", "abcd"]}, "names[1]", "expected text of length <= 3"),
        ({"names": {}}, "names", "expected a list, got an object"),
        ({"byName": {"x": {"wantedDays": 0}}}, "byName.x.wantedDays", "expected a whole number >= 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_a_hint(body: dict[str, Any], field: str, message: str) -> None:
    assert found(**body) == {field: message}


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = found(kind="x", inner={"wantedDays": 0, "other": 1}, names=["abcd", 5], more=1)
    assert set(wrong) == {"kind", "inner.wantedDays", "inner.other", "names[0]", "names[1]", "more"}
    assert [each.field for each in wrong_in(Body, {"kind": 1})] == ["venueId", "kind"]
    assert [each.field for each in wrong_in(Body, [])] == ["body"]


def test_a_missing_venue_has_its_own_code() -> None:
    venue = Detail("venueId", "venueId is required")
    for wrong in ([venue], [venue, Detail("kind", "this isn't one of `full`")]):
        with pytest.raises(VenueRequiredError) as refused:
            refuse(wrong)
        assert refused.value.details == tuple(wrong)
    with pytest.raises(InvalidRequestError) as other:
        refuse([Detail("venueId", "this isn't a UUID")])
    assert other.value.code == "VALIDATION_ERROR"
    refuse([])
    assert MOST_TOLD >= 10
