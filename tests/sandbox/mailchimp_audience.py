"""Mailchimp audiences: lists, merge fields, members, tags, the synchronous batch and webhooks."""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import partial
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

from tests.sandbox.core import Answer, Call, RefusedError
from tests.sandbox.courier import Letter
from tests.sandbox.mailchimp_world import (
    INVALID,
    NO_CONTENT,
    Audience,
    Range,
    World,
    account_of,
    body_of,
    bounds_of,
    check,
    check_email,
    fault,
    flag_in,
    invalid,
    mistyped,
    moment,
    objects_in,
    one_of,
    page_of,
    page_of_range,
    problem,
    query_of,
    refused,
)
from tests.sandbox.shelf import Json

Bounds = dict[str, tuple[str, str | None]]  # by order: the first and the last rank that fit

MOST_AT_ONCE = 500
STATUSES = ("subscribed", "unsubscribed", "cleaned", "pending", "transactional")
MEMBER: Mapping[str, type] = {
    "email_address": str,
    "email_type": str,
    "status": str,
    "status_if_new": str,
    "merge_fields": dict,
    "interests": dict,
    "language": str,
    "vip": bool,
    "location": dict,
    "marketing_permissions": list,
    "ip_signup": str,
    "timestamp_signup": str,
    "ip_opt": str,
    "timestamp_opt": str,
    "tags": list,
}
_COPIED = (
    *("email_type", "status", "language", "vip", "marketing_permissions"),
    *("ip_signup", "timestamp_signup", "ip_opt", "timestamp_opt"),
)
_MERGED = ("merge_fields", "interests", "location")
MERGE_FIELD: Mapping[str, type] = {
    "name": str,
    "tag": str,
    "type": str,
    "required": bool,
    "default_value": str,
    "public": bool,
    "display_order": int,
    "options": dict,
    "help_text": str,
}
MERGE_TYPES = (
    *("text", "number", "address", "phone", "date", "url", "imageurl", "radio", "dropdown"),
    *("birthday", "zip"),
)
EVENTS = ("subscribe", "unsubscribe", "profile", "cleaned", "upemail", "campaign")
SOURCES = ("user", "admin", "api")


def hash_of(address: str) -> str:
    """Return the MD5 of the lower-cased address."""
    return hashlib.md5(address.lower().encode()).hexdigest()


# Lists.


def new_audience(world: World, account: str, name: str, *, double_optin: bool = False) -> Audience:
    """Add a list with the merge fields every list starts with."""
    audience = Audience(
        {
            "id": world.new_id(),
            "web_id": world.number(),
            "name": name,
            "contact": {
                "company": name,
                "address1": "1 Stage Street",
                "city": "Springfield",
                "country": "US",
            },
            "permission_reminder": "You signed up at the box office.",
            "campaign_defaults": {
                "from_name": name,
                "from_email": "news@venue.example",
                "subject": "",
                "language": "en",
            },
            "date_created": world.stamp(),
            "list_rating": 0,
            "email_type_option": False,
            "double_optin": double_optin,
            "has_welcome": False,
            "marketing_permissions": False,
            "visibility": "prv",
        }
    )
    for tag, title, kind in (
        ("FNAME", "First Name", "text"),
        ("LNAME", "Last Name", "text"),
        ("ADDRESS", "Address", "address"),
        ("PHONE", "Phone Number", "phone"),
        ("BIRTHDAY", "Birthday", "birthday"),
    ):
        _add_merge_field(audience, {"tag": tag, "name": title, "type": kind})
    world.accounts[account].audiences[audience.document["id"]] = audience
    return audience


def audience_of(call: Call) -> Audience:
    """Return the list named in the path."""
    found = account_of(call).audiences.get(call.parts["list"])
    if found is None:
        raise refused(404)
    return found


