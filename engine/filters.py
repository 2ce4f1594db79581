"""The one table of filters: what a value in braces can be piped through.

Each is a plain function of JSON values and exact numbers. None can outgrow its input unnoticed: what makes or
reads a lot counts it (`engine.ceilings`). Libraries that are slow to load are loaded by the first use.

To add a filter: write the function and its line in FILTERS, with an example, and run `hub docs`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import inspect
import json
import math
import re
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation
from functools import cache, lru_cache, partial
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from jinja2 import Undefined

from engine.ceilings import check_size, short, spend, spend_on
from engine.errors import ExpressionError

LONGEST_NAME = 200  # characters of a person's name, a place's or a phone number, to be taken apart


@dataclass(frozen=True, slots=True)
class Filter:
    """A function an expression may pipe a value through: `{{ value | name }}`.

    `example` gives `gives`; both are shown on the reference page, and checked by a test.
    """

    function: Callable[..., Any]
    doc: str
    example: str
    gives: Any


# ISO 4217's exponents other than 2. CLDR, and so babel, differs from ISO for RSD, LBP, PKR and a dozen more:
# its digits are for display, while providers count minor units as ISO does.
_EXPONENTS: Mapping[str, int] = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV",
         "XAF", "XOF", "XPF"),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip


@lru_cache(maxsize=512)
def exponent(currency: str) -> int:
    """Return how many digits follow the point in a currency (ISO 4217): 2 for EUR, 0 for JPY, 3 for KWD.

    Upper or lower case; raises ExpressionError for a code that isn't one.
    """
    from babel.core import get_global

    code = currency.upper()
    if code not in get_global("all_currencies"):
        raise ExpressionError("the currency isn't a code such as EUR")
    return _EXPONENTS.get(code, 2)


def _currency(value: Any) -> int:
    if not isinstance(value, str):
        raise ExpressionError("the currency has no value")
    return exponent(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ExpressionError("a text was expected")
    return value


def _truncate_to(value: Any, length: int) -> str:
    if length < 1:
        raise ExpressionError("a length of at least 1 was expected")
    return cut_text(_text(value), length)


def _first_word(value: Any) -> str | None:
    return next(iter(_text(value).split(None, 1)), None)


def _rest_of_name(value: Any) -> str | None:
    words = _text(value).split(None, 1)
    return words[1].rstrip() if len(words) > 1 else None


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if not old:
        raise ExpressionError("the text to replace can't be empty")
    check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _after_last(value: Any, separator: str) -> str | None:
    _, found, after = _text(value).rpartition(_separator(separator))
    return after or None if found else None


def _before_first(value: Any, separator: str) -> str | None:
    return _text(value).partition(_separator(separator))[0] or None


def _separator(text: str) -> str:
    if not text:
        raise ExpressionError("the text to look for can't be empty")
    return text


def _quoted(value: Any) -> str:
    escaped = as_text(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _quoted_list(value: Any) -> str:
    if not isinstance(value, list | tuple):
        raise ExpressionError("a list was expected")
    spend_on(value)
    quoted = [_quoted(item) for item in value]
    check_size(sum(map(len, quoted)) + 2 * len(quoted))
    return ", ".join(quoted)


def as_text(value: Any) -> str:
    """Return a text, number or truth value as text, exactly; raises ExpressionError for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        if value.is_finite() and abs(value.adjusted()) > 1000:
            raise ExpressionError("the number is out of range")
        return format(value, "f")
    if isinstance(value, int | float | str):
        return str(value)
    raise ExpressionError("a text or a number was expected")


def _integer(value: Any) -> int:
    number = _number(value)
    if number != number.to_integral_value():
        raise ExpressionError("a whole number was expected")
    return int(number)


def _length(value: Any) -> int:
    if not isinstance(value, str | list | tuple | dict):
        raise ExpressionError("a text or a list was expected")
    return len(value)


def _bytes(value: Any) -> bytes:
    text = _text(value)
    try:
        return text.encode("utf-8", "surrogateescape")  # as a body that is no text was read
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _digest(value: Any, algorithm: Callable[[bytes], Any], written: str = "hex") -> str:
    made = algorithm(_bytes(value)).digest()
    if written not in ("hex", "base64"):
        raise ExpressionError("a digest is written in `hex` or `base64`")
    return made.hex() if written == "hex" else base64.b64encode(made).decode()


def _json_number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(as_text(value))
    raise TypeError


# ---- numbers and money ---------------------------------------------------------------------------------

