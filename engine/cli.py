"""The commands that need no server: `hub new`, `lint`, `explain`, `preview`, `call`, `pull`, `push`, `heal`.

Exit status 0: done and clean; 1: problems were found or records failed; 2: misuse.
Heavy imports happen inside the commands, so that `hub lint` starts at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import rich_click as click

if TYPE_CHECKING:
    from engine.client import ProviderClient
    from engine.diagnostics import Style
    from engine.manifest import Connector, Platform, Resource
    from engine.previews import Preview
    from engine.templates import MappingTemplate

CONNECTORS = Path("connectors")
TEMPLATES = Path("mapping-templates")
PLATFORM = "platform.yaml"
NO_NAMES = ("platform", "true", "false", "null")  # the platform's file, and what YAML takes for no text
STARTER = Path(__file__).with_name("starter.yaml")
PUSH_AT_ONCE = 500  # records planned together by `hub push`


@click.group()
def commands() -> None:
    """Commands that need no server."""


as_json = click.option("--json", "json_output", is_flag=True, help="Print JSON, for machines.")
credential = click.option(
    "--credential",
    "-c",
    "credentials",
    multiple=True,
    metavar="NAME=VALUE",
    help="A credential the manifest asks for, such as apiKey=sk_test_…; for OAuth access_token=…. "
    "HUB_CREDENTIAL_<NAME> in the environment does the same and keeps it out of the shell's history.",
)
environment = click.option(
    "--environment", "-e", default="production", show_default=True, help="The manifest's server to call."
)
connection = click.option(
    "--connection",
    multiple=True,
    metavar="NAME=JSON",
    help='A value learned when connecting, such as location_ids=["L1"]. Without any, they are looked up.',
)


# ---- new -----------------------------------------------------------------------------------------


@commands.command()
@click.argument("provider")
@click.option("--title", help="The provider's name as people write it; default PROVIDER, capitalised.")
@as_json
def new(provider: str, title: str | None, json_output: bool) -> None:
    """Write a commented manifest for PROVIDER to connectors/, ready to be filled in."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", provider) or provider in NO_NAMES:
        raise click.UsageError(f"`{provider}` can't name a connector: use lower-case letters, digits and `_`")
    title = " ".join((title or provider.replace("_", " ").title()).split())
    text = (
        STARTER.read_text("utf-8")
        .replace("{{name}}", provider)
        .replace("{{host}}", provider.replace("_", "-"))
    )
    # A comment takes any text; as a value some need quotes, which JSON's do in YAML as well.
    quoted = title if re.fullmatch(r"[A-Z][\w ]*", title) else json.dumps(title, ensure_ascii=False)
    text = text.replace("\ntitle: {{title}}", f"\ntitle: {quoted}").replace("{{title}}", title)
    file = CONNECTORS / f"{provider}.yaml"
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise click.UsageError(f"{error.filename or file} is there already, and was left as it is") from error
    if json_output:
        click.echo(json.dumps({"file": str(file)}))
    else:
        click.echo(f"wrote {file}; fill it in, then run `hub lint {file}`")


# ---- lint ----------------------------------------------------------------------------------------


@commands.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--format", "style", type=click.Choice(["text", "json", "github"]), default="text", show_default=True
)
@as_json
def lint(paths: tuple[Path, ...], style: str, json_output: bool) -> None:
    """Check manifests and mapping templates; without PATHS, all of connectors/ and mapping-templates/."""
    from engine.diagnostics import render
    from engine.lint import lint_file

    files = list(_yaml_files(paths or (CONNECTORS, TEMPLATES)))
    if not files:
        raise click.UsageError(f"no YAML file found in {', '.join(map(str, paths)) or 'connectors/'}")
    diagnostics = [found for file in files for found in lint_file(file)]
    style = "json" if json_output else style
    text = render(diagnostics, cast("Style", style))
    if text:
        click.echo(text)
    if style == "text":
        click.echo(f"{_count(len(diagnostics), 'problem')} in {_count(len(files), 'file')}", err=True)
    sys.exit(1 if diagnostics else 0)


def _yaml_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.yaml"))
        elif path.exists():
            yield path
        else:
            raise click.UsageError(f"{path} doesn't exist")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


# ---- preview -------------------------------------------------------------------------------------


