"""What the names of two fields have to do with each other.

A path is split into words, abbreviations are written out and plurals made singular; then words are compared
one by one. The tables below are the whole vocabulary: to teach it a word, add it to the right one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from rapidfuzz import fuzz


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Other ways to write the same words. A phrase counts as well when its words stand one after another.
SPELLINGS: dict[str, str] = {
    "acct": "account",
    "addr": "address",
    "amt": "amount",
    "avg": "average",
    "bday": "birth date",
    "birthdate": "birth date",
    "birthday": "birth date",
    "birth day": "birth date",
    "date of birth": "birth date",
    "dob": "birth date",
    "cancelled": "canceled",
    "cat": "category",
    "ccy": "currency",
    "cell phone": "mobile",
    "cell": "mobile",
    "cnt": "count",
    "colour": "color",
    "companyname": "company name",
    "config": "configuration",
    "createdat": "created at",
    "createdate": "created date",
    "cust": "customer",
    "dept": "department",
    "desc": "description",
    "descr": "description",
    "dest": "destination",
    "displayname": "display name",
    "dst": "destination",
    "e mail": "email",
    "email address": "email",
    "email addr": "email",
    "emailaddress": "email",
    "mail address": "email",
    "emp": "employee",
    "familyname": "last name",
    "family name": "last name",
    "firstname": "first name",
    "fname": "first name",
    "forename": "first name",
    "fulfilment": "fulfillment",
    "fullname": "full name",
    "givenname": "first name",
    "given name": "first name",
    "img": "image",
    "info": "information",
    "inv": "invoice",
    "lang": "language",
    "lastname": "last name",
    "lat": "latitude",
    "licence": "license",
    "lname": "last name",
    "lng": "longitude",
    "lon": "longitude",
    "loc": "location",
    "max": "maximum",
    "min": "minimum",
    "mname": "middle name",
    "mobile number": "mobile",
    "mobile phone": "mobile",
    "msg": "message",
    "nbr": "number",
    "nickname": "nick name",
    "nr": "number",
    "num": "number",
    "org": "organization",
    "organisation": "organization",
    "pct": "percent",
    "percentage": "percent",
    "phone number": "phone",
    "phone num": "phone",
    "phonenumber": "phone",
    "pic": "picture",
    "post code": "postcode",
    "postal code": "postcode",
    "postalcode": "postcode",
    "postal": "postcode",
    "pref": "preference",
    "prefs": "preference",
    "prod": "product",
    "pwd": "password",
    "qty": "quantity",
    "ref": "reference",
    "screen name": "user name",
    "src": "source",
    "sub total": "subtotal",
    "surname": "last name",
    "tel": "phone",
    "telephone": "phone",
    "telephone number": "phone",
    "time zone": "timezone",
    "ts": "timestamp",
    "txn": "transaction",
    "tz": "timezone",
    "updatedat": "updated at",
    "username": "user name",
    "usr": "user",
    "web site": "website",
    "zip": "postcode",
    "zip code": "postcode",
    "zipcode": "postcode",
}

# Words that mean nearly the same, and words that are often put for each other when a field is renamed.
SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "created creation create added inserted",
        "updated modified changed update edited modification",
        "canceled canceling cancellation cancel",
        "url uri link href permalink",
        "image picture photo",
        "company organization",
        "start begin starts",
        "end finish ends until",
        "client customer",
        "employee staff",
        "state region province",
        "quantity qty",
        "street address_line",
        "consumed consumption read",
        "like favorite favourite heart",
        "until through till",
        "organization organisation",
        "disabled deactivated",
        "enabled activated",
    )
)
RELATED: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "name title label heading subject",
        "description body summary text note content comment message detail html bio about",
        "status state phase condition",
        "amount price total value cost sum money",
        "count total quantity number size",
        "image picture photo avatar logo icon thumbnail media",
        "owner user assignee creator author agent admin",
        "user customer contact client buyer payer subscriber member person profile attendee guest",
        "user employee member team_member staff person worker agent",
        "company organization account business merchant tenant workspace team",
        "type kind category class group",
        "tag label category group collection",
        "date time day at on timestamp created",
        "paid charged",
        "due deadline",
        "link url",
        "url website web homepage domain",
        "phone mobile",
        "card source payment method instrument",
        "channel conversation room thread",
        "list audience collection",
        "location venue place site store address",
        "sku code identifier",
        "key id code identifier",
        "id uid uuid guid sid gid vid",
        "language locale",
        "invoice bill billing",
        "order purchase",
        "item line product",
        "variant variation sku",
        "event activity",
        "repeat recurrence recurring interval",
        "visible visibility public published",
        "follower subscriber watcher fan",
        "like fan",
        "off end stop close",
        "on start open begin",
        "privacy visibility listed public",
        "display public shown",
        "portal account workspace",
        "interest grouping group category",
        "blog website homepage",
        "self url link",
        "friend following",
        "setting preference option configuration capability",
        "verification requirement",
        "whitelist allowlist allowed",
        "blacklist blocklist blocked",
        "master main primary default",
        "parameter argument option",
        "function tool",
        "prompt input",
        "completion output",
        "expiry expires expire expiration expired",
        "rank position order sort",
        "legal company individual",
        "website site web",
        # what a record is, or is part of
        "attachment file document upload asset",
        "folder directory label path parent",
        "account grant connection integration app application client",
        "article post story entry tweet publication",
        "case issue incident ticket thread conversation",
        "basket cart checkout order session",
        "build job pipeline task run workflow",
        "cover banner header image preview",
        "coupon discount promotion voucher offer deal",
        "device terminal machine client",
        "host server domain hostname uri node instance",
        "keyword phrase term word tag topic theme",
        "list audience segment recipient",
        "node member host",
        "plan subscription tier package product price rate fee",
        "receipt confirmation reference",
        "repository project",
        "review feedback comment rating score",
        "rule policy condition",
        "sale transaction payment charge order",
        "section block row zone area region",
        "settlement payout transfer",
        "shipment fulfillment delivery package parcel shipping",
        "store shop merchant site warehouse location",
        "trigger event topic action",
        "webhook callback hook",
        # people and companies
        "admin administrator moderator owner manager",
        "approver reviewer assessor",
        "attendee invitee participant guest registrant response member",
        "bot app agent",
        "brand manufacturer vendor supplier provider service",
        "by user author actor",
        "department division team unit category",
        "employer company organization",
        "party customer vendor contact",
        "partner affiliate vendor buyer",
        "reporter requester requested creator organizer host",
        "sender from author",
        "supervisor manager lead",
        # venues and shows
        "artist performer band act",
        "capacity limit maximum size quota number",
        "genre category style",
        "hall stage room auditorium venue",
        "show performance event meeting",
        "ticket seat admission pass",
        "video movie film clip voice audio call",
        # what is said of a record
        "availability schedule hours calendar slot",
        "attribute property field trait feature characteristic custom",
        "context metadata option property extra",
        "coordinate point geo position location geometry shape",
        "country nation region territory",
        "draft unpublished pending",
        "enabled active allowed available on accepts",
        "error failure problem fault",
        "expires valid validity until end deadline due",
        "external foreign partner",
        "granularity precision accuracy level",
        "handle slug username alias permalink login",
        "interaction activity engagement action",
        "interval frequency period cadence",
        "job title position occupation role",
        "kind object type",
        "layout view template theme design style",
        "length duration period time minute",
        "logon login signin sign visit",
        "mail email",
        "marketing newsletter promotional",
        "medium channel source origin",
        "merged closed",
        "note remark memo comment",
        "password authentication credential reauthentication",
        "priority importance urgency severity",
        "province county district area",
        "reason cause code",
        "referral referrer source",
        "regarding related involved reference subject source target",
        "result outcome status response output",
        "role permission scope privilege access consent opt",
        "secret private hidden confidential internal",
        "sha hash checksum digest",
        "signup registration subscribe join created",
        "stock inventory quantity",
        "summary excerpt abstract preview snippet teaser bio about",
        "thumbnail preview sample",
        "token key secret credential",
        "validation schema verification",
        "version build release revision",
        "view visit impression display",
        "weight mass",
    )
)

# Words of one line are never said of the same thing: a field with one isn't renamed to one with another.
OPPOSITES: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "billing bill shipping ship delivery mailing home work office residential",
        "created updated deleted closed opened canceled published completed started finished expired "
        "archived paid sent received scheduled submitted approved rejected processed shipped delivered "
        "refunded activated confirmed due voided captured authorized accepted signed issued",
        "creation update deletion cancellation expiration completion",
        "first last middle full nick display",
        "gross net",
        "start end stop finish",
        "begin end",
        "minimum maximum average median",
        "in out",
        "from to",
        "to cc bcc",
        "sender recipient receiver",
        "source destination target",
        "active inactive archived disabled deleted suspended deactivated",
        "enabled disabled",
        "visible hidden",
        "public private",
        "total subtotal tax tip fee discount refund refunded paid due captured authorized remaining "
        "outstanding",
        "amount fee tax tip discount refund",
        "phone fax email website",
        "mobile fax landline",
        "width height length depth weight",
        "latitude longitude",
        "open close closed",
        "previous next current",
        "old new",
        "before after",
        "primary secondary alternate backup",
        "internal external",
        "parent child",
        "buyer seller",
        "credit debit",
        "high low",
        "upper lower",
        "year month week day hour minute second",
        "success failure failed succeeded",
        "sold available reserved capacity held remaining",
        "city state country postcode street county",
        "subject body",
        "password user",
        "male female",
        "subscribed unsubscribed",
        "inbound outbound incoming outgoing",
        "request response",
        "read write unread",
        "locked unlocked",
        "online offline",
        "billable nonbillable",
        "left right top bottom",
        "foreground background",
        "import export",
        "follower following friend",
        "like retweet reply quote",
        "input output",
        "prompt completion",
        "purchase sale",
        "cost price",
        "live test",
        "individual business company",
        "by at",
        "by date",
        "by time",
        "by count",
    )
)
NEGATIONS = _words("not no non never without exclude excluded excluding hide hidden disable un")
UNITS = _words(
    "cent minor major dollar ms millisecond second sec s minute hour kg g gram lb oz pound ounce cm mm "
    "inch meter m km mile percent usd eur byte kb mb"
)
# With one of these a name is about something else than without: `email` and `email_verified`.
CHANGING = _words(
    "verified valid validated hash type status count required enabled format updated changed preference "
    "source at by token secret limit error reason message prefix suffix index version previous original "
    "pending default history id url only usd refunded estimated temporary"
)
# With one of these a name may be about another thing that often has the same value, as `capacity` and
# `remaining_capacity` while nothing is sold: equal values say less then.
QUALIFYING = _words(
    "minimum maximum total remaining available reserved sold seated initial first last next final actual "
    "current local scheduled planned expected requested earliest latest onsale presale online short long sub "
    "pre post seo meta canonical parent child support main primary secondary unique internal external public "
    "private staff display share ticket return billing shipping mailing content preview thumbnail dark light "
    "code original previous estimated default"
)
PICTURES = _words("image picture photo avatar logo icon thumbnail media banner cover file artwork preview")
# Words that say little: what sort of value it is, not of what.
LIGHT = _words(
    "a an at by code data date entity field for has id information is item name number of on set the "
    "time timestamp type value object current"
)
TIME_WORDS = _words("at on date time timestamp datetime utc")
# Too common for initials.
_NO_INITIALS = LIGHT | TIME_WORDS | NEGATIONS | UNITS | _words("as by from in of off or out to up via who")
# What providers wrap whole records into: a path says nothing more with it.
WRAPPERS = _words("data attribute property object header")

_PIECES = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_LETTERS = re.compile(r"\d+|[^\W\d_]+")  # of any script
_ITEM = re.compile(r"\[(?:\d*|\*)\]")
_QUOTED = re.compile(r"\[['\"]([^'\"]*)['\"]\]")
_STEP = re.compile(r"[./]")
_SEPARATORS = re.compile(r"[\W_]+")
_LONGEST_PHRASE = 3
_SHARE_OF_OLD = 0.6

Protection = Literal["money", "identity", "consent"]

_MONEY = _words(
    "amount price total subtotal cost fee tax tip balance refund refunded discount currency paid due "
    "gross net salary revenue budget credit debit payout payment money charge deposit wage commission "
    "surcharge vat gratuity spent cash cent dollar usd eur royalty margin profit earning bank iban card"
)
_IDENTITY = _words(
    "id uuid guid sid gid vid uid euid leid email phone mobile fax birth ssn passport gender sex login "
    "account token secret password key reference sku barcode gtin ean upc slug handle identifier "
    "identity username number person user nationality race religion iban signature"
)
_CONSENT = _words(
    "consent opt optin optout subscribed subscribe unsubscribe unsubscribed subscription marketing gdpr "
    "ccpa permission agreed agreement terms newsletter suppressed suppress privacy tcpa dnc accepts "
    "accept accepted marketable policy"
)
_NAMES_OF_PEOPLE = _words(
    "first last middle full nick display legal contact customer cardholder holder maiden preferred user "
    "owner recipient sender buyer attendee guest patron author employee member person"
)
_PEOPLE = _words(
    "customer contact user person people member attendee guest patron employee lead subscriber account "
    "owner author buyer payer recipient profile client staff"
)


@dataclass(frozen=True, slots=True)
class Name:
    """The words of a path: those of its last step, and those of the steps before it, singular."""

    leaf: tuple[str, ...]
    parents: tuple[str, ...]
    words: tuple[str, ...]  # parents and leaf
    plain: tuple[str, ...]  # all, as they were written but for case and spelling
    squeezed: str  # the path in small letters, without what separates its words
    items: int  # how many steps go into a list


@lru_cache(maxsize=8192)
def read_name(path: str, resource: str = "") -> Name:
    """Return the words of a path; those that only repeat the resource's own name are left out."""
    own = {_singular(word) for word in _split(resource)}
    steps, items = _steps(path)
    spelled = [_spelled(_split(step)) for step in steps]
    parents = [word for step in spelled[:-1] for word in step]
    singular = [word for word in map(_singular, parents) if word not in WRAPPERS | own]
    leaf = [_singular(word) for word in spelled[-1]] or [steps[-1]]
    if len(leaf) == 1 and singular:
        if phrase := SPELLINGS.get(f"{singular[-1]} {leaf[0]}"):  # phones[0].number
            singular, leaf = singular[:-1], phrase.split()
        elif leaf == ["value"]:
            singular, leaf = singular[:-1], singular[-1:]
    if len(leaf) > 1 and leaf[0] in own:
        leaf = leaf[1:]
    kept = [word for word in parents if _singular(word) not in WRAPPERS | own]
    squeezed = _SEPARATORS.sub("", "".join(steps)).lower()
    return Name(tuple(leaf), tuple(singular), (*singular, *leaf), (*kept, *spelled[-1]), squeezed, items)