# The largest number taken has 31 digits before the point; more of them than this aren't cut off quietly.
_EXACT = Context(prec=80, traps=[Inexact])
_ROUNDING = Context(prec=80)
_USUAL = 10**18


def _number(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        number = value
    elif (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (isinstance(value, str) and (len(value) > 100 or "_" in value))
    ):
        raise ExpressionError("a number was expected")
    else:
        try:
            # A float is taken as it prints, so 19.99 is 19.99 and not the nearest binary fraction.
            number = Decimal(repr(value) if isinstance(value, float) else value)
        except InvalidOperation:
            raise ExpressionError("a number was expected") from None
    if not number.is_finite() or not -31 < number.adjusted() < 31:
        raise ExpressionError("the number is out of range")
    return number


def _minor_units(value: Any, currency: Any) -> int:
    digits = _currency(currency)
    number = _EXACT.scaleb(_number(value), digits)
    whole = int(number)
    if number != whole:
        raise ExpressionError(f"the amount has more than the {digits} decimals of {currency.upper()}")
    return whole


def _major_units(value: Any, currency: Any) -> Decimal:
    number = value if type(value) is int and -_USUAL < value < _USUAL else _number(value)
    whole = int(number)
    if number != whole:
        raise ExpressionError("an amount in minor units must be whole")
    return _EXACT.scaleb(Decimal(whole), -_currency(currency))


def _rounded(value: Any, digits: Any) -> Decimal:
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= 30:
        raise ExpressionError("a number of digits from 0 to 30 was expected")
    return _number(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, _ROUNDING)


def _round_money(value: Any, currency: Any) -> Decimal:
    return _rounded(value, _currency(currency))


_TRUTHS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "no", "n", "off", "0"), False),
}


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str):
        known = _TRUTHS.get(str(value)[:20].strip().lower())
        if known is not None:
            return known
    raise ExpressionError("true or false was expected, or a text such as yes or no")


# ---- times ---------------------------------------------------------------------------------------------


def _from_epoch(value: Any) -> str:
    try:
        moment = datetime.fromtimestamp(float(_number(value)), UTC)
    except (OverflowError, OSError, ValueError):
        raise ExpressionError("the time is out of range") from None
    return _written(moment)


def _written(moment: datetime) -> str:
    text = moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def _moment(value: Any) -> datetime:
    """Return what a text says, with or without a zone."""
    text = _text(value)
    try:
        return datetime.fromisoformat(text if len(text) < 60 else "")
    except ValueError:
        raise ExpressionError("a time such as 2026-01-31T18:30:00Z was expected") from None


def _zoned(value: Any) -> datetime:
    moment = _moment(value)
    if moment.tzinfo is None:
        raise ExpressionError("the time has no time zone")
    return moment


def _zone(name: Any) -> tzinfo:
    if not isinstance(name, str):
        raise ExpressionError("the time zone has no value")
    if name == "UTC":
        return UTC
    try:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+/-]{0,60}", name):
            raise ZoneInfoNotFoundError
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ExpressionError("the time zone isn't a name such as Europe/Berlin") from None


def _local(moment: datetime, zone: Any) -> datetime:
    """Return a time without a zone as one in it; where the clocks went back, the first of the two."""
    made = moment.replace(tzinfo=_zone(zone))
    if made.astimezone(UTC).astimezone(made.tzinfo).replace(tzinfo=None) != moment:
        raise ExpressionError("there was no such time: the clocks went forward over it")
    return made


def _shifted(moment: datetime, zone: tzinfo) -> datetime:
    try:
        return moment.astimezone(zone)
    except (OverflowError, ValueError):
        raise ExpressionError("the time is out of range") from None


def _to_epoch(value: Any) -> int:
    return math.floor(_zoned(value).timestamp())


def _to_utc(value: Any, zone: Any = None) -> str:
    moment = _moment(value)
    if moment.tzinfo is None:
        if zone is None:
            raise ExpressionError("the time has no time zone")
        moment = _local(moment, zone)
    return _written(_shifted(moment, UTC))


def _in_zone(value: Any, zone: Any) -> str:
    return _written(_shifted(_zoned(value), _zone(zone)))


def _date_in(value: Any, zone: Any) -> str:
    return _shifted(_zoned(value), _zone(zone)).date().isoformat()


_UNITS = ("minutes", "hours", "days")