@commands.command()
@click.argument("template")
@click.argument("sample", required=False, type=click.File("r", encoding="utf-8"))
@click.option("--entity", help="Only the mappings of this entity.")
@click.option("--resource", help="Only the mappings to this resource.")
@click.option("--direction", type=click.Choice(["push", "pull"]), help="Only this way; of a SAMPLE, push.")
@click.option("--venue", help="The venue's record, as JSON; else the samples', or one that takes US dollars.")
@click.option("--samples", type=click.Path(exists=True, path_type=Path), help="Another file of samples.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the tables there.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page there.")
@as_json
def preview(
    template: str,
    sample: TextIO | None,
    entity: str | None,
    resource: str | None,
    direction: str | None,
    venue: str | None,
    samples: Path | None,
    markdown: Path | None,
    html: Path | None,
    json_output: bool,
) -> None:
    """Show what TEMPLATE, such as `juniper/default` or its file, makes of records. Nothing is sent.

    Without SAMPLE, side by side over the samples of the template and of those it extends: source, rule and
    where it is written, target and result. With SAMPLE (JSON, `-` for standard input), the result alone.
    """
    venue_record = None if venue is None else _read_record(venue, "--venue")
    record = None if sample is None else _read_record(_text_of(sample, "SAMPLE"), "SAMPLE")
    if record is not None and (samples or markdown or html):
        raise click.UsageError("--samples, --markdown and --html go without SAMPLE")
    opened = _open_template(template)
    wanted = _Wanted(entity, resource, direction)
    if record is not None:
        _show_mapped(opened, record, wanted, venue_record, json_output)
        return
    from engine.documents import read_document
    from engine.previews import SampleError, previews, read_samples, render, sample_files

    files = [samples] if samples else sample_files(opened.file, opened.template.layers)
    if not files:
        raise click.UsageError(f"there are no samples of `{template}`: name a file with --samples")
    try:
        with _authors_errors():
            # Those of an extended template are shown in the venue of the one that extends it.
            first = read_document(files[0]).data
            around = venue_record
            if around is None and isinstance(first, dict) and isinstance(first.get("venue"), dict):
                around = first["venue"]
            found = [each for file in files for each in read_samples(read_document(file), around)]
    except SampleError as error:
        raise click.UsageError(str(error)) from error
    shown = [
        each
        for each in previews(opened.template, opened.connector, opened.platform, found)
        if wanted.holds(each.explanation.entity, each.explanation.resource, each.explanation.direction)
    ]
    if not shown:
        raise click.UsageError("no sample is for a mapping that was asked for")
    title = f"{opened.template.title} ({opened.connector.name}/{opened.template.name})"
    for file, style in ((markdown, "markdown"), (html, "html")):
        if file is not None:
            file.write_text(render(title, shown, cast("Literal['markdown', 'html']", style)) + "\n", "utf-8")
            click.echo(f"wrote {file}", err=True)
    if json_output:
        rows = [
            {"sample": each.sample, "record": each.record, **each.explanation.to_json()} for each in shown
        ]
        click.echo(
            json.dumps({"template": opened.template.name, "mappings": rows}, default=str, ensure_ascii=False)
        )
    elif markdown is None and html is None:
        click.echo(render(title, shown))


