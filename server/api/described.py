"""What the API description says of the whole, and how it shows good answers."""

from enum import Enum
from typing import Any

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example

ABOUT = """\
Keeps a venue's events, customers and orders in step with outside providers.

Callers send a JSON Web Token as `Authorization: Bearer …`. It names the caller (`userId`, `id` or \
`sub`), the `role` and the venue (`venueId`, or `venueIds` for several), and must have `exp`. An `admin` \
may do everything, a `venue_admin` manages its own venues' integrations, a `user` reads its own venues'. \
A caller of another venue gets the same answer whether or not the thing exists.

Bodies are JSON; requests have camelCase names, rows in answers have snake_case ones. Times are RFC 3339 \
in UTC. A good answer has `success: true` and `data` or a `message`. Every other one has `success: \
false`, a sentence in `error`, a `code`, `details` that name fields, a `timestamp` and the `requestId`, \
which is also the `X-Request-Id` header; send that header to choose it. A name that isn't known in a \
body is refused, with the nearest one that is.

Lists take `limit` (at most 200) and `offset`, or a `cursor`: `meta.next_cursor` of the page before. \
Rows added meanwhile shift an offset, never a cursor.

A caller may send 100 requests a minute, 50 to administrators' routes, and a provider 1000 deliveries from \
one address, unless the operator says otherwise. Answers say in `RateLimit-Limit`, `RateLimit-Remaining` and \
`RateLimit-Reset` (in seconds) where a caller stands; over the limit it is 429, and `Retry-After` says when \
to try again. Without a token a caller is its address.

`Idempotency-Key` makes sending a request again safe: the same key and body get the first answer again \
for 24 hours, with `Idempotent-Replayed: true`. The same key with another body is refused, and so is one \
whose first request isn't answered yet. A request that failed isn't kept: sending it again is trying \
again.
"""


class _Null(Enum):
    """A null that survives: the framework leaves None out of what it describes, in examples too."""

    NULL = None


def good(kind: type, description: str, *examples: Example) -> ResponseSpec:
    """Describe a good answer, with examples."""
    shown = [Example(summary=each.summary, value=_with_nulls(each.value)) for each in examples]
    return ResponseSpec(kind, generate_examples=False, description=description, examples=shown)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _Null.NULL if item is None else _with_nulls(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return value