def _shown(audience: Audience) -> Json:
    counts = {status: len(audience.members.listed("status", status)) for status in STATUSES}
    return {
        **audience.document,
        "stats": {
            "member_count": counts["subscribed"],
            "unsubscribe_count": counts["unsubscribed"],
            "cleaned_count": counts["cleaned"],
            "total_contacts": len(audience.members.objects),
            "merge_field_count": len(audience.merge_fields),
            "campaign_last_sent": "",
        },
    }


def list_all(world: World, call: Call) -> Answer:
    query = query_of(call)
    low, high = bounds_of(world, query, "date_created")
    sent = moment(query, "since_campaign_last_sent")  # no campaign was ever sent here
    found = [
        _shown(audience)
        for audience in account_of(call).audiences.values()
        if (low is None or audience.document["date_created"] >= low)
        and (high is None or audience.document["date_created"] <= high)
        and sent is None
    ]
    return page_of("lists", query, found)


def get_list(_: World, call: Call) -> Answer:
    return Answer(200, _shown(audience_of(call)))


# Merge fields.


def _add_merge_field(audience: Audience, given: Json) -> Json:
    number = max((entry["merge_id"] for entry in audience.merge_fields.values()), default=0) + 1
    made = {
        "merge_id": number,
        "tag": given.get("tag") or f"MMERGE{number}",
        "name": given["name"],
        "type": given["type"],
        "required": given.get("required", False),
        "default_value": given.get("default_value", ""),
        "public": given.get("public", False),
        "display_order": given.get("display_order", number + 1),
        "options": given.get("options", {}),
        "help_text": given.get("help_text", ""),
        "list_id": audience.document["id"],
    }
    audience.merge_fields[made["tag"]] = made
    return made


def list_merge_fields(_: World, call: Call) -> Answer:
    audience, query = audience_of(call), query_of(call)
    found = [
        entry
        for entry in audience.merge_fields.values()
        if query.get("type", entry["type"]) == entry["type"]
        and ("required" not in query or flag_in(query, "required") == entry["required"])
    ]
    return page_of("merge_fields", query, found, list_id=audience.document["id"])


def create_merge_field(world: World, call: Call) -> Answer:
    audience = audience_of(call)
    given = body_of(call, MERGE_FIELD, ("name", "type"))
    one_of(given, "type", MERGE_TYPES)
    tag = given["tag"] = given.get("tag", "").upper()
    if len(tag) > 10:
        raise invalid([fault("tag", "This value is too long. It should have 10 characters or less.")])
    if tag in audience.merge_fields or tag == "EMAIL":
        raise refused(400, f'A Merge Field with the tag "{tag}" already exists for this list.')
    world.effect("merge_field.created")
    return Answer(200, _add_merge_field(audience, given))


def _merge_field_of(call: Call) -> tuple[Audience, Json]:
    audience = audience_of(call)
    for entry in audience.merge_fields.values():
        if str(entry["merge_id"]) == call.parts["field"]:
            return audience, entry
    raise refused(404)


def get_merge_field(_: World, call: Call) -> Answer:
    return Answer(200, _merge_field_of(call)[1])


def update_merge_field(world: World, call: Call) -> Answer:
    audience, entry = _merge_field_of(call)
    given = body_of(call, MERGE_FIELD)
    tag = str(given.get("tag", entry["tag"])).upper()
    if tag != entry["tag"] and tag in audience.merge_fields:
        raise refused(400, f'A Merge Field with the tag "{tag}" already exists for this list.')
    kept = {name: value for name, value in given.items() if name in MERGE_FIELD and name != "type"}
    changed = {**entry, **kept, "tag": tag}
    audience.merge_fields = {
        value["tag"]: value
        for value in (changed if e is entry else e for e in audience.merge_fields.values())
    }
    if tag != entry["tag"]:
        _retag(audience, entry["tag"], tag)
    world.effect("merge_field.updated")
    return Answer(200, changed)


