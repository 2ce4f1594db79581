"""When a token is due, and which refusals end a grant."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.auth import ends_grant
from engine.errors import AuthenticationError, ProviderError, RateLimitedError, UnavailableError
from engine.manifest import OAuth
from server.credentials import due_at
from server.db.models import OAuthToken

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
OAUTH = OAuth(authorize_url="/authorize", token_url="/token")  # five minutes before its end


def token(venue: UUID | None = None, **values: Any) -> OAuthToken:
    usual = {
        "venue_id": venue or uuid4(),
        "integration_type": "juniper",
        "expires_at": NOW,
        "encrypted_refresh_token": "sealed",
    }
    return OAuthToken(**{**usual, **values})


def early(oauth: OAuth, row: OAuthToken) -> timedelta:
    due = due_at(oauth, row)
    assert due is not None
    return NOW - due


def test_five_minutes_and_up_to_one_more() -> None:
    found = [early(OAUTH, token()) for _ in range(200)]
    assert min(found) >= timedelta(minutes=5)
    assert max(found) < timedelta(minutes=6)
    assert max(found) - min(found) > timedelta(seconds=40)  # they are spread over the minute


def test_every_process_says_the_same() -> None:
    # By hand: the CRC-32 of the venue and the provider, as a share of a minute.
    row = token(UUID("11111111-1111-4111-8111-111111111111"))
    share = timedelta(minutes=1) * 0x6507CD31 / 2**32
    assert abs(early(OAUTH, row) - timedelta(minutes=5) - share) < timedelta(milliseconds=1)


def test_a_manifest_that_is_never_early_has_no_jitter() -> None:
    at_the_end = OAuth(authorize_url="/a", token_url="/t", refresh_before_expiry=timedelta(0))
    assert early(at_the_end, token()) == timedelta(0)


@pytest.mark.parametrize("missing", ["expires_at", "encrypted_refresh_token"])
def test_what_does_not_end_or_can_not_be_renewed_is_never_due(missing: str) -> None:
    never: dict[str, Any] = {missing: None}
    assert due_at(OAUTH, token(**never)) is None


def test_a_short_life_is_lived_to_its_half_before_it_is_renewed_again() -> None:
    two_minutes: dict[str, Any] = {"expires_in": 120, "expires_at": NOW + timedelta(minutes=2)}
    assert due_at(OAUTH, token(last_refreshed_at=NOW, **two_minutes)) == NOW + timedelta(minutes=1)
    first = due_at(
        OAUTH, token(**two_minutes)
    )  # as it was granted: renewed at once, in case the next is longer
    assert first is not None
    assert first < NOW
    hour = due_at(OAUTH, token(expires_in=3600, expires_at=NOW + timedelta(hours=1), last_refreshed_at=NOW))
    assert hour is not None
    assert timedelta(minutes=54) < hour - NOW <= timedelta(minutes=55)


def refusal(status: int | None, code: str | None) -> AuthenticationError:
    return AuthenticationError("refused", status=status, provider_code=code)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (refusal(400, "invalid_grant"), True),
        (refusal(401, "invalid_grant"), True),
        (refusal(200, "invalid_grant"), True),
        (refusal(400, "BAD_REFRESH_TOKEN"), True),
        (refusal(401, "UNAUTHORIZED"), False),
        (refusal(403, "FORBIDDEN"), False),
        (refusal(400, None), False),
        (refusal(403, None), False),
        (refusal(401, "invalid_client"), False),
        (refusal(400, "invalid_request"), False),
        (refusal(400, "temporarily_unavailable"), False),
        (UnavailableError("down", status=503), False),
        (RateLimitedError("slowly", status=429), False),
    ],
)
def test_only_a_named_refusal_ends_a_grant(error: ProviderError, ends: bool) -> None:
    assert ends_grant(error) is ends


def test_where_the_access_token_is_refused_as_well_a_name_of_the_providers_own_will_do() -> None:
    assert ends_grant(refusal(401, "UNAUTHORIZED"), refused=True)
    assert not ends_grant(refusal(401, "invalid_client"), refused=True)
    assert not ends_grant(refusal(401, None), refused=True)
