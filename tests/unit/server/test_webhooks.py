"""What is kept of a delivery: enough to read its events again, and nothing that proves another."""

from uuid import uuid4

import pytest

from engine.deliveries import Delivery
from server.services.webhooks import Arrival, delivery_row

TOKEN = "dG9rZW4tb2YtYS1jb25uZWN0aW9u"
SHARED = "https://hub.example/api/v1/integrations/webhooks/juniper"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", SHARED),
        ("?at=a/b", f"{SHARED}?at=a/b"),
        (f"?secret={TOKEN}", f"{SHARED}?secret=***"),
    ],
)
def test_the_token_of_an_address_is_taken_out(query: str, kept: str) -> None:
    delivery = Delivery("POST", f"{SHARED}/{TOKEN}{query}", {}, b"{}")
    arrival = Arrival("juniper", uuid4(), "default", delivery, (), None)
    assert delivery_row(uuid4(), arrival, uuid4(), with_body=True)["url"] == kept


def test_a_header_that_is_a_secret_is_left_out() -> None:
    headers = {"x-token": "canary", "authorization": "Bearer canary", "x-request": "1"}
    delivery = Delivery("POST", SHARED, headers, b"{}")
    arrival = Arrival("juniper", None, "default", delivery, (), None, frozenset({"x-token"}))
    assert delivery_row(uuid4(), arrival, uuid4(), with_body=True)["headers"] == {"x-request": "1"}