@commands.command()
@click.argument("template")
@click.option(
    "--record",
    "-r",
    required=True,
    type=click.File("r", encoding="utf-8"),
    help="A record as JSON; `-`: from input.",
)
@click.option("--entity", help="Only the mappings of this entity.")
@click.option("--resource", help="Only the mappings to this resource.")
@click.option("--direction", type=click.Choice(["push", "pull"]), default="push", show_default=True)
@click.option("--venue", help="The venue's record, as JSON; default one that takes US dollars.")
@as_json
def explain(
    template: str,
    record: TextIO,
    entity: str | None,
    resource: str | None,
    direction: str,
    venue: str | None,
    json_output: bool,
) -> None:
    """Say for each field which rule of TEMPLATE gives its value, from what, and where that rule is written.

    TEMPLATE is such as `juniper/default`, or a file. What fails is told in its place; then the status is 1.
    Ids of linked records are made up.
    """
    from engine.previews import SAMPLE_VENUE, Sample, exact, previews, render_explained

    given = _read_record(_text_of(record, "--record"), "--record")
    around = {**SAMPLE_VENUE, **(_read_record(venue, "--venue") if venue else {})}
    opened, way = _open_template(template), cast("Literal['push', 'pull']", direction)
    wanted = _Wanted(entity, resource, direction)
    shown: list[Preview] = []
    for mapping in opened.template.mappings:
        if wanted.holds(mapping.entity, mapping.resource, mapping.direction):
            body = exact({"id": "sample", **given}) if way == "push" else given
            sample = Sample("the record", way, mapping.resource, body, mapping.entity, venue=around)
            shown += previews(opened.template, opened.connector, opened.platform, [sample])
    if not shown:
        pairs = ", ".join(
            f"{each.entity} {each.direction} {each.resource}" for each in opened.template.mappings
        )
        raise click.UsageError(f"no mapping was asked for; `{opened.template.name}` has {pairs}")
    if json_output:
        rows = [each.explanation.to_json() for each in shown]
        click.echo(json.dumps({"original": given, "mappings": rows}, default=str, ensure_ascii=False))
    else:
        click.echo("\n\n".join(render_explained(each).rstrip() for each in shown))
    failed = any(each.explanation.error or each.explanation.condition_error for each in shown)
    sys.exit(1 if failed else 0)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A template that was named, and what it is checked against."""

    file: Path
    template: MappingTemplate
    connector: Connector
    platform: Platform


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which mappings were asked for."""

    entity: str | None
    resource: str | None
    direction: str | None

    def holds(self, entity: str, resource: str, direction: str) -> bool:
        ways = (None, direction) if direction != "bidirectional" else (None, "push", "pull")
        return self.entity in (None, entity) and self.resource in (None, resource) and self.direction in ways


def _open_template(name: str) -> _Opened:
    """Read a template by its file, or by `connector/template`."""
    from engine.documents import read_document
    from engine.manifest import load_connector, load_platform
    from engine.templates import load_template

    file = Path(name)
    if not file.is_file():
        connector_name, _, short = name.partition("/")
        file = TEMPLATES / connector_name / f"{short.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        from engine.diagnostics import nearest

        known = [f"{each.parent.name}/{each.stem}" for each in sorted(TEMPLATES.glob("*/*.yaml"))]
        guess = nearest(name, known)
        raise click.UsageError(f"no template `{name}`" + (f"; did you mean `{guess}`?" if guess else ""))
    with _authors_errors():
        data = read_document(file).data
        if not isinstance(data, dict) or not isinstance(data.get("connector"), str):
            raise click.UsageError(f"{file} names no connector; `hub lint {file}` says what it lacks")
        connector = load_connector(_connector_path(data["connector"]))
        platform = load_platform(CONNECTORS / PLATFORM)
        return _Opened(file, load_template(file, connector, platform), connector, platform)


def _show_mapped(
    opened: _Opened,
    record: dict[str, Any],
    wanted: _Wanted,
    venue: dict[str, Any] | None,
    json_output: bool,
) -> None:
    """Show what mappings make of one record, as it would be sent or kept."""
    from engine.errors import HubError
    from engine.explaining import made_up_links
    from engine.mapping import MappingScope
    from engine.previews import SAMPLE_VENUE

    direction: Literal["push", "pull"] = "pull" if wanted.direction == "pull" else "push"
    shown = []
    for mapping in opened.template.mappings:
        if not _Wanted(wanted.entity, wanted.resource, direction).holds(
            mapping.entity, mapping.resource, mapping.direction
        ):
            continue
        row: dict[str, Any] = {"entity": mapping.entity, "resource": mapping.resource, "direction": direction}
        links = made_up_links(mapping, record, direction)
        scope = MappingScope(venue=venue or SAMPLE_VENUE, links=links)
        wants, translate = (
            (mapping.wants, mapping.push) if direction == "push" else (mapping.wants_pull, mapping.pull)
        )
        try:
            if wants(record, scope):
                row["mapped"] = translate(record, scope)
            else:
                row["skipped"] = f"`{'only_when' if direction == 'push' else 'only_pull_when'}` doesn't hold"
        except HubError as error:
            row["error"] = error.message
        shown.append(row)
    if json_output:
        click.echo(json.dumps({"original": record, "mappings": shown}, default=str, ensure_ascii=False))
    else:
        for row in shown:
            click.secho(f"{row['entity']} {'→' if direction == 'push' else '←'} {row['resource']}", bold=True)
            result = row.get("mapped", row.get("skipped") or row.get("error"))
            click.echo(json.dumps(result, default=str, indent=2, ensure_ascii=False))
    sys.exit(1 if any("error" in row for row in shown) else 0)


