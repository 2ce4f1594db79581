"""The server keeps the engine running: API, worker, scheduler, and what they store."""
