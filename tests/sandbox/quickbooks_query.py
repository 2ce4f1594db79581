"""QuickBooks' query language: one SELECT over one entity, read strictly and answered from the indexes.

    SELECT * [, Field…] | Field… | COUNT(*)  FROM Entity
    [WHERE Field = < > <= >= LIKE IN … AND …]  [ORDERBY Field [ASC|DESC], …]
    [STARTPOSITION n]  [MAXRESULTS m]

Whole rows come back whatever fields are named. Text is compared without regard to case.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

from tests.sandbox.core import Answer, Call
from tests.sandbox.quickbooks_world import Company, Table, World, company_of, refused, seconds_of
from tests.sandbox.shelf import Json

DEFAULT_ROWS = 100
MOST_ROWS = 1000
CHANGED = "MetaData.LastUpdatedTime"
# Orders that need no sorting: rows are kept in this one.
_WALKED = (
    (),
    *(((CHANGED, down),) for down in (False, True)),
    *(((CHANGED, down), ("Id", down)) for down in (False, True)),
)
# Orders that need no sorting: rows are kept in this one.
_WALKED = (
    (),
    *(((CHANGED, down),) for down in (False, True)),
    *(((CHANGED, down), ("Id", down)) for down in (False, True)),
)

_TIMES = {"MetaData.CreateTime": "time", CHANGED: "time"}
_COMMON = {"Id": "text", **_TIMES}
_NAMED = {**_COMMON, "Active": "flag"}
_PERSON = {
    **_NAMED,
    **dict.fromkeys(("DisplayName", "GivenName", "MiddleName", "FamilyName", "CompanyName"), "text"),
    "PrintOnCheckName": "text",
    "PrimaryEmailAddr": "text",
}
_SALE = {
    **_COMMON,
    **dict.fromkeys(("DocNumber", "CustomerRef"), "text"),
    "TxnDate": "date",
    "TotalAmt": "number",
    "Balance": "number",
}
# What may stand in WHERE and ORDERBY, and how it compares.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "Account": {
        **_NAMED,
        **dict.fromkeys(("Name", "AccountType", "AccountSubType", "Classification"), "text"),
        "FullyQualifiedName": "text",
    },
    "CompanyInfo": _COMMON,
    "CreditMemo": _SALE,
    "Customer": {**_PERSON, "FullyQualifiedName": "text", "Balance": "number"},
    "Employee": _PERSON,
    "Invoice": {**_SALE, "DueDate": "date"},
    "Item": {
        **_NAMED,
        **dict.fromkeys(("Name", "Sku", "Type", "FullyQualifiedName"), "text"),
        "UnitPrice": "number",
    },
    "Payment": {**_COMMON, "CustomerRef": "text", "TxnDate": "date", "TotalAmt": "number"},
    "PaymentMethod": {**_NAMED, "Name": "text"},
    "Preferences": _COMMON,
    "RefundReceipt": _SALE,
    "SalesReceipt": _SALE,
    "Vendor": {**_PERSON, "Balance": "number"},
}
_ENTITIES = {name.casefold(): name for name in COLUMNS}

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\['\\])*')|(?P<number>-?\d+(?:\.\d+)?)(?![\w.])"
    r"|(?P<word>[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z][A-Za-z0-9]*)*)|(?P<sign><=|>=|[=<>(),*]))"
)
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. `values` has more than one entry for IN only."""

    column: str
    sign: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A query as read."""

    entity: str
    counts: bool
    fields: tuple[str, ...]
    where: tuple[Condition, ...]
    order: tuple[tuple[str, bool], ...]  # column, descending
    start: int
    rows: int


class _Tokens:
    """What is left of a query's text."""

    def __init__(self, text: str) -> None:
        self._found: list[tuple[str, str]] = []
        place = 0
        text = text.strip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise _unreadable(f"Lexical error at column {place + 1}. Encountered: {text[place:][:10]!r}")
            kind = str(match.lastgroup)
            self._found.append((kind, match[kind]))
            place = match.end()
        self._next = 0

    def peek(self) -> tuple[str, str]:
        """Return the next token, `("end", "<EOF>")` after the last."""
        return self._found[self._next] if self._next < len(self._found) else ("end", "<EOF>")

    def take(self, *kinds: str) -> str:
        """Return the next token, which must be of one of these kinds."""
        kind, found = self.peek()
        if kind not in kinds:
            raise _unreadable(f'Encountered "{found}" where {" or ".join(kinds)} was expected')
        self._next += 1
        return found

    def maybe(self, word: str) -> bool:
        """Take the next token when it is this keyword or sign."""
        kind, found = self.peek()
        if kind in ("word", "sign") and found.casefold() == word:
            self._next += 1
            return True
        return False

    def need(self, word: str) -> None:
        """Take a keyword or sign, which must be there."""
        if not self.maybe(word):
            raise _unreadable(f'Encountered "{self.peek()[1]}" where "{word}" was expected')


