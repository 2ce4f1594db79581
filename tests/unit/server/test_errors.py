"""Every error has a code, and every code a status."""

import engine.errors
import server.errors
from engine.errors import HubError
from server.errors import STATUSES, Detail, InvalidRequestError, SyncInProgressError, http_status

# The codes of the service's documentation, as it groups them.
DOCUMENTED = {
    *("AUTH_REQUIRED", "INVALID_TOKEN", "TOKEN_EXPIRED", "FORBIDDEN"),
    *("VALIDATION_ERROR", "VENUE_ID_REQUIRED", "INVALID_PROVIDER", "PROVIDER_NOT_SUPPORTED"),
    *("INTEGRATION_NOT_FOUND", "INTEGRATION_NOT_CONNECTED", "CONNECTION_TEST_FAILED"),
    *("CREDENTIALS_NOT_FOUND", "SYNC_IN_PROGRESS", "SYNC_FAILED", "QUEUE_FULL"),
    *("WEBHOOK_SIGNATURE_INVALID", "WEBHOOK_PROCESSING_FAILED"),
    *("MAPPING_INVALID", "REQUIRED_FIELD_MISSING", "TEMPLATE_NOT_FOUND"),
    *("OAUTH_STATE_INVALID", "OAUTH_EXCHANGE_FAILED", "TOKEN_REFRESH_FAILED"),
    "RATE_LIMIT_EXCEEDED",
}


def every_error() -> list[type[HubError]]:
    found, waiting = [], [HubError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__ in (engine.errors.__name__, server.errors.__name__)]


def test_every_documented_code_has_a_status() -> None:
    assert set(STATUSES) >= DOCUMENTED


def test_every_error_has_a_code_with_a_status() -> None:
    assert {kind.code for kind in every_error()} <= set(STATUSES)


def test_an_error_carries_what_the_answer_needs() -> None:
    error = InvalidRequestError("That can't be read.", [Detail("venueId", "isn't a UUID")])
    assert (error.code, http_status(error), error.retryable) == ("VALIDATION_ERROR", 400, False)
    assert error.details == (Detail("venueId", "isn't a UUID"),)
    assert (http_status(SyncInProgressError("Wait.")), SyncInProgressError.retryable) == (409, True)


def test_a_code_nobody_listed_is_a_fault_of_ours() -> None:
    class OddError(HubError):
        code = "ODD"

    assert http_status(OddError("?")) == 500