def delete_merge_field(world: World, call: Call) -> Answer:
    audience, entry = _merge_field_of(call)
    del audience.merge_fields[entry["tag"]]
    _retag(audience, entry["tag"], None)
    world.effect("merge_field.deleted")
    return NO_CONTENT


def _retag(audience: Audience, old: str, new: str | None) -> None:
    for member in audience.members.objects.values():
        value = member["merge_fields"].pop(old, "")
        if new is not None:
            member["merge_fields"][new] = value


# Members.


def find(audience: Audience, name: str) -> Json | None:
    """Return the member with this hash, address or contact id."""
    name = hash_of(name) if "@" in name else name
    for index in ("hash", "contact"):
        key = next(audience.members.listed(index, name).walk(), None)
        if key is not None:
            return audience.members.objects[key[2]]
    return None


def _member_of(call: Call) -> tuple[Audience, Json]:
    audience = audience_of(call)
    member = find(audience, call.parts["member"])
    if member is None:
        raise refused(404)
    return audience, member


def list_members(world: World, call: Call) -> Answer:
    audience, query = audience_of(call), query_of(call)
    given = {"sort_field": query.get("sort_field", "added"), "sort_dir": query.get("sort_dir", "ASC").upper()}
    one_of(given, "sort_field", ("added", "last_changed", "timestamp_opt", "timestamp_signup"))
    one_of(given, "sort_dir", ("ASC", "DESC"))
    one_of(query, "status", (*STATUSES, "archived"))
    descending, order = given["sort_dir"] == "DESC", given["sort_field"]
    bounds: Bounds = {}
    for name in ("last_changed", "timestamp_opt"):
        low, high = bounds_of(world, query, name)
        if low or high:
            bounds[name] = (low or "0", high)  # an empty time is before all others
    more = {"list_id": audience.document["id"]}
    shelf, status = audience.members, query.get("status")
    stretch, sorted_by, done = _stretch(audience, status, bounds, order)
    tests = _member_tests(world, query, {name: bounds[name] for name in bounds if name not in done})
    if status and "status" not in done:
        tests.append(lambda member: bool(member["status"] == status))
    if not tests and sorted_by == order:
        return page_of_range("members", query, shelf, stretch, descending=descending, **more)
    values = (shelf.objects[name] for name in stretch.names(descending=descending))
    found = [value for value in values if all(test(value) for test in tests)]
    if sorted_by != order:
        found.sort(key=itemgetter("web_id" if order == "added" else order), reverse=descending)
    return page_of("members", query, found, **more)


def _stretch(
    audience: Audience, status: str | None, bounds: Bounds, order: str
) -> tuple[Range, str, tuple[str, ...]]:
    """Return the shortest stretch that holds all that fit, what it is sorted by and what it took care of."""
    shelf = audience.members
    if status and order == "added" and not bounds:
        return Range(shelf.listed("status", status)), order, ("status",)
    if status and "last_changed" in (order, *bounds):
        low, high = bounds.get("last_changed", ("", None))
        both = Range(shelf.orders["status"], f"{status} {low}", f"{status} {high or '~'}")
        return both, "last_changed", ("status", "last_changed")
    walked = order if order in bounds else next(iter(bounds), order)
    return Range(shelf.orders[walked], *bounds.get(walked, (None, None))), walked, (walked,)


def _member_tests(world: World, query: Mapping[str, str], bounds: Bounds) -> list[Callable[[Json], bool]]:
    tests: list[Callable[[Json], bool]] = [
        partial(_within, name=name, low=low, high=high) for name, (low, high) in bounds.items()
    ]
    if "status" not in query and not world.choices["archived_are_listed"]:
        tests.append(lambda member: bool(member["status"] != "archived"))
    if "unsubscribed_since" in query:
        if query.get("status") != "unsubscribed":
            raise refused(400, "unsubscribed_since needs status=unsubscribed.")
        since, _ = bounds_of(world, {"since_last_changed": query["unsubscribed_since"]}, "last_changed")
        tests.append(lambda member: bool(since is None or member["last_changed"] >= since))
    if "email_type" in query:
        tests.append(lambda member: bool(member["email_type"] == query["email_type"]))
    if flag_in(query, "vip_only"):
        tests.append(lambda member: bool(member["vip"]))
    return tests