def _steps(path: str) -> tuple[list[str], int]:
    """Return the names in a path, and how many of its steps go into a list.

    Beside ours, `a[0].b`, others are understood: `a[].b`, `a[*].b`, `a.0.b`, `$.a['b']`, and `/a/0/b`.
    """
    quoted = _QUOTED.sub(r".\1", path.removeprefix("#"))
    steps = [step for step in _STEP.split(_ITEM.sub(".#.", quoted)) if step not in ("", "$")]
    names = [step for at, step in enumerate(steps) if step != "#" and not (at and step.isdigit())]
    return names or [path], len(steps) - len(names)


def _split(text: str) -> list[str]:
    if text.isascii():
        return [piece.lower() for piece in _PIECES.findall(text)]
    return [word for piece in _LETTERS.findall(text) for word in _cased(piece)]


def _cased(piece: str) -> list[str]:
    """Divide a word where a capital letter follows a small one."""
    ends = [at for at in range(1, len(piece)) if piece[at].isupper() and piece[at - 1].islower()]
    return [piece[one:other].lower() for one, other in zip([0, *ends], [*ends, len(piece)], strict=True)]


def _spelled(words: Sequence[str]) -> tuple[str, ...]:
    made: list[str] = []
    at = 0
    while at < len(words):
        for length in range(min(_LONGEST_PHRASE, len(words) - at), 0, -1):
            phrase = " ".join(words[at : at + length])
            known = SPELLINGS.get(phrase) or (SPELLINGS.get(_singular(phrase)) if length == 1 else None)
            if known is not None or length == 1:
                made.extend(known.split() if known else _divided(phrase))
                at += length
                break
    return tuple(made)


