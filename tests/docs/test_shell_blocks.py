"""Every command in the documentation exists and takes the options it is given.

A command is parsed, not run: `hub` by Click, `make` by the Makefile, `curl` by the API's paths, an
environment variable by the list of settings.
"""

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import click
import pytest

from server.app import openapi_document
from server.cli import main
from server.settings import VARIABLES
from tests.docs.blocks import ROOT, Block, blocks

# Programs of the operating system that pages use; what they are given is not looked at.
SYSTEM = {
    ".venv/bin/pip",
    "cat",
    "cd",
    "chmod",
    "cp",
    "createdb",
    "docker",
    "export",
    "head",
    "mkdir",
    "mv",
    "openssl",
    "pg_basebackup",
    "pg_dump",
    "pg_restore",
    "pg_verifybackup",
    "psql",
    "python3",
    "sed",
    "touch",
}
PROGRAMS = {"hub", "make", "curl", "jq", ".venv/bin/hub", ".venv/bin/python"}
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
HEREDOC = re.compile(r"<<'?(\w+)'?\n.*?\n\1\n", re.DOTALL)
OTHER_VARIABLES = {"HUB_PROVIDER_ENVIRONMENT", "PATH", "VENUE", "TOKEN", "API", "SYNC", "RUN", "ARGS"}
TARGETS = set(re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text()))


def lines(text: str) -> Iterator[str]:
    """Split at the ends of lines that aren't within quotes."""
    line = ""
    for part in text.split("\n"):
        line = f"{line}\n{part}" if line else part
        try:
            shlex.split(line)
        except ValueError:
            continue
        yield line
        line = ""
    assert not line, f"a quote is never closed: {line}"


def commands(text: str) -> Iterator[list[str]]:
    """Split a shell script into its commands: words, with `$( … )` as commands of their own."""
    text = HEREDOC.sub("\n", text).replace("\\\n", " ")
    for inner in re.findall(r"\$\(((?:[^()]|\([^()]*\))*)\)", text):
        yield from commands(inner)
    text = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", "VALUE", text)
    for line in lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if skip:
                skip = False
            elif word and not word.strip("<>&") and set(word) & set("<>"):
                skip = True  # where to, or where from
            elif word and not word.strip("|&;"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def check(words: list[str]) -> None:
    """Raise AssertionError or click.UsageError for a command that couldn't be run as it is written."""
    while words and ASSIGNMENT.match(words[0]):
        check_variable(words.pop(0).partition("=")[0])
    if not words:
        return
    program, arguments = words[0], words[1:]
    assert program in PROGRAMS | SYSTEM, f"`{program}` is not a program the documentation may use"
    if program in ("hub", ".venv/bin/hub"):
        check_hub(arguments)
    elif program == "make":
        for word in arguments:
            assert word in TARGETS or ASSIGNMENT.match(word), f"make has no target `{word}`"
    elif program == ".venv/bin/python":
        assert arguments[0] == "-m"
        parse(importlib.import_module(arguments[1]).main, arguments[1], arguments[2:])
    elif program == "curl":
        check_curl(arguments)
    elif program == "export":
        for word in arguments:
            check_variable(word.partition("=")[0])


def check_hub(arguments: list[str]) -> None:
    if arguments == ["--help"]:
        return
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"`{command.name}` has no command `{name}`"
        command = command.commands[name]
    parse(command, name, arguments)


def parse(command: click.Command, name: str, arguments: list[str]) -> None:
    if "--help" in arguments:
        return
    context = click.Context(command, info_name=name)
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    assert not rest, f"`{name}` takes no {rest}"
    for parameter in command.params:
        given = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice):
            words = [given] if isinstance(given, str) else given if isinstance(given, list | tuple) else []
            assert set(words) <= set(parameter.type.choices), f"`{name}` takes no {words}"
        missing = parameter.required and parameter.value_is_missing(given)
        assert not missing, f"`{name}` needs {parameter.human_readable_name}"


@cache
def paths() -> Mapping[str, set[str]]:
    methods = ("get", "post", "put", "patch", "delete")
    found = {
        path: {each for each in methods if each in item} for path, item in openapi_document()["paths"].items()
    }
    return {**found, "/schema": {"get"}, "/schema/openapi.json": {"get"}}


def check_curl(arguments: list[str]) -> None:
    url = next(word for word in arguments if re.match(r"https?://|\$API", word))
    path = re.sub(
        r"https?://[^/]+|\$API", lambda found: "/api/v1/integrations" if "$" in found[0] else "", url
    )
    path = path.partition("?")[0]
    if ":3007" not in url and "$API" not in url and not url.startswith("https://hub."):
        return  # another program's
    body = any(word in ("-d", "--data", "--json") for word in arguments)
    method = arguments[arguments.index("-X") + 1].lower() if "-X" in arguments else "post" if body else "get"
    literal = [known for known in paths() if matches(known, path)]
    assert literal, f"the API has no path {path}"
    assert any(method in paths()[known] for known in literal), f"the API has no {method.upper()} {path}"


def matches(known: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", known), path) is not None


def check_variable(name: str) -> None:
    known = {variable.name for variable in VARIABLES} | OTHER_VARIABLES
    connectors = [path.stem.upper() for path in (ROOT / "connectors").glob("*.yaml")]
    apps = any(name.startswith(f"{each}_") for each in connectors)
    assert name in known or apps or name.startswith("HUB_CREDENTIAL_"), f"nothing reads {name}"


def problems(script: str) -> list[str]:
    """Return what is wrong with the commands of a script."""
    found = []
    for words in commands(script):
        try:
            check(list(words))
        except (click.ClickException, AssertionError) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else str(error)
            found.append(f"{' '.join(words)}: {said}")
    return found


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.name)
def test_commands_can_be_run_as_they_are_written(block: Block) -> None:
    assert list(commands(block.text))
    assert problems(block.text) == []


@pytest.mark.parametrize(
    "line",
    [
        "hub lnt",
        "hub lint --colour",
        "hub lint --format html",
        "hub pull stripe",
        "hub worker --lane fastest",
        "make rum",
        "NO_SUCH_SETTING=1 make run",
        "curl http://127.0.0.1:3007/api/v1/integrations/nothing/at/all/there",
        "curl -X POST http://127.0.0.1:3007/ready",
        "wget http://127.0.0.1:3007/ready",
        ".venv/bin/python -m server.demo.change --evnts 10",
        "TOKEN=$(hub tokn)",
    ],
)
def test_a_command_that_would_not_run_is_found(line: str) -> None:
    assert problems(line)


def test_files_named_in_pages_exist() -> None:
    """Links between pages, and links to files of the project."""
    missing = []
    for page in {block.file for block in blocks("sh", "yaml")} | set((ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not (page.parent / target).exists():
                missing.append(f"{page.relative_to(ROOT)}: {target}")
    assert missing == []


def test_paths_in_backticks_exist() -> None:
    """A page that says `server/vault.py` names a file that is there."""
    missing = []
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(
            r"`((?:engine|server|connectors|schemas|migrations)/[\w./-]+)`", page.read_text()
        ):
            if not Path(ROOT / name).exists() and "junip" not in name:
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert missing == []
