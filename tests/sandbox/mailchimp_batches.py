"""Mailchimp's asynchronous batches: submitted, looked at, and fetched as an archive from elsewhere.

A batch goes one stage on with every look at it, and all by itself as time goes by. Its operations are
executed in an order that has nothing to do with the order they were sent in.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator
from html import escape

import orjson

from tests.sandbox.core import Answer, Call
from tests.sandbox.mailchimp_audience import write_delivery
from tests.sandbox.mailchimp_world import (
    MOST_A_PAGE,
    NO_CONTENT,
    Account,
    Batch,
    World,
    account_of,
    body_of,
    check,
    fault,
    invalid,
    iso,
    objects_in,
    one_of,
    page_of,
    query_of,
    refused,
)
from tests.sandbox.shelf import Json

STAGES = ("pending", "preprocessing", "started", "finalizing", "finished")
STARTED, FINALIZING, FINISHED = 2, 3, 4
MOST_PENDING = 500
MOST_WEBHOOKS = 20
LINK_SECONDS = 600
RESULT_SECONDS = 7 * 86_400
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OPERATION = {"method": str, "path": str, "params": dict, "body": str, "operation_id": str}
STORAGE = "https://mailchimp-api-batch.s3.amazonaws.com"
RESULTS = "/batch-results/"


def submit(world: World, call: Call) -> Answer:
    """POST /batches."""
    account = account_of(call)
    given = body_of(call, {"operations": list}, ("operations",))
    operations = objects_in(given, "operations")
    if not operations:
        raise invalid([fault("operations", "This collection should contain 1 element or more.")])
    for place, operation in enumerate(operations):
        where = f"operations.item:{place}."
        check(operation, OPERATION, ("method", "path"), where)
        one_of(operation, "method", METHODS)
    if len(account.unfinished) >= MOST_PENDING:
        raise refused(429, f"You may only have {MOST_PENDING} pending batches at any given time.")
    now = world.clock.now()
    order = list(range(len(operations)))
    world.random.shuffle(order)
    document: Json = {
        "id": world.new_id(),
        "status": STAGES[0],
        "total_operations": len(operations),
        "finished_operations": 0,
        "errored_operations": 0,
        "submitted_at": iso(now),
        "completed_at": "",
        "response_body_url": "",
    }
    batch = Batch(document, operations, order, now)
    account.batches[document["id"]] = account.unfinished[document["id"]] = batch
    world.effect("batch.submitted")
    return Answer(200, document)


def catch_up(world: World, account: Account) -> None:
    """Bring every unfinished batch to where time has taken it."""
    seconds = world.choices["batch_seconds"]
    if seconds is None or not account.unfinished:
        return
    now = world.clock.now()
    for batch in list(account.unfinished.values()):
        elapsed = now - batch.submitted
        _advance(world, account, batch, FINISHED if elapsed >= seconds else int(elapsed / seconds * FINISHED))


def _advance(world: World, account: Account, batch: Batch, stage: int) -> None:
    stage = min(stage, FINISHED)
    if stage <= batch.stage:
        return
    batch.stage = stage
    due = {STARTED: len(batch.order) // 2}.get(stage, len(batch.order) if stage > STARTED else 0)
    finished = batch.document["finished_operations"]
    for place in batch.order[finished:due]:
        results = list(_execute(world, account, batch.operations[place]))
        batch.results += results
        batch.document = {
            **batch.document,
            "finished_operations": batch.document["finished_operations"] + 1,
            "errored_operations": batch.document["errored_operations"]
            + any(result["status_code"] != 200 for result in results),
        }
        world.effect("batch.operation")
    batch.document = {**batch.document, "status": STAGES[stage]}
    if stage == FINISHED:
        _finish(world, account, batch)


def _execute(world: World, account: Account, operation: Json) -> Iterator[Json]:
    method, path = operation["method"], f"/3.0/{operation['path'].strip('/')}"
    sent = {str(name): str(value) for name, value in operation.get("params", {}).items()}
    query = sent if method == "GET" else {}
    pages = method == "GET" and "count" not in query
    if pages:
        query = {**query, "count": str(MOST_A_PAGE), "offset": query.get("offset", "0")}
    while True:
        answer = world.dispatch(account, method, path, query, operation.get("body", ""))
        yield {
            "status_code": answer.status,
            "operation_id": operation.get("operation_id"),
            "response": "" if answer.body == b"" else orjson.dumps(answer.body).decode(),
        }
        body = answer.body if isinstance(answer.body, dict) else {}
        if not pages or int(query["offset"]) + MOST_A_PAGE >= body.get("total_items", 0):
            return
        query = {**query, "offset": str(int(query["offset"]) + MOST_A_PAGE)}


def _finish(world: World, account: Account, batch: Batch) -> None:
    batch.completed = world.clock.now()
    batch.document = {**batch.document, "completed_at": iso(batch.completed)}
    batch.archive = _archive(batch, int(world.choices["results_per_file"]))
    batch.operations, batch.order, batch.results = [], [], []
    account.unfinished.pop(batch.document["id"], None)
    for hook in account.batch_webhooks.values():
        fired = iso(batch.completed)[:19].replace("T", " ")
        pairs = [
            ("type", "batch_operation_completed"),
            ("fired_at", fired),
            ("data[id]", batch.document["id"]),
            ("data[response_body_url]", _link(world, account, batch, STORAGE)),
        ]
        write_delivery(world, hook, pairs)


def _archive(batch: Batch, results_per_file: int) -> bytes:
    """Pack the results: a folder, and in it files with a list each."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, int(batch.completed or 0)
        tar.addfile(folder)
        for start in range(0, len(batch.results), results_per_file):
            content = orjson.dumps(batch.results[start : start + results_per_file])
            entry = tarfile.TarInfo(f"./{batch.document['id']}-{start // results_per_file}.json")
            entry.size, entry.mtime = len(content), folder.mtime
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _link(world: World, account: Account, batch: Batch, origin: str) -> str:
    token = world.new_id(32)
    world.links[token] = (account.id, batch.document["id"], world.clock.now() + LINK_SECONDS)
    return f"{origin}{RESULTS}{batch.document['id']}-response.tar.gz?Signature={token}"


