"""What the service tells about itself: structured logs, metrics and traces."""

from server.telemetry.logs import configure_logging, redact

__all__ = ["configure_logging", "redact"]
