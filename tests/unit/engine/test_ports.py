"""A secret stays one, whatever somebody does with it without thinking."""

import copy
import dataclasses
import json
import pickle
import pprint
import string
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest

from engine.ports import Credentials, Secret

PLAIN = "canary-0123456789"
SECRET = Secret(PLAIN)
CREDENTIALS = Credentials({"apiKey": SECRET})

SHOWN: dict[str, Callable[[], Any]] = {
    "str": lambda: str(SECRET),
    "repr": lambda: repr(SECRET),
    "f-string": lambda: f"{SECRET} {SECRET!r} {SECRET!s} {SECRET:>40}",
    "percent": lambda: "%s %r %a" % (SECRET, SECRET, SECRET),  # noqa: UP031 - it is what is tested
    "format": lambda: "{} {0!r}".replace("{}", "{0}").format(SECRET),
    "template": lambda: string.Template("$it").substitute(it=SECRET),
    "pprint": lambda: pprint.pformat({"apiKey": SECRET, "in": [SECRET]}),
    "inside a dataclass": lambda: repr(CREDENTIALS),
    "json with default": lambda: json.dumps({"it": SECRET}, default=str),
    "orjson with default": lambda: orjson.dumps({"it": SECRET}, default=str).decode(),
    "msgspec with enc_hook": lambda: msgspec.json.encode({"it": SECRET}, enc_hook=str).decode(),
    "a traceback with locals": lambda: _traceback(SECRET),
}

REFUSED: dict[str, Callable[[], Any]] = {
    "pickle": lambda: pickle.dumps(SECRET),
    "pickle of what holds it": lambda: pickle.dumps(CREDENTIALS),
    "copy": lambda: copy.copy(SECRET),
    "deepcopy": lambda: copy.deepcopy(CREDENTIALS),
    "asdict": lambda: dataclasses.asdict(CREDENTIALS),
    "state": lambda: SECRET.__getstate__(),
    "vars": lambda: vars(SECRET),
    "json": lambda: json.dumps({"it": SECRET}),
    "orjson": lambda: orjson.dumps({"it": SECRET}),
    "msgspec": lambda: msgspec.json.encode({"it": SECRET}),
    "builtins": lambda: msgspec.to_builtins({"it": SECRET}),
    "hash": lambda: hash(SECRET),
    "a set": lambda: {SECRET},
    "joined": lambda: "".join([SECRET]),  # type: ignore[list-item]  # it is what is tested
    "added": lambda: "key " + SECRET,  # type: ignore[operator]  # it is what is tested
    "bytes": lambda: bytes(SECRET),  # type: ignore[call-overload]  # it is what is tested
    "letter by letter": lambda: list(SECRET),  # type: ignore[call-overload]  # it is what is tested
}


def _traceback(secret: Secret) -> str:
    try:
        raise ValueError(secret)
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        return "".join(told.format())


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN.keys())
def test_it_is_shown_as_stars(show: Callable[[], Any]) -> None:
    shown = show()
    assert "***" in shown
    assert PLAIN not in shown


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused(use: Callable[[], Any]) -> None:
    with pytest.raises(TypeError) as refused:
        use()
    assert PLAIN not in str(refused.value)


def test_two_are_equal_by_their_values_and_never_equal_a_plain_text() -> None:
    assert Secret("häß") == Secret("häß")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert PLAIN not in (SECRET,)


def test_it_is_revealed_when_asked_to() -> None:
    assert SECRET.reveal() == PLAIN
    assert SECRET
    assert not Secret("")
