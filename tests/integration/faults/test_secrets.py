"""Nothing that opens a door is written down anywhere but sealed: logs, Redis, answers, tables."""

import redis

from tests.integration.hub import APP, KEY, PROVIDERS, Hub

CANARY = f"{KEY}_canary0123456789"


def test_no_secret_is_written_down(hub: Hub) -> None:
    assert not hub.connect("stripe", f"{CANARY}!").is_success
    assert not hub.connect("stripe", "sk_live_wrong_canary").is_success
    assert hub.connect("stripe", CANARY).is_success
    assert hub.connect("square").is_success
    for provider in PROVIDERS:
        faults = ("status:500", "disconnect", "html", "truncated", "status:429")
        hub.break_provider(
            provider, *({"match": "*", "fault": fault, "times": 2, "rate": 0.2} for fault in faults)
        )
    hub.sync_all()
    hub.control("square", "POST", "clock", {"advance": 31 * 86_400})
    hub.sync_all()  # with a refresh in it
    hub.control("stripe", "POST", "tokens/revoke", {"key": CANARY})
    hub.control("square", "POST", "tokens/revoke", {"account": "MDEMO"})
    for provider in PROVIDERS:
        assert hub.sync(provider)["status"] == "failed"
    with redis.Redis.from_url(hub.redis_url) as client:
        kept = [key + b" " + (client.dump(key) or b"") for key in client.scan_iter()]

    credentials = hub.sandbox.square.credentials
    tokens = {*credentials.access, *credentials.refresh}
    assert len(tokens) >= 3  # two access tokens and a refresh token at least
    words = [CANARY, "sk_live_wrong_canary", APP[1], *tokens]
    words += [hub.environment["JWT_SECRET"], hub.environment["ENCRYPTION_KEY"]]
    logs = "".join(path.read_text(errors="replace") for path in hub.logs.iterdir())
    assert "operation.ended" in logs
    assert "request.answered" in logs
    assert '"error":"CONNECTION_TEST_FAILED"' in logs  # what isn't secret can be read
    places = {
        "the logs": logs,
        "Redis": b"\n".join(kept).decode("latin-1"),
        "answers": "\n".join(hub.answers),
        "the database": _all_rows(hub),
    }
    assert str(hub.database.one("SELECT encrypted_access_token FROM oauth_tokens")) in places["the database"]
    for place, content in places.items():
        assert content or place == "Redis"
        for word in words:
            assert word not in content, f"{word[:6]}… is in {place}"


def _all_rows(hub: Hub) -> str:
    tables = hub.database.rows(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert len(tables) > 10
    return "\n".join(
        str(row[0]) for (table,) in tables for row in hub.database.rows(f"SELECT t::text FROM {table} t")
    )
