"""Tokens that were verified are known for a while, and never for longer than they are good."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jwt
import pytest

from server.api import guards
from server.api.guards import KEPT_SECONDS, Caller, read_token
from server.errors import InvalidTokenError, TokenExpiredError
from server.settings import Settings, read_settings

SECRET = "a-secret-of-more-than-thirty-two-bytes"


def settings(secret: str = SECRET, **more: str) -> Settings:
    given = {"HUB_ENV": "test", "JWT_SECRET": secret, "ENCRYPTION_KEY": "k" * 16 + "y" * 16, **more}
    return read_settings(given)


def token(secret: str = SECRET, **claims: Any) -> str:
    given = {"userId": "jane", "exp": int(time.time()) + 3600, **claims}
    return jwt.encode(given, secret, algorithm="HS256")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    guards._verified.clear()
    yield
    guards._verified.clear()


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were really verified, in order."""
    seen: list[str] = []
    real = guards._verify_token

    def verify(text: str, given: Settings) -> tuple[Caller, int]:
        seen.append(text)
        return real(text, given)

    monkeypatch.setattr(guards, "_verify_token", verify)
    return seen


def test_a_token_is_verified_once_for_many_requests(verified: list[str]) -> None:
    text = token()
    assert [read_token(text, settings()).id for _ in range(3)] == ["jane"] * 3
    assert verified == [text]


def test_another_token_is_verified_by_itself(verified: list[str]) -> None:
    texts = [token(), token(userId="joe"), token(role="admin")]
    assert [read_token(text, settings()).id for text in texts] == ["jane", "joe", "jane"]
    assert verified == texts


@pytest.mark.parametrize(
    "claims",
    [{"role": "r" * 51}, {"role": "admin\0"}, {"userId": "a\0"}, {"userId": "\ud800"}, {"userId": "i" * 256}],
    ids=["long role", "role with NUL", "id with NUL", "id with half a character", "long id"],
)
def test_names_that_the_audit_log_cannot_keep_are_refused(claims: dict[str, str]) -> None:
    with pytest.raises(InvalidTokenError):
        read_token(token(**claims), settings())


@pytest.mark.parametrize("changed", [-1, -20, -60])
def test_one_changed_character_is_another_token(changed: int) -> None:
    text = token()
    read_token(text, settings())
    forged = list(text)
    forged[changed] = "A" if forged[changed] != "A" else "B"
    with pytest.raises(InvalidTokenError):
        read_token("".join(forged), settings())


def test_what_another_key_proved_is_not_known(verified: list[str]) -> None:
    text = token()
    read_token(text, settings())
    for other in (settings("another-secret-of-thirty-two-bytes-"), settings(JWT_AUDIENCE="hub")):
        with pytest.raises(InvalidTokenError):
            read_token(text, other)
    assert verified == [text] * 3


def test_it_is_not_known_past_its_end(monkeypatch: pytest.MonkeyPatch, verified: list[str]) -> None:
    now = time.time()
    text = token(exp=int(now) + 3)
    read_token(text, settings())
    later = int(now) + 3

    class Later(datetime):  # what PyJWT reads its time by
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(later, tz)

    monkeypatch.setattr(time, "time", lambda: float(later))
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    with pytest.raises(TokenExpiredError):
        read_token(text, settings())
    assert verified == [text] * 2


@pytest.mark.parametrize("seconds", [KEPT_SECONDS, -KEPT_SECONDS])
def test_it_is_verified_again_after_a_while_and_when_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch, verified: list[str], seconds: float
) -> None:
    text, now = token(), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    read_token(text, settings())
    monkeypatch.setattr(time, "time", lambda: now + seconds / 2 if seconds > 0 else now)
    read_token(text, settings())
    assert verified == [text]
    monkeypatch.setattr(time, "time", lambda: now + seconds * 1.01)
    read_token(text, settings())
    assert verified == [text] * 2


def test_what_was_refused_is_not_kept(verified: list[str]) -> None:
    text = token(exp=1)
    for _ in range(2):
        with pytest.raises(TokenExpiredError):
            read_token(text, settings())
    assert verified == [text] * 2
    assert not guards._verified


def test_no_more_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MOST_KEPT", 5)
    for number in range(12):
        read_token(token(userId=str(number)), settings())
        assert len(guards._verified) <= 5


def test_no_token_is_kept_itself() -> None:
    text = token()
    read_token(text, settings())
    [key] = guards._verified
    assert len(key) == 32
    assert text not in repr(guards._verified)
