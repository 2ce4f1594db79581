"""What a request of a provider comes to before it is proved."""

from server.api.webhooks import _named


def test_a_header_on_several_lines_is_one_with_commas() -> None:
    lines = [(b"x-signature", b"v1=a"), (b"x-id", b"1"), (b"x-signature", b"v1=b")]
    assert _named(lines) == {"x-signature": "v1=a, v1=b", "x-id": "1"}