def _origin(call: Call) -> str:
    """Results lie elsewhere; whoever calls the stand-in by its own address finds them there."""
    host = call.headers.get("host", "")
    return STORAGE if not host or host.endswith(".mailchimp.com") else f"http://{host}"


def _batch_of(call: Call) -> Batch:
    found = account_of(call).batches.get(call.parts["batch"])
    if found is None:
        raise refused(404)
    return found


def _shown(world: World, call: Call, batch: Batch) -> Json:
    kept = batch.completed is not None and world.clock.now() - batch.completed < RESULT_SECONDS
    url = _link(world, account_of(call), batch, _origin(call)) if kept else ""
    return {**batch.document, "response_body_url": url}


def list_all(world: World, call: Call) -> Answer:
    return page_of("batches", query_of(call), [b.document for b in account_of(call).batches.values()])


def get_one(world: World, call: Call) -> Answer:
    """GET /batches/{id}: where it stands, and a fresh link when it is finished."""
    batch = _batch_of(call)
    shown = _shown(world, call, batch)
    if world.choices["batch_polls"]:
        _advance(world, account_of(call), batch, batch.stage + 1)
    return Answer(200, shown)


def delete_one(world: World, call: Call) -> Answer:
    """DELETE /batches/{id}: what was not executed yet never will be."""
    name = _batch_of(call).document["id"]
    account = account_of(call)
    del account.batches[name]
    account.unfinished.pop(name, None)
    world.effect("batch.deleted")
    return NO_CONTENT


def download(world: World, call: Call) -> Answer:
    """The archive, from a storage that knows nothing of accounts: the link is the permission."""
    if "authorization" in call.headers:
        return _storage(400, "InvalidArgument", "Only one auth mechanism allowed")
    account, name, end = world.links.get(query_of(call).get("Signature", ""), ("", "", 0.0))
    batch = world.accounts[account].batches.get(name) if account else None
    if batch is None or call.parts["file"] != f"{name}-response.tar.gz":
        return _storage(403, "AccessDenied", "Access Denied")
    if world.clock.now() >= end:
        return _storage(403, "AccessDenied", "Request has expired")
    return Answer(200, batch.archive, {}, "application/gzip")


def _storage(status: int, code: str, message: str) -> Answer:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Answer(status, text.encode(), {}, "application/xml")


# Webhooks for batches.


def list_webhooks(_: World, call: Call) -> Answer:
    return page_of("webhooks", query_of(call), list(account_of(call).batch_webhooks.values()))


def create_webhook(world: World, call: Call) -> Answer:
    account = account_of(call)
    given = body_of(call, {"url": str, "enabled": bool}, ("url",))
    if len(account.batch_webhooks) >= MOST_WEBHOOKS:
        raise refused(400, f"An account has at most {MOST_WEBHOOKS} batch webhooks.", "Invalid Action")
    signed = bool(world.choices["webhooks_are_signed"])
    made = {
        "id": world.new_id(),
        "url": given["url"],
        "enabled": given.get("enabled", True),
        "signing_enabled": signed,
    }
    account.batch_webhooks[made["id"]] = made
    world.effect("batch_webhook.created")
    if not signed:
        return Answer(200, made)
    world.secrets[made["id"]] = world.new_id(32)
    return Answer(200, {**made, "signing_secret": world.secrets[made["id"]]})


def _webhook_of(call: Call) -> Json:
    found = account_of(call).batch_webhooks.get(call.parts["webhook"])
    if found is None:
        raise refused(404)
    return found


def get_webhook(_: World, call: Call) -> Answer:
    return Answer(200, _webhook_of(call))


def delete_webhook(world: World, call: Call) -> Answer:
    del account_of(call).batch_webhooks[_webhook_of(call)["id"]]
    world.effect("batch_webhook.deleted")
    return NO_CONTENT
