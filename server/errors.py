"""What the service itself refuses, and the HTTP status of every error code.

The engine's exceptions carry a code too; `http_status` knows them all, so one handler answers for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from engine.errors import HubError

STATUSES: Mapping[str, int] = {
    "VALIDATION_ERROR": 400,
    "VENUE_ID_REQUIRED": 400,
    "PROVIDER_NOT_SUPPORTED": 400,
    "MAPPING_INVALID": 400,
    "WEBHOOK_PROCESSING_FAILED": 400,
    "AUTH_REQUIRED": 401,
    "INVALID_TOKEN": 401,
    "TOKEN_EXPIRED": 401,
    "OAUTH_STATE_INVALID": 401,
    "CONNECTION_TEST_FAILED": 401,
    "WEBHOOK_SIGNATURE_INVALID": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "INVALID_PROVIDER": 404,
    "INTEGRATION_NOT_FOUND": 404,
    "TEMPLATE_NOT_FOUND": 404,
    "INTEGRATION_NOT_CONNECTED": 409,
    "CREDENTIALS_NOT_FOUND": 409,
    "SYNC_IN_PROGRESS": 409,
    "IDEMPOTENCY_KEY_IN_USE": 409,
    "CONFLICT": 409,
    "REQUIRED_FIELD_MISSING": 422,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "RATE_LIMIT_EXCEEDED": 429,
    "INTERNAL_ERROR": 500,
    "VAULT_ERROR": 500,
    "SYNC_FAILED": 502,
    "UNEXPECTED_RESPONSE": 502,
    "OAUTH_EXCHANGE_FAILED": 502,
    "TOKEN_REFRESH_FAILED": 502,
    "QUEUE_FULL": 503,
    "STORE_UNAVAILABLE": 503,
}


def http_status(error: HubError) -> int:
    """Return the status an error is answered with; 500 for a code nobody listed."""
    return STATUSES.get(error.code, 500)


@dataclass(frozen=True, slots=True)
class Detail:
    """One thing wrong with a request: which field, and a sentence."""

    field: str
    message: str


class ServerError(HubError):
    """The service refuses. `details` go into the answer; like the message, they hold no secret.

    `foreign_venue` is one that isn't the caller's: the audit log is told of it, the caller never.
    """

    def __init__(
        self, message: str, details: Sequence[Detail] = (), *, foreign_venue: UUID | None = None
    ) -> None:
        super().__init__(message)
        self.details = tuple(details)
        self.foreign_venue = foreign_venue


class InvalidRequestError(ServerError):
    """The request can't be read, or its values don't fit."""

    code = "VALIDATION_ERROR"


class VenueRequiredError(InvalidRequestError):
    code = "VENUE_ID_REQUIRED"


class NotSupportedError(ServerError):
    """The provider exists but can't do this."""

    code = "PROVIDER_NOT_SUPPORTED"


class UnauthorizedError(ServerError):
    """There is no token."""

    code = "AUTH_REQUIRED"


class InvalidTokenError(UnauthorizedError):
    code = "INVALID_TOKEN"


class TokenExpiredError(UnauthorizedError):
    code = "TOKEN_EXPIRED"


class StateInvalidError(ServerError):
    """An OAuth callback's state is unknown, used or too old."""

    code = "OAUTH_STATE_INVALID"


class ForbiddenError(ServerError):
    """The caller's role or venue doesn't allow it."""

    code = "FORBIDDEN"


class NotFoundError(ServerError):
    code = "NOT_FOUND"


class UnknownProviderError(NotFoundError):
    code = "INVALID_PROVIDER"


class IntegrationNotFoundError(NotFoundError):
    code = "INTEGRATION_NOT_FOUND"


class TemplateNotFoundError(NotFoundError):
    code = "TEMPLATE_NOT_FOUND"


class NotConnectedError(ServerError):
    """The integration exists but is disconnected, suspended or in error."""

    code = "INTEGRATION_NOT_CONNECTED"


class CredentialsNotFoundError(ServerError):
    code = "CREDENTIALS_NOT_FOUND"


class SyncInProgressError(ServerError):
    code = "SYNC_IN_PROGRESS"
    retryable = True


class BeingErasedError(ServerError):
    """Nothing new is taken for a venue while what is stored for it is being erased."""

    code = "CONFLICT"
    retryable = True


class NotReadyError(ServerError):
    """What is asked for is still being made."""

    code = "CONFLICT"
    retryable = True


class KeyInUseError(ServerError):
    """The first request with this `Idempotency-Key` isn't answered yet."""

    code = "IDEMPOTENCY_KEY_IN_USE"
    retryable = True


class KeyReusedError(ServerError):
    """An `Idempotency-Key` that belongs to a request with another body."""

    code = "IDEMPOTENCY_KEY_REUSED"


class ConflictError(ServerError):
    """What is there doesn't let this be done."""

    code = "CONFLICT"


class StaleError(ServerError):
    """The caller's `If-Match` isn't what is there any more: somebody else changed it."""

    code = "CONFLICT"


class MappingInvalidError(ServerError):
    """Mappings name what isn't there, or pair what doesn't go together."""

    code = "MAPPING_INVALID"


class RequiredFieldMissingError(ServerError):
    """Mappings lack what one of the sides can't do without."""

    code = "REQUIRED_FIELD_MISSING"


class TooManyRequestsError(ServerError):
    """A caller asks more often than it may; `retry_after` is the seconds after which it may again."""

    code = "RATE_LIMIT_EXCEEDED"
    retryable = True

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(f"too many requests: try again in {retry_after} seconds")
        self.retry_after = retry_after


class QueueFullError(ServerError):
    code = "QUEUE_FULL"
    retryable = True


class StoreUnavailableError(ServerError):
    """PostgreSQL or Redis can't be reached."""

    code = "STORE_UNAVAILABLE"
    retryable = True


class HostError(ServerError):
    """The platform's database isn't as its manifest says."""

    code = "STORE_UNAVAILABLE"


class VaultError(ServerError):
    """A secret can't be opened: altered, moved to another row, or sealed under a key we don't have."""

    code = "VAULT_ERROR"


class KeysUnavailableError(VaultError):
    """The service that keeps the vault's keys doesn't answer: nothing is wrong with the value."""

    code = "STORE_UNAVAILABLE"
    retryable = True
