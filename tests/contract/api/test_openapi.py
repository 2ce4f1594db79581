"""The API's own description: complete, right of what is answered, shown on a page that fetches nothing."""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from server.api.openapi import operations, resolve
from server.api.reference import markdown, page
from server.app import openapi_document
from server.errors import STATUSES
from tests.contract.api.conftest import API, OURS, Hub

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (part, path, method, operation)
    for part in ("paths", "webhooks")
    for path, method, operation in operations(DOCUMENT, part)
]
every_operation = pytest.mark.parametrize(
    ("part", "path", "method", "operation"), OPERATIONS, ids=[each[3]["operationId"] for each in OPERATIONS]
)
every_schema = pytest.mark.parametrize("name", SCHEMAS)
# Statuses that a body can bring about, and those that any route may answer.
OF_A_BODY = {"408", "413", "414", "415", "431"}
OF_THE_FRAME = {"408", "414", "431"}  # as VALIDATION_ERROR
OF_ALL = {"400", "500", "503"}


def valid(schema: Any, value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def answers(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for status, answer in operation["responses"].items():
        yield status, resolve(DOCUMENT, answer)


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert DOCUMENT["info"]["contact"]["name"]
    assert DOCUMENT["info"]["license"]["identifier"] == "Apache-2.0"
    assert [server["url"] for server in DOCUMENT["servers"]] == ["/"]


def test_operation_ids_differ_and_read_well() -> None:
    ids = [operation["operationId"] for *_, operation in OPERATIONS]
    assert len(ids) == len(set(ids))
    assert [each for each in ids if not re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", each)] == []


def test_every_tag_is_described_and_used() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert {tag for *_, operation in OPERATIONS for tag in operation["tags"]} == described


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to() -> None:
    found = set(references(DOCUMENT))
    for each in found:
        assert resolve(DOCUMENT, {"$ref": each})
    assert {f"#/components/schemas/{name}" for name in SCHEMAS} <= found


@every_operation
def test_every_operation_is_described(part: str, path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    for parameter in operation["parameters"]:
        assert parameter["description"], parameter["name"]
        assert "example" in parameter, parameter["name"]
        valid(parameter["schema"], parameter["example"])
    body = operation.get("requestBody")
    if body:
        [content] = body["content"].values()
        assert content["schema"]["$ref"]
        assert content["examples"]
        for example in content["examples"].values():
            valid(content["schema"], example["value"])


@every_operation
def test_every_answer_is_described(part: str, path: str, method: str, operation: dict[str, Any]) -> None:
    if part == "webhooks":
        return
    statuses = set(operation["responses"])
    assert "X-Request-Id" in {name for _, answer in answers(operation) for name in answer["headers"]}
    assert bool(operation["x-roles"]) == ({"token": []} in operation["security"] and "403" in statuses) or (
        {} in operation["security"]  # with or without a token
    )
    if operation["x-roles"]:
        assert {"401", "403"} <= statuses
    if path.startswith(API):
        assert statuses >= OF_ALL
    if "requestBody" in operation:
        assert statuses >= OF_A_BODY
    if "{" in path:
        assert "404" in statuses
    for status, answer in answers(operation):
        assert answer["description"]
        if status in ("302", "204"):
            continue
        [(media, content)] = answer["content"].items()
        if media != "application/json":
            continue
        assert content["examples"], f"{status} has no example"
        for example in content["examples"].values():
            value = resolve(DOCUMENT, example)["value"]
            valid(content["schema"], value)
            if status >= "400" and path != "/ready":
                assert content["schema"]["$ref"] == "#/components/schemas/ErrorAnswer"
                assert STATUSES.get(value["code"], int(status)) == int(status) or status in OF_THE_FRAME
        expected = {"429": {"Retry-After"}, "503": {"Retry-After"}, "202": {"Location"}}.get(status, set())
        assert expected <= set(answer["headers"])


@every_schema
def test_every_schema_and_every_field_of_it_has_words_and_examples(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema["description"]
    assert schema["examples"]
    for example in schema["examples"]:
        valid(schema, example)
    fields = schema.get("properties", {})
    assert [field for field, each in fields.items() if not each.get("description")] == []


def test_what_is_asked_for_is_closed_and_what_is_answered_is_whole() -> None:
    asked = {
        content["schema"]["$ref"].rpartition("/")[2]
        for part, *_, operation in OPERATIONS
        if part == "paths"
        for content in operation.get("requestBody", {}).get("content", {}).values()
    }
    assert [name for name in asked if SCHEMAS[name]["additionalProperties"] is not False] == []
    integration = SCHEMAS["Integration"]
    assert integration["required"] == list(integration["properties"])


async def test_answers_are_as_described(hub: Hub) -> None:
    """Real answers validate against the schemas the description gives for them."""
    await hub.connect_by_key(config={"syncEnabled": True})
    sync_id = str((await hub.rows("SELECT run_id FROM sync_queue"))[0]["run_id"])
    asks = {"params": {"venueId": str(OURS)}}
    for path, name, options in (
        (API, API, asks),
        (f"{API}/stripe", f"{API}/{{provider}}", asks),
        (f"{API}/sync/stripe/sync/status", f"{API}/sync/{{provider}}/sync/status", asks),
        (f"{API}/sync/stripe/sync/history", f"{API}/sync/{{provider}}/sync/history", asks),
        (f"{API}/sync/stripe/sync/{sync_id}", f"{API}/sync/{{provider}}/sync/{{sync_id}}", {}),
        (f"{API}/mappings/stripe/mappings", f"{API}/mappings/{{provider}}/mappings", asks),
        (f"{API}/health/stripe", f"{API}/health/{{provider}}", asks),
        ("/health", "/health", {}),
        ("/ready", "/ready", {}),
    ):
        answer = await hub.get(path, **options)
        assert answer.status_code == 200, path
        content = DOCUMENT["paths"][name]["get"]["responses"]["200"]["content"]["application/json"]
        valid(content["schema"], answer.json())


# --- errors

# Each code, and a request that is answered with it.
REACHED: Mapping[str, str] = {
    "AUTH_REQUIRED": "test_bad_input.py::test_headers_without_a_token",
    "INVALID_TOKEN": "test_bad_input.py::test_tokens_nobody_issued",
    "TOKEN_EXPIRED": "test_bad_input.py::test_a_token_that_has_expired",
    "FORBIDDEN": "test_audit.py::test_a_role_that_may_not_is_a_refused_attempt",
    "VALIDATION_ERROR": "test_bad_input.py::test_fields_of_another_type",
    "VENUE_ID_REQUIRED": "test_connect.py::test_a_body_without_a_venue",
    "INVALID_PROVIDER": "test_connect.py::test_a_provider_nobody_knows",
    "PROVIDER_NOT_SUPPORTED": "test_oauth.py::test_a_provider_without_an_application_here",
    "INTEGRATION_NOT_FOUND": "test_connect.py::test_get_what_is_not_connected",
    "INTEGRATION_NOT_CONNECTED": "test_syncs.py::test_only_what_is_connected_syncs",
    "CONNECTION_TEST_FAILED": "test_connect.py::test_a_key_the_provider_refuses_stores_nothing",
    "CREDENTIALS_NOT_FOUND": "test_tokens.py::test_where_there_is_nothing_to_renew",
    "SYNC_IN_PROGRESS": "test_syncs.py::test_one_sync_at_a_time",
    "SYNC_FAILED": "test_connect.py::test_a_provider_that_is_down_is_502",
    "WEBHOOK_SIGNATURE_INVALID": "test_webhooks.py::"
    "test_what_is_not_the_providers_is_refused_and_leaves_nothing",
    "WEBHOOK_PROCESSING_FAILED": "test_webhooks.py::test_a_signed_body_that_is_not_json",
    "MAPPING_INVALID": "test_mappings.py::test_a_trial_of_what_is_not_there",
    "REQUIRED_FIELD_MISSING": "test_mappings.py::test_what_is_required_and_is_not_mapped_is_named",
    "TEMPLATE_NOT_FOUND": "test_mappings.py::test_a_template_of_nobody_or_of_another_provider",
    "OAUTH_STATE_INVALID": "test_oauth.py::test_a_state_ends_after_ten_minutes",
    "OAUTH_EXCHANGE_FAILED": "test_oauth.py::test_a_code_the_provider_does_not_know",
    "TOKEN_REFRESH_FAILED": "test_tokens.py::test_a_grant_that_is_over",
    "RATE_LIMIT_EXCEEDED": "test_rate_limits.py::test_one_too_many_is_refused_and_told_when_to_come_back",
    "NOT_FOUND": "test_connect.py::test_a_venue_the_platform_does_not_have",
    "IDEMPOTENCY_KEY_IN_USE": "test_connect.py::test_a_key_in_flight_is_409_and_a_failure_frees_it",
    "IDEMPOTENCY_KEY_REUSED": "test_connect.py::test_the_same_key_and_body_are_worked_once",
    "CONFLICT": "test_mappings.py::test_nobody_overwrites_what_another_changed",
    "QUEUE_FULL": "test_queue_full.py::test_a_sync_and_a_record_wait_for_room",
    "INTERNAL_ERROR": "test_service.py::test_an_unforeseen_fault_says_nothing_of_the_inside",
    "STORE_UNAVAILABLE": "test_service.py::test_a_database_that_is_away_is_503",
    "PAYLOAD_TOO_LARGE": "test_bad_input.py::test_five_megabytes",
    "UNSUPPORTED_MEDIA_TYPE": "test_bad_input.py::test_bodies_of_another_kind",
}
NEVER_TOLD = {"VAULT_ERROR", "UNEXPECTED_RESPONSE"}  # these are INTERNAL_ERROR and SYNC_FAILED to a caller


def test_every_error_code_is_described_and_reached_by_a_request() -> None:
    described = {
        value["code"]
        for *_, operation in OPERATIONS
        for _, answer in answers(operation)
        for content in answer.get("content", {}).values()
        for example in content.get("examples", {}).values()
        for value in [resolve(DOCUMENT, example)["value"]]
        if isinstance(value, dict) and value.get("success") is False
    }
    assert set(STATUSES) - NEVER_TOLD <= described
    assert set(REACHED) == described
    for code, test in REACHED.items():
        file, name = test.split("::")
        text = Path(__file__).with_name(file).read_text(encoding="utf-8")
        assert f"async def {name}(" in text, test
        assert f'"{code}"' in text, test


# --- the page


class Addresses(HTMLParser):
    """Collects what a browser would load, follow or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "action", "srcset", "data") or name.startswith("on"):
                self.found.append((name, value))


async def test_the_page_is_served_without_a_token_and_fetches_nothing(hub: Hub) -> None:
    served = await hub.http.get("/schema")
    assert served.headers["content-type"].startswith("text/html")
    parser = Addresses()
    parser.feed(served.text)
    local = re.compile(r"/schema/|#")
    assert [each for each in parser.found if each[0] != "href" or not local.match(each[1] or "")] == []
    style, script = (
        re.search(rf"<{tag}>(.*?)</{tag}>", served.text, re.DOTALL)[1]  # type: ignore[index]  # it is there
        for tag in ("style", "script")
    )
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in script
    policy = served.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for text, kind in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


async def test_what_anybody_may_ask_for_is_written_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ("/schema", "/schema/openapi.json", "/schema/openapi.yaml")
    first = [(await hub.http.get(path)).content for path in paths]

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("it was written again")

    for name in (
        "yaml.dump",
        "server.api.reference.page",
        "litestar.openapi.plugins.OpenAPIRenderPlugin.render_json",
    ):
        monkeypatch.setattr(name, again)
    assert [(await hub.http.get(path)).content for path in paths] == first


async def test_the_description_is_served_without_a_token(hub: Hub) -> None:
    served = await hub.http.get("/schema/openapi.json")
    assert (served.status_code, served.json()) == (200, DOCUMENT)
    assert (await hub.http.get("/schema/openapi.yaml")).status_code == 200


def test_the_page_has_a_form_for_every_operation() -> None:
    shown = page(DOCUMENT)
    for part, path, method, _ in OPERATIONS:
        if part == "paths":
            assert f'data-method="{method.upper()}" data-path="{path}"' in shown


def test_the_reference_page_is_up_to_date() -> None:
    kept = Path(__file__).resolve().parents[3] / "docs" / "reference" / "api.md"
    assert kept.read_text(encoding="utf-8") == markdown(DOCUMENT), "write it again: hub docs"


def test_no_connector_is_called_like_a_word_of_a_path() -> None:
    """Else a path could mean two things: `/connect/{provider}`, `/{provider}/disconnect`."""
    words = {path.removeprefix(f"{API}/").split("/")[0] for path in DOCUMENT["paths"] if path.startswith(API)}
    connectors = {path.stem for path in (Path(__file__).resolve().parents[3] / "connectors").glob("*.yaml")}
    assert connectors
    assert words & connectors == set()


# --- methods


async def test_options_name_every_method_of_a_path(hub: Hub) -> None:
    answer = await hub.http.request("OPTIONS", f"{API}/stripe/webhook")
    assert answer.status_code == 204
    assert answer.headers["allow"] == "GET, OPTIONS, PUT"
    refused = await hub.http.request("DELETE", f"{API}/stripe/webhook")
    assert refused.status_code == 405
    assert refused.json()["code"] == "METHOD_NOT_ALLOWED"