def _within(member: Json, *, name: str, low: str, high: str | None) -> bool:
    return bool(low <= member[name] and (high is None or member[name] <= high))


def get_member(_: World, call: Call) -> Answer:
    return Answer(200, _member_of(call)[1])


def create_member(world: World, call: Call) -> Answer:
    audience = audience_of(call)
    given = body_of(call, MEMBER, ("email_address", "status"))
    known = find(audience, given["email_address"])
    if known and not _counts_as_new(world, known):
        raise _exists(given["email_address"])
    skip = flag_in(query_of(call), "skip_merge_validation")
    return Answer(200, put(world, audience, known, given, given["status"], skip=skip, with_tags=True))


def upsert_member(world: World, call: Call) -> Answer:
    audience = audience_of(call)
    given = body_of(call, MEMBER, ("email_address", "status_if_new"))
    one_of(given, "status_if_new", STATUSES)
    known = find(audience, call.parts["member"])
    skip = flag_in(query_of(call), "skip_merge_validation")
    is_new = known is None or _counts_as_new(world, known)
    status = given.get("status", given["status_if_new"] if is_new else None)
    return Answer(200, put(world, audience, known, given, status, skip=skip))


def update_member(world: World, call: Call) -> Answer:
    audience, known = _member_of(call)
    given = body_of(call, MEMBER)
    skip = flag_in(query_of(call), "skip_merge_validation")
    return Answer(200, put(world, audience, known, given, given.get("status"), skip=skip))


def archive_member(world: World, call: Call) -> Answer:
    audience, known = _member_of(call)
    if known["status"] == "archived":
        raise refused(405, "This list member cannot be removed. Please contact support.")
    _keep(world, audience, {**known, "status": "archived", "last_changed": world.stamp()})
    tell(world, audience, "unsubscribe", known, "api", action="delete", reason="manual")
    world.effect("member.archived")
    return NO_CONTENT


def erase_member(world: World, call: Call) -> Answer:
    audience, known = _member_of(call)
    audience.members.remove(known["unique_email_id"])
    audience.erased.add(known["id"])
    tell(world, audience, "unsubscribe", known, "api", action="delete", reason="manual")
    world.effect("member.erased")
    return NO_CONTENT


def _counts_as_new(world: World, member: Json) -> bool:
    return bool(member["status"] == "archived" and world.choices["archived_are_new"])


def _exists(address: str) -> RefusedError:
    message = f"{address} is already a list member. Use PUT to insert or update list members."
    return RefusedError(problem(400, message, "Member Exists"))


def put(
    world: World,
    audience: Audience,
    known: Json | None,
    given: Json,
    status: str | None,
    *,
    skip: bool = False,
    with_tags: bool = False,
    source: str = "api",
) -> Json:
    """Store a member who is new (`known` is None) or changed, and return the document."""
    check_email(given)
    one_of({} if status is None else {"status": status}, "status", STATUSES)
    address = str(
        given["email_address"] if known is None else given.get("email_address", known["email_address"])
    )
    _check_consent(world, audience, known, address, status, source)
    other = find(audience, address)
    if other is not None and (known is None or other["id"] != known["id"]):
        raise _exists(address)
    old = known or _blank(world, audience, address)
    changed = {**old, **{key: given[key] for key in _COPIED if key in given}}
    for key in _MERGED:
        changed[key] = {**old[key], **given.get(key, {})}
    changed["merge_fields"] = _merges(world, audience, old, given.get("merge_fields", {}), skip=skip)
    for key in ("timestamp_signup", "timestamp_opt"):
        if changed[key] != old[key]:
            found = moment(changed, key)
            changed[key] = "" if found is None else _written(found)
    changed.update(email_address=address, id=hash_of(address))
    if status is not None:
        changed["status"] = status
    if status == "subscribed" and old["status"] != "subscribed" and "timestamp_opt" not in given:
        changed["timestamp_opt"] = world.stamp()
    if status == "pending" and old["status"] != "pending" and "timestamp_signup" not in given:
        changed["timestamp_signup"] = world.stamp()
    if with_tags:
        changed["tags"] = _tagged(audience, changed["tags"], [(t, True) for t in _tag_names(given)])
        changed["tags_count"] = len(changed["tags"])
    merges = changed["merge_fields"]
    changed["full_name"] = f"{merges.get('FNAME', '')} {merges.get('LNAME', '')}".strip()
    if known is not None and changed == known:
        return known
    changed["last_changed"] = world.stamp()
    _keep(world, audience, changed)
    world.effect("member.created" if known is None else "member.updated")
    _tell_change(world, audience, known, changed, source)
    return changed


