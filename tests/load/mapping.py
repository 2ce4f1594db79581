"""Measure mappings, of plain paths and with values in braces, against the same written by hand.

Prints one JSON line for each case: `ratio` is the mapping's time over the hand-written function's, both taken
in this process, alternating, the best of several rounds.
"""

from __future__ import annotations

import json
import timeit
from decimal import Decimal
from typing import Any

from engine.expressions import Path
from engine.fields import Field, FieldCatalog
from engine.manifest import Entity, Resource
from engine.mapping import Mapping, MappingScope, compile_mapping

ROUNDS = 200
REPEATS = 1_000  # short, so that some round is undisturbed on a busy machine

# Local field, remote path: half of them nested, as providers have it.
EIGHT = {
    "first_name": "given_name",
    "last_name": "family_name",
    "email": "email_address",
    "phone": "phone_number",
    "city": "address.locality",
    "postal_code": "address.postal_code",
    "country": "address.country",
    "updated": "updated_at",
}
THIRTY = (
    EIGHT
    | {f"plain_{n}": f"field_{n}" for n in range(11)}
    | {f"deep_{n}": f"group.part.field_{n}" for n in range(11)}
)


def eight_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    address = record.get("address") or {}
    return {
        "first_name": record.get("given_name"),
        "last_name": record.get("family_name"),
        "email": record.get("email_address"),
        "phone": record.get("phone_number"),
        "city": address.get("locality"),
        "postal_code": address.get("postal_code"),
        "country": address.get("country"),
        "updated": record.get("updated_at"),
    }


def eight_back_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "given_name": record.get("first_name"),
        "family_name": record.get("last_name"),
        "email_address": record.get("email"),
        "phone_number": record.get("phone"),
        "address": {
            "locality": record.get("city"),
            "postal_code": record.get("postal_code"),
            "country": record.get("country"),
        },
        "updated_at": record.get("updated"),
    }


def thirty_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    address = record.get("address") or {}
    part = (record.get("group") or {}).get("part") or {}
    return {
        "first_name": record.get("given_name"),
        "last_name": record.get("family_name"),
        "email": record.get("email_address"),
        "phone": record.get("phone_number"),
        "city": address.get("locality"),
        "postal_code": address.get("postal_code"),
        "country": address.get("country"),
        "updated": record.get("updated_at"),
        "plain_0": record.get("field_0"),
        "plain_1": record.get("field_1"),
        "plain_2": record.get("field_2"),
        "plain_3": record.get("field_3"),
        "plain_4": record.get("field_4"),
        "plain_5": record.get("field_5"),
        "plain_6": record.get("field_6"),
        "plain_7": record.get("field_7"),
        "plain_8": record.get("field_8"),
        "plain_9": record.get("field_9"),
        "plain_10": record.get("field_10"),
        "deep_0": part.get("field_0"),
        "deep_1": part.get("field_1"),
        "deep_2": part.get("field_2"),
        "deep_3": part.get("field_3"),
        "deep_4": part.get("field_4"),
        "deep_5": part.get("field_5"),
        "deep_6": part.get("field_6"),
        "deep_7": part.get("field_7"),
        "deep_8": part.get("field_8"),
        "deep_9": part.get("field_9"),
        "deep_10": part.get("field_10"),
    }


def thirty_back_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    return {
        **eight_back_by_hand(record),
        "field_0": record.get("plain_0"),
        "field_1": record.get("plain_1"),
        "field_2": record.get("plain_2"),
        "field_3": record.get("plain_3"),
        "field_4": record.get("plain_4"),
        "field_5": record.get("plain_5"),
        "field_6": record.get("plain_6"),
        "field_7": record.get("plain_7"),
        "field_8": record.get("plain_8"),
        "field_9": record.get("plain_9"),
        "field_10": record.get("plain_10"),
        "group": {
            "part": {
                "field_0": record.get("deep_0"),
                "field_1": record.get("deep_1"),
                "field_2": record.get("deep_2"),
                "field_3": record.get("deep_3"),
                "field_4": record.get("deep_4"),
                "field_5": record.get("deep_5"),
                "field_6": record.get("deep_6"),
                "field_7": record.get("deep_7"),
                "field_8": record.get("deep_8"),
                "field_9": record.get("deep_9"),
                "field_10": record.get("deep_10"),
            }
        },
    }


# Three values in braces: an enumeration, a text put together, and an amount in cents.
BRACES: dict[str, Any] = {
    "accepts_marketing": {
        "path": "preferences.marketing",
        "push": "{{ 'subscribed' if value else 'unsubscribed' }}",
        "pull": "{{ value == 'subscribed' }}",
    },
    "full_name": {
        "path": "display_name",
        "push": "{{ record.first_name ~ ' ' ~ record.last_name }}",
        "pull": "{{ record.given_name ~ ' ' ~ record.family_name }}",
    },
    "price": {
        "path": "unit_amount",
        "push": "{{ value | minor_units(venue.currency) }}",
        "pull": "{{ value | major_units(venue.currency) }}",
    },
}
FIVE = {"first_name": "given_name", "last_name": "family_name", **BRACES}
TWENTY_SEVEN = {**dict(list(THIRTY.items())[:24]), **BRACES}

DECIMALS = {"EUR": 2, "JPY": 0}  # what a mapping by hand would know of currencies