# ---- heal ----------------------------------------------------------------------------------------


@commands.command()
@click.argument("questions", required=False, type=click.File("r", encoding="utf-8"))
@click.option("--old", type=click.File("r", encoding="utf-8"), help="The fields there were, as JSON or YAML.")
@click.option(
    "--new", type=click.File("r", encoding="utf-8"), help="The fields there are now, as JSON or YAML."
)
@click.option(
    "--before",
    type=click.File("r", encoding="utf-8"),
    help="Records of the time before: JSON, or JSON lines.",
)
@click.option("--after", type=click.File("r", encoding="utf-8"), help="The same records now.")
@click.option("--connector", help="Whose manifest says what fields there are, for --old or --new.")
@click.option("--resource", default="", help="The resource the fields belong to.")
@click.option("--field", "fields", multiple=True, metavar="PATH", help="Only what became of this field.")
@click.option("--explain", is_flag=True, help="Say for each proposal what speaks for and against it.")
@as_json
def heal(
    questions: TextIO | None,
    old: TextIO | None,
    new: TextIO | None,
    before: TextIO | None,
    after: TextIO | None,
    connector: str | None,
    resource: str,
    fields: tuple[str, ...],
    explain: bool,
    json_output: bool,
) -> None:
    """Find what became of fields that are gone. Nothing is changed.

    QUESTIONS is a file (`-` for standard input) with one question or a list of them; or ask one by --old and
    --new. docs/how-to/ask-what-became-of-a-field.md describes both.
    """
    from engine.asking import answer, read_questions

    asked: list[dict[str, Any]] = []
    if questions is None:
        declared: dict[str, Any] = {}
        common: dict[str, Any] = {"resource": resource}
        if connector is not None:
            from engine.manifest import load_connector

            with _authors_errors():
                spec = _resource_of(load_connector(_connector_path(connector)), resource)
            declared, common["renamed"] = {"id": "id", **spec.fields}, spec.renamed
        common["candidates"] = _read_yaml(_text_of(new, "--new"), "--new") if new else declared
        was = _read_yaml(_text_of(old, "--old"), "--old") if old else declared if new else None
        for key, file in (("samples_before", before), ("samples_after", after)):
            if file is not None:
                name = f"--{key.removeprefix('samples_')}"
                common[key] = _read_yaml(_text_of(file, name), name)
        if not (new or connector) or not (was or fields):
            raise click.UsageError("give QUESTIONS; or --old and --new, one of which may be a --connector's")
        asked = [{**common, "before": was, "only": fields or None}] if was else []
        asked = asked or [{**common, "old_path": path} for path in fields]
    try:
        if questions is not None:
            asked = read_questions(_read_yaml(_text_of(questions, "QUESTIONS"), "QUESTIONS"))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    plans: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, each in enumerate(asked, 1):
        try:
            plans += [{**asked_as, **plan} for asked_as, plan in answer(each, explain=explain)]
        except ValueError as error:  # the others are answered
            faults.append(f"question {number}: {error}" if len(asked) > 1 else str(error))
    if faults and not plans:
        raise click.UsageError("\n".join(faults))
    if json_output:
        click.echo(json.dumps({"plans": plans}, ensure_ascii=False, default=str))
    else:
        for plan in plans:
            _show_plan(plan)
    if faults:
        raise click.UsageError("\n".join(faults))


def _show_plan(plan: dict[str, Any]) -> None:
    says = {
        "applies": "applies by itself",
        "proposed": "a person decides",
        "broken": "has no successor",
        "unchanged": "is still there",
    }
    kept = f" (about {plan['protected']})" if plan["protected"] else ""
    click.secho(f"{plan['field']}: {says[plan['status']]}{kept}", bold=True)
    for each in plan["proposals"]:
        click.echo(f"  {each['score']:.2f}  {each['path']}")
        for sign, reasons in (("+", each.get("evidence", ())), ("-", each.get("doubts", ()))):
            for reason in reasons:
                click.echo(f"        {sign} {reason}")


