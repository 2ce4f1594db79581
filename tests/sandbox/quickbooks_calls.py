"""QuickBooks' calls on rows: save, read, batch, change data capture, company and preferences."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.sandbox.core import Answer, Call, RefusedError
from tests.sandbox.quickbooks_fields import WRITABLE
from tests.sandbox.quickbooks_query import known_entities, run_query
from tests.sandbox.quickbooks_rows import create, delete, find, update, void
from tests.sandbox.quickbooks_world import (
    Company,
    World,
    body_of,
    company_of,
    missing,
    refused,
    seconds_of,
)
from tests.sandbox.shelf import Json

CDC_SECONDS = 30 * 86_400
CDC_MOST = 1000
BATCH_ID_MOST = 10
_BATCHED = {"create": create, "update": update, "delete": delete}


def save(world: World, call: Call, entity: str) -> Answer:
    """POST /v3/company/{realm}/{entity}: create, update, delete or void, by the query and the body."""
    company, query, body = company_of(call), dict(call.query), body_of(call)
    kind = (query.get("operation"), query.get("include"))
    run: Callable[[World, Company, str, Json], Json]
    match kind:
        case ("delete", _):
            run = delete
        case ("void", _) if entity == "Invoice":
            run = void
        case ("update", "void") if entity in ("Payment", "SalesReceipt"):
            if body.get("sparse") is not True:
                raise missing("sparse")
            run = void
        case (None | "create" | "update", None):
            run = update if body.get("Id") not in (None, "") else create
        case _:
            raise refused("500", f"Operation {kind[0]} (include {kind[1]}) is not supported for {entity}.")
    return world.answered({entity: run(world, company, entity, body)})


def read(world: World, call: Call, entity: str) -> Answer:
    """GET /v3/company/{realm}/{entity}/{id}"""
    row = find(company_of(call), entity, call.parts["id"])
    if world.behaviour.inactive_reads_fail and not row.get("Active", True):
        raise refused("610", f"{entity} {row['Id']} has been made inactive")
    return world.answered({entity: row})


def company_info(world: World, call: Call) -> Answer:
    """GET /v3/company/{realm}/companyinfo/{realm}"""
    company = company_of(call)
    if call.parts["id"] != company.realm:
        raise refused("610", f"CompanyInfo {call.parts['id']} was not found")
    return world.answered({"CompanyInfo": company.table("CompanyInfo").rows["1"]})


def preferences(world: World, call: Call) -> Answer:
    """GET /v3/company/{realm}/preferences"""
    return world.answered({"Preferences": company_of(call).table("Preferences").rows["1"]})


def changes(world: World, call: Call) -> Answer:
    """GET /v3/company/{realm}/cdc: whole rows changed since, 1,000 at most, and stubs of deleted ones."""
    company, query = company_of(call), dict(call.query)
    entities = known_entities([name.strip() for name in query.get("entities", "").split(",") if name.strip()])
    try:
        since = seconds_of(query["changedSince"])
    except (KeyError, ValueError) as error:
        raise refused("2170", "changedSince must be an ISO time", "changedSince") from error
    if since < world.clock.now() - CDC_SECONDS:
        raise refused("2170", "changedSince is more than 30 days ago", "changedSince")
    responses: list[Json] = []
    left = CDC_MOST
    for entity in entities:
        rows = company.table(entity).since(since, left)
        left -= len(rows)
        found: Json = {entity: rows, "startPosition": 1, "maxResults": len(rows)} if rows else {}
        responses.append(found)
    return world.answered({"CDCResponse": [{"QueryResponse": responses}]})


def batch(world: World, call: Call) -> Answer:
    """POST /v3/company/{realm}/batch: each item succeeds or fails by itself, the call is a 200."""
    company, body = company_of(call), body_of(call)
    items = body.get("BatchItemRequest")
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise missing("BatchItemRequest")
    if len(items) > world.behaviour.batch_most:
        raise refused("1040", f"{len(items)} items, at most {world.behaviour.batch_most} are allowed")
    names = [item.get("bId") for item in items]
    if not all(isinstance(name, str) and name for name in names):
        raise missing("bId")
    if len(set(names)) < len(names):
        raise refused("2170", "Each bId must be unique in the batch", "bId")
    if "requestid" in dict(call.query) and any(len(str(name)) > BATCH_ID_MOST for name in names):
        raise refused("2170", f"With a requestid, a bId has at most {BATCH_ID_MOST} characters", "bId")
    responses: list[Json] = []
    try:
        for item in items:
            try:
                answer = _run_item(world, company, item)
            except RefusedError as error:
                answer = error.answer.body
            responses.append({"bId": item["bId"], **answer})
    finally:
        company.hidden.clear()
    if world.behaviour.batch_reversed:
        responses.reverse()
    return world.answered({"BatchItemResponse": responses})


def _run_item(world: World, company: Company, item: Mapping[str, Any]) -> Json:
    if "Query" in item:
        return run_query(world, company, str(item["Query"]))
    entities = [name for name in item if name in WRITABLE]
    if len(entities) != 1 or not isinstance(item[entities[0]], dict):
        raise refused("2170", "A batch item needs one entity or a Query")
    operation, entity = item.get("operation"), entities[0]
    run = _BATCHED.get(str(operation))
    if run is None:
        raise refused("500", f"Operation {operation} is not supported.")
    if run is create and item[entity].get("Id"):
        raise refused("2170", "A create has no Id", "Id")
    row = run(world, company, entity, item[entity])
    if run is create:
        company.hidden.add((entity, row["Id"]))
    return {entity: row}
