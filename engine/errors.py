"""The exception tree of the engine.

An exception stops a run; what happens to one record is an `Outcome`, never an exception.
`code` is the API's error code. No message may hold a secret or a record's content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from engine.diagnostics import Diagnostic


class HubError(Exception):
    """Anything the hub refuses or fails at.

    `code` is machine-readable and stable; `retryable` says whether trying later can help.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DocumentError(HubError):
    """A file an author wrote can't be used; `diagnostics` says all that is wrong, in file order."""

    code = "VALIDATION_ERROR"

    def __init__(self, message: str, diagnostics: Sequence[Diagnostic] = ()) -> None:
        super().__init__(message)
        self.diagnostics = tuple(diagnostics)


class ManifestError(DocumentError):
    """A connector or platform manifest is wrong."""


class TemplateError(DocumentError):
    """A mapping template is wrong."""

    code = "MAPPING_INVALID"


class ExpressionError(HubError):
    """A path, JMESPath or Jinja text doesn't compile, or fails on a value.

    `position` is the 0-based offset in the text where the fault was noticed, when known.
    """

    code = "MAPPING_INVALID"

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class MappingError(HubError):
    """A record can't be mapped: a required field has no value, or an expression fails on it.

    Names the field; never shows the value.
    """

    code = "REQUIRED_FIELD_MISSING"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ProviderError(HubError):
    """The provider answered with a failure, or not at all.

    `status` is the HTTP status (None when there was no answer), `provider_code` the provider's own
    code, `request_id` what its support will ask for, `field` the field it complains of.
    """

    code = "SYNC_FAILED"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        provider_code: str | None = None,
        request_id: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.provider_code = provider_code
        self.request_id = request_id
        self.field = field


class AuthenticationError(ProviderError):
    """The credentials are refused and a refresh didn't help: the venue has to reconnect."""

    code = "CONNECTION_TEST_FAILED"


class RateLimitedError(ProviderError):
    """Still throttled after every retry. `retry_after` is in seconds, when the provider said so."""

    code = "RATE_LIMIT_EXCEEDED"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class UnavailableError(ProviderError):
    """The provider is down, unreachable or answers 5xx after every retry."""

    retryable = True


class SilentProviderError(ProviderError):
    """Several calls in a row got no answer at all: no record is to blame for that, so the run ends."""

    retryable = True


class UnexpectedResponseError(ProviderError):
    """The answer isn't what the manifest says: not JSON, cut off, a cursor that doesn't move."""

    code = "UNEXPECTED_RESPONSE"
    retryable = True


class NothingFoundError(UnexpectedResponseError):
    """The account holds nothing of what the connector looks up in it; somebody has to make it there."""

    code = "REQUIRED_FIELD_MISSING"
    retryable = False


class StaleCursorError(ProviderError):
    """A cursor is no longer good: the read starts again from the watermark."""

    retryable = True


class RecordRejectedError(ProviderError):
    """The provider refuses this one record. Caught by the engine; becomes an outcome."""


class ForbiddenAddressError(HubError):
    """A request would leave for an address the hub may not reach (private, loopback, not HTTPS)."""

    code = "VALIDATION_ERROR"


class WebhookError(HubError):
    """A delivery is refused."""

    code = "WEBHOOK_PROCESSING_FAILED"


class SignatureError(WebhookError):
    """The delivery isn't signed, or not by the provider, or too long ago; `reason` says in a word."""

    code = "WEBHOOK_SIGNATURE_INVALID"

    def __init__(self, message: str, reason: str = "signature_mismatch") -> None:
        super().__init__(message)
        self.reason = reason


class MalformedDeliveryError(WebhookError):
    """The delivery is signed but can't be read."""


class LeaseLostError(HubError):
    """Another worker has taken this operation over; nothing of this attempt may be saved any more."""

    retryable = True


class StoppedError(HubError):
    """Somebody asked the run to stop; what was committed so far stays."""