def _read_yaml(text: str, what: str) -> Any:
    """Read JSON, JSON lines or YAML."""
    import yaml

    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return [_read_json(line, what) for line in lines]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise click.UsageError(f"{what} is neither JSON nor YAML") from error


# ---- call, pull, push ----------------------------------------------------------------------------


@commands.command()
@click.argument("connector")
@click.argument("request", metavar='"METHOD /path"')
@click.option("--data", help="A JSON body.")
@credential
@environment
@as_json
def call(
    connector: str,
    request: str,
    data: str | None,
    credentials: tuple[str, ...],
    environment: str,
    json_output: bool,
) -> None:
    """Make one real request, signed and encoded as CONNECTOR's manifest says, and print the answer."""
    from dataclasses import replace

    from engine.calls import Request
    from engine.errors import ExpressionError

    try:
        parsed = Request.parse(request)
    except ExpressionError as error:
        raise click.UsageError(error.message) from error
    if data:
        parsed = replace(parsed, body=_read_json(data, "--data"))

    async def run(client: ProviderClient) -> None:
        answer = await client.call(parsed)
        click.echo(
            json.dumps(answer.body, indent=None if json_output else 2, ensure_ascii=False, default=str)
        )

    _with_client(connector, credentials, environment, (), run)


@commands.command()
@click.argument("connector")
@click.argument("resource")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]), help="Only what changed since (UTC)."
)
@click.option(
    "--out", type=click.File("w"), default="-", help="Where the JSON lines go; default standard output."
)
@credential
@environment
@connection
@as_json
def pull(
    connector: str,
    resource: str,
    since: Any,
    out: TextIO,
    credentials: tuple[str, ...],
    environment: str,
    connection: tuple[str, ...],
    json_output: bool,
) -> None:
    """Read all records of RESOURCE as JSON lines."""
    from datetime import UTC

    moment = since.replace(tzinfo=UTC) if since else None

    async def run(client: ProviderClient) -> None:
        _resource_of(client.connector, resource)
        count = 0
        with _progress(f"reading {connector} {resource}", json_output) as tell:
            async for batch in client.pages(resource, since=moment):
                for row in batch.records:
                    out.write(json.dumps(row.record, ensure_ascii=False, default=str) + "\n")
                count += len(batch.records)
                tell(f"{count} records, {client.calls} calls")
        _report({"read": count, "api_calls": client.calls}, json_output)

    _with_client(connector, credentials, environment, connection, run)


@commands.command()
@click.argument("connector")
@click.argument("resource")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@credential
@environment
@connection
@as_json
def push(
    connector: str,
    resource: str,
    file: TextIO,
    credentials: tuple[str, ...],
    environment: str,
    connection: tuple[str, ...],
    json_output: bool,
) -> None:
    """Write the records in FILE (JSON lines) to RESOURCE. A line with an id updates, others create.

    The idempotency key comes from the line's content: pushing the same file twice creates nothing twice where
    the provider keeps keys. Prints one JSON line per record: its id there, or what was wrong.
    """

    async def run(client: ProviderClient) -> None:
        from engine.client import Write
        from engine.reconcile import fingerprint

        spec = _resource_of(client.connector, resource)
        counts = {"written": 0, "failed": 0}
        with _progress(f"writing {connector} {resource}", json_output) as tell:
            for lines in _chunks(file, PUSH_AT_ONCE):
                writes = []
                for number, line in lines:
                    body = _read_record(line, f"line {number}")
                    found = spec.id.find(body)
                    remote_id = str(found) if found else None
                    key = fingerprint([connector, resource, body])
                    writes.append(Write(f"{key[:16]}", remote_id, body, key))
                for group in client.plan(resource, writes):
                    for result in await client.send(group):
                        ok = result.error is None
                        counts["written" if ok else "failed"] += 1
                        row = (
                            {"id": result.remote_id}
                            if ok
                            else {"error": str(result.error), "record": result.write.body}
                        )
                        click.echo(json.dumps(row, ensure_ascii=False, default=str))
                    tell(f"{counts['written']} written, {counts['failed']} failed")
        _report({**counts, "api_calls": client.calls}, json_output)
        if counts["failed"]:
            sys.exit(1)

    _with_client(connector, credentials, environment, connection, run)