def _plus(value: Any, amount: Any, unit: Any) -> str:
    if unit not in _UNITS:
        raise ExpressionError("a unit was expected: minutes, hours or days")
    moment = _moment(value)
    try:
        return _written(moment + timedelta(**{unit: float(_number(amount))}))
    except OverflowError:
        raise ExpressionError("the time is out of range") from None


# Those that mean the same in every language of the machine.
_PATTERN = re.compile(r"(?:%[YymdHMSjz%]|[^%]){1,60}")


def _pattern(text: Any) -> str:
    if not isinstance(text, str) or not _PATTERN.fullmatch(text):
        raise ExpressionError("a pattern of %Y %m %d %H %M %S %y %j %z was expected")
    return text


def _format_time(value: Any, pattern: str) -> str:
    try:
        return _moment(value).strftime(_pattern(pattern))
    except ValueError:
        raise ExpressionError("the time is out of range") from None


def _parse_time(value: Any, pattern: str, zone: Any = None) -> str:
    text = _text(value)
    try:
        if len(text) > 100:
            raise ValueError
        moment = datetime.strptime(text, _pattern(pattern))  # noqa: DTZ007 - its zone, if any, comes below
    except (ValueError, re.error):
        raise ExpressionError(f"the time isn't written as `{short(_pattern(pattern))}`") from None
    if moment.tzinfo is None and zone is not None:
        moment = _local(moment, zone)
    return _written(moment)


# ---- texts ---------------------------------------------------------------------------------------------


def cut_text(text: str, length: int) -> str:
    """Return the beginning of a text, of at most so many characters; what is read as one stays together."""
    if len(text) <= length:
        return text
    if not text[length - 1 : length + 1].isascii() or text[length] == "\n":
        # An accent or a joined emoji after the cut belongs to the letter before it.
        ends = (each.end() for each in _graphemes().finditer(text[: length + LONGEST_NAME]))
        whole = 0
        for end in ends:
            if end > length:
                break
            whole = end
        length = whole or length
    return text[:length].rstrip()


@cache
def _graphemes() -> Any:
    import regex

    return regex.compile(r"\X")


def _join(value: Any, separator: str = "") -> str | None:
    spend_on(_items(value))
    parts = [as_text(part).strip() for part in value if part is not None and not isinstance(part, Undefined)]
    parts = [part for part in parts if part]
    check_size(sum(map(len, parts)) + len(_text(separator)) * len(parts))
    return separator.join(parts) or None


def _split(value: Any, separator: str) -> list[str]:
    text = _text(value)
    spend(8 * text.count(_separator(separator)))
    return [part for each in text.split(separator) if (part := each.strip())]


def _from_json(value: Any) -> Any:
    text = _text(value)
    spend(15 * len(text))  # an empty list is two characters, and a value of 56 bytes
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ExpressionError("the text isn't JSON") from None


def _json_text(value: Any) -> str:
    spend_on(value)
    try:
        made = orjson.dumps(value, default=_json_number).decode()
    except (TypeError, ValueError):
        raise ExpressionError("the value can't be written as JSON") from None
    check_size(len(made))
    return made


def _percent_decoded(value: Any, characters: str) -> str:
    text = _text(value)
    if len(_text(characters)) > 100:
        raise ExpressionError("at most 100 characters can be decoded")
    for character in characters:
        if ord(character) > 127 or character == "%":
            raise ExpressionError("only characters of ASCII other than `%` can be decoded one by one")
        spend(len(text))
        written = f"%{ord(character):02X}"
        text = text.replace(written, character).replace(written.lower(), character)
    return text


def _url_encode(value: Any) -> str:
    text = as_text(value)
    check_size(12 * len(text))
    try:
        return urllib.parse.quote(text, safe="")
    except UnicodeEncodeError:
        raise ExpressionError("the text can't be encoded") from None


def _base64_decode(value: Any) -> str:
    try:
        return base64.b64decode(_text(value), validate=True).decode()
    except (binascii.Error, ValueError):
        raise ExpressionError("the text isn't Base64 of a text") from None


def _slug(value: Any) -> str | None:
    text = _text(value)
    check_size(18 * len(text))
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return "-".join(re.findall(r"[^\W_]+", plain.lower())) or None


def _capitalize(value: Any) -> str:
    text = _text(value)
    return text[:1].upper() + text[1:]


