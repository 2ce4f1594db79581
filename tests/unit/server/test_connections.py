"""Which values of a connection a venue may give, and which it has to."""

import pytest

from engine.manifest import Connector
from server.errors import InvalidRequestError
from server.services.integrations import check_connection, found_out, read_connection
from tests.fakes import connector_of

MANIFEST = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: "https://{{ connection.shop }}.juniper.example"}
auth:
  - name: key
    type: bearer
    credentials: {apiKey: {title: Key}}
    token: apiKey
    keep: {region: "{{ apiKey | after_last('-') }}"}
  - name: oauth
    type: oauth2
    authorize_url: /authorize
    token_url: /token
    keep: {merchant: merchant}
    keep_from_callback: {company: companyId}
check: GET /me
after_connecting:
  - {call: GET /locations, keep: {location: main.id}}
resources:
  customer: {id: id, fields: {id: id}, list: GET /customers}
"""
PLAIN = """
manifest: 1
connector: juniper
title: Juniper
docs: https://developer.juniper.example
server: {production: https://api.juniper.example}
auth: {type: none}
check: GET /me
resources:
  customer: {id: id, fields: {id: id}, list: GET /customers}
"""
CONNECTION = """
connection:
  shop: {title: Shop, pattern: "^[a-z]+$"}
  region: {title: Region, pattern: "^[a-z]{2}$"}
  location: {title: Location}
  label: {title: Label, optional: true}
  rooms: {title: Rooms, list: true, optional: true}
"""


def made() -> Connector:
    return connector_of(MANIFEST + CONNECTION)


def problems(refused: pytest.ExceptionInfo[InvalidRequestError]) -> dict[str, str]:
    return {detail.field: detail.message for detail in refused.value.details}


def test_what_a_venue_chose_is_taken_and_blanks_are_not() -> None:
    assert read_connection(made(), {"shop": "duc", "label": ""}) == {"shop": "duc"}


def test_everything_wrong_with_a_choice_is_named() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_connection(made(), {"shp": "x", "shop": "a.b", "region": "eu"})
    found = problems(refused)
    assert found.keys() == {"connection.shp", "connection.shop"}
    assert "did you mean `shop`?" in found["connection.shp"]
    assert found["connection.shop"] == "this doesn't look like: Shop"


@pytest.mark.parametrize("typed", ["r1", "r1, r2", '["r1"]'])
def test_a_list_that_is_looked_up_is_not_typed(typed: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_connection(made(), {"shop": "duc", "rooms": typed})
    found = problems(refused)
    assert found == {"connection.rooms": "Rooms are looked up at Juniper: leave it out"}


def test_a_connector_that_declares_none_takes_none() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_connection(connector_of(PLAIN), {"shop": "x"})
    assert "it takes none" in problems(refused)["connection.shop"]


def test_what_is_found_out_depends_on_the_way_to_sign() -> None:
    connector = made()
    key, oauth = connector.auth
    assert found_out(connector, key) == {"location", "region"}
    assert found_out(connector, oauth) == {"location", "merchant", "company"}


def test_only_the_venue_can_give_what_nobody_finds_out() -> None:
    connector = made()
    with pytest.raises(InvalidRequestError) as refused:
        check_connection(connector, {"region": "eu"}, found_out={"location"})
    assert problems(refused) == {"connection.shop": "Shop is missing"}
    check_connection(connector, {"region": "eu", "shop": "duc"}, found_out={"location"})


def test_in_the_end_every_value_is_there_and_fits() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_connection(made(), {"region": "europe", "shop": "duc"})
    assert problems(refused) == {
        "connection.region": "this doesn't look like: Region",
        "connection.location": "Location is missing",
    }