def _chunks(file: TextIO, size: int) -> Iterator[list[tuple[int, str]]]:
    chunk: list[tuple[int, str]] = []
    for number, line in enumerate(file, 1):
        if line.strip():
            chunk.append((number, line))
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# ---- shared --------------------------------------------------------------------------------------


def _connector_path(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONNECTORS / f"{name}.yaml"
    if not path.exists():
        from engine.diagnostics import nearest

        known = [file.stem for file in CONNECTORS.glob("*.yaml") if file.name != PLATFORM]
        guess = nearest(name, known)
        raise click.UsageError(f"no connector `{name}`" + (f"; did you mean `{guess}`?" if guess else ""))
    return path


def _resource_of(connector: Connector, name: str) -> Resource:
    from engine.diagnostics import nearest

    if name not in connector.resources:
        guess = nearest(name, list(connector.resources))
        known = ", ".join(connector.resources)
        raise click.UsageError(
            f"{connector.name} has no resource `{name}`; "
            + (f"did you mean `{guess}`? " if guess else "")
            + f"it has {known}"
        )
    return connector.resources[name]


def _text_of(file: TextIO, what: str) -> str:
    """Return what is in a file, without the mark that some editors begin one with."""
    try:
        return file.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} isn't text in UTF-8") from error


def _read_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(
            f"{what} isn't JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


def _read_record(text: str, what: str) -> dict[str, Any]:
    record = _read_json(text, what)
    if not isinstance(record, dict):
        raise click.UsageError(f"{what} isn't a record: it takes a JSON object")
    return record


def _with_client(
    name: str,
    credentials: tuple[str, ...],
    environment: str,
    connection: tuple[str, ...],
    run: Callable[[ProviderClient], Awaitable[None]],
) -> None:
    import asyncio

    from engine.errors import HubError
    from engine.manifest import load_connector

    with _authors_errors():
        connector = load_connector(_connector_path(name))
    if environment not in connector.servers:
        raise click.UsageError(
            f"{connector.name} has no server `{environment}`; it has {', '.join(connector.servers)}"
        )
    try:
        asyncio.run(_run_client(connector, credentials, environment, connection, run))
    except HubError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        sys.exit(1)


async def _run_client(
    connector: Connector,
    credentials: tuple[str, ...],
    environment: str,
    connection: tuple[str, ...],
    run: Callable[[ProviderClient], Awaitable[None]],
) -> None:
    from engine.connecting import connect
    from engine.ports import Credentials, Secret
    from engine.transport import parse_overrides

    given = {
        key.removeprefix("HUB_CREDENTIAL_").lower(): value
        for key, value in os.environ.items()
        if key.startswith("HUB_CREDENTIAL_")
    } | dict(_pair(text, "--credential") for text in credentials)
    asked = [field.name for method in connector.auth for field in method.credentials]
    values = {
        next((name for name in asked if name.lower() == key.lower()), key): Secret(value)
        for key, value in given.items()
    }
    learned = {
        key: _read_json(value, f"--connection {key}")
        for key, value in (_pair(text, "--connection") for text in connection)
    }
    try:
        overrides = parse_overrides(os.environ.get("HUB_ORIGIN_OVERRIDES", ""))
    except ValueError as error:
        raise click.UsageError(f"HUB_ORIGIN_OVERRIDES {error}") from error
    if overrides and os.environ.get("HUB_ENV") == "production":
        raise click.UsageError("HUB_ORIGIN_OVERRIDES is refused in production")
    account = Credentials(values, learned, environment)
    async with connect(connector, account, origin_overrides=overrides) as client:
        await run(client)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} wants NAME=VALUE")
    return name, value


@contextmanager
def _authors_errors() -> Iterator[None]:
    """Show an author's mistakes as diagnostics, not as a traceback."""
    from engine.errors import DocumentError

    try:
        yield
    except DocumentError as error:
        from engine.diagnostics import render

        click.echo(render(error.diagnostics, "text") or error.message, err=True)
        sys.exit(1)


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show a spinner with a changing text on standard error; nothing when quiet or not on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


def _report(counts: dict[str, int], json_output: bool) -> None:
    if json_output:
        click.echo(json.dumps(counts), err=True)
    else:
        click.echo(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()), err=True)