def _check_consent(
    world: World, audience: Audience, known: Json | None, address: str, status: str | None, source: str
) -> None:
    """Refuse a status that takes the contact's own word."""
    joins = status == "subscribed" and (known is None or known["status"] != "subscribed")
    asks = audience.document["double_optin"] and world.choices["double_optin_needs_pending"]
    if joins and asks and source == "api":
        raise invalid([fault("status", "This audience asks for confirmation: use pending.")])
    barred = known is None and hash_of(address) in audience.erased and world.choices["erased_are_barred"]
    if barred and status != "pending":
        message = (
            f"{address} was permanently deleted and cannot be re-imported. "
            "The contact must re-subscribe to get back on the list."
        )
        raise RefusedError(problem(400, message, "Forgotten Email Not Subscribed"))


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


def _keep(world: World, audience: Audience, member: Json) -> None:
    audience.members.put(member["unique_email_id"], member)
    audience.erased.discard(member["id"])


def _blank(world: World, audience: Audience, address: str) -> Json:
    return {
        "id": hash_of(address),
        "email_address": address,
        "unique_email_id": world.new_id(10),
        "contact_id": world.new_id(32),
        "full_name": "",
        "web_id": world.number(),
        "email_type": "html",
        "status": "",
        "merge_fields": dict.fromkeys(audience.merge_fields, ""),
        "interests": {},
        "stats": {"avg_open_rate": 0, "avg_click_rate": 0},
        "ip_signup": "",
        "timestamp_signup": "",
        "ip_opt": "",
        "timestamp_opt": "",
        "member_rating": 2,
        "last_changed": "",
        "language": "",
        "vip": False,
        "email_client": "",
        "location": {"latitude": 0, "longitude": 0, "country_code": "", "timezone": ""},
        "marketing_permissions": [],
        "source": "API - Generic",
        "tags_count": 0,
        "tags": [],
        "list_id": audience.document["id"],
    }


def _merges(world: World, audience: Audience, old: Json, given: Json, *, skip: bool) -> Json:
    found: list[Json] = []
    kept: Json = {**dict.fromkeys(audience.merge_fields, ""), **old["merge_fields"]}
    for tag, value in given.items():
        declared = audience.merge_fields.get(tag)
        if declared is None:
            if world.choices["unknown_merge_fields"] == "refuse":
                found.append(fault(f"merge_fields.{tag}", "The field is not known to this list."))
            continue
        message = _merge_fault(world, declared, value)
        if message:
            found.append(fault(tag, message))
        kept[tag] = value
    if not skip:
        found += [
            fault(tag, "This value should not be blank.")
            for tag, declared in audience.merge_fields.items()
            if declared["required"] and kept[tag] in ("", None, {})
        ]
    if found:
        raise invalid(found, "Your merge fields were invalid.")
    return kept