def _divided(word: str) -> tuple[str, ...]:
    """Divide a word such as `lastmodifieddate` into those it is made of; one that is known stays."""
    if len(word) < _LONG or word in _VOCABULARY:
        return (word,)
    for end in range(len(word) - 3, 2, -1):
        if word[:end] in _VOCABULARY:
            rest = _divided(word[end:])
            if all(each in _VOCABULARY and each not in _ENDINGS for each in rest):
                return (word[:end], *rest)
    return (word,)


@lru_cache(maxsize=8192)
def _singular(word: str) -> str:
    if word == "ids":
        return "id"
    if (
        len(word) < 4
        or word.endswith(("ss", "us", "is", "ys"))
        or word in ("sms", "address", "gps", "starts")
    ):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes", "uses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two names are, from 0 to 1, and what speaks against them being the same thing.

    `same` says that they are the same words in the same order, however they are written; `same_but_time`
    that only a word such as `at` or `date` differs. `against` are reasons in words.
    """

    score: float
    same: bool
    same_but_time: bool
    same_leaf: bool
    shared: tuple[str, ...]
    against: tuple[str, ...]
    opposed: bool
    changed: tuple[str, ...]  # words such as `verified`, which make one of them something else


@lru_cache(maxsize=65536)
def likeness(old: str, new: str, resource: str = "") -> Likeness:
    """Say how alike two paths are, of fields of a resource."""
    return compare(read_name(old, resource), read_name(new, resource))


def compare(old: Name, new: Name) -> Likeness:
    """Say how alike two names are."""
    same = bool(old.squeezed and old.items == new.items) and (
        "".join(old.plain) == "".join(new.plain) or old.squeezed == new.squeezed
    )
    old, new = _opened(old, new), _opened(new, old)
    pairs = _matched(old, new)
    whole = _overlap(old, new, pairs)
    leaf = whole
    if old.parents or new.parents:
        leaves = [replace(each, parents=(), words=each.leaf) for each in (old, new)]
        leaf = _overlap(leaves[0], leaves[1], _matched(leaves[0], leaves[1]))
    spelled = fuzz.token_sort_ratio(" ".join(old.leaf), " ".join(new.leaf)) / 100
    score = 0.85 * whole + 0.15 * spelled
    if not LIGHT.issuperset(old.leaf):  # `shipping.id` and `billing.id` share what everything has
        score = max(score, 0.87 * leaf, 0.6 * leaf + 0.4 * whole)
    if new.words in (("id",), ("url",)) and new.words != old.words:
        score *= 0.85
    used_old, used_new = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    left_old = [word for i, word in enumerate(old.words) if i not in used_old]
    left_new = [word for j, word in enumerate(new.words) if j not in used_new]
    against = list(_contradictions(old, new, left_old, left_new))
    opposed = bool(against)
    if opposed:
        score *= 0.4
    elif len(new.leaf) < len(old.leaf) and old.leaf[-len(new.leaf) :] == new.leaf and new.leaf != ("id",):
        score = min(1.0, score * 1.12)  # what is left out is most often what it belongs to
    changed, soft = _reservations(left_old, left_new, old, new)
    time_free = tuple(tuple(w for w in each.words if w not in TIME_WORDS) for each in (old, new))
    return Likeness(
        score=1.0 if same else min(score, 1.0),
        same=same,
        same_but_time=bool(time_free[0]) and time_free[0] == time_free[1] and old.items == new.items,
        same_leaf=old.leaf == new.leaf,
        shared=tuple(dict.fromkeys(old.words[i] for i, _, alike in pairs if alike >= 0.7)),
        against=(*against, *soft),
        opposed=opposed,
        changed=changed,
    )


def _opened(name: Name, other: Name) -> Name:
    """Write out words that stand for several of the other name's: `latlng`, and initials such as `crl`."""
    if len(other.words) < 2:
        return name
    made = {word: _parts(word, other.words) for word in name.words if word not in other.words}
    if all(len(parts) == 1 for parts in made.values()):
        return name
    leaf, parents = (
        tuple(part for word in step for part in made.get(word, (word,))) for step in (name.leaf, name.parents)
    )
    return replace(name, leaf=leaf, parents=parents, words=(*parents, *leaf))


