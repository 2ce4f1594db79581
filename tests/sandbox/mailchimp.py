"""A stand-in for Mailchimp's Marketing API 3.0 and its sign-in host. The parts are in `mailchimp_*.py`.

One port stands for `login.mailchimp.com`, the data centre's host, the common host and the storage the
results of batches are fetched from. A host name of another data centre is refused as the original does.

Control calls beyond the shared ones:

    POST /_sandbox/accounts    {"account", "dc", "role", "disabled"}: made or changed; an API key and a list
    POST /_sandbox/lists       {"account", "name", "double_optin"}: one more audience
    POST /_sandbox/members     {"account", "list", "email", "status", "merge_fields", "source", "erase"}:
                               what a person (`user`) or somebody in the office (`admin`) changes
    GET  /_sandbox/deliveries  what webhooks sent: url, first headers, body; DELETE forgets them
    POST /_sandbox/choices     changes a choice from the list below

The fault `status:403` is the edge's, without a JSON body; so is the 429 of a rate set by
`/_sandbox/limits`. `status:429` is the API's own.

Where the documentation is silent or unsure, this is taken to be so; a name in brackets is a choice:

- the metadata call wants `Authorization: OAuth <token>` [metadata_scheme: OAuth, Bearer or any]
- errors of the sign-in host are RFC 6749's; a code is good once, for ten minutes
- ten calls at a time for a user [concurrent]; a call takes 5 ms [call_seconds]
- an existing contact, POSTed, is a 400 titled `Member Exists`
- an erased address cannot come back, except as `pending` [erased_are_barred]
- an archived contact is listed [archived_are_listed] and created anew by POST and PUT [archived_are_new];
  archiving it again is a 405
- unknown merge fields are ignored [unknown_merge_fields: ignore or refuse]; text has at most 255
  characters [longest_merge_text]; null is refused
- a double opt-in audience refuses `subscribed` for somebody who isn't [double_optin_needs_pending]
- `since_…` and `before_…` leave out the very moment named [since_is_inclusive]; times have whole seconds
- a write that changes nothing leaves `last_changed` alone; tags move it
- an address twice in one synchronous batch is an error entry, unless the query says otherwise
- more than 1000 a page is a 400
- `variants` sent with a product take the place of those it had; an existing id, POSTed, is a 400
- PUT on a product is a 405 [product_put]
- a store's customer becomes a contact: subscribed when opted in, else transactional
- a batch is finished two seconds after it was submitted [batch_seconds, null for never] or after five
  looks at it [batch_polls]; 204 counts as errored; a file holds 100 results [results_per_file]
- the archive is refused to whoever sends an Authorization header along
- new webhooks are signed [webhooks_are_signed]
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import orjson

from tests.sandbox import mailchimp_audience as audience
from tests.sandbox import mailchimp_batches as batches
from tests.sandbox import mailchimp_oauth as oauth
from tests.sandbox import mailchimp_store as store
from tests.sandbox.core import (
    HTML_FAILURE,
    Answer,
    Call,
    RefusedError,
    Route,
    SandboxClock,
    StandIn,
)
from tests.sandbox.core import (
    Handler as Control,
)
from tests.sandbox.mailchimp_world import (
    CHOICES,
    DATA_CENTRE,
    PROBLEM,
    TITLES,
    Account,
    Audience,
    Handler,
    Query,
    World,
    account_of,
    problem,
    query_of,
    refused,
    shaped,
)
from tests.sandbox.shelf import Json

DEFAULT_ACCOUNT = "mc-demo"
DEFAULT_CLIENT = "635959587059"
DEFAULT_SECRET = "mailchimp-demo-secret"
DEFAULT_KEY = f"0123456789abcdef0123456789abcdef-{DATA_CENTRE}"
REPLACES = (
    "https://login.mailchimp.com",
    f"https://{DATA_CENTRE}.api.mailchimp.com",
    "https://api.mailchimp.com",
    batches.STORAGE,
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_HOST = re.compile(r"([a-z]{2,4}\d{1,3})\.api\.mailchimp\.com")

_LIST = "/lists/{list}"
_MEMBER = f"{_LIST}/members/{{member}}"
_STORE = "/ecommerce/stores/{store}"
_PRODUCT = f"{_STORE}/products/{{product}}"
CALLS: Mapping[str, Handler] = {
    "GET /lists": audience.list_all,
    f"GET {_LIST}": audience.get_list,
    f"POST {_LIST}": audience.subscribe_many,
    f"GET {_LIST}/merge-fields": audience.list_merge_fields,
    f"POST {_LIST}/merge-fields": audience.create_merge_field,
    f"GET {_LIST}/merge-fields/{{field}}": audience.get_merge_field,
    f"PATCH {_LIST}/merge-fields/{{field}}": audience.update_merge_field,
    f"DELETE {_LIST}/merge-fields/{{field}}": audience.delete_merge_field,
    f"GET {_LIST}/members": audience.list_members,
    f"POST {_LIST}/members": audience.create_member,
    f"GET {_MEMBER}": audience.get_member,
    f"PUT {_MEMBER}": audience.upsert_member,
    f"PATCH {_MEMBER}": audience.update_member,
    f"DELETE {_MEMBER}": audience.archive_member,
    f"POST {_MEMBER}/actions/delete-permanent": audience.erase_member,
    f"GET {_MEMBER}/tags": audience.list_tags,
    f"POST {_MEMBER}/tags": audience.change_tags,
    f"GET {_LIST}/webhooks": audience.list_webhooks,
    f"POST {_LIST}/webhooks": audience.create_webhook,
    f"GET {_LIST}/webhooks/{{webhook}}": audience.get_webhook,
    f"PATCH {_LIST}/webhooks/{{webhook}}": audience.update_webhook,
    f"DELETE {_LIST}/webhooks/{{webhook}}": audience.delete_webhook,
    "GET /ecommerce/stores": store.list_stores,
    "POST /ecommerce/stores": store.create_store,
    f"GET {_STORE}": store.get_store,
    f"PATCH {_STORE}": store.update_store,
    f"DELETE {_STORE}": store.delete_store,
    f"GET {_STORE}/products": store.list_products,
    f"POST {_STORE}/products": store.create_product,
    f"GET {_PRODUCT}": store.get_product,
    f"PUT {_PRODUCT}": store.upsert_product,
    f"PATCH {_PRODUCT}": store.update_product,
    f"DELETE {_PRODUCT}": store.delete_product,
    f"GET {_PRODUCT}/variants": store.list_variants,
    f"GET {_PRODUCT}/variants/{{variant}}": store.get_variant,
    f"PUT {_PRODUCT}/variants/{{variant}}": store.put_variant,
    f"PATCH {_PRODUCT}/variants/{{variant}}": store.update_variant,
    f"DELETE {_PRODUCT}/variants/{{variant}}": store.delete_variant,
    f"GET {_STORE}/customers": store.list_customers,
    f"POST {_STORE}/customers": store.create_customer,
    f"GET {_STORE}/customers/{{customer}}": store.get_customer,
    f"PUT {_STORE}/customers/{{customer}}": store.upsert_customer,
    f"PATCH {_STORE}/customers/{{customer}}": store.update_customer,
    f"DELETE {_STORE}/customers/{{customer}}": store.delete_customer,
    f"GET {_STORE}/orders": store.list_orders,
    f"POST {_STORE}/orders": store.create_order,
    f"GET {_STORE}/orders/{{order}}": store.get_order,
    f"PATCH {_STORE}/orders/{{order}}": store.update_order,
    f"DELETE {_STORE}/orders/{{order}}": store.delete_order,
    "GET /batches": batches.list_all,
    "POST /batches": batches.submit,
    "GET /batches/{batch}": batches.get_one,
    "DELETE /batches/{batch}": batches.delete_one,
    "GET /batch-webhooks": batches.list_webhooks,
    "POST /batch-webhooks": batches.create_webhook,
    "GET /batch-webhooks/{webhook}": batches.get_webhook,
    "DELETE /batch-webhooks/{webhook}": batches.delete_webhook,
}


class Mailchimp(StandIn):
    """The API, `https://us6.api.mailchimp.com`, and the sign-in host, `https://login.mailchimp.com`."""

    version_header = "x-mailchimp-version"  # there is none

    def __init__(self, clock: SandboxClock | None = None) -> None:
        super().__init__(clock)

    def route_table(self) -> Sequence[Route]:
        calls: dict[str, Control] = {
            "GET /ping": self._ping,
            "GET /": self._root,
            **{key: partial(self._run, run=run) for key, run in CALLS.items()},
        }
        return [
            Route("GET /oauth2/authorize", self._authorize, limits_apply=False),
            Route("POST /oauth2/authorize", self._authorize, limits_apply=False),
            Route("POST /oauth2/token", self._token, limits_apply=False),
            Route("GET /oauth2/metadata", self._metadata, limits_apply=False),
            Route(f"GET {batches.RESULTS}{{file}}", self._download, limits_apply=False),
            Route("GET /3.0", self._root),
            *(
                Route(f"{method} /3.0{path}", handler, writes=method != "GET")
                for (method, path), handler in ((key.split(" ", 1), run) for key, run in calls.items())
            ),
        ]

    def control_table(self) -> dict[str, Control]:
        return {
            "POST /_sandbox/accounts": self._new_account,
            "POST /_sandbox/lists": self._new_list,
            "POST /_sandbox/members": self._change_member,
            "GET /_sandbox/deliveries": lambda _: Answer(200, {"deliveries": self.world.deliveries}),
            "DELETE /_sandbox/deliveries": self._forget_deliveries,
            "POST /_sandbox/choices": self._choose,
        }

    def empty_state(self) -> None:
        self.world = World(self.clock, self.effect, self._dispatch)
        self.world.send = self.courier.send
        self.credentials = oauth.Credentials()
        self.credentials.applications[DEFAULT_CLIENT] = oauth.Application(DEFAULT_CLIENT, DEFAULT_SECRET)
        self._in_flight: Counter[str] = Counter()
        self._requests = 0
        self.world.new_account(DEFAULT_ACCOUNT)
        audience.new_audience(self.world, DEFAULT_ACCOUNT, "Newsletter")
        self.credentials.issue(DEFAULT_ACCOUNT, token=DEFAULT_KEY)

    def memory(self) -> Sequence[tuple[object, Sequence[str]]]:
        world = ("accounts", "choices", "random", "links", "deliveries", "secrets", "_numbers")
        return [(self.world, world), (self.credentials, ("applications", "codes", "access"))]

    @property
    def account(self) -> Account:
        """The account every sandbox starts with."""
        return self.world.accounts[DEFAULT_ACCOUNT]

    @property
    def audience(self) -> Audience:
        """The list every sandbox starts with."""
        return next(iter(self.account.audiences.values()))

    def stored(self, kind: str) -> list[Json]:
        if kind not in _STORED:
            raise ValueError(f"no type {kind!r}; there are {sorted(_STORED)}")
        found: list[Json] = []
        for account in self.world.accounts.values():
            batches.catch_up(self.world, account)
            found += [{**value, "account": account.id} for value in _STORED[kind](account)]
        return found

    # Errors, keys and calls at the same time.

    def failure(self, status: int, detail: str | None = None) -> Answer:
        if status == 404:
            method, _, path = str(detail).partition(": ")
            known = any(self.routes.find(other, path) for other in _METHODS if other != method)
            return problem(405 if known else 404)
        if status == 403 or (status == 429 and detail):
            return Answer(status, HTML_FAILURE.replace(b"502 Bad Gateway", b"Denied"), {}, "text/html")
        return problem(status)

    async def _answer(self, call: Call) -> Answer:
        if override := call.headers.get("x-http-method-override", "").upper():
            if call.method != "POST" or override not in _METHODS:
                return self.finish(call, problem(422))
            call.method = override
        return await super()._answer(call)

    def admit(self, call: Call, route: Route) -> Answer | None:
        if not call.path.startswith("/3.0"):
            return None
        account = self._caller(call)
        call.state["account"] = account
        if self._in_flight[account.id] >= self.world.choices["concurrent"]:
            raise refused(429)
        self._in_flight[account.id] += 1
        call.state["claimed"] = True
        if wanted := call.headers.get("x-trigger-error"):
            raise RefusedError(_triggered(wanted))
        batches.catch_up(self.world, account)
        return None

    def _caller(self, call: Call) -> Account:
        scheme, _, sent = call.headers.get("authorization", "").partition(" ")
        sent = sent.strip()
        if scheme.lower() == "basic":
            try:
                sent = base64.b64decode(sent).decode().partition(":")[2]
            except ValueError:
                sent = ""
        if not sent or scheme.lower() not in ("basic", "bearer"):
            raise refused(401, "Your request did not include an API key.", "API Key Missing")
        found = self.credentials.access.get(sent)
        if found is None or found.revoked:
            raise refused(401)
        account = self.world.accounts[found.account]
        host = _HOST.fullmatch(call.headers.get("host", "").partition(":")[0])
        if host and host[1] != account.dc:
            raise refused(401)
        if account.disabled:
            raise refused(403, "This account has been deactivated.", "User Disabled")
        return account

    def hold(self, call: Call, route: Route) -> float:
        return float(self.world.choices["call_seconds"]) if "account" in call.state else 0.0

    def settle(self, call: Call, answer: Answer) -> None:
        """Nothing is replayed: there are no idempotency keys."""

    def release(self, call: Call) -> None:
        if call.state.pop("claimed", False):
            self._in_flight[account_of(call).id] -= 1

    def finish(self, call: Call, answer: Answer) -> Answer:
        self._requests += 1
        name = f"{self._requests:08x}-5a6d-4b1e-9c3f-0242ac120002"
        return replace(
            answer, body=_with_instance(answer, name), headers={**answer.headers, "X-Request-Id": name}
        )

    def repeated(self, page: Answer) -> Answer:
        body = page.body
        if isinstance(body, dict) and "total_items" in body:
            body = {**body, "total_items": body["total_items"] + 1_000_000}
        return Answer(page.status, orjson.dumps(body), page.headers)

    def revoke(self, given: Json) -> int:
        token = given.get("token") or given.get("key")
        if token is None:
            account = str(given.get("account"))
            if account not in self.world.accounts:
                raise ValueError(f"no account {account!r}")
            return self.credentials.end(account)
        if token not in self.credentials.access:
            raise ValueError("no such key or token")
        self.credentials.access[token].revoked = True
        return 1

    # Calls, from outside and from inside a batch.

    def _run(self, call: Call, run: Handler) -> Answer:
        return shaped(query_of(call), run(self.world, call))

    def _dispatch(self, account: Account, method: str, path: str, query: Query, body: str) -> Answer:
        found = self.routes.find(method, path)
        if found is None or path.startswith("/3.0/batch"):
            answer = self.failure(404, f"{method}: {path}")
        else:
            call = Call(
                method=method,
                path=path,
                key=found[0].key,
                parts=found[1],
                query=list(query.items()),
                headers={},
                body=body.encode(),
                state={"account": account},
            )
            try:
                answer = found[0].handler(call)
            except RefusedError as refusal:
                answer = refusal.answer
        return self.finish(Call(method, path, path, {}, [], {}, b""), answer)

    def _ping(self, _: Call) -> Answer:
        return Answer(200, {"health_status": "Everything's Chimpy!"})

    def _root(self, call: Call) -> Answer:
        account = account_of(call)
        members = sum(
            len(entry.members.listed("status", "subscribed")) for entry in account.audiences.values()
        )
        body = {
            "account_id": account.id,
            "login_id": f"login-{account.id}",
            "account_name": f"Venue {account.id}",
            "email": f"owner@{account.id}.example",
            "role": account.role,
            "account_timezone": "America/New_York",
            "total_subscribers": members,
        }
        return shaped(query_of(call), Answer(200, body))

    def _authorize(self, call: Call) -> Answer:
        known = self.world.accounts.__contains__
        return oauth.authorize(self.clock, self.credentials, call, known, DEFAULT_ACCOUNT)

    def _token(self, call: Call) -> Answer:
        return oauth.token(self.clock, self.credentials, call)

    def _metadata(self, call: Call) -> Answer:
        scheme, _, sent = call.headers.get("authorization", "").partition(" ")
        wanted = self.world.choices["metadata_scheme"]
        found = self.credentials.access.get(sent.strip())
        if wanted not in ("any", scheme) or found is None or found.revoked or found.client_id is None:
            return oauth.refusal(401, "invalid_token", "The access token is not valid.")
        account = self.world.accounts[found.account]
        return Answer(
            200,
            {
                "dc": account.dc,
                "role": account.role,
                "accountname": f"Venue {account.id}",
                "user_id": account.id,
                "login_url": "https://login.mailchimp.com",
                "api_endpoint": f"https://{account.dc}.api.mailchimp.com",
            },
        )

    def _download(self, call: Call) -> Answer:
        return batches.download(self.world, call)

    # Control.

    def _new_account(self, call: Call) -> Answer:
        given = call.json()
        name = str(given.get("account") or f"mc-{self.world.new_id(8)}")
        account = self.world.accounts.get(name)
        if account is None:
            account = self.world.new_account(name, str(given.get("dc", DATA_CENTRE)))
            audience.new_audience(self.world, name, "Newsletter")
        account.role = str(given.get("role", account.role))
        account.disabled = bool(given.get("disabled", account.disabled))
        key = self.credentials.issue(name, token=f"{self.world.new_id(32)}-{account.dc}").token
        return Answer(200, {"account": name, "key": key, "dc": account.dc, "lists": list(account.audiences)})

    def _new_list(self, call: Call) -> Answer:
        given = call.json()
        account = str(given.get("account", DEFAULT_ACCOUNT))
        double = bool(given.get("double_optin", False))
        made = audience.new_audience(
            self.world, account, str(given.get("name", "Members")), double_optin=double
        )
        return Answer(200, {"list": made.document["id"]})

    def _change_member(self, call: Call) -> Answer:
        given = call.json()
        account = self.world.accounts[str(given.get("account", DEFAULT_ACCOUNT))]
        held = account.audiences[str(given.get("list") or next(iter(account.audiences)))]
        known = audience.find(held, given["email"])
        if given.get("erase"):
            if known is None:
                raise ValueError(f"no member {given['email']!r}")
            held.members.remove(known["unique_email_id"])
            held.erased.add(known["id"])
            return Answer(200, {"member": known})
        sent = {"email_address": given["email"], "merge_fields": given.get("merge_fields", {})}
        status = given.get("status", None if known else "subscribed")
        source = str(given.get("source", "user"))
        try:
            member = audience.put(self.world, held, known, sent, status, skip=True, source=source)
        except RefusedError as refusal:
            raise ValueError(refusal.answer.body["detail"]) from refusal
        return Answer(200, {"member": member})

    def _forget_deliveries(self, _: Call) -> Answer:
        self.world.deliveries.clear()
        return Answer(200, {"deliveries": 0})

    def _choose(self, call: Call) -> Answer:
        given = call.json()
        if unknown := set(given) - set(CHOICES):
            raise ValueError(f"unknown choices {sorted(unknown)}; there are {sorted(CHOICES)}")
        self.world.choices.update(given)
        return Answer(200, self.world.choices)


def _with_instance(answer: Answer, name: str) -> object:
    if answer.content_type != PROBLEM:
        return answer.body
    return {**answer.body, "instance": name}


def _triggered(wanted: str) -> Answer:
    """Word the error a caller asked for, by its status or its title without blanks."""
    for status, (title, _) in TITLES.items():
        if wanted in (str(status), title.replace(" ", "")):
            return problem(status)
    return problem(400, f"There is no error {wanted}.")


def _in_lists(account: Account) -> list[Json]:
    return [member for entry in account.audiences.values() for member in entry.members.objects.values()]


def _in_stores(account: Account, shelf: str) -> list[Json]:
    return [value for entry in account.stores.values() for value in getattr(entry, shelf).objects.values()]


_STORED: Mapping[str, Callable[[Account], list[Json]]] = {
    "list": lambda account: [entry.document for entry in account.audiences.values()],
    "member": _in_lists,
    "merge_field": lambda account: [
        value for entry in account.audiences.values() for value in entry.merge_fields.values()
    ],
    "webhook": lambda account: [
        value for entry in account.audiences.values() for value in entry.webhooks.values()
    ],
    "store": lambda account: [entry.document for entry in account.stores.values()],
    "product": partial(_in_stores, shelf="products"),
    "customer": partial(_in_stores, shelf="customers"),
    "order": partial(_in_stores, shelf="orders"),
    "batch": lambda account: [batch.document for batch in account.batches.values()],
}


def seed_demo(mailchimp: Mailchimp, known_emails: Sequence[str] = ()) -> None:
    """Fill the default list: 12 contacts who were there before, tagged; two of them left."""
    world, held = mailchimp.world, mailchimp.audience
    for place, (first, last) in enumerate(_PEOPLE):
        known = place < min(len(known_emails), 6)
        sent = {
            "email_address": known_emails[place] if known else f"reader{place + 1}@mail.example",
            "merge_fields": {"FNAME": first, "LNAME": last},
            "tags": ["Box office"] if place % 3 == 0 else [],
        }
        member = audience.put(world, held, None, sent, "subscribed", with_tags=True, source="admin")
        left = {7: "unsubscribed", 10: "cleaned"}.get(place)
        if left:
            audience.put(world, held, member, {}, left, source="user")


_PEOPLE = (
    *(("Aoife", "Kelly"), ("Baptiste", "Rousseau"), ("Çelik", "Demir"), ("Dagny", "Østergård")),
    *(("Emília", "Nováková"), ("Farid", "Haddad"), ("Gwen", "O'Hara"), ("Hugo", "Fernández Peña")),
    *(("Ilse", "van Dijk"), ("Jürgen", "Weiß"), ("Kaoru", "Ito"), ("Lena", "Smith-Jones")),
)