def braces_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    decimals = DECIMALS["EUR"]
    return {
        "accepts_marketing": (record.get("preferences") or {}).get("marketing") == "subscribed",
        "full_name": f"{record['given_name']} {record['family_name']}",
        "price": Decimal(record["unit_amount"]).scaleb(-decimals),
    }


def braces_back_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    scaled = record["price"].scaleb(DECIMALS["EUR"])
    if scaled != scaled.to_integral_value():
        raise ValueError("an amount with too many decimals")
    return {
        "preferences": {"marketing": "subscribed" if record.get("accepts_marketing") else "unsubscribed"},
        "display_name": f"{record['first_name']} {record['last_name']}",
        "unit_amount": int(scaled),
    }


def five_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "first_name": record.get("given_name"),
        "last_name": record.get("family_name"),
        **braces_by_hand(record),
    }


def five_back_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "given_name": record.get("first_name"),
        "family_name": record.get("last_name"),
        **braces_back_by_hand(record),
    }


def twenty_seven_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    part = (record.get("group") or {}).get("part") or {}
    return {
        **eight_by_hand(record),
        "plain_0": record.get("field_0"),
        "plain_1": record.get("field_1"),
        "plain_2": record.get("field_2"),
        "plain_3": record.get("field_3"),
        "plain_4": record.get("field_4"),
        "plain_5": record.get("field_5"),
        "plain_6": record.get("field_6"),
        "plain_7": record.get("field_7"),
        "plain_8": record.get("field_8"),
        "plain_9": record.get("field_9"),
        "plain_10": record.get("field_10"),
        "deep_0": part.get("field_0"),
        "deep_1": part.get("field_1"),
        "deep_2": part.get("field_2"),
        "deep_3": part.get("field_3"),
        "deep_4": part.get("field_4"),
        **braces_by_hand(record),
    }


def twenty_seven_back_by_hand(record: dict[str, Any]) -> dict[str, Any]:
    return {
        **eight_back_by_hand(record),
        "field_0": record.get("plain_0"),
        "field_1": record.get("plain_1"),
        "field_2": record.get("plain_2"),
        "field_3": record.get("plain_3"),
        "field_4": record.get("plain_4"),
        "field_5": record.get("plain_5"),
        "field_6": record.get("plain_6"),
        "field_7": record.get("plain_7"),
        "field_8": record.get("plain_8"),
        "field_9": record.get("plain_9"),
        "field_10": record.get("plain_10"),
        "group": {
            "part": {
                "field_0": record.get("deep_0"),
                "field_1": record.get("deep_1"),
                "field_2": record.get("deep_2"),
                "field_3": record.get("deep_3"),
                "field_4": record.get("deep_4"),
            }
        },
        **braces_back_by_hand(record),
    }


def compiled(paths: dict[str, Any]) -> Mapping:
    """Return a mapping of these rules."""
    resource = Resource("customer", Path.parse("id"), FieldCatalog({}))
    fields = FieldCatalog({name: Field(name) for name in paths})
    entity = Entity("customer", "customers", None, "id", "venue_id", "updated_at", fields)
    mapping, faults = compile_mapping({"direction": "bidirectional", "fields": paths}, resource, entity)
    if mapping is None:
        raise SystemExit(f"the mapping doesn't compile: {faults}")
    return mapping


def sample(paths: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": "c1"}
    for rule in paths.values():
        text = rule if isinstance(rule, str) else rule["path"]
        Path.parse(text).put(record, 1999 if text == "unit_amount" else f"value of {text}")
    return record


def best(calls: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, float]:
    """Return the seconds each statement takes, by name; every statement comes with the names it uses."""
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, (statement, names) in calls.items():
            timer = timeit.Timer(statement, globals=names)
            times[name] = min(times[name], timer.timeit(REPEATS) / REPEATS)
    return times


def measure() -> list[dict[str, Any]]:
    """Return one result for each number of paths and each way."""
    results = []
    for paths, pull_by_hand, push_by_hand, at_most in (
        (EIGHT, eight_by_hand, eight_back_by_hand, 1.5),
        (THIRTY, thirty_by_hand, thirty_back_by_hand, 1.5),
        (FIVE, five_by_hand, five_back_by_hand, 6),
        (TWENTY_SEVEN, twenty_seven_by_hand, twenty_seven_back_by_hand, 4),
    ):
        mapping, scope = compiled(paths), MappingScope({"id": "v1", "currency": "EUR"})
        remote = sample(paths)
        local = {"id": "c1", **pull_by_hand(remote)}
        for way, function, by_hand, record in (
            ("pull", mapping.pull, pull_by_hand, remote),
            ("push", mapping.push, push_by_hand, local),
        ):
            if function(record, scope) != by_hand(record):
                raise SystemExit(f"{way} of {len(paths)} paths differs from the hand-written result")
            names = {"mapping": mapping, "record": record, "scope": scope, "by_hand": by_hand}
            times = best(
                {
                    "mapping": (f"mapping.{way}(record, scope)", names),
                    "by_hand": ("by_hand(record)", names),
                }
            )
            results.append(
                {
                    "bench": "mapping",
                    "paths": len(paths),
                    "way": way,
                    "microseconds": round(times["mapping"] * 1e6, 3),
                    "by_hand_microseconds": round(times["by_hand"] * 1e6, 3),
                    "ratio": round(times["mapping"] / times["by_hand"], 2),
                    "in_braces": sum(not isinstance(rule, str) for rule in paths.values()),
                    "at_most": at_most,
                }
            )
    return results


def main() -> None:
    for result in measure():
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
