"""Bodies of webhooks: what can't be read is told as that, whatever a stranger writes in them."""

import pytest

from engine.deliveries import Delivery, read_body
from engine.errors import MalformedDeliveryError


def xml(body: bytes) -> object:
    return read_body(Delivery("POST", "https://hub.example/x", {"content-type": "text/xml"}, body))


@pytest.mark.parametrize("encoding", ["nobody-knows", "base64", "utf-7", "big5"])
def test_xml_may_name_an_encoding_that_can_not_be_read(encoding: str) -> None:
    with pytest.raises(MalformedDeliveryError):
        xml(f'<?xml version="1.0" encoding="{encoding}"?><a>x</a>'.encode())


def test_xml_in_an_encoding_of_one_byte_a_letter() -> None:
    assert xml(b'<?xml version="1.0" encoding="cp1252"?><a>Ren\xe9</a>') == {"a": "René"}