# Elements whose content nobody reads, and those that begin a line.
_UNREAD = ("script", "style", "head", "title", "noscript", "template")
_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption",
     "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav",
     "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul")
)  # fmt: skip
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:-]*+)")
_REST_OF_TAG = re.compile(r"""(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")


def _html_text(value: Any) -> str | None:
    """Read HTML once, from left to right: what doesn't close is looked for a single time."""
    text = _text(value)
    spend(8 * len(text))
    lines = [" ".join(line.split()) for line in html.unescape("".join(_read(text))).split("\n")]
    return "\n".join(line for line in lines if line) or None


def _read(text: str) -> Iterator[str]:
    position, quotes_close = 0, True
    while True:
        start = text.find("<", position)
        yield " ".join(text[position : start if start >= 0 else None].split("\n"))
        if start < 0:
            return
        tag = _TAG.match(text, start)
        if tag is None and text[start + 1 : start + 2] not in ("!", "?", "/"):
            yield "&lt;"
            position = start + 1
            continue
        if text.startswith("<!--", start):
            end = text.find("-->", start + 4)
            end += 3 if end >= 0 else 0
        else:
            rest = _REST_OF_TAG.match(text, tag.end()) if tag and quotes_close else None
            quotes_close = rest is not None or (tag is None and quotes_close)
            end = rest.end() if rest else text.find(">", start) + 1
        if end <= start:
            return
        name = tag.group(2).lower() if tag else ""
        if name in _BLOCKS:
            yield "\n"
        if tag and not tag.group(1) and name in _UNREAD:
            close = _closing(name).search(text, end)
            if close is None:
                return
            end = close.start()
        position = end


@cache
def _closing(name: str) -> re.Pattern[str]:
    return re.compile(f"</{name}", re.IGNORECASE)


# ---- lists ---------------------------------------------------------------------------------------------


def _items(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ExpressionError("a list was expected")
    spend(8 * len(value))
    return value


def _first(value: Any) -> Any:
    return next(iter(_items(value)), None)


def _last(value: Any) -> Any:
    return _items(value)[-1] if value else None


def _unique(value: Any) -> list[Any]:
    seen: dict[tuple[type, Any], Any] = {}
    for each in _items(value):
        if each is not None and not isinstance(each, str | int | float | Decimal):
            raise ExpressionError("a list of texts and numbers was expected")
        seen.setdefault((type(each), each), each)
    return list(seen.values())


def _pluck(value: Any, name: str) -> list[Any]:
    found = [each.get(_text(name)) if isinstance(each, Mapping) else None for each in _items(value)]
    return [each for each in found if each is not None]


_NOTHING: Final = object()


def _lookup(value: Any, table: Any, otherwise: Any = _NOTHING) -> Any:
    if not isinstance(table, Mapping):
        raise ExpressionError("a table such as {'a': 'b'} was expected")
    if isinstance(value, bool):
        value = as_text(value)
    if isinstance(value, str) and value in table:
        return table[value]
    if isinstance(value, int):
        spend(len(table))
        for key, found in table.items():
            if key == value and not isinstance(key, bool):
                return found
    if otherwise is _NOTHING:
        raise ExpressionError("the table has no such value")
    return otherwise


def _default(value: Any, fallback: Any = None) -> Any:
    return fallback if value is None or isinstance(value, Undefined) else value


# ---- people, places and phones ---------------------------------------------------------------------------


def _short_text(value: Any, what: str) -> str:
    text = _text(value).strip()
    if len(text) > LONGEST_NAME:
        raise ExpressionError(f"{what} is at most {LONGEST_NAME} characters long")
    return text


def _country(code: Any) -> str:
    if not isinstance(code, str):
        raise ExpressionError("the country has no value")
    return _country_code(code)


def _phone(value: Any, country: Any) -> Any:
    import phonenumbers

    text = _short_text(value, "a phone number")
    region = None if country is None else _country(country)
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        raise ExpressionError("the text isn't a phone number, or its country isn't known") from None
    if not phonenumbers.is_possible_number(number):
        raise ExpressionError("no phone number is as short or as long as this one")
    return number


def _e164(value: Any, country: Any = None) -> str | None:
    import phonenumbers

    if not _text(value).strip():
        return None
    return str(phonenumbers.format_number(_phone(value, country), phonenumbers.PhoneNumberFormat.E164))


def _national_phone(value: Any, country: Any = None) -> str | None:
    import phonenumbers

    if not _text(value).strip():
        return None
    return str(phonenumbers.format_number(_phone(value, country), phonenumbers.PhoneNumberFormat.NATIONAL))


_NAME_PARTS = ("title", "first", "middle", "last", "suffix", "nickname")


def _name_part(value: Any, part: str) -> str | None:
    from nameparser import HumanName

    if part not in _NAME_PARTS:
        raise ExpressionError("a part was expected: title, first, middle, last, suffix or nickname")
    return getattr(HumanName(_short_text(value, "a name")), part) or None


def _given_names(value: Any) -> str | None:
    return _join([_name_part(value, "first"), _name_part(value, "middle")], " ")


@cache
def _countries() -> Mapping[str, str]:
    """Return the two-letter code of every code and English name of a country, in lower case."""
    import pycountry
    from babel import Locale
    from babel.core import get_global

    known: dict[str, str] = {}
    for each in pycountry.countries:
        names = (getattr(each, key, None) for key in ("name", "official_name", "common_name"))
        for name in (each.alpha_2, each.alpha_3, each.numeric, *names):
            if name:
                known[name.casefold()] = each.alpha_2
    codes = set(known.values())
    for code, name in Locale("en").territories.items():
        if code in codes:
            known.setdefault(name.casefold(), code)
    for alias, meant in get_global("territory_aliases").items():  # such as UK
        if len(meant) == 1 and meant[0] in codes:
            known.setdefault(alias.casefold(), meant[0])
    return known


def _country_code(value: Any) -> str:
    found = _countries().get(_short_text(value, "a country").casefold())
    if found is None:
        raise ExpressionError("there is no such country")
    return found


def _country_alpha3(value: Any) -> str:
    import pycountry

    code = _country_code(value)
    return next(each.alpha_3 for each in pycountry.countries if each.alpha_2 == code)


def _country_name(value: Any, language: str = "en") -> str:
    from babel import Locale, UnknownLocaleError

    try:
        names = Locale.parse(_short_text(language, "a language"), sep="-").territories
    except (UnknownLocaleError, ValueError):
        raise ExpressionError("there is no such language") from None
    return str(names[_country_code(value)])


@lru_cache(maxsize=300)
def _states(country: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the code of every code and name of a country's states, in lower case; and every code's name."""
    import pycountry

    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    for each in pycountry.subdivisions:
        if each.country_code != country:
            continue
        code = each.code.partition("-")[2]
        codes.update(dict.fromkeys((each.code.casefold(), code.casefold(), each.name.casefold()), code))
        names[code] = each.name
    return codes, names


def _state_code(value: Any, country: Any) -> str:
    found = _states(_country(country))[0].get(_short_text(value, "a state").casefold())
    if found is None:
        raise ExpressionError("the country has no such state")
    return found


def _state_name(value: Any, country: Any) -> str:
    return _states(_country(country))[1][_state_code(value, country)]


FILTERS: Mapping[str, Filter] = {
    "after_last": Filter(
        _after_last,
        "What follows the last occurrence of a text; null when there is none.",
        "{{ '0a1b-us19' | after_last('-') }}",
        "us19",
    ),
    "base64_decode": Filter(
        _base64_decode, "The text that a text in Base64 stands for.", "{{ 'QW5h' | base64_decode }}", "Ana"
    ),
    "base64_encode": Filter(
        lambda value: base64.b64encode(_bytes(value)).decode(),
        "The text in Base64.",
        "{{ 'Ana' | base64_encode }}",
        "QW5h",
    ),
    "before_first": Filter(
        _before_first,
        "What comes before the first occurrence of a text; the whole text when there is none.",
        "{{ 'ana@example.com' | before_first('@') }}",
        "ana",
    ),
    "boolean": Filter(
        _boolean,
        "True or false, of a text such as `yes`, `no`, `true`, `off`, `1`, or of 0 and 1; anything else is an"
        " error.",
        "{{ 'Yes' | boolean }}",
        True,
    ),
    "capitalize": Filter(
        _capitalize,
        "The text with its first letter in upper case, the rest as it is.",
        "{{ 'jazz at McCoy' | capitalize }}",
        "Jazz at McCoy",
    ),
    "country_alpha3": Filter(
        _country_alpha3,
        "The three letters of a country (ISO 3166-1), from what `country_code` takes.",
        "{{ 'Germany' | country_alpha3 }}",
        "DEU",
    ),
    "country_code": Filter(
        _country_code,
        "The two letters of a country (ISO 3166-1), from its English name, two or three letters, or three"
        " digits. An unknown country is an error.",
        "{{ 'United States' | country_code }}",
        "US",
    ),
    "country_name": Filter(
        _country_name,
        "A country's name in a language, English unless another is given; from what `country_code` takes.",
        "{{ 'DE' | country_name('es') }}",
        "Alemania",
    ),
    "crc32": Filter(
        lambda value: zlib.crc32(_bytes(value)),
        "The checksum CRC-32 of the text, as a number: some providers sign it in place of the text.",
        "{{ 'abc' | crc32 }}",
        891568578,
    ),
    "date_in": Filter(
        _date_in,
        "The date it is in a time zone, at a time that has its zone.",
        "{{ '2026-07-01T23:30:00Z' | date_in('Europe/Berlin') }}",
        "2026-07-02",
    ),
    "default": Filter(
        _default,
        "The value, or the one given when it is null or absent; without one, null.",
        "{{ none | default('unknown') }}",
        "unknown",
    ),
    "digits": Filter(
        lambda value: re.sub("[^0-9]+", "", _text(value)),
        "The digits of a text, without everything else.",
        "{{ 'AB-12 / 7' | digits }}",
        "127",
    ),
    "e164": Filter(
        _e164,
        "A phone number as E.164 writes it: `+`, country and number. Without `+` it is one of the country"
        " given. What can't be a phone number is an error, blank is null.",
        "{{ '030 901820' | e164('DE') }}",
        "+4930901820",
    ),
    "escape_html": Filter(
        lambda value: html.escape(_text(value), quote=False),
        "The text as HTML: `&`, `<` and `>` written so that they show.",
        "{{ 'Rock & Roll' | escape_html }}",
        "Rock &amp; Roll",
    ),
    "family_name": Filter(
        lambda value: _name_part(value, "last"),
        "The family name within a full name, whether written first or last; null when there is none.",
        "{{ 'Dr. Juan de la Vega III' | family_name }}",
        "de la Vega",
    ),
    "first": Filter(
        _first, "The first item of a list; null when there is none.", "{{ ['a', 'b'] | first }}", "a"
    ),
    "first_word": Filter(
        _first_word,
        "The first word of a name; null when there is none.",
        "{{ 'Ana María Ruiz' | first_word }}",
        "Ana",
    ),
    "format_time": Filter(
        _format_time,
        "A time or date written by a pattern of `%Y %m %d %H %M %S %y %j %z`, in the zone it has.",
        "{{ '2026-07-01T18:30:00Z' | format_time('%d.%m.%Y %H:%M') }}",
        "01.07.2026 18:30",
    ),
    "from_epoch": Filter(
        _from_epoch,
        "Unix seconds as a time in UTC.",
        "{{ 1760000000 | from_epoch }}",
        "2025-10-09T08:53:20Z",
    ),
    "from_json": Filter(
        _from_json,
        "What a text holds that is written as JSON.",
        """{{ '{"name": "Ana"}' | from_json }}""",
        {"name": "Ana"},
    ),
    "given_names": Filter(
        _given_names,
        "The given names within a full name, whether written first or last; null when there are none.",
        "{{ 'Ruiz, Ana María' | given_names }}",
        "Ana María",
    ),
    "html_text": Filter(
        _html_text,
        "What HTML says, as plain text: blocks on lines of their own, no scripts, no styles.",
        "{{ '<p>Rock &amp; <b>Roll</b></p><p>Doors 7&nbsp;pm' | html_text }}",
        "Rock & Roll\nDoors 7 pm",
    ),
    "in_zone": Filter(
        _in_zone,
        "A time that has its zone, as clocks of another zone show it.",
        "{{ '2026-07-01T18:30:00Z' | in_zone('Europe/Berlin') }}",
        "2026-07-01T20:30:00+02:00",
    ),
    "integer": Filter(
        _integer, "A number, or a text holding one, as a whole number.", "{{ '42' | integer }}", 42
    ),
    "join": Filter(
        _join,
        "The items of a list as one text, those that are null or blank left out; null when none is left.",
        "{{ ['Ana', none, 'Ruiz'] | join(' ') }}",
        "Ana Ruiz",
    ),
    "json_text": Filter(
        _json_text,
        "The value written as JSON, for a provider that wants JSON within a text. Numbers are exact.",
        "{{ {'name': 'Ana', 'tags': []} | json_text }}",
        '{"name":"Ana","tags":[]}',
    ),
    "last": Filter(
        _last, "The last item of a list; null when there is none.", "{{ ['a', 'b'] | last }}", "b"
    ),
    "length": Filter(_length, "How many characters or items there are.", "{{ 'Ruiz' | length }}", 4),
    "lookup": Filter(
        _lookup,
        "What a table says of the value; where it says nothing, the second value given, else an error. A"
        " number isn't the text that shows it; true and false are `'true'` and `'false'`.",
        "{{ 'sold' | lookup({'sold': 'PAID', 'void': 'CANCELED'}) }}",
        "PAID",
    ),
    "lower": Filter(
        lambda value: _text(value).lower(), "The text in lower case.", "{{ 'EUR' | lower }}", "eur"
    ),
    "major_units": Filter(
        _major_units,
        "An amount counted in the currency's smallest unit (ISO 4217), as a number of whole units. Exact.",
        "{{ 1999 | major_units('EUR') }}",
        Decimal("19.99"),
    ),
    "md5": Filter(
        lambda value, written="hex": _digest(value, partial(hashlib.md5, usedforsecurity=False), written),
        "The MD5 digest of the text, as 32 hexadecimal digits (or in `base64`): some ids are made so.",
        "{{ 'ana@example.com' | md5 }}",
        "cdb9d6a1dddc375a09cc83e3001598dc",
    ),
    "minor_units": Filter(
        _minor_units,
        "An amount in the currency's smallest unit (ISO 4217): cents for EUR, yen for JPY, fils for KWD."
        " Exact: an amount with more decimals than the currency has is an error.",
        "{{ 19.99 | minor_units('EUR') }}",
        1999,
    ),
    "name_part": Filter(
        _name_part,
        "A part of a full name: `title`, `first`, `middle`, `last`, `suffix` or `nickname`; null when it has"
        " none.",
        "{{ 'Dr. Juan de la Vega III' | name_part('title') }}",
        "Dr.",
    ),
    "national_phone": Filter(
        _national_phone,
        "A phone number as people of its country write it; taken as `e164` takes it.",
        "{{ '+12015550123' | national_phone }}",
        "(201) 555-0123",
    ),
    "parse_time": Filter(
        _parse_time,
        "A time written by a pattern as `format_time` takes it, in a zone if one is given.",
        "{{ '01.07.2026 20:30' | parse_time('%d.%m.%Y %H:%M', 'Europe/Berlin') }}",
        "2026-07-01T20:30:00+02:00",
    ),
    "percent_decode": Filter(
        _percent_decoded,
        "An address with those percent-encoded characters decoded that are given, and no other.",
        "{{ '/a%3Ab%20c' | percent_decode(':/') }}",
        "/a:b%20c",
    ),
    "pluck": Filter(
        _pluck,
        "One field of each object of a list, those left out that haven't it or have null.",
        "{{ [{'id': 'a'}, {'id': 'b'}, {}] | pluck('id') }}",
        ["a", "b"],
    ),
    "plus": Filter(
        _plus,
        "The time so many minutes, hours or days later; a negative amount is earlier.",
        "{{ '2026-07-01T18:30:00Z' | plus(90, 'minutes') }}",
        "2026-07-01T20:00:00Z",
    ),
    "quoted": Filter(
        _quoted,
        "The text in single quotes, quotes and backslashes within it escaped by a backslash, for queries.",
        """{{ "O'Brien" | quoted }}""",
        "'O\\'Brien'",
    ),
    "quoted_list": Filter(
        _quoted_list,
        "The items of a list, each in single quotes as `quoted` writes it, with commas between them.",
        "{{ ['1', '2'] | quoted_list }}",
        "'1', '2'",
    ),
    "replace": Filter(
        _replace,
        "The text with every occurrence of one text replaced by another.",
        "{{ '01 23 45' | replace(' ', '') }}",
        "012345",
    ),
    "rest_of_name": Filter(
        _rest_of_name,
        "A name without its first word; null when nothing is left.",
        "{{ 'Ana María Ruiz' | rest_of_name }}",
        "María Ruiz",
    ),
    "round_money": Filter(
        _round_money,
        "An amount rounded to the decimals of its currency (ISO 4217), halves away from zero.",
        "{{ '19.995' | round_money('EUR') }}",
        Decimal("20.00"),
    ),
    "round_to": Filter(
        _rounded,
        "A number rounded to so many decimals, halves away from zero. Exact.",
        "{{ '2.345' | round_to(2) }}",
        Decimal("2.35"),
    ),
    "sha1": Filter(
        lambda value, written="hex": _digest(value, partial(hashlib.sha1, usedforsecurity=False), written),
        "The SHA-1 digest of the text, as 40 hexadecimal digits (or in `base64`): some ids are made so.",
        "{{ 'abc' | sha1 }}",
        "a9993e364706816aba3e25717850c26c9cd0d89d",
    ),
    "sha256": Filter(
        lambda value, written="hex": _digest(value, hashlib.sha256, written),
        "The SHA-256 digest of the text, as 64 hexadecimal digits, or in `base64`.",
        "{{ 'Ana' | sha256 }}",
        "dea210f058b407db5c1b5ea89b2e42a57221c003dba55e2f1776a75a3254d386",
    ),
    "sha512": Filter(
        lambda value, written="hex": _digest(value, hashlib.sha512, written),
        "The SHA-512 digest of the text, as 128 hexadecimal digits, or in `base64`.",
        "{{ 'abc' | sha512('base64') }}",
        "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==",
    ),
    "slug": Filter(
        _slug,
        "The words of a text in lower case, without accents, with `-` between them; null without any.",
        "{{ 'Café-Théâtre, 2nd floor!' | slug }}",
        "cafe-theatre-2nd-floor",
    ),
    "split": Filter(
        _split,
        "The parts of a text between a separator, without the white space around them and blank ones.",
        "{{ 'jazz, live, ' | split(',') }}",
        ["jazz", "live"],
    ),
    "state_code": Filter(
        _state_code,
        "The code of a state or province within its country (ISO 3166-2), from its name or code. An unknown"
        " one is an error.",
        "{{ 'California' | state_code('US') }}",
        "CA",
    ),
    "state_name": Filter(
        _state_name,
        "The name of a state or province of a country, from its name or code.",
        "{{ 'BY' | state_name('DE') }}",
        "Bayern",
    ),
    "string": Filter(as_text, "A number or truth value as text.", "{{ 19.50 | string }}", "19.5"),
    "to_epoch": Filter(
        _to_epoch,
        "A time with its zone as Unix seconds, fractions cut off.",
        "{{ '2025-10-09T08:53:20Z' | to_epoch }}",
        1760000000,
    ),
    "to_utc": Filter(
        _to_utc,
        "A time in UTC; one that has no zone is of the zone given. A time that clocks skip is an error; of a"
        " time they show twice it is the first.",
        "{{ '2026-07-01T20:30:00' | to_utc('Europe/Berlin') }}",
        "2026-07-01T18:30:00Z",
    ),
    "trim": Filter(
        lambda value: _text(value).strip(),
        "The text without white space around it.",
        "{{ ' Ana ' | trim }}",
        "Ana",
    ),
    "truncate_to": Filter(
        _truncate_to,
        "The text cut to at most so many characters.",
        "{{ 'Saxophone' | truncate_to(3) }}",
        "Sax",
    ),
    "unique": Filter(
        _unique,
        "The texts and numbers of a list, each once.",
        "{{ ['a', 'b', 'a'] | unique }}",
        ["a", "b"],
    ),
    "upper": Filter(
        lambda value: _text(value).upper(), "The text in upper case.", "{{ 'eur' | upper }}", "EUR"
    ),
    "url_encode": Filter(
        _url_encode,
        "The text as part of an address: everything percent-encoded but letters, digits and `_.-~`.",
        "{{ 'a b/ü' | url_encode }}",
        "a%20b%2F%C3%BC",
    ),
}


def filters_page(questions: Collection[str]) -> str:
    """Return the reference page of filters, as Markdown; `questions` are the words after `is`."""
    lines = [
        "# Filters",
        "",
        "A value in braces goes through a filter like this: `{{ value | upper }}`.",
        "Null stays null in every filter but `default`. An absent value is an error, except for `default`",
        "and within the list of `join`.",
        "",
        "| Filter | Does | Example | Gives |",
        "|---|---|---|---|",
    ]
    for name in sorted(FILTERS):
        each = FILTERS[name]
        takes = list(inspect.signature(each.function).parameters)[1:]
        written = f"{name}({', '.join(takes)})" if takes else name
        example = each.example.replace("|", "\\|")
        gives = json.dumps(each.gives, default=str, ensure_ascii=False)
        lines.append(f"| `{written}` | {each.doc} | `{example}` | `{gives}` |")
    lines += [
        "",
        "Besides filters there are `+ - * / // %` on numbers, `+` on texts and lists, `~` joining texts",
        "(null is empty), comparisons, `in`, `and`, `or`, `not`, `a if b else c`, `value.name`, `value[0]`,",
        "`value[0:3]`, lists, objects, and `is` with",
        f"{', '.join(f'`{each}`' for each in questions)}.",
        "Functions and methods can't be called, and there are no statements (`{% … %}`).",
        "",
    ]
    return "\n".join(lines)