def _unreadable(detail: str) -> Exception:
    return refused("4000", f"QueryParserError: {detail}")


def _invalid(detail: str) -> Exception:
    return refused("4001", f"QueryValidationError: {detail}")


def read_query(text: str) -> Query:
    """Read a query; refuse what the language has not."""
    tokens = _Tokens(text)
    tokens.need("select")
    counts = tokens.maybe("count")
    fields: list[str] = []
    if counts:
        for sign in "(*)":
            tokens.need(sign)
    else:
        fields.append(tokens.take("word", "sign"))
        while tokens.maybe(","):
            fields.append(tokens.take("word"))
        if not (fields[0] == "*" or fields[0][0].isalpha()):
            raise _unreadable(f'Encountered "{fields[0]}"')
    tokens.need("from")
    named = tokens.take("word")
    entity = _ENTITIES.get(named.casefold())
    if entity is None:
        raise _invalid(f"Invalid context declaration for {named}")
    where: list[Condition] = []
    if tokens.maybe("where"):
        where.append(_condition(tokens, entity))
        while tokens.maybe("and"):
            where.append(_condition(tokens, entity))
    order: list[tuple[str, bool]] = []
    if tokens.maybe("orderby"):
        order.append(_direction(tokens, entity))
        while tokens.maybe(","):
            order.append(_direction(tokens, entity))
    start = _whole(tokens, "STARTPOSITION", 2**31) if tokens.maybe("startposition") else 1
    rows = _whole(tokens, "MAXRESULTS", MOST_ROWS) if tokens.maybe("maxresults") else DEFAULT_ROWS
    tokens.take("end")
    return Query(entity, counts, tuple(fields), tuple(where), tuple(order), start, rows)


def _column(tokens: _Tokens, entity: str) -> str:
    column = tokens.take("word")
    if column not in COLUMNS[entity]:
        raise _invalid(f"Property {column} not found for Entity {entity}")
    return column


def _direction(tokens: _Tokens, entity: str) -> tuple[str, bool]:
    column = _column(tokens, entity)
    descending = tokens.maybe("desc")
    if not descending:
        tokens.maybe("asc")
    return column, descending


def _whole(tokens: _Tokens, name: str, most: int) -> int:
    number = tokens.take("number")
    if not number.isdigit() or not 1 <= int(number) <= most:
        raise _invalid(f"{name} {number} must be a whole number from 1 to {most}")
    return int(number)


def _condition(tokens: _Tokens, entity: str) -> Condition:
    column = _column(tokens, entity)
    kind = COLUMNS[entity][column]
    if tokens.maybe("in"):
        tokens.need("(")
        values = [_value(tokens, column, kind)]
        while tokens.maybe(","):
            values.append(_value(tokens, column, kind))
        tokens.need(")")
        return Condition(column, "in", tuple(values))
    if tokens.maybe("like"):
        if kind != "text":
            raise _invalid(f"LIKE is for text, {column} is none")
        return Condition(column, "like", (_unquoted(tokens.take("text")),))
    sign = tokens.take("sign")
    if sign not in _SIGNS or (kind == "flag" and sign != "="):
        raise _unreadable(f'Encountered "{sign}" after {column}')
    return Condition(column, sign, (_value(tokens, column, kind),))


def _unquoted(literal: str) -> str:
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _value(tokens: _Tokens, column: str, kind: str) -> Any:
    literal = tokens.take("text", "number", "word")
    text = _unquoted(literal) if literal.startswith("'") else literal
    try:
        match kind:
            case "flag":
                return {"true": True, "false": False}[text.casefold()]
            case "number":
                return Decimal(text)
            case "time":
                return seconds_of(text)
    except (KeyError, ValueError, InvalidOperation) as error:
        raise _invalid(f"value {text!r} is not valid for {column}") from error
    if literal[0].isalpha():
        raise _unreadable(f'Encountered "{literal}"; text stands in single quotes')
    return text.casefold()


# Running it.


def _seen(row: Json, column: str, kind: str) -> Any:
    """Return what a row has in a column, as it compares; None when it has nothing there."""
    head, _, rest = column.partition(".")
    value = row.get(head)
    if rest and value is not None:
        value = value.get(rest)
    if isinstance(value, dict):
        value = value.get("Address", value.get("value"))
    if value is None:
        return None
    match kind:
        case "flag":
            return bool(value)
        case "number":
            return Decimal(str(value))
        case "time":
            return seconds_of(value)
    return str(value).casefold()


def _test(entity: str, condition: Condition) -> Callable[[Json], bool]:
    column, kind = condition.column, COLUMNS[entity][condition.column]
    if condition.sign == "like":
        pieces = map(re.escape, condition.values[0].casefold().split("%"))
        fits = re.compile(".*".join(pieces), re.DOTALL).fullmatch
        return lambda row: (seen := _seen(row, column, kind)) is not None and fits(seen) is not None
    if condition.sign == "in":
        among = frozenset(condition.values)
        return lambda row: _seen(row, column, kind) in among
    compare, wanted = _SIGNS[condition.sign], condition.values[0]
    return lambda row: (seen := _seen(row, column, kind)) is not None and compare(seen, wanted)


