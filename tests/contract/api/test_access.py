"""Who may call what: every route, every role, our venue and another's; and which tokens are believed."""

import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Litestar
from litestar.routes import HTTPRoute

from server.api.guards import Caller, read_token
from server.app import create_app
from server.errors import ForbiddenError, InvalidTokenError, TokenExpiredError
from server.settings import Settings, read_settings
from tests.contract.api.conftest import (
    API,
    NOWHERE,
    OTHERS,
    OURS,
    SECRET,
    USER_ID,
    VAULT_KEYS,
    Hub,
    bearer,
    token,
)

READ = ("admin", "venue_admin", "user")
MANAGE = ("admin", "venue_admin")
ADMIN = ("admin",)
ALL = ("anonymous", "user", "venue_admin", "admin", "superuser")
SUBSCRIBERS = f"{API}/subscribers"
SUBSCRIBER = f"{SUBSCRIBERS}/{{subscriber_id:uuid}}"
# Method, path, where the venue goes (`nowhere`: it isn't named), roles that may, and what a caller who may is
# answered, where nothing is connected. What becomes of each cell is in test_matrix.
ROUTES: tuple[tuple[str, str, str, tuple[str, ...], int], ...] = (
    ("GET", API, "query", READ, 200),
    ("GET", f"{API}/stripe", "query", READ, 404),
    ("POST", f"{API}/connect/stripe", "body", MANAGE, 400),
    ("POST", f"{API}/stripe/disconnect", "body", MANAGE, 404),
    ("POST", f"{API}/stripe/reconnect", "body", MANAGE, 404),
    ("POST", f"{API}/stripe/api-key", "body", MANAGE, 400),
    ("POST", f"{API}/oauth/refresh/stripe", "body", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync", "body", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync/stop", "body", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync/retry", "body", MANAGE, 404),
    ("GET", f"{API}/sync/stripe/sync/dead-letters", "query", READ, 200),
    ("POST", f"{API}/sync/stripe/sync/dead-letters/retry", "body", MANAGE, 200),
    ("GET", f"{API}/health/stripe/metrics", "query", READ, 404),
    ("GET", f"{API}/health/stripe/changes", "query", READ, 404),
    ("POST", f"{API}/health/stripe/test", "body", MANAGE, 404),
    ("GET", f"{API}/sync/stripe/sync/status", "query", READ, 404),
    ("GET", f"{API}/sync/stripe/sync/history", "query", READ, 404),
    ("GET", f"{API}/sync/stripe/sync/failures", "query", READ, 404),
    ("POST", f"{API}/sync/stripe/sync/failures/retry", "body", MANAGE, 404),
    ("GET", f"{API}/sync/stripe/sync/conflicts", "query", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync/conflicts/resolve", "body", MANAGE, 404),
    ("GET", f"{API}/sync/stripe/sync/conflicts/{{conflict_id:uuid}}", "query", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync/conflicts/{{conflict_id:uuid}}/resolve", "body", MANAGE, 404),
    ("POST", f"{API}/sync/stripe/sync/plan", "body", MANAGE, 404),
    ("GET", f"{API}/sync/stripe/sync/plan/{{plan_id:uuid}}", "query", READ, 404),
    ("GET", f"{API}/sync/stripe/sync/plan/{{plan_id:uuid}}/rows", "query", READ, 404),
    ("POST", f"{API}/sync/stripe/sync/plan/{{plan_id:uuid}}/apply", "body", MANAGE, 404),
    ("GET", f"{API}/mappings/stripe/mappings", "query", READ, 404),
    ("GET", f"{API}/mappings/stripe/templates", "query", READ, 200),
    ("GET", f"{API}/mappings/stripe/mappings/layers", "query", READ, 404),
    ("POST", f"{API}/mappings/stripe/mappings/apply-template", "body", MANAGE, 404),
    ("POST", f"{API}/mappings/stripe/mappings/reset", "body", MANAGE, 404),
    ("POST", f"{API}/mappings/stripe/mappings/heal", "body", MANAGE, 404),
    ("GET", f"{API}/mappings/stripe/observed", "query", READ, 404),
    ("GET", f"{API}/mappings/stripe/drift", "query", READ, 404),
    ("GET", f"{API}/mappings/stripe/mappings/history", "query", READ, 404),
    ("POST", f"{API}/mappings/stripe/mappings/undo", "body", MANAGE, 404),
    ("GET", f"{API}/webhooks/stripe/events", "query", READ, 200),
    ("POST", f"{API}/webhooks/stripe/replay", "body", MANAGE, 200),
    ("GET", f"{API}/stripe/webhook", "query", MANAGE, 404),
    ("GET", f"{API}/stripe/usage", "query", READ, 404),
    ("GET", SUBSCRIBERS, "query", MANAGE, 200),
    ("POST", SUBSCRIBERS, "body", MANAGE, 400),
    ("GET", SUBSCRIBER, "query", MANAGE, 404),
    ("PATCH", SUBSCRIBER, "body", MANAGE, 404),
    ("DELETE", SUBSCRIBER, "query", MANAGE, 404),
    ("POST", f"{SUBSCRIBER}/rotate-secret", "body", MANAGE, 404),
    ("POST", f"{SUBSCRIBER}/test", "body", MANAGE, 404),
    ("POST", f"{SUBSCRIBER}/redeliver", "body", MANAGE, 404),
    ("GET", f"{SUBSCRIBER}/deliveries", "query", MANAGE, 404),
    ("GET", f"{SUBSCRIBER}/deliveries/{{delivery_id:uuid}}", "query", MANAGE, 404),
    ("POST", f"{SUBSCRIBER}/deliveries/{{delivery_id:uuid}}/redeliver", "body", MANAGE, 404),
    ("GET", f"{API}/admin/all-venues", "nowhere", ADMIN, 200),
    ("GET", f"{API}/admin/health-summary", "nowhere", ADMIN, 200),
    ("GET", f"{API}/admin/integration-metrics", "query", ADMIN, 200),
    ("GET", f"{API}/admin/dead-letters", "query", ADMIN, 200),
    ("POST", f"{API}/admin/dead-letters/retry", "body", ADMIN, 200),
    ("POST", f"{API}/admin/force-sync", "body", ADMIN, 404),
    ("POST", f"{API}/admin/clear-queue", "body", ADMIN, 200),
    ("POST", f"{API}/admin/process-dead-letter", "nowhere", ADMIN, 200),
    ("POST", f"{API}/admin/recover-stale", "nowhere", ADMIN, 200),
    ("GET", f"{API}/admin/queue-metrics", "nowhere", ADMIN, 200),
    ("GET", f"{API}/admin/costs", "query", ADMIN, 200),
    ("GET", f"{API}/admin/audit", "query", ADMIN, 200),
    ("GET", f"{API}/admin/vault", "nowhere", ADMIN, 200),
    ("POST", f"{API}/admin/vault/rotate", "nowhere", ADMIN, 202),
    ("GET", f"{API}/admin/maintenance/{{run_id:uuid}}", "nowhere", ADMIN, 404),
    ("POST", f"{API}/admin/maintenance/{{run_id:uuid}}/stop", "nowhere", ADMIN, 404),
    ("GET", f"{API}/venue/{{venue_id:uuid}}/audit", "path", MANAGE, 200),
    ("POST", f"{API}/venue/{{venue_id:uuid}}/export", "path", MANAGE, 202),
    ("GET", f"{API}/venue/{{venue_id:uuid}}/export/{{run_id:uuid}}", "path", MANAGE, 404),
    ("GET", f"{API}/venue/{{venue_id:uuid}}/export/{{run_id:uuid}}/download", "path", MANAGE, 404),
    ("GET", f"{API}/venue/{{venue_id:uuid}}/erase/{{run_id:uuid}}", "path", MANAGE, 404),
)
PUBLIC = {
    f"{API}/oauth/callback/{{provider:str}}",
    f"{API}/health/{{provider:str}}",
    f"{API}/webhooks/{{provider:str}}",
    f"{API}/webhooks/{{provider:str}}/{{token:str}}",
    "/integrations/success",
    "/integrations/error",
    "/health",
    "/ready",
    "/schema",
    "/schema/openapi.json",
    "/schema/openapi.yaml",
    "/schema/openapi.yml",
    "/schema/{path:str}",
}


async def call(hub: Hub, method: str, path: str, place: str, venue: UUID, headers: Mapping[str, str]) -> Any:
    given: dict[str, Any] = {
        "query": {"params": {"venueId": str(venue)}},
        "body": {"json": {"venueId": str(venue)}},
    }.get(place, {})
    path = path.replace("{venue_id:uuid}", str(venue))
    for name in ("run_id", "subscriber_id", "delivery_id", "conflict_id"):
        path = path.replace(f"{{{name}:uuid}}", str(UUID(int=1)))
    return await hub.http.request(method, path, headers=dict(headers), **given)


@pytest.mark.parametrize(("length", "status"), [(255, 200), (256, 401)])
async def test_a_caller_whose_id_is_longer_than_any_log_keeps(hub: Hub, length: int, status: int) -> None:
    headers = bearer(userId=None, sub="u" * length)
    body = {"venueId": str(OURS), "credentials": {"apiKey": "sk_test_demo"}, "config": {"syncEnabled": False}}
    answer = await hub.post(f"{API}/connect/stripe", body, headers=headers)
    assert answer.status_code == status, answer.text


async def test_metrics_are_an_administrators(hub: Hub) -> None:
    for role in ("venue_admin", "user"):
        assert (await hub.http.get("/metrics", headers=bearer(role))).status_code == 403
    assert (await hub.http.get("/metrics")).status_code == 401
    assert (await hub.http.get("/metrics", headers=bearer("admin", None))).status_code == 200


async def test_a_caller_of_several_venues(hub: Hub) -> None:
    headers = bearer("user", None, venueIds=[str(OURS), str(OTHERS)])
    for venue, status in ((OURS, 200), (OTHERS, 200), (NOWHERE, 403)):
        answer = await call(hub, "GET", API, "query", venue, headers)
        assert answer.status_code == status


def _handlers(app: Litestar) -> Iterator[tuple[str, Any]]:
    for route in app.routes:
        assert isinstance(route, HTTPRoute)
        for handler in route.route_handlers:
            if handler.http_methods != {"OPTIONS"}:
                yield route.path, handler


def test_every_route_is_public_by_name_or_names_its_roles(settings: Settings) -> None:
    open_routes = set()
    for path, handler in _handlers(create_app(settings)):
        if handler.opt.get("public"):
            open_routes.add(path)
        else:
            assert handler.opt.get("roles"), path
    assert open_routes == PUBLIC


def test_every_route_with_roles_is_in_these_tests(settings: Settings) -> None:
    from tests.contract.api.test_matrix import TABLE  # which is made of ROUTES

    tested = {
        (method, path.replace("stripe", "{provider:str}"))
        for method, path, _, roles, _ in TABLE
        if roles != ALL
    }
    found = {
        (method, path)
        for path, handler in _handlers(create_app(settings))
        if not handler.opt.get("public")
        for method in handler.http_methods
    }
    assert found == tested


async def test_a_route_that_says_nothing_answers_nobody(settings: Settings) -> None:
    from litestar import get
    from litestar.testing import TestClient

    from server.api.errors import answer_error
    from server.api.guards import Authentication

    @get("/forgotten")
    async def forgotten() -> str:
        return "here"

    app = Litestar(
        [forgotten],
        middleware=[Authentication(settings)],
        exception_handlers={Exception: answer_error},
    )
    client = TestClient(app)
    assert client.get("/forgotten").status_code == 401
    assert client.get("/forgotten", headers=bearer("admin")).status_code == 403


# --- tokens


def read(text: str, **environment: str) -> Caller:
    settings = read_settings(
        {
            "HUB_ENV": "test",
            "JWT_SECRET": SECRET,
            "HUB_VAULT_KEYS": VAULT_KEYS,
            **environment,
        }
    )
    return read_token(text, settings)


def test_what_a_token_says() -> None:
    caller = read(token(permissions=["sync"]))
    assert caller == Caller(USER_ID, "venue_admin", frozenset({OURS}), frozenset({"sync"}))


@pytest.mark.parametrize(
    ("claims", "identity"),
    [
        ({"userId": "a", "id": "b", "sub": "c"}, "a"),
        ({"userId": None, "id": "b", "sub": "c"}, "b"),
        ({"userId": None, "sub": "c"}, "c"),
    ],
)
def test_the_first_identity_counts(claims: dict[str, Any], identity: str) -> None:
    assert read(token(**claims)).id == identity


def test_no_role_is_user() -> None:
    assert read(token(role=None)).role == "user"  # type: ignore[arg-type]  # left out of the token


@pytest.mark.parametrize(
    "claims",
    [
        {"userId": None},
        {"venueId": "not a uuid"},
        {"venueIds": "11111111"},
        {"venueIds": [1]},
        {"role": 7},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 600},
    ],
)
def test_claims_that_are_not_believed(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError):
        read(token(**claims))


def test_an_old_token() -> None:
    with pytest.raises(TokenExpiredError):
        read(token(exp=int(time.time()) - 1))


def test_a_token_of_another_secret() -> None:
    with pytest.raises(InvalidTokenError):
        read(jwt.encode({"sub": "a", "exp": int(time.time()) + 60}, SECRET + "!", algorithm="HS256"))


def test_the_algorithm_is_not_the_tokens_choice() -> None:
    claims = {"sub": "a", "role": "admin", "exp": int(time.time()) + 60}
    with pytest.raises(InvalidTokenError):
        read(jwt.encode(claims, "", algorithm="none"))
    with pytest.raises(InvalidTokenError):
        read(jwt.encode(claims, SECRET * 2, algorithm="HS512"))


def test_a_public_key_does_not_sign_as_a_secret() -> None:
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    claims = {"sub": "a", "exp": int(time.time()) + 60}
    environment = {"JWT_SECRET": "", "JWT_PUBLIC_KEY": public}
    good = jwt.encode(claims, private, algorithm="RS256")
    assert read(good, **environment).id == "a"
    forged = _hs256(claims, public)
    with pytest.raises(InvalidTokenError):
        read(forged, **environment)


def test_the_audience_counts_when_it_is_set() -> None:
    refused: tuple[dict[str, Any], ...] = ({"aud": "other"}, {})
    assert read(token(aud="hub"), JWT_AUDIENCE="hub").id == USER_ID
    for claims in refused:
        with pytest.raises(InvalidTokenError):
            read(token(**claims), JWT_AUDIENCE="hub")
    assert read(token(aud="anything")).id == USER_ID


def test_require_is_for_ones_own_venue() -> None:
    caller = Caller("a", "user", frozenset({OURS}))
    caller.require(OURS)
    with pytest.raises(ForbiddenError):
        caller.require(OTHERS)
    Caller("a", "admin").require(uuid4())


def _hs256(claims: dict[str, Any], key: str) -> str:
    """Sign with HS256 under a text PyJWT refuses as a secret, the way an attacker would."""
    import base64
    import hashlib
    import hmac
    import json

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = (
        f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(claims).encode())}"
    )
    return f"{signed}.{part(hmac.new(key.encode(), signed.encode(), hashlib.sha256).digest())}"
