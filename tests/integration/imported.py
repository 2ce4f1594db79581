"""What processes of the hub import, at once: whatever is forked from here needn't."""

import server.app
import server.cli
import server.context
import server.db.migrate
import server.serving
import server.settings
import server.worker.context
import server.worker.main

__all__ = ("server",)