def _merge_fault(world: World, declared: Json, value: Any) -> str | None:
    kind = declared["type"]
    if value == "":
        return None
    if kind == "address":
        if not isinstance(value, dict) or not all(isinstance(part, str) for part in value.values()):
            return "Please enter a complete address"
    elif kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is_number(value):
            return "Please enter a number"
    elif not isinstance(value, str) and (isinstance(value, bool) or not isinstance(value, int | float)):
        return "This value should be of type string."
    elif len(str(value)) > (most := world.choices["longest_merge_text"]):
        return f"This value is too long. It should have {most} characters or less."
    elif kind == "date" and not _is_date(str(value)):
        return "Please enter the date"
    elif kind in ("radio", "dropdown") and value not in declared["options"].get("choices", [value]):
        return "Value must be one of: " + ", ".join(declared["options"]["choices"])
    return None


def _is_number(value: float | str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_date(value: str) -> bool:
    try:
        date.fromisoformat(value[:10])
    except ValueError:
        return False
    return True


# Tags.


def list_tags(_: World, call: Call) -> Answer:
    member = _member_of(call)[1]
    return page_of("tags", query_of(call), member["tags"])


def change_tags(world: World, call: Call) -> Answer:
    audience, member = _member_of(call)
    given = body_of(call, {"tags": list, "is_syncing": bool}, ("tags",))
    changes = []
    for place, tag in enumerate(objects_in(given, "tags")):
        check(tag, {"name": str, "status": str}, ("name", "status"), f"tags.item:{place}.")
        one_of(tag, "status", ("active", "inactive"))
        changes.append((tag["name"], tag["status"] == "active"))
    tags = _tagged(audience, member["tags"], changes)
    if tags != member["tags"]:
        changed = {**member, "tags": tags, "tags_count": len(tags), "last_changed": world.stamp()}
        _keep(world, audience, changed)
        world.effect("member.tagged")
    return NO_CONTENT


def _tagged(audience: Audience, tags: Sequence[Json], changes: Sequence[tuple[str, bool]]) -> list[Json]:
    held = {tag["name"]: tag for tag in tags}
    for name, active in changes:
        number = audience.tags.setdefault(name, len(audience.tags) + 1)
        if active:
            held.setdefault(name, {"id": number, "name": name})
        else:
            held.pop(name, None)
    return list(held.values())


def _tag_names(given: Json) -> list[str]:
    names = []
    for place, tag in enumerate(given.get("tags", ())):
        # Creating takes plain names; the object form of the tags call is taken as well.
        name = tag.get("name") if isinstance(tag, dict) else tag
        if not isinstance(name, str):
            raise invalid([fault(f"tags.item:{place}", "Schema describes string")])
        names.append(name)
    return names


# Many at once.


def subscribe_many(world: World, call: Call) -> Answer:
    """POST /lists/{id}: at most 500, each with its own outcome."""
    audience, query = audience_of(call), query_of(call)
    types = {"members": list, "update_existing": bool, "sync_tags": bool}
    given = body_of(call, types, ("members",))
    members = objects_in(given, "members")
    if len(members) > MOST_AT_ONCE:
        raise invalid([fault("members", f"This collection should contain {MOST_AT_ONCE} elements or less.")])
    created: list[Json] = []
    updated: list[Json] = []
    errors: list[Json] = []
    seen: set[str] = set()
    for entry in members:
        address = str(entry.get("email_address", ""))
        if address.lower() in seen:
            if not flag_in(query, "skip_duplicate_check"):
                errors.append(_entry(address, "This address was sent more than once.", "ERROR_DUPLICATE"))
            continue
        seen.add(address.lower())
        known = find(audience, address) if address else None
        is_new = known is None or _counts_as_new(world, known)
        if not is_new and not given.get("update_existing", False):
            message = (
                f"{address} is already a list member, do you want to update? "
                "please provide update_existing:true in the request body"
            )
            errors.append(_entry(address, message, "ERROR_CONTACT_EXISTS"))
            continue
        try:
            member = _subscribe(world, audience, known, entry, query, is_new=is_new, given=given)
        except RefusedError as refusal:
            errors.append(_worded(address, refusal.answer.body))
            continue
        (created if is_new else updated).append(member)
    body = {
        "new_members": created,
        "updated_members": updated,
        "errors": errors,
        "total_created": len(created),
        "total_updated": len(updated),
        "error_count": len(errors),
    }
    return Answer(200, body)


def _subscribe(
    world: World,
    audience: Audience,
    known: Json | None,
    entry: Json,
    query: Mapping[str, str],
    *,
    is_new: bool,
    given: Json,
) -> Json:
    check(entry, MEMBER, ("email_address",))
    status = entry.get("status", entry.get("status_if_new") if is_new else None)
    if is_new:
        check({"status": status}, {}, ("status",))
    if known and given.get("sync_tags", False):
        kept = set(_tag_names(entry))
        known = {**known, "tags": [tag for tag in known["tags"] if tag["name"] in kept]}
    skip = flag_in(query, "skip_merge_validation")
    return put(world, audience, known, entry, status, skip=skip, with_tags=True)


def _entry(address: str, error: str, code: str, where: str = "", message: str = "") -> Json:
    return {
        "email_address": address,
        "error": error,
        "error_code": code,
        "field": where,
        "field_message": message,
    }


def _worded(address: str, body: Json) -> Json:
    first = next(iter(body.get("errors", ())), fault("", ""))
    error = first["message"] if body["detail"] == INVALID else body["detail"]
    return _entry(address, error, "ERROR_GENERIC", first["field"], first["message"])


# Webhooks.


RETRY_WAITS = (60.0, 120.0, 240.0, 480.0, 960.0, 1_920.0)  # growing, over 75 minutes in all
DELIVERY_SECONDS = 10.0


def list_webhooks(_: World, call: Call) -> Answer:
    audience = audience_of(call)
    found = list(audience.webhooks.values())
    return page_of("webhooks", query_of(call), found, list_id=audience.document["id"])


def create_webhook(world: World, call: Call) -> Answer:
    audience = audience_of(call)
    given = body_of(call, {"url": str, "events": dict, "sources": dict}, ("url",))
    if not given["url"].startswith(("http://", "https://")):
        raise invalid([fault("url", "This value is not a valid URL.")])
    if any(hook["url"] == given["url"] for hook in audience.webhooks.values()):
        raise refused(400, "Sorry, you can't set up multiple WebHooks for one URL")
    signed = bool(world.choices["webhooks_are_signed"])
    made = {
        "id": world.new_id(),
        "url": given["url"],
        **_switches(given, "events", EVENTS, {}),
        **_switches(given, "sources", SOURCES, {}),
        "signing_enabled": signed,
        "list_id": audience.document["id"],
    }
    audience.webhooks[made["id"]] = made
    world.effect("webhook.created")
    world.send(Letter("probe", made["url"], b"", "text/plain", lambda _: {}, (), DELIVERY_SECONDS, "GET"))
    if not signed:
        return Answer(200, made)
    world.secrets[made["id"]] = world.new_id(32)
    return Answer(200, {**made, "signing_secret": world.secrets[made["id"]]})


def _switches(given: Json, name: str, known: Sequence[str], old: Json) -> Json:
    sent = given.get(name, {})
    if found := mistyped(sent, dict.fromkeys(known, bool), f"{name}."):
        raise invalid(found)
    return {name: {key: sent.get(key, old.get(key, True)) for key in known}}


def _webhook_of(call: Call) -> tuple[Audience, Json]:
    audience = audience_of(call)
    found = audience.webhooks.get(call.parts["webhook"])
    if found is None:
        raise refused(404)
    return audience, found


def get_webhook(_: World, call: Call) -> Answer:
    return Answer(200, _webhook_of(call)[1])


def update_webhook(world: World, call: Call) -> Answer:
    audience, hook = _webhook_of(call)
    given = body_of(call, {"url": str, "events": dict, "sources": dict})
    changed = {
        **hook,
        "url": given.get("url", hook["url"]),
        **_switches(given, "events", EVENTS, hook["events"]),
        **_switches(given, "sources", SOURCES, hook["sources"]),
    }
    audience.webhooks[hook["id"]] = changed
    world.effect("webhook.updated")
    return Answer(200, changed)


def delete_webhook(world: World, call: Call) -> Answer:
    audience, hook = _webhook_of(call)
    del audience.webhooks[hook["id"]]
    world.secrets.pop(hook["id"], None)
    world.effect("webhook.deleted")
    return NO_CONTENT


def _tell_change(world: World, audience: Audience, old: Json | None, new: Json, source: str) -> None:
    before = old["status"] if old else ""
    if old and old["email_address"] != new["email_address"]:
        tell(
            world,
            audience,
            "upemail",
            new,
            source,
            new_id=new["unique_email_id"],
            new_email=new["email_address"],
            old_email=old["email_address"],
        )
    if new["status"] != before and new["status"] in ("subscribed", "unsubscribed", "cleaned"):
        kinds = {"subscribed": "subscribe", "unsubscribed": "unsubscribe", "cleaned": "cleaned"}
        more = {
            "unsubscribed": {"action": "unsub", "reason": "manual", "campaign_id": ""},
            "cleaned": {"reason": "hard", "campaign_id": ""},
        }
        tell(world, audience, kinds[new["status"]], new, source, **more.get(new["status"], {}))
    elif old and old["merge_fields"] != new["merge_fields"]:
        tell(world, audience, "profile", new, source)


def tell(world: World, audience: Audience, kind: str, member: Json, source: str, **more: str) -> None:
    """Write down a delivery for every webhook that wants it."""
    hooks = [
        hook
        for hook in audience.webhooks.values()
        if hook["events"].get(kind) and hook["sources"].get(source)
    ]
    if not hooks:
        return
    now = world.clock.now()
    fired = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%d %H:%M:%S")
    data = {
        "id": member["unique_email_id"],
        "list_id": audience.document["id"],
        "email": member["email_address"],
        "email_type": member["email_type"],
        "ip_opt": member["ip_opt"],
        "ip_signup": member["ip_signup"],
        **more,
    }
    merges = {"EMAIL": member["email_address"], **member["merge_fields"], "INTERESTS": ""}
    pairs = [("type", kind), ("fired_at", fired)]
    pairs += [(f"data[{name}]", str(value)) for name, value in data.items()]
    for tag, value in merges.items():
        if isinstance(value, dict):
            pairs += [(f"data[merges][{tag}][{part}]", str(text)) for part, text in value.items()]
        else:
            pairs.append((f"data[merges][{tag}]", str(value)))
    for hook in hooks:
        write_delivery(world, hook, pairs)


def write_delivery(world: World, hook: Json, pairs: Sequence[tuple[str, str]]) -> None:
    """Send a form-encoded delivery, signed when the webhook has a secret, and keep what was sent."""
    body = urlencode(pairs)
    secret = world.secrets.get(hook["id"])

    def sign(_: int = 0) -> Mapping[str, str]:
        return {"X-Mailchimp-Signature": signature(secret, int(world.clock.now()), body)} if secret else {}

    kind = "application/x-www-form-urlencoded"
    headers = {"Content-Type": kind, **sign()}
    world.deliveries.append({"url": hook["url"], "webhook": hook["id"], "headers": headers, "body": body})
    world.send(Letter(pairs[0][1], hook["url"], body.encode(), kind, sign, RETRY_WAITS, DELIVERY_SECONDS))


def signature(secret: str, seconds: int, body: str) -> str:
    """Return the signature header of a delivery sent at `seconds`."""
    digest = hmac.new(secret.encode(), f"{seconds}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"