@lru_cache(maxsize=65536)
def _parts(word: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words in a row that a word is made of, by their letters or their initials; else itself."""
    if len(word) > 5:
        for at in range(len(words) - 1):
            for end in range(at + 2, len(words) + 1):
                if "".join(words[at:end]) == word:
                    return words[at:end]
    elif len(word) > 1 and word not in _NO_INITIALS:
        size = len(word)
        for at in range(len(words) - size + 1):
            if "".join(each[0] for each in words[at : at + size]) == word:
                return words[at : at + size]
    return (word,)


def _matched(old: Name, new: Name) -> list[tuple[int, int, float]]:
    """Pair words, the likest first: (index in old, index in new, likeness)."""
    found = [
        (alike * (1.0 if (i >= len(old.parents)) == (j >= len(new.parents)) else 0.9), i, j)
        for i, one in enumerate(old.words)
        for j, other in enumerate(new.words)
        if (alike := word_likeness(one, other)) > 0
    ]
    found.sort(key=lambda each: (-each[0], abs(each[1] - each[2])))
    pairs: list[tuple[int, int, float]] = []
    used_old: set[int] = set()
    used_new: set[int] = set()
    for alike, i, j in found:
        if i not in used_old and j not in used_new:
            used_old.add(i)
            used_new.add(j)
            pairs.append((i, j, alike))
    return pairs


def _overlap(old: Name, new: Name, pairs: Sequence[tuple[int, int, float]]) -> float:
    """Return which share of both names' words is found in the other; the old one's count more."""
    ours, theirs = _weights(old), _weights(new)
    of_old = sum(alike * ours[i] for i, _, alike in pairs) / sum(ours)
    of_new = sum(alike * theirs[j] for _, j, alike in pairs) / sum(theirs)
    return _SHARE_OF_OLD * of_old + (1 - _SHARE_OF_OLD) * of_new


def _weights(name: Name) -> list[float]:
    parents = [0.2 if word in LIGHT else 0.4 for word in name.parents]
    light = 0.35 if len(name.leaf) > 1 else 0.6
    return parents + [light if word in LIGHT else 1.0 for word in name.leaf]


@lru_cache(maxsize=65536)
def word_likeness(one: str, other: str) -> float:
    """Say how alike two words are: the same 1, the same meaning 0.9, an abbreviation 0.75, related 0.55."""
    if one == other:
        return 1.0
    if other in _SAME_AS.get(one, _NONE):
        return 0.9
    if one.isdigit() or other.isdigit() or other in _AGAINST.get(one, _NONE):
        return 0.0
    if _abbreviates(one, other) or _abbreviates(other, one):
        return 0.75
    if other in _NEAR.get(one, _NONE):
        return 0.55
    if _same_stem(one, other):
        return 0.7
    near = fuzz.ratio(one, other) / 100
    return 0.8 * near if near >= 0.8 and min(len(one), len(other)) > 3 else 0.0


def _neighbours(groups: Collection[frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return for each word, made singular as those of names are, the others of its groups."""
    found: dict[str, frozenset[str]] = {}
    for each in groups:
        group = frozenset(map(_singular, each))
        for word in group:
            found[word] = found.get(word, frozenset()) | group - {word}
    return found


_SAME_AS = _neighbours(SYNONYMS)
_NEAR = _neighbours(RELATED)
_AGAINST = _neighbours(OPPOSITES)
_NONE: frozenset[str] = frozenset()
_LONG = 8  # letters
_ENDINGS = _words("ship able ment less ness age out")
_VOCABULARY = frozenset(
    {word for words in (*SPELLINGS, *SPELLINGS.values()) for word in words.split() if len(word) > 2}
    | {
        word
        for groups in (SYNONYMS, RELATED, OPPOSITES)
        for group in groups
        for word in group
        if len(word) > 2
    }
    | {word for words in (LIGHT, TIME_WORDS, _MONEY, _IDENTITY, _CONSENT) for word in words if len(word) > 2}
)


def _abbreviates(short: str, long: str) -> bool:
    """Say whether one word is the beginning of another, or its consonants."""
    if len(short) < 3 or len(short) >= len(long):
        return False
    if long.startswith(short):
        return True
    consonants = long[0] + re.sub("[aeiouy]", "", long[1:])
    return len(short) <= 4 and consonants.startswith(short)


def _same_stem(one: str, other: str) -> bool:
    shortest = min(len(one), len(other))
    shared = next((at for at in range(shortest) if one[at] != other[at]), shortest)
    return shared >= 5 and shared >= 0.6 * max(len(one), len(other))


def _contradictions(old: Name, new: Name, left_old: Sequence[str], left_new: Sequence[str]) -> Iterator[str]:
    for one in left_old:
        against = _AGAINST.get(one, _NONE) - _SAME_AS.get(one, _NONE)
        other = next((word for word in left_new if word in against), None)
        if other is not None:
            yield f"`{one}` and `{other}` are different things"
    numbers = [tuple(word for word in each.leaf if word.isdigit()) for each in (old, new)]
    if numbers[0] and numbers[1] and numbers[0] != numbers[1]:
        yield "their numbers differ"
    denied = [bool(NEGATIONS & {*each.words}) for each in (old, new)]
    if denied[0] != denied[1]:
        yield "one of them is a negation"


def _reservations(
    left_old: Sequence[str], left_new: Sequence[str], old: Name, new: Name
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that make one of them something else, and what to say of those and of units."""
    said, changed = [], []
    for left, there in ((left_old, old), (left_new, new)):
        unit = next((word for word in left if word in UNITS), None)
        if unit is not None:
            said.append(f"`{unit}` may be another unit")
        word = next((word for word in left if word in CHANGING and word in there.leaf), None)
        if word == "url" and PICTURES & {*there.leaf}:
            word = None  # a picture is most often given by its address
        if word is not None and len(there.leaf) > 1:
            said.append(f"`{word}` makes it something else")
            changed.append(word)
    return tuple(changed), tuple(said)


def protected_as(path: str, type_: str | None = None, resource: str = "") -> Protection | None:
    """Say whether a field is about money, identity or consent, by type and words: there a person decides."""
    name = read_name(path)
    words = {*name.words}
    if type_ in ("money", "currency") or words & _MONEY:
        return "money"
    if words & _CONSENT:
        return "consent"
    if type_ in ("id", "email", "phone") or words & _IDENTITY:
        return "identity"
    if "name" in name.leaf and (
        words & _NAMES_OF_PEOPLE or not resource or {_singular(word) for word in _split(resource)} & _PEOPLE
    ):
        return "identity"
    return None
