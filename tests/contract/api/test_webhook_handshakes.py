"""Providers that name their secret themselves, publish their keys, or want an address called first."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engine.manifest import Subscription, Webhooks
from engine.published_keys import PublishedKeys
from server.services import endpoints
from tests.contract.api.conftest import API, OURS, Hub, bearer
from tests.contract.signatures import test_providers as providers

PUBLIC = "http://127.0.0.1:3007"  # API_URL of these tests
EVENT = {"events": [{"action": "changed"}]}


@pytest.fixture
def speak(hub: Hub) -> Iterator[Callable[[str], None]]:
    """Let the connector that is connected here send webhooks as another provider does."""
    catalog, connectors = hub.context.catalog, hub.context.catalog.connectors

    def as_if(name: str, **more: Any) -> None:
        webhooks: Webhooks = replace(providers.webhooks_of(name), **more)
        made = {**connectors, "stripe": replace(connectors["stripe"], webhooks=webhooks)}
        object.__setattr__(catalog, "connectors", made)
        hub.app.state.addresses = endpoints.Addresses()

    yield as_if
    object.__setattr__(catalog, "connectors", connectors)


@pytest.fixture
def web(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> dict[str, httpx.Response]:
    """What the rest of the world answers, by address; calls are remembered under `calls`."""
    answers: dict[str, httpx.Response] = {}
    calls: list[str] = []

    known = hub.context.http._transport

    async def handle(request: httpx.Request) -> httpx.Response:
        if not str(request.url.host).endswith((".amazonaws.com", ".googleapis.com")):
            return await known.handle_async_request(request)
        calls.append(str(request.url))
        return answers.get(str(request.url), httpx.Response(404))

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(hub.context.http, "_transport", transport)
    hub.app.state.published_keys = PublishedKeys(httpx.AsyncClient(transport=transport))
    hub.app.state.calls = calls
    return answers


async def path_of(hub: Hub) -> str:
    await hub.connect_by_key()
    answer = await hub.get(f"{API}/stripe/webhook", params={"venueId": str(OURS)})
    return str(answer.json()["data"]["url"]).removeprefix(PUBLIC)


async def handshake(hub: Hub, path: str, secret: str) -> httpx.Response:
    return await hub.http.post(path, headers={"x-hook-secret": secret})


async def delivered(hub: Hub, path: str, secret: str, event: Mapping[str, Any] = EVENT) -> int:
    body = json.dumps(event).encode()
    signed = {"x-hook-signature": providers.mac(body, key=secret).hex()}
    return (await hub.http.post(path, content=body, headers=signed)).status_code


async def test_a_secret_that_the_provider_names_is_kept_and_said_again(
    hub: Hub, speak: Callable[[str], None]
) -> None:
    speak("asana")
    path = await path_of(hub)
    assert await delivered(hub, path, "named-by-it") == 401
    answer = await handshake(hub, path, "named-by-it")
    assert (answer.status_code, answer.headers["x-hook-secret"], answer.content) == (200, "named-by-it", b"")
    assert await delivered(hub, path, "named-by-it") == 200
    [row] = await hub.rows("SELECT * FROM webhook_endpoints")
    assert "named-by-it" not in str(row)
    audited = await hub.rows("SELECT * FROM audit_log WHERE action = 'webhook.secret_set'")
    assert [entry["venue_id"] for entry in audited] == [OURS]


async def test_who_learns_of_an_address_names_no_secret_of_their_own(
    hub: Hub, speak: Callable[[str], None]
) -> None:
    speak("asana")
    path = await path_of(hub)
    await handshake(hub, path, "named-by-it")
    await hub.execute("UPDATE webhook_endpoints SET next_check_at = NULL")
    refused = await handshake(hub, path, "named-by-another")
    assert (refused.status_code, "x-hook-secret" in refused.headers) == (401, False)
    assert await delivered(hub, path, "named-by-another") == 401
    assert (await handshake(hub, path, "named-by-it")).status_code == 200  # it may ask twice
    assert (await handshake(hub, f"{API}/webhooks/stripe/{'x' * 43}", "named-by-another")).status_code == 401


async def test_a_provider_names_its_secret_while_it_is_asked_for_a_subscription(
    hub: Hub, speak: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls the address before it answers: asking and being called mustn't wait for each other."""
    stripe = hub.context.catalog.connector("stripe").webhooks
    assert stripe is not None
    assert isinstance(stripe.subscription, Subscription)
    speak("asana", subscription=replace(stripe.subscription, secret=None, check=None))
    path = await path_of(hub)
    await handshake(hub, path, "the-one-before")
    said: list[int] = []

    class Calling:
        async def make(self, call: Any, scope: Mapping[str, Any]) -> Any:
            assert str(scope["url"]).endswith(path)
            said.append((await handshake(hub, path, "named-by-it")).status_code)
            return {"id": "we_1"}

    monkeypatch.setattr(endpoints, "client_of", lambda *_, **__: Calling())
    settings = replace(hub.context.settings, api_url="https://hub.example.org")
    assert await endpoints.tend(replace(hub.context, settings=settings)) == 1
    assert said == [200]
    [row] = await hub.rows("SELECT * FROM webhook_endpoints")
    assert row["subscription_id"] == "we_1"
    for secret in ("named-by-it", "the-one-before"):
        assert await delivered(hub, path, secret, {"events": [{"action": secret}]}) == 200