def _candidates(query: Query, table: Table) -> tuple[Iterable[str], list[Condition], bool]:
    """Return ids to look at, the conditions still to test, and whether the ids are in the order asked for."""
    rest = list(query.where)
    for condition in query.where:
        if condition.sign not in ("=", "in"):
            continue
        if condition.column == "Id":
            rest.remove(condition)
            return [name for name in dict.fromkeys(condition.values) if name in table.rows], rest, False
        if condition.column in table.found_by:
            rest.remove(condition)
            found, values = table.found_by[condition.column], dict.fromkeys(condition.values)
            return [name for value in values for name in found.get(value, ())], rest, False
    if query.order == (("Id", False),):
        return iter(table.rows), rest, True  # a dict of rows is in the order they were created
    descending = query.order[0][1] if query.order else True
    walked = query.order in _WALKED
    least: list[int] = []
    most: list[int] = []
    for condition in query.where:
        if condition.column == CHANGED and condition.sign in _SIGNS:
            rest.remove(condition)
            second = condition.values[0]
            least += [second + (condition.sign == ">")] if condition.sign in (">", ">=", "=") else []
            most += [second - (condition.sign == "<")] if condition.sign in ("<", "<=", "=") else []
    ordered = table.changed
    if not any(condition.column == "Active" for condition in query.where):
        ordered = table.active
    keys = ordered.walk(
        descending=descending and walked,
        at_least=(max(least), 0) if least else None,
        at_most=(min(most), 10**12) if most else None,
    )
    return (key[2] for key in keys), rest, walked


def _matching(query: Query, company: Company, start: int = 0, stop: int | None = None) -> Iterator[Json]:
    """Yield the rows from one place of the answer to another."""
    table = company.table(query.entity)
    names, rest, sorted_already = _candidates(query, table)
    if not any(condition.column == "Active" for condition in rest) and len(table.active) < len(table.rows):
        names = (name for name in names if table.active.place(name) is not None)
    rest = [each for each in rest if each.column != "Active" or len(set(each.values)) == 1]
    if sorted_already and not rest and not company.hidden:
        # Nothing to test: what comes before the page need not be looked at.
        return map(table.rows.__getitem__, islice(names, start, stop))
    tests = [_test(query.entity, condition) for condition in rest]
    rows: Iterable[Json] = (
        row
        for row in map(table.rows.__getitem__, names)
        if (query.entity, row["Id"]) not in company.hidden and all(test(row) for test in tests)
    )
    return islice(rows if sorted_already else _ordered(query, list(rows)), start, stop)


def _ordered(query: Query, rows: list[Json]) -> Sequence[Json]:
    kinds = COLUMNS[query.entity]
    for column, descending in reversed(query.order or ((CHANGED, True),)):
        kind = kinds[column]

        def rank(row: Json, column: str = column, kind: str = kind) -> tuple[bool, Any]:
            if column == "Id":
                return True, int(row["Id"])
            seen = _seen(row, column, kind)
            return seen is not None, 0 if seen is None else seen

        rows.sort(key=rank, reverse=descending)
    return rows


def run_query(world: World, company: Company, text: str) -> Json:
    """Return the `QueryResponse`; an empty one has neither rows nor numbers in it."""
    query = read_query(text)
    table = company.table(query.entity)
    if query.counts:
        plain = not query.where and not company.hidden
        total = len(table.active) if plain else sum(1 for _ in _matching(query, company))
        return {"QueryResponse": {"totalCount": total}}
    rows = list(_matching(query, company, query.start - 1, query.start - 1 + query.rows))
    if query.entity == "Item" and "Sku" not in query.fields and not world.behaviour.star_has_sku:
        rows = [{name: value for name, value in row.items() if name != "Sku"} for row in rows]
    if not rows:
        return {"QueryResponse": {}}
    return {"QueryResponse": {query.entity: rows, "startPosition": query.start, "maxResults": len(rows)}}


def by_get(world: World, call: Call) -> Answer:
    """GET /v3/company/{realm}/query"""
    text = dict(call.query).get("query", "")
    return world.answered(run_query(world, company_of(call), text))


def by_post(world: World, call: Call) -> Answer:
    """POST /v3/company/{realm}/query, the text as the body."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/text":
        raise refused("500", f"Content type {kind or 'none'} is not taken here.", status=415)
    return world.answered(run_query(world, company_of(call), call.body.decode(errors="replace")))


def known_entities(names: Collection[str]) -> list[str]:
    """Return entities named in any case; refuse one there is not."""
    unknown = [name for name in names if name.casefold() not in _ENTITIES]
    if unknown or not names:
        raise refused("2170", f"Invalid entity {', '.join(unknown) or '(none)'}", "entities")
    return [_ENTITIES[name.casefold()] for name in names]