async def test_a_connection_that_ends_while_its_provider_is_asked(
    hub: Hub, speak: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await path_of(hub)

    class Ending:
        async def make(self, call: Any, scope: Mapping[str, Any]) -> Any:
            await hub.execute("DELETE FROM webhook_endpoints")
            return {"id": "we_1", "secret": "whsec_1"}

    monkeypatch.setattr(endpoints, "client_of", lambda *_, **__: Ending())
    settings = replace(hub.context.settings, api_url="https://hub.example.org")
    assert await endpoints.tend(replace(hub.context, settings=settings)) == 0
    assert await hub.rows("SELECT 1 FROM webhook_endpoints") == []


JWKS = "https://www.googleapis.com/oauth2/v3/certs"


async def push(hub: Hub, path: str, *, kid: str = "k1", number: str = "1") -> httpx.Response:
    email = "push@juniper.iam.gserviceaccount.com"
    claims = {"aud": f"{PUBLIC}{path}", "email": email, "email_verified": True, "exp": 4102444800}
    signed = {"authorization": f"Bearer {providers.token(claims, 'RS256', kid=kid)}"}
    return await hub.http.post(path, json={"message": {"messageId": number}}, headers=signed)


async def test_published_keys_are_fetched_and_kept(
    hub: Hub, speak: Callable[[str], None], web: dict[str, httpx.Response]
) -> None:
    speak("google_pubsub")
    path = await path_of(hub)
    away = await push(hub, path)
    assert (away.status_code, away.json()["code"]) == (503, "STORE_UNAVAILABLE")  # so it is sent again
    web[JWKS] = httpx.Response(200, content=providers.web_keys())
    hub.app.state.published_keys = PublishedKeys(hub.app.state.published_keys.http)
    for number in "123":
        assert (await push(hub, path, number=number)).status_code == 200
    assert hub.app.state.calls == [JWKS, JWKS]
    assert len(await hub.rows("SELECT 1 FROM integration_webhooks")) == 3
    [headers] = {str(row["headers"]) for row in await hub.rows("SELECT headers FROM webhook_deliveries")}
    assert "authorization" not in headers


@pytest.mark.parametrize("path", [f"{API}/webhooks/stripe/{'x' * 43}", f"{API}/webhooks/stripe"])
async def test_published_keys_make_no_address_anybodys(
    hub: Hub, speak: Callable[[str], None], web: dict[str, httpx.Response], path: str
) -> None:
    """A provider signs for all its customers; whose a delivery is says its address, and these are none."""
    speak("google_pubsub")
    await path_of(hub)
    web[JWKS] = httpx.Response(200, content=providers.web_keys())
    assert (await push(hub, path)).status_code == 401
    assert hub.app.state.calls == []


async def test_what_a_stranger_sends_is_no_page(hub: Hub, speak: Callable[[str], None]) -> None:
    speak("meta")
    path = await path_of(hub)
    answer = await hub.http.get(path, params={"hub.challenge": "<a xmlns='http://www.w3.org/1999/xhtml'/>"})
    assert answer.text == "<a xmlns='http://www.w3.org/1999/xhtml'/>"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_provider_that_wants_xml_for_an_answer(hub: Hub, speak: Callable[[str], None]) -> None:
    speak("salesforce")
    path = await path_of(hub)
    signed = providers.salesforce()
    answer = await hub.http.post(path, content=signed.body, headers={"content-type": "text/xml"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/xml; charset=utf-8")
    assert "<Ack>true</Ack>" in answer.text
    assert len(await hub.rows("SELECT 1 FROM integration_webhooks")) == 1


async def test_a_key_that_is_not_there_is_looked_for_again(
    hub: Hub, speak: Callable[[str], None], web: dict[str, httpx.Response]
) -> None:
    now = 1000.0
    speak("google_pubsub")
    path = await path_of(hub)
    web[JWKS] = httpx.Response(200, content=providers.web_keys(kid="k1"))
    hub.app.state.published_keys = PublishedKeys(hub.app.state.published_keys.http, monotonic=lambda: now)
    assert (await push(hub, path)).status_code == 200
    web[JWKS] = httpx.Response(200, content=providers.web_keys(kid="k2"))
    now += 59
    assert (await push(hub, path, kid="k2")).status_code == 401
    now += 1
    assert (await push(hub, path, kid="k2")).status_code == 200
    assert (await push(hub, path, kid="k3")).status_code == 401
    assert hub.app.state.calls == [JWKS, JWKS]


async def test_an_address_is_called_before_its_provider_is_answered(
    hub: Hub, speak: Callable[[str], None], web: dict[str, httpx.Response]
) -> None:
    speak("aws_sns")
    path = await path_of(hub)
    subscribe = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=2336"
    said = {
        "Type": "SubscriptionConfirmation",
        "MessageId": "m1",
        "TopicArn": "arn:t",
        "Message": "You chose",
    }
    said |= {"Timestamp": "2026-03-01T12:00:00.000Z", "Token": "2336", "SubscribeURL": subscribe}
    names = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
    signed = providers.sns(said, names)
    assert signed.at is not None
    web[signed.at] = httpx.Response(200, content=signed.keys)
    assert (await hub.http.post(path, content=signed.body)).status_code == 503
    web[subscribe] = httpx.Response(200)
    assert (await hub.http.post(path, content=signed.body)).status_code == 200
    assert hub.app.state.calls == [signed.at, subscribe, subscribe]
    forged = signed.body.replace(b"You chose", b"You lose!")
    assert (await hub.http.post(path, content=forged)).status_code == 401
    assert hub.app.state.calls.count(subscribe) == 2
    assert await hub.rows("SELECT 1 FROM integration_webhooks") == []


async def test_a_provider_that_looks_for_a_text_of_its_own(hub: Hub, speak: Callable[[str], None]) -> None:
    speak("adyen")
    path = await path_of(hub)
    signed = providers.adyen()
    body = {"venueId": str(OURS), "secret": signed.secret}
    assert (await hub.http.put(f"{API}/stripe/webhook", json=body, headers=bearer())).status_code == 200
    hub.app.state.addresses = endpoints.Addresses()
    answer = await hub.http.post(path, content=signed.body)
    assert (answer.status_code, answer.text) == (200, "[accepted]")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(await hub.rows("SELECT 1 FROM integration_webhooks")) == 1
